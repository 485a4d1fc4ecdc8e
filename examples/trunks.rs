//! A thousand trunks at a registrar of our own, with a live table of what they do.
//!
//! ```text
//! cargo run --example trunks
//! cargo run --example trunks -- --faults 5
//! cargo run --example trunks -- --plain --seconds 30 --trunks 5000 --tcp
//! ```
//!
//! The key `k` lets the registrar fall silent, and speak again: how few requests a dead one gets, who expires when, and
//! how all come back. `u` un-registers all, and registers them again. `q`, Ctrl-C and SIGTERM un-register all, and end
//! with a report, the second of them at once; the exit code is 0 where no binding is left behind.

#[path = "account/end.rs"]
mod end;
mod trunks {
    pub(crate) mod list;
    pub(crate) mod screen;
    pub(crate) mod table;
    pub(crate) mod tally;
}

use end::End;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, KeyCode, KeyEventKind, KeyModifiers};
use sip_registration::testkit::{RunningServer, TestServer};
use sip_registration::{
    Agent, Clock, Event, Host, InboundMessage, Protocol, Registrar, RegistrationHandle,
    RegistrationId, Removal, SystemClock, TcpTransport, TransportConfig, UdpTransport,
};
use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use trunks::list::{Options, Trunk, USAGE, generate};
use trunks::screen::{Phase, View, then, why};
use trunks::table::{State, Table};
use trunks::tally::Tally;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) if problem == "unknown argument \"--help\"" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<ExitCode> {
    let trunks = generate(options);
    let server = registrar(&trunks, options).await?;
    let healthy = trunks.iter().filter(|trunk| trunk.trouble.is_none());
    let watcher = Watcher::new(trunks.len(), healthy.count());
    let agent = agent(options, watcher.clone()).await?;
    let mut fleet = Fleet {
        registrar: format!(
            "{} over {}",
            server.addr(),
            if options.tcp { "TCP" } else { "UDP" }
        ),
        agent,
        server,
        watcher,
        handles: Vec::new(),
        names: HashMap::new(),
        silent: false,
        phase: Phase::Registered,
    };
    for trunk in &trunks {
        fleet.add(trunk, options).await?;
    }
    let mut display = if options.plain || !std::io::stdout().is_terminal() {
        Display::Lines
    } else {
        Display::screen()?
    };
    let end = fleet.watch(&mut display, options.seconds).await;
    // Whatever happened, the terminal is given back as it was.
    drop(display);
    let farewell = end?;
    println!("{}\n{farewell}", fleet.watcher.tally());
    fleet.server.stop().await;
    Ok(farewell.code())
}

/// A registrar that knows all trunks, and treats some of them badly.
async fn registrar(trunks: &[Trunk], options: &Options) -> std::io::Result<RunningServer> {
    let mut server = TestServer::new().grant(options.expires);
    for trunk in trunks {
        server = server.user(&trunk.name, &trunk.password);
        let fault = trunk.trouble.and_then(|trouble| trouble.fault());
        server.set_user_fault(&trunk.name, fault);
    }
    server.serve("127.0.0.1:0").await
}

/// An agent with the one transport that is used, on loopback only.
async fn agent(options: &Options, watcher: Watcher) -> Result<Agent> {
    let loopback = "127.0.0.1:0".parse()?;
    let builder = Agent::builder().host(watcher);
    let builder = if options.tcp {
        let config = TransportConfig::new("tcp", Protocol::Tcp)?.with_bind(loopback);
        builder.transport("tcp", TcpTransport::new(config))
    } else {
        let config = TransportConfig::new("udp", Protocol::Udp)?.with_bind(loopback);
        builder.transport("udp", UdpTransport::bind(config).await?)
    };
    Ok(builder.build().await?)
}

/// Counts what the agent tells; as a `Host` it misses nothing, however busy the screen is
#[derive(Clone)]
struct Watcher {
    started: Instant,
    tally: Arc<Mutex<Tally>>,
}

impl Watcher {
    fn new(trunks: usize, healthy: usize) -> Self {
        Self {
            started: SystemClock::new().now(),
            tally: Arc::new(Mutex::new(Tally::new(trunks, healthy))),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self) -> Duration {
        SystemClock::new()
            .now()
            .saturating_duration_since(self.started)
    }
}

impl Host for Watcher {
    fn event(&self, id: RegistrationId, event: &Event) {
        let at = self.at();
        self.tally().event(at, id, event);
    }

    fn message(&self, message: InboundMessage) -> std::result::Result<(), InboundMessage> {
        Err(message)
    }
}

struct Fleet {
    registrar: String,
    agent: Agent,
    server: RunningServer,
    watcher: Watcher,
    handles: Vec<RegistrationHandle>,
    names: HashMap<RegistrationId, Arc<str>>,
    silent: bool,
    phase: Phase,
}

impl Fleet {
    async fn add(&mut self, trunk: &Trunk, options: &Options) -> Result<()> {
        let registration = trunk.registration(self.server.addr(), options)?;
        let handle = self.agent.add(registration).await?;
        self.names.insert(handle.id(), trunk.name.as_str().into());
        self.handles.push(handle);
        Ok(())
    }

    /// Shows what happens until somebody, or the time, ends it; then un-registers all.
    async fn watch(
        &mut self,
        display: &mut Display,
        seconds: Option<Duration>,
    ) -> Result<Farewell> {
        let mut ticks = interval(display.pause());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keys = display.keys();
        let time_is_up = async {
            match seconds {
                Some(seconds) => sleep(seconds).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(time_is_up);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.show(display).await?,
                Some(key) = keys.recv() => match key {
                    Key::Quit => break,
                    Key::Silence => self.silence(),
                    Key::Unregister => self.turn().await,
                    Key::Redraw => self.show(display).await?,
                },
                () = &mut time_is_up => break,
            }
        }
        self.end(display, &mut keys).await
    }

    fn silence(&mut self) {
        self.silent = !self.silent;
        self.server.set_silent(self.silent);
    }

    /// Un-registers all, or registers them again.
    async fn turn(&mut self) {
        if self.phase == Phase::Unregistered {
            self.phase = Phase::Registered;
            for handle in &self.handles {
                // What cannot be taken is told at the end: the agent has gone.
                let _ = handle.refresh().await;
            }
            return;
        }
        self.phase = Phase::Unregistered;
        let handles = self.handles.clone();
        // Each waits for its answer; the screen does not.
        tokio::spawn(async move {
            let mut removals = JoinSet::new();
            for handle in handles {
                removals.spawn(async move { handle.unregister(REMOVAL).await });
            }
            removals.join_all().await;
        });
    }

    async fn end(
        &mut self,
        display: &mut Display,
        keys: &mut UnboundedReceiver<Key>,
    ) -> Result<Farewell> {
        self.phase = Phase::Ending;
        let bound = self.watcher.tally().bound().clone();
        let agent = self.agent.clone();
        let shutdown = agent.shutdown(FAREWELL);
        tokio::pin!(shutdown);
        let mut ticks = interval(display.pause());
        let fates = loop {
            tokio::select! {
                fates = &mut shutdown => break fates,
                _ = ticks.tick() => self.show(display).await?,
                Some(Key::Quit) = keys.recv() => break Vec::new(),
            }
        };
        self.count_requests();
        Ok(Farewell::of(&bound, &fates))
    }

    fn count_requests(&self) {
        let requests = self.server.take_requests();
        self.watcher.tally().served(&requests);
    }

    async fn show(&self, display: &mut Display) -> std::io::Result<()> {
        let statuses = self.agent.statuses().await;
        let table = Table::of(&statuses, &self.names, SystemClock::new().now());
        self.count_requests();
        let tally = self.watcher.tally();
        display.show(&View {
            registrar: self.registrar.clone(),
            at: self.watcher.at(),
            table: &table,
            tally: &tally,
            silent: self.silent,
            phase: self.phase,
        })
    }
}

/// What became of the bindings that there were at the end
struct Farewell {
    bound: usize,
    removed: usize,
}

impl Farewell {
    fn of(bound: &HashSet<RegistrationId>, fates: &[(RegistrationId, Removal)]) -> Self {
        let removed = fates
            .iter()
            .filter(|(id, fate)| bound.contains(id) && *fate == Removal::Removed);
        Self {
            bound: bound.len(),
            removed: removed.count(),
        }
    }

    /// A binding that is left behind is a failure.
    fn code(&self) -> ExitCode {
        if self.removed == self.bound {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl std::fmt::Display for Farewell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bindings removed", self.removed, self.bound)
    }
}

/// What somebody asks for
enum Key {
    Quit,
    Silence,
    Unregister,
    /// The terminal has another size
    Redraw,
}

/// Where it is shown; the terminal is given back when it is dropped
enum Display {
    Lines,
    Screen(DefaultTerminal),
}

impl Display {
    fn screen() -> std::io::Result<Self> {
        ratatui::try_init().map(Self::Screen)
    }

    const fn pause(&self) -> Duration {
        match self {
            Self::Lines => Duration::from_secs(1),
            Self::Screen(_) => Duration::from_millis(250),
        }
    }

    fn show(&mut self, view: &View<'_>) -> std::io::Result<()> {
        match self {
            Self::Screen(terminal) => terminal.draw(|frame| view.draw(frame)).map(drop),
            Self::Lines => {
                println!("{}", line(view));
                Ok(())
            }
        }
    }

    /// What is pressed. Ctrl-C is a key where the terminal is raw, and a signal where it is not; SIGTERM is one
    /// always, and must not leave the terminal raw.
    fn keys(&self) -> UnboundedReceiver<Key> {
        let (sender, keys) = mpsc::unbounded_channel();
        let signals = sender.clone();
        tokio::spawn(async move {
            // Where there are none, the keys do it.
            let Ok(mut end) = End::new() else { return };
            loop {
                end.comes().await;
                if signals.send(Key::Quit).is_err() {
                    break;
                }
            }
        });
        if let Self::Screen(_) = self {
            std::thread::spawn(move || {
                while let Ok(event) = event::read() {
                    if let Some(key) = key(&event)
                        && sender.send(key).is_err()
                    {
                        return;
                    }
                }
            });
        }
        keys
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Self::Screen(_) = self {
            ratatui::restore();
        }
    }
}

fn key(event: &event::Event) -> Option<Key> {
    let key = match event {
        event::Event::Key(key) if key.kind == KeyEventKind::Press => key,
        event::Event::Resize(..) => return Some(Key::Redraw),
        _ => return None,
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('k') => Some(Key::Silence),
        KeyCode::Char('u') => Some(Key::Unregister),
        _ => None,
    }
}

/// A second in a line.
fn line(view: &View<'_>) -> String {
    let mut line = format!("{:>4} s ", view.at.as_secs());
    for state in State::ALL {
        line += &format!(" {} {},", view.table.count(state), state.word());
    }
    let rate = view.tally.rates(view.at, 1);
    line += &format!(" {} REGISTERs/s", rate.first().unwrap_or(&0));
    if let Some(next) = view.table.soonest().first() {
        let next_in = next.next_in.unwrap_or_default().as_secs_f64();
        line += &format!("; next {} ({}) in {next_in:.1} s", next.name, next.next());
    }
    let failing = view.table.failing();
    if let Some(worst) = failing.first() {
        line += &format!("; {} {}, {}", worst.name, why(worst), then(worst));
        if failing.len() > 1 {
            line += &format!(", and {} more fail", failing.len() - 1);
        }
    }
    line
}

/// What the un-REGISTER of one trunk may take
const REMOVAL: Duration = Duration::from_secs(35);
/// What the un-REGISTERs of all may take at the end
const FAREWELL: Duration = Duration::from_secs(15);
