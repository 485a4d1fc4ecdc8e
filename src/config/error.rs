//! What `build()` refuses, and what it only doubts.

use super::builder::MAX_URI;
use super::*;

/// Why a [`Registration`] cannot be built; the first rule that is broken
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// `server_uri` or `client_uri` is no SIP URI; the source says why.
    #[error("{option} is not a sip or sips uri")]
    Uri {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        source: UriError,
    },
    /// A URI is longer than pjsip takes.
    #[error("{option} has {length} bytes, more than {MAX_URI}")]
    UriLength {
        /// The option.
        option: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A host is longer than pjsip takes: 255 bytes with a port, else 245, for the SRV prefix.
    #[error("{option} has a host of {length} bytes, more than {most}")]
    HostLength {
        /// The option.
        option: &'static str,
        /// The length of the host in bytes.
        length: usize,
        /// The most it may have.
        most: usize,
    },
    /// `line` needs an `endpoint`.
    #[error("line is on without an endpoint")]
    LineWithoutEndpoint,
    /// `endpoint` needs `line`.
    #[error("endpoint is {value:?} without line")]
    EndpointWithoutLine {
        /// The endpoint.
        value: Arc<str>,
    },
    /// `expiration` is no whole number of seconds from 1 to 4294967295.
    #[error("expiration is {value:?}, not from 1 to 4294967295 seconds")]
    Expiration {
        /// The value.
        value: Duration,
    },
    /// `expiration` means no Expires header, which the policy does not allow (D9).
    #[error(
        "expiration is 4294967295, no expires header, which only a policy with allow_no_expires has"
    )]
    NoExpires,
    /// `contact_user` is empty or has a character that must be escaped, RFC 3261 §25.1.
    #[error("contact_user is {value:?}, which is no user part of a sip uri")]
    ContactUser {
        /// The value.
        value: Box<str>,
    },
    /// `contact_header_params` breaks a rule.
    #[error("contact_header_params is {value:?}, which {rule}")]
    ContactHeaderParams {
        /// The value.
        value: Box<str>,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// `contact_uri_params` breaks a rule.
    #[error("contact_uri_params is {value:?}, which {rule}")]
    ContactUriParams {
        /// The value.
        value: Box<str>,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A `fallback_server` or `fallback_proxy` breaks a rule; the source names it as the option it stands for.
    #[error("fallback {index}: {source}")]
    Fallback {
        /// Which one, counted from 0.
        index: usize,
        /// The rule.
        source: Box<Self>,
    },
    /// There are more fallbacks than one attempt could try.
    #[error("{count} fallbacks, and {most} is the most")]
    Fallbacks {
        /// How many.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// An option that needs an instance was switched on without one (RFC 5626 §4.2.1, RFC 5627 §4.1).
    #[error("{option} is on without an instance")]
    WithoutInstance {
        /// The option.
        option: &'static str,
    },
    /// A `further_flow` breaks a rule; the source names it as the `outbound_proxy` it stands for.
    #[error("further_flow {index}: {source}")]
    FurtherFlow {
        /// Which one, counted from 0.
        index: usize,
        /// The rule.
        source: Box<Self>,
    },
    /// There are more flows than a registrar should hold bindings for.
    #[error("{count} flows, and {most} is the most")]
    Flows {
        /// How many, with the first.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// Flows are all there at once, fallbacks one after the other: it is one or the other.
    #[error("further_flow together with fallback_server or fallback_proxy")]
    FallbackWithFlows,
    /// `gin` binds numbers, so its Contact has no user part (RFC 6140 §5.2).
    #[error("gin together with contact_user")]
    GinWithContactUser,
    /// An `outbound_proxy` is no SIP URI; the source says why.
    #[error("outbound_proxy has no sip or sips uri at index {index}")]
    OutboundProxy {
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: UriError,
    },
    /// An `outbound_proxy` is no Route value.
    #[error("outbound_proxy has no <uri> with parameters at index {index}")]
    OutboundProxySyntax {
        /// Which one, counted from 0.
        index: usize,
    },
    /// A text has a control character, such as a line break.
    #[error("{option} is {value:?}, which has a control character")]
    Text {
        /// The option.
        option: &'static str,
        /// The value.
        value: Arc<str>,
    },
    /// A method or option tag is no token, RFC 3261 §25.1.
    #[error("{option} has {value:?}, which is no token")]
    Token {
        /// The option.
        option: &'static str,
        /// The value.
        value: Box<str>,
    },
    /// The name of a header is no token.
    #[error("header {name:?} has a name that is no token")]
    HeaderName {
        /// The name.
        name: Box<str>,
    },
    /// A header that the library writes, or that needs a body.
    #[error("header {name:?} is written by the library")]
    HeaderReserved {
        /// The name.
        name: Box<str>,
    },
    /// The value of a header has a control character; it is not shown, as it may be a secret.
    #[error("header {name:?} has a value with a control character")]
    HeaderValue {
        /// The name.
        name: Box<str>,
    },
    /// A security mechanism is not one that can be offered.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// One of `outbound_auth` is not usable; the source says why.
    #[error("outbound_auth has unusable credentials")]
    Credentials(#[source] CredentialsError),
    /// A jitter is not a share.
    #[error("{option} is {value}, not from 0 to 1")]
    Jitter {
        /// The field of the policy.
        option: &'static str,
        /// The value.
        value: f64,
    },
    /// A time is out of its limits.
    #[error("{option} is {value:?}, not from {least:?} to {most:?}")]
    Interval {
        /// The option or field of the policy.
        option: &'static str,
        /// The value.
        value: Duration,
        /// The least it may be.
        least: Duration,
        /// The most it may be.
        most: Duration,
    },
    /// A refresh at no share of the lease.
    #[error("refresh.lead is the fraction {value}, not from 0.1 to 0.99")]
    RefreshFraction {
        /// The value.
        value: f64,
    },
    /// No digest algorithm could ever be answered.
    #[error("auth.algorithms has none that may be answered")]
    NoAlgorithm,
    /// Redirects are followed never, or more often than there are targets in a cycle.
    #[error("redirects may be followed {max} times, not from 1 to 8")]
    Redirects {
        /// The value.
        max: u8,
    },
}

/// What is legal and may still not be meant
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigWarning {
    /// A proxy without `lr` gets strict routing: its URI replaces the Request-URI, RFC 3261 §16.12.1.2.
    #[error("outbound_proxy {host:?} has no ;lr and gets strict routing")]
    StrictRoute {
        /// Its host.
        host: Box<str>,
    },
    /// A `transport` parameter that no built-in transport knows.
    #[error("{option} has the unknown transport {value:?}")]
    UnknownTransport {
        /// The option.
        option: &'static str,
        /// The parameter's value.
        value: Box<str>,
    },
    /// A refresh that meets a dead target ends after the lease.
    #[error("refreshed {lead:?} before the end of a lease, less than timer f, {timer_f:?}")]
    ShortLead {
        /// How long before the end the asked lifetime is refreshed.
        lead: Duration,
        /// How long a dead target takes.
        timer_f: Duration,
    },
    /// Timer F cuts off retransmissions, RFC 3261 §17.1.2.2.
    #[error("timer_f is {timer_f:?}, less than 64 * t1, {t1:?}")]
    ShortTimerF {
        /// Timer F.
        timer_f: Duration,
        /// T1.
        t1: Duration,
    },
    /// Several credentials for one realm: the first that fits the algorithm is used.
    #[error("outbound_auth has the realm {realm:?} twice")]
    DuplicateRealm {
        /// The realm.
        realm: Box<str>,
    },
    /// Several credentials for any realm: the first that fits the algorithm is used.
    #[error("outbound_auth has credentials for any realm twice")]
    DuplicateWildcard,
}
