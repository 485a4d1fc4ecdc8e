//! What the name service said, for as long as it holds, and who waits for its next word.

use super::Found;
use crate::{Answer, Query, QueryKind, Records, ResolveError};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// No answer is kept longer: `Instant` has an end, and resolvers say what they like
const LONGEST_TTL: Duration = Duration::from_secs(86_400);
/// How long "no such record" is believed; RFC 2308 has it from the zone, which resolvers do not tell
const NEGATIVE: Duration = Duration::from_secs(30);
/// How long a failed question is not asked again
const FAILED: Duration = Duration::from_secs(2);
/// The same where an old answer serves (RFC 8767 §5: at least 30 s)
const FAILED_STALE: Duration = Duration::from_secs(30);
/// How long beyond its end an answer serves while nobody has a newer one (RFC 8767 §5: 1 to 3 days)
const STALE: Duration = Duration::from_secs(86_400);
/// Records of one answer that are kept, the preferred ones
const RECORDS: usize = 64;
/// Questions that are remembered beside those of the names in use, before old ones go
const SPARE: usize = 1024;

/// Answers by question; `W` is who waits
#[derive(Debug)]
pub(crate) struct Names<W> {
    known: HashMap<Query, Name>,
    /// Questions under way: each is asked once for all
    asked: HashMap<Query, Vec<W>>,
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Name {
    answer: Option<Known>,
    /// What held before, and until when a target that is only there may still be used (D12)
    before: Option<(Records, Instant)>,
    failure: Option<Failed>,
}

#[derive(Debug)]
struct Known {
    records: Records,
    at: Instant,
    ttl: Duration,
}

#[derive(Debug)]
struct Failed {
    error: ResolveError,
    at: Instant,
    until: Instant,
}

impl Known {
    fn until(&self) -> Instant {
        self.at + self.ttl
    }
}

impl Failed {
    /// Whether the name service said that there is nothing, rather than nothing
    const fn is_answer(&self) -> bool {
        matches!(
            self.error,
            ResolveError::NoAddress(_) | ResolveError::Unsupported(_)
        )
    }

    const fn found(&self) -> Found<'_> {
        if self.is_answer() {
            Found::Nothing
        } else {
            Found::Broken(&self.error)
        }
    }
}

impl<W> Default for Names<W> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            asked: HashMap::new(),
            sweep_at: SPARE,
        }
    }
}

impl<W> Names<W> {
    /// What is known now, for one that began to ask at `since`: what was answered after that serves it in any case, so
    /// that a lifetime of 0 is no endless question.
    pub(crate) fn lookup(&self, query: &Query, now: Instant, since: Instant) -> Found<'_> {
        let Some(name) = self.known.get(query) else {
            return Found::Unknown;
        };
        let answer = name.answer.as_ref();
        if let Some(failed) = &name.failure
            && (now < failed.until || failed.at >= since)
        {
            let stale = answer.filter(|known| now < known.until() + STALE);
            return stale.map_or_else(|| failed.found(), |known| Found::Records(&known.records));
        }
        match answer {
            Some(known) if now < known.until() || known.at >= since => {
                Found::Records(&known.records)
            }
            _ => Found::Unknown,
        }
    }

    /// The answer that held before the last one, while a withdrawn target may still be used; else the last one.
    pub(crate) fn before(&self, query: &Query, now: Instant) -> Found<'_> {
        let Some(name) = self.known.get(query) else {
            return Found::Nothing;
        };
        match (&name.before, &name.answer) {
            (Some((records, until)), _) if now < *until => Found::Records(records),
            (_, Some(known)) => Found::Records(&known.records),
            _ => Found::Nothing,
        }
    }

    /// Waits for the answer; true where the question has to be asked first.
    pub(crate) fn wait(&mut self, query: &Query, waiter: Option<W>) -> bool {
        let new = !self.asked.contains_key(query);
        self.asked.entry(query.clone()).or_default().extend(waiter);
        new
    }

    /// Those that do not match do not wait any more.
    pub(crate) fn cancel(&mut self, mut keep: impl FnMut(&W) -> bool) {
        for waiting in self.asked.values_mut() {
            waiting.retain(&mut keep);
        }
    }

    /// Takes an answer in; those who waited for it go on. None where nobody asked.
    pub(crate) fn answered(
        &mut self,
        query: &Query,
        now: Instant,
        result: Result<Answer, ResolveError>,
    ) -> Option<Vec<W>> {
        let waiting = self.asked.remove(query)?;
        self.sweep(now);
        let result = result.and_then(|answer| {
            let kind = match &answer.records {
                Records::Addresses(list) if !list.is_empty() => Some(QueryKind::Addresses),
                Records::Srv(list) if !list.is_empty() => Some(QueryKind::Srv),
                Records::Naptr(list) if !list.is_empty() => Some(QueryKind::Naptr),
                _ => None,
            };
            if kind == Some(query.kind) {
                Ok(answer)
            } else {
                Err(ResolveError::NoAddress(query.name.clone()))
            }
        });
        let name = self.known.entry(query.clone()).or_default();
        match result {
            Ok(answer) => {
                let new = Known {
                    records: kept(answer.records),
                    at: now,
                    ttl: answer.ttl.min(LONGEST_TTL),
                };
                if let Some(old) = name.answer.replace(new) {
                    name.outdated(old, now);
                }
                name.failure = None;
            }
            Err(error) => {
                let mut failed = Failed {
                    error,
                    at: now,
                    until: now,
                };
                if failed.is_answer() {
                    failed.until += NEGATIVE;
                    if let Some(old) = name.answer.take() {
                        name.outdated(old, now);
                    }
                } else {
                    failed.until += if name.answer.is_some() {
                        FAILED_STALE
                    } else {
                        FAILED
                    };
                }
                name.failure = Some(failed);
            }
        }
        Some(waiting)
    }

    /// Another network may have other answers: all is asked anew, and the old serves only if nobody answers.
    pub(crate) fn expire(&mut self) {
        for name in self.known.values_mut() {
            name.failure = None;
            name.before = None;
            if let Some(known) = &mut name.answer {
                known.ttl = Duration::ZERO;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Forgets what serves nobody any more, before it is too much.
    fn sweep(&mut self, now: Instant) {
        if self.known.len() < self.sweep_at {
            return;
        }
        self.known.retain(|_, name| name.holds(now, STALE));
        // A name service that invents names is not remembered at length.
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, name| name.holds(now, Duration::ZERO));
        }
        self.sweep_at = SPARE.max(self.known.len().saturating_mul(2));
    }
}

impl Name {
    /// Keeps what was replaced for as long again as it held.
    fn outdated(&mut self, old: Known, now: Instant) {
        let same = |known: &Known| known.records == old.records;
        if !self.answer.as_ref().is_some_and(same) {
            let until = old.until() + old.ttl;
            self.before = Some((old.records, until));
        }
        self.before.take_if(|(_, until)| *until <= now);
    }

    fn holds(&self, now: Instant, longer: Duration) -> bool {
        let answer = self.answer.as_ref();
        let failure = self.failure.as_ref();
        answer.is_some_and(|known| now < known.until() + longer)
            || failure.is_some_and(|failed| now < failed.until)
    }
}

/// The preferred ones of the records, so that no answer takes more memory or time than it should.
fn kept(mut records: Records) -> Records {
    match &mut records {
        Records::Addresses(list) => list.truncate(RECORDS),
        Records::Srv(list) => {
            list.sort_by_key(|server| server.priority);
            list.truncate(RECORDS);
        }
        Records::Naptr(list) => {
            list.sort_by_key(|service| (service.order, service.preference));
            list.truncate(RECORDS);
        }
    }
    records
}
