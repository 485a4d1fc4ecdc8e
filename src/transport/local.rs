//! Which address of ours reaches a remote, and what Via and Contact say of it.

use crate::proto::host_port;
use crate::{FlowError, FlowInfo, TransportConfig};
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

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

/// The local address from which `remote` is reached, by the system's routes; its port is the caller's to set.
///
/// Connecting a UDP socket sends nothing: it only makes the system choose.
pub(super) fn source_of(bind: IpAddr, remote: SocketAddr) -> Result<SocketAddr, FlowError> {
    let from = if bind.is_unspecified() || bind.is_ipv4() != remote.is_ipv4() {
        any(remote)
    } else {
        bind
    };
    let probe = UdpSocket::bind(SocketAddr::new(from, 0))?;
    probe.connect(remote)?;
    let local = probe.local_addr()?;
    if local.ip().is_unspecified() {
        return Err(Error::new(
            ErrorKind::NetworkUnreachable,
            "no local address reaches the remote",
        )
        .into());
    }
    Ok(local)
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
    fn the_source_is_the_address_that_reaches_the_remote() {
        let local = source_of(any(address("127.0.0.1:0")), address("127.0.0.1:5060")).unwrap();
        assert_eq!(local.ip(), address("127.0.0.1:0").ip());
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
    fn a_bound_address_serves_its_own_family() {
        assert!(reachable(address("127.0.0.1:0").ip(), address("[::1]:5060")).is_err());
        assert!(reachable(address("0.0.0.0:0").ip(), address("[::1]:5060")).is_ok());
    }
}
