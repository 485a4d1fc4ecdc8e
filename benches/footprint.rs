//! What an idle registration weighs, and what a refresh costs: one pool, one registrar, no sockets.
//!
//! `cargo bench --bench footprint`; it fails where a registration weighs more than 1 KiB, and only prints the times.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use sip_registration::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};
use std::alloc::System;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What one registration may weigh, all in
const MOST_BYTES: f64 = 1024.0;
/// Registrations; fewer where the compiler did not optimise
const COUNT: usize = if cfg!(debug_assertions) {
    5_000
} else {
    100_000
};
const SERVER: ([u8; 4], u16) = ([192, 0, 2, 9], 5060);
const LOCAL: ([u8; 4], u16) = ([192, 0, 2, 1], 5060);

/// Time and allocations of some calls
#[derive(Default)]
struct Cost {
    calls: u32,
    time: Duration,
    allocations: usize,
    bytes: usize,
}

impl Cost {
    fn measure<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let (before, start) = (ALLOCATOR.stats(), Instant::now());
        let result = act();
        self.time += start.elapsed();
        let used = ALLOCATOR.stats() - before;
        self.calls += 1;
        self.allocations += used.allocations + used.reallocations;
        self.bytes += used.bytes_allocated;
        result
    }

    fn print(&self, name: &str) {
        let calls = f64::from(self.calls);
        println!(
            "{name:<34} {:>8.2} µs {:>7.1} allocations {:>8.0} bytes asked for",
            self.time.as_secs_f64() * 1e6 / calls,
            self.allocations as f64 / calls,
            self.bytes as f64 / calls,
        );
    }
}

/// A pool with its registrar on the other side of a function call
struct World {
    pool: Pool,
    entropy: Entropy,
    now: Instant,
    wall: SystemTime,
    nonces: u64,
    sent: Cost,
    challenged: Cost,
    accepted: Cost,
}

impl World {
    fn new() -> Self {
        let mut entropy = Entropy::from_seed([1; 32]);
        let mut pool = Pool::new(&mut entropy);
        pool.add_transport("udp", &[Protocol::Udp]);
        Self {
            pool,
            entropy,
            now: Instant::now(),
            wall: SystemTime::UNIX_EPOCH,
            nonces: 0,
            sent: Cost::default(),
            challenged: Cost::default(),
            accepted: Cost::default(),
        }
    }

    fn call(&mut self, act: impl FnOnce(&mut Pool, &mut Cx<'_, PoolOutput>)) -> Vec<PoolOutput> {
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            wall: self.wall,
            entropy: &mut self.entropy,
            out: &mut out,
        };
        act(&mut self.pool, &mut cx);
        out
    }

    /// Carries out what the pool wants until it wants nothing more.
    fn settle(&mut self, mut outputs: Vec<PoolOutput>) {
        while !outputs.is_empty() {
            let mut next = Vec::new();
            for output in outputs {
                match output {
                    PoolOutput::Open { flow, target, .. } => {
                        let info = FlowInfo::new(target.protocol(), LOCAL.into(), target.address());
                        next.extend(
                            self.call(|pool, cx| pool.opened(cx, flow, Ok(Arc::new(info)))),
                        );
                    }
                    PoolOutput::Send { message, .. } => {
                        let (granted, answer) = self.answer(&message);
                        drop(message);
                        let source: SocketAddr = SERVER.into();
                        let received = Received::new(source, answer.into());
                        let mut cost = std::mem::take(if granted {
                            &mut self.accepted
                        } else {
                            &mut self.challenged
                        });
                        next.extend(
                            cost.measure(|| self.call(|pool, cx| pool.received(cx, received))),
                        );
                        *(if granted {
                            &mut self.accepted
                        } else {
                            &mut self.challenged
                        }) = cost;
                    }
                    PoolOutput::Event(_, event) => {
                        assert!(
                            matches!(event, Event::Registered(_) | Event::Refreshed(_)),
                            "{event}"
                        );
                    }
                    other => panic!("not expected: {other:?}"),
                }
            }
            outputs = next;
        }
    }

    /// 401 with a nonce of its own, then 200 for an hour.
    fn answer(&mut self, request: &[u8]) -> (bool, String) {
        let text = std::str::from_utf8(request).expect("UTF-8");
        let granted = text.contains("\r\nAuthorization: ");
        let mut answer = String::with_capacity(1024);
        answer.push_str(if granted {
            "SIP/2.0 200 OK\r\n"
        } else {
            "SIP/2.0 401 Unauthorized\r\n"
        });
        for line in text.split("\r\n") {
            match line.split_once(':').map(|(name, _)| name) {
                Some("Via" | "From" | "Call-ID" | "CSeq") => answer.push_str(line),
                Some("To") => {
                    let _ = write!(answer, "{line};tag=a6c85cf");
                }
                Some("Contact") if granted => {
                    let _ = write!(answer, "{line};expires=3600");
                }
                _ => continue,
            }
            answer.push_str("\r\n");
        }
        if !granted {
            self.nonces += 1;
            let _ = write!(
                answer,
                "WWW-Authenticate: Digest realm=\"sip.example.com\", nonce=\"1795430401/{:032x}\", \
                 opaque=\"5ccc069c403ebaf9\", algorithm=MD5, qop=\"auth\"\r\n",
                self.nonces,
            );
        }
        answer.push_str("Server: example\r\nContent-Length: 0\r\n\r\n");
        (granted, answer)
    }
}

fn live(stats: &Stats) -> (isize, isize) {
    (
        stats.bytes_allocated as isize - stats.bytes_deallocated as isize,
        stats.allocations as isize - stats.deallocations as isize,
    )
}

/// What the system says that this process holds, in bytes; none where it has no `/proc`.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}

fn main() {
    let mut world = World::new();
    let policy = Arc::new(Policy::default());
    let (before, resident_before) = (live(&ALLOCATOR.stats()), resident());

    let mut configurations = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let user = format!("trunk{number:06}");
        let registration =
            Registration::builder("sip:192.0.2.9", &*format!("sip:{user}@sip.example.com"))
                .outbound_auth(Credentials::password(&*user, format!("secret-{number:06}")))
                .contact_user(user)
                .max_random_initial_delay(Duration::ZERO)
                .policy(Arc::clone(&policy))
                .build()
                .expect("a good configuration");
        configurations.push(Arc::new(registration));
    }
    let own = live(&ALLOCATOR.stats());
    let vector = (COUNT * size_of::<Arc<Registration>>()) as isize;
    let per = |bytes: isize| bytes as f64 / COUNT as f64;
    let configured = (per(own.0 - before.0 - vector), per(own.1 - before.1 - 1));

    let start = Instant::now();
    for registration in configurations {
        let outputs = world.call(|pool, cx| {
            pool.insert(cx, registration);
        });
        world.settle(outputs);
    }
    let cold = start.elapsed();
    let after = live(&ALLOCATOR.stats());
    let resident_after = resident();
    let bound = (0..COUNT as u32)
        .filter_map(|index| world.pool.status(RegistrationId::from_parts(index, 0)))
        .filter(|status| {
            status.is_registered() && matches!(status.activity, Activity::Waiting { .. })
        })
        .count();
    assert_eq!(bound, COUNT, "all registered and idle");

    let bytes = per(after.0 - before.0);
    println!("{COUNT} registrations, registered and idle");
    println!(
        "an idle one, all in                {bytes:>8.0} bytes {:>5.1} allocations",
        per(after.1 - before.1)
    );
    println!(
        "  of that its configuration        {:>8.0} bytes {:>5.1} allocations",
        configured.0, configured.1
    );
    if let (Some(before), Some(after)) = (resident_before, resident_after) {
        println!(
            "  resident, allocator included     {:>8.0} bytes",
            (after - before) / COUNT as f64
        );
    }
    println!(
        "size_of: Machine {}, Registration {}, SipUri {}, Credentials {}, Status {}",
        size_of::<Machine>(),
        size_of::<Registration>(),
        size_of::<SipUri>(),
        size_of::<Credentials>(),
        size_of::<Status>(),
    );
    println!(
        "cold start with a challenge        {:>8.2} µs each, the registrar's side included",
        cold.as_secs_f64() * 1e6 / COUNT as f64
    );
    world.challenged.print("401, answered with the digest");
    world.accepted.print("200, the first");

    (world.challenged, world.accepted) = (Cost::default(), Cost::default());
    let end = world.now + Duration::from_secs(3400);
    while let Some(at) = world.pool.deadline().filter(|at| *at <= end) {
        world.now = at;
        world.wall += Duration::from_millis(1);
        let mut cost = std::mem::take(&mut world.sent);
        let outputs = cost.measure(|| {
            world.call(|pool, cx| {
                pool.timeout(cx, 1);
            })
        });
        world.sent = cost;
        world.settle(outputs);
    }
    assert!(world.accepted.calls as usize >= COUNT, "all refreshed");
    assert_eq!(world.challenged.calls, 0, "with the nonce they had");
    world.sent.print("refresh: REGISTER written, sent");
    world.accepted.print("refresh: 200 read, planned anew");

    let again = per(live(&ALLOCATOR.stats()).0 - before.0);
    println!("an idle one after the refreshes    {again:>8.0} bytes");

    // To one in the middle, and to nobody: where calls come in, each is asked about.
    for user in ["trunk050000", "nobody"] {
        let mut asked = Cost::default();
        let uri = format!("sip:{user}@192.0.2.1");
        for _ in 0..1000 {
            let found = asked.measure(|| world.pool.matches(&uri, "<sip:x@y>", SERVER.into()));
            assert_eq!(found.is_some(), user != "nobody");
        }
        asked.print(&format!("inbound request to {user}"));
    }
    for bytes in [bytes, again] {
        assert!(
            bytes <= MOST_BYTES,
            "{bytes:.0} bytes for an idle registration"
        );
    }
}
