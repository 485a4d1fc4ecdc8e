//! Calls that arrive: by way of Kamailio to the example `softphone`, from SIPp, sipsak and baresip; and whose call it is
//!
//! The Request-URI that arrives is compared with what Kamailio has bound, so that nothing of it was lost on the way.

use crate::caller::Caller;
use crate::lab::Lab;
use sip_registration::{
    Agent, Credentials, Event, InboundMessage, Messages, Registration, RegistrationBuilder,
    RegistrationHandle, RegistrationId, Warning,
};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// How long anything may take
const PATIENCE: Duration = Duration::from_secs(20);

/// Over what the softphone registers, and whether by way of an edge proxy
#[derive(Debug, Clone, Copy)]
struct Way {
    transport: &'static str,
    edge: bool,
}

impl Way {
    /// The port of the registrar or the proxy.
    fn port(self) -> u16 {
        let lab = match self.edge {
            true => Lab::edge(),
            false => Lab::registrar(&[]),
        };
        let offset = match (self.transport, self.edge) {
            ("tls", _) | ("wss", true) => 1,
            ("ws", _) => 6,
            ("wss", false) => 7,
            _ => 0,
        };
        lab.port() + offset
    }

    fn user(self, what: &str) -> String {
        let by = if self.edge { "edge" } else { "registrar" };
        format!("alice-{what}-{}-{by}", self.transport)
    }

    /// The flags of the softphone: by way of the proxy as an outbound flow, with a GRUU.
    fn flags(self, user: &str, folder: &Path) -> Vec<String> {
        let (port, transport) = (self.port(), self.transport);
        let mut flags = vec!["--aor".to_owned(), format!("sip:{user}@registrar.test")];
        let mut say = |texts: &[&str]| flags.extend(texts.iter().map(ToString::to_string));
        if self.edge {
            let proxy = format!("sip:127.0.0.1:{port};transport={transport};lr");
            let instance = folder.join("instance");
            say(&["--server", "sip:registrar.test", "--proxy", &proxy]);
            say(&["--instance", &instance.to_string_lossy()]);
            say(&["--outbound", "--gruu"]);
        } else {
            let server = format!("sip:127.0.0.1:{port}");
            say(&["--server", &server, "--transport", transport]);
        }
        if matches!(transport, "tls" | "wss") {
            let lab = if self.edge {
                Lab::edge()
            } else {
                Lab::registrar(&[])
            };
            let authority = folder.join("ca.pem");
            std::fs::write(&authority, lab.pem("ca.pem")).expect("written");
            say(&["--ca", &authority.to_string_lossy()]);
        }
        flags
    }
}

/// A folder of a test's own, which goes with it
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("calls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The example, registered
struct Softphone {
    user: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    read: String,
}

impl Softphone {
    async fn start(user: &str, flags: &[String]) -> Self {
        // Beside the test's own binary, where `cargo test` puts examples.
        let own = std::env::current_exe().expect("a path");
        let target = own.ancestors().nth(2).expect("a target directory");
        let mut child = Command::new(target.join("examples/softphone"))
            .args(flags)
            .env("SIP_PASSWORD", "secret")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the example is built");
        let output = child.stdout.take().expect("piped");
        let mut phone = Self {
            user: user.into(),
            child,
            lines: BufReader::new(output).lines(),
            read: String::new(),
        };
        phone.until(" registered ").await;
        phone
    }

    /// Reads until a line has the text.
    async fn until(&mut self, text: &str) -> String {
        let found = timeout(PATIENCE, async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                self.read.push_str(&line);
                self.read.push('\n');
                if line.contains(text) {
                    return Some(line);
                }
            }
            None
        });
        let found = found.await.ok().flatten();
        found.unwrap_or_else(|| panic!("no {text:?} in\n{}", self.read))
    }

    /// These requests arrived one after the other and nothing else, with the URI that is bound, and belong to the account.
    async fn got(&mut self, methods: &[&str], account: &str, endpoint: &str) {
        let bindings = Lab::registrar(&[]).bindings(&self.user).await;
        let [bound] = &bindings[..] else {
            panic!("not one binding: {bindings:?}");
        };
        assert!(bound.uri.contains(";line="), "{bound:?}");
        for method in methods {
            let line = self.until(" from ").await;
            let starts = format!("{method} {} of ", bound.uri);
            let ends = format!(": registration {account}, endpoint {endpoint}");
            assert!(
                line.starts_with(&starts) && line.ends_with(&ends),
                "{line:?} is not {starts:?}…{ends:?}"
            );
        }
    }

    /// Ctrl-C, which un-registers.
    async fn ends(mut self) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().await;
        assert!(sent.expect("kill").success());
        self.until(" binding removed").await;
        let ended = timeout(PATIENCE, self.child.wait()).await;
        assert!(ended.expect("in time").expect("it ran").success());
        assert_eq!(Lab::registrar(&[]).bindings(&self.user).await, []);
    }
}

/// SIPp plays a scenario of `tests/data/sipp` to a user, by way of the registrar.
async fn sipp(scenario: &str, user: &str, folder: &Path) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/sipp")
        .join(format!("{scenario}.xml"));
    let run = Command::new("sipp")
        .arg("-sf")
        .arg(file)
        .args(["-s", user, "-m", "1", "-nostdin", "-i", "127.0.0.1"])
        .args(["-p", &free_port().to_string()])
        .args(["-timeout", "18s", "-timeout_error", "-max_socket", "16"])
        .arg(format!("127.0.0.1:{}", Lab::registrar(&[]).port()))
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.expect("sipp ends");
    let output = output.expect("sipp runs (package sip-tester)");
    assert!(
        output.status.success(),
        "{scenario}: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
}

/// sipsak asks a user by way of the registrar what it can do, and says what it was answered.
async fn sipsak(user: &str) {
    let run = Command::new("sipsak")
        .arg("-s")
        .arg(format!(
            "sip:{user}@127.0.0.1:{}",
            Lab::registrar(&[]).port()
        ))
        .arg("-v")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.expect("sipsak ends");
    let output = output.expect("sipsak runs (package sipsak)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("200 OK"), "{said}");
}

/// baresip calls a user by way of the registrar for three seconds; its trace.
async fn baresip(user: &str, folder: &Path) -> String {
    let sound = folder.join("sound.wav");
    let config = format!(
        "sip_listen 127.0.0.1:0\nmodule_path /usr/lib/baresip/modules\nmodule g711.so\nmodule aufile.so\n\
         module ausine.so\nmodule_tmp uuid.so\nmodule_tmp account.so\nmodule_app menu.so\nmodule_app contact.so\n\
         net_interface 127.0.0.1\naudio_source ausine,440\naudio_player aufile,{0}\naudio_alert aufile,{0}\n",
        sound.display()
    );
    let account = format!(
        "<sip:caller@registrar.test;transport=udp>;regint=0;outbound=\"sip:127.0.0.1:{};transport=udp\"\n",
        Lab::registrar(&[]).port()
    );
    for (name, text) in [
        ("config", config),
        ("accounts", account),
        ("contacts", String::new()),
    ] {
        std::fs::write(folder.join(name), text).expect("written");
    }
    let run = Command::new("baresip")
        .args(["-4", "-s", "-t", "3", "-f"])
        .arg(folder)
        .args(["-e", &format!("/dial sip:{user}@registrar.test")])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.expect("baresip ends");
    let output = output.expect("baresip runs (package baresip-core)");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// One below the ephemeral ports, that nobody has over UDP
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 500) as u16 * 2;
    (0..1000)
        .map(|_| 19_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 1000)
        .find(|port| std::net::UdpSocket::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

async fn are_refused(way: Way) {
    let user = way.user("refused");
    let folder = Folder::new(&user);
    let mut phone = Softphone::start(&user, &way.flags(&user, &folder.0)).await;
    let aor = format!("sip:{user}@registrar.test");
    sipp("call_refused", &user, &folder.0).await;
    // A proxy acknowledges what is no 2xx itself.
    phone
        .got(&["MESSAGE", "OPTIONS", "INVITE", "ACK"], &aor, "softphone")
        .await;
    sipsak(&user).await;
    phone.got(&["OPTIONS"], &aor, "softphone").await;
    let trace = baresip(&user, &folder.0).await;
    assert!(trace.contains("session closed: 486 Busy Here"), "{trace}");
    phone.got(&["INVITE", "ACK"], &aor, "softphone").await;
    phone.ends().await;
}

async fn are_taken(way: Way) {
    let user = way.user("taken");
    let folder = Folder::new(&user);
    let mut flags = way.flags(&user, &folder.0);
    flags.push("--answer".into());
    let mut phone = Softphone::start(&user, &flags).await;
    let aor = format!("sip:{user}@registrar.test");
    // What is sent in the dialog comes by the Contact of our 200: the GRUU, or the flow's.
    sipp("call_taken", &user, &folder.0).await;
    phone
        .got(&["INVITE", "ACK", "BYE"], &aor, "softphone")
        .await;
    let trace = baresip(&user, &folder.0).await;
    assert!(trace.contains("Call established: "), "{trace}");
    assert!(trace.contains("terminated (duration: "), "{trace}");
    if way.edge {
        let gruu = format!("Contact: <{aor};gr=urn:uuid:");
        assert!(trace.contains(&gruu), "no {gruu:?} in {trace}");
    }
    phone
        .got(&["INVITE", "ACK", "BYE"], &aor, "softphone")
        .await;
    phone.ends().await;
}

macro_rules! ways {
    ($($name:ident $transport:literal $edge:literal;)*) => {$(
        mod $name {
            const WAY: super::Way = super::Way { transport: $transport, edge: $edge };

            #[tokio::test]
            #[ignore = "needs Kamailio, SIPp, sipsak, baresip and the example softphone; .ci/run runs it"]
            async fn are_refused() {
                super::are_refused(WAY).await;
            }

            #[tokio::test]
            #[ignore = "needs Kamailio, SIPp, baresip and the example softphone; .ci/run runs it"]
            async fn are_taken() {
                super::are_taken(WAY).await;
            }
        }
    )*};
}

ways! {
    over_udp "udp" false;
    over_tcp "tcp" false;
    over_tls "tls" false;
    over_ws "ws" false;
    over_wss "wss" false;
    by_an_edge_over_udp "udp" true;
    by_an_edge_over_tcp "tcp" true;
    by_an_edge_over_tls "tls" true;
    by_an_edge_over_ws "ws" true;
    by_an_edge_over_wss "wss" true;
}

#[tokio::test]
#[ignore = "needs Kamailio, SIPp and the example softphone; .ci/run runs it"]
async fn accounts_of_a_file_are_told_apart() {
    let (alice, bob) = ("alice-in-a-file", "bob-in-a-file");
    let folder = Folder::new("file");
    let mut text = format!("[udp]\ntype=transport\nbind=127.0.0.1:{}\n", free_port());
    for user in [alice, bob] {
        text.push_str(&format!(
            "[{user}]\ntype=registration\nserver_uri=sip:127.0.0.1:{}\nclient_uri=sip:{user}@registrar.test\n\
             contact_user={user}\noutbound_auth=auth-{user}\nmax_random_initial_delay=0\nline=yes\nendpoint=of-{user}\n\
             [auth-{user}]\ntype=auth\nusername={user}\npassword=secret\n",
            Lab::registrar(&[]).port()
        ));
    }
    let config = folder.0.join("pjsip.conf");
    std::fs::write(&config, text).expect("written");
    let flags = ["--config".into(), config.to_string_lossy().into_owned()];
    let mut phone = Softphone::start(alice, &flags).await;
    phone.until(" registered ").await;
    for user in [bob, alice] {
        sipp("call_refused", user, &folder.0).await;
        phone.user = user.into();
        let endpoint = format!("of-{user}");
        phone
            .got(&["MESSAGE", "OPTIONS", "INVITE", "ACK"], user, &endpoint)
            .await;
    }
    phone.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio, SIPp, baresip and the example softphone; .ci/run runs it"]
async fn calls_are_taken_by_either_of_two_edges() {
    let (lab, user) = (Lab::registrar(&[]), "alice-two-edges");
    let folder = Folder::new(user);
    let edges = [lab.own_edge(&[]), lab.own_edge(&[])];
    let [first, second] =
        edges.map(|edge| format!("sip:127.0.0.1:{};transport=tcp;lr", edge.port()));
    let instance = folder.0.join("instance").to_string_lossy().into_owned();
    let aor = format!("sip:{user}@registrar.test");
    let flags = [
        "--server",
        "sip:registrar.test",
        "--aor",
        &aor,
        "--proxy",
        &first,
        "--flow",
        &second,
        "--instance",
        &instance,
        "--gruu",
        "--answer",
    ]
    .map(String::from);
    let mut phone = Softphone::start(user, &flags).await;
    phone.until(" flow 2: registered ").await;

    // The youngest first, then the other one, when the edge of that is dead.
    for edge in [1, 0] {
        sipp("call_taken", user, &folder.0).await;
        let source = format!(" from 127.0.0.1:{} on flow ", edges[edge].port());
        for method in ["INVITE ", "ACK ", "BYE "] {
            let line = phone.until(" from ").await;
            assert!(line.starts_with(method) && line.contains(&source), "{line}");
        }
        edges[edge].stop();
        phone.until("connection lost: ").await;
    }
}

// ---- whose call it is

/// One agent with one UDP socket, and the accounts on it
struct Office {
    agent: Agent,
    messages: Messages,
}

impl Office {
    async fn new() -> Self {
        let agent = Agent::builder().system_transports().build().await;
        let agent = agent.expect("an agent");
        let messages = agent.messages();
        Self { agent, messages }
    }

    async fn add(&self, account: RegistrationBuilder) -> RegistrationHandle {
        let account = account.build().expect("a good configuration");
        let handle = self.agent.add(account).await.expect("a registration");
        let registered = timeout(PATIENCE, handle.registered()).await;
        registered.expect("in time").expect("registered");
        handle
    }

    /// Somebody writes to a user at a registrar, and it is answered; whose it was, and what came.
    async fn written(&mut self, lab: &Lab, user: &str) -> (Option<RegistrationId>, InboundMessage) {
        let caller = Caller::of(lab).await;
        let aor = format!("sip:{user}@registrar.test");
        let (code, message) = tokio::join!(caller.asks("MESSAGE", &aor, &aor), self.next());
        assert_eq!(code, 200);
        let whose = message.registration.as_ref();
        (whose.map(|found| found.registration), message)
    }

    async fn next(&mut self) -> InboundMessage {
        let message = timeout(PATIENCE, self.messages.next()).await;
        let message = message.expect("in time").expect("a message");
        let response = message.response(200).expect("a response");
        self.agent.answer(&message, response.build());
        message
    }
}

fn account(lab: &Lab, user: &str) -> RegistrationBuilder {
    Registration::builder(
        format!("sip:127.0.0.1:{};transport=udp", lab.port()),
        format!("sip:{user}@registrar.test"),
    )
    .contact_user(user)
    .outbound_auth(Credentials::password(user, "secret"))
    .max_random_initial_delay(Duration::ZERO)
}

fn with_line(account: RegistrationBuilder) -> RegistrationBuilder {
    account.line(true).endpoint("phone")
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn two_accounts_on_one_socket_get_their_own_calls() {
    let lab = Lab::registrar(&[]);
    for (line, users) in [
        (true, ["alice-socket-line", "bob-socket-line"]),
        (false, ["alice-socket", "bob-socket"]),
    ] {
        let mut office = Office::new().await;
        let mut handles = Vec::new();
        for user in users {
            let account = account(lab, user);
            let account = if line { with_line(account) } else { account };
            handles.push(office.add(account).await);
        }
        for round in [1, 0, 0, 1] {
            let (whose, _) = office.written(lab, users[round]).await;
            assert_eq!(whose, Some(handles[round].id()), "{}", users[round]);
        }
        let flows = [handles[0].flows().await, handles[1].flows().await];
        let local = flows.map(|flows| flows[0].info().local());
        assert_eq!(local[0], local[1], "one socket");
        office.agent.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn one_address_of_record_at_two_providers_gets_no_call_of_the_other() {
    let labs = [Lab::registrar(&[]), Lab::registrar(&["MAX_EXPIRES=120"])];
    for (line, user) in [(true, "alice-twice-line"), (false, "alice-twice")] {
        let mut office = Office::new().await;
        let mut handles = Vec::new();
        for lab in labs {
            let account = account(lab, user);
            let account = if line { with_line(account) } else { account };
            handles.push(office.add(account).await);
        }
        for round in [1, 0, 0, 1] {
            let (whose, message) = office.written(labs[round], user).await;
            assert_eq!(message.source.port(), labs[round].port());
            // Without the token both have the same Contact, and the flow tells.
            assert_eq!(whose, Some(handles[round].id()), "{message:?}");
        }
        office.agent.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrations_that_collide_get_a_call_each_by_the_token_and_none_without() {
    let lab = Lab::registrar(&[]);
    // The same Contact: one binding, and nobody can say whose the call is.
    let user = "alice-collides";
    let mut office = Office::new().await;
    let mut events = office.agent.events();
    let one = office.add(account(lab, user)).await;
    let two = office.add(account(lab, user)).await;
    let warned = timeout(PATIENCE, async {
        loop {
            let (id, event) = events.next().await.expect("the agent lives");
            if let Event::Warning(Warning::SameBinding(with)) = &*event {
                return (id, *with);
            }
        }
    });
    assert_eq!(warned.await.expect("a warning"), (two.id(), one.id()));
    assert_eq!(lab.bindings(user).await.len(), 1);
    let (whose, message) = office.written(lab, user).await;
    assert_eq!(whose, None);
    let candidates = message.candidates().iter();
    let candidates: Vec<_> = candidates.map(|found| found.registration).collect();
    assert_eq!(candidates, [one.id(), two.id()]);
    office.agent.shutdown(PATIENCE).await;

    // Two bindings, which the registrar calls both.
    let user = "alice-forks";
    let mut office = Office::new().await;
    let one = office.add(with_line(account(lab, user))).await;
    let two = office.add(with_line(account(lab, user))).await;
    assert_eq!(lab.bindings(user).await.len(), 2);
    let (first, message) = office.written(lab, user).await;
    let second = office.next().await;
    assert_ne!(
        message.request().expect("a request").uri(),
        second.request().expect("a request").uri()
    );
    let second = second.registration.map(|found| found.registration);
    let mut whose = [first, second];
    whose.sort();
    assert_eq!(whose, [Some(one.id()), Some(two.id())]);
    office.agent.shutdown(PATIENCE).await;
}
