//! Several registrars or proxies for one registration, in the order of priority

use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const FIRST: &str = "192.0.2.1:5060";
const SECOND: &str = "192.0.2.2:5060";
const THIRD: &str = "192.0.2.3:5060";

fn account() -> RegistrationBuilder {
    account_at("sip:one.example.com")
        .fallback_server("sip:two.example.com")
        .fallback_proxy("sip:three.example.com;lr")
}

fn account_at(server: &str) -> RegistrationBuilder {
    let mut policy = Policy::default();
    policy.retry.jitter = 0.0;
    policy.refresh.jitter = 0.0;
    Registration::builder(server, "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .max_random_initial_delay(Duration::ZERO)
        .policy(policy)
}

fn sim(account: RegistrationBuilder) -> Sim {
    let mut sim = Sim::many([]);
    for (name, last) in [("one", 1), ("two", 2), ("three", 3)] {
        let name = format!("{name}.example.com");
        sim.resolve(&name, Ok(vec![IpAddr::from([192, 0, 2, last])]));
    }
    sim.resolve(
        "gone.example.com",
        Err(ResolveError::NoAddress("gone.example.com".into())),
    );
    sim.add(account.build().expect("a good configuration"));
    sim
}

fn to(request: &SentRequest) -> String {
    let to: SocketAddr = request.target().address();
    to.to_string()
}

/// Answers whoever is not in `dead`, for as long as `by`; where each request went, copies left out.
fn run(sim: &mut Sim, dead: &[&str], grant: u32, by: Duration) -> Vec<String> {
    let mut gone = Vec::new();
    let mut seen = Vec::new();
    let mut left = by;
    loop {
        for request in sim.all_sent() {
            let number = (request.cseq().map(|(number, _)| number), to(&request));
            if !seen.contains(&number) {
                gone.push(to(&request));
                seen.push(number);
            }
            if !dead.contains(&&*to(&request)) {
                sim.reply(&request, Reply::granted(grant));
            }
        }
        let step = sim.deadline().filter(|step| *step <= left);
        let Some(step) = step else {
            sim.advance(left);
            break;
        };
        sim.advance(step);
        left -= step;
    }
    gone
}

fn expiries(sim: &mut Sim) -> usize {
    let events = sim.events();
    events
        .iter()
        .filter(|event| matches!(event, Event::Expired { .. }))
        .count()
}

#[test]
fn the_next_choice_is_tried_in_the_same_attempt_with_its_own_request_uri_or_route() {
    let mut sim = sim(account());
    let first = sim.sent();
    assert_eq!(
        (to(&first).as_str(), &*first.uri()),
        (FIRST, "sip:one.example.com")
    );
    sim.advance(secs(32));
    let second = sim.all_sent().pop().expect("the second choice");
    assert_eq!(
        (to(&second).as_str(), &*second.uri()),
        (SECOND, "sip:two.example.com")
    );
    assert_eq!(second.text_of("To"), first.text_of("To"));
    sim.reply(&second, Reply::status(503));
    let third = sim.sent();
    assert_eq!(
        (to(&third).as_str(), &*third.uri()),
        (THIRD, "sip:one.example.com")
    );
    assert_eq!(third.text_of("Route"), "<sip:three.example.com;lr>");
    sim.reply(&third, Reply::granted(3600));
    assert!(sim.status().is_registered());
    let failures = sim.events();
    assert!(
        !failures
            .iter()
            .any(|event| matches!(event, Event::Rejected { .. })),
        "{failures:#?}"
    );
}

#[test]
fn an_answer_about_the_account_is_the_last_word() {
    for code in [403, 404, 486, 500, 603] {
        let mut sim = sim(account());
        let first = sim.sent();
        sim.reply(&first, Reply::status(code));
        assert!(sim.is_silent(), "{code}");
    }
    let mut sim = sim(account());
    for nonce in ["a", "b"] {
        let request = sim.sent();
        sim.reply(&request, Reply::challenge("r", nonce));
    }
    assert!(sim.is_silent());
}

#[test]
fn a_name_without_addresses_and_a_refused_connection_lead_on() {
    let gone = Registration::builder("sip:gone.example.com", "sip:bob@example.com")
        .fallback_server("sip:two.example.com")
        .max_random_initial_delay(Duration::ZERO);
    assert_eq!(to(&sim(gone.clone()).sent()), SECOND);
    let mut sim = sim(gone
        .clone()
        .fallback_server("sip:three.example.com")
        .max_random_initial_delay(secs(1)));
    sim.refuse_next_open(FlowError::Refused);
    sim.advance(secs(1));
    assert_eq!(to(&sim.sent()), THIRD);
}

#[test]
fn the_lease_never_ends_when_the_first_choice_dies_and_comes_back() {
    for grant in [80, 120, 600, 3600] {
        let mut sim = sim(account());
        let hours = secs(u64::from(grant) * 6);
        assert!(
            run(&mut sim, &[], grant, hours)
                .iter()
                .all(|to| to == FIRST)
        );
        let down = run(&mut sim, &[FIRST], grant, hours);
        assert!(down.contains(&SECOND.to_owned()), "{grant}: {down:?}");
        assert!(!down.contains(&THIRD.to_owned()), "{grant}: {down:?}");
        assert!(sim.status().is_registered(), "{grant}");
        let back = run(&mut sim, &[], grant, hours.max(secs(2400)));
        assert_eq!(
            back.last().map(String::as_str),
            Some(FIRST),
            "{grant}: {back:?}"
        );
        assert_eq!(expiries(&mut sim), 0, "{grant}");
    }
}

#[test]
fn a_binding_at_a_fallback_is_refreshed_and_removed_there() {
    let mut sim = sim(account());
    run(&mut sim, &[FIRST], 100, secs(40));
    // Within 300 s it is not tried whether the first choice is back.
    let refreshed = run(&mut sim, &[], 100, secs(200));
    assert!(
        !refreshed.is_empty() && refreshed.iter().all(|to| to == SECOND),
        "{refreshed:?}"
    );
    let id = sim.id();
    sim.remove(id, secs(5));
    let removal = sim.sent();
    assert_eq!(
        (to(&removal).as_str(), &*removal.uri()),
        (SECOND, "sip:two.example.com")
    );
    assert_eq!(removal.text_of("Expires"), "0");
}

#[test]
fn what_one_registrar_asked_for_is_not_told_to_another() {
    let mut sim = sim(account().expiration(secs(60)));
    let first = sim.sent();
    sim.reply(&first, Reply::status(423).header("Min-Expires", "1800"));
    let raised = sim.sent();
    assert_eq!(raised.text_of("Expires"), "1800");
    sim.reply(&raised, Reply::challenge("r", "n1"));
    let answer = sim.sent();
    assert!(answer.header("Authorization").is_some());
    sim.reply(&answer, Reply::status(503));
    let second = sim.sent();
    assert_eq!(to(&second), SECOND);
    assert_eq!(second.text_of("Expires"), "60");
    assert!(second.header("Authorization").is_none());
}

#[test]
fn what_a_fallback_asked_for_in_an_attempt_that_failed_is_not_told_to_the_first_choice() {
    let mut sim = sim(account().expiration(secs(60)));
    let first = sim.sent();
    sim.reply(&first, Reply::status(503));
    let second = sim.sent();
    sim.reply(&second, Reply::status(423).header("Min-Expires", "1800"));
    let raised = sim.sent();
    assert_eq!(
        (to(&raised).as_str(), &*raised.text_of("Expires")),
        (SECOND, "1800")
    );
    sim.reply(&raised, Reply::status(500));
    sim.advance(secs(60));
    let again = sim.sent();
    assert_eq!(
        (to(&again).as_str(), &*again.text_of("Expires")),
        (FIRST, "60")
    );
}

#[test]
fn fallbacks_are_checked_and_their_change_replaces_the_binding() {
    let refused = account().fallback_server("sip:").build();
    assert!(
        matches!(refused, Err(BuildError::Fallback { index: 2, .. })),
        "{refused:?}"
    );
    let mut many = account();
    for number in 0..6 {
        many = many.fallback_server(&*format!("sip:{number}.example.com"));
    }
    assert_eq!(
        many.build().err(),
        Some(BuildError::Fallbacks { count: 8, most: 7 })
    );
    let now = account().build().expect("a good configuration");
    let more = account()
        .fallback_server("sip:four.example.com")
        .build()
        .expect("one more");
    assert_eq!(now.fallbacks().len(), 2);
    assert_eq!(now.change_to(&more), Change::Replaces);
    let patient = account()
        .retry_interval(secs(7))
        .build()
        .expect("a good configuration");
    assert_eq!(now.change_to(&patient), Change::InPlace);
}

#[test]
fn a_first_choice_with_many_silent_addresses_leaves_time_for_the_next() {
    let silent = ["192.0.2.11:5060", "192.0.2.12:5060", "192.0.2.13:5060"];
    let many = |sim: &mut Sim| {
        let addresses = (11..=13).map(|last| IpAddr::from([192, 0, 2, last]));
        sim.resolve("many.example.com", Ok(addresses.collect()));
    };
    let account = || account().server_uri("sip:many.example.com");
    // At the start: all in one attempt.
    let mut sim = Sim::many([]);
    many(&mut sim);
    sim.resolve("two.example.com", Ok(vec![IpAddr::from([192, 0, 2, 2])]));
    sim.add(account().build().expect("a good configuration"));
    run(&mut sim, &silent, 600, secs(96));
    assert!(sim.status().is_registered(), "{:#?}", sim.events());
    // While it is bound: all of them die at once, and stay dead.
    for grant in [20, 60, 120, 600, 3600] {
        let mut sim = Sim::many([]);
        many(&mut sim);
        sim.resolve("two.example.com", Ok(vec![IpAddr::from([192, 0, 2, 2])]));
        sim.add(account().build().expect("a good configuration"));
        run(&mut sim, &[], grant, secs(u64::from(grant) * 3));
        assert!(sim.status().is_registered());
        run(&mut sim, &silent, grant, secs(u64::from(grant) * 20));
        assert_eq!(expiries(&mut sim), 0, "{grant}");
    }
}

#[test]
fn a_first_choice_that_is_back_but_refuses_costs_no_lease() {
    for grant in [60, 600] {
        for code in [401, 403, 404, 423, 500, 503, 603] {
            let mut sim = sim(account());
            run(&mut sim, &[FIRST], grant, secs(60));
            assert!(sim.status().is_registered(), "{grant}, {code}");
            sim.events();
            let mut asked = Vec::new();
            let end = sim.elapsed() + secs(3600);
            while sim.elapsed() < end {
                while !sim.is_silent() {
                    let request = sim.sent();
                    if to(&request) == FIRST {
                        asked.push(sim.elapsed());
                        let reply = match code {
                            401 => Reply::challenge("r", &format!("n{}", asked.len())),
                            code => Reply::status(code),
                        };
                        sim.reply(&request, reply);
                    } else {
                        sim.reply(&request, Reply::granted(grant));
                    }
                }
                let next = sim.deadline().expect("a refresh is planned");
                sim.advance(next);
            }
            let events = sim.events();
            let lost = events.iter().any(|event| {
                matches!(
                    event,
                    Event::Expired { .. } | Event::GaveUp { .. } | Event::Rejected { .. }
                )
            });
            assert!(!lost, "{grant}, {code}: {events:#?}");
            assert!(!asked.is_empty(), "{grant}, {code}");
            let paced = asked
                .windows(2)
                .all(|pair| pair[1] == pair[0] || pair[1] - pair[0] >= secs(300));
            assert!(paced, "{grant}, {code}: {asked:?}");
        }
    }
}

#[test]
fn a_fallback_that_dies_leads_back_to_the_first_choice_in_the_same_attempt() {
    for grant in [60, 120] {
        let mut sim = sim(account());
        run(&mut sim, &[FIRST], grant, secs(40));
        assert!(sim.status().is_registered());
        // The fallbacks die, at a time at which no return is due yet.
        let went = run(&mut sim, &[SECOND, THIRD], grant, secs(200));
        assert_eq!(expiries(&mut sim), 0, "{grant}: {went:?}");
        assert_eq!(went.last().map(String::as_str), Some(FIRST));
    }
}

#[test]
fn what_holds_the_lease_is_no_target_of_another_choice() {
    let mut sim = sim(account());
    run(&mut sim, &[FIRST], 100, secs(40));
    assert!(sim.status().is_registered());
    // The name service does not say all of the first choice: that keeps a target of its own, and no other.
    let srv = Query::srv("_sip._udp.one.example.com");
    let broken = Err(ResolveError::Timeout);
    sim.answer(srv, broken);
    for _ in 0..20 {
        while !sim.is_silent() {
            let request = sim.sent();
            let own = match to(&request).as_str() {
                FIRST => "sip:one.example.com",
                _ => "sip:two.example.com",
            };
            assert_eq!(&*request.uri(), own, "at {}", to(&request));
            if to(&request) == SECOND {
                sim.reply(&request, Reply::granted(100));
            }
        }
        let step = sim.deadline().expect("a refresh is planned");
        sim.advance(step);
    }
}

#[test]
fn the_last_of_many_choices_has_its_turn() {
    for dead in 1..=7_u8 {
        let name = |number: u8| format!("{number}.example.com");
        let mut builder = account_at(&format!("sip:{}", name(0)));
        for number in 1..=dead {
            builder = builder.fallback_server(&*format!("sip:{}", name(number)));
        }
        let mut sim = Sim::many([]);
        for number in 0..=dead {
            sim.resolve(
                &name(number),
                Ok(vec![IpAddr::from([192, 0, 2, 10 + number])]),
            );
        }
        sim.add(builder.build().expect("a good configuration"));
        let silent: Vec<_> = (0..dead)
            .map(|number| format!("192.0.2.{}:5060", 10 + number))
            .collect();
        let silent: Vec<_> = silent.iter().map(String::as_str).collect();
        let went = run(&mut sim, &silent, 600, secs(96));
        assert!(sim.status().is_registered(), "{dead}: {went:?}");
    }
}

#[test]
fn retry_after_of_one_choice_keeps_nobody_from_another() {
    let mut sim = sim(account());
    let first = sim.sent();
    sim.reply(&first, Reply::status(503).header("Retry-After", "3600"));
    // The others are silent: that they ask for nothing counts.
    run(&mut sim, &[FIRST, SECOND, THIRD], 600, secs(96));
    let events = sim.events();
    let waits = events.iter().find_map(|event| match event {
        Event::Rejected { retry_in, .. } => Some(*retry_in),
        _ => None,
    });
    let waits = waits.expect("a retry");
    assert!((secs(60)..=secs(66)).contains(&waits), "{events:#?}");
    assert_eq!(sim.status().retries, 0, "maintenance uses up no retry");
    // Who asked is left alone, the others are not.
    let went = run(&mut sim, &[], 600, secs(66));
    assert_eq!(went, [SECOND]);
}

#[test]
fn the_same_credentials_refused_by_the_first_choice_stay_good_at_the_fallback() {
    for grant in [60, 600] {
        let mut sim = sim(account());
        let mut nonce = 0;
        let end = secs(4 * 3600);
        let mut refused = 0;
        while sim.elapsed() < end {
            while !sim.is_silent() {
                let request = sim.sent();
                let answered = request.header("Authorization").is_some();
                nonce += 1;
                let again = Reply::challenge("example.com", &format!("n{nonce}"));
                match to(&request).as_str() {
                    FIRST if sim.elapsed() < secs(100) => {}
                    FIRST => {
                        refused += u32::from(answered);
                        sim.reply(&request, again);
                    }
                    _ if answered => sim.reply(&request, Reply::granted(grant)),
                    _ => sim.reply(&request, again),
                }
            }
            let Some(step) = sim.deadline() else { break };
            sim.advance(step);
        }
        let events = sim.events();
        let lost = events
            .iter()
            .any(|event| matches!(event, Event::Expired { .. } | Event::GaveUp { .. }));
        let last = &events[events.len().saturating_sub(6)..];
        assert!(!lost, "{grant}: {last:#?}");
        assert!(
            (2..=5).contains(&refused),
            "{grant}: {refused} refusals in four hours"
        );
        run(&mut sim, &[FIRST], grant, secs(1));
        // A changed password is tried at the next refresh.
        let changed = account().outbound_auth(Credentials::password("alice", "changed"));
        let changed = std::sync::Arc::new(changed.build().expect("a good configuration"));
        sim.input(Input::Reconfigure(changed));
        let next = sim.deadline().expect("a refresh is planned");
        sim.advance(next);
        assert_eq!(to(&sim.sent()), FIRST);
    }
}

/// A `sip:` registrar whose fallback is a `sips:` one, with TLS to reach that.
fn with_a_secure_fallback(account: RegistrationBuilder) -> Sim {
    let account = account.fallback_server("sips:two.example.com");
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.add_transport("tls", &[Protocol::Tls]));
    sim.resolve("two.example.com", Ok(vec![IpAddr::from([192, 0, 2, 2])]));
    sim.add(account.build().expect("a good configuration"));
    let first = sim.sent();
    assert_eq!(first.target().protocol(), Protocol::Udp);
    sim.reply(&first, Reply::status(503));
    sim
}

#[test]
fn a_secure_fallback_is_reached_over_tls_alone_by_its_proxy_too() {
    for proxy in [None, Some("sip:proxy.example.com;lr")] {
        let mut account = account_at("sip:one.example.com");
        account = match proxy {
            Some(proxy) => account.outbound_proxy(proxy),
            None => account,
        };
        let second = with_a_secure_fallback(account).sent();
        assert_eq!(second.target().protocol(), Protocol::Tls, "{proxy:?}");
        let contact = second.text_of("Contact");
        assert!(contact.starts_with("<sips:"), "{contact}");
    }
    // The other way round it is not asked for.
    let account = account_at("sips:one.example.com").fallback_server("sip:two.example.com");
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.add_transport("tls", &[Protocol::Tls]));
    sim.add(account.build().expect("a good configuration"));
    let first = sim.sent();
    assert_eq!(first.target().protocol(), Protocol::Tls);
    sim.reply(&first, Reply::status(503));
    assert_eq!(sim.sent().target().protocol(), Protocol::Udp);
}

#[test]
fn a_contact_of_a_fallback_is_rewritten_once() {
    let mut account = account_at("sip:one.example.com");
    let mut policy = Policy::default();
    policy.contact_rewriting = ContactRewriting::Mapped;
    account = account.policy(policy);
    let mut sim = with_a_secure_fallback(account);
    for contact in ["sips:s@192.0.2.1:", "sips:s@198.51.100.7:"] {
        let request = sim.sent();
        assert!(request.text_of("Contact").contains(contact));
        let seen = "198.51.100.7:40001".parse().expect("an address");
        sim.reply(&request, Reply::granted(200).seen_from(seen));
        sim.advance(secs(1));
    }
    assert!(sim.is_silent(), "nothing of the Contact has changed");
    while sim.is_silent() {
        let next = sim.deadline().expect("a refresh is planned");
        sim.advance(next);
    }
    let request = sim.sent();
    let seen = "198.51.100.7:40001".parse().expect("an address");
    sim.reply(&request, Reply::granted(200).seen_from(seen));
    sim.advance(secs(5));
    assert!(sim.is_silent(), "nor after a refresh");
}

#[test]
fn an_options_at_a_fallback_asks_the_fallback() {
    let mut policy = Policy::default();
    policy.keep_alive.udp = UdpKeepAlive::Options;
    policy.keep_alive.udp_without_nat = true;
    let mut sim = sim(account().policy(policy));
    let first = sim.sent();
    sim.reply(&first, Reply::status(503));
    let second = sim.sent();
    sim.reply(&second, Reply::granted(600));
    sim.advance(secs(29));
    let options = sim.sent();
    assert_eq!(options.method(), "OPTIONS");
    assert_eq!(
        (to(&options).as_str(), &*options.uri()),
        (SECOND, "sip:two.example.com")
    );
}

#[test]
fn a_thousand_leave_a_dead_first_choice_and_come_back_without_a_storm() {
    const MANY: usize = 1000;
    let mut sim = Sim::many([]);
    for (name, last) in [("one", 1), ("two", 2)] {
        sim.resolve(
            &format!("{name}.example.com"),
            Ok(vec![IpAddr::from([192, 0, 2, last])]),
        );
    }
    for number in 0..MANY {
        let user = format!("user{number}");
        let account =
            Registration::builder("sip:one.example.com", &*format!("sip:{user}@example.com"))
                .fallback_server("sip:two.example.com")
                .contact_user(user)
                .build();
        sim.add(account.expect("a good configuration"));
    }
    // How many went to the first choice in each second.
    let mut asked = Vec::new();
    let (mut expired, mut at_first) = (0, 0);
    for second in 0..4200 {
        let dead = (300..2000).contains(&second);
        let mut sent = 0;
        for _ in 0..10 {
            sim.advance(Duration::from_millis(100));
            while !sim.is_silent() {
                let request = sim.sent();
                sent += u32::from(to(&request) == FIRST);
                if to(&request) != FIRST || !dead {
                    sim.reply(&request, Reply::granted(600));
                }
            }
        }
        asked.push(sent);
        expired += expiries(&mut sim);
        let is_first = |id: &&RegistrationId| {
            let status = sim.pool().status(**id).expect("it is there");
            let lease = status.lease.expect("a lease, all the time");
            lease.target.address().to_string() == FIRST
        };
        if matches!(second, 1999 | 4199) {
            at_first = sim.ids().iter().filter(is_first).count();
        }
        if second == 1999 {
            assert_eq!(at_first, 0, "it is dead");
        }
    }
    assert_eq!((expired, at_first), (0, MANY));
    // While it is dead it is asked now and then, to see whether it is back.
    let (dead, back): (u32, u32) = (asked[1000..2000].iter().sum(), asked[2000..].iter().sum());
    assert!((1..=200).contains(&dead), "{dead} while it was dead");
    assert!((1000..=7000).contains(&back), "{back} when it was back");
    let busiest = asked[2000..].iter().max().copied();
    assert!(busiest <= Some(100), "{busiest:?}");
}
