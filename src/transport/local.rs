//! Which address of ours reaches a remote, and what Via and Contact say of it.

use crate::proto::host_port;
use crate::{FlowError, FlowInfo, TransportConfig};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses of a flow. `reached_at` is where a peer reaches us: the local address, with a listener's port if there
/// is one; the configuration may put an external address in its place.
pub(super) fn flow_info(
    config: &TransportConfig,
    local: SocketAddr,
    reached_at: SocketAddr,
    remote: SocketAddr,
) -> FlowInfo {
    let info = FlowInfo::new(config.protocol(), local, remote);
    let said = config
        .advertised(reached_at, remote.ip())
        .unwrap_or_else(|| host_port(reached_at));
    if said == host_port(local) {
        info
    } else {
        info.with_sent_by(said.as_str()).with_contact(said)
    }
}

/// The unspecified address of the family of `remote`.
pub(super) const fn any(remote: SocketAddr) -> IpAddr {
    match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Refuses a remote of the family that a transport bound to one address cannot reach.
pub(super) fn reachable(bind: IpAddr, remote: SocketAddr) -> Result<(), FlowError> {
    if bind.is_unspecified() || bind.is_ipv4() == remote.is_ipv4() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::AddrNotAvailable,
        format!("bound to {bind}, which does not reach {remote}"),
    )
    .into())
}

/// A link-local remote without a scope is in that of the address that the transport is bound to.
pub(super) fn in_scope(bind: SocketAddr, mut remote: SocketAddr) -> SocketAddr {
    if let (SocketAddr::V6(bind), SocketAddr::V6(remote)) = (bind, &mut remote)
        && remote.ip().is_unicast_link_local()
        && remote.scope_id() == 0
    {
        remote.set_scope_id(bind.scope_id());
    }
    remote
}

/// What `start` says to a second caller: one transport serves one agent.
pub(super) fn started_twice() -> FlowError {
    Error::new(
        ErrorKind::AlreadyExists,
        "the transport already serves an agent",
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_external_address_overrides_via_and_contact() {
        let (local, remote) = (address("10.0.0.1:5062"), address("192.0.2.1:5060"));
        let external = TransportConfig::new("t", Protocol::Udp).unwrap();
        let external = external
            .with_external_signaling_address("2001:db8::1")
            .unwrap();
        let info = flow_info(&external, local, local, remote);
        assert_eq!(
            (&*info.sent_by(), &*info.contact()),
            ("[2001:db8::1]:5062", "[2001:db8::1]:5062")
        );
        assert_eq!(info.local(), local);
    }

    #[test]
    fn the_external_address_is_for_the_outside_and_each_target_is_looked_at() {
        let config = TransportConfig::new("t", Protocol::Udp).unwrap();
        let config = config
            .with_external_signaling_address("pbx.example.com")
            .and_then(|c| c.with_external_signaling_port(5070))
            .and_then(|c| c.with_local_net("10.0.0.0/8"))
            .unwrap();
        let local = address("10.0.0.1:5062");
        for (remote, said) in [
            ("192.0.2.1:5060", "pbx.example.com:5070"),
            ("10.9.9.9:5060", "10.0.0.1:5062"),
        ] {
            let info = flow_info(&config, local, local, address(remote));
            assert_eq!((&*info.sent_by(), &*info.contact()), (said, said));
        }
    }

    #[test]
    fn link_local_targets_are_in_the_scope_of_our_address() {
        let bind = address("[fe80::1%3]:5060");
        assert_eq!(
            in_scope(bind, address("[fe80::2]:5060")),
            address("[fe80::2%3]:5060")
        );
        for other in ["[fe80::2%7]:5060", "[2001:db8::2]:5060", "192.0.2.1:5060"] {
            assert_eq!(in_scope(bind, address(other)), address(other));
        }
        let local = address("[fe80::1%3]:5062");
        let config = TransportConfig::new("t", Protocol::Udp).unwrap();
        let info = flow_info(&config, local, local, address("[fe80::2%3]:5060"));
        assert_eq!(
            (&*info.sent_by(), &*info.contact()),
            ("[fe80::1]:5062", "[fe80::1]:5062")
        );
    }

    #[test]
    fn a_bound_address_serves_its_own_family() {
        assert!(reachable(address("127.0.0.1:0").ip(), address("[::1]:5060")).is_err());
        assert!(reachable(address("0.0.0.0:0").ip(), address("[::1]:5060")).is_ok());
    }
}
