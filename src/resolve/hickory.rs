//! Names to addresses, servers and services by DNS.

use super::SystemResolver;
use super::order::ordered;
use super::servers::{Found, Servers, Trouble, server};
use crate::{Answer, Naptr, Query, QueryKind, ResolveError, Resolver, Srv};
use async_trait::async_trait;
use hickory_resolver::proto::op;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, system_conf};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long one name server has to answer one try
///
/// With [`ATTEMPTS`] a question takes 4.5 s at most. NAPTR, SRV and A one after the other then end within the 20 s that
/// a registration waits for its targets, and what the first two failed to say is not missed.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Tries of a question
const ATTEMPTS: usize = 3;
const SHORTEST: Duration = Duration::from_millis(100);
/// Once one address family has answered, how long the other may take: some name servers swallow questions for AAAA
const GRACE: Duration = Duration::from_secs(1);
/// What came without its other family is asked again this soon
const PARTIAL_TTL: Duration = Duration::from_secs(30);
/// Questions under way, so that thousands of names at once do not take all sockets of the process
const AT_ONCE: usize = 128;
/// How long the system's configuration is taken to be what it was; networks change, and with them the name servers
const REREAD: Duration = Duration::from_secs(5);
/// A line in the hosts file has no lifetime
const HOSTS_TTL: Duration = Duration::from_secs(60);
/// Labels that may be appended to a short name
const SEARCHED: usize = 6;

/// DNS: A, AAAA, SRV and NAPTR with their lifetimes
///
/// Without name servers of its own it uses what the system is configured for: the name servers, search list and `ndots`
/// of `/etc/resolv.conf` (or what Windows and macOS have instead), and the hosts file. Both are read again when they are
/// older than 5 s at a question, because networks change. Where the configuration cannot be read, and for addresses
/// below `.local` (multicast DNS), [`SystemResolver`] answers instead.
///
/// * Nothing is cached here; the agent keeps answers for the smallest lifetime of the records used, aliases included.
/// * Addresses: A and AAAA are asked at once. IPv6 comes first, then the families take turns (RFC 8305 §4); addresses to
///   which this machine has no route come last. When one family has answered, the other gets 1 s more.
/// * [`ResolveError::NoAddress`]: a name server said that there is no such name or record. [`ResolveError::Failed`]: one
///   said that it cannot tell (SERVFAIL, REFUSED). [`ResolveError::Timeout`]: none said anything.
/// * A question is over after `timeout` times `attempts`, 4.5 s. 128 questions are under way at a time; the wait of
///   others counts.
/// * A short name is completed for addresses only, by the rules of resolv.conf(5). A dot at the end says that a name is
///   complete.
pub struct DnsResolver {
    /// Name servers of its own, or those of the system as last read
    source: Source,
    timeout: Duration,
    attempts: usize,
    at_once: Semaphore,
}

enum Source {
    Own(Arc<Configuration>),
    System(Mutex<Option<Read>>),
}

/// The system's configuration; none where it cannot be read
struct Read {
    at: Instant,
    configuration: Option<Arc<Configuration>>,
}

struct Configuration {
    servers: Arc<Servers>,
    /// The servers in words: those that stay keep what is known of them
    text: String,
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
    system: bool,
}

/// Puts a [`DnsResolver`] together
#[derive(Debug, Clone)]
#[must_use]
pub struct DnsResolverBuilder {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    attempts: usize,
}

impl DnsResolver {
    /// What the system is configured for.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Starts with the system's name servers, 1.5 s for a try and 3 tries.
    pub const fn builder() -> DnsResolverBuilder {
        DnsResolverBuilder {
            servers: Vec::new(),
            timeout: TIMEOUT,
            attempts: ATTEMPTS,
        }
    }
}

impl DnsResolverBuilder {
    /// Adds a name server, asked by UDP and TCP; the system's configuration and its hosts file are not used then.
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.servers.push(address);
        self
    }

    /// Sets how long a name server has for one try; default 1.5 s, at least 0.1 s.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how often a question is tried, each time at the next name server; default 3, at least 1.
    pub const fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts;
        self
    }

    /// The resolver. It asks nothing yet.
    #[must_use]
    pub fn build(self) -> DnsResolver {
        let timeout = self.timeout.max(SHORTEST);
        let attempts = self.attempts.max(1);
        let source = if self.servers.is_empty() {
            Source::System(Mutex::new(None))
        } else {
            let text = format!("{:?}", self.servers);
            let servers = self.servers.into_iter().map(server);
            Source::Own(Arc::new(Configuration {
                servers: Arc::new(Servers::new(servers, timeout, attempts)),
                text,
                hosts: Hosts::default(),
                search: Vec::new(),
                ndots: 1,
                system: false,
            }))
        };
        DnsResolver {
            source,
            timeout,
            attempts,
            at_once: Semaphore::new(AT_ONCE),
        }
    }
}

#[async_trait]
impl Resolver for DnsResolver {
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError> {
        let host = query.name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            return match query.kind {
                QueryKind::Addresses => Ok(Answer::new(vec![address])),
                _ => Err(ResolveError::NoAddress(Arc::clone(&query.name))),
            };
        }
        let trouble = Trouble::default();
        let limit = self
            .timeout
            .saturating_mul(u32::try_from(self.attempts).unwrap_or(u32::MAX));
        let answer = timeout(limit, self.answer(query, host, &trouble)).await;
        answer.unwrap_or_else(|_| {
            let trouble = trouble.into_inner().unwrap_or_else(PoisonError::into_inner);
            Err(trouble.unwrap_or(ResolveError::Timeout))
        })
    }
}

impl DnsResolver {
    async fn answer(
        &self,
        query: &Query,
        host: &str,
        trouble: &Trouble,
    ) -> Result<Answer, ResolveError> {
        // Fails only when the semaphore is closed, which nobody does.
        let _turn = self.at_once.acquire().await;
        let Some(configuration) = self.configuration().await else {
            return SystemResolver::new().resolve(query).await;
        };
        // A name that cannot be in a message is nowhere (RFC 1035 §2.3.4).
        let mut name = Name::from_ascii(host).map_err(|error| {
            tracing::debug!(name = ?host, %error, "no domain name");
            ResolveError::NoAddress(Arc::clone(&query.name))
        })?;
        if name.num_labels() == 0 {
            return Err(ResolveError::NoAddress(Arc::clone(&query.name)));
        }
        let complete = name.is_fqdn();
        name.set_fqdn(true);
        let asking = Asking {
            configuration: &configuration,
            asked: &query.name,
            trouble,
        };
        match query.kind {
            QueryKind::Addresses if configuration.system && is_below(&name, b"local") => {
                SystemResolver::new().resolve(query).await
            }
            QueryKind::Addresses => asking.addresses(configuration.names(name, complete)).await,
            // RFC 6761 §6.3 and §6.4: never asked of anybody
            _ if is_below(&name, b"localhost") || is_below(&name, b"invalid") => {
                Err(asking.nothing())
            }
            QueryKind::Srv => asking.servers(&name).await,
            QueryKind::Naptr => asking.services(&name).await,
        }
    }

    async fn configuration(&self) -> Option<Arc<Configuration>> {
        let read = match &self.source {
            Source::Own(configuration) => return Some(Arc::clone(configuration)),
            Source::System(read) => read,
        };
        let now = now();
        if let Some(read) = &*read.lock().unwrap_or_else(PoisonError::into_inner)
            && now.saturating_duration_since(read.at) < REREAD
        {
            return read.configuration.clone();
        }
        let (timeout, attempts) = (self.timeout, self.attempts);
        // A panic there (on Android, without a context) is as if there were none.
        let found = tokio::task::spawn_blocking(move || system(timeout, attempts)).await;
        let found = found.unwrap_or_else(|error| Err(error.to_string()));
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        let first = read.is_none();
        let before = read.take().and_then(|read| read.configuration);
        let configuration = match found {
            Ok(mut new) => {
                if let Some(old) = before.filter(|old| old.text == new.text) {
                    new.servers = Arc::clone(&old.servers);
                }
                Some(Arc::new(new))
            }
            Err(error) => {
                if first || before.is_some() {
                    tracing::warn!(
                        error,
                        "no DNS configuration; the system's resolver answers, without SRV and NAPTR"
                    );
                }
                None
            }
        };
        *read = Some(Read {
            at: now,
            configuration: configuration.clone(),
        });
        configuration
    }
}

/// Reads the system's configuration and its hosts file.
fn system(timeout: Duration, attempts: usize) -> Result<Configuration, String> {
    let (config, options) = system_conf::read_system_conf().map_err(|error| error.to_string())?;
    let hosts = Hosts::from_system().unwrap_or_default();
    let mut search = config.search;
    if search.is_empty() {
        search.extend(config.domain);
    }
    let text = format!("{:?}", config.name_servers);
    Ok(Configuration {
        servers: Arc::new(Servers::new(config.name_servers, timeout, attempts)),
        text,
        hosts,
        search,
        ndots: options.ndots,
        system: true,
    })
}

impl Configuration {
    /// The names to ask for, one after the other, as resolv.conf(5) has it.
    fn names(&self, name: Name, complete: bool) -> Vec<Name> {
        if complete || is_below(&name, b"localhost") {
            return vec![name];
        }
        let mut short = name.clone();
        short.set_fqdn(false);
        let mut names: Vec<Name> = self
            .search
            .iter()
            .take(SEARCHED)
            .filter_map(|domain| short.clone().append_domain(domain).ok())
            .collect();
        for name in &mut names {
            name.set_fqdn(true);
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        if dots >= self.ndots {
            names.insert(0, name);
        } else {
            names.push(name);
        }
        names
    }

    fn in_hosts(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let find = |kind| {
            let query = op::Query::query(name.clone(), kind);
            self.hosts.lookup_static_host(&query)
        };
        let found = [find(RecordType::A), find(RecordType::AAAA)];
        let lookups = found.iter().flatten();
        let (v4, v6) =
            families(lookups.flat_map(|lookup| lookup.answers().iter().map(|record| &record.data)));
        (!v4.is_empty() || !v6.is_empty()).then(|| ordered(&v4, &v6))
    }
}

/// One question
struct Asking<'a> {
    configuration: &'a Configuration,
    asked: &'a Arc<str>,
    trouble: &'a Trouble,
}

impl Asking<'_> {
    async fn find(&self, name: &Name, kind: RecordType) -> Result<Found, ResolveError> {
        let servers = &self.configuration.servers;
        servers.find(name, kind, self.asked, self.trouble).await
    }

    fn nothing(&self) -> ResolveError {
        ResolveError::NoAddress(Arc::clone(self.asked))
    }

    async fn addresses(&self, names: Vec<Name>) -> Result<Answer, ResolveError> {
        for name in names {
            if let Some(addresses) = self.configuration.in_hosts(&name) {
                return Ok(Answer::new(addresses).with_ttl(HOSTS_TTL));
            }
            if is_below(&name, b"localhost") {
                let addresses = ordered(&[Ipv4Addr::LOCALHOST], &[Ipv6Addr::LOCALHOST]);
                return Ok(Answer::new(addresses).with_ttl(HOSTS_TTL));
            }
            if is_below(&name, b"invalid") {
                return Err(self.nothing());
            }
            match self.families(&name).await {
                Err(ResolveError::NoAddress(_)) => {}
                answer => return answer,
            }
        }
        Err(self.nothing())
    }

    /// Both families of a name at once.
    async fn families(&self, name: &Name) -> Result<Answer, ResolveError> {
        let v4 = self.find(name, RecordType::A);
        let v6 = self.find(name, RecordType::AAAA);
        tokio::pin!(v4, v6);
        let late = || Err(ResolveError::Timeout);
        let both = tokio::select! {
            v4 = &mut v4 => match &v4 {
                Ok(_) => (v4, timeout(GRACE, v6).await.unwrap_or_else(|_| late())),
                Err(_) => (v4, v6.await),
            },
            v6 = &mut v6 => match &v6 {
                Ok(_) => (timeout(GRACE, v4).await.unwrap_or_else(|_| late()), v6),
                Err(_) => (v4.await, v6),
            },
        };
        let (found, partial) = match both {
            (Ok(v4), Ok(v6)) => (vec![v4, v6], false),
            (Ok(one), Err(error)) | (Err(error), Ok(one)) => {
                (vec![one], !matches!(error, ResolveError::NoAddress(_)))
            }
            // Only if both are known to have nothing, there is nothing.
            (Err(ResolveError::NoAddress(_)), Err(error)) | (Err(error), Err(_)) => {
                return Err(error);
            }
        };
        let (v4, v6) = families(found.iter().flat_map(|found| &found.records));
        let ttl = lifetime(found.iter().map(|found| found.ttl));
        Ok(Answer::new(ordered(&v4, &v6)).with_ttl(if partial {
            ttl.min(PARTIAL_TTL)
        } else {
            ttl
        }))
    }

    async fn servers(&self, name: &Name) -> Result<Answer, ResolveError> {
        let found = self.find(name, RecordType::SRV).await?;
        let servers = found.records.iter().filter_map(|record| match record {
            RData::SRV(srv) => Some(Srv {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_ascii().into(),
            }),
            _ => None,
        });
        Ok(Answer::srv(servers.collect()).with_ttl(lifetime([found.ttl])))
    }

    async fn services(&self, name: &Name) -> Result<Answer, ResolveError> {
        let found = self.find(name, RecordType::NAPTR).await?;
        let text = |bytes: &[u8]| Arc::from(String::from_utf8_lossy(bytes));
        let services = found.records.iter().filter_map(|record| match record {
            // SIP uses none with a regular expression (RFC 3263 §4.1).
            RData::NAPTR(naptr) if naptr.regexp.is_empty() => Some(Naptr {
                order: naptr.order,
                preference: naptr.preference,
                flags: text(&naptr.flags),
                service: text(&naptr.services),
                replacement: naptr.replacement.to_ascii().into(),
            }),
            _ => None,
        });
        let services: Vec<Naptr> = services.collect();
        if services.is_empty() {
            return Err(self.nothing());
        }
        Ok(Answer::naptr(services).with_ttl(lifetime([found.ttl])))
    }
}

fn families<'a>(records: impl Iterator<Item = &'a RData>) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            RData::A(address) => v4.push(address.0),
            RData::AAAA(address) => v6.push(address.0),
            _ => {}
        }
    }
    (v4, v6)
}

fn lifetime(seconds: impl IntoIterator<Item = u32>) -> Duration {
    Duration::from_secs(seconds.into_iter().min().unwrap_or(0).into())
}

fn is_below(name: &Name, top: &[u8]) -> bool {
    name.iter()
        .next_back()
        .is_some_and(|label| label.eq_ignore_ascii_case(top))
}

#[expect(
    clippy::disallowed_methods,
    reason = "how old the system's configuration is concerns this file only; answers carry their lifetime"
)]
fn now() -> Instant {
    Instant::now()
}

impl Default for DnsResolver {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = match &self.source {
            Source::Own(configuration) => &configuration.text,
            Source::System(_) => "the system's",
        };
        f.debug_struct("DnsResolver")
            .field("servers", &servers)
            .field("timeout", &self.timeout)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(search: &[&str], ndots: usize, hosts: &str) -> Configuration {
        let mut read = Hosts::default();
        read.read_hosts_conf(hosts.as_bytes()).unwrap();
        Configuration {
            servers: Arc::new(Servers::new([], TIMEOUT, ATTEMPTS)),
            text: String::new(),
            hosts: read,
            search: search
                .iter()
                .map(|domain| Name::from_ascii(domain).unwrap())
                .collect(),
            ndots,
            system: true,
        }
    }

    fn names(configuration: &Configuration, host: &str) -> Vec<String> {
        let mut name = Name::from_ascii(host).unwrap();
        let complete = name.is_fqdn();
        name.set_fqdn(true);
        let names = configuration.names(name, complete);
        names.iter().map(Name::to_ascii).collect()
    }

    #[test]
    fn short_names_are_completed_as_resolv_conf_says() {
        let office = configuration(&["office.test", "test."], 1, "");
        for (host, expected) in [
            ("pbx", &["pbx.office.test.", "pbx.test.", "pbx."][..]),
            ("pbx.", &["pbx."]),
            (
                "sip.example",
                &[
                    "sip.example.",
                    "sip.example.office.test.",
                    "sip.example.test.",
                ],
            ),
            ("sip.example.", &["sip.example."]),
            ("localhost", &["localhost."]),
            ("a.localhost", &["a.localhost."]),
        ] {
            assert_eq!(names(&office, host), expected, "{host}");
        }
        let cluster = configuration(&["svc.cluster.test"], 5, "");
        assert_eq!(
            names(&cluster, "sip.voip"),
            ["sip.voip.svc.cluster.test.", "sip.voip."]
        );
        assert_eq!(names(&configuration(&[], 1, ""), "pbx"), ["pbx."]);
        let long = "a".repeat(60);
        let long = format!("{long}.{long}.{long}.{long}");
        // With office.test it would be longer than a name may be.
        assert_eq!(
            names(&office, &long),
            [format!("{long}."), format!("{long}.test.")]
        );
    }

    #[tokio::test]
    async fn the_hosts_file_answers_before_any_server() {
        let hosts = "127.0.0.9 pbx.test PBX2\n::1 pbx.test\n# 127.0.0.8 other.test\n";
        let configuration = configuration(&["office.test"], 1, hosts);
        let find = async |host: &str| {
            let asked = Arc::from(host);
            let mut name = Name::from_ascii(host).unwrap();
            name.set_fqdn(true);
            let asking = Asking {
                configuration: &configuration,
                asked: &asked,
                trouble: &Trouble::default(),
            };
            asking.addresses(vec![name]).await
        };
        let both = find("Pbx.Test").await.unwrap();
        assert_eq!(both.ttl, HOSTS_TTL);
        let mut addresses = both.addresses().to_vec();
        addresses.sort_unstable();
        assert_eq!(
            addresses,
            [IpAddr::from([127, 0, 0, 9]), Ipv6Addr::LOCALHOST.into()]
        );
        let short = find("pbx2").await.unwrap();
        assert_eq!(short.addresses(), [IpAddr::from([127, 0, 0, 9])]);
        // No server is configured here.
        assert!(matches!(
            find("other.test").await,
            Err(ResolveError::Failed(_))
        ));
    }

    #[test]
    fn a_lifetime_is_the_smallest_one() {
        assert_eq!(lifetime([60, 5, 300]), Duration::from_secs(5));
        assert_eq!(lifetime([]), Duration::ZERO);
    }

    #[test]
    fn debug_names_the_servers() {
        let own = DnsResolver::builder().name_server(([127, 0, 0, 1], 53).into());
        let text = format!("{:?} {:?}", own.build(), DnsResolver::default());
        assert!(
            text.contains("127.0.0.1:53") && text.contains("the system's"),
            "{text}"
        );
    }
}
