//! What a failed attempt means: a pure function from policy, failure and count to what happens next.

use crate::{Failure, FlowError, Policy};
use std::time::Duration;

/// The classes by which `pjsip.conf` tells failures apart
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureClass {
    /// Passes by itself: waits `retry_interval`
    Temporary,
    /// 403: waits `forbidden_retry_interval`, where set
    Forbidden,
    /// Needs a person or a changed configuration: waits `fatal_retry_interval`, where set
    Fatal,
    /// The registrar refused our credentials, or asked for some we do not have (`auth_rejection_permanent`)
    Credentials,
}

/// Why no further attempt is made
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GiveUp {
    /// `max_retries` is used up
    MaxRetries,
    /// The policy names no interval for this class of failure
    NoInterval,
    /// The credentials were refused, and `auth_rejection_permanent` is on
    CredentialsRefused,
}

/// What happens after a failed attempt
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    /// Tries again after `after`, made longer by up to `jitter` of itself
    Retry {
        after: Duration,
        jitter: f64,
        counted: bool,
    },
    /// Stops until a command or a changed configuration
    GiveUp(GiveUp),
}

/// The class of a failure under a policy
pub(crate) fn classify(policy: &Policy, failure: &Failure, mediasec: bool) -> FailureClass {
    match failure {
        Failure::CredentialsRefused { .. } | Failure::Unanswerable { .. } => {
            if policy.auth.auth_rejection_permanent {
                FailureClass::Credentials
            } else {
                FailureClass::Temporary
            }
        }
        Failure::Rejected { code, .. } => match code {
            403 => FailureClass::Forbidden,
            // 6xx cannot come from a registrar (RFC 3261 §10.3): a proxy said it, and may say otherwise tomorrow.
            408 | 500 | 502..=504 | 600.. => FailureClass::Temporary,
            429 | 480 | 486 if policy.transient_client_errors => FailureClass::Temporary,
            // Answered as far as the rules allow, and asked again for a security agreement; without one it is fatal.
            494 if mediasec => FailureClass::Temporary,
            _ => FailureClass::Fatal,
        },
        _ => FailureClass::Temporary,
    }
}

/// What a failure leads to after `retries` counted ones before it
pub(crate) fn decide(
    policy: &Policy,
    failure: &Failure,
    class: FailureClass,
    retry_after: Option<u32>,
    retries: u32,
) -> Verdict {
    let retry = &policy.retry;
    let exhausted = retry.max_retries.is_some_and(|max| retries >= max);
    // A challenge that could not be answered refuses nothing: no credential went out.
    let refused = matches!(failure, Failure::CredentialsRefused { .. });
    if refused && class == FailureClass::Credentials && policy.auth.guard_account {
        return Verdict::GiveUp(GiveUp::CredentialsRefused);
    }
    if let Some(seconds) = retry_after.filter(|seconds| *seconds > 0) {
        let client_side = matches!(failure, Failure::Rejected { code: 400..=499 | 600.., .. });
        let counted = client_side && retry.retry_after_counts;
        if counted && exhausted {
            return Verdict::GiveUp(GiveUp::MaxRetries);
        }
        let after = Duration::from_secs(u64::from(seconds)).min(retry.retry_after_max);
        return Verdict::Retry {
            after,
            jitter: retry.retry_after_jitter,
            counted,
        };
    }
    let zero = retry_after == Some(0) && retry.retry_after_zero;
    let temporary = class == FailureClass::Temporary || zero;
    if temporary && !retry.retry_interval.is_zero() {
        // Nothing was sent, others have found the target dead: that uses up nothing.
        let counted = !matches!(failure, Failure::Flow(FlowError::TargetDown { .. }));
        if exhausted && counted {
            // fatal_retry_interval is not asked here, as in the reference.
            return Verdict::GiveUp(GiveUp::MaxRetries);
        }
        return Verdict::Retry {
            after: retry.interval(retries),
            jitter: retry.jitter,
            counted,
        };
    }
    let forbidden = Some(retry.forbidden_retry_interval)
        .filter(|interval| class == FailureClass::Forbidden && !interval.is_zero());
    let interval = forbidden.unwrap_or(retry.fatal_retry_interval);
    if interval.is_zero() {
        let refused = class == FailureClass::Credentials;
        Verdict::GiveUp(if refused {
            GiveUp::CredentialsRefused
        } else {
            GiveUp::NoInterval
        })
    } else if exhausted {
        Verdict::GiveUp(GiveUp::MaxRetries)
    } else {
        Verdict::Retry {
            after: interval,
            jitter: retry.jitter,
            counted: true,
        }
    }
}

#[cfg(test)]
#[path = "tests/verdict.rs"]
mod tests;
