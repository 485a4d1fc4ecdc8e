//! What an answer says beside its code, for a line that a person reads.

use super::event::{Exchange, Failure};
use super::machine::answers::{SHOWN, plain};
use crate::Response;
use std::fmt;

/// A failure, where the last request went, and what the answer says: the extensions that it is about, the options that
/// offer those (D19), its Warning, its Reason
pub(crate) struct Said<'a>(pub(crate) &'a Failure, pub(crate) Option<&'a Exchange>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let Some(exchange) = self.1 else {
            return Ok(());
        };
        if let Some(target) = &exchange.target {
            write!(f, " at {target}")?;
        }
        for (nth, tag) in exchange.extensions.iter().take(MOST).enumerate() {
            match (nth, self.0) {
                (0, Failure::Rejected { code: 420, .. }) => f.write_str(" [Unsupported: ")?,
                (0, _) => f.write_str(" [Require: ")?,
                _ => f.write_str(", ")?,
            }
            f.write_str(tag)?;
            if let Some(option) = option(tag) {
                write!(f, " (option {option})")?;
            }
        }
        if !exchange.extensions.is_empty() {
            f.write_str("]")?;
        }
        for (name, value) in [("Warning", &exchange.warning), ("Reason", &exchange.reason)] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                write!(f, " [{name}: {value}]")?;
            }
        }
        Ok(())
    }
}

/// As many extensions as a line has room for
const MOST: usize = 4;

/// The extensions that a 420 or 421 is about, as events may show them
pub(super) fn extensions(response: &Response) -> Box<[String]> {
    let header = match response.code() {
        420 => "Unsupported",
        421 => "Require",
        _ => return Box::default(),
    };
    let tags = response.option_tags(header).into_iter();
    tags.map(|tag| plain(&tag, SHOWN).into()).collect()
}

/// The option that offers an extension; option tags are tokens, in any case of letters (RFC 3261 §7.3.1).
fn option(tag: &str) -> Option<&'static str> {
    [
        ("path", "support_path"),
        ("outbound", "support_outbound"),
        ("mediasec", "security_negotiation"),
        ("gruu", "gruu"),
        ("gin", "gin"),
    ]
    .into_iter()
    .find_map(|(known, option)| known.eq_ignore_ascii_case(tag).then_some(option))
}
