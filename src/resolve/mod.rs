//! The built-in resolvers.

#[cfg(feature = "dns")]
mod hickory;
#[cfg(feature = "dns")]
mod order;
#[cfg(feature = "dns")]
mod servers;
mod system;

#[cfg(feature = "dns")]
pub use hickory::{DnsResolver, DnsResolverBuilder};
pub use system::SystemResolver;
