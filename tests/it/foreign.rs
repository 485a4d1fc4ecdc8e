//! The crate as another one sees it: every seam implemented, every value made, the core driven by a host of its own.

#![expect(
    clippy::disallowed_methods,
    reason = "a host of its own starts with the time that it is"
)]

use assert_matches::assert_matches;
use async_trait::async_trait;
use bytes::Bytes;
use sip_registration::*;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn account(user: &str) -> Registration {
    let mut policy = Policy::default();
    policy.retry.jitter = 0.0;
    policy.refresh.jitter = 0.0;
    Registration::builder(
        "sip:registrar.example.com",
        &*format!("sip:{user}@example.com"),
    )
    .outbound_auth(Credentials::provided(user))
    .contact_user(user)
    .max_random_initial_delay(Duration::ZERO)
    .policy(policy)
    .build()
    .expect("a good configuration")
}

fn target() -> Target {
    Target::new(Protocol::Udp, address("192.0.2.9:5060")).with_host("registrar.example.com")
}

/// The whole of an executor, where nothing ever waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

/// A registrar that challenges once, then grants an hour.
fn answer(request: &[u8]) -> Bytes {
    let request = Request::parse(Bytes::copy_from_slice(request)).expect("a request");
    let all = |name: &str| {
        let lines = request
            .headers(name)
            .map(|value| format!("{name}: {value}\r\n"));
        lines.collect::<String>()
    };
    let accepted = request.header("Authorization").is_some();
    let (status, extra) = match (accepted, request.header("Expires").as_deref()) {
        (false, _) => (
            "401 Unauthorized",
            "WWW-Authenticate: Digest realm=\"example.com\", nonce=\"n1\", qop=\"auth\"\r\n"
                .to_owned(),
        ),
        (true, Some("0")) => ("200 OK", String::new()),
        (true, _) => {
            let contact = request.header("Contact").unwrap_or_default();
            ("200 OK", format!("Contact: {contact};expires=3600\r\n"))
        }
    };
    let names = ["Via", "From", "To", "Call-ID", "CSeq"].map(all).concat();
    format!("SIP/2.0 {status}\r\n{names}{extra}Content-Length: 0\r\n\r\n").into()
}

// ---- the seams

/// A network in memory: what is sent is kept, or answered where there is somebody to answer to
#[derive(Debug, Default)]
struct Memory {
    inbound: Mutex<Option<Inbound>>,
    sent: Arc<Mutex<Vec<Bytes>>>,
}

#[derive(Debug)]
struct MemoryFlow {
    info: FlowInfo,
    inbound: Option<Inbound>,
    sent: Arc<Mutex<Vec<Bytes>>>,
    closed: Mutex<bool>,
}

#[async_trait]
impl Transport for Memory {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        *self.inbound.lock().expect("no panic") = Some(inbound);
        Ok(())
    }

    async fn open(&self, _id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        if to.address().is_ipv6() {
            return Err(FlowError::Refused);
        }
        Ok(Arc::new(MemoryFlow {
            info: FlowInfo::new(to.protocol(), address("192.0.2.1:5060"), to.address()),
            inbound: self.inbound.lock().expect("no panic").clone(),
            sent: Arc::clone(&self.sent),
            closed: Mutex::new(false),
        }))
    }
}

impl Flow for MemoryFlow {
    fn info(&self) -> &FlowInfo {
        &self.info
    }

    fn send(&self, message: Bytes) -> Result<(), FlowError> {
        if *self.closed.lock().expect("no panic") {
            return Err(FlowError::ClosedByUs);
        }
        if let Some(inbound) = &self.inbound {
            let received = Received::new(self.info.remote(), answer(&message));
            assert!(inbound.accepts(&received.message));
            inbound
                .try_received(received)
                .map_err(|_| FlowError::Full)?;
        }
        self.sent.lock().expect("no panic").push(message);
        Ok(())
    }

    fn close(&self) {
        *self.closed.lock().expect("no panic") = true;
    }
}

#[derive(Debug)]
struct Names;

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError> {
        match &*query.name {
            "registrar.example.com" => {
                Ok(Answer::new(vec![IpAddr::from([192, 0, 2, 9])]).with_ttl(HOUR))
            }
            host => Err(ResolveError::NoAddress(host.into())),
        }
    }
}

#[derive(Debug)]
struct Keychain;

#[async_trait]
impl CredentialProvider for Keychain {
    async fn credentials(&self, _: RegistrationId, query: &CredentialsQuery) -> Option<Secret> {
        (query.algorithms.contains(&Algorithm::Md5) && &*query.realm == "example.com")
            .then(|| Secret::password(format!("secret of {}", query.username)))
    }
}

#[derive(Debug, Default)]
struct Application {
    lines: Mutex<Vec<String>>,
    calls: Mutex<Vec<InboundMessage>>,
}

impl Host for Application {
    fn event(&self, id: RegistrationId, event: &Event) {
        self.lines
            .lock()
            .expect("no panic")
            .push(format!("{id} {event}"));
    }

    fn message(&self, message: InboundMessage) -> Result<(), InboundMessage> {
        if message.registration.is_none() {
            return Err(message);
        }
        self.calls.lock().expect("no panic").push(message);
        Ok(())
    }
}

/// What the tests of an application put in place of an agent
#[derive(Debug, Default)]
struct Mock(Mutex<Vec<(Arc<Registration>, Status)>>);

impl Mock {
    fn on<T>(
        &self,
        id: RegistrationId,
        act: impl FnOnce(&mut (Arc<Registration>, Status)) -> T,
    ) -> Result<T, RegisterError> {
        let mut entries = self.0.lock().expect("no panic");
        let index = (0..entries.len())
            .find(|index| RegistrationId::from_parts(*index as u32, 0) == id)
            .ok_or(RegisterError::Unknown)?;
        Ok(act(&mut entries[index]))
    }
}

#[async_trait]
impl Registrar for Mock {
    async fn register(&self, registration: Registration) -> Result<RegistrationId, RegisterError> {
        let mut entries = self.0.lock().expect("no panic");
        entries.push((Arc::new(registration), Status::new(Activity::Registering)));
        Ok(RegistrationId::from_parts(entries.len() as u32 - 1, 0))
    }

    async fn reconfigure(
        &self,
        id: RegistrationId,
        to: Registration,
    ) -> Result<Change, RegisterError> {
        self.on(id, |entry| {
            let change = entry.0.change_to(&to);
            entry.0 = Arc::new(to);
            change
        })
    }

    async fn refresh(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.on(id, |entry| {
            let until = Instant::now().checked_add(HOUR).expect("time goes on");
            let lease = LeaseStatus::new(until, HOUR, FlowId::new(1), target());
            entry.1 = Status::new(Activity::Waiting { until }).with_lease(lease);
        })
    }

    async fn reregister(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.refresh(id).await
    }

    async fn unregister(&self, id: RegistrationId) -> Result<Removal, RegisterError> {
        self.on(id, |entry| {
            entry.1 = Status::new(Activity::Idle);
            Removal::Removed
        })
    }

    async fn remove(&self, id: RegistrationId, within: Duration) -> Result<Removal, RegisterError> {
        if within.is_zero() {
            Ok(Removal::Unanswered)
        } else {
            self.unregister(id).await
        }
    }

    async fn registration(&self, id: RegistrationId) -> Option<Arc<Registration>> {
        self.on(id, |entry| Arc::clone(&entry.0)).ok()
    }

    async fn status(&self, id: RegistrationId) -> Option<Status> {
        self.on(id, |entry| entry.1.clone()).ok()
    }

    async fn statuses(&self) -> Vec<(RegistrationId, Status)> {
        let entries = self.0.lock().expect("no panic");
        let status = |(index, entry): (usize, &(Arc<Registration>, Status))| {
            (RegistrationId::from_parts(index as u32, 0), entry.1.clone())
        };
        entries.iter().enumerate().map(status).collect()
    }

    async fn query(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.on(id, |_| ())
    }

    async fn remove_all(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.unregister(id).await.map(drop)
    }

    async fn pause(
        &self,
        id: RegistrationId,
        _until: Option<Instant>,
        _unregister: bool,
    ) -> Result<(), RegisterError> {
        self.on(id, |entry| entry.1 = Status::new(Activity::Paused))
    }

    async fn resume(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.refresh(id).await
    }

    async fn retry_credentials(&self, id: RegistrationId) -> Result<(), RegisterError> {
        self.on(id, |entry| {
            let failure = Failure::CredentialsRefused {
                realm: "example.com".into(),
            };
            entry.1 = Status::new(Activity::Idle).with_last_failure(failure);
        })
    }

    async fn matches(&self, request_uri: &str, _to: &str, _source: SocketAddr) -> Option<Match> {
        let uri = SipUri::parse(request_uri).ok()?;
        let entries = self.0.lock().expect("no panic");
        let index = entries
            .iter()
            .position(|(one, _)| one.contact_user().as_str() == uri.user())?;
        Some(Match::new(
            RegistrationId::from_parts(index as u32, 0),
            Some("phone".into()),
        ))
    }

    async fn network_changed(&self) {}

    async fn shutdown(&self, within: Duration) -> Vec<(RegistrationId, Removal)> {
        let mut fates = Vec::new();
        for (id, _) in self.statuses().await {
            fates.push((
                id,
                self.remove(id, within).await.unwrap_or(Removal::NeverBound),
            ));
        }
        fates
    }
}

// ---- the tests

#[test]
fn an_application_tests_itself_with_a_registrar_of_its_own() {
    let registrar: Arc<dyn Registrar> = Arc::new(Mock::default());
    ready(async {
        let id = registrar.register(account("alice")).await.expect("taken");
        let other = RegistrationId::from_parts(7, 0);
        assert_eq!(
            registrar.status(id).await.map(|status| status.activity),
            Some(Activity::Registering)
        );
        registrar.refresh(id).await.expect("known");
        let status = registrar.status(id).await.expect("known");
        assert!(status.is_registered() && status.is_reachable());
        assert_eq!(status.reference_status(), ReferenceStatus::Registered);
        registrar.reregister(id).await.expect("known");
        assert_eq!(
            registrar.reconfigure(id, account("bob")).await,
            Ok(Change::Replaces)
        );
        let found = registrar
            .matches("sip:bob@192.0.2.1", "", address("192.0.2.9:5060"))
            .await;
        assert_eq!(found.map(|found| found.registration), Some(id));
        registrar.pause(id, None, false).await.expect("known");
        registrar.resume(id).await.expect("known");
        registrar.query(id).await.expect("known");
        registrar.remove_all(id).await.expect("known");
        registrar.retry_credentials(id).await.expect("known");
        assert_matches!(
            registrar
                .status(id)
                .await
                .and_then(|status| status.last_failure),
            Some(Failure::CredentialsRefused { .. })
        );
        assert!(registrar.flows(id).await.is_empty(), "it has none to lend");
        registrar.network_changed().await;
        assert_eq!(registrar.refresh(other).await, Err(RegisterError::Unknown));
        assert!(registrar.registration(id).await.is_some());
        assert_eq!(registrar.unregister(id).await, Ok(Removal::Removed));
        assert_eq!(registrar.shutdown(HOUR).await, [(id, Removal::Removed)]);
        assert_eq!(
            registrar.shutdown(Duration::ZERO).await,
            [(id, Removal::Unanswered)]
        );
    });
}

#[test]
fn whatever_a_host_or_a_mock_has_to_produce_can_be_made() {
    let source = address("192.0.2.9:5060");
    let id = RegistrationId::from_parts(3, 1);
    assert_eq!(
        (
            id.to_string().as_str(),
            FlowId::new(4).number(),
            OpId::new(5).number()
        ),
        ("#3.1", 4, 5)
    );

    let info = FlowInfo::new(Protocol::Tcp, address("10.0.0.2:41000"), source)
        .with_sent_by("203.0.113.5:5060")
        .with_contact("203.0.113.5:5061");
    assert_eq!(
        (&*info.sent_by(), &*info.contact()),
        ("203.0.113.5:5060", "203.0.113.5:5061")
    );

    let exchange = Exchange::new("abc", 7)
        .with_status_line("SIP/2.0 200 OK")
        .with_server("a registrar")
        .with_target(target())
        .with_extensions(["path"]);
    assert_eq!((&*exchange.call_id, exchange.cseq), ("abc", 7));
    assert_eq!(*exchange.extensions, ["path"]);
    let registered = Registered::new(HOUR, FlowId::new(4), target())
        .with_contact("sip:alice@192.0.2.1")
        .with_algorithm(Algorithm::Sha256)
        .with_public_gruu("sip:alice@example.com;gr=1")
        .with_service_route(["<sip:edge.example.com;lr>"])
        .with_other_bindings(2)
        .with_exchange(exchange.clone());
    assert_eq!(*registered.service_route, ["<sip:edge.example.com;lr>"]);
    assert_eq!(
        registered.public_gruu.as_deref(),
        Some("sip:alice@example.com;gr=1")
    );
    assert_eq!(registered.other_bindings, 2);
    assert_eq!(registered.exchange, exchange);
    let failure = Failure::Rejected {
        code: 503,
        reason: "Down".into(),
    };
    let binding = Binding::new("sip:alice@192.0.2.77")
        .with_expires(60)
        .with_ours(true);
    assert_eq!(
        (&*binding.uri, binding.expires, binding.ours),
        ("sip:alice@192.0.2.77", Some(60), true)
    );
    let events = [
        Event::Scheduled { first_in: HOUR },
        Event::Registered(Box::new(registered.clone())),
        Event::Refreshed(Box::new(registered)),
        Event::Rejected {
            failure: failure.clone(),
            class: FailureClass::Temporary,
            attempt: 1,
            of: Some(10),
            retry_in: HOUR,
            lease_left: None,
            exchange: Some(Box::new(exchange)),
        },
        Event::GaveUp {
            failure: Failure::Flow(FlowError::Refused),
            class: FailureClass::Fatal,
            why: GiveUp::MaxRetries,
            lease_left: Some(HOUR),
            exchange: None,
        },
        Event::Expired { next_in: None },
        Event::FlowLost {
            flow: FlowId::new(4),
            error: FlowError::Closed,
            next_in: Some(HOUR),
        },
        Event::Unregistered(Removal::Refused(403)),
        Event::Bindings([binding].into()),
        Event::QueryFailed(Failure::Resolve(ResolveError::Timeout)),
        Event::Paused {
            resumes_in: Some(HOUR),
        },
        Event::Warning(Warning::Unconfirmed),
    ];
    let application = Application::default();
    for event in &events {
        application.event(id, event);
    }
    let lines = application.lines.lock().expect("no panic");
    assert_eq!(lines.len(), events.len());
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("#3.1 ") && line.len() > 8),
        "{lines:#?}"
    );

    let lease = LeaseStatus::new(Instant::now(), HOUR, FlowId::new(4), target());
    let status = Status::new(Activity::Idle)
        .with_lease(lease.with_flow(None).with_confirmed(false))
        .with_last_failure(failure)
        .with_retries(2)
        .with_reference(ReferenceStatus::Rejected);
    assert!(status.is_registered() && !status.is_reachable());
    assert_eq!(status.retries, 2);
    assert_eq!(status.reference_status(), ReferenceStatus::Rejected);

    let invite = Bytes::from("INVITE sip:s@192.0.2.1 SIP/2.0\r\n\r\n");
    let message = InboundMessage::new(source, invite.clone()).with_flow(FlowId::new(4));
    assert_eq!(message.flow, Some(FlowId::new(4)));
    assert_matches!(application.message(message.clone()), Err(_));
    let message = message.with_registration(Match::new(id, None));
    assert_matches!(application.message(message), Ok(()));
    assert_eq!(application.calls.lock().expect("no panic").len(), 1);
    let received = Received::new(source, invite).with_flow(FlowId::new(4));
    assert_eq!(
        (received.flow, received.source),
        (Some(FlowId::new(4)), source)
    );

    let query = CredentialsQuery::new("example.com", "alice", &[Algorithm::Md5]);
    assert_matches!(ready(Keychain.credentials(id, &query)), Some(secret) if secret.covers(Algorithm::Md5));
    let found = ready(Names.resolve(&Query::new("registrar.example.com")));
    assert_eq!(
        found.map(|answer| (answer.addresses().len(), answer.ttl)),
        Ok((1, HOUR))
    );
    assert_matches!(
        ready(Names.resolve(&Query::new("nowhere"))),
        Err(ResolveError::NoAddress(_))
    );
}

#[test]
fn a_transport_is_tested_without_an_agent() {
    const ROOM: usize = 2;
    let arrivals = Arc::new(Mutex::new(VecDeque::new()));
    let queue = Arc::clone(&arrivals);
    let inbound = Inbound::new("0123abcd", move |arrival| {
        let mut queue = queue.lock().expect("no panic");
        if queue.len() >= ROOM {
            return Err(arrival);
        }
        queue.push_back(arrival);
        Ok(())
    });
    let next = || arrivals.lock().expect("no panic").pop_front();
    let (memory, id) = (Memory::default(), FlowId::new(4));
    let flow = ready(async {
        memory.start(inbound.clone()).await.expect("it starts");
        memory.open(id, &target()).await.expect("a flow")
    });
    let register = Bytes::from(
        "REGISTER sip:example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK0123abcd00000000\r\n\
         From: <sip:alice@example.com>;tag=1\r\nTo: <sip:alice@example.com>\r\n\
         Call-ID: c\r\nCSeq: 1 REGISTER\r\nContent-Length: 0\r\n\r\n",
    );
    // What the transport hears is handed over as it came, and known as ours by the branch.
    for _ in 0..ROOM {
        assert_eq!(flow.send(register.clone()), Ok(()));
    }
    assert_eq!(flow.send(register.clone()), Err(FlowError::Full));
    for _ in 0..ROOM {
        assert_matches!(next(), Some(Arrival::Received(batch)) => {
            assert_eq!(batch[0].source, target().address());
            assert!(batch[0].message.starts_with(b"SIP/2.0 401"));
            assert!(inbound.accepts(&batch[0].message));
        });
    }
    assert!(!inbound.accepts(&register), "a request is no answer");

    // A connection that the peer opened has a name that no flow of ours has.
    let accepted = inbound.accepted(Arc::clone(&flow));
    assert_ne!(accepted, id);
    assert_matches!(next(), Some(Arrival::Accepted(id, _)) if id == accepted);

    // A stream waits while there is no room, and loses nothing.
    let received = Received::new(target().address(), register);
    let mut batches = vec![vec![received.clone()]; ROOM + 1];
    for batch in &mut batches[..ROOM] {
        ready(inbound.received(batch));
    }
    let mut waiting = pin!(inbound.received(&mut batches[ROOM]));
    let mut context = Context::from_waker(Waker::noop());
    assert_matches!(waiting.as_mut().poll(&mut context), Poll::Pending);
    assert_matches!(next(), Some(Arrival::Received(_)));
    assert_matches!(waiting.as_mut().poll(&mut context), Poll::Ready(()));
    assert_matches!(next(), Some(Arrival::Received(_)));
    assert_matches!(next(), Some(Arrival::Received(batch)) if batch == [received]);
    ready(inbound.failed(id, FlowError::Reset));
    assert_matches!(next(), Some(Arrival::Failed(flow, FlowError::Reset)) if flow == id);
    assert!(next().is_none());
}

#[test]
fn what_is_shared_between_threads_may_be() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Registration>();
    shared::<RegistrationBuilder>();
    shared::<Policy>();
    shared::<Credentials>();
    shared::<Secret>();
    shared::<SipUri>();
    shared::<Machine>();
    shared::<Pool>();
    shared::<PoolOutput>();
    shared::<Output>();
    shared::<Event>();
    shared::<Status>();
    shared::<Registered>();
    shared::<Removal>();
    shared::<Inbound>();
    shared::<InboundMessage>();
    shared::<Response>();
    shared::<Request>();
    shared::<Framer>();
    shared::<Error>();
    shared::<BuildError>();
    shared::<Arc<dyn Registrar>>();
    shared::<Arc<dyn Transport>>();
    shared::<Arc<dyn Flow>>();
    shared::<Arc<dyn Resolver>>();
    shared::<Arc<dyn CredentialProvider>>();
    shared::<Arc<dyn Host>>();
    sent::<Entropy>();
    sent::<Input<'_>>();
    #[cfg(feature = "tokio")]
    {
        shared::<Agent>();
        shared::<RegistrationHandle>();
        sent::<Events>();
        sent::<Messages>();
        fn _removal(agent: &Agent, id: RegistrationId) -> impl Future<Output = impl Sized> + Send {
            agent.remove(id, HOUR)
        }
    }
    fn sent_future<T: Send>(future: T) -> T {
        future
    }
    let mock = Mock::default();
    drop(sent_future(mock.statuses()));
}

#[test]
fn every_refusal_goes_through_a_question_mark() {
    fn errors() -> [Result<(), Error>; 4] {
        [
            (|| Ok(SipUri::parse("nothing").map(drop)?))(),
            (|| Ok(Registration::builder("sip:a", "").build().map(drop)?))(),
            (|| Ok(Mechanism::parse("").map(drop)?))(),
            (|| Ok(TransportConfig::new("", Protocol::Udp).map(drop)?))(),
        ]
    }
    assert_matches!(
        errors(),
        [
            Err(Error::Uri(_)),
            Err(Error::Build(_)),
            Err(Error::Mechanism(_)),
            Err(Error::Transport(_)),
        ]
    );
    #[cfg(feature = "rsip-0_4")]
    {
        let dotted = SipUri::parse("sip:al.ice@example.com").expect("a URI");
        let error = rsip::Uri::try_from(&dotted).map(drop);
        assert_matches!(error.map_err(Error::from), Err(Error::Rsip(_)));
    }
}

#[test]
fn one_machine_is_driven_by_hand() {
    let mut entropy = Entropy::from_seed([3; 32]);
    let identity = Identity::default()
        .with_agent(AgentKey::new("0123abcd", [7; 16]))
        .with_call_id("the-call")
        .with_cseq(41);
    let mut machine = Machine::new(Arc::new(account("alice")), identity, &mut entropy);
    let (mut now, mut out) = (Instant::now(), Vec::new());
    let mut events = Vec::new();
    let info = Arc::new(FlowInfo::new(
        Protocol::Udp,
        address("192.0.2.1:5060"),
        target().address(),
    ));
    let mut cseqs = Vec::new();
    let mut removal = None;
    for command in [Input::Start, Input::Timeout, Input::Stop(HOUR)] {
        if matches!(command, Input::Timeout) {
            now = machine.deadline().expect("a refresh is planned");
        }
        let mut queue = VecDeque::new();
        let wall = SystemTime::UNIX_EPOCH;
        machine.handle(
            &mut Cx {
                now,
                wall,
                entropy: &mut entropy,
                out: &mut out,
            },
            command,
        );
        queue.extend(out.drain(..));
        while let Some(output) = queue.pop_front() {
            let response;
            let input = match output {
                Output::Locate { op, uri } => {
                    assert_eq!(uri.host(), "registrar.example.com");
                    Input::Located {
                        op,
                        result: Ok(vec![target()]),
                    }
                }
                Output::Open { op, .. } => Input::Opened {
                    op,
                    result: Ok((FlowId::new(1), Arc::clone(&info))),
                    retry_in: None,
                },
                Output::Credentials { op, query } => {
                    let secret =
                        ready(Keychain.credentials(RegistrationId::from_parts(0, 0), &query));
                    Input::Credentials { op, secret }
                }
                Output::Guard { op, .. } => Input::Guarded { op, allowed: true },
                Output::Transmit { message, .. } => {
                    let request = Request::parse(message.clone()).expect("a request");
                    assert_eq!(request.call_id().as_deref(), Some("the-call"));
                    cseqs.extend(request.cseq().map(|(number, _)| number));
                    response = Response::parse(answer(&message)).expect("a response");
                    Input::Response(&response)
                }
                Output::Event(event) => {
                    events.push(event);
                    continue;
                }
                Output::Done(fate) => {
                    removal = Some(fate);
                    continue;
                }
                Output::Proved { .. }
                | Output::Target { .. }
                | Output::Answered { .. }
                | Output::Cancel(_) => continue,
            };
            machine.handle(
                &mut Cx {
                    now,
                    wall,
                    entropy: &mut entropy,
                    out: &mut out,
                },
                input,
            );
            queue.extend(out.drain(..));
        }
    }
    assert_matches!(
        &events[..],
        [
            Event::Registered(_),
            Event::Refreshed(_),
            Event::Unregistered(Removal::Removed)
        ]
    );
    assert_eq!(
        (cseqs, removal),
        (vec![42, 43, 44, 45], Some(Removal::Removed))
    );
    assert_eq!(
        (machine.deadline(), machine.status().is_registered()),
        (None, false)
    );
}

/// A host without tokio: a pool, a transport, and a loop
#[derive(Debug)]
struct Loop {
    pool: Pool,
    entropy: Entropy,
    transport: Memory,
    flows: HashMap<FlowId, Arc<dyn Flow>>,
    application: Application,
    removals: Vec<Removal>,
    now: Instant,
}

impl Loop {
    fn new() -> Self {
        let mut entropy = Entropy::from_seed([4; 32]);
        let mut pool = Pool::new(&mut entropy);
        let transport = Memory::default();
        pool.add_transport("memory", transport.protocols());
        Self {
            pool,
            entropy,
            transport,
            flows: HashMap::new(),
            application: Application::default(),
            removals: Vec::new(),
            now: Instant::now(),
        }
    }

    fn call<T>(&mut self, act: impl FnOnce(&mut Pool, &mut Cx<'_, PoolOutput>) -> T) -> T {
        let mut out = Vec::new();
        let (now, wall) = (self.now, SystemTime::UNIX_EPOCH);
        let mut cx = Cx {
            now,
            wall,
            entropy: &mut self.entropy,
            out: &mut out,
        };
        let result = act(&mut self.pool, &mut cx);
        for output in out {
            self.carry_out(output);
        }
        result
    }

    fn carry_out(&mut self, output: PoolOutput) {
        match output {
            PoolOutput::Resolve(query) => {
                let answer = ready(Names.resolve(&query));
                self.call(|pool, cx| pool.resolved(cx, &query, answer));
            }
            PoolOutput::Open {
                flow,
                target,
                transport,
            } => {
                assert_eq!(transport, None);
                let opened = ready(self.transport.open(flow, &target));
                let info = opened
                    .as_ref()
                    .map(|opened| Arc::new(opened.info().clone()));
                let info = info.map_err(Clone::clone);
                self.flows.extend(opened.ok().map(|opened| (flow, opened)));
                self.call(|pool, cx| pool.opened(cx, flow, info));
            }
            PoolOutput::Send { flow, message } => {
                let carrier = Arc::clone(&self.flows[&flow]);
                carrier.send(message.clone()).expect("an open flow");
                let received = Received::new(carrier.info().remote(), answer(&message));
                assert!(self.pool.accepts(&received.message));
                self.call(|pool, cx| pool.received(cx, received));
            }
            PoolOutput::Close(flow) => {
                if let Some(flow) = self.flows.remove(&flow) {
                    flow.close();
                }
            }
            PoolOutput::Credentials { id, op, query } => {
                let secret = ready(Keychain.credentials(id, &query));
                self.call(|pool, cx| pool.credentials(cx, id, op, secret));
            }
            PoolOutput::Event(id, event) => self.application.event(id, &event),
            PoolOutput::Done(_, removal) => self.removals.push(removal),
            PoolOutput::Message(message) => drop(self.application.message(message)),
        }
    }
}

#[test]
fn a_pool_is_driven_without_tokio() {
    let mut host = Loop::new();
    let users = ["alice", "bob", "carol"];
    let ids = users.map(|user| host.call(|pool, cx| pool.insert(cx, Arc::new(account(user)))));
    for id in ids {
        assert!(
            host.pool
                .status(id)
                .is_some_and(|status| status.is_registered())
        );
    }
    assert_eq!((host.pool.len(), host.flows.len()), (3, 1));

    // A call for one of them, on the address that registered.
    let call = Bytes::from(
        "INVITE sip:bob@192.0.2.1:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKcall\r\n\
         From: <sip:x@y>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\n\
         Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
    );
    host.call(|pool, cx| pool.received(cx, Received::new(address("192.0.2.9:5060"), call)));
    let calls = std::mem::take(&mut *host.application.calls.lock().expect("no panic"));
    let matched = calls.first().and_then(|call| call.registration.as_ref());
    assert_eq!(matched.map(|found| found.registration), Some(ids[1]));

    let before = host.transport.sent.lock().expect("no panic").len();
    let end = host.now + HOUR;
    while let Some(at) = host.pool.deadline().filter(|at| *at < end) {
        host.now = at;
        host.call(|pool, cx| pool.timeout(cx, 10));
    }
    assert_eq!(
        host.transport.sent.lock().expect("no panic").len(),
        before + 3
    );

    for id in ids {
        host.call(|pool, cx| assert!(pool.remove(cx, id, HOUR)));
    }
    assert_eq!(
        host.removals,
        [Removal::Removed, Removal::Removed, Removal::Removed]
    );
    assert!(host.pool.is_empty() && host.flows.is_empty() && host.pool.deadline().is_none());
    let lines = host.application.lines.lock().expect("no panic");
    for word in ["registered", "refreshed", "unregistered"] {
        let told = lines
            .iter()
            .filter(|line| line.split(' ').nth(1) == Some(word));
        assert_eq!(told.count(), 3, "{word}: {lines:#?}");
    }
}

#[cfg(feature = "tokio")]
#[tokio::test(start_paused = true)]
async fn an_agent_runs_on_foreign_parts_only() {
    let application = Arc::new(Application::default());
    let agent = Agent::builder()
        .transport("memory", Memory::default())
        .resolver(Names)
        .credentials(Keychain)
        .host(Arc::clone(&application))
        .seed([5; 32])
        .build()
        .await
        .expect("it starts");
    let handle = agent.add(account("alice")).await.expect("taken");
    let registered = handle.registered().await.expect("registered");
    assert_eq!((registered.granted, registered.target), (HOUR, target()));
    let registrar: &dyn Registrar = &agent;
    assert_eq!(
        registrar.shutdown(HOUR).await,
        [(handle.id(), Removal::Removed)]
    );
    let lines = application.lines.lock().expect("no panic");
    assert!(
        lines.iter().any(|line| line.contains("unregistered")),
        "{lines:#?}"
    );
}
