//! Which device this is: the instance identifier of RFC 5626 §4.1.

use std::fmt;
use std::sync::Arc;

/// The instance identifier of a device, a URN (`+sip.instance`, RFC 5626 §4.1)
///
/// It must be the same after a restart and on another network: by it the registrar knows that a new binding takes the place
/// of an old one, and a GRUU belongs to it. Make one once and save it (`InstanceId::saved_in` does both), or derive it from
/// what names the device for good. One device has one, whatever accounts it registers.
///
/// ```
/// # use sip_registration::InstanceId;
/// let made: InstanceId = InstanceId::from_random([7; 16]);
/// assert_eq!(made.as_str(), "urn:uuid:07070707-0707-4707-8707-070707070707");
/// assert_eq!(InstanceId::parse(made.as_str())?, made);
/// # Ok::<(), sip_registration::InstanceIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(Arc<str>);

/// Why a text is no instance identifier
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is no urn of up to 255 bytes, as urn:uuid:00000000-0000-1000-8000-000a95a0e128 is"
)]
pub struct InstanceIdError {
    value: Box<str>,
}

impl InstanceId {
    /// A URN, as `urn:uuid:…`, with or without `<` and `>` around it; kept as it is written, since registrars compare it
    /// letter by letter.
    ///
    /// # Errors
    ///
    /// Whatever is no URN by RFC 2141 §2, or longer than 255 bytes. A `urn:uuid:` needs a UUID behind it.
    pub fn parse(text: &str) -> Result<Self, InstanceIdError> {
        let bare = text.trim();
        let bare = bare
            .strip_prefix('<')
            .and_then(|rest| rest.strip_suffix('>'))
            .unwrap_or(bare);
        if bare.len() <= MOST && is_urn(bare) {
            Ok(Self(bare.into()))
        } else {
            Err(InstanceIdError {
                value: text.chars().take(MOST).collect::<String>().into(),
            })
        }
    }

    /// A random UUID (version 4, RFC 4122 §4.4) of 128 bits that are random, but for the six that say so.
    #[must_use]
    pub fn from_random(bits: [u8; 16]) -> Self {
        let mut bits = u128::from_be_bytes(bits);
        bits = bits & !(0xf << 76) | 0x4 << 76;
        bits = bits & !(0x3 << 62) | 0x2 << 62;
        let hex = format!("{bits:032x}");
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        Self(
            format!(
                "urn:uuid:{}-{}-{}-{}-{}",
                part(0, 8),
                part(8, 12),
                part(12, 16),
                part(16, 20),
                part(20, 32)
            )
            .into(),
        )
    }

    /// The URN, without `<` and `>`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for InstanceId {
    type Err = InstanceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// The longest URN; the reference has no limit, a REGISTER in a datagram has one.
const MOST: usize = 255;

/// `urn:` NID `:` NSS (RFC 2141 §2); all of its characters may stand in a quoted string.
fn is_urn(text: &str) -> bool {
    let mut parts = text.splitn(3, ':');
    let (Some(urn), Some(space), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let space_is_legal = (2..=32).contains(&space.len())
        && !space.starts_with('-')
        && space
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let name_is_legal = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"()+,-.:=@;$_!*'%/?#".contains(&b));
    urn.eq_ignore_ascii_case("urn")
        && space_is_legal
        && name_is_legal
        && (!space.eq_ignore_ascii_case("uuid") || is_uuid(name))
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_urn_is_an_instance_and_it_stays_as_written() {
        for text in [
            "urn:uuid:00000000-0000-1000-8000-000A95A0E128",
            "URN:UUID:00000000-0000-1000-8000-000a95a0e128",
            "urn:gsma:imei:90420156-025763-0",
        ] {
            assert_eq!(
                InstanceId::parse(text).map(|id| id.to_string()),
                Ok(text.into())
            );
            let bracketed = InstanceId::parse(&format!(" <{text}> ")).map(|id| id.to_string());
            assert_eq!(bracketed, Ok(text.into()));
        }
        for text in [
            "",
            "urn:uuid:",
            "urn:uuid:1",
            "urn:uuid:00000000-0000-1000-8000-000a95a0e12g",
            "uuid:00000000-0000-1000-8000-000a95a0e128",
            "urn:x:\"",
            "urn:-x:a",
            "urn:imei:a b",
            "urn:imei:a>;expires=0",
            &format!("urn:imei:{}", "1".repeat(250)),
        ] {
            let error = InstanceId::parse(text).expect_err(text);
            let shown: String = text.chars().take(MOST).collect();
            let says = format!("{shown:?} is no urn");
            assert!(error.to_string().starts_with(&says), "{error}");
        }
    }

    #[test]
    fn a_random_one_is_a_uuid_of_version_4() {
        assert_eq!(
            InstanceId::from_random([0xff; 16]).as_str(),
            "urn:uuid:ffffffff-ffff-4fff-bfff-ffffffffffff"
        );
        assert_eq!(
            InstanceId::from_random([0; 16]).as_str(),
            "urn:uuid:00000000-0000-4000-8000-000000000000"
        );
    }
}
