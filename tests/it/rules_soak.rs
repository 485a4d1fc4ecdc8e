//! Random inputs over a pool for tens of thousands of steps: no panic, and nothing forgotten.

use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

fn account(n: u64, policy: Policy) -> Registration {
    let server = match n % 3 {
        0 => "sip:192.0.2.9",
        1 => "sip:192.0.2.8;transport=tcp",
        _ => "sip:example.com",
    };
    let mut builder = Registration::builder(server, format!("sip:u{n}@example.com").as_str());
    if n % 5 == 4 {
        builder = builder
            .instance(InstanceId::from_random([n as u8; 16]))
            .gruu(true);
        for flow in 0..n % 3 {
            let transport = if n.is_multiple_of(2) { "udp" } else { "tcp" };
            builder = builder.further_flow(format!(
                "sip:192.0.2.{};lr;transport={transport}",
                20 + flow
            ));
        }
    }
    builder
        .outbound_auth(Credentials::password(format!("u{}", n % 5), "secret"))
        .max_random_initial_delay(Duration::from_secs(n % 7))
        .line(true)
        .endpoint("e")
        .policy(policy)
        .build()
        .expect("a good configuration")
}

fn reply(random: &mut Entropy) -> Reply {
    let nonce = format!("n{}", random.below(1000));
    let challenge = |stale| format!("Digest realm=\"r\", nonce=\"{nonce}\", qop=\"auth\"{stale}");
    let code = 300 + random.below(400) as u16;
    match random.below(12) {
        0 => Reply::status(100),
        1..=3 => {
            let granted = Reply::granted([0, 1, 9, 60, 3600, u32::MAX][random.below(6) as usize]);
            match random.below(2) {
                0 => granted,
                _ => granted.header("Require", "outbound"),
            }
        }
        4 | 5 => Reply::status(401).header("WWW-Authenticate", &challenge("")),
        6 => Reply::status(401).header("WWW-Authenticate", &challenge(", stale=true")),
        7 => Reply::status(407).header("Proxy-Authenticate", &challenge("")),
        8 => Reply::status(423).header("Min-Expires", &random.u32().to_string()),
        9 => Reply::status(503).header("Retry-After", &random.below(200).to_string()),
        10 => Reply::status(200),
        _ => Reply::status(code),
    }
}

fn soak(seed: u8, steps: u32) {
    let mut random = Entropy::from_seed([seed; 32]);
    let mut sim = Sim::seeded([seed; 32], []);
    let names = vec![[192, 0, 2, 9].into(), [192, 0, 2, 7].into()];
    sim.resolve("example.com", Ok(names));
    let policy = |random: &mut Entropy| match random.below(3) {
        0 => Policy::default(),
        1 => Policy::asterisk(),
        _ => Policy::persistent(),
    };
    let mut open: VecDeque<SentRequest> = VecDeque::new();
    for step in 0..steps {
        let ids: Vec<_> = sim.pool().ids().collect();
        let id = ids.get(random.below(ids.len() as u64) as usize).copied();
        match (random.below(43), id) {
            (0 | 1, _) | (_, None) if ids.len() < 40 => {
                let profile = policy(&mut random);
                let new = account(random.below(1000), profile);
                sim.add(new);
            }
            (2, Some(id)) => sim.remove(id, Duration::from_secs(random.below(40))),
            (3, Some(id)) => sim.with(|pool, cx| pool.handle(cx, id, Input::Refresh)),
            (4, Some(id)) => sim.with(|pool, cx| pool.handle(cx, id, Input::Reregister)),
            (5, Some(id)) => sim.with(|pool, cx| pool.handle(cx, id, Input::Query)),
            (6, Some(id)) => {
                let until = Some(sim.now() + Duration::from_secs(random.below(100)));
                let unregister = random.below(2) == 0;
                sim.with(|pool, cx| pool.handle(cx, id, Input::Pause { until, unregister }));
            }
            (7, Some(id)) => sim.with(|pool, cx| pool.handle(cx, id, Input::Resume)),
            (8, Some(id)) => {
                let profile = policy(&mut random);
                let to = Arc::new(account(random.below(1000), profile));
                sim.with(|pool, cx| pool.reconfigure(cx, id, to));
            }
            (9, Some(id)) => {
                if let Some(flow) = sim.pool().flow(id) {
                    sim.fail_flow(flow, FlowError::Reset);
                }
            }
            (10, _) => sim.with(|pool, cx| pool.network_changed(cx)),
            (11, _) => {
                let by = Duration::from_secs(random.below(100));
                sim.with(|pool, cx| pool.clock_jump(cx, by));
            }
            (12, _) => sim.refuse_next_open(FlowError::Refused),
            (13, Some(id)) => sim.with(|pool, cx| pool.retry_credentials(cx, id)),
            (14..=18, _) => sim.advance(Duration::from_millis(random.below(20_000))),
            (40, Some(id)) => sim.with(|pool, cx| pool.handle(cx, id, Input::RemoveAll)),
            (41, Some(id)) => sim.with(|pool, cx| pool.handle(cx, id, Input::Reconcile)),
            (42, Some(id)) => {
                let within = Duration::from_secs(random.below(40));
                sim.with(|pool, cx| pool.handle(cx, id, Input::Stop(within)));
            }
            (19, _) => {
                // Answers with bytes flipped.
                if let Some(request) = open.front() {
                    let mut bytes = reply(&mut random).to(request).to_vec();
                    for _ in 0..3 {
                        let at = random.below(bytes.len() as u64) as usize;
                        bytes[at] = random.u32() as u8;
                    }
                    let source: SocketAddr = "192.0.2.9:5060".parse().expect("an address");
                    sim.receive(source, bytes);
                }
            }
            _ => {
                if let Some(request) = open.pop_front() {
                    let reply = reply(&mut random);
                    sim.reply(&request, reply.clone());
                    if random.below(5) == 0 {
                        sim.reply(&request, reply);
                    }
                }
            }
        }
        open.extend(sim.all_sent());
        open.drain(..open.len().saturating_sub(200));
        sim.all_events();
        sim.removals();
        sim.messages();
        // Nothing that goes on is without a deadline, no lease is past its end.
        for id in sim.pool().ids().collect::<Vec<_>>() {
            let status = sim.pool().status(id).expect("it is listed");
            if !matches!(status.activity, Activity::Idle | Activity::Paused) {
                assert!(sim.deadline().is_some(), "{seed}, {step}: {status:?}");
            }
        }
    }
    // Where everybody is well again, a command brings each back, and it stays.
    sim.advance(Duration::from_secs(700));
    sim.all_sent();
    for id in sim.pool().ids().collect::<Vec<_>>() {
        sim.with(|pool, cx| {
            pool.retry_credentials(cx, id);
            pool.handle(cx, id, Input::Resume);
            pool.handle(cx, id, Input::Refresh);
        });
    }
    sim.answer_keep_alives(Some(SocketAddr::from(([192, 0, 2, 1], 5060))));
    let end = sim.elapsed() + Duration::from_secs(2 * 3600);
    while sim.elapsed() < end {
        while !sim.is_silent() {
            let request = sim.sent();
            // What is refused in the last second of its patience is asked again by the next command only.
            let removed = request.delta_seconds("Expires") == Some(0);
            sim.reply(
                &request,
                if removed {
                    Reply::status(200)
                } else {
                    Reply::granted(3600)
                },
            );
        }
        let step = sim.deadline().unwrap_or(Duration::from_secs(60));
        sim.advance(step.clamp(Duration::from_millis(1), Duration::from_secs(60)));
    }
    for id in sim.pool().ids().collect::<Vec<_>>() {
        let flows = sim.pool().flow_statuses(id);
        let status = sim.pool().status(id).expect("it is listed");
        assert!(status.is_reachable(), "{seed}: {status:#?} {flows:#?}");
    }
    // Removed, all of them go, and leave nothing.
    for id in sim.pool().ids().collect::<Vec<_>>() {
        sim.remove(id, Duration::from_secs(35));
    }
    sim.advance(Duration::from_secs(36));
    let left: Vec<_> = sim
        .pool()
        .ids()
        .map(|id| (sim.now(), sim.pool().status(id)))
        .collect();
    assert_eq!(left.len(), 0, "{seed}: {left:#?}");
    assert_eq!(sim.deadline(), None, "{seed}");
}

#[test]
fn random_worlds_never_panic_and_end_empty() {
    for seed in 0..12 {
        soak(seed, 4000);
    }
}
