//! RFC 5626 for real: several flows of one registration, what the host sees of them; GRUU, routes, GIN (RFC 5627, 3608,
//! 6140).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const URN: &str = "urn:uuid:00000000-0000-1000-8000-000a95a0e128";
pub(crate) const HOUR: u32 = 3600;

pub(crate) fn instance() -> InstanceId {
    InstanceId::parse(URN).expect("a urn")
}

pub(crate) fn calm() -> Policy {
    let mut policy = Policy::default();
    policy.retry.jitter = 0.0;
    policy.refresh.jitter = 0.0;
    policy
}

pub(crate) fn account() -> RegistrationBuilder {
    Registration::builder("sip:example.com", "sip:alice@example.com")
        .contact_user("alice")
        .instance(instance())
        .outbound(true)
        .max_random_initial_delay(Duration::ZERO)
        .policy(calm())
}

/// Through two edges, over UDP or TCP.
pub(crate) fn two(transport: &str) -> RegistrationBuilder {
    account()
        .outbound_proxy(format!("sip:edge1.example.com;lr;transport={transport}"))
        .further_flow(format!("sip:edge2.example.com;lr;transport={transport}"))
}

pub(crate) fn sim(account: RegistrationBuilder) -> Sim {
    let mut sim = Sim::many([]);
    sim.answer_keep_alives(Some(([192, 0, 2, 1], 5060).into()));
    for (name, last) in [("edge1", 11), ("edge2", 12), ("edge3", 13)] {
        let host = format!("{name}.example.com");
        sim.resolve(&host, Ok(vec![IpAddr::from([192, 0, 2, last])]));
    }
    sim.add(account.build().expect("a good configuration"));
    sim
}

pub(crate) fn edge(request: &SentRequest) -> u8 {
    match request.target().address().ip() {
        IpAddr::V4(ip) => ip.octets()[3] - 10,
        IpAddr::V6(_) => 0,
    }
}

pub(crate) fn granted() -> Reply {
    Reply::granted(HOUR).header("Require", "outbound")
}

/// Both flows are bound at a registrar that does outbound.
pub(crate) fn bound(account: RegistrationBuilder) -> Sim {
    let mut sim = sim(account);
    let first = sim.sent();
    sim.reply(&first, granted());
    let second = sim.sent();
    sim.reply(&second, granted());
    assert_matches!(
        &sim.events()[..],
        [Event::Registered(_), Event::OfFlow { reg_id: 2, event }]
            if matches!(**event, Event::Registered(_))
    );
    sim
}

/// Steps from deadline to deadline for as long as `by`; what `serve` does not answer is silence.
pub(crate) fn run(
    sim: &mut Sim,
    by: Duration,
    mut serve: impl FnMut(Duration, &SentRequest) -> Option<Reply>,
) {
    let mut left = by;
    loop {
        while !sim.is_silent() {
            let request = sim.sent();
            if let Some(reply) = serve(sim.elapsed(), &request) {
                sim.reply(&request, reply);
            }
        }
        let Some(step) = sim.deadline().filter(|step| *step <= left) else {
            return sim.advance(left);
        };
        sim.advance(step);
        left -= step;
    }
}

pub(crate) fn up(sim: &Sim) -> Vec<bool> {
    let flows = sim.pool().flow_statuses(sim.id());
    flows
        .iter()
        .map(|(_, status)| status.is_reachable())
        .collect()
}

#[test]
fn each_flow_registers_under_its_reg_id_with_a_call_id_of_its_own() {
    let mut sim = sim(two("udp"));
    let first = sim.sent();
    assert_eq!(edge(&first), 1);
    let contact = first.header("Contact").expect("a contact").into_owned();
    assert!(
        contact.ends_with(&format!(";reg-id=1;+sip.instance=\"<{URN}>\"")),
        "{contact}"
    );
    assert_eq!(first.option_tags("Supported"), ["path", "outbound"]);
    assert!(
        sim.is_silent(),
        "the others wait for what the registrar says"
    );

    sim.reply(&first, granted());
    let second = sim.sent();
    assert_eq!(edge(&second), 2);
    let contact = second.header("Contact").expect("a contact").into_owned();
    assert!(
        contact.ends_with(&format!(";reg-id=2;+sip.instance=\"<{URN}>\"")),
        "{contact}"
    );
    assert_ne!(first.header("Call-ID"), second.header("Call-ID"));
    sim.reply(&second, granted());
    assert_matches!(
        &sim.events()[..],
        [Event::Registered(one), Event::OfFlow { reg_id: 2, event }]
            if one.outbound && one.reg_id == Some(1)
                && matches!(&**event, Event::Registered(two) if two.reg_id == Some(2))
    );
    assert_eq!(up(&sim), [true, true]);
    assert_eq!(sim.pool().flows_of(sim.id()).len(), 2);
    assert_eq!((sim.pool().len(), sim.pool().ids().count()), (1, 1));

    // Each is refreshed by itself, with the next CSeq of its own.
    let mut seen = Vec::new();
    run(&mut sim, secs(3500), |_, request| {
        seen.push((edge(request), request.cseq().map(|(number, _)| number)));
        Some(granted())
    });
    let cseq = |request: &SentRequest| request.cseq().map(|(number, _)| number + 1);
    seen.sort_unstable();
    assert_eq!(seen, [(1, cseq(&first)), (2, cseq(&second))]);
}

#[test]
fn a_registrar_that_does_not_say_outbound_holds_one_flow() {
    let mut sim = sim(two("udp"));
    let first = sim.sent();
    sim.reply(&first, Reply::granted(HOUR));
    assert_matches!(&sim.events()[..], [Event::Registered(one)] if !one.outbound);
    let mut edges = HashSet::new();
    run(&mut sim, secs(4 * 3600), |_, request| {
        edges.insert(edge(request));
        Some(Reply::granted(HOUR))
    });
    assert_eq!(edges, HashSet::from([1]));
    assert_eq!(up(&sim), [true, false]);
}

#[test]
fn an_edge_that_is_silent_gives_the_other_its_turn() {
    let mut sim = sim(two("udp"));
    let mut first_at = None;
    run(&mut sim, secs(40), |at, request| match edge(request) {
        1 => None,
        _ => {
            first_at.get_or_insert(at);
            Some(granted())
        }
    });
    // Timer F, and no retry interval before the other one.
    assert_eq!(first_at, Some(secs(32)));
    assert!(sim.status().is_reachable());
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected { failure: Failure::Timeout, .. }, Event::Registered(two)]
            if two.reg_id == Some(2)
    );
    // The first one goes on trying, and is told as one of two when it is there.
    run(&mut sim, secs(120), |_, _| Some(granted()));
    assert_matches!(
        &sim.events()[..],
        [Event::OfFlow { reg_id: 1, event }] if matches!(**event, Event::Registered(_))
    );
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn without_outbound_at_the_registrar_the_other_edge_takes_over_alone() {
    let mut sim = sim(two("tcp"));
    let first = sim.sent();
    sim.reply(&first, Reply::granted(HOUR));
    sim.advance(secs(60));
    sim.events();
    // The first edge dies: its connection is lost, and cannot be made.
    let flow = sim.pool().flow(sim.id()).expect("a flow");
    sim.refuse_next_open(FlowError::Refused);
    sim.fail_flow(flow, FlowError::Closed);
    let mut seen = Vec::new();
    run(&mut sim, secs(20), |_, request| {
        seen.push((edge(request), request.delta_seconds("Expires")));
        Some(Reply::granted(HOUR))
    });
    // Its binding cannot be removed while it is dead, and is not refreshed any more.
    assert_eq!(seen, [(2, Some(HOUR))]);
    assert_eq!(up(&sim), [false, true]);
    assert!(sim.status().is_reachable());
}

#[test]
fn what_two_flows_share_at_a_registrar_without_outbound_is_not_removed_by_one_of_them() {
    // One socket, so one Contact, and one binding of it.
    let mut sim = sim(two("udp"));
    let mut seen = Vec::new();
    run(&mut sim, secs(3600), |_, request| {
        let sent = (edge(request), request.delta_seconds("Expires"));
        if !seen.contains(&sent) {
            seen.push(sent);
        }
        (edge(request) == 2).then(|| Reply::granted(HOUR))
    });
    assert_eq!(seen, [(1, Some(HOUR)), (2, Some(HOUR))]);
    assert_eq!(up(&sim), [false, true]);
    // A token of its own in each Contact makes two of them: the one that may be there is removed.
    let mut sim = self::sim(two("udp").line(true).endpoint("alice"));
    seen.clear();
    run(&mut sim, secs(100), |_, request| {
        let sent = (edge(request), request.delta_seconds("Expires"));
        if !seen.contains(&sent) {
            seen.push(sent);
        }
        (edge(request) == 2).then(|| Reply::granted(HOUR))
    });
    assert_eq!(seen, [(1, Some(HOUR)), (2, Some(HOUR)), (1, Some(0))]);
}

#[test]
fn a_configuration_that_comes_during_a_stop_does_not_keep_it_from_its_end() {
    for flows in 0..3 {
        let mut sim = bound(two("udp"));
        let id = sim.id();
        sim.input(Input::Stop(secs(35)));
        let to = (0..flows).fold(account(), |to, n| {
            to.further_flow(format!("sip:edge{}.example.com;lr;transport=udp", n + 2))
        });
        let to = std::sync::Arc::new(
            to.outbound_proxy("sip:edge1.example.com;lr")
                .build()
                .unwrap(),
        );
        sim.with(|pool, cx| pool.reconfigure(cx, id, to));
        run(&mut sim, secs(40), |_, request| {
            assert_eq!(request.delta_seconds("Expires"), Some(0));
            Some(Reply::status(200))
        });
        assert_eq!(sim.removals(), [Removal::Removed], "{flows}");
        assert_eq!(sim.deadline(), None);
        sim.input(Input::Refresh);
        run(&mut sim, secs(5), |_, _| Some(granted()));
        assert_eq!(up(&sim), vec![true; flows + 1]);
    }
}

#[test]
fn a_registrar_without_outbound_is_told_which_contact_the_new_one_replaces() {
    let contacts = |request: &SentRequest| -> Vec<String> {
        let all = request.headers("Contact");
        all.map(|value| value.split(";reg-id").next().unwrap_or_default().to_owned())
            .collect()
    };
    let of = |port: u16, rest: &str| format!("<sip:alice@192.0.2.1:{port};transport=TCP>{rest}");
    for outbound in [false, true] {
        let mut sim = sim(two("tcp"));
        // Before anything is known of it: it removes what has expires=0 beside a reg-id (RFC 5626 §6).
        sim.sent();
        sim.with(|pool, cx| pool.network_changed(cx));
        sim.advance(secs(2));
        let first = sim.sent();
        assert_eq!(contacts(&first), [of(40002, ""), of(40001, ";expires=0")]);
        let grant = match outbound {
            true => granted(),
            false => Reply::granted(HOUR),
        };
        sim.reply(&first, grant.clone());
        for second in sim.all_sent() {
            sim.reply(&second, grant.clone());
        }
        // Known to do outbound, it replaces the Contact of a flow by itself.
        sim.with(|pool, cx| pool.network_changed(cx));
        sim.advance(secs(2));
        let again = sim.sent();
        let said = contacts(&again);
        match outbound {
            true => assert_eq!(said.len(), 1, "{said:?}"),
            false => assert_eq!(said, [of(40003, ""), of(40002, ";expires=0")]),
        }
    }
}

#[test]
fn two_edges_without_outbound_are_one_registration_without_reg_id() {
    let mut sim = sim(two("udp"));
    let mut seen = Vec::new();
    run(&mut sim, secs(3600 * 3), |_, request| {
        let asks = request
            .header("Contact")
            .is_some_and(|c| c.contains("reg-id"));
        seen.push((edge(request), asks));
        Some(if asks {
            Reply::status(439)
        } else {
            Reply::granted(HOUR)
        })
    });
    assert_eq!(
        seen,
        [(1, true), (1, false), (1, false), (1, false), (1, false)]
    );
}

#[test]
fn a_lost_flow_comes_back_by_rfc_5626_while_the_other_holds() {
    let mut sim = bound(two("tcp"));
    sim.advance(secs(60));
    let (edge1, edge2) = match &sim.pool().flows_of(sim.id())[..] {
        [one, two] => (*one, *two),
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        sim.refuse_next_open(FlowError::Refused);
    }
    sim.fail_flow(edge1, FlowError::Closed);
    assert_eq!(up(&sim), [false, true]);
    assert!(sim.status().is_reachable());
    assert_eq!(sim.pool().flow(sim.id()), Some(edge2));
    let lost = sim.elapsed();
    let mut back = None;
    run(&mut sim, secs(600), |at, request| {
        assert_eq!(edge(request), 1, "the other one is not touched");
        back.get_or_insert(at);
        Some(granted())
    });
    assert_eq!(up(&sim), [true, true]);
    // Two failures: 90 s, doubled, half to all of it; then the same doubled.
    let took = back.expect("it came back") - lost;
    assert!(
        (secs(90 + 180)..=secs(180 + 360)).contains(&took),
        "{took:?}"
    );
    let events = sim.events();
    assert!(
        events
            .iter()
            .all(|event| matches!(event, Event::OfFlow { reg_id: 1, .. })),
        "{events:?}"
    );
}

#[test]
fn one_flow_of_several_is_tried_without_end_while_another_holds() {
    for transport in ["udp", "tcp"] {
        let mut sim = sim(two(transport));
        let (mut tries, mut last) = (0, Duration::ZERO);
        // The second edge is silent for a day: more failures than max_retries.
        run(&mut sim, secs(86_400), |at, request| {
            if edge(request) == 1 {
                return Some(granted());
            }
            if at > last + secs(40) {
                tries += 1;
                last = at;
            }
            None
        });
        // Half to all of 1800 s and timer F, once the wait is that long.
        assert!((48..=110).contains(&tries), "{transport}: {tries}");
        let second = sim.pool().flow_statuses(sim.id());
        let Some((
            2,
            Status {
                activity: Activity::Waiting { .. },
                retries: 0,
                ..
            },
        )) = second.get(1)
        else {
            panic!("{second:?}");
        };
        let events = sim.events();
        assert!(
            !events
                .iter()
                .any(|event| matches!(event, Event::GaveUp { .. }))
        );
        run(&mut sim, secs(1900), |_, _| Some(granted()));
        assert_eq!(up(&sim), [true, true]);
    }
}

#[test]
fn while_no_flow_holds_max_retries_counts_as_ever() {
    let mut sim = sim(two("udp").max_retries(2));
    let mut tries = Vec::new();
    run(&mut sim, secs(3600), |at, request| {
        let call = (edge(request), request.cseq().map(|(number, _)| number));
        if !tries.iter().any(|(_, seen)| *seen == call) {
            tries.push((at, call));
        }
        None
    });
    let of = |edge: u8| tries.iter().filter(|(_, (of, _))| *of == edge).count();
    assert_eq!((of(1), of(2)), (3, 3));
    // The second one begins when the first has failed; then each waits 30 s, doubled, half to all of it.
    let first: Vec<_> = tries
        .iter()
        .filter(|(_, (of, _))| *of == 1)
        .map(|(at, _)| *at)
        .collect();
    let waits: Vec<_> = first
        .windows(2)
        .map(|pair| pair[1] - pair[0] - secs(32))
        .collect();
    assert!((secs(30)..=secs(60)).contains(&waits[0]), "{waits:?}");
    assert!((secs(60)..=secs(120)).contains(&waits[1]), "{waits:?}");
    let events = sim.events();
    let ends: Vec<_> = events
        .iter()
        .filter(|event| matches!(event, Event::GaveUp { .. }))
        .collect();
    assert_eq!(ends.len(), 1, "told once, by the last of them: {events:?}");
    assert_eq!(sim.status().activity, Activity::Idle);
    assert_eq!(sim.deadline(), None);
}

#[test]
fn when_all_flows_are_lost_it_is_told_and_each_comes_back() {
    let mut sim = bound(two("tcp"));
    sim.advance(secs(60));
    for flow in sim.pool().flows_of(sim.id()) {
        sim.fail_flow(flow, FlowError::Closed);
    }
    assert!(sim.status().is_registered() && !sim.status().is_reachable());
    let events = sim.events();
    assert_matches!(
        &events[..],
        [Event::OfFlow { reg_id: 1, event }, Event::FlowLost { .. }]
            if matches!(**event, Event::FlowLost { .. })
    );
    run(&mut sim, secs(10), |_, _| Some(granted()));
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn a_removal_removes_every_binding_and_is_told_once() {
    let mut sim = bound(two("udp"));
    let id = sim.id();
    sim.remove(id, secs(35));
    let mut gone = Vec::new();
    run(&mut sim, secs(35), |_, request| {
        gone.push((edge(request), request.delta_seconds("Expires")));
        Some(Reply::status(200))
    });
    gone.sort_unstable();
    assert_eq!(gone, [(1, Some(0)), (2, Some(0))]);
    assert_eq!(sim.removals(), [Removal::Removed]);
    assert!(sim.pool().is_empty() && sim.pool().status(id).is_none());
    assert!(sim.pool().flow_statuses(id).is_empty());
    assert_eq!(sim.deadline(), None);
}

#[test]
fn a_removal_that_one_edge_does_not_answer_says_so() {
    let mut sim = bound(two("udp"));
    let id = sim.id();
    sim.remove(id, secs(35));
    run(&mut sim, secs(40), |_, request| {
        (edge(request) == 1).then(|| Reply::status(200))
    });
    assert_eq!(sim.removals(), [Removal::Unanswered]);
    assert!(sim.pool().is_empty());
}

#[test]
fn a_stop_before_the_second_flow_began_ends_all_the_same() {
    let mut sim = sim(two("udp"));
    let first = sim.sent();
    sim.input(Input::Stop(secs(35)));
    sim.reply(&first, granted());
    run(&mut sim, secs(35), |_, request| {
        assert_eq!(
            (edge(request), request.delta_seconds("Expires")),
            (1, Some(0))
        );
        Some(Reply::status(200))
    });
    assert_eq!(sim.removals(), [Removal::Removed]);
    assert_eq!(sim.pool().len(), 1, "the entry stays");
    // And a command brings it back, with both flows.
    sim.input(Input::Refresh);
    run(&mut sim, secs(5), |_, _| Some(granted()));
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn flows_come_and_go_with_the_configuration_and_the_others_are_not_touched() {
    let mut sim = bound(two("udp"));
    let id = sim.id();
    let change = |sim: &mut Sim, to: RegistrationBuilder| {
        let to = std::sync::Arc::new(to.build().expect("a good configuration"));
        sim.with(|pool, cx| pool.reconfigure(cx, id, to))
    };
    // One more. What else a REGISTER says is the same, so the others have nothing to say.
    let three = two("udp").further_flow("sip:edge3.example.com;lr;transport=udp");
    assert_eq!(change(&mut sim, three), Some(Change::Registers));
    let mut seen = Vec::new();
    run(&mut sim, secs(5), |_, request| {
        seen.push((edge(request), request.delta_seconds("Expires")));
        Some(granted())
    });
    assert!(seen.contains(&(3, Some(HOUR))), "{seen:?}");
    assert_eq!(up(&sim), [true, true, true]);
    // None but the first.
    seen.clear();
    let one = account().outbound_proxy("sip:edge1.example.com;lr;transport=udp");
    change(&mut sim, one.clone());
    run(&mut sim, secs(5), |_, request| {
        seen.push((edge(request), request.delta_seconds("Expires")));
        Some(match request.delta_seconds("Expires") {
            Some(0) => Reply::status(200),
            _ => granted(),
        })
    });
    seen.retain(|(edge, _)| *edge != 1);
    seen.sort_unstable();
    assert_eq!(seen, [(2, Some(0)), (3, Some(0))]);
    assert_eq!((up(&sim), sim.pool().len()), (vec![true], 1));
    // And two again.
    change(&mut sim, two("udp"));
    run(&mut sim, secs(5), |_, _| Some(granted()));
    assert_eq!(up(&sim), [true, true]);
    assert_eq!(change(&mut sim, two("udp")), Some(Change::Untouched));
    assert!(sim.is_silent());
}

#[test]
fn one_without_flows_becomes_one_with_two() {
    let plain = Registration::builder("sip:example.com", "sip:alice@example.com")
        .contact_user("alice")
        .max_random_initial_delay(Duration::ZERO);
    let mut sim = sim(plain);
    let first = sim.sent();
    sim.reply(&first, Reply::granted(HOUR));
    let to = std::sync::Arc::new(two("udp").build().expect("a good configuration"));
    let id = sim.id();
    assert_eq!(
        sim.with(|pool, cx| pool.reconfigure(cx, id, to)),
        Some(Change::Replaces)
    );
    run(&mut sim, secs(5), |_, request| {
        Some(match request.delta_seconds("Expires") {
            Some(0) => Reply::status(200),
            _ => granted(),
        })
    });
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn a_provider_is_asked_by_the_registrations_id_and_each_flow_gets_its_own_answer() {
    let mut sim = sim(two("udp").outbound_auth(Credentials::provided("alice")));
    sim.provide(Some(Secret::password("secret")));
    let mut answered = HashSet::new();
    run(&mut sim, secs(5), |_, request| {
        let proved = request.header("Authorization").is_some();
        if proved {
            answered.insert(edge(request));
        }
        Some(if proved {
            granted()
        } else {
            Reply::challenge("example.com", "abc")
        })
    });
    assert_eq!(answered, HashSet::from([1, 2]));
    let id = sim.id();
    assert!(sim.asked().iter().all(|(asker, ..)| *asker == id));
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn a_pause_and_a_network_change_are_of_all_flows() {
    let mut sim = bound(two("udp"));
    sim.input(Input::Pause {
        until: None,
        unregister: true,
    });
    let mut gone = Vec::new();
    run(&mut sim, secs(60), |_, request| {
        gone.push(edge(request));
        Some(Reply::status(200))
    });
    gone.sort_unstable();
    assert_eq!(gone, [1, 2]);
    assert_eq!(sim.status().activity, Activity::Paused);
    let paused = sim.events();
    let paused = paused
        .iter()
        .filter(|event| matches!(event, Event::Paused { .. }));
    assert_eq!(paused.count(), 1);
    sim.input(Input::Resume);
    run(&mut sim, secs(5), |_, _| Some(granted()));
    assert_eq!(up(&sim), [true, true]);
    sim.with(|pool, cx| pool.network_changed(cx));
    assert!(!sim.status().is_reachable());
    run(&mut sim, secs(5), |_, _| Some(granted()));
    assert_eq!(up(&sim), [true, true]);
}

#[test]
fn what_no_other_device_must_know_goes_with_no_star() {
    let mut sim = bound(two("udp"));
    sim.input(Input::RemoveAll);
    let star = sim.sent();
    assert_eq!(
        star.header("Contact").as_deref(),
        Some("*"),
        "RFC 5626 §4.2.3"
    );
    sim.reply(&star, Reply::status(200));
    run(&mut sim, secs(60), |_, request| {
        assert_eq!(request.delta_seconds("Expires"), Some(0));
        Some(Reply::status(200))
    });
    assert!(!sim.status().is_registered());
    assert_eq!(sim.status().activity, Activity::Idle);
}

#[test]
fn temporary_gruus_are_replaced_and_the_routes_are_those_of_the_last_grant() {
    let account = account()
        .gruu(true)
        .outbound_proxy("sip:edge1.example.com;lr");
    let mut sim = sim(account);
    let id = sim.id();
    assert_eq!(sim.pool().ways_out(id), []);
    let first = sim.sent();
    assert_eq!(first.option_tags("Supported"), ["path", "outbound", "gruu"]);
    let contact = first.header("Contact").expect("a contact").into_owned();
    let with = |temp: &str| {
        let gruus = format!(
            "{contact};expires=3600;pub-gruu=\"sip:alice@example.com;gr={URN}\";temp-gruu=\"sip:{temp}@example.com;gr\""
        );
        Reply::status(200).header("Contact", &gruus)
    };
    let reply = with("tgruu.1")
        .header("Require", "outbound")
        .header(
            "Service-Route",
            "<sip:edge1.example.com;lr>, <sip:home.example.com;lr>",
        )
        .header(
            "P-Associated-URI",
            "\"Alice, at work\" <sip:alice@example.com>, <tel:+15551234>",
        );
    sim.reply(&first, reply);
    assert_matches!(&sim.events()[..], [Event::Registered(r)]
        if r.temporary_gruu.as_deref() == Some("sip:tgruu.1@example.com;gr"));
    let ways = sim.pool().ways_out(id);
    let [way] = &ways[..] else { panic!("{ways:?}") };
    // The edge that is configured and named is there once.
    assert_eq!(
        way.route.iter().map(|route| &**route).collect::<Vec<_>>(),
        ["<sip:edge1.example.com;lr>", "<sip:home.example.com;lr>"]
    );
    assert_eq!(
        &*way.contact,
        &*format!("sip:alice@example.com;gr={URN};ob")
    );
    assert_eq!(
        way.temporary_gruu.as_deref(),
        Some("sip:tgruu.1@example.com;gr")
    );
    assert_eq!(
        way.associated_uris
            .iter()
            .map(|uri| &**uri)
            .collect::<Vec<_>>(),
        [
            "\"Alice, at work\" <sip:alice@example.com>",
            "<tel:+15551234>"
        ]
    );

    // A refresh that says less leaves less.
    sim.advance(secs(3300));
    let refresh = sim.sent();
    sim.reply(&refresh, with("tgruu.2"));
    let ways = sim.pool().ways_out(id);
    let [way] = &ways[..] else { panic!("{ways:?}") };
    assert_eq!(way.route.len(), 1);
    assert_eq!(way.associated_uris.len(), 0);
    assert_eq!(
        way.temporary_gruu.as_deref(),
        Some("sip:tgruu.2@example.com;gr")
    );
    assert_eq!(&*way.contact, &*format!("sip:alice@example.com;gr={URN}"));

    // What was learnt by a binding ends with it (RFC 5627 §4.4).
    sim.input(Input::Stop(secs(35)));
    let last = sim.sent();
    sim.reply(&last, Reply::status(200));
    assert_eq!(sim.pool().ways_out(id), []);
}

#[test]
fn a_route_ends_with_the_lease_and_is_not_there_again_by_the_next() {
    let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .max_random_initial_delay(secs(0))
        .build()
        .expect("a good configuration");
    let mut sim = Sim::new(account);
    let id = sim.id();
    let first = sim.sent();
    let reply = Reply::granted(600)
        .header("Service-Route", "<sip:home.example.com;lr>")
        .header("P-Associated-URI", "<sip:alice@example.com>");
    sim.reply(&first, reply);
    assert_eq!(sim.pool().ways_out(id)[0].route.len(), 1);
    sim.advance_to(secs(599));
    assert_eq!(sim.pool().ways_out(id)[0].route.len(), 1);
    sim.advance_to(secs(601));
    assert!(!sim.status().is_registered());
    assert_eq!(sim.pool().ways_out(id), []);
    // What comes then says nothing of routes, and nothing of the old ones is left.
    sim.advance_to(secs(900));
    sim.all_sent();
    sim.input(Input::Refresh);
    sim.advance(secs(1));
    let again = sim.all_sent().pop().expect("a REGISTER");
    sim.reply(&again, Reply::granted(600));
    let ways = sim.pool().ways_out(id);
    assert_eq!((ways[0].route.len(), ways[0].associated_uris.len()), (0, 0));
}

#[test]
fn a_reconciliation_removes_what_an_earlier_run_left_and_nothing_else() {
    let mut sim = bound(two("udp").outbound_auth(Credentials::password("alice", "secret")));
    let listing = |left: bool| {
        let contact =
            |user: &str, params: &str| format!("<sip:{user}@192.0.2.1:5060>;{params};expires=60");
        let ours = format!("+sip.instance=\"<{URN}>\"");
        let mut reply = Reply::status(200)
            .header("Contact", &contact("alice", &format!("{ours};reg-id=1")))
            .header("Contact", &contact("alice", &format!("{ours};reg-id=2")))
            .header("Contact", "<sip:alice@192.0.2.77:5060>;expires=60");
        if left {
            reply = reply
                .header("Contact", &contact("alice", &format!("{ours};reg-id=4")))
                .header("Contact", &contact("old", &ours));
        }
        reply
    };
    sim.input(Input::Reconcile);
    let query = sim.sent();
    assert_eq!(query.header("Contact"), None);
    sim.reply(&query, Reply::challenge("example.com", "abc"));
    let query = sim.sent();
    sim.reply(&query, listing(true));
    let removal = sim.sent();
    let gone: Vec<_> = removal.headers("Contact").map(|c| c.into_owned()).collect();
    assert_eq!(
        gone,
        [
            format!("<sip:alice@192.0.2.1:5060>;+sip.instance=\"<{URN}>\";reg-id=4;expires=0"),
            format!("<sip:old@192.0.2.1:5060>;+sip.instance=\"<{URN}>\";expires=0"),
        ]
    );
    assert_eq!(removal.header("Expires"), None);
    assert!(
        removal
            .header("Authorization")
            .is_some_and(|a| a.contains("nc=00000002"))
    );
    sim.reply(&removal, listing(false));
    let events = sim.events();
    let [Event::Bindings(bindings)] = &events[..] else {
        panic!("{events:?}");
    };
    let whose: Vec<_> = bindings.iter().map(|one| (one.ours, one.stale)).collect();
    assert_eq!(whose, [(true, false), (true, false), (false, false)]);
    assert_eq!(up(&sim), [true, true]);
    // Nothing is left: a question, and no more.
    sim.input(Input::Reconcile);
    let query = sim.sent();
    sim.reply(&query, listing(false));
    assert!(sim.is_silent());
    // A registrar that refuses the removal has its word told, and the registration goes on.
    sim.input(Input::Reconcile);
    let query = sim.sent();
    sim.reply(&query, listing(true));
    let removal = sim.sent();
    sim.reply(&removal, Reply::status(500));
    assert_matches!(
        sim.events().last(),
        Some(Event::QueryFailed(Failure::Rejected { code: 500, .. }))
    );
    assert!(sim.deadline().is_some());
}

#[test]
fn a_trunk_registers_its_numbers_and_gets_their_calls_by_the_flow() {
    let trunk = Registration::builder("sip:ssp.example.com", "sip:pbx@ssp.example.com")
        .gin(true)
        .max_random_initial_delay(Duration::ZERO);
    let mut sim = sim(trunk);
    let register = sim.sent();
    let contact = register.header("Contact").expect("a contact").into_owned();
    assert!(
        !contact.contains('@') && contact.ends_with(";bnc>"),
        "{contact}"
    );
    for name in ["Require", "Proxy-Require"] {
        assert_eq!(register.option_tags(name), ["gin"]);
    }
    assert_eq!(register.option_tags("Supported"), ["path"]);
    sim.reply(&register, Reply::granted(HOUR));
    let source = register.target().address();
    let found = |source| {
        let to = "<sip:+15550101@ssp.example.com>";
        sim.pool()
            .matches("sip:+15550101@192.0.2.1:5060", to, source)
    };
    assert_eq!(
        found(source).map(|found| found.registration),
        Some(sim.id())
    );
    assert_eq!(found(([192, 0, 2, 77], 5060).into()), None);
}

#[test]
fn what_does_not_go_together_is_refused_with_the_option_and_the_rule() {
    let plain = || Registration::builder("sip:example.com", "sip:alice@example.com");
    let two = || account().further_flow("sip:edge2.example.com;lr");
    let eight = (0..8).fold(account(), |b, n| {
        b.further_flow(format!("sip:edge{n}.example.com;lr"))
    });
    for (builder, says) in [
        (plain().outbound(true), "outbound is on without an instance"),
        (plain().gruu(true), "gruu is on without an instance"),
        (
            plain().further_flow("sip:e;lr"),
            "outbound is on without an instance",
        ),
        (
            two().fallback_server("sip:b.example.com"),
            "further_flow together with fallback_server or fallback_proxy",
        ),
        (
            account().further_flow("not a uri"),
            "further_flow 0: outbound_proxy has no sip or sips uri at index 0",
        ),
        (
            account().further_flow(" "),
            "further_flow 0: outbound_proxy has no <uri> with parameters at index 0",
        ),
        (eight, "9 flows, and 8 is the most"),
        (
            account().contact_header_params("reg-id=3"),
            "contact_header_params is \"reg-id=3\", which has +sip.instance or reg-id beside the option instance",
        ),
        (
            plain().gin(true).contact_user("pbx"),
            "gin together with contact_user",
        ),
    ] {
        assert_eq!(builder.build().expect_err(says).to_string(), says);
    }
    assert!(
        plain()
            .gin(true)
            .contact_uri_params("bnc")
            .require("gin")
            .build()
            .is_ok()
    );
}

#[test]
fn a_command_tries_a_flow_again_that_waits_to_be_made() {
    for wait in [1.1, 2.0, 5.0, 20.0] {
        let mut sim = Sim::many([]);
        for (name, last) in [("edge1", 11), ("edge2", 12)] {
            let host = format!("{name}.example.com");
            sim.resolve(&host, Ok(vec![IpAddr::from([192, 0, 2, last])]));
        }
        sim.refuse_next_open(FlowError::Refused);
        sim.add(two("tcp").build().expect("a good configuration"));
        let second = sim.sent();
        assert_eq!(edge(&second), 2);
        sim.reply(&second, granted());
        sim.events();
        sim.advance(Duration::from_secs_f64(wait));
        sim.input(Input::Refresh);
        let mut seen = Vec::new();
        run(&mut sim, secs(10), |_, request| {
            seen.push(edge(request));
            Some(granted())
        });
        seen.sort_unstable();
        assert_eq!(seen, [1, 2], "after {wait} s: {:?}", sim.events());
        assert_eq!(up(&sim), [true, true]);
    }
}
