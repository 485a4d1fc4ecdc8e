//! The decision table: status class × option × profile, against BEHAVIOUR §4 and DECISIONS §2, §3.

use super::{GiveUp, Verdict, classify, decide};
use crate::{Failure, FailureClass, FlowError, Policy, ResolveError};
use std::time::Duration;

const ALWAYS_TEMPORARY: [u16; 9] = [408, 500, 502, 503, 504, 600, 603, 606, 699];
const TRANSIENT: [u16; 3] = [429, 480, 486];
const FATAL: [u16; 24] = [
    300, 301, 302, 305, 380, 400, 402, 404, 405, 406, 410, 413, 416, 420, 421, 423, 430, 439, 488,
    501, 505, 513, 555, 580,
];

fn rejected(code: u16) -> Failure {
    Failure::Rejected {
        code,
        reason: "".into(),
    }
}

fn refused() -> Failure {
    Failure::CredentialsRefused { realm: "r".into() }
}

fn unanswerable() -> Failure {
    Failure::Unanswerable { why: "".into() }
}

fn local() -> Vec<Failure> {
    let name = ResolveError::NoAddress("h".into());
    let flow = FlowError::Refused;
    vec![
        Failure::Timeout,
        Failure::Flow(flow),
        Failure::Resolve(name),
        Failure::Budget,
        Failure::NotGranted,
        Failure::NotListed,
    ]
}

fn profiles() -> [(&'static str, Policy); 3] {
    [
        ("default", Policy::default()),
        ("asterisk", Policy::asterisk()),
        ("persistent", Policy::persistent()),
    ]
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The verdict without its jitter: `Ok((after, counted))` or why it gave up
fn say(
    policy: &Policy,
    failure: &Failure,
    retry_after: Option<u32>,
    retries: u32,
) -> Result<(u64, bool), GiveUp> {
    match decide(
        policy,
        failure,
        classify(policy, failure, false),
        retry_after,
        retries,
    ) {
        Verdict::Retry { after, counted, .. } => Ok((after.as_secs(), counted)),
        Verdict::GiveUp(why) => Err(why),
    }
}

#[test]
fn each_code_has_its_class() {
    for (name, policy) in profiles() {
        let transient = if name == "asterisk" {
            FailureClass::Fatal
        } else {
            FailureClass::Temporary
        };
        for code in 300..700 {
            let expected = match code {
                403 => FailureClass::Forbidden,
                _ if ALWAYS_TEMPORARY.contains(&code) || code >= 600 => FailureClass::Temporary,
                _ if TRANSIENT.contains(&code) => transient,
                _ => FailureClass::Fatal,
            };
            assert_eq!(
                classify(&policy, &rejected(code), false),
                expected,
                "{code} under {name}"
            );
        }
        for failure in local() {
            assert_eq!(
                classify(&policy, &failure, false),
                FailureClass::Temporary,
                "{failure} under {name}"
            );
        }
    }
}

#[test]
fn a_494_is_temporary_only_where_an_agreement_was_offered() {
    for (name, policy) in profiles() {
        assert_eq!(
            classify(&policy, &rejected(494), true),
            FailureClass::Temporary,
            "{name}"
        );
        assert_eq!(
            classify(&policy, &rejected(494), false),
            FailureClass::Fatal,
            "{name}"
        );
    }
}

#[test]
fn auth_rejection_permanent_moves_credentials_between_the_classes() {
    for (name, mut policy) in profiles() {
        for failure in [refused(), unanswerable()] {
            assert_eq!(
                classify(&policy, &failure, false),
                FailureClass::Credentials,
                "{name}"
            );
        }
        policy.auth.auth_rejection_permanent = false;
        for failure in [refused(), unanswerable()] {
            assert_eq!(
                classify(&policy, &failure, false),
                FailureClass::Temporary,
                "{name}"
            );
        }
    }
}

#[test]
fn temporary_failures_wait_retry_interval_and_count() {
    for (name, policy) in profiles() {
        for failure in ALWAYS_TEMPORARY.into_iter().map(rejected).chain(local()) {
            assert_eq!(
                say(&policy, &failure, None, 0),
                Ok((60, true)),
                "{failure} under {name}"
            );
        }
    }
}

#[test]
fn max_retries_ends_what_counts_and_only_that() {
    for (name, mut policy) in profiles() {
        policy.retry.max_retries = Some(3);
        policy.retry.fatal_retry_interval = secs(5);
        policy.retry.forbidden_retry_interval = secs(7);
        for failure in [rejected(500), rejected(403), rejected(404)] {
            assert!(
                say(&policy, &failure, None, 2).is_ok(),
                "{failure} under {name}"
            );
            // At the limit, a temporary failure does not fall through to fatal_retry_interval (K).
            assert_eq!(
                say(&policy, &failure, None, 3),
                Err(GiveUp::MaxRetries),
                "{failure} under {name}"
            );
            // `>=`, never `==`: a count that has run past the limit still ends (S 3).
            assert_eq!(
                say(&policy, &failure, None, 9),
                Err(GiveUp::MaxRetries),
                "{failure} under {name}"
            );
        }
        // Retry-After of a 5xx is not counted, so nothing is used up.
        assert_eq!(
            say(&policy, &rejected(503), Some(9), 9),
            Ok((9, false)),
            "{name}"
        );
        policy.retry.max_retries = Some(0);
        assert_eq!(
            say(&policy, &rejected(500), None, 0),
            Err(GiveUp::MaxRetries),
            "{name}"
        );
        policy.retry.max_retries = None;
        assert!(
            say(&policy, &rejected(500), None, 1_000_000).is_ok(),
            "{name}"
        );
    }
}

#[test]
fn retry_interval_zero_turns_temporary_into_fatal() {
    for (name, mut policy) in profiles() {
        policy.retry.retry_interval = Duration::ZERO;
        policy.retry.fatal_retry_interval = Duration::ZERO;
        assert_eq!(
            say(&policy, &rejected(500), None, 0),
            Err(GiveUp::NoInterval),
            "{name}"
        );
        policy.retry.fatal_retry_interval = secs(30);
        assert_eq!(
            say(&policy, &rejected(500), None, 0),
            Ok((30, true)),
            "{name}"
        );
    }
}

#[test]
fn forbidden_waits_its_own_interval_or_the_fatal_one() {
    for (name, mut policy) in profiles() {
        for (forbidden, fatal, expected) in [
            (0, 0, Err(GiveUp::NoInterval)),
            (7, 0, Ok((7, true))),
            (7, 5, Ok((7, true))),
            (0, 5, Ok((5, true))),
        ] {
            policy.retry.forbidden_retry_interval = secs(forbidden);
            policy.retry.fatal_retry_interval = secs(fatal);
            assert_eq!(
                say(&policy, &rejected(403), None, 0),
                expected,
                "{forbidden} {fatal} under {name}"
            );
        }
    }
}

#[test]
fn fatal_failures_wait_fatal_retry_interval_or_end() {
    for (name, mut policy) in profiles() {
        for code in FATAL {
            policy.retry.forbidden_retry_interval = secs(7);
            policy.retry.fatal_retry_interval = Duration::ZERO;
            assert_eq!(
                say(&policy, &rejected(code), None, 0),
                Err(GiveUp::NoInterval),
                "{code} under {name}"
            );
            policy.retry.fatal_retry_interval = secs(5);
            assert_eq!(
                say(&policy, &rejected(code), None, 0),
                Ok((5, true)),
                "{code} under {name}"
            );
        }
    }
}

#[test]
fn refused_credentials_end_at_once_but_for_the_reference_s_fatal_interval() {
    for (name, mut policy) in profiles() {
        policy.retry.fatal_retry_interval = secs(5);
        let asterisk = name == "asterisk";
        let expected = if asterisk {
            Ok((5, true))
        } else {
            Err(GiveUp::CredentialsRefused)
        };
        assert_eq!(say(&policy, &refused(), None, 0), expected, "{name}");
        let after = if asterisk {
            Ok((9, false))
        } else {
            Err(GiveUp::CredentialsRefused)
        };
        assert_eq!(say(&policy, &refused(), Some(9), 0), after, "{name}");
        // No credential went out: what cannot be answered today waits like any other fatal failure.
        let failure = unanswerable();
        assert_eq!(say(&policy, &failure, None, 0), Ok((5, true)), "{name}");
        assert_eq!(say(&policy, &failure, Some(9), 0), Ok((9, false)), "{name}");
        policy.retry.fatal_retry_interval = Duration::ZERO;
        assert_eq!(
            say(&policy, &refused(), None, 0),
            Err(GiveUp::CredentialsRefused),
            "{name}"
        );
        policy.auth.auth_rejection_permanent = false;
        assert_eq!(say(&policy, &refused(), None, 0), Ok((60, true)), "{name}");
    }
}

#[test]
fn retry_after_rules_over_the_intervals_within_its_cap() {
    for (name, mut policy) in profiles() {
        policy.retry.max_retries = Some(3);
        let counts = name != "asterisk";
        for code in [301, 400, 403, 404, 480, 500, 503, 600, 603] {
            let counted = counts && ((400..500).contains(&code) || code >= 600);
            assert_eq!(
                say(&policy, &rejected(code), Some(9), 0),
                Ok((9, counted)),
                "{code} under {name}"
            );
            assert_eq!(
                say(&policy, &rejected(code), Some(u32::MAX), 0),
                Ok((3600, counted)),
                "{code} under {name}"
            );
            let used_up = if counted {
                Err(GiveUp::MaxRetries)
            } else {
                Ok((9, false))
            };
            assert_eq!(
                say(&policy, &rejected(code), Some(9), 3),
                used_up,
                "{code} under {name}"
            );
        }
    }
}

#[test]
fn retry_after_zero_is_retry_interval_or_absent() {
    for (name, policy) in profiles() {
        let fatal = Policy::asterisk().retry.fatal_retry_interval;
        assert!(fatal.is_zero());
        let expected = if name == "asterisk" {
            Err(GiveUp::NoInterval)
        } else {
            Ok((60, true))
        };
        assert_eq!(say(&policy, &rejected(404), Some(0), 0), expected, "{name}");
        assert_eq!(
            say(&policy, &rejected(503), Some(0), 0),
            Ok((60, true)),
            "{name}"
        );
    }
}

#[test]
fn persistent_backs_off_from_a_minute_to_half_an_hour() {
    let policy = Policy::persistent();
    let waits: Vec<_> = (0..8)
        .map(|retries| say(&policy, &Failure::Timeout, None, retries))
        .collect();
    let expected = [60, 120, 240, 480, 960, 1800, 1800, 1800].map(|wait| Ok((wait, true)));
    assert_eq!(waits, expected);
    assert_eq!(say(&policy, &rejected(403), None, 99), Ok((1800, true)));
    assert_eq!(say(&policy, &rejected(404), None, 99), Ok((1800, true)));
    assert_eq!(
        say(&policy, &Failure::Timeout, None, u32::MAX),
        Ok((1800, true))
    );
}

#[test]
fn only_default_and_persistent_jitter_and_only_later() {
    for (name, policy) in profiles() {
        let expected = if name == "asterisk" {
            (0.0, 0.0)
        } else {
            (0.2, 0.1)
        };
        let jitter = |retry_after| match decide(
            &policy,
            &rejected(500),
            FailureClass::Temporary,
            retry_after,
            0,
        ) {
            Verdict::Retry { jitter, .. } => jitter,
            Verdict::GiveUp(_) => f64::NAN,
        };
        assert_eq!((jitter(None), jitter(Some(9))), expected, "{name}");
    }
}

/// The same once more for every code, against a second reading of the rules
mod every_code {
    use super::super::*;
    use crate::FlowError;

    /// What BEHAVIOUR §4 and DECISIONS say, written down a second time and as a list: no code is shared with `decide`
    fn expected(
        policy: &Policy,
        code: u16,
        mediasec: bool,
        retry_after: Option<u32>,
        retries: u32,
    ) -> Verdict {
        let asterisk = !policy.auth.guard_account;
        let r = &policy.retry;
        let class = match code {
            403 => 'f',
            408 | 500 | 502 | 503 | 504 | 600..=699 => 't',
            480 | 486 | 429 if !asterisk => 't',
            494 if mediasec => 't',
            // 0 stands for refused credentials, 1 for a flow that could not be made.
            0 if policy.auth.auth_rejection_permanent => 'c',
            0 | 1 => 't',
            _ => 'x',
        };
        let exhausted = r.max_retries.is_some_and(|max| retries >= max);
        if class == 'c' && !asterisk {
            return Verdict::GiveUp(GiveUp::CredentialsRefused);
        }
        if let Some(n @ 1..) = retry_after {
            let counted = !asterisk && (matches!(code, 400..=499 | 600..=699));
            if counted && exhausted {
                return Verdict::GiveUp(GiveUp::MaxRetries);
            }
            return Verdict::Retry {
                after: Duration::from_secs(u64::from(n.min(3600))),
                jitter: if asterisk { 0.0 } else { 0.1 },
                counted,
            };
        }
        let retry = |after| match exhausted {
            true => Verdict::GiveUp(GiveUp::MaxRetries),
            false => Verdict::Retry {
                after,
                jitter: if asterisk { 0.0 } else { 0.2 },
                counted: true,
            },
        };
        let zero = retry_after == Some(0) && !asterisk;
        if (class == 't' || zero) && r.retry_interval > Duration::ZERO {
            let doubled = u64::from(retries.min(20));
            let after = match r.backoff_max {
                Some(most) => Duration::from_secs((60 << doubled).min(most.as_secs())),
                None => r.retry_interval,
            };
            return retry(after);
        }
        if class == 'f' && r.forbidden_retry_interval > Duration::ZERO {
            return retry(r.forbidden_retry_interval);
        }
        if r.fatal_retry_interval > Duration::ZERO {
            return retry(r.fatal_retry_interval);
        }
        Verdict::GiveUp(match class {
            'c' => GiveUp::CredentialsRefused,
            _ => GiveUp::NoInterval,
        })
    }

    fn failure(code: u16) -> Failure {
        match code {
            0 => Failure::CredentialsRefused { realm: "r".into() },
            1 => Failure::Flow(FlowError::Refused),
            code => Failure::Rejected {
                code,
                reason: "".into(),
            },
        }
    }

    #[test]
    fn a_target_that_others_found_dead_uses_up_no_retry() {
        let policy = Policy::default();
        let retry_after = None;
        let down = Failure::Flow(FlowError::TargetDown { retry_after });
        let verdict = decide(&policy, &down, FailureClass::Temporary, None, 11);
        let (after, jitter, counted) = (Duration::from_secs(60), 0.2, false);
        assert_eq!(
            verdict,
            Verdict::Retry {
                after,
                jitter,
                counted
            }
        );
    }

    #[test]
    fn the_table_holds_for_every_code_option_and_profile() {
        let secs = Duration::from_secs;
        let mut rows = 0;
        for profile in [Policy::default(), Policy::asterisk(), Policy::persistent()] {
            for bits in 0..16u8 {
                for max_retries in [None, Some(0), Some(1), Some(10)] {
                    let mut policy = profile.clone();
                    policy.auth.auth_rejection_permanent = bits & 1 == 0;
                    if bits & 2 != 0 {
                        policy.retry.retry_interval = Duration::ZERO;
                        policy.retry.backoff_max = None;
                    }
                    if bits & 4 != 0 {
                        policy.retry.forbidden_retry_interval = secs(300);
                    }
                    if bits & 8 != 0 {
                        policy.retry.fatal_retry_interval = secs(900);
                    }
                    policy.retry.max_retries = max_retries;
                    for code in (0..2).chain(300..700) {
                        for mediasec in [false, true] {
                            for retry_after in [None, Some(0), Some(7), Some(u32::MAX)] {
                                for retries in [0, 1, 10, 11] {
                                    rows += 1;
                                    let failure = failure(code);
                                    let class = classify(&policy, &failure, mediasec);
                                    let got =
                                        decide(&policy, &failure, class, retry_after, retries);
                                    let want =
                                        expected(&policy, code, mediasec, retry_after, retries);
                                    assert_eq!(
                                        got, want,
                                        "{code}, {retry_after:?}, {retries}, {mediasec}: {policy:?}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
        println!("{rows} rows");
    }
}
