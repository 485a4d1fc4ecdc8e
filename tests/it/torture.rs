//! The torture messages of RFC 4475 and RFC 5118, byte for byte as their archives have them
//!
//! RFC 5118's archive has lone LF; its messages were given the CRLF they stand for, the two of §4.10 their empty line,
//! and ipv6-in-sdp a Content-Length that fits: 251 where the archive has 268.

use bytes::Bytes;
use sip_registration::{ParseError, Request, Response};
use std::collections::BTreeSet;
use std::path::PathBuf;

use Verdict::{Accept, Reject};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Accept,
    Reject,
}

/// What we make of each message, and why; the section of RFC 4475, or of RFC 5118 for §4.
const EXPECTED: &[(&str, Verdict, &str)] = &[
    (
        "wsinv",
        Accept,
        "3.1.1.1: folding, blanks and compact names everywhere",
    ),
    ("intmeth", Accept, "3.1.1.2: unusual but legal characters"),
    ("esc01", Accept, "3.1.1.3: escapes in URIs"),
    ("escnull", Accept, "3.1.1.4: escaped NUL in URIs"),
    ("esc02", Accept, "3.1.1.5: % that is no escape"),
    (
        "lwsdisp",
        Accept,
        "3.1.1.6: no blank between display name and <",
    ),
    ("longreq", Accept, "3.1.1.7: long values"),
    (
        "dblreq",
        Accept,
        "3.1.1.8: bytes after the body are ignored",
    ),
    ("semiuri", Accept, "3.1.1.9: parameters in the user part"),
    ("transports", Accept, "3.1.1.10: unknown transports in Via"),
    ("mpart01", Accept, "3.1.1.11: a binary body"),
    ("unreason", Accept, "3.1.1.12: a reason phrase in UTF-8"),
    ("noreason", Accept, "3.1.1.13: an empty reason phrase"),
    (
        "badinv01",
        Reject,
        "3.1.2.1: empty elements and parameters in Via",
    ),
    (
        "clerr",
        Reject,
        "3.1.2.2: Content-Length larger than the datagram",
    ),
    ("ncl", Reject, "3.1.2.3: negative Content-Length"),
    ("scalar02", Reject, "3.1.2.4: CSeq above 2^32"),
    ("scalarlg", Reject, "3.1.2.5: CSeq above 2^32"),
    ("quotbal", Reject, "3.1.2.6: an open quote in To"),
    ("ltgtruri", Reject, "3.1.2.7: Request-URI in <>"),
    ("lwsruri", Reject, "3.1.2.8: a blank in the Request-URI"),
    (
        "lwsstart",
        Accept,
        "3.1.2.9: extra blanks in the Request-Line may be ignored",
    ),
    (
        "trws",
        Accept,
        "3.1.2.10: blanks after the Request-Line may be ignored",
    ),
    ("escruri", Reject, "3.1.2.11: headers in the Request-URI"),
    ("baddate", Accept, "3.1.2.12: Date does not matter to us"),
    ("regbadct", Reject, "3.1.2.13: a Contact with ? outside <>"),
    ("badaspec", Reject, "3.1.2.14: blanks within <>"),
    (
        "baddn",
        Reject,
        "3.1.2.15: a display name that needs quotes",
    ),
    ("badvers", Reject, "3.1.2.16: SIP/7.0"),
    (
        "mismatch01",
        Reject,
        "3.1.2.17: the method in CSeq is another",
    ),
    (
        "mismatch02",
        Reject,
        "3.1.2.18: the method in CSeq is another, and this one unknown",
    ),
    ("bigcode", Reject, "3.1.2.19: status code above 699"),
    (
        "badbranch",
        Accept,
        "3.2.1: an empty branch is that of RFC 2543",
    ),
    ("insuf", Reject, "3.3.1: no Call-ID, From or To"),
    (
        "unkscm",
        Accept,
        "3.3.2: an unknown scheme is well-formed, and gets its 416 later",
    ),
    (
        "novelsc",
        Accept,
        "3.3.3: an atypical scheme is well-formed",
    ),
    ("unksm2", Accept, "3.3.4: unknown schemes in header fields"),
    (
        "bext01",
        Accept,
        "3.3.5: unknown option tags get their 420 later",
    ),
    (
        "invut",
        Accept,
        "3.3.6: an unknown Content-Type gets its 415 later",
    ),
    ("regaut01", Accept, "3.3.7: an unknown Authorization scheme"),
    ("multi01", Reject, "3.3.8: To, From, Call-ID and CSeq twice"),
    ("mcl01", Reject, "3.3.9: two Content-Lengths"),
    (
        "bcast",
        Accept,
        "3.3.10: well-formed; its two Vias make the transaction layer drop it",
    ),
    ("zeromf", Accept, "3.3.11: Max-Forwards of 0 is for us"),
    ("cparam01", Accept, "3.3.12: a Contact header parameter"),
    ("cparam02", Accept, "3.3.13: a Contact URI parameter"),
    ("regescrt", Accept, "3.3.14: a header in a Contact URI"),
    (
        "sdp01",
        Accept,
        "3.3.15: an Accept that cannot be met gets its 406 later",
    ),
    (
        "inv2543",
        Accept,
        "3.4.1: no branch, From tag, Max-Forwards or Content-Length",
    ),
    ("ipv6-good", Accept, "4.1: an IPv6 reference"),
    (
        "ipv6-bad",
        Reject,
        "4.2: an IPv6 address without brackets in the Request-URI",
    ),
    (
        "port-ambiguous",
        Accept,
        "4.3: the port became part of the address",
    ),
    (
        "port-unambiguous",
        Accept,
        "4.4: the port after the bracket",
    ),
    (
        "via-received-param-with-delim",
        Accept,
        "4.5: received in brackets",
    ),
    (
        "via-received-param-no-delim",
        Accept,
        "4.5: received without brackets",
    ),
    ("ipv6-in-sdp", Accept, "4.6: IPv6 in the body"),
    ("mult-ip-in-header", Accept, "4.7: IPv4 and IPv6 in Via"),
    ("mult-ip-in-sdp", Accept, "4.8: IPv4 and IPv6 in the body"),
    ("ipv4-mapped-ipv6", Accept, "4.9: IPv4-mapped addresses"),
    (
        "ipv6-bug-abnf-3-colons",
        Accept,
        "4.10: a third colon must be tolerated",
    ),
    (
        "ipv6-correct-abnf-2-colons",
        Accept,
        "4.10: the same without it",
    ),
];

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/torture"))
}

fn bytes(name: &str) -> Bytes {
    let path = directory().join(name).with_extension("dat");
    Bytes::from(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

fn request(name: &str) -> Request {
    Request::parse(bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn response(name: &str) -> Response {
    Response::parse(bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a host would do with the message: parse it, then ask whether to handle it.
fn check(bytes: Bytes) -> Result<(), ParseError> {
    if bytes.starts_with(b"SIP/") {
        Response::parse(bytes)?.validate()
    } else {
        Request::parse(bytes)?.validate()
    }
}

#[test]
fn each_torture_message_is_accepted_or_rejected_as_its_rfc_has_it() {
    for &(name, expected, reason) in EXPECTED {
        let result = check(bytes(name));
        let verdict = if result.is_ok() { Accept } else { Reject };
        assert_eq!(verdict, expected, "{name} ({reason}): {result:?}");
    }
}

#[test]
fn no_torture_message_is_left_out() {
    let listed: BTreeSet<_> = EXPECTED
        .iter()
        .map(|&(name, ..)| format!("{name}.dat"))
        .collect();
    let files = std::fs::read_dir(directory()).expect("tests/data/torture");
    let present: BTreeSet<_> = files
        .map(|file| {
            file.expect("a file")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(listed, present);
}

#[test]
fn a_cut_torture_message_never_panics() {
    for (name, ..) in EXPECTED {
        let bytes = bytes(name);
        for end in 0..bytes.len() {
            let _ = check(bytes.slice(..end));
        }
    }
}

#[test]
fn what_is_accepted_is_read_right() {
    let wsinv = request("wsinv");
    assert_eq!(wsinv.cseq().map(|(number, _)| number), Some(9));
    assert_eq!(wsinv.tag_of("To").as_deref(), Some("1918181833n"));
    assert_eq!(
        wsinv.name_addr("From").unwrap().display_name().as_deref(),
        Some("J Rosenberg \\\"")
    );
    assert_eq!(
        (wsinv.via_count(), wsinv.via().unwrap().host.as_str()),
        (3, "192.0.2.2")
    );
    assert_eq!(wsinv.via().unwrap().branch.as_deref(), Some("390skdjuw"));
    assert_eq!(
        wsinv.contacts().next().unwrap().param("q").unwrap().token(),
        Some("0.33")
    );
    assert_eq!(wsinv.body().len(), 150);

    assert_eq!(request("esc02").contacts().count(), 2);
    assert_eq!(request("dblreq").body().len(), 0);
    assert_eq!(request("mpart01").body().len(), 553);
    assert_eq!(request("longreq").via_count(), 34);
    assert_eq!(
        request("semiuri").uri(),
        "sip:user;par=u%40example.net@example.com"
    );
    assert_eq!(
        request("intmeth").method(),
        "!interesting-Method0123456789_*+`.%indeed'~"
    );
    assert!(
        request("cparam01")
            .contacts()
            .next()
            .unwrap()
            .param("unknownparam")
            .is_some()
    );
    assert!(
        request("cparam02")
            .contacts()
            .next()
            .unwrap()
            .param("unknownparam")
            .is_none()
    );
    for name in [
        "via-received-param-with-delim",
        "via-received-param-no-delim",
    ] {
        assert_eq!(
            request(name).via().unwrap().received.as_deref(),
            Some("2001:db8::9:255")
        );
    }

    assert_eq!(
        (response("noreason").code(), &*response("noreason").reason()),
        (100, "")
    );
    assert!(
        response("unreason")
            .reason()
            .starts_with("= 2**3 * 5**2 но сто")
    );
    assert_eq!(response("bcast").via_count(), 2);
    assert_eq!(response("scalarlg").retry_after(), Some(u32::MAX));
}
