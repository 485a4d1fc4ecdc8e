//! Leases: when they are renewed, what grants them, what ends them (DECISIONS D1, D2, D8, D9, D12, D22).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::net::IpAddr;
use std::time::Duration;

use super::machine::{account, built, due, secs, under};

#[test]
fn d1_refreshes_leave_room_for_a_dead_target_and_are_only_moved_earlier() {
    for (granted, latest) in [
        (3600, 3300.0),
        (600, 540.0),
        (120, 80.0),
        (60, 30.0),
        (10, 5.0),
    ] {
        for seed in 0..20 {
            let mut sim = Sim::seeded([seed; 32], [under(Policy::default())]);
            let register = sim.sent();
            sim.reply(&register, Reply::granted(granted));
            let next = sim.deadline().expect("a refresh is planned").as_secs_f64();
            let earliest = latest - f64::min(60.0, latest / 10.0);
            assert!(
                next <= latest + 1e-6 && next >= earliest - 1e-6,
                "{granted}: {next}"
            );
        }
    }
}

#[test]
fn d1_asterisk_refreshes_ten_seconds_before_the_end_or_at_half() {
    for (granted, at) in [(3600, 3590), (21, 11), (20, 10), (12, 6), (2, 1), (1, 1)] {
        let mut sim = Sim::registered(under(Policy::asterisk()), secs(granted));
        sim.advance_to(secs(at) - Duration::from_millis(1));
        assert!(sim.is_silent(), "{granted}");
        sim.advance_to(secs(at));
        sim.sent();
    }
}

#[test]
fn d1_the_lease_counts_from_the_first_send() {
    let mut sim = Sim::new(under(Policy::asterisk()));
    sim.advance(secs(1));
    let register = sim.sent();
    sim.advance(secs(10));
    sim.reply(&register, Reply::granted(3600));
    assert_eq!(sim.deadline(), Some(secs(3580)));
}

#[test]
fn d2_a_cycle_never_starts_within_a_second_of_the_last() {
    // Granted for one second, over and over.
    let mut sim = Sim::new(under(Policy::default()));
    let mut registers = 0;
    while sim.elapsed() < secs(60) {
        for request in sim.all_sent() {
            registers += 1;
            sim.reply(&request, Reply::granted(1));
        }
        let next = sim.deadline().expect("something is planned");
        sim.advance(next);
    }
    assert!((30..=61).contains(&registers), "{registers}");
}

fn tcp() -> RegistrationBuilder {
    Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
}

#[test]
fn d2_a_connection_that_is_closed_after_each_grant_is_waited_for_longer_and_longer() {
    let mut sim = Sim::new(built(tcp()));
    let mut at = Vec::new();
    for _ in 0..12 {
        let register = sim.sent();
        at.push(sim.elapsed());
        sim.reply(&register, Reply::granted(3600));
        sim.fail_flow(register.flow(), FlowError::Closed);
        assert_matches!(sim.events().last(), Some(Event::FlowLost { .. }));
        let next = sim.deadline().expect("registers again");
        sim.advance(next);
    }
    let waits: Vec<f64> = at
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs_f64())
        .collect();
    for (n, wait) in waits.iter().enumerate() {
        let most = f64::min(60.0, f64::from(1 << n.min(6)));
        assert!(
            *wait >= f64::max(1.0, most / 2.0) - 1e-6 && *wait <= most + 0.01 + 1e-6,
            "{waits:?}"
        );
    }
    // A lease that holds resets it.
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    sim.advance(secs(31));
    sim.fail_flow(register.flow(), FlowError::Closed);
    assert!(
        sim.deadline()
            .is_some_and(|next| next <= Duration::from_millis(10))
    );
    sim.advance(secs(1));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    sim.fail_flow(register.flow(), FlowError::Closed);
    let next = sim.deadline().expect("registers again");
    assert!((secs(1)..=Duration::from_millis(1010)).contains(&next));
}

#[test]
fn d2_a_refresh_of_a_lease_that_held_resets_the_pace() {
    let mut sim = Sim::new(built(tcp()));
    for _ in 0..4 {
        let register = sim.sent();
        sim.reply(&register, Reply::granted(3600));
        sim.fail_flow(register.flow(), FlowError::Closed);
        let next = sim.deadline().expect("registers again");
        sim.advance(next);
    }
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    let refresh = due(&mut sim);
    sim.reply(&refresh, Reply::granted(3600));
    sim.fail_flow(refresh.flow(), FlowError::Closed);
    let next = sim.deadline().expect("registers again");
    assert!((secs(1)..=Duration::from_millis(1010)).contains(&next));
}

#[test]
fn d13_users_of_a_lost_flow_spread_over_ten_milliseconds_each() {
    let accounts = (0..500).map(|n| {
        let aor = format!("sip:u{n}@example.com");
        built(
            Registration::builder("sip:192.0.2.9;transport=tcp", aor.as_str())
                .max_random_initial_delay(Duration::ZERO),
        )
    });
    let mut sim = Sim::many(accounts);
    let mut flow = None;
    loop {
        let sent = sim.all_sent();
        if sent.is_empty() {
            break;
        }
        for request in sent {
            assert!(
                flow.is_none_or(|flow| flow == request.flow()),
                "one flow for all"
            );
            flow = Some(request.flow());
            sim.reply(&request, Reply::granted(3600));
        }
    }
    sim.advance(secs(60));
    let lost = flow.expect("a flow");
    sim.fail_flow(lost, FlowError::Reset);
    let (mut at, mut flows) = (Vec::new(), Vec::new());
    while sim.elapsed() < secs(70) && at.len() < 500 {
        let next = sim.deadline().expect("registers again");
        sim.advance(next);
        for request in sim.all_sent() {
            at.push(sim.elapsed().as_secs_f64() - 60.0);
            flows.push(request.flow());
            sim.reply(&request, Reply::granted(3600));
        }
    }
    flows.dedup();
    assert_eq!((at.len(), flows.len()), (500, 1));
    assert!(at.iter().all(|at| *at <= 5.0 + 1e-6));
    // Evenly: each second has its share.
    for second in 0..5 {
        let share = at.iter().filter(|at| at.floor() as i32 == second).count();
        assert!((60..=140).contains(&share), "{share} in second {second}");
    }
}

#[test]
fn a_connection_that_dies_under_a_refresh_is_made_anew_at_once() {
    let mut sim = Sim::registered(built(tcp()), secs(600));
    let refresh = due(&mut sim);
    sim.fail_flow(refresh.flow(), FlowError::Closed);
    let again = sim.sent();
    assert_ne!(again.flow(), refresh.flow());
    assert_eq!(again.target(), refresh.target());
    sim.reply(&again, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);
    // But not for ever.
    let refresh = due(&mut sim);
    sim.fail_flow(refresh.flow(), FlowError::Closed);
    let again = sim.sent();
    sim.fail_flow(again.flow(), FlowError::Closed);
    assert!(sim.is_silent());
    assert_matches!(&sim.events()[..], [Event::Rejected { .. }]);
}

#[test]
fn a_connection_lost_while_a_retry_waits_does_not_bring_it_forward() {
    let mut sim = Sim::registered(built(tcp()), secs(3600));
    let refresh = due(&mut sim);
    sim.reply(&refresh, Reply::status(500).header("Retry-After", "150"));
    sim.fail_flow(refresh.flow(), FlowError::Closed);
    assert!(sim.deadline().is_some_and(|next| next >= secs(150)));
    assert!(sim.status().is_registered() && !sim.status().is_reachable());
}

#[test]
fn d8_a_foreign_contact_leaves_the_requested_time_and_a_warning() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    let reply = Reply::status(200).header("Contact", "<sip:bob@203.0.113.4>;expires=60");
    sim.reply(&register, reply.clone());
    assert_matches!(
        &sim.events()[..],
        [Event::Warning(Warning::Unconfirmed), Event::Registered(r)]
            if r.granted == secs(3600) && !r.confirmed && r.other_bindings == 1
    );
    let mut policy = Policy::default();
    policy.require_own_contact = true;
    let mut sim = Sim::new(under(policy));
    let register = sim.sent();
    sim.reply(&register, reply);
    assert_matches!(
        &sim.events()[..],
        [
            ..,
            Event::Rejected {
                failure: Failure::NotListed,
                class: FailureClass::Temporary,
                ..
            }
        ]
    );
    assert!(!sim.status().is_registered());
}

#[test]
fn d9_a_grant_of_nothing_is_a_temporary_failure_and_no_binding() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let mut sim = Sim::registered(under(policy), secs(3600));
        let next = sim.deadline().expect("a refresh");
        sim.advance(next);
        let refresh = sim.sent();
        sim.reply(&refresh, Reply::granted(0));
        assert_matches!(
            &sim.events()[..],
            [Event::Rejected {
                failure: Failure::NotGranted,
                attempt: 1,
                ..
            }]
        );
        assert!(!sim.status().is_registered());
        assert_eq!(
            sim.status().reference_status(),
            ReferenceStatus::Unregistered
        );
        assert!(
            sim.deadline()
                .is_some_and(|next| next >= secs(60) && next <= secs(72))
        );
        // Nothing to remove either.
        sim.remove(sim.id(), secs(35));
        assert_eq!(sim.removals(), [Removal::NeverBound]);
        assert!(sim.is_silent());
    }
}

#[test]
fn d9_absurd_grants_are_scheduled_as_a_week() {
    let mut sim = Sim::new(under(Policy::asterisk()));
    sim.advance(secs(1));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(4_000_000_000));
    assert_matches!(
        &sim.events()[..],
        [
            ..,
            Event::Warning(Warning::LongGrant(_)),
            Event::Registered(_)
        ]
    );
    assert_eq!(sim.deadline(), Some(secs(604_800 - 10)));
}

#[test]
fn d12_refreshes_stay_with_the_target_that_registered() {
    let names: Vec<IpAddr> = vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
    for (policy, sticky) in [(Policy::default(), true), (Policy::asterisk(), false)] {
        let named = Registration::builder("sip:example.com", "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO)
            .policy(policy);
        let mut sim = Sim::many([]);
        sim.resolve("example.com", Ok(names.clone()));
        sim.add(built(named));
        let first = due(&mut sim);
        assert_eq!(first.target().address().ip(), names[0]);
        sim.reply(&first, Reply::status(503));
        let second = sim.sent();
        assert_eq!(second.target().address().ip(), names[1]);
        sim.reply(&second, Reply::granted(600));
        let refresh = due(&mut sim);
        assert_eq!(refresh.target().address().ip() == names[1], sticky);
    }
}

#[test]
fn d12_a_timeout_after_a_provisional_answer_does_not_fail_over() {
    for provisional in [false, true] {
        let named = Registration::builder("sip:example.com", "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO);
        let mut sim = Sim::many([]);
        let names = vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        sim.resolve("example.com", Ok(names));
        sim.add(built(named));
        let first = sim.sent();
        if provisional {
            sim.reply(&first, Reply::status(100));
        }
        sim.advance(secs(32));
        let elsewhere = sim.all_sent().iter().any(|r| r.target() != first.target());
        assert_eq!(elsewhere, !provisional);
        let rejected = sim
            .events()
            .iter()
            .any(|e| matches!(e, Event::Rejected { .. }));
        assert_eq!(rejected, provisional);
    }
}

#[test]
fn a_name_that_no_longer_resolves_does_not_end_a_lease() {
    let named = Registration::builder("sip:example.com", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO);
    let mut sim = Sim::registered(built(named), secs(600));
    sim.resolve("example.com", Err(ResolveError::Timeout));
    sim.advance(secs(541));
    let refresh = sim.sent();
    sim.reply(&refresh, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);
}

#[test]
fn d22_a_sleeping_computer_ages_the_lease() {
    let mut sim = Sim::registered(under(Policy::default()), secs(3600));
    sim.advance(secs(10));
    sim.with(|pool, cx| pool.clock_jump(cx, secs(3400)));
    assert!(sim.status().is_registered());
    assert!(
        sim.deadline()
            .is_some_and(|next| next <= Duration::from_millis(10))
    );
    sim.advance(Duration::from_millis(10));
    let refresh = sim.sent();
    sim.reply(&refresh, Reply::granted(3600));
    sim.events();
    sim.with(|pool, cx| pool.clock_jump(cx, Duration::MAX));
    assert!(!sim.status().is_registered());
    assert_matches!(
        &sim.events()[..],
        [Event::Expired {
            next_in: Some(next_in)
        }] if *next_in <= Duration::from_millis(10)
    );
    sim.advance(secs(1));
    sim.sent();
}

#[test]
fn d25_foreign_answers_are_dropped() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    let good = String::from_utf8(Reply::granted(60).to(&register).to_vec()).expect("text");
    let via = register.text_of("Via");
    for bad in [
        good.replace(
            "Via: ",
            "Via: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKother\r\nVia: ",
        ),
        good.replace(
            &format!("Via: {via}\r\n"),
            &format!("Via: {via}\r\nVia: {via}\r\n"),
        ),
        good.replace("192.0.2.1:5060;rport", "192.0.2.77:5060;rport"),
        good.replace("192.0.2.1:5060;rport", "192.0.2.1:5061;rport"),
        good.replace("branch=z9hG4bK", "branch=z9hG4bL"),
        good.replace(" REGISTER\r\n", " OPTIONS\r\n"),
    ] {
        assert_ne!(bad, good);
        sim.push(&register, bad.into());
        assert!(!sim.status().is_registered());
    }
    sim.push(&register, good.into());
    assert!(sim.status().is_registered());
}

#[test]
fn a_branch_that_comes_back_in_another_case_is_the_same() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    let good = String::from_utf8(Reply::granted(60).to(&register).to_vec()).expect("text");
    let (before, branch) = good.split_once("branch=").expect("a branch");
    let end = branch.find([';', '\r']).expect("its end");
    let (branch, after) = branch.split_at(end);
    let shouted = branch.to_ascii_uppercase();
    assert_ne!(shouted, branch);
    sim.push(&register, format!("{before}branch={shouted}{after}").into());
    assert!(sim.status().is_registered());
}

#[test]
fn d25_a_success_after_timer_f_is_ignored_and_removed_nevertheless() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    sim.advance(secs(32));
    sim.all_sent();
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Timeout,
            ..
        }]
    );
    sim.reply(&register, Reply::granted(3600));
    assert!(!sim.status().is_registered());
    // The registrar may hold it all the same.
    sim.remove(sim.id(), secs(35));
    let unregister = sim.sent();
    assert_eq!(unregister.text_of("Expires"), "0");
    sim.reply(&unregister, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);
}

#[test]
fn an_unanswered_refresh_may_live_though_the_next_was_refused() {
    let mut sim = Sim::registered(under(Policy::asterisk()), secs(60));
    sim.advance_to(secs(50));
    sim.advance_to(secs(82));
    sim.all_sent();
    sim.advance_to(secs(142));
    let retry = sim.sent();
    sim.reply(&retry, Reply::status(403));
    sim.remove(sim.id(), secs(35));
    assert_eq!(sim.sent().text_of("Expires"), "0");
}

#[test]
fn a_late_answer_to_a_removed_registration_does_not_reach_its_successor() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.remove(sim.id(), Duration::ZERO);
    sim.advance(secs(40));
    sim.all_sent();
    assert_eq!(sim.removals(), [Removal::Unanswered]);
    let again = sim.add(built(account()));
    let second = sim.sent();
    assert_ne!(again, sim.id());
    sim.reply(&first, Reply::granted(60));
    assert!(!sim.pool().status(again).expect("there").is_registered());
    sim.reply(&second, Reply::granted(60));
    assert!(sim.pool().status(again).expect("there").is_registered());
}
