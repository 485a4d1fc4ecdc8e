//! One WebSocket message carries one of SIP (RFC 7118 §5).

use crate::{Headers, MAX_BODY, MAX_HEAD, Message, WsError};
use bytes::{Buf, Bytes};

/// Passes over the line ends before a start line (RFC 3261 §7.5); what is nothing but line ends is a keep-alive.
pub(super) fn without_line_ends(mut message: Bytes) -> Bytes {
    let start = message.iter().position(|byte| !b"\r\n".contains(byte));
    message.advance(start.unwrap_or_default());
    message
}

/// What is handed over of a message that is longer than any of ours: its header section, so that a request can get its 413
/// and no caller ends the connection; nothing where that says no length, for it would look like all there was.
pub(super) fn within_bounds(message: Bytes) -> Option<Bytes> {
    if message.len() <= MAX_HEAD + MAX_BODY {
        return Some(message);
    }
    let head = Message::parse(message.clone()).ok().and_then(|parsed| {
        let headers: &Headers = match &parsed {
            Message::Request(request) => request,
            Message::Response(response) => response,
        };
        let head = message.len() - headers.rest().len();
        let told = headers
            .content_length()
            .is_some_and(|length| length > MAX_BODY);
        (told && head <= MAX_HEAD).then_some(head)
    });
    if head.is_none() {
        tracing::trace!(
            length = message.len(),
            "a message over WebSocket is too long, and dropped"
        );
    }
    head.map(|head| message.slice(..head))
}

/// Looks whether an answer to a request of ours is one SIP message, and a whole one.
///
/// Whoever carries the bytes of a TCP connection in WebSocket messages as they come cuts and joins answers, and half of
/// a 200 would grant what the other half denies. Requests are not looked at: what a stranger has sent through the server
/// is to end nothing.
pub(super) fn check(answer: &Bytes) -> Result<(), WsError> {
    // What cannot be read is dropped later on, and told in the trace.
    let Ok(Message::Response(response)) = Message::parse(answer.clone()) else {
        return Ok(());
    };
    let rest = response.rest();
    let head = answer.len() - rest.len();
    let ended = answer
        .get(..head)
        .is_some_and(|head| head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n"));
    let length = response.content_length().unwrap_or(rest.len());
    let problem = match rest.get(length..) {
        Some(more) if ended => {
            let more = answer.slice_ref(more);
            if Message::parse(more).is_err() {
                return Ok(());
            }
            "more than one SIP message in one of WebSocket"
        }
        _ => "a SIP message is cut short at the end of one of WebSocket",
    };
    Err(WsError::Broken(problem.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "SIP/2.0 200 OK\r\nVia: SIP/2.0/WS a;branch=z9hG4bKx\r\n";

    #[test]
    fn an_answer_is_whole_and_alone() {
        for rest in [
            "\r\n",
            "Content-Length: 0\r\n\r\n",
            "l: 2\r\n\r\nab",
            // It may be left out (RFC 7118 §5), and more than it says is no part of the message.
            "\r\nab",
            "l: 2\r\n\r\nab\r\n\r\n",
            "l: 0\r\n\r\njunk",
            "l: many\r\n\r\nab",
        ] {
            let answer = Bytes::from(format!("{HEAD}{rest}"));
            assert_eq!(check(&answer), Ok(()), "{rest:?}");
        }
        for (rest, expected) in [
            ("", "cut short"),
            ("Content-Le", "cut short"),
            ("l: 3\r\n\r\nab", "cut short"),
            ("l: 0\r\n\r\nSIP/2.0 200 OK\r\n\r\n", "more than one"),
            (
                "l: 0\r\n\r\n\r\nBYE sip:a@b SIP/2.0\r\n\r\n",
                "more than one",
            ),
        ] {
            let answer = Bytes::from(format!("{HEAD}{rest}"));
            let problem = check(&answer).unwrap_err().to_string();
            assert!(problem.contains(expected), "{rest:?}: {problem}");
        }
        // Not ours to judge.
        for other in ["BYE sip:a@b SIP/2.0\r\nl: 9\r\n\r\n", "junk", ""] {
            assert_eq!(check(&Bytes::from(other)), Ok(()));
        }
    }

    #[test]
    fn line_ends_are_passed_over_before_a_message_only() {
        for (message, expected) in [
            ("\r\n\r\nSIP", "SIP"),
            ("SIP\r\n", "SIP\r\n"),
            ("\r\n", "\r\n"),
            ("", ""),
        ] {
            assert_eq!(without_line_ends(Bytes::from(message)), expected);
        }
    }
}
