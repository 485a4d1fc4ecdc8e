//! The pure core: no clock, no socket, no randomness but what comes in.

mod digest;
mod entropy;
mod event;
mod flow;
mod flow_info;
mod frame;
mod group;
mod guard;
mod ids;
mod keep_alive;
mod lease;
mod locate;
mod machine;
mod mapping;
mod message;
mod pool;
mod said;
mod setters;
mod stun;
mod transaction;
mod transcript;
mod verdict;

use digest::Sessions;
pub use entropy::Entropy;
pub use event::{
    Activity, Binding, Event, Exchange, Failure, LeaseStatus, ReferenceStatus, Registered, Removal,
    Status, Warning,
};
#[cfg(feature = "tokio")]
pub(crate) use flow_info::host_port;
pub use flow_info::{
    FlowError, FlowInfo, KeepAlive, KeepAliveTerms, Protocol, Target, TlsError, WsError,
};
pub use frame::{Frame, FrameError, Framer, MAX_BODY, MAX_HEAD};
pub use ids::{FlowId, OpId, RegistrationId};
#[cfg(feature = "ws")]
pub(crate) use keep_alive::PING;
pub use locate::TargetOutcome;
pub use machine::{AgentKey, Cx, Guarded, Identity, Input, Machine, Output, WayOut};
pub use message::scan::{Headers, Message, ParseError, Request, Response};
pub use message::value::{Contact, NameAddr, ParamValue, Via};
pub(crate) use pool::accepts;
pub use pool::{Pool, PoolOutput};
#[cfg(feature = "pjsip-conf")]
pub(crate) use said::Said;
pub use transcript::Transcript;
pub use verdict::{FailureClass, GiveUp};
