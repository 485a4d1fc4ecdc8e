//! The transports of a `pjsip.conf` over real sockets: a reload replaces what has changed, and nobody else notices.

use crate::pjsip_files::{Dice, File};
use crate::ports::free_port;
use sip_registration::pjsip_conf::{
    Reloaded, Rule, Running, Step, TransportError, TransportOutcome, Transports, load,
};
use sip_registration::testkit::{RunningServer, TestServer};
use sip_registration::{Agent, FlowError, Protocol, Registrar, Removal};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

/// A program that runs a file: sections in the order of their names, transports first
struct Program {
    server: RunningServer,
    sections: BTreeMap<&'static str, String>,
    agent: Agent,
    transports: Transports,
    running: Running,
}

const WITHIN: Duration = Duration::from_secs(5);

fn file(sections: &BTreeMap<&'static str, String>) -> File {
    let sections = sections.iter();
    File(
        sections
            .map(|(name, text)| format!("[{name}]\n{text}\n"))
            .collect(),
    )
}

impl Program {
    async fn new() -> Self {
        let server = ["alice", "bob", "carol", "dave"]
            .into_iter()
            .fold(TestServer::new(), |server, user| {
                server.user(user, "s3cr3t")
            })
            .serve("127.0.0.1:0")
            .await
            .expect("a server");
        let transport =
            |more: &str, port| format!("type=transport\nbind=127.0.0.1:{port}\n{more}\n");
        let mut sections = BTreeMap::new();
        sections.insert("a-udp", transport("", free_port()));
        sections.insert("b-udp", transport("", free_port()));
        sections.insert("c-tcp", transport("protocol=tcp", free_port()));
        let mut program = Self {
            sections,
            agent: Agent::builder()
                .system_transports()
                .build()
                .await
                .expect("an agent"),
            server,
            transports: Transports::new(),
            running: Running::new(),
        };
        program.account("alice", "");
        program.account("bob", "transport=b-udp");
        program.account("carol", "transport=c-tcp");
        let loaded = load(&file(&program.sections), "pjsip.conf");
        assert_eq!(loaded.diagnostics(), []);
        let files = file(&program.sections);
        let started = program.transports.start(Agent::builder(), &loaded, &files);
        let (agent, told) = started.await.expect("an agent");
        assert!(
            told.values().all(|told| *told == TransportOutcome::Added) && told.len() == 3,
            "{told:?}"
        );
        program.agent = agent;
        let applied = program.running.apply(&program.agent, loaded, WITHIN);
        applied.await.expect("it runs");
        for name in ["alice", "bob", "carol"] {
            program.registered(name).await;
        }
        program
    }

    fn account(&mut self, name: &'static str, more: &str) {
        let transport = match more.contains("tcp") {
            true => "\\;transport=tcp",
            false => "",
        };
        self.sections.insert(
            name,
            format!(
                "type=registration\nserver_uri=sip:{}{transport}\nclient_uri=sip:{name}@example.com\n\
                 contact_user={name}\nmax_random_initial_delay=0\noutbound_auth={name}\n{more}\n\
                 [{name}]\ntype=auth\nusername={name}\npassword=s3cr3t",
                self.server.addr()
            ),
        );
    }

    /// Replaces a line of a section, or adds one.
    fn set(&mut self, section: &'static str, option: &str, value: &str) {
        let text = self.sections.get_mut(section).expect("it is there");
        let start = format!("{option}=");
        let mut lines: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with(&start))
            .collect();
        let new = format!("{option}={value}");
        lines.insert(1, &new);
        *text = lines.join("\n");
    }

    fn port(&self, section: &str) -> u16 {
        let bind = self.sections[section]
            .lines()
            .find_map(|line| line.strip_prefix("bind="));
        let bind: SocketAddr = bind.expect("an address").parse().expect("an address");
        bind.port()
    }

    /// Reloads; the rules that were said, and what came of it.
    async fn reload(&mut self) -> (Vec<Rule>, Reloaded) {
        let files = file(&self.sections);
        let new = self.running.loaded().reload(&files, "pjsip.conf");
        let rules = new
            .diagnostics()
            .iter()
            .map(|said| said.rule.clone())
            .collect();
        let (transports, running) = (&mut self.transports, &mut self.running);
        let applied = transports.apply(&self.agent, running, new, &files, WITHIN);
        (rules, applied.await.expect("it runs"))
    }

    async fn registered(&self, name: &str) {
        let id = self.running.id(name).expect("it runs");
        let handle = self.agent.handle(id).await.expect("it is there");
        let registered = timeout(PATIENCE, handle.registered()).await;
        registered.expect("in time").expect("accepted");
    }

    /// How many REGISTERs of each user there were, once nothing comes any more.
    async fn settled(&self) -> BTreeMap<&'static str, usize> {
        let count = || {
            let requests = self.server.requests();
            ["alice", "bob", "carol", "dave"].map(|name| {
                let to = format!("<sip:{name}@example.com>");
                let of = |text: &[u8]| String::from_utf8_lossy(text).contains(&to);
                (name, requests.iter().filter(|one| of(&one.message)).count())
            })
        };
        let mut before = count();
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = count();
            if now == before {
                return now.into();
            }
            before = now;
        }
    }

    /// The one Contact of a user.
    fn contact(&self, name: &str) -> String {
        let bindings = self.server.bindings(&format!("sip:{name}@example.com"));
        assert_eq!(bindings.len(), 1, "{name}: {bindings:?}");
        bindings[0].contact.clone()
    }
}

/// Who has sent something.
fn more(
    before: &BTreeMap<&'static str, usize>,
    after: &BTreeMap<&'static str, usize>,
) -> Vec<&'static str> {
    let grown = after.iter().filter(|(name, count)| before[*name] < **count);
    grown.map(|(name, _)| *name).collect()
}

fn only(name: &str, outcome: TransportOutcome) -> BTreeMap<std::sync::Arc<str>, TransportOutcome> {
    BTreeMap::from([(name.into(), outcome)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_replaces_the_transports_that_changed_and_nobody_else_sends_anything() {
    let mut program = Program::new().await;
    let mut before = program.settled().await;
    let (said, reloaded) = program.reload().await;
    assert_eq!((said, reloaded.to_string()), (Vec::new(), String::new()));
    assert_eq!(program.settled().await, before);

    // Asterisk keeps it unless it says so.
    let old = program.port("b-udp");
    let new = free_port();
    program.set("b-udp", "bind", &format!("127.0.0.1:{new}"));
    let (said, reloaded) = program.reload().await;
    assert_eq!(said, [Rule::NotReloadable]);
    assert!(reloaded.transports.is_empty() && !reloaded.applied.plan.transports_changed);
    assert_eq!(program.settled().await, before);
    assert_eq!(program.contact("bob"), format!("sip:bob@127.0.0.1:{old}"));

    program.set("b-udp", "allow_reload", "yes");
    let (said, reloaded) = program.reload().await;
    assert_eq!(said, []);
    assert_eq!(
        reloaded.transports,
        only("b-udp", TransportOutcome::Replaced)
    );
    let mut after = program.settled().await;
    assert_eq!(more(&before, &after), ["bob"]);
    // The old Contact went with the new one.
    assert_eq!(program.contact("bob"), format!("sip:bob@127.0.0.1:{new}"));
    UdpSocket::bind(("127.0.0.1", old)).expect("the old socket is closed");
    before = after;

    // On the same port, and with a listener.
    program.set("b-udp", "tos", "cs3");
    program.set("c-tcp", "tos", "cs3");
    program.set("c-tcp", "allow_reload", "yes");
    let listener = program.port("c-tcp");
    let (said, reloaded) = program.reload().await;
    assert_eq!(said, []);
    assert_eq!(
        reloaded.to_string(),
        "transport b-udp: replaced\ntransport c-tcp: replaced\n"
    );
    after = program.settled().await;
    assert_eq!(more(&before, &after), ["bob", "carol"]);
    assert_eq!(program.contact("bob"), format!("sip:bob@127.0.0.1:{new}"));
    assert_eq!(
        program.contact("carol"),
        format!("sip:carol@127.0.0.1:{listener};transport=TCP")
    );
    tokio::net::TcpStream::connect(("127.0.0.1", listener))
        .await
        .expect("it listens on");
    before = after;

    // What is advertised may change at any time.
    program.set("a-udp", "external_signaling_address", "pbx.example.com");
    let (said, reloaded) = program.reload().await;
    assert_eq!(said, []);
    assert_eq!(
        reloaded.transports,
        only("a-udp", TransportOutcome::Replaced)
    );
    after = program.settled().await;
    assert_eq!(more(&before, &after), ["alice"]);
    let port = program.port("a-udp");
    assert_eq!(
        program.contact("alice"),
        format!("sip:alice@pbx.example.com:{port}")
    );
    program.agent.shutdown(WITHIN).await;
    program.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_bound_is_told_and_the_old_one_goes_on() {
    let mut program = Program::new().await;
    let before = program.settled().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken_udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let good = program.port("b-udp");
    for (name, address) in [
        ("b-udp", taken_udp.local_addr()),
        ("c-tcp", taken.local_addr()),
    ] {
        program.set(name, "allow_reload", "yes");
        program.set(name, "bind", &address.expect("bound").to_string());
    }
    program.sections.insert(
        "d-udp",
        format!(
            "type=transport\nbind={}\n",
            taken_udp.local_addr().expect("bound")
        ),
    );
    program.sections.insert(
        "e-tls",
        "type=transport\nprotocol=tls\nbind=127.0.0.1\nverify_server=yes\nca_list_file=absent.pem\n".to_owned(),
    );
    let (_, reloaded) = program.reload().await;
    let in_use = |error: &TransportError| {
        matches!(
            error,
            TransportError::Flow(FlowError::Setting { option: "bind", .. })
        )
    };
    let outcomes: Vec<_> = reloaded.transports.iter().collect();
    let [(_, b), (_, c), (_, d), (_, e)] = outcomes[..] else {
        panic!("{reloaded}")
    };
    assert!(
        matches!(b, TransportOutcome::Kept(error) if in_use(error)),
        "{b}"
    );
    assert!(
        matches!(c, TransportOutcome::Kept(error) if in_use(error)),
        "{c}"
    );
    assert!(
        matches!(d, TransportOutcome::Missing(error) if in_use(error)),
        "{d}"
    );
    assert!(matches!(e, TransportOutcome::Missing(_)), "{e}");
    assert!(e.to_string().contains("absent.pem"), "{e}");
    assert!(
        reloaded
            .to_string()
            .starts_with("transport b-udp: kept, as the new version cannot be made: ")
    );
    assert_eq!(program.settled().await, before);
    assert_eq!(program.contact("bob"), format!("sip:bob@127.0.0.1:{good}"));
    for name in ["bob", "carol"] {
        let id = program.running.id(name).expect("it runs");
        program.agent.refresh(id).await.expect("it is there");
    }
    assert_eq!(more(&before, &program.settled().await), ["bob", "carol"]);

    // The next reload tries again.
    drop(taken_udp);
    let (_, reloaded) = program.reload().await;
    assert_eq!(
        reloaded.transports.get("b-udp"),
        Some(&TransportOutcome::Replaced)
    );
    program.agent.shutdown(WITHIN).await;
    program.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transports_come_with_their_registrations_and_go_after_them() {
    let mut program = Program::new().await;
    let before = program.settled().await;
    let port = free_port();
    program
        .sections
        .insert("d-udp", format!("type=transport\nbind=127.0.0.1:{port}\n"));
    program.account("dave", "transport=d-udp");
    let (said, reloaded) = program.reload().await;
    assert_eq!(said, []);
    assert_eq!(
        reloaded.to_string(),
        "transport d-udp: added\ndave: added\n"
    );
    program.registered("dave").await;
    assert_eq!(
        program.contact("dave"),
        format!("sip:dave@127.0.0.1:{port}")
    );
    assert_eq!(more(&before, &program.settled().await), ["dave"]);

    // Both are gone: the un-REGISTER still goes out on it.
    program.sections.remove("d-udp");
    program.sections.remove("dave");
    let (_, reloaded) = program.reload().await;
    assert_eq!(
        reloaded.transports,
        only("d-udp", TransportOutcome::Removed)
    );
    assert_eq!(
        reloaded.applied.removed.get("dave"),
        Some(&Removal::Removed)
    );
    let requests = program.server.requests();
    let last = requests.last().expect("there were some");
    assert_eq!((last.source.port(), last.protocol), (port, Protocol::Udp));
    let before = program.settled().await;
    UdpSocket::bind(("127.0.0.1", port)).expect("it is closed");

    // A section under another name with the same address, and what names it moves there.
    let b = program.sections.remove("b-udp").expect("it is there");
    program.sections.insert("f-udp", b);
    program.account("bob", "transport=f-udp");
    let (said, reloaded) = program.reload().await;
    assert_eq!(said, []);
    assert_eq!(
        reloaded.to_string(),
        "transport b-udp: removed\ntransport f-udp: added\nbob: replaced\n"
    );
    // The REGISTER follows the un-REGISTER after the reference's second.
    sleep(Duration::from_millis(1500)).await;
    let after = program.settled().await;
    assert_eq!(more(&before, &after), ["bob"]);
    let port = program.port("f-udp");
    assert_eq!(program.contact("bob"), format!("sip:bob@127.0.0.1:{port}"));

    // The new version of its registration is refused: it is still needed.
    let c = program.sections.remove("c-tcp").expect("it is there");
    let (_, reloaded) = program.reload().await;
    assert_eq!(reloaded.transports, only("c-tcp", TransportOutcome::InUse));
    assert_eq!(program.settled().await, after);
    let id = program.running.id("carol").expect("it runs");
    program.agent.refresh(id).await.expect("it is there");
    assert_eq!(more(&after, &program.settled().await), ["carol"]);
    program.sections.insert("c-tcp", c);
    let (said, reloaded) = program.reload().await;
    assert_eq!((said, reloaded.to_string()), (Vec::new(), String::new()));
    program.agent.shutdown(WITHIN).await;
    program.server.stop().await;
}

/// The port in the one Contact of each user that is bound, once that is as wanted; what it is after a while where it
/// never is.
async fn ports(
    program: &Program,
    wanted: &BTreeMap<&'static str, u16>,
) -> BTreeMap<&'static str, u16> {
    let pause = Duration::from_millis(200);
    let mut found = BTreeMap::new();
    for _ in 0..50 {
        found.clear();
        for name in ["alice", "bob", "carol", "dave"] {
            let bindings = program.server.bindings(&format!("sip:{name}@example.com"));
            for binding in bindings {
                let port = binding.contact.split([':', ';']).nth(2);
                let port = port.and_then(|port| port.parse().ok()).unwrap_or_default();
                // A second one would be found by its being wrong.
                let wrong = found.insert(name, port).is_some();
                found.extend(wrong.then_some((name, 0)));
            }
        }
        if found == *wanted {
            break;
        }
        sleep(pause).await;
    }
    found
}

/// `SEED=n` walks another way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transports_accounts_and_commands_that_change_together_end_as_the_last_of_each_says() {
    let mut program = Program::new().await;
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut dice = Dice::new(seed.unwrap_or(1));
    for transport in ["a-udp", "b-udp", "c-tcp"] {
        program.set(transport, "allow_reload", "yes");
    }
    program.account("dave", "transport=d-udp");
    program.reload().await;
    program.registered("dave").await;
    // Whom the operator has switched off.
    let mut off = false;
    let mut before = program.settled().await;
    for round in 0..14 {
        let there = program.sections.contains_key("d-udp");
        let (mut changed, mut loud) = (Vec::new(), Vec::new());
        for _ in 0..=dice.below(2) {
            match dice.below(5) {
                0 | 1 => {
                    let name = ["a-udp", "b-udp", "c-tcp"][dice.index(3)];
                    program.set(name, "bind", &format!("127.0.0.1:{}", free_port()));
                    changed.push(name);
                }
                2 => {
                    match there {
                        true => drop(program.sections.remove("d-udp")),
                        false => {
                            let text = format!("type=transport\nbind=127.0.0.1:{}", free_port());
                            program.sections.insert("d-udp", text);
                        }
                    }
                    changed.push("d-udp");
                }
                3 => {
                    program.set("bob", "expiration", &(600 + dice.below(900)).to_string());
                    loud.push("bob");
                }
                _ => {
                    let id = program.running.id("dave").expect("it runs");
                    off = !off;
                    let asked = match off {
                        true => program.agent.unregister(id).await.map(drop),
                        false => program.agent.refresh(id).await,
                    };
                    asked.expect("taken");
                    loud.push("dave");
                }
            }
        }
        let (_, reloaded) = program.reload().await;
        let what = format!("round {round}, {changed:?}, {loud:?}, off: {off}\n{reloaded}");
        let own = match program.sections.contains_key("d-udp") {
            true => "d-udp",
            false => "a-udp",
        };
        // Who rode on what has changed; a section that names another transport than before registers anew.
        for (name, transport) in [("alice", "a-udp"), ("bob", "b-udp"), ("carol", "c-tcp")] {
            loud.extend(changed.contains(&transport).then_some(name));
        }
        if changed.iter().any(|name| ["a-udp", "d-udp"].contains(name)) {
            loud.push("dave");
        }
        let step = reloaded.applied.plan.steps.get("dave");
        // A changed section registers, also one that was switched off.
        if matches!(step, Some(Step::Registers | Step::Replaces)) {
            off = false;
        }
        let mut wanted = BTreeMap::from([
            ("alice", program.port("a-udp")),
            ("bob", program.port("b-udp")),
            ("carol", program.port("c-tcp")),
        ]);
        wanted.extend((!off).then(|| ("dave", program.port(own))));
        assert_eq!(ports(&program, &wanted).await, wanted, "{what}");
        let after = program.settled().await;
        let sent = more(&before, &after);
        assert!(
            sent.iter().all(|name| loud.contains(name)),
            "{what}{sent:?}"
        );
        before = after;
    }
    program.agent.shutdown(WITHIN).await;
    program.server.stop().await;
}

/// The usual file of a host with both families: a transport for each, on one port. A registration that names none uses the
/// one of its registrar's family.
#[tokio::test]
async fn transports_of_both_families_have_one_port_and_each_serves_its_own() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return; // a machine without IPv6
    }
    for swapped in [false, true] {
        let mut servers = Vec::new();
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let server = ["udp0", "udp1", "tcp0", "tcp1"]
                .into_iter()
                .fold(TestServer::new(), |server, user| {
                    server.user(user, "s3cr3t")
                })
                .serve(at)
                .await;
            servers.push(server.expect("a server"));
        }
        let port = free_port();
        let (v4, v6) = (format!("0.0.0.0:{port}"), format!("[::]:{port}"));
        let (first, second) = if swapped { (&v6, &v4) } else { (&v4, &v6) };
        let mut text = String::new();
        for protocol in ["udp", "tcp"] {
            for (nth, bind) in [first, second].into_iter().enumerate() {
                text += &format!(
                    "[{protocol}{nth}]\ntype=transport\nprotocol={protocol}\nbind={bind}\n"
                );
            }
            for (nth, server) in servers.iter().enumerate() {
                let address = server.addr();
                text += &format!(
                    "[{protocol}-at-{nth}]\ntype=registration\nserver_uri=sip:{address}\\;transport={protocol}\n\
                     client_uri=sip:{protocol}{nth}@example.com\nmax_random_initial_delay=0\noutbound_auth={protocol}{nth}\n\
                     [{protocol}{nth}]\ntype=auth\nusername={protocol}{nth}\npassword=s3cr3t\n"
                );
            }
        }
        let files = File(text);
        let loaded = load(&files, "pjsip.conf");
        assert!(!loaded.has_errors(), "{loaded}");
        let (mut transports, mut running) = (Transports::new(), Running::new());
        let started = transports.start(Agent::builder(), &loaded, &files).await;
        let (agent, outcomes) = started.expect("an agent");
        let added = |outcome: &TransportOutcome| *outcome == TransportOutcome::Added;
        assert!(outcomes.values().all(added), "{outcomes:?}");
        running.apply(&agent, loaded, WITHIN).await.expect("taken");
        for protocol in ["udp", "tcp"] {
            for (nth, server) in servers.iter().enumerate() {
                let aor = format!("sip:{protocol}{nth}@example.com");
                let bound = async {
                    loop {
                        if let [binding] = &server.bindings(&aor)[..] {
                            break binding.contact.clone();
                        }
                        sleep(Duration::from_millis(20)).await;
                    }
                };
                let contact = timeout(PATIENCE, bound).await.expect("it registers");
                let host = ["127.0.0.1", "[::1]"][nth];
                assert!(contact.contains(&format!("@{host}:{port}")), "{contact}");
            }
        }
        agent.shutdown(WITHIN).await;
        for server in servers {
            server.stop().await;
        }
    }
}
