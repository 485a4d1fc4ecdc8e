//! A softphone without sound: it registers, shows where each call comes from, and refuses it or takes it.
//!
//! ```text
//! SIP_PASSWORD=secret cargo run --example softphone -- --server sip:example.com --aor sip:alice@example.com
//! SIP_PASSWORD=secret cargo run --example softphone -- --server sip:example.com --aor sip:alice@example.com --answer
//! SIP_PASSWORD=secret cargo run --example softphone -- --server sip:example.com --aor sip:alice@example.com \
//!     --instance ~/.softphone --proxy 'sip:edge1.example.com;lr' --flow 'sip:edge2.example.com;lr' --gruu
//! cargo run --example softphone -- --config /etc/asterisk/pjsip.conf
//! ```
//!
//! INVITE gets 486, with `--answer` 200 and an SDP that accepts no media; BYE, OPTIONS and MESSAGE get 200; anything
//! else 501. Ctrl-C and SIGTERM un-register.

mod account;
mod phone;

use account::{End, FLAGS, Options, Result, ended, farewell, usage};
use phone::{Lines, Phone};
use sip_registration::Agent;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (mut options, mut answer, mut config) = (Options::default(), false, None);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let problem = match (flag.as_str(), options.take(&flag, &mut args)) {
            ("--answer", _) => {
                answer = true;
                continue;
            }
            ("--config", _) => match args.next() {
                Some(file) => {
                    config = Some(file);
                    continue;
                }
                None => "--config needs a value".to_owned(),
            },
            (_, Ok(true)) => continue,
            (_, Ok(false)) => format!("unknown argument {flag:?}"),
            (_, Err(problem)) => problem,
        };
        let flags = format!(
            "softphone {FLAGS} [--answer]\nsoftphone --config FILE [--nameserver IP:PORT] [--answer]\n\
             --config registers the accounts of a pjsip.conf. --answer takes calls instead of refusing them."
        );
        return usage(&problem, &flags);
    }
    ended(start(options, config, answer).await)
}

async fn start(options: Options, config: Option<String>, answer: bool) -> Result<()> {
    match config {
        Some(file) => {
            let (agent, accounts) = phone::file(&file, options.nameserver).await?;
            run(agent, accounts, answer).await
        }
        None => {
            // The token in our Contact tells to which account a call came, whatever the caller dialled.
            let account = options.account()?.line(true).endpoint("softphone");
            let account = account.build()?;
            for warning in account.warnings() {
                eprintln!("warning: {warning}");
            }
            let agent = options.agent().await?.build().await?;
            let name = account.aor_text().to_owned();
            run(agent, vec![(name, account)], answer).await
        }
    }
}

/// Registers the accounts, tells what happens, and answers what arrives.
async fn run(agent: Agent, accounts: phone::Accounts, answer: bool) -> Result<()> {
    let mut end = End::new()?;
    let (mut events, mut messages) = (agent.events(), agent.messages());
    let mut lines = Lines::default();
    for (name, account) in accounts {
        let registration = agent.add(account).await?;
        lines.insert(registration.id(), name);
    }
    let mut phone = Phone::new(agent.clone(), lines, answer);
    loop {
        tokio::select! {
            next = events.next() => match next {
                Some((id, event)) => println!("{} {event}", phone.name(id)),
                None => break,
            },
            next = messages.next() => match next {
                Some(message) => phone.message(&message).await,
                None => break,
            },
            () = end.comes() => break,
        }
    }
    farewell(&agent, &mut events, |id| phone.name(id)).await;
    Ok(())
}
