//! How an agent is put together.

use super::actor::{ARRIVALS, Carrier, Core, Queue};
use super::clock::{Clock, SystemClock};
use super::events::ROOM;
use super::handle::Agent;
use super::metrics::Meter;
use crate::traits::FIRST_ACCEPTED;
use crate::{
    CredentialProvider, Entropy, FlowError, Host, Inbound, Pool, Protocol, Resolver, TcpTransport,
    Transport, TransportConfig, UdpTransport,
};
#[cfg(feature = "tls")]
use crate::{TlsConfig, TlsTransport};
#[cfg(feature = "ws")]
use crate::{WsConfig, WsTransport};

use rand::TryRng;
use rand::rngs::SysRng;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
/// Why an agent could not start
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// No transport was given.
    #[error("no transport: call `system_transports` or `transport`")]
    NoTransport,
    /// Two transports have this name.
    #[error("two transports named {0:?}")]
    DuplicateTransport(Arc<str>),
    /// A transport could not be bound or started.
    #[error("transport {name:?} could not start")]
    Transport {
        /// Its name
        name: Arc<str>,
        /// Why
        source: FlowError,
    },
    /// The agent has shut down, or is about to.
    #[error("the agent has shut down")]
    Closed,
    /// The operating system gave no random bytes.
    #[error("no entropy from the operating system: {0}")]
    Entropy(Arc<str>),
}

/// Puts an [`Agent`] together
#[must_use]
pub struct AgentBuilder {
    transports: Vec<(Arc<str>, Arc<dyn Transport>)>,
    system_transports: bool,
    resolver: Option<Arc<dyn Resolver>>,
    credentials: Option<Arc<dyn CredentialProvider>>,
    host: Option<Arc<dyn Host>>,
    clock: Arc<dyn Clock>,
    seed: Option<[u8; 32]>,
    registers_a_second: Option<NonZeroU32>,
}

impl AgentBuilder {
    pub(super) fn new() -> Self {
        Self {
            transports: Vec::new(),
            system_transports: false,
            resolver: None,
            credentials: None,
            host: None,
            clock: Arc::new(SystemClock::new()),
            seed: None,
            registers_a_second: None,
        }
    }

    /// Adds a transport under the name that the option `transport` uses; the first that speaks a protocol is the default for it.
    ///
    /// An `Arc` of a transport is one too, for an application that keeps a share of it; so it is with a resolver, a
    /// credential provider and a host.
    pub fn transport(
        mut self,
        name: impl Into<Arc<str>>,
        transport: impl Transport + 'static,
    ) -> Self {
        self.transports.push((name.into(), Arc::new(transport)));
        self
    }

    /// Adds the built-in transports `udp` and `tcp`, with the feature `tls` also `tls` with the system's roots, and with
    /// the feature `ws` also `ws` and `wss` with the path `/`, on any address and a free port; a name that
    /// [`transport`](Self::transport) gave to another one is that one's.
    ///
    /// WebSocket is used only where a URI says `transport=ws`, or a NAPTR record offers it.
    pub const fn system_transports(mut self) -> Self {
        self.system_transports = true;
        self
    }

    /// Sets who finds addresses; default `DnsResolver` with the feature `dns`, else [`SystemResolver`](crate::SystemResolver).
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Sets who knows the secrets of [`Credentials::provided`](crate::Credentials::provided); default nobody.
    pub fn credentials(mut self, provider: impl CredentialProvider + 'static) -> Self {
        self.credentials = Some(Arc::new(provider));
        self
    }

    /// Sets the application's callbacks; default none.
    pub fn host(mut self, host: impl Host + 'static) -> Self {
        self.host = Some(Arc::new(host));
        self
    }

    /// Sets the clock; default [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the seed of all randomness; default from the operating system. For tests: whoever knows the seed can
    /// forge answers.
    pub const fn seed(mut self, seed: [u8; 32]) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets how many REGISTERs of all registrations together may go out in any second, retransmissions and un-REGISTERs
    /// included; default `None`: no such limit (D16)
    ///
    /// They take turns, see [`Pool::set_registers_a_second`]; what is not un-REGISTERed before the end of
    /// [`Agent::shutdown`] is [`Removal::Unanswered`](crate::Removal::Unanswered) or never sent. At most 64 requests in
    /// flight to one target is a rule of its own.
    pub const fn registers_a_second(mut self, most: Option<NonZeroU32>) -> Self {
        self.registers_a_second = most;
        self
    }

    /// Starts the transports and the agent's task.
    ///
    /// # Errors
    /// Without a transport, when one cannot start, or without entropy.
    pub async fn build(self) -> Result<Agent, AgentError> {
        if self.transports.is_empty() && !self.system_transports {
            return Err(AgentError::NoTransport);
        }
        self.build_with_any().await
    }

    /// As [`build`](Self::build), but transports may come later.
    pub(crate) async fn build_with_any(mut self) -> Result<Agent, AgentError> {
        if self.system_transports {
            self.add_system_transports().await?;
        }
        let mut names = HashSet::new();
        if let Some((name, _)) = self
            .transports
            .iter()
            .find(|(name, _)| !names.insert(Arc::clone(name)))
        {
            return Err(AgentError::DuplicateTransport(Arc::clone(name)));
        }
        let seed = match self.seed {
            Some(seed) => seed,
            None => {
                let mut seed = [0; 32];
                SysRng
                    .try_fill_bytes(&mut seed)
                    .map_err(|error| AgentError::Entropy(error.to_string().into()))?;
                seed
            }
        };
        let mut entropy = Entropy::from_seed(seed);
        let mut pool = Pool::new(&mut entropy);
        pool.set_registers_a_second(self.registers_a_second);
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        let next_flow = Arc::new(AtomicU64::new(FIRST_ACCEPTED));
        let mut transports = Vec::new();
        for (number, (name, transport)) in self.transports.into_iter().enumerate() {
            let queue = Arc::new(Queue {
                transport: number,
                sender: sender.clone(),
            });
            let inbound = Inbound::with_sink(Arc::clone(pool.tag()), queue, Arc::clone(&next_flow));
            transport
                .start(inbound)
                .await
                .map_err(|source| AgentError::Transport {
                    name: Arc::clone(&name),
                    source,
                })?;
            pool.add_transport(Arc::clone(&name), transport.protocols());
            transports.push(Carrier {
                number,
                name,
                transport,
                leaving: false,
            });
        }
        let (commands, queue) = mpsc::unbounded_channel();
        let (events, messages) = (broadcast::channel(ROOM).0, broadcast::channel(ROOM).0);
        let agent = Agent::new(commands, events.downgrade(), messages.downgrade());
        let checked = (self.clock.now(), self.clock.wall());
        let core = Core {
            pool,
            entropy,
            clock: self.clock,
            checked,
            out: Vec::new(),
            next_transport: transports.len(),
            transports,
            arrivals: sender,
            resolver: self.resolver.unwrap_or_else(default_resolver),
            credentials: self.credentials,
            host: self.host,
            flows: HashMap::new(),
            opening: HashMap::new(),
            tasks: JoinSet::new(),
            questions: HashMap::new(),
            backlog: HashMap::new(),
            waiting: 0,
            retry_at: None,
            used: HashSet::new(),
            events,
            messages,
            outcomes: HashMap::new(),
            waiters: HashMap::new(),
            closing: None,
            next_accepted: next_flow,
            arriving: None,
            meter: Meter::new(),
        };
        tokio::spawn(core.run(queue, arrivals));
        Ok(agent)
    }

    async fn add_system_transports(&mut self) -> Result<(), AgentError> {
        let config = |name: &str, protocol| {
            TransportConfig::new(name, protocol).map_err(|error| AgentError::Transport {
                name: name.into(),
                source: FlowError::Io {
                    kind: std::io::ErrorKind::InvalidInput,
                    message: error.to_string().into(),
                },
            })
        };
        if !self.has("udp") {
            let udp = UdpTransport::bind(config("udp", Protocol::Udp)?)
                .await
                .map_err(|source| AgentError::Transport {
                    name: "udp".into(),
                    source,
                })?;
            self.transports.push(("udp".into(), Arc::new(udp)));
        }
        if !self.has("tcp") {
            let tcp = TcpTransport::new(config("tcp", Protocol::Tcp)?);
            self.transports.push(("tcp".into(), Arc::new(tcp)));
        }
        #[cfg(feature = "tls")]
        if !self.has("tls") {
            let tls = TlsTransport::new(config("tls", Protocol::Tls)?, TlsConfig::new()).map_err(
                |source| AgentError::Transport {
                    name: "tls".into(),
                    source: FlowError::Tls(source),
                },
            )?;
            self.transports.push(("tls".into(), Arc::new(tls)));
        }
        #[cfg(feature = "ws")]
        for (name, protocol) in [("ws", Protocol::Ws), ("wss", Protocol::Wss)] {
            if self.has(name) {
                continue;
            }
            let ws = WsTransport::new(config(name, protocol)?, WsConfig::new());
            self.transports.push((name.into(), Arc::new(ws)));
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.transports.iter().any(|(known, _)| **known == *name)
    }
}

#[cfg(feature = "dns")]
fn default_resolver() -> Arc<dyn Resolver> {
    Arc::new(crate::DnsResolver::new())
}

#[cfg(not(feature = "dns"))]
fn default_resolver() -> Arc<dyn Resolver> {
    Arc::new(crate::SystemResolver::new())
}

impl fmt::Debug for AgentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the seed.
        f.debug_struct("AgentBuilder")
            .field("transports", &self.transports)
            .field("system_transports", &self.system_transports)
            .field("resolver", &self.resolver)
            .finish_non_exhaustive()
    }
}
