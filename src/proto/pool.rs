//! All registrations of an agent: slab, deadlines, flows, names, demultiplexing, the in-flight window. Still pure.

use super::guard::{Guard, Pass};
use super::ids::{FlowId, OpId, RegistrationId};
use super::machine::{Cx, Guarded, Identity, Input, Machine, Output};
use super::{Activity, Entropy, Event, FlowError, FlowInfo, Protocol, Removal, Status, Target};
use crate::{
    Answer, Change, CredentialsQuery, InboundMessage, Match, Received, Registration, ResolveError,
    Response, Scheme, Secret, SipUri,
};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests in flight to one target (D16)
const WINDOW: u32 = 64;
/// The window never shrinks below this
const LEAST_WINDOW: u32 = 4;
/// How users of a lost flow spread: this much each, up to the longest (D13)
const SPREAD_EACH: Duration = Duration::from_millis(10);
const SPREAD_LONGEST: Duration = Duration::from_secs(10);
/// How long a failed name is not asked again
const NAME_FAILED: Duration = Duration::from_secs(2);

/// No name is remembered longer: `Instant` has an end, and resolvers say what they like
const LONGEST_TTL: Duration = Duration::from_secs(86_400);

type Out<'a> = Cx<'a, PoolOutput>;

/// What a pool wants; a host that ignores one wedges registrations, so this enum is exhaustive
#[derive(Debug)]
pub enum PoolOutput {
    /// Find the addresses of this name, and call [`Pool::resolved`]
    Resolve(Arc<str>),
    /// Make this flow, and call [`Pool::opened`]
    Open {
        /// Its name
        flow: FlowId,
        /// The transport by name, where the registration names one
        transport: Option<Arc<str>>,
        /// Where to
        target: Target,
    },
    /// Send on this flow
    Send {
        /// The flow
        flow: FlowId,
        /// The whole message
        message: Bytes,
    },
    /// End this flow, or stop making it; nobody uses it any more
    Close(FlowId),
    /// Ask the credential provider, and call [`Pool::credentials`]
    Credentials {
        /// For whom
        id: RegistrationId,
        /// To be given back
        op: OpId,
        /// What for
        query: CredentialsQuery,
    },
    /// Tell the application
    Event(RegistrationId, Event),
    /// Stopped, as asked with [`Input::Stop`]
    Done(RegistrationId, Removal),
    /// A message that is not ours
    Message(InboundMessage),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    entry: Option<Box<Entry>>,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    deadline: Option<Instant>,
    /// The flows that are counted as used by this one
    flows: [Option<FlowId>; 2],
    /// The target whose window this one takes a place in
    window: Option<SocketAddr>,
    /// What the guard was asked about last
    guarded: Box<[Guarded]>,
    /// What of it the guard counts as in flight
    in_flight: Vec<Guarded>,
    leaving: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    id: RegistrationId,
    op: OpId,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FlowKey {
    transport: Option<Arc<str>>,
    protocol: Protocol,
    address: SocketAddr,
}

#[derive(Debug)]
struct FlowEntry {
    key: FlowKey,
    users: u32,
    info: Option<Arc<FlowInfo>>,
    askers: Vec<Asker>,
}

#[derive(Debug)]
enum Name {
    Asked(Vec<(Asker, Wanted)>),
    Known {
        addresses: Vec<IpAddr>,
        until: Instant,
    },
    Failed {
        error: ResolveError,
        until: Instant,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    protocol: Protocol,
    port: u16,
}

#[derive(Debug)]
struct Window {
    limit: u32,
    used: u32,
    queue: VecDeque<(Asker, Opening)>,
}

#[derive(Debug)]
struct Opening {
    target: Target,
    prefer: Option<FlowId>,
    fresh: bool,
}

/// All registrations of an agent, without a clock, a socket or a task
///
/// A host without tokio drives it: it feeds commands, received messages and answers, carries out the
/// [`PoolOutput`]s, and calls [`timeout`](Self::timeout) when [`deadline`](Self::deadline) has come.
#[derive(Debug)]
pub struct Pool {
    tag: Arc<str>,
    guard_key: [u8; 16],
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
    deadlines: BTreeSet<(Instant, u32)>,
    transports: Vec<(Arc<str>, Vec<Protocol>)>,
    names: HashMap<Arc<str>, Name>,
    flows: HashMap<FlowId, FlowEntry>,
    by_key: HashMap<FlowKey, FlowId>,
    next_flow: u64,
    windows: HashMap<SocketAddr, Window>,
    guard: Guard,
    waiting_for_guard: VecDeque<(Asker, Box<[Guarded]>)>,
    lines: HashMap<Box<str>, RegistrationId>,
    scratch: Vec<Output>,
}

/// Whether `message` is a response whose topmost Via has a branch with this agent's tag
pub(crate) fn accepts(tag: &str, message: &[u8]) -> bool {
    let is_response = message
        .get(..8)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/2.0 "));
    let head = message.get(..message.len().min(4096)).unwrap_or_default();
    let cookie = b"z9hG4bK";
    is_response
        && head.windows(cookie.len() + tag.len()).any(|window| {
            window.starts_with(cookie) && window.get(cookie.len()..) == Some(tag.as_bytes())
        })
}

impl Pool {
    /// An empty pool; the agent's tag and the key of the account guard are drawn from `entropy`.
    #[must_use]
    pub fn new(entropy: &mut Entropy) -> Self {
        let mut guard_key = [0; 16];
        entropy.fill(&mut guard_key);
        Self {
            tag: entropy.hex(4).into(),
            guard_key,
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
            deadlines: BTreeSet::new(),
            transports: Vec::new(),
            names: HashMap::new(),
            flows: HashMap::new(),
            by_key: HashMap::new(),
            next_flow: 1,
            windows: HashMap::new(),
            guard: Guard::default(),
            waiting_for_guard: VecDeque::new(),
            lines: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    /// Names a transport and what it speaks; the first that speaks a protocol is the default for it.
    pub fn add_transport(&mut self, name: impl Into<Arc<str>>, protocols: &[Protocol]) {
        self.transports.push((name.into(), protocols.to_vec()));
    }

    /// What marks the branches of this pool, see [`accepts`](crate::Inbound::accepts).
    #[must_use]
    pub fn tag(&self) -> &Arc<str> {
        &self.tag
    }

    /// Whether `message` answers a request of this pool.
    #[must_use]
    pub fn accepts(&self, message: &[u8]) -> bool {
        accepts(&self.tag, message)
    }

    /// How many registrations there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a registration and starts it.
    pub fn insert(&mut self, cx: &mut Out<'_>, registration: Arc<Registration>) -> RegistrationId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                entry: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = RegistrationId {
            index,
            generation: slot.generation,
        };
        let identity = Identity {
            branch: format!("{}{:08x}{:08x}", self.tag, index, slot.generation).into(),
            guard_key: self.guard_key,
            ..Identity::default()
        };
        let machine = Machine::new(registration, identity, cx.entropy);
        if let Some(line) = machine.line() {
            self.lines.insert(line.into(), id);
        }
        slot.entry = Some(Box::new(Entry {
            machine,
            deadline: None,
            flows: [None, None],
            window: None,
            guarded: [].into(),
            in_flight: Vec::new(),
            leaving: false,
        }));
        self.count += 1;
        self.handle(cx, id, Input::Start);
        id
    }

    /// Un-REGISTERs and forgets; [`PoolOutput::Done`] tells when it is gone. False where there is no such one.
    pub fn remove(&mut self, cx: &mut Out<'_>, id: RegistrationId, within: Duration) -> bool {
        match self.entry_mut(id) {
            Some(entry) => {
                entry.leaving = true;
                self.handle(cx, id, Input::Stop(within));
                true
            }
            None => false,
        }
    }

    /// Replaces the configuration; none where there is no such registration.
    pub fn reconfigure(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        to: Arc<Registration>,
    ) -> Option<Change> {
        let change = self.entry(id)?.machine.registration().change_to(&to);
        self.handle(cx, id, Input::Reconfigure(to));
        Some(change)
    }

    /// Lets a registration with refused credentials try again.
    pub fn retry_credentials(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let Some(entry) = self.entry(id) else { return };
        let guarded = entry.guarded.clone();
        self.guard.forgive(&guarded);
        self.handle(cx, id, Input::RetryCredentials);
    }

    /// The configuration of one registration.
    #[must_use]
    pub fn registration(&self, id: RegistrationId) -> Option<&Arc<Registration>> {
        self.entry(id).map(|entry| entry.machine.registration())
    }

    /// The state of one registration.
    #[must_use]
    pub fn status(&self, id: RegistrationId) -> Option<Status> {
        self.entry(id).map(|entry| entry.machine.status())
    }

    /// The ids of all registrations, in the order of their slots.
    pub fn ids(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.entry.is_some())
            .map(|(index, slot)| RegistrationId {
                index: index as u32,
                generation: slot.generation,
            })
    }

    /// The flow that a registration is bound to, or is using now.
    #[must_use]
    pub fn flow(&self, id: RegistrationId) -> Option<FlowId> {
        self.entry(id).and_then(|entry| entry.machine.flow())
    }

    /// Feeds one input to one registration; an id that is gone is ignored.
    pub fn handle(&mut self, cx: &mut Out<'_>, id: RegistrationId, input: Input<'_>) {
        let mut outputs = std::mem::take(&mut self.scratch);
        if let Some(entry) = self.entry_mut(id) {
            let mut inner = Cx {
                now: cx.now,
                wall: cx.wall,
                entropy: cx.entropy,
                out: &mut outputs,
            };
            let line = entry.machine.line().map(Box::<str>::from);
            entry.machine.handle(&mut inner, input);
            if entry.machine.line() != line.as_deref() {
                let new = entry.machine.line().map(Box::<str>::from);
                self.lines.extend(new.map(|new| (new, id)));
                line.map(|old| self.lines.remove(&old));
            }
            self.settle(cx, id);
        }
        let mut done = None;
        let mut queue: VecDeque<Output> = outputs.drain(..).collect();
        self.scratch = outputs;
        while let Some(output) = queue.pop_front() {
            match output {
                Output::Done(removal) => done = Some(removal),
                other => self.carry_out(cx, id, other),
            }
        }
        if let Some(removal) = done {
            if self.entry(id).is_some_and(|entry| entry.leaving) {
                self.forget(cx, id);
            }
            cx.out.push(PoolOutput::Done(id, removal));
        }
    }

    /// Hands over a message from the network; what is not ours comes back as [`PoolOutput::Message`].
    pub fn received(&mut self, cx: &mut Out<'_>, received: Received) {
        if !self.accepts(&received.message) {
            return self.foreign(cx, received);
        }
        let response = match Response::parse(received.message) {
            Ok(response) => response,
            Err(error) => {
                return tracing::trace!(%error, source = %received.source, "dropped a response");
            }
        };
        let id = response
            .via()
            .and_then(|via| via.branch.as_deref().and_then(|branch| self.id_of(branch)));
        let Some(id) = id else { return };
        if let Some(window) = self
            .entry(id)
            .and_then(|entry| entry.window)
            .and_then(|target| self.windows.get_mut(&target))
        {
            window.limit = match response.code() {
                503 => (window.limit / 2).max(LEAST_WINDOW),
                _ => (window.limit + 1).min(WINDOW),
            };
        }
        self.handle(cx, id, Input::Response(&response));
    }

    fn foreign(&mut self, cx: &mut Out<'_>, received: Received) {
        // A response that is not ours, on a socket that is: nobody waits for it unless the host does.
        let mut message = InboundMessage::new(received.source, received.message);
        message.flow = received.flow.or_else(|| self.flow_from(received.source));
        if let Ok(request) = message.request() {
            let to = request
                .header("To")
                .map(|to| to.into_owned())
                .unwrap_or_default();
            message.registration = self.matches(&request.uri(), &to, received.source);
        }
        cx.out.push(PoolOutput::Message(message));
    }

    fn flow_from(&self, source: SocketAddr) -> Option<FlowId> {
        self.by_key
            .iter()
            .find(|(key, _)| key.address == source)
            .map(|(_, flow)| *flow)
    }

    /// The registration that an inbound request belongs to (D24): by `line` in To or Request-URI, else by the Contact's user
    /// where exactly one registration has it. An ambiguous request belongs to none.
    #[must_use]
    pub fn matches(&self, request_uri: &str, to: &str, source: SocketAddr) -> Option<Match> {
        let address = |text: &str| {
            let inner = text
                .split_once('<')
                .and_then(|(_, rest)| rest.split_once('>'))
                .map(|(uri, _)| uri);
            SipUri::parse(inner.unwrap_or(text)).ok()
        };
        let request_uri = address(request_uri);
        let line = |uri: &Option<SipUri>| {
            let value = uri.as_ref()?.param("line").flatten()?;
            (!value.is_empty())
                .then(|| self.lines.get(value).copied())
                .flatten()
        };
        let by_line = line(&address(to)).or_else(|| line(&request_uri));
        let id = by_line.or_else(|| {
            let user = request_uri.as_ref()?.user()?;
            let mut found = self.ids().filter(|id| {
                self.entry(*id).is_some_and(|entry| {
                    let registration = entry.machine.registration();
                    let on_flow = entry.machine.flow().and_then(|flow| self.flows.get(&flow));
                    registration.contact_user().as_str() == Some(user)
                        && on_flow.is_some_and(|flow| flow.key.address.ip() == source.ip())
                })
            });
            found.next().filter(|_| found.next().is_none())
        })?;
        let endpoint = self.registration(id)?.endpoint().map(Arc::from);
        Some(Match::new(id, endpoint))
    }

    /// The answer to [`PoolOutput::Resolve`].
    pub fn resolved(&mut self, cx: &mut Out<'_>, host: &str, result: Result<Answer, ResolveError>) {
        let Some((key, Name::Asked(askers))) = self.names.remove_entry(host) else {
            return;
        };
        let name = match &result {
            Ok(answer) => Name::Known {
                addresses: answer.addresses.clone(),
                until: cx.now + answer.ttl.min(LONGEST_TTL),
            },
            Err(error) => Name::Failed {
                error: error.clone(),
                until: cx.now + NAME_FAILED,
            },
        };
        self.names.insert(Arc::clone(&key), name);
        for (asker, wanted) in askers {
            let result = match &result {
                Ok(answer) => Ok(targets(&answer.addresses, &wanted, &key)),
                Err(error) => Err(error.clone()),
            };
            self.handle(
                cx,
                asker.id,
                Input::Located {
                    op: asker.op,
                    result,
                },
            );
        }
    }

    /// The answer to [`PoolOutput::Open`].
    pub fn opened(
        &mut self,
        cx: &mut Out<'_>,
        flow: FlowId,
        result: Result<Arc<FlowInfo>, FlowError>,
    ) {
        let Some(entry) = self.flows.get_mut(&flow) else {
            return;
        };
        let askers = std::mem::take(&mut entry.askers);
        match &result {
            Ok(info) => entry.info = Some(Arc::clone(info)),
            Err(_) => self.drop_flow(flow),
        }
        for asker in askers {
            let result = result.clone().map(|info| (flow, info));
            self.handle(
                cx,
                asker.id,
                Input::Opened {
                    op: asker.op,
                    result,
                },
            );
        }
        if self.flows.get(&flow).is_some_and(|entry| entry.users == 0) {
            self.drop_flow(flow);
            cx.out.push(PoolOutput::Close(flow));
        }
    }

    /// A flow has ended: everything that rode on it registers again, spread (D13).
    pub fn flow_failed(&mut self, cx: &mut Out<'_>, flow: FlowId, error: &FlowError) {
        let Some(entry) = self.flows.get(&flow) else {
            return;
        };
        if entry.info.is_none() {
            return self.opened(cx, flow, Err(error.clone()));
        }
        let users: Vec<RegistrationId> = self
            .ids()
            .filter(|id| {
                self.entry(*id)
                    .is_some_and(|entry| entry.flows.contains(&Some(flow)))
            })
            .collect();
        self.drop_flow(flow);
        let spread = spread(users.len());
        for id in users {
            self.handle(
                cx,
                id,
                Input::FlowFailed {
                    flow,
                    error: error.clone(),
                    spread,
                },
            );
        }
    }

    /// The answer to [`PoolOutput::Credentials`].
    pub fn credentials(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        op: OpId,
        secret: Option<Secret>,
    ) {
        self.handle(cx, id, Input::Credentials { op, secret });
    }

    /// The host's addresses have changed: every flow is closed, every registration makes its own anew, spread.
    pub fn network_changed(&mut self, cx: &mut Out<'_>) {
        let mut flows: Vec<_> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        // Who waits for one of them is told below, with everybody else.
        for flow in flows {
            self.drop_flow(flow);
            cx.out.push(PoolOutput::Close(flow));
        }
        self.names.retain(|_, name| matches!(name, Name::Asked(_)));
        let ids: Vec<_> = self.ids().collect();
        let spread = spread(ids.len());
        for id in ids {
            self.handle(cx, id, Input::NetworkChanged(spread));
        }
    }

    /// The computer slept for `by`: leases have aged, and what is due is due.
    pub fn clock_jump(&mut self, cx: &mut Out<'_>, by: Duration) {
        let ids: Vec<_> = self.ids().collect();
        for id in ids {
            self.handle(cx, id, Input::ClockJump(by));
        }
    }

    /// When [`timeout`](Self::timeout) is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Serves up to `most` deadlines that have come; true where more are due.
    pub fn timeout(&mut self, cx: &mut Out<'_>, most: usize) -> bool {
        for _ in 0..most {
            let Some((at, index)) = self
                .deadlines
                .first()
                .copied()
                .filter(|(at, _)| *at <= cx.now)
            else {
                return false;
            };
            let Some(slot) = self.slots.get(index as usize) else {
                return false;
            };
            let id = RegistrationId {
                index,
                generation: slot.generation,
            };
            self.deadlines.remove(&(at, index));
            if let Some(entry) = self.entry_mut(id) {
                entry.deadline = None;
            }
            self.handle(cx, id, Input::Timeout);
        }
        self.deadlines.first().is_some_and(|(at, _)| *at <= cx.now)
    }

    // ---- effects of one machine

    fn carry_out(&mut self, cx: &mut Out<'_>, id: RegistrationId, output: Output) {
        match output {
            Output::Locate { op, uri } => self.locate(cx, Asker { id, op }, &uri),
            Output::Open {
                op,
                target,
                prefer,
                fresh,
            } => {
                self.open_or_hold(
                    cx,
                    Asker { id, op },
                    Opening {
                        target,
                        prefer,
                        fresh,
                    },
                );
            }
            Output::Credentials { op, query } => {
                cx.out.push(PoolOutput::Credentials { id, op, query })
            }
            Output::Guard { op, credential } => self.guard(cx, Asker { id, op }, credential.into()),
            Output::Proved {
                credential,
                accepted,
            } => self.proved(cx, id, &credential, accepted),
            Output::Cancel(op) => self.cancel(cx, Asker { id, op }),
            Output::Transmit { flow, message } => cx.out.push(PoolOutput::Send { flow, message }),
            Output::Event(event) => cx.out.push(PoolOutput::Event(id, event)),
            Output::Done(_) => {}
        }
    }

    /// Where a request goes: literals at once, names by the cache or the resolver.
    fn locate(&mut self, cx: &mut Out<'_>, asker: Asker, uri: &SipUri) {
        let named = self
            .registration(asker.id)
            .and_then(|registration| registration.transport().cloned());
        let protocols = match &named {
            None => None,
            Some(name) => match self.transports.iter().find(|(known, _)| **known == **name) {
                Some((_, protocols)) => Some(protocols.clone()),
                None => {
                    let error = ResolveError::Failed(format!("no transport named {name:?}").into());
                    return self.handle(
                        cx,
                        asker.id,
                        Input::Located {
                            op: asker.op,
                            result: Err(error),
                        },
                    );
                }
            },
        };
        let protocol = match (
            uri.transport(),
            uri.scheme(),
            protocols.as_deref().and_then(<[_]>::first),
        ) {
            (Some(name), Scheme::Sip, _) => Protocol::from_name(name),
            (None, Scheme::Sip, Some(protocol)) => Some(*protocol),
            (None, Scheme::Sip, None) => Some(Protocol::Udp),
            // Only TLS may carry `sips`, and no transport here speaks it yet.
            (_, Scheme::Sips, _) => None,
        };
        let Some(protocol) = protocol else {
            let error = ResolveError::Failed(
                format!("no transport for {}", crate::uri::excerpt(uri.as_str())).into(),
            );
            return self.handle(
                cx,
                asker.id,
                Input::Located {
                    op: asker.op,
                    result: Err(error),
                },
            );
        };
        let wanted = Wanted {
            protocol,
            port: uri.port().unwrap_or_else(|| protocol.default_port()),
        };
        let host: Arc<str> = uri
            .param("maddr")
            .flatten()
            .unwrap_or_else(|| uri.host())
            .into();
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            let result = Ok(targets(&[ip], &wanted, &host));
            return self.handle(
                cx,
                asker.id,
                Input::Located {
                    op: asker.op,
                    result,
                },
            );
        }
        let result = match self.names.get_mut(&host) {
            Some(Name::Asked(askers)) => return askers.push((asker, wanted)),
            Some(Name::Known { addresses, until }) if cx.now < *until => {
                Ok(targets(addresses, &wanted, &host))
            }
            Some(Name::Failed { error, until }) if cx.now < *until => Err(error.clone()),
            _ => {
                self.names
                    .insert(Arc::clone(&host), Name::Asked(vec![(asker, wanted)]));
                return cx.out.push(PoolOutput::Resolve(host));
            }
        };
        self.handle(
            cx,
            asker.id,
            Input::Located {
                op: asker.op,
                result,
            },
        );
    }

    /// Takes a place in the target's window, or a place in its queue (D16).
    fn open_or_hold(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        if self.entry(asker.id).is_none() {
            return;
        }
        let address = opening.target.address();
        let window = self.windows.entry(address).or_insert_with(|| Window {
            limit: WINDOW,
            used: 0,
            queue: VecDeque::new(),
        });
        let place = self
            .slots
            .get(asker.id.index as usize)
            .and_then(|slot| slot.entry.as_ref());
        let holds_one = place.is_some_and(|entry| entry.window == Some(address));
        if !holds_one && window.used >= window.limit {
            // One that asks again keeps its place.
            match window
                .queue
                .iter_mut()
                .find(|(queued, _)| queued.id == asker.id)
            {
                Some(place) => *place = (asker, opening),
                None => window.queue.push_back((asker, opening)),
            }
            return self.handle(cx, asker.id, Input::Held(asker.op));
        }
        if !holds_one {
            window.used += 1;
            if let Some(entry) = self.entry_mut(asker.id) {
                entry.window = Some(address);
            }
        }
        self.open(cx, asker, opening);
    }

    fn open(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        let Opening {
            target,
            prefer,
            fresh,
        } = opening;
        let named = self
            .registration(asker.id)
            .and_then(|registration| registration.transport().cloned());
        let key = FlowKey {
            transport: named,
            protocol: target.protocol(),
            address: target.address(),
        };
        let known = prefer
            .filter(|flow| self.flows.contains_key(flow))
            .or_else(|| self.by_key.get(&key).copied());
        if let Some(flow) = known.filter(|_| !fresh)
            && let Some(entry) = self.flows.get_mut(&flow)
        {
            match &entry.info {
                None => entry.askers.push(asker),
                Some(info) => {
                    let result = Ok((flow, Arc::clone(info)));
                    self.handle(
                        cx,
                        asker.id,
                        Input::Opened {
                            op: asker.op,
                            result,
                        },
                    );
                }
            }
            return;
        }
        let flow = FlowId::new(self.next_flow);
        self.next_flow += 1;
        self.by_key.insert(key.clone(), flow);
        let transport = key.transport.clone();
        self.flows.insert(
            flow,
            FlowEntry {
                key,
                users: 0,
                info: None,
                askers: vec![asker],
            },
        );
        cx.out.push(PoolOutput::Open {
            flow,
            transport,
            target,
        });
    }

    fn guard(&mut self, cx: &mut Out<'_>, asker: Asker, guarded: Box<[Guarded]>) {
        // One that waited may have ended since.
        let Some(entry) = self
            .entry_mut(asker.id)
            .filter(|entry| entry.machine.guarding(asker.op))
        else {
            return;
        };
        entry.guarded = guarded.clone();
        let allowed = match self.guard.ask(cx.now, &guarded) {
            Pass::Go(counted) => {
                if let Some(entry) = self.entry_mut(asker.id) {
                    entry.in_flight.extend(counted);
                }
                true
            }
            Pass::Wait => return self.waiting_for_guard.push_back((asker, guarded)),
            Pass::Never => false,
        };
        let op = asker.op;
        self.handle(cx, asker.id, Input::Guarded { op, allowed });
    }

    fn proved(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        credential: &[Guarded],
        accepted: Option<bool>,
    ) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        let (flown, stay) = std::mem::take(&mut entry.in_flight)
            .into_iter()
            .partition::<Vec<_>, _>(|one| credential.contains(one));
        entry.in_flight = stay;
        if accepted == Some(false) {
            // What `retry_credentials` forgives.
            entry.guarded = credential.into();
        }
        self.guard.proved(cx.now, credential, accepted, &flown);
        // Each of those that waited asks again, and waits again where it must; the round is as long as the queue.
        for (asker, guarded) in std::mem::take(&mut self.waiting_for_guard) {
            self.guard(cx, asker, guarded);
        }
    }

    fn cancel(&mut self, cx: &mut Out<'_>, asker: Asker) {
        let mut unwanted = Vec::new();
        for (flow, entry) in &mut self.flows {
            if entry.info.is_none() && entry.askers.contains(&asker) {
                entry.askers.retain(|queued| *queued != asker);
                unwanted.extend(Some(*flow).filter(|_| entry.askers.is_empty()));
            }
        }
        // Nobody waits for it: the next one to ask gets a new attempt rather than the rest of this one.
        for flow in unwanted {
            self.drop_flow(flow);
            cx.out.push(PoolOutput::Close(flow));
        }
        for name in self.names.values_mut() {
            if let Name::Asked(askers) = name {
                askers.retain(|(queued, _)| *queued != asker);
            }
        }
        self.waiting_for_guard
            .retain(|(queued, _)| *queued != asker);
        for window in self
            .windows
            .values_mut()
            .filter(|window| !window.queue.is_empty())
        {
            window.queue.retain(|(queued, _)| *queued != asker);
        }
    }

    // ---- bookkeeping

    /// Brings deadline, flow users and window in line with what the machine now says.
    fn settle(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let Some(entry) = self
            .slots
            .get_mut(id.index as usize)
            .and_then(|slot| slot.entry.as_mut())
        else {
            return;
        };
        let deadline = entry.machine.deadline();
        if entry.deadline != deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, id.index));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, id.index));
            }
            entry.deadline = deadline;
        }
        let (before, after) = (entry.flows, entry.machine.flows());
        entry.flows = after;
        let left = entry
            .window
            .filter(|address| entry.machine.engaged() != Some(*address));
        if left.is_some() {
            entry.window = None;
        }
        if before != after {
            for flow in after.into_iter().flatten() {
                if let Some(entry) = self.flows.get_mut(&flow) {
                    entry.users += 1;
                }
            }
            for flow in before.into_iter().flatten() {
                self.leave(cx, flow);
            }
        }
        if let Some(address) = left {
            self.release(cx, address);
        }
    }

    fn leave(&mut self, cx: &mut Out<'_>, flow: FlowId) {
        let Some(entry) = self.flows.get_mut(&flow) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 && entry.askers.is_empty() {
            self.drop_flow(flow);
            cx.out.push(PoolOutput::Close(flow));
        }
    }

    fn drop_flow(&mut self, flow: FlowId) {
        if let Some(entry) = self.flows.remove(&flow)
            && self.by_key.get(&entry.key) == Some(&flow)
        {
            self.by_key.remove(&entry.key);
        }
    }

    /// A place in a target's window is free: those who wait move up.
    fn release(&mut self, cx: &mut Out<'_>, address: SocketAddr) {
        let Some(window) = self.windows.get_mut(&address) else {
            return;
        };
        window.used = window.used.saturating_sub(1);
        if window.used == 0 && window.queue.is_empty() {
            self.windows.remove(&address);
            return;
        }
        // As many as there is room for: the window may have grown since.
        while let Some(window) = self.windows.get_mut(&address)
            && window.used < window.limit
            && let Some((asker, opening)) = window.queue.pop_front()
        {
            self.open_or_hold(cx, asker, opening);
        }
    }

    fn forget(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let Some(slot) = self.slots.get_mut(id.index as usize) else {
            return;
        };
        let Some(entry) = slot.entry.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        self.count -= 1;
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, id.index));
        }
        if let Some(line) = entry.machine.line() {
            self.lines.remove(line);
        }
        for flow in entry.flows.into_iter().flatten() {
            self.leave(cx, flow);
        }
        if let Some(address) = entry.window {
            self.release(cx, address);
        }
    }

    fn id_of(&self, branch: &str) -> Option<RegistrationId> {
        let rest = branch.strip_prefix("z9hG4bK")?.strip_prefix(&*self.tag)?;
        let index = u32::from_str_radix(rest.get(..8)?, 16).ok()?;
        let generation = u32::from_str_radix(rest.get(8..16)?, 16).ok()?;
        let id = RegistrationId { index, generation };
        self.entry(id).map(|_| id)
    }

    fn entry(&self, id: RegistrationId) -> Option<&Entry> {
        let slot = self.slots.get(id.index as usize)?;
        slot.entry
            .as_deref()
            .filter(|_| slot.generation == id.generation)
    }

    fn entry_mut(&mut self, id: RegistrationId) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.entry
            .as_deref_mut()
            .filter(|_| slot.generation == id.generation)
    }

    /// Whether any registration is doing something now.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.ids().any(|id| {
            self.status(id).is_some_and(|status| {
                matches!(
                    status.activity,
                    Activity::Registering | Activity::Unregistering | Activity::Querying
                )
            })
        })
    }
}

fn targets(addresses: &[IpAddr], wanted: &Wanted, host: &Arc<str>) -> Vec<Target> {
    addresses
        .iter()
        .map(|ip| {
            Target::new(wanted.protocol, SocketAddr::new(*ip, wanted.port))
                .with_host(Arc::clone(host))
        })
        .collect()
}

fn spread(users: usize) -> Duration {
    SPREAD_EACH
        .saturating_mul(u32::try_from(users).unwrap_or(u32::MAX))
        .min(SPREAD_LONGEST)
}
