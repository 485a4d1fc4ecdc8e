//! What an application holds, and can mock.

use crate::{
    Change, Flow, Match, Registration, RegistrationId, Removal, Status, Transcript, WayOut,
};
use async_trait::async_trait;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a command did not reach its registration
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// There is no such registration, or no longer.
    #[error("no such registration")]
    Unknown,
    /// The agent has ended.
    #[error("the agent has shut down")]
    Closed,
}

/// Keeps registrations alive: `Agent` is one, a test's mock another
///
/// Commands return when they were taken, not when the registrar has answered; outcomes come as events and in
/// [`status`](Self::status). New methods come with default bodies, so that a mock keeps compiling.
#[async_trait]
pub trait Registrar: Send + Sync + Debug {
    /// Adds a registration and starts it, after its initial delay.
    ///
    /// When the future is dropped before it is ready, the registration is removed again: nobody would know its id.
    async fn register(&self, registration: Registration) -> Result<RegistrationId, RegisterError>;
    /// Replaces the configuration; what the change causes is returned.
    async fn reconfigure(
        &self,
        id: RegistrationId,
        to: Registration,
    ) -> Result<Change, RegisterError>;
    /// Sends a REGISTER at once (D20); while an [`unregister`](Self::unregister) is under way, as soon as that is over.
    async fn refresh(&self, id: RegistrationId) -> Result<(), RegisterError>;
    /// Un-REGISTER, then REGISTER: the reference's `pjsip send register` (D20).
    async fn reregister(&self, id: RegistrationId) -> Result<(), RegisterError>;
    /// Un-REGISTER; the entry stays, and registers again on [`refresh`](Self::refresh) (`pjsip send unregister`).
    async fn unregister(&self, id: RegistrationId) -> Result<Removal, RegisterError>;
    /// Un-REGISTER and forget, in at most `within`; where that is 0 nothing is sent, the registration is only forgotten.
    async fn remove(&self, id: RegistrationId, within: Duration) -> Result<Removal, RegisterError>;
    /// The configuration in force: the option set, read back.
    async fn registration(&self, id: RegistrationId) -> Option<Arc<Registration>>;
    /// The state of one registration.
    async fn status(&self, id: RegistrationId) -> Option<Status>;
    /// The last request and its answer, where [`Policy::keep_transcript`](crate::Policy::keep_transcript) has it so (D27).
    ///
    /// None unless implemented.
    async fn transcript(&self, _id: RegistrationId) -> Option<Transcript> {
        None
    }
    /// The state of all.
    async fn statuses(&self) -> Vec<(RegistrationId, Status)>;
    /// Asks the registrar for the bindings of the AOR; the answer is [`Event::Bindings`](crate::Event::Bindings).
    async fn query(&self, id: RegistrationId) -> Result<(), RegisterError>;
    /// Removes every binding of the AOR, other devices' too (`Contact: *`, RFC 3261 §10.2.2).
    async fn remove_all(&self, id: RegistrationId) -> Result<(), RegisterError>;
    /// Sends nothing for this registration until `until`, or until [`resume`](Self::resume) (D20).
    async fn pause(
        &self,
        id: RegistrationId,
        until: Option<Instant>,
        unregister: bool,
    ) -> Result<(), RegisterError>;
    /// Ends a pause.
    async fn resume(&self, id: RegistrationId) -> Result<(), RegisterError>;
    /// Lets a registration that ended with refused credentials try again (D6).
    async fn retry_credentials(&self, id: RegistrationId) -> Result<(), RegisterError>;
    /// The registration that an inbound request belongs to.
    async fn matches(&self, request_uri: &str, to: &str, source: SocketAddr) -> Option<Match>;
    /// The registrations that an inbound request may belong to: the one of [`matches`](Self::matches), or all between which
    /// it is ambiguous, at most 16 of them (D24).
    ///
    /// What `matches` says unless implemented.
    async fn candidates(&self, request_uri: &str, to: &str, source: SocketAddr) -> Vec<Match> {
        let found = self.matches(request_uri, to, source).await;
        found.into_iter().collect()
    }
    /// The flows of a registration: what it is bound to, or is using now; requests sent there reach the registrar.
    ///
    /// None unless implemented.
    async fn flows(&self, _id: RegistrationId) -> Vec<Arc<dyn Flow>> {
        Vec::new()
    }
    /// How requests of the host go out the way of a registration: flow, Route, Contact, GRUUs, Security-Verify; the best
    /// first. Empty while it is not bound, or no flow of it is up.
    ///
    /// None unless implemented.
    async fn ways_out(&self, _id: RegistrationId) -> Vec<WayOut> {
        Vec::new()
    }
    /// The states of the flows of a registration by their reg-ids; of one without `outbound` there is one, under 1.
    ///
    /// None unless implemented.
    async fn flow_statuses(&self, _id: RegistrationId) -> Vec<(u8, Status)> {
        Vec::new()
    }
    /// Asks the registrar for the bindings of the AOR, and removes those that an earlier run of this very device has left
    /// behind; the answer is [`Event::Bindings`](crate::Event::Bindings), as it is then. What is not known to be ours is
    /// never touched: see [`Binding::stale`](crate::Binding::stale).
    ///
    /// # Errors
    /// [`RegisterError::Unknown`] unless implemented.
    async fn reconcile(&self, _id: RegistrationId) -> Result<(), RegisterError> {
        Err(RegisterError::Unknown)
    }
    /// The host's addresses have changed: every flow is made anew.
    async fn network_changed(&self);
    /// Un-REGISTERs everything in at most `within`, and ends; the fate of each binding is returned.
    async fn shutdown(&self, within: Duration) -> Vec<(RegistrationId, Removal)>;
}
