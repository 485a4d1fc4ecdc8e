//! What the registrar said.

use super::*;
use std::borrow::Cow;

impl Machine {
    pub(super) fn response(&mut self, cx: &mut Out<'_>, response: &Response) {
        let timers = self.registration.policy().timers.clone();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Step::Registering(transaction) = &mut cycle.step else {
            return;
        };
        let Some((flow, info)) = &mut cycle.flow else {
            return;
        };
        // RFC 3261 §17.1.3: branch and CSeq method; §8.1.3.3 and §18.1.2: one Via, our sent-by (D25).
        let Some(via) = response.via() else { return };
        // A branch is a token, so its case does not count (§7.3.1).
        let matches = via
            .branch
            .as_deref()
            .is_some_and(|branch| branch.eq_ignore_ascii_case(&transaction.branch))
            && response.via_count() == 1
            && response
                .cseq()
                .is_some_and(|(_, method)| method == "REGISTER")
            && sent_by_is_ours(&via.host, via.port, info);
        if !matches {
            return;
        }
        let seen = Seen::of(&via, info);
        let grants = cycle.purpose == Purpose::Register && (200..300).contains(&response.code());
        let negotiates = self.registration.policy().keep_alive.negotiate;
        cx.out.push(Output::Answered {
            flow: *flow,
            mapped: seen.mapped,
            nat: seen.nat,
            terms: grants.then(|| match negotiates {
                true => terms(response, via.keep),
                false => KeepAliveTerms::default(),
            }),
        });
        if let (Some(from), Some(to)) = (info.mapped(), seen.mapped)
            && from != to
        {
            *info = Arc::new(FlowInfo::clone(info).with_mapped(seen.mapped));
            cx.out
                .push(Output::Event(Event::Warning(Warning::MappingChanged {
                    from,
                    to,
                })));
        }
        if response.code() < 200 {
            return transaction.provisional(&timers, cx.now);
        }
        let sent_at = transaction.sent_at;
        let mut exchange = self.exchange(Some(response));
        if let Some(exchange) = &mut exchange {
            exchange.mapped = seen.mapped;
        }
        self.transcribe(Some(response));
        self.finale(cx, response, sent_at, exchange);
    }

    pub(super) fn finale(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        sent_at: Instant,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let code = response.code();
        if let Plan::Cycle(cycle) = &mut self.plan {
            cycle.code = Some(code);
            if code >= 300 {
                cycle.answered.clone_from(&exchange);
            }
            // This request made no binding, earlier ones may have; 408 and 504 of a proxy say nothing of the registrar.
            if code >= 300 && !matches!(code, 408 | 504) {
                self.may_live = cycle.lived;
                if cycle.purpose == Purpose::Register && cycle.lived.is_none() {
                    self.forget_stale();
                }
            }
        }
        let asked = response
            .retry_after()
            .map(|seconds| Duration::from_secs(u64::from(seconds)));
        let retry_after = asked.map(|asked| asked.min(policy.retry.retry_after_max));
        self.found(
            cx,
            match code {
                503 => TargetOutcome::Unavailable { retry_after },
                408 if retry_after.is_some() => TargetOutcome::Unavailable { retry_after },
                _ => TargetOutcome::Answered,
            },
        );
        if matches!(code, 401 | 407 | 494) {
            self.store_security(response);
        }
        let failure = Failure::Rejected {
            code,
            reason: plain(&response.reason(), SHOWN),
        };
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let registers = cycle.purpose == Purpose::Register;
        match code {
            // D18: some registrars refuse two Contacts; this one is remembered.
            400 | 403 | 413 | 500 if cycle.replaces => {
                self.seldom.change().sole_contact = true;
                self.sessions.begin_request();
                self.send(cx);
            }
            200..=299 => self.success(cx, response, sent_at, exchange),
            401 | 407 => self.challenged(cx, response, exchange),
            423 if registers => {
                let asked = self.registration.expiration().max(self.seldom.min_expires);
                // Of several the largest: it satisfies the others too.
                match response.most_delta_seconds("Min-Expires") {
                    Some(least) if least > asked && least <= lease::LONGEST => {
                        self.seldom.change().min_expires = least;
                        self.sessions.begin_request();
                        self.send(cx);
                    }
                    _ => self.fail(cx, failure, response.retry_after(), exchange),
                }
            }
            494 if self.registration.security_negotiation() == SecurityNegotiation::Mediasec
                && !cycle.security_resent =>
            {
                cycle.security_resent = true;
                cycle.security_only_verify = true;
                self.sessions.clear_for_retry();
                self.send(cx);
            }
            420 if policy.drop_refused_tokens && !cycle.tokens_dropped => {
                let refused = response.option_tags("Unsupported");
                let says = |token: &str| refused.iter().any(|tag| tag.eq_ignore_ascii_case(token));
                let gruu = says("gruu")
                    && cycle.gruu
                    && self
                        .registration
                        .supported()
                        .iter()
                        .any(|tag| tag.eq_ignore_ascii_case("gruu"));
                let path = says("path") && cycle.path && self.registration.support_path();
                let outbound =
                    says("outbound") && cycle.outbound && self.registration.support_outbound();
                cycle.tokens_dropped = true;
                cycle.path &= !path;
                cycle.outbound &= !outbound;
                cycle.gruu &= !gruu;
                if path || outbound || gruu {
                    self.outbound_refused(outbound);
                    self.send(cx);
                } else {
                    self.fail(cx, failure, response.retry_after(), exchange);
                }
            }
            430 if policy.resend_without_outbound && !cycle.fresh_flow => {
                cycle.fresh_flow = true;
                self.open(cx);
            }
            439 if policy.resend_without_outbound
                && cycle.outbound
                && self.registration.support_outbound() =>
            {
                cycle.outbound = false;
                self.outbound_refused(true);
                self.send(cx);
            }
            300..=399 => self.redirect(cx, response, failure, exchange),
            408 | 503 => {
                self.next_target(cx, failure, response.retry_after(), exchange);
            }
            _ => {
                let retry_after = response.retry_after();
                let at_once = retry_after == Some(0) && policy.retry.retry_after_zero;
                if at_once && cycle.next + 1 < cycle.targets.len() {
                    self.next_target(cx, failure, retry_after, exchange);
                } else {
                    self.fail(cx, failure, retry_after, exchange);
                }
            }
        }
    }

    pub(super) fn redirect(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        failure: Failure,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let op = self.op();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        // By q (RFC 3261 §8.1.3.4), and of equals the first.
        let quality = |contact: &crate::Contact<'_>| {
            let q = contact.param("q")?.text().trim().parse::<f32>().ok()?;
            (0.0..=1.0).contains(&q).then_some(q)
        };
        let to = response
            .contacts()
            .filter_map(|contact| {
                let uri = SipUri::parse(contact.uri()).ok()?;
                Some((quality(&contact).unwrap_or(1.0), uri))
            })
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
            .map(|(_, uri)| uri);
        match (policy.redirects, to) {
            (Redirects::Follow { max }, Some(uri)) if cycle.redirects < max => {
                cycle.redirects += 1;
                cycle.flow = None;
                // Another server: what was answered to this one is not shown to it.
                self.sessions.clear_for_retry();
                cycle.step = Step::Locating {
                    op,
                    until: cx.now + LOCATING,
                };
                cx.out.push(Output::Locate { op, uri });
            }
            _ => self.fail(cx, failure, response.retry_after(), exchange),
        }
    }

    pub(super) fn success(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        sent_at: Instant,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let choice = match &self.plan {
            Plan::Cycle(cycle) => cycle.choice,
            _ => 0,
        };
        let uri = write::request_line(self.registration.choice(choice))
            .0
            .into_owned();
        self.sessions.accepted();
        for (role, header) in [
            (Role::Origin, "Authentication-Info"),
            (Role::Proxy, "Proxy-Authentication-Info"),
        ] {
            for value in response.headers(header) {
                if self.sessions.authentication_info(role, &value, &uri, b"") == ServerProof::Wrong
                {
                    cx.out.push(Output::Event(Event::Warning(
                        Warning::ServerNotAuthenticated,
                    )));
                }
            }
        }
        self.prove(cx, Some(true));
        let Plan::Cycle(cycle) = &self.plan else {
            return;
        };
        let (instance, reg_id) = self.registration.named();
        let refused = !cycle.outbound && self.registration.outbound();
        let sent = Sent {
            uri: &cycle.contact_uri,
            line: self.identity.line.as_deref(),
            instance: instance.as_deref(),
            reg_id: reg_id.as_deref().filter(|_| !refused),
        };
        match cycle.purpose {
            Purpose::Register => {
                let requested = self.registration.expiration().max(self.seldom.min_expires);
                let grant = lease::grant(response, sent, requested);
                let failure = if grant.seconds == 0 {
                    Some(Failure::NotGranted)
                } else if !grant.confirmed && policy.require_own_contact {
                    Some(Failure::NotListed)
                } else {
                    None
                };
                for warning in grant.warnings {
                    cx.out.push(Output::Event(Event::Warning(warning)));
                }
                if let Some(failure) = failure {
                    let zero = failure == Failure::NotGranted;
                    if zero {
                        self.lease = None;
                        self.may_live = None;
                        self.forget_bearings();
                    }
                    self.fail(cx, failure, None, exchange);
                    if zero {
                        self.reference = ReferenceStatus::Unregistered;
                    }
                    return;
                }
                let Some((flow, info)) = cycle.flow.clone() else {
                    return;
                };
                let before = self
                    .lease
                    .as_ref()
                    .filter(|lease| lease.flow == Some(flow))
                    .and_then(|lease| {
                        cx.wall
                            .checked_sub(cx.now.saturating_duration_since(lease.at))
                    });
                let ahead = policy.certificate_warning;
                for warning in certificates::warnings(&info, ahead, cx.wall, before) {
                    cx.out.push(Output::Event(Event::Warning(warning)));
                }
                let Some(target) = cycle.targets.get(cycle.next).cloned() else {
                    return;
                };
                let granted = Duration::from_secs(u64::from(grant.seconds));
                let mut after = policy.refresh.refresh_after(granted);
                // Even within the limit: drawn first and cut then, most would be earlier by just the limit (D15).
                let most = after.mul_f64(policy.refresh.jitter);
                let early = cx.entropy.up_to(most.min(policy.refresh.jitter_max));
                after = after.saturating_sub(early);
                let rewrites = self.rewrites(exchange.as_deref());
                let until = if rewrites {
                    self.last_start.map_or(cx.now, |last| last + PACE)
                } else {
                    sent_at + after
                }
                .max(cx.now);
                let texts = |name: &str| {
                    response
                        .values(name)
                        .map(|value| value.into_owned())
                        .collect::<Box<[String]>>()
                };
                let outbound = says_outbound(response);
                let registered = Registered {
                    outbound,
                    reg_id: self.registration.reg_id().filter(|_| !refused),
                    refresh_in: until.saturating_duration_since(cx.now),
                    took: cx
                        .now
                        .saturating_duration_since(cycle.started.unwrap_or(sent_at)),
                    contact: cycle.contact_uri.clone(),
                    confirmed: grant.confirmed,
                    algorithm: self.sessions.algorithm_used(),
                    service_route: texts("Service-Route"),
                    path: texts("Path"),
                    associated_uris: texts("P-Associated-URI"),
                    security_server: self.security_in_force(response),
                    public_gruu: grant.public_gruu,
                    temporary_gruu: grant.temporary_gruu,
                    other_bindings: grant.others,
                    exchange: exchange.map(|exchange| *exchange).unwrap_or_default(),
                    ..Registered::new(granted, flow, target.clone())
                };
                let refreshed = self.lease.is_some();
                // A lease that held, on its flow, resets the pace of those that did not (D2).
                if let Some(seldom) = self.seldom.there()
                    && self.lease.as_ref().is_some_and(|lease| {
                        lease.flow.is_some() && cx.now.saturating_duration_since(lease.at) >= FLAP
                    })
                {
                    seldom.flaps = 0;
                }
                // A dead target has to be found out, and another one to grant, in what is left at the refresh (D1).
                let room = granted.saturating_sub(policy.refresh.refresh_after(granted));
                let told = self
                    .lease
                    .as_ref()
                    .is_some_and(|lease| lease.granted() == granted);
                if room < policy.timers.timer_f + ROOM
                    && !told
                    && !policy.dead_target_memory.is_zero()
                {
                    let warning = Warning::NoRoomForFailover(granted);
                    cx.out.push(Output::Event(Event::Warning(warning)));
                }
                let expires_at = sent_at + granted;
                let contact = cycle.contact_uri.clone();
                let stream = cycle.stream(self.lease.as_ref());
                let replaced = cycle.replaces;
                self.take_bearings(&registered);
                if let Some(before) = self.lease.take().filter(|lease| lease.contact != contact) {
                    let stale = &mut self.seldom.change().stale;
                    stale.push((before.contact, before.expires_at));
                }
                if let Some(seldom) = self.seldom.there() {
                    seldom.stale.retain(|(uri, _)| *uri != contact && !replaced);
                    seldom.uncounted = 0;
                }
                self.lease = Some(Lease {
                    contact,
                    at: cx.now,
                    expires_at,
                    granted: grant.seconds,
                    confirmed: grant.confirmed,
                    stream,
                    flow: Some(flow),
                    target,
                    rewrites,
                });
                if choice != self.seldom.choice {
                    self.seldom.change().choice = choice;
                }
                if choice > 0 {
                    // From the last try of the first choice, if there was one in this cycle.
                    let since = self
                        .seldom
                        .fell_back
                        .filter(|since| cx.now < *since + RETURN);
                    self.seldom.change().fell_back = Some(since.unwrap_or(cx.now));
                } else if let Some(seldom) = self.seldom.there() {
                    seldom.fell_back = None;
                }
                self.may_live = Some(expires_at);
                self.retries = 0;
                self.last_failure = None;
                self.reference = ReferenceStatus::Registered;
                self.plan = Plan::Waiting { until };
                let registered = Box::new(registered);
                cx.out.push(Output::Event(if refreshed {
                    Event::Refreshed(registered)
                } else {
                    Event::Registered(registered)
                }));
                self.finish(cx);
            }
            Purpose::Unregister if lease::lives_on(response, sent) => {
                self.unregistered(cx, Removal::Refused(response.code()));
            }
            Purpose::Unregister => self.unregistered(cx, Removal::Removed),
            Purpose::Query | Purpose::Reconcile => {
                let left: Vec<&str> = self.seldom.stale.iter().map(|(uri, _)| &**uri).collect();
                let device = lease::Device {
                    flows: self.flows_to_come(),
                    left: &left,
                    beside: &cycle.beside,
                };
                let bindings = lease::bindings(response, sent, device);
                let asks = cycle.purpose == Purpose::Reconcile && cycle.left.is_empty();
                let removals = match asks {
                    true => lease::removals(response, sent, device),
                    false => Vec::new(),
                };
                if !removals.is_empty() {
                    if let Plan::Cycle(cycle) = &mut self.plan {
                        cycle.left = removals;
                    }
                    self.sessions.begin_request();
                    return self.send(cx);
                }
                cx.out.push(Output::Event(Event::Bindings(bindings)));
                self.back(cx);
            }
            Purpose::RemoveAll if lease::lives_on(response, sent) => {
                let removal = Removal::Refused(response.code());
                self.reference = removal.reference().unwrap_or(self.reference);
                cx.out.push(Output::Event(Event::Unregistered(removal)));
                self.back(cx);
            }
            Purpose::RemoveAll => {
                self.forget_stale();
                self.forget_bearings();
                self.lease = None;
                self.may_live = None;
                let paused = match &self.plan {
                    Plan::Cycle(cycle) => match cycle.before {
                        Plan::Paused { until } => Some(until),
                        _ => None,
                    },
                    _ => None,
                };
                // Nothing but resume and refresh ends a pause.
                self.plan = paused.map_or(Plan::Idle, |until| Plan::Paused { until });
                self.reference = ReferenceStatus::Unregistered;
                self.seldom.change().emptied = Some(sent_at);
                cx.out
                    .push(Output::Event(Event::Unregistered(Removal::Removed)));
                self.finish(cx);
            }
        }
    }

    /// Whether this grant is to be followed by a REGISTER whose Contact has the address that the answer shows (F30)
    ///
    /// Never twice in a row: where each answer shows another address, it is the refreshes that follow it.
    fn rewrites(&self, exchange: Option<&Exchange>) -> bool {
        let Plan::Cycle(cycle) = &self.plan else {
            return false;
        };
        let again = self.lease.as_ref().is_some_and(|lease| lease.rewrites);
        let mapped = exchange.and_then(|exchange| exchange.mapped);
        let (Some((_, info)), Some(mapped)) = (&cycle.flow, mapped) else {
            return false;
        };
        if again || self.registration.policy().contact_rewriting == ContactRewriting::Off {
            return false;
        }
        let info = FlowInfo::clone(info).with_mapped(Some(mapped));
        let line = self.identity.line.as_deref();
        *write::contact_uri(self.choice(), &info, line) != *cycle.contact_uri
    }

    pub(super) fn store_security(&mut self, response: &Response) {
        if self.registration.security_negotiation() == SecurityNegotiation::Mediasec {
            let list: Vec<Box<str>> = mechanisms(response).map(|value| (*value).into()).collect();
            if !list.is_empty() {
                self.seldom.change().security_server = list;
            }
        }
    }

    /// What the host's own requests repeat as Security-Verify: the list that our next REGISTER repeats too.
    fn security_in_force(&self, response: &Response) -> Box<[String]> {
        let negotiated = self.registration.security_negotiation() == SecurityNegotiation::Mediasec;
        if negotiated && !self.seldom.security_server.is_empty() {
            let list = self.seldom.security_server.iter();
            list.map(|mechanism| mechanism.to_string()).collect()
        } else {
            mechanisms(response).map(Cow::into_owned).collect()
        }
    }

    /// D27: the last request and its answer, where the policy wants them
    pub(super) fn transcribe(&mut self, response: Option<&Response>) {
        if !self.registration.policy().keep_transcript {
            return;
        }
        if let Plan::Cycle(cycle) = &self.plan
            && let Step::Registering(transaction) = &cycle.step
            && let Some(transcript) = Transcript::of(&transaction.message, response)
        {
            self.seldom.change().transcript = Some(Box::new(transcript));
        }
    }

    /// D27: what a support ticket needs
    pub(super) fn exchange(&self, response: Option<&Response>) -> Option<Box<Exchange>> {
        let Plan::Cycle(cycle) = &self.plan else {
            return None;
        };
        let Step::Registering(transaction) = &cycle.step else {
            return None;
        };
        let text = |name: &str| {
            response
                .and_then(|r| r.header(name))
                .map(|value| plain(&value, SHOWN))
        };
        Some(Box::new(Exchange {
            call_id: self.identity.call_id.to_string().into(),
            cseq: self.identity.cseq,
            branch: transaction.branch.clone(),
            target: cycle.targets.get(cycle.next).cloned(),
            local: cycle.flow.as_ref().map(|(_, info)| info.local()),
            status_line: response
                .map(|r| r.status_line().as_ref().into())
                .unwrap_or_default(),
            warning: text("Warning"),
            reason: text("Reason"),
            server: text("Server"),
            extensions: response
                .map(crate::proto::said::extensions)
                .unwrap_or_default(),
            mapped: None,
        }))
    }
}

/// Whether registrar and edge proxies do outbound (RFC 5626 §4.2.1)
fn says_outbound(response: &Response) -> bool {
    response
        .option_tags("Require")
        .iter()
        .any(|tag| tag.eq_ignore_ascii_case("outbound"))
}

/// Characters of a header field that events show
pub(crate) const SHOWN: usize = 256;

/// What a 2xx to a REGISTER says of keep-alives (RFC 5626 §4.4, RFC 6223 §4.3)
fn terms(response: &Response, keep: Option<u32>) -> KeepAliveTerms {
    let flow_timer = response.delta_seconds("Flow-Timer");
    let outbound = says_outbound(response);
    // Both should say the same (RFC 6223 §5); 0 is no interval.
    let interval = flow_timer
        .into_iter()
        .chain(keep)
        .filter(|seconds| *seconds > 0)
        .min();
    let negotiated = outbound || flow_timer.is_some() || keep.is_some();
    KeepAliveTerms {
        negotiated,
        interval,
    }
}

/// Security-Server without what has control characters: it is repeated in requests, and would tear them.
fn mechanisms(response: &Response) -> impl Iterator<Item = Cow<'_, str>> {
    let values = response.values("Security-Server");
    values.filter(|value| !value.contains(char::is_control))
}

/// Text of a peer as events and logs may show it: no control characters, and none that turn the writing direction; at
/// most so many characters
pub(crate) fn plain(text: &str, most: usize) -> Box<str> {
    let odd = |c: &char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .filter(|c| !odd(c))
        .take(most)
        .collect::<String>()
        .into()
}

/// Whether a Via's sent-by is what we wrote; a port left out is the default one
pub(super) fn sent_by_is_ours(host: &str, port: Option<u16>, info: &FlowInfo) -> bool {
    let bare = |text: &str| {
        text.trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase()
    };
    let sent_by = info.sent_by();
    let (our_host, our_port) = match sent_by.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().ok())
        }
        _ => (&*sent_by, None),
    };
    let default = info.protocol().default_port();
    bare(host) == bare(our_host) && port.unwrap_or(default) == our_port.unwrap_or(default)
}
