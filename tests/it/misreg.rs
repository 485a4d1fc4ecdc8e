//! Against a registrar that misbehaves on request (`tests/lab/misreg/misreg.py`), over UDP, TCP and TLS, in two profiles
//!
//! A row is a mode of it: what must have become of the registration after [`WATCHED`], and how many REGISTERs that
//! took. Each row has an agent and a user of its own, so that nothing which one learns helps or hurts another.

pub(crate) mod server;
mod table;

use server::{Line, Misreg, modes};
use sip_registration::{
    Activity, Agent, Credentials, Event, InstanceId, Policy, Protocol, Registration,
    RegistrationBuilder, RegistrationHandle, SecurityNegotiation, Status, TlsConfig, TlsTransport,
    TransportConfig,
};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::{ASTERISK, BOTH, PERSISTENT, Row, TLS};
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long each row is watched
///
/// Longer than timer F, so that a row that nobody answers has to end, too; and shorter than the retry interval, so that
/// it ends once. Under `asterisk()` no refresh is due close to it: those of 61 and 62 s have been, those of 65 to 67 s
/// come 56 s and more after the start.
const WATCHED: Duration = Duration::from_millis(54_500);
/// REGISTERs in any minute, at most, but for those that a tiny grant asks for
const A_MINUTE: usize = 12;
/// REGISTERs in one cycle, at most
const A_CYCLE: i64 = 6;
/// How long a removal may take
const REMOVAL: Duration = Duration::from_secs(8);
/// Tables that run at once: hundreds of registrations each, and one process of Python that answers them
static ROOM: Semaphore = Semaphore::const_new(2);
/// How far the time that was told may be from the one that came
const PRECISE: Duration = Duration::from_secs(2);

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
        "420" => account.support_path(true),
        "494" | "494-for-ever" | "401-mediasec" => account
            .security_negotiation(SecurityNegotiation::Mediasec)
            .security_mechanisms("sdes-srtp;mediasec")
            .security_mechanisms("dtls-srtp;mediasec"),
        "rewritten-with-line" => account.line(true).endpoint("trunk"),
        "gruu" => account
            .instance(InstanceId::from_random([7; 16]))
            .gruu(true),
        "439" => account
            .instance(InstanceId::from_random([7; 16]))
            .outbound(true),
        mode if mode.starts_with("423") => account.expiration(Duration::from_secs(60)),
        _ => account,
    }
}

/// One registration at the registrar, as the user that the mode is named after
struct Phone {
    /// Keeps it running
    agent: Agent,
    handle: RegistrationHandle,
    events: sip_registration::Events,
}

impl Phone {
    async fn new(misreg: &Misreg, mode: &str, transport: &str, policy: Policy) -> Self {
        // The mode ends at the dot; no row has another one's user, or D6 would block it.
        let user = format!("{mode}.{transport}");
        let (port, over) = match transport {
            "tls" => (misreg.tls, "tls"),
            over => (misreg.port, over),
        };
        let account = Registration::builder(
            format!("sip:127.0.0.1:{port};transport={over}"),
            format!("sip:{user}@mis.test"),
        )
        .contact_user("us")
        .policy(policy)
        .outbound_auth(Credentials::password(&*user, "secret"))
        .max_random_initial_delay(Duration::ZERO);
        let account = configured(mode, account)
            .build()
            .expect("a good configuration");
        let agent = if transport == "tls" {
            let config = TransportConfig::new("tls", Protocol::Tls).expect("a good name");
            let tls = TlsConfig::new().with_roots_pem(misreg.roots().as_bytes());
            let transport = TlsTransport::new(config, tls.expect("a root")).expect("TLS");
            Agent::builder().transport("tls", transport)
        } else {
            Agent::builder().system_transports()
        };
        let agent = agent.build().await.expect("an agent");
        let events = agent.events();
        let handle = agent.add(account).await.expect("a registration");
        Self {
            agent,
            handle,
            events,
        }
    }

    async fn status(&self) -> Status {
        self.handle.status().await.expect("it is there")
    }

    /// Its status once nothing is under way.
    async fn at_rest(&self) -> Status {
        let mut status = self.status().await;
        for _ in 0..20 {
            if !outcome(&status).contains("at work") {
                break;
            }
            sleep(Duration::from_millis(100)).await;
            status = self.status().await;
        }
        status
    }
}

/// What was seen of one row
struct Seen {
    row: Row,
    transport: &'static str,
    status: Status,
    at: Instant,
    told: Vec<(Instant, Arc<Event>)>,
}

#[expect(clippy::disallowed_methods, reason = "what is watched is in real time")]
fn now() -> Instant {
    Instant::now()
}

async fn watch(misreg: Arc<Misreg>, row: Row, transport: &'static str, policy: Policy) -> Seen {
    let mut phone = Phone::new(&misreg, row.mode, transport, policy).await;
    let mut told = Vec::new();
    let until = sleep(WATCHED);
    tokio::pin!(until);
    loop {
        tokio::select! {
            () = &mut until => break,
            event = phone.events.next() => told.push((now(), event.expect("the agent lives").1)),
        }
    }
    let (status, at) = (phone.at_rest().await, now());
    phone.agent.shutdown(REMOVAL).await;
    Seen {
        row,
        transport,
        status,
        at,
        told,
    }
}

/// When an event says that the next attempt starts; none where it says nothing of the kind, the second none where it says
/// that there is none.
fn next(event: &Event) -> Option<Option<Duration>> {
    match event {
        Event::Scheduled { first_in } => Some(Some(*first_in)),
        Event::Registered(granted) | Event::Refreshed(granted) => Some(Some(granted.refresh_in)),
        Event::Rejected { retry_in, .. } => Some(Some(*retry_in)),
        Event::GaveUp { .. } => Some(None),
        Event::Expired { next_in } | Event::FlowLost { next_in, .. } => Some(*next_in),
        _ => None,
    }
}

/// The CSeq number of the request that an attempt ended with
fn ended(event: &Event) -> Option<u32> {
    match event {
        Event::Registered(granted) | Event::Refreshed(granted) => Some(granted.exchange.cseq),
        Event::Rejected { exchange, .. } | Event::GaveUp { exchange, .. } => {
            Some(exchange.as_ref()?.cseq)
        }
        _ => None,
    }
}

impl Seen {
    /// Whether an event said what the status says now, and when the next attempt starts
    fn unsaid(&self) -> Option<String> {
        let said = self.told.iter().rev();
        let Some((at, said)) = said
            .filter_map(|(at, event)| Some((*at, next(event)?)))
            .next()
        else {
            return Some("nothing says what comes next".into());
        };
        match (self.status.activity, said) {
            (Activity::Waiting { until }, Some(after)) => {
                let off = until
                    .saturating_duration_since(at + after)
                    .max((at + after).saturating_duration_since(until));
                let late = self.at.saturating_duration_since(until);
                (off > PRECISE || late > PRECISE)
                    .then(|| format!("waits {off:?} beside what was told, {late:?} late"))
            }
            (Activity::Idle, None) => {
                let why = self.told.iter().find_map(|(_, event)| match &**event {
                    Event::GaveUp { failure, .. } => Some(failure),
                    _ => None,
                });
                (why != self.status.last_failure.as_ref())
                    .then(|| format!("gave up for {why:?}, and says another failure"))
            }
            (activity, said) => Some(format!("is {activity:?}, told {said:?}")),
        }
    }

    /// What a grant must say, where the mode is about that
    fn lacks(&self) -> Option<String> {
        let granted = self.told.iter().find_map(|(_, event)| match &**event {
            Event::Registered(granted) => Some(granted),
            _ => None,
        })?;
        let says = match self.row.mode {
            "gruu" => granted.public_gruu.is_some() && granted.temporary_gruu.is_some(),
            "439" => granted.reg_id.is_none() && !granted.outbound,
            _ => true,
        };
        (!says).then(|| format!("granted {granted:?}"))
    }

    /// What differs from the table
    fn wrong(&self, lines: &[Line]) -> Vec<String> {
        let row = &self.row;
        let requests: Vec<&Line> = lines
            .iter()
            .filter(|line| {
                line.text("ev") == "rx"
                    && line.text("mode") == row.mode
                    && line.text("to").contains(&format!(".{}@", self.transport))
                    && line.text("method") == "REGISTER"
                    && line.number("expires") > 0
                    && line.number("copies") == 0
            })
            .collect();
        let mut wrong = Vec::new();
        let seen = outcome(&self.status);
        if seen != row.outcome {
            wrong.push(format!("{seen:?}, wanted {:?}", row.outcome));
        }
        wrong.extend(self.unsaid());
        wrong.extend(self.lacks());

        // A grant of seconds asks for more.
        let tiny = row.mode.starts_with("expires-one") || row.mode.starts_with("expires-tiny");
        if !row.requests.contains(&requests.len()) || (requests.len() > A_MINUTE && !tiny) {
            let count = requests.len();
            wrong.push(format!("{count} REGISTERs, wanted {:?}", row.requests));
        }
        let number = |line: &Line| {
            let number = line.text("cseq").split(' ').next();
            number.and_then(|number| number.parse::<i64>().ok())
        };
        let mut before = requests.first().copied().and_then(number).unwrap_or(1) - 1;
        for ended in self.told.iter().filter_map(|(_, event)| ended(event)) {
            let cycle = i64::from(ended) - before;
            if cycle > A_CYCLE {
                wrong.push(format!("{cycle} requests in a cycle"));
            }
            before = ended.into();
        }

        let calls: HashSet<&str> = requests.iter().map(|line| line.text("call_id")).collect();
        if calls.len() != 1 {
            wrong.push(format!("{} Call-IDs", calls.len()));
        }
        let noted = lines.iter().any(|line| {
            line.text("ev") == "note"
                && calls.contains(line.text("call_id"))
                && line.text("note").contains(row.note)
        });
        if !row.note.is_empty() && !noted {
            wrong.push(format!("the registrar did not note {:?}", row.note));
        }
        wrong
    }
}

fn fail_if(wrong: &[String]) {
    let many = wrong.len();
    assert!(wrong.is_empty(), "{many} differ:\n{}", wrong.join("\n"));
}

/// Runs all rows at once, and lists what differs from the table.
async fn check(name: &str, rows: Vec<Row>, policy: Policy) {
    let _room = ROOM.acquire().await.expect("it is never closed");
    let misreg = Arc::new(Misreg::start(name));
    let mut running = JoinSet::new();
    for row in rows {
        for transport in row.over {
            running.spawn(watch(
                misreg.clone(),
                row.clone(),
                transport,
                policy.clone(),
            ));
        }
    }
    let seen = running.join_all().await;
    let lines = misreg.lines();
    let mut wrong = Vec::new();
    for seen in seen {
        let told: Vec<_> = seen
            .told
            .iter()
            .map(|(_, event)| event.to_string())
            .collect();
        for what in seen.wrong(&lines) {
            wrong.push(format!(
                "{} over {}: {what}; {told:#?}",
                seen.row.mode, seen.transport
            ));
        }
    }
    fail_if(&wrong);
}

/// The table of `persistent()`, with the rows that are others under `asterisk()`.
fn under_asterisk() -> Vec<Row> {
    let other = |row: &Row| {
        ASTERISK
            .iter()
            .find(|other| other.mode == row.mode && other.over == row.over)
    };
    PERSISTENT
        .iter()
        .map(|row| other(row).unwrap_or(row).clone())
        .collect()
}

/// Whatever comes over TCP comes over TLS as well.
fn over_tls(mut rows: Vec<Row>) -> Vec<Row> {
    rows.retain(|row| row.over.contains(&"tcp"));
    for row in &mut rows {
        row.over = TLS;
    }
    rows
}

/// Every mode the registrar has is a row of both tables, over UDP and TCP: one that is added there is missing here until
/// it is decided.
#[test]
#[ignore = "needs python3; .ci/run runs it"]
fn every_mode_has_a_row() {
    let modes = modes();
    assert!(modes.len() > 140, "{} modes", modes.len());
    let wanted: BTreeSet<(&str, &str)> = modes
        .iter()
        .flat_map(|mode| BOTH.iter().map(|over| (mode.as_str(), *over)))
        .collect();
    for table in [PERSISTENT.to_vec(), under_asterisk()] {
        let rows: Vec<(&str, &str)> = table
            .iter()
            .flat_map(|row| row.over.iter().map(|over| (row.mode, *over)))
            .collect();
        assert_eq!(rows.len(), wanted.len(), "a mode has two rows");
        assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), wanted);
    }
    // A row of the second table that replaces none of the first would not be run.
    for row in ASTERISK {
        let (mode, over) = (row.mode, row.over);
        let replaces = PERSISTENT
            .iter()
            .any(|first| first.mode == mode && first.over == over);
        assert!(replaces, "{mode} over {over:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_under_persistent() {
    check("persistent", PERSISTENT.to_vec(), Policy::persistent()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_over_tls() {
    let rows = over_tls(PERSISTENT.to_vec());
    check("tls", rows, Policy::persistent()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_under_asterisk() {
    check("asterisk", under_asterisk(), Policy::asterisk()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_mode_under_asterisk_over_tls() {
    let rows = over_tls(under_asterisk());
    check("asterisk-tls", rows, Policy::asterisk()).await;
}

fn in_seconds() -> Policy {
    let mut policy = Policy::persistent();
    let second = Duration::from_secs(1);
    policy.retry.retry_interval = second * 2;
    policy.retry.forbidden_retry_interval = second;
    policy.retry.fatal_retry_interval = second;
    policy.retry.backoff_max = None;
    // RFC 5626 §4.5 has half a minute and more, where nobody listens for a moment.
    policy.flow_recovery = false;
    policy.retry.retry_after_max = second;
    policy.timers.t1 = Duration::from_millis(100);
    policy.timers.t2 = Duration::from_millis(400);
    policy.timers.timer_f = Duration::from_secs(2);
    policy
}

/// How long the fault lasts: some attempts
const BROKEN: Duration = Duration::from_secs(5);
/// Within this it is back: its interval, timer F, a connection that has to be made, and the wait after flaps (D2)
const BACK: Duration = Duration::from_secs(30);

/// Watches one registration through the fault and after it; says what is wrong.
async fn recover(
    mut phone: Phone,
    mode: &'static str,
    transport: &'static str,
    mended: Arc<OnceCell<Misreg>>,
    fault_ended: Arc<Notify>,
) -> Option<String> {
    fault_ended.notified().await;
    let title = format!("{mode} over {transport}");
    let refused = outcome(&phone.status().await).contains("credentials refused");
    let misreg = mended.get().expect("it runs again");
    let answered = || {
        misreg.lines().iter().any(|line| {
            line.text("ev") == "rx" && line.text("to").contains(&format!("{mode}.{transport}@"))
        })
    };
    if refused {
        sleep(BROKEN).await;
        if answered() {
            return Some(format!("{title}: tried refused credentials again"));
        }
        let retry = phone.handle.retry_credentials().await;
        retry.expect("it is there");
    }
    let until = tokio::time::timeout(BACK, async {
        // A binding over UDP that nobody touched needs no REGISTER; every other registration has to come by itself.
        loop {
            let status = phone.status().await;
            let kept = transport == "udp" && !answered();
            if status.is_reachable() && (answered() || (kept && status.last_failure.is_none())) {
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
    });
    let back = until.await.is_ok();
    let seen = outcome(&phone.status().await);
    let mut told = Vec::new();
    while let Ok(Some((_, event))) = tokio::time::timeout(Duration::ZERO, phone.events.next()).await
    {
        told.push(event.to_string());
    }
    phone.agent.shutdown(REMOVAL).await;
    (!back).then(|| format!("{title}: {seen}; {told:#?}"))
}

/// Every fault for some seconds, then the registrar in order on the same ports: each registration is back by itself
/// within its interval, and refused credentials are tried again on command only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3; .ci/run runs it"]
async fn each_failure_ends_with_its_cause() {
    let _room = ROOM.acquire().await.expect("it is never closed");
    let misreg = Misreg::start("recovery");
    let (mended, ended) = (Arc::default(), Arc::new(Notify::new()));
    let mut running = JoinSet::new();
    let mut phones = 0;
    for row in PERSISTENT.iter().filter(|row| row.is_a_failure()) {
        let tls: &[&'static str] = if row.over.contains(&"tcp") { TLS } else { &[] };
        for transport in row.over.iter().chain(tls) {
            let phone = Phone::new(&misreg, row.mode, transport, in_seconds()).await;
            let (mended, ended) = (Arc::clone(&mended), Arc::clone(&ended));
            running.spawn(recover(phone, row.mode, transport, mended, ended));
            phones += 1;
        }
    }
    sleep(BROKEN).await;
    let again = misreg.mended("recovery");
    assert!(mended.set(again).is_ok(), "it is set once");
    ended.notify_waiters();
    let wrong: Vec<String> = running.join_all().await.into_iter().flatten().collect();
    assert!(phones > 120, "{phones} registrations");
    fail_if(&wrong);
}
