//! The gauges that Asterisk sends to a statsd server: how many registrations there are, and in which state.

use crate::{Event, Failure, ReferenceStatus, RegistrationId};
use std::collections::{BTreeMap, BTreeSet};

/// The reference's statsd gauges, `PJSIP.registrations.count` and `PJSIP.registrations.state.STATE`
///
/// `STATE` is `Registered`, `Unregistered` or `Rejected`, the words of [`ReferenceStatus`]. Every method returns the
/// lines to be sent, each in a datagram of its own; nothing is sent here. [`zeros`](Self::zeros) come first; after that
/// all are changes, `:+1|g` and `:-1|g` (BEHAVIOUR §8), so that what a server adds up is what
/// `pjsip show registrations` lists.
///
/// ```
/// use sip_registration::pjsip_conf::Gauges;
/// use sip_registration::{ReferenceStatus, RegistrationId};
///
/// let (mut gauges, trunk) = (Gauges::new(), RegistrationId::from_parts(0, 0));
/// assert_eq!(gauges.created(trunk), ["PJSIP.registrations.count:+1|g", "PJSIP.registrations.state.Unregistered:+1|g"]);
/// assert_eq!(
///     gauges.stands(trunk, ReferenceStatus::Registered),
///     ["PJSIP.registrations.state.Unregistered:-1|g", "PJSIP.registrations.state.Registered:+1|g"]
/// );
/// assert_eq!(gauges.destroyed(trunk), ["PJSIP.registrations.count:-1|g", "PJSIP.registrations.state.Registered:-1|g"]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    statuses: BTreeMap<RegistrationId, ReferenceStatus>,
}

impl Gauges {
    /// No registration yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All four gauges set to 0, for the start.
    #[must_use]
    pub fn zeros() -> Vec<String> {
        use ReferenceStatus::{Registered, Rejected, Unregistered};
        let states = [Registered, Unregistered, Rejected].map(state);
        std::iter::once(COUNT.to_owned())
            .chain(states)
            .map(|name| format!("{name}:0|g"))
            .collect()
    }

    /// A registration is there; nothing where it was before.
    pub fn created(&mut self, id: RegistrationId) -> Vec<String> {
        let new = ReferenceStatus::Unregistered;
        if self.statuses.contains_key(&id) {
            return Vec::new();
        }
        self.statuses.insert(id, new);
        vec![more(COUNT), more(&state(new))]
    }

    /// What has happened to a registration; one that was not there before is created.
    pub fn event(&mut self, id: RegistrationId, event: &Event) -> Vec<String> {
        match after(event) {
            Some(status) => self.stands(id, status),
            None => self.created(id),
        }
    }

    /// Where a registration stands, for what no event tells: an un-REGISTER that there was nothing for. One that was
    /// not there before is created.
    pub fn stands(&mut self, id: RegistrationId, status: ReferenceStatus) -> Vec<String> {
        let mut lines = self.created(id);
        if let Some(old) = self.statuses.insert(id, status)
            && old != status
        {
            lines.extend([less(&state(old)), more(&state(status))]);
        }
        lines
    }

    /// A registration is gone; nothing where it was not there.
    pub fn destroyed(&mut self, id: RegistrationId) -> Vec<String> {
        match self.statuses.remove(&id) {
            Some(status) => vec![less(COUNT), less(&state(status))],
            None => Vec::new(),
        }
    }

    /// These are there, and no others.
    pub fn only(&mut self, ids: impl IntoIterator<Item = RegistrationId>) -> Vec<String> {
        let ids: BTreeSet<_> = ids.into_iter().collect();
        let known: Vec<_> = self.statuses.keys().copied().collect();
        let mut lines = Vec::new();
        for gone in known.into_iter().filter(|id| !ids.contains(id)) {
            lines.extend(self.destroyed(gone));
        }
        for id in ids {
            lines.extend(self.created(id));
        }
        lines
    }
}

/// The reference's word after an event; `None` where it stays what it was.
fn after(event: &Event) -> Option<ReferenceStatus> {
    match event {
        Event::Registered(_) | Event::Refreshed(_) => Some(ReferenceStatus::Registered),
        // A grant of no time is a successful un-REGISTER to the reference (BEHAVIOUR §10, 5).
        Event::Rejected { failure, .. } | Event::GaveUp { failure, .. }
            if *failure == Failure::NotGranted =>
        {
            Some(ReferenceStatus::Unregistered)
        }
        Event::Rejected { .. } | Event::GaveUp { .. } => Some(ReferenceStatus::Rejected),
        Event::Unregistered(removal) => removal.reference(),
        Event::Scheduled { .. }
        | Event::Expired { .. }
        | Event::FlowLost { .. }
        | Event::Bindings(_)
        | Event::QueryFailed(_)
        | Event::Paused { .. }
        | Event::Warning(_)
        | Event::OfFlow { .. } => None,
    }
}

const COUNT: &str = "PJSIP.registrations.count";

fn state(status: ReferenceStatus) -> String {
    format!("PJSIP.registrations.state.{status}")
}

fn more(gauge: &str) -> String {
    format!("{gauge}:+1|g")
}

fn less(gauge: &str) -> String {
    format!("{gauge}:-1|g")
}
