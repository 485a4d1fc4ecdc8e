//! Registrations in virtual time: no ports, no sleeps, no luck.

use super::message::{Reply, SentRequest, stun_success};
use crate::{
    Answer, CredentialsQuery, Cx, Entropy, Event, FlowError, FlowId, FlowInfo, Input, OpId, Pool,
    PoolOutput, Protocol, Query, QueryKind, Received, Registration, RegistrationId, Removal,
    Request, ResolveError, Secret, Status, Target,
};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A script's view of one registration, or of many: it moves the time, sees what is sent, and answers
///
/// Its methods panic where the script expects what did not happen: this is for tests.
///
/// ```
/// use sip_registration::{Registration, testkit::{Reply, Sim}};
/// use std::time::Duration;
/// # fn main() -> Result<(), sip_registration::Error> {
/// let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
///     .max_random_initial_delay(Duration::ZERO)
///     .build()?;
/// let mut sim = Sim::new(account);
/// let register = sim.sent();
/// sim.reply(&register, Reply::granted(600));
/// assert!(sim.status().is_registered());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sim {
    pool: Pool,
    entropy: Entropy,
    start: Instant,
    now: Instant,
    ids: Vec<RegistrationId>,
    flows: HashMap<FlowId, Target>,
    names: HashMap<Query, Result<Answer, ResolveError>>,
    refusals: VecDeque<FlowError>,
    dress: fn(FlowInfo) -> FlowInfo,
    secret: Option<Secret>,
    silent_provider: bool,
    asked: Vec<(RegistrationId, OpId, CredentialsQuery)>,
    silent_network: bool,
    opening: Vec<FlowId>,
    sent: VecDeque<SentRequest>,
    events: Vec<(RegistrationId, Event)>,
    removals: Vec<(RegistrationId, Removal)>,
    messages: Vec<crate::InboundMessage>,
    closed: Vec<FlowId>,
    kept: Vec<SentKeepAlive>,
    keeps: Option<SocketAddr>,
}

/// A keep-alive that went out in a [`Sim`]: CRLFs, or STUN
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentKeepAlive {
    /// When, as [`Sim::elapsed`] counts
    pub at: Duration,
    /// The flow it went out on
    pub flow: FlowId,
    /// Its bytes
    pub message: Bytes,
}

impl Sim {
    /// One registration, started.
    #[must_use]
    pub fn new(registration: Registration) -> Self {
        Self::many([registration])
    }

    /// Many registrations of one agent, started.
    #[must_use]
    pub fn many(registrations: impl IntoIterator<Item = Registration>) -> Self {
        Self::seeded([7; 32], registrations)
    }

    /// The same with a seed of one's own.
    #[must_use]
    pub fn seeded(seed: [u8; 32], registrations: impl IntoIterator<Item = Registration>) -> Self {
        let mut entropy = Entropy::from_seed(seed);
        let mut pool = Pool::new(&mut entropy);
        pool.add_transport("udp", &[Protocol::Udp]);
        pool.add_transport("tcp", &[Protocol::Tcp]);
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had no other way; only differences matter"
        )]
        let start = Instant::now();
        let mut sim = Self {
            pool,
            entropy,
            start,
            now: start,
            ids: Vec::new(),
            flows: HashMap::new(),
            names: HashMap::new(),
            refusals: VecDeque::new(),
            dress: |info| info,
            secret: None,
            silent_provider: false,
            asked: Vec::new(),
            silent_network: false,
            opening: Vec::new(),
            sent: VecDeque::new(),
            events: Vec::new(),
            removals: Vec::new(),
            messages: Vec::new(),
            closed: Vec::new(),
            kept: Vec::new(),
            keeps: None,
        };
        for registration in registrations {
            sim.add(registration);
        }
        sim
    }

    /// One registration that has just been granted `granted`.
    #[must_use]
    pub fn registered(registration: Registration, granted: Duration) -> Self {
        let mut sim = Self::new(registration);
        while let (true, Some(next)) = (sim.is_silent(), sim.deadline()) {
            sim.advance(next);
        }
        let register = sim.sent();
        sim.start = sim.now;
        sim.reply(&register, Reply::granted(granted.as_secs() as u32));
        assert!(
            sim.status().is_registered(),
            "not registered: {:?}",
            sim.events
        );
        sim.events.clear();
        sim
    }

    /// Adds one more.
    pub fn add(&mut self, registration: Registration) -> RegistrationId {
        let id = self.with(|pool, cx| pool.insert(cx, Arc::new(registration)));
        self.ids.push(id);
        id
    }

    /// The first registration.
    #[must_use]
    pub fn id(&self) -> RegistrationId {
        self.ids[0]
    }

    /// All registrations, in the order they were added.
    #[must_use]
    pub fn ids(&self) -> &[RegistrationId] {
        &self.ids
    }

    /// The pool itself, to ask it things.
    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What a name resolves to from now on; without it every name is 192.0.2.9.
    pub fn resolve(&mut self, host: &str, result: Result<Vec<IpAddr>, ResolveError>) {
        self.answer(Query::new(host), result.map(Answer::new));
    }

    /// What the name service says to a question from now on. Without it a name has the address 192.0.2.9 and neither SRV
    /// nor NAPTR records.
    pub fn answer(&mut self, query: Query, result: Result<Answer, ResolveError>) {
        self.names.insert(query, result);
    }

    /// The next flow cannot be made.
    pub fn refuse_next_open(&mut self, error: FlowError) {
        self.refusals.push_back(error);
    }

    /// What flows are like from now on: `dress` is given each that was made, and changes it.
    pub fn dress_flows(&mut self, dress: fn(FlowInfo) -> FlowInfo) {
        self.dress = dress;
    }

    /// What the credential provider finds from now on.
    pub fn provide(&mut self, secret: Option<Secret>) {
        self.secret = secret;
    }

    /// Whether the credential provider answers only by [`tell`](Self::tell) from now on.
    pub const fn stall_provider(&mut self, stalled: bool) {
        self.silent_provider = stalled;
    }

    /// What the credential provider was asked since the last call, answered or not.
    pub fn asked(&mut self) -> Vec<(RegistrationId, OpId, CredentialsQuery)> {
        std::mem::take(&mut self.asked)
    }

    /// The credential provider's answer to a question, in time or not.
    pub fn tell(&mut self, id: RegistrationId, op: OpId, secret: Option<Secret>) {
        self.with(|pool, cx| pool.credentials(cx, id, op, secret));
    }

    /// Whether a new flow is up or refused only by [`opened`](Self::opened) from now on.
    pub const fn stall_opens(&mut self, stalled: bool) {
        self.silent_network = stalled;
    }

    /// The flows that were asked for while opens were stalled, since the last call.
    pub fn opening(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.opening)
    }

    /// A flow that was asked for is up, or cannot be made; in time or not.
    ///
    /// # Panics
    /// When the flow was never asked for.
    pub fn opened(&mut self, flow: FlowId, result: Result<(), FlowError>) {
        let target = self.flows.get(&flow).expect("a flow that was asked for");
        let info = self.info(flow, target);
        self.with(|pool, cx| pool.opened(cx, flow, result.map(|()| info)));
    }

    fn info(&self, flow: FlowId, target: &Target) -> Arc<FlowInfo> {
        let ip = if target.address().is_ipv6() {
            "[2001:db8::1]"
        } else {
            "192.0.2.1"
        };
        let port = if target.protocol().is_reliable() {
            40_000 + flow.number()
        } else {
            5060
        };
        let local = format!("{ip}:{port}").parse().expect("an address");
        let (protocol, remote) = (target.protocol(), target.address());
        Arc::new((self.dress)(FlowInfo::new(protocol, local, remote)))
    }

    /// Time since the start, or since the grant of [`registered`](Self::registered).
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now.saturating_duration_since(self.start)
    }

    /// The virtual now.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Lets time pass, and everything happen that is due in it, each at its own moment.
    pub fn advance(&mut self, by: Duration) {
        self.advance_instant(self.now + by);
    }

    /// Lets time pass until `at` after the start.
    pub fn advance_to(&mut self, at: Duration) {
        self.advance_instant(self.start + at);
    }

    fn advance_instant(&mut self, end: Instant) {
        while let Some(at) = self.pool.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.with(|pool, cx| pool.timeout(cx, 1000));
        }
        self.now = self.now.max(end);
    }

    /// Time from now to the next thing that is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.pool
            .deadline()
            .map(|at| at.saturating_duration_since(self.now))
    }

    /// The next request that went out.
    ///
    /// # Panics
    /// When nothing was sent.
    pub fn sent(&mut self) -> SentRequest {
        match self.sent.pop_front() {
            Some(request) => request,
            None => panic!("nothing was sent; events so far: {:#?}", self.events),
        }
    }

    /// All requests that went out and were not looked at.
    pub fn all_sent(&mut self) -> Vec<SentRequest> {
        self.sent.drain(..).collect()
    }

    /// Whether nothing was sent that was not looked at.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.sent.is_empty()
    }

    /// Answers a request from where it went.
    pub fn reply(&mut self, to: &SentRequest, reply: impl Into<Reply>) {
        let message = reply.into().to(to);
        self.push(to, message);
    }

    /// Delivers bytes from where `to` went.
    pub fn push(&mut self, to: &SentRequest, message: Bytes) {
        let received = Received::new(to.target().address(), message).with_flow(to.flow());
        self.with(|pool, cx| pool.received(cx, received));
    }

    /// Delivers bytes from anywhere.
    pub fn receive(&mut self, source: SocketAddr, message: impl Into<Bytes>) {
        let received = Received::new(source, message.into());
        self.with(|pool, cx| pool.received(cx, received));
    }

    /// Feeds the first registration.
    pub fn input(&mut self, input: Input<'_>) {
        let id = self.id();
        self.with(|pool, cx| pool.handle(cx, id, input));
    }

    /// Un-REGISTERs and forgets a registration.
    pub fn remove(&mut self, id: RegistrationId, within: Duration) {
        self.with(|pool, cx| pool.remove(cx, id, within));
    }

    /// Calls the pool itself.
    pub fn with<T>(&mut self, act: impl FnOnce(&mut Pool, &mut Cx<'_, PoolOutput>) -> T) -> T {
        let mut out = Vec::new();
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.elapsed();
        let mut cx = Cx {
            now: self.now,
            wall,
            entropy: &mut self.entropy,
            out: &mut out,
        };
        let result = act(&mut self.pool, &mut cx);
        for output in out {
            self.carry_out(output);
        }
        result
    }

    fn carry_out(&mut self, output: PoolOutput) {
        match output {
            PoolOutput::Resolve(query) => {
                let found = self
                    .names
                    .get(&query)
                    .cloned()
                    .unwrap_or_else(|| match query.kind {
                        QueryKind::Addresses => Ok(Answer::new(vec![IpAddr::from([192, 0, 2, 9])])),
                        _ => Err(ResolveError::NoAddress(Arc::clone(&query.name))),
                    });
                self.with(|pool, cx| pool.resolved(cx, &query, found));
            }
            PoolOutput::Open { flow, target, .. } => {
                let info = self.info(flow, &target);
                self.flows.insert(flow, target);
                if self.silent_network {
                    return self.opening.push(flow);
                }
                let result = self.refusals.pop_front().map_or(Ok(info), Err);
                self.with(|pool, cx| pool.opened(cx, flow, result));
            }
            PoolOutput::Close(flow) => self.closed.push(flow),
            PoolOutput::Send { flow, message } if matches!(message.first(), Some(b'\r' | 0)) => {
                self.kept_alive(flow, message);
            }
            PoolOutput::Send { flow, message } => {
                let request = Request::parse(message).expect("what we write can be read");
                let target = self
                    .flows
                    .get(&flow)
                    .cloned()
                    .expect("a flow that was opened");
                self.sent.push_back(SentRequest::new(request, flow, target));
            }
            PoolOutput::Credentials { id, op, query } => {
                self.asked.push((id, op, query));
                if !self.silent_provider {
                    self.tell(id, op, self.secret.clone());
                }
            }
            PoolOutput::Event(id, event) => self.events.push((id, event)),
            PoolOutput::Done(id, removal) => self.removals.push((id, removal)),
            PoolOutput::Message(message) => self.messages.push(message),
        }
    }

    /// From now on the peers answer keep-alives: pongs on streams, STUN with this mapped address on UDP; none: no more.
    pub const fn answer_keep_alives(&mut self, mapped: Option<SocketAddr>) {
        self.keeps = mapped;
    }

    /// The keep-alives that went out since the last call; an OPTIONS is among what was [`sent`](Self::sent).
    pub fn keep_alives(&mut self) -> Vec<SentKeepAlive> {
        std::mem::take(&mut self.kept)
    }

    /// The peer of a stream answers a keep-alive.
    pub fn pong(&mut self, flow: FlowId) {
        self.deliver(flow, Bytes::from_static(b"\r\n"));
    }

    /// Delivers bytes on a flow, from its other end.
    ///
    /// # Panics
    /// When the flow was never opened.
    pub fn deliver(&mut self, flow: FlowId, message: Bytes) {
        let target = self.flows.get(&flow).expect("a flow that was opened");
        let mut received = Received::new(target.address(), message);
        if target.protocol().is_reliable() {
            received = received.with_flow(flow);
        }
        self.with(|pool, cx| pool.received(cx, received));
    }

    fn kept_alive(&mut self, flow: FlowId, message: Bytes) {
        let answer = self.keeps.and_then(|mapped| match &message[..] {
            b"\r\n\r\n" => Some(Bytes::from_static(b"\r\n")),
            request => stun_success(request, mapped),
        });
        self.kept.push(SentKeepAlive {
            at: self.elapsed(),
            flow,
            message,
        });
        if let Some(answer) = answer {
            self.deliver(flow, answer);
        }
    }

    /// How many flows were asked for so far, made or not.
    #[must_use]
    pub fn flows_made(&self) -> usize {
        self.flows.len()
    }

    /// A flow ends.
    pub fn fail_flow(&mut self, flow: FlowId, error: FlowError) {
        self.with(|pool, cx| pool.flow_failed(cx, flow, &error));
    }

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        self.events.drain(..).map(|(_, event)| event).collect()
    }

    /// The events since the last call, with the registration each is of.
    pub fn all_events(&mut self) -> Vec<(RegistrationId, Event)> {
        std::mem::take(&mut self.events)
    }

    /// What became of removals since the last call.
    pub fn removals(&mut self) -> Vec<Removal> {
        self.removals
            .drain(..)
            .map(|(_, removal)| removal)
            .collect()
    }

    /// Messages that were not ours since the last call.
    pub fn messages(&mut self) -> Vec<crate::InboundMessage> {
        std::mem::take(&mut self.messages)
    }

    /// Flows that were closed since the last call.
    pub fn closed(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.closed)
    }

    /// The state of the first registration.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn status(&self) -> Status {
        self.pool
            .status(self.id())
            .expect("the registration was removed")
    }
}
