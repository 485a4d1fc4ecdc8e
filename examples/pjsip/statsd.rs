//! The gauges of Asterisk, sent to a statsd server.

use sip_registration::pjsip_conf::Gauges;
use sip_registration::{Agent, Event, Registrar, RegistrationId};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A statsd server, and what it was told; a gauge is a datagram
pub(crate) struct Statsd {
    socket: UdpSocket,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    gauges: Gauges,
    /// How many events there were
    events: u64,
}

impl Statsd {
    /// Sets the gauges of this server to 0.
    pub(crate) fn new(server: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        // It is called by the agent, which must not wait.
        socket.set_nonblocking(true)?;
        let statsd = Self {
            socket,
            told: Mutex::default(),
        };
        statsd.send(Gauges::zeros());
        Ok(statsd)
    }

    pub(crate) fn event(&self, id: RegistrationId, event: &Event) {
        // The lock is held while sending: the order counts.
        let mut told = self.told();
        told.events += 1;
        self.send(told.gauges.event(id, event));
    }

    /// Tells what no event does: what is new or gone, and what a command has ended without a message. All are gone
    /// once the agent has ended.
    pub(crate) async fn catch_up(&self, agent: &Agent) {
        loop {
            let before = self.told().events;
            let statuses = agent.statuses().await;
            let mut told = self.told();
            // An event may have come since they were asked: then they are old.
            if told.events == before {
                self.send(told.gauges.only(statuses.iter().map(|(id, _)| *id)));
                for (id, status) in statuses {
                    self.send(told.gauges.stands(id, status.reference_status()));
                }
                return;
            }
        }
    }

    /// What is lost is lost, as everywhere in statsd.
    fn send(&self, lines: Vec<String>) {
        for line in lines {
            let _ = self.socket.send(line.as_bytes());
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
