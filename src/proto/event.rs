//! What the host is told: what happened, why, and what comes next.

use super::said::Said;
use crate::{FailureClass, FlowError, FlowId, GiveUp, RegistrationId, ResolveError, Target};
use std::fmt;
use std::time::{Duration, Instant};

/// Why an attempt failed
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A final answer other than 2xx.
    #[error("{code} {reason}")]
    Rejected {
        /// The status code
        code: u16,
        /// The reason phrase, as sent
        reason: Box<str>,
    },
    /// No final answer within timer F.
    #[error("no answer")]
    Timeout,
    /// The flow could not be made, or ended.
    #[error("{0}")]
    Flow(#[from] FlowError),
    /// The registrar's name gave no address.
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    /// The attempt used up its requests or its time (6 requests a target, 15 a cycle, 96 s).
    #[error("attempt budget used up")]
    Budget,
    /// A 2xx that grants no time: there is no binding.
    #[error("the registrar accepted the request and granted no time")]
    NotGranted,
    /// A 2xx without our Contact, under `require_own_contact`.
    #[error("the registrar's answer does not list our contact")]
    NotListed,
    /// The registrar refused our credentials.
    #[error("credentials refused for realm {realm:?}")]
    CredentialsRefused {
        /// The realm
        realm: Box<str>,
    },
    /// A challenge that cannot be answered.
    #[error("challenge cannot be answered: {why}")]
    Unanswerable {
        /// What is missing
        why: Box<str>,
    },
}

impl Failure {
    /// Whether another way to the same registrar may do better: what the registrar itself says, it says on each.
    pub(crate) const fn is_of_the_way(&self) -> bool {
        match self {
            Self::Timeout | Self::Flow(_) | Self::Resolve(_) | Self::Budget => true,
            Self::Rejected { code, .. } => matches!(code, 408 | 430 | 439 | 502..=504),
            _ => false,
        }
    }
}

/// What a support ticket needs of one exchange
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Exchange {
    /// Call-ID of the request
    pub call_id: Box<str>,
    /// CSeq number of the request
    pub cseq: u32,
    /// Via branch of the request
    pub branch: Box<str>,
    /// Where it was sent
    pub target: Option<Target>,
    /// Our end of the flow
    pub local: Option<std::net::SocketAddr>,
    /// The status line as received; empty without an answer
    pub status_line: Box<str>,
    /// Warning of the answer (RFC 3261 §20.43)
    pub warning: Option<Box<str>>,
    /// Reason of the answer (RFC 3326)
    pub reason: Option<Box<str>>,
    /// Server of the answer (RFC 3261 §20.35)
    pub server: Option<Box<str>>,
    /// Require of a 421, Unsupported of a 420: the extensions it is about
    pub extensions: Box<[String]>,
    /// Where the peer saw the request come from, as its answer says (`received` and `rport`, RFC 3581): our own end, or
    /// what a NAT made of it; none where it did not say, or said what cannot be
    pub mapped: Option<std::net::SocketAddr>,
}

/// What the registrar granted
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered {
    /// The granted lifetime, counted from the first send of the accepted request
    pub granted: Duration,
    /// When the refresh goes out, from now
    pub refresh_in: Duration,
    /// From the first REGISTER of the attempt to the grant
    pub took: Duration,
    /// The Contact URI as sent
    pub contact: Box<str>,
    /// False where the answer did not list our Contact, and the lifetime is a guess
    pub confirmed: bool,
    /// The flow it is bound to
    pub flow: FlowId,
    /// The registrar or proxy that accepted it
    pub target: Target,
    /// The digest algorithm that was used, if any
    pub algorithm: Option<crate::Algorithm>,
    /// Service-Route in order (RFC 3608)
    pub service_route: Box<[String]>,
    /// Path in order (RFC 3327)
    pub path: Box<[String]>,
    /// P-Associated-URI in order (RFC 7315 §4.1)
    pub associated_uris: Box<[String]>,
    /// The Security-Server list in force, in order (RFC 3329): what requests of the host repeat as Security-Verify, each in a
    /// line of its own, with `Require` and `Proxy-Require: mediasec`; values with control characters are left out
    pub security_server: Box<[String]>,
    /// `pub-gruu` of our Contact (RFC 5627)
    pub public_gruu: Option<Box<str>>,
    /// `temp-gruu` of our Contact (RFC 5627)
    pub temporary_gruu: Option<Box<str>>,
    /// How many other bindings the answer lists
    pub other_bindings: usize,
    /// Whether the answer says `Require: outbound`: registrar and edge proxies hold the flow (RFC 5626 §4.2.1)
    pub outbound: bool,
    /// The `reg-id` it is bound under, where the option `outbound` is on and was not refused
    pub reg_id: Option<u8>,
    /// The exchange, for a support ticket
    pub exchange: Exchange,
}

impl Registered {
    /// A grant of `granted` at `target` on `flow`; the rest is empty until it is set.
    #[must_use]
    pub fn new(granted: Duration, flow: FlowId, target: Target) -> Self {
        Self {
            granted,
            refresh_in: granted / 2,
            took: Duration::ZERO,
            contact: "".into(),
            confirmed: true,
            flow,
            target,
            algorithm: None,
            service_route: [].into(),
            path: [].into(),
            associated_uris: [].into(),
            security_server: [].into(),
            public_gruu: None,
            temporary_gruu: None,
            other_bindings: 0,
            outbound: false,
            reg_id: None,
            exchange: Exchange::default(),
        }
    }
}

/// One binding that a registrar listed (RFC 3261 §10.3)
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binding {
    /// The Contact URI
    pub uri: Box<str>,
    /// Seconds left, where it said so
    pub expires: Option<u32>,
    /// Whether it is ours
    pub ours: bool,
    /// Whether this device has left it behind: it has our instance and is none of our flows, or it is a Contact that we
    /// registered and have replaced since. Without an instance (the option `instance`) what an earlier run left behind
    /// cannot be told from another device's.
    pub stale: bool,
}

impl Binding {
    /// Another device's binding, without a time; for a mock of [`Registrar`](crate::Registrar).
    #[must_use]
    pub fn new(uri: impl Into<Box<str>>) -> Self {
        Self {
            uri: uri.into(),
            expires: None,
            ours: false,
            stale: false,
        }
    }

    /// Sets the seconds left.
    #[must_use]
    pub const fn with_expires(mut self, seconds: u32) -> Self {
        self.expires = Some(seconds);
        self
    }

    /// Says that it is ours.
    #[must_use]
    pub const fn with_ours(mut self, ours: bool) -> Self {
        self.ours = ours;
        self
    }

    /// Says that this device has left it behind.
    #[must_use]
    pub const fn with_stale(mut self, stale: bool) -> Self {
        self.stale = stale;
        self
    }
}

/// What became of a binding that was to be removed
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// The registrar confirmed it.
    Removed,
    /// The registrar refused: the binding lives until it expires. 200 where it accepted the request and lists our Contact
    /// with time left all the same.
    Refused(u16),
    /// Nobody answered in time, or the request could not be sent: a binding may live until it expires.
    Unanswered,
    /// There was no binding, so nothing was sent.
    NeverBound,
}

impl Removal {
    /// The reference's word after it, `None` where that stays: a 2xx is the end of the binding to it, whatever the answer
    /// lists (BEHAVIOUR §3), and an un-REGISTER that failed is a failure like any other (BEHAVIOUR §10, 10).
    pub(crate) const fn reference(&self) -> Option<ReferenceStatus> {
        match self {
            Self::Removed | Self::Refused(200..=299) => Some(ReferenceStatus::Unregistered),
            Self::Refused(_) | Self::Unanswered => Some(ReferenceStatus::Rejected),
            Self::NeverBound => None,
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed => f.write_str("removed"),
            Self::Refused(code) => write!(
                f,
                "removal refused with {code}, the binding lives until it expires"
            ),
            Self::Unanswered => {
                f.write_str("removal not answered, a binding may live until it expires")
            }
            Self::NeverBound => f.write_str("no binding to remove"),
        }
    }
}

/// Something odd that did not stop us
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// The answer did not list our Contact; Expires or the requested time was taken.
    #[error("the registrar's answer does not list our contact")]
    Unconfirmed,
    /// A Contact's expires was malformed and counts as absent.
    #[error("malformed expires {0:?} ignored")]
    MalformedExpires(Box<str>),
    /// The grant is so short that refreshes are a burden.
    #[error("granted only {0:?}")]
    ShortGrant(Duration),
    /// The lease may end before a dead target is found out and another one has granted: less than timer F and 8 s are
    /// left of it at its refresh, as with any grant shorter than 80 s (D1). Told once for each length, not in
    /// `asterisk()`.
    #[error("a lease of {0:?} does not outlast a dead target")]
    NoRoomForFailover(Duration),
    /// A grant beyond a week is scheduled as a week.
    #[error("granted {0} s, refreshed as if 604800")]
    LongGrant(u32),
    /// A request beyond 1300 bytes may be fragmented and lost over UDP (RFC 3261 §18.1.1): it goes over TCP where
    /// [`Policy::stream_fallback`](crate::Policy::stream_fallback) has it so, no transport is pinned and TCP can be made,
    /// otherwise over UDP all the same. Told once a cycle
    #[error("request of {0} bytes is long for UDP")]
    Oversize(usize),
    /// Answered with MD5 though the registrar also offered better.
    #[error("realm {0:?} was answered with MD5 though it offered SHA-2")]
    WeakAlgorithm(Box<str>),
    /// The peer's certificate expires soon: after that, no new connection to it can be made. Told once a flow; the
    /// time that is left
    #[error("the peer's certificate {}", expires(*.0))]
    PeerCertificateExpires(Duration),
    /// Our own certificate expires soon, or has expired: a peer that asks for it will refuse us. Told once a flow; the
    /// time that is left
    #[error("our certificate {}", expires(*.0))]
    OwnCertificateExpires(Duration),
    /// The peer's certificate was not checked, as the transport was told: anybody may be there. Told once a flow
    #[error("the peer's certificate was not checked")]
    UnverifiedPeer,
    /// An answer showed us at another address than those before it: a NAT has forgotten us once.
    #[error("mapped address changed from {from} to {to}")]
    MappingChanged {
        /// Where the peer saw us before
        from: std::net::SocketAddr,
        /// Where it sees us now
        to: std::net::SocketAddr,
    },
    /// Another registration of the agent makes the same binding: the same address of record, Contact (user and transport)
    /// and registrar. Each replaces what the other has registered, and a request belongs to neither (D24). Told to the
    /// later one, when it is added or changed.
    #[error("registration {0} makes the same binding")]
    SameBinding(RegistrationId),
    /// The server's own proof (`rspauth`) was wrong.
    #[error("the registrar's rspauth is wrong")]
    ServerNotAuthenticated,
}

/// What happened to one registration
///
/// `Display` gives a line for a person. Every change is told once; what comes next, and when, is part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first REGISTER goes out in a while (`max_random_initial_delay`).
    Scheduled {
        /// From now
        first_in: Duration,
    },
    /// A binding was made where there was none.
    Registered(Box<Registered>),
    /// The binding was renewed.
    Refreshed(Box<Registered>),
    /// An attempt failed, another follows.
    Rejected {
        /// Why
        failure: Failure,
        /// Its class
        class: FailureClass,
        /// Counted failures so far, this one included if it counts
        attempt: u32,
        /// `max_retries`; none where unlimited
        of: Option<u32>,
        /// When the next attempt starts, from now
        retry_in: Duration,
        /// What is left of the lease: calls still arrive
        lease_left: Option<Duration>,
        /// The exchange, for a support ticket
        exchange: Option<Box<Exchange>>,
    },
    /// An attempt failed and none follows, until a command or a changed configuration.
    GaveUp {
        /// The last failure
        failure: Failure,
        /// Its class
        class: FailureClass,
        /// Why no more
        why: GiveUp,
        /// What is left of the lease
        lease_left: Option<Duration>,
        /// The exchange, for a support ticket
        exchange: Option<Box<Exchange>>,
    },
    /// The lease ran out before a refresh succeeded: calls no longer arrive.
    Expired {
        /// When the next attempt starts, where one is planned
        next_in: Option<Duration>,
    },
    /// The flow of the binding ended.
    FlowLost {
        /// The flow
        flow: FlowId,
        /// Why
        error: FlowError,
        /// When it registers again, from now; none where nothing is planned: paused, ended, or about to be removed
        next_in: Option<Duration>,
    },
    /// The binding was removed on request, or could not be.
    Unregistered(Removal),
    /// What the registrar listed, on a query, or what it has left after a reconciliation.
    Bindings(Box<[Binding]>),
    /// A query, a reconciliation or a removal of all bindings failed.
    QueryFailed(Failure),
    /// Paused for maintenance; nothing is sent until resumed.
    Paused {
        /// When it resumes by itself, from now
        resumes_in: Option<Duration>,
    },
    /// Something odd that did not stop us.
    Warning(Warning),
    /// What happened to one flow of several (RFC 5626), and left the registration as a whole as it was: another one is
    /// bound, or is still being tried.
    OfFlow {
        /// Its `reg-id`; beyond those of the configuration for one that a new configuration has no more
        reg_id: u8,
        /// What happened to it
        event: Box<Self>,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheduled { first_in } => write!(f, "first attempt in {}", seconds(*first_in)),
            Self::Registered(r) => write!(f, "registered {r}"),
            Self::Refreshed(r) => write!(f, "refreshed {r}"),
            Self::Rejected {
                failure,
                attempt,
                of,
                retry_in,
                lease_left,
                exchange,
                ..
            } => {
                write!(f, "attempt failed: {}", Said(failure, exchange.as_deref()))?;
                // What does not count (a Retry-After of a 5xx) uses up nothing.
                if *attempt > 0 {
                    write!(f, "; failure {attempt}")?;
                }
                if let (1.., Some(of)) = (*attempt, of) {
                    write!(f, " of at most {of} retries")?;
                }
                write!(f, ", next attempt in {}", seconds(*retry_in))?;
                left(f, *lease_left)
            }
            Self::GaveUp {
                failure,
                class,
                why,
                lease_left,
                exchange,
            } => {
                let why = match (why, class) {
                    (GiveUp::MaxRetries, _) => "max_retries is used up",
                    (GiveUp::NoInterval, FailureClass::Temporary) => {
                        "neither retry_interval nor fatal_retry_interval is set"
                    }
                    (GiveUp::NoInterval, FailureClass::Forbidden) => {
                        "neither forbidden_retry_interval nor fatal_retry_interval is set"
                    }
                    (GiveUp::NoInterval, _) => "fatal_retry_interval is not set",
                    // Other credentials may not help.
                    (GiveUp::CredentialsRefused, _)
                        if matches!(failure, Failure::Unanswerable { .. }) =>
                    {
                        "fatal_retry_interval is not set"
                    }
                    (GiveUp::CredentialsRefused, _) => "the credentials have to change first",
                };
                let said = Said(failure, exchange.as_deref());
                write!(f, "gave up: {said}; {why}")?;
                left(f, *lease_left)
            }
            Self::Expired {
                next_in: Some(next),
            } => {
                write!(
                    f,
                    "binding expired, not reachable; next attempt in {}",
                    seconds(*next)
                )
            }
            Self::Expired { next_in: None } => f.write_str("binding expired, not reachable"),
            Self::FlowLost {
                error,
                next_in: Some(next),
                ..
            } => {
                write!(
                    f,
                    "connection lost: {error}; registering again in {}",
                    seconds(*next)
                )
            }
            Self::FlowLost { error, .. } => write!(f, "connection lost: {error}"),
            Self::Unregistered(Removal::Removed) => f.write_str("unregistered"),
            Self::Unregistered(removal) => write!(f, "unregistered: {removal}"),
            Self::Bindings(list) => write!(f, "the registrar lists {} binding(s)", list.len()),
            Self::QueryFailed(failure) => write!(f, "query failed: {failure}"),
            Self::Paused {
                resumes_in: Some(after),
            } => write!(f, "paused for {}", seconds(*after)),
            Self::Paused { resumes_in: None } => f.write_str("paused"),
            Self::Warning(warning) => write!(f, "warning: {warning}"),
            Self::OfFlow { reg_id, event } => write!(f, "flow {reg_id}: {event}"),
        }
    }
}

impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {} for {}, refresh in {}",
            self.contact,
            self.target,
            seconds(self.granted),
            seconds(self.refresh_in)
        )
    }
}

fn left(f: &mut fmt::Formatter<'_>, lease_left: Option<Duration>) -> fmt::Result {
    match lease_left {
        Some(left) => write!(f, ", still bound for {}", seconds(left)),
        None => f.write_str(", not bound"),
    }
}

fn expires(left: Duration) -> String {
    const HOUR: u64 = 3600;
    match left.as_secs() {
        0 => "has expired".to_owned(),
        left if left < 48 * HOUR => format!("expires in {} h", left / HOUR),
        left => format!("expires in {} days", left / (24 * HOUR)),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// What we are doing about the binding
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// Nothing, until a command or a changed configuration
    Idle,
    /// Waiting for the first attempt, a refresh or a retry
    Waiting {
        /// When it starts
        until: Instant,
    },
    /// A REGISTER is under way
    Registering,
    /// An un-REGISTER is under way
    Unregistering,
    /// A query, or a removal of all bindings, is under way
    Querying,
    /// Paused on command
    Paused,
}

/// The binding that the registrar holds for us
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// When it ends
    pub expires_at: Instant,
    /// What was granted
    pub granted: Duration,
    /// The flow it is bound to; none where that flow has ended
    pub flow: Option<FlowId>,
    /// Where it was made
    pub target: Target,
    /// False where the answer did not list our Contact
    pub confirmed: bool,
    /// Where the registrar, or the first proxy, sees us, see [`FlowInfo::mapped`](crate::FlowInfo::mapped)
    pub mapped: Option<std::net::SocketAddr>,
}

impl LeaseStatus {
    /// A confirmed lease of `granted` until `expires_at`, on `flow`.
    #[must_use]
    pub const fn new(expires_at: Instant, granted: Duration, flow: FlowId, target: Target) -> Self {
        Self {
            expires_at,
            granted,
            flow: Some(flow),
            target,
            confirmed: true,
            mapped: None,
        }
    }
}

/// The state of one registration: is there a binding, and what are we doing about it
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The binding, while it lives
    pub lease: Option<LeaseStatus>,
    /// What is going on
    pub activity: Activity,
    /// The last failure; none after a success
    pub last_failure: Option<Failure>,
    /// The exchange that ended in the last failure, for a support ticket; none after a success, whose event has it, and
    /// where no request was sent (D27)
    pub exchange: Option<Box<Exchange>>,
    /// Counted failures since the last success
    pub retries: u32,
    /// What `pjsip show registrations` would print
    pub reference: ReferenceStatus,
}

impl Status {
    /// A status without a binding, for a mock of [`Registrar`](crate::Registrar).
    #[must_use]
    pub const fn new(activity: Activity) -> Self {
        Self {
            lease: None,
            activity,
            last_failure: None,
            exchange: None,
            retries: 0,
            reference: ReferenceStatus::Unregistered,
        }
    }

    /// Sets the binding.
    #[must_use]
    pub fn with_lease(mut self, lease: LeaseStatus) -> Self {
        self.lease = Some(lease);
        self.reference = ReferenceStatus::Registered;
        self
    }

    /// Sets the last failure.
    #[must_use]
    pub fn with_last_failure(mut self, failure: Failure) -> Self {
        self.last_failure = Some(failure);
        self
    }

    /// Whether the registrar holds a binding: a refresh under way or a failed one changes nothing until it expires.
    #[must_use]
    pub const fn is_registered(&self) -> bool {
        self.lease.is_some()
    }

    /// Whether calls can arrive: there is a binding, and its flow is up.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| lease.flow.is_some())
    }

    /// The reference's one word for it (`Registered`, `Unregistered`, `Rejected`), by its rules rather than ours.
    #[must_use]
    pub const fn reference_status(&self) -> ReferenceStatus {
        self.reference
    }
}

/// The three strings of `pjsip show registrations`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReferenceStatus {
    /// Not registered, and no failure since
    Unregistered,
    /// The last attempt succeeded
    Registered,
    /// The last attempt failed, even while a binding still lives
    Rejected,
}

impl fmt::Display for ReferenceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unregistered => "Unregistered",
            Self::Registered => "Registered",
            Self::Rejected => "Rejected",
        })
    }
}
