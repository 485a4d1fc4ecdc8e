//! A device with one registration: what it is told, what it knows, who calls it

use crate::caller::Caller;
use crate::lab::{Bound, Lab};
use sip_registration::{
    Agent, Credentials, Event, Events, FlowId, InstanceId, Registered, Registration,
    RegistrationBuilder, RegistrationHandle, RegistrationId, Removal, WayOut,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take that is not waited for on purpose
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const URN: &str = "urn:uuid:00000000-0000-1000-8000-000a95a0e128";

pub(super) fn instance() -> InstanceId {
    InstanceId::parse(URN).expect("a urn")
}

pub(super) fn account(user: &str) -> RegistrationBuilder {
    Registration::builder("sip:registrar.test", format!("sip:{user}@registrar.test"))
        .contact_user(user)
        .outbound_auth(Credentials::password(user, "secret"))
        .max_random_initial_delay(Duration::ZERO)
}

#[expect(clippy::disallowed_methods, reason = "real networks run in real time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

pub(super) fn with_line(account: RegistrationBuilder) -> RegistrationBuilder {
    account.line(true).endpoint("phone")
}

pub(super) fn by(port: u16, transport: &str) -> String {
    format!("sip:127.0.0.1:{port};transport={transport};lr")
}

/// A request that arrived, and was answered with 486 where it was a call and 200 where not
#[derive(Debug)]
pub(super) struct Called {
    method: String,
    uri: String,
    flow: Option<FlowId>,
    registration: Option<RegistrationId>,
}

/// One registration of one agent, which answers what arrives
pub(super) struct Device {
    lab: &'static Lab,
    user: String,
    pub(super) agent: Agent,
    pub(super) handle: RegistrationHandle,
    line: bool,
    events: Events,
    told: Vec<Arc<Event>>,
    calls: mpsc::UnboundedReceiver<Called>,
    answering: JoinHandle<()>,
}

impl Device {
    pub(super) async fn new(lab: &'static Lab, user: &str, account: RegistrationBuilder) -> Self {
        let agent = Agent::builder().system_transports().build().await;
        let agent = agent.expect("an agent");
        let (events, mut messages) = (agent.events(), agent.messages());
        let (called, calls) = mpsc::unbounded_channel();
        let answers = agent.clone();
        let answering = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let request = message.request().expect("a request");
                let code = if request.method() == "INVITE" {
                    486
                } else {
                    200
                };
                let Some(response) = message.response(code) else {
                    continue;
                };
                let answered = answers.answer(&message, response.build());
                answered.expect("sent");
                let _ = called.send(Called {
                    method: request.method().into(),
                    uri: request.uri().into(),
                    flow: message.flow,
                    registration: message.registration.map(|found| found.registration),
                });
            }
        });
        let account = account.build().expect("a good configuration");
        let line = account.line();
        let handle = agent.add(account).await.expect("a registration");
        Self {
            lab,
            user: user.into(),
            agent,
            handle,
            line,
            events,
            told: Vec::new(),
            calls,
            answering,
        }
    }

    /// The next event that `pick` wants; those before it are only noted.
    pub(super) async fn within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> T {
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                self.told.push(Arc::clone(&event));
                if let Some(found) = pick(&event) {
                    return found;
                }
            }
        };
        let found = timeout(limit, wait).await;
        found.unwrap_or_else(|_| panic!("{what}: not told"))
    }

    pub(super) async fn until<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        self.within(PATIENCE, what, pick).await
    }

    pub(super) async fn registered(&mut self) -> Registered {
        self.until("a grant", |event| match event {
            Event::Registered(granted) => Some((**granted).clone()),
            _ => None,
        })
        .await
    }

    pub(super) async fn refreshed(&mut self) -> Registered {
        self.handle.refresh().await.expect("it is there");
        self.until("a refresh", |event| match event {
            Event::Refreshed(granted) => Some((**granted).clone()),
            _ => None,
        })
        .await
    }

    /// What happened to one of several flows is told as that.
    pub(super) async fn of_flow<T>(
        &mut self,
        limit: Duration,
        flow: u8,
        what: &str,
        pick: impl Fn(&Event) -> Option<T>,
    ) -> T {
        self.within(limit, what, |event| match event {
            Event::OfFlow { reg_id, event } if *reg_id == flow => pick(event),
            _ => None,
        })
        .await
    }

    /// Bound, with both of its flows.
    pub(super) async fn with_both(
        lab: &'static Lab,
        user: &str,
        account: RegistrationBuilder,
        [first, second]: [String; 2],
    ) -> Self {
        let account = account
            .instance(instance())
            .outbound_proxy(first)
            .further_flow(second);
        let mut device = Self::new(lab, user, account).await;
        let granted = device.registered().await;
        assert!(granted.outbound && granted.reg_id == Some(1), "{granted:?}");
        let second = device
            .of_flow(PATIENCE, 2, "the second flow", granted_to)
            .await;
        assert_eq!(second.reg_id, Some(2));
        device.has_both().await;
        device
    }

    /// The registrar has both flows under one instance, by different ways, and we know them to be up.
    pub(super) async fn has_both(&self) {
        let bindings = self.bindings().await;
        let [one, two] = &bindings[..] else {
            panic!("not two bindings: {bindings:?}");
        };
        assert_eq!((one.reg_id, two.reg_id), (1, 2));
        for bound in [one, two] {
            assert_eq!(bound.instance.trim_matches(['<', '>']), URN);
            assert!(bound.path.ends_with(";ob>"), "{bound:?}");
        }
        assert_ne!(one.path, two.path);
        assert_ne!(one.call_id, two.call_id);
        assert_eq!(self.up().await, [true, true]);
        let mut ways: Vec<_> = self.ways().await.iter().map(|way| way.reg_id).collect();
        ways.sort_unstable();
        assert_eq!(ways, [Some(1), Some(2)]);
    }

    /// What the registrar has, in the order of the flows.
    pub(super) async fn bindings(&self) -> Vec<Bound> {
        let mut bindings = self.lab.bindings(&self.user).await;
        bindings.sort_by_key(|bound| bound.reg_id);
        bindings
    }

    pub(super) async fn ways(&self) -> Vec<WayOut> {
        self.handle.ways_out().await
    }

    pub(super) async fn up(&self) -> Vec<bool> {
        let flows = self.handle.flow_statuses().await;
        flows
            .iter()
            .map(|(_, status)| status.is_reachable())
            .collect()
    }

    /// The flow under a reg-id.
    pub(super) async fn flow(&self, reg_id: u8) -> FlowId {
        let ways = self.ways().await;
        let way = ways.iter().find(|way| way.reg_id == Some(reg_id));
        way.unwrap_or_else(|| panic!("no way by {reg_id}: {ways:?}"))
            .flow
    }

    /// Somebody calls, asks and writes; all of it arrives once, here and on this flow.
    pub(super) async fn is_called(&mut self, caller: &Caller, uri: &str, flow: FlowId) {
        let aor = format!("sip:{}@registrar.test", self.user);
        for (method, code) in [("INVITE", 486), ("MESSAGE", 200), ("OPTIONS", 200)] {
            assert_eq!(caller.asks(method, uri, &aor).await, code, "{method} {uri}");
            let call = timeout(PATIENCE, self.calls.recv()).await;
            let call = call.expect("in time").expect("it listens");
            assert_eq!(call.method, method);
            assert_eq!(call.flow, Some(flow), "{call:?}");
            assert_eq!(call.registration, Some(self.handle.id()), "{call:?}");
            let bindings = self.bindings().await;
            assert!(
                bindings.iter().any(|bound| bound.uri == call.uri),
                "{call:?} {bindings:?}"
            );
            assert_eq!(call.uri.contains(";line="), self.line, "{call:?}");
        }
        assert!(self.calls.try_recv().is_err(), "something arrived twice");
    }

    pub(super) fn aor(&self) -> String {
        format!("sip:{}@registrar.test", self.user)
    }

    pub(super) async fn ends(self) {
        assert_eq!(self.handle.unregister(PATIENCE).await, Removal::Removed);
        assert_eq!(self.bindings().await, []);
        self.agent.shutdown(PATIENCE).await;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.answering.abort();
        if std::thread::panicking() {
            eprintln!("{}: told", self.user);
            for event in &self.told {
                eprintln!("  {event}");
            }
            eprintln!("{}: Kamailio saw", self.user);
            for line in self.lab.log(&self.user) {
                eprintln!("  {line}");
            }
        }
    }
}

/// A grant, whether first or again.
pub(super) fn granted_to(event: &Event) -> Option<Registered> {
    match event {
        Event::Registered(granted) | Event::Refreshed(granted) => Some((**granted).clone()),
        _ => None,
    }
}

pub(super) fn lost(event: &Event) -> Option<()> {
    matches!(event, Event::FlowLost { .. }).then_some(())
}
