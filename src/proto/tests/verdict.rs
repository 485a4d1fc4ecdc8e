use super::*;
use crate::{FlowError, ResolveError};

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
                                let got = decide(&policy, &failure, class, retry_after, retries);
                                let want = expected(&policy, code, mediasec, retry_after, retries);
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

#[test]
fn codes_are_in_the_classes_of_the_reference() {
    use FailureClass::{Fatal, Forbidden, Temporary};
    for (code, default, asterisk) in [
        (300, Fatal, Fatal),
        (399, Fatal, Fatal),
        (400, Fatal, Fatal),
        (403, Forbidden, Forbidden),
        (404, Fatal, Fatal),
        (408, Temporary, Temporary),
        (420, Fatal, Fatal),
        (421, Fatal, Fatal),
        (423, Fatal, Fatal),
        (429, Temporary, Fatal),
        (430, Fatal, Fatal),
        (439, Fatal, Fatal),
        (480, Temporary, Fatal),
        (486, Temporary, Fatal),
        (494, Fatal, Fatal),
        (500, Temporary, Temporary),
        (501, Fatal, Fatal),
        (502, Temporary, Temporary),
        (503, Temporary, Temporary),
        (504, Temporary, Temporary),
        (505, Fatal, Fatal),
        (513, Fatal, Fatal),
        (580, Fatal, Fatal),
        (600, Temporary, Temporary),
        (699, Temporary, Temporary),
    ] {
        for (policy, class) in [(Policy::default(), default), (Policy::asterisk(), asterisk)] {
            assert_eq!(classify(&policy, &failure(code), false), class, "{code}");
        }
    }
    for failure in [
        Failure::Timeout,
        Failure::Budget,
        Failure::NotGranted,
        Failure::NotListed,
        Failure::Flow(FlowError::Closed),
        Failure::Resolve(ResolveError::Timeout),
    ] {
        assert_eq!(classify(&Policy::default(), &failure, false), Temporary);
    }
}
