//! Names to addresses.

use async_trait::async_trait;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What a question asks for
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum QueryKind {
    /// Addresses: A and AAAA
    Addresses,
    /// Servers of a service: SRV (RFC 2782)
    Srv,
    /// Services of a domain: NAPTR (RFC 3403, RFC 3263 §4.1)
    Naptr,
}

/// A question to the name service
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Query {
    /// The name, as in the URI, or with its `_sip._udp.` before it
    pub name: Arc<str>,
    /// What is asked for
    pub kind: QueryKind,
}

impl Query {
    /// Asks for the addresses of `name`.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            kind: QueryKind::Addresses,
        }
    }

    /// Asks for the SRV records of `name`, such as `_sip._udp.example.com`.
    #[must_use]
    pub fn srv(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            kind: QueryKind::Srv,
        }
    }

    /// Asks for the NAPTR records of `name`.
    #[must_use]
    pub fn naptr(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            kind: QueryKind::Naptr,
        }
    }
}

/// One SRV record (RFC 2782)
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Srv {
    /// Lower ones first
    pub priority: u16,
    /// The share of this one among those of its priority
    pub weight: u16,
    /// The port
    pub port: u16,
    /// The host name; `.` says that the service is decidedly not there
    pub target: Arc<str>,
}

/// One NAPTR record, as far as SIP needs it (RFC 3403 §4, RFC 3263 §4.1)
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Naptr {
    /// Lower ones first; no higher one may be used
    pub order: u16,
    /// Lower ones first within an order
    pub preference: u16,
    /// `s`: the replacement is asked for SRV
    pub flags: Arc<str>,
    /// `SIP+D2U`, `SIP+D2T`, `SIPS+D2T`, `SIP+D2W`, `SIPS+D2W`
    pub service: Arc<str>,
    /// The name to ask next
    pub replacement: Arc<str>,
}

/// The records of an answer
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Records {
    /// Addresses in the order to try them
    Addresses(Vec<IpAddr>),
    /// Servers, in any order
    Srv(Vec<Srv>),
    /// Services, in any order
    Naptr(Vec<Naptr>),
}

/// What was found, and how long it holds
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The records, of the kind that was asked for
    pub records: Records,
    /// How long the answer may be kept
    pub ttl: Duration,
}

impl Answer {
    /// Addresses in the order to try them, for 60 s until [`with_ttl`](Self::with_ttl) says otherwise.
    #[must_use]
    pub const fn new(addresses: Vec<IpAddr>) -> Self {
        Self::of(Records::Addresses(addresses))
    }

    /// Servers, for 60 s until [`with_ttl`](Self::with_ttl) says otherwise.
    #[must_use]
    pub const fn srv(servers: Vec<Srv>) -> Self {
        Self::of(Records::Srv(servers))
    }

    /// Services, for 60 s until [`with_ttl`](Self::with_ttl) says otherwise.
    #[must_use]
    pub const fn naptr(services: Vec<Naptr>) -> Self {
        Self::of(Records::Naptr(services))
    }

    const fn of(records: Records) -> Self {
        Self {
            records,
            ttl: Duration::from_secs(60),
        }
    }

    /// Sets how long the answer may be kept.
    #[must_use]
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The addresses; none where the answer is to another kind of question.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match &self.records {
            Records::Addresses(addresses) => addresses,
            _ => &[],
        }
    }
}

/// Why a question was not answered
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The name does not exist, or has no record of the kind that was asked for.
    #[error("no address for {0:?}")]
    NoAddress(Arc<str>),
    /// This resolver cannot ask for that kind of record; the caller goes on as if there were none.
    #[error("this resolver knows no {0:?} records")]
    Unsupported(QueryKind),
    /// No answer within the time allowed.
    #[error("no answer from the name service")]
    Timeout,
    /// The option `transport` names one that the agent does not have.
    #[error("no transport named {0:?}")]
    NoTransport(Box<str>),
    /// Nothing that the agent has can carry what the URI asks for: its scheme, its `transport`, or anything at all.
    #[error("no transport of a type that can carry {0}")]
    NoProtocol(Box<str>),
    /// The name service failed.
    #[error("name service failed: {0}")]
    Failed(Arc<str>),
}

/// Asks the name service
#[async_trait]
pub trait Resolver: Send + Sync + Debug {
    /// Answers one question. Dropping the future cancels it.
    ///
    /// # Errors
    /// When there is no such record, or nobody answers; a live lease is never dropped for it.
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError>;
}
