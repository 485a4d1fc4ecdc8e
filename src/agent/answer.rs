//! Messages that are not ours: who is told of them, and who answers.

use super::actor::Core;
use crate::{FlowId, InboundMessage, MAX_BODY, ParseError, Protocol, Request, Response, Target};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Why an answer to an [`InboundMessage`] was not sent
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The message is a response, or nothing that could be read.
    #[error("only a request can be answered")]
    NotARequest(#[source] ParseError),
    /// An ACK is never answered (RFC 3261 §17).
    #[error("an ACK is never answered")]
    Ack,
    /// The answer has no status code from 100 to 699, or lacks what finds its transaction: Via, CSeq and Call-ID.
    #[error("the answer is no response")]
    NotAResponse(#[source] ParseError),
    /// The agent has ended.
    #[error("the agent has ended")]
    Closed,
}

/// How long a transport may take to make the way back for an answer
const WAY_BACK: Duration = Duration::from_secs(1);

/// Whether it came without its body, as of a [`Framer`](crate::Framer) that read over it.
fn is_too_long(message: &InboundMessage) -> bool {
    let request = Request::parse(message.message.clone()).ok();
    let length = request.and_then(|request| request.content_length());
    length.is_some_and(|length| length > MAX_BODY)
}

/// Whether the answer may go out; what it says is the host's own.
pub(super) fn check(request: &InboundMessage, answer: &Bytes) -> Result<(), AnswerError> {
    let request = Request::parse(request.message.clone()).map_err(AnswerError::NotARequest)?;
    if request.method() == "ACK" {
        return Err(AnswerError::Ack);
    }
    let answer = Response::parse(answer.clone()).map_err(AnswerError::NotAResponse)?;
    answer.validate().map_err(AnswerError::NotAResponse)
}

impl Core {
    /// Tells the host, else those who read, of a message; what neither takes is answered here.
    pub(super) fn message(&mut self, message: InboundMessage) {
        let message = match &self.host {
            Some(host) => {
                let kept = message.clone();
                match catch_unwind(AssertUnwindSafe(|| host.message(message))) {
                    Ok(Ok(())) => return,
                    Ok(Err(message)) => message,
                    Err(_) => {
                        tracing::error!(message = ?kept, "the host panicked on a message");
                        return self.answer_by(&kept, 500);
                    }
                }
            }
            None => message,
        };
        let Err(unheard) = self.messages.send(message) else {
            return;
        };
        let message = unheard.0;
        let code = match message.request() {
            Ok(request) if request.method() == "OPTIONS" => 200,
            Ok(_) => 480,
            Err(_) if is_too_long(&message) => 413,
            Err(_) => 400,
        };
        self.answer_by(&message, code);
    }

    fn answer_by(&mut self, message: &InboundMessage, code: u16) {
        match message.response(code) {
            Some(response) => self.answer(message, response.build()),
            None => {
                tracing::trace!(source = %message.source, "not answered: no request, or an ACK");
            }
        }
    }

    /// Sends an answer where its request came from (RFC 3261 §18.2.2).
    pub(super) fn answer(&mut self, message: &InboundMessage, answer: Bytes) {
        if let Some(flow) = message.flow.filter(|flow| self.flows.contains_key(flow)) {
            return self.send(flow, answer);
        }
        let transport = message
            .transport
            .and_then(|number| self.numbered(usize::from(number)));
        let Some(transport) = transport.filter(|by| by.protocols().contains(&Protocol::Udp)) else {
            return tracing::trace!(source = %message.source, "the flow of a request is gone");
        };
        // A datagram from an address that we have no flow to goes back by the socket it came to.
        let transport = Arc::clone(transport);
        let target = Target::new(Protocol::Udp, message.source);
        let id = FlowId::new(self.next_accepted.fetch_add(1, Ordering::Relaxed));
        tokio::spawn(async move {
            if let Ok(Ok(flow)) = tokio::time::timeout(WAY_BACK, transport.open(id, &target)).await
            {
                let _ = flow.send(answer);
                flow.close();
                transport.flush();
            }
        });
    }
}
