//! One integration binary: what runs in virtual time, and over real sockets.

mod machine;
mod torture;
