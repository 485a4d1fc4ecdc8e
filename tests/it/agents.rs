//! Several agents in one process share nothing; one registration with several flows, as an application sees it.

use assert_matches::assert_matches;
use sip_registration::testkit::{MockTransport, Reply, SentRequest, Wire};
use sip_registration::*;
use std::time::Duration;

const CHALLENGE: &str = "Digest realm=\"example.com\", nonce=\"n\", qop=\"auth\"";

async fn agent(protocol: Protocol) -> (Agent, Wire) {
    let (transport, wire) = MockTransport::new();
    let agent = Agent::builder().transport("mock", transport.with_protocol(protocol));
    let agent = agent.build().await.expect("an agent");
    (agent, wire)
}

fn account(password: &str) -> RegistrationBuilder {
    Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .contact_user("alice")
        .outbound_auth(Credentials::password("alice", password))
        .line(true)
        .endpoint("alice")
        .max_random_initial_delay(Duration::ZERO)
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

fn contact(request: &SentRequest) -> String {
    let value = request.header("Contact").expect("a contact").into_owned();
    let (_, rest) = value.split_once('<').expect("in brackets");
    rest.split('>').next().unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn agents_in_one_process_share_nothing() {
    let (one, mut at_one) = agent(Protocol::Udp).await;
    let (two, mut at_two) = agent(Protocol::Udp).await;
    // One's password is wrong until its guard lets nothing through any more.
    for _ in 0..4 {
        let handle = one.add(built(account("wrong"))).await.expect("added");
        while handle.status().await.expect("there").last_failure.is_none() {
            tokio::select! {
                request = at_one.next_request() => {
                    at_one.reply(&request, Reply::status(401).header("WWW-Authenticate", CHALLENGE)).await;
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        handle.remove(Duration::from_secs(1)).await;
    }
    let blocked = one.add(built(account("wrong"))).await.expect("added");
    let first = at_one.next_request().await;
    let challenge = Reply::status(401).header("WWW-Authenticate", CHALLENGE);
    at_one.reply(&first, challenge.clone()).await;
    assert_matches!(
        blocked.registered().await,
        Err(Failure::CredentialsRefused { .. })
    );

    // The other one asks for the same account with the same password, and is heard.
    let handle = two.add(built(account("wrong"))).await.expect("added");
    let question = at_two.next_request().await;
    at_two.reply(&question, challenge).await;
    let answer = at_two.next_request().await;
    assert!(answer.header("Authorization").is_some());
    at_two.reply(&answer, 200).await;
    handle.registered().await.expect("registered");

    // Neither Call-ID, branch nor line of one is of use to the other.
    assert_ne!(first.call_id(), question.call_id());
    let tag = |request: &SentRequest| {
        let via = request.header("Via").expect("a via").into_owned();
        let (_, branch) = via.split_once("branch=z9hG4bK").expect("a branch");
        branch[..8].to_owned()
    };
    assert_ne!(tag(&first), tag(&question));
    let source = ([192, 0, 2, 9], 5060).into();
    let to = "<sip:alice@example.com>";
    let uri = contact(&answer);
    let found = two.matches(&uri, to, source).await.expect("it is ours");
    assert_eq!(
        (found.registration, found.endpoint.as_deref()),
        (handle.id(), Some("alice"))
    );
    let line = uri.split(";line=").nth(1).expect("a line").to_owned();
    let by_line = format!("sip:nobody@192.0.2.1:5060;line={line}");
    assert!(two.matches(&by_line, to, source).await.is_some());
    assert!(one.matches(&by_line, to, source).await.is_none());

    // And the end of one is not the end of the other.
    one.shutdown(Duration::from_secs(1)).await;
    handle.refresh().await.expect("it runs");
    let refresh = at_two.next_request().await;
    at_two.reply(&refresh, 200).await;
    assert!(handle.status().await.expect("there").is_reachable());
}

#[tokio::test(start_paused = true)]
async fn a_registration_with_two_flows_is_one_with_two_ways_out() {
    let (agent, mut wire) = agent(Protocol::Tcp).await;
    let mut events = agent.events();
    let device = account("secret")
        .instance(InstanceId::from_random([7; 16]))
        .outbound_proxy("sip:192.0.2.11;lr;transport=tcp")
        .further_flow("sip:192.0.2.12;lr;transport=tcp");
    let handle = agent.add(built(device)).await.expect("added");
    let outbound = Reply::granted(3600).header("Require", "outbound");
    let first = wire.next_request().await;
    wire.reply(&first, outbound.clone()).await;
    let granted = handle.registered().await.expect("registered");
    assert_eq!((granted.reg_id, granted.outbound), (Some(1), true));
    let second = wire.next_request().await;
    wire.reply(&second, outbound.clone()).await;
    assert_matches!(events.next().await, Some((id, event)) if id == handle.id() && matches!(&*event, Event::Registered(_)));
    let (_, event) = events.next().await.expect("an event");
    assert_matches!(&*event, Event::OfFlow { reg_id: 2, .. });
    assert!(
        event
            .to_string()
            .starts_with("flow 2: registered sip:alice@192.0.2.1:5060"),
        "{event}"
    );

    assert_eq!(handle.flows().await.len(), 2);
    let ways = handle.ways_out().await;
    let of: Vec<_> = ways
        .iter()
        .map(|way| (way.reg_id, &*way.route[0]))
        .collect();
    assert!(
        of.contains(&(Some(1), "<sip:192.0.2.11;lr;transport=tcp>")),
        "{of:?}"
    );
    assert!(
        of.contains(&(Some(2), "<sip:192.0.2.12;lr;transport=tcp>")),
        "{of:?}"
    );
    assert!(
        ways.iter().all(|way| way.contact.ends_with(";ob")),
        "{ways:?}"
    );
    assert!(agent.flow(ways[0].flow).await.is_some());
    // As a mock's caller sees it, through the trait.
    let registrar: &dyn Registrar = &agent;
    assert_eq!(registrar.ways_out(handle.id()).await, ways);
    let reached = |statuses: Vec<(u8, Status)>| -> Vec<(u8, bool)> {
        let reached = statuses
            .into_iter()
            .map(|(number, status)| (number, status.is_reachable()));
        reached.collect()
    };
    assert_eq!(
        reached(registrar.flow_statuses(handle.id()).await),
        [(1, true), (2, true)]
    );

    // A request by its line belongs to the registration, whichever flow's line it is.
    for register in [&first, &second] {
        let source = register.target().address();
        let found = agent
            .matches(&contact(register), "<sip:alice@example.com>", source)
            .await;
        assert_eq!(found.map(|found| found.registration), Some(handle.id()));
    }

    // One connection dies: calls arrive by the other.
    wire.fail(first.flow(), FlowError::Reset).await;
    let again = wire.next_request().await;
    assert_eq!(again.target(), first.target());
    assert!(handle.status().await.expect("there").is_reachable());
    assert_eq!(handle.ways_out().await.len(), 1);
    wire.reply(&again, outbound).await;
    while handle.ways_out().await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let removing = tokio::spawn(async move { handle.remove(Duration::from_secs(5)).await });
    for _ in 0..2 {
        let removal = wire.next_request().await;
        assert_eq!(removal.delta_seconds("Expires"), Some(0));
        wire.reply(&removal, Reply::status(200)).await;
    }
    assert_eq!(removing.await.expect("it ends"), Removal::Removed);
    assert!(agent.statuses().await.is_empty());
}
