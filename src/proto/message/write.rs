//! REGISTER to bytes, in one pass (header order and forms of the reference).

use crate::proto::flow_info::host_port;
use crate::proto::mapping;
use crate::{ContactRewriting, FlowInfo, Protocol, Registration};
use bytes::{BufMut, Bytes, BytesMut};
use std::borrow::Cow;
use std::fmt::{Display, Write as _};

/// What a REGISTER says of Contact
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContactForm {
    /// Our Contact, with the given Expires
    Ours(u32),
    /// `Contact: *` and `Expires: 0`: every binding of the AOR goes (RFC 3261 §10.2.2)
    Star,
    /// None: the answer lists what there is (RFC 3261 §10.2.3)
    None,
    /// Only those that are to go, each with `expires=0`
    Gone,
}

/// What a REGISTER is made of, beside its configuration
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) registration: &'a Registration,
    pub(crate) info: &'a FlowInfo,
    pub(crate) branch: &'a str,
    pub(crate) from_tag: &'a str,
    pub(crate) call_id: &'a dyn Display,
    pub(crate) cseq: u32,
    pub(crate) contact: ContactForm,
    pub(crate) contact_uri: &'a str,
    /// Contacts that this one takes the place of; they go with `expires=0` (D18)
    pub(crate) old_contacts: &'a [&'a str],
    /// The whole Contact values of [`ContactForm::Gone`]
    pub(crate) gone: &'a [Box<str>],
    /// Whether `path` and `outbound` may still be offered (false once a 420 or 439 refused them)
    pub(crate) path: bool,
    pub(crate) outbound: bool,
    /// The same for `gruu` among the extra Supported tokens
    pub(crate) gruu: bool,
    /// Whole header lines, with their line ends: Security-*, Authorization
    pub(crate) security: &'a str,
    pub(crate) authorization: &'a str,
}

/// The Contact URI for a flow.
pub(crate) fn contact_uri(
    registration: &Registration,
    info: &FlowInfo,
    line: Option<&str>,
) -> String {
    let mut uri = String::with_capacity(64);
    uri.push_str(if registration.is_sips() {
        "sips:"
    } else {
        "sip:"
    });
    if let Some(user) = registration.contact_user().as_str() {
        uri.push_str(user);
        uri.push('@');
    }
    let mapped = match registration.policy().contact_rewriting {
        ContactRewriting::Off => None,
        ContactRewriting::Mapped => mapping::for_contact(info),
    };
    match mapped {
        Some(mapped) => uri.push_str(&host_port(mapped)),
        None => uri.push_str(&info.contact()),
    }
    if info.protocol() != Protocol::Udp {
        uri.push_str(";transport=");
        uri.push_str(info.protocol().contact_transport());
    }
    if let Some(line) = line {
        uri.push_str(";line=");
        uri.push_str(line);
    }
    if let Some(params) = registration.contact_uri_params() {
        uri.push(';');
        uri.push_str(params);
    }
    uri
}

/// The Request-URI and the Route values.
///
/// A first route without `lr` is a strict router (RFC 3261 §16.12.1.1): its URI becomes the Request-URI, and the
/// registrar's goes to the end of the route.
pub(crate) fn request_line(registration: &Registration) -> (Cow<'_, str>, Vec<String>) {
    let server = registration.request_uri();
    let routes = registration.outbound_proxy().iter();
    match registration.first_route() {
        Some(first) if !first.has_param("lr") => {
            let last = format!("<{server}>");
            let rest = routes
                .skip(1)
                .map(ToString::to_string)
                .chain([last])
                .collect();
            (Cow::Owned(first.as_str().to_owned()), rest)
        }
        _ => (
            Cow::Borrowed(server),
            routes.map(ToString::to_string).collect(),
        ),
    }
}

/// Writes the whole request.
pub(crate) fn register(parts: &Parts<'_>) -> Bytes {
    let mut out = BytesMut::with_capacity(768);
    let registration = parts.registration;
    let policy = registration.policy();
    let (uri, routes) = request_line(registration);
    let unregisters = matches!(
        parts.contact,
        ContactForm::Ours(0) | ContactForm::Star | ContactForm::Gone
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to memory does not fail.
        let _ = out.write_fmt(text);
        out.put_slice(b"\r\n");
    };
    line(format_args!("REGISTER {uri} SIP/2.0"));
    // RFC 5923 speaks of connections that can be opened both ways, as a WebSocket cannot.
    let protocol = parts.info.protocol();
    let alias = if policy.via_alias && protocol.is_reliable() && !protocol.is_websocket() {
        ";alias"
    } else {
        ""
    };
    // RFC 6223 §4.3: for the registration, so not with its end.
    let keep = if policy.keep_alive.negotiate && !unregisters {
        ";keep"
    } else {
        ""
    };
    line(format_args!(
        "Via: SIP/2.0/{} {};rport;branch={}{alias}{keep}",
        parts.info.protocol(),
        parts.info.sent_by(),
        parts.branch
    ));
    for route in &routes {
        line(format_args!("Route: {route}"));
    }
    line(format_args!("Max-Forwards: 70"));
    let aor = registration.aor_text();
    line(format_args!("From: <{aor}>;tag={}", parts.from_tag));
    line(format_args!("To: <{aor}>"));
    line(format_args!("Call-ID: {}", parts.call_id));
    line(format_args!("CSeq: {} REGISTER", parts.cseq));
    let tokens = [
        Some("path").filter(|_| registration.support_path() && parts.path),
        Some("outbound").filter(|_| registration.support_outbound() && parts.outbound),
    ];
    let supported: Vec<&str> = tokens
        .into_iter()
        .flatten()
        .chain(registration.supported().iter().map(AsRef::as_ref))
        .filter(|tag| parts.gruu || !tag.eq_ignore_ascii_case("gruu"))
        .collect();
    if !supported.is_empty() {
        line(format_args!("Supported: {}", supported.join(", ")));
    }
    for (name, tokens) in [
        ("Require", registration.require()),
        ("Proxy-Require", registration.proxy_require()),
    ] {
        if !tokens.is_empty() {
            let tokens: Vec<&str> = tokens.iter().map(AsRef::as_ref).collect();
            line(format_args!("{name}: {}", tokens.join(", ")));
        }
    }
    if !parts.security.is_empty() {
        line(format_args!("{}", parts.security.trim_end()));
    }
    match parts.contact {
        ContactForm::Ours(expires) => {
            line(format_args!(
                "Contact: <{}>{}",
                parts.contact_uri,
                ContactParams(registration, parts.outbound)
            ));
            for old in parts.old_contacts {
                line(format_args!("Contact: <{old}>;expires=0"));
            }
            // 4294967295 means "no Expires header", which only `Policy::asterisk()` lets through.
            if expires != u32::MAX {
                line(format_args!("Expires: {expires}"));
            }
        }
        ContactForm::Star => {
            line(format_args!("Contact: *"));
            line(format_args!("Expires: 0"));
        }
        ContactForm::None => {}
        ContactForm::Gone => {
            for value in parts.gone {
                line(format_args!("Contact: {value}"));
            }
        }
    }
    if let Some(methods) = registration.allow().filter(|_| !unregisters) {
        line(format_args!("Allow: {methods}"));
    }
    if !parts.authorization.is_empty() {
        line(format_args!("{}", parts.authorization.trim_end()));
    }
    for (name, value) in registration.headers() {
        line(format_args!("{name}: {value}"));
    }
    line(format_args!("User-Agent: {}", user_agent(registration)));
    line(format_args!("Content-Length:  0"));
    out.put_slice(b"\r\n");
    out.freeze()
}

/// The parameters after the `>` of Contact, with their `;`: `reg-id` where outbound is done and was not refused, the
/// instance, and what is configured
struct ContactParams<'a>(&'a Registration, bool);

impl Display for ContactParams<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(registration, outbound) = self;
        if let Some(reg_id) = registration.reg_id().filter(|_| *outbound) {
            write!(f, ";reg-id={reg_id}")?;
        }
        if let Some(instance) = registration.instance() {
            write!(f, ";+sip.instance=\"<{instance}>\"")?;
        }
        match registration.contact_header_params() {
            Some(params) => write!(f, ";{params}"),
            None => Ok(()),
        }
    }
}

/// Writes an OPTIONS to the registrar, outside of any dialog, as a keep-alive (RFC 3261 §11.1).
pub(crate) fn options(
    registration: &Registration,
    info: &FlowInfo,
    branch: &str,
    call_id: &str,
    from_tag: &str,
) -> Bytes {
    let mut out = BytesMut::with_capacity(512);
    let (uri, routes) = request_line(registration);
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to memory does not fail.
        let _ = out.write_fmt(text);
        out.put_slice(b"\r\n");
    };
    line(format_args!("OPTIONS {uri} SIP/2.0"));
    line(format_args!(
        "Via: SIP/2.0/{} {};rport;branch={branch}",
        info.protocol(),
        info.sent_by()
    ));
    for route in &routes {
        line(format_args!("Route: {route}"));
    }
    line(format_args!("Max-Forwards: 70"));
    let aor = registration.aor_text();
    line(format_args!("From: <{aor}>;tag={from_tag}"));
    line(format_args!("To: <{}>", registration.request_uri()));
    line(format_args!("Call-ID: {call_id}"));
    line(format_args!("CSeq: 1 OPTIONS"));
    line(format_args!("Accept: application/sdp"));
    line(format_args!("User-Agent: {}", user_agent(registration)));
    line(format_args!("Content-Length: 0"));
    out.put_slice(b"\r\n");
    out.freeze()
}

fn user_agent(registration: &Registration) -> &str {
    registration
        .user_agent()
        .unwrap_or(concat!("sip-registration/", env!("CARGO_PKG_VERSION")))
}
