//! What an error of rustls means for a flow.

use super::certificate::printable;
use crate::{FlowError, TlsError};
use std::io::{Error, ErrorKind};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

/// Reads an error of the handshake.
pub(super) fn handshake(error: Error) -> FlowError {
    match inner(&error) {
        // Before anything was agreed upon, what is no TLS message is another protocol.
        Some(rustls::Error::InvalidMessage(_)) => FlowError::Tls(TlsError::NotTls),
        _ => stream(error),
    }
}

/// Reads an error of an established connection. In TLS 1.3 it is there that a peer refuses our certificate.
pub(in crate::transport) fn stream(error: Error) -> FlowError {
    match inner(&error) {
        Some(tls) => FlowError::Tls(meaning(tls)),
        None if error.kind() == ErrorKind::UnexpectedEof => FlowError::Tls(TlsError::Cut),
        None => error.into(),
    }
}

fn inner(error: &Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn meaning(error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsError::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsError::NotYetValid
            }
            CertificateError::UnknownIssuer => TlsError::UnknownIssuer,
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => TlsError::WrongName {
                asked: expected.to_str().as_ref().into(),
                found: presented.iter().map(|name| printable(name)).collect(),
            },
            other => TlsError::BadCertificate(printable(&other.to_string())),
        },
        rustls::Error::AlertReceived(alert) => {
            let name = printable(&format!("{alert:?}"));
            match alert {
                AlertDescription::NoCertificate
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::CertificateRequired => TlsError::NotAccepted(name),
                _ => TlsError::Alert(name),
            }
        }
        rustls::Error::PeerIncompatible(why) => {
            TlsError::Incompatible(printable(&format!("{why:?}")))
        }
        other => TlsError::Broken(printable(&other.to_string())),
    }
}
