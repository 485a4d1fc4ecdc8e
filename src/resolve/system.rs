//! Names to addresses by the operating system.

use crate::{Answer, Query, QueryKind, ResolveError, Resolver};
use async_trait::async_trait;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;

/// The system's resolver (`getaddrinfo`: hosts file, DNS, whatever it is configured for)
///
/// It finds A and AAAA records in the system's order (RFC 6724), and says nothing of their lifetime: answers hold for
/// 60 s.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemResolver;

impl SystemResolver {
    /// The system's resolver.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError> {
        if query.kind != QueryKind::Addresses {
            return Err(ResolveError::Unsupported(query.kind));
        }
        let host = query.name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Answer::new(vec![address]));
        }
        let found = tokio::net::lookup_host((host, 0))
            .await
            .map_err(|error| refusal(&query.name, &error))?;
        let mut addresses = Vec::new();
        for address in found.map(|socket| socket.ip().to_canonical()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            Err(ResolveError::NoAddress(Arc::clone(&query.name)))
        } else {
            Ok(Answer::new(addresses))
        }
    }
}

/// std gives `getaddrinfo`'s errors no kind of their own: the text is all there is on Unix, a number on Windows.
fn refusal(host: &Arc<str>, error: &Error) -> ResolveError {
    let text = error.to_string();
    // WSAHOST_NOT_FOUND, WSANO_DATA
    let windows = cfg!(windows) && matches!(error.raw_os_error(), Some(11_001 | 11_004));
    match error.kind() {
        ErrorKind::TimedOut => ResolveError::Timeout,
        ErrorKind::NotFound | ErrorKind::InvalidInput => ResolveError::NoAddress(Arc::clone(host)),
        _ if windows || NO_ADDRESS.iter().any(|known| text.contains(known)) => {
            ResolveError::NoAddress(Arc::clone(host))
        }
        _ => ResolveError::Failed(text.into()),
    }
}

/// EAI_NONAME and EAI_NODATA as glibc, musl and the BSDs (macOS) word them
const NO_ADDRESS: [&str; 6] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
    "nodename nor servname provided",
    "Address family for hostname not supported",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_its_own_answer() {
        for (host, address) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("::1", "::1")] {
            let answer = SystemResolver::new()
                .resolve(&Query::new(host))
                .await
                .unwrap();
            assert_eq!(answer, Answer::new(vec![address.parse().unwrap()]));
        }
    }

    #[tokio::test]
    async fn localhost_is_this_machine() {
        let answer = SystemResolver::new()
            .resolve(&Query::new("localhost"))
            .await
            .unwrap();
        assert!(
            answer.addresses().iter().all(IpAddr::is_loopback) && !answer.addresses().is_empty()
        );
    }

    #[test]
    fn an_unknown_name_is_told_from_a_failed_service() {
        let host = Arc::from("nowhere.invalid");
        let unknown =
            Error::other("failed to lookup address information: Name or service not known");
        assert_eq!(
            refusal(&host, &unknown),
            ResolveError::NoAddress(host.clone())
        );
        let failed = Error::other(
            "failed to lookup address information: Temporary failure in name resolution",
        );
        assert!(matches!(refusal(&host, &failed), ResolveError::Failed(_)));
        assert_eq!(
            refusal(&host, &ErrorKind::TimedOut.into()),
            ResolveError::Timeout
        );
    }
}
