//! The example `pjsip_conf` at a terminal: help, odd commands, and readers that go away.

use crate::pjsip_example::{Directory, Program, example, free};
use sip_registration::testkit::{Fault, RunningServer, TestServer};
use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

async fn output(arguments: &[&str]) -> Output {
    let output = timeout(PATIENCE, Command::new(example()).args(arguments).output());
    output.await.expect("it ends").expect("it runs")
}

async fn registrar() -> RunningServer {
    let server = TestServer::new().user("office", "s3cr3t");
    server.serve("127.0.0.1:0").await.expect("a server")
}

fn one_trunk(directory: &Directory, server: &RunningServer) -> PathBuf {
    directory.write(&format!(
        "[udp]\ntype=transport\nbind={}\n[office]\ntype=registration\nserver_uri=sip:{}\n\
         client_uri=sip:office@example.com\nmax_random_initial_delay=0\noutbound_auth=a\n\
         [a]\ntype=auth\nusername=office\npassword=s3cr3t\n",
        free(),
        server.addr()
    ))
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn help_says_what_the_arguments_and_commands_are() {
    for flag in ["--help", "-h"] {
        let output = output(&[flag]).await;
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(text.starts_with("pjsip_conf --config FILE"), "{text}");
        for word in ["--check ", "--nameserver ", "--statsd ", "refresh ID|*all"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn a_check_tells_of_certificates_that_this_machine_does_not_have() {
    let directory = Directory::new("certificates");
    let missing = directory.0.join("none.pem").display().to_string();
    let config = directory.write(&format!(
        "[tls]\ntype=transport\nprotocol=tls\nbind=127.0.0.1\nverify_server=yes\ncert_file={missing}\n\
         priv_key_file={missing}\n"
    ));
    let output = output(&["--check", "--config", &config.display().to_string()]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with(&format!(
            "transport tls would be left out here: {missing}: cannot be read"
        )),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn readers_that_go_away_leave_the_registrations_alone() {
    let server = registrar().await;
    let directory = Directory::new("readers");
    let config = one_trunk(&directory, &server);
    let mut child = Command::new(example())
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the example is built");
    let mut output = child.stdout.take().expect("piped");
    let mut some = [0; 8];
    output.read_exact(&mut some).await.expect("a line");
    drop(output);
    drop(child.stderr.take());
    let bound = async {
        while server.bindings("sip:office@example.com").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, bound).await.expect("registered");

    // A listing, a finding and a report that nobody reads.
    let mut input = child.stdin.take().expect("piped");
    let text = fs::read_to_string(&config).expect("there") + "line=perhaps\n";
    fs::write(&config, text).expect("written");
    input
        .write_all(b"show\nreload\nnonsense\nquit\n")
        .await
        .expect("written");
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends");
    assert_eq!(status.expect("waited for").code(), Some(0));
    assert!(server.bindings("sip:office@example.com").is_empty());
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn odd_commands_are_answered_and_change_nothing() {
    let server = registrar().await;
    let directory = Directory::new("odd");
    let config = one_trunk(&directory, &server);
    let mut program = Program::start(&config, &[]);
    program.until("office registered").await;
    for (command, answer) in [
        ("help", "show, show ID"),
        (
            "reload now",
            "no such command: \"reload now\"; show, show ID",
        ),
        ("exit", "no such command: \"exit\"; show, show ID"),
        ("show\toffice", "ObjectName: office"),
        ("show nobody", "Unable to retrieve registration nobody"),
        ("unregister", "unregister needs an id or *all"),
        ("refresh *ALL", "Unable to retrieve registration *ALL"),
    ] {
        program.command(command).await;
        program.until(answer).await;
    }
    assert_eq!(server.bindings("sip:office@example.com").len(), 1);

    // An empty file has no trunk any more; what it had is told.
    directory.write("");
    program.command("reload").await;
    program.until("office: removed, removed").await;
    program.command("refresh *all").await;
    program.until("No objects found.").await;
    program.command("quit").await;
    assert_eq!(program.ended(PATIENCE).await, Some(0));
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example pjsip_conf"]
async fn a_reload_that_waits_for_a_registrar_says_so_and_is_left_by_sigterm() {
    let server = registrar().await;
    let directory = Directory::new("waits");
    let config = one_trunk(&directory, &server);
    let mut program = Program::start(&config, &[]);
    program.until("office registered").await;
    server.fault(Fault::Drop(u32::MAX));
    let text = fs::read_to_string(&config).expect("there");
    let (transport, _) = text.split_once("[office]").expect("it has it");
    fs::write(&config, transport).expect("written");
    program.command("reload").await;
    program
        .until("waiting for the answers to un-REGISTERs, up to 30 s")
        .await;
    program.signal("TERM").await;
    program
        .within(Duration::from_secs(35))
        .until("office binding removal not answered, a binding may live until it expires")
        .await;
    assert_eq!(program.ended(PATIENCE).await, Some(0));
    server.stop().await;
}
