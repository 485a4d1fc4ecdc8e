//! What a server asks for: `WWW-Authenticate` and `Proxy-Authenticate` values.

use crate::config::credentials::Algorithm;
use std::borrow::Cow;
use std::fmt;
use tracing::trace;

/// More challenges than this in one response are not looked at; RFC 8760 §2.4 expects one an algorithm and realm.
const MOST: usize = 64;

/// Reads the challenges of one `WWW-Authenticate` or `Proxy-Authenticate` value, RFC 3261 §20.44 and §25.1
///
/// One value may hold several, some with other schemes: those are skipped. A Digest challenge that cannot be answered
/// is kept, so that its realm and algorithm can be named; see [`Challenge::is_usable`].
pub(crate) fn parse_challenges(value: &str, into: &mut Vec<Challenge>) {
    let mut current: Option<Challenge> = None;
    let mut in_qop = false;
    for item in Items::new(value) {
        match item {
            Item::Param { name, value } => {
                in_qop = name.eq_ignore_ascii_case("qop");
                if let Some(challenge) = &mut current {
                    challenge.set(name, value);
                }
            }
            Item::Word {
                word,
                starts,
                alone,
            } => {
                let digest = word.eq_ignore_ascii_case("Digest");
                if digest || (starts && !alone) {
                    keep(current.take(), into);
                    current = digest.then(Challenge::default);
                } else if let Some(challenge) = current.as_mut().filter(|_| in_qop) {
                    // `qop=auth,auth-int` without the quotes of RFC 7616 §3.3.
                    challenge.qop.add(word);
                }
            }
        }
    }
    keep(current, into);
}

fn keep(challenge: Option<Challenge>, into: &mut Vec<Challenge>) {
    let Some(challenge) = challenge else { return };
    if into.len() >= MOST {
        trace!("more than {MOST} challenges");
        return;
    }
    into.push(challenge);
}

/// One Digest challenge, RFC 7616 §3.3
///
/// `Debug` does not show the nonce.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    realm: Option<Box<str>>,
    nonce: Option<Box<str>>,
    echo: Echo,
    qop: Offer,
    stale: Option<bool>,
    /// Has a control character where we would have to echo it.
    unsafe_to_echo: bool,
}

impl Challenge {
    /// The realm, unescaped (RFC 7616 §3.3); `None` where the server left it out.
    #[must_use]
    pub(crate) fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// The nonce, unescaped (RFC 7616 §3.3).
    #[must_use]
    pub(crate) fn nonce(&self) -> Option<&str> {
        self.nonce.as_deref()
    }

    /// What an answer repeats of it, beside realm and nonce.
    #[cfg(test)]
    pub(super) fn echo(&self) -> &Echo {
        &self.echo
    }

    /// Realm, nonce and what else an answer repeats; the rest is of no use once it was chosen.
    pub(super) fn into_parts(self) -> (Box<str>, Box<str>, Echo) {
        let Self {
            realm, nonce, echo, ..
        } = self;
        (realm.unwrap_or_default(), nonce.unwrap_or_default(), echo)
    }

    /// The algorithm as the server spelled it (RFC 7616 §3.3), `None` where there was none or an empty one.
    #[must_use]
    pub(crate) fn algorithm_token(&self) -> Option<&str> {
        self.echo.token.as_deref()
    }

    /// The algorithm and whether it is the `-sess` form (RFC 7616 §3.4.2, RFC 8760 §2.1); `None` where it is unknown.
    #[must_use]
    pub(crate) fn algorithm(&self) -> Option<(Algorithm, bool)> {
        // Absent means MD5, RFC 7616 §3.3.
        let token = self.echo.token.as_deref().unwrap_or("MD5");
        if let Ok(algorithm) = token.parse() {
            return Some((algorithm, false));
        }
        let (base, suffix) = token.rsplit_once('-')?;
        suffix.eq_ignore_ascii_case("sess").then_some(())?;
        Some((base.parse().ok()?, true))
    }

    /// The protection to answer with: `Ok(None)` is the RFC 2069 form, `Err` that we know none of those offered
    /// (or only `auth-int`, where that is not allowed)
    ///
    /// RFC 7616 §3.3. `auth` is preferred: proxies and middleboxes touch bodies.
    pub(super) fn qop(&self, auth_int: bool) -> Result<Option<Qop>, ()> {
        match self.qop {
            Offer { auth: true, .. } => Ok(Some(Qop::Auth)),
            Offer { auth_int: true, .. } if auth_int => Ok(Some(Qop::AuthInt)),
            Offer {
                auth_int: false,
                unknown: false,
                ..
            } => Ok(None),
            _ => Err(()),
        }
    }

    /// Whether only the nonce was refused, not the credentials (RFC 7616 §3.3).
    #[must_use]
    pub(crate) fn stale(&self) -> bool {
        self.stale == Some(true)
    }

    /// Whether realm and nonce are there (RFC 7616 §3.3) and can be echoed (RFC 3261 §25.1).
    #[must_use]
    pub(crate) fn is_usable(&self) -> bool {
        self.realm.is_some() && self.nonce.is_some() && !self.unsafe_to_echo
    }

    /// The first of several parameters of the same name counts.
    fn set(&mut self, name: &str, value: Cow<'_, str>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let field = if is("realm") {
            &mut self.realm
        } else if is("nonce") {
            &mut self.nonce
        } else if is("opaque") {
            &mut self.echo.opaque
        } else if is("algorithm") {
            if value.is_empty() {
                return;
            }
            &mut self.echo.token
        } else {
            if is("qop") {
                value
                    .split([',', ' ', '\t'])
                    .for_each(|one| self.qop.add(one));
            } else if is("stale") {
                self.stale
                    .get_or_insert_with(|| value.trim().eq_ignore_ascii_case("true"));
            } else if is("charset") {
                self.echo.utf8 |= value.trim().eq_ignore_ascii_case("UTF-8");
            }
            return;
        };
        if field.is_none() {
            self.unsafe_to_echo |= has_control(&value);
            *field = Some(value.into());
        }
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Challenge");
        shown
            .field("realm", &self.realm)
            .field("algorithm", &self.echo.token)
            .field("stale", &self.stale);
        shown
            .field("usable", &self.is_usable())
            .finish_non_exhaustive()
    }
}

/// What an answer repeats of its challenge as it was, RFC 7616 §3.4
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Echo {
    opaque: Option<Box<str>>,
    token: Option<Box<str>>,
    utf8: bool,
}

impl Echo {
    /// What is to be returned unchanged (RFC 7616 §3.3), empty text included.
    #[must_use]
    pub(crate) fn opaque(&self) -> Option<&str> {
        self.opaque.as_deref()
    }

    /// The algorithm as the server spelled it, see [`Challenge::algorithm_token`].
    #[must_use]
    pub(crate) fn algorithm_token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether the server reads UTF-8 (`charset`, RFC 7616 §3.3).
    #[must_use]
    pub(crate) fn utf8(&self) -> bool {
        self.utf8
    }
}

/// Whether `text` must not be written into a quoted string, RFC 3261 §25.1.
pub(super) fn has_control(text: &str) -> bool {
    text.bytes()
        .any(|byte| byte.is_ascii_control() && byte != b'\t')
}

/// Quality of protection, RFC 7616 §3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qop {
    /// `auth`: method and URI are hashed (RFC 7616 §3.4.3).
    Auth,
    /// `auth-int`: the body too (RFC 7616 §3.4.3).
    AuthInt,
}

impl Qop {
    /// The value as RFC 7616 §3.4 writes it.
    #[must_use]
    pub(crate) const fn token(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::AuthInt => "auth-int",
        }
    }
}

/// What a `qop` parameter offers; an empty one offers nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offer {
    auth: bool,
    auth_int: bool,
    unknown: bool,
}

impl Offer {
    fn add(&mut self, word: &str) {
        let word = word.trim();
        if word.eq_ignore_ascii_case("auth") {
            self.auth = true;
        } else if word.eq_ignore_ascii_case("auth-int") {
            self.auth_int = true;
        } else if !word.is_empty() {
            self.unknown = true;
        }
    }
}

/// A piece of a list of challenges or parameters.
#[derive(Debug, PartialEq)]
pub(super) enum Item<'a> {
    /// `name=value` or `name="value"`, the value unescaped.
    Param { name: &'a str, value: Cow<'a, str> },
    /// A word that no `=` follows: a scheme where it starts a list element and is not `alone` in it.
    Word {
        word: &'a str,
        starts: bool,
        alone: bool,
    },
}

/// Splits such a list, RFC 3261 §25.1; ends on every input, since each step takes at least one character.
#[derive(Debug)]
pub(super) struct Items<'a> {
    rest: &'a str,
    starts: bool,
}

impl<'a> Items<'a> {
    pub(super) fn new(value: &'a str) -> Self {
        Self {
            rest: value,
            starts: true,
        }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches(is_space);
    }

    fn word(&mut self, ends: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn value(&mut self) -> Cow<'a, str> {
        match self.rest.strip_prefix('"') {
            Some(quoted) => self.quoted(quoted),
            None => Cow::Borrowed(self.word(|c| is_space(c) || c == ',')),
        }
    }

    /// What follows an opening quote; without the closing one, all of it.
    fn quoted(&mut self, text: &'a str) -> Cow<'a, str> {
        let end = text.find(['"', '\\']).unwrap_or(text.len());
        let (plain, rest) = text.split_at(end);
        if !rest.starts_with('\\') {
            self.rest = rest.strip_prefix('"').unwrap_or(rest);
            return Cow::Borrowed(plain);
        }
        let mut unescaped = plain.to_owned();
        let mut chars = rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => unescaped.extend(chars.next()),
                c => unescaped.push(c),
            }
        }
        self.rest = chars.as_str();
        Cow::Owned(unescaped)
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        loop {
            self.skip_space();
            while let Some(rest) = self.rest.strip_prefix(',') {
                self.rest = rest;
                self.starts = true;
                self.skip_space();
            }
            if self.rest.is_empty() {
                return None;
            }
            if self.rest.starts_with('"') {
                // A string that belongs to nothing.
                self.value();
                self.starts = false;
                continue;
            }
            let starts = std::mem::replace(&mut self.starts, false);
            let name = self.word(|c| is_space(c) || matches!(c, ',' | '=' | '"'));
            self.skip_space();
            if let Some(rest) = self.rest.strip_prefix('=') {
                self.rest = rest;
                self.skip_space();
                return Some(Item::Param {
                    name,
                    value: self.value(),
                });
            }
            let alone = self.rest.is_empty() || self.rest.starts_with(',');
            return Some(Item::Word {
                word: name,
                starts,
                alone,
            });
        }
    }
}

/// CR and LF too: the value may come folded (RFC 3261 §7.3.1).
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::entropy::Entropy;

    fn parse(value: &str) -> Vec<Challenge> {
        let mut found = Vec::new();
        parse_challenges(value, &mut found);
        found
    }

    fn usable(value: &str) -> Vec<(String, String)> {
        let usable = parse(value).into_iter().filter(Challenge::is_usable);
        usable
            .map(|c| {
                (
                    c.realm().unwrap_or("?").to_owned(),
                    c.nonce().unwrap_or("?").to_owned(),
                )
            })
            .collect()
    }

    #[test]
    fn challenges_are_found_in_whatever_form() {
        for (value, expected) in [
            (r#"Digest realm="r", nonce="n""#, &[("r", "n")][..]),
            ("digest\tREALM = \"r\" ,\r\n NONCE= \"n\"", &[("r", "n")]),
            (r#"Digest realm=r, nonce=abc=="#, &[("r", "abc==")]),
            (r#"  ,, Digest realm="r",,nonce="n",, "#, &[("r", "n")]),
            (
                r#"Digest realm="a, Digest realm=\"x\"", nonce="n""#,
                &[(r#"a, Digest realm="x""#, "n")],
            ),
            (r#"Digest realm="a\\b\"", nonce="\n""#, &[(r#"a\b""#, "n")]),
            (r#"Digest realm="éééé", nonce="ü""#, &[("éééé", "ü")]),
            (r#"Digest realm="", nonce="""#, &[("", "")]),
            (
                r#"Digest realm="a", nonce="1", Digest realm="b", nonce="2""#,
                &[("a", "1"), ("b", "2")],
            ),
            (
                r#"Basic realm="x", Digest realm="a", nonce="1""#,
                &[("a", "1")],
            ),
            (
                r#"Digest realm="a", nonce="1", Basic realm="x", nonce="y""#,
                &[("a", "1")],
            ),
            (
                r#"Negotiate YII=, Negotiate, NTLM abc, Digest realm="a", nonce="1""#,
                &[("a", "1")],
            ),
            (r#"Negotiate, Digest realm="a", nonce="1""#, &[("a", "1")]),
            (
                r#"Digest realm="a", x-flag, foo="b,c", nonce="1", unknown=1"#,
                &[("a", "1")],
            ),
            (r#"Digest realm=a b c, nonce="1""#, &[("a", "1")]),
            (r#"Digest realm="a" nonce="1""#, &[("a", "1")]),
            (r#"Digest realm="a", realm="b", nonce="1""#, &[("a", "1")]),
            (r#"Digest realm="a", nonce="1"#, &[("a", "1")]),
            (r#"Digest, realm="a", nonce="1""#, &[("a", "1")]),
            // Cannot be answered, and are not.
            (r#"Digest realm="a""#, &[]),
            (r#"Digest nonce="a""#, &[]),
            ("Digest realm=\"a\r\nEvil: 1\", nonce=\"1\"", &[]),
            ("Digest realm=\"a\", nonce=\"1\\\r\\\nX: 1\"", &[]),
            ("Digest", &[]),
            ("", &[]),
            (r#"="x""#, &[]),
            (r#"""""" = , "Digest" realm="a""#, &[]),
            ("\u{feff}Digest realm", &[]),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|(r, n)| ((*r).to_owned(), (*n).to_owned()))
                .collect();
            assert_eq!(usable(value), expected, "{value}");
        }
    }

    #[test]
    fn parameters_are_understood() {
        let one = |rest: &str| parse(&format!(r#"Digest realm="r", nonce="n"{rest}"#)).remove(0);
        for (rest, expected) in [
            ("", Some((Algorithm::Md5, false))),
            (", algorithm=", Some((Algorithm::Md5, false))),
            (", algorithm=md5", Some((Algorithm::Md5, false))),
            (", algorithm=\"MD5-Sess\"", Some((Algorithm::Md5, true))),
            (", algorithm=sha-256", Some((Algorithm::Sha256, false))),
            (", algorithm=SHA-256-sess", Some((Algorithm::Sha256, true))),
            (
                ", algorithm=SHA-512-256",
                Some((Algorithm::Sha512_256, false)),
            ),
            (
                ", algorithm=SHA-512-256-sess",
                Some((Algorithm::Sha512_256, true)),
            ),
            (", algorithm=AKAv1-MD5", None),
            (", algorithm=SHA256", None),
            (", algorithm=é-sess", None),
        ] {
            assert_eq!(one(rest).algorithm(), expected, "{rest}");
        }
        assert_eq!(
            one(", algorithm=sHa-256").algorithm_token(),
            Some("sHa-256")
        );
        for (rest, expected) in [
            ("", Ok(None)),
            (", qop=\"\"", Ok(None)),
            (", qop=", Ok(None)),
            (", qop=auth", Ok(Some(Qop::Auth))),
            (", qop=\"auth-int, AUTH\"", Ok(Some(Qop::Auth))),
            (", qop=auth-int,auth, stale=true", Ok(Some(Qop::Auth))),
            (", qop=\"auth-int\"", Ok(Some(Qop::AuthInt))),
            (", qop=\"token,auth\"", Ok(Some(Qop::Auth))),
            (", qop=\"auth-conf\"", Err(())),
        ] {
            assert_eq!(one(rest).qop(true), expected, "{rest}");
        }
        assert_eq!(one(", qop=\"auth-int\"").qop(false), Err(()));
        assert!(one(", stale=TRUE , x=1").stale() && !one(", stale=\"false\"").stale());
        assert!(one(", charset=utf-8").echo().utf8() && !one("").echo().utf8());
        assert_eq!(
            (
                one(", opaque=\"\"").echo().opaque(),
                one("").echo().opaque()
            ),
            (Some(""), None)
        );
    }

    #[test]
    fn nonces_are_not_shown() {
        let shown = format!(
            "{:?}",
            parse(r#"Digest realm="r", nonce="geheim", opaque="verborgen""#)
        );
        assert!(
            !shown.contains("geheim") && !shown.contains("verborgen"),
            "{shown}"
        );
    }

    #[test]
    fn no_input_panics() {
        let mut entropy = Entropy::from_seed([7; 32]);
        let pieces = [
            "Digest",
            "digest ",
            " ",
            "\t",
            ",",
            "=",
            "\"",
            "\\",
            "realm",
            "realm=\"é\"",
            "nonce=\"n\"",
            "nonce",
            "qop=\"auth,",
            "auth-int",
            "algorithm=",
            "MD5-sess",
            "-",
            "é",
            "\u{1F600}",
            "\r\n",
            "Basic ",
            "stale=true",
            "\0",
            "opaque=\"\"",
        ];
        for _ in 0..50_000 {
            let length = entropy.below(14);
            let text: String = (0..length)
                .map(|_| pieces[entropy.below(pieces.len() as u64) as usize])
                .collect();
            for challenge in parse(&text) {
                let _ = (
                    challenge.algorithm(),
                    challenge.qop(true),
                    challenge.is_usable(),
                );
            }
        }
        let seed = r#"Digest realm="a, Digest realm=\"x\"", nonce="nö", qop="auth,auth-int", algorithm=SHA-256-sess"#;
        for _ in 0..50_000 {
            let mut bytes = seed.as_bytes().to_vec();
            for _ in 0..=entropy.below(4) {
                if bytes.is_empty() {
                    break;
                }
                let at = entropy.below(bytes.len() as u64) as usize;
                match entropy.below(3) {
                    0 => bytes[at] = entropy.u32() as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at),
                }
            }
            parse(&String::from_utf8_lossy(&bytes));
        }
        assert_eq!(parse(&"Digest,".repeat(1000)).len(), MOST);
    }
}
