//! Who the peer is: the chain by webpki, the name by RFC 5922, for a WebSocket also by what HTTPS takes for one.

use super::certificate::Parsed;
use std::time::{Duration, SystemTime};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Whom to believe
#[derive(Debug)]
pub(super) enum Trust {
    /// Who is vouched for by one of these roots
    Roots {
        roots: RootCertStore,
        /// And who shows one of these very certificates: it was named by the configuration, and vouches for itself
        given: Vec<CertificateDer<'static>>,
    },
    /// Anybody
    Anybody,
}

/// Which names of a certificate are those of a host
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::transport) enum Names {
    /// Whole ones (RFC 5922 §7.2)
    Whole,
    /// Also wildcards, as HTTPS has them (RFC 7118 §9.1, RFC 9525 §6.3)
    #[cfg_attr(
        not(feature = "ws"),
        expect(dead_code, reason = "only a WebSocket takes them")
    )]
    Wildcards,
}

#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) trust: Trust,
    pub(super) names: Names,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn chain(
        &self,
        roots: &RootCertStore,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            algorithms,
        )
    }
}

/// Whether a certificate that nobody but itself vouches for holds at `now`.
fn in_force(parsed: &Parsed, now: UnixTime) -> Result<(), Error> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
    if now < parsed.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Roots { roots, given } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = Parsed::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        if given.contains(end_entity) {
            in_force(&parsed, now)?;
        } else {
            self.chain(roots, end_entity, intermediates, now)
                .map_err(|error| match error {
                    // What `openssl req -x509` makes says that it is a CA, which webpki takes for the fault.
                    Error::InvalidCertificate(CertificateError::Other(_)) if parsed.self_issued => {
                        CertificateError::UnknownIssuer.into()
                    }
                    error => error,
                })?;
        }
        if !parsed.is_for(&server_name.to_str(), self.names) {
            return Err(CertificateError::NotValidForNameContext {
                expected: server_name.to_owned(),
                presented: parsed.names().map(|name| name.to_string()).collect(),
            }
            .into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
