//! Each metric of `docs/observability.md` moves by what it says, and agents of one process add up.

use async_trait::async_trait;
use bytes::Bytes;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use sip_registration::testkit::{MockTransport, Reply, Wire};
use sip_registration::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::machine::secs;

/// What was recorded: a snapshot takes what is new, gauges too
struct Read {
    snapshotter: Snapshotter,
    sums: BTreeMap<String, f64>,
}

impl Read {
    fn of(recorder: &DebuggingRecorder) -> Self {
        Self {
            snapshotter: recorder.snapshotter(),
            sums: BTreeMap::new(),
        }
    }

    /// A metric by its name and the values of its labels, as `name a b`; of a histogram the number of values
    async fn value(&mut self, name: &str) -> f64 {
        // The agent's turn comes first.
        tokio::time::sleep(Duration::from_millis(50)).await;
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let labels = key.key().labels().map(|label| label.value().to_owned());
            let names = std::iter::once(key.key().name().to_owned()).chain(labels);
            let new = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(value) => value.into_inner(),
                DebugValue::Histogram(values) => values.len() as f64,
            };
            *self
                .sums
                .entry(names.collect::<Vec<_>>().join(" "))
                .or_default() += new;
        }
        self.sums.get(name).copied().unwrap_or_default()
    }

    async fn states(&mut self) -> [f64; 4] {
        let mut counts = [0.0; 4];
        for (count, state) in
            counts
                .iter_mut()
                .zip(["registered", "unregistered", "paused", "stopped"])
        {
            *count = self.value(&format!("sip_registrations {state}")).await;
        }
        counts
    }
}

async fn agent() -> (Agent, Wire) {
    let (transport, wire) = MockTransport::new();
    let agent = Agent::builder().transport("mock", transport);
    (agent.build().await.expect("an agent"), wire)
}

fn account(server: &str) -> Registration {
    Registration::builder(server, "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("a good configuration")
}

async fn answer(wire: &mut Wire, code: u16) {
    let request = wire.next_request().await;
    let reply = match (code, &*request.text_of("Expires")) {
        (200, "0") => Reply::status(200),
        (200, _) => Reply::granted(600),
        _ => Reply::status(code),
    };
    wire.reply(&request, reply).await;
}

#[tokio::test(start_paused = true)]
async fn registrations_are_counted_by_state_over_all_agents_of_the_process() {
    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut read = Read::of(&recorder);
    let (one, mut at_one) = agent().await;
    let (two, mut at_two) = agent().await;
    let first = one.add(account("sip:192.0.2.9")).await.expect("added");
    let second = two.add(account("sip:192.0.2.9")).await.expect("added");
    assert_eq!(read.states().await, [0.0, 2.0, 0.0, 0.0]);
    answer(&mut at_one, 200).await;
    assert_eq!(read.states().await, [1.0, 1.0, 0.0, 0.0]);
    answer(&mut at_two, 200).await;
    assert_eq!(read.states().await, [2.0, 0.0, 0.0, 0.0]);
    // Another one, refused for good.
    let third = two.add(account("sip:192.0.2.9")).await.expect("added");
    answer(&mut at_two, 404).await;
    assert_eq!(read.states().await, [2.0, 0.0, 0.0, 1.0]);
    one.pause(first.id(), None, true).await.expect("taken");
    answer(&mut at_one, 200).await;
    assert_eq!(read.states().await, [1.0, 0.0, 1.0, 1.0]);
    third.remove(secs(1)).await;
    assert_eq!(read.states().await, [1.0, 0.0, 1.0, 0.0]);
    // What an agent leaves behind is not counted any more, however it ends.
    drop((one, first, at_one));
    assert_eq!(read.states().await, [1.0, 0.0, 0.0, 0.0]);
    drop(at_two);
    two.shutdown(secs(1)).await;
    assert_eq!(read.states().await, [0.0; 4]);
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn failures_recoveries_and_full_flows_are_measured() {
    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut read = Read::of(&recorder);
    let (agent, mut wire) = agent().await;
    let handle = agent.add(account("sip:192.0.2.9")).await.expect("added");
    answer(&mut wire, 200).await;
    assert_eq!(read.value("sip_registration_recovery_seconds").await, 0.0);
    for (code, class) in [
        (500, "temporary"),
        (403, "forbidden"),
        (404, "fatal"),
        (401, "credentials"),
    ] {
        handle.refresh().await.expect("it is there");
        answer(&mut wire, code).await;
        let name = format!("sip_registration_failures_total UDP 192.0.2.9 {class}");
        assert_eq!(read.value(&name).await, 1.0, "{class}");
    }
    let attempts = "sip_registration_attempts_total UDP 192.0.2.9";
    assert_eq!(read.value(&format!("{attempts} failed")).await, 4.0);
    assert_eq!(read.value(&format!("{attempts} granted")).await, 1.0);

    // The binding ends, and comes back.
    tokio::time::sleep(secs(600)).await;
    handle.refresh().await.expect("it is there");
    answer(&mut wire, 200).await;
    assert_eq!(read.value("sip_registration_recovery_seconds").await, 1.0);
    let refreshes = "sip_registration_refresh_seconds UDP 192.0.2.9";
    assert_eq!(read.value(refreshes).await, 2.0);

    // A flow has no room, and then some.
    wire.full_next_send();
    handle.refresh().await.expect("it is there");
    tokio::task::yield_now().await;
    answer(&mut wire, 200).await;
    assert_eq!(read.value("sip_registration_full_sends_total").await, 1.0);
    assert_eq!(read.value("sip_registration_backlog").await, 0.0);
    assert_eq!(read.value(refreshes).await, 3.0);

    // An attempt that gets no further than its name.
    let nowhere = account("sip:192.0.2.9;transport=tcp");
    agent.add(nowhere).await.expect("added");
    let none = "sip_registration_attempts_total none none failed";
    assert_eq!(read.value(none).await, 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_first_32_targets_have_names_and_those_who_wait_for_a_place_are_counted() {
    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut read = Read::of(&recorder);
    let (agent, mut wire) = agent().await;
    for last in 1..=40 {
        let registration = account(&format!("sip:192.0.2.{last}"));
        agent.add(registration).await.expect("added");
        answer(&mut wire, 200).await;
    }
    let granted = |target: &str| format!("sip_registration_attempts_total UDP {target} granted");
    assert_eq!(read.value(&granted("192.0.2.32")).await, 1.0);
    assert_eq!(read.value(&granted("192.0.2.33")).await, 0.0);
    assert_eq!(read.value(&granted("other")).await, 8.0);
    for name in read.sums.keys() {
        assert!(
            !name.contains("alice") && !name.contains("example"),
            "{name}"
        );
    }

    assert_eq!(read.value("sip_registration_held").await, 0.0);
    for _ in 0..70 {
        agent.add(account("sip:192.0.2.99")).await.expect("added");
    }
    assert_eq!(read.value("sip_registration_held").await, 6.0);
    for _ in 0..70 {
        answer(&mut wire, 200).await;
    }
    assert_eq!(read.value("sip_registration_held").await, 0.0);
}

/// A transport that is asked for nothing but its way into the agent
#[derive(Debug, Default, Clone)]
struct Way(Arc<Mutex<Option<Inbound>>>);

#[async_trait]
impl Transport for Way {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        *self.0.lock().expect("no panic") = Some(inbound);
        Ok(())
    }

    async fn open(&self, _: FlowId, _: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        Err(FlowError::Refused)
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_that_the_agent_has_no_room_for_are_counted() {
    let recorder = DebuggingRecorder::new();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut read = Read::of(&recorder);
    let way = Way::default();
    let agent = Agent::builder().transport("way", way.clone());
    let agent = agent.build().await.expect("an agent");
    tokio::task::yield_now().await;
    let inbound = way.0.lock().expect("no panic").clone().expect("started");
    let source = "192.0.2.9:5060".parse().expect("an address");
    let mut dropped = 0;
    // The agent has no turn in between.
    for _ in 0..2000 {
        let message = Bytes::from_static(b"OPTIONS sip:a SIP/2.0\r\n\r\n");
        dropped += u32::from(
            inbound
                .try_received(Received::new(source, message))
                .is_err(),
        );
    }
    assert!(dropped > 0);
    let counted = read.value("sip_registration_dropped_arrivals_total").await;
    assert_eq!(counted, f64::from(dropped));
    drop(agent);
}
