//! A host that already owns its UDP socket lends it to the agent.
//!
//! The host reads the socket. What answers a REGISTER of ours goes to the agent, everything else stays with the
//! host. `cargo run --example own_transport` registers at a small registrar, receives a message of its own on the
//! same socket, and un-registers.

use async_trait::async_trait;
use bytes::Bytes;
use sip_registration::testkit::TestServer;
use sip_registration::{
    Agent, Credentials, Flow, FlowError, FlowId, FlowInfo, Inbound, Protocol, Received,
    Registration, Target, Transport,
};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::UdpSocket;

/// The host's socket, as the agent sees it
#[derive(Debug)]
struct HostSocket {
    socket: Arc<UdpSocket>,
    inbound: OnceLock<Inbound>,
}

#[async_trait]
impl Transport for HostSocket {
    fn protocols(&self) -> &[Protocol] {
        &[Protocol::Udp]
    }

    async fn start(&self, inbound: Inbound) -> Result<(), FlowError> {
        let _ = self.inbound.set(inbound);
        Ok(())
    }

    async fn open(&self, _id: FlowId, to: &Target) -> Result<Arc<dyn Flow>, FlowError> {
        // The socket is bound to an address that reaches the registrar; one bound to 0.0.0.0 would have to find it.
        let info = FlowInfo::new(Protocol::Udp, self.socket.local_addr()?, to.address());
        Ok(Arc::new(HostFlow {
            socket: Arc::clone(&self.socket),
            info,
        }))
    }
}

#[derive(Debug)]
struct HostFlow {
    socket: Arc<UdpSocket>,
    info: FlowInfo,
}

impl Flow for HostFlow {
    fn info(&self) -> &FlowInfo {
        &self.info
    }

    fn send(&self, message: Bytes) -> Result<(), FlowError> {
        // `WouldBlock` becomes `FlowError::Full`: the agent keeps the message and comes again.
        self.socket.try_send_to(&message, self.info.remote())?;
        Ok(())
    }

    fn close(&self) {} // the socket is the host's
}

/// The host's own receive path: it splits the socket between the agent and itself.
async fn receive(host: Arc<HostSocket>) -> std::io::Result<(SocketAddr, Bytes)> {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, source) = host.socket.recv_from(&mut buffer).await?;
        let message = Bytes::copy_from_slice(&buffer[..length]);
        match host.inbound.get() {
            Some(inbound) if inbound.accepts(&message) => {
                let _ = inbound.try_received(Received::new(source, message));
            }
            _ => return Ok((source, message)),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = TestServer::new()
        .user("alice", "secret")
        .serve("127.0.0.1:0")
        .await?;
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = socket.local_addr()?;
    let host = Arc::new(HostSocket {
        socket,
        inbound: OnceLock::new(),
    });
    let mut own = tokio::spawn(receive(Arc::clone(&host)));

    let transport: Arc<dyn Transport> = Arc::<HostSocket>::clone(&host);
    let agent = Agent::builder()
        .transport("host", transport)
        .build()
        .await?;
    let account = Registration::builder(format!("sip:{}", server.addr()), "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .max_random_initial_delay(Duration::ZERO)
        .build()?;
    let handle = agent.add(account).await?;
    println!("registered {}", handle.registered().await?);

    // What is not ours stays with the host, on the same socket.
    let caller = UdpSocket::bind("127.0.0.1:0").await?;
    caller
        .send_to(b"OPTIONS sip:alice@127.0.0.1 SIP/2.0\r\n\r\n", address)
        .await?;
    let (source, message) = (&mut own).await??;
    println!("the host itself got {} bytes from {source}", message.len());
    own = tokio::spawn(receive(Arc::clone(&host)));

    for (id, fate) in agent.shutdown(Duration::from_secs(5)).await {
        println!("{id} binding {fate}");
    }
    own.abort();
    server.stop().await;
    Ok(())
}
