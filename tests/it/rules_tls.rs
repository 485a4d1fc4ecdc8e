//! What a registration makes of TLS: where `sips` goes, whose connection it is, what its certificates say.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn builder(server: &str) -> RegistrationBuilder {
    Registration::builder(server, "sip:alice@example.com")
        .contact_user("alice")
        .max_random_initial_delay(Duration::ZERO)
}

fn account(server: &str) -> Registration {
    builder(server).build().expect("a good configuration")
}

/// An agent with a TLS transport, which the stage has not by itself.
fn sim(registrations: impl IntoIterator<Item = Registration>) -> Sim {
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.add_transport("tls", &[Protocol::Tls]));
    for registration in registrations {
        sim.add(registration);
    }
    sim
}

fn refresh(sim: &mut Sim) -> Vec<Event> {
    sim.input(Input::Refresh);
    let request = sim.sent();
    sim.reply(&request, Reply::granted(3600));
    sim.events()
}

fn warnings(events: &[Event]) -> Vec<Warning> {
    let warning = |event: &Event| match event {
        Event::Warning(warning) => Some(warning.clone()),
        _ => None,
    };
    events.iter().filter_map(warning).collect()
}

#[test]
fn sips_goes_over_tls_and_its_contact_says_so() {
    for server in [
        "sips:192.0.2.9",
        "sips:192.0.2.9;transport=tcp",
        "sips:192.0.2.9;transport=tls",
    ] {
        let mut sim = sim([account(server)]);
        let request = sim.sent();
        assert_eq!(request.target().to_string(), "TLS 192.0.2.9:5061");
        let contact = request.text_of("Contact");
        assert!(contact.starts_with("<sips:alice@"), "{contact}");
        assert!(request.text_of("Via").starts_with("SIP/2.0/TLS "));
    }
    let mut plain = sim([account("sip:192.0.2.9;transport=tls")]);
    let request = plain.sent();
    assert_eq!(request.target().to_string(), "TLS 192.0.2.9:5061");
    let contact = request.text_of("Contact");
    assert!(contact.starts_with("<sip:alice@") && contact.contains(";transport=TLS"));
}

#[test]
fn sips_never_goes_over_anything_else() {
    let mut sim = sim([account("sips:192.0.2.9;transport=udp")]);
    assert!(sim.is_silent());
    assert_matches!(
        &sim.events()[..],
        [
            ..,
            Event::Rejected {
                failure: Failure::Resolve(_),
                ..
            }
        ]
    );
    let routed = builder("sips:example.com")
        .outbound_proxy("sip:192.0.2.7;lr")
        .build()
        .expect("a good configuration");
    let mut sim = self::sim([routed]);
    let request = sim.sent();
    assert_eq!(request.target().to_string(), "TLS 192.0.2.7:5061");
}

#[test]
fn the_name_to_be_proved_is_the_one_in_the_uri() {
    let mut sim = sim([
        account("sip:example.com;transport=tls;maddr=192.0.2.5"),
        account("sip:[2001:db8::9];transport=tls"),
    ]);
    let hosts: Vec<String> = sim
        .all_sent()
        .iter()
        .map(|request| request.target().host().to_owned())
        .collect();
    assert_eq!(hosts, ["example.com", "2001:db8::9"]);
}

#[test]
fn a_flow_to_one_domain_is_none_to_another_at_the_same_address() {
    let flows = |transport: &str| {
        let servers = ["one.example", "two.example", "ONE.example"];
        let mut sim =
            sim(servers.map(|host| account(&format!("sip:{host};transport={transport}"))));
        let flows: Vec<FlowId> = sim.all_sent().iter().map(|sent| sent.flow()).collect();
        (flows[0] == flows[1], flows[0] == flows[2])
    };
    assert_eq!(flows("tls"), (false, true));
    assert_eq!(flows("tcp"), (true, true));
}

#[test]
fn a_certificate_that_expires_soon_is_told_once_a_flow() {
    // The stage's day is a fixed one.
    fn soon(info: FlowInfo) -> FlowInfo {
        let today = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        info.with_peer_certificate_until(today + 3 * DAY)
            .with_own_certificate_until(today + 400 * DAY)
    }
    let mut sim = sim([]);
    sim.dress_flows(soon);
    sim.add(account("sip:192.0.2.9;transport=tls"));
    let request = sim.sent();
    sim.reply(&request, Reply::granted(3600));
    let events = sim.events();
    assert_matches!(
        warnings(&events)[..],
        [Warning::PeerCertificateExpires(left)] if left <= 3 * DAY && left > 2 * DAY
    );
    assert!(
        events
            .iter()
            .any(|event| event.to_string() == "warning: the peer's certificate expires in 3 days")
    );
    assert_eq!(warnings(&refresh(&mut sim)), []);

    // A new flow is a new connection with the same certificate.
    sim.advance(secs(60));
    sim.fail_flow(request.flow(), FlowError::Closed);
    sim.advance(secs(10));
    let request = sim.sent();
    sim.reply(&request, Reply::granted(3600));
    assert_matches!(
        warnings(&sim.events())[..],
        [Warning::PeerCertificateExpires(_)]
    );
}

#[test]
fn a_certificate_that_comes_to_its_end_on_a_living_flow_is_told_then() {
    fn later(info: FlowInfo) -> FlowInfo {
        let today = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        info.with_own_certificate_until(today + Duration::from_secs(3 * 3600))
    }
    let mut policy = Policy::default();
    policy.certificate_warning = secs(3600);
    let mut sim = sim([]);
    sim.dress_flows(later);
    sim.add(
        builder("sip:192.0.2.9;transport=tls")
            .policy(policy)
            .build()
            .expect("a good configuration"),
    );
    let request = sim.sent();
    sim.reply(&request, Reply::granted(86_400));
    assert_eq!(warnings(&sim.events()), []);
    sim.advance_to(secs(2 * 3600 - 1));
    assert_eq!(warnings(&refresh(&mut sim)), []);
    sim.advance_to(secs(2 * 3600 + 1));
    let told = warnings(&refresh(&mut sim));
    assert_matches!(told[..], [Warning::OwnCertificateExpires(left)] if left < secs(3600));
    sim.advance_to(secs(4 * 3600));
    assert_eq!(warnings(&refresh(&mut sim)), []);
}

#[test]
fn a_peer_that_nobody_checked_is_told_once_a_flow() {
    let mut sim = sim([]);
    sim.dress_flows(|info| info.with_unverified(true));
    sim.add(account("sip:192.0.2.9;transport=tls"));
    let request = sim.sent();
    sim.reply(&request, Reply::granted(3600));
    assert_eq!(warnings(&sim.events()), [Warning::UnverifiedPeer]);
    assert_eq!(warnings(&refresh(&mut sim)), []);
}

#[test]
fn a_target_without_a_good_certificate_is_passed_over_and_told_when_it_was_the_last() {
    let addresses = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
    let mut sim = sim([]);
    sim.resolve("example.com", Ok(addresses.to_vec()));
    sim.refuse_next_open(FlowError::Tls(TlsError::Expired));
    sim.add(account("sip:example.com:5061;transport=tls"));
    let request = sim.sent();
    assert_eq!(request.target().address().ip(), addresses[1]);
    sim.reply(&request, Reply::granted(3600));
    assert!(sim.status().is_registered());

    let mut sim = self::sim([]);
    sim.refuse_next_open(FlowError::Tls(TlsError::UnknownIssuer));
    sim.add(account("sip:192.0.2.9;transport=tls"));
    let events = sim.events();
    assert_matches!(
        &events[..],
        [Event::Rejected {
            failure: Failure::Flow(FlowError::Tls(TlsError::UnknownIssuer)),
            class: FailureClass::Temporary,
            ..
        }]
    );
    assert!(events[0].to_string().contains("no trusted root vouches"));
    let next = sim.deadline().expect("it waits by its policy");
    sim.advance(next);
    assert!(!sim.is_silent());
}

#[test]
fn via_alias_is_for_streams_and_for_those_who_ask() {
    for (policy, transport, alias) in [
        (Policy::default(), "tls", false),
        (Policy::asterisk(), "tls", true),
        (Policy::asterisk(), "tcp", true),
        (Policy::asterisk(), "udp", false),
    ] {
        let account = builder(&format!("sip:192.0.2.9;transport={transport}"))
            .policy(policy)
            .build()
            .expect("a good configuration");
        let mut sim = sim([account]);
        // `asterisk()` waits a second at least.
        sim.advance(secs(2));
        let via = sim.sent().text_of("Via");
        assert_eq!(via.ends_with(";alias"), alias, "{via}");
    }
}
