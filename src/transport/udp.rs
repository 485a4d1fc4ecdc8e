//! SIP over UDP: one socket an address family, shared by all flows.

use super::icmp;
use super::local::{any, flow_info, in_scope, reachable, started_twice};
use super::socket::{datagrams, is_current, source_of, with_port};
use crate::{
    Flow, FlowError, FlowId, FlowInfo, Inbound, Protocol, Received, Target, Transport,
    TransportConfig,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tracing::{debug, trace};

/// SIP over UDP, on a socket bound once
///
/// Bound to an unspecified address (`0.0.0.0` or `::`), it serves IPv4 and IPv6 targets: the socket of the other
/// family is bound to a port of its own when a target first needs it. Bound to one address, it serves that family.
/// Its tasks end when it is dropped.
///
/// A flow ends with [`FlowError::Refused`] or [`FlowError::Io`] when the network says that what was sent on it cannot be
/// delivered (ICMP: unreachable network, host, protocol or port, RFC 3261 §18.4), so that the next target is tried at
/// once. Linux and Android tell; elsewhere the transaction's timer F finds out.
///
/// A socket that the system does not serve any more (its interface went and came back, say) is replaced by one on the
/// same port when the next flow is made.
#[derive(Debug)]
pub struct UdpTransport {
    config: TransportConfig,
    sockets: Mutex<Sockets>,
    shared: Arc<Shared>,
    inbound: OnceLock<Inbound>,
}

#[derive(Debug, Default)]
struct Sockets {
    ipv4: Option<Arc<Bound>>,
    ipv6: Option<Arc<Bound>>,
}

/// A socket and its reader, which ends with it
#[derive(Debug)]
struct Bound {
    socket: Arc<UdpSocket>,
    broken: Arc<AtomicBool>,
    reader: OnceLock<AbortHandle>,
}

/// What transport, flows and readers have in common
#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    not_sip: AtomicU64,
    /// The flows to each remote, the newest last
    flows: Mutex<HashMap<SocketAddr, Vec<FlowId>>>,
}

impl UdpTransport {
    /// Binds the socket.
    ///
    /// # Errors
    /// [`FlowError::Setting`] where the address cannot be bound or an option cannot be set.
    pub async fn bind(config: TransportConfig) -> Result<Self, FlowError> {
        Self::bound(config, None)
    }

    /// Binds the socket of a transport that is to take the place of one that runs (`Agent::add_transport`), which may
    /// have the same port until then.
    ///
    /// # Errors
    /// As of [`bind`](Self::bind); the other goes on in any case.
    pub async fn bind_in_place_of(config: TransportConfig, old: &Self) -> Result<Self, FlowError> {
        let socket = old.sockets().of(config.bind()).clone();
        Self::bound(config, socket.as_ref().map(|old| &*old.socket))
    }

    fn bound(config: TransportConfig, in_place_of: Option<&UdpSocket>) -> Result<Self, FlowError> {
        let bound = Bound::new(&config, config.bind(), in_place_of)?;
        let mut sockets = Sockets::default();
        *sockets.of(config.bind()) = Some(Arc::new(bound));
        Ok(Self {
            config,
            sockets: Mutex::new(sockets),
            shared: Arc::default(),
            inbound: OnceLock::new(),
        })
    }

    /// The address of the socket bound first, with the port that the system chose.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr, FlowError> {
        let bound = self.sockets().of(self.config.bind()).clone();
        let bound = bound.ok_or(FlowError::Closed)?;
        Ok(bound.socket.local_addr()?)
    }

    /// How many datagrams found the agent's queue full and were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// How many datagrams were neither SIP nor a keep-alive (CRLF, STUN), and were dropped.
    #[must_use]
    pub fn not_sip(&self) -> u64 {
        self.shared.not_sip.load(Ordering::Relaxed)
    }

    /// The socket that reaches `remote`.
    fn socket_for(&self, remote: SocketAddr) -> Result<Arc<Bound>, FlowError> {
        let bind = self.config.bind();
        reachable(bind.ip(), remote)?;
        let mut sockets = self.sockets();
        let place = sockets.of(remote);
        let address = match place {
            Some(bound) if bound.is_usable(&self.config) => return Ok(Arc::clone(bound)),
            // Others know the port: it stays.
            Some(old) => with_port(self.any(remote), old.socket.local_addr()?.port()),
            None => self.any(remote),
        };
        let old = place.as_ref().map(|old| &*old.socket);
        let bound = Arc::new(Bound::new(&self.config, address, old)?);
        if let Some(inbound) = self.inbound.get() {
            bound.read(inbound.clone(), Arc::clone(&self.shared));
        }
        *place = Some(Arc::clone(&bound));
        Ok(bound)
    }

    /// Where the socket of the family of `remote` is bound: as configured, or anywhere in the other family.
    fn any(&self, remote: SocketAddr) -> SocketAddr {
        let bind = self.config.bind();
        if bind.is_ipv4() == remote.is_ipv4() {
            bind
        } else {
            SocketAddr::new(any(remote), 0)
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Transport for UdpTransport {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    fn suits(&self, to: &Target) -> bool {
        self.config.bind().is_ipv4() == to.address().is_ipv4()
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        self.inbound
            .set(inbound.clone())
            .map_err(|_| started_twice())?;
        if let Some(bound) = self.sockets().of(self.config.bind()) {
            bound.read(inbound, Arc::clone(&self.shared));
        }
        Ok(())
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        if to.protocol() != Protocol::Udp {
            return Err(FlowError::NoTransport(to.protocol()));
        }
        let remote = in_scope(self.config.bind(), to.address());
        let bound = self.socket_for(remote)?;
        let local = source_of(&self.config, remote)?;
        let local = with_port(local, bound.socket.local_addr()?.port());
        // A new socket counts as unwritable until tokio has looked at it once; `send` does not wait.
        bound.socket.writable().await?;
        let info = flow_info(&self.config, local, local, remote);
        self.shared.flows().entry(key(remote)).or_default().push(id);
        Ok(Arc::new(UdpFlow {
            id,
            info,
            bound,
            shared: Arc::clone(&self.shared),
            closed: AtomicBool::new(false),
        }))
    }
}

impl Sockets {
    const fn of(&mut self, family_of: SocketAddr) -> &mut Option<Arc<Bound>> {
        match family_of {
            SocketAddr::V4(_) => &mut self.ipv4,
            SocketAddr::V6(_) => &mut self.ipv6,
        }
    }
}

impl Bound {
    fn new(
        config: &TransportConfig,
        address: SocketAddr,
        in_place_of: Option<&UdpSocket>,
    ) -> Result<Self, FlowError> {
        let socket = datagrams(config, address, in_place_of)?;
        icmp::ask(&socket, address.is_ipv4())?;
        Ok(Self {
            socket: Arc::new(socket),
            broken: Arc::default(),
            reader: OnceLock::new(),
        })
    }

    fn is_usable(&self, config: &TransportConfig) -> bool {
        !self.broken.load(Ordering::Relaxed) && is_current(config, &self.socket)
    }

    /// Starts the reader.
    fn read(&self, inbound: Inbound, shared: Arc<Shared>) {
        self.reader.get_or_init(|| {
            let reader = Reader {
                socket: Arc::clone(&self.socket),
                broken: Arc::clone(&self.broken),
                inbound,
                shared,
            };
            tokio::spawn(reader.run()).abort_handle()
        });
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }
}

impl Shared {
    fn flows(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<FlowId>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest flow to `remote`.
    fn flow(&self, remote: SocketAddr) -> Option<FlowId> {
        self.flows().get(&key(remote))?.last().copied()
    }

    fn forget(&self, id: FlowId, remote: SocketAddr) {
        let mut flows = self.flows();
        if let Some(ids) = flows.get_mut(&key(remote)) {
            ids.retain(|known| *known != id);
            if ids.is_empty() {
                flows.remove(&key(remote));
            }
        }
    }
}

/// The address without what does not tell two remotes apart: the scope and flow label of IPv6.
fn key(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A pair of addresses on the shared socket
#[derive(Debug)]
struct UdpFlow {
    id: FlowId,
    info: FlowInfo,
    /// Kept until the flow ends, though the transport may have replaced it
    bound: Arc<Bound>,
    shared: Arc<Shared>,
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
        let mut tries = 1;
        loop {
            let sent = self.bound.socket.try_send_to(&message, self.info.remote());
            let error = match sent {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(FlowError::Full);
                }
                Err(error) => error,
            };
            // An ICMP error that another flow of this socket caused is told to whoever sends next, once.
            if tries < TRIES {
                tries += 1;
                continue;
            }
            if is_ours(error.kind()) {
                self.bound.broken.store(true, Ordering::Relaxed);
            }
            return Err(error.into());
        }
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            self.shared.forget(self.id, self.info.remote());
        }
    }
}

impl Drop for UdpFlow {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether an error of sending is about the socket rather than the way to the remote.
const fn is_ours(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied
    )
}

/// The task that hands over what arrives, until it is aborted
struct Reader {
    socket: Arc<UdpSocket>,
    broken: Arc<AtomicBool>,
    inbound: Inbound,
    shared: Arc<Shared>,
}

impl Reader {
    async fn run(self) {
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        while icmp::ready(&self.socket).await.is_ok() {
            let mut errors = 0;
            for _ in 0..BATCH {
                match self.socket.try_recv_from(&mut buffer) {
                    Ok((length, source)) => {
                        self.take(buffer.get(..length).unwrap_or_default(), source);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // ICMP errors of earlier datagrams come this way too; the error queue says whose.
                    Err(error) => {
                        trace!(%error, "receive error ignored");
                        errors += 1;
                    }
                }
            }
            for _ in 0..BATCH {
                match icmp::next(&self.socket) {
                    Ok(Some(undelivered)) => self.undelivered(undelivered).await,
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
            if errors == BATCH {
                debug!("the socket gives only errors, pausing");
                self.broken.store(true, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    fn take(&self, datagram: &[u8], source: SocketAddr) {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let Some(message) = content(datagram) else {
            self.shared.not_sip.fetch_add(1, Ordering::Relaxed);
            return trace!(%source, length = datagram.len(), "no SIP, datagram dropped");
        };
        let mut received = Received::new(source, Bytes::copy_from_slice(message));
        received.flow = self.shared.flow(source);
        if self.inbound.try_received(received).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            trace!(%source, "queue full, datagram dropped");
        }
    }

    /// Ends the flows to a remote that cannot be reached.
    async fn undelivered(&self, icmp::Undelivered { to, error }: icmp::Undelivered) {
        let flows = self.shared.flows().remove(&key(to)).unwrap_or_default();
        for flow in flows {
            debug!(%flow, %to, %error, "not delivered");
            self.inbound.failed(flow, error.clone()).await;
        }
    }
}

/// What of a datagram is handed over: a keep-alive, or a message without the empty lines before it; none of what is
/// neither.
fn content(datagram: &[u8]) -> Option<&[u8]> {
    let is_stun = || {
        datagram.len() >= STUN_HEADER
            && datagram.first().is_some_and(|first| first & 0xc0 == 0)
            && datagram.get(4..8) == Some(&STUN_COOKIE)
    };
    if matches!(datagram, b"\r\n" | b"\r\n\r\n") || is_stun() {
        return Some(datagram);
    }
    let start = datagram
        .iter()
        .position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let message = datagram.get(start..)?;
    let line = message
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .next()
        .unwrap_or_default();
    line.windows(VERSION.len())
        .any(|window| window.eq_ignore_ascii_case(VERSION))
        .then_some(message)
}

/// In the first line of every request and response (RFC 3261 §7)
const VERSION: &[u8] = b"SIP/2.0";
/// The shortest STUN message, and what tells it from others (RFC 5389 §6)
const STUN_HEADER: usize = 20;
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// How often a datagram is offered to a socket that reports errors: those of earlier ones, mostly
const TRIES: u32 = 3;
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
            [
                Received::new(target.address(), Bytes::from_static(b"SIP/2.0 200"))
                    .with_flow(FlowId::new(1))
            ]
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

    #[test]
    fn messages_and_keep_alives_are_handed_over_and_garbage_is_not() {
        let stun = b"\0\x01\0\0\x21\x12\xa4\x42abcdefghijkl";
        for whole in [
            &b"\r\n"[..],
            b"\r\n\r\n",
            stun,
            b"OPTIONS sip:a@b SIP/2.0\r\n\r\n",
            b"sip/2.0 200 OK\r\n",
        ] {
            assert_eq!(content(whole), Some(whole));
        }
        assert_eq!(
            content(b"\r\n\r\nSIP/2.0 200 OK\r\n"),
            Some(&b"SIP/2.0 200 OK\r\n"[..])
        );
        let not_stun = b"\x80\x01\0\0\x21\x12\xa4\x42abcdefghijkl";
        for garbage in [
            &b""[..],
            b"\0",
            b"\r\n\0\0",
            b"\r\n\r\n\r\n",
            not_stun,
            &stun[..19],
            b"GET / HTTP/1.1\r\n\r\n",
            b"x\r\nVia: SIP/2.0/UDP a\r\n",
        ] {
            assert_eq!(content(garbage), None, "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn garbage_is_dropped_and_counted() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let transport = UdpTransport::bind(config(Protocol::Udp, "127.0.0.1:0"))
            .await
            .unwrap();
        let (inbound, mut arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let address = transport.local_addr().unwrap();
        peer.send_to(b"", address).await.unwrap();
        peer.send_to(b"\xff\xfe", address).await.unwrap();
        peer.send_to(b"\r\n\r\n", address).await.unwrap();
        let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
            panic!("not received")
        };
        assert_eq!(*batch[0].message, *b"\r\n\r\n");
        assert_eq!((transport.not_sip(), transport.dropped()), (2, 0));
    }

    /// Two flows, one to a port that nobody listens on.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    async fn a_closed_port_ends_its_flow_alone(host: &str) {
        let Ok(peer) = UdpSocket::bind((host, 0)).await else {
            return;
        };
        let closed = UdpSocket::bind((host, 0)).await.unwrap();
        let nobody = Target::new(Protocol::Udp, closed.local_addr().unwrap());
        drop(closed);
        let transport = UdpTransport::bind(config(Protocol::Udp, "0.0.0.0:0"))
            .await
            .unwrap();
        let (inbound, mut arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let target = Target::new(Protocol::Udp, peer.local_addr().unwrap());
        let good = transport.open(FlowId::new(1), &target).await.unwrap();
        let bad = transport.open(FlowId::new(2), &nobody).await.unwrap();
        bad.send(Bytes::from_static(b"REGISTER")).unwrap();
        let arrival = within(arrivals.recv()).await;
        assert!(
            matches!(&arrival, Some(Arrival::Failed(id, FlowError::Refused)) if id.number() == 2),
            "{arrival:?}"
        );
        // Told once, though more datagrams are refused.
        bad.send(Bytes::from_static(b"REGISTER")).unwrap();
        good.send(Bytes::from_static(b"REGISTER")).unwrap();
        let (_, source) = within(peer.recv_from(&mut [0; 64])).await.unwrap();
        peer.send_to(b"SIP/2.0 200", source).await.unwrap();
        let arrival = within(arrivals.recv()).await;
        assert!(
            matches!(&arrival, Some(Arrival::Received(batch)) if batch[0].flow == Some(FlowId::new(1))),
            "{arrival:?}"
        );
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[tokio::test]
    async fn a_closed_port_ends_its_flow_alone_over_ipv4() {
        a_closed_port_ends_its_flow_alone("127.0.0.1").await;
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[tokio::test]
    async fn a_closed_port_ends_its_flow_alone_over_ipv6() {
        a_closed_port_ends_its_flow_alone("::1").await;
    }

    #[tokio::test]
    async fn a_socket_that_is_of_no_use_is_replaced_on_its_port() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let transport = UdpTransport::bind(config(Protocol::Udp, "127.0.0.1:0"))
            .await
            .unwrap();
        let (inbound, mut arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let target = Target::new(Protocol::Udp, peer.local_addr().unwrap());
        let first = transport.open(FlowId::new(1), &target).await.unwrap();
        let address = transport.local_addr().unwrap();
        let broken = transport.sockets().of(address).clone().unwrap();
        broken.broken.store(true, Ordering::Relaxed);

        let second = transport.open(FlowId::new(2), &target).await.unwrap();
        let socket = transport.sockets().of(address).clone().unwrap();
        assert!(!Arc::ptr_eq(&socket, &broken));
        assert_eq!(first.info(), second.info());
        drop((first, broken));
        tokio::task::yield_now().await;
        second.send(Bytes::from_static(b"REGISTER")).unwrap();
        let (_, source) = within(peer.recv_from(&mut [0; 64])).await.unwrap();
        assert_eq!(source, address);
        peer.send_to(b"SIP/2.0 200", source).await.unwrap();
        assert!(matches!(
            within(arrivals.recv()).await,
            Some(Arrival::Received(_))
        ));
    }

    #[tokio::test]
    async fn a_bound_address_refuses_the_other_family_by_name() {
        let transport = UdpTransport::bind(config(Protocol::Udp, "127.0.0.1:0"))
            .await
            .unwrap();
        let target = Target::new(Protocol::Udp, "[2001:db8::1]:5060".parse().unwrap());
        let error = transport.open(FlowId::new(1), &target).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            "address not available: bound to 127.0.0.1, which does not reach [2001:db8::1]:5060"
        );
    }
}
