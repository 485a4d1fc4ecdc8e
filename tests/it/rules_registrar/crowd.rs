//! A crowd at two edges, of which one dies and comes back: window and ceilings hold at every moment, one REGISTER is
//! outstanding a flow, nobody wedges, and all are back within what DECISIONS gives (D12, D13, D16).

use super::registrar::{Registrar, edge};
use super::watch::Wire;
use super::{URN, secs};
use sip_registration::testkit::{SentRequest, Sim};
use sip_registration::*;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// Requests in flight to one target (D16)
const WINDOW: usize = 64;
/// An answer that is not there after this long may never come: others need not wait for it
const OVERDUE: Duration = Duration::from_secs(4);
/// A flow that could not be made waits no longer than this (RFC 5626 §4.5, D13)
const LONGEST_WAIT: Duration = Duration::from_secs(1800);
/// … then a target may be remembered as dead (D12)
const MEMORY: Duration = Duration::from_secs(600);
/// … and an attempt be under way (D3)
const ATTEMPT: Duration = Duration::from_secs(96);
/// The one that dies
const MORTAL: u8 = 11;

#[derive(Debug, Clone, Copy)]
struct Kind {
    count: usize,
    tcp: bool,
    /// What the second edge is for: another flow, or another choice
    flows: bool,
    /// Whether the registrar does outbound
    outbound: bool,
}

struct Crowd {
    sim: Sim,
    kind: Kind,
    random: Entropy,
    /// By user
    registrars: HashMap<String, Registrar>,
    wires: HashMap<String, Wire>,
    answers: VecDeque<(Duration, SentRequest)>,
    dead: bool,
    ceiling: Option<NonZeroU32>,
    /// Those of each one
    own: Option<NonZeroU32>,
    /// What went out in the last second
    lately: VecDeque<Duration>,
    /// The last request of each Call-ID
    in_flight: HashMap<String, Flight>,
    /// When each Call-ID sent something last
    last: HashMap<String, Duration>,
    story: String,
}

#[derive(Debug)]
struct Flight {
    /// When it, or the one whose challenge it answers, was sent: the place in the window is as old
    since: Duration,
    edge: u8,
    flow: FlowId,
    answered: bool,
}

fn account(kind: Kind, number: usize, own: Option<NonZeroU32>, agent: &str) -> Registration {
    let transport = if kind.tcp { "tcp" } else { "udp" };
    let edge = |last: u8| format!("sip:192.0.2.{last};lr;transport={transport}");
    let mut policy = Policy::persistent();
    policy.registers_a_second = own;
    // Always answered, and none of this.
    policy.keep_alive.udp_interval = secs(500)..=secs(600);
    policy.keep_alive.stream = Some(secs(500)..=secs(600));
    let name = format!("u{number}");
    let builder = Registration::builder("sip:192.0.2.9", format!("sip:{name}@example.com"))
        .contact_user(&*name)
        .outbound_proxy(edge(MORTAL))
        .outbound_auth(Credentials::password(&*name, "secret"))
        .max_random_initial_delay(secs(2))
        .user_agent(agent)
        .policy(policy);
    let builder = match kind.flows {
        true => builder
            .instance(InstanceId::parse(URN).expect("a urn"))
            .outbound(true)
            .further_flow(edge(MORTAL + 1)),
        false => builder.fallback_proxy(edge(MORTAL + 1)),
    };
    builder.build().expect("a good configuration")
}

fn user(request: &SentRequest) -> String {
    let to = request.text_of("To");
    let (_, name) = to.split_once("sip:").expect("a URI");
    name.split('@').next().unwrap_or_default().to_owned()
}

impl Crowd {
    fn new(seed: u64, kind: Kind) -> Self {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut random = Entropy::from_seed(bytes);
        let mut sim = Sim::seeded(bytes, []);
        sim.answer_keep_alives(Some(([192, 0, 2, 1], 5060).into()));
        let ceiling = NonZeroU32::new([0, 10, 40][random.below(3) as usize]);
        let own = NonZeroU32::new(random.below(2) as u32);
        let story = format!("{kind:?} seed {seed} ceilings {ceiling:?} {own:?}");
        sim.with(|pool, _| pool.set_registers_a_second(ceiling));
        for number in 0..kind.count {
            sim.add(account(kind, number, own, "a"));
        }
        Self {
            sim,
            kind,
            random,
            registrars: HashMap::new(),
            wires: HashMap::new(),
            answers: VecDeque::new(),
            dead: false,
            ceiling,
            own,
            lately: VecDeque::new(),
            in_flight: HashMap::new(),
            last: HashMap::new(),
            story,
        }
    }

    /// Takes in what went out.
    fn look(&mut self) {
        let now = self.sim.elapsed();
        let closed = self.sim.closed();
        self.left(&closed);
        for request in self.sim.all_sent() {
            let name = user(&request);
            let wire = self.wires.entry(name).or_insert_with(|| Wire {
                falls_back: !self.kind.flows,
                ..Wire::default()
            });
            let again = match wire.sent(now, &request) {
                Ok(again) => again,
                Err(why) => panic!("{why} at {now:?}: {}", self.story),
            };
            let call_id = request.text_of("Call-ID");
            self.keeps_ceilings(now, &call_id, again);
            if !again {
                let before = self.in_flight.get(&call_id);
                let proves = request.header("Authorization").is_some();
                let challenged = before.filter(|one| proves && one.answered);
                let flight = Flight {
                    since: challenged.map_or(now, |one| one.since),
                    edge: edge(&request),
                    flow: request.flow(),
                    answered: false,
                };
                self.in_flight.insert(call_id, flight);
                self.keeps_window(now, edge(&request));
            }
            let takes = Duration::from_millis(5 + self.random.below(300));
            let at = self
                .answers
                .partition_point(|(other, _)| *other <= now + takes);
            self.answers.insert(at, (now + takes, request));
        }
    }

    fn keeps_ceilings(&mut self, now: Duration, call_id: &str, again: bool) {
        if let Some(most) = self.ceiling {
            self.lately.retain(|at| now < *at + secs(1));
            self.lately.push_back(now);
            let sent = self.lately.len();
            assert!(
                sent <= most.get() as usize,
                "{sent} in a second at {now:?}: {}",
                self.story
            );
        }
        let before = self.last.insert(call_id.to_owned(), now);
        if let (Some(before), Some(most), false) = (before, self.own, again) {
            assert!(
                now >= before + secs(1) / most.get(),
                "{call_id} sent after {:?} at {now:?}: {}",
                now - before,
                self.story
            );
        }
    }

    fn keeps_window(&self, now: Duration, at: u8) {
        if self.kind.flows && !self.kind.outbound {
            // One flow that leaves for another gives up its REGISTER, and its place, for the un-REGISTER (D21).
            return;
        }
        let there = self.in_flight.values();
        let there =
            there.filter(|one| !one.answered && one.edge == at && now < one.since + OVERDUE);
        // One more where the target has been silent for a while: it may answer again.
        let many = there.count();
        assert!(
            many <= WINDOW + 1,
            "{many} in flight at {now:?}: {}",
            self.story
        );
    }

    /// Nothing on these flows is in flight any more.
    fn left(&mut self, flows: &[FlowId]) {
        if flows.is_empty() {
            return;
        }
        for wire in self.wires.values_mut() {
            wire.closed(flows);
        }
        self.in_flight.retain(|_, one| !flows.contains(&one.flow));
    }

    fn run(&mut self, by: Duration) {
        let until = self.sim.elapsed() + by;
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
            self.look();
            let answered = self.answers.partition_point(|(at, _)| *at <= next);
            for (_, request) in self.answers.drain(..answered).collect::<Vec<_>>() {
                self.serve(&request);
                self.look();
            }
        }
        self.sim.advance_to(until);
        self.look();
    }

    fn serve(&mut self, request: &SentRequest) {
        if self.dead && edge(request) == MORTAL {
            return;
        }
        let name = user(request);
        let outbound = self.kind.outbound;
        let registrar = self.registrars.entry(name.clone());
        let registrar = registrar.or_insert_with(|| Registrar {
            outbound,
            asks: true,
            echoes: true,
            ..Registrar::default()
        });
        let reply = registrar.serve(self.sim.elapsed(), request);
        if let Some(wire) = self.wires.get_mut(&name) {
            wire.answered(request);
        }
        let challenges = reply.to(request).starts_with(b"SIP/2.0 401");
        let call_id = request.text_of("Call-ID");
        match self.in_flight.get_mut(&call_id) {
            Some(one) if challenges => one.answered = true,
            _ => drop(self.in_flight.remove(&call_id)),
        }
        self.sim.reply(request, reply);
    }

    /// Who is not to be reached by a call, and who has a flow that is not up.
    fn lost(&self) -> (usize, usize) {
        let pool = self.sim.pool();
        let ids = self.sim.ids().iter();
        ids.fold((0, 0), |(lost, down), id| {
            let status = pool.status(*id);
            let reachable = status.is_some_and(|status| status.is_reachable());
            let flows = pool.flow_statuses(*id);
            let up = flows.iter().all(|(_, status)| status.is_reachable());
            (lost + usize::from(!reachable), down + usize::from(!up))
        })
    }

    fn all_back(&self, when: &str) {
        let (lost, down) = self.lost();
        assert_eq!(lost, 0, "not reachable {when}: {}", self.story);
        if self.kind.flows && self.kind.outbound {
            assert_eq!(down, 0, "a flow is down {when}: {}", self.story);
        }
    }

    fn dies(&mut self) {
        self.dead = true;
        if !self.kind.tcp || self.random.below(2) == 0 {
            return;
        }
        // The connections end with it.
        let ids = self.sim.ids().to_vec();
        let pool = self.sim.pool();
        let statuses = ids.iter().flat_map(|id| pool.flow_statuses(*id));
        let leases = statuses.filter_map(|(_, status)| status.lease);
        let gone = leases.filter(|lease| lease.target.address().ip().to_string() == "192.0.2.11");
        let mut gone: Vec<_> = gone.filter_map(|lease| lease.flow).collect();
        gone.sort_unstable();
        gone.dedup();
        for flow in gone {
            self.look();
            self.left(&[flow]);
            self.sim.fail_flow(flow, FlowError::Reset);
        }
    }

    /// People do this and that meanwhile.
    fn commands(&mut self) {
        let (kind, own) = (self.kind, self.own);
        for _ in 0..self.random.below(20) {
            let number = self.random.below(kind.count as u64) as usize;
            let id = self.sim.ids()[number];
            let input = match self.random.below(4) {
                0 => Input::Refresh,
                1 => Input::Query,
                2 => Input::Resume,
                _ => Input::Reconfigure(Arc::new(account(kind, number, own, "b"))),
            };
            self.sim.with(|pool, cx| pool.handle(cx, id, input));
            let by = Duration::from_millis(self.random.below(3000));
            self.run(by);
        }
    }
}

fn life(seed: u64, kind: Kind) {
    let mut crowd = Crowd::new(seed, kind);
    crowd.run(secs(120));
    crowd.all_back("at the start");
    crowd.dies();
    let outage = [20, 100, 400, 2500][crowd.random.below(4) as usize];
    crowd.run(secs(outage / 2));
    crowd.commands();
    crowd.run(secs(outage / 2));
    if kind.flows && kind.outbound {
        let (lost, _) = crowd.lost();
        assert_eq!(lost, 0, "the other flow holds: {}", crowd.story);
    }
    crowd.dead = false;
    crowd.run(LONGEST_WAIT + MEMORY + ATTEMPT);
    crowd.all_back("after the outage");
    assert_eq!(crowd.sim.pool().held(), 0, "{}", crowd.story);
    // All at once (D13): spread over 10 s, then as the ceilings have it.
    crowd.wires.values_mut().for_each(Wire::forgotten);
    crowd.in_flight.clear();
    crowd.sim.with(|pool, cx| pool.network_changed(cx));
    crowd.run(secs(120));
    crowd.all_back("on another network");
    let ids = crowd.sim.ids().to_vec();
    for id in ids {
        crowd.sim.remove(id, secs(120));
    }
    crowd.run(secs(121));
    assert!(crowd.sim.pool().is_empty(), "{}", crowd.story);
    assert_eq!(crowd.sim.deadline(), None, "{}", crowd.story);
    let now = crowd.sim.elapsed();
    let left: usize = crowd
        .registrars
        .values_mut()
        .map(|one| one.ours(now).len())
        .sum();
    assert_eq!(left, 0, "left behind: {}", crowd.story);
}

fn kinds(count: usize) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for tcp in [false, true] {
        for (flows, outbound) in [(true, true), (true, false), (false, false)] {
            kinds.push(Kind {
                count,
                tcp,
                flows,
                outbound,
            });
        }
    }
    kinds
}

#[test]
fn a_crowd_is_back_after_an_edge_was_dead() {
    for kind in kinds(50).into_iter().chain(kinds(200)) {
        life(0, kind);
    }
}

/// By hand: `LIVES=0..100 cargo test --all-features --test it -- --ignored --nocapture more_crowds`
#[test]
#[ignore = "a search, as long as one likes"]
fn more_crowds() {
    let mut failed = 0;
    for seed in super::range("0..2") {
        for kind in kinds(50).into_iter().chain(kinds(200)) {
            failed += u32::from(std::panic::catch_unwind(|| life(seed, kind)).is_err());
        }
    }
    assert_eq!(failed, 0);
}
