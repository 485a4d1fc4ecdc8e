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

use super::digest::{Reaction, Role, Rules, ServerProof, parse_challenges};
use super::event::*;
use super::flow_info::{FlowError, FlowInfo, Target};
use super::ids::{FlowId, OpId};
use super::lease::{self, Sent};
use super::message::write::{self, ContactForm, Parts};
use super::transaction::{Due, Transaction};
use super::verdict::{self, GiveUp, Verdict};
use super::{Entropy, Sessions};
use crate::{
    Change, CredentialsQuery, InitialDelay, Redirects, Registration, ResolveError, Response,
    Secret, SecurityNegotiation, SipUri,
};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Requests to one target in a cycle (D3)
const REQUESTS_A_TARGET: u32 = 6;
/// Requests in a cycle (D3)
const REQUESTS_A_CYCLE: u32 = 15;
/// Targets in a cycle (D3)
const TARGETS_A_CYCLE: usize = 8;
/// How long a cycle may go on starting requests (D3)
const CYCLE: Duration = Duration::from_secs(96);
/// Start to start of cycles that no command asked for (D2)
const PACE: Duration = Duration::from_secs(1);
/// A lease lost earlier than this after its grant counts as a failure (D2)
const FLAP: Duration = Duration::from_secs(30);
/// Retries that do not count and are taken at the registrar's word (D11); later ones wait 1, 3, 7 … s at least
const UNCOUNTED: u8 = 3;
/// Retries that do not count never have to wait longer than this
const UNCOUNTED_LEAST: Duration = Duration::from_secs(60);
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
/// No host means more than this by a deadline or a spread, and `Instant` has an end
const LONGEST: Duration = Duration::from_secs(86_400);
/// What opening may take beyond the policy's own timeout
const SLACK: Duration = Duration::from_secs(2);

/// Time, randomness and the way out, for one call
#[derive(Debug)]
pub struct Cx<'a, O> {
    /// Monotonic time; never runs backwards
    pub now: Instant,
    /// Wall-clock time
    pub wall: SystemTime,
    /// Randomness
    pub entropy: &'a mut Entropy,
    /// Where effects go
    pub out: &'a mut Vec<O>,
}

/// What makes a registration the same one after a restart, and its place in the agent
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Identity {
    /// The start of every branch: agent, slot and generation in hexadecimal
    pub branch: Box<str>,
    /// Call-ID; a fresh random one where none
    pub call_id: Option<Box<str>>,
    /// The next CSeq; a random one below 65536 where none
    pub cseq: Option<u32>,
    /// The `line` token; a fresh random one where none and the option is on
    pub line: Option<Box<str>>,
    /// Keys the fingerprints of credentials (D6)
    pub guard_key: [u8; 16],
}

/// What a machine is fed
#[derive(Debug)]
pub enum Input<'a> {
    /// Starts, after the initial delay
    Start,
    /// Un-REGISTERs wherever a binding may live, within this long; [`Output::Done`] follows
    Stop(Duration),
    /// A REGISTER at once
    Refresh,
    /// Un-REGISTER, then REGISTER
    Reregister,
    /// REGISTER without Contact
    Query,
    /// `Contact: *`
    RemoveAll,
    /// Sends nothing until then, or until [`Input::Resume`]; with an un-REGISTER first where asked
    Pause {
        /// When to resume by itself
        until: Option<Instant>,
        /// Whether the binding is removed first
        unregister: bool,
    },
    /// Ends a pause
    Resume,
    /// The deadline came; early and late ones do nothing
    Timeout,
    /// Every flow is made anew; this registration at a random moment within the given time
    NetworkChanged(Duration),
    /// The computer slept for this long
    ClockJump(Duration),
    /// A new configuration
    Reconfigure(Arc<Registration>),
    /// Lets refused credentials be tried again
    RetryCredentials,
    /// A response whose branch is ours
    Response(&'a Response),
    /// The answer to [`Output::Locate`]
    Located {
        /// The question
        op: OpId,
        /// Targets in the order to try them
        result: Result<Vec<Target>, ResolveError>,
    },
    /// The answer to [`Output::Open`]: the flow is up
    Opened {
        /// The question
        op: OpId,
        /// The flow
        result: Result<(FlowId, Arc<FlowInfo>), FlowError>,
    },
    /// The host keeps [`Output::Open`] back, because enough requests are in flight (D16)
    Held(OpId),
    /// The answer to [`Output::Credentials`]
    Credentials {
        /// The question
        op: OpId,
        /// What was found
        secret: Option<Secret>,
    },
    /// The answer to [`Output::Guard`]: whether the credentials may be tried
    Guarded {
        /// The question
        op: OpId,
        /// False where they were refused often enough (D6)
        allowed: bool,
    },
    /// A flow has ended
    FlowFailed {
        /// The flow
        flow: FlowId,
        /// Why
        error: FlowError,
        /// Over how long its users spread (D13)
        spread: Duration,
    },
}

/// What a machine wants; a host that ignores one wedges the registration, so this enum is exhaustive
#[derive(Debug, Clone)]
pub enum Output {
    /// Find the targets for this URI
    Locate {
        /// To be given back
        op: OpId,
        /// The server, or the first route
        uri: SipUri,
    },
    /// Make or find a flow to the target
    Open {
        /// To be given back
        op: OpId,
        /// Where to
        target: Target,
        /// The flow that registered; to be used while it is up
        prefer: Option<FlowId>,
        /// Whether a new flow must be made (a 430 said that the old one is dead)
        fresh: bool,
    },
    /// Ask the credential provider
    Credentials {
        /// To be given back
        op: OpId,
        /// What for
        query: CredentialsQuery,
    },
    /// Ask whether credentials that were never accepted may be tried (D6)
    Guard {
        /// To be given back
        op: OpId,
        /// Keyed hashes of (realm, username), and of the same with the secret
        credential: Vec<Guarded>,
    },
    /// What became of credentials: accepted, refused, or the attempt ended without an answer to that
    Proved {
        /// Those of [`Output::Guard`], or accepted before and refused now
        credential: Vec<Guarded>,
        /// The registrar's word
        accepted: Option<bool>,
    },
    /// Not interested in the answer to this any more
    Cancel(OpId),
    /// Send
    Transmit {
        /// On this flow
        flow: FlowId,
        /// The whole message
        message: Bytes,
    },
    /// Tell the application
    Event(Event),
    /// Stopped, as [`Input::Stop`] asked
    Done(Removal),
}

/// What [`Output::Guard`] asks about
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guarded {
    /// Keyed hash of realm and username
    pub account: u64,
    /// Keyed hash of realm, username and secret
    pub credential: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Register,
    Unregister,
    Query,
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
    /// When the first request went out
    started: Option<Instant>,
    requests: u32,
    at_target: u32,
    targets: Vec<Target>,
    next: usize,
    /// Smallest Retry-After of the targets that answered 503 (D11)
    retry_after: Option<u32>,
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
    /// Credentials that the guard let through in this cycle, not proved yet (D6)
    guarded: Vec<Guarded>,
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
    /// What was reported last, for the event of a cycle that runs out of targets
    failure: Option<(Failure, Option<Box<Exchange>>)>,
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
    granted: Duration,
    flow: Option<FlowId>,
    target: Target,
    confirmed: bool,
}

/// The pure state machine of one registration: no clock, no socket, no task
///
/// Feed it [`Input`]s, carry out its [`Output`]s, and call it with [`Input::Timeout`] when
/// [`deadline`](Self::deadline) has come. Late, early and spurious timeouts are harmless; an answer to an older
/// question is ignored.
#[derive(Debug, Clone)]
pub struct Machine {
    registration: Arc<Registration>,
    identity: Box<Kept>,
    plan: Plan,
    lease: Option<Lease>,
    /// Until when the registrar may hold a binding of ours, answered or not: what is not known to be gone is removed
    may_live: Option<Instant>,
    /// In this order; a command replaces an earlier one of its kind, so that these are few
    then: Vec<Then>,
    /// When a stop stops waiting for the cycle under way
    then_at: Option<Instant>,
    retries: u32,
    flaps: u32,
    /// Retries in a row that did not count
    uncounted: u8,
    last_start: Option<Instant>,
    last_failure: Option<Box<Failure>>,
    reference: ReferenceStatus,
    sessions: Sessions,
    /// Raised by a 423, until reconfigured (D10)
    min_expires: u32,
    /// Contacts that the registrar may still hold beside the lease's, and until when (D18)
    stale: Vec<(Box<str>, Instant)>,
    /// The registrar refuses two Contacts in one REGISTER (D18)
    sole_contact: bool,
    security_server: Vec<Box<str>>,
    ops: u32,
    /// Targets that asked with Retry-After to be left alone, and until when (D11)
    down: Vec<(Target, Instant)>,
}

#[derive(Debug, Clone)]
struct Kept {
    branch: Box<str>,
    call_id: Box<str>,
    cseq: u32,
    line: Option<Box<str>>,
    guard_key: [u8; 16],
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
            branch: identity.branch,
            call_id: identity.call_id.unwrap_or_else(|| entropy.hex(16).into()),
            cseq: identity
                .cseq
                .unwrap_or_else(|| entropy.below(65_536) as u32),
            line,
            guard_key: identity.guard_key,
        };
        Self {
            registration,
            identity: Box::new(kept),
            plan: Plan::Idle,
            lease: None,
            may_live: None,
            then: Vec::new(),
            then_at: None,
            retries: 0,
            flaps: 0,
            uncounted: 0,
            last_start: None,
            last_failure: None,
            reference: ReferenceStatus::Unregistered,
            sessions: Sessions::default(),
            min_expires: 0,
            stale: Vec::new(),
            sole_contact: false,
            security_server: Vec::new(),
            ops: 0,
            down: Vec::new(),
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
                Purpose::Query | Purpose::RemoveAll => Activity::Querying,
            },
        };
        Status {
            lease: self.lease.as_ref().map(|lease| LeaseStatus {
                expires_at: lease.expires_at,
                granted: lease.granted,
                flow: lease.flow,
                target: lease.target.clone(),
                confirmed: lease.confirmed,
            }),
            activity,
            last_failure: self.last_failure.as_deref().cloned(),
            retries: self.retries,
            reference: self.reference,
        }
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
                [step, cycle.limit, self.then_at]
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
        match &self.plan {
            Plan::Cycle(cycle)
                if matches!(
                    cycle.step,
                    Step::Opening { .. }
                        | Step::Asking { .. }
                        | Step::Guarding { .. }
                        | Step::Registering(_)
                ) =>
            {
                cycle.targets.get(cycle.next).map(Target::address)
            }
            _ => None,
        }
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
            Input::RemoveAll => self.or_after(cx, Then::RemoveAll),
            Input::Pause { until, unregister } => {
                self.or_after(cx, Then::Pause { until, unregister })
            }
            Input::Resume => self.resume(cx),
            Input::Timeout => self.timeout(cx),
            Input::NetworkChanged(spread) => self.network_changed(cx, spread.min(LONGEST)),
            Input::ClockJump(by) => self.clock_jump(cx.now, by),
            Input::Reconfigure(to) => self.or_after(cx, Then::Reconfigure(to)),
            Input::RetryCredentials => self.retry_credentials(cx),
            Input::Response(response) => self.response(cx, response),
            Input::Located { op, result } => self.located(cx, op, result),
            Input::Opened { op, result } => self.opened(cx, op, result),
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
    }

    // ---- commands

    fn start(&mut self, cx: &mut Out<'_>) {
        if !matches!(self.plan, Plan::Idle) {
            return;
        }
        let delay = self.initial_delay(cx);
        if delay.is_zero() {
            self.begin(cx, Purpose::Register, true);
        } else {
            cx.out
                .push(Output::Event(Event::Scheduled { first_in: delay }));
            self.plan = Plan::Waiting {
                until: cx.now + delay,
            };
        }
    }

    fn initial_delay(&self, cx: &mut Out<'_>) -> Duration {
        let longest = self.registration.max_random_initial_delay();
        match self.registration.policy().initial_delay {
            InitialDelay::Uniform => cx.entropy.up_to(longest),
            InitialDelay::AtLeastOneSecond => {
                Duration::from_secs(1 + cx.entropy.below(longest.as_secs()))
            }
        }
    }

    /// Does it now, or after the cycle under way: one REGISTER is outstanding at a time.
    fn or_after(&mut self, cx: &mut Out<'_>, then: Then) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            self.do_then(cx, then);
            return self.finish(cx);
        };
        let stopping = self
            .then
            .iter()
            .any(|then| matches!(then, Then::Stop { .. }));
        if stopping && matches!(then, Then::Reconfigure(_)) {
            // The entry stays after a plain stop: it has the new configuration then, and starts nothing.
            self.then
                .retain(|then| !matches!(then, Then::Reconfigure(_)));
            self.then.push(then);
            return;
        }
        if stopping && !matches!(then, Then::Stop { .. }) {
            // A stop is never turned into a registration again (D21).
            return;
        }
        match &then {
            Then::Stop { by } => {
                let by = *by;
                match cycle.purpose {
                    Purpose::Unregister => {
                        cycle.limit = Some(cycle.limit.map_or(by, |earlier| earlier.min(by)));
                    }
                    // A cycle that has sent nothing yet has nothing to wait for.
                    _ if cycle.started.is_none() || !matches!(cycle.step, Step::Registering(_)) => {
                        self.abandon(cx);
                        self.then.clear();
                        return self.do_then(cx, then);
                    }
                    _ => {
                        let half = cx.now + by.saturating_duration_since(cx.now) / 2;
                        self.then_at = Some(self.then_at.map_or(half, |at| at.min(half)));
                    }
                }
                self.then.clear();
            }
            Then::Pause { .. } => self.then.retain(|then| {
                !matches!(
                    then,
                    Then::Refresh | Then::Register | Then::Reregister | Then::Pause { .. }
                )
            }),
            // A later configuration replaces one that was to come with a new identity, too: that one never was.
            Then::Reconfigure(to) => {
                if let Some(Then::Replace(replacement)) = self
                    .then
                    .iter_mut()
                    .find(|then| matches!(then, Then::Replace(_)))
                {
                    *replacement = Arc::clone(to);
                    return;
                }
                self.then
                    .retain(|then| !matches!(then, Then::Reconfigure(_)));
            }
            other => {
                let kind = std::mem::discriminant(other);
                self.then
                    .retain(|then| std::mem::discriminant(then) != kind);
            }
        }
        self.then.push(then);
    }

    /// Un-REGISTERs, and does this when that is over.
    fn unregister_then(&mut self, cx: &mut Out<'_>, within: Duration, then: Then) {
        self.then.insert(0, then);
        self.begin(cx, Purpose::Unregister, true);
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.limit = Some(cx.now + within);
        }
    }

    fn do_then(&mut self, cx: &mut Out<'_>, then: Then) {
        self.then_at = None;
        let timer_f = self.registration.policy().timers.timer_f;
        match then {
            Then::Stop { by } => {
                if self.may_live(cx.now) {
                    let left = by.saturating_duration_since(cx.now);
                    self.unregister_then(cx, left, Then::Stop { by });
                } else {
                    self.plan = Plan::Idle;
                    self.reference = ReferenceStatus::Unregistered;
                    cx.out.push(Output::Done(Removal::NeverBound));
                }
            }
            Then::Refresh => {
                self.retries = 0;
                self.begin(cx, Purpose::Register, true);
            }
            Then::Reregister => {
                self.retries = 0;
                self.min_expires = 0;
                self.security_server.clear();
                if self.may_live(cx.now) {
                    self.unregister_then(cx, timer_f, Then::Register);
                } else {
                    self.register_again(cx);
                }
            }
            Then::Register => self.register_again(cx),
            Then::Query => self.begin(cx, Purpose::Query, true),
            Then::RemoveAll => self.begin(cx, Purpose::RemoveAll, true),
            Then::Pause { until, unregister } => {
                if unregister && self.may_live(cx.now) {
                    let unregister = false;
                    self.unregister_then(cx, timer_f, Then::Pause { until, unregister });
                } else {
                    let resumes_in = until.map(|until| until.saturating_duration_since(cx.now));
                    cx.out.push(Output::Event(Event::Paused { resumes_in }));
                    self.plan = Plan::Paused { until };
                }
            }
            Then::Reconfigure(to) => self.reconfigure(cx, to),
            Then::Replace(to) => self.replace(cx, to),
        }
    }

    fn reconfigure(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        let change = self.registration.change_to(&to);
        let credentials = self.registration.outbound_auth() != to.outbound_auth();
        let refused = self.credentials_refused();
        let revives = match self.plan {
            Plan::Idle => self.last_failure.is_some(),
            // A changed credential revives at once (D6).
            Plan::Waiting { .. } => credentials && refused,
            _ => false,
        };
        // A pause goes on, whatever changes.
        let paused = match self.plan {
            Plan::Paused { until } => Some(until),
            _ => None,
        };
        match change {
            Change::Untouched => {}
            Change::InPlace => {
                self.registration = to;
                self.reset(credentials);
                if revives {
                    self.begin(cx, Purpose::Register, true);
                }
            }
            Change::Registers => {
                self.registration = to;
                self.reset(credentials);
                if paused.is_none() {
                    self.begin(cx, Purpose::Register, true);
                }
            }
            Change::Replaces => {
                if let Some(until) = paused {
                    let unregister = false;
                    self.then.insert(0, Then::Pause { until, unregister });
                }
                if self.may_live(cx.now) {
                    let timer_f = self.registration.policy().timers.timer_f;
                    self.unregister_then(cx, timer_f, Then::Replace(to));
                } else {
                    self.replace(cx, to);
                }
            }
        }
    }

    /// What a changed configuration makes void.
    fn reset(&mut self, credentials: bool) {
        self.retries = 0;
        self.min_expires = 0;
        self.sole_contact = false;
        if credentials {
            self.sessions.forget();
        }
    }

    fn replace(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        let identity = Identity {
            branch: self.identity.branch.clone(),
            guard_key: self.identity.guard_key,
            ..Identity::default()
        };
        *self = Self {
            ops: self.ops,
            then: std::mem::take(&mut self.then),
            last_start: self.last_start,
            ..Self::new(to, identity, cx.entropy)
        };
        if !matches!(self.then.first(), Some(Then::Pause { .. })) {
            self.register_again(cx);
        }
    }

    /// Takes a configuration over without starting anything.
    fn adopt(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        if self.registration.change_to(&to) == Change::Replaces {
            let identity = Identity {
                branch: self.identity.branch.clone(),
                guard_key: self.identity.guard_key,
                ..Identity::default()
            };
            let (ops, last_start) = (self.ops, self.last_start);
            *self = Self {
                ops,
                last_start,
                ..Self::new(to, identity, cx.entropy)
            };
        } else {
            let credentials = self.registration.outbound_auth() != to.outbound_auth();
            self.registration = to;
            self.reset(credentials);
        }
    }

    /// The REGISTER after an un-REGISTER: at once, or with the reference's delay.
    fn register_again(&mut self, cx: &mut Out<'_>) {
        if self.registration.policy().initial_delay == InitialDelay::AtLeastOneSecond {
            self.plan = Plan::Idle;
            self.start(cx);
        } else {
            self.begin(cx, Purpose::Register, true);
        }
    }

    fn resume(&mut self, cx: &mut Out<'_>) {
        let waiting = self.then.len();
        self.then.retain(|then| !matches!(then, Then::Pause { .. }));
        if self.then.is_empty()
            && waiting > 0
            && matches!(&self.plan, Plan::Cycle(cycle) if cycle.purpose == Purpose::Unregister)
        {
            self.then.push(Then::Register);
        }
        match &mut self.plan {
            Plan::Paused { .. } => self.begin(cx, Purpose::Register, true),
            // A query that was asked for in the pause ends first.
            Plan::Cycle(cycle) if matches!(cycle.before, Plan::Paused { .. }) => {
                cycle.before = Plan::Waiting { until: cx.now };
            }
            _ => {}
        }
    }

    fn retry_credentials(&mut self, cx: &mut Out<'_>) {
        if self.credentials_refused() && matches!(self.plan, Plan::Cycle(_)) {
            return self.or_after(cx, Then::Refresh);
        }
        if self.credentials_refused() && matches!(self.plan, Plan::Idle | Plan::Waiting { .. }) {
            // Not which realms were answered with SHA-2: that holds until reconfigured (D5).
            self.sessions.clear_for_retry();
            self.retries = 0;
            self.begin(cx, Purpose::Register, true);
        }
    }

    fn credentials_refused(&self) -> bool {
        matches!(
            self.last_failure.as_deref(),
            Some(Failure::CredentialsRefused { .. } | Failure::Unanswerable { .. })
        )
    }

    // ---- surroundings

    fn timeout(&mut self, cx: &mut Out<'_>) {
        let timers = self.registration.policy().timers.clone();
        match &mut self.plan {
            Plan::Idle | Plan::Paused { until: None } => {}
            Plan::Waiting { until } => {
                if cx.now >= *until {
                    self.begin(cx, Purpose::Register, false);
                }
            }
            Plan::Paused { until: Some(until) } => {
                if cx.now >= *until {
                    self.begin(cx, Purpose::Register, false);
                }
            }
            Plan::Cycle(cycle) => {
                if cycle.limit.is_some_and(|limit| cx.now >= limit) {
                    return self.fail(cx, Failure::Timeout, None, None);
                }
                if self.then_at.is_some_and(|at| cx.now >= at) {
                    // Half of the time is gone; the un-REGISTER gets the other half.
                    self.then_at = None;
                    self.abandon(cx);
                    return self.finish(cx);
                }
                match &mut cycle.step {
                    Step::Locating { op, until } if cx.now >= *until => {
                        cx.out.push(Output::Cancel(*op));
                        self.unlocated(cx, ResolveError::Timeout);
                    }
                    Step::Opening { op, until } if cx.now >= *until => {
                        cx.out.push(Output::Cancel(*op));
                        let error = FlowError::ConnectTimeout(timers.connect_timeout);
                        self.next_target(cx, Failure::Flow(error), None);
                    }
                    Step::Held { until, .. } if cx.now >= *until => self.open(cx),
                    Step::Asking { op, until, .. } if cx.now >= *until => {
                        let op = *op;
                        cx.out.push(Output::Cancel(op));
                        self.provided(cx, op, None);
                    }
                    Step::Guarding { op, until } if cx.now >= *until => {
                        cx.out.push(Output::Cancel(*op));
                        self.fail(cx, Failure::Budget, None, None);
                    }
                    Step::Registering(transaction) => match transaction.due(&timers, cx.now) {
                        Due::Nothing => {}
                        Due::Resend => {
                            let message = transaction.message.clone();
                            if let Some((flow, _)) = &cycle.flow {
                                cx.out.push(Output::Transmit {
                                    flow: *flow,
                                    message,
                                });
                            }
                        }
                        Due::TimedOut if transaction.answered => {
                            let exchange = self.exchange(None);
                            self.fail(cx, Failure::Timeout, None, exchange);
                        }
                        Due::TimedOut => {
                            let exchange = self.exchange(None);
                            self.next_target(cx, Failure::Timeout, exchange);
                        }
                    },
                    _ => {}
                }
            }
        }
    }

    fn expire(&mut self, cx: &mut Out<'_>) {
        if self.may_live.is_some_and(|until| cx.now >= until) {
            self.may_live = None;
        }
        if !self.stale.is_empty() {
            self.stale.retain(|(_, until)| cx.now < *until);
        }
        if self
            .lease
            .as_ref()
            .is_some_and(|lease| cx.now >= lease.expires_at)
        {
            self.lease = None;
            let next_in = match &self.plan {
                Plan::Waiting { until } => Some(until.saturating_duration_since(cx.now)),
                Plan::Cycle(cycle) if cycle.purpose == Purpose::Register => Some(Duration::ZERO),
                Plan::Cycle(cycle) => match &cycle.before {
                    Plan::Waiting { until } => Some(until.saturating_duration_since(cx.now)),
                    _ => None,
                },
                _ => None,
            };
            cx.out.push(Output::Event(Event::Expired { next_in }));
        }
    }

    fn network_changed(&mut self, cx: &mut Out<'_>, spread: Duration) {
        if let Some(lease) = &mut self.lease {
            lease.flow = None;
        }
        let until = cx.now + cx.entropy.up_to(spread);
        match &mut self.plan {
            Plan::Idle | Plan::Paused { .. } => {}
            Plan::Waiting { .. } => self.plan = Plan::Waiting { until },
            Plan::Cycle(cycle) => match cycle.purpose {
                Purpose::Register => {
                    self.abandon(cx);
                    self.plan = Plan::Waiting { until };
                    self.finish(cx);
                }
                // Over a fresh flow, with what is left of its time.
                Purpose::Unregister | Purpose::Query | Purpose::RemoveAll => {
                    if let Plan::Waiting { until: next } = &mut cycle.before {
                        *next = until;
                    }
                    self.relocate(cx);
                }
            },
        }
    }

    fn clock_jump(&mut self, now: Instant, by: Duration) {
        // A jump beyond what `Instant` can say ends whatever there is.
        let back = |at: &mut Instant| *at = at.checked_sub(by).unwrap_or(now);
        if let Some(lease) = &mut self.lease {
            back(&mut lease.expires_at);
        }
        if let Some(until) = &mut self.may_live {
            back(until);
        }
        match &mut self.plan {
            Plan::Waiting { until } | Plan::Paused { until: Some(until) } => back(until),
            Plan::Idle | Plan::Paused { until: None } => {}
            Plan::Cycle(cycle) => {
                if let Plan::Waiting { until } | Plan::Paused { until: Some(until) } =
                    &mut cycle.before
                {
                    back(until);
                }
            }
        }
    }

    fn flow_failed(&mut self, cx: &mut Out<'_>, flow: FlowId, error: FlowError, spread: Duration) {
        let was_ours = self
            .lease
            .as_mut()
            .filter(|lease| lease.flow == Some(flow))
            .map(|lease| {
                lease.flow = None;
                cx.now.saturating_duration_since(lease.at)
            });
        let next_in = was_ours.map(|held_for| {
            if held_for < FLAP {
                // 1, 2, 4 … 60 s, between half and all of it (D2).
                let longest =
                    Duration::from_secs(1 << self.flaps.min(6)).min(Duration::from_secs(60));
                self.flaps = self.flaps.saturating_add(1);
                longest.mul_f64(cx.entropy.between(0.5, 1.0)).max(PACE)
            } else {
                self.flaps = 0;
                cx.entropy.up_to(spread)
            }
        });
        // A retry that waits keeps its time: the last answer said when.
        let refused = self.last_failure.is_some();
        let sooner = |until: &mut Instant| {
            if let Some(next_in) = next_in.filter(|_| !refused) {
                *until = (*until).min(cx.now + next_in);
            }
            until.saturating_duration_since(cx.now)
        };
        match &mut self.plan {
            Plan::Cycle(cycle) => {
                if let Plan::Waiting { until } = &mut cycle.before {
                    sooner(until);
                }
                if cycle.flow.as_ref().is_none_or(|(used, _)| *used != flow) {
                    return;
                }
                // A kept-alive connection that died under our request says nothing of the target: one fresh try.
                if was_ours.is_some() && !cycle.fresh_flow {
                    self.cancel_step(cx);
                    if let Plan::Cycle(cycle) = &mut self.plan {
                        cycle.fresh_flow = true;
                    }
                    return self.open(cx);
                }
                let exchange = self.exchange(None);
                self.next_target(cx, Failure::Flow(error), exchange);
            }
            Plan::Waiting { until } if was_ours.is_some() => {
                let next_in = sooner(until);
                cx.out.push(Output::Event(Event::FlowLost {
                    flow,
                    error,
                    next_in,
                }));
            }
            Plan::Idle | Plan::Waiting { .. } | Plan::Paused { .. } => {}
        }
    }

    // ---- a cycle, step by step

    fn begin(&mut self, cx: &mut Out<'_>, purpose: Purpose, commanded: bool) {
        if !commanded
            && let Some(earliest) = self
                .last_start
                .map(|last| last + PACE)
                .filter(|at| *at > cx.now)
        {
            self.plan = Plan::Waiting { until: earliest };
            return;
        }
        self.last_start = Some(cx.now);
        self.sessions.begin_cycle();
        let before = std::mem::replace(&mut self.plan, Plan::Idle);
        self.plan = Plan::Cycle(Box::new(Cycle {
            purpose,
            started: None,
            requests: 0,
            at_target: 0,
            targets: Vec::new(),
            next: 0,
            retry_after: None,
            from_tag: cx.entropy.hex(8).into(),
            step: Step::Between,
            flow: None,
            contact_uri: "".into(),
            replaces: false,
            path: true,
            outbound: true,
            authenticated: false,
            security_resent: false,
            security_only_verify: false,
            tokens_dropped: false,
            fresh_flow: false,
            guarded: Vec::new(),
            gruu: true,
            redirects: 0,
            limit: None,
            before,
            lived: None,
            code: None,
            failure: None,
        }));
        self.relocate(cx);
    }

    fn relocate(&mut self, cx: &mut Out<'_>) {
        self.cancel_step(cx);
        let op = self.op();
        let uri = self
            .registration
            .first_route()
            .unwrap_or_else(|| self.registration.server_uri())
            .clone();
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.flow = None;
            cycle.fresh_flow = false;
            cycle.step = Step::Locating {
                op,
                until: cx.now + LOCATING,
            };
            cx.out.push(Output::Locate { op, uri });
        }
    }

    fn op(&mut self) -> OpId {
        self.ops = self.ops.wrapping_add(1);
        OpId(self.ops)
    }

    fn located(&mut self, cx: &mut Out<'_>, op: OpId, result: Result<Vec<Target>, ResolveError>) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if !matches!(cycle.step, Step::Locating { op: asked, .. } if asked == op) {
            return;
        }
        match result {
            Ok(mut targets) if !targets.is_empty() => {
                let bound = self.lease.as_ref().map(|lease| &lease.target);
                if self.registration.policy().sticky_target
                    && let Some(place) = targets.iter().position(|target| Some(target) == bound)
                {
                    targets[..=place].rotate_right(1);
                }
                // A name that lists an address twice has one target there.
                let mut seen = Vec::with_capacity(targets.len());
                targets.retain(|target| {
                    let new = !seen.contains(&target.address());
                    seen.push(target.address());
                    new
                });
                self.down.retain(|(_, until)| cx.now < *until);
                targets.sort_by_key(|target| self.down.iter().any(|(down, _)| down == target));
                targets.truncate(TARGETS_A_CYCLE);
                cycle.targets = targets;
                cycle.next = 0;
                // A redirect, to this very target perhaps, gives no new budget (D3).
                if cycle.redirects == 0 {
                    cycle.at_target = 0;
                }
                self.open(cx);
            }
            Ok(_) => self.unlocated(
                cx,
                ResolveError::NoAddress(self.registration.server_uri().host().into()),
            ),
            Err(error) => self.unlocated(cx, error),
        }
    }

    /// No address: a live lease goes on at the target that granted it.
    fn unlocated(&mut self, cx: &mut Out<'_>, error: ResolveError) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if let Some(lease) = &self.lease {
            cycle.targets = vec![lease.target.clone()];
            cycle.next = 0;
            cycle.at_target = 0;
            self.open(cx);
        } else {
            self.fail(cx, Failure::Resolve(error), None, None);
        }
    }

    /// Asks for a flow to the target at hand.
    fn open(&mut self, cx: &mut Out<'_>) {
        let op = self.op();
        let timeout = self.registration.policy().timers.connect_timeout + SLACK;
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Some(target) = cycle.targets.get(cycle.next).cloned() else {
            let (failure, exchange) = cycle.failure.take().unwrap_or((Failure::Budget, None));
            let retry_after = cycle.retry_after;
            return self.fail(cx, failure, retry_after, exchange);
        };
        let prefer = self
            .lease
            .as_ref()
            .filter(|lease| lease.target == target)
            .and_then(|lease| lease.flow);
        cycle.flow = None;
        cycle.step = Step::Opening {
            op,
            until: cx.now + timeout,
        };
        cx.out.push(Output::Open {
            op,
            target,
            prefer,
            fresh: cycle.fresh_flow,
        });
    }

    fn held(&mut self, cx: &mut Out<'_>, op: OpId) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if matches!(cycle.step, Step::Opening { op: asked, .. } if asked == op) {
            cycle.step = Step::Held {
                op,
                until: cx.now + HELD,
            };
        }
    }

    fn opened(
        &mut self,
        cx: &mut Out<'_>,
        op: OpId,
        result: Result<(FlowId, Arc<FlowInfo>), FlowError>,
    ) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if !matches!(cycle.step, Step::Opening { op: asked, .. } | Step::Held { op: asked, .. } if asked == op)
        {
            return;
        }
        match result {
            Ok((flow, info)) => {
                let unregisters = cycle.purpose == Purpose::Unregister;
                // What is removed is what was bound, whatever this flow would be bound as.
                let bound = self.lease.as_ref().map(|lease| &lease.contact);
                let bound = bound.or_else(|| self.stale.last().map(|(contact, _)| contact));
                cycle.contact_uri = bound.filter(|_| unregisters).cloned().unwrap_or_else(|| {
                    let line = self.identity.line.as_deref();
                    write::contact_uri(&self.registration, &info, line).into()
                });
                cycle.flow = Some((flow, info));
                // An answer that waited for the guard, or went to another target, has to pass the guard here too (D6).
                if cycle.authenticated {
                    self.answer(cx);
                } else {
                    self.send(cx);
                }
            }
            Err(error) => self.next_target(cx, Failure::Flow(error), None),
        }
    }

    /// Another target of the same answer, in the same cycle (RFC 3263 §4.3); none left: the cycle has failed.
    fn next_target(&mut self, cx: &mut Out<'_>, failure: Failure, exchange: Option<Box<Exchange>>) {
        // Nobody said whether the credentials were right: for another target they have to pass the guard again.
        self.prove(cx, None);
        self.cancel_step(cx);
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        cycle.failure = Some((failure, exchange));
        cycle.next += 1;
        cycle.at_target = 0;
        cycle.fresh_flow = false;
        self.open(cx);
    }

    /// Sends a request at the target at hand, within the budget.
    fn send(&mut self, cx: &mut Out<'_>) {
        let policy = Arc::clone(self.registration.policy());
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let over = cycle.requests >= REQUESTS_A_CYCLE
            || cycle.at_target >= REQUESTS_A_TARGET
            || cycle
                .started
                .is_some_and(|started| cx.now >= started + CYCLE);
        if over {
            return self.fail(cx, Failure::Budget, None, None);
        }
        let Some((flow, info)) = cycle.flow.clone() else {
            return;
        };
        cycle.requests += 1;
        cycle.at_target += 1;
        cycle.started.get_or_insert(cx.now);
        self.identity.cseq = if self.identity.cseq >= i32::MAX as u32 {
            1
        } else {
            self.identity.cseq + 1
        };
        let branch = format!("z9hG4bK{}{}", self.identity.branch, cx.entropy.hex(8));
        let contact = match cycle.purpose {
            Purpose::Register => {
                ContactForm::Ours(self.registration.expiration().max(self.min_expires))
            }
            Purpose::Unregister => ContactForm::Ours(0),
            Purpose::Query => ContactForm::None,
            Purpose::RemoveAll => ContactForm::Star,
        };
        let (uri, _) = write::request_line(&self.registration);
        let mut authorization = String::new();
        self.sessions
            .authorize(&uri, cx.entropy, policy.auth.preemptive, &mut authorization);
        let rejected = self.reference == ReferenceStatus::Rejected;
        let security = security_lines(&self.registration, &self.security_server, cycle, rejected);
        cycle.security_only_verify = false;
        let old = match contact {
            ContactForm::Ours(_) if !self.sole_contact => old_contacts(
                &self.registration,
                self.lease.as_ref(),
                &self.stale,
                &cycle.contact_uri,
            ),
            _ => Vec::new(),
        };
        cycle.replaces = !old.is_empty();
        let message = write::register(&Parts {
            registration: &self.registration,
            info: &info,
            branch: &branch,
            from_tag: &cycle.from_tag,
            call_id: &self.identity.call_id,
            cseq: self.identity.cseq,
            contact,
            contact_uri: &cycle.contact_uri,
            old_contacts: &old,
            path: cycle.path,
            outbound: cycle.outbound,
            gruu: cycle.gruu,
            security: &security,
            authorization: &authorization,
        });
        let reliable = info.protocol().is_reliable();
        if !reliable && message.len() > 1300 && cycle.requests == 1 {
            cx.out.push(Output::Event(Event::Warning(Warning::Oversize(
                message.len(),
            ))));
        }
        cycle.lived = self.may_live;
        if let ContactForm::Ours(1..) = contact {
            let asked = self
                .registration
                .expiration()
                .max(self.min_expires)
                .min(lease::LONGEST);
            let until = cx.now + Duration::from_secs(u64::from(asked)) + policy.timers.timer_f;
            self.may_live = Some(self.may_live.map_or(until, |earlier| earlier.max(until)));
            // Until it is answered, the registrar may or may not have bound this Contact.
            let uri = &cycle.contact_uri;
            let leased = self
                .lease
                .as_ref()
                .is_some_and(|lease| lease.contact == *uri);
            self.stale.retain(|(contact, _)| contact != uri);
            if !leased {
                if self.stale.len() >= STALE {
                    self.stale.remove(0);
                }
                self.stale.push((uri.clone(), until));
            }
        }
        cycle.step = Step::Registering(Transaction::new(
            &policy.timers,
            reliable,
            branch.into(),
            message.clone(),
            cx.now,
        ));
        cx.out.push(Output::Transmit { flow, message });
    }

    // ---- answers

    fn response(&mut self, cx: &mut Out<'_>, response: &Response) {
        let timers = self.registration.policy().timers.clone();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Step::Registering(transaction) = &mut cycle.step else {
            return;
        };
        let Some((_, info)) = &cycle.flow else { return };
        // RFC 3261 §17.1.3: branch and CSeq method; §8.1.3.3 and §18.1.2: one Via, our sent-by (D25).
        let Some(via) = response.via() else { return };
        let matches = via.branch.as_deref() == Some(&*transaction.branch)
            && response.via_count() == 1
            && response
                .cseq()
                .is_some_and(|(_, method)| method == "REGISTER")
            && sent_by_is_ours(&via.host, via.port, info);
        if !matches {
            return;
        }
        if response.code() < 200 {
            return transaction.provisional(&timers, cx.now);
        }
        let sent_at = transaction.sent_at;
        let exchange = self.exchange(Some(response));
        self.finale(cx, response, sent_at, exchange);
    }

    fn finale(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        sent_at: Instant,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let code = response.code();
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.code = Some(code);
            // This request made no binding, earlier ones may have; 408 and 504 of a proxy say nothing of the registrar.
            if code >= 300 && !matches!(code, 408 | 504) {
                self.may_live = cycle.lived;
                if cycle.purpose == Purpose::Register && cycle.lived.is_none() {
                    self.stale.clear();
                }
            }
        }
        if matches!(code, 401 | 407 | 494) {
            self.store_security(response);
        }
        let failure = Failure::Rejected {
            code,
            reason: plain(&response.reason()),
        };
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let registers = cycle.purpose == Purpose::Register;
        match code {
            // D18: some registrars refuse two Contacts; this one is remembered.
            400 | 403 | 413 | 500 if cycle.replaces => {
                self.sole_contact = true;
                self.sessions.begin_request();
                self.send(cx);
            }
            200..=299 => self.success(cx, response, sent_at, exchange),
            401 | 407 => self.challenged(cx, response, exchange),
            423 if registers => {
                let asked = self.registration.expiration().max(self.min_expires);
                match response.delta_seconds("Min-Expires") {
                    Some(least) if least > asked && least <= lease::LONGEST => {
                        self.min_expires = least;
                        self.sessions.begin_request();
                        self.send(cx);
                    }
                    _ => self.fail(cx, failure, response.retry_after(), exchange),
                }
            }
            494 if self.registration.security_negotiation() == SecurityNegotiation::Mediasec
                && !cycle.security_resent =>
            {
                cycle.security_resent = true;
                cycle.security_only_verify = true;
                self.sessions.clear_for_retry();
                self.send(cx);
            }
            420 if policy.drop_refused_tokens && !cycle.tokens_dropped => {
                let refused = response.option_tags("Unsupported");
                let says = |token: &str| refused.iter().any(|tag| tag.eq_ignore_ascii_case(token));
                let gruu = says("gruu")
                    && cycle.gruu
                    && self
                        .registration
                        .supported()
                        .iter()
                        .any(|tag| tag.eq_ignore_ascii_case("gruu"));
                let path = says("path") && cycle.path && self.registration.support_path();
                let outbound =
                    says("outbound") && cycle.outbound && self.registration.support_outbound();
                cycle.tokens_dropped = true;
                cycle.path &= !path;
                cycle.outbound &= !outbound;
                cycle.gruu &= !gruu;
                if path || outbound || gruu {
                    self.send(cx);
                } else {
                    self.fail(cx, failure, response.retry_after(), exchange);
                }
            }
            430 if policy.resend_without_outbound && !cycle.fresh_flow => {
                cycle.fresh_flow = true;
                self.open(cx);
            }
            439 if policy.resend_without_outbound
                && cycle.outbound
                && self.registration.support_outbound() =>
            {
                cycle.outbound = false;
                self.send(cx);
            }
            300..=399 => self.redirect(cx, response, failure, exchange),
            408 | 503 => {
                let seconds = response.retry_after();
                if let Some(seconds) = seconds {
                    cycle.retry_after = Some(
                        cycle
                            .retry_after
                            .map_or(seconds, |least| least.min(seconds)),
                    );
                    let asked = Duration::from_secs(u64::from(seconds));
                    let until = cx.now + asked.min(policy.retry.retry_after_max);
                    if let Some(target) = cycle.targets.get(cycle.next).cloned() {
                        self.down.retain(|(down, _)| *down != target);
                        self.down.truncate(TARGETS_A_CYCLE);
                        self.down.insert(0, (target, until));
                    }
                }
                self.next_target(cx, failure, exchange);
            }
            _ => {
                let retry_after = response.retry_after();
                let at_once = retry_after == Some(0) && policy.retry.retry_after_zero;
                if at_once && cycle.next + 1 < cycle.targets.len() {
                    self.next_target(cx, failure, exchange);
                } else {
                    self.fail(cx, failure, retry_after, exchange);
                }
            }
        }
    }

    fn redirect(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        failure: Failure,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let op = self.op();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let to = response
            .contacts()
            .find_map(|contact| SipUri::parse(contact.uri()).ok());
        match (policy.redirects, to) {
            (Redirects::Follow { max }, Some(uri)) if cycle.redirects < max => {
                cycle.redirects += 1;
                cycle.flow = None;
                // Another server: what was answered to this one is not shown to it.
                self.sessions.clear_for_retry();
                cycle.step = Step::Locating {
                    op,
                    until: cx.now + LOCATING,
                };
                cx.out.push(Output::Locate { op, uri });
            }
            _ => self.fail(cx, failure, response.retry_after(), exchange),
        }
    }

    fn challenged(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let (role, header) = match response.code() {
            407 => (Role::Proxy, "Proxy-Authenticate"),
            _ => (Role::Origin, "WWW-Authenticate"),
        };
        let mut challenges = Vec::new();
        for value in response.headers(header) {
            parse_challenges(&value, &mut challenges);
        }
        let rules = Rules {
            algorithms: &policy.auth.algorithms,
            reject_md5: policy.auth.reject_md5,
            sess: true,
            auth_int: true,
            downgrade_refuse: policy.auth.refuse_downgrade,
            ..Rules::default()
        };
        let reaction =
            self.sessions
                .challenged(role, &challenges, self.registration.outbound_auth(), &rules);
        self.react(cx, role, reaction, response.retry_after(), exchange);
    }

    fn react(
        &mut self,
        cx: &mut Out<'_>,
        role: Role,
        reaction: Reaction,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
    ) {
        match reaction {
            Reaction::Answer { weak_first } => {
                if weak_first {
                    let realm = self
                        .sessions
                        .due()
                        .next()
                        .map(|due| due.realm.into())
                        .unwrap_or_default();
                    cx.out
                        .push(Output::Event(Event::Warning(Warning::WeakAlgorithm(realm))));
                }
                self.answer(cx);
            }
            Reaction::Ask(asked) => {
                let query = CredentialsQuery::new(asked.realm, asked.username, &asked.algorithms);
                let op = self.op();
                let Plan::Cycle(cycle) = &mut self.plan else {
                    return;
                };
                cycle.step = Step::Asking {
                    op,
                    until: cx.now + ASKING,
                    role,
                    query: query.clone(),
                };
                cx.out.push(Output::Credentials { op, query });
            }
            Reaction::Refused(refusal) => {
                let realm = refusal.realm;
                let key = &self.identity.guard_key;
                let refused = Guarded {
                    account: account(key, &realm, refusal.resolved.credentials().username()),
                    credential: refusal.resolved.fingerprint(key, &realm),
                };
                if let Plan::Cycle(cycle) = &mut self.plan {
                    cycle.guarded.retain(|guarded| *guarded != refused);
                }
                // Credentials that were good before, refused now: they count too.
                cx.out.push(Output::Proved {
                    credential: vec![refused],
                    accepted: Some(false),
                });
                self.fail(
                    cx,
                    Failure::CredentialsRefused {
                        realm: realm.into(),
                    },
                    retry_after,
                    exchange,
                );
            }
            Reaction::StaleLimit { .. } => self.fail(cx, Failure::Budget, retry_after, exchange),
            Reaction::Unanswerable(why) => {
                let why = why.to_string().into();
                self.fail(cx, Failure::Unanswerable { why }, retry_after, exchange);
            }
        }
    }

    /// Answers a challenge, once the guard lets unproved credentials through (D6).
    fn answer(&mut self, cx: &mut Out<'_>) {
        let guard_account = self.registration.policy().auth.guard_account;
        let key = &self.identity.guard_key;
        let passed = match &self.plan {
            Plan::Cycle(cycle) => &cycle.guarded[..],
            _ => &[],
        };
        // A proxy's credentials let through say nothing of the registrar's.
        let unproved: Vec<Guarded> = self
            .sessions
            .due()
            .filter(|due| !due.accepted_before)
            .map(|due| Guarded {
                account: account(key, due.realm, due.username()),
                credential: due.fingerprint(key),
            })
            .filter(|due| !passed.contains(due))
            .collect();
        let op = self.op();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        cycle.authenticated = true;
        if guard_account && !unproved.is_empty() {
            cycle.step = Step::Guarding {
                op,
                until: cx.now + GUARDED,
            };
            cx.out.push(Output::Guard {
                op,
                credential: unproved,
            });
        } else {
            self.send(cx);
        }
    }

    fn guarded(&mut self, cx: &mut Out<'_>, op: OpId, allowed: bool) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if !matches!(cycle.step, Step::Guarding { op: asked, .. } if asked == op) {
            return;
        }
        if allowed {
            let passed = self.guarded_due();
            if let Plan::Cycle(cycle) = &mut self.plan {
                cycle.guarded = passed;
            }
            self.send(cx);
        } else {
            let realm = self
                .sessions
                .due()
                .next()
                .map(|due| due.realm.into())
                .unwrap_or_default();
            self.blocked(cx, realm);
        }
    }

    /// All that is on its way with the next request and was not accepted so far.
    fn guarded_due(&self) -> Vec<Guarded> {
        let key = &self.identity.guard_key;
        let passed = match &self.plan {
            Plan::Cycle(cycle) => cycle.guarded.clone(),
            _ => Vec::new(),
        };
        let due = self.sessions.due().filter(|due| !due.accepted_before);
        let due = due.map(|due| Guarded {
            account: account(key, due.realm, due.username()),
            credential: due.fingerprint(key),
        });
        let new: Vec<_> = due.filter(|due| !passed.contains(due)).collect();
        passed.into_iter().chain(new).collect()
    }

    /// The guard knows these credentials as refused: no interval applies, only changed ones go on (D6).
    fn blocked(&mut self, cx: &mut Out<'_>, realm: Box<str>) {
        self.end(cx, Failure::CredentialsRefused { realm }, None, None, true);
    }

    /// Tells what became of the guarded credentials of this cycle.
    fn prove(&mut self, cx: &mut Out<'_>, accepted: Option<bool>) {
        if let Plan::Cycle(cycle) = &mut self.plan
            && !cycle.guarded.is_empty()
        {
            cx.out.push(Output::Proved {
                credential: std::mem::take(&mut cycle.guarded),
                accepted,
            });
        }
    }

    fn provided(&mut self, cx: &mut Out<'_>, op: OpId, secret: Option<Secret>) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Step::Asking {
            op: asked,
            role,
            query,
            ..
        } = &cycle.step
        else {
            return;
        };
        if *asked != op {
            return;
        }
        let (role, query) = (*role, query.clone());
        let reaction = self.sessions.provide(role, &query.realm, secret);
        self.react(cx, role, reaction, None, None);
    }

    fn success(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        sent_at: Instant,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let uri = write::request_line(&self.registration).0.into_owned();
        self.sessions.accepted();
        for (role, header) in [
            (Role::Origin, "Authentication-Info"),
            (Role::Proxy, "Proxy-Authentication-Info"),
        ] {
            for value in response.headers(header) {
                if self.sessions.authentication_info(role, &value, &uri, b"") == ServerProof::Wrong
                {
                    cx.out.push(Output::Event(Event::Warning(
                        Warning::ServerNotAuthenticated,
                    )));
                }
            }
        }
        self.prove(cx, Some(true));
        let Plan::Cycle(cycle) = &self.plan else {
            return;
        };
        let params = contact_params(
            self.registration
                .contact_header_params()
                .unwrap_or_default(),
        );
        let sent = Sent {
            uri: &cycle.contact_uri,
            line: self.identity.line.as_deref(),
            instance: params.0.as_deref(),
            reg_id: params.1.as_deref(),
        };
        match cycle.purpose {
            Purpose::Register => {
                let requested = self.registration.expiration().max(self.min_expires);
                let grant = lease::grant(response, sent, requested);
                let failure = if grant.seconds == 0 {
                    Some(Failure::NotGranted)
                } else if !grant.confirmed && policy.require_own_contact {
                    Some(Failure::NotListed)
                } else {
                    None
                };
                for warning in grant.warnings {
                    cx.out.push(Output::Event(Event::Warning(warning)));
                }
                if let Some(failure) = failure {
                    let zero = failure == Failure::NotGranted;
                    if zero {
                        self.lease = None;
                        self.may_live = None;
                    }
                    self.fail(cx, failure, None, exchange);
                    if zero {
                        self.reference = ReferenceStatus::Unregistered;
                    }
                    return;
                }
                let Some((flow, _)) = cycle.flow.clone() else {
                    return;
                };
                let Some(target) = cycle.targets.get(cycle.next).cloned() else {
                    return;
                };
                let granted = Duration::from_secs(u64::from(grant.seconds));
                let mut after = policy.refresh.refresh_after(granted);
                let early = after.mul_f64(cx.entropy.between(0.0, policy.refresh.jitter));
                after -= early.min(policy.refresh.jitter_max).min(after);
                let until = (sent_at + after).max(cx.now);
                let texts = |name: &str| {
                    response
                        .values(name)
                        .map(|value| value.into_owned())
                        .collect::<Box<[String]>>()
                };
                let registered = Registered {
                    refresh_in: until.saturating_duration_since(cx.now),
                    contact: cycle.contact_uri.clone(),
                    confirmed: grant.confirmed,
                    algorithm: self.sessions.algorithm_used(),
                    service_route: texts("Service-Route"),
                    path: texts("Path"),
                    associated_uris: texts("P-Associated-URI"),
                    security_server: texts("Security-Server"),
                    public_gruu: grant.public_gruu,
                    temporary_gruu: grant.temporary_gruu,
                    other_bindings: grant.others,
                    exchange: exchange.map(|exchange| *exchange).unwrap_or_default(),
                    ..Registered::new(granted, flow, target.clone())
                };
                let refreshed = self.lease.is_some();
                // A lease that held, on its flow, resets the pace of those that did not (D2).
                if self.lease.as_ref().is_some_and(|lease| {
                    lease.flow.is_some() && cx.now.saturating_duration_since(lease.at) >= FLAP
                }) {
                    self.flaps = 0;
                }
                let expires_at = sent_at + granted;
                let contact = cycle.contact_uri.clone();
                let replaced = cycle.replaces;
                if let Some(before) = self.lease.take().filter(|lease| lease.contact != contact) {
                    self.stale.push((before.contact, before.expires_at));
                }
                self.stale.retain(|(uri, _)| *uri != contact && !replaced);
                if self.stale.is_empty() {
                    // Idle registrations are many: an empty list keeps no memory.
                    self.stale = Vec::new();
                }
                self.lease = Some(Lease {
                    contact,
                    at: cx.now,
                    expires_at,
                    granted,
                    flow: Some(flow),
                    target,
                    confirmed: grant.confirmed,
                });
                self.may_live = Some(expires_at);
                self.retries = 0;
                self.last_failure = None;
                self.uncounted = 0;
                self.reference = ReferenceStatus::Registered;
                self.plan = Plan::Waiting { until };
                let registered = Box::new(registered);
                cx.out.push(Output::Event(if refreshed {
                    Event::Refreshed(registered)
                } else {
                    Event::Registered(registered)
                }));
                self.finish(cx);
            }
            Purpose::Unregister => self.unregistered(cx, Removal::Removed),
            Purpose::Query => {
                let bindings = lease::bindings(response, sent);
                cx.out.push(Output::Event(Event::Bindings(bindings)));
                self.back(cx);
            }
            Purpose::RemoveAll => {
                self.stale.clear();
                self.lease = None;
                self.may_live = None;
                let paused = match &self.plan {
                    Plan::Cycle(cycle) => match cycle.before {
                        Plan::Paused { until } => Some(until),
                        _ => None,
                    },
                    _ => None,
                };
                // Nothing but resume and refresh ends a pause.
                self.plan = paused.map_or(Plan::Idle, |until| Plan::Paused { until });
                self.reference = ReferenceStatus::Unregistered;
                cx.out
                    .push(Output::Event(Event::Unregistered(Removal::Removed)));
                self.finish(cx);
            }
        }
    }

    fn unregistered(&mut self, cx: &mut Out<'_>, removal: Removal) {
        if removal == Removal::Removed {
            self.stale.clear();
            self.lease = None;
            self.may_live = None;
            self.last_failure = None;
            self.reference = ReferenceStatus::Unregistered;
        }
        self.retries = 0;
        self.plan = Plan::Idle;
        cx.out
            .push(Output::Event(Event::Unregistered(removal.clone())));
        if matches!(self.then.first(), Some(Then::Stop { .. })) {
            self.then_at = None;
            for then in std::mem::take(&mut self.then) {
                if let Then::Reconfigure(to) = then {
                    self.adopt(cx, to);
                }
            }
            cx.out.push(Output::Done(removal));
        } else {
            self.finish(cx);
        }
    }

    /// After a query: what was planned goes on.
    fn back(&mut self, cx: &mut Out<'_>) {
        if let Plan::Cycle(cycle) = &mut self.plan {
            let before = std::mem::replace(&mut cycle.before, Plan::Idle);
            self.plan = before;
        }
        self.finish(cx);
    }

    /// A cycle is over: what waited for its end comes now.
    fn finish(&mut self, cx: &mut Out<'_>) {
        while !matches!(self.plan, Plan::Cycle(_)) && !self.then.is_empty() {
            let then = self.then.remove(0);
            self.do_then(cx, then);
        }
        if self.then.is_empty() {
            self.then = Vec::new();
        }
    }

    /// What is being asked for is not wanted any more.
    fn cancel_step(&self, cx: &mut Out<'_>) {
        if let Plan::Cycle(cycle) = &self.plan
            && let Step::Locating { op, .. }
            | Step::Opening { op, .. }
            | Step::Held { op, .. }
            | Step::Asking { op, .. }
            | Step::Guarding { op, .. } = cycle.step
        {
            cx.out.push(Output::Cancel(op));
        }
    }

    /// Ends the cycle under way without an outcome.
    fn abandon(&mut self, cx: &mut Out<'_>) {
        self.prove(cx, None);
        self.cancel_step(cx);
        self.plan = Plan::Idle;
    }

    fn fail(
        &mut self,
        cx: &mut Out<'_>,
        failure: Failure,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
    ) {
        self.end(cx, failure, retry_after, exchange, false);
    }

    fn end(
        &mut self,
        cx: &mut Out<'_>,
        failure: Failure,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
        blocked: bool,
    ) {
        self.prove(cx, None);
        self.sessions.clear_for_retry();
        self.cancel_step(cx);
        let Plan::Cycle(cycle) = &self.plan else {
            return;
        };
        match cycle.purpose {
            Purpose::Register => {}
            Purpose::Unregister => {
                let removal = match failure {
                    Failure::Rejected { code, .. } => Removal::Refused(code),
                    Failure::CredentialsRefused { .. } | Failure::Unanswerable { .. } => {
                        Removal::Refused(cycle.code.unwrap_or(401))
                    }
                    _ => Removal::Unanswered,
                };
                return self.unregistered(cx, removal);
            }
            Purpose::Query | Purpose::RemoveAll => {
                cx.out.push(Output::Event(Event::QueryFailed(failure)));
                return self.back(cx);
            }
        }
        let policy = Arc::clone(self.registration.policy());
        let mediasec = self.registration.security_negotiation() == SecurityNegotiation::Mediasec;
        let class = verdict::classify(&policy, &failure, mediasec);
        let lease_left = self
            .lease
            .as_ref()
            .map(|lease| lease.expires_at.saturating_duration_since(cx.now));
        self.reference = ReferenceStatus::Rejected;
        self.last_failure = Some(Box::new(failure.clone()));
        let verdict = if blocked {
            Verdict::GiveUp(GiveUp::CredentialsRefused)
        } else {
            verdict::decide(&policy, &failure, class, retry_after, self.retries)
        };
        match verdict {
            Verdict::Retry {
                after,
                jitter,
                counted,
            } => {
                self.retries += u32::from(counted);
                // A registrar that says "in a second" for ever is asked less and less often, up to a minute.
                self.uncounted = if counted {
                    0
                } else {
                    self.uncounted.saturating_add(1)
                };
                let doublings = u32::from(self.uncounted.saturating_sub(UNCOUNTED)).min(6);
                let least = Duration::from_secs((1 << doublings) - 1).min(UNCOUNTED_LEAST);
                let after = after.max(least);
                let retry_in = after + after.mul_f64(cx.entropy.between(0.0, jitter));
                self.plan = Plan::Waiting {
                    until: cx.now + retry_in,
                };
                cx.out.push(Output::Event(Event::Rejected {
                    failure,
                    class,
                    attempt: self.retries,
                    of: policy.retry.max_retries,
                    retry_in,
                    lease_left,
                    exchange,
                }));
            }
            Verdict::GiveUp(why) => {
                self.plan = Plan::Idle;
                cx.out.push(Output::Event(Event::GaveUp {
                    failure,
                    class,
                    why,
                    lease_left,
                    exchange,
                }));
            }
        }
        self.finish(cx);
    }

    fn may_live(&self, now: Instant) -> bool {
        self.lease.is_some() || self.may_live.is_some_and(|until| now < until)
    }

    fn store_security(&mut self, response: &Response) {
        if self.registration.security_negotiation() == SecurityNegotiation::Mediasec {
            let list: Vec<Box<str>> = response
                .values("Security-Server")
                .map(|value| value.as_ref().into())
                .collect();
            if !list.is_empty() {
                self.security_server = list;
            }
        }
    }

    /// D27: what a support ticket needs
    fn exchange(&self, response: Option<&Response>) -> Option<Box<Exchange>> {
        let Plan::Cycle(cycle) = &self.plan else {
            return None;
        };
        let Step::Registering(transaction) = &cycle.step else {
            return None;
        };
        let text = |name: &str| {
            response
                .and_then(|r| r.header(name))
                .map(|value| plain(&value))
        };
        let extensions = response.map(|response| match response.code() {
            420 => response.option_tags("Unsupported"),
            421 => response.option_tags("Require"),
            _ => Vec::new(),
        });
        Some(Box::new(Exchange {
            call_id: self.identity.call_id.clone(),
            cseq: self.identity.cseq,
            branch: transaction.branch.clone(),
            target: cycle.targets.get(cycle.next).cloned(),
            local: cycle.flow.as_ref().map(|(_, info)| info.local()),
            status_line: response
                .map(|r| r.status_line().as_ref().into())
                .unwrap_or_default(),
            warning: text("Warning"),
            reason: text("Reason"),
            server: text("Server"),
            extensions: extensions.unwrap_or_default().into(),
        }))
    }
}

/// The Security-* lines with Require and Proxy-Require, by the reference's rules for mediasec
fn security_lines(
    registration: &Registration,
    server: &[Box<str>],
    cycle: &Cycle,
    rejected: bool,
) -> String {
    use std::fmt::Write as _;
    let mut lines = String::new();
    if registration.security_negotiation() != SecurityNegotiation::Mediasec {
        return lines;
    }
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = lines.write_fmt(text);
        lines.push_str("\r\n");
    };
    if !cycle.security_only_verify {
        for mechanism in registration.security_mechanisms() {
            line(format_args!("Security-Client: {}", mechanism.as_str()));
        }
    }
    let verify = cycle.authenticated
        || cycle.security_resent
        || rejected
        || registration.policy().security_verify_on_refresh;
    for mechanism in server.iter().filter(|_| verify) {
        line(format_args!("Security-Verify: {mechanism}"));
    }
    line(format_args!("Require: mediasec"));
    line(format_args!("Proxy-Require: mediasec"));
    lines
}

/// The Contacts that go with this request because `uri` takes their place
///
/// With instance and reg-id the registrar does that itself (RFC 5626 §6).
fn old_contacts<'a>(
    registration: &Registration,
    lease: Option<&'a Lease>,
    stale: &'a [(Box<str>, Instant)],
    uri: &str,
) -> Vec<&'a str> {
    let leased = lease.map(|lease| &*lease.contact);
    let all = leased
        .into_iter()
        .chain(stale.iter().map(|(contact, _)| &**contact));
    let mut old: Vec<&str> = all.filter(|contact| *contact != uri).collect();
    let params = registration.contact_header_params();
    if !old.is_empty() && matches!(params.map(contact_params), Some((Some(_), Some(_)))) {
        old.clear();
    }
    old
}

/// `+sip.instance` (unquoted) and `reg-id` among the configured Contact parameters
fn contact_params(text: &str) -> (Option<String>, Option<String>) {
    let value = |name: &str| {
        text.split(';')
            .filter_map(|param| param.split_once('='))
            .find_map(|(key, value)| {
                key.trim()
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().trim_matches('"').to_owned())
            })
    };
    (value("+sip.instance"), value("reg-id"))
}

/// The keyed hash of realm and username: the account that the guard counts for (D6)
fn account(key: &[u8; 16], realm: &str, username: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update((realm.len() as u64).to_be_bytes());
    hash.update(realm.to_ascii_lowercase());
    hash.update(username);
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Text of a peer as events and logs may show it: no control characters, and none that turn the writing direction
fn plain(text: &str) -> Box<str> {
    let odd = |c: &char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .filter(|c| !odd(c))
        .take(256)
        .collect::<String>()
        .into()
}

/// Whether a Via's sent-by is what we wrote; a port left out is the default one
fn sent_by_is_ours(host: &str, port: Option<u16>, info: &FlowInfo) -> bool {
    let bare = |text: &str| {
        text.trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase()
    };
    let sent_by = info.sent_by();
    let (our_host, our_port) = match sent_by.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().ok())
        }
        _ => (&*sent_by, None),
    };
    let default = info.protocol().default_port();
    bare(host) == bare(our_host) && port.unwrap_or(default) == our_port.unwrap_or(default)
}
