//! Kamailio registrars on loopback, started on demand and shared by the tests of this process
//!
//! Each runs under `tests/lab/bin/kam-hold`, which ends it when the pipe to this process closes: however this
//! process ends, nothing is left behind.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// Ports of one instance
const BLOCK: u16 = 8;
/// Where blocks are looked for: below the ephemeral ports, above what daemons use
const PORTS: std::ops::Range<u16> = 20_000..31_000;
/// How often a block that was free a moment ago may turn out to be taken
const STARTS: u32 = 4;

/// A registrar, or the proxy in front of one
pub(crate) struct Lab {
    run: PathBuf,
    base: u16,
    role: String,
    defines: Vec<String>,
    /// Holds the pipe that keeps it running
    child: Mutex<Option<Child>>,
}

/// A binding, as Kamailio lists it
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bound {
    pub(crate) uri: String,
    pub(crate) call_id: String,
    pub(crate) expires: u64,
    pub(crate) received: String,
    pub(crate) path: String,
    pub(crate) instance: String,
    pub(crate) reg_id: u8,
}

/// A REGISTER that Kamailio received
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) cseq: u32,
    pub(crate) call_id: String,
    pub(crate) authorized: bool,
}

impl Lab {
    /// The registrar with these defines (`tests/lab/README.md`), started if it does not run yet.
    pub(crate) fn registrar(defines: &[&str]) -> &'static Self {
        Self::running("registrar", defines)
    }

    /// The proxy in front of [`registrar`](Self::registrar) without defines.
    pub(crate) fn edge() -> &'static Self {
        Self::registrar(&[]).behind_an_edge()
    }

    /// The proxy in front of this registrar.
    pub(crate) fn behind_an_edge(&self) -> &'static Self {
        self.behind_an_edge_with(&[])
    }

    /// The same with these defines.
    pub(crate) fn behind_an_edge_with(&self, defines: &[&str]) -> &'static Self {
        let port = format!("REG_PORT={}", self.port());
        let defines: Vec<&str> = [&*port]
            .into_iter()
            .chain(defines.iter().copied())
            .collect();
        Self::running("edge", &defines)
    }

    /// A registrar that no other test uses, to be stopped and restarted.
    pub(crate) fn own() -> &'static Self {
        Box::leak(Box::new(Self::start("registrar", &[])))
    }

    /// A proxy in front of this registrar that no other test uses, with these defines besides.
    pub(crate) fn own_edge(&self, defines: &[&str]) -> &'static Self {
        let registrar = format!("REG_PORT={}", self.port());
        let defines: Vec<_> = [&*registrar]
            .into_iter()
            .chain(defines.iter().copied())
            .collect();
        Box::leak(Box::new(Self::start("edge", &defines)))
    }

    fn running(role: &str, defines: &[&str]) -> &'static Self {
        static LABS: LazyLock<Mutex<HashMap<String, &'static OnceLock<Lab>>>> =
            LazyLock::new(Mutex::default);
        let name = format!("{role} {}", defines.join(" "));
        let lab = {
            let mut labs = lock(&LABS);
            let lab: &mut &'static OnceLock<Self> = labs
                .entry(name)
                // One for each role and set of defines, until the process ends.
                .or_insert_with(|| Box::leak(Box::new(OnceLock::new())));
            *lab
        };
        lab.get_or_init(|| Self::start(role, defines))
    }

    fn start(role: &str, defines: &[&str]) -> Self {
        for tool in ["kamailio", "kamcmd", "openssl"] {
            let found = std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
            });
            assert!(
                found,
                "{tool} is missing: these tests need what tests/lab/README.md says to install"
            );
        }
        let mut log = String::new();
        for _ in 0..STARTS {
            match Self::try_start(role, defines) {
                Ok(lab) => return lab,
                Err(why) => log = why,
            }
        }
        panic!("Kamailio as {role} with {defines:?} does not start:\n{log}");
    }

    fn try_start(role: &str, defines: &[&str]) -> Result<Self, String> {
        let base = free_block();
        let lab = Self {
            run: std::env::temp_dir().join(format!("sr{}-{base}", std::process::id())),
            base,
            role: role.into(),
            defines: defines.iter().map(ToString::to_string).collect(),
            child: Mutex::new(None),
        };
        lab.run()?;
        Ok(lab)
    }

    /// Runs it, and waits until it answers.
    fn run(&self) -> Result<(), String> {
        let child = Command::new(script("kam-hold"))
            .args([&self.role, "reg", &self.base.to_string()])
            .args(&self.defines)
            .env("LAB_RUN", &self.run)
            .env("LAB_TTL", "600")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("kam-hold: {error}"))?;
        *lock(&self.child) = Some(child);
        for _ in 0..150 {
            sleep(Duration::from_millis(100));
            let ready = Command::new("kamcmd")
                .arg("-s")
                .arg(format!(
                    "unix:{}",
                    self.run.join("reg/kamailio_ctl").display()
                ))
                .arg("core.uptime")
                .output()
                .is_ok_and(|out| out.status.success() && !out.stdout.starts_with(b"error"));
            if ready {
                return Ok(());
            }
            if self.run.join("ended").exists() {
                break;
            }
        }
        let log = std::fs::read_to_string(self.run.join("log")).unwrap_or_default();
        self.stop();
        Err(log)
    }

    /// Ends it; all bindings, nonces and the log are lost.
    pub(crate) fn stop(&self) {
        if let Some(mut child) = lock(&self.child).take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }

    /// Runs it again, on the same ports.
    pub(crate) fn restart(&self) {
        if let Err(log) = self.run() {
            panic!("Kamailio does not start again:\n{log}");
        }
    }

    /// The port of UDP and TCP.
    pub(crate) const fn port(&self) -> u16 {
        self.base
    }

    /// The port of a TLS instance: 1 is the CA's, 2 self-signed, 3 mutual, 4 expired, 5 for another name.
    #[cfg(feature = "tls")]
    pub(crate) const fn tls_port(&self, instance: u16) -> u16 {
        self.base + instance
    }

    /// A file of its certificates, such as `ca.pem`.
    #[cfg(feature = "tls")]
    pub(crate) fn pem(&self, name: &str) -> Vec<u8> {
        let path = self.run.join("tls").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Shows another certificate on the CA's instance to whoever connects from now on.
    #[cfg(feature = "tls")]
    pub(crate) async fn show_certificate(&self, name: &str) {
        let path = self.run.join("reg/tls.cfg");
        let text = std::fs::read_to_string(&path).expect("the TLS configuration");
        // The first of each is the default server's.
        let text = text
            .replacen("/server.key", &format!("/{name}.key"), 1)
            .replacen("/server.pem", &format!("/{name}.pem"), 1);
        std::fs::write(&path, text).expect("a writable TLS configuration");
        let answer = self.rpc(&["tls.reload"]).await;
        assert!(!answer.starts_with("error"), "{answer}");
    }

    /// What an RPC command answers.
    pub(crate) async fn rpc(&self, args: &[&str]) -> String {
        let out = tokio::process::Command::new(script("kam-rpc"))
            .arg("reg")
            .args(args)
            .env("LAB_RUN", &self.run)
            .output()
            .await
            .expect("kam-rpc runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{args:?}: {text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        text
    }

    /// Answers the next REGISTERs of a user with `code`, until it is [mended](Self::mend).
    pub(crate) async fn break_for(&self, user: &str, code: u16) {
        let answer = self
            .rpc(&["htable.sets", "fault", user, &code.to_string()])
            .await;
        assert!(answer.starts_with("Ok"), "{answer}");
    }

    /// Takes back [`break_for`](Self::break_for).
    pub(crate) async fn mend(&self, user: &str) {
        let answer = self.rpc(&["htable.delete", "fault", user]).await;
        assert!(answer.starts_with("Ok"), "{answer}");
    }

    /// Makes a binding that none of our registrations made.
    pub(crate) async fn add_foreign(&self, user: &str, uri: &str) {
        let answer = self
            .rpc(&[
                "ul.add", "location", user, uri, "300", "1.0", "s:", "0", "0", "0",
            ])
            .await;
        assert!(!answer.starts_with("error"), "{answer}");
    }

    /// The bindings of a user.
    pub(crate) async fn bindings(&self, user: &str) -> Vec<Bound> {
        let text = self.rpc(&["ul.lookup", "location", user]).await;
        if text.contains("AOR not found") {
            return Vec::new();
        }
        assert!(text.contains("AoR:"), "{text}");
        let mut bindings: Vec<Bound> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line == "Contact: {" {
                bindings.push(Bound::default());
            }
            let (Some(bound), Some((name, value))) = (bindings.last_mut(), line.split_once(": "))
            else {
                continue;
            };
            match name {
                "Address" => bound.uri = value.into(),
                "Call-ID" => bound.call_id = value.into(),
                // "expired" and "deleted" are words.
                "Expires" => bound.expires = value.parse().unwrap_or(0),
                "Received" => bound.received = value.into(),
                "Path" => bound.path = value.into(),
                "Instance" => bound.instance = value.into(),
                "Reg-Id" => bound.reg_id = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        bindings
    }

    /// The lines of Kamailio's log about the REGISTERs of a user.
    pub(crate) fn log(&self, user: &str) -> Vec<String> {
        let to = format!(" to=sip:{user}@");
        let about = format!(" user=sip:{user}@");
        std::fs::read_to_string(self.run.join("log"))
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains(&to) || line.contains(&about))
            .map(String::from)
            .collect()
    }

    /// The REGISTERs of a user so far, retransmissions included.
    pub(crate) fn arrived(&self, user: &str) -> Vec<Arrived> {
        let field = |line: &str, name: &str| {
            line.split_once(name)
                .and_then(|(_, rest)| rest.split(' ').next())
                .unwrap_or_default()
                .to_owned()
        };
        self.log(user)
            .iter()
            .filter(|line| line.contains("RX REGISTER"))
            .map(|line| Arrived {
                cseq: field(line, " cs=").parse().expect("a CSeq number"),
                call_id: field(line, " cid="),
                authorized: !matches!(field(line, " auth=").trim(), "" | "0" | "<null>"),
            })
            .collect()
    }
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lab/bin")
        .join(name)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first of a block of ports that are free now, and that no other instance of this process was given.
fn free_block() -> u16 {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = lock(&NEXT);
    let blocks = (PORTS.end - PORTS.start) / BLOCK;
    // Processes that start together look in different places.
    let mut block =
        next.unwrap_or_else(|| u16::try_from(std::process::id() % u32::from(blocks)).unwrap_or(0));
    for _ in 0..blocks {
        let base = PORTS.start + block * BLOCK;
        block = (block + 1) % blocks;
        if (base..base + BLOCK).all(is_free) {
            *next = Some(block);
            return base;
        }
    }
    panic!("no {BLOCK} free ports in a row in {PORTS:?}");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
}
