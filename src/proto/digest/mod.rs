//! Digest authentication, the client's side: RFC 3261 §22, RFC 7616, RFC 8760.

mod challenge;
mod response;
mod sessions;

pub(crate) use challenge::{Challenge, Qop, parse_challenges};
pub(crate) use response::{Answer, Hex, ha1, hash};
pub(crate) use sessions::{
    Due, Query, Reaction, Refusal, Role, Rules, ServerProof, Sessions, Unanswerable,
};
