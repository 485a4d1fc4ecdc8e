//! Agents that find their registrars by DNS, and lose them
//!
//! Registrars are on addresses of the loopback, each on a port of its own. The policies are those of `Policy::default`
//! in a hurry: timer F is 0.8 s.

use super::server::{Dnsmasq, Fake, Manner};
use assert_matches::assert_matches;
use sip_registration::testkit::{Fault, RunningServer, TestServer};
use sip_registration::{
    Agent, DnsResolver, Event, Events, Failure, Policy, Protocol, Registered, Registration,
    RegistrationHandle, ResolveError,
};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
const TIMER_F: Duration = Duration::from_millis(800);

fn hurried() -> Policy {
    let mut policy = Policy::default();
    policy.timers.t1 = Duration::from_millis(100);
    policy.timers.t2 = Duration::from_millis(400);
    policy.timers.timer_f = TIMER_F;
    policy.timers.connect_timeout = TIMER_F;
    policy.retry.retry_interval = Duration::from_secs(1);
    policy
}

fn account(uri: &str, user: &str) -> Registration {
    Registration::builder(uri, format!("sip:{user}@example.test"))
        .contact_user(user)
        .policy(hurried())
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("a good configuration")
}

async fn registrar(address: impl Into<SocketAddr>) -> RunningServer {
    TestServer::new()
        .require_auth(false)
        .serve(address.into())
        .await
        .expect("a free port")
}

/// A registrar on 127.0.77.`n`
async fn numbered(n: u8) -> RunningServer {
    registrar(([127, 0, 77, n], 0)).await
}

/// The AORs that have bindings, of those that `aor` makes
fn bound(server: &RunningServer, users: impl Iterator<Item = String>) -> usize {
    users
        .filter(|user| {
            !server
                .bindings(&format!("sip:{user}@example.test"))
                .is_empty()
        })
        .count()
}

async fn agent(server: SocketAddr) -> Agent {
    let resolver = DnsResolver::builder()
        .name_server(server)
        .timeout(Duration::from_millis(500))
        .attempts(2)
        .build();
    let builder = Agent::builder().system_transports().resolver(resolver);
    builder.build().await.expect("an agent")
}

/// One registration of one agent
struct Phone {
    agent: Agent,
    handle: RegistrationHandle,
    events: Events,
}

impl Phone {
    async fn new(server: SocketAddr, uri: &str) -> Self {
        let agent = agent(server).await;
        let events = agent.events();
        let handle = agent.add(account(uri, "alice")).await.expect("it is taken");
        Self {
            agent,
            handle,
            events,
        }
    }

    /// The next event that is no warning
    async fn told(&mut self) -> Arc<Event> {
        let wait = async {
            loop {
                let (_, event) = self.events.next().await.expect("the agent lives");
                if !matches!(*event, Event::Warning(_) | Event::Scheduled { .. }) {
                    return event;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("something is told")
    }

    async fn registered(&mut self) -> Registered {
        match &*self.told().await {
            Event::Registered(registered) => (**registered).clone(),
            other => panic!("not registered: {other}"),
        }
    }

    /// Refreshes: the next news is that it worked, and there was a lease all the time.
    async fn refresh(&mut self) -> Registered {
        self.handle.refresh().await.expect("it is there");
        match &*self.told().await {
            Event::Refreshed(registered) => (**registered).clone(),
            other => panic!("not refreshed: {other}"),
        }
    }

    /// Refreshes until the registrar is this one; each refresh must work.
    async fn moves_to(&mut self, address: SocketAddr) -> Registered {
        let wait = async {
            loop {
                let refreshed = self.refresh().await;
                if refreshed.target.address() == address {
                    return refreshed;
                }
                sleep(Duration::from_millis(300)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it moves")
    }

    async fn is_registered(&self) -> bool {
        let status = self.handle.status().await;
        status.expect("it is there").is_registered()
    }
}

/// A place that swallows what it gets
struct Silent {
    socket: UdpSocket,
}

impl Silent {
    async fn new(n: u8) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 77, n], 0))).await;
        Self {
            socket: socket.expect("a free port"),
        }
    }

    fn port(&self) -> u16 {
        self.socket.local_addr().expect("an address").port()
    }

    /// Who tried it, by Call-ID
    fn tried(&self) -> HashSet<String> {
        let mut buffer = [0; 4096];
        let mut calls = HashSet::new();
        while let Ok(length) = self.socket.try_recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let call = text.lines().find(|line| line.starts_with("Call-ID:"));
            calls.insert(call.expect("a Call-ID").to_owned());
        }
        calls
    }
}

fn srv(service: &str, target: &str, port: u16, priority: u16, weight: u16) -> String {
    format!("srv-host={service},{target},{port},{priority},{weight}\n")
}

// ---- which of several

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn registrations_spread_by_weight_and_leave_the_backup_alone() {
    let servers = [numbered(1).await, numbered(2).await, numbered(3).await];
    let mut records = String::new();
    for (n, (server, (priority, weight))) in servers
        .iter()
        .zip([(10, 10), (10, 30), (20, 60)])
        .enumerate()
    {
        let port = server.addr().port();
        records += &format!("host-record=s{n}.test,{}\n", server.addr().ip());
        records += &srv(
            "_sip._udp.test",
            &format!("s{n}.test"),
            port,
            priority,
            weight,
        );
    }
    let dns = Dnsmasq::start(&records);
    let agent = agent(dns.address()).await;
    let users = || (0..240).map(|n| format!("u{n}"));
    let mut handles = Vec::new();
    for user in users() {
        let handle = agent.add(account("sip:test;transport=udp", &user)).await;
        handles.push(handle.expect("it is taken"));
    }
    for handle in handles {
        let registered = timeout(PATIENCE, handle.registered()).await;
        registered.expect("in time").expect("registered");
    }
    let counts: Vec<usize> = servers
        .iter()
        .map(|server| bound(server, users()))
        .collect();
    // A quarter of 240, and five times its deviation to either side
    assert!((27..=95).contains(&counts[0]), "{counts:?}");
    assert_eq!(counts[0] + counts[1], 240);
    assert_eq!(counts[2], 0);
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn naptr_chooses_the_transport_and_the_domain() {
    let server = numbered(4).await;
    let port = server.addr().port();
    let common = format!(
        "host-record=s.test,127.0.77.4\n{}{}",
        srv("_sip._tcp.elsewhere.test", "s.test", port, 1, 1),
        srv("_sip._udp.elsewhere.test", "s.test", port, 1, 1),
    );
    for (tcp, udp, expected) in [
        ((10, 20), (20, 10), Protocol::Tcp),
        ((20, 10), (10, 20), Protocol::Udp),
        ((10, 20), (10, 10), Protocol::Udp),
    ] {
        let dns = Dnsmasq::start(&format!(
            "{common}
             naptr-record=test,{},{},s,SIP+D2T,,_sip._tcp.elsewhere.test
             naptr-record=test,{},{},s,SIP+D2U,,_sip._udp.elsewhere.test
             naptr-record=test,1,1,s,SIP+D2S,,_sip._sctp.elsewhere.test",
            tcp.0, tcp.1, udp.0, udp.1
        ));
        let mut phone = Phone::new(dns.address(), "sip:test").await;
        let registered = phone.registered().await;
        assert_eq!(registered.target.protocol(), expected);
        assert_eq!(registered.target.address(), server.addr());
        assert_eq!(
            server.bindings("sip:alice@example.test")[0].protocol,
            expected
        );
        phone.agent.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_short_list_by_tcp_and_the_first_of_it() {
    let server = numbered(5).await;
    let mut records = String::from("host-record=s.test,127.0.77.5\n");
    records += &srv("_sip._udp.test", "s.test", server.addr().port(), 1, 0);
    for n in 0..120 {
        records += &srv("_sip._udp.test", &format!("nothing-{n}.test"), 5060, 9, 9);
    }
    let dns = Dnsmasq::start(&records);
    let mut phone = Phone::new(dns.address(), "sip:test;transport=udp").await;
    assert_eq!(phone.registered().await.target.address(), server.addr());
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_registrar_on_ipv6_and_one_whose_ipv6_is_dead() {
    let six = registrar((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), 0)).await;
    let four = numbered(6).await;
    let (port, dead) = (six.addr().port(), four.addr().port());
    let dns =
        Dnsmasq::start_on6("host-record=six.test,::1\nhost-record=both.test,127.0.77.6,::1\n");
    for transport in ["udp", "tcp"] {
        let uri = format!("sip:SIX.test.:{port};transport={transport}");
        let mut phone = Phone::new(dns.address(), &uri).await;
        assert_eq!(phone.registered().await.target.address(), six.addr());

        let uri = format!("sip:both.test:{dead};transport={transport}");
        let mut phone = Phone::new(dns.address(), &uri).await;
        assert_eq!(phone.registered().await.target.address(), four.addr());
    }
}

// ---- failover

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn the_next_server_is_tried_in_the_same_attempt() {
    let (silent, second) = (Silent::new(10).await, numbered(11).await);
    let dns = Dnsmasq::start(&format!(
        "host-record=dead.test,127.0.77.10\nhost-record=live.test,127.0.77.11\n{}{}",
        srv("_sip._udp.test", "dead.test", silent.port(), 10, 0),
        srv("_sip._udp.test", "live.test", second.addr().port(), 20, 0),
    ));
    let mut phone = Phone::new(dns.address(), "sip:test;transport=udp").await;
    // No Rejected came before it.
    let registered = phone.registered().await;
    assert_eq!(registered.target.address(), second.addr());
    assert!(registered.took >= TIMER_F, "{:?}", registered.took);
    assert_eq!(silent.tried().len(), 1);

    // The dead one was known: the others do not wait for it.
    let mut handles = Vec::new();
    for n in 0..30 {
        let account = account("sip:test;transport=udp", &format!("u{n}"));
        handles.push(phone.agent.add(account).await.expect("it is taken"));
    }
    for handle in handles {
        let registered = timeout(PATIENCE, handle.registered()).await;
        let registered = registered.expect("in time").expect("registered");
        assert_eq!(registered.target.address(), second.addr());
    }
    assert_eq!(silent.tried().len(), 0);
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_server_that_dies_does_not_interrupt_the_lease() {
    let (first, second) = (numbered(12).await, numbered(13).await);
    let dns = Dnsmasq::start(&format!(
        "host-record=a.test,127.0.77.12\nhost-record=b.test,127.0.77.13\n{}{}",
        srv("_sip._udp.test", "a.test", first.addr().port(), 10, 0),
        srv("_sip._udp.test", "b.test", second.addr().port(), 20, 0),
    ));
    let mut phone = Phone::new(dns.address(), "sip:test;transport=udp").await;
    assert_eq!(phone.registered().await.target.address(), first.addr());

    first.fault(Fault::Drop(u32::MAX));
    phone.handle.refresh().await.expect("it is there");
    sleep(TIMER_F / 2).await;
    assert!(phone.is_registered().await);
    assert_matches!(
        &*phone.told().await,
        Event::Refreshed(refreshed) if refreshed.target.address() == second.addr()
    );
    // It stays there, and the dead one is not asked again.
    let asked = first.requests().len();
    assert_eq!(phone.refresh().await.target.address(), second.addr());
    assert_eq!(first.requests().len(), asked);
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_server_that_is_busy_is_left_alone_by_all() {
    let (first, second) = (numbered(14).await, numbered(15).await);
    let dns = Dnsmasq::start(&format!(
        "host-record=a.test,127.0.77.14\nhost-record=b.test,127.0.77.15\n{}{}",
        srv("_sip._udp.test", "a.test", first.addr().port(), 10, 0),
        srv("_sip._udp.test", "b.test", second.addr().port(), 20, 0),
    ));
    first.fault(Fault::respond(503).header("Retry-After", "600"));
    let mut phone = Phone::new(dns.address(), "sip:test;transport=udp").await;
    assert_eq!(phone.registered().await.target.address(), second.addr());
    let other = phone
        .agent
        .add(account("sip:test;transport=udp", "bob"))
        .await;
    let other = other.expect("it is taken");
    let registered = timeout(PATIENCE, other.registered()).await;
    assert_eq!(
        registered
            .expect("in time")
            .expect("registered")
            .target
            .address(),
        second.addr()
    );
    assert_eq!(first.requests().len(), 1);
}

// ---- time passes

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn an_answer_holds_for_its_lifetime_and_no_longer() {
    let server = numbered(20).await;
    let records = |ttl: u32| {
        format!(
            "local-ttl={ttl}\nhost-record=s.test,127.0.77.20\n{}",
            srv("_sip._udp.test", "s.test", server.addr().port(), 1, 1)
        )
    };
    for (ttl, again) in [(3600, false), (1, true)] {
        let dns = Dnsmasq::start(&records(ttl));
        let counted = Fake::start(Manner::Passes(dns.address(), Duration::ZERO)).await;
        let mut phone = Phone::new(counted.address(), "sip:test;transport=udp").await;
        phone.registered().await;
        // SRV, A, AAAA
        let asked = counted.asked();
        assert!(asked >= 3, "{asked}");
        // All registrations share the answers. Those that hold a second may have to be asked for again.
        if !again {
            let other = phone
                .agent
                .add(account("sip:test;transport=udp", "bob"))
                .await;
            let registered = other.expect("it is taken");
            timeout(PATIENCE, registered.registered())
                .await
                .expect("in time")
                .expect("registered");
        }
        sleep(Duration::from_millis(1500)).await;
        phone.handle.refresh().await.expect("it is there");
        let refreshed = async { while !matches!(*phone.told().await, Event::Refreshed(_)) {} };
        timeout(PATIENCE, refreshed).await.expect("refreshed");
        assert_eq!(counted.asked() > asked, again, "lifetime {ttl}");
    }
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_name_that_gets_another_address_takes_its_registrations_along() {
    let old = numbered(21).await;
    let new = registrar(([127, 0, 77, 22], old.addr().port())).await;
    let mut dns = Dnsmasq::start("host-record=s.test,127.0.77.21,1");
    let uri = format!("sip:s.test:{};transport=udp", old.addr().port());
    let mut phone = Phone::new(dns.address(), &uri).await;
    assert_eq!(phone.registered().await.target.address(), old.addr());
    assert_eq!(phone.refresh().await.target.address(), old.addr());

    dns.change("host-record=s.test,127.0.77.22,1");
    // Every refresh until then works, and there is nothing but refreshes.
    phone.moves_to(new.addr()).await;
    assert!(!new.bindings("sip:alice@example.test").is_empty());
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_server_that_is_withdrawn_is_left_and_one_that_is_added_is_found() {
    let (first, second) = (numbered(23).await, numbered(24).await);
    let one = srv("_sip._udp.test", "a.test", first.addr().port(), 10, 0);
    let two = srv("_sip._udp.test", "b.test", second.addr().port(), 20, 0);
    let hosts = "local-ttl=1\nhost-record=a.test,127.0.77.23\nhost-record=b.test,127.0.77.24\n";
    let mut dns = Dnsmasq::start(&format!("{hosts}{one}{two}"));
    let mut phone = Phone::new(dns.address(), "sip:test;transport=udp").await;
    assert_eq!(phone.registered().await.target.address(), first.addr());

    dns.change(&format!("{hosts}{two}"));
    phone.moves_to(second.addr()).await;
    dns.change(&format!("{hosts}{one}"));
    phone.moves_to(first.addr()).await;
    // With all records gone nothing better is known than who answers.
    dns.change("");
    for _ in 0..2 {
        sleep(Duration::from_millis(1200)).await;
        assert_eq!(phone.refresh().await.target.address(), first.addr());
    }
}

// ---- the name service is the trouble

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_lease_goes_on_while_the_name_service_is_down() {
    let server = numbered(30).await;
    let records = format!(
        "local-ttl=1\nhost-record=s.test,127.0.77.30\n{}",
        srv("_sip._udp.test", "s.test", server.addr().port(), 1, 1)
    );
    let mut dns = Dnsmasq::start(&records);
    let mut phone = Phone::new(dns.address(), "sip:test;transport=udp").await;
    phone.registered().await;
    dns.stop();
    for _ in 0..2 {
        sleep(Duration::from_millis(1200)).await;
        assert_eq!(phone.refresh().await.target.address(), server.addr());
    }
    // Another name cannot be found now, is tried again, and is found when the name service is back.
    let other = phone
        .agent
        .add(account("sip:other.test;transport=udp", "bob"))
        .await;
    let other = other.expect("it is taken");
    assert_matches!(
        &*phone.told().await,
        Event::Rejected {
            failure: Failure::Resolve(ResolveError::Timeout),
            ..
        }
    );
    dns.change(&format!(
        "{records}{}",
        srv("_sip._udp.other.test", "s.test", server.addr().port(), 1, 1)
    ));
    let registered = timeout(PATIENCE, other.registered()).await;
    registered.expect("in time").expect("registered");
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_slow_name_service_delays_nobody_else() {
    let server = numbered(31).await;
    let dns = Dnsmasq::start(&format!(
        "host-record=s.test,127.0.77.31\n{}",
        srv("_sip._udp.test", "s.test", server.addr().port(), 1, 1)
    ));
    let slow = Fake::start(Manner::Passes(dns.address(), Duration::from_millis(400))).await;
    // SRV, then A: 0.8 s
    let mut phone = Phone::new(slow.address(), "sip:test;transport=udp").await;
    let uri = format!("sip:{};transport=udp", server.addr());
    let by_address = phone.agent.add(account(&uri, "bob")).await;
    let by_address = by_address.expect("it is taken");
    let mut order = Vec::new();
    for _ in 0..2 {
        let (id, event) = timeout(PATIENCE, phone.events.next())
            .await
            .expect("in time")
            .expect("the agent lives");
        assert_matches!(*event, Event::Registered(_), "{event}");
        order.push(id);
    }
    assert_eq!(order, [by_address.id(), phone.handle.id()]);
}

#[tokio::test]
async fn what_the_name_service_says_is_told_and_tried_again() {
    for (manner, expected) in [
        (Manner::Code(2), "Failed"),
        (Manner::Code(5), "Failed"),
        (Manner::Code(3), "NoAddress"),
        (Manner::Silent, "Timeout"),
    ] {
        let bad = Fake::start(manner).await;
        let mut phone = Phone::new(bad.address(), "sip:nowhere.test").await;
        let told = phone.told().await;
        let Event::Rejected {
            failure: Failure::Resolve(error),
            retry_in,
            ..
        } = &*told
        else {
            panic!("{manner:?}: {told}")
        };
        let said = match error {
            ResolveError::NoAddress(name) => {
                assert_eq!(**name, *"nowhere.test");
                "NoAddress"
            }
            ResolveError::Failed(_) => "Failed",
            ResolveError::Timeout => "Timeout",
            _ => "something else",
        };
        assert_eq!(said, expected, "{manner:?}");
        assert!(*retry_in >= Duration::from_secs(1), "{retry_in:?}");
        assert_matches!(&*phone.told().await, Event::Rejected { .. }, "{manner:?}");
    }
}
