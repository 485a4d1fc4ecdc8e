//! What a WebSocket is asked for with.

use crate::TlsConfig;
use std::fmt;
use std::sync::Arc;
use tokio_tungstenite::tungstenite::http::header::{self, HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::http::uri::PathAndQuery;

/// What a [`WsTransport`](crate::WsTransport) says in its handshake, and whom it believes
///
/// ```
/// # use sip_registration::{Protocol, TransportConfig, WsConfig, WsTransport};
/// let ws = WsConfig::new()
///     .with_path("/ws")?
///     .with_header("Origin", "https://phone.example.com")?;
/// let transport = WsTransport::new(TransportConfig::new("wss", Protocol::Wss)?, ws);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct WsConfig {
    path: PathAndQuery,
    headers: Vec<(HeaderName, HeaderValue)>,
    tls: TlsConfig,
}

/// Why a WebSocket cannot be asked for so
///
/// What the path and a header say may be a secret, and is not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WsConfigError {
    /// The path does not begin with `/`, or has what no path may have.
    #[error("the path of a WebSocket begins with / and has neither spaces nor a fragment")]
    Path,
    /// No header can have this name.
    #[error("{name:?} is no name of a header")]
    HeaderName {
        /// The name
        name: Arc<str>,
    },
    /// The handshake itself writes this header.
    #[error("the header {name:?} is written by the handshake")]
    HeaderReserved {
        /// The name
        name: Arc<str>,
    },
    /// The value has a line end or another control character.
    #[error("the value of the header {name:?} has a control character")]
    HeaderValue {
        /// The header's name
        name: Arc<str>,
    },
}

impl Default for WsConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl WsConfig {
    /// The path `/`, no header of its own, and TLS with the system's roots for `wss`.
    #[must_use]
    pub fn new() -> Self {
        Self {
            path: PathAndQuery::from_static("/"),
            headers: Vec::new(),
            tls: TlsConfig::new(),
        }
    }

    /// Sets the path, and a query after it, as `/ws?token=…`; default `/` (RFC 6455 §3). A query is not shown in `Debug`.
    ///
    /// # Errors
    /// When it does not begin with `/`, or cannot be a path.
    pub fn with_path(mut self, path: &str) -> Result<Self, WsConfigError> {
        let good = path.starts_with('/') && !path.contains('#') && path.is_ascii();
        let path = path.parse().ok().filter(|_| good);
        self.path = path.ok_or(WsConfigError::Path)?;
        Ok(self)
    }

    /// Adds a header, as `Origin`, `Cookie` or `Authorization`; default none (RFC 7118 §7). Its value is not shown in
    /// `Debug`.
    ///
    /// # Errors
    /// When name or value cannot be that of a header, or the handshake itself writes it.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, WsConfigError> {
        let shown = || Arc::from(name);
        let parsed = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| WsConfigError::HeaderName { name: shown() })?;
        let reserved = RESERVED.contains(&parsed) || parsed.as_str().starts_with("sec-websocket-");
        if reserved {
            return Err(WsConfigError::HeaderReserved { name: shown() });
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| WsConfigError::HeaderValue { name: shown() })?;
        value.set_sensitive(true);
        self.headers.push((parsed, value));
        Ok(self)
    }

    /// Sets whom to believe over `wss`, and what to show to a server that asks; default [`TlsConfig::new`].
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConfig) -> Self {
        self.tls = tls;
        self
    }

    pub(super) fn path(&self) -> &str {
        self.path.as_str()
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.headers.iter()
    }

    pub(super) const fn tls(&self) -> &TlsConfig {
        &self.tls
    }
}

impl fmt::Debug for WsConfig {
    /// Never a query or the value of a header: sessions and tokens are there (RFC 7118 Annex A.2, A.3).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("WsConfig")
            .field("path", &self.path.path())
            .field("headers", &names)
            .field("tls", &self.tls)
            .finish()
    }
}

/// What is the handshake's to say (RFC 6455 §4.1), and what would change the length of the request; beside Sec-WebSocket-*
static RESERVED: [HeaderName; 5] = [
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_debug() {
        let config = WsConfig::new()
            .with_path("/ws?token=s3cret")
            .and_then(|config| config.with_header("Cookie", "session=s3cret"))
            .unwrap();
        let debug = format!("{config:?}");
        assert!(debug.contains("/ws") && debug.contains("cookie"), "{debug}");
        assert!(!debug.contains("s3cret"), "{debug}");
    }

    #[test]
    fn what_is_no_path_or_header_is_refused() {
        for path in [
            "",
            "ws",
            "http://h/ws",
            "/a b",
            "/a#b",
            "/a\r\nX: y",
            "*",
            "/ä",
        ] {
            let refused = WsConfig::new().with_path(path).err();
            assert_eq!(refused, Some(WsConfigError::Path), "{path}");
        }
        let refused = |name: &str, value: &str| WsConfig::new().with_header(name, value).err();
        let name: Arc<str> = "a b".into();
        assert_eq!(
            refused("a b", "c"),
            Some(WsConfigError::HeaderName { name })
        );
        for name in [
            "Host",
            "upgrade",
            "Sec-WebSocket-Protocol",
            "Content-Length",
        ] {
            let name: Arc<str> = name.into();
            assert_eq!(
                refused(&name, "c"),
                Some(WsConfigError::HeaderReserved { name })
            );
        }
        let name: Arc<str> = "Cookie".into();
        assert_eq!(
            refused("Cookie", "a\r\nX: y"),
            Some(WsConfigError::HeaderValue { name })
        );
    }
}
