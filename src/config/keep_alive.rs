//! How flows are kept alive, and what a Contact says behind a NAT.

use super::error::BuildError;
use std::ops::RangeInclusive;
use std::time::Duration;

/// How the flow of a registration is kept alive (D14)
///
/// Keep-alives belong to the flow and are sent once for all registrations on it; where their policies differ, the most
/// demanding of those that registered on the flow decides: the shorter interval, [`UdpKeepAlive::Options`] over
/// [`UdpKeepAlive::Crlf`] over [`UdpKeepAlive::Off`], and a flag that is on. They begin with the first REGISTER that is
/// accepted on the flow, unless [`FlowInfo::keep_alive`](crate::FlowInfo::keep_alive) says that the host sends them.
///
/// An answer is due, and a flow without one has failed, only where the registrar has agreed to answer (`Require:
/// outbound`, `Flow-Timer`, a `keep` with a value), where [`answered`](Self::answered) says so, on a connection that has
/// answered before, and on a WebSocket, whose Ping every server has to answer (RFC 6455 §5.5.2). A server that never does
/// stays usable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeepAlivePolicy {
    /// How often CRLFCRLF, over WebSocket a Ping, goes out on a connection, at random between the two; default 95–120 s (RFC 5626 §4.4.1),
    /// `asterisk()` 90 s (pjsip.conf `keep_alive_interval`). `None`: only where the server asks for it. From 1 s to a day.
    pub stream: Option<RangeInclusive<Duration>>,
    /// What keeps a UDP flow alive where nothing was negotiated; default [`UdpKeepAlive::Crlf`], `asterisk()`
    /// [`UdpKeepAlive::Off`]. RFC 5626 §4.4.1 has CRLF on streams only; NATs do not know that.
    pub udp: UdpKeepAlive,
    /// How often, on UDP, at random between the two; default 24–29 s (RFC 5626 §4.4.2). From 1 s to a day.
    pub udp_interval: RangeInclusive<Duration>,
    /// Whether a UDP flow is kept alive even though no answer has shown a NAT; default `false`. For registrars that fill
    /// in neither `received` nor `rport`.
    pub udp_without_nat: bool,
    /// Whether keep-alives are negotiated: `keep` goes into Via (RFC 6223), and `Require: outbound`, `Flow-Timer` and
    /// `keep` of answers are heeded; default `true`, `asterisk()` `false`. A server's interval is taken to 80–100 %,
    /// between 10 s and 3600 s, and UDP flows are kept alive with STUN (RFC 5626 §4.4.2).
    pub negotiate: bool,
    /// Whether the next hop is known to answer keep-alives, by pongs on connections and by STUN on UDP; default `false`.
    /// This is the "explicit indication" of RFC 5626 §4.4: set wrongly, it fails flows that are up.
    pub answered: bool,
}

impl KeepAlivePolicy {
    /// What the reference does: CRLFCRLF every 90 s on connections, nothing on UDP, nothing negotiated.
    pub(super) fn asterisk() -> Self {
        let interval = Duration::from_secs(90);
        Self {
            stream: Some(interval..=interval),
            udp: UdpKeepAlive::Off,
            negotiate: false,
            ..Self::default()
        }
    }

    /// Takes over what `other` asks for beyond this.
    pub(crate) fn raise(&mut self, other: &Self) {
        let longer = |one: &RangeInclusive<Duration>, other: &RangeInclusive<Duration>| {
            (one.end(), one.start()) > (other.end(), other.start())
        };
        match (&self.stream, &other.stream) {
            (Some(one), Some(other)) if longer(one, other) => self.stream = Some(other.clone()),
            (None, Some(other)) => self.stream = Some(other.clone()),
            _ => {}
        }
        if longer(&self.udp_interval, &other.udp_interval) {
            self.udp_interval = other.udp_interval.clone();
        }
        self.udp = self.udp.max(other.udp);
        self.udp_without_nat |= other.udp_without_nat;
        self.answered |= other.answered;
    }

    /// Whether all values are within their limits.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(86_400));
        for (option, interval) in [
            ("keep_alive.stream", self.stream.as_ref()),
            ("keep_alive.udp_interval", Some(&self.udp_interval)),
        ] {
            let Some(interval) = interval else { continue };
            for (value, least) in [
                (*interval.start(), shortest),
                (*interval.end(), shortest.max(*interval.start())),
            ] {
                if value < least || value > longest {
                    return Err(BuildError::Interval {
                        option,
                        value,
                        least,
                        most: longest,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Default for KeepAlivePolicy {
    fn default() -> Self {
        Self {
            stream: Some(Duration::from_secs(95)..=Duration::from_secs(120)),
            udp: UdpKeepAlive::Crlf,
            udp_interval: Duration::from_secs(24)..=Duration::from_secs(29),
            udp_without_nat: false,
            negotiate: true,
            answered: false,
        }
    }
}

/// What keeps a UDP flow alive where neither outbound nor `keep` was negotiated
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum UdpKeepAlive {
    /// Nothing.
    Off,
    /// CRLF, which nobody answers: the least that keeps a NAT's mapping.
    Crlf,
    /// An OPTIONS to the registrar, outside of any dialog. Any answer will do; its `received` and `rport` show the mapped
    /// address. Once one was answered, a later one without an answer fails the flow.
    Options,
}

/// What a Contact says behind a NAT (F30)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContactRewriting {
    /// Our own address; where the flow goes is the registrar's to remember.
    Off,
    /// The address that the registrar saw the request come from (`received` and `rport` of its answers, or STUN).
    ///
    /// A grant that shows another one is followed by one REGISTER with it, which removes the old Contact (D18); should
    /// that one be answered from yet another, the next refresh sees to it. Nothing is rewritten where the transport says
    /// what to advertise (an external address, a listener's port), nor to an address that cannot be ours: of another
    /// family, port 0, unspecified, multicast, broadcast, loopback or link-local unless our own is, private (RFC 1918,
    /// RFC 6598, RFC 4193) unless both we and the registrar are. Via stays as it is.
    Mapped,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(from: u64, to: u64) -> RangeInclusive<Duration> {
        Duration::from_secs(from)..=Duration::from_secs(to)
    }

    #[test]
    fn the_most_demanding_user_decides() {
        let mut flow = KeepAlivePolicy::asterisk();
        flow.raise(&KeepAlivePolicy::default());
        assert_eq!(flow.stream, Some(secs(90, 90)));
        assert_eq!(flow.udp, UdpKeepAlive::Crlf);
        flow.raise(&KeepAlivePolicy {
            stream: Some(secs(60, 80)),
            udp: UdpKeepAlive::Options,
            udp_interval: secs(10, 20),
            answered: true,
            ..KeepAlivePolicy::default()
        });
        flow.raise(&KeepAlivePolicy {
            stream: None,
            ..KeepAlivePolicy::asterisk()
        });
        assert_eq!(flow.stream, Some(secs(60, 80)));
        assert_eq!(flow.udp_interval, secs(10, 20));
        assert_eq!((flow.udp, flow.answered), (UdpKeepAlive::Options, true));
    }

    #[test]
    fn intervals_have_limits() {
        for (option, spoilt) in [
            (
                "keep_alive.stream",
                KeepAlivePolicy {
                    stream: Some(secs(0, 5)),
                    ..KeepAlivePolicy::default()
                },
            ),
            (
                "keep_alive.stream",
                KeepAlivePolicy {
                    stream: Some(secs(6, 5)),
                    ..KeepAlivePolicy::default()
                },
            ),
            (
                "keep_alive.udp_interval",
                KeepAlivePolicy {
                    udp_interval: secs(5, 86_401),
                    ..KeepAlivePolicy::default()
                },
            ),
        ] {
            let error = spoilt.check().expect_err(option).to_string();
            assert!(error.contains(option), "{option}: {error}");
        }
        let off = KeepAlivePolicy {
            stream: None,
            ..KeepAlivePolicy::asterisk()
        };
        assert_eq!(off.check(), Ok(()));
    }
}
