//! What tests of an application need: registrations in virtual time, a transport that is none, a small registrar.

mod message;
#[cfg(feature = "tokio")]
mod mock;
mod server;
#[cfg(feature = "tokio")]
mod server_net;
mod server_wire;
mod sim;

pub use message::{Reply, SentRequest, stun_error, stun_success};
#[cfg(feature = "tokio")]
pub use mock::{MockTransport, Wire};
pub use server::{
    Fault, LoggedRequest, ServerAlgorithm, ServerBinding, ServerReply, StunAnswer, TestServer,
};
#[cfg(feature = "tokio")]
pub use server_net::RunningServer;
pub use sim::{SentKeepAlive, Sim};
