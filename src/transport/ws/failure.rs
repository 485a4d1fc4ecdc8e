//! What an error of tungstenite means for a flow.

use crate::transport::stream::Meaning;
use crate::transport::tls::printable;
use crate::{FlowError, WsError};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Reads an error of the handshake.
pub(super) fn handshake(error: Error, meaning: Meaning) -> FlowError {
    let what = match error {
        Error::Io(error) => return meaning(error),
        Error::Protocol(ProtocolError::HandshakeIncomplete) => return FlowError::Closed,
        Error::Http(response) => {
            let status = response.status();
            WsError::Refused {
                status: status.as_u16(),
                reason: status.canonical_reason().unwrap_or_default().into(),
            }
        }
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => WsError::Subprotocol,
        // Its own words are "attack attempt"; mostly it is a server that sends something else.
        Error::AttackAttempt => {
            WsError::NotWebSocket("the answer is too long, or comes in too many pieces".into())
        }
        other => WsError::NotWebSocket(printable(&other.to_string())),
    };
    FlowError::WebSocket(what)
}

/// Reads an error of an established connection.
pub(super) fn connection(error: Error, meaning: Meaning) -> FlowError {
    let what = match error {
        Error::Io(error) => return meaning(error),
        Error::ConnectionClosed | Error::AlreadyClosed => return FlowError::Closed,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => WsError::Cut,
        Error::Capacity(CapacityError::MessageTooLong { size, .. }) => {
            WsError::TooLong { length: size }
        }
        other => WsError::Broken(printable(&other.to_string())),
    };
    FlowError::WebSocket(what)
}

/// Reads the peer's close frame.
pub(super) fn closed(frame: Option<CloseFrame>) -> FlowError {
    match frame {
        None => FlowError::Closed,
        Some(frame) if matches!(frame.code, CloseCode::Normal | CloseCode::Away) => {
            FlowError::Closed
        }
        Some(frame) => FlowError::WebSocket(WsError::Closed {
            code: frame.code.into(),
            reason: printable(&frame.reason),
        }),
    }
}

/// What we say to a peer when we end a connection for `error`; none where it does not listen any more (RFC 6455 §7.4.1).
pub(super) fn farewell(error: &FlowError) -> Option<CloseFrame> {
    let code = match error {
        FlowError::WebSocket(WsError::TooLong { .. }) => CloseCode::Size,
        FlowError::WebSocket(WsError::Broken(_)) => CloseCode::Protocol,
        _ => return None,
    };
    Some(CloseFrame {
        code,
        reason: "".into(),
    })
}
