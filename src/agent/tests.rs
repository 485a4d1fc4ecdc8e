//! The agent over a mock wire, in paused time.

use super::actor::FULL_RETRY;
use super::events::ROOM;
use crate::testkit::{MockTransport, Reply, SentRequest, Wire};
use crate::*;
use crate::{Credentials, Registrar};
use assert_matches::assert_matches;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

const REALM: &str = "Digest realm=\"example.com\", nonce=\"n\", qop=\"auth\"";

fn account() -> Registration {
    Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .unwrap()
}

async fn agent() -> (Agent, Wire) {
    let (transport, wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport)
        .seed([7; 32])
        .build()
        .await
        .unwrap();
    (agent, wire)
}

async fn registered() -> (Agent, Wire, RegistrationHandle, SentRequest) {
    let (agent, mut wire) = agent().await;
    let handle = agent.add(account()).await.unwrap();
    let register = wire.next_request().await;
    wire.reply(&register, 200).await;
    handle.registered().await.unwrap();
    (agent, wire, handle, register)
}

#[tokio::test(start_paused = true)]
async fn a_registration_is_made_and_an_outcome_before_the_call_counts() {
    let (agent, _wire, handle, register) = registered().await;
    assert_eq!(register.method(), "REGISTER");
    handle.registered().await.unwrap();
    assert!(handle.status().await.unwrap().is_registered());
    assert_eq!(handle.flows().await.len(), 1);
    let again = agent.handle(handle.id()).await.unwrap();
    again.registered().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_ends_the_wait_for_a_binding() {
    let (agent, mut wire) = agent().await;
    let mut events = agent.events();
    let handle = agent.add(account()).await.unwrap();
    let answering = tokio::spawn(async move {
        loop {
            let register = wire.next_request().await;
            wire.reply(
                &register,
                Reply::from(401).header("WWW-Authenticate", REALM),
            )
            .await;
        }
    });
    assert_matches!(
        handle.registered().await,
        Err(Failure::CredentialsRefused { .. })
    );
    loop {
        let (id, event) = events.next().await.unwrap();
        assert_eq!(id, handle.id());
        if matches!(*event, Event::GaveUp { .. }) {
            break;
        }
    }
    answering.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lost_flow_registers_again_on_a_new_one() {
    let (_agent, mut wire, _handle, first) = registered().await;
    wire.fail(first.flow(), FlowError::Reset).await;
    let second = wire.next_request().await;
    assert_ne!(second.flow(), first.flow());
    assert_eq!(second.call_id(), first.call_id());
}

#[tokio::test(start_paused = true)]
async fn shutdown_tells_the_fate_of_each_binding_and_ends_the_streams() {
    let (agent, mut wire, handle, _) = registered().await;
    let mut events = agent.events();
    let id = handle.id();
    let closing = tokio::spawn(async move {
        let fates = agent.shutdown(Duration::from_secs(5)).await;
        (agent, fates)
    });
    let unregister = wire.next_request().await;
    wire.reply(&unregister, 200).await;
    let (agent, fates) = closing.await.unwrap();
    assert_eq!(fates, [(id, Removal::Removed)]);
    assert_matches!(events.next().await, Some((_, event)) if *event == Event::Unregistered(Removal::Removed));
    assert_matches!(events.next().await, None);
    assert_matches!(agent.events().next().await, None);
    assert_matches!(agent.add(account()).await, Err(RegisterError::Closed));
    assert_matches!(
        handle.registered().await,
        Err(Failure::Flow(FlowError::ClosedByUs))
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_nobody_answers_ends_at_its_deadline() {
    let (agent, _wire, handle, _) = registered().await;
    let start = SystemClock::new().now();
    let fates = agent.shutdown(Duration::from_secs(5)).await;
    assert_eq!(fates, [(handle.id(), Removal::Unanswered)]);
    let took = SystemClock::new().now() - start;
    assert!(took <= Duration::from_millis(5100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn concurrent_unregisters_all_hear_of_the_one_that_is_sent_and_a_refresh_starts_anew() {
    let (_agent, mut wire, handle, _) = registered().await;
    let other = handle.clone();
    let answering = async {
        let unregister = wire.next_request().await;
        wire.reply(&unregister, 200).await;
    };
    let within = Duration::from_secs(5);
    let (one, two, ()) = tokio::join!(
        handle.unregister(within),
        other.unregister(within),
        answering
    );
    assert_eq!((one, two), (Removal::Removed, Removal::Removed));
    assert_matches!(handle.registered().await, Err(_));
    assert!(wire.try_request().is_none());
    handle.refresh().await.unwrap();
    let register = wire.next_request().await;
    wire.reply(&register, 200).await;
    handle.registered().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_foreign_request_is_answered_unless_somebody_reads_messages() {
    let (agent, mut wire, handle, register) = registered().await;
    let request = |method: &str| {
        format!(
            "{method} sip:alice@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;rport;branch=z9hG4bKx, \
             SIP/2.0/UDP b;branch=z9hG4bKy\r\nMax-Forwards: 70\r\nFrom: <sip:b@b>;tag=1\r\nTo: <sip:alice@example.com>\r\n\
             Call-ID: c\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        )
    };
    wire.push(&register, request("OPTIONS")).await;
    let answer = wire.next_response().await;
    assert_eq!(answer.code(), 200);
    assert_eq!(answer.via_count(), 2);
    let via = answer.via().unwrap();
    assert_eq!(
        (via.rport, via.received.as_deref()),
        (Some(Some(5060)), Some("192.0.2.9"))
    );
    assert!(answer.tag_of("To").is_some());
    wire.push_from(register.target().address(), request("INVITE"))
        .await;
    assert_eq!(wire.next_response().await.code(), 480);

    let mut messages = agent.messages();
    wire.push(&register, request("MESSAGE")).await;
    let message = messages.next().await.unwrap();
    assert_eq!(message.request().unwrap().method(), "MESSAGE");
    assert_eq!(message.flow, Some(register.flow()));
    drop((messages, handle));
    wire.push(&register, request("ACK")).await;
    wire.push(&register, request("BYE")).await;
    assert_eq!(wire.next_response().await.cseq().unwrap().1, "BYE");
}

#[tokio::test(start_paused = true)]
async fn a_host_answers_on_the_flow_the_request_came_on() {
    let (agent, mut wire, handle, register) = registered().await;
    let mut messages = agent.messages();
    let invite = "INVITE sip:s@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKx\r\nMax-Forwards: 70\r\n\
                  From: <sip:b@b>;tag=1\r\nTo: <sip:alice@example.com>\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n\
                  Content-Length: 0\r\n\r\n";
    wire.push(&register, invite).await;
    let message = messages.next().await.unwrap();
    assert_eq!(
        message.registration.as_ref().unwrap().registration,
        handle.id()
    );
    let flow = agent.flow(message.flow.unwrap()).await.unwrap();
    assert_eq!(flow.info().remote(), register.target().address());
    let response = message.response(486).unwrap().build();
    agent.answer(&message, response).unwrap();
    let answer = wire.next_response().await;
    assert_eq!(
        (answer.code(), answer.cseq().unwrap().1.as_ref()),
        (486, "INVITE")
    );
}

/// A request by UDP from an address that nothing is registered at: the answer goes back by the same socket.
#[tokio::test]
async fn a_request_from_elsewhere_is_answered_where_it_came_from() {
    let config = TransportConfig::new("udp", Protocol::Udp)
        .unwrap()
        .with_bind("127.0.0.1:0".parse().unwrap());
    let transport = UdpTransport::bind(config).await.unwrap();
    let address = transport.local_addr().unwrap();
    let _agent = Agent::builder()
        .transport("udp", transport)
        .build()
        .await
        .unwrap();
    let peer = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let options = "OPTIONS sip:s@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1;rport;branch=z9hG4bKx\r\nMax-Forwards: 70\r\n\
                   From: <sip:b@b>;tag=1\r\nTo: <sip:s@b>\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
    peer.send_to(options.as_bytes(), address).await.unwrap();
    let mut answer = [0; 2000];
    let received = tokio::time::timeout(Duration::from_secs(5), peer.recv_from(&mut answer));
    let (length, from) = received.await.unwrap().unwrap();
    assert_eq!(from, address);
    assert!(answer[..length].starts_with(b"SIP/2.0 200 OK\r\n"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_a_full_flow_did_not_take_is_sent_soon_after() {
    let (agent, mut wire) = agent().await;
    wire.full_next_send();
    wire.full_next_send();
    let start = SystemClock::new().now();
    agent.add(account()).await.unwrap();
    wire.next_request().await;
    let took = SystemClock::new().now() - start;
    assert!(
        took >= 2 * FULL_RETRY && took < Duration::from_millis(100),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_lags_is_told_how_much_it_missed() {
    let (agent, _wire) = agent().await;
    let mut events = agent.events();
    let later = Registration::builder("sip:192.0.2.9", "sip:bob@example.com")
        .build()
        .unwrap();
    for _ in 0..ROOM + 10 {
        agent.register(later.clone()).await.unwrap();
    }
    events.next().await.unwrap();
    assert!(events.missed() >= 10, "{}", events.missed());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_add_leaves_nothing() {
    let (agent, _wire) = agent().await;
    {
        let mut add = Box::pin(agent.add(account()));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(add.as_mut().poll(cx).is_pending()))
                .await
        );
    }
    assert_eq!(agent.statuses().await.len(), 1);
    tokio::time::sleep(Duration::from_secs(36)).await;
    assert!(agent.statuses().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_panics_counts_as_no_answer() {
    #[derive(Debug)]
    struct Panics;
    #[async_trait]
    impl Resolver for Panics {
        async fn resolve(&self, _: &Query) -> Result<Answer, ResolveError> {
            panic!("as scripted")
        }
    }
    let (transport, _wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport)
        .resolver(Panics)
        .build()
        .await
        .unwrap();
    let mut events = agent.events();
    let account = Registration::builder("sip:example.com", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .unwrap();
    agent.add(account).await.unwrap();
    loop {
        let (_, event) = events.next().await.unwrap();
        if matches!(
            &*event,
            Event::Rejected {
                failure: Failure::Resolve(_),
                ..
            }
        ) {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_needs_a_transport_of_each_name_once() {
    assert_matches!(Agent::builder().build().await, Err(AgentError::NoTransport));
    let doubled = Agent::builder()
        .transport("a", MockTransport::new().0)
        .transport("a", MockTransport::new().0);
    assert_matches!(
        doubled.build().await,
        Err(AgentError::DuplicateTransport(_))
    );
}

#[tokio::test(start_paused = true)]
async fn a_transport_with_the_name_of_a_built_in_one_takes_its_place() {
    let (own, mut wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("udp", own)
        .system_transports()
        .build()
        .await
        .unwrap();
    let _handle = agent.add(account()).await.unwrap();
    let register = wire.next_request().await;
    assert_eq!(register.method(), "REGISTER");
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_ran_ahead_ages_the_lease() {
    use std::sync::atomic::Ordering;
    #[derive(Debug, Clone)]
    struct Sleeper(Instant, Arc<AtomicU64>);
    impl Clock for Sleeper {
        fn now(&self) -> Instant {
            SystemClock::new().now()
        }
        fn wall(&self) -> SystemTime {
            let slept = Duration::from_secs(self.1.load(Ordering::Relaxed));
            SystemTime::UNIX_EPOCH + self.now().duration_since(self.0) + slept
        }
    }
    let clock = Sleeper(SystemClock::new().now(), Arc::default());
    let (transport, mut wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport)
        .clock(clock.clone())
        .build()
        .await
        .unwrap();
    let handle = agent.add(account()).await.unwrap();
    let register = wire.next_request().await;
    wire.reply(&register, 200).await;
    handle.registered().await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(wire.try_request().is_none());
    clock.1.store(2 * 3600, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(60), wire.next_request())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_the_agent_without_a_request() {
    let (agent, mut wire, handle, register) = registered().await;
    let mut events = agent.events();
    drop((agent, handle));
    while events.next().await.is_some() {}
    assert!(wire.try_request().is_none());
    assert!(!wire.flows().contains(&register.flow()));
}
