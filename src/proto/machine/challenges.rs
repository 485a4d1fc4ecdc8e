//! Challenges: whose secret answers them, and whether the account guard lets the answer go.

use super::*;

impl Machine {
    pub(super) fn challenged(
        &mut self,
        cx: &mut Out<'_>,
        response: &Response,
        exchange: Option<Box<Exchange>>,
    ) {
        let policy = Arc::clone(self.registration.policy());
        let (role, header) = match response.code() {
            407 => (Role::Proxy, "Proxy-Authenticate"),
            _ => (Role::Origin, "WWW-Authenticate"),
        };
        let mut challenges = Vec::new();
        for value in response.headers(header) {
            parse_challenges(&value, &mut challenges);
        }
        let rules = Rules {
            algorithms: &policy.auth.algorithms,
            reject_md5: policy.auth.reject_md5,
            sess: true,
            auth_int: true,
            downgrade_refuse: policy.auth.refuse_downgrade,
            ..Rules::default()
        };
        let reaction =
            self.sessions
                .challenged(role, &challenges, self.registration.outbound_auth(), &rules);
        self.react(cx, role, reaction, response.retry_after(), exchange);
    }

    pub(super) fn react(
        &mut self,
        cx: &mut Out<'_>,
        role: Role,
        reaction: Reaction,
        retry_after: Option<u32>,
        exchange: Option<Box<Exchange>>,
    ) {
        match reaction {
            Reaction::Answer { weak_first } => {
                if weak_first {
                    let realm = self
                        .sessions
                        .due()
                        .next()
                        .map(|due| due.realm.into())
                        .unwrap_or_default();
                    cx.out
                        .push(Output::Event(Event::Warning(Warning::WeakAlgorithm(realm))));
                }
                self.answer(cx);
            }
            Reaction::Ask(asked) => {
                let query = CredentialsQuery::new(asked.realm, asked.username, &asked.algorithms);
                let op = self.op();
                let Plan::Cycle(cycle) = &mut self.plan else {
                    return;
                };
                cycle.step = Step::Asking {
                    op,
                    until: cx.now + ASKING,
                    role,
                    query: query.clone(),
                };
                cx.out.push(Output::Credentials { op, query });
            }
            Reaction::Refused(refusal) => {
                let realm = refusal.realm;
                let key = &self.identity.agent.guard_key;
                let refused = Guarded {
                    account: account(key, &realm, refusal.resolved.credentials().username()),
                    credential: refusal.resolved.fingerprint(key, &realm),
                };
                if let Plan::Cycle(cycle) = &mut self.plan {
                    cycle.guarded.retain(|guarded| *guarded != refused);
                }
                // Credentials that were good before, refused now: they count too.
                cx.out.push(Output::Proved {
                    credential: vec![refused],
                    accepted: Some(false),
                });
                self.fail(
                    cx,
                    Failure::CredentialsRefused {
                        realm: realm.into(),
                    },
                    retry_after,
                    exchange,
                );
            }
            Reaction::StaleLimit { .. } => self.fail(cx, Failure::Budget, retry_after, exchange),
            Reaction::Unanswerable(why) => {
                let why = why.to_string().into();
                self.fail(cx, Failure::Unanswerable { why }, retry_after, exchange);
            }
        }
    }

    /// Answers a challenge, once the guard lets unproved credentials through (D6).
    pub(super) fn answer(&mut self, cx: &mut Out<'_>) {
        let guard_account = self.registration.policy().auth.guard_account;
        let key = &self.identity.agent.guard_key;
        let passed = match &self.plan {
            Plan::Cycle(cycle) => &cycle.guarded[..],
            _ => &[],
        };
        // A proxy's credentials let through say nothing of the registrar's.
        let unproved: Vec<Guarded> = self
            .sessions
            .due()
            .filter(|due| !due.accepted_before)
            .map(|due| Guarded {
                account: account(key, due.realm, due.username()),
                credential: due.fingerprint(key),
            })
            .filter(|due| !passed.contains(due))
            .collect();
        let op = self.op();
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        cycle.authenticated = true;
        if guard_account && !unproved.is_empty() {
            // It may take its time: then it is somebody else's turn.
            cycle.permitted = false;
            cycle.step = Step::Guarding {
                op,
                until: cx.now + GUARDED,
            };
            cx.out.push(Output::Guard {
                op,
                credential: unproved,
            });
        } else {
            self.send(cx);
        }
    }

    pub(super) fn guarded(&mut self, cx: &mut Out<'_>, op: OpId, allowed: bool) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        if !matches!(cycle.step, Step::Guarding { op: asked, .. } if asked == op) {
            return;
        }
        if allowed {
            let passed = self.guarded_due();
            if let Plan::Cycle(cycle) = &mut self.plan {
                cycle.guarded = passed;
            }
            self.send(cx);
        } else {
            let realm = self
                .sessions
                .due()
                .next()
                .map(|due| due.realm.into())
                .unwrap_or_default();
            self.blocked(cx, realm);
        }
    }

    /// All that is on its way with the next request and was not accepted so far.
    pub(super) fn guarded_due(&self) -> Vec<Guarded> {
        let key = &self.identity.agent.guard_key;
        let passed = match &self.plan {
            Plan::Cycle(cycle) => cycle.guarded.clone(),
            _ => Vec::new(),
        };
        let due = self.sessions.due().filter(|due| !due.accepted_before);
        let due = due.map(|due| Guarded {
            account: account(key, due.realm, due.username()),
            credential: due.fingerprint(key),
        });
        let new: Vec<_> = due.filter(|due| !passed.contains(due)).collect();
        passed.into_iter().chain(new).collect()
    }

    /// The guard knows these credentials as refused: no interval applies, only changed ones go on (D6).
    pub(super) fn blocked(&mut self, cx: &mut Out<'_>, realm: Box<str>) {
        let answered = match &mut self.plan {
            Plan::Cycle(cycle) => cycle.answered.take(),
            _ => None,
        };
        self.end(
            cx,
            Failure::CredentialsRefused { realm },
            None,
            answered,
            true,
        );
    }

    /// Tells what became of the guarded credentials of this cycle.
    pub(super) fn prove(&mut self, cx: &mut Out<'_>, accepted: Option<bool>) {
        if let Plan::Cycle(cycle) = &mut self.plan
            && !cycle.guarded.is_empty()
        {
            cx.out.push(Output::Proved {
                credential: std::mem::take(&mut cycle.guarded),
                accepted,
            });
        }
    }

    pub(super) fn provided(&mut self, cx: &mut Out<'_>, op: OpId, secret: Option<Secret>) {
        let Plan::Cycle(cycle) = &mut self.plan else {
            return;
        };
        let Step::Asking {
            op: asked,
            role,
            query,
            ..
        } = &cycle.step
        else {
            return;
        };
        if *asked != op {
            return;
        }
        let (role, query) = (*role, query.clone());
        let reaction = self.sessions.provide(role, &query.realm, secret);
        let answered = match &mut self.plan {
            Plan::Cycle(cycle) => cycle.answered.take(),
            _ => None,
        };
        self.react(cx, role, reaction, None, answered);
    }
}

/// The keyed hash of realm and username: the account that the guard counts for (D6)
pub(super) fn account(key: &[u8; 16], realm: &str, username: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update((realm.len() as u64).to_be_bytes());
    hash.update(realm.to_ascii_lowercase());
    hash.update(username);
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
