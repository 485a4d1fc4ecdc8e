//! SIP over TLS: who the peer is, by RFC 5922; what a connection is, as over TCP.

mod certificate;
mod config;
mod connector;
mod failure;
mod verifier;

#[cfg(test)]
pub(super) mod tests;

#[cfg(feature = "ws")]
pub(super) use certificate::{bare, printable};
pub use config::{TlsConfig, TlsConfigError, TlsVersion};
pub use connector::TlsConnector;
#[cfg(feature = "ws")]
pub(super) use failure::stream as meaning;
pub(super) use verifier::Names;

use super::local::started_twice;
use super::stream::{Connection, Listening, StreamFlow, addresses, dial};
use crate::{
    Flow, FlowError, FlowId, FlowInfo, Inbound, Protocol, Target, TlsError, Transport,
    TransportConfig,
};
use async_trait::async_trait;
use certificate::Parsed;
use std::fmt;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::ServerConfig;
use tracing::{debug, trace, warn};

/// SIP over TLS (feature `tls`)
///
/// A server has to show a certificate for the host of the URI in the configuration, whatever the name service made of
/// it: as a DNS name, an address or a SIP URI in `subjectAltName`, whole, without wildcards, never as a common name
/// (RFC 5922 §7). Each flow is a connection of its own, verified by itself, and ends with its last [`Flow`] handle.
///
/// With `listen` set, connections that peers open are taken too, under the certificate of the
/// [`TlsConfig`]; peers are not asked for theirs. Via and Contact then carry the listener's port (DECISIONS D17).
#[derive(Debug)]
pub struct TlsTransport {
    config: TransportConfig,
    in_force: Arc<Mutex<Arc<InForce>>>,
    /// That of the transport whose place it takes
    inherited: Option<Arc<TcpListener>>,
    started: OnceLock<Started>,
}

#[derive(Debug)]
struct Started {
    inbound: Inbound,
    listening: Option<Listening>,
}

/// A configuration, and what was made of it
pub(super) struct InForce {
    config: TlsConfig,
    names: Names,
    client: OnceCell<Arc<ClientConfig>>,
    server: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl InForce {
    fn new(config: TlsConfig, listen: bool) -> Result<Self, TlsError> {
        let server = listen.then(|| config.server()).transpose()?;
        Ok(Self {
            server,
            ..Self::of_a_client(config, Names::Whole)
        })
    }

    /// One that only connects, to peers whose certificates name them so.
    pub(super) fn of_a_client(config: TlsConfig, names: Names) -> Self {
        Self {
            config,
            names,
            client: OnceCell::new(),
            server: None,
        }
    }

    /// What it takes to connect to the peer at `host`.
    pub(super) async fn towards(self: &Arc<Self>, host: &str) -> Result<Towards, FlowError> {
        Ok(Towards {
            name: self.config.name_of(host).map_err(FlowError::Tls)?,
            client: self.client().await.map_err(FlowError::Tls)?,
            in_force: Arc::clone(self),
        })
    }

    /// Says that peers are not verified, where they are not.
    pub(super) fn warn(&self, transport: &str) {
        if self.config.believes_anybody() {
            warn!(%transport, "peers are not verified: whoever is on the path can read and forge everything");
        }
    }

    /// The client, made when it is first needed: a program without TLS servers does not read the system's roots.
    async fn client(self: &Arc<Self>) -> Result<Arc<ClientConfig>, TlsError> {
        let make = || async {
            let this = Arc::clone(self);
            tokio::task::spawn_blocking(move || this.config.client(this.names))
                .await
                .unwrap_or_else(|error| Err(TlsError::Broken(error.to_string().into())))
        };
        self.client.get_or_try_init(make).await.cloned()
    }
}

/// A connection to come, to one peer
pub(super) struct Towards {
    in_force: Arc<InForce>,
    name: ServerName<'static>,
    client: Arc<ClientConfig>,
}

impl Towards {
    /// Secures a connection; its certificates go into `info`.
    pub(super) async fn secure(
        self,
        stream: TcpStream,
        info: FlowInfo,
    ) -> Result<(TlsStream<TcpStream>, FlowInfo), FlowError> {
        let connector = tokio_rustls::TlsConnector::from(self.client);
        let stream = connector
            .connect(self.name, stream)
            .await
            .map_err(failure::handshake)?;
        let certificates = stream.get_ref().1.peer_certificates();
        let info = with_certificates(info, &self.in_force.config, certificates);
        if info.is_unverified() {
            warn!(peer = %info.remote(), "the peer's certificate was not checked");
        }
        Ok((stream, info))
    }
}

impl TlsTransport {
    /// A transport by its configurations; nothing is bound or read before it is started.
    ///
    /// # Errors
    /// [`TlsError::NoCertificate`] when it shall listen and has none.
    pub fn new(config: TransportConfig, tls: TlsConfig) -> Result<Self, TlsError> {
        let in_force = Arc::new(InForce::new(tls, config.listen())?);
        Ok(Self {
            config,
            in_force: Arc::new(Mutex::new(in_force)),
            inherited: None,
            started: OnceLock::new(),
        })
    }

    /// A transport that is to take the place of one that runs (`Agent::add_transport`): where both listen on one
    /// address, that is not bound again. For other certificates alone there is [`renew`](Self::renew).
    ///
    /// # Errors
    /// [`TlsError::NoCertificate`] when it shall listen and has none.
    pub fn in_place_of(
        config: TransportConfig,
        tls: TlsConfig,
        old: &Self,
    ) -> Result<Self, TlsError> {
        let started = old.started.get();
        let listening = started.and_then(|started| started.listening.as_ref());
        let inherited = listening.and_then(|listening| listening.pass_on(&old.config, &config));
        Ok(Self {
            inherited,
            ..Self::new(config, tls)?
        })
    }

    /// Puts another configuration in force, for a renewed certificate, new roots, another version: new connections go
    /// by it, those that live go on. The system's roots are read anew.
    ///
    /// # Errors
    /// [`TlsError::NoCertificate`] when the transport listens and it has none; the old one stays then.
    pub fn renew(&self, tls: TlsConfig) -> Result<(), TlsError> {
        let renewed = Arc::new(InForce::new(tls, self.config.listen())?);
        if self.started.get().is_some() {
            renewed.warn(self.config.name());
        }
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// The listener's address, once started with `listen` set.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let listening = self.started.get()?.listening.as_ref()?;
        Some(listening.address)
    }

    fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&current(&self.in_force))
    }
}

fn current(in_force: &Mutex<Arc<InForce>>) -> Arc<InForce> {
    Arc::clone(&in_force.lock().unwrap_or_else(PoisonError::into_inner))
}

#[async_trait]
impl Transport for TlsTransport {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Tls]
    }

    fn suits(&self, to: &Target) -> bool {
        self.config.bind().is_ipv4() == to.address().is_ipv4()
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        if self.started.get().is_some() {
            return Err(started_twice());
        }
        if self.config.protocol() != Protocol::Tls {
            // Via and Contact would lie.
            return Err(FlowError::NoTransport(self.config.protocol()));
        }
        self.in_force().warn(self.config.name());
        let listening = if self.config.listen() {
            let accept = Arc::new(Accept {
                config: self.config.clone(),
                in_force: Arc::clone(&self.in_force),
                inbound: inbound.clone(),
            });
            let take = move |stream, remote, listener, permit| {
                let accept = Arc::clone(&accept);
                tokio::spawn(async move { accept.take(stream, remote, listener, permit).await });
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
        if to.protocol() != Protocol::Tls {
            return Err(FlowError::NoTransport(to.protocol()));
        }
        let Some(started) = self.started.get() else {
            return Err(
                Error::new(ErrorKind::NotConnected, "the transport was not started").into(),
            );
        };
        let towards = self.in_force().towards(to.host()).await?;
        let stream = dial(&self.config, to.address()).await?;
        let listener = started
            .listening
            .as_ref()
            .map(|listening| listening.address);
        let info = addresses(&self.config, &stream, to.address(), listener)?;
        let (stream, info) = towards.secure(stream, info).await?;
        // From here on nothing waits: a dropped future leaves no connection behind.
        let (flow, queue) = StreamFlow::new(info);
        let (from_peer, to_peer) = tokio::io::split(stream);
        let connection = Connection {
            id,
            flow: &flow,
            queue,
            permit: None,
            inbound: started.inbound.clone(),
            meaning: failure::stream,
        };
        connection.start(from_peer, to_peer);
        Ok(flow)
    }
}

/// What the certificates of a connection say to whoever registers on it.
fn with_certificates(
    mut info: FlowInfo,
    config: &TlsConfig,
    peer: Option<&[tokio_rustls::rustls::pki_types::CertificateDer<'_>]>,
) -> FlowInfo {
    if let Some(parsed) = peer
        .and_then(<[_]>::first)
        .and_then(|certificate| Parsed::read(certificate))
    {
        info = info.with_peer_certificate_until(parsed.not_after);
    }
    if let Some(until) = config.shown_until() {
        info = info.with_own_certificate_until(until);
    }
    info.with_unverified(config.believes_anybody())
}

/// What it takes to take a peer's connection
struct Accept {
    config: TransportConfig,
    in_force: Arc<Mutex<Arc<InForce>>>,
    inbound: Inbound,
}

impl Accept {
    async fn take(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        listener: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) {
        let Some(server) = current(&self.in_force).server.clone() else {
            return;
        };
        let Ok(info) = addresses(&self.config, &stream, remote, Some(listener)) else {
            return;
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let error = failure::handshake(error);
                return debug!(%remote, %error, "a peer's handshake failed");
            }
            Err(_) => return debug!(%remote, "a peer's handshake took too long"),
        };
        let (flow, queue) = StreamFlow::new(info);
        let id = self.inbound.accepted(Arc::clone(&flow) as Arc<dyn Flow>);
        trace!(%remote, %id, "accepted");
        let (from_peer, to_peer) = tokio::io::split(stream);
        let connection = Connection {
            id,
            flow: &flow,
            queue,
            permit: Some(permit),
            inbound: self.inbound.clone(),
            meaning: failure::stream,
        };
        connection.start(from_peer, to_peer);
    }
}

/// How long a peer that connects to us may take for its handshake: as long as we for ours
const HANDSHAKE: Duration = Duration::from_secs(8);
