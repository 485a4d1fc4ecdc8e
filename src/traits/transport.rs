//! How messages leave and arrive.

use crate::{FlowError, FlowId, FlowInfo, Inbound, Protocol, Target};
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt::Debug;
use std::sync::Arc;

/// What carries SIP messages: the built-in UDP, TCP, TLS and WebSocket, a mock, or a socket that the host owns
///
/// A transport knows nothing of REGISTER. It opens flows, sends bytes on them, and hands what arrives to its
/// [`Inbound`].
#[async_trait]
pub trait Transport: Send + Sync + Debug {
    /// The protocols it speaks; where a registration names no transport, the agent picks the first that speaks the target's
    /// protocol and [suits](Self::suits) it, or else the first that speaks it.
    fn protocols(&self) -> &[Protocol];

    /// Whether it is bound for targets of this address family; default `true`. It may be asked to reach others too.
    fn suits(&self, to: &Target) -> bool {
        let _ = to;
        true
    }

    /// Called once, before the first [`open`](Self::open): starts listeners and keeps `inbound` for what arrives.
    ///
    /// # Errors
    /// When it cannot listen; `AgentBuilder::build` fails with it.
    async fn start(&self, inbound: Inbound) -> Result<(), FlowError>;

    /// Makes a flow to `to` under the name `id`.
    ///
    /// Cancel safe: when the future is dropped, nothing of the flow stays.
    ///
    /// # Errors
    /// When no flow can be made; the registration tries its next target, or waits by its policy.
    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError>;

    /// Called at the end of each turn of the agent, so that a transport can batch what was sent during it.
    fn flush(&self) {}
}

/// One connection, or one pair of UDP addresses
pub trait Flow: Send + Sync + Debug {
    /// Its addresses, and what Via and Contact shall say.
    fn info(&self) -> &FlowInfo;

    /// Sends one whole message, without waiting.
    ///
    /// On streams CRLFCRLF is a ping, whose answer is handed over as CRLF (RFC 5626 §4.4.1). Over WebSocket it is to go
    /// out as a Ping, and the Pong to be handed over as CRLF: one that does not come in 10 s ends the flow.
    ///
    /// # Errors
    /// [`FlowError::Full`]: nothing was sent and the flow lives, the agent comes again later; an I/O error of the kind
    /// `WouldBlock` becomes that by `?`. Anything else: the flow is of no use any more.
    fn send(&self, message: Bytes) -> Result<(), FlowError>;

    /// Ends the flow; nothing is reported of it afterwards.
    fn close(&self);
}
