//! Random lives of registrations with several flows at a registrar that keeps bindings as RFC 3261 §10.3 and RFC 5626 §6
//! say: what it holds is what the status says.

mod crowd;
mod registrar;
mod watch;

use registrar::{Registrar, edge};
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use watch::{Stops, Story, TIMER_F, Wire};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const URN: &str = "urn:uuid:00000000-0000-1000-8000-000a95a0e128";
// ---- the world

#[derive(Debug, Clone, Copy)]
struct Kind {
    outbound: bool,
    asks: bool,
    echoes: bool,
    tcp: bool,
    /// How many edges put no `ob` into Path
    plain_edges: u8,
    /// Whether edges die, answers are lost, and the flows fail
    faults: bool,
    fallback: bool,
    /// Whether Contact, instance and credentials change, on either side, edges answer 430, and ceilings come and go
    changes: bool,
    /// Whether a provider is asked for the password, which is slow, silent, or finds another one than the registrar has
    provides: bool,
}

/// What a configuration may say otherwise
#[derive(Debug, Clone, Copy)]
struct Shape {
    contact_user: &'static str,
    urn: &'static str,
    /// Whose credentials it has
    name: &'static str,
}

const SHAPE: Shape = Shape {
    contact_user: "alice",
    urn: URN,
    name: "alice",
};

/// Those that a life changes between
const OTHER: Shape = Shape {
    contact_user: "a.smith",
    urn: "urn:uuid:00000000-0000-1000-8000-000a95a0e129",
    name: "mallory",
};

/// Those that a registrar has, and a provider finds
const SECRETS: [&str; 2] = ["secret", "changed"];

fn account(kind: Kind, flows: u8, agent: &str, shape: Shape) -> Registration {
    let transport = if kind.tcp { "tcp" } else { "udp" };
    let mut policy = Policy::persistent();
    policy.retry.jitter = 0.0;
    // They are most of the work, and are always answered.
    policy.keep_alive.udp_interval = secs(240)..=secs(290);
    policy.keep_alive.stream = Some(secs(950)..=secs(1200));
    let mut builder = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .contact_user(shape.contact_user)
        .instance(InstanceId::parse(shape.urn).expect("a urn"))
        .outbound(true)
        .outbound_proxy(format!("sip:192.0.2.11;lr;transport={transport}"))
        .outbound_auth(match kind.provides {
            true => Credentials::provided(shape.name),
            false => Credentials::password(shape.name, "secret"),
        })
        .max_random_initial_delay(Duration::ZERO)
        .user_agent(agent)
        .policy(policy);
    for flow in 1..flows {
        builder = builder.further_flow(format!(
            "sip:192.0.2.{};lr;transport={transport}",
            11 + flow
        ));
    }
    if kind.fallback && flows == 1 {
        builder = builder.fallback_proxy(format!("sip:192.0.2.19;lr;transport={transport}"));
    }
    builder.build().expect("a good configuration")
}

struct World {
    sim: Sim,
    registrar: Registrar,
    kind: Kind,
    shape: Shape,
    random: Entropy,
    dead: HashSet<u8>,
    open: Vec<SentRequest>,
    wire: Wire,
    told: Story,
    stops: Stops,
    /// Questions for the password that the provider has not answered
    asked: Vec<(RegistrationId, OpId)>,
    /// Whether it does not answer now
    stalled: bool,
    path: Vec<String>,
    /// Whether answers are lost
    losing: bool,
    emptied: bool,
    /// Until when the registrar may hold what it did not remove
    doubt: Duration,
    /// … or has removed, as nobody knows
    unheard: Duration,
    /// When a command came last
    touched: Duration,
}

impl World {
    fn new(seed: u64, kind: Kind) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut random = Entropy::from_seed(bytes);
        let mut sim = Sim::seeded(bytes, []);
        sim.answer_keep_alives(Some(([192, 0, 2, 1], 5060).into()));
        let mut registrar = Registrar {
            outbound: kind.outbound,
            asks: kind.asks,
            echoes: kind.echoes,
            without_ob: (0..kind.plain_edges).map(|nth| 11 + nth).collect(),
            ..Registrar::default()
        };
        registrar.foreign();
        if kind.provides {
            registrar.secret = SECRETS[0];
            sim.provide(Some(Secret::password(SECRETS[0])));
        }
        let flows = 1 + random.below(4) as u8;
        sim.add(account(kind, flows, "a", SHAPE));
        Self {
            sim,
            registrar,
            kind,
            shape: SHAPE,
            random,
            dead: HashSet::new(),
            open: Vec::new(),
            wire: Wire {
                falls_back: kind.fallback,
                ..Wire::default()
            },
            told: Story::default(),
            stops: Stops::default(),
            asked: Vec::new(),
            stalled: false,
            path: vec![format!("{kind:?} {seed} {flows} flows")],
            losing: kind.faults,
            emptied: false,
            doubt: Duration::ZERO,
            unheard: Duration::ZERO,
            touched: Duration::ZERO,
        }
    }

    fn say(&mut self, what: String) {
        let at = self.sim.elapsed().as_secs_f32();
        self.path.push(format!("{at:.1} {what}"));
    }

    fn command(&mut self, input: Input<'_>) {
        let id = self.sim.id();
        self.say(format!("{input:?}"));
        self.sim.with(|pool, cx| pool.handle(cx, id, input));
    }

    /// Takes over what went out and what was told.
    fn look(&mut self) {
        let closed = self.sim.closed();
        self.wire.closed(&closed);
        for request in self.sim.all_sent() {
            if request.method() != "REGISTER" {
                continue;
            }
            let sent = self.wire.sent(self.sim.elapsed(), &request);
            let again = *sent.as_ref().unwrap_or(&false);
            let line = format!(
                "> edge {} flow {:?} {:?} {:?} contact {:?} expires {:?}{}{}",
                edge(&request),
                request.flow(),
                request.cseq().map(|(n, _)| n),
                request
                    .header("Call-ID")
                    .map(|id| id[..6.min(id.len())].to_owned()),
                request.headers("Contact").collect::<Vec<_>>(),
                request.header("Expires"),
                request
                    .text_of("Authorization")
                    .get(..24)
                    .unwrap_or_default(),
                if again { " again" } else { "" },
            );
            self.say(line);
            self.holds(sent.map(drop));
            self.open.push(request);
        }
        let asked = self.sim.asked().into_iter().filter(|_| self.stalled);
        self.asked.extend(asked.map(|(id, op, _)| (id, op)));
        for (_, event) in self.sim.all_events() {
            self.say(format!("! {event}"));
            // It lives until it expires then, which the event says.
            match removal(&event) {
                Some(Removal::Refused(_)) => self.doubt = self.sim.elapsed() + secs(3700),
                Some(Removal::Unanswered) => self.unheard = self.sim.elapsed() + secs(3700),
                _ => {}
            }
            let fits = self.told.told(&event);
            self.holds(fits);
        }
        for removal in self.sim.removals() {
            self.say(format!("done {removal}"));
            self.wire.stopped();
            let fits = self.stops.done();
            self.holds(fits);
        }
        let fits = self.stops.check(self.sim.elapsed());
        self.holds(fits);
    }

    fn holds<E: std::fmt::Display>(&self, fits: Result<(), E>) {
        if let Err(why) = fits {
            panic!("{why}: {}", self.story());
        }
    }

    fn story(&self) -> String {
        let flows = self.sim.pool().flow_statuses(self.sim.id());
        let tail = self.path.len().saturating_sub(70);
        format!(
            "{}\n{}\nregistrar {:#?}\nstatus {:?}",
            self.path[0],
            self.path[tail.max(1)..].join("\n"),
            self.registrar.bindings,
            flows
                .iter()
                .map(|(n, s)| (*n, s.lease.is_some(), s.is_reachable(), s.activity))
                .collect::<Vec<_>>(),
        )
    }

    /// Answers one request, or loses it.
    fn serve(&mut self, nth: usize) {
        let request = self.open.remove(nth);
        let edge = edge(&request);
        if self.dead.contains(&edge) {
            return;
        }
        let reply = match self.kind.changes && self.losing && self.random.below(30) == 0 {
            // The edge has no flow to this device any more (RFC 5626 §5.3.1).
            true => Reply::status(430),
            false => self.registrar.serve(self.sim.elapsed(), &request),
        };
        if std::mem::take(&mut self.registrar.overtaken) {
            self.doubt = self.sim.elapsed() + secs(3700);
        }
        if self.losing && self.random.below(12) == 0 {
            return self.say("the answer is lost".to_owned());
        }
        let line = format!("< {:?} {}", request.cseq().map(|(n, _)| n), {
            let text = reply.to(&request);
            String::from_utf8_lossy(&text)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        self.say(line);
        self.wire.answered(&request);
        self.sim.reply(&request, reply);
    }

    fn serve_all(&mut self) {
        loop {
            self.look();
            if self.open.is_empty() {
                return;
            }
            self.serve(0);
        }
    }

    fn step(&mut self) {
        if self.kind.changes && self.random.below(6) == 0 {
            self.change();
            return self.look();
        }
        if self.kind.provides && self.random.below(6) == 0 {
            self.provide();
            return self.look();
        }
        let id = self.sim.id();
        let step = self.random.below(34);
        if step < 17 {
            self.touched = self.sim.elapsed();
        }
        match step {
            0 => self.command(Input::Refresh),
            1 => {
                self.told.removes();
                self.command(Input::Reregister);
            }
            2 => self.command(Input::Query),
            3 => self.command(Input::Reconcile),
            4 => {
                self.emptied = true;
                self.told.removes();
                self.command(Input::RemoveAll);
            }
            5 => {
                let until = Some(self.sim.now() + secs(self.random.below(4000)));
                let unregister = self.random.below(2) == 0;
                if unregister {
                    self.told.removes();
                }
                self.command(Input::Pause { until, unregister });
            }
            6 | 7 => self.command(Input::Resume),
            8 => {
                let within = secs(5 + self.random.below(40));
                self.told.removes();
                self.stops.asked(self.sim.elapsed() + within);
                self.wire.stops(self.sim.elapsed(), within);
                self.command(Input::Stop(within));
            }
            9 | 10 => {
                let flows = 1 + self.random.below(4) as u8;
                let agent = if self.random.below(2) == 0 { "a" } else { "b" };
                self.reconfigure(flows, agent);
            }
            11 => {
                self.say("network changed".to_owned());
                self.wire.forgotten();
                self.sim.with(|pool, cx| pool.network_changed(cx));
            }
            12 => {
                let by = secs(self.random.below(5000));
                self.say(format!("clock jump {by:?}"));
                // The registrar's clock goes on as well, and what was under way is lost.
                if by > TIMER_F {
                    self.wire.forgotten();
                }
                self.open.clear();
                for binding in &mut self.registrar.bindings {
                    binding.until = binding.until.saturating_sub(by);
                    if binding.call_id == "foreign" {
                        binding.until = Duration::MAX;
                    }
                }
                self.sim.with(|pool, cx| pool.clock_jump(cx, by));
            }
            13 if self.kind.faults => {
                let edge = 11 + self.random.below(4) as u8;
                self.say(format!("edge {edge} dies"));
                self.dead.insert(edge);
                let gone: Vec<_> = self.sim.pool().flows_of(id);
                if self.kind.tcp {
                    for flow in gone {
                        let statuses = self.sim.pool().flow_statuses(id);
                        let there = statuses.iter().any(|(n, status)| {
                            10 + n == edge
                                && status.lease.as_ref().is_some_and(|l| l.flow == Some(flow))
                        });
                        if there {
                            self.fail(flow);
                        }
                    }
                }
            }
            14 | 15 if self.kind.faults => {
                let edge = 11 + self.random.below(4) as u8;
                self.say(format!("edge {edge} is there"));
                self.dead.remove(&edge);
            }
            16 if self.kind.faults && self.kind.outbound => {
                let flows = self.sim.pool().flows_of(id);
                if let Some(flow) = flows.first().copied() {
                    self.say(format!("{flow:?} fails"));
                    self.fail(flow);
                }
            }
            17..=20 => {
                let by = [0, 1, 30, 300, 3600][self.random.below(5) as usize];
                let by = Duration::from_millis(by * (1 + self.random.below(1000)));
                self.run(by);
            }
            21..=24 if !self.open.is_empty() => {
                let nth = self.random.below(self.open.len() as u64) as usize;
                self.serve(nth);
            }
            _ => {
                let by = Duration::from_millis(self.random.below(200));
                self.run(by);
            }
        }
        self.look();
    }

    /// What only some lives know.
    fn change(&mut self) {
        self.touched = self.sim.elapsed();
        let other = self.random.below(2) == 0;
        let of = if other { OTHER } else { SHAPE };
        match self.random.below(6) {
            0 => {
                self.say(format!("the registrar knows {}", of.name));
                self.registrar.knows = of.name;
                return;
            }
            1 => return self.command(Input::RetryCredentials),
            2 => self.shape.contact_user = of.contact_user,
            3 => self.shape.urn = of.urn,
            4 => self.shape.name = of.name,
            _ => {
                let most = NonZeroU32::new(self.random.below(3) as u32);
                self.say(format!("at most {most:?} a second"));
                return self.sim.with(|pool, _| pool.set_registers_a_second(most));
            }
        }
        let flows = 1 + self.random.below(4) as u8;
        self.reconfigure(flows, "a");
    }

    /// What only those lives know whose provider is asked.
    fn provide(&mut self) {
        self.touched = self.sim.elapsed();
        let secret = SECRETS[self.random.below(2) as usize];
        match self.random.below(6) {
            0 | 1 => {
                self.stalled = self.random.below(2) == 0;
                self.say(format!("the provider is silent: {}", self.stalled));
                self.sim.stall_provider(self.stalled);
            }
            2 => {
                self.say(format!("the provider finds {secret}"));
                self.sim.provide(Some(Secret::password(secret)));
            }
            3 => {
                self.say(format!("the registrar has {secret}"));
                self.registrar.secret = secret;
            }
            4 => self.command(Input::RetryCredentials),
            _ if self.asked.is_empty() => {}
            _ => {
                // In time or not, and not always with something.
                let nth = self.random.below(self.asked.len() as u64) as usize;
                let (id, op) = self.asked.remove(nth);
                let found = self.random.below(4) > 0;
                self.say(format!("the provider answers late: {found} {secret}"));
                let secret = found.then(|| Secret::password(secret));
                self.sim.tell(id, op, secret);
            }
        }
    }

    fn reconfigure(&mut self, flows: u8, agent: &str) {
        self.say(format!("reconfigure to {flows} {agent} {:?}", self.shape));
        self.told.removes();
        let id = self.sim.id();
        let to = Arc::new(account(self.kind, flows, agent, self.shape));
        self.sim.with(|pool, cx| pool.reconfigure(cx, id, to));
    }

    fn fail(&mut self, flow: FlowId) {
        self.look();
        self.wire.closed(&[flow]);
        self.sim.fail_flow(flow, FlowError::Reset);
    }

    /// Time goes by, and the registrar answers.
    fn run(&mut self, by: Duration) {
        let end = self.sim.elapsed() + by;
        loop {
            self.serve_all();
            self.check();
            let left = end.saturating_sub(self.sim.elapsed());
            if left.is_zero() {
                return;
            }
            let step = self.sim.deadline().unwrap_or(left).min(left);
            self.sim.advance(step.max(Duration::from_millis(1)));
        }
    }

    /// The same, while nothing goes wrong.
    fn quiet(&mut self, by: Duration) {
        self.losing = false;
        self.run(by);
    }

    fn check(&mut self) {
        let id = self.sim.id();
        let status = self.sim.pool().status(id).expect("it is there");
        let flows = self.sim.pool().flow_statuses(id);
        for (_, flow) in &flows {
            if !matches!(flow.activity, Activity::Idle | Activity::Paused) {
                assert!(self.sim.deadline().is_some(), "wedged: {}", self.story());
            }
        }
        let same = self
            .told
            .look(status.is_registered(), self.sim.pool().is_busy());
        // A stop is told at its end.
        let same = same || self.stops.under_way() && self.told.told;
        // What could not be removed by an edge that is dead is no way to be reached, but it is there until it ends (D18).
        let same = same || !self.told.told && !status.is_reachable();
        assert!(
            same,
            "told {} but it is {}: {}",
            self.told.told,
            status.is_registered(),
            self.story()
        );
        assert!(
            self.emptied || self.registrar.has_foreign(),
            "a foreign binding is gone: {}",
            self.story()
        );
        let rests = self.sim.elapsed() > self.touched + secs(120);
        if !self.kind.faults && rests && !self.sim.pool().is_busy() {
            self.agree();
        }
    }

    /// What the registrar holds is what the status says, but for what it would not remove.
    fn agree(&mut self) {
        let now = self.sim.elapsed();
        let flows = self.sim.pool().flow_statuses(self.sim.id());
        let want = flows.iter().filter(|(_, s)| s.is_registered()).count();
        let held = self.registrar.ours(now).len();
        // Nothing is sent in a pause, so what was left unanswered before it stays in doubt until it ends (D20).
        let paused = flows.iter().any(|(_, s)| s.activity == Activity::Paused);
        let fits = held == want || held > want && (paused || now < self.doubt);
        // A removal that nobody answered may have been carried out all the same.
        let fits = fits || now < self.unheard;
        assert!(fits, "{held} held, {want} by the status: {}", self.story());
    }
}

/// What became of a binding that was to be removed (D21)
fn removal(event: &Event) -> Option<&Removal> {
    match event {
        Event::OfFlow { event, .. } => removal(event),
        Event::Unregistered(removal) => Some(removal),
        _ => None,
    }
}

fn life(seed: u64, kind: Kind) {
    let mut world = World::new(seed, kind);
    for _ in 0..150 {
        world.step();
    }
    // All is well again, and what is left over has ended.
    world.say("well again".to_owned());
    world.dead.clear();
    let id = world.sim.id();
    if kind.changes {
        world.registrar.knows = world.shape.name;
        world.sim.with(|pool, _| pool.set_registers_a_second(None));
    }
    if kind.provides {
        world.registrar.secret = SECRETS[0];
        world.sim.provide(Some(Secret::password(SECRETS[0])));
        world.sim.stall_provider(false);
        world.stalled = false;
    }
    world.quiet(secs(200));
    world.sim.with(|pool, cx| pool.retry_credentials(cx, id));
    world.command(Input::Resume);
    world.command(Input::Refresh);
    if kind.provides {
        // What a provider found once is kept until it is refused, and that ends a registration (D6).
        world.quiet(secs(200));
        world.command(Input::RetryCredentials);
    }
    world.quiet(secs(2 * 3600));
    let flows = world.sim.pool().flow_statuses(id);
    assert!(world.sim.status().is_reachable(), "{}", world.story());
    if kind.outbound && kind.plain_edges == 0 {
        let up = flows.iter().all(|(_, status)| status.is_reachable());
        assert!(up, "a flow is not up: {}", world.story());
    }
    world.agree();

    world.say("remove".to_owned());
    let dones = world.stops.dones;
    world.told.removes();
    world.stops.asked(world.sim.elapsed() + secs(35));
    world.sim.remove(id, secs(35));
    world.serve_all();
    for _ in 0..80 {
        world.sim.advance(secs(1));
        world.serve_all();
    }
    assert_eq!(world.stops.dones, dones + 1, "{}", world.story());
    let left = world.registrar.ours(world.sim.elapsed()).len();
    assert_eq!(left, 0, "left behind: {}", world.story());
    assert!(world.sim.pool().is_empty(), "{}", world.story());
    assert_eq!(world.sim.deadline(), None, "{}", world.story());
    assert_eq!(world.sim.pool().held(), 0, "{}", world.story());
}

/// By hand: `LIVES=0..1000 cargo test --all-features --test it -- --ignored --nocapture more_lives`
#[test]
#[ignore = "a search, as long as one likes"]
fn more_lives() {
    let mut failed = 0;
    for kind in kinds() {
        for seed in range("0..10") {
            failed += u32::from(std::panic::catch_unwind(|| life(seed, kind)).is_err());
        }
    }
    assert_eq!(failed, 0);
}

fn range(otherwise: &str) -> std::ops::Range<u64> {
    let range = std::env::var("LIVES").unwrap_or_else(|_| otherwise.to_owned());
    let (from, to) = range.split_once("..").expect("a range");
    from.parse().expect("from")..to.parse().expect("to")
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for tcp in [false, true] {
        for bit in [false, true] {
            kinds.push(Kind {
                tcp,
                asks: bit,
                ..CALM
            });
            kinds.push(Kind {
                outbound: false,
                tcp,
                echoes: bit,
                ..CALM
            });
            for fallback in [false, true] {
                kinds.push(Kind {
                    outbound: bit,
                    tcp,
                    fallback,
                    faults: true,
                    ..CALM
                });
            }
        }
        for plain_edges in [1, 2, 4] {
            kinds.push(Kind {
                tcp,
                plain_edges,
                ..CALM
            });
        }
    }
    for tcp in [false, true] {
        for faults in [false, true] {
            kinds.push(Kind {
                tcp,
                faults,
                asks: true,
                provides: true,
                ..CALM
            });
            kinds.push(Kind {
                tcp,
                faults,
                asks: true,
                changes: true,
                ..CALM
            });
            kinds.push(Kind {
                outbound: false,
                tcp,
                faults,
                asks: true,
                changes: true,
                ..CALM
            });
        }
    }
    kinds
}

/// Those in which something was found that is seldom
const FOUND: [u64; 9] = [1002, 1014, 1042, 1055, 1091, 1121, 1138, 1218, 1247];

fn lives(kind: Kind, count: u64) {
    for seed in (0..count).chain(FOUND) {
        life(seed, kind);
    }
}

const CALM: Kind = Kind {
    outbound: true,
    asks: false,
    echoes: true,
    tcp: false,
    plain_edges: 0,
    faults: false,
    fallback: false,
    changes: false,
    provides: false,
};

#[test]
fn a_registrar_that_does_outbound_holds_what_the_status_says() {
    for tcp in [false, true] {
        for asks in [false, true] {
            lives(Kind { tcp, asks, ..CALM }, 8);
        }
    }
}

#[test]
fn a_registrar_that_knows_contacts_only_holds_what_the_status_says() {
    for tcp in [false, true] {
        for echoes in [false, true] {
            let kind = Kind {
                outbound: false,
                tcp,
                echoes,
                ..CALM
            };
            lives(kind, 8);
        }
    }
}

#[test]
fn edges_that_are_none_leave_the_others_bound() {
    for tcp in [false, true] {
        for plain_edges in [1, 2, 4] {
            let kind = Kind {
                tcp,
                plain_edges,
                ..CALM
            };
            lives(kind, 6);
        }
    }
}

#[test]
fn what_changes_on_either_side_leaves_nothing_behind() {
    for outbound in [false, true] {
        for tcp in [false, true] {
            for faults in [false, true] {
                let kind = Kind {
                    outbound,
                    tcp,
                    faults,
                    asks: true,
                    changes: true,
                    ..CALM
                };
                lives(kind, 4);
            }
        }
    }
}

#[test]
fn a_provider_that_is_slow_silent_or_wrong_leaves_nobody_behind() {
    for tcp in [false, true] {
        for faults in [false, true] {
            let kind = Kind {
                tcp,
                faults,
                asks: true,
                provides: true,
                ..CALM
            };
            lives(kind, 2);
        }
    }
}

#[test]
fn edges_that_die_and_answers_that_are_lost_leave_nothing_behind() {
    for outbound in [false, true] {
        for tcp in [false, true] {
            for fallback in [false, true] {
                let kind = Kind {
                    outbound,
                    tcp,
                    fallback,
                    faults: true,
                    ..CALM
                };
                lives(kind, 6);
            }
        }
    }
}
