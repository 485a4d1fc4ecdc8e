//! Keeps the registrations of a `pjsip.conf` alive, takes commands on standard input, and un-registers at the end.
//!
//! ```text
//! cargo run --example pjsip_conf --features pjsip-conf -- --config /etc/asterisk/pjsip.conf --check
//! cargo run --example pjsip_conf --features pjsip-conf -- --config /etc/asterisk/pjsip.conf
//! ```
//!
//! `--check` lists what the file means and what is wrong with it, and registers nothing. The ports are those of the
//! file's transports. `--statsd IP:PORT` has Asterisk's gauges. SIGHUP reloads; SIGTERM and Ctrl-C un-register everything.

mod pjsip;

use pjsip::{Names, Signal, Signals, Statsd, complain, say, show};
use sip_registration::pjsip_conf::{
    Directory, Loaded, Running, Severity, Transports, load_under, table,
};
use sip_registration::{
    Agent, Clock, DnsResolver, Event, Host, InboundFrom, InboundMessage, Match, Policy, Registrar,
    RegistrationId, Removal, SystemClock,
};
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "pjsip_conf --config FILE [--check] [--nameserver IP:PORT] [--statsd IP:PORT] [--inbound-from WHOM]";
const MEANING: &str = "\
Keeps the registrations of a pjsip.conf alive, and un-registers them at the end.
  --config FILE         the pjsip.conf; what it includes is looked for beside it
  --check               lists what the file means and what is wrong with it, and registers nothing
  --nameserver IP:PORT  asks this name server, not those of the system
  --statsd IP:PORT      sends the gauges that Asterisk sends
  --inbound-from WHOM   whose requests a registration gets: anywhere (with its line; the default, as in Asterisk),
                        registrar (from the host it registers at), flow (on the way its REGISTERs go)
Exit code: 0, 1 where --check found an error or nothing could be started, 2 for arguments that are none.
SIGHUP reloads; SIGTERM and Ctrl-C end it within 35 s. Commands on standard input:";
const HELP: &str = "show, show ID, json, json ID, register ID|*all, unregister ID|*all, refresh ID|*all, reload, quit";

const HELP_WANTED: [&str; 2] = ["unknown argument \"--help\"", "unknown argument \"-h\""];

/// A reload that takes longer says why.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a removal may take; the end of the program has a little more.
const REMOVAL: Duration = Duration::from_secs(30);
const FAREWELL: Duration = Duration::from_secs(33);

#[derive(Default)]
struct Options {
    config: Option<String>,
    check: bool,
    nameserver: Option<SocketAddr>,
    statsd: Option<SocketAddr>,
    inbound_from: Option<InboundFrom>,
}

/// Says whose request it is, and leaves the answer to the agent: 200 to OPTIONS, else 480.
struct Switchboard {
    names: Names,
    statsd: Option<Arc<Statsd>>,
}

impl Host for Switchboard {
    fn event(&self, id: RegistrationId, event: &Event) {
        if let Some(statsd) = &self.statsd {
            statsd.event(id, event);
        }
    }

    fn message(&self, message: InboundMessage) -> std::result::Result<(), InboundMessage> {
        let method = message.request().map_or_else(
            |_| "a message".to_owned(),
            |request| request.method().to_owned(),
        );
        let whose = match &message.registration {
            Some(found) => {
                let endpoint = found.endpoint.as_deref().unwrap_or("none");
                format!(
                    "registration {}, endpoint {endpoint}",
                    self.names.of(found.registration)
                )
            }
            None if message.candidates().is_empty() => "no registration".to_owned(),
            None => {
                let of = |found: &Match| self.names.of(found.registration);
                let names: Vec<_> = message.candidates().iter().map(of).collect();
                format!("one of the registrations {}", names.join(", "))
            }
        };
        say(format_args!("{method} from {}: {whose}", message.source));
        Err(message)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) if HELP_WANTED.contains(&problem.as_str()) => {
            say(format_args!("{USAGE}\n{MEANING}\n  {HELP}"));
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            complain(format_args!("{problem}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(code) => code,
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<ExitCode> {
    let config = options.config.ok_or(USAGE)?;
    let path = Path::new(&config);
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("--config names no file")?;
    let files = Directory::new(path.parent().unwrap_or_else(|| Path::new("")));
    let mut policy = Policy::asterisk();
    policy.inbound_from = options.inbound_from.unwrap_or(policy.inbound_from);
    let loaded = load_under(&files, name, policy);
    if options.check {
        return Ok(check(&loaded, &files));
    }
    // From here on a SIGHUP is no end.
    let mut signals = Signals::new()?;
    tell(&loaded);
    let names = Names::default();
    let statsd = match options.statsd {
        Some(server) => Some(Arc::new(Statsd::new(server)?)),
        None => None,
    };
    let mut builder = Agent::builder().host(Switchboard {
        names: names.clone(),
        statsd: statsd.clone(),
    });
    if let Some(nameserver) = options.nameserver {
        builder = builder.resolver(DnsResolver::builder().name_server(nameserver).build());
    }
    let mut transports = Transports::new();
    let (agent, outcomes) = transports.start(builder, &loaded, &files).await?;
    for (name, outcome) in outcomes {
        say(format_args!("transport {name}: {outcome}"));
    }
    if transports.is_empty() {
        return Err("no transport".into());
    }
    let mut service = Service {
        agent,
        transports,
        running: Running::new(),
        names,
        files,
        name: name.to_owned(),
        statsd,
    };
    let printing = tokio::spawn(pjsip::print(service.agent.events(), service.names.clone()));
    let mut commands = Some(standard_input());
    service.start(loaded).await?;
    say(HELP);
    loop {
        let command = tokio::select! {
            signal = signals.next() => if signal == Signal::Reload { "reload".to_owned() } else { break },
            command = next(&mut commands) => command,
        };
        if command == "quit" {
            break;
        }
        // A reload may wait for registrars that do not answer; the end does not wait for it.
        let end = tokio::select! {
            () = service.command(&command) => false,
            () = signals.end() => true,
        };
        if end {
            break;
        }
    }
    for (id, fate) in service.agent.shutdown(FAREWELL).await {
        let name = service.names.of(id);
        match fate {
            Removal::NeverBound => say(format_args!("{name} {fate}")),
            _ => say(format_args!("{name} binding {fate}")),
        }
    }
    service.gauge().await;
    let _ = printing.await;
    Ok(ExitCode::SUCCESS)
}

struct Service {
    agent: Agent,
    transports: Transports,
    running: Running,
    names: Names,
    files: Directory,
    name: String,
    statsd: Option<Arc<Statsd>>,
}

impl Service {
    async fn start(&mut self, loaded: Loaded) -> Result<()> {
        self.running.apply(&self.agent, loaded, REMOVAL).await?;
        self.names.set(&self.running);
        self.gauge().await;
        Ok(())
    }

    async fn gauge(&self) {
        if let Some(statsd) = &self.statsd {
            statsd.catch_up(&self.agent).await;
        }
    }

    async fn command(&mut self, line: &str) {
        let line = line.trim();
        let (command, id) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, id.trim()) {
            ("", _) => {}
            ("reload", "") => self.reload().await,
            ("show" | "json", id) => self.show(id, command == "json").await,
            ("register" | "unregister" | "refresh", "") => {
                say(format_args!("{command} needs an id or *all"))
            }
            ("register" | "unregister" | "refresh", "*all") => {
                if self.running.ids().next().is_none() {
                    say("No objects found.");
                }
                for (name, id) in self.running.ids() {
                    self.send(command, name, id);
                }
            }
            ("register" | "unregister" | "refresh", name) => match self.running.id(name) {
                Some(id) => self.send(command, name, id),
                None => say(format_args!("Unable to retrieve registration {name}")),
            },
            ("help" | "?", _) => say(HELP),
            _ => say(format_args!("no such command: {line:?}; {HELP}")),
        }
    }

    /// In a task of its own: a registrar may take its time.
    fn send(&self, command: &str, name: &str, id: RegistrationId) {
        let (agent, command, name) = (self.agent.clone(), command.to_owned(), name.to_owned());
        let statsd = self.statsd.clone();
        tokio::spawn(async move {
            let done = match command.as_str() {
                "register" => agent.reregister(id).await.map(|()| "taken".to_owned()),
                "refresh" => agent.refresh(id).await.map(|()| "taken".to_owned()),
                _ => agent
                    .unregister(id)
                    .await
                    .map(|removal| removal.to_string()),
            };
            let done = done.unwrap_or_else(|error| error.to_string());
            say(format_args!("{name} {command}: {done}"));
            if let Some(statsd) = statsd {
                statsd.catch_up(&agent).await;
            }
        });
    }

    async fn reload(&mut self) {
        let new = self.running.loaded().reload(&self.files, &self.name);
        tell(&new);
        let (transports, running) = (&mut self.transports, &mut self.running);
        let applied = transports.apply(&self.agent, running, new, &self.files, REMOVAL);
        match patiently(applied).await {
            Ok(applied) => show(applied),
            Err(error) => say(error),
        }
        self.names.set(&self.running);
        self.gauge().await;
        say("reloaded");
    }

    async fn show(&self, name: &str, json: bool) {
        let mut details = self
            .running
            .details(&self.agent, SystemClock::new().now())
            .await;
        if !name.is_empty() {
            details.retain(|detail| detail.object_name == name);
            if details.is_empty() {
                return say(format_args!("Unable to retrieve registration {name}"));
            }
        }
        match details.first() {
            _ if json => match serde_json::to_string_pretty(&details) {
                Ok(text) => say(text),
                Err(error) => say(error),
            },
            Some(detail) if !name.is_empty() => {
                show(detail);
                for auth in self.running.loaded().auth_details(name) {
                    show(format_args!("\n{auth}"));
                }
            }
            _ => show(table(&details)),
        }
    }
}

fn tell(loaded: &Loaded) {
    for said in loaded.diagnostics() {
        complain(said);
    }
    let errors = loaded
        .diagnostics()
        .iter()
        .filter(|said| said.severity == Severity::Error)
        .count();
    let count = loaded.registrations().count();
    say(format_args!("{count} registration(s), {errors} error(s)"));
}

/// What the file means and what is wrong with it; beside it, as another machine may have them, which certificates are of
/// no use.
fn check(loaded: &Loaded, files: &Directory) -> ExitCode {
    show(loaded);
    for transport in loaded.transports() {
        let tls = transport.tls.as_ref();
        if let Some(Err(error)) = tls.map(|tls| tls.config(files)) {
            let name = transport.config.name().escape_debug();
            complain(format_args!(
                "transport {name} would be left out here: {error}"
            ));
        }
    }
    if loaded.has_errors() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Says why it takes so long, where it does.
async fn patiently<T>(reload: impl Future<Output = T>) -> T {
    let mut reload = pin!(reload);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut reload).await {
        return done;
    }
    let most = REMOVAL.as_secs();
    say(format_args!(
        "waiting for the answers to un-REGISTERs, up to {most} s; commands wait for that"
    ));
    reload.await
}

/// The lines of standard input, from a thread: a read of it cannot be cancelled.
fn standard_input() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin()
            .lock()
            .lines()
            .map_while(std::result::Result::ok)
        {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// The next command; never, once the input has ended.
async fn next(commands: &mut Option<mpsc::UnboundedReceiver<String>>) -> String {
    if let Some(receiver) = commands {
        if let Some(line) = receiver.recv().await {
            return line;
        }
        *commands = None;
    }
    std::future::pending().await
}

fn parse(mut args: impl Iterator<Item = String>) -> std::result::Result<Options, String> {
    let mut options = Options::default();
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--config" => options.config = Some(value()?),
            "--check" => options.check = true,
            "--nameserver" => options.nameserver = Some(address(&flag, &value()?)?),
            "--statsd" => options.statsd = Some(address(&flag, &value()?)?),
            "--inbound-from" => options.inbound_from = Some(whom(&value()?)?),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    if options.config.is_none() {
        return Err("--config is missing".to_owned());
    }
    Ok(options)
}

fn whom(text: &str) -> std::result::Result<InboundFrom, String> {
    match text {
        "anywhere" => Ok(InboundFrom::Anywhere),
        "registrar" => Ok(InboundFrom::Registrar),
        "flow" => Ok(InboundFrom::Flow),
        _ => Err(format!(
            "--inbound-from {text:?} is not anywhere, registrar or flow"
        )),
    }
}

fn address(flag: &str, text: &str) -> std::result::Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{flag} {text:?} is not an address and a port"))
}
