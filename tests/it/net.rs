//! Real faults of real networks: resets, restarts, changed addresses, interfaces that come and go, closed ports
//!
//! Where a relay on loopback can do the harm, it does ([`crate::relay`]); the rest happens in network namespaces of the
//! test's own ([`crate::netns`]), which need root. Each test prints what it measured; its bound is an assertion.

use crate::lab::Lab;
use crate::netns::Place;
use crate::relay::{Nat, TcpRelay};
use assert_matches::assert_matches;
use async_trait::async_trait;
use sip_registration::testkit::{RunningServer, TestServer};
use sip_registration::{
    Activity, Agent, AgentBuilder, Answer, Credentials, Event, Events, Failure, FlowError, Policy,
    Protocol, Query, QueryKind, Registered, Registrar, Registration, RegistrationBuilder,
    RegistrationHandle, Removal, ResolveError, Resolver, TcpTransport, TransportConfig,
    UdpTransport,
};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long anything may take that has no bound of its own
const PATIENCE: Duration = Duration::from_secs(20);

/// Whom most tests register
const AOR: &str = "sip:alice@example.com";

/// One registration of one agent
struct Phone {
    agent: Agent,
    handle: RegistrationHandle,
    events: Events,
}

impl Phone {
    async fn new(agent: AgentBuilder, account: RegistrationBuilder) -> Self {
        let agent = agent.build().await.expect("an agent");
        let events = agent.events();
        let account = account.build().expect("a good configuration");
        let handle = agent.add(account).await.expect("a registration");
        Self {
            agent,
            handle,
            events,
        }
    }

    /// The next event that `pick` wants, and when it came.
    async fn until<T>(
        &mut self,
        what: &str,
        within: Duration,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> (T, Instant) {
        let mut told = Vec::new();
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                told.push(event.to_string());
                if let Some(found) = pick(&event) {
                    return (found, now());
                }
            }
        };
        timeout(within, wait)
            .await
            .unwrap_or_else(|_| panic!("{what}: not within {within:?}, but {told:?}"))
    }

    async fn bound_within(&mut self, within: Duration) -> (Registered, Instant) {
        self.until("registered", within, |event| match event {
            Event::Registered(registered) | Event::Refreshed(registered) => {
                Some((**registered).clone())
            }
            _ => None,
        })
        .await
    }

    async fn bound(&mut self) -> Registered {
        self.bound_within(PATIENCE).await.0
    }

    async fn flow_lost(&mut self) -> (FlowError, Instant) {
        self.until("flow lost", PATIENCE, |event| match event {
            Event::FlowLost { error, .. } => Some(error.clone()),
            _ => None,
        })
        .await
    }

    async fn ends(self) {
        self.agent.shutdown(Duration::from_secs(5)).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "real networks run in real time")]
fn now() -> Instant {
    Instant::now()
}

fn account(server: impl std::fmt::Display, transport: &str) -> RegistrationBuilder {
    account_of("alice", server, transport)
}

fn account_of(user: &str, server: impl std::fmt::Display, transport: &str) -> RegistrationBuilder {
    Registration::builder(
        format!("sip:{server};transport={transport}"),
        format!("sip:{user}@example.com"),
    )
    .policy(retrying())
    .contact_user(user)
    .outbound_auth(Credentials::password(user, "secret"))
    .max_random_initial_delay(Duration::ZERO)
}

/// A policy that tries again after a second
fn retrying() -> Policy {
    let mut policy = Policy::default();
    policy.retry.retry_interval = Duration::from_secs(1);
    policy.retry.jitter = 0.0;
    policy
}

fn registrar() -> TestServer {
    TestServer::new().user("alice", "secret")
}

async fn serving() -> RunningServer {
    registrar().serve("127.0.0.1:0").await.expect("a port")
}

fn system() -> AgentBuilder {
    Agent::builder().system_transports()
}

fn contacts(server: &RunningServer) -> Vec<String> {
    let bindings = server.bindings(AOR);
    bindings.into_iter().map(|bound| bound.contact).collect()
}

/// Answers every name with these addresses.
#[derive(Debug)]
struct Names(Vec<IpAddr>);

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError> {
        match query.kind {
            QueryKind::Addresses => Ok(Answer::new(self.0.clone())),
            _ => Err(ResolveError::NoAddress(Arc::clone(&query.name))),
        }
    }
}

fn names<const N: usize>(addresses: [&str; N]) -> Names {
    Names(
        addresses
            .map(|text| text.parse().expect("an address"))
            .to_vec(),
    )
}

// ---- connections

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn a_reset_connection_is_noticed_at_once_and_made_again() {
    let server = serving().await;
    let relay = TcpRelay::to(server.addr()).await;
    let mut phone = Phone::new(system(), account(relay.address, "tcp")).await;
    let before = phone.bound().await;

    let cut = now();
    relay.reset();
    let (error, noticed) = phone.flow_lost().await;
    assert_eq!(error, FlowError::Reset);
    let (after, again) = phone.bound_within(Duration::from_secs(5)).await;
    println!(
        "RST: noticed after {:?}, registered again after {:?}",
        noticed - cut,
        again - cut
    );
    assert!(noticed - cut < Duration::from_millis(500));
    // The new connection's Contact, and not the dead one's beside it.
    assert_ne!(after.contact, before.contact);
    assert_eq!(contacts(&server), [&*after.contact]);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn a_thousand_registrations_on_a_killed_connection_all_come_back() {
    const ALL: usize = 1000;
    let registrar = (0..ALL).fold(TestServer::new(), |server, number| {
        server.user(&format!("u{number}"), "secret")
    });
    let server = registrar.serve("127.0.0.1:0").await.expect("a port");
    let relay = TcpRelay::to(server.addr()).await;
    let agent = system().build().await.expect("an agent");
    let mut events = agent.events();
    for number in 0..ALL {
        let account = account_of(&format!("u{number}"), relay.address, "tcp");
        let account = account.build().expect("a good configuration");
        agent.register(account).await.expect("a registration");
    }
    let mut all_told = async |what: &str| {
        let mut told = HashSet::new();
        let mut first = None;
        let wait = async {
            while told.len() < ALL {
                match events.next().await {
                    Some((id, event)) => {
                        if matches!(*event, Event::Registered(_) | Event::Refreshed(_)) {
                            first.get_or_insert_with(now);
                            told.insert(id);
                        }
                    }
                    None => panic!("the agent has ended"),
                }
            }
        };
        let waited = timeout(Duration::from_secs(30), wait).await;
        assert!(waited.is_ok(), "{what}: {} of {ALL} told", told.len());
        (first.expect("a first one"), now())
    };
    let begun = now();
    all_told("registered").await;
    println!("{ALL} registered within {:?}", now() - begun);
    assert_eq!(relay.connections(), 1);

    let (cut, asked) = (now(), server.requests().len());
    relay.reset();
    let (first, last) = all_told("registered again").await;
    println!(
        "{ALL} registrations after RST: the first after {:?}, the last after {:?}, {} requests, {} more connections",
        first - cut,
        last - cut,
        server.requests().len() - asked,
        relay.connections() - 1
    );
    // Lost within 30 s of the grant: up to 1 s of pace (D2); 10 ms each of spread (D13) would be 10 s.
    assert!(last - cut < Duration::from_secs(15));
    assert_eq!(relay.connections(), 2);
    let statuses = agent.statuses().await;
    assert!(statuses.iter().all(|(_, status)| status.is_registered()));
    let closing = now();
    let fates = agent.shutdown(PATIENCE).await;
    println!("{ALL} removed within {:?}", now() - closing);
    assert!(fates.iter().all(|(_, fate)| *fate == Removal::Removed));
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn without_a_listener_the_flow_of_the_binding_is_the_way_in() {
    let server = serving().await;
    let relay = TcpRelay::to(server.addr()).await;
    let mut phone = Phone::new(system(), account(relay.address, "tcp")).await;
    let mut messages = phone.agent.messages();
    phone.bound().await;
    let flows = phone.handle.flows().await;
    let local = flows[0].info().local();
    let contact = contacts(&server).remove(0);
    assert_eq!(contact, format!("sip:alice@{local};transport=TCP"));

    relay.say(&format!(
        "OPTIONS {contact} SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bKx\r\nMax-Forwards: 70\r\n\
         From: <sip:bob@example.com>;tag=1\r\nTo: <sip:alice@example.com>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\n\
         Content-Length: 0\r\n\r\n"
    ));
    let message = timeout(PATIENCE, messages.next()).await.expect("in time");
    let message = message.expect("a message");
    let belongs_to = message.registration.as_ref().expect("a match");
    assert_eq!(belongs_to.registration, phone.handle.id());
    assert!(message.flow.is_some());
    phone.ends().await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn with_a_listener_the_contact_has_its_port() {
    let server = serving().await;
    let config = TransportConfig::new("lan", Protocol::Tcp).expect("a name");
    let config = config.with_bind("127.0.0.1:0".parse().expect("an address"));
    let transport = Arc::new(TcpTransport::new(config.with_listen(true)));
    let agent = Agent::builder().transport("lan", Arc::clone(&transport));
    let mut phone = Phone::new(agent, account(server.addr(), "tcp")).await;
    phone.bound().await;
    let listener = transport.local_addr().expect("a listener");
    assert_eq!(
        contacts(&server),
        [format!("sip:alice@{listener};transport=TCP")]
    );
    phone.ends().await;
}

// ---- registrars that go, and come back

async fn a_registrar_that_restarts(transport: &str) {
    let server = serving().await;
    let address = server.addr();
    let mut phone = Phone::new(system(), account(address, transport)).await;
    phone.bound().await;

    server.stop().await;
    let asked = now();
    phone.handle.refresh().await.expect("it is there");
    let (failure, told) = phone
        .until("rejected", PATIENCE, |event| match event {
            Event::Rejected {
                failure,
                lease_left,
                ..
            } => Some((failure.clone(), *lease_left)),
            _ => None,
        })
        .await;
    assert_matches!(failure, (Failure::Flow(FlowError::Refused), Some(_)));
    let status = phone.handle.status().await.expect("it is there");
    assert!(
        status.is_registered(),
        "a refusal of the network ends no lease"
    );
    assert_matches!(
        status.activity,
        Activity::Waiting { .. } | Activity::Registering
    );

    let back = now();
    let server = registrar().serve(address).await.expect("the same port");
    let (_, again) = phone.bound_within(PATIENCE).await;
    println!(
        "registrar stopped, {transport}: refusal told after {:?}; back, bound again after {:?}",
        told - asked,
        again - back
    );
    assert!(told - asked < Duration::from_secs(2));
    assert!(again - back < Duration::from_secs(5));
    assert_eq!(contacts(&server).len(), 1);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn a_registrar_that_restarts_is_found_again_over_udp() {
    a_registrar_that_restarts("udp").await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn a_registrar_that_restarts_is_found_again_over_tcp() {
    a_registrar_that_restarts("tcp").await;
}

/// Two edges at two addresses of one name; the one that is registered at goes.
async fn an_edge_that_is_killed(transport: &str) {
    let first = registrar().serve("127.0.0.1:0").await.expect("a port");
    let port = first.addr().port();
    let second = registrar()
        .serve(("127.0.0.2", port))
        .await
        .expect("a port");
    let agent = system().resolver(names(["127.0.0.1", "127.0.0.2"]));
    let server = format!("edge.test:{port}");
    let mut phone = Phone::new(agent, account(server, transport)).await;
    let before = phone.bound().await;
    let (alive, killed) = match before.target.address() == first.addr() {
        true => (second, first),
        false => (first, second),
    };

    killed.stop().await;
    let asked = now();
    phone.handle.refresh().await.expect("it is there");
    let (after, again) = phone.bound_within(Duration::from_secs(5)).await;
    println!(
        "edge killed, {transport}: bound at the other after {:?} (timer F would be 32 s)",
        again - asked
    );
    assert_eq!(after.target.address(), alive.addr());
    assert_eq!(contacts(&alive).len(), 1);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn an_edge_that_is_killed_is_left_for_the_other_over_udp() {
    an_edge_that_is_killed("udp").await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn an_edge_that_is_killed_is_left_for_the_other_over_tcp() {
    an_edge_that_is_killed("tcp").await;
}

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn a_target_of_the_other_family_is_passed_over() {
    let server = serving().await;
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let config = TransportConfig::new("v4", protocol).expect("a name");
        let config = config.with_bind("127.0.0.1:0".parse().expect("an address"));
        let agent = match protocol {
            Protocol::Udp => {
                let transport = UdpTransport::bind(config).await.expect("a port");
                Agent::builder().transport("v4", transport)
            }
            _ => Agent::builder().transport("v4", TcpTransport::new(config)),
        };
        let agent = agent.resolver(names(["2001:db8::1", "127.0.0.1"]));
        let target = format!("dual.test:{}", server.addr().port());
        let started = now();
        let mut phone = Phone::new(agent, account(target, protocol.name())).await;
        let (registered, again) = phone.bound_within(Duration::from_secs(5)).await;
        println!("{protocol}, IPv6 passed over: {:?}", again - started);
        assert_eq!(registered.target.address(), server.addr());
        phone.ends().await;
    }
}

// ---- what only keep-alives notice

#[tokio::test]
#[ignore = "seconds of real time; .ci/run runs it"]
async fn a_nat_that_forgets_is_noticed_with_the_next_keep_alive() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let server = serving().await;
    let nat = Nat::with_stun(server.addr()).await;
    let mut policy = retrying();
    policy.keep_alive.answered = true;
    policy.keep_alive.udp_interval = INTERVAL..=INTERVAL;
    let mut phone = Phone::new(system(), account(nat.address, "udp").policy(policy)).await;
    phone.bound().await;
    assert_eq!(server.bindings(AOR)[0].source, nat.mapping());
    // The first answer shows what the mapping is.
    tokio::time::sleep(INTERVAL.mul_f64(1.5)).await;

    let before = nat.mapping();
    nat.remap().await;
    let forgotten = now();
    let (error, noticed) = phone.flow_lost().await;
    let (from, to) = (before, nat.mapping());
    assert_eq!(error, FlowError::MappingChanged { from, to });
    let (_, again) = phone.bound_within(Duration::from_secs(5)).await;
    println!(
        "NAT mapping changed: noticed after {:?} (a keep-alive each {INTERVAL:?}), registered again after {:?}",
        noticed - forgotten,
        again - forgotten
    );
    assert!(noticed - forgotten <= INTERVAL + Duration::from_millis(500));
    // One binding, now reached by the new mapping.
    let bindings = server.bindings(AOR);
    assert_eq!(bindings.len(), 1);
    assert_eq!(bindings[0].source, nat.mapping());
    phone.ends().await;
}

/// An account at Kamailio that negotiates outbound (RFC 5626), so that the server says how often and answers
fn outbound(user: &str, server: impl std::fmt::Display, transport: &str) -> RegistrationBuilder {
    let server = format!("sip:{server};transport={transport}");
    Registration::builder(server, format!("sip:{user}@registrar.test"))
        .policy(retrying())
        .contact_user(user)
        .outbound_auth(Credentials::password(user, "secret").realm("registrar.test"))
        .max_random_initial_delay(Duration::ZERO)
        .support_path(true)
        .support_outbound(true)
        .contact_header_params(
            "reg-id=1;+sip.instance=\"<urn:uuid:0b6a1f3e-7dec-11d0-a765-00a0c91e6bf6>\"",
        )
}

async fn eventually(what: &str, within: Duration, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(within, wait).await.is_ok(), "{what}");
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn kamailios_stun_shows_a_new_mapping_on_the_way_to_the_edge() {
    // The edge says Flow-Timer: 8, and we do not ask more often than each 8 to 10 s.
    const LONGEST: Duration = Duration::from_secs(10);
    let (user, lab) = ("both-nat", Lab::registrar(&[]));
    let edge = SocketAddr::from(([127, 0, 0, 1], Lab::edge().port()));
    let nat = Nat::to(edge).await;
    let account = outbound(user, "registrar.test", "udp")
        .server_uri("sip:registrar.test")
        .outbound_auth(Credentials::password(user, "edgesecret").realm("edge.test"))
        .outbound_proxy(format!("sip:{};transport=udp;lr", nat.address));
    let mut phone = Phone::new(system(), account).await;
    // 407 of the edge, 401 of the registrar, then 200.
    let registered = phone.bound().await;
    let before = lab.bindings(user).await;
    assert_eq!(before.len(), 1, "{before:?}");
    assert_matches!(&*registered.path, [path] if path.contains(";ob"));
    let arrived = lab.arrived(user);
    assert_matches!(&arrived[..], [first, second] if !first.authorized && second.authorized);

    eventually("a STUN answer", LONGEST + Duration::from_secs(1), || {
        nat.stun_answers() > 0
    })
    .await;
    let mapping = nat.mapping();
    nat.remap().await;
    let forgotten = now();
    let (error, noticed) = phone.flow_lost().await;
    let (from, to) = (mapping, nat.mapping());
    assert_eq!(error, FlowError::MappingChanged { from, to });
    let (_, again) = phone.bound_within(Duration::from_secs(5)).await;
    println!(
        "NAT mapping changed before Kamailio's edge, Flow-Timer 8 s: noticed after {:?}, registered again after {:?}",
        noticed - forgotten,
        again - forgotten
    );
    assert!(noticed - forgotten < LONGEST + Duration::from_millis(500));
    // The same instance and flow: the new binding has replaced the old one, with the new flow's token in its Path.
    let after = lab.bindings(user).await;
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(after[0].path, before[0].path);
    phone.ends().await;
    assert_eq!(lab.bindings(user).await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn kamailios_pongs_keep_a_connection_and_their_absence_ends_it() {
    // Flow-Timer: 10, and 10 s for a pong.
    const LONGEST: Duration = Duration::from_secs(10);
    const PONG: Duration = Duration::from_secs(10);
    let (user, lab) = ("alice-pong", Lab::registrar(&[]));
    let relay = TcpRelay::to(SocketAddr::from(([127, 0, 0, 1], lab.port()))).await;
    let mut phone = Phone::new(system(), outbound(user, relay.address, "tcp")).await;
    phone.bound().await;
    eventually("a pong", LONGEST + Duration::from_secs(1), || {
        relay.pongs() > 0
    })
    .await;

    relay.mute();
    let cut = now();
    let lost = phone.until(
        "flow lost",
        LONGEST + PONG + PATIENCE,
        |event| match event {
            Event::FlowLost { error, .. } => Some(error.clone()),
            _ => None,
        },
    );
    let (error, noticed) = lost.await;
    assert_eq!(error, FlowError::KeepAliveUnanswered(PONG));
    let (_, again) = phone.bound_within(Duration::from_secs(5)).await;
    println!(
        "half-open connection to Kamailio, Flow-Timer 10 s: noticed after {:?}, registered again after {:?}",
        noticed - cut,
        again - cut
    );
    assert!(noticed - cut < LONGEST + PONG + Duration::from_millis(500));
    assert_eq!(relay.connections(), 2);
    assert_eq!(lab.bindings(user).await.len(), 1);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn a_half_open_connection_is_noticed_by_its_missing_pong() {
    const INTERVAL: Duration = Duration::from_secs(2);
    /// What RFC 5626 §4.4.1 gives a pong
    const PONG: Duration = Duration::from_secs(10);
    let (registrar, home) = two_places().await;
    let address: SocketAddr = "10.77.0.1:5060".parse().expect("an address");
    let server = serve_in(&registrar, address).await;
    let mut policy = retrying();
    policy.keep_alive.stream = Some(INTERVAL..=INTERVAL);
    let new = Phone::new(system(), account(address, "tcp").policy(policy));
    let mut phone = home.run(new).await;
    phone.bound().await;
    // Pings are answered, and the flow stays up; from then on answers are due (D14).
    tokio::time::sleep(INTERVAL * 2 + PONG + INTERVAL / 2).await;
    assert_eq!(server.requests().len(), 2);
    let before = contacts(&server);

    let local = phone.handle.flows().await[0].info().local().port();
    home.command("nft add table ip t").await;
    home.command("nft add chain ip t in { type filter hook input priority 0 ; }")
        .await;
    home.command(&format!("nft add rule ip t in tcp dport {local} drop"))
        .await;
    let cut = now();
    let lost = phone.until("flow lost", Duration::from_secs(30), |event| match event {
        Event::FlowLost { error, .. } => Some(error.clone()),
        _ => None,
    });
    let (error, noticed) = lost.await;
    assert_matches!(error, FlowError::KeepAliveUnanswered(_));
    let (_, again) = phone.bound_within(Duration::from_secs(5)).await;
    println!(
        "half-open connection, a ping each {INTERVAL:?}: noticed after {:?}, registered again after {:?}",
        noticed - cut,
        again - cut
    );
    assert!(noticed - cut < INTERVAL + PONG + Duration::from_millis(500));
    let after = contacts(&server);
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(after, before);
    phone.ends().await;
}

// ---- in namespaces

/// A server in one, a phone in the other.
async fn two_places() -> (Place, Place) {
    Place::pair("10.77.0.1/24", "10.77.0.2/24").await
}

async fn serve_in(place: &Place, address: SocketAddr) -> RunningServer {
    let serving = place.run(async move { registrar().serve(address).await });
    serving.await.expect("a port")
}

async fn registers_from_a_new_address(transport: &'static str) {
    let (registrar, home) = two_places().await;
    let address: SocketAddr = "10.77.0.1:5060".parse().expect("an address");
    let server = serve_in(&registrar, address).await;
    let new = Phone::new(system(), account(address, transport));
    let mut phone = home.run(new).await;
    phone.bound().await;
    assert!(contacts(&server)[0].starts_with("sip:alice@10.77.0.2:"));

    home.command("ip address del 10.77.0.2/24 dev v0").await;
    home.command("ip address add 10.77.0.3/24 dev v0").await;
    let changed = now();
    phone.agent.network_changed().await;
    let (_, again) = phone.bound_within(PATIENCE).await;
    println!(
        "new address, {transport}: bound after {:?}",
        again - changed
    );
    assert!(again - changed < Duration::from_secs(2));
    // Via and Contact have changed together, and the old Contact went with the same REGISTER (D18).
    let contacts = contacts(&server);
    assert_eq!(contacts.len(), 1, "{contacts:?}");
    assert!(
        contacts[0].starts_with("sip:alice@10.77.0.3:"),
        "{contacts:?}"
    );
    let requests = server.requests();
    let last = String::from_utf8_lossy(&requests.last().expect("a request").message).into_owned();
    let via = last.lines().find(|line| line.starts_with("Via:"));
    assert!(via.expect("a Via").contains(" 10.77.0.3:"), "{last}");
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn a_new_address_is_registered_over_udp() {
    registers_from_a_new_address("udp").await;
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn a_new_address_is_registered_over_tcp() {
    registers_from_a_new_address("tcp").await;
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn an_interface_that_comes_back_under_its_name_is_another_and_is_used() {
    let (registrar, home) = two_places().await;
    let address: SocketAddr = "10.77.0.1:5060".parse().expect("an address");
    let server = serve_in(&registrar, address).await;
    let new = async move {
        let transport = UdpTransport::bind(on_v0(Protocol::Udp)).await;
        let agent = Agent::builder().transport("v0", transport.expect("a port"));
        Phone::new(agent, account(address, "udp")).await
    };
    let mut phone = home.run(new).await;
    phone.bound().await;
    let before = contacts(&server);

    home.command("ip link delete v0").await;
    home.plug(&registrar).await;
    registrar
        .command("ip address add 10.77.0.1/24 dev v0")
        .await;
    home.command("ip address add 10.77.0.2/24 dev v0").await;
    let changed = now();
    phone.agent.network_changed().await;
    let (_, again) = phone.bound_within(PATIENCE).await;
    println!("new interface: bound after {:?}", again - changed);
    assert!(again - changed < Duration::from_secs(2));
    // On the same port.
    assert_eq!(contacts(&server), before);
    phone.ends().await;
}

fn on_v0(protocol: Protocol) -> TransportConfig {
    let config = TransportConfig::new("v0", protocol).expect("a name");
    config.with_interface("v0").expect("an interface's name")
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn a_link_local_registrar_is_reached_by_the_interface() {
    let (registrar, home) = Place::pair("fe80::1/64 nodad", "fe80::2/64 nodad").await;
    let link = registrar.command("ip -o link show dev v0").await;
    let index = link.split(':').next().expect("an index");
    let scoped = format!("[fe80::1%{index}]:5060");
    let server = serve_in(&registrar, scoped.parse().expect("an address")).await;
    for transport in ["udp", "tcp"] {
        let new = async move {
            let udp = UdpTransport::bind(on_v0(Protocol::Udp)).await;
            let agent = Agent::builder()
                .transport("udp", udp.expect("a port"))
                .transport("tcp", TcpTransport::new(on_v0(Protocol::Tcp)));
            Phone::new(agent, account("[fe80::1]:5060", transport)).await
        };
        let mut phone = home.run(new).await;
        phone.bound().await;
        let contacts = contacts(&server);
        assert!(
            contacts[0].starts_with("sip:alice@[fe80::2]:"),
            "{contacts:?}"
        );
        phone.ends().await;
    }
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn the_type_of_service_is_on_the_wire() {
    let (registrar, home) = two_places().await;
    let address: SocketAddr = "10.77.0.1:5060".parse().expect("an address");
    let _server = serve_in(&registrar, address).await;
    registrar.command("nft add table ip t").await;
    registrar
        .command("nft add chain ip t in { type filter hook input priority 0 ; }")
        .await;
    for protocol in ["udp", "tcp"] {
        registrar
            .command(&format!(
                "nft add rule ip t in {protocol} dport 5060 ip dscp cs3 counter accept"
            ))
            .await;
        registrar
            .command(&format!(
                "nft add rule ip t in {protocol} dport 5060 counter accept"
            ))
            .await;
    }
    for transport in ["udp", "tcp"] {
        let new = async move {
            let marked = |protocol| {
                let config = TransportConfig::new("marked", protocol).expect("a name");
                let config = config.with_tos("cs3").expect("a code point");
                config.with_cos(3).expect("a priority")
            };
            let udp = UdpTransport::bind(marked(Protocol::Udp)).await;
            let agent = Agent::builder()
                .transport("udp", udp.expect("a port"))
                .transport("tcp", TcpTransport::new(marked(Protocol::Tcp)));
            Phone::new(agent, account(address, transport)).await
        };
        let mut phone = home.run(new).await;
        phone.bound().await;
        phone.ends().await;
    }
    let chain = registrar.command("nft list chain ip t in").await;
    let counted: Vec<u32> = chain
        .lines()
        .filter_map(|line| {
            line.split_once("packets ")?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    println!("packets with and without cs3, UDP and TCP: {counted:?}");
    assert_matches!(counted[..], [(1..), 0, (1..), 0], "{chain}");
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn a_host_that_is_not_there_is_passed_over_before_timer_f() {
    let (registrar, home) = two_places().await;
    let server = serve_in(&registrar, "10.77.0.1:5060".parse().expect("an address")).await;
    let started = now();
    let new = async move {
        let agent = system().resolver(names(["10.77.0.99", "10.77.0.1"]));
        Phone::new(agent, account("dual.test:5060", "udp")).await
    };
    let mut phone = home.run(new).await;
    let (registered, bound) = phone.bound_within(PATIENCE).await;
    println!(
        "host unreachable, UDP: bound at the next target after {:?}",
        bound - started
    );
    assert_eq!(registered.target.address(), server.addr());
    // The system looks for the neighbour for 3 s.
    assert!(bound - started < Duration::from_secs(6));
    phone.ends().await;
}

/// A router between, which forwards no more than 1280 bytes at once.
async fn narrow_path() -> (Place, Place, Place) {
    let (registrar, router, home) = (Place::new(), Place::new(), Place::new());
    registrar.plug_into("v0", &router).await;
    home.plug_into("v1", &router).await;
    for (place, line) in [
        (&registrar, "ip address add 10.78.1.1/24 dev v0"),
        (&registrar, "ip route add default via 10.78.1.9"),
        (&home, "ip address add 10.78.2.2/24 dev v0"),
        (&home, "ip route add default via 10.78.2.9"),
        (&router, "ip address add 10.78.1.9/24 dev v0"),
        (&router, "ip address add 10.78.2.9/24 dev v1"),
        (&router, "ip link set v0 mtu 1280"),
    ] {
        place.command(line).await;
    }
    // The one of the namespace that the writer is in.
    let forwards = async { std::fs::write("/proc/sys/net/ipv4/ip_forward", "1") };
    router.run(forwards).await.expect("a router");
    (registrar, router, home)
}

#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn a_path_that_is_too_narrow_is_no_failure_of_the_flow() {
    let (registrar, _router, home) = narrow_path().await;
    let address: SocketAddr = "10.78.1.1:5060".parse().expect("an address");
    let server = serve_in(&registrar, address).await;
    let account = account(address, "udp").header("X-Padding", &"x".repeat(1000));
    let started = now();
    let mut phone = home.run(Phone::new(system(), account)).await;
    let (_, bound) = phone.bound_within(PATIENCE).await;
    let requests = server.requests();
    let longest = requests.iter().map(|request| request.message.len()).max();
    println!(
        "narrow path, UDP, {longest:?} bytes: bound after {:?}",
        bound - started
    );
    // Longer than the path is wide. The first one was lost, the router said so, and the next came in fragments.
    assert!(longest > Some(1280));
    assert!(bound - started > Duration::from_millis(450));
    assert!(bound - started < Duration::from_secs(3));
    phone.ends().await;
}

/// D23: no transport is pinned, so what is over 1300 bytes goes over TCP, which fits any path.
#[tokio::test]
#[ignore = "needs root, for network namespaces; .ci/run runs it"]
async fn an_oversize_register_takes_tcp_where_fragments_are_dropped() {
    let (registrar, router, home) = narrow_path().await;
    let address: SocketAddr = "10.78.1.1:5060".parse().expect("an address");
    let server = serve_in(&registrar, address).await;
    router.command("nft add table ip t").await;
    // Before fragments are put together again.
    router
        .command("nft add chain ip t in { type filter hook prerouting priority -450 ; }")
        .await;
    router
        .command("nft add rule ip t in ip frag-off & 0x3fff != 0 counter drop")
        .await;
    let account = account(address, "udp")
        .server_uri("sip:10.78.1.1:5060")
        .header("X-Padding", &"x".repeat(1000));
    let started = now();
    let mut phone = home.run(Phone::new(system(), account)).await;
    let (registered, bound) = phone.bound_within(PATIENCE).await;
    println!("fragments dropped: bound after {:?}", bound - started);
    assert_eq!(registered.target.protocol(), Protocol::Tcp);
    assert!(contacts(&server)[0].contains("transport=TCP"));
    assert!(bound - started < Duration::from_secs(3));
    phone.ends().await;
}
