//! What servers and those in between do to a WebSocket: each ends in an error that names it, and in a new attempt that
//! is told, or does no harm

use super::*;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A server's answer to the first attempt, in which an x at the end stands for any number of them, and what is told of it
async fn refuses(answer: &'static [u8], named: &'static str) {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let serving = async {
        let mut stream = registrar.stream().await;
        let _ = stream.read(&mut [0; 4096]).await.expect("a request");
        // What is endless ends with the connection.
        stream.write_all(answer).await.expect("sent");
        if answer.ends_with(b"x") {
            while stream.write_all(&[b'x'; 4000]).await.is_ok() {}
        }
        stream
    };
    let (told, _stream) = tokio::join!(office.told(), serving);
    assert!(told.contains(named), "{named:?} is not in {told:?}");
    office.recovers(&registrar).await;
}

impl Office {
    /// What is told of an attempt or a flow that failed, with when it is tried again.
    async fn told(&mut self) -> String {
        let event = self.outcome().await;
        let again = match &event {
            Event::Rejected { retry_in, .. } => Some(*retry_in),
            Event::FlowLost { next_in, .. } => *next_in,
            other => panic!("no failure: {other}"),
        };
        assert!(again.is_some_and(|again| again <= PATIENCE), "{event}");
        event.to_string()
    }

    /// The next connection is a good one.
    async fn recovers(mut self, registrar: &Faulty) {
        let mut socket = registrar.socket(Some("sip")).await;
        grant(&mut socket).await;
        self.granted().await;
    }
}

const ACCEPTED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";

#[tokio::test]
async fn a_handshake_that_fails_is_told_by_what_is_wrong_with_it() {
    let wrong_key = format!(
        "{ACCEPTED}Sec-WebSocket-Accept: bm90IHRoZSBvbmU=\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
    );
    let cases: [(&'static [u8], &'static str); 11] = [
        (
            b"HTTP/1.1 301 Moved Permanently\r\nLocation: wss://other.example/\r\nContent-Length: 0\r\n\r\n",
            "HTTP 301 Moved Permanently",
        ),
        (
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 2\r\n\r\nno",
            "HTTP 401 Unauthorized",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            "HTTP 403 Forbidden",
        ),
        (
            b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 99\r\n\r\n",
            "HTTP 426 Upgrade Required",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "HTTP 200 OK"),
        (
            b"HTTP/1.0 101 Switching Protocols\r\n\r\n",
            "does not speak WebSocket",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            "does not speak WebSocket",
        ),
        (wrong_key.leak().as_bytes(), "does not speak WebSocket"),
        (
            b"SIP/2.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            "does not speak WebSocket",
        ),
        // A line without an end, as long as anybody takes it.
        (
            b"HTTP/1.1 101 Switching Protocols\r\nX: x",
            "the answer is too long",
        ),
        (b"x", "does not speak WebSocket"),
    ];
    let cases: tokio::task::JoinSet<()> = cases
        .into_iter()
        .map(|(answer, named)| refuses(answer, named))
        .collect();
    cases.join_all().await;
}

#[tokio::test]
#[ignore = "takes three seconds; .ci/run runs it"]
async fn a_handshake_without_end_counts_as_connecting() {
    // Slowly: many small pieces are refused before (`a_handshake_that_fails_…`).
    let headers = b"X-More: and more of it\r\n";
    for piece in [&headers[..], &headers[..1]] {
        let registrar = Faulty::new().await;
        let mut office = Office::new(WsConfig::new()).await;
        office.add("alice", &registrar.uri(), None).await;
        let serving = async {
            let mut stream = registrar.stream().await;
            let _ = stream.read(&mut [0; 4096]).await.expect("a request");
            let mut next = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
            while stream.write_all(&next).await.is_ok() {
                next = piece.to_vec();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let (told, ()) = tokio::join!(office.told(), serving);
        assert!(told.contains("no connection within 2"), "{told}");
        office.recovers(&registrar).await;
    }
}

/// A connection whose first answer to REGISTER is what `answer` makes of the right one, frame by frame as it goes out.
async fn breaks(answer: impl Fn(&str) -> Vec<u8>, named: &str) {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    let register = request(&mut socket).await;
    let right = Reply::granted(600).to(&register);
    let right = std::str::from_utf8(&right).expect("text");
    let bytes = answer(right);
    socket.get_mut().write_all(&bytes).await.expect("sent");
    let told = office.told().await;
    assert!(told.contains(named), "{named:?} is not in {told:?}");
    // The connection is over, though the server keeps it.
    office.recovers(&registrar).await;
    drop(socket);
}

/// A frame of a server; `first` has FIN and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(length as u8),
        length => {
            frame.push(126);
            frame.extend(u16::try_from(length).expect("short").to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

#[tokio::test]
async fn a_connection_that_breaks_the_rules_is_told_by_what_is_wrong_with_it() {
    let close = |code: u16, reason: &str| {
        frame(
            CLOSE,
            &[&code.to_be_bytes()[..], reason.as_bytes()].concat(),
        )
    };
    breaks(
        |_| close(1013, "try again later"),
        "1013 \"try again later\"",
    )
    .await;
    breaks(|_| close(4403, ""), "4403").await;
    // One byte is no code, and 1005 is for nobody to send (RFC 6455 §5.5.1, §7.4.1).
    breaks(|_| frame(CLOSE, b"x"), "WebSocket failed").await;
    breaks(|_| close(1005, ""), "1002 \"Protocol violation\"").await;
    // More than anybody has room for is refused by its announcement.
    breaks(
        |_| vec![0x82, 127, 0, 0, 1, 0, 0, 0, 0, 0],
        "1099511627776 bytes is too long",
    )
    .await;
    breaks(|_| [vec![0x82, 127], vec![0xff; 8]].concat(), "is too long").await;
    // Control frames are short and whole, and a message is finished before the next (RFC 6455 §5.4, §5.5).
    breaks(|_| frame(PING, &[0; 126]), "WebSocket failed").await;
    breaks(|_| frame(PING & 0x7f, b"x"), "WebSocket failed").await;
    breaks(
        |right| {
            [
                frame(1, &right.as_bytes()[..20]),
                frame(TEXT, right.as_bytes()),
            ]
            .concat()
        },
        "WebSocket failed",
    )
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_one_message_of_websocket_is_told() {
    // Between headers, in a header, in the body: a stream's pieces, each of them in a message of its own.
    let cut = "SIP message is cut short";
    breaks(
        |right| {
            let (first, second) = right.split_at(right.len() - 2);
            [
                frame(TEXT, first.as_bytes()),
                frame(TEXT, second.as_bytes()),
            ]
            .concat()
        },
        cut,
    )
    .await;
    breaks(
        |right| {
            let (first, second) = right.split_at(right.find("\r\nContact").expect("a Contact") + 6);
            [
                frame(TEXT, first.as_bytes()),
                frame(0x82, second.as_bytes()),
            ]
            .concat()
        },
        cut,
    )
    .await;
    breaks(
        |right| {
            let longer = right.replacen("Content-Length: 0", "Content-Length: 5", 1);
            assert_ne!(longer, right);
            [frame(TEXT, longer.as_bytes()), frame(TEXT, b"12345")].concat()
        },
        cut,
    )
    .await;
    breaks(
        |right| {
            let trying = right.replacen("200 OK", "100 Trying", 1);
            frame(TEXT, [&trying, right].concat().as_bytes())
        },
        "more than one SIP message",
    )
    .await;
}

#[tokio::test]
async fn line_ends_and_pings_without_number_do_no_harm() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    let handle = office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    let register = request(&mut socket).await;
    let right = Reply::granted(600).to(&register);
    let mut bytes = Vec::new();
    for _ in 0..20_000 {
        bytes.extend(frame(PING, b"and again"));
        bytes.extend(frame(TEXT, b"\r\n"));
        bytes.extend(frame(0x80 | 0x0a, b"nobody asked"));
    }
    // Before a message line ends are passed over (RFC 3261 §7.5).
    bytes.extend(frame(0x82, &[b"\r\n\r\n", &right[..]].concat()));
    // Nobody reads our answers meanwhile.
    socket.get_mut().write_all(&bytes).await.expect("sent");
    let granted = office.granted().await;
    handle.refresh().await.expect("it is there");
    grant(&mut socket).await;
    assert_eq!(office.granted().await.flow, granted.flow);
}

#[tokio::test]
async fn pings_of_a_server_that_reads_nothing_hold_nothing_up() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut socket = registrar.socket(Some("sip")).await;
    let register = request(&mut socket).await;
    let right = Reply::granted(600).to(&register);
    // More than the system keeps of our answers.
    for _ in 0..200_000 {
        let ping = Message::Ping(bytes::Bytes::from_static(&[b'?'; 125]));
        socket.feed(ping).await.expect("taken");
    }
    socket.feed(Message::Binary(right)).await.expect("taken");
    let sent = timeout(PATIENCE, socket.flush()).await;
    sent.expect("in time").expect("sent");
    office.granted().await;
}

#[tokio::test]
async fn what_comes_with_the_handshake_is_not_lost() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut stream = registrar.stream().await;
    let mut asked = vec![0; 4096];
    let length = stream.read(&mut asked).await.expect("a request");
    let asked = String::from_utf8_lossy(&asked[..length]);
    let key = asked.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .starts_with("sec-websocket-key:")
            .then(|| line[18..].trim())
    });
    let key = tokio_tungstenite::tungstenite::handshake::derive_accept_key(
        key.expect("a key").as_bytes(),
    );
    let answer =
        format!("{ACCEPTED}Sec-WebSocket-Accept: {key}\r\nSec-WebSocket-Protocol: sip\r\n\r\n");
    let options = "OPTIONS sip:alice@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/WS 192.0.2.1;branch=z9hG4bKx\r\n\
                   Max-Forwards: 70\r\nFrom: <sip:bob@example.com>;tag=1\r\nTo: <sip:alice@registrar.test>\r\n\
                   Call-ID: x\r\nCSeq: 1 OPTIONS\r\n\r\n";
    let all = [answer.as_bytes(), &frame(TEXT, options.as_bytes())].concat();
    stream.write_all(&all).await.expect("sent");
    let (message, _) = office.called().await;
    let mut socket = Socket::from_raw_socket(stream, Role::Server, None).await;
    grant(&mut socket).await;
    assert_eq!(message.flow, Some(office.granted().await.flow));
}

#[tokio::test]
#[ignore = "takes six seconds; .ci/run runs it"]
async fn a_server_that_closes_after_each_grant_is_not_asked_without_a_pause() {
    let registrar = Faulty::new().await;
    let mut office = Office::new(WsConfig::new()).await;
    office.add("alice", &registrar.uri(), None).await;
    let mut count = 0;
    let rounds = async {
        loop {
            let mut socket = registrar.socket(Some("sip")).await;
            grant(&mut socket).await;
            office.granted().await;
            count += 1;
            let frame = Message::Close(None);
            let _ = socket.send(frame).await;
            let told = office.told().await;
            assert!(told.starts_with("connection lost: "), "{told}");
        }
    };
    let ended: Result<(), _> = timeout(Duration::from_secs(6), rounds).await;
    assert!(ended.is_err());
    assert!((2..=5).contains(&count), "{count} in six seconds");
}
