//! Digest authentication, the client's side: RFC 3261 §22, RFC 7616, RFC 8760.

mod challenge;
mod response;
mod sessions;

pub(crate) use challenge::parse_challenges;
pub(crate) use sessions::{Reaction, Role, Rules, ServerProof, Sessions};
