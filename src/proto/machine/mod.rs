//! One registration: lease × activity, time and messages in, effects out.
//!
//! ```text
//!            Start (initial delay)            deadline
//!   Idle ───────────────────────▶ Waiting ───────────────▶ Cycle: Locating ─▶ Opening ─▶ Registering ⇄ Asking
//!    ▲ ▲                            ▲  ▲                     │        (each step has its own deadline)
//!    │ └──── gave up, stopped ──────┼──┼─────────────────────┤
//!    │                              │  └── refused: retry ───┤
//!    └── paused ◀── Pause           └───── granted: refresh ─┘
//! ```
//!
//! The lease lives beside all of this: it starts with a grant, ends when it expires or is removed, and no failure
//! in between takes it away.

pub(super) mod answers;
mod beside;
mod certificates;
mod challenges;
mod commands;
mod contract;
mod cycle;
mod outcome;
mod request;
mod seldom;
mod surroundings;
mod untried;
mod way_out;

pub use contract::{AgentKey, Cx, Guarded, Identity, Input, Output};
use seldom::{Bearings, Rarely, Seldom};
pub use way_out::WayOut;

use crate::proto::digest::{Reaction, Role, Rules, ServerProof, parse_challenges};
use crate::proto::event::*;
use crate::proto::flow_info::{FlowError, FlowInfo, Protocol, Target};
use crate::proto::ids::{FlowId, OpId, RegistrationId};
use crate::proto::lease::{self, Sent};
use crate::proto::locate::TargetOutcome;
use crate::proto::mapping::Seen;
use crate::proto::message::write::{self, ContactForm, Parts};
use crate::proto::transaction::{Due, Transaction};
use crate::proto::transcript::Transcript;
use crate::proto::verdict::{self, GiveUp, Verdict};
use crate::proto::{Entropy, Sessions};
use crate::{
    Change, ContactRewriting, CredentialsQuery, InitialDelay, KeepAliveTerms, Redirects,
    Registration, ResolveError, Response, Secret, SecurityNegotiation, SipUri,
};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Requests to one target in a cycle (D3)
const REQUESTS_A_TARGET: u32 = 6;
/// Requests in a cycle (D3)
const REQUESTS_A_CYCLE: u32 = 15;
/// Requests that the choices before the last leave to it: an answered challenge, and one more
const REQUESTS_FOR_THE_NEXT: u32 = 3;
/// Targets in a cycle (D3)
const TARGETS_A_CYCLE: usize = 8;
/// How long a cycle may go on starting requests (D3)
const CYCLE: Duration = Duration::from_secs(96);
/// Start to start of cycles that no command asked for (D2)
const PACE: Duration = Duration::from_secs(1);
/// A lease lost earlier than this after its grant counts as a failure (D2)
const FLAP: Duration = Duration::from_secs(30);
/// Retries in a row that are taken at the registrar's word (D11), or do not count; later ones wait 1, 3, 7 … s at least
const UNCOUNTED: u8 = 3;
/// They never have to wait longer than this, unless the registrar says so
const UNCOUNTED_LEAST: Duration = Duration::from_secs(60);
/// A request longer than this goes over a stream, where it may (RFC 3261 §18.1.1)
const DATAGRAM: usize = 1300;
/// How many Contacts are remembered that the registrar may still hold (D18)
const STALE: usize = 4;
/// How long the host may take to name the addresses; a name service that takes longer is down
const LOCATING: Duration = Duration::from_secs(20);
/// How long a credential provider may take
const ASKING: Duration = Duration::from_secs(30);
/// How long an answer to a challenge may wait for others that try the same credential (D6): timer F and some
const GUARDED: Duration = Duration::from_secs(120);
/// A held request is asked for again after this long, so that no host can forget it
const HELD: Duration = Duration::from_secs(32);
/// A binding at a fallback tries the first choice again after this (as a target does, D12)
const RETURN: Duration = Duration::from_secs(300);
/// … or after this, where the first choice refused our credentials: that they are good at the fallback clears the count of
/// refusals (D6), and must not lock the account at the first
const RETURN_REFUSED: Duration = Duration::from_secs(3600);
/// No host means more than this by a deadline or a spread, and `Instant` has an end
const LONGEST: Duration = Duration::from_secs(86_400);
/// What has to be left of a lease beyond timer F, for a target that may be dead: another one and a challenge fit (D1)
const ROOM: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Register,
    Unregister,
    Query,
    /// A query, and what follows from it
    Reconcile,
    RemoveAll,
}

/// A command that waits for the end of the cycle under way, or what follows the un-REGISTER under way
#[derive(Debug, Clone)]
enum Then {
    /// Over by then, whatever has to end before
    Stop {
        by: Instant,
    },
    Reregister,
    /// What is left of `Reregister` once the un-REGISTER is over
    Register,
    Refresh,
    Query,
    Reconcile,
    RemoveAll,
    Pause {
        until: Option<Instant>,
        unregister: bool,
    },
    Reconfigure(Arc<Registration>),
    Replace(Arc<Registration>),
}

#[derive(Debug, Clone)]
enum Plan {
    Idle,
    Waiting { until: Instant },
    Paused { until: Option<Instant> },
    Cycle(Box<Cycle>),
}

#[derive(Debug, Clone)]
struct Cycle {
    purpose: Purpose,
    /// Which of the registration's choices is tried: the first, or a fallback
    choice: u8,
    /// A bit for each choice that had its turn
    visited: u8,
    /// Whether the first choice is tried while another one is bound: whatever it says, the bound one comes next
    returns: bool,
    /// When the next choice has its turn, while this one is silent
    choice_until: Option<Instant>,
    /// Targets of the choices before it
    tried: usize,
    /// Whether the flow was given for the next request, where the host paces them (D16)
    permitted: bool,
    /// Whether somebody asked for a REGISTER at once (D20): then a target that wants to be left alone is not
    insists: bool,
    /// When the first request went out
    started: Option<Instant>,
    requests: u32,
    at_target: u32,
    targets: Vec<Target>,
    next: usize,
    /// The soonest that a flow to one of the targets is to be made again, where none could be (RFC 5626 §4.5)
    retry_in: Option<Duration>,
    /// Smallest Retry-After of the targets that answered 503 (D11)
    retry_after: Option<u32>,
    /// Whether a target failed that did not ask to be left alone
    unasked: bool,
    from_tag: Box<str>,
    step: Step,
    flow: Option<(FlowId, Arc<FlowInfo>)>,
    contact_uri: Box<str>,
    /// Whether the request under way also removes older Contacts (D18)
    replaces: bool,
    path: bool,
    outbound: bool,
    /// Whether this cycle has answered a challenge, a 494, a 420, a 430 before
    authenticated: bool,
    security_resent: bool,
    security_only_verify: bool,
    tokens_dropped: bool,
    fresh_flow: bool,
    /// A connection that was silent, where the fresh one is to be another
    dead: Option<FlowId>,
    /// Credentials that the guard let through in this cycle, not proved yet (D6)
    guarded: Vec<Guarded>,
    /// Whether it was told that a request is oversize (D23)
    oversize: bool,
    /// The optional `gruu` may still be offered
    gruu: bool,
    redirects: u8,
    /// When an un-REGISTER must be over
    limit: Option<Instant>,
    /// What goes on after a query
    before: Plan,
    /// `may_live` without the request under way: what holds once that one is refused
    lived: Option<Instant>,
    /// The code of the last final answer
    code: Option<u16>,
    /// Contact values that remove what this device has left behind; none until a reconciliation has found some
    left: Vec<Box<str>>,
    /// The Contacts of the other flows of the same registration, while bindings are asked for
    beside: Vec<Box<str>>,
    /// The first target beyond those that an attempt may have (D3)
    beyond: Option<Target>,
    /// What was reported last, for the event of a cycle that runs out of targets
    failure: Option<(Failure, Option<Box<Exchange>>)>,
    /// The last answer that was not the end: what a failure without one of its own is about (D27)
    answered: Option<Box<Exchange>>,
}

#[derive(Debug, Clone)]
enum Step {
    Locating {
        op: OpId,
        until: Instant,
    },
    Opening {
        op: OpId,
        until: Instant,
    },
    Held {
        op: OpId,
        until: Instant,
    },
    Asking {
        op: OpId,
        until: Instant,
        role: Role,
        query: CredentialsQuery,
    },
    Guarding {
        op: OpId,
        until: Instant,
    },
    Registering(Transaction),
    /// Between two steps of one call; never seen outside
    Between,
}

#[derive(Debug, Clone)]
struct Lease {
    /// The Contact as it was bound
    contact: Box<str>,
    at: Instant,
    expires_at: Instant,
    /// Seconds
    granted: u32,
    confirmed: bool,
    stream: Stream,
    flow: Option<FlowId>,
    target: Target,
    /// Whether a REGISTER follows only to bring the mapped address into the Contact: then the next one does not
    rewrites: bool,
}

/// What an oversize request has made of UDP (D23)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Nothing: it fitted, or may go no other way
    Untried,
    /// The lease was granted over TCP in its place
    Used,
    /// No TCP could be made; over UDP it was granted all the same
    Failed,
}

impl Lease {
    fn granted(&self) -> Duration {
        Duration::from_secs(u64::from(self.granted))
    }
}

/// Call-ID: one we drew keeps its 128 bits, and no text
#[derive(Debug, Clone)]
enum CallId {
    Drawn([u8; 16]),
    Given(Box<str>),
}

impl std::fmt::Display for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drawn(bits) => write!(f, "{:032x}", u128::from_be_bytes(*bits)),
            Self::Given(text) => f.write_str(text),
        }
    }
}

/// The pure state machine of one registration: no clock, no socket, no task
///
/// Feed it [`Input`]s, carry out its [`Output`]s, and call it with [`Input::Timeout`] when
/// [`deadline`](Self::deadline) has come. Late, early and spurious timeouts are harmless; an answer to an older
/// question is ignored.
#[derive(Debug, Clone)]
pub struct Machine {
    registration: Arc<Registration>,
    identity: Kept,
    plan: Plan,
    lease: Option<Lease>,
    /// Until when the registrar may hold a binding of ours, answered or not: what is not known to be gone is removed
    may_live: Option<Instant>,
    retries: u32,
    ops: u32,
    last_start: Option<Instant>,
    /// With its exchange, where a request was sent (D27)
    last_failure: Option<Box<(Failure, Option<Box<Exchange>>)>>,
    reference: ReferenceStatus,
    /// Whether the host wants to be asked for the flow before each request (D16)
    paced: bool,
    sessions: Sessions,
    seldom: Rarely,
}

#[derive(Debug, Clone)]
struct Kept {
    agent: Arc<AgentKey>,
    id: RegistrationId,
    call_id: CallId,
    cseq: u32,
    line: Option<Box<str>>,
}

impl Kept {
    /// A new branch: the agent's tag and the place in it say whose the answer is, the rest is random.
    fn branch(&self, entropy: &mut Entropy) -> String {
        let RegistrationId { index, generation } = self.id;
        let random = entropy.hex(8);
        format!(
            "z9hG4bK{}{index:08x}{generation:08x}{random}",
            self.agent.tag
        )
    }
}

type Out<'a> = Cx<'a, Output>;

impl Machine {
    /// A machine for one registration; it does nothing until [`Input::Start`].
    #[must_use]
    pub fn new(registration: Arc<Registration>, identity: Identity, entropy: &mut Entropy) -> Self {
        let line = registration
            .line()
            .then(|| identity.line.unwrap_or_else(|| entropy.letters(7).into()));
        let kept = Kept {
            agent: identity.agent,
            id: identity.id,
            call_id: match identity.call_id {
                Some(text) => CallId::Given(text),
                None => CallId::Drawn(std::array::from_fn(|_| entropy.u32() as u8)),
            },
            cseq: identity
                .cseq
                .unwrap_or_else(|| entropy.below(65_536) as u32),
            line,
        };
        Self {
            registration,
            identity: kept,
            plan: Plan::Idle,
            lease: None,
            may_live: None,
            retries: 0,
            ops: 0,
            last_start: None,
            last_failure: None,
            reference: ReferenceStatus::Unregistered,
            paced: false,
            sessions: Sessions::default(),
            seldom: Rarely::default(),
        }
    }

    /// The configuration in force.
    #[must_use]
    pub const fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }

    /// The `line` token of the Contact, where the option is on.
    #[must_use]
    pub fn line(&self) -> Option<&str> {
        self.identity.line.as_deref()
    }

    /// Another `line` token, for one that somebody else has; before anything was sent with it.
    pub(crate) fn draw_line(&mut self, entropy: &mut Entropy) {
        self.identity.line = self.line().map(|_| entropy.letters(7).into());
    }

    /// The state: is there a binding, and what are we doing about it.
    #[must_use]
    pub fn status(&self) -> Status {
        let activity = match &self.plan {
            Plan::Idle => Activity::Idle,
            Plan::Waiting { until } => Activity::Waiting { until: *until },
            Plan::Paused { .. } => Activity::Paused,
            Plan::Cycle(cycle) => match cycle.purpose {
                Purpose::Register => Activity::Registering,
                Purpose::Unregister => Activity::Unregistering,
                Purpose::Query | Purpose::Reconcile | Purpose::RemoveAll => Activity::Querying,
            },
        };
        let (failure, exchange) = self.last_failure.as_deref().map(|(f, e)| (f, e)).unzip();
        Status {
            lease: self.lease.as_ref().map(|lease| LeaseStatus {
                expires_at: lease.expires_at,
                granted: lease.granted(),
                flow: lease.flow,
                target: lease.target.clone(),
                confirmed: lease.confirmed,
                mapped: None,
            }),
            activity,
            last_failure: failure.cloned(),
            exchange: exchange.cloned().flatten(),
            retries: self.retries,
            reference: self.reference,
        }
    }

    /// The last request and its answer, where [`Policy::keep_transcript`](crate::Policy::keep_transcript) has it so (D27);
    /// none before the first request, and after another registration has taken the place of this one.
    #[must_use]
    pub fn transcript(&self) -> Option<&Transcript> {
        let kept = self.registration.policy().keep_transcript;
        self.seldom.transcript.as_deref().filter(|_| kept)
    }

    /// When [`Input::Timeout`] is due; computed from the state, so that no timer can be forgotten.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let plan = match &self.plan {
            Plan::Idle | Plan::Paused { until: None } => None,
            Plan::Waiting { until } | Plan::Paused { until: Some(until) } => Some(*until),
            Plan::Cycle(cycle) => {
                let step = match &cycle.step {
                    Step::Locating { until, .. }
                    | Step::Opening { until, .. }
                    | Step::Held { until, .. }
                    | Step::Asking { until, .. }
                    | Step::Guarding { until, .. } => Some(*until),
                    Step::Registering(transaction) => Some(transaction.deadline()),
                    Step::Between => None,
                };
                [step, cycle.limit, cycle.choice_until, self.seldom.then_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
        };
        let expiry = self.lease.as_ref().map(|lease| lease.expires_at);
        [plan, expiry].into_iter().flatten().min()
    }

    /// The target that a request is on its way to, or a flow is made to: such ones share the in-flight window (D16).
    ///
    /// While credentials are asked for the place is kept: the request that follows must not come on top.
    #[must_use]
    pub fn engaged(&self) -> Option<std::net::SocketAddr> {
        let Plan::Cycle(cycle) = &self.plan else {
            return None;
        };
        let engaged = match &cycle.step {
            Step::Opening { .. }
            | Step::Asking { .. }
            | Step::Guarding { .. }
            | Step::Registering(_) => true,
            // One that waits with its flow for its next request; who would take its place may wait for that very request.
            Step::Held { .. } => cycle.flow.is_some(),
            Step::Locating { .. } | Step::Between => false,
        };
        cycle
            .targets
            .get(cycle.next)
            .filter(|_| engaged)
            .map(Target::address)
    }

    /// The target that holds the lease, as it is located; none while a redirect is followed or another choice is tried,
    /// which lead away from it.
    pub(crate) fn bound(&self) -> Option<Target> {
        let elsewhere = matches!(&self.plan, Plan::Cycle(cycle)
            if cycle.redirects > 0 || cycle.choice != self.seldom.choice);
        let lease = self.lease.as_ref().filter(|_| !elsewhere);
        lease.map(|lease| match lease.stream {
            Stream::Used => lease.target.over(Protocol::Udp),
            Stream::Untried | Stream::Failed => lease.target.clone(),
        })
    }

    /// The choice that is tried now, or else the one that is bound: where its requests go, and as what.
    pub(crate) fn choice(&self) -> &Registration {
        let number = match &self.plan {
            Plan::Cycle(cycle) => cycle.choice,
            _ => self.seldom.choice,
        };
        self.registration.choice(number)
    }

    /// Whether the host wants to be asked for the flow before each request, so that it can space them (D16).
    pub(crate) const fn set_paced(&mut self, paced: bool) {
        self.paced = paced;
    }

    /// Whether the attempt under way has sent something.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle) if cycle.started.is_some())
    }

    /// Whether the attempt under way is to register.
    pub(crate) fn registers(&self) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle) if cycle.purpose == Purpose::Register)
    }

    /// Whether this very message is on its way, unanswered.
    pub(crate) fn waits_for_answer_to(&self, message: &Bytes) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle) if matches!(&cycle.step,
            Step::Registering(transaction) if transaction.message.as_ptr() == message.as_ptr()))
    }

    /// A request went out once more, now or where its turn came later: the next one keeps its distance from that (D16).
    pub(crate) fn resent(&mut self, now: Instant) {
        if let Some(seldom) = self.seldom.there()
            && seldom.sent_at.is_some()
        {
            seldom.sent_at = Some(now);
        }
    }

    /// The credentials may be tried again: what a provider found before is not what goes along with the next attempt.
    pub(crate) fn ask_anew(&mut self) {
        if !self.is_busy() {
            self.sessions.clear_for_retry();
        }
    }

    /// Whether the last attempt failed.
    pub(crate) const fn has_failed(&self) -> bool {
        self.last_failure.is_some()
    }

    /// Where the lease was granted.
    pub(crate) fn bound_at(&self) -> Option<std::net::SocketAddr> {
        self.lease.as_ref().map(|lease| lease.target.address())
    }

    /// Whether the cycle under way can afford a target that may be dead, and another one after it.
    pub(crate) fn may_try(&self, now: Instant) -> bool {
        let least = self.registration.policy().timers.timer_f + ROOM;
        let registers =
            matches!(&self.plan, Plan::Cycle(cycle) if cycle.purpose == Purpose::Register);
        let left = |lease: &Lease| lease.expires_at.saturating_duration_since(now);
        registers && self.lease.as_ref().is_none_or(|lease| left(lease) >= least)
    }

    /// Whether the request goes to a target even if that asked to be left alone: on command, and to remove a binding.
    pub(crate) fn insists(&self) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle)
            if cycle.insists || cycle.purpose != Purpose::Register)
    }

    /// Says whether another flow of the same registration is up: then this one is tried without end (RFC 5626 §4.5); and
    /// whether its registrar does outbound.
    pub(crate) fn others_hold(&mut self, others_hold: bool, outbound: bool) {
        let others = (others_hold, outbound);
        if (self.seldom.others_hold, self.seldom.others_outbound) != others {
            let seldom = self.seldom.change();
            (seldom.others_hold, seldom.others_outbound) = others;
        }
    }

    /// Whether something is under way.
    pub(crate) const fn is_busy(&self) -> bool {
        matches!(self.plan, Plan::Cycle(_))
    }

    /// Whether this waits for the guard's answer to `op`.
    pub(crate) fn guarding(&self, op: OpId) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle)
            if matches!(cycle.step, Step::Guarding { op: asked, .. } if asked == op))
    }

    /// The flows that must stay up for this registration: the lease's, and the one that is tried now.
    pub(crate) fn flows(&self) -> [Option<FlowId>; 2] {
        let lease = self.lease.as_ref().and_then(|lease| lease.flow);
        [lease, self.cycle_flow().filter(|flow| Some(*flow) != lease)]
    }

    /// The flow of the request under way, or else of the lease.
    #[must_use]
    pub fn flow(&self) -> Option<FlowId> {
        self.cycle_flow()
            .or_else(|| self.lease.as_ref().and_then(|lease| lease.flow))
    }

    fn cycle_flow(&self) -> Option<FlowId> {
        match &self.plan {
            Plan::Cycle(cycle) => cycle.flow.as_ref().map(|(flow, _)| *flow),
            _ => None,
        }
    }

    /// Feeds one input; effects are appended to `cx.out`.
    pub fn handle(&mut self, cx: &mut Out<'_>, input: Input<'_>) {
        self.expire(cx);
        match input {
            Input::Start => self.start(cx),
            Input::Stop(within) => {
                let by = cx.now + within.min(LONGEST);
                self.or_after(cx, Then::Stop { by });
            }
            Input::Refresh => self.or_after(cx, Then::Refresh),
            Input::Reregister => self.or_after(cx, Then::Reregister),
            Input::Query => self.or_after(cx, Then::Query),
            Input::Reconcile => self.or_after(cx, Then::Reconcile),
            Input::RemoveAll => self.or_after(cx, Then::RemoveAll),
            Input::Pause { until, unregister } => {
                self.or_after(cx, Then::Pause { until, unregister })
            }
            Input::Resume => self.resume(cx),
            Input::Timeout => self.timeout(cx),
            Input::NetworkChanged(spread) => self.network_changed(cx, spread.min(LONGEST)),
            Input::ClockJump { by, spread } => self.clock_jump(cx, by, spread.min(LONGEST)),
            Input::Reconfigure(to) => self.or_after(cx, Then::Reconfigure(to)),
            Input::RetryCredentials => self.retry_credentials(cx),
            Input::Response(response) => self.response(cx, response),
            Input::Located { op, result } => self.located(cx, op, result),
            Input::Opened {
                op,
                result,
                retry_in,
            } => self.opened(cx, op, result, retry_in),
            Input::Held(op) => self.held(cx, op),
            Input::Credentials { op, secret } => self.provided(cx, op, secret),
            Input::Guarded { op, allowed } => self.guarded(cx, op, allowed),
            Input::FlowFailed {
                flow,
                error,
                spread,
            } => self.flow_failed(cx, flow, error, spread.min(LONGEST)),
        }
        // A jump of the clock, say, may have aged the lease.
        self.expire(cx);
        self.seldom.tidy();
    }
}
