//! The order in which the addresses of a name are tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses whose route is looked at; those beyond are taken to have one
const PROBED: usize = 32;

/// The addresses of a name in the order to try them
///
/// IPv6 first (RFC 6724 §2.1), then the families take turns, so that a broken one costs one target at a time
/// (RFC 8305 §4). Within a family the name service's order stays, so that its rotation spreads the load. Addresses to
/// which this machine has no route come last (RFC 6724 §5, rule 1).
pub(super) fn ordered(v4: &[Ipv4Addr], v6: &[Ipv6Addr]) -> Vec<IpAddr> {
    by_route(interleaved(v4, v6), has_route)
}

fn interleaved(v4: &[Ipv4Addr], v6: &[Ipv6Addr]) -> Vec<IpAddr> {
    let mut addresses = Vec::with_capacity(v4.len() + v6.len());
    let mut add = |address: Option<IpAddr>| {
        if let Some(address) = address.map(|address| address.to_canonical())
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    };
    for turn in 0..v4.len().max(v6.len()) {
        add(v6.get(turn).copied().map(IpAddr::from));
        add(v4.get(turn).copied().map(IpAddr::from));
    }
    addresses
}

fn by_route(mut addresses: Vec<IpAddr>, has_route: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
    let unreachable: Vec<IpAddr> = addresses
        .iter()
        .copied()
        .take(PROBED)
        .filter(|address| !has_route(*address))
        .collect();
    addresses.retain(|address| !unreachable.contains(address));
    addresses.extend(unreachable);
    addresses
}

/// Whether the system would send to it. Connecting a UDP socket picks the route and sends nothing.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind(SocketAddr::new(any, 0))
        .and_then(|socket| socket.connect(SocketAddr::new(address, 5060)))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(addresses: &[&str]) -> Vec<IpAddr> {
        addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect()
    }

    #[test]
    fn families_take_turns_and_ipv6_begins() {
        let v4: Vec<Ipv4Addr> = (1..=3).map(|n| Ipv4Addr::new(192, 0, 2, n)).collect();
        let v6 = ["2001:db8::1".parse().unwrap()];
        assert_eq!(
            interleaved(&v4, &v6),
            list(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"])
        );
        assert_eq!(
            interleaved(&[v4[0], v4[0]], &["::ffff:192.0.2.1".parse().unwrap()]),
            list(&["192.0.2.1"])
        );
        assert!(interleaved(&[], &[]).is_empty());
    }

    #[test]
    fn what_has_no_route_comes_last_and_is_not_left_out() {
        let all = list(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"]);
        assert_eq!(
            by_route(all.clone(), |address| address.is_ipv4()),
            list(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"])
        );
        assert_eq!(by_route(all.clone(), |_| false), all);
        assert_eq!(by_route(all.clone(), |_| true), all);
    }

    #[test]
    fn the_loopback_has_a_route() {
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}
