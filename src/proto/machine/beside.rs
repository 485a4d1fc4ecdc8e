//! One flow of several: what it is asked, and told, because of the others.

use super::*;

impl Machine {
    /// Until when it is to have stopped, while it is to.
    pub(crate) fn stops_by(&self) -> Option<Instant> {
        self.seldom.then.iter().find_map(|then| match then {
            Then::Stop { by } => Some(*by),
            _ => None,
        })
    }

    /// Until when it is paused, if it is: now, after the question under way, or after the un-REGISTER that comes first.
    pub(crate) fn pause(&self) -> Option<Option<Instant>> {
        let plan = match &self.plan {
            Plan::Cycle(cycle) if cycle.purpose != Purpose::Register => &cycle.before,
            plan => plan,
        };
        let waiting = self.seldom.then.iter().find_map(|then| match then {
            Then::Pause { until, .. } => Some(*until),
            _ => None,
        });
        match plan {
            Plan::Paused { until } => Some(*until),
            _ => waiting,
        }
    }

    /// Its turn has come while the others are paused: it goes on when they do.
    pub(crate) fn rest(&mut self, until: Option<Instant>) {
        if matches!(self.plan, Plan::Idle) {
            self.plan = Plan::Paused { until };
        }
    }

    /// Whether bindings that this device has left behind are on their way to be removed.
    pub(crate) fn removes_what_was_left(&self) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle) if !cycle.left.is_empty())
    }

    /// Whether the answer under way lists bindings, among which those of the others are to be known.
    pub(crate) fn lists(&self) -> bool {
        matches!(&self.plan, Plan::Cycle(cycle)
            if matches!(cycle.purpose, Purpose::Query | Purpose::Reconcile))
    }

    /// The Contacts of the other flows, which nobody has left behind.
    pub(crate) fn beside(&mut self, contacts: Vec<Box<str>>) {
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.beside = contacts;
        }
    }

    /// The Contacts that this flow is bound by, or is being bound by.
    pub(crate) fn contacts(&self) -> impl Iterator<Item = &str> {
        let under_way = match &self.plan {
            Plan::Cycle(cycle) => Some(&*cycle.contact_uri).filter(|uri| !uri.is_empty()),
            _ => None,
        };
        self.contact().into_iter().chain(under_way)
    }

    /// Forgets bindings by these Contacts, unless the registrar tells those of this flow from others by `reg-id`.
    pub(crate) fn let_go(&mut self, contacts: &[Box<str>]) {
        if self.is_outbound() || contacts.is_empty() {
            return;
        }
        let theirs = |contact: &str| contacts.iter().any(|other| **other == *contact);
        self.lease.take_if(|lease| theirs(&lease.contact));
        if let Some(seldom) = self.seldom.there() {
            seldom.stale.retain(|(contact, _)| !theirs(contact));
        }
        let under_way = match &self.plan {
            Plan::Cycle(cycle) => Some(&*cycle.contact_uri).filter(|uri| !uri.is_empty()),
            _ => None,
        };
        let mine = self.lease.is_some() || !self.seldom.stale.is_empty();
        if !mine && under_way.is_none_or(theirs) {
            self.may_live = None;
        }
    }

    /// Nothing of this registration is bound any more, by what another flow has removed.
    pub(crate) fn let_all_go(&mut self) {
        self.lease = None;
        if let Some(seldom) = self.seldom.there() {
            seldom.stale.clear();
        }
        if !matches!(self.plan, Plan::Cycle(_)) {
            self.may_live = None;
        }
    }

    /// Whether what it holds was granted before, and nothing is under way that binds it again.
    pub(crate) fn was_bound_before(&self, at: Instant) -> bool {
        let lease = self.lease.as_ref();
        !self.registers() && lease.is_some_and(|lease| lease.at < at)
    }

    /// Whether all bindings were removed since this was asked last: by a request that was sent then.
    pub(crate) fn take_emptied(&mut self) -> Option<Instant> {
        self.seldom.there().and_then(|seldom| seldom.emptied.take())
    }

    /// How many flows there are, by the configuration in force and by those that wait: a flow of the next one may be up
    /// before this machine comes to it.
    pub(super) fn flows_to_come(&self) -> Option<u8> {
        let waiting = self.seldom.then.iter().filter_map(|then| match then {
            Then::Reconfigure(to) | Then::Replace(to) => to.flow_count(),
            _ => None,
        });
        waiting.chain(self.registration.flow_count()).max()
    }
}
