//! Challenges and credentials (DECISIONS D4, D5, D6; BEHAVIOUR §4).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::sync::Arc;

use super::machine::{account, built, due, secs, under};

fn proxy(nonce: &str) -> Reply {
    let value = format!("Digest realm=\"p\", nonce=\"{nonce}\", qop=\"auth\"");
    Reply::status(407).header("Proxy-Authenticate", &value)
}

fn stale(nonce: &str) -> Reply {
    let value = format!("Digest realm=\"r\", nonce=\"{nonce}\", qop=\"auth\", stale=true");
    Reply::status(401).header("WWW-Authenticate", &value)
}

#[test]
fn d3_a_proxy_a_registrar_and_a_423_fit_into_one_cycle() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let preemptive = policy.auth.preemptive;
        let mut sim = Sim::new(under(policy));
        let mut request = due(&mut sim);
        let script = [
            proxy("p1"),
            Reply::challenge("r", "r1"),
            Reply::status(423).header("Min-Expires", "7200"),
            proxy("p2"),
            Reply::challenge("r", "r2"),
        ];
        for (n, reply) in script.into_iter().enumerate() {
            sim.reply(&request, reply);
            request = sim.sent();
            if n == 2 {
                // The repeat carries what was accepted, where it may.
                let sent = !request.text_of("Authorization").is_empty();
                assert_eq!(sent, preemptive);
            }
        }
        assert_eq!(request.text_of("Expires"), "7200");
        sim.reply(&request, Reply::granted(7200));
        assert!(sim.status().is_registered());
        // Kept for the next one.
        assert_eq!(due(&mut sim).text_of("Expires"), "7200");
    }
}

#[test]
fn d3_six_requests_a_target_are_the_end_and_no_refusal() {
    let mut sim = Sim::new(under(Policy::default()));
    let mut requests = 0;
    for n in 0..20 {
        let Some(request) = sim.all_sent().pop() else {
            break;
        };
        requests += 1;
        // Each answer wants a longer time.
        let least = (4000 + n).to_string();
        sim.reply(&request, Reply::status(423).header("Min-Expires", &least));
    }
    assert_eq!(requests, 6);
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Budget,
            class: FailureClass::Temporary,
            attempt: 1,
            ..
        }]
    );
}

#[test]
fn d3_a_cycle_ends_after_96_seconds_and_eight_targets() {
    let named = Registration::builder("sip:example.com", "sip:alice@example.com")
        .max_random_initial_delay(secs(0));
    let names: Vec<std::net::IpAddr> = (1..=12).map(|n| [192, 0, 2, n].into()).collect();
    let mut sim = Sim::many([]);
    sim.resolve("example.com", Ok(names.clone()));
    sim.add(built(named.clone()));
    sim.advance(secs(97));
    let mut targets: Vec<_> = sim
        .all_sent()
        .iter()
        .map(|r| r.target().address())
        .collect();
    targets.dedup();
    assert_eq!(targets.len(), 3);
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Budget,
            ..
        }]
    );
    let mut sim = Sim::many([]);
    sim.resolve("example.com", Ok(names));
    sim.add(built(named));
    let mut tried = 0;
    while let Some(request) = sim.all_sent().pop() {
        tried += 1;
        sim.reply(&request, Reply::status(503));
    }
    assert_eq!(tried, 8);
}

#[test]
fn d4_a_second_challenge_with_a_new_nonce_is_a_rejection() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let mut sim = Sim::new(under(policy));
        let first = due(&mut sim);
        sim.reply(&first, Reply::challenge("r", "n1"));
        let second = sim.sent();
        sim.reply(&second, Reply::challenge("r", "n2"));
        assert!(sim.is_silent(), "exactly two REGISTERs");
        assert_matches!(
            &sim.events()[..],
            [
                ..,
                Event::GaveUp {
                    failure: Failure::CredentialsRefused { .. },
                    why: GiveUp::CredentialsRefused,
                    ..
                } | Event::GaveUp {
                    failure: Failure::CredentialsRefused { .. },
                    why: GiveUp::NoInterval,
                    ..
                }
            ]
        );
        assert_eq!(sim.deadline(), None);
    }
}

#[test]
fn d4_stale_is_answered_three_times() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n0"));
    for n in 1..=3 {
        let request = sim.sent();
        sim.reply(&request, stale(&format!("n{n}")));
    }
    let last = sim.sent();
    assert!(last.text_of("Authorization").contains("nonce=\"n3\""));
    sim.reply(&last, stale("n4"));
    assert!(sim.is_silent());
    assert_matches!(
        &sim.events()[..],
        [Event::Rejected {
            failure: Failure::Budget,
            ..
        }]
    );
}

#[test]
fn d4_a_nonce_of_an_earlier_cycle_may_be_challenged_without_stale() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n1"));
    let second = sim.sent();
    sim.reply(&second, Reply::granted(600));
    let refresh = due(&mut sim);
    assert!(refresh.text_of("Authorization").contains("nc=00000002"));
    sim.reply(&refresh, Reply::challenge("r", "n2"));
    let again = sim.sent();
    sim.reply(&again, Reply::granted(600));
    assert!(sim.status().last_failure.is_none());
}

#[test]
fn asterisk_never_sends_credentials_unasked() {
    let mut sim = Sim::new(under(Policy::asterisk()));
    let first = due(&mut sim);
    sim.reply(&first, Reply::challenge("r", "n1"));
    let second = sim.sent();
    sim.reply(&second, Reply::granted(600));
    assert_eq!(due(&mut sim).text_of("Authorization"), "");
}

#[test]
fn a_retry_after_a_failure_begins_without_credentials() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n1"));
    let second = sim.sent();
    sim.reply(&second, Reply::status(500));
    assert_eq!(due(&mut sim).text_of("Authorization"), "");
}

fn refuse(sim: &mut Sim, nonce: &mut u32) -> bool {
    *nonce += 1;
    let first = due(sim);
    sim.reply(&first, Reply::challenge("r", &format!("a{nonce}")));
    let Some(second) = sim.all_sent().pop() else {
        return false;
    };
    sim.reply(&second, Reply::challenge("r", &format!("b{nonce}")));
    true
}

#[test]
fn d6_three_refusals_block_whatever_the_options_say_until_the_credential_changes() {
    for (policy, revive) in [
        (Policy::default(), 0),
        (Policy::persistent(), 1),
        (Policy::default(), 2),
    ] {
        let wrong = || {
            account()
                .policy(policy.clone())
                .auth_rejection_permanent(false)
        };
        let mut sim = Sim::new(built(wrong()));
        let mut nonce = 0;
        for _ in 0..3 {
            assert!(refuse(&mut sim, &mut nonce));
            assert_matches!(sim.events().last(), Some(Event::Rejected { .. }));
        }
        assert!(!refuse(&mut sim, &mut nonce), "not a fourth answer");
        assert_matches!(
            sim.events().last(),
            Some(Event::GaveUp {
                why: GiveUp::CredentialsRefused,
                ..
            })
        );
        assert_eq!(sim.deadline(), None);
        match revive {
            0 => sim.input(Input::Reconfigure(Arc::new(
                Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
                    .policy(policy.clone())
                    .auth_rejection_permanent(false)
                    .outbound_auth(Credentials::password("alice", "right"))
                    .max_random_initial_delay(secs(0))
                    .build()
                    .expect("a good configuration"),
            ))),
            1 => sim.with(|pool, cx| {
                let id = pool.ids().next().expect("one");
                pool.retry_credentials(cx, id);
            }),
            _ => {
                // A command alone does not unblock it.
                sim.input(Input::Refresh);
                assert!(!refuse(&mut sim, &mut nonce));
                continue;
            }
        }
        let first = sim.sent();
        sim.reply(&first, Reply::challenge("r", "good"));
        let second = sim.sent();
        sim.reply(&second, Reply::granted(600));
        assert!(sim.status().is_registered());
    }
}

#[test]
fn d6_what_a_person_lets_try_again_are_the_credentials_that_come_next() {
    let named = |name| {
        let to = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
            .outbound_auth(Credentials::password(name, "secret"))
            .auth_rejection_permanent(false)
            .max_random_initial_delay(secs(0));
        built(to)
    };
    let change = |name| Input::Reconfigure(Arc::new(named(name)));
    let pause = || Input::Pause {
        until: None,
        unregister: false,
    };
    let mut sim = Sim::new(named("alice"));
    let mut nonce = 0;
    while refuse(&mut sim, &mut nonce) {}
    // Another account is refused after that, once.
    sim.input(change("bob"));
    assert!(refuse(&mut sim, &mut nonce));
    sim.input(pause());
    sim.input(change("alice"));
    sim.input(Input::RetryCredentials);
    assert!(sim.is_silent(), "a pause goes on");
    sim.input(Input::Resume);
    // Three of them, as ever.
    for _ in 0..3 {
        assert!(refuse(&mut sim, &mut nonce));
    }
    assert!(!refuse(&mut sim, &mut nonce), "not a fourth answer");
    assert_eq!(sim.deadline(), None);
    // Until it is said once more.
    sim.input(Input::RetryCredentials);
    assert!(refuse(&mut sim, &mut nonce));
}

#[test]
fn d6_a_password_changed_while_registered_is_used_at_the_next_challenge() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n1"));
    let second = sim.sent();
    sim.reply(&second, Reply::granted(600));
    let other = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "changed"))
        .max_random_initial_delay(secs(0));
    sim.input(Input::Reconfigure(Arc::new(built(other))));
    assert!(sim.is_silent(), "in place");
    let refresh = due(&mut sim);
    assert_eq!(refresh.text_of("Authorization"), "");
    sim.reply(&refresh, Reply::challenge("r", "n2"));
    let answer = sim.sent();
    sim.reply(&answer, Reply::granted(600));
    assert!(sim.status().is_registered());
}

#[test]
fn d6_a_changed_password_revives_a_waiting_retry_at_once() {
    let mut sim = Sim::new(built(account().auth_rejection_permanent(false)));
    refuse(&mut sim, &mut 0);
    assert!(sim.is_silent());
    let other = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "changed"))
        .auth_rejection_permanent(false)
        .max_random_initial_delay(secs(0));
    sim.input(Input::Reconfigure(Arc::new(built(other))));
    sim.sent();
}

#[test]
fn d6_the_registrars_refusals_count_behind_a_proxy_that_accepts() {
    let mut sim = Sim::many((0..50).map(|_| under(Policy::default())));
    let (mut answers, mut nonce) = (0, 0);
    while sim.elapsed() < secs(3600) {
        let sent = sim.all_sent();
        if sent.is_empty() {
            let Some(next) = sim.deadline() else { break };
            sim.advance(next);
        }
        for request in sent {
            nonce += 1;
            if request.text_of("Proxy-Authorization").is_empty() {
                sim.reply(&request, proxy(&format!("p{nonce}")));
            } else {
                answers += u32::from(!request.text_of("Authorization").is_empty());
                sim.reply(&request, Reply::challenge("r", &format!("n{nonce}")));
            }
        }
    }
    assert_eq!(answers, 3);
    assert!(sim.ids().iter().all(|id| matches!(
        sim.pool().status(*id).and_then(|status| status.last_failure),
        Some(Failure::CredentialsRefused { .. })
    )));
}

#[test]
fn d6_good_credentials_of_a_thousand_registrations_all_get_through() {
    let mut sim = Sim::many((0..1000).map(|_| under(Policy::default())));
    let mut nonce = 0;
    loop {
        let sent = sim.all_sent();
        if sent.is_empty() {
            break;
        }
        for request in sent {
            nonce += 1;
            sim.reply(
                &request,
                match request.text_of("Authorization").is_empty() {
                    true => Reply::challenge("r", &format!("n{nonce}")),
                    false => Reply::granted(3600),
                },
            );
        }
    }
    let registered = sim.ids().iter().filter(|id| {
        sim.pool()
            .status(**id)
            .is_some_and(|status| status.is_registered())
    });
    assert_eq!(registered.count(), 1000);
}

#[test]
fn d16_never_more_than_64_are_in_flight_even_after_answers_that_wait_for_credentials() {
    let mut sim = Sim::many((0..1000).map(|n| {
        let aor = format!("sip:u{n}@example.com");
        built(
            Registration::builder("sip:192.0.2.9", aor.as_str())
                .outbound_auth(Credentials::password(format!("u{n}"), "x"))
                .max_random_initial_delay(secs(0)),
        )
    }));
    let (mut open, mut nonce, mut done) = (sim.all_sent(), 0, 0);
    while let Some(request) = open.pop() {
        assert!(open.len() < 64, "{}", open.len());
        nonce += 1;
        if request.text_of("Authorization").is_empty() {
            sim.reply(&request, Reply::challenge("r", &format!("n{nonce}")));
        } else {
            done += 1;
            sim.reply(&request, Reply::granted(3600));
        }
        open.splice(0..0, sim.all_sent());
    }
    assert_eq!(done, 1000);
}

#[test]
fn d10_a_423_is_never_guessed() {
    for policy in [Policy::default(), Policy::asterisk()] {
        for least in [
            None,
            Some("abc"),
            Some("3600"),
            Some("60"),
            Some("604801"),
            Some("-1"),
        ] {
            let mut sim = Sim::new(under(policy.clone()));
            let register = due(&mut sim);
            let reply = Reply::status(423);
            let reply = match least {
                Some(least) => reply.header("Min-Expires", least),
                None => reply,
            };
            sim.reply(&register, reply);
            assert!(sim.is_silent(), "{least:?}");
            assert_matches!(
                sim.events().last(),
                Some(Event::GaveUp {
                    class: FailureClass::Fatal,
                    ..
                }),
                "{least:?}"
            );
        }
    }
}

#[test]
fn d10_of_several_min_expires_the_largest_is_taken() {
    for [first, second] in [["120", "300"], ["300", "120"], ["300", "soon"]] {
        let mut sim = Sim::new(built(account().expiration(secs(60))));
        let brief = Reply::status(423).header("Min-Expires", first);
        let register = sim.sent();
        sim.reply(&register, brief.header("Min-Expires", second));
        assert_eq!(sim.sent().text_of("Expires"), "300", "{first}, {second}");
    }
}

#[test]
fn d6_two_wrong_passwords_of_one_account_do_not_unblock_each_other() {
    let wrong = |password: &str| {
        built(
            Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
                .outbound_auth(Credentials::password("alice", password))
                .auth_rejection_permanent(false)
                .max_random_initial_delay(secs(0)),
        )
    };
    let mut sim = Sim::many([wrong("one"), wrong("two")]);
    let (mut answers, mut nonce) = (0, 0);
    while sim.elapsed() < secs(3600) {
        let sent = sim.all_sent();
        if sent.is_empty() {
            let Some(next) = sim.deadline() else { break };
            sim.advance(next);
        }
        for request in sent {
            nonce += 1;
            answers += u32::from(!request.text_of("Authorization").is_empty());
            sim.reply(&request, Reply::challenge("r", &format!("n{nonce}")));
        }
    }
    assert_eq!(answers, 3);
}
