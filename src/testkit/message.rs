//! Requests as a script sees them, and the answers it gives.

use super::server_wire::reason;
use crate::{FlowId, Request, Target};
use bytes::Bytes;
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

    /// The response to `request` as bytes.
    #[must_use]
    pub fn to(&self, request: &Request) -> Bytes {
        let mut text = format!("SIP/2.0 {} {}\r\n", self.code, reason(self.code));
        for value in request.headers("Via") {
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
