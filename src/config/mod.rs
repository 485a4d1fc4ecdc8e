//! What a registration is to do: the 22 options of the reference, the policy, and the checks on both.

pub(crate) mod credentials;
mod policy;
mod security;
mod transport;

pub use credentials::{Algorithm, Credentials, CredentialsError, Secret};
pub use policy::{
    AuthPolicy, InitialDelay, Policy, Redirects, RefreshLead, RefreshPolicy, RetryPolicy, Timers,
};
pub use security::{Mechanism, MechanismError, SecurityNegotiation};
pub use transport::{TransportConfig, TransportConfigError};

use crate::{Protocol, Scheme, SipUri, UriError};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A registration as it was configured: checked, immutable, with a getter for each option
///
/// ```
/// # use sip_registration::Registration;
/// let registration = Registration::builder("sip:example.com", "sip:alice@example.com").user_agent("phone/1.0").build()?;
/// assert_eq!(registration.user_agent(), Some("phone/1.0"));
/// # Ok::<(), sip_registration::BuildError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    server_uri: SipUri,
    client_uri: SipUri,
    contact_user: ContactUser,
    expiration: u32,
    line: bool,
    support_outbound: bool,
    support_path: bool,
    security_negotiation: SecurityNegotiation,
    /// In nanoseconds: half of a `Duration`.
    max_random_initial_delay: u64,
    outbound_auth: Box<[Credentials]>,
    policy: Arc<Policy>,
    often: Option<Box<Often>>,
    extra: Option<Box<Extra>>,
}

/// What many registrations have, and many have not: a hundred thousand of them shall not pay for it.
#[derive(Debug, Clone, PartialEq, Default)]
struct Often {
    /// What From and To carry, where that is not `client_uri` as it was written.
    aor: Option<Box<str>>,
    endpoint: Option<Arc<str>>,
    transport: Option<Arc<str>>,
    user_agent: Option<Arc<str>>,
    outbound_proxy: Box<[Route]>,
}

/// What most registrations do not have.
#[derive(Debug, Clone, PartialEq, Default)]
struct Extra {
    contact_header_params: Option<Box<str>>,
    contact_uri_params: Option<Box<str>>,
    security_mechanisms: Box<[Mechanism]>,
    headers: Box<[ExtraHeader]>,
    allow: Option<Box<str>>,
    supported: Box<[Box<str>]>,
    require: Box<[Box<str>]>,
    proxy_require: Box<[Box<str>]>,
}

impl Registration {
    /// Starts with the two options that have no default; what is wrong with them is reported by `build()`.
    pub fn builder<S, C>(server_uri: S, client_uri: C) -> RegistrationBuilder
    where
        S: TryInto<SipUri, Error: Into<UriError>>,
        C: TryInto<SipUri, Error: Into<UriError>>,
    {
        RegistrationBuilder {
            server_uri: server_uri.try_into().map_err(Into::into),
            client_uri: client_uri.try_into().map_err(Into::into),
            contact_user: ContactUser::default(),
            contact_header_params: String::new(),
            contact_uri_params: String::new(),
            expiration: Duration::from_secs(3600),
            max_random_initial_delay: Duration::from_secs(10),
            line: false,
            support_outbound: false,
            support_path: false,
            security_negotiation: SecurityNegotiation::No,
            security_mechanisms: Vec::new(),
            endpoint: None,
            transport: None,
            user_agent: None,
            outbound_auth: Vec::new(),
            outbound_proxy: Vec::new(),
            headers: Vec::new(),
            allow: Vec::new(),
            supported: Vec::new(),
            require: Vec::new(),
            proxy_require: Vec::new(),
            policy: Arc::default(),
            explicit: Explicit::default(),
        }
    }

    /// Whether refused credentials end the registration (`auth_rejection_permanent`).
    #[must_use]
    pub fn auth_rejection_permanent(&self) -> bool {
        self.policy.auth.auth_rejection_permanent
    }

    /// The address of record, as it was configured (`client_uri`).
    #[must_use]
    pub const fn client_uri(&self) -> &SipUri {
        &self.client_uri
    }

    /// The parameters after the `>` of Contact, without the first `;` (`contact_header_params`).
    #[must_use]
    pub fn contact_header_params(&self) -> Option<&str> {
        self.extra.as_ref()?.contact_header_params.as_deref()
    }

    /// The user part of Contact (`contact_user`).
    #[must_use]
    pub const fn contact_user(&self) -> &ContactUser {
        &self.contact_user
    }

    /// The name that inbound requests with our `line` are for (`endpoint`).
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.often.as_ref()?.endpoint.as_deref()
    }

    /// The lifetime that is asked for, in seconds; 4294967295 is no Expires header (`expiration`).
    #[must_use]
    pub const fn expiration(&self) -> u32 {
        self.expiration
    }

    /// The wait after a fatal response, 0 is never again (`fatal_retry_interval`).
    #[must_use]
    pub fn fatal_retry_interval(&self) -> Duration {
        self.policy.retry.fatal_retry_interval
    }

    /// The wait after a 403, 0 is as after other fatal responses (`forbidden_retry_interval`).
    #[must_use]
    pub fn forbidden_retry_interval(&self) -> Duration {
        self.policy.retry.forbidden_retry_interval
    }

    /// Whether Contact carries a `line` token (`line`).
    #[must_use]
    pub const fn line(&self) -> bool {
        self.line
    }

    /// Within what time the first REGISTER is sent (`max_random_initial_delay`).
    #[must_use]
    pub const fn max_random_initial_delay(&self) -> Duration {
        Duration::from_nanos(self.max_random_initial_delay)
    }

    /// How many retries follow the first attempt, `None` is without limit (`max_retries`).
    #[must_use]
    pub fn max_retries(&self) -> Option<u32> {
        self.policy.retry.max_retries
    }

    /// The credentials, in order of preference (`outbound_auth`).
    #[must_use]
    pub const fn outbound_auth(&self) -> &[Credentials] {
        &self.outbound_auth
    }

    /// The Route values, in order (`outbound_proxy`).
    #[must_use]
    pub fn outbound_proxy(&self) -> &[Route] {
        self.often
            .as_ref()
            .map_or(&[], |often| &often.outbound_proxy)
    }

    /// The wait after a temporary failure (`retry_interval`).
    #[must_use]
    pub fn retry_interval(&self) -> Duration {
        self.policy.retry.retry_interval
    }

    /// What is offered in Security-Client, one header each (`security_mechanisms`).
    #[must_use]
    pub fn security_mechanisms(&self) -> &[Mechanism] {
        self.extra
            .as_ref()
            .map_or(&[], |extra| &extra.security_mechanisms)
    }

    /// Which security agreement is negotiated (`security_negotiation`).
    #[must_use]
    pub const fn security_negotiation(&self) -> SecurityNegotiation {
        self.security_negotiation
    }

    /// The registrar, as it was configured (`server_uri`).
    #[must_use]
    pub const fn server_uri(&self) -> &SipUri {
        &self.server_uri
    }

    /// Whether `Supported: outbound` is sent (`support_outbound`).
    #[must_use]
    pub const fn support_outbound(&self) -> bool {
        self.support_outbound
    }

    /// Whether `Supported: path` is sent (`support_path`).
    #[must_use]
    pub const fn support_path(&self) -> bool {
        self.support_path
    }

    /// The name of the transport (`transport`).
    #[must_use]
    pub fn transport(&self) -> Option<&Arc<str>> {
        self.often.as_ref()?.transport.as_ref()
    }

    /// Always `registration` (`type`).
    #[must_use]
    pub const fn type_(&self) -> &'static str {
        "registration"
    }

    /// The User-Agent header, where it is not the library's own (`user_agent`).
    #[must_use]
    pub fn user_agent(&self) -> Option<&str> {
        self.often.as_ref()?.user_agent.as_deref()
    }

    /// The policy, with the options that were set explicitly.
    #[must_use]
    pub const fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Further parameters of the Contact URI, without the first `;` (D26).
    #[must_use]
    pub fn contact_uri_params(&self) -> Option<&str> {
        self.extra.as_ref()?.contact_uri_params.as_deref()
    }

    /// Further headers, name and value, those of `server_uri` included (RFC 3261 §19.1.1).
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers: &[ExtraHeader] = self.extra.as_ref().map_or(&[], |extra| &extra.headers);
        headers.iter().map(|header| (&*header.name, &*header.value))
    }

    /// The value of Allow, absent where no method was named.
    #[must_use]
    pub fn allow(&self) -> Option<&str> {
        self.extra.as_ref()?.allow.as_deref()
    }

    /// Further option tags for Supported, without path and outbound.
    #[must_use]
    pub fn supported(&self) -> &[Box<str>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.supported)
    }

    /// Further option tags for Require, without mediasec (D26).
    #[must_use]
    pub fn require(&self) -> &[Box<str>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.require)
    }

    /// Further option tags for Proxy-Require, without mediasec (D26).
    #[must_use]
    pub fn proxy_require(&self) -> &[Box<str>] {
        self.extra
            .as_ref()
            .map_or(&[], |extra| &extra.proxy_require)
    }

    /// The Request-URI: `server_uri` as it was written, without the headers that [`headers`](Self::headers) has.
    #[must_use]
    pub fn request_uri(&self) -> &str {
        let text = self.server_uri.as_str();
        let headers = self
            .server_uri
            .headers()
            .map_or(0, |headers| headers.len() + 1);
        text.get(..text.len() - headers).unwrap_or(text)
    }

    /// The URI of From and To: `client_uri` without port, password, headers and the parameters transport, ttl, method
    /// and maddr (RFC 3261 §19.1.1, BEHAVIOUR §10, 22).
    #[must_use]
    pub fn aor_text(&self) -> &str {
        let often = self.often.as_ref();
        often
            .and_then(|often| often.aor.as_deref())
            .unwrap_or_else(|| self.client_uri.as_str())
    }

    /// The URI of the first Route, where requests go instead of to `server_uri`.
    #[must_use]
    pub fn first_route(&self) -> Option<&SipUri> {
        self.outbound_proxy().first().map(Route::uri)
    }

    /// Whether the registrar is a `sips:` URI, so that Contact is one too.
    #[must_use]
    pub fn is_sips(&self) -> bool {
        self.server_uri.scheme() == Scheme::Sips
    }

    /// What is legal and may still not be meant; worked out on each call.
    #[must_use]
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let mut warnings = Vec::new();
        for route in self
            .outbound_proxy()
            .iter()
            .filter(|route| !route.uri.has_param("lr"))
        {
            warnings.push(ConfigWarning::StrictRoute {
                host: route.uri.host_text().into(),
            });
        }
        let routes = self
            .outbound_proxy()
            .iter()
            .map(|route| ("outbound_proxy", &route.uri));
        for (option, uri) in [("server_uri", &self.server_uri)].into_iter().chain(routes) {
            if let Some(value) = uri.transport().filter(|value| !is_transport(value)) {
                warnings.push(ConfigWarning::UnknownTransport {
                    option,
                    value: value.into(),
                });
            }
        }
        let (refresh, timers) = (&self.policy.refresh, &self.policy.timers);
        let granted = Duration::from_secs(self.expiration.into());
        let lead = granted.saturating_sub(refresh.refresh_after(granted));
        // The 10 s of the reference are short by its own design: no news for everyone who loads a pjsip.conf.
        let as_reference = refresh.lead == RefreshLead::Fixed(policy::REFERENCE_LEAD)
            && lead == policy::REFERENCE_LEAD;
        if lead < timers.timer_f && !as_reference {
            warnings.push(ConfigWarning::ShortLead {
                lead,
                timer_f: timers.timer_f,
            });
        }
        if timers.timer_f < timers.t1.saturating_mul(64) {
            warnings.push(ConfigWarning::ShortTimerF {
                timer_f: timers.timer_f,
                t1: timers.t1,
            });
        }
        for (index, later) in self.outbound_auth.iter().enumerate() {
            let same = |earlier: &Credentials| match (realm(earlier), realm(later)) {
                (Some(earlier), Some(later)) => earlier.eq_ignore_ascii_case(later),
                (None, None) => true,
                _ => false,
            };
            if self.outbound_auth.iter().take(index).any(same) {
                warnings.push(match realm(later) {
                    Some(realm) => ConfigWarning::DuplicateRealm {
                        realm: realm.into(),
                    },
                    None => ConfigWarning::DuplicateWildcard,
                });
            }
        }
        warnings
    }

    /// What it takes to go from this configuration to another, while registered
    ///
    /// Pure; the strongest of the single changes counts.
    #[must_use]
    pub fn change_to(&self, to: &Self) -> Change {
        if self == to {
            return Change::Untouched;
        }
        // What names the binding at the registrar, or the way to it.
        let same_binding = self.server_uri == to.server_uri
            && self.client_uri == to.client_uri
            && self.contact_user == to.contact_user
            && self.contact_uri_params() == to.contact_uri_params()
            && self.line == to.line
            && self.transport() == to.transport()
            && self.outbound_proxy() == to.outbound_proxy();
        if !same_binding {
            return Change::Replaces;
        }
        // What else a REGISTER says.
        let same_request = self.expiration == to.expiration
            && self.contact_header_params() == to.contact_header_params()
            && self.user_agent() == to.user_agent()
            && self.support_outbound == to.support_outbound
            && self.support_path == to.support_path
            && self.security_negotiation == to.security_negotiation
            && self.security_mechanisms() == to.security_mechanisms()
            && self.headers().eq(to.headers())
            && self.allow() == to.allow()
            && self.supported() == to.supported()
            && self.require() == to.require()
            && self.proxy_require() == to.proxy_require();
        if same_request {
            Change::InPlace
        } else {
            Change::Registers
        }
    }
}

/// What a reconfiguration takes, see [`Registration::change_to`]
///
/// | changed | |
/// |---|---|
/// | nothing | `Untouched` |
/// | policy and its options, `outbound_auth`, `endpoint`, `max_random_initial_delay` | `InPlace` |
/// | `expiration`, `contact_header_params`, `user_agent`, `support_…`, `security_…`, header, allow, supported, require, proxy_require | `Registers` |
/// | `server_uri`, `client_uri`, `contact_user`, contact_uri_params, `line`, `transport`, `outbound_proxy` | `Replaces` |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Nothing: both are the same.
    Untouched,
    /// No message: the new values count from the next decision on.
    InPlace,
    /// A REGISTER: the registrar is to see it, the binding stays.
    Registers,
    /// An un-REGISTER of the old binding, then a REGISTER of the new one.
    Replaces,
}

/// The user part of Contact (pjsip.conf `contact_user`, D26); default `s`
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContactUser {
    /// This user, with its escapes; an empty one is refused by `build()`, use `From` to have it mean `s`.
    Name(Box<str>),
    /// No user part at all, as RFC 6140 §5.2 has it for `bnc`.
    None,
}

impl ContactUser {
    /// The user as it is written, `None` where there is none.
    #[must_use]
    pub const fn as_str(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::None => None,
        }
    }
}

impl Default for ContactUser {
    fn default() -> Self {
        Self::Name("s".into())
    }
}

impl From<&str> for ContactUser {
    /// An empty text is the default, `s`, as in pjsip.conf.
    fn from(name: &str) -> Self {
        if name.is_empty() {
            Self::default()
        } else {
            Self::Name(name.into())
        }
    }
}

impl From<String> for ContactUser {
    /// An empty text is the default, `s`, as in pjsip.conf.
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

/// One value of a Route header, RFC 3261 §20.34
#[derive(Clone, PartialEq, Eq)]
pub struct Route {
    uri: SipUri,
    /// The header parameters after the `>`, with their `;`.
    params: Box<str>,
}

impl Route {
    /// Reads a comma-separated list of `<uri>` with parameters, or of URIs whose parameters are their own.
    fn parse_list(text: &str, auto_lr: bool, routes: &mut Vec<Self>) -> Result<(), BuildError> {
        for entry in syntax::split(text, ',').map(str::trim) {
            let index = routes.len();
            let (uri, params) = match entry.strip_prefix('<') {
                Some(rest) => rest
                    .split_once('>')
                    .ok_or(BuildError::OutboundProxySyntax { index })?,
                None => (entry, ""),
            };
            let params = params.trim();
            if !params.is_empty() && !params.strip_prefix(';').is_some_and(syntax::is_params) {
                return Err(BuildError::OutboundProxySyntax { index });
            }
            let parsed = |text: &str| {
                SipUri::parse(text).map_err(|source| BuildError::OutboundProxy { index, source })
            };
            let mut uri = parsed(uri)?;
            if uri.headers().is_some() {
                return Err(BuildError::OutboundProxySyntax { index });
            }
            if auto_lr && !uri.has_param("lr") {
                uri = parsed(&format!("{uri};lr"))?;
            }
            routes.push(Self {
                uri,
                params: params.into(),
            });
        }
        Ok(())
    }

    /// The URI; without `lr` it is a strict router, RFC 3261 §16.12.1.2.
    #[must_use]
    pub const fn uri(&self) -> &SipUri {
        &self.uri
    }
}

impl fmt::Display for Route {
    /// The value as it goes into the header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>{}", self.uri, self.params)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{:?}>{}", self.uri, self.params)
    }
}

/// A header of the host; its value may be a secret, so `Debug` has the name only.
#[derive(Clone, PartialEq)]
struct ExtraHeader {
    name: Box<str>,
    value: Box<str>,
}

impl fmt::Debug for ExtraHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name)
    }
}

/// Collects the options of a [`Registration`]; [`build`](Self::build) checks them
///
/// The methods are named after the options of pjsip.conf.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build()`"]
pub struct RegistrationBuilder {
    server_uri: Result<SipUri, UriError>,
    client_uri: Result<SipUri, UriError>,
    contact_user: ContactUser,
    contact_header_params: String,
    contact_uri_params: String,
    expiration: Duration,
    max_random_initial_delay: Duration,
    line: bool,
    support_outbound: bool,
    support_path: bool,
    security_negotiation: SecurityNegotiation,
    security_mechanisms: Vec<String>,
    endpoint: Option<Arc<str>>,
    transport: Option<Arc<str>>,
    user_agent: Option<Arc<str>>,
    outbound_auth: Vec<Credentials>,
    outbound_proxy: Vec<RedactedText>,
    headers: Vec<ExtraHeader>,
    allow: Vec<Box<str>>,
    supported: Vec<Box<str>>,
    require: Vec<Box<str>>,
    proxy_require: Vec<Box<str>>,
    policy: Arc<Policy>,
    explicit: Explicit,
}

/// A text that may hold a password until it has been parsed.
#[derive(Clone)]
struct RedactedText(String);

impl fmt::Debug for RedactedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// The options that live in the policy, where they were set at the builder.
#[derive(Debug, Clone, Copy, Default)]
struct Explicit {
    auth_rejection_permanent: Option<bool>,
    fatal_retry_interval: Option<Duration>,
    forbidden_retry_interval: Option<Duration>,
    retry_interval: Option<Duration>,
    max_retries: Option<Option<u32>>,
}

impl Explicit {
    fn apply(self, policy: &mut Policy) {
        let Self {
            auth_rejection_permanent,
            fatal_retry_interval,
            forbidden_retry_interval,
            retry_interval,
            max_retries,
        } = self;
        let retry = &mut policy.retry;
        retry.fatal_retry_interval = fatal_retry_interval.unwrap_or(retry.fatal_retry_interval);
        retry.forbidden_retry_interval =
            forbidden_retry_interval.unwrap_or(retry.forbidden_retry_interval);
        retry.retry_interval = retry_interval.unwrap_or(retry.retry_interval);
        retry.max_retries = max_retries.unwrap_or(retry.max_retries);
        let auth = &mut policy.auth;
        auth.auth_rejection_permanent =
            auth_rejection_permanent.unwrap_or(auth.auth_rejection_permanent);
    }
}

impl RegistrationBuilder {
    /// Whether refused or missing credentials end the registration; default `true`, as the policy has it.
    pub const fn auth_rejection_permanent(mut self, permanent: bool) -> Self {
        self.explicit.auth_rejection_permanent = Some(permanent);
        self
    }

    /// The address of record, for From and To; required, up to 511 bytes.
    pub fn client_uri<C: TryInto<SipUri, Error: Into<UriError>>>(mut self, uri: C) -> Self {
        self.client_uri = uri.try_into().map_err(Into::into);
        self
    }

    /// Parameters after the `>` of Contact, as `q=0.5;+sip.instance="<urn:…>"`; default none; `expires` is refused, as
    /// it would overrule the Expires header of an un-REGISTER.
    pub fn contact_header_params(mut self, params: impl Into<String>) -> Self {
        self.contact_header_params = params.into();
        self
    }

    /// The user part of Contact; default `s`.
    pub fn contact_user(mut self, user: impl Into<ContactUser>) -> Self {
        self.contact_user = user.into();
        self
    }

    /// The name that inbound requests with our `line` are for; default none; only together with `line`.
    pub fn endpoint(mut self, endpoint: impl Into<Arc<str>>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The lifetime that is asked for, in whole seconds, the rest is cut off; default 3600 s, at least 1 s
    ///
    /// Grants over 604,800 s are refreshed as if they were that long (D9). 4294967295 s means a REGISTER without
    /// Expires, where the policy's `allow_no_expires` is on.
    pub const fn expiration(mut self, expiration: Duration) -> Self {
        self.expiration = expiration;
        self
    }

    /// The wait after a fatal response; default 0 s, as the policy has it: never again.
    pub const fn fatal_retry_interval(mut self, interval: Duration) -> Self {
        self.explicit.fatal_retry_interval = Some(interval);
        self
    }

    /// The wait after a 403; default 0 s, as the policy has it: as after other fatal responses.
    pub const fn forbidden_retry_interval(mut self, interval: Duration) -> Self {
        self.explicit.forbidden_retry_interval = Some(interval);
        self
    }

    /// Whether Contact carries a random `line` token by which inbound requests are found; default `false`; only
    /// together with `endpoint`.
    pub const fn line(mut self, line: bool) -> Self {
        self.line = line;
        self
    }

    /// Within what time the first REGISTER is sent at random; default 10 s, up to 4294967295 s.
    pub const fn max_random_initial_delay(mut self, most: Duration) -> Self {
        self.max_random_initial_delay = most;
        self
    }

    /// How many retries follow the first attempt; default 10, as the policy has it; 0 is none.
    pub const fn max_retries(mut self, retries: u32) -> Self {
        self.explicit.max_retries = Some(Some(retries));
        self
    }

    /// No limit for retries, in place of `max_retries` (D3 and D6 still hold).
    pub const fn unlimited_retries(mut self) -> Self {
        self.explicit.max_retries = Some(None);
        self
    }

    /// Adds credentials; default none; the first of several for a realm is used, those for any realm last.
    pub fn outbound_auth(mut self, credentials: Credentials) -> Self {
        self.outbound_auth.push(credentials);
        self
    }

    /// Adds Route values, as `sip:proxy.example.com;lr` or `<sip:a;lr>, <sip:b;lr>`; default none.
    pub fn outbound_proxy(mut self, routes: impl Into<String>) -> Self {
        self.outbound_proxy.push(RedactedText(routes.into()));
        self
    }

    /// The wait after a temporary failure; default 60 s, as the policy has it; 0 makes temporary failures fatal ones.
    pub const fn retry_interval(mut self, interval: Duration) -> Self {
        self.explicit.retry_interval = Some(interval);
        self
    }

    /// Adds mechanisms, as `sdes-srtp;mediasec, dtls-srtp;mediasec` (RFC 3329 §2.2); default none.
    pub fn security_mechanisms(mut self, mechanisms: impl Into<String>) -> Self {
        self.security_mechanisms.push(mechanisms.into());
        self
    }

    /// Which security agreement is negotiated; default none.
    pub const fn security_negotiation(mut self, negotiation: SecurityNegotiation) -> Self {
        self.security_negotiation = negotiation;
        self
    }

    /// The registrar; required, up to 511 bytes; the Request-URI as it is written, headers after `?` become headers.
    pub fn server_uri<S: TryInto<SipUri, Error: Into<UriError>>>(mut self, uri: S) -> Self {
        self.server_uri = uri.try_into().map_err(Into::into);
        self
    }

    /// Whether `Supported: outbound` is sent; default `false` (RFC 5626).
    pub const fn support_outbound(mut self, support: bool) -> Self {
        self.support_outbound = support;
        self
    }

    /// Whether `Supported: path` is sent; default `false` (RFC 3327).
    pub const fn support_path(mut self, support: bool) -> Self {
        self.support_path = support;
        self
    }

    /// The name of the transport; default the one that `server_uri` and the resolver lead to.
    pub fn transport(mut self, name: impl Into<Arc<str>>) -> Self {
        self.transport = Some(name.into());
        self
    }

    /// The User-Agent header; default the library's own.
    pub fn user_agent(mut self, user_agent: impl Into<Arc<str>>) -> Self {
        self.user_agent = Some(user_agent.into());
        self
    }

    /// The behaviour; default [`Policy::default`]; options that are set here win over it, whatever the order.
    pub fn policy(mut self, policy: impl Into<Arc<Policy>>) -> Self {
        self.policy = policy.into();
        self
    }

    /// Parameters of the Contact URI, as `bnc`; default none; `transport` and `line` are ours (D26).
    pub fn contact_uri_params(mut self, params: impl Into<String>) -> Self {
        self.contact_uri_params = params.into();
        self
    }

    /// Adds a header to each REGISTER; default none; none of those that the library writes.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(ExtraHeader {
            name: name.into(),
            value: value.trim().into(),
        });
        self
    }

    /// Sets the methods in Allow; default none: no Allow header (DECISIONS §3).
    pub fn allow<M: AsRef<str>>(mut self, methods: impl IntoIterator<Item = M>) -> Self {
        self.allow = methods
            .into_iter()
            .map(|method| method.as_ref().into())
            .collect();
        self
    }

    /// Adds an option tag to Supported; default none.
    pub fn supported(mut self, tag: &str) -> Self {
        self.supported.push(tag.into());
        self
    }

    /// Adds an option tag to Require, as `gin`; default none (D26).
    pub fn require(mut self, tag: &str) -> Self {
        self.require.push(tag.into());
        self
    }

    /// Adds an option tag to Proxy-Require, as `gin`; default none (D26).
    pub fn proxy_require(mut self, tag: &str) -> Self {
        self.proxy_require.push(tag.into());
        self
    }

    /// Checks everything, in the order of the reference.
    pub fn build(self) -> Result<Registration, BuildError> {
        let server_uri = checked_uri("server_uri", self.server_uri)?;
        let client_uri = checked_uri("client_uri", self.client_uri)?;
        let endpoint = checked_text("endpoint", self.endpoint)?;
        let transport = checked_text("transport", self.transport)?;
        let user_agent = checked_text("user_agent", self.user_agent)?;
        if self.line && endpoint.is_none() {
            return Err(BuildError::LineWithoutEndpoint);
        }
        if let Some(value) = endpoint.as_ref().filter(|_| !self.line) {
            return Err(BuildError::EndpointWithoutLine {
                value: value.clone(),
            });
        }

        let mut policy = self.policy;
        let mut changed = Policy::clone(&policy);
        self.explicit.apply(&mut changed);
        changed.check()?;
        // Nothing was overridden: the policy stays shared.
        if changed != *policy {
            policy = Arc::new(changed);
        }

        let expiration = match u32::try_from(self.expiration.as_secs()) {
            Ok(0) | Err(_) => {
                return Err(BuildError::Expiration {
                    value: self.expiration,
                });
            }
            Ok(u32::MAX) if !policy.allow_no_expires => return Err(BuildError::NoExpires),
            Ok(expiration) => expiration,
        };
        let (least, most) = (Duration::ZERO, Duration::from_secs(u32::MAX.into()));
        if self.max_random_initial_delay > most {
            let value = self.max_random_initial_delay;
            return Err(BuildError::Interval {
                option: "max_random_initial_delay",
                value,
                least,
                most,
            });
        }
        if let Some(value) = self
            .contact_user
            .as_str()
            .filter(|user| !syntax::is_user(user))
        {
            return Err(BuildError::ContactUser {
                value: value.into(),
            });
        }
        for credentials in &self.outbound_auth {
            credentials.check().map_err(BuildError::Credentials)?;
        }
        let mut outbound_proxy = Vec::new();
        for RedactedText(text) in self
            .outbound_proxy
            .iter()
            .filter(|text| !text.0.trim().is_empty())
        {
            Route::parse_list(text, policy.auto_lr, &mut outbound_proxy)?;
        }
        let mut mechanisms = Vec::new();
        for text in &self.security_mechanisms {
            mechanisms.extend(Mechanism::parse_list(text)?);
        }
        let mut headers = uri_headers(&server_uri)?;
        headers.extend(self.headers);
        for header in &headers {
            check_header(header)?;
        }
        for (option, tokens) in [
            ("allow", &self.allow),
            ("supported", &self.supported),
            ("require", &self.require),
            ("proxy_require", &self.proxy_require),
        ] {
            if let Some(value) = tokens.iter().find(|token| !syntax::is_token(token)) {
                return Err(BuildError::Token {
                    option,
                    value: value.clone(),
                });
            }
        }
        let extra = Extra {
            contact_header_params: checked_header_params(&self.contact_header_params)?,
            contact_uri_params: checked_uri_params(&self.contact_uri_params)?,
            security_mechanisms: mechanisms.into(),
            headers: headers.into(),
            allow: (!self.allow.is_empty()).then(|| self.allow.join(", ").into()),
            supported: self.supported.into(),
            require: self.require.into(),
            proxy_require: self.proxy_require.into(),
        };
        let often = Often {
            aor: aor(&client_uri),
            endpoint,
            transport,
            user_agent,
            outbound_proxy: outbound_proxy.into(),
        };
        // 4294967295 s, the most there can be, fit in 64 bits of nanoseconds.
        let delay = u64::try_from(self.max_random_initial_delay.as_nanos()).unwrap_or(u64::MAX);
        Ok(Registration {
            server_uri,
            client_uri,
            contact_user: self.contact_user,
            expiration,
            line: self.line,
            support_outbound: self.support_outbound,
            support_path: self.support_path,
            security_negotiation: self.security_negotiation,
            max_random_initial_delay: delay,
            outbound_auth: self.outbound_auth.into(),
            policy,
            often: (often != Often::default()).then(|| Box::new(often)),
            extra: (extra != Extra::default()).then(|| Box::new(extra)),
        })
    }
}

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

/// The longest URI that pjsip takes.
const MAX_URI: usize = 511;
/// The longest host with a port, and without one, as `_sips._tcp.` goes before it.
const MAX_HOST: (usize, usize) = (255, 245);
/// The headers of a REGISTER that the library writes, their compact forms, and those of a body.
const OURS: [&str; 31] = [
    "Via",
    "v",
    "Route",
    "Record-Route",
    "Max-Forwards",
    "From",
    "f",
    "To",
    "t",
    "Call-ID",
    "i",
    "CSeq",
    "Contact",
    "m",
    "Expires",
    "Content-Length",
    "l",
    "Content-Type",
    "c",
    "Authorization",
    "Proxy-Authorization",
    "User-Agent",
    "Supported",
    "k",
    "Require",
    "Proxy-Require",
    "Allow",
    "Security-Client",
    "Security-Verify",
    "Content-Encoding",
    "e",
];

fn checked_uri(option: &'static str, uri: Result<SipUri, UriError>) -> Result<SipUri, BuildError> {
    let uri = uri.map_err(|source| BuildError::Uri { option, source })?;
    let length = uri.as_str().len();
    if length > MAX_URI {
        return Err(BuildError::UriLength { option, length });
    }
    let length = uri.host_text().len();
    let most = if uri.port().is_some() {
        MAX_HOST.0
    } else {
        MAX_HOST.1
    };
    if length > most {
        return Err(BuildError::HostLength {
            option,
            length,
            most,
        });
    }
    Ok(uri)
}

/// An empty text is as none, as in pjsip.conf.
fn checked_text(
    option: &'static str,
    text: Option<Arc<str>>,
) -> Result<Option<Arc<str>>, BuildError> {
    match text.filter(|text| !text.is_empty()) {
        Some(value) if !syntax::is_text(&value) => Err(BuildError::Text { option, value }),
        text => Ok(text),
    }
}

fn checked_header_params(text: &str) -> Result<Option<Box<str>>, BuildError> {
    let refused = |rule| {
        Err(BuildError::ContactHeaderParams {
            value: text.into(),
            rule,
        })
    };
    let trimmed = text.trim_matches(' ');
    let params = trimmed.strip_prefix(';').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return Ok(None);
    }
    if !syntax::is_params(params) {
        return refused("is not name, name=token or name=\"text\", with ; between");
    }
    let mut names =
        syntax::split(params, ';').map(|param| param.split('=').next().unwrap_or_default().trim());
    if names.any(|name| name.eq_ignore_ascii_case("expires")) {
        return refused("has expires: use the option expiration");
    }
    Ok(Some(params.into()))
}

fn checked_uri_params(text: &str) -> Result<Option<Box<str>>, BuildError> {
    let refused = |rule| {
        Err(BuildError::ContactUriParams {
            value: text.into(),
            rule,
        })
    };
    let trimmed = text.trim_matches(' ');
    let params = trimmed.strip_prefix(';').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return Ok(None);
    }
    // Whatever is the parameters of a URI and nothing else in it.
    match SipUri::parse(&format!("sip:h;{params}")) {
        Ok(_) if params.contains(['<', '>', ',', '"', '?']) => {
            refused("has a character that must be escaped")
        }
        Ok(uri) if uri.has_param("transport") || uri.has_param("line") => {
            refused("has a parameter of ours")
        }
        Ok(_) => Ok(Some(params.into())),
        Err(_) => refused("is not name or name=value of a sip uri, with ; between, each once"),
    }
}

fn check_header(header: &ExtraHeader) -> Result<(), BuildError> {
    let name = || header.name.clone();
    if !syntax::is_token(&header.name) {
        return Err(BuildError::HeaderName { name: name() });
    }
    if OURS
        .iter()
        .chain(&["Body"])
        .any(|ours| ours.eq_ignore_ascii_case(&header.name))
    {
        return Err(BuildError::HeaderReserved { name: name() });
    }
    if !syntax::is_text(&header.value) {
        return Err(BuildError::HeaderValue { name: name() });
    }
    Ok(())
}

/// The headers of a URI, unescaped, to be checked like any other: an escaped line break is one.
fn uri_headers(uri: &SipUri) -> Result<Vec<ExtraHeader>, BuildError> {
    let pairs = uri
        .headers()
        .into_iter()
        .flat_map(|headers| headers.split('&'));
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let refused = || BuildError::HeaderValue { name: name.into() };
            let value = syntax::unescape(value).ok_or_else(refused)?;
            let plain = syntax::unescape(name).ok_or_else(refused)?;
            Ok(ExtraHeader {
                name: plain.into(),
                value: value.into(),
            })
        })
        .collect()
}

/// The URI for From and To, where it differs from `uri` as it was written.
fn aor(uri: &SipUri) -> Option<Box<str>> {
    let mut text = match uri.scheme() {
        Scheme::Sip => "sip:".to_owned(),
        Scheme::Sips => "sips:".to_owned(),
    };
    if let Some(user) = uri.user() {
        text.push_str(user);
        text.push('@');
    }
    text.push_str(uri.host_text());
    let gone = ["transport", "ttl", "method", "maddr"];
    for (name, value) in uri
        .params()
        .filter(|(name, _)| !gone.iter().any(|gone| gone.eq_ignore_ascii_case(name)))
    {
        text.push(';');
        text.push_str(name);
        if let Some(value) = value {
            text.push('=');
            text.push_str(value);
        }
    }
    (text != uri.as_str()).then(|| text.into())
}

/// The realm of credentials, `None` where they are for any.
fn realm(credentials: &Credentials) -> Option<&str> {
    credentials
        .bound_realm()
        .filter(|realm| !realm.is_empty() && *realm != "*")
}

/// Those that can be plugged in count as known.
fn is_transport(name: &str) -> bool {
    Protocol::from_name(name).is_some()
        || ["tls", "ws", "wss"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
}

/// The grammar of RFC 3261 §25.1, as far as configuration needs it.
mod syntax {
    /// The parts between separators that are neither in quotes nor in `<>`.
    pub(super) fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
        let mut rest = Some(text);
        std::iter::from_fn(move || {
            let current = rest?;
            let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
            let end = current.char_indices().find_map(|(at, c)| {
                match c {
                    _ if escaped => escaped = false,
                    '\\' if quoted => escaped = true,
                    '"' => quoted = !quoted,
                    _ if quoted => {}
                    '<' => bracketed = true,
                    '>' => bracketed = false,
                    c if c == separator && !bracketed => return Some(at),
                    _ => {}
                }
                None
            });
            rest = end.and_then(|at| current.get(at + separator.len_utf8()..));
            Some(end.and_then(|at| current.get(..at)).unwrap_or(current))
        })
    }

    pub(super) fn is_token(text: &str) -> bool {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b))
    }

    /// Text without control characters; UTF-8 is legal in it.
    pub(super) fn is_text(text: &str) -> bool {
        !text.chars().any(char::is_control)
    }

    /// A user part without password: escapes, unreserved and user-unreserved characters.
    pub(super) fn is_user(text: &str) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&b);
        !text.is_empty()
            && text.len() <= 255
            && text.bytes().all(|b| plain(b) || b == b'%')
            && unescape(text).is_some()
    }

    /// A `generic-param`: `name`, `name=token`, `name=host` or `name="text"`.
    pub(super) fn is_param(text: &str) -> bool {
        let Some((name, value)) = text.split_once('=') else {
            return is_token(text.trim_matches(' '));
        };
        let value = value.trim_matches(' ');
        let inner = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        let legal = match inner {
            Some(inner) => is_quotable(inner),
            None => is_token(value) || is_address(value),
        };
        is_token(name.trim_matches(' ')) && legal
    }

    /// A list of parameters, without a `;` before it.
    pub(super) fn is_params(text: &str) -> bool {
        split(text, ';').all(is_param)
    }

    /// The text with its `%HH` decoded; `None` where one is malformed or the result is no UTF-8.
    pub(super) fn unescape(text: &str) -> Option<String> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'%' => {
                    let mut digit = || {
                        char::from(rest.next()?)
                            .to_digit(16)
                            .and_then(|digit| u8::try_from(digit).ok())
                    };
                    let high = digit()?;
                    high * 16 + digit()?
                }
                byte => byte,
            });
        }
        String::from_utf8(bytes).ok()
    }

    /// Whether a text between quotes ends where they end.
    fn is_quotable(inner: &str) -> bool {
        let mut escaped = false;
        for c in inner.chars() {
            match c {
                c if c.is_control() => return false,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return false,
                _ => {}
            }
        }
        !escaped
    }

    fn is_address(value: &str) -> bool {
        let inner = value
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assert_matches::assert_matches;

    type Edit = fn(RegistrationBuilder) -> RegistrationBuilder;

    fn builder() -> RegistrationBuilder {
        Registration::builder("sip:example.com", "sip:alice@example.com")
    }

    fn built(builder: RegistrationBuilder) -> Registration {
        builder.build().unwrap_or_else(|error| panic!("{error}"))
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let r = built(builder());
        assert_eq!(
            (
                r.expiration(),
                r.max_random_initial_delay(),
                r.max_retries()
            ),
            (3600, secs(10), Some(10))
        );
        assert_eq!(
            (
                r.retry_interval(),
                r.forbidden_retry_interval(),
                r.fatal_retry_interval()
            ),
            (secs(60), secs(0), secs(0))
        );
        assert!(
            r.auth_rejection_permanent() && !r.line() && !r.support_path() && !r.support_outbound()
        );
        assert_eq!(
            (r.contact_user().as_str(), r.type_(), r.aor_text()),
            (Some("s"), "registration", "sip:alice@example.com")
        );
        assert!(r.extra.is_none() && r.warnings().is_empty());
    }

    #[test]
    fn explicit_options_win_over_the_policy_in_any_order() {
        for r in [
            builder().max_retries(3).policy(Policy::persistent()),
            builder().policy(Policy::persistent()).max_retries(3),
        ] {
            let r = built(r);
            assert_eq!(
                (r.max_retries(), r.fatal_retry_interval()),
                (Some(3), secs(1800))
            );
        }
        let shared = Arc::new(Policy::asterisk());
        assert!(Arc::ptr_eq(
            &shared,
            built(builder().policy(Arc::clone(&shared)).max_retries(10)).policy()
        ));
    }

    #[test]
    fn each_rule_has_its_error() {
        let table: &[(Edit, &str)] = &[
            (|b| b.server_uri("tel:1"), "server_uri is not a sip"),
            (|b| b.client_uri(""), "client_uri is not a sip"),
            (
                |b| b.server_uri(format!("sip:{}@h", "a".repeat(600))),
                "server_uri has 606 bytes",
            ),
            (
                |b| b.client_uri(format!("sip:{}x", "a.".repeat(125))),
                "host of 251 bytes",
            ),
            (|b| b.line(true), "line is on without"),
            (|b| b.endpoint("e"), "without line"),
            (|b| b.expiration(secs(0)), "expiration is 0ns"),
            (|b| b.expiration(secs(u64::MAX)), "expiration is"),
            (|b| b.expiration(secs(u32::MAX.into())), "allow_no_expires"),
            (|b| b.contact_user("a b"), "contact_user"),
            (|b| b.contact_user("a%4"), "contact_user"),
            (
                |b| b.contact_header_params("q=1\r\nX: y"),
                "contact_header_params",
            ),
            (
                |b| b.contact_header_params("q=1, <sip:x>"),
                "contact_header_params",
            ),
            (
                |b| b.contact_header_params("Expires=5"),
                "use the option expiration",
            ),
            (|b| b.contact_uri_params("line=x"), "of ours"),
            (|b| b.contact_uri_params("a>"), "contact_uri_params"),
            (|b| b.contact_uri_params("a;a"), "contact_uri_params"),
            (
                |b| b.outbound_proxy("proxy"),
                "outbound_proxy has no sip or sips uri at index 0",
            ),
            (|b| b.outbound_proxy("<sip:a;lr>, <sip:b"), "at index 1"),
            (|b| b.outbound_proxy("<sip:a>\r\nX: y"), "outbound_proxy"),
            (|b| b.user_agent("a\r\nb"), "user_agent"),
            (|b| b.transport("a\0"), "transport"),
            (|b| b.security_mechanisms("tls"), "security_mechanisms"),
            (
                |b| b.outbound_auth(Credentials::password("", "secret")),
                "outbound_auth",
            ),
            (|b| b.header("X Y", ""), "no token"),
            (|b| b.header("VIA", "x"), "written by the library"),
            (|b| b.header("X-Y", "secret\r\nX: y"), "control character"),
            (|b| b.server_uri("sip:h?X=%0d%0aY:z"), "control character"),
            (
                |b| b.server_uri("sip:h?Route=%3Csip:x%3E"),
                "written by the library",
            ),
            (|b| b.allow(["INVITE", "A B"]), "allow"),
            (|b| b.supported(""), "supported"),
            (
                |b| b.max_random_initial_delay(Duration::MAX),
                "max_random_initial_delay",
            ),
            (|b| b.retry_interval(Duration::MAX), "retry_interval"),
        ];
        for (edit, text) in table {
            let error = edit(builder()).build().expect_err(text).to_string();
            assert!(
                error.contains(text) && !error.contains("secret"),
                "{text}: {error}"
            );
        }
        let no_expires = builder()
            .policy(Policy::asterisk())
            .expiration(secs(u32::MAX.into()));
        assert_eq!(built(no_expires).expiration(), u32::MAX);
    }

    #[test]
    fn changes_are_as_strong_as_the_registrar_sees_them() {
        use Change::{InPlace, Registers, Replaces, Untouched};
        let table: &[(Edit, Change)] = &[
            (|b| b, Untouched),
            (|b| b.contact_user(""), Untouched),
            (|b| b.retry_interval(secs(5)), InPlace),
            (|b| b.policy(Policy::asterisk()), InPlace),
            (|b| b.max_random_initial_delay(secs(0)), InPlace),
            (
                |b| b.outbound_auth(Credentials::password("a", "b")),
                InPlace,
            ),
            (|b| b.expiration(secs(60)), Registers),
            (|b| b.contact_header_params("q=1"), Registers),
            (|b| b.user_agent("x"), Registers),
            (|b| b.support_path(true), Registers),
            (|b| b.support_outbound(true), Registers),
            (
                |b| b.security_negotiation(SecurityNegotiation::Mediasec),
                Registers,
            ),
            (|b| b.security_mechanisms("none"), Registers),
            (|b| b.header("X", "y"), Registers),
            (|b| b.allow(["INVITE"]), Registers),
            (
                |b| b.require("gin").proxy_require("gin").supported("x"),
                Registers,
            ),
            (|b| b.server_uri("sip:other.example"), Replaces),
            (|b| b.client_uri("sip:bob@example.com"), Replaces),
            (|b| b.contact_user(ContactUser::None), Replaces),
            (|b| b.contact_uri_params("bnc"), Replaces),
            (|b| b.line(true).endpoint("e"), Replaces),
            (|b| b.transport("wan"), Replaces),
            (
                |b| b.outbound_proxy("sip:p;lr").expiration(secs(60)),
                Replaces,
            ),
        ];
        let from = built(builder());
        for (index, (edit, change)) in table.iter().enumerate() {
            let to = built(edit(builder()));
            assert_eq!(
                (from.change_to(&to), to.change_to(&from)),
                (*change, *change),
                "row {index}"
            );
        }
    }

    #[test]
    fn the_aor_and_the_request_uri_leave_out_what_cannot_be_there() {
        let r = built(Registration::builder(
            "sip:them@h:5061;x=y?X-A=b%20c&X-D=",
            "sip:u:pw@127.0.0.1:5060;transport=udp;user=phone;MADDR=h?x=y",
        ));
        assert_eq!(r.aor_text(), "sip:u@127.0.0.1;user=phone");
        assert_eq!(r.request_uri(), "sip:them@h:5061;x=y");
        assert_eq!(
            r.headers().collect::<Vec<_>>(),
            [("X-A", "b c"), ("X-D", "")]
        );
    }

    #[test]
    fn routes_are_written_as_name_addr_and_lr_is_added_on_demand() {
        let routes = builder()
            .outbound_proxy("sip:a;lr, <sip:b>;x=y")
            .outbound_proxy("<sip:u:pw@c;lr>");
        let written = |r: &Registration| {
            r.outbound_proxy()
                .iter()
                .map(Route::to_string)
                .collect::<Vec<_>>()
        };
        let r = built(routes.clone());
        assert_eq!(
            written(&r),
            ["<sip:a;lr>", "<sip:b>;x=y", "<sip:u:pw@c;lr>"]
        );
        assert_eq!(r.first_route().map(SipUri::host), Some("a"));
        assert_matches!(r.warnings()[..], [ConfigWarning::StrictRoute { .. }]);
        let debug = format!("{r:?} {routes:?}");
        assert!(!debug.contains("pw"), "{debug}");
        let auto_lr = Policy {
            auto_lr: true,
            ..Policy::default()
        };
        assert_eq!(written(&built(routes.policy(auto_lr)))[1], "<sip:b;lr>;x=y");
    }

    #[test]
    fn what_may_not_be_meant_is_warned_about() {
        let r = built(
            builder()
                .expiration(secs(30))
                .server_uri("sip:h;transport=foo"),
        );
        assert_matches!(
            r.warnings()[..],
            [
                ConfigWarning::UnknownTransport { .. },
                ConfigWarning::ShortLead { .. }
            ]
        );
        let any = || Credentials::password("a", "b");
        let r = built(
            builder()
                .outbound_auth(any())
                .outbound_auth(any())
                .policy(Policy::asterisk()),
        );
        assert_eq!(r.warnings(), [ConfigWarning::DuplicateWildcard]);
    }

    #[test]
    fn a_sip_instance_is_a_contact_parameter() {
        let text = ";+sip.instance=\"<urn:uuid:0;,>\";reg-id=1;q=0.5";
        assert_eq!(
            built(builder().contact_header_params(text)).contact_header_params(),
            text.strip_prefix(';')
        );
    }
}
