//! Any bytes as a stream: the same messages and the same error, however it is cut
//!
//! Not the same keep-alives: half a ping is a pong, see `Frame::Pong`.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sip_registration::{Frame, FrameError, Framer};

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, bytes) = input;
    let whole = messages([bytes]);
    let mut rest = bytes;
    let mut pieces: Vec<&[u8]> = cuts
        .iter()
        .map(|cut| {
            let (piece, left) = rest.split_at(usize::from(*cut).min(rest.len()));
            rest = left;
            piece
        })
        .collect();
    pieces.push(rest);
    assert_eq!(messages(pieces), whole);
});

fn messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Bytes>, Option<FrameError>) {
    let (mut framer, mut messages) = (Framer::new(), Vec::new());
    for piece in pieces {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(Frame::Message(message))) => messages.push(message),
                Ok(Some(Frame::Ping | Frame::Pong)) => {}
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}
