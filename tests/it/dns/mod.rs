//! DNS for real: the resolver, and agents that find their registrars by it
//!
//! Tests that need dnsmasq start one each, on a free port of the loopback.

mod agent;
mod resolver;
pub(crate) mod server;
