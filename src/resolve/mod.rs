//! The built-in resolvers.

mod system;

pub use system::SystemResolver;
