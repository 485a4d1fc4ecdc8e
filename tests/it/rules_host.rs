//! A host that answers late, badly or never: credentials, places in the window, flows (DESIGN: no state without a way out).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::collections::HashSet;

use super::machine::{built, due, secs};

fn provided(policy: Policy) -> Registration {
    built(
        Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
            .outbound_auth(Credentials::provided("alice"))
            .max_random_initial_delay(secs(0))
            .policy(policy),
    )
}

fn challenge(nonce: &str) -> Reply {
    Reply::challenge("r", nonce)
}

/// A provider that finds `secret`, and a registration that holds a lease by it
fn bound(secret: &str, policy: Policy) -> Sim {
    let mut sim = Sim::new(provided(policy));
    sim.provide(Some(Secret::password(secret)));
    let first = due(&mut sim);
    sim.reply(&first, challenge("n1"));
    let answer = sim.sent();
    sim.reply(&answer, Reply::granted(600));
    assert_matches!(sim.events().last(), Some(Event::Registered(_)));
    sim
}

/// The Authorization, which has to be there
fn response_of(request: &SentRequest) -> String {
    let text = request.text_of("Authorization");
    assert_ne!(text, "", "{}", request.text());
    text
}

#[test]
fn a_provider_is_asked_once_for_a_challenge_and_not_again_while_its_secret_does() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let preemptive = policy.auth.preemptive;
        let mut sim = Sim::new(provided(policy));
        sim.provide(Some(Secret::password("secret")));
        let first = due(&mut sim);
        assert!(sim.asked().is_empty(), "nobody has asked us yet");
        sim.reply(&first, challenge("n1"));
        let asked = sim.asked();
        assert_matches!(&asked[..], [(id, _, query)] => {
            assert_eq!(*id, sim.id());
            assert_eq!((&*query.realm, &*query.username), ("r", "alice"));
            assert_eq!(*query.algorithms, [Algorithm::Md5]);
        });
        let answer = sim.sent();
        assert!(response_of(&answer).contains("username=\"alice\""));
        sim.reply(&answer, Reply::granted(600));
        assert!(sim.status().is_registered());
        // The refresh carries the answer where it goes unasked, without a question to the provider.
        let refresh = due(&mut sim);
        assert_eq!(refresh.text_of("Authorization").is_empty(), !preemptive);
        assert!(sim.asked().is_empty());
    }
}

#[test]
fn no_secret_is_no_answer_and_the_end_until_a_command() {
    let mut sim = Sim::new(provided(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, challenge("n1"));
    assert!(sim.is_silent(), "nothing goes out without a secret");
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp {
            failure: Failure::Unanswerable { why },
            class: FailureClass::Credentials,
            why: GiveUp::CredentialsRefused,
            lease_left: None,
            ..
        }] if &**why == "no secret was provided for realm \"r\""
    );
    assert_eq!(sim.deadline(), None);
    sim.provide(Some(Secret::password("secret")));
    sim.input(Input::RetryCredentials);
    let second = sim.sent();
    sim.reply(&second, challenge("n2"));
    assert_eq!(sim.asked().len(), 2);
    let answer = sim.sent();
    sim.reply(&answer, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn a_provider_that_takes_more_than_30_s_has_no_secret() {
    let mut sim = Sim::new(provided(Policy::default()));
    sim.stall_provider(true);
    let first = sim.sent();
    sim.reply(&first, challenge("n1"));
    sim.advance(secs(29));
    assert_matches!(&sim.events()[..], []);
    assert_eq!(sim.status().activity, Activity::Registering);
    sim.advance(secs(1));
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp {
            failure: Failure::Unanswerable { .. },
            ..
        }]
    );
    // Too late: neither a request nor an event.
    let (id, op, _) = sim.asked().remove(0);
    sim.tell(id, op, Some(Secret::password("secret")));
    assert!(sim.is_silent());
    assert_matches!(&sim.events()[..], []);
    // The next question has a name of its own: an answer to the old one is none to it.
    sim.input(Input::RetryCredentials);
    let second = sim.sent();
    sim.reply(&second, challenge("n2"));
    let (_, newer, _) = sim.asked().remove(0);
    sim.tell(id, op, Some(Secret::password("old")));
    assert!(sim.is_silent());
    sim.tell(id, newer, Some(Secret::password("secret")));
    assert!(response_of(&sim.sent()).contains("nonce=\"n2\""));
}

#[test]
fn an_answer_after_29_s_is_in_time_and_a_slow_refresh_stays_registered() {
    let mut sim = bound("secret", Policy::asterisk());
    sim.asked();
    sim.stall_provider(true);
    // A proxy on the way asks for credentials of its own.
    let refresh = due(&mut sim);
    let value = "Digest realm=\"p\", nonce=\"p1\", qop=\"auth\"";
    sim.reply(
        &refresh,
        Reply::status(407).header("Proxy-Authenticate", value),
    );
    let (id, op, query) = sim.asked().remove(0);
    assert_eq!(&*query.realm, "p");
    // The refresh went out 10 s before the end of the lease, which a slow provider does not prolong.
    sim.advance(secs(9));
    assert!(sim.status().is_registered());
    sim.advance(secs(20));
    assert_matches!(&sim.events()[..], [Event::Expired { .. }]);
    assert_eq!(sim.status().activity, Activity::Registering);
    sim.tell(id, op, Some(Secret::password("secret")));
    let answer = sim.sent();
    assert!(
        answer
            .text_of("Proxy-Authorization")
            .contains("nonce=\"p1\"")
    );
    sim.reply(&answer, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Registered(_)]);
}

/// Whether the `response` of a Digest with MD5 and `qop=auth` was made with this secret (RFC 7616 §3.4.1)
pub(crate) fn made_with(secret: &str, authorization: &str) -> bool {
    use md5::{Digest, Md5};
    let param = |name: &str| {
        let (_, rest) = authorization
            .split_once(&format!(" {name}="))
            .expect("a parameter");
        let value = rest.trim_start_matches('"');
        value[..value.find(['"', ',']).unwrap_or(value.len())].to_owned()
    };
    let hash = |text: String| {
        let digest = Md5::digest(text);
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let a1 = hash(format!("alice:r:{secret}"));
    let a2 = hash(format!("REGISTER:{}", param("uri")));
    let (nonce, nc, cnonce) = (param("nonce"), param("nc"), param("cnonce"));
    hash(format!("{a1}:{nonce}:{nc}:{cnonce}:auth:{a2}")) == param("response")
}

#[test]
fn a_secret_that_changed_is_asked_for_once_the_old_one_is_refused() {
    let mut sim = bound("old", Policy::default());
    sim.asked();
    sim.provide(Some(Secret::password("new")));
    // A nonce that is not good any more says nothing of the secret: the one that was accepted answers the next.
    let refresh = due(&mut sim);
    sim.reply(&refresh, challenge("n2"));
    let answer = sim.sent();
    assert!(made_with("old", &response_of(&answer)));
    assert!(sim.asked().is_empty());
    // Refused with a nonce of its own: the end (D6), until somebody says that there is another.
    sim.reply(&answer, challenge("n3"));
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp {
            failure: Failure::CredentialsRefused { .. },
            lease_left: Some(_),
            ..
        }]
    );
    sim.input(Input::RetryCredentials);
    let again = sim.sent();
    sim.reply(&again, challenge("n4"));
    assert_eq!(sim.asked().len(), 1);
    let answer = sim.sent();
    assert!(made_with("new", &response_of(&answer)));
    sim.reply(&answer, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn a_refused_secret_ends_it_and_a_retry_asks_the_provider_again() {
    let mut sim = Sim::new(provided(Policy::default()));
    sim.provide(Some(Secret::password("wrong")));
    let first = sim.sent();
    sim.reply(&first, challenge("n1"));
    let answer = sim.sent();
    sim.reply(&answer, challenge("n2"));
    assert!(sim.is_silent());
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp {
            failure: Failure::CredentialsRefused { .. },
            why: GiveUp::CredentialsRefused,
            ..
        }]
    );
    assert_eq!(
        sim.asked().len(),
        1,
        "the refused one is not asked for in a loop"
    );
    sim.provide(Some(Secret::password("right")));
    sim.input(Input::RetryCredentials);
    let again = sim.sent();
    assert_eq!(
        again.text_of("Authorization"),
        "",
        "what was refused does not go along"
    );
    sim.reply(&again, challenge("n3"));
    assert_eq!(sim.asked().len(), 1);
    let answer = sim.sent();
    sim.reply(&answer, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn a_retry_that_is_asked_for_in_a_pause_asks_the_provider_anew_after_it() {
    let mut sim = bound("old", Policy::default());
    sim.asked();
    let (until, unregister) = (None, false);
    sim.input(Input::Pause { until, unregister });
    sim.provide(Some(Secret::password("new")));
    sim.input(Input::RetryCredentials);
    assert!(sim.is_silent(), "a pause goes on");
    sim.input(Input::Resume);
    let first = sim.sent();
    assert_eq!(first.text_of("Authorization"), "");
    sim.reply(&first, challenge("n2"));
    assert_eq!(sim.asked().len(), 1);
    assert!(made_with("new", &response_of(&sim.sent())));
}

#[test]
fn a_removal_does_not_wait_longer_for_a_provider_than_it_has() {
    let mut sim = bound("secret", Policy::default());
    sim.asked();
    sim.stall_provider(true);
    let id = sim.id();
    sim.remove(id, secs(10));
    let removal = sim.sent();
    let value = "Digest realm=\"p\", nonce=\"p1\", qop=\"auth\"";
    sim.reply(
        &removal,
        Reply::status(407).header("Proxy-Authenticate", value),
    );
    assert_eq!(sim.asked().len(), 1);
    assert!(sim.removals().is_empty());
    sim.advance(secs(10));
    assert_eq!(sim.removals(), [Removal::Unanswered]);
    assert!(sim.is_silent());
    assert_eq!(sim.deadline(), None);
}

/// Registrations `u0`, `u1` … at one target
fn crowd(count: usize) -> Sim {
    Sim::many((0..count).map(|n| {
        let aor = format!("sip:u{n}@example.com");
        let builder = Registration::builder("sip:192.0.2.9", aor.as_str());
        built(builder.max_random_initial_delay(secs(0)))
    }))
}

fn number(request: &SentRequest) -> usize {
    let to = request.text_of("To");
    let digits = to
        .split_once("sip:u")
        .and_then(|(_, to)| to.split_once('@'));
    digits
        .and_then(|(n, _)| n.parse().ok())
        .expect("one of ours")
}

#[test]
fn d16_the_65th_waits_for_a_place_and_gets_the_first_that_is_free() {
    let mut sim = crowd(66);
    let mut sent = sim.all_sent();
    assert_eq!(
        sent.iter().map(number).collect::<Vec<_>>(),
        (0..64).collect::<Vec<_>>()
    );
    // Held: under way as the application sees it, and with a deadline of its own.
    let held = sim.pool().status(sim.ids()[64]).expect("it is there");
    assert_eq!(held.activity, Activity::Registering);
    // A challenge keeps the place, a grant frees it.
    let last = sent.remove(63);
    sim.reply(&last, Reply::status(100));
    assert!(sim.is_silent());
    sim.reply(&last, Reply::granted(600));
    let next = sim.sent();
    assert_eq!(number(&next), 64);
    assert!(sim.is_silent(), "one place, one request");
    sim.reply(&next, Reply::status(403));
    assert_eq!(number(&sim.sent()), 65, "a refusal frees a place too");
}

#[test]
fn d16_who_is_held_longer_than_a_timer_keeps_the_place_in_the_queue() {
    let mut sim = crowd(192);
    let mut order = Vec::new();
    let mut first: HashSet<usize> = HashSet::new();
    let mut in_flight: Vec<(usize, std::time::Duration)> = Vec::new();
    // Nothing final is answered: a place is free after timer F, so that the last ones are held for two of them.
    while order.len() < 192 {
        for request in sim.all_sent() {
            let n = number(&request);
            if first.insert(n) {
                sim.reply(&request, Reply::status(100));
                order.push(n);
                in_flight.push((n, sim.elapsed() + secs(32)));
            }
        }
        let now = sim.elapsed();
        in_flight.retain(|(_, until)| *until > now);
        assert!(in_flight.len() <= 64, "{} in flight", in_flight.len());
        let next = sim.deadline().expect("something is planned");
        assert!(
            now < secs(600),
            "forgotten: {} of 192 went out",
            order.len()
        );
        sim.advance(next);
    }
    assert!(
        sim.elapsed() >= secs(64),
        "the last were held for longer than 32 s"
    );
    // Those of the first round who failed try again only after a minute, behind those who wait.
    assert_eq!(order, (0..192).collect::<Vec<_>>());
}

#[test]
fn d16_who_is_held_can_be_removed_and_leaves_no_trace() {
    let mut sim = crowd(65);
    let sent = sim.all_sent();
    let held = sim.ids()[64];
    sim.remove(held, secs(35));
    sim.advance(secs(18));
    assert_eq!(
        sim.removals(),
        [Removal::NeverBound],
        "nothing was sent for it, and nothing is"
    );
    let again = sim.all_sent();
    assert!(
        again.iter().all(|request| number(request) < 64),
        "only the others' retransmissions"
    );
    for request in &sent {
        sim.reply(request, Reply::granted(600));
    }
    assert!(sim.is_silent(), "the freed places are nobody's");
}

/// One registration at two addresses
fn two_targets() -> Sim {
    let mut sim = Sim::many([]);
    sim.resolve(
        "example.com",
        Ok(vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]),
    );
    sim.stall_opens(true);
    let account = Registration::builder("sip:example.com;transport=tcp", "sip:alice@example.com");
    sim.add(built(account.max_random_initial_delay(secs(0))));
    sim
}

#[test]
fn an_open_that_nobody_answers_ends_and_the_next_target_is_tried() {
    let mut sim = two_targets();
    let first = sim.opening();
    assert_eq!(first.len(), 1);
    // `connect_timeout`
    sim.advance(secs(7));
    assert!(sim.opening().is_empty());
    sim.advance(secs(1));
    let second = sim.opening();
    assert_eq!(second.len(), 1);
    assert_eq!(sim.closed(), first, "the host is told to let go of it");
    // Up too late: nothing goes out on it.
    sim.opened(first[0], Ok(()));
    assert!(sim.is_silent());
    sim.opened(second[0], Ok(()));
    let register = sim.sent();
    assert_eq!(register.flow(), second[0]);
    assert_eq!(
        register.target().address(),
        "192.0.2.2:5060".parse().expect("an address")
    );
    sim.reply(&register, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn when_no_target_opens_in_time_the_attempt_has_failed_and_another_follows() {
    let mut sim = two_targets();
    sim.advance(secs(20));
    assert_eq!(sim.opening().len(), 2);
    assert_eq!(sim.closed().len(), 2);
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Flow(FlowError::ConnectTimeout(after)),
            class: FailureClass::Temporary,
            attempt: 1,
            ..
        }] if *after == secs(8)
    );
    assert_matches!(sim.status().activity, Activity::Waiting { .. });
    sim.stall_opens(false);
    let register = due(&mut sim);
    sim.reply(&register, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn an_open_that_many_wait_for_times_out_for_all_and_is_asked_for_once() {
    let mut sim = Sim::many([]);
    sim.stall_opens(true);
    for n in 0..10 {
        let aor = format!("sip:u{n}@example.com");
        let builder = Registration::builder("sip:192.0.2.9;transport=tcp", aor.as_str());
        sim.add(built(builder.max_random_initial_delay(secs(0))));
    }
    let opening = sim.opening();
    assert_eq!(opening.len(), 1, "one connect for all");
    sim.advance(secs(10));
    let events = sim.all_events();
    assert_eq!(events.len(), 10);
    for (_, event) in events {
        assert_matches!(
            event,
            Event::Rejected {
                failure: Failure::Flow(FlowError::ConnectTimeout(_)),
                ..
            }
        );
    }
    assert_eq!(sim.closed(), opening);
}

#[test]
fn a_removal_under_way_does_not_wait_for_an_open_longer_than_it_has() {
    let mut sim = Sim::registered(
        built(Registration::builder(
            "sip:192.0.2.9;transport=tcp",
            "sip:alice@example.com",
        )),
        secs(3600),
    );
    let flow = sim
        .status()
        .lease
        .and_then(|lease| lease.flow)
        .expect("a flow");
    sim.stall_opens(true);
    sim.fail_flow(flow, FlowError::Reset);
    let id = sim.id();
    sim.remove(id, secs(5));
    sim.advance(secs(5));
    assert_eq!(
        sim.removals(),
        [Removal::Unanswered],
        "a binding may live, and nobody could be told"
    );
    assert_eq!(sim.deadline(), None);
    assert!(sim.is_silent());
}

/// Thousands that wait for a target whose connection is refused: each is told in its turn, on a stack of any depth.
#[test]
fn d16_a_refused_connection_serves_a_long_queue_without_a_deep_stack() {
    for memory in [true, false] {
        let mut policy = Policy::default();
        if !memory {
            policy.dead_target_memory = secs(0);
        }
        let policy = std::sync::Arc::new(policy);
        let account = move |number: u32| {
            let aor = format!("sip:a{number}@example.com");
            let server = "sip:192.0.2.9;transport=tcp";
            let builder =
                Registration::builder(server, &*aor).policy(std::sync::Arc::clone(&policy));
            built(builder.max_random_initial_delay(secs(0)))
        };
        let run = move || {
            let mut sim = Sim::many([]);
            sim.stall_opens(true);
            for number in 0..3000 {
                sim.add(account(number));
            }
            let mut told = 0;
            for _ in 0..100 {
                for flow in sim.opening() {
                    sim.opened(flow, Err(FlowError::Refused));
                }
                let events = sim.all_events();
                told += events
                    .iter()
                    .filter(|(_, event)| matches!(event, Event::Rejected { .. }))
                    .count();
                if told >= 3000 {
                    break;
                }
            }
            assert_eq!((told, sim.pool().held()), (3000, 0));
        };
        // What a thread of tokio has, or less.
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(run);
        thread.expect("a thread").join().expect("no overflow");
    }
}
