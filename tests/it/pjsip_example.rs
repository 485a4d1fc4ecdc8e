//! The example `pjsip_conf` as somebody uses it: a file, a registrar, commands, signals.

use crate::ports::free_port;
use sip_registration::testkit::{Fault, TestServer};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Beside the test's own binary, where `cargo test` puts examples.
pub(crate) fn example() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let target = own.ancestors().nth(2).expect("a target directory");
    target.join("examples/pjsip_conf")
}

/// A directory with a `pjsip.conf`; it goes with this value
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pjsip-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn add(&self, name: &str, content: &str) {
        fs::write(self.0.join(name), content).expect("written");
    }

    pub(crate) fn write(&self, text: &str) -> PathBuf {
        self.add("pjsip.conf", text);
        self.0.join("pjsip.conf")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn free() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// The example at work; it ends with this value
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    patience: Duration,
}

impl Program {
    pub(crate) fn start(config: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(example())
            .arg("--config")
            .arg(config)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the example is built");
        let output = child.stdout.take().expect("piped");
        Self {
            input: child.stdin.take(),
            child,
            lines: BufReader::new(output).lines(),
            patience: PATIENCE,
        }
    }

    /// Lines are waited for so long.
    pub(crate) const fn within(&mut self, patience: Duration) -> &mut Self {
        self.patience = patience;
        self
    }

    /// Reads until a line has the text.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut found = self.until_all(&[text]).await;
        found.pop().unwrap_or_default()
    }

    /// Reads until there was a line with each of the texts, in any order; the lines, in the order of the texts.
    pub(crate) async fn until_all(&mut self, texts: &[&str]) -> Vec<String> {
        let mut found = vec![None; texts.len()];
        let mut read = String::new();
        let reading = timeout(self.patience, async {
            while found.contains(&None) {
                let Some(line) = self.lines.next_line().await.expect("text") else {
                    return;
                };
                read.push_str(&line);
                read.push('\n');
                for (found, text) in found.iter_mut().zip(texts) {
                    if found.is_none() && line.contains(text) {
                        *found = Some(line.clone());
                    }
                }
            }
        });
        let _ = reading.await;
        let missing: Vec<_> = texts
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .collect();
        assert!(missing.is_empty(), "no {missing:?} in\n{read}");
        found.into_iter().flatten().collect()
    }

    pub(crate) async fn command(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the input is open");
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("written");
    }

    /// Ends its standard input.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }

    pub(crate) async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(id)
            .status()
            .await
            .expect("kill");
        assert!(sent.success());
    }

    /// The exit code, once it has ended by itself.
    pub(crate) async fn ended(&mut self, within: Duration) -> Option<i32> {
        let status = timeout(within, self.child.wait());
        let status = status.await.expect("it ends").expect("waited for");
        status.code()
    }
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn a_file_is_registered_shown_matched_reloaded_and_un_registered() {
    let server = TestServer::new()
        .user("alice", "s3cr3t")
        .user("bob", "s3cr3t")
        .serve("127.0.0.1:0")
        .await
        .expect("a server");
    let free = free();
    let directory = Directory::new("example");
    let base = format!(
        "[udp]\ntype=transport\nbind={free}\n[account](!)\ntype=registration\nserver_uri=sip:{}\n\
         max_random_initial_delay=0\nline=yes\n[alice]\ntype=auth\nusername=alice\npassword=s3cr3t\n\
         [bob]\ntype=auth\nusername=bob\npassword=s3cr3t\n#include accounts.conf\n",
        server.addr()
    );
    let account = |name: &str| {
        format!(
            "[{name}](account)\nclient_uri=sip:{name}@example.com\noutbound_auth={name}\nendpoint=of-{name}\n"
        )
    };
    directory.add("accounts.conf", &(account("alice") + &account("bob")));
    let config = directory.write(&base);

    let mut program = Program::start(&config, &[]);
    program.until("2 registration(s), 0 error(s)").await;
    program.until(" registered").await;
    program.until(" registered").await;
    assert_eq!(server.bindings("sip:alice@example.com").len(), 1);

    program.command("show").await;
    let row = program.until(" alice/sip:127.0.0.1:").await;
    assert!(
        row.contains("  alice                       Registered       (exp. 35"),
        "{row}"
    );
    program.command("show bob").await;
    program.until("Endpoint: of-bob").await;
    program.until("Username: bob").await;

    // A request with the line token of the Contact.
    let contact = server.bindings("sip:alice@example.com")[0].contact.clone();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("set");
    for (method, code) in [("OPTIONS", "200"), ("INVITE", "480")] {
        let request = format!(
            "{method} {contact} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK{method};rport\r\nMax-Forwards: 70\r\n\
             From: <sip:x@example.com>;tag=1\r\nTo: <sip:alice@example.com>\r\nCall-ID: {method}\r\nCSeq: 1 {method}\r\n\
             Content-Length: 0\r\n\r\n",
            socket.local_addr().expect("bound")
        );
        socket.send_to(request.as_bytes(), free).expect("sent");
        let line = program.until(&format!("{method} from 127.0.0.1:")).await;
        assert!(
            line.ends_with("registration alice, endpoint of-alice"),
            "{line}"
        );
        let mut answer = [0; 2000];
        let length = socket.recv(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with(&format!("SIP/2.0 {code} ")), "{answer}");
    }

    directory.add("accounts.conf", &account("alice"));
    program.signal("HUP").await;
    program.until("bob: removed, removed").await;
    program.until("reloaded").await;
    assert!(server.bindings("sip:bob@example.com").is_empty());

    program.command("unregister alice").await;
    program.until("alice unregister: removed").await;
    program.command("refresh alice").await;
    program.until("alice registered").await;

    // The end of the input changes nothing.
    program.end_input();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(program.is_running());

    program.signal("TERM").await;
    program.until("alice binding removed").await;
    assert_eq!(program.ended(PATIENCE).await, Some(0));
    assert!(server.bindings("sip:alice@example.com").is_empty());
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn a_check_lists_everything_and_registers_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pjsip");
    for (name, code) in [
        ("sample", 0),
        ("registration_refused", 1),
        ("grammar_no_section", 1),
    ] {
        let mut command = Command::new(example());
        command
            .arg("--check")
            .arg("--config")
            .arg(corpus.join(format!("{name}.conf")));
        let output = timeout(PATIENCE, command.output())
            .await
            .expect("it ends")
            .expect("it runs");
        assert_eq!(output.status.code(), Some(code), "{name}");
        let expected = fs::read_to_string(corpus.join(format!("{name}.expected"))).expect("there");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn a_registrar_that_does_not_answer_any_more_does_not_hold_up_the_end() {
    let server = TestServer::new()
        .user("silent", "s3cr3t")
        .serve("127.0.0.1:0")
        .await
        .expect("a server");
    let directory = Directory::new("silent");
    let config = directory.write(&format!(
        "[udp]\ntype=transport\nbind={}\n[silent]\ntype=registration\nserver_uri=sip:{}\n\
         client_uri=sip:silent@example.com\nmax_random_initial_delay=0\noutbound_auth=a\n\
         [a]\ntype=auth\nusername=silent\npassword=s3cr3t\n",
        free(),
        server.addr()
    ));
    // It stays, so that no ICMP error tells that nobody is there.
    let mut program = Program::start(&config, &[]);
    program.until("silent registered").await;
    server.fault(Fault::Drop(u32::MAX));
    program.signal("INT").await;
    let ends = async {
        program
            .within(Duration::from_secs(35))
            .until("silent binding removal not answered")
            .await;
        program.ended(PATIENCE).await
    };
    let code = timeout(Duration::from_secs(35), ends).await;
    assert_eq!(code.expect("in time"), Some(0));
    server.stop().await;
}

/// Whoever has seen the token may use it, unless only the flow counts.
#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn a_stranger_with_the_token_is_matched_by_default_and_not_where_the_flow_counts() {
    for (arguments, whose) in [
        (&[][..], "registration alice, endpoint of-alice"),
        (&["--inbound-from", "flow"], "no registration"),
    ] {
        let server = TestServer::new()
            .user("alice", "s3cr3t")
            .serve("127.0.0.1:0")
            .await
            .expect("a server");
        let bind = free();
        let directory = Directory::new("stranger");
        let config = directory.write(&format!(
            "[udp]\ntype=transport\nbind={bind}\n[alice]\ntype=registration\nserver_uri=sip:{}\n\
             client_uri=sip:alice@example.com\nmax_random_initial_delay=0\noutbound_auth=a\nline=yes\n\
             endpoint=of-alice\n[a]\ntype=auth\nusername=alice\npassword=s3cr3t\n",
            server.addr()
        ));
        let mut program = Program::start(&config, arguments);
        program.until("alice registered").await;
        let contact = server.bindings("sip:alice@example.com")[0].contact.clone();
        let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let request = format!(
            "OPTIONS {contact} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bKs;rport\r\nMax-Forwards: 70\r\n\
             From: <sip:x@example.com>;tag=1\r\nTo: <sip:alice@example.com>\r\nCall-ID: s\r\nCSeq: 1 OPTIONS\r\n\
             Content-Length: 0\r\n\r\n",
            stranger.local_addr().expect("bound")
        );
        stranger.send_to(request.as_bytes(), bind).expect("sent");
        let line = program.until("OPTIONS from 127.0.0.1:").await;
        assert!(line.ends_with(whose), "{line}");
        program.signal("TERM").await;
        assert_eq!(program.ended(PATIENCE).await, Some(0));
        server.stop().await;
    }
}

#[tokio::test]
#[cfg(feature = "dns")]
#[ignore = "needs dnsmasq and the example: cargo build --example pjsip_conf"]
async fn the_name_server_of_the_command_line_is_asked() {
    let server = TestServer::new()
        .user("office", "s3cr3t")
        .serve("127.0.0.1:0")
        .await
        .expect("a server");
    let names = crate::dns::server::Dnsmasq::start(&format!(
        "srv-host=_sip._udp.trunk.test,ready.test,{}",
        server.addr().port()
    ));
    let directory = Directory::new("names");
    let config = directory.write(&format!(
        "[udp]\ntype=transport\nbind={}\n[office]\ntype=registration\nserver_uri=sip:trunk.test\n\
         client_uri=sip:office@trunk.test\nmax_random_initial_delay=0\noutbound_auth=a\n\
         [a]\ntype=auth\nusername=office\npassword=s3cr3t\n",
        free()
    ));
    let nameserver = names.address().to_string();
    let mut program = Program::start(&config, &["--nameserver", &nameserver]);
    program.until("office registered").await;
    assert_eq!(server.bindings("sip:office@trunk.test").len(), 1);
    program.command("quit").await;
    program.until("office binding removed").await;
    assert_eq!(program.ended(PATIENCE).await, Some(0));
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn what_the_command_line_may_not_say_is_refused_with_the_usage() {
    for (arguments, said) in [
        (&["--check"][..], "--config is missing"),
        (&["--config"], "--config needs a value"),
        (
            &["--nameserver", "127.0.0.1"],
            "--nameserver \"127.0.0.1\" is not an address and a port",
        ),
        (
            &["--statsd", "x:8125"],
            "--statsd \"x:8125\" is not an address and a port",
        ),
        (
            &["--inbound-from", "friends"],
            "--inbound-from \"friends\" is not anywhere, registrar or flow",
        ),
        (&["--verbose"], "unknown argument \"--verbose\""),
    ] {
        let output = timeout(PATIENCE, Command::new(example()).args(arguments).output());
        let output = output.await.expect("it ends").expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            text.starts_with(said) && text.contains("[--statsd IP:PORT]"),
            "{text}"
        );
    }
}
