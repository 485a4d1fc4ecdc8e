//! Requests that arrive, well and badly made, and hosts that answer them well and badly (RFC 3261 §8.2, §9.2, §17.2).

use assert_matches::assert_matches;
use sip_registration::testkit::{MockTransport, SentRequest, Wire};
use sip_registration::*;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A registered phone, with what it registered by
struct Phone {
    agent: Agent,
    wire: Wire,
    handle: RegistrationHandle,
    register: SentRequest,
}

impl Phone {
    async fn new() -> Self {
        Self::with(Agent::builder()).await
    }

    async fn with(builder: AgentBuilder) -> Self {
        let (transport, mut wire) = MockTransport::new();
        let agent = builder.transport("mock", transport).build().await;
        let agent = agent.expect("an agent");
        let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
            .contact_user("alice")
            .max_random_initial_delay(Duration::ZERO)
            .build()
            .expect("a good configuration");
        let handle = agent.add(account).await.expect("added");
        let register = wire.next_request().await;
        wire.reply(&register, 200).await;
        handle.registered().await.expect("registered");
        Self {
            agent,
            wire,
            handle,
            register,
        }
    }

    /// A request from the registrar, and the answer of the agent.
    async fn asks(&mut self, request: &str) -> Response {
        self.wire.push(&self.register, request.to_owned()).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Response {
        let answer = timeout(Duration::from_secs(30), self.wire.next_response()).await;
        answer.expect("nothing was answered")
    }

    /// That a request was answered by nobody: the next one is the next that is.
    async fn is_not_answered(&mut self, request: &str) {
        self.wire.push(&self.register, request.to_owned()).await;
        let next = self.asks(&written("OPTIONS", "next")).await;
        assert_eq!(next.call_id().as_deref(), Some("next"), "{request}");
    }

    async fn is_well(&mut self) {
        self.handle.refresh().await.expect("it is there");
        let refresh = self.wire.next_request().await;
        self.wire.reply(&refresh, 200).await;
        let status = self.handle.status().await.expect("there");
        assert!(status.is_reachable());
    }
}

/// A request whose Call-ID and branch are `name`
fn written(method: &str, name: &str) -> String {
    format!(
        "{method} sip:alice@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK{name}\r\nMax-Forwards: 70\r\n\
         From: <sip:bob@example.com>;tag=1\r\nTo: <sip:alice@example.com>\r\nCall-ID: {name}\r\nCSeq: 7 {method}\r\n\
         Contact: <sip:bob@192.0.2.9>\r\nContent-Length: 0\r\n\r\n"
    )
}

fn tag(response: &Response) -> String {
    response.tag_of("To").expect("a tag")
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_malformed_gets_400_where_its_transaction_can_be_told() {
    let mut phone = Phone::new().await;
    let good = written("OPTIONS", "a");
    for (from, to) in [
        ("From: <", "From: Bob Smith, Esq. <"),
        ("To: <", "To: \"Alice <"),
        ("To: ", "To: <sip:alice@example.com>\r\nTo: "),
        ("From: ", "f: <sip:eve@example.com>;tag=2\r\nFrom: "),
        ("Call-ID: a", "Call-ID: a\r\ni: b"),
        ("CSeq: 7 OPTIONS", "CSeq: 7 INVITE"),
        ("CSeq: 7 OPTIONS", "CSeq: 7 OPTIONS\r\nCSeq: 8 OPTIONS"),
        ("sip:alice@192.0.2.1 ", "<sip:alice@192.0.2.1> "),
        ("Contact: <sip:bob@192.0.2.9>", "Contact: bob"),
        ("Content-Length: 0", "Content-Length: 9"),
        ("Max-Forwards: 70", "Max-Forwards: 70\r\nMax-Forwards: 1"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        let answer = phone.asks(&bad).await;
        assert_eq!((answer.code(), answer.via_count()), (400, 1), "{bad}");
        assert_eq!(
            answer.headers("Call-ID").collect::<Vec<_>>(),
            ["a"],
            "{bad}"
        );
    }
    for (from, to) in [
        ("Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKa\r\n", ""),
        ("Via: SIP/2.0/UDP 192.0.2.9;", "Via: nonsense;"),
        ("From: <sip:bob@example.com>;tag=1\r\n", ""),
        ("To: <sip:alice@example.com>\r\n", ""),
        ("Call-ID: a\r\n", ""),
        ("CSeq: 7 OPTIONS\r\n", ""),
        ("CSeq: 7 OPTIONS", "CSeq: seven OPTIONS"),
        ("CSeq: 7 OPTIONS", "CSeq: 4294967296 OPTIONS"),
        (
            "OPTIONS sip:alice@192.0.2.1 SIP/2.0",
            "ACK <sip:alice@192.0.2.1> SIP/2.0",
        ),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        phone.is_not_answered(&bad).await;
    }
    phone.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn each_copy_of_a_request_is_told_and_gets_the_same_answer() {
    let mut phone = Phone::new().await;
    let invite = written("INVITE", "a");
    let first = phone.asks(&invite).await;
    assert_eq!(first.code(), 480);
    let again = phone.asks(&invite).await;
    assert_eq!(first.bytes(), again.bytes());
    let mut messages = phone.agent.messages();
    for _ in 0..3 {
        phone.wire.push(&phone.register, invite.clone()).await;
        let told = messages.next().await.expect("told");
        assert_eq!(told.message, invite.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_and_its_cancel_have_one_tag_and_two_branches_of_it_have_two() {
    let mut phone = Phone::new().await;
    let invite = phone.asks(&written("INVITE", "a")).await;
    let cancel = phone.asks(&written("CANCEL", "a")).await;
    assert_eq!(tag(&invite), tag(&cancel));
    // The registrar forks the call to another Contact of this process.
    let fork = written("INVITE", "a").replace("z9hG4bKa", "z9hG4bKb");
    let fork = phone.asks(&fork).await;
    assert_ne!(tag(&invite), tag(&fork));
    let other = written("INVITE", "a").replace("sip:alice@192.0.2.1", "sip:carol@192.0.2.1");
    let other = phone.asks(&other).await;
    assert_ne!(tag(&invite), tag(&other));
    // Within a dialog the tag is the one that is there.
    let bye = written("BYE", "a").replace("example.com>\r\nCall", "example.com>;tag=mine\r\nCall");
    assert_eq!(tag(&phone.asks(&bye).await), "mine");
}

struct Clumsy {
    told: Mutex<Vec<String>>,
}

impl Host for Clumsy {
    fn event(&self, _: RegistrationId, event: &Event) {
        let mut told = self.told.lock().expect("a lock");
        told.push(event.to_string());
        drop(told);
        panic!("a host that cannot stand events");
    }

    fn message(&self, message: InboundMessage) -> Result<(), InboundMessage> {
        match message.request().expect("a request").method() {
            "INVITE" => panic!("a host that cannot stand calls"),
            "INFO" => Ok(()),
            _ => Err(message),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_panics_takes_nothing_with_it() {
    let host = Arc::new(Clumsy {
        told: Mutex::default(),
    });
    let mut phone = Phone::with(Agent::builder().host(Arc::clone(&host))).await;
    let answer = phone.asks(&written("INVITE", "a")).await;
    assert_eq!(answer.code(), 500);
    assert_eq!(phone.asks(&written("MESSAGE", "b")).await.code(), 480);
    // What it takes and never answers is its own.
    phone.is_not_answered(&written("INFO", "c")).await;
    phone.is_not_answered(&written("ACK", "d")).await;
    phone.is_well().await;
    assert!(host.told.lock().expect("a lock").len() >= 2);
}

/// A message of a phone that reads, from the registrar
async fn read(phone: &Phone, messages: &mut Messages, request: &str) -> InboundMessage {
    phone.wire.push(&phone.register, request.to_owned()).await;
    messages.next().await.expect("told")
}

#[tokio::test(start_paused = true)]
async fn a_bad_answer_is_an_error_and_nothing_is_sent() {
    let mut phone = Phone::new().await;
    let mut messages = phone.agent.messages();
    let invite = read(&phone, &mut messages, &written("INVITE", "a")).await;
    let busy = invite.response(486).expect("a response").build();
    let text = String::from_utf8(busy.to_vec()).expect("a text");
    for bad in [
        text.replace("486", "99"),
        text.replace("486", "700"),
        text.replace("SIP/2.0 486 Busy Here", "BYE sip:bob@192.0.2.9 SIP/2.0"),
        text.replace("Via", "Bia"),
        text.replace("Call-ID: a", "Call-ID:"),
        String::new(),
        "\r\n\r\n".to_owned(),
    ] {
        let error = phone.agent.answer(&invite, bad.clone().into());
        assert_matches!(error, Err(AnswerError::NotAResponse(_)), "{bad}");
    }
    let ack = read(&phone, &mut messages, &written("ACK", "a")).await;
    assert_eq!(
        phone.agent.answer(&ack, busy.clone()),
        Err(AnswerError::Ack)
    );
    let response = text.replace("486", "200");
    let response = read(&phone, &mut messages, &response).await;
    assert_matches!(
        phone.agent.answer(&response, busy.clone()),
        Err(AnswerError::NotARequest(_))
    );

    // Good ones may be many.
    for code in [100, 180, 180, 486, 486] {
        let answer = invite.response(code).expect("a response").build();
        phone.agent.answer(&invite, answer).expect("sent");
        assert_eq!(phone.answer().await.code(), code);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_harms_nobody() {
    let mut phone = Phone::new().await;
    let mut messages = phone.agent.messages();
    let invite = read(&phone, &mut messages, &written("INVITE", "a")).await;
    let busy = invite.response(486).expect("a response").build();
    // The flow is gone: by UDP the answer still goes where the request came from.
    phone.wire.fail_all(FlowError::Reset).await;
    let again = phone.wire.next_request().await;
    phone.wire.reply(&again, 200).await;
    phone.agent.answer(&invite, busy.clone()).expect("taken");
    assert_eq!(phone.answer().await.code(), 486);
    phone.is_well().await;

    let agent = phone.agent.clone();
    let ended = tokio::spawn(async move { agent.shutdown(Duration::from_secs(1)).await });
    let last = phone.wire.next_request().await;
    // While it ends there are answers still.
    phone.agent.answer(&invite, busy.clone()).expect("taken");
    assert_eq!(phone.answer().await.code(), 486);
    phone.wire.reply(&last, 200).await;
    assert_eq!(ended.await.expect("it ends").len(), 1);
    let late = phone.agent.clone();
    let late = tokio::spawn(async move { late.answer(&invite, busy) });
    assert_eq!(late.await.expect("no panic"), Err(AnswerError::Closed));
    assert!(messages.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_reader_missed_nobody_answers_and_without_readers_the_agent_does() {
    let mut phone = Phone::new().await;
    let mut slow = phone.agent.messages();
    for number in 0..1100 {
        let request = written("MESSAGE", &number.to_string());
        phone.wire.push(&phone.register, request).await;
    }
    phone.is_well().await;
    let first = slow.next().await.expect("told");
    assert_eq!(slow.missed(), 76);
    let request = first.request().expect("a request");
    assert_eq!(request.call_id().as_deref(), Some("76"));
    drop(slow);
    let answer = phone.asks(&written("MESSAGE", "last")).await;
    assert_eq!(
        (answer.code(), answer.call_id().as_deref()),
        (480, Some("last"))
    );
}

/// The next message on a connection.
async fn next_on(stream: &mut TcpStream, framer: &mut Framer) -> Message {
    loop {
        if let Some(Frame::Message(message)) = framer.next().expect("SIP") {
            return Message::parse(message).expect("a message");
        }
        let mut buffer = [0; 4096];
        let read = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await;
        let length = read.expect("in time").expect("it lives");
        assert_ne!(length, 0, "the connection was closed");
        framer.push(&buffer[..length]);
    }
}

/// A registrar that grants on the connection that it is given.
async fn granted_on(stream: &mut TcpStream, framer: &mut Framer) {
    let Message::Request(register) = next_on(stream, framer).await else {
        panic!("no request");
    };
    let mut grant = "SIP/2.0 200 OK\r\n".to_owned();
    for name in ["Via", "From", "To", "Call-ID", "CSeq", "Contact", "Expires"] {
        let value = register.header(name).expect(name);
        grant.push_str(&format!("{name}: {value}\r\n"));
    }
    grant.push_str("Content-Length: 0\r\n\r\n");
    stream.write_all(grant.as_bytes()).await.expect("sent");
}

#[tokio::test]
async fn a_body_of_3_mb_costs_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: SocketAddr = listener.local_addr().expect("its address");
    let agent = Agent::builder().system_transports().build().await;
    let agent = agent.expect("an agent");
    let account = Registration::builder(
        format!("sip:{address};transport=tcp"),
        "sip:alice@example.com",
    )
    .max_random_initial_delay(Duration::ZERO)
    .build()
    .expect("a good configuration");
    let handle = agent.add(account).await.expect("added");
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut framer = Framer::new();
    granted_on(&mut stream, &mut framer).await;
    handle.registered().await.expect("registered");

    for name in ["a", "b"] {
        let head = written("MESSAGE", name);
        let head = head.replace("Content-Length: 0", "Content-Length: 3000000");
        let sent = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&vec![b'x'; 3_000_000]).await
        };
        sent.await.expect("read over");
        let Message::Response(answer) = next_on(&mut stream, &mut framer).await else {
            panic!("no answer");
        };
        let call_id = answer.call_id();
        assert_eq!((answer.code(), call_id.as_deref()), (413, Some(name)));
    }
    handle.refresh().await.expect("it is there");
    granted_on(&mut stream, &mut framer).await;
    assert!(handle.status().await.expect("there").is_reachable());
}
