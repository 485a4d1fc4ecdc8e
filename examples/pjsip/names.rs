//! Events are told by the names of their sections.

use super::say::say;
use sip_registration::pjsip_conf::Running;
use sip_registration::{Event, Events, RegistrationId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Which section is which registration; shared with those who print
#[derive(Clone, Default)]
pub(crate) struct Names {
    known: Arc<Mutex<HashMap<RegistrationId, Arc<str>>>>,
    changed: Arc<Notify>,
}

impl Names {
    pub(crate) fn set(&self, running: &Running) {
        let names = running.ids().map(|(name, id)| (id, Arc::clone(name)));
        // What was removed keeps its name: its last event may still come.
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(names);
        self.changed.notify_one();
    }

    pub(crate) fn of(&self, id: RegistrationId) -> String {
        self.get(id)
            .map_or_else(|| id.to_string(), |name| name.to_string())
    }

    fn get(&self, id: RegistrationId) -> Option<Arc<str>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).map(Arc::clone)
    }
}

/// Prints every event until the agent ends; those of a new section wait until it is known which one that is.
pub(crate) async fn print(mut events: Events, names: Names) {
    let mut waiting: Vec<(RegistrationId, Arc<Event>)> = Vec::new();
    loop {
        tokio::select! {
            // First what happened first.
            biased;
            () = names.changed.notified() => {}
            event = events.next() => match event {
                Some(event) => waiting.push(event),
                None => break,
            },
        }
        waiting.retain(|(id, event)| match names.get(*id) {
            Some(name) => {
                say(format_args!("{name} {event}"));
                false
            }
            None => true,
        });
    }
    for (id, event) in waiting {
        say(format_args!("{id} {event}"));
    }
}
