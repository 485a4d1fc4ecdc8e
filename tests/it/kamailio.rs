//! Against a real registrar: Kamailio, which decides by the user name what it does to us (`tests/lab/README.md`)
//!
//! Every test has users of its own, so all may run at once. Bindings and requests are asked of Kamailio, not of us.

mod defines;

use crate::lab::{Arrived, Bound, Lab};
use assert_matches::assert_matches;
use sip_registration::{
    Activity, Agent, Algorithm, Credentials, Event, Events, Exchange, Failure, FailureClass,
    GiveUp, Policy, Protocol, Redirects, ReferenceStatus, Registered, Registrar, Registration,
    RegistrationBuilder, RegistrationHandle, Removal,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long anything may take that is not waited for on purpose
const PATIENCE: Duration = Duration::from_secs(20);
const REMOVAL: Duration = Duration::from_secs(10);
const INSTANCE: &str = "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6";

#[derive(Debug, Clone, Copy)]
enum Via {
    Udp4,
    Tcp4,
    Udp6,
    Tcp6,
}
use Via::{Tcp4, Tcp6, Udp4, Udp6};

/// One registration of one agent
struct Phone {
    lab: &'static Lab,
    user: String,
    agent: Agent,
    handle: RegistrationHandle,
    events: Events,
    told: Vec<Arc<Event>>,
}

fn account(lab: &Lab, user: &str, via: Via) -> RegistrationBuilder {
    let (host, transport) = match via {
        Udp4 => ("127.0.0.1", "udp"),
        Tcp4 => ("127.0.0.1", "tcp"),
        Udp6 => ("[::1]", "udp"),
        Tcp6 => ("[::1]", "tcp"),
    };
    Registration::builder(
        format!("sip:{host}:{};transport={transport}", lab.port()),
        format!("sip:{user}@registrar.test"),
    )
    .contact_user(user)
    .max_random_initial_delay(Duration::ZERO)
}

impl Phone {
    async fn new(lab: &'static Lab, user: &str, via: Via) -> Self {
        Self::with(lab, user, via, |account| account).await
    }

    /// One whose configuration `change` has changed.
    async fn with(
        lab: &'static Lab,
        user: &str,
        via: Via,
        change: impl FnOnce(RegistrationBuilder) -> RegistrationBuilder,
    ) -> Self {
        let account = account(lab, user, via).outbound_auth(Credentials::password(user, "secret"));
        Self::of(lab, user, change(account)).await
    }

    async fn of(lab: &'static Lab, user: &str, account: RegistrationBuilder) -> Self {
        let agent = Agent::builder().system_transports().build().await;
        Self::on(agent.expect("an agent"), lab, user, account).await
    }

    async fn on(agent: Agent, lab: &'static Lab, user: &str, account: RegistrationBuilder) -> Self {
        let account = account.build().expect("a good configuration");
        let events = agent.events();
        let handle = agent.add(account).await.expect("a registration");
        Self {
            lab,
            user: user.into(),
            agent,
            handle,
            events,
            told: Vec::new(),
        }
    }

    /// The next event that `pick` wants; those before it are only noted.
    async fn until<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                self.told.push(Arc::clone(&event));
                if let Some(found) = pick(&event) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("{what}: not told"))
    }

    /// The next outcome of an attempt: any but these and warnings would have been in between.
    async fn outcome(&mut self) -> Arc<Event> {
        self.until("an outcome", |event| match event {
            Event::Scheduled { .. } | Event::Warning(_) => None,
            other => Some(Arc::new(other.clone())),
        })
        .await
    }

    async fn registered(&mut self) -> Registered {
        match &*self.outcome().await {
            Event::Registered(registered) => (**registered).clone(),
            other => panic!("not registered: {other}"),
        }
    }

    async fn refreshed(&mut self) -> Registered {
        match &*self.outcome().await {
            Event::Refreshed(registered) => (**registered).clone(),
            other => panic!("not refreshed: {other}"),
        }
    }

    async fn refresh(&mut self) -> Registered {
        self.handle.refresh().await.expect("it is there");
        self.refreshed().await
    }

    async fn rejected(&mut self) -> Rejection {
        match &*self.outcome().await {
            Event::Rejected {
                failure,
                class,
                attempt,
                retry_in,
                lease_left,
                ..
            } => Rejection {
                failure: failure.clone(),
                class: *class,
                attempt: *attempt,
                retry_in: *retry_in,
                lease_left: *lease_left,
            },
            other => panic!("not rejected: {other}"),
        }
    }

    async fn gave_up(&mut self) -> (Failure, FailureClass, GiveUp, Exchange) {
        match &*self.outcome().await {
            Event::GaveUp {
                failure,
                class,
                why,
                exchange,
                ..
            } => (
                failure.clone(),
                *class,
                *why,
                exchange.as_deref().cloned().unwrap_or_default(),
            ),
            other => panic!("did not give up: {other}"),
        }
    }

    async fn bindings(&self) -> Vec<Bound> {
        self.lab.bindings(&self.user).await
    }

    /// Kamailio has one binding, and it is the one that we were told of.
    async fn is_bound(&self, registered: &Registered) -> Bound {
        let bindings = self.bindings().await;
        let [bound] = &bindings[..] else {
            panic!("not one binding: {bindings:?}");
        };
        assert_eq!(bound.uri, *registered.contact);
        assert_eq!(bound.call_id, *registered.exchange.call_id);
        assert!(registered.confirmed);
        let granted = registered.granted.as_secs();
        assert!(
            (granted - 5..=granted).contains(&bound.expires),
            "{bound:?}"
        );
        assert!(
            self.handle
                .status()
                .await
                .expect("it is there")
                .is_registered()
        );
        bound.clone()
    }

    /// Kamailio has the binding that we were told of, perhaps among others.
    async fn lists(&self, registered: &Registered) {
        let bindings = self.bindings().await;
        assert!(
            bindings
                .iter()
                .any(|bound| bound.uri == *registered.contact),
            "{bindings:?}"
        );
    }

    /// The flow of the binding ended; when it registers again.
    async fn flow_lost(&mut self) -> Duration {
        match &*self.outcome().await {
            Event::FlowLost { next_in, .. } => next_in.expect("registers again"),
            other => panic!("no flow was lost: {other}"),
        }
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.lab.arrived(&self.user)
    }

    /// Un-REGISTERs, and sees that Kamailio has nothing left.
    async fn ends(&mut self) {
        assert_eq!(self.handle.unregister(REMOVAL).await, Removal::Removed);
        assert_eq!(self.bindings().await, []);
        let status = self.handle.status().await.expect("it is there");
        assert!(!status.is_registered());
        assert_matches!(status.activity, Activity::Idle);
        assert_matches!(
            &*self.outcome().await,
            Event::Unregistered(Removal::Removed)
        );
        self.agent.shutdown(REMOVAL).await;
    }

    fn warned(&self) -> bool {
        self.told
            .iter()
            .any(|event| matches!(**event, Event::Warning(_)))
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        // The trace of a test that failed; of one that did not, nobody sees it.
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

struct Rejection {
    failure: Failure,
    class: FailureClass,
    attempt: u32,
    retry_in: Duration,
    lease_left: Option<Duration>,
}

fn code(failure: &Failure) -> u16 {
    match failure {
        Failure::Rejected { code, .. } => *code,
        other => panic!("no answer of the registrar: {other}"),
    }
}

#[track_caller]
fn assert_between(duration: Duration, least: f64, most: f64) {
    let seconds = duration.as_secs_f64();
    assert!(
        (least..=most).contains(&seconds),
        "{duration:?} is not in {least}..={most} s"
    );
}

/// A policy with retries this far apart, without jitter
fn retrying(interval: Duration) -> Policy {
    let mut policy = Policy::default();
    policy.retry.retry_interval = interval;
    policy.retry.jitter = 0.0;
    policy
}

/// The requests, without the copies of each
fn distinct(arrived: &[Arrived]) -> usize {
    arrived
        .iter()
        .map(|request| (&request.call_id, request.cseq))
        .collect::<HashSet<_>>()
        .len()
}

/// 401, 200, a refresh that is not challenged, un-REGISTER.
async fn whole_life(user: &str, via: Via) {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::new(lab, user, via).await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(3600));
    assert_eq!(registered.algorithm, Some(Algorithm::Md5));
    let bound = phone.is_bound(&registered).await;
    let tcp = matches!(via, Tcp4 | Tcp6);
    assert_eq!(
        bound.uri.to_lowercase().contains(";transport=tcp"),
        tcp,
        "{bound:?}"
    );
    let arrived = phone.arrived();
    assert_matches!(&arrived[..], [first, second] if !first.authorized && second.authorized
        && second.cseq == first.cseq + 1 && first.call_id == second.call_id);

    let refreshed = phone.refresh().await;
    assert_eq!(refreshed.exchange.call_id, registered.exchange.call_id);
    phone.is_bound(&refreshed).await;
    // With credentials at once.
    assert_eq!(phone.arrived().len(), 3);

    assert!(!phone.warned());
    phone.ends().await;
    assert_eq!(phone.arrived().len(), 4);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn udp_over_ipv4() {
    whole_life("alice-udp4", Udp4).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn tcp_over_ipv4() {
    whole_life("alice-tcp4", Tcp4).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn udp_over_ipv6() {
    whole_life("alice-udp6", Udp6).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn tcp_over_ipv6() {
    whole_life("alice-tcp6", Tcp6).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn challenge_without_qop() {
    whole_life("noqop-a", Udp4).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn no_authentication() {
    let mut phone = Phone::new(Lab::registrar(&[]), "open-a", Udp4).await;
    let registered = phone.registered().await;
    assert_eq!(registered.algorithm, None);
    phone.is_bound(&registered).await;
    assert_matches!(&phone.arrived()[..], [only] if !only.authorized);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn stale_nonce_is_answered_again() {
    let mut phone = Phone::new(Lab::registrar(&[]), "stale-a", Udp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    assert_eq!(phone.arrived().len(), 3);
    phone.refresh().await;
    assert_eq!(phone.arrived().len(), 4);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn authentication_user_other_than_the_address_of_record() {
    let lab = Lab::registrar(&[]);
    let other = Credentials::password("trunk-4711", "secret");
    let mut phone = Phone::of(
        lab,
        "aid-a",
        account(lab, "aid-a", Udp4).outbound_auth(other.clone()),
    )
    .await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    phone.ends().await;

    // Who may not: 403 after good credentials.
    let mut phone = Phone::of(
        lab,
        "alice-aid",
        account(lab, "alice-aid", Udp4).outbound_auth(other),
    )
    .await;
    let (failure, class, why, _) = phone.gave_up().await;
    assert_eq!((code(&failure), class), (403, FailureClass::Forbidden));
    assert_eq!(why, GiveUp::NoInterval);
    assert_eq!(phone.arrived().len(), 2);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn wrong_password_is_tried_once() {
    let lab = Lab::registrar(&[]);
    let account = account(lab, "alice-wrong", Udp4)
        .outbound_auth(Credentials::password("alice-wrong", "guess"));
    let mut phone = Phone::of(lab, "alice-wrong", account).await;
    let (failure, class, why, _) = phone.gave_up().await;
    assert_matches!(failure, Failure::CredentialsRefused { realm } if &*realm == "registrar.test");
    assert_eq!(class, FailureClass::Credentials);
    assert_eq!(why, GiveUp::CredentialsRefused);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(phone.arrived().len(), 2);
    assert_eq!(phone.bindings().await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn no_credentials_at_all() {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::of(lab, "alice-none", account(lab, "alice-none", Udp4)).await;
    let (failure, class, ..) = phone.gave_up().await;
    assert_matches!(failure, Failure::Unanswerable { .. });
    assert_eq!(class, FailureClass::Credentials);
    assert_eq!(phone.arrived().len(), 1);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn interval_too_brief() {
    let mut phone = Phone::with(Lab::registrar(&[]), "brief60-a", Udp4, |account| {
        account.expiration(Duration::from_secs(30))
    })
    .await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(60));
    phone.is_bound(&registered).await;
    // 423, 401, 200; and the longer time is kept.
    assert_eq!(phone.arrived().len(), 3);
    assert_eq!(phone.refresh().await.granted, Duration::from_secs(60));
    assert_eq!(phone.arrived().len(), 4);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn shorter_grant_than_asked() {
    let mut phone = Phone::new(Lab::registrar(&[]), "clamp20-a", Udp4).await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(20));
    // Half of it, less jitter.
    assert_between(registered.refresh_in, 8.9, 10.0);
    phone.is_bound(&registered).await;
    // It keeps its word.
    let refreshed = phone.refreshed().await;
    phone.is_bound(&refreshed).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn one_contact_too_many_waits_as_told() {
    let lab = Lab::registrar(&[]);
    let mut first = Phone::new(lab, "max1-a", Udp4).await;
    let registered = first.registered().await;
    first.is_bound(&registered).await;
    let mut second = Phone::new(lab, "max1-a", Udp4).await;
    let rejection = second.rejected().await;
    assert_eq!(
        (code(&rejection.failure), rejection.class),
        (503, FailureClass::Temporary)
    );
    assert_between(rejection.retry_in, 2.0, 2.2);
    assert_eq!(rejection.lease_left, None);
    first.is_bound(&registered).await;
    // There is room as soon as the first has gone.
    first.ends().await;
    let registered = second.until("a place", is_registered).await;
    second.is_bound(&registered).await;
    second.ends().await;
}

fn is_registered(event: &Event) -> Option<Registered> {
    match event {
        Event::Registered(registered) => Some((**registered).clone()),
        _ => None,
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn last_contact_throws_the_others_out() {
    let lab = Lab::registrar(&[]);
    let mut first = Phone::new(lab, "one-a", Udp4).await;
    let registered = first.registered().await;
    first.is_bound(&registered).await;
    let mut second = Phone::new(lab, "one-a", Tcp4).await;
    let registered = second.registered().await;
    assert_eq!(registered.other_bindings, 0);
    second.is_bound(&registered).await;
    let refreshed = first.refresh().await;
    first.is_bound(&refreshed).await;
    first.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn two_contacts_side_by_side() {
    let lab = Lab::registrar(&[]);
    let mut first = Phone::new(lab, "alice-two", Udp4).await;
    assert_eq!(first.registered().await.other_bindings, 0);
    let mut second = Phone::new(lab, "alice-two", Tcp6).await;
    let registered = second.registered().await;
    assert!(registered.confirmed);
    assert_eq!(registered.other_bindings, 1);
    assert_eq!(first.bindings().await.len(), 2);
    assert_eq!(first.handle.unregister(REMOVAL).await, Removal::Removed);
    second.is_bound(&registered).await;
    second.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn received_parameter_of_a_nat_helper() {
    let mut phone = Phone::new(Lab::registrar(&[]), "nat-a", Udp4).await;
    let registered = phone.registered().await;
    let bound = phone.is_bound(&registered).await;
    let local = registered.exchange.local.expect("an address");
    assert!(
        bound
            .received
            .starts_with(&format!("sip:127.0.0.1:{}", local.port())),
        "{bound:?}"
    );
    let refreshed = phone.refresh().await;
    phone.is_bound(&refreshed).await;
    assert!(!phone.warned());
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn service_route_and_associated_uris() {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::new(lab, "sr-a", Udp4).await;
    let registered = phone.registered().await;
    let [first, second] = &*registered.service_route else {
        panic!("{:?}", registered.service_route);
    };
    assert!(
        first.contains("<sip:orig@127.0.0.1:") && first.contains(";lr>"),
        "{first}"
    );
    assert!(
        second.contains(&format!("<sip:127.0.0.1:{};lr>", lab.port())),
        "{second}"
    );
    let [sip, tel] = &*registered.associated_uris else {
        panic!("{:?}", registered.associated_uris);
    };
    assert!(sip.contains("sip:sr-a@registrar.test"), "{sip}");
    assert!(tel.contains("tel:+15551234"), "{tel}");
    phone.ends().await;
}

/// One request, and no more.
async fn refused(user: &str, status: u16, class: FailureClass, requests: usize) {
    let mut phone = Phone::new(Lab::registrar(&[]), user, Udp4).await;
    let (failure, found, why, exchange) = phone.gave_up().await;
    assert_eq!(
        (code(&failure), found, why),
        (status, class, GiveUp::NoInterval)
    );
    assert!(
        exchange.status_line.contains(&status.to_string()),
        "{exchange:?}"
    );
    sleep(Duration::from_secs(1)).await;
    assert_eq!(phone.arrived().len(), requests);
    let status = phone.handle.status().await.expect("it is there");
    assert_eq!(status.activity, Activity::Idle);
    assert_eq!(status.reference_status(), ReferenceStatus::Rejected);
    assert_eq!(phone.bindings().await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn forbidden() {
    refused("f403-a", 403, FailureClass::Forbidden, 1).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn forbidden_after_good_credentials() {
    refused("a403-a", 403, FailureClass::Forbidden, 2).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn not_found() {
    refused("f404-a", 404, FailureClass::Fatal, 1).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn redirection_is_not_followed() {
    refused("f302-a", 302, FailureClass::Fatal, 1).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn extension_required() {
    refused("f421-a", 421, FailureClass::Fatal, 1).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn bad_extension() {
    // Nothing to leave out.
    refused("f420-a", 420, FailureClass::Fatal, 1).await;

    // Once more without what was refused.
    let mut phone = Phone::with(Lab::registrar(&[]), "f420-b", Udp4, |account| {
        account.support_outbound(true).supported("gruu")
    })
    .await;
    let (failure, class, _, exchange) = phone.gave_up().await;
    assert_eq!((code(&failure), class), (420, FailureClass::Fatal));
    assert_eq!(*exchange.extensions, ["outbound", "gruu"]);
    assert_eq!(phone.arrived().len(), 2);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn interval_for_fatal_failures() {
    let mut phone = Phone::with(Lab::registrar(&[]), "f404-b", Udp4, |account| {
        let second = Duration::from_secs(1);
        account.fatal_retry_interval(second).max_retries(2)
    })
    .await;
    for attempt in 1..=2 {
        let rejection = phone.rejected().await;
        assert_eq!(
            (code(&rejection.failure), rejection.class),
            (404, FailureClass::Fatal)
        );
        assert_eq!(rejection.attempt, attempt);
        assert_between(rejection.retry_in, 1.0, 1.2);
    }
    assert_eq!(phone.gave_up().await.2, GiveUp::MaxRetries);
    assert_eq!(phone.arrived().len(), 3);
}

/// Rejected, and tried again after `retry_interval`.
async fn temporary(user: &str, status: u16) {
    let mut phone = Phone::new(Lab::registrar(&[]), user, Udp4).await;
    let rejection = phone.rejected().await;
    assert_eq!(
        (code(&rejection.failure), rejection.class),
        (status, FailureClass::Temporary)
    );
    assert_eq!(rejection.attempt, 1);
    assert_between(rejection.retry_in, 60.0, 72.0);
    assert_eq!(rejection.lease_left, None);
    assert_eq!(phone.arrived().len(), 1);
    drop(phone);

    let user = format!("{user}-again");
    let mut phone = Phone::with(Lab::registrar(&[]), &user, Udp4, |account| {
        account
            .policy(retrying(Duration::from_secs(1)))
            .max_retries(1)
    })
    .await;
    assert_eq!(phone.rejected().await.retry_in, Duration::from_secs(1));
    let (failure, class, why, _) = phone.gave_up().await;
    assert_eq!((code(&failure), class), (status, FailureClass::Temporary));
    assert_eq!(why, GiveUp::MaxRetries);
    assert_eq!(phone.arrived().len(), 2);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn server_error() {
    temporary("f500-a", 500).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn global_failure_of_a_proxy() {
    temporary("f600-a", 600).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn retry_after_is_honoured_uncounted() {
    let mut phone = Phone::with(Lab::registrar(&[]), "f503ra1-a", Udp4, |account| {
        account.max_retries(1)
    })
    .await;
    for requests in 1..=3 {
        let rejection = phone.rejected().await;
        assert_eq!(
            (code(&rejection.failure), rejection.class),
            (503, FailureClass::Temporary)
        );
        assert_between(rejection.retry_in, 1.0, 1.1);
        assert_eq!(phone.arrived().len(), requests);
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn retry_after_with_comment_and_duration() {
    let mut phone = Phone::new(Lab::registrar(&[]), "f503rac-a", Tcp4).await;
    assert_between(phone.rejected().await.retry_in, 3.0, 3.3);
    assert_eq!(phone.arrived().len(), 1);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn unavailable_once() {
    let mut phone = Phone::new(Lab::registrar(&[]), "once503-a", Udp4).await;
    let rejection = phone.rejected().await;
    assert_eq!(code(&rejection.failure), 503);
    assert_between(rejection.retry_in, 1.0, 1.1);
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    assert_eq!(phone.arrived().len(), 3);
    assert_eq!(phone.handle.status().await.expect("it is there").retries, 0);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn no_answer() {
    let mut policy = retrying(Duration::from_secs(60));
    policy.timers.t1 = Duration::from_millis(100);
    policy.timers.timer_f = Duration::from_secs(2);
    let mut phone = Phone::with(Lab::registrar(&[]), "f408-a", Udp4, |account| {
        account.policy(policy)
    })
    .await;
    let rejection = phone.rejected().await;
    assert_eq!(rejection.failure, Failure::Timeout);
    assert_eq!(rejection.class, FailureClass::Temporary);
    assert_eq!(rejection.retry_in, Duration::from_secs(60));
    // At 0, 0.1, 0.3, 0.7, 1.5 s.
    let arrived = phone.arrived();
    assert_eq!((arrived.len(), distinct(&arrived)), (5, 1));
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn lost_datagrams_are_sent_again() {
    let mut phone = Phone::new(Lab::registrar(&[]), "drop2-a", Udp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    let arrived = phone.arrived();
    assert_eq!((arrived.len(), distinct(&arrived)), (6, 2));
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn trying_slows_retransmissions() {
    let mut phone = Phone::new(Lab::registrar(&[]), "trying1500-a", Udp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    // The timer that ran when the 100 came still fires (RFC 3261 §17.1.2.2).
    let arrived = phone.arrived();
    assert_eq!(distinct(&arrived), 2);
    assert!(arrived.len() <= 4, "{arrived:?}");
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn late_answer() {
    let mut phone = Phone::new(Lab::registrar(&[]), "delay700-a", Udp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    let arrived = phone.arrived();
    assert_eq!((arrived.len(), distinct(&arrived)), (4, 2));
    phone.ends().await;

    // Nothing is retransmitted on a stream.
    let mut phone = Phone::new(Lab::registrar(&[]), "delay700-b", Tcp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    assert_eq!(phone.arrived().len(), 2);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn duplicate_answer_is_told_once() {
    let mut phone = Phone::new(Lab::registrar(&[]), "dup-a", Udp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(phone.arrived().len(), 2);
    // Next in line, so the second 200 was not told.
    phone.refresh().await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn connection_closed_after_every_success() {
    let mut phone = Phone::new(Lab::registrar(&[]), "close-a", Tcp4).await;
    let mut registered = phone.registered().await;
    // 1, 2, 4 s, each 50 to 100 %, and never less than 1 s; up to 10 ms more for the one user of the flow (D13).
    for (least, most) in [(1.0, 1.0), (1.0, 2.0), (2.0, 4.0)] {
        let next_in = phone.flow_lost().await;
        assert_between(next_in, least, most + 0.01);
        // The binding is still there, though calls may not arrive.
        phone.lists(&registered).await;
        let status = phone.handle.status().await.expect("it is there");
        assert!(status.is_registered() && !status.is_reachable());
        registered = phone.refreshed().await;
        // The old Contact went with the same REGISTER.
        phone.is_bound(&registered).await;
    }
    // The three bindings, and the challenge to the first.
    assert_eq!(phone.arrived().len(), 5);
    assert_eq!(phone.handle.unregister(REMOVAL).await, Removal::Removed);
    assert_eq!(phone.bindings().await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn idle_connection_closed_by_the_registrar() {
    let lab = Lab::registrar(&["TCP_LIFETIME=3"]);
    let mut phone = Phone::new(lab, "alice-idle", Tcp6).await;
    phone.registered().await;
    // After 11 s or so.
    assert_between(phone.flow_lost().await, 1.0, 1.01);
    let registered = phone.refreshed().await;
    phone.is_bound(&registered).await;
    let status = phone.handle.status().await.expect("it is there");
    assert!(status.is_reachable());
    assert_eq!(phone.handle.unregister(REMOVAL).await, Removal::Removed);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn one_contact_at_most_survives_a_lost_connection() {
    let lab = Lab::registrar(&["TCP_LIFETIME=3"]);
    let mut phone = Phone::new(lab, "max1-idle", Tcp4).await;
    phone.registered().await;
    phone.flow_lost().await;
    let registered = phone.refreshed().await;
    phone.is_bound(&registered).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn instance_with_a_new_flow_is_the_same_binding() {
    // A Flow-Timer would keep it from being idle.
    let lab = Lab::registrar(&["TCP_LIFETIME=3", "NO_FLOW_TIMER"]);
    let mut phone = Phone::with(lab, "alice-flow", Tcp4, |account| {
        account
            .support_path(true)
            .support_outbound(true)
            .contact_header_params(format!("reg-id=1;+sip.instance=\"<{INSTANCE}>\""))
    })
    .await;
    let first = phone.registered().await;
    phone.flow_lost().await;
    let second = phone.refreshed().await;
    assert_ne!(second.contact, first.contact);
    phone.is_bound(&second).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn failed_refresh_leaves_the_binding() {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::with(lab, "alice-fault", Udp4, |account| {
        account.policy(retrying(Duration::from_secs(1)))
    })
    .await;
    let registered = phone.registered().await;
    for (fault, retry_in) in [(503, 2.0), (500, 1.0)] {
        lab.break_for("alice-fault", fault).await;
        phone.handle.refresh().await.expect("it is there");
        let rejection = phone.rejected().await;
        assert_eq!(
            (code(&rejection.failure), rejection.class),
            (fault, FailureClass::Temporary)
        );
        // Retry-After of the 503, retry_interval of the 500.
        assert_between(rejection.retry_in, retry_in, retry_in * 1.1);
        assert!(
            rejection
                .lease_left
                .is_some_and(|left| left > Duration::from_secs(3000))
        );
        phone.is_bound(&registered).await;
        let status = phone.handle.status().await.expect("it is there");
        assert_eq!(status.reference_status(), ReferenceStatus::Rejected);
        assert_eq!(status.last_failure, Some(rejection.failure));
        lab.mend("alice-fault").await;
        phone.refreshed().await;
        let status = phone.handle.status().await.expect("it is there");
        assert_eq!(status.reference_status(), ReferenceStatus::Registered);
        assert_eq!(status.last_failure, None);
    }
    phone.is_bound(&registered).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn refused_refresh_tells_what_is_left() {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::new(lab, "alice-403", Udp4).await;
    let registered = phone.registered().await;
    lab.break_for("alice-403", 403).await;
    phone.handle.refresh().await.expect("it is there");
    match &*phone.outcome().await {
        Event::GaveUp {
            class: FailureClass::Forbidden,
            lease_left: Some(left),
            ..
        } => assert_between(*left, 3000.0, 3600.0),
        other => panic!("{other}"),
    }
    phone.is_bound(&registered).await;
    // What may still be there is removed (D21).
    lab.mend("alice-403").await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn refused_removal_stays_a_removal() {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::with(lab, "alice-stuck", Udp4, |account| {
        account.policy(retrying(Duration::from_secs(1)))
    })
    .await;
    phone.registered().await;
    lab.break_for("alice-stuck", 500).await;
    assert_eq!(
        phone.handle.unregister(REMOVAL).await,
        Removal::Refused(500)
    );
    assert_matches!(
        &*phone.outcome().await,
        Event::Unregistered(Removal::Refused(500))
    );
    lab.mend("alice-stuck").await;
    let before = phone.arrived().len();
    sleep(Duration::from_millis(2500)).await;
    // Not registered again after retry_interval, as the reference would.
    assert_eq!(phone.arrived().len(), before);
    assert_eq!(phone.bindings().await.len(), 1);
    // A second try is sent, because the binding may still live.
    assert_eq!(phone.handle.unregister(REMOVAL).await, Removal::Removed);
    assert_eq!(phone.bindings().await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn vanished_binding_comes_back_with_the_refresh() {
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::new(lab, "alice-lost", Tcp4).await;
    phone.registered().await;
    lab.rpc(&["ul.rm", "location", "alice-lost"]).await;
    assert_eq!(phone.bindings().await, []);
    let refreshed = phone.refresh().await;
    phone.is_bound(&refreshed).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn foreign_binding_is_seen_and_left_alone() {
    const FOREIGN: &str = "sip:desk@127.0.0.1:9";
    let lab = Lab::registrar(&[]);
    let mut phone = Phone::new(lab, "alice-foreign", Udp4).await;
    let registered = phone.registered().await;
    lab.add_foreign("alice-foreign", FOREIGN).await;
    assert_eq!(phone.refresh().await.other_bindings, 1);

    phone
        .agent
        .query(phone.handle.id())
        .await
        .expect("it is there");
    let bindings = phone
        .until("the bindings", |event| match event {
            Event::Bindings(bindings) => Some(bindings.clone()),
            _ => None,
        })
        .await;
    assert_eq!(bindings.len(), 2);
    for binding in &bindings {
        let expected = if binding.ours {
            &*registered.contact
        } else {
            FOREIGN
        };
        assert_eq!(&*binding.uri, expected);
    }
    assert_eq!(bindings.iter().filter(|binding| binding.ours).count(), 1);

    assert_eq!(phone.handle.unregister(REMOVAL).await, Removal::Removed);
    assert_matches!(&phone.bindings().await[..], [left] if left.uri == FOREIGN);

    // All of them go only where that is asked for.
    phone
        .agent
        .remove_all(phone.handle.id())
        .await
        .expect("it is there");
    for _ in 0..50 {
        if phone.bindings().await.is_empty() {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("still bound: {:?}", phone.bindings().await);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn unregistered_and_registered_on_command() {
    let mut phone = Phone::new(Lab::registrar(&[]), "alice-command", Tcp4).await;
    let first = phone.registered().await;
    phone
        .agent
        .reregister(phone.handle.id())
        .await
        .expect("it is there");
    assert_matches!(
        &*phone.outcome().await,
        Event::Unregistered(Removal::Removed)
    );
    let second = phone.registered().await;
    assert_eq!(second.exchange.call_id, first.exchange.call_id);
    phone.is_bound(&second).await;
    assert_eq!(phone.handle.unregister(REMOVAL).await, Removal::Removed);
    assert_eq!(phone.bindings().await, []);
    assert_matches!(
        &*phone.outcome().await,
        Event::Unregistered(Removal::Removed)
    );
    phone.handle.refresh().await.expect("it is there");
    let third = phone.registered().await;
    phone.is_bound(&third).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn changed_configuration_takes_the_old_binding_along() {
    let lab = Lab::registrar(&[]);
    let user = "alice-changed";
    let mut phone = Phone::new(lab, user, Udp4).await;
    let first = phone.registered().await;
    let account =
        |via| account(lab, user, via).outbound_auth(Credentials::password(user, "secret"));

    let other = account(Udp4)
        .contact_user("desk")
        .build()
        .expect("a good configuration");
    phone.handle.reconfigure(other).await.expect("it is there");
    let second = phone.until("the new Contact", is_registered).await;
    assert!(
        second.contact.starts_with("sip:desk@"),
        "{}",
        second.contact
    );
    phone.is_bound(&second).await;
    assert_ne!(second.contact, first.contact);

    let other = account(Tcp4).build().expect("a good configuration");
    phone.handle.reconfigure(other).await.expect("it is there");
    let third = phone.until("the other transport", is_registered).await;
    assert_eq!(third.target.protocol(), Protocol::Tcp);
    phone.is_bound(&third).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn paused_and_resumed() {
    let mut phone = Phone::new(Lab::registrar(&[]), "alice-pause", Udp4).await;
    phone.registered().await;
    let id = phone.handle.id();
    phone
        .agent
        .pause(id, None, true)
        .await
        .expect("it is there");
    let removed =
        |event: &Event| matches!(event, Event::Unregistered(Removal::Removed)).then_some(());
    phone.until("the removal", removed).await;
    assert_eq!(phone.bindings().await, []);
    phone.agent.resume(id).await.expect("it is there");
    let registered = phone.until("registered again", is_registered).await;
    phone.is_bound(&registered).await;
    phone.agent.shutdown(REMOVAL).await;
    assert_eq!(phone.bindings().await, []);
}

/// The registrar is gone for a while, and comes back without bindings and nonces.
async fn restart(user: &str, via: Via) {
    let lab = Lab::own();
    let mut policy = retrying(Duration::from_secs(1));
    policy.timers.timer_f = Duration::from_secs(1);
    let mut phone = Phone::with(lab, user, via, |account| account.policy(policy)).await;
    phone.registered().await;
    lab.stop();
    phone.handle.refresh().await.expect("it is there");
    let failure = phone
        .until("a failure", |event| match event {
            Event::Rejected {
                failure,
                class: FailureClass::Temporary,
                lease_left: Some(_),
                ..
            } => Some(failure.clone()),
            _ => None,
        })
        .await;
    // Nobody answers, or the port is closed.
    assert_matches!(failure, Failure::Timeout | Failure::Flow(_));
    lab.restart();
    let refreshed = phone
        .until("registered again", |event| match event {
            Event::Refreshed(registered) => Some((**registered).clone()),
            _ => None,
        })
        .await;
    phone.is_bound(&refreshed).await;
    phone.ends().await;
    lab.stop();
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrar_restarts_over_udp() {
    restart("alice-restart", Udp4).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrar_restarts_over_tcp() {
    restart("alice-restart", Tcp6).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrar_restarts_unnoticed() {
    let lab = Lab::own();
    let mut phone = Phone::new(lab, "alice-nonce", Udp4).await;
    phone.registered().await;
    lab.stop();
    lab.restart();
    // Its nonce is none of the new ones.
    let refreshed = phone.refresh().await;
    phone.is_bound(&refreshed).await;
    assert_eq!(phone.arrived().len(), 2);
    phone.ends().await;
    lab.stop();
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn shutdown_removes_every_binding() {
    let lab = Lab::registrar(&[]);
    let agent = Agent::builder()
        .system_transports()
        .build()
        .await
        .expect("an agent");
    let users: Vec<String> = (0..20).map(|n| format!("alice-down{n}")).collect();
    let mut handles = Vec::new();
    for (n, user) in users.iter().enumerate() {
        let via = [Udp4, Tcp4, Udp6, Tcp6][n % 4];
        let account = account(lab, user, via)
            .outbound_auth(Credentials::password(user, "secret"))
            .build()
            .expect("a good configuration");
        handles.push(agent.add(account).await.expect("a registration"));
    }
    for handle in &handles {
        timeout(PATIENCE, handle.registered())
            .await
            .expect("in time")
            .expect("registered");
    }
    for user in &users {
        assert_eq!(lab.bindings(user).await.len(), 1, "{user}");
    }
    let fates = agent.shutdown(REMOVAL).await;
    assert_eq!(fates.len(), users.len());
    for (id, fate) in fates {
        assert_eq!(fate, Removal::Removed, "{id}");
    }
    for user in &users {
        assert_eq!(lab.bindings(user).await, [], "{user}");
    }
}

/// An account behind the proxy, which wants a password of its own from some.
fn behind_the_edge(
    account: RegistrationBuilder,
    user: &str,
    transport: &str,
) -> RegistrationBuilder {
    let proxy = format!(
        "sip:127.0.0.1:{};transport={transport};lr",
        Lab::edge().port()
    );
    account
        .outbound_auth(Credentials::password(user, "secret").realm("registrar.test"))
        .outbound_auth(Credentials::password(user, "edgesecret").realm("edge.test"))
        .outbound_proxy(proxy)
        .support_path(true)
}

async fn through_the_edge(user: &str, transport: &str) -> Phone {
    through_the_edge_with(user, transport, |account| account).await
}

async fn through_the_edge_with(
    user: &str,
    transport: &str,
    change: impl FnOnce(RegistrationBuilder) -> RegistrationBuilder,
) -> Phone {
    let lab = Lab::registrar(&[]);
    let account = Registration::builder("sip:registrar.test", format!("sip:{user}@registrar.test"))
        .contact_user(user)
        .max_random_initial_delay(Duration::ZERO);
    let account = behind_the_edge(account, user, transport);
    Phone::of(lab, user, change(account)).await
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn path_of_a_proxy() {
    let edge = format!("127.0.0.1:{}", Lab::edge().port());
    for (user, transport) in [("alice-path", "udp"), ("alice-path-tcp", "tcp")] {
        let mut phone = through_the_edge(user, transport).await;
        let registered = phone.registered().await;
        let bound = phone.is_bound(&registered).await;
        assert!(bound.path.contains(&edge), "{bound:?}");
        assert_matches!(&*registered.path, [path] if path.contains(&edge));
        let refreshed = phone.refresh().await;
        phone.is_bound(&refreshed).await;
        assert_eq!(phone.arrived().len(), 3);
        phone.ends().await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn flow_token_of_a_proxy() {
    let mut phone = through_the_edge_with("alice-ob", "tcp", |account| {
        account
            .support_outbound(true)
            .contact_header_params(format!("reg-id=1;+sip.instance=\"<{INSTANCE}>\""))
    })
    .await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    assert_matches!(&*registered.path, [path] if path.ends_with(";ob>"));
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn challenge_of_a_proxy() {
    let mut phone = through_the_edge("openproxy-a", "udp").await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    // What the proxy challenged did not get here.
    assert_eq!(phone.arrived().len(), 1);
    phone.refresh().await;
    assert_eq!(phone.arrived().len(), 2);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn challenges_of_proxy_and_registrar() {
    let mut phone = through_the_edge("both-a", "tcp").await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    // With the proxy's credentials, then with both.
    assert_matches!(&phone.arrived()[..], [first, second] if !first.authorized && second.authorized);
    phone.refresh().await;
    assert_eq!(phone.arrived().len(), 3);
    phone.ends().await;
    assert_eq!(phone.arrived().len(), 4);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn path_that_the_proxy_asks_for_itself() {
    let mut phone =
        through_the_edge_with("addpath-a", "udp", |account| account.support_path(false)).await;
    let registered = phone.registered().await;
    let bound = phone.is_bound(&registered).await;
    assert_ne!(bound.path, "");
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn path_needs_its_option_where_the_registrar_is_strict() {
    let lab = Lab::registrar(&["PATH_MODE=2"]);
    let proxy = format!(
        "sip:127.0.0.1:{};transport=udp;lr",
        lab.behind_an_edge().port()
    );
    for (user, support) in [("alice-strict", false), ("alice-lenient", true)] {
        let account =
            Registration::builder("sip:registrar.test", format!("sip:{user}@registrar.test"))
                .contact_user(user)
                .max_random_initial_delay(Duration::ZERO)
                .outbound_auth(Credentials::password(user, "secret"))
                .outbound_proxy(&*proxy)
                .support_path(support);
        let mut phone = Phone::of(lab, user, account).await;
        if support {
            let registered = phone.registered().await;
            phone.is_bound(&registered).await;
            phone.ends().await;
        } else {
            let (failure, class, why, exchange) = phone.gave_up().await;
            assert_eq!(
                (code(&failure), class, why),
                (420, FailureClass::Fatal, GiveUp::NoInterval)
            );
            assert_eq!(*exchange.extensions, ["path"]);
        }
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn outbound_required_is_named() {
    let lab = Lab::registrar(&["OB_MODE=2"]);
    let mut phone = Phone::with(lab, "alice-421", Udp4, |account| account.support_path(true)).await;
    let (failure, class, _, exchange) = phone.gave_up().await;
    assert_eq!((code(&failure), class), (421, FailureClass::Fatal));
    assert_eq!(*exchange.extensions, ["outbound"]);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn interval_left_to_the_registrar() {
    let lab = Lab::registrar(&["DEFAULT_EXPIRES=90"]);
    let mut phone = Phone::with(lab, "alice-default", Tcp4, |account| {
        account
            .policy(Policy::asterisk())
            .expiration(Duration::from_secs(u32::MAX.into()))
    })
    .await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(90));
    phone.is_bound(&registered).await;
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn credentials_are_for_their_realm() {
    let lab = Lab::registrar(&["REALM=elsewhere.test"]);
    let mut phone = Phone::new(lab, "alice-anywhere", Udp4).await;
    let registered = phone.registered().await;
    phone.is_bound(&registered).await;
    phone.ends().await;
    let user = "alice-here";
    let account = account(lab, user, Udp4)
        .outbound_auth(Credentials::password(user, "secret").realm("registrar.test"));
    let mut phone = Phone::of(lab, user, account).await;
    let (failure, ..) = phone.gave_up().await;
    assert_matches!(failure, Failure::Unanswerable { why } if why.contains("elsewhere.test"));
    assert_eq!(phone.arrived().len(), 1);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn profile_of_the_reference() {
    let lab = Lab::registrar(&["AUTH_ALG_MD5_EXPLICIT"]);
    let mut phone = Phone::with(lab, "clamp24-ref", Udp4, |account| {
        account.policy(Policy::asterisk())
    })
    .await;
    let first_in = phone
        .until("the delay", |event| match event {
            Event::Scheduled { first_in } => Some(*first_in),
            _ => None,
        })
        .await;
    assert_eq!(first_in, Duration::from_secs(1));
    let registered = phone.registered().await;
    // 10 s before the end, to the millisecond or so: no jitter.
    assert_between(registered.refresh_in, 13.5, 14.0);
    phone.is_bound(&registered).await;
    // Challenged each time.
    assert_eq!(phone.arrived().len(), 2);
    phone.refresh().await;
    assert_eq!(phone.arrived().len(), 4);
    phone.ends().await;
    assert_eq!(phone.arrived().len(), 6);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn gruus_of_an_instance() {
    let mut phone = Phone::with(Lab::registrar(&[]), "alice-gruu", Udp4, |account| {
        account
            .contact_header_params(format!("+sip.instance=\"<{INSTANCE}>\""))
            .supported("gruu")
    })
    .await;
    let registered = phone.registered().await;
    let public = registered.public_gruu.as_deref().expect("a public GRUU");
    assert!(
        public.starts_with("sip:alice-gruu@") && public.contains(INSTANCE),
        "{public}"
    );
    let temporary = registered
        .temporary_gruu
        .as_deref()
        .expect("a temporary GRUU");
    assert!(temporary.starts_with("sip:"), "{temporary}");
    phone.is_bound(&registered).await;
    let refreshed = phone.refresh().await;
    assert_eq!(refreshed.public_gruu, registered.public_gruu);
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn redirection_to_itself_ends() {
    let mut policy = retrying(Duration::from_secs(60));
    policy.redirects = Redirects::Follow { max: 3 };
    let mut phone = Phone::with(Lab::registrar(&[]), "f302-b", Udp4, |account| {
        account.policy(policy)
    })
    .await;
    phone.outcome().await;
    sleep(Duration::from_secs(1)).await;
    let arrived = phone.arrived();
    assert!(arrived.len() <= 4, "{arrived:?}");
    assert_eq!(phone.bindings().await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn sha_256() {
    let lab = Lab::registrar(&["AUTH_SHA256"]);
    let mut phone = Phone::new(lab, "alice-sha", Udp4).await;
    let registered = phone.registered().await;
    assert_eq!(registered.algorithm, Some(Algorithm::Sha256));
    phone.is_bound(&registered).await;
    phone.refresh().await;
    assert_eq!(phone.arrived().len(), 3);
    phone.ends().await;

    // The reference's profile knows MD5 only, unless told otherwise.
    let mut phone = Phone::with(lab, "alice-md5", Udp4, |account| {
        account.policy(Policy::asterisk())
    })
    .await;
    let (failure, class, ..) = phone.gave_up().await;
    assert_matches!(failure, Failure::Unanswerable { .. });
    assert_eq!(class, FailureClass::Credentials);
    assert_eq!(phone.arrived().len(), 1);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn nonce_that_expires_before_the_refresh() {
    let mut phone = Phone::new(Lab::registrar(&["NONCE_EXPIRE=2"]), "clamp12-nonce", Udp4).await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(12));
    assert_eq!(phone.arrived().len(), 2);
    // Twice by itself: a stale nonce, a new one.
    for round in 1..=2 {
        let refreshed = phone.refreshed().await;
        phone.is_bound(&refreshed).await;
        assert_eq!(phone.arrived().len(), 2 + 2 * round);
    }
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn nonce_that_is_good_once() {
    let mut phone = Phone::new(Lab::registrar(&["ONE_TIME_NONCE"]), "alice-once", Udp4).await;
    phone.registered().await;
    for round in 1..=3 {
        let refreshed = phone.refresh().await;
        phone.is_bound(&refreshed).await;
        assert_eq!(phone.arrived().len(), 2 + 2 * round);
    }
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn nonce_count_grows() {
    let mut phone = Phone::new(Lab::registrar(&["NONCE_COUNT"]), "alice-nc", Udp4).await;
    phone.registered().await;
    for round in 1..=5 {
        let refreshed = phone.refresh().await;
        phone.is_bound(&refreshed).await;
        // A count that was used before would be challenged.
        assert_eq!(phone.arrived().len(), 2 + round);
    }
    phone.ends().await;
    assert_eq!(phone.arrived().len(), 8);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn next_nonce_is_used() {
    let lab = Lab::registrar(&["AUTHINFO", "ONE_TIME_NONCE"]);
    let mut phone = Phone::new(lab, "alice-next", Udp4).await;
    phone.registered().await;
    for round in 1..=3 {
        phone.refresh().await;
        // Each nonce is good once, and the next is told in time.
        assert_eq!(phone.arrived().len(), 2 + round);
    }
    assert!(!phone.warned());
    phone.ends().await;
    assert_eq!(phone.arrived().len(), 6);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn next_nonce_that_is_the_current_one() {
    let lab = Lab::registrar(&["AUTHINFO", "NONCE_COUNT"]);
    let mut phone = Phone::new(lab, "alice-same", Udp4).await;
    phone.registered().await;
    for round in 1..=3 {
        phone.refresh().await;
        // Its count goes on, or it would be challenged.
        assert_eq!(phone.arrived().len(), 2 + round);
    }
    assert!(!phone.warned());
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn least_interval_of_the_registrar() {
    let mut phone = Phone::with(
        Lab::registrar(&["MIN_EXPIRES=30"]),
        "alice-min",
        Udp4,
        |account| account.expiration(Duration::from_secs(10)),
    )
    .await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(30));
    phone.is_bound(&registered).await;
    // 401, 423, 200: the credentials are good for the repeat.
    assert_eq!(phone.arrived().len(), 3);
    assert_eq!(phone.refresh().await.granted, Duration::from_secs(30));
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn greatest_interval_of_the_registrar() {
    let mut phone = Phone::new(Lab::registrar(&["MAX_EXPIRES=120"]), "alice-most", Tcp4).await;
    let registered = phone.registered().await;
    assert_eq!(registered.granted, Duration::from_secs(120));
    // 40 s before the end, less jitter.
    assert_between(registered.refresh_in, 71.0, 80.0);
    phone.is_bound(&registered).await;
    phone.ends().await;
}
