//! One integration binary: what runs in virtual time, and over real sockets.

mod foreign;
#[cfg(feature = "tokio")]
mod kamailio;
#[cfg(feature = "tokio")]
mod lab;
mod machine;
mod torture;
