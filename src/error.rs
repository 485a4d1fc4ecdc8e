//! One error for `?` in applications; the functions return the narrow ones.

use crate::{
    BuildError, CredentialsError, Failure, MechanismError, RegisterError, TransportConfigError,
    UriError,
};

/// Any error of this crate
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration was refused.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A URI was refused.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Credentials were refused.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The configuration of a transport was refused.
    #[error(transparent)]
    Transport(#[from] TransportConfigError),
    /// Certificates, roots or a key were refused.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    Tls(#[from] crate::TlsConfigError),
    /// A security mechanism was refused.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// A command did not reach its registration.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A registration ended.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A value that rsip cannot hold, or would change.
    #[cfg(feature = "rsip-0_4")]
    #[error(transparent)]
    Rsip(#[from] crate::rsip_0_4::RsipError),
    /// The agent could not start.
    #[cfg(feature = "tokio")]
    #[error(transparent)]
    Agent(#[from] crate::AgentError),
    /// An answer to a request was not sent.
    #[cfg(feature = "tokio")]
    #[error(transparent)]
    Answer(#[from] crate::AnswerError),
}
