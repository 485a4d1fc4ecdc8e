//! What tests of an application need: a machine in virtual time, a transport that is none, a small registrar.

mod message;
#[cfg(feature = "tokio")]
mod mock;

#[cfg(feature = "tokio")]
mod server_net;
mod sim;

pub use message::{Reply, SentRequest};
#[cfg(feature = "tokio")]
pub use mock::{MockRequest, MockTransport, ReplyBuilder, Wire};

#[cfg(feature = "tokio")]
pub use server_net::*;
pub use sim::Sim;
