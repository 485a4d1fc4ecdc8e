//! Ten trunks of one `pjsip.conf`, at Kamailio, behind its edge and at the registrar that wants mediasec; each is
//! reached through a relay of its own, which counts what it sends.

use crate::lab::Lab;
use crate::misreg::server::Misreg;
use crate::pjsip_example::{Directory, Program};
use crate::ports::free_port;
use crate::relay::{Nat, TcpRelay};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// What stands between a trunk and its registrar
enum Relay {
    Udp(Nat),
    Tcp(TcpRelay),
}

impl Relay {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(relay) => relay.address,
            Self::Tcp(relay) => relay.address,
        }
    }

    /// Datagrams, or what came at once over a connection.
    fn said(&self) -> usize {
        match self {
            Self::Udp(relay) => relay.said(),
            Self::Tcp(relay) => relay.said(),
        }
    }
}

/// The trunks, their relays, and a directory for the file
struct Trunks {
    directory: Directory,
    relays: BTreeMap<&'static str, Relay>,
    misreg: Misreg,
    /// The port of the UDP transport
    udp: u16,
}

const NAMES: [&str; 10] = [
    "brief",
    "ipv6",
    "line",
    "mediasec",
    "proxy",
    "retries",
    "tcp",
    "tls",
    "two-auths",
    "udp",
];

impl Trunks {
    async fn new() -> Self {
        let (lab, edge) = (Lab::registrar(&[]), Lab::edge());
        let misreg = Misreg::start("trunks");
        let directory = Directory::new("trunks");
        let roots = String::from_utf8(lab.pem("ca.pem")).expect("text");
        directory.add("ca.pem", &roots);
        let v4 = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut relays = BTreeMap::new();
        for name in NAMES {
            let relay = match name {
                "tcp" => Relay::Tcp(TcpRelay::to(v4(lab.port())).await),
                "tls" => Relay::Tcp(TcpRelay::to(v4(lab.tls_port(1))).await),
                "mediasec" => Relay::Udp(Nat::to(v4(misreg.port)).await),
                "proxy" | "two-auths" => Relay::Udp(Nat::to(v4(edge.port())).await),
                "ipv6" => Relay::Udp(Nat::to((Ipv6Addr::LOCALHOST, lab.port()).into()).await),
                _ => Relay::Udp(Nat::to(v4(lab.port())).await),
            };
            relays.insert(name, relay);
        }
        Self {
            directory,
            relays,
            misreg,
            udp: free_port(),
        }
    }

    /// Writes the file, with more lines for one of the trunks.
    fn write(&self, changed: Option<(&str, &str)>) -> PathBuf {
        let (udp, tcp, tls) = (self.udp, free_port(), free_port());
        let mut text = format!(
            "[udp]\ntype=transport\nbind=127.0.0.1:{udp}\n\
             [udp6]\ntype=transport\nbind=[::1]:{udp}\n\
             [tcp]\ntype=transport\nprotocol=tcp\nbind=127.0.0.1:{tcp}\n\
             [tls]\ntype=transport\nprotocol=tls\nbind=127.0.0.1:{tls}\nca_list_file=ca.pem\nverify_server=yes\n\
             [account](!)\ntype=registration\nmax_random_initial_delay=0\nexpiration=3600\nretry_interval=2\n"
        );
        if let Ok(before) = fs::read_to_string(self.directory.0.join("pjsip.conf")) {
            // The transports stay: their ports are those of the first version.
            text = before[..before.find("[brief]").expect("a trunk")].to_owned();
        }
        for name in NAMES {
            let user = user(name);
            let at = self.relays[name].address();
            let server = match name {
                "mediasec" => format!("sip:{at}\nclient_uri=sip:401-mediasec.trunks@mis.test"),
                "tls" => format!("sips:{at}\nclient_uri=sips:{user}@registrar.test"),
                "tcp" => {
                    format!("sip:{at}\\;transport=tcp\nclient_uri=sip:{user}@registrar.test")
                }
                "proxy" | "two-auths" => {
                    format!("sip:registrar.test\nclient_uri=sip:{user}@registrar.test")
                }
                _ => format!("sip:{at}\nclient_uri=sip:{user}@registrar.test"),
            };
            let own = match name {
                "mediasec" => {
                    "security_negotiation=mediasec\nsecurity_mechanisms=sdes-srtp\\;mediasec\n"
                        .to_owned()
                }
                "tcp" => "transport=tcp\n".to_owned(),
                "tls" => "transport=tls\n".to_owned(),
                "ipv6" => "transport=udp6\n".to_owned(),
                "line" => "line=yes\nendpoint=of-line\n".to_owned(),
                "proxy" => format!("outbound_proxy=sip:{at}\\;lr\nsupport_path=yes\n"),
                "two-auths" => {
                    format!("outbound_proxy=sip:{at}\\;lr\noutbound_auth=two-auths,edge\n")
                }
                "brief" => "expiration=600\n".to_owned(),
                _ => String::new(),
            };
            let auth = match name {
                "mediasec" => "username=401-mediasec.trunks\npassword=secret\n".to_owned(),
                "proxy" => format!("username={user}\npassword=edgesecret\nrealm=edge.test\n"),
                "two-auths" => format!(
                    "username={user}\npassword=secret\nrealm=registrar.test\n\
                     [edge]\ntype=auth\nusername={user}\npassword=edgesecret\nrealm=edge.test\n"
                ),
                _ => format!("username={user}\npassword=secret\n"),
            };
            let more = changed.filter(|(of, _)| *of == name);
            let more = more.map(|(_, lines)| lines).unwrap_or_default();
            text.push_str(&format!(
                "[{name}](account)\nserver_uri={server}\ncontact_user={user}\noutbound_auth={name}\n{own}{more}\n\
                 [{name}]\ntype=auth\n{auth}\n"
            ));
        }
        text.push_str("[of-line]\ntype=endpoint\n");
        self.directory.write(&text)
    }

    /// What each trunk has sent so far, once nobody sends any more.
    async fn said(&self) -> BTreeMap<&'static str, usize> {
        let counts = || {
            self.relays
                .iter()
                .map(|(name, relay)| (*name, relay.said()))
        };
        let mut before: BTreeMap<_, _> = counts().collect();
        for _ in 0..40 {
            sleep(Duration::from_millis(500)).await;
            let now: BTreeMap<_, _> = counts().collect();
            if now == before {
                return now;
            }
            before = now;
        }
        panic!("they never rest: {before:?}");
    }

    /// How many bindings the registrars have, of the trunks that are at Kamailio.
    async fn bound(&self) -> Vec<&'static str> {
        let mut bound = Vec::new();
        for name in NAMES.into_iter().filter(|name| *name != "mediasec") {
            if !Lab::registrar(&[]).bindings(&user(name)).await.is_empty() {
                bound.push(name);
            }
        }
        bound
    }
}

/// The user by whose name Kamailio decides what it does (`tests/lab/README.md`).
fn user(name: &str) -> String {
    match name {
        "brief" => "brief900-trunks".to_owned(),
        "retries" => "once503-trunks".to_owned(),
        "proxy" => "openproxy-trunks".to_owned(),
        "two-auths" => "both-trunks".to_owned(),
        _ => format!("alice-trunks-{name}"),
    }
}

/// A statsd server, which adds up what it is told
struct Statsd {
    socket: tokio::net::UdpSocket,
    gauges: BTreeMap<String, i64>,
}

impl Statsd {
    async fn new() -> Self {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await;
        Self {
            socket: socket.expect("a port"),
            gauges: BTreeMap::new(),
        }
    }

    fn address(&self) -> String {
        self.socket.local_addr().expect("bound").to_string()
    }

    /// Waits until registrations and those of each state are so many.
    async fn until(&mut self, count: i64, [registered, unregistered, rejected]: [i64; 3]) {
        let expected: BTreeMap<String, i64> = [
            ("count", count),
            ("state.Registered", registered),
            ("state.Unregistered", unregistered),
            ("state.Rejected", rejected),
        ]
        .map(|(name, number)| (format!("PJSIP.registrations.{name}"), number))
        .into();
        let mut datagram = [0; 512];
        while self.gauges != expected {
            let received = timeout(Duration::from_secs(20), self.socket.recv(&mut datagram));
            let Ok(received) = received.await else {
                panic!("{:?}, wanted {expected:?}", self.gauges);
            };
            let text = String::from_utf8_lossy(&datagram[..received.expect("a datagram")]);
            let (name, value) = text.split_once(':').expect("a name");
            let value = value.strip_suffix("|g").expect("a gauge");
            let number: i64 = value.parse().expect("a number");
            let gauge = self.gauges.entry(name.to_owned()).or_default();
            *gauge = match value.starts_with(['+', '-']) {
                true => *gauge + number,
                false => number,
            };
        }
    }
}

async fn until_each(program: &mut Program, names: &[&str], after: &str) {
    let texts: Vec<String> = names.iter().map(|name| format!("{name} {after}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    program.until_all(&texts).await;
}

/// Sends a request to a user by way of the registrar; the status line that comes back.
async fn call(method: &str, user: &str) -> String {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let registrar = SocketAddr::from((Ipv4Addr::LOCALHOST, Lab::registrar(&[]).port()));
    let request = format!(
        "{method} sip:{user}@{registrar} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK{method}trunks;rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:caller@registrar.test>;tag=1\r\nTo: <sip:{user}@registrar.test>\r\n\
         Call-ID: {method}-trunks\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n",
        socket.local_addr().expect("bound")
    );
    socket
        .send_to(request.as_bytes(), registrar)
        .await
        .expect("sent");
    let mut answer = [0; 4000];
    loop {
        let received = timeout(Duration::from_secs(10), socket.recv(&mut answer)).await;
        let length = received.expect("an answer").expect("a datagram");
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        if !text.starts_with("SIP/2.0 1") {
            return text.lines().next().unwrap_or_default().to_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Kamailio, python3 and the example: cargo build --example pjsip_conf; .ci/run runs it"]
async fn ten_trunks_survive_a_reload_and_those_that_did_not_change_send_nothing() {
    let trunks = Trunks::new().await;
    let mut statsd = Statsd::new().await;
    let config = trunks.write(None);
    let mut program = Program::start(&config, &["--statsd", &statsd.address()]);
    program.until("10 registration(s), 0 error(s)").await;
    until_each(&mut program, &NAMES, "registered").await;
    statsd.until(10, [10, 0, 0]).await;
    let at_kamailio: Vec<_> = NAMES
        .into_iter()
        .filter(|name| *name != "mediasec")
        .collect();
    assert_eq!(trunks.bound().await, at_kamailio);
    let agreed = trunks.misreg.lines().into_iter().any(|line| {
        line.text("note")
            .contains("verify=ok require=mediasec proxy-require=mediasec")
    });
    assert!(agreed, "mediasec was agreed on");

    program.command("show").await;
    let rows: Vec<String> = NAMES.iter().map(|name| format!(" {name}/sip")).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    for row in program.until_all(&rows).await {
        assert!(row.contains("  Registered       (exp. "), "{row}");
    }
    program.until("Objects found: 10").await;
    program.command("show two-auths").await;
    program
        .until_all(&[
            "OutboundAuth: two-auths,edge",
            "Status: Registered",
            "Realm: registrar.test",
            "Realm: edge.test",
        ])
        .await;

    // A request that the registrar sends to the Contact is matched by its line.
    for (method, answer) in [("OPTIONS", "SIP/2.0 200 "), ("MESSAGE", "SIP/2.0 480 ")] {
        let said = call(method, &user("line")).await;
        assert!(said.starts_with(answer), "{said}");
        let line = program.until(&format!("{method} from 127.0.0.1:")).await;
        assert!(
            line.ends_with("registration line, endpoint of-line"),
            "{line}"
        );
    }

    // A reload of the same file costs nothing.
    let before = trunks.said().await;
    program.command("reload").await;
    program.until("reloaded").await;
    assert_eq!(trunks.said().await, before);

    // One trunk has changed.
    trunks.write(Some(("tcp", "expiration=1800")));
    program.signal("HUP").await;
    program
        .until_all(&["tcp: re-registered", "tcp refreshed", "reloaded"])
        .await;
    let after = trunks.said().await;
    assert!(after["tcp"] > before["tcp"], "{after:?}");
    let others = |said: &BTreeMap<&'static str, usize>| {
        let mut said = said.clone();
        said.remove("tcp");
        said
    };
    assert_eq!(others(&after), others(&before));
    let bindings = Lab::registrar(&[]).bindings(&user("tcp")).await;
    assert!(
        matches!(&bindings[..], [one] if one.expires <= 1800),
        "{bindings:?}"
    );
    statsd.until(10, [10, 0, 0]).await;

    // One is gone, and one is refused: its running version goes on.
    let text = fs::read_to_string(&config).expect("written");
    let udp = text.find("[udp](account)").expect("it is there");
    let text = format!("{}[udp](!,account){}", &text[..udp], &text[udp + 14..]);
    let text = text.replace("contact_user=alice-trunks-ipv6", "expiration=0");
    fs::write(&config, text).expect("written");
    program.command("reload").await;
    program
        .until_all(&[
            "ipv6: kept, as the new version was refused",
            "udp: removed, removed",
            "reloaded",
        ])
        .await;
    statsd.until(9, [9, 0, 0]).await;
    let mut expected = after.clone();
    *expected.get_mut("udp").expect("a relay") = trunks.said().await["udp"];
    assert_eq!(trunks.said().await, expected);
    assert!(expected["udp"] > after["udp"]);
    trunks.write(None);
    program.command("reload").await;
    program.until_all(&["udp: added", "udp registered"]).await;

    // One refused by its registrar.
    let lab = Lab::registrar(&[]);
    lab.break_for(&user("udp"), 403).await;
    program.command("refresh udp").await;
    program.until("udp gave up: 403").await;
    statsd.until(10, [9, 0, 1]).await;
    lab.mend(&user("udp")).await;
    // A reload revives it.
    program.command("reload").await;
    program
        .until_all(&["udp: had given up, tries again", "udp refreshed"])
        .await;
    statsd.until(10, [10, 0, 0]).await;

    program.command("unregister *all").await;
    until_each(&mut program, &NAMES, "unregister: removed").await;
    statsd.until(10, [0, 10, 0]).await;
    assert_eq!(trunks.bound().await, [""; 0]);
    program.command("register *all").await;
    until_each(&mut program, &NAMES, "registered").await;
    statsd.until(10, [10, 0, 0]).await;
    program.command("refresh *all").await;
    until_each(&mut program, &NAMES, "refreshed").await;
    program.command("refresh nobody").await;
    program
        .until("Unable to retrieve registration nobody")
        .await;

    program.signal("TERM").await;
    until_each(&mut program, &NAMES, "binding removed").await;
    assert_eq!(program.ended(Duration::from_secs(35)).await, Some(0));
    assert_eq!(trunks.bound().await, [""; 0]);
    statsd.until(0, [0, 0, 0]).await;
}
