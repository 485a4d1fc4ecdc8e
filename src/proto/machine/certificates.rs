//! What a grant tells of the certificates of its flow.

use super::*;

/// What is worth telling at `now`, and was not at `before`, the grant before this one on the same flow: once a flow.
pub(super) fn warnings(
    info: &FlowInfo,
    ahead: Duration,
    now: SystemTime,
    before: Option<SystemTime>,
) -> Vec<Warning> {
    // What is left, once it is little.
    let left = |until: SystemTime, at: SystemTime| {
        let left = until.duration_since(at).unwrap_or_default();
        (left <= ahead).then_some(left)
    };
    let fresh = |until: Option<SystemTime>| {
        let until = until?;
        let told = before.is_some_and(|before| left(until, before).is_some());
        left(until, now).filter(|_| !told)
    };
    [
        fresh(info.peer_certificate_until()).map(Warning::PeerCertificateExpires),
        fresh(info.own_certificate_until()).map(Warning::OwnCertificateExpires),
        (info.is_unverified() && before.is_none()).then_some(Warning::UnverifiedPeer),
    ]
    .into_iter()
    .flatten()
    .collect()
}
