//! What an operator sees: the trace, without secrets, and the metrics

use sip_registration::testkit::{MockTransport, Reply};
use sip_registration::{Agent, Credentials, FlowError, Registration};
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
    Registration::builder(server, "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "hunter2-of-alice"))
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("a good configuration")
}

const NONCE: &str = "4ae1b2c3-of-the-registrar";

/// MD5 of `alice:example.com:hunter2-of-alice`
fn ha1() -> String {
    use md5::Digest as _;
    let hash = md5::Md5::digest("alice:example.com:hunter2-of-alice");
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A run with a challenge, a refresh, a rejection, a lost flow, a refused password and a removal, all of it traced.
#[tokio::test(start_paused = true)]
async fn a_full_trace_shows_each_registration_and_no_secret() {
    let log = LOG.clone();
    let (transport, mut wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport)
        .build()
        .await
        .expect("an agent");
    let handle = agent
        .add(account("sip:192.0.2.9"))
        .await
        .expect("a registration");
    let challenge =
        format!("Digest realm=\"example.com\", nonce=\"{NONCE}\", qop=\"auth\", algorithm=MD5");
    let mut authorizations = Vec::new();
    for code in [401, 200, 200, 403] {
        let request = wire.next_request().await;
        authorizations.extend(
            request
                .header("Authorization")
                .map(|value| value.into_owned()),
        );
        wire.reply(
            &request,
            Reply::from(code).header("WWW-Authenticate", &challenge),
        )
        .await;
        tokio::task::yield_now().await;
        if code == 200 {
            handle.registered().await.expect("registered");
            handle.refresh().await.expect("it is there");
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    wire.fail_all(FlowError::Reset).await;
    handle.refresh().await.expect("it is there");
    for _ in 0..2 {
        let request = wire.next_request().await;
        authorizations.extend(
            request
                .header("Authorization")
                .map(|value| value.into_owned()),
        );
        let fresh = challenge.replace(NONCE, &format!("{NONCE}-2"));
        wire.reply(
            &request,
            Reply::from(401).header("WWW-Authenticate", &fresh),
        )
        .await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let id = handle.id().to_string();
    drop(wire);
    agent.shutdown(Duration::from_secs(1)).await;

    let log = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("UTF-8");
    assert!(authorizations.len() >= 3, "{authorizations:?}");
    assert!(
        log.contains(&format!("registration{{id={id}}}")),
        "no {id} in {log}"
    );
    assert!(log.contains("credentials refused"), "{log}");
    let responses = authorizations.iter().filter_map(|value| {
        let (_, rest) = value.split_once("response=\"")?;
        rest.split_once('"').map(|(response, _)| response)
    });
    for secret in ["hunter2", NONCE, "Authorization", &ha1(), "cnonce"]
        .into_iter()
        .chain(responses)
    {
        assert!(!log.contains(secret), "{secret:?} in {log}");
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
        for code in [200, 500, 200] {
            let request = wire.next_request().await;
            wire.reply(&request, code).await;
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
            assert!(!name.contains("alice"), "{name}");
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
