//! What arrives: whose answer it is, which registration a request belongs to.

use super::*;

impl Pool {
    /// Hands over a message from the network; what is not ours comes back as [`PoolOutput::Message`].
    pub fn received(&mut self, cx: &mut Out<'_>, received: Received) {
        // A keep-alive or the answer to one, CRLF or STUN (RFC 5626 §4.4, RFC 8489 §5), is no message.
        let first = received.message.first();
        if first.is_none_or(|first| first & 0xc0 == 0) {
            return self.kept(cx, &received);
        }
        if !self.accepts(&received.message) {
            return self.foreign(cx, received);
        }
        let response = match Response::parse(received.message) {
            Ok(response) => response,
            Err(error) => {
                return tracing::trace!(%error, source = %received.source, "dropped a response");
            }
        };
        let Some(via) = response.via() else { return };
        let branch = via.branch.as_deref().unwrap_or_default();
        let Some(id) = self.id_of(branch) else {
            // The branch of a keep-alive's OPTIONS; any final answer shows that the flow is up.
            if response.code() >= 200 && response.via_count() == 1 {
                self.flows
                    .options_answered(cx.now, cx.entropy, branch, &via);
            }
            return;
        };
        self.feed(cx, id, Input::Response(&response));
    }

    pub(super) fn foreign(&mut self, cx: &mut Out<'_>, received: Received) {
        // A response that is not ours, on a socket that is: nobody waits for it unless the host does.
        let mut message = InboundMessage::new(received.source, received.message);
        message.flow = received.flow.or_else(|| self.flows.from(received.source));
        if let Ok(request) = message.request() {
            let to = request
                .header("To")
                .map(|to| to.into_owned())
                .unwrap_or_default();
            message.registration = self.matches(&request.uri(), &to, received.source);
        }
        cx.out.push(PoolOutput::Message(message));
    }

    /// The registration that an inbound request belongs to (D24): by `line` in To or Request-URI, else by the Contact's user
    /// where exactly one registration has it. An ambiguous request belongs to none.
    #[must_use]
    pub fn matches(&self, request_uri: &str, to: &str, source: SocketAddr) -> Option<Match> {
        let address = |text: &str| {
            let inner = text
                .split_once('<')
                .and_then(|(_, rest)| rest.split_once('>'))
                .map(|(uri, _)| uri);
            SipUri::parse(inner.unwrap_or(text)).ok()
        };
        let request_uri = address(request_uri);
        let line = |uri: &Option<SipUri>| {
            let value = uri.as_ref()?.param("line").flatten()?;
            (!value.is_empty())
                .then(|| self.lines.get(value).copied())
                .flatten()
        };
        let by_line = line(&address(to)).or_else(|| line(&request_uri));
        let id = by_line.or_else(|| {
            let user = request_uri.as_ref()?.user()?;
            let mut found = self.machines().filter(|id| {
                self.entry(*id).is_some_and(|entry| {
                    let registration = entry.machine.registration();
                    let on_flow = entry
                        .machine
                        .flow()
                        .and_then(|flow| self.flows.address(flow));
                    // A trunk has all numbers (RFC 6140 §5.3).
                    (registration.contact_user().as_str() == Some(user) || registration.gin())
                        && on_flow.is_some_and(|address| address.ip() == source.ip())
                })
            });
            found.next().filter(|_| found.next().is_none())
        })?;
        let id = self.groups.owner(id);
        let endpoint = self.registration(id)?.endpoint().map(Arc::from);
        Some(Match::new(id, endpoint))
    }

    pub(super) fn id_of(&self, branch: &str) -> Option<RegistrationId> {
        let rest = after_tag(branch, &self.tag)?;
        let index = u32::from_str_radix(rest.get(..8)?, 16).ok()?;
        let generation = u32::from_str_radix(rest.get(8..16)?, 16).ok()?;
        let id = RegistrationId { index, generation };
        self.entry(id).map(|_| id)
    }
}
