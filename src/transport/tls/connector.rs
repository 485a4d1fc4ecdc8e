//! The one place where a type of rustls is public.

use std::fmt;
use std::sync::Arc;
use tokio_rustls::rustls;

/// A TLS client of the host's own making, for [`TlsConfig::from_connector`](crate::TlsConfig::from_connector)
///
/// For what [`TlsConfig`](crate::TlsConfig) has no word for: keys in hardware, revocation lists, another provider of
/// cryptography. Cheap to clone.
#[derive(Clone)]
pub struct TlsConnector(Arc<rustls::ClientConfig>);

impl TlsConnector {
    /// Takes a client configuration of rustls 0.23. Its verifier alone decides who the peer is: give it one that
    /// follows RFC 5922, rustls's own accepts wildcards and knows no SIP URIs.
    #[must_use]
    pub const fn from_rustls(config: Arc<rustls::ClientConfig>) -> Self {
        Self(config)
    }

    pub(super) fn config(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConnector")
    }
}
