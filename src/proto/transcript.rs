//! The last request and its answer as text for a support ticket, without secrets (D27).

use super::machine::answers::plain;
use crate::{Headers, Request, Response};
use bytes::Bytes;
use std::fmt;

/// The last request of a registration and what was answered, kept where
/// [`Policy::keep_transcript`](crate::Policy::keep_transcript) says so (D27)
///
/// Start line and header fields, one a line, names as they were sent, values trimmed and unfolded, at most 4096 bytes of
/// each message; of a body only the length. What comes out:
///
/// * credentials: all of `Authorization`, `Proxy-Authorization`, `Authentication-Info`, `Proxy-Authentication-Info` and of
///   any other header field that is named like a secret, but for a scheme in front;
/// * of challenges all but realm, algorithm, qop, stale, domain, charset and userhash;
/// * what was a nonce, an opaque or a digest there, wherever else it stands;
/// * passwords in URIs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transcript {
    /// The request, as it was sent last
    pub request: Box<str>,
    /// The final answer to it; none while there is none
    pub response: Option<Box<str>>,
}

impl Transcript {
    /// A request without an answer, for a mock of [`Registrar`](crate::Registrar); both are shown as they are.
    #[must_use]
    pub fn new(request: impl Into<Box<str>>) -> Self {
        Self {
            request: request.into(),
            response: None,
        }
    }

    /// Sets the answer.
    #[must_use]
    pub fn with_response(mut self, response: impl Into<Box<str>>) -> Self {
        self.response = Some(response.into());
        self
    }

    /// What may be shown of a request that we wrote, and of its answer.
    pub(crate) fn of(request: &Bytes, response: Option<&Response>) -> Option<Self> {
        let request = Request::parse(request.clone()).ok()?;
        let mut secrets = Vec::new();
        collect(&request, &mut secrets);
        if let Some(response) = response {
            collect(response, &mut secrets);
        }
        let start = format!("{} {} SIP/2.0", request.method(), request.uri());
        Some(Self {
            request: shown(&start, &request, &secrets),
            response: response.map(|one| shown(&one.status_line(), one, &secrets)),
        })
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.request)?;
        match &self.response {
            Some(response) => write!(f, "\n{response}"),
            None => f.write_str("\n(no answer)\n"),
        }
    }
}

/// One message, a line for each header field, within [`MOST`].
fn shown(start: &str, headers: &Headers, secrets: &[String]) -> Box<str> {
    let mut text = String::new();
    let mut left_out = 0;
    let mut line = |line: String| {
        if text.len() + line.len() < MOST {
            text.push_str(&line);
            text.push('\n');
        } else {
            left_out += 1;
        }
    };
    line(scrubbed(&plain(start, LINE), secrets));
    for (name, value) in headers.header_fields() {
        let value = match kind(&name) {
            Kind::Challenge => challenge(&value),
            Kind::Secret => hidden(&value),
            Kind::Other => scrubbed(&value, secrets),
        };
        line(format!("{}: {}", plain(&name, LINE), plain(&value, LINE)));
    }
    let body = headers.body().len();
    if left_out > 0 {
        text.push_str(&format!("({left_out} more lines)\n"));
    }
    if body > 0 {
        text.push_str(&format!("(a body of {body} bytes)\n"));
    }
    text.into()
}

enum Kind {
    Challenge,
    Secret,
    Other,
}

fn kind(name: &str) -> Kind {
    let name = name.trim().to_ascii_lowercase();
    match &*name {
        "www-authenticate" | "proxy-authenticate" => Kind::Challenge,
        name if SECRET_NAMES.iter().any(|part| name.contains(part)) => Kind::Secret,
        _ => Kind::Other,
    }
}

/// What is secret about challenges and their answers, to be found elsewhere too.
fn collect(headers: &Headers, secrets: &mut Vec<String>) {
    for (name, value) in headers.header_fields() {
        if matches!(kind(&name), Kind::Other) {
            continue;
        }
        for (param, value) in pieces(&value).filter_map(|piece| piece.split_once('=')) {
            let param = param.trim().rsplit(' ').next().unwrap_or_default();
            let value = value.trim().trim_matches('"');
            let secret = [
                "nonce",
                "cnonce",
                "nextnonce",
                "response",
                "rspauth",
                "opaque",
            ];
            if secret.iter().any(|one| one.eq_ignore_ascii_case(param)) && value.len() >= SHORTEST {
                secrets.push(value.to_owned());
            }
        }
    }
    // The longer ones first: one may be the beginning of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
}

/// A challenge without its nonce and whatever else is not known to be harmless.
fn challenge(value: &str) -> String {
    let shown = pieces(value).map(|piece| {
        let piece = piece.trim();
        let Some((name, value)) = piece.split_once('=') else {
            return hidden(piece);
        };
        let param = name.trim().rsplit(' ').next().unwrap_or_default();
        let harmless = HARMLESS.iter().any(|one| one.eq_ignore_ascii_case(param));
        match harmless && is_whole(value.trim()) {
            true => piece.to_owned(),
            false => format!("{name}=***"),
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// What is between the commas that are not in quoted strings.
fn pieces(value: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |c| {
        let ends = c == ',' && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && quoted && !escaped;
        ends
    })
}

/// A token, or a quoted string that ends where the value does: where quotes do not match, anything may be inside.
fn is_whole(value: &str) -> bool {
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    match inner {
        Some(inner) => !inner.contains('"') && !inner.ends_with('\\'),
        None => value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
    }
}

/// The scheme, and no more.
fn hidden(value: &str) -> String {
    let scheme = value.split_once(' ').map(|(scheme, _)| scheme);
    match scheme.filter(|scheme| scheme.bytes().all(|b| b.is_ascii_alphabetic())) {
        Some(scheme) => format!("{scheme} ***"),
        None => "***".to_owned(),
    }
}

/// Without passwords in URIs, and without any of `secrets`.
fn scrubbed(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if text.contains(&**secret) {
            text = text.replace(&**secret, "***");
        }
    }
    without_passwords(&text)
}

/// `sip:user:password@host` with `***` for the password.
fn without_passwords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let (before, after) = rest.split_at(at);
        // The user part goes back to what cannot be in one (RFC 3261 §25.1), less the scheme.
        let start = before
            .rfind([' ', '<', '>', '"', '\t'])
            .map_or(0, |at| at + 1);
        let part = before.get(start..).unwrap_or_default();
        let scheme = ["sip:", "sips:"].iter().find(|scheme| {
            let prefix = part.get(..scheme.len());
            prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(scheme))
        });
        let user = start + scheme.map_or(0, |scheme| scheme.len());
        let colon = before.get(user..).and_then(|part| part.find(':'));
        match colon.map(|colon| user + colon) {
            Some(colon) => {
                shown.push_str(before.get(..=colon).unwrap_or_default());
                shown.push_str("***");
            }
            None => shown.push_str(before),
        }
        shown.push('@');
        rest = after.get(1..).unwrap_or_default();
    }
    shown.push_str(rest);
    shown
}

/// Bytes of a message that are kept (D27: bounded)
const MOST: usize = 4096;
/// Characters of a line that are kept
const LINE: usize = 1024;
/// What is shorter is no nonce, and would be found in the midst of other words
const SHORTEST: usize = 4;
/// Header fields with this in their names are not shown: RFC 3261 §20.7, §20.28; what hosts and registrars add
const SECRET_NAMES: [&str; 8] = [
    "auth",
    "cookie",
    "credential",
    "nonce",
    "passw",
    "secret",
    "token",
    "api-key",
];
/// Parameters of a challenge that are shown (RFC 7616 §3.3)
const HARMLESS: [&str; 7] = [
    "realm",
    "algorithm",
    "qop",
    "stale",
    "domain",
    "charset",
    "userhash",
];

#[cfg(test)]
#[path = "tests/transcript.rs"]
mod tests;
