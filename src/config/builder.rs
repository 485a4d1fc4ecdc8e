//! How a registration is put together, and what is checked on the way.

use super::*;

/// The longest URI that pjsip takes.
pub(super) const MAX_URI: usize = 511;
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

/// Collects the options of a [`Registration`]; [`build`](Self::build) checks them
///
/// The methods are named after the options of pjsip.conf.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build()`"]
pub struct RegistrationBuilder {
    pub(super) server_uri: Result<SipUri, UriError>,
    pub(super) client_uri: Result<SipUri, UriError>,
    pub(super) contact_user: ContactUser,
    pub(super) contact_header_params: String,
    pub(super) contact_uri_params: String,
    pub(super) expiration: Duration,
    pub(super) max_random_initial_delay: Duration,
    pub(super) line: bool,
    pub(super) support_outbound: bool,
    pub(super) support_path: bool,
    pub(super) security_negotiation: SecurityNegotiation,
    pub(super) security_mechanisms: Vec<String>,
    pub(super) endpoint: Option<Arc<str>>,
    pub(super) transport: Option<Arc<str>>,
    pub(super) user_agent: Option<Arc<str>>,
    pub(super) outbound_auth: Vec<Credentials>,
    pub(super) outbound_proxy: Vec<RedactedText>,
    pub(super) fallbacks: Vec<Instead>,
    pub(super) headers: Vec<ExtraHeader>,
    pub(super) allow: Vec<Box<str>>,
    pub(super) supported: Vec<Box<str>>,
    pub(super) require: Vec<Box<str>>,
    pub(super) proxy_require: Vec<Box<str>>,
    pub(super) instance: Option<InstanceId>,
    pub(super) outbound: bool,
    pub(super) further_flows: Vec<RedactedText>,
    /// That of the flow which is built, and how many there are.
    pub(super) reg_id: u8,
    pub(super) flows: u8,
    pub(super) gruu: bool,
    pub(super) gin: bool,
    pub(super) policy: Arc<Policy>,
    pub(super) explicit: Explicit,
}

/// One attempt has 8 targets (D3): more choices than that are never all tried
const FALLBACKS: usize = 7;

/// RFC 5626 §4.2.1 wants sets of two proxies, and of four where possible; each flow costs the registrar a binding
const FLOWS: usize = 8;

/// What a fallback has instead of the first choice
#[derive(Debug, Clone)]
pub(super) enum Instead {
    Server(Result<SipUri, UriError>),
    Proxy(RedactedText),
}

/// A text that may hold a password until it has been parsed.
#[derive(Clone)]
pub(super) struct RedactedText(pub(super) String);

impl fmt::Debug for RedactedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// The options that live in the policy, where they were set at the builder.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Explicit {
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

    /// Another registrar for the same address of record, for when no target of those before it can be reached; may be given
    /// several times, at most 7 fallbacks in all, in the order to try them; default none
    ///
    /// Within one attempt, after silence, 408, 503, connection failures or a name without addresses; any other answer is the
    /// registrar's word. All other options are those of the first choice. A binding at a fallback is refreshed and removed
    /// there; from 300 s after it was made, a refresh tries the first choice again. What was bound at one that died is left
    /// to expire there.
    pub fn fallback_server<S: TryInto<SipUri, Error: Into<UriError>>>(mut self, uri: S) -> Self {
        let uri = uri.try_into().map_err(Into::into);
        self.fallbacks.push(Instead::Server(uri));
        self
    }

    /// Other Route values instead of `outbound_proxy`, for when no target of those before can be reached; otherwise as
    /// [`fallback_server`](Self::fallback_server).
    pub fn fallback_proxy(mut self, routes: impl Into<String>) -> Self {
        self.fallbacks
            .push(Instead::Proxy(RedactedText(routes.into())));
        self
    }

    /// Which device this is: `+sip.instance` of Contact; default none (RFC 5626 §4.1)
    ///
    /// The registrar then replaces the binding of an earlier run, and `outbound` and `gruu` need it. It must be the same
    /// after a restart: see [`InstanceId`].
    pub fn instance(mut self, instance: InstanceId) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Whether flows are registered as RFC 5626 has it: `reg-id` and `+sip.instance` in Contact, `Supported: path,
    /// outbound`, keep-alives with answers where the registrar says `Require: outbound`; default `false`; needs
    /// [`instance`](Self::instance)
    ///
    /// `support_outbound` alone only advertises, as the reference does. A 439 is answered with a REGISTER without
    /// `reg-id`; the wish is kept for the next network.
    pub const fn outbound(mut self, outbound: bool) -> Self {
        self.outbound = outbound;
        self
    }

    /// Adds a flow through other Route values than `outbound_proxy`, registered beside the first one under the next
    /// `reg-id`; implies [`outbound`](Self::outbound); default none, at most 7, as `sip:edge2.example.com;lr`
    ///
    /// Together with `outbound_proxy` this is the outbound-proxy-set of RFC 5626 §4.2.1: calls arrive while any of the flows
    /// holds. The others start once the first is registered and the registrar has said `Require: outbound`, or cannot be
    /// reached; where it does not say so one flow is all there is, since a call would ring once for each. The order must be the
    /// same after a restart. Proxies at one address share their flow. Not together with `fallback_server` and
    /// `fallback_proxy`.
    pub fn further_flow(mut self, routes: impl Into<String>) -> Self {
        self.outbound = true;
        self.further_flows.push(RedactedText(routes.into()));
        self
    }

    /// Whether GRUUs are asked for, `Supported: gruu`; default `false`; needs [`instance`](Self::instance) (RFC 5627 §4.1)
    ///
    /// The public and the newest temporary one come with `Registered` and in `WayOut`.
    pub const fn gruu(mut self, gruu: bool) -> Self {
        self.gruu = gruu;
        self
    }

    /// Whether one REGISTER binds all numbers of a trunk: `bnc` in a Contact without a user, `gin` in Require and
    /// Proxy-Require, `Supported: path`; default `false`; not together with `contact_user` (RFC 6140 §5)
    ///
    /// Requests to any user that come on its flow belong to it.
    pub const fn gin(mut self, gin: bool) -> Self {
        self.gin = gin;
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
    pub fn build(mut self) -> Result<Registration, BuildError> {
        self.say_extensions()?;
        let further_flows = self.build_flows()?;
        let fallbacks = std::mem::take(&mut self.fallbacks);
        if fallbacks.len() > FALLBACKS {
            return Err(BuildError::Fallbacks {
                count: fallbacks.len(),
                most: FALLBACKS,
            });
        }
        let mut built = Vec::with_capacity(fallbacks.len());
        for (index, instead) in fallbacks.into_iter().enumerate() {
            let mut other = self.clone();
            match instead {
                Instead::Server(uri) => other.server_uri = uri,
                Instead::Proxy(routes) => other.outbound_proxy = vec![routes],
            }
            let other = other.build().map_err(|source| BuildError::Fallback {
                index,
                source: Box::new(source),
            })?;
            built.push(Arc::new(other));
        }
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
            fallbacks: built.into(),
            instance: self.instance,
            reg_id: if self.outbound { self.reg_id } else { 0 },
            flows: if self.outbound { self.flows } else { 0 },
            further_flows,
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

impl RegistrationBuilder {
    /// What outbound, GRUU and GIN say by other options, and what they do not go with.
    fn say_extensions(&mut self) -> Result<(), BuildError> {
        let needs = [("outbound", self.outbound), ("gruu", self.gruu)];
        for (option, _) in needs.into_iter().filter(|(_, on)| *on) {
            if self.instance.is_none() {
                return Err(BuildError::WithoutInstance { option });
            }
        }
        let twice = |names: &[&str]| {
            syntax::split(&self.contact_header_params, ';').any(|param| {
                let name = param.split('=').next().unwrap_or_default().trim();
                names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
            })
        };
        if self.instance.is_some() && twice(&["+sip.instance", "reg-id"]) {
            return Err(BuildError::ContactHeaderParams {
                value: self.contact_header_params.as_str().into(),
                rule: "has +sip.instance or reg-id beside the option instance",
            });
        }
        if self.outbound {
            self.support_outbound = true;
            self.support_path = true;
        }
        let says = |list: &[Box<str>], tag: &str| list.iter().any(|t| t.eq_ignore_ascii_case(tag));
        if self.gruu && !says(&self.supported, "gruu") {
            self.supported.push("gruu".into());
        }
        if self.gin {
            if !matches!(&self.contact_user, ContactUser::None)
                && self.contact_user != ContactUser::default()
            {
                return Err(BuildError::GinWithContactUser);
            }
            self.contact_user = ContactUser::None;
            self.support_path = true;
            for list in [&mut self.require, &mut self.proxy_require] {
                if !says(list, "gin") {
                    list.push("gin".into());
                }
            }
            let bnc = |param: &str| param.trim().eq_ignore_ascii_case("bnc");
            if !syntax::split(&self.contact_uri_params, ';').any(bnc) {
                let params = self.contact_uri_params.trim_matches(' ');
                let semicolon = if params.is_empty() { "" } else { ";" };
                self.contact_uri_params = format!("{params}{semicolon}bnc");
            }
        }
        Ok(())
    }

    /// The flows beside the first: this same registration through other proxies.
    fn build_flows(&mut self) -> Result<Box<[Arc<Registration>]>, BuildError> {
        let routes = std::mem::take(&mut self.further_flows);
        if routes.len() >= FLOWS {
            return Err(BuildError::Flows {
                count: routes.len() + 1,
                most: FLOWS,
            });
        }
        if !routes.is_empty() && !self.fallbacks.is_empty() {
            return Err(BuildError::FallbackWithFlows);
        }
        if !routes.is_empty() {
            self.flows = (routes.len() + 1) as u8;
        }
        let build = |(index, routes): (usize, RedactedText)| {
            let flow = Self {
                outbound_proxy: vec![routes],
                // The numbers start at 1, and the first flow has that one.
                reg_id: (index + 2) as u8,
                // The first flow has waited already when this one starts.
                max_random_initial_delay: Duration::ZERO,
                ..self.clone()
            };
            let built = flow.build().map_err(|source| BuildError::FurtherFlow {
                index,
                source: Box::new(source),
            })?;
            if built.outbound_proxy().is_empty() {
                return Err(BuildError::FurtherFlow {
                    index,
                    source: Box::new(BuildError::OutboundProxySyntax { index: 0 }),
                });
            }
            Ok(Arc::new(built))
        };
        routes.into_iter().enumerate().map(build).collect()
    }
}

pub(super) fn checked_uri(
    option: &'static str,
    uri: Result<SipUri, UriError>,
) -> Result<SipUri, BuildError> {
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
pub(super) fn checked_text(
    option: &'static str,
    text: Option<Arc<str>>,
) -> Result<Option<Arc<str>>, BuildError> {
    match text.filter(|text| !text.is_empty()) {
        Some(value) if !syntax::is_text(&value) => Err(BuildError::Text { option, value }),
        text => Ok(text),
    }
}

pub(super) fn checked_header_params(text: &str) -> Result<Option<Box<str>>, BuildError> {
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

pub(super) fn checked_uri_params(text: &str) -> Result<Option<Box<str>>, BuildError> {
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

pub(super) fn check_header(header: &ExtraHeader) -> Result<(), BuildError> {
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
pub(super) fn uri_headers(uri: &SipUri) -> Result<Vec<ExtraHeader>, BuildError> {
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
pub(super) fn aor(uri: &SipUri) -> Option<Box<str>> {
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
pub(super) fn realm(credentials: &Credentials) -> Option<&str> {
    credentials
        .bound_realm()
        .filter(|realm| !realm.is_empty() && *realm != "*")
}

/// Those that can be plugged in count as known.
pub(super) fn is_transport(name: &str) -> bool {
    Protocol::from_name(name).is_some()
}
