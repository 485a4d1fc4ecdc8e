//! What every stream transport shares: dialling, listening, and the two tasks of a connection.
//!
//! A connection is anything that reads and writes bytes in order: TCP itself, or TLS inside of it. Its reader frames
//! what the peer sends and hands it over, its writer sends what is queued; both end with the flow's last handle.

use super::local::{flow_info, in_scope, reachable};
use crate::{Flow, FlowError, FlowId, FlowInfo, Frame, Framer, Inbound, Received, TransportConfig};
use bytes::Bytes;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, trace};

/// Connects to `remote` from the configured address.
///
/// How long that may take is the caller's business: a registration gives up after its `connect_timeout` and drops the
/// future.
pub(super) async fn dial(
    config: &TransportConfig,
    remote: SocketAddr,
) -> Result<TcpStream, FlowError> {
    reachable(config.bind().ip(), remote)?;
    let remote = in_scope(config.bind(), remote);
    let stream = super::socket::stream(config, remote)?
        .connect(remote)
        .await?;
    if stream.local_addr()? == remote {
        // Nobody listens on a port of the ephemeral range, and the system connected the socket to itself.
        return Err(FlowError::Refused);
    }
    no_delay(&stream);
    Ok(stream)
}

/// Messages are whole and small: waiting for more of them only adds to their time.
fn no_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        trace!(%error, "no TCP_NODELAY");
    }
}

/// The addresses of a connection, with the listener's port where it is reached there (D17).
pub(super) fn addresses(
    config: &TransportConfig,
    stream: &TcpStream,
    remote: SocketAddr,
    listener: Option<SocketAddr>,
) -> Result<FlowInfo, FlowError> {
    let local = stream.local_addr()?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    Ok(flow_info(
        config,
        local,
        reached_at(local, listener, config.ipv6_only()),
        remote,
    ))
}

/// Where a peer reaches us: the listener's port if it takes connections to this address, else the flow's own.
fn reached_at(local: SocketAddr, listener: Option<SocketAddr>, ipv6_only: bool) -> SocketAddr {
    let serves = |listener: SocketAddr| match listener.ip() {
        // On `::` most systems take IPv4 connections too.
        ip if ip.is_unspecified() => {
            ip.is_ipv6() == local.is_ipv6() || (ip.is_ipv6() && !ipv6_only)
        }
        ip => ip == local.ip(),
    };
    let port = listener
        .filter(|listener| serves(*listener))
        .map_or_else(|| local.port(), |listener| listener.port());
    SocketAddr::new(local.ip(), port)
}

/// A listener and the task that takes its connections, until it is dropped
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    listener: Arc<TcpListener>,
    task: AbortHandle,
}

impl Listening {
    /// Binds, and gives every connection that a peer opens to `take`, with the peer's address and the place it holds
    /// among at most [`MOST_ACCEPTED`]. A listener that `inherited` has is not bound again.
    pub(super) async fn start(
        config: &TransportConfig,
        inherited: Option<&Arc<TcpListener>>,
        take: impl Fn(TcpStream, SocketAddr, SocketAddr, OwnedSemaphorePermit) + Send + 'static,
    ) -> Result<Self, FlowError> {
        let listener = match inherited {
            Some(listener) => {
                super::socket::adjust(config, listener)?;
                Arc::clone(listener)
            }
            None => Arc::new(super::socket::listener(config)?),
        };
        let address = listener.local_addr()?;
        let accepting = Arc::clone(&listener);
        let task = tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(MOST_ACCEPTED));
            while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
                match accepting.accept().await {
                    Ok((stream, remote)) => {
                        no_delay(&stream);
                        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                        take(stream, remote, address, permit);
                    }
                    Err(error) => {
                        // Out of descriptors, or the peer has gone already: the next one may do better.
                        debug!(%error, "accept failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        let task = task.abort_handle();
        Ok(Self {
            address,
            listener,
            task,
        })
    }

    /// The listener, for a transport that takes the place of this one on the same address.
    pub(super) fn pass_on(
        &self,
        from: &TransportConfig,
        to: &TransportConfig,
    ) -> Option<Arc<TcpListener>> {
        let same = to.listen() && from.bind() == to.bind() && from.interface() == to.interface();
        same.then(|| Arc::clone(&self.listener))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection; its tasks hold no handle of it and end with it
#[derive(Debug)]
pub(super) struct StreamFlow {
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

impl StreamFlow {
    /// A flow that queues what it is given until its [`Connection`] starts.
    pub(super) fn new(info: FlowInfo) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let state = Mutex::new(FlowState {
            queue: Some(sender),
            reader: None,
        });
        let flow = Self {
            info,
            state,
            ended: Arc::default(),
        };
        (Arc::new(flow), queue)
    }

    /// How the end of its connection is reported.
    pub(super) fn end(&self, id: FlowId, inbound: &Inbound, meaning: Meaning) -> End {
        End {
            id,
            ended: Arc::clone(&self.ended),
            inbound: inbound.clone(),
            meaning,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow for StreamFlow {
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

impl Drop for StreamFlow {
    fn drop(&mut self) {
        self.close();
    }
}

/// What it takes to run a connection
pub(super) struct Connection<'a> {
    pub(super) id: FlowId,
    pub(super) flow: &'a StreamFlow,
    pub(super) queue: mpsc::Receiver<Bytes>,
    /// The place among the accepted ones, given back with the connection
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) inbound: Inbound,
    /// What an error of the stream means
    pub(super) meaning: Meaning,
}

/// Reads an error of a stream
pub(super) type Meaning = fn(std::io::Error) -> FlowError;

impl Connection<'_> {
    /// Starts its two tasks.
    pub(super) fn start<R, W>(self, from_peer: R, to_peer: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let end = self.flow.end(self.id, &self.inbound, self.meaning);
        let mut state = self.flow.state();
        // Closed between its making and now, there is nothing to start.
        let Some(queue) = &state.queue else { return };
        let pongs = queue.downgrade();
        let writer = tokio::spawn(write(to_peer, self.queue, end.clone())).abort_handle();
        let reader = Reader {
            source: self.flow.info.remote(),
            pongs,
            writer,
            end,
            inbound: self.inbound,
            _permit: self.permit,
        };
        state.reader = Some(tokio::spawn(reader.run(from_peer)).abort_handle());
    }
}

/// How a connection's end is reported: once, by the task that sees it first
#[derive(Clone)]
pub(super) struct End {
    pub(super) id: FlowId,
    ended: Arc<AtomicBool>,
    inbound: Inbound,
    pub(super) meaning: Meaning,
}

impl End {
    pub(super) async fn report(self, error: FlowError) {
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
    async fn run(self, mut stream: impl AsyncRead + Unpin) {
        let mut framer = Framer::new();
        let mut buffer = vec![0; READ];
        let mut batch = Vec::new();
        let error = loop {
            let length = match stream.read(&mut buffer).await {
                Ok(0) => break FlowError::Closed,
                Ok(length) => length,
                Err(error) => break (self.end.meaning)(error),
            };
            framer.push(buffer.get(..length).unwrap_or_default());
            let framed = loop {
                let message = match framer.next() {
                    Ok(Some(Frame::Message(message))) => message,
                    // RFC 5626 §4.4.1. With the queue full there is traffic enough to show that we live.
                    Ok(Some(Frame::Ping)) => {
                        if let Some(pongs) = self.pongs.upgrade() {
                            let _ = pongs.try_send(PONG);
                        }
                        continue;
                    }
                    // Who asked for it, if anybody did, knows what it means.
                    Ok(Some(Frame::Pong)) => PONG,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(FlowError::NotSip(error.to_string().into())),
                };
                batch.push(Received::new(self.source, message).with_flow(self.end.id));
            };
            if !batch.is_empty() {
                self.inbound.received(&mut batch).await;
            }
            if let Err(error) = framed {
                break error;
            }
        };
        // Dropping the read half alone would leave the connection open until the flow's last handle goes.
        self.writer.abort();
        self.end.report(error).await;
    }
}

/// Sends what is queued.
async fn write(mut stream: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Bytes>, end: End) {
    while let Some(message) = queue.recv().await {
        let whole = async {
            stream.write_all(&message).await?;
            // TLS keeps what the system did not take at once.
            stream.flush().await
        };
        let written = timeout(STALL, whole).await;
        if let Err(error) = written.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            // The peer's last words say more than that it does not listen any more: they are the reader's to report.
            sleep(LAST_WORDS).await;
            queue.close();
            let error = (end.meaning)(error);
            return end.report(error).await;
        }
    }
    let _ = timeout(STALL, stream.shutdown()).await;
}

/// The answer to a ping, and how one of the peer's is handed over (RFC 5626 §4.4.1)
pub(super) const PONG: Bytes = Bytes::from_static(b"\r\n");
/// How long a peer may take nothing of a message before the connection counts as dead: timer F (RFC 3261 §17.1.2.2)
pub(super) const STALL: Duration = Duration::from_secs(32);
/// How long a failed write waits for the reason that the reader may find
pub(super) const LAST_WORDS: Duration = Duration::from_millis(100);
/// Messages that wait for a slow peer before [`FlowError::Full`]
const QUEUE: usize = 256;
/// Bytes taken from the system at once
pub(super) const READ: usize = 8192;
/// Connections of peers at a time; further ones wait in the system's backlog
const MOST_ACCEPTED: usize = 1024;
/// The rest after a failed accept
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
