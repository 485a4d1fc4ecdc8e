//! One integration binary: what runs in virtual time, and over real sockets.

#[cfg(feature = "tokio")]
mod kamailio;
#[cfg(feature = "tokio")]
mod lab;
mod foreign;
mod machine;
mod torture;
