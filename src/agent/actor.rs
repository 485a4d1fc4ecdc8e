//! The agent's one task: it owns the pool, and does what the pool wants.

use super::clock::Clock;
use super::events::Told;
use super::handle::Command;
use super::metrics::Meter;
use crate::traits::{Arrival, Sink};
use crate::{
    Answer, Change, CredentialProvider, Cx, Entropy, Event, Failure, Flow, FlowError, FlowId, Host,
    InboundMessage, Input, OpId, Pool, PoolOutput, Query, QueryKind, RegisterError, Registered,
    Registration, RegistrationId, Removal, ResolveError, Resolver, Secret, Target, Transport,
};
use async_trait::async_trait;
use bytes::Bytes;

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::Instrument as _;

/// Of each kind of work (commands, answers, deadlines, arrivals), so much is done in one turn
const A_TURN: usize = 64;
/// Arrivals that may wait; beyond it datagrams are dropped and streams wait
pub(super) const ARRIVALS: usize = 1024;
/// Messages that full flows may have waiting, all together; beyond it they are lost as in a network
const BACKLOG: usize = 1024;
/// When a full flow is tried again
pub(super) const FULL_RETRY: Duration = Duration::from_millis(5);
/// How long a resolver may take for addresses
///
/// NAPTR, SRV and addresses, one after the other, take 19 s at most, and a registration waits 20 s for its targets.
const ADDRESSES: Duration = Duration::from_secs(9);
/// How long a resolver may take for SRV, and for NAPTR; without them there may still be addresses
const SERVICES: Duration = Duration::from_secs(5);
/// How long a credential provider may take
const CREDENTIALS: Duration = Duration::from_secs(30);
/// How long a transport may take to make a flow; beyond what any policy waits, so that a name cannot be stuck forever
const OPEN: Duration = Duration::from_secs(60);
/// Wall time this far ahead of monotonic time means that the computer slept (D22)
const DRIFT: Duration = Duration::from_secs(5);
/// How long the agent sleeps at most: monotonic time, and its timers with it, stand still in suspend
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// The longest time that is reckoned with, so that no sum overflows
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A transport, with the number by which flows and arrivals know it
pub(super) struct Carrier {
    pub(super) number: usize,
    pub(super) name: Arc<str>,
    pub(super) transport: Arc<dyn Transport>,
    /// Removed: it ends with its last flow
    pub(super) leaving: bool,
}

/// A flow that is being made
pub(super) struct Making {
    pub(super) task: AbortHandle,
    /// The number of the transport
    pub(super) transport: usize,
    pub(super) named: Option<Arc<str>>,
    pub(super) target: Target,
}

/// The way from one transport into the agent's task
pub(super) struct Queue {
    pub(super) transport: usize,
    pub(super) sender: mpsc::Sender<(usize, Arrival)>,
}

#[async_trait]
impl Sink for Queue {
    async fn deliver(&self, arrival: Arrival) {
        // Fails only when the agent has ended.
        let _ = self.sender.send((self.transport, arrival)).await;
    }

    fn try_deliver(&self, arrival: Arrival) -> Result<(), Arrival> {
        self.sender
            .try_send((self.transport, arrival))
            .map_err(|error| {
                Meter::dropped();
                error.into_inner().1
            })
    }
}

/// What became of a registration, as [`RegistrationHandle::registered`] sees it
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Pending,
    Registered(Box<Registered>),
    GaveUp(Failure),
    Stopped,
}

/// What a task of ours finds out; kept by task, so that one that panics is answered for
#[derive(Debug, Clone)]
pub(super) enum Question {
    Resolve(Query),
    Open(FlowId, usize),
    Credentials(RegistrationId, OpId),
}

pub(super) enum Found {
    Resolved(Result<Answer, ResolveError>),
    Opened(Result<Arc<dyn Flow>, FlowError>),
    Credentials(Option<Secret>),
}

pub(super) struct Closing {
    until: Instant,
    missing: HashSet<RegistrationId>,
    fates: Vec<(RegistrationId, Removal)>,
    replies: Vec<oneshot::Sender<Vec<(RegistrationId, Removal)>>>,
}

/// All that the agent's task owns
pub(super) struct Core {
    pub(super) pool: Pool,
    pub(super) entropy: Entropy,
    pub(super) clock: Arc<dyn Clock>,
    /// Both clocks when they were last compared
    pub(super) checked: (Instant, SystemTime),
    pub(super) out: Vec<PoolOutput>,
    pub(super) transports: Vec<Carrier>,
    /// The number of the next transport
    pub(super) next_transport: usize,
    /// For transports that are added later
    pub(super) arrivals: mpsc::Sender<(usize, Arrival)>,
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) credentials: Option<Arc<dyn CredentialProvider>>,
    pub(super) host: Option<Arc<dyn Host>>,
    /// Flows that are up, with the transport of each
    pub(super) flows: HashMap<FlowId, (usize, Arc<dyn Flow>)>,
    pub(super) opening: HashMap<FlowId, Making>,
    pub(super) tasks: JoinSet<Found>,
    pub(super) questions: HashMap<Id, Question>,
    /// What full flows did not take, in order
    pub(super) backlog: HashMap<FlowId, VecDeque<Bytes>>,
    pub(super) waiting: usize,
    pub(super) retry_at: Option<Instant>,
    /// Transports to be flushed at the end of the turn
    pub(super) used: HashSet<usize>,
    pub(super) events: broadcast::Sender<Told>,
    pub(super) messages: broadcast::Sender<InboundMessage>,
    pub(super) outcomes: HashMap<RegistrationId, watch::Sender<Outcome>>,
    pub(super) waiters: HashMap<RegistrationId, Vec<oneshot::Sender<Removal>>>,
    pub(super) closing: Option<Closing>,
    /// Names flows that nobody asked the pool for
    pub(super) next_accepted: Arc<AtomicU64>,
    /// The transport whose arrival is being handled
    pub(super) arriving: Option<usize>,
    pub(super) meter: Meter,
}

/// The span in which a host's callbacks run
fn registration_span(id: RegistrationId) -> tracing::Span {
    tracing::info_span!("registration", %id)
}

type Joined = Result<(Id, Found), JoinError>;

impl Core {
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut arrivals: mpsc::Receiver<(usize, Arrival)>,
    ) {
        loop {
            let sleep = self.sleep();
            // Each is served in part only below; what woke us comes first.
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                () = tokio::time::sleep(sleep) => {}
                Some(joined) = self.tasks.join_next_with_id() => self.joined(joined),
                Some((transport, arrival)) = arrivals.recv() => self.arrival(transport, arrival),
            }
            for _ in 0..A_TURN {
                let Ok(command) = commands.try_recv() else {
                    break;
                };
                self.command(command);
            }
            self.check_clock();
            self.with(|pool, cx| pool.timeout(cx, A_TURN));
            self.settle();
            for _ in 0..A_TURN {
                let Some(joined) = self.tasks.try_join_next_with_id() else {
                    break;
                };
                self.joined(joined);
            }
            for _ in 0..A_TURN {
                let Ok((transport, arrival)) = arrivals.try_recv() else {
                    break;
                };
                self.arrival(transport, arrival);
            }
            self.retry_full();
            if cfg!(feature = "metrics") {
                self.meter.waiting(self.waiting, self.pool.held());
            }
            for number in std::mem::take(&mut self.used) {
                if let Some(transport) = self.numbered(number) {
                    transport.flush();
                }
            }
            self.end_transports();
            if self.closed() {
                break;
            }
        }
        // Those who wait for anything see their channels close.
        for (_, (_, flow)) in self.flows.drain() {
            flow.close();
        }
    }

    /// How long until something is due.
    pub(super) fn sleep(&self) -> Duration {
        let now = self.clock.now();
        [
            self.pool.deadline(),
            self.retry_at,
            self.closing.as_ref().map(|closing| closing.until),
        ]
        .into_iter()
        .flatten()
        .map(|at| at.saturating_duration_since(now))
        .fold(CLOCK_CHECK, Duration::min)
    }

    pub(super) fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Pool, &mut Cx<'_, PoolOutput>) -> T,
    ) -> T {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        act(
            &mut self.pool,
            &mut Cx {
                now,
                wall,
                entropy: &mut self.entropy,
                out: &mut self.out,
            },
        )
    }

    pub(super) fn check_clock(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let (then, wall_then) = std::mem::replace(&mut self.checked, (now, wall));
        // A wall clock that was set back is no sleep (D22).
        let on_the_wall = wall.duration_since(wall_then).unwrap_or_default();
        let slept = on_the_wall.saturating_sub(now.saturating_duration_since(then));
        if slept > DRIFT {
            tracing::debug!(?slept, "the wall clock ran ahead");
            self.with(|pool, cx| pool.clock_jump(cx, slept));
            self.settle();
        }
    }

    // ---- commands

    pub(super) fn command(&mut self, command: Command) {
        command(self);
        self.settle();
    }

    pub(super) fn insert(
        &mut self,
        registration: Registration,
    ) -> Result<(RegistrationId, watch::Receiver<Outcome>), RegisterError> {
        if self.closing.is_some() {
            return Err(RegisterError::Closed);
        }
        let id = self.with(|pool, cx| pool.insert(cx, Arc::new(registration)));
        let (sender, outcome) = watch::channel(Outcome::Pending);
        self.outcomes.insert(id, sender);
        self.measure(id);
        Ok((id, outcome))
    }

    pub(super) fn outcome(&self, id: RegistrationId) -> Option<watch::Receiver<Outcome>> {
        self.outcomes.get(&id).map(watch::Sender::subscribe)
    }

    pub(super) fn flows_of(&self, id: RegistrationId) -> Vec<Arc<dyn Flow>> {
        let flows = self.pool.flows_of(id).into_iter();
        flows
            .filter_map(|flow| self.flows.get(&flow))
            .map(|(_, flow)| Arc::clone(flow))
            .collect()
    }

    pub(super) fn known(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.pool
            .registration(id)
            .map(drop)
            .ok_or(RegisterError::Unknown)
    }

    pub(super) fn input(
        &mut self,
        id: RegistrationId,
        input: Input<'_>,
    ) -> Result<(), RegisterError> {
        self.known(id)?;
        self.with(|pool, cx| pool.handle(cx, id, input));
        self.stirred(id);
        Ok(())
    }

    pub(super) fn reconfigure(
        &mut self,
        id: RegistrationId,
        to: Registration,
    ) -> Result<Change, RegisterError> {
        let change = self
            .with(|pool, cx| pool.reconfigure(cx, id, Arc::new(to)))
            .ok_or(RegisterError::Unknown)?;
        self.stirred(id);
        Ok(change)
    }

    pub(super) fn retry_credentials(&mut self, id: RegistrationId) -> Result<(), RegisterError> {
        self.known(id)?;
        self.with(|pool, cx| pool.retry_credentials(cx, id));
        self.stirred(id);
        Ok(())
    }

    pub(super) fn stop(
        &mut self,
        id: RegistrationId,
        within: Duration,
        forget: bool,
        reply: oneshot::Sender<Removal>,
    ) -> Result<(), RegisterError> {
        self.known(id)?;
        let within = within.min(LONGEST);
        self.waiters.entry(id).or_default().push(reply);
        self.with(|pool, cx| match forget {
            true => drop(pool.remove(cx, id, within)),
            false => pool.handle(cx, id, Input::Stop(within)),
        });
        Ok(())
    }

    pub(super) fn network_changed(&mut self) {
        self.with(Pool::network_changed);
    }

    pub(super) fn shutdown(
        &mut self,
        within: Duration,
        reply: oneshot::Sender<Vec<(RegistrationId, Removal)>>,
    ) {
        if let Some(closing) = &mut self.closing {
            return closing.replies.push(reply);
        }
        let within = within.min(LONGEST);
        let ids: Vec<_> = self.pool.ids().collect();
        self.closing = Some(Closing {
            until: self.clock.now() + within,
            missing: ids.iter().copied().collect(),
            fates: Vec::new(),
            replies: vec![reply],
        });
        for id in ids {
            self.with(|pool, cx| pool.remove(cx, id, within));
        }
    }

    /// Whether a shutdown is over; then its fates are told.
    pub(super) fn closed(&mut self) -> bool {
        let now = self.clock.now();
        let Some(mut closing) = self
            .closing
            .take_if(|closing| closing.missing.is_empty() || closing.until <= now)
        else {
            return false;
        };
        closing.fates.extend(
            closing
                .missing
                .into_iter()
                .map(|id| (id, Removal::Unanswered)),
        );
        closing.fates.sort_unstable_by_key(|(id, _)| *id);
        for outcome in self.outcomes.values() {
            outcome.send_replace(Outcome::Stopped);
        }
        for reply in closing.replies {
            let _ = reply.send(closing.fates.clone());
        }
        true
    }

    /// Notes where a registration stands now.
    fn measure(&mut self, id: RegistrationId) {
        if cfg!(feature = "metrics") {
            let now = self.clock.now();
            self.meter.stands(id, self.pool.status(id).as_ref(), now);
        }
    }

    /// After a command: a registration that had ended may be at it again.
    pub(super) fn stirred(&mut self, id: RegistrationId) {
        self.measure(id);
        if let Some(outcome) = self.outcomes.get(&id)
            && self.is_active(id)
            && matches!(*outcome.borrow(), Outcome::GaveUp(_) | Outcome::Stopped)
        {
            outcome.send_replace(Outcome::Pending);
        }
    }

    pub(super) fn is_active(&self, id: RegistrationId) -> bool {
        self.pool
            .status(id)
            .is_some_and(|status| status.activity != crate::Activity::Idle)
    }

    // ---- what tasks and transports bring

    pub(super) fn joined(&mut self, joined: Joined) {
        let (task, found) = match joined {
            Ok((task, found)) => (task, Some(found)),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a resolver, transport or credential provider panicked");
                }
                (error.id(), None)
            }
        };
        match (self.questions.remove(&task), found) {
            (Some(Question::Resolve(query)), found) => {
                let result = match found {
                    Some(Found::Resolved(result)) => result,
                    _ => Err(ResolveError::Failed("the resolver panicked".into())),
                };
                self.with(|pool, cx| pool.resolved(cx, &query, result));
            }
            (Some(Question::Open(flow, transport)), found) => {
                let result = match found {
                    Some(Found::Opened(result)) => result,
                    _ => Err(FlowError::Closed),
                };
                self.opened(flow, transport, result);
            }
            (Some(Question::Credentials(id, op)), found) => {
                let secret = match found {
                    Some(Found::Credentials(secret)) => secret,
                    _ => None,
                };
                self.with(|pool, cx| pool.credentials(cx, id, op, secret));
            }
            (None, _) => {}
        }
        self.settle();
    }

    pub(super) fn opened(
        &mut self,
        id: FlowId,
        transport: usize,
        result: Result<Arc<dyn Flow>, FlowError>,
    ) {
        let making = self.opening.get(&id);
        if making.is_none_or(|making| making.transport != transport) {
            // Nobody wants it any more, or not on a transport that was replaced meanwhile.
            if let Ok(flow) = result {
                flow.close();
            }
            return;
        }
        self.opening.remove(&id);
        let result = result.map(|flow| {
            let info = Arc::new(flow.info().clone());
            self.flows.insert(id, (transport, flow));
            info
        });
        self.with(|pool, cx| pool.opened(cx, id, result));
    }

    pub(super) fn arrival(&mut self, transport: usize, arrival: Arrival) {
        match arrival {
            Arrival::Received(batch) => {
                self.arriving = Some(transport);
                for received in batch {
                    self.with(|pool, cx| pool.received(cx, received));
                    self.settle();
                }
                self.arriving = None;
            }
            // The transport may be gone by now.
            Arrival::Accepted(_, flow) if self.numbered(transport).is_none() => flow.close(),
            Arrival::Accepted(id, flow) => {
                self.flows.insert(id, (transport, flow));
            }
            Arrival::Failed(id, error) => self.failed(id, &error),
        }
        self.settle();
    }

    pub(super) fn failed(&mut self, id: FlowId, error: &FlowError) {
        self.drop_flow(id);
        self.with(|pool, cx| pool.flow_failed(cx, id, error));
    }

    /// Ends a flow, or stops making it.
    pub(super) fn drop_flow(&mut self, id: FlowId) {
        if let Some(making) = self.opening.remove(&id) {
            making.task.abort();
        }
        if let Some((transport, flow)) = self.flows.remove(&id) {
            flow.close();
            self.used.insert(transport);
        }
        if let Some(dropped) = self.backlog.remove(&id) {
            self.waiting -= dropped.len();
        }
    }

    // ---- what the pool wants

    /// Carries out everything the pool wants, and what comes of that.
    pub(super) fn settle(&mut self) {
        while !self.out.is_empty() {
            for output in std::mem::take(&mut self.out) {
                self.carry_out(output);
            }
        }
    }

    pub(super) fn carry_out(&mut self, output: PoolOutput) {
        match output {
            PoolOutput::Resolve(query) => self.resolve(query),
            PoolOutput::Open {
                flow,
                transport,
                target,
            } => self.open(flow, transport, target),
            PoolOutput::Send { flow, message } => self.send(flow, message),
            PoolOutput::Close(flow) => self.drop_flow(flow),
            PoolOutput::Credentials { id, op, query } => match self.credentials.clone() {
                Some(provider) => {
                    let ask = async move {
                        let asked =
                            tokio::time::timeout(CREDENTIALS, provider.credentials(id, &query));
                        Found::Credentials(asked.await.unwrap_or_default())
                    };
                    self.spawn(
                        Question::Credentials(id, op),
                        ask.instrument(registration_span(id)),
                    );
                }
                None => self.with(|pool, cx| pool.credentials(cx, id, op, None)),
            },
            PoolOutput::Event(id, event) => self.event(id, event),
            PoolOutput::Done(id, removal) => self.done(id, &removal),
            PoolOutput::Message(mut message) => {
                message.transport = self.arriving.and_then(|index| u16::try_from(index).ok());
                self.message(message);
            }
        }
    }

    pub(super) fn spawn(
        &mut self,
        question: Question,
        task: impl Future<Output = Found> + Send + 'static,
    ) -> AbortHandle {
        let handle = self.tasks.spawn(task);
        self.questions.insert(handle.id(), question);
        handle
    }

    pub(super) fn resolve(&mut self, query: Query) {
        let resolver = Arc::clone(&self.resolver);
        let limit = match query.kind {
            QueryKind::Addresses => ADDRESSES,
            _ => SERVICES,
        };
        self.spawn(Question::Resolve(query.clone()), async move {
            let asked = tokio::time::timeout(limit, resolver.resolve(&query)).await;
            let answer = asked.unwrap_or(Err(ResolveError::Timeout));
            Found::Resolved(answer.map(|answer| {
                let ttl = answer.ttl.min(LONGEST);
                answer.with_ttl(ttl)
            }))
        });
    }

    pub(super) fn open(&mut self, id: FlowId, named: Option<Arc<str>>, target: Target) {
        let protocol = target.protocol();
        let may = |carrier: &&Carrier| match &named {
            Some(named) => carrier.name == *named,
            None => !carrier.leaving && carrier.transport.protocols().contains(&protocol),
        };
        let mut able = self.transports.iter().filter(may);
        let first = able.clone().next();
        let found = able
            .find(|carrier| carrier.transport.suits(&target))
            .or(first);
        let error = match (found, &named) {
            (Some(carrier), _) if carrier.transport.protocols().contains(&protocol) => None,
            (None, Some(named)) => Some(FlowError::UnknownTransport(Arc::clone(named))),
            (Some(_), _) | (None, None) => Some(FlowError::NoTransport(protocol)),
        };
        let Some(carrier) = found.filter(|_| error.is_none()) else {
            let error = error.unwrap_or(FlowError::NoTransport(protocol));
            return self.with(|pool, cx| pool.opened(cx, id, Err(error)));
        };
        let (number, transport) = (carrier.number, Arc::clone(&carrier.transport));
        let to = target.clone();
        let task = self.spawn(Question::Open(id, number), async move {
            let opened = tokio::time::timeout(OPEN, transport.open(id, &to)).await;
            Found::Opened(opened.unwrap_or(Err(FlowError::ConnectTimeout(OPEN))))
        });
        let making = Making {
            task,
            transport: number,
            named,
            target,
        };
        self.opening.insert(id, making);
    }

    pub(super) fn send(&mut self, id: FlowId, message: Bytes) {
        // Behind what waits already, so that order is kept.
        if self.backlog.contains_key(&id) {
            return self.hold(id, message);
        }
        let Some((transport, flow)) = self.flows.get(&id) else {
            return tracing::trace!(%id, "a message for a flow that is gone");
        };
        self.used.insert(*transport);
        match flow.send(message.clone()) {
            Ok(()) => {}
            Err(FlowError::Full) => {
                self.meter.full();
                self.hold(id, message);
            }
            Err(error) => self.failed(id, &error),
        }
    }

    pub(super) fn hold(&mut self, id: FlowId, message: Bytes) {
        if self.waiting >= BACKLOG {
            // Lost as in a network: the transaction sends again, or its timer F ends it.
            return tracing::debug!(%id, "too many messages wait for full flows; one is dropped");
        }
        self.backlog.entry(id).or_default().push_back(message);
        self.waiting += 1;
        if self.retry_at.is_none() {
            self.retry_at = Some(self.clock.now() + FULL_RETRY);
        }
    }

    pub(super) fn retry_full(&mut self) {
        let now = self.clock.now();
        if self.retry_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        for (id, messages) in std::mem::take(&mut self.backlog) {
            self.waiting -= messages.len();
            for message in messages {
                self.send(id, message);
            }
        }
        self.settle();
    }

    pub(super) fn event(&mut self, id: RegistrationId, event: Event) {
        // What the host logs about it carries the id, too.
        let _span = registration_span(id).entered();
        tracing::debug!(%event);
        self.meter.event(id, &event, self.clock.now());
        self.measure(id);
        if let Some(outcome) = self.outcomes.get(&id) {
            match &event {
                Event::Registered(registered) | Event::Refreshed(registered) => {
                    outcome.send_replace(Outcome::Registered(registered.clone()));
                }
                Event::GaveUp { failure, .. } => {
                    outcome.send_replace(Outcome::GaveUp(failure.clone()));
                }
                Event::Unregistered(_) if self.is_active(id) => {
                    outcome.send_replace(Outcome::Pending);
                }
                Event::Unregistered(_) => {
                    outcome.send_replace(Outcome::Stopped);
                }
                _ => {
                    let bound = self
                        .pool
                        .status(id)
                        .is_some_and(|status| status.is_registered());
                    if !bound && matches!(*outcome.borrow(), Outcome::Registered(_)) {
                        outcome.send_replace(Outcome::Pending);
                    }
                }
            }
        }
        if let Some(host) = &self.host {
            let told = catch_unwind(AssertUnwindSafe(|| host.event(id, &event)));
            if told.is_err() {
                tracing::error!(%event, "the host panicked on an event");
            }
        }
        // Fails only where nobody listens.
        let _ = self.events.send((id, Arc::new(event)));
    }

    pub(super) fn done(&mut self, id: RegistrationId, removal: &Removal) {
        self.measure(id);
        if self.pool.registration(id).is_none() {
            if let Some(outcome) = self.outcomes.remove(&id) {
                outcome.send_replace(Outcome::Stopped);
            }
        } else if !self.is_active(id)
            && let Some(outcome) = self.outcomes.get(&id)
        {
            outcome.send_replace(Outcome::Stopped);
        }
        for waiter in self.waiters.remove(&id).into_iter().flatten() {
            let _ = waiter.send(removal.clone());
        }
        if let Some(closing) = &mut self.closing
            && closing.missing.remove(&id)
        {
            closing.fates.push((id, removal.clone()));
        }
    }
}
