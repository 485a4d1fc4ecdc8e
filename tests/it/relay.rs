//! What stands between a client and its server and does them harm: a TCP relay that cuts connections

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A relay between TCP clients and one server; it stops when it is dropped
pub(crate) struct TcpRelay {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    cuts: watch::Sender<()>,
    to_clients: broadcast::Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

impl TcpRelay {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (cuts, cut) = watch::channel(());
        let (to_clients, said) = broadcast::channel(16);
        let counter = Arc::clone(&connections);
        let sender = to_clients.clone();
        drop(said);
        let task = tokio::spawn(async move {
            let mut relayed = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                relayed.spawn(relay(client, server, cut.clone(), sender.subscribe()));
            }
        });
        Self {
            address,
            connections,
            cuts,
            to_clients,
            task,
        }
    }

    /// How many connections clients have made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Resets every connection towards its client (RST).
    pub(crate) fn reset(&self) {
        self.cuts.send_replace(());
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
    mut cut: watch::Receiver<()>,
    mut said: broadcast::Receiver<Vec<u8>>,
) {
    cut.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            _ = cut.changed() => {
                let socket = socket2::SockRef::from(&client);
                socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
                return;
            }
            Ok(message) = said.recv() => {
                if client.write_all(&message).await.is_err() {
                    return;
                }
            }
            Ok(length) = client.read(&mut up) => {
                if length == 0 || server.write_all(&up[..length]).await.is_err() {
                    return;
                }
            }
            Ok(length) = server.read(&mut down) => {
                if length == 0 || client.write_all(&down[..length]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}
