use super::*;
use crate::ParamValue;
use assert_matches::assert_matches;

fn response(text: impl AsRef<[u8]>) -> Response {
    Response::parse(Bytes::copy_from_slice(text.as_ref())).unwrap()
}

/// A response with these header lines.
fn with(headers: &str) -> Response {
    response(format!("SIP/2.0 200 OK\r\n{headers}\r\n\r\n"))
}

#[test]
fn a_status_line_is_read_in_any_form_that_is_clear() {
    for (line, code, reason) in [
        ("SIP/2.0 200 OK", 200, "OK"),
        ("sip/2.0 401 ", 401, ""),
        ("SIP/2.0 200", 200, ""),
        (
            "\r\n\r\nSIP/2.0  403  Account locked  ",
            403,
            "Account locked",
        ),
        ("SIP/2.0 699 50% \u{2713}", 699, "50% \u{2713}"),
    ] {
        let response = response(line);
        assert_eq!(
            (response.code(), &*response.reason()),
            (code, reason),
            "{line}"
        );
    }
    assert_eq!(
        response("SIP/2.0 200 OK\r\nA: b").status_line(),
        "SIP/2.0 200 OK"
    );
}

#[test]
fn what_is_no_sip_is_refused() {
    let error = |text: &str| Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap_err();
    for empty in ["", "\r\n", "\r\n\r\n"] {
        assert_eq!(error(empty), ParseError::Empty);
    }
    for line in [
        "GET / HTTP/1.1",
        "hello",
        "\0\u{1}\u{2}",
        "OPTIONS SIP/2.0",
        "(x) sip:a SIP/2.0",
        " ",
    ] {
        assert_matches!(error(line), ParseError::StartLine { .. }, "{line}");
    }
    for line in [
        "SIP/3.0 200 OK",
        "SIP/2.00 200 OK",
        "OPTIONS sip:a SIP/7.0",
        "SIP/",
    ] {
        assert_matches!(error(line), ParseError::Version { .. }, "{line}");
    }
    for line in [
        "SIP/2.0",
        "SIP/2.0 99 x",
        "SIP/2.0 700 x",
        "SIP/2.0 0200 x",
        "SIP/2.0 200OK",
        "SIP/2.0 -20",
    ] {
        assert_matches!(error(line), ParseError::StatusCode { .. }, "{line}");
    }
    assert_matches!(
        Response::parse(Bytes::from_static(b"A sip:a SIP/2.0")),
        Err(ParseError::StartLine { .. })
    );
    assert_matches!(
        Request::parse(Bytes::from_static(b"SIP/2.0 200 OK")),
        Err(ParseError::StartLine { .. })
    );
}

#[test]
fn an_error_quotes_little_and_no_password() {
    let long = format!("hello sip:a:secret@h {}", "x".repeat(1000));
    let error = Message::parse(Bytes::from(long)).unwrap_err().to_string();
    assert!(error.len() < 150 && !error.contains("secret"), "{error}");
}

#[test]
fn header_fields_are_found_by_long_name_whatever_their_form() {
    let message = response(
        b"SIP/2.0 200 OK\nv : one\r\nVIA:two ,\r\n\tthree  \r\nno header\r\n folded into it\r\n: nameless\r\n\
          Server: \xff\xfe\r\nSubject:\r\n  spread \r\n over lines\r\nX:last",
    );
    assert_eq!(
        message.headers("Via").collect::<Vec<_>>(),
        ["one", "two , three"]
    );
    assert_eq!(
        message.values("via").collect::<Vec<_>>(),
        ["one", "two", "three"]
    );
    assert_eq!(message.header("server").unwrap(), "\u{fffd}\u{fffd}");
    assert_eq!(message.header("Subject").unwrap(), "spread over lines");
    assert_eq!(message.header("X").unwrap(), "last");
    assert_eq!(message.header("Y"), None);
    assert_eq!(message.header_fields().count(), 5);
    assert!(message.body().is_empty());
}

#[test]
fn header_fields_are_bounded() {
    let of = |count: usize| {
        Message::parse(Bytes::from(format!(
            "SIP/2.0 200 OK\r\n{}",
            "a: b\r\n".repeat(count)
        )))
    };
    assert!(of(MAX_FIELDS).is_ok());
    assert_matches!(of(MAX_FIELDS + 1), Err(ParseError::TooManyHeaders));
    let of = |size: usize| {
        Message::parse(Bytes::from(format!(
            "SIP/2.0 200 OK\r\n\r\n{}",
            "x".repeat(size)
        )))
    };
    assert!(of(2 * 65536).is_ok());
    assert_matches!(of(MAX_MESSAGE), Err(ParseError::TooLarge { .. }));
}

#[test]
fn lists_divide_at_commas_outside_quotes_and_brackets() {
    let message = with("m: \"a, \\\" <b\" <sip:a@h;x=1,2>;q=\"1,\",, sip:b@h,\"open, <sip:c@h>");
    let values: Vec<_> = message.values("Contact").collect();
    assert_eq!(
        values,
        [
            "\"a, \\\" <b\" <sip:a@h;x=1,2>;q=\"1,\"",
            "sip:b@h",
            "\"open, <sip:c@h>"
        ]
    );
    assert_eq!(
        message
            .contacts()
            .map(|contact| contact.uri().to_owned())
            .collect::<Vec<_>>(),
        ["sip:a@h;x=1,2", "sip:b@h"]
    );
}

#[test]
fn the_body_is_as_long_as_content_length_or_all_there_is() {
    for (length, body) in [
        ("l: 3", "bod"),
        ("Content-Length: 0", ""),
        ("Content-Length: 4\r\nl: 4", "body"),
        ("X: y", "body+"),
        ("l: 9", "body+"),
        ("l: -1", "body+"),
        ("l: 1\r\nl: 2", "body+"),
        ("l: 99999999999999999999", "body+"),
    ] {
        assert_eq!(
            response(format!("SIP/2.0 200 OK\r\n{length}\r\n\r\nbody+")).body(),
            body,
            "{length}"
        );
    }
}

#[test]
fn the_topmost_via_is_read() {
    let via = |value: &str| with(&format!("Via: {value}")).via();
    let full = via(
        "SIP / 2.0 / UDP  [2001:db8::9:1] : 5070 ; branch = z9hG4bKx;Received=[2001:db8::2];rport=5061, SIP/2.0/TCP h",
    )
    .unwrap();
    assert_eq!(
        (full.protocol.as_str(), full.transport.as_str()),
        ("SIP/2.0", "UDP")
    );
    assert_eq!(
        (full.host.as_str(), full.port),
        ("2001:db8::9:1", Some(5070))
    );
    assert_eq!(full.branch.as_deref(), Some("z9hG4bKx"));
    assert_eq!(full.received.as_deref(), Some("2001:db8::2"));
    assert_eq!(full.rport, Some(Some(5061)));

    let least = via("SIP/2.0/WSS h.invalid;rport;received=2001:db8::9:255").unwrap();
    assert_eq!(
        (least.port, least.branch, least.rport),
        (None, None, Some(None))
    );
    assert_eq!(least.received.as_deref(), Some("2001:db8::9:255"));
    assert_eq!(
        via("SIP/2.0/UDP 2001:db8::1;branch=b").unwrap().host,
        "2001:db8::1"
    );
    for bad in [
        "",
        "SIP/2.0/UDP",
        "SIP/2.0 h",
        "SIP/2.0/UDP h:",
        "SIP/2.0/UDP h:99999",
        "SIP/2.0/UDP [::1",
        "SIP/2.0/UDP a b",
    ] {
        assert_eq!(via(bad), None, "{bad}");
    }
    assert_eq!(with("v: a, b\r\nVia: c").via_count(), 3);
}

#[test]
fn cseq_is_a_32_bit_number_and_a_method() {
    let cseq = |value: &str| {
        with(&format!("CSeq: {value}"))
            .cseq()
            .map(|(n, method)| (n, method.into_owned()))
    };
    assert_eq!(cseq("0009\r\n  REGISTER"), Some((9, "REGISTER".into())));
    assert_eq!(cseq("4294967295\tX-Y"), Some((u32::MAX, "X-Y".into())));
    for bad in [
        "4294967296 REGISTER",
        "-1 REGISTER",
        "1",
        "REGISTER",
        "1REGISTER",
        "1 A B",
        "",
    ] {
        assert_eq!(cseq(bad), None, "{bad}");
    }
}

#[test]
fn addresses_keep_uri_and_header_parameters_apart() {
    for (value, display, uri, params) in [
        (
            "<sip:a@h;lr>;expires=60",
            None,
            "sip:a@h;lr",
            vec![("expires", ParamValue::Token("60"))],
        ),
        (
            "sip:a@h;transport=tcp ; expires = \"60\"",
            None,
            "sip:a@h",
            vec![
                ("transport", ParamValue::Token("tcp")),
                ("expires", ParamValue::Quoted("60".into())),
            ],
        ),
        (
            "\"A < \\\"B\\\"\" <sip:a@h> ;ob;x=",
            Some("A < \"B\""),
            "sip:a@h",
            vec![("ob", ParamValue::Flag), ("x", ParamValue::Token(""))],
        ),
        ("Alice B<tel:+1555>", Some("Alice B"), "tel:+1555", vec![]),
        (
            "sip:a@h;+sip.instance=\"<urn:uuid:1;2>\"",
            None,
            "sip:a@h",
            vec![("+sip.instance", ParamValue::Quoted("<urn:uuid:1;2>".into()))],
        ),
    ] {
        let message = with(&format!("To: {value}"));
        let address = message.name_addr("To").unwrap();
        assert_eq!(address.display_name().as_deref(), display, "{value}");
        assert_eq!(address.uri(), uri, "{value}");
        assert_eq!(address.params().collect::<Vec<_>>(), params, "{value}");
    }
    for bad in ["", "\"open <sip:a@h>", "<sip:a@h", "<>", "\"name only\""] {
        assert!(
            with(&format!("To: {bad}")).name_addr("To").is_none(),
            "{bad}"
        );
    }
    let star = with("Contact: *");
    assert!(star.contacts().all(|contact| contact.is_star()) && star.contacts().count() == 1);
    assert!(
        !with("Contact: <*>")
            .contacts()
            .any(|contact| contact.is_star())
    );
    assert_eq!(
        with("t: <sip:a@h>;TAG= x ").tag_of("To").as_deref(),
        Some("x")
    );
    assert_eq!(with("t: <sip:a@h;tag=y>").tag_of("To"), None);
}

#[test]
fn seconds_are_digits_and_retry_after_may_go_on() {
    for (value, retry_after, delta_seconds) in [
        ("60 ", Some(60), Some(60)),
        ("18000;duration=3600", Some(18000), None),
        ("120 (I'm in a meeting)", Some(120), None),
        ("4294967296", Some(u32::MAX), None),
        ("60s", None, None),
        ("-1", None, None),
        ("\"60\"", None, None),
        ("", None, None),
    ] {
        let message = with(&format!("Retry-After: {value}"));
        assert_eq!(message.retry_after(), retry_after, "{value}");
        assert_eq!(
            message.delta_seconds("Retry-After"),
            delta_seconds,
            "{value}"
        );
    }
    assert_eq!(
        with("k: path , outbound,\r\nSupported: gruu").option_tags("Supported"),
        ["path", "outbound", "gruu"]
    );
}

#[test]
fn debug_shows_no_header_values() {
    let message = with("WWW-Authenticate: Digest nonce=\"abc\"");
    assert_eq!(format!("{message:?}"), "Response(\"SIP/2.0 200 OK\")");
}

#[test]
fn no_bytes_make_a_reader_panic() {
    let seed = b"SIP/2.0 200 OK\r\nv: SIP/2.0/UDP [::1]:5060;branch=\"x\\\"\"\r\nm: \"a\" <sip:a@h>;q=1,*\r\n\
        CSeq: 1 REGISTER\r\ni: x\r\nf: a\r\nt: b;tag=c\r\nl: 2\r\nRetry-After: 5\r\n\r\nxy";
    let read = |bytes: &[u8]| {
        let Ok(message) = Message::parse(Bytes::copy_from_slice(bytes)) else {
            return;
        };
        let headers: &Headers = match &message {
            Message::Request(request) => {
                let _ = (request.validate(), request.uri());
                request
            }
            Message::Response(response) => {
                let _ = (response.validate(), response.reason());
                response
            }
        };
        let _ = (
            headers.via(),
            headers.cseq(),
            headers.tag_of("To"),
            headers.retry_after(),
            headers.body(),
        );
        headers.contacts().for_each(|contact| {
            drop((
                contact.param("q"),
                contact.display_name(),
                format!("{contact:?}"),
            ))
        });
        headers.header_fields().for_each(drop);
    };
    for at in 0..seed.len() {
        read(&seed[..at]);
        for byte in *b"\0\r\n \"\\<>;:,=/[]\xff\xc3" {
            let mut bytes = seed.to_vec();
            bytes[at] = byte;
            read(&bytes);
            bytes.insert(at, byte);
            read(&bytes);
            bytes.splice(..14, *b"A sip:a SIP/2.0");
            read(&bytes);
        }
    }
}
