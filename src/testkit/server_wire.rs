//! How the test registrar reads and writes SIP.
//!
//! On purpose nothing of the client's own scanner, writer or digest is used here: what they get wrong together would
//! pass every test.

use bytes::Bytes;
use md5::{Digest, Md5};
use sha2::{Sha256, Sha512_256};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// A digest algorithm that a `TestServer` offers (RFC 8760)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerAlgorithm {
    /// `MD5`
    Md5,
    /// `SHA-256`
    Sha256,
    /// `SHA-512-256`
    Sha512_256,
}

impl ServerAlgorithm {
    /// The token, as in a challenge.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
            Self::Sha512_256 => "SHA-512-256",
        }
    }

    /// The hash of `text` in lower-case hexadecimal digits.
    pub(super) fn hash(self, text: &str) -> String {
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        };
        match self {
            Self::Md5 => hex(&Md5::digest(text)),
            Self::Sha256 => hex(&Sha256::digest(text)),
            Self::Sha512_256 => hex(&Sha512_256::digest(text)),
        }
    }
}

/// A request, read
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) uri: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Reads a request; its body is not looked at.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(message);
        let mut lines = text.split("\r\n");
        let mut start = lines.next()?.split(' ');
        let (method, uri, version) = (start.next()?, start.next()?, start.next()?);
        if !version.eq_ignore_ascii_case("SIP/2.0") || start.next().is_some() {
            return None;
        }
        let mut headers: Vec<(String, String)> = Vec::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            if line.starts_with([' ', '\t']) {
                let (_, value) = headers.last_mut()?;
                value.push(' ');
                value.push_str(line.trim());
            } else {
                let (name, value) = line.split_once(':')?;
                headers.push((long_name(name.trim()), value.trim().to_owned()));
            }
        }
        Some(Self {
            method: method.to_owned(),
            uri: uri.to_owned(),
            headers,
        })
    }

    /// The values of a header, a line each.
    pub(super) fn lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The first value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The values of a header that is a list.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.lines(name)
            .flat_map(|line| split(line, ','))
            .filter(|value| !value.is_empty())
            .collect()
    }
}

/// The long name of a header that has a compact one (RFC 3261 §7.3.3).
fn long_name(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "v" => "Via",
        "f" => "From",
        "t" => "To",
        "i" => "Call-ID",
        "m" => "Contact",
        "l" => "Content-Length",
        "k" => "Supported",
        _ => name,
    }
    .to_owned()
}

/// Splits at `separator` outside of quotes and angle brackets.
pub(super) fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut quoted, mut escaped, mut angle) = (false, false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '<' if !quoted => angle = true,
            '>' if !quoted => angle = false,
            c if c == separator && !quoted && !angle => {
                parts.push(std::mem::take(&mut part).trim().to_owned());
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part.trim().to_owned());
    parts
}

/// `name=value` parameters, names in lower case, values without their quotes.
pub(super) fn parameters(parts: &[String]) -> Vec<(String, String)> {
    let read = |part: &String| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (name.trim().to_ascii_lowercase(), unquoted(value.trim()))
    };
    parts.iter().map(read).collect()
}

/// The value of a parameter.
pub(super) fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
    else {
        return value.to_owned();
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// A header value that is an address: the URI, and the parameters after it.
pub(super) fn address(value: &str) -> Option<(String, Vec<(String, String)>)> {
    let parts = split(value, ';');
    let first = parts.first()?;
    let uri = match first.rfind('<') {
        Some(start) => first.get(start + 1..)?.split('>').next()?,
        None => first,
    };
    (!uri.is_empty()).then(|| {
        (
            uri.trim().to_owned(),
            parameters(parts.get(1..).unwrap_or_default()),
        )
    })
}

/// The canonical address of record (RFC 3261 §10.3 step 5): `user@host`, no parameters, no escapes.
pub(super) fn aor(uri: &str) -> Option<String> {
    let uri = Uri::parse(uri)?;
    Some(
        uri.user
            .map_or_else(|| uri.host.clone(), |user| format!("{user}@{}", uri.host)),
    )
}

/// The user part of a URI, without escapes.
pub(super) fn user(uri: &str) -> Option<String> {
    Uri::parse(uri)?.user
}

/// A URI, as far as comparing it needs (RFC 3261 §19.1.4)
#[derive(Debug, PartialEq, Eq)]
struct Uri {
    scheme: String,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    params: Vec<(String, String)>,
}

impl Uri {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(':')?;
        let (user, rest) = rest
            .rsplit_once('@')
            .map_or((None, rest), |(user, rest)| (Some(user), rest));
        let rest = rest.split('?').next()?;
        let mut params = rest.split(';');
        let (host, port) = host_and_port(params.next()?)?;
        let lower = |param: &str| {
            let (name, value) = param.split_once('=').unwrap_or((param, ""));
            (name.to_ascii_lowercase(), value.to_ascii_lowercase())
        };
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            user: user.map(unescaped),
            host,
            port,
            params: params.map(lower).collect(),
        })
    }

    fn same_as(&self, other: &Self) -> bool {
        let agree = |a: &Self, b: &Self| {
            a.params
                .iter()
                .all(|(name, value)| match parameter(&b.params, name) {
                    Some(theirs) => theirs == value,
                    // Only these must be on both sides; others may be on one.
                    None => {
                        !["user", "ttl", "method", "maddr", "transport"].contains(&name.as_str())
                    }
                })
        };
        (&self.scheme, &self.user, &self.host, self.port)
            == (&other.scheme, &other.user, &other.host, other.port)
            && agree(self, other)
            && agree(other, self)
    }
}

/// Whether two URIs are the same one, RFC 3261 §19.1.4.
pub(super) fn same_uri(a: &str, b: &str) -> bool {
    match (Uri::parse(a), Uri::parse(b)) {
        (Some(a), Some(b)) => a.same_as(&b),
        _ => a == b,
    }
}

fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            out.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `host`, `host:port` or `[v6]:port`; the host in lower case.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let end = if text.starts_with('[') {
        text.find(']')? + 1
    } else {
        text.find(':').unwrap_or(text.len())
    };
    let (host, port) = text.split_at_checked(end)?;
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port.trim().parse().ok()?),
        None => None,
    };
    (!host.is_empty()).then(|| (host.trim().to_ascii_lowercase(), port))
}

/// The topmost Via
#[derive(Debug)]
pub(super) struct Via {
    value: String,
    host: String,
    port: Option<u16>,
    params: Vec<(String, String)>,
}

impl Via {
    pub(super) fn top(request: &Request) -> Option<Self> {
        let value = request.list("Via").into_iter().next()?;
        let parts = split(&value, ';');
        let sent_by = parts
            .first()?
            .split_whitespace()
            .skip(1)
            .collect::<String>();
        let (host, port) = host_and_port(&sent_by)?;
        let params = parameters(parts.get(1..)?);
        Some(Self {
            value,
            host,
            port,
            params,
        })
    }

    /// What names the transaction, with the method (RFC 3261 §17.2.3).
    pub(super) fn key(&self) -> String {
        format!(
            "{}|{}:{:?}",
            parameter(&self.params, "branch").unwrap_or_default(),
            self.host,
            self.port
        )
    }

    /// The value as the response carries it: `received` and `rport` filled in (RFC 3261 §18.2.1, RFC 3581 §4).
    ///
    /// A `keep` without value gets the one given (RFC 6223 §4.4).
    fn answered(&self, source: SocketAddr, keep: Option<u32>) -> String {
        let source_ip = source.ip().to_string();
        let rport = parameter(&self.params, "rport").is_some();
        let mut value = String::new();
        for part in split(&self.value, ';') {
            let name = part
                .split('=')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase();
            match name.as_str() {
                "received" => continue,
                "rport" => value.push_str(&format!(";rport={}", source.port())),
                "keep" => match keep {
                    Some(seconds) => value.push_str(&format!(";keep={seconds}")),
                    None => value.push_str(";keep"),
                },
                _ if value.is_empty() => value = part,
                _ => value.push_str(&format!(";{part}")),
            }
        }
        if rport || self.host.trim_matches(['[', ']']) != source_ip {
            let _ = write!(value, ";received={source_ip}");
        }
        value
    }

    /// Where the response goes on UDP: to the source with `rport`, else to the port of sent-by (RFC 3581 §4).
    pub(super) fn answer_to(&self, source: SocketAddr) -> SocketAddr {
        let rport = parameter(&self.params, "rport").is_some();
        let ip: IpAddr = source.ip();
        SocketAddr::new(
            ip,
            if rport {
                source.port()
            } else {
                self.port.unwrap_or(5060)
            },
        )
    }
}

/// Writes a response to `request` (RFC 3261 §8.2.6).
pub(super) fn respond(
    request: &Request,
    source: SocketAddr,
    code: u16,
    to_tag: &str,
    headers: &[(String, String)],
    keep: Option<u32>,
) -> Bytes {
    let mut out = format!("SIP/2.0 {code} {}\r\n", reason(code));
    let mut line = |name: &str, value: &str| {
        let _ = write!(out, "{name}: {value}\r\n");
    };
    if let Some(top) = Via::top(request) {
        line("Via", &top.answered(source, keep));
    }
    for via in request.list("Via").iter().skip(1) {
        line("Via", via);
    }
    for name in ["From", "To", "Call-ID", "CSeq"] {
        let Some(value) = request.header(name) else {
            continue;
        };
        let tagged = address(value).is_some_and(|(_, params)| parameter(&params, "tag").is_some());
        if name == "To" && !tagged && code != 100 {
            line(name, &format!("{value};tag={to_tag}"));
        } else {
            line(name, value);
        }
    }
    for (name, value) in headers {
        line(name, value);
    }
    line("Content-Length", "0");
    out.push_str("\r\n");
    out.into()
}

/// The reason phrase of a status code (RFC 3261 §21).
pub(super) const fn reason(code: u16) -> &'static str {
    match code {
        100 => "Trying",
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        305 => "Use Proxy",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        420 => "Bad Extension",
        421 => "Extension Required",
        423 => "Interval Too Brief",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        486 => "Busy Here",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        600 => "Busy Everywhere",
        603 => "Decline",
        _ => "Because The Test Says So",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_compare_by_the_rules() {
        assert!(same_uri(
            "sip:%61lice@HOST:5060;line=a",
            "sip:alice@host:5060;line=a"
        ));
        assert!(same_uri("sip:a@h", "sip:a@h;foo=1"));
        for other in [
            "sip:a@h:5060",
            "sip:A@h",
            "sips:a@h",
            "sip:a@h;transport=tcp",
            "sip:b@h",
        ] {
            assert!(!same_uri("sip:a@h", other), "{other}");
        }
        assert!(!same_uri("sip:a@h;line=1", "sip:a@h;line=2"));
        assert_eq!(
            aor("sip:%61lice@[2001:DB8::1]:5060;x").as_deref(),
            Some("alice@[2001:db8::1]")
        );
    }

    #[test]
    fn hashes_are_the_known_ones() {
        assert_eq!(
            ServerAlgorithm::Md5.hash("abc"),
            "900150983cd24fb0d6963f7d28e17f72"
        );
        assert!(
            ServerAlgorithm::Sha256
                .hash("abc")
                .starts_with("ba7816bf8f01cfea")
        );
        assert!(
            ServerAlgorithm::Sha512_256
                .hash("abc")
                .starts_with("53048e2681941ef9")
        );
    }

    #[test]
    fn garbage_is_no_request() {
        for garbage in [
            "",
            "\r\n\r\n",
            "SIP/2.0 200 OK\r\n\r\n",
            "REGISTER sip:a HTTP/1.1\r\n\r\n",
            "A b SIP/2.0\r\n x\r\n",
        ] {
            assert!(Request::parse(garbage.as_bytes()).is_none(), "{garbage:?}");
        }
    }
}
