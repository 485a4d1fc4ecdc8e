//! A registrar that answers anything at all: no storm, no lie, no secret told, and a way back when it behaves again
#![no_main]

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::{
    Credentials, FlowError, Input, Policy, Redirects, Registration, SecurityNegotiation,
};
use std::collections::HashSet;
use std::time::Duration;

const SECRET: &str = "zyzzyva-7342";

#[derive(Debug, Arbitrary)]
struct Script<'a> {
    profile: Profile,
    mediasec: bool,
    outbound: bool,
    follow: bool,
    steps: Vec<Step<'a>>,
}

#[derive(Debug, Arbitrary)]
enum Profile {
    Default,
    Persistent,
    Asterisk,
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// To the newest request
    Answer(Answer<'a>),
    /// The same answer once more
    Again,
    Raw(&'a [u8]),
    Wait(u16),
    Due,
    FlowFails,
    Refresh,
    Reregister,
    Query,
    Reconcile,
    NetworkChanged,
    RetryCredentials,
    Stop(u8),
    Pause(Option<u16>, bool),
    Resume,
    RemoveAll,
}

#[derive(Debug, Arbitrary)]
struct Answer<'a> {
    code: Code,
    headers: Vec<(Name, &'a str)>,
    granted: Option<u32>,
    /// Bytes to write over the finished answer, and where
    patch: Option<(u16, &'a [u8])>,
}

#[derive(Debug, Arbitrary)]
enum Code {
    Trying,
    Ok,
    Multiple,
    Unauthorized,
    Forbidden,
    ProxyAuthentication,
    TooBrief,
    FirstHopLacksOutbound,
    FlowFailed,
    SecurityAgreement,
    Unavailable,
    Other(u8),
}

#[derive(Debug, Arbitrary)]
enum Name {
    Contact,
    WwwAuthenticate,
    ProxyAuthenticate,
    AuthenticationInfo,
    MinExpires,
    Expires,
    RetryAfter,
    SecurityServer,
    ServiceRoute,
    Path,
    AssociatedUri,
    Require,
    Supported,
    FlowTimer,
    Via,
    Warning,
    Date,
}

impl Code {
    const fn number(&self) -> u16 {
        match self {
            Self::Trying => 100,
            Self::Ok => 200,
            Self::Multiple => 302,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::ProxyAuthentication => 407,
            Self::TooBrief => 423,
            Self::FlowFailed => 430,
            Self::FirstHopLacksOutbound => 439,
            Self::SecurityAgreement => 494,
            Self::Unavailable => 503,
            Self::Other(nth) => 100 + *nth as u16 * 2,
        }
    }
}

impl Name {
    const fn text(&self) -> &'static str {
        match self {
            Self::Contact => "Contact",
            Self::WwwAuthenticate => "WWW-Authenticate",
            Self::ProxyAuthenticate => "Proxy-Authenticate",
            Self::AuthenticationInfo => "Authentication-Info",
            Self::MinExpires => "Min-Expires",
            Self::Expires => "Expires",
            Self::RetryAfter => "Retry-After",
            Self::SecurityServer => "Security-Server",
            Self::ServiceRoute => "Service-Route",
            Self::Path => "Path",
            Self::AssociatedUri => "P-Associated-URI",
            Self::Require => "Require",
            Self::Supported => "Supported",
            Self::FlowTimer => "Flow-Timer",
            Self::Via => "Via",
            Self::Warning => "Warning",
            Self::Date => "Date",
        }
    }
}

impl Answer<'_> {
    fn to(&self, request: &SentRequest) -> Bytes {
        let mut reply = match self.granted {
            Some(seconds) if matches!(self.code, Code::Ok) => Reply::granted(seconds),
            _ => Reply::status(self.code.number()),
        };
        for (name, value) in &self.headers {
            reply = reply.header(name.text(), value);
        }
        let bytes = reply.to(request);
        let Some((at, patch)) = self.patch else {
            return bytes;
        };
        let mut bytes = BytesMut::from(&bytes[..]);
        let at = usize::from(at) % bytes.len();
        let end = (at + patch.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&patch[..end - at]);
        bytes.freeze()
    }
}

struct Life {
    sim: Sim,
    newest: Option<SentRequest>,
    answer: Option<Bytes>,
    seen: HashSet<Bytes>,
    commands: u64,
    granted: bool,
}

impl Life {
    fn new(script: &Script<'_>) -> Self {
        let mut policy = match script.profile {
            Profile::Default => Policy::default(),
            Profile::Persistent => Policy::persistent(),
            Profile::Asterisk => Policy::asterisk(),
        };
        if script.follow {
            policy.redirects = Redirects::Follow { max: 5 };
        }
        let mut builder = Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
            .outbound_auth(Credentials::password("alice", SECRET))
            .support_outbound(script.outbound)
            .max_random_initial_delay(Duration::ZERO)
            .policy(policy);
        if script.mediasec {
            builder = builder.security_negotiation(SecurityNegotiation::Mediasec);
        }
        Self {
            sim: Sim::new(builder.build().expect("a good configuration")),
            newest: None,
            answer: None,
            seen: HashSet::new(),
            commands: 0,
            granted: false,
        }
    }

    fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Answer(answer) => {
                if let Some(newest) = &self.newest {
                    self.granted |=
                        matches!(answer.code, Code::Ok | Code::Other(_)) || answer.patch.is_some();
                    let bytes = answer.to(newest);
                    self.sim.push(newest, bytes.clone());
                    self.answer = Some(bytes);
                }
            }
            Step::Again => {
                if let (Some(newest), Some(answer)) = (&self.newest, self.answer.clone()) {
                    self.sim.push(newest, answer);
                }
            }
            Step::Raw(bytes) => {
                if let Some(newest) = &self.newest {
                    self.granted = true;
                    self.sim.push(newest, Bytes::copy_from_slice(bytes));
                }
            }
            Step::Wait(seconds) => self.sim.advance(Duration::from_secs((*seconds).into())),
            Step::Due => {
                if let Some(due) = self.sim.deadline() {
                    self.sim.advance(due.min(Duration::from_secs(90_000)));
                }
            }
            Step::FlowFails => {
                if let Some(newest) = &self.newest {
                    self.sim.fail_flow(newest.flow(), FlowError::Reset);
                }
            }
            Step::Refresh => self.command(Input::Refresh),
            Step::Reregister => self.command(Input::Reregister),
            Step::Query => self.command(Input::Query),
            Step::Reconcile => self.command(Input::Reconcile),
            Step::NetworkChanged => self.command(Input::NetworkChanged(Duration::from_secs(1))),
            Step::RetryCredentials => self.command(Input::RetryCredentials),
            Step::Stop(within) => self.command(Input::Stop(Duration::from_secs((*within).into()))),
            Step::Pause(seconds, unregister) => {
                let until =
                    seconds.map(|seconds| self.sim.now() + Duration::from_secs(seconds.into()));
                self.command(Input::Pause {
                    until,
                    unregister: *unregister,
                });
            }
            Step::Resume => self.command(Input::Resume),
            Step::RemoveAll => self.command(Input::RemoveAll),
        }
        self.look();
    }

    fn command(&mut self, input: Input<'_>) {
        self.commands += 1;
        self.sim.input(input);
    }

    /// What holds whatever was answered.
    fn look(&mut self) {
        for request in self.sim.all_sent() {
            self.seen.insert(request.bytes().clone());
            let text = request.text();
            assert!(!text.contains(SECRET), "the password is sent: {text}");
            let lines = text.replace("\r\n", "");
            let torn = lines.contains(char::is_control);
            assert!(!torn, "a control character is sent: {text:?}");
            self.newest = Some(request);
        }
        // Six requests a cycle at most, a cycle a second at most, but for commands.
        let most = 6 * (self.sim.elapsed().as_secs() + 2 * self.commands + 2);
        assert!(
            self.seen.len() as u64 <= most,
            "a storm: {} requests",
            self.seen.len()
        );
        let status = self.sim.status();
        assert!(
            self.granted || !status.is_registered(),
            "registered, and nobody granted it"
        );
        let told = format!("{:?}{status:?}", self.sim.events());
        assert!(!told.contains(SECRET), "the password is told");
    }

    /// From here the registrar grants all.
    fn recover(&mut self) {
        self.command(Input::Resume);
        self.command(Input::RetryCredentials);
        self.command(Input::Reregister);
        for _ in 0..5_000 {
            let mut answered = false;
            for request in self.sim.all_sent() {
                self.sim.reply(&request, Reply::granted(3600));
                answered = true;
            }
            let status = self.sim.status();
            if status.is_registered() && status.last_failure.is_none() {
                return;
            }
            if !answered {
                let due = self
                    .sim
                    .deadline()
                    .expect("a deadline while not registered");
                self.sim.advance(due);
            }
        }
        panic!(
            "no way back in {:?}: {:?}",
            self.sim.elapsed(),
            self.sim.status()
        );
    }
}

fuzz_target!(|script: Script<'_>| {
    let mut life = Life::new(&script);
    life.look();
    for step in script.steps.iter().take(64) {
        life.step(step);
    }
    life.recover();
});
