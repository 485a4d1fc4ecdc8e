//! The test registrar on real sockets.

use super::server::{Fault, LoggedRequest, ServerBinding, ServerReply, StunAnswer, TestServer};
use crate::Protocol;
use bytes::{Buf, Bytes, BytesMut};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// A [`TestServer`] that serves on UDP and TCP; it stops when it is dropped
#[derive(Debug)]
pub struct RunningServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<TestServer>,
    started: Instant,
    close: Notify,
}

impl TestServer {
    /// Serves on UDP and TCP, both on the same port; port 0 is one that is free.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn serve(self, address: impl ToSocketAddrs) -> Result<RunningServer> {
        let (listener, socket) = bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: Mutex::new(self),
            started: now(),
            close: Notify::new(),
        });
        let tasks = vec![
            tokio::spawn(serve_udp(socket, Arc::clone(&shared))),
            tokio::spawn(serve_tcp(listener, Arc::clone(&shared))),
        ];
        Ok(RunningServer {
            address,
            shared,
            tasks,
        })
    }
}

impl RunningServer {
    /// The address that it serves on.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The bindings of an address of record that have not expired.
    #[must_use]
    pub fn bindings(&self, aor: &str) -> Vec<ServerBinding> {
        let mut server = self.shared.server();
        server.advance_to(self.shared.elapsed());
        server.bindings(aor)
    }

    /// All requests so far, retransmissions too.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.server().requests().to_vec()
    }

    /// Puts a fault at the end of the queue.
    pub fn fault(&self, fault: Fault) {
        self.shared.server().fault(fault);
    }

    /// Sets what goes wrong with every request of a user from now on, see [`TestServer::set_user_fault`].
    pub fn set_user_fault(&self, name: &str, fault: Option<Fault>) {
        self.shared.server().set_user_fault(name, fault);
    }

    /// Sets whether nothing is answered from now on, see [`TestServer::set_silent`].
    pub fn set_silent(&self, silent: bool) {
        self.shared.server().set_silent(silent);
    }

    /// The requests since the last call, which are forgotten.
    #[must_use]
    pub fn take_requests(&self) -> Vec<LoggedRequest> {
        self.shared.server().take_requests()
    }

    /// The keep-alives that came so far, CRLF and STUN, from where.
    #[must_use]
    pub fn keep_alives(&self) -> Vec<SocketAddr> {
        let server = self.shared.server();
        server.keep_alives().iter().map(|(_, from)| *from).collect()
    }

    /// Sets whether pings are answered from now on.
    pub fn set_pongs(&self, answers: bool) {
        self.shared.server().set_pongs(answers);
    }

    /// Sets how STUN requests are answered from now on.
    pub fn set_stun(&self, answer: Option<StunAnswer>) {
        self.shared.server().set_stun(answer);
    }

    /// Forgets all bindings, as a registrar does that restarts without a database.
    pub fn forget_bindings(&self) {
        self.shared.server().forget_bindings();
    }

    /// Closes all TCP connections.
    pub fn close_connections(&self) {
        self.shared.close.notify_waiters();
    }

    /// Stops; its port is free and its connections are closed afterwards.
    pub async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn server(&self) -> MutexGuard<'_, TestServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> Duration {
        now().duration_since(self.started)
    }

    fn keep_alive(&self, source: SocketAddr, protocol: Protocol, message: &[u8]) -> Option<Bytes> {
        let now = self.elapsed();
        self.server().keep_alive(now, source, protocol, message)
    }

    fn handle(&self, source: SocketAddr, protocol: Protocol, message: &[u8]) -> Vec<ServerReply> {
        let now = self.elapsed();
        self.server().handle(now, source, protocol, message)
    }
}

/// The runtime's time, which a test may have paused.
fn now() -> Instant {
    sleep(Duration::ZERO).deadline()
}

/// Both sockets on one port. A free TCP port may be taken on UDP: then another is tried.
async fn bind(address: impl ToSocketAddrs) -> Result<(TcpListener, UdpSocket)> {
    let addresses: Vec<_> = address.to_socket_addrs()?.collect();
    let mut last = Error::from(ErrorKind::InvalidInput);
    for _ in 0..BIND_TRIES {
        let listener = TcpListener::bind(&*addresses).await?;
        match UdpSocket::bind(listener.local_addr()?).await {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 65_535];
    // Dropped with this task, and every delayed reply with it.
    let mut replies = JoinSet::new();
    loop {
        let (length, source) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP error of an earlier reply
                Err(_) => continue,
            },
            Some(_) = replies.join_next() => continue,
        };
        // CRLF or STUN: no SIP message begins so (RFC 5626 §8).
        if matches!(buffer[..length].first(), Some(b'\r' | 0 | 1)) {
            if let Some(answer) = shared.keep_alive(source, Protocol::Udp, &buffer[..length]) {
                let _ = socket.send_to(&answer, source).await;
            }
            continue;
        }
        for reply in shared.handle(source, Protocol::Udp, &buffer[..length]) {
            if reply.after.is_zero() {
                let _ = socket.send_to(&reply.message, reply.to).await;
                continue;
            }
            let socket = Arc::clone(&socket);
            replies.spawn(async move {
                sleep(reply.after).await;
                let _ = socket.send_to(&reply.message, reply.to).await;
            });
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, source)) = accepted {
                connections.spawn(serve_connection(stream, source, Arc::clone(&shared)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves until either side closes.
async fn serve_connection(mut stream: TcpStream, source: SocketAddr, shared: Arc<Shared>) {
    let mut buffer = BytesMut::new();
    let (due, mut replies) = mpsc::unbounded_channel::<ServerReply>();
    let mut delayed = JoinSet::new();
    loop {
        tokio::select! {
            read = stream.read_buf(&mut buffer) => if !matches!(read, Ok(1..)) {
                return;
            },
            Some(reply) = replies.recv() => {
                if stream.write_all(&reply.message).await.is_err() || reply.close {
                    let _ = stream.shutdown().await;
                    return;
                }
            }
            Some(_) = delayed.join_next() => {}
            () = shared.close.notified() => return,
        }
        while let Some(piece) = next_piece(&mut buffer) {
            let Piece::Message(message) = piece else {
                let pong = shared.keep_alive(source, Protocol::Tcp, b"\r\n\r\n");
                if let Some(pong) = pong
                    && stream.write_all(&pong).await.is_err()
                {
                    return;
                }
                continue;
            };
            for reply in shared.handle(source, Protocol::Tcp, &message) {
                let due = due.clone();
                if reply.after.is_zero() {
                    let _ = due.send(reply);
                    continue;
                }
                delayed.spawn(async move {
                    sleep(reply.after).await;
                    let _ = due.send(reply);
                });
            }
        }
    }
}

enum Piece {
    Ping,
    Message(Bytes),
}

/// Cuts a ping or a message off the stream (RFC 3261 §18.3, RFC 5626 §4.4.1).
fn next_piece(buffer: &mut BytesMut) -> Option<Piece> {
    if buffer.starts_with(b"\r\n\r\n") {
        buffer.advance(4);
        return Some(Piece::Ping);
    }
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(buffer.get(..head)?);
    let length = text
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| {
            let name = name.trim();
            let known =
                name.eq_ignore_ascii_case("Content-Length") || name.eq_ignore_ascii_case("l");
            known.then(|| value.trim().parse::<u16>().ok())?
        });
    let whole = head + usize::from(length.unwrap_or(0));
    if buffer.len() < whole {
        return None;
    }
    Some(Piece::Message(buffer.split_to(whole).freeze()))
}

/// How many ports are tried
const BIND_TRIES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    fn register(branch: &str, cseq: u32, host: SocketAddr, transport: &str) -> String {
        format!(
            "REGISTER sip:test SIP/2.0\r\nVia: SIP/2.0/{transport} {host};rport;branch=z9hG4bK{branch}\r\n\
             From: <sip:alice@test>;tag=1\r\nTo: <sip:alice@test>\r\nCall-ID: c\r\nCSeq: {cseq} REGISTER\r\n\
             Contact: <sip:alice@{host}>\r\nExpires: 60\r\nContent-Length: 0\r\n\r\n"
        )
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(5), future)
            .await
            .expect("nothing within 5 s")
    }

    #[tokio::test]
    async fn it_serves_udp_and_absorbs_retransmissions() {
        let server = TestServer::new()
            .require_auth(false)
            .serve("127.0.0.1:0")
            .await
            .unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let request = register("1", 1, client.local_addr().unwrap(), "UDP");
        let mut answers = Vec::new();
        for _ in 0..2 {
            client
                .send_to(request.as_bytes(), server.addr())
                .await
                .unwrap();
            let mut buffer = [0; 2048];
            let (length, _) = within(client.recv_from(&mut buffer)).await.unwrap();
            answers.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert!(
            answers[0].starts_with("SIP/2.0 200 OK\r\n"),
            "{}",
            answers[0]
        );
        assert_eq!(answers[0], answers[1]);
        assert_eq!(server.bindings("sip:alice@test").len(), 1);
        assert_eq!(
            server
                .requests()
                .iter()
                .filter(|request| request.retransmission)
                .count(),
            1
        );
        let address = server.addr();
        server.stop().await;
        UdpSocket::bind(address).await.unwrap();
    }

    #[tokio::test]
    async fn it_serves_tcp_answers_pings_and_closes_when_asked() {
        let server = TestServer::new()
            .require_auth(false)
            .serve("127.0.0.1:0")
            .await
            .unwrap();
        server.fault(Fault::Close);
        let mut client = TcpStream::connect(server.addr()).await.unwrap();
        client.write_all(b"\r\n\r\n").await.unwrap();
        let mut pong = [0; 2];
        within(client.read_exact(&mut pong)).await.unwrap();
        assert_eq!(&pong, b"\r\n");

        let request = register("1", 1, client.local_addr().unwrap(), "TCP");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("SIP/2.0 200 OK\r\n"), "{answer}");
        assert_eq!(server.bindings("sip:alice@test")[0].protocol, Protocol::Tcp);
    }

    #[tokio::test]
    async fn a_delayed_answer_comes_late_and_connections_can_be_closed() {
        let server = TestServer::new()
            .require_auth(false)
            .serve("127.0.0.1:0")
            .await
            .unwrap();
        server.fault(Fault::Delay(Duration::from_millis(20)));
        let mut client = TcpStream::connect(server.addr()).await.unwrap();
        let request = register("1", 1, client.local_addr().unwrap(), "TCP");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = [0; 2048];
        assert!(within(client.read(&mut buffer)).await.unwrap() > 12);
        server.close_connections();
        assert_eq!(within(client.read(&mut buffer)).await.unwrap(), 0);
    }
}
