//! What a hostile registrar, or commands at odd moments, must not bring about.

use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn account(server: &str) -> Registration {
    Registration::builder(server, "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "wrong"))
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("a good configuration")
}

fn with_credentials(sim: &mut Sim) -> usize {
    let sent = sim.all_sent();
    sent.iter()
        .filter(|request| !request.text_of("Authorization").is_empty())
        .count()
}

#[test]
fn a_connection_that_closes_lets_no_answer_past_the_account_guard() {
    let server = "sip:192.0.2.9;transport=tcp";
    let mut sim = Sim::many((0..10).map(|_| account(server)));
    for request in sim.all_sent() {
        sim.reply(&request, Reply::granted(3600));
    }
    for id in sim.ids().to_vec() {
        sim.with(|pool, cx| pool.handle(cx, id, Input::Refresh));
    }
    let requests = sim.all_sent();
    let flow = requests[0].flow();
    for request in &requests {
        sim.reply(request, Reply::challenge("r", "n"));
    }
    assert_eq!(with_credentials(&mut sim), 3);
    sim.fail_flow(flow, FlowError::Closed);
    assert!(with_credentials(&mut sim) <= 3, "three in flight at most");
}

#[test]
fn retry_after_of_a_second_for_ever_is_asked_less_and_less_often() {
    // The second counts, and `persistent()` has no end to what counts; in the third they come in turn.
    for (policy, codes) in [
        (Policy::default(), [503, 503]),
        (Policy::persistent(), [480, 480]),
        (Policy::persistent(), [480, 503]),
    ] {
        let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO)
            .policy(policy);
        let mut sim = Sim::new(account.build().expect("a good configuration"));
        let mut requests = 0;
        while sim.elapsed() < secs(3600) {
            for request in sim.all_sent() {
                requests += 1;
                let reply = Reply::status(codes[requests % 2]).header("Retry-After", "1");
                sim.reply(&request, reply);
            }
            let next = sim.deadline().expect("it never gives up");
            sim.advance(next);
        }
        assert!(requests < 80, "{requests} requests in an hour");
    }
}

#[test]
fn a_configuration_that_comes_while_unregistering_is_kept_and_starts_nothing() {
    let mut sim = Sim::registered(account("sip:192.0.2.9"), secs(3600));
    sim.input(Input::Stop(secs(35)));
    let unregister = sim.sent();
    let id = sim.id();
    let to = Arc::new(account("sip:192.0.2.77"));
    assert_eq!(
        sim.with(|pool, cx| pool.reconfigure(cx, id, to)),
        Some(Change::Replaces)
    );
    sim.reply(&unregister, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);
    assert!(sim.is_silent() && sim.deadline().is_none());
    sim.input(Input::Refresh);
    assert_eq!(sim.sent().target().address().to_string(), "192.0.2.77:5060");
}

#[test]
fn a_resume_during_a_query_ends_the_pause() {
    let mut sim = Sim::registered(account("sip:192.0.2.9"), secs(3600));
    sim.input(Input::Pause {
        until: None,
        unregister: false,
    });
    sim.input(Input::Query);
    let query = sim.sent();
    sim.input(Input::Resume);
    sim.reply(&query, Reply::granted(100));
    sim.advance(secs(2));
    assert_eq!(sim.sent().text_of("Expires"), "3600");
}

#[test]
fn removing_all_bindings_in_a_pause_does_not_end_it() {
    let mut sim = Sim::registered(account("sip:192.0.2.9"), secs(3600));
    let until = Some(sim.now() + secs(100));
    sim.input(Input::Pause {
        until,
        unregister: false,
    });
    sim.input(Input::RemoveAll);
    let remove = sim.sent();
    sim.reply(&remove, Reply::status(200));
    assert_eq!(sim.status().activity, Activity::Paused);
    sim.advance(secs(101));
    assert_eq!(sim.sent().text_of("Expires"), "3600");
}

#[test]
fn an_address_listed_twice_is_one_target() {
    let mut sim = Sim::new(account("sip:192.0.2.1"));
    let first = sim.sent();
    sim.reply(&first, Reply::granted(3600));
    sim.resolve("reg.example.com", Ok(vec![IpAddr::from([192, 0, 2, 9]); 8]));
    sim.add(account("sip:reg.example.com"));
    let mut requests = 0;
    while let Some(request) = sim.all_sent().pop() {
        requests += 1;
        sim.reply(&request, Reply::status(503));
    }
    assert_eq!(requests, 1);
}

#[test]
fn a_reason_phrase_reaches_no_terminal_as_control_characters() {
    let mut sim = Sim::new(account("sip:192.0.2.9"));
    let request = sim.sent();
    let text = String::from_utf8_lossy(&Reply::status(403).to(&request))
        .replace("Forbidden", "\u{1b}[31mX\u{7}\u{202e}");
    sim.push(&request, text.into());
    let lines: String = sim.events().iter().map(ToString::to_string).collect();
    assert!(lines.contains("403 [31mX"), "{lines}");
    assert!(
        !lines.contains(['\u{1b}', '\u{7}', '\u{202e}']),
        "{lines:?}"
    );
}

#[test]
fn debug_shows_no_message() {
    let mut sim = Sim::new(account("sip:alice:uripass@192.0.2.9"));
    let request = sim.sent();
    sim.reply(&request, Reply::challenge("r", "secretnonce"));
    assert!(!sim.sent().text_of("Authorization").is_empty());
    let debug = format!("{:?}", sim.pool());
    for secret in ["uripass", "wrong", "secretnonce", "response="] {
        assert!(!debug.contains(secret), "{secret}");
    }
}

#[test]
fn a_security_server_with_control_characters_is_not_repeated() {
    let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
        .security_negotiation(SecurityNegotiation::Mediasec);
    let mut sim = Sim::new(account.build().expect("a good configuration"));
    let register = sim.sent();
    let list = "msrp-tls;mediasec, sdes\u{b}X-Evil: 1, \u{1}, dtls-srtp;mediasec";
    sim.reply(
        &register,
        Reply::status(494).header("Security-Server", list),
    );
    let repeat = sim.all_sent().pop().expect("a repeat");
    let verify: Vec<_> = repeat.headers("Security-Verify").collect();
    assert_eq!(verify, ["msrp-tls;mediasec", "dtls-srtp;mediasec"]);
    sim.reply(&repeat, Reply::granted(60).header("Security-Server", list));
    let told = sim.events().into_iter().find_map(|event| match event {
        Event::Registered(registered) => Some(registered),
        _ => None,
    });
    let registered = told.expect("registered");
    assert_eq!(
        *registered.security_server,
        ["msrp-tls;mediasec", "dtls-srtp;mediasec"]
    );
}
