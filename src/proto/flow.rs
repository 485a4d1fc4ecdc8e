//! Flows, shared by all that ride on them: who uses them, how they are kept alive, when a lost one is made again.

use super::keep_alive::{Due, Keeping};
use super::mapping::Seen;
use super::stun;
use super::transaction::Transaction;
use crate::config::Timers;
use crate::{
    Entropy, FlowError, FlowId, FlowInfo, KeepAlive, KeepAlivePolicy, KeepAliveTerms, OpId,
    Protocol, RegistrationId,
};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who asked a question that is answered later, and which of his
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) id: RegistrationId,
    pub(crate) op: OpId,
}

/// What tells flows apart
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) transport: Option<Arc<str>>,
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    /// Who the peer has proved to be, where it has to: a flow to one domain is none to another at the same address
    /// (RFC 5922 §7.3)
    pub(crate) host: Option<Arc<str>>,
}

/// One that needs a flow: by what the user part of its Contact hashes to, so that those whom a request may be for are
/// found without looking at all (D24), and its slot
pub(crate) type User = (u32, u32);

/// All flows of a pool
///
/// What costs something is done once a flow, whoever rides on it: its deadlines are the table's, and an idle flow has
/// one however many registrations it carries.
#[derive(Debug)]
pub(crate) struct FlowTable {
    /// What our STUN transactions begin with
    tag: [u8; 4],
    flows: HashMap<FlowId, Flow>,
    by_key: HashMap<FlowKey, FlowId>,
    by_address: BTreeSet<(SocketAddr, FlowId)>,
    opening: BTreeSet<FlowId>,
    deadlines: BTreeSet<(Instant, FlowId)>,
    failed: HashMap<FlowKey, Failed>,
    /// When `failed` is gone through for what is over
    prune_at: usize,
    made: u64,
}

#[derive(Debug)]
struct Flow {
    key: FlowKey,
    /// The registrations that need it
    users: BTreeSet<User>,
    state: State,
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Opening {
        askers: Vec<Asker>,
        until: Instant,
        within: Duration,
    },
    Up {
        info: Arc<FlowInfo>,
        keeping: Box<Keeping>,
    },
}

/// A flow that could not be made, and when it is tried again (RFC 5626 §4.5)
#[derive(Debug)]
struct Failed {
    error: FlowError,
    /// In a row
    failures: u32,
    tried_at: Instant,
    /// What the waits count from, and how much of the longest wait they are
    since: Instant,
    share: f64,
    /// How many were told to come back then
    told: usize,
}

impl Failed {
    /// When it is tried again by those who have another flow up, or by those who have none.
    fn retry_at(&self, another_is_up: bool) -> Instant {
        self.since + backoff(self.failures, another_is_up).mul_f64(self.share)
    }
}

/// Which flow is asked for
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) key: FlowKey,
    /// This one, while it is up; not this one, where it is to be fresh
    pub(crate) prefer: Option<FlowId>,
    /// A new one, though one is up; or another that was made since
    pub(crate) fresh: bool,
    /// How long making it may take
    pub(crate) within: Duration,
    /// Whether the registration has another flow that is up (RFC 5626 §4.5)
    pub(crate) another_is_up: bool,
}

/// What becomes of a question for a flow
#[derive(Debug)]
pub(crate) enum Asked {
    Up(FlowId, Arc<FlowInfo>),
    /// It is being made; the asker is told
    Waits,
    /// It is to be made under this name; the asker is told
    Make(FlowId),
    /// It could not be made just now
    Failed(Refused),
}

/// A flow that could not be made, as one asker is told
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) error: FlowError,
    /// When to try again by RFC 5626 §4.5, this one among all that wait
    pub(crate) retry_in: Duration,
}

/// What the table's deadline asks for
#[derive(Debug)]
pub(crate) enum TableDue {
    /// A flow was not made in time
    NotMade(FlowError),
    /// The flow's keep-alive
    Kept(Due),
}

impl FlowTable {
    pub(crate) fn new(tag: [u8; 4]) -> Self {
        Self {
            tag,
            flows: HashMap::new(),
            by_key: HashMap::new(),
            by_address: BTreeSet::new(),
            opening: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            failed: HashMap::new(),
            prune_at: PRUNE,
            made: 0,
        }
    }

    // ---- making and ending

    /// Asks for the flow of `key`, or for `prefer` while that is up; a `fresh` one is made in any case.
    pub(crate) fn ask(
        &mut self,
        now: Instant,
        entropy: &mut Entropy,
        asker: Asker,
        wish: Wish,
    ) -> Asked {
        let Wish {
            key,
            prefer,
            fresh,
            within,
            another_is_up,
        } = wish;
        let shared = self.by_key.get(&key).copied();
        let known = if fresh {
            // Those whose requests died with a flow need one between them: one that is being made is fresh, and any but
            // the one that they leave.
            let left = |flow: &FlowId| prefer.is_some_and(|left| left != *flow);
            shared.filter(|flow| left(flow) || self.opening.contains(flow))
        } else {
            prefer
                .filter(|flow| self.flows.contains_key(flow))
                .or(shared)
        };
        if let Some(id) = known
            && let Some(flow) = self.flows.get_mut(&id)
        {
            return match &mut flow.state {
                State::Up { info, .. } => Asked::Up(id, Arc::clone(info)),
                State::Opening { askers, .. } => {
                    askers.push(asker);
                    Asked::Waits
                }
            };
        }
        // Those who come right after one that failed are not the ones to try again.
        if self
            .failed
            .get(&key)
            .is_some_and(|failed| now < failed.tried_at + REST)
            && let Some(refused) = self.refused(now, entropy, &key, another_is_up)
        {
            return Asked::Failed(refused);
        }
        self.made += 1;
        let id = FlowId::new(self.made);
        let until = now + within;
        self.by_key.insert(key.clone(), id);
        self.by_address.insert((key.address, id));
        self.opening.insert(id);
        self.deadlines.insert((until, id));
        self.flows.insert(
            id,
            Flow {
                key,
                users: BTreeSet::new(),
                state: State::Opening {
                    askers: vec![asker],
                    until,
                    within,
                },
                deadline: Some(until),
            },
        );
        Asked::Make(id)
    }

    /// A flow is up: those who asked for it.
    pub(crate) fn opened(&mut self, id: FlowId, info: Arc<FlowInfo>) -> Vec<Asker> {
        let Some(flow) = self.flows.get_mut(&id) else {
            return Vec::new();
        };
        let keeping = Box::new(Keeping::new(info.protocol()));
        let before = std::mem::replace(&mut flow.state, State::Up { info, keeping });
        self.opening.remove(&id);
        self.schedule(id);
        match before {
            State::Opening { askers, .. } => askers,
            State::Up { .. } => Vec::new(),
        }
    }

    /// A flow could not be made: those who asked for it, and what each is told.
    pub(crate) fn not_made(
        &mut self,
        now: Instant,
        entropy: &mut Entropy,
        id: FlowId,
        error: &FlowError,
        another_is_up: impl Fn(RegistrationId) -> bool,
    ) -> Vec<(Asker, Refused)> {
        let Some(Flow {
            key,
            state: State::Opening { askers, .. },
            ..
        }) = self.remove(id)
        else {
            return Vec::new();
        };
        let failed = self.failed.entry(key.clone()).or_insert_with(|| Failed {
            error: error.clone(),
            failures: 0,
            tried_at: now,
            since: now,
            share: 0.0,
            told: 0,
        });
        failed.error = error.clone();
        failed.tried_at = now;
        if now >= failed.retry_at(false) {
            failed.failures = failed.failures.saturating_add(1);
            failed.since = now;
            failed.share = entropy.between(0.5, 1.0);
            failed.told = 0;
        }
        failed.told = failed.told.saturating_add(askers.len());
        if self.failed.len() > self.prune_at {
            self.failed
                .retain(|_, failed| now < failed.retry_at(false) + BACKOFF_MAX);
            self.prune_at = self.failed.len().saturating_mul(2).max(PRUNE);
        }
        let told = askers.into_iter().map(|asker| {
            let refused = self.refused(now, entropy, &key, another_is_up(asker.id));
            let refused = refused.unwrap_or_else(|| Refused {
                error: error.clone(),
                retry_in: Duration::ZERO,
            });
            (asker, refused)
        });
        told.collect()
    }

    /// What one more is told who wants a flow that could not be made.
    pub(crate) fn refused(
        &self,
        now: Instant,
        entropy: &mut Entropy,
        key: &FlowKey,
        another_is_up: bool,
    ) -> Option<Refused> {
        let failed = self.failed.get(key)?;
        let retry_at = failed.retry_at(another_is_up);
        let wait = retry_at.saturating_duration_since(now);
        Some(Refused {
            error: failed.error.clone(),
            // They wait for the same moment, and come back as the users of a lost flow do (D13).
            retry_in: wait + entropy.up_to(spread(failed.told)),
        })
    }

    /// Takes a flow away; who used it, and who asked for it, is the caller's to tell.
    fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        if self.by_key.get(&flow.key) == Some(&id) {
            self.by_key.remove(&flow.key);
        }
        self.by_address.remove(&(flow.key.address, id));
        self.opening.remove(&id);
        if let Some(at) = flow.deadline {
            self.deadlines.remove(&(at, id));
        }
        Some(flow)
    }

    /// Ends a flow; the slots of those who used it, in order.
    pub(crate) fn end(&mut self, id: FlowId) -> BTreeSet<u32> {
        let users = self.remove(id).map(|flow| flow.users).unwrap_or_default();
        users.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Ends all flows, and forgets what could not be made.
    pub(crate) fn clear(&mut self) -> Vec<FlowId> {
        self.failed.clear();
        let mut flows: Vec<_> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        for flow in &flows {
            self.remove(*flow);
        }
        flows
    }

    /// An asker is not interested any more: flows that nobody else waits for are ended.
    pub(crate) fn cancel(&mut self, asker: Asker) -> Vec<FlowId> {
        let mut unwanted = Vec::new();
        for id in &self.opening {
            if let Some(Flow {
                state: State::Opening { askers, .. },
                ..
            }) = self.flows.get_mut(id)
            {
                askers.retain(|queued| *queued != asker);
                unwanted.extend(Some(*id).filter(|_| askers.is_empty()));
            }
        }
        for id in &unwanted {
            self.remove(*id);
        }
        unwanted
    }

    // ---- users

    pub(crate) fn join(&mut self, id: FlowId, user: User) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.users.insert(user);
        }
    }

    /// A registration needs a flow no more; true where nobody does, and the flow is gone.
    pub(crate) fn leave(&mut self, id: FlowId, user: User) -> bool {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.users.remove(&user);
        }
        self.end_if_unused(id)
    }

    /// The slots of those on a flow whose Contact user hashes to `name`.
    pub(crate) fn named(&self, id: FlowId, name: u32) -> impl Iterator<Item = u32> + '_ {
        let users = self.flows.get(&id).map(|flow| &flow.users);
        let named = users.map(|users| users.range((name, 0)..=(name, u32::MAX)));
        named.into_iter().flatten().map(|(_, slot)| *slot)
    }

    pub(crate) fn end_if_unused(&mut self, id: FlowId) -> bool {
        let unused = self
            .flows
            .get(&id)
            .is_some_and(|flow| flow.users.is_empty() && matches!(flow.state, State::Up { .. }));
        if unused {
            self.remove(id);
        }
        unused
    }

    pub(crate) fn first_user(&self, id: FlowId) -> Option<u32> {
        let user = self.flows.get(&id)?.users.first();
        user.map(|(_, slot)| *slot)
    }

    // ---- what is known of a flow

    pub(crate) fn is_up(&self, id: FlowId) -> bool {
        self.info(id).is_some()
    }

    pub(crate) fn info(&self, id: FlowId) -> Option<&Arc<FlowInfo>> {
        match &self.flows.get(&id)?.state {
            State::Up { info, .. } => Some(info),
            State::Opening { .. } => None,
        }
    }

    pub(crate) fn address(&self, id: FlowId) -> Option<SocketAddr> {
        self.flows.get(&id).map(|flow| flow.key.address)
    }

    /// The transport that those name who asked for a flow; `None` where there is no such flow.
    pub(crate) fn transport(&self, id: FlowId) -> Option<&Option<Arc<str>>> {
        self.flows.get(&id).map(|flow| &flow.key.transport)
    }

    /// A flow to this address, where a datagram does not say which it came on.
    pub(crate) fn from(&self, source: SocketAddr) -> Option<FlowId> {
        self.all_from(source).find(|flow| self.is_datagram(*flow))
    }

    /// Whether datagrams are what it carries.
    pub(crate) fn is_datagram(&self, id: FlowId) -> bool {
        let flow = self.flows.get(&id);
        flow.is_some_and(|flow| !flow.key.protocol.is_reliable())
    }

    /// The flows to this address and port.
    pub(crate) fn all_from(&self, source: SocketAddr) -> impl Iterator<Item = FlowId> + '_ {
        let range = (source, FlowId::new(0))..=(source, FlowId::new(u64::MAX - 1));
        self.by_address.range(range).map(|(_, flow)| *flow)
    }

    /// The flows to this host, whatever the port.
    pub(crate) fn all_at(&self, ip: IpAddr) -> impl Iterator<Item = FlowId> + '_ {
        let (first, last) = match ip {
            IpAddr::V4(_) => (SocketAddr::new(ip, 0), SocketAddr::new(ip, u16::MAX)),
            IpAddr::V6(ip) => (
                SocketAddrV6::new(ip, 0, 0, 0).into(),
                SocketAddrV6::new(ip, u16::MAX, u32::MAX, u32::MAX).into(),
            ),
        };
        let range = (first, FlowId::new(0))..=(last, FlowId::new(u64::MAX - 1));
        self.by_address.range(range).map(|(_, flow)| *flow)
    }

    // ---- keep-alive

    /// An answer on the flow showed where the peer sees us; kept for the flow's life (F31).
    pub(crate) fn seen(&mut self, now: Instant, entropy: &mut Entropy, id: FlowId, seen: Seen) {
        if let Some((info, keeping)) = self.up(id) {
            map(info, seen.mapped);
            keeping.seen(now, entropy, seen.nat);
            self.schedule(id);
        }
    }

    /// A REGISTER was accepted on the flow.
    pub(crate) fn granted(
        &mut self,
        now: Instant,
        entropy: &mut Entropy,
        id: FlowId,
        policy: &KeepAlivePolicy,
        terms: KeepAliveTerms,
    ) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let State::Up { info, keeping } = &mut flow.state else {
            return;
        };
        if info.keep_alive() == KeepAlive::Ours {
            let alone = flow.users.len() <= 1;
            keeping.granted(now, entropy, policy, terms, alone);
        }
        // RFC 5626 §4.5: where keep-alives are answered, a flow is good once one was.
        if !keeping.expects() {
            self.failed.remove(&flow.key);
        }
        self.schedule(id);
    }

    /// A pong came on a stream.
    pub(crate) fn pong(&mut self, id: FlowId) {
        if let Some((_, keeping)) = self.up(id) {
            keeping.pong();
            self.alive(id);
        }
    }

    /// A final answer to the OPTIONS with this branch came; what it shows of the way.
    pub(crate) fn options_answered(
        &mut self,
        now: Instant,
        entropy: &mut Entropy,
        branch: &str,
        via: &crate::Via,
    ) {
        let Some(id) = flow_of(branch) else { return };
        let Some((info, keeping)) = self.up(id) else {
            return;
        };
        if keeping.options_answered(branch) {
            let seen = Seen::of(via, info);
            self.alive(id);
            self.seen(now, entropy, id, seen);
        }
    }

    /// A STUN answer of ours came: the flow that has failed with it, and why.
    pub(crate) fn stun_answered(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
    ) -> Option<(FlowId, FlowError)> {
        let (of, answer) = stun::answer(datagram)?;
        let flows: Vec<_> = self.all_from(source).collect();
        for id in flows {
            let Some((info, keeping)) = self.up(id) else {
                continue;
            };
            match keeping.stun_answered(of, answer) {
                None => continue,
                Some(Ok(mapped)) => map(info, mapped),
                Some(Err(error)) => return Some((id, error)),
            }
            self.alive(id);
        }
        None
    }

    /// Whether these bytes answer a STUN request of ours.
    pub(crate) fn is_ours(tag: [u8; 4], datagram: &[u8]) -> bool {
        stun::answered_id(datagram).is_some_and(|id| id.starts_with(&tag))
    }

    pub(crate) const fn tag(&self) -> [u8; 4] {
        self.tag
    }

    /// Every flow that is kept alive is checked at once (D22).
    pub(crate) fn check_all(&mut self, now: Instant) {
        let mut flows: Vec<_> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        for id in flows {
            if let Some((_, keeping)) = self.up(id) {
                keeping.check(now);
                self.schedule(id);
            }
        }
    }

    /// The computer slept for `by`: what could not be made before may be tried that much earlier.
    pub(crate) fn age(&mut self, now: Instant, by: Duration) {
        for failed in self.failed.values_mut() {
            failed.since = failed.since.checked_sub(by).unwrap_or(now);
        }
    }

    /// The OPTIONS that a deadline asked for is on its way.
    pub(crate) fn options_sent(&mut self, id: FlowId, timers: &Timers, transaction: Transaction) {
        if let Some((_, keeping)) = self.up(id) {
            keeping.options_sent(timers, transaction);
            self.schedule(id);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The first thing that is due, if any is.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        entropy: &mut Entropy,
    ) -> Option<(FlowId, TableDue)> {
        let (_, id) = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        let tag = self.tag;
        let due = match &mut self.flows.get_mut(&id)?.state {
            State::Opening { within, .. } => TableDue::NotMade(FlowError::ConnectTimeout(*within)),
            State::Up { keeping, .. } => TableDue::Kept(keeping.due(now, entropy, tag)),
        };
        self.schedule(id);
        Some((id, due))
    }

    fn alive(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get(&id) {
            self.failed.remove(&flow.key);
        }
        self.schedule(id);
    }

    fn up(&mut self, id: FlowId) -> Option<(&mut Arc<FlowInfo>, &mut Keeping)> {
        match &mut self.flows.get_mut(&id)?.state {
            State::Up { info, keeping } => Some((info, keeping)),
            State::Opening { .. } => None,
        }
    }

    /// Brings the table's deadline for a flow in line with what the flow now says.
    fn schedule(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let deadline = match &flow.state {
            State::Opening { until, .. } => Some(*until),
            State::Up { keeping, .. } => keeping.deadline(),
        };
        if flow.deadline != deadline {
            if let Some(old) = flow.deadline {
                self.deadlines.remove(&(old, id));
            }
            self.deadlines.extend(deadline.map(|new| (new, id)));
            flow.deadline = deadline;
        }
    }
}

fn map(info: &mut Arc<FlowInfo>, mapped: Option<SocketAddr>) {
    if mapped.is_some() && info.mapped() != mapped {
        *info = Arc::new(FlowInfo::clone(info).with_mapped(mapped));
    }
}

/// The branch of a keep-alive's OPTIONS: what names the flow stands where a registration's slot would
pub(crate) fn branch(tag: &str, id: FlowId, entropy: &mut Entropy) -> Box<str> {
    format!("z9hG4bK{tag}{MARK}{:016x}{}", id.number(), entropy.hex(8)).into()
}

fn flow_of(branch: &str) -> Option<FlowId> {
    let (_, rest) = branch.split_once([MARK, MARK.to_ascii_uppercase()])?;
    let number = u64::from_str_radix(rest.get(..16)?, 16).ok()?;
    Some(FlowId::new(number))
}

/// Over how long the users of a lost flow come back (D13)
pub(crate) fn spread(users: usize) -> Duration {
    SPREAD_EACH
        .saturating_mul(u32::try_from(users).unwrap_or(u32::MAX))
        .min(SPREAD_LONGEST)
}

/// The longest wait before a flow is tried again after `failures` in a row; half of it to all is drawn
///
/// `min(1800, base * 2^failures)` seconds, RFC 5626 §4.5. The base is 90 s for a registration with another flow that is
/// up, 30 s for one with none.
pub(crate) fn backoff(failures: u32, another_is_up: bool) -> Duration {
    let base = Duration::from_secs(if another_is_up { 90 } else { 30 });
    base.saturating_mul(1 << failures.min(6)).min(BACKOFF_MAX)
}

/// Users of a lost flow spread: this much each, up to the longest (D13)
const SPREAD_EACH: Duration = Duration::from_millis(10);
const SPREAD_LONGEST: Duration = Duration::from_secs(10);
/// The longest wait for another try (RFC 5626 §4.5)
const BACKOFF_MAX: Duration = Duration::from_secs(1800);
/// A flow is tried at most so often, however many want it (D13)
const REST: Duration = Duration::from_secs(1);
/// Failures that are kept before those that are over are looked for
const PRUNE: usize = 64;
/// In the branch of a keep-alive's OPTIONS; no hexadecimal digit, so that no registration's branch has it there
const MARK: char = 'o';

#[cfg(test)]
#[path = "tests/flow.rs"]
mod tests;
