//! Where a request goes and what carries it.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A transport protocol as Via names it (RFC 3261 §20.42)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Protocol {
    /// Datagrams, retransmitted by the transaction
    Udp,
    /// A stream, framed by Content-Length
    Tcp,
    /// A stream inside TLS
    Tls,
    /// WebSocket messages over TCP (RFC 7118)
    Ws,
    /// WebSocket messages inside TLS (RFC 7118)
    Wss,
}

impl Protocol {
    /// Whether the protocol itself delivers or fails, so that requests are not retransmitted (RFC 3261 §17.1.2.2).
    #[must_use]
    pub const fn is_reliable(self) -> bool {
        !matches!(self, Self::Udp)
    }

    /// The name in upper case, as in Via.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Ws => "WS",
            Self::Wss => "WSS",
        }
    }

    /// The `transport` parameter of a Contact: the name, but `ws` for both WebSockets. TLS is the scheme's to say there,
    /// and there is no `wss` (RFC 7118 §5.2, §8.1).
    #[must_use]
    pub const fn contact_transport(self) -> &'static str {
        match self {
            Self::Ws | Self::Wss => "ws",
            Self::Udp | Self::Tcp | Self::Tls => self.name(),
        }
    }

    /// The port where a URI names none (RFC 3261 §19.1.2, RFC 7118 §5.5).
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Tls => 5061,
            Self::Udp | Self::Tcp => 5060,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }

    /// Whether only this protocol's like may carry `sips` (RFC 3261 §26.2.2).
    #[must_use]
    pub const fn is_secure(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    /// Whether messages are framed by a WebSocket, in the clear or inside TLS (RFC 7118).
    #[must_use]
    pub const fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// Whether a connection is to one host of a URI, not to its address alone: TLS proves the name (RFC 5922 §7.3), and
    /// the WebSocket handshake asks for it (`Host`, RFC 6455 §4.1).
    pub(crate) const fn is_to_a_host(self) -> bool {
        self.is_secure() || self.is_websocket()
    }

    /// The protocol that a `transport=` parameter names, in any case. `wss` is in no RFC, and deployed.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Udp, Self::Tcp, Self::Tls, Self::Ws, Self::Wss]
            .into_iter()
            .find(|p| p.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One place to send a request to: an address, a protocol, and the host name it was found by (RFC 3263)
///
/// Cheap to clone: many registrations are bound at few targets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target(Arc<Place>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    protocol: Protocol,
    address: SocketAddr,
    host: Arc<str>,
}

impl Target {
    /// The target at `address`; its host name is the address until [`with_host`](Self::with_host) says otherwise.
    #[must_use]
    pub fn new(protocol: Protocol, address: SocketAddr) -> Self {
        Self(Arc::new(Place {
            protocol,
            address,
            host: address.ip().to_string().into(),
        }))
    }

    /// The target at `address` that was found by a name.
    pub(crate) fn named(protocol: Protocol, address: SocketAddr, host: Arc<str>) -> Self {
        Self(Arc::new(Place {
            protocol,
            address,
            host,
        }))
    }

    /// Sets the host name that was asked for: the host of the URI in the configuration, whatever SRV or `maddr` made
    /// of it. A transport that proves who the peer is looks for this name in its certificate (RFC 5922 §7.3), and
    /// never for one that came from the name service.
    #[must_use]
    pub fn with_host(mut self, host: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.0).host = host.into();
        self
    }

    /// The transport protocol.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.0.protocol
    }

    /// The address and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The host name that was asked for, as [`with_host`](Self::with_host) has it, or the address as text; an IPv6
    /// address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// The same place by another protocol.
    pub(crate) fn over(&self, protocol: Protocol) -> Self {
        Self::named(protocol, self.address(), Arc::clone(&self.0.host))
    }

    /// Whether somebody else has it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol(), self.address())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("protocol", &self.protocol())
            .field("address", &self.address())
            .field("host", &self.host())
            .finish()
    }
}

/// What a request needs to know of the flow it goes out on
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowInfo {
    protocol: Protocol,
    local: SocketAddr,
    remote: SocketAddr,
    sent_by: Option<Arc<str>>,
    contact: Option<Arc<str>>,
    peer_certificate_until: Option<SystemTime>,
    own_certificate_until: Option<SystemTime>,
    unverified: bool,
    keep_alive: KeepAlive,
    mapped: Option<SocketAddr>,
}

impl FlowInfo {
    /// A flow between two addresses. `local` must be an address that reaches the remote, never 0.0.0.0 or `::`.
    #[must_use]
    pub const fn new(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            protocol,
            local,
            remote,
            sent_by: None,
            contact: None,
            peer_certificate_until: None,
            own_certificate_until: None,
            unverified: false,
            keep_alive: KeepAlive::Ours,
            mapped: None,
        }
    }

    /// Says who sends keep-alives; default [`KeepAlive::Ours`].
    #[must_use]
    pub const fn with_keep_alive(mut self, by: KeepAlive) -> Self {
        self.keep_alive = by;
        self
    }

    /// Sets where the peer sees us, as far as that is known; default unknown.
    #[must_use]
    pub const fn with_mapped(mut self, address: Option<SocketAddr>) -> Self {
        self.mapped = address;
        self
    }

    /// Who sends keep-alives on this flow.
    #[must_use]
    pub const fn keep_alive(&self) -> KeepAlive {
        self.keep_alive
    }

    /// Where the peer sees us: our end, or what a NAT made of it (`received` and `rport`, RFC 3581; STUN). None before an
    /// answer has shown it; kept for the flow's life.
    #[must_use]
    pub const fn mapped(&self) -> Option<SocketAddr> {
        self.mapped
    }

    /// Whether the transport says what Contact shows, so that nothing else takes its place.
    pub(crate) const fn says_contact(&self) -> bool {
        self.contact.is_some() || self.sent_by.is_some()
    }

    /// Sets when the peer's certificate expires; default none. Within
    /// [`Policy::certificate_warning`](crate::Policy::certificate_warning) of it a grant comes with a warning.
    #[must_use]
    pub const fn with_peer_certificate_until(mut self, at: SystemTime) -> Self {
        self.peer_certificate_until = Some(at);
        self
    }

    /// Sets when our own certificate, if the peer may have asked for it, expires; default none. A grant warns of it
    /// as of the peer's.
    #[must_use]
    pub const fn with_own_certificate_until(mut self, at: SystemTime) -> Self {
        self.own_certificate_until = Some(at);
        self
    }

    /// Says that the peer did not prove who it is, though the protocol could have: a grant warns of it. Default `false`.
    #[must_use]
    pub const fn with_unverified(mut self, unverified: bool) -> Self {
        self.unverified = unverified;
        self
    }

    /// When the peer's certificate expires, where it has one.
    #[must_use]
    pub const fn peer_certificate_until(&self) -> Option<SystemTime> {
        self.peer_certificate_until
    }

    /// When our own certificate expires, where we have one.
    #[must_use]
    pub const fn own_certificate_until(&self) -> Option<SystemTime> {
        self.own_certificate_until
    }

    /// Whether nobody checked who the peer is, though the protocol could have.
    #[must_use]
    pub const fn is_unverified(&self) -> bool {
        self.unverified
    }

    /// Sets the host and port for Via, where that is not the local address (an external address, say).
    #[must_use]
    pub fn with_sent_by(mut self, host_and_port: impl Into<Arc<str>>) -> Self {
        self.sent_by = Some(host_and_port.into());
        self
    }

    /// Sets the host and port for Contact: a listener's port, or an external address.
    #[must_use]
    pub fn with_contact(mut self, host_and_port: impl Into<Arc<str>>) -> Self {
        self.contact = Some(host_and_port.into());
        self
    }

    /// The transport protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Our end.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// The other end.
    #[must_use]
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Host and port for Via: as set, or the local address, IPv6 in brackets, without a zone id.
    #[must_use]
    pub fn sent_by(&self) -> Cow<'_, str> {
        self.sent_by
            .as_deref()
            .map_or_else(|| Cow::Owned(host_port(self.local)), Cow::Borrowed)
    }

    /// Host and port for Contact: as set, else as in Via (DECISIONS: a listener's port, else the flow's own).
    #[must_use]
    pub fn contact(&self) -> Cow<'_, str> {
        self.contact
            .as_deref()
            .map_or_else(|| self.sent_by(), Cow::Borrowed)
    }
}

/// Who sends keep-alives on a flow
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepAlive {
    /// The pool, as [`KeepAlivePolicy`](crate::KeepAlivePolicy) has it
    #[default]
    Ours,
    /// The host, who owns the socket and knows its other users; the pool sends none
    Hosts,
}

/// What a 2xx to a REGISTER says of keep-alives (RFC 5626 §4.4, RFC 6223 §4.3)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeepAliveTerms {
    /// Whether the peer has agreed to answer: `Require: outbound`, `Flow-Timer`, or a `keep` with a value
    pub negotiated: bool,
    /// The seconds it asks for: `Flow-Timer`, or a `keep` above 0
    pub interval: Option<u32>,
}

/// `host:port` for the wire: IPv6 in brackets and without its zone id, which means nothing to anybody else
pub(crate) fn host_port(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.to_string(),
        SocketAddr::V6(v6) => format!("[{}]:{}", v6.ip(), v6.port()),
    }
}

/// Why a flow could not be made, or ended
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// The other side refused the connection, or the network said that nobody is there.
    #[error("connection refused")]
    Refused,
    /// The other side closed the connection in order.
    #[error("connection closed by the peer")]
    Closed,
    /// The other side reset the connection.
    #[error("connection reset by the peer")]
    Reset,
    /// No connection within the time allowed.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// Nothing was sent: the transport's queue is full, the message stays with the sender. An I/O error of the kind
    /// `WouldBlock` becomes this.
    #[error("send queue is full")]
    Full,
    /// No transport speaks this protocol.
    #[error("no transport for {0}")]
    NoTransport(Protocol),
    /// No transport has this name (option `transport`).
    #[error("no transport named {0:?}")]
    UnknownTransport(Arc<str>),
    /// The peer sent what is no SIP, or a message beyond the limits.
    #[error("not SIP: {0}")]
    NotSip(Arc<str>),
    /// No TLS connection could be made, or it ended against its rules.
    #[error(transparent)]
    Tls(TlsError),
    /// No WebSocket connection could be made, or it ended against its rules.
    #[error(transparent)]
    WebSocket(WsError),
    /// Nothing was sent: the target has just not answered others, or asked to be left alone (Retry-After, D11).
    #[error("not asked, as it {}", neglected(.retry_after))]
    TargetDown {
        /// For how much longer it asked to be left alone
        retry_after: Option<Duration>,
    },
    /// The system does not take an option of the transport: an address that is not ours or is taken, an interface that
    /// is not there, a priority that needs a privilege.
    #[error("transport option {option} = {value}: {message}")]
    Setting {
        /// The option, as [`TransportConfig`](crate::TransportConfig) names it
        option: &'static str,
        /// Its value
        value: Arc<str>,
        /// The kind of the system's error, as std names it
        kind: std::io::ErrorKind,
        /// The system's text
        message: Arc<str>,
    },
    /// The operating system's word.
    #[error("{kind}: {message}")]
    Io {
        /// The kind, as std names it
        kind: std::io::ErrorKind,
        /// The system's text
        message: Arc<str>,
    },
    /// A keep-alive was not answered in time, where an answer was due (RFC 5626 §4.4.1, §4.4.2).
    #[error("no answer to a keep-alive within {0:?}")]
    KeepAliveUnanswered(Duration),
    /// A keep-alive was answered with a STUN error (RFC 5626 §4.4.2).
    #[error("keep-alive refused with STUN error {0}")]
    KeepAliveRefused(u16),
    /// A NAT on the way has given us another address: what goes to the old one does not arrive (RFC 5626 §4.4.2).
    #[error("mapped address changed from {from} to {to}")]
    MappingChanged {
        /// Where the peer saw us before
        from: SocketAddr,
        /// Where it sees us now
        to: SocketAddr,
    },
    /// The host or the agent closed it.
    #[error("closed by us")]
    ClosedByUs,
}

/// What a target that is left alone has done, to this registration or another one
const fn neglected(retry_after: &Option<Duration>) -> &'static str {
    match retry_after {
        Some(_) => "wants to be left alone for a while",
        None => "has just not answered",
    }
}

impl FlowError {
    /// Whether it says something of the target, rather than of our own end.
    pub(crate) const fn is_of_the_target(&self) -> bool {
        match self {
            Self::Refused
            | Self::Closed
            | Self::Reset
            | Self::ConnectTimeout(_)
            | Self::NotSip(_)
            | Self::KeepAliveUnanswered(_)
            | Self::Io { .. } => true,
            Self::KeepAliveRefused(_)
            | Self::MappingChanged { .. }
            | Self::Full
            | Self::Setting { .. }
            | Self::NoTransport(_)
            | Self::UnknownTransport(_)
            | Self::TargetDown { .. }
            | Self::ClosedByUs => false,
            // It is what our own headers say that does not please.
            Self::WebSocket(WsError::Refused { status, .. }) => !matches!(status, 401 | 403 | 407),
            Self::WebSocket(_) => true,
            Self::Tls(error) => !matches!(
                error,
                TlsError::Name(_) | TlsError::NoRoots(_) | TlsError::NoCertificate
            ),
        }
    }
}

/// What went wrong in TLS
///
/// The texts name the certificate, the name or the alert at fault. What a peer sent comes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The peer's certificate, or one of its issuers', has expired.
    #[error("the peer's certificate has expired")]
    Expired,
    /// The peer's certificate, or one of its issuers', is not valid yet.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// No trusted root vouches for the peer's certificate: a private CA, or a self-signed certificate. Either can be named
    /// as a root.
    #[error("no trusted root vouches for the peer's certificate")]
    UnknownIssuer,
    /// The certificate is good, but not for the name that was asked for (RFC 5922 §7.3).
    #[error("the peer's certificate is not for {asked:?} but for {found:?}")]
    WrongName {
        /// The host of the URI
        asked: Arc<str>,
        /// The names that the certificate has, with their kind: `DNS:…`, `IP:…`, `URI:…`
        found: Box<[Arc<str>]>,
    },
    /// The peer's certificate is unusable for another reason.
    #[error("the peer's certificate is unusable: {0}")]
    BadCertificate(Arc<str>),
    /// The peer ended the handshake over our certificate, or over our having none: the alert it sent.
    #[error("the peer does not accept our certificate, or that we have none: {0}")]
    NotAccepted(Arc<str>),
    /// The peer ended the connection for another reason: the alert it sent (`ProtocolVersion`: it knows none of our
    /// versions; `UnrecognisedName`: it serves another domain).
    #[error("the peer refused TLS: {0}")]
    Alert(Arc<str>),
    /// The peer has no version or cipher suite in common with us.
    #[error("no TLS version or cipher suite in common: {0}")]
    Incompatible(Arc<str>),
    /// What the peer sent is no TLS: a plain SIP port, perhaps.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The host is no name that a certificate could have.
    #[error("{0:?} is no name that a certificate could have")]
    Name(Arc<str>),
    /// There is nobody to vouch for a peer: the system has no trusted roots, and the configuration names none.
    #[error("no trusted roots: {0}")]
    NoRoots(Arc<str>),
    /// A listener needs a certificate of its own.
    #[error("listening needs a certificate")]
    NoCertificate,
    /// The connection ended without `close_notify`.
    #[error("the peer cut the TLS connection")]
    Cut,
    /// The peer broke the rules of TLS.
    #[error("TLS failed: {0}")]
    Broken(Arc<str>),
}

/// What went wrong with a WebSocket (RFC 6455, RFC 7118)
///
/// What a peer sent comes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WsError {
    /// The HTTP server answered the handshake with another status than 101: 401 and 403 want other headers, 404 another
    /// path, 426 another version; a redirect is not followed.
    #[error("the peer refused the WebSocket with HTTP {status} {reason}")]
    Refused {
        /// The status
        status: u16,
        /// What the status means
        reason: Arc<str>,
    },
    /// The server makes WebSockets, but not for SIP: its answer lacks `Sec-WebSocket-Protocol: sip` (RFC 7118 §4.1).
    #[error("the peer did not agree on the WebSocket subprotocol sip")]
    Subprotocol,
    /// The answer to the handshake is no HTTP, or none that makes a WebSocket: a plain SIP or TLS port, perhaps.
    #[error("the peer does not speak WebSocket: {0}")]
    NotWebSocket(Arc<str>),
    /// The peer ended the connection with another code than 1000 and 1001 (RFC 6455 §7.4.1).
    #[error("the peer closed the WebSocket with {code} {reason:?}")]
    Closed {
        /// The code
        code: u16,
        /// The text that came with it
        reason: Arc<str>,
    },
    /// The connection ended without a close frame.
    #[error("the peer cut the WebSocket connection")]
    Cut,
    /// A message is longer than 1 MiB. A shorter one that is longer than [`MAX_HEAD`](crate::MAX_HEAD) and
    /// [`MAX_BODY`](crate::MAX_BODY) together ends nothing: its body is passed over.
    #[error("a WebSocket message of {length} bytes is too long")]
    TooLong {
        /// Its length, as far as it was announced
        length: usize,
    },
    /// The peer broke the rules of WebSocket, or sent an answer that is not one whole SIP message (RFC 7118 §5).
    #[error("WebSocket failed: {0}")]
    Broken(Arc<str>),
}

impl From<std::io::Error> for FlowError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::Reset
            }
            ErrorKind::UnexpectedEof => Self::Closed,
            // What a socket that must not wait says when it has no room: nothing was sent, and the flow lives.
            ErrorKind::WouldBlock => Self::Full,
            kind => Self::Io {
                kind,
                message: error.to_string().into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_socket_that_would_have_to_wait_is_full_and_not_lost() {
        assert_eq!(
            FlowError::from(Error::from(ErrorKind::WouldBlock)),
            FlowError::Full
        );
        let other = FlowError::from(Error::from(ErrorKind::PermissionDenied));
        assert!(
            matches!(
                other,
                FlowError::Io {
                    kind: ErrorKind::PermissionDenied,
                    ..
                }
            ),
            "{other:?}"
        );
    }
}
