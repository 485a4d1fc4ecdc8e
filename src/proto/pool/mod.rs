//! All registrations of an agent: slab, deadlines, flows, names, demultiplexing, the in-flight window, the ceiling. Still pure.

mod bindings;
mod flows;
mod groups;
mod guarding;
mod inbound;
mod names;
mod pace;
mod window;

use bindings::Bindings;
use flows::flow_key;
use groups::Groups;
use names::{Targets, Waiter};
use pace::Pace;
use window::Window;

use crate::proto::flow::{Asker, FlowTable, User, spread};
use crate::proto::group;
use crate::proto::guard::{Guard, Pardon, Pass};
use crate::proto::ids::{FlowId, OpId, RegistrationId};
use crate::proto::locate::{Health, Names, TargetOutcome};
use crate::proto::machine::{AgentKey, Cx, Guarded, Identity, Input, Machine, Output};
use crate::proto::mapping::Seen;
use crate::proto::{
    Entropy, Event, FlowError, FlowInfo, Protocol, Removal, Status, Target, WayOut,
};
use crate::{
    Answer, Change, CredentialsQuery, InboundMessage, Match, Query, Received, Registration,
    ResolveError, Response, Secret, SipUri, Transcript,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Out<'a> = Cx<'a, PoolOutput>;

/// What a pool wants; a host that ignores one wedges registrations, so this enum is exhaustive
#[derive(Debug)]
pub enum PoolOutput {
    /// Ask the name service, and call [`Pool::resolved`]
    Resolve(Query),
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
    /// Forgotten once it has stopped
    leaving: bool,
    /// Registers again once it has stopped
    returns: bool,
    entry: Option<Box<Entry>>,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    deadline: Option<Instant>,
    /// The flows that are counted as used by this one
    flows: [Option<FlowId>; 2],
    /// The target whose window this one takes a place in
    window: Option<Target>,
    /// Its business with the account guard, where it has any
    guard: Option<Box<InGuard>>,
}

#[derive(Debug, Default)]
struct InGuard {
    /// What a person said of it since its credentials were accepted
    pardon: Option<Pardon>,
    /// What of it the guard counts as in flight
    in_flight: Vec<Guarded>,
}

/// A transport, as far as a pool knows it
#[derive(Debug)]
struct Carrier {
    name: Arc<str>,
    speaks: Vec<Protocol>,
    /// Removed: it serves nobody but those who name it
    leaving: bool,
}

impl Carrier {
    /// Whether a registration uses it that names this transport, or none.
    fn is_for(&self, named: Option<&Arc<str>>) -> bool {
        named.map_or(!self.leaving, |named| *named == self.name)
    }
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
    agent: Arc<AgentKey>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
    deadlines: BTreeSet<(Instant, u32)>,
    transports: Vec<Carrier>,
    names: Names<Waiter>,
    health: Health,
    flows: FlowTable,
    targets: Targets,
    windows: HashMap<SocketAddr, Window>,
    /// Targets where somebody waits for a place, and when each is looked after
    crowded: BTreeMap<SocketAddr, Instant>,
    /// Targets with a place that became free; the first of them is being served
    freed: VecDeque<SocketAddr>,
    /// The ceiling of REGISTERs a second, where one is set
    pace: Option<Box<Pace>>,
    guard: Guard,
    waiting_for_guard: VecDeque<(Asker, Box<[Guarded]>)>,
    lines: HashMap<Box<str>, RegistrationId>,
    groups: Groups,
    bindings: Bindings,
    /// Empty lists, to be used again: one for each input that another one leads to
    scratch: Vec<Vec<Output>>,
}

/// Whether `message` is a response whose topmost Via has a branch with this agent's tag, or an answer to a STUN
/// keep-alive of this agent
pub(crate) fn accepts(tag: &str, message: &[u8]) -> bool {
    let is_response = message
        .get(..8)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/2.0 "));
    if !is_response {
        return FlowTable::is_ours(tag_bytes(tag), message);
    }
    let head = message.get(..message.len().min(4096)).unwrap_or_default();
    head.windows(COOKIE.len() + tag.len()).any(|window| {
        window
            .split_at_checked(COOKIE.len())
            .is_some_and(|(cookie, rest)| {
                cookie.eq_ignore_ascii_case(COOKIE.as_bytes())
                    && rest.eq_ignore_ascii_case(tag.as_bytes())
            })
    })
}

/// How every branch begins, RFC 3261 §8.1.1.7
const COOKIE: &str = "z9hG4bK";

/// What follows in a branch that has this agent's tag, in whatever case it came back: it is a token (RFC 3261 §7.3.1)
fn after_tag<'a>(branch: &'a str, tag: &str) -> Option<&'a str> {
    let (cookie, rest) = branch.split_at_checked(COOKIE.len())?;
    let (start, rest) = rest.split_at_checked(tag.len())?;
    (cookie.eq_ignore_ascii_case(COOKIE) && start.eq_ignore_ascii_case(tag)).then_some(rest)
}

/// The tag as the transactions of STUN have it
fn tag_bytes(tag: &str) -> [u8; 4] {
    u32::from_str_radix(tag, 16)
        .unwrap_or_default()
        .to_be_bytes()
}

impl Pool {
    /// An empty pool; the agent's tag and the key of the account guard are drawn from `entropy`.
    #[must_use]
    pub fn new(entropy: &mut Entropy) -> Self {
        let mut guard_key = [0; 16];
        entropy.fill(&mut guard_key);
        let tag: Arc<str> = entropy.hex(4).into();
        Self {
            agent: Arc::new(AgentKey::new(&*tag, guard_key)),
            flows: FlowTable::new(tag_bytes(&tag)),
            tag,
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
            deadlines: BTreeSet::new(),
            transports: Vec::new(),
            names: Names::default(),
            health: Health::default(),
            targets: Targets::default(),
            windows: HashMap::new(),
            crowded: BTreeMap::new(),
            freed: VecDeque::new(),
            pace: None,
            guard: Guard::default(),
            waiting_for_guard: VecDeque::new(),
            lines: HashMap::new(),
            groups: Groups::default(),
            bindings: Bindings::default(),
            scratch: Vec::new(),
        }
    }

    /// Names a transport and what it speaks; the first that speaks a protocol is the default for it.
    ///
    /// One of a name that there is takes the other's place, and [`renew_flows`](Self::renew_flows) is for what was made
    /// on the other.
    pub fn add_transport(&mut self, name: impl Into<Arc<str>>, protocols: &[Protocol]) {
        let new = Carrier {
            name: name.into(),
            speaks: protocols.to_vec(),
            leaving: false,
        };
        let mut known = self.transports.iter_mut();
        match known.find(|known| known.name == new.name) {
            Some(known) if !known.leaving => *known = new,
            known => {
                // One that was removed comes back as the last.
                if known.is_some() {
                    self.transports.retain(|known| known.name != new.name);
                }
                self.transports.push(new);
            }
        }
    }

    /// Removes a transport, on which `flows` were made: registrations that name none make theirs anew on another one,
    /// spread; those that name it keep theirs until they are gone or name another.
    pub fn remove_transport(&mut self, cx: &mut Out<'_>, name: &str, flows: &[FlowId]) {
        let mut known = self.transports.iter_mut();
        if let Some(known) = known.find(|known| *known.name == *name) {
            known.leaving = true;
        }
        let unnamed = flows.iter().copied().filter(|flow| {
            let transport = self.flows.transport(*flow);
            transport.is_some_and(|named| named.is_none())
        });
        let unnamed: Vec<_> = unnamed.collect();
        self.renew_flows(cx, &unnamed);
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
        let further = registration.further_flows().to_vec();
        let id = self.place(cx, registration);
        self.count += 1;
        self.list_binding(cx, id);
        if !further.is_empty() {
            self.group(cx, id, further);
        }
        self.feed(cx, id, Input::Start);
        id
    }

    /// Puts a machine into a free slot; it does nothing yet.
    fn place(&mut self, cx: &mut Out<'_>, registration: Arc<Registration>) -> RegistrationId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                leaving: false,
                returns: false,
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
            agent: Arc::clone(&self.agent),
            id,
            ..Identity::default()
        };
        let mut machine = Machine::new(registration, identity, cx.entropy);
        machine.set_paced(self.pace.is_some());
        slot.entry = Some(Box::new(Entry {
            machine,
            deadline: None,
            flows: [None, None],
            window: None,
            guard: None,
        }));
        self.list_line(cx, id);
        id
    }

    /// Un-REGISTERs and forgets; [`PoolOutput::Done`] tells when it is gone. False where there is no such one.
    pub fn remove(&mut self, cx: &mut Out<'_>, id: RegistrationId, within: Duration) -> bool {
        let Some(slot) = self.slot_mut(id) else {
            return false;
        };
        slot.leaving = true;
        self.handle(cx, id, Input::Stop(within));
        true
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
        self.handle(cx, id, Input::RetryCredentials);
    }

    /// The configuration of one registration.
    #[must_use]
    pub fn registration(&self, id: RegistrationId) -> Option<&Arc<Registration>> {
        self.entry(id).map(|entry| entry.machine.registration())
    }

    /// The state of one registration; of one with several flows what they come to: bound while any is.
    #[must_use]
    pub fn status(&self, id: RegistrationId) -> Option<Status> {
        match self.groups.of(id) {
            Some(group) => {
                let status = group::fold(group.ids().filter_map(|id| self.status_of(id)));
                // While nothing else is bound, what is still being removed is what calls come by.
                let last = group.retired().filter_map(|id| self.status_of(id));
                let last = last.filter(Status::is_registered);
                match status {
                    Some(status) if !status.is_registered() => {
                        group::fold([status].into_iter().chain(last))
                    }
                    status => status,
                }
            }
            None => self.status_of(id).filter(|_| self.groups.owner(id) == id),
        }
    }

    /// The states of the flows of one registration by their reg-ids; of one without `outbound` there is one, under 1.
    #[must_use]
    pub fn flow_statuses(&self, id: RegistrationId) -> Vec<(u8, Status)> {
        let statuses = self.members(id).into_iter().map(|id| self.status_of(id));
        (1..)
            .zip(statuses)
            .filter_map(|(number, status)| Some((number, status?)))
            .collect()
    }

    /// The last request of one registration and its answer, where
    /// [`Policy::keep_transcript`](crate::Policy::keep_transcript) has it so (D27); of one with several flows that of the
    /// first that failed, or else of the first.
    #[must_use]
    pub fn transcript(&self, id: RegistrationId) -> Option<&Transcript> {
        let id = Some(id).filter(|id| self.groups.owner(*id) == *id)?;
        let members = self.members(id);
        let machines = || {
            members
                .iter()
                .filter_map(|id| Some(&self.entry(*id)?.machine))
        };
        machines()
            .filter(|machine| machine.has_failed())
            .chain(machines())
            .find_map(Machine::transcript)
    }

    fn status_of(&self, id: RegistrationId) -> Option<Status> {
        let mut status = self.entry(id)?.machine.status();
        if let Some(lease) = &mut status.lease {
            let info = lease.flow.and_then(|flow| self.flows.info(flow));
            lease.mapped = info.and_then(|info| info.mapped());
        }
        Some(status)
    }

    /// The ids of all registrations, in the order of their slots.
    pub fn ids(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        self.machines().filter(|id| self.groups.owner(*id) == *id)
    }

    /// The ids of all machines: a registration has one for each flow.
    fn machines(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.entry.is_some())
            .map(|(index, slot)| RegistrationId {
                index: index as u32,
                generation: slot.generation,
            })
    }

    /// The flow that a registration is bound to, or is using now; of several the one that its status names.
    #[must_use]
    pub fn flow(&self, id: RegistrationId) -> Option<FlowId> {
        let bound = self.status(id)?.lease.and_then(|lease| lease.flow);
        bound.or_else(|| self.flows_of(id).into_iter().next())
    }

    /// The flows that a registration is bound to, or is using now, in the order of their reg-ids.
    #[must_use]
    pub fn flows_of(&self, id: RegistrationId) -> Vec<FlowId> {
        let members = self.members(id).into_iter();
        members
            .filter_map(|id| self.entry(id)?.machine.flow())
            .collect()
    }

    /// How requests of the host go out over the flows that a registration is bound to: the first is the one that its status
    /// names, the others follow by their reg-ids. Empty while it is not bound, or no flow of it is up.
    #[must_use]
    pub fn ways_out(&self, id: RegistrationId) -> Vec<WayOut> {
        let members = self.members(id).into_iter();
        let mut ways: Vec<_> = members
            .filter_map(|id| self.entry(id)?.machine.way_out())
            .collect();
        let best = self.flow(id);
        ways.sort_by_key(|way| Some(way.flow) != best);
        ways
    }

    /// Feeds one input to one registration; an id that is gone is ignored.
    pub fn handle(&mut self, cx: &mut Out<'_>, id: RegistrationId, input: Input<'_>) {
        if self.comes_after_the_stop(id, &input) {
            return;
        }
        if self.groups.of(id).is_some() {
            return self.command(cx, id, input);
        }
        if matches!(input, Input::RetryCredentials) {
            self.forgive(id);
        }
        match input {
            // A flow more than there were.
            Input::Reconfigure(to)
                if !to.further_flows().is_empty() && self.entry(id).is_some() =>
            {
                self.group(cx, id, Vec::new());
                self.command(cx, id, Input::Reconfigure(to));
            }
            input => self.feed(cx, id, input),
        }
    }

    /// A stop is never turned into a registration again (D21). Who asks for one while the un-REGISTER is under way gets it
    /// when that is over, unless another stop or a pause has come since.
    fn comes_after_the_stop(&mut self, id: RegistrationId, input: &Input<'_>) -> bool {
        let registers = matches!(input, Input::Refresh | Input::Reregister);
        if !registers && !matches!(input, Input::Stop(_) | Input::Pause { .. }) {
            return false;
        }
        let stops = match self.groups.of(id) {
            Some(group) => group.stopping().is_some(),
            None => self
                .entry(id)
                .is_some_and(|entry| entry.machine.stops_by().is_some()),
        };
        if let Some(slot) = self.slot_mut(id).filter(|_| stops) {
            slot.returns = registers && !slot.leaving;
        }
        stops && registers
    }

    /// Feeds one input to one machine.
    fn feed(&mut self, cx: &mut Out<'_>, id: RegistrationId, input: Input<'_>) {
        // Only a flow lets a new request through where requests are paced; others are sent again (D16).
        let again = !matches!(input, Input::Opened { .. });
        let mut outputs = self.scratch.pop().unwrap_or_default();
        let (others_hold, outbound) = self.groups.beside(id);
        if matches!(input, Input::Response(_)) {
            self.show_beside(id);
        }
        if let Some(entry) = self.entry_mut(id) {
            entry.machine.others_hold(others_hold, outbound);
            let mut inner = Cx {
                now: cx.now,
                wall: cx.wall,
                entropy: cx.entropy,
                out: &mut outputs,
            };
            let registration = Arc::clone(entry.machine.registration());
            let line = entry.machine.line().map(Box::<str>::from);
            entry.machine.handle(&mut inner, input);
            if entry.machine.line() != line.as_deref() {
                line.map(|old| self.lines.remove(&old));
                self.list_line(cx, id);
            }
            // What it found out holds for those who would take its place.
            for output in &outputs {
                if let Output::Target { target, outcome } = output
                    && self.judge(cx.now, id, target, *outcome)
                {
                    self.disperse(cx, target);
                }
            }
            self.settle(cx, id, &registration);
        }
        let mut done = None;
        for output in outputs.drain(..) {
            match output {
                Output::Done(removal) => done = Some(removal),
                other => self.carry_out(cx, id, other, again),
            }
        }
        self.scratch.push(outputs);
        if let Some(removal) = done {
            self.done(cx, id, removal);
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
        let asked = match self.groups.of_mut(id) {
            Some(group) => group.asked(op),
            None => Some((id, op)),
        };
        if let Some((id, op)) = asked {
            self.feed(cx, id, Input::Credentials { op, secret });
        }
    }

    /// The host's addresses have changed: every flow is closed, every registration makes its own anew, spread.
    pub fn network_changed(&mut self, cx: &mut Out<'_>) {
        // Who waits for one of them is told below, with everybody else.
        let flows = self.flows.clear();
        cx.out.extend(flows.into_iter().map(PoolOutput::Close));
        self.names.expire();
        self.health.clear();
        self.groups.network_changed();
        let ids: Vec<_> = self.machines().collect();
        let spread = spread(ids.len());
        for id in ids {
            self.feed(cx, id, Input::NetworkChanged(spread));
        }
    }

    /// The computer slept for `by`: flows are checked, leases have aged, and what has become due by that is due
    /// spread, as after the loss of a flow (D22).
    pub fn clock_jump(&mut self, cx: &mut Out<'_>, by: Duration) {
        self.flows.check_all(cx.now);
        while self.serve_flow(cx) {}
        // Waits that were counted in the time of the world outside.
        self.flows.age(cx.now, by);
        self.health.age(cx.now, by);
        self.names.expire();
        let ids: Vec<_> = self.machines().collect();
        let falls_due = |id: &RegistrationId| {
            self.entry(*id)
                .is_some_and(|entry| entry.machine.falls_due(cx.now, by))
        };
        let spread = spread(ids.iter().filter(|id| falls_due(id)).count());
        for id in ids {
            self.feed(cx, id, Input::ClockJump { by, spread });
        }
    }

    /// When [`timeout`](Self::timeout) is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let machines = self.deadlines.first().map(|(at, _)| *at);
        let pace = self.pace.as_ref().and_then(|pace| pace.deadline());
        machines
            .into_iter()
            .chain(self.flows.deadline())
            .chain(pace)
            .chain(self.crowded.values().copied())
            .min()
    }

    /// Serves up to `most` deadlines that have come; true where more are due.
    pub fn timeout(&mut self, cx: &mut Out<'_>, most: usize) -> bool {
        for _ in 0..most {
            // Flows first: there are few, and whoever rides on one that has failed is to know.
            if self.serve_flow(cx) || self.serve_pace(cx) || self.serve_crowd(cx) {
                continue;
            }
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
            self.feed(cx, id, Input::Timeout);
        }
        self.deadline().is_some_and(|at| at <= cx.now)
    }

    // ---- effects of one machine

    fn carry_out(&mut self, cx: &mut Out<'_>, id: RegistrationId, output: Output, again: bool) {
        match output {
            Output::Locate { op, uri } => self.locate(cx, Asker { id, op }, uri),
            Output::Open {
                op,
                target,
                prefer,
                fresh,
            } => {
                if !self.speaks(id, target.protocol()) {
                    let input = Input::Opened {
                        op,
                        result: Err(FlowError::NoTransport(target.protocol())),
                        retry_in: None,
                    };
                    return self.feed(cx, id, input);
                }
                self.open_in_turn(
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
                let (id, op) = self.groups.asks(id, op);
                cx.out.push(PoolOutput::Credentials { id, op, query })
            }
            Output::Guard { op, credential } => self.guard(cx, Asker { id, op }, credential.into()),
            Output::Proved {
                credential,
                accepted,
            } => self.proved(cx, id, &credential, accepted),
            Output::Cancel(op) => self.cancel(cx, Asker { id, op }),
            Output::Transmit { flow, message } => {
                self.transmit(cx, id, flow, message, again);
            }
            Output::Answered {
                flow,
                mapped,
                nat,
                terms,
            } => self.answered(cx, id, flow, Seen { mapped, nat }, terms),
            Output::Event(event) => self.tell(cx, id, event),
            Output::Target { .. } | Output::Done(_) => {}
        }
    }

    fn cancel(&mut self, cx: &mut Out<'_>, asker: Asker) {
        // Nobody waits for it: the next one to ask gets a new attempt rather than the rest of this one.
        let unwanted = self.flows.cancel(asker);
        cx.out.extend(unwanted.into_iter().map(PoolOutput::Close));
        self.names.cancel(|waiter| waiter.asker() != asker);
        self.waiting_for_guard
            .retain(|(queued, _)| *queued != asker);
        if let Some(pace) = &mut self.pace {
            pace.cancel(asker);
        }
        for window in self
            .windows
            .values_mut()
            .filter(|window| !window.queue.is_empty())
        {
            window.queue.retain(|(queued, _)| *queued != asker);
        }
    }

    // ---- bookkeeping

    /// Brings deadline, flow users and window in line with what the machine now says, which had this configuration before.
    fn settle(&mut self, cx: &mut Out<'_>, id: RegistrationId, before: &Arc<Registration>) {
        let registration = self.registration(id).map(Arc::clone);
        let Some(registration) = registration else {
            return;
        };
        if !Arc::ptr_eq(&registration, before) {
            self.list_changed(cx, id, before);
        }
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
        let (was, is) = (entry.flows, entry.machine.flows());
        entry.flows = is;
        let engaged = entry.machine.engaged();
        let left = entry
            .window
            .take_if(|target| engaged != Some(target.address()));
        if was != is || !Arc::ptr_eq(&registration, before) {
            let (from, to) = (user(before, id), user(&registration, id));
            for flow in is.into_iter().flatten() {
                self.flows.join(flow, to);
            }
            for flow in was.into_iter().flatten() {
                if from != to || !is.contains(&Some(flow)) {
                    self.leave(cx, flow, from);
                }
            }
        }
        if let Some(target) = left {
            self.release(cx, id, target.address());
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
        (slot.leaving, slot.returns) = (false, false);
        self.free.push(id.index);
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, id.index));
        }
        if let Some(pace) = &mut self.pace {
            pace.remove(id);
        }
        if let Some(line) = entry.machine.line() {
            self.lines.remove(line);
        }
        let registration = entry.machine.registration();
        self.bindings.remove(registration, id.index);
        for flow in entry.flows.into_iter().flatten() {
            self.leave(cx, flow, user(registration, id));
        }
        if let Some(target) = entry.window {
            self.release(cx, id, target.address());
        }
    }

    fn entry(&self, id: RegistrationId) -> Option<&Entry> {
        let slot = self.slots.get(id.index as usize)?;
        slot.entry
            .as_deref()
            .filter(|_| slot.generation == id.generation)
    }

    fn entry_mut(&mut self, id: RegistrationId) -> Option<&mut Entry> {
        self.slot_mut(id)?.entry.as_deref_mut()
    }

    /// The slot of a registration that is there.
    fn slot_mut(&mut self, id: RegistrationId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation && slot.entry.is_some()).then_some(slot)
    }

    /// Whether any registration is doing something now.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let mut entries = self.slots.iter().filter_map(|slot| slot.entry.as_ref());
        entries.any(|entry| entry.machine.is_busy())
    }
}

/// What stands for the Contact user of those that have none, or any (RFC 6140 §5.3)
const NO_NAME: u32 = 0;

/// A registration as its flows know it
fn user(registration: &Registration, id: RegistrationId) -> User {
    let name = registration.contact_user().as_str();
    let name = name.filter(|_| !registration.gin());
    (name.map_or(NO_NAME, bindings::short_hash), id.index)
}
