//! The accounts and transports of a `pjsip.conf`.

use super::Accounts;
use crate::account::Result;
use sip_registration::pjsip_conf::{Directory, Loaded, load};
use sip_registration::{
    Agent, AgentBuilder, DnsResolver, Protocol, TcpTransport, TlsTransport, UdpTransport,
};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// An agent with the transports of a file, and the accounts of it.
pub(crate) async fn file(path: &str, nameserver: Option<SocketAddr>) -> Result<(Agent, Accounts)> {
    let path = Path::new(path);
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or("--config names no file")?;
    let files = Directory::new(path.parent().unwrap_or_else(|| Path::new("")));
    let loaded = load(&files, name);
    for said in loaded.diagnostics() {
        eprintln!("{said}");
    }
    let mut builder = Agent::builder();
    if let Some(address) = nameserver {
        builder = builder.resolver(DnsResolver::builder().name_server(address).build());
    }
    let agent = transports(builder, &loaded, &files).await?.build().await?;
    let accounts = loaded.registrations();
    let accounts = accounts.map(|(name, account)| (name.to_string(), (**account).clone()));
    Ok((agent, accounts.collect()))
}

async fn transports(
    mut agent: AgentBuilder,
    loaded: &Loaded,
    files: &Directory,
) -> Result<AgentBuilder> {
    for transport in loaded.transports() {
        let config = transport.config.clone();
        let name = Arc::clone(config.name());
        agent = match (config.protocol(), &transport.tls) {
            (Protocol::Udp, _) => agent.transport(name, UdpTransport::bind(config).await?),
            (Protocol::Tcp, _) => agent.transport(name, TcpTransport::new(config)),
            (_, Some(tls)) => {
                let tls = tls.config(files)?;
                agent.transport(name, TlsTransport::new(config, tls)?)
            }
            // Nothing else carries registrations.
            (_, None) => agent,
        };
    }
    Ok(agent)
}
