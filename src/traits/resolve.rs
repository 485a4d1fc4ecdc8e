//! Names to addresses.

use async_trait::async_trait;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A question: the addresses of a host name (A and AAAA)
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Query {
    /// The host name, as in the URI
    pub host: Arc<str>,
}

impl Query {
    /// Asks for the addresses of `host`.
    #[must_use]
    pub fn new(host: impl Into<Arc<str>>) -> Self {
        Self { host: host.into() }
    }
}

/// The addresses found, in the order to try them, and how long they hold
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Addresses in the order to try them
    pub addresses: Vec<IpAddr>,
    /// How long the answer may be kept
    pub ttl: Duration,
}

impl Answer {
    /// An answer that may be kept for 60 s until [`with_ttl`](Self::with_ttl) says otherwise.
    #[must_use]
    pub const fn new(addresses: Vec<IpAddr>) -> Self {
        Self {
            addresses,
            ttl: Duration::from_secs(60),
        }
    }

    /// Sets how long the answer may be kept.
    #[must_use]
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// Why a name gave no address
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The name does not exist, or has no address.
    #[error("no address for {0:?}")]
    NoAddress(Arc<str>),
    /// No answer within the time allowed.
    #[error("no answer from the name service")]
    Timeout,
    /// The name service failed.
    #[error("name service failed: {0}")]
    Failed(Arc<str>),
}

/// Finds addresses; the system's own resolver by default
#[async_trait]
pub trait Resolver: Send + Sync + Debug {
    /// The addresses of a name. Dropping the future cancels the question.
    ///
    /// # Errors
    /// When there is no address, or nobody answers; a live lease is never dropped for it.
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError>;
}
