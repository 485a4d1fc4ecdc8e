//! What arrives: whose answer it is, which registration a request belongs to.

use super::*;
use crate::InboundFrom;

/// As many registrations are listed as those that an ambiguous request may belong to
const CANDIDATES: usize = 16;

/// How a request came
#[derive(Debug, Clone, Copy)]
enum Came {
    On(FlowId),
    AsDatagram,
    /// Nobody said whether by datagram or on a connection
    Unsaid,
}

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
            let came = received.flow.map_or(Came::AsDatagram, Came::On);
            let mut candidates = self.whose(&request.uri(), &to, received.source, came);
            message.registration = sole(&mut candidates);
            message = message.with_candidates(candidates);
        }
        cx.out.push(PoolOutput::Message(message));
    }

    /// The registration that an inbound request belongs to (D24): by `line` in To or Request-URI, else by the Contact's user
    /// where exactly one registration has it, of those on a flow to the source, or else to its host. An ambiguous request
    /// belongs to none: see [`candidates`](Self::candidates).
    ///
    /// [`Policy::inbound_from`](crate::Policy::inbound_from) may refuse it by where it came from. Whether it came on a
    /// connection, `source` does not say: what the pool [received](Self::received) itself is told apart by flow.
    #[must_use]
    pub fn matches(&self, request_uri: &str, to: &str, source: SocketAddr) -> Option<Match> {
        sole(&mut self.candidates(request_uri, to, source))
    }

    /// The registrations that an inbound request may belong to: the one of [`matches`](Self::matches), or all between which
    /// it is ambiguous, at most 16 of them.
    #[must_use]
    pub fn candidates(&self, request_uri: &str, to: &str, source: SocketAddr) -> Vec<Match> {
        self.whose(request_uri, to, source, Came::Unsaid)
    }

    fn whose(&self, request_uri: &str, to: &str, source: SocketAddr, came: Came) -> Vec<Match> {
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
        let found = match line(&address(to)).or_else(|| line(&request_uri)) {
            Some(id) => vec![self.groups.owner(id)],
            None => request_uri
                .map(|uri| self.by_user(uri.user(), source, came))
                .unwrap_or_default(),
        };
        let allowed = found
            .into_iter()
            .filter(|id| self.may_come(*id, source, came));
        allowed
            .filter_map(|id| {
                let endpoint = self.registration(id)?.endpoint().map(Arc::from);
                Some(Match::new(id, endpoint))
            })
            .collect()
    }

    /// Those whose Contact has this user, or none as the request, on the flow that it came on; where there is none, on any
    /// to its host.
    fn by_user(&self, user: Option<&str>, source: SocketAddr, came: Came) -> Vec<RegistrationId> {
        let name = user.map(bindings::short_hash);
        // A trunk has all numbers (RFC 6140 §5.3).
        let has = |one: &Arc<Registration>| one.contact_user().as_str() == user || one.gin();
        let on = |flow: FlowId| {
            let named = name.map(|name| self.flows.named(flow, name));
            let named = named.into_iter().flatten();
            named
                .chain(self.flows.named(flow, NO_NAME))
                .filter_map(|slot| self.in_slot(slot))
                .filter(|id| self.registration(*id).is_some_and(has))
                .map(|id| self.groups.owner(id))
        };
        let gather = |flows: &mut dyn Iterator<Item = FlowId>| {
            let mut found = Vec::new();
            for id in flows.flat_map(on) {
                if !found.contains(&id) {
                    found.push(id);
                }
                if found.len() == CANDIDATES {
                    break;
                }
            }
            found
        };
        let found = gather(&mut self.came_on(source, came));
        if !found.is_empty() {
            return found;
        }
        gather(&mut self.flows.all_at(source.ip()))
    }

    /// Whether a request for this registration may come from there, by its policy.
    fn may_come(&self, id: RegistrationId, source: SocketAddr, came: Came) -> bool {
        let Some(registration) = self.registration(id) else {
            return false;
        };
        let from = registration.policy().inbound_from;
        if from == InboundFrom::Anywhere {
            return true;
        }
        // Those of all its machines (RFC 5626 has several flows for one registration).
        let members = self.members(id);
        let machines = members.into_iter().filter_map(|id| self.entry(id));
        machines.map(|entry| &entry.machine).any(|machine| {
            let flows = machine.flows();
            let mut came_on = self.came_on(source, came);
            let used = flows.into_iter().flatten();
            came_on.any(|on| flows.contains(&Some(on)))
                || from == InboundFrom::Registrar
                    && used
                        .filter_map(|flow| self.flows.address(flow))
                        .chain(machine.bound_at())
                        .any(|address| address.ip() == source.ip())
        })
    }

    /// The flows that a request may have come on.
    fn came_on(&self, source: SocketAddr, came: Came) -> impl Iterator<Item = FlowId> + '_ {
        let (on, datagram) = match came {
            Came::On(flow) => (Some(flow), false),
            Came::AsDatagram => (None, true),
            Came::Unsaid => (None, false),
        };
        let from = on.is_none().then(|| self.flows.all_from(source));
        let from = from.into_iter().flatten();
        on.into_iter()
            .chain(from.filter(move |flow| !datagram || self.flows.is_datagram(*flow)))
    }

    pub(super) fn id_of(&self, branch: &str) -> Option<RegistrationId> {
        let rest = after_tag(branch, &self.tag)?;
        let index = u32::from_str_radix(rest.get(..8)?, 16).ok()?;
        let generation = u32::from_str_radix(rest.get(8..16)?, 16).ok()?;
        let id = RegistrationId { index, generation };
        self.entry(id).map(|_| id)
    }
}

/// The one that there is, taken out; where there are several, they stay.
fn sole(candidates: &mut Vec<Match>) -> Option<Match> {
    match candidates.len() {
        1 => candidates.pop(),
        _ => None,
    }
}
