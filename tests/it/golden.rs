//! What we write, byte for byte, under a fixed seed: header order and forms of the reference.
//!
//! The files were read by a person against BEHAVIOUR §2 and RFC 3261 before they were kept. A change that is meant
//! is written anew with `BLESS=1 cargo test --test it golden`.

use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::path::PathBuf;
use std::time::Duration;

fn compare(name: &str, sent: &SentRequest) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/golden")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, sent.bytes()).expect("the golden file can be written");
    }
    let expected =
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(sent.text(), String::from_utf8_lossy(&expected), "{name}");
    assert_eq!(sent.bytes(), &expected[..], "{name}");
}

fn account(server: &str) -> RegistrationBuilder {
    Registration::builder(server, "sip:alice.smith@example.com:5070;transport=udp")
        .outbound_auth(Credentials::password("alice", "secret"))
        .user_agent("golden/1")
        .contact_user("alice")
        .max_random_initial_delay(Duration::ZERO)
}

fn start(builder: RegistrationBuilder) -> (Sim, SentRequest) {
    let mut sim = Sim::seeded([42; 32], [builder.build().expect("a good configuration")]);
    let first = sim.sent();
    (sim, first)
}

#[test]
fn a_plain_register_over_udp() {
    let (_, first) = start(account("sip:192.0.2.9").allow(["INVITE", "ACK", "BYE"]));
    compare("plain-udp.sip", &first);
}

#[test]
fn an_authenticated_register_and_its_unregister() {
    let (mut sim, first) = start(account("sip:192.0.2.9").allow(["INVITE"]));
    let challenge = "Digest realm=\"example.com\", nonce=\"abc\", algorithm=SHA-256, opaque=\"o\", qop=\"auth,auth-int\"";
    sim.reply(
        &first,
        Reply::status(401).header("WWW-Authenticate", challenge),
    );
    let second = sim.sent();
    compare("authenticated-udp.sip", &second);
    sim.reply(&second, Reply::granted(3600));
    sim.input(Input::Stop(Duration::from_secs(35)));
    let unregister = sim.sent();
    compare("unregister-udp.sip", &unregister);
}

#[test]
fn a_register_through_a_proxy_with_path_and_outbound() {
    let builder = account("sip:example.com")
        .outbound_proxy("sip:198.51.100.1:5080;lr")
        .support_path(true)
        .support_outbound(true)
        .line(true)
        .endpoint("trunk")
        .contact_header_params("q=0.5")
        .header("X-Account", "7");
    let (_, first) = start(builder);
    assert_eq!(first.target().address().to_string(), "198.51.100.1:5080");
    compare("proxy-udp.sip", &first);
}

#[test]
fn a_strict_router_takes_the_request_uri() {
    let (_, first) = start(account("sip:example.com").outbound_proxy("sip:198.51.100.1"));
    compare("strict-route-udp.sip", &first);
}

#[test]
fn mediasec_has_a_line_for_each_mechanism_and_verifies_what_the_server_said() {
    let builder = account("sip:192.0.2.9")
        .security_negotiation(SecurityNegotiation::Mediasec)
        .security_mechanisms("sdes-srtp;mediasec, dtls-srtp;mediasec");
    let (mut sim, first) = start(builder);
    compare("mediasec-first-udp.sip", &first);
    let challenge = Reply::challenge("example.com", "n")
        .header("Security-Server", "msrp-tls;mediasec, sdes-srtp;mediasec")
        .header("Security-Server", "dtls-srtp;mediasec");
    sim.reply(&first, challenge);
    compare("mediasec-verify-udp.sip", &sim.sent());
}

#[test]
fn mediasec_after_a_494_verifies_only() {
    let builder = account("sip:192.0.2.9")
        .security_negotiation(SecurityNegotiation::Mediasec)
        .security_mechanisms("sdes-srtp;mediasec");
    let (mut sim, first) = start(builder);
    sim.reply(
        &first,
        Reply::status(494).header("Security-Server", "sdes-srtp;mediasec"),
    );
    compare("mediasec-494-udp.sip", &sim.sent());
}

#[test]
fn tcp_names_its_transport_in_via_and_contact() {
    let (_, first) = start(account("sip:192.0.2.9;transport=tcp"));
    compare("plain-tcp.sip", &first);
}

#[test]
fn ipv6_is_in_brackets_everywhere() {
    let (_, first) = start(account("sip:[2001:db8::9]"));
    compare("plain-ipv6.sip", &first);
}

#[test]
fn the_branch_names_agent_slot_and_generation() {
    let registrations = || {
        account("sip:192.0.2.9")
            .build()
            .expect("a good configuration")
    };
    let mut sim = Sim::seeded([42; 32], [registrations(), registrations()]);
    let sent = sim.all_sent();
    let branch =
        |request: &SentRequest| request.via().and_then(|via| via.branch).expect("a branch");
    let (first, second) = (branch(&sent[0]), branch(&sent[1]));
    let tag = sim.pool().tag();
    assert_eq!(tag.len(), 8);
    for (branch, slot) in [(&first, "00000000"), (&second, "00000001")] {
        let rest = branch
            .strip_prefix("z9hG4bK")
            .and_then(|rest| rest.strip_prefix(&**tag))
            .expect("cookie and tag");
        assert_eq!(&rest[..8], slot);
        assert_eq!(&rest[8..16], "00000000");
        assert_eq!(rest.len(), 32);
    }
    assert_ne!(first[31..], second[31..]);
}
