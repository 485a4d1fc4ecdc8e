//! One error for `?` in applications; the functions return the narrow ones.

use crate::{BuildError, CredentialsError, Failure, RegisterError, UriError};

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
    /// A command did not reach its registration.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A registration ended.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The agent could not start.
    #[cfg(feature = "tokio")]
    #[error(transparent)]
    Agent(#[from] crate::AgentError),
}
