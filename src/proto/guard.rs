//! The account guard: a wrong password must not lock the account out (DECISIONS D6).

use super::machine::Guarded;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a refusal counts
const WINDOW: Duration = Duration::from_secs(3600);
/// Refusals for an account in that time, in flight ones counted
const REFUSALS: usize = 3;

/// What to do with an answer that carries credentials not accepted so far
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Go,
    Wait,
    Never,
}

/// Refusals per (realm, username), across all registrations of an agent
#[derive(Debug, Default)]
pub(crate) struct Guard {
    accounts: HashMap<u64, Account>,
    /// Credentials the registrar accepted: these need no guard
    good: HashSet<u64>,
}

#[derive(Debug, Default)]
struct Account {
    refused_at: VecDeque<Instant>,
    refused: HashSet<u64>,
    in_flight: usize,
}

impl Guard {
    /// Asks for one answer to go out; `Go` counts it as in flight until [`proved`](Self::proved).
    pub(crate) fn ask(&mut self, now: Instant, asked: &[Guarded]) -> Pass {
        let new: Vec<_> = asked
            .iter()
            .filter(|one| !self.good.contains(&one.credential))
            .collect();
        let mut pass = Pass::Go;
        for one in &new {
            let account = self.accounts.entry(one.account).or_default();
            account.forget(now);
            if !account.refused.is_empty() && !account.refused.contains(&one.credential) {
                // Changed credentials: they have a right of their own.
                account.refused.clear();
                account.refused_at.clear();
            }
            pass = match pass {
                _ if account.refused_at.len() >= REFUSALS => Pass::Never,
                Pass::Go if account.refused_at.len() + account.in_flight >= REFUSALS => Pass::Wait,
                pass => pass,
            };
        }
        if pass == Pass::Go {
            for one in &new {
                self.accounts.entry(one.account).or_default().in_flight += 1;
            }
        }
        pass
    }

    /// The registrar's word on what went out; `flown` where it was counted as in flight.
    pub(crate) fn proved(
        &mut self,
        now: Instant,
        tried: &[Guarded],
        accepted: Option<bool>,
        flown: bool,
    ) {
        for one in tried {
            let known_good = self.good.contains(&one.credential);
            if accepted == Some(true) {
                self.good.insert(one.credential);
            } else if accepted == Some(false) {
                self.good.remove(&one.credential);
            }
            if known_good && accepted != Some(false) {
                continue;
            }
            let account = self.accounts.entry(one.account).or_default();
            if flown {
                account.in_flight = account.in_flight.saturating_sub(1);
            }
            match accepted {
                Some(true) => {
                    account.refused.clear();
                    account.refused_at.clear();
                }
                Some(false) => {
                    account.refused.insert(one.credential);
                    account.refused_at.push_back(now);
                }
                None => {}
            }
            if account.in_flight == 0 && account.refused_at.is_empty() {
                self.accounts.remove(&one.account);
            }
        }
    }

    /// A person says that the credentials may be tried again.
    pub(crate) fn forgive(&mut self, tried: &[Guarded]) {
        for one in tried {
            if let Some(account) = self.accounts.get_mut(&one.account) {
                account.refused.clear();
                account.refused_at.clear();
            }
        }
    }
}

impl Account {
    /// Refusals older than the window no longer count, unless they were enough to block (until forgiven or changed).
    fn forget(&mut self, now: Instant) {
        if self.refused_at.len() >= REFUSALS {
            return;
        }
        while self
            .refused_at
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW)
        {
            self.refused_at.pop_front();
        }
        if self.refused_at.is_empty() {
            self.refused.clear();
        }
    }
}
