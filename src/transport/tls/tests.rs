//! Against peers that this test is itself, with certificates made for it.

use super::*;
use crate::traits::Arrival;
use crate::transport::testing::{config, sink, within};
use bytes::Bytes;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, SupportedProtocolVersion, version};
use tokio_rustls::server::TlsStream;

const OK: &[u8] = b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n";
pub(in crate::transport) const BOTH: &[&SupportedProtocolVersion] =
    &[&version::TLS13, &version::TLS12];

/// A certificate and its key
pub(in crate::transport) struct Pair {
    certificate: Certificate,
    key: KeyPair,
}

impl Pair {
    fn pem(&self) -> (String, String) {
        (self.certificate.pem(), self.key.serialize_pem())
    }

    fn der(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        (self.certificate.der().clone(), key)
    }
}

pub(in crate::transport) struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(in crate::transport) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        // Two of one name would be one with a new key.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("CA {}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    /// A certificate for these names, as `change` has it.
    pub(in crate::transport) fn issue(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let (params, key) = params(names, change);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate, key }
    }

    pub(in crate::transport) fn believed(&self) -> TlsConfig {
        TlsConfig::new()
            .with_roots_pem(self.certificate.pem().as_bytes())
            .unwrap()
    }
}

/// Names that look like an address are one; those with a colon are URIs.
fn params(
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) if name.contains(':') => SanType::URI((*name).try_into().unwrap()),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    change(&mut params);
    (params, KeyPair::generate().unwrap())
}

fn self_signed(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
    let (params, key) = params(names, change);
    let certificate = params.self_signed(&key).unwrap();
    Pair { certificate, key }
}

/// A TLS server that shows `pair`; with `clients` it wants a certificate of that CA.
pub(in crate::transport) fn server(
    pair: &Pair,
    clients: Option<&Ca>,
    versions: &[&'static SupportedProtocolVersion],
) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let (certificate, key) = pair.der();
    let config = builder.with_single_cert(vec![certificate], key).unwrap();
    Arc::new(config).into()
}

/// A transport that was started, and the peer it is to meet
struct Meeting {
    transport: TlsTransport,
    listener: TcpListener,
    arrivals: mpsc::Receiver<Arrival>,
}

type Opened = Result<Arc<dyn Flow>, FlowError>;

impl Meeting {
    async fn new(tls: TlsConfig) -> Self {
        let transport = TlsTransport::new(config(Protocol::Tls, "127.0.0.1:0"), tls).unwrap();
        let (inbound, arrivals) = sink(8);
        transport.start(inbound).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            transport,
            listener,
            arrivals,
        }
    }

    async fn open(&self, host: &str) -> Opened {
        let target = Target::new(Protocol::Tls, self.listener.local_addr().unwrap());
        self.transport
            .open(FlowId::new(7), &target.with_host(host))
            .await
    }

    /// Opens a flow to a peer that speaks TLS; the peer's end, if it came to that.
    async fn meet(
        &self,
        acceptor: &tokio_rustls::TlsAcceptor,
        host: &str,
    ) -> (Opened, std::io::Result<TlsStream<TcpStream>>) {
        let peer = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            acceptor.accept(stream).await
        };
        within(async { tokio::join!(self.open(host), peer) }).await
    }

    /// Opens a flow to a peer that does as `peer` says with its connection.
    async fn raw<F: Future<Output = ()>>(&self, peer: impl FnOnce(TcpStream) -> F) -> FlowError {
        let peer = async { peer(self.listener.accept().await.unwrap().0).await };
        let (opened, ()) = within(async { tokio::join!(self.open("sip.example"), peer) }).await;
        opened.unwrap_err()
    }

    async fn ended(&mut self) -> FlowError {
        match within(self.arrivals.recv()).await {
            Some(Arrival::Failed(_, error)) => error,
            other => panic!("not ended: {other:?}"),
        }
    }
}

/// What becomes of a connection to `host` at a server that shows `pair`.
async fn outcome(tls: TlsConfig, pair: &Pair, host: &str) -> Result<(), TlsError> {
    let meeting = Meeting::new(tls).await;
    match meeting.meet(&server(pair, None, BOTH), host).await.0 {
        Ok(_) => Ok(()),
        Err(FlowError::Tls(error)) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_go_both_ways_under_a_good_certificate_in_both_versions() {
    let ca = Ca::new();
    let pair = ca.issue(&["sip.example"], |_| ());
    for version in [&version::TLS12, &version::TLS13] {
        let mut meeting = Meeting::new(ca.believed()).await;
        let (flow, peer) = meeting
            .meet(&server(&pair, None, &[version]), "sip.example")
            .await;
        let (flow, mut peer) = (flow.unwrap(), peer.unwrap());
        assert_eq!(
            peer.get_ref().1.protocol_version().unwrap(),
            version.version
        );
        assert_eq!(flow.info().protocol(), Protocol::Tls);
        assert_eq!(flow.info().local(), peer.get_ref().0.peer_addr().unwrap());
        assert_eq!(flow.info().own_certificate_until(), None);
        assert!(flow.info().peer_certificate_until().is_some() && !flow.info().is_unverified());
        let long = Bytes::from(vec![b'x'; 40_000]);
        flow.send(long.clone()).unwrap();
        let mut read = vec![0; long.len()];
        within(peer.read_exact(&mut read)).await.unwrap();
        assert_eq!(read, long);

        peer.write_all(&[b"\r\n\r\n", OK].concat()).await.unwrap();
        let mut pong = [0; 2];
        within(peer.read_exact(&mut pong)).await.unwrap();
        assert_eq!(&pong, b"\r\n");
        let Some(Arrival::Received(batch)) = within(meeting.arrivals.recv()).await else {
            panic!("not received")
        };
        assert_eq!(batch[0].message, OK);
        assert_eq!(batch[0].flow, Some(FlowId::new(7)));
    }
}

#[tokio::test]
async fn who_the_peer_is_follows_from_its_certificate_alone() {
    let ca = Ca::new();
    let good = |names: &[&str]| ca.issue(names, |_| ());
    for (names, host, is) in [
        (&["sip.example"][..], "sip.example", true),
        (&["SIP.Example"], "sip.EXAMPLE", true),
        (&["sip:sip.example"], "sip.example", true),
        (&["sip:one.example", "sip.example"], "sip.example", true),
        (&["192.0.2.1"], "192.0.2.1", true),
        (&["2001:db8::1"], "2001:db8::1", true),
        (&["other.example"], "sip.example", false),
        (&["*.sip.example"], "a.sip.example", false),
        (&["sip:alice@sip.example"], "sip.example", false),
        (&["sips:sip.example"], "sip.example", false),
        (&["192.0.2.2"], "192.0.2.1", false),
        (&[], "sip.example", false),
    ] {
        let got = outcome(ca.believed(), &good(names), host).await;
        match got {
            Ok(()) => assert!(is, "{names:?} for {host}"),
            Err(TlsError::WrongName { asked, found }) => {
                assert!(!is, "{names:?} for {host}");
                assert_eq!((&*asked, found.len()), (host, names.len()));
            }
            other => panic!("{names:?} for {host}: {other:?}"),
        }
    }
    // A common name counts for nothing.
    let named = ca.issue(&[], |params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "sip.example");
    });
    let nobody = outcome(ca.believed(), &named, "sip.example").await;
    let error = nobody.unwrap_err();
    assert!(matches!(&error, TlsError::WrongName { found, .. } if found.is_empty()));
    let wrong = outcome(ca.believed(), &good(&["other.example"]), "sip.example").await;
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "the peer's certificate is not for \"sip.example\" but for [\"DNS:other.example\"]"
    );
}

#[tokio::test]
async fn who_vouches_and_until_when() {
    let (ca, other) = (Ca::new(), Ca::new());
    let names = &["sip.example"];
    let past = |params: &mut CertificateParams| params.not_after = date_time_ymd(2021, 1, 1);
    let future = |params: &mut CertificateParams| params.not_before = date_time_ymd(2999, 1, 1);
    let expired = outcome(ca.believed(), &ca.issue(names, past), "sip.example").await;
    assert_eq!(expired, Err(TlsError::Expired));
    let early = outcome(ca.believed(), &ca.issue(names, future), "sip.example").await;
    assert_eq!(early, Err(TlsError::NotYetValid));
    let foreign = outcome(other.believed(), &ca.issue(names, |_| ()), "sip.example").await;
    assert_eq!(foreign, Err(TlsError::UnknownIssuer));
    // The system vouches for nobody of this test's making.
    let private = outcome(TlsConfig::new(), &ca.issue(names, |_| ()), "sip.example").await;
    assert!(
        matches!(private, Err(TlsError::UnknownIssuer | TlsError::NoRoots(_))),
        "{private:?}"
    );
    let client_only = ca.issue(names, |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let purpose = outcome(ca.believed(), &client_only, "sip.example").await;
    assert!(
        matches!(purpose, Err(TlsError::BadCertificate(_))),
        "{purpose:?}"
    );
}

#[tokio::test]
async fn a_self_signed_certificate_has_to_be_named_and_still_has_its_names_and_its_time() {
    let names = &["sip.example"];
    let of = |pair: &Pair| {
        TlsConfig::new()
            .with_roots_pem(pair.certificate.pem().as_bytes())
            .unwrap()
    };
    for ca in [false, true] {
        let pair = self_signed(names, |params| {
            if ca {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }
        });
        let stranger = outcome(Ca::new().believed(), &pair, "sip.example").await;
        assert_eq!(stranger, Err(TlsError::UnknownIssuer), "ca: {ca}");
        assert_eq!(outcome(of(&pair), &pair, "sip.example").await, Ok(()));
        let elsewhere = outcome(of(&pair), &pair, "other.example").await;
        assert!(matches!(elsewhere, Err(TlsError::WrongName { .. })));
    }
    let old = self_signed(names, |params| params.not_after = date_time_ymd(2021, 1, 1));
    let expired = outcome(of(&old), &old, "sip.example").await;
    assert_eq!(expired, Err(TlsError::Expired));
    let new = self_signed(names, |params| {
        params.not_before = date_time_ymd(2999, 1, 1)
    });
    let early = outcome(of(&new), &new, "sip.example").await;
    assert_eq!(early, Err(TlsError::NotYetValid));
}

#[tokio::test]
async fn anybody_is_believed_only_where_the_configuration_says_so_and_the_flow_tells() {
    let pair = self_signed(&["other.example"], |params| {
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let meeting = Meeting::new(TlsConfig::new().dangerous_accept_any_certificate()).await;
    let (flow, _peer) = meeting
        .meet(&server(&pair, None, BOTH), "sip.example")
        .await;
    assert!(flow.unwrap().info().is_unverified());
}

#[tokio::test]
async fn another_name_than_the_uris_can_be_expected() {
    let ca = Ca::new();
    let pair = ca.issue(&["sip.example"], |_| ());
    let tls = ca.believed().with_server_name("sip.example").unwrap();
    assert_eq!(outcome(tls, &pair, "192.0.2.1").await, Ok(()));
}

#[tokio::test]
async fn the_name_asked_for_is_told_unless_it_shall_not_be() {
    let ca = Ca::new();
    let pair = ca.issue(&["sip.example"], |_| ());
    for told in [true, false] {
        let meeting = Meeting::new(ca.believed().with_sni(told)).await;
        let (_flow, peer) = meeting
            .meet(&server(&pair, None, BOTH), "sip.example")
            .await;
        let peer = peer.unwrap();
        let name = peer.get_ref().1.server_name();
        assert_eq!(name, told.then_some("sip.example"));
    }
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_it_or_refuses() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let pair = ca.issue(&["sip.example"], |_| ());
    let ours = |ca: &Ca| ca.issue(&["sip:alice@sip.example"], |_| ());
    for version in [&version::TLS12, &version::TLS13] {
        let acceptor = server(&pair, Some(&ca), &[version]);
        let (chain, key) = ours(&ca).pem();
        let tls = ca
            .believed()
            .with_certificate_pem(chain.as_bytes(), key.as_bytes())
            .unwrap();
        let meeting = Meeting::new(tls).await;
        let (flow, peer) = meeting.meet(&acceptor, "sip.example").await;
        let peer = peer.unwrap();
        assert_eq!(peer.get_ref().1.peer_certificates().unwrap().len(), 1);
        assert!(flow.unwrap().info().own_certificate_until().is_some());

        let (chain, key) = ours(&stranger).pem();
        let unknown = ca
            .believed()
            .with_certificate_pem(chain.as_bytes(), key.as_bytes())
            .unwrap();
        for tls in [ca.believed(), unknown] {
            let mut meeting = Meeting::new(tls).await;
            let (flow, peer) = meeting.meet(&acceptor, "sip.example").await;
            drop(peer.unwrap_err());
            let error = match flow {
                Err(error) => error,
                // In TLS 1.3 the server says so after we count the connection as made.
                Ok(flow) => {
                    let _ = flow.send(Bytes::from_static(b"REGISTER"));
                    meeting.ended().await
                }
            };
            assert!(
                matches!(error, FlowError::Tls(TlsError::NotAccepted(_))),
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_renewed_configuration_is_for_new_connections_and_ends_none() {
    let (old, new) = (Ca::new(), Ca::new());
    let names = &["sip.example"];
    let of_old = server(&old.issue(names, |_| ()), None, BOTH);
    let of_new = server(&new.issue(names, |_| ()), None, BOTH);
    let mut meeting = Meeting::new(old.believed()).await;
    let (living, peer) = meeting.meet(&of_old, "sip.example").await;
    let (living, mut peer) = (living.unwrap(), peer.unwrap());

    meeting.transport.renew(new.believed()).unwrap();
    assert!(meeting.meet(&of_new, "sip.example").await.0.is_ok());
    let refused = meeting.meet(&of_old, "sip.example").await.0.unwrap_err();
    assert_eq!(refused, FlowError::Tls(TlsError::UnknownIssuer));

    living.send(Bytes::from_static(b"still here")).unwrap();
    let mut read = [0; 10];
    within(peer.read_exact(&mut read)).await.unwrap();
    peer.write_all(OK).await.unwrap();
    assert!(matches!(
        within(meeting.arrivals.recv()).await,
        Some(Arrival::Received(_))
    ));
}

#[tokio::test]
async fn an_older_version_than_allowed_is_refused() {
    let ca = Ca::new();
    let pair = ca.issue(&["sip.example"], |_| ());
    let meeting = Meeting::new(ca.believed().with_min_version(TlsVersion::V1_3)).await;
    let acceptor = server(&pair, None, &[&version::TLS12]);
    let refused = meeting.meet(&acceptor, "sip.example").await.0.unwrap_err();
    assert!(
        matches!(
            refused,
            FlowError::Tls(TlsError::Alert(_) | TlsError::Incompatible(_))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_is_no_tls_is_told_from_what_is_cut() {
    let meeting = Meeting::new(Ca::new().believed()).await;
    let plain = meeting
        .raw(|mut peer| async move {
            let _ = peer.read(&mut [0; 4096]).await;
            let _ = peer.write_all(OK).await;
        })
        .await;
    assert_eq!(plain, FlowError::Tls(TlsError::NotTls));
    let cut = meeting
        .raw(|mut peer| async move {
            let _ = peer.read(&mut [0; 4096]).await;
        })
        .await;
    assert_eq!(cut, FlowError::Tls(TlsError::Cut));
    let reset = meeting
        .raw(|peer| async move {
            // Closing with unread bytes resets the connection.
            let _ = peer.peek(&mut [0; 1]).await;
        })
        .await;
    assert_eq!(reset, FlowError::Reset);
}

#[tokio::test]
async fn a_handshake_that_is_given_up_leaves_no_connection() {
    let meeting = Meeting::new(Ca::new().believed()).await;
    let opening = timeout(Duration::from_millis(50), meeting.open("sip.example"));
    let accepted = meeting.listener.accept();
    let (opened, accepted) = within(async { tokio::join!(opening, accepted) }).await;
    assert!(opened.is_err(), "given up");
    let mut peer = accepted.unwrap().0;
    let mut all = Vec::new();
    // The hello, and then the end: nobody holds the connection any more.
    within(peer.read_to_end(&mut all)).await.unwrap();
    assert!(!all.is_empty());
}

#[tokio::test]
async fn an_orderly_end_is_told_from_a_cut_one() {
    let ca = Ca::new();
    let acceptor = server(&ca.issue(&["sip.example"], |_| ()), None, BOTH);
    let mut meeting = Meeting::new(ca.believed()).await;
    let (_flow, peer) = meeting.meet(&acceptor, "sip.example").await;
    // `shutdown` says `close_notify`, and only then closes.
    peer.unwrap().shutdown().await.unwrap();
    assert_eq!(meeting.ended().await, FlowError::Closed);

    let (_flow, peer) = meeting.meet(&acceptor, "sip.example").await;
    let (mut stream, _) = peer.unwrap().into_inner();
    stream.shutdown().await.unwrap();
    assert_eq!(meeting.ended().await, FlowError::Tls(TlsError::Cut));
}

#[tokio::test]
async fn a_closed_flow_sends_what_is_queued_and_says_goodbye() {
    let ca = Ca::new();
    let acceptor = server(&ca.issue(&["sip.example"], |_| ()), None, BOTH);
    let mut meeting = Meeting::new(ca.believed()).await;
    let (flow, peer) = meeting.meet(&acceptor, "sip.example").await;
    let (flow, mut peer) = (flow.unwrap(), peer.unwrap());
    flow.send(Bytes::from_static(b"last")).unwrap();
    flow.close();
    assert_eq!(flow.send(Bytes::new()), Err(FlowError::ClosedByUs));
    let mut all = Vec::new();
    // Without `close_notify` this is an error.
    within(peer.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"last");
    drop((flow, meeting.transport));
    assert!(within(meeting.arrivals.recv()).await.is_none());
}

#[tokio::test]
async fn a_listener_takes_tls_lends_its_port_and_shows_what_was_renewed() {
    let (ca, later) = (Ca::new(), Ca::new());
    let listening = || config(Protocol::Tls, "127.0.0.1:0").with_listen(true);
    let without = TlsTransport::new(listening(), ca.believed());
    assert_eq!(without.unwrap_err(), TlsError::NoCertificate);
    let own = |ca: &Ca| {
        let (chain, key) = ca.issue(&["127.0.0.1"], |_| ()).pem();
        ca.believed()
            .with_certificate_pem(chain.as_bytes(), key.as_bytes())
            .unwrap()
    };
    let transport = TlsTransport::new(listening(), own(&ca)).unwrap();
    let (inbound, mut arrivals) = sink(8);
    transport.start(inbound).await.unwrap();
    let address = transport.local_addr().unwrap();

    // One of ours is the peer.
    let peer = |ca: &Ca| Meeting::new(ca.believed());
    let target = Target::new(Protocol::Tls, address);
    let first = peer(&ca).await;
    let flow = first.transport.open(FlowId::new(1), &target).await.unwrap();
    flow.send(Bytes::from_static(OK)).unwrap();
    let Some(Arrival::Accepted(id, accepted)) = within(arrivals.recv()).await else {
        panic!("not accepted")
    };
    assert_eq!(*accepted.info().contact(), *address.to_string());
    let Some(Arrival::Received(batch)) = within(arrivals.recv()).await else {
        panic!("not received")
    };
    assert_eq!(batch[0].flow, Some(id));

    assert_eq!(
        transport.renew(later.believed()),
        Err(TlsError::NoCertificate)
    );
    transport.renew(own(&later)).unwrap();
    assert!(
        peer(&later)
            .await
            .transport
            .open(FlowId::new(2), &target)
            .await
            .is_ok()
    );
    let refused = peer(&ca)
        .await
        .transport
        .open(FlowId::new(3), &target)
        .await;
    assert_eq!(refused.err(), Some(FlowError::Tls(TlsError::UnknownIssuer)));

    let acceptor = server(&later.issue(&["sip.example"], |_| ()), None, BOTH);
    let outbound = Meeting {
        transport,
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        arrivals,
    };
    let (flow, _peer) = outbound.meet(&acceptor, "sip.example").await;
    assert_eq!(*flow.unwrap().info().contact(), *address.to_string());
}

#[tokio::test]
async fn a_hosts_own_client_decides_for_itself() {
    let ca = Ca::new();
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(BOTH)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConfig::from_connector(TlsConnector::from_rustls(Arc::new(client)));
    // The wildcard that rustls knows and RFC 5922 does not.
    let pair = ca.issue(&["*.sip.example"], |_| ());
    assert_eq!(outcome(tls, &pair, "a.sip.example").await, Ok(()));
}

#[test]
fn what_cannot_be_configured_is_named_and_keys_are_not_shown() {
    let ca = Ca::new();
    let (chain, key) = ca.issue(&["sip.example"], |_| ()).pem();
    let (_, other) = ca.issue(&["sip.example"], |_| ()).pem();
    let own = |chain: &str, key: &str| {
        TlsConfig::new().with_certificate_pem(chain.as_bytes(), key.as_bytes())
    };
    let config = own(&chain, &key).unwrap();
    assert_eq!(
        own(&chain, &other).unwrap_err(),
        TlsConfigError::KeyMismatch
    );
    assert_eq!(own(&chain, &chain).unwrap_err(), TlsConfigError::NoKey);
    assert_eq!(own(&chain, "secret").unwrap_err(), TlsConfigError::NoKey);
    assert!(matches!(
        own(&key, &key),
        Err(TlsConfigError::NoCertificate(_))
    ));
    for roots in ["", "no PEM", &key] {
        let error = TlsConfig::new().with_roots_pem(roots.as_bytes());
        assert!(matches!(error, Err(TlsConfigError::NoCertificate("roots"))));
    }
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let error = TlsConfig::new().with_roots_pem(no_der.as_bytes());
    assert!(matches!(error, Err(TlsConfigError::BadRoot(_))));
    assert!(own(no_der, &key).is_err());
    for name in ["", "not a name", "a..b"] {
        let error = TlsConfig::new().with_server_name(name).unwrap_err();
        assert_eq!(error, TlsConfigError::ServerName(name.into()));
    }
    let shown = format!("{config:?}");
    let secret: String = key.lines().nth(1).unwrap().into();
    assert!(shown.contains("certificate: true") && !shown.contains(&secret));
    assert!(config.shown_until().unwrap() > SystemTime::UNIX_EPOCH);
}

#[tokio::test]
async fn a_transport_serves_its_own_protocol_and_names_that_certificates_can_have() {
    let tls = || Ca::new().believed();
    let tcp = TlsTransport::new(config(Protocol::Tcp, "127.0.0.1:0"), tls()).unwrap();
    assert_eq!(
        tcp.start(sink(1).0).await,
        Err(FlowError::NoTransport(Protocol::Tcp))
    );
    let meeting = Meeting::new(tls()).await;
    let udp = Target::new(Protocol::Udp, meeting.listener.local_addr().unwrap());
    let refused = meeting.transport.open(FlowId::new(1), &udp).await;
    assert_eq!(refused.err(), Some(FlowError::NoTransport(Protocol::Udp)));
    let refused = meeting.open("no name").await;
    assert_eq!(
        refused.err(),
        Some(FlowError::Tls(TlsError::Name("no name".into())))
    );
}
