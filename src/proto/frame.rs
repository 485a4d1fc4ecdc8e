//! Cutting a byte stream into messages and keep-alives.

use crate::{Headers, Message, ParseError};
use bytes::{Buf, Bytes, BytesMut};

/// Cuts what a TCP or TLS connection delivers into messages, RFC 3261 §18.3
///
/// Content-Length says where a message ends; without one it has no body. A body longer than [`MAX_BODY`] is read over, and
/// its message comes without it: a connection, and all that is registered by it, does not end by what one caller sends. After
/// an error the stream has lost its frame: every further call returns the same error, and the connection is to be closed.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: BytesMut,
    /// Up to here the buffer has been searched for the end of the header section.
    scanned: usize,
    /// Where the line that is being searched begins.
    line: usize,
    /// The length of the message, once its header section is complete.
    length: Option<usize>,
    /// So much of a body that is too long is still to come.
    skip: usize,
    failed: Option<FrameError>,
}

/// What a stream carries, RFC 3261 §7 and RFC 5626 §4.4.1
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One message with its body.
    Message(Bytes),
    /// A double CRLF: the peer wants a single one back, RFC 5626 §4.4.1.
    Ping,
    /// A single CRLF: the answer to our ping, or a stray line end before a message
    ///
    /// When the two halves of a ping arrive apart, each comes out as this: waiting for the second would hold back
    /// every real answer. Two answers that arrive together come out as one [`Ping`](Self::Ping).
    Pong,
}

/// Why a stream cannot be cut any further, RFC 3261 §18.3
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The first line or the header section is not SIP.
    #[error("the stream does not carry SIP")]
    NotSip(#[source] ParseError),
    /// The header section is longer than [`MAX_HEAD`].
    #[error("a header section on the stream is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    /// The body is longer than 16 MiB, which is more than anybody reads over.
    #[error("a message on the stream has a Content-Length of {length}, more than {MAX_SKIPPED}")]
    BodyTooLong {
        /// The Content-Length.
        length: u32,
    },
    /// Content-Length is no number, or several differ, RFC 4475 §3.3.9.
    #[error("a message on the stream has the Content-Length {value:?}")]
    ContentLength {
        /// The values, shortened.
        value: String,
    },
}

/// The longest start line and header section: what a UDP datagram could hold.
pub const MAX_HEAD: usize = 64 * 1024;

/// The longest body that a message comes with: what a UDP datagram could hold.
pub const MAX_BODY: usize = 64 * 1024;

/// The longest body that is read over
const MAX_SKIPPED: usize = 16 * 1024 * 1024;

impl Framer {
    /// A framer at the begin of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes from the stream; call [`next`](Self::next) until it yields nothing.
    pub fn push(&mut self, bytes: &[u8]) {
        // What follows an error has no meaning, and would only pile up.
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, if it has arrived.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would end, while a stream goes on after `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
        })
    }

    fn advance(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.skip > 0 {
            let here = self.skip.min(self.buffer.len());
            self.buffer.advance(here);
            self.skip -= here;
        }
        if self.scanned == 0 {
            let (length, frame) = match *self.buffer {
                [b'\r', b'\n', b'\r', b'\n', ..] => (4, Frame::Ping),
                // One more byte tells whether this is half a ping.
                [] | [b'\r'] | [b'\r', b'\n', b'\r'] => return Ok(None),
                [b'\r', b'\n', ..] => (2, Frame::Pong),
                [b'\n', ..] => (1, Frame::Pong),
                _ => (0, Frame::Pong),
            };
            if length > 0 {
                self.buffer.advance(length);
                return Ok(Some(frame));
            }
        }
        if self.length.is_none() {
            self.length = self.find_length()?;
        }
        let Some(length) = self.length.filter(|&length| length <= self.buffer.len()) else {
            return Ok(None);
        };
        (self.scanned, self.line, self.length) = (0, 0, None);
        Ok(Some(Frame::Message(self.buffer.split_to(length).freeze())))
    }

    /// Searches on, line by line, for the end of the header section; every byte is looked at once.
    fn find_length(&mut self) -> Result<Option<usize>, FrameError> {
        while let Some(newline) = self
            .buffer
            .get(self.scanned..)
            .and_then(|rest| rest.iter().position(|&b| b == b'\n'))
        {
            let end = self.scanned + newline;
            let line = self.buffer.get(self.line..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (first, empty) = (self.line == 0, line.is_empty());
            if end >= MAX_HEAD {
                return Err(FrameError::HeadTooLong);
            }
            if first {
                // A peer that speaks another protocol is found out with its first line. A bad version or status code
                // spoils its message only, RFC 4475 §3.1.2.16 and §3.1.2.19.
                match Message::parse(Bytes::copy_from_slice(line)) {
                    Ok(_) | Err(ParseError::Version { .. } | ParseError::StatusCode { .. }) => {}
                    Err(error) => return Err(FrameError::NotSip(error)),
                }
            }
            (self.scanned, self.line) = (end + 1, end + 1);
            if empty {
                let head = self.buffer.get(..self.scanned).unwrap_or_default();
                let body = content_length(head)?;
                if body > MAX_BODY {
                    self.skip = body;
                    return Ok(Some(self.scanned));
                }
                return Ok(Some(self.scanned + body));
            }
        }
        self.scanned = self.buffer.len();
        if self.scanned > MAX_HEAD {
            Err(FrameError::HeadTooLong)
        } else {
            Ok(None)
        }
    }
}

/// The length of the body that a header section announces; none is 0, RFC 3261 §18.3.
fn content_length(head: &[u8]) -> Result<usize, FrameError> {
    let (_, headers) = Headers::parse(Bytes::copy_from_slice(head)).map_err(FrameError::NotSip)?;
    let values: Vec<_> = headers.headers("Content-Length").collect();
    let Some(length) = headers.content_length() else {
        if values.is_empty() {
            return Ok(0);
        }
        let value: String = values.join(", ").chars().take(64).collect();
        return Err(FrameError::ContentLength { value });
    };
    if length > MAX_SKIPPED {
        return Err(FrameError::BodyTooLong {
            length: u32::try_from(length).unwrap_or(u32::MAX),
        });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use assert_matches::assert_matches;

    const PLAIN: &str = "SIP/2.0 200 OK\r\nCall-ID: 1\r\n\r\n";
    const BODY: &str = "OPTIONS sip:a SIP/2.0\r\nl : 6\r\n\r\n\r\n\r\nab";
    const LF: &str = "SIP/2.0 100\nContent-Length:\n 2\n\nxy";

    fn message(text: &str) -> Frame {
        Frame::Message(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// All frames of a stream that arrives in pieces of this size.
    fn frames(stream: &[u8], size: usize) -> Result<Vec<Frame>, FrameError> {
        let mut framer = Framer::new();
        let mut frames = Vec::new();
        for piece in stream.chunks(size) {
            framer.push(piece);
            while let Some(frame) = framer.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn messages_come_out_whole_however_they_arrive() {
        let stream = [PLAIN, BODY, LF, PLAIN].concat();
        for size in 1..=stream.len() {
            let expected = [PLAIN, BODY, LF, PLAIN].map(message);
            assert_eq!(frames(stream.as_bytes(), size).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn keep_alives_are_told_apart_when_they_arrive_whole() {
        let stream = ["\r\n\r\n", PLAIN, "\r\n", BODY, "\r\n\r\n\r\n"].concat();
        let expected = [
            Frame::Ping,
            message(PLAIN),
            Frame::Pong,
            message(BODY),
            Frame::Ping,
            Frame::Pong,
        ];
        assert_eq!(frames(stream.as_bytes(), stream.len()).unwrap(), expected);
    }

    #[test]
    fn a_ping_in_pieces_is_two_pongs_unless_only_its_last_byte_is_late() {
        assert_eq!(frames(b"\r\n\r\n", 1).unwrap(), [Frame::Pong, Frame::Pong]);
        assert_eq!(frames(b"\r\n\r\n", 2).unwrap(), [Frame::Pong, Frame::Pong]);
        assert_eq!(frames(b"\r\n\r\n", 3).unwrap(), [Frame::Ping]);
        assert_eq!(frames(b"\r", 1).unwrap(), []);
        assert_eq!(frames(b"\n", 1).unwrap(), [Frame::Pong]);
    }

    #[test]
    fn line_ends_before_a_message_do_not_harm_it() {
        let stream = format!("\r\n{PLAIN}\n{LF}");
        for size in 1..=stream.len() {
            let expected = [Frame::Pong, message(PLAIN), Frame::Pong, message(LF)];
            assert_eq!(frames(stream.as_bytes(), size).unwrap(), expected, "{size}");
        }
    }

    #[test]
    fn another_protocol_is_found_out_with_its_first_line() {
        for stream in [
            "HTTP/1.1 400 Bad Request\r\n",
            "\x15\x03\x01\n",
            " \r\n",
            "GET / HTTP/1.1\r\n",
        ] {
            for size in [1, stream.len()] {
                assert_matches!(
                    frames(stream.as_bytes(), size),
                    Err(FrameError::NotSip(_)),
                    "{stream:?}"
                );
            }
        }
    }

    #[test]
    fn a_bad_version_or_status_code_spoils_its_message_only() {
        let bad = "SIP/2.0 4294967301 x\r\nl: 1\r\n\r\nx";
        assert_eq!(
            frames([bad, PLAIN].concat().as_bytes(), 1).unwrap(),
            [message(bad), message(PLAIN)]
        );
    }

    #[test]
    fn a_content_length_that_is_no_number_or_two_loses_the_frame() {
        for (headers, value) in [
            ("l: -999", "-999"),
            ("l: five", "five"),
            ("l:", ""),
            ("l: 99999999999999999999", "99999999999999999999"),
            ("l: 13\r\nContent-Length: 5", "13, 5"),
            ("l: 5, 5", "5, 5"),
        ] {
            let stream = format!("SIP/2.0 200 OK\r\n{headers}\r\n\r\n");
            let value = value.to_owned();
            assert_eq!(
                frames(stream.as_bytes(), 7),
                Err(FrameError::ContentLength { value }),
                "{headers}"
            );
        }
        assert_eq!(
            frames(b"SIP/2.0 200 OK\r\nl: 1\r\nl: 1\r\n\r\nx", 99)
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn head_and_body_are_bounded() {
        let of = |head: usize| {
            let start = "SIP/2.0 200 OK\r\nX: ";
            format!("{start}{}\r\n\r\n", "x".repeat(head - start.len() - 4))
        };
        assert_eq!(frames(of(MAX_HEAD).as_bytes(), 1000).unwrap().len(), 1);
        assert_eq!(
            frames(of(MAX_HEAD + 1).as_bytes(), 1000),
            Err(FrameError::HeadTooLong)
        );
        assert_eq!(
            frames(&[b'x'; MAX_HEAD + 1], 1000),
            Err(FrameError::HeadTooLong)
        );
        assert_eq!(
            frames(b"SIP/2.0 200 OK\r\nl: 16777217\r\n\r\n", 99),
            Err(FrameError::BodyTooLong { length: 16777217 })
        );
        let largest = format!(
            "SIP/2.0 200 OK\r\nl: {MAX_BODY}\r\n\r\n{}",
            "x".repeat(MAX_BODY)
        );
        assert_eq!(
            frames(largest.as_bytes(), 4096).unwrap(),
            [message(&largest)]
        );
    }

    #[test]
    fn a_body_that_is_too_long_is_read_over() {
        let long = format!("SIP/2.0 200 OK\r\nl: {}\r\n\r\n", MAX_BODY + 1);
        let body = "\r\n".repeat(MAX_BODY / 2) + "x";
        let stream = [&*long, &*body, PLAIN, &*long, &*body, "\r\n\r\n", BODY].concat();
        for size in [1, 7, 1000, MAX_BODY + 1, stream.len()] {
            let expected = [
                message(&long),
                message(PLAIN),
                message(&long),
                Frame::Ping,
                message(BODY),
            ];
            let cut = frames(stream.as_bytes(), size).unwrap();
            // A ping in pieces is two pongs.
            match size {
                1 => assert_eq!(cut[..3], expected[..3]),
                _ => assert_eq!(cut.len(), if cut.contains(&Frame::Ping) { 5 } else { 6 }),
            }
            assert_eq!(cut.last(), expected.last(), "{size}");
        }
    }

    #[test]
    fn an_error_stays() {
        let mut framer = Framer::new();
        framer.push(b"hello\r\n");
        let error = framer.next().unwrap_err();
        framer.push(PLAIN.as_bytes());
        assert_eq!(framer.next(), Err(error));
    }

    #[test]
    fn a_stream_of_single_bytes_takes_linear_time() {
        let long = format!(
            "SIP/2.0 200 OK\r\nX: {}\r\nl: 65536\r\n\r\n{}",
            "x".repeat(65000),
            "y".repeat(65536)
        );
        assert_eq!(frames(long.as_bytes(), 1).unwrap(), [message(&long)]);
    }
}
