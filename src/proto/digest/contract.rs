//! What the sessions are asked, and what they answer.

use super::challenge::Challenge;
use crate::config::credentials::{Algorithm, Resolved};

/// Who asks: the registrar with 401 or a proxy with 407, RFC 3261 §22.2 and §22.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// 401, `WWW-Authenticate`, `Authorization` (RFC 3261 §22.2).
    Origin,
    /// 407, `Proxy-Authenticate`, `Proxy-Authorization` (RFC 3261 §22.3).
    Proxy,
}

/// Which challenges may be answered, RFC 8760 §2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules<'a> {
    /// Their order means nothing: the server's counts (RFC 8760 §2.4).
    pub(crate) algorithms: &'a [Algorithm],
    /// Whether the `-sess` forms (RFC 7616 §3.4.2) are answered; the reference does not know them.
    pub(crate) sess: bool,
    /// Whether `auth-int` (RFC 7616 §3.4.3) is answered where `auth` is not offered; the reference does not.
    pub(crate) auth_int: bool,
    /// Passes over MD5 even where nothing else is offered (RFC 8760 §4).
    pub reject_md5: bool,
    /// Passes over MD5 in a realm that was ever answered with SHA-2 (RFC 8760 §4).
    pub(crate) downgrade_refuse: bool,
    /// How many `stale=true` (RFC 7616 §3.3) are answered in a cycle and realm.
    pub(crate) max_stale: u8,
}

impl Default for Rules<'_> {
    /// All of RFC 8760 §2.1, no downgrade, three stale challenges.
    fn default() -> Self {
        let algorithms = &Algorithm::ALL;
        Self {
            algorithms,
            sess: true,
            auth_int: true,
            reject_md5: false,
            downgrade_refuse: true,
            max_stale: 3,
        }
    }
}

impl Rules<'_> {
    pub(super) fn allowed(&self, challenge: &Challenge) -> Option<(Algorithm, bool)> {
        challenge.algorithm().filter(|(algorithm, sess)| {
            self.algorithms.contains(algorithm)
                && (self.sess || !sess)
                && !(self.reject_md5 && *algorithm == Algorithm::Md5)
        })
    }
}

/// What a challenge comes to, RFC 3261 §22.1 and §22.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Send the request again; `authorize` will put the answer in (RFC 3261 §22.2).
    Answer {
        /// MD5 stood above SHA-2 in the list and was taken (RFC 8760 §2.4): worth a warning.
        weak_first: bool,
    },
    /// A secret is needed that is asked for at run time (RFC 3261 §22.1); give it to [`Sessions::provide`].
    Ask(Query),
    /// The credentials were refused (RFC 3261 §22.2: the client must not try them again).
    Refused(Refusal),
    /// One `stale=true` (RFC 7616 §3.3) too many.
    StaleLimit {
        /// Whose nonces never last (RFC 7616 §3.3).
        realm: String,
    },
    /// Nothing here can be answered (RFC 3261 §22.1).
    Unanswerable(Unanswerable),
}

/// What a provider of credentials is asked, RFC 3261 §22.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// Who wants it: to be handed back to [`Sessions::provide`] (RFC 3261 §22.2, §22.3).
    pub(crate) role: Role,
    /// For which realm (RFC 3261 §22.1), as the server writes it.
    pub(crate) realm: String,
    /// The configured username (RFC 7616 §3.4).
    pub(crate) username: String,
    /// For which algorithms a hash would do (RFC 8760 §2.4), in the server's order.
    pub(crate) algorithms: Vec<Algorithm>,
}

/// Refused credentials, RFC 3261 §22.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Who refused them (RFC 3261 §22.2, §22.3).
    pub(crate) role: Role,
    /// In which realm (RFC 3261 §22.1).
    pub(crate) realm: String,
    /// The credential and its secret (RFC 7616 §3.4.2), for the fingerprint; not shown by `Debug`.
    pub(crate) resolved: Resolved,
}

#[cfg(test)]
impl Refusal {
    /// The username that was refused (RFC 7616 §3.4).
    #[must_use]
    pub(crate) fn username(&self) -> &str {
        self.resolved.credentials().username()
    }

    /// See [`Resolved::fingerprint`]; it tells when the refused credential (RFC 3261 §22.2) has changed.
    #[must_use]
    pub(crate) fn fingerprint(&self, key: &[u8; 16]) -> u64 {
        self.resolved.fingerprint(key, &self.realm)
    }
}

/// An answer about to be sent, RFC 3261 §22.2.
#[derive(Clone, Debug)]
pub(crate) struct Due<'a> {
    /// In which realm (RFC 3261 §22.1).
    pub(crate) realm: &'a str,
    /// Whether a 2xx has come to this very credential before (RFC 3261 §22.2).
    pub(crate) accepted_before: bool,
    pub(super) resolved: Resolved,
}

impl Due<'_> {
    /// The username it is sent for (RFC 7616 §3.4).
    #[must_use]
    pub(crate) fn username(&self) -> &str {
        self.resolved.credentials().username()
    }

    /// See [`Resolved::fingerprint`]; equal to that of a [`Refusal`] (RFC 3261 §22.2) of the same credential.
    #[must_use]
    pub(crate) fn fingerprint(&self, key: &[u8; 16]) -> u64 {
        self.resolved.fingerprint(key, self.realm)
    }
}

/// Why no challenge of a response can be answered (RFC 3261 §22.1); with several reasons, the one that came furthest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Unanswerable {
    /// No Digest challenge, the only scheme of RFC 3261 §22.
    #[error("no digest challenge")]
    NoChallenge,
    /// Only challenges without realm or nonce (RFC 7616 §3.3).
    #[error("digest challenge without usable realm or nonce")]
    Malformed,
    /// None of the algorithms (RFC 8760 §2.4) is known and allowed.
    #[error("realm {realm:?} offers none of the allowed algorithms, only {offered:?}")]
    Algorithm {
        /// Who offers them (RFC 7616 §3.3).
        realm: String,
        /// What it offers, as spelled (RFC 7616 §3.3).
        offered: Vec<String>,
    },
    /// Only MD5 is left where SHA-2 was used before (RFC 8760 §4).
    #[error("realm {realm:?} offers MD5 only, after SHA-2")]
    Downgrade {
        /// Who offers it (RFC 7616 §3.3).
        realm: String,
    },
    /// No known quality of protection (RFC 7616 §3.3).
    #[error("realm {realm:?} offers no known quality of protection")]
    Qop {
        /// Who offers them (RFC 7616 §3.3).
        realm: String,
    },
    /// No credential is for this realm, or none for its algorithms (RFC 3261 §22.1).
    #[error("no credentials for realm {realm:?}")]
    NoCredentials {
        /// Who wants them (RFC 7616 §3.3).
        realm: String,
    },
    /// The provider had none, or a hash for another algorithm (RFC 3261 §22.1).
    #[error("no secret was provided for realm {realm:?}")]
    NoSecret {
        /// Who wants it (RFC 7616 §3.3).
        realm: String,
    },
}

impl Unanswerable {
    /// The reason that came further.
    pub(super) fn or(self, other: Self) -> Self {
        let rank = |why: &Self| match why {
            Self::NoChallenge => 0,
            Self::Malformed => 1,
            Self::Algorithm { .. } => 2,
            Self::Qop { .. } => 3,
            Self::Downgrade { .. } => 4,
            Self::NoCredentials { .. } => 5,
            Self::NoSecret { .. } => 6,
        };
        if rank(&other) > rank(&self) {
            other
        } else {
            self
        }
    }
}

/// Whether the server has proved that it knows the password, `rspauth` of RFC 7616 §3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerProof {
    /// It said nothing, as it may (RFC 7616 §3.5).
    Absent,
    /// It has (RFC 7616 §3.5).
    Right,
    /// It has tried and does not (RFC 7616 §3.5): worth a warning. Its `nextnonce` was not taken.
    Wrong,
}
