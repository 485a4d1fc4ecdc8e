//! Ports for servers and transports that have to know theirs before they are bound.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ephemeral ports, so that no socket which takes any port takes these in between; those of the lab are above
const PORTS: std::ops::Range<u16> = 11_000..19_000;

/// A port that nobody has on either loopback address, over UDP or TCP, and that nobody else of this process was given
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let start = (std::process::id() % u32::from(span)) as u16;
    (0..span)
        .map(|_| {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            PORTS.start + (start + step.wrapping_mul(7) % span) % span
        })
        .find(|port| {
            let here = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            here.into_iter().all(|ip| is_free(ip, *port))
        })
        .expect("a free port")
}

/// Also where there is no such address.
fn is_free(ip: IpAddr, port: u16) -> bool {
    let taken = |error: Option<std::io::Error>| {
        error.is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    !taken(UdpSocket::bind((ip, port)).err()) && !taken(TcpListener::bind((ip, port)).err())
}
