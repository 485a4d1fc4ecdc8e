//! The account guard: a wrong password must not lock the account out (DECISIONS D6).

use super::machine::Guarded;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a refusal counts
const WINDOW: Duration = Duration::from_secs(3600);
/// Refusals for an account in that time, in flight ones counted
const REFUSALS: usize = 3;

/// What to do with an answer that carries credentials not accepted so far
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It may go out; these are counted as in flight until [`Guard::proved`]
    Go(Vec<Guarded>),
    Wait,
    Never,
}

/// What a person let be tried again: that it was refused before counts no longer
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pardon(u64);

/// Refusals per (realm, username), across all registrations of an agent
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// How many refusals there were
    refusals: u64,
    accounts: HashMap<u64, Account>,
    /// Credentials the registrar accepted: these need no guard
    good: HashSet<u64>,
}

#[derive(Debug, Default)]
struct Account {
    /// When, and its number among all refusals
    refused_at: VecDeque<(Instant, u64)>,
    refused: HashSet<u64>,
    in_flight: usize,
}

impl Guard {
    /// Asks for one answer to go out.
    ///
    /// What was never refused has a right of its own, where an account is blocked: one at a time, so that a changed
    /// password revives at once, and two registrations with two wrong ones do not unblock each other.
    ///
    /// A `pardon` is of what is asked for now: when it was given, nobody may have known the realm, or the credentials may
    /// have been changed since the last refusal.
    pub(crate) fn ask(&mut self, now: Instant, asked: &[Guarded], pardon: Option<Pardon>) -> Pass {
        let new: Vec<_> = asked
            .iter()
            .filter(|one| !self.good.contains(&one.credential))
            .copied()
            .collect();
        let mut pass = Pass::Go(Vec::new());
        for one in &new {
            let account = self.accounts.entry(one.account).or_default();
            if let Some(pardon) = pardon {
                account.forgive(pardon);
            }
            account.forget(now);
            let refusals = account.refused_at.len();
            let known = account.refused.contains(&one.credential);
            pass = match pass {
                _ if refusals >= REFUSALS && known => Pass::Never,
                Pass::Go(_) if refusals >= REFUSALS && account.in_flight > 0 => Pass::Wait,
                Pass::Go(_) if refusals < REFUSALS && refusals + account.in_flight >= REFUSALS => {
                    Pass::Wait
                }
                pass => pass,
            };
        }
        if let Pass::Go(counted) = &mut pass {
            for one in &new {
                self.accounts.entry(one.account).or_default().in_flight += 1;
            }
            *counted = new;
        }
        pass
    }

    /// The registrar's word on what went out; `flown` is what of it was counted as in flight.
    pub(crate) fn proved(
        &mut self,
        now: Instant,
        tried: &[Guarded],
        accepted: Option<bool>,
        flown: &[Guarded],
    ) {
        for one in tried {
            let account = self.accounts.entry(one.account).or_default();
            if flown.contains(one) {
                account.in_flight = account.in_flight.saturating_sub(1);
            }
            match accepted {
                Some(true) => {
                    self.good.insert(one.credential);
                    account.refused.clear();
                    account.refused_at.clear();
                }
                Some(false) => {
                    self.good.remove(&one.credential);
                    account.refused.insert(one.credential);
                    self.refusals += 1;
                    account.refused_at.push_back((now, self.refusals));
                }
                None => {}
            }
            if account.in_flight == 0 && account.refused_at.is_empty() {
                self.accounts.remove(&one.account);
            }
        }
    }

    /// A person says that credentials may be tried again.
    pub(crate) const fn pardon(&self) -> Pardon {
        Pardon(self.refusals)
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
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW)
        {
            self.refused_at.pop_front();
        }
        self.tidy();
    }

    fn forgive(&mut self, Pardon(until): Pardon) {
        self.refused_at.retain(|(_, number)| *number > until);
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.refused_at.is_empty() {
            self.refused.clear();
        }
    }
}
