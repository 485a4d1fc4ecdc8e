//! When a flow is kept alive, with what, and whether an answer is due (RFC 5626 §4.4, RFC 6223, D14). Pure.

use super::stun::{self, TransactionId};
use super::transaction::{Due as Step, Transaction};
use crate::config::Timers;
use crate::{Entropy, FlowError, KeepAlivePolicy, KeepAliveTerms, Protocol, UdpKeepAlive};
use bytes::Bytes;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The keep-alive of one flow, done once for all that ride on it
///
/// It begins with the first REGISTER that is accepted on the flow.
#[derive(Debug)]
pub(crate) struct Keeping {
    reliable: bool,
    /// Whether the protocol itself obliges the peer to answer: a WebSocket's Ping has its Pong (RFC 6455 §5.5.2)
    obliged: bool,
    /// What the users' policies ask for, the most demanding of them; none before a REGISTER is accepted
    demand: Option<KeepAlivePolicy>,
    terms: KeepAliveTerms,
    /// Whether an answer showed another address than ours
    nat: bool,
    /// Whether the peer has answered a keep-alive on this flow before
    answered: bool,
    /// What the last STUN answer said
    mapped: Option<SocketAddr>,
    next: Option<Instant>,
    pending: Option<Pending>,
}

/// A keep-alive whose answer is waited for
#[derive(Debug)]
enum Pending {
    Pong {
        until: Instant,
    },
    Stun {
        id: TransactionId,
        requests: u32,
        /// When the next request goes out, or the last one has failed
        at: Instant,
        wait: Duration,
    },
    Options {
        transaction: Box<Transaction>,
        timers: Box<Timers>,
    },
}

/// What a flow's deadline asks for
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Send(Bytes),
    /// An OPTIONS is to be written, and handed to [`Keeping::options_sent`]
    Options,
    Failed(FlowError),
}

enum Method {
    Crlf,
    Stun,
    Options,
}

impl Keeping {
    pub(crate) const fn new(protocol: Protocol) -> Self {
        Self {
            reliable: protocol.is_reliable(),
            obliged: protocol.is_websocket(),
            demand: None,
            terms: KeepAliveTerms {
                negotiated: false,
                interval: None,
            },
            nat: false,
            answered: false,
            mapped: None,
            next: None,
            pending: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.pending {
            None => self.next,
            Some(Pending::Pong { until: at } | Pending::Stun { at, .. }) => Some(*at),
            Some(Pending::Options { transaction, .. }) => Some(transaction.deadline()),
        }
    }

    /// A REGISTER was accepted on the flow, under `policy` and with these terms.
    ///
    /// Terms hold until others are said; that none are said counts where nobody else rides on the flow: a refresh
    /// negotiates anew (RFC 6223 §4.2.2), and one registrar behind a proxy says nothing of another.
    pub(crate) fn granted(
        &mut self,
        now: Instant,
        entropy: &mut Entropy,
        policy: &KeepAlivePolicy,
        terms: KeepAliveTerms,
        alone: bool,
    ) {
        match &mut self.demand {
            Some(demand) => demand.raise(policy),
            None => self.demand = Some(policy.clone()),
        }
        if terms.negotiated || alone {
            self.terms = terms;
        }
        self.arm(now, entropy);
    }

    /// An answer showed whether there is a NAT on the way.
    pub(crate) fn seen(&mut self, now: Instant, entropy: &mut Entropy, nat: bool) {
        if nat && !self.nat {
            self.nat = true;
            self.arm(now, entropy);
        }
    }

    /// Checks at once whether the flow is still up, where it is kept alive at all (D22).
    pub(crate) fn check(&mut self, now: Instant) {
        if self.next.is_some() {
            self.pending = None;
            self.next = Some(now);
        }
    }

    /// Whether an answer to a keep-alive is due, so that its absence ends the flow (D14).
    pub(crate) fn expects(&self) -> bool {
        let told = self.demand.as_ref().is_some_and(|demand| demand.answered);
        match self.method() {
            Some((Method::Crlf, _)) => {
                let due = self.obliged || self.terms.negotiated || told || self.answered;
                self.reliable && due
            }
            Some((Method::Stun, _)) => true,
            Some((Method::Options, _)) => self.answered,
            None => false,
        }
    }

    pub(crate) fn due(&mut self, now: Instant, entropy: &mut Entropy, tag: [u8; 4]) -> Due {
        let expects = self.expects();
        match &mut self.pending {
            Some(Pending::Pong { until }) if now >= *until => {
                Due::Failed(FlowError::KeepAliveUnanswered(PONG_WITHIN))
            }
            Some(Pending::Stun {
                id,
                requests,
                at,
                wait,
            }) if now >= *at => {
                if *requests >= STUN_REQUESTS {
                    return Due::Failed(FlowError::KeepAliveUnanswered(STUN_WITHIN));
                }
                *requests += 1;
                *wait *= 2;
                let last = *requests == STUN_REQUESTS;
                *at = now + if last { STUN_RTO * STUN_LAST } else { *wait };
                Due::Send(stun::binding_request(id))
            }
            Some(Pending::Options {
                transaction,
                timers,
            }) => match transaction.due(timers, now) {
                Step::Nothing => Due::Nothing,
                Step::Resend => Due::Send(transaction.message.clone()),
                Step::TimedOut if expects => {
                    Due::Failed(FlowError::KeepAliveUnanswered(timers.timer_f))
                }
                Step::TimedOut => {
                    self.pending = None;
                    self.next = None;
                    self.arm(now, entropy);
                    Due::Nothing
                }
            },
            None if self.next.is_some_and(|at| now >= at) => self.start(now, entropy, tag),
            _ => Due::Nothing,
        }
    }

    fn start(&mut self, now: Instant, entropy: &mut Entropy, tag: [u8; 4]) -> Due {
        let Some((method, interval)) = self.method() else {
            self.next = None;
            return Due::Nothing;
        };
        self.next = Some(now + at_random(&interval, entropy));
        match method {
            Method::Crlf if !self.reliable => Due::Send(CRLF),
            Method::Crlf => {
                if self.expects() {
                    let until = now + PONG_WITHIN;
                    self.pending = Some(Pending::Pong { until });
                }
                Due::Send(PING)
            }
            Method::Stun => {
                let mut id = [0; 12];
                id[..4].copy_from_slice(&tag);
                entropy.fill(&mut id[4..]);
                self.pending = Some(Pending::Stun {
                    id,
                    requests: 1,
                    at: now + STUN_RTO,
                    wait: STUN_RTO,
                });
                Due::Send(stun::binding_request(&id))
            }
            Method::Options => Due::Options,
        }
    }

    /// The OPTIONS that [`Due::Options`] asked for is on its way.
    pub(crate) fn options_sent(&mut self, timers: &Timers, transaction: Transaction) {
        self.pending = Some(Pending::Options {
            transaction: Box::new(transaction),
            timers: Box::new(timers.clone()),
        });
    }

    /// A pong came, asked for or not.
    pub(crate) fn pong(&mut self) {
        if self.reliable {
            self.answered = true;
            if matches!(self.pending, Some(Pending::Pong { .. })) {
                self.pending = None;
            }
        }
    }

    /// A final answer to the OPTIONS with this branch came; false where none is waited for.
    pub(crate) fn options_answered(&mut self, branch: &str) -> bool {
        let ours = matches!(&self.pending, Some(Pending::Options { transaction, .. })
            if transaction.branch.eq_ignore_ascii_case(branch));
        if ours {
            self.pending = None;
            self.answered = true;
        }
        ours
    }

    /// A STUN answer came: the address it shows, or why the flow has failed with it (RFC 5626 §4.4.2). None where it
    /// answers nothing that is waited for.
    pub(crate) fn stun_answered(
        &mut self,
        of: TransactionId,
        answer: stun::Answer,
    ) -> Option<Result<Option<SocketAddr>, FlowError>> {
        if !matches!(&self.pending, Some(Pending::Stun { id, .. }) if *id == of) {
            return None;
        }
        self.pending = None;
        Some(match answer {
            stun::Answer::Error(code) => Err(FlowError::KeepAliveRefused(code)),
            stun::Answer::Success(mapped) => {
                self.answered = true;
                let before = self.mapped;
                self.mapped = mapped.or(before);
                match (before, mapped) {
                    (Some(from), Some(to)) if from != to => {
                        Err(FlowError::MappingChanged { from, to })
                    }
                    _ => Ok(mapped),
                }
            }
        })
    }

    /// Makes sure that the next keep-alive is within the interval that now holds.
    fn arm(&mut self, now: Instant, entropy: &mut Entropy) {
        match self.method() {
            None => {
                self.next = None;
                self.pending = None;
            }
            Some((_, interval)) => {
                let latest = now + *interval.end();
                if self.next.is_none_or(|next| next > latest) {
                    self.next = Some(now + at_random(&interval, entropy));
                }
            }
        }
    }

    fn method(&self) -> Option<(Method, RangeInclusive<Duration>)> {
        let demand = self.demand.as_ref()?;
        // RFC 5626 §4.4: between 80 % and all of what the server asks for.
        let asked = self.terms.interval.map(|seconds| {
            let longest = Duration::from_secs(u64::from(seconds)).clamp(SHORTEST, LONGEST);
            longest.mul_f64(0.8)..=longest
        });
        if self.reliable {
            let interval = asked.or_else(|| demand.stream.clone())?;
            return Some((Method::Crlf, interval));
        }
        if self.terms.negotiated || demand.answered {
            let interval = asked.unwrap_or_else(|| demand.udp_interval.clone());
            return Some((Method::Stun, interval));
        }
        let method = match demand.udp {
            UdpKeepAlive::Off => return None,
            UdpKeepAlive::Crlf => Method::Crlf,
            UdpKeepAlive::Options => Method::Options,
        };
        (self.nat || demand.udp_without_nat).then(|| (method, demand.udp_interval.clone()))
    }
}

fn at_random(interval: &RangeInclusive<Duration>, entropy: &mut Entropy) -> Duration {
    *interval.start() + entropy.up_to(interval.end().saturating_sub(*interval.start()))
}

/// The ping of a stream (RFC 5626 §4.4.1); a WebSocket's transport makes it a Ping (RFC 7118 §6)
pub(crate) const PING: Bytes = Bytes::from_static(b"\r\n\r\n");
/// On UDP it only shows a NAT that we are there: it is no ping, and asks for nothing
pub(crate) const CRLF: Bytes = Bytes::from_static(b"\r\n");
/// How long a pong may take (RFC 5626 §4.4.1)
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// The first wait for a STUN answer; each further one is twice as long (RFC 8489 §6.2.1)
const STUN_RTO: Duration = Duration::from_millis(500);
/// How often a STUN request is sent, Rc (RFC 8489 §6.2.1)
const STUN_REQUESTS: u32 = 7;
/// How many RTO the last one may take, Rm (RFC 8489 §6.2.1)
const STUN_LAST: u32 = 16;
/// All of that
const STUN_WITHIN: Duration = Duration::from_millis(39_500);
/// What a server may ask for at the least and at the most (D14)
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(3600);
