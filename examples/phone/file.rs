//! The accounts and transports of a `pjsip.conf`.

use super::Accounts;
use crate::account::Result;
use sip_registration::pjsip_conf::{Directory, Transports, load};
use sip_registration::{Agent, DnsResolver};
use std::net::SocketAddr;
use std::path::Path;

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
    let mut transports = Transports::new();
    let (agent, outcomes) = transports.start(builder, &loaded, &files).await?;
    for (name, outcome) in outcomes {
        eprintln!("transport {name}: {outcome}");
    }
    if transports.is_empty() {
        return Err("no transport".into());
    }
    let accounts = loaded.registrations();
    let accounts = accounts.map(|(name, account)| (name.to_string(), (**account).clone()));
    Ok((agent, accounts.collect()))
}
