//! The example `softphone`, and who calls it: SIPp, sipsak, baresip

use super::PATIENCE;
use crate::lab::Lab;
use crate::ports::free_port;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Over what the softphone registers, and whether by way of an edge proxy
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) transport: &'static str,
    pub(super) edge: bool,
}

impl Way {
    /// The port of the registrar or the proxy.
    pub(super) fn port(self) -> u16 {
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

    pub(super) fn user(self, what: &str) -> String {
        let by = if self.edge { "edge" } else { "registrar" };
        format!("alice-{what}-{}-{by}", self.transport)
    }

    /// The flags of the softphone: by way of the proxy as an outbound flow, with a GRUU.
    pub(super) fn flags(self, user: &str, folder: &Path) -> Vec<String> {
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
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
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
pub(super) struct Softphone {
    pub(super) user: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    read: String,
}

impl Softphone {
    pub(super) async fn start(user: &str, flags: &[String]) -> Self {
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
    pub(super) async fn until(&mut self, text: &str) -> String {
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
    pub(super) async fn got(&mut self, methods: &[&str], account: &str, endpoint: &str) {
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
    pub(super) async fn ends(mut self) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().await;
        assert!(sent.expect("kill").success());
        self.until(" binding removed").await;
        let ended = timeout(PATIENCE, self.child.wait()).await;
        assert!(ended.expect("in time").expect("it ran").success());
        assert_eq!(Lab::registrar(&[]).bindings(&self.user).await, []);
    }
}

/// The file of a scenario of SIPp.
pub(super) fn scenario(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/sipp")
        .join(format!("{name}.xml"))
}

/// SIPp plays a scenario of `tests/data/sipp` to a user, by way of the registrar.
pub(super) async fn sipp(scenario: &str, user: &str, folder: &Path) {
    let run = Command::new("sipp")
        .arg("-sf")
        .arg(self::scenario(scenario))
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
pub(super) async fn sipsak(user: &str) {
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
pub(super) async fn baresip(user: &str, folder: &Path) -> String {
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
