//! Responses to requests that arrive (RFC 3261 §8.2.6), for hosts without a SIP stack of their own.

use crate::{InboundMessage, Request};
use bytes::Bytes;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// A response to an inbound request, made by [`InboundMessage::response`]
///
/// Via, From, To, Call-ID and CSeq are those of the request, Via with `received` and `rport` filled in (RFC 3261
/// §18.2.1, RFC 3581 §4), To with a tag that is the same for each retransmission of the request and for its CANCEL (§9.2),
/// and Record-Route where the request has some. Send it with `Agent::answer`.
#[derive(Debug, Clone)]
pub struct ResponseBuilder {
    head: String,
    body: Bytes,
}

impl ResponseBuilder {
    pub(super) fn new(request: &Request, message: &InboundMessage, code: u16) -> Option<Self> {
        let names = ["From", "To", "Call-ID", "CSeq"];
        let answered = request.method() != "ACK"
            && request.validate_transaction().is_ok()
            && names.iter().all(|name| request.header(name).is_some());
        if !answered || !(100..700).contains(&code) {
            return None;
        }
        let mut head = format!("SIP/2.0 {code} {}\r\n", reason(code));
        let source = message.source;
        let ip = source.ip().to_canonical();
        for (index, value) in request.values("Via").enumerate() {
            head.push_str("Via: ");
            match request.via().filter(|_| index == 0) {
                Some(via) => {
                    let wants_port = via.rport == Some(None);
                    let value = if wants_port {
                        with_rport(&value, source.port())
                    } else {
                        value.into_owned()
                    };
                    head.push_str(&value);
                    if via.received.is_none() && (wants_port || via.host.parse() != Ok(ip)) {
                        head.push_str(&format!(";received={ip}"));
                    }
                }
                None => head.push_str(&value),
            }
            head.push_str("\r\n");
        }
        for value in request.values("Record-Route") {
            head.push_str(&format!("Record-Route: {value}\r\n"));
        }
        for name in names {
            let Some(value) = request.header(name) else {
                continue;
            };
            head.push_str(&format!("{name}: {value}"));
            // No tag in a 100 (RFC 3261 §8.2.6.2).
            if name == "To" && code > 100 && request.tag_of("To").is_none() {
                head.push_str(&format!(";tag={:016x}", tag(request)));
            }
            head.push_str("\r\n");
        }
        Some(Self {
            head,
            body: Bytes::new(),
        })
    }

    /// Adds a header; line breaks in name and value become spaces, so that none can add a second one. Content-Length is
    /// added by [`build`](Self::build).
    #[must_use]
    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        let start = self.head.len();
        self.head.push_str(&format!("{name}: {value}"));
        let line = self.head.split_off(start).replace(['\r', '\n'], " ");
        self.head.push_str(&line);
        self.head.push_str("\r\n");
        self
    }

    /// Sets the body and its Content-Type.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut with = self.header("Content-Type", content_type);
        with.body = body.into();
        with
    }

    /// The whole message.
    #[must_use]
    pub fn build(self) -> Bytes {
        let Self { mut head, body } = self;
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut message = head.into_bytes();
        message.extend_from_slice(&body);
        message.into()
    }
}

/// A To tag, the same for each retransmission, though we keep nothing of the request (RFC 3261 §8.2.7)
///
/// By what a request and its CANCEL have in common (§9.1). The branches of a call that was forked to two Contacts of ours
/// differ in the topmost Via and so do their tags, or their dialogs would be one (§12.1, §19.3).
fn tag(request: &Request) -> u64 {
    /// Nobody else can tell our tags
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let mut hasher = KEY.get_or_init(RandomState::new).build_hasher();
    let branch = request.via().and_then(|via| via.branch);
    for part in [
        Some(request.uri()),
        request.call_id(),
        request.header("From"),
        branch.map(Into::into),
    ] {
        hasher.write(part.unwrap_or_default().as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.write_u32(request.cseq().map_or(0, |(number, _)| number));
    hasher.finish()
}

/// The reason phrases of RFC 3261 §21 that hosts need; the class's name for others
const fn reason(code: u16) -> &'static str {
    match code {
        100 => "Trying",
        180 => "Ringing",
        183 => "Session Progress",
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        420 => "Bad Extension",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        603 => "Decline",
        _ => match code / 100 {
            1 => "Progress",
            2 => "Success",
            3 => "Redirection",
            4 => "Client Error",
            5 => "Server Error",
            _ => "Global Failure",
        },
    }
}

/// Fills in the empty `rport` of a Via value.
fn with_rport(via: &str, port: u16) -> String {
    let filled: Vec<_> = via
        .split(';')
        .map(|part| {
            match part
                .trim()
                .trim_end_matches('=')
                .trim_end()
                .eq_ignore_ascii_case("rport")
            {
                true => format!("rport={port}"),
                false => part.to_owned(),
            }
        })
        .collect();
    filled.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> InboundMessage {
        let text = "INVITE sip:alice@192.0.2.4 SIP/2.0\r\n\
            Via: SIP/2.0/UDP 10.0.0.1:5070;rport;branch=z9hG4bK1\r\n\
            Via: SIP/2.0/TCP 10.0.0.2;branch=z9hG4bK2\r\n\
            Record-Route: <sip:a;lr>, <sip:b;lr>\r\n\
            Max-Forwards: 70\r\nFrom: <sip:bob@b>;tag=1\r\nTo: <sip:alice@a>\r\n\
            Call-ID: c\r\nCSeq: 7 INVITE\r\nContent-Length: 0\r\n\r\n";
        InboundMessage::new(
            "192.0.2.9:5060".parse().unwrap(),
            Bytes::from_static(text.as_bytes()),
        )
    }

    #[test]
    fn a_response_takes_from_the_request_what_it_must() {
        let response = invite()
            .response(486)
            .unwrap()
            .header("Contact", "<sip:x>\r\nEvil: y")
            .build();
        let response = crate::Response::parse(response).unwrap();
        assert_eq!(response.status_line(), "SIP/2.0 486 Busy Here");
        let via: Vec<_> = response.values("Via").map(|via| via.into_owned()).collect();
        assert_eq!(
            via,
            [
                "SIP/2.0/UDP 10.0.0.1:5070;rport=5060;branch=z9hG4bK1;received=192.0.2.9",
                "SIP/2.0/TCP 10.0.0.2;branch=z9hG4bK2"
            ]
        );
        assert_eq!(response.values("Record-Route").count(), 2);
        assert_eq!(response.header("CSeq").unwrap(), "7 INVITE");
        assert!(response.tag_of("To").is_some());
        assert_eq!(response.header("Evil"), None);
        // The same for a retransmission, and none for a 100.
        let again = crate::Response::parse(invite().response(486).unwrap().build()).unwrap();
        assert_eq!(again.tag_of("To"), response.tag_of("To"));
        let trying = crate::Response::parse(invite().response(100).unwrap().build()).unwrap();
        assert_eq!(trying.tag_of("To"), None);
    }

    #[test]
    fn a_code_that_sip_does_not_have_makes_no_response() {
        for code in [0, 99, 700, u16::MAX] {
            assert!(invite().response(code).is_none(), "{code}");
        }
        for code in [100, 699] {
            let response = invite().response(code).unwrap().build();
            assert_eq!(crate::Response::parse(response).unwrap().code(), code);
        }
    }

    #[test]
    fn neither_a_name_nor_a_value_nor_a_type_adds_a_header() {
        let response = invite().response(200).unwrap();
        let response = response
            .header("X\r\nEvil: 1\r\nY", "a")
            .header("Subject", "a\nEvil: 2\rEvil: 3")
            .body("text/plain\r\nEvil: 4\r\n\r\nbody", "hello");
        let response = crate::Response::parse(response.build()).unwrap();
        assert_eq!(response.header("Evil"), None);
        assert_eq!(&response.body()[..], b"hello");
    }

    #[test]
    fn a_body_comes_with_its_length() {
        let response = invite()
            .response(200)
            .unwrap()
            .body("text/plain", "hello")
            .build();
        assert!(response.ends_with(b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"));
    }

    #[test]
    fn what_is_no_request_and_an_ack_have_no_response() {
        let mut message = invite();
        message.message = Bytes::from_static(b"SIP/2.0 200 OK\r\n\r\n");
        assert!(message.response(200).is_none());
        let ack = String::from_utf8(invite().message.to_vec())
            .unwrap()
            .replace("INVITE", "ACK");
        message.message = ack.into();
        assert!(message.response(200).is_none());
    }
}
