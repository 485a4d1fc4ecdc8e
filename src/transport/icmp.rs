//! What the network says of datagrams that it could not deliver (ICMP), with the address that each was for.
//!
//! One socket carries all UDP flows, so that a port that others know stays ours. The system tells such a socket of an
//! ICMP error, but not whose datagram it was about: only its error queue does (Linux, IP_RECVERR). Elsewhere nothing is
//! told, and the transaction's timer F finds out (RFC 3261 §17.1.2.2).
//!
//! Anybody who knows both addresses can forge these errors. They are hints: a flow that one is about is given up and made
//! anew or another target is tried, at the pace of D2; a binding that the registrar granted stays until it expires.

use crate::FlowError;
use std::net::SocketAddr;
use tokio::net::UdpSocket;

/// A datagram that did not arrive
#[derive(Debug)]
pub(super) struct Undelivered {
    pub(super) to: SocketAddr,
    pub(super) error: FlowError,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use super::{FlowError, SocketAddr, UdpSocket, Undelivered};
    use nix::cmsg_space;
    use nix::libc::{SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, sock_extended_err, sockaddr_in6};
    use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
    use std::io::{Error, Result};
    use std::net::{SocketAddrV4, SocketAddrV6};
    use std::os::fd::AsRawFd;
    use tokio::io::Interest;

    /// Asks for the socket's error queue to be filled.
    pub(in super::super) fn ask(socket: &UdpSocket, ipv4: bool) -> Result<()> {
        if ipv4 {
            setsockopt(socket, Ipv4RecvErr, &true)?;
        } else {
            setsockopt(socket, Ipv6RecvErr, &true)?;
        }
        Ok(())
    }

    /// Waits until there is something to receive, or something in the error queue.
    pub(in super::super) async fn ready(socket: &UdpSocket) -> Result<()> {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
        ready.map(drop)
    }

    /// The next of the error queue; none where it is empty, or where the next says nothing about delivery.
    pub(in super::super) fn next(socket: &UdpSocket) -> Result<Option<Undelivered>> {
        socket.try_io(Interest::ERROR, || {
            let mut quoted = [0; 64];
            let mut parts = [std::io::IoSliceMut::new(&mut quoted)];
            let mut room = cmsg_space!(sock_extended_err, sockaddr_in6);
            let received = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut room),
                MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
            )?;
            let to = received.address.as_ref().and_then(address);
            let error = received.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4RecvErr(error, _)
                | ControlMessageOwned::Ipv6RecvErr(error, _) => failure(&error),
                _ => None,
            });
            Ok(to.zip(error).map(|(to, error)| Undelivered { to, error }))
        })
    }

    fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
        let v4 = storage
            .as_sockaddr_in()
            .map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
        v4.or_else(|| {
            let v6 = storage.as_sockaddr_in6()?;
            Some(SocketAddr::V6(SocketAddrV6::from(*v6)))
        })
    }

    /// Unreachable network, host, protocol or port, and parameter problems, are failures to send; source quench and
    /// exceeded times are not (RFC 3261 §18.4). Nor is a path that is too narrow: the system has noted its width, and
    /// the retransmission goes in fragments.
    fn failure(error: &sock_extended_err) -> Option<FlowError> {
        let failed = match (error.ee_origin, error.ee_type, error.ee_code) {
            (SO_EE_ORIGIN_ICMP, UNREACHABLE, FRAGMENTATION_NEEDED) => false,
            (SO_EE_ORIGIN_ICMP, UNREACHABLE | PARAMETER_PROBLEM, _)
            | (SO_EE_ORIGIN_ICMP6, UNREACHABLE_6 | PARAMETER_PROBLEM_6, _) => true,
            _ => false,
        };
        let errno = i32::try_from(error.ee_errno).ok().filter(|_| failed)?;
        Some(Error::from_raw_os_error(errno).into())
    }

    /// Types and codes of RFC 792 and RFC 4443
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    const PARAMETER_PROBLEM: u8 = 12;
    const UNREACHABLE_6: u8 = 1;
    const PARAMETER_PROBLEM_6: u8 = 4;

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_what_rfc_3261_lists_is_a_failure() {
            let told = |ee_origin, ee_type, ee_code| {
                failure(&sock_extended_err {
                    ee_errno: nix::libc::ECONNREFUSED as u32,
                    ee_origin,
                    ee_type,
                    ee_code,
                    ee_pad: 0,
                    ee_info: 0,
                    ee_data: 0,
                })
                .is_some()
            };
            for code in [0, 1, 2, 3, 13] {
                assert!(told(SO_EE_ORIGIN_ICMP, 3, code), "{code}");
            }
            assert!(told(SO_EE_ORIGIN_ICMP, 12, 0));
            assert!(told(SO_EE_ORIGIN_ICMP6, 1, 4));
            // Too big, source quench, exceeded times, and what this system says itself.
            assert!(!told(SO_EE_ORIGIN_ICMP, 3, 4));
            assert!(!told(SO_EE_ORIGIN_ICMP, 4, 0));
            assert!(!told(SO_EE_ORIGIN_ICMP, 11, 0));
            assert!(!told(SO_EE_ORIGIN_ICMP6, 2, 0));
            assert!(!told(SO_EE_ORIGIN_ICMP6, 3, 0));
            assert!(!told(1, 3, 3));
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use super::{UdpSocket, Undelivered};
    use std::io::{ErrorKind, Result};

    pub(in super::super) fn ask(_: &UdpSocket, _: bool) -> Result<()> {
        Ok(())
    }

    pub(in super::super) async fn ready(socket: &UdpSocket) -> Result<()> {
        socket.readable().await
    }

    pub(in super::super) fn next(_: &UdpSocket) -> Result<Option<Undelivered>> {
        Err(ErrorKind::WouldBlock.into())
    }
}

pub(super) use system::{ask, next, ready};
