//! What an operator sees: the trace, without secrets, and the metrics

use sip_registration::testkit::{MockTransport, Reply, Wire};
use sip_registration::{
    Agent, Algorithm, CredentialProvider, Credentials, CredentialsQuery, FlowError, Policy,
    Registration, RegistrationId, Secret,
};
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Collects what is logged
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

/// One for the process: the interest in a place that traces is known to the process, not to the thread
static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .init();
    log
});

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn account(server: &str) -> Registration {
    of("alice", server, Credentials::password("alice", PASSWORD))
}

fn of(user: &str, server: &str, credentials: Credentials) -> Registration {
    Registration::builder(server, format!("sip:{user}@example.com"))
        .outbound_auth(credentials)
        .policy({
            let mut policy = Policy::default();
            policy.keep_transcript = true;
            policy
        })
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("a good configuration")
}

const PASSWORD: &str = "hunter2-of-alice";
const PROVIDED: &str = "hunter3-of-carol";
/// Every nonce of the registrar begins so
const NONCE: &str = "4ae1b2c3-of-the-registrar";
const OPAQUE: &str = "0paque-of-the-registrar";

/// MD5 of a user, the realm and a password
fn ha1(user: &str, password: &str) -> String {
    use md5::Digest as _;
    let hash = md5::Md5::digest(format!("{user}:example.com:{password}"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A host that is asked for a password
#[derive(Debug)]
struct Vault;

#[async_trait::async_trait]
impl CredentialProvider for Vault {
    async fn credentials(&self, _: RegistrationId, _: &CredentialsQuery) -> Option<Secret> {
        Some(Secret::password(PROVIDED))
    }
}

/// A registrar that challenges with ever new nonces, and keeps the credentials that it is shown
struct Registrar {
    wire: Wire,
    nonces: u32,
    shown: Vec<String>,
}

impl Registrar {
    /// Answers the next request so.
    async fn answer(&mut self, code: u16) {
        let request = self.wire.next_request().await;
        for name in ["Authorization", "Proxy-Authorization"] {
            let value = request.header(name);
            self.shown.extend(value.map(|value| value.into_owned()));
        }
        self.nonces += 1;
        let challenge = format!(
            "Digest realm=\"example.com\", nonce=\"{NONCE}-{}\", opaque=\"{OPAQUE}\", qop=\"auth\", algorithm=MD5",
            self.nonces
        );
        let name = match code {
            407 => "Proxy-Authenticate",
            _ => "WWW-Authenticate",
        };
        let next = format!("nextnonce=\"{NONCE}-next-{}\"", self.nonces);
        let reply = match code {
            200 => Reply::from(code).header("Authentication-Info", &next),
            _ => Reply::from(code).header(name, &challenge),
        };
        self.wire.reply(&request, reply).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a person may get to see: the trace, events, statuses, and whatever has `Debug`
#[derive(Default)]
struct Shown(String);

impl Shown {
    fn debug(&mut self, what: &impl std::fmt::Debug) {
        self.0 += &format!("{what:?}\n{what:#?}\n");
    }
}

/// A run with challenges of a registrar and of a proxy, a stored hash, a password that is asked for, refreshes, a
/// rejection, a lost flow, a refused password, damaged answers and a removal, all of it traced.
#[tokio::test(start_paused = true)]
async fn a_full_trace_shows_each_registration_and_no_secret() {
    let log = LOG.clone();
    let (transport, wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport)
        .credentials(Vault)
        .build()
        .await
        .expect("an agent");
    let mut events = agent.events();
    let mut registrar = Registrar {
        wire,
        nonces: 0,
        shown: Vec::new(),
    };
    let mut shown = Shown::default();
    let mut transcripts = String::new();
    let stored = ha1("bob", "hunter4-of-bob");
    let hashed = Credentials::ha1("bob", "example.com", Algorithm::Md5, &stored);
    let accounts = [
        of("bob", "sip:192.0.2.9", hashed.expect("a good hash")),
        of("carol", "sip:192.0.2.9", Credentials::provided("carol")),
        account("sip:192.0.2.9"),
    ];
    let mut handles = Vec::new();
    for registration in accounts {
        shown.debug(&registration);
        let handle = agent.add(registration).await.expect("a registration");
        for code in [407, 401, 200] {
            registrar.answer(code).await;
        }
        handle.registered().await.expect("registered");
        for codes in [&[200][..], &[401, 200], &[403]] {
            handle.refresh().await.expect("it is there");
            for code in codes {
                registrar.answer(*code).await;
                shown.debug(&handle.status().await);
                let transcript = handle.transcript().await.expect("it is kept");
                transcripts += &format!("{transcript}\n{transcript:?}\n");
            }
        }
        handles.push(handle);
    }
    let alice = handles.last().expect("three").clone();
    alice.refresh().await.expect("it is there");
    // What is no answer may still have secrets in it.
    let request = registrar.wire.next_request().await;
    let challenged = Reply::challenge("example.com", NONCE).to(&request).to_vec();
    let text = String::from_utf8(challenged).expect("text");
    for damaged in [
        text.replace("CSeq: ", "CSeq: x"),
        text.replace("Via: SIP/2.0", "Via: SIP"),
        text.replace("401", "4011"),
        text[..text.len() / 2].to_owned(),
    ] {
        registrar.wire.push(&request, damaged).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    registrar.wire.fail_all(FlowError::Reset).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..12 {
        let waits = registrar.answer(401);
        if tokio::time::timeout(Duration::from_secs(5), waits)
            .await
            .is_err()
        {
            break;
        }
    }
    for handle in &handles {
        shown.debug(handle);
        shown.debug(&handle.registration().await);
        shown.debug(&handle.status().await);
        for flow in handle.flows().await {
            shown.debug(&flow);
        }
    }
    shown.debug(&agent);
    drop(registrar.wire);
    let fates = agent.shutdown(Duration::from_secs(1)).await;
    shown.debug(&fates);
    let mut told = 0;
    while let Ok(Some((_, event))) =
        tokio::time::timeout(Duration::from_secs(1), events.next()).await
    {
        shown.0 += &format!("{event}\n");
        shown.debug(&event);
        told += 1;
    }

    // What was to be seen was.
    let log = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("UTF-8");
    for handle in &handles {
        let id = handle.id();
        let span = format!("registration{{id={id}}}");
        assert!(log.contains(&span), "no {id} in {log}");
    }
    assert!(told > 10, "{told} events");
    assert!(log.contains("credentials refused"), "{log}");
    assert!(log.contains("dropped a response"), "{log}");
    assert!(shown.0.contains("CredentialsRefused"), "{}", shown.0);
    shown.0 += &log;

    // And of these nothing.
    let credentials = registrar.shown.join(" ");
    let parameter = |name: &str| -> Vec<String> {
        let start = format!(" {name}=\"");
        let found = credentials.split(&start).skip(1);
        let values = found.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
        values.collect()
    };
    let (responses, cnonces) = (parameter("response"), parameter("cnonce"));
    assert!(responses.len() > 10 && cnonces.len() > 10, "{credentials}");
    let hashes = [
        stored,
        ha1("alice", PASSWORD),
        ha1("carol", PROVIDED),
        ha1("bob", "hunter4-of-bob"),
    ];
    let words = [
        "hunter",
        NONCE,
        OPAQUE,
        "Authorization:",
        "Authenticate:",
        "cnonce=",
    ];
    // The last messages name the headers, and nothing that is in them.
    assert!(
        transcripts.contains("Authorization: Digest ***"),
        "{transcripts}"
    );
    assert!(transcripts.contains("SIP/2.0 403"), "{transcripts}");
    let transcripts = transcripts
        .replace("Authorization:", "")
        .replace("Authenticate:", "");
    shown.0 += &transcripts;
    let secrets = words.into_iter().map(str::to_owned);
    for secret in secrets.chain(hashes).chain(responses).chain(cnonces) {
        let found = shown.0.find(&secret).map(|at| {
            let text = shown.0.get(at.saturating_sub(200)..at + 100);
            text.unwrap_or_default().to_owned()
        });
        assert_eq!(found, None, "{secret:?} is shown");
    }
}

#[cfg(feature = "metrics")]
mod metrics {
    use super::*;
    use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
    use std::sync::LazyLock;

    /// One for the process: the facade has no other
    static SNAPSHOTTER: LazyLock<Snapshotter> = LazyLock::new(|| {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().expect("nobody else has");
        snapshotter
    });

    /// Each metric with these in its labels, as `name{label=value,…}`
    fn shown(with: &str) -> Vec<(String, f64)> {
        let mut all: Vec<_> = SNAPSHOTTER
            .snapshot()
            .into_vec()
            .into_iter()
            .map(|(key, _, _, value)| {
                let labels: Vec<_> = key
                    .key()
                    .labels()
                    .map(|label| format!("{}={}", label.key(), label.value()))
                    .collect();
                let value = match value {
                    DebugValue::Counter(count) => count as f64,
                    DebugValue::Gauge(value) => value.into_inner(),
                    DebugValue::Histogram(values) => values.len() as f64,
                };
                (
                    format!("{}{{{}}}", key.key().name(), labels.join(",")),
                    value,
                )
            })
            .filter(|(name, _)| name.contains(with))
            .collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_failures_and_recoveries_are_counted_by_target_and_class() {
        LazyLock::force(&SNAPSHOTTER);
        let (transport, mut wire) = MockTransport::new();
        let agent = Agent::builder()
            .transport("mock", transport)
            .build()
            .await
            .expect("an agent");
        let handle = agent
            .add(account("sip:192.0.2.211"))
            .await
            .expect("a registration");
        for code in [401, 200, 500, 200] {
            let request = wire.next_request().await;
            let reply = match code {
                401 => Reply::challenge("example.com", NONCE),
                code => Reply::from(code),
            };
            wire.reply(&request, reply).await;
            if code == 200 {
                handle.registered().await.expect("registered");
                handle.refresh().await.expect("it is there");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let of = "transport=UDP,target=192.0.2.211";
        let found = shown(of);
        let wanted = [
            (
                format!("sip_registration_attempts_total{{{of},outcome=failed}}"),
                1.0,
            ),
            (
                format!("sip_registration_attempts_total{{{of},outcome=granted}}"),
                2.0,
            ),
            (
                format!("sip_registration_failures_total{{{of},class=temporary}}"),
                1.0,
            ),
            (format!("sip_registration_refresh_seconds{{{of}}}"), 2.0),
        ];
        assert_eq!(found, wanted);
        for (name, _) in shown("") {
            for secret in ["alice", "hunter", NONCE, "example.com", "Digest"] {
                assert!(!name.contains(secret), "{name}");
            }
        }
        let states: Vec<_> = shown("sip_registrations{");
        assert!(
            states
                .iter()
                .any(|(name, _)| name.contains("state=registered")),
            "{states:?}"
        );
    }
}
