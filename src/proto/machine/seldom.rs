//! What few registrations have, behind one pointer that the others do not pay for.

use super::*;

/// What idle registrations do not have: a hundred thousand of them shall not pay for it
#[derive(Debug, Clone, Default)]
pub(super) struct Seldom {
    /// In this order; a command replaces an earlier one of its kind, so that these are few
    pub(super) then: Vec<Then>,
    /// When a stop stops waiting for the cycle under way
    pub(super) then_at: Option<Instant>,
    pub(super) flaps: u32,
    /// Retries in a row that did not count, or waited as long as the registrar said
    pub(super) uncounted: u8,
    /// Raised by a 423, until reconfigured (D10)
    pub(super) min_expires: u32,
    /// Contacts that the registrar may still hold beside the lease's, and until when (D18)
    pub(super) stale: Vec<(Box<str>, Instant)>,
    /// The registrar refuses two Contacts in one REGISTER (D18)
    pub(super) sole_contact: bool,
    pub(super) security_server: Vec<Box<str>>,
    /// Whose word `min_expires`, `sole_contact`, `security_server` and `without_outbound` are: the number of a choice
    pub(super) learnt_from: u8,
    /// The fallback that is bound; 0: the first choice
    pub(super) choice: u8,
    /// [`RETURN`] after this the first choice is tried again
    pub(super) fell_back: Option<Instant>,
    /// The last request and its answer, where the policy wants them (D27)
    pub(super) transcript: Option<Box<Transcript>>,
    /// When a request went out last, where the policy has a ceiling (D16)
    pub(super) sent_at: Option<Instant>,
    /// A connection on which nobody answered: the next attempt takes another
    pub(super) silent: Option<FlowId>,
    /// The target that the last attempt has not come to: the next one begins there
    pub(super) untried: Option<Target>,
    /// Outbound was refused (439, 420) on this network: asked for again on the next, or when reconfigured
    pub(super) without_outbound: bool,
    /// Another flow of the same registration is up
    pub(super) others_hold: bool,
    /// … at a registrar that does outbound
    pub(super) others_outbound: bool,
    /// The registrar has removed all bindings, by a request that was sent then; the other flows are not told yet
    pub(super) emptied: Option<Instant>,
    /// What the last grant said of requests that the host sends
    pub(super) bearings: Option<Box<Bearings>>,
}

/// What a grant says of the way that requests of the host take
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Bearings {
    /// `Require: outbound` (RFC 5626 §4.2.1)
    pub(super) outbound: bool,
    pub(super) service_route: Box<[Box<str>]>,
    pub(super) associated_uris: Box<[Box<str>]>,
    pub(super) public_gruu: Option<Box<str>>,
    pub(super) temporary_gruu: Option<Box<str>>,
}

static NOTHING: Seldom = Seldom {
    then: Vec::new(),
    then_at: None,
    flaps: 0,
    uncounted: 0,
    min_expires: 0,
    stale: Vec::new(),
    sole_contact: false,
    security_server: Vec::new(),
    learnt_from: 0,
    choice: 0,
    fell_back: None,
    silent: None,
    untried: None,
    without_outbound: false,
    others_hold: false,
    others_outbound: false,
    emptied: None,
    bearings: None,
    transcript: None,
    sent_at: None,
};

impl Seldom {
    /// Whether there is none of it.
    fn is_nothing(&self) -> bool {
        let Self {
            then,
            then_at,
            flaps,
            uncounted,
            min_expires,
            stale,
            sole_contact,
            security_server,
            learnt_from,
            choice,
            fell_back,
            silent,
            untried,
            without_outbound,
            others_hold,
            others_outbound,
            emptied,
            bearings,
            transcript,
            sent_at,
        } = self;
        then.is_empty()
            && then_at.is_none()
            && (*flaps, *uncounted, *min_expires) == (0, 0, 0)
            && stale.is_empty()
            && !sole_contact
            && security_server.is_empty()
            && (*learnt_from, *choice) == (0, 0)
            && fell_back.is_none()
            && silent.is_none()
            && untried.is_none()
            && !without_outbound
            && !others_hold
            && !others_outbound
            && emptied.is_none()
            && bearings.is_none()
            && transcript.is_none()
            && sent_at.is_none()
    }
}

/// A [`Seldom`] that takes no memory while there is none of it
#[derive(Clone, Default)]
pub(super) struct Rarely(Option<Box<Seldom>>);

impl Rarely {
    /// To be changed; made where it was not.
    pub(super) fn change(&mut self) -> &mut Seldom {
        self.0.get_or_insert_default()
    }

    /// To be changed, where there is something.
    pub(super) fn there(&mut self) -> Option<&mut Seldom> {
        self.0.as_deref_mut()
    }

    pub(super) fn tidy(&mut self) {
        self.0.take_if(|seldom| seldom.is_nothing());
    }
}

impl std::ops::Deref for Rarely {
    type Target = Seldom;

    fn deref(&self) -> &Seldom {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl std::fmt::Debug for Rarely {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
