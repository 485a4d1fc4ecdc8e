//! To and from the message types of rsip 0.4: what it cannot hold unchanged is refused.
//!
//! rsip 0.4 reads `sip:john.doe@example.com` as a host, cuts `;gr=urn:uuid:…` at the colon, spells `transport=tls` in
//! upper case and knows no IPv6 address (`docs/design.md`). So each conversion is compared with what it was made from,
//! and where they differ there is a [`RsipError`] instead of a value. The library itself neither reads nor writes by
//! rsip; a later rsip is a module beside this one.
//!
//! ```
//! use sip_registration::{SipUri, rsip_0_4::RsipError};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let uri = rsip::Uri::try_from(&SipUri::parse("sip:alice@example.com:5070;lr")?)?;
//! assert_eq!(uri.user(), Some("alice"));
//! assert_eq!(SipUri::try_from(&uri)?.port(), Some(5070));
//!
//! let dotted = SipUri::parse("sip:john.doe@example.com")?;
//! assert!(matches!(rsip::Uri::try_from(&dotted), Err(RsipError::Changed { .. })));
//! # Ok(())
//! # }
//! ```

use crate::{
    Headers, InboundMessage, Message, ParseError, RegistrationBuilder, Request, Response, SipUri,
    UriError,
};
use rsip::headers::untyped;

/// Why something cannot be converted without a change
///
/// URIs are shown with their password masked, header values not at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RsipError {
    /// What rsip has is no SIP URI, or cannot be written as one.
    #[error("rsip's URI is none")]
    Uri(#[from] UriError),
    /// rsip does not read this URI.
    #[error("rsip 0.4 does not read {uri}")]
    Unreadable {
        /// The URI, its password masked
        uri: String,
    },
    /// The other side takes a part of this URI for something else.
    #[error("rsip 0.4 has another {part} in {uri}")]
    Changed {
        /// The URI, its password masked
        uri: String,
        /// What would be changed
        part: &'static str,
    },
    /// A method that rsip does not know.
    #[error("rsip 0.4 does not know the method {method:?}")]
    Method {
        /// The method
        method: String,
    },
    /// A header that rsip would write otherwise, or one that is not UTF-8.
    #[error("rsip 0.4 cannot hold the header {name:?}")]
    Header {
        /// Its name
        name: String,
    },
    /// The message itself cannot be read.
    #[error(transparent)]
    Message(#[from] ParseError),
}

impl TryFrom<&SipUri> for rsip::Uri {
    type Error = RsipError;

    /// Refuses what rsip would change: dots in the user, IPv6, headers, many parameter values, the case of `transport`.
    fn try_from(from: &SipUri) -> Result<Self, RsipError> {
        let text = from.as_str();
        let uri = Self::try_from(text).map_err(|_| RsipError::Unreadable {
            uri: format!("{from:?}"),
        })?;
        compare(&uri, from)?;
        Ok(uri)
    }
}

impl TryFrom<SipUri> for rsip::Uri {
    type Error = RsipError;

    fn try_from(from: SipUri) -> Result<Self, RsipError> {
        Self::try_from(&from)
    }
}

impl TryFrom<&rsip::Uri> for SipUri {
    type Error = RsipError;

    /// Refuses a URI without scheme, and one whose parts run into each other when they are written.
    fn try_from(from: &rsip::Uri) -> Result<Self, RsipError> {
        let uri = Self::parse(&from.to_string())?;
        compare(from, &uri)?;
        Ok(uri)
    }
}

impl TryFrom<rsip::Uri> for SipUri {
    type Error = RsipError;

    fn try_from(from: rsip::Uri) -> Result<Self, RsipError> {
        Self::try_from(&from)
    }
}

/// Whether both say the same, part by part and as text.
fn compare(theirs: &rsip::Uri, ours: &SipUri) -> Result<(), RsipError> {
    let auth = theirs.auth.as_ref();
    let port = theirs.port().map(ToString::to_string);
    let params: Vec<_> = theirs.params.iter().map(ToString::to_string).collect();
    let our_params = ours.params().map(|(name, value)| match value {
        Some(value) => format!(";{name}={value}"),
        None => format!(";{name}"),
    });
    let same = [
        ("user", auth.map(|auth| &*auth.user) == ours.user()),
        (
            "password",
            auth.and_then(|auth| auth.password.as_deref()) == ours.password(),
        ),
        ("host", theirs.host().to_string() == ours.host_text()),
        ("port", port == ours.port().map(|port| port.to_string())),
        (
            "headers",
            theirs.headers.is_empty() && ours.headers().is_none(),
        ),
        ("parameters", params.into_iter().eq(our_params)),
        ("text", theirs.to_string() == ours.as_str()),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((part, _)) => Err(RsipError::Changed {
            uri: format!("{ours:?}"),
            part,
        }),
        None => Ok(()),
    }
}

/// Name and value of a header, as [`RegistrationBuilder::header`] takes them.
#[must_use]
pub fn name_and_value(header: &rsip::Header) -> (String, String) {
    if let rsip::Header::Other(name, value) = header {
        return (name.clone(), value.clone());
    }
    let line = header.to_string();
    let (name, value) = line.split_once(':').unwrap_or((&line, ""));
    (name.to_owned(), value.trim_start().to_owned())
}

impl RegistrationBuilder {
    /// Adds headers of rsip to each REGISTER; checked by [`build`](Self::build) as those of [`header`](Self::header).
    pub fn rsip_headers<'a>(self, headers: impl IntoIterator<Item = &'a rsip::Header>) -> Self {
        headers.into_iter().fold(self, |builder, header| {
            let (name, value) = name_and_value(header);
            builder.header(&name, &value)
        })
    }
}

impl Response {
    /// The response as rsip has it: long header names, unfolded values, each as one header
    ///
    /// rsip keeps no reason phrase beside a code that it knows; [`reason`](Self::reason) has it.
    ///
    /// # Errors
    /// Names the first header that rsip cannot hold.
    pub fn to_rsip(&self) -> Result<rsip::Response, RsipError> {
        let status_code = match rsip::StatusCode::from(self.code()) {
            rsip::StatusCode::Other(code, _) => {
                rsip::StatusCode::Other(code, self.reason().into_owned())
            }
            known => known,
        };
        Ok(rsip::Response {
            status_code,
            version: rsip::Version::V2,
            headers: headers(self)?,
            body: self.body().to_vec(),
        })
    }
}

impl Request {
    /// The request as rsip has it: long header names, unfolded values, each as one header.
    ///
    /// # Errors
    /// Names what rsip cannot hold: a method it does not know, a Request-URI it would change, a header.
    pub fn to_rsip(&self) -> Result<rsip::Request, RsipError> {
        let unknown = || RsipError::Method {
            method: self.method().to_owned(),
        };
        // rsip reads `register` as REGISTER; in SIP these are two (RFC 3261 §7.1).
        let method = self
            .method()
            .parse::<rsip::Method>()
            .ok()
            .filter(|method| method.to_string() == self.method())
            .ok_or_else(unknown)?;
        Ok(rsip::Request {
            method,
            uri: SipUri::parse(&self.uri())?.try_into()?,
            version: rsip::Version::V2,
            headers: headers(self)?,
            body: self.body().to_vec(),
        })
    }
}

impl InboundMessage {
    /// The message as rsip has it, see [`Request::to_rsip`] and [`Response::to_rsip`].
    ///
    /// # Errors
    /// Names what cannot be read, or what rsip cannot hold.
    pub fn to_rsip(&self) -> Result<rsip::SipMessage, RsipError> {
        Ok(match Message::parse(self.message.clone())? {
            Message::Request(request) => request.to_rsip()?.into(),
            Message::Response(response) => response.to_rsip()?.into(),
        })
    }
}

fn headers(from: &Headers) -> Result<rsip::Headers, RsipError> {
    let mut headers = rsip::Headers::default();
    for (name, value) in from.header_fields() {
        let header = header(&name, &value);
        let (their_name, their_value) = name_and_value(&header);
        let same_name = their_name.eq_ignore_ascii_case(long(&name));
        // What was not UTF-8 has a replacement character by now.
        if !same_name || their_value != value || value.contains(char::REPLACEMENT_CHARACTER) {
            return Err(RsipError::Header {
                name: name.into_owned(),
            });
        }
        headers.push(header);
    }
    Ok(headers)
}

/// The long form of a header name, RFC 3261 §7.3.3
fn long(name: &str) -> &str {
    let compact = [
        ("c", "Content-Type"),
        ("e", "Content-Encoding"),
        ("f", "From"),
        ("i", "Call-ID"),
        ("k", "Supported"),
        ("l", "Content-Length"),
        ("m", "Contact"),
        ("o", "Event"),
        ("s", "Subject"),
        ("t", "To"),
        ("v", "Via"),
    ];
    let known = compact
        .iter()
        .find(|(short, _)| short.eq_ignore_ascii_case(name));
    known.map_or(name, |(_, long)| long)
}

macro_rules! by_name {
    ($name:expr, $value:expr, $($text:literal => $variant:ident,)*) => {
        $(if $name.eq_ignore_ascii_case($text) {
            return rsip::Header::$variant(untyped::$variant::from($value));
        })*
    };
}

/// A header with its value untouched: rsip's own type by the name, which is a text as long as nobody parses it
fn header(name: &str, value: &str) -> rsip::Header {
    let known = long(name);
    by_name!(known, value,
        "Accept" => Accept,
        "Accept-Encoding" => AcceptEncoding,
        "Accept-Language" => AcceptLanguage,
        "Alert-Info" => AlertInfo,
        "Allow" => Allow,
        "Authentication-Info" => AuthenticationInfo,
        "Authorization" => Authorization,
        "CSeq" => CSeq,
        "Call-ID" => CallId,
        "Call-Info" => CallInfo,
        "Contact" => Contact,
        "Content-Disposition" => ContentDisposition,
        "Content-Encoding" => ContentEncoding,
        "Content-Language" => ContentLanguage,
        "Content-Length" => ContentLength,
        "Content-Type" => ContentType,
        "Date" => Date,
        "Error-Info" => ErrorInfo,
        "Event" => Event,
        "Expires" => Expires,
        "From" => From,
        "In-Reply-To" => InReplyTo,
        "Max-Forwards" => MaxForwards,
        "MIME-Version" => MimeVersion,
        "Min-Expires" => MinExpires,
        "Organization" => Organization,
        "Priority" => Priority,
        "Proxy-Authenticate" => ProxyAuthenticate,
        "Proxy-Authorization" => ProxyAuthorization,
        "Proxy-Require" => ProxyRequire,
        "Record-Route" => RecordRoute,
        "Reply-To" => ReplyTo,
        "Require" => Require,
        "Retry-After" => RetryAfter,
        "Route" => Route,
        "Server" => Server,
        "Subject" => Subject,
        "Subscription-State" => SubscriptionState,
        "Supported" => Supported,
        "Timestamp" => Timestamp,
        "To" => To,
        "Unsupported" => Unsupported,
        "User-Agent" => UserAgent,
        "Via" => Via,
        "Warning" => Warning,
        "WWW-Authenticate" => WwwAuthenticate,
    );
    rsip::Header::Other(name.to_owned(), value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use assert_matches::assert_matches;
    use bytes::Bytes;
    use rsip::headers::{ToTypedHeader as _, UntypedHeader as _};
    use rsip::message::HeadersExt as _;

    fn ours(text: &str) -> SipUri {
        SipUri::parse(text).expect(text)
    }

    fn part(error: RsipError) -> &'static str {
        match error {
            RsipError::Changed { part, .. } => part,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_rsip_can_hold_goes_both_ways() {
        for text in [
            "sip:example.com",
            "sip:alice@example.com",
            "sips:alice@example.com:5061",
            "sip:alice:secret@192.0.2.9:5060",
            "sip:alice@example.com;transport=TCP;lr",
            "sip:+15550100@example.com;user=phone",
            "sip:alice%40b@example.com;line=abc1234",
        ] {
            let uri = rsip::Uri::try_from(&ours(text)).expect(text);
            assert_eq!(uri.to_string(), text);
            assert_eq!(SipUri::try_from(uri).expect(text).as_str(), text);
        }
    }

    /// DIGEST_AND_RSIP §3b, 1, 2, 5, 6, 10, 12, 13
    #[test]
    fn what_rsip_would_corrupt_is_refused() {
        for (text, expected) in [
            ("sip:john.doe@example.com", "user"),
            ("sip:+1.555@example.com", "user"),
            ("sip:tgruu.abc@example.com;gr", "user"),
            ("sip:a@h;gr=urn:uuid:f81d4fae-7dec-11d0-a765", "parameters"),
            ("sip:a@h;x-ast-orig-host=10.0.0.1:5060", "parameters"),
            ("sip:a@h;x=a/b", "parameters"),
            ("sip:a@h;maddr=[2001:db8::1]", "parameters"),
            ("sip:a@h;transport=tls", "parameters"),
            ("sip:a@h;LR", "parameters"),
            ("SIP:a@h", "text"),
            ("sip:a@h?X-H=1", "host"),
            ("sip:a@h;lr?X-H=1", "headers"),
        ] {
            let error = rsip::Uri::try_from(&ours(text)).expect_err(text);
            assert_eq!(part(error), expected, "{text}");
        }
        for text in [
            "sip:[2001:db8::1]",
            "sip:[2001:db8::1]:5060",
            "sip:a@[2001:db8::1]:5060",
            "sip:a@h;transport=foo",
        ] {
            let error = rsip::Uri::try_from(&ours(text)).expect_err(text);
            assert_matches!(error, RsipError::Unreadable { .. }, "{text}");
        }
        let secret = rsip::Uri::try_from(&ours("sip:a:hunter2@[2001:db8::1]")).expect_err("IPv6");
        assert!(!format!("{secret} {secret:?}").contains("hunter2"));
    }

    #[test]
    fn what_only_rsip_takes_for_a_uri_is_refused() {
        let read = |text: &str| rsip::Uri::try_from(text).expect(text);
        for text in ["example.com", "a@example.com", "xmpp:a@h"] {
            assert_matches!(
                SipUri::try_from(read(text)),
                Err(RsipError::Uri(_)),
                "{text}"
            );
        }
        // A dotted user that rsip took for a host is in its text, but nothing of it is right.
        assert_eq!(
            part(SipUri::try_from(read("sip:john.doe@h")).expect_err("user")),
            "user"
        );
        let v6: std::net::SocketAddr = "[2001:db8::1]:5060".parse().expect("an address");
        let mut uri = rsip::Uri::from(v6);
        uri.scheme = Some(rsip::Scheme::Sip);
        assert_matches!(SipUri::try_from(&uri), Err(RsipError::Uri(_)));

        // Parts that run into each other.
        let mut uri = read("sip:alice@example.com");
        uri.auth = Some(("alice@evil.example;x", None::<String>).into());
        assert!(SipUri::try_from(&uri).is_err());
        uri.auth = Some(("alice:secret", None::<String>).into());
        assert_eq!(part(SipUri::try_from(&uri).expect_err("user")), "user");
        let mut uri = read("sip:alice@example.com");
        uri.params = vec![rsip::Param::Other("a;b".into(), None)];
        assert_eq!(part(SipUri::try_from(&uri).expect_err("two")), "parameters");
        let mut uri = read("sip:alice@example.com");
        uri.headers = vec![1];
        assert_eq!(
            part(SipUri::try_from(&uri).expect_err("headers")),
            "headers"
        );
    }

    #[test]
    fn headers_of_rsip_reach_the_builder_and_its_checks() {
        let headers = [
            rsip::Header::Other("X-Account".into(), "7".into()),
            rsip::Header::Organization("Example".into()),
            rsip::Header::Subject("a: b".into()),
        ];
        let built = |headers: &[rsip::Header]| {
            crate::Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
                .rsip_headers(headers)
                .build()
        };
        let registration = built(&headers).expect("good headers");
        let held: Vec<_> = registration.headers().collect();
        assert_eq!(
            held,
            [
                ("X-Account", "7"),
                ("Organization", "Example"),
                ("Subject", "a: b")
            ]
        );
        for bad in [
            rsip::Header::Other("X-A".into(), "x\r\nEvil: 1".into()),
            rsip::Header::Other("X A".into(), "x".into()),
            rsip::Header::CSeq("1 REGISTER".into()),
        ] {
            assert!(built(std::slice::from_ref(&bad)).is_err(), "{bad}");
        }
    }

    const ANSWER: &str = "SIP/2.0 401 Who are you\r\n\
        v: SIP/2.0/UDP [2001:db8::1]:5060 ; branch=z9hG4bKx ; received=2001:db8::7\r\n\
        WWW-Authenticate: Digest realm=\"a\\\"b\", nonce=\"n\",\r\n  algorithm=SHA-256, qop=\"auth,auth-int\"\r\n\
        Contact : <sip:john.doe@h>;expires=\"60\", \"A < B\" <sip:b@[2001:db8::2]>\r\n\
        Security-Server: sdes-srtp;mediasec\r\n\
        Path: <sip:p1;lr>\r\nPath: <sip:p2;lr>\r\n\
        cseq: 7 REGISTER\r\nl: 2\r\n\r\nhi and more";

    #[test]
    fn a_response_keeps_every_value() {
        let response = Response::parse(Bytes::from(ANSWER)).expect("readable");
        let theirs = response.to_rsip().expect("rsip can hold it");
        assert_eq!(
            (theirs.status_code.code(), &theirs.body[..]),
            (401, &b"hi"[..])
        );
        let lines: Vec<_> = theirs.headers.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "Via: SIP/2.0/UDP [2001:db8::1]:5060 ; branch=z9hG4bKx ; received=2001:db8::7",
                "WWW-Authenticate: Digest realm=\"a\\\"b\", nonce=\"n\", algorithm=SHA-256, qop=\"auth,auth-int\"",
                "Contact: <sip:john.doe@h>;expires=\"60\", \"A < B\" <sip:b@[2001:db8::2]>",
                "Security-Server: sdes-srtp;mediasec",
                "Path: <sip:p1;lr>",
                "Path: <sip:p2;lr>",
                "CSeq: 7 REGISTER",
                "Content-Length: 2",
            ]
        );
        let odd = Response::parse(Bytes::from("SIP/2.0 499 Not today\r\n\r\n")).expect("readable");
        assert_eq!(
            odd.to_rsip().map(|odd| odd.status_code),
            Ok(rsip::StatusCode::Other(499, "Not today".into()))
        );
        let bytes = Bytes::from_static(b"SIP/2.0 200 OK\r\nServer: \xff\r\n\r\n");
        let broken = Response::parse(bytes).expect("readable");
        assert_eq!(
            broken.to_rsip(),
            Err(RsipError::Header {
                name: "Server".into()
            })
        );
    }

    #[test]
    fn a_request_is_converted_or_refused() {
        let source = "192.0.2.9:5060".parse().expect("an address");
        let inbound = |line: &str| {
            let text = format!("{line} SIP/2.0\r\nm: <sip:john.doe@h>\r\nCall-ID: 1\r\n\r\n");
            InboundMessage::new(source, text.into()).to_rsip()
        };
        let invite = inbound("INVITE sip:s@192.0.2.1:5060;line=abc1234").expect("convertible");
        let rsip::SipMessage::Request(invite) = invite else {
            panic!("{invite:?}")
        };
        assert_eq!(invite.method, rsip::Method::Invite);
        assert_eq!(invite.uri.to_string(), "sip:s@192.0.2.1:5060;line=abc1234");
        assert_eq!(
            invite.contact_header().map(|contact| contact.value()),
            Ok("<sip:john.doe@h>")
        );
        for method in ["FOO", "invite", "PRACKX"] {
            assert_eq!(
                inbound(&format!("{method} sip:s@h")),
                Err(RsipError::Method {
                    method: method.into()
                })
            );
        }
        assert_matches!(
            inbound("OPTIONS sip:s@[2001:db8::1]"),
            Err(RsipError::Unreadable { .. })
        );
        assert_matches!(
            inbound("OPTIONS sip:john.doe@h"),
            Err(RsipError::Changed { part: "user", .. })
        );
        assert_matches!(inbound("OPTIONS tel:+1555"), Err(RsipError::Uri(_)));
        assert_matches!(
            InboundMessage::new(source, Bytes::from("\r\n\r\n")).to_rsip(),
            Err(RsipError::Message(_))
        );
        let answer = InboundMessage::new(source, Bytes::from(ANSWER)).to_rsip();
        assert_matches!(answer, Ok(rsip::SipMessage::Response(_)));
    }

    /// A second opinion on what we write, where rsip can read it.
    #[cfg(feature = "testkit")]
    #[test]
    fn rsip_reads_the_register_that_we_write() {
        use crate::testkit::{Reply, Sim};
        use crate::{Credentials, Registration};
        let script = |server: &str, client: &str| {
            let registration = Registration::builder(server, client)
                .outbound_auth(Credentials::password("alice", "secret"))
                .max_random_initial_delay(std::time::Duration::ZERO)
                .contact_header_params("q=0.5")
                .support_path(true)
                .build()
                .expect("a good configuration");
            let mut sim = Sim::new(registration);
            let first = sim.sent();
            sim.reply(&first, Reply::challenge("r", "n1"));
            sim.sent()
        };
        let sent = script("sip:192.0.2.9:5070", "sip:alice@example.com");
        let theirs = rsip::Request::try_from(sent.bytes().clone()).expect("rsip reads it");
        assert_eq!(theirs.method, rsip::Method::Register);
        assert_eq!(theirs.uri.to_string(), "sip:192.0.2.9:5070");
        assert_eq!(sent.to_rsip().expect("convertible").headers, theirs.headers);
        let via = theirs
            .via_header()
            .and_then(|via| via.typed())
            .expect("a Via");
        assert_eq!(
            via.branch().map(|branch| branch.to_string()),
            sent.via().and_then(|via| via.branch)
        );
        assert_eq!(
            (via.uri.to_string(), via.received()),
            ("192.0.2.1:5060".into(), Ok(None))
        );
        let to = theirs.to_header().and_then(|to| to.typed()).expect("a To");
        assert_eq!((to.uri.user(), to.tag()), (Some("alice"), None));
        let from = theirs
            .from_header()
            .and_then(|from| from.typed())
            .expect("a From");
        assert_eq!(from.tag().map(ToString::to_string), sent.tag_of("From"));
        let contact = theirs
            .contact_header()
            .and_then(|contact| contact.typed())
            .expect("a Contact");
        assert_eq!(contact.uri.to_string(), "sip:s@192.0.2.1:5060");
        let cseq = theirs
            .cseq_header()
            .and_then(|cseq| cseq.seq())
            .expect("a CSeq");
        assert_eq!(Some(cseq), sent.cseq().map(|(number, _)| number));
        let expires = theirs.expires_header().map(|expires| expires.seconds());
        assert_eq!(expires, Some(Ok(3600)));
        assert!(
            theirs
                .authorization_header()
                .is_some_and(|header| header.value().contains("nonce=\"n1\""))
        );

        // Where it cannot: an IPv6 Request-URI. A Via of that kind is a text to it, as long as it is not parsed.
        let sent = script("sip:[2001:db8::9]", "sip:john.doe@example.com");
        assert!(rsip::Request::try_from(sent.bytes().clone()).is_err());
        assert_matches!(sent.to_rsip(), Err(RsipError::Unreadable { .. }));
    }
}
