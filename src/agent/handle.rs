//! What applications hold: the agent, and a handle for each registration.

use super::actor::{Core, Outcome};
use super::answer;
use super::events::{Events, Messages, Told};
use crate::{
    AgentBuilder, AnswerError, Change, Failure, Flow, FlowError, FlowId, InboundMessage, Input,
    Match, RegisterError, Registered, Registrar, Registration, RegistrationId, Removal, Status,
    Transcript, WayOut,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How long an un-REGISTER may take where no deadline is given (D21)
const REMOVAL: Duration = Duration::from_secs(35);

/// Runs in the agent's task.
pub(super) type Command = Box<dyn FnOnce(&mut Core) + Send>;

/// Keeps registrations alive, in a task of its own
///
/// Cheap to clone. The task ends with [`shutdown`](Self::shutdown), or when the last `Agent` and the last
/// [`RegistrationHandle`] are dropped; the latter closes the flows but removes no binding: the registrar keeps them until they expire.
///
/// Every method is cancel safe: a command whose future is dropped may still be carried out, except that a
/// registration whose [`add`](Self::add) was dropped is removed again, because nobody could name it.
///
/// ```no_run
/// use sip_registration::{Agent, Credentials, Error, Event, Registration};
/// use std::time::Duration;
///
/// # fn hang_up(_: &Event) -> bool { true }
/// # async fn softphone() -> Result<(), Error> {
/// let agent = Agent::builder().system_transports().build().await?;
/// let mut events = agent.events();                         // before add(): no event is missed
/// let account = Registration::builder("sip:example.com", "sip:alice@example.com")
///     .outbound_auth(Credentials::password("alice", "secret"))
///     .max_random_initial_delay(Duration::ZERO)            // a softphone starts now
///     .build()?;
/// let registration = agent.add(account).await?;            // a handle; `Registrar::register` gives the id
/// registration.registered().await?;
/// while let Some((_, event)) = events.next().await {        // an inherent method: no trait to import
///     println!("{event}");
///     if hang_up(&event) { break; }
/// }
/// agent.shutdown(Duration::from_secs(5)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Agent {
    commands: mpsc::UnboundedSender<Command>,
    events: broadcast::WeakSender<Told>,
    messages: broadcast::WeakSender<InboundMessage>,
}

impl Agent {
    /// A builder without transports.
    pub fn builder() -> AgentBuilder {
        AgentBuilder::new()
    }

    pub(super) const fn new(
        commands: mpsc::UnboundedSender<Command>,
        events: broadcast::WeakSender<Told>,
        messages: broadcast::WeakSender<InboundMessage>,
    ) -> Self {
        Self {
            commands,
            events,
            messages,
        }
    }

    /// Adds a registration and starts it, after its initial delay.
    ///
    /// When the future is dropped, the registration is removed again.
    ///
    /// # Errors
    /// [`RegisterError::Closed`] when the agent has shut down, or is about to.
    pub async fn add(
        &self,
        registration: Registration,
    ) -> Result<RegistrationHandle, RegisterError> {
        let undo = self.commands.downgrade();
        let mut added = self
            .ask(move |core| {
                core.insert(registration).map(|(id, outcome)| Added {
                    id,
                    outcome,
                    undo: Some(undo),
                })
            })
            .await??;
        added.undo = None;
        Ok(RegistrationHandle {
            agent: self.clone(),
            id: added.id,
            outcome: added.outcome.clone(),
        })
    }

    /// A handle for a registration that was added before; none where there is no such one.
    pub async fn handle(&self, id: RegistrationId) -> Option<RegistrationHandle> {
        let outcome = self
            .ask(move |core| core.outcome(id))
            .await
            .ok()
            .flatten()?;
        Some(RegistrationHandle {
            agent: self.clone(),
            id,
            outcome,
        })
    }

    /// Everything that happens from now on; `None` comes from it at once when the agent has ended.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.events.upgrade())
    }

    /// Messages that are not ours and that the [`Host`](crate::Host) gave back, from now on.
    ///
    /// While such a reader lives, the agent answers none of them itself.
    #[must_use]
    pub fn messages(&self) -> Messages {
        Messages::new(self.messages.upgrade())
    }

    /// The flows of a registration: what it is bound to, or is using now; with several by their reg-ids. Requests sent there
    /// reach the registrar.
    pub async fn flows(&self, id: RegistrationId) -> Vec<Arc<dyn Flow>> {
        self.ask(move |core| core.flows_of(id))
            .await
            .unwrap_or_default()
    }

    /// How requests of the host go out the way of a registration: flow, Route, Contact, GRUUs, Security-Verify; the best
    /// first. Empty while it is not bound, or no flow of it is up.
    pub async fn ways_out(&self, id: RegistrationId) -> Vec<WayOut> {
        self.ask(move |core| core.pool.ways_out(id))
            .await
            .unwrap_or_default()
    }

    /// The states of the flows of a registration by their reg-ids; of one without `outbound` there is one, under 1.
    pub async fn flow_statuses(&self, id: RegistrationId) -> Vec<(u8, Status)> {
        self.ask(move |core| core.pool.flow_statuses(id))
            .await
            .unwrap_or_default()
    }

    /// A flow by its name, such as that of an [`InboundMessage`](crate::InboundMessage); none where it is gone.
    pub async fn flow(&self, flow: FlowId) -> Option<Arc<dyn Flow>> {
        self.ask(move |core| core.flows.get(&flow).map(|(_, flow)| Arc::clone(flow)))
            .await
            .ok()
            .flatten()
    }

    /// Sends a response where its request came from: on its flow or, for a datagram from an address that no flow goes to,
    /// by the socket it came to (RFC 3261 §18.2.2).
    ///
    /// It does not wait, so that [`Host::message`](crate::Host::message) may call it; a host that keeps an `Agent` for that
    /// keeps the agent alive until it is shut down. A request may have several answers, and one again; nobody counts them.
    /// What the flow does not take, or a flow that is gone, is lost as in a network: retransmitting final responses to an
    /// INVITE is up to the host.
    ///
    /// # Errors
    /// [`AnswerError`], where nothing was sent: an ACK is not answered, a response neither, and what goes out is one.
    pub fn answer(&self, request: &InboundMessage, response: Bytes) -> Result<(), AnswerError> {
        answer::check(request, &response)?;
        let request = request.clone();
        self.commands
            .send(Box::new(move |core| core.answer(&request, response)))
            .map_err(|_| AnswerError::Closed)
    }

    /// Un-REGISTERs everything in at most `within`, and ends; the fate of each binding is returned.
    ///
    /// What is not answered by then is [`Removal::Unanswered`]; in no time at all nothing is sent. Goes on when the future is dropped. Of an agent that
    /// has ended, there is nothing to tell.
    pub async fn shutdown(&self, within: Duration) -> Vec<(RegistrationId, Removal)> {
        let (reply, answer) = oneshot::channel();
        let _ = self
            .commands
            .send(Box::new(move |core| core.shutdown(within, reply)));
        answer.await.unwrap_or_default()
    }

    /// Runs `act` in the agent's task.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, RegisterError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |core| drop(reply.send(act(core))));
        self.commands
            .send(command)
            .map_err(|_| RegisterError::Closed)?;
        answer.await.map_err(|_| RegisterError::Closed)
    }

    async fn input(&self, id: RegistrationId, input: Input<'static>) -> Result<(), RegisterError> {
        self.ask(move |core| core.input(id, input)).await?
    }

    async fn stop(
        &self,
        id: RegistrationId,
        within: Duration,
        forget: bool,
    ) -> Result<Removal, RegisterError> {
        let (reply, answer) = oneshot::channel();
        self.ask(move |core| core.stop(id, within, forget, reply))
            .await??;
        answer.await.map_err(|_| RegisterError::Closed)
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("running", &!self.commands.is_closed())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Registrar for Agent {
    async fn register(&self, registration: Registration) -> Result<RegistrationId, RegisterError> {
        Ok(self.add(registration).await?.id)
    }

    async fn reconfigure(
        &self,
        id: RegistrationId,
        to: Registration,
    ) -> Result<Change, RegisterError> {
        self.ask(move |core| core.reconfigure(id, to)).await?
    }

    async fn refresh(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.input(id, Input::Refresh).await
    }

    async fn reregister(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.input(id, Input::Reregister).await
    }

    async fn unregister(&self, id: RegistrationId) -> Result<Removal, RegisterError> {
        self.stop(id, REMOVAL, false).await
    }

    async fn remove(&self, id: RegistrationId, within: Duration) -> Result<Removal, RegisterError> {
        self.stop(id, within, true).await
    }

    async fn registration(&self, id: RegistrationId) -> Option<Arc<Registration>> {
        self.ask(move |core| core.pool.registration(id).cloned())
            .await
            .ok()
            .flatten()
    }

    async fn status(&self, id: RegistrationId) -> Option<Status> {
        self.ask(move |core| core.pool.status(id))
            .await
            .ok()
            .flatten()
    }

    async fn transcript(&self, id: RegistrationId) -> Option<Transcript> {
        self.ask(move |core| core.pool.transcript(id).cloned())
            .await
            .ok()
            .flatten()
    }

    async fn statuses(&self) -> Vec<(RegistrationId, Status)> {
        self.ask(|core| {
            core.pool
                .ids()
                .filter_map(|id| Some((id, core.pool.status(id)?)))
                .collect()
        })
        .await
        .unwrap_or_default()
    }

    async fn query(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.input(id, Input::Query).await
    }

    async fn remove_all(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.input(id, Input::RemoveAll).await
    }

    async fn pause(
        &self,
        id: RegistrationId,
        until: Option<Instant>,
        unregister: bool,
    ) -> Result<(), RegisterError> {
        self.input(id, Input::Pause { until, unregister }).await
    }

    async fn resume(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.input(id, Input::Resume).await
    }

    async fn retry_credentials(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.ask(move |core| core.retry_credentials(id)).await?
    }

    async fn matches(&self, request_uri: &str, to: &str, source: SocketAddr) -> Option<Match> {
        let (request_uri, to) = (request_uri.to_owned(), to.to_owned());
        self.ask(move |core| core.pool.matches(&request_uri, &to, source))
            .await
            .ok()
            .flatten()
    }

    async fn candidates(&self, request_uri: &str, to: &str, source: SocketAddr) -> Vec<Match> {
        let (request_uri, to) = (request_uri.to_owned(), to.to_owned());
        self.ask(move |core| core.pool.candidates(&request_uri, &to, source))
            .await
            .unwrap_or_default()
    }

    async fn flows(&self, id: RegistrationId) -> Vec<Arc<dyn Flow>> {
        // The method of the agent itself.
        Self::flows(self, id).await
    }

    async fn ways_out(&self, id: RegistrationId) -> Vec<WayOut> {
        Self::ways_out(self, id).await
    }

    async fn flow_statuses(&self, id: RegistrationId) -> Vec<(u8, Status)> {
        Self::flow_statuses(self, id).await
    }

    async fn reconcile(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.input(id, Input::Reconcile).await
    }

    async fn network_changed(&self) {
        let _ = self.ask(Core::network_changed).await;
    }

    async fn shutdown(&self, within: Duration) -> Vec<(RegistrationId, Removal)> {
        // The inherent one: it is found first.
        Self::shutdown(self, within).await
    }
}

/// A registration on its way to the one who asked for it; dropped on the way, it is removed again
struct Added {
    id: RegistrationId,
    outcome: watch::Receiver<Outcome>,
    undo: Option<mpsc::WeakUnboundedSender<Command>>,
}

impl Drop for Added {
    fn drop(&mut self) {
        let id = self.id;
        if let Some(commands) = self.undo.take().and_then(|commands| commands.upgrade()) {
            let _ = commands.send(Box::new(move |core| {
                let _ = core.stop(id, REMOVAL, true, oneshot::channel().0);
            }));
        }
    }
}

/// One registration of an [`Agent`]
///
/// Cheap to clone. Dropping it does nothing to the registration: that goes on until it is
/// [removed](Self::remove) or the agent ends. A handle keeps its agent running, as a clone of the agent does.
#[derive(Debug, Clone)]
pub struct RegistrationHandle {
    agent: Agent,
    id: RegistrationId,
    outcome: watch::Receiver<Outcome>,
}

impl RegistrationHandle {
    /// The name under which events and [`Registrar`] speak of it.
    #[must_use]
    pub const fn id(&self) -> RegistrationId {
        self.id
    }

    /// The agent it belongs to.
    #[must_use]
    pub const fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The state; none when it was removed.
    pub async fn status(&self) -> Option<Status> {
        self.agent.status(self.id).await
    }

    /// The last request and its answer, where [`Policy::keep_transcript`](crate::Policy::keep_transcript) has it so.
    pub async fn transcript(&self) -> Option<Transcript> {
        self.agent.transcript(self.id).await
    }

    /// The configuration in force; none when it was removed.
    pub async fn registration(&self) -> Option<Arc<Registration>> {
        self.agent.registration(self.id).await
    }

    /// Waits until there is a binding; returns at once where there is one.
    ///
    /// Temporary failures are waited through. What happened before the call counts: nothing is missed. Cancel safe.
    ///
    /// # Errors
    /// The failure for which it gave up; [`FlowError::ClosedByUs`] when it was stopped or removed, or the agent ended.
    pub async fn registered(&self) -> Result<Registered, Failure> {
        let mut outcome = self.outcome.clone();
        let last = outcome
            .wait_for(|outcome| !matches!(outcome, Outcome::Pending))
            .await;
        match last.as_deref() {
            Ok(Outcome::Registered(registered)) => Ok(Registered::clone(registered)),
            Ok(Outcome::GaveUp(failure)) => Err(failure.clone()),
            Ok(Outcome::Pending | Outcome::Stopped) | Err(_) => Err(FlowError::ClosedByUs.into()),
        }
    }

    /// Sends a REGISTER at once.
    ///
    /// # Errors
    /// When it was removed, or the agent has ended.
    pub async fn refresh(&self) -> Result<(), RegisterError> {
        self.agent.refresh(self.id).await
    }

    /// Un-REGISTER, then REGISTER.
    ///
    /// # Errors
    /// When it was removed, or the agent has ended.
    pub async fn reregister(&self) -> Result<(), RegisterError> {
        self.agent.reregister(self.id).await
    }

    /// Replaces the configuration; what the change causes is returned.
    ///
    /// # Errors
    /// When it was removed, or the agent has ended.
    pub async fn reconfigure(&self, to: Registration) -> Result<Change, RegisterError> {
        self.agent.reconfigure(self.id, to).await
    }

    /// Lets refused credentials be tried again.
    ///
    /// # Errors
    /// When it was removed, or the agent has ended.
    pub async fn retry_credentials(&self) -> Result<(), RegisterError> {
        self.agent.retry_credentials(self.id).await
    }

    /// Un-REGISTERs in at most `deadline`; the entry stays, and registers again on [`refresh`](Self::refresh).
    ///
    /// Goes on when the future is dropped. Where there is nothing any more, it is [`Removal::NeverBound`]; where the
    /// agent ended meanwhile, [`Removal::Unanswered`].
    pub async fn unregister(&self, deadline: Duration) -> Removal {
        fate(self.agent.stop(self.id, deadline, false).await)
    }

    /// Un-REGISTERs in at most `within`, and forgets the registration; else like [`unregister`](Self::unregister). Where
    /// `within` is 0 nothing is sent.
    pub async fn remove(&self, within: Duration) -> Removal {
        fate(self.agent.stop(self.id, within, true).await)
    }

    /// The flows it is bound to or is using now.
    pub async fn flows(&self) -> Vec<Arc<dyn Flow>> {
        self.agent.flows(self.id).await
    }

    /// How requests of the host go out its way, see [`Agent::ways_out`].
    pub async fn ways_out(&self) -> Vec<WayOut> {
        self.agent.ways_out(self.id).await
    }

    /// The states of its flows, see [`Agent::flow_statuses`].
    pub async fn flow_statuses(&self) -> Vec<(u8, Status)> {
        self.agent.flow_statuses(self.id).await
    }
}

fn fate(result: Result<Removal, RegisterError>) -> Removal {
    result.unwrap_or_else(|error| match error {
        RegisterError::Unknown => Removal::NeverBound,
        RegisterError::Closed => Removal::Unanswered,
    })
}
