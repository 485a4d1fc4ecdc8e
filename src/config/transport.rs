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
    ipv6_only: bool,
    interface: Option<Arc<str>>,
    tos: Option<u8>,
    cos: Option<u8>,
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
            ipv6_only: false,
            interface: None,
            tos: None,
            cos: None,
            external_signaling_address: None,
            external_signaling_port: None,
            local_net: Vec::new(),
        })
    }

    /// This one, with what another one advertises.
    #[cfg(feature = "pjsip-conf")]
    pub(crate) fn advertising_as(self, other: &Self) -> Self {
        Self {
            external_signaling_address: other.external_signaling_address.clone(),
            external_signaling_port: other.external_signaling_port,
            local_net: other.local_net.clone(),
            ..self
        }
    }

    /// Sets the local address and port; default `0.0.0.0:0`, any address and a free port (pjsip.conf `bind`).
    ///
    /// A scope of an IPv6 address (`[fe80::1%3]:5060`) is the scope of link-local targets too.
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

    /// Sets whether a socket bound to `::` is for IPv6 alone (IPV6_V6ONLY), so that another transport can have the same port
    /// for IPv4; default `false`: what the system does, which is to take both on most. pjsip.conf has no such option, its
    /// transports are all so.
    #[must_use]
    pub const fn with_ipv6_only(mut self, ipv6_only: bool) -> Self {
        self.ipv6_only = ipv6_only;
        self
    }

    /// Sets the network interface that everything goes out on and comes in by, as `eth0`; default none: the system's
    /// routes decide. Linux and Android only (SO_BINDTODEVICE); elsewhere, and where there is no such interface, the
    /// transport fails with [`FlowError::Setting`](crate::FlowError::Setting). pjsip.conf has no such option.
    ///
    /// # Errors
    /// A name that is empty, longer than 15 bytes, or has a slash, a space or a control character.
    pub fn with_interface(mut self, name: &str) -> Result<Self, TransportConfigError> {
        let good = (1..=LONGEST_INTERFACE).contains(&name.len())
            && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        if !good {
            return Err(TransportConfigError::Interface { value: name.into() });
        }
        self.interface = Some(name.into());
        Ok(self)
    }

    /// Sets the type-of-service byte of what is sent, IPv6's traffic class alike (RFC 2474); default none: the
    /// system's, 0 (pjsip.conf `tos`).
    ///
    /// As there: a code point by its name, as `cs3`, `af31` or `ef`, or the whole byte as a number, as `96` or `0x60`.
    /// Signalling is often given `cs3`, or `cs5` (RFC 4594 §3.2).
    ///
    /// # Errors
    /// A text that is neither.
    pub fn with_tos(mut self, tos: &str) -> Result<Self, TransportConfigError> {
        let byte =
            type_of_service(tos).ok_or_else(|| TransportConfigError::Tos { value: tos.into() })?;
        self.tos = Some(byte);
        Ok(self)
    }

    /// Sets the priority of what is sent, 0 to 7, which a VLAN carries as its class of service (SO_PRIORITY); default
    /// none: what the system makes of [`with_tos`](Self::with_tos) (pjsip.conf `cos`). Linux and Android only; 7 needs
    /// a privilege (CAP_NET_ADMIN).
    ///
    /// # Errors
    /// A number above 7.
    pub fn with_cos(mut self, cos: u8) -> Result<Self, TransportConfigError> {
        if cos > 7 {
            return Err(TransportConfigError::Cos { value: cos });
        }
        self.cos = Some(cos);
        Ok(self)
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

    /// Whether a socket bound to `::` is for IPv6 alone.
    #[must_use]
    pub const fn ipv6_only(&self) -> bool {
        self.ipv6_only
    }

    /// Whether a stream transport accepts connections.
    #[must_use]
    pub const fn listen(&self) -> bool {
        self.listen
    }

    /// The network interface.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// The type-of-service byte.
    #[must_use]
    pub const fn tos(&self) -> Option<u8> {
        self.tos
    }

    /// The priority.
    #[must_use]
    pub const fn cos(&self) -> Option<u8> {
        self.cos
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

    /// The networks towards which the external address is not used, each as `10.0.0.0/8`.
    pub fn local_net(&self) -> impl Iterator<Item = String> + '_ {
        let nets = self.local_net.iter();
        nets.map(|net| format!("{}/{}", net.address, net.length))
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
    /// No interface can have this name.
    #[error("interface {value:?} is no name of an interface")]
    Interface {
        /// The name.
        value: String,
    },
    /// The type of service is neither the name of a code point nor a byte.
    #[error("tos {value:?} is no code point (cs0-cs7, af11-af43, ef) and no number from 0 to 255")]
    Tos {
        /// The text.
        value: String,
    },
    /// The priority is above 7.
    #[error("cos {value} is above 7")]
    Cos {
        /// The priority.
        value: u8,
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

/// The longest name of an interface that Linux has (IFNAMSIZ, with its final NUL)
const LONGEST_INTERFACE: usize = 15;

/// The byte for a code point's name (RFC 2474 §4.2.2, RFC 2597, RFC 3246) or for a number, in decimal or as `0x60`
fn type_of_service(text: &str) -> Option<u8> {
    let text = text.trim().to_ascii_lowercase();
    let digit = |digit: u8, from: u8, to: u8| {
        (from..=to)
            .contains(&digit.wrapping_sub(b'0'))
            .then(|| digit - b'0')
    };
    let code_point = match text.as_bytes() {
        b"ef" => Some(46),
        [b'c', b's', class] => digit(*class, 0, 7).map(|class| class * 8),
        [b'a', b'f', class, drop] => Some(digit(*class, 1, 4)? * 8 + digit(*drop, 1, 3)? * 2),
        _ => None,
    };
    if let Some(code_point) = code_point {
        return Some(code_point << 2);
    }
    match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u8::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
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
    fn a_type_of_service_is_a_name_or_a_byte() {
        for (text, byte) in [
            ("cs0", 0),
            ("cs3", 0x60),
            ("CS7", 0xe0),
            ("af11", 0x28),
            ("af43", 0x98),
            ("ef", 0xb8),
            ("184", 184),
            ("0xB8", 0xb8),
            ("0", 0),
            ("255", 255),
        ] {
            assert_eq!(config().with_tos(text).unwrap().tos(), Some(byte), "{text}");
        }
        for text in [
            "", "cs8", "af10", "af51", "af14", "256", "-1", "+1", "0x", "0x100", "0x+1", "best",
        ] {
            assert_matches!(
                config().with_tos(text),
                Err(TransportConfigError::Tos { .. }),
                "{text}"
            );
        }
        assert_eq!(config().tos(), None);
    }

    #[test]
    fn priorities_and_interfaces_are_checked() {
        assert_eq!(config().with_cos(7).unwrap().cos(), Some(7));
        assert_matches!(
            config().with_cos(8),
            Err(TransportConfigError::Cos { value: 8 })
        );
        let named = config().with_interface("eth0.100").unwrap();
        assert_eq!(named.interface(), Some("eth0.100"));
        for name in ["", "a name", "a/b", "a\0", "sixteen-letters!"] {
            assert_matches!(
                config().with_interface(name),
                Err(TransportConfigError::Interface { .. }),
                "{name}"
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
