//! The application's side: what it is told, and the messages that are not ours.

use super::FirstLine;
use crate::{Event, FlowId, RegistrationId, WayOut};
use bytes::Bytes;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The registration that an inbound request belongs to (option `line`, or the Contact user with its flow)
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// The registration
    pub registration: RegistrationId,
    /// Its `endpoint`, where set
    pub endpoint: Option<Arc<str>>,
}

impl Match {
    /// A match, for a mock of [`Registrar`](crate::Registrar).
    #[must_use]
    pub const fn new(registration: RegistrationId, endpoint: Option<Arc<str>>) -> Self {
        Self {
            registration,
            endpoint,
        }
    }
}

/// A message that is no answer to a REGISTER of ours: a call, a MESSAGE, an OPTIONS
#[derive(Clone)]
#[non_exhaustive]
pub struct InboundMessage {
    /// The whole message
    pub message: Bytes,
    /// The flow it came on; answers go there
    pub flow: Option<FlowId>,
    /// Where it came from
    pub source: SocketAddr,
    /// The registration it belongs to; none where none or several match
    pub registration: Option<Match>,
    #[expect(
        clippy::box_collection,
        reason = "seldom there, and a message that is given back is to stay small"
    )]
    candidates: Option<Box<Vec<Match>>>,
    /// The number of the transport it came by
    #[cfg(feature = "tokio")]
    pub(crate) transport: Option<u16>,
}

impl fmt::Debug for InboundMessage {
    /// Shows the first line of the message only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundMessage")
            .field("message", &FirstLine(&self.message))
            .field("flow", &self.flow)
            .field("source", &self.source)
            .field("registration", &self.registration)
            .field("candidates", &self.candidates())
            .finish()
    }
}

impl InboundMessage {
    /// A message from `source`, for a test of a [`Host`].
    #[must_use]
    pub const fn new(source: SocketAddr, message: Bytes) -> Self {
        Self {
            message,
            flow: None,
            source,
            registration: None,
            candidates: None,
            #[cfg(feature = "tokio")]
            transport: None,
        }
    }

    /// Sets the flow it came on.
    #[must_use]
    pub const fn with_flow(mut self, flow: FlowId) -> Self {
        self.flow = Some(flow);
        self
    }

    /// Sets the registration it belongs to.
    #[must_use]
    pub fn with_registration(mut self, registration: Match) -> Self {
        self.registration = Some(registration);
        self
    }

    /// Sets the registrations that it may belong to.
    #[must_use]
    pub fn with_candidates(mut self, candidates: impl IntoIterator<Item = Match>) -> Self {
        let candidates: Vec<_> = candidates.into_iter().collect();
        self.candidates = (!candidates.is_empty()).then(|| Box::new(candidates));
        self
    }

    /// Where several registrations match: those, at most 16 (D24). What else the request says, To for one, may tell the host
    /// which it is for.
    #[must_use]
    pub fn candidates(&self) -> &[Match] {
        self.candidates.as_deref().map_or(&[], Vec::as_slice)
    }

    /// The message read as a request.
    ///
    /// # Errors
    /// What makes it no request that could be answered (RFC 3261 §8.2, RFC 4475 §3.1.2).
    pub fn request(&self) -> Result<crate::Request, crate::ParseError> {
        let request = crate::Request::parse(self.message.clone())?;
        request.validate()?;
        Ok(request)
    }

    /// Of the [ways out](crate::Pool::ways_out) of its registration the one on whose flow it came, as what follows in a dialog
    /// is to come the same way (RFC 5626 §4.3), or else the best one: over UDP a call may come from elsewhere than REGISTERs
    /// go to, on no flow at all. Its [`contact`](crate::WayOut::contact) is for the Contact of our 2xx.
    ///
    /// None where there is no way out.
    #[must_use]
    pub fn way_back<'a>(&self, ways: &'a [WayOut]) -> Option<&'a WayOut> {
        ways.iter()
            .find(|way| Some(way.flow) == self.flow)
            .or_else(|| ways.first())
    }

    /// A response to it; none where it is no request, or an ACK, which is never answered (RFC 3261 §17), or where `code` is
    /// not from 100 to 699.
    ///
    /// A request that is [malformed](Self::request) gets its 400 by this too, as long as it has Via, From, To, Call-ID and
    /// CSeq, so that its sender can tell what is answered; otherwise there is none (RFC 4475 §3.1.2, §3.3.1).
    #[must_use]
    pub fn response(&self, code: u16) -> Option<super::ResponseBuilder> {
        let request = crate::Request::parse(self.message.clone()).ok()?;
        super::ResponseBuilder::new(&request, self, code)
    }
}

/// The application
///
/// Called from the agent's own task, so it must not block: no registration is refreshed meanwhile. `Agent::events` is the
/// way for those who want to wait. A panic is caught and logged, and the agent goes on.
pub trait Host: Send + Sync {
    /// Something happened to a registration.
    fn event(&self, id: RegistrationId, event: &Event);

    /// A message arrived that is not ours. Each copy of a request is told: there is no transaction layer that would take
    /// retransmissions away (RFC 3261 §17.2). What the host takes it answers itself, or nobody does.
    ///
    /// # Errors
    /// A host that does not want it gives it back. Where nobody reads `Agent::messages` either, the agent answers: OPTIONS
    /// with 200, any other request with 480, a malformed one with 400, one whose body is longer than [`MAX_BODY`](crate::MAX_BODY)
    /// with 413, each copy alike, an ACK never. A request on which
    /// this panics is answered with 500.
    fn message(&self, message: InboundMessage) -> Result<(), InboundMessage> {
        Err(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_answered_the_way_it_came_or_else_the_best_way() {
        let [first, second, other] = [1, 2, 3].map(FlowId::new);
        let ways = [
            WayOut::new(first, "sip:alice@192.0.2.1"),
            WayOut::new(second, "sip:alice@192.0.2.1;transport=tcp"),
        ];
        let call = InboundMessage::new(([192, 0, 2, 9], 5060).into(), Bytes::new());
        let back = |call: &InboundMessage| call.way_back(&ways).map(|way| way.flow);
        assert_eq!(back(&call.clone().with_flow(second)), Some(second));
        assert_eq!(back(&call.clone().with_flow(first)), Some(first));
        assert_eq!(back(&call.clone().with_flow(other)), Some(first));
        assert_eq!(back(&call), Some(first), "over UDP from elsewhere");
        assert_eq!(call.with_flow(first).way_back(&[]), None);
    }
}
