//! An established WebSocket, and the task that sends and receives on it until it ends.

use super::{content, failure};
use crate::proto::PING;
use crate::transport::stream::{End, LAST_WORDS, PONG, STALL};
use crate::{FlowError, Inbound, Received};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// A connection, and what is to go out on it
pub(super) struct Connection<S> {
    socket: WebSocketStream<S>,
    queue: mpsc::Receiver<Bytes>,
    source: SocketAddr,
    /// What was handed to the socket and is not out yet
    sending: Option<Pin<Box<Sleep>>>,
}

/// What becomes of a connection next
enum Turn {
    Arrived(Message),
    /// Its last handle is gone, and what was queued is out
    Unused,
    Failed(Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(
        socket: WebSocketStream<S>,
        queue: mpsc::Receiver<Bytes>,
        source: SocketAddr,
    ) -> Self {
        Self {
            socket,
            queue,
            source,
            sending: None,
        }
    }

    /// Sends what is queued and hands over what arrives, until either side ends it.
    pub(super) async fn run(mut self, end: End, inbound: Inbound) {
        let mut batch = Vec::new();
        let error = loop {
            let message = match poll_fn(|cx| self.poll(cx)).await {
                Turn::Arrived(message) => message,
                Turn::Unused => return self.say_farewell().await,
                Turn::Failed(error) => break failure::connection(error, end.meaning),
            };
            let message: Bytes = match message {
                Message::Text(text) => text.into(),
                Message::Binary(bytes) => bytes,
                // Asked for or not (RFC 6455 §5.5.3): it lives. Who asked knows what it means.
                Message::Pong(_) => PONG,
                // Answered by the socket, with the next turn.
                Message::Ping(_) | Message::Frame(_) => continue,
                Message::Close(frame) => break failure::closed(frame),
            };
            // RFC 5626 §4.4.1, in place of a Ping or beside it (RFC 7118 §6).
            if message == PING {
                // With a message on its way there is traffic enough to show that we live.
                if self.sending.is_none()
                    && let Err(error) = self.hand_over(PONG)
                {
                    break failure::connection(error, end.meaning);
                }
                continue;
            }
            let message = content::without_line_ends(message);
            if inbound.accepts(&message)
                && let Err(error) = content::check(&message)
            {
                break FlowError::WebSocket(error);
            }
            let Some(message) = content::within_bounds(message) else {
                continue;
            };
            batch.push(Received::new(self.source, message).with_flow(end.id));
            inbound.received(&mut batch).await;
        };
        // Nothing that is sent from here on is read.
        self.queue.close();
        let _ = timeout(LAST_WORDS, self.close(failure::farewell(&error))).await;
        end.report(error).await;
    }

    /// Sending and receiving by turns: neither waits for the other, or both sides could wait for each other.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            if let Some(stall) = &mut self.sending {
                match self.socket.poll_flush_unpin(cx) {
                    Poll::Ready(Ok(())) => self.sending = None,
                    Poll::Ready(Err(error)) => return Poll::Ready(Turn::Failed(error)),
                    Poll::Pending => {
                        if stall.as_mut().poll(cx).is_ready() {
                            let error = std::io::Error::from(ErrorKind::TimedOut);
                            return Poll::Ready(Turn::Failed(Error::Io(error)));
                        }
                        break;
                    }
                }
            }
            match self.queue.poll_recv(cx) {
                Poll::Ready(Some(message)) => {
                    if let Err(error) = self.hand_over(message) {
                        return Poll::Ready(Turn::Failed(error));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Turn::Unused),
                Poll::Pending => break,
            }
        }
        self.socket.poll_next_unpin(cx).map(|next| match next {
            Some(Ok(message)) => Turn::Arrived(message),
            Some(Err(error)) => Turn::Failed(error),
            None => Turn::Failed(Error::ConnectionClosed),
        })
    }

    /// Gives a message to the socket, which must have sent the one before.
    fn hand_over(&mut self, message: Bytes) -> Result<(), Error> {
        self.sending = Some(Box::pin(sleep(STALL)));
        self.socket.start_send_unpin(frame(message))
    }

    /// Ends a connection that nobody uses any more, in order (RFC 6455 §7.1.1): the server closes first.
    async fn say_farewell(mut self) {
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let closing = async {
            self.close(Some(frame)).await;
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let _ = timeout(CLOSING, closing).await;
        let _ = timeout(CLOSING, self.socket.get_mut().shutdown()).await;
    }

    /// Sends a close frame, ours or the answer to the peer's.
    async fn close(&mut self, frame: Option<CloseFrame>) {
        if frame.is_some() {
            let _ = self.socket.close(frame).await;
        } else {
            let _ = self.socket.flush().await;
        }
    }
}

/// A message as it goes out: text where it can be (RFC 7118 §4.2), and a ping as a Ping.
fn frame(message: Bytes) -> Message {
    if message == PING {
        return Message::Ping(Bytes::new());
    }
    match Utf8Bytes::try_from(message.clone()) {
        Ok(text) => Message::Text(text),
        Err(_) => Message::Binary(message),
    }
}

/// How long a server may take to answer our close frame, and then to close the connection
const CLOSING: Duration = Duration::from_secs(2);
