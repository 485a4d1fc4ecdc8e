//! SIPp as registrar (`tests/data/sipp`): what is on the wire, and when nothing is
//!
//! A scenario is one call, so one Call-ID throughout; a message that comes while it pauses fails it. Each is played over
//! UDP and TCP, IPv4 and IPv6.

use crate::ports::free_port;
use sip_registration::{
    Agent, Credentials, Policy, Registration, RegistrationBuilder, SecurityNegotiation,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Beyond what the longest scenario takes
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy)]
struct Over {
    ip: IpAddr,
    transport: &'static str,
}

const OVER: [Over; 4] = [
    Over {
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        transport: "udp",
    },
    Over {
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        transport: "tcp",
    },
    Over {
        ip: IpAddr::V6(Ipv6Addr::LOCALHOST),
        transport: "udp",
    },
    Over {
        ip: IpAddr::V6(Ipv6Addr::LOCALHOST),
        transport: "tcp",
    },
];

/// Scenarios in which this registration is silent for a while: a connection that nobody uses is closed, and SIPp's call
/// ends with it, so another one holds it
const HELD: &[&str] = &[
    "failed_cycle",
    "forbidden",
    "fatal",
    "temporary",
    "unregister_challenged",
    "given_up",
];

fn sipp(scenario: &str, over: Over, port: u16) -> Child {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/sipp")
        .join(format!("{scenario}.xml"));
    Command::new("sipp")
        .arg("-sf")
        .arg(file)
        .args(["-m", if HELD.contains(&scenario) { "2" } else { "1" }])
        .args([
            "-nostdin",
            "-timeout",
            "38s",
            "-timeout_error",
            "-max_socket",
            "16",
        ])
        .args(["-t", if over.transport == "udp" { "u1" } else { "t1" }])
        .args(["-i", &over.ip.to_string(), "-p", &port.to_string()])
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("sipp runs (package sip-tester)")
}

/// Runs one scenario against one registration, which is removed after `hold`.
async fn play(
    scenario: &'static str,
    over: Over,
    hold: Duration,
    change: fn(RegistrationBuilder) -> RegistrationBuilder,
) {
    let port = free_port();
    let server = sipp(scenario, over, port);
    // It says nothing when it is ready; UDP would be sent again, TCP would be refused.
    for _ in 0..100 {
        let address = SocketAddr::new(over.ip, port);
        let taken = match over.transport {
            "udp" => UdpSocket::bind(address).is_err(),
            _ => std::net::TcpStream::connect(address).is_ok(),
        };
        if taken {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let mut policy = Policy::default();
    policy.retry.retry_interval = Duration::from_secs(2);
    policy.retry.forbidden_retry_interval = Duration::from_secs(3);
    policy.retry.fatal_retry_interval = Duration::from_secs(4);
    let account = |user: &str| {
        Registration::builder(
            format!(
                "sip:{};transport={}",
                SocketAddr::new(over.ip, port),
                over.transport
            ),
            format!("sip:{user}@sipp.test"),
        )
        .expiration(Duration::from_secs(600))
        .policy(policy.clone())
        .outbound_auth(Credentials::password(user, "secret"))
        .max_random_initial_delay(Duration::ZERO)
    };
    let agent = Agent::builder()
        .system_transports()
        .build()
        .await
        .expect("an agent");
    if HELD.contains(&scenario) {
        let holder = account("holder").build().expect("a good configuration");
        let holder = agent.add(holder).await.expect("a registration");
        holder.registered().await.expect("SIPp lets it register");
    }
    let account = change(account("alice"));
    let account = account.build().expect("a good configuration");
    let handle = agent.add(account).await.expect("a registration");
    sleep(hold).await;
    if HELD.contains(&scenario) {
        handle.remove(Duration::from_secs(8)).await;
        // What the scenario still waits for is waited for, before the connection goes.
        sleep(Duration::from_secs(2)).await;
    }
    agent.shutdown(Duration::from_secs(8)).await;
    let output = timeout(PATIENCE, server.wait_with_output())
        .await
        .expect("sipp ends")
        .expect("sipp ran");
    assert!(
        output.status.success(),
        "{scenario} over {} {}: {}",
        over.transport,
        over.ip,
        String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout)
    );
}

async fn over_all(
    all: &[Over],
    scenario: &'static str,
    hold: f32,
    change: fn(RegistrationBuilder) -> RegistrationBuilder,
) {
    let hold = Duration::from_secs_f32(hold);
    let plays: JoinSet<()> = all
        .iter()
        .map(|over| play(scenario, *over, hold, change))
        .collect();
    plays.join_all().await;
}

fn same(account: RegistrationBuilder) -> RegistrationBuilder {
    account
}

fn mediasec(account: RegistrationBuilder) -> RegistrationBuilder {
    account
        .security_negotiation(SecurityNegotiation::Mediasec)
        .security_mechanisms("sdes-srtp;mediasec")
        .security_mechanisms("dtls-srtp;mediasec")
}

macro_rules! scenarios {
    ($($name:ident $over:ident $hold:literal $change:expr;)*) => {$(
        #[tokio::test]
        #[ignore = "needs SIPp; .ci/run runs it"]
        async fn $name() {
            over_all(&$over, stringify!($name), $hold, $change).await;
        }
    )*};
}

scenarios! {
    plain OVER 1.0 same;
    auth OVER 1.0 same;
    brief OVER 1.0 same;
    mediasec_challenge OVER 1.0 mediasec;
    security_agreement OVER 1.0 mediasec;
    foreign OVER 3.0 same;
    no_expires OVER 3.3 same;
    failed_cycle OVER 3.0 same;
    forbidden OVER 4.2 same;
    fatal OVER 5.4 same;
    temporary OVER 6.4 same;
    unregister_challenged OVER 0.8 same;
    given_up OVER 4.5 |account| {
        let mut policy = Policy::default();
        policy.retry.fatal_retry_interval = Duration::ZERO;
        account.policy(policy)
    };
}
