//! The one STUN transaction that a UDP keep-alive needs: a Binding request and its answers (RFC 8489, RFC 5626 §8).

use bytes::{BufMut, Bytes, BytesMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// What names a transaction (RFC 8489 §5)
pub(crate) type TransactionId = [u8; 12];

/// What a server says to a Binding request
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Success, with the address that the server saw the request come from, where it says so
    Success(Option<SocketAddr>),
    /// An error, with its code (RFC 8489 §14.8); 0 where it has none that can be read
    Error(u16),
}

/// The transaction that a Binding answer belongs to; none where `datagram` is no such answer.
pub(crate) fn answered_id(datagram: &[u8]) -> Option<TransactionId> {
    header(datagram)
        .filter(|header| matches!(header.kind, BINDING_SUCCESS | BINDING_ERROR))
        .map(|header| header.id)
}

/// A Binding request without attributes
///
/// RFC 5626 §8 asks for none, and FINGERPRINT would tell a SIP server nothing that the first byte does not: the
/// shortest request is the one that every server understands.
pub(crate) fn binding_request(id: &TransactionId) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER);
    out.put_u16(BINDING_REQUEST);
    out.put_u16(0);
    out.put_u32(COOKIE);
    out.put_slice(id);
    out.freeze()
}

/// Reads a Binding answer; none where it is malformed, or corrupt by its own FINGERPRINT.
pub(crate) fn answer(datagram: &[u8]) -> Option<(TransactionId, Answer)> {
    let Header { kind, id } = header(datagram)?;
    let mut rest = datagram.get(HEADER..)?;
    let (mut mapped, mut xor_mapped, mut code) = (None, None, None);
    while !rest.is_empty() {
        let (name, length) = (number(rest, 0)?, usize::from(number(rest, 2)?));
        let value = rest.get(4..4 + length)?;
        // The first of a kind counts (RFC 8489 §14).
        match name {
            XOR_MAPPED_ADDRESS if xor_mapped.is_none() => {
                xor_mapped = Some(address(value, Some(&id))?);
            }
            // What RFC 3489 had, and some servers still send.
            MAPPED_ADDRESS if mapped.is_none() => mapped = Some(address(value, None)?),
            ERROR_CODE if code.is_none() => code = Some(error_code(value)?),
            FINGERPRINT => {
                let before = datagram.len() - rest.len();
                let sum = crc32(datagram.get(..before)?) ^ FINGERPRINT_XOR;
                if value != sum.to_be_bytes() || rest.len() != 8 {
                    return None;
                }
            }
            _ => {}
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
    match kind {
        BINDING_SUCCESS => Some((id, Answer::Success(xor_mapped.or(mapped)))),
        BINDING_ERROR => Some((id, Answer::Error(code.unwrap_or(0)))),
        _ => None,
    }
}

struct Header {
    kind: u16,
    id: TransactionId,
}

/// The fixed part, where the whole datagram is as long as it says (RFC 8489 §5)
///
/// No SIP message begins with two zero bits (RFC 5626 §8), nor has the cookie where STUN has it.
fn header(datagram: &[u8]) -> Option<Header> {
    let (kind, length) = (number(datagram, 0)?, usize::from(number(datagram, 2)?));
    let cookie = datagram.get(4..8)?;
    let id = datagram.get(8..HEADER)?.try_into().ok()?;
    (kind >> 14 == 0
        && length % 4 == 0
        && datagram.len() == HEADER + length
        && cookie == COOKIE.to_be_bytes())
    .then_some(Header { kind, id })
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// MAPPED-ADDRESS, or XOR-MAPPED-ADDRESS where `xored` names the transaction (RFC 8489 §14.1, §14.2)
fn address(value: &[u8], xored: Option<&TransactionId>) -> Option<SocketAddr> {
    let (&family, port) = (value.get(1)?, number(value, 2)?);
    let mut mask = [0; 16];
    if let Some(id) = xored {
        mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
        mask[4..].copy_from_slice(id);
    }
    let port = port ^ u16::from_be_bytes([mask[0], mask[1]]);
    let address = value.get(4..)?;
    match (family, address.len()) {
        (1, 4) => {
            let mut octets: [u8; 4] = address.try_into().ok()?;
            xor(&mut octets, &mask);
            Some((Ipv4Addr::from(octets), port).into())
        }
        (2, 16) => {
            let mut octets: [u8; 16] = address.try_into().ok()?;
            xor(&mut octets, &mask);
            Some((Ipv6Addr::from(octets), port).into())
        }
        _ => None,
    }
}

fn xor(octets: &mut [u8], mask: &[u8]) {
    for (octet, mask) in octets.iter_mut().zip(mask) {
        *octet ^= mask;
    }
}

/// The class in three bits, the number below 100 in eight (RFC 8489 §14.8)
fn error_code(value: &[u8]) -> Option<u16> {
    let (&class, &number) = (value.get(2)?, value.get(3)?);
    let (class, number) = (u16::from(class & 7), u16::from(number));
    ((3..=6).contains(&class) && number < 100).then_some(class * 100 + number)
}

/// The checksum of ITU V.42, bit by bit: an answer is short, and comes twice a minute
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Bytes before the attributes
const HEADER: usize = 20;
const COOKIE: u32 = 0x2112_A442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const MAPPED_ADDRESS: u16 = 0x0001;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
/// So that the checksum of another protocol inside does not pass for this one (RFC 8489 §14.7)
const FINGERPRINT_XOR: u32 = 0x5354_554E;

#[cfg(test)]
#[path = "tests/stun.rs"]
mod tests;
