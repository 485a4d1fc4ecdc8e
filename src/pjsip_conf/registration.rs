//! The section `type=registration`: its 22 options, and what of the file they name.

use super::auth::AuthSection;
use super::diagnostic::Rule;
use super::objects::{Global, System};
use super::reader::Reader;
use super::transport::TransportSection;
use crate::config::syntax;
use crate::{
    Algorithm, BuildError, ConfigWarning, Credentials, Mechanism, Policy, Protocol, Registration,
    RegistrationBuilder, Scheme, SecurityNegotiation, SipUri,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A section `type=registration` that was accepted
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RegistrationSection {
    /// What it means
    pub registration: Arc<Registration>,
    /// The ids of its `auth` sections, as it names them; those that are not usable included
    pub outbound_auth: Box<[Arc<str>]>,
    /// The file it is in
    pub file: Arc<str>,
    /// The line of its header
    pub line: u32,
}

/// What the file has beside its registrations.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) auths: &'a BTreeMap<Arc<str>, AuthSection>,
    pub(super) transports: &'a [TransportSection],
    pub(super) endpoints: &'a BTreeSet<Arc<str>>,
    pub(super) global: &'a Global,
    pub(super) policies: Policies,
}

/// The policies in use: a hundred thousand registrations share a few.
#[derive(Debug)]
pub(super) struct Policies {
    base: Policy,
    known: HashMap<Choice, Arc<Policy>>,
}

/// What a registration chooses of its policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Choice {
    auth_rejection_permanent: bool,
    fatal_retry_interval: u32,
    forbidden_retry_interval: u32,
    retry_interval: u32,
    max_retries: u32,
    algorithms: Vec<Algorithm>,
}

impl Policies {
    pub(super) fn new(mut base: Policy, system: &System, global: &Global) -> Self {
        base.timers.t1 = system.timer_t1;
        base.timers.t2 = base.timers.t2.max(system.timer_t1);
        base.timers.timer_f = system.timer_b;
        base.timers.connect_timeout = system.timer_b;
        // 0 is never; beyond a day it is the same.
        let interval = global.keep_alive_interval.min(Duration::from_secs(86_400));
        base.keep_alive.stream = Some(interval..=interval).filter(|_| !interval.is_zero());
        Self {
            base,
            known: HashMap::new(),
        }
    }

    fn of(&mut self, choice: Choice) -> Arc<Policy> {
        let base = &self.base;
        let made = self.known.entry(choice).or_insert_with_key(|choice| {
            let seconds = |number: u32| Duration::from_secs(number.into());
            let mut policy = base.clone();
            policy.auth.auth_rejection_permanent = choice.auth_rejection_permanent;
            policy.auth.algorithms.clone_from(&choice.algorithms);
            policy.retry.fatal_retry_interval = seconds(choice.fatal_retry_interval);
            policy.retry.forbidden_retry_interval = seconds(choice.forbidden_retry_interval);
            policy.retry.retry_interval = seconds(choice.retry_interval);
            policy.retry.max_retries = Some(choice.max_retries);
            Arc::new(policy)
        });
        Arc::clone(made)
    }
}

pub(super) fn registration(
    reader: &mut Reader<'_>,
    around: &mut Surroundings<'_>,
) -> Option<Registration> {
    let mut options = Options::read(reader, around);
    loop {
        match options.builder(&mut around.policies).build() {
            Ok(registration) => {
                for warning in registration.warnings() {
                    reader.warn_option(doubted(&warning), Rule::Doubtful(warning));
                }
                return Some(registration).filter(|_| !reader.is_refused());
            }
            // `build()` tells the first mistake; without it, it tells the next.
            Err(error) => {
                let option = refused(&error);
                reader.refuse_option(option, Rule::Registration(error));
                if !options.leave_out(option) {
                    return None;
                }
            }
        }
    }
}

/// What a section says, as far as it can be read; the rest has its default
#[derive(Debug)]
struct Options<'a> {
    server_uri: &'a str,
    client_uri: &'a str,
    contact_header_params: &'a str,
    contact_user: Option<&'a str>,
    endpoint: &'a str,
    expiration: Option<u32>,
    line: bool,
    max_random_initial_delay: Option<u32>,
    mediasec: bool,
    security_mechanisms: Vec<&'a str>,
    support_outbound: bool,
    support_path: bool,
    user_agent: Option<Arc<str>>,
    outbound_auth: Vec<Credentials>,
    outbound_proxy: &'a str,
    transport: Option<Arc<str>>,
    policy: Choice,
    /// The options that were refused, and count no more.
    left_out: BTreeSet<&'static str>,
}

/// What stands for a URI that was refused, so that the rest can be looked at.
const NOWHERE: &str = "sip:nowhere.invalid";

impl<'a> Options<'a> {
    /// Reads all lines, and says what is wrong with each by itself.
    fn read(reader: &mut Reader<'a>, around: &Surroundings<'_>) -> Self {
        let mut options = Self {
            server_uri: NOWHERE,
            client_uri: NOWHERE,
            contact_header_params: "",
            contact_user: None,
            endpoint: "",
            expiration: None,
            line: false,
            max_random_initial_delay: None,
            mediasec: false,
            security_mechanisms: Vec::new(),
            support_outbound: false,
            support_path: false,
            user_agent: around.global.user_agent.clone(),
            outbound_auth: Vec::new(),
            outbound_proxy: "",
            transport: None,
            policy: Choice {
                auth_rejection_permanent: true,
                fatal_retry_interval: 0,
                forbidden_retry_interval: 0,
                retry_interval: 60,
                max_retries: 10,
                algorithms: around.global.default_auth_algorithms_uac.clone(),
            },
            left_out: BTreeSet::new(),
        };
        for (option, uri) in [
            ("server_uri", &mut options.server_uri),
            ("client_uri", &mut options.client_uri),
        ] {
            match reader.last(option).filter(|at| !at.value.is_empty()) {
                Some(at) => *uri = &at.value,
                None => reader.refuse_option(option, Rule::Missing(option)),
            }
        }
        let (mut negotiated, mut offered, mut unknown) = (None, None, false);
        for (name, at) in reader.variables() {
            let value = &*at.value;
            let choice = &mut options.policy;
            let set = |field: &mut u32, number: Option<u32>| *field = number.unwrap_or(*field);
            match name.as_str() {
                "server_uri" | "client_uri" | "outbound_auth" | "transport" => {}
                "auth_rejection_permanent" => choice.auth_rejection_permanent = reader.boolean(at),
                "contact_header_params" => options.contact_header_params = value,
                "contact_user" => options.contact_user = Some(value),
                "endpoint" => options.endpoint = value,
                "expiration" => match reader.uint(at) {
                    Some(0) => {
                        reader.refuse(Some(at), Rule::NotOneOf("the seconds from 1 to 4294967295"))
                    }
                    number => options.expiration = number.or(options.expiration),
                },
                "fatal_retry_interval" => set(&mut choice.fatal_retry_interval, reader.uint(at)),
                "forbidden_retry_interval" => {
                    set(&mut choice.forbidden_retry_interval, reader.uint(at))
                }
                "line" => options.line = reader.boolean(at),
                "max_random_initial_delay" => {
                    options.max_random_initial_delay =
                        reader.uint(at).or(options.max_random_initial_delay)
                }
                "max_retries" => set(&mut choice.max_retries, reader.uint(at)),
                "outbound_proxy" => options.outbound_proxy = value,
                "retry_interval" => set(&mut choice.retry_interval, reader.uint(at)),
                "security_mechanisms" => offered = Some(at).filter(|at| !at.value.is_empty()),
                "security_negotiation" => match value {
                    _ if value.eq_ignore_ascii_case("no") => negotiated = None,
                    _ if value.eq_ignore_ascii_case("mediasec") => negotiated = Some(at),
                    _ => {
                        unknown = true;
                        reader.refuse(Some(at), Rule::NotOneOf("no, mediasec"));
                    }
                },
                "support_outbound" => options.support_outbound = reader.boolean(at),
                "support_path" => options.support_path = reader.boolean(at),
                "user_agent" => {
                    let own = Some(Arc::clone(&at.value)).filter(|own| !own.is_empty());
                    options.user_agent = own.or_else(|| around.global.user_agent.clone());
                }
                _ => reader.unknown(at),
            }
        }
        options.mediasec = negotiated.is_some();
        match (negotiated, offered) {
            // What it was to be is not known.
            _ if unknown => {}
            (Some(at), None) => {
                let rule = "security_negotiation without security_mechanisms offers none";
                reader.warn(Some(at), Rule::Negotiation(rule));
            }
            (None, Some(at)) => {
                let rule =
                    "security_mechanisms means nothing without security_negotiation=mediasec";
                reader.warn(Some(at), Rule::Negotiation(rule));
            }
            _ => {}
        }
        if let Some(at) = offered {
            for entry in syntax::split(&at.value, ',')
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
            {
                match Mechanism::parse(entry) {
                    Ok(_) => options.security_mechanisms.push(entry),
                    Err(error) => reader.warn(Some(at), Rule::Mechanism(error)),
                }
            }
        }
        for id in auth_ids(reader) {
            match around.auths.get(&id) {
                Some(auth) => options.authenticates_by(auth),
                None => reader.warn_option("outbound_auth", Rule::UnknownAuth(id)),
            }
        }
        let known =
            |name: &Arc<str>| around.endpoints.is_empty() || around.endpoints.contains(name);
        let endpoint = reader.last("endpoint");
        if let Some(at) = endpoint.filter(|at| !at.value.is_empty() && !known(&at.value)) {
            reader.warn(Some(at), Rule::UnknownEndpoint);
        }
        match transport(reader, around.transports) {
            Ok(name) => options.transport = name,
            Err(UriRefused) => drop(options.leave_out("server_uri")),
        }
        options
    }

    fn authenticates_by(&mut self, auth: &AuthSection) {
        for algorithm in &auth.algorithms {
            if !self.policy.algorithms.contains(algorithm) {
                self.policy.algorithms.push(*algorithm);
            }
        }
        self.outbound_auth.push(auth.credentials.clone());
    }

    fn builder(&self, policies: &mut Policies) -> RegistrationBuilder {
        let seconds = |number: u32| Duration::from_secs(number.into());
        let mut builder = Registration::builder(self.server_uri, self.client_uri)
            .contact_header_params(self.contact_header_params)
            .endpoint(self.endpoint)
            .line(self.line)
            .support_outbound(self.support_outbound)
            .support_path(self.support_path)
            .outbound_proxy(self.outbound_proxy)
            .policy(policies.of(self.policy.clone()));
        if let Some(user) = self.contact_user {
            builder = builder.contact_user(user);
        }
        if let Some(number) = self.expiration {
            builder = builder.expiration(seconds(number));
        }
        if let Some(number) = self.max_random_initial_delay {
            builder = builder.max_random_initial_delay(seconds(number));
        }
        if self.mediasec {
            builder = builder.security_negotiation(SecurityNegotiation::Mediasec);
        }
        for entry in &self.security_mechanisms {
            builder = builder.security_mechanisms(*entry);
        }
        if let Some(user_agent) = &self.user_agent {
            builder = builder.user_agent(Arc::clone(user_agent));
        }
        for credentials in &self.outbound_auth {
            builder = builder.outbound_auth(credentials.clone());
        }
        if let Some(name) = &self.transport {
            builder = builder.transport(Arc::clone(name));
        }
        builder
    }

    /// Gives an option that was refused its default; false where that does not help.
    fn leave_out(&mut self, option: &'static str) -> bool {
        match option {
            "server_uri" => self.server_uri = NOWHERE,
            "client_uri" => self.client_uri = NOWHERE,
            "contact_header_params" => self.contact_header_params = "",
            "contact_user" => self.contact_user = None,
            // The one without the other would be refused for what is no mistake of its own.
            "line" | "endpoint" => (self.line, self.endpoint) = (false, ""),
            "expiration" => self.expiration = None,
            "max_random_initial_delay" => self.max_random_initial_delay = None,
            "fatal_retry_interval" => self.policy.fatal_retry_interval = 0,
            "forbidden_retry_interval" => self.policy.forbidden_retry_interval = 0,
            "retry_interval" => self.policy.retry_interval = 60,
            "user_agent" => self.user_agent = None,
            "outbound_auth" => self.outbound_auth.clear(),
            "outbound_proxy" => self.outbound_proxy = "",
            "security_mechanisms" => self.security_mechanisms.clear(),
            "transport" => self.transport = None,
            _ => return false,
        }
        self.left_out.insert(option)
    }
}

/// The ids that the last `outbound_auth` names.
pub(super) fn auth_ids(reader: &Reader<'_>) -> Box<[Arc<str>]> {
    let value = reader
        .last("outbound_auth")
        .map(|at| &*at.value)
        .unwrap_or_default();
    value
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .map(Arc::from)
        .collect()
}

/// `server_uri` was refused for its parameters.
struct UriRefused;

/// The transport that the registration names; whether there is one that can carry it at all
fn transport(
    reader: &mut Reader<'_>,
    transports: &[TransportSection],
) -> Result<Option<Arc<str>>, UriRefused> {
    let named = reader.last("transport").filter(|at| !at.value.is_empty());
    let found = named.and_then(|at| {
        let mut all = transports.iter();
        all.find(|transport| *transport.config.name() == at.value)
    });
    if let Some(at) = named.filter(|_| found.is_none()) {
        reader.warn(Some(at), Rule::UnknownTransport);
    }
    let name = found.map(|transport| Arc::clone(transport.config.name()));
    let server = reader.last("server_uri");
    let uri = server.map(|server| SipUri::parse(&server.value));
    // A URI that is missing was reported, an unusable one will be by `build()`.
    let (Some(server), Some(Ok(uri))) = (server, uri) else {
        return Ok(name);
    };
    let asked = match uri.transport() {
        None => None,
        Some(asked) => match Protocol::from_name(asked) {
            Some(protocol) => Some(protocol),
            None => {
                reader.refuse(Some(server), Rule::UriTransport(asked.into()));
                return Err(UriRefused);
            }
        },
    };
    if let Some(found) = found {
        let protocol = found.config.protocol();
        if let Some(asked) = asked.filter(|asked| *asked != protocol) {
            let (named, uri) = (parameter(protocol), parameter(asked));
            reader.warn_option("transport", Rule::TransportMismatch { named, uri });
        }
        return Ok(name);
    }
    // As Asterisk computes the first Contact: sips is TLS, and what says nothing is UDP.
    let protocol = match (uri.scheme(), asked) {
        (Scheme::Sips, Some(asked)) if asked.is_websocket() => Protocol::Wss,
        (Scheme::Sips, _) => Protocol::Tls,
        (Scheme::Sip, asked) => asked.unwrap_or(Protocol::Udp),
    };
    let reaches = |transport: &&TransportSection| {
        let bind = transport.config.bind().ip();
        let family = uri
            .ip()
            .is_none_or(|ip| IpAddr::is_ipv4(&ip) == bind.is_ipv4());
        transport.config.protocol() == protocol && (family || bind.is_unspecified())
    };
    if !transports.iter().any(|transport| reaches(&transport)) {
        reader.refuse(Some(server), Rule::NoTransport(parameter(protocol)));
    }
    Ok(None)
}

/// A protocol as the option `protocol` and the URI parameter write it.
pub(super) const fn parameter(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Udp => "udp",
        Protocol::Tcp => "tcp",
        Protocol::Tls => "tls",
        Protocol::Ws => "ws",
        Protocol::Wss => "wss",
    }
}

/// The option that an error is about.
fn refused(error: &BuildError) -> &'static str {
    match error {
        BuildError::Uri { option, .. }
        | BuildError::UriLength { option, .. }
        | BuildError::HostLength { option, .. }
        | BuildError::Text { option, .. }
        | BuildError::Token { option, .. }
        | BuildError::Jitter { option, .. }
        | BuildError::Interval { option, .. } => option,
        // pjsip.conf has no option for it.
        BuildError::Fallback { .. }
        | BuildError::Fallbacks { .. }
        | BuildError::FallbackWithFlows => "fallback",
        BuildError::WithoutInstance { option } => option,
        BuildError::FurtherFlow { .. } | BuildError::Flows { .. } => "further_flow",
        BuildError::GinWithContactUser => "contact_user",
        BuildError::LineWithoutEndpoint => "line",
        BuildError::EndpointWithoutLine { .. } => "endpoint",
        BuildError::Expiration { .. } | BuildError::NoExpires => "expiration",
        BuildError::ContactUser { .. } => "contact_user",
        BuildError::ContactHeaderParams { .. } => "contact_header_params",
        BuildError::OutboundProxy { .. } | BuildError::OutboundProxySyntax { .. } => {
            "outbound_proxy"
        }
        BuildError::Mechanism(_) => "security_mechanisms",
        BuildError::Credentials(_) | BuildError::NoAlgorithm => "outbound_auth",
        // The headers come from the URI; the rest cannot be set in a file.
        BuildError::HeaderName { .. }
        | BuildError::HeaderReserved { .. }
        | BuildError::HeaderValue { .. }
        | BuildError::ContactUriParams { .. }
        | BuildError::RefreshFraction { .. }
        | BuildError::Redirects { .. } => "server_uri",
    }
}

/// The option that a warning is about.
fn doubted(warning: &ConfigWarning) -> &'static str {
    match warning {
        ConfigWarning::StrictRoute { .. } => "outbound_proxy",
        ConfigWarning::UnknownTransport { option, .. } => option,
        ConfigWarning::ShortLead { .. } | ConfigWarning::ShortTimerF { .. } => "expiration",
        ConfigWarning::DuplicateRealm { .. } | ConfigWarning::DuplicateWildcard => "outbound_auth",
    }
}
