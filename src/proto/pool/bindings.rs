//! Registrations that make the same binding, and tokens that are of one only (D24).

use super::*;
use crate::{Scheme, Warning};
use std::collections::hash_map;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Who makes which binding: by what it hashes to, the first that makes it and, seldom, further ones
#[derive(Debug, Default)]
pub(super) struct Bindings {
    first: HashMap<u32, u32>,
    more: HashMap<u32, BTreeSet<u32>>,
}

impl Bindings {
    fn add(&mut self, registration: &Registration, slot: u32) {
        let Some(binding) = Binding::of(registration) else {
            return;
        };
        match self.first.entry(short_hash(binding)) {
            hash_map::Entry::Vacant(place) => {
                place.insert(slot);
            }
            hash_map::Entry::Occupied(place) => {
                self.more.entry(*place.key()).or_default().insert(slot);
            }
        }
    }

    pub(super) fn remove(&mut self, registration: &Registration, slot: u32) {
        let Some(binding) = Binding::of(registration) else {
            return;
        };
        let hash = short_hash(binding);
        let more = self.more.get_mut(&hash);
        if self.first.get(&hash) != Some(&slot) {
            more.map(|more| more.remove(&slot));
        } else if let Some(next) = more.and_then(BTreeSet::pop_first) {
            self.first.insert(hash, next);
        } else {
            self.first.remove(&hash);
        }
        if self.more.get(&hash).is_some_and(BTreeSet::is_empty) {
            self.more.remove(&hash);
        }
    }

    /// The slots of those that may make the binding.
    fn holders(&self, hash: u32) -> impl Iterator<Item = u32> + '_ {
        let more = self.more.get(&hash).into_iter().flatten();
        self.first.get(&hash).into_iter().chain(more).copied()
    }
}

/// What makes one binding another one at the registrar
#[derive(PartialEq, Eq, Hash)]
struct Binding<'a> {
    aor: (Scheme, Option<&'a str>, String, Option<u16>),
    registrar: (Scheme, String, Option<u16>, Option<String>),
    contact: (Option<&'a str>, Option<&'a str>),
    transport: Option<&'a str>,
    /// Instance and reg-id (RFC 5626 §6)
    instance: (Option<String>, Option<String>),
}

impl<'a> Binding<'a> {
    /// None with `line`: its token makes each Contact another one.
    fn of(registration: &'a Registration) -> Option<Self> {
        let (aor, registrar) = (registration.client_uri(), registration.server_uri());
        (!registration.line()).then(|| Self {
            aor: (
                aor.scheme(),
                aor.user(),
                aor.host().to_ascii_lowercase(),
                aor.port(),
            ),
            registrar: (
                registrar.scheme(),
                registrar.host().to_ascii_lowercase(),
                registrar.port(),
                registrar.transport().map(str::to_ascii_lowercase),
            ),
            contact: (
                registration.contact_user().as_str(),
                registration.contact_uri_params(),
            ),
            transport: registration.transport().map(|name| &**name),
            instance: registration.named(),
        })
    }
}

/// Equal values have equal ones, others seldom
pub(super) fn short_hash(value: impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish() as u32
}

impl Pool {
    /// Takes note of the binding that a registration makes, and tells it who else makes that.
    pub(super) fn list_binding(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let Some(registration) = self.registration(id).map(Arc::clone) else {
            return;
        };
        if let Some(binding) = Binding::of(&registration) {
            let same = |other: &RegistrationId| {
                let other = self.registration(*other).and_then(|r| Binding::of(r));
                other.as_ref() == Some(&binding)
            };
            let mut holders = self.bindings.holders(short_hash(&binding));
            if let Some(other) = holders.find_map(|slot| self.in_slot(slot).filter(same)) {
                let event = Event::Warning(Warning::SameBinding(other));
                cx.out.push(PoolOutput::Event(id, event));
            }
        }
        self.bindings.add(&registration, id.index);
    }

    /// The same after a change of configuration.
    pub(super) fn list_changed(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        before: &Registration,
    ) {
        // Further flows of a registration make bindings of their own (RFC 5626 §6).
        let now = self.registration(id).map(Arc::clone);
        let now = now.filter(|_| self.groups.owner(id) == id);
        if now.is_some_and(|now| Binding::of(&now) != Binding::of(before)) {
            self.bindings.remove(before, id.index);
            self.list_binding(cx, id);
        }
    }

    /// Takes note of a registration's `line` token; one that somebody has already would lead calls astray, and is drawn
    /// anew.
    pub(super) fn list_line(&mut self, cx: &mut Out<'_>, id: RegistrationId) {
        let slot = self.slots.get_mut(id.index as usize);
        let Some(entry) = slot.and_then(|slot| slot.entry.as_mut()) else {
            return;
        };
        while let Some(line) = entry.machine.line() {
            if !self.lines.contains_key(line) {
                self.lines.insert(line.into(), id);
                return;
            }
            entry.machine.draw_line(cx.entropy);
        }
    }
}
