//! SIP over TCP: a connection a flow, and a listener where the configuration asks for one.

use super::local::{flow_info, reachable, started_twice};
use crate::{
    Flow, FlowError, FlowId, FlowInfo, Frame, Framer, Inbound, Protocol, Received, Target,
    Transport, TransportConfig,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, trace};

/// SIP over TCP
///
/// Each flow is a connection of its own and ends with its last [`Flow`] handle. With `listen` set, connections that
/// peers open are taken too, and Via and Contact carry the listener's port (DECISIONS D17).
#[derive(Debug)]
pub struct TcpTransport {
    config: TransportConfig,
    keep_alive: Duration,
    started: OnceLock<Started>,
}

#[derive(Debug)]
struct Started {
    inbound: Inbound,
    listener: Option<(SocketAddr, AbortHandle)>,
}

impl TcpTransport {
    /// A transport by its configuration; nothing is bound before it is started.
    #[must_use]
    pub fn new(config: TransportConfig) -> Self {
        Self {
            config,
            keep_alive: KEEP_ALIVE,
            started: OnceLock::new(),
        }
    }

    /// Sets how long a connection may be silent before CRLFCRLF goes out: 110 s unless set (RFC 5626 §4.4.1 has
    /// 95–120 s). No answer is expected.
    #[must_use]
    pub const fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// The listener's address, once started with `listen` set.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.started
            .get()?
            .listener
            .as_ref()
            .map(|(address, _)| *address)
    }
}

#[async_trait]
impl Transport for TcpTransport {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Tcp]
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        if self.started.get().is_some() {
            return Err(started_twice());
        }
        let listener = if self.config.listen() {
            let listener = TcpListener::bind(self.config.bind()).await?;
            let address = listener.local_addr()?;
            let task = accept(
                listener,
                address,
                self.config.clone(),
                self.keep_alive,
                inbound.clone(),
            );
            Some((address, tokio::spawn(task).abort_handle()))
        } else {
            None
        };
        self.started
            .set(Started { inbound, listener })
            .map_err(|mut refused| {
                refused.stop();
                started_twice()
            })
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        if to.protocol() != Protocol::Tcp {
            return Err(FlowError::NoTransport(to.protocol()));
        }
        let Some(started) = self.started.get() else {
            return Err(
                Error::new(ErrorKind::NotConnected, "the transport was not started").into(),
            );
        };
        let remote = to.address();
        reachable(self.config.bind().ip(), remote)?;
        let socket = if remote.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if !self.config.bind().ip().is_unspecified() {
            // The port stays the system's choice: the configured one is the listener's.
            socket.bind(SocketAddr::new(self.config.bind().ip(), 0))?;
        }
        let stream = socket.connect(remote).await?;
        let local = stream.local_addr()?;
        if local == remote {
            // Nobody listens on a port of the ephemeral range, and the system connected the socket to itself.
            return Err(FlowError::Refused);
        }
        // From here on nothing waits: a dropped future leaves no connection behind.
        let listener = started.listener.as_ref().map(|(address, _)| *address);
        let info = flow_info(&self.config, local, reached_at(local, listener), remote);
        let (flow, queue) = TcpFlow::new(info);
        let connection = Connection {
            id,
            flow: &flow,
            queue,
            keep_alive: self.keep_alive,
            permit: None,
        };
        connection.start(stream, started.inbound.clone());
        Ok(flow)
    }
}

impl Started {
    fn stop(&mut self) {
        if let Some((_, task)) = &self.listener {
            task.abort();
        }
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        if let Some(started) = self.started.get_mut() {
            started.stop();
        }
    }
}

/// Where a peer reaches us: the listener's port if it takes connections to this address, else the flow's own.
fn reached_at(local: SocketAddr, listener: Option<SocketAddr>) -> SocketAddr {
    let serves = |listener: SocketAddr| match listener.ip() {
        // On `::` most systems take IPv4 connections too.
        ip if ip.is_unspecified() => ip.is_ipv6() || local.is_ipv4(),
        ip => ip == local.ip(),
    };
    let port = listener
        .filter(|listener| serves(*listener))
        .map_or_else(|| local.port(), |listener| listener.port());
    SocketAddr::new(local.ip(), port)
}

/// Takes the connections that peers open, until it is aborted.
async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    config: TransportConfig,
    keep_alive: Duration,
    inbound: Inbound,
) {
    let room = Arc::new(Semaphore::new(MOST_ACCEPTED));
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer has gone already: the next one may do better.
                debug!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let info = flow_info(&config, local, reached_at(local, Some(address)), remote);
        let (flow, queue) = TcpFlow::new(info);
        let id = inbound.accepted(Arc::clone(&flow) as Arc<dyn Flow>);
        trace!(%remote, %id, "accepted");
        Connection {
            id,
            flow: &flow,
            queue,
            keep_alive,
            permit: Some(permit),
        }
        .start(stream, inbound.clone());
    }
}

/// A connection; its tasks hold no handle of it and end with it
#[derive(Debug)]
struct TcpFlow {
    info: FlowInfo,
    state: Mutex<FlowState>,
    /// Set by whoever ends the connection first, so that its end is reported once or, closed by us, not at all
    ended: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FlowState {
    queue: Option<mpsc::Sender<Bytes>>,
    reader: Option<AbortHandle>,
}

impl TcpFlow {
    fn new(info: FlowInfo) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let state = Mutex::new(FlowState {
            queue: Some(sender),
            reader: None,
        });
        (
            Arc::new(Self {
                info,
                state,
                ended: Arc::default(),
            }),
            queue,
        )
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow for TcpFlow {
    fn info(&self) -> &FlowInfo {
        &self.info
    }

    fn send(&self, message: Bytes) -> Result<(), FlowError> {
        let state = self.state();
        let Some(queue) = &state.queue else {
            return Err(FlowError::ClosedByUs);
        };
        queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => FlowError::Full,
            TrySendError::Closed(_) => FlowError::Closed,
        })
    }

    fn close(&self) {
        self.ended.store(true, Ordering::Relaxed);
        let mut state = self.state();
        // Without its sender the writer sends what is queued and ends.
        state.queue = None;
        if let Some(reader) = state.reader.take() {
            reader.abort();
        }
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        self.close();
    }
}

/// What it takes to run a connection
struct Connection<'a> {
    id: FlowId,
    flow: &'a TcpFlow,
    queue: mpsc::Receiver<Bytes>,
    keep_alive: Duration,
    permit: Option<OwnedSemaphorePermit>,
}

impl Connection<'_> {
    /// Starts its two tasks.
    fn start(self, stream: TcpStream, inbound: Inbound) {
        if let Err(error) = stream.set_nodelay(true) {
            trace!(%error, "no TCP_NODELAY");
        }
        let (from_peer, to_peer) = stream.into_split();
        let end = End {
            id: self.id,
            ended: Arc::clone(&self.flow.ended),
            inbound: inbound.clone(),
        };
        let mut state = self.flow.state();
        // Closed between its making and now, there is nothing to start.
        let Some(queue) = &state.queue else { return };
        let pongs = queue.downgrade();
        let writer =
            tokio::spawn(write(to_peer, self.queue, self.keep_alive, end.clone())).abort_handle();
        let reader = Reader {
            source: self.flow.info.remote(),
            pongs,
            writer,
            end,
            inbound,
            _permit: self.permit,
        };
        state.reader = Some(tokio::spawn(reader.run(from_peer)).abort_handle());
    }
}

/// How a connection's end is reported: once, by the task that sees it first
#[derive(Clone)]
struct End {
    id: FlowId,
    ended: Arc<AtomicBool>,
    inbound: Inbound,
}

impl End {
    async fn report(self, error: FlowError) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            debug!(flow = %self.id, %error, "connection ended");
            self.inbound.failed(self.id, error).await;
        }
    }
}

/// The task that hands over what the peer sends, and waits while the agent is busy
struct Reader {
    source: SocketAddr,
    pongs: mpsc::WeakSender<Bytes>,
    writer: AbortHandle,
    end: End,
    inbound: Inbound,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Reader {
    async fn run(self, mut stream: OwnedReadHalf) {
        let mut framer = Framer::new();
        let mut buffer = vec![0; READ];
        let mut batch = Vec::new();
        let error = loop {
            let length = match stream.read(&mut buffer).await {
                Ok(0) => break FlowError::Closed,
                Ok(length) => length,
                Err(error) => break error.into(),
            };
            framer.push(&buffer[..length]);
            let framed = loop {
                match framer.next() {
                    Ok(Some(Frame::Message(message))) => {
                        batch.push(Received::new(self.source, message).with_flow(self.end.id));
                    }
                    // RFC 5626 §4.4.1. With the queue full there is traffic enough to show that we live.
                    Ok(Some(Frame::Ping)) => {
                        if let Some(pongs) = self.pongs.upgrade() {
                            let _ = pongs.try_send(Bytes::from_static(b"\r\n"));
                        }
                    }
                    Ok(Some(Frame::Pong)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(FlowError::NotSip(error.to_string().into())),
                }
            };
            self.inbound.received(&mut batch).await;
            if let Err(error) = framed {
                break error;
            }
        };
        // Dropping the read half alone would leave the connection open until the flow's last handle goes.
        self.writer.abort();
        self.end.report(error).await;
    }
}

/// Sends what is queued, and keeps the connection alive in between.
async fn write(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Bytes>,
    keep_alive: Duration,
    end: End,
) {
    loop {
        let message = tokio::select! {
            message = queue.recv() => match message {
                Some(message) => message,
                None => break,
            },
            () = sleep(keep_alive) => Bytes::from_static(b"\r\n\r\n"),
        };
        let written = timeout(STALL, stream.write_all(&message)).await;
        if let Err(error) = written.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            queue.close();
            return end.report(error.into()).await;
        }
    }
    let _ = timeout(STALL, stream.shutdown()).await;
}

/// Silence after which CRLFCRLF goes out, between RFC 5626's 95 s and 120 s
const KEEP_ALIVE: Duration = Duration::from_secs(110);
/// How long a peer may take nothing of a message before the connection counts as dead: timer F (RFC 3261 §17.1.2.2)
const STALL: Duration = Duration::from_secs(32);
/// Messages that wait for a slow peer before [`FlowError::Full`]
const QUEUE: usize = 256;
/// Bytes taken from the system at once
const READ: usize = 8192;
/// Connections of peers at a time; further ones wait in the system's backlog
const MOST_ACCEPTED: usize = 1024;
/// The rest after a failed accept
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::Arrival;
    use crate::transport::testing::{config, sink, within};

    const OK: &[u8] = b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n";

    async fn connected(
        transport: &TcpTransport,
        room: usize,
    ) -> (Arc<dyn Flow>, TcpStream, mpsc::Receiver<Arrival>) {
        let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (inbound, arrivals) = sink(room);
        transport.start(inbound).await.unwrap();
        let target = Target::new(Protocol::Tcp, peer.local_addr().unwrap());
        let flow = transport.open(FlowId::new(7), &target).await.unwrap();
        let (stream, _) = within(peer.accept()).await.unwrap();
        (flow, stream, arrivals)
    }

    async fn read_exactly(stream: &mut TcpStream, expected: &[u8]) {
        let mut buffer = vec![0; expected.len()];
        within(stream.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(buffer, expected);
    }

    #[tokio::test]
    async fn messages_are_framed_and_pings_answered() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        assert_eq!(flow.info().local(), peer.peer_addr().unwrap());
        flow.send(Bytes::from_static(b"REGISTER")).unwrap();
        read_exactly(&mut peer, b"REGISTER").await;

        peer.write_all(&[b"\r\n\r\n", OK, OK, &OK[..9]].concat())
            .await
            .unwrap();
        read_exactly(&mut peer, b"\r\n").await;
        peer.write_all(&OK[9..]).await.unwrap();
        let mut messages = Vec::new();
        while messages.len() < 3 {
            let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
                panic!("not received")
            };
            messages.extend(batch);
        }
        let message =
            Received::new(flow.info().remote(), Bytes::from_static(OK)).with_flow(FlowId::new(7));
        assert_eq!(messages, vec![message; 3]);
    }

    #[tokio::test]
    async fn silence_is_filled_with_keep_alives() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"))
            .keep_alive(Duration::from_millis(10));
        let (_flow, mut peer, _arrivals) = connected(&transport, 8).await;
        read_exactly(&mut peer, b"\r\n\r\n\r\n\r\n").await;
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_reported_with_its_reason() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, peer, mut arrivals) = connected(&transport, 8).await;
        drop(peer);
        assert!(
            matches!(within(arrivals.recv()).await, Some(Arrival::Failed(id, FlowError::Closed)) if id.number() == 7)
        );
        drop(flow);

        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, peer, mut arrivals) = connected(&transport, 8).await;
        // Closing with unread bytes resets the connection.
        flow.send(Bytes::from_static(b"unread")).unwrap();
        within(peer.peek(&mut [0; 1])).await.unwrap();
        drop(peer);
        let arrival = within(arrivals.recv()).await;
        assert!(
            matches!(arrival, Some(Arrival::Failed(_, FlowError::Reset))),
            "{arrival:?}"
        );

        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (_flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        assert!(matches!(
            within(arrivals.recv()).await,
            Some(Arrival::Failed(_, FlowError::NotSip(_)))
        ));
        assert_eq!(within(peer.read(&mut [0; 8])).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_closed_flow_sends_what_is_queued_and_reports_nothing() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "127.0.0.1:0"));
        let (flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        flow.send(Bytes::from_static(b"last")).unwrap();
        flow.close();
        assert_eq!(flow.send(Bytes::new()), Err(FlowError::ClosedByUs));
        read_exactly(&mut peer, b"last").await;
        assert_eq!(within(peer.read(&mut [0; 8])).await.unwrap(), 0);
        drop((peer, transport));
        assert!(within(arrivals.recv()).await.is_none());
    }

    #[tokio::test]
    async fn a_listener_takes_connections_and_lends_its_port() {
        let listening = config(Protocol::Tcp, "127.0.0.1:0").with_listen(true);
        let transport = TcpTransport::new(listening);
        let (flow, _peer, mut arrivals) = connected(&transport, 8).await;
        let address = transport.local_addr().unwrap();
        assert_eq!(*flow.info().contact(), *address.to_string());

        let mut peer = TcpStream::connect(address).await.unwrap();
        let Some(Arrival::Accepted(id, accepted)) = within(arrivals.recv()).await else {
            panic!("not accepted")
        };
        peer.write_all(OK).await.unwrap();
        let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
            panic!("not received")
        };
        assert_eq!(batch[0].flow, Some(id));
        accepted.send(Bytes::from_static(b"answer")).unwrap();
        read_exactly(&mut peer, b"answer").await;
    }

    #[tokio::test]
    async fn nobody_there_is_refused() {
        let address = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        transport.start(sink(1).0).await.unwrap();
        let refused = transport
            .open(FlowId::new(1), &Target::new(Protocol::Tcp, address))
            .await;
        assert_eq!(refused.err(), Some(FlowError::Refused));
    }
}
