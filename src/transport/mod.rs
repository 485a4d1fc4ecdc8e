//! The built-in transports: UDP, TCP, TLS and WebSocket over tokio's sockets.

mod icmp;
mod local;
mod socket;
mod stream;
mod tcp;
#[cfg(feature = "tls")]
mod tls;
mod udp;
#[cfg(feature = "ws")]
mod ws;

#[cfg(test)]
mod testing;

pub use tcp::TcpTransport;
#[cfg(feature = "tls")]
pub use tls::{TlsConfig, TlsConfigError, TlsConnector, TlsTransport, TlsVersion};
pub use udp::UdpTransport;
#[cfg(feature = "ws")]
pub use ws::{WsConfig, WsConfigError, WsTransport};
