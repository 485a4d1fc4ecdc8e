//! Whether two URIs name the same resource (RFC 3261 §19.1.4).

use super::SipUri;

impl SipUri {
    /// Whether both name the same resource, RFC 3261 §19.1.4
    ///
    /// Not transitive: a parameter that only one side has does not matter, unless it is `user`, `ttl`, `method`,
    /// `maddr` or `transport`.
    #[must_use]
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let same_host = match (self.ip(), other.ip()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.host().eq_ignore_ascii_case(other.host()),
        };
        self.scheme() == other.scheme()
            && same_option(self.user(), other.user(), Case::Matters)
            && same_option(self.password(), other.password(), Case::Matters)
            && same_host
            && self.port() == other.port()
            && self.params_fit(other)
            && other.params_fit(self)
            && self.same_headers(other)
    }

    /// Whether each of our parameters is the same in `other`, or may be missing there.
    fn params_fit(&self, other: &Self) -> bool {
        self.params().all(|(name, value)| {
            match other
                .params()
                .find(|(theirs, _)| same(name, theirs, Case::Ignored))
            {
                Some((_, theirs)) => same_option(value, theirs, Case::Ignored),
                None => !["user", "ttl", "method", "maddr", "transport"]
                    .iter()
                    .any(|significant| same(name, significant, Case::Ignored)),
            }
        })
    }

    /// Whether both have the same headers as often, in whatever order.
    fn same_headers(&self, other: &Self) -> bool {
        let (Some(ours), Some(theirs)) = (self.headers(), other.headers()) else {
            return self.headers() == other.headers();
        };
        let count = |headers: &str, wanted: &str| {
            headers
                .split('&')
                .filter(|header| same(header, wanted, Case::Ignored))
                .count()
        };
        ours.split('&').count() == theirs.split('&').count()
            && ours
                .split('&')
                .all(|header| count(ours, header) == count(theirs, header))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Matters,
    Ignored,
}

fn same_option(ours: Option<&str>, theirs: Option<&str>, case: Case) -> bool {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => same(ours, theirs, case),
        (None, None) => true,
        _ => false,
    }
}

/// Compares two components; an escape equals its character unless that is a reserved one, RFC 3261 §19.1.4.
fn same(ours: &str, theirs: &str, case: Case) -> bool {
    let fold = |byte: u8| {
        if case == Case::Ignored {
            byte.to_ascii_lowercase()
        } else {
            byte
        }
    };
    let read = |text| unescaped(text).map(move |(byte, reserved)| (fold(byte), reserved));
    read(ours).eq(read(theirs))
}

/// The characters of a component, and whether each stands for a reserved one by an escape.
fn unescaped(text: &str) -> impl Iterator<Item = (u8, bool)> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        rest = after;
        if first != b'%' {
            return Some((first, false));
        }
        let hex = |at: usize| {
            after
                .get(at)
                .and_then(|&digit| char::from(digit).to_digit(16))
        };
        let (Some(high), Some(low)) = (hex(0), hex(1)) else {
            return Some((first, false));
        };
        rest = after.get(2..).unwrap_or_default();
        let byte = (high * 16 + low) as u8;
        // The reserved set of RFC 2396 §2.2, which RFC 3261 §19.1.4 means.
        Some((byte, b";/?:@&=+$,".contains(&byte)))
    })
}
