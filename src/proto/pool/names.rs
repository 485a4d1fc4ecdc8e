//! Names to targets: each question asked once for all, each target known to all.

use super::*;
use crate::proto::locate::{Bound, Found, Located, Reader, Report, Selection, select};

/// Targets that nobody uses any more are kept up to this number
const SPARE_TARGETS: usize = 64;

/// One that waits for the name service
#[derive(Debug)]
pub(super) struct Waiter {
    asker: Asker,
    uri: SipUri,
    /// Since when: what is answered from then on serves it
    since: Instant,
    /// Draws the order of equal servers
    seed: u64,
}

/// The targets that are in use: equal ones are one in memory, because a hundred thousand leases name a few of them
#[derive(Debug, Default)]
pub(super) struct Targets {
    known: HashSet<Target>,
    sweep_at: usize,
}

impl Targets {
    /// The target that is equal to this one, or this one from now on.
    fn share(&mut self, target: Target) -> Target {
        if let Some(known) = self.known.get(&target) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(Target::is_shared);
            self.sweep_at = SPARE_TARGETS.max(self.known.len().saturating_mul(2));
        }
        self.known.insert(target.clone());
        target
    }
}

impl Waiter {
    pub(super) const fn asker(&self) -> Asker {
        self.asker
    }
}

impl Pool {
    /// Where a request goes, by RFC 3263.
    pub(super) fn locate(&mut self, cx: &mut Out<'_>, asker: Asker, uri: SipUri) {
        let waiter = Waiter {
            asker,
            since: cx.now,
            // An address needs none.
            seed: uri.ip().map_or_else(|| cx.entropy.u64(), |_| 0),
            uri,
        };
        self.locate_on(cx, waiter);
    }

    /// As far as the answers reach.
    fn locate_on(&mut self, cx: &mut Out<'_>, waiter: Waiter) {
        let (now, since) = (cx.now, waiter.since);
        let selection = match self.spoken(waiter.asker.id) {
            Ok((sips, protocols)) => {
                let lookup = |query: &Query| self.names.lookup(query, now, since);
                select(&waiter.uri, sips, &protocols, waiter.seed, &lookup)
            }
            Err(error) => Selection::Failed(error),
        };
        let asker = waiter.asker;
        let result = match selection {
            Selection::Need(queries) => {
                // All are asked at once; the answer to the first lets it go on.
                let mut waiter = Some(waiter);
                for query in queries {
                    if self.names.wait(&query, waiter.take()) {
                        cx.out.push(PoolOutput::Resolve(query));
                    }
                }
                return;
            }
            Selection::Targets(located) => {
                let targets = self.in_order(now, &waiter, located);
                let share = |target| self.targets.share(target);
                Ok(targets.into_iter().map(share).collect())
            }
            Selection::Failed(error) => Err(error),
        };
        let op = asker.op;
        self.feed(cx, asker.id, Input::Located { op, result });
    }

    /// Whether a registration asks for a secure protocol, and what its transport speaks, or all of ours in their order.
    fn spoken(&self, id: RegistrationId) -> Result<(bool, Vec<Protocol>), ResolveError> {
        let choice = self.entry(id).map(|entry| entry.machine.choice());
        let named = choice.and_then(|choice| choice.transport());
        let mut protocols = Vec::new();
        let transports = self.transports.iter();
        for transport in transports.filter(|transport| transport.is_for(named)) {
            for protocol in &transport.speaks {
                if !protocols.contains(protocol) {
                    protocols.push(*protocol);
                }
            }
        }
        match named {
            Some(name) if !self.transports.iter().any(|known| known.name == *name) => {
                Err(ResolveError::NoTransport((&**name).into()))
            }
            _ => Ok((choice.is_some_and(|one| one.is_sips()), protocols)),
        }
    }

    /// Whether a transport that the registration may use speaks this.
    pub(super) fn speaks(&self, id: RegistrationId, protocol: Protocol) -> bool {
        let named = self
            .registration(id)
            .and_then(|registration| registration.transport());
        let mut transports = self.transports.iter();
        transports.any(|transport| transport.is_for(named) && transport.speaks.contains(&protocol))
    }

    /// The targets as the registration's policy and the state of the targets have them.
    fn in_order(&mut self, now: Instant, waiter: &Waiter, located: Located) -> Vec<Target> {
        let id = waiter.asker.id;
        let Some(entry) = self.entry(id) else {
            return Vec::new();
        };
        let policy = entry.machine.registration().policy();
        let reader = Reader {
            id,
            now,
            memory: !policy.dead_target_memory.is_zero(),
            may_try: entry.machine.may_try(now),
            trial: policy.timers.timer_f + policy.timers.connect_timeout,
            healthy_for: policy.primary_healthy_for,
        };
        let target = entry.machine.bound().filter(|_| policy.sticky_target);
        let bound = target.map(|target| {
            let kept = !located.certain || self.in_grace(now, waiter, &target);
            Bound { target, kept }
        });
        self.health.order(located, bound, &reader)
    }

    /// Whether the answers before the last ones list the target, and may still be used (D12).
    fn in_grace(&self, now: Instant, waiter: &Waiter, target: &Target) -> bool {
        let before = |query: &Query| -> Found<'_> { self.names.before(query, now) };
        let Ok((sips, protocols)) = self.spoken(waiter.asker.id) else {
            return false;
        };
        match select(&waiter.uri, sips, &protocols, waiter.seed, &before) {
            Selection::Targets(before) => before.places.iter().any(|place| place.target == *target),
            _ => false,
        }
    }

    /// The answer to [`PoolOutput::Resolve`].
    pub fn resolved(
        &mut self,
        cx: &mut Out<'_>,
        query: &Query,
        result: Result<Answer, ResolveError>,
    ) {
        for waiter in self
            .names
            .answered(query, cx.now, result)
            .unwrap_or_default()
        {
            self.locate_on(cx, waiter);
        }
    }

    /// What a registration found out about a target; true where those who queue for it should go elsewhere.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        by: RegistrationId,
        target: &Target,
        outcome: TargetOutcome,
    ) -> bool {
        let Some(entry) = self.entry(by) else {
            return false;
        };
        let policy = entry.machine.registration().policy();
        let memory = (policy.dead_target_memory, policy.dead_target_memory_max);
        let doubted = self.health.doubts(target, by);
        let window = self.windows.get_mut(&target.address());
        let answered_at = window.and_then(|window| window.judge(now, by, doubted, outcome));
        let report = Report {
            by,
            now,
            outcome,
            memory,
            answered_at,
        };
        self.health.report(target, &report)
    }
}
