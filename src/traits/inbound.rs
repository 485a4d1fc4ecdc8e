//! The way in: what transports and hosts hand to the agent.

use crate::{Flow, FlowError, FlowId};
use bytes::Bytes;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

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

/// What a transport told its [`Inbound`], for the host that made it by [`Inbound::new`]
#[derive(Debug)]
#[non_exhaustive]
pub enum Arrival {
    /// Messages, in the order they came; for [`Pool::received`](crate::Pool::received)
    Received(Vec<Received>),
    /// The peer opened a connection, and this is its name
    Accepted(FlowId, Arc<dyn Flow>),
    /// A flow has ended; for [`Pool::flow_failed`](crate::Pool::flow_failed)
    Failed(FlowId, FlowError),
}

/// Flows that peers open are named from here upwards, those the pool opens from 1
pub(crate) const FIRST_ACCEPTED: u64 = 1 << 32;

/// Takes arrivals; the agent's queue is one, a test's vector another
#[async_trait::async_trait]
pub(crate) trait Sink: Send + Sync {
    /// Waits for room: streams push back on the peer.
    async fn deliver(&self, arrival: Arrival);
    /// Never waits: what finds no room is given back.
    fn try_deliver(&self, arrival: Arrival) -> Result<(), Arrival>;
}

/// A function that takes arrivals, or gives them back
struct Taker<F>(F);

#[async_trait::async_trait]
impl<F: Fn(Arrival) -> Result<(), Arrival> + Send + Sync> Sink for Taker<F> {
    async fn deliver(&self, arrival: Arrival) {
        let mut offered = Some(arrival);
        std::future::poll_fn(|cx| {
            offered = offered.take().and_then(|arrival| (self.0)(arrival).err());
            if offered.is_none() {
                return Poll::Ready(());
            }
            // Nobody says when there is room: whoever runs this comes again, after what else it has to do.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn try_deliver(&self, arrival: Arrival) -> Result<(), Arrival> {
        (self.0)(arrival)
    }
}

/// The handle by which a transport, or a host that owns the socket, feeds the agent
///
/// Cheap to clone; usable from any task or thread. The agent gives one to [`Transport::start`](crate::Transport::start);
/// a host without the agent, and a test of a transport, make their [own](Self::new).
#[derive(Clone)]
pub struct Inbound {
    tag: Arc<str>,
    sink: Arc<dyn Sink>,
    next_flow: Arc<AtomicU64>,
}

impl Inbound {
    /// An inbound that hands every arrival to `take`; `tag` is what [`accepts`](Self::accepts) looks for, see
    /// [`Pool::tag`](crate::Pool::tag).
    ///
    /// `take` is called where the transport is, and must not block. It gives back what finds no room:
    /// [`try_received`](Self::try_received) then fails, [`received`](Self::received) and [`failed`](Self::failed) offer it
    /// again whenever they are polled.
    ///
    /// ```
    /// use sip_registration::{Arrival, Inbound, Received};
    /// use std::sync::mpsc::{TrySendError, sync_channel};
    ///
    /// let (sender, arrivals) = sync_channel(1);
    /// let inbound = Inbound::new("tag", move |arrival| {
    ///     sender.try_send(arrival).map_err(|error| match error {
    ///         TrySendError::Full(arrival) | TrySendError::Disconnected(arrival) => arrival,
    ///     })
    /// });
    /// let received = Received::new(([192, 0, 2, 9], 5060).into(), "SIP/2.0 200 OK\r\n\r\n".into());
    /// assert!(inbound.try_received(received.clone()).is_ok());
    /// assert!(inbound.try_received(received).is_err(), "there is room for one");
    /// assert!(matches!(arrivals.try_recv(), Ok(Arrival::Received(batch)) if batch.len() == 1));
    /// ```
    #[must_use]
    pub fn new(
        tag: impl Into<Arc<str>>,
        take: impl Fn(Arrival) -> Result<(), Arrival> + Send + Sync + 'static,
    ) -> Self {
        let next_flow = Arc::new(AtomicU64::new(FIRST_ACCEPTED));
        Self::with_sink(tag.into(), Arc::new(Taker(take)), next_flow)
    }

    pub(crate) fn with_sink(tag: Arc<str>, sink: Arc<dyn Sink>, next_flow: Arc<AtomicU64>) -> Self {
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
