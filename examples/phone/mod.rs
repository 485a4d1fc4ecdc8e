//! What `softphone` does with the requests that arrive.

mod file;

pub(crate) use file::file;

use bytes::Bytes;
use sip_registration::{Agent, InboundMessage, Registration, RegistrationId, Request, WayOut};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Accounts by name
pub(crate) type Accounts = Vec<(String, Registration)>;
/// The name of each registration
pub(crate) type Lines = HashMap<RegistrationId, String>;

pub(crate) struct Phone {
    agent: Agent,
    lines: Lines,
    answer: bool,
    /// Calls whose 200 is sent again until ACK comes (RFC 3261 §13.3.1.4), by Call-ID
    ringing: HashMap<String, AbortHandle>,
}

impl Phone {
    pub(crate) fn new(agent: Agent, lines: Lines, answer: bool) -> Self {
        Self {
            agent,
            lines,
            answer,
            ringing: HashMap::new(),
        }
    }

    pub(crate) fn name(&self, id: RegistrationId) -> String {
        let name = self.lines.get(&id).cloned();
        name.unwrap_or_else(|| id.to_string())
    }

    /// Says what it is, where it came from and whose it is, and answers it.
    pub(crate) async fn message(&mut self, message: &InboundMessage) {
        let request = match message.request() {
            Ok(request) => request,
            Err(error) => {
                println!("from {}: {error}", message.source);
                // None where not even the 400 would find its transaction.
                if let Some(response) = message.response(400) {
                    self.answer(message, response.build());
                }
                return;
            }
        };
        self.show(message, &request);
        let call = request.call_id().unwrap_or_default().into_owned();
        let response = match (request.method(), &message.registration) {
            ("ACK", _) => {
                if let Some(again) = self.ringing.remove(&call) {
                    again.abort();
                }
                None
            }
            ("OPTIONS" | "MESSAGE" | "BYE", _) => message.response(200),
            ("CANCEL", _) => message.response(481),
            ("INVITE", None) => message.response(404),
            ("INVITE", Some(found)) if self.answer => {
                let ways = self.agent.ways_out(found.registration).await;
                match message.way_back(&ways) {
                    Some(way) => return self.take(message, &request, call, way).await,
                    None => message.response(480),
                }
            }
            ("INVITE", Some(_)) => message.response(486),
            _ => message.response(501),
        };
        if let Some(response) = response {
            self.answer(message, response.build());
        }
    }

    fn answer(&self, message: &InboundMessage, response: Bytes) {
        if let Err(error) = self.agent.answer(message, response) {
            println!("not answered: {error}");
        }
    }

    fn show(&self, message: &InboundMessage, request: &Request) {
        let whose = match &message.registration {
            Some(found) => {
                let endpoint = found.endpoint.as_deref().unwrap_or("none");
                let name = self.name(found.registration);
                format!("registration {name}, endpoint {endpoint}")
            }
            None => "no registration".into(),
        };
        let flow = match message.flow {
            Some(flow) => flow.to_string(),
            None => "no flow".into(),
        };
        println!(
            "{} {} of {} from {} on {flow}: {whose}",
            request.method(),
            request.uri(),
            request.header("From").unwrap_or_default(),
            message.source,
        );
    }

    /// 200 with the Contact of the registration, GRUU or flow, until it is acknowledged.
    async fn take(
        &mut self,
        message: &InboundMessage,
        request: &Request,
        call: String,
        way: &WayOut,
    ) {
        let Some(flow) = self.agent.flow(way.flow).await else {
            return;
        };
        let Some(mut response) = message.response(200) else {
            return;
        };
        // Whoever has a GRUU says so (RFC 5627 §4.4.1).
        if way.public_gruu.is_some() {
            response = response.header("Supported", "gruu");
        }
        let response = response
            .header("Contact", format!("<{}>", way.contact))
            .header("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, MESSAGE")
            .body(
                "application/sdp",
                refusing_media(flow.info().local().ip(), request),
            )
            .build();
        self.answer(message, response.clone());
        let (agent, message) = (self.agent.clone(), message.clone());
        let again = tokio::spawn(async move {
            let mut pause = Duration::from_millis(500);
            // T1 doubling to T2, for 64 * T1.
            for _ in 0..10 {
                tokio::time::sleep(pause).await;
                if agent.answer(&message, response.clone()).is_err() {
                    break;
                }
                pause = (pause * 2).min(Duration::from_secs(4));
            }
        });
        if let Some(before) = self.ringing.insert(call, again.abort_handle()) {
            before.abort();
        }
    }
}

/// An answer to the offer that takes none of its media: port 0 (RFC 3264 §6).
fn refusing_media(ip: IpAddr, request: &Request) -> String {
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
