//! Sockets as the configuration wants them: address, interface, type of service, priority.
//!
//! Every socket that sends or receives for a transport is made here, so that no option is forgotten at one of them. What
//! the system refuses is an error that names the option and its value.

use super::local::any;
use crate::{FlowError, TransportConfig};
use socket2::{Domain, SockRef, Socket, Type};
use std::fmt::Display;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// A datagram socket bound to `address`; with `in_place_of`, on the port of another one that is about to go.
pub(super) fn datagrams(
    config: &TransportConfig,
    address: SocketAddr,
    in_place_of: Option<&UdpSocket>,
) -> std::result::Result<UdpSocket, FlowError> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    configure(config, &socket, address)?;
    // Both must agree for the moment of the bind; afterwards neither lets anybody else in.
    if let Some(old) = in_place_of {
        SockRef::from(old).set_reuse_address(true)?;
        socket.set_reuse_address(true)?;
    }
    let bound = socket.bind(&address.into());
    if let Some(old) = in_place_of {
        SockRef::from(old).set_reuse_address(false)?;
        socket.set_reuse_address(false)?;
    }
    bound.map_err(refused("bind", address))?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket.into())?)
}

/// A stream socket that may connect to `remote`, from the configured address and a port that the system chooses: the
/// configured one is the listener's.
pub(super) fn stream(
    config: &TransportConfig,
    remote: SocketAddr,
) -> std::result::Result<TcpSocket, FlowError> {
    let socket = new_stream(remote)?;
    configure(config, &SockRef::from(&socket), remote)?;
    let from = source(config, remote);
    if !from.ip().is_unspecified() {
        socket.bind(from).map_err(refused("bind", from))?;
    }
    Ok(socket)
}

/// A listener on the configured address.
pub(super) fn listener(config: &TransportConfig) -> std::result::Result<TcpListener, FlowError> {
    let address = config.bind();
    let socket = new_stream(address)?;
    configure(config, &SockRef::from(&socket), address)?;
    // Connections of an earlier listener may linger (TIME-WAIT). On Windows this would let others take the port over.
    if cfg!(unix) {
        socket.set_reuseaddr(true)?;
    }
    socket.bind(address).map_err(refused("bind", address))?;
    Ok(socket.listen(BACKLOG)?)
}

/// Sets the options on a listener that another configuration made on the same address.
pub(super) fn adjust(
    config: &TransportConfig,
    listener: &TcpListener,
) -> std::result::Result<(), FlowError> {
    configure_open(config, &SockRef::from(listener), config.bind())
}

/// Tries the options on a socket that is thrown away, so that a transport without a listener fails when it starts.
pub(super) fn check(config: &TransportConfig) -> std::result::Result<(), FlowError> {
    let address = config.bind();
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    configure(config, &socket, address)?;
    let address = with_port(address, 0);
    let bound = socket.bind(&address.into());
    bound.map_err(refused("bind", config.bind()))
}

/// The local address from which `remote` is reached, by the system's routes; its port is the caller's to set.
///
/// Connecting a datagram socket sends nothing: it only makes the system choose.
pub(super) fn source_of(
    config: &TransportConfig,
    remote: SocketAddr,
) -> std::result::Result<SocketAddr, FlowError> {
    let probe = Socket::new(Domain::for_address(remote), Type::DGRAM, None)?;
    configure(config, &probe, remote)?;
    let from = source(config, remote);
    probe.bind(&from.into()).map_err(refused("bind", from))?;
    probe.connect(&remote.into())?;
    match probe.local_addr()?.as_socket() {
        Some(local) if !local.ip().is_unspecified() => Ok(local),
        _ => Err(Error::new(
            ErrorKind::NetworkUnreachable,
            "no local address reaches the remote",
        )
        .into()),
    }
}

/// Whether a socket still is where it was made: an interface that went and came back under the same name is another.
pub(super) fn is_current(config: &TransportConfig, socket: &UdpSocket) -> bool {
    match config.interface() {
        None => true,
        Some(name) => device(&SockRef::from(socket)).as_deref() == Some(name.as_bytes()),
    }
}

/// Where a socket to `remote` is bound: the configured address and any port; any address where the configured one is
/// unspecified.
fn source(config: &TransportConfig, remote: SocketAddr) -> SocketAddr {
    let bind = config.bind();
    if bind.ip().is_unspecified() || bind.is_ipv4() != remote.is_ipv4() {
        SocketAddr::new(any(remote), 0)
    } else {
        with_port(bind, 0)
    }
}

/// The address with another port, its scope kept.
pub(super) const fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

fn new_stream(family_of: SocketAddr) -> Result<TcpSocket> {
    match family_of {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Sets what must be set before the socket is bound.
fn configure(
    config: &TransportConfig,
    socket: &Socket,
    family_of: SocketAddr,
) -> std::result::Result<(), FlowError> {
    if let Some(name) = config.interface() {
        bind_device(socket, name).map_err(refused("interface", name))?;
    }
    if config.ipv6_only() && family_of.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    configure_open(config, socket, family_of)
}

/// Sets what may be set at any time.
fn configure_open(
    config: &TransportConfig,
    socket: &Socket,
    family_of: SocketAddr,
) -> std::result::Result<(), FlowError> {
    if let Some(tos) = config.tos() {
        let set = match family_of {
            SocketAddr::V4(_) => socket.set_tos_v4(tos.into()),
            SocketAddr::V6(_) => set_traffic_class(socket, tos.into()),
        };
        set.map_err(refused("tos", tos))?;
    }
    // After the type of service, which sets a priority of its own.
    if let Some(cos) = config.cos() {
        set_priority(socket, cos.into()).map_err(refused("cos", cos))?;
    }
    Ok(())
}

/// Names the option that an error is about.
fn refused(option: &'static str, value: impl Display) -> impl FnOnce(Error) -> FlowError {
    move |error| FlowError::Setting {
        option,
        value: value.to_string().into(),
        kind: error.kind(),
        message: error.to_string().into(),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use super::{Result, Socket};

    pub(super) fn bind_device(socket: &Socket, name: &str) -> Result<()> {
        socket.bind_device(Some(name.as_bytes()))
    }

    pub(super) fn device(socket: &Socket) -> Option<Vec<u8>> {
        socket.device().ok().flatten()
    }

    pub(super) fn set_priority(socket: &Socket, priority: u32) -> Result<()> {
        socket.set_priority(priority)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use super::{ErrorKind, Result, Socket};

    pub(super) fn bind_device(_: &Socket, _: &str) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn device(_: &Socket) -> Option<Vec<u8>> {
        None
    }

    pub(super) fn set_priority(_: &Socket, _: u32) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

use system::{bind_device, device, set_priority};

#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "freebsd"
))]
fn set_traffic_class(socket: &Socket, class: u32) -> Result<()> {
    socket.set_tclass_v6(class)
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    target_os = "freebsd"
)))]
fn set_traffic_class(_: &Socket, _: u32) -> Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Connections that wait to be accepted
const BACKLOG: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;
    use crate::transport::testing::config;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn options_reach_the_sockets() {
        let udp = config(Protocol::Udp, "127.0.0.1:0");
        let udp = udp.with_tos("cs3").and_then(|c| c.with_cos(5)).unwrap();
        let socket = datagrams(&udp, udp.bind(), None).unwrap();
        assert_eq!(SockRef::from(&socket).tos_v4().unwrap(), 0x60);
        #[cfg(target_os = "linux")]
        assert_eq!(SockRef::from(&socket).priority().unwrap(), 5);

        let tcp = config(Protocol::Tcp, "127.0.0.1:0").with_tos("ef").unwrap();
        let listener = listener(&tcp).unwrap();
        let remote = listener.local_addr().unwrap();
        let connected = stream(&tcp, remote).unwrap().connect(remote).await.unwrap();
        assert_eq!(SockRef::from(&connected).tos_v4().unwrap(), 0xb8);
        let (accepted, _) = listener.accept().await.unwrap();
        assert_eq!(SockRef::from(&accepted).tos_v4().unwrap(), 0xb8);

        if let Ok(socket) = datagrams(&udp, address("[::1]:0"), None) {
            assert_eq!(SockRef::from(&socket).tclass_v6().unwrap(), 0x60);
        }
    }

    #[tokio::test]
    async fn what_the_system_refuses_is_named() {
        let text = |error: FlowError| error.to_string();
        let nowhere = config(Protocol::Udp, "127.0.0.1:0")
            .with_interface("none0")
            .unwrap();
        for error in [
            datagrams(&nowhere, nowhere.bind(), None).map(drop),
            stream(&nowhere, address("127.0.0.1:9")).map(drop),
            listener(&nowhere).map(drop),
            check(&nowhere),
            source_of(&nowhere, address("127.0.0.1:9")).map(drop),
        ] {
            let error = text(error.unwrap_err());
            assert!(
                error.starts_with("transport option interface = none0: "),
                "{error}"
            );
        }

        // TEST-NET-1 is nobody's.
        let foreign = config(Protocol::Udp, "192.0.2.1:5060");
        for error in [
            datagrams(&foreign, foreign.bind(), None).map(drop),
            listener(&foreign).map(drop),
            check(&foreign),
        ] {
            let error = text(error.unwrap_err());
            assert!(
                error.starts_with("transport option bind = 192.0.2.1:5060: "),
                "{error}"
            );
        }
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bind = taken.local_addr().unwrap().to_string();
        let error = listener(&config(Protocol::Tcp, &bind)).unwrap_err();
        assert!(
            matches!(&error, FlowError::Setting { option: "bind", value, kind: ErrorKind::AddrInUse, .. } if **value == *bind),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_socket_is_replaced_on_its_port_and_shared_with_nobody() {
        let config = config(Protocol::Udp, "127.0.0.1:0");
        let old = datagrams(&config, config.bind(), None).unwrap();
        let address = old.local_addr().unwrap();
        assert!(datagrams(&config, address, None).is_err());
        let new = datagrams(&config, address, Some(&old)).unwrap();
        assert_eq!(new.local_addr().unwrap(), address);
        let reusing = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        reusing.set_reuse_address(true).unwrap();
        assert!(reusing.bind(&address.into()).is_err());
    }

    #[test]
    fn the_source_is_the_address_that_reaches_the_remote() {
        let any = config(Protocol::Udp, "0.0.0.0:0");
        let local = source_of(&any, address("127.0.0.1:5060")).unwrap();
        assert_eq!(local.ip(), address("127.0.0.1:0").ip());
        let bound = config(Protocol::Udp, "127.0.0.2:5060");
        let local = source_of(&bound, address("127.0.0.1:5060")).unwrap();
        assert_eq!(local.ip(), bound.bind().ip());
    }
}
