//! Flows: kept alive once for all, given up where an answer is due and missing, made again without a storm; and NAT.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentKeepAlive, SentRequest, Sim, stun_error, stun_success};
use sip_registration::*;
use std::net::SocketAddr;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Starts at once, which the reference does not.
fn asterisk() -> Policy {
    let mut policy = Policy::asterisk();
    policy.initial_delay = InitialDelay::Uniform;
    policy
}

fn account(n: usize, transport: &str, policy: &Policy) -> Registration {
    let aor = format!("sip:u{n}@example.com");
    Registration::builder(
        format!("sip:192.0.2.9;transport={transport}").as_str(),
        aor.as_str(),
    )
    .max_random_initial_delay(Duration::ZERO)
    .policy(policy.clone())
    .build()
    .expect("a good configuration")
}

/// Registered for an hour by this answer, its events forgotten.
fn registered(transport: &str, policy: &Policy, reply: Reply) -> (Sim, SentRequest) {
    let mut sim = Sim::new(account(0, transport, policy));
    let first = sim.sent();
    sim.reply(&first, reply);
    assert!(sim.status().is_registered(), "{:?}", sim.events());
    sim.events();
    (sim, first)
}

fn tcp(reply: Reply) -> (Sim, SentRequest) {
    registered("tcp", &Policy::default(), reply)
}

fn udp(reply: Reply) -> (Sim, SentRequest) {
    registered("udp", &Policy::default(), reply)
}

fn granted() -> Reply {
    Reply::granted(3600)
}

fn outbound() -> Reply {
    granted().header("Require", "outbound")
}

/// The waits between keep-alives, in seconds, the first from the start.
fn waits(kept: &[SentKeepAlive]) -> Vec<f64> {
    let at = kept.iter().map(|one| one.at);
    let before = std::iter::once(Duration::ZERO).chain(at.clone());
    at.zip(before)
        .map(|(at, before)| (at - before).as_secs_f64())
        .collect()
}

fn assert_waits(kept: &[SentKeepAlive], from: f64, to: f64) {
    let waits = waits(kept);
    assert!(
        !waits.is_empty() && waits.iter().all(|wait| (from..=to).contains(wait)),
        "{waits:?}"
    );
}

// ---- the pace

#[test]
fn d14_a_connection_is_kept_alive_every_95_to_120_seconds_at_random() {
    let (mut sim, _) = tcp(granted());
    sim.advance(secs(1800));
    let kept = sim.keep_alives();
    assert_waits(&kept, 95.0, 120.0);
    assert!(kept.iter().all(|one| &one.message[..] == b"\r\n\r\n"));
    let mut waits = waits(&kept);
    waits.dedup();
    assert!(waits.len() > 10, "not at random: {waits:?}");
}

#[test]
fn d14_the_reference_keeps_connections_alive_every_90_seconds_and_no_datagrams() {
    let asterisk = asterisk();
    let (mut sim, first) = registered("tcp", &asterisk, granted().header("Flow-Timer", "20"));
    assert!(!first.text_of("Via").contains("keep"));
    sim.advance(secs(1000));
    assert_waits(&sim.keep_alives(), 90.0, 90.0);
    let behind_nat = outbound().seen_from(address("203.0.113.7:1024"));
    let (mut sim, _) = registered("udp", &asterisk, behind_nat);
    sim.advance(secs(1000));
    assert_eq!(sim.keep_alives(), []);
}

#[test]
fn d14_datagrams_are_kept_alive_once_nat_was_seen() {
    let (mut sim, _) = udp(granted());
    sim.advance(secs(600));
    assert_eq!(sim.keep_alives(), []);

    let (mut sim, _) = udp(granted().seen_from(address("203.0.113.7:1024")));
    sim.advance(secs(600));
    let kept = sim.keep_alives();
    assert_waits(&kept, 24.0, 29.0);
    // Alone it is no ping: nobody is asked to answer.
    assert!(kept.iter().all(|one| &one.message[..] == b"\r\n"));
    assert!(sim.events().is_empty() && sim.is_silent());

    let mut policy = Policy::default();
    policy.keep_alive.udp_without_nat = true;
    let (mut sim, _) = registered("udp", &policy, granted());
    sim.advance(secs(600));
    assert_waits(&sim.keep_alives(), 24.0, 29.0);

    let mut policy = Policy::default();
    policy.keep_alive.udp = UdpKeepAlive::Off;
    let nat = granted().seen_from(address("203.0.113.7:1024"));
    let (mut sim, _) = registered("udp", &policy, nat);
    sim.advance(secs(600));
    assert_eq!(sim.keep_alives(), []);
}

#[test]
fn d14_flow_timer_and_keep_set_the_pace_to_80_to_100_percent() {
    for reply in [
        granted().header("Flow-Timer", "50"),
        granted().keep("50"),
        outbound().header("Flow-Timer", "50"),
    ] {
        let (mut sim, first) = tcp(reply);
        assert!(first.text_of("Via").contains(";keep"));
        sim.answer_keep_alives(Some(address("203.0.113.7:1024")));
        sim.advance(secs(1000));
        assert_waits(&sim.keep_alives(), 40.0, 50.0);
    }
    // No recommended interval: ours (RFC 6223 §5).
    let (mut sim, _) = tcp(granted().keep("0"));
    sim.answer_keep_alives(Some(address("203.0.113.7:1024")));
    sim.advance(secs(1000));
    assert_waits(&sim.keep_alives(), 95.0, 120.0);
}

#[test]
fn d14_absurd_flow_timers_make_no_busy_loop() {
    for (timer, from, to) in [
        ("1", 8.0, 10.0),
        ("0", 95.0, 120.0),
        ("4294967295", 2880.0, 3600.0),
        ("99999999999999999999", 95.0, 120.0),
        ("-5", 95.0, 120.0),
        ("soon", 95.0, 120.0),
    ] {
        let reply = Reply::granted(604_800).header("Flow-Timer", timer);
        let (mut sim, _) = tcp(reply);
        sim.answer_keep_alives(Some(address("203.0.113.7:1024")));
        sim.advance(2 * HOUR);
        let kept = sim.keep_alives();
        assert_waits(&kept, from, to);
        let most = (7200.0 / from).ceil() as usize;
        assert!(kept.len() <= most, "{timer}: {}", kept.len());
    }
}

#[test]
fn a_keep_without_value_or_with_nonsense_negotiates_nothing() {
    for value in ["", "yes", "-1"] {
        let (mut sim, _) = tcp(granted().keep(value));
        sim.advance(secs(1800));
        assert_waits(&sim.keep_alives(), 95.0, 120.0);
        assert_eq!(sim.events(), []);
    }
}

#[test]
fn a_refresh_negotiates_anew() {
    let reply = Reply::granted(600);
    let (mut sim, _) = tcp(reply.clone().keep("30"));
    sim.answer_keep_alives(Some(address("203.0.113.7:1024")));
    sim.input(Input::Refresh);
    let refresh = sim.sent();
    sim.reply(&refresh, reply);
    sim.keep_alives();
    sim.advance(secs(400));
    let kept = sim.keep_alives();
    // The one that was planned still goes out.
    assert_waits(&kept[1..2], 95.0, 150.0);
    assert!(kept.len() <= 5, "{:?}", waits(&kept));
}

#[test]
fn a_flow_has_one_keep_alive_and_the_most_demanding_user_decides() {
    let mut impatient = Policy::default();
    impatient.keep_alive.stream = Some(secs(30)..=secs(40));
    let patient = Policy::default();
    let accounts = (0..100).map(|n| account(n, "tcp", if n == 50 { &impatient } else { &patient }));
    let mut sim = Sim::many(accounts);
    grant_all(&mut sim, granted());
    sim.keep_alives();
    sim.advance(secs(1000));
    let kept = sim.keep_alives();
    assert!(kept[0].at <= secs(41));
    let later: Vec<_> = kept
        .windows(2)
        .map(|pair| (pair[1].at - pair[0].at).as_secs())
        .collect();
    assert!(
        later.iter().all(|wait| (30..=40).contains(wait)),
        "{later:?}"
    );
    assert!((24..=34).contains(&kept.len()), "{}", kept.len());
}

/// Answers until nothing more is sent; the moment of each answered request.
fn grant_all(sim: &mut Sim, reply: Reply) -> Vec<(Duration, SentRequest)> {
    let mut all = Vec::new();
    loop {
        let sent = sim.all_sent();
        if sent.is_empty() {
            return all;
        }
        for request in sent {
            sim.reply(&request, reply.clone());
            all.push((sim.elapsed(), request));
        }
    }
}

#[test]
fn a_host_that_keeps_its_flows_alive_is_not_helped() {
    let mut sim = Sim::many([]);
    sim.dress_flows(|info| info.with_keep_alive(KeepAlive::Hosts));
    sim.add(account(0, "tcp", &Policy::default()));
    let first = sim.sent();
    sim.reply(&first, outbound());
    sim.advance(secs(1800));
    assert_eq!(sim.keep_alives(), []);
    assert!(sim.status().is_reachable());
}

// ---- answers that are due, and those that are not

#[test]
fn d14_a_server_that_never_pongs_stays_registered() {
    let (mut sim, first) = tcp(granted());
    sim.advance(secs(1800));
    assert!(sim.keep_alives().len() >= 15);
    assert_eq!(sim.events(), []);
    assert!(sim.status().is_reachable() && sim.closed().is_empty());
    assert_eq!(sim.pool().flow(sim.id()), Some(first.flow()));
}

#[test]
fn d14_a_missing_pong_fails_the_flow_within_10_seconds_where_it_was_negotiated() {
    let mut told = Policy::default();
    told.keep_alive.answered = true;
    let default = Policy::default();
    for (policy, reply) in [
        (&default, outbound()),
        (&default, granted().header("Flow-Timer", "120")),
        (&default, granted().keep("120")),
        (&told, granted()),
    ] {
        let (mut sim, first) = registered("tcp", policy, reply);
        while sim.keep_alives().is_empty() {
            let next = sim.deadline().expect("a keep-alive");
            sim.advance(next);
        }
        let pinged = sim.elapsed();
        sim.advance(Duration::from_millis(9_999));
        assert_eq!(sim.events(), []);
        sim.advance(Duration::from_millis(1));
        assert_eq!(sim.elapsed(), pinged + secs(10));
        assert_matches!(
            &sim.events()[..],
            [Event::FlowLost { error: FlowError::KeepAliveUnanswered(within), next_in: Some(next), .. }]
                if *within == secs(10) && *next <= Duration::from_millis(10)
        );
        assert_eq!(sim.closed(), [first.flow()]);
        assert!(!sim.status().is_reachable());
        sim.advance(secs(1));
        let again = sim.sent();
        assert_ne!(again.flow(), first.flow());
        sim.reply(&again, granted());
        assert!(sim.status().is_reachable());
    }
}

#[test]
fn d14_a_connection_that_has_ponged_must_go_on_under_every_profile() {
    for policy in [Policy::default(), asterisk()] {
        let (mut sim, first) = registered("tcp", &policy, granted());
        sim.answer_keep_alives(Some(address("203.0.113.7:1024")));
        sim.advance(secs(300));
        assert_eq!(sim.events(), []);
        sim.answer_keep_alives(None);
        sim.advance(secs(140));
        assert_matches!(
            &sim.events()[..],
            [Event::FlowLost { flow, error: FlowError::KeepAliveUnanswered(_), .. }, ..] if *flow == first.flow()
        );
    }
}

#[test]
fn a_pong_in_time_keeps_the_flow_and_no_pong_reaches_the_host() {
    let (mut sim, first) = tcp(outbound());
    for _ in 0..5 {
        while sim.keep_alives().is_empty() {
            let next = sim.deadline().expect("a keep-alive");
            sim.advance(next);
        }
        sim.advance(secs(9));
        sim.pong(first.flow());
    }
    sim.advance(secs(50));
    assert!(sim.events().is_empty() && sim.messages().is_empty());
    // Pings of a peer on UDP are nobody's message either.
    sim.receive(address("192.0.2.9:5060"), &b"\r\n\r\n"[..]);
    assert!(sim.messages().is_empty());
}

#[test]
fn d2_a_pong_missed_soon_after_the_grant_is_a_flap() {
    let (mut sim, _) = tcp(outbound().header("Flow-Timer", "10"));
    let mut waits = Vec::new();
    for _ in 0..8 {
        while !sim
            .events()
            .iter()
            .any(|event| matches!(event, Event::FlowLost { .. }))
        {
            let next = sim.deadline().expect("a deadline");
            sim.advance(next);
        }
        let lost = sim.elapsed();
        while sim.is_silent() {
            let next = sim.deadline().expect("a deadline");
            sim.advance(next);
        }
        waits.push((sim.elapsed() - lost).as_secs_f64());
        let again = sim.sent();
        sim.reply(&again, outbound().header("Flow-Timer", "10"));
    }
    assert!(waits[0] >= 1.0 && waits[7] >= 30.0, "{waits:?}");
}

// ---- STUN

fn next_stun(sim: &mut Sim) -> SentKeepAlive {
    loop {
        let mut kept = sim.keep_alives();
        if !kept.is_empty() {
            assert_eq!(kept.len(), 1);
            return kept.remove(0);
        }
        let next = sim.deadline().expect("a keep-alive");
        sim.advance(next);
    }
}

#[test]
fn d14_outbound_over_udp_is_kept_alive_with_stun_every_24_to_29_seconds() {
    for reply in [outbound(), granted().keep("0")] {
        let (mut sim, _) = udp(reply);
        sim.answer_keep_alives(Some(address("203.0.113.7:1024")));
        sim.advance(secs(600));
        let kept = sim.keep_alives();
        assert_waits(&kept, 24.0, 29.0);
        assert!(
            kept.iter()
                .all(|one| one.message.len() == 20 && one.message[0] == 0)
        );
        assert_eq!(sim.events(), []);
        let lease = sim.status().lease.expect("a lease");
        assert_eq!(lease.mapped, Some(address("203.0.113.7:1024")));
    }
}

#[test]
fn stun_is_sent_seven_times_and_its_silence_fails_the_flow() {
    let (mut sim, first) = udp(outbound());
    let request = next_stun(&mut sim);
    sim.advance(Duration::from_millis(39_499));
    assert_eq!(sim.events(), []);
    let again = sim.keep_alives();
    let after: Vec<u128> = again
        .iter()
        .map(|one| (one.at - request.at).as_millis())
        .collect();
    assert_eq!(after, [500, 1500, 3500, 7500, 15_500, 31_500]);
    assert!(again.iter().all(|one| one.message == request.message));
    sim.advance(Duration::from_millis(1));
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost { flow, error: FlowError::KeepAliveUnanswered(_), .. }] if *flow == first.flow()
    );
    sim.advance(secs(1));
    assert_ne!(sim.sent().flow(), first.flow());
}

#[test]
fn a_late_stun_answer_counts_and_a_foreign_one_does_not() {
    let (mut sim, first) = udp(outbound());
    let request = next_stun(&mut sim);
    sim.advance(secs(30));
    let mapped = address("203.0.113.7:1024");
    let answer = stun_success(&request.message, mapped).expect("a request");
    // From elsewhere, or for another transaction: not ours.
    sim.receive(address("198.51.100.66:5060"), answer.clone());
    let mut other = answer.to_vec();
    other[19] ^= 1;
    sim.deliver(first.flow(), other.into());
    assert_eq!(sim.status().lease.expect("a lease").mapped, None);
    sim.deliver(first.flow(), answer.clone());
    assert_eq!(sim.status().lease.expect("a lease").mapped, Some(mapped));
    sim.deliver(first.flow(), answer);
    sim.advance(secs(5));
    assert_eq!(sim.events(), []);
    // Nor is a request of the peer's a message.
    sim.deliver(first.flow(), request.message.clone());
    assert!(sim.messages().is_empty());
}

#[test]
fn a_changed_mapping_fails_the_flow() {
    let (mut sim, first) = udp(outbound());
    let (before, after) = (address("203.0.113.7:1024"), address("203.0.113.7:2048"));
    for mapped in [before, before, after] {
        assert_eq!(sim.events(), []);
        let request = next_stun(&mut sim);
        let answer = stun_success(&request.message, mapped).expect("a request");
        sim.deliver(first.flow(), answer);
    }
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost { error: FlowError::MappingChanged { from, to }, .. }]
            if (*from, *to) == (before, after)
    );
    sim.advance(secs(1));
    let again = sim.sent();
    sim.reply(&again, outbound());
    assert!(sim.status().is_reachable());
}

#[test]
fn a_stun_error_fails_the_flow() {
    let (mut sim, first) = udp(outbound());
    let request = next_stun(&mut sim);
    let answer = stun_error(&request.message, 500).expect("a request");
    sim.deliver(first.flow(), answer);
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost {
            error: FlowError::KeepAliveRefused(500),
            ..
        }]
    );
}

// ---- OPTIONS

fn with_options() -> Policy {
    let mut policy = Policy::default();
    policy.keep_alive.udp = UdpKeepAlive::Options;
    policy
}

/// The next OPTIONS, and how long after `since`.
fn next_options(sim: &mut Sim) -> SentRequest {
    while sim.is_silent() {
        let next = sim.deadline().expect("a keep-alive");
        sim.advance(next);
    }
    let request = sim.sent();
    assert_eq!(request.method(), "OPTIONS");
    request
}

#[test]
fn d14_options_keep_a_flow_alive_and_show_the_mapped_address() {
    let nat = address("203.0.113.7:1024");
    let (mut sim, register) = registered("udp", &with_options(), granted().seen_from(nat));
    let mut at = Vec::new();
    for port in 1024..1034 {
        let request = next_options(&mut sim);
        at.push(sim.elapsed().as_secs_f64());
        request.validate().expect("a good request");
        assert_eq!(request.uri(), register.uri());
        assert_ne!(request.text_of("Call-ID"), register.text_of("Call-ID"));
        assert!(request.text_of("Via").contains(";rport;"));
        let seen = SocketAddr::new(nat.ip(), port);
        // Whatever it says, it answers.
        sim.reply(&request, Reply::status(404).seen_from(seen));
        assert_eq!(sim.status().lease.expect("a lease").mapped, Some(seen));
    }
    assert!(
        at.windows(2)
            .all(|pair| (24.0..=29.0).contains(&(pair[1] - pair[0]))),
        "{at:?}"
    );
    assert!(sim.events().is_empty() && sim.messages().is_empty());
}

#[test]
fn options_that_were_answered_before_are_answered_or_the_flow_has_failed() {
    let nat = granted().seen_from(address("203.0.113.7:1024"));
    // Never answered: sent again as any request, and nothing comes of it.
    let (mut sim, _) = registered("udp", &with_options(), nat.clone());
    sim.advance(secs(600));
    assert!(
        sim.all_sent()
            .iter()
            .all(|request| request.method() == "OPTIONS")
    );
    assert_eq!(sim.events(), []);
    // Answered once: a silence of timer F is the end.
    let (mut sim, first) = registered("udp", &with_options(), nat);
    let request = next_options(&mut sim);
    sim.reply(&request, Reply::status(200));
    next_options(&mut sim);
    sim.advance(Duration::from_millis(31_999));
    assert_eq!(sim.events(), []);
    sim.advance(Duration::from_millis(1));
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost { flow, error: FlowError::KeepAliveUnanswered(_), .. }] if *flow == first.flow()
    );
}

// ---- loss

/// A thousand on one connection, registered; what they ride on.
fn thousand(policy: &Policy) -> (Sim, FlowId) {
    let mut sim = Sim::many((0..1000).map(|n| account(n, "tcp", policy)));
    let granted = grant_all(&mut sim, granted());
    assert_eq!(granted.len(), 1000);
    let flow = granted[0].1.flow();
    assert!(granted.iter().all(|(_, request)| request.flow() == flow));
    (sim, flow)
}

/// Answers each request a round trip later; when each registration's came, in seconds, for as long as told.
fn come_back(sim: &mut Sim, round_trip: Duration, within: Duration) -> Vec<(f64, SentRequest)> {
    let (start, mut back) = (sim.elapsed(), Vec::new());
    let mut on_the_way: std::collections::VecDeque<(Duration, SentRequest)> = Default::default();
    loop {
        for request in sim.all_sent() {
            let now = sim.elapsed();
            back.push(((now - start).as_secs_f64(), request.clone()));
            on_the_way.push_back((now + round_trip, request));
        }
        let next = sim.deadline().map(|next| sim.elapsed() + next);
        let answer = on_the_way.front().map(|(at, _)| *at);
        let Some(at) = next.into_iter().chain(answer).min() else {
            return back;
        };
        if at > start + within {
            return back;
        }
        let now = sim.elapsed();
        if answer == Some(at) {
            sim.advance(at - now);
            if let Some((_, request)) = on_the_way.pop_front() {
                sim.reply(&request, granted());
            }
        } else {
            sim.advance(at - now);
        }
    }
}

fn most_in_a_second(at: &[f64]) -> usize {
    let within = |from: f64| {
        at.iter()
            .filter(|at| (from..from + 1.0).contains(*at))
            .count()
    };
    at.iter().map(|from| within(*from)).max().unwrap_or(0)
}

#[test]
fn d13_a_thousand_on_a_killed_connection_come_back_within_ten_seconds_and_spread() {
    // Held for long, lost just after the grant (D2), and under way when it was lost.
    for (held, refreshing) in [(secs(60), false), (secs(1), false), (secs(60), true)] {
        let (mut sim, lost) = thousand(&Policy::default());
        sim.advance(held);
        if refreshing {
            for id in sim.ids().to_vec().into_iter().take(50) {
                sim.with(|pool, cx| pool.handle(cx, id, Input::Refresh));
            }
            sim.all_sent();
        }
        sim.all_events();
        sim.fail_flow(lost, FlowError::Reset);
        let back = come_back(&mut sim, Duration::from_millis(100), secs(20));
        let at: Vec<f64> = back.iter().map(|(at, _)| *at).collect();
        assert_eq!(back.len(), 1000, "each once");
        let last = at.iter().copied().fold(0.0, f64::max);
        let longest = if held < secs(30) { 11.1 } else { 10.1 };
        assert!(last <= longest, "{last}");
        let most = most_in_a_second(&at);
        assert!(most <= 200, "{most} in a second");
        let mut froms: Vec<_> = back
            .iter()
            .map(|(_, request)| request.text_of("From"))
            .collect();
        froms.sort();
        froms.dedup();
        assert_eq!(froms.len(), 1000, "none twice");
        // One connect for all.
        let mut flows: Vec<_> = back.iter().map(|(_, request)| request.flow()).collect();
        flows.sort();
        flows.dedup();
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].number(), lost.number() + 1);
        let ids = sim.ids().to_vec();
        assert!(ids.iter().all(|id| {
            sim.pool()
                .status(*id)
                .is_some_and(|status| status.is_reachable())
        }));
    }
}

#[test]
fn d13_with_outbound_a_flow_that_cannot_be_made_waits_by_rfc_5626() {
    let outbound = |n| {
        let aor = format!("sip:u{n}@example.com");
        Registration::builder("sip:192.0.2.9;transport=tcp", aor.as_str())
            .max_random_initial_delay(Duration::ZERO)
            .support_outbound(true)
            .build()
            .expect("a good configuration")
    };
    let mut sim = Sim::many([]);
    for _ in 0..6 {
        sim.refuse_next_open(FlowError::Refused);
    }
    sim.add(outbound(0));
    let mut waits = Vec::new();
    for _ in 0..6 {
        let events = sim.events();
        let Some(Event::Rejected { retry_in, .. }) = events.last() else {
            panic!("{events:?}");
        };
        waits.push(retry_in.as_secs_f64());
        let next = sim.deadline().expect("a retry");
        sim.advance(next);
    }
    for (n, wait) in waits.iter().enumerate() {
        let longest = (60.0 * f64::from(1 << n)).min(1800.0);
        assert!((longest / 2.0..=longest + 0.1).contains(wait), "{waits:?}");
    }
    let request = sim.sent();
    sim.reply(&request, granted());
    assert!(sim.status().is_registered());
}

#[test]
fn d13_without_outbound_retry_interval_holds_for_a_flow_that_cannot_be_made() {
    let mut asterisk = asterisk();
    asterisk.retry.retry_interval = secs(45);
    for policy in [&Policy::default(), &asterisk] {
        let mut sim = Sim::many([]);
        sim.refuse_next_open(FlowError::Refused);
        sim.add(account(0, "tcp", policy));
        while sim.events().is_empty() {
            let next = sim.deadline().expect("the first attempt");
            sim.advance(next);
        }
        let next = sim.deadline().expect("a retry");
        let interval = policy.retry.retry_interval;
        assert!(
            next >= interval && next <= interval.mul_f64(1.0 + policy.retry.jitter),
            "{next:?}"
        );
    }
}

#[test]
fn d13_a_registrar_that_is_gone_is_tried_once_a_second_at_most_by_a_thousand() {
    let (mut sim, lost) = thousand(&Policy::default());
    sim.advance(secs(60));
    let before = sim.flows_made();
    for _ in 0..1000 {
        sim.refuse_next_open(FlowError::Refused);
    }
    sim.fail_flow(lost, FlowError::Reset);
    sim.advance(secs(50));
    assert!(sim.is_silent());
    let made = sim.flows_made() - before;
    assert!((1..=12).contains(&made), "{made} connects");
}

#[test]
fn a_flow_lost_during_a_query_or_a_pause_is_told() {
    let (mut sim, first) = tcp(granted());
    sim.advance(secs(60));
    sim.input(Input::Query);
    sim.sent();
    sim.fail_flow(first.flow(), FlowError::Closed);
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost { next_in: Some(next), .. }] if *next <= Duration::from_millis(10)
    );

    let (mut sim, first) = tcp(granted());
    sim.advance(secs(60));
    let until = Some(sim.now() + secs(500));
    sim.input(Input::Pause {
        until,
        unregister: false,
    });
    sim.events();
    sim.fail_flow(first.flow(), FlowError::Closed);
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost { next_in: Some(next), .. }] if *next == secs(500)
    );
    let (mut sim, first) = tcp(granted());
    sim.input(Input::Pause {
        until: None,
        unregister: false,
    });
    sim.events();
    sim.fail_flow(first.flow(), FlowError::Closed);
    assert_matches!(&sim.events()[..], [Event::FlowLost { next_in: None, .. }]);
}

// ---- after sleep

#[test]
fn d22_after_a_clock_jump_flows_are_checked_at_once() {
    let (mut sim, first) = tcp(outbound());
    sim.advance(secs(20));
    sim.with(|pool, cx| pool.clock_jump(cx, secs(600)));
    assert_eq!(sim.keep_alives().len(), 1, "checked");
    sim.advance(secs(10));
    assert_matches!(
        &sim.events()[..],
        [Event::FlowLost { flow, error: FlowError::KeepAliveUnanswered(_), .. }] if *flow == first.flow()
    );
    // Where no answer is due, a keep-alive goes out all the same: a peer that forgot us says so.
    let (mut sim, _) = tcp(granted());
    sim.with(|pool, cx| pool.clock_jump(cx, secs(600)));
    assert_eq!(sim.keep_alives().len(), 1);
    sim.advance(secs(20));
    assert_eq!(sim.events(), []);
    // STUN under way starts anew.
    let (mut sim, first) = udp(outbound());
    next_stun(&mut sim);
    sim.advance(secs(39));
    sim.keep_alives();
    sim.with(|pool, cx| pool.clock_jump(cx, secs(600)));
    let request = next_stun(&mut sim);
    sim.advance(secs(20));
    let answer = stun_success(&request.message, address("203.0.113.7:1024"));
    sim.deliver(first.flow(), answer.expect("a request"));
    assert_eq!(sim.events(), []);
}

// ---- NAT

fn rewriting() -> Policy {
    let mut policy = Policy::default();
    policy.contact_rewriting = ContactRewriting::Mapped;
    policy
}

fn contacts(request: &SentRequest) -> Vec<String> {
    request
        .values("Contact")
        .map(|value| value.into_owned())
        .collect()
}

#[test]
fn what_was_learnt_of_nat_lasts_for_the_flow_and_a_change_is_told() {
    let mapped = address("203.0.113.7:1024");
    let (mut sim, _) = udp(granted().seen_from(mapped));
    assert_eq!(sim.status().lease.expect("a lease").mapped, Some(mapped));
    // A refresh whose answer says nothing of it.
    sim.input(Input::Refresh);
    let refresh = sim.sent();
    sim.reply(&refresh, granted());
    assert_eq!(sim.status().lease.expect("a lease").mapped, Some(mapped));
    assert_matches!(&sim.events()[..], [Event::Refreshed(registered)] if registered.exchange.mapped.is_none());
    // Another account on the flow profits.
    sim.add(account(1, "udp", &Policy::default()));
    let other = sim.sent();
    assert_eq!(other.flow(), refresh.flow());
    sim.reply(&other, granted());
    // A changed one is told, and nothing is rewritten by default.
    sim.input(Input::Refresh);
    let refresh = sim.sent();
    let moved = address("203.0.113.7:2048");
    sim.reply(&refresh, granted().seen_from(moved));
    assert_matches!(
        &sim.events()[..],
        [.., Event::Warning(Warning::MappingChanged { from, to }), Event::Refreshed(registered)]
            if (*from, *to) == (mapped, moved) && registered.exchange.mapped == Some(moved)
    );
    assert_eq!(sim.status().lease.expect("a lease").mapped, Some(moved));
    sim.advance(secs(60));
    assert!(sim.is_silent());
}

#[test]
fn d18_a_contact_is_rewritten_once_and_takes_the_old_one_along() {
    let mapped = address("203.0.113.7:1024");
    let (mut sim, first) = registered("udp", &rewriting(), granted().seen_from(mapped));
    assert_eq!(contacts(&first), ["<sip:s@192.0.2.1:5060>"]);
    sim.advance(secs(1));
    let again = sim.sent();
    assert_eq!(
        contacts(&again),
        [
            "<sip:s@203.0.113.7:1024>",
            "<sip:s@192.0.2.1:5060>;expires=0"
        ]
    );
    // Via stays as it is.
    assert!(again.text_of("Via").contains("192.0.2.1:5060"));
    let reply = Reply::status(200)
        .header("Contact", "<sip:s@203.0.113.7:1024>;expires=3600")
        .seen_from(mapped);
    sim.reply(&again, reply);
    sim.advance(secs(600));
    assert!(sim.is_silent());
    sim.input(Input::Refresh);
    assert_eq!(contacts(&sim.sent()), ["<sip:s@203.0.113.7:1024>"]);
}

#[test]
fn rewriting_never_loops() {
    // Each answer shows another port.
    let mut sim = Sim::new(account(0, "udp", &rewriting()));
    let mut sent = 0;
    while sim.elapsed() < 24 * HOUR {
        for request in sim.all_sent() {
            sent += 1;
            let seen = SocketAddr::new(address("203.0.113.7:1").ip(), 1024 + sent);
            sim.reply(&request, granted().seen_from(seen));
        }
        let next = sim.deadline().expect("a refresh");
        sim.advance(next);
    }
    // 24 hours at a refresh in 49 to 55 minutes, each followed by one more.
    assert!((40..=62).contains(&sent), "{sent}");
}

#[test]
fn mangled_addresses_and_external_ones_are_not_rewritten() {
    for mangled in [
        "0.0.0.0:5060",
        "10.1.2.3:5060",
        "127.0.0.1:5060",
        "[2001:db8::1]:5060",
        "203.0.113.7:0",
    ] {
        let reply = granted().seen_from(address(mangled));
        let (mut sim, _) = registered("udp", &rewriting(), reply);
        sim.advance(secs(600));
        assert!(sim.all_sent().is_empty(), "{mangled}");
        assert_eq!(sim.status().lease.expect("a lease").mapped, None);
    }
    let mut sim = Sim::many([]);
    sim.dress_flows(|info| info.with_sent_by("198.51.100.3:5060"));
    sim.add(account(0, "udp", &rewriting()));
    let first = sim.sent();
    sim.reply(&first, granted().seen_from(address("203.0.113.7:1024")));
    sim.advance(secs(600));
    assert!(sim.is_silent());
}
