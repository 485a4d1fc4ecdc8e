//! The tokio layer: one task that owns the [`Pool`] and carries out what it wants.

mod actor;
mod answer;
mod builder;
mod clock;
mod events;
mod handle;
mod instance;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "unmetered.rs"]
mod metrics;
#[cfg(all(test, feature = "testkit"))]
mod tests;
mod transports;

pub use answer::AnswerError;
pub use builder::{AgentBuilder, AgentError};
pub use clock::{Clock, SystemClock};
pub use events::{Events, Messages};
pub use handle::{Agent, RegistrationHandle};
