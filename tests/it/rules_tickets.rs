//! D27: what a support ticket needs is in events and status, and on request the last messages, without secrets.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::time::Duration;

fn account(keep: bool) -> RegistrationBuilder {
    let mut policy = Policy::default();
    policy.keep_transcript = keep;
    Registration::builder("sip:192.0.2.9", "sip:alice:hunter2@example.com")
        .outbound_auth(Credentials::password("alice", "secret-of-alice"))
        .max_random_initial_delay(Duration::ZERO)
        .policy(policy)
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

fn transcript(sim: &Sim) -> Transcript {
    let found = sim.pool().transcript(sim.id());
    found.expect("it is kept").clone()
}

const CHALLENGE: &str = "Digest realm=\"example.com\", nonce=\"0123456789abcdef\", qop=\"auth\"";

#[test]
fn the_last_request_and_its_answer_are_kept_on_request_without_secrets() {
    let mut sim = Sim::new(built(account(true)));
    let first = sim.sent();
    let waiting = transcript(&sim);
    assert!(
        waiting
            .request
            .starts_with("REGISTER sip:192.0.2.9 SIP/2.0\n")
    );
    assert_eq!(waiting.response, None);
    sim.reply(
        &first,
        Reply::status(401).header("WWW-Authenticate", CHALLENGE),
    );

    let second = sim.sent();
    let cseq = format!("CSeq: {}\n", second.text_of("CSeq"));
    let answering = transcript(&sim);
    assert!(answering.request.contains(&cseq), "{answering}");
    assert!(answering.request.contains("\nAuthorization: Digest ***\n"));
    assert_eq!(answering.response, None);
    let info = "nextnonce=\"fedcba9876543210\"";
    sim.reply(
        &second,
        Reply::granted(600).header("Authentication-Info", info),
    );

    let done = transcript(&sim);
    assert_eq!(done.request, answering.request);
    let response = done.response.as_deref().expect("an answer");
    assert!(response.starts_with("SIP/2.0 200 OK\n"), "{response}");
    assert!(
        response.contains("\nAuthentication-Info: ***\n"),
        "{response}"
    );
    let authorization = second.text_of("Authorization");
    let (_, digest) = authorization.split_once("response=\"").expect("a digest");
    for text in [&waiting, &answering, &done].map(|one| format!("{one} {one:?}")) {
        for secret in [
            "secret-of",
            "hunter2",
            "0123456789",
            "fedcba98",
            &digest[..32],
        ] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    // Switched off, it is gone.
    let id = sim.id();
    sim.with(|pool, cx| pool.reconfigure(cx, id, built(account(false)).into()));
    assert_eq!(sim.pool().transcript(id), None);
}

#[test]
fn nothing_is_kept_unasked() {
    for policy in [Policy::default(), Policy::persistent(), Policy::asterisk()] {
        let mut sim = Sim::registered(
            built(account(false).policy(policy)),
            Duration::from_secs(600),
        );
        sim.advance(Duration::from_secs(595));
        assert!(!sim.is_silent());
        assert_eq!(sim.pool().transcript(sim.id()), None);
    }
}

#[test]
fn what_a_flow_failed_with_is_shown_of_several() {
    let urn = "urn:uuid:00000000-0000-1000-8000-000a95a0e128";
    let two = account(true)
        .instance(InstanceId::parse(urn).expect("a urn"))
        .outbound(true)
        .outbound_proxy("sip:192.0.2.11;lr")
        .further_flow("sip:192.0.2.12;lr");
    let mut sim = Sim::new(built(two));
    let first = sim.sent();
    sim.reply(&first, Reply::granted(600).header("Require", "outbound"));
    sim.advance(Duration::from_secs(5));
    let second = sim.sent();
    sim.reply(&second, Reply::status(500));
    let shown = transcript(&sim);
    let response = shown.response.as_deref().expect("an answer");
    assert!(response.starts_with("SIP/2.0 500"), "{shown}");
    let cseq = format!("CSeq: {}\n", second.text_of("CSeq"));
    assert!(shown.request.contains(&cseq), "{shown}");
}

#[test]
fn the_status_after_a_failure_has_what_its_event_had() {
    let mut sim = Sim::registered(built(account(false)), Duration::from_secs(600));
    assert_eq!(sim.status().exchange, None);
    sim.advance(Duration::from_secs(550));
    let refresh = sim.all_sent().pop().expect("a refresh");
    let reply = Reply::status(500)
        .header("Warning", "399 example \"out of order\"")
        .header("Reason", "Q.850;cause=41")
        .header("Server", "example 1.0");
    sim.reply(&refresh, reply);
    let events = sim.events();
    assert_matches!(&events[..], [Event::Rejected { exchange: Some(told), .. }] => {
        let exchange = sim.status().exchange.expect("an exchange");
        assert_eq!(exchange, *told);
        assert_eq!(*exchange.call_id, *refresh.text_of("Call-ID"));
        assert!(refresh.text_of("CSeq").starts_with(&exchange.cseq.to_string()));
        assert!(refresh.text_of("Via").contains(&*exchange.branch));
        assert_eq!(exchange.target.as_ref(), Some(refresh.target()));
        assert!(exchange.local.is_some());
        assert!(exchange.status_line.starts_with("SIP/2.0 500 "));
        assert_eq!(exchange.warning.as_deref(), Some("399 example \"out of order\""));
        assert_eq!(exchange.reason.as_deref(), Some("Q.850;cause=41"));
        assert_eq!(exchange.server.as_deref(), Some("example 1.0"));
    });
    sim.advance(Duration::from_secs(75));
    let retry = sim.all_sent().pop().expect("a retry");
    sim.reply(&retry, Reply::granted(600));
    assert_eq!(sim.status().exchange, None);
    // Nobody answers: what was asked is there all the same, a flow that cannot be made leaves none.
    sim.advance(Duration::from_secs(595));
    let status = sim.status();
    assert_eq!(status.last_failure, Some(Failure::Timeout));
    let exchange = status.exchange.expect("an exchange");
    assert_eq!(
        (&*exchange.status_line, exchange.local.is_some()),
        ("", true)
    );
}

/// The line that tells the failure of a first REGISTER that was answered so, and what the status has of it.
fn line_of(answer: Reply, lines: &[(&str, &str)]) -> String {
    let mut account = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .policy(Policy::asterisk())
        .max_random_initial_delay(Duration::ZERO);
    for (option, value) in lines {
        let seconds = Duration::from_secs(value.parse().expect("a number"));
        account = match *option {
            "retry_interval" => account.retry_interval(seconds),
            _ => account.fatal_retry_interval(seconds),
        };
    }
    let mut sim = Sim::new(built(account));
    sim.advance(Duration::from_secs(1));
    let request = sim.sent();
    sim.events();
    sim.reply(&request, answer);
    let told: Vec<_> = sim.events().iter().map(ToString::to_string).collect();
    told.join("\n")
}

#[test]
fn the_line_of_a_failure_has_what_the_answer_says_beside_its_code() {
    let warning = "399 pbx.example.com \"contract ended\"";
    let reason = "Q.850;cause=21;text=\"barred\"";
    let bad = Reply::status(420).header("Unsupported", "PATH, \x1bx, a, b, c, d");
    for (answer, lines, told) in [
        (
            Reply::status(421).header("Require", "x-lab, path"),
            &[][..],
            "gave up: 421 Extension Required at UDP 192.0.2.9:5060 [Require: x-lab, path (option support_path)]; \
             fatal_retry_interval is not set, not bound",
        ),
        (
            bad,
            &[("fatal", "60")],
            "attempt failed: 420 Bad Extension at UDP 192.0.2.9:5060 [Unsupported: PATH (option support_path), x, a, b]; failure 1 of at \
             most 10 retries, next attempt in 60.0 s, not bound",
        ),
        (
            Reply::status(403)
                .header("Warning", warning)
                .header("Reason", reason),
            &[],
            "gave up: 403 Forbidden at UDP 192.0.2.9:5060 [Warning: 399 pbx.example.com \"contract ended\"] [Reason: \
             Q.850;cause=21;text=\"barred\"]; neither forbidden_retry_interval nor fatal_retry_interval is set, not bound",
        ),
        (
            Reply::status(503),
            &[("retry_interval", "0")],
            "gave up: 503 Service Unavailable at UDP 192.0.2.9:5060; neither retry_interval nor fatal_retry_interval is set, not bound",
        ),
        (
            Reply::status(401),
            &[],
            "gave up: challenge cannot be answered: no digest challenge at UDP 192.0.2.9:5060; fatal_retry_interval is not set, not bound",
        ),
        (
            Reply::status(408).header("Warning", ""),
            &[],
            "attempt failed: 408 Request Timeout at UDP 192.0.2.9:5060; failure 1 of at most 10 retries, next attempt in \
             60.0 s, not bound",
        ),
        // Names of the answer count where they explain it.
        (
            Reply::status(500).header("Require", "path"),
            &[],
            "attempt failed: 500 Server Internal Error at UDP 192.0.2.9:5060; failure 1 of at most 10 retries, next attempt in 60.0 s, not \
             bound",
        ),
    ] {
        assert_eq!(line_of(answer, lines), told);
    }
}

#[test]
fn the_line_of_a_silence_says_where_the_request_went() {
    let account = account(false).policy(Policy::asterisk());
    let mut sim = Sim::new(built(account.max_random_initial_delay(Duration::ZERO)));
    sim.advance(Duration::from_secs(1));
    sim.all_sent();
    sim.events();
    sim.advance(Duration::from_secs(32));
    assert_eq!(
        sim.events()[0].to_string(),
        "attempt failed: no answer at UDP 192.0.2.9:5060; failure 1 of at most 10 retries, next attempt in 60.0 s, not \
         bound"
    );
}

#[test]
fn a_target_that_is_left_alone_is_told_with_the_reason() {
    for (retry_after, told) in [
        (
            Some(Duration::from_secs(60)),
            "not asked, as it wants to be left alone for a while",
        ),
        (None, "not asked, as it has just not answered"),
    ] {
        let error = FlowError::TargetDown { retry_after };
        assert_eq!(Failure::from(error).to_string(), told);
    }
}
