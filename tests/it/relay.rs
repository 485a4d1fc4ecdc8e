//! What stands between a client and its server and does them harm: a TCP relay that cuts connections, a UDP relay that
//! rewrites addresses as a NAT does

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A relay between TCP clients and one server; it stops when it is dropped
pub(crate) struct TcpRelay {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    pongs: Arc<AtomicUsize>,
    said: Arc<AtomicUsize>,
    harm: watch::Sender<Harm>,
    to_clients: broadcast::Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

/// What happens to the connections that there are; later ones are good
#[derive(Debug, Clone, Copy)]
enum Harm {
    None,
    Reset,
    Mute,
    Orphan,
}

impl TcpRelay {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let connections = Arc::new(AtomicUsize::new(0));
        let pongs = Arc::new(AtomicUsize::new(0));
        let said = Arc::new(AtomicUsize::new(0));
        let (harm, harmed) = watch::channel(Harm::None);
        let to_clients = broadcast::channel(16).0;
        let counter = Arc::clone(&connections);
        let counters = (Arc::clone(&said), Arc::clone(&pongs));
        let sender = to_clients.clone();
        let task = tokio::spawn(async move {
            let mut relayed = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let to_client = sender.subscribe();
                relayed.spawn(relay(
                    client,
                    server,
                    harmed.clone(),
                    to_client,
                    counters.clone(),
                ));
            }
        });
        Self {
            address,
            connections,
            pongs,
            said,
            harm,
            to_clients,
            task,
        }
    }

    /// How many connections clients have made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How often clients have sent something: whatever came at once counts as one.
    pub(crate) fn said(&self) -> usize {
        self.said.load(Ordering::Relaxed)
    }

    /// How many pongs the server has sent.
    pub(crate) fn pongs(&self) -> usize {
        self.pongs.load(Ordering::Relaxed)
    }

    /// Resets every connection towards its client (RST).
    pub(crate) fn reset(&self) {
        self.harm.send_replace(Harm::Reset);
    }

    /// Nothing that the server says on these connections arrives any more, and no end of them either.
    pub(crate) fn mute(&self) {
        self.harm.send_replace(Harm::Mute);
    }

    /// Closes every connection towards the server, and leaves the client with one that leads nowhere.
    pub(crate) fn orphan(&self) {
        self.harm.send_replace(Harm::Orphan);
    }

    /// Says something to every client, as the server would.
    pub(crate) fn say(&self, message: &str) {
        let _ = self.to_clients.send(message.as_bytes().to_vec());
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    mut client: TcpStream,
    server: SocketAddr,
    mut harm: watch::Receiver<Harm>,
    mut to_client: broadcast::Receiver<Vec<u8>>,
    (said, pongs): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    harm.mark_unchanged();
    let mut muted = false;
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            Ok(()) = harm.changed() => {
                let done = *harm.borrow_and_update();
                if matches!(done, Harm::Mute) {
                    muted = true;
                    continue;
                }
                if matches!(done, Harm::Orphan) {
                    drop(server);
                    while client.read(&mut up).await.is_ok_and(|length| length > 0) {}
                    return;
                }
                let socket = socket2::SockRef::from(&client);
                socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
                return;
            }
            Ok(message) = to_client.recv() => {
                if client.write_all(&message).await.is_err() {
                    return;
                }
            }
            Ok(length) = client.read(&mut up) => {
                said.fetch_add(usize::from(length > 0), Ordering::Relaxed);
                if length == 0 || server.write_all(&up[..length]).await.is_err() {
                    return;
                }
            }
            Ok(length) = server.read(&mut down), if !muted => {
                if down[..length] == *b"\r\n" {
                    pongs.fetch_add(1, Ordering::Relaxed);
                }
                if length == 0 || client.write_all(&down[..length]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}

/// A NAT in front of one UDP client; it stops when it is dropped
///
/// The client talks to [`address`](Self::address), the server sees whatever the mapping of the moment is.
pub(crate) struct Nat {
    pub(crate) address: SocketAddr,
    outside: Arc<Mutex<Arc<UdpSocket>>>,
    remapped: watch::Sender<()>,
    stun_answers: Arc<AtomicUsize>,
    said: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Nat {
    /// In front of a server that knows STUN.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        Self::new(server, false).await
    }

    /// One that answers STUN in place of a server that does not know it.
    pub(crate) async fn with_stun(server: SocketAddr) -> Self {
        Self::new(server, true).await
    }

    async fn new(server: SocketAddr, with_stun: bool) -> Self {
        let inside = Arc::new(bound(server).await);
        let outside = Arc::new(Mutex::new(Arc::new(bound(server).await)));
        let (remapped, mut change) = watch::channel(());
        let client = Arc::new(Mutex::new(None));
        let address = inside.local_addr().expect("its address");
        let stun_answers = Arc::new(AtomicUsize::new(0));
        let said = Arc::new(AtomicUsize::new(0));

        let outwards = {
            let (inside, outside, client) = (
                Arc::clone(&inside),
                Arc::clone(&outside),
                Arc::clone(&client),
            );
            let said = Arc::clone(&said);
            async move {
                let mut buffer = vec![0; 65_536];
                while let Ok((length, source)) = inside.recv_from(&mut buffer).await {
                    said.fetch_add(1, Ordering::Relaxed);
                    *client.lock().expect("a lock") = Some(source);
                    let mapping = Arc::clone(&outside.lock().expect("a lock"));
                    let datagram = &buffer[..length];
                    if with_stun && let Some(answer) = stun_answer(datagram, &mapping) {
                        let _ = inside.send_to(&answer, source).await;
                    } else {
                        let _ = mapping.send_to(datagram, server).await;
                    }
                }
            }
        };
        let inwards = {
            let (outside, answers) = (Arc::clone(&outside), Arc::clone(&stun_answers));
            async move {
                let mut buffer = vec![0; 65_536];
                loop {
                    let mapping = Arc::clone(&outside.lock().expect("a lock"));
                    tokio::select! {
                        _ = change.changed() => {}
                        Ok((length, _)) = mapping.recv_from(&mut buffer) => {
                            if buffer[..2] == [1, 1] {
                                answers.fetch_add(1, Ordering::Relaxed);
                            }
                            let client = *client.lock().expect("a lock");
                            if let Some(client) = client {
                                let _ = inside.send_to(&buffer[..length], client).await;
                            }
                        }
                    }
                }
            }
        };
        Self {
            address,
            outside,
            remapped,
            stun_answers,
            said,
            tasks: vec![tokio::spawn(outwards), tokio::spawn(inwards)],
        }
    }

    /// How many datagrams the client has sent.
    pub(crate) fn said(&self) -> usize {
        self.said.load(Ordering::Relaxed)
    }

    /// How many STUN requests the server has answered.
    pub(crate) fn stun_answers(&self) -> usize {
        self.stun_answers.load(Ordering::Relaxed)
    }

    /// The address that the server sees.
    pub(crate) fn mapping(&self) -> SocketAddr {
        let outside = self.outside.lock().expect("a lock");
        outside.local_addr().expect("its address")
    }

    /// Forgets the mapping and makes another.
    pub(crate) async fn remap(&self) {
        let new = Arc::new(bound(self.address).await);
        *self.outside.lock().expect("a lock") = new;
        self.remapped.send_replace(());
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A port of the loopback address that reaches `server`.
async fn bound(server: SocketAddr) -> UdpSocket {
    let loopback: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
    };
    UdpSocket::bind(loopback).await.expect("a port")
}

/// The answer to a binding request: XOR-MAPPED-ADDRESS with the mapping (RFC 5389 §15.2).
fn stun_answer(request: &[u8], mapping: &UdpSocket) -> Option<Vec<u8>> {
    const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
    if request.get(..2) != Some(&[0, 1]) || request.get(4..8) != Some(&COOKIE) {
        return None;
    }
    let SocketAddr::V4(address) = mapping.local_addr().expect("its address") else {
        return None;
    };
    let mut answer = vec![1, 1, 0, 12];
    answer.extend(&request[4..20]);
    answer.extend([0, 0x20, 0, 8, 0, 1]);
    let port = address.port().to_be_bytes();
    answer.extend([port[0] ^ COOKIE[0], port[1] ^ COOKIE[1]]);
    answer.extend(
        address
            .ip()
            .octets()
            .iter()
            .zip(COOKIE)
            .map(|(byte, mask)| byte ^ mask),
    );
    Some(answer)
}
