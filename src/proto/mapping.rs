//! Where a peer sees us: `received` and `rport` of its answers (RFC 3581), and what of it a Contact may say.

use crate::{FlowInfo, Via};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What the topmost Via of an answer says of the way to the peer
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Where the peer saw the request come from, where it said both address and port
    pub(crate) mapped: Option<SocketAddr>,
    /// Whether that is not where we sent it from
    pub(crate) nat: bool,
}

impl Seen {
    /// Reads an answer's Via. Without `received` the address is that of sent-by (RFC 3261 §18.2.1); what cannot be
    /// read is not there.
    pub(crate) fn of(via: &Via, info: &FlowInfo) -> Self {
        let local = info.local();
        let said = via.received.as_deref().unwrap_or(&via.host);
        let ip = said
            .parse::<IpAddr>()
            .ok()
            .map(|ip| ip.to_canonical())
            .filter(|ip| ip.is_ipv4() == local.is_ipv4());
        let port = via.rport.flatten().filter(|port| *port != 0);
        // An external address in sent-by is not where we sent from, and nobody has seen it yet.
        let ip = ip.filter(|ip| via.received.is_some() || *ip == local.ip());
        Self {
            mapped: ip
                .zip(port)
                .map(|(ip, port)| SocketAddr::new(ip, port))
                .filter(|mapped| is_believable(*mapped, info)),
            nat: ip.is_some_and(|ip| ip != local.ip())
                || port.is_some_and(|port| port != local.port()),
        }
    }
}

/// The mapped address that a Contact of this flow carries, where it differs from our own; none where the transport says
/// what to advertise: an external address, a listener's port (F30)
pub(crate) fn for_contact(info: &FlowInfo) -> Option<SocketAddr> {
    info.mapped()
        .filter(|mapped| *mapped != info.local() && !info.says_contact())
}

/// Whether the peer can have seen us at `mapped`, rather than a middlebox have mangled it (F30)
///
/// Not so: port 0; another family; unspecified, multicast, broadcast; loopback or link-local where our own is not;
/// private (RFC 1918, RFC 6598, RFC 4193) unless both ends are.
fn is_believable(mapped: SocketAddr, info: &FlowInfo) -> bool {
    let (seen, local, remote) = (
        mapped.ip(),
        info.local().ip().to_canonical(),
        info.remote().ip().to_canonical(),
    );
    seen.is_ipv4() == local.is_ipv4()
        && mapped.port() != 0
        && !seen.is_unspecified()
        && !seen.is_multicast()
        && seen != IpAddr::V4(Ipv4Addr::BROADCAST)
        && (!seen.is_loopback() || local.is_loopback())
        && (!is_link_local(seen) || is_link_local(local))
        && (!is_private(seen) || seen == local || (is_private(local) && is_private(remote)))
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // 100.64.0.0/10 is what carriers use inside.
            ip.is_private() || u32::from(ip) >> 22 == u32::from(Ipv4Addr::new(100, 64, 0, 0)) >> 22
        }
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
#[path = "tests/mapping.rs"]
mod tests;
