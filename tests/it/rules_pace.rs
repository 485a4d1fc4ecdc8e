//! Whatever one registrar says for an hour: at most 6 requests a cycle and 12 in any minute, and nobody is left without a
//! deadline or a reported end.

use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::time::Duration;

use super::machine::secs;

const A_CYCLE: usize = 6;
const A_MINUTE: usize = 12;
/// For so long a registrar goes on like this
const LONG: Duration = Duration::from_secs(3600);

/// What a registrar does with the nth request
#[derive(Clone, Copy)]
enum Does {
    Says(fn(u32, &SentRequest) -> Reply),
    /// The same, and ends the connection (over UDP: the network says that nobody is there)
    SaysAndCloses(fn(u32, &SentRequest) -> Reply),
    Nothing,
    Closes,
}
use Does::{Closes, Nothing, Says, SaysAndCloses};

fn challenge(code: u16, realm: &str, nonce: u32, more: &str) -> Reply {
    let name = if code == 407 {
        "Proxy-Authenticate"
    } else {
        "WWW-Authenticate"
    };
    let value = format!("Digest realm=\"{realm}\", nonce=\"n{nonce}\", qop=\"auth\"{more}");
    Reply::status(code).header(name, &value)
}

fn retry_after(code: u16, seconds: &str) -> Reply {
    Reply::status(code).header("Retry-After", seconds)
}

fn wanted(request: &SentRequest) -> u32 {
    request.text_of("Expires").parse().unwrap_or(3600)
}

#[rustfmt::skip]
const WAYS: &[(&str, Does)] = &[
    ("silence", Nothing),
    ("closes", Closes),
    ("grants and closes", SaysAndCloses(|_, _| Reply::granted(3600))),
    ("grants a minute and closes now and then", SaysAndCloses(|n, _| Reply::granted(60 + n % 7))),
    ("grants 24 s", Says(|_, _| Reply::granted(24))),
    ("grants and fails in turn", Says(|n, _| if n % 2 == 0 { Reply::granted(30) } else { Reply::status(500) })),
    ("grants nothing", Says(|_, _| Reply::granted(0))),
    ("302", Says(|_, request| Reply::status(302).header("Contact", &format!("<{}>", request.uri())))),
    ("400", Says(|_, _| Reply::status(400))),
    ("403", Says(|_, _| Reply::status(403))),
    ("404", Says(|_, _| Reply::status(404))),
    ("420", Says(|n, _| Reply::status(420).header("Unsupported", if n % 2 == 0 { "path" } else { "outbound" }))),
    ("421", Says(|_, _| Reply::status(421).header("Require", "outbound"))),
    ("430", Says(|_, _| Reply::status(430))),
    ("439", Says(|_, _| Reply::status(439))),
    ("494", Says(|n, _| Reply::status(494).header("Security-Server", &format!("sdes-srtp;mediasec;x={n}")))),
    ("500", Says(|_, _| Reply::status(500))),
    ("603", Says(|_, _| Reply::status(603))),
    ("500 and again at once", Says(|_, _| retry_after(500, "0"))),
    ("500 and again in a second", Says(|_, _| retry_after(500, "1"))),
    ("503 and again at once", Says(|_, _| retry_after(503, "0"))),
    ("503 and again in a second", Says(|_, _| retry_after(503, "1"))),
    ("503 and again in a second, and closes", SaysAndCloses(|_, _| retry_after(503, "1"))),
    ("503, with a grant of a minute now and then", Says(|n, _| if n % 4 == 0 { Reply::granted(60) } else { retry_after(503, "1") })),
    ("480 and 503 and again in a second", Says(|n, _| retry_after(if n % 2 == 0 { 480 } else { 503 }, "1"))),
    ("480 and again in two seconds", Says(|_, _| retry_after(480, "2"))),
    ("401, another nonce each time", Says(|n, _| challenge(401, "r", n, ""))),
    ("401, stale each time", Says(|n, _| challenge(401, "r", n, ", stale=true"))),
    ("401, the same nonce each time", Says(|_, _| challenge(401, "r", 0, ""))),
    ("401, nothing to answer", Says(|_, _| Reply::status(401))),
    ("401 and 407 of ever new realms", Says(|n, _| challenge(if n % 2 == 0 { 401 } else { 407 }, &format!("r{n}"), n, ""))),
    ("401, then granted, then nothing of it known", Says(|n, _| if n % 3 == 2 { Reply::granted(60) } else { challenge(401, "r", n, ", stale=true") })),
    ("423 without a word", Says(|_, _| Reply::status(423))),
    ("423, more each time", Says(|_, request| Reply::status(423).header("Min-Expires", &(wanted(request) + 60).to_string()))),
    ("everything in turn", Says(|n, request| match n % 9 {
        0 => challenge(401, "r", n, ""),
        1 => Reply::granted(40),
        2 => Reply::status(500),
        3 => retry_after(503, "1"),
        4 => challenge(407, "p", n, ", stale=true"),
        5 => Reply::status(423).header("Min-Expires", &(wanted(request) + 1).to_string()),
        6 => Reply::granted(0),
        7 => Reply::status(494).header("Security-Server", "sdes-srtp;mediasec"),
        _ => retry_after(480, "0"),
    })),
];

fn ends_attempt(event: &Event) -> bool {
    matches!(
        event,
        Event::Registered(_) | Event::Refreshed(_) | Event::Rejected { .. } | Event::GaveUp { .. }
    )
}

/// Lets the registrar do so for [`LONG`]; says what was wrong.
fn play(does: Does, transport: &str, policy: Policy) -> Result<usize, String> {
    let server = format!("sip:192.0.2.9;transport={transport}");
    let account = Registration::builder(server, "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .max_random_initial_delay(Duration::ZERO)
        .support_path(true)
        .support_outbound(true)
        .security_negotiation(SecurityNegotiation::Mediasec)
        .security_mechanisms("sdes-srtp;mediasec")
        .policy(policy);
    let mut sim = Sim::new(account.build().expect("a good configuration"));
    let (mut at, mut cycle, mut last) = (Vec::new(), 0, String::new());
    let mut told = Vec::new();
    while sim.elapsed() < LONG {
        let mut n = at.len() as u32;
        for request in sim.all_sent() {
            let number = request.text_of("CSeq");
            let copy = number == last;
            last = number;
            if !copy {
                at.push(sim.elapsed());
                n += 1;
                cycle += 1;
            }
            if cycle > A_CYCLE {
                return Err(format!("{cycle} requests in one cycle"));
            }
            if let Says(says) | SaysAndCloses(says) = does {
                sim.reply(&request, says(n - 1, &request));
            }
            if let Closes | SaysAndCloses(_) = does {
                sim.fail_flow(request.flow(), FlowError::Closed);
            }
            let events = sim.events();
            if events.iter().any(ends_attempt) {
                cycle = 0;
            }
            told.extend(events);
        }
        if !sim.is_silent() {
            continue;
        }
        match sim.deadline() {
            Some(next) => sim.advance(next),
            None => {
                let ended = told
                    .iter()
                    .any(|event| matches!(event, Event::GaveUp { .. }));
                let idle = sim.status().activity == Activity::Idle;
                return match ended && idle {
                    true => most_in_a_minute(&at),
                    false => Err(format!("no deadline, and {:?}", told.last())),
                };
            }
        }
        let events = sim.events();
        if events.iter().any(ends_attempt) {
            cycle = 0;
        }
        told.extend(events);
    }
    most_in_a_minute(&at)
}

fn most_in_a_minute(at: &[Duration]) -> Result<usize, String> {
    let most = (0..at.len())
        .map(|first| {
            let within = at[first..].iter();
            within
                .take_while(|at2| **at2 < at[first] + secs(60))
                .count()
        })
        .max()
        .unwrap_or_default();
    if most > A_MINUTE {
        return Err(format!("{most} requests in a minute, of {}", at.len()));
    }
    Ok(most)
}

#[test]
fn no_registrar_gets_more_than_six_requests_a_cycle_nor_twelve_a_minute() {
    let mut wrong = Vec::new();
    let mut most = 0;
    for (name, policy) in [
        ("default", Policy::default()),
        ("persistent", Policy::persistent()),
        ("asterisk", Policy::asterisk()),
    ] {
        for transport in ["udp", "tcp"] {
            for (way, does) in WAYS {
                match play(*does, transport, policy.clone()) {
                    Ok(here) => most = most.max(here),
                    Err(why) => wrong.push(format!("{way} over {transport}, {name}: {why}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The scripts do provoke.
    assert!(most > A_MINUTE / 2, "{most} requests in a minute at most");
}
