//! What a request gets that nobody wanted (RFC 3261 §8.2.6).

use crate::{InboundMessage, Request};
use bytes::Bytes;

use std::hash::{DefaultHasher, Hash, Hasher};
/// The answer to a request that nobody wants (RFC 3261 §8.2.6, §18.2.1, RFC 3581 §4).
pub(super) fn default_answer(request: &Request, message: &InboundMessage, tag_key: u64) -> Bytes {
    let status = if request.method() == "OPTIONS" {
        "200 OK"
    } else {
        "480 Temporarily Unavailable"
    };
    let mut text = format!("SIP/2.0 {status}\r\n");
    let source = message.source;
    let ip = source.ip().to_canonical();
    for (index, value) in request.values("Via").enumerate() {
        text.push_str("Via: ");
        match request.via().filter(|_| index == 0) {
            Some(via) => {
                let wants_port = via.rport == Some(None);
                let value = if wants_port {
                    with_rport(&value, source.port())
                } else {
                    value.into_owned()
                };
                text.push_str(&value);
                if via.received.is_none() && (wants_port || via.host.parse() != Ok(ip)) {
                    text.push_str(&format!(";received={ip}"));
                }
            }
            None => text.push_str(&value),
        }
        text.push_str("\r\n");
    }
    for name in ["From", "To", "Call-ID", "CSeq"] {
        let Some(value) = request.header(name) else {
            continue;
        };
        text.push_str(&format!("{name}: {value}"));
        if name == "To" && request.tag_of("To").is_none() {
            // The same for each retransmission, though we keep nothing of the request (§8.2.7).
            let mut hasher = DefaultHasher::new();
            (
                tag_key,
                request.call_id(),
                request.header("From"),
                request.header("CSeq"),
            )
                .hash(&mut hasher);
            text.push_str(&format!(";tag={:016x}", hasher.finish()));
        }
        text.push_str("\r\n");
    }
    text.push_str("Content-Length: 0\r\n\r\n");
    text.into()
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
