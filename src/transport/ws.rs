//! SIP over WebSocket: HTTP's handshake over TCP or TLS, then one message of SIP in each of WebSocket (RFC 7118).

mod config;
mod connection;
mod content;
mod failure;
mod handshake;

#[cfg(test)]
mod tests;

pub use config::{WsConfig, WsConfigError};

use super::local::started_twice;
use super::stream::{Meaning, StreamFlow, dial};
use super::tls::{self, Names};
use crate::{
    Flow, FlowError, FlowId, FlowInfo, Inbound, Protocol, Target, Transport, TransportConfig,
};
use async_trait::async_trait;
use connection::Connection;
use std::hash::{BuildHasher, RandomState};
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// SIP over WebSocket, as a client: `ws` or `wss`, by the protocol of its [`TransportConfig`] (feature `ws`, RFC 7118)
///
/// The server has to agree on the subprotocol `sip`. Each flow is a connection of its own and ends with its last
/// [`Flow`] handle, with a close frame. A whole SIP message goes into one WebSocket message, as text where it is UTF-8,
/// else as binary; both are taken. An answer to us that is cut short or has another message behind it ends the
/// connection (RFC 7118 §5). CRLFCRLF that is sent goes out as a Ping, and the Pong is handed over as CRLF, so
/// that a connection that died silently is found out as over TCP; Pings of the server, and CRLFCRLF in a message, are
/// answered (RFC 7118 §6).
///
/// Nobody reaches us but over the connection: Via and Contact carry a host under `.invalid` (RFC 7118 Annex B.1), unless
/// the configuration has an external address. It is drawn for each server and stays the same when a connection is made
/// again, so that the binding is replaced, and not another one added.
///
/// Over `wss` the server is verified as by [`TlsTransport`](crate::TlsTransport), and wildcards in a certificate count
/// too: HTTPS has them (RFC 7118 §9.1). It never listens.
#[derive(Debug)]
pub struct WsTransport {
    config: TransportConfig,
    in_force: Mutex<Arc<InForce>>,
    /// Draws what stands before `.invalid`
    hosts: RandomState,
    started: OnceLock<Inbound>,
}

#[derive(Debug)]
struct InForce {
    config: WsConfig,
    tls: Arc<tls::InForce>,
}

impl InForce {
    fn new(config: WsConfig) -> Arc<Self> {
        let tls = tls::InForce::of_a_client(config.tls().clone(), Names::Wildcards);
        Arc::new(Self {
            config,
            tls: Arc::new(tls),
        })
    }
}

impl WsTransport {
    /// A transport by its configurations; nothing is bound or read before it is started. One is for `ws` or for `wss`.
    #[must_use]
    pub fn new(config: TransportConfig, ws: WsConfig) -> Self {
        Self {
            config,
            in_force: Mutex::new(InForce::new(ws)),
            hosts: RandomState::new(),
            started: OnceLock::new(),
        }
    }

    /// Puts another configuration in force, for a new token in the path or a header, for other roots: new connections
    /// go by it, those that live go on. The system's roots are read anew.
    pub fn renew(&self, ws: WsConfig) {
        let renewed = InForce::new(ws);
        if self.started.get().is_some() {
            self.warn(&renewed);
        }
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
    }

    fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn warn(&self, in_force: &InForce) {
        if self.config.protocol().is_secure() {
            in_force.tls.warn(self.config.name());
        }
    }

    /// The addresses of a connection, and what Via and Contact say.
    fn info(&self, stream: &TcpStream, to: &Target) -> Result<FlowInfo, FlowError> {
        let local = stream.local_addr()?;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let info = FlowInfo::new(to.protocol(), local, to.address());
        let said = self.config.advertised(local, to.address().ip());
        let said = said.unwrap_or_else(|| format!("{:016x}.invalid", self.hosts.hash_one(to)));
        Ok(info.with_sent_by(said.as_str()).with_contact(said))
    }
}

#[async_trait]
impl Transport for WsTransport {
    fn protocols(&self) -> &[Protocol] {
        match self.config.protocol() {
            Protocol::Wss => &[Protocol::Wss],
            _ => &[Protocol::Ws],
        }
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        if self.started.get().is_some() {
            return Err(started_twice());
        }
        if !self.config.protocol().is_websocket() {
            // Via and Contact would lie.
            return Err(FlowError::NoTransport(self.config.protocol()));
        }
        if self.config.listen() {
            return Err(FlowError::Setting {
                option: "listen",
                value: "true".into(),
                kind: ErrorKind::Unsupported,
                message: "a WebSocket transport only connects".into(),
            });
        }
        self.warn(&self.in_force());
        super::socket::check(&self.config)?;
        self.started.set(inbound).map_err(|_| started_twice())
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        if to.protocol() != self.config.protocol() {
            return Err(FlowError::NoTransport(to.protocol()));
        }
        let Some(inbound) = self.started.get() else {
            return Err(
                Error::new(ErrorKind::NotConnected, "the transport was not started").into(),
            );
        };
        let in_force = self.in_force();
        let open = Open {
            id,
            inbound,
            request: handshake::request(&in_force.config, to)?,
        };
        if to.protocol().is_secure() {
            let towards = in_force.tls.towards(to.host()).await?;
            let stream = dial(&self.config, to.address()).await?;
            let info = self.info(&stream, to)?;
            let (stream, info) = towards.secure(stream, info).await?;
            open.upgrade(stream, info, tls::meaning).await
        } else {
            let stream = dial(&self.config, to.address()).await?;
            let info = self.info(&stream, to)?;
            open.upgrade(stream, info, FlowError::from).await
        }
    }
}

/// What it takes to make a flow of a connection
struct Open<'a> {
    id: FlowId,
    inbound: &'a Inbound,
    request: handshake::Request,
}

impl Open<'_> {
    async fn upgrade<S>(
        self,
        stream: S,
        info: FlowInfo,
        meaning: Meaning,
    ) -> Result<Arc<dyn Flow>, FlowError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let socket = handshake::shake(self.request, stream, meaning).await?;
        // From here on nothing waits: a dropped future leaves no connection behind.
        let source = info.remote();
        let (flow, queue) = StreamFlow::new(info);
        let end = flow.end(self.id, self.inbound, meaning);
        let connection = Connection::new(socket, queue, source);
        tokio::spawn(connection.run(end, self.inbound.clone()));
        Ok(flow)
    }
}
