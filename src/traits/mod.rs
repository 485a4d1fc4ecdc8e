//! The seams: what a host or a test can put in place of the built-in parts.

mod credentials;
mod host;
mod inbound;
mod registrar;
mod reply;
mod resolve;
mod shared;
mod transport;

pub use credentials::{CredentialProvider, CredentialsQuery};
pub use host::{Host, InboundMessage, Match};
pub(crate) use inbound::FirstLine;
pub use inbound::{Arrival, Inbound, Received};
#[cfg(feature = "tokio")]
pub(crate) use inbound::{FIRST_ACCEPTED, Sink};
pub use registrar::{RegisterError, Registrar};
pub use reply::ResponseBuilder;
pub use resolve::{Answer, Naptr, Query, QueryKind, Records, ResolveError, Resolver, Srv};
pub use transport::{Flow, Transport};
