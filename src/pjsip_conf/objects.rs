//! The sections `global` and `system`: what holds for all others.

use super::diagnostic::Rule;
use super::reader::Reader;
use crate::Algorithm;
use std::sync::Arc;
use std::time::Duration;

/// The section `type=global`, as far as registrations have to do with it
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Global {
    /// The User-Agent of registrations without their own; `None` for the library's (`user_agent`)
    pub user_agent: Option<Arc<str>>,
    /// How often a CRLF keep-alive goes out on TCP and TLS; default 90 s, 0 is never (`keep_alive_interval`)
    pub keep_alive_interval: Duration,
    /// The algorithms of `auth` sections that name none; default MD5 (`default_auth_algorithms_uac`)
    pub default_auth_algorithms_uac: Vec<Algorithm>,
    /// The same for incoming requests, which decides whether an `auth` section is valid (`default_auth_algorithms_uas`)
    pub default_auth_algorithms_uas: Vec<Algorithm>,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            user_agent: None,
            keep_alive_interval: Duration::from_secs(90),
            default_auth_algorithms_uac: vec![Algorithm::Md5],
            default_auth_algorithms_uas: vec![Algorithm::Md5],
        }
    }
}

/// The section `type=system`, as far as registrations have to do with it
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct System {
    /// RFC 3261 T1; default 500 ms, at least 100 ms (`timer_t1`)
    pub timer_t1: Duration,
    /// How long a response may take; default 32 s, at least 64 times T1 (`timer_b`)
    pub timer_b: Duration,
}

impl Default for System {
    fn default() -> Self {
        Self {
            timer_t1: Duration::from_millis(500),
            timer_b: Duration::from_secs(32),
        }
    }
}

pub(super) const ALGORITHMS: &str = "MD5, SHA-256, SHA-512-256";

/// A comma-separated list of digest algorithms; none where one is unknown.
pub(super) fn algorithms(text: &str) -> Option<Vec<Algorithm>> {
    let mut list = Vec::new();
    for word in text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let algorithm = word.parse().ok()?;
        if !list.contains(&algorithm) {
            list.push(algorithm);
        }
    }
    Some(list)
}

pub(super) fn global(reader: &mut Reader<'_>) -> Option<Global> {
    let mut global = Global::default();
    for (name, at) in reader.variables() {
        match name.as_str() {
            "user_agent" => {
                global.user_agent = Some(Arc::clone(&at.value)).filter(|text| !text.is_empty())
            }
            "keep_alive_interval" => {
                let seconds = reader.uint(at).unwrap_or_default();
                global.keep_alive_interval = Duration::from_secs(seconds.into());
            }
            "default_auth_algorithms_uac" | "default_auth_algorithms_uas" => {
                match algorithms(&at.value) {
                    Some(list) if !list.is_empty() => {
                        if name.ends_with("uac") {
                            global.default_auth_algorithms_uac = list;
                        } else {
                            global.default_auth_algorithms_uas = list;
                        }
                    }
                    _ => reader.refuse(Some(at), Rule::NotOneOf(ALGORITHMS)),
                }
            }
            // The others are many, and have to do with calls and incoming requests.
            _ => {}
        }
    }
    (!reader.is_refused()).then_some(global)
}

pub(super) fn system(reader: &mut Reader<'_>) -> Option<System> {
    let mut system = System::default();
    // Where it is no number, nothing of the section counts.
    let milliseconds =
        |number: Option<u32>| Duration::from_millis(number.unwrap_or_default().into());
    for (name, at) in reader.variables() {
        match name.as_str() {
            "timer_t1" => system.timer_t1 = milliseconds(reader.uint(at)),
            "timer_b" => system.timer_b = milliseconds(reader.uint(at)),
            _ => {}
        }
    }
    if reader.is_refused() {
        return None;
    }
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(9));
    limit(reader, "timer_t1", &mut system.timer_t1, least, most);
    let (least, most) = (system.timer_t1.saturating_mul(64), Duration::from_secs(600));
    limit(reader, "timer_b", &mut system.timer_b, least, most);
    Some(system)
}

/// Moves a timer into its limits, as Asterisk does, and says so.
fn limit(
    reader: &mut Reader<'_>,
    option: &str,
    value: &mut Duration,
    least: Duration,
    most: Duration,
) {
    let limited = (*value).clamp(least, most);
    if limited != *value {
        *value = limited;
        let milliseconds = u32::try_from(limited.as_millis()).unwrap_or(u32::MAX);
        // Where only T1 was set, it is T1 that moved timer B.
        let at = reader.last(option).or_else(|| reader.last("timer_t1"));
        reader.warn(
            at,
            Rule::Limited {
                option: if option == "timer_b" {
                    "timer_b"
                } else {
                    "timer_t1"
                },
                milliseconds,
            },
        );
    }
}
