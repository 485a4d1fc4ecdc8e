//! A connection that is dead without a word: no end, no reset, no answer.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::time::Duration;

use super::machine::{built, due, secs};

fn over(transport: &str, user: usize, policy: Policy) -> Registration {
    built(
        Registration::builder(
            format!("sip:192.0.2.9;transport={transport}"),
            format!("sip:u{user}@example.com"),
        )
        .contact_user(format!("u{user}"))
        .policy(policy)
        .max_random_initial_delay(Duration::ZERO),
    )
}

fn contacts(request: &SentRequest) -> Vec<String> {
    let values = request.values("Contact");
    values.map(|value| value.into_owned()).collect()
}

/// Grants what comes over another flow than `dead`, which swallows all.
fn serve(sim: &mut Sim, dead: Option<FlowId>, granted: u32) -> usize {
    let mut requests = 0;
    for request in sim.all_sent() {
        requests += 1;
        if Some(request.flow()) != dead {
            sim.reply(&request, Reply::granted(granted));
        }
    }
    requests
}

#[test]
fn a_connection_that_is_silent_at_the_refresh_is_left_for_another_in_the_same_attempt() {
    for (policy, granted) in [(Policy::default(), 600), (Policy::persistent(), 90)] {
        let mut sim = Sim::registered(over("tcp", 0, policy), secs(granted));
        let refresh = due(&mut sim);
        sim.advance(secs(32));
        let again = sim.sent();
        assert_ne!(again.flow(), refresh.flow());
        assert_matches!(&contacts(&again)[..], [new, old]
            if new.contains(":40002") && old.contains(":40001") && old.ends_with(";expires=0"));
        sim.reply(&again, Reply::granted(600));
        assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);
        assert!(sim.is_silent());
    }

    // The reference refreshes 10 s before the end, where timer F does not fit: the retry takes another one.
    let mut sim = Sim::registered(over("tcp", 0, Policy::asterisk()), secs(600));
    let refresh = due(&mut sim);
    let again = due(&mut sim);
    assert_ne!(again.flow(), refresh.flow());
    assert_matches!(
        &sim.events()[..],
        [Event::Expired { .. }, Event::Rejected { .. }]
    );
}

#[test]
fn a_target_that_is_silent_on_a_fresh_connection_too_is_given_up_as_before() {
    let mut sim = Sim::registered(over("tcp", 0, Policy::default()), secs(3600));
    due(&mut sim);
    sim.advance(secs(32));
    let again = sim.sent();
    assert!(sim.events().is_empty());
    sim.advance(secs(32));
    assert!(sim.is_silent(), "two requests an attempt");
    let told = sim.events();
    let Some(Event::Rejected {
        failure: Failure::Timeout,
        attempt: 1,
        exchange: Some(exchange),
        ..
    }) = told.last()
    else {
        panic!("{told:?}");
    };
    assert_eq!(format!("{} REGISTER", exchange.cseq), again.text_of("CSeq"));
    assert!(sim.status().is_registered());
}

#[test]
fn a_target_that_was_never_bound_gets_one_request_an_attempt() {
    for transport in ["tcp", "udp"] {
        let mut sim = Sim::new(over(transport, 0, Policy::default()));
        let first = sim.sent();
        sim.advance(secs(32));
        for copy in sim.all_sent() {
            assert_eq!(copy.text_of("CSeq"), first.text_of("CSeq"), "{transport}");
        }
        assert_matches!(sim.events().last(), Some(Event::Rejected { .. }));
    }
}

#[test]
fn datagrams_have_no_connection_to_leave() {
    let mut sim = Sim::registered(over("udp", 0, Policy::default()), secs(600));
    let refresh = due(&mut sim);
    sim.advance(secs(32));
    for copy in sim.all_sent() {
        assert_eq!(copy.text_of("CSeq"), refresh.text_of("CSeq"));
    }
    assert_matches!(sim.events().last(), Some(Event::Rejected { .. }));
}

#[test]
fn all_that_ride_on_a_silent_connection_come_to_share_one_other() {
    let mut sim = Sim::many((0..100).map(|user| over("tcp", user, Policy::default())));
    // A window of 64 (D16), then the rest.
    while !sim.is_silent() {
        serve(&mut sim, None, 900);
    }
    let dead = sim.pool().flow(sim.id()).expect("a flow");
    assert_eq!(sim.flows_made(), 1);
    sim.all_events();
    let mut requests = 0;
    while sim.elapsed() < secs(1000) {
        let next = sim.deadline().expect("a refresh");
        sim.advance(next);
        requests += serve(&mut sim, Some(dead), 900);
    }
    assert_eq!(sim.flows_made(), 2);
    assert!((200..450).contains(&requests), "{requests}");
    for (id, event) in sim.all_events() {
        let lost = matches!(event, Event::Expired { .. } | Event::Rejected { .. });
        assert!(!lost, "{id}: {event}");
    }
}

#[test]
fn a_newcomer_on_a_connection_that_died_takes_another_with_its_next_attempt() {
    let mut sim = Sim::many([over("tcp", 0, Policy::default())]);
    serve(&mut sim, None, 3600);
    let dead = sim.pool().flow(sim.id()).expect("a flow");
    let newcomer = sim.add(over("tcp", 1, Policy::default()));
    let first = sim.sent();
    assert_eq!(first.flow(), dead);
    while sim.elapsed() < secs(300) {
        let next = sim.deadline().expect("a retry");
        sim.advance(next);
        serve(&mut sim, Some(dead), 3600);
    }
    let flow = sim.pool().flow(newcomer);
    assert!(flow.is_some_and(|flow| flow != dead), "{flow:?}");
    // Whoever is content stays where it is.
    assert_eq!(sim.pool().flow(sim.id()), Some(dead));
    assert_eq!(sim.flows_made(), 2);
}
