//! Reload after reload of a file with ten trunks, in virtual time: who did not change sends nothing, and every
//! un-REGISTER is over before the registration that replaces it, whatever was interrupted.

use crate::pjsip_files::{Dice, File, secs};
use crate::pjsip_registrars::{World, now, user};
use sip_registration::pjsip_conf::{Loaded, Running, Step};
use sip_registration::{Registrar, RegistrationId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a removal may take.
const WITHIN: Duration = secs(30);
/// The longest that an answer takes.
const LATEST: Duration = secs(3);
/// After this long nothing is under way any more: timer F, the initial delay, an answer.
const SETTLED: Duration = secs(50);
const TRUNKS: usize = 10;

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
            let at = dice.index(names.len());
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

/// What an operator asks for, for one section or for all.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ask {
    Refresh,
    Reregister,
    Unregister,
    Pause,
    Resume,
}

impl Ask {
    const ALL: [Self; 5] = [
        Self::Refresh,
        Self::Reregister,
        Self::Unregister,
        Self::Pause,
        Self::Resume,
    ];

    /// Whether it is bound afterwards, of whatever was before; a pause ends with a registration only by `Resume`.
    const fn ends_bound(self) -> bool {
        matches!(self, Self::Refresh | Self::Reregister)
    }

    async fn of(self, registrar: &dyn Registrar, id: RegistrationId) {
        // It may have been removed meanwhile.
        let _ = match self {
            Self::Refresh => registrar.refresh(id).await,
            Self::Reregister => registrar.reregister(id).await,
            Self::Unregister => registrar.unregister(id).await.map(drop),
            Self::Pause => registrar.pause(id, None, true).await,
            Self::Resume => registrar.resume(id).await,
        };
    }
}

/// What the operator does while a reload may be under way, and whose registrations it was for.
async fn operate(world: &World, dice: &mut Dice, ids: &[RegistrationId]) -> Vec<RegistrationId> {
    let mut asked = Vec::new();
    for _ in 0..dice.below(4) {
        tokio::time::sleep(Duration::from_millis(dice.below(5000))).await;
        let what = Ask::ALL[dice.index(Ask::ALL.len())];
        let whom = match dice.one_in(5) {
            true => ids,
            false => ids
                .get(dice.index(ids.len()))
                .map(std::slice::from_ref)
                .unwrap_or_default(),
        };
        asked.extend(whom);
        // Un-REGISTERs are waited for; the operator is not.
        for id in whom {
            let (agent, id) = (world.agent.clone(), *id);
            tokio::spawn(async move { what.of(&agent, id).await });
        }
    }
    asked
}

/// The address of record of each section, and its registrar.
fn addresses(running: &Running) -> BTreeMap<Arc<str>, (String, String)> {
    let registrations = running.loaded().registrations();
    let address = |registration: &sip_registration::Registration| {
        let server = format!("{:?}", registration.server_uri());
        let server = server.trim_start_matches("sip:").to_owned();
        (server, user(registration.aor_text()))
    };
    registrations
        .map(|(name, registration)| (Arc::clone(name), address(registration)))
        .collect()
}

/// How often a storm did what it is for
#[derive(Debug, Default)]
struct Tally {
    dropped: usize,
    lost: usize,
    revived: usize,
    kept: usize,
    came_back: usize,
    asked: usize,
}

async fn storm(seed: u64, operated: bool, tally: &mut Tally) {
    let what = format!(
        "seed {seed}, {}",
        if operated { "operated" } else { "alone" }
    );
    let mut dice = Dice::new(seed);
    let world = World::new(seed, LATEST).await;
    let mut conf = Conf::default();
    (0..TRUNKS).for_each(|_| conf.add());
    let mut running = Running::new();
    let first = Loaded::default().reload(&conf.file(), "pjsip.conf");
    running
        .apply(&world.agent, first, WITHIN)
        .await
        .expect("runs");
    tokio::time::sleep(SETTLED).await;

    let mut settled = true;
    for _ in 0..12 {
        conf.edit(&mut dice);
        world.registrars().deaf = dice.one_in(6);
        let some: Vec<_> = conf
            .trunks
            .values()
            .map(|trunk| format!("a{}", trunk.aor))
            .collect();
        let refused = some.into_iter().filter(|_| dice.one_in(12)).collect();
        world.registrars().refused = refused;
        let from = world.registrars().seen.len();
        let before = addresses(&running);
        let ids: Vec<_> = running.ids().map(|(_, id)| id).collect();
        let names: BTreeMap<_, _> = running
            .ids()
            .map(|(name, id)| (id, Arc::clone(name)))
            .collect();
        let mut given_up = BTreeSet::new();
        for (id, status) in world.agent.statuses().await {
            given_up.extend(names.get(&id).filter(|_| status.last_failure.is_some()));
        }
        let back = running
            .loaded()
            .registrations()
            .map(|(name, _)| Arc::clone(name));
        let back: Vec<_> = back.filter(|name| running.loaded().is_kept(name)).collect();
        let new = running.loaded().reload(&conf.file(), "pjsip.conf");
        let plan = new.plan(running.loaded());
        let patience = match dice.one_in(3) {
            true => Duration::from_millis(dice.below(6000)),
            false => secs(3600),
        };
        let applied = tokio::time::timeout(patience, running.apply(&world.agent, new, WITHIN));
        let (applied, asked) = match operated {
            true => tokio::join!(applied, operate(&world, &mut dice, &ids)),
            false => (applied.await, Vec::new()),
        };
        let kept = |step: &Step| *step == Step::Kept;
        tally.kept += plan.steps.values().filter(|step| kept(step)).count();
        tally.came_back += back
            .iter()
            .filter(|name| !running.loaded().is_kept(name))
            .count();
        tally.asked += asked.len();
        tally.dropped += usize::from(applied.is_err());
        if let Ok(applied) = &applied {
            let applied = applied.as_ref().expect("it runs");
            tally.revived += applied.revived.len();
        }
        let whole = applied.is_ok();
        if whole {
            tokio::time::sleep(SETTLED).await;
        }
        if settled {
            let asked: BTreeSet<_> = asked.iter().filter_map(|id| names.get(id)).collect();
            let quiet = |name: &Arc<str>, step: &Step| {
                matches!(step, Step::Untouched | Step::Kept | Step::InPlace)
                    && !asked.contains(name)
                    && !given_up.contains(name)
            };
            let quiet = plan.steps.iter().filter(|(name, step)| quiet(name, step));
            let quiet: BTreeSet<_> = quiet.filter_map(|(name, _)| before.get(name)).collect();
            let quiet: BTreeSet<_> = quiet.into_iter().map(|(_, aor)| aor).collect();
            let registrars = world.registrars();
            let loud = registrars.seen.iter().skip(from);
            let loud: Vec<_> = loud.filter(|seen| quiet.contains(&seen.aor)).collect();
            assert!(loud.is_empty(), "{what}: {loud:?} of what did not change");
        }
        settled = whole && asked.is_empty();
    }
    {
        let mut registrars = world.registrars();
        registrars.deaf = false;
        registrars.refused.clear();
    }
    let last = running.loaded().reload(&conf.file(), "pjsip.conf");
    running
        .apply(&world.agent, last, WITHIN)
        .await
        .expect("runs");
    tokio::time::sleep(SETTLED + secs(60)).await;

    if !operated {
        world.registrars().check_order(WITHIN, &what);
    }
    let names: BTreeSet<_> = running
        .loaded()
        .registrations()
        .map(|(name, _)| name)
        .collect();
    let ids: BTreeSet<_> = running.ids().map(|(name, _)| name).collect();
    assert_eq!(ids, names, "{what}");
    assert_eq!(world.agent.statuses().await.len(), names.len(), "{what}");
    for (name, registration) in running.loaded().registrations() {
        let id = running.id(name).expect("it runs");
        let runs = world.agent.registration(id).await.expect("it runs");
        assert_eq!(*runs, **registration, "{what}: {name}");
    }
    let mut off = BTreeSet::new();
    if operated {
        // The last word is the operator's, and a file that says the same does not take it back.
        for (name, id) in running.ids() {
            let ask = Ask::ALL[dice.index(4)];
            if !ask.ends_bound() {
                off.insert(Arc::clone(name));
            }
            let agent = world.agent.clone();
            tokio::spawn(async move {
                let _ = agent.resume(id).await;
                ask.of(&agent, id).await;
            });
        }
        tokio::time::sleep(SETTLED + secs(60)).await;
        let from = world.registrars().seen.len();
        let same = running.loaded().reload(&conf.file(), "pjsip.conf");
        running
            .apply(&world.agent, same, WITHIN)
            .await
            .expect("runs");
        tokio::time::sleep(secs(60)).await;
        assert_eq!(world.registrars().lines(from), [""; 0], "{what}");
    }
    tally.lost += world.registrars().lost().len();
    check_bindings(&world, &running, &conf, &off, &what);
}

/// Each section is bound once, as the last file says, but for those that are switched off; nothing else is bound, but
/// what a registrar did not want to hear of.
fn check_bindings(
    world: &World,
    running: &Running,
    conf: &Conf,
    off: &BTreeSet<Arc<str>>,
    what: &str,
) {
    let registrars = world.registrars();
    let lost = registrars.lost();
    let mut bindings = registrars.bindings();
    for (name, key) in addresses(running) {
        let bound = bindings.remove(&key).unwrap_or_default();
        let registration = &running
            .loaded()
            .registration(&name)
            .expect("there")
            .registration;
        let contact = registration
            .contact_user()
            .as_str()
            .unwrap_or_default()
            .to_owned();
        match (off.contains(&name), lost.contains(&key.1)) {
            (true, false) => assert_eq!(bound, [""; 0], "{what}: {name} is off"),
            (true, true) => {}
            (false, false) => assert_eq!(bound, [contact], "{what}: {name}"),
            (false, true) => assert!(bound.contains(&contact), "{what}: {name} in {bound:?}"),
        }
    }
    bindings.retain(|(_, aor), _| !lost.contains(aor));
    assert!(
        bindings.is_empty(),
        "{what}: nobody owns {bindings:?} in {conf:?}"
    );
}

/// Sixty of them, in which all that can happen does; how many commands there were.
async fn storms(commands: bool) -> usize {
    let mut tally = Tally::default();
    for seed in 1..=60 {
        storm(seed, commands, &mut tally).await;
    }
    let Tally {
        dropped,
        lost,
        revived,
        kept,
        came_back,
        asked,
    } = tally;
    let least = [dropped, lost, revived, kept, came_back].into_iter().min();
    assert!(least > Some(20), "{tally:?}");
    asked
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_reloads_leaves_what_the_last_file_says() {
    assert_eq!(storms(false).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_reloads_and_commands_leaves_what_the_last_of_each_says() {
    let asked = storms(true).await;
    assert!(asked > 300, "{asked} commands");
}

#[tokio::test(start_paused = true)]
async fn a_reload_under_way_does_not_hold_up_the_end() {
    let mut dice = Dice::new(5);
    for seed in 1..=20 {
        let world = World::new(seed, LATEST).await;
        let mut conf = Conf::default();
        (0..TRUNKS).for_each(|_| conf.add());
        let mut running = Running::new();
        let first = Loaded::default().reload(&conf.file(), "pjsip.conf");
        running
            .apply(&world.agent, first, WITHIN)
            .await
            .expect("runs");
        tokio::time::sleep(SETTLED).await;
        (0..4).for_each(|_| conf.edit(&mut dice));
        let new = running.loaded().reload(&conf.file(), "pjsip.conf");
        let start = now();
        let end = async {
            tokio::time::sleep(Duration::from_millis(dice.below(4000))).await;
            world.agent.shutdown(secs(33)).await
        };
        // Either it was through, or it is told that the agent has ended.
        let (_, _) = tokio::join!(running.apply(&world.agent, new, WITHIN), end);
        assert!(start.elapsed() < secs(35), "seed {seed}");
        let bindings = world.registrars().bindings();
        assert!(bindings.is_empty(), "seed {seed}: {bindings:?}");
    }
}
