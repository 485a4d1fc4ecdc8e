//! The answer to a challenge: the hash and the header text.

use super::challenge::{Echo, Qop};
use crate::config::credentials::{Algorithm, Resolved};
use md5::Md5;
use sha2::{Digest, Sha256, Sha512_256};
use std::fmt::{self, Write};

/// All that a response is computed from, RFC 7616 §3.4.1
///
/// `Debug` shows neither the nonces nor the hash.
#[derive(Clone, Copy)]
pub(crate) struct Answer<'a> {
    /// The hash, RFC 7616 §3.2.
    pub(crate) algorithm: Algorithm,
    /// Whether it is the `-sess` form, RFC 7616 §3.4.2.
    pub(crate) sess: bool,
    /// `H(username:realm:password)` in hexadecimal, RFC 7616 §3.4.2; for `-sess` too.
    pub ha1: &'a str,
    /// The server's nonce, unescaped (RFC 7616 §3.3).
    pub(crate) nonce: &'a str,
    /// Ours (RFC 7616 §3.4); used with `qop` and with `-sess`.
    pub(crate) cnonce: &'a str,
    /// How often the nonce has been used, this time included (RFC 7616 §3.4).
    pub(crate) nc: u32,
    /// `None`: the form of RFC 2069, RFC 3261 §22.4 item 2.
    pub(crate) qop: Option<Qop>,
    /// The method (RFC 7616 §3.4.3); empty for the server's `rspauth` (§3.5).
    pub(crate) method: &'a str,
    /// The Request-URI byte for byte, RFC 3261 §22.4 item 1.
    pub(crate) uri: &'a str,
    /// The body, for `auth-int` (RFC 7616 §3.4.3).
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    /// The `response` value (RFC 7616 §3.4.1), or `rspauth` where the method is empty (§3.5).
    #[must_use]
    pub(crate) fn response(&self) -> Hex {
        let h = |parts: &[&str]| hash(self.algorithm, parts);
        let a1 = match self.sess {
            true => h(&[self.ha1, self.nonce, self.cnonce]),
            false => Hex::of_text(self.ha1),
        };
        let a2 = match self.qop {
            Some(Qop::AuthInt) => h(&[
                self.method,
                self.uri,
                hash_bytes(self.algorithm, &[self.body]).as_str(),
            ]),
            Some(Qop::Auth) | None => h(&[self.method, self.uri]),
        };
        match self.qop {
            Some(qop) => {
                let nc = nc_text(self.nc);
                h(&[
                    a1.as_str(),
                    self.nonce,
                    nc.as_str(),
                    self.cnonce,
                    qop.token(),
                    a2.as_str(),
                ])
            }
            None => h(&[a1.as_str(), self.nonce, a2.as_str()]),
        }
    }

    /// Writes the value of an `Authorization` header, RFC 3261 §22.4 and §25.1
    ///
    /// What is quoted and what is not follows RFC 7616 §3.4; the order is the reference's.
    pub(super) fn write(
        &self,
        username: &str,
        realm: &str,
        echo: &Echo,
        out: &mut impl Write,
    ) -> fmt::Result {
        out.write_str("Digest ")?;
        if echo.utf8() && !username.is_ascii() {
            write_extended(username, out)?;
        } else {
            write_quoted("username", username, out)?;
        }
        out.write_str(", ")?;
        write_quoted("realm", realm, out)?;
        out.write_str(", ")?;
        write_quoted("nonce", self.nonce, out)?;
        out.write_str(", ")?;
        write_quoted("uri", self.uri, out)?;
        write!(out, ", response=\"{}\"", self.response().as_str())?;
        if let Some(token) = echo.algorithm_token() {
            write!(out, ", algorithm={token}")?;
        }
        if self.qop.is_some() || self.sess {
            out.write_str(", ")?;
            write_quoted("cnonce", self.cnonce, out)?;
        }
        if let Some(opaque) = echo.opaque() {
            out.write_str(", ")?;
            write_quoted("opaque", opaque, out)?;
        }
        match self.qop {
            Some(qop) => write!(
                out,
                ", qop={}, nc={}",
                qop.token(),
                nc_text(self.nc).as_str()
            ),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Answer");
        shown
            .field("algorithm", &self.algorithm)
            .field("sess", &self.sess)
            .field("qop", &self.qop);
        shown.field("nc", &self.nc).finish_non_exhaustive()
    }
}

/// `H(username:realm:password)` of a credential (RFC 7616 §3.4.2), stored or computed; `None` where neither is there.
#[must_use]
pub(crate) fn ha1(resolved: &Resolved, realm: &str, algorithm: Algorithm) -> Option<Hex> {
    let secret = resolved.secret()?;
    if let Some(stored) = secret.stored(algorithm) {
        return Some(Hex::of_text(stored));
    }
    Some(hash(
        algorithm,
        &[resolved.credentials().username(), realm, secret.plain()?],
    ))
}

/// The hash of the parts joined by colons, as RFC 7616 §3.4 writes its formulas.
#[must_use]
pub(crate) fn hash(algorithm: Algorithm, parts: &[&str]) -> Hex {
    match *parts {
        [a] => hash_bytes(algorithm, &[a.as_bytes()]),
        [a, b] => hash_bytes(algorithm, &[a.as_bytes(), b.as_bytes()]),
        [a, b, c] => hash_bytes(algorithm, &[a.as_bytes(), b.as_bytes(), c.as_bytes()]),
        _ => hash_bytes(
            algorithm,
            &parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>(),
        ),
    }
}

fn hash_bytes(algorithm: Algorithm, parts: &[&[u8]]) -> Hex {
    match algorithm {
        Algorithm::Md5 => joined::<Md5>(parts),
        Algorithm::Sha256 => joined::<Sha256>(parts),
        Algorithm::Sha512_256 => joined::<Sha512_256>(parts),
    }
}

fn joined<D: Digest>(parts: &[&[u8]]) -> Hex {
    let mut hash = D::new();
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            hash.update(b":");
        }
        hash.update(part);
    }
    Hex::of_bytes(&hash.finalize())
}

/// A hash as lower-case hexadecimal text (RFC 7616 §3.1.3), without an allocation
///
/// Without `Debug` of its content: it may stand for a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hex {
    text: [u8; 64],
    len: u8,
}

impl Hex {
    /// The text, RFC 7616 §3.1.3.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        let text = self.text.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let digit = |nibble: u8| {
            if nibble < 10 {
                b'0' + nibble
            } else {
                b'a' + nibble - 10
            }
        };
        let mut hex = Self {
            text: [0; 64],
            len: 0,
        };
        for (pair, byte) in hex.text.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            hex.len += 2;
        }
        hex
    }

    fn of_text(text: &str) -> Self {
        let mut hex = Self {
            text: [0; 64],
            len: 0,
        };
        for (to, from) in hex.text.iter_mut().zip(text.bytes()) {
            *to = from;
            hex.len += 1;
        }
        hex
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hex(..)")
    }
}

/// Eight lower-case hexadecimal digits, RFC 7616 §3.4.
fn nc_text(nc: u32) -> Hex {
    Hex::of_bytes(&nc.to_be_bytes())
}

/// `name="value"`, RFC 3261 §25.1; a control character, which `Credentials::check` and the parser refuse, is left out.
fn write_quoted(name: &str, value: &str, out: &mut impl Write) -> fmt::Result {
    write!(out, "{name}=\"")?;
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                out.write_char('\\')?;
                out.write_char(c)?;
            }
            c if c.is_ascii_control() && c != '\t' => {}
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

/// `username*` (RFC 7616 §3.4.4), encoded as in RFC 5987 §3.2.1.
fn write_extended(username: &str, out: &mut impl Write) -> fmt::Result {
    out.write_str("username*=UTF-8''")?;
    for byte in username.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.write_char(char::from(byte))?,
            b'!' | b'#' | b'$' | b'&' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => {
                out.write_char(char::from(byte))?;
            }
            _ => write!(out, "%{byte:02X}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::credentials::{Credentials, CredentialsError, Secret};
    use crate::proto::digest::parse_challenges;

    const NONCE: &str = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v";
    const CNONCE: &str = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";

    fn mufasa() -> Resolved {
        Resolved::new(Credentials::password("Mufasa", "Circle of Life"), None)
    }

    fn example(algorithm: Algorithm, ha1: &str) -> Answer<'_> {
        Answer {
            algorithm,
            sess: false,
            ha1,
            nonce: NONCE,
            cnonce: CNONCE,
            nc: 1,
            qop: Some(Qop::Auth),
            method: "GET",
            uri: "/dir/index.html",
            body: b"",
        }
    }

    #[test]
    fn the_vectors_of_rfc_7616_hold() -> Result<(), &'static str> {
        for (algorithm, expected) in [
            (Algorithm::Md5, "8ca523f5e9506fed4657c9700eebdbec"),
            (
                Algorithm::Sha256,
                "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
            ),
        ] {
            let hash = ha1(&mufasa(), "http-auth@example.org", algorithm).ok_or("no hash")?;
            assert_eq!(
                example(algorithm, hash.as_str()).response().as_str(),
                expected
            );
        }
        // Not in the RFC, whose §3.9.2 has a truncated SHA-512 in it: computed independently.
        let hash =
            ha1(&mufasa(), "http-auth@example.org", Algorithm::Sha512_256).ok_or("no hash")?;
        let answer = example(Algorithm::Sha512_256, hash.as_str()).response();
        assert!(
            answer.as_str().starts_with("430d0501") && answer.as_str().ends_with("d960d0"),
            "{}",
            answer.as_str()
        );
        Ok(())
    }

    /// Computed independently, with Python's `hashlib`, on the formulas of RFC 7616 §3.4 and RFC 2069 §2.1.2.
    #[test]
    fn the_other_forms_follow_their_formulas() {
        for (algorithm, rfc2069, sess, auth_int) in [
            (
                Algorithm::Md5,
                "7b2cc3b30e75b4777ea31027084363fd",
                "e783283f46242139c486a698fec7211d",
                "8804a53d3640a40a4f73cea12c5ba451",
            ),
            (
                Algorithm::Sha256,
                "a1306b0595a6c7fe96c448631fb5cfbd5107bd1fe1da729d978dd7446b812363",
                "2fd51b3a77ad75bad6afad6003e818d767133c46d9e2749e7f5232ae1ea3efd7",
                "8bdf6f15638e260831e905028de5450562816d093c9bfc5c13d3a46adcdde940",
            ),
            (
                Algorithm::Sha512_256,
                "93e9122020ea0624d2ca801426d5bfbeb93d10ff4cc24cb410af3920fa4730e7",
                "3f2a34f923c38b0fb26dce2fdfc2ce326c23cecf86fbb1444f3e51fbbc2cb92e",
                "38244c4d345d09bb0000b355be27d2a55003ee188df9821c54df70a63aa0c1ca",
            ),
        ] {
            let base = hash(
                algorithm,
                &["Mufasa", "http-auth@example.org", "Circle of Life"],
            );
            let example = example(algorithm, base.as_str());
            assert_eq!(
                Answer {
                    qop: None,
                    ..example
                }
                .response()
                .as_str(),
                rfc2069
            );
            assert_eq!(
                Answer {
                    sess: true,
                    ..example
                }
                .response()
                .as_str(),
                sess
            );
            assert_eq!(
                Answer {
                    qop: Some(Qop::AuthInt),
                    ..example
                }
                .response()
                .as_str(),
                auth_int
            );
        }
    }

    #[test]
    fn nc_is_eight_lower_case_hexadecimal_digits() {
        for (nc, expected) in [(1, "00000001"), (10, "0000000a"), (u32::MAX, "ffffffff")] {
            assert_eq!(nc_text(nc).as_str(), expected);
        }
    }

    #[test]
    fn a_stored_hash_answers_like_its_password() -> Result<(), CredentialsError> {
        for algorithm in Algorithm::ALL {
            let plain = Resolved::new(Credentials::password("u", "p"), None);
            let Some(hash) = ha1(&plain, "r", algorithm) else {
                continue;
            };
            let upper = hash.as_str().to_ascii_uppercase();
            let stored = Resolved::new(Credentials::ha1("u", "r", algorithm, &upper)?, None);
            assert_eq!(ha1(&stored, "r", algorithm), Some(hash));
            let provided = Resolved::new(
                Credentials::provided("u"),
                Some(Secret::ha1(algorithm, &upper)?),
            );
            assert_eq!(ha1(&provided, "r", algorithm), Some(hash));
        }
        Ok(())
    }

    fn header(username: &str, value: &str, qop: Option<Qop>) -> String {
        let mut challenges = Vec::new();
        parse_challenges(value, &mut challenges);
        let mut out = String::new();
        for challenge in &challenges {
            let answer = Answer {
                qop,
                nonce: challenge.nonce().unwrap_or_default(),
                ..example(Algorithm::Md5, "x")
            };
            assert_eq!(
                answer.write(
                    username,
                    challenge.realm().unwrap_or_default(),
                    challenge.echo(),
                    &mut out
                ),
                Ok(())
            );
            let response = answer.response();
            out = out.replace(response.as_str(), "R").replace(CNONCE, "C");
        }
        out
    }

    #[test]
    fn the_header_is_laid_out_and_quoted_as_the_rfc_and_the_reference_have_it() {
        for (username, value, qop, expected) in [
            (
                "alice@example.com",
                r#"Digest realm="r", nonce="n", algorithm=md5, opaque="", qop="auth""#,
                Some(Qop::Auth),
                r#"Digest username="alice@example.com", realm="r", nonce="n", uri="/dir/index.html", response="R", algorithm=md5, cnonce="C", opaque="", qop=auth, nc=00000001"#,
            ),
            (
                r#"a"b\c"#,
                r#"Digest realm="x\"y\\z", nonce="\"""#,
                None,
                r#"Digest username="a\"b\\c", realm="x\"y\\z", nonce="\"", uri="/dir/index.html", response="R""#,
            ),
            (
                "Jäsøn Doe",
                r#"Digest realm="r", nonce="n", charset=UTF-8"#,
                None,
                r#"Digest username*=UTF-8''J%C3%A4s%C3%B8n%20Doe, realm="r", nonce="n", uri="/dir/index.html", response="R""#,
            ),
            (
                "Jäsøn",
                r#"Digest realm="é", nonce="n""#,
                None,
                r#"Digest username="Jäsøn", realm="é", nonce="n", uri="/dir/index.html", response="R""#,
            ),
            (
                "a",
                r#"Digest realm="r", nonce="n", charset=UTF-8"#,
                None,
                r#"Digest username="a", realm="r", nonce="n", uri="/dir/index.html", response="R""#,
            ),
        ] {
            assert_eq!(header(username, value, qop), expected);
        }
    }
}
