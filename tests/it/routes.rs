//! What a grant says of the ways out and in, over real sockets: Service-Route, P-Associated-URI, a trunk's numbers
//! (RFC 3608, 7315, 6140)

use assert_matches::assert_matches;
use bytes::Bytes;
use sip_registration::{
    Agent, Change, Event, Events, Failure, Messages, Registration, RegistrationBuilder,
    RegistrationHandle, RegistrationId, Request, WayOut,
};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take
const PATIENCE: Duration = Duration::from_secs(10);

/// A registrar that answers as it is told at the moment, and calls from the same port
struct Scripted {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    /// The status line and further headers of the next answers
    answer: Arc<Mutex<(&'static str, &'static str)>>,
    registers: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Scripted {
    async fn new(headers: &'static str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let socket = Arc::new(socket);
        let address = socket.local_addr().expect("its address");
        let answer = Arc::new(Mutex::new(("200 OK", headers)));
        let registers = Arc::new(Mutex::new(Vec::new()));
        let (serving, script, log) = (socket.clone(), answer.clone(), registers.clone());
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, client)) = serving.recv_from(&mut buffer).await {
                // What is no REGISTER is the answer to a call, which nobody here waits for.
                let Ok(request) = Request::parse(Bytes::copy_from_slice(&buffer[..length])) else {
                    continue;
                };
                let (line, headers) = *script.lock().expect("a lock");
                let mut response = format!("SIP/2.0 {line}\r\n");
                for name in ["Via", "From", "To", "Call-ID", "CSeq", "Contact"] {
                    for value in request.headers(name) {
                        response.push_str(&format!("{name}: {value}\r\n"));
                    }
                }
                let seconds = request.header("Expires").unwrap_or_default();
                response.push_str(&format!("Expires: {seconds}\r\n"));
                response.push_str(headers);
                response.push_str("Content-Length: 0\r\n\r\n");
                log.lock().expect("a lock").push(request);
                let _ = serving.send_to(response.as_bytes(), client).await;
            }
        });
        Self {
            socket,
            address,
            answer,
            registers,
            task,
        }
    }

    /// What the next answers are.
    fn says(&self, line: &'static str, headers: &'static str) {
        *self.answer.lock().expect("a lock") = (line, headers);
    }

    fn last(&self) -> Request {
        let registers = self.registers.lock().expect("a lock");
        registers.last().expect("a REGISTER").clone()
    }

    /// Calls a number at the address that is bound.
    async fn calls(&self, number: &str) {
        let user = match number {
            "" => String::new(),
            number => format!("{number}@"),
        };
        let contact = self
            .last()
            .header("Contact")
            .expect("a Contact")
            .into_owned();
        let bound = contact.trim_start_matches("<sip:");
        let bound = bound.rsplit('@').next().unwrap_or(bound);
        let host = bound.split([';', '>']).next().expect("a host");
        let invite = format!(
            "INVITE sip:{user}{host} SIP/2.0\r\nVia: SIP/2.0/UDP {0};branch=z9hG4bK{number}\r\nMax-Forwards: 70\r\n\
             From: <sip:caller@{0}>;tag=1\r\nTo: <sip:{user}example.com>\r\nCall-ID: c{number}\r\nCSeq: 1 INVITE\r\n\
             Contact: <sip:caller@{0}>\r\nContent-Length: 0\r\n\r\n",
            self.address
        );
        let to: SocketAddr = host.parse().expect("an address");
        self.socket
            .send_to(invite.as_bytes(), to)
            .await
            .expect("sent");
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Trunk {
    agent: Agent,
    handle: RegistrationHandle,
    events: Events,
    messages: Messages,
}

impl Trunk {
    async fn new(account: RegistrationBuilder) -> Self {
        let agent = Agent::builder().system_transports().build().await;
        let agent = agent.expect("an agent");
        let (events, messages) = (agent.events(), agent.messages());
        let account = account.build().expect("a good configuration");
        let handle = agent.add(account).await.expect("a registration");
        Self {
            agent,
            handle,
            events,
            messages,
        }
    }

    async fn outcome(&mut self) -> Arc<Event> {
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                if !matches!(*event, Event::Scheduled { .. } | Event::Warning(_)) {
                    return event;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("nothing was told")
    }

    async fn refreshed(&mut self) -> WayOut {
        self.handle.refresh().await.expect("it is there");
        assert_matches!(&*self.outcome().await, Event::Refreshed(_));
        self.way().await
    }

    async fn way(&self) -> WayOut {
        let ways = self.handle.ways_out().await;
        let [way] = &ways[..] else {
            panic!("{ways:?}");
        };
        way.clone()
    }

    /// Whose the next call is.
    async fn called(&mut self, number: &str) -> Option<RegistrationId> {
        let message = timeout(PATIENCE, self.messages.next()).await;
        let message = message.expect("in time").expect("a message");
        let request = message.request().expect("a request");
        let uri = request.uri();
        let user = uri.split_once('@').map_or("sip:", |(user, _)| user);
        assert_eq!(user, format!("sip:{number}"), "{uri}");
        message.registration.map(|found| found.registration)
    }
}

fn account(server: &Scripted) -> RegistrationBuilder {
    Registration::builder(format!("sip:{}", server.address), "sip:pbx@example.com")
        .max_random_initial_delay(Duration::ZERO)
}

fn texts(values: &[Box<str>]) -> Vec<&str> {
    values.iter().map(|value| &**value).collect()
}

#[tokio::test]
async fn routes_and_identities_are_those_of_the_last_grant() {
    let server = Scripted::new(
        "Service-Route: <sip:orig@edge.example.com;lr>,\r\n <sip:home.example.com;lr;x=\"a,b\">\r\n\
         P-Associated-URI: \"Alice, \\\"at\\\" work\" <sip:alice@example.com>, <tel:+15551234>\r\n\
         P-Associated-URI: Alice <sip:+15551234@example.com;user=phone>\r\n",
    )
    .await;
    let mut trunk = Trunk::new(account(&server).contact_user("pbx")).await;
    assert_matches!(&*trunk.outcome().await, Event::Registered(granted)
        if granted.service_route.len() == 2 && granted.associated_uris.len() == 3);
    let way = trunk.way().await;
    assert_eq!(
        texts(&way.route),
        [
            "<sip:orig@edge.example.com;lr>",
            "<sip:home.example.com;lr;x=\"a,b\">"
        ]
    );
    assert_eq!(
        texts(&way.associated_uris),
        [
            "\"Alice, \\\"at\\\" work\" <sip:alice@example.com>",
            "<tel:+15551234>",
            "Alice <sip:+15551234@example.com;user=phone>"
        ]
    );

    // Another one is in its place at once.
    server.says(
        "200 OK",
        "Service-Route: <sip:other.example.com;lr>\r\nP-Associated-URI: <tel:+15559999>\r\n",
    );
    let way = trunk.refreshed().await;
    assert_eq!(texts(&way.route), ["<sip:other.example.com;lr>"]);
    assert_eq!(texts(&way.associated_uris), ["<tel:+15559999>"]);

    // A refresh that fails says nothing of routes.
    server.says(
        "500 Server Internal Error",
        "Service-Route: <sip:evil.example.com;lr>\r\n",
    );
    trunk.handle.refresh().await.expect("it is there");
    assert_matches!(&*trunk.outcome().await, Event::Rejected { .. });
    assert_eq!(
        texts(&trunk.way().await.route),
        ["<sip:other.example.com;lr>"]
    );

    // None said is none.
    server.says("200 OK", "");
    let way = trunk.refreshed().await;
    assert!(
        way.route.is_empty() && way.associated_uris.is_empty(),
        "{way:?}"
    );
    trunk.agent.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn what_is_no_route_is_told_and_not_used() {
    let server = Scripted::new(
        "Service-Route: sip:bare.example.com;lr\r\n\
         Service-Route: \"a, <b>\" <sip:named.example.com;lr>;x=1,, <tel:+15551234>, <sip:open.example.com;lr\r\n\
         Service-Route: <sips:safe.example.com;lr> trash, <sip:h.example.com;lr?Evil=1>, <>, nonsense\r\n\
         Service-Route: <sip:cr.example.com;lr>\rEvil: 1\r\nService-Route:\r\n\
         P-Associated-URI: \"A, <b>\" <sip:a@example.com>, tel:+1555, \"B\rEvil: 1\" <sip:b@example.com>\r\n",
    )
    .await;
    let mut trunk = Trunk::new(account(&server).contact_user("pbx")).await;
    assert_matches!(&*trunk.outcome().await, Event::Registered(granted)
        if granted.service_route.iter().any(|value| value == "nonsense"));
    let way = trunk.way().await;
    let routes = texts(&way.route);
    assert_eq!(
        routes,
        [
            "<sip:bare.example.com;lr>",
            "\"a, <b>\" <sip:named.example.com;lr>;x=1",
        ]
    );
    let identities = texts(&way.associated_uris);
    assert_eq!(
        identities,
        [
            "\"A, <b>\" <sip:a@example.com>",
            "tel:+1555",
            "\"B Evil: 1\" <sip:b@example.com>"
        ]
    );

    let many = format!(
        "Service-Route: {}<sip:z;lr>\r\n",
        "<sip:a;lr>, <sip:b;lr>, ".repeat(50)
    );
    server.says("200 OK", many.leak());
    let way = trunk.refreshed().await;
    assert_eq!(way.route.len(), 101);
    trunk.agent.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn all_numbers_are_a_trunks_while_gin_is_on_and_its_own_user_when_it_is_off() {
    let server = Scripted::new("").await;
    let mut trunk = Trunk::new(account(&server).gin(true)).await;
    assert_matches!(&*trunk.outcome().await, Event::Registered(granted) if granted.confirmed);
    let register = server.last();
    let contact = register.header("Contact").expect("a Contact").into_owned();
    assert!(
        contact.ends_with(";bnc>") && !contact.contains('@'),
        "{contact}"
    );
    assert_eq!(register.option_tags("Require"), ["gin"]);
    assert_eq!(register.option_tags("Proxy-Require"), ["gin"]);
    // `bnc` is for the registrar; the number goes before the host (RFC 6140 §5.2).
    let way = trunk.way().await;
    let bare = contact.trim_matches(['<', '>']).replace(";bnc", "");
    assert_eq!(*way.contact, *bare);
    for number in ["+15550101", "+15550199", "reception", ""] {
        server.calls(number).await;
        assert_eq!(
            trunk.called(number).await,
            Some(trunk.handle.id()),
            "{number}"
        );
    }

    // Off: another Contact, which the old one makes room for.
    let plain = account(&server).contact_user("pbx");
    let plain = plain.build().expect("a good configuration");
    let change = trunk.handle.reconfigure(plain).await;
    assert_eq!(change, Ok(Change::Replaces));
    assert_matches!(&*trunk.outcome().await, Event::Unregistered(_));
    assert_matches!(&*trunk.outcome().await, Event::Registered(_));
    let register = server.last();
    assert!(register.option_tags("Require").is_empty());
    let contact = register.header("Contact").expect("a Contact").into_owned();
    assert!(
        contact.starts_with("<sip:pbx@") && !contact.contains("bnc"),
        "{contact}"
    );
    for (number, whose) in [("+15550101", None), ("pbx", Some(trunk.handle.id()))] {
        server.calls(number).await;
        assert_eq!(trunk.called(number).await, whose, "{number}");
    }
    trunk.agent.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_registrar_without_gin_is_told_of() {
    let server = Scripted::new("").await;
    server.says("420 Bad Extension", "Unsupported: gin\r\n");
    let mut trunk = Trunk::new(account(&server).gin(true)).await;
    assert_matches!(
        &*trunk.outcome().await,
        Event::GaveUp { failure: Failure::Rejected { code: 420, .. }, exchange: Some(exchange), .. }
            if *exchange.extensions == ["gin"]
    );
    trunk.agent.shutdown(PATIENCE).await;
}
