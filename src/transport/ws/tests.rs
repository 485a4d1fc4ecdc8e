//! Against servers that this test is itself: good ones, and such as break every rule.

use super::*;
use crate::traits::Arrival;
use crate::transport::testing::{config, sink, within};
use crate::transport::tls::tests::{BOTH, Ca, server};
use crate::{MAX_BODY, MAX_HEAD, TlsConfig, TlsError, WsError};
use assert_matches::assert_matches;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use std::future::Future;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

const MIB: usize = 1 << 20;

const OK: &[u8] = b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A transport that was started, and the server it is to meet
struct Meeting {
    transport: WsTransport,
    listener: TcpListener,
    arrivals: mpsc::Receiver<Arrival>,
}

type Opened = Result<Arc<dyn Flow>, FlowError>;
type Server = WebSocketStream<TcpStream>;

/// The answer of a server that speaks SIP.
fn sip(_: &Request, mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "sip".parse().unwrap());
    answer
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    answer: impl FnOnce(&Request, Response) -> Response + Unpin,
) -> WebSocketStream<S> {
    #[expect(
        clippy::result_large_err,
        reason = "tungstenite's, and there is no error here"
    )]
    let answer = |request: &Request, response| Ok(answer(request, response));
    accept_hdr_async(stream, answer).await.unwrap()
}

impl Meeting {
    async fn new() -> Self {
        Self::with(config(Protocol::Ws, "127.0.0.1:0"), WsConfig::new()).await
    }

    async fn with(config: TransportConfig, ws: WsConfig) -> Self {
        let transport = WsTransport::new(config, ws);
        let (inbound, arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            transport,
            listener,
            arrivals,
        }
    }

    async fn open(&self, host: &str) -> Opened {
        let protocol = self.transport.protocols()[0];
        let target = Target::new(protocol, self.listener.local_addr().unwrap());
        let target = target.with_host(host);
        self.transport.open(FlowId::new(7), &target).await
    }

    /// Opens a flow to a server that does as `server` says with its connection.
    async fn at<T, F: Future<Output = T>>(
        &self,
        server: impl FnOnce(TcpStream) -> F,
    ) -> (Opened, T) {
        let server = async { server(self.listener.accept().await.unwrap().0).await };
        within(async { tokio::join!(self.open("sip.example"), server) }).await
    }

    async fn met(&self) -> (Arc<dyn Flow>, Server) {
        let (flow, server) = self.at(|stream| accept(stream, sip)).await;
        (flow.unwrap(), server)
    }

    /// Why no flow can be made to a server that answers the handshake with these bytes.
    async fn answered(&self, answer: &str) -> FlowError {
        let opened = self.at(|mut stream| async move {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        opened.await.0.unwrap_err()
    }

    async fn received(&mut self, count: usize) -> Vec<Bytes> {
        let mut messages = Vec::new();
        while messages.len() < count {
            match within(self.arrivals.recv()).await {
                Some(Arrival::Received(batch)) => {
                    assert!(batch.iter().all(|one| one.flow == Some(FlowId::new(7))));
                    messages.extend(batch.into_iter().map(|one| one.message));
                }
                other => panic!("not received: {other:?}"),
            }
        }
        messages
    }

    async fn ended(&mut self) -> FlowError {
        match within(self.arrivals.recv()).await {
            Some(Arrival::Failed(_, error)) => error,
            other => panic!("not ended: {other:?}"),
        }
    }
}

async fn next<S: AsyncRead + AsyncWrite + Unpin>(server: &mut WebSocketStream<S>) -> Message {
    within(server.next()).await.unwrap().unwrap()
}

/// A frame, whole or a part of a message
fn part(opcode: Data, last: bool, payload: &[u8]) -> Message {
    let header = FrameHeader {
        is_final: last,
        opcode: OpCode::Data(opcode),
        ..FrameHeader::default()
    };
    Message::Frame(Frame::from_payload(header, Bytes::copy_from_slice(payload)))
}

#[tokio::test]
async fn each_message_is_one_of_websocket_as_text_or_binary_whole_or_in_parts() {
    let mut meeting = Meeting::new().await;
    let (flow, mut server) = meeting.met().await;
    flow.send(Bytes::from_static(b"REGISTER \xc3\xa4")).unwrap();
    assert_eq!(next(&mut server).await, Message::text("REGISTER ä"));
    // A single byte that is no UTF-8 makes all of it binary (RFC 7118 §4.2).
    let binary = Bytes::from_static(b"MESSAGE \xff");
    flow.send(binary.clone()).unwrap();
    assert_eq!(next(&mut server).await, Message::Binary(binary));

    let text = std::str::from_utf8(OK).unwrap();
    for message in [
        Message::text(text),
        Message::binary(OK),
        part(Data::Text, false, &OK[..9]),
        part(Data::Continue, false, &OK[9..20]),
        part(Data::Continue, true, &OK[20..]),
    ] {
        // All in one segment, as far as the system has it so.
        server.feed(message).await.unwrap();
    }
    server.flush().await.unwrap();
    assert_eq!(meeting.received(3).await, [OK, OK, OK]);
}

#[tokio::test]
async fn long_messages_go_through_and_too_long_ones_end_the_connection() {
    let mut meeting = Meeting::new().await;
    let (flow, mut server) = meeting.met().await;
    let long = Bytes::from(vec![b'x'; MAX_HEAD + MAX_BODY]);
    flow.send(long.clone()).unwrap();
    assert_eq!(next(&mut server).await.into_data(), long);
    server.send(Message::Binary(long.clone())).await.unwrap();
    assert_eq!(meeting.received(1).await, std::slice::from_ref(&long));

    // Whole, or in parts of which none is.
    for parts in [1, 3] {
        let (_flow, mut server) = meeting.met().await;
        let piece = vec![b'x'; MIB / parts + 1];
        for at in 0..parts {
            let opcode = if at == 0 { Data::Text } else { Data::Continue };
            // The last may find nobody who listens.
            let _ = server.send(part(opcode, at + 1 == parts, &piece)).await;
        }
        assert_matches!(
            meeting.ended().await,
            FlowError::WebSocket(WsError::TooLong { length }) if length > MIB
        );
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_passed_over() {
    let mut meeting = Meeting::new().await;
    let (_flow, mut server) = meeting.met().await;
    let head = "MESSAGE sip:a@b SIP/2.0\r\nContent-Length: 200000\r\n\r\n";
    let without = "MESSAGE sip:a@b SIP/2.0\r\nSubject: no length\r\n\r\n";
    for head in [head, without] {
        let message = [head.as_bytes(), &[b'x'; 200_000]].concat();
        server.send(Message::binary(message)).await.unwrap();
    }
    server.send(Message::binary(OK)).await.unwrap();
    assert_eq!(meeting.received(2).await, [head.as_bytes(), OK]);
}

#[tokio::test]
async fn our_ping_is_one_and_its_answer_is_handed_over() {
    let mut meeting = Meeting::new().await;
    let (flow, mut server) = meeting.met().await;
    flow.send(Bytes::from_static(b"\r\n\r\n")).unwrap();
    assert_eq!(next(&mut server).await, Message::Ping(Bytes::new()));
    // The answer goes out with the next step of the server.
    server.flush().await.unwrap();
    assert_eq!(meeting.received(1).await, [&b"\r\n"[..]]);
}

#[tokio::test]
async fn the_pings_of_a_server_are_answered_in_both_forms() {
    let mut meeting = Meeting::new().await;
    let (_flow, mut server) = meeting.met().await;
    let asked = Bytes::from_static(b"are you there");
    server.send(Message::Ping(asked.clone())).await.unwrap();
    assert_eq!(next(&mut server).await, Message::Pong(asked));
    server.send(Message::text("\r\n\r\n")).await.unwrap();
    assert_eq!(next(&mut server).await, Message::text("\r\n"));
    // And what answers in that form to us is handed over.
    server.send(Message::text("\r\n")).await.unwrap();
    assert_eq!(meeting.received(1).await, [&b"\r\n"[..]]);
}

#[tokio::test]
async fn a_server_that_does_not_take_our_messages_is_still_heard() {
    let mut meeting = Meeting::new().await;
    let (flow, mut server) = meeting.met().await;
    // More than the system keeps for a peer that does not read.
    let long = Bytes::from(vec![b'x'; 64 * 1024]);
    for _ in 0..200 {
        flow.send(long.clone()).unwrap();
    }
    server.send(Message::binary(OK)).await.unwrap();
    assert_eq!(meeting.received(1).await, [OK]);
    for _ in 0..200 {
        assert_eq!(next(&mut server).await.into_data().len(), long.len());
    }
}

#[tokio::test]
async fn nobody_can_reach_us_so_the_host_is_invalid_and_one_for_each_server() {
    let meeting = Meeting::new().await;
    let (flow, _server) = meeting.met().await;
    let host = flow.info().contact().into_owned();
    let (drawn, rest) = host.split_once('.').unwrap();
    assert!(rest == "invalid" && drawn.len() == 16, "{host}");
    assert!(drawn.bytes().all(|byte| byte.is_ascii_hexdigit()), "{host}");
    assert_eq!(flow.info().sent_by(), host);
    // Again there, it is the same binding.
    let (again, _server) = meeting.met().await;
    assert_eq!(again.info().contact(), host);
    let other = async { accept(meeting.listener.accept().await.unwrap().0, sip).await };
    let (other, _server) = tokio::join!(meeting.open("other.example"), other);
    assert_ne!(other.unwrap().info().contact(), host);
    // Another program has another one there.
    let elsewhere = Meeting::new().await;
    let target = Target::new(Protocol::Ws, meeting.listener.local_addr().unwrap());
    let target = target.with_host("sip.example");
    let (flow, _server) = tokio::join!(elsewhere.transport.open(FlowId::new(8), &target), async {
        accept(meeting.listener.accept().await.unwrap().0, sip).await
    });
    assert_ne!(flow.unwrap().info().contact(), host);

    let external = config(Protocol::Ws, "127.0.0.1:0")
        .with_external_signaling_address("phone.example")
        .unwrap();
    let meeting = Meeting::with(external, WsConfig::new()).await;
    let (flow, _server) = meeting.met().await;
    assert!(flow.info().contact().starts_with("phone.example:"));
}

#[tokio::test]
async fn the_handshake_says_what_the_configuration_has() {
    let ws = |token: &str| {
        let ws = WsConfig::new().with_path(&format!("/sip?token={token}"));
        ws.and_then(|ws| ws.with_header("Cookie", token)).unwrap()
    };
    let meeting = Meeting::with(config(Protocol::Ws, "127.0.0.1:0"), ws("one")).await;
    let port = meeting.listener.local_addr().unwrap().port();
    for token in ["one", "two"] {
        let look = |request: &Request, answer| {
            assert_eq!(*request.uri(), *format!("/sip?token={token}"));
            assert_eq!(request.headers()["cookie"], token);
            assert_eq!(request.headers()["host"], format!("sip.example:{port}"));
            assert_eq!(request.headers()["sec-websocket-protocol"], "sip");
            sip(request, answer)
        };
        let (flow, _server) = meeting.at(|stream| accept(stream, look)).await;
        flow.unwrap();
        meeting.transport.renew(ws("two"));
    }
}

#[tokio::test]
async fn a_server_that_refuses_is_told_with_its_status() {
    let meeting = Meeting::new().await;
    for (status, reason) in [
        (401, "Unauthorized"),
        (404, "Not Found"),
        (503, "Service Unavailable"),
        (200, "OK"),
        (302, "Found"),
    ] {
        let answer = format!("HTTP/1.1 {status} Whatever\r\nLocation: ws://192.0.2.1/\r\n\r\n");
        let error = meeting.answered(&answer).await;
        let expected = WsError::Refused {
            status,
            reason: reason.into(),
        };
        assert_eq!(error, FlowError::WebSocket(expected));
        assert!(
            error
                .to_string()
                .ends_with(&format!("HTTP {status} {reason}"))
        );
        // Headers of ours that do not please say nothing of the server.
        assert_eq!(error.is_of_the_target(), status != 401);
    }
}

#[tokio::test]
async fn a_server_that_does_not_agree_on_sip_is_none() {
    let meeting = Meeting::new().await;
    for answer in [None, Some("xmpp")] {
        let (opened, _) = meeting
            .at(|stream| {
                accept(stream, move |_: &Request, mut response: Response| {
                    if let Some(answer) = answer {
                        let headers = response.headers_mut();
                        headers.insert("Sec-WebSocket-Protocol", answer.parse().unwrap());
                    }
                    response
                })
            })
            .await;
        assert_eq!(
            opened.err(),
            Some(FlowError::WebSocket(WsError::Subprotocol))
        );
    }
    // An extension would change what frames mean.
    let extended = |request: &Request, answer| {
        let mut answer = sip(request, answer);
        let value = "permessage-deflate".parse().unwrap();
        answer
            .headers_mut()
            .insert("Sec-WebSocket-Extensions", value);
        answer
    };
    let (opened, _) = meeting.at(|stream| accept(stream, extended)).await;
    assert_matches!(opened, Err(FlowError::WebSocket(WsError::NotWebSocket(_))));
}

#[tokio::test]
async fn what_is_no_websocket_is_told() {
    let meeting = Meeting::new().await;
    for answer in [
        "SIP/2.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        "\x15\x03\x03\0\x02\x02\x32 and more\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: sip\r\nSec-WebSocket-Accept: bm90IHRoZSBvbmU=\r\n\r\n",
    ] {
        assert_matches!(
            meeting.answered(answer).await,
            FlowError::WebSocket(WsError::NotWebSocket(_)),
            "{answer:?}"
        );
    }
    assert_eq!(meeting.answered("").await, FlowError::Closed);
    assert_eq!(meeting.answered("HTTP/1.1 10").await, FlowError::Closed);
}

#[tokio::test]
async fn the_end_of_a_connection_is_reported_with_its_reason() {
    let mut meeting = Meeting::new().await;
    let close = |code, reason: &'static str| {
        let reason = reason.into();
        Message::Close(Some(CloseFrame { code, reason }))
    };
    for (frame, expected) in [
        (Message::Close(None), FlowError::Closed),
        (close(CloseCode::Normal, ""), FlowError::Closed),
        (close(CloseCode::Away, "restart"), FlowError::Closed),
        (
            close(CloseCode::Policy, "no\r\nmore"),
            FlowError::WebSocket(WsError::Closed {
                code: 1008,
                reason: "no??more".into(),
            }),
        ),
    ] {
        let (_flow, mut server) = meeting.met().await;
        server.send(frame.clone()).await.unwrap();
        assert_eq!(meeting.ended().await, expected);
        // It was answered (RFC 6455 §5.5.1).
        assert_eq!(next(&mut server).await, frame);
    }
    let (_flow, mut server) = meeting.met().await;
    server.get_mut().shutdown().await.unwrap();
    assert_eq!(meeting.ended().await, FlowError::WebSocket(WsError::Cut));

    let (_flow, server) = meeting.met().await;
    server.get_ref().set_zero_linger().unwrap();
    drop(server);
    assert_eq!(meeting.ended().await, FlowError::Reset);
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_hears_so() {
    let mut meeting = Meeting::new().await;
    for frame in [
        // Reserved: neither data nor control.
        &b"\x83\0"[..],
        // Masked, as only a client's is.
        b"\x82\x81\0\0\0\0a",
        // Text that is none.
        b"\x81\x01\xff",
        // The rest of nothing.
        b"\x80\x01a",
        // Compressed.
        b"\xc2\x01a",
    ] {
        let (_flow, mut server) = meeting.met().await;
        server.get_mut().write_all(frame).await.unwrap();
        assert_matches!(
            meeting.ended().await,
            FlowError::WebSocket(WsError::Broken(_)),
            "{frame:?}"
        );
        let Message::Close(Some(close)) = next(&mut server).await else {
            panic!("not told")
        };
        assert_eq!(close.code, CloseCode::Protocol);
    }
}

#[tokio::test]
async fn a_closed_flow_sends_what_is_queued_says_so_and_reports_nothing() {
    let mut meeting = Meeting::new().await;
    let (flow, mut server) = meeting.met().await;
    flow.send(Bytes::from_static(b"last")).unwrap();
    flow.close();
    assert_eq!(flow.send(Bytes::new()), Err(FlowError::ClosedByUs));
    assert_eq!(next(&mut server).await, Message::text("last"));
    let Message::Close(Some(close)) = next(&mut server).await else {
        panic!("not closed")
    };
    assert_eq!(close.code, CloseCode::Normal);
    // The server answers and closes first.
    assert!(within(server.next()).await.is_none());
    drop((flow, server));
    drop(meeting.transport);
    assert!(within(meeting.arrivals.recv()).await.is_none());
}

#[tokio::test]
async fn nothing_of_it_stays_when_the_caller_has_waited_long_enough() {
    let meeting = Meeting::new().await;
    let opening = meeting.open("sip.example");
    let server = async {
        let (mut stream, _) = meeting.listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream
    };
    let mut stream = tokio::select! {
        _ = opening => panic!("nobody answered"),
        stream = server => stream,
    };
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn it_is_for_its_own_protocol_and_only_connects() {
    for wrong in [Protocol::Tcp, Protocol::Tls, Protocol::Udp] {
        let transport = WsTransport::new(config(wrong, "127.0.0.1:0"), WsConfig::new());
        let refused = transport.start(sink(1).0).await;
        assert_eq!(refused, Err(FlowError::NoTransport(wrong)));
    }
    let listening = config(Protocol::Ws, "127.0.0.1:0").with_listen(true);
    let transport = WsTransport::new(listening, WsConfig::new());
    assert_matches!(
        transport.start(sink(1).0).await,
        Err(FlowError::Setting {
            option: "listen",
            ..
        })
    );
    let meeting = Meeting::new().await;
    assert!(meeting.transport.start(sink(1).0).await.is_err());
    let secure = Target::new(Protocol::Wss, meeting.listener.local_addr().unwrap());
    let refused = meeting.transport.open(FlowId::new(1), &secure).await;
    assert_eq!(refused.err(), Some(FlowError::NoTransport(Protocol::Wss)));
}

/// What becomes of a secure connection to `host` at a server with a certificate for `names`.
async fn secure(tls: TlsConfig, ca: &Ca, names: &[&str], host: &str) -> Result<(), FlowError> {
    let ws = WsConfig::new().with_tls(tls);
    let mut meeting = Meeting::with(config(Protocol::Wss, "127.0.0.1:0"), ws).await;
    let acceptor = server(&ca.issue(names, |_| ()), None, BOTH);
    let peer = async {
        let (stream, _) = meeting.listener.accept().await.unwrap();
        match acceptor.accept(stream).await {
            Ok(stream) => Some(accept(stream, sip).await),
            Err(_) => None,
        }
    };
    let (opened, peer) = within(async { tokio::join!(meeting.open(host), peer) }).await;
    let (flow, mut peer) = (opened?, peer.unwrap());
    assert_eq!(flow.info().protocol(), Protocol::Wss);
    assert!(flow.info().contact().ends_with(".invalid"));
    assert!(flow.info().peer_certificate_until().is_some());
    flow.send(Bytes::from_static(b"REGISTER")).unwrap();
    assert_eq!(next(&mut peer).await, Message::text("REGISTER"));
    peer.send(Message::binary(OK)).await.unwrap();
    assert_eq!(meeting.received(1).await, [OK]);
    Ok(())
}

#[tokio::test]
async fn over_tls_the_server_is_verified_by_the_name_of_the_uri_and_wildcards_count() {
    let ca = Ca::new();
    for (names, host) in [
        (&["sip.example.com"][..], "sip.example.com"),
        (&["*.example.com"], "sip.example.com"),
        (&["sip:example.com"], "example.com"),
        (&["192.0.2.1"], "192.0.2.1"),
    ] {
        assert_eq!(secure(ca.believed(), &ca, names, host).await, Ok(()));
    }
    for (names, host) in [
        (&["other.example.com"][..], "sip.example.com"),
        (&["*.example.com"], "example.com"),
        (&["*.example.com"], "a.sip.example.com"),
        (&["*.com"], "example.com"),
    ] {
        assert_matches!(
            secure(ca.believed(), &ca, names, host).await,
            Err(FlowError::Tls(TlsError::WrongName { .. })),
            "{names:?} {host}"
        );
    }
    let stranger = Ca::new().believed();
    let refused = secure(stranger, &ca, &["sip.example.com"], "sip.example.com").await;
    assert_eq!(refused, Err(FlowError::Tls(TlsError::UnknownIssuer)));
}
