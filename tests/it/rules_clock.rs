//! A computer that slept (D22), in virtual time.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::time::Duration;

use super::machine::{built, secs, under};

const MANY: usize = 1000;

fn many() -> Sim {
    let mut sim = Sim::many((0..MANY).map(|number| {
        built(
            Registration::builder("sip:192.0.2.9", &*format!("sip:user{number}@example.com"))
                .contact_user(format!("user{number}"))
                .max_random_initial_delay(Duration::ZERO),
        )
    }));
    serve(&mut sim, 3600);
    assert_eq!(registered(&sim), MANY);
    sim.all_events();
    sim
}

/// Answers until nothing more is asked; how many that were.
fn serve(sim: &mut Sim, granted: u32) -> usize {
    let mut served = 0;
    loop {
        let requests = sim.all_sent();
        if requests.is_empty() {
            return served;
        }
        for request in requests {
            served += 1;
            sim.reply(&request, Reply::granted(granted));
        }
    }
}

fn registered(sim: &Sim) -> usize {
    let is = |id: &&RegistrationId| {
        sim.pool()
            .status(**id)
            .is_some_and(|status| status.is_registered())
    };
    sim.ids().iter().filter(is).count()
}

/// What goes out in each of the next seconds.
fn seconds(sim: &mut Sim, count: u32) -> Vec<usize> {
    let mut sent = Vec::new();
    for _ in 0..count {
        let mut served = 0;
        for _ in 0..100 {
            sim.advance(Duration::from_millis(10));
            served += serve(sim, 3600);
        }
        sent.push(served);
    }
    sent
}

#[test]
fn d22_after_a_night_a_thousand_come_back_evenly_over_ten_seconds() {
    let mut sim = many();
    sim.with(|pool, cx| pool.clock_jump(cx, secs(8 * 3600)));
    assert_eq!(registered(&sim), 0);
    assert!(sim.is_silent(), "nothing goes out at once");
    let sent = seconds(&mut sim, 11);
    assert_eq!(sent.iter().sum::<usize>(), MANY, "each once: {sent:?}");
    assert!(
        sent[..10].iter().all(|count| (60..=145).contains(count)),
        "{sent:?}"
    );
    assert_eq!(registered(&sim), MANY);
}

#[test]
fn d22_what_is_not_due_after_a_sleep_keeps_its_time() {
    let mut sim = many();
    sim.with(|pool, cx| pool.clock_jump(cx, secs(600)));
    assert_eq!(seconds(&mut sim, 12).iter().sum::<usize>(), 0);
    assert_eq!(registered(&sim), MANY);
}

#[test]
fn d22_leases_that_outlived_the_sleep_are_not_lost_to_the_pace() {
    let mut sim = many();
    // Of the hour a few seconds are left.
    sim.with(|pool, cx| pool.clock_jump(cx, secs(3594)));
    assert_eq!(registered(&sim), MANY);
    let sent = seconds(&mut sim, 4);
    assert_eq!(sent.iter().sum::<usize>(), MANY, "{sent:?}");
    assert!(
        sent[..3].iter().all(|count| (250..=420).contains(count)),
        "{sent:?}"
    );
    let expired = sim
        .all_events()
        .iter()
        .any(|(_, event)| matches!(event, Event::Expired { .. }));
    assert!(!expired, "no lease ended");
}

#[test]
fn d22_a_few_come_back_in_a_moment() {
    let mut sim = Sim::registered(under(Policy::default()), secs(3600));
    sim.advance(secs(10));
    sim.with(|pool, cx| pool.clock_jump(cx, secs(8 * 3600)));
    sim.advance(Duration::from_millis(10));
    sim.sent();
}

#[test]
fn d22_an_hour_that_a_registrar_asked_for_passes_in_sleep_too() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    sim.reply(&register, Reply::status(503).header("Retry-After", "3600"));
    sim.advance(secs(60));
    assert!(sim.is_silent());
    sim.with(|pool, cx| pool.clock_jump(cx, secs(2 * 3600)));
    sim.advance(secs(1));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn d22_a_stream_that_answers_pings_is_checked_and_made_anew() {
    let mut sim = Sim::new(built(
        Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO),
    ));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    // It has answered before, so an answer is due from now on (D14).
    sim.advance(secs(125));
    assert_eq!(sim.keep_alives().len(), 1);
    sim.pong(register.flow());
    sim.events();
    sim.with(|pool, cx| pool.clock_jump(cx, secs(600)));
    assert_eq!(sim.keep_alives().len(), 1, "a ping at once");
    sim.advance(secs(11));
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost {
            error: FlowError::KeepAliveUnanswered(_),
            ..
        }]
    );
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    assert!(sim.status().is_registered());
}
