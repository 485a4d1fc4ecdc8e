//! The way in: what transports and hosts hand to the agent.

use crate::{Flow, FlowError, FlowId};
use bytes::Bytes;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A message as it came from the network
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    /// The flow it came on, where the transport knows (streams do; UDP finds it by the source)
    pub flow: Option<FlowId>,
    /// Where it came from
    pub source: SocketAddr,
    /// The whole message
    pub message: Bytes,
}

impl Received {
    /// A message from `source`, on no known flow.
    #[must_use]
    pub const fn new(source: SocketAddr, message: Bytes) -> Self {
        Self {
            flow: None,
            source,
            message,
        }
    }

    /// Names the flow it came on.
    #[must_use]
    pub const fn with_flow(mut self, flow: FlowId) -> Self {
        self.flow = Some(flow);
        self
    }
}

impl fmt::Debug for Received {
    /// Shows the first line only: a message may carry credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("flow", &self.flow)
            .field("source", &self.source)
            .field("message", &FirstLine(&self.message))
            .finish()
    }
}

/// The `Debug` of a message: its first line and its length, never its headers
pub(crate) struct FirstLine<'a>(pub(crate) &'a [u8]);

impl fmt::Debug for FirstLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self
            .0
            .split(|byte| matches!(byte, b'\r' | b'\n'))
            .next()
            .unwrap_or_default();
        let start = line.get(..line.len().min(80)).unwrap_or_default();
        write!(
            f,
            "{:?} ({} bytes)",
            String::from_utf8_lossy(start),
            self.0.len()
        )
    }
}

/// What a transport tells its [`Inbound`]
#[cfg_attr(
    not(feature = "tokio"),
    expect(dead_code, reason = "only the agent makes one")
)]
#[derive(Debug)]
pub(crate) enum Arrival {
    Received(Vec<Received>),
    Accepted(FlowId, Arc<dyn Flow>),
    Failed(FlowId, FlowError),
}

/// Takes arrivals; the agent's queue is one, a test's vector another
#[async_trait::async_trait]
pub(crate) trait Sink: Send + Sync {
    /// Waits for room: streams push back on the peer.
    async fn deliver(&self, arrival: Arrival);
    /// Never waits: what finds no room is given back.
    fn try_deliver(&self, arrival: Arrival) -> Result<(), Arrival>;
}

/// The handle by which a transport, or a host that owns the socket, feeds the agent
///
/// Cheap to clone; usable from any task or thread.
#[derive(Clone)]
pub struct Inbound {
    tag: Arc<str>,
    sink: Arc<dyn Sink>,
    next_flow: Arc<AtomicU64>,
}

impl Inbound {
    #[cfg_attr(
        not(feature = "tokio"),
        expect(dead_code, reason = "only the agent makes one")
    )]
    pub(crate) fn new(tag: Arc<str>, sink: Arc<dyn Sink>, next_flow: Arc<AtomicU64>) -> Self {
        Self {
            tag,
            sink,
            next_flow,
        }
    }

    /// Whether `message` is a response to a request of this agent; a host that shares its socket asks this first.
    ///
    /// Lock-free: it looks for the agent's tag in the branch of the topmost Via, and nothing else.
    #[must_use]
    pub fn accepts(&self, message: &[u8]) -> bool {
        crate::proto::accepts(&self.tag, message)
    }

    /// Reports a connection that the peer opened, and names it.
    pub fn accepted(&self, flow: Arc<dyn Flow>) -> FlowId {
        let id = FlowId::new(self.next_flow.fetch_add(1, Ordering::Relaxed));
        // Lost only where the agent has no room or has ended; the flow then serves nobody.
        let _ = self.sink.try_deliver(Arrival::Accepted(id, flow));
        id
    }

    /// Hands over a batch, and waits while the agent is busy; `batch` is empty afterwards. For streams.
    pub async fn received(&self, batch: &mut Vec<Received>) {
        if !batch.is_empty() {
            self.sink
                .deliver(Arrival::Received(std::mem::take(batch)))
                .await;
        }
    }

    /// Hands over one message without waiting. For datagrams.
    ///
    /// # Errors
    /// Gives the message back when the agent's queue is full or the agent has ended; dropping it is what a socket
    /// buffer would have done.
    pub fn try_received(&self, received: Received) -> Result<(), Received> {
        match self.sink.try_deliver(Arrival::Received(vec![received])) {
            Ok(()) => Ok(()),
            Err(Arrival::Received(mut batch)) if batch.len() == 1 => Err(batch.remove(0)),
            Err(_) => Ok(()),
        }
    }

    /// Reports that a flow has ended, and why: every registration that rode on it registers again.
    pub async fn failed(&self, flow: FlowId, error: FlowError) {
        self.sink.deliver(Arrival::Failed(flow, error)).await;
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}
