//! Flows, shared by all that ride on them: what the table says becomes effects and inputs.

use super::*;
use crate::KeepAliveTerms;
use crate::proto::flow::{self, Asked, FlowKey, Refused, TableDue, Wish};
use crate::proto::keep_alive::Due;
use crate::proto::message::write;
use crate::proto::transaction::Transaction;

impl Pool {
    pub(super) fn open(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        let Some(registration) = self.registration(asker.id) else {
            return;
        };
        let Opening {
            target,
            prefer,
            fresh,
        } = opening;
        let key = flow_key(registration, &target);
        let transport = key.transport.clone();
        let wish = Wish {
            key,
            prefer,
            fresh,
            within: registration.policy().timers.connect_timeout,
            another_is_up: self.groups.another_is_up(asker.id),
        };
        match self.flows.ask(cx.now, cx.entropy, asker, wish) {
            Asked::Up(flow, info) => {
                let (id, op) = (asker.id, asker.op);
                let (result, retry_in) = (Ok((flow, info)), None);
                self.feed(
                    cx,
                    id,
                    Input::Opened {
                        op,
                        result,
                        retry_in,
                    },
                );
            }
            Asked::Waits => {}
            Asked::Make(flow) => cx.out.push(PoolOutput::Open {
                flow,
                transport,
                target,
            }),
            Asked::Failed(refused) => self.refuse(cx, asker, refused),
        }
    }

    /// The answer to [`PoolOutput::Open`].
    pub fn opened(
        &mut self,
        cx: &mut Out<'_>,
        flow: FlowId,
        result: Result<Arc<FlowInfo>, FlowError>,
    ) {
        match result {
            Ok(info) => {
                for asker in self.flows.opened(flow, Arc::clone(&info)) {
                    self.opened_in_turn(cx, asker, flow, Arc::clone(&info));
                }
                if self.flows.end_if_unused(flow) {
                    cx.out.push(PoolOutput::Close(flow));
                }
            }
            Err(error) => {
                let up = |id| self.groups.another_is_up(id);
                let told = self.flows.not_made(cx.now, cx.entropy, flow, &error, up);
                for (asker, refused) in told {
                    self.refuse(cx, asker, refused);
                }
            }
        }
    }

    fn refuse(&mut self, cx: &mut Out<'_>, asker: Asker, refused: Refused) {
        let input = Input::Opened {
            op: asker.op,
            result: Err(refused.error),
            retry_in: Some(refused.retry_in),
        };
        self.feed(cx, asker.id, input);
    }

    /// A flow has ended: everything that rode on it registers again, spread (D13).
    pub fn flow_failed(&mut self, cx: &mut Out<'_>, flow: FlowId, error: &FlowError) {
        if !self.flows.is_up(flow) {
            return self.opened(cx, flow, Err(error.clone()));
        }
        let users: Vec<_> = self.flows.end(flow).into_iter().collect();
        let spread = spread(users.len());
        for index in users {
            let Some(id) = self.in_slot(index) else {
                continue;
            };
            let error = error.clone();
            self.feed(
                cx,
                id,
                Input::FlowFailed {
                    flow,
                    error,
                    spread,
                },
            );
        }
    }

    /// Flows are closed, as what they were made on was replaced or removed: whoever rides on them makes their own anew,
    /// spread (D13). Those that are not up yet are left alone: the host makes them on what there is now.
    pub fn renew_flows(&mut self, cx: &mut Out<'_>, flows: &[FlowId]) {
        let mut users = BTreeSet::new();
        for flow in flows {
            if self.flows.is_up(*flow) {
                users.extend(self.flows.end(*flow));
                cx.out.push(PoolOutput::Close(*flow));
            }
        }
        let spread = spread(users.len());
        for index in users {
            if let Some(id) = self.in_slot(index) {
                self.groups.renewed(id);
                self.feed(cx, id, Input::NetworkChanged(spread));
            }
        }
    }

    /// A flow has shown that it is of no use any more.
    pub(super) fn give_up(&mut self, cx: &mut Out<'_>, flow: FlowId, error: &FlowError) {
        tracing::debug!(%flow, %error, "flow given up");
        cx.out.push(PoolOutput::Close(flow));
        self.flow_failed(cx, flow, error);
    }

    pub(super) fn leave(&mut self, cx: &mut Out<'_>, flow: FlowId, user: User) {
        if self.flows.leave(flow, user) {
            cx.out.push(PoolOutput::Close(flow));
        }
    }

    pub(super) fn in_slot(&self, index: u32) -> Option<RegistrationId> {
        let slot = self.slots.get(index as usize)?;
        slot.entry.as_ref().map(|_| RegistrationId {
            index,
            generation: slot.generation,
        })
    }

    // ---- keep-alive

    /// An answer came on a flow: what it shows of the way, and of keep-alives where it granted a lease.
    pub(super) fn answered(
        &mut self,
        cx: &mut Out<'_>,
        id: RegistrationId,
        flow: FlowId,
        seen: Seen,
        terms: Option<KeepAliveTerms>,
    ) {
        self.flows.seen(cx.now, cx.entropy, flow, seen);
        let registration = self.registration(id).map(Arc::clone);
        if let (Some(registration), Some(terms)) = (registration, terms) {
            let policy = &registration.policy().keep_alive;
            self.flows.granted(cx.now, cx.entropy, flow, policy, terms);
        }
    }

    /// Serves the first deadline of a flow that has come; false where none has.
    pub(super) fn serve_flow(&mut self, cx: &mut Out<'_>) -> bool {
        let Some((flow, due)) = self.flows.due(cx.now, cx.entropy) else {
            return false;
        };
        match due {
            TableDue::NotMade(error) => self.give_up(cx, flow, &error),
            TableDue::Kept(Due::Failed(error)) => self.give_up(cx, flow, &error),
            TableDue::Kept(Due::Send(message)) => cx.out.push(PoolOutput::Send { flow, message }),
            TableDue::Kept(Due::Options) => self.send_options(cx, flow),
            TableDue::Kept(Due::Nothing) => {}
        }
        true
    }

    /// Asks the registrar of one that rides on the flow, in the name of that one.
    fn send_options(&mut self, cx: &mut Out<'_>, flow: FlowId) {
        let user = self
            .flows
            .first_user(flow)
            .and_then(|index| self.in_slot(index));
        let choice = user
            .and_then(|id| self.entry(id))
            .map(|entry| entry.machine.choice());
        let (Some(registration), Some(info)) = (choice, self.flows.info(flow)) else {
            return;
        };
        let branch = flow::branch(&self.tag, flow, cx.entropy);
        let (call_id, from_tag) = (cx.entropy.hex(16), cx.entropy.hex(8));
        let message = write::options(registration, info, &branch, &call_id, &from_tag);
        let timers = registration.policy().timers.clone();
        let reliable = info.protocol().is_reliable();
        let transaction = Transaction::new(&timers, reliable, branch, message.clone(), cx.now);
        self.flows.options_sent(flow, &timers, transaction);
        cx.out.push(PoolOutput::Send { flow, message });
    }

    /// CRLF and STUN: the answers to our keep-alives. Others are nobody's; to be a STUN server is the host's business.
    pub(super) fn kept(&mut self, cx: &mut Out<'_>, received: &Received) {
        match (&received.message[..], received.flow) {
            (b"\r\n", Some(flow)) => self.flows.pong(flow),
            (message, _) if FlowTable::is_ours(self.flows.tag(), message) => {
                if let Some((flow, error)) = self.flows.stun_answered(received.source, message) {
                    self.give_up(cx, flow, &error);
                }
            }
            _ => {}
        }
    }
}

/// The flow that a registration uses to a target
pub(super) fn flow_key(registration: &Registration, target: &Target) -> FlowKey {
    let named = target.protocol().is_to_a_host();
    FlowKey {
        transport: registration.transport().cloned(),
        protocol: target.protocol(),
        address: target.address(),
        host: named.then(|| target.host().to_ascii_lowercase().into()),
    }
}
