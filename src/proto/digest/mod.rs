//! Digest authentication, the client's side: RFC 3261 §22, RFC 7616, RFC 8760.

mod challenge;
mod contract;
mod response;
mod sessions;

pub(crate) use challenge::parse_challenges;
pub(crate) use contract::{Reaction, Role, Rules, ServerProof};
pub(crate) use sessions::Sessions;
