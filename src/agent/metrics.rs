//! What the agent counts, through the `metrics` facade; without the feature nothing is kept and nothing is done.
//!
//! Labels are `state`, `class`, `transport` and `target`: never an id, an AOR or a user. `target` is a host name as
//! configured, or an address; the first [`TARGETS`] that are seen are named, the others are `other`. Gauges go up and down
//! by what changes, never to a value: agents of one process share them.

use crate::{Activity, Event, Exchange, FailureClass, Registered, RegistrationId, Status, Target};
use metrics::{
    Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// Targets with a name of their own
const TARGETS: usize = 32;
/// A registration that is bound is `registered`, whatever is being done about it
const STATES: [&str; 4] = ["registered", "unregistered", "paused", "stopped"];
const WAITING: [&str; 2] = ["sip_registration_backlog", "sip_registration_held"];

#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Where each registration stands, and since when it has been unreachable
    known: HashMap<RegistrationId, (usize, Option<Instant>)>,
    counts: [u32; STATES.len()],
    /// What waits for full flows, and for a place in a window
    waiting: [usize; 2],
    targets: HashSet<Box<str>>,
}

impl Meter {
    pub(super) fn new() -> Self {
        describe_gauge!("sip_registrations", "Registrations by state");
        describe_counter!(
            "sip_registration_attempts_total",
            "Attempts that ended, by outcome"
        );
        describe_counter!(
            "sip_registration_failures_total",
            "Attempts that failed, by class"
        );
        describe_histogram!(
            "sip_registration_refresh_seconds",
            metrics::Unit::Seconds,
            "From the first REGISTER of an attempt to its grant"
        );
        describe_histogram!(
            "sip_registration_recovery_seconds",
            metrics::Unit::Seconds,
            "From the loss of a binding to the next grant"
        );
        describe_counter!(
            "sip_registration_full_sends_total",
            "Messages that a flow had no room for"
        );
        describe_counter!(
            "sip_registration_dropped_arrivals_total",
            "Datagrams that the agent had no room for"
        );
        describe_gauge!(
            "sip_registration_backlog",
            "Messages that wait for full flows"
        );
        describe_gauge!(
            "sip_registration_held",
            "Attempts that wait for a place in a target's window"
        );
        Self::default()
    }

    /// After an event, or whatever else may have changed a registration; none: it is gone.
    pub(super) fn stands(&mut self, id: RegistrationId, status: Option<&Status>, now: Instant) {
        let before = self.known.get(&id).copied();
        let after = status.map(state);
        match (before, after) {
            (Some((old, _)), Some(new)) if old == new => return,
            (None, None) => return,
            _ => {}
        }
        if let Some((old, _)) = before {
            self.count(old, -1);
        }
        match after {
            Some(new) => {
                self.count(new, 1);
                let down = before.and_then(|(_, down)| down);
                let lost = before.is_some_and(|(old, _)| old == 0) && new != 0;
                let down = down.or_else(|| lost.then_some(now));
                self.known.insert(id, (new, down));
            }
            None => {
                self.known.remove(&id);
            }
        }
    }

    fn count(&mut self, state: usize, by: i32) {
        if let (Some(count), Some(name)) = (self.counts.get_mut(state), STATES.get(state)) {
            *count = count.saturating_add_signed(by);
            gauge!("sip_registrations", "state" => *name).increment(by);
        }
    }

    pub(super) fn event(&mut self, id: RegistrationId, event: &Event, now: Instant) {
        match event {
            Event::Registered(registered) | Event::Refreshed(registered) => {
                self.granted(id, registered, now);
            }
            Event::Rejected {
                class, exchange, ..
            }
            | Event::GaveUp {
                class, exchange, ..
            } => {
                self.failed(*class, exchange.as_deref());
            }
            Event::OfFlow { event, .. } => self.event(id, event, now),
            _ => {}
        }
    }

    fn granted(&mut self, id: RegistrationId, registered: &Registered, now: Instant) {
        let labels = self.labels(Some(&registered.target));
        histogram!("sip_registration_refresh_seconds", labels.clone()).record(registered.took);
        self.attempt(labels, "granted");
        if let Some((_, down)) = self.known.get_mut(&id)
            && let Some(since) = down.take()
        {
            let took = now.saturating_duration_since(since);
            histogram!("sip_registration_recovery_seconds").record(took);
        }
    }

    fn failed(&mut self, class: FailureClass, exchange: Option<&Exchange>) {
        let labels = self.labels(exchange.and_then(|exchange| exchange.target.as_ref()));
        let class = match class {
            FailureClass::Temporary => "temporary",
            FailureClass::Forbidden => "forbidden",
            FailureClass::Fatal => "fatal",
            FailureClass::Credentials => "credentials",
        };
        let mut classed = labels.clone();
        classed.push(Label::from_static_parts("class", class));
        counter!("sip_registration_failures_total", classed).increment(1);
        self.attempt(labels, "failed");
    }

    fn attempt(&self, mut labels: Vec<Label>, outcome: &'static str) {
        labels.push(Label::from_static_parts("outcome", outcome));
        counter!("sip_registration_attempts_total", labels).increment(1);
    }

    /// Transport and host of a target; an attempt that got no further than its name has none.
    fn labels(&mut self, target: Option<&Target>) -> Vec<Label> {
        let Some(target) = target else {
            return ["transport", "target"]
                .map(|name| Label::from_static_parts(name, "none"))
                .into();
        };
        let host = target.host();
        let host = if self.targets.contains(host) {
            host.to_owned()
        } else if self.targets.len() < TARGETS {
            self.targets.insert(host.into());
            host.to_owned()
        } else {
            "other".to_owned()
        };
        vec![
            Label::from_static_parts("transport", target.protocol().name()),
            Label::new("target", host),
        ]
    }

    pub(super) fn full(&self) {
        counter!("sip_registration_full_sends_total").increment(1);
    }

    pub(super) fn dropped() {
        counter!("sip_registration_dropped_arrivals_total").increment(1);
    }

    pub(super) fn waiting(&mut self, backlog: usize, held: usize) {
        let before = std::mem::replace(&mut self.waiting, [backlog, held]);
        for ((name, before), now) in WAITING.into_iter().zip(before).zip(self.waiting) {
            if now != before {
                gauge!(name).increment(now as f64 - before as f64);
            }
        }
    }
}

/// Of an agent that has ended nothing is counted any more, however it ended.
impl Drop for Meter {
    fn drop(&mut self) {
        self.waiting(0, 0);
        for (count, name) in self.counts.into_iter().zip(STATES) {
            if count > 0 {
                gauge!("sip_registrations", "state" => name).decrement(count);
            }
        }
    }
}

fn state(status: &Status) -> usize {
    match status.activity {
        _ if status.is_registered() => 0,
        Activity::Paused => 2,
        Activity::Idle => 3,
        _ => 1,
    }
}
