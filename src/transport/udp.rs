//! SIP over UDP: one socket an address family, shared by all flows.

use super::local::{any, flow_info, reachable, source_of, started_twice};
use crate::{
    Flow, FlowError, FlowId, FlowInfo, Inbound, Protocol, Received, Target, Transport,
    TransportConfig,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tracing::{debug, trace};

/// SIP over UDP, on a socket bound once
///
/// Bound to an unspecified address (`0.0.0.0` or `::`), it serves IPv4 and IPv6 targets: the socket of the other
/// family is bound to a port of its own when a target first needs it. Bound to one address, it serves that family.
/// Its tasks end when it is dropped.
#[derive(Debug)]
pub struct UdpTransport {
    config: TransportConfig,
    primary: Arc<UdpSocket>,
    /// The socket of the other family, once a target needed it
    secondary: tokio::sync::OnceCell<Arc<UdpSocket>>,
    inbound: OnceLock<Inbound>,
    dropped: Arc<AtomicU64>,
    readers: Mutex<Vec<AbortHandle>>,
}

impl UdpTransport {
    /// Binds the socket.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(config: TransportConfig) -> Result<Self, FlowError> {
        let primary = UdpSocket::bind(config.bind()).await?;
        Ok(Self {
            config,
            primary: Arc::new(primary),
            secondary: tokio::sync::OnceCell::new(),
            inbound: OnceLock::new(),
            dropped: Arc::default(),
            readers: Mutex::default(),
        })
    }

    /// The address of the socket bound first, with the port that the system chose.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr, FlowError> {
        Ok(self.primary.local_addr()?)
    }

    /// How many datagrams found the agent's queue full and were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The socket that reaches `remote`.
    async fn socket_for(&self, remote: SocketAddr) -> Result<Arc<UdpSocket>, FlowError> {
        reachable(self.config.bind().ip(), remote)?;
        if self.config.bind().is_ipv4() == remote.is_ipv4() {
            return Ok(Arc::clone(&self.primary));
        }
        let secondary = self.secondary.get_or_try_init(|| async {
            let socket = Arc::new(UdpSocket::bind(SocketAddr::new(any(remote), 0)).await?);
            if let Some(inbound) = self.inbound.get() {
                self.read_from(&socket, inbound.clone());
            }
            Ok::<_, FlowError>(socket)
        });
        secondary.await.cloned()
    }

    fn read_from(&self, socket: &Arc<UdpSocket>, inbound: Inbound) {
        let reader = tokio::spawn(read(Arc::clone(socket), inbound, Arc::clone(&self.dropped)));
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(reader.abort_handle());
    }
}

#[async_trait]
impl Transport for UdpTransport {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        self.inbound
            .set(inbound.clone())
            .map_err(|_| started_twice())?;
        self.read_from(&self.primary, inbound);
        Ok(())
    }

    async fn open(&self, _id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        if to.protocol() != Protocol::Udp {
            return Err(FlowError::NoTransport(to.protocol()));
        }
        let socket = self.socket_for(to.address()).await?;
        let mut local = source_of(self.config.bind().ip(), to.address())?;
        local.set_port(socket.local_addr()?.port());
        // A new socket counts as unwritable until tokio has looked at it once; `send` does not wait.
        socket.writable().await?;
        let info = flow_info(&self.config, local, local, to.address());
        Ok(Arc::new(UdpFlow {
            info,
            socket,
            closed: AtomicBool::new(false),
        }))
    }
}

impl Drop for UdpTransport {
    fn drop(&mut self) {
        for reader in self
            .readers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
        {
            reader.abort();
        }
    }
}

/// A pair of addresses on the shared socket
#[derive(Debug)]
struct UdpFlow {
    info: FlowInfo,
    socket: Arc<UdpSocket>,
    closed: AtomicBool,
}

impl Flow for UdpFlow {
    fn info(&self) -> &FlowInfo {
        &self.info
    }

    fn send(&self, message: Bytes) -> Result<(), FlowError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(FlowError::ClosedByUs);
        }
        match self.socket.try_send_to(&message, self.info.remote()) {
            // An ICMP error that another flow of this socket caused is told to whoever sends next: send again.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
                ) =>
            {
                trace!(%error, "error of an earlier datagram");
                sent(self.socket.try_send_to(&message, self.info.remote()))
            }
            result => sent(result),
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

fn sent(result: std::io::Result<usize>) -> Result<(), FlowError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(FlowError::Full),
        Err(error) => Err(error.into()),
    }
}

/// Hands over what arrives, until it is aborted.
async fn read(socket: Arc<UdpSocket>, inbound: Inbound, dropped: Arc<AtomicU64>) {
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    while socket.readable().await.is_ok() {
        let mut errors = 0;
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((0, _)) => {}
                Ok((length, source)) => {
                    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
                    let message = Bytes::copy_from_slice(&buffer[..length]);
                    if inbound
                        .try_received(Received::new(source, message))
                        .is_err()
                    {
                        dropped.fetch_add(1, Ordering::Relaxed);
                        trace!(%source, "queue full, datagram dropped");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // ICMP errors of earlier datagrams come this way; the transaction's timers see to those.
                Err(error) => {
                    trace!(%error, "receive error ignored");
                    errors += 1;
                }
            }
        }
        if errors == BATCH {
            debug!("the socket gives only errors, pausing");
            tokio::time::sleep(PAUSE).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// The longest payload that a UDP header can say
const LONGEST_DATAGRAM: usize = 65_535;
/// Datagrams taken from the socket before other tasks get their turn
const BATCH: usize = 64;
/// How long a socket rests that gave nothing but errors, so that a broken one does not take the processor
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::Arrival;
    use crate::transport::testing::{config, sink, within};
    use std::net::IpAddr;

    #[tokio::test]
    async fn a_message_goes_out_and_its_answer_comes_in() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let transport = UdpTransport::bind(config(Protocol::Udp, "0.0.0.0:0"))
            .await
            .unwrap();
        let (inbound, mut arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let target = Target::new(Protocol::Udp, peer.local_addr().unwrap());
        let flow = transport.open(FlowId::new(1), &target).await.unwrap();
        assert_eq!(flow.info().local().ip(), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(
            flow.info().local().port(),
            transport.local_addr().unwrap().port()
        );

        flow.send(Bytes::from_static(b"REGISTER")).unwrap();
        let mut buffer = [0; 64];
        let (length, source) = within(peer.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(
            (&buffer[..length], source),
            (&b"REGISTER"[..], flow.info().local())
        );

        peer.send_to(b"SIP/2.0 200", source).await.unwrap();
        let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
            panic!("not received")
        };
        assert_eq!(
            batch,
            [Received::new(
                target.address(),
                Bytes::from_static(b"SIP/2.0 200")
            )]
        );

        flow.close();
        assert_eq!(
            flow.send(Bytes::from_static(b"x")),
            Err(FlowError::ClosedByUs)
        );
    }

    #[tokio::test]
    async fn an_unspecified_ipv4_address_serves_ipv6_targets_too() {
        let Ok(peer) = UdpSocket::bind("[::1]:0").await else {
            return;
        };
        let transport = UdpTransport::bind(config(Protocol::Udp, "0.0.0.0:0"))
            .await
            .unwrap();
        let (inbound, mut arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let target = Target::new(Protocol::Udp, peer.local_addr().unwrap());
        let flow = transport.open(FlowId::new(1), &target).await.unwrap();
        assert!(flow.info().contact().starts_with("[::1]:"));
        flow.send(Bytes::from_static(b"REGISTER")).unwrap();
        let (_, source) = within(peer.recv_from(&mut [0; 64])).await.unwrap();
        peer.send_to(b"SIP/2.0 200", source).await.unwrap();
        assert!(matches!(
            within(arrivals.recv()).await,
            Some(Arrival::Received(_))
        ));
    }

    #[tokio::test]
    async fn datagrams_beyond_the_queue_are_dropped_and_counted() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let transport = UdpTransport::bind(config(Protocol::Udp, "127.0.0.1:0"))
            .await
            .unwrap();
        let (inbound, mut arrivals) = sink(1);
        transport.start(inbound).await.unwrap();
        for _ in 0..3 {
            peer.send_to(b"SIP/2.0 200", transport.local_addr().unwrap())
                .await
                .unwrap();
        }
        within(async {
            while transport.dropped() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(arrivals.recv().await.is_some());
    }
}
