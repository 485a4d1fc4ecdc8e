//! Requests as a script sees them, and the answers it gives.

use crate::{FlowId, Request, Target};
use bytes::Bytes;
use std::ops::Deref;

/// A request that went out in a [`Sim`](super::Sim)
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

/// An answer to be given to a request
#[derive(Debug, Clone)]
pub struct Reply {
    code: u16,
    reason: String,
    headers: Vec<(String, String)>,
    granted: Option<u32>,
}

impl Reply {
    /// A bare answer: what every response has, and nothing else.
    #[must_use]
    pub fn status(code: u16) -> Self {
        let reason = match code {
            100 => "Trying",
            200 => "OK",
            401 => "Unauthorized",
            403 => "Forbidden",
            407 => "Proxy Authentication Required",
            423 => "Interval Too Brief",
            503 => "Service Unavailable",
            _ => "Scripted",
        };
        Self {
            code,
            reason: reason.to_owned(),
            headers: Vec::new(),
            granted: None,
        }
    }

    /// 200 with the request's own Contact, granted for `seconds`.
    #[must_use]
    pub fn granted(seconds: u32) -> Self {
        Self {
            granted: Some(seconds),
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
        let mut text = format!("SIP/2.0 {} {}\r\n", self.code, self.reason);
        for (name, long) in [
            ("Via", true),
            ("From", false),
            ("To", false),
            ("Call-ID", false),
            ("CSeq", false),
        ] {
            for value in request
                .headers(name)
                .take(if long { usize::MAX } else { 1 })
            {
                let tag = if name == "To" && self.code > 100 && !value.contains(";tag=") {
                    ";tag=reply"
                } else {
                    ""
                };
                text.push_str(&format!("{name}: {value}{tag}\r\n"));
            }
        }
        if let (Some(granted), Some(contact)) = (self.granted, request.header("Contact")) {
            text.push_str(&format!("Contact: {contact};expires={granted}\r\n"));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("Content-Length: 0\r\n\r\n");
        text.into()
    }
}
