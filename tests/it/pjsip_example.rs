//! The example `pjsip_conf` as somebody uses it: a file, a registrar, commands, signals.

use sip_registration::testkit::TestServer;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Beside the test's own binary, where `cargo test` puts examples.
fn example() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let target = own.ancestors().nth(2).expect("a target directory");
    target.join("examples/pjsip_conf")
}

fn start(config: &Path) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(example())
        .arg("--config")
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the example is built");
    let output = child.stdout.take().expect("piped");
    (child, BufReader::new(output).lines())
}

/// Reads until a line has the text.
async fn until(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) -> String {
    let mut read = String::new();
    let found = timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains(text) {
                return Some(line);
            }
            read.push_str(&line);
            read.push('\n');
        }
        None
    });
    let found = found.await.ok().flatten();
    found.unwrap_or_else(|| panic!("no {text:?} in\n{read}"))
}

async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("it runs").to_string();
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(id)
        .status()
        .await
        .expect("kill");
    assert!(sent.success());
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
    let free = UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port");
    let directory = std::env::temp_dir().join(format!("pjsip-example-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let config = directory.join("pjsip.conf");
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
    fs::write(&config, base).expect("written");
    fs::write(
        directory.join("accounts.conf"),
        account("alice") + &account("bob"),
    )
    .expect("written");

    let (mut child, mut lines) = start(&config);
    until(&mut lines, "2 registration(s), 0 error(s)").await;
    until(&mut lines, " registered").await;
    until(&mut lines, " registered").await;
    assert_eq!(server.bindings("sip:alice@example.com").len(), 1);

    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"show\n").await.expect("written");
    let row = until(&mut lines, " alice/sip:127.0.0.1:").await;
    assert!(
        row.contains("  alice                       Registered       (exp. 35"),
        "{row}"
    );
    input.write_all(b"show bob\n").await.expect("written");
    until(&mut lines, "Endpoint: of-bob").await;
    until(&mut lines, "Username: bob").await;

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
        let line = until(&mut lines, &format!("{method} from 127.0.0.1:")).await;
        assert!(
            line.ends_with("registration alice, endpoint of-alice"),
            "{line}"
        );
        let mut answer = [0; 2000];
        let length = socket.recv(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with(&format!("SIP/2.0 {code} ")), "{answer}");
    }

    fs::write(directory.join("accounts.conf"), account("alice")).expect("written");
    signal(&child, "HUP").await;
    until(&mut lines, "bob: removed, removed").await;
    until(&mut lines, "reloaded").await;
    assert!(server.bindings("sip:bob@example.com").is_empty());

    input
        .write_all(b"unregister alice\n")
        .await
        .expect("written");
    until(&mut lines, "alice unregister: removed").await;
    input.write_all(b"refresh alice\n").await.expect("written");
    until(&mut lines, "alice registered").await;

    // The end of the input changes nothing.
    drop(input);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(child.try_wait().expect("asked").is_none());

    signal(&child, "TERM").await;
    until(&mut lines, "alice binding removed").await;
    let status = timeout(PATIENCE, child.wait())
        .await
        .expect("it ends")
        .expect("waited for");
    assert_eq!(status.code(), Some(0));
    assert!(server.bindings("sip:alice@example.com").is_empty());
    server.stop().await;
    let _ = fs::remove_dir_all(directory);
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
