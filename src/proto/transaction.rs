//! The non-INVITE client transaction (RFC 3261 §17.1.2): timers E and F; K is forgetting.

use crate::config::Timers;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// One request on its way, and when it is sent again
#[derive(Clone)]
pub(crate) struct Transaction {
    pub(crate) branch: Box<str>,
    pub(crate) message: Bytes,
    /// When the first copy went out: a lease counts from here (D1)
    pub(crate) sent_at: Instant,
    /// When the next copy goes out (timer E); none on reliable transports
    resend_at: Option<Instant>,
    resend_after: Duration,
    /// When nobody will answer any more (timer F)
    timeout_at: Instant,
    /// Whether a provisional answer came: such a timeout does not fail over (RFC 3263 §4.3)
    pub(crate) answered: bool,
}

impl std::fmt::Debug for Transaction {
    /// Shows no message: it carries credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction")
            .field("sent_at", &self.sent_at)
            .field("resend_at", &self.resend_at)
            .field("resend_after", &self.resend_after)
            .field("timeout_at", &self.timeout_at)
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

/// What a deadline of a transaction asks for
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Resend,
    TimedOut,
}

impl Transaction {
    pub(crate) fn new(
        timers: &Timers,
        reliable: bool,
        branch: Box<str>,
        message: Bytes,
        now: Instant,
    ) -> Self {
        Self {
            branch,
            message,
            sent_at: now,
            resend_at: (!reliable).then(|| now + timers.t1),
            resend_after: timers.t1,
            timeout_at: now + timers.timer_f,
            answered: false,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.resend_at
            .map_or(self.timeout_at, |at| at.min(self.timeout_at))
    }

    /// A provisional answer: retransmissions go on at T2 (RFC 3261 §17.1.2.2), F stays.
    pub(crate) fn provisional(&mut self, timers: &Timers, now: Instant) {
        self.answered = true;
        if self.resend_at.is_some() {
            self.resend_after = timers.t2;
            self.resend_at = Some(now + timers.t2);
        }
    }

    pub(crate) fn due(&mut self, timers: &Timers, now: Instant) -> Due {
        if now >= self.timeout_at {
            return Due::TimedOut;
        }
        match self.resend_at {
            Some(at) if now >= at => {
                self.resend_after = (self.resend_after * 2).min(timers.t2);
                self.resend_at = Some(now + self.resend_after);
                Due::Resend
            }
            _ => Due::Nothing,
        }
    }
}
