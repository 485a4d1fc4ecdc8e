//! WebSocket: against Kamailio, where bindings are asked of it and not of us, and against a server with faults

mod faults;

use crate::lab::{Bound, Lab};
use assert_matches::assert_matches;
use futures_util::{SinkExt, StreamExt};
use sip_registration::testkit::Reply;
use sip_registration::{
    Agent, Credentials, Event, Events, Failure, FlowError, FlowId, InboundMessage, Messages,
    Policy, Protocol, Registered, Registrar, Registration, RegistrationHandle, Removal, Request,
    TlsConfig, TransportConfig, Warning, WsConfig, WsError, WsTransport,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Response};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

/// How long anything may take
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent with both WebSocket transports
struct Office {
    agent: Agent,
    events: Events,
    messages: Messages,
}

impl Office {
    async fn new(ws: WsConfig) -> Self {
        let mut builder = Agent::builder();
        for (name, protocol) in [("ws", Protocol::Ws), ("wss", Protocol::Wss)] {
            let config = TransportConfig::new(name, protocol).expect("a good configuration");
            builder = builder.transport(name, WsTransport::new(config, ws.clone()));
        }
        let agent = builder.build().await.expect("an agent");
        let events = agent.events();
        let messages = agent.messages();
        Self {
            agent,
            events,
            messages,
        }
    }

    /// An account at a server, perhaps by a proxy, which tries again after a second and pings each second.
    async fn add(&self, user: &str, server: &str, proxy: Option<&str>) -> RegistrationHandle {
        let mut policy = Policy::default();
        policy.retry.retry_interval = Duration::from_secs(1);
        policy.retry.jitter = 0.0;
        policy.timers.connect_timeout = Duration::from_secs(2);
        policy.keep_alive.stream = Some(Duration::from_secs(1)..=Duration::from_secs(1));
        let mut account = Registration::builder(server, format!("sip:{user}@registrar.test"))
            .outbound_auth(Credentials::password(user, "secret"))
            .contact_user(user)
            .line(true)
            .endpoint("phone")
            .support_path(true)
            .policy(policy)
            .max_random_initial_delay(Duration::ZERO);
        if let Some(proxy) = proxy {
            account = account.outbound_proxy(proxy);
        }
        let account = account.build().expect("a good configuration");
        self.agent.add(account).await.expect("a registration")
    }

    /// What became of the next attempt.
    async fn outcome(&mut self) -> Event {
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                match &*event {
                    Event::Scheduled { .. } => {}
                    // A server on loopback grants what it likes.
                    Event::Warning(Warning::NoRoomForFailover { .. }) => {}
                    event => return event.clone(),
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("nothing was told")
    }

    async fn granted(&mut self) -> Registered {
        match self.outcome().await {
            Event::Registered(granted) | Event::Refreshed(granted) => *granted,
            other => panic!("not granted: {other}"),
        }
    }

    /// Why no flow could be made.
    async fn refused(&mut self) -> FlowError {
        match self.outcome().await {
            Event::Rejected {
                failure: Failure::Flow(error),
                ..
            } => error,
            other => panic!("not refused: {other}"),
        }
    }

    /// The next request that arrives, whose answer is 200.
    async fn called(&mut self) -> (InboundMessage, Request) {
        let message = timeout(PATIENCE, self.messages.next()).await;
        let message = message.expect("in time").expect("a message");
        let request = message.request().expect("a request");
        let answer = message.response(200).expect("an answer");
        let answered = self.agent.answer(&message, answer.build());
        answered.expect("sent");
        (message, request)
    }

    async fn ends(self, handle: &RegistrationHandle) {
        assert_eq!(handle.unregister(PATIENCE).await, Removal::Removed);
        self.agent.shutdown(PATIENCE).await;
    }
}

async fn bound(lab: &Lab, user: &str, granted: &Registered) -> Bound {
    let bindings = lab.bindings(user).await;
    let [bound] = &bindings[..] else {
        panic!("not one binding: {bindings:?}");
    };
    assert_eq!(bound.uri, *granted.contact);
    assert!(granted.confirmed);
    bound.clone()
}

/// Sends a user MESSAGE and OPTIONS by way of the registrar, both of which want 200.
async fn call(lab: &Lab, user: &str) {
    let scenario = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/sipp/call_aor.xml");
    let run = Command::new("sipp")
        .arg("-sf")
        .arg(scenario)
        .args(["-s", user, "-m", "1", "-nostdin", "-i", "127.0.0.1"])
        .args(["-timeout", "15s", "-timeout_error"])
        .arg(format!("127.0.0.1:{}", lab.port()))
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .output();
    let output = timeout(PATIENCE, run).await.expect("sipp ends");
    let output = output.expect("sipp runs (package sip-tester)");
    assert!(output.status.success(), "{user}: {output:?}");
}

fn trusting(lab: &Lab) -> WsConfig {
    let tls = TlsConfig::new().with_roots_pem(&lab.pem("ca.pem"));
    WsConfig::new().with_tls(tls.expect("good roots"))
}

/// Registers, is called, refreshes and goes, all on one connection.
async fn a_life(lab: &Lab, ws: WsConfig, user: &str, server: &str, proxy: Option<&str>) {
    let mut office = Office::new(ws).await;
    let handle = office.add(user, server, proxy).await;
    let granted = office.granted().await;
    let secure = granted.target.protocol() == Protocol::Wss;
    let next_hop = proxy.unwrap_or(server);
    assert_eq!(
        secure,
        next_hop.contains("wss") || next_hop.starts_with("sips")
    );
    let scheme = if server.starts_with("sips") {
        "sips"
    } else {
        "sip"
    };
    let start = format!("{scheme}:{user}@");
    assert!(granted.contact.starts_with(&start), "{}", granted.contact);
    assert!(granted.contact.contains(".invalid;transport=ws;line="));
    let before = bound(lab, user, &granted).await;
    match proxy {
        None => assert!(before.received.contains(";transport=ws"), "{before:?}"),
        Some(_) => assert!(before.path.contains("lr"), "{before:?}"),
    }

    let line = granted.contact.split_once(";line=").expect("a line").1;
    let answered = async {
        for method in ["MESSAGE", "OPTIONS"] {
            let (message, request) = office.called().await;
            assert_eq!(request.method(), method);
            let uri = request.uri();
            assert!(uri.contains(&format!(";line={line}")), "{uri}");
            assert_eq!(message.flow, Some(granted.flow));
            let belongs_to = message.registration.expect("a match");
            assert_eq!(belongs_to.registration, handle.id());
            assert_eq!(belongs_to.endpoint.as_deref(), Some("phone"));
        }
    };
    tokio::join!(answered, call(lab, user));

    handle.refresh().await.expect("it is there");
    let again = office.granted().await;
    assert_eq!(
        (again.flow, &again.contact),
        (granted.flow, &granted.contact)
    );
    let after = bound(lab, user, &again).await;
    assert_eq!((after.received, after.path), (before.received, before.path));
    office.ends(&handle).await;
    assert_eq!(lab.bindings(user).await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio and SIPp; .ci/run runs it"]
async fn calls_arrive_over_the_websocket_of_the_binding() {
    let lab = Lab::registrar(&[]);
    let (ws, wss) = (lab.port() + 6, lab.port() + 7);
    for (user, server) in [
        ("alice-ws1", format!("sip:127.0.0.1:{ws};transport=ws")),
        ("alice-ws2", format!("sip:[::1]:{ws};transport=ws")),
        ("alice-ws3", format!("sip:127.0.0.1:{wss};transport=wss")),
        ("alice-ws4", format!("sips:localhost:{wss};transport=ws")),
    ] {
        a_life(lab, trusting(lab), user, &server, None).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio and SIPp; .ci/run runs it"]
async fn calls_arrive_through_a_proxy_that_is_reached_over_websocket() {
    let (lab, edge) = (Lab::registrar(&[]), Lab::edge());
    let server = format!("sip:127.0.0.1:{}", lab.port());
    for (user, proxy) in [
        (
            "alice-edge-ws",
            format!("sip:127.0.0.1:{};transport=ws;lr", edge.port() + 6),
        ),
        (
            "alice-edge-wss",
            format!("sip:127.0.0.1:{};transport=wss;lr", edge.port() + 1),
        ),
    ] {
        a_life(lab, trusting(edge), user, &server, Some(&proxy)).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_connection_that_is_made_again_replaces_the_binding() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=ws", lab.port() + 6);
    let mut office = Office::new(WsConfig::new()).await;
    let handle = office.add("alice-ws-again", &server, None).await;
    let granted = office.granted().await;
    let before = bound(lab, "alice-ws-again", &granted).await;
    office.agent.network_changed().await;
    let again = office.granted().await;
    assert_ne!(again.flow, granted.flow);
    assert_eq!(again.contact, granted.contact);
    let after = bound(lab, "alice-ws-again", &again).await;
    assert_ne!(after.received, before.received);
    office.ends(&handle).await;
}

#[tokio::test]
#[ignore = "needs Kamailio, and takes fifteen seconds; .ci/run runs it"]
async fn pings_are_answered_and_the_flow_stays() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=ws", lab.port() + 6);
    let mut office = Office::new(WsConfig::new()).await;
    let handle = office.add("alice-ws-ping", &server, None).await;
    let granted = office.granted().await;
    // A ping a second, each of which would end the flow after ten without its pong.
    let silence = timeout(Duration::from_secs(15), office.events.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    bound(lab, "alice-ws-ping", &granted).await;
    office.ends(&handle).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_certificate_that_nobody_vouches_for_makes_no_websocket() {
    let lab = Lab::registrar(&[]);
    let server = format!("sip:127.0.0.1:{};transport=wss", lab.port() + 7);
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let pem = stranger.expect("a certificate").cert.pem();
    let tls = TlsConfig::new().with_roots_pem(pem.as_bytes());
    let ws = WsConfig::new().with_tls(tls.expect("good roots"));
    let mut office = Office::new(ws).await;
    office.add("alice-ws-stranger", &server, None).await;
    assert_matches!(office.refused().await, FlowError::Tls(_));
    assert_eq!(lab.arrived("alice-ws-stranger"), [], "not a byte of SIP");
}

// ---- a server with faults

/// A registrar on WebSocket; a test says what each connection is to meet
struct Faulty {
    listener: TcpListener,
}

type Socket = WebSocketStream<TcpStream>;

impl Faulty {
    async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        Self {
            listener: listener.expect("a port"),
        }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    fn uri(&self) -> String {
        format!("sip:{};transport=ws", self.address())
    }

    async fn stream(&self) -> TcpStream {
        let accepted = timeout(PATIENCE, self.listener.accept()).await;
        accepted.expect("in time").expect("a connection").0
    }

    /// The next connection, as a WebSocket for `subprotocol`.
    async fn socket(&self, subprotocol: Option<&str>) -> Socket {
        let stream = self.stream().await;
        #[expect(
            clippy::result_large_err,
            reason = "tungstenite's, and there is no error here"
        )]
        let answer = |_: &_, mut response: Response| -> Result<Response, ErrorResponse> {
            if let Some(subprotocol) = subprotocol {
                let value = subprotocol.parse().expect("a token");
                let headers = response.headers_mut();
                headers.insert("Sec-WebSocket-Protocol", value);
            }
            Ok(response)
        };
        accept_hdr_async(stream, answer).await.expect("a client")
    }

    /// Refuses the next connection with this status.
    async fn refuse(&self, status: &str) {
        let mut stream = self.stream().await;
        let _ = stream.read(&mut [0; 4096]).await.expect("a request");
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.expect("sent");
    }
}

/// The next request on a connection; pings are answered beside, and answers to pings passed over.
async fn request(socket: &mut Socket) -> Request {
    loop {
        let message = timeout(PATIENCE, socket.next()).await.expect("in time");
        match message.expect("the connection lives").expect("a message") {
            Message::Text(text) => return Request::parse(text.into()).expect("a request"),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("no text: {other}"),
        }
    }
}

async fn grant(socket: &mut Socket) -> Request {
    let register = request(socket).await;
    let granted = Reply::granted(600).to(&register);
    let sent = socket.send(Message::Binary(granted)).await;
    sent.expect("the connection lives");
    register
}

#[tokio::test]
async fn a_server_that_refuses_is_asked_again_after_the_interval() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    let handle = office.add("alice", &registrar.uri(), None).await;
    for (status, reason) in [(401, "Unauthorized"), (404, "Not Found")] {
        let answer = format!("{status} {reason}");
        let (error, ()) = tokio::join!(office.refused(), registrar.refuse(&answer));
        let reason = reason.into();
        let expected = WsError::Refused { status, reason };
        assert_eq!(error, FlowError::WebSocket(expected));
    }
    let (error, _) = tokio::join!(office.refused(), registrar.socket(None));
    assert_eq!(error, FlowError::WebSocket(WsError::Subprotocol));
    let mut socket = registrar.socket(Some("sip")).await;
    grant(&mut socket).await;
    office.granted().await;
    let removed = async {
        let unregister = request(&mut socket).await;
        let ok = Reply::status(200).to(&unregister);
        socket.send(Message::binary(ok)).await.expect("sent");
    };
    tokio::join!(office.ends(&handle), removed);
}

#[tokio::test]
async fn a_close_frame_in_the_middle_of_a_registration_costs_one_attempt() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    let first = request(&mut socket).await;
    socket.close(None).await.expect("sent");
    assert_eq!(office.refused().await, FlowError::Closed);
    let mut socket = registrar.socket(Some("sip")).await;
    let again = grant(&mut socket).await;
    office.granted().await;
    assert_eq!(first.header("Contact"), again.header("Contact"));
}

#[tokio::test]
async fn an_answer_in_parts_between_other_messages_is_one_answer() {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    let register = request(&mut socket).await;
    let contact = register.header("Contact").expect("a Contact").into_owned();
    let target = contact.trim_matches(['<', '>']);
    let options = format!(
        "OPTIONS {target} SIP/2.0\r\nVia: SIP/2.0/WS 192.0.2.1;branch=z9hG4bKx\r\nMax-Forwards: 70\r\n\
         From: <sip:bob@example.com>;tag=1\r\nTo: <sip:alice@registrar.test>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\n\r\n"
    );
    let granted = Reply::granted(600).to(&register);
    let part = |opcode, range: std::ops::Range<usize>| {
        let header = FrameHeader {
            is_final: range.end == granted.len(),
            opcode: OpCode::Data(opcode),
            ..FrameHeader::default()
        };
        Message::Frame(Frame::from_payload(header, granted.slice(range)))
    };
    for message in [
        Message::text(options),
        part(Data::Text, 0..20),
        // Control frames may come in between (RFC 6455 §5.4).
        Message::Ping("?".into()),
        part(Data::Continue, 20..granted.len()),
    ] {
        socket.feed(message).await.expect("room");
    }
    socket.flush().await.expect("sent");
    let (message, _) = office.called().await;
    assert_eq!(message.flow, Some(office.granted().await.flow));
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let next = timeout(PATIENCE, socket.next()).await.expect("in time");
        match next.expect("the connection lives").expect("a message") {
            Message::Text(text) => {
                assert!(text.starts_with("SIP/2.0 200 "), "{text}");
                answered.push("OPTIONS");
            }
            Message::Pong(payload) => {
                assert_eq!(payload, "?");
                answered.push("Ping");
            }
            Message::Ping(_) => {}
            other => panic!("no answer: {other}"),
        }
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_or_no_sip_at_all() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    let handle = office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    grant(&mut socket).await;
    let granted = office.granted().await;
    // Frames do not lose their place: what nobody understands is left alone.
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\x01\x02", b"", b"\xff"] {
        socket.send(Message::binary(junk)).await.expect("sent");
    }
    handle.refresh().await.expect("it is there");
    grant(&mut socket).await;
    assert_eq!(office.granted().await.flow, granted.flow);

    let long = Message::binary(vec![b'x'; 2_000_000]);
    // It may be refused before all of it is out.
    let _ = socket.send(long).await;
    let lost: FlowId = granted.flow;
    assert_matches!(
        office.outcome().await,
        Event::FlowLost { flow, error: FlowError::WebSocket(WsError::TooLong { length: 2_000_000 }), .. } if flow == lost
    );
    let mut socket = registrar.socket(Some("sip")).await;
    grant(&mut socket).await;
    assert_ne!(office.granted().await.flow, lost);
}

#[tokio::test]
#[ignore = "takes two seconds; .ci/run runs it"]
async fn a_handshake_that_is_not_answered_counts_as_connecting() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut stream = registrar.stream().await;
    let within = Duration::from_secs(2);
    assert_eq!(office.refused().await, FlowError::ConnectTimeout(within));
    // And nothing of it stays.
    let mut request = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut request)).await;
    read.expect("in time").expect("closed in order");
    assert!(request.starts_with(b"GET / HTTP/1.1\r\n"));
}

#[tokio::test]
#[ignore = "takes eleven seconds; .ci/run runs it"]
async fn a_connection_that_is_open_on_our_side_only_is_found_out_by_its_pong() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    let register = grant(&mut socket).await;
    office.granted().await;
    // From here on the server reads nothing, and so answers nothing.
    assert_matches!(
        office.outcome().await,
        Event::FlowLost {
            error: FlowError::KeepAliveUnanswered(_),
            ..
        }
    );
    let mut again = registrar.socket(Some("sip")).await;
    let anew = grant(&mut again).await;
    office.granted().await;
    assert_eq!(register.header("Contact"), anew.header("Contact"));
    drop(socket);
}
