//! D16: a ceiling of REGISTERs a second, for the agent and for a registration.

use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn account(number: usize) -> RegistrationBuilder {
    Registration::builder("sip:192.0.2.9", format!("sip:u{number}@example.com"))
        .outbound_auth(Credentials::password(format!("u{number}"), "secret"))
        .contact_user(format!("u{number}"))
        .max_random_initial_delay(Duration::ZERO)
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

/// A registrar that challenges whoever brings no credentials, and answers after a while; what it saw when.
struct World {
    sim: Sim,
    /// How long an answer takes; none: never
    after: Option<Duration>,
    granted: u32,
    answers: VecDeque<(Duration, SentRequest)>,
    sent: Vec<Duration>,
    events: Vec<(RegistrationId, Event)>,
}

impl World {
    fn new(a_second: u32) -> Self {
        let mut sim = Sim::many([]);
        sim.with(|pool, _| pool.set_registers_a_second(NonZeroU32::new(a_second)));
        Self {
            sim,
            after: Some(millis(30)),
            granted: 600,
            answers: VecDeque::new(),
            sent: Vec::new(),
            events: Vec::new(),
        }
    }

    fn add(&mut self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.sim.add(built(account(number)));
        }
    }

    fn run(&mut self, until: Duration) {
        loop {
            self.look();
            let now = self.sim.elapsed();
            let due = self.sim.deadline().map(|after| now + after);
            let answer = self.answers.front().map(|(at, _)| *at);
            let next = due.into_iter().chain(answer).min();
            let Some(next) = next.filter(|at| *at <= until) else {
                break;
            };
            self.sim.advance_to(next);
            let answered = self.answers.partition_point(|(at, _)| *at <= next);
            for (_, request) in self.answers.drain(..answered).collect::<Vec<_>>() {
                let removes = request.header("Expires").as_deref() == Some("0");
                let reply = match request.header("Authorization") {
                    Some(_) if removes => Reply::status(200),
                    Some(_) => Reply::granted(self.granted),
                    None => Reply::status(401).header(
                        "WWW-Authenticate",
                        "Digest realm=\"example.com\", nonce=\"n\", qop=\"auth\"",
                    ),
                };
                self.sim.reply(&request, reply);
                self.look();
            }
        }
        self.sim.advance_to(until);
        self.look();
    }

    fn look(&mut self) {
        let now = self.sim.elapsed();
        for request in self.sim.all_sent() {
            assert_eq!(request.method(), "REGISTER");
            self.sent.push(now);
            if let Some(after) = self.after {
                // A slow one answers what has come meanwhile together.
                let slow = after.as_millis().max(1);
                let at = match after > millis(100) {
                    true => millis(((now.as_millis() / slow + 1) * slow) as u64),
                    false => now + after,
                };
                self.answers.push_back((at, request));
            }
        }
        self.events.extend(self.sim.all_events());
    }

    /// The most that went out in any second.
    fn most(&self) -> usize {
        let within = |(at, first): (usize, &Duration)| {
            let later = &self.sent[at..];
            later.partition_point(|sent| *sent < *first + secs(1))
        };
        self.sent.iter().enumerate().map(within).max().unwrap_or(0)
    }

    fn registered(&self) -> usize {
        let ids = self.sim.ids().iter();
        ids.filter(|id| {
            let status = self.sim.pool().status(**id);
            status.is_some_and(|status| status.is_registered())
        })
        .count()
    }

    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events
            .iter()
            .filter(|(_, event)| wanted(event))
            .count()
    }
}

#[test]
fn a_retransmission_that_took_its_turn_late_counts_from_then_for_its_registration() {
    let mut policy = Policy::default();
    policy.registers_a_second = NonZeroU32::new(1);
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.set_registers_a_second(NonZeroU32::new(3)));
    sim.add(built(account(0).policy(policy)));
    sim.advance(millis(0));
    let first = sim.sent();
    // Another one is sent again just before the first is to be.
    sim.advance(millis(100));
    sim.add(built(account(1)));
    let mut others = Vec::new();
    let again = loop {
        let next = sim.deadline().expect("something is planned");
        sim.advance(next);
        let sent = sim.all_sent();
        let call_id = first.text_of("Call-ID");
        if sent.iter().any(|one| one.text_of("Call-ID") == call_id) {
            break sim.elapsed();
        }
        others.extend(sent);
    };
    for other in &others {
        sim.reply(other, Reply::granted(600));
    }
    let challenge = "Digest realm=\"example.com\", nonce=\"n\", qop=\"auth\"";
    let reply = Reply::status(401).header("WWW-Authenticate", challenge);
    sim.reply(&first, reply);
    while !sim
        .all_sent()
        .iter()
        .any(|request| request.text_of("Authorization").contains("u0"))
    {
        let next = sim.deadline().expect("something is planned");
        sim.advance(next);
    }
    let after = sim.elapsed() - again;
    assert!(after >= secs(1), "{after:?} after {again:?}");
}

#[test]
fn a_burst_keeps_to_the_ceiling_and_all_are_registered() {
    // The answers may come at once, or late and together.
    for after in [Duration::ZERO, millis(30), millis(400)] {
        let mut world = World::new(50);
        world.after = Some(after);
        world.add(0..1000);
        world.run(secs(41) + after * 2);
        assert_eq!(
            (world.registered(), world.sent.len()),
            (1000, 2000),
            "{after:?}"
        );
        assert_eq!(world.most(), 50, "{after:?}");
        // Their refreshes come as close together as they did, with one request each.
        world.run(secs(1800));
        assert_eq!((world.registered(), world.most()), (1000, 50));
        let refreshed = world.count(|event| matches!(event, Event::Refreshed(_)));
        assert!(refreshed >= 3000, "{refreshed}");
        let odd = world.count(|event| !matches!(event, Event::Registered(_) | Event::Refreshed(_)));
        assert_eq!(odd, 0);
        assert_eq!(world.sim.flows_made(), 1);
    }
}

#[test]
fn those_who_waited_for_a_connection_keep_to_the_ceiling_too() {
    let mut world = World::new(20);
    world.sim.stall_opens(true);
    for number in 0..200 {
        let server = format!("sip:192.0.2.{};transport=tcp", 9 + number % 3);
        let builder = Registration::builder(server, format!("sip:u{number}@example.com"))
            .outbound_auth(Credentials::password(format!("u{number}"), "secret"))
            .max_random_initial_delay(Duration::ZERO);
        world.sim.add(built(builder));
    }
    world.run(secs(6));
    assert_eq!(world.sent.len(), 0);
    let flows = world.sim.opening();
    assert_eq!(flows.len(), 3);
    world.sim.stall_opens(false);
    for flow in flows {
        world.sim.opened(flow, Ok(()));
    }
    world.run(secs(27));
    assert_eq!((world.registered(), world.most()), (200, 20));
    assert_eq!((world.sim.flows_made(), world.sim.closed().len()), (3, 0));
}

#[test]
fn retransmissions_count_and_nobody_starves() {
    let mut world = World::new(10);
    world.after = None;
    world.add(0..100);
    world.run(secs(60));
    assert!(world.most() <= 10, "{}", world.most());
    assert!(world.sent.len() > 300, "{}", world.sent.len());
    world.after = Some(millis(20));
    world.run(secs(400));
    assert_eq!(world.registered(), 100);
    assert!(world.most() <= 10, "{}", world.most());
}

#[test]
fn a_ceiling_too_low_for_all_leases_ends_some_and_wedges_none() {
    let mut world = World::new(1);
    world.granted = 60;
    world.add(0..100);
    world.run(secs(7200));
    assert_eq!(world.most(), 1);
    assert!(
        world.sent.len() > 7000,
        "the ceiling is used: {}",
        world.sent.len()
    );
    let mut granted: HashMap<_, usize> = HashMap::new();
    let mut ended = HashSet::new();
    for (id, event) in &world.events {
        match event {
            Event::Registered(_) => *granted.entry(*id).or_default() += 1,
            Event::Expired { .. } => drop(ended.insert(*id)),
            _ => {}
        }
    }
    assert_eq!(granted.len(), 100, "each had its turn");
    assert!(!ended.is_empty());
    assert!(world.registered() >= 20, "{}", world.registered());
    world
        .sim
        .with(|pool, _| pool.set_registers_a_second(NonZeroU32::new(20)));
    world.run(secs(7300));
    assert_eq!(world.registered(), 100);
    world.sim.with(|pool, _| pool.set_registers_a_second(None));
    world.run(secs(7500));
    assert_eq!(world.registered(), 100);
}

#[test]
fn refreshes_go_before_beginners_but_not_for_ever() {
    let mut world = World::new(10);
    world.add(0..100);
    world.run(secs(30));
    assert_eq!(world.registered(), 100);
    // Ten minutes' worth of beginners: leases of ten minutes outlast them.
    world.add(100..3100);
    world.run(secs(1300));
    assert_eq!(world.most(), 10);
    let ended: HashSet<_> = world
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::Expired { .. }))
        .map(|(id, _)| *id)
        .collect();
    let first = &world.sim.ids()[..100];
    assert!(
        first.iter().all(|id| !ended.contains(id)),
        "{}",
        ended.len()
    );
    assert!(world.registered() > 1000, "{}", world.registered());
}

#[test]
fn removals_go_first_and_are_answered() {
    let mut world = World::new(10);
    world.add(0..20);
    world.run(secs(10));
    assert_eq!(world.registered(), 20);
    world.add(20..2000);
    world.run(secs(20));
    let ids: Vec<_> = world.sim.ids()[..20].to_vec();
    for id in ids {
        world.sim.remove(id, secs(35));
    }
    world.run(secs(27));
    assert_eq!(world.sim.removals(), vec![Removal::Removed; 20]);
    assert_eq!(world.most(), 10);
}

#[test]
fn a_dead_target_is_not_found_out_by_each_that_waits_for_his_turn() {
    let mut world = World::new(50);
    let both = [IpAddr::from([192, 0, 2, 9]), IpAddr::from([192, 0, 2, 10])];
    for (host, addresses) in [("dead.example.com", &both[..1]), ("example.com", &both[..])] {
        world.sim.resolve(host, Ok(addresses.to_vec()));
    }
    world.after = None;
    for number in 0..2000 {
        let builder = Registration::builder("sip:dead.example.com", format!("sip:u{number}@x"))
            .max_random_initial_delay(Duration::ZERO);
        world.sim.add(built(builder));
    }
    world.run(secs(45));
    let failed = world.count(|event| matches!(event, Event::Rejected { .. }));
    assert!(
        failed > 1900,
        "told with the first, not after a timer F each: {failed}"
    );
    assert!(world.most() <= 50, "{}", world.most());
}

#[test]
fn one_registration_may_have_a_ceiling_of_its_own() {
    let mut policy = Policy::default();
    policy.registers_a_second = NonZeroU32::new(1);
    let mut world = World::new(0);
    world.sim.add(built(account(0).policy(policy.clone())));
    world.sim.add(built(account(1)));
    world.run(Duration::ZERO);
    world.run(secs(3));
    // The other one has its answer at once: 0, 0.03; this one waits for a second.
    assert_eq!(
        world.sent,
        [Duration::ZERO, Duration::ZERO, millis(30), secs(1)]
    );
    assert_eq!(world.registered(), 2);

    // Retransmissions, and the answer to a challenge that comes just after one.
    let mut world = World::new(0);
    world.after = None;
    world.sim.add(built(account(0).policy(policy)));
    world.run(millis(1020));
    assert_eq!(world.sent, [Duration::ZERO, secs(1)]);
    world.after = Some(Duration::ZERO);
    world.run(millis(3000));
    world.run(secs(10));
    assert_eq!(world.registered(), 1);
    assert_eq!(world.most(), 1);
}

/// They hold the places in the window while they wait for the guard, so that those whom it lets through must not need
/// another one.
#[test]
fn many_with_one_account_wait_for_the_guard_and_for_their_turns() {
    let mut world = World::new(20);
    for number in 0..200 {
        let server = "sip:192.0.2.9";
        let builder = Registration::builder(server, format!("sip:u{number}@example.com"))
            .outbound_auth(Credentials::password("u", "secret"))
            .max_random_initial_delay(Duration::ZERO);
        world.sim.add(built(builder));
    }
    world.run(secs(21));
    assert_eq!((world.registered(), world.most()), (200, 20));
}

#[cfg(feature = "tokio")]
#[expect(
    clippy::disallowed_methods,
    reason = "the test looks at tokio's paused clock"
)]
#[tokio::test(start_paused = true)]
async fn the_agent_takes_its_ceiling_from_the_builder() {
    use sip_registration::testkit::MockTransport;
    let (transport, mut wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport)
        .registers_a_second(NonZeroU32::new(2))
        .build()
        .await
        .expect("an agent");
    for number in 0..6 {
        agent
            .add(built(account(number)))
            .await
            .expect("a registration");
    }
    let mut sent = Vec::new();
    for _ in 0..6 {
        let request = wire.next_request().await;
        sent.push(tokio::time::Instant::now());
        wire.reply(&request, Reply::granted(600)).await;
    }
    for (at, later) in sent.iter().zip(&sent[2..]) {
        assert!(*later - *at >= millis(990), "{sent:?}");
    }
    assert!(sent[5] - sent[0] < millis(2700), "{sent:?}");
}
