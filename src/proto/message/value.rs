//! Reading values of header fields: lists, Via, addresses and their parameters.

use super::scan::ParseError;
use crate::uri::excerpt;
use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::ops::Range;

/// Linear white space; line ends are left in it only by folding.
pub(super) const LWS: [char; 4] = [' ', '\t', '\r', '\n'];

/// One Via value, RFC 3261 §20.42
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Via {
    /// `SIP/2.0`.
    pub protocol: String,
    /// `UDP`, `TLS` …, as it was written.
    pub transport: String,
    /// The host of sent-by, an IPv6 address without brackets.
    pub host: String,
    /// The port of sent-by.
    pub port: Option<u16>,
    /// The transaction it belongs to.
    pub branch: Option<String>,
    /// The address the request came from, without brackets, which RFC 5118 §4.5 has us take or leave.
    pub received: Option<String>,
    /// The port the request came from, RFC 3581 §4; `Some(None)` if it was not filled in.
    pub rport: Option<Option<u16>>,
    /// The seconds of `keep`, by which a server agrees to answer keep-alives, RFC 6223 §4.4; none without a number.
    pub keep: Option<u32>,
}

impl Via {
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (sent, params) = value.split_at(unquoted(value, b';').unwrap_or(value.len()));
        let mut parts = sent.splitn(3, '/').map(|part| part.trim_matches(LWS));
        let (name, version, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (transport, sent_by) = rest.split_once(LWS)?;
        let (host, port) = host_port(sent_by.trim_matches(LWS))?;
        if [name, version, transport]
            .iter()
            .any(|part| !is_token(part.as_bytes()))
        {
            return None;
        }
        let param = |name| {
            Params(params)
                .find(|(key, _)| name == key.to_ascii_lowercase())
                .map(|(_, value)| value)
        };
        let text = |name| {
            param(name)
                .map(|value| value.text().into_owned())
                .filter(|text| !text.is_empty())
        };
        Some(Self {
            protocol: format!("{name}/{version}"),
            transport: transport.to_owned(),
            host: host.to_owned(),
            port,
            branch: text("branch"),
            received: text("received").map(|address| address.trim_matches(['[', ']']).to_owned()),
            rport: param("rport").map(|value| value.token()?.parse().ok()),
            keep: param("keep").and_then(|value| digits_of(value.token()?.as_bytes())),
        })
    }
}

/// A Contact value, RFC 3261 §20.10
pub type Contact<'a> = NameAddr<'a>;

/// An address with its display name and the parameters of the header field, RFC 3261 §20.10
///
/// Without `<>`, parameters belong to the header field and not to the URI.
#[derive(Clone)]
pub struct NameAddr<'a> {
    text: Cow<'a, str>,
    display: Range<usize>,
    uri: Range<usize>,
    params: usize,
}

impl NameAddr<'_> {
    /// Whether it is the `*` that stands for all bindings, RFC 3261 §10.2.2.
    #[must_use]
    pub fn is_star(&self) -> bool {
        self.uri.start == 0 && self.uri() == "*"
    }

    /// Whether the URI stands without `<>`.
    pub(crate) fn is_bare(&self) -> bool {
        self.uri.start == 0
    }

    /// The URI as it was written, of whatever scheme.
    #[must_use]
    pub fn uri(&self) -> &str {
        self.raw_uri().trim_matches(LWS)
    }

    /// The display name, without its quotes and escapes.
    #[must_use]
    pub fn display_name(&self) -> Option<Cow<'_, str>> {
        let display = self.raw_display();
        (!display.is_empty()).then(|| unquote(display).unwrap_or(Cow::Borrowed(display)))
    }

    /// The parameters of the header field, in order.
    pub fn params(&self) -> impl Iterator<Item = (&str, ParamValue<'_>)> {
        Params(self.text.get(self.params..).unwrap_or_default())
    }

    /// A parameter of the header field; the case of `name` does not matter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<ParamValue<'_>> {
        self.params()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn raw_uri(&self) -> &str {
        self.text.get(self.uri.clone()).unwrap_or_default()
    }

    fn raw_display(&self) -> &str {
        self.text
            .get(self.display.clone())
            .unwrap_or_default()
            .trim_matches(LWS)
    }
}

impl<'a> NameAddr<'a> {
    pub(super) fn parse(text: Cow<'a, str>) -> Option<Self> {
        let (display, uri, params) = match unquoted(&text, b'<') {
            Some(open) => {
                let close = open + text.get(open..)?.find('>')?;
                (0..open, open + 1..close, close + 1)
            }
            // An open quote hides the bracket; without one there can be no quote before the parameters.
            None if text.starts_with('"') => return None,
            None => {
                let end = text.find(';').unwrap_or(text.len());
                (0..0, 0..end, end)
            }
        };
        let address = Self {
            text,
            display,
            uri,
            params,
        };
        (!address.uri().is_empty()).then_some(address)
    }
}

impl fmt::Debug for NameAddr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&excerpt(&self.text))
    }
}

/// The value of a header parameter, RFC 3261 §25.1 `gen-value`
///
/// Tokens and quoted strings are told apart, as `expires="60"` is malformed and counts as no value, RFC 3261 §10.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParamValue<'a> {
    /// There is no `=`.
    Flag,
    /// A token or host, as it was written.
    Token(&'a str),
    /// A quoted string, without its quotes and escapes.
    Quoted(Cow<'a, str>),
}

impl<'a> ParamValue<'a> {
    /// The value, if it is not quoted.
    #[must_use]
    pub fn token(&self) -> Option<&'a str> {
        match self {
            Self::Token(token) => Some(token),
            Self::Flag | Self::Quoted(_) => None,
        }
    }

    /// The value, quoted or not; empty where there is none.
    #[must_use]
    pub fn text(&self) -> Cow<'a, str> {
        match self {
            Self::Flag => Cow::Borrowed(""),
            Self::Token(token) => Cow::Borrowed(token),
            Self::Quoted(text) => text.clone(),
        }
    }

    /// Whether it is a quoted string.
    #[must_use]
    pub fn is_quoted(&self) -> bool {
        matches!(self, Self::Quoted(_))
    }
}

/// The parameters in `;name=value;name`, empty ones left out.
struct Params<'a>(&'a str);

impl<'a> Iterator for Params<'a> {
    type Item = (&'a str, ParamValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = self.0.find(';')? + 1;
            let rest = self.0.get(start..)?;
            let (param, after) = rest.split_at(unquoted(rest, b';').unwrap_or(rest.len()));
            self.0 = after;
            let (name, value) = match param.split_once('=') {
                Some((name, value)) => (name, Some(value.trim_matches(LWS))),
                None => (param, None),
            };
            let name = name.trim_matches(LWS);
            if name.is_empty() {
                continue;
            }
            let value = value.map_or(ParamValue::Flag, |value| {
                unquote(value).map_or(ParamValue::Token(value), ParamValue::Quoted)
            });
            return Some((name, value));
        }
    }
}

/// Divides at commas outside quoted strings and `<>`, empty elements included.
pub(super) fn split_list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let (mut quoted, mut escaped, mut enclosed) = (false, false, false);
        let comma = value.iter().position(|&b| {
            match b {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' if !enclosed => quoted = !quoted,
                b'<' if !quoted => enclosed = true,
                b'>' if !quoted => enclosed = false,
                b',' => return !quoted && !enclosed,
                _ => {}
            }
            false
        });
        rest = comma.and_then(|comma| value.get(comma + 1..));
        value.get(..comma.unwrap_or(value.len()))
    })
}

/// Where an ASCII character first stands outside quoted strings.
pub(super) fn unquoted(text: &str, wanted: u8) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|b| {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => return b == wanted && !quoted,
        }
        false
    })
}

/// The content of a quoted string, up to its closing quote; `None` if it does not begin as one.
pub(super) fn unquote(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?;
    if let Some(plain) = inner
        .strip_suffix('"')
        .filter(|plain| !plain.contains(['"', '\\']))
    {
        return Some(Cow::Borrowed(plain));
    }
    let mut content = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => content.extend(chars.next()),
            c => content.push(c),
        }
    }
    Some(Cow::Owned(content))
}

/// A value as text: trimmed, a fold read as one blank (RFC 3261 §7.3.1) and a lone CR too, which others may take for the end
/// of a line; what is no UTF-8 replaced.
pub(super) fn text(value: &[u8]) -> Cow<'_, str> {
    let value = String::from_utf8_lossy(value.trim_ascii());
    if !value.contains(['\r', '\n']) {
        return value;
    }
    let lines = value
        .split(['\r', '\n'])
        .map(|line| line.trim_matches(LWS))
        .filter(|line| !line.is_empty());
    Cow::Owned(lines.collect::<Vec<_>>().join(" "))
}

/// A sent-by; also an IPv6 address without its brackets, which leaves no room for a port.
pub(super) fn host_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None if text.parse::<Ipv6Addr>().is_ok() => (text, ""),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let (host, rest) = (host.trim_matches(LWS), rest.trim_matches(LWS));
    if host.is_empty() || host.contains(LWS) {
        return None;
    }
    match rest.strip_prefix(':') {
        Some(port) => Some((host, Some(digits_of(port.as_bytes())?.try_into().ok()?))),
        None => rest.is_empty().then_some((host, None)),
    }
}

/// A number of nothing but digits, blanks around it aside.
pub(super) fn digits_of(text: &[u8]) -> Option<u32> {
    let digits = text.trim_ascii();
    let add = |sum: u32, &b: &u8| {
        let digit = b.is_ascii_digit().then(|| u32::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    };
    if digits.is_empty() {
        None
    } else {
        digits.iter().try_fold(0, add)
    }
}

pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(b))
}

/// Checks a From, To or Contact value of a request, RFC 4475 §3.1.2.
pub(super) fn validate_address(header: &'static str, value: &[u8]) -> Result<(), ParseError> {
    let value = text(value);
    let malformed = |rule| {
        Err(ParseError::Malformed {
            header,
            value: excerpt(&value),
            rule,
        })
    };
    let Some(address) = NameAddr::parse(value.clone()) else {
        return malformed("must be an address with its quotes and brackets closed");
    };
    let (display, uri) = (address.raw_display(), address.raw_uri());
    if !display.starts_with('"')
        && !display
            .split(LWS)
            .all(|word| word.is_empty() || is_token(word.as_bytes()))
    {
        return malformed("must have its display name quoted");
    }
    let bare = address.uri.start == 0;
    if (if bare { uri.trim_matches(LWS) } else { uri }).contains(LWS) {
        return malformed("must have no blanks in its URI");
    }
    if !address.is_star() && !uri.contains(':') {
        return malformed("must have a URI with a scheme");
    }
    if bare && uri.contains(['?', ',']) {
        return malformed("must have its URI in angle brackets");
    }
    if has_empty_param(value.get(address.params..).unwrap_or_default()) {
        return malformed("must have no empty parameters");
    }
    Ok(())
}

/// Whether `value;name=value` has a semicolon that no parameter follows.
pub(super) fn has_empty_param(value: &str) -> bool {
    let mut rest = value;
    while let Some(at) = unquoted(rest, b';') {
        rest = rest
            .get(at + 1..)
            .unwrap_or_default()
            .trim_start_matches(LWS);
        if rest.is_empty() || rest.starts_with(';') {
            return true;
        }
    }
    false
}
