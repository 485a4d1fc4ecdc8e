//! What a registration makes of WebSocket (RFC 7118): what it says of itself, and how it knows that it is still heard.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::time::Duration;

const HOST: &str = "df7jal23ls0d.invalid";

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn builder(server: &str) -> RegistrationBuilder {
    Registration::builder(server, "sip:alice@example.com")
        .contact_user("alice")
        .max_random_initial_delay(Duration::ZERO)
}

/// An agent with both WebSockets, whose flows are as those of the built-in transport.
fn sim(registration: RegistrationBuilder) -> Sim {
    let mut sim = Sim::many([]);
    sim.with(|pool, _| {
        pool.add_transport("ws", &[Protocol::Ws]);
        pool.add_transport("wss", &[Protocol::Wss]);
    });
    sim.dress_flows(|info| match info.protocol() {
        Protocol::Ws | Protocol::Wss => info.with_sent_by(HOST).with_contact(HOST),
        _ => info,
    });
    sim.add(registration.build().expect("a good configuration"));
    sim
}

/// The same, registered for an hour.
fn registered(registration: RegistrationBuilder) -> (Sim, FlowId) {
    let mut sim = sim(registration);
    let request = sim.sent();
    sim.reply(&request, Reply::granted(3600));
    assert_matches!(&sim.events()[..], [Event::Registered(_)]);
    (sim, request.flow())
}

/// Runs until the next ping; when it went out.
fn pinged(sim: &mut Sim) -> Duration {
    loop {
        if let [ping] = &sim.keep_alives()[..] {
            assert_eq!(ping.message, &b"\r\n\r\n"[..]);
            return ping.at;
        }
        let next = sim.deadline().expect("a keep-alive");
        sim.advance(next);
    }
}

#[test]
fn via_names_the_protocol_and_contact_the_parameter() {
    for (server, target, via, contact) in [
        ("sip:192.0.2.9;transport=ws", "WS 192.0.2.9:80", "WS", "sip"),
        (
            "sip:192.0.2.9;transport=wss",
            "WSS 192.0.2.9:443",
            "WSS",
            "sip",
        ),
        (
            "sips:192.0.2.9;transport=ws",
            "WSS 192.0.2.9:443",
            "WSS",
            "sips",
        ),
        ("sips:192.0.2.9:8443", "WSS 192.0.2.9:8443", "WSS", "sips"),
    ] {
        let mut sim = sim(builder(server));
        let request = sim.sent();
        assert_eq!(request.target().to_string(), target);
        let said = request.text_of("Via");
        assert!(
            said.starts_with(&format!("SIP/2.0/{via} {HOST};")),
            "{said}"
        );
        // RFC 7118 §5.2, §8.1: there is no other value, TLS or not.
        let said = request.text_of("Contact");
        let expected = format!("<{contact}:alice@{HOST};transport=ws>");
        assert_eq!(said, expected);
    }
}

#[test]
fn a_websocket_cannot_be_opened_from_both_sides_so_there_is_no_alias() {
    let account = builder("sip:192.0.2.9;transport=ws").policy(Policy::asterisk());
    let mut sim = sim(account);
    while sim.is_silent() {
        let next = sim.deadline().expect("it starts");
        sim.advance(next);
    }
    assert!(!sim.sent().text_of("Via").contains("alias"));
}

#[test]
fn an_answer_is_ours_by_the_invalid_host_with_or_without_received() {
    for reply in [
        Reply::granted(600),
        Reply::granted(600).seen_from("203.0.113.7:1024".parse().expect("an address")),
    ] {
        let mut sim = sim(builder("sip:192.0.2.9;transport=ws"));
        let request = sim.sent();
        sim.reply(&request, reply);
        assert_matches!(&sim.events()[..], [Event::Registered(_)]);
        // Where a proxy saw us is no address of ours (RFC 7118 §5.3).
        sim.input(Input::Refresh);
        assert!(sim.sent().text_of("Contact").contains(HOST));
    }
}

#[test]
fn a_long_request_has_no_other_way_to_go() {
    let long = "x".repeat(2000);
    let mut sim = sim(builder("sip:192.0.2.9;transport=ws").header("X-Long", &long));
    let request = sim.sent();
    assert_eq!(request.target().protocol(), Protocol::Ws);
    sim.reply(&request, Reply::granted(3600));
    assert_matches!(&sim.events()[..], [Event::Registered(_)]);
}

#[test]
fn a_ping_whose_pong_is_missing_ends_the_flow_and_the_binding_is_replaced() {
    // Nothing was negotiated: WebSocket itself has it that a Ping is answered (RFC 6455 §5.5.2).
    for policy in [Policy::default(), Policy::persistent()] {
        let account = builder("sip:192.0.2.9;transport=ws").policy(policy);
        let (mut sim, flow) = registered(account);
        let at = pinged(&mut sim);
        assert!((secs(95)..=secs(120)).contains(&at), "{at:?}");
        sim.advance(Duration::from_millis(9_999));
        assert_eq!(sim.events(), []);
        sim.advance(Duration::from_millis(1));
        assert_matches!(
            &sim.events()[..],
            [Event::FlowLost { error: FlowError::KeepAliveUnanswered(within), .. }] if *within == secs(10)
        );
        assert_eq!(sim.closed(), [flow]);
        sim.advance(secs(1));
        let again = sim.sent();
        assert_ne!(again.flow(), flow);
        // The host is the same, so there is no other Contact to take away.
        let contacts: Vec<_> = again.headers("Contact").collect();
        assert_eq!(contacts, [format!("<sip:alice@{HOST};transport=ws>")]);
        sim.reply(&again, Reply::granted(3600));
        assert_matches!(
            &sim.events()[..],
            [.., Event::Registered(_) | Event::Refreshed(_)]
        );
        assert!(sim.status().is_registered());
    }
}

#[test]
fn pongs_keep_the_flow() {
    let (mut sim, flow) = registered(builder("sip:192.0.2.9;transport=wss"));
    for _ in 0..5 {
        let before = sim.elapsed();
        let at = pinged(&mut sim);
        assert!(at - before <= secs(120));
        sim.pong(flow);
    }
    assert_eq!(sim.events(), []);
    assert_eq!(sim.closed(), []);
}

#[test]
fn a_flow_to_one_host_is_none_to_another_at_the_same_address() {
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.add_transport("ws", &[Protocol::Ws]));
    for server in ["a.example", "b.example", "A.Example"] {
        let account = builder(&format!("sip:{server}:8080;transport=ws"));
        sim.add(account.build().expect("a good configuration"));
    }
    // Both names have the address 192.0.2.9; what the server makes of `Host` is its business.
    let requests = sim.all_sent();
    assert_eq!(requests.len(), 3);
    assert_ne!(requests[0].flow(), requests[1].flow());
    assert_eq!(requests[0].flow(), requests[2].flow());
}

#[test]
fn http_that_refuses_is_a_temporary_failure_with_the_status() {
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.add_transport("ws", &[Protocol::Ws]));
    let refused = FlowError::WebSocket(WsError::Refused {
        status: 404,
        reason: "Not Found".into(),
    });
    sim.refuse_next_open(refused.clone());
    let account = builder("sip:192.0.2.9;transport=ws").build();
    sim.add(account.expect("a good configuration"));
    let events = sim.events();
    assert_matches!(
        &events[..],
        [Event::Rejected { failure: Failure::Flow(error), class: FailureClass::Temporary, .. }] if *error == refused
    );
    let text = events[0].to_string();
    assert!(text.contains("HTTP 404 Not Found"), "{text}");
}
