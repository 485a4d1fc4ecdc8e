//! Failures and what follows them (BEHAVIOUR §4, §7; DECISIONS D11, D15, D19).

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::net::IpAddr;
use std::time::Duration;

use super::machine::{account, built, due, secs, under};

fn named(policy: Policy, targets: u8) -> Sim {
    let named = Registration::builder("sip:example.com", "sip:alice@example.com")
        .policy(policy)
        .max_random_initial_delay(Duration::ZERO);
    let names: Vec<IpAddr> = (1..=targets).map(|n| [192, 0, 2, n].into()).collect();
    let mut sim = Sim::many([]);
    sim.resolve("example.com", Ok(names));
    sim.add(built(named));
    sim
}

fn wait(sim: &mut Sim) -> f64 {
    assert!(sim.is_silent());
    sim.deadline().expect("a retry").as_secs_f64()
}

fn between(value: f64, low: f64, high: f64) {
    assert!(
        value >= low - 1e-6 && value <= high + 1e-6,
        "{value} not in {low}..{high}"
    );
}

#[test]
fn d11_when_all_targets_are_down_the_smallest_wait_counts() {
    for (policy, most) in [(Policy::default(), 33.0), (Policy::asterisk(), 30.0)] {
        let mut sim = named(policy, 3);
        for seconds in ["100", "30", "200"] {
            let request = due(&mut sim);
            sim.reply(&request, Reply::status(503).header("Retry-After", seconds));
        }
        between(wait(&mut sim), 30.0, most);
        assert_matches!(&sim.events()[..], [.., Event::Rejected { attempt: 0, .. }]);
        // The one that asked for it is tried first, the others are still down.
        let again = due(&mut sim);
        assert_eq!(again.target().address().ip(), IpAddr::from([192, 0, 2, 2]));
    }
}

#[test]
fn d11_retry_after_is_capped_and_never_early() {
    for (asked, low, high) in [("120", 120.0, 132.0), ("999999", 3600.0, 3960.0)] {
        for code in [403, 404, 500, 503, 600] {
            let mut sim = Sim::new(under(Policy::default()));
            let request = sim.sent();
            sim.reply(&request, Reply::status(code).header("Retry-After", asked));
            between(wait(&mut sim), low, high);
            let counts = u32::from(!(500..600).contains(&code));
            assert_matches!(&sim.events()[..], [Event::Rejected { attempt, .. }] if *attempt == counts);
        }
    }
}

#[test]
fn d11_retry_after_zero_is_the_next_target_or_the_retry_interval() {
    let zero = |code| Reply::status(code).header("Retry-After", "0");
    let mut sim = named(Policy::default(), 2);
    let first = sim.sent();
    sim.reply(&first, zero(500));
    let second = sim.sent();
    assert_ne!(first.target(), second.target());
    sim.reply(&second, zero(500));
    between(wait(&mut sim), 60.0, 72.0);
    // The reference takes it as absent.
    let mut sim = named(Policy::asterisk(), 2);
    let first = due(&mut sim);
    sim.reply(&first, zero(404));
    assert_matches!(&sim.events()[..], [.., Event::GaveUp { .. }]);
}

#[test]
fn d15_retries_are_up_to_a_fifth_later() {
    let mut seen: Vec<f64> = Vec::new();
    for seed in 0..40 {
        let mut sim = Sim::seeded([seed; 32], [under(Policy::default())]);
        let request = sim.sent();
        sim.reply(&request, Reply::status(500));
        between(wait(&mut sim), 60.0, 72.0);
        seen.push(wait(&mut sim));
    }
    assert!(seen.iter().any(|wait| *wait < 63.0) && seen.iter().any(|wait| *wait > 69.0));
    let mut sim = Sim::new(under(Policy::asterisk()));
    let request = due(&mut sim);
    sim.reply(&request, Reply::status(500));
    assert_eq!(sim.deadline(), Some(secs(60)));
}

#[test]
fn max_retries_is_one_attempt_more_and_the_last_is_told() {
    let mut sim = Sim::new(built(account().policy(Policy::asterisk()).max_retries(2)));
    for _ in 0..3 {
        let request = due(&mut sim);
        sim.reply(&request, Reply::status(500));
    }
    assert_matches!(
        sim.events().last(),
        Some(Event::GaveUp {
            why: GiveUp::MaxRetries,
            ..
        })
    );
    assert_eq!(sim.deadline(), None);
}

#[test]
fn persistent_backs_off_and_never_ends() {
    let mut sim = Sim::new(under(Policy::persistent()));
    for n in 0..20 {
        let request = due(&mut sim);
        sim.reply(&request, Reply::status(500));
        let base = f64::from(60u32 << n.min(10)).min(1800.0);
        between(wait(&mut sim), base, base * 1.2);
    }
}

#[test]
fn d19_refused_optional_tokens_are_left_out_once() {
    for (policy, repeats) in [(Policy::default(), true), (Policy::asterisk(), false)] {
        let account = account()
            .policy(policy)
            .support_path(true)
            .support_outbound(true)
            .supported("gruu");
        let mut sim = Sim::new(built(account));
        let first = due(&mut sim);
        assert_eq!(first.text_of("Supported"), "path, outbound, gruu");
        sim.reply(
            &first,
            Reply::status(420).header("Unsupported", "path, gruu"),
        );
        if !repeats {
            assert_matches!(sim.events().last(), Some(Event::GaveUp { .. }));
            continue;
        }
        let second = sim.sent();
        assert_eq!(second.text_of("Supported"), "outbound");
        sim.reply(
            &second,
            Reply::status(420).header("Unsupported", "outbound"),
        );
        assert_matches!(
            sim.events().last(),
            Some(Event::GaveUp {
                class: FailureClass::Fatal,
                ..
            })
        );
    }
}

#[test]
fn a_421_names_the_extension_and_a_430_gets_a_new_flow_once() {
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, Reply::status(421).header("Require", "path"));
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp { exchange: Some(exchange), .. }] if *exchange.extensions == ["path".to_owned()]
    );
    let mut sim = Sim::new(under(Policy::default()));
    let first = sim.sent();
    sim.reply(&first, Reply::status(430));
    let second = sim.sent();
    assert_ne!(first.flow(), second.flow());
    sim.reply(&second, Reply::status(430));
    assert_matches!(&sim.events()[..], [Event::GaveUp { .. }]);
}

fn mediasec(policy: Policy) -> Sim {
    Sim::new(built(
        account()
            .policy(policy)
            .security_negotiation(SecurityNegotiation::Mediasec)
            .security_mechanisms("sdes-srtp;mediasec"),
    ))
}

#[test]
fn a_494_is_resent_once_with_verify_only_and_then_waits() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let mut sim = mediasec(policy);
        let asked = Reply::status(494).header("Security-Server", "msrp-tls;mediasec");
        let first = due(&mut sim);
        assert_eq!(first.text_of("Security-Client"), "sdes-srtp;mediasec");
        assert_eq!(first.text_of("Security-Verify"), "");
        sim.reply(&first, asked.clone());
        let second = sim.sent();
        assert_eq!(second.text_of("Security-Client"), "");
        assert_eq!(second.text_of("Security-Verify"), "msrp-tls;mediasec");
        assert_eq!(second.text_of("Authorization"), "");
        sim.reply(&second, asked);
        between(wait(&mut sim), 60.0, 72.0);
        // Rejected: the next one verifies in both profiles.
        let retry = due(&mut sim);
        assert_eq!(retry.text_of("Security-Verify"), "msrp-tls;mediasec");
        assert_eq!(retry.text_of("Security-Client"), "sdes-srtp;mediasec");
        sim.reply(&retry, Reply::granted(600));
        // A refresh does by RFC 3329, and not by the reference.
        let verify = due(&mut sim).text_of("Security-Verify");
        let reference = sim
            .pool()
            .registration(sim.id())
            .is_some_and(|r| r.policy().via_alias);
        assert_eq!(verify.is_empty(), reference);
    }
}

#[test]
fn a_494_without_mediasec_is_fatal() {
    for policy in [Policy::default(), Policy::asterisk()] {
        let mut sim = Sim::new(under(policy));
        let first = due(&mut sim);
        sim.reply(&first, Reply::status(494));
        assert!(sim.is_silent());
        assert_matches!(
            sim.events().last(),
            Some(Event::GaveUp {
                class: FailureClass::Fatal,
                ..
            })
        );
    }
}

#[test]
fn a_branch_is_agent_slot_generation_and_64_random_bits() {
    let mut sim = Sim::many((0..3).map(|_| under(Policy::default())));
    let tag = sim.pool().tag().to_string();
    for (index, request) in sim.all_sent().iter().enumerate() {
        let via = request.text_of("Via");
        let branch = via.split("branch=").nth(1).expect("a branch");
        let branch = branch.split(';').next().unwrap_or_default();
        assert!(branch.starts_with(&format!("z9hG4bK{tag}{index:08x}00000000")));
        assert_eq!(branch.len(), 7 + 8 + 8 + 8 + 16);
    }
}
