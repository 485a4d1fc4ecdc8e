//! What `pjsip show registrations`, `pjsip show registration` and AMI's `OutboundRegistrationDetail` tell, and more.

use super::auth::AuthSection;
use super::loaded::Loaded;
use super::registration::RegistrationSection;
use crate::proto::Said;
use crate::{Activity, Registration, Status, Transcript};
use std::fmt;
use std::time::{Duration, Instant};

/// One registration with every option and every live figure, as text or, with the feature `serde`, as JSON
///
/// The names are those of AMI's `OutboundRegistrationDetail`, then those of [`Live`]. `Display` has a line for each.
/// The values are those that are used, where AMI has what was written: routes in `<>`, an unknown transport as none.
/// Passwords and values of headers in URIs are masked, other secrets are not in it.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "PascalCase")
)]
#[non_exhaustive]
pub struct RegistrationDetail {
    /// Always `registration`
    pub object_type: &'static str,
    /// The name of the section
    pub object_name: String,
    /// `server_uri`
    pub server_uri: String,
    /// `client_uri`
    pub client_uri: String,
    /// `contact_user`; empty for the default, `s`
    pub contact_user: String,
    /// `contact_header_params`
    pub contact_header_params: String,
    /// `transport`; empty where any of the right type is used
    pub transport: String,
    /// `outbound_proxy`
    pub outbound_proxy: String,
    /// `expiration`, in seconds
    pub expiration: u32,
    /// `max_random_initial_delay`, in seconds
    pub max_random_initial_delay: u64,
    /// `retry_interval`, in seconds
    pub retry_interval: u64,
    /// `forbidden_retry_interval`, in seconds
    pub forbidden_retry_interval: u64,
    /// `fatal_retry_interval`, in seconds
    pub fatal_retry_interval: u64,
    /// `max_retries`; `None` is without limit
    pub max_retries: Option<u32>,
    /// `auth_rejection_permanent`
    pub auth_rejection_permanent: bool,
    /// `outbound_auth`: the ids, joined by commas
    pub outbound_auth: String,
    /// `support_path`
    pub support_path: bool,
    /// `support_outbound`
    pub support_outbound: bool,
    /// `security_negotiation`
    pub security_negotiation: &'static str,
    /// `security_mechanisms`; `None` without
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub security_mechanisms: Option<String>,
    /// `line`
    pub line: bool,
    /// `endpoint`
    pub endpoint: String,
    /// `user_agent`, that of `global` included
    pub user_agent: String,
    /// `Registered`, `Unregistered` or `Rejected`; `None` where it does not run
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub status: Option<&'static str>,
    /// Always 0, as in Asterisk; `None` where it does not run
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub next_reg: Option<u32>,
    /// What AMI does not have; `None` where it does not run
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub live: Option<Live>,
    /// The last request without secrets, where it was kept and [given](Self::with_transcript)
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub last_request: Option<Box<str>>,
    /// The final answer to it
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub last_response: Option<Box<str>>,
}

/// The live figures of a registration
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "PascalCase")
)]
#[non_exhaustive]
pub struct Live {
    /// Whether the registrar holds a binding
    pub bound: bool,
    /// Whether calls can arrive: there is a binding and its flow is up
    pub reachable: bool,
    /// `idle`, `waiting`, `registering`, `unregistering`, `querying` or `paused`
    pub activity: &'static str,
    /// Seconds to the next attempt; `None` where none is planned, 0 while one is under way
    pub next_attempt_in: Option<u64>,
    /// Seconds to the end of the binding
    pub expires_in: Option<u64>,
    /// The granted seconds
    pub granted: Option<u64>,
    /// Whether the registrar's answer listed our Contact
    pub confirmed: Option<bool>,
    /// Where the binding was made
    pub target: Option<String>,
    /// The number of the flow it is bound to
    pub flow: Option<u64>,
    /// Counted failures since the last success
    pub retries: u32,
    /// The last failure, with what the answer said of it; `None` after a success
    pub last_failure: Option<String>,
}

impl RegistrationDetail {
    /// The options of a registration that may come from anywhere; not running.
    #[must_use]
    pub fn new(name: &str, registration: &Registration) -> Self {
        let r = registration;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let joined = |list: Vec<String>| (!list.is_empty()).then(|| list.join(","));
        let proxies = r
            .outbound_proxy()
            .iter()
            .map(|route| format!("{route:?}"))
            .collect();
        let mechanisms = r
            .security_mechanisms()
            .iter()
            .map(ToString::to_string)
            .collect();
        Self {
            object_type: r.type_(),
            object_name: name.to_owned(),
            server_uri: format!("{:?}", r.server_uri()),
            client_uri: format!("{:?}", r.client_uri()),
            contact_user: text(r.contact_user().as_str().filter(|user| *user != "s")),
            contact_header_params: text(r.contact_header_params()),
            transport: text(r.transport().map(|name| &**name)),
            outbound_proxy: joined(proxies).unwrap_or_default(),
            expiration: r.expiration(),
            max_random_initial_delay: r.max_random_initial_delay().as_secs(),
            retry_interval: r.retry_interval().as_secs(),
            forbidden_retry_interval: r.forbidden_retry_interval().as_secs(),
            fatal_retry_interval: r.fatal_retry_interval().as_secs(),
            max_retries: r.max_retries(),
            auth_rejection_permanent: r.auth_rejection_permanent(),
            outbound_auth: String::new(),
            support_path: r.support_path(),
            support_outbound: r.support_outbound(),
            security_negotiation: r.security_negotiation().name(),
            security_mechanisms: joined(mechanisms),
            line: r.line(),
            endpoint: text(r.endpoint()),
            user_agent: text(r.user_agent()),
            status: None,
            next_reg: None,
            live: None,
            last_request: None,
            last_response: None,
        }
    }

    /// The options of a section.
    #[must_use]
    pub fn of(name: &str, section: &RegistrationSection) -> Self {
        let outbound_auth = section.outbound_auth.join(",");
        Self {
            outbound_auth,
            ..Self::new(name, &section.registration)
        }
    }

    /// Adds the live figures, as of `now`.
    #[must_use]
    pub fn with_status(mut self, status: &Status, now: Instant) -> Self {
        let lease = status.lease.as_ref();
        let seconds = |until: &Instant| rounded(until.saturating_duration_since(now));
        let (activity, next_attempt_in) = match &status.activity {
            Activity::Idle => ("idle", None),
            Activity::Waiting { until } => ("waiting", Some(seconds(until))),
            Activity::Registering => ("registering", Some(0)),
            Activity::Unregistering => ("unregistering", None),
            Activity::Querying => ("querying", None),
            Activity::Paused => ("paused", None),
        };
        self.status = Some(match status.reference_status() {
            crate::ReferenceStatus::Registered => "Registered",
            crate::ReferenceStatus::Unregistered => "Unregistered",
            crate::ReferenceStatus::Rejected => "Rejected",
        });
        self.next_reg = Some(0);
        self.live = Some(Live {
            bound: status.is_registered(),
            reachable: status.is_reachable(),
            activity,
            next_attempt_in,
            expires_in: lease.map(|lease| seconds(&lease.expires_at)),
            granted: lease.map(|lease| lease.granted.as_secs()),
            confirmed: lease.map(|lease| lease.confirmed),
            target: lease.map(|lease| lease.target.to_string()),
            flow: lease
                .and_then(|lease| lease.flow)
                .map(crate::FlowId::number),
            retries: status.retries,
            last_failure: status
                .last_failure
                .as_ref()
                .map(|failure| Said(failure, status.exchange.as_deref()).to_string()),
        });
        self
    }

    /// Adds the last request and its answer, of a registration whose policy keeps them.
    #[must_use]
    pub fn with_transcript(mut self, transcript: Transcript) -> Self {
        self.last_request = Some(transcript.request);
        self.last_response = transcript.response;
        self
    }

    /// The options with their names in the file, and their values as AMI writes them; empty ones included.
    pub fn options(&self) -> impl Iterator<Item = (&'static str, String)> {
        let limit = self
            .max_retries
            .map_or_else(|| "unlimited".to_owned(), |most| most.to_string());
        let yes = if self.support_outbound { "yes" } else { "no" };
        [
            ("server_uri", self.server_uri.clone()),
            ("client_uri", self.client_uri.clone()),
            ("contact_user", self.contact_user.clone()),
            ("contact_header_params", self.contact_header_params.clone()),
            ("transport", self.transport.clone()),
            ("outbound_proxy", self.outbound_proxy.clone()),
            ("expiration", self.expiration.to_string()),
            (
                "max_random_initial_delay",
                self.max_random_initial_delay.to_string(),
            ),
            ("retry_interval", self.retry_interval.to_string()),
            (
                "forbidden_retry_interval",
                self.forbidden_retry_interval.to_string(),
            ),
            (
                "fatal_retry_interval",
                self.fatal_retry_interval.to_string(),
            ),
            ("max_retries", limit),
            (
                "auth_rejection_permanent",
                self.auth_rejection_permanent.to_string(),
            ),
            ("outbound_auth", self.outbound_auth.clone()),
            ("support_path", self.support_path.to_string()),
            ("support_outbound", yes.to_owned()),
            ("security_negotiation", self.security_negotiation.to_owned()),
            (
                "security_mechanisms",
                self.security_mechanisms.clone().unwrap_or_default(),
            ),
            ("line", self.line.to_string()),
            ("endpoint", self.endpoint.clone()),
            ("user_agent", self.user_agent.clone()),
        ]
        .into_iter()
    }
}

impl fmt::Display for RegistrationDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ObjectType: {}", self.object_type)?;
        writeln!(f, "ObjectName: {}", self.object_name.escape_debug())?;
        for (option, value) in self.options() {
            if option != "security_mechanisms" || !value.is_empty() {
                writeln!(f, "{}: {value}", camel(option))?;
            }
        }
        let (Some(status), Some(live)) = (self.status, &self.live) else {
            return Ok(());
        };
        writeln!(f, "Status: {status}")?;
        writeln!(f, "NextReg: {}", self.next_reg.unwrap_or_default())?;
        writeln!(f, "Bound: {}", live.bound)?;
        writeln!(f, "Reachable: {}", live.reachable)?;
        writeln!(f, "Activity: {}", live.activity)?;
        let mut line = |name, value: Option<String>| match value {
            Some(value) => writeln!(f, "{name}: {value}"),
            None => Ok(()),
        };
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        line("NextAttemptIn", number(live.next_attempt_in))?;
        line("ExpiresIn", number(live.expires_in))?;
        line("Granted", number(live.granted))?;
        line("Confirmed", live.confirmed.map(|yes| yes.to_string()))?;
        line("Target", live.target.clone())?;
        line("Flow", number(live.flow))?;
        line("Retries", Some(live.retries.to_string()))?;
        line("LastFailure", live.last_failure.clone())?;
        for (name, message) in [
            ("LastRequest", &self.last_request),
            ("LastResponse", &self.last_response),
        ] {
            if let Some(message) = message {
                writeln!(f, "{name}:")?;
                for line in message.lines() {
                    writeln!(f, "  {line}")?;
                }
            }
        }
        Ok(())
    }
}

/// An `auth` section as AMI's `AuthDetail` has it, without the secrets
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "PascalCase")
)]
#[non_exhaustive]
pub struct AuthDetail {
    /// Always `auth`
    pub object_type: &'static str,
    /// The name of the section
    pub object_name: String,
    /// `username`
    pub username: String,
    /// `realm`; empty for any
    pub realm: String,
    /// `auth_type`
    pub auth_type: &'static str,
    /// `supported_algorithms_uac`, joined by commas; that of `global` where the section names none
    pub supported_algorithms_uac: String,
}

impl AuthDetail {
    /// What of a section may be shown.
    #[must_use]
    pub fn of(section: &AuthSection) -> Self {
        let algorithms: Vec<_> = section.algorithms.iter().map(ToString::to_string).collect();
        Self {
            object_type: "auth",
            object_name: section.name.to_string(),
            username: section.credentials.username().to_owned(),
            realm: section
                .credentials
                .bound_realm()
                .unwrap_or_default()
                .to_owned(),
            auth_type: section.auth_type,
            supported_algorithms_uac: algorithms.join(","),
        }
    }
}

impl fmt::Display for AuthDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ObjectType: {}", self.object_type)?;
        writeln!(f, "ObjectName: {}", self.object_name.escape_debug())?;
        writeln!(f, "Username: {}", self.username)?;
        writeln!(f, "Realm: {}", self.realm)?;
        writeln!(f, "AuthType: {}", self.auth_type)?;
        writeln!(
            f,
            "SupportedAlgorithmsUac: {}",
            self.supported_algorithms_uac
        )
    }
}

impl Loaded {
    /// What may be shown of the `auth` sections that a registration names, in order; those that are not there left out.
    #[must_use]
    pub fn auth_details(&self, registration: &str) -> Vec<AuthDetail> {
        let ids = self
            .registration(registration)
            .map(|section| &*section.outbound_auth)
            .unwrap_or_default();
        ids.iter()
            .filter_map(|id| self.auth(id))
            .map(AuthDetail::of)
            .collect()
    }
}

/// The table of `pjsip show registrations`
///
/// Columns, header and trailer are Asterisk's: name and server in 54 characters, the first `auth` in 26, the status in
/// 16, and the seconds to the next attempt, which is not the end of the binding. Where no attempt is planned, there
/// are no seconds.
#[must_use]
pub fn table<'a>(rows: impl IntoIterator<Item = &'a RegistrationDetail>) -> String {
    let mut text = String::new();
    let mut count = 0;
    for row in rows {
        count += 1;
        let name: String = row.object_name.escape_debug().collect();
        let left = URI_FIELD.saturating_sub(name.chars().count());
        let uri: String = row.server_uri.chars().take(left).collect();
        let auth = row
            .outbound_auth
            .split(',')
            .next()
            .filter(|id| !id.is_empty())
            .unwrap_or("n/a");
        let status = match (row.status, &row.live) {
            (None, _) => format!("{:<16}0", "Unregistered"),
            (
                Some(status),
                Some(Live {
                    next_attempt_in: Some(seconds),
                    ..
                }),
            ) => {
                format!("{status:<16} (exp. {seconds}s)")
            }
            (Some(status), _) => status.to_owned(),
        };
        text.push_str(&format!(" {name}/{uri:<left$}  {auth:<26}  {status}\n"));
    }
    if count == 0 {
        return "No objects found.\n".to_owned();
    }
    format!(
        "{HEADER}\n{}\n\n{text}\nObjects found: {count}\n",
        "=".repeat(90)
    )
}

/// As many characters as name and URI have together.
const URI_FIELD: usize = 53;
const HEADER: &str = " <Registration/ServerURI..............................>  <Auth....................>  <Status.......>";

/// `server_uri` as AMI writes it: `ServerUri`.
fn camel(option: &str) -> String {
    option
        .split('_')
        .map(|part| {
            let mut letters = part.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
                .collect::<String>()
        })
        .collect()
}

/// Whole seconds, to the nearest.
fn rounded(duration: Duration) -> u64 {
    duration
        .saturating_add(Duration::from_millis(500))
        .as_secs()
}
