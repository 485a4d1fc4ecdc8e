//! Reading SIP messages from the network: one scan, then a lazy and tolerant view.

use crate::SipUri;
use crate::uri::excerpt;
use bytes::Bytes;
use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::ops::{Deref, Range};

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
    fn parse(value: &str) -> Option<Self> {
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
    fn parse(text: Cow<'a, str>) -> Option<Self> {
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

/// Linear white space; line ends are left in it only by folding.
const LWS: [char; 4] = [' ', '\t', '\r', '\n'];

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
fn split_list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
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
fn unquoted(text: &str, wanted: u8) -> Option<usize> {
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
fn unquote(text: &str) -> Option<Cow<'_, str>> {
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
fn text(value: &[u8]) -> Cow<'_, str> {
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
fn host_port(text: &str) -> Option<(&str, Option<u16>)> {
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
fn digits_of(text: &[u8]) -> Option<u32> {
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

fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(b))
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

/// Checks a From, To or Contact value of a request, RFC 4475 §3.1.2.
fn validate_address(header: &'static str, value: &[u8]) -> Result<(), ParseError> {
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
fn has_empty_param(value: &str) -> bool {
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

#[cfg(test)]
mod tests;
