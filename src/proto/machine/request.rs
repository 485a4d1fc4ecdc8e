//! The next request of an attempt: what it says, and that it goes out.

use super::*;

impl Machine {
    /// Sends a request at the target at hand, within the budget.
    pub(super) fn send(&mut self, cx: &mut Out<'_>) {
        let policy = Arc::clone(self.registration.policy());
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let over = cycle.requests >= REQUESTS_A_CYCLE
            || cycle.at_target >= REQUESTS_A_TARGET
            || cycle
                .started
                .is_some_and(|started| cx.now >= started + CYCLE);
        if over {
            let answered = cycle.answered.take();
            self.leave_off();
            return self.fail(cx, Failure::Budget, None, answered);
        }
        if cycle.requests >= REQUESTS_A_CYCLE - REQUESTS_FOR_THE_NEXT
            && self.next_choice().is_some()
        {
            self.prove(cx, None);
            return self.lead_on(cx);
        }
        if !self.in_turn(cx) {
            return;
        }
        self.limit_choice(cx.now);
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Some((flow, info)) = cycle.flow.clone() else {
            return;
        };
        let cseq = if self.identity.cseq >= i32::MAX as u32 {
            1
        } else {
            self.identity.cseq + 1
        };
        let branch = self.identity.branch(cx.entropy);
        let contact = match cycle.purpose {
            Purpose::Register => {
                ContactForm::Ours(self.registration.expiration().max(self.seldom.min_expires))
            }
            Purpose::Unregister => ContactForm::Ours(0),
            Purpose::Reconcile if !cycle.left.is_empty() => ContactForm::Gone,
            Purpose::Query | Purpose::Reconcile => ContactForm::None,
            Purpose::RemoveAll => ContactForm::Star,
        };
        let choice = self.registration.choice(cycle.choice);
        let (uri, _) = write::request_line(choice);
        let mut authorization = String::new();
        self.sessions
            .authorize(&uri, cx.entropy, policy.auth.preemptive, &mut authorization);
        let rejected = self.reference == ReferenceStatus::Rejected;
        let outbound_is_known = self.is_outbound();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let security = security_lines(
            &self.registration,
            &self.seldom.security_server,
            cycle,
            rejected,
        );
        let old = match contact {
            ContactForm::Ours(_) if !self.seldom.sole_contact => {
                // Where it is not known whether the registrar does outbound, it removes what has expires=0 (RFC 5626 §6).
                let known = outbound_is_known || self.seldom.others_outbound;
                old_contacts(
                    &self.registration,
                    self.lease.as_ref(),
                    &self.seldom.stale,
                    &cycle.contact_uri,
                    cycle.outbound && known,
                )
            }
            _ => Vec::new(),
        };
        cycle.replaces = !old.is_empty();
        let message = write::register(&Parts {
            registration: choice,
            info: &info,
            branch: &branch,
            from_tag: &cycle.from_tag,
            call_id: &self.identity.call_id,
            cseq,
            contact,
            contact_uri: &cycle.contact_uri,
            old_contacts: &old,
            gone: &cycle.left,
            path: cycle.path,
            outbound: cycle.outbound,
            gruu: cycle.gruu,
            security: &security,
            authorization: &authorization,
        });
        let reliable = info.protocol().is_reliable();
        if !reliable && message.len() > DATAGRAM {
            if !std::mem::replace(&mut cycle.oversize, true) {
                cx.out.push(Output::Event(Event::Warning(Warning::Oversize(
                    message.len(),
                ))));
            }
            let failed = |lease: &Lease| lease.stream == Stream::Failed;
            let free = policy.stream_fallback && !choice.pins_protocol();
            if free
                && !self.lease.as_ref().is_some_and(failed)
                && cycle.divert(self.registration.fallbacks().len())
            {
                self.sessions.take_back();
                return self.open(cx);
            }
        }
        cycle.requests += 1;
        cycle.at_target += 1;
        cycle.started.get_or_insert(cx.now);
        cycle.security_only_verify = false;
        self.identity.cseq = cseq;
        cycle.lived = self.may_live;
        if let ContactForm::Ours(1..) = contact {
            let asked = self
                .registration
                .expiration()
                .max(self.seldom.min_expires)
                .min(lease::LONGEST);
            let until = cx.now + Duration::from_secs(u64::from(asked)) + policy.timers.timer_f;
            self.may_live = Some(self.may_live.map_or(until, |earlier| earlier.max(until)));
            // Until it is answered, the registrar may or may not have bound this Contact.
            let uri = &cycle.contact_uri;
            let leased = self
                .lease
                .as_ref()
                .is_some_and(|lease| lease.contact == *uri);
            if let Some(seldom) = self.seldom.there() {
                seldom.stale.retain(|(contact, _)| contact != uri);
            }
            if !leased {
                let stale = &mut self.seldom.change().stale;
                if stale.len() >= STALE {
                    stale.remove(0);
                }
                stale.push((uri.clone(), until));
            }
        }
        if policy.registers_a_second.is_some() {
            self.seldom.change().sent_at = Some(cx.now);
        }
        cycle.step = Step::Registering(Transaction::new(
            &policy.paced_timers(),
            reliable,
            branch.into(),
            message.clone(),
            cx.now,
        ));
        cx.out.push(Output::Transmit { flow, message });
        self.transcribe(None);
    }
}

/// The Security-* lines with Require and Proxy-Require, by the reference's rules for mediasec
fn security_lines(
    registration: &Registration,
    server: &[Box<str>],
    cycle: &Cycle,
    rejected: bool,
) -> String {
    use std::fmt::Write as _;
    let mut lines = String::new();
    if registration.security_negotiation() != SecurityNegotiation::Mediasec {
        return lines;
    }
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = lines.write_fmt(text);
        lines.push_str("\r\n");
    };
    if !cycle.security_only_verify {
        for mechanism in registration.security_mechanisms() {
            line(format_args!("Security-Client: {}", mechanism.as_str()));
        }
    }
    let verify = cycle.authenticated
        || cycle.security_resent
        || rejected
        || registration.policy().security_verify_on_refresh;
    for mechanism in server.iter().filter(|_| verify) {
        line(format_args!("Security-Verify: {mechanism}"));
    }
    line(format_args!("Require: mediasec"));
    line(format_args!("Proxy-Require: mediasec"));
    lines
}

/// The Contacts that go with this request because `uri` takes their place
///
/// With instance and reg-id a registrar that does outbound does that itself (RFC 5626 §6): `outbound` says that.
fn old_contacts<'a>(
    registration: &Registration,
    lease: Option<&'a Lease>,
    stale: &'a [(Box<str>, Instant)],
    uri: &str,
    outbound: bool,
) -> Vec<&'a str> {
    let leased = lease.map(|lease| &*lease.contact);
    let all = leased
        .into_iter()
        .chain(stale.iter().map(|(contact, _)| &**contact));
    let mut old: Vec<&str> = all.filter(|contact| *contact != uri).collect();
    if !old.is_empty()
        && (outbound || registration.reg_id().is_none())
        && matches!(registration.named(), (Some(_), Some(_)))
    {
        old.clear();
    }
    old
}
