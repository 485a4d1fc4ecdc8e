//! Asks name servers, one after the other, and reads what they say.
//!
//! Of hickory this uses the messages and the connections: UDP with random ports and IDs and with retransmissions, TCP
//! where an answer is truncated. Which server is asked, what counts as an answer, and where a chain of aliases ends is
//! decided here; nothing is kept.

use crate::ResolveError;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Aliases that are followed; a chain that is longer is taken for a loop
const ALIASES: usize = 16;
/// Messages that following them may take: a server that resolves for us sends the whole chain in one
const MESSAGES: usize = 4;

/// The records of one kind, and for how many seconds all that was used to find them holds
#[derive(Debug)]
pub(super) struct Found {
    pub(super) records: Vec<RData>,
    pub(super) ttl: u32,
}

/// What went wrong so far with a question, for when its time is over
pub(super) type Trouble = Mutex<Option<ResolveError>>;

/// The name servers that are asked
pub(super) struct Servers {
    servers: Vec<NameServerPool<TokioRuntimeProvider>>,
    /// The one that answered last
    first: AtomicUsize,
    timeout: Duration,
    attempts: usize,
}

impl Servers {
    /// Servers in the order to ask them; a question is tried `attempts` times, each time at the next one.
    pub(super) fn new(
        servers: impl IntoIterator<Item = NameServerConfig>,
        timeout: Duration,
        attempts: usize,
    ) -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = timeout;
        options.num_concurrent_reqs = 1;
        // It is empty, as hickory's TLS is not compiled in.
        let context = TlsConfig::new().map(|tls| Arc::new(PoolContext::new(options, tls)));
        let pool = |server: NameServerConfig| {
            let context = Arc::clone(context.as_ref().ok()?);
            let provider = TokioRuntimeProvider::default();
            Some(NameServerPool::from_config([server], context, provider))
        };
        Self {
            servers: servers.into_iter().filter_map(pool).collect(),
            first: AtomicUsize::new(0),
            timeout,
            attempts,
        }
    }

    /// Finds records, through aliases. Nothing found is [`ResolveError::NoAddress`] with `asked`.
    pub(super) async fn find(
        &self,
        name: &Name,
        kind: RecordType,
        asked: &Arc<str>,
        trouble: &Trouble,
    ) -> Result<Found, ResolveError> {
        let nothing = || ResolveError::NoAddress(Arc::clone(asked));
        let mut owner = name.clone();
        let mut ttl = u32::MAX;
        for _ in 0..MESSAGES {
            let Some(response) = self.ask(&owner, kind, trouble).await? else {
                return Err(nothing());
            };
            let end = follow(&response, &owner, &mut ttl);
            let mut records = Vec::new();
            for record in &response.answers {
                if record.name == end && record.record_type() == kind {
                    ttl = ttl.min(seconds(record.ttl));
                    records.push(record.data.clone());
                }
            }
            if !records.is_empty() {
                return Ok(Found { records, ttl });
            }
            // An SOA says that the end of the chain has no such record; without one the server left the rest to us.
            let said = response.response_code == ResponseCode::NXDomain || response.soa().is_some();
            if said || end == owner {
                return Err(nothing());
            }
            owner = end;
        }
        Err(ResolveError::Failed(
            format!("the aliases of {asked:?} have no end").into(),
        ))
    }

    /// One question: a message, or none where the name or the record does not exist.
    async fn ask(
        &self,
        name: &Name,
        kind: RecordType,
        trouble: &Trouble,
    ) -> Result<Option<DnsResponse>, ResolveError> {
        let first = self.first.load(Ordering::Relaxed);
        let mut worst = ResolveError::Timeout;
        for attempt in 0..self.attempts {
            let index = first.wrapping_add(attempt) % self.servers.len().max(1);
            let Some(server) = self.servers.get(index) else {
                return Err(ResolveError::Failed("no name server is configured".into()));
            };
            let mut options = DnsRequestOptions::default();
            // Some servers and firewalls know no EDNS: the second round does without.
            options.use_edns = attempt < self.servers.len();
            let query = Query::query(name.clone(), kind);
            let answer = server.lookup(query, options).first_answer();
            let answer = timeout(self.timeout, answer).await;
            let error = match answer.unwrap_or(Err(NetError::Timeout)) {
                Ok(response) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(Some(response));
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                    // A referral instead of an answer: the server does not resolve for us.
                    let referred = none.ns.is_some() && none.soa.is_none();
                    if !referred || none.response_code == ResponseCode::NXDomain {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(None);
                    }
                    ResolveError::Failed("the name server does not resolve for others".into())
                }
                Err(NetError::Timeout | NetError::NoConnections) => ResolveError::Timeout,
                Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                    ResolveError::Failed(format!("the name server said: {code}").into())
                }
                Err(error) => ResolveError::Failed(error.to_string().into()),
            };
            tracing::debug!(%name, %kind, %error, "a name server did not answer");
            // What was said weighs more than silence.
            if matches!(worst, ResolveError::Timeout) {
                worst = error;
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(worst.clone());
            }
        }
        Err(worst)
    }
}

/// A name server on UDP and TCP
pub(super) fn server(address: SocketAddr) -> NameServerConfig {
    let mut udp = ConnectionConfig::udp();
    let mut tcp = ConnectionConfig::tcp();
    (udp.port, tcp.port) = (address.port(), address.port());
    NameServerConfig::new(address.ip(), true, vec![udp, tcp])
}

/// Where the aliases of a name end in this message; `ttl` becomes the smallest of theirs.
fn follow(response: &DnsResponse, name: &Name, ttl: &mut u32) -> Name {
    let mut end = name.clone();
    for _ in 0..ALIASES {
        let alias = response
            .answers
            .iter()
            .find_map(|record| match &record.data {
                RData::CNAME(to) if record.name == end => Some((to.0.clone(), record.ttl)),
                _ => None,
            });
        let Some((to, holds)) = alias else {
            break;
        };
        *ttl = (*ttl).min(seconds(holds));
        end = to;
    }
    end
}

/// A lifetime with its top bit set is none (RFC 2181 §8).
const fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}
