//! Requests as a script sees them, and the answers it gives.

use super::server_wire::reason;
use crate::{FlowId, Request, Target};
use bytes::{BufMut, Bytes, BytesMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

/// A request that went out in a [`Sim`](super::Sim), or over a `MockTransport`
#[derive(Debug, Clone)]
pub struct SentRequest {
    request: Request,
    flow: FlowId,
    target: Target,
}

impl SentRequest {
    pub(crate) const fn new(request: Request, flow: FlowId, target: Target) -> Self {
        Self {
            request,
            flow,
            target,
        }
    }

    /// The flow it went out on.
    #[must_use]
    pub const fn flow(&self) -> FlowId {
        self.flow
    }

    /// Where it went.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.request.bytes()).into_owned()
    }

    /// One header, or an empty text.
    #[must_use]
    pub fn text_of(&self, name: &str) -> String {
        self.request
            .header(name)
            .map(|value| value.into_owned())
            .unwrap_or_default()
    }
}

impl Deref for SentRequest {
    type Target = Request;
    fn deref(&self) -> &Request {
        &self.request
    }
}

/// An answer to be given to a request, in a [`Sim`](super::Sim) or over a `Wire`
///
/// A number is one too: that code, and in a 2xx what the request asked for, which is its Contact for the time it wants.
#[derive(Debug, Clone)]
pub struct Reply {
    code: u16,
    headers: Vec<(String, String)>,
    grant: Grant,
    seen_from: Option<SocketAddr>,
    keep: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Grant {
    Nothing,
    Seconds(u32),
    /// Unless a Contact is added by hand
    AsAsked,
}

impl From<u16> for Reply {
    fn from(code: u16) -> Self {
        let grant = match code {
            200..=299 => Grant::AsAsked,
            _ => Grant::Nothing,
        };
        Self {
            grant,
            ..Self::status(code)
        }
    }
}

impl Reply {
    /// A bare answer: what every response has, and nothing else.
    #[must_use]
    pub const fn status(code: u16) -> Self {
        Self {
            code,
            headers: Vec::new(),
            grant: Grant::Nothing,
            seen_from: None,
            keep: None,
        }
    }

    /// 200 with the request's own Contact, granted for `seconds`.
    #[must_use]
    pub fn granted(seconds: u32) -> Self {
        Self {
            grant: Grant::Seconds(seconds),
            ..Self::status(200)
        }
    }

    /// 401 with an MD5 challenge, `qop="auth"`.
    #[must_use]
    pub fn challenge(realm: &str, nonce: &str) -> Self {
        let value = format!("Digest realm=\"{realm}\", nonce=\"{nonce}\", qop=\"auth\"");
        Self::status(401).header("WWW-Authenticate", &value)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Fills in `received` and `rport` of the topmost Via, as a server does that sees the request come from `source` (RFC
    /// 3581 §4). Without, Via comes back as it was sent.
    #[must_use]
    pub const fn seen_from(mut self, source: SocketAddr) -> Self {
        self.seen_from = Some(source);
        self
    }

    /// Gives `keep` of the topmost Via a value, by which the server agrees to answer keep-alives (RFC 6223 §4.4).
    #[must_use]
    pub fn keep(mut self, value: &str) -> Self {
        self.keep = Some(value.to_owned());
        self
    }

    /// A Via value as this answer has it.
    fn via(&self, value: &str) -> String {
        let mut value = value.to_owned();
        if let Some(source) = self.seen_from {
            let filled = format!(";rport={};received={}", source.port(), source.ip());
            value = value.replace(";rport", &filled);
        }
        if let Some(keep) = &self.keep {
            value = value.replace(";keep", &format!(";keep={keep}"));
        }
        value
    }

    /// The response to `request` as bytes.
    #[must_use]
    pub fn to(&self, request: &Request) -> Bytes {
        let mut text = format!("SIP/2.0 {} {}\r\n", self.code, reason(self.code));
        for (nth, value) in request.headers("Via").enumerate() {
            let value = match nth {
                0 => self.via(&value),
                _ => value.into_owned(),
            };
            text.push_str(&format!("Via: {value}\r\n"));
        }
        for name in ["From", "To", "Call-ID", "CSeq"] {
            let Some(value) = request.header(name) else {
                continue;
            };
            let untagged = name == "To" && self.code > 100 && !value.contains(";tag=");
            let tag = if untagged { ";tag=reply" } else { "" };
            text.push_str(&format!("{name}: {value}{tag}\r\n"));
        }
        if let (Some(granted), Some(contact)) = (self.seconds(request), request.header("Contact")) {
            text.push_str(&format!("Contact: {contact};expires={granted}\r\n"));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("Content-Length: 0\r\n\r\n");
        text.into()
    }

    fn seconds(&self, request: &Request) -> Option<u32> {
        let scripted = |(name, _): &(String, String)| name.eq_ignore_ascii_case("Contact");
        match self.grant {
            Grant::Nothing => None,
            Grant::Seconds(seconds) => Some(seconds),
            Grant::AsAsked if self.headers.iter().any(scripted) => None,
            // An un-REGISTER leaves no binding to list.
            Grant::AsAsked => request
                .delta_seconds("Expires")
                .filter(|seconds| *seconds > 0),
        }
    }
}

/// The success response to a STUN Binding request, with `mapped` as XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
///
/// None where `request` is no Binding request.
#[must_use]
pub fn stun_success(request: &[u8], mapped: SocketAddr) -> Option<Bytes> {
    let cookie_and_id = stun_request(request)?;
    let mut value = BytesMut::new();
    value.put_u8(0);
    value.put_u8(if mapped.is_ipv4() { 1 } else { 2 });
    value.put_u16(mapped.port());
    match mapped.ip() {
        IpAddr::V4(ip) => value.put_slice(&ip.octets()),
        IpAddr::V6(ip) => value.put_slice(&ip.octets()),
    }
    for (at, byte) in value.iter_mut().enumerate().skip(2) {
        // The port is covered by the first two bytes of the cookie, the address by all of cookie and transaction.
        let mask = if at < 4 { at - 2 } else { at - 4 };
        *byte ^= cookie_and_id.get(mask).copied().unwrap_or_default();
    }
    Some(stun_response(0x0101, 0x0020, cookie_and_id, &value))
}

/// The error response to a STUN Binding request (RFC 8489 §14.8); none where `request` is no such request.
#[must_use]
pub fn stun_error(request: &[u8], code: u16) -> Option<Bytes> {
    let value = [0, 0, (code / 100) as u8, (code % 100) as u8];
    Some(stun_response(
        0x0111,
        0x0009,
        stun_request(request)?,
        &value,
    ))
}

/// Cookie and transaction of a Binding request.
fn stun_request(request: &[u8]) -> Option<&[u8]> {
    let binding =
        request.starts_with(&[0, 1]) && request.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42]);
    request.get(4..20).filter(|_| binding)
}

fn stun_response(kind: u16, attribute: u16, cookie_and_id: &[u8], value: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u16(kind);
    out.put_u16(value.len() as u16 + 4);
    out.put_slice(cookie_and_id);
    out.put_u16(attribute);
    out.put_u16(value.len() as u16);
    out.put_slice(value);
    out.freeze()
}
