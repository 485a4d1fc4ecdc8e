//! A cycle up to the request: where to, on which flow, and the REGISTER itself.

use super::*;
use crate::config::ceiling::interval;

impl Machine {
    pub(super) fn begin(&mut self, cx: &mut Out<'_>, purpose: Purpose, commanded: bool) {
        if !commanded
            && let Some(earliest) = self
                .last_start
                .map(|last| last + PACE)
                .filter(|at| *at > cx.now)
        {
            self.plan = Plan::Waiting { until: earliest };
            return;
        }
        self.last_start = Some(cx.now);
        self.sessions.begin_cycle();
        // Where it is bound; a refresh goes back to the first choice in time.
        let returns = self
            .seldom
            .fell_back
            .is_none_or(|since| cx.now >= since + RETURN);
        let choice = match purpose {
            Purpose::Register if self.lease.is_none() || returns => 0,
            _ => self.seldom.choice,
        };
        self.turn_to(choice);
        let returns = self.lease.is_some() && choice != self.seldom.choice;
        let before = std::mem::replace(&mut self.plan, Plan::Idle);
        self.plan = Plan::Cycle(Box::new(Cycle {
            purpose,
            choice,
            visited: 1 << choice,
            returns,
            choice_until: None,
            tried: 0,
            permitted: false,
            insists: false,
            started: None,
            requests: 0,
            at_target: 0,
            targets: Vec::new(),
            next: 0,
            retry_after: None,
            unasked: false,
            retry_in: None,
            from_tag: cx.entropy.hex(8).into(),
            step: Step::Between,
            flow: None,
            contact_uri: "".into(),
            replaces: false,
            path: true,
            outbound: !self.seldom.without_outbound,
            authenticated: false,
            security_resent: false,
            security_only_verify: false,
            tokens_dropped: false,
            fresh_flow: false,
            dead: None,
            guarded: Vec::new(),
            oversize: false,
            gruu: true,
            redirects: 0,
            limit: None,
            before,
            lived: None,
            code: None,
            left: Vec::new(),
            beside: Vec::new(),
            beyond: None,
            failure: None,
            answered: None,
        }));
        self.relocate(cx);
        if let Some(seldom) = self.seldom.there()
            && let Some(silent) = seldom.silent.take()
            && let Plan::Cycle(cycle) = &mut self.plan
        {
            (cycle.fresh_flow, cycle.dead) = (true, Some(silent));
        }
    }

    pub(super) fn relocate(&mut self, cx: &mut Out<'_>) {
        self.cancel_step(cx);
        let op = self.op();
        if let Plan::Cycle(cycle) = &mut self.plan {
            let choice = self.registration.choice(cycle.choice);
            let uri = choice
                .first_route()
                .unwrap_or_else(|| choice.server_uri())
                .clone();
            cycle.flow = None;
            (cycle.fresh_flow, cycle.dead) = (false, None);
            cycle.step = Step::Locating {
                op,
                until: cx.now + LOCATING,
            };
            cx.out.push(Output::Locate { op, uri });
        }
    }

    pub(super) fn op(&mut self) -> OpId {
        self.ops = self.ops.wrapping_add(1);
        OpId(self.ops)
    }

    pub(super) fn located(
        &mut self,
        cx: &mut Out<'_>,
        op: OpId,
        result: Result<Vec<Target>, ResolveError>,
    ) {
        if !matches!(&self.plan, Plan::Cycle(cycle)
            if matches!(cycle.step, Step::Locating { op: asked, .. } if asked == op))
        {
            return;
        }
        let result = result.map(|mut targets| {
            self.go_on(&mut targets);
            targets
        });
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        match result {
            Ok(mut targets) if !targets.is_empty() => {
                // A name that lists an address twice has one target there.
                let mut seen = Vec::with_capacity(targets.len());
                targets.retain(|target| {
                    let place = (target.protocol(), target.address());
                    let new = !seen.contains(&place);
                    seen.push(place);
                    new
                });
                // Granted over TCP because it does not fit into a datagram: that is where it stays (D12, D23).
                if let Some(lease) = &self.lease
                    && lease.stream == Stream::Used
                    && cycle.redirects == 0
                    && self.registration.policy().sticky_target
                    && let Some(place) = targets
                        .iter()
                        .position(|target| *target == lease.target.over(Protocol::Udp))
                {
                    targets.retain(|target| *target != lease.target);
                    targets.insert(place.min(targets.len()), lease.target.clone());
                }
                let room = cycle.room(self.registration.fallbacks().len());
                cycle.beyond = targets.get(room).cloned();
                targets.truncate(room);
                cycle.targets = targets;
                cycle.next = 0;
                // A redirect, to this very target perhaps, gives no new budget (D3).
                if cycle.redirects == 0 {
                    cycle.at_target = 0;
                }
                self.open(cx);
            }
            Ok(_) => {
                let choice = self.registration.choice(cycle.choice);
                let host = choice.server_uri().host().into();
                self.unlocated(cx, ResolveError::NoAddress(host));
            }
            Err(error) => self.unlocated(cx, error),
        }
    }

    /// No address: a live lease goes on at the target that granted it.
    pub(super) fn unlocated(&mut self, cx: &mut Out<'_>, error: ResolveError) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let bound_here = cycle.choice == self.seldom.choice;
        if let Some(lease) = self.lease.as_ref().filter(|_| bound_here) {
            cycle.targets = vec![lease.target.clone()];
            cycle.next = 0;
            cycle.at_target = 0;
            self.open(cx);
        } else {
            cycle.failure = Some((Failure::Resolve(error), None));
            cycle.asked_by(None);
            cycle.targets.clear();
            cycle.next = 0;
            self.exhausted(cx);
        }
    }

    /// No target is left: the next choice has some, or the cycle has failed.
    fn exhausted(&mut self, cx: &mut Out<'_>) {
        if self.next_choice().is_some() {
            return self.lead_on(cx);
        }
        self.leave_off();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let (failure, exchange) = cycle.failure.take().unwrap_or((Failure::Budget, None));
        let mut retry_after = cycle.retry_after;
        if cycle.unasked {
            // Whoever failed and asked for nothing may be tried again as after any failure. That those who asked are
            // in maintenance still uses up no retry.
            let interval = self.registration.policy().retry.interval(self.retries);
            let most = Some(interval.as_secs().max(1) as u32).filter(|_| !interval.is_zero());
            retry_after = retry_after.map(|seconds| seconds.min(most.unwrap_or(seconds)));
        }
        self.fail(cx, failure, retry_after, exchange);
    }

    /// Whether another choice has its turn after this one.
    pub(crate) fn has_another(&self) -> bool {
        self.next_choice().is_some()
    }

    /// The choice that has its turn next: the bound one after a try of the first, the others in their order and around.
    pub(super) fn next_choice(&self) -> Option<u8> {
        let Plan::Cycle(cycle) = &self.plan else {
            return None;
        };
        // What was bound at one choice is not removed at another.
        if cycle.purpose != Purpose::Register {
            return None;
        }
        let count = self.registration.fallbacks().len() as u8 + 1;
        let bound = cycle.returns.then_some(self.seldom.choice);
        let others = (1..count).map(|step| (cycle.choice + step) % count);
        bound
            .into_iter()
            .chain(others)
            .find(|choice| cycle.visited & (1 << choice) == 0)
    }

    /// On with the next choice in the same cycle, and the same budget (D3).
    pub(super) fn lead_on(&mut self, cx: &mut Out<'_>) {
        let Some(choice) = self.next_choice() else {
            return;
        };
        self.cancel_step(cx);
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.choice = choice;
            cycle.visited |= 1 << choice;
            cycle.returns = false;
            cycle.choice_until = None;
            cycle.tried += cycle.targets.len().min(cycle.next + 1);
            cycle.targets.clear();
            cycle.next = 0;
            cycle.redirects = 0;
            cycle.at_target = 0;
            cycle.authenticated = false;
            // What one registrar asked for, or refused, is nothing to another.
            (cycle.path, cycle.outbound, cycle.gruu) = (true, true, true);
            cycle.tokens_dropped = false;
            cycle.security_resent = false;
            cycle.security_only_verify = false;
        }
        self.turn_to(choice);
        self.relocate(cx);
    }

    /// What was learnt from one choice is nothing to another.
    fn turn_to(&mut self, choice: u8) {
        if choice == self.seldom.learnt_from {
            return;
        }
        self.sessions.clear_for_retry();
        let seldom = self.seldom.change();
        seldom.learnt_from = choice;
        seldom.min_expires = 0;
        seldom.sole_contact = false;
        seldom.without_outbound = false;
        seldom.security_server.clear();
    }

    /// Sets until when this choice may be silent, where another one has its turn after it: what is left of the lease, or of
    /// the cycle, has to be enough for all of those.
    pub(super) fn limit_choice(&mut self, now: Instant) {
        let choices = self.registration.fallbacks().len() as u32 + 1;
        let another = self.next_choice().is_some();
        let timer_f = self.registration.policy().timers.timer_f;
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if cycle.choice_until.is_some() || !another {
            return;
        }
        let spent = now.saturating_duration_since(cycle.started.unwrap_or(now));
        let after = choices.saturating_sub(cycle.visited.count_ones());
        let mut share = CYCLE.saturating_sub(spent) / (after + 1);
        // The first one has what it takes to find a dead target out.
        if cycle.visited.count_ones() == 1 {
            share = share.max(timer_f + ROOM);
        }
        if let Some(lease) = &self.lease {
            let left = lease.expires_at.saturating_duration_since(now);
            share = share.min(left.saturating_sub(ROOM.min(left / 2)));
        }
        if cycle.returns {
            share = share.min(timer_f + ROOM);
        }
        cycle.choice_until = Some(now + share);
    }

    /// The time of this choice is over: the next one has its turn, unless somebody works on an answer.
    pub(super) fn choice_over(&mut self, cx: &mut Out<'_>) {
        let exchange = self.exchange(None);
        let timers = self.registration.policy().timers.clone();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        cycle.choice_until = None;
        let silent = matches!(&cycle.step, Step::Registering(transaction)
            if cx.now >= transaction.sent_at + timers.timer_f);
        let failure = match &cycle.step {
            // A timeout fails over only when there was no response at all (RFC 3263 §4.3).
            Step::Registering(transaction) if !transaction.answered || cycle.returns => {
                Failure::Timeout
            }
            Step::Opening { .. } => {
                Failure::Flow(FlowError::ConnectTimeout(timers.connect_timeout))
            }
            Step::Held { .. } => Failure::Flow(FlowError::TargetDown { retry_after: None }),
            _ => return,
        };
        cycle.failure = Some((failure, exchange));
        cycle.asked_by(None);
        if silent {
            self.found_silent(cx);
        }
        self.prove(cx, None);
        self.lead_on(cx);
    }

    /// Asks for a flow to the target at hand.
    pub(super) fn open(&mut self, cx: &mut Out<'_>) {
        let op = self.op();
        let timeout = self.registration.policy().timers.connect_timeout;
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Some(target) = cycle.targets.get(cycle.next).cloned() else {
            return self.exhausted(cx);
        };
        let bound = self.lease.as_ref();
        let bound = bound
            .filter(|lease| lease.target == target)
            .and_then(|lease| lease.flow);
        let prefer = cycle.dead.or(bound);
        cycle.flow = None;
        cycle.permitted = false;
        cycle.step = Step::Opening {
            op,
            until: cx.now + timeout,
        };
        self.limit_choice(cx.now);
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        cx.out.push(Output::Open {
            op,
            target,
            prefer,
            fresh: cycle.fresh_flow,
        });
    }

    /// Asks for the flow at hand once more: the host gives it when the next request may go out (D16).
    pub(super) fn ask_again(&mut self, cx: &mut Out<'_>) {
        let op = self.op();
        let timeout = self.registration.policy().timers.connect_timeout;
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let target = cycle.targets.get(cycle.next).cloned();
        let (Some(target), Some((flow, _))) = (target, &cycle.flow) else {
            return self.open(cx);
        };
        let (prefer, fresh) = (Some(*flow), false);
        cycle.step = Step::Opening {
            op,
            until: cx.now + timeout,
        };
        cx.out.push(Output::Open {
            op,
            target,
            prefer,
            fresh,
        });
    }

    /// Whether a request may go out now; otherwise it is on its way later (D16).
    pub(super) fn in_turn(&mut self, cx: &mut Out<'_>) -> bool {
        let interval = self.registration.policy().registers_a_second.map(interval);
        let earliest = interval.and_then(|after| Some(self.seldom.sent_at? + after));
        let early = earliest.filter(|at| cx.now < *at);
        let op = early.map(|_| self.op());
        let Plan::Cycle(cycle) = &mut self.plan else {
            return false;
        };
        if let (Some(until), Some(op)) = (early, op) {
            cycle.permitted = false;
            cycle.choice_until = None;
            cycle.step = Step::Held { op, until };
            return false;
        }
        if self.paced && !cycle.permitted {
            self.ask_again(cx);
            return false;
        }
        cycle.permitted = false;
        true
    }

    pub(super) fn held(&mut self, cx: &mut Out<'_>, op: OpId) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if matches!(cycle.step, Step::Opening { op: asked, .. } if asked == op) {
            cycle.step = Step::Held {
                op,
                until: cx.now + HELD,
            };
            // Waiting for a place in its queue says nothing of the choice; but a lease does not end of it where another
            // choice would hold it, and nobody queues for a return.
            cycle.choice_until = None;
            let returns = cycle.returns;
            let left = self
                .lease
                .as_ref()
                .map(|lease| lease.expires_at.saturating_duration_since(cx.now));
            if let Some(left) = left
                && self.next_choice().is_some()
                && let Plan::Cycle(cycle) = &mut self.plan
            {
                let queues = left.saturating_sub(ROOM.min(left / 2));
                cycle.choice_until = Some(cx.now + queues);
            }
            if returns {
                self.choice_over(cx);
            }
        }
    }

    pub(super) fn opened(
        &mut self,
        cx: &mut Out<'_>,
        op: OpId,
        result: Result<(FlowId, Arc<FlowInfo>), FlowError>,
        retry_in: Option<Duration>,
    ) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if !matches!(cycle.step, Step::Opening { op: asked, .. } | Step::Held { op: asked, .. } if asked == op)
        {
            return;
        }
        if matches!(cycle.step, Step::Held { .. }) {
            cycle.choice_until = None;
        }
        match result {
            // The one at hand, given for the next request.
            Ok((flow, _)) if cycle.flow.as_ref().is_some_and(|(used, _)| *used == flow) => {
                cycle.permitted = true;
                self.send(cx);
            }
            Ok((flow, info)) => {
                cycle.permitted = true;
                // What is removed, or asked about, is what was bound, whatever this flow would be bound as.
                let bound = self.lease.as_ref().map(|lease| &lease.contact);
                let bound = match cycle.purpose {
                    Purpose::Register | Purpose::RemoveAll => None,
                    Purpose::Query | Purpose::Reconcile => bound,
                    Purpose::Unregister => {
                        bound.or_else(|| self.seldom.stale.last().map(|(contact, _)| contact))
                    }
                };
                cycle.contact_uri = bound.cloned().unwrap_or_else(|| {
                    let line = self.identity.line.as_deref();
                    write::contact_uri(self.registration.choice(cycle.choice), &info, line).into()
                });
                cycle.flow = Some((flow, info));
                // An answer that waited for the guard, or went to another target, has to pass the guard here too (D6).
                if cycle.authenticated {
                    self.answer(cx);
                } else {
                    self.send(cx);
                }
            }
            Err(FlowError::TargetDown { retry_after }) => {
                // What it found out itself is what is told.
                let (failure, exchange) = match cycle.failure.take() {
                    Some(failure) => failure,
                    None => (Failure::Flow(FlowError::TargetDown { retry_after }), None),
                };
                let retry_after = retry_after.map(|left| left.as_secs_f64().ceil() as u32);
                self.next_target(cx, failure, retry_after, exchange);
            }
            Err(error) => {
                // Without TCP it goes over UDP as before, and there is no failure to tell (D23).
                let instead = cycle.is_instead_of_udp();
                if !instead {
                    cycle.retry_in = cycle.retry_in.into_iter().chain(retry_in).min();
                }
                if error.is_of_the_target() {
                    self.found(cx, TargetOutcome::Unreachable);
                }
                let dead = self.is_dead_over_tcp(&Failure::Flow(error.clone()));
                if let Plan::Cycle(cycle) = &mut self.plan
                    && instead
                {
                    if dead {
                        cycle.postpone_udp();
                    }
                    cycle.next += 1;
                    cycle.at_target = 0;
                    return self.open(cx);
                }
                self.next_target(cx, Failure::Flow(error), None, None);
            }
        }
    }

    /// Tells how the target at hand took the request.
    pub(super) fn found(&self, cx: &mut Out<'_>, outcome: TargetOutcome) {
        if let Plan::Cycle(cycle) = &self.plan
            && let Some(target) = cycle.targets.get(cycle.next).cloned()
        {
            cx.out.push(Output::Target { target, outcome });
        }
    }

    /// Tells that nobody answered the request under way.
    pub(super) fn found_silent(&self, cx: &mut Out<'_>) {
        if let Plan::Cycle(cycle) = &self.plan
            && let Step::Registering(transaction) = &cycle.step
            && !transaction.answered
        {
            let since = transaction.sent_at;
            self.found(cx, TargetOutcome::Silent { since });
        }
    }

    /// Another target of the same answer, in the same cycle (RFC 3263 §4.3); none left: the cycle has failed.
    pub(super) fn next_target(
        &mut self,
        cx: &mut Out<'_>,
        failure: Failure,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
    ) {
        // Nobody said whether the credentials were right: for another target they have to pass the guard again.
        self.prove(cx, None);
        self.cancel_step(cx);
        let dead = self.is_dead_over_tcp(&failure);
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if dead {
            cycle.postpone_udp();
        }
        cycle.failure = Some((failure, exchange));
        cycle.asked_by(retry_after);
        cycle.next += 1;
        cycle.at_target = 0;
        (cycle.fresh_flow, cycle.dead) = (false, None);
        self.open(cx);
    }

    /// Whether TCP in the place of UDP failed as it does where the server is dead, so that UDP would find the same (D23).
    fn is_dead_over_tcp(&self, failure: &Failure) -> bool {
        let was_used = |lease: &Lease| lease.stream == Stream::Used;
        match failure {
            Failure::Timeout => true,
            // A firewall that lets no TCP through looks the same, where there was none before.
            Failure::Flow(FlowError::ConnectTimeout(_)) => {
                self.lease.as_ref().is_some_and(was_used)
            }
            _ => false,
        }
    }
}

impl Cycle {
    /// How many targets this choice may have: one at least is left for each that has not had its turn (D3).
    fn room(&self, fallbacks: usize) -> usize {
        let waiting = match self.purpose {
            Purpose::Register => (fallbacks + 1).saturating_sub(self.visited.count_ones() as usize),
            _ => 0,
        };
        TARGETS_A_CYCLE.saturating_sub(self.tried + waiting).max(1)
    }

    /// Takes in how long a target that failed asks to be left alone, if it does (D11).
    fn asked_by(&mut self, retry_after: Option<u32>) {
        match retry_after {
            Some(seconds) => {
                let least = self.retry_after.map_or(seconds, |least| least.min(seconds));
                self.retry_after = Some(least);
            }
            None => self.unasked = true,
        }
    }

    /// Puts TCP to the target at hand before it, once and within the budget (RFC 3261 §18.1.1, D23).
    pub(super) fn divert(&mut self, fallbacks: usize) -> bool {
        let room = self.room(fallbacks);
        let Some(target) = self.targets.get(self.next) else {
            return false;
        };
        let stream = target.over(Protocol::Tcp);
        let (tried, later) = self.targets.split_at(self.next);
        // Redirects are followed as they say.
        if self.redirects > 0 || tried.contains(&stream) || self.next + 2 > room {
            return false;
        }
        let later: Vec<_> = later
            .iter()
            .filter(|one| **one != stream)
            .cloned()
            .collect();
        self.targets.truncate(self.next);
        self.targets.push(stream);
        self.targets.extend(later);
        self.targets.truncate(room);
        self.at_target = 0;
        (self.fresh_flow, self.dead) = (false, None);
        true
    }

    /// Whether the target at hand is TCP, tried in the place of UDP (D23).
    pub(super) fn is_instead_of_udp(&self) -> bool {
        let at_hand = self.targets.get(self.next);
        let next = self.targets.get(self.next + 1);
        matches!((at_hand, next), (Some(stream), Some(udp))
            if stream.protocol() == Protocol::Tcp && *udp == stream.over(Protocol::Udp))
    }

    /// Puts UDP, where TCP in its place is at hand, behind the other targets: a server that is dead over both would cost
    /// timer F twice, and with it the lease (D1).
    fn postpone_udp(&mut self) {
        if self.is_instead_of_udp() {
            let udp = self.targets.remove(self.next + 1);
            self.targets.push(udp);
        }
    }

    /// What the grant of the target at hand tells of TCP in the place of UDP.
    pub(super) fn stream(&self, before: Option<&Lease>) -> Stream {
        let Some(target) = self.targets.get(self.next) else {
            return Stream::Untried;
        };
        let (tried, _) = self.targets.split_at(self.next);
        let as_before = before.filter(|lease| lease.target == *target);
        match target.protocol() {
            Protocol::Tcp if self.is_instead_of_udp() && self.oversize => Stream::Used,
            Protocol::Udp if self.oversize && tried.contains(&target.over(Protocol::Tcp)) => {
                Stream::Failed
            }
            _ => as_before.map_or(Stream::Untried, |lease| lease.stream),
        }
    }
}
