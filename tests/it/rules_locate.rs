//! Where registrations go, and where they go when something there fails (RFC 3263; DECISIONS D11, D12, D16, §3).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::machine::{built, due, secs};

const FIRST: [u8; 4] = [192, 0, 2, 1];
const SECOND: [u8; 4] = [192, 0, 2, 2];

fn builder(server: &str) -> RegistrationBuilder {
    Registration::builder(server, "sip:alice@example.com").max_random_initial_delay(Duration::ZERO)
}

fn account(server: &str) -> Registration {
    built(builder(server))
}

fn srv(priority: u16, port: u16, target: &str) -> Srv {
    Srv {
        priority,
        weight: 0,
        port,
        target: target.into(),
    }
}

/// A stage where `example.com` has a primary and a secondary server, by SRV.
fn stage(seed: u8) -> Sim {
    let mut sim = Sim::seeded([seed; 32], []);
    servers(&mut sim, &["a.example.com", "b.example.com"]);
    sim.resolve("a.example.com", Ok(vec![FIRST.into()]));
    sim.resolve("b.example.com", Ok(vec![SECOND.into()]));
    sim
}

/// Names the servers, each less preferred than the one before.
fn servers(sim: &mut Sim, names: &[&str]) {
    for service in ["_sip._udp.example.com", "_sip._tcp.example.com"] {
        let servers = names
            .iter()
            .zip(0..)
            .map(|(name, priority)| srv(priority, 5060, name));
        sim.answer(Query::srv(service), Ok(Answer::srv(servers.collect())));
    }
}

fn ip(request: &SentRequest) -> IpAddr {
    request.target().address().ip()
}

/// Lets time pass until `until`; requests are answered by `server`, or not. The requests come along.
fn run(
    sim: &mut Sim,
    until: Duration,
    mut server: impl FnMut(&SentRequest) -> Option<Reply>,
) -> Vec<(Duration, SentRequest)> {
    let mut all = Vec::new();
    loop {
        for request in sim.all_sent() {
            if let Some(reply) = server(&request) {
                sim.reply(&request, reply);
            }
            all.push((sim.elapsed(), request));
        }
        if !sim.is_silent() {
            continue;
        }
        match sim.deadline() {
            Some(next) if sim.elapsed() + next <= until => sim.advance(next),
            _ => break,
        }
    }
    sim.advance_to(until);
    all
}

fn granted(seconds: u32) -> Option<Reply> {
    Some(Reply::granted(seconds))
}

fn expired(sim: &mut Sim) -> bool {
    let events = sim.events();
    events
        .iter()
        .any(|event| matches!(event, Event::Expired { .. }))
}

fn bound(sim: &Sim) -> IpAddr {
    let status = sim.status();
    status.lease.expect("a lease").target.address().ip()
}

#[test]
fn a_name_is_followed_by_naptr_srv_and_addresses() {
    let mut sim = Sim::many([]);
    let service = |order, service: &str, replacement: &str| Naptr {
        order,
        preference: 0,
        flags: "S".into(),
        service: service.into(),
        replacement: replacement.into(),
    };
    sim.answer(
        Query::naptr("example.com"),
        Ok(Answer::naptr(vec![
            service(20, "SIP+D2U", "_sip._udp.example.net"),
            service(10, "SIP+D2T", "_sip._tcp.example.net"),
            service(5, "SIPS+D2T", "_sips._tcp.example.net"),
        ])),
    );
    sim.answer(
        Query::srv("_sip._tcp.example.net"),
        Ok(Answer::srv(vec![
            srv(2, 5072, "late.example.net"),
            srv(1, 5071, "early.example.net"),
        ])),
    );
    sim.resolve("early.example.net", Ok(vec![FIRST.into()]));
    sim.resolve(
        "late.example.net",
        Ok(vec!["2001:db8::2".parse().expect("an address")]),
    );
    sim.add(account("sip:example.com"));
    // The stage speaks UDP and TCP, not TLS.
    let request = sim.sent();
    assert_eq!(request.target().to_string(), "TCP 192.0.2.1:5071");
    assert_eq!(request.target().host(), "example.com");
    assert!(request.text_of("Via").starts_with("SIP/2.0/TCP "));
    sim.reply(&request, Reply::status(503));
    assert_eq!(sim.sent().target().to_string(), "TCP [2001:db8::2]:5072");
}

#[test]
fn the_named_transport_limits_the_protocols() {
    let mut sim = stage(1);
    for (transport, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)] {
        sim.add(built(builder("sip:example.com").transport(transport)));
        assert_eq!(sim.sent().target().protocol(), protocol);
    }
    sim.events();
    sim.add(built(
        builder("sip:example.com;transport=udp").transport("tcp"),
    ));
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Resolve(ResolveError::NoProtocol(_)),
            ..
        }]
    );
}

#[test]
fn each_answer_holds_for_its_own_time() {
    let mut sim = stage(1);
    let answer = |text: &str, ttl| {
        let address = text.parse().expect("an address");
        Ok(Answer::new(vec![address]).with_ttl(secs(ttl)))
    };
    sim.answer(Query::new("a.example.com"), answer("192.0.2.1", 100));
    sim.add(account("sip:example.com;transport=udp"));
    let register = sim.sent();
    sim.reply(&register, Reply::status(500));
    sim.answer(Query::new("a.example.com"), answer("192.0.2.7", 100));
    // The retry is within 72 s, the next one after 100 s.
    let retry = due(&mut sim);
    assert_eq!(ip(&retry), IpAddr::from(FIRST));
    sim.reply(&retry, Reply::status(500));
    assert_eq!(ip(&due(&mut sim)), IpAddr::from([192, 0, 2, 7]));
}

#[test]
fn d12_a_withdrawn_target_is_used_for_one_more_lifetime_of_the_answer() {
    let mut sim = stage(1);
    let servers = |target: &str| Answer::srv(vec![srv(0, 5060, target)]).with_ttl(secs(600));
    let query = || Query::srv("_sip._udp.example.com");
    sim.answer(query(), Ok(servers("a.example.com")));
    sim.add(account("sip:example.com;transport=udp"));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(400));
    sim.answer(query(), Ok(servers("b.example.com")));
    // The answer holds until 600 s, and its target for 600 s more.
    for (at, request) in run(&mut sim, secs(3000), |_| granted(400)) {
        let expected = if at < secs(1200) { FIRST } else { SECOND };
        assert_eq!(ip(&request), IpAddr::from(expected), "{at:?}");
    }
    assert_eq!(bound(&sim), IpAddr::from(SECOND));
    assert!(!expired(&mut sim));
}

#[test]
fn a_name_that_changes_its_address_is_followed_at_a_refresh_without_a_gap() {
    let mut sim = stage(1);
    sim.resolve("host.example.com", Ok(vec![FIRST.into()]));
    sim.add(account("sip:host.example.com:5060"));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    sim.resolve("host.example.com", Ok(vec![SECOND.into()]));
    let refresh = due(&mut sim);
    assert_eq!(ip(&refresh), IpAddr::from(SECOND));
    sim.reply(&refresh, Reply::granted(3600));
    assert!(!expired(&mut sim));
}

#[test]
fn d1_the_lease_outlives_every_failure_of_one_target() {
    type Fail = fn(&mut Sim, &SentRequest);
    let failures: [(&str, &str, Fail); 9] = [
        ("silence", "udp", |_, _| {}),
        ("silence on a stream", "tcp", |_, _| {}),
        ("503", "udp", |sim, request| {
            sim.reply(request, Reply::status(503));
        }),
        ("503 with Retry-After", "udp", |sim, request| {
            sim.reply(request, Reply::status(503).header("Retry-After", "300"));
        }),
        ("503 after a challenge", "udp", |sim, request| {
            sim.reply(request, Reply::challenge("r", "n"));
            let answer = sim.sent();
            sim.reply(&answer, Reply::status(503));
        }),
        ("silence after a challenge", "udp", |sim, request| {
            sim.reply(request, Reply::challenge("r", "n"));
            sim.sent();
        }),
        ("an ICMP error", "udp", |sim, request| {
            sim.fail_flow(request.flow(), FlowError::Refused);
            // Once more over a new socket.
            let again = sim.sent();
            assert_eq!(again.target(), request.target());
            sim.fail_flow(again.flow(), FlowError::Refused);
        }),
        ("a reset, and no new connection", "tcp", |sim, request| {
            sim.refuse_next_open(FlowError::Refused);
            sim.fail_flow(request.flow(), FlowError::Reset);
        }),
        (
            "a reset, and no answer to a new connection",
            "tcp",
            |sim, request| {
                sim.stall_opens(true);
                sim.fail_flow(request.flow(), FlowError::Reset);
                assert_eq!(sim.opening().len(), 1);
                sim.stall_opens(false);
            },
        ),
    ];
    for grant in [80, 81, 90, 120, 300, 400, 1800, 3600, 86_400, 604_800] {
        for (name, transport, fail) in failures {
            for seed in 0..5 {
                let mut sim = stage(seed);
                let server = format!("sip:example.com;transport={transport}");
                let credentials = Credentials::password("alice", "secret");
                sim.add(built(builder(&server).outbound_auth(credentials)));
                let register = sim.sent();
                assert_eq!(ip(&register), IpAddr::from(FIRST));
                sim.reply(&register, Reply::granted(grant));
                let refresh = due(&mut sim);
                assert_eq!(ip(&refresh), IpAddr::from(FIRST), "{name}");
                fail(&mut sim, &refresh);
                // The other one is well, and asks for credentials.
                let start = sim.elapsed();
                let end = start + secs(44);
                run(&mut sim, end, |request| {
                    match (
                        ip(request) == IpAddr::from(SECOND),
                        request.header("Authorization"),
                    ) {
                        (false, _) => None,
                        (true, None) => Some(Reply::challenge("r", "other")),
                        (true, Some(_)) => granted(grant),
                    }
                });
                let lost = expired(&mut sim);
                assert!(!lost, "{name}, {grant} s, seed {seed}");
                assert_eq!(
                    bound(&sim),
                    IpAddr::from(SECOND),
                    "{name}, {grant} s, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn a_challenge_is_answered_where_it_came_from() {
    let mut sim = stage(1);
    let credentials = Credentials::password("alice", "secret");
    sim.add(built(builder("sip:example.com").outbound_auth(credentials)));
    let first = sim.sent();
    sim.reply(&first, Reply::status(503));
    let second = sim.sent();
    sim.reply(&second, Reply::challenge("r", "n"));
    let answer = sim.sent();
    assert_eq!(answer.target(), second.target());
    assert_ne!(answer.target(), first.target());
}

fn crowd(sim: &mut Sim, server: &str, policy: &Policy, many: u32, spread: Duration) {
    for n in 0..many {
        let aor = format!("sip:u{n}@example.com");
        sim.add(built(
            Registration::builder(server, aor.as_str())
                .policy(policy.clone())
                .max_random_initial_delay(spread),
        ));
    }
}

#[test]
fn a_dead_first_target_costs_one_timer_f_for_a_thousand_registrations() {
    for spread in [Duration::ZERO, secs(10), secs(60)] {
        let mut sim = stage(1);
        crowd(
            &mut sim,
            "sip:example.com;transport=udp",
            &Policy::default(),
            1000,
            spread,
        );
        let mut begun: HashMap<String, Duration> = HashMap::new();
        let sent = run(&mut sim, spread + secs(34), |request| {
            (ip(request) == IpAddr::from(SECOND)).then(|| Reply::granted(3600))
        });
        for (at, request) in sent {
            if ip(&request) == IpAddr::from(FIRST) {
                begun.entry(request.text_of("Call-ID")).or_insert(at);
            }
        }
        let ids = sim.ids().to_vec();
        let registered = ids
            .iter()
            .filter(|id| {
                sim.pool()
                    .status(**id)
                    .is_some_and(|status| status.is_registered())
            })
            .count();
        assert_eq!(registered, 1000, "{spread:?}");
        // A window's worth found out, the others went straight to the second.
        assert!(begun.len() <= 64, "{spread:?}: {}", begun.len());
        // Once it is known, nobody begins with the first.
        let known = begun.values().min().copied().unwrap_or_default() + secs(32);
        assert!(begun.values().all(|at| *at <= known), "{spread:?}");
    }
}

#[test]
fn the_window_shrinks_on_loss() {
    let mut sim = stage(1);
    let policy = Policy::default();
    crowd(&mut sim, "sip:192.0.2.1", &policy, 300, Duration::ZERO);
    assert_eq!(sim.all_sent().len(), 64);
    sim.advance(secs(3));
    let late = sim.all_sent();
    let calls: HashMap<String, SentRequest> = late
        .into_iter()
        .map(|request| (request.text_of("Call-ID"), request))
        .collect();
    let calls: Vec<_> = calls.into_values().collect();
    assert_eq!(calls.len(), 64, "all of them were sent again");
    // Halved by each of the two rounds: 16 are to be in flight, and one more for each answer; the 25th makes room.
    for (n, request) in calls.iter().enumerate() {
        sim.reply(request, Reply::granted(3600));
        assert_eq!(sim.is_silent(), n < 24, "{n}");
        sim.all_sent();
    }
}

#[test]
fn the_way_back_to_the_primary_is_no_stampede() {
    let mut sim = stage(3);
    let policy = Policy::default();
    crowd(
        &mut sim,
        "sip:example.com;transport=udp",
        &policy,
        500,
        secs(60),
    );
    let alive = |from: u64, until: u64| move |at: Duration| at < secs(from) || at >= secs(until);
    // The first is dead from 1000 s to 3000 s.
    let up = alive(1000, 3000);
    let mut returned: Vec<Duration> = Vec::new();
    let mut at_first_while_dead = 0;
    let mut moved: HashMap<String, IpAddr> = HashMap::new();
    let mut lost = 0;
    while sim.elapsed() < secs(6000) {
        let now = sim.elapsed();
        for request in sim.all_sent() {
            let call = request.text_of("Call-ID");
            if ip(&request) == IpAddr::from(FIRST) && !up(now) {
                at_first_while_dead += 1;
                continue;
            }
            let before = moved.insert(call, ip(&request));
            if before == Some(IpAddr::from(SECOND)) && ip(&request) == IpAddr::from(FIRST) {
                returned.push(now);
            }
            sim.reply(&request, Reply::granted(600));
        }
        lost += sim
            .events()
            .iter()
            .filter(|event| matches!(event, Event::Expired { .. }))
            .count();
        let next = sim.deadline().expect("something is planned");
        sim.advance(next);
    }
    assert_eq!(lost, 0, "no lease was interrupted");
    // While it was dead: those who found out, and one at a time after that; 11 datagrams each.
    assert!(at_first_while_dead <= 11 * 64, "{at_first_while_dead}");
    // One found out that it is well; the others came after it was for 300 s, each at its own refresh.
    assert_eq!(returned.len(), 500, "all are back");
    let early: Vec<_> = returned
        .iter()
        .filter(|at| **at < returned[0] + secs(300))
        .collect();
    assert_eq!(early.len(), 1, "{early:?}");
    let mut busiest: HashMap<u64, u32> = HashMap::new();
    for at in &returned {
        *busiest.entry(at.as_secs()).or_default() += 1;
    }
    let most = busiest.values().max().copied().unwrap_or_default();
    assert!(most <= 25, "{most} in one second");
}

#[test]
fn d11_who_asked_to_be_left_alone_is_by_all() {
    let mut sim = stage(1);
    let policy = Policy::default();
    crowd(&mut sim, "sip:192.0.2.1", &policy, 200, Duration::ZERO);
    let first = sim.all_sent();
    assert_eq!(first.len(), 64);
    sim.reply(&first[0], Reply::status(503).header("Retry-After", "100"));
    // Those who queued do not go there; each is told when it will.
    assert!(sim.is_silent());
    let told = sim.events().into_iter().filter(|event| {
        matches!(event, Event::Rejected { failure, retry_in, attempt: 0, .. }
            if *retry_in >= secs(100) && *retry_in <= secs(110)
                && matches!(failure, Failure::Rejected { code: 503, .. } | Failure::Flow(FlowError::TargetDown { .. })))
    });
    assert_eq!(told.count(), 137);
    for request in &first[1..] {
        sim.reply(request, Reply::granted(3600));
    }
    // An answer to one of the others says that it is well again.
    let command = sim.ids()[150];
    sim.with(|pool, cx| pool.handle(cx, command, Input::Refresh));
    let register = sim.sent();
    sim.reply(&register, Reply::status(503).header("Retry-After", "50"));
    // On command and for removals it is not left alone.
    sim.with(|pool, cx| pool.handle(cx, command, Input::Refresh));
    assert_eq!(sim.sent().target(), register.target());
    let registered = sim.ids()[5];
    sim.remove(registered, secs(35));
    assert_eq!(sim.sent().text_of("Expires"), "0");
}

#[test]
fn d11_when_all_asked_to_be_left_alone_nothing_is_sent_until_the_first_may_be_asked() {
    let mut sim = stage(1);
    let server = "sip:example.com;transport=udp";
    sim.add(account(server));
    for seconds in ["200", "100"] {
        let request = sim.sent();
        sim.reply(&request, Reply::status(503).header("Retry-After", seconds));
    }
    // Another registration, at 30 s, waits for what is left.
    sim.add(built(
        Registration::builder(server, "sip:bob@example.com").max_random_initial_delay(secs(30)),
    ));
    sim.events();
    let sent = run(&mut sim, secs(99), |_| None);
    assert_eq!(sent.len(), 0);
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Flow(FlowError::TargetDown { .. }),
            attempt: 0,
            ..
        }]
    );
    let sent = run(&mut sim, secs(130), |_| granted(600));
    assert_eq!(sent.len(), 2);
    for (_, request) in &sent {
        assert_eq!(ip(request), IpAddr::from(SECOND));
    }
}

#[test]
fn a_target_that_ignores_one_account_stays_with_the_others() {
    let mut sim = stage(2);
    let policy = Policy::default();
    crowd(
        &mut sim,
        "sip:example.com;transport=udp",
        &policy,
        20,
        secs(5),
    );
    let ignored = |request: &SentRequest| request.text_of("To").contains("u7@");
    let sent = run(&mut sim, secs(20_000), |request| {
        (!ignored(request)).then(|| Reply::granted(300))
    });
    let elsewhere: Vec<_> = sent
        .iter()
        .filter(|(_, request)| !ignored(request) && ip(request) != IpAddr::from(FIRST))
        .map(|(at, request)| (*at, request.text_of("To")))
        .collect();
    // It took them for down once at most, until somebody asked.
    assert!(elsewhere.len() <= 20, "{elsewhere:?}");
    assert!(
        elsewhere.iter().all(|(at, _)| *at < secs(1000)),
        "{elsewhere:?}"
    );
    assert!(!expired(&mut sim));
}

#[test]
fn d12_asterisk_resolves_anew_and_remembers_nothing() {
    let mut sim = stage(1);
    sim.add(built(
        builder("sip:example.com;transport=udp").policy(Policy::asterisk()),
    ));
    for _ in 0..3 {
        let first = due(&mut sim);
        assert_eq!(ip(&first), IpAddr::from(FIRST));
        let second = due(&mut sim);
        if ip(&second) == IpAddr::from(FIRST) {
            // A retransmission.
            sim.advance(secs(33));
        }
        let all = sim.all_sent();
        let at_second = all
            .iter()
            .find(|request| ip(request) == IpAddr::from(SECOND));
        sim.reply(at_second.expect("it fails over"), Reply::granted(600));
        assert_eq!(bound(&sim), IpAddr::from(SECOND));
    }
}

#[test]
fn dns_that_is_down_never_ends_a_lease() {
    for error in [
        ResolveError::Timeout,
        ResolveError::Failed("SERVFAIL".into()),
    ] {
        let mut sim = stage(1);
        sim.add(account("sip:example.com;transport=udp"));
        let register = sim.sent();
        sim.reply(&register, Reply::granted(300));
        for query in [
            Query::srv("_sip._udp.example.com"),
            Query::new("a.example.com"),
            Query::new("b.example.com"),
            Query::new("example.com"),
        ] {
            sim.answer(query, Err(error.clone()));
        }
        // For three days: longer than any old answer serves.
        let sent = run(&mut sim, secs(3 * 86_400), |request| {
            assert_eq!(ip(request), IpAddr::from(FIRST));
            granted(300)
        });
        assert!(sent.len() > 800, "{}", sent.len());
        assert!(!expired(&mut sim) && sim.status().is_registered());
    }
}

#[test]
fn old_answers_serve_a_new_registration_while_dns_is_down() {
    let mut sim = stage(1);
    sim.add(account("sip:example.com;transport=udp"));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    sim.advance(secs(1000));
    sim.answer(
        Query::srv("_sip._udp.example.com"),
        Err(ResolveError::Timeout),
    );
    sim.answer(Query::new("a.example.com"), Err(ResolveError::Timeout));
    sim.add(account("sip:example.com;transport=udp"));
    assert_eq!(ip(&sim.sent()), IpAddr::from(FIRST));
}

#[test]
fn without_srv_support_the_name_itself_is_asked() {
    let mut sim = Sim::many([]);
    sim.answer(
        Query::naptr("example.com"),
        Err(ResolveError::Unsupported(QueryKind::Naptr)),
    );
    for service in ["_sip._udp.example.com", "_sip._tcp.example.com"] {
        sim.answer(
            Query::srv(service),
            Err(ResolveError::Unsupported(QueryKind::Srv)),
        );
    }
    sim.add(account("sip:example.com"));
    assert_eq!(sim.sent().target().to_string(), "UDP 192.0.2.9:5060");
}

#[test]
fn d1_a_grant_that_no_dead_target_fits_in_is_told_once_for_each_length() {
    let warned = |sim: &mut Sim| {
        let warning = |event: Event| match event {
            Event::Warning(Warning::NoRoomForFailover(granted)) => Some(granted),
            _ => None,
        };
        sim.events()
            .into_iter()
            .filter_map(warning)
            .collect::<Vec<_>>()
    };
    let mut sim = stage(1);
    sim.add(account("sip:192.0.2.1"));
    for (granted, told) in [
        (79, true),
        (79, false),
        (60, true),
        (60, false),
        (80, false),
        (79, true),
    ] {
        let request = due(&mut sim);
        sim.reply(&request, Reply::granted(granted));
        let expected = told.then(|| secs(granted.into()));
        assert_eq!(warned(&mut sim), Vec::from_iter(expected), "{granted}");
    }
    let mut sim = stage(1);
    sim.add(built(builder("sip:192.0.2.1").policy(Policy::asterisk())));
    let request = due(&mut sim);
    sim.reply(&request, Reply::granted(60));
    assert!(warned(&mut sim).is_empty());
}

#[test]
fn another_network_forgets_what_was_down_here() {
    let mut sim = stage(1);
    sim.add(account("sip:example.com;transport=udp"));
    run(&mut sim, secs(33), |request| {
        (ip(request) == IpAddr::from(SECOND)).then(|| Reply::granted(3600))
    });
    assert_eq!(bound(&sim), IpAddr::from(SECOND));
    sim.with(|pool, cx| pool.network_changed(cx));
    let register = due(&mut sim);
    assert_eq!(ip(&register), IpAddr::from(FIRST));
}
