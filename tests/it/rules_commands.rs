//! Commands and the life of a registration (BEHAVIOUR §5; DECISIONS D7, D20, D21).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::sync::Arc;
use std::time::Duration;

use super::machine::{account, built, due, secs, under};

fn expires(sim: &mut Sim) -> String {
    sim.sent().text_of("Expires")
}

#[test]
fn a_removal_in_no_time_sends_nothing() {
    for answered in [false, true] {
        let mut sim = Sim::registered(under(Policy::default()), secs(3600));
        sim.input(Input::Stop(secs(30)));
        let removal = sim.sent();
        sim.advance(secs(40));
        assert!(!sim.all_sent().is_empty(), "it was sent again");
        assert_eq!(sim.removals(), [Removal::Unanswered]);
        if answered {
            sim.reply(&removal, Reply::status(200));
        }
        sim.remove(sim.id(), Duration::ZERO);
        sim.advance(secs(4000));
        assert!(sim.is_silent());
        assert_eq!(sim.removals(), [Removal::Unanswered; 1]);
        assert_eq!(sim.pool().ids().count(), 0);
    }
    // With one under way, too.
    let mut sim = Sim::registered(under(Policy::default()), secs(3600));
    sim.input(Input::Stop(secs(30)));
    sim.sent();
    sim.remove(sim.id(), Duration::ZERO);
    sim.advance(secs(4000));
    assert!(sim.is_silent());
    assert_eq!(sim.pool().ids().count(), 0);
}

#[test]
fn d3_initial_delays_are_those_of_the_profile() {
    for seed in 0..30 {
        let delay = |policy: Policy, most| {
            let account = account()
                .policy(policy)
                .max_random_initial_delay(secs(most));
            let sim = Sim::seeded([seed; 32], [built(account)]);
            if sim.is_silent() {
                sim.deadline()
            } else {
                Some(Duration::ZERO)
            }
        };
        assert_eq!(delay(Policy::default(), 0), Some(Duration::ZERO));
        assert!(delay(Policy::default(), 10).is_some_and(|d| d <= secs(10)));
        assert_eq!(delay(Policy::asterisk(), 0), Some(secs(1)));
        let reference = delay(Policy::asterisk(), 10).expect("a first attempt");
        assert!(reference.subsec_nanos() == 0 && (1..=10).contains(&reference.as_secs()));
    }
}

#[test]
fn d20_refresh_registers_at_once() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let mut sim = Sim::registered(under(policy), secs(3600));
        sim.input(Input::Refresh);
        assert_eq!(expires(&mut sim), "3600");
    }
}

#[test]
fn d20_reregister_unregisters_first_and_is_delayed_where_the_reference_delays() {
    for (policy, delayed) in [(Policy::default(), false), (Policy::asterisk(), true)] {
        let mut sim = Sim::registered(under(policy), secs(3600));
        sim.input(Input::Reregister);
        let unregister = sim.sent();
        assert_eq!(unregister.text_of("Expires"), "0");
        assert!(sim.is_silent(), "one REGISTER outstanding");
        sim.reply(&unregister, Reply::status(200));
        assert_eq!(sim.is_silent(), delayed);
        assert_eq!(
            sim.status().reference_status(),
            ReferenceStatus::Unregistered
        );
        let register = due(&mut sim);
        assert_eq!(register.text_of("Expires"), "3600");
        assert_eq!(register.call_id(), unregister.call_id());
        assert_eq!(
            sim.elapsed(),
            if delayed { secs(1) } else { Duration::ZERO }
        );
    }
}

#[test]
fn d20_a_refused_unregister_does_not_stop_a_reregister() {
    let mut sim = Sim::registered(under(Policy::default()), secs(3600));
    sim.input(Input::Reregister);
    let unregister = sim.sent();
    sim.reply(&unregister, Reply::status(500));
    assert_eq!(expires(&mut sim), "3600");
}

#[test]
fn d20_a_pause_is_silent_until_its_end() {
    let mut sim = Sim::registered(under(Policy::default()), secs(600));
    let until = Some(sim.now() + secs(1000));
    sim.input(Input::Pause {
        until,
        unregister: false,
    });
    assert_matches!(
        &sim.events()[..],
        [Event::Paused {
            resumes_in: Some(_)
        }]
    );
    sim.advance_to(secs(599));
    assert!(sim.status().is_registered());
    sim.advance_to(secs(999));
    assert!(sim.is_silent());
    assert_matches!(&sim.events()[..], [Event::Expired { .. }]);
    sim.advance_to(secs(1000));
    assert_eq!(expires(&mut sim), "3600");
}

#[test]
fn d20_a_pause_with_unregister_ends_with_resume_even_while_it_begins() {
    for finished in [true, false] {
        let mut sim = Sim::registered(under(Policy::default()), secs(600));
        sim.input(Input::Pause {
            until: None,
            unregister: true,
        });
        let unregister = sim.sent();
        assert_eq!(unregister.text_of("Expires"), "0");
        if finished {
            sim.reply(&unregister, Reply::status(200));
            assert_eq!(sim.status().activity, Activity::Paused);
            assert_eq!(sim.deadline(), None);
            sim.input(Input::Resume);
        } else {
            sim.input(Input::Resume);
            assert!(sim.is_silent());
            sim.reply(&unregister, Reply::status(200));
        }
        assert_eq!(expires(&mut sim), "3600");
    }
}

#[test]
fn d20_nothing_but_resume_and_refresh_ends_a_pause() {
    let mut sim = Sim::registered(under(Policy::default()), secs(600));
    sim.input(Input::Pause {
        until: None,
        unregister: false,
    });
    sim.input(Input::Query);
    let query = sim.sent();
    assert_eq!(query.text_of("Contact"), "");
    sim.reply(&query, Reply::status(200));
    assert_eq!(sim.status().activity, Activity::Paused);
    let other = built(account().user_agent("other"));
    sim.input(Input::Reconfigure(Arc::new(other)));
    assert_eq!(sim.status().activity, Activity::Paused);
    assert!(sim.is_silent());
    // Another server: the binding at the old one goes, nothing else.
    let moved = Registration::builder("sip:192.0.2.8", "sip:alice@example.com");
    sim.input(Input::Reconfigure(Arc::new(built(moved))));
    let unregister = sim.sent();
    assert_eq!(unregister.text_of("Expires"), "0");
    sim.reply(&unregister, Reply::status(200));
    assert_eq!(sim.status().activity, Activity::Paused);
    assert!(sim.is_silent());
    sim.input(Input::Resume);
    assert_eq!(sim.sent().uri(), "sip:192.0.2.8");
}

#[test]
fn a_query_while_a_retry_waits_does_not_lose_the_retry() {
    let mut sim = Sim::new(under(Policy::asterisk()));
    let register = due(&mut sim);
    sim.reply(&register, Reply::status(500));
    for code in [200, 500] {
        sim.input(Input::Query);
        let query = sim.sent();
        sim.reply(&query, Reply::status(code));
        assert_eq!(sim.deadline(), Some(secs(60)));
    }
}

#[test]
fn commands_that_come_during_a_cycle_are_all_done() {
    // The configuration is not lost to the command after it.
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    sim.input(Input::Reconfigure(Arc::new(built(
        account().user_agent("new"),
    ))));
    sim.input(Input::Refresh);
    sim.input(Input::Query);
    sim.reply(&register, Reply::granted(600));
    let mut forms = Vec::new();
    while let Some(request) = sim.all_sent().pop() {
        assert_eq!(request.text_of("User-Agent"), "new");
        forms.push(request.text_of("Contact").is_empty());
        sim.reply(&request, Reply::granted(600));
    }
    assert_eq!(forms, [false, false, true]);
    // Nor one that needs another identity.
    let mut sim = Sim::registered(under(Policy::default()), secs(600));
    let moved = Registration::builder("sip:192.0.2.8", "sip:alice@example.com");
    sim.input(Input::Reconfigure(Arc::new(built(moved))));
    let unregister = sim.sent();
    sim.input(Input::Refresh);
    sim.reply(&unregister, Reply::status(200));
    let register = due(&mut sim);
    assert_eq!(register.uri(), "sip:192.0.2.8");
    assert_ne!(register.call_id(), unregister.call_id());
}

#[test]
fn d21_removal_answers_a_challenge_and_a_stale_one_inside_its_deadline() {
    let mut sim = Sim::registered(under(Policy::default()), secs(600));
    sim.remove(sim.id(), secs(35));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n1"));
    let second = sim.sent();
    let stale = "Digest realm=\"r\", nonce=\"n2\", qop=\"auth\", stale=true";
    sim.reply(
        &second,
        Reply::status(401).header("WWW-Authenticate", stale),
    );
    let third = sim.sent();
    assert!(third.text_of("Authorization").contains("nonce=\"n2\""));
    assert_eq!(third.text_of("Expires"), "0");
    sim.reply(&third, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);
    assert_eq!(sim.pool().len(), 0);
    assert_eq!(sim.deadline(), None);
}

#[test]
fn d21_removal_ends_at_its_deadline_and_says_what_is_left() {
    for (code, removal) in [
        (None, Removal::Unanswered),
        (Some(403), Removal::Refused(403)),
        (Some(423), Removal::Refused(423)),
        (Some(503), Removal::Refused(503)),
        (Some(401), Removal::Refused(401)),
        (Some(407), Removal::Refused(407)),
        (Some(600), Removal::Refused(600)),
    ] {
        let mut sim = Sim::registered(under(Policy::default()), secs(600));
        sim.remove(sim.id(), secs(20));
        let request = sim.sent();
        if let Some(code) = code {
            sim.reply(&request, Reply::status(code));
        } else {
            sim.advance(secs(20));
        }
        assert_eq!(sim.removals(), [removal]);
        sim.all_sent();
        sim.advance(secs(4000));
        assert!(sim.is_silent(), "never turned into a registration again");
    }
}

#[test]
fn d21_a_refresh_in_flight_is_abandoned_at_half_of_the_time() {
    let mut sim = Sim::registered(under(Policy::asterisk()), secs(600));
    let refresh = due(&mut sim);
    let start = sim.elapsed();
    sim.remove(sim.id(), secs(20));
    assert!(sim.is_silent(), "one REGISTER outstanding");
    sim.advance(Duration::from_millis(9_999));
    assert!(
        sim.all_sent()
            .iter()
            .all(|copy| copy.bytes() == refresh.bytes())
    );
    sim.advance(Duration::from_millis(1));
    let unregister = sim.sent();
    assert_eq!(sim.elapsed() - start, secs(10));
    assert_eq!(unregister.text_of("Expires"), "0");
    // The answer to the refresh comes too late to matter.
    sim.reply(&refresh, Reply::granted(600));
    sim.reply(&unregister, Reply::challenge("r", "n"));
    let answer = sim.sent();
    sim.reply(&answer, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);
}

#[test]
fn d21_a_stop_waits_for_the_answer_to_the_request_in_flight() {
    for (code, unregisters) in [(200, true), (403, false)] {
        let mut sim = Sim::new(under(Policy::default()));
        let register = sim.sent();
        sim.remove(sim.id(), secs(35));
        sim.input(Input::Refresh);
        assert!(sim.is_silent());
        sim.reply(
            &register,
            if code == 200 {
                Reply::granted(60)
            } else {
                Reply::status(code)
            },
        );
        assert_eq!(!sim.is_silent(), unregisters);
        if unregisters {
            assert_eq!(expires(&mut sim), "0");
        } else {
            assert_eq!(sim.removals(), [Removal::NeverBound]);
        }
    }
}

#[test]
fn d21_a_rejected_registration_with_a_live_lease_is_removed() {
    let mut sim = Sim::registered(under(Policy::asterisk()), secs(600));
    let refresh = due(&mut sim);
    sim.reply(&refresh, Reply::status(403));
    assert_eq!(sim.status().activity, Activity::Idle);
    sim.remove(sim.id(), secs(35));
    assert_eq!(expires(&mut sim), "0");
}

#[test]
fn d7_the_reference_status_follows_the_reference() {
    let mut sim = Sim::new(under(Policy::asterisk()));
    let shown = |sim: &Sim| sim.status().reference_status().to_string();
    assert_eq!(shown(&sim), "Unregistered");
    let register = due(&mut sim);
    sim.reply(&register, Reply::granted(600));
    assert_eq!(shown(&sim), "Registered");
    let refresh = due(&mut sim);
    assert_eq!(shown(&sim), "Registered");
    sim.reply(&refresh, Reply::status(500));
    assert_eq!(shown(&sim), "Rejected");
    let retry = due(&mut sim);
    assert_eq!(shown(&sim), "Rejected");
    sim.reply(&retry, Reply::granted(600));
    sim.input(Input::Stop(secs(35)));
    assert_eq!(shown(&sim), "Registered");
    let unregister = sim.sent();
    sim.reply(&unregister, Reply::status(200));
    assert_eq!(shown(&sim), "Unregistered");
    sim.advance(secs(10_000));
    assert!(sim.is_silent());
    sim.input(Input::Refresh);
    sim.sent();
}

#[test]
fn no_time_a_host_can_say_makes_a_panic() {
    let mut sim = Sim::registered(under(Policy::default()), secs(600));
    sim.input(Input::NetworkChanged(Duration::MAX));
    sim.input(Input::Refresh);
    sim.all_sent();
    sim.input(Input::ClockJump {
        by: Duration::MAX,
        spread: Duration::MAX,
    });
    sim.input(Input::Stop(Duration::MAX));
    sim.advance(secs(100));
}

#[test]
fn d21_what_a_removal_waited_for_is_taken_from_its_time() {
    let mut sim = Sim::registered(under(Policy::asterisk()), secs(600));
    let refresh = due(&mut sim);
    sim.remove(sim.id(), secs(35));
    sim.advance(secs(10));
    sim.reply(&refresh, Reply::granted(600));
    sim.advance(secs(25));
    assert_eq!(sim.removals(), [Removal::Unanswered]);
}

#[test]
fn d21_a_removal_that_the_registrar_only_pretends_is_told() {
    let removed = |contact: &str| {
        let mut sim = Sim::registered(under(Policy::default()), secs(600));
        let id = sim.id();
        sim.remove(id, secs(35));
        let removal = sim.sent();
        let contact = contact.replace("OURS", &removal.text_of("Contact"));
        sim.reply(&removal, Reply::status(200).header("Contact", &contact));
        assert!(sim.is_silent(), "once is enough");
        assert_eq!(sim.deadline(), None);
        assert_matches!(&sim.events()[..], [Event::Unregistered(_)]);
        sim.removals()
    };
    assert_eq!(removed("OURS;expires=600"), [Removal::Refused(200)]);
    assert_eq!(
        removed("<sip:bob@192.0.2.7>;expires=5, OURS;expires=600"),
        [Removal::Refused(200)]
    );
    // Gone, not said for how long, or another device of the same name.
    for listed in [
        "OURS;expires=0",
        "OURS",
        "<sip:s@192.0.2.77:5060>;expires=600",
    ] {
        assert_eq!(removed(listed), [Removal::Removed], "{listed}");
    }
}

#[test]
fn d21_an_entry_that_stays_keeps_the_lease_that_was_not_removed() {
    let mut sim = Sim::registered(under(Policy::default()), secs(600));
    sim.input(Input::Stop(secs(35)));
    let removal = sim.sent();
    sim.reply(&removal, Reply::granted(600));
    assert_eq!(sim.removals(), [Removal::Refused(200)]);
    assert!(sim.status().is_registered(), "calls still arrive");
    assert_eq!(sim.status().activity, Activity::Idle);
    sim.advance_to(secs(600));
    assert!(!sim.status().is_registered());
}

#[test]
fn a_removal_of_all_that_leaves_ours_is_told_and_the_refresh_stays_planned() {
    let mut sim = Sim::registered(under(Policy::asterisk()), secs(600));
    sim.input(Input::RemoveAll);
    let removal = sim.sent();
    assert_eq!(removal.text_of("Contact"), "*");
    let ours = "<sip:s@192.0.2.1:5060>;expires=600";
    sim.reply(&removal, Reply::status(200).header("Contact", ours));
    assert_matches!(
        &sim.events()[..],
        [Event::Unregistered(Removal::Refused(200))]
    );
    assert!(sim.status().is_registered());
    sim.advance_to(secs(590));
    assert_eq!(sim.sent().text_of("Expires"), "3600", "the refresh");
}

#[test]
fn a_resume_during_the_unregister_of_a_pause_registers_whatever_else_waits() {
    let patient = || built(account().retry_interval(secs(77)));
    let renamed = || built(account().user_agent("another"));
    for which in 0..4 {
        let mut sim = Sim::registered(built(account()), secs(3600));
        sim.input(Input::Pause {
            until: None,
            unregister: true,
        });
        let removal = sim.sent();
        match which {
            0 => {}
            1 => sim.input(Input::Query),
            2 => sim.input(Input::Reconfigure(Arc::new(patient()))),
            _ => sim.input(Input::Reconfigure(Arc::new(renamed()))),
        }
        sim.input(Input::Resume);
        sim.reply(&removal, Reply::status(200));
        if which == 1 {
            let query = sim.sent();
            assert_eq!(query.text_of("Contact"), "");
            sim.reply(&query, Reply::status(200));
        }
        let register = sim.sent();
        assert_ne!(register.text_of("Expires"), "0", "{which}");
        sim.reply(&register, Reply::granted(3600));
        assert!(sim.status().is_registered(), "{which}");
        assert!(sim.is_silent(), "{which}");
    }
}

#[test]
fn a_configuration_that_waits_survives_a_stop() {
    // Behind a REGISTER in flight.
    let mut sim = Sim::registered(built(account()), secs(3600));
    sim.input(Input::Refresh);
    let refresh = sim.sent();
    sim.input(Input::Reconfigure(Arc::new(built(
        account().retry_interval(secs(77)),
    ))));
    sim.input(Input::Stop(secs(5)));
    sim.reply(&refresh, Reply::granted(3600));
    let removal = sim.sent();
    sim.reply(&removal, Reply::status(200));
    let id = sim.id();
    let kept = |sim: &Sim| Arc::clone(sim.pool().registration(id).expect("it stays"));
    assert_eq!(kept(&sim).retry_interval(), secs(77));
    assert!(sim.is_silent() && sim.deadline().is_none());

    // A new identity, whose un-REGISTER is in flight.
    let mut sim = Sim::registered(built(account()), secs(3600));
    let bob = built(account().contact_user("bob"));
    sim.input(Input::Reconfigure(Arc::new(bob)));
    let removal = sim.sent();
    sim.input(Input::Stop(secs(5)));
    sim.reply(&removal, Reply::status(200));
    assert_eq!(kept(&sim).contact_user().as_str(), Some("bob"));
    assert!(sim.is_silent() && sim.deadline().is_none());

    // Nothing was ever sent.
    let mut sim = Sim::new(built(account().max_random_initial_delay(secs(10))));
    sim.input(Input::Stop(secs(5)));
    assert!(sim.is_silent() && sim.deadline().is_none());
}

#[test]
fn after_a_stop_there_is_nothing_left_to_revive() {
    for bound in [false, true] {
        let mut sim = match bound {
            false => Sim::new(built(account())),
            true => Sim::registered(built(account()), secs(3600)),
        };
        if bound {
            sim.input(Input::Refresh);
        }
        let request = sim.sent();
        sim.reply(&request, Reply::status(503));
        sim.input(Input::Stop(secs(1)));
        sim.advance(secs(2));
        sim.all_sent();
        let patient = built(account().retry_interval(secs(77)));
        sim.input(Input::Reconfigure(Arc::new(patient)));
        sim.input(Input::RetryCredentials);
        assert!(sim.is_silent(), "{bound}");
        assert_eq!(sim.status().activity, Activity::Idle);
    }
}
