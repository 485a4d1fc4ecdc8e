//! SIP and SIPS URIs: checked once, kept as they were written.

mod equivalence;

use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

/// A SIP or SIPS URI, RFC 3261 §19.1
///
/// Parsed once, cheap to clone. The text stays exactly as it was written, because a digest `uri=`, a Request-URI and a
/// Contact must not change on their way through us; `==` and `Hash` compare that text. Use
/// [`is_equivalent`](Self::is_equivalent) for the comparison of RFC 3261 §19.1.4.
///
/// `Display` writes the text as it goes on the wire, `Debug` masks the password and the values of headers.
#[derive(Clone)]
pub struct SipUri {
    text: Arc<str>,
    parts: Parts,
}

/// Whether a URI asks for TLS on the whole way, RFC 3261 §19.1
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `sip:`
    Sip,
    /// `sips:`
    Sips,
}

/// Why a text is not a [`SipUri`], RFC 3261 §25.1
///
/// The URI in each is shortened, and its password masked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// The scheme is missing or another one, RFC 3261 §19.1.1.
    #[error("{uri:?} does not start with sip: or sips:")]
    Scheme {
        /// The text that was to be a URI.
        uri: String,
    },
    /// Longer than we are ready to write into a request.
    #[error("{uri:?} has {length} bytes, more than {MAX_LENGTH}")]
    TooLong {
        /// The text that was to be a URI.
        uri: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A component that must have text has none.
    #[error("{uri:?} has an empty {part}")]
    Empty {
        /// The text that was to be a URI.
        uri: String,
        /// The component.
        part: &'static str,
    },
    /// A character which must be percent-encoded in this component, or cannot be there at all.
    #[error("{uri:?} has a character in its {part} that must be escaped there")]
    Character {
        /// The text that was to be a URI.
        uri: String,
        /// The component.
        part: &'static str,
    },
    /// A percent sign without two hexadecimal digits.
    #[error("{uri:?} has a % without two hexadecimal digits in its {part}")]
    Escape {
        /// The text that was to be a URI.
        uri: String,
        /// The component.
        part: &'static str,
    },
    /// The host is no host name, IPv4 address or IPv6 address in brackets.
    #[error("{uri:?} has {host:?} as host, which is no host name, IPv4 address or [IPv6 address]")]
    Host {
        /// The text that was to be a URI.
        uri: String,
        /// The host as it was written.
        host: String,
    },
    /// An IPv6 zone, which means nothing to a peer; the grammar of RFC 3261 has none.
    #[error("{uri:?} has an IPv6 zone in its host")]
    Zone {
        /// The text that was to be a URI.
        uri: String,
    },
    /// The port is not a number from 1 to 65535.
    #[error("{uri:?} has {port:?} as port, which is not from 1 to 65535")]
    Port {
        /// The text that was to be a URI.
        uri: String,
        /// The port as it was written.
        port: String,
    },
    /// A parameter that is there twice, RFC 3261 §19.1.1.
    #[error("{uri:?} has the parameter {name:?} twice")]
    Repeated {
        /// The text that was to be a URI.
        uri: String,
        /// The name of the parameter.
        name: String,
    },
}

impl SipUri {
    /// Reads a URI, also one in `<>`; nothing may stand before or after it
    ///
    /// Strict as RFC 3261 §25.1, but for three things seen in the field: an underscore in a host name, a parameter
    /// value in double quotes, and the third colon of RFC 5118 §4.10.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let text = text
            .strip_prefix('<')
            .and_then(|rest| rest.strip_suffix('>'))
            .unwrap_or(text);
        let parts = Parts::parse(text)?;
        Ok(Self {
            text: Arc::from(text),
            parts,
        })
    }

    /// The text, exactly as it was written; with the password, if it has one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `sip` or `sips`, RFC 3261 §19.1.1.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.parts.scheme
    }

    /// The user as it was written, escapes and user parameters included, without the password.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        let end = self.parts.user_end?;
        Some(self.part(self.parts.user_start(), end.get()))
    }

    /// The password, which RFC 3261 §19.1.1 recommends nobody to use.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        let userinfo = self.part(self.parts.user_end?.get(), self.parts.host);
        userinfo.strip_prefix(':')?.strip_suffix('@')
    }

    /// The host, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host_text()
            .trim_start_matches('[')
            .trim_end_matches(']')
    }

    /// The host as it was written, an IPv6 address in brackets.
    #[must_use]
    pub fn host_text(&self) -> &str {
        self.part(self.parts.host, self.parts.host_end)
    }

    /// The host if it is an address and nothing needs resolving.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        address(self.host_text())
    }

    /// The port, if one was written.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.parts.port.map(NonZeroU16::get)
    }

    /// The parameters in order, as they were written.
    pub fn params(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        params(self.part(self.parts.params, self.parts.headers))
    }

    /// The value of a parameter, `Some(None)` if it has none; the case of `name` does not matter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<Option<&str>> {
        self.params()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Whether it has this parameter, with or without a value.
    #[must_use]
    pub fn has_param(&self, name: &str) -> bool {
        self.param(name).is_some()
    }

    /// The `transport` parameter as it was written, also one we do not know, RFC 3261 §19.1.1.
    #[must_use]
    pub fn transport(&self) -> Option<&str> {
        self.param("transport").flatten()
    }

    /// The headers after `?`, as they were written, RFC 3261 §19.1.1.
    #[must_use]
    pub fn headers(&self) -> Option<&str> {
        self.text
            .get(usize::from(self.parts.headers)..)?
            .strip_prefix('?')
    }

    fn part(&self, from: u16, to: u16) -> &str {
        self.text
            .get(usize::from(from)..usize::from(to))
            .unwrap_or_default()
    }
}

impl fmt::Display for SipUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SipUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(headers) = self.headers() else {
            return f.write_str(&masked(&self.text));
        };
        // What becomes a header of the request may be a secret, as any header of the host.
        let before = self.text.len() - headers.len() - 1;
        f.write_str(&masked(self.text.get(..before).unwrap_or_default()))?;
        for (nth, header) in headers.split('&').enumerate() {
            let name = header.split('=').next().unwrap_or_default();
            write!(f, "{}{name}=***", if nth == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl PartialEq for SipUri {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SipUri {}

impl Hash for SipUri {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl AsRef<str> for SipUri {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl FromStr for SipUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for SipUri {
    type Error = UriError;

    fn try_from(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SipUri {
    type Error = UriError;

    fn try_from(text: String) -> Result<Self, UriError> {
        Self::parse(&text)
    }
}

impl TryFrom<&String> for SipUri {
    type Error = UriError;

    fn try_from(text: &String) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl From<&Self> for SipUri {
    fn from(uri: &Self) -> Self {
        uri.clone()
    }
}

impl From<Infallible> for UriError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The longest URI we take, in bytes: room for any GRUU, and what keeps all offsets in 16 bits.
const MAX_LENGTH: usize = 4096;

/// Where the components are: `scheme:user:password@host:port;params?headers`.
#[derive(Clone, Copy)]
struct Parts {
    scheme: Scheme,
    /// The end of the user, at `:` or `@`.
    user_end: Option<NonZeroU16>,
    host: u16,
    host_end: u16,
    port: Option<NonZeroU16>,
    /// The first `;`, or the end of what stands before the headers.
    params: u16,
    /// The `?`, or the end of the text.
    headers: u16,
}

impl Parts {
    fn user_start(&self) -> u16 {
        match self.scheme {
            Scheme::Sip => 4,
            Scheme::Sips => 5,
        }
    }

    fn parse(text: &str) -> Result<Self, UriError> {
        let uri = || excerpt(text);
        if text.len() > MAX_LENGTH {
            return Err(UriError::TooLong {
                uri: uri(),
                length: text.len(),
            });
        }
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("sip") => (Scheme::Sip, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("sips") => (Scheme::Sips, rest),
            _ => return Err(UriError::Scheme { uri: uri() }),
        };

        // Only a user part can hold an @; a quote ends the search, as it can only come in a parameter.
        let (userinfo, rest) = match rest.split_once(['@', '"']) {
            Some((userinfo, after))
                if rest
                    .get(userinfo.len()..)
                    .is_some_and(|rest| rest.starts_with('@')) =>
            {
                (Some(userinfo), after)
            }
            _ => (None, rest),
        };
        let user = userinfo.map(|userinfo| userinfo.split_once(':').unwrap_or((userinfo, "")));
        if let Some((user, password)) = user {
            check(text, "user", user, "&=+$,;?/")?;
            if !password.is_empty() {
                check(text, "password", password, "&=+$,")?;
            }
        }

        // An @ that is left may belong to a password that broke the grammar before it.
        let shown = |part: &str| {
            if rest.contains('@') {
                "***".to_owned()
            } else {
                excerpt(part)
            }
        };
        let host_length = match rest.find(']') {
            Some(end) if rest.starts_with('[') => end + 1,
            _ => rest.find([':', ';', '?']).unwrap_or(rest.len()),
        };
        let (host, rest) = rest.split_at(host_length);
        check_host(text, host, shown)?;

        let port_length = rest.find([';', '?']).unwrap_or(rest.len());
        let (port, rest) = rest.split_at(port_length);
        let port = if port.is_empty() {
            None
        } else {
            let digits = port
                .strip_prefix(':')
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            let number = digits.and_then(|digits| digits.parse().ok());
            Some(number.ok_or_else(|| UriError::Port {
                uri: uri(),
                port: shown(port.trim_start_matches(':')),
            })?)
        };

        let (params, headers) = rest.split_at(unquoted(rest, '?').unwrap_or(rest.len()));
        check_params(text, params)?;
        for header in headers
            .strip_prefix('?')
            .into_iter()
            .flat_map(|headers| headers.split('&'))
        {
            let Some((name, value)) = header.split_once('=') else {
                return Err(UriError::Empty {
                    uri: uri(),
                    part: "header",
                });
            };
            check(text, "header name", name, "[]/?:+$")?;
            if !value.is_empty() {
                check(text, "header value", value, "[]/?:+$")?;
            }
        }

        // All of these fit, as the text is no longer than MAX_LENGTH.
        let offset = |remaining: usize| u16::try_from(text.len() - remaining).unwrap_or(u16::MAX);
        let host_start = offset(host.len() + port_length + rest.len());
        let mut parts = Self {
            scheme,
            user_end: None,
            host: host_start,
            host_end: offset(port_length + rest.len()),
            port,
            params: offset(rest.len()),
            headers: offset(headers.len()),
        };
        let user_length = user.and_then(|(user, _)| u16::try_from(user.len()).ok());
        parts.user_end =
            user_length.and_then(|length| NonZeroU16::new(parts.user_start() + length));
        Ok(parts)
    }
}

fn check_host(uri: &str, host: &str, shown: impl Fn(&str) -> String) -> Result<(), UriError> {
    if host.is_empty() {
        return Err(UriError::Empty {
            uri: excerpt(uri),
            part: "host",
        });
    }
    if host.starts_with('[') && host.contains('%') {
        return Err(UriError::Zone { uri: excerpt(uri) });
    }
    // RFC 3261 has no underscore in a host name; container and Windows networks do, and so has pjsip.
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A name that ends in a number is a mistyped address: RFC 3261 has top labels start with a letter.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|top| top.bytes().all(|b| b.is_ascii_digit()));
    if address(host).is_some() || (name.split('.').all(label) && !numeric) {
        return Ok(());
    }
    Err(UriError::Host {
        uri: excerpt(uri),
        host: shown(host),
    })
}

fn check_params(uri: &str, text: &str) -> Result<(), UriError> {
    let mut seen = Vec::new();
    for (name, value) in params(text) {
        check(uri, "parameter name", name, "[]/:&+$")?;
        match value {
            // Not in the grammar, but sent. Blanks and <> stay forbidden: they would end the URI for most readers.
            Some(value) if value.starts_with('"') => {
                let text = value
                    .strip_prefix('"')
                    .and_then(|rest| rest.strip_suffix('"'));
                let plain = |text: &str| {
                    text.bytes()
                        .all(|b| b.is_ascii_graphic() && b != b'<' && b != b'>')
                };
                if !text.is_some_and(plain) || unquoted(value, '\0') != Some(value.len()) {
                    return Err(UriError::Character {
                        uri: excerpt(uri),
                        part: "quoted parameter value",
                    });
                }
            }
            Some(value) => check(uri, "parameter value", value, "[]/:&+$")?,
            None => {}
        }
        if seen
            .iter()
            .any(|other: &&str| other.eq_ignore_ascii_case(name))
        {
            return Err(UriError::Repeated {
                uri: excerpt(uri),
                name: excerpt(name),
            });
        }
        seen.push(name);
    }
    Ok(())
}

/// Checks that `text` is made of `unreserved`, `escaped` and `others` characters, and that there is some.
fn check(uri: &str, part: &'static str, text: &str, others: &str) -> Result<(), UriError> {
    if text.is_empty() {
        return Err(UriError::Empty {
            uri: excerpt(uri),
            part,
        });
    }
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next(), bytes.next()];
            if !digits
                .iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit()))
            {
                return Err(UriError::Escape {
                    uri: excerpt(uri),
                    part,
                });
            }
        } else if !(byte.is_ascii_alphanumeric()
            || b"-_.!~*'()".contains(&byte)
            || others.as_bytes().contains(&byte))
        {
            return Err(UriError::Character {
                uri: excerpt(uri),
                part,
            });
        }
    }
    Ok(())
}

/// Splits `;name=value;name`.
fn params(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut rest = text.strip_prefix(';');
    std::iter::from_fn(move || {
        let text = rest?;
        let end = unquoted(text, ';').unwrap_or(text.len()).min(text.len());
        let (param, after) = text.split_at(end);
        rest = after.strip_prefix(';');
        Some(
            param
                .split_once('=')
                .map_or((param, None), |(name, value)| (name, Some(value))),
        )
    })
}

/// Where `wanted` first stands outside double quotes; for `'\0'`, where the first quoted string ends.
fn unquoted(text: &str, wanted: char) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if quoted && wanted == '\0' => return Some(at + 1),
            '"' => quoted = !quoted,
            _ if c == wanted && !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The address that a host stands for, if it is one.
fn address(host: &str) -> Option<IpAddr> {
    let Some(inner) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    else {
        return host.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    };
    // RFC 5118 §4.10: the grammar of RFC 3261 leads to a third colon before an IPv4 part, which must be tolerated.
    let parsed = inner
        .parse::<Ipv6Addr>()
        .or_else(|_| inner.replacen(":::", "::", 1).parse());
    parsed.ok().map(IpAddr::V6)
}

/// What an error or a log line may say of a URI, of a text that is none, or of a header value with one in it.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 64;
    let text = masked(text);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// The text with all that may be a password replaced, also if it does not parse.
fn masked(text: &str) -> String {
    let start = ["sip:", "sips:"].iter().find(|scheme| {
        text.get(..scheme.len())
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case(scheme))
    });
    let start = start.map_or(0, |scheme| scheme.len());
    let hidden = text.rfind('@').and_then(|at| {
        let colon = start + text.get(start..at)?.find(':')?;
        Some((text.get(..=colon)?, text.get(at..)?))
    });
    hidden.map_or_else(
        || text.to_owned(),
        |(before, after)| format!("{before}***{after}"),
    )
}

#[cfg(test)]
mod tests;
