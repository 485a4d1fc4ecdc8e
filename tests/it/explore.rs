//! Every sequence of inputs up to a length, deduplicated by state, with the rules of docs/design.md checked at each step.

use sip_registration::testkit::Reply;
use sip_registration::*;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// What the machine is fed; `Serve` carries out what it last asked for
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Due,
    Reply(u16),
    Stale,
    Minimum,
    Serve,
    ServeBadly,
    FlowFails,
    Late,
    Stop,
    Refresh,
    Reregister,
    Query,
    Pause,
    Resume,
    NetworkChanged,
    ClockJump,
    Reconfigure,
    Replace,
    RetryCredentials,
}

/// What peers, time and the host's answers do, and the commands that matter most
const DEEP: [Act; 12] = [
    Act::Due,
    Act::Reply(200),
    Act::Reply(401),
    Act::Reply(503),
    Act::Minimum,
    Act::Serve,
    Act::ServeBadly,
    Act::FlowFails,
    Act::Stop,
    Act::Reregister,
    Act::Query,
    Act::Pause,
];

/// The rest
const MORE: [Act; 13] = [
    Act::Reply(100),
    Act::Reply(403),
    Act::Reply(407),
    Act::Reply(494),
    Act::Stale,
    Act::Late,
    Act::Refresh,
    Act::Resume,
    Act::NetworkChanged,
    Act::ClockJump,
    Act::Reconfigure,
    Act::Replace,
    Act::RetryCredentials,
];

/// What the machine waits for, as its host sees it
#[derive(Debug, Clone)]
enum Asked {
    Nothing,
    Locate(OpId),
    Open(OpId),
    Credentials(OpId),
    Guard(OpId),
}

#[derive(Debug, Clone)]
struct World {
    machine: Machine,
    now: Instant,
    asked: Asked,
    last: Option<Request>,
    /// The one before, for answers that come too late
    before: Option<Request>,
    flow: u64,
    nonces: u32,
    stopped: bool,
    path: Vec<Act>,
}

fn account(policy: &Policy, user_agent: &str) -> Arc<Registration> {
    Arc::new(
        Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
            .outbound_auth(Credentials::provided("alice"))
            .security_negotiation(SecurityNegotiation::Mediasec)
            .max_random_initial_delay(Duration::ZERO)
            .user_agent(user_agent)
            .policy(policy.clone())
            .build()
            .expect("a good configuration"),
    )
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], port))
}

impl World {
    fn feed(&mut self, input: Input<'_>) {
        let mut entropy = Entropy::from_seed([1; 32]);
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            wall: SystemTime::UNIX_EPOCH,
            entropy: &mut entropy,
            out: &mut out,
        };
        let mut transmitted = 0;
        self.machine.handle(&mut cx, input);
        for output in out {
            match output {
                Output::Locate { op, .. } => self.asked = Asked::Locate(op),
                Output::Open { op, .. } => self.asked = Asked::Open(op),
                Output::Credentials { op, .. } => self.asked = Asked::Credentials(op),
                Output::Guard { op, .. } => self.asked = Asked::Guard(op),
                Output::Transmit { message, .. } => {
                    transmitted += 1;
                    let request = Request::parse(message).expect("what we write can be read");
                    let new = self
                        .last
                        .as_ref()
                        .is_none_or(|last| last.bytes() != request.bytes());
                    if new {
                        self.before = self.last.take();
                    }
                    self.asked = Asked::Nothing;
                    self.last = Some(request);
                }
                Output::Done(_) => self.stopped = true,
                Output::Proved { .. } | Output::Cancel(_) | Output::Event(_) => {}
            }
        }
        assert!(transmitted <= 1, "two requests at once: {:?}", self.path);
    }

    fn act(&mut self, act: Act, policy: &Policy) {
        self.path.push(act);
        let target = |port| Target::new(Protocol::Udp, address(port));
        match act {
            Act::Due => {
                if let Some(at) = self.machine.deadline() {
                    self.now = self.now.max(at);
                }
                self.feed(Input::Timeout);
            }
            Act::Reply(_) | Act::Stale | Act::Minimum => {
                self.nonces += 1;
                let challenge = format!(
                    "Digest realm=\"r\", nonce=\"n{}\", qop=\"auth\"",
                    self.nonces
                );
                let reply = match act {
                    Act::Reply(200) => Reply::granted(120),
                    Act::Reply(407) => Reply::status(407).header("Proxy-Authenticate", &challenge),
                    Act::Reply(401) => Reply::status(401).header("WWW-Authenticate", &challenge),
                    Act::Stale => Reply::status(401)
                        .header("WWW-Authenticate", &format!("{challenge}, stale=true")),
                    Act::Minimum => Reply::status(423).header("Min-Expires", "7200"),
                    Act::Reply(code) => Reply::status(code),
                    _ => return,
                };
                let Some(request) = self.last.clone() else {
                    return;
                };
                let response = Response::parse(reply.to(&request)).expect("a response");
                self.feed(Input::Response(&response));
            }
            Act::Late => {
                let Some(request) = self.before.clone() else {
                    return;
                };
                let response =
                    Response::parse(Reply::granted(600).to(&request)).expect("a response");
                self.feed(Input::Response(&response));
            }
            Act::Serve => match std::mem::replace(&mut self.asked, Asked::Nothing) {
                Asked::Nothing => {}
                Asked::Locate(op) => {
                    let result = Ok(vec![target(5060), target(5070)]);
                    self.feed(Input::Located { op, result });
                }
                Asked::Open(op) => {
                    self.flow += 1;
                    let local = "192.0.2.1:5060".parse().expect("an address");
                    let info = Arc::new(FlowInfo::new(Protocol::Udp, local, address(5060)));
                    let result = Ok((FlowId::new(self.flow), info));
                    self.feed(Input::Opened { op, result });
                }
                Asked::Credentials(op) => {
                    let secret = Some(Secret::password("secret"));
                    self.feed(Input::Credentials { op, secret });
                }
                Asked::Guard(op) => self.feed(Input::Guarded { op, allowed: true }),
            },
            Act::ServeBadly => match std::mem::replace(&mut self.asked, Asked::Nothing) {
                Asked::Nothing => {}
                Asked::Locate(op) => {
                    let result = Err(ResolveError::Timeout);
                    self.feed(Input::Located { op, result });
                }
                Asked::Open(op) => {
                    let result = Err(FlowError::Refused);
                    self.feed(Input::Opened { op, result });
                }
                Asked::Credentials(op) => self.feed(Input::Credentials { op, secret: None }),
                Asked::Guard(op) => self.feed(Input::Guarded { op, allowed: false }),
            },
            Act::FlowFails => {
                if let Some(flow) = self.machine.flow() {
                    self.feed(Input::FlowFailed {
                        flow,
                        error: FlowError::Reset,
                        spread: Duration::from_secs(1),
                    });
                }
            }
            Act::Stop => self.feed(Input::Stop(Duration::from_secs(35))),
            Act::Refresh => self.feed(Input::Refresh),
            Act::Reregister => self.feed(Input::Reregister),
            Act::Query => self.feed(Input::Query),
            Act::Pause => self.feed(Input::Pause {
                until: None,
                unregister: true,
            }),
            Act::Resume => self.feed(Input::Resume),
            Act::NetworkChanged => self.feed(Input::NetworkChanged(Duration::from_secs(1))),
            Act::ClockJump => self.feed(Input::ClockJump(Duration::from_secs(60))),
            Act::Reconfigure => self.feed(Input::Reconfigure(account(policy, "other"))),
            Act::Replace => {
                let mut to = (*account(policy, "third")).clone();
                to = Registration::builder("sip:192.0.2.8", "sip:alice@example.com")
                    .outbound_auth(Credentials::provided("alice"))
                    .max_random_initial_delay(Duration::ZERO)
                    .policy(Arc::clone(to.policy()))
                    .build()
                    .expect("a good configuration");
                self.feed(Input::Reconfigure(Arc::new(to)));
            }
            Act::RetryCredentials => self.feed(Input::RetryCredentials),
        }
        self.check();
    }

    /// Rules 2 to 5 of the design
    fn check(&self) {
        let status = self.machine.status();
        let deadline = self.machine.deadline();
        let path = &self.path;
        // 2: lease and activity are independent: the lease is there until it ends, and never longer.
        if let Some(lease) = &status.lease {
            assert!(
                lease.expires_at > self.now,
                "a lease past its end: {path:?}"
            );
            assert!(
                deadline.is_some_and(|at| at <= lease.expires_at),
                "nobody notices the end of the lease: {path:?}"
            );
        }
        // 3: no state without a way out.
        match status.activity {
            Activity::Idle | Activity::Paused => {}
            _ => assert!(deadline.is_some(), "no deadline: {path:?}"),
        }
        if let Activity::Waiting { until } = status.activity {
            assert!(deadline.is_some_and(|at| at <= until), "{path:?}");
        }
        // An end that nobody was told of: neither a failure, a stop nor a removal.
        if status.activity == Activity::Idle && status.lease.is_none() {
            let told = status.last_failure.is_some() || self.stopped || path.contains(&Act::Stop);
            assert!(told, "silently dead: {path:?}");
        }
    }

    /// Nobody answers any more: the cycle ends in bounded time
    fn check_end(&self) {
        let path = &self.path;
        let mut world = self.clone();
        for _ in 0..400 {
            let Some(at) = world.machine.deadline() else {
                break;
            };
            if matches!(world.machine.status().activity, Activity::Waiting { .. }) {
                break;
            }
            assert!(
                at.saturating_duration_since(self.now) < Duration::from_secs(800),
                "a cycle without end: {path:?}"
            );
            world.now = world.now.max(at);
            world.feed(Input::Timeout);
        }
        assert!(
            matches!(
                world.machine.status().activity,
                Activity::Waiting { .. } | Activity::Idle | Activity::Paused
            ),
            "a cycle without end: {path:?}"
        );
    }

    /// The state without what only differs by time, chance or the count of operations
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let registration = self.machine.registration();
        registration.user_agent().hash(&mut hasher);
        std::mem::discriminant(&self.asked).hash(&mut hasher);
        self.before.is_some().hash(&mut hasher);
        let text = format!("{:?}", self.machine);
        // Behind the configuration; the texts of requests differ by CSeq and nonce.
        let mut rest = text.split_once("identity: ").map_or("", |(_, rest)| rest);
        let now = instant(&format!("{:?}", self.now)).map_or(0, |(at, _)| at);
        while let Some(at) = rest.find(['I', 'O', 'F', 'c', 'o', 'm', 'b']) {
            let (head, tail) = rest.split_at(at);
            head.hash(&mut hasher);
            rest = if let Some((at, tail)) = instant(tail) {
                (at - now).hash(&mut hasher);
                tail
            } else if let Some(tail) = ["OpId(", "FlowId(", "cseq: ", "ops: "]
                .iter()
                .find_map(|name| tail.strip_prefix(name))
            {
                tail.trim_start_matches(|c: char| c.is_ascii_digit())
            } else if let Some(tail) = tail.strip_prefix("message: b\"") {
                tail.split_once("\\r\\n\\r\\n\"")
                    .map_or("", |(_, tail)| tail)
            } else if let Some(tail) = tail.strip_prefix("branch: ") {
                tail.split_once(',').map_or("", |(_, tail)| tail)
            } else {
                tail[..1].hash(&mut hasher);
                &tail[1..]
            };
        }
        rest.hash(&mut hasher);
        hasher.finish()
    }
}

/// Nanoseconds of `Instant { tv_sec: 1, tv_nsec: 2 }`, and what follows it
fn instant(text: &str) -> Option<(i128, &str)> {
    let text = text.strip_prefix("Instant { tv_sec: ")?;
    let (seconds, text) = text.split_once(", tv_nsec: ")?;
    let (nanos, text) = text.split_once(" }")?;
    let (seconds, nanos): (i128, i128) = (seconds.parse().ok()?, nanos.parse().ok()?);
    Some((seconds * 1_000_000_000 + nanos, text))
}

fn explore(policy: &Policy, acts: &[Act], length: usize) -> (usize, usize) {
    #[expect(clippy::disallowed_methods, reason = "only differences matter")]
    let now = Instant::now();
    let mut entropy = Entropy::from_seed([2; 32]);
    let identity = Identity::default();
    let mut first = World {
        machine: Machine::new(account(policy, "first"), identity, &mut entropy),
        now,
        asked: Asked::Nothing,
        last: None,
        before: None,
        flow: 0,
        nonces: 0,
        stopped: false,
        path: Vec::new(),
    };
    first.feed(Input::Start);
    let mut seeds = vec![first.clone()];
    // From a lease as well as from the start: a REGISTER under way, a lease, a lease that is refreshed.
    for script in [
        &[Act::Serve, Act::Serve][..],
        &[
            Act::Serve,
            Act::Serve,
            Act::Reply(401),
            Act::Serve,
            Act::Serve,
        ],
        &[Act::Serve, Act::Serve, Act::Reply(200)],
        &[
            Act::Serve,
            Act::Serve,
            Act::Reply(200),
            Act::Due,
            Act::Serve,
            Act::Serve,
        ],
    ] {
        let mut world = first.clone();
        if world.machine.deadline().is_some()
            && matches!(world.machine.status().activity, Activity::Waiting { .. })
        {
            world.act(Act::Due, policy);
        }
        for act in script {
            world.act(*act, policy);
        }
        seeds.push(world);
    }
    let (mut seen, mut steps) = (HashSet::new(), 0);
    let mut level = Vec::new();
    for world in seeds {
        if seen.insert(world.key()) {
            level.push(world);
        }
    }
    for _ in 0..length {
        let mut next = Vec::new();
        for world in &level {
            for act in acts {
                steps += 1;
                let mut world = world.clone();
                world.act(*act, policy);
                if seen.insert(world.key()) {
                    world.check_end();
                    next.push(world);
                }
            }
        }
        level = next;
    }
    (seen.len(), steps)
}

#[test]
fn no_sequence_of_inputs_leads_to_a_state_without_a_way_out() {
    let all: Vec<_> = DEEP.into_iter().chain(MORE).collect();
    for (name, policy, acts, length) in [
        ("default", Policy::default(), &DEEP[..], 6),
        ("default", Policy::default(), &all, 3),
        ("asterisk", Policy::asterisk(), &all, 3),
    ] {
        let (states, steps) = explore(&policy, acts, length);
        let inputs = acts.len();
        println!("{name}: length {length}, {inputs} inputs: {steps} steps, {states} states");
        assert!(states > 1000, "{states}");
    }
}
