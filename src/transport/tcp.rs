//! SIP over TCP: a connection a flow, and a listener where the configuration asks for one.

use super::local::started_twice;
use super::stream::{Connection, Listening, StreamFlow, addresses, dial};
use crate::{Flow, FlowError, FlowId, Inbound, Protocol, Target, Transport, TransportConfig};
use async_trait::async_trait;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use tracing::trace;

/// SIP over TCP
///
/// Each flow is a connection of its own and ends with its last [`Flow`] handle. With `listen` set, connections that
/// peers open are taken too, and Via and Contact carry the listener's port (DECISIONS D17). Pings (CRLFCRLF) are
/// answered; those of ours are sent by whoever drives the flow, like any message (RFC 5626 §4.4.1).
#[derive(Debug)]
pub struct TcpTransport {
    config: TransportConfig,
    /// That of the transport whose place it takes
    inherited: Option<Arc<TcpListener>>,
    started: OnceLock<Started>,
}

#[derive(Debug)]
struct Started {
    inbound: Inbound,
    listening: Option<Listening>,
}

impl TcpTransport {
    /// A transport by its configuration; nothing is bound before it is started.
    #[must_use]
    pub const fn new(config: TransportConfig) -> Self {
        Self {
            config,
            inherited: None,
            started: OnceLock::new(),
        }
    }

    /// A transport that is to take the place of one that runs (`Agent::add_transport`): where both listen on one
    /// address, that is not bound again.
    #[must_use]
    pub fn in_place_of(config: TransportConfig, old: &Self) -> Self {
        let started = old.started.get();
        let listening = started.and_then(|started| started.listening.as_ref());
        let inherited = listening.and_then(|listening| listening.pass_on(&old.config, &config));
        Self {
            inherited,
            ..Self::new(config)
        }
    }

    /// The listener's address, once started with `listen` set.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let listening = self.started.get()?.listening.as_ref()?;
        Some(listening.address)
    }
}

#[async_trait]
impl Transport for TcpTransport {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Tcp]
    }

    fn suits(&self, to: &Target) -> bool {
        self.config.bind().is_ipv4() == to.address().is_ipv4()
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        if self.started.get().is_some() {
            return Err(started_twice());
        }
        let listening = if self.config.listen() {
            let (config, inbound) = (self.config.clone(), inbound.clone());
            let take = move |stream: tokio::net::TcpStream, remote, listener, permit| {
                let Ok(info) = addresses(&config, &stream, remote, Some(listener)) else {
                    return;
                };
                let (flow, queue) = StreamFlow::new(info);
                let id = inbound.accepted(Arc::clone(&flow) as Arc<dyn Flow>);
                trace!(%remote, %id, "accepted");
                let (from_peer, to_peer) = stream.into_split();
                let connection = Connection {
                    id,
                    flow: &flow,
                    queue,
                    permit: Some(permit),
                    inbound: inbound.clone(),
                    meaning: FlowError::from,
                };
                connection.start(from_peer, to_peer);
            };
            Some(Listening::start(&self.config, self.inherited.as_ref(), take).await?)
        } else {
            super::socket::check(&self.config)?;
            None
        };
        self.started
            .set(Started { inbound, listening })
            .map_err(|_| started_twice())
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        if to.protocol() != Protocol::Tcp {
            return Err(FlowError::NoTransport(to.protocol()));
        }
        let Some(started) = self.started.get() else {
            return Err(
                Error::new(ErrorKind::NotConnected, "the transport was not started").into(),
            );
        };
        let stream = dial(&self.config, to.address()).await?;
        // From here on nothing waits: a dropped future leaves no connection behind.
        let listener = started
            .listening
            .as_ref()
            .map(|listening| listening.address);
        let info = addresses(&self.config, &stream, to.address(), listener)?;
        let (flow, queue) = StreamFlow::new(info);
        let (from_peer, to_peer) = stream.into_split();
        let connection = Connection {
            id,
            flow: &flow,
            queue,
            permit: None,
            inbound: started.inbound.clone(),
            meaning: FlowError::from,
        };
        connection.start(from_peer, to_peer);
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Received;
    use crate::traits::Arrival;
    use crate::transport::testing::{config, sink, within};
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    const OK: &[u8] = b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n";

    async fn connected(
        transport: &TcpTransport,
        room: usize,
    ) -> (Arc<dyn Flow>, TcpStream, mpsc::Receiver<Arrival>) {
        let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (inbound, arrivals) = sink(room);
        transport.start(inbound).await.unwrap();
        let target = Target::new(Protocol::Tcp, peer.local_addr().unwrap());
        let flow = transport.open(FlowId::new(7), &target).await.unwrap();
        let (stream, _) = within(peer.accept()).await.unwrap();
        (flow, stream, arrivals)
    }

    async fn read_exactly(stream: &mut TcpStream, expected: &[u8]) {
        let mut buffer = vec![0; expected.len()];
        within(stream.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(buffer, expected);
    }

    #[tokio::test]
    async fn messages_are_framed_and_pings_answered() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        assert_eq!(flow.info().local(), peer.peer_addr().unwrap());
        flow.send(Bytes::from_static(b"REGISTER")).unwrap();
        read_exactly(&mut peer, b"REGISTER").await;

        peer.write_all(&[b"\r\n\r\n", OK, OK, &OK[..9]].concat())
            .await
            .unwrap();
        read_exactly(&mut peer, b"\r\n").await;
        peer.write_all(&OK[9..]).await.unwrap();
        let mut messages = Vec::new();
        while messages.len() < 3 {
            let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
                panic!("not received")
            };
            messages.extend(batch);
        }
        let message =
            Received::new(flow.info().remote(), Bytes::from_static(OK)).with_flow(FlowId::new(7));
        assert_eq!(messages, vec![message; 3]);
    }

    #[tokio::test]
    async fn a_ping_goes_out_like_a_message_and_its_answer_is_handed_over() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        flow.send(Bytes::from_static(b"\r\n\r\n")).unwrap();
        read_exactly(&mut peer, b"\r\n\r\n").await;
        peer.write_all(b"\r\n").await.unwrap();
        // Half a ping may follow; what follows here is a message.
        peer.write_all(OK).await.unwrap();
        let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
            panic!("not received")
        };
        let pong = Received::new(flow.info().remote(), Bytes::from_static(b"\r\n"));
        assert_eq!(batch[0], pong.with_flow(FlowId::new(7)));
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_reported_with_its_reason() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, peer, mut arrivals) = connected(&transport, 8).await;
        drop(peer);
        assert!(
            matches!(within(arrivals.recv()).await, Some(Arrival::Failed(id, FlowError::Closed)) if id.number() == 7)
        );
        drop(flow);

        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (flow, peer, mut arrivals) = connected(&transport, 8).await;
        // Closing with unread bytes resets the connection.
        flow.send(Bytes::from_static(b"unread")).unwrap();
        within(peer.peek(&mut [0; 1])).await.unwrap();
        drop(peer);
        let arrival = within(arrivals.recv()).await;
        assert!(
            matches!(arrival, Some(Arrival::Failed(_, FlowError::Reset))),
            "{arrival:?}"
        );

        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        let (_flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        assert!(matches!(
            within(arrivals.recv()).await,
            Some(Arrival::Failed(_, FlowError::NotSip(_)))
        ));
        assert_eq!(within(peer.read(&mut [0; 8])).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_closed_flow_sends_what_is_queued_and_reports_nothing() {
        let transport = TcpTransport::new(config(Protocol::Tcp, "127.0.0.1:0"));
        let (flow, mut peer, mut arrivals) = connected(&transport, 8).await;
        flow.send(Bytes::from_static(b"last")).unwrap();
        flow.close();
        assert_eq!(flow.send(Bytes::new()), Err(FlowError::ClosedByUs));
        read_exactly(&mut peer, b"last").await;
        assert_eq!(within(peer.read(&mut [0; 8])).await.unwrap(), 0);
        drop((peer, transport));
        assert!(within(arrivals.recv()).await.is_none());
    }

    #[tokio::test]
    async fn a_listener_takes_connections_and_lends_its_port() {
        let listening = config(Protocol::Tcp, "127.0.0.1:0").with_listen(true);
        let transport = TcpTransport::new(listening);
        let (flow, _peer, mut arrivals) = connected(&transport, 8).await;
        let address = transport.local_addr().unwrap();
        assert_eq!(*flow.info().contact(), *address.to_string());

        let mut peer = TcpStream::connect(address).await.unwrap();
        let Some(Arrival::Accepted(id, accepted)) = within(arrivals.recv()).await else {
            panic!("not accepted")
        };
        peer.write_all(OK).await.unwrap();
        let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
            panic!("not received")
        };
        assert_eq!(batch[0].flow, Some(id));
        accepted.send(Bytes::from_static(b"answer")).unwrap();
        read_exactly(&mut peer, b"answer").await;
    }

    #[tokio::test]
    async fn nobody_there_is_refused() {
        let address = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let transport = TcpTransport::new(config(Protocol::Tcp, "0.0.0.0:0"));
        transport.start(sink(1).0).await.unwrap();
        let refused = transport
            .open(FlowId::new(1), &Target::new(Protocol::Tcp, address))
            .await;
        assert_eq!(refused.err(), Some(FlowError::Refused));
    }
}
