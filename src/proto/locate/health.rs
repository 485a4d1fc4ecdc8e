//! What is known of the targets, by all registrations together: which are down, which may be tried again, and by whom.

use super::{Located, Place};
use crate::proto::{Protocol, RegistrationId, Target};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Registrations per target whose word alone does not count: the target answers others
const DOUBTED: usize = 256;
/// A target that has answered somebody within this time is believed to be overloaded when it has sent away so many in a row
const SERVES: Duration = Duration::from_secs(60);
const IN_A_ROW: usize = 3;
/// How long a target is not used by one whom it does not answer while it answers others
const SHUNNED: Duration = Duration::from_secs(600);
/// Targets that are remembered, before those go of which there is nothing new
const SPARE: usize = 1024;
/// How long something is news
const NEWS: Duration = Duration::from_secs(86_400);

/// How a target took a request; a [`Pool`](crate::Pool) tells all registrations
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetOutcome {
    /// A final answer that is no 503.
    Answered,
    /// No answer yet: the request was sent again (timer E).
    Late,
    /// No answer at all (timer F).
    Silent {
        /// When the request was sent first
        since: Instant,
    },
    /// No connection, or the network said that nobody is there.
    Unreachable,
    /// 503.
    Unavailable {
        /// How long it asked to be left alone (Retry-After, D11)
        retry_after: Option<Duration>,
    },
}

/// What one registration knows of a target
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) by: RegistrationId,
    pub(crate) now: Instant,
    pub(crate) outcome: TargetOutcome,
    /// How long its policy remembers a dead target, at first and at most; nothing where the first is 0
    pub(crate) memory: (Duration, Duration),
    /// When the target last answered another registration, as far as that is still known
    pub(crate) answered_at: Option<Instant>,
}

/// Who asks for the order of targets, and by which policy
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader {
    pub(crate) id: RegistrationId,
    pub(crate) now: Instant,
    /// Whether dead targets are remembered
    pub(crate) memory: bool,
    /// Whether it can afford a target that may turn out dead
    pub(crate) may_try: bool,
    /// How long a try keeps others from trying
    pub(crate) trial: Duration,
    /// How long a better target has to be well, before one moves to it
    pub(crate) healthy_for: Duration,
}

/// The target that holds the lease
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) target: Target,
    /// Whether it is used even though it is not in the answer
    pub(crate) kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Since then, or as long as anybody remembers
    Well(Option<Instant>),
    /// Was down and may be tried by one at a time
    Probation {
        free: bool,
    },
    Down(Duration),
}

#[derive(Debug)]
struct State {
    /// It asked to be left alone until then
    asked: Option<Instant>,
    /// Whom it has sent away since it answered anybody, as far as they count
    sent_away: Vec<RegistrationId>,
    /// When it last answered anybody, since there is something to know of it
    answered_at: Option<Instant>,
    dead: Option<Dead>,
    /// Who tries it, and until when no other does
    trial: Option<(RegistrationId, Instant)>,
    /// When it was last seen to fail, or to recover
    changed: Instant,
    /// Whom it did not answer, or sent away, while it answered others, and until when they do not use it
    doubted: Vec<(RegistrationId, Instant)>,
}

#[derive(Debug)]
struct Dead {
    until: Instant,
    wait: Duration,
    by: RegistrationId,
}

/// A target as all know it; with TLS and WebSocket its name is a part of it, as it may serve one domain and not another
type Key = (Protocol, SocketAddr, Option<Box<str>>);

fn key(target: &Target) -> Key {
    let named = target.protocol().is_to_a_host();
    let host = named.then(|| target.host().to_ascii_lowercase().into());
    (target.protocol(), target.address(), host)
}

/// The targets of which there is something to know
#[derive(Debug)]
pub(crate) struct Health {
    targets: HashMap<Key, State>,
    sweep_at: usize,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            targets: HashMap::new(),
            sweep_at: SPARE,
        }
    }
}

impl Health {
    /// Takes a report in; true where the target has gone down by it, so that those who queue for it should not.
    pub(crate) fn report(&mut self, target: &Target, report: &Report) -> bool {
        let key = key(target);
        let Report { by, now, .. } = *report;
        match report.outcome {
            TargetOutcome::Late => false,
            TargetOutcome::Answered => {
                self.answered(key, by, now);
                false
            }
            TargetOutcome::Unavailable { retry_after } => {
                let state = self.state(key, now);
                state.changed = now;
                state.trial = None;
                let asked = retry_after.filter(|asked| !asked.is_zero());
                let believed = asked.filter(|_| state.is_sent_away(by, now));
                state.asked = believed.map(|asked| now + asked).or(state.asked);
                believed.is_some()
            }
            _ if report.memory.0.is_zero() => false,
            TargetOutcome::Unreachable => self.state(key, now).dies(report),
            TargetOutcome::Silent { since } => {
                let alive = report.answered_at.is_some_and(|at| at >= since);
                let state = self.state(key, now);
                // One account that a registrar ignores must not take the target away from all others.
                if alive || state.doubts(by) {
                    state.doubt(by, now + SHUNNED);
                    state.trial.take_if(|(trier, _)| *trier == by);
                    return false;
                }
                state.dies(report)
            }
        }
    }

    fn answered(&mut self, key: Key, by: RegistrationId, now: Instant) {
        let Some(state) = self.targets.get_mut(&key) else {
            return;
        };
        state.doubted.retain(|(doubted, _)| *doubted != by);
        let (dead, asked) = (state.dead.take(), state.asked.take());
        if dead.is_some() || asked.is_some() {
            state.changed = now;
        }
        state.trial = None;
        state.answered_at = Some(now);
        let sent_away = std::mem::take(&mut state.sent_away);
        let sent_away = sent_away.into_iter().filter(|_| asked.is_some());
        let refuted = dead.map(|dead| dead.by).into_iter().chain(sent_away);
        for refuted in refuted.filter(|one| *one != by) {
            state.doubt(refuted, now);
        }
        if state.is_old(now) {
            self.targets.remove(&key);
        }
    }

    fn state(&mut self, key: Key, now: Instant) -> &mut State {
        if self.targets.len() >= self.sweep_at {
            self.targets.retain(|_, state| !state.is_old(now));
            if self.targets.len() >= self.sweep_at {
                self.targets.retain(|_, state| state.is_down(now));
            }
            self.sweep_at = SPARE.max(self.targets.len().saturating_mul(2));
        }
        self.targets.entry(key).or_insert(State {
            asked: None,
            sent_away: Vec::new(),
            answered_at: None,
            dead: None,
            trial: None,
            changed: now,
            doubted: Vec::new(),
        })
    }

    /// Whether what the target does to this one says nothing of how it is: it answered others meanwhile.
    pub(crate) fn doubts(&self, target: &Target, by: RegistrationId) -> bool {
        let state = self.targets.get(&key(target));
        state.is_some_and(|state| state.doubts(by))
    }

    /// How much longer the target asked to be left alone (RFC 3261 §21.5.4).
    pub(crate) fn asked(&self, target: &Target, now: Instant) -> Option<Duration> {
        self.targets
            .get(&key(target))
            .and_then(|state| state.asked)
            .and_then(|until| until.checked_duration_since(now))
            .filter(|left| !left.is_zero())
    }

    /// Whether one who has another place to go to leaves the target alone, because it is down or another one tries it; else
    /// it is the one to try, where one has to, for as long as `trial`.
    pub(crate) fn leaves_alone(
        &mut self,
        target: &Target,
        by: RegistrationId,
        now: Instant,
        trial: Duration,
    ) -> bool {
        let Some(state) = self.targets.get_mut(&key(target)) else {
            return false;
        };
        let shunned = |(whom, until): &(RegistrationId, Instant)| *whom == by && now < *until;
        if state.doubted.iter().any(shunned) {
            return true;
        }
        let Some(dead) = &state.dead else {
            return false;
        };
        let others = |(trier, until): (RegistrationId, Instant)| trier != by && now < until;
        if now < dead.until || state.trial.is_some_and(others) {
            return true;
        }
        state.trial = Some((by, now + trial));
        false
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.targets.len()
    }

    /// Another network: what did not answer there may answer here.
    pub(crate) fn clear(&mut self) {
        self.targets.clear();
    }

    /// The computer slept for `by`: what was to be left alone, or not to be tried, is so for that much less.
    pub(crate) fn age(&mut self, now: Instant, by: Duration) {
        let back = |at: &mut Instant| *at = at.checked_sub(by).unwrap_or(now);
        for state in self.targets.values_mut() {
            state.asked.iter_mut().for_each(back);
            state.dead.iter_mut().for_each(|dead| back(&mut dead.until));
            state.trial.iter_mut().for_each(|(_, until)| back(until));
            state.doubted.iter_mut().for_each(|(_, until)| back(until));
        }
    }

    /// The targets in the order to try them: the one that holds the lease, or a better one that is well again; then those
    /// that are well, as RFC 3263 has them; those that are down last, by what is left of their time.
    pub(crate) fn order(
        &mut self,
        located: Located,
        bound: Option<Bound>,
        reader: &Reader,
    ) -> Vec<Target> {
        let mut places = located.places;
        let is = |place: &Place, target: &Target| {
            place.target.protocol() == target.protocol()
                && place.target.address() == target.address()
        };
        if let Some(bound) = &bound
            && bound.kept
            && !places.iter().any(|place| is(place, &bound.target))
        {
            // Nothing is better while it is kept.
            let target = bound.target.clone();
            places.insert(0, Place { target, rank: 0 });
        }
        let bound = bound.and_then(|bound| {
            let at = places.iter().position(|place| is(place, &bound.target))?;
            Some((at, places.get(at)?.rank))
        });
        let mut standing: Vec<(usize, Place, Standing)> = Vec::with_capacity(places.len());
        for (at, place) in places.into_iter().enumerate() {
            let known = self.standing(&place.target, reader);
            standing.push((at, place, known));
        }
        let is_bound = |at: usize| bound.is_some_and(|(bound, _)| bound == at);
        let better = |place: &Place| bound.is_some_and(|(_, rank)| place.rank < rank);
        let is_well = |standing: &Standing| matches!(standing, Standing::Well(_));
        let first_well = standing.iter().position(|(_, _, known)| is_well(known));
        let trial = standing
            .iter()
            .filter(|_| reader.may_try)
            .filter(|(_, _, known)| *known == Standing::Probation { free: true })
            .find(|(at, place, _)| match bound {
                Some(_) => is_bound(*at) || better(place),
                None => first_well.is_none_or(|well| *at < well),
            })
            .map(|(at, place, _)| (*at, place.target.clone()));
        let back = standing
            .iter()
            .filter(|_| reader.may_try && trial.is_none())
            .find(|(_, place, known)| match known {
                Standing::Well(None) => better(place),
                Standing::Well(Some(since)) => {
                    better(place)
                        && reader.now.saturating_duration_since(*since) >= reader.healthy_for
                }
                _ => false,
            })
            .map(|(at, ..)| *at);
        if let Some((_, target)) = &trial
            && let Some(state) = self.targets.get_mut(&key(target))
        {
            state.trial = Some((reader.id, reader.now + reader.trial));
        }
        let first = trial.map(|(at, _)| at).or(back);
        standing.sort_by_key(|(at, _, known)| match known {
            _ if first == Some(*at) => (0, Duration::ZERO),
            Standing::Well(_) if is_bound(*at) => (1, Duration::ZERO),
            Standing::Well(_) => (2, Duration::ZERO),
            Standing::Probation { .. } => (3, Duration::ZERO),
            Standing::Down(left) => (3, *left),
        });
        standing
            .into_iter()
            .map(|(_, place, _)| place.target)
            .collect()
    }

    fn standing(&self, target: &Target, reader: &Reader) -> Standing {
        let now = reader.now;
        let Some(state) = self.targets.get(&key(target)) else {
            return Standing::Well(None);
        };
        if let Some(left) = self.asked(target, now) {
            return Standing::Down(left);
        }
        if !reader.memory {
            return Standing::Well(None);
        }
        let shunned = |(by, until): &&(RegistrationId, Instant)| *by == reader.id && now < *until;
        if let Some((_, until)) = state.doubted.iter().find(shunned) {
            return Standing::Down(until.saturating_duration_since(now));
        }
        match &state.dead {
            Some(dead) if now < dead.until => {
                Standing::Down(dead.until.saturating_duration_since(now))
            }
            None if state.asked.is_none() => Standing::Well(Some(state.changed)),
            _ => Standing::Probation {
                free: state
                    .trial
                    .is_none_or(|(by, until)| by == reader.id || until <= now),
            },
        }
    }
}

impl State {
    /// Down for the first time of memory, then twice as long each time, up to the longest; true where it was not down.
    fn dies(&mut self, report: &Report) -> bool {
        let (first, longest) = report.memory;
        // Those who were on their way already find the same, and nothing new.
        if self
            .dead
            .as_ref()
            .is_some_and(|dead| report.now < dead.until)
        {
            return false;
        }
        let wait = self.dead.as_ref().map_or(first, |dead| {
            dead.wait.saturating_mul(2).min(longest).max(first)
        });
        self.dead = Some(Dead {
            until: report.now + wait,
            wait,
            by: report.by,
        });
        self.trial = None;
        self.changed = report.now;
        true
    }

    /// Whether a 503 to this one means that all are to stay away (D11)
    ///
    /// One account that is sent away while others are answered must not keep these away: it waits by itself.
    fn is_sent_away(&mut self, by: RegistrationId, now: Instant) -> bool {
        if self.doubts(by) {
            return false;
        }
        if self.sent_away.len() < DOUBTED && !self.sent_away.contains(&by) {
            self.sent_away.push(by);
        }
        let serves = |at: Instant| now.saturating_duration_since(at) < SERVES;
        !self.answered_at.is_some_and(serves) || self.sent_away.len() >= IN_A_ROW
    }

    fn doubts(&self, id: RegistrationId) -> bool {
        self.doubted.iter().any(|(doubted, _)| *doubted == id)
    }

    fn doubt(&mut self, id: RegistrationId, until: Instant) {
        self.doubted.retain(|(doubted, _)| *doubted != id);
        self.doubted.truncate(DOUBTED - 1);
        self.doubted.insert(0, (id, until));
    }

    fn is_down(&self, now: Instant) -> bool {
        self.asked.is_some_and(|until| now < until)
            || self.dead.as_ref().is_some_and(|dead| now < dead.until)
    }

    fn is_old(&self, now: Instant) -> bool {
        !self.is_down(now) && now.saturating_duration_since(self.changed) >= NEWS
    }
}
