//! The built-in transports: UDP and TCP over tokio's sockets.

mod local;
mod stream;
mod tcp;
mod udp;

#[cfg(test)]
mod testing;

pub use tcp::TcpTransport;
pub use udp::UdpTransport;
