//! Where the built-in transports bind, and what they say of it.

use super::syntax;
use crate::{Protocol, SipUri};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// The configuration of a built-in transport (pjsip.conf `type=transport`)
///
/// ```
/// # use sip_registration::{Protocol, TransportConfig};
/// let config = TransportConfig::new("wan", Protocol::Udp)?
///     .with_bind("0.0.0.0:5060".parse()?)
///     .with_external_signaling_address("203.0.113.7")?
///     .with_local_net("192.168.0.0/16")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportConfig {
    name: Arc<str>,
    protocol: Protocol,
    bind: SocketAddr,
    listen: bool,
    external_signaling_address: Option<Arc<str>>,
    external_signaling_port: Option<u16>,
    local_net: Vec<Net>,
}

impl TransportConfig {
    /// A transport that the option `transport` can name; binds to 0.0.0.0 and a free port, does not listen.
    pub fn new(
        name: impl Into<Arc<str>>,
        protocol: Protocol,
    ) -> Result<Self, TransportConfigError> {
        let name = name.into();
        if name.is_empty() || !syntax::is_text(&name) {
            return Err(TransportConfigError::Name { value: name });
        }
        Ok(Self {
            name,
            protocol,
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            listen: false,
            external_signaling_address: None,
            external_signaling_port: None,
            local_net: Vec::new(),
        })
    }

    /// Sets the local address and port; default `0.0.0.0:0`, any address and a free port (pjsip.conf `bind`).
    #[must_use]
    pub const fn with_bind(mut self, bind: SocketAddr) -> Self {
        self.bind = bind;
        self
    }

    /// Sets whether a stream transport accepts connections on `bind`; default `false`. UDP always receives.
    #[must_use]
    pub const fn with_listen(mut self, listen: bool) -> Self {
        self.listen = listen;
        self
    }

    /// Sets the host for Contact and Via towards the outside: a name, an IPv4 or an IPv6 address; default none
    /// (pjsip.conf `external_signaling_address`).
    pub fn with_external_signaling_address(
        mut self,
        host: &str,
    ) -> Result<Self, TransportConfigError> {
        let host = match host.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{host}]"),
            Err(_) => host.to_owned(),
        };
        // Whatever is the host of a URI and nothing else in it.
        match SipUri::parse(&format!("sip:{host}")) {
            Ok(uri) if uri.host_text() == host => {
                self.external_signaling_address = Some(host.into())
            }
            _ => return Err(TransportConfigError::ExternalAddress { value: host }),
        }
        Ok(self)
    }

    /// Sets the port for Contact and Via towards the outside, not 0; default that of the transport (pjsip.conf
    /// `external_signaling_port`).
    pub fn with_external_signaling_port(mut self, port: u16) -> Result<Self, TransportConfigError> {
        if port == 0 {
            return Err(TransportConfigError::ExternalPort);
        }
        self.external_signaling_port = Some(port);
        Ok(self)
    }

    /// Adds a network towards which the external address is not used, as `10.0.0.0/8`; default none (pjsip.conf
    /// `local_net`).
    pub fn with_local_net(mut self, net: &str) -> Result<Self, TransportConfigError> {
        let net = Net::parse(net).ok_or_else(|| TransportConfigError::LocalNet {
            value: net.to_owned(),
        })?;
        self.local_net.push(net);
        Ok(self)
    }

    /// The name that the option `transport` uses.
    #[must_use]
    pub const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The local address and port; 0 is a free one.
    #[must_use]
    pub const fn bind(&self) -> SocketAddr {
        self.bind
    }

    /// Whether a stream transport accepts connections.
    #[must_use]
    pub const fn listen(&self) -> bool {
        self.listen
    }

    /// The host for Contact and Via, an IPv6 address in brackets.
    #[must_use]
    pub fn external_signaling_address(&self) -> Option<&str> {
        self.external_signaling_address.as_deref()
    }

    /// The port for Contact and Via.
    #[must_use]
    pub const fn external_signaling_port(&self) -> Option<u16> {
        self.external_signaling_port
    }

    /// Whether `remote` is in a local network, so that the external address is not for it.
    #[must_use]
    pub fn is_local(&self, remote: IpAddr) -> bool {
        self.local_net.iter().any(|net| net.contains(remote))
    }

    /// The host and port to advertise to `remote` in place of `local`, where they differ.
    #[must_use]
    pub fn advertised(&self, local: SocketAddr, remote: IpAddr) -> Option<String> {
        if self.is_local(remote)
            || (self.external_signaling_address.is_none() && self.external_signaling_port.is_none())
        {
            return None;
        }
        let port = self.external_signaling_port.unwrap_or_else(|| local.port());
        Some(match (&self.external_signaling_address, local.ip()) {
            (Some(host), _) => format!("{host}:{port}"),
            (None, IpAddr::V4(ip)) => format!("{ip}:{port}"),
            (None, IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        })
    }
}

/// Why a transport cannot be configured so
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportConfigError {
    /// The name is empty or has a control character.
    #[error("transport name {value:?} is empty or has a control character")]
    Name {
        /// The name.
        value: Arc<str>,
    },
    /// The external address is no host.
    #[error("external_signaling_address {value:?} is no host name or address")]
    ExternalAddress {
        /// The address.
        value: String,
    },
    /// The external port is 0.
    #[error("external_signaling_port must not be 0")]
    ExternalPort,
    /// The local network is not `address/length`.
    #[error("local_net {value:?} is no address with a prefix length")]
    LocalNet {
        /// The network.
        value: String,
    },
}

/// A network: an address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Net {
    address: IpAddr,
    length: u8,
}

impl Net {
    /// Reads `10.0.0.0/8`, `10.0.0.0/255.0.0.0` or a single address.
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text
            .split_once('/')
            .map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.trim().parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length.map(str::trim) {
            None => most,
            Some(mask) if address.is_ipv4() && mask.contains('.') => {
                let mask: u32 = mask.parse::<Ipv4Addr>().ok()?.into();
                let ones = mask.leading_ones();
                if ones != mask.count_ones() {
                    return None;
                }
                u8::try_from(ones).ok()?
            }
            Some(length) => length.parse().ok().filter(|length| *length <= most)?,
        };
        Some(Self { address, length })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let differ = match (self.address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => (u32::from(net) ^ u32::from(ip)).leading_zeros(),
            (IpAddr::V6(net), IpAddr::V6(ip)) => (u128::from(net) ^ u128::from(ip)).leading_zeros(),
            _ => return false,
        };
        differ >= u32::from(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assert_matches::assert_matches;

    fn config() -> TransportConfig {
        TransportConfig::new("t", Protocol::Udp).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn defaults_bind_anywhere_and_advertise_nothing() {
        let config = config();
        assert_eq!(config.bind().to_string(), "0.0.0.0:0");
        assert_eq!(
            config.advertised(
                "192.0.2.1:5060".parse().unwrap(),
                "192.0.2.2".parse().unwrap()
            ),
            None
        );
        assert!(!config.listen());
    }

    #[test]
    fn the_external_address_is_for_the_outside_only() {
        let config = config()
            .with_external_signaling_address("2001:db8::7")
            .and_then(|c| c.with_external_signaling_port(5070))
            .and_then(|c| c.with_local_net("10.0.0.0/255.0.0.0"))
            .and_then(|c| c.with_local_net("fd00::/8"))
            .unwrap();
        let local = "10.0.0.1:5060".parse().unwrap();
        for (remote, advertised) in [
            ("192.0.2.1", Some("[2001:db8::7]:5070")),
            ("10.200.0.1", None),
            ("::ffff:10.1.1.1", None),
            ("fd01::1", None),
            ("fe01::1", Some("[2001:db8::7]:5070")),
        ] {
            assert_eq!(
                config.advertised(local, remote.parse().unwrap()).as_deref(),
                advertised,
                "{remote}"
            );
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        assert_matches!(
            TransportConfig::new("", Protocol::Udp),
            Err(TransportConfigError::Name { .. })
        );
        assert_matches!(
            TransportConfig::new("a\r\n", Protocol::Udp),
            Err(TransportConfigError::Name { .. })
        );
        for host in ["", "a b", "h:5060", "u@h", "h;x", "[::1", "h\r\nX: y"] {
            assert_matches!(
                config().with_external_signaling_address(host),
                Err(TransportConfigError::ExternalAddress { .. }),
                "{host}"
            );
        }
        assert_matches!(
            config().with_external_signaling_port(0),
            Err(TransportConfigError::ExternalPort)
        );
        for net in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/255.0.255.0",
            "x/8",
            "::/129",
            "10.0.0.0/-1",
        ] {
            assert_matches!(
                config().with_local_net(net),
                Err(TransportConfigError::LocalNet { .. }),
                "{net}"
            );
        }
    }
}
