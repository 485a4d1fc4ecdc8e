//! Calls that arrive: by way of Kamailio to the example `softphone`, from SIPp, sipsak and baresip; and whose call it is;
//! and calls that a host places and others end
//!
//! The Request-URI that arrives is compared with what Kamailio has bound, so that nothing of it was lost on the way.

mod placed;
mod softphone;

use crate::caller::Caller;
use crate::lab::Lab;
use crate::ports::free_port;
use sip_registration::{
    Agent, Credentials, Event, InboundMessage, Messages, Registration, RegistrationBuilder,
    RegistrationHandle, RegistrationId, Warning,
};
use softphone::{Folder, Softphone, Way, baresip, sipp, sipsak};
use std::time::Duration;
use tokio::time::timeout;

/// How long anything may take
const PATIENCE: Duration = Duration::from_secs(20);

async fn are_refused(way: Way) {
    let user = way.user("refused");
    let folder = Folder::new(&user);
    let mut phone = Softphone::start(&user, &way.flags(&user, &folder.0)).await;
    let aor = format!("sip:{user}@registrar.test");
    sipp("call_refused", &user, &folder.0).await;
    // A proxy acknowledges what is no 2xx itself.
    phone
        .got(&["MESSAGE", "OPTIONS", "INVITE", "ACK"], &aor, "softphone")
        .await;
    sipsak(&user).await;
    phone.got(&["OPTIONS"], &aor, "softphone").await;
    let trace = baresip(&user, &folder.0).await;
    assert!(trace.contains("session closed: 486 Busy Here"), "{trace}");
    phone.got(&["INVITE", "ACK"], &aor, "softphone").await;
    phone.ends().await;
}

async fn are_taken(way: Way) {
    let user = way.user("taken");
    let folder = Folder::new(&user);
    let mut flags = way.flags(&user, &folder.0);
    flags.push("--answer".into());
    let mut phone = Softphone::start(&user, &flags).await;
    let aor = format!("sip:{user}@registrar.test");
    // What is sent in the dialog comes by the Contact of our 200: the GRUU, or the flow's.
    sipp("call_taken", &user, &folder.0).await;
    phone
        .got(&["INVITE", "ACK", "BYE"], &aor, "softphone")
        .await;
    let trace = baresip(&user, &folder.0).await;
    assert!(trace.contains("Call established: "), "{trace}");
    assert!(trace.contains("terminated (duration: "), "{trace}");
    if way.edge {
        let gruu = format!("Contact: <{aor};gr=urn:uuid:");
        assert!(trace.contains(&gruu), "no {gruu:?} in {trace}");
    }
    phone
        .got(&["INVITE", "ACK", "BYE"], &aor, "softphone")
        .await;
    phone.ends().await;
}

macro_rules! ways {
    ($($name:ident $transport:literal $edge:literal;)*) => {$(
        mod $name {
            const WAY: super::Way = super::Way { transport: $transport, edge: $edge };

            #[tokio::test]
            #[ignore = "needs Kamailio, SIPp, sipsak, baresip and the example softphone; .ci/run runs it"]
            async fn are_refused() {
                super::are_refused(WAY).await;
            }

            #[tokio::test]
            #[ignore = "needs Kamailio, SIPp, baresip and the example softphone; .ci/run runs it"]
            async fn are_taken() {
                super::are_taken(WAY).await;
            }

            #[tokio::test]
            #[ignore = "needs Kamailio and SIPp; .ci/run runs it"]
            async fn are_placed_and_ended_by_the_other_side() {
                super::placed::are_ended_by_the_other_side(WAY).await;
            }
        }
    )*};
}

ways! {
    over_udp "udp" false;
    over_tcp "tcp" false;
    over_tls "tls" false;
    over_ws "ws" false;
    over_wss "wss" false;
    by_an_edge_over_udp "udp" true;
    by_an_edge_over_tcp "tcp" true;
    by_an_edge_over_tls "tls" true;
    by_an_edge_over_ws "ws" true;
    by_an_edge_over_wss "wss" true;
}

#[tokio::test]
#[ignore = "needs Kamailio and SIPp; .ci/run runs it"]
async fn with_a_gruu_are_ended_over_the_flow_that_came_after() {
    for (transport, edge) in [("ws", false), ("ws", true), ("wss", true)] {
        placed::outlive_their_flow(Way { transport, edge }, true).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio and SIPp; .ci/run runs it"]
async fn without_a_gruu_end_with_their_connection() {
    let way = Way {
        transport: "ws",
        edge: false,
    };
    placed::outlive_their_flow(way, false).await;
}

#[tokio::test]
#[ignore = "needs Kamailio, SIPp and the example softphone; .ci/run runs it"]
async fn accounts_of_a_file_are_told_apart() {
    let (alice, bob) = ("alice-in-a-file", "bob-in-a-file");
    let folder = Folder::new("file");
    let mut text = format!("[udp]\ntype=transport\nbind=127.0.0.1:{}\n", free_port());
    for user in [alice, bob] {
        text.push_str(&format!(
            "[{user}]\ntype=registration\nserver_uri=sip:127.0.0.1:{}\nclient_uri=sip:{user}@registrar.test\n\
             contact_user={user}\noutbound_auth=auth-{user}\nmax_random_initial_delay=0\nline=yes\nendpoint=of-{user}\n\
             [auth-{user}]\ntype=auth\nusername={user}\npassword=secret\n",
            Lab::registrar(&[]).port()
        ));
    }
    let config = folder.0.join("pjsip.conf");
    std::fs::write(&config, text).expect("written");
    let flags = ["--config".into(), config.to_string_lossy().into_owned()];
    let mut phone = Softphone::start(alice, &flags).await;
    phone.until(" registered ").await;
    for user in [bob, alice] {
        sipp("call_refused", user, &folder.0).await;
        phone.user = user.into();
        let endpoint = format!("of-{user}");
        phone
            .got(&["MESSAGE", "OPTIONS", "INVITE", "ACK"], user, &endpoint)
            .await;
    }
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio, SIPp, baresip and the example softphone; .ci/run runs it"]
async fn calls_are_taken_by_either_of_two_edges() {
    let (lab, user) = (Lab::registrar(&[]), "alice-two-edges");
    let folder = Folder::new(user);
    let edges = [lab.own_edge(&[]), lab.own_edge(&[])];
    let [first, second] =
        edges.map(|edge| format!("sip:127.0.0.1:{};transport=tcp;lr", edge.port()));
    let instance = folder.0.join("instance").to_string_lossy().into_owned();
    let aor = format!("sip:{user}@registrar.test");
    let flags = [
        "--server",
        "sip:registrar.test",
        "--aor",
        &aor,
        "--proxy",
        &first,
        "--flow",
        &second,
        "--instance",
        &instance,
        "--gruu",
        "--answer",
    ]
    .map(String::from);
    let mut phone = Softphone::start(user, &flags).await;
    phone.until(" flow 2: registered ").await;

    // The youngest first, then the other one, when the edge of that is dead.
    for edge in [1, 0] {
        sipp("call_taken", user, &folder.0).await;
        let source = format!(" from 127.0.0.1:{} on flow ", edges[edge].port());
        for method in ["INVITE ", "ACK ", "BYE "] {
            let line = phone.until(" from ").await;
            assert!(line.starts_with(method) && line.contains(&source), "{line}");
        }
        edges[edge].stop();
        phone.until("connection lost: ").await;
    }
}

// ---- whose call it is

async fn registered(agent: &Agent, account: RegistrationBuilder) -> RegistrationHandle {
    let account = account.build().expect("a good configuration");
    let handle = agent.add(account).await.expect("a registration");
    let registered = timeout(PATIENCE, handle.registered()).await;
    registered.expect("in time").expect("registered");
    handle
}

/// One agent with one UDP socket, and the accounts on it
struct Office {
    agent: Agent,
    messages: Messages,
}

impl Office {
    async fn new() -> Self {
        let agent = Agent::builder().system_transports().build().await;
        let agent = agent.expect("an agent");
        let messages = agent.messages();
        Self { agent, messages }
    }

    async fn add(&self, account: RegistrationBuilder) -> RegistrationHandle {
        registered(&self.agent, account).await
    }

    /// Somebody writes to a user at a registrar, and it is answered; whose it was, and what came.
    async fn written(&mut self, lab: &Lab, user: &str) -> (Option<RegistrationId>, InboundMessage) {
        let caller = Caller::of(lab).await;
        let aor = format!("sip:{user}@registrar.test");
        let (code, message) = tokio::join!(caller.asks("MESSAGE", &aor, &aor), self.next());
        assert_eq!(code, 200);
        let whose = message.registration.as_ref();
        (whose.map(|found| found.registration), message)
    }

    async fn next(&mut self) -> InboundMessage {
        let message = timeout(PATIENCE, self.messages.next()).await;
        let message = message.expect("in time").expect("a message");
        let response = message.response(200).expect("a response");
        let answered = self.agent.answer(&message, response.build());
        answered.expect("sent");
        message
    }
}

fn account(lab: &Lab, user: &str) -> RegistrationBuilder {
    Registration::builder(
        format!("sip:127.0.0.1:{};transport=udp", lab.port()),
        format!("sip:{user}@registrar.test"),
    )
    .contact_user(user)
    .outbound_auth(Credentials::password(user, "secret"))
    .max_random_initial_delay(Duration::ZERO)
}

fn with_line(account: RegistrationBuilder) -> RegistrationBuilder {
    account.line(true).endpoint("phone")
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn two_accounts_on_one_socket_get_their_own_calls() {
    let lab = Lab::registrar(&[]);
    for (line, users) in [
        (true, ["alice-socket-line", "bob-socket-line"]),
        (false, ["alice-socket", "bob-socket"]),
    ] {
        let mut office = Office::new().await;
        let mut handles = Vec::new();
        for user in users {
            let account = account(lab, user);
            let account = if line { with_line(account) } else { account };
            handles.push(office.add(account).await);
        }
        for round in [1, 0, 0, 1] {
            let (whose, _) = office.written(lab, users[round]).await;
            assert_eq!(whose, Some(handles[round].id()), "{}", users[round]);
        }
        let flows = [handles[0].flows().await, handles[1].flows().await];
        let local = flows.map(|flows| flows[0].info().local());
        assert_eq!(local[0], local[1], "one socket");
        office.agent.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn one_address_of_record_at_two_providers_gets_no_call_of_the_other() {
    let labs = [Lab::registrar(&[]), Lab::registrar(&["MAX_EXPIRES=120"])];
    for (line, user) in [(true, "alice-twice-line"), (false, "alice-twice")] {
        let mut office = Office::new().await;
        let mut handles = Vec::new();
        for lab in labs {
            let account = account(lab, user);
            let account = if line { with_line(account) } else { account };
            handles.push(office.add(account).await);
        }
        for round in [1, 0, 0, 1] {
            let (whose, message) = office.written(labs[round], user).await;
            assert_eq!(message.source.port(), labs[round].port());
            // Without the token both have the same Contact, and the flow tells.
            assert_eq!(whose, Some(handles[round].id()), "{message:?}");
        }
        office.agent.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrations_that_collide_get_a_call_each_by_the_token_and_none_without() {
    let lab = Lab::registrar(&[]);
    // The same Contact: one binding, and nobody can say whose the call is.
    let user = "alice-collides";
    let mut office = Office::new().await;
    let mut events = office.agent.events();
    let one = office.add(account(lab, user)).await;
    let two = office.add(account(lab, user)).await;
    let warned = timeout(PATIENCE, async {
        loop {
            let (id, event) = events.next().await.expect("the agent lives");
            if let Event::Warning(Warning::SameBinding(with)) = &*event {
                return (id, *with);
            }
        }
    });
    assert_eq!(warned.await.expect("a warning"), (two.id(), one.id()));
    assert_eq!(lab.bindings(user).await.len(), 1);
    let (whose, message) = office.written(lab, user).await;
    assert_eq!(whose, None);
    let candidates = message.candidates().iter();
    let candidates: Vec<_> = candidates.map(|found| found.registration).collect();
    assert_eq!(candidates, [one.id(), two.id()]);
    office.agent.shutdown(PATIENCE).await;

    // Two bindings, which the registrar calls both.
    let user = "alice-forks";
    let mut office = Office::new().await;
    let one = office.add(with_line(account(lab, user))).await;
    let two = office.add(with_line(account(lab, user))).await;
    assert_eq!(lab.bindings(user).await.len(), 2);
    let (first, message) = office.written(lab, user).await;
    let second = office.next().await;
    assert_ne!(
        message.request().expect("a request").uri(),
        second.request().expect("a request").uri()
    );
    let second = second.registration.map(|found| found.registration);
    let mut whose = [first, second];
    whose.sort();
    assert_eq!(whose, [Some(one.id()), Some(two.id())]);
    office.agent.shutdown(PATIENCE).await;
}
