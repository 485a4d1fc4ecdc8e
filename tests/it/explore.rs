//! Every sequence of inputs up to a length, deduplicated by state, with the rules of docs/design.md checked at each step.

use sip_registration::testkit::Reply;
use sip_registration::*;
use std::collections::HashSet;
use std::fmt::Write as _;
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
    /// The same, but for a secret that is another one than before
    ServeOther,
    ServeBadly,
    /// The host keeps a request for a flow back
    Hold,
    FlowFails,
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

impl Act {
    /// Whether the application asks for something, so that what follows may follow at once
    const fn is_command(self) -> bool {
        match self {
            Self::Due
            | Self::Reply(_)
            | Self::Stale
            | Self::Minimum
            | Self::Serve
            | Self::ServeOther
            | Self::ServeBadly
            | Self::Hold
            | Self::FlowFails => false,
            Self::Stop
            | Self::Refresh
            | Self::Reregister
            | Self::Query
            | Self::Pause
            | Self::Resume
            | Self::NetworkChanged
            | Self::ClockJump
            | Self::Reconfigure
            | Self::Replace
            | Self::RetryCredentials => true,
        }
    }
}

/// What peers, time and the host's answers do, and the commands that matter most; an answer of the host that never comes
/// is `Due`
const DEEP: [Act; 14] = [
    Act::Due,
    Act::Reply(200),
    Act::Reply(401),
    Act::Reply(503),
    Act::Minimum,
    Act::Serve,
    Act::ServeOther,
    Act::ServeBadly,
    Act::Hold,
    Act::FlowFails,
    Act::Stop,
    Act::Reregister,
    Act::Query,
    Act::Pause,
];

/// The rest
const MORE: [Act; 12] = [
    Act::Reply(100),
    Act::Reply(403),
    Act::Reply(407),
    Act::Reply(494),
    Act::Stale,
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
    /// Until when `last` may still be answered; none where it was, or its flow has ended
    outstanding: Option<Instant>,
    /// When the last cycle started
    started: Option<Instant>,
    flow: u64,
    nonces: u32,
    secrets: u32,
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
    fn handle(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut entropy = Entropy::from_seed([1; 32]);
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            wall: SystemTime::UNIX_EPOCH,
            entropy: &mut entropy,
            out: &mut out,
        };
        self.machine.handle(&mut cx, input);
        out
    }

    fn feed(&mut self, input: Input<'_>) {
        let mut transmitted = 0;
        for output in self.handle(input) {
            match output {
                Output::Locate { op, .. } => {
                    // 5: one pace between cycles that nobody asked for.
                    let early = self
                        .started
                        .is_some_and(|at| self.now < at + Duration::from_secs(1));
                    let path = &self.path;
                    assert!(
                        !early || path.iter().any(|act| act.is_command()),
                        "two cycles in a second: {path:?}"
                    );
                    self.started = Some(self.now);
                    self.asked = Asked::Locate(op);
                }
                Output::Open { op, .. } => self.asked = Asked::Open(op),
                Output::Credentials { op, .. } => self.asked = Asked::Credentials(op),
                Output::Guard { op, .. } => self.asked = Asked::Guard(op),
                Output::Transmit { message, .. } => {
                    transmitted += 1;
                    self.asked = Asked::Nothing;
                    self.transmitted(message);
                }
                Output::Done(_) => self.stopped = true,
                Output::Proved { .. }
                | Output::Target { .. }
                | Output::Cancel(_)
                | Output::Answered { .. }
                | Output::Event(_) => {}
            }
        }
        assert!(transmitted <= 1, "two requests at once: {:?}", self.path);
    }

    fn transmitted(&mut self, message: bytes::Bytes) {
        let path = &self.path;
        if self
            .last
            .as_ref()
            .is_some_and(|last| *last.bytes() == message)
        {
            return;
        }
        // 4: one outstanding; only a stop that runs out of time and a network that changed abandon it.
        let abandons = |act: &Act| matches!(act, Act::Stop | Act::NetworkChanged | Act::ClockJump);
        assert!(
            self.outstanding.is_none_or(|until| until <= self.now) || path.iter().any(abandons),
            "a second request while the first is outstanding: {path:?}"
        );
        self.outstanding = Some(self.now + self.machine.registration().policy().timers.timer_f);
        self.last = Some(Request::parse(message).expect("what we write can be read"));
    }

    /// Whether it is an input at all, and not one that [`check_no_ops`](Self::check_no_ops) tries in each state
    fn applies(&self, act: Act) -> bool {
        match act {
            Act::Reply(_) | Act::Stale | Act::Minimum => self.outstanding.is_some(),
            Act::Serve | Act::ServeBadly => !matches!(self.asked, Asked::Nothing),
            // Another secret makes a difference to who asked for one.
            Act::ServeOther => matches!(self.asked, Asked::Credentials(_)),
            Act::Hold => matches!(self.asked, Asked::Open(_)),
            Act::FlowFails => self.machine.flow().is_some(),
            _ => true,
        }
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
                let Some(request) = &self.last else {
                    return;
                };
                let response = Response::parse(reply.to(request)).expect("a response");
                if response.code() >= 200 {
                    self.outstanding = None;
                }
                self.feed(Input::Response(&response));
            }
            Act::Serve | Act::ServeOther => {
                match std::mem::replace(&mut self.asked, Asked::Nothing) {
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
                        self.feed(Input::Opened {
                            op,
                            result,
                            retry_in: None,
                        });
                    }
                    Asked::Credentials(op) => {
                        self.secrets += u32::from(act == Act::ServeOther);
                        let secret = Some(Secret::password(format!("secret {}", self.secrets)));
                        self.feed(Input::Credentials { op, secret });
                    }
                    Asked::Guard(op) => self.feed(Input::Guarded { op, allowed: true }),
                }
            }
            Act::ServeBadly => match std::mem::replace(&mut self.asked, Asked::Nothing) {
                Asked::Nothing => {}
                Asked::Locate(op) => {
                    let result = Err(ResolveError::Timeout);
                    self.feed(Input::Located { op, result });
                }
                Asked::Open(op) => {
                    let result = Err(FlowError::Refused);
                    self.feed(Input::Opened {
                        op,
                        result,
                        retry_in: None,
                    });
                }
                Asked::Credentials(op) => self.feed(Input::Credentials { op, secret: None }),
                Asked::Guard(op) => self.feed(Input::Guarded { op, allowed: false }),
            },
            Act::Hold => {
                if let Asked::Open(op) = self.asked {
                    self.feed(Input::Held(op));
                }
            }
            Act::FlowFails => {
                if let Some(flow) = self.machine.flow() {
                    self.outstanding = None;
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
            Act::ClockJump => self.feed(Input::ClockJump {
                by: Duration::from_secs(60),
                spread: Duration::from_millis(10),
            }),
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

    /// Early timeouts, late answers and those to older questions do nothing
    fn check_no_ops(&self, key: u64) {
        let op = OpId::new(u32::MAX);
        let mut inputs = vec![
            Input::Located {
                op,
                result: Ok(vec![Target::new(Protocol::Udp, address(5080))]),
            },
            Input::Opened {
                op,
                result: Err(FlowError::Refused),
                retry_in: None,
            },
            Input::Held(op),
            Input::Credentials { op, secret: None },
            Input::Guarded { op, allowed: false },
            Input::FlowFailed {
                flow: FlowId::new(u64::MAX - 1),
                error: FlowError::Reset,
                spread: Duration::ZERO,
            },
        ];
        if self.machine.deadline().is_none_or(|at| at > self.now) {
            inputs.push(Input::Timeout);
        }
        let granted = |branch: &str| {
            let reply = Reply::granted(600).to(self.last.as_ref()?);
            let reply = String::from_utf8_lossy(&reply).replace("branch=z9hG4bK", branch);
            Response::parse(bytes::Bytes::from(reply)).ok()
        };
        let late = granted("branch=z9hG4bKx");
        let again = granted("branch=z9hG4bK").filter(|_| self.outstanding.is_none());
        inputs.extend(late.iter().chain(&again).map(Input::Response));
        let mut world = self.clone();
        for (number, input) in inputs.into_iter().enumerate() {
            let effects = world.handle(input);
            let path = &self.path;
            assert!(effects.is_empty(), "input {number}: {effects:?}: {path:?}");
        }
        assert_eq!(world.key(), key, "changed by nothing: {:?}", self.path);
    }

    /// A peer that always answers so, and a host that does all it is asked, end within the budget of a cycle
    fn check_budget(&self, answer: Act, policy: &Policy) {
        let mut world = self.clone();
        let mut answers = 0;
        while !matches!(
            world.machine.status().activity,
            Activity::Waiting { .. } | Activity::Idle | Activity::Paused
        ) {
            let served = matches!(world.asked, Asked::Nothing);
            answers += u32::from(served);
            // Two cycles at most: the one under way, and the un-REGISTER that a command waits to send.
            assert!(answers <= 30, "no end of {answer:?}: {:?}", self.path);
            world.act(if served { answer } else { Act::Serve }, policy);
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
        let mut print = Print::default();
        write!(print, "{:?}", self.now).expect("a text");
        print.now = std::mem::take(&mut print.instant);
        write!(print, "{:?}", self.machine).expect("a text");
        let mut hasher = DefaultHasher::new();
        hasher.write(print.text.as_bytes());
        let registration = self.machine.registration();
        registration.user_agent().hash(&mut hasher);
        std::mem::discriminant(&self.asked).hash(&mut hasher);
        (self.secrets, self.stopped, self.last.is_some()).hash(&mut hasher);
        hasher.finish()
    }
}

/// What `Debug` of a machine shows behind its configuration, instants as seen from now, flows in the order they appear,
/// and without CSeq and the numbers of operations
#[derive(Default)]
struct Print {
    text: String,
    on: bool,
    /// What the next number is
    next: Number,
    now: i128,
    instant: i128,
    flows: Vec<String>,
}

#[derive(Default)]
enum Number {
    #[default]
    Plain,
    Passing,
    Flow,
    Seconds,
    Nanos,
}

impl std::fmt::Write for Print {
    /// Derived `Debug` writes each name and each number by a call of its own.
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let name = match text.len() {
            3 | 4 | 6 | 7 => match text {
                "OpId" | "cseq" | "ops" => Some(Number::Passing),
                "FlowId" => Some(Number::Flow),
                "tv_sec" => Some(Number::Seconds),
                "tv_nsec" => Some(Number::Nanos),
                _ => None,
            },
            8 if !self.on => {
                self.on = text == "identity";
                None
            }
            _ => None,
        };
        if let Some(next) = name {
            self.next = next;
            return Ok(());
        }
        match &self.next {
            Number::Plain => {
                if self.on {
                    self.text.push_str(text);
                }
            }
            _ if !text.starts_with(|c: char| c.is_ascii_digit()) => {}
            Number::Passing => self.next = Number::Plain,
            Number::Flow => {
                self.next = Number::Plain;
                let known = self.flows.iter().position(|flow| flow == text);
                let place = known.unwrap_or_else(|| {
                    self.flows.push(text.into());
                    self.flows.len() - 1
                });
                write!(self.text, "flow {place}")?;
            }
            Number::Seconds => {
                self.next = Number::Plain;
                let seconds: i128 = text.parse().map_err(|_| std::fmt::Error)?;
                self.instant = seconds * 1_000_000_000;
            }
            Number::Nanos => {
                self.next = Number::Plain;
                let nanos: i128 = text.parse().map_err(|_| std::fmt::Error)?;
                self.instant += nanos;
                if self.on {
                    write!(self.text, "{}", self.instant - self.now)?;
                }
            }
        }
        Ok(())
    }
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
        outstanding: None,
        started: None,
        flow: 0,
        nonces: 0,
        secrets: 0,
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
    let answers = [
        Act::Stale,
        Act::Reply(401),
        Act::Reply(407),
        Act::Minimum,
        Act::Reply(494),
        Act::Reply(503),
    ];
    for depth in 0..length {
        let mut next = Vec::new();
        for world in &level {
            for act in acts.iter().filter(|act| world.applies(**act)) {
                steps += 1;
                let mut world = world.clone();
                world.act(*act, policy);
                let key = world.key();
                if seen.insert(key) {
                    world.check_end();
                    world.check_no_ops(key);
                    if depth < 2 {
                        for answer in answers {
                            world.check_budget(answer, policy);
                        }
                    }
                    next.push(world);
                }
            }
        }
        level = next;
    }
    (seen.len(), steps)
}

/// One test a profile, so that they run side by side
fn explore_profile(name: &str, policy: &Policy) {
    let all: Vec<_> = DEEP.into_iter().chain(MORE).collect();
    for (acts, length) in [(&DEEP[..], 6), (&all, 3)] {
        let (states, steps) = explore(policy, acts, length);
        let inputs = acts.len();
        println!("{name}: length {length}, {inputs} inputs: {steps} steps, {states} states");
        assert!(states > 1000, "{states}");
    }
}

#[test]
fn no_sequence_of_inputs_leads_to_a_state_without_a_way_out() {
    explore_profile("default", &Policy::default());
}

#[test]
fn no_sequence_of_inputs_leads_to_a_state_without_a_way_out_under_asterisk() {
    explore_profile("asterisk", &Policy::asterisk());
}

#[test]
fn no_sequence_of_inputs_leads_to_a_state_without_a_way_out_under_persistent() {
    explore_profile("persistent", &Policy::persistent());
}
