//! Registers an account, says what happens, and un-registers on Ctrl-C or SIGTERM.
//!
//! Without arguments it starts a small registrar of its own, shows two refreshes, and ends:
//!
//! ```text
//! cargo run --example register
//! SIP_PASSWORD=secret cargo run --example register -- --server sip:example.com --aor sip:alice@example.com --user alice
//! ```

mod account;

use account::{End, FLAGS, Options, Result, ended, farewell, usage};
use sip_registration::testkit::TestServer;
use sip_registration::{Agent, Credentials, Event, Registration};
use std::process::ExitCode;
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let problem = match options.take(&flag, &mut args) {
            Ok(true) => continue,
            Ok(false) => format!("unknown argument {flag:?}"),
            Err(problem) => problem,
        };
        return usage(&problem, &format!("register [{FLAGS}]"));
    }
    // Without any of both it shows itself; with one the other is missed.
    let done = match (&options.server, &options.aor) {
        (None, None) => demonstration().await,
        _ => real(options).await,
    };
    ended(done)
}

/// An account at a registrar of our own that grants 10 s: registered, refreshed twice, unregistered.
async fn demonstration() -> Result<()> {
    let server = TestServer::new()
        .user("alice", "secret")
        .grant(Duration::from_secs(10))
        .serve("127.0.0.1:0")
        .await?;
    println!("a registrar listens on {}", server.addr());
    let account = Registration::builder(format!("sip:{}", server.addr()), "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .contact_user("alice")
        .max_random_initial_delay(Duration::ZERO)
        .build()?;
    let agent = Agent::builder().system_transports().build().await?;
    let mut events = agent.events();
    agent.add(account).await?;
    let mut refreshes = 0;
    while let Some((id, event)) = events.next().await {
        println!("{id} {event}");
        refreshes += u32::from(matches!(*event, Event::Refreshed(_)));
        if refreshes == 2 {
            break;
        }
    }
    farewell(&agent, &mut events, |id| id.to_string()).await;
    server.stop().await;
    Ok(())
}

async fn real(options: Options) -> Result<()> {
    let mut end = End::new()?;
    let account = options.account()?.build()?;
    for warning in account.warnings() {
        eprintln!("warning: {warning}");
    }
    let agent = options.agent().await?.build().await?;
    let mut events = agent.events();
    agent.add(account).await?;
    loop {
        tokio::select! {
            next = events.next() => match next {
                Some((id, event)) => println!("{id} {event}"),
                None => break,
            },
            () = end.comes() => break,
        }
    }
    farewell(&agent, &mut events, |id| id.to_string()).await;
    Ok(())
}
