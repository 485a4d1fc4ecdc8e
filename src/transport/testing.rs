//! What the transports' tests share.

use crate::traits::{Arrival, Sink};
use crate::{Inbound, Protocol, TransportConfig};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A configuration with nothing set but the address.
pub(super) fn config(protocol: Protocol, bind: &str) -> TransportConfig {
    TransportConfig::new("test", protocol)
        .unwrap()
        .with_bind(bind.parse().unwrap())
}

struct Queue(mpsc::Sender<Arrival>);

#[async_trait::async_trait]
impl Sink for Queue {
    async fn deliver(&self, arrival: Arrival) {
        let _ = self.0.send(arrival).await;
    }

    fn try_deliver(&self, arrival: Arrival) -> Result<(), Arrival> {
        self.0.try_send(arrival).map_err(|full| full.into_inner())
    }
}

/// An inbound with room for `room` arrivals, which names accepted flows from 100 upwards.
pub(super) fn sink(room: usize) -> (Inbound, mpsc::Receiver<Arrival>) {
    let (sender, receiver) = mpsc::channel(room);
    (
        Inbound::with_sink("tag".into(), Arc::new(Queue(sender)), Arc::new(100.into())),
        receiver,
    )
}

/// Fails a test that would hang.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), future)
        .await
        .expect("nothing within 5 s")
}
