//! Stops and pauses of a registration with several flows: each stop ends, once and in time, whatever comes next (D20, D21).

use super::rules_outbound::{HOUR, account, bound, edge, granted, run, secs, sim, two, up};
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::sync::Arc;
use std::time::Duration;

const WITHIN: Duration = secs(20);

fn commands() -> Vec<Input<'static>> {
    let pause = |until, unregister| Input::Pause { until, unregister };
    vec![
        Input::RetryCredentials,
        Input::Resume,
        Input::Query,
        Input::Reconcile,
        Input::RemoveAll,
        Input::Stop(secs(35)),
        pause(None, false),
        pause(None, true),
    ]
}

fn reconfigure(sim: &mut Sim, to: RegistrationBuilder) {
    let id = sim.id();
    let to = Arc::new(to.build().expect("a good configuration"));
    sim.with(|pool, cx| pool.reconfigure(cx, id, to));
}

/// Both un-REGISTERs are under way, or one is and the other is answered.
fn stopping(forget: bool, one_answered: bool) -> (Sim, Vec<SentRequest>) {
    let mut sim = bound(two("udp"));
    let id = sim.id();
    match forget {
        true => sim.remove(id, WITHIN),
        false => sim.input(Input::Stop(WITHIN)),
    }
    let mut open = sim.all_sent();
    assert_eq!(open.len(), 2);
    if one_answered {
        let first = open.remove(0);
        sim.reply(&first, Reply::status(200));
    }
    (sim, open)
}

/// The whole registration is told to have ended, and that it was stopped, once each.
fn ends_once(sim: &mut Sim, removal: &Removal, what: &str) {
    assert_eq!(sim.removals(), std::slice::from_ref(removal), "{what}");
    let events = sim.events();
    let told = events
        .iter()
        .filter(|event| matches!(event, Event::Unregistered(_)));
    let told: Vec<_> = told.collect();
    assert_eq!(told, [&Event::Unregistered(removal.clone())], "{what}");
    let odd = events
        .iter()
        .find(|event| !matches!(event, Event::Unregistered(_) | Event::OfFlow { .. }));
    assert_eq!(odd, None, "{what}");
}

#[test]
fn a_command_that_comes_during_a_stop_does_not_keep_it_from_its_end() {
    for forget in [false, true] {
        for one_answered in [false, true] {
            for answered in [false, true] {
                for command in commands() {
                    let what = format!("{command:?} {forget} {one_answered} {answered}");
                    let (mut sim, open) = stopping(forget, one_answered);
                    let id = sim.id();
                    sim.input(command);
                    for request in open.iter().filter(|_| answered) {
                        sim.reply(request, Reply::status(200));
                    }
                    run(&mut sim, WITHIN, |_, request| {
                        assert_eq!(request.delta_seconds("Expires"), Some(0), "{what}");
                        answered.then(|| Reply::status(200))
                    });
                    let removal = match answered {
                        true => Removal::Removed,
                        false => Removal::Unanswered,
                    };
                    ends_once(&mut sim, &removal, &what);
                    assert_eq!(sim.pool().is_empty(), forget, "{what}");
                    if forget {
                        assert_eq!(sim.deadline(), None, "{what}");
                        assert_eq!(sim.pool().held(), 0, "{what}");
                        continue;
                    }
                    // Nothing goes on by itself, until it is asked for.
                    run(&mut sim, secs(2 * 3600), |_, request| {
                        panic!("{what}: {request:?}")
                    });
                    let id = sim.with(|pool, cx| {
                        pool.handle(cx, id, Input::Refresh);
                        id
                    });
                    run(&mut sim, secs(5), |_, _| Some(granted()));
                    assert!(sim.pool().status(id).unwrap().is_reachable(), "{what}");
                    assert_eq!(up(&sim), [true, true], "{what}");
                }
            }
        }
    }
}

/// Who says "off" and then "on" before the registrar has answered is on in the end; the last word counts.
#[test]
fn what_is_asked_for_during_a_stop_comes_when_it_is_over() {
    let last_words: [(Option<Input<'static>>, bool); 3] = [
        (None, true),
        (Some(Input::Stop(WITHIN)), false),
        (
            Some(Input::Pause {
                until: None,
                unregister: true,
            }),
            false,
        ),
    ];
    for (last, on) in last_words {
        for (flows, forget) in [(1, false), (1, true), (2, false), (2, true)] {
            for (command, answered) in [
                (Input::Refresh, true),
                (Input::Refresh, false),
                (Input::Reregister, true),
                (Input::Reregister, false),
            ] {
                let what = format!("{command:?}, {last:?}, {flows} flows, {forget} {answered}");
                let mut sim = match flows {
                    1 => sim(account().outbound_proxy("sip:edge1.example.com;lr;transport=udp")),
                    _ => bound(two("udp")),
                };
                run(&mut sim, secs(1), |_, _| Some(granted()));
                let id = sim.id();
                match forget {
                    true => sim.remove(id, WITHIN),
                    false => sim.input(Input::Stop(WITHIN)),
                }
                sim.events();
                sim.input(command);
                if let Some(last) = &last {
                    sim.input(match last {
                        Input::Stop(within) => Input::Stop(*within),
                        _ => Input::Pause {
                            until: None,
                            unregister: true,
                        },
                    });
                }
                let mut registers = 0;
                run(&mut sim, WITHIN + secs(5), |_, request| {
                    let removes = request.delta_seconds("Expires") == Some(0);
                    registers += usize::from(!removes);
                    match removes {
                        true => answered.then(|| Reply::status(200)),
                        false => Some(granted()),
                    }
                });
                let removals = sim.removals();
                assert_eq!(removals.len(), 1, "{what}: {removals:?}");
                let wanted = if on && !forget { flows } else { 0 };
                assert_eq!(registers, wanted, "{what}");
                assert_eq!(sim.pool().is_empty(), forget, "{what}");
                if !forget {
                    // A binding that nobody removed is there until it expires.
                    let reachable = on || !answered;
                    assert_eq!(sim.status().is_reachable(), reachable, "{what}");
                    let first = sim.events().into_iter().find(|event| {
                        matches!(event, Event::Unregistered(_) | Event::Registered(_))
                    });
                    assert!(matches!(first, Some(Event::Unregistered(_))), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_flow_more_that_comes_during_the_stop_of_one_alone_does_not_keep_it_from_its_end() {
    for forget in [false, true] {
        let alone = || account().outbound_proxy("sip:edge1.example.com;lr;transport=udp");
        let mut sim = sim(alone());
        let id = sim.id();
        let first = sim.sent();
        sim.reply(&first, granted());
        sim.events();
        match forget {
            true => sim.remove(id, WITHIN),
            false => sim.input(Input::Stop(WITHIN)),
        }
        reconfigure(&mut sim, two("udp"));
        run(&mut sim, WITHIN, |_, request| {
            assert_eq!(request.delta_seconds("Expires"), Some(0));
            Some(Reply::status(200))
        });
        ends_once(&mut sim, &Removal::Removed, "one alone");
        assert_eq!(sim.pool().is_empty(), forget);
        assert_eq!(sim.deadline(), None);
        if !forget {
            sim.input(Input::Refresh);
            run(&mut sim, secs(5), |_, _| Some(granted()));
            assert_eq!(up(&sim), [true, true]);
        }
    }
}

#[test]
fn flows_that_go_by_a_configuration_during_a_stop_do_not_make_it_longer() {
    for forget in [false, true] {
        let mut sim = bound(two("udp"));
        let id = sim.id();
        match forget {
            true => sim.remove(id, secs(4)),
            false => sim.input(Input::Stop(secs(4))),
        }
        // Silence ends the first try of each. Those that are no more have what is left of the time, and no more.
        let unregister = sim.all_sent();
        sim.reply(&unregister[1], Reply::status(500));
        sim.advance(secs(3));
        reconfigure(
            &mut sim,
            account().outbound_proxy("sip:edge1.example.com;lr;transport=udp"),
        );
        sim.advance(secs(1));
        ends_once(&mut sim, &Removal::Unanswered, "within");
        assert_eq!(sim.pool().is_empty(), forget);
    }
}

#[test]
fn a_second_stop_has_the_time_of_the_shorter_one_and_keeps_what_was_removed() {
    let mut sim = bound(two("udp"));
    sim.input(Input::Stop(secs(30)));
    let open = sim.all_sent();
    sim.reply(&open[0], Reply::status(200));
    sim.input(Input::Stop(secs(5)));
    sim.advance(secs(5));
    ends_once(&mut sim, &Removal::Unanswered, "5 s");
    // One was removed, the other had never been bound: that something was there is told.
    let mut sim = self::sim(two("udp"));
    let first = sim.sent();
    sim.reply(&first, granted());
    let second = sim.sent();
    sim.events();
    sim.input(Input::Stop(secs(30)));
    let unregister = sim.sent();
    sim.reply(&unregister, Reply::status(200));
    sim.input(Input::Stop(secs(30)));
    sim.reply(&second, Reply::status(403));
    assert_eq!(sim.removals(), [Removal::Removed]);
}

#[test]
fn a_flow_that_has_stopped_is_not_begun_anew_by_a_configuration_while_the_others_stop() {
    for forget in [false, true] {
        let (mut sim, open) = stopping(forget, true);
        // Each flow alone would register for it.
        reconfigure(&mut sim, two("udp").user_agent("another"));
        assert!(sim.is_silent());
        sim.reply(&open[0], Reply::status(200));
        assert!(sim.is_silent());
        ends_once(&mut sim, &Removal::Removed, "no flow begins");
        assert_eq!(sim.deadline(), None);
        if !forget {
            sim.input(Input::Refresh);
            let register = sim.sent();
            assert_eq!(register.header("User-Agent").as_deref(), Some("another"));
        }
    }
}

#[test]
fn a_longer_stop_gives_no_more_time_to_one_that_waits_for_a_register() {
    let mut sim = sim(account().outbound_proxy("sip:edge1.example.com;lr;transport=udp"));
    sim.input(Input::Stop(secs(8)));
    sim.advance(secs(1));
    sim.input(Input::Stop(secs(30)));
    sim.advance(secs(7));
    assert_eq!(sim.removals(), [Removal::Unanswered]);
}

#[test]
fn what_another_command_removes_during_a_stop_is_told_at_its_end() {
    let mut sim = bound(two("udp"));
    sim.input(Input::RemoveAll);
    let star = sim.sent();
    sim.input(Input::Stop(WITHIN));
    let unregister = sim.sent();
    sim.reply(&unregister, Reply::status(200));
    sim.reply(&star, Reply::status(200));
    ends_once(&mut sim, &Removal::Removed, "Contact: *");
    assert_eq!(sim.deadline(), None);
}

#[test]
fn that_all_have_given_up_is_told_with_what_is_bound_still() {
    let mut sim = bound(two("udp"));
    sim.input(Input::Refresh);
    let [first, second] = &sim.all_sent()[..] else {
        panic!("two flows");
    };
    // The first one gives up, and is bound until its lease ends; the second one holds nothing, and gives up later.
    sim.reply(first, Reply::status(403));
    sim.reply(second, Reply::granted(0));
    let mut told = sim.events();
    run(&mut sim, secs(600), |_, request| {
        assert_eq!(edge(request), 2);
        Some(Reply::status(403))
    });
    told.extend(sim.events());
    told.retain(|event| matches!(event, Event::GaveUp { .. }));
    let [Event::GaveUp { lease_left, .. }] = told[..] else {
        panic!("the whole gives up once: {told:?}");
    };
    assert!(sim.status().is_registered());
    assert!(lease_left.is_some_and(|left| left > secs(3000)), "{told:?}");
    // That it ends is told then.
    run(&mut sim, secs(3000), |_, _| None);
    let events = sim.events();
    assert!(
        matches!(events[..], [Event::Expired { next_in: None }]),
        "{events:?}"
    );
    assert_eq!(sim.deadline(), None);
}

#[test]
fn what_was_told_to_be_unregistered_is_registered_again_and_not_refreshed() {
    let mut sim = sim(two("tcp"));
    let first = sim.sent();
    sim.reply(&first, Reply::granted(HOUR));
    // The edge dies: the other one takes over, and the binding of the first cannot be removed.
    sim.fail_flow(first.flow(), FlowError::Reset);
    run(&mut sim, secs(90), |_, request| {
        (edge(request) == 2).then(|| Reply::granted(HOUR))
    });
    assert_eq!(up(&sim), [false, true]);
    sim.events();
    // None but the first, which is bound still as far as it knows.
    reconfigure(
        &mut sim,
        account().outbound_proxy("sip:edge1.example.com;lr;transport=tcp"),
    );
    let mut sent = sim.all_sent();
    sent.sort_by_key(|request| std::cmp::Reverse(edge(request)));
    for request in sent {
        sim.reply(
            &request,
            match request.delta_seconds("Expires") {
                Some(0) => Reply::status(200),
                _ => Reply::granted(HOUR),
            },
        );
    }
    let told = sim.events();
    assert!(
        matches!(
            told[..],
            [Event::Unregistered(Removal::Removed), Event::Registered(_)]
        ),
        "{told:?}"
    );
}

#[test]
fn what_the_new_instance_has_bound_is_not_taken_for_what_the_old_one_removes() {
    let mut sim = bound(two("udp"));
    let other = "urn:uuid:00000000-0000-1000-8000-000a95a0e129";
    let instance = InstanceId::parse(other).expect("a urn");
    reconfigure(&mut sim, two("udp").instance(instance));
    let [first, second] = &sim.all_sent()[..] else {
        panic!("two un-REGISTERs");
    };
    sim.reply(first, Reply::status(200));
    let new = sim.sent();
    sim.reply(&new, granted());
    // Over UDP both instances, and all their flows, have one URI.
    let contact = new.contacts().next().expect("a Contact");
    let listed = format!(
        "<{}>;expires=3600;+sip.instance=\"<{other}>\";reg-id=1",
        contact.uri()
    );
    sim.events();
    sim.reply(second, listing(&[&listed]));
    let told = sim.events();
    assert!(
        matches!(&told[..], [Event::OfFlow { reg_id: 2, event }]
            if **event == Event::Unregistered(Removal::Removed)),
        "{told:?}"
    );
    let second = sim.sent();
    assert_eq!(
        (edge(&second), second.delta_seconds("Expires")),
        (2, Some(HOUR))
    );
    assert!(second.text_of("Contact").contains(other));
    sim.reply(&second, granted());
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn what_is_asked_for_while_all_bindings_are_removed_is_of_all_flows() {
    for replaces in [false, true] {
        let mut sim = bound(two("tcp"));
        sim.input(Input::RemoveAll);
        let all = sim.sent();
        assert_eq!(all.text_of("Contact"), "*");
        // The other flow does it at once, and its binding goes with the others.
        match replaces {
            true => reconfigure(&mut sim, two("tcp").contact_user("a.smith")),
            false => sim.input(Input::Refresh),
        }
        let expires = |request: &SentRequest| request.delta_seconds("Expires");
        for request in sim.all_sent() {
            sim.reply(
                &request,
                match expires(&request) {
                    Some(0) => Reply::status(200),
                    _ => granted(),
                },
            );
        }
        for request in sim.all_sent() {
            sim.reply(&request, granted());
        }
        sim.reply(&all, Reply::status(200));
        let mut held = Vec::new();
        run(&mut sim, secs(60), |_, request| {
            held.retain(|edge| *edge != self::edge(request));
            if expires(request) == Some(0) {
                return Some(Reply::status(200));
            }
            held.push(edge(request));
            Some(granted())
        });
        held.sort_unstable();
        assert_eq!(
            (held, up(&sim)),
            (vec![1, 2], vec![true, true]),
            "{replaces}"
        );
    }
}

#[test]
fn what_was_bound_before_all_bindings_were_removed_is_not_removed_once_more() {
    let mut sim = bound(two("tcp"));
    sim.advance(secs(1));
    sim.input(Input::RemoveAll);
    let all = sim.sent();
    sim.reply(&all, Reply::status(200));
    assert!(sim.is_silent(), "nothing is left that could be refused");
    assert_eq!(sim.events(), [Event::Unregistered(Removal::Removed)]);
    assert_eq!((up(&sim), sim.deadline()), (vec![false, false], None));
}

#[test]
fn that_all_bindings_are_removed_is_told_though_one_whose_connection_died_is_being_refreshed() {
    let mut sim = bound(two("tcp"));
    sim.input(Input::Refresh);
    let [first, second] = &sim.all_sent()[..] else {
        panic!("two flows");
    };
    sim.reply(first, granted());
    sim.fail_flow(second.flow(), FlowError::Reset);
    assert_eq!(edge(&sim.sent()), 2, "once more, over another connection");
    sim.events();
    sim.input(Input::RemoveAll);
    let all = sim.sent();
    assert_eq!(all.text_of("Contact"), "*");
    sim.reply(&all, Reply::status(200));
    assert!(!sim.status().is_registered());
    assert_eq!(sim.events(), [Event::Unregistered(Removal::Removed)]);
}

// ---- pauses

#[test]
fn a_flow_that_comes_in_a_pause_waits_with_the_others() {
    for until in [None, Some(secs(600))] {
        let mut sim = bound(two("udp"));
        let until = until.map(|after| sim.now() + after);
        sim.input(Input::Pause {
            until,
            unregister: false,
        });
        sim.events();
        reconfigure(
            &mut sim,
            two("udp").further_flow("sip:edge3.example.com;lr;transport=udp"),
        );
        run(&mut sim, secs(599), |_, request| panic!("{request:?}"));
        assert_eq!(sim.status().activity, Activity::Paused);
        assert_eq!(sim.events(), []);
        if until.is_none() {
            sim.input(Input::Resume);
        }
        run(&mut sim, secs(5), |_, _| Some(granted()));
        assert_eq!(up(&sim), [true, true, true]);
    }
}

#[test]
fn what_is_removed_in_a_pause_is_bound_again_after_it() {
    let mut sim = bound(two("udp"));
    sim.input(Input::Pause {
        until: None,
        unregister: false,
    });
    sim.events();
    sim.input(Input::RemoveAll);
    let star = sim.sent();
    assert_eq!(star.header("Contact").as_deref(), Some("*"));
    sim.reply(&star, Reply::status(200));
    // That the others hold nothing is known by that.
    assert!(sim.is_silent());
    assert_eq!(sim.events(), [Event::Unregistered(Removal::Removed)]);
    assert!(!sim.status().is_registered());
    assert_eq!(sim.status().activity, Activity::Paused);
    sim.input(Input::Resume);
    run(&mut sim, secs(5), |_, _| Some(granted()));
    assert_eq!(up(&sim), [true, true]);
}

// ---- reconciliations

fn listing(contacts: &[&str]) -> Reply {
    contacts.iter().fold(Reply::status(200), |reply, contact| {
        reply.header("Contact", contact)
    })
}

fn of_flow(host: u8, params: &str) -> String {
    let urn = super::rules_outbound::URN;
    format!("<sip:alice@192.0.2.{host}:5060>;+sip.instance=\"<{urn}>\"{params};expires=60")
}

#[test]
fn a_flow_that_comes_while_a_reconciliation_removes_one_of_its_number_is_bound_after_that() {
    for refused in [false, true] {
        let mut sim = bound(two("udp"));
        sim.input(Input::Reconcile);
        let query = sim.sent();
        let [one, two_, left] = [1, 2, 3].map(|n| of_flow(1, &format!(";reg-id={n}")));
        sim.reply(&query, listing(&[&one, &two_, &left]));
        let removal = sim.sent();
        assert!(removal.header("Contact").unwrap().contains(";reg-id=3;"));
        // On another way it could come to the registrar before the removal, which would remove it then.
        reconfigure(
            &mut sim,
            two("udp").further_flow("sip:edge3.example.com;lr;transport=udp"),
        );
        assert!(sim.is_silent());
        sim.reply(
            &removal,
            match refused {
                true => Reply::status(500),
                false => listing(&[&one, &two_]),
            },
        );
        let third = sim.sent();
        assert_eq!(
            (edge(&third), third.delta_seconds("Expires")),
            (3, Some(HOUR))
        );
        sim.reply(&third, granted());
        assert_eq!(up(&sim), [true, true, true]);
    }
}

#[test]
fn a_reconciliation_spares_a_flow_that_is_bound_without_its_number() {
    // The second edge is none (439): that flow is bound by its Contact alone, and is ours all the same.
    let mut sim = sim(two("tcp"));
    let first = sim.sent();
    sim.reply(&first, granted());
    let second = sim.sent();
    sim.reply(&second, Reply::status(439));
    let second = sim.sent();
    sim.reply(&second, Reply::granted(HOUR));
    assert_eq!(up(&sim), [true, true]);
    let of = |request: &SentRequest| request.header("Contact").unwrap().into_owned();
    sim.input(Input::Reconcile);
    let query = sim.sent();
    let (one, plain) = (of(&first) + ";expires=60", of(&second) + ";expires=60");
    assert!(!plain.contains("reg-id"), "{plain}");
    sim.reply(&query, listing(&[&one, &plain]));
    assert!(sim.is_silent(), "{:?}", sim.all_sent());
    let events = sim.events();
    let Some(Event::Bindings(bindings)) = events.last() else {
        panic!("{events:?}");
    };
    assert!(bindings.iter().all(|one| one.ours && !one.stale));
}

// ---- the same with an agent

#[cfg(feature = "tokio")]
mod agent {
    use super::*;
    use sip_registration::testkit::{MockTransport, Wire};
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn off_and_on_again_ends_registered() {
        let (agent, mut wire, handle) = registered().await;
        let stop = tokio::spawn({
            let agent = agent.clone();
            let id = handle.id();
            async move { agent.unregister(id).await }
        });
        let mut removals = Vec::new();
        for _ in 0..2 {
            removals.push(wire.next_request().await);
        }
        handle.refresh().await.expect("taken");
        for removal in &removals {
            wire.reply(removal, Reply::status(200)).await;
        }
        let removal = timeout(secs(60), stop).await.expect("in time");
        assert_eq!(removal.expect("no panic"), Ok(Removal::Removed));
        for _ in 0..2 {
            let register = wire.next_request().await;
            assert_ne!(register.delta_seconds("Expires"), Some(0));
            wire.reply(&register, granted()).await;
        }
        let bound = timeout(secs(60), handle.registered()).await;
        assert!(bound.expect("in time").is_ok());
    }

    async fn registered() -> (Agent, Wire, RegistrationHandle) {
        let (transport, mut wire) = MockTransport::new();
        let agent = Agent::builder()
            .transport("mock", transport)
            .seed([7; 32])
            .build()
            .await
            .expect("an agent");
        let account = account()
            .outbound_proxy("sip:192.0.2.11;lr;transport=udp")
            .further_flow("sip:192.0.2.12;lr;transport=udp");
        let account = account.build().expect("a good configuration");
        let handle = agent.add(account).await.expect("added");
        for _ in 0..2 {
            let register = wire.next_request().await;
            wire.reply(&register, granted()).await;
        }
        handle.registered().await.expect("registered");
        while agent
            .flow_statuses(handle.id())
            .await
            .iter()
            .any(|(_, flow)| !flow.is_reachable())
        {
            tokio::task::yield_now().await;
        }
        (agent, wire, handle)
    }

    /// What waits for a stop has its answer within the time that it gave, whatever is asked for meanwhile.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_stop_of_several_flows() {
        for forget in [false, true] {
            for answered in [false, true] {
                for command in 0..6 {
                    let (agent, mut wire, handle) = registered().await;
                    let id = handle.id();
                    let clock = SystemClock::new();
                    let started = clock.now();
                    let stop = tokio::spawn(async move {
                        match forget {
                            true => handle.remove(WITHIN).await,
                            false => handle.unregister(WITHIN).await,
                        }
                    });
                    let first = wire.next_request().await;
                    let second = wire.next_request().await;
                    wire.reply(&first, 200).await;
                    let ok = match command {
                        0 => agent.refresh(id).await,
                        1 => agent.reregister(id).await,
                        2 => agent.retry_credentials(id).await,
                        3 => agent.resume(id).await,
                        4 => agent.pause(id, None, false).await,
                        _ => agent.remove_all(id).await,
                    };
                    ok.expect("it is there until it has stopped");
                    if answered {
                        wire.reply(&second, 200).await;
                    }
                    let removal = timeout(WITHIN + secs(1), stop).await;
                    let removal = removal.expect("in time").expect("no panic");
                    let took = clock.now() - started;
                    match answered {
                        true => assert_eq!((removal, took < secs(1)), (Removal::Removed, true)),
                        false => assert_eq!((removal, took >= WITHIN), (Removal::Unanswered, true)),
                    }
                    let there = agent.handle(id).await.is_some();
                    assert_eq!(there, !forget, "command {command}");
                    let fates = agent.shutdown(secs(1)).await;
                    assert_eq!(fates.len(), usize::from(!forget));
                }
            }
        }
    }
}
