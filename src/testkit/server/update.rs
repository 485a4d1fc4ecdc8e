//! What a REGISTER asks for.

use super::DEFAULT_EXPIRES;
use crate::Protocol;
use crate::testkit::server_wire::{Request, address, parameter, split};
use std::net::SocketAddr;
use std::time::Duration;

/// What a REGISTER asks for
pub(super) struct Update {
    pub(super) to: String,
    pub(super) call_id: String,
    pub(super) cseq: u32,
    pub(super) expires: Option<Duration>,
    pub(super) contacts: Contacts,
    pub(super) source: SocketAddr,
    pub(super) protocol: Protocol,
}

pub(super) enum Contacts {
    /// `*`: remove all
    All,
    Each(Vec<AskedContact>),
}

pub(super) struct AskedContact {
    pub(super) uri: String,
    pub(super) parameters: Vec<String>,
    pub(super) expires: Option<Duration>,
}

impl Update {
    /// Reads it; `None` is a 400.
    pub(super) fn read(request: &Request, source: SocketAddr, protocol: Protocol) -> Option<Self> {
        let (to, _) = address(request.header("To")?)?;
        let (_, from) = address(request.header("From")?)?;
        parameter(&from, "tag").filter(|tag| !tag.is_empty())?;
        let mut cseq = request.header("CSeq")?.split_whitespace();
        let number = cseq
            .next()?
            .parse()
            .ok()
            .filter(|number| *number < 1 << 31)?;
        if cseq.next() != Some(&request.method) {
            return None;
        }
        let expires = request.header("Expires").map(seconds);
        let values = request.list("Contact");
        let contacts = if values.iter().any(|value| value == "*") {
            // RFC 3261 §10.2.2: alone, and with Expires: 0.
            if values.len() > 1 || expires != Some(Duration::ZERO) {
                return None;
            }
            Contacts::All
        } else {
            Contacts::Each(
                values
                    .iter()
                    .map(|value| AskedContact::read(value))
                    .collect::<Option<_>>()?,
            )
        };
        let call_id = request
            .header("Call-ID")
            .filter(|id| !id.is_empty())?
            .to_owned();
        Some(Self {
            to,
            call_id,
            cseq: number,
            expires,
            contacts,
            source,
            protocol,
        })
    }
}

impl AskedContact {
    fn read(value: &str) -> Option<Self> {
        let (uri, known) = address(value)?;
        let is_expires = |part: &String| {
            part.split('=')
                .next()
                .is_some_and(|name| name.trim().eq_ignore_ascii_case("expires"))
        };
        let parameters = split(value, ';')
            .into_iter()
            .skip(1)
            .filter(|part| !is_expires(part))
            .collect();
        Some(Self {
            uri,
            parameters,
            expires: parameter(&known, "expires").map(seconds),
        })
    }
}

/// A lifetime; what is malformed counts as 3600 s (RFC 3261 §10.3 step 6).
fn seconds(text: &str) -> Duration {
    text.trim()
        .parse::<u32>()
        .map_or(DEFAULT_EXPIRES, |seconds| {
            Duration::from_secs(seconds.into())
        })
}
