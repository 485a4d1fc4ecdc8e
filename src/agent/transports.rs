//! Transports come and go while the agent runs.

use super::actor::{Carrier, Core, Queue};
use super::handle::Agent;
use crate::traits::FIRST_ACCEPTED;
use crate::{AgentError, FlowId, Inbound, Transport};
use std::collections::HashSet;
use std::sync::Arc;

impl Agent {
    /// Starts a transport, and adds it under the name that the option `transport` uses: registrations that name it, or
    /// that find no other one for a protocol, make their flows on it from now on.
    ///
    /// One of a name that there is takes the other's place: what rode on the other registers again over this one,
    /// spread (D13), and the other ends; everybody else sends nothing. A new name comes last, so that the first of a
    /// protocol stays the default for it. Cancel safe: it is there, or it is not.
    ///
    /// # Errors
    /// [`AgentError::Transport`] when it cannot start: then all is as before. [`AgentError::Closed`] when the agent has
    /// shut down, or is about to.
    pub async fn add_transport(
        &self,
        name: impl Into<Arc<str>>,
        transport: impl Transport + 'static,
    ) -> Result<(), AgentError> {
        let (name, transport): (Arc<str>, Arc<dyn Transport>) = (name.into(), Arc::new(transport));
        let place = self.ask(Core::place).await.ok().flatten();
        let (number, inbound) = place.ok_or(AgentError::Closed)?;
        transport
            .start(inbound)
            .await
            .map_err(|source| AgentError::Transport {
                name: Arc::clone(&name),
                source,
            })?;
        let carrier = Carrier {
            number,
            name,
            transport,
            leaving: false,
        };
        self.ask(move |core| core.put(carrier))
            .await
            .map_err(|_| AgentError::Closed)
    }

    /// Removes a transport; false where there is none of that name.
    ///
    /// Registrations that name no transport, and rode on this one, register again over another, spread (D13). Those
    /// that name it keep their flows until they are gone or name another one; with its last flow it ends.
    pub async fn remove_transport(&self, name: &str) -> bool {
        let name: Arc<str> = name.into();
        self.ask(move |core| core.retire(&name))
            .await
            .unwrap_or_default()
    }
}

impl Core {
    /// A number and a way in for one more transport; none where the agent ends.
    fn place(&mut self) -> Option<(usize, Inbound)> {
        if self.closing.is_some() {
            return None;
        }
        let number = self.next_transport;
        self.next_transport += 1;
        let queue = Arc::new(Queue {
            transport: number,
            sender: self.arrivals.clone(),
        });
        let (tag, next_flow) = (Arc::clone(self.pool.tag()), Arc::clone(&self.next_accepted));
        Some((number, Inbound::with_sink(tag, queue, next_flow)))
    }

    /// Adds a transport that was started, or puts it in the place of the one of its name.
    fn put(&mut self, carrier: Carrier) {
        let protocols = carrier.transport.protocols().to_vec();
        self.pool
            .add_transport(Arc::clone(&carrier.name), &protocols);
        let mut known = self.transports.iter_mut();
        match known.find(|known| known.name == carrier.name) {
            Some(known) if !known.leaving => {
                let old = std::mem::replace(known, carrier);
                self.replaced(old);
            }
            // The one that was to end comes back as the last.
            Some(_) => {
                let name = Arc::clone(&carrier.name);
                let old: Vec<_> = self
                    .transports
                    .extract_if(.., |known| known.name == name)
                    .collect();
                self.transports.push(carrier);
                old.into_iter().for_each(|old| self.replaced(old));
            }
            None => self.transports.push(carrier),
        }
    }

    /// What rode on a transport that is not there any more makes its flows anew.
    fn replaced(&mut self, old: Carrier) {
        let flows = self.flows_on(old.number);
        self.with(|pool, cx| pool.renew_flows(cx, &flows));
        self.settle();
        self.make_again(old.number, |_| true);
        // Connections of peers end, too: they came by it.
        self.end_all(old.number);
        old.transport.flush();
    }

    fn retire(&mut self, name: &Arc<str>) -> bool {
        let mut known = self.transports.iter_mut();
        let Some(known) = known.find(|known| known.name == *name && !known.leaving) else {
            return false;
        };
        known.leaving = true;
        let number = known.number;
        let flows = self.flows_on(number);
        self.with(|pool, cx| pool.remove_transport(cx, name, &flows));
        self.settle();
        self.make_again(number, |named| named.is_none());
        self.end_transports();
        true
    }

    /// Ends the removed transports on which nothing of ours is left.
    pub(super) fn end_transports(&mut self) {
        if !self.transports.iter().any(|carrier| carrier.leaving) {
            return;
        }
        let making = self.opening.values().map(|making| making.transport);
        let mut in_use: HashSet<usize> = making.collect();
        let ours = self
            .flows
            .iter()
            .filter(|(id, _)| id.number() < FIRST_ACCEPTED);
        in_use.extend(ours.map(|(_, (number, _))| *number));
        let over = |carrier: &Carrier| carrier.leaving && !in_use.contains(&carrier.number);
        let over: Vec<_> = self
            .transports
            .extract_if(.., |carrier| over(carrier))
            .collect();
        for carrier in over {
            self.end_all(carrier.number);
            carrier.transport.flush();
        }
    }

    /// The flows that were made on a transport, in the order of their names.
    fn flows_on(&self, number: usize) -> Vec<FlowId> {
        let on = self.flows.iter().filter(|(_, (on, _))| *on == number);
        let mut flows: Vec<_> = on.map(|(id, _)| *id).collect();
        flows.sort_unstable();
        flows
    }

    /// Flows that are being made on a transport are made anew, on what there is now.
    fn make_again(&mut self, number: usize, wanted: impl Fn(&Option<Arc<str>>) -> bool) {
        let mut again: Vec<_> = self
            .opening
            .extract_if(|_, making| making.transport == number && wanted(&making.named))
            .collect();
        again.sort_unstable_by_key(|(id, _)| *id);
        for (id, making) in again {
            making.task.abort();
            self.open(id, making.named, making.target);
        }
        self.settle();
    }

    /// Closes what is left on a transport.
    fn end_all(&mut self, number: usize) {
        for flow in self.flows_on(number) {
            self.drop_flow(flow);
        }
    }

    pub(super) fn numbered(&self, number: usize) -> Option<&Arc<dyn Transport>> {
        let mut transports = self.transports.iter();
        let found = transports.find(|carrier| carrier.number == number);
        found.map(|carrier| &carrier.transport)
    }
}
