//! The machine's rules as scripts in virtual time.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::time::Duration;

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn account() -> RegistrationBuilder {
    Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .max_random_initial_delay(Duration::ZERO)
}

pub(crate) fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

pub(crate) fn under(policy: Policy) -> Registration {
    built(account().policy(policy))
}

/// Lets time pass until something is sent.
pub(crate) fn due(sim: &mut Sim) -> SentRequest {
    while sim.is_silent() {
        let next = sim.deadline().expect("something is planned");
        sim.advance(next);
    }
    sim.sent()
}

#[test]
fn a_challenge_is_answered_and_the_lease_refreshed_before_it_ends() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    assert_eq!(first.text_of("Authorization"), "");
    sim.reply(&first, Reply::challenge("r", "n1"));
    let second = sim.sent();
    assert!(
        second.text_of("Authorization").contains("nc=00000001"),
        "{}",
        second.text()
    );
    assert_eq!(first.call_id(), second.call_id());
    sim.reply(&second, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Registered(r)] if r.granted == secs(600));
    sim.advance(secs(541));
    let refresh = sim.sent();
    assert!(
        refresh.text_of("Authorization").contains("nc=00000002"),
        "{}",
        refresh.text()
    );
    assert!(sim.status().is_registered());
    sim.reply(&refresh, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);
}

#[test]
fn a_rejected_refresh_keeps_the_lease_until_it_expires() {
    let mut sim = Sim::registered(under(Policy::asterisk()), secs(3600));
    sim.advance_to(secs(3590));
    let refresh = sim.sent();
    sim.reply(&refresh, Reply::status(500));
    assert_matches!(&sim.events()[..], [Event::Rejected { retry_in, .. }] if *retry_in == secs(60));
    assert_eq!(sim.status().reference_status(), ReferenceStatus::Rejected);
    assert!(sim.status().is_registered());
    sim.advance_to(secs(3600));
    assert_matches!(&sim.events()[..], [Event::Expired { .. }]);
}

#[test]
fn a_thousand_registrations_with_a_wrong_password_get_three_refusals() {
    let mut sim = Sim::many((0..1000).map(|_| under(Policy::default())));
    let (mut refused, mut nonce) = (0, 0);
    for _ in 0..20_000 {
        let sent = sim.all_sent();
        if sent.is_empty() {
            match sim.deadline() {
                Some(next) if sim.elapsed() < secs(3600) => sim.advance(next),
                _ => break,
            }
        }
        for request in sent {
            refused += u32::from(!request.text_of("Authorization").is_empty());
            nonce += 1;
            sim.reply(&request, Reply::challenge("r", &format!("n{nonce}")));
        }
    }
    assert_eq!(refused, 3);
    let ended = sim
        .all_events()
        .iter()
        .filter(|(_, e)| {
            matches!(
                e,
                Event::GaveUp {
                    failure: Failure::CredentialsRefused { .. },
                    ..
                }
            )
        })
        .count();
    assert_eq!(ended, 1000);
}
