//! The section `type=registration`: its 22 options, and what of the file they name.

use super::diagnostic::Rule;
use super::grammar::Variable;
use super::objects::{AuthSection, Global, System, TransportSection};
use super::reader::Reader;
use crate::config::syntax;
use crate::{
    Algorithm, BuildError, ConfigWarning, Mechanism, Policy, Protocol, Registration, Scheme,
    SecurityNegotiation, SipUri,
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
    pub(super) fn new(system: &System, global: &Global) -> Self {
        let mut base = Policy::asterisk();
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
    let mut choice = Choice {
        auth_rejection_permanent: true,
        fatal_retry_interval: 0,
        forbidden_retry_interval: 0,
        retry_interval: 60,
        max_retries: 10,
        algorithms: Vec::new(),
    };
    for option in ["server_uri", "client_uri"] {
        let at = reader.last(option);
        if at.is_none_or(|at| at.value.is_empty()) {
            reader.refuse(at, Rule::Missing(option));
        }
    }
    let text = |at: Option<&'_ Variable>| at.map(|at| at.value.to_string()).unwrap_or_default();
    let (server, client) = (
        text(reader.last("server_uri")),
        text(reader.last("client_uri")),
    );
    let mut builder = Registration::builder(server.as_str(), client.as_str());
    let (mut negotiated, mut offered) = (None, None);
    for (name, at) in reader.variables() {
        let value = &*at.value;
        let seconds = |number: u32| Duration::from_secs(number.into());
        let set = |field: &mut u32, number: Option<u32>| *field = number.unwrap_or(*field);
        match name.as_str() {
            "server_uri" | "client_uri" | "outbound_auth" | "outbound_proxy" | "transport" => {}
            "auth_rejection_permanent" => choice.auth_rejection_permanent = reader.boolean(at),
            "contact_header_params" => builder = builder.contact_header_params(value),
            "contact_user" => builder = builder.contact_user(value),
            "endpoint" => builder = builder.endpoint(value),
            "expiration" => match reader.uint(at) {
                Some(0) => {
                    reader.refuse(Some(at), Rule::NotOneOf("the seconds from 1 to 4294967295"))
                }
                Some(number) => builder = builder.expiration(seconds(number)),
                None => {}
            },
            "fatal_retry_interval" => set(&mut choice.fatal_retry_interval, reader.uint(at)),
            "forbidden_retry_interval" => {
                set(&mut choice.forbidden_retry_interval, reader.uint(at))
            }
            "line" => builder = builder.line(reader.boolean(at)),
            "max_random_initial_delay" => {
                if let Some(number) = reader.uint(at) {
                    builder = builder.max_random_initial_delay(seconds(number));
                }
            }
            "max_retries" => set(&mut choice.max_retries, reader.uint(at)),
            "retry_interval" => set(&mut choice.retry_interval, reader.uint(at)),
            "security_mechanisms" => offered = Some(at).filter(|at| !at.value.is_empty()),
            "security_negotiation" => match value {
                _ if value.eq_ignore_ascii_case("no") => negotiated = None,
                _ if value.eq_ignore_ascii_case("mediasec") => negotiated = Some(at),
                _ => reader.refuse(Some(at), Rule::NotOneOf("no, mediasec")),
            },
            "support_outbound" => builder = builder.support_outbound(reader.boolean(at)),
            "support_path" => builder = builder.support_path(reader.boolean(at)),
            "user_agent" => builder = builder.user_agent(value),
            _ => reader.unknown(at),
        }
    }
    if negotiated.is_some() {
        builder = builder.security_negotiation(SecurityNegotiation::Mediasec);
    }
    match (negotiated, offered) {
        (Some(at), None) => {
            let rule = "security_negotiation without security_mechanisms offers none";
            reader.warn(Some(at), Rule::Negotiation(rule));
        }
        (None, Some(at)) => {
            let rule = "security_mechanisms means nothing without security_negotiation=mediasec";
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
                Ok(_) => builder = builder.security_mechanisms(entry),
                Err(error) => reader.warn(Some(at), Rule::Mechanism(error)),
            }
        }
    }
    let own = reader
        .last("user_agent")
        .is_some_and(|at| !at.value.is_empty());
    if let Some(user_agent) = around.global.user_agent.as_ref().filter(|_| !own) {
        builder = builder.user_agent(Arc::clone(user_agent));
    }
    if let Some(at) = reader.last("outbound_proxy") {
        builder = builder.outbound_proxy(&*at.value);
    }
    choice
        .algorithms
        .clone_from(&around.global.default_auth_algorithms_uac);
    for id in auth_ids(reader) {
        match around.auths.get(&id) {
            Some(auth) => {
                let new = auth
                    .algorithms
                    .iter()
                    .filter(|algorithm| !choice.algorithms.contains(algorithm));
                let new: Vec<_> = new.copied().collect();
                choice.algorithms.extend(new);
                builder = builder.outbound_auth(auth.credentials.clone());
            }
            None => reader.warn(reader.last("outbound_auth"), Rule::UnknownAuth(id)),
        }
    }
    let known = |name: &Arc<str>| around.endpoints.is_empty() || around.endpoints.contains(name);
    let endpoint = reader.last("endpoint");
    if let Some(at) = endpoint.filter(|at| !at.value.is_empty() && !known(&at.value)) {
        reader.warn(Some(at), Rule::UnknownEndpoint);
    }
    if let Some(name) = transport(reader, around.transports) {
        builder = builder.transport(name);
    }
    let built = builder.policy(around.policies.of(choice)).build();
    // Where an URI is missing, that has been said.
    if reader.is_refused() && matches!(built, Err(BuildError::Uri { .. })) {
        return None;
    }
    match built {
        Ok(_) if reader.is_refused() => None,
        Ok(registration) => {
            for warning in registration.warnings() {
                let at = reader.last(doubted(&warning));
                reader.warn(at, Rule::Doubtful(warning));
            }
            Some(registration)
        }
        Err(error) => {
            let at = reader.last(refused(&error));
            reader.refuse(at, Rule::Registration(error));
            None
        }
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

/// The transport that the registration names; whether there is one that can carry it at all
fn transport(reader: &mut Reader<'_>, transports: &[TransportSection]) -> Option<Arc<str>> {
    let server = reader.last("server_uri")?;
    // An unusable URI is reported by `build()`.
    let uri = SipUri::parse(&server.value).ok()?;
    let asked = uri
        .transport()
        .map(|name| (name, Protocol::from_name(name)));
    if let Some((name, None)) = asked {
        reader.refuse(Some(server), Rule::UriTransport(name.into()));
        return None;
    }
    let asked = asked.and_then(|(_, protocol)| protocol);
    let named = reader.last("transport").filter(|at| !at.value.is_empty());
    if let Some(at) = named {
        match transports
            .iter()
            .find(|transport| *transport.config.name() == at.value)
        {
            Some(found) => {
                let protocol = found.config.protocol();
                if let Some(asked) = asked.filter(|asked| *asked != protocol) {
                    let (named, uri) = (parameter(protocol), parameter(asked));
                    reader.warn(Some(at), Rule::TransportMismatch { named, uri });
                }
                return Some(Arc::clone(found.config.name()));
            }
            None => reader.warn(Some(at), Rule::UnknownTransport),
        }
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
    None
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
