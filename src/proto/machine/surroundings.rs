//! What happens to a registration: time, the network, its flow.

use super::*;

impl Machine {
    pub(super) fn timeout(&mut self, cx: &mut Out<'_>) {
        let timers = self.registration.policy().timers.clone();
        match &mut self.plan {
            Plan::Idle | Plan::Paused { until: None } => {}
            Plan::Waiting { until } => {
                if cx.now >= *until {
                    self.begin(cx, Purpose::Register, false);
                }
            }
            Plan::Paused { until: Some(until) } => {
                if cx.now >= *until {
                    self.begin(cx, Purpose::Register, false);
                }
            }
            Plan::Cycle(cycle) => {
                if cycle.limit.is_some_and(|limit| cx.now >= limit) {
                    return self.fail(cx, Failure::Timeout, None, None);
                }
                if self.seldom.then_at.is_some_and(|at| cx.now >= at) {
                    // Half of the time is gone; the un-REGISTER gets the other half.
                    self.seldom.change().then_at = None;
                    self.abandon(cx);
                    return self.finish(cx);
                }
                if cycle.choice_until.is_some_and(|at| cx.now >= at) {
                    return self.choice_over(cx);
                }
                match &mut cycle.step {
                    Step::Locating { op, until } if cx.now >= *until => {
                        cx.out.push(Output::Cancel(*op));
                        self.unlocated(cx, ResolveError::Timeout);
                    }
                    Step::Opening { op, until } if cx.now >= *until => {
                        cx.out.push(Output::Cancel(*op));
                        let error = FlowError::ConnectTimeout(timers.connect_timeout);
                        self.found(cx, TargetOutcome::Unreachable);
                        self.next_target(cx, Failure::Flow(error), None, None);
                    }
                    Step::Held { until, .. } if cx.now >= *until => match cycle.flow {
                        Some(_) => self.ask_again(cx),
                        None => self.open(cx),
                    },
                    Step::Asking { op, until, .. } if cx.now >= *until => {
                        let op = *op;
                        cx.out.push(Output::Cancel(op));
                        self.provided(cx, op, None);
                    }
                    Step::Guarding { op, until } if cx.now >= *until => {
                        cx.out.push(Output::Cancel(*op));
                        let answered = cycle.answered.take();
                        self.fail(cx, Failure::Budget, None, answered);
                    }
                    Step::Registering(transaction) => match transaction.due(&timers, cx.now) {
                        Due::Nothing => {}
                        Due::Resend => {
                            let (message, late) =
                                (transaction.message.clone(), !transaction.answered);
                            if let Some((flow, _)) = &cycle.flow {
                                cx.out.push(Output::Transmit {
                                    flow: *flow,
                                    message,
                                });
                            }
                            self.resent(cx.now);
                            if late {
                                self.found(cx, TargetOutcome::Late);
                            }
                        }
                        Due::TimedOut if transaction.answered => {
                            let exchange = self.exchange(None);
                            self.fail(cx, Failure::Timeout, None, exchange);
                        }
                        Due::TimedOut => self.unanswered(cx),
                    },
                    _ => {}
                }
            }
        }
    }

    /// Nobody answered at all.
    ///
    /// A connection may be dead without a word: a firewall that forgot it, a peer that lost its frame. So its silence is
    /// not the target's while another connection has not been tried: at once where nothing else is left to try in this
    /// attempt and we are bound by it, otherwise with the next attempt.
    fn unanswered(&mut self, cx: &mut Out<'_>) {
        let nothing_else = self.next_choice().is_none();
        let bound = self.lease.as_ref().and_then(|lease| lease.flow);
        if let Plan::Cycle(cycle) = &mut self.plan
            && let Some((flow, info)) = &cycle.flow
            && info.protocol().is_reliable()
        {
            let flow = *flow;
            let last = nothing_else && !cycle.returns && cycle.next + 1 >= cycle.targets.len();
            if last && bound == Some(flow) && !cycle.fresh_flow {
                (cycle.fresh_flow, cycle.dead) = (true, Some(flow));
                return self.open(cx);
            }
            if cycle.purpose == Purpose::Register {
                self.seldom.change().silent = Some(flow);
            }
        }
        self.found_silent(cx);
        let exchange = self.exchange(None);
        self.next_target(cx, Failure::Timeout, None, exchange);
    }

    pub(super) fn expire(&mut self, cx: &mut Out<'_>) {
        if self.may_live.is_some_and(|until| cx.now >= until) {
            self.may_live = None;
        }
        if let Some(seldom) = self.seldom.there() {
            seldom.stale.retain(|(_, until)| cx.now < *until);
        }
        if self
            .lease
            .as_ref()
            .is_some_and(|lease| cx.now >= lease.expires_at)
        {
            self.lease = None;
            self.forget_bearings();
            let next_in = match &self.plan {
                Plan::Waiting { until } => Some(until.saturating_duration_since(cx.now)),
                Plan::Cycle(cycle) if cycle.purpose == Purpose::Register => Some(Duration::ZERO),
                Plan::Cycle(cycle) => match &cycle.before {
                    Plan::Waiting { until } => Some(until.saturating_duration_since(cx.now)),
                    _ => None,
                },
                _ => None,
            };
            cx.out.push(Output::Event(Event::Expired { next_in }));
        }
    }

    pub(super) fn network_changed(&mut self, cx: &mut Out<'_>, spread: Duration) {
        if let Some(lease) = &mut self.lease {
            lease.flow = None;
        }
        if let Some(seldom) = self.seldom.there() {
            seldom.without_outbound = false;
        }
        let until = cx.now + cx.entropy.up_to(spread);
        match &mut self.plan {
            Plan::Idle | Plan::Paused { .. } => {}
            Plan::Waiting { .. } => self.plan = Plan::Waiting { until },
            Plan::Cycle(cycle) => match cycle.purpose {
                Purpose::Register => {
                    self.abandon(cx);
                    self.plan = Plan::Waiting { until };
                    self.finish(cx);
                }
                // Over a fresh flow, with what is left of its time.
                Purpose::Unregister | Purpose::Query | Purpose::Reconcile | Purpose::RemoveAll => {
                    if let Plan::Waiting { until: next } = &mut cycle.before {
                        *next = until;
                    }
                    self.relocate(cx);
                }
            },
        }
    }

    /// Whether a sleep of `by` makes an attempt due that was not.
    pub(crate) fn falls_due(&self, now: Instant, by: Duration) -> bool {
        self.next_attempt().is_some_and(|until| {
            now < until && until.checked_sub(by).is_none_or(|until| until <= now)
        })
    }

    fn next_attempt(&self) -> Option<Instant> {
        let plan = match &self.plan {
            Plan::Cycle(cycle) => &cycle.before,
            plan => plan,
        };
        match plan {
            Plan::Waiting { until } | Plan::Paused { until: Some(until) } => Some(*until),
            _ => None,
        }
    }

    pub(super) fn clock_jump(&mut self, cx: &mut Out<'_>, by: Duration, spread: Duration) {
        let now = cx.now;
        // A jump beyond what `Instant` can say ends whatever there is.
        let back = |at: &mut Instant| *at = at.checked_sub(by).unwrap_or(now);
        let mut spread = spread;
        if let Some(lease) = &mut self.lease {
            back(&mut lease.expires_at);
            // What is left of it is not spent on waiting.
            let left = lease.expires_at.saturating_duration_since(now);
            if !left.is_zero() {
                spread = spread.min(left / 2);
            }
        }
        if let Some(until) = &mut self.may_live {
            back(until);
        }
        if let Some(seldom) = self.seldom.there() {
            seldom.stale.iter_mut().for_each(|(_, until)| back(until));
        }
        let falls_due = self.falls_due(now, by);
        let plan = match &mut self.plan {
            Plan::Cycle(cycle) => &mut cycle.before,
            plan => plan,
        };
        if let Plan::Waiting { until } | Plan::Paused { until: Some(until) } = plan {
            back(until);
            if falls_due {
                *until = now + cx.entropy.up_to(spread);
            }
        }
    }

    pub(super) fn flow_failed(
        &mut self,
        cx: &mut Out<'_>,
        flow: FlowId,
        error: FlowError,
        spread: Duration,
    ) {
        let was_ours = self
            .lease
            .as_mut()
            .filter(|lease| lease.flow == Some(flow))
            .map(|lease| {
                lease.flow = None;
                cx.now.saturating_duration_since(lease.at)
            });
        let next_in = was_ours.map(|held_for| {
            if held_for < FLAP {
                // 1, 2, 4 … 60 s, between half and all of it (D2).
                let flaps = &mut self.seldom.change().flaps;
                let longest =
                    Duration::from_secs(1 << (*flaps).min(6)).min(Duration::from_secs(60));
                *flaps = flaps.saturating_add(1);
                let pace = longest.mul_f64(cx.entropy.between(0.5, 1.0)).max(PACE);
                // All that rode on the flow lost it at the same moment (D13).
                pace + cx.entropy.up_to(spread)
            } else {
                if let Some(seldom) = self.seldom.there() {
                    seldom.flaps = 0;
                }
                cx.entropy.up_to(spread)
            }
        });
        // A retry that waits keeps its time: the last answer said when.
        let refused = self.last_failure.is_some();
        let sooner = |until: &mut Instant| {
            if let Some(next_in) = next_in.filter(|_| !refused) {
                *until = (*until).min(cx.now + next_in);
            }
            Some(until.saturating_duration_since(cx.now))
        };
        let planned = |plan: &mut Plan| match plan {
            Plan::Waiting { until } => sooner(until),
            Plan::Paused { until } => until.map(|until| until.saturating_duration_since(cx.now)),
            Plan::Idle | Plan::Cycle(_) => None,
        };
        let (next_in, refreshes) = match &mut self.plan {
            Plan::Cycle(cycle) => (
                planned(&mut cycle.before),
                cycle.purpose == Purpose::Register,
            ),
            plan => (planned(plan), false),
        };
        // A refresh under way tells its own end, and soon.
        if was_ours.is_some() && !refreshes {
            cx.out.push(Output::Event(Event::FlowLost {
                flow,
                error: error.clone(),
                next_in,
            }));
        }
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if cycle.flow.as_ref().is_none_or(|(used, _)| *used != flow) {
            return;
        }
        // A kept-alive connection that died under our request says nothing of the target: one fresh try.
        if was_ours.is_some() && !cycle.fresh_flow {
            self.cancel_step(cx);
            if let Plan::Cycle(cycle) = &mut self.plan {
                cycle.fresh_flow = true;
            }
            return self.open(cx);
        }
        // Whoever ends connections after a request may do so for this account only: it is as silence.
        if error.is_of_the_target() {
            self.found_silent(cx);
        }
        let exchange = self.exchange(None);
        self.next_target(cx, Failure::Flow(error), None, exchange);
    }
}
