//! What the application asks for, at once or after the cycle under way.

use super::*;

impl Machine {
    pub(super) fn start(&mut self, cx: &mut Out<'_>) {
        if !matches!(self.plan, Plan::Idle) {
            return;
        }
        let delay = self.initial_delay(cx);
        if delay.is_zero() {
            self.begin(cx, Purpose::Register, true);
        } else {
            cx.out
                .push(Output::Event(Event::Scheduled { first_in: delay }));
            self.plan = Plan::Waiting {
                until: cx.now + delay,
            };
        }
    }

    pub(super) fn initial_delay(&self, cx: &mut Out<'_>) -> Duration {
        let longest = self.registration.max_random_initial_delay();
        match self.registration.policy().initial_delay {
            InitialDelay::Uniform => cx.entropy.up_to(longest),
            InitialDelay::AtLeastOneSecond => {
                Duration::from_secs(1 + cx.entropy.below(longest.as_secs()))
            }
        }
    }

    /// Does it now, or after the cycle under way: one REGISTER is outstanding at a time.
    pub(super) fn or_after(&mut self, cx: &mut Out<'_>, then: Then) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            self.do_then(cx, then);
            return self.finish(cx);
        };
        let stopping = self
            .seldom
            .then
            .iter()
            .any(|then| matches!(then, Then::Stop { .. }));
        if stopping && matches!(then, Then::Reconfigure(_)) {
            // The entry stays after a plain stop: it has the new configuration then, and starts nothing.
            let waiting = &mut self.seldom.change().then;
            waiting.retain(|then| !matches!(then, Then::Reconfigure(_)));
            waiting.push(then);
            return;
        }
        if stopping && !matches!(then, Then::Stop { .. }) {
            // A stop is never turned into a registration again (D21).
            return;
        }
        let seldom = self.seldom.change();
        match &then {
            Then::Stop { by } => {
                // Whoever asked for an earlier stop waits no longer than that one may take.
                let earlier = seldom.then.iter().filter_map(|then| match then {
                    Then::Stop { by } => Some(*by),
                    _ => None,
                });
                let by = earlier.chain([*by]).min().unwrap_or(*by);
                let then = Then::Stop { by };
                // Of what waits only the configuration is left: the entry stays after a plain stop, and has it then.
                let configured = |then| match then {
                    Then::Reconfigure(to) | Then::Replace(to) => Some(Then::Reconfigure(to)),
                    _ => None,
                };
                let waiting = std::mem::take(&mut seldom.then);
                seldom.then = waiting
                    .into_iter()
                    .filter_map(configured)
                    .next_back()
                    .into_iter()
                    .collect();
                match cycle.purpose {
                    Purpose::Unregister => {
                        cycle.limit = Some(cycle.limit.map_or(by, |earlier| earlier.min(by)));
                    }
                    // A cycle that has sent nothing yet has nothing to wait for.
                    _ if cycle.started.is_none() || !matches!(cycle.step, Step::Registering(_)) => {
                        self.abandon(cx);
                        return self.do_then(cx, then);
                    }
                    _ => {
                        let half = cx.now + by.saturating_duration_since(cx.now) / 2;
                        seldom.then_at = Some(seldom.then_at.map_or(half, |at| at.min(half)));
                    }
                }
                seldom.then.insert(0, then);
                return;
            }
            Then::Pause { .. } => seldom.then.retain(|then| {
                !matches!(
                    then,
                    Then::Refresh | Then::Register | Then::Reregister | Then::Pause { .. }
                )
            }),
            // A later configuration replaces one that was to come with a new identity, too: that one never was.
            Then::Reconfigure(to) => {
                if let Some(Then::Replace(replacement)) = seldom
                    .then
                    .iter_mut()
                    .find(|then| matches!(then, Then::Replace(_)))
                {
                    *replacement = Arc::clone(to);
                    return;
                }
                seldom
                    .then
                    .retain(|then| !matches!(then, Then::Reconfigure(_)));
            }
            other => {
                let kind = std::mem::discriminant(other);
                seldom
                    .then
                    .retain(|then| std::mem::discriminant(then) != kind);
            }
        }
        seldom.then.push(then);
    }

    /// Un-REGISTERs, and does this when that is over.
    pub(super) fn unregister_then(&mut self, cx: &mut Out<'_>, within: Duration, then: Then) {
        self.seldom.change().then.insert(0, then);
        self.begin(cx, Purpose::Unregister, true);
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.limit = Some(cx.now + within);
        }
    }

    pub(super) fn do_then(&mut self, cx: &mut Out<'_>, then: Then) {
        if let Some(seldom) = self.seldom.there() {
            seldom.then_at = None;
        }
        let timer_f = self.registration.policy().timers.timer_f;
        match then {
            Then::Stop { by } => {
                let left = by.saturating_duration_since(cx.now);
                if self.may_live(cx.now) && left.is_zero() {
                    // Nobody would hear the answer, and a request without one can come late, and remove a later binding.
                    self.seldom.change().then.insert(0, then);
                    self.unregistered(cx, Removal::Unanswered);
                } else if self.may_live(cx.now) {
                    self.unregister_then(cx, left, Then::Stop { by });
                } else {
                    self.plan = Plan::Idle;
                    self.reference = ReferenceStatus::Unregistered;
                    self.stopped(cx);
                    cx.out.push(Output::Done(Removal::NeverBound));
                }
            }
            Then::Refresh => {
                self.retries = 0;
                self.begin(cx, Purpose::Register, true);
                self.insist();
            }
            Then::Reregister => {
                self.retries = 0;
                if let Some(seldom) = self.seldom.there() {
                    seldom.min_expires = 0;
                    seldom.security_server.clear();
                }
                if self.may_live(cx.now) {
                    self.unregister_then(cx, timer_f, Then::Register);
                } else {
                    self.register_again(cx);
                    self.insist();
                }
            }
            Then::Register => {
                self.register_again(cx);
                self.insist();
            }
            Then::Query => self.begin(cx, Purpose::Query, true),
            Then::Reconcile => self.begin(cx, Purpose::Reconcile, true),
            Then::RemoveAll => self.begin(cx, Purpose::RemoveAll, true),
            Then::Pause { until, unregister } => {
                if unregister && self.may_live(cx.now) {
                    let unregister = false;
                    self.unregister_then(cx, timer_f, Then::Pause { until, unregister });
                } else {
                    let resumes_in = until.map(|until| until.saturating_duration_since(cx.now));
                    cx.out.push(Output::Event(Event::Paused { resumes_in }));
                    self.plan = Plan::Paused { until };
                }
            }
            Then::Reconfigure(to) => self.reconfigure(cx, to),
            Then::Replace(to) => self.replace(cx, to),
        }
    }

    /// What was asked for goes out, even to a target that wants to be left alone.
    fn insist(&mut self) {
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.insists = true;
        }
    }

    pub(super) fn reconfigure(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        let change = self.registration.change_to(&to);
        let credentials = self.registration.outbound_auth() != to.outbound_auth();
        let refused = self.credentials_refused();
        let revives = match self.plan {
            Plan::Idle => self.last_failure.is_some(),
            // A changed credential revives at once (D6).
            Plan::Waiting { .. } => credentials && refused,
            _ => false,
        };
        // A pause goes on, whatever changes.
        let paused = match self.plan {
            Plan::Paused { until } => Some(until),
            _ => None,
        };
        match change {
            Change::Untouched => {}
            Change::InPlace => {
                self.registration = to;
                self.reset(credentials);
                if revives {
                    self.begin(cx, Purpose::Register, true);
                }
            }
            Change::Registers => {
                self.registration = to;
                self.reset(credentials);
                if paused.is_none() {
                    self.begin(cx, Purpose::Register, true);
                }
            }
            Change::Replaces => {
                if let Some(until) = paused {
                    let unregister = false;
                    let then = Then::Pause { until, unregister };
                    self.seldom.change().then.insert(0, then);
                }
                if self.may_live(cx.now) {
                    let timer_f = self.registration.policy().timers.timer_f;
                    self.unregister_then(cx, timer_f, Then::Replace(to));
                } else {
                    self.replace(cx, to);
                }
            }
        }
    }

    /// What a changed configuration makes void.
    pub(super) fn reset(&mut self, credentials: bool) {
        self.retries = 0;
        if let Some(seldom) = self.seldom.there() {
            seldom.min_expires = 0;
            seldom.sole_contact = false;
            seldom.without_outbound = false;
        }
        // What is sent now may be worth another try of TCP (D23).
        if let Some(lease) = self
            .lease
            .as_mut()
            .filter(|lease| lease.stream == Stream::Failed)
        {
            lease.stream = Stream::Untried;
        }
        if credentials {
            self.sessions.forget();
            if let Some(seldom) = self.seldom.there() {
                seldom.fell_back = None;
            }
        }
    }

    pub(super) fn replace(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        let then = match self.seldom.there() {
            Some(seldom) => std::mem::take(&mut seldom.then),
            None => Vec::new(),
        };
        self.renew(cx, to);
        let paused = matches!(then.first(), Some(Then::Pause { .. }));
        if !then.is_empty() {
            self.seldom.change().then = then;
        }
        if !paused {
            self.register_again(cx);
        }
    }

    /// Becomes another registration, in the same place.
    fn renew(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        let identity = Identity {
            agent: Arc::clone(&self.identity.agent),
            id: self.identity.id,
            ..Identity::default()
        };
        let emptied = self.take_emptied();
        *self = Self {
            ops: self.ops,
            last_start: self.last_start,
            paced: self.paced,
            ..Self::new(to, identity, cx.entropy)
        };
        if emptied.is_some() {
            // What this tells of the other flows is still to be told.
            self.seldom.change().emptied = emptied;
        }
    }

    /// Takes a configuration over without starting anything.
    pub(crate) fn adopt(&mut self, cx: &mut Out<'_>, to: Arc<Registration>) {
        if self.registration.change_to(&to) == Change::Replaces {
            self.renew(cx, to);
        } else {
            let credentials = self.registration.outbound_auth() != to.outbound_auth();
            self.registration = to;
            self.reset(credentials);
        }
    }

    /// The REGISTER after an un-REGISTER: at once, or with the reference's delay.
    pub(super) fn register_again(&mut self, cx: &mut Out<'_>) {
        if self.registration.policy().initial_delay == InitialDelay::AtLeastOneSecond {
            self.plan = Plan::Idle;
            self.start(cx);
        } else {
            self.begin(cx, Purpose::Register, true);
        }
    }

    pub(super) fn resume(&mut self, cx: &mut Out<'_>) {
        let removing =
            matches!(&self.plan, Plan::Cycle(cycle) if cycle.purpose == Purpose::Unregister);
        if let Some(Seldom { then, .. }) = self.seldom.there() {
            let waiting = then.len();
            then.retain(|then| !matches!(then, Then::Pause { .. }));
            // A configuration that waits may register by itself.
            let registers = then.iter().any(|then| match then {
                Then::Replace(_) | Then::Register => true,
                Then::Reconfigure(to) => self.registration.change_to(to) > Change::InPlace,
                _ => false,
            });
            if then.len() < waiting && removing && !registers {
                then.push(Then::Register);
            }
        }
        match &mut self.plan {
            Plan::Paused { .. } => self.begin(cx, Purpose::Register, true),
            // A query that was asked for in the pause ends first.
            Plan::Cycle(cycle) if matches!(cycle.before, Plan::Paused { .. }) => {
                cycle.before = Plan::Waiting { until: cx.now };
            }
            _ => {}
        }
    }

    pub(super) fn retry_credentials(&mut self, cx: &mut Out<'_>) {
        if self.credentials_refused() && matches!(self.plan, Plan::Cycle(_)) {
            return self.or_after(cx, Then::Refresh);
        }
        if self.credentials_refused() && matches!(self.plan, Plan::Idle | Plan::Waiting { .. }) {
            // Not which realms were answered with SHA-2: that holds until reconfigured (D5).
            self.sessions.clear_for_retry();
            self.retries = 0;
            self.begin(cx, Purpose::Register, true);
        }
    }

    pub(super) fn credentials_refused(&self) -> bool {
        matches!(
            self.last_failure.as_deref().map(|(failure, _)| failure),
            Some(Failure::CredentialsRefused { .. } | Failure::Unanswerable { .. })
        )
    }
}
