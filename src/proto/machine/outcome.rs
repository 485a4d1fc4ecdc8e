//! How a cycle ends, and what comes next.

use super::*;
use crate::proto::flow;

impl Machine {
    pub(super) fn unregistered(&mut self, cx: &mut Out<'_>, removal: Removal) {
        if removal == Removal::Removed {
            self.forget_stale();
            self.forget_bearings();
            self.lease = None;
            self.may_live = None;
            self.last_failure = None;
        }
        self.reference = removal.reference().unwrap_or(self.reference);
        self.retries = 0;
        self.plan = Plan::Idle;
        cx.out
            .push(Output::Event(Event::Unregistered(removal.clone())));
        if matches!(self.seldom.then.first(), Some(Then::Stop { .. })) {
            self.stopped(cx);
            cx.out.push(Output::Done(removal));
        } else {
            self.finish(cx);
        }
    }

    /// A stop is over: a configuration that waited is taken over, and nothing that failed before is left to revive.
    pub(super) fn stopped(&mut self, cx: &mut Out<'_>) {
        if let Some(seldom) = self.seldom.there() {
            seldom.then_at = None;
            for then in std::mem::take(&mut seldom.then) {
                if let Then::Reconfigure(to) = then {
                    self.adopt(cx, to);
                }
            }
        }
        self.last_failure = None;
    }

    /// After a query: what was planned goes on.
    pub(super) fn back(&mut self, cx: &mut Out<'_>) {
        if let Plan::Cycle(cycle) = &mut self.plan {
            let before = std::mem::replace(&mut cycle.before, Plan::Idle);
            self.plan = before;
        }
        self.finish(cx);
    }

    /// A cycle is over: what waited for its end comes now.
    pub(super) fn finish(&mut self, cx: &mut Out<'_>) {
        while !matches!(self.plan, Plan::Cycle(_))
            && let Some(seldom) = self.seldom.there()
            && !seldom.then.is_empty()
        {
            let then = seldom.then.remove(0);
            self.do_then(cx, then);
        }
    }

    /// The registrar holds no Contact of ours but the lease's.
    pub(super) fn forget_stale(&mut self) {
        if let Some(seldom) = self.seldom.there() {
            seldom.stale.clear();
        }
    }

    /// What is being asked for is not wanted any more.
    pub(super) fn cancel_step(&self, cx: &mut Out<'_>) {
        if let Plan::Cycle(cycle) = &self.plan
            && let Step::Locating { op, .. }
            | Step::Opening { op, .. }
            | Step::Held { op, .. }
            | Step::Asking { op, .. }
            | Step::Guarding { op, .. } = cycle.step
        {
            cx.out.push(Output::Cancel(op));
        }
    }

    /// Ends the cycle under way without an outcome.
    pub(super) fn abandon(&mut self, cx: &mut Out<'_>) {
        self.prove(cx, None);
        self.cancel_step(cx);
        self.plan = Plan::Idle;
    }

    pub(super) fn fail(
        &mut self,
        cx: &mut Out<'_>,
        failure: Failure,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
    ) {
        self.end(cx, failure, retry_after, exchange, false);
    }

    pub(super) fn end(
        &mut self,
        cx: &mut Out<'_>,
        failure: Failure,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
        blocked: bool,
    ) {
        self.prove(cx, None);
        self.sessions.clear_for_retry();
        self.cancel_step(cx);
        let Plan::Cycle(cycle) = &self.plan else {
            return;
        };
        match cycle.purpose {
            // A return that fails, whatever the first choice said, costs nothing of what is bound.
            Purpose::Register if cycle.returns => {
                if matches!(failure, Failure::CredentialsRefused { .. }) {
                    let since = cx.now + RETURN_REFUSED.saturating_sub(RETURN);
                    self.seldom.change().fell_back = Some(since);
                }
                if let Plan::Cycle(cycle) = &mut self.plan {
                    cycle.failure = Some((failure, exchange));
                }
                return self.lead_on(cx);
            }
            Purpose::Register => {}
            Purpose::Unregister => {
                let removal = match failure {
                    Failure::Rejected { code, .. } => Removal::Refused(code),
                    Failure::CredentialsRefused { .. } | Failure::Unanswerable { .. } => {
                        Removal::Refused(cycle.code.unwrap_or(401))
                    }
                    _ => Removal::Unanswered,
                };
                return self.unregistered(cx, removal);
            }
            Purpose::Query | Purpose::Reconcile | Purpose::RemoveAll => {
                cx.out.push(Output::Event(Event::QueryFailed(failure)));
                return self.back(cx);
            }
        }
        let policy = Arc::clone(self.registration.policy());
        // RFC 5626 §4.5 is for those who asked for outbound; who only advertises it has it for flows that could not be made.
        let outbound = policy.flow_recovery && self.registration.support_outbound();
        let recovery = cycle
            .retry_in
            .filter(|_| outbound && retry_after.is_none() && matches!(failure, Failure::Flow(_)));
        let mediasec = self.registration.security_negotiation() == SecurityNegotiation::Mediasec;
        let class = verdict::classify(&policy, &failure, mediasec);
        let lease_left = self
            .lease
            .as_ref()
            .map(|lease| lease.expires_at.saturating_duration_since(cx.now));
        self.reference = ReferenceStatus::Rejected;
        self.last_failure = Some(Box::new((failure.clone(), exchange.clone())));
        let broken_way = self.registration.outbound()
            && policy.flow_recovery
            && retry_after.is_none()
            && class == crate::FailureClass::Temporary
            && failure.is_of_the_way();
        // One flow of several is tried without end, while others hold.
        let spares = broken_way && self.seldom.others_hold;
        let retries = if spares { 0 } else { self.retries };
        let verdict = if blocked {
            Verdict::GiveUp(GiveUp::CredentialsRefused)
        } else {
            verdict::decide(&policy, &failure, class, retry_after, retries)
        };
        match verdict {
            Verdict::Retry {
                after,
                jitter,
                counted,
            } => {
                let counted = counted && !spares;
                self.retries += u32::from(counted);
                // A registrar that says "in a second" for ever is asked less and less often, up to a minute.
                let its_word = retry_after.is_some_and(|seconds| seconds > 0);
                // Where nothing was sent, because others have been sent away, nobody has said anything to this one.
                let unasked = matches!(failure, Failure::Flow(FlowError::TargetDown { .. }));
                let uncounted = match counted && !its_word {
                    true => 0,
                    false if unasked => self.seldom.uncounted,
                    false => self.seldom.uncounted.saturating_add(1),
                };
                if uncounted != self.seldom.uncounted {
                    self.seldom.change().uncounted = uncounted;
                }
                let doublings = u32::from(uncounted.saturating_sub(UNCOUNTED)).min(6);
                let least = Duration::from_secs((1 << doublings) - 1).min(UNCOUNTED_LEAST);
                let (after, jitter) = match recovery {
                    Some(wait) if class == crate::FailureClass::Temporary => (wait, 0.0),
                    _ if broken_way => {
                        let failures = self.retries.saturating_add(uncounted.into());
                        let longest = flow::backoff(failures, self.seldom.others_hold);
                        (longest.mul_f64(cx.entropy.between(0.5, 1.0)), 0.0)
                    }
                    _ => (after.max(least), jitter),
                };
                let retry_in = after + after.mul_f64(cx.entropy.between(0.0, jitter));
                self.plan = Plan::Waiting {
                    until: cx.now + retry_in,
                };
                cx.out.push(Output::Event(Event::Rejected {
                    failure,
                    class,
                    attempt: self.retries,
                    of: policy.retry.max_retries,
                    retry_in,
                    lease_left,
                    exchange,
                }));
            }
            Verdict::GiveUp(why) => {
                self.plan = Plan::Idle;
                cx.out.push(Output::Event(Event::GaveUp {
                    failure,
                    class,
                    why,
                    lease_left,
                    exchange,
                }));
            }
        }
        self.finish(cx);
    }

    pub(super) fn may_live(&self, now: Instant) -> bool {
        self.lease.is_some() || self.may_live.is_some_and(|until| now < until)
    }
}
