//! What the machine makes can be made from outside too: by hosts without an agent, and by mocks of one.

use crate::{
    AgentKey, Algorithm, Exchange, FlowId, Identity, LeaseStatus, Registered, RegistrationId,
    Status, Target,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Methods that take a value, set one field, and give the value back
macro_rules! setters {
    ($type:ty { $($(#[$doc:meta])* $with:ident($field:ident: $from:ty) => $value:expr;)+ }) => {
        impl $type {$(
            $(#[$doc])*
            #[must_use]
            pub fn $with(mut self, $field: $from) -> Self {
                self.$field = $value;
                self
            }
        )+}
    };
}

fn list<T: Into<String>>(values: impl IntoIterator<Item = T>) -> Box<[String]> {
    values.into_iter().map(Into::into).collect()
}

setters!(Registered {
    /// Sets when the refresh goes out, from now.
    with_refresh_in(refresh_in: Duration) => refresh_in;
    /// Sets how long the attempt took.
    with_took(took: Duration) => took;
    /// Sets the Contact URI.
    with_contact(contact: impl Into<Box<str>>) => contact.into();
    /// Says whether the answer listed our Contact.
    with_confirmed(confirmed: bool) => confirmed;
    /// Sets the digest algorithm.
    with_algorithm(algorithm: Algorithm) => Some(algorithm);
    /// Sets Service-Route, in order.
    with_service_route(service_route: impl IntoIterator<Item = impl Into<String>>) => list(service_route);
    /// Sets Path, in order.
    with_path(path: impl IntoIterator<Item = impl Into<String>>) => list(path);
    /// Sets P-Associated-URI, in order.
    with_associated_uris(associated_uris: impl IntoIterator<Item = impl Into<String>>) => list(associated_uris);
    /// Sets Security-Server, in order.
    with_security_server(security_server: impl IntoIterator<Item = impl Into<String>>) => list(security_server);
    /// Sets `pub-gruu`.
    with_public_gruu(public_gruu: impl Into<Box<str>>) => Some(public_gruu.into());
    /// Sets `temp-gruu`.
    with_temporary_gruu(temporary_gruu: impl Into<Box<str>>) => Some(temporary_gruu.into());
    /// Sets how many other bindings the answer lists.
    with_other_bindings(other_bindings: usize) => other_bindings;
    /// Sets the exchange.
    with_exchange(exchange: Exchange) => exchange;
});

impl Exchange {
    /// The request with this Call-ID and CSeq; the rest is empty until it is set.
    #[must_use]
    pub fn new(call_id: impl Into<Box<str>>, cseq: u32) -> Self {
        Self {
            call_id: call_id.into(),
            cseq,
            ..Self::default()
        }
    }
}

setters!(Exchange {
    /// Sets the Via branch.
    with_branch(branch: impl Into<Box<str>>) => branch.into();
    /// Sets where the request was sent.
    with_target(target: Target) => Some(target);
    /// Sets our end of the flow.
    with_local(local: SocketAddr) => Some(local);
    /// Sets the status line of the answer.
    with_status_line(status_line: impl Into<Box<str>>) => status_line.into();
    /// Sets Warning of the answer.
    with_warning(warning: impl Into<Box<str>>) => Some(warning.into());
    /// Sets Reason of the answer.
    with_reason(reason: impl Into<Box<str>>) => Some(reason.into());
    /// Sets Server of the answer.
    with_server(server: impl Into<Box<str>>) => Some(server.into());
    /// Sets the extensions that a 420 or 421 names.
    with_extensions(extensions: impl IntoIterator<Item = impl Into<String>>) => list(extensions);
    /// Sets where the peer saw the request come from.
    with_mapped(mapped: SocketAddr) => Some(mapped);
});

setters!(LeaseStatus {
    /// Sets where the peer sees us.
    with_mapped(mapped: Option<SocketAddr>) => mapped;
    /// Sets the flow; none where it has ended.
    with_flow(flow: Option<FlowId>) => flow;
    /// Says whether the answer listed our Contact.
    with_confirmed(confirmed: bool) => confirmed;
});

setters!(Status {
    /// Sets the counted failures since the last success.
    with_retries(retries: u32) => retries;
    /// Sets the exchange that ended in the last failure.
    with_exchange(exchange: Exchange) => Some(Box::new(exchange));
    /// Sets what the reference would print; [`with_lease`](Self::with_lease) says `Registered`.
    with_reference(reference: crate::ReferenceStatus) => reference;
});

setters!(Identity {
    /// Sets what all registrations of the agent have in common; by default no tag and a key of zeros, as for a machine
    /// that is alone.
    with_agent(agent: impl Into<Arc<AgentKey>>) => agent.into();
    /// Sets the registration's place in the agent, which is a part of every branch.
    with_id(id: RegistrationId) => id;
    /// Sets the Call-ID, from before a restart.
    with_call_id(call_id: impl Into<Box<str>>) => Some(call_id.into());
    /// Sets the CSeq used last; the first request has the next one.
    with_cseq(cseq: u32) => Some(cseq);
    /// Sets the `line` token.
    with_line(line: impl Into<Box<str>>) => Some(line.into());
});
