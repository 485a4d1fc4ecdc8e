//! Requests in flight to one target, and those that wait for a place (D16).

use super::*;

impl Pool {
    /// How many attempts wait for a place in a target's window (D16).
    #[must_use]
    pub fn held(&self) -> usize {
        self.windows.values().map(|window| window.queue.len()).sum()
    }

    /// Takes a place in the target's window, or a place in its queue (D16).
    pub(super) fn open_or_hold(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        if self.entry(asker.id).is_none() {
            return;
        }
        let address = opening.target.address();
        let window = self.windows.entry(address).or_insert_with(|| Window {
            limit: WINDOW,
            used: 0,
            queue: VecDeque::new(),
        });
        let place = self
            .slots
            .get(asker.id.index as usize)
            .and_then(|slot| slot.entry.as_ref());
        let holds_one = place.is_some_and(|entry| entry.window == Some(address));
        if !holds_one && window.used >= window.limit {
            // One that asks again keeps its place.
            match window
                .queue
                .iter_mut()
                .find(|(queued, _)| queued.id == asker.id)
            {
                Some(place) => *place = (asker, opening),
                None => window.queue.push_back((asker, opening)),
            }
            return self.handle(cx, asker.id, Input::Held(asker.op));
        }
        if !holds_one {
            window.used += 1;
            if let Some(entry) = self.entry_mut(asker.id) {
                entry.window = Some(address);
            }
        }
        self.open(cx, asker, opening);
    }

    /// A place in a target's window is free: those who wait move up.
    pub(super) fn release(&mut self, cx: &mut Out<'_>, address: SocketAddr) {
        let Some(window) = self.windows.get_mut(&address) else {
            return;
        };
        window.used = window.used.saturating_sub(1);
        if window.used == 0 && window.queue.is_empty() {
            self.windows.remove(&address);
            return;
        }
        // As many as there is room for: the window may have grown since.
        while let Some(window) = self.windows.get_mut(&address)
            && window.used < window.limit
            && let Some((asker, opening)) = window.queue.pop_front()
        {
            self.open_or_hold(cx, asker, opening);
        }
    }
}
