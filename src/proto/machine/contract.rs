//! What goes into a machine and what comes out: the whole of what a host has to do with it.

use super::*;

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

/// What all registrations of an agent have in common: the start of their branches, and the key of their account guard
#[derive(Clone, Default)]
pub struct AgentKey {
    pub(super) tag: Box<str>,
    pub(super) guard_key: [u8; 16],
}

impl AgentKey {
    /// `tag` marks the branches of the agent, and has to be of token characters (RFC 3261 §25.1); `guard_key` keys the
    /// fingerprints of credentials (D6): secret, and the same for all that share a guard.
    #[must_use]
    pub fn new(tag: impl Into<Box<str>>, guard_key: [u8; 16]) -> Self {
        let tag = tag.into();
        Self { tag, guard_key }
    }
}

impl std::fmt::Debug for AgentKey {
    /// Shows the tag: the key would let fingerprints be compared.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentKey")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// What makes a registration the same one after a restart, and its place in the agent
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Identity {
    /// The agent's part; shared, because its registrations are many
    pub agent: Arc<AgentKey>,
    /// The registration's place in the agent: with its tag the start of every branch
    pub id: RegistrationId,
    /// Call-ID; a fresh random one where none
    pub call_id: Option<Box<str>>,
    /// The CSeq used last, the first request has the next one; a random one below 65536 where none
    pub cseq: Option<u32>,
    /// The `line` token; a fresh random one where none and the option is on
    pub line: Option<Box<str>>,
}

impl Default for Identity {
    /// That of a new registration which is alone.
    fn default() -> Self {
        Self {
            agent: Arc::default(),
            id: RegistrationId::from_parts(0, 0),
            call_id: None,
            cseq: None,
            line: None,
        }
    }
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
    /// The same, and a REGISTER that removes what this device has left behind, where there is such
    Reconcile,
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
    /// The computer slept: leases have aged, and what has become due by that is due at a random moment within `spread`
    ClockJump {
        /// For how long
        by: Duration,
        /// Over how long those that have become due together spread (D22)
        spread: Duration,
    },
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
        /// Targets in the order to try them: the one that holds the lease first, where D12 has it so
        result: Result<Vec<Target>, ResolveError>,
    },
    /// The answer to [`Output::Open`]: the flow is up
    Opened {
        /// The question
        op: OpId,
        /// The flow
        result: Result<(FlowId, Arc<FlowInfo>), FlowError>,
        /// Where it could not be made: when to try again by RFC 5626 §4.5, which counts with `support_outbound` and
        /// [`Policy::flow_recovery`](crate::Policy::flow_recovery)
        retry_in: Option<Duration>,
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
        /// The flow that registered; to be used while it is up, or with `fresh` not to be used
        prefer: Option<FlowId>,
        /// Whether it must be a new flow (a 430 or silence says that the old one is dead), or another that was made since
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
    /// How a target took a request; a host with many registrations orders the targets of [`Output::Locate`] by it
    Target {
        /// The target
        target: Target,
        /// What became of the request
        outcome: TargetOutcome,
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
    /// An answer came: what it shows of the flow it came on
    Answered {
        /// The flow
        flow: FlowId,
        /// Where the peer saw the request come from, where it said so
        mapped: Option<std::net::SocketAddr>,
        /// Whether that is not where it was sent from
        nat: bool,
        /// What it says of keep-alives, where it accepted a REGISTER
        terms: Option<KeepAliveTerms>,
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
