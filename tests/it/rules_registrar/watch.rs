//! What must hold throughout a life: of the requests on the wire, of the story that the events tell, of the stops.

use super::registrar::edge;
use sip_registration::testkit::SentRequest;
use sip_registration::*;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Nobody answers a request for that long: it is over (RFC 3261 §17.1.2.2)
///
/// Less what may go by before a life looks at what was sent.
pub(super) const TIMER_F: Duration = Duration::from_millis(31_800);

#[derive(Debug)]
struct Open {
    since: Duration,
    flow: FlowId,
    /// It removes what this flow has bound
    removes: bool,
}

#[derive(Debug)]
pub(super) struct Dialogue {
    cseq: u32,
    open: Option<Open>,
    reg_id: Option<String>,
}

/// The requests, by Call-ID
#[derive(Debug, Default)]
pub(super) struct Wire {
    pub(super) dialogues: HashMap<String, Dialogue>,
    /// What is sent on one of these is never answered: another one may follow at once
    pub(super) closed: HashSet<FlowId>,
    /// When stops were asked for, and when half of their time was over
    pub(super) stops: Vec<(Duration, Duration)>,
    /// A choice may be left for the next one before timer F (D3)
    pub(super) falls_back: bool,
}

fn call_id(request: &SentRequest) -> String {
    request.header("Call-ID").expect("a Call-ID").into_owned()
}

fn cseq(request: &SentRequest) -> u32 {
    request.cseq().expect("a CSeq").0
}

impl Wire {
    /// Takes one in that has been sent; true where it is a retransmission.
    ///
    /// One is outstanding at a time (RFC 3261 §10.2), and CSeq rises by one with each that is new (§10.2, §12.2.1.1).
    pub(super) fn sent(&mut self, now: Duration, request: &SentRequest) -> Result<bool, String> {
        let (call_id, cseq) = (call_id(request), cseq(request));
        let star = request.contacts().any(|contact| contact.is_star());
        let removes = request.delta_seconds("Expires") == Some(0) && !star;
        // The removals of a reconciliation have no such header, and are of the numbers of others.
        let own = request.header("Expires").is_some() && !star;
        let contact = request.contacts().find(|_| own);
        let reg_id = contact.and_then(|contact| Some(contact.param("reg-id")?.text().into_owned()));
        let open = Open {
            since: now,
            flow: request.flow(),
            removes,
        };
        let open = Some(open).filter(|open| !self.closed.contains(&open.flow));
        // A stop waits for half of its time (D21); who registers again after it waits no longer.
        let stops = self.stops.clone();
        let given_up = |open: &Open| {
            let of_it = |(asked, half): &(Duration, Duration)| open.since <= *asked && now >= *half;
            stops.iter().any(of_it)
        };
        let runs = |open: &Open| now < open.since + TIMER_F && !given_up(open);
        // Another Call-ID with the same number: the flow that had it before.
        let rival = self.dialogues.iter().find(|(other, dialogue)| {
            **other != call_id
                && reg_id.is_some()
                && dialogue.reg_id == reg_id
                && dialogue.open.as_ref().is_some_and(|open| {
                    // That of an un-REGISTER counts from the command (D21), whenever it was sent.
                    runs(open) && !open.removes
                })
        });
        if let Some((other, _)) = rival {
            return Err(format!(
                "{other} is outstanding with the number of {call_id}"
            ));
        }
        let Some(dialogue) = self.dialogues.get_mut(&call_id) else {
            self.dialogues
                .insert(call_id, Dialogue { cseq, open, reg_id });
            return Ok(false);
        };
        if dialogue.cseq == cseq {
            return Ok(true);
        }
        if cseq != dialogue.cseq + 1 {
            return Err(format!("CSeq {cseq} after {} of {call_id}", dialogue.cseq));
        }
        let before = std::mem::replace(&mut dialogue.open, open);
        dialogue.cseq = cseq;
        if reg_id.is_some() {
            dialogue.reg_id = reg_id;
        }
        match before.filter(runs) {
            // A stop waits for half of its time, and has the other half for the un-REGISTER (D21).
            Some(before) if removes && !before.removes => Ok(false),
            // An un-REGISTER has a time of its own, from the command on (D21); what comes late has a lower CSeq.
            Some(before) if before.removes => Ok(false),
            Some(_) if self.falls_back => Ok(false),
            Some(before) => Err(format!(
                "CSeq {cseq} of {call_id} at edge {} while one is outstanding since {:?}",
                edge(request),
                before.since
            )),
            None => Ok(false),
        }
    }

    pub(super) fn answered(&mut self, request: &SentRequest) {
        let dialogue = self.dialogues.get_mut(&call_id(request));
        if let Some(dialogue) = dialogue.filter(|dialogue| dialogue.cseq == cseq(request)) {
            dialogue.open = None;
        }
    }

    /// Nothing that was sent on these flows can be answered any more.
    pub(super) fn closed(&mut self, flows: &[FlowId]) {
        self.closed.extend(flows);
        for dialogue in self.dialogues.values_mut() {
            dialogue.open.take_if(|open| flows.contains(&open.flow));
        }
    }

    /// A stop was asked for.
    pub(super) fn stops(&mut self, now: Duration, within: Duration) {
        self.stops.push((now, now + within / 2));
    }

    /// The time of a stop is over, and with it that of its un-REGISTERs.
    pub(super) fn stopped(&mut self) {
        for dialogue in self.dialogues.values_mut() {
            dialogue.open.take_if(|open| open.removes);
        }
    }

    /// Whatever was outstanding was left for another network, or is older than it could be.
    pub(super) fn forgotten(&mut self) {
        for dialogue in self.dialogues.values_mut() {
            dialogue.open = None;
        }
    }
}

/// What the events say of the whole registration
#[derive(Debug, Default)]
pub(super) struct Story {
    /// Whether it is registered
    pub(super) told: bool,
    /// It was not removed as it should: the status says whether it is still there
    unsure: bool,
    /// Removals that somebody asked for, and that were not told yet
    removals: u32,
}

impl Story {
    /// A command that removes the binding, or may.
    pub(super) fn removes(&mut self) {
        self.removals += 1;
    }

    /// All is quiet, and the status says this.
    pub(super) fn look(&mut self, registered: bool, busy: bool) -> bool {
        if self.unsure {
            self.told = registered;
        }
        if !busy {
            self.removals = 0;
        }
        self.told == registered
    }

    /// Takes an event in; what it says has to fit what was said before.
    pub(super) fn told(&mut self, event: &Event) -> Result<(), &'static str> {
        match event {
            Event::Registered(_) if self.told && !self.unsure => return Err("registered twice"),
            Event::Registered(_) | Event::Refreshed(_) if self.told || self.unsure => {
                (self.told, self.unsure) = (true, false);
            }
            Event::Registered(_) => self.told = true,
            Event::Refreshed(_) if !self.told => return Err("refreshed what was not registered"),
            Event::Expired { .. } if !self.told && !self.unsure => {
                return Err("expired what was not registered");
            }
            Event::Expired { .. } => (self.told, self.unsure) = (false, false),
            Event::FlowLost { .. } if !self.told && !self.unsure => {
                return Err("lost the flow of nothing");
            }
            Event::Rejected { lease_left, .. } | Event::GaveUp { lease_left, .. } => {
                // One that was left, and has its turn again, may hold a binding that could not be removed: the status says so too.
                (self.told, self.unsure) = (lease_left.is_some(), false);
            }
            Event::Unregistered(removal) => {
                // What was told to be registered ends so; of what may be there, each removal that was asked for tells once.
                if !self.told && self.removals == 0 {
                    return Err("removed twice");
                }
                self.removals = self.removals.saturating_sub(1);
                self.unsure |= *removal != Removal::Removed;
                self.told = false;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The stops that somebody waits for
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// Until when the one under way has to be over
    by: Option<Duration>,
    pub(super) dones: usize,
}

impl Stops {
    /// Those that come while one is under way end with it, and not later than they say.
    pub(super) fn asked(&mut self, by: Duration) {
        self.by = Some(self.by.map_or(by, |earlier| earlier.min(by)));
    }

    pub(super) const fn under_way(&self) -> bool {
        self.by.is_some()
    }

    pub(super) fn done(&mut self) -> Result<(), &'static str> {
        self.dones += 1;
        self.by.take().map(drop).ok_or("done what nobody asked for")
    }

    pub(super) fn check(&self, now: Duration) -> Result<(), &'static str> {
        match self.by {
            Some(by) if now > by => Err("somebody waits for a stop beyond its time"),
            _ => Ok(()),
        }
    }
}
