//! What has happened so far: the agent's events and the registrar's log, counted.

use sip_registration::testkit::LoggedRequest;
use sip_registration::{Event, RegistrationId};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

/// Counts; times are from the start of the program
#[derive(Debug, Default)]
pub(crate) struct Tally {
    trunks: usize,
    /// How many of them nothing is wrong with
    healthy: usize,
    bound: HashSet<RegistrationId>,
    all_bound_after: Option<Duration>,
    registered: u64,
    refreshed: u64,
    failures: u64,
    gave_up: u64,
    expired: u64,
    flows_lost: u64,
    latencies: VecDeque<Duration>,
    requests: u64,
    retransmissions: u64,
    unanswered: u64,
    answers: BTreeMap<u16, u64>,
    by_second: BTreeMap<u64, u64>,
}

/// How long refreshes took, from their first REGISTER to the grant
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Latency {
    pub(crate) median: Duration,
    /// 95 of 100 are no longer
    pub(crate) most: Duration,
    pub(crate) longest: Duration,
}

impl Tally {
    pub(crate) fn new(trunks: usize, healthy: usize) -> Self {
        Self {
            trunks,
            healthy,
            ..Self::default()
        }
    }

    /// Counts what the agent tells.
    pub(crate) fn event(&mut self, at: Duration, id: RegistrationId, event: &Event) {
        match event {
            Event::Registered(_) => {
                self.registered += 1;
                self.bound.insert(id);
                if self.bound.len() >= self.healthy {
                    self.all_bound_after.get_or_insert(at);
                }
            }
            Event::Refreshed(refreshed) => {
                self.refreshed += 1;
                self.latencies.push_back(refreshed.took);
                if self.latencies.len() > LATENCIES {
                    self.latencies.pop_front();
                }
            }
            Event::Rejected { .. } => self.failures += 1,
            Event::GaveUp { .. } => {
                self.failures += 1;
                self.gave_up += 1;
            }
            Event::Expired { .. } => {
                self.expired += 1;
                self.bound.remove(&id);
            }
            Event::Unregistered(_) => drop(self.bound.remove(&id)),
            Event::FlowLost { .. } => self.flows_lost += 1,
            _ => {}
        }
    }

    /// Counts what has come to the registrar since the last call.
    pub(crate) fn served(&mut self, requests: &[LoggedRequest]) {
        for request in requests {
            if !request.message.starts_with(b"REGISTER ") {
                continue;
            }
            self.requests += 1;
            self.retransmissions += u64::from(request.retransmission);
            match request.answer {
                Some(code) => *self.answers.entry(code).or_default() += 1,
                None => self.unanswered += 1,
            }
            *self.by_second.entry(request.at.as_secs()).or_default() += 1;
            if self.by_second.len() > SECONDS {
                self.by_second.pop_first();
            }
        }
    }

    /// Whether the registrar holds a binding of a trunk, as far as was told.
    pub(crate) fn bound(&self) -> &HashSet<RegistrationId> {
        &self.bound
    }

    /// REGISTERs in each of the last `seconds` whole seconds before `now`, the oldest first.
    pub(crate) fn rates(&self, now: Duration, seconds: u64) -> Vec<u64> {
        let end = now.as_secs();
        (end.saturating_sub(seconds)..end)
            .map(|second| self.by_second.get(&second).copied().unwrap_or_default())
            .collect()
    }

    /// The most REGISTERs in one second that are still known.
    pub(crate) fn peak(&self) -> u64 {
        self.by_second.values().copied().max().unwrap_or_default()
    }

    /// Answers of a class: 2 for 2xx.
    pub(crate) fn answers_of_class(&self, class: u16) -> u64 {
        let of_class = self.answers.range(class * 100..(class + 1) * 100);
        of_class.map(|(_, count)| count).sum()
    }

    /// Answers by their codes.
    pub(crate) fn answers(&self) -> &BTreeMap<u16, u64> {
        &self.answers
    }

    pub(crate) const fn requests(&self) -> u64 {
        self.requests
    }

    pub(crate) const fn unanswered(&self) -> u64 {
        self.unanswered
    }

    pub(crate) const fn all_bound_after(&self) -> Option<Duration> {
        self.all_bound_after
    }

    /// Of the last refreshes; none before the first.
    pub(crate) fn latency(&self) -> Option<Latency> {
        let mut sorted: Vec<_> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let longest = *sorted.last()?;
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100) - 1);
        Some(Latency {
            median: *at(50)?,
            most: *at(95)?,
            longest,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.healthy == self.trunks {
            "registered"
        } else {
            "that can be registered were so"
        };
        match self.all_bound_after {
            Some(after) => writeln!(
                f,
                "all {} {what} after {:.1} s",
                self.healthy,
                after.as_secs_f64()
            )?,
            None => writeln!(f, "not once all {} {what}", self.healthy)?,
        }
        write!(f, "{} REGISTERs", self.requests)?;
        for (code, count) in &self.answers {
            write!(f, ", {count} answered with {code}")?;
        }
        writeln!(
            f,
            ", {} not answered; {} were retransmissions",
            self.unanswered, self.retransmissions
        )?;
        writeln!(
            f,
            "{} registered, {} refreshed, {} failed, {} gave up, {} expired, {} lost their connection",
            self.registered,
            self.refreshed,
            self.failures,
            self.gave_up,
            self.expired,
            self.flows_lost
        )?;
        match self.latency() {
            Some(latency) => write!(f, "refreshes took {latency}"),
            None => f.write_str("no refresh yet"),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        write!(
            f,
            "{:.1} ms (median), {:.1} ms (95 %), {:.1} ms (longest)",
            ms(self.median),
            ms(self.most),
            ms(self.longest)
        )
    }
}

/// Refreshes whose latencies are kept
const LATENCIES: usize = 4096;
/// Seconds whose rates are kept
const SECONDS: usize = 600;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sip_registration::{Failure, FailureClass, FlowId, Protocol, Registered, Removal, Target};

    const fn id(number: u32) -> RegistrationId {
        RegistrationId::from_parts(number, 0)
    }

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    pub(crate) fn granted(took: u64) -> Box<Registered> {
        let target = Target::new(Protocol::Udp, "127.0.0.1:5060".parse().unwrap());
        let mut registered = Registered::new(secs(90), FlowId::new(1), target);
        registered.took = Duration::from_millis(took);
        Box::new(registered)
    }

    pub(crate) fn request(at: u64, answer: Option<u16>) -> LoggedRequest {
        LoggedRequest {
            at: Duration::from_millis(at),
            source: "127.0.0.1:5060".parse().unwrap(),
            protocol: Protocol::Udp,
            message: (&b"REGISTER sip:127.0.0.1 SIP/2.0\r\n\r\n"[..]).into(),
            retransmission: false,
            answer,
        }
    }

    #[test]
    fn all_are_registered_once_the_last_healthy_one_is() {
        let mut tally = Tally::new(2, 2);
        tally.event(secs(1), id(1), &Event::Registered(granted(1)));
        tally.event(secs(2), id(1), &Event::Expired { next_in: None });
        tally.event(secs(3), id(2), &Event::Registered(granted(1)));
        assert_eq!(tally.all_bound_after(), None);
        tally.event(secs(4), id(1), &Event::Registered(granted(1)));
        tally.event(secs(5), id(1), &Event::Unregistered(Removal::Removed));
        tally.event(secs(6), id(1), &Event::Registered(granted(1)));
        assert_eq!(tally.all_bound_after(), Some(secs(4)));
        assert_eq!(tally.bound().len(), 2);
    }

    #[test]
    fn requests_are_counted_by_answer_and_by_second() {
        let mut tally = Tally::default();
        let mut other = request(0, Some(200));
        other.message = (&b"OPTIONS sip:127.0.0.1 SIP/2.0\r\n\r\n"[..]).into();
        let mut again = request(1999, Some(200));
        again.retransmission = true;
        tally.served(&[other, request(900, Some(401)), request(1000, Some(200))]);
        tally.served(&[again, request(3100, Some(403)), request(4000, None)]);
        assert_eq!(tally.rates(secs(4), 4), [1, 2, 0, 1]);
        assert_eq!(tally.rates(secs(2), 4), [1, 2]);
        assert_eq!(
            (tally.requests(), tally.unanswered(), tally.peak()),
            (5, 1, 2)
        );
        assert_eq!(
            [2, 3, 4, 5].map(|class| tally.answers_of_class(class)),
            [2, 0, 2, 0]
        );
        assert!(tally.to_string().contains(
            "5 REGISTERs, 2 answered with 200, 1 answered with 401, 1 answered with 403, 1 not answered; \
             1 were retransmissions"
        ));
    }

    #[test]
    fn the_latency_of_refreshes_is_told_by_rank() {
        let mut tally = Tally::default();
        assert_eq!(tally.latency(), None);
        for took in (1..=100).rev() {
            tally.event(secs(0), id(1), &Event::Refreshed(granted(took)));
        }
        let latency = tally.latency().expect("refreshed");
        assert_eq!(
            latency.to_string(),
            "50.0 ms (median), 95.0 ms (95 %), 100.0 ms (longest)"
        );
    }

    #[test]
    fn failures_are_counted_and_leave_what_is_bound() {
        let mut tally = Tally::new(1, 1);
        tally.event(secs(0), id(1), &Event::Registered(granted(1)));
        let rejected = Event::Rejected {
            failure: Failure::Timeout,
            class: FailureClass::Temporary,
            attempt: 1,
            of: None,
            retry_in: secs(10),
            lease_left: Some(secs(40)),
            exchange: None,
        };
        tally.event(secs(1), id(1), &rejected);
        assert_eq!(tally.bound().len(), 1);
        assert!(
            tally
                .to_string()
                .contains("1 registered, 0 refreshed, 1 failed, 0 gave up")
        );
    }
}
