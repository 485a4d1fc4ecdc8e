//! What can be lent can be shared: an `Arc` of a seam is one too.

use crate::{
    Answer, CredentialProvider, CredentialsQuery, Event, Flow, FlowError, FlowId, Host, Inbound,
    InboundMessage, Protocol, Query, RegistrationId, ResolveError, Resolver, Secret, Target,
    Transport,
};
use async_trait::async_trait;
use std::sync::Arc;
#[async_trait]
impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn protocols(&self) -> &[Protocol] {
        (**self).protocols()
    }

    fn suits(&self, to: &Target) -> bool {
        (**self).suits(to)
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        (**self).start(inbound).await
    }

    async fn open(&self, id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        (**self).open(id, to).await
    }

    fn flush(&self) {
        (**self).flush();
    }
}

#[async_trait]
impl<T: Resolver + ?Sized> Resolver for Arc<T> {
    async fn resolve(&self, query: &Query) -> Result<Answer, ResolveError> {
        (**self).resolve(query).await
    }
}

#[async_trait]
impl<T: CredentialProvider + ?Sized> CredentialProvider for Arc<T> {
    async fn credentials(&self, id: RegistrationId, query: &CredentialsQuery) -> Option<Secret> {
        (**self).credentials(id, query).await
    }
}

impl<T: Host + ?Sized> Host for Arc<T> {
    fn event(&self, id: RegistrationId, event: &Event) {
        (**self).event(id, event);
    }

    fn message(&self, message: InboundMessage) -> Result<(), InboundMessage> {
        (**self).message(message)
    }
}
