//! Vectors of RFC 5769, and what a hostile or broken server may send.

use super::*;

const ID: TransactionId = [
    0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
];

/// RFC 5769 §2.2
const IPV4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a64300080014\
                    2b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769 §2.3
const IPV6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179\
                    bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .map(|digit| char::from(digit).to_digit(16).expect("a digit") as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in attributes {
        body.extend(name.to_be_bytes());
        body.extend((value.len() as u16).to_be_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut all = kind.to_be_bytes().to_vec();
    all.extend((body.len() as u16).to_be_bytes());
    all.extend(COOKIE.to_be_bytes());
    all.extend(ID);
    all.extend(body);
    all
}

fn mapped(datagram: &[u8]) -> Option<String> {
    match answer(datagram) {
        Some((ID, Answer::Success(mapped))) => mapped.map(|address| address.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_vectors_of_rfc_5769_are_read() {
    assert_eq!(mapped(&bytes(IPV4)).as_deref(), Some("192.0.2.1:32853"));
    assert_eq!(
        mapped(&bytes(IPV6)).as_deref(),
        Some("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
    );
    // Their FINGERPRINT holds only while every byte before it does; without its name it is none.
    let named = bytes(IPV4).len() - 8;
    for at in (0..bytes(IPV4).len()).filter(|at| !(named..named + 2).contains(at)) {
        let mut spoilt = bytes(IPV4);
        spoilt[at] ^= 1;
        assert_eq!(answer(&spoilt), None, "byte {at}");
    }
}

#[test]
fn the_request_is_a_header_and_nothing_else() {
    let request = binding_request(&ID);
    assert_eq!(
        &request[..],
        bytes("000100002112a442b7e7a701bc34d686fa87dfae")
    );
    assert_eq!((answered_id(&request), answer(&request)), (None, None));
}

#[test]
fn the_xored_address_comes_before_the_plain_one_wherever_they_stand() {
    let plain: &[u8] = &[0, 1, 0x13, 0xc4, 10, 0, 0, 1];
    let xored: &[u8] = &bytes("0001a147e112a643");
    let all = [(MAPPED_ADDRESS, plain), (XOR_MAPPED_ADDRESS, xored)];
    assert_eq!(
        mapped(&message(BINDING_SUCCESS, &all)).as_deref(),
        Some("192.0.2.1:32853")
    );
    assert_eq!(
        mapped(&message(BINDING_SUCCESS, &all[..1])).as_deref(),
        Some("10.0.0.1:5060")
    );
    assert_eq!(mapped(&message(BINDING_SUCCESS, &[])), None);
    // Padding is not part of a value, and what is unknown is skipped.
    let odd = [(0x8022, &b"x"[..]), (XOR_MAPPED_ADDRESS, xored)];
    assert_eq!(
        mapped(&message(BINDING_SUCCESS, &odd)).as_deref(),
        Some("192.0.2.1:32853")
    );
}

#[test]
fn errors_have_their_code() {
    for (value, code) in [(&[0, 0, 4, 20, b'?'][..], 420), (&[0, 0, 5, 0], 500)] {
        assert_eq!(
            answer(&message(BINDING_ERROR, &[(ERROR_CODE, value)])),
            Some((ID, Answer::Error(code)))
        );
    }
    assert_eq!(
        answer(&message(BINDING_ERROR, &[])),
        Some((ID, Answer::Error(0)))
    );
    for malformed in [&[0, 0, 4][..], &[0, 0, 7, 0], &[0, 0, 4, 100]] {
        assert_eq!(
            answer(&message(BINDING_ERROR, &[(ERROR_CODE, malformed)])),
            None
        );
    }
}

#[test]
fn what_is_malformed_is_no_answer() {
    let good = message(
        BINDING_SUCCESS,
        &[(XOR_MAPPED_ADDRESS, &[0, 1, 1, 1, 1, 1, 1, 1])],
    );
    assert!(answer(&good).is_some());
    for length in 0..good.len() {
        assert_eq!(answer(&good[..length]), None, "{length} bytes");
    }
    let longer = [&good[..], &[0; 4]].concat();
    assert_eq!(answer(&longer), None);
    for value in [
        &[][..],
        &[0, 1],
        &[0, 1, 1, 1, 1],
        &[0, 2, 1, 1, 1, 1, 1, 1],
        &[0, 3, 1, 1, 1, 1, 1, 1],
    ] {
        assert_eq!(
            answer(&message(BINDING_SUCCESS, &[(XOR_MAPPED_ADDRESS, value)])),
            None,
            "{value:?}"
        );
    }
    // An attribute that says it is longer than the message.
    let mut beyond = good.clone();
    beyond[23] = 200;
    assert_eq!(answer(&beyond), None);
    // An indication, and another method.
    assert_eq!(answer(&message(0x0011, &[])), None);
    assert_eq!(answer(&message(0x0103, &[])), None);
}

#[test]
fn sip_and_keep_alives_are_no_stun() {
    for other in [
        &b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"[..],
        b"\r\n\r\n",
        b"\r\n",
        b"",
        &[0; 20],
        &[0; 65_535],
    ] {
        assert!(header(other).is_none());
        assert_eq!(answer(other), None);
    }
    // The two topmost bits are zero in STUN (RFC 8489 §5).
    let mut sigcomp = message(BINDING_SUCCESS, &[]);
    sigcomp[0] |= 0xc0;
    assert!(header(&sigcomp).is_none());
}

#[test]
fn no_bytes_make_it_panic() {
    let mut entropy = crate::Entropy::from_seed([5; 32]);
    let seed = bytes(IPV6);
    for _ in 0..20_000 {
        let mut noise = seed.clone();
        for _ in 0..=entropy.below(4) {
            let at = entropy.below(noise.len() as u64) as usize;
            noise[at] = entropy.u32() as u8;
        }
        noise.truncate(entropy.below(1 + noise.len() as u64) as usize);
        let _ = answer(&noise);
        let length = noise.len().saturating_sub(HEADER) as u16;
        if let Some(field) = noise.get_mut(2..4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
        let _ = answer(&noise);
    }
}
