//! A registrar that keeps bindings as RFC 3261 §10.3 and RFC 5626 §6 say.

use super::super::rules_host::made_with;
use super::secs;
use sip_registration::SipUri;
use sip_registration::testkit::{Reply, SentRequest};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

const FOREIGN: &str = "sip:bob@192.0.2.77:5060";

#[derive(Debug, Clone)]
pub(super) struct Binding {
    pub(super) uri: SipUri,
    pub(super) instance: Option<String>,
    /// There where the flow is what is bound (RFC 5626 §6)
    pub(super) flow: Option<u32>,
    pub(super) reg_id: Option<u32>,
    pub(super) call_id: String,
    pub(super) cseq: u32,
    pub(super) until: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Registrar {
    pub(super) outbound: bool,
    /// Asks for a password
    pub(super) asks: bool,
    /// Whose password it knows
    pub(super) knows: &'static str,
    /// The password, where it looks at it
    pub(super) secret: &'static str,
    /// Lists what it was given beside the URI
    pub(super) echoes: bool,
    /// Edges that put no `ob` into Path
    pub(super) without_ob: HashSet<u8>,
    pub(super) bindings: Vec<Binding>,
    /// The last request of each Call-ID
    pub(super) latest: HashMap<String, u32>,
    /// One was accepted after a later one of its Call-ID, which had removed the binding that would have told so (§10.3,
    /// step 7): nobody knows of what it has bound
    pub(super) overtaken: bool,
    /// The answers given, for retransmissions
    pub(super) answered: HashMap<String, Reply>,
}

pub(super) fn edge(request: &SentRequest) -> u8 {
    match request.target().address().ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

impl Registrar {
    pub(super) fn foreign(&mut self) {
        self.bindings.push(Binding {
            uri: SipUri::parse(FOREIGN).expect("a URI"),
            instance: None,
            flow: None,
            reg_id: None,
            call_id: "foreign".to_owned(),
            cseq: 1,
            until: Duration::MAX,
        });
    }

    pub(super) fn ours(&mut self, now: Duration) -> Vec<&Binding> {
        self.bindings.retain(|binding| binding.until > now);
        let ours = self.bindings.iter();
        ours.filter(|binding| binding.call_id != "foreign")
            .collect()
    }

    pub(super) fn has_foreign(&self) -> bool {
        self.bindings.iter().any(|one| one.call_id == "foreign")
    }

    pub(super) fn serve(&mut self, now: Duration, request: &SentRequest) -> Reply {
        let branch = request.header("Via").expect("a Via").into_owned();
        if let Some(reply) = self.answered.get(&branch) {
            return reply.clone();
        }
        let reply = self.register(now, request);
        self.answered.insert(branch, reply.clone());
        reply
    }

    fn register(&mut self, now: Duration, request: &SentRequest) -> Reply {
        let proved = request
            .header("Authorization")
            .is_some_and(|authorization| {
                (self.knows.is_empty()
                    || authorization.contains(&format!("username=\"{}\"", self.knows)))
                    && (self.secret.is_empty() || made_with(self.secret, &authorization))
            });
        if self.asks && !proved {
            return Reply::challenge("r", "n");
        }
        self.bindings.retain(|binding| binding.until > now);
        let call_id = request.header("Call-ID").expect("a Call-ID").into_owned();
        let (cseq, _) = request.cseq().expect("a CSeq");
        let edge = edge(request);
        let all = request.delta_seconds("Expires");
        let supports = request.option_tags("Supported");
        let knows = self.outbound && supports.iter().any(|tag| tag == "outbound");
        // Worked out as a whole or not at all (§10.3, step 7).
        let mut bindings = self.bindings.clone();
        let mut by_flow = false;
        for contact in request.contacts() {
            if contact.is_star() {
                if all != Some(0) {
                    return Reply::status(400);
                }
                let late = |one: &Binding| one.call_id == call_id && one.cseq >= cseq;
                if bindings.iter().any(late) {
                    return Reply::status(500);
                }
                bindings.clear();
                continue;
            }
            let uri = SipUri::parse(contact.uri()).expect("a Contact URI");
            let instance = contact
                .param("+sip.instance")
                .map(|id| id.text().into_owned());
            let reg_id = contact
                .param("reg-id")
                .and_then(|id| id.text().parse().ok());
            let expires = contact.param("expires").and_then(|s| s.text().parse().ok());
            let expires = expires.or(all).unwrap_or(3600);
            if knows && reg_id.is_some() && instance.is_some() && self.without_ob.contains(&edge) {
                return Reply::status(439);
            }
            let flow = reg_id.filter(|_| knows && instance.is_some());
            by_flow |= flow.is_some();
            let same = |one: &Binding| match flow {
                Some(_) => one.flow == flow && one.instance == instance,
                None => one.flow.is_none() && one.uri.is_equivalent(&uri),
            };
            if let Some(at) = bindings.iter().position(same) {
                let old = bindings.remove(at);
                if old.call_id == call_id && old.cseq >= cseq {
                    return Reply::status(500);
                }
            }
            if expires > 0 {
                bindings.push(Binding {
                    uri,
                    instance,
                    flow,
                    reg_id,
                    call_id: call_id.clone(),
                    cseq,
                    until: now + secs(expires.into()),
                });
            }
        }
        self.bindings = bindings;
        let latest = self.latest.entry(call_id).or_insert(cseq);
        self.overtaken |= cseq < *latest;
        *latest = cseq.max(*latest);
        let mut reply = Reply::status(200);
        for one in &self.bindings {
            let left = one.until.saturating_sub(now).as_secs().min(3600);
            let mut value = format!("<{}>;expires={left}", one.uri);
            if self.echoes || self.outbound {
                if let Some(instance) = &one.instance {
                    value.push_str(&format!(
                        ";+sip.instance=\"{}\"",
                        instance.trim_matches('"')
                    ));
                }
                if let Some(reg_id) = &one.reg_id {
                    value.push_str(&format!(";reg-id={reg_id}"));
                }
            }
            reply = reply.header("Contact", &value);
        }
        match by_flow {
            true => reply.header("Require", "outbound"),
            false => reply,
        }
    }
}
