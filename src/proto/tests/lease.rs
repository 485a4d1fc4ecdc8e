use super::*;

const SENT: &str = "sip:alice@192.0.2.1:5060";

fn answer(headers: &str) -> Response {
    let text = format!("SIP/2.0 200 OK\r\n{headers}Content-Length: 0\r\n\r\n");
    Response::parse(text.into()).expect("a response")
}

fn granted(headers: &str, sent: Sent<'_>) -> Grant {
    grant(&answer(headers), sent, 3600)
}

fn sent(uri: &str) -> Sent<'_> {
    Sent {
        uri,
        line: None,
        instance: None,
        reg_id: None,
    }
}

#[test]
fn the_lifetime_is_that_of_our_contact_or_else_of_the_header_or_else_what_was_asked() {
    for (headers, seconds, confirmed) in [
        ("", 3600, false),
        ("Expires: 60\r\n", 60, false),
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=120\r\nExpires: 60\r\n",
            120,
            true,
        ),
        ("m: <sip:alice@192.0.2.1>;Expires=120\r\n", 120, true),
        (
            "Contact: <sip:alice@192.0.2.1:5060>\r\nExpires: 60\r\n",
            60,
            true,
        ),
        ("Contact: <sip:alice@192.0.2.1:5060>\r\n", 3600, true),
        // Several that match: the shortest.
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=50, <sip:alice@192.0.2.1:5060>;expires=40\r\n",
            40,
            true,
        ),
        // Somebody else's.
        (
            "Contact: <sip:bob@192.0.2.1:5060>;expires=50\r\n",
            3600,
            false,
        ),
        (
            "Contact: <sip:bob@192.0.2.1:5060>;expires=50, <sip:alice@192.0.2.1:5060>;expires=90\r\n",
            90,
            true,
        ),
        // What an SBC rewrote: only where it is the sole one.
        (
            "Contact: <sip:alice@203.0.113.7:1024>;expires=50\r\n",
            50,
            true,
        ),
        (
            "Contact: <sip:alice@203.0.113.7:1024>;expires=50, <sip:alice@203.0.113.8>;expires=9\r\n",
            3600,
            false,
        ),
        // Malformed ones count as absent (D9).
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=\"120\"\r\nExpires: 60\r\n",
            60,
            true,
        ),
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=-1\r\nExpires: 60\r\n",
            60,
            true,
        ),
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=4294967296\r\nExpires: 60\r\n",
            60,
            true,
        ),
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=\r\n",
            3600,
            true,
        ),
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=0\r\nExpires: 60\r\n",
            0,
            true,
        ),
        (
            "Contact: <sip:alice@192.0.2.1:5060>;expires=4294967295\r\n",
            604_800,
            true,
        ),
        ("Contact: *\r\n", 3600, false),
        ("Contact: \r\n", 3600, false),
        ("Contact: <not a uri>;expires=7\r\n", 3600, false),
    ] {
        let grant = granted(headers, sent(SENT));
        assert_eq!(
            (grant.seconds, grant.confirmed),
            (seconds, confirmed),
            "{headers}"
        );
    }
}

#[test]
fn instance_and_reg_id_come_before_the_token_and_that_before_the_uri() {
    let ours = Sent {
        uri: "sip:alice@192.0.2.1:5060;line=abcdefg",
        line: Some("abcdefg"),
        instance: Some("<urn:uuid:1>"),
        reg_id: Some("1"),
    };
    let by_uri = "<sip:alice@192.0.2.1:5060;line=hijklmn>;expires=10";
    let by_line = "<sip:x@198.51.100.1;line=abcdefg>;expires=20";
    let by_instance = "<sip:y@198.51.100.2>;+sip.instance=\"<urn:uuid:1>\";reg-id=1;expires=30";
    let other_flow = "<sip:y@198.51.100.2>;+sip.instance=\"<urn:uuid:1>\";reg-id=2;expires=40";
    for (contacts, seconds) in [
        ([by_uri, by_line, by_instance, other_flow].join(","), 30),
        ([by_uri, by_line, other_flow].join(","), 20),
        ([by_uri, other_flow].join(","), 3600),
    ] {
        let grant = granted(&format!("Contact: {contacts}\r\n"), ours);
        assert_eq!(grant.seconds, seconds, "{contacts}");
    }
}

#[test]
fn a_binding_of_another_flow_is_not_ours_though_its_uri_is() {
    let device = Sent {
        instance: Some("<urn:x>"),
        reg_id: Some("1"),
        ..sent(SENT)
    };
    let other =
        "Contact: <sip:alice@192.0.2.1:5060>;expires=60;+sip.instance=\"<urn:x>\";reg-id=2\r\n";
    assert!(!granted(other, device).confirmed);
    assert!(!lives_on(&answer(other), device));
}

#[test]
fn what_another_instance_has_bound_with_our_uri_is_not_what_was_removed() {
    let device = Sent {
        instance: Some("<urn:x>"),
        reg_id: Some("1"),
        ..sent(SENT)
    };
    let listed = |instance: &str| {
        format!("Contact: <sip:alice@192.0.2.1:5060>;expires=60{instance};reg-id=1\r\n")
    };
    for (instance, ours) in [
        (";+sip.instance=\"<urn:x>\"", true),
        (";+sip.instance=\"<URN:X>\"", true),
        ("", true),
        (";+sip.instance=\"<urn:y>\"", false),
    ] {
        let answer = answer(&listed(instance));
        assert_eq!(lives_on(&answer, device), ours, "{instance}");
    }
}

#[test]
fn what_an_earlier_connection_has_bound_shortens_nothing() {
    let device = Sent {
        instance: Some("<urn:x>"),
        reg_id: Some("1"),
        ..sent("sip:alice@192.0.2.1:40002;transport=TCP")
    };
    let before =
        "<sip:alice@192.0.2.1:40001;transport=TCP>;expires=4;+sip.instance=\"<urn:x>\";reg-id=1";
    let now =
        "<sip:alice@192.0.2.1:40002;transport=TCP>;expires=3600;+sip.instance=\"<urn:x>\";reg-id=1";
    let both = granted(&format!("Contact: {before}, {now}\r\n"), device);
    assert_eq!(both.seconds, 3600);
    assert!(!lives_on(
        &answer(&format!("Contact: {before}\r\n")),
        device
    ));
    // A sole one whose address was rewritten is ours.
    let rewritten = granted(&format!("Contact: {before}\r\n"), device);
    assert!(rewritten.confirmed && rewritten.seconds == 4);
}

#[test]
fn our_parameters_are_known_again_where_the_brackets_are_gone() {
    let ours = Sent {
        line: Some("abcdefg"),
        ..sent("sip:alice@192.0.2.1:5060;transport=TCP;line=abcdefg;ob")
    };
    let plain = sent("sip:alice@192.0.2.1:5060;transport=TCP");
    for (sent, contact, seconds) in [
        (
            plain,
            "sip:alice@192.0.2.1:5060;transport=TCP;expires=50",
            50,
        ),
        (
            plain,
            "sip:alice@192.0.2.1:5060;expires=50;q=1;transport=tcp",
            50,
        ),
        (plain, "sip:alice@198.51.100.1;transport=TCP;expires=50", 50),
        // Not the same: another transport, another user.
        (
            plain,
            "sip:alice@192.0.2.1:5060;transport=UDP;expires=50",
            3600,
        ),
        (
            plain,
            "sip:bob@192.0.2.1:5060;transport=TCP;expires=50",
            3600,
        ),
        // In brackets they are the header's, as it says.
        (
            plain,
            "<sip:alice@192.0.2.1:5060>;transport=TCP;expires=50",
            3600,
        ),
        (
            ours,
            "sip:bob@198.51.100.1;expires=10, sip:s@198.51.100.1;line=abcdefg;expires=50",
            50,
        ),
    ] {
        let grant = granted(&format!("Contact: {contact}\r\n"), sent);
        let wanted = (seconds, seconds == 50);
        assert_eq!((grant.seconds, grant.confirmed), wanted, "{contact}");
    }
}

#[test]
fn what_is_odd_is_warned_of() {
    for (headers, count) in [
        ("Contact: <sip:alice@192.0.2.1:5060>;expires=10\r\n", 0),
        ("Contact: <sip:alice@192.0.2.1:5060>;expires=9\r\n", 1),
        ("Contact: <sip:alice@192.0.2.1:5060>;expires=604800\r\n", 0),
        ("Contact: <sip:alice@192.0.2.1:5060>;expires=604801\r\n", 1),
        ("Contact: <sip:alice@192.0.2.1:5060>;expires=x\r\n", 1),
        ("Contact: <sip:bob@192.0.2.1:5060>;expires=x\r\n", 1),
    ] {
        assert_eq!(
            granted(headers, sent(SENT)).warnings.len(),
            count,
            "{headers}"
        );
    }
}

#[test]
fn without_an_expires_header_an_hour_is_assumed() {
    assert_eq!(grant(&answer(""), sent(SENT), u32::MAX).seconds, 3600);
}

/// A registration without flows, and with nothing left behind
const ALONE: Device<'_> = Device {
    flows: None,
    left: &[],
    beside: &[],
};

#[test]
fn a_listing_marks_what_is_ours() {
    let listed = bindings(
        &answer("Contact: <sip:bob@192.0.2.1>;expires=5, <sip:alice@192.0.2.1:5060>;expires=9\r\n"),
        sent(SENT),
        ALONE,
    );
    let ours: Vec<_> = listed.iter().map(|one| (one.ours, one.expires)).collect();
    assert_eq!(ours, [(false, Some(5)), (true, Some(9))]);
}

#[test]
fn what_this_device_has_left_behind_is_told_from_what_is_anothers() {
    let all = answer(concat!(
        "Contact: <sip:alice@192.0.2.1:5060>;+sip.instance=\"<urn:us>\";reg-id=1;expires=9\r\n",
        "Contact: <sip:alice@192.0.2.1:5062>;+sip.instance=\"<urn:us>\";reg-id=2;expires=9\r\n",
        "Contact: <sip:alice@192.0.2.1:5064>;+sip.instance=\"<urn:us>\";reg-id=3;expires=9\r\n",
        "Contact: <sip:alice@192.0.2.1:5066>;+sip.instance=\"<urn:us>\";expires=9\r\n",
        "Contact: <sip:alice@192.0.2.7:5060>;+sip.instance=\"<urn:other>\";reg-id=3;expires=9\r\n",
        "Contact: <sip:alice@192.0.2.1:7000>;expires=9\r\n",
        "Contact: <sip:alice@192.0.2.1:7002>;+sip.instance=\"<urn:other>\";expires=9\r\n",
        "Contact: <tel:+15551234>;+sip.instance=\"<urn:us>\";expires=9\r\n",
    ));
    let us = Sent {
        instance: Some("<urn:us>"),
        reg_id: Some("1"),
        ..sent(SENT)
    };
    let device = Device {
        flows: Some(2),
        left: &["sip:alice@192.0.2.1:7000", "sip:alice@192.0.2.1:7002"],
        beside: &[],
    };
    let listed = bindings(&all, us, device);
    let whose: Vec<_> = listed.iter().map(|one| (one.ours, one.stale)).collect();
    let (ours, left, foreign) = ((true, false), (false, true), (false, false));
    assert_eq!(
        whose,
        [ours, ours, left, left, foreign, left, foreign, left]
    );
    assert_eq!(
        removals(&all, us, device),
        [
            "<sip:alice@192.0.2.1:5064>;+sip.instance=\"<urn:us>\";reg-id=3;expires=0",
            "<sip:alice@192.0.2.1:5066>;+sip.instance=\"<urn:us>\";expires=0",
            "<sip:alice@192.0.2.1:7000>;expires=0",
        ]
        .map(Box::<str>::from)
    );
    // Who has no instance knows nothing of earlier runs.
    let listed = bindings(&all, sent(SENT), ALONE);
    assert!(listed.iter().all(|one| !one.stale));
    assert_eq!(removals(&all, sent(SENT), ALONE), []);
}
