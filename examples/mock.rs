//! How an application tests its own reaction to a lost registration: no ports, no sleeps.
//!
//! The application here is a phone's status line. `MockTransport` plays the registrar, and tokio's paused clock
//! makes an hour pass in no time. `cargo run --example mock`

use sip_registration::testkit::{MockTransport, Wire};
use sip_registration::{Agent, Event, Events, FlowError, Protocol, Registration};
use std::time::Duration;

/// The application under test: one line on a phone's display
async fn status_line(events: &mut Events) -> String {
    while let Some((_, event)) = events.next().await {
        match &*event {
            Event::Registered(_) | Event::Refreshed(_) => return "online".to_owned(),
            Event::FlowLost {
                next_in: Some(next_in),
                ..
            } => {
                return format!("reconnecting within {} s", next_in.as_secs() + 1);
            }
            Event::Rejected {
                failure, retry_in, ..
            } => {
                return format!("offline: {failure}, next try in {} s", retry_in.as_secs());
            }
            Event::GaveUp { failure, .. } => return format!("check your account: {failure}"),
            _ => {}
        }
    }
    "closed".to_owned()
}

async fn answer(wire: &mut Wire, code: u16) {
    let request = wire.next_request().await;
    wire.reply(&request, code).await;
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (transport, mut wire) = MockTransport::new();
    let agent = Agent::builder()
        .transport("mock", transport.with_protocol(Protocol::Tcp))
        .seed([1; 32])
        .build()
        .await?;
    let mut events = agent.events();
    let account = Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
        .build()?;
    agent.add(account).await?;

    answer(&mut wire, 200).await;
    show(&mut events, "online").await;

    // A minute later the connection breaks: the phone says so, and is back by itself.
    tokio::time::sleep(Duration::from_secs(60)).await;
    wire.fail_all(FlowError::Reset).await;
    show(&mut events, "reconnecting within 1 s").await;
    answer(&mut wire, 200).await;
    show(&mut events, "online").await;

    // The registrar has a bad hour: a refresh fails, the binding still holds.
    answer(&mut wire, 500).await;
    let line = status_line(&mut events).await;
    println!("{line}");
    assert!(line.starts_with("offline: 500"), "{line}");
    answer(&mut wire, 200).await;
    show(&mut events, "online").await;
    Ok(())
}

async fn show(events: &mut Events, expected: &str) {
    let line = status_line(events).await;
    println!("{line}");
    assert_eq!(line, expected);
}
