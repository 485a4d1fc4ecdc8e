//! Who registers: user names with a password, a stored hash, or a secret that is asked for at run time.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A username and what proves it, for one realm or for any (RFC 3261 §22.1, RFC 7616 §3.3)
///
/// Cheap to clone. `Debug` shows the username and the realm only. Two values are equal where the configuration is.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(Arc<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    username: Box<str>,
    /// `None`: any realm.
    realm: Option<Box<str>>,
    /// `None`: the provider is asked.
    secret: Option<Secret>,
    /// Empty: no restriction.
    algorithms: AlgorithmSet,
    /// Whether hashes without a realm are meant.
    hash_for_any_realm: bool,
}

/// A bit for each algorithm: there may be a hundred thousand of these
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct AlgorithmSet(u8);

impl AlgorithmSet {
    fn of(algorithms: &[Algorithm]) -> Self {
        let bits = algorithms.iter().map(|one| Self::bit(*one));
        Self(bits.fold(0, |all, bit| all | bit))
    }

    const fn bit(algorithm: Algorithm) -> u8 {
        1 << algorithm as u8
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn has(self, algorithm: Algorithm) -> bool {
        self.0 & Self::bit(algorithm) != 0
    }
}

impl Credentials {
    /// A username and its password, RFC 7616 §3.4.2.
    #[must_use]
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::new(username.into(), None, Some(Secret::password(password)))
    }

    /// A username and the stored hash `H(username:realm:password)`, RFC 7616 §3.4.2
    ///
    /// The hash is good for that realm and that algorithm (and its `-sess` form) only.
    ///
    /// # Errors
    /// Where `hex` is not as many hexadecimal digits as the algorithm yields: 32, 64 or 64.
    pub fn ha1(
        username: impl Into<String>,
        realm: impl Into<String>,
        algorithm: Algorithm,
        hex: impl AsRef<str>,
    ) -> Result<Self, CredentialsError> {
        let secret = Secret::ha1(algorithm, hex)?;
        Ok(Self::new(username.into(), None, Some(secret)).realm(realm))
    }

    /// A username whose secret the host's provider is asked for when a challenge comes (RFC 3261 §22.1)
    ///
    /// What it found is kept while it is accepted, and dropped when an attempt fails: the next challenge asks again. Refused,
    /// it ends the registration like any other secret; `retry_credentials` after the provider has a better one starts again.
    #[must_use]
    pub fn provided(username: impl Into<String>) -> Self {
        Self::new(username.into(), None, None)
    }

    /// A username with a password, hashes, or both (RFC 7616 §3.4.2).
    #[must_use]
    pub fn with_secret(username: impl Into<String>, secret: Secret) -> Self {
        Self::new(username.into(), None, Some(secret))
    }

    /// Adds the stored hash for one more algorithm (RFC 7616 §3.4.2); it is preferred to the password.
    ///
    /// # Errors
    /// Where `hex` has the wrong form, or the secret is asked for at run time.
    pub fn and_ha1(
        mut self,
        algorithm: Algorithm,
        hex: impl AsRef<str>,
    ) -> Result<Self, CredentialsError> {
        let inner = Arc::make_mut(&mut self.0);
        let secret = inner
            .secret
            .take()
            .ok_or(CredentialsError::HashOfProvided)?;
        inner.secret = Some(secret.and_ha1(algorithm, hex)?);
        Ok(self)
    }

    /// Binds the credential to one realm (RFC 3261 §22.1), compared without regard to case
    ///
    /// Empty and `*` mean any realm, which is the default. What is bound is never sent to another realm.
    #[must_use]
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        let realm = realm.into();
        let any = realm.is_empty() || realm == "*";
        Arc::make_mut(&mut self.0).realm = (!any).then(|| realm.into_boxed_str());
        self
    }

    /// Lets stored hashes answer any realm, though each is right for one only (RFC 7616 §3.4.2)
    ///
    /// For `md5_cred` or `password_digest` in pjsip.conf without `realm`, where the realm is known to nobody but the one
    /// who made the hash. A realm that is [bound](Self::realm) stays so.
    #[must_use]
    pub fn hash_for_any_realm(mut self) -> Self {
        Arc::make_mut(&mut self.0).hash_for_any_realm = true;
        self
    }

    /// Restricts the algorithms this credential may be used with (RFC 8760 §2.4); an empty list lifts the restriction
    ///
    /// `supported_algorithms_uac` in pjsip.conf.
    #[must_use]
    pub fn algorithms(mut self, algorithms: &[Algorithm]) -> Self {
        Arc::make_mut(&mut self.0).algorithms = AlgorithmSet::of(algorithms);
        self
    }

    /// Whether this can be written into a header (RFC 3261 §25.1) and answer a challenge at all.
    ///
    /// # Errors
    /// Names the first fault found; secrets are not in it.
    pub fn check(&self) -> Result<(), CredentialsError> {
        let Inner {
            username,
            realm,
            secret,
            algorithms,
            hash_for_any_realm,
        } = &*self.0;
        if username.is_empty() {
            return Err(CredentialsError::NoUsername);
        }
        if username.chars().any(char::is_control) {
            return Err(CredentialsError::ControlInUsername(username.to_string()));
        }
        if let Some(realm) = realm
            .as_ref()
            .filter(|realm| realm.chars().any(char::is_control))
        {
            return Err(CredentialsError::ControlInRealm(realm.to_string()));
        }
        let Some(secret) = secret else { return Ok(()) };
        if realm.is_none() && !secret.hashes.is_empty() && !hash_for_any_realm {
            return Err(CredentialsError::HashWithoutRealm);
        }
        match Algorithm::ALL
            .into_iter()
            .find(|one| algorithms.has(*one) && !secret.covers(*one))
        {
            Some(algorithm) => Err(CredentialsError::NoSecretFor(algorithm)),
            None => Ok(()),
        }
    }

    /// The username as configured (RFC 7616 §3.4).
    #[must_use]
    pub fn username(&self) -> &str {
        &self.0.username
    }

    /// The realm this is bound to (RFC 3261 §22.1), `None` for any.
    #[must_use]
    pub fn bound_realm(&self) -> Option<&str> {
        self.0.realm.as_deref()
    }

    /// Whether the secret is asked for at run time (RFC 3261 §22.1).
    #[must_use]
    pub fn is_provided(&self) -> bool {
        self.0.secret.is_none()
    }

    /// Whether this may answer a challenge with `algorithm` (RFC 8760 §2.4); the realm is not looked at.
    #[must_use]
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        let Inner {
            secret, algorithms, ..
        } = &*self.0;
        (algorithms.is_empty() || algorithms.has(algorithm))
            && secret
                .as_ref()
                .is_none_or(|secret| secret.covers(algorithm))
    }

    /// The credential for a challenge, RFC 3261 §22.1 and §22.3: the first for this realm, else the first for any.
    #[must_use]
    pub fn select<'a>(all: &'a [Self], realm: &str, algorithm: Algorithm) -> Option<&'a Self> {
        let mut any = None;
        for one in all.iter().filter(|one| one.fits(algorithm)) {
            match one.bound_realm() {
                Some(bound) if bound.eq_ignore_ascii_case(realm) => return Some(one),
                Some(_) => {}
                None => any = any.or(Some(one)),
            }
        }
        any
    }

    fn new(username: String, realm: Option<Box<str>>, secret: Option<Secret>) -> Self {
        Self(Arc::new(Inner {
            username: username.into_boxed_str(),
            realm,
            secret,
            algorithms: AlgorithmSet::default(),
            hash_for_any_realm: false,
        }))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown
            .field("username", &self.username())
            .field("realm", &self.bound_realm())
            .finish_non_exhaustive()
    }
}

/// What a provider of credentials returns: a password, or hashes for the realm that was asked for (RFC 7616 §3.4.2)
///
/// `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    password: Option<Box<str>>,
    hashes: Box<[(Algorithm, Box<str>)]>,
}

impl Secret {
    /// A password (RFC 7616 §3.4.2), good for every algorithm.
    #[must_use]
    pub fn password(password: impl Into<String>) -> Self {
        Self {
            password: Some(password.into().into()),
            hashes: Box::default(),
        }
    }

    /// The hash `H(username:realm:password)` for one algorithm, RFC 7616 §3.4.2.
    ///
    /// # Errors
    /// Where `hex` is not as many hexadecimal digits as the algorithm yields.
    pub fn ha1(algorithm: Algorithm, hex: impl AsRef<str>) -> Result<Self, CredentialsError> {
        Self {
            password: None,
            hashes: Box::default(),
        }
        .and_ha1(algorithm, hex)
    }

    /// Adds the hash for one more algorithm (RFC 7616 §3.4.2); it is preferred to the password.
    ///
    /// # Errors
    /// Where `hex` is not as many hexadecimal digits as the algorithm yields.
    pub fn and_ha1(
        mut self,
        algorithm: Algorithm,
        hex: impl AsRef<str>,
    ) -> Result<Self, CredentialsError> {
        let hex = hex.as_ref();
        let expected = algorithm.hex_len();
        if hex.len() != expected {
            return Err(CredentialsError::HashLength {
                algorithm,
                expected,
                found: hex.len(),
            });
        }
        if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(CredentialsError::HashDigits(algorithm));
        }
        let mut hashes = self.hashes.into_vec();
        hashes.retain(|(known, _)| *known != algorithm);
        // Hashed again as text, and LHEX is lower case: RFC 7616 §3.1.3.
        hashes.push((algorithm, hex.to_ascii_lowercase().into()));
        self.hashes = hashes.into();
        Ok(self)
    }

    /// Whether a challenge with `algorithm` can be answered with this (RFC 7616 §3.4.2).
    #[must_use]
    pub fn covers(&self, algorithm: Algorithm) -> bool {
        self.password.is_some() || self.stored(algorithm).is_some()
    }

    /// The stored hash for `algorithm`.
    pub(crate) fn stored(&self, algorithm: Algorithm) -> Option<&str> {
        self.hashes
            .iter()
            .find(|(known, _)| *known == algorithm)
            .map(|(_, hex)| &**hex)
    }

    /// The password, where there is one.
    pub(crate) fn plain(&self) -> Option<&str> {
        self.password.as_deref()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A credential together with what the provider returned for it: what an answer is computed from (RFC 7616 §3.4.2).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    credentials: Credentials,
    secret: Option<Secret>,
}

impl Resolved {
    /// Puts the two together (RFC 7616 §3.4.2); `secret` is `None` where the credential has its own.
    #[must_use]
    pub(crate) fn new(credentials: Credentials, secret: Option<Secret>) -> Self {
        Self {
            credentials,
            secret,
        }
    }

    /// The credential as configured (RFC 3261 §22.1).
    #[must_use]
    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// What the secret comes down to: the provider's, else the configured one.
    pub(crate) fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref().or(self.credentials.0.secret.as_ref())
    }

    /// What the provider returned.
    pub(crate) fn provided(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// Forgets what the provider returned.
    pub(crate) fn forget_provided(&mut self) {
        self.secret = None;
    }

    /// Tells whether a credential refused earlier (RFC 3261 §22.1) has changed, without keeping it
    ///
    /// A keyed hash over username, realm (without regard to case) and secret: worthless without the key.
    #[must_use]
    pub(crate) fn fingerprint(&self, key: &[u8; 16], realm: &str) -> u64 {
        fn field(hash: &mut Sha256, bytes: &[u8]) {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        let mut hash = Sha256::new();
        hash.update(key);
        field(&mut hash, self.credentials.username().as_bytes());
        field(&mut hash, realm.to_ascii_lowercase().as_bytes());
        if let Some(secret) = self.secret() {
            // The tags keep a password apart from a hash of the same text.
            if let Some(password) = secret.plain() {
                field(&mut hash, b"password");
                field(&mut hash, password.as_bytes());
            }
            for algorithm in Algorithm::ALL {
                if let Some(stored) = secret.stored(algorithm) {
                    field(&mut hash, algorithm.token().as_bytes());
                    field(&mut hash, stored.as_bytes());
                }
            }
        }
        hash.finalize()
            .iter()
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolved").field(&self.credentials).finish()
    }
}

/// A hash algorithm of SIP digest, RFC 8760 §2.1; its `-sess` form is a matter of the challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `MD5`, what a challenge without the parameter means (RFC 7616 §3.3).
    Md5,
    /// `SHA-256` (RFC 8760 §2.1).
    Sha256,
    /// `SHA-512-256`, the SHA-512/256 of FIPS 180-4, not a truncated SHA-512 (RFC 8760 §2.1).
    Sha512_256,
}

impl Algorithm {
    /// All of them, as RFC 8760 §2.1 lists them, MD5 last.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha512_256, Self::Md5];

    /// The name in the IANA registry, RFC 7616 §6.1.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
            Self::Sha512_256 => "SHA-512-256",
        }
    }

    /// How many hexadecimal digits a hash has, RFC 8760 §2.3.
    #[must_use]
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Md5 => 32,
            Self::Sha256 | Self::Sha512_256 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

impl FromStr for Algorithm {
    type Err = CredentialsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|algorithm| algorithm.token().eq_ignore_ascii_case(text))
            .ok_or_else(|| CredentialsError::UnknownAlgorithm(text.to_owned()))
    }
}

/// What is wrong with configured credentials (RFC 3261 §22.1); never tells the secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// RFC 7616 §3.4 has no answer without a username.
    #[error("username is empty")]
    NoUsername,
    /// A control character, CR and LF among them, cannot be sent in a quoted string (RFC 3261 §25.1).
    #[error("username {0:?} contains a control character")]
    ControlInUsername(String),
    /// A control character, CR and LF among them, cannot be in a realm (RFC 3261 §25.1).
    #[error("realm {0:?} contains a control character")]
    ControlInRealm(String),
    /// The hash has not the length that RFC 8760 §2.3 gives for the algorithm.
    #[error("{algorithm} hash has {found} characters instead of {expected}")]
    HashLength {
        /// For which the hash was given.
        algorithm: Algorithm,
        /// Its number of hexadecimal digits.
        expected: usize,
        /// How many bytes were given.
        found: usize,
    },
    /// The hash is not hexadecimal text (RFC 7616 §3.1.3).
    #[error("{0} hash contains something else than hexadecimal digits")]
    HashDigits(Algorithm),
    /// A stored hash has its realm hashed in (RFC 7616 §3.4.2), so it cannot be for any realm.
    #[error("a stored hash needs the realm it was made for")]
    HashWithoutRealm,
    /// A secret asked for at run time has no configured part (RFC 3261 §22.1).
    #[error("a hash cannot be configured for a secret that is asked for at run time")]
    HashOfProvided,
    /// The credential is restricted to an algorithm (RFC 8760 §2.4) for which it has neither password nor hash.
    #[error("neither password nor hash for algorithm {0}")]
    NoSecretFor(Algorithm),
    /// Not one of the algorithms of RFC 8760 §2.1.
    #[error("unknown digest algorithm {0:?}")]
    UnknownAlgorithm(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use assert_matches::assert_matches;

    const MD5: &str = "939E7578ED9E3C518A452ACEE763BCE9";

    #[test]
    fn the_realm_of_its_own_comes_before_any_realm_and_never_serves_another() {
        let all = [
            Credentials::password("any", "p"),
            Credentials::password("b", "p").realm("B"),
            Credentials::password("later", "p").realm("b"),
        ];
        let name =
            |realm| Credentials::select(&all, realm, Algorithm::Md5).map(Credentials::username);
        assert_eq!(name("b"), Some("b"));
        assert_eq!(name("c"), Some("any"));
        assert_eq!(Credentials::select(&all[1..], "c", Algorithm::Md5), None);
        assert_eq!(
            Credentials::password("a", "p").realm("*"),
            Credentials::password("a", "p").realm("")
        );
    }

    #[test]
    fn a_hash_serves_its_algorithm_only() -> Result<(), CredentialsError> {
        let hashed = [Credentials::ha1("u", "r", Algorithm::Md5, MD5)?];
        assert!(Credentials::select(&hashed, "R", Algorithm::Md5).is_some());
        assert!(Credentials::select(&hashed, "r", Algorithm::Sha256).is_none());
        assert!(Credentials::select(&hashed, "x", Algorithm::Md5).is_none());
        let only = Credentials::password("u", "p").algorithms(&[Algorithm::Sha256]);
        assert!(!only.fits(Algorithm::Md5) && only.fits(Algorithm::Sha256));
        Ok(())
    }

    #[test]
    fn faults_are_named() -> Result<(), CredentialsError> {
        use CredentialsError as E;
        let check = |credentials: Credentials| credentials.check();
        assert_matches!(check(Credentials::password("", "p")), Err(E::NoUsername));
        assert_matches!(
            check(Credentials::password("a\r\nb", "p")),
            Err(E::ControlInUsername(_))
        );
        assert_matches!(
            check(Credentials::password("a", "p").realm("a\nb")),
            Err(E::ControlInRealm(_))
        );
        assert_matches!(
            Credentials::ha1("a", "r", Algorithm::Sha256, MD5),
            Err(E::HashLength {
                expected: 64,
                found: 32,
                ..
            })
        );
        assert_matches!(
            Credentials::ha1("a", "r", Algorithm::Md5, "g".repeat(32)),
            Err(E::HashDigits(_))
        );
        assert_matches!(
            check(Credentials::ha1("a", "*", Algorithm::Md5, MD5)?),
            Err(E::HashWithoutRealm)
        );
        assert_matches!(
            Credentials::provided("a").and_ha1(Algorithm::Md5, MD5),
            Err(E::HashOfProvided)
        );
        let both = [Algorithm::Md5, Algorithm::Sha256];
        let hashed = Credentials::ha1("a", "r", Algorithm::Md5, MD5)?.algorithms(&both);
        assert_matches!(hashed.check(), Err(E::NoSecretFor(Algorithm::Sha256)));
        assert_matches!(
            hashed.and_ha1(Algorithm::Sha256, "0".repeat(64))?.check(),
            Ok(())
        );
        assert_matches!("sha-512-256".parse(), Ok(Algorithm::Sha512_256));
        assert_matches!("SHA512".parse::<Algorithm>(), Err(E::UnknownAlgorithm(_)));
        Ok(())
    }

    #[test]
    fn secrets_are_not_shown() -> Result<(), CredentialsError> {
        let secret = Secret::password("hunter2");
        let resolved = Resolved::new(
            Credentials::password("alice", "hunter2").realm("r"),
            Some(secret.clone()),
        );
        let hashed = Secret::ha1(Algorithm::Md5, MD5)?;
        let text = format!("{secret:?} {resolved:?} {hashed:?}");
        assert!(
            !text.contains("hunter2") && !text.to_ascii_uppercase().contains(MD5),
            "{text}"
        );
        assert!(text.contains("alice"), "{text}");
        Ok(())
    }

    #[test]
    fn the_fingerprint_changes_with_each_part_and_the_key() -> Result<(), CredentialsError> {
        let of = |credentials: Credentials, secret, realm, key| {
            Resolved::new(credentials, secret).fingerprint(&[key; 16], realm)
        };
        let base = || Credentials::password("a", "p");
        let first = of(base(), None, "r", 1);
        assert_eq!(first, of(base(), None, "R", 1));
        assert_eq!(
            first,
            of(
                Credentials::provided("a"),
                Some(Secret::password("p")),
                "r",
                1
            )
        );
        for other in [
            of(base(), None, "r", 2),
            of(base(), None, "s", 1),
            of(Credentials::password("b", "p"), None, "r", 1),
            of(Credentials::password("a", "q"), None, "r", 1),
            of(Credentials::password("ap", ""), None, "r", 1),
            of(base().and_ha1(Algorithm::Md5, MD5)?, None, "r", 1),
            of(Credentials::provided("a"), None, "r", 1),
        ] {
            assert_ne!(first, other);
        }
        Ok(())
    }
}
