//! What the example `pjsip_conf` is made of beside its commands.

mod names;
mod say;
mod signals;
mod statsd;

pub(crate) use names::{Names, print};
pub(crate) use say::{complain, say, show};
pub(crate) use signals::{Signal, Signals};
pub(crate) use statsd::Statsd;
