//! Transports that come, go and are replaced while an agent runs, and which registrations notice.

use assert_matches::assert_matches;
use async_trait::async_trait;
use sip_registration::testkit::{MockTransport, SentRequest, Wire};
use sip_registration::{
    Agent, AgentError, Event, Flow, FlowError, FlowId, Inbound, Protocol, Registration,
    RegistrationHandle, Removal, Target, Transport,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// An account at a registrar of its own.
fn account(user: &str, host: u8, transport: Option<&str>) -> Registration {
    let account = Registration::builder(
        format!("sip:192.0.2.{host}"),
        format!("sip:{user}@example.com"),
    )
    .contact_user(user)
    .max_random_initial_delay(Duration::ZERO);
    let account = match transport {
        Some(name) => account.transport(name),
        None => account,
    };
    account.build().expect("in order")
}

async fn registered(agent: &Agent, wire: &mut Wire, account: Registration) -> RegistrationHandle {
    let handle = agent.add(account).await.expect("it is taken");
    accept(wire).await;
    handle.registered().await.expect("accepted");
    handle
}

async fn accept(wire: &mut Wire) -> SentRequest {
    let request = wire.next_request().await;
    wire.reply(&request, 200).await;
    request
}

async fn unregister(handle: &RegistrationHandle, wire: &mut Wire) -> Removal {
    let removing = handle.unregister(Duration::from_secs(30));
    tokio::join!(removing, accept(wire)).0
}

/// Whether nothing goes out for a minute.
async fn is_silent(wire: &mut Wire) -> bool {
    timeout(Duration::from_secs(60), wire.next_request())
        .await
        .is_err()
}

/// An agent with the transports `a` and `b`.
async fn two() -> (Agent, Wire, Wire) {
    let ((a, wire_a), (b, wire_b)) = (MockTransport::new(), MockTransport::new());
    let agent = Agent::builder().transport("a", a).transport("b", b);
    (agent.build().await.expect("an agent"), wire_a, wire_b)
}

#[tokio::test(start_paused = true)]
async fn a_replaced_transport_is_noticed_by_those_who_rode_on_it_and_by_nobody_else() {
    let (agent, mut wire_a, mut wire_b) = two().await;
    let alice = registered(&agent, &mut wire_a, account("alice", 1, None)).await;
    let bob = registered(&agent, &mut wire_b, account("bob", 2, Some("b"))).await;

    let (new, mut wire) = MockTransport::new();
    agent.add_transport("b", new).await.expect("it starts");
    let request = accept(&mut wire).await;
    assert_eq!(
        request.header("To").as_deref(),
        Some("<sip:bob@example.com>")
    );
    tokio::time::sleep(Duration::from_millis(1)).await;
    let status = bob.status().await.expect("it is there");
    assert!(
        status.is_reachable() && status.last_failure.is_none(),
        "{status:?}"
    );
    assert!(is_silent(&mut wire).await);
    assert!(is_silent(&mut wire_a).await && is_silent(&mut wire_b).await);
    assert!(alice.status().await.expect("it is there").is_reachable());

    // Its place is that of the old one: the default stays.
    let carol = registered(&agent, &mut wire_a, account("carol", 3, None)).await;
    assert_eq!(unregister(&carol, &mut wire_a).await, Removal::Removed);
    assert_eq!(unregister(&bob, &mut wire).await, Removal::Removed);
}

#[tokio::test(start_paused = true)]
async fn an_added_transport_serves_those_who_name_it_and_is_no_default_of_others() {
    let (agent, mut wire_a, _wire_b) = two().await;
    let mut events = agent.events();
    let bob = agent
        .add(account("bob", 2, Some("c")))
        .await
        .expect("it is taken");
    loop {
        let (_, event) = events.next().await.expect("the agent lives");
        if let Event::Rejected { failure, .. } = &*event {
            assert!(failure.to_string().contains("\"c\""), "{failure}");
            break;
        }
    }
    let (new, mut wire) = MockTransport::new();
    agent.add_transport("c", new).await.expect("it starts");
    bob.refresh().await.expect("it is there");
    accept(&mut wire).await;
    bob.registered().await.expect("accepted");
    registered(&agent, &mut wire_a, account("alice", 1, None)).await;
    assert!(is_silent(&mut wire).await);

    // The first that speaks a protocol is there for all.
    let (tcp, mut stream) = MockTransport::new();
    let tcp = tcp.with_protocol(Protocol::Tcp);
    agent.add_transport("tcp", tcp).await.expect("it starts");
    let over_tcp = Registration::builder("sip:192.0.2.9;transport=tcp", "sip:d@example.com")
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("in order");
    registered(&agent, &mut stream, over_tcp).await;
}

/// One that the test keeps a share of: who else has one is counted
#[derive(Debug)]
struct Shared(Arc<MockTransport>);

#[async_trait]
impl Transport for Shared {
    fn protocols(&self) -> &[Protocol] {
        self.0.protocols()
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        self.0.start(inbound).await
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        self.0.open(id, to).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_transport_is_left_by_those_who_do_not_name_it_and_ends_with_the_last_who_does() {
    let ((a, mut wire_a), (b, mut wire_b)) = (MockTransport::new(), MockTransport::new());
    let a = Arc::new(a);
    let agent = Agent::builder()
        .transport("a", Shared(Arc::clone(&a)))
        .transport("b", b);
    let agent = agent.build().await.expect("an agent");
    let alice = registered(&agent, &mut wire_a, account("alice", 1, None)).await;
    let bob = registered(&agent, &mut wire_a, account("bob", 2, Some("a"))).await;
    assert!(!agent.remove_transport("nobody").await);
    assert!(agent.remove_transport("a").await);
    assert!(!agent.remove_transport("a").await);

    let request = accept(&mut wire_b).await;
    assert_eq!(
        request.header("To").as_deref(),
        Some("<sip:alice@example.com>")
    );
    assert!(is_silent(&mut wire_a).await);
    assert!(alice.status().await.expect("it is there").is_reachable());
    // The other one refreshes and is removed where it is.
    bob.refresh().await.expect("it is there");
    accept(&mut wire_a).await;
    assert!(Arc::strong_count(&a) > 1);
    assert_eq!(unregister(&bob, &mut wire_a).await, Removal::Removed);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(Arc::strong_count(&a), 1);
    // Whoever names it now is told so.
    assert_matches!(
        agent.add(account("carol", 3, Some("a"))).await.expect("it is taken").status().await,
        Some(status) if !status.is_registered()
    );
    assert!(is_silent(&mut wire_a).await);
}

/// One that cannot start.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl Transport for Broken {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    async fn start(&self, _: Inbound) -> Result<(), FlowError> {
        Err(FlowError::Refused)
    }

    async fn open(&self, _: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        Err(FlowError::NoTransport(to.protocol()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_cannot_start_takes_no_place() {
    let (agent, mut wire_a, mut wire_b) = two().await;
    let bob = registered(&agent, &mut wire_b, account("bob", 2, Some("b"))).await;
    let error = agent.add_transport("b", Broken).await;
    assert_matches!(error, Err(AgentError::Transport { name, source: FlowError::Refused }) if *name == *"b");
    assert!(is_silent(&mut wire_a).await && is_silent(&mut wire_b).await);
    bob.refresh().await.expect("it is there");
    accept(&mut wire_b).await;

    let ends = agent.shutdown(Duration::from_secs(5));
    tokio::join!(ends, accept(&mut wire_b));
    let (late, _wire) = MockTransport::new();
    assert_matches!(
        agent.add_transport("c", late).await,
        Err(AgentError::Closed)
    );
    assert!(!agent.remove_transport("a").await);
}

/// Never done with making a flow.
#[derive(Debug)]
struct Stuck;

#[async_trait]
impl Transport for Stuck {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    async fn start(&self, _: Inbound) -> Result<(), FlowError> {
        Ok(())
    }

    async fn open(&self, _: FlowId, _: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_is_being_made_is_made_on_what_came_in_its_place() {
    let agent = Agent::builder().transport("a", Stuck).build().await;
    let agent = agent.expect("an agent");
    let alice = agent.add(account("alice", 1, Some("a"))).await;
    let alice = alice.expect("it is taken");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (new, mut wire) = MockTransport::new();
    agent.add_transport("a", new).await.expect("it starts");
    accept(&mut wire).await;
    alice.registered().await.expect("accepted");
    assert!(is_silent(&mut wire).await);

    // The same where one is removed, and another is the default then.
    let agent = Agent::builder().transport("a", Stuck).build().await;
    let agent = agent.expect("an agent");
    let (new, mut wire) = MockTransport::new();
    agent.add_transport("b", new).await.expect("it starts");
    let alice = agent.add(account("alice", 1, None)).await;
    let alice = alice.expect("it is taken");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(agent.remove_transport("a").await);
    accept(&mut wire).await;
    alice.registered().await.expect("accepted");
}
