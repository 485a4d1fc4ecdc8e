//! Several flows of one registration (RFC 5626): whose turn it is, and what they come to together.
//!
//! Each flow is a machine of its own, with its own Call-ID and CSeq. To the host they are one registration: it is
//! registered while any flow holds, and what happens to a flow that changes nothing of that is told as
//! [`Event::OfFlow`].

use super::event::{Activity, Event, Removal, Status};
use super::ids::{OpId, RegistrationId};
use std::time::Instant;

/// The flows of one registration
#[derive(Debug)]
pub(crate) struct Group {
    /// In the order of their reg-ids; the first one's id is that of the registration
    members: Vec<Member>,
    /// Flows that a new configuration has no more, until their bindings are removed
    retired: Vec<Retired>,
    /// Until when all of them are to have stopped, while they are to
    stopping: Option<Instant>,
    /// What became of the bindings of those that had been left behind, since all were asked to stop
    left: Vec<Removal>,
    /// Whether the host was told that it is registered, and nothing since that says otherwise
    told: bool,
    /// Whether the host was told of a removal since a command last came
    removal_told: bool,
    /// The one that removes all bindings of the address of record
    empties: Option<RegistrationId>,
    /// Questions for credentials: as the host knows them, and whose they are
    asked: Vec<(OpId, RegistrationId, OpId)>,
    ops: u32,
}

#[derive(Debug)]
struct Member {
    id: RegistrationId,
    /// Whether it is to be registered; the others wait for their turn
    on: bool,
    bound: bool,
    /// Its flow is up
    reachable: bool,
    /// `Require: outbound` stood in the grant
    outbound: bool,
    gave_up: bool,
    /// Its binding is being removed, because it was not its turn any more
    leaves: bool,
    /// What became of its binding, since all were asked to stop
    stopped: Option<Removal>,
    /// It comes by a new configuration while the binding of an earlier one of its number may be on its way to be removed
    waits: bool,
}

impl Member {
    const fn new(id: RegistrationId, on: bool) -> Self {
        Self {
            id,
            on,
            bound: false,
            reachable: false,
            outbound: false,
            gave_up: false,
            leaves: false,
            stopped: None,
            waits: false,
        }
    }

    const fn tries(&self) -> bool {
        self.on && !self.gave_up
    }
}

/// A flow that has no place in the configuration any more
#[derive(Debug)]
struct Retired {
    id: RegistrationId,
    /// Where it stood: a registrar takes another flow of that number for the same one (RFC 5626 §6)
    at: usize,
    bound: bool,
}

/// What a group wants of one of its machines
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Start(RegistrationId),
    /// Its binding is removed, for another one is all there is
    Stop(RegistrationId),
    /// Another one has removed its binding
    Gone(RegistrationId),
}

/// What the end of one machine means for the whole
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nothing
    Goes,
    /// It is its turn again
    Starts,
    /// It has left the group
    Left,
}

impl Group {
    /// The flow that comes first, and those that wait for it.
    pub(crate) fn new(first: RegistrationId) -> Self {
        Self {
            members: vec![Member::new(first, true)],
            retired: Vec::new(),
            stopping: None,
            left: Vec::new(),
            told: false,
            removal_told: false,
            empties: None,
            asked: Vec::new(),
            ops: 0,
        }
    }

    /// What the first one is already, where the others come by a new configuration.
    pub(crate) fn first_is(&mut self, status: &Status, outbound: bool) {
        if let (Some(member), Some(lease)) = (self.members.first_mut(), &status.lease) {
            member.bound = true;
            member.reachable = lease.flow.is_some();
            member.outbound = outbound;
            self.told = true;
        }
    }

    /// One more; with `waits` it has no turn before [`removed_what_was_left`](Self::removed_what_was_left).
    pub(crate) fn push(&mut self, id: RegistrationId, waits: bool) {
        self.members.push(Member {
            // Where all are to stop, this one has nothing to.
            stopped: self.stopping.map(|_| Removal::NeverBound),
            waits,
            ..Member::new(id, false)
        });
    }

    /// Whether there is one that waits for a reconciliation under way.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.members.iter().any(|member| member.waits)
    }

    /// No reconciliation is removing anything any more.
    pub(crate) fn removed_what_was_left(&mut self) {
        for member in &mut self.members {
            member.waits = false;
        }
    }

    /// All of them, in the order of their reg-ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        self.members.iter().map(|member| member.id)
    }

    /// Those that a new configuration has left behind.
    pub(crate) fn retired(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        self.retired.iter().map(|retired| retired.id)
    }

    /// Those that are to be registered.
    pub(crate) fn on(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        let on = self.members.iter().filter(|member| member.on);
        on.map(|member| member.id)
    }

    pub(crate) fn is_on(&self, id: RegistrationId) -> bool {
        self.on().any(|on| on == id)
    }

    /// The best one to ask the registrar something: bound with its flow up, else any that is to be registered.
    pub(crate) fn speaker(&self) -> Option<RegistrationId> {
        let best = self.members.iter().find(|member| member.reachable);
        let best = best.or_else(|| self.members.iter().find(|member| member.on));
        best.map(|member| member.id)
    }

    /// The flows beyond `keep` have no place in a new configuration: their ids.
    pub(crate) fn retire(&mut self, keep: usize) -> Vec<RegistrationId> {
        let keep = keep.max(1).min(self.members.len());
        let gone = self.members.split_off(keep);
        // They stop once more, and find nothing then.
        let stopped = gone.iter().filter_map(|member| member.stopped.clone());
        self.left
            .extend(stopped.filter(|removal| *removal == Removal::Removed));
        let ids = gone.iter().map(|member| member.id).collect();
        let gone = gone.into_iter().enumerate().map(|(at, member)| Retired {
            id: member.id,
            at: keep + at,
            bound: member.bound,
        });
        self.retired.extend(gone);
        // After the stop there is one that a command is for.
        if self.stopping.is_some() && self.on().next().is_none() {
            self.members.iter_mut().take(1).for_each(|m| m.on = true);
        }
        ids
    }

    /// Those whose binding has ended without a word, by a stop that found nothing to remove or a new configuration.
    pub(crate) fn have_none(&mut self, ids: &[RegistrationId]) {
        for member in self.members.iter_mut().filter(|m| ids.contains(&m.id)) {
            (member.bound, member.reachable) = (false, false);
        }
        for retired in self.retired.iter_mut().filter(|one| ids.contains(&one.id)) {
            retired.bound = false;
        }
    }

    /// The binding of one of them went with all others: it waits for its turn, which comes where another one registers again.
    pub(crate) fn sits_out(&mut self, id: RegistrationId) {
        // After a stop there is one that a command is for.
        if self.stopping.is_some() {
            return;
        }
        for member in self.members.iter_mut().filter(|member| member.id == id) {
            (member.on, member.leaves) = (false, true);
        }
    }

    /// The flow of one of them is made anew.
    pub(crate) fn renewed(&mut self, id: RegistrationId) {
        for member in self.members.iter_mut().filter(|member| member.id == id) {
            member.reachable = false;
        }
    }

    /// All flows are made anew.
    pub(crate) fn network_changed(&mut self) {
        for member in &mut self.members {
            member.reachable = false;
        }
    }

    /// All are to stop until then; of two stops the shorter one counts.
    pub(crate) fn stop(&mut self, by: Instant) {
        match &mut self.stopping {
            Some(until) => *until = by.min(*until),
            None => {
                self.stopping = Some(by);
                self.left.clear();
            }
        }
        for member in &mut self.members {
            // Those that have stopped find nothing any more, but something was there.
            let removed = member.stopped.take();
            self.left
                .extend(removed.filter(|removal| *removal == Removal::Removed));
            member.leaves = false;
        }
    }

    /// A command that may remove bindings.
    pub(crate) const fn commanded(&mut self) {
        self.removal_told = false;
    }

    /// Until when all of them are to have stopped, while they are to.
    pub(crate) const fn stopping(&self) -> Option<Instant> {
        self.stopping
    }

    /// One of them has removed all bindings, which is what its next event says: the others hold none.
    pub(crate) const fn empty(&mut self, by: RegistrationId) {
        self.empties = Some(by);
    }

    /// What happened to one of them: what the host is told, and whose turn it is then.
    pub(crate) fn event(&mut self, id: RegistrationId, event: Event) -> (Event, Vec<Turn>) {
        let ends = matches!(event, Event::Unregistered(_) | Event::QueryFailed(_));
        let emptied = self.empties.take_if(|by| ends && *by == id).is_some()
            && event == Event::Unregistered(Removal::Removed);
        if emptied {
            for member in self.members.iter_mut().filter(|m| !m.reachable) {
                member.bound = false;
            }
        }
        let Some(at) = self.members.iter().position(|member| member.id == id) else {
            let told = self.retired_tells(id, event, emptied);
            let turns = match emptied {
                true => self.all_gone(id),
                false => Vec::new(),
            };
            return (told, turns);
        };
        let before = self.others(at);
        let member = &mut self.members[at];
        let was_bound = member.bound;
        let mut leads_on = false;
        let plain = match &event {
            Event::Registered(granted) | Event::Refreshed(granted) => {
                member.bound = true;
                member.reachable = true;
                member.outbound = granted.outbound;
                member.gave_up = false;
                match event {
                    // In a stop the others may be gone, which is told at its end.
                    Event::Registered(_) => !self.told,
                    _ => !before.bound,
                }
            }
            Event::Rejected {
                failure,
                lease_left,
                ..
            } => {
                member.bound &= lease_left.is_some();
                member.reachable &= member.bound;
                leads_on = failure.is_of_the_way();
                !before.bound
            }
            Event::GaveUp {
                failure,
                lease_left,
                ..
            } => {
                member.bound &= lease_left.is_some();
                member.reachable &= member.bound;
                member.gave_up = true;
                leads_on = failure.is_of_the_way();
                !before.tries
            }
            Event::Expired { .. } => {
                member.bound = false;
                member.reachable = false;
                was_bound && !before.bound
            }
            Event::FlowLost { .. } => {
                member.reachable = false;
                !before.reachable
            }
            Event::Unregistered(removal) => {
                if *removal == Removal::Removed {
                    member.bound = false;
                    member.reachable = false;
                }
                // Told of the whole when the last one has stopped; of what may have been there, once.
                let news = was_bound || emptied || !self.removal_told;
                news && !before.bound && self.stopping.is_none()
            }
            Event::Bindings(_) | Event::QueryFailed(_) => true,
            // Each tells its own, and there may be no first one among them.
            Event::Scheduled { .. } | Event::Paused { .. } => before.first,
            _ => false,
        };
        let alone = self.members.len() == 1 && self.retired.is_empty() && self.left.is_empty();
        // What it may have bound was told to be gone with the others.
        let again =
            matches!(event, Event::Unregistered(_)) && !was_bound && !emptied && self.removal_told;
        let told = match plain || alone && !again {
            true => self.tells(event),
            false => of_flow(at + 1, event),
        };
        let turns = match emptied {
            true => self.all_gone(id),
            false => self.turns(leads_on),
        };
        (told, turns)
    }

    /// The event is of the whole.
    fn tells(&mut self, event: Event) -> Event {
        let event = match event {
            // What refreshes a binding of its own is news where all were told to be gone: one that could not be removed.
            Event::Refreshed(granted) if !self.told => Event::Registered(granted),
            event => event,
        };
        match &event {
            Event::Registered(_) | Event::Refreshed(_) => self.told = true,
            Event::Expired { .. } => self.told = false,
            Event::Rejected { lease_left, .. } | Event::GaveUp { lease_left, .. } => {
                // Those that have given up before may be bound still.
                let bound = self.bound().next().is_some();
                self.told = lease_left.is_some() || bound;
            }
            Event::Unregistered(_) => (self.told, self.removal_told) = (false, true),
            _ => {}
        }
        event
    }

    /// What happened to a flow that has no place any more: while its binding is the last one, that is of the whole.
    fn retired_tells(&mut self, id: RegistrationId, event: Event, emptied: bool) -> Event {
        let others = self.members.iter().any(|member| member.bound)
            || self.retired.iter().any(|one| one.id != id && one.bound);
        let Some(retired) = self.retired.iter_mut().find(|retired| retired.id == id) else {
            return event;
        };
        let was = retired.bound;
        retired.bound = match &event {
            Event::Registered(_) | Event::Refreshed(_) => true,
            Event::Expired { .. } | Event::Unregistered(_) => false,
            Event::Rejected { lease_left, .. } | Event::GaveUp { lease_left, .. } => {
                lease_left.is_some()
            }
            _ => was,
        };
        let turned = was != retired.bound;
        let ends = matches!(event, Event::Unregistered(_)) && self.stopping.is_some();
        let at = retired.at;
        let news = !matches!(event, Event::Registered(_)) || !self.told;
        match (turned || emptied) && !others && !ends && news {
            true => self.tells(event),
            false => of_flow(at + 1, event),
        }
    }

    /// The registrar holds nothing any more: the others are not to believe that it does.
    fn all_gone(&mut self, by: RegistrationId) -> Vec<Turn> {
        let others = self.members.iter_mut().filter(|m| m.id != by);
        others
            .map(|member| {
                // One that is not to be registered may still hold what it could not remove; it starts after that.
                member.leaves |= !member.on;
                Turn::Gone(member.id)
            })
            .collect()
    }

    /// A machine has carried out a stop.
    pub(crate) fn ended(&mut self, id: RegistrationId, removal: Removal) -> Ended {
        if let Some(at) = self.retired.iter().position(|retired| retired.id == id) {
            self.retired.remove(at);
            if self.stopping.is_some() {
                self.left.push(removal);
            }
            return Ended::Left;
        }
        let Some(member) = self.members.iter_mut().find(|member| member.id == id) else {
            return Ended::Goes;
        };
        let left = std::mem::take(&mut member.leaves);
        if self.stopping.is_none() {
            return match left && member.on {
                true => Ended::Starts,
                false => Ended::Goes,
            };
        }
        member.stopped = Some(removal);
        Ended::Goes
    }

    /// Whether all that were to stop have: the worst end of them, told once, and whether there were several.
    pub(crate) fn all_stopped(&mut self) -> Option<(Removal, bool)> {
        if self.stopping.is_none() || !self.retired.is_empty() {
            return None;
        }
        let removals = self.members.iter().map(|member| member.stopped.clone());
        let removals: Option<Vec<_>> = removals.collect();
        let all: Vec<_> = removals?.into_iter().chain(self.left.drain(..)).collect();
        let several = all.len() > 1;
        let worst = all.into_iter().max_by_key(weight)?;
        // Another command may have removed it on the way, whose end was not told of the whole.
        let worst = match worst {
            Removal::NeverBound if self.told => Removal::Removed,
            worst => worst,
        };
        self.stopping = None;
        self.told = false;
        Some((worst, several))
    }

    /// Whether the registrar has said that it knows flows from one another.
    pub(crate) fn is_outbound(&self) -> bool {
        self.members.iter().any(|m| m.bound && m.outbound)
    }

    /// Those that are bound.
    pub(crate) fn bound(&self) -> impl Iterator<Item = RegistrationId> + '_ {
        let bound = self.members.iter().filter(|member| member.bound);
        bound.map(|member| member.id)
    }

    /// The others that are bound.
    pub(crate) fn bound_beside(&self, id: RegistrationId) -> impl Iterator<Item = RegistrationId> {
        let others = self.members.iter();
        others
            .filter(move |member| member.id != id && member.bound)
            .map(|member| member.id)
    }

    /// Whose turn it is, where nothing has happened but that there are others now.
    pub(crate) fn take_turns(&mut self) -> Vec<Turn> {
        self.turns(false)
    }

    /// Whose turn it is (RFC 5626 §4.2.1): all, once the registrar has said that it knows flows from one another; one, where
    /// it does not, for each would ring by itself; the next one, where the way of those before is broken.
    fn turns(&mut self, leads_on: bool) -> Vec<Turn> {
        if self.stopping.is_some() {
            return Vec::new();
        }
        // One that is to leave does not keep the others from their turn.
        let holds = |member: &Member| member.on && member.bound && member.reachable;
        if self.is_outbound() {
            return self.start(usize::MAX);
        }
        if let Some(sole) = self.members.iter().position(holds) {
            let others = self.members.iter_mut().enumerate();
            let others = others.filter(|(at, member)| *at != sole && member.on);
            return others
                .map(|(_, member)| {
                    member.on = false;
                    member.leaves = true;
                    // Whatever becomes of its binding, it is none of ours any more.
                    (member.bound, member.reachable) = (false, false);
                    Turn::Stop(member.id)
                })
                .collect();
        }
        let none = !self.members.iter().any(|member| member.on);
        self.start(usize::from(leads_on || none))
    }

    fn start(&mut self, most: usize) -> Vec<Turn> {
        let retired = &self.retired;
        // The removal of one that had the same number is not to come after the REGISTER of the new one.
        let is_free = |at: usize| retired.iter().all(|retired| retired.at != at);
        let waiting = self.members.iter_mut().enumerate();
        let waiting = waiting.filter(|(at, member)| !member.on && !member.waits && is_free(*at));
        waiting
            .take(most)
            .filter_map(|(_, member)| {
                member.on = true;
                member.gave_up = false;
                // One whose binding is still being removed starts after that.
                (!member.leaves).then_some(Turn::Start(member.id))
            })
            .collect()
    }

    /// Whether another one than this has its flow up (RFC 5626 §4.5).
    pub(crate) fn another_is_up(&self, id: RegistrationId) -> bool {
        self.members
            .iter()
            .any(|member| member.id != id && member.reachable)
    }

    fn others(&self, at: usize) -> Others {
        let others = self.members.iter().enumerate();
        let others = others.filter(|(other, _)| *other != at);
        let retired = Others {
            bound: self.retired.iter().any(|retired| retired.bound),
            first: !self.members[..at].iter().any(|member| member.on),
            ..Others::default()
        };
        others.fold(retired, |sum, (_, member)| Others {
            bound: sum.bound || member.bound,
            reachable: sum.reachable || member.bound && member.reachable,
            tries: sum.tries || member.tries(),
            ..sum
        })
    }

    // ---- questions for credentials

    /// A question of one of them, under the number that the host gets.
    pub(crate) fn asks(&mut self, id: RegistrationId, op: OpId) -> OpId {
        self.asked.retain(|(_, asker, _)| *asker != id);
        self.ops = self.ops.wrapping_add(1);
        let known_as = OpId(self.ops);
        self.asked.push((known_as, id, op));
        known_as
    }

    /// Whose question the host has answered.
    pub(crate) fn asked(&mut self, known_as: OpId) -> Option<(RegistrationId, OpId)> {
        let at = self.asked.iter().position(|(op, ..)| *op == known_as)?;
        let (_, id, op) = self.asked.remove(at);
        Some((id, op))
    }
}

#[derive(Debug, Default)]
struct Others {
    bound: bool,
    reachable: bool,
    tries: bool,
    /// None that is to be registered stands before it
    first: bool,
}

fn of_flow(reg_id: usize, event: Event) -> Event {
    Event::OfFlow {
        reg_id: u8::try_from(reg_id).unwrap_or(u8::MAX),
        event: Box::new(event),
    }
}

/// How bad it is for a binding to be removed so
const fn weight(removal: &Removal) -> u8 {
    match removal {
        Removal::NeverBound => 0,
        Removal::Removed => 1,
        Removal::Refused(_) => 2,
        Removal::Unanswered => 3,
    }
}

/// What the states of several flows come to: that of the one whose binding is worth most, while any is bound.
pub(crate) fn fold(members: impl Iterator<Item = Status>) -> Option<Status> {
    members.reduce(|one, other| {
        let activity = busier(one.activity, other.activity);
        let retries = one.retries.max(other.retries);
        let best = match worth(&one) >= worth(&other) {
            true => one,
            false => other,
        };
        Status {
            activity,
            retries,
            ..best
        }
    })
}

/// A binding whose flow is up and that lasts is better than any other; where there is none, a failure says more than none.
fn worth(status: &Status) -> (bool, Option<Instant>, bool) {
    let lease = status.lease.as_ref();
    (
        lease.is_some_and(|lease| lease.flow.is_some()),
        lease.map(|lease| lease.expires_at),
        lease.is_none() && status.last_failure.is_some(),
    )
}

/// What is under way, else what comes first.
fn busier(one: Activity, other: Activity) -> Activity {
    let rank = |activity: &Activity| match activity {
        Activity::Registering => 0,
        Activity::Unregistering => 1,
        Activity::Querying => 2,
        Activity::Waiting { .. } => 3,
        Activity::Paused => 4,
        Activity::Idle => 5,
    };
    match (one, other) {
        (Activity::Waiting { until }, Activity::Waiting { until: also }) => Activity::Waiting {
            until: until.min(also),
        },
        (one, other) if rank(&one) <= rank(&other) => one,
        (_, other) => other,
    }
}

#[cfg(test)]
#[path = "tests/group.rs"]
mod tests;
