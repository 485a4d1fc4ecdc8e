//! What an answer's Via shows, and what of it is believed.

use super::*;
use crate::{Protocol, Response};
use bytes::Bytes;

fn info(local: &str, remote: &str) -> FlowInfo {
    let address = |text: &str| text.parse().expect("an address");
    FlowInfo::new(Protocol::Udp, address(local), address(remote))
}

fn seen(info: &FlowInfo, via: &str) -> Seen {
    let text = format!("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP {via}\r\n\r\n");
    let response = Response::parse(Bytes::from(text)).expect("a response");
    Seen::of(&response.via().expect("a Via"), info)
}

#[test]
fn received_and_rport_say_where_we_were_seen() {
    let info = info("192.0.2.1:5060", "192.0.2.9:5060");
    for (via, mapped, nat) in [
        (
            "192.0.2.1:5060;rport=5060;received=192.0.2.1",
            Some("192.0.2.1:5060"),
            false,
        ),
        (
            "192.0.2.1:5060;rport=1024;received=203.0.113.7",
            Some("203.0.113.7:1024"),
            true,
        ),
        // Without received, the source is what sent-by says (RFC 3261 §18.2.1).
        ("192.0.2.1:5060;rport=1024", Some("192.0.2.1:1024"), true),
        // Not filled in: nothing is known.
        ("192.0.2.1:5060;rport", None, false),
        // Only the address: there is a NAT, its port is not told.
        ("192.0.2.1:5060;rport;received=203.0.113.7", None, true),
        // An external address in sent-by was seen by nobody.
        ("198.51.100.3:5060;rport=5060", None, false),
        ("phone.example.com:5060;rport=1024", None, true),
    ] {
        let expected = Seen {
            mapped: mapped.map(|address| address.parse().expect("an address")),
            nat,
        };
        assert_eq!(seen(&info, via), expected, "{via}");
    }
}

#[test]
fn f30_mangled_values_are_not_believed() {
    let table = [
        // (our end, the other end, received, rport, believed)
        ("192.0.2.1:5060", "192.0.2.9:5060", "0.0.0.0", "5060", false),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "127.0.0.1",
            "5060",
            false,
        ),
        (
            "127.0.0.1:5060",
            "127.0.0.1:5061",
            "127.0.0.1",
            "5070",
            true,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "224.0.0.5",
            "5060",
            false,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "255.255.255.255",
            "5060",
            false,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "169.254.3.4",
            "5060",
            false,
        ),
        (
            "169.254.3.9:5060",
            "169.254.3.1:5060",
            "169.254.3.4",
            "5060",
            true,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "203.0.113.7",
            "0",
            false,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "203.0.113.7",
            "70000",
            false,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "2001:db8::7",
            "5060",
            false,
        ),
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "not-an-address",
            "5060",
            false,
        ),
        // Private for public: a middlebox between us wrote it.
        (
            "192.0.2.1:5060",
            "192.0.2.9:5060",
            "10.0.0.3",
            "5060",
            false,
        ),
        (
            "192.168.1.2:5060",
            "192.0.2.9:5060",
            "10.0.0.3",
            "5060",
            false,
        ),
        (
            "192.168.1.2:5060",
            "192.0.2.9:5060",
            "100.64.0.3",
            "5060",
            false,
        ),
        (
            "192.168.1.2:5060",
            "10.0.0.9:5060",
            "100.64.0.3",
            "5060",
            true,
        ),
        (
            "192.168.1.2:5060",
            "192.0.2.9:5060",
            "192.168.1.2",
            "5060",
            true,
        ),
        (
            "192.168.1.2:5060",
            "192.0.2.9:5060",
            "203.0.113.7",
            "1024",
            true,
        ),
        (
            "[2001:db8::1]:5060",
            "[2001:db8::9]:5060",
            "[2001:db8::7]",
            "5060",
            true,
        ),
        (
            "[2001:db8::1]:5060",
            "[2001:db8::9]:5060",
            "fe80::7",
            "5060",
            false,
        ),
        (
            "[2001:db8::1]:5060",
            "[2001:db8::9]:5060",
            "fd00::7",
            "5060",
            false,
        ),
        (
            "[2001:db8::1]:5060",
            "[2001:db8::9]:5060",
            "::",
            "5060",
            false,
        ),
        (
            "[2001:db8::1]:5060",
            "[2001:db8::9]:5060",
            "192.0.2.7",
            "5060",
            false,
        ),
    ];
    for (local, remote, received, rport, believed) in table {
        let via = format!("host:5060;rport={rport};received={received}");
        let seen = seen(&info(local, remote), &via);
        assert_eq!(seen.mapped.is_some(), believed, "{local} {remote} {via}");
    }
}

#[test]
fn what_the_transport_advertises_wins_over_what_was_seen() {
    let mapped = Some("203.0.113.7:1024".parse().expect("an address"));
    let plain = info("192.0.2.1:5060", "192.0.2.9:5060");
    assert_eq!(for_contact(&plain), None);
    assert_eq!(for_contact(&plain.clone().with_mapped(mapped)), mapped);
    assert_eq!(
        for_contact(&plain.clone().with_mapped(Some(plain.local()))),
        None
    );
    let external = plain.clone().with_sent_by("198.51.100.3:5060");
    assert_eq!(for_contact(&external.with_mapped(mapped)), None);
    let listener = plain.with_contact("192.0.2.1:5080");
    assert_eq!(for_contact(&listener.with_mapped(mapped)), None);
}
