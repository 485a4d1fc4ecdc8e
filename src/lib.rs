//! Keeps SIP accounts and trunks registered.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "tokio")]
mod agent;
mod config;
mod error;
mod proto;
#[cfg(feature = "tokio")]
mod resolve;
#[cfg(feature = "testkit")]
pub mod testkit;
mod traits;
#[cfg(feature = "tokio")]
mod transport;
mod uri;

#[cfg(feature = "tokio")]
pub use agent::{Agent, AgentBuilder, AgentError, Clock, Events, Messages, RegistrationHandle, SystemClock};
pub use config::{
    Algorithm, AuthPolicy, BuildError, Change, ConfigWarning, ContactUser, Credentials, CredentialsError, InitialDelay,
    Mechanism, Policy, Redirects, RefreshLead, RefreshPolicy, Registration, RegistrationBuilder, RetryPolicy, Secret,
    Route, SecurityNegotiation, Timers, TransportConfig, TransportConfigError, MechanismError,
};
pub use error::Error;
pub use proto::{
    Activity, Binding, Contact, Cx, Entropy, Event, Exchange, Failure, FailureClass, FlowError, FlowId, FlowInfo, Frame,
    FrameError, Framer, GiveUp, Guarded, Headers, Identity, Input, LeaseStatus, MAX_BODY, MAX_HEAD, Machine, Message,
    NameAddr, OpId, Output, ParamValue, ParseError, Pool, PoolOutput, Protocol, ReferenceStatus, Registered,
    RegistrationId, Removal, Request, Response, Status, Target, Via, Warning,
};
#[cfg(feature = "tokio")]
pub use resolve::SystemResolver;
pub use traits::{
    Answer, CredentialProvider, CredentialsQuery, Flow, Host, Inbound, InboundMessage, Match, Query, Received,
    RegisterError, Registrar, ResolveError, Resolver, Transport,
};
#[cfg(feature = "tokio")]
pub use transport::{TcpTransport, UdpTransport};
pub use uri::{Scheme, SipUri, UriError};
