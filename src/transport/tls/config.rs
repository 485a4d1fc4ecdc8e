//! Whom a TLS transport believes, and what it shows of itself.

use super::certificate::{Parsed, bare};
use super::connector::TlsConnector;
use super::verifier::{Names, Trust, Verifier};
use crate::TlsError;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls::client::{ClientConfig, Resumption};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::ServerConfig;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, RootCertStore, SupportedProtocolVersion, version};

/// Whom a [`TlsTransport`](crate::TlsTransport) believes, and what it shows of itself
///
/// Without more, a peer has to show a certificate for the host of the URI (RFC 5922), vouched for by a root that the
/// system trusts. Texts are PEM, as files have it; reading the files is the caller's. Certificates are judged by the
/// system's clock and not asked for revocation.
///
/// ```
/// # use sip_registration::{TlsConfig, TlsVersion};
/// let config = TlsConfig::new().with_min_version(TlsVersion::V1_3);
/// ```
#[derive(Clone)]
pub struct TlsConfig {
    roots: Option<Given>,
    certificate: Option<Own>,
    min_version: TlsVersion,
    sni: bool,
    server_name: Option<Arc<str>>,
    anybody: bool,
    connector: Option<TlsConnector>,
}

/// Roots that take the system's place
#[derive(Clone)]
struct Given {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

/// Our certificate with its key
#[derive(Clone)]
struct Own {
    key: Arc<CertifiedKey>,
    until: Option<SystemTime>,
}

/// A version of TLS; older ones are not spoken (RFC 8996)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum TlsVersion {
    /// RFC 5246
    #[default]
    V1_2,
    /// RFC 8446
    V1_3,
}

/// Why TLS cannot be configured so
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// The text has no certificate, or one that cannot be read.
    #[error("no certificate that can be read among the {0}")]
    NoCertificate(&'static str),
    /// A certificate cannot be a root.
    #[error("a root certificate is unusable: {0}")]
    BadRoot(Arc<str>),
    /// The text has no private key that can be read (an encrypted one cannot), or of a kind that is not known. Nothing
    /// of the text is shown.
    #[error("no private key that can be read")]
    NoKey,
    /// The private key is not that of the certificate.
    #[error("the private key is not that of the certificate")]
    KeyMismatch,
    /// The server name is no name that a certificate could have.
    #[error("{0:?} is no name that a certificate could have")]
    ServerName(Arc<str>),
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl TlsConfig {
    /// The system's roots, no certificate of our own, TLS 1.2 or newer, SNI.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            roots: None,
            certificate: None,
            min_version: TlsVersion::V1_2,
            sni: true,
            server_name: None,
            anybody: false,
            connector: None,
        }
    }

    /// Connections by a client of the host's own making: roots, versions, SNI, the certificate towards servers and
    /// [`dangerous_accept_any_certificate`](Self::dangerous_accept_any_certificate) are then its business alone.
    #[must_use]
    pub fn from_connector(connector: TlsConnector) -> Self {
        Self {
            connector: Some(connector),
            ..Self::new()
        }
    }

    /// Adds roots; once there is one, the system's do not count (pjsip.conf `ca_list_file`). Default: the system's.
    ///
    /// A server that shows a certificate given here is believed too, so that a self-signed one can be named.
    ///
    /// # Errors
    /// When there is no certificate in it, or one that cannot be a root.
    pub fn with_roots_pem(mut self, pem: &[u8]) -> Result<Self, TlsConfigError> {
        let mut given = self.roots.take().unwrap_or_else(|| Given {
            store: RootCertStore::empty(),
            certificates: Vec::new(),
        });
        for certificate in certificates(pem, "roots")? {
            given
                .store
                .add(certificate.clone())
                .map_err(|error| TlsConfigError::BadRoot(error.to_string().into()))?;
            given.certificates.push(certificate);
        }
        self.roots = Some(given);
        Ok(self)
    }

    /// Sets our certificate, its issuers after it, and its private key: for servers that ask for one (mutual TLS), and
    /// for the listener (pjsip.conf `cert_file`, `priv_key_file`). Default none.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn with_certificate_pem(
        mut self,
        chain: &[u8],
        key: &[u8],
    ) -> Result<Self, TlsConfigError> {
        let chain = certificates(chain, "certificates of our own")?;
        let until = chain
            .first()
            .and_then(|first| Parsed::read(first))
            .map(|parsed| parsed.not_after);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsConfigError::NoKey)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsConfigError::KeyMismatch,
            rustls::Error::InvalidCertificate(_) => {
                TlsConfigError::NoCertificate("certificates of our own")
            }
            _ => TlsConfigError::NoKey,
        })?;
        let key = Arc::new(key);
        self.certificate = Some(Own { key, until });
        Ok(self)
    }

    /// Sets the oldest version that is spoken; default TLS 1.2 (pjsip.conf `method`).
    #[must_use]
    pub const fn with_min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// Sets whether the name asked for is told to the server before it shows a certificate; default `true` (RFC 5922
    /// §7.8). An address is never told.
    #[must_use]
    pub const fn with_sni(mut self, sni: bool) -> Self {
        self.sni = sni;
        self
    }

    /// Sets the name or address to ask for and to expect in place of the URI's host, for a server that is reached by
    /// another name than its own; default none.
    ///
    /// # Errors
    /// When it is no name that a certificate could have.
    pub fn with_server_name(mut self, name: &str) -> Result<Self, TlsConfigError> {
        if server_name(name).is_err() {
            return Err(TlsConfigError::ServerName(name.into()));
        }
        self.server_name = Some(name.into());
        Ok(self)
    }

    /// Believes anybody, so that whoever is on the path can read and forge everything, passwords' answers included:
    /// for tests with self-signed certificates. Logged as a warning at the start and for each connection, and told
    /// with each flow's first grant. Where a certificate can be had, [`with_roots_pem`](Self::with_roots_pem) does
    /// better.
    #[must_use]
    pub const fn dangerous_accept_any_certificate(mut self) -> Self {
        self.anybody = true;
        self
    }

    /// When the certificate that servers may ask for expires.
    pub(super) fn shown_until(&self) -> Option<SystemTime> {
        let own = self.certificate.as_ref()?;
        own.until.filter(|_| self.connector.is_none())
    }

    pub(super) const fn believes_anybody(&self) -> bool {
        self.anybody && self.connector.is_none()
    }

    /// The name to ask for and to expect from the peer at `host`.
    pub(super) fn name_of(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        server_name(self.server_name.as_deref().unwrap_or(host))
    }

    /// The client, by the system's roots where it takes some. Reads files.
    pub(super) fn client(&self, names: Names) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(connector) = &self.connector {
            return Ok(connector.config());
        }
        let trust = match &self.roots {
            _ if self.anybody => Trust::Anybody,
            Some(given) => Trust::Roots {
                roots: given.store.clone(),
                given: given.certificates.clone(),
            },
            None => Trust::Roots {
                roots: system_roots()?,
                given: Vec::new(),
            },
        };
        let provider = provider();
        let verifier = Verifier {
            trust,
            names,
            algorithms: provider.signature_verification_algorithms,
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions())
            .map_err(unexpected)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.certificate {
            Some(own) => config
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key)))),
            None => config.with_no_client_auth(),
        };
        config.enable_sni = self.sni;
        // Each connection proves itself anew; there are few of them.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// The server, if there is a certificate for it.
    pub(super) fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let own = self.certificate.as_ref().ok_or(TlsError::NoCertificate)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(self.versions())
            .map_err(unexpected)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key))));
        Ok(Arc::new(config))
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        match self.min_version {
            TlsVersion::V1_2 => &VERSIONS,
            TlsVersion::V1_3 => &VERSIONS[..1],
        }
    }
}

impl fmt::Debug for TlsConfig {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = self.roots.as_ref().map(|given| given.certificates.len());
        f.debug_struct("TlsConfig")
            .field("roots", &roots)
            .field("certificate", &self.certificate.is_some())
            .field("min_version", &self.min_version)
            .field("sni", &self.sni)
            .field("server_name", &self.server_name)
            .field("anybody", &self.anybody)
            .field("connector", &self.connector)
            .finish()
    }
}

/// What is spoken, newest first
static VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// The cryptography: named here, so that what else is in the program has no say in it
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What the versions and the provider fixed here do not bring about
fn unexpected(error: rustls::Error) -> TlsError {
    TlsError::Broken(error.to_string().into())
}

fn certificates(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or(TlsConfigError::NoCertificate(what))
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(bare(name))
        .map(|name| name.to_owned())
        .map_err(|_| TlsError::Name(name.into()))
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Old roots that nobody can read are in every system's store.
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, errors = ?found.errors, "the system's roots");
    if added > 0 {
        return Ok(roots);
    }
    let why = found
        .errors
        .first()
        .map_or_else(|| "the system has none".to_owned(), ToString::to_string);
    Err(TlsError::NoRoots(why.into()))
}
