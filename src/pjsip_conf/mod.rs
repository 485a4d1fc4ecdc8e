//! Loads the `type=registration` sections of Asterisk's `pjsip.conf`, with what they name, and keeps them running
//!
//! [`load`] reads the file: templates, inheritance, includes and comments are understood, and what Asterisk refuses is
//! refused, each object for itself. Every [`Diagnostic`] has file, line, section, option, value and rule; mistakes that
//! Asterisk swallows are warnings. What is loaded runs under [`Policy::asterisk`](crate::Policy::asterisk), or, by
//! [`load_under`], under a policy of the host's where the file has no option.
//! [`Loaded::reload`] and [`Loaded::plan`] say what a new version of the file takes, [`Running::apply`] does it.
//!
//! ```
//! use sip_registration::pjsip_conf::{Files, load};
//! use std::io;
//!
//! // `Directory` reads real files.
//! struct OneFile(&'static str);
//! impl Files for OneFile {
//!     fn read(&self, _: &str) -> io::Result<Vec<u8>> { Ok(self.0.into()) }
//!     fn list(&self, _: &str) -> io::Result<Vec<String>> { Ok(Vec::new()) }
//! }
//!
//! let loaded = load(&OneFile("
//! [wan]
//! type = transport
//! bind = 0.0.0.0
//!
//! [trunk](!)
//! type = registration
//! retry_interval = 30
//!
//! [office](trunk)
//! server_uri = sip:sip.example.com
//! client_uri = sip:1234567890@sip.example.com
//! support_path = yse
//!
//! [home](trunk)
//! server_uri = sip:sip.example.com
//! client_uri = sip:42@sip.example.com
//! expiration = 0
//! "), "pjsip.conf");
//!
//! let office = loaded.registration("office").expect("it is in order");
//! assert_eq!(office.registration.retry_interval().as_secs(), 30);
//! assert!(loaded.registration("home").is_none());
//! let said: Vec<_> = loaded.diagnostics().iter().map(ToString::to_string).collect();
//! assert_eq!(said, [
//!     "pjsip.conf:13: warning: [office] support_path = yse: neither yes nor no: taken for no, as Asterisk does",
//!     "pjsip.conf:18: error: [home] expiration = 0: not one of the seconds from 1 to 4294967295",
//! ]);
//! ```
//!
//! # Running it
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use sip_registration::Agent;
//! use sip_registration::pjsip_conf::{Directory, Running, Transports, load};
//! use std::time::Duration;
//!
//! let files = Directory::new("/etc/asterisk");
//! let loaded = load(&files, "pjsip.conf");
//! let (mut transports, mut running) = (Transports::new(), Running::new());
//! let (agent, told) = transports.start(Agent::builder(), &loaded, &files).await?;
//! for (name, outcome) in told {
//!     println!("transport {name}: {outcome}");
//! }
//! let wait = Duration::from_secs(35);
//! running.apply(&agent, loaded, wait).await?;
//!
//! // Later: what has not changed is left alone.
//! let new = running.loaded().reload(&files, "pjsip.conf");
//! println!("{}", transports.apply(&agent, &mut running, new, &files, wait).await?);
//! # Ok(())
//! # }
//! ```

mod auth;
mod diagnostic;
mod files;
mod gauges;
mod grammar;
mod loaded;
mod objects;
mod reader;
mod registration;
mod reload;
mod show;
mod transport;
#[cfg(feature = "tokio")]
mod transports;

pub use auth::AuthSection;
pub use diagnostic::{Diagnostic, Rule, Severity};
pub use files::{Directory, Files};
pub use gauges::Gauges;
pub use loaded::{Loaded, load, load_under};
pub use objects::{Global, System};
pub use registration::RegistrationSection;
pub use reload::{Applied, Plan, Running, Step};
pub use show::{AuthDetail, Live, RegistrationDetail, table};
#[cfg(feature = "tls")]
pub use transport::TlsFilesError;
pub use transport::{TlsFiles, TransportSection};
#[cfg(feature = "tokio")]
pub use transports::{Reloaded, TransportError, TransportOutcome, Transports};
