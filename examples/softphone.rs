//! A softphone without sound: it registers, shows where each call comes from, and refuses it or takes it.
//!
//! ```text
//! SIP_PASSWORD=secret cargo run --example softphone -- --server sip:example.com --aor sip:alice@example.com
//! SIP_PASSWORD=secret cargo run --example softphone -- --server sip:example.com --aor sip:alice@example.com --answer
//! ```
//!
//! INVITE gets 486, with `--answer` 200 and an SDP that accepts no media; BYE, OPTIONS and MESSAGE get 200; anything
//! else 501. Ctrl-C un-registers.

mod account;

use account::{FLAGS, MEANING, Options, Result, farewell};
use sip_registration::{Agent, FlowInfo, InboundMessage, RegistrationHandle, Request};
use std::collections::HashMap;
use std::time::Duration;
use tokio::task::AbortHandle;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (mut options, mut answer) = (Options::default(), false);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let problem = match (flag.as_str(), options.take(&flag, &mut args)) {
            ("--answer", _) => {
                answer = true;
                continue;
            }
            (_, Ok(true)) => continue,
            (_, Ok(false)) => format!("unknown argument {flag:?}"),
            (_, Err(problem)) => problem,
        };
        eprintln!(
            "{problem}\nsoftphone {FLAGS} [--answer]\n{MEANING}\n--answer takes calls instead of refusing them."
        );
        std::process::exit(2);
    }
    // The token in our Contact tells to which account a call came, whatever the caller dialled.
    let account = options
        .account()?
        .line(true)
        .endpoint("softphone")
        .build()?;
    for warning in account.warnings() {
        eprintln!("warning: {warning}");
    }
    let agent = options.agent().await?.build().await?;
    let (mut events, mut messages) = (agent.events(), agent.messages());
    let registration = agent.add(account).await?;
    let mut phone = Phone {
        agent: agent.clone(),
        registration,
        answer,
        ringing: HashMap::new(),
    };
    loop {
        tokio::select! {
            next = events.next() => match next {
                Some((id, event)) => println!("{id} {event}"),
                None => break,
            },
            next = messages.next() => match next {
                Some(message) => phone.message(&message).await,
                None => break,
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    farewell(&agent, &mut events).await;
    Ok(())
}

struct Phone {
    agent: Agent,
    registration: RegistrationHandle,
    answer: bool,
    /// Calls whose 200 is sent again until ACK comes (RFC 3261 §13.3.1.4), by Call-ID
    ringing: HashMap<String, AbortHandle>,
}

impl Phone {
    async fn message(&mut self, message: &InboundMessage) {
        let Ok(request) = message.request() else {
            return;
        };
        let whom = match &message.registration {
            Some(found) => format!(
                "for {} ({})",
                found.registration,
                found.endpoint.as_deref().unwrap_or("no endpoint")
            ),
            None => "for nobody here".into(),
        };
        let from = request.header("From").unwrap_or_default();
        println!(
            "{} from {from} at {} {whom}",
            request.method(),
            message.source
        );
        let call = request.call_id().unwrap_or_default().into_owned();
        let response = match (request.method(), message.registration.is_some()) {
            ("ACK", _) => {
                if let Some(again) = self.ringing.remove(&call) {
                    again.abort();
                }
                None
            }
            ("OPTIONS" | "MESSAGE" | "BYE", _) => message.response(200),
            ("CANCEL", _) => message.response(481),
            ("INVITE", false) => message.response(404),
            ("INVITE", true) if self.answer => return self.take(message, &request, call).await,
            ("INVITE", true) => message.response(486),
            _ => message.response(501),
        };
        if let Some(response) = response {
            self.agent.answer(message, response.build());
        }
    }

    /// 200 with a Contact on the flow that the call came by, until it is acknowledged.
    async fn take(&mut self, message: &InboundMessage, request: &Request, call: String) {
        let flows = self.registration.flows().await;
        let Some(info) = flows.first().map(|flow| flow.info().clone()) else {
            return;
        };
        let Some(response) = message.response(200) else {
            return;
        };
        let response = response
            .header("Contact", format!("<sip:softphone@{}>", info.contact()))
            .body("application/sdp", refusing_media(&info, request))
            .build();
        self.agent.answer(message, response.clone());
        let (agent, message) = (self.agent.clone(), message.clone());
        let again = tokio::spawn(async move {
            let mut pause = Duration::from_millis(500);
            // T1 doubling to T2, for 64 * T1.
            for _ in 0..10 {
                tokio::time::sleep(pause).await;
                agent.answer(&message, response.clone());
                pause = (pause * 2).min(Duration::from_secs(4));
            }
        });
        if let Some(before) = self.ringing.insert(call, again.abort_handle()) {
            before.abort();
        }
    }
}

/// An answer to the offer that takes none of its media: port 0 (RFC 3264 §6).
fn refusing_media(info: &FlowInfo, request: &Request) -> String {
    let ip = info.local().ip();
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    let body = request.body();
    let offer = String::from_utf8_lossy(&body);
    let mut sdp =
        format!("v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n");
    for media in offer.lines().filter_map(|line| line.strip_prefix("m=")) {
        let mut words = media.split_whitespace();
        if let (Some(kind), Some(_), Some(profile), Some(format)) =
            (words.next(), words.next(), words.next(), words.next())
        {
            sdp.push_str(&format!("m={kind} 0 {profile} {format}\r\n"));
        }
    }
    sdp
}
