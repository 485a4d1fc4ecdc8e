//! Where a request goes (RFC 3263): which questions the name service has to answer, and what the answers amount to.
//!
//! [`select`] is pure and has no state: it is run from the start whenever an answer has come, and either asks for more
//! or is done. [`Names`] keeps the answers for as long as they hold, [`Health`] what is known of the targets.

mod health;
mod names;

pub use health::TargetOutcome;
pub(crate) use health::{Bound, Health, Reader, Report};
pub(crate) use names::Names;

use crate::proto::{Entropy, Protocol, Target};
use crate::{Naptr, Query, Records, ResolveError, Scheme, SipUri, Srv};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Servers of SRV records whose addresses are asked for; a cycle tries 8 targets at most (D3)
const SERVERS: usize = 16;
/// Addresses of one name that are looked at
const ADDRESSES: usize = 16;
/// NAPTR records that are followed
const SERVICES: usize = 8;
/// The longest name there is in DNS (RFC 1035 §2.3.4)
const LONGEST_NAME: usize = 255;

/// What is known of a question
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'a> {
    Records(&'a Records),
    /// There are no such records, or this resolver cannot ask for them
    Nothing,
    /// Nobody could say
    Broken(&'a ResolveError),
    Unknown,
}

/// What [`select`] came to
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// These questions come first; at least one
    Need(Vec<Query>),
    /// At least one place, in the order of RFC 3263
    Targets(Located),
    Failed(ResolveError),
}

/// The targets of a URI
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) places: Vec<Place>,
    /// Whether the name service answered all that was asked: a target that is not here is withdrawn then
    pub(crate) certain: bool,
}

/// A target, and how much it is preferred
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) target: Target,
    /// Lower is better; equal for the addresses of one name, and for servers of one priority
    pub(crate) rank: u16,
}

/// What a protocol is called by NAPTR and SRV (RFC 3263 §4.1, RFC 7118 §5.5)
///
/// RFC 7118 names services only. Those of SRV follow as RFC 3263 forms them, from the scheme and the protocol that is
/// registered for the service, which is WS for both (RFC 7118 §10.2).
const fn service(protocol: Protocol) -> (&'static str, &'static str) {
    match protocol {
        Protocol::Udp => ("SIP+D2U", "_sip._udp"),
        Protocol::Tcp => ("SIP+D2T", "_sip._tcp"),
        Protocol::Tls => ("SIPS+D2T", "_sips._tcp"),
        Protocol::Ws => ("SIP+D2W", "_sip._ws"),
        Protocol::Wss => ("SIPS+D2W", "_sips._ws"),
    }
}

/// The protocol that `transport=name` means; none where it is unknown, or cannot carry the scheme
///
/// `sip` with `transport=tls` is deprecated (RFC 3261 §26.2.2) and deployed, with `transport=wss` only deployed; `sips`
/// with `transport=tcp` is TLS, with `transport=ws` it is WSS (RFC 7118 §5.5).
fn pinned(sips: bool, name: &str) -> Option<Protocol> {
    match Protocol::from_name(name)? {
        Protocol::Tcp if sips => Some(Protocol::Tls),
        Protocol::Ws if sips => Some(Protocol::Wss),
        protocol => Some(protocol).filter(|protocol| !sips || protocol.is_secure()),
    }
}

/// The targets of `uri` over the protocols that we speak, the preferred ones first
///
/// `sips` asks for a secure one, whatever the scheme of `uri` is: a route is followed as if it said `sips` where the
/// Request-URI does (RFC 3261 §8.1.2).
///
/// `seed` draws the order of servers with the same priority: the same seed, the same order, so that runs over a growing
/// number of answers agree with each other.
///
/// | URI | what is asked for |
/// |---|---|
/// | host or `maddr` is an address | nothing |
/// | a port is named | A and AAAA |
/// | `transport` is named | SRV of that service; where there is none, A and AAAA |
/// | neither | NAPTR, then SRV of the services it names; where it names none that we speak, SRV of each protocol that we speak, in our order, WebSocket only where we speak nothing else; where there is none, A and AAAA |
///
/// Without any record that says otherwise the protocol is UDP, where we speak it, and TLS for `sips`.
pub(crate) fn select<'a>(
    uri: &SipUri,
    sips: bool,
    speaks: &[Protocol],
    seed: u64,
    lookup: &dyn Fn(&Query) -> Found<'a>,
) -> Selection {
    let sips = sips || uri.scheme() == Scheme::Sips;
    let name: Arc<str> = uri
        .param("maddr")
        .flatten()
        .map(|maddr| maddr.trim_matches(['[', ']']))
        .unwrap_or_else(|| uri.host())
        .into();
    let wanted = uri.transport().map(|name| pinned(sips, name));
    let usable: Vec<Protocol> = speaks
        .iter()
        .copied()
        .filter(|protocol| match wanted {
            Some(pinned) => pinned == Some(*protocol),
            None => !sips || protocol.is_secure(),
        })
        .collect();
    let Some(default) = default_protocol(&usable) else {
        let uri = crate::uri::excerpt(uri.as_str());
        return Selection::Failed(ResolveError::NoProtocol(uri.to_string().into()));
    };
    let mut walk = Walk {
        lookup,
        host: uri.host().into(),
        name: Arc::clone(&name),
        entropy: seeded(seed),
        need: Vec::new(),
        trouble: None,
        places: Vec::new(),
        rank: 0,
        servers: 0,
    };
    let port = |protocol: Protocol| uri.port().unwrap_or_else(|| protocol.default_port());
    if let Ok(address) = name.parse::<IpAddr>() {
        walk.place(default, SocketAddr::new(address, port(default)));
    } else if uri.port().is_some() {
        walk.addresses(&name, default, port(default));
    } else {
        walk.services(&usable, default, wanted.is_some());
    }
    walk.end()
}

/// UDP, or the first (RFC 3263 §4.1); `sips` has only secure ones to choose from.
fn default_protocol(usable: &[Protocol]) -> Option<Protocol> {
    let udp = usable.iter().find(|protocol| **protocol == Protocol::Udp);
    udp.or_else(|| usable.first()).copied()
}

fn seeded(seed: u64) -> Entropy {
    let mut long = [0; 32];
    for (to, from) in long.iter_mut().zip(seed.to_be_bytes()) {
        *to = from;
    }
    Entropy::from_seed(long)
}

/// One run through the records
struct Walk<'l, 'a> {
    lookup: &'l dyn Fn(&Query) -> Found<'a>,
    /// The name that certificates are held against: the host of the URI, whatever SRV or `maddr` say (RFC 5922 §7.1)
    host: Arc<str>,
    /// The name that is asked for: TARGET in RFC 3263
    name: Arc<str>,
    entropy: Entropy,
    need: Vec<Query>,
    /// The first question that nobody could answer
    trouble: Option<ResolveError>,
    places: Vec<Place>,
    rank: u16,
    servers: usize,
}

/// What SRV says of a service
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Absent,
    /// "Decidedly not available" (RFC 2782)
    Refused,
    Present,
}

impl<'a> Walk<'_, 'a> {
    fn ask(&mut self, query: Query) -> Option<&'a Records> {
        match (self.lookup)(&query) {
            Found::Records(records) => return Some(records),
            Found::Nothing => {}
            Found::Broken(error) => drop(self.trouble.get_or_insert_with(|| error.clone())),
            Found::Unknown if self.need.contains(&query) => {}
            Found::Unknown => self.need.push(query),
        }
        None
    }

    /// A name without a port.
    fn services(&mut self, usable: &[Protocol], default: Protocol, pinned: bool) {
        let host = Arc::clone(&self.name);
        let offers = if pinned {
            Vec::new()
        } else {
            self.offers(&host, usable)
        };
        if !self.need.is_empty() {
            return;
        }
        let mut default = default;
        let mut seen = Vec::new();
        if let Some((_, protocol, _)) = offers.first() {
            default = *protocol;
            // Of the lowest order only (RFC 3403 §4.1); a higher one where that leads nowhere.
            for order in offers.chunk_by(|one, next| one.0 == next.0) {
                for (_, protocol, name) in order {
                    seen.push((*protocol, self.service(name, *protocol)));
                }
                if !self.places.is_empty() || !self.need.is_empty() {
                    return;
                }
            }
        } else {
            // Whoever serves WebSockets says so by NAPTR or `transport=ws`: RFC 7118 §5.5 has no name to try otherwise.
            let only = usable.iter().all(|protocol| protocol.is_websocket());
            let tried = usable.iter().filter(|by| only || !by.is_websocket());
            for protocol in tried {
                let (_, prefix) = service(*protocol);
                seen.push((
                    *protocol,
                    self.service(&format!("{prefix}.{host}"), *protocol),
                ));
            }
        }
        let has = |what: Service| seen.iter().any(|(_, service)| *service == what);
        if !self.need.is_empty()
            || has(Service::Present)
            || seen.contains(&(default, Service::Refused))
        {
            return;
        }
        // No servers, or nobody could say (RFC 2782, usage rules: "else").
        self.addresses(&host, default, default.default_port());
    }

    /// What NAPTR offers of what we speak: order, protocol, and the name to ask for SRV; a failure is as if there were none.
    fn offers(&mut self, host: &Arc<str>, usable: &[Protocol]) -> Vec<(u16, Protocol, Arc<str>)> {
        let query = Query::naptr(Arc::clone(host));
        let records = match (self.lookup)(&query) {
            Found::Records(Records::Naptr(records)) => records,
            Found::Unknown => {
                self.need.push(query);
                return Vec::new();
            }
            _ => return Vec::new(),
        };
        let speaks = |record: &&Naptr| {
            let named =
                |protocol: &&Protocol| service(**protocol).0.eq_ignore_ascii_case(&record.service);
            usable.iter().find(named).copied()
        };
        let mut records: Vec<&Naptr> = records
            .iter()
            .filter(|record| record.flags.eq_ignore_ascii_case("s") && is_name(&record.replacement))
            .filter(|record| speaks(record).is_some())
            .collect();
        records.sort_by_key(|record| (record.order, record.preference));
        records.truncate(SERVICES);
        records
            .into_iter()
            .filter_map(|record| {
                let name = undotted(&record.replacement);
                Some((record.order, speaks(&record)?, name.into()))
            })
            .collect()
    }

    /// The servers of one service, by priority and weight.
    fn service(&mut self, name: &str, protocol: Protocol) -> Service {
        let Some(Records::Srv(servers)) = self.ask(Query::srv(name)) else {
            return Service::Absent;
        };
        let mut usable: Vec<&Srv> = servers
            .iter()
            .filter(|server| is_name(&server.target) && server.port != 0)
            .collect();
        if usable.is_empty() {
            return match servers[..] {
                [] => Service::Absent,
                _ => Service::Refused,
            };
        }
        usable.sort_by_key(|server| server.priority);
        for equal in usable.chunk_by(|one, next| one.priority == next.priority) {
            for server in by_weight(equal, &mut self.entropy) {
                if self.servers >= SERVERS {
                    break;
                }
                self.servers += 1;
                self.addresses(undotted(&server.target), protocol, server.port);
            }
            self.rank = self.rank.saturating_add(1);
        }
        Service::Present
    }

    fn addresses(&mut self, name: &str, protocol: Protocol, port: u16) {
        // No name, but seen in SRV records.
        if let Ok(address) = name.parse::<IpAddr>() {
            return self.place(protocol, SocketAddr::new(address, port));
        }
        if let Some(Records::Addresses(addresses)) = self.ask(Query::new(name)) {
            for address in addresses.iter().take(ADDRESSES) {
                self.place(protocol, SocketAddr::new(*address, port));
            }
        }
    }

    fn place(&mut self, protocol: Protocol, address: SocketAddr) {
        let same = |place: &Place| {
            place.target.protocol() == protocol && place.target.address() == address
        };
        let nowhere = address.ip().is_unspecified() || address.ip().is_multicast();
        if !nowhere && !self.places.iter().any(same) {
            self.places.push(Place {
                target: Target::named(protocol, address, Arc::clone(&self.host)),
                rank: self.rank,
            });
        }
    }

    fn end(self) -> Selection {
        if !self.need.is_empty() {
            Selection::Need(self.need)
        } else if !self.places.is_empty() {
            Selection::Targets(Located {
                places: self.places,
                certain: self.trouble.is_none(),
            })
        } else {
            let error = self.trouble;
            Selection::Failed(error.unwrap_or(ResolveError::NoAddress(self.name)))
        }
    }
}

/// Whether it is a name to ask for: `.` is none (RFC 2782).
fn is_name(name: &str) -> bool {
    !undotted(name).is_empty() && name.len() <= LONGEST_NAME
}

/// Without the dot of the root, which resolvers write or leave out.
fn undotted(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Servers of one priority in an order drawn by their weights (RFC 2782, "Weight")
///
/// "Any order" of those with equal weights is drawn too, so that clients spread over servers that all weigh 0.
fn by_weight<'a>(servers: &[&'a Srv], entropy: &mut Entropy) -> Vec<&'a Srv> {
    let mut left: Vec<&Srv> = Vec::with_capacity(servers.len());
    for server in servers {
        let at = entropy.below(left.len() as u64 + 1) as usize;
        left.insert(at, server);
    }
    left.sort_by_key(|server| server.weight != 0);
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let sum: u64 = left.iter().map(|server| u64::from(server.weight)).sum();
        let drawn = entropy.below(sum + 1);
        let mut running = 0;
        let at = left.iter().position(|server| {
            running += u64::from(server.weight);
            running >= drawn
        });
        ordered.push(left.remove(at.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
#[path = "../tests/locate.rs"]
mod tests;
