//! The built-in transports: UDP, TCP and TLS over tokio's sockets.

mod icmp;
mod local;
mod socket;
mod stream;
mod tcp;
#[cfg(feature = "tls")]
mod tls;
mod udp;

#[cfg(test)]
mod testing;

pub use tcp::TcpTransport;
#[cfg(feature = "tls")]
pub use tls::{TlsConfig, TlsConfigError, TlsConnector, TlsTransport, TlsVersion};
pub use udp::UdpTransport;
