//! Keep-alives over real sockets, against the test registrar: one test a transport, the rules are in `rules_flow`.

use assert_matches::assert_matches;
use sip_registration::testkit::{RunningServer, StunAnswer, TestServer};
use sip_registration::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

async fn registered(
    server: &RunningServer,
    transport: &str,
) -> (Agent, Events, RegistrationHandle) {
    let mut policy = Policy::default();
    policy.keep_alive.stream = Some(SECOND..=SECOND);
    policy.keep_alive.udp_interval = SECOND..=SECOND;
    let uri = format!("sip:{};transport={transport}", server.addr());
    let account = Registration::builder(uri, "sip:alice@example.test")
        .max_random_initial_delay(Duration::ZERO)
        .policy(policy)
        .build()
        .expect("a good configuration");
    let builder = Agent::builder().system_transports();
    let agent = builder.build().await.expect("an agent");
    let mut events = agent.events();
    let handle = agent.add(account).await.expect("room for one");
    assert_matches!(next(&mut events).await, Event::Registered(_));
    (agent, events, handle)
}

/// The next event but the first, which says when it starts.
async fn next(events: &mut Events) -> Event {
    loop {
        let event = timeout(PATIENCE, events.next()).await.expect("an event");
        match &*event.expect("an agent").1 {
            Event::Scheduled { .. } => {}
            event => return event.clone(),
        }
    }
}

/// Waits for so many keep-alives; where they came from, each once.
async fn kept(server: &RunningServer, count: usize) -> Vec<SocketAddr> {
    let all = async {
        loop {
            let mut from = server.keep_alives();
            if from.len() >= count {
                from.dedup();
                return from;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("keep-alives")
}

#[tokio::test]
async fn pings_and_pongs_go_over_the_connection_of_the_binding() {
    let server = TestServer::new()
        .require_auth(false)
        .ok_header("Flow-Timer", "10")
        .ok_header("Require", "outbound");
    let server = server
        .serve((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let (_agent, mut events, handle) = registered(&server, "tcp").await;
    let source = server.bindings("sip:alice@example.test")[0].source;
    // The server's word is clamped, and taken to 80 % at the least.
    assert_eq!(kept(&server, 1).await, [source]);
    let silence = timeout(Duration::from_millis(500), events.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert!(handle.status().await.expect("a status").is_reachable());
}

#[tokio::test]
async fn stun_shows_a_mapping_that_changes_and_the_binding_is_renewed() {
    let server = TestServer::new().require_auth(false).keep(0);
    let server = server
        .serve((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let (_agent, mut events, handle) = registered(&server, "udp").await;
    let source = server.bindings("sip:alice@example.test")[0].source;
    assert_eq!(kept(&server, 2).await, [source]);
    let status = handle.status().await.expect("a status");
    assert_eq!(status.lease.expect("a lease").mapped, Some(source));

    let moved = SocketAddr::new(source.ip(), source.port() ^ 1);
    server.set_stun(Some(StunAnswer::Mapped(moved)));
    assert_matches!(
        next(&mut events).await,
        Event::FlowLost { error: FlowError::MappingChanged { from, to }, .. }
            if (from, to) == (source, moved)
    );
    assert_matches!(next(&mut events).await, Event::Refreshed(_));
}
