//! Against a registrar that misbehaves on request (`tests/lab/misreg/misreg.py`), over UDP and TCP, in two profiles
//!
//! A row is a mode of it: what must have become of the registration after [`WATCHED`], and how many REGISTERs that
//! took. Each row has an agent and a user of its own, so that nothing which one learns helps or hurts another.

use sip_registration::{
    Activity, Agent, Credentials, Event, Policy, Protocol, Registrar, Registration,
    RegistrationBuilder, SecurityNegotiation, Status, TlsConfig, TlsTransport, TransportConfig,
};
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long each row is watched
///
/// Longer than timer F: a row that nobody answers has to end, too.
const WATCHED: Duration = Duration::from_secs(40);
/// REGISTERs in any minute, at most, but for those that a tiny grant asks for
const A_MINUTE: usize = 12;
const UDP: &[&str] = &["udp"];
const TCP: &[&str] = &["tcp"];
const BOTH: &[&str] = &["udp", "tcp"];
const TLS: &[&str] = &["tls"];

/// What one mode must come to
#[derive(Debug, Clone)]
struct Row {
    mode: &'static str,
    over: &'static [&'static str],
    requests: RangeInclusive<usize>,
    outcome: &'static str,
    /// What the registrar must have noted of us
    note: &'static str,
}

const fn row(
    mode: &'static str,
    over: &'static [&'static str],
    requests: RangeInclusive<usize>,
    outcome: &'static str,
    note: &'static str,
) -> Row {
    Row {
        mode,
        over,
        requests,
        outcome,
        note,
    }
}

/// Under `persistent()`: every mode
#[rustfmt::skip]
const PERSISTENT: &[Row] = &[
    row("ok", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("auth", BOTH, 2..=2, "bound 3600, waiting", "qop=auth nc=00000001"),
    row("wrong-cseq", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("wrong-cseq-then-ok", BOTH, 1..=1, "unbound, waiting, 403 Forbidden", ""),
    row("wrong-cseq-method", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("wrong-branch", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("other-port", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("folded", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("compact", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("lf-only", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("no-reason", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("no-content-length", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("body", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("garbage-first", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("huge-reply", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("many-contacts", BOTH, 1..=2, "bound 77, waiting", ""),
    row("two-contacts", BOTH, 1..=2, "bound 61, waiting", ""),
    row("foreign-contact-only", BOTH, 1..=1, "bound 7200 unconfirmed, waiting", ""),
    row("contact-rewritten", BOTH, 1..=2, "bound 62, waiting", ""),
    row("contact-expires-header-only", BOTH, 1..=2, "bound 65, waiting", ""),
    row("contact-and-expires-header", BOTH, 1..=2, "bound 66, waiting", ""),
    row("no-contact-no-expires", BOTH, 1..=1, "bound 3600 unconfirmed, waiting", ""),
    row("no-contact-expires", BOTH, 1..=2, "bound 67 unconfirmed, waiting", ""),
    row("expires-zero", BOTH, 1..=1, "unbound, waiting, the registrar accepted the request and granted no time", ""),
    row("expires-one", BOTH, 30..=42, "bound 1, waiting", ""),
    row("expires-tiny-always", BOTH, 12..=42, "bound 3, waiting", ""),
    row("expires-longer", BOTH, 1..=1, "bound 86400, waiting", ""),
    row("expires-text", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("expires-overflow", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("expires-negative", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("expires-decimal", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("expires-quoted", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("realm-quoted", BOTH, 2..=2, "bound 3600, waiting", "auth ok"),
    row("multi-challenge", BOTH, 2..=2, "bound 3600, waiting", "alg=SHA-512-256 qop=auth nc=00000001"),
    row("multi-challenge-one-line", BOTH, 2..=2, "bound 3600, waiting", "alg=SHA-512-256 qop=auth nc=00000001"),
    row("md5-first", BOTH, 2..=2, "bound 3600, waiting", "alg=MD5 qop=auth nc=00000001"),
    row("unknown-alg-first", BOTH, 2..=2, "bound 3600, waiting", "alg=MD5 qop=auth nc=00000001"),
    row("unknown-alg-only", BOTH, 1..=1, "unbound, waiting, challenge cannot be answered: realm \"mis.test\" offers none of the allowed algorithms, only [\"FOO-999\"]", ""),
    row("auth-int", BOTH, 2..=2, "bound 3600, waiting", "qop=auth-int nc=00000001"),
    row("qop-both", BOTH, 2..=2, "bound 3600, waiting", "qop=auth nc=00000001"),
    row("no-qop", BOTH, 2..=2, "bound 3600, waiting", "qop=None"),
    row("opaque", BOTH, 2..=2, "bound 3600, waiting", "opaque ok"),
    row("sha256", BOTH, 2..=2, "bound 3600, waiting", "alg=SHA-256 qop=auth nc=00000001"),
    row("sha512-256", BOTH, 2..=2, "bound 3600, waiting", "alg=SHA-512-256 qop=auth nc=00000001"),
    row("nextnonce", BOTH, 2..=2, "bound 3600, waiting", "with nextnonce"),
    row("401-forever", BOTH, 2..=2, "unbound, idle, credentials refused for realm \"mis.test\"", ""),
    row("401-same-nonce", BOTH, 2..=2, "unbound, idle, credentials refused for realm \"mis.test\"", ""),
    row("stale-loop", BOTH, 5..=5, "unbound, waiting, attempt budget used up", ""),
    row("401-no-header", BOTH, 1..=1, "unbound, waiting, challenge cannot be answered: no digest challenge", ""),
    row("401-no-nonce", BOTH, 1..=1, "unbound, waiting, challenge cannot be answered: digest challenge without usable realm or nonce", ""),
    row("407", BOTH, 2..=2, "bound 3600, waiting", "auth ok"),
    row("407-then-401", BOTH, 3..=3, "bound 3600, waiting", "both ok"),
    row("423", BOTH, 2..=2, "bound 120, waiting", ""),
    row("423-no-min", BOTH, 1..=1, "unbound, waiting, 423 Interval Too Brief", ""),
    row("423-huge", BOTH, 1..=1, "unbound, waiting, 423 Interval Too Brief", ""),
    row("423-text", BOTH, 1..=1, "unbound, waiting, 423 Interval Too Brief", ""),
    row("302-loop", BOTH, 1..=1, "unbound, waiting, 302 Moved Temporarily", ""),
    row("302-once", BOTH, 1..=1, "unbound, waiting, 302 Moved Temporarily", ""),
    row("301-no-contact", BOTH, 1..=1, "unbound, waiting, 301 Moved Permanently", ""),
    row("420", BOTH, 2..=2, "bound 3600, waiting", ""),
    row("494", BOTH, 2..=2, "bound 3600, waiting", "verify=['sdes-srtp;mediasec', 'dtls-srtp;mediasec;q=0.1'] require=mediasec/mediasec"),
    row("401-mediasec", BOTH, 2..=2, "bound 3600, waiting", "auth=True verify=ok require=mediasec proxy-require=mediasec"),
    row("503-retry", BOTH, 3..=3, "bound 3600, waiting", ""),
    row("503-retry-huge", BOTH, 1..=1, "unbound, waiting, 503 Service Unavailable", ""),
    row("unknown-2xx", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("silent", BOTH, 1..=1, "unbound, waiting, no answer", ""),
    row("late-200", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("late-200-3s", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("dup-200", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("100-only", BOTH, 1..=1, "unbound, waiting, no answer", ""),
    row("100-then-200", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("fail-refresh", BOTH, 2..=2, "unbound, waiting, 500 x", ""),
    row("fail-unregister", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("silent-unregister", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("bytewise", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("coalesced", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("split-header", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("pong", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("no-pong", UDP, 1..=1, "bound 3600, waiting", ""),
    row("no-pong", TCP, 2..=4, "bound 3600, waiting", ""),
    row("close-after-200", UDP, 1..=1, "bound 3600, waiting", ""),
    row("close-after-200", TCP, 4..=7, "bound 3600, waiting", ""),
    row("rst-after-200", UDP, 1..=1, "bound 3600, waiting", ""),
    row("rst-after-200", TCP, 4..=7, "bound 3600, waiting", ""),
    row("close-no-reply", UDP, 1..=1, "bound 3600, waiting", ""),
    row("close-no-reply", TCP, 1..=1, "unbound, waiting, connection closed by the peer", ""),
    row("tcp-garbage", UDP, 1..=1, "bound 3600, waiting", ""),
    row("tcp-garbage", TCP, 1..=1, "unbound, waiting, not SIP: the stream does not carry SIP", ""),
    row("options-after", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("message-after", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("notify-after", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("service-route", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("gruu", BOTH, 1..=1, "bound 3600, waiting", ""),
    row("439", BOTH, 2..=2, "unbound, waiting, 439 First Hop Lacks Outbound Support", ""),
];

/// Under `asterisk()`: the modes that come to something else there, by the option's meaning or by MD5 alone
#[rustfmt::skip]
const ASTERISK: &[Row] = &[
    row("no-pong", TCP, 1..=1, "bound 3600, waiting", ""),
    row("multi-challenge", BOTH, 2..=2, "bound 3600, waiting", "alg=MD5 qop=auth nc=00000001"),
    row("multi-challenge-one-line", BOTH, 2..=2, "bound 3600, waiting", "alg=MD5 qop=auth nc=00000001"),
    row("nextnonce", BOTH, 2..=2, "bound 3600, waiting", "auth ok"),
    row("wrong-cseq-then-ok", BOTH, 1..=1, "unbound, idle, 403 Forbidden", ""),
    row("sha256", BOTH, 1..=1, "unbound, idle, challenge cannot be answered: realm \"mis.test\" offers none of the allowed algorithms, only [\"SHA-256\"]", ""),
    row("sha512-256", BOTH, 1..=1, "unbound, idle, challenge cannot be answered: realm \"mis.test\" offers none of the allowed algorithms, only [\"SHA-512-256\"]", ""),
    row("423-no-min", BOTH, 1..=1, "unbound, idle, 423 Interval Too Brief", ""),
    row("423-huge", BOTH, 1..=1, "unbound, idle, 423 Interval Too Brief", ""),
    row("423-text", BOTH, 1..=1, "unbound, idle, 423 Interval Too Brief", ""),
    row("302-loop", BOTH, 1..=1, "unbound, idle, 302 Moved Temporarily", ""),
    row("302-once", BOTH, 1..=1, "unbound, idle, 302 Moved Temporarily", ""),
    row("301-no-contact", BOTH, 1..=1, "unbound, idle, 301 Moved Permanently", ""),
    row("420", BOTH, 1..=1, "unbound, idle, 420 Bad Extension", ""),
    row("439", BOTH, 1..=1, "unbound, idle, 439 First Hop Lacks Outbound Support", ""),
    row("401-no-header", BOTH, 1..=1, "unbound, idle, challenge cannot be answered: no digest challenge", ""),
    row("401-no-nonce", BOTH, 1..=1, "unbound, idle, challenge cannot be answered: digest challenge without usable realm or nonce", ""),
    row("unknown-alg-only", BOTH, 1..=1, "unbound, idle, challenge cannot be answered: realm \"mis.test\" offers none of the allowed algorithms, only [\"FOO-999\"]", ""),
];

/// A misbehaving registrar; it ends with this value, or with this process
struct Misreg {
    port: u16,
    /// Where it speaks TLS
    tls: Option<u16>,
    log: PathBuf,
    held: Child,
}

/// One below the ephemeral ports, that nobody has over UDP or TCP
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 500) as u16 * 2;
    (0..1500)
        .map(|_| 31_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 1500)
        .find(|port| {
            let address = (Ipv4Addr::LOCALHOST, *port);
            UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
        })
        .expect("a free port")
}

/// One line of its log
#[derive(Debug, Clone)]
struct Line(serde_json::Value);

impl Line {
    fn text(&self, key: &str) -> &str {
        self.0
            .get(key)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
    }

    fn number(&self, key: &str) -> i64 {
        self.0
            .get(key)
            .and_then(serde_json::Value::as_i64)
            .unwrap_or_default()
    }
}

impl Misreg {
    fn start(name: &str, arguments: &[&str]) -> Self {
        // Another process may be faster to a port that was free a moment ago.
        (0..10)
            .find_map(|_| Self::try_start(name, free_port(), arguments))
            .expect("python3 runs, and finds a port")
    }

    /// The same one again, in another mode.
    fn restart(self, name: &str, arguments: &[&str]) -> Self {
        let port = self.port;
        drop(self);
        Self::try_start(name, port, arguments).expect("the port is still free")
    }

    fn try_start(name: &str, port: u16, arguments: &[&str]) -> Option<Self> {
        let lab = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
        let log = std::env::temp_dir().join(format!("misreg-{}-{name}.jsonl", std::process::id()));
        let _ = std::fs::remove_file(&log);
        let mut held = Command::new(lab.join("bin/hold"))
            .arg("python3")
            .arg(lab.join("misreg/misreg.py"))
            .args(["--seconds", "300", "--port", &port.to_string(), "--log"])
            .arg(&log)
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
            tls,
            log,
            held,
        };
        ready.starts_with("READY ").then_some(started)
    }

    fn lines(&self) -> Vec<Line> {
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

/// What a registration came to, in words
fn outcome(status: &Status) -> String {
    let lease = match &status.lease {
        Some(lease) if lease.confirmed => format!("bound {}", lease.granted.as_secs()),
        Some(lease) => format!("bound {} unconfirmed", lease.granted.as_secs()),
        None => "unbound".into(),
    };
    let activity = match status.activity {
        Activity::Idle => "idle",
        Activity::Waiting { .. } => "waiting",
        Activity::Paused => "paused",
        _ => "at work",
    };
    match &status.last_failure {
        Some(failure) => format!("{lease}, {activity}, {failure}"),
        None => format!("{lease}, {activity}"),
    }
}

fn configured(mode: &str, account: RegistrationBuilder) -> RegistrationBuilder {
    match mode {
        "423" | "423-no-min" | "423-huge" | "423-text" => {
            account.expiration(Duration::from_secs(60))
        }
        "420" => account.support_path(true),
        "494" | "401-mediasec" => account
            .security_negotiation(SecurityNegotiation::Mediasec)
            .security_mechanisms("sdes-srtp;mediasec")
            .security_mechanisms("dtls-srtp;mediasec"),
        "gruu" => account.contact_header_params("+sip.instance=\"<urn:uuid:0>\""),
        "439" => account
            .support_outbound(true)
            .contact_header_params("reg-id=1;+sip.instance=\"<urn:uuid:0>\""),
        _ => account,
    }
}

async fn watch(
    roots: Option<String>,
    port: u16,
    mode: &'static str,
    transport: &'static str,
    policy: Policy,
) -> (String, Vec<String>) {
    let user = format!("{mode}.{transport}");
    let account = Registration::builder(
        format!("sip:127.0.0.1:{port};transport={transport}"),
        format!("sip:{user}@mis.test"),
    )
    .contact_user("us")
    .policy(policy)
    .outbound_auth(Credentials::password(&*user, "secret"))
    .max_random_initial_delay(Duration::ZERO);
    let account = configured(mode, account)
        .build()
        .expect("a good configuration");
    let agent = match roots {
        None => Agent::builder().system_transports(),
        Some(roots) => {
            let config = TransportConfig::new("tls", Protocol::Tls).expect("a good name");
            let tls = TlsConfig::new().with_roots_pem(roots.as_bytes());
            let transport = TlsTransport::new(config, tls.expect("a root")).expect("TLS");
            Agent::builder().transport("tls", transport)
        }
    };
    let agent = agent.build().await.expect("an agent");
    let mut events = agent.events();
    let handle = agent.add(account).await.expect("a registration");
    let mut told = Vec::new();
    let until = sleep(WATCHED);
    tokio::pin!(until);
    loop {
        tokio::select! {
            () = &mut until => break,
            event = events.next() => {
                let (_, event) = event.expect("the agent lives");
                if !matches!(*event, Event::Scheduled { .. }) {
                    told.push(event.to_string());
                }
            }
        }
    }
    let mut seen = String::new();
    for _ in 0..20 {
        seen = outcome(&agent.status(handle.id()).await.expect("it is there"));
        if !seen.contains("at work") {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    agent.shutdown(Duration::from_secs(2)).await;
    (seen, told)
}

/// A certificate for 127.0.0.1 that is its own root, and the files of it and its key.
fn certificate(name: &str) -> (String, (PathBuf, PathBuf)) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let file = |end: &str| {
        std::env::temp_dir().join(format!("misreg-{}-{name}.{end}", std::process::id()))
    };
    let (cert, key) = (file("pem"), file("key"));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    (made.cert.pem(), (cert, key))
}

/// Runs all rows at once, and lists what differs from the table.
async fn check(name: &str, rows: Vec<Row>, policy: Policy) {
    let (roots, misreg) = if rows.iter().any(|row| row.over == TLS) {
        let (roots, files) = certificate(name);
        let [cert, key] = [&files.0, &files.1].map(|file| file.to_str().expect("UTF-8"));
        let arguments = ["--tls-port", "0", "--cert", cert, "--key", key];
        let misreg = Misreg::start(name, &arguments);
        let _ = (std::fs::remove_file(cert), std::fs::remove_file(key));
        (Some(roots), misreg)
    } else {
        (None, Misreg::start(name, &[]))
    };
    let port = misreg.tls.unwrap_or(misreg.port);
    let mut running = JoinSet::new();
    for row in rows {
        for transport in row.over {
            let (row, roots, policy) = (row.clone(), roots.clone(), policy.clone());
            running.spawn(async move {
                let (outcome, told) = watch(roots, port, row.mode, transport, policy).await;
                (row, *transport, outcome, told)
            });
        }
    }
    let seen = running.join_all().await;
    let lines = misreg.lines();
    let mut wrong = Vec::new();
    for (row, transport, outcome, told) in seen {
        let of = |line: &&Line| {
            line.text("mode") == row.mode
                && line.text("ev") == "rx"
                && line.text("transport") == transport.replace("tls", "tcp")
        };
        let requests: Vec<&Line> = lines
            .iter()
            .filter(of)
            .filter(|line| line.text("method") == "REGISTER" && line.number("expires") > 0)
            .filter(|line| line.number("copies") == 0)
            .collect();
        let calls: HashSet<&str> = requests.iter().map(|line| line.text("call_id")).collect();
        let noted = lines.iter().any(|line| {
            line.text("ev") == "note"
                && calls.contains(line.text("call_id"))
                && line.text("note").contains(row.note)
        });
        let tiny = row.mode.starts_with("expires-one") || row.mode.starts_with("expires-tiny");
        let count = requests.len();
        let title = format!("{} over {transport}", row.mode);
        if outcome != row.outcome {
            wrong.push(format!(
                "{title}: {outcome:?}, wanted {:?}; {told:#?}",
                row.outcome
            ));
        }
        if !row.requests.contains(&count) || (count > A_MINUTE && !tiny) {
            wrong.push(format!(
                "{title}: {count} REGISTERs, wanted {:?}; {told:#?}",
                row.requests
            ));
        }
        if !row.note.is_empty() && !noted {
            wrong.push(format!(
                "{title}: the registrar did not note {:?}",
                row.note
            ));
        }
        if calls.len() != 1 {
            wrong.push(format!("{title}: {} Call-IDs", calls.len()));
        }
        if told.is_empty() {
            wrong.push(format!("{title}: nothing was told"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Every mode the registrar has is a row: one that is added there is missing here until it is decided.
#[test]
#[ignore = "needs python3; .ci/run runs it"]
fn every_mode_has_a_row() {
    let lab = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
    let list = Command::new("python3")
        .arg(lab.join("misreg/misreg.py"))
        .arg("--list")
        .output()
        .expect("python3 runs");
    let list = String::from_utf8(list.stdout).expect("UTF-8");
    let modes: HashSet<&str> = list
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let rows: HashSet<&str> = PERSISTENT.iter().map(|row| row.mode).collect();
    assert!(modes.len() > 80);
    assert_eq!(modes, rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_under_persistent() {
    check("persistent", PERSISTENT.to_vec(), Policy::persistent()).await;
}

/// Whatever comes over TCP comes over TLS as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_over_tls() {
    let mut rows = PERSISTENT.to_vec();
    rows.retain(|row| row.over.contains(&"tcp"));
    for row in &mut rows {
        row.over = TLS;
    }
    check("tls", rows, Policy::persistent()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_under_asterisk() {
    let mut rows = PERSISTENT.to_vec();
    for row in &mut rows {
        if let Some(other) = ASTERISK
            .iter()
            .find(|other| other.mode == row.mode && other.over == row.over)
        {
            *row = other.clone();
        }
    }
    check("asterisk", rows, Policy::asterisk()).await;
}

/// What fails under the fault, and comes back by itself once the registrar is in order
#[rustfmt::skip]
const RECOVERING: &[(&str, &[&str])] = &[
    ("wrong-cseq-then-ok", BOTH), ("expires-zero", BOTH), ("unknown-alg-only", BOTH), ("stale-loop", BOTH),
    ("401-no-header", BOTH), ("401-no-nonce", BOTH), ("423-no-min", BOTH), ("423-huge", BOTH), ("423-text", BOTH),
    ("302-loop", BOTH), ("301-no-contact", BOTH), ("503-retry-huge", BOTH), ("silent", BOTH), ("100-only", BOTH),
    ("fail-refresh", BOTH), ("close-after-200", TCP), ("rst-after-200", TCP), ("close-no-reply", TCP),
    ("tcp-garbage", TCP),
];
/// What ends as refused credentials
const REFUSED: &[(&str, &[&str])] = &[("401-forever", BOTH), ("401-same-nonce", BOTH)];

fn in_seconds() -> Policy {
    let mut policy = Policy::persistent();
    let second = Duration::from_secs(1);
    policy.retry.retry_interval = second;
    policy.retry.forbidden_retry_interval = second;
    policy.retry.fatal_retry_interval = second;
    policy.retry.backoff_max = None;
    policy.retry.retry_after_max = second;
    policy.timers.t1 = Duration::from_millis(100);
    policy.timers.t2 = Duration::from_millis(400);
    policy.timers.timer_f = Duration::from_secs(2);
    policy
}

/// The fault for a while, then the same port in order: back within its interval, timer F and the target's memory.
async fn recover(mode: &'static str, transport: &'static str, refused: bool) {
    let name = format!("r-{mode}-{transport}");
    let misreg = Misreg::start(&name, &["--mode", mode]);
    let port = misreg.port;
    let account = Registration::builder(
        format!("sip:127.0.0.1:{port};transport={transport}"),
        format!("sip:{mode}-{transport}@mis.test"),
    )
    .policy(in_seconds())
    .outbound_auth(Credentials::password(
        format!("{mode}-{transport}"),
        "secret",
    ))
    .max_random_initial_delay(Duration::ZERO);
    let account = configured(mode, account)
        .build()
        .expect("a good configuration");
    let agent = Agent::builder()
        .system_transports()
        .build()
        .await
        .expect("an agent");
    let handle = agent.add(account).await.expect("a registration");
    sleep(Duration::from_secs(4)).await;
    let misreg = misreg.restart(&name, &["--mode", "ok"]);
    let answered = |misreg: &Misreg| {
        misreg
            .lines()
            .iter()
            .filter(|line| line.text("ev") == "tx" && line.number("code") == 200)
            .count()
    };
    if refused {
        sleep(Duration::from_secs(5)).await;
        assert_eq!(
            answered(&misreg),
            0,
            "{mode} over {transport}: tried refused credentials again"
        );
        agent
            .retry_credentials(handle.id())
            .await
            .expect("it is there");
    }
    let mut seen = String::new();
    for _ in 0..300 {
        sleep(Duration::from_millis(100)).await;
        seen = outcome(&agent.status(handle.id()).await.expect("it is there"));
        if answered(&misreg) > 0 && seen.starts_with("bound ") {
            break;
        }
    }
    assert!(
        answered(&misreg) > 0 && seen.starts_with("bound "),
        "{mode} over {transport}: {seen}"
    );
    agent.shutdown(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_failure_ends_with_its_cause() {
    let mut running = JoinSet::new();
    for (modes, refused) in [(RECOVERING, false), (REFUSED, true)] {
        for (mode, over) in modes {
            for transport in *over {
                running.spawn(recover(mode, transport, refused));
            }
        }
    }
    running.join_all().await;
}
