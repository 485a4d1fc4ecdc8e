//! The command line that `register` and `softphone` share: one account, and how it is reached.

mod end;

pub(crate) use end::End;

use sip_registration::{
    Agent, AgentBuilder, Credentials, DnsResolver, Events, InstanceId, Protocol, Registration,
    RegistrationBuilder, RegistrationId, TcpTransport, TlsConfig, TlsTransport, TransportConfig,
    UdpTransport, WsConfig, WsTransport,
};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The flags of an account
pub(crate) const FLAGS: &str = "--server URI --aor URI [--user NAME] [--password SECRET] [--proxy URI] \
    [--transport udp|tcp|tls|ws|wss] [--path PATH] [--expires SECONDS]\n         \
    [--ca FILE] [--cert FILE --key FILE] [--insecure] [--nameserver IP:PORT]\n         \
    [--instance FILE [--outbound] [--flow URI]... [--gruu]]";

/// What some of them mean
const MEANING: &str = "--ca, --cert and --key name PEM files for TLS: whom to believe instead of the system's roots, and \
     what to show to a server that asks. --insecure believes anybody.\n\
     --path is what a WebSocket is asked for, as /ws; / unless given.\n\
     --instance names the file that says which device this is; it is made if there is none. --outbound registers the flow \
     to the --proxy as RFC 5626 has it, each --flow one more by way of another proxy; --gruu asks for addresses that lead \
     to this device (RFC 5627).\n\
     The password is better given in the environment: SIP_PASSWORD.";

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) server: Option<String>,
    pub(crate) aor: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) proxy: Option<String>,
    pub(crate) transport: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) expires: Option<u64>,
    pub(crate) ca: Option<String>,
    pub(crate) cert: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) insecure: bool,
    pub(crate) nameserver: Option<SocketAddr>,
    pub(crate) instance: Option<String>,
    pub(crate) outbound: bool,
    pub(crate) flows: Vec<String>,
    pub(crate) gruu: bool,
}

impl Options {
    /// Takes a flag, and its value where it has one; false where it is none of these.
    pub(crate) fn take(
        &mut self,
        flag: &str,
        args: &mut impl Iterator<Item = String>,
    ) -> std::result::Result<bool, String> {
        let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag {
            "--server" => self.server = Some(value()?),
            "--aor" => self.aor = Some(value()?),
            "--user" => self.user = Some(value()?),
            "--password" => self.password = Some(value()?),
            "--proxy" => self.proxy = Some(value()?),
            "--transport" => self.transport = Some(value()?),
            "--path" => self.path = Some(value()?),
            "--ca" => self.ca = Some(value()?),
            "--cert" => self.cert = Some(value()?),
            "--key" => self.key = Some(value()?),
            "--insecure" => self.insecure = true,
            "--instance" => self.instance = Some(value()?),
            "--outbound" => self.outbound = true,
            "--flow" => self.flows.push(value()?),
            "--gruu" => self.gruu = true,
            "--expires" => self.expires = Some(number(flag, &value()?)?),
            "--nameserver" => {
                let text = value()?;
                let address = text
                    .parse()
                    .map_err(|_| format!("{flag} {text:?} is not an address and a port"))?;
                self.nameserver = Some(address);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The account, but for what an example adds.
    pub(crate) fn account(&self) -> Result<RegistrationBuilder> {
        let (Some(server), Some(aor)) = (&self.server, &self.aor) else {
            return Err("--server and --aor go together".into());
        };
        let password = self.password.clone();
        let password = password.or_else(|| std::env::var("SIP_PASSWORD").ok());
        let user = self.user.clone().unwrap_or_else(|| {
            let user = aor.split_once(':').map_or(aor.as_str(), |(_, rest)| rest);
            user.split('@').next().unwrap_or(user).to_owned()
        });
        let server = match &self.transport {
            Some(transport) => format!("{server};transport={transport}"),
            None => server.clone(),
        };
        let mut builder = Registration::builder(server, aor.as_str())
            .contact_user(user.as_str())
            .max_random_initial_delay(Duration::ZERO)
            .expiration(Duration::from_secs(self.expires.unwrap_or(3600)));
        if let Some(password) = password {
            builder = builder.outbound_auth(Credentials::password(user, password));
        }
        if let Some(proxy) = &self.proxy {
            builder = builder.outbound_proxy(proxy.as_str());
        }
        if let Some(file) = &self.instance {
            let instance =
                InstanceId::saved_in(file).map_err(|error| format!("{file}: {error}"))?;
            builder = builder.instance(instance);
        }
        builder = builder.outbound(self.outbound).gruu(self.gruu);
        for flow in &self.flows {
            builder = builder.further_flow(flow.as_str());
        }
        Ok(builder)
    }

    /// An agent with the transports that the flags ask for; `system_transports()` is the same with the system's roots.
    pub(crate) async fn agent(&self) -> Result<AgentBuilder> {
        let config = |name: &str, protocol| TransportConfig::new(name, protocol);
        let udp = UdpTransport::bind(config("udp", Protocol::Udp)?).await?;
        let tcp = TcpTransport::new(config("tcp", Protocol::Tcp)?);
        let trust = self.tls()?;
        let tls = TlsTransport::new(config("tls", Protocol::Tls)?, trust.clone())?;
        let mut ws = WsConfig::new().with_tls(trust);
        if let Some(path) = &self.path {
            ws = ws.with_path(path)?;
        }
        let wss = WsTransport::new(config("wss", Protocol::Wss)?, ws.clone());
        let ws = WsTransport::new(config("ws", Protocol::Ws)?, ws);
        let builder = Agent::builder()
            .transport("udp", udp)
            .transport("tcp", tcp)
            .transport("tls", tls)
            .transport("ws", ws)
            .transport("wss", wss);
        Ok(match self.nameserver {
            Some(address) => builder.resolver(DnsResolver::builder().name_server(address).build()),
            None => builder,
        })
    }

    /// Whom to believe over TLS, and what to show.
    fn tls(&self) -> Result<TlsConfig> {
        let mut tls = TlsConfig::new();
        if let Some(file) = &self.ca {
            tls = tls.with_roots_pem(&read(file)?)?;
        }
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                tls = tls.with_certificate_pem(&read(cert)?, &read(key)?)?;
            }
            (None, None) => {}
            _ => return Err("--cert and --key go together".into()),
        }
        if self.insecure {
            eprintln!("warning: whoever is on the path can read and forge everything");
            tls = tls.dangerous_accept_any_certificate();
        }
        Ok(tls)
    }
}

fn read(file: &str) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| format!("{file}: {error}").into())
}

/// What the program ends with; an error in words, with what is behind it.
pub(crate) fn ended(result: Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprint!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}

/// Says how it is used: because that was asked for, or something else cannot be understood.
pub(crate) fn usage(problem: &str, usage: &str) -> ExitCode {
    if ["unknown argument \"--help\"", "unknown argument \"-h\""].contains(&problem) {
        println!("{usage}\n{MEANING}");
        return ExitCode::SUCCESS;
    }
    eprintln!("{problem}\n{usage}\n{MEANING}");
    ExitCode::from(2)
}

pub(crate) fn number(flag: &str, text: &str) -> std::result::Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{flag} {text:?} is not a number"))
}

/// Un-registers, and says what became of each binding.
pub(crate) async fn farewell(
    agent: &Agent,
    events: &mut Events,
    name: impl Fn(RegistrationId) -> String,
) {
    let fates = agent.shutdown(Duration::from_secs(5)).await;
    while let Some((id, event)) = events.next().await {
        println!("{} {event}", name(id));
    }
    for (id, fate) in fates {
        println!("{} binding {fate}", name(id));
    }
}
