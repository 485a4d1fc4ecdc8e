//! Reload after reload of a file with ten trunks, in virtual time: who did not change sends nothing, and every
//! un-REGISTER is over before the registration that replaces it, whatever was interrupted.

use sip_registration::pjsip_conf::{Files, Loaded, Running, Step};
use sip_registration::testkit::{MockTransport, SentRequest, Wire};
use sip_registration::{Agent, Registrar};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

type Instant = tokio::time::Instant;

#[expect(clippy::disallowed_methods, reason = "a host asks what time it is")]
fn now() -> Instant {
    Instant::now()
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What a removal may take.
const WITHIN: Duration = secs(30);
/// After this long nothing is under way any more: timer F, the initial delay, an answer.
const SETTLED: Duration = secs(50);
const TRUNKS: usize = 10;

struct File(String);

impl Files for File {
    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// xorshift: the tests of a seed are the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(end).unwrap_or_default()
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// A section as it is in the file.
#[derive(Debug, Clone, PartialEq)]
struct Trunk {
    aor: u64,
    contact_user: u64,
    server: u64,
    expiration: u64,
    retry_interval: u64,
    line: bool,
    broken: bool,
}

#[derive(Debug, Default)]
struct Conf {
    trunks: BTreeMap<String, Trunk>,
    /// Names and addresses of record are never given twice, unless the old one is taken over.
    given: u64,
}

impl Conf {
    fn add(&mut self) {
        let given = self.given;
        self.given += 1;
        let trunk = Trunk {
            aor: given,
            contact_user: given,
            server: 9,
            expiration: 7200,
            retry_interval: 60,
            line: false,
            broken: false,
        };
        self.trunks.insert(format!("t{given}"), trunk);
    }

    /// Edits some sections. What is refused comes back as it was.
    fn edit(&mut self, dice: &mut Dice) {
        for trunk in self
            .trunks
            .values_mut()
            .filter(|_| dice.one_in(TRUNKS as u64))
        {
            trunk.broken = !trunk.broken;
        }
        (0..1 + dice.below(4)).for_each(|_| self.edit_one(dice));
    }

    fn edit_one(&mut self, dice: &mut Dice) {
        let names: Vec<_> = self.trunks.keys().cloned().collect();
        let mut any = || {
            let at = dice.below(names.len() as u64) as usize;
            names.get(at).cloned().unwrap_or_default()
        };
        let (name, other) = (any(), any());
        let Some(trunk) = self.trunks.get_mut(&name) else {
            return self.add();
        };
        match dice.below(10) {
            0 => self.add(),
            1 if names.len() > 5 => drop(self.trunks.remove(&name)),
            _ if trunk.broken => {}
            2 => trunk.expiration = 7200 + 60 * dice.below(3),
            3 => trunk.retry_interval = 60 + dice.below(3),
            4 => trunk.contact_user = 1000 + dice.below(1000),
            5 => trunk.server = 9 + dice.below(2),
            6 => trunk.line = !trunk.line,
            // Another name for it.
            7 => {
                let trunk = trunk.clone();
                self.trunks.remove(&name);
                self.trunks.insert(format!("t{}", self.given), trunk);
                self.given += 1;
            }
            _ => {
                let aor = trunk.aor;
                match self.trunks.get_mut(&other).filter(|other| !other.broken) {
                    Some(other) => {
                        let theirs = std::mem::replace(&mut other.aor, aor);
                        if let Some(trunk) = self.trunks.get_mut(&name) {
                            trunk.aor = theirs;
                        }
                    }
                    None => self.add(),
                }
            }
        }
    }

    fn file(&self) -> File {
        let mut text = "[udp]\ntype=transport\nbind=0.0.0.0\n\
             [e]\ntype=endpoint\n\
             [t](!)\ntype=registration\nmax_random_initial_delay=3\n"
            .to_owned();
        for (name, trunk) in &self.trunks {
            let expiration = if trunk.broken { 0 } else { trunk.expiration };
            text.push_str(&format!(
                "[{name}](t)\nserver_uri=sip:192.0.2.{}\nclient_uri=sip:a{}@example.com\n\
                 contact_user=c{}\nexpiration={expiration}\nretry_interval={}\n",
                trunk.server, trunk.aor, trunk.contact_user, trunk.retry_interval
            ));
            if trunk.line {
                text.push_str("line=yes\nendpoint=e\n");
            }
        }
        File(text)
    }
}

/// What a registrar has seen of an address of record.
#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    aor: String,
    call_id: String,
    removes: bool,
    answered: Option<Instant>,
}

#[derive(Debug, Default)]
struct Registrars {
    seen: Vec<Seen>,
    /// By registrar and address of record: the Contacts.
    bound: BTreeMap<(String, String), BTreeSet<String>>,
    /// Whose un-REGISTERs are not answered now.
    deaf: bool,
    /// The addresses of record of which an un-REGISTER got no answer: their bindings are anybody's guess.
    lost: BTreeSet<String>,
}

fn lock(registrars: &Mutex<Registrars>) -> std::sync::MutexGuard<'_, Registrars> {
    registrars.lock().unwrap_or_else(PoisonError::into_inner)
}

fn user(field: &str) -> String {
    let after = field.split_once("sip:").map_or("", |(_, after)| after);
    after.split('@').next().unwrap_or_default().to_owned()
}

/// Answers everything, some of it late, and un-REGISTERs not at all while it is deaf.
async fn serve(mut wire: Wire, registrars: Arc<Mutex<Registrars>>, mut dice: Dice) {
    let mut known = BTreeSet::new();
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
                let (aor, removes) = {
                    let mut registrars = lock(&registrars);
                    let seen = registrars.seen.get_mut(index).expect("it was seen");
                    seen.answered = Some(now());
                    (seen.aor.clone(), seen.removes)
                };
                let key = (request.target().address().ip().to_string(), aor);
                let contact = request.text_of("Contact");
                let contact = contact.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                {
                    let mut registrars = lock(&registrars);
                    let bound = registrars.bound.entry(key).or_default();
                    if removes {
                        bound.remove(&contact);
                    } else {
                        bound.insert(contact);
                    }
                }
                wire.reply(&request, 200).await;
            }
            request = wire.next_request() => {
                if !known.insert(request.text_of("Via")) {
                    continue;
                }
                let mut registrars = lock(&registrars);
                let removes = request.text_of("Expires") == "0";
                let index = registrars.seen.len();
                let aor = user(&request.text_of("To"));
                registrars.seen.push(Seen {
                    at: now(),
                    aor: aor.clone(),
                    call_id: request.text_of("Call-ID"),
                    removes,
                    answered: None,
                });
                if removes && registrars.deaf {
                    registrars.lost.insert(aor);
                } else {
                    let late = Duration::from_millis(dice.below(3000));
                    waiting.push((now() + late, index, request));
                }
            }
        }
    }
}

/// No REGISTER for an address of record while another registration's un-REGISTER for it is under way, but where a
/// registrar has left one without an answer.
fn check_order(seed: u64, registrars: &Registrars) {
    let seen = &registrars.seen;
    let removals = seen.iter().enumerate();
    for (index, removal) in
        removals.filter(|(_, seen)| seen.removes && !registrars.lost.contains(&seen.aor))
    {
        let given_up = removal.at + WITHIN;
        let over = removal.answered.map_or(given_up, |at| at.min(given_up));
        for after in seen.iter().skip(index + 1) {
            assert!(
                after.removes
                    || after.aor != removal.aor
                    || after.call_id == removal.call_id
                    || after.at >= over,
                "seed {seed}: {after:?} overtakes {removal:?}"
            );
        }
    }
}

async fn storm(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
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
        Dice(seed.wrapping_add(99) | 1),
    ));
    let mut conf = Conf::default();
    (0..TRUNKS).for_each(|_| conf.add());
    let mut running = Running::new();
    let first = Loaded::default().reload(&conf.file(), "pjsip.conf");
    running.apply(&agent, first, WITHIN).await.expect("runs");
    tokio::time::sleep(SETTLED).await;

    let mut settled = true;
    for _ in 0..12 {
        conf.edit(&mut dice);
        lock(&registrars).deaf = dice.one_in(6);
        let from = lock(&registrars).seen.len();
        let before: BTreeMap<_, _> = running
            .loaded()
            .registrations()
            .map(|(name, registration)| (Arc::clone(name), user(registration.aor_text())))
            .collect();
        let new = running.loaded().reload(&conf.file(), "pjsip.conf");
        let plan = new.plan(running.loaded());
        let patience = match dice.one_in(3) {
            true => Duration::from_millis(dice.below(6000)),
            false => secs(3600),
        };
        let applied = tokio::time::timeout(patience, running.apply(&agent, new, WITHIN)).await;
        let whole = applied.is_ok();
        if whole {
            tokio::time::sleep(SETTLED).await;
        }
        if settled {
            let quiet = plan
                .steps
                .iter()
                .filter(|(_, step)| matches!(step, Step::Untouched | Step::Kept | Step::InPlace));
            let quiet: BTreeSet<_> = quiet.filter_map(|(name, _)| before.get(name)).collect();
            let registrars = lock(&registrars);
            let loud = registrars.seen.iter().skip(from);
            let loud: Vec<_> = loud.filter(|seen| quiet.contains(&seen.aor)).collect();
            assert!(
                loud.is_empty(),
                "seed {seed}: {loud:?} of what did not change"
            );
        }
        settled = whole;
    }
    lock(&registrars).deaf = false;
    let last = running.loaded().reload(&conf.file(), "pjsip.conf");
    running.apply(&agent, last, WITHIN).await.expect("runs");
    tokio::time::sleep(SETTLED + secs(60)).await;

    check_order(seed, &lock(&registrars));
    let names: BTreeSet<_> = running
        .loaded()
        .registrations()
        .map(|(name, _)| name)
        .collect();
    let ids: BTreeSet<_> = running.ids().map(|(name, _)| name).collect();
    assert_eq!(ids, names, "seed {seed}");
    assert_eq!(agent.statuses().await.len(), names.len(), "seed {seed}");
    for (name, registration) in running.loaded().registrations() {
        let id = running.id(name).expect("it runs");
        let runs = agent.registration(id).await.expect("it runs");
        assert_eq!(*runs, **registration, "seed {seed}: {name}");
    }
    let wanted: BTreeMap<_, _> = running
        .loaded()
        .registrations()
        .map(|(_, registration)| {
            let server = format!("{:?}", registration.server_uri());
            let server = server.trim_start_matches("sip:").to_owned();
            ((server, user(registration.aor_text())), 1)
        })
        .collect();
    {
        let registrars = lock(&registrars);
        let known = |aor: &String| !registrars.lost.contains(aor);
        let bound = registrars
            .bound
            .iter()
            .filter(|(_, bound)| !bound.is_empty());
        let bound: BTreeMap<_, _> = bound
            .map(|(key, bound)| (key.clone(), bound.len()))
            .filter(|((_, aor), _)| known(aor))
            .collect();
        let wanted = wanted.into_iter().filter(|((_, aor), _)| known(aor));
        assert_eq!(bound, wanted.collect(), "seed {seed}");
    }
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_reloads_leaves_what_the_last_file_says() {
    for seed in 1..=60 {
        storm(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_under_way_does_not_hold_up_the_end() {
    let mut dice = Dice(5);
    for seed in 1..=20 {
        let (transport, wire) = MockTransport::new();
        let agent = Agent::builder()
            .transport("udp", transport)
            .seed([7; 32])
            .build()
            .await
            .expect("an agent");
        let registrars = Arc::new(Mutex::new(Registrars::default()));
        let serving = tokio::spawn(serve(wire, Arc::clone(&registrars), Dice(seed)));
        let mut conf = Conf::default();
        (0..TRUNKS).for_each(|_| conf.add());
        let mut running = Running::new();
        let first = Loaded::default().reload(&conf.file(), "pjsip.conf");
        running.apply(&agent, first, WITHIN).await.expect("runs");
        tokio::time::sleep(SETTLED).await;
        (0..4).for_each(|_| conf.edit(&mut dice));
        let new = running.loaded().reload(&conf.file(), "pjsip.conf");
        let start = now();
        let end = async {
            tokio::time::sleep(Duration::from_millis(dice.below(4000))).await;
            agent.shutdown(secs(33)).await
        };
        // Either it was through, or it is told that the agent has ended.
        let (_, _) = tokio::join!(running.apply(&agent, new, WITHIN), end);
        assert!(start.elapsed() < secs(35), "seed {seed}");
        let registrars = lock(&registrars);
        let bound = registrars
            .bound
            .iter()
            .filter(|(_, bound)| !bound.is_empty());
        assert_eq!(bound.count(), 0, "seed {seed}: {registrars:?}");
        serving.abort();
    }
}
