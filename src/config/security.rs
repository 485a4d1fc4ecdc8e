//! What we offer of RFC 3329: the options `security_negotiation` and `security_mechanisms`.

use super::syntax;
use std::fmt;

/// Which security agreement is negotiated (pjsip.conf `security_negotiation`); default [`No`](Self::No)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SecurityNegotiation {
    /// None: no header of RFC 3329 is sent.
    #[default]
    No,
    /// RFC 3329 with the option tag `mediasec`.
    Mediasec,
}

impl SecurityNegotiation {
    /// The value as pjsip.conf writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Mediasec => "mediasec",
        }
    }
}

impl fmt::Display for SecurityNegotiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One security mechanism, RFC 3329 §2.2, as `sdes-srtp;mediasec`
///
/// The parameters are kept as written and in order, except for `q`, which is checked and never sent (BEHAVIOUR §7).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mechanism {
    text: Box<str>,
}

impl Mechanism {
    /// Reads one mechanism; the name may be `none`, `msrp-tls`, `sdes-srtp` or `dtls-srtp`, in any case.
    pub fn parse(text: &str) -> Result<Self, MechanismError> {
        let value = || text.to_owned();
        let mut parts = syntax::split(text, ';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if !NAMES.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err(MechanismError::Unknown { value: value() });
        }
        let mut kept = name.to_owned();
        for param in parts {
            if !syntax::is_param(param) {
                return Err(MechanismError::Parameter { value: value() });
            }
            match param.split_once('=') {
                Some((key, q)) if key.trim_end().eq_ignore_ascii_case("q") => {
                    if !is_q(q.trim_start()) {
                        return Err(MechanismError::Q { value: value() });
                    }
                }
                None if param.eq_ignore_ascii_case("q") => {
                    return Err(MechanismError::Q { value: value() });
                }
                _ => {
                    kept.push(';');
                    kept.push_str(param);
                }
            }
        }
        Ok(Self { text: kept.into() })
    }

    /// Reads a comma-separated list, as pjsip.conf has it; empty entries do not count.
    pub(super) fn parse_list(text: &str) -> Result<Vec<Self>, MechanismError> {
        syntax::split(text, ',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(Self::parse)
            .collect()
    }

    /// The name, as it was written.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.split(';').next().unwrap_or_default()
    }

    /// The value of a Security-Client header: name and parameters as they were written, without `q`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is no security mechanism that we can offer
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MechanismError {
    /// The name is not one of the four that the reference knows.
    #[error("security_mechanisms: {value:?} is not none, msrp-tls, sdes-srtp or dtls-srtp")]
    Unknown {
        /// The entry.
        value: String,
    },
    /// A parameter is not `name`, `name=token` or `name="text"`.
    #[error("security_mechanisms: {value:?} has a malformed parameter")]
    Parameter {
        /// The entry.
        value: String,
    },
    /// The preference is not from 0 to 1 with up to three decimals, RFC 3329 §2.2.
    #[error("security_mechanisms: {value:?} has a q that is not from 0 to 1")]
    Q {
        /// The entry.
        value: String,
    },
}

const NAMES: [&str; 4] = ["none", "msrp-tls", "sdes-srtp", "dtls-srtp"];

/// `qvalue` of RFC 3261 §25.1: from 0 to 1 with up to three decimals.
fn is_q(q: &str) -> bool {
    let (whole, decimals) = q.split_once('.').unwrap_or((q, ""));
    let small = decimals.len() <= 3 && decimals.bytes().all(|b| b.is_ascii_digit());
    small && (whole == "0" || whole == "1" && decimals.bytes().all(|b| b == b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use assert_matches::assert_matches;

    #[test]
    fn parameters_are_kept_and_q_is_not() {
        for (text, sent) in [
            ("sdes-srtp;mediasec", "sdes-srtp;mediasec"),
            (" SDES-SRTP ; q=0.5 ; mediasec ", "SDES-SRTP;mediasec"),
            (
                "dtls-srtp;mediasec;q=1.000;x=\"a;,b\"",
                "dtls-srtp;mediasec;x=\"a;,b\"",
            ),
            ("none", "none"),
        ] {
            assert_eq!(
                Mechanism::parse(text).map(|m| m.to_string()).as_deref(),
                Ok(sent)
            );
        }
        let list =
            Mechanism::parse_list("sdes-srtp;mediasec, msrp-tls;mediasec,").unwrap_or_default();
        assert_eq!(
            list.iter().map(Mechanism::name).collect::<Vec<_>>(),
            ["sdes-srtp", "msrp-tls"]
        );
    }

    #[test]
    fn what_is_no_mechanism_is_refused() {
        assert_matches!(Mechanism::parse("tls"), Err(MechanismError::Unknown { .. }));
        assert_matches!(Mechanism::parse(""), Err(MechanismError::Unknown { .. }));
        for text in [
            "none;",
            "none;a b",
            "none;a\r\nb",
            "none;x=",
            "none;x=\"a",
            "none;é",
        ] {
            assert_matches!(
                Mechanism::parse(text),
                Err(MechanismError::Parameter { .. }),
                "{text}"
            );
        }
        for text in [
            "none;q=1.1",
            "none;q=1.0000",
            "none;q",
            "none;q=x",
            "none;q=NaN",
        ] {
            assert_matches!(
                Mechanism::parse(text),
                Err(MechanismError::Q { .. }),
                "{text}"
            );
        }
    }
}
