//! How a registration behaves where RFC 3261 leaves a choice: three profiles and their single values.

use super::ceiling::interval;
use super::keep_alive::{ContactRewriting, KeepAlivePolicy};
use crate::{Algorithm, BuildError};
use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

/// The behaviour of a registration beyond its 22 options
///
/// Start from one of the profiles and change single fields: [`Policy::default`] for new programs, [`Policy::asterisk`]
/// for what a `pjsip.conf` means to Asterisk, [`Policy::persistent`] for softphones that must never give up. Options
/// that are set at the builder win over the profile, whatever the order. Everything is checked in
/// [`RegistrationBuilder::build`](crate::RegistrationBuilder::build). Share one `Arc<Policy>` among registrations.
///
/// ```
/// # use sip_registration::Policy;
/// let mut policy = Policy::default();
/// policy.retry.jitter = 0.5;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// When a failed registration is tried again.
    pub retry: RetryPolicy,
    /// When a lease is renewed.
    pub refresh: RefreshPolicy,
    /// How challenges are answered.
    pub auth: AuthPolicy,
    /// The timers of a transaction.
    pub timers: Timers,
    /// Whether 3xx responses are followed; default off, as a redirect moves credentials (DECISIONS §3).
    pub redirects: Redirects,
    /// Whether a 2xx that does not list our Contact is a temporary failure; default `false` (D8).
    pub require_own_contact: bool,
    /// How the first REGISTER is delayed within `max_random_initial_delay`; default uniform.
    pub initial_delay: InitialDelay,
    /// Whether 480, 486 and 429 are temporary instead of fatal; default `true`, `asterisk()` `false` (DECISIONS §3).
    pub transient_client_errors: bool,
    /// Whether a 420 is answered once without the refused optional tokens; default `true`, `asterisk()` `false` (D19).
    pub drop_refused_tokens: bool,
    /// Whether 430 asks for a new flow and 439 for a REGISTER without outbound, once each; default `true`,
    /// `asterisk()` `false` (RFC 5626 §4.2.1, §11.5).
    pub resend_without_outbound: bool,
    /// Whether a request over 1300 bytes goes over TCP to the same address, and over UDP only where no TCP can be made;
    /// default `true`, `asterisk()` `false` (RFC 3261 §18.1.1, D23). Not where the protocol is pinned: by the option
    /// `transport`, by a `transport` parameter of the URI that is located, or by `sips`.
    pub stream_fallback: bool,
    /// Whether refreshes and the un-REGISTER stay with the target that registered; default `true`, `asterisk()`
    /// `false`: resolved anew (D12).
    pub sticky_target: bool,
    /// How long a target that gave no answer, or no connection, comes last for all registrations of an agent; twice as
    /// long each time that it fails again. Default 60 s, `asterisk()` 0: never (DECISIONS §3).
    pub dead_target_memory: Duration,
    /// The longest that it comes last; default 600 s, at least `dead_target_memory` (DECISIONS §3).
    pub dead_target_memory_max: Duration,
    /// How long a target has to be well, before registrations that are bound to a lesser one return to it at their
    /// refresh; default 300 s. Without `sticky_target` each cycle starts at the best one (D12).
    pub primary_healthy_for: Duration,
    /// Whether refreshes carry Security-Verify, as RFC 3329 asks; default `true`, `asterisk()` `false` (BEHAVIOUR §10, 18).
    pub security_verify_on_refresh: bool,
    /// Whether `build()` adds `;lr` to an `outbound_proxy` without it; default `false` in every profile (BEHAVIOUR §10, 21).
    pub auto_lr: bool,
    /// Whether `expiration = 4294967295` is allowed and means a REGISTER without Expires; only in `asterisk()` (D9).
    pub allow_no_expires: bool,
    /// How flows are kept alive (D14).
    pub keep_alive: KeepAlivePolicy,
    /// Whether a registration with `support_outbound` whose flow cannot be made waits by RFC 5626 §4.5 instead of
    /// `retry_interval`; with the option `outbound` also one whose REGISTER nobody answers; default `true`, `asterisk()`
    /// `false` (D13)
    ///
    /// The first time 30–60 s, or 90–180 s while another flow of the registration is up, then twice as long up to 1800 s,
    /// half to all of it. `max_retries` counts such attempts as others, but not while another flow is up: one flow of several
    /// is tried without end. `retry_interval` 0 ends the registration as ever. Without `support_outbound`, and for all other
    /// failures, `retry_interval` holds.
    pub flow_recovery: bool,
    /// Whether the Contact takes the address that the registrar sees; default [`ContactRewriting::Off`] (F30).
    pub contact_rewriting: ContactRewriting,
    /// From where a request may come that is to be matched to the registration; default [`InboundFrom::Anywhere`], as in the
    /// reference (D24, BEHAVIOUR §5).
    pub inbound_from: InboundFrom,
    /// How many REGISTERs of this registration may go out in any second, retransmissions included; default `None`: as many
    /// as the attempt needs (D16). The whole agent's ceiling is `AgentBuilder::registers_a_second`.
    pub registers_a_second: Option<NonZeroU32>,
    /// Whether the last request and its answer are kept, without secrets, for a support ticket; default `false` in every
    /// profile: up to 8 KiB a registration (D27). See [`Transcript`](crate::Transcript).
    pub keep_transcript: bool,
    /// Whether Via carries `alias` on streams; default `false`, as RFC 5923 asks more than a parameter, `asterisk()` `true`.
    pub via_alias: bool,
    /// How long before a certificate of a flow expires grants come with a warning, once a flow; default 14 days, 0 is
    /// never before it has.
    pub certificate_warning: Duration,
}

impl Policy {
    /// What Asterisk does with a `pjsip.conf`, without its faults (DECISIONS §1).
    #[must_use]
    pub fn asterisk() -> Self {
        Self {
            retry: RetryPolicy {
                jitter: 0.0,
                retry_after_jitter: 0.0,
                retry_after_counts: false,
                retry_after_zero: false,
                ..RetryPolicy::default()
            },
            refresh: RefreshPolicy {
                lead: RefreshLead::Fixed(REFERENCE_LEAD),
                jitter: 0.0,
                ..RefreshPolicy::default()
            },
            auth: AuthPolicy {
                preemptive: false,
                algorithms: vec![Algorithm::Md5],
                refuse_downgrade: false,
                guard_account: false,
                ..AuthPolicy::default()
            },
            timers: Timers {
                connect_timeout: Duration::from_secs(32),
                ..Timers::default()
            },
            initial_delay: InitialDelay::AtLeastOneSecond,
            transient_client_errors: false,
            drop_refused_tokens: false,
            resend_without_outbound: false,
            stream_fallback: false,
            sticky_target: false,
            dead_target_memory: Duration::ZERO,
            security_verify_on_refresh: false,
            allow_no_expires: true,
            via_alias: true,
            keep_alive: KeepAlivePolicy::asterisk(),
            flow_recovery: false,
            ..Self::default()
        }
    }

    /// The default profile that never gives up, unless credentials are refused (DECISIONS §1)
    ///
    /// Temporary failures are tried again without limit, after 60 s, then twice as long each time up to 1800 s; 403
    /// and fatal responses every 1800 s.
    #[must_use]
    pub fn persistent() -> Self {
        let patient = Duration::from_secs(1800);
        Self {
            retry: RetryPolicy {
                max_retries: None,
                backoff_max: Some(patient),
                forbidden_retry_interval: patient,
                fatal_retry_interval: patient,
                ..RetryPolicy::default()
            },
            ..Self::default()
        }
    }

    /// The timers of a transaction whose retransmissions keep to the ceiling.
    pub(crate) fn paced_timers(&self) -> Cow<'_, Timers> {
        let Some(a_second) = self.registers_a_second else {
            return Cow::Borrowed(&self.timers);
        };
        let t1 = self.timers.t1.max(interval(a_second));
        let t2 = self.timers.t2.max(t1);
        let timers = self.timers.clone();
        Cow::Owned(Timers { t1, t2, ..timers })
    }

    /// Whether all values are within their limits.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let Self {
            retry,
            refresh,
            auth,
            timers,
            ..
        } = self;
        for (option, value) in [
            ("retry.jitter", retry.jitter),
            ("retry.retry_after_jitter", retry.retry_after_jitter),
            ("refresh.jitter", refresh.jitter),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(BuildError::Jitter { option, value });
            }
        }
        for (option, value) in [
            ("retry_interval", retry.retry_interval),
            ("forbidden_retry_interval", retry.forbidden_retry_interval),
            ("fatal_retry_interval", retry.fatal_retry_interval),
            ("retry.backoff_max", retry.backoff_max.unwrap_or_default()),
            ("retry.retry_after_max", retry.retry_after_max),
            ("refresh.jitter_max", refresh.jitter_max),
            ("dead_target_memory", self.dead_target_memory),
            ("dead_target_memory_max", self.dead_target_memory_max),
            ("primary_healthy_for", self.primary_healthy_for),
        ] {
            if value > LONGEST {
                return Err(BuildError::Interval {
                    option,
                    value,
                    least: Duration::ZERO,
                    most: LONGEST,
                });
            }
        }
        let in_range = |option, value: Duration, least: Duration, most: Duration| {
            if value < least || value > most {
                return Err(BuildError::Interval {
                    option,
                    value,
                    least,
                    most,
                });
            }
            Ok(())
        };
        let minute = Duration::from_secs(60);
        in_range("timers.t1", timers.t1, Duration::from_millis(100), minute)?;
        in_range("timers.t2", timers.t2, timers.t1, minute.max(timers.t1))?;
        in_range(
            "timers.timer_f",
            timers.timer_f,
            timers.t1,
            LONGEST_TRANSACTION,
        )?;
        in_range(
            "timers.connect_timeout",
            timers.connect_timeout,
            Duration::from_millis(100),
            LONGEST_TRANSACTION,
        )?;
        match refresh.lead {
            RefreshLead::Tenth => {}
            RefreshLead::Fixed(lead) => {
                in_range("refresh.lead", lead, Duration::from_secs(1), LONGEST_LEASE)?
            }
            RefreshLead::Fraction(share) => {
                if !(0.1..=0.99).contains(&share) {
                    return Err(BuildError::RefreshFraction { value: share });
                }
            }
        }
        self.keep_alive.check()?;
        if auth.algorithms.is_empty()
            || (auth.reject_md5 && auth.algorithms.iter().all(|a| *a == Algorithm::Md5))
        {
            return Err(BuildError::NoAlgorithm);
        }
        match self.redirects {
            Redirects::Off => Ok(()),
            Redirects::Follow { max } if (1..=MOST_REDIRECTS).contains(&max) => Ok(()),
            Redirects::Follow { max } => Err(BuildError::Redirects { max }),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            refresh: RefreshPolicy::default(),
            auth: AuthPolicy::default(),
            timers: Timers::default(),
            redirects: Redirects::Off,
            require_own_contact: false,
            initial_delay: InitialDelay::Uniform,
            transient_client_errors: true,
            drop_refused_tokens: true,
            resend_without_outbound: true,
            stream_fallback: true,
            sticky_target: true,
            dead_target_memory: Duration::from_secs(60),
            dead_target_memory_max: Duration::from_secs(600),
            primary_healthy_for: Duration::from_secs(300),
            security_verify_on_refresh: true,
            auto_lr: false,
            allow_no_expires: false,
            keep_alive: KeepAlivePolicy::default(),
            flow_recovery: true,
            contact_rewriting: ContactRewriting::Off,
            inbound_from: InboundFrom::Anywhere,
            keep_transcript: false,
            registers_a_second: None,
            via_alias: false,
            certificate_warning: Duration::from_secs(14 * 86_400),
        }
    }
}

/// When a failed registration is tried again
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The wait after a temporary failure; default 60 s; 0 makes temporary failures fatal ones (pjsip.conf `retry_interval`).
    pub retry_interval: Duration,
    /// The wait after a 403; default 0 s: as other fatal ones (pjsip.conf `forbidden_retry_interval`).
    pub forbidden_retry_interval: Duration,
    /// The wait after a fatal response; default 0 s: never again (pjsip.conf `fatal_retry_interval`).
    pub fatal_retry_interval: Duration,
    /// How many retries follow the first attempt; default 10, `None` is without limit, 0 is none (pjsip.conf `max_retries`).
    pub max_retries: Option<u32>,
    /// Up to which wait `retry_interval` doubles with each retry; default `None`: it is constant; `persistent()` 1800 s.
    pub backoff_max: Option<Duration>,
    /// How much longer a wait may be at random, as a share of it; default 0.2, `asterisk()` 0 (D15).
    pub jitter: f64,
    /// The longest Retry-After that is honoured; default 3600 s (D11).
    pub retry_after_max: Duration,
    /// How much later than Retry-After asks a request may be at random, as a share of it; default 0.1, `asterisk()` 0 (D11).
    pub retry_after_jitter: f64,
    /// Whether a 4xx or 6xx with Retry-After counts against `max_retries`; default `true`, `asterisk()` `false` (D11).
    pub retry_after_counts: bool,
    /// Whether `Retry-After: 0` means the next target at once, or else `retry_interval`; default `true`, `asterisk()`
    /// `false`: as absent (D11).
    pub retry_after_zero: bool,
}

impl RetryPolicy {
    /// The wait before retry number `retry`, counted from 0, without jitter
    ///
    /// `retry_interval * 2^retry` up to `backoff_max`, never less than `retry_interval`; constant without `backoff_max`.
    #[must_use]
    pub fn interval(&self, retry: u32) -> Duration {
        self.backoff_max.map_or(self.retry_interval, |most| {
            self.retry_interval
                .saturating_mul(1 << retry.min(31))
                .min(most)
                .max(self.retry_interval)
        })
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retry_interval: Duration::from_secs(60),
            forbidden_retry_interval: Duration::ZERO,
            fatal_retry_interval: Duration::ZERO,
            max_retries: Some(10),
            backoff_max: None,
            jitter: 0.2,
            retry_after_max: Duration::from_secs(3600),
            retry_after_jitter: 0.1,
            retry_after_counts: true,
            retry_after_zero: true,
        }
    }
}

/// When a lease is renewed
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RefreshPolicy {
    /// How long before its end a lease is renewed; default [`RefreshLead::Tenth`], `asterisk()` 10 s (D1).
    pub lead: RefreshLead,
    /// How much earlier a refresh may be at random, as a share of the time from grant to refresh; default 0.1,
    /// `asterisk()` 0 (D15).
    pub jitter: f64,
    /// The most that jitter may take off; default 60 s (D15).
    pub jitter_max: Duration,
}

impl RefreshPolicy {
    /// How long after the grant a lease is renewed, without jitter.
    #[must_use]
    pub fn refresh_after(&self, granted: Duration) -> Duration {
        self.lead.refresh_after(granted)
    }
}

impl Default for RefreshPolicy {
    fn default() -> Self {
        Self {
            lead: RefreshLead::Tenth,
            jitter: 0.1,
            jitter_max: Duration::from_secs(60),
        }
    }
}

/// How long before its end a lease is renewed (D1)
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RefreshLead {
    /// A tenth of the granted time, from 40 s to 300 s, at most half of it: a dead target (timer F, 32 s) and a
    /// challenge fit before the lease ends.
    Tenth,
    /// This long before the end; half the granted time, at least 1 s, where that is no more than twice this.
    Fixed(Duration),
    /// At this share of the granted time, from 0.1 to 0.99.
    Fraction(f64),
}

impl RefreshLead {
    /// How long after the grant a lease of `granted` is renewed, without jitter
    ///
    /// Grants count up to 604,800 s (D9).
    #[must_use]
    pub fn refresh_after(&self, granted: Duration) -> Duration {
        let granted = granted.min(LONGEST_LEASE);
        let half = granted / 2;
        match *self {
            Self::Tenth => {
                let lead = (granted / 10).clamp(Duration::from_secs(40), Duration::from_secs(300));
                granted.saturating_sub(lead.min(half))
            }
            Self::Fixed(lead) if granted <= lead.saturating_mul(2) => {
                half.max(Duration::from_secs(1))
            }
            Self::Fixed(lead) => granted.saturating_sub(lead),
            Self::Fraction(share) => Duration::try_from_secs_f64(granted.as_secs_f64() * share)
                .map_or(half, |after| after.min(granted)),
        }
    }
}

/// How challenges are answered
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AuthPolicy {
    /// Whether refused or missing credentials end the registration; default `true` (pjsip.conf `auth_rejection_permanent`).
    pub auth_rejection_permanent: bool,
    /// Whether refresh and un-REGISTER carry credentials unasked; default `true`, `asterisk()` `false` (DECISIONS §3).
    pub preemptive: bool,
    /// The digest algorithms that are answered; default SHA-256, SHA-512-256 and MD5, `asterisk()` MD5 (D5, RFC 8760).
    pub algorithms: Vec<Algorithm>,
    /// Whether MD5 is never answered, whatever is offered with it; default `false` (D5).
    pub reject_md5: bool,
    /// Whether a realm that was ever answered with SHA-2 is not answered with MD5; default `true`, `asterisk()` `false` (D5).
    pub refuse_downgrade: bool,
    /// Whether an account is answered for no more after 3 refusals in an hour; default `true`, `asterisk()` `false` (D6).
    pub guard_account: bool,
}

impl Default for AuthPolicy {
    fn default() -> Self {
        Self {
            auth_rejection_permanent: true,
            preemptive: true,
            algorithms: vec![Algorithm::Sha256, Algorithm::Sha512_256, Algorithm::Md5],
            reject_md5: false,
            refuse_downgrade: true,
            guard_account: true,
        }
    }
}

/// The timers of a transaction, RFC 3261 §17.1.2
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Timers {
    /// The first retransmission over UDP; default 500 ms, from 100 ms to 60 s (pjsip.conf `timer_t1`).
    pub t1: Duration,
    /// The longest wait between retransmissions; default 4 s, at least `t1`, at most 60 s (RFC 3261 §17.1.2.2).
    pub t2: Duration,
    /// How long a response may take; default 32 s, from `t1` to 600 s (pjsip.conf `timer_b`).
    pub timer_f: Duration,
    /// How long a connection may take; default 8 s, from 100 ms to 600 s, `asterisk()` 32 s: timer F (DECISIONS §3).
    pub connect_timeout: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            t1: Duration::from_millis(500),
            t2: Duration::from_secs(4),
            timer_f: Duration::from_secs(32),
            connect_timeout: Duration::from_secs(8),
        }
    }
}

/// Whether 3xx responses are followed, RFC 3261 §8.1.3.4
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redirects {
    /// A 3xx is a fatal response.
    Off,
    /// The Contact of a 3xx is tried; of several the one with the greatest q (RFC 3261 §8.1.3.4), and of equals the first.
    Follow {
        /// The most redirections in a cycle, from 1 to 8 (D3: 8 targets).
        max: u8,
    },
}

/// How the first REGISTER is delayed within N, the option `max_random_initial_delay` (DECISIONS §3)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitialDelay {
    /// From 0 to N; at once where N is 0.
    Uniform,
    /// 1 s and a random number of seconds below N; 1 s where N is 0, as the reference does it.
    AtLeastOneSecond,
}

/// From where an inbound request may come to be matched to a registration (D24); from elsewhere it belongs to none
///
/// A registration that is bound nowhere and uses no flow gets none but with `Anywhere`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InboundFrom {
    /// With the `line` token from anywhere: whoever has seen the token may use it. Else, by the Contact's user, from the
    /// hosts to which a flow goes.
    Anywhere,
    /// On the flow of the registration, or from the host that it goes to (the registrar or the first proxy), by any port
    /// and protocol.
    Registrar,
    /// On the flow of the registration alone: on its connection, or in a datagram from the address and port that its
    /// REGISTERs go to.
    Flow,
}

/// How long before the end of a lease the reference renews it.
pub(super) const REFERENCE_LEAD: Duration = Duration::from_secs(10);
/// The longest interval of the reference, an unsigned int of seconds; what keeps `Instant + interval` from overflow.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);
/// No response is waited for longer than this; a cycle ends after 96 s anyway (D3).
const LONGEST_TRANSACTION: Duration = Duration::from_secs(600);
/// The longest grant that is used for scheduling (D9).
const LONGEST_LEASE: Duration = Duration::from_secs(604_800);
/// As many as there are targets in a cycle (D3).
const MOST_REDIRECTS: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut Policy);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn refreshes_are_where_d1_puts_them() {
        for (lead, granted, after) in [
            (RefreshLead::Tenth, 1, 0.5),
            (RefreshLead::Tenth, 60, 30.0),
            (RefreshLead::Tenth, 80, 40.0),
            (RefreshLead::Tenth, 120, 80.0),
            (RefreshLead::Tenth, 400, 360.0),
            (RefreshLead::Tenth, 1800, 1620.0),
            (RefreshLead::Tenth, 3600, 3300.0),
            (RefreshLead::Tenth, 604_800, 604_500.0),
            (RefreshLead::Tenth, u64::MAX, 604_500.0),
            (RefreshLead::Tenth, 0, 0.0),
            (RefreshLead::Fixed(secs(10)), 0, 1.0),
            (RefreshLead::Fixed(secs(10)), 1, 1.0),
            (RefreshLead::Fixed(secs(10)), 12, 6.0),
            (RefreshLead::Fixed(secs(10)), 20, 10.0),
            (RefreshLead::Fixed(secs(10)), 21, 11.0),
            (RefreshLead::Fixed(secs(10)), 3600, 3590.0),
            (RefreshLead::Fixed(Duration::MAX), 3600, 1800.0),
            (RefreshLead::Fraction(0.5), 3600, 1800.0),
            (RefreshLead::Fraction(f64::NAN), 3600, 1800.0),
            (RefreshLead::Fraction(f64::INFINITY), 3600, 1800.0),
            (RefreshLead::Fraction(-1.0), 3600, 1800.0),
        ] {
            assert_eq!(
                lead.refresh_after(secs(granted)),
                Duration::from_secs_f64(after),
                "{lead:?} {granted}"
            );
        }
    }

    #[test]
    fn retries_double_up_to_the_limit_only_where_there_is_one() {
        let constant = RetryPolicy::default();
        assert_eq!([0, 1, 99].map(|n| constant.interval(n)), [secs(60); 3]);
        let mut doubling = Policy::persistent().retry;
        assert_eq!(
            [0, 1, 2, 4, 5, 31, u32::MAX].map(|n| doubling.interval(n).as_secs()),
            [60, 120, 240, 960, 1800, 1800, 1800]
        );
        doubling.retry_interval = secs(3600);
        assert_eq!(doubling.interval(9), secs(3600));
    }

    #[test]
    fn profiles_are_valid_and_differ_where_decisions_say() {
        for policy in [Policy::default(), Policy::asterisk(), Policy::persistent()] {
            assert_eq!(policy.check(), Ok(()));
            assert!(policy.auth.auth_rejection_permanent && !policy.auto_lr);
            assert_eq!(policy.retry.retry_interval, secs(60));
        }
        let (asterisk, persistent) = (Policy::asterisk(), Policy::persistent());
        assert_eq!(asterisk.auth.algorithms, [Algorithm::Md5]);
        assert_eq!(asterisk.retry.max_retries, Some(10));
        assert!(asterisk.allow_no_expires && asterisk.via_alias && !asterisk.auth.preemptive);
        assert_eq!((asterisk.retry.jitter, asterisk.refresh.jitter), (0.0, 0.0));
        assert_eq!(asterisk.timers.connect_timeout, asterisk.timers.timer_f);
        assert_eq!(persistent.timers.connect_timeout, secs(8));
        assert_eq!(persistent.retry.max_retries, None);
        assert_eq!(persistent.retry.fatal_retry_interval, secs(1800));
        assert!(!persistent.allow_no_expires);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let table: [(&str, Spoil); 15] = [
            ("retry.jitter", |p| p.retry.jitter = 1.1),
            ("retry.jitter", |p| p.retry.jitter = f64::NAN),
            ("refresh.jitter", |p| p.refresh.jitter = -0.1),
            ("retry_after_jitter", |p| {
                p.retry.retry_after_jitter = f64::INFINITY
            }),
            ("retry_interval", |p| p.retry.retry_interval = Duration::MAX),
            ("backoff_max", |p| p.retry.backoff_max = Some(Duration::MAX)),
            ("timers.t1", |p| p.timers.t1 = Duration::ZERO),
            ("timers.t2", |p| p.timers.t2 = Duration::ZERO),
            ("timers.timer_f", |p| p.timers.timer_f = Duration::ZERO),
            ("timers.connect_timeout", |p| {
                p.timers.connect_timeout = Duration::MAX
            }),
            ("refresh.lead", |p| {
                p.refresh.lead = RefreshLead::Fixed(Duration::ZERO)
            }),
            ("refresh.lead", |p| {
                p.refresh.lead = RefreshLead::Fraction(f64::NAN)
            }),
            ("algorithms", |p| p.auth.algorithms.clear()),
            ("redirects", |p| p.redirects = Redirects::Follow { max: 0 }),
            ("redirects", |p| p.redirects = Redirects::Follow { max: 9 }),
        ];
        for (option, spoil) in table {
            let mut policy = Policy::default();
            spoil(&mut policy);
            let error = policy.check().expect_err(option).to_string();
            assert!(error.contains(option), "{option}: {error}");
        }
        let mut contradiction = Policy::asterisk();
        contradiction.auth.reject_md5 = true;
        assert_eq!(contradiction.check(), Err(BuildError::NoAlgorithm));
    }
}
