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
        let pardon = entry.guard.as_ref().and_then(|guard| guard.pardon);
        let allowed = match self.guard.ask(cx.now, &guarded, pardon) {
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
        if accepted == Some(true) {
            guard.pardon = None;
        }
        // Idle registrations are many, and few have any business with the guard.
        if guard.pardon.is_some() || !guard.in_flight.is_empty() {
            entry.guard = Some(guard);
        }
        self.guard.proved(cx.now, credential, accepted, &flown);
        // Each of those that waited asks again, and waits again where it must; the round is as long as the queue.
        for (asker, guarded) in std::mem::take(&mut self.waiting_for_guard) {
            self.guard(cx, asker, guarded);
        }
    }

    /// A person says that the credentials of a registration may be tried again, whatever it is doing: the next question is
    /// answered so, and a provider is asked anew.
    pub(super) fn forgive(&mut self, id: RegistrationId) {
        let pardon = self.guard.pardon();
        if let Some(entry) = self.entry_mut(id) {
            entry.guard.get_or_insert_default().pardon = Some(pardon);
            entry.machine.ask_anew();
        }
    }
}
