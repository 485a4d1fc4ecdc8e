//! D24 and D26: which registration a request is for, and trunks that register a whole number block; 439.

use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::net::SocketAddr;
use std::time::Duration;

fn account() -> RegistrationBuilder {
    Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

fn registrar() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], 5060))
}

#[test]
fn the_line_token_finds_registration_and_endpoint() {
    let trunk = |endpoint: &str| built(account().line(true).endpoint(endpoint));
    let mut sim = Sim::many([trunk("one"), trunk("two")]);
    let uris: Vec<String> = sim
        .all_sent()
        .iter()
        .map(|request| {
            request
                .contacts()
                .next()
                .expect("a Contact")
                .uri()
                .to_owned()
        })
        .collect();
    let ids = sim.ids().to_vec();
    for (at, endpoint) in ["one", "two"].into_iter().enumerate() {
        // In the Request-URI, or in To, which goes first.
        for (uri, to) in [
            (uris[at].clone(), "<sip:x@y>".to_owned()),
            ("sip:s@z".to_owned(), format!("<{}>", uris[at])),
        ] {
            let found = sim.pool().matches(&uri, &to, registrar()).expect("a match");
            assert_eq!(found.registration, ids[at]);
            assert_eq!(found.endpoint.as_deref(), Some(endpoint));
        }
    }
    assert_eq!(
        sim.pool()
            .matches("sip:s@z;line=", "<sip:x@y>", registrar()),
        None
    );
    assert_eq!(
        sim.pool()
            .matches("sip:s@z;line=zzzzzzz", "<sip:x@y>", registrar()),
        None
    );
}

#[test]
fn a_contact_user_that_two_registrations_share_belongs_to_neither() {
    let user = |name: &str| built(account().contact_user(name));
    let mut sim = Sim::many([user("anna"), user("bob"), user("bob")]);
    for request in sim.all_sent() {
        sim.reply(&request, Reply::granted(600));
    }
    let found = |user: &str| {
        sim.pool()
            .matches(&format!("sip:{user}@192.0.2.1"), "<sip:x@y>", registrar())
    };
    assert_eq!(
        found("anna").map(|found| found.registration),
        Some(sim.ids()[0])
    );
    assert_eq!(found("bob"), None);
    assert_eq!(found("nobody"), None);
    let elsewhere = SocketAddr::from(([198, 51, 100, 7], 5060));
    assert_eq!(
        sim.pool()
            .matches("sip:anna@192.0.2.1", "<sip:x@y>", elsewhere),
        None
    );
}

#[test]
fn a_number_block_is_registered_as_rfc_6140_says() {
    let trunk = account()
        .contact_user(ContactUser::None)
        .contact_uri_params("bnc")
        .require("gin")
        .proxy_require("gin")
        .supported("path");
    let mut sim = Sim::new(built(trunk));
    let register = sim.sent();
    assert_eq!(register.text_of("Contact"), "<sip:192.0.2.1:5060;bnc>");
    assert_eq!(register.text_of("Require"), "gin");
    assert_eq!(register.text_of("Proxy-Require"), "gin");
    // D19: gin is never dropped.
    sim.reply(&register, Reply::status(420).header("Unsupported", "gin"));
    assert!(sim.is_silent());
}

#[test]
fn a_439_is_answered_once_without_outbound() {
    let mut sim = Sim::new(built(account().support_outbound(true).support_path(true)));
    let first = sim.sent();
    assert_eq!(first.text_of("Supported"), "path, outbound");
    sim.reply(&first, Reply::status(439));
    let second = sim.sent();
    assert_eq!(second.text_of("Supported"), "path");
    sim.reply(&second, Reply::status(439));
    assert!(sim.is_silent());
}

#[test]
fn the_topmost_challenge_that_is_allowed_is_answered_once_a_realm() {
    let challenge = |algorithm: &str| {
        format!("Digest realm=\"r\", nonce=\"{algorithm}\", qop=\"auth\", algorithm={algorithm}")
    };
    for (offered, taken) in [
        (&["FOO-9", "SHA-512-256", "MD5"][..], "SHA-512-256"),
        (&["SHA-256", "SHA-512-256", "MD5"][..], "SHA-256"),
        (&["MD5", "SHA-256"][..], "MD5"),
    ] {
        let mut sim = Sim::new(built(
            account().outbound_auth(Credentials::password("alice", "secret")),
        ));
        let first = sim.sent();
        let reply = offered.iter().fold(Reply::status(401), |reply, name| {
            reply.header("WWW-Authenticate", &challenge(name))
        });
        sim.reply(&first, reply);
        let second = sim.sent();
        assert_eq!(second.headers("Authorization").count(), 1);
        let answer = second.text_of("Authorization");
        assert!(
            answer.contains(&format!("algorithm={taken},")),
            "{offered:?}: {answer}"
        );
        let warned = sim
            .events()
            .iter()
            .any(|event| matches!(event, Event::Warning(Warning::WeakAlgorithm(_))));
        assert_eq!(warned, taken == "MD5");
    }
}
