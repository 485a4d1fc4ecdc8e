//! Requests in flight to one target, and those that wait for a place (D16).

use super::*;

/// Requests in flight to one target (D16)
const WINDOW: u32 = 64;
/// The window never shrinks below this
const LEAST_WINDOW: u32 = 4;
/// An answer that is not there after this long takes its time, or never comes: meanwhile another one may ask
const OVERDUE: Duration = Duration::from_secs(4);
/// Losses within this time are one loss: those of a burst are found out together
const ONE_LOSS: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Window {
    limit: u32,
    /// Who has a place, and since when
    places: Vec<(RegistrationId, Instant)>,
    /// Whether one more has a place than there are: nobody has been answered for a while
    probes: bool,
    pub(super) queue: VecDeque<(Asker, Opening)>,
    /// When the target last answered anybody
    answered_at: Option<Instant>,
    lost_at: Option<Instant>,
}

impl Window {
    const fn new() -> Self {
        Self {
            limit: WINDOW,
            places: Vec::new(),
            probes: false,
            queue: VecDeque::new(),
            answered_at: None,
            lost_at: None,
        }
    }

    /// How many places are taken: one whose answer is overdue while the target answers others waits for nothing that the
    /// others would have to wait for too.
    fn used(&self, now: Instant) -> u32 {
        let counts = self.places.iter().filter(|place| !self.is_left(place, now));
        counts.count().try_into().unwrap_or(u32::MAX)
    }

    fn is_left(&self, (_, since): &(RegistrationId, Instant), now: Instant) -> bool {
        now >= *since + OVERDUE && self.answered_at.is_some_and(|at| at > *since)
    }

    fn is_full(&self, now: Instant) -> bool {
        !self.probes && self.used(now) >= self.limit
    }

    /// One more for each answer, half as many for a 503 or a loss, but for one whose word is doubted; when the target
    /// answered before is given back.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        by: RegistrationId,
        doubted: bool,
        outcome: TargetOutcome,
    ) -> Option<Instant> {
        let before = self.answered_at;
        match outcome {
            TargetOutcome::Answered => {
                self.limit = (self.limit + 1).min(WINDOW);
                self.answered_at = Some(now);
            }
            TargetOutcome::Unavailable { .. } if doubted => self.answered_at = Some(now),
            TargetOutcome::Unavailable { .. } => {
                self.limit = (self.limit / 2).max(LEAST_WINDOW);
                self.answered_at = Some(now);
            }
            TargetOutcome::Late | TargetOutcome::Silent { .. } => {
                // Who is not answered while others are is ignored, not lost on the way.
                let place = self.places.iter().find(|(holder, _)| *holder == by);
                let left = place.is_some_and(|place| self.is_left(place, now));
                if !left && !doubted && self.lost_at.is_none_or(|at| now >= at + ONE_LOSS) {
                    self.limit = (self.limit / 2).max(LEAST_WINDOW);
                    self.lost_at = Some(now);
                }
            }
            TargetOutcome::Unreachable => {}
        }
        before
    }
}

impl Pool {
    /// How many attempts wait for a place in a target's window, or for their turn under the ceiling (D16).
    #[must_use]
    pub fn held(&self) -> usize {
        let queued: usize = self.windows.values().map(|window| window.queue.len()).sum();
        queued + self.pace.as_ref().map_or(0, |pace| pace.len())
    }

    /// Takes a place in the target's window, or a place in its queue (D16).
    pub(super) fn open_or_hold(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        let Some(entry) = self.entry(asker.id) else {
            return;
        };
        let address = opening.target.address();
        let holds_one = entry.window.as_ref().map(Target::address) == Some(address);
        let left = self.health.asked(&opening.target, cx.now);
        if let Some(left) = left.filter(|_| !holds_one && !entry.machine.insists()) {
            return self.elsewhere(cx, asker, &opening.target, Some(left));
        }
        let policy = entry.machine.registration().policy();
        let trial = policy.timers.timer_f + policy.timers.connect_timeout;
        // Who has another choice does not find out each by himself that this one is still down.
        if !holds_one
            && !entry.machine.insists()
            && entry.machine.has_another()
            && !policy.dead_target_memory.is_zero()
            && self
                .health
                .leaves_alone(&opening.target, asker.id, cx.now, trial)
        {
            return self.elsewhere(cx, asker, &opening.target, None);
        }
        let window = self.windows.entry(address).or_insert_with(Window::new);
        if !holds_one && window.is_full(cx.now) {
            // One that asks again keeps its place.
            match window
                .queue
                .iter_mut()
                .find(|(queued, _)| queued.id == asker.id)
            {
                Some(place) => *place = (asker, opening),
                None => window.queue.push_back((asker, opening)),
            }
            self.crowd(cx.now, address);
            return self.feed(cx, asker.id, Input::Held(asker.op));
        }
        if !holds_one {
            window.probes = false;
            window.places.push((asker.id, cx.now));
            if let Some(entry) = self.entry_mut(asker.id) {
                entry.window = Some(opening.target.clone());
            }
        }
        self.open(cx, asker, opening);
    }

    /// Whether there is no place for one that does not have it yet.
    pub(super) fn is_full(&self, now: Instant, id: RegistrationId, target: &Target) -> bool {
        let address = target.address();
        let place = self.entry(id).and_then(|entry| entry.window.as_ref());
        place.map(Target::address) != Some(address)
            && self
                .windows
                .get(&address)
                .is_some_and(|window| window.is_full(now))
    }

    /// A place in a target's window is free: those who wait move up.
    pub(super) fn release(&mut self, cx: &mut Out<'_>, id: RegistrationId, address: SocketAddr) {
        let Some(window) = self.windows.get_mut(&address) else {
            return;
        };
        window.places.retain(|(holder, _)| *holder != id);
        self.move_up(cx, address);
    }

    fn move_up(&mut self, cx: &mut Out<'_>, address: SocketAddr) {
        let Some(window) = self.windows.get_mut(&address) else {
            return;
        };
        if let Some(pace) = &mut self.pace {
            let room = window.limit.saturating_sub(window.used(cx.now));
            pace.unpark(address, room.max(u32::from(window.probes)));
        }
        if window.places.is_empty() && window.queue.is_empty() {
            self.windows.remove(&address);
            self.crowded.remove(&address);
            return;
        }
        // One that moves up may fail at once and free its place again: that is one more round, not one more call, for
        // there may be thousands.
        self.freed.push_back(address);
        if self.freed.len() > 1 {
            return;
        }
        while let Some(address) = self.freed.front().copied() {
            // As many as there is room for: the window may have grown since.
            while let Some(window) = self.windows.get_mut(&address)
                && !window.is_full(cx.now)
                && let Some((asker, opening)) = window.queue.pop_front()
            {
                self.open_or_hold(cx, asker, opening);
            }
            self.freed.pop_front();
            // Freed once more is served already.
            while self.freed.front() == Some(&address) {
                self.freed.pop_front();
            }
        }
    }

    /// Somebody waits for a place: it is looked after from time to time, for nothing else may happen there.
    pub(super) fn crowd(&mut self, now: Instant, address: SocketAddr) {
        self.crowded.entry(address).or_insert(now + OVERDUE);
    }

    /// Looks after a target where somebody waits; false where none is due.
    ///
    /// Where all places that losses have left are taken by such as are not answered, one more is let in where the target has
    /// answered anybody: it may answer others again.
    pub(super) fn serve_crowd(&mut self, cx: &mut Out<'_>) -> bool {
        let due = self.crowded.iter().find(|(_, at)| **at <= cx.now);
        let Some(address) = due.map(|(address, _)| *address) else {
            return false;
        };
        let parked = self
            .pace
            .as_ref()
            .is_some_and(|pace| pace.has_parked(address));
        let Some(window) = self
            .windows
            .get_mut(&address)
            .filter(|window| parked || !window.queue.is_empty())
        else {
            self.crowded.remove(&address);
            return true;
        };
        self.crowded.insert(address, cx.now + OVERDUE);
        let newest = window.places.iter().map(|(_, since)| *since).max();
        window.probes = window.answered_at.is_some()
            && window.places.len() < WINDOW as usize
            && newest.is_none_or(|since| cx.now >= since + OVERDUE);
        self.move_up(cx, address);
        true
    }

    /// A target has gone down: those who queue for it do not find that out each by himself.
    pub(super) fn disperse(&mut self, cx: &mut Out<'_>, target: &Target) {
        let left = self.health.asked(target, cx.now);
        let queue = match self.windows.get_mut(&target.address()) {
            Some(window) => std::mem::take(&mut window.queue),
            None => VecDeque::new(),
        };
        let mut pace = self.pace.take();
        let goes = |asker: &Asker, opening: &Opening| {
            opening.target == *target
                && self.entry(asker.id).is_some_and(|entry| {
                    let policy = entry.machine.registration().policy();
                    !entry.machine.insists()
                        && (left.is_some() || !policy.dead_target_memory.is_zero())
                })
        };
        let (mut go, stay): (Vec<_>, Vec<_>) = queue
            .into_iter()
            .partition(|(asker, opening)| goes(asker, opening));
        if let Some(pace) = &mut pace {
            go.extend(pace.take_all(target.address(), goes));
        }
        self.pace = pace;
        if let Some(window) = self.windows.get_mut(&target.address()) {
            window.queue = stay.into();
        }
        for (asker, opening) in go {
            self.elsewhere(cx, asker, &opening.target, left);
        }
    }

    fn elsewhere(
        &mut self,
        cx: &mut Out<'_>,
        asker: Asker,
        target: &Target,
        retry_after: Option<Duration>,
    ) {
        let op = asker.op;
        let key = self
            .registration(asker.id)
            .map(|registration| flow_key(registration, target));
        let another = self.groups.another_is_up(asker.id);
        let refused = key.and_then(|key| self.flows.refused(cx.now, cx.entropy, &key, another));
        let retry_in = refused.map(|refused| refused.retry_in);
        let result = Err(FlowError::TargetDown { retry_after });
        self.feed(
            cx,
            asker.id,
            Input::Opened {
                op,
                result,
                retry_in,
            },
        );
    }
}
