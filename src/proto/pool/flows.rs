//! Flows, shared by all that ride on them.

use super::*;

impl Pool {
    pub(super) fn open(&mut self, cx: &mut Out<'_>, asker: Asker, opening: Opening) {
        let Opening {
            target,
            prefer,
            fresh,
        } = opening;
        let named = self
            .registration(asker.id)
            .and_then(|registration| registration.transport().cloned());
        let key = FlowKey {
            transport: named,
            protocol: target.protocol(),
            address: target.address(),
            host: target
                .protocol()
                .is_secure()
                .then(|| target.host().to_ascii_lowercase().into()),
        };
        let known = prefer
            .filter(|flow| self.flows.contains_key(flow))
            .or_else(|| self.by_key.get(&key).copied());
        if let Some(flow) = known.filter(|_| !fresh)
            && let Some(entry) = self.flows.get_mut(&flow)
        {
            match &entry.info {
                None => entry.askers.push(asker),
                Some(info) => {
                    let result = Ok((flow, Arc::clone(info)));
                    self.handle(
                        cx,
                        asker.id,
                        Input::Opened {
                            op: asker.op,
                            result,
                        },
                    );
                }
            }
            return;
        }
        let flow = FlowId::new(self.next_flow);
        self.next_flow += 1;
        self.by_key.insert(key.clone(), flow);
        let transport = key.transport.clone();
        self.flows.insert(
            flow,
            FlowEntry {
                key,
                users: 0,
                info: None,
                askers: vec![asker],
            },
        );
        cx.out.push(PoolOutput::Open {
            flow,
            transport,
            target,
        });
    }

    /// The answer to [`PoolOutput::Open`].
    pub fn opened(
        &mut self,
        cx: &mut Out<'_>,
        flow: FlowId,
        result: Result<Arc<FlowInfo>, FlowError>,
    ) {
        let Some(entry) = self.flows.get_mut(&flow) else {
            return;
        };
        let askers = std::mem::take(&mut entry.askers);
        match &result {
            Ok(info) => entry.info = Some(Arc::clone(info)),
            Err(_) => self.drop_flow(flow),
        }
        for asker in askers {
            let result = result.clone().map(|info| (flow, info));
            self.handle(
                cx,
                asker.id,
                Input::Opened {
                    op: asker.op,
                    result,
                },
            );
        }
        if self.flows.get(&flow).is_some_and(|entry| entry.users == 0) {
            self.drop_flow(flow);
            cx.out.push(PoolOutput::Close(flow));
        }
    }

    /// A flow has ended: everything that rode on it registers again, spread (D13).
    pub fn flow_failed(&mut self, cx: &mut Out<'_>, flow: FlowId, error: &FlowError) {
        let Some(entry) = self.flows.get(&flow) else {
            return;
        };
        if entry.info.is_none() {
            return self.opened(cx, flow, Err(error.clone()));
        }
        let users: Vec<RegistrationId> = self
            .ids()
            .filter(|id| {
                self.entry(*id)
                    .is_some_and(|entry| entry.flows.contains(&Some(flow)))
            })
            .collect();
        self.drop_flow(flow);
        let spread = spread(users.len());
        for id in users {
            self.handle(
                cx,
                id,
                Input::FlowFailed {
                    flow,
                    error: error.clone(),
                    spread,
                },
            );
        }
    }

    pub(super) fn leave(&mut self, cx: &mut Out<'_>, flow: FlowId) {
        let Some(entry) = self.flows.get_mut(&flow) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 && entry.askers.is_empty() {
            self.drop_flow(flow);
            cx.out.push(PoolOutput::Close(flow));
        }
    }

    pub(super) fn drop_flow(&mut self, flow: FlowId) {
        if let Some(entry) = self.flows.remove(&flow)
            && self.by_key.get(&entry.key) == Some(&flow)
        {
            self.by_key.remove(&entry.key);
        }
    }
}

pub(super) fn spread(users: usize) -> Duration {
    SPREAD_EACH
        .saturating_mul(u32::try_from(users).unwrap_or(u32::MAX))
        .min(SPREAD_LONGEST)
}
