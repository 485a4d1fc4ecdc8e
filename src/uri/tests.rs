use super::*;
use assert_matches::assert_matches;

fn uri(text: &str) -> SipUri {
    SipUri::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn components_are_as_they_were_written() {
    let full =
        uri("sips:a.b+1;x=y:pa$s@[2001:DB8::1]:5061;transport=foo;LR;x=a:b/[::1]?To=a%20b&x=");
    assert_eq!(full.scheme(), Scheme::Sips);
    assert_eq!(full.user(), Some("a.b+1;x=y"));
    assert_eq!(full.password(), Some("pa$s"));
    assert_eq!(full.host(), "2001:DB8::1");
    assert_eq!(full.host_text(), "[2001:DB8::1]");
    assert_eq!(full.ip(), Some("2001:db8::1".parse().unwrap()));
    assert_eq!(full.port(), Some(5061));
    assert_eq!(
        full.params().collect::<Vec<_>>(),
        [
            ("transport", Some("foo")),
            ("LR", None),
            ("x", Some("a:b/[::1]"))
        ]
    );
    assert_eq!(full.transport(), Some("foo"));
    assert_eq!(full.param("lr"), Some(None));
    assert!(!full.has_param("gr"));
    assert_eq!(full.headers(), Some("To=a%20b&x="));

    let least = uri("sip:example.com");
    assert_eq!(
        (least.user(), least.password(), least.port()),
        (None, None, None)
    );
    assert_eq!(
        (least.params().count(), least.headers(), least.ip()),
        (0, None, None)
    );
    assert_eq!(uri("sip:a:@h").password(), Some(""));
    assert_eq!(uri("sip:a@h").password(), None);
}

#[test]
fn legal_uris_are_kept_as_they_are() {
    for text in [
        "sip:john.doe@example.com",
        "SIP:a@EXAMPLE.com.",
        "sip:+1.555@192.0.2.1:5060",
        "sip:a@h;gr=urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "sip:a@h;x-ast-orig-host=10.0.0.1:5060",
        "sip:a@h;maddr=[2001:db8::1];x=$&+/",
        "sip:a@h;x=\"q;?\\\"@\";y",
        "sip:a@h?X-H=1",
        "sip:[::ffff:192.0.2.1]",
        "sip:user@[2001:db8:::192.0.2.1]",
        "sip:a_b@my_pbx-1",
        "sip:%00@3com.example",
        "sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com",
    ] {
        assert_eq!(uri(text).as_str(), text);
        assert_eq!(uri(&format!("<{text}>")).to_string(), text);
    }
}

#[test]
fn what_is_no_uri_is_refused_with_the_rule() {
    for (text, rule) in [
        ("tel:+1555", "does not start with sip:"),
        ("example.com", "does not start with sip:"),
        ("", "does not start with sip:"),
        ("sip:", "empty host"),
        ("sip:a@", "empty host"),
        ("sip:@h", "empty user"),
        ("sip:a@:5060", "empty host"),
        ("sip:a b@h", "character in its user"),
        ("sip:a\r\n@h", "character in its user"),
        ("sip:jörg@h", "character in its user"),
        ("sip:a#@h", "character in its user"),
        ("sip:a%4@h", "% without two hexadecimal digits in its user"),
        ("sip:a%zz@h", "% without two hexadecimal digits in its user"),
        ("sip:a:p w@h", "character in its password"),
        ("sip:a@exa mple.com", "as host"),
        ("sip:a@h garbage", "as host"),
        ("sip:a@h>", "as host"),
        ("<sip:a@h", "does not start with sip:"),
        (" sip:a@h", "does not start with sip:"),
        ("sip:a@b@h", "\"***\" as host"),
        ("sip:a@-h.com", "as host"),
        ("sip:a@h..com", "as host"),
        ("sip:a@256.1.1.1", "as host"),
        ("sip:a@1.2.3", "as host"),
        ("sip:a@bücher.example", "as host"),
        ("sip:2001:db8::10", "as host"),
        ("sip:a@[2001:db8::1", "as host"),
        ("sip:a@[2001:db8::1]x", "as port"),
        ("sip:a@[192.0.2.1]", "as host"),
        ("sip:a@[fe80::1%eth0]", "IPv6 zone"),
        ("sip:a@h:", "as port"),
        ("sip:a@h:0", "as port"),
        ("sip:a@h:65536", "as port"),
        ("sip:a@h:+5060", "as port"),
        ("sip:a@h;", "empty parameter name"),
        ("sip:a@h;;lr", "empty parameter name"),
        ("sip:a@h;x=", "empty parameter value"),
        ("sip:a@h;x=a b", "character in its parameter value"),
        ("sip:a@h;x=\"a", "character in its quoted"),
        ("sip:a@h;x=\"a\\\"", "character in its quoted"),
        ("sip:a@h;x=\"a\"b\"", "character in its quoted"),
        ("sip:a@h;x=\"a b\"", "character in its quoted"),
        ("sip:a@h;lr;LR", "twice"),
        ("sip:a@h?x", "empty header"),
        ("sip:a@h?x=\u{7f}", "character in its header value"),
    ] {
        let error = SipUri::parse(text).expect_err(text).to_string();
        assert!(error.contains(rule), "{text}: {error}");
    }
    assert_matches!(
        SipUri::parse(&format!("sip:{}", "a".repeat(5000))),
        Err(UriError::TooLong { .. })
    );
}

#[test]
fn a_password_is_in_no_debug_text_and_no_error() {
    assert_eq!(format!("{:?}", uri("sip:a:secret@h;lr")), "sip:a:***@h;lr");
    assert_eq!(
        format!("{:?}", uri("sip:a:secret@h;x=y?X-Token=t0ken%40h&To=")),
        "sip:a:***@h;x=y?X-Token=***&To=***"
    );
    for text in [
        "sip:a:secret@",
        "sip:a:sec ret@h",
        "sip:a:secret@x@h",
        "a:secret@h",
        " sip:a:secret@h",
        "sips:a:se\"cret@h",
        "sip:a:x@cret@h",
        "sip:a:se\"c;cret;cret@h",
    ] {
        let error = SipUri::parse(text).expect_err(text);
        assert!(!format!("{error} {error:?}").contains("cret"), "{error}");
    }
}

/// The sets of RFC 3261 §19.1.4, and one more for each rule.
#[test]
fn equivalence_is_that_of_the_rfc() {
    for (left, right, equivalent) in [
        (
            "sip:%61lice@atlanta.com;transport=TCP",
            "sip:alice@AtLanTa.CoM;Transport=tcp",
            true,
        ),
        (
            "sip:carol@chicago.com",
            "sip:carol@chicago.com;newparam=5",
            true,
        ),
        (
            "sip:carol@chicago.com",
            "sip:carol@chicago.com;security=on",
            true,
        ),
        (
            "sip:carol@chicago.com;newparam=5",
            "sip:carol@chicago.com;security=on",
            true,
        ),
        (
            "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
            "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
            true,
        ),
        (
            "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
            "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
            true,
        ),
        (
            "SIP:ALICE@AtLanTa.CoM;Transport=udp",
            "sip:alice@AtLanTa.CoM;Transport=UDP",
            false,
        ),
        ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060", false),
        (
            "sip:bob@biloxi.com",
            "sip:bob@biloxi.com;transport=udp",
            false,
        ),
        (
            "sip:bob@biloxi.com",
            "sip:bob@biloxi.com:6000;transport=tcp",
            false,
        ),
        (
            "sip:carol@chicago.com",
            "sip:carol@chicago.com?Subject=next%20meeting",
            false,
        ),
        ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4", false),
        (
            "sip:carol@chicago.com;security=on",
            "sip:carol@chicago.com;security=off",
            false,
        ),
        ("sip:a@h", "sips:a@h", false),
        ("sip:a@h", "sip:h", false),
        ("sip:a:p@h", "sip:a@h", false),
        ("sip:a:p@h", "sip:a:P@h", false),
        ("sip:a@h;user=phone", "sip:a@h", false),
        ("sip:a@h;ttl=1", "sip:a@h", false),
        ("sip:a@h;maddr=192.0.2.1", "sip:a@h", false),
        ("sip:a@h", "sip:a@h;method=INVITE", false),
        ("sip:a@h;lr", "sip:a@h;lr=on", false),
        ("sip:a%3bb@h", "sip:a%3Bb@h", true),
        ("sip:a;b@h", "sip:a%3Bb@h", false),
        ("sip:a%2541@h", "sip:a%41@h", false),
        ("sip:a@[2001:DB8::1]", "sip:a@[2001:db8:0::1]", true),
        ("sip:a@h?x=1&x=1&y=2", "sip:a@h?x=1&y=2&y=2", false),
    ] {
        assert_eq!(
            uri(left).is_equivalent(&uri(right)),
            equivalent,
            "{left} {right}"
        );
        assert_eq!(
            uri(right).is_equivalent(&uri(left)),
            equivalent,
            "{right} {left}"
        );
    }
}

#[test]
fn whatever_reads_as_a_uri_can_be_given_to_a_builder() {
    fn take<S: TryInto<SipUri, Error: Into<UriError>>>(uri: S) -> Result<SipUri, UriError> {
        uri.try_into().map_err(Into::into)
    }
    let text = String::from("sip:a@h");
    let parsed = uri(&text);
    for taken in [
        take("sip:a@h"),
        take(&text),
        take(text.clone()),
        take(&parsed),
        take(parsed.clone()),
    ] {
        assert_eq!(taken, Ok(parsed.clone()));
    }
    assert_matches!(take("sip:"), Err(UriError::Empty { part: "host", .. }));
}
