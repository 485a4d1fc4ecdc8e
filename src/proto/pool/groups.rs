//! Registrations with several flows: commands go to all of their machines, what these tell is folded into one.

use super::*;
use crate::proto::group::{Ended, Group, Turn};

/// How long the binding of a flow that is not wanted any more may take to be removed (D21)
const REMOVAL: Duration = Duration::from_secs(35);
/// No host means more than this by a deadline, and `Instant` has an end
const LONGEST: Duration = Duration::from_secs(86_400);

/// The registrations that have several flows; most pools have none
#[derive(Debug, Default)]
pub(super) struct Groups {
    by_id: HashMap<RegistrationId, Group>,
    /// The machines of further flows, and of which registration each is
    owners: HashMap<RegistrationId, RegistrationId>,
}

impl Groups {
    pub(super) fn of(&self, id: RegistrationId) -> Option<&Group> {
        self.by_id.get(&id)
    }

    pub(super) fn of_mut(&mut self, id: RegistrationId) -> Option<&mut Group> {
        self.by_id.get_mut(&id)
    }

    /// The registration that a machine belongs to.
    pub(super) fn owner(&self, id: RegistrationId) -> RegistrationId {
        self.owners.get(&id).copied().unwrap_or(id)
    }

    fn of_member_mut(&mut self, id: RegistrationId) -> Option<(RegistrationId, &mut Group)> {
        let owner = self.owner(id);
        self.by_id.get_mut(&owner).map(|group| (owner, group))
    }

    /// A question for credentials as the host is to see it.
    pub(super) fn asks(&mut self, id: RegistrationId, op: OpId) -> (RegistrationId, OpId) {
        match self.of_member_mut(id) {
            Some((owner, group)) => (owner, group.asks(id, op)),
            None => (id, op),
        }
    }

    /// The flow of a machine is made anew.
    pub(super) fn renewed(&mut self, id: RegistrationId) {
        if let Some((_, group)) = self.of_member_mut(id) {
            group.renewed(id);
        }
    }

    pub(super) fn network_changed(&mut self) {
        self.by_id.values_mut().for_each(Group::network_changed);
    }

    /// Whether another flow of the same registration is up (RFC 5626 §4.5), and whether the registrar has said to one of
    /// them that it knows them from one another.
    pub(super) fn beside(&self, id: RegistrationId) -> (bool, bool) {
        let group = self.of(self.owner(id));
        group.map_or((false, false), |group| {
            (group.another_is_up(id), group.is_outbound())
        })
    }

    pub(super) fn another_is_up(&self, id: RegistrationId) -> bool {
        self.beside(id).0
    }
}

impl Pool {
    /// Makes a registration that is there one with several flows.
    pub(super) fn group(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        further: Vec<Arc<Registration>>,
    ) {
        let mut group = Group::new(id);
        if let Some(entry) = self.entry(id) {
            group.first_is(&entry.machine.status(), entry.machine.is_outbound());
            if let Some(by) = entry.machine.stops_by() {
                group.stop(by);
            }
        }
        self.groups.by_id.insert(id, group);
        for registration in further {
            self.add_flow(cx, id, registration);
        }
    }

    fn add_flow(&mut self, cx: &mut Out<'_>, id: RegistrationId, registration: Arc<Registration>) {
        let flow = self.place(cx, registration);
        let waits = self.removes_what_was_left(id);
        self.groups.owners.insert(flow, id);
        if let Some(group) = self.groups.of_mut(id) {
            group.push(flow, waits);
        }
    }

    /// Whether a reconciliation is removing bindings that a flow which is new would have again: on another way its REGISTER
    /// could come before the removal.
    fn removes_what_was_left(&self, id: RegistrationId) -> bool {
        let group = self.groups.of(id);
        let mut all = group
            .into_iter()
            .flat_map(|group| group.ids().chain(group.retired()));
        all.any(|id| {
            self.entry(id)
                .is_some_and(|entry| entry.machine.removes_what_was_left())
        })
    }

    /// Where nothing keeps those any more that wait for a reconciliation, it is their turn.
    fn end_wait(&mut self, id: RegistrationId) {
        let waits = self.groups.of(id).is_some_and(Group::is_waited_for);
        if waits && !self.removes_what_was_left(id) {
            self.groups.of_mut(id).map(Group::removed_what_was_left);
        }
    }

    /// The machines of one registration, in the order of their reg-ids.
    pub(super) fn members(&self, id: RegistrationId) -> Vec<RegistrationId> {
        match self.groups.of(id) {
            Some(group) => group.ids().collect(),
            None => vec![id],
        }
    }

    /// A command to a registration with several flows, or an answer to its first one.
    pub(super) fn command(&mut self, cx: &mut Out<'_>, id: RegistrationId, input: Input<'_>) {
        let Some(group) = self.groups.of_mut(id) else {
            return;
        };
        let registers = matches!(
            input,
            Input::Refresh | Input::Reregister | Input::RetryCredentials
        );
        // A stop is never turned into a registration again, not even that of the flows that have stopped first (D21).
        if group.stopping().is_some() && (registers || asks_for_more(&input)) {
            return;
        }
        if matches!(input, Input::RetryCredentials) {
            for id in self.members(id) {
                self.forgive(id);
            }
        }
        let Some(group) = self.groups.of_mut(id) else {
            return;
        };
        if registers && group.on().next().is_none() {
            // Nobody's turn: whose it is now starts, which is what is asked for.
            return self.take_turns(cx, id);
        }
        if removes(&input) {
            group.commanded();
        }
        let on: Vec<_> = group.on().collect();
        match input {
            Input::Refresh => {
                for id in on {
                    self.feed(cx, id, Input::Refresh);
                }
            }
            Input::Reregister => {
                for id in on {
                    self.feed(cx, id, Input::Reregister);
                }
            }
            Input::Pause { until, unregister } => {
                for id in on {
                    self.feed(cx, id, Input::Pause { until, unregister });
                }
            }
            Input::Resume => {
                for id in on {
                    self.feed(cx, id, Input::Resume);
                }
            }
            Input::RetryCredentials => {
                for id in on {
                    self.feed(cx, id, Input::RetryCredentials);
                }
            }
            Input::Query => {
                let speaker = group.speaker().unwrap_or(id);
                self.feed(cx, speaker, Input::Query);
            }
            Input::Reconcile => {
                let speaker = group.speaker().unwrap_or(id);
                self.feed(cx, speaker, Input::Reconcile);
            }
            Input::RemoveAll => {
                let speaker = group.speaker().unwrap_or(id);
                self.feed(cx, speaker, Input::RemoveAll);
            }
            Input::Stop(within) => {
                group.stop(cx.now + within.min(LONGEST));
                let left = group
                    .stopping()
                    .map(|by| by.saturating_duration_since(cx.now));
                let within = left.unwrap_or(within);
                let all: Vec<_> = group.ids().chain(group.retired()).collect();
                for id in all {
                    self.feed(cx, id, Input::Stop(within));
                }
            }
            Input::Reconfigure(to) => self.reconfigure_flows(cx, id, to),
            Input::NetworkChanged(spread) => {
                group.network_changed();
                for id in self.members(id) {
                    self.feed(cx, id, Input::NetworkChanged(spread));
                }
            }
            Input::ClockJump { by, spread } => {
                for id in self.members(id) {
                    self.feed(cx, id, Input::ClockJump { by, spread });
                }
            }
            Input::Credentials { op, secret } => self.credentials(cx, id, op, secret),
            // What is of one machine comes with that one's id, and this id is the first one's.
            input @ (Input::Start
            | Input::Timeout
            | Input::Response(_)
            | Input::Located { .. }
            | Input::Opened { .. }
            | Input::Held(_)
            | Input::Guarded { .. }
            | Input::FlowFailed { .. }) => self.feed(cx, id, input),
        }
    }

    /// Flow by flow: those that stay are changed as one alone would be, those that are new wait for their turn, those that
    /// are no more are removed.
    fn reconfigure_flows(&mut self, cx: &mut Out<'_>, id: RegistrationId, to: Arc<Registration>) {
        let further = to.further_flows().to_vec();
        let pause = self.pause_of_all(id);
        let Some(group) = self.groups.of_mut(id) else {
            return;
        };
        let gone = group.retire(further.len() + 1);
        let members: Vec<_> = group
            .ids()
            .zip([to].into_iter().chain(further.clone()))
            .collect();
        // One that has stopped while others have not is not to begin anew.
        let goes_on = |id| group.is_on(id) && group.stopping().is_none();
        let is_on: Vec<_> = members.iter().map(|(id, _)| goes_on(*id)).collect();
        for ((flow, registration), on) in members.iter().zip(is_on) {
            match on {
                true => self.feed(cx, *flow, Input::Reconfigure(Arc::clone(registration))),
                false => self.adopt(cx, *flow, Arc::clone(registration)),
            }
        }
        for registration in further.into_iter().skip(members.len() - 1) {
            self.add_flow(cx, id, registration);
        }
        for flow in gone {
            self.end_flow(cx, flow);
        }
        // One that was paused may be among those that are no more: the pause goes on all the same.
        let turns = self.groups.of_mut(id).map(Group::take_turns);
        for turn in turns.unwrap_or_default() {
            match (turn, pause) {
                (Turn::Start(flow), Some(until)) => self.rest(cx, flow, until),
                (turn, _) => self.carry_turns(cx, vec![turn]),
            }
        }
        self.all_stopped(cx, id);
    }

    /// A machine that waits for its turn has a new configuration, and goes on waiting.
    fn adopt(&mut self, cx: &mut Out<'_>, id: RegistrationId, to: Arc<Registration>) {
        let busy = self.entry(id).is_some_and(|entry| entry.machine.is_busy());
        if busy {
            // Its binding is being removed: it has the configuration then.
            return self.feed(cx, id, Input::Reconfigure(to));
        }
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        let before = Arc::clone(entry.machine.registration());
        let line = entry.machine.line().map(Box::<str>::from);
        let mut none = Vec::new();
        entry.machine.adopt(
            &mut Cx {
                now: cx.now,
                wall: cx.wall,
                entropy: cx.entropy,
                out: &mut none,
            },
            to,
        );
        if entry.machine.line() != line.as_deref() {
            line.map(|old| self.lines.remove(&old));
            self.list_line(cx, id);
        }
        self.settle(cx, id, &before);
    }

    /// What one machine tells is told of its registration.
    pub(super) fn tell(&mut self, cx: &mut Out<'_>, id: RegistrationId, event: Event) {
        let owner = self.groups.owner(id);
        let entry = self.entry_mut(id);
        let emptied = entry.filter(|_| event == Event::Unregistered(Removal::Removed));
        let emptied = emptied.and_then(|entry| entry.machine.take_emptied());
        let Some(group) = self.groups.of(owner) else {
            return cx.out.push(PoolOutput::Event(id, event));
        };
        let bound: Vec<_> = group.bound().filter(|other| *other != id).collect();
        let holds = |id: &RegistrationId| self.status_of(*id).is_some_and(|s| s.is_registered());
        let ended: Vec<_> = bound.into_iter().filter(|id| !holds(id)).collect();
        if let Some(sent_at) = emptied {
            self.let_all_go(owner, id, sent_at);
        }
        self.end_wait(owner);
        let Some(group) = self.groups.of_mut(owner) else {
            return;
        };
        group.have_none(&ended);
        if emptied.is_some() {
            group.empty(id);
        }
        let (mut told, turns) = group.event(id, event);
        if let Event::GaveUp { lease_left, .. } = &mut told
            && lease_left.is_none()
        {
            // The last one that tried has none, but others that have given up before may be bound still.
            let lease = self.status(owner).and_then(|status| status.lease);
            *lease_left = lease.map(|lease| lease.expires_at.saturating_duration_since(cx.now));
        }
        cx.out.push(PoolOutput::Event(owner, told));
        self.carry_turns(cx, turns);
    }

    fn take_turns(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let turns = self.groups.of_mut(id).map(Group::take_turns);
        self.carry_turns(cx, turns.unwrap_or_default());
    }

    fn carry_turns(&mut self, cx: &mut Out<'_>, turns: Vec<Turn>) {
        for turn in turns {
            match turn {
                Turn::Start(id) => self.start_flow(cx, id),
                Turn::Stop(id) => self.end_flow(cx, id),
                // It has let go already.
                Turn::Gone(id) if self.rests(id) => {}
                Turn::Gone(id) => {
                    let input = match self.pause_of(id) {
                        Some(until) => Input::Pause {
                            until,
                            unregister: true,
                        },
                        None => {
                            let owner = self.groups.owner(id);
                            if let Some(group) = self.groups.of_mut(owner) {
                                group.sits_out(id);
                            }
                            Input::Stop(REMOVAL)
                        }
                    };
                    self.feed(cx, id, input);
                }
            }
        }
    }

    /// Its turn has come; in a pause it waits with the others.
    fn start_flow(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        match self.pause_of_all(self.groups.owner(id)) {
            Some(until) => self.rest(cx, id, until),
            None => self.feed(cx, id, Input::Start),
        }
    }

    fn rest(&mut self, cx: &mut Out<'_>, id: RegistrationId, until: Option<Instant>) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        let before = Arc::clone(entry.machine.registration());
        entry.machine.rest(until);
        self.settle(cx, id, &before);
    }

    /// Until when a machine is paused, if it is.
    fn pause_of(&self, id: RegistrationId) -> Option<Option<Instant>> {
        self.entry(id)?.machine.pause()
    }

    /// Until when a registration is paused, if it is.
    fn pause_of_all(&self, id: RegistrationId) -> Option<Option<Instant>> {
        let mut members = self.members(id).into_iter();
        members.find_map(|id| self.pause_of(id))
    }

    /// Whether a machine is paused, and nothing of it is under way.
    fn rests(&self, id: RegistrationId) -> bool {
        let entry = self.entry(id);
        entry.is_some_and(|entry| entry.machine.pause().is_some() && !entry.machine.is_busy())
    }

    /// All bindings were removed by a request of one machine: others have none any more that were granted before that was
    /// sent, or whose flow is dead. One that was being bound meanwhile may be again, and un-REGISTERs.
    fn let_all_go(&mut self, owner: RegistrationId, by: RegistrationId, sent_at: Instant) {
        let had = |id: RegistrationId| {
            let lease = self.status_of(id).and_then(|status| status.lease);
            let dead = lease.is_some_and(|lease| lease.flow.is_none());
            dead || self
                .entry(id)
                .is_some_and(|entry| entry.machine.was_bound_before(sent_at))
        };
        let group = self.groups.of(owner).into_iter();
        let others = group.flat_map(|group| group.ids().chain(group.retired()));
        let others = others.filter(|id| *id != by);
        let gone: Vec<_> = others.filter(|id| self.rests(*id) || had(*id)).collect();
        for id in &gone {
            if let Some(entry) = self.entry_mut(*id) {
                entry.machine.let_all_go();
            }
        }
        if let Some(group) = self.groups.of_mut(owner) {
            group.have_none(&gone);
        }
    }

    /// An answer that may list bindings comes to one flow: which are those of the others that have no number.
    pub(super) fn show_beside(&mut self, id: RegistrationId) {
        let lists = |entry: &Entry| entry.machine.lists();
        let Some(group) = self.groups.of(self.groups.owner(id)) else {
            return;
        };
        if !self.entry(id).is_some_and(lists) {
            return;
        }
        let others = group.ids().chain(group.retired());
        let others = others.filter_map(|other| self.entry(other).filter(|_| other != id));
        let contacts = others.flat_map(|entry| entry.machine.contacts());
        let contacts: Vec<_> = contacts.map(Box::from).collect();
        if let Some(entry) = self.entry_mut(id) {
            entry.machine.beside(contacts);
        }
    }

    /// Removes the binding of a flow that is not wanted any more.
    ///
    /// Over UDP all flows may have one Contact. A registrar without outbound has one binding of it then, and that is the
    /// other flow's now: what may still be there of this one is the same. One with outbound has another of each flow.
    fn end_flow(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let group = self.groups.of(self.groups.owner(id));
        let contacts: Vec<_> = group
            .filter(|group| !group.is_outbound())
            .into_iter()
            .flat_map(|group| group.bound_beside(id))
            .filter_map(|other| self.entry(other)?.machine.contact())
            .map(Box::<str>::from)
            .collect();
        // Where all are to stop, it has no more time than they.
        let stopping = group.and_then(Group::stopping);
        let left = stopping.map(|by| by.saturating_duration_since(cx.now));
        if let Some(entry) = self.entry_mut(id) {
            entry.machine.let_go(&contacts);
        }
        let within = left.map_or(REMOVAL, |left| left.min(REMOVAL));
        self.feed(cx, id, Input::Stop(within));
    }

    /// A machine has carried out a stop.
    pub(super) fn done(&mut self, cx: &mut Out<'_>, id: RegistrationId, removal: Removal) {
        let Some((owner, group)) = self.groups.of_member_mut(id) else {
            if self.slot_mut(id).is_some_and(|slot| slot.leaving) {
                self.forget(cx, id);
                self.count -= 1;
            }
            cx.out.push(PoolOutput::Done(id, removal));
            return self.come_back(cx, id);
        };
        match group.ended(id, removal) {
            Ended::Goes => {}
            Ended::Starts => self.start_flow(cx, id),
            Ended::Left => {
                self.groups.owners.remove(&id);
                self.forget(cx, id);
                // A new one with its number may have waited for that.
                self.end_wait(owner);
                self.take_turns(cx, owner);
            }
        }
        self.all_stopped(cx, owner);
    }

    /// Tells the end of a stop once all flows have stopped, and forgets what is to be forgotten.
    fn all_stopped(&mut self, cx: &mut Out<'_>, owner: RegistrationId) {
        let Some(group) = self.groups.of_mut(owner) else {
            return;
        };
        let Some((worst, several)) = group.all_stopped() else {
            return;
        };
        if worst != Removal::NeverBound && several {
            let told = Event::Unregistered(worst.clone());
            cx.out.push(PoolOutput::Event(owner, told));
        }
        if self.slot_mut(owner).is_some_and(|slot| slot.leaving) {
            self.disband(cx, owner);
        }
        cx.out.push(PoolOutput::Done(owner, worst));
        self.come_back(cx, owner);
    }

    /// It has stopped, and was asked for while it did.
    fn come_back(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let slot = self.slot_mut(id);
        if slot.is_some_and(|slot| std::mem::take(&mut slot.returns)) {
            self.handle(cx, id, Input::Refresh);
        }
    }

    /// All flows of a registration have stopped, and it is to be forgotten.
    fn disband(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let Some(group) = self.groups.by_id.remove(&id) else {
            return;
        };
        for flow in group.ids().chain(group.retired()) {
            self.groups.owners.remove(&flow);
            self.forget(cx, flow);
        }
        self.count -= 1;
    }
}

/// What one machine that stops does not begin either.
const fn asks_for_more(input: &Input<'_>) -> bool {
    matches!(
        input,
        Input::Query | Input::Reconcile | Input::RemoveAll | Input::Pause { .. } | Input::Resume
    )
}

/// Whether bindings may be removed by it.
const fn removes(input: &Input<'_>) -> bool {
    matches!(
        input,
        Input::Reregister
            | Input::RemoveAll
            | Input::Stop(_)
            | Input::Reconfigure(_)
            | Input::Pause {
                unregister: true,
                ..
            }
    )
}
