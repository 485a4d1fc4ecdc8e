//! The transports of a file: bound for an agent, and kept in line with the file while it runs.

use super::files::Files;
use super::loaded::Loaded;
use super::reload::{Applied, Running};
use super::transport::TransportSection;
use crate::{
    Agent, AgentBuilder, AgentError, FlowError, Protocol, RegisterError, TcpTransport, UdpTransport,
};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
#[cfg(feature = "tls")]
use {super::transport::TlsFilesError, crate::TlsError, crate::TlsTransport};

/// The transports that an [`Agent`] has from a file (feature `tokio`)
///
/// A reload leaves those alone that have not changed. What is advertised (`external_…`, `local_net`) may change at any
/// time, all else where the section says `allow_reload=yes`, as in Asterisk; else the running version is kept, with a
/// [`Rule::NotReloadable`](super::Rule::NotReloadable).
#[derive(Debug, Default)]
pub struct Transports {
    running: BTreeMap<Arc<str>, Bound>,
}

/// A transport at work, and what it was made of
#[derive(Debug)]
struct Bound {
    section: TransportSection,
    made: Made,
}

#[derive(Debug, Clone)]
enum Made {
    Udp(Arc<UdpTransport>),
    Tcp(Arc<TcpTransport>),
    #[cfg(feature = "tls")]
    Tls(Arc<TlsTransport>),
}

/// What became of a transport that is not as it was
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportOutcome {
    /// New in the file: registrations can use it
    Added,
    /// Changed: what rode on the old one registers again over the new one
    Replaced,
    /// No longer in the file: it ends with the last flow on it
    Removed,
    /// No longer in the file, and needed by registrations whose new versions were refused
    InUse,
    /// The new version could not be made, the running one goes on
    Kept(TransportError),
    /// It could not be made, and there was none of this name
    Missing(TransportError),
}

impl fmt::Display for TransportOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added => f.write_str("added"),
            Self::Replaced => f.write_str("replaced"),
            Self::Removed => f.write_str("removed"),
            Self::InUse => f.write_str("still in use by registrations that were kept"),
            Self::Kept(error) => write!(f, "kept, as the new version cannot be made: {error}"),
            Self::Missing(error) => write!(f, "left out: {error}"),
        }
    }
}

/// Why a transport of a file cannot be made
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Its address cannot be bound, or an option cannot be set.
    #[error("{0}")]
    Flow(FlowError),
    /// A file of its certificates is of no use.
    #[cfg(feature = "tls")]
    #[error("{0}")]
    Files(TlsFilesError),
    /// Its certificates are of no use.
    #[cfg(feature = "tls")]
    #[error("{0}")]
    Tls(TlsError),
    /// Nothing here carries it; TLS needs the feature `tls`.
    #[error("{0} is not built in")]
    Protocol(Protocol),
    /// The agent has shut down.
    #[error("the agent has shut down")]
    Closed,
}

/// What became of a new version of a file, transports and all
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Reloaded {
    /// The transports that are not as they were, by name
    pub transports: BTreeMap<Arc<str>, TransportOutcome>,
    /// The registrations
    pub applied: Applied,
}

impl fmt::Display for Reloaded {
    /// A line for each transport and registration that something happened to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.transports {
            writeln!(f, "transport {}: {outcome}", name.escape_debug())?;
        }
        self.applied.fmt(f)
    }
}

impl Transports {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether none could be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Starts an agent with the transports of a file, in their order; those of the builder come first. What could not be
    /// made is left out, and told.
    ///
    /// # Errors
    /// As of [`AgentBuilder::build`], but for [`AgentError::NoTransport`].
    pub async fn start(
        &mut self,
        builder: AgentBuilder,
        loaded: &Loaded,
        files: &dyn Files,
    ) -> Result<(Agent, BTreeMap<Arc<str>, TransportOutcome>), AgentError> {
        let agent = builder.build_with_any().await?;
        let outcomes = self.bring(&agent, loaded, files).await;
        Ok((agent, outcomes))
    }

    /// Brings agent, transports and registrations from the version that runs to a new one
    ///
    /// First transports are added and replaced, then [`Running::apply`] does its part, then those are removed that are
    /// no longer in the file. Whoever did not change, and did not ride on what did, sends nothing.
    ///
    /// # Errors
    /// [`RegisterError::Closed`] when the agent has shut down.
    pub async fn apply(
        &mut self,
        agent: &Agent,
        running: &mut Running,
        new: Loaded,
        files: &dyn Files,
        within: Duration,
    ) -> Result<Reloaded, RegisterError> {
        let mut transports = self.bring(agent, &new, files).await;
        let applied = running.apply(agent, new, within).await?;
        transports.extend(self.drop_gone(agent, running.loaded()).await);
        Ok(Reloaded {
            transports,
            applied,
        })
    }

    /// Adds what is new, replaces what has changed.
    async fn bring(
        &mut self,
        agent: &Agent,
        loaded: &Loaded,
        files: &dyn Files,
    ) -> BTreeMap<Arc<str>, TransportOutcome> {
        let mut outcomes = BTreeMap::new();
        for section in loaded.transports() {
            let name = section.config.name();
            let old = self.running.get(name);
            if let Some(old) = old.filter(|old| old.section.is_like(section)) {
                if let Err(error) = old.renew(files) {
                    outcomes.insert(Arc::clone(name), TransportOutcome::Kept(error));
                }
                continue;
            }
            let there = old.is_some();
            let made = self.make(agent, section, loaded, files).await;
            let outcome = match (made, there) {
                (Ok(made), _) => {
                    let section = section.clone();
                    let bound = Bound { section, made };
                    self.running.insert(Arc::clone(name), bound);
                    match there {
                        true => TransportOutcome::Replaced,
                        false => TransportOutcome::Added,
                    }
                }
                (Err(error), true) => TransportOutcome::Kept(error),
                (Err(error), false) => TransportOutcome::Missing(error),
            };
            outcomes.insert(Arc::clone(name), outcome);
        }
        outcomes
    }

    /// Makes a transport, and gives it to the agent.
    async fn make(
        &self,
        agent: &Agent,
        section: &TransportSection,
        loaded: &Loaded,
        files: &dyn Files,
    ) -> Result<Made, TransportError> {
        let config = section.config.clone();
        let name = Arc::clone(config.name());
        let old = self.in_place_of(section, loaded);
        let (made, added) = match (config.protocol(), &section.tls) {
            (Protocol::Udp, _) => {
                let made = match old {
                    Some(Made::Udp(old)) => UdpTransport::bind_in_place_of(config, old).await,
                    _ => UdpTransport::bind(config).await,
                };
                let made = Arc::new(made.map_err(TransportError::Flow)?);
                let added = agent.add_transport(name, Arc::clone(&made)).await;
                (Made::Udp(made), added)
            }
            (Protocol::Tcp, _) => {
                let made = Arc::new(match old {
                    Some(Made::Tcp(old)) => TcpTransport::in_place_of(config, old),
                    _ => TcpTransport::new(config),
                });
                let added = agent.add_transport(name, Arc::clone(&made)).await;
                (Made::Tcp(made), added)
            }
            #[cfg(feature = "tls")]
            (Protocol::Tls, Some(of)) => {
                let tls = of.config(files).map_err(TransportError::Files)?;
                let made = match old {
                    Some(Made::Tls(old)) => TlsTransport::in_place_of(config, tls, old),
                    _ => TlsTransport::new(config, tls),
                };
                let made = Arc::new(made.map_err(TransportError::Tls)?);
                let added = agent.add_transport(name, Arc::clone(&made)).await;
                (Made::Tls(made), added)
            }
            (other, _) => {
                let _ = files;
                return Err(TransportError::Protocol(other));
            }
        };
        match added {
            Ok(()) => Ok(made),
            Err(AgentError::Transport { source, .. }) => Err(TransportError::Flow(source)),
            Err(_) => Err(TransportError::Closed),
        }
    }

    /// The one whose address it may have: that of its name, or one with this address that the file has no more.
    fn in_place_of(&self, section: &TransportSection, loaded: &Loaded) -> Option<&Made> {
        let gone = |(name, bound): &(&Arc<str>, &Bound)| {
            let listed = |there: &TransportSection| there.config.name() == *name;
            bound.section.config.bind() == section.config.bind()
                && bound.section.config.protocol() == section.config.protocol()
                && !loaded.transports().iter().any(listed)
        };
        let own = self.running.get(section.config.name());
        let own = own.or_else(|| self.running.iter().find(gone).map(|(_, bound)| bound));
        own.map(|bound| &bound.made)
    }

    /// Removes what the file does not have any more.
    async fn drop_gone(
        &mut self,
        agent: &Agent,
        loaded: &Loaded,
    ) -> BTreeMap<Arc<str>, TransportOutcome> {
        let mut outcomes = BTreeMap::new();
        let listed = |name: &Arc<str>| {
            let mut there = loaded.transports().iter();
            there.any(|there| there.config.name() == name)
        };
        let gone = self.running.keys().filter(|name| !listed(name));
        for name in gone.map(Arc::clone).collect::<Vec<_>>() {
            let outcome = if self.is_needed(&name, loaded) {
                TransportOutcome::InUse
            } else {
                self.running.remove(&name);
                agent.remove_transport(&name).await;
                TransportOutcome::Removed
            };
            outcomes.insert(name, outcome);
        }
        outcomes
    }

    /// Whether a registration that runs names a transport that the file has no more, or was kept and has no other one.
    fn is_needed(&self, name: &Arc<str>, loaded: &Loaded) -> bool {
        let Some(protocol) = self.protocol(name) else {
            return false;
        };
        let mut others = loaded.transports().iter();
        let alone = !others.any(|other| other.config.protocol() == protocol);
        loaded
            .registrations()
            .any(|(id, registration)| match registration.transport() {
                Some(named) => named == name,
                None => alone && loaded.is_kept(id),
            })
    }

    fn protocol(&self, name: &Arc<str>) -> Option<Protocol> {
        let bound = self.running.get(name)?;
        Some(bound.section.config.protocol())
    }
}

impl Bound {
    /// Certificates are read anew: they count for new connections.
    fn renew(&self, files: &dyn Files) -> Result<(), TransportError> {
        match (&self.made, &self.section.tls) {
            #[cfg(feature = "tls")]
            (Made::Tls(transport), Some(of)) => {
                let tls = of.config(files).map_err(TransportError::Files)?;
                transport.renew(tls).map_err(TransportError::Tls)
            }
            _ => {
                let _ = files;
                Ok(())
            }
        }
    }
}
