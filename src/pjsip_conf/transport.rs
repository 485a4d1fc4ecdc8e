//! Sections `type=transport`, and the files of their TLS.

use super::diagnostic::Rule;
use super::reader::Reader;
use crate::{Protocol, TransportConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// A section `type=transport`
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TransportSection {
    /// Name, protocol, address, what is advertised, type and class of service; TCP listens, TLS where it has a certificate
    pub config: TransportConfig,
    /// The files and checks of TLS; `None` where the protocol has none
    pub tls: Option<TlsFiles>,
    /// Whether a reload may change more than what is advertised; default `false`, as in Asterisk (`allow_reload`)
    pub allow_reload: bool,
}

impl TransportSection {
    /// Whether it makes the same transport.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.config == other.config && self.tls == other.tls
    }

    /// What of this new version a reload may take over from `old`, which runs, where it does not allow more.
    pub(super) fn over(&self, old: &Self) -> Self {
        Self {
            config: old.config.clone().advertising_as(&self.config),
            tls: old.tls.clone(),
            allow_reload: self.allow_reload,
        }
    }
}

/// What a `type=transport` section says about TLS; the files are not looked at
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TlsFiles {
    /// Our certificate chain, PEM (`cert_file`)
    pub cert_file: Option<Arc<str>>,
    /// Its key, PEM (`priv_key_file`)
    pub priv_key_file: Option<Arc<str>>,
    /// The authorities that are trusted, PEM (`ca_list_file`)
    pub ca_list_file: Option<Arc<str>>,
    /// A directory of authorities that are trusted (`ca_list_path`)
    pub ca_list_path: Option<Arc<str>>,
    /// Whether the server's certificate is checked; default `false`, as in Asterisk (`verify_server`)
    pub verify_server: bool,
    /// Whether a client's certificate is checked; default `false` (`verify_client`)
    pub verify_client: bool,
    /// Whether a client must have a certificate; default `false` (`require_client_cert`)
    pub require_client_cert: bool,
    /// Whether a certificate may be for `*.example.com`; default `false` (`allow_wildcard_certs`)
    pub allow_wildcard_certs: bool,
    /// The protocol version, as `tlsv1_2`; `None` for the default (`method`)
    pub method: Option<&'static str>,
}

/// What other sections of the type have that means nothing here.
const TRANSPORT_IGNORED: [&str; 11] = [
    "async_operations",
    "cipher",
    "domain",
    "external_media_address",
    "password",
    "websocket_write_timeout",
    "symmetric_transport",
    "tcp_keepalive_enable",
    "tcp_keepalive_idle_time",
    "tcp_keepalive_interval_time",
    "tcp_keepalive_probe_count",
];

const METHODS: [&str; 10] = [
    "default",
    "unspecified",
    "tlsv1",
    "tlsv1_1",
    "tlsv1_2",
    "tlsv1_3",
    "sslv2",
    "sslv3",
    "sslv23",
    "",
];

pub(super) fn transport(reader: &mut Reader<'_>) -> Option<TransportSection> {
    let mut protocol = Some(Protocol::Udp);
    let mut bind = None;
    let mut tls = TlsFiles::default();
    let (mut tos, mut cos, mut allow_reload) = (None, None, false);
    let (mut external, mut port, mut nets) = (None, None, Vec::new());
    let text = |value: &Arc<str>| (!value.is_empty()).then(|| Arc::clone(value));
    for (name, at) in reader.variables() {
        match name.as_str() {
            "protocol" => match at.value.to_ascii_lowercase().as_str() {
                "udp" => protocol = Some(Protocol::Udp),
                "tcp" => protocol = Some(Protocol::Tcp),
                "tls" => protocol = Some(Protocol::Tls),
                "ws" | "wss" => {
                    protocol = None;
                    reader.warn(Some(at), Rule::OnlyListens(Arc::clone(&at.value)));
                }
                "flow" => {
                    protocol = None;
                    reader.warn(Some(at), Rule::UnsupportedProtocol(Arc::clone(&at.value)));
                }
                _ => reader.refuse(Some(at), Rule::NotOneOf("udp, tcp, tls, ws, wss, flow")),
            },
            "bind" => match address(&at.value) {
                Some(address) => bind = Some(address),
                None => reader.refuse(Some(at), Rule::Bind),
            },
            "external_signaling_address" => external = Some(at).filter(|at| !at.value.is_empty()),
            "external_signaling_port" => match reader.uint(at).map(u16::try_from) {
                None => {}
                Some(Ok(number)) => port = Some(number).filter(|port| *port > 0),
                Some(Err(_)) => {
                    reader.refuse(Some(at), Rule::NotOneOf("the ports from 0 to 65535"))
                }
            },
            "local_net" => nets.push(at),
            "allow_reload" => allow_reload = reader.boolean(at),
            "tos" => tos = Some(at),
            "cos" => cos = reader.uint(at).map(|cos| (at, cos)),
            "cert_file" => tls.cert_file = text(&at.value),
            "priv_key_file" => tls.priv_key_file = text(&at.value),
            "ca_list_file" => tls.ca_list_file = text(&at.value),
            "ca_list_path" => tls.ca_list_path = text(&at.value),
            "verify_server" => tls.verify_server = reader.boolean(at),
            "verify_client" => tls.verify_client = reader.boolean(at),
            "require_client_cert" => tls.require_client_cert = reader.boolean(at),
            "allow_wildcard_certs" => tls.allow_wildcard_certs = reader.boolean(at),
            "method" => match METHODS
                .iter()
                .find(|method| method.eq_ignore_ascii_case(&at.value))
            {
                Some(method) => {
                    tls.method =
                        Some(*method).filter(|m| !["", "default", "unspecified"].contains(m))
                }
                None => reader.refuse(
                    Some(at),
                    Rule::NotOneOf("default, tlsv1, tlsv1_1, tlsv1_2, tlsv1_3"),
                ),
            },
            name if TRANSPORT_IGNORED.contains(&name) => {}
            _ => reader.warn(Some(at), Rule::IgnoredOption("transport")),
        }
    }
    // What is missing or refused has a stand-in, so that the rest is looked at.
    let carried = protocol.unwrap_or(Protocol::Tcp);
    if protocol.is_some() && reader.last("bind").is_none() {
        reader.refuse_option("bind", Rule::Missing("bind"));
    }
    let mut bind = bind.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    if bind.port() == 0 {
        bind.set_port(if carried == Protocol::Tls { 5061 } else { 5060 });
    }
    let named = TransportConfig::new(Arc::clone(reader.name()), carried).or_else(|error| {
        reader.refuse(None, Rule::Transport(error));
        TransportConfig::new("transport", carried)
    });
    let mut config = named
        .ok()?
        .with_bind(bind)
        .with_listen(carried.is_reliable())
        // As in Asterisk, `::` leaves IPv4 to another transport on the same port.
        .with_ipv6_only(bind.is_ipv6());
    if let Some(at) = external {
        match config.clone().with_external_signaling_address(&at.value) {
            Ok(with) => config = with,
            Err(error) => reader.refuse(Some(at), Rule::Transport(error)),
        }
    }
    if let Some(port) = port {
        config = config
            .clone()
            .with_external_signaling_port(port)
            .unwrap_or(config);
    }
    for at in nets {
        for net in at
            .value
            .split(',')
            .map(str::trim)
            .filter(|net| !net.is_empty())
        {
            match config.clone().with_local_net(net) {
                Ok(with) => config = with,
                Err(error) => reader.refuse(Some(at), Rule::Transport(error)),
            }
        }
    }
    if let Some(at) = tos {
        match config.clone().with_tos(older_name(&at.value)) {
            Ok(with) => config = with,
            Err(error) => reader.refuse(Some(at), Rule::Transport(error)),
        }
    }
    if let Some((at, cos)) = cos {
        match config
            .clone()
            .with_cos(u8::try_from(cos).unwrap_or(u8::MAX))
        {
            Ok(with) => config = with,
            Err(error) => reader.refuse(Some(at), Rule::Transport(error)),
        }
    }
    let tls = (carried == Protocol::Tls).then_some(tls);
    if let Some(tls) = &tls {
        // Without a certificate there is nothing to show to those who connect.
        config = config.with_listen(tls.cert_file.is_some());
        doubts(reader, tls);
    }
    protocol.filter(|_| !reader.is_refused())?;
    Some(TransportSection {
        config,
        tls,
        allow_reload,
    })
}

/// What of TLS is weaker, or stricter, than it reads.
fn doubts(reader: &mut Reader<'_>, tls: &TlsFiles) {
    if !tls.verify_server {
        reader.warn_option(
            "verify_server",
            Rule::Tls("without verify_server=yes any server is believed, whoever is on the path"),
        );
    }
    if tls.allow_wildcard_certs {
        reader.warn_option(
            "allow_wildcard_certs",
            Rule::Tls("certificates for *.example.com are not taken (RFC 5922 section 7.2)"),
        );
    }
    for (option, on) in [
        ("verify_client", tls.verify_client),
        ("require_client_cert", tls.require_client_cert),
    ] {
        if on {
            reader.warn_option(
                option,
                Rule::Tls("those who connect are not asked for a certificate"),
            );
        }
    }
    if matches!(tls.method, Some("tlsv1" | "tlsv1_1" | "sslv2" | "sslv3")) {
        reader.warn_option(
            "method",
            Rule::Tls("older versions than TLS 1.2 are not spoken (RFC 8996): TLS 1.2 or newer is"),
        );
    }
}

/// The names of RFC 1349 that Asterisk still takes, as numbers.
fn older_name(tos: &str) -> &str {
    let names = [
        ("lowdelay", "0x10"),
        ("throughput", "0x08"),
        ("reliability", "0x04"),
        ("mincost", "0x02"),
        ("none", "0"),
    ];
    let found = names
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(tos));
    found.map_or(tos, |(_, number)| number)
}

#[cfg(feature = "tls")]
impl TlsFiles {
    /// Reads the files, and makes of them what a [`TlsTransport`](crate::TlsTransport) takes
    ///
    /// Without `ca_list_file` and `ca_list_path` the system's roots are believed; without `verify_server`, anybody is.
    /// `method` is the oldest version that is spoken, TLS 1.2 at least.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what it is to be.
    pub fn config(&self, files: &dyn super::Files) -> Result<crate::TlsConfig, TlsFilesError> {
        use crate::{TlsConfig, TlsVersion};
        let read = |path: &Arc<str>| {
            files.read(path).map_err(|error| TlsFilesError::Unreadable {
                file: Arc::clone(path),
                why: error.to_string().into(),
            })
        };
        let unusable = |file: &Arc<str>| {
            let file = Arc::clone(file);
            move |source| TlsFilesError::Unusable { file, source }
        };
        let mut config = TlsConfig::new();
        if let Some(file) = &self.ca_list_file {
            config = config
                .with_roots_pem(&read(file)?)
                .map_err(unusable(file))?;
        }
        if let Some(directory) = &self.ca_list_path {
            let names = files
                .list(directory)
                .map_err(|error| TlsFilesError::Unreadable {
                    file: Arc::clone(directory),
                    why: error.to_string().into(),
                })?;
            let before = config.clone();
            let mut found = false;
            for name in names {
                // Whatever else is in the directory is no certificate.
                let Ok(pem) = files.read(&format!("{directory}/{name}")) else {
                    continue;
                };
                if let Ok(with) = config.clone().with_roots_pem(&pem) {
                    config = with;
                    found = true;
                }
            }
            if !found {
                before.with_roots_pem(b"").map_err(unusable(directory))?;
            }
        }
        if let Some(file) = &self.cert_file {
            let chain = read(file)?;
            // The key may be in the file of the certificate.
            let key = self.priv_key_file.as_ref().unwrap_or(file);
            config = config
                .with_certificate_pem(&chain, &read(key)?)
                .map_err(unusable(file))?;
        }
        if self.method == Some("tlsv1_3") {
            config = config.with_min_version(TlsVersion::V1_3);
        }
        if !self.verify_server {
            config = config.dangerous_accept_any_certificate();
        }
        Ok(config)
    }
}

/// Why the files of a TLS transport cannot be used
#[cfg(feature = "tls")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFilesError {
    /// A file, or the directory of roots, cannot be read.
    #[error("{file}: cannot be read: {why}")]
    Unreadable {
        /// Which one
        file: Arc<str>,
        /// What the system says
        why: Arc<str>,
    },
    /// A file is not what it is to be.
    #[error("{file}: {source}")]
    Unusable {
        /// Which one
        file: Arc<str>,
        /// What is wrong with it
        source: crate::TlsConfigError,
    },
}

/// `0.0.0.0`, `0.0.0.0:5060`, `::`, `[::]`, `[::]:5060`
fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inner
        .unwrap_or(text)
        .parse::<IpAddr>()
        .ok()
        .map(|ip| SocketAddr::new(ip, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "tls")]
    #[test]
    fn tls_files_are_read_and_an_unusable_one_is_named() {
        use std::io;

        struct Pem(String);
        impl super::super::Files for Pem {
            fn read(&self, path: &str) -> io::Result<Vec<u8>> {
                match path {
                    "cert.pem" | "roots/a.pem" => Ok(self.0.clone().into_bytes()),
                    "roots/README" | "text" | "empty/README" => Ok(b"no certificate".to_vec()),
                    _ => Err(io::ErrorKind::NotFound.into()),
                }
            }

            fn list(&self, directory: &str) -> io::Result<Vec<String>> {
                match directory {
                    "roots" => Ok(vec!["README".to_owned(), "a.pem".to_owned()]),
                    "empty" => Ok(vec!["README".to_owned()]),
                    _ => Err(io::ErrorKind::NotFound.into()),
                }
            }
        }
        let made = rcgen::generate_simple_self_signed(["sip.example.com".to_owned()])
            .expect("a certificate");
        let files = Pem(format!(
            "{}{}",
            made.cert.pem(),
            made.signing_key.serialize_pem()
        ));
        let with = |set: fn(&mut TlsFiles)| {
            let mut tls = TlsFiles {
                verify_server: true,
                ..TlsFiles::default()
            };
            set(&mut tls);
            tls.config(&files)
                .map(|config| format!("{config:?}"))
                .map_err(|error| error.to_string())
        };
        // The key is in the file of the certificate.
        let own = with(|tls| tls.cert_file = Some("cert.pem".into())).expect("both are there");
        assert!(
            own.contains("certificate: true") && own.contains("anybody: false"),
            "{own}"
        );
        let roots = with(|tls| tls.ca_list_path = Some("roots".into())).expect("one of two");
        assert!(roots.contains("roots: Some(1)"), "{roots}");
        let anybody = with(|tls| tls.verify_server = false).expect("nothing to read");
        assert!(anybody.contains("anybody: true"), "{anybody}");
        let newest = with(|tls| tls.method = Some("tlsv1_3")).expect("nothing to read");
        assert!(newest.contains("V1_3"), "{newest}");
        for (set, file) in [
            (
                (|tls| tls.ca_list_file = Some("absent".into())) as fn(&mut TlsFiles),
                "absent: cannot be read",
            ),
            (
                |tls| tls.ca_list_file = Some("text".into()),
                "text: no certificate",
            ),
            (
                |tls| tls.ca_list_path = Some("absent".into()),
                "absent: cannot be read",
            ),
            (
                |tls| tls.ca_list_path = Some("empty".into()),
                "empty: no certificate",
            ),
            (
                |tls| tls.cert_file = Some("text".into()),
                "text: no certificate",
            ),
        ] {
            let error = with(set).expect_err(file);
            assert!(error.starts_with(file), "{error}");
        }
    }

    #[test]
    fn local_networks_are_collected_from_all_lines() {
        use super::super::load;
        struct Text;
        impl super::super::Files for Text {
            fn read(&self, _: &str) -> std::io::Result<Vec<u8>> {
                let text = "[t]\ntype=transport\nbind=0.0.0.0\nlocal_net=10.0.0.0/8, 192.168.0.0/16\nlocal_net=fd00::/8\n";
                Ok(text.into())
            }

            fn list(&self, _: &str) -> std::io::Result<Vec<String>> {
                Ok(Vec::new())
            }
        }
        let loaded = load(&Text, "pjsip.conf");
        let [transport] = loaded.transports() else {
            panic!("{loaded}")
        };
        let local = |ip: &str| transport.config.is_local(ip.parse().expect("an address"));
        assert!(local("10.1.1.1") && local("192.168.9.9") && local("fd00::1"));
        assert!(!local("192.0.2.1"));
    }

    #[test]
    fn addresses_are_literals_with_or_without_a_port() {
        for (text, found) in [
            ("0.0.0.0", Some("0.0.0.0:0")),
            ("192.0.2.1:5070", Some("192.0.2.1:5070")),
            ("::", Some("[::]:0")),
            ("[::1]", Some("[::1]:0")),
            ("[::1]:5060", Some("[::1]:5060")),
            ("localhost", None),
            ("0.0.0.0:70000", None),
            ("", None),
        ] {
            assert_eq!(
                address(text).map(|address| address.to_string()).as_deref(),
                found,
                "{text:?}"
            );
        }
    }
}
