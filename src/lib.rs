//! Keeps SIP accounts and trunks registered at registrars that somebody else runs.
//!
//! A [`Registration`] says what is wanted, an [`Agent`] keeps it alive, an [`Event`] says what happened, why, and what
//! comes next. Ten lines register:
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # async fn run() -> Result<(), sip_registration::Error> {
//! use sip_registration::{Agent, Credentials, Registration};
//! use std::time::Duration;
//!
//! let agent = Agent::builder().system_transports().build().await?;
//! let mut events = agent.events();
//! let account = Registration::builder("sip:example.com", "sip:alice@example.com")
//!     .outbound_auth(Credentials::password("alice", "secret"))
//!     .max_random_initial_delay(Duration::ZERO)
//!     .build()?;
//! agent.add(account).await?;
//! while let Some((id, event)) = events.next().await {
//!     println!("{id} {event}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # A tour, in virtual time
//!
//! Under the agent is a pure core: [`Pool`] for many registrations, [`Machine`] for one. Neither reads a clock, a
//! socket or a random source, so a test can be a script. The feature `testkit` has such a script's stage, `Sim`, and
//! this tour runs on it.
//!
//! A registration is built from two URIs; all else has a default. What is wrong is said with the option's name:
//!
//! ```
//! use sip_registration::Registration;
//!
//! let wrong = Registration::builder("sip:192.0.2.9", "sip:alice@example.com").line(true).build();
//! assert_eq!(wrong.unwrap_err().to_string(), "line is on without an endpoint");
//! ```
//!
//! It registers, answers a challenge, and refreshes before the lease ends:
//!
//! ```
//! # #[cfg(feature = "testkit")]
//! # fn main() -> Result<(), sip_registration::Error> {
//! use sip_registration::testkit::{Reply, Sim};
//! use sip_registration::{Credentials, Event, Registration};
//! use std::time::Duration;
//!
//! let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
//!     .outbound_auth(Credentials::password("alice", "secret"))
//!     .max_random_initial_delay(Duration::ZERO)
//!     .build()?;
//! let mut sim = Sim::new(account);
//!
//! let first = sim.sent();
//! sim.reply(&first, Reply::challenge("example.com", "nonce"));
//! let answer = sim.sent();
//! assert!(answer.text().contains("Authorization: Digest username=\"alice\", realm=\"example.com\""));
//!
//! sim.reply(&answer, Reply::granted(3600));
//! assert!(matches!(&sim.events()[..], [Event::Registered(lease)] if lease.granted.as_secs() == 3600));
//!
//! // An hour's lease is renewed 300 to 360 s before it ends, at random.
//! let next = sim.deadline().expect("a refresh is planned");
//! assert!((3240..=3300).contains(&next.as_secs()));
//! sim.advance(next);
//! let refresh = sim.sent();
//! sim.reply(&refresh, Reply::granted(3600));
//! assert!(matches!(&sim.events()[..], [Event::Refreshed(_)]));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "testkit"))]
//! # fn main() {}
//! ```
//!
//! # How failures are told
//!
//! A refusal by the registrar is an outcome, not an error: it comes as an event. [`Event::Rejected`] says that another
//! attempt follows and when, [`Event::GaveUp`] that none does and why. Both carry the [`Failure`], its
//! [`FailureClass`], what is left of the lease, and the [`Exchange`] for a support ticket. A lease outlives a failed
//! refresh; [`Event::Expired`] is the moment when calls no longer arrive. [`Status`] says the same at any time.
//!
//! ```
//! # #[cfg(feature = "testkit")]
//! # fn main() -> Result<(), sip_registration::Error> {
//! use sip_registration::testkit::{Reply, Sim};
//! use sip_registration::{Event, Failure, GiveUp, ReferenceStatus, Registration};
//! use std::time::Duration;
//!
//! let account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com").build()?;
//! let mut sim = Sim::registered(account, Duration::from_secs(600));
//!
//! let next = sim.deadline().expect("a refresh is planned");
//! sim.advance(next);
//! let refresh = sim.sent();
//! sim.reply(&refresh, Reply::status(403));
//! match &sim.events()[..] {
//!     [Event::GaveUp { failure: Failure::Rejected { code: 403, .. }, why: GiveUp::NoInterval, lease_left, .. }] => {
//!         assert!(lease_left.is_some());
//!     }
//!     other => panic!("{other:?}"),
//! }
//! assert!(sim.status().is_registered());
//! assert_eq!(sim.status().reference_status(), ReferenceStatus::Rejected);
//!
//! sim.advance_to(Duration::from_secs(600));
//! assert!(matches!(&sim.events()[..], [Event::Expired { next_in: None }]));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "testkit"))]
//! # fn main() {}
//! ```
//!
//! Errors are for what the caller can do something about: [`BuildError`] for a configuration, [`RegisterError`] for a
//! command to a registration that is gone, [`AgentError`] for a transport that cannot start. [`Error`] is their union,
//! for `?`.
//!
//! # Where to plug in
//!
//! | what | by |
//! |---|---|
//! | a socket of your own, a mock | [`Transport`] and [`Flow`], to [`AgentBuilder::transport`]; what arrives goes to [`Inbound`] |
//! | names to addresses | [`Resolver`], to [`AgentBuilder::resolver`] |
//! | secrets from a keychain or a person | [`CredentialProvider`], with [`Credentials::provided`] |
//! | events and calls, as callbacks | [`Host`], to [`AgentBuilder::host`] |
//! | your application's tests | a mock of [`Registrar`], which [`Agent`] implements |
//! | no tokio at all | [`Pool`] and its [`PoolOutput`]s; the README has a whole host in forty lines |
//!
//! # Behaviour
//!
//! [`Policy`] has three profiles: [`Policy::default`] for new programs, [`Policy::asterisk`] for what a `pjsip.conf`
//! means, [`Policy::persistent`] for what must never give up. Decisions and departures from the RFCs are in
//! `docs/design.md`, the options in `docs/options.md`.
#![cfg_attr(not(feature = "tokio"), doc = include_str!("agent_links.md"))]
#![cfg_attr(all(doctest, feature = "dns", feature = "tls"), doc = include_str!("../README.md"))]
#![cfg_attr(doctest, doc = include_str!("../docs/migrating-from-asterisk.md"))]
#![cfg_attr(all(doctest, feature = "tokio"), doc = include_str!("../docs/softphone.md"))]
#![cfg_attr(all(doctest, feature = "tokio"), doc = include_str!("../docs/pbx.md"))]
#![cfg_attr(all(doctest, feature = "tokio"), doc = include_str!("../docs/stack.md"))]
#![cfg_attr(all(doctest, feature = "tokio"), doc = include_str!("../docs/testing.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Nothing that comes in ends the program: only tests panic, and what is for tests.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::panic,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

#[cfg(feature = "tokio")]
mod agent;
mod config;
mod error;
#[cfg(feature = "pjsip-conf")]
pub mod pjsip_conf;
mod proto;
#[cfg(feature = "tokio")]
mod resolve;
#[cfg(feature = "rsip-0_4")]
pub mod rsip_0_4;
#[cfg(feature = "testkit")]
#[allow(clippy::expect_used, clippy::panic, reason = "it is for tests")]
pub mod testkit;
mod traits;
#[cfg(feature = "tokio")]
mod transport;
mod uri;

#[cfg(feature = "tokio")]
pub use agent::{
    Agent, AgentBuilder, AgentError, AnswerError, Clock, Events, Messages, RegistrationHandle,
    SystemClock,
};
pub use config::{
    Algorithm, AuthPolicy, BuildError, Change, ConfigWarning, ContactRewriting, ContactUser,
    Credentials, CredentialsError, InboundFrom, InitialDelay, InstanceId, InstanceIdError,
    KeepAlivePolicy, Mechanism, MechanismError, Policy, Redirects, RefreshLead, RefreshPolicy,
    Registration, RegistrationBuilder, RetryPolicy, Route, Secret, SecurityNegotiation, Timers,
    TransportConfig, TransportConfigError, UdpKeepAlive,
};
pub use error::Error;
pub use proto::{
    Activity, AgentKey, Binding, Contact, Cx, Entropy, Event, Exchange, Failure, FailureClass,
    FlowError, FlowId, FlowInfo, Frame, FrameError, Framer, GiveUp, Guarded, Headers, Identity,
    Input, KeepAlive, KeepAliveTerms, LeaseStatus, MAX_BODY, MAX_HEAD, Machine, Message, NameAddr,
    OpId, Output, ParamValue, ParseError, Pool, PoolOutput, Protocol, ReferenceStatus, Registered,
    RegistrationId, Removal, Request, Response, Status, Target, TargetOutcome, TlsError,
    Transcript, Via, Warning, WayOut, WsError,
};
#[cfg(feature = "tokio")]
pub use resolve::SystemResolver;
#[cfg(feature = "dns")]
pub use resolve::{DnsResolver, DnsResolverBuilder};
pub use traits::{
    Answer, Arrival, CredentialProvider, CredentialsQuery, Flow, Host, Inbound, InboundMessage,
    Match, Naptr, Query, QueryKind, Received, Records, RegisterError, Registrar, ResolveError,
    Resolver, ResponseBuilder, Srv, Transport,
};
#[cfg(feature = "tokio")]
pub use transport::{TcpTransport, UdpTransport};
#[cfg(feature = "tls")]
pub use transport::{TlsConfig, TlsConfigError, TlsConnector, TlsTransport, TlsVersion};
#[cfg(feature = "ws")]
pub use transport::{WsConfig, WsConfigError, WsTransport};
pub use uri::{Scheme, SipUri, UriError};
