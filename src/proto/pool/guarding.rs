//! Answers to challenges that have to pass the account guard (D6).

use super::*;

impl Pool {
    pub(super) fn guard(&mut self, cx: &mut Out<'_>, asker: Asker, guarded: Box<[Guarded]>) {
        // One that waited may have ended since.
        let Some(entry) = self
            .entry_mut(asker.id)
            .filter(|entry| entry.machine.guarding(asker.op))
        else {
            return;
        };
        entry.guard.get_or_insert_default().asked = guarded.clone();
        let allowed = match self.guard.ask(cx.now, &guarded) {
            Pass::Go(counted) => {
                if let Some(entry) = self.entry_mut(asker.id) {
                    let guard = entry.guard.get_or_insert_default();
                    guard.in_flight.extend(counted);
                }
                true
            }
            Pass::Wait => return self.waiting_for_guard.push_back((asker, guarded)),
            Pass::Never => false,
        };
        let op = asker.op;
        self.feed(cx, asker.id, Input::Guarded { op, allowed });
    }

    pub(super) fn proved(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        credential: &[Guarded],
        accepted: Option<bool>,
    ) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        let mut guard = entry.guard.take().unwrap_or_default();
        let (flown, stay) = std::mem::take(&mut guard.in_flight)
            .into_iter()
            .partition::<Vec<_>, _>(|one| credential.contains(one));
        guard.in_flight = stay;
        if accepted == Some(false) {
            // What `retry_credentials` forgives.
            guard.asked = credential.into();
        }
        // Idle registrations are many: there is nothing to forgive to one whose credentials are good.
        if accepted != Some(true) || !guard.in_flight.is_empty() {
            entry.guard = Some(guard);
        }
        self.guard.proved(cx.now, credential, accepted, &flown);
        // Each of those that waited asks again, and waits again where it must; the round is as long as the queue.
        for (asker, guarded) in std::mem::take(&mut self.waiting_for_guard) {
            self.guard(cx, asker, guarded);
        }
    }
}
