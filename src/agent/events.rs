//! Bounded streams of what the agent tells.

use crate::{Event, InboundMessage, RegistrationId};
use std::sync::Arc;
use tokio::sync::broadcast::{self, error::RecvError};

/// How many items a reader may lag behind before it misses the oldest
pub(super) const ROOM: usize = 1024;

pub(super) type Told = (RegistrationId, Arc<Event>);

/// Everything that happens to the registrations of an agent, from the call of [`Agent::events`](crate::Agent::events) on
///
/// Bounded: a reader that lags more than 1024 events behind misses the oldest, and [`missed`](Self::missed) counts them.
#[derive(Debug)]
pub struct Events(Reader<Told>);

impl Events {
    pub(super) fn new(sender: Option<broadcast::Sender<Told>>) -> Self {
        Self(Reader::new(sender))
    }

    /// The next event; `None` when the agent has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<(RegistrationId, Arc<Event>)> {
        self.0.next().await
    }

    /// How many events this reader has missed so far, as known at the last [`next`](Self::next).
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.0.missed
    }
}

/// Messages that are no answers to our requests, from the call of [`Agent::messages`](crate::Agent::messages) on
///
/// While there is a reader, it is the reader's part to answer: the agent gives no answer of its own, neither to what a slow
/// reader missed nor to what is left in one that is dropped. With several readers each gets all of them. Bounded like
/// [`Events`].
#[derive(Debug)]
pub struct Messages(Reader<InboundMessage>);

impl Messages {
    pub(super) fn new(sender: Option<broadcast::Sender<InboundMessage>>) -> Self {
        Self(Reader::new(sender))
    }

    /// The next message; `None` when the agent has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<InboundMessage> {
        self.0.next().await
    }

    /// How many messages this reader has missed so far, as known at the last [`next`](Self::next).
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.0.missed
    }
}

#[derive(Debug)]
struct Reader<T> {
    receiver: broadcast::Receiver<T>,
    missed: u64,
}

impl<T: Clone> Reader<T> {
    /// A reader of `sender`; of nothing where the agent has ended.
    fn new(sender: Option<broadcast::Sender<T>>) -> Self {
        let receiver = sender.map_or_else(|| broadcast::channel(1).1, |sender| sender.subscribe());
        Self {
            receiver,
            missed: 0,
        }
    }

    async fn next(&mut self) -> Option<T> {
        loop {
            match self.receiver.recv().await {
                Ok(item) => return Some(item),
                Err(RecvError::Lagged(missed)) => self.missed += missed,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
