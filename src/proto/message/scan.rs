//! Reading SIP messages from the network: one scan, then a lazy and tolerant view.

use super::value::{
    Contact, LWS, NameAddr, Via, digits_of, has_empty_param, is_token, split_list, text,
    validate_address,
};
use crate::SipUri;
use crate::uri::excerpt;
use bytes::Bytes;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

/// A message as it came from the network, RFC 3261 §7
///
/// What is malformed but clear is taken: compact names, folding, blanks around the colon, lone LF, bytes that are no
/// UTF-8, a missing end, lines that are no header field. Values are read when they are asked for.
#[derive(Debug, Clone)]
pub enum Message {
    /// A request, RFC 3261 §7.1.
    Request(Request),
    /// A response, RFC 3261 §7.2.
    Response(Response),
}

impl Message {
    /// Reads one message: a datagram, or what a [`Framer`](crate::Framer) cut from a stream.
    pub fn parse(bytes: Bytes) -> Result<Self, ParseError> {
        let (line, headers) = Headers::parse(bytes)?;
        let is_status_line = headers
            .slice(line)
            .get(..4)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/"));
        if is_status_line {
            Response::with_status_line(line, headers).map(Self::Response)
        } else {
            Request::with_request_line(line, headers).map(Self::Request)
        }
    }
}

/// A response, RFC 3261 §7.2
#[derive(Clone)]
pub struct Response {
    code: u16,
    line: Span,
    reason: Span,
    headers: Headers,
}

impl Response {
    /// Reads a response; a Content-Length that does not fit is overlooked, the body is what there is.
    pub fn parse(bytes: Bytes) -> Result<Self, ParseError> {
        match Message::parse(bytes)? {
            Message::Response(response) => Ok(response),
            Message::Request(request) => Err(ParseError::StartLine {
                line: request.quote(request.line),
            }),
        }
    }

    /// The status code, 100 to 699.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The reason phrase, often empty or free text, RFC 3261 §7.2.
    #[must_use]
    pub fn reason(&self) -> Cow<'_, str> {
        text(self.slice(self.reason))
    }

    /// The whole status line, for a log or an event.
    #[must_use]
    pub fn status_line(&self) -> Cow<'_, str> {
        text(self.slice(self.line))
    }

    /// Whether it has what it takes to find its transaction: Via, CSeq and Call-ID, RFC 3261 §17.1.3
    ///
    /// One that has not is dropped, RFC 4475 §3.1.2.5.
    pub fn validate(&self) -> Result<(), ParseError> {
        self.validate_transaction()
    }

    fn with_status_line(line: Span, headers: Headers) -> Result<Self, ParseError> {
        let bytes = headers.slice(line);
        let version = bytes
            .split(|b| b" \t".contains(b))
            .next()
            .unwrap_or_default();
        if !version.eq_ignore_ascii_case(b"SIP/2.0") {
            return Err(ParseError::Version {
                line: headers.quote(line),
            });
        }
        let rest = bytes
            .get(version.len()..)
            .unwrap_or_default()
            .trim_ascii_start();
        let digits = rest
            .split(|b| b" \t".contains(b))
            .next()
            .unwrap_or_default();
        let code = digits_of(digits).filter(|code| digits.len() == 3 && (100..700).contains(code));
        let Some(code) = code else {
            return Err(ParseError::StatusCode {
                line: headers.quote(line),
            });
        };
        let reason = Span {
            start: line.end - (rest.len() - digits.len()) as u32,
            end: line.end,
        };
        Ok(Self {
            code: code as u16,
            line,
            reason,
            headers,
        })
    }
}

impl Deref for Response {
    type Target = Headers;

    fn deref(&self) -> &Headers {
        &self.headers
    }
}

impl fmt::Debug for Response {
    /// Shows the status line only: header fields carry nonces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Response")
            .field(&self.status_line())
            .finish()
    }
}

/// A request, RFC 3261 §7.1
#[derive(Clone)]
pub struct Request {
    line: Span,
    method: Span,
    uri: Span,
    headers: Headers,
}

impl Request {
    /// Reads a request, also one that [`validate`](Self::validate) would refuse.
    pub fn parse(bytes: Bytes) -> Result<Self, ParseError> {
        match Message::parse(bytes)? {
            Message::Request(request) => Ok(request),
            Message::Response(response) => Err(ParseError::StartLine {
                line: response.quote(response.line),
            }),
        }
    }

    /// The method, also one we do not know; case matters, RFC 3261 §7.1.
    #[must_use]
    pub fn method(&self) -> &str {
        std::str::from_utf8(self.slice(self.method)).unwrap_or_default()
    }

    /// The Request-URI as it was written.
    #[must_use]
    pub fn uri(&self) -> Cow<'_, str> {
        text(self.slice(self.uri))
    }

    /// Whether a user agent should handle it, rather than answer 400, RFC 3261 §8.2 and RFC 4475 §3.1.2
    ///
    /// Refuses what is ambiguous or breaks a mandatory part. Extra blanks in the Request-Line, a bad Date or
    /// Max-Forwards and whatever RFC 2543 allowed are clear enough, and pass.
    pub fn validate(&self) -> Result<(), ParseError> {
        self.validate_uri()?;
        for header in [
            "From",
            "To",
            "Call-ID",
            "CSeq",
            "Max-Forwards",
            "Content-Length",
        ] {
            if self.headers(header).nth(1).is_some() {
                return Err(ParseError::Repeated { header });
            }
        }
        self.validate_transaction()?;
        if self
            .cseq()
            .is_none_or(|(_, method)| method != self.method())
        {
            return Err(self.malformed("CSeq", "its method must be that of the request"));
        }
        for header in ["From", "To"] {
            let value = self
                .raw(header)
                .next()
                .ok_or(ParseError::Missing { header })?;
            validate_address(header, value)?;
        }
        for value in self.raw("Contact").flat_map(split_list) {
            validate_address("Contact", value)?;
        }
        match self.header("Content-Length") {
            Some(_)
                if self
                    .content_length()
                    .is_none_or(|length| length > self.rest().len()) =>
            {
                Err(self.malformed("Content-Length", "must be a number of bytes that are there"))
            }
            _ => Ok(()),
        }
    }

    fn validate_uri(&self) -> Result<(), ParseError> {
        let uri = self.uri();
        let malformed = |rule| {
            Err(ParseError::Malformed {
                header: "Request-URI",
                value: excerpt(&uri),
                rule,
            })
        };
        let Some((scheme, _)) = uri.split_once(':') else {
            return malformed("must have a scheme");
        };
        if uri.contains(|c: char| c.is_whitespace() || c.is_control() || "<>\"".contains(c)) {
            return malformed("must have no blanks, quotes or angle brackets");
        }
        // Another scheme is well-formed here and gets its 416 later, RFC 4475 §3.3.2.
        if !["sip", "sips"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
        {
            return Ok(());
        }
        match SipUri::parse(&uri) {
            Ok(uri) if uri.headers().is_some() => malformed("must have no header components"),
            Ok(_) => Ok(()),
            Err(_) => malformed("must be a SIP URI"),
        }
    }

    fn with_request_line(line: Span, headers: Headers) -> Result<Self, ParseError> {
        let bytes = headers.slice(line);
        let blank = |b: &u8| *b == b' ' || *b == b'\t';
        let (Some(first), Some(last)) =
            (bytes.iter().position(blank), bytes.iter().rposition(blank))
        else {
            return Err(ParseError::StartLine {
                line: headers.quote(line),
            });
        };
        let (method, version) = (
            bytes.get(..first).unwrap_or_default(),
            bytes.get(last + 1..).unwrap_or_default(),
        );
        let uri = bytes.get(first..last).unwrap_or_default().trim_ascii();
        let is_sip = version
            .get(..4)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/"));
        if !is_token(method) || uri.is_empty() || !is_sip {
            return Err(ParseError::StartLine {
                line: headers.quote(line),
            });
        }
        if !version.eq_ignore_ascii_case(b"SIP/2.0") {
            return Err(ParseError::Version {
                line: headers.quote(line),
            });
        }
        let method = headers.span(method);
        let uri = headers.span(uri);
        Ok(Self {
            line,
            method,
            uri,
            headers,
        })
    }
}

impl Deref for Request {
    type Target = Headers;

    fn deref(&self) -> &Headers {
        &self.headers
    }
}

impl fmt::Debug for Request {
    /// Shows the method only: header fields carry credentials, and a Request-URI may.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Request").field(&self.method()).finish()
    }
}

/// The header fields and the body of a message, RFC 3261 §7.3 and §7.4
///
/// A header field is named by its long form and found under its compact form, too.
#[derive(Clone)]
pub struct Headers {
    bytes: Bytes,
    fields: Box<[Field]>,
    /// Where the header section ends, with its empty line.
    end: u32,
}

impl Headers {
    /// The first value of a header field, trimmed and unfolded.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.raw(name).next().map(text)
    }

    /// Each instance of a header field, trimmed and unfolded.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.raw(name).map(text)
    }

    /// Each element of a header field that is a list, over all its instances, RFC 3261 §7.3.1
    ///
    /// Commas in quoted strings and between `<>` do not divide. Empty elements are left out.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.raw(name)
            .flat_map(split_list)
            .map(text)
            .filter(|value| !value.is_empty())
    }

    /// All header fields in order, the names as they were written.
    pub fn header_fields(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.fields
            .iter()
            .map(|field| (text(self.slice(field.name)), text(self.slice(field.value))))
    }

    /// The topmost Via, RFC 3261 §20.42; `None` if it is missing or malformed.
    #[must_use]
    pub fn via(&self) -> Option<Via> {
        Via::parse(&self.values("Via").next()?)
    }

    /// How many Via values there are; a response to us has one, RFC 3261 §8.1.3.3.
    #[must_use]
    pub fn via_count(&self) -> usize {
        self.values("Via").count()
    }

    /// The sequence number and method of CSeq, RFC 3261 §20.16.
    #[must_use]
    pub fn cseq(&self) -> Option<(u32, Cow<'_, str>)> {
        let value = self.header("CSeq")?;
        let (number, method) = value.split_once(LWS)?;
        let number = digits_of(number.as_bytes())?;
        let method = method.trim_matches(LWS);
        is_token(method.as_bytes()).then(|| (number, Cow::Owned(method.to_owned())))
    }

    /// The Call-ID, compared byte by byte, RFC 3261 §20.8.
    #[must_use]
    pub fn call_id(&self) -> Option<Cow<'_, str>> {
        self.header("Call-ID")
            .filter(|id| !id.is_empty() && !id.contains(LWS))
    }

    /// The Contacts that can be read, RFC 3261 §20.10.
    pub fn contacts(&self) -> impl Iterator<Item = Contact<'_>> {
        self.name_addrs("Contact")
    }

    /// The address in a header field that has one, such as From and To, RFC 3261 §20.20.
    #[must_use]
    pub fn name_addr(&self, header: &str) -> Option<NameAddr<'_>> {
        NameAddr::parse(self.header(header)?)
    }

    /// The addresses that can be read in a header field that is a list of them, such as P-Associated-URI or Path.
    pub fn name_addrs<'a>(&'a self, header: &'a str) -> impl Iterator<Item = NameAddr<'a>> {
        self.values(header).filter_map(move |value| {
            let address = NameAddr::parse(value);
            if address.is_none() {
                tracing::trace!(header, "skipping an address that cannot be read");
            }
            address
        })
    }

    /// The tag of From or To, RFC 3261 §19.3.
    #[must_use]
    pub fn tag_of(&self, header: &str) -> Option<String> {
        let address = self.name_addr(header)?;
        let tag = address.param("tag")?.token()?.to_owned();
        (!tag.is_empty()).then_some(tag)
    }

    /// The seconds of Retry-After, whatever comment or parameters follow, RFC 3261 §20.33
    ///
    /// A number that is too large is the largest there is; it may not turn into "at once".
    #[must_use]
    pub fn retry_after(&self) -> Option<u32> {
        let value = self.header("Retry-After")?;
        let end = value
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(value.len());
        let (digits, rest) = value.split_at(end);
        let rest = rest.trim_start_matches(LWS);
        if digits.is_empty() || !(rest.is_empty() || rest.starts_with(['(', ';'])) {
            return None;
        }
        Some(digits.parse().unwrap_or(u32::MAX))
    }

    /// The value of a header field that is a number of seconds, such as Expires, Min-Expires or Flow-Timer.
    #[must_use]
    pub fn delta_seconds(&self, header: &str) -> Option<u32> {
        digits_of(self.header(header)?.as_bytes())
    }

    /// The same of a header field that should be there once and is there several times: the largest.
    pub(crate) fn most_delta_seconds(&self, header: &str) -> Option<u32> {
        let values = self.headers(header);
        values.filter_map(|value| digits_of(value.as_bytes())).max()
    }

    /// The option tags in Require, Supported or Unsupported, RFC 3261 §19.2.
    #[must_use]
    pub fn option_tags(&self, header: &str) -> Vec<String> {
        self.values(header).map(Cow::into_owned).collect()
    }

    /// The Content-Length, if all instances are the same number, RFC 3261 §20.14.
    #[must_use]
    pub fn content_length(&self) -> Option<usize> {
        let mut lengths = self
            .headers("Content-Length")
            .map(|value| digits_of(value.as_bytes()));
        let first = lengths.next()??;
        lengths
            .all(|other| other == Some(first))
            .then_some(first as usize)
    }

    /// The body: as long as Content-Length says, or all there is if it says nothing that fits, RFC 3261 §18.3.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let available = self.rest().len();
        let length = self
            .content_length()
            .filter(|&length| length <= available)
            .unwrap_or(available);
        let start = self.end as usize;
        self.bytes.slice(start..start + length)
    }

    /// All bytes the message was read from.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The start line, whatever it is, and the header fields.
    pub(crate) fn parse(bytes: Bytes) -> Result<(Span, Self), ParseError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(ParseError::TooLarge { size: bytes.len() });
        }
        let mut at = bytes
            .iter()
            .position(|b| !b"\r\n".contains(b))
            .ok_or(ParseError::Empty)?;
        let mut start_line = None;
        let mut fields: Vec<Field> = Vec::with_capacity(16);
        // Whether the last line was a header field that the next line may continue.
        let mut open = false;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let newline = rest.iter().position(|&b| b == b'\n');
            let line = rest
                .get(..newline.unwrap_or(rest.len()))
                .unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let span = Span {
                start: at as u32,
                end: (at + line.len()) as u32,
            };
            at += newline.map_or(rest.len(), |newline| newline + 1);

            if start_line.is_none() {
                start_line = Some(Span {
                    end: span.start + line.trim_ascii_end().len() as u32,
                    ..span
                });
            } else if line.is_empty() {
                break;
            } else if line.starts_with(b" ") || line.starts_with(b"\t") {
                if let Some(last) = fields.last_mut().filter(|_| open) {
                    last.value.end = span.end;
                }
            } else {
                let colon = line.iter().position(|&b| b == b':');
                let name = line
                    .get(..colon.unwrap_or(0))
                    .unwrap_or_default()
                    .trim_ascii_end();
                open = !name.is_empty();
                if !open {
                    tracing::trace!("skipping a line that is no header field");
                    continue;
                }
                if fields.len() == MAX_FIELDS {
                    return Err(ParseError::TooManyHeaders);
                }
                let name = Span {
                    start: span.start,
                    end: span.start + name.len() as u32,
                };
                let value = Span {
                    start: span.start + colon.map_or(0, |colon| colon as u32 + 1),
                    end: span.end,
                };
                fields.push(Field { name, value });
            }
        }
        let line = start_line.ok_or(ParseError::Empty)?;
        Ok((
            line,
            Self {
                end: at as u32,
                fields: fields.into_boxed_slice(),
                bytes,
            },
        ))
    }

    fn raw<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.fields
            .iter()
            .filter(move |field| is_header(self.slice(field.name), name))
            .map(|field| self.slice(field.value))
    }

    /// All that follows the header section.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.end as usize..).unwrap_or_default()
    }

    fn slice(&self, span: Span) -> &[u8] {
        self.bytes
            .get(span.start as usize..span.end as usize)
            .unwrap_or_default()
    }

    /// The offsets of a part of our bytes.
    fn span(&self, part: &[u8]) -> Span {
        let start = part.as_ptr() as usize - self.bytes.as_ptr() as usize;
        Span {
            start: start as u32,
            end: (start + part.len()) as u32,
        }
    }

    fn quote(&self, span: Span) -> String {
        excerpt(&text(self.slice(span)))
    }

    fn malformed(&self, header: &'static str, rule: &'static str) -> ParseError {
        let value = self.header(header).unwrap_or_default();
        ParseError::Malformed {
            header,
            value: excerpt(&value),
            rule,
        }
    }

    pub(crate) fn validate_transaction(&self) -> Result<(), ParseError> {
        for header in ["Via", "CSeq", "Call-ID"] {
            self.raw(header)
                .next()
                .ok_or(ParseError::Missing { header })?;
        }
        if self.cseq().is_none() {
            return Err(self.malformed("CSeq", "must be a number below 2^32 and a method"));
        }
        if self.call_id().is_none() {
            return Err(self.malformed("Call-ID", "must be a word"));
        }
        for value in self.raw("Via").flat_map(split_list).map(text) {
            if Via::parse(&value).is_none() || has_empty_param(&value) {
                let value = excerpt(&value);
                return Err(ParseError::Malformed {
                    header: "Via",
                    value,
                    rule: "must be a protocol, a host and parameters",
                });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Headers {
    /// Shows how many there are: they carry nonces and credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Headers")
            .field("fields", &self.fields.len())
            .finish_non_exhaustive()
    }
}

/// Why bytes are no message, or a message is not to be handled, RFC 3261 §7 and §8.2
///
/// What is quoted of the message is shortened, and a password in it masked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Nothing but line ends.
    #[error("the message is empty")]
    Empty,
    /// More bytes than any transport of ours lets through.
    #[error("the message has {size} bytes, more than {MAX_MESSAGE}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// More header fields than we are ready to index.
    #[error("the message has more than {MAX_FIELDS} header fields")]
    TooManyHeaders,
    /// The first line is not the start line that was looked for, RFC 3261 §7.1 and §7.2.
    #[error("{line:?} is not the start line of such a message")]
    StartLine {
        /// The line.
        line: String,
    },
    /// Another version of SIP, which gets a 505, RFC 3261 §21.5.6.
    #[error("{line:?} is not of version SIP/2.0")]
    Version {
        /// The start line.
        line: String,
    },
    /// A status code outside of 100 to 699, RFC 4475 §3.1.2.19.
    #[error("{line:?} has no status code from 100 to 699")]
    StatusCode {
        /// The start line.
        line: String,
    },
    /// A mandatory header field is missing, RFC 3261 §8.1.1.
    #[error("the header field {header} is missing")]
    Missing {
        /// Its name.
        header: &'static str,
    },
    /// A header field that can be there once is there again, RFC 3261 §7.3.1.
    #[error("the header field {header} is there more than once")]
    Repeated {
        /// Its name.
        header: &'static str,
    },
    /// A header field or the Request-URI breaks a rule.
    #[error("{header} {value:?} {rule}")]
    Malformed {
        /// Its name.
        header: &'static str,
        /// Its value.
        value: String,
        /// The rule.
        rule: &'static str,
    },
}

/// The largest message: the limits of [`Framer`](crate::Framer) together, and room above any datagram.
const MAX_MESSAGE: usize = 256 * 1024;

/// The most header fields of a message: far above what proxies add, and a bound on the index of a hostile one.
const MAX_FIELDS: usize = 2048;

/// A part of the message, as offsets; `MAX_MESSAGE` keeps them in range.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

#[derive(Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
}

/// Whether a name on the wire is this header field, in its long or its compact form.
fn is_header(written: &[u8], name: &str) -> bool {
    if let [letter] = written {
        let compact = COMPACT
            .iter()
            .find(|(compact, _)| *compact == letter.to_ascii_lowercase());
        if compact.is_some_and(|(_, long)| long.eq_ignore_ascii_case(name)) {
            return true;
        }
    }
    written.eq_ignore_ascii_case(name.as_bytes())
}

/// The compact forms of RFC 3261 §7.3.3 and of the header fields that came later.
const COMPACT: [(u8, &str); 20] = [
    (b'a', "Accept-Contact"),
    (b'b', "Referred-By"),
    (b'c', "Content-Type"),
    (b'd', "Request-Disposition"),
    (b'e', "Content-Encoding"),
    (b'f', "From"),
    (b'i', "Call-ID"),
    (b'j', "Reject-Contact"),
    (b'k', "Supported"),
    (b'l', "Content-Length"),
    (b'm', "Contact"),
    (b'n', "Identity-Info"),
    (b'o', "Event"),
    (b'r', "Refer-To"),
    (b's', "Subject"),
    (b't', "To"),
    (b'u', "Allow-Events"),
    (b'v', "Via"),
    (b'x', "Session-Expires"),
    (b'y', "Identity"),
];

#[cfg(test)]
mod tests;
