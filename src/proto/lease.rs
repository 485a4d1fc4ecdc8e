//! Which Contact of an answer is ours, and what it grants (DECISIONS D8, D9).

use super::event::{Binding, Warning};
use crate::{Contact, ParamValue, Response, SipUri};
use std::time::Duration;

/// The longest grant that is scheduled as such: a week (D9)
pub(crate) const LONGEST: u32 = 604_800;
/// Grants below this are worth a warning (D9)
const SHORT: u32 = 10;

/// What a 2xx grants
#[derive(Debug)]
pub(crate) struct Grant {
    /// Seconds, already clamped; 0 means that there is no binding
    pub(crate) seconds: u32,
    /// Whether the answer listed our Contact
    pub(crate) confirmed: bool,
    /// Whether the answer listed a Contact at all
    pub(crate) others: usize,
    pub(crate) public_gruu: Option<Box<str>>,
    pub(crate) temporary_gruu: Option<Box<str>>,
    pub(crate) warnings: Vec<Warning>,
}

/// One Contact of the answer, as far as D8 looks at it
struct Listed {
    uri: Option<SipUri>,
    text: Box<str>,
    /// The whole seconds of `expires`; none where absent or malformed
    expires: Option<u32>,
    malformed: Option<Box<str>>,
    instance: Option<String>,
    reg_id: Option<String>,
    public_gruu: Option<String>,
    temporary_gruu: Option<String>,
}

/// What was sent, and by which an answer's Contact is known again
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent<'a> {
    pub(crate) uri: &'a str,
    pub(crate) line: Option<&'a str>,
    pub(crate) instance: Option<&'a str>,
    pub(crate) reg_id: Option<&'a str>,
}

/// What this device has beside the Contact that was sent
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device<'a> {
    /// How many flows the registration has, whose reg-ids count from 1
    pub(crate) flows: Option<u8>,
    /// Contacts that the registrar may still hold (D18)
    pub(crate) left: &'a [&'a str],
    /// Contacts of the other flows, which may be bound without their reg-ids (RFC 5626 §6, 439)
    pub(crate) beside: &'a [Box<str>],
}

/// Reads the grant of a 2xx to a REGISTER that asked for `requested` seconds.
pub(crate) fn grant(response: &Response, sent: Sent<'_>, requested: u32) -> Grant {
    let listed = list(response);
    let mut warnings = Vec::new();
    let ours = ours(&listed, sent);
    for contact in &ours {
        if let Some(text) = &contact.malformed {
            warnings.push(Warning::MalformedExpires(text.clone()));
        }
    }
    // Several that match equally well: the shortest, so that a refresh is never late.
    let own = ours.iter().filter_map(|contact| contact.expires).min();
    let header = response.delta_seconds("Expires");
    let seconds = own.or(header).unwrap_or(if requested == u32::MAX {
        3600
    } else {
        requested
    });
    let confirmed = !ours.is_empty();
    if !confirmed {
        warnings.push(Warning::Unconfirmed);
    }
    if seconds > LONGEST {
        warnings.push(Warning::LongGrant(seconds));
    } else if (1..SHORT).contains(&seconds) {
        warnings.push(Warning::ShortGrant(Duration::from_secs(u64::from(seconds))));
    }
    let gruu = |pick: fn(&Listed) -> &Option<String>| {
        ours.iter()
            .find_map(|contact| pick(contact).as_deref().map(Box::<str>::from))
    };
    Grant {
        seconds: seconds.min(LONGEST),
        confirmed,
        others: listed.len() - ours.len(),
        public_gruu: gruu(|contact| &contact.public_gruu),
        temporary_gruu: gruu(|contact| &contact.temporary_gruu),
        warnings,
    }
}

/// The bindings that an answer lists, with ours marked, and what this device has left behind.
pub(crate) fn bindings(response: &Response, sent: Sent<'_>, device: Device<'_>) -> Box<[Binding]> {
    let listed = list(response);
    let whose = whose(&listed, sent, device);
    listed
        .iter()
        .zip(whose)
        .map(|(contact, whose)| Binding {
            uri: contact.text.clone(),
            expires: contact.expires,
            ours: whose == Whose::Ours,
            stale: whose == Whose::Left,
        })
        .collect()
}

/// The Contact values that remove what this device has left behind.
pub(crate) fn removals(response: &Response, sent: Sent<'_>, device: Device<'_>) -> Vec<Box<str>> {
    let listed = list(response);
    let whose = whose(&listed, sent, device);
    let left = listed.iter().zip(whose);
    let left = left.filter(|(_, whose)| *whose == Whose::Left);
    left.filter_map(|(contact, _)| {
        // What is no URI is nothing that we have registered, and nothing to repeat.
        let uri = contact.uri.as_ref()?;
        let mut value = format!("<{uri}>");
        if let Some(instance) = sent.instance.filter(|_| contact.instance.is_some()) {
            value.push_str(&format!(";+sip.instance=\"{instance}\""));
            if let Some(number) = contact
                .reg_id
                .as_ref()
                .and_then(|id| id.parse::<u32>().ok())
            {
                value.push_str(&format!(";reg-id={number}"));
            }
        }
        value.push_str(";expires=0");
        Some(value.into())
    })
    .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Left,
    Foreign,
}

fn whose(listed: &[Listed], sent: Sent<'_>, device: Device<'_>) -> Vec<Whose> {
    let ours: Vec<*const Listed> = ours(listed, sent)
        .into_iter()
        .map(std::ptr::from_ref)
        .collect();
    let left = device.left.iter().filter_map(|uri| SipUri::parse(uri).ok());
    let beside = device
        .beside
        .iter()
        .filter_map(|uri| SipUri::parse(uri).ok());
    let (left, beside): (Vec<_>, Vec<_>) = (left.collect(), beside.collect());
    let is_of = |uris: &[SipUri], contact: &Listed| {
        let uri = contact.uri.as_ref();
        uri.is_some_and(|uri| uris.iter().any(|one| one.is_equivalent(uri)))
    };
    let of_one = |contact: &Listed| {
        let same = sent.instance.is_some() && contact.instance.as_deref() == sent.instance;
        let flow = contact.reg_id.as_ref().and_then(|id| id.parse::<u8>().ok());
        let flows = device.flows.unwrap_or_default();
        if ours.contains(&std::ptr::from_ref(contact)) {
            Whose::Ours
        } else if same {
            // Another flow of this registration, or of a run that had more of them.
            match flow {
                Some(flow) if (1..=flows).contains(&flow) => Whose::Ours,
                None if is_of(&beside, contact) => Whose::Ours,
                _ => Whose::Left,
            }
        } else if contact.instance.is_none() && is_of(&beside, contact) {
            Whose::Ours
        } else if contact.instance.is_none() && is_of(&left, contact) {
            Whose::Left
        } else {
            Whose::Foreign
        }
    };
    listed.iter().map(of_one).collect()
}

/// Whether an answer to an un-REGISTER lists our Contact all the same, with time left
///
/// Only the URI that was sent says so: what names this device otherwise may be of an earlier connection, and a sole Contact
/// with our user part another device's. Over UDP what another instance has bound may have that URI too: after a change of
/// the instance it is the new one.
pub(crate) fn lives_on(response: &Response, sent: Sent<'_>) -> bool {
    let listed = list(response);
    let uri = SipUri::parse(sent.uri).ok();
    named(&listed, sent)
        .iter()
        .filter(|contact| !is_another_instance(contact, sent))
        .filter(|contact| match (&contact.uri, &uri) {
            (Some(listed), Some(sent)) => listed.is_equivalent(sent),
            _ => false,
        })
        .any(|contact| contact.expires.is_some_and(|seconds| seconds > 0))
}

fn list(response: &Response) -> Vec<Listed> {
    response
        .contacts()
        .filter(|contact| !contact.is_star())
        .map(|contact| {
            let text = |name: &str| contact.param(name).map(|value| value.text().into_owned());
            let expires = contact.param("expires");
            // A quoted expires is malformed too: the grammar has digits (RFC 3261 §25.1).
            let digits = expires
                .as_ref()
                .filter(|value| !value.is_quoted())
                .and_then(|value| {
                    let text = value.text();
                    let whole = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    if whole { text.parse().ok() } else { None }
                });
            let malformed = match (&expires, digits) {
                (Some(value), None) => {
                    Some(value.text().chars().take(32).collect::<String>().into())
                }
                _ => None,
            };
            Listed {
                uri: uri(&contact),
                text: contact.uri().into(),
                expires: digits,
                malformed,
                instance: text("+sip.instance"),
                reg_id: text("reg-id"),
                public_gruu: text("pub-gruu"),
                temporary_gruu: text("temp-gruu"),
            }
        })
        .collect()
}

/// The URI of a Contact; without `<>` with its parameters, which then are the header's (RFC 3261 §20.10)
///
/// Who writes our Contact back without the brackets means those that we sent as the URI's.
fn uri(contact: &Contact<'_>) -> Option<SipUri> {
    let alone = || SipUri::parse(contact.uri()).ok();
    if !contact.is_bare() {
        return alone();
    }
    let mut text = contact.uri().to_owned();
    for (name, value) in contact.params() {
        match value {
            _ if ["expires", "q"].contains(&&*name.to_ascii_lowercase()) => {}
            ParamValue::Flag => text += &format!(";{name}"),
            ParamValue::Token(value) => text += &format!(";{name}={value}"),
            ParamValue::Quoted(_) => {}
        }
    }
    SipUri::parse(&text).ok().or_else(alone)
}

/// D8, in its order: instance and reg-id, our token, URI comparison, a sole Contact that kept what names us.
fn ours<'a>(listed: &'a [Listed], sent_as: Sent<'_>) -> Vec<&'a Listed> {
    let named = named(listed, sent_as);
    let sent = SipUri::parse(sent_as.uri).ok();
    match (listed, &sent) {
        ([sole], Some(sent))
            if named.is_empty()
                && !is_another_flow(sole, sent_as)
                && sole
                    .uri
                    .as_ref()
                    .is_some_and(|uri| same_but_for_host(uri, sent)) =>
        {
            vec![sole]
        }
        _ => named,
    }
}

/// Those that are ours without doubt
fn named<'a>(listed: &'a [Listed], sent: Sent<'_>) -> Vec<&'a Listed> {
    let sent_uri = SipUri::parse(sent.uri).ok();
    let rules: [&dyn Fn(&Listed) -> bool; 3] = [
        &|contact| {
            sent.instance.is_some()
                && contact.instance.as_deref() == sent.instance
                && contact.reg_id.as_deref() == sent.reg_id
        },
        &|contact| {
            let line = contact
                .uri
                .as_ref()
                .and_then(|uri| uri.param("line").flatten());
            sent.line.is_some() && line == sent.line
        },
        &|contact| match (&contact.uri, &sent_uri) {
            (Some(uri), Some(sent)) => uri.is_equivalent(sent),
            _ => false,
        },
    ];
    for rule in rules {
        let own = listed.iter().filter(|one| !is_another_flow(one, sent));
        let found: Vec<_> = own.filter(|contact| rule(contact)).collect();
        if !found.is_empty() {
            return nearest(found, sent_uri.as_ref());
        }
    }
    Vec::new()
}

/// Of several: those with the URI that was sent, where there are such. A registrar that knows Contacts by their URIs goes on
/// listing what an earlier connection has bound, until that ends.
fn nearest<'a>(found: Vec<&'a Listed>, sent: Option<&SipUri>) -> Vec<&'a Listed> {
    let is_it = |one: &&&Listed| match (&one.uri, sent) {
        (Some(uri), Some(sent)) => uri.is_equivalent(sent),
        _ => false,
    };
    match found.iter().any(|one| is_it(&one)) {
        true => found.iter().filter(is_it).copied().collect(),
        false => found,
    }
}

/// Whether it is the binding of another flow of this device: over UDP all flows may have one URI (RFC 5626 §4.2.1)
fn is_another_flow(contact: &Listed, sent: Sent<'_>) -> bool {
    sent.instance.is_some()
        && contact.instance.as_deref() == sent.instance
        && matches!((&contact.reg_id, sent.reg_id), (Some(listed), Some(sent)) if listed != sent)
}

/// Whether it says that it is of another instance than this one
fn is_another_instance(contact: &Listed, sent: Sent<'_>) -> bool {
    match (contact.instance.as_deref(), sent.instance) {
        // URNs differ in case only where they are the same (RFC 8141 §3.1, RFC 4122 §3).
        (Some(listed), Some(sent)) => !listed.eq_ignore_ascii_case(sent),
        _ => false,
    }
}

/// Whether only host and port differ: what an SBC or a NAT helper does to a Contact
fn same_but_for_host(uri: &SipUri, sent: &SipUri) -> bool {
    uri.user() == sent.user()
        && sent
            .params()
            .all(|(name, value)| uri.param(name) == Some(value))
}

#[cfg(test)]
#[path = "tests/lease.rs"]
mod tests;
