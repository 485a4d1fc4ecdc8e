//! The only place where a clock is read.

use std::fmt::Debug;
use std::time::{Instant, SystemTime};

/// Two clocks: one that never runs backwards, and the one on the wall
///
/// The agent compares them: wall time that runs ahead means that the computer slept.
pub trait Clock: Send + Sync + Debug {
    /// Monotonic time, for deadlines; must keep pace with tokio's timers.
    fn now(&self) -> Instant;
    /// Wall-clock time.
    fn wall(&self) -> SystemTime;
}

/// The system's clocks; the monotonic one is tokio's, so that paused time works in tests
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// The system's clocks.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
