//! What a registration is to do: the 22 options of the reference, the policy, and the checks on both.

mod builder;
pub(crate) mod ceiling;
pub(crate) mod credentials;
mod error;
mod instance;
mod keep_alive;
mod policy;
mod security;
pub(crate) mod syntax;
#[cfg(test)]
mod tests;
mod transport;

pub use builder::RegistrationBuilder;
use builder::{Explicit, is_transport, realm};
pub use credentials::{Algorithm, Credentials, CredentialsError, Secret};
pub use error::{BuildError, ConfigWarning};
pub use instance::{InstanceId, InstanceIdError};
pub use keep_alive::{ContactRewriting, KeepAlivePolicy, UdpKeepAlive};
pub use policy::{
    AuthPolicy, InboundFrom, InitialDelay, Policy, Redirects, RefreshLead, RefreshPolicy,
    RetryPolicy, Timers,
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
    /// The same with another registrar or proxy.
    fallbacks: Box<[Arc<Registration>]>,
    instance: Option<InstanceId>,
    /// The number of this flow among those of the instance, where outbound is on; never 0.
    reg_id: u8,
    /// How many flows there are, this one included; 0 without outbound.
    flows: u8,
    /// The same through another proxy, each with its own reg-id.
    further_flows: Box<[Arc<Registration>]>,
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
            fallbacks: Vec::new(),
            headers: Vec::new(),
            allow: Vec::new(),
            supported: Vec::new(),
            require: Vec::new(),
            proxy_require: Vec::new(),
            instance: None,
            outbound: false,
            further_flows: Vec::new(),
            reg_id: 1,
            flows: 1,
            gruu: false,
            gin: false,
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

    /// What is tried in this order when the first choice cannot be reached: the same, with another registrar or proxy
    /// (`fallback_server`, `fallback_proxy`).
    #[must_use]
    pub fn fallbacks(&self) -> &[Arc<Self>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.fallbacks)
    }

    /// The first choice for 0, the fallbacks from 1.
    pub(crate) fn choice(&self, number: u8) -> &Self {
        let fallback = usize::from(number).checked_sub(1);
        fallback
            .and_then(|index| self.fallbacks().get(index))
            .map_or(self, |fallback| fallback)
    }

    /// Where the fallbacks go.
    fn ways(&self) -> impl Iterator<Item = (&SipUri, &[Route])> {
        self.fallbacks()
            .iter()
            .map(|other| (&other.server_uri, other.outbound_proxy()))
    }

    /// Which device this is, where it was said (`instance`, RFC 5626 §4.1).
    #[must_use]
    pub fn instance(&self) -> Option<&InstanceId> {
        self.extra.as_ref()?.instance.as_ref()
    }

    /// The number of the flow in Contact, where RFC 5626 is really done (`outbound`); 1 for the first or only one.
    #[must_use]
    pub fn reg_id(&self) -> Option<u8> {
        let extra = self.extra.as_ref()?;
        (extra.reg_id > 0).then_some(extra.reg_id)
    }

    /// Whether flows are registered as RFC 5626 has it, not only advertised (`outbound`).
    #[must_use]
    pub fn outbound(&self) -> bool {
        self.reg_id().is_some()
    }

    /// The flows beside the first one: the same through another proxy, with the reg-ids from 2 on (`further_flow`).
    #[must_use]
    pub fn further_flows(&self) -> &[Arc<Self>] {
        self.extra
            .as_ref()
            .map_or(&[], |extra| &extra.further_flows)
    }

    /// How many flows the registration has in all, this one included; none without outbound.
    pub(crate) fn flow_count(&self) -> Option<u8> {
        let extra = self.extra.as_ref()?;
        (extra.flows > 0).then_some(extra.flows)
    }

    /// Whether GRUUs are asked for (`gruu`, RFC 5627).
    #[must_use]
    pub fn gruu(&self) -> bool {
        self.supported()
            .iter()
            .any(|tag| tag.eq_ignore_ascii_case("gruu"))
    }

    /// Whether all numbers of a trunk are registered with one REGISTER (`gin`, RFC 6140).
    #[must_use]
    pub fn gin(&self) -> bool {
        self.contact_user == ContactUser::None
            && self
                .require()
                .iter()
                .any(|tag| tag.eq_ignore_ascii_case("gin"))
    }

    /// What `+sip.instance` and `reg-id` say, whether by options of their own or by `contact_header_params`.
    pub(crate) fn named(&self) -> (Option<String>, Option<String>) {
        let params = self.contact_header_params().unwrap_or_default();
        let configured = |name: &str| {
            syntax::split(params, ';')
                .filter_map(|param| param.split_once('='))
                .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
        };
        let instance = self.instance().map(|instance| format!("<{instance}>"));
        let reg_id = self.reg_id().map(|number| number.to_string());
        (
            instance.or_else(|| configured("+sip.instance")),
            reg_id.or_else(|| configured("reg-id")),
        )
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

    /// Whether the configuration says which protocol is used: by `transport`, by the URI that is located, or by `sips`.
    pub(crate) fn pins_protocol(&self) -> bool {
        let located = self.first_route().unwrap_or(&self.server_uri);
        self.transport().is_some()
            || located.has_param("transport")
            || located.scheme() == Scheme::Sips
            || self.is_sips()
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
            && self.outbound_proxy() == to.outbound_proxy()
            && self.ways().eq(to.ways())
            && self.instance() == to.instance()
            && self.reg_id() == to.reg_id();
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
        let first = if same_request {
            Change::InPlace
        } else {
            Change::Registers
        };
        // A flow more or less leaves the others alone.
        let (flows, others) = (self.further_flows(), to.further_flows());
        let more = (flows.len() != others.len()).then_some(Change::Registers);
        let further = flows
            .iter()
            .zip(others)
            .map(|(from, to)| from.change_to(to));
        further.chain(more).fold(first, Change::max)
    }
}

/// What a reconfiguration takes, see [`Registration::change_to`]
///
/// | changed | |
/// |---|---|
/// | nothing | `Untouched` |
/// | policy and its options, `outbound_auth`, `endpoint`, `max_random_initial_delay` | `InPlace` |
/// | `expiration`, `contact_header_params`, `user_agent`, `support_…`, `security_…`, header, allow, supported, require, proxy_require, gruu, how many flows | `Registers` |
/// | `server_uri`, `client_uri`, `contact_user`, contact_uri_params, `line`, `transport`, `outbound_proxy`, `fallback_…`, instance, outbound, gin, where a further flow goes | `Replaces` |
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

impl From<&String> for ContactUser {
    /// An empty text is the default, `s`, as in pjsip.conf.
    fn from(name: &String) -> Self {
        Self::from(name.as_str())
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
