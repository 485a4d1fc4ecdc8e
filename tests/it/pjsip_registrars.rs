//! Registrars in virtual time that remember who asked for what, and which bindings they hold.

use crate::pjsip_files::{Dice, secs};
use sip_registration::Agent;
use sip_registration::testkit::{MockTransport, SentRequest, Wire};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

pub(crate) type Instant = tokio::time::Instant;

#[expect(clippy::disallowed_methods, reason = "a host asks what time it is")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A request that a registrar has seen, told once, however often it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) aor: String,
    pub(crate) call_id: String,
    pub(crate) removes: bool,
    pub(crate) answered: Option<Instant>,
}

/// All registrars that the sections of a file name
#[derive(Debug, Default)]
pub(crate) struct Registrars {
    pub(crate) seen: Vec<Seen>,
    /// By registrar and address of record: the Contacts.
    pub(crate) bound: BTreeMap<(String, String), BTreeSet<String>>,
    /// Whether un-REGISTERs are lost now.
    pub(crate) deaf: bool,
    /// The addresses of record of which REGISTERs are refused now.
    pub(crate) refused: BTreeSet<String>,
}

/// The registrars, in the hands of a test
pub(crate) struct World {
    pub(crate) agent: Agent,
    registrars: Arc<Mutex<Registrars>>,
    serving: JoinHandle<()>,
}

impl World {
    /// An agent whose registrars answer within `latest`, some of it late.
    pub(crate) async fn new(seed: u64, latest: Duration) -> Self {
        let (transport, wire) = MockTransport::new();
        let agent = Agent::builder()
            .transport("udp", transport)
            .seed([7; 32])
            .build()
            .await
            .expect("an agent");
        let registrars = Arc::new(Mutex::new(Registrars::default()));
        let serving = tokio::spawn(serve(
            wire,
            Arc::clone(&registrars),
            Dice::new(seed.wrapping_add(99)),
            latest,
        ));
        Self {
            agent,
            registrars,
            serving,
        }
    }

    pub(crate) fn registrars(&self) -> MutexGuard<'_, Registrars> {
        lock(&self.registrars)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Registrars {
    /// What is bound: registrar and address of record, and the users of the Contacts.
    pub(crate) fn bindings(&self) -> BTreeMap<(String, String), Vec<String>> {
        let bound = self.bound.iter().filter(|(_, bound)| !bound.is_empty());
        bound
            .map(|(key, bound)| (key.clone(), bound.iter().map(|uri| user(uri)).collect()))
            .collect()
    }

    /// `alice 3600` or `alice 0`, in order.
    pub(crate) fn lines(&self, from: usize) -> Vec<String> {
        let seen = self.seen.iter().skip(from);
        seen.map(|seen| format!("{}{}", if seen.removes { "-" } else { "+" }, seen.aor))
            .collect()
    }

    /// The addresses of record of which an un-REGISTER got no answer: the old binding stays until it expires.
    pub(crate) fn lost(&self) -> BTreeSet<String> {
        let lost = self.seen.iter();
        let lost = lost.filter(|seen| seen.removes && seen.answered.is_none());
        lost.map(|seen| seen.aor.clone()).collect()
    }

    /// No REGISTER for an address of record while another registration's un-REGISTER for it is under way, and no
    /// un-REGISTER by another one once there is a REGISTER.
    pub(crate) fn check_order(&self, within: Duration, what: &str) {
        for (index, removal) in self
            .seen
            .iter()
            .enumerate()
            .filter(|(_, seen)| seen.removes)
        {
            let given_up = removal.at + within;
            let over = removal.answered.map_or(given_up, |at| at.min(given_up));
            for after in self.seen.iter().skip(index + 1) {
                assert!(
                    after.removes
                        || after.aor != removal.aor
                        || after.call_id == removal.call_id
                        || after.at >= over,
                    "{what}: {after:?} overtakes {removal:?}"
                );
            }
        }
    }
}

fn lock(registrars: &Mutex<Registrars>) -> MutexGuard<'_, Registrars> {
    registrars.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user part of the first SIP URI in a field.
pub(crate) fn user(field: &str) -> String {
    let after = field.split_once("sip:").map_or("", |(_, after)| after);
    after.split('@').next().unwrap_or_default().to_owned()
}

async fn serve(
    mut wire: Wire,
    registrars: Arc<Mutex<Registrars>>,
    mut dice: Dice,
    latest: Duration,
) {
    // By branch: which of `seen` it is, and whether an answer is on its way.
    let mut known: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    let mut waiting: Vec<(Instant, usize, SentRequest)> = Vec::new();
    loop {
        waiting.sort_by_key(|(at, ..)| *at);
        let next = waiting.first().map(|(at, ..)| *at);
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {
                let (_, index, request) = waiting.remove(0);
                let code = lock(&registrars).answer(index, &request);
                wire.reply(&request, code).await;
            }
            request = wire.next_request() => {
                let mut registrars = lock(&registrars);
                let removes = request.text_of("Expires") == "0";
                let fresh = registrars.seen.len();
                let (index, answering) = known.entry(request.text_of("Via")).or_insert((fresh, false));
                if *index == fresh {
                    registrars.seen.push(Seen {
                        at: now(),
                        aor: user(&request.text_of("To")),
                        call_id: request.text_of("Call-ID"),
                        removes,
                        answered: None,
                    });
                }
                if *answering || (removes && registrars.deaf) {
                    continue;
                }
                *answering = true;
                let late = match u64::try_from(latest.as_millis()) {
                    Ok(most) => Duration::from_millis(dice.below(most.max(1))),
                    Err(_) => secs(0),
                };
                waiting.push((now() + late, *index, request));
            }
        }
    }
}

impl Registrars {
    fn answer(&mut self, index: usize, request: &SentRequest) -> u16 {
        let seen = self.seen.get_mut(index).expect("it was seen");
        seen.answered = Some(now());
        let (aor, removes) = (seen.aor.clone(), seen.removes);
        if !removes && self.refused.contains(&aor) {
            return 403;
        }
        let uri = request.text();
        let uri = uri.split(' ').nth(1).unwrap_or_default();
        let server = uri.trim_start_matches("sip:").to_owned();
        let contact = request.text_of("Contact");
        let contact = contact.split(['<', '>']).nth(1).unwrap_or_default();
        let bound = self.bound.entry((server, aor)).or_default();
        match removes {
            true => drop(bound.remove(contact)),
            false => drop(bound.insert(contact.to_owned())),
        }
        200
    }
}
