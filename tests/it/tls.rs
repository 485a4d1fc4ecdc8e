//! TLS, against Kamailio with the certificates of `tests/lab/README.md`; bindings are asked of Kamailio, not of us

use crate::lab::Lab;
use assert_matches::assert_matches;
use async_trait::async_trait;
use sip_registration::{
    Agent, Answer, Credentials, Event, Events, Failure, FailureClass, FlowError, Policy, Protocol,
    Query, QueryKind, Registered, Registration, RegistrationHandle, Removal, ResolveError,
    Resolver, TlsConfig, TlsError, TlsTransport, TlsVersion, TransportConfig, Warning,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long anything may take
const PATIENCE: Duration = Duration::from_secs(20);

/// Every name is at 127.0.0.1.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError> {
        match query.kind {
            QueryKind::Addresses => Ok(Answer::new(vec![[127, 0, 0, 1].into()])),
            _ => Err(ResolveError::NoAddress(Arc::clone(&query.name))),
        }
    }
}

/// An agent with a TLS transport
struct Office {
    agent: Agent,
    transport: Arc<TlsTransport>,
    events: Events,
}

impl Office {
    async fn new(tls: TlsConfig) -> Self {
        let config = TransportConfig::new("tls", Protocol::Tls).expect("a good configuration");
        Self::with(config, tls).await
    }

    async fn with(config: TransportConfig, tls: TlsConfig) -> Self {
        let transport = Arc::new(TlsTransport::new(config, tls).expect("a transport"));
        let agent = Agent::builder()
            .transport("tls", Arc::clone(&transport))
            .resolver(Here)
            .build()
            .await
            .expect("an agent");
        let events = agent.events();
        Self {
            agent,
            transport,
            events,
        }
    }

    /// Adds a user at a server, who tries again after a second.
    async fn add(&self, user: &str, server: &str) -> RegistrationHandle {
        let mut policy = Policy::default();
        policy.retry.retry_interval = Duration::from_secs(1);
        policy.retry.jitter = 0.0;
        policy.timers.connect_timeout = Duration::from_secs(2);
        let account = Registration::builder(server, format!("sip:{user}@registrar.test"))
            .outbound_auth(Credentials::password(user, "secret"))
            .contact_user(user)
            .policy(policy)
            .max_random_initial_delay(Duration::ZERO);
        let account = account.build().expect("a good configuration");
        self.agent.add(account).await.expect("a registration")
    }

    /// What became of the next attempt, and the warnings before it.
    async fn outcome(&mut self) -> (Arc<Event>, Vec<Warning>) {
        let mut warnings = Vec::new();
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                match &*event {
                    Event::Scheduled { .. } => {}
                    Event::Warning(warning) => warnings.push(warning.clone()),
                    _ => return event,
                }
            }
        };
        let event = timeout(PATIENCE, wait).await.expect("nothing was told");
        (event, warnings)
    }

    async fn granted(&mut self) -> Registered {
        let (event, warnings) = self.outcome().await;
        assert_eq!(warnings, []);
        match &*event {
            Event::Registered(granted) | Event::Refreshed(granted) => (**granted).clone(),
            other => panic!("not granted: {other}"),
        }
    }

    /// Why TLS failed; the registration waits by its policy.
    async fn refused(&mut self) -> TlsError {
        match &*self.outcome().await.0 {
            Event::Rejected {
                failure: Failure::Flow(FlowError::Tls(error)),
                class: FailureClass::Temporary,
                retry_in,
                ..
            } => {
                assert_eq!(*retry_in, Duration::from_secs(1));
                error.clone()
            }
            other => panic!("not refused by TLS: {other}"),
        }
    }
}

async fn is_bound(lab: &Lab, user: &str, granted: &Registered) {
    let bindings = lab.bindings(user).await;
    let [bound] = &bindings[..] else {
        panic!("not one binding: {bindings:?}");
    };
    assert_eq!(bound.uri, *granted.contact);
    assert!(bound.received.ends_with(";transport=tls"), "{bound:?}");
    assert!(granted.confirmed);
}

fn trusting(lab: &Lab, roots: &str) -> TlsConfig {
    TlsConfig::new()
        .with_roots_pem(&lab.pem(roots))
        .expect("good roots")
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_whole_life_by_name_and_by_address_in_both_versions() {
    let lab = Lab::registrar(&[]);
    let port = lab.tls_port(1);
    for (user, server, version) in [
        (
            "alice-tls1",
            format!("sip:127.0.0.1:{port};transport=tls"),
            TlsVersion::V1_2,
        ),
        (
            "alice-tls2",
            format!("sips:localhost:{port}"),
            TlsVersion::V1_3,
        ),
        (
            "alice-tls3",
            format!("sip:registrar.test:{port};transport=tls"),
            TlsVersion::V1_3,
        ),
        (
            "alice-tls4",
            format!("sip:[::1]:{port};transport=tls"),
            TlsVersion::V1_3,
        ),
    ] {
        let tls = trusting(lab, "ca.pem").with_min_version(version);
        let mut office = Office::new(tls).await;
        let handle = office.add(user, &server).await;
        let granted = office.granted().await;
        assert_eq!(granted.target.protocol(), Protocol::Tls);
        let scheme = if server.starts_with("sips") {
            "sips:"
        } else {
            "sip:"
        };
        assert!(granted.contact.starts_with(scheme), "{}", granted.contact);
        is_bound(lab, user, &granted).await;
        handle.refresh().await.expect("it is there");
        let again = office.granted().await;
        assert_eq!(again.flow, granted.flow);
        assert_eq!(handle.unregister(PATIENCE).await, Removal::Removed);
        assert_eq!(lab.bindings(user).await, []);
        office.agent.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_self_signed_certificate_is_refused_until_it_is_named() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=tls", lab.tls_port(2));
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    office.add("alice-self", &server).await;
    let error = office.refused().await;
    assert_eq!(error, TlsError::UnknownIssuer);
    assert_eq!(lab.arrived("alice-self"), [], "not a byte of SIP");

    office
        .transport
        .renew(trusting(lab, "self.pem"))
        .expect("good roots");
    let granted = office.granted().await;
    is_bound(lab, "alice-self", &granted).await;

    let mut careless = Office::new(TlsConfig::new().dangerous_accept_any_certificate()).await;
    careless.add("alice-any", &server).await;
    let (event, warnings) = careless.outcome().await;
    assert_matches!(&*event, Event::Registered(_));
    assert_eq!(warnings, [Warning::UnverifiedPeer]);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn an_expired_certificate_and_one_for_another_name_are_refused() {
    let lab = Lab::registrar(&[]);
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    let server = |instance| format!("sip:127.0.0.1:{};transport=tls", lab.tls_port(instance));
    office.add("alice-expired", &server(4)).await;
    assert_eq!(office.refused().await, TlsError::Expired);
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    office.add("alice-wrong-name", &server(5)).await;
    let wrong = TlsError::WrongName {
        asked: "127.0.0.1".into(),
        found: ["DNS:other.invalid".into()].into(),
    };
    assert_eq!(office.refused().await, wrong);
    for user in ["alice-expired", "alice-wrong-name"] {
        assert_eq!(lab.arrived(user), [], "not a byte of SIP");
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_server_that_renews_its_certificate_to_a_sip_uri_alone() {
    let lab = Lab::own();
    let server = |host| format!("sip:{host}:{};transport=tls", lab.tls_port(1));
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    let before = office.add("alice-before", &server("localhost")).await;
    let granted = office.granted().await;

    lab.show_certificate("siponly").await;
    let mut later = Office::new(trusting(lab, "ca.pem")).await;
    later.add("alice-uri", &server("registrar.test")).await;
    let by_uri = later.granted().await;
    is_bound(lab, "alice-uri", &by_uri).await;
    let mut elsewhere = Office::new(trusting(lab, "ca.pem")).await;
    elsewhere.add("alice-else", &server("localhost")).await;
    let wrong = TlsError::WrongName {
        asked: "localhost".into(),
        found: ["URI:sip:registrar.test".into()].into(),
    };
    assert_eq!(elsewhere.refused().await, wrong);

    // What was made before lives on.
    before.refresh().await.expect("it is there");
    assert_eq!(office.granted().await.flow, granted.flow);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_server_that_wants_a_certificate_says_so_and_takes_the_renewed_one() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=tls", lab.tls_port(3));
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    office.add("alice-mutual", &server).await;
    assert_matches!(office.refused().await, TlsError::NotAccepted(_));
    assert_eq!(lab.bindings("alice-mutual").await, []);

    let own = trusting(lab, "ca.pem")
        .with_certificate_pem(&lab.pem("client.pem"), &lab.pem("client.key"))
        .expect("a good certificate");
    office.transport.renew(own).expect("a good configuration");
    let granted = office.granted().await;
    is_bound(lab, "alice-mutual", &granted).await;

    let stranger = trusting(lab, "ca.pem")
        .with_certificate_pem(&lab.pem("self.pem"), &lab.pem("self.key"))
        .expect("a certificate");
    let mut office = Office::new(stranger).await;
    office.add("alice-stranger", &server).await;
    assert_matches!(office.refused().await, TlsError::NotAccepted(_));
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_renewed_configuration_leaves_living_connections_alone() {
    let lab = Lab::registrar(&[]);
    let server = |host| format!("sip:{host}:{};transport=tls", lab.tls_port(1));
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    let handle = office.add("alice-living", &server("127.0.0.1")).await;
    let granted = office.granted().await;
    office
        .transport
        .renew(trusting(lab, "self.pem"))
        .expect("good roots");
    handle.refresh().await.expect("it is there");
    let again = office.granted().await;
    assert_eq!(again.flow, granted.flow);
    is_bound(lab, "alice-living", &again).await;
    // To another name it takes a new connection.
    office.add("alice-new", &server("localhost")).await;
    assert_eq!(office.refused().await, TlsError::UnknownIssuer);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn many_registrations_share_a_connection() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=tls", lab.tls_port(1));
    let mut office = Office::new(trusting(lab, "ca.pem")).await;
    let users: Vec<String> = (0..20).map(|number| format!("open-tls{number}")).collect();
    for user in &users {
        office.add(user, &server).await;
    }
    let first = office.granted().await;
    for _ in &users[1..] {
        assert_eq!(office.granted().await.flow, first.flow);
    }
    for user in &users {
        assert_eq!(lab.bindings(user).await.len(), 1);
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn the_contact_has_the_listeners_port() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=tls", lab.tls_port(1));
    let own = trusting(lab, "ca.pem")
        .with_certificate_pem(&lab.pem("server.pem"), &lab.pem("server.key"))
        .expect("a good certificate");
    let config = TransportConfig::new("tls", Protocol::Tls)
        .expect("a good configuration")
        .with_bind("127.0.0.1:0".parse().expect("an address"))
        .with_listen(true);
    let mut office = Office::with(config, own).await;
    let address = office.transport.local_addr().expect("it listens");
    office.add("alice-listens", &server).await;
    let granted = office.granted().await;
    let contact = format!("sip:alice-listens@{address};transport=TLS");
    assert_eq!(*granted.contact, *contact);
    is_bound(lab, "alice-listens", &granted).await;
}

#[tokio::test]
async fn a_server_that_stalls_in_the_handshake_is_given_up_after_the_connect_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut office = Office::new(TlsConfig::new().dangerous_accept_any_certificate()).await;
    office.add("alice", &format!("sips:{address}")).await;
    let accepted = timeout(PATIENCE, listener.accept()).await;
    let mut stalled = accepted.expect("a connection").expect("a connection").0;
    let (event, _) = office.outcome().await;
    assert_matches!(
        &*event,
        Event::Rejected { failure: Failure::Flow(FlowError::ConnectTimeout(after)), .. }
            if *after == Duration::from_secs(2)
    );
    // And nobody holds the connection any more.
    let mut all = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut stalled, &mut all);
    let ended = timeout(Duration::from_millis(500), end).await;
    assert!(ended.is_ok(), "the next attempt is a second away");
}
