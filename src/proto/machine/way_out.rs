//! How requests of the host go the way of the registration.

use super::*;
use crate::Route;

/// What a request of the host needs to go out the way that its registration came in, see
/// [`Pool::ways_out`](crate::Pool::ways_out)
///
/// A dialog that is begun on it has its requests in both directions over the same flow.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WayOut {
    /// The flow to send on
    pub flow: FlowId,
    /// The `reg-id` of that flow, where the option `outbound` is on and was not refused
    pub reg_id: Option<u8>,
    /// The Route values in order, each as it goes into the header: the outbound proxies of the configuration, and the
    /// Service-Route of the last grant after them (RFC 3608 §6.1)
    pub route: Box<[Box<str>]>,
    /// What goes into Contact of a request that begins a dialog: the public GRUU where there is one (RFC 5627 §4.4), else
    /// the URI that was registered, without `<>`; with `ob` where the flow is an outbound one (RFC 5626 §4.3). That of a
    /// trunk (`gin`) is without `bnc`, which is for REGISTER, and without a user: the number that calls goes before its host,
    /// with an `@` (RFC 6140 §5.2)
    pub contact: Box<str>,
    /// The public GRUU, which is always the same (RFC 5627 §3.1); that of a trunk has `bnc` (RFC 6140 §7.1.1)
    pub public_gruu: Option<Box<str>>,
    /// The newest temporary GRUU, for requests that shall not show who we are (RFC 5627 §3.1)
    pub temporary_gruu: Option<Box<str>>,
    /// P-Associated-URI in order; the first is the default public identity (RFC 7315 §4.1)
    pub associated_uris: Box<[Box<str>]>,
    /// What goes out as Security-Verify, each in a line of its own, with `Require` and `Proxy-Require: mediasec`
    /// (RFC 3329 §2.3.1)
    pub security_verify: Box<[Box<str>]>,
}

impl WayOut {
    /// A way on `flow` with `contact` and nothing else, for a mock.
    #[must_use]
    pub fn new(flow: FlowId, contact: impl Into<Box<str>>) -> Self {
        Self {
            flow,
            reg_id: None,
            route: [].into(),
            contact: contact.into(),
            public_gruu: None,
            temporary_gruu: None,
            associated_uris: [].into(),
            security_verify: [].into(),
        }
    }
}

impl Machine {
    /// How a request of the host goes out, while there is a binding whose flow is up.
    #[must_use]
    pub fn way_out(&self) -> Option<WayOut> {
        let lease = self.lease.as_ref()?;
        let flow = lease.flow?;
        let choice = self.registration.choice(self.seldom.choice);
        let nothing = Bearings::default();
        let bearings = self.seldom.bearings.as_deref().unwrap_or(&nothing);
        let proxies = choice.outbound_proxy().iter().map(Route::to_string);
        let mut route: Vec<Box<str>> = proxies.map(Into::into).collect();
        for value in &bearings.service_route {
            // A proxy that names itself again is not to get the request twice.
            if route.last() != Some(value) {
                route.push(value.clone());
            }
        }
        let ours = bearings.public_gruu.as_ref().unwrap_or(&lease.contact);
        let mut contact = without_bnc(ours);
        if bearings.outbound && !has_ob(&contact) {
            contact.push_str(";ob");
        }
        Some(WayOut {
            flow,
            reg_id: self
                .registration
                .reg_id()
                .filter(|_| !self.seldom.without_outbound),
            route: route.into(),
            contact: contact.into(),
            public_gruu: bearings.public_gruu.clone(),
            temporary_gruu: bearings.temporary_gruu.clone(),
            associated_uris: bearings.associated_uris.clone(),
            security_verify: self.seldom.security_server.clone().into(),
        })
    }

    /// The Contact that is bound.
    pub(crate) fn contact(&self) -> Option<&str> {
        self.lease.as_ref().map(|lease| &*lease.contact)
    }

    /// Whether the last grant said `Require: outbound`.
    pub(crate) fn is_outbound(&self) -> bool {
        let bearings = self.seldom.bearings.as_ref();
        self.lease.is_some() && bearings.is_some_and(|bearings| bearings.outbound)
    }

    /// What a grant says takes the place of what the one before said; what it does not say is gone (RFC 3608 §6.1).
    pub(super) fn take_bearings(&mut self, granted: &Registered) {
        let boxed = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
        let new = Bearings {
            outbound: granted.outbound,
            service_route: granted
                .service_route
                .iter()
                .filter_map(|value| usable(value))
                .collect(),
            associated_uris: boxed(&granted.associated_uris),
            public_gruu: granted.public_gruu.clone(),
            temporary_gruu: granted.temporary_gruu.clone(),
        };
        if new == Bearings::default() {
            self.forget_bearings();
        } else {
            self.seldom.change().bearings = Some(Box::new(new));
        }
    }

    pub(super) fn forget_bearings(&mut self) {
        if let Some(seldom) = self.seldom.there() {
            seldom.bearings = None;
        }
    }

    /// The wish for outbound is kept for the next network (F08).
    pub(super) fn outbound_refused(&mut self, refused: bool) {
        if refused && self.registration.outbound() {
            self.seldom.change().without_outbound = true;
        }
    }
}

/// Only a registrar knows what a URI with `bnc` means (RFC 6140 §5.2).
fn without_bnc(uri: &str) -> String {
    let kept = uri
        .split(';')
        .enumerate()
        .filter(|(index, part)| *index == 0 || !part.eq_ignore_ascii_case("bnc"));
    kept.map(|(_, part)| part).collect::<Vec<_>>().join(";")
}

/// What goes into Route: each in brackets, as Service-Route is to have them (RFC 3608 §5), and none that is no SIP URI.
fn usable(value: &str) -> Option<Box<str>> {
    let bracketed = match value.contains('<') {
        true => value.to_owned(),
        false => format!("<{value}>"),
    };
    let (_, rest) = bracketed.rsplit_once('<')?;
    let (uri, params) = rest.split_once('>')?;
    let good = SipUri::parse(uri).is_ok_and(|uri| uri.headers().is_none())
        && (params.is_empty() || params.trim_start().starts_with(';'));
    if !good {
        tracing::trace!("skipping a Service-Route that is no route");
    }
    good.then(|| bracketed.into())
}

/// A GRUU whose Contact had `ob` leads to the flow by itself (RFC 5626 §4.3).
fn has_ob(uri: &str) -> bool {
    SipUri::parse(uri).is_ok_and(|uri| uri.has_param("ob"))
}
