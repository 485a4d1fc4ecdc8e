//! Sections `type=auth`.

use super::diagnostic::Rule;
use super::objects::{ALGORITHMS, Global, algorithms};
use super::reader::Reader;
use crate::{Algorithm, Credentials, CredentialsError, Secret};
use std::sync::Arc;

/// A section `type=auth`; the secret is not shown by anything
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AuthSection {
    /// The id, by which `outbound_auth` names it
    pub name: Arc<str>,
    /// `auth_type`: `userpass`, `md5` or `digest`, which are the same to an outgoing registration
    pub auth_type: &'static str,
    /// What a challenge is answered with
    pub credentials: Credentials,
    /// The algorithms that may be answered: `supported_algorithms_uac`, else those of `global`
    pub algorithms: Vec<Algorithm>,
}

pub(super) fn auth(reader: &mut Reader<'_>, global: &Global) -> Option<AuthSection> {
    let mut auth_type = "userpass";
    // What was refused and is out of sight then is not said to be missing.
    let (mut uac, mut uas) = (Some(Vec::new()), Some(Vec::new()));
    let (mut hashes, mut hash_refused, mut oauth) = (Vec::new(), false, false);
    for (name, at) in reader.variables() {
        match name.as_str() {
            "username" | "password" | "realm" => {}
            "nonce_lifetime" => {
                reader.uint(at);
            }
            "refresh_token" | "oauth_clientid" | "oauth_secret" => {}
            "auth_type" => match at.value.to_ascii_lowercase().as_str() {
                "userpass" => auth_type = "userpass",
                "md5" => auth_type = "md5",
                "digest" => auth_type = "digest",
                "google_oauth" => {
                    oauth = true;
                    reader.refuse(Some(at), Rule::GoogleOauth);
                }
                _ => reader.refuse(Some(at), Rule::NotOneOf("userpass, md5, digest")),
            },
            "md5_cred" if at.value.is_empty() => {}
            "md5_cred" => hashes.push((Algorithm::Md5, &*at.value, at)),
            "password_digest" => {
                for word in at
                    .value
                    .split(',')
                    .map(str::trim)
                    .filter(|word| !word.is_empty())
                {
                    let (algorithm, hex) = match word.split_once(':') {
                        None => (Some(Algorithm::Md5), word),
                        Some((algorithm, hex)) => (algorithm.trim().parse().ok(), hex.trim()),
                    };
                    match algorithm {
                        Some(algorithm) => hashes.push((algorithm, hex, at)),
                        None => {
                            hash_refused = true;
                            reader.refuse(Some(at), Rule::NotOneOf(ALGORITHMS));
                        }
                    }
                }
            }
            "supported_algorithms_uac" | "supported_algorithms_uas" => {
                let list = algorithms(&at.value);
                if list.is_none() {
                    reader.refuse(Some(at), Rule::NotOneOf(ALGORITHMS));
                }
                match name.ends_with("uac") {
                    true => uac = list,
                    false => uas = list,
                }
            }
            _ => reader.unknown(at),
        }
    }
    let value = |option| {
        let at = reader.last(option);
        at.map(|at| &*at.value).unwrap_or_default().to_owned()
    };
    let (username, password, realm) = (value("username"), value("password"), value("realm"));
    if username.is_empty() {
        reader.refuse_option("username", Rule::Missing("username"));
    }
    let mut secret = (!password.is_empty()).then(|| Secret::password(password));
    for (algorithm, hex, at) in hashes.iter().copied() {
        let with = match secret.clone() {
            Some(secret) => secret.and_ha1(algorithm, hex),
            None => Secret::ha1(algorithm, hex),
        };
        match with {
            Ok(with) => secret = Some(with),
            Err(error) => {
                hash_refused = true;
                reader.refuse(Some(at), Rule::Credentials(error));
            }
        }
    }
    match &secret {
        // A token is what it has, or another hash.
        _ if oauth || hash_refused => {}
        None => reader.refuse_option("password", Rule::Missing("password or password_digest")),
        Some(secret) => {
            let uac = (uac.as_deref(), &*global.default_auth_algorithms_uac);
            let uas = (uas.as_deref(), &*global.default_auth_algorithms_uas);
            covers(reader, secret, "supported_algorithms_uac", uac);
            covers(reader, secret, "supported_algorithms_uas", uas);
        }
    }
    let algorithms = match uac {
        Some(listed) if !listed.is_empty() => listed,
        _ => global.default_auth_algorithms_uac.clone(),
    };
    let without =
        Credentials::with_secret(username, secret.unwrap_or_else(|| Secret::password("")));
    let mut credentials = without.realm(realm);
    if let Some((_, _, at)) = hashes
        .first()
        .filter(|_| credentials.bound_realm().is_none())
    {
        reader.warn(Some(at), Rule::HashWithoutRealm);
        credentials = credentials.hash_for_any_realm();
    }
    match credentials.check() {
        // These have been told.
        Ok(()) | Err(CredentialsError::NoUsername) => {}
        Err(error @ CredentialsError::ControlInUsername(_)) => {
            reader.refuse_option("username", Rule::Credentials(error));
            // The realm comes after the username.
            let realm = credentials.bound_realm().unwrap_or_default();
            if realm.chars().any(char::is_control) {
                let error = CredentialsError::ControlInRealm(realm.to_owned());
                reader.refuse_option("realm", Rule::Credentials(error));
            }
        }
        Err(error @ CredentialsError::ControlInRealm(_)) => {
            reader.refuse_option("realm", Rule::Credentials(error))
        }
        Err(error) => reader.refuse(None, Rule::Credentials(error)),
    }
    (!reader.is_refused()).then(|| AuthSection {
        name: Arc::clone(reader.name()),
        auth_type,
        credentials: credentials.algorithms(&algorithms),
        algorithms,
    })
}

/// Asterisk refuses an object that could not answer all that it says it supports, in either direction; `None` is a
/// list that was refused.
fn covers(
    reader: &mut Reader<'_>,
    secret: &Secret,
    option: &'static str,
    (listed, default): (Option<&[Algorithm]>, &[Algorithm]),
) {
    let Some(listed) = listed else { return };
    let list = if listed.is_empty() { default } else { listed };
    for algorithm in list.iter().filter(|algorithm| !secret.covers(**algorithm)) {
        let algorithm = *algorithm;
        let rule = match listed.is_empty() {
            false => Rule::Credentials(CredentialsError::NoSecretFor(algorithm)),
            true => Rule::DefaultAlgorithm { option, algorithm },
        };
        reader.refuse_option(option, rule);
    }
}
