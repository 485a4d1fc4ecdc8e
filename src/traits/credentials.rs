//! Credentials that are fetched when they are needed.

use crate::{Algorithm, RegistrationId, Secret};
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::Arc;

/// What a challenge asks for
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CredentialsQuery {
    /// The realm of the challenge
    pub realm: Arc<str>,
    /// The user name, from [`Credentials::provided`](crate::Credentials::provided)
    pub username: Arc<str>,
    /// The digest algorithms that would do, for a provider that keeps hashes; in the registrar's order
    pub algorithms: Arc<[Algorithm]>,
}

impl CredentialsQuery {
    /// A question, for a test of a provider.
    #[must_use]
    pub fn new(
        realm: impl Into<Arc<str>>,
        username: impl Into<Arc<str>>,
        algorithms: &[Algorithm],
    ) -> Self {
        Self {
            realm: realm.into(),
            username: username.into(),
            algorithms: algorithms.into(),
        }
    }
}

/// Fetches secrets from a keychain, a database or a person
#[async_trait]
pub trait CredentialProvider: Send + Sync + Debug {
    /// The secret for this challenge; `None` when there is none, which counts as unanswerable.
    ///
    /// It has 30 s; no answer in that time counts as `None`.
    async fn credentials(&self, id: RegistrationId, query: &CredentialsQuery) -> Option<Secret>;
}
