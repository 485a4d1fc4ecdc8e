//! Registers an account, says what happens, and un-registers on Ctrl-C.
//!
//! Without arguments it starts a small registrar of its own, shows two refreshes, and ends:
//!
//! ```text
//! cargo run --example register
//! SIP_PASSWORD=secret cargo run --example register -- --server sip:example.com --aor sip:alice@example.com --user alice
//! ```

use sip_registration::testkit::TestServer;
use sip_registration::{
    Agent, Credentials, DnsResolver, Event, Protocol, Registration, TcpTransport, TlsConfig,
    TlsTransport, TransportConfig, UdpTransport,
};
use std::net::SocketAddr;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Default)]
struct Options {
    server: Option<String>,
    aor: Option<String>,
    user: Option<String>,
    password: Option<String>,
    proxy: Option<String>,
    transport: Option<String>,
    expires: Option<u64>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    insecure: bool,
    nameserver: Option<SocketAddr>,
}

const USAGE: &str = "register [--server URI --aor URI [--user NAME] [--password SECRET] [--proxy URI] \
                     [--transport udp|tcp|tls] [--expires SECONDS]\n         \
                     [--ca FILE] [--cert FILE --key FILE] [--insecure] [--nameserver IP:PORT]]\n\
                     --ca, --cert and --key name PEM files for TLS: whom to believe instead of the system's roots, and \
                     what to show to a server that asks. --insecure believes anybody.\n\
                     The password is better given in the environment: SIP_PASSWORD.";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            std::process::exit(2);
        }
    };
    match options.server {
        Some(_) => real(options).await,
        None => demonstration().await,
    }
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
    farewell(&agent, &mut events).await;
    server.stop().await;
    Ok(())
}

/// Whom to believe over TLS, and what to show.
fn tls(options: &Options) -> Result<TlsConfig> {
    let mut tls = TlsConfig::new();
    if let Some(file) = &options.ca {
        tls = tls.with_roots_pem(&std::fs::read(file)?)?;
    }
    match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            tls = tls.with_certificate_pem(&std::fs::read(cert)?, &std::fs::read(key)?)?;
        }
        (None, None) => {}
        _ => return Err(format!("--cert and --key go together\n{USAGE}").into()),
    }
    if options.insecure {
        eprintln!("warning: whoever is on the path can read and forge everything");
        tls = tls.dangerous_accept_any_certificate();
    }
    Ok(tls)
}

async fn real(options: Options) -> Result<()> {
    let tls = tls(&options)?;
    let (Some(server), Some(aor)) = (options.server, options.aor) else {
        return Err(format!("--server and --aor go together\n{USAGE}").into());
    };
    let password = options
        .password
        .or_else(|| std::env::var("SIP_PASSWORD").ok());
    let user = options.user.unwrap_or_else(|| {
        let user = aor.split_once(':').map_or(aor.as_str(), |(_, rest)| rest);
        user.split('@').next().unwrap_or(user).to_owned()
    });
    let server = match options.transport {
        Some(transport) => format!("{server};transport={transport}"),
        None => server,
    };
    let mut builder = Registration::builder(server, aor)
        .contact_user(user.as_str())
        .max_random_initial_delay(Duration::ZERO)
        .expiration(Duration::from_secs(options.expires.unwrap_or(3600)));
    if let Some(password) = password {
        builder = builder.outbound_auth(Credentials::password(user, password));
    }
    if let Some(proxy) = options.proxy {
        builder = builder.outbound_proxy(proxy);
    }
    let account = builder.build()?;
    for warning in account.warnings() {
        eprintln!("warning: {warning}");
    }
    // `system_transports()` is these three, with the system's roots for TLS.
    let config = |name: &str, protocol| TransportConfig::new(name, protocol);
    let builder = Agent::builder()
        .transport(
            "udp",
            UdpTransport::bind(config("udp", Protocol::Udp)?).await?,
        )
        .transport("tcp", TcpTransport::new(config("tcp", Protocol::Tcp)?))
        .transport(
            "tls",
            TlsTransport::new(config("tls", Protocol::Tls)?, tls)?,
        );
    let builder = match options.nameserver {
        Some(address) => builder.resolver(DnsResolver::builder().name_server(address).build()),
        None => builder,
    };
    let agent = builder.build().await?;
    let mut events = agent.events();
    agent.add(account).await?;
    loop {
        tokio::select! {
            next = events.next() => match next {
                Some((id, event)) => println!("{id} {event}"),
                None => break,
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    farewell(&agent, &mut events).await;
    Ok(())
}

async fn farewell(agent: &Agent, events: &mut sip_registration::Events) {
    let fates = agent.shutdown(Duration::from_secs(5)).await;
    while let Some((id, event)) = events.next().await {
        println!("{id} {event}");
    }
    for (id, fate) in fates {
        println!("{id} binding {fate}");
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> std::result::Result<Options, String> {
    let mut options = Options::default();
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--server" => options.server = Some(value()?),
            "--aor" => options.aor = Some(value()?),
            "--user" => options.user = Some(value()?),
            "--password" => options.password = Some(value()?),
            "--proxy" => options.proxy = Some(value()?),
            "--transport" => options.transport = Some(value()?),
            "--ca" => options.ca = Some(value()?),
            "--cert" => options.cert = Some(value()?),
            "--key" => options.key = Some(value()?),
            "--insecure" => options.insecure = true,
            "--expires" => {
                let text = value()?;
                let seconds = text
                    .parse()
                    .map_err(|_| format!("--expires {text:?} is not a number of seconds"))?;
                options.expires = Some(seconds);
            }
            "--nameserver" => {
                let text = value()?;
                let address = text
                    .parse()
                    .map_err(|_| format!("--nameserver {text:?} is not an address and a port"))?;
                options.nameserver = Some(address);
            }
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(options)
}
