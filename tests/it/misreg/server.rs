//! The misbehaving registrar, run by the tests that need it

use crate::ports::free_port;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A misbehaving registrar; it ends with this value, or with this process
pub(crate) struct Misreg {
    pub(crate) port: u16,
    /// Where it speaks TLS
    pub(crate) tls: u16,
    certificate: Arc<Certificate>,
    log: PathBuf,
    held: Child,
}

/// One line of its log
#[derive(Debug, Clone)]
pub(crate) struct Line(serde_json::Value);

impl Line {
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0
            .get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
    }

    pub(crate) fn number(&self, key: &str) -> i64 {
        self.0
            .get(key)
            .and_then(serde_json::Value::as_i64)
            .unwrap_or_default()
    }
}

impl Misreg {
    /// One that has each mode for the user of that name, over UDP, TCP and TLS.
    pub(crate) fn start(name: &str) -> Self {
        let certificate = Certificate::new(name);
        // Another process may be faster to a port that was free a moment ago.
        (0..10)
            .find_map(|_| Self::try_start(name, free_port(), "0", &certificate, &[]))
            .expect("python3 runs, and finds a port")
    }

    /// The same one again, on the same ports, in order.
    pub(crate) fn mended(self, name: &str) -> Self {
        let (port, tls, certificate) = (self.port, self.tls.to_string(), self.certificate.clone());
        drop(self);
        Self::try_start(name, port, &tls, &certificate, &["--mode", "ok"])
            .expect("the ports are still free")
    }

    fn try_start(
        name: &str,
        port: u16,
        tls: &str,
        certificate: &Arc<Certificate>,
        arguments: &[&str],
    ) -> Option<Self> {
        let lab = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
        let log = std::env::temp_dir().join(format!("misreg-{}-{name}.jsonl", std::process::id()));
        let _ = std::fs::remove_file(&log);
        let mut held = Command::new(lab.join("bin/hold"))
            .arg("python3")
            .arg(lab.join("misreg/misreg.py"))
            .args(["--seconds", "300", "--port", &port.to_string(), "--log"])
            .arg(&log)
            .args(["--tls-port", tls, "--cert"])
            .arg(&certificate.chain)
            .arg("--key")
            .arg(&certificate.key)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests/lab/bin/hold runs");
        let mut ready = String::new();
        BufReader::new(held.stdout.take().expect("a pipe"))
            .read_line(&mut ready)
            .expect("a line");
        let tls = ready
            .trim_end()
            .split_once(" tls=")
            .and_then(|(_, port)| port.parse().ok());
        let started = Self {
            port,
            tls: tls.unwrap_or_default(),
            certificate: certificate.clone(),
            log,
            held,
        };
        (ready.starts_with("READY ") && tls.is_some()).then_some(started)
    }

    /// What it proves itself with
    pub(crate) fn roots(&self) -> &str {
        &self.certificate.pem
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.log).expect("its log");
        text.lines()
            .map(|line| Line(serde_json::from_str(line).expect("JSON")))
            .collect()
    }
}

impl Drop for Misreg {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.held.stdin.take());
        let _ = self.held.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A certificate for 127.0.0.1 that is its own root, in files that go with it
#[derive(Debug)]
struct Certificate {
    pem: String,
    chain: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn new(name: &str) -> Arc<Self> {
        let made =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let file = |end: &str| {
            std::env::temp_dir().join(format!("misreg-{}-{name}.{end}", std::process::id()))
        };
        let (pem, chain, key) = (made.cert.pem(), file("pem"), file("key"));
        std::fs::write(&chain, &pem).expect("a file");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
        Arc::new(Self { pem, chain, key })
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.chain);
        let _ = std::fs::remove_file(&self.key);
    }
}

/// The names of its modes
pub(crate) fn modes() -> Vec<String> {
    let lab = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
    let list = Command::new("python3")
        .arg(lab.join("misreg/misreg.py"))
        .arg("--list")
        .output()
        .expect("python3 runs");
    String::from_utf8(list.stdout)
        .expect("UTF-8")
        .lines()
        .filter_map(|line| Some(line.split(' ').next()?.to_owned()))
        .collect()
}
