//! What is read of a certificate: who it is for, and until when.

use super::verifier::Names;
use crate::{Scheme, SipUri};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;
use x509_cert::Certificate;
use x509_cert::der::asn1::Any;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// An end-entity certificate
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Whether it names itself as its issuer
    pub(super) self_issued: bool,
    names: Vec<Name>,
}

/// A SIP domain identity, or what could be taken for one (RFC 5922 §7.1)
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Dns(Arc<str>),
    Uri(Arc<str>),
    Ip(IpAddr),
}

impl Parsed {
    /// Reads a certificate; none where it is not one.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let inner = certificate.tbs_certificate();
        let extensions = inner.extensions().map_or(&[][..], |all| all);
        let names = extensions
            .iter()
            .filter(|extension| extension.extn_id == SubjectAltName::OID)
            // One by one: a name of a kind that nobody knows does not spoil the others.
            .filter_map(|extension| Vec::<Any>::from_der(extension.extn_value.as_bytes()).ok())
            .flatten()
            .filter_map(|name| GeneralName::from_der(&name.to_der().ok()?).ok())
            .filter_map(|name| match name {
                GeneralName::DnsName(name) => Some(Name::Dns(name.as_str().into())),
                GeneralName::UniformResourceIdentifier(uri) => Some(Name::Uri(uri.as_str().into())),
                GeneralName::IpAddress(octets) => ip(octets.as_bytes()).map(Name::Ip),
                _ => None,
            })
            .collect();
        let validity = inner.validity();
        Some(Self {
            not_before: validity.not_before.to_system_time(),
            not_after: validity.not_after.to_system_time(),
            self_issued: inner.issuer() == inner.subject(),
            names,
        })
    }

    /// Whether it is for `asked`, the host of a SIP URI (RFC 5922 §7.1 to §7.3)
    ///
    /// Names match whole and in any case, with wildcards only where `names` has them; the common name never counts.
    /// Departing from §7.1, a DNS name counts beside a SIP URI too, as many certificates have both and mean either.
    pub(super) fn is_for(&self, asked: &str, names: Names) -> bool {
        let asked = bare(asked);
        let ip = asked.parse::<IpAddr>().ok();
        self.names.iter().any(|name| match name {
            Name::Ip(found) => ip == Some(*found),
            // An address that stands where a name belongs is none.
            Name::Dns(name) => ip.is_none() && is_name(bare(name), asked, names),
            Name::Uri(uri) => domain(uri).is_some_and(|uri| match ip {
                Some(ip) => uri.ip() == Some(ip),
                None => bare(uri.host()).eq_ignore_ascii_case(asked),
            }),
        })
    }

    /// Its names for a person, as many as fit into an event.
    pub(super) fn names(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.names.iter().take(MOST_NAMES).map(|name| {
            let text = match name {
                Name::Dns(name) => format!("DNS:{name}"),
                Name::Uri(uri) => format!("URI:{uri}"),
                Name::Ip(ip) => format!("IP:{ip}"),
            };
            printable(&text)
        })
    }
}

/// Whether a DNS name means `asked`. A wildcard is the whole first label and stands for one label, with at least two
/// after it (RFC 9525 §6.3).
fn is_name(name: &str, asked: &str, names: Names) -> bool {
    let wildcard = name.strip_prefix("*.").filter(|rest| rest.contains('.'));
    match (wildcard, names, asked.split_once('.')) {
        (Some(rest), Names::Wildcards, Some((label, after))) => {
            !label.is_empty() && rest.eq_ignore_ascii_case(after)
        }
        _ => name.eq_ignore_ascii_case(asked),
    }
}

/// The SIP domain that a URI names: `sip` and without a user, or none (RFC 5922 §7.1).
fn domain(uri: &str) -> Option<SipUri> {
    let uri = SipUri::parse(uri).ok()?;
    (uri.scheme() == Scheme::Sip && !uri.as_str().contains('@')).then_some(uri)
}

/// A name without the dot that marks it as absolute, an IPv6 address without brackets.
pub(in crate::transport) fn bare(name: &str) -> &str {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name)
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// What a peer wrote, for events and logs: short, and without control characters.
pub(in crate::transport) fn printable(text: &str) -> Arc<str> {
    text.chars()
        .take(LONGEST_TEXT)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect::<String>()
        .into()
}

/// Names of a certificate that an event lists
const MOST_NAMES: usize = 16;
/// Characters of a peer's text that an event shows
const LONGEST_TEXT: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[Name]) -> Parsed {
        Parsed {
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            self_issued: false,
            names: names.to_vec(),
        }
    }

    fn dns(name: &str) -> Name {
        Name::Dns(name.into())
    }

    fn uri(name: &str) -> Name {
        Name::Uri(name.into())
    }

    #[test]
    fn names_match_whole_in_any_case_and_without_wildcards() {
        let is_for = |name: Name, asked: &str| certificate(&[name]).is_for(asked, Names::Whole);
        assert!(is_for(dns("Example.COM"), "example.com"));
        assert!(is_for(dns("example.com."), "example.com"));
        for other in ["foo.example.com", "ample.com", "example.co", "com", ""] {
            assert!(!is_for(dns("example.com"), other), "{other}");
        }
        assert!(!is_for(dns("*.example.com"), "foo.example.com"));
        assert!(!is_for(dns(".example.com"), "foo.example.com"));
        assert!(!is_for(uri("sip:*.example.com"), "foo.example.com"));
    }

    #[test]
    fn only_sip_uris_without_a_user_name_a_domain() {
        let is_for = |name: &str| certificate(&[uri(name)]).is_for("example.com", Names::Whole);
        assert!(is_for("sip:example.com") && is_for("SIP:EXAMPLE.com"));
        assert!(is_for("sip:example.com:5061;transport=tls"));
        for other in [
            "sips:example.com",
            "https://example.com",
            "sip:alice@example.com",
            "sip:@example.com",
            "example.com",
            "",
        ] {
            assert!(!is_for(other), "{other}");
        }
        let user = uri("sip:alice@example.com");
        assert!(certificate(&[user, dns("example.com")]).is_for("example.com", Names::Whole));
    }

    #[test]
    fn an_address_is_matched_as_an_address() {
        let ip = |text: &str| Name::Ip(text.parse().unwrap());
        assert!(certificate(&[ip("192.0.2.1")]).is_for("192.0.2.1", Names::Whole));
        assert!(certificate(&[ip("2001:db8::1")]).is_for("[2001:db8:0::1]", Names::Whole));
        assert!(certificate(&[uri("sip:192.0.2.1")]).is_for("192.0.2.1", Names::Whole));
        assert!(certificate(&[uri("sip:[2001:db8::1]")]).is_for("2001:db8::1", Names::Whole));
        assert!(!certificate(&[dns("192.0.2.1")]).is_for("192.0.2.1", Names::Whole));
        assert!(!certificate(&[ip("192.0.2.1")]).is_for("192.0.2.2", Names::Whole));
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        for bytes in [&b""[..], b"\x30", b"\x30\x80\x00\x00", &[0x30; 4096]] {
            assert_eq!(Parsed::read(bytes), None);
        }
    }
}
