//! Calls that a host without a SIP stack places on the flow of its registration, and that the other side ends
//!
//! The host takes everything from its [`WayOut`]; whom it calls is SIPp, which sends BYE to the Contact it was given.

use super::softphone::{Folder, Way, scenario};
use super::{PATIENCE, registered};
use crate::lab::Lab;
use crate::ports::free_port;
use bytes::Bytes;
use sip_registration::{
    Agent, Credentials, InboundMessage, InstanceId, Messages, Protocol, Registrar, Registration,
    RegistrationBuilder, RegistrationHandle, Removal, Request, Response, TlsConfig, TlsTransport,
    TransportConfig, WayOut, WsConfig, WsTransport,
};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Two accounts of one agent, perhaps with one flow, place a call each; each BYE is told to be of the one that called.
pub(super) async fn are_ended_by_the_other_side(way: Way) {
    let (lab, folder) = (Lab::registrar(&[]), Folder::new(&way.user("placed")));
    let mut host = Host::new(way).await;
    let mut handles = Vec::new();
    for (user, gruu) in [("placed", true), ("placed-beside", false)] {
        let user = way.user(user);
        let mut account = way.account(&user).line(true);
        if way.edge {
            // As an outbound flow, by whose token a BYE finds us with a GRUU or without.
            let device = InstanceId::saved_in(folder.0.join(&user)).expect("a file");
            account = account.instance(device).outbound(true).gruu(gruu);
        }
        handles.push(host.add(account).await);
    }
    for handle in [&handles[1], &handles[0], &handles[1]] {
        let callee = Callee::new(lab, &way.user("called")).await;
        let [out] = &handle.ways_out().await[..] else {
            panic!("not one way");
        };
        assert_eq!(out.contact.ends_with(";ob"), way.edge, "{out:?}");
        let call = host.calls(out, &callee.uri()).await;
        callee.hangs_up(&call).await;
        let bye = host.hears("BYE").await;
        let request = bye.request().expect("a request");
        assert_eq!(request.call_id().as_deref(), Some(&*call));
        assert_eq!(bye.flow, Some(out.flow), "{bye:?}");
        let whose = bye.registration.as_ref().map(|found| found.registration);
        assert_eq!(whose, Some(handle.id()), "{bye:?}");
        callee.ends_well().await;
    }
    host.ends(handles).await;
}

/// The flow that a call was placed on ends with another network, and there is another flow before the call is over.
pub(super) async fn outlive_their_flow(way: Way, with_gruu: bool) {
    let user = way.user(if with_gruu {
        "outlives-gruu"
    } else {
        "outlives"
    });
    let mut host = Host::new(way).await;
    let mut account = way.account(&user).line(true);
    if with_gruu {
        let device = InstanceId::from_random([9; 16]);
        account = account.instance(device).outbound(way.edge).gruu(true);
    }
    let handle = host.add(account).await;
    let lab = Lab::registrar(&[]);
    let callee = Callee::new(lab, &format!("called-{user}")).await;
    let ways = handle.ways_out().await;
    assert_eq!(ways[0].public_gruu.is_some(), with_gruu, "{ways:?}");
    let call = host.calls(&ways[0], &callee.uri()).await;
    host.agent.network_changed().await;
    let again = timeout(PATIENCE, async {
        loop {
            match &handle.ways_out().await[..] {
                [way] if way.flow != ways[0].flow => break way.flow,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let again = again.await.expect("another flow");
    callee.hangs_up(&call).await;
    if with_gruu {
        // The registrar knows where the GRUU leads to by now (RFC 5627 §5.1).
        let bye = host.hears("BYE").await;
        assert_eq!(bye.flow, Some(again), "{bye:?}");
        let whose = bye.registration.as_ref().map(|found| found.registration);
        assert_eq!(whose, Some(handle.id()));
        callee.ends_well().await;
    } else {
        // It led to a connection, which is no more; Kamailio has 500 for that.
        let said = callee.fails().await;
        let refused = ["4", "5"].map(|class| format!("received 'SIP/2.0 {class}"));
        assert!(refused.iter().any(|text| said.contains(text)), "{said}");
        assert!(host.quiet().await, "a BYE came after all");
    }
    host.ends(vec![handle]).await;
}

impl Way {
    fn account(self, user: &str) -> RegistrationBuilder {
        let (port, transport) = (self.port(), self.transport);
        let hop = format!("sip:127.0.0.1:{port};transport={transport}");
        let server = if self.edge {
            "sip:registrar.test"
        } else {
            &hop
        };
        let account = Registration::builder(server, format!("sip:{user}@registrar.test"))
            .contact_user(user)
            .endpoint("phone")
            .outbound_auth(Credentials::password(user, "secret"))
            .max_random_initial_delay(Duration::ZERO);
        if self.edge {
            account.outbound_proxy(format!("{hop};lr"))
        } else {
            account
        }
    }
}

/// An agent that trusts the lab, and the little of a SIP stack that a call takes
struct Host {
    agent: Agent,
    messages: Messages,
}

impl Host {
    async fn new(way: Way) -> Self {
        let lab = if way.edge {
            Lab::edge()
        } else {
            Lab::registrar(&[])
        };
        let roots = TlsConfig::new().with_roots_pem(&lab.pem("ca.pem"));
        let roots = roots.expect("good roots");
        let builder = Agent::builder();
        let config =
            |protocol| TransportConfig::new(way.transport, protocol).expect("a good configuration");
        let builder = match way.transport {
            "tls" => {
                let tls = TlsTransport::new(config(Protocol::Tls), roots);
                builder.transport("tls", tls.expect("a transport"))
            }
            "ws" | "wss" => {
                let protocol = if way.transport == "ws" {
                    Protocol::Ws
                } else {
                    Protocol::Wss
                };
                let ws = WsConfig::new().with_tls(roots);
                builder.transport("ws", WsTransport::new(config(protocol), ws))
            }
            _ => builder.system_transports(),
        };
        let agent = builder.build().await.expect("an agent");
        let messages = agent.messages();
        Self { agent, messages }
    }

    async fn add(&self, account: RegistrationBuilder) -> RegistrationHandle {
        registered(&self.agent, account).await
    }

    /// Places a call, which is answered, and acknowledges the answer; its Call-ID.
    async fn calls(&mut self, way: &WayOut, uri: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let flow = self.agent.flow(way.flow).await.expect("it is up");
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let call = format!("{}x{count}@host", std::process::id());
        let write = |method: &str, target: &str, to: &str, route: &[String]| {
            let (info, mut routes) = (flow.info(), String::new());
            for value in route {
                routes.push_str(&format!("Route: {value}\r\n"));
            }
            let (protocol, sent_by) = (info.protocol(), info.sent_by());
            Bytes::from(format!(
                "{method} {target} SIP/2.0\r\nVia: SIP/2.0/{protocol} {sent_by};rport;branch=z9hG4bK{method}{count}\r\n\
                 {routes}Max-Forwards: 70\r\nFrom: <sip:host@registrar.test>;tag={count}\r\nTo: {to}\r\nCall-ID: {call}\r\n\
                 CSeq: 1 {method}\r\nContact: <{}>\r\nContent-Length: 0\r\n\r\n",
                way.contact
            ))
        };
        let route: Vec<_> = way.route.iter().map(ToString::to_string).collect();
        let invite = write("INVITE", uri, &format!("<{uri}>"), &route);
        flow.send(invite).expect("sent");
        let answer = loop {
            let message = self.next().await;
            let answer = Response::parse(message.message).expect("an answer");
            if answer.code() >= 200 {
                break answer;
            }
        };
        assert_eq!(answer.code(), 200, "{}", answer.status_line());
        // RFC 3261 §12.1.2: the route set is Record-Route from the end, the target is the Contact.
        let mut route: Vec<_> = answer.values("Record-Route").map(String::from).collect();
        route.reverse();
        let contact = answer.header("Contact").expect("a Contact");
        let to = answer.header("To").expect("a To");
        let target = contact.trim_matches(['<', '>']);
        flow.send(write("ACK", target, &to, &route)).expect("sent");
        call
    }

    async fn next(&mut self) -> InboundMessage {
        let message = timeout(PATIENCE, self.messages.next()).await;
        message.expect("in time").expect("a message")
    }

    /// The next request, which is this one and is answered; not a late copy of an answer.
    async fn hears(&mut self, method: &str) -> InboundMessage {
        loop {
            let message = self.next().await;
            let Ok(request) = message.request() else {
                continue;
            };
            assert_eq!(request.method(), method, "{message:?}");
            let response = message.response(200).expect("a response");
            let answered = self.agent.answer(&message, response.build());
            answered.expect("sent");
            return message;
        }
    }

    /// Whether no request has arrived that nobody looked at.
    async fn quiet(&mut self) -> bool {
        let is_request = |message: &InboundMessage| Request::parse(message.message.clone()).is_ok();
        while let Ok(Some(message)) =
            timeout(Duration::from_millis(200), self.messages.next()).await
        {
            if is_request(&message) {
                return false;
            }
        }
        true
    }

    async fn ends(self, handles: Vec<RegistrationHandle>) {
        for handle in handles {
            assert_eq!(handle.unregister(PATIENCE).await, Removal::Removed);
        }
        self.agent.shutdown(PATIENCE).await;
    }
}

/// SIPp, bound at the registrar, which takes one call and ends it when it is told to
struct Callee {
    user: String,
    address: SocketAddr,
    child: Child,
    _folder: Folder,
}

impl Callee {
    async fn new(lab: &Lab, user: &str) -> Self {
        let (port, folder) = (free_port(), Folder::new(user));
        let child = Command::new("sipp")
            .arg("-sf")
            .arg(scenario("call_hung_up"))
            .args(["-m", "1", "-nostdin", "-i", "127.0.0.1"])
            .args(["-p", &port.to_string()])
            .args(["-timeout", "18s", "-timeout_error", "-max_socket", "16"])
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("sipp runs (package sip-tester)");
        let uri = format!("sip:called@127.0.0.1:{port}");
        lab.rpc(&["ul.rm", "location", user]).await;
        lab.add_foreign(user, &uri).await;
        Self {
            user: user.into(),
            address: ([127, 0, 0, 1], port).into(),
            child,
            _folder: folder,
        }
    }

    fn uri(&self) -> String {
        format!("sip:{}@registrar.test", self.user)
    }

    /// The cue for its BYE. It is sent in the dialog, as SIPp reads nothing else, but comes from nobody.
    async fn hangs_up(&self, call: &str) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let cue = format!(
            "INFO sip:called@{} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bKcue\r\n\
             From: <sip:cue@registrar.test>;tag=cue\r\nTo: <{}>\r\nCall-ID: {call}\r\nCSeq: 2 INFO\r\n\
             Content-Length: 0\r\n\r\n",
            self.address,
            self.uri()
        );
        // By a shorter way than the ACK before it.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let sent = socket.send_to(cue.as_bytes(), self.address).await;
        sent.expect("sent");
    }

    async fn ends_well(self) {
        let (done, said) = self.ended().await;
        assert!(done, "{said}");
    }

    /// What it complains of.
    async fn fails(self) -> String {
        let (done, said) = self.ended().await;
        assert!(!done, "{said}");
        said
    }

    async fn ended(self) -> (bool, String) {
        let output = timeout(PATIENCE, self.child.wait_with_output()).await;
        let output = output.expect("sipp ends").expect("sipp ran");
        let [said, shown] =
            [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text));
        (output.status.success(), format!("{said}{shown}"))
    }
}
