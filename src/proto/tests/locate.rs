//! RFC 3263 over answers in a table, the cache, and what is known of targets.

use super::*;
use crate::proto::RegistrationId;
use crate::{Answer, SipUri};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

const ALL: [Protocol; 3] = [Protocol::Udp, Protocol::Tcp, Protocol::Tls];

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn uri(text: &str) -> SipUri {
    SipUri::parse(text).expect("a URI")
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Srv {
    Srv {
        priority,
        weight,
        port,
        target: target.into(),
    }
}

fn naptr(order: u16, preference: u16, service: &str, replacement: &str) -> Naptr {
    Naptr {
        order,
        preference,
        flags: "s".into(),
        service: service.into(),
        replacement: replacement.into(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A zone: what is not in it does not exist
#[derive(Default)]
struct Zone {
    records: HashMap<Query, Result<Records, ResolveError>>,
}

impl Zone {
    fn a(mut self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        self.records
            .insert(Query::new(name), Ok(Records::Addresses(addresses)));
        self
    }

    fn srv(mut self, name: &str, servers: Vec<Srv>) -> Self {
        self.records
            .insert(Query::srv(name), Ok(Records::Srv(servers)));
        self
    }

    fn naptr(mut self, name: &str, services: Vec<Naptr>) -> Self {
        self.records
            .insert(Query::naptr(name), Ok(Records::Naptr(services)));
        self
    }

    fn broken(mut self, query: Query) -> Self {
        self.records.insert(query, Err(ResolveError::Timeout));
        self
    }

    /// Runs as the pool does: from the start with each answer. What was asked comes along, in order.
    fn run(&self, text: &str, speaks: &[Protocol], seed: u64) -> (Selection, Vec<Query>) {
        let known: RefCell<Vec<Query>> = RefCell::default();
        for _ in 0..100 {
            let lookup = |query: &Query| {
                if !known.borrow().contains(query) {
                    return Found::Unknown;
                }
                match self.records.get(query) {
                    None => Found::Nothing,
                    Some(Ok(records)) => Found::Records(records),
                    Some(Err(error)) => Found::Broken(error),
                }
            };
            match select(&uri(text), false, speaks, seed, &lookup) {
                // One at a time: the order of answers is nothing to rely on.
                Selection::Need(queries) => {
                    let next = queries.last().expect("Need names at least one").clone();
                    assert!(!known.borrow().contains(&next), "{next:?} was answered");
                    known.borrow_mut().push(next);
                }
                done => return (done, known.into_inner()),
            }
        }
        panic!("{text} asks without end");
    }

    /// The targets as text, `UDP 192.0.2.1:5060`.
    fn targets(&self, text: &str, speaks: &[Protocol]) -> Vec<String> {
        match self.run(text, speaks, 1).0 {
            Selection::Targets(located) => located
                .places
                .iter()
                .map(|place| place.target.to_string())
                .collect(),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn error(&self, text: &str, speaks: &[Protocol]) -> ResolveError {
        match self.run(text, speaks, 1).0 {
            Selection::Failed(error) => error,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn asked(&self, text: &str, speaks: &[Protocol]) -> Vec<String> {
        let name = |query: &Query| format!("{:?} {}", query.kind, query.name);
        let mut asked: Vec<_> = self.run(text, speaks, 1).1.iter().map(name).collect();
        asked.sort();
        asked
    }
}

/// The example of RFC 3263 §4.1 with addresses
fn example() -> Zone {
    Zone::default()
        .naptr(
            "example.com",
            vec![
                naptr(90, 50, "SIP+D2T", "_sip._tcp.example.com."),
                naptr(100, 50, "SIP+D2U", "_sip._udp.example.com"),
                naptr(50, 50, "SIPS+D2T", "_sips._tcp.example.com."),
            ],
        )
        .srv(
            "_sips._tcp.example.com",
            vec![srv(0, 1, 5061, "server1.example.com")],
        )
        .srv(
            "_sip._tcp.example.com",
            vec![
                srv(1, 1, 5070, "server2.example.com."),
                srv(0, 1, 5060, "server1.example.com"),
            ],
        )
        .srv(
            "_sip._udp.example.com",
            vec![srv(0, 1, 5060, "server1.example.com")],
        )
        .a("server1.example.com", &["192.0.2.1", "2001:db8::1"])
        .a("server2.example.com", &["192.0.2.2"])
        .a("example.com", &["192.0.2.80"])
}

#[test]
fn the_example_of_rfc_3263_comes_out_as_it_says() {
    // "Since the client supports TCP and UDP, TCP will be used."
    let zone = example();
    assert_eq!(
        zone.targets("sip:user@example.com", &[Protocol::Udp, Protocol::Tcp]),
        [
            "TCP 192.0.2.1:5060",
            "TCP [2001:db8::1]:5060",
            "TCP 192.0.2.2:5070"
        ]
    );
    assert_eq!(
        zone.targets("sip:example.com", &ALL),
        ["TLS 192.0.2.1:5061", "TLS [2001:db8::1]:5061"]
    );
    assert_eq!(
        zone.targets("sip:example.com", &[Protocol::Udp]),
        ["UDP 192.0.2.1:5060", "UDP [2001:db8::1]:5060"]
    );
    // Certificates are held against the name in the URI, wherever SRV leads.
    let Selection::Targets(located) = zone.run("sips:example.com", &ALL, 1).0 else {
        panic!("no targets");
    };
    assert_eq!(located.places[0].target.host(), "example.com");
}

#[test]
fn a_route_under_a_sips_request_is_secure_too() {
    let select = |text, speaks| select(&uri(text), true, speaks, 1, &|_| Found::Nothing);
    for (text, address) in [
        ("sip:192.0.2.7", "TLS 192.0.2.7:5061"),
        ("sip:192.0.2.7:5080;transport=tcp", "TLS 192.0.2.7:5080"),
    ] {
        let Selection::Targets(located) = select(text, &ALL) else {
            panic!("{text}");
        };
        assert_eq!(located.places[0].target.to_string(), address);
    }
    assert!(matches!(
        select("sip:192.0.2.7", &ALL[..2]),
        Selection::Failed(_)
    ));
    assert!(matches!(
        select("sip:192.0.2.7;transport=udp", &ALL),
        Selection::Failed(_)
    ));
}

#[test]
fn each_form_of_uri_asks_what_it_has_to_and_no_more() {
    let zone = example();
    let (a, naptr) = ("Addresses example.com", "Naptr example.com");
    let server1 = "Addresses server1.example.com";
    let rows: [(&str, &[&str], &[&str]); 13] = [
        ("sip:192.0.2.7", &[], &["UDP 192.0.2.7:5060"]),
        ("sip:[2001:db8::7]:5070", &[], &["UDP [2001:db8::7]:5070"]),
        ("sip:192.0.2.7;transport=tcp", &[], &["TCP 192.0.2.7:5060"]),
        ("sips:192.0.2.7", &[], &["TLS 192.0.2.7:5061"]),
        (
            "sip:example.com;maddr=192.0.2.7",
            &[],
            &["UDP 192.0.2.7:5060"],
        ),
        (
            "sip:example.com:5080;maddr=[2001:db8::7]",
            &[],
            &["UDP [2001:db8::7]:5080"],
        ),
        ("sip:example.com:5060", &[a], &["UDP 192.0.2.80:5060"]),
        (
            "sip:example.com:5060;transport=TLS",
            &[a],
            &["TLS 192.0.2.80:5060"],
        ),
        ("sips:example.com:5099", &[a], &["TLS 192.0.2.80:5099"]),
        (
            "sip:example.com;transport=udp",
            &[server1, "Srv _sip._udp.example.com"],
            &["UDP 192.0.2.1:5060", "UDP [2001:db8::1]:5060"],
        ),
        (
            "sip:example.com;transport=tls",
            &[server1, "Srv _sips._tcp.example.com"],
            &["TLS 192.0.2.1:5061", "TLS [2001:db8::1]:5061"],
        ),
        (
            "sips:example.com;transport=tcp",
            &[server1, "Srv _sips._tcp.example.com"],
            &["TLS 192.0.2.1:5061", "TLS [2001:db8::1]:5061"],
        ),
        (
            "sips:example.com",
            &[server1, naptr, "Srv _sips._tcp.example.com"],
            &["TLS 192.0.2.1:5061", "TLS [2001:db8::1]:5061"],
        ),
    ];
    for (text, asked, targets) in rows {
        assert_eq!(zone.asked(text, &ALL), asked, "{text}");
        assert_eq!(zone.targets(text, &ALL), targets, "{text}");
    }
}

#[test]
fn websockets_are_found_by_naptr_by_the_parameter_and_where_nothing_else_is_spoken() {
    use Protocol::{Udp, Ws, Wss};
    let plain = Zone::default()
        .srv("_sip._udp.h", vec![srv(0, 0, 5060, "u.h")])
        .srv("_sip._ws.h", vec![srv(0, 0, 8080, "w.h")])
        .srv("_sips._ws.h", vec![srv(0, 0, 8443, "w.h")])
        .srv("_elsewhere.h", vec![srv(0, 0, 4443, "w.h")])
        .a("h", &["192.0.2.80"])
        .a("u.h", &["192.0.2.1"])
        .a("w.h", &["192.0.2.2"]);
    let all = [Udp, Ws, Wss];
    for (text, speaks, target) in [
        ("sip:h;transport=ws", &all[..], "WS 192.0.2.2:8080"),
        ("sip:h;transport=WSS", &all, "WSS 192.0.2.2:8443"),
        ("sips:h;transport=ws", &all, "WSS 192.0.2.2:8443"),
        ("sips:h;transport=wss", &all, "WSS 192.0.2.2:8443"),
        ("sip:h:8000;transport=ws", &all, "WS 192.0.2.80:8000"),
        ("sip:192.0.2.7;transport=ws", &all, "WS 192.0.2.7:80"),
        ("sip:192.0.2.7;transport=wss", &all, "WSS 192.0.2.7:443"),
        ("sips:192.0.2.7;transport=ws", &all, "WSS 192.0.2.7:443"),
        ("sip:none;transport=ws", &all, "WS 192.0.2.9:80"),
        ("sip:h", &all[1..2], "WS 192.0.2.2:8080"),
        ("sip:192.0.2.7", &all[1..], "WS 192.0.2.7:80"),
        ("sips:192.0.2.7", &all, "WSS 192.0.2.7:443"),
    ] {
        let zone = Zone {
            records: plain.records.clone(),
        };
        let targets = zone.a("none", &["192.0.2.9"]).targets(text, speaks);
        assert_eq!(targets, [target], "{text}");
    }
    // Nobody is asked for a service that no RFC names, unless it is the only way.
    let asked = plain.asked("sip:h", &all);
    assert!(asked.iter().all(|name| !name.contains("_ws")), "{asked:?}");
    assert_eq!(plain.targets("sip:h", &all), ["UDP 192.0.2.1:5060"]);
    // RFC 7118 §5.5: the service says what it is, whatever its name.
    let services = vec![
        naptr(1, 1, "SIPS+D2W", "_elsewhere.h"),
        naptr(1, 2, "SIP+D2W", "_sip._ws.h"),
        naptr(2, 1, "SIP+D2U", "_sip._udp.h"),
    ];
    let offered = plain.naptr("h", services);
    assert_eq!(
        offered.targets("sip:h", &all),
        ["WSS 192.0.2.2:4443", "WS 192.0.2.2:8080"]
    );
    assert_eq!(offered.targets("sips:h", &all), ["WSS 192.0.2.2:4443"]);
    assert_eq!(offered.targets("sip:h", &ALL), ["UDP 192.0.2.1:5060"]);
}

#[test]
fn websockets_that_are_not_spoken_are_no_way() {
    for (text, speaks) in [
        ("sip:h;transport=ws", &ALL[..]),
        ("sip:h;transport=ws", &[Protocol::Wss]),
        ("sips:h;transport=ws", &[Protocol::Ws]),
        ("sips:h;transport=tls", &[Protocol::Wss]),
        ("sips:h", &[Protocol::Ws]),
    ] {
        let error = Zone::default().a("h", &["192.0.2.1"]).error(text, speaks);
        assert!(
            matches!(&error, ResolveError::NoProtocol(uri) if **uri == *text),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn a_uri_that_no_transport_can_carry_is_told_so() {
    for (text, speaks) in [
        ("sips:example.com", &ALL[..2]),
        ("sips:192.0.2.7;transport=udp", &ALL[..]),
        ("sip:example.com;transport=sctp", &ALL[..]),
        ("sip:192.0.2.7;transport=tcp", &ALL[..1]),
        ("sip:192.0.2.7", &[]),
    ] {
        let error = example().error(text, speaks);
        assert!(
            matches!(&error, ResolveError::NoProtocol(uri) if **uri == *text),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn without_naptr_the_services_we_speak_are_asked_for_in_our_order() {
    let zone = |useless: bool| {
        let zone = Zone::default()
            .srv("_sip._udp.h", vec![srv(0, 0, 5060, "u.h")])
            .srv("_sip._tcp.h", vec![srv(0, 0, 5060, "t.h")])
            .a("u.h", &["192.0.2.1"])
            .a("t.h", &["192.0.2.2"]);
        if useless {
            // Records, but none that is of use: another service, another flag, no name.
            let mut terminal = naptr(1, 1, "SIP+D2U", "_sip._udp.elsewhere");
            terminal.flags = "u".into();
            zone.naptr(
                "h",
                vec![
                    terminal,
                    naptr(1, 1, "SIP+D2S", "_sip._sctp.h"),
                    naptr(1, 2, "E2U+sip", "_sip._udp.h"),
                    naptr(1, 3, "SIP+D2T", "."),
                ],
            )
        } else {
            zone.broken(Query::naptr("h"))
        }
    };
    for zone in [zone(true), zone(false)] {
        assert_eq!(
            zone.targets("sip:h", &[Protocol::Tcp, Protocol::Udp]),
            ["TCP 192.0.2.2:5060", "UDP 192.0.2.1:5060"]
        );
        assert_eq!(
            zone.targets("sip:h", &ALL),
            ["UDP 192.0.2.1:5060", "TCP 192.0.2.2:5060"]
        );
        assert_eq!(zone.targets("sip:h", &ALL[..1]), ["UDP 192.0.2.1:5060"]);
    }
}

#[test]
fn without_any_server_record_it_is_the_name_itself_over_udp_or_tls() {
    let zone = Zone::default().a("h", &["192.0.2.1"]);
    assert_eq!(zone.targets("sip:h", &ALL), ["UDP 192.0.2.1:5060"]);
    assert_eq!(
        zone.targets("sip:h", &[Protocol::Tcp, Protocol::Udp]),
        ["UDP 192.0.2.1:5060"]
    );
    assert_eq!(
        zone.targets("sip:h", &[Protocol::Tcp]),
        ["TCP 192.0.2.1:5060"]
    );
    assert_eq!(zone.targets("sips:h", &ALL), ["TLS 192.0.2.1:5061"]);
    assert_eq!(
        zone.targets("sip:h;transport=tcp", &ALL),
        ["TCP 192.0.2.1:5060"]
    );
    // NAPTR names a service whose SRV is missing: its protocol, at the name itself (RFC 3263 §4.2).
    let zone = zone.naptr("h", vec![naptr(1, 1, "SIP+D2T", "_sip._tcp.h")]);
    assert_eq!(zone.targets("sip:h", &ALL), ["TCP 192.0.2.1:5060"]);
    assert_eq!(
        Zone::default().error("sip:h", &ALL),
        ResolveError::NoAddress("h".into())
    );
}

#[test]
fn a_service_that_is_decidedly_not_there_is_not_looked_for_elsewhere() {
    let none = || vec![srv(0, 0, 0, ".")];
    let zone = Zone::default()
        .srv("_sip._udp.h", none())
        .a("h", &["192.0.2.80"]);
    assert_eq!(
        zone.error("sip:h;transport=udp", &ALL),
        ResolveError::NoAddress("h".into())
    );
    assert_eq!(
        zone.error("sip:h", &ALL),
        ResolveError::NoAddress("h".into())
    );
    let zone = zone
        .srv("_sip._tcp.h", vec![srv(0, 0, 5060, "t.h")])
        .a("t.h", &["192.0.2.2"]);
    assert_eq!(zone.targets("sip:h", &ALL), ["TCP 192.0.2.2:5060"]);
}

#[test]
fn naptr_records_go_by_order_and_then_preference() {
    let zone = Zone::default()
        .naptr(
            "h",
            vec![
                naptr(20, 1, "SIP+D2U", "u20.h"),
                naptr(10, 9, "SIP+D2U", "u10.h"),
                naptr(10, 2, "sip+d2t", "t10.h"),
            ],
        )
        .srv("u20.h", vec![srv(0, 0, 5060, "a.h")])
        .srv("u10.h", vec![srv(0, 0, 5061, "a.h")])
        .srv("t10.h", vec![srv(0, 0, 5062, "a.h")])
        .a("a.h", &["192.0.2.1"]);
    // Nothing of a higher order (RFC 3403 §4.1) ...
    assert_eq!(
        zone.targets("sip:h", &ALL),
        ["TCP 192.0.2.1:5062", "UDP 192.0.2.1:5061"]
    );
    assert!(!zone.asked("sip:h", &ALL).contains(&"Srv u20.h".into()));
    // ... unless the lower one leads nowhere.
    let zone = zone.srv("u10.h", Vec::new()).srv("t10.h", Vec::new());
    assert_eq!(zone.targets("sip:h", &ALL), ["UDP 192.0.2.1:5060"]);
}

#[test]
fn servers_go_by_priority_and_within_it_by_weight() {
    let servers = vec![
        srv(1, 100, 5061, "a.h"),
        srv(0, 10, 5062, "a.h"),
        srv(0, 60, 5063, "a.h"),
        srv(0, 30, 5064, "a.h"),
        srv(0, 0, 5065, "a.h"),
    ];
    let zone = Zone::default()
        .srv("_sip._udp.h", servers)
        .a("a.h", &["192.0.2.1"]);
    let mut first: BTreeMap<u16, u32> = BTreeMap::new();
    let mut last: BTreeMap<u16, u32> = BTreeMap::new();
    const DRAWS: u32 = 4000;
    for seed in 0..u64::from(DRAWS) {
        let Selection::Targets(located) = zone.run("sip:h;transport=udp", &ALL, seed).0 else {
            panic!("no targets");
        };
        let ports: Vec<u16> = located
            .places
            .iter()
            .map(|place| place.target.address().port())
            .collect();
        assert_eq!(
            (ports.len(), ports[4]),
            (5, 5061),
            "the lower priority is last"
        );
        let ranks: Vec<u16> = located.places.iter().map(|place| place.rank).collect();
        assert_eq!(ranks, [0, 0, 0, 0, 1]);
        *first.entry(ports[0]).or_default() += 1;
        *last.entry(ports[3]).or_default() += 1;
    }
    // Of 101 numbers 10, 60 and 30 are theirs, and one is for the weight of 0.
    for (port, share) in [(5062, 10.0), (5063, 60.0), (5064, 30.0), (5065, 1.0)] {
        let expected = share / 101.0;
        let seen = f64::from(first.get(&port).copied().unwrap_or(0)) / f64::from(DRAWS);
        // Four standard deviations.
        let margin = 4.0 * (expected * (1.0 - expected) / f64::from(DRAWS)).sqrt();
        assert!(
            (seen - expected).abs() < margin,
            "{port}: {seen}, not {expected}"
        );
    }
    assert!(last[&5065] > DRAWS / 2, "{last:?}");
}

#[test]
fn servers_that_all_weigh_nothing_share_the_load() {
    let servers = (1..=4).map(|n| srv(0, 0, 5060 + n, "a.h")).collect();
    let zone = Zone::default()
        .srv("_sip._udp.h", servers)
        .a("a.h", &["192.0.2.1"]);
    let mut first: BTreeMap<u16, u32> = BTreeMap::new();
    for seed in 0..400 {
        let Selection::Targets(located) = zone.run("sip:h", &ALL, seed).0 else {
            panic!("no targets");
        };
        *first
            .entry(located.places[0].target.address().port())
            .or_default() += 1;
    }
    assert!(
        first.len() == 4 && first.values().all(|n| (60..=140).contains(n)),
        "{first:?}"
    );
}

#[test]
fn a_question_that_nobody_answers_leaves_what_others_yield() {
    let zone = || {
        Zone::default()
            .srv(
                "_sip._udp.h",
                vec![srv(0, 0, 5060, "a.h"), srv(1, 0, 5060, "b.h")],
            )
            .a("b.h", &["192.0.2.2"])
    };
    let located = |zone: Zone, text: &str| match zone.run(text, &ALL, 1).0 {
        Selection::Targets(located) => (located.places.len(), located.certain),
        other => panic!("{other:?}"),
    };
    // A server without address, and one of which nobody knows.
    assert_eq!(located(zone(), "sip:h"), (1, true));
    let broken = zone().broken(Query::new("a.h"));
    assert_eq!(located(broken, "sip:h"), (1, false));
    // A service of which nobody knows: the other ones.
    let broken = zone().broken(Query::srv("_sip._tcp.h"));
    assert_eq!(located(broken, "sip:h"), (1, false));
    // SRV that nobody answers (home routers do so): the name itself, but what was bound elsewhere is not withdrawn by it.
    let broken = zone()
        .broken(Query::srv("_sip._tcp.h"))
        .a("h", &["192.0.2.80"]);
    assert_eq!(located(broken, "sip:h;transport=tcp"), (1, false));
    let broken = zone().broken(Query::srv("_sip._tcp.h"));
    assert_eq!(
        broken.error("sip:h;transport=tcp", &ALL),
        ResolveError::Timeout
    );
    let broken = zone().broken(Query::new("b.h")).broken(Query::new("a.h"));
    assert_eq!(broken.error("sip:h", &ALL), ResolveError::Timeout);
}

#[test]
fn whatever_the_records_say_targets_are_few_distinct_and_of_a_protocol_we_speak() {
    let mut random = Entropy::from_seed([3; 32]);
    let names = [
        "h",
        "a.h",
        "b.h",
        ".",
        "",
        "192.0.2.33",
        "_sip._udp.h",
        "_sip._tcp.h",
    ];
    let services = ["SIP+D2U", "SIP+D2T", "SIPS+D2T", "SIP+D2S", ""];
    let uris = [
        "sip:h",
        "sips:h",
        "sip:h:5070",
        "sip:h;transport=tcp",
        "sip:h;transport=tls",
        "sips:h;transport=tcp",
        "sip:h;maddr=a.h",
    ];
    for seed in 0..3000 {
        let mut zone = Zone::default();
        let pick = |random: &mut Entropy, of: &[&str]| {
            String::from(of[random.below(of.len() as u64) as usize])
        };
        for _ in 0..random.below(12) {
            let name = pick(
                &mut random,
                &[
                    "h",
                    "a.h",
                    "b.h",
                    "_sip._udp.h",
                    "_sip._tcp.h",
                    "_sips._tcp.h",
                ],
            );
            let many = random.below(40);
            zone = match random.below(4) {
                0 => {
                    let services = (0..many)
                        .map(|_| {
                            let service = pick(&mut random, &services);
                            let replacement = pick(&mut random, &names);
                            naptr(
                                random.below(3) as u16,
                                random.below(3) as u16,
                                &service,
                                &replacement,
                            )
                        })
                        .collect();
                    zone.naptr(&name, services)
                }
                1 => {
                    let servers = (0..many)
                        .map(|_| {
                            let target = pick(&mut random, &names);
                            srv(
                                random.below(3) as u16,
                                random.u32() as u16,
                                random.below(5) as u16,
                                &target,
                            )
                        })
                        .collect();
                    zone.srv(&name, servers)
                }
                2 => {
                    let addresses: Vec<String> = (0..many)
                        .map(|_| format!("192.0.2.{}", random.below(30)))
                        .collect();
                    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
                    zone.a(&name, &addresses)
                }
                _ => zone.broken(match random.below(3) {
                    0 => Query::new(name),
                    1 => Query::srv(name),
                    _ => Query::naptr(name),
                }),
            };
        }
        let mut speaks = ALL.to_vec();
        speaks.rotate_left(random.below(3) as usize);
        speaks.truncate(random.below(4) as usize);
        let text = pick(&mut random, &uris);
        let (selection, asked) = zone.run(&text, &speaks, seed);
        assert!(
            asked.len() <= 1 + SERVICES + SERVERS + 4,
            "{seed}: {asked:?}"
        );
        let Selection::Targets(located) = selection else {
            continue;
        };
        assert!(!located.places.is_empty(), "{seed}");
        assert!(located.places.len() <= SERVERS * ADDRESSES, "{seed}");
        for (at, place) in located.places.iter().enumerate() {
            let protocol = place.target.protocol();
            assert!(speaks.contains(&protocol), "{seed}");
            assert!(protocol.is_secure() || !text.starts_with("sips"), "{seed}");
            assert_ne!(place.target.address().port(), 0, "{seed}");
            let same = |other: &Place| {
                (other.target.protocol(), other.target.address())
                    == (protocol, place.target.address())
            };
            assert_eq!(located.places.iter().position(same), Some(at), "{seed}");
        }
        assert!(
            located.places.is_sorted_by_key(|place| place.rank),
            "{seed}"
        );
    }
}

// ---- the cache

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can be had no other way; only differences matter"
)]
fn start() -> Instant {
    Instant::now()
}

fn told(names: &mut Names<u32>, query: &Query, now: Instant, result: Result<Answer, ResolveError>) {
    names.wait(query, None);
    assert_eq!(names.answered(query, now, result), Some(vec![]));
}

fn answer(text: &str, ttl: u64) -> Result<Answer, ResolveError> {
    Ok(Answer::new(vec![ip(text)]).with_ttl(secs(ttl)))
}

fn first(found: Found<'_>) -> Option<String> {
    match found {
        Found::Records(Records::Addresses(list)) => list.first().map(ToString::to_string),
        _ => None,
    }
}

#[test]
fn a_question_is_asked_once_for_all_who_wait() {
    let (t, query) = (start(), Query::new("h"));
    let mut names = Names::default();
    assert!(names.wait(&query, Some(1)));
    assert!(!names.wait(&query, Some(2)));
    assert!(!names.wait(&query, Some(3)));
    names.cancel(|waiter| *waiter != 2);
    assert_eq!(
        names.answered(&query, t, answer("192.0.2.1", 60)),
        Some(vec![1, 3])
    );
    assert_eq!(
        names.answered(&query, t, answer("192.0.2.2", 60)),
        None,
        "nobody asked"
    );
    assert_eq!(
        first(names.lookup(&query, t, t)).as_deref(),
        Some("192.0.2.1")
    );
}

#[test]
fn answers_hold_for_their_lifetime_and_no_longer_than_a_day() {
    let (t, query) = (start(), Query::new("h"));
    for (ttl, holds) in [
        (60, 60),
        (1, 1),
        (u64::from(u32::MAX), 86_400),
        (u64::MAX, 86_400),
    ] {
        let mut names = Names::default();
        told(&mut names, &query, t, answer("192.0.2.1", ttl));
        let before = t + secs(holds) - Duration::from_millis(1);
        assert!(
            first(names.lookup(&query, before, before)).is_some(),
            "{ttl}"
        );
        let after = t + secs(holds);
        assert!(
            matches!(names.lookup(&query, after, after), Found::Unknown),
            "{ttl}"
        );
    }
}

#[test]
fn a_lifetime_of_nothing_serves_those_who_asked() {
    let (t, query) = (start(), Query::new("h"));
    let mut names = Names::default();
    told(&mut names, &query, t + secs(1), answer("192.0.2.1", 0));
    // One that began before the answer came may use it for as long as it takes; one that begins later asks.
    assert!(first(names.lookup(&query, t + secs(5), t)).is_some());
    assert!(matches!(
        names.lookup(&query, t + secs(5), t + secs(2)),
        Found::Unknown
    ));
}

#[test]
fn old_answers_serve_while_nobody_has_new_ones_for_a_day() {
    let (t, query) = (start(), Query::new("h"));
    let mut names = Names::default();
    told(&mut names, &query, t, answer("192.0.2.1", 60));
    let later = t + secs(3600);
    for error in [
        ResolveError::Timeout,
        ResolveError::Failed("SERVFAIL".into()),
    ] {
        told(&mut names, &query, later, Err(error));
        assert_eq!(
            first(names.lookup(&query, later, later)).as_deref(),
            Some("192.0.2.1")
        );
        // Asked again after 30 s.
        let again = later + secs(30);
        assert!(matches!(names.lookup(&query, again, again), Found::Unknown));
    }
    let much_later = t + secs(60 + 86_400);
    told(&mut names, &query, much_later, Err(ResolveError::Timeout));
    assert!(matches!(
        names.lookup(&query, much_later, much_later),
        Found::Broken(_)
    ));
    // "There is none" is an answer.
    told(
        &mut names,
        &query,
        later,
        Err(ResolveError::NoAddress("h".into())),
    );
    assert!(matches!(names.lookup(&query, later, later), Found::Nothing));
    let again = later + secs(30);
    assert!(matches!(names.lookup(&query, again, again), Found::Unknown));
}

#[test]
fn what_an_answer_replaced_is_known_for_as_long_again() {
    let (t, query) = (start(), Query::new("h"));
    let mut names = Names::default();
    told(&mut names, &query, t, answer("192.0.2.1", 600));
    told(&mut names, &query, t + secs(700), answer("192.0.2.2", 600));
    let before = |names: &Names<u32>, at| first(names.before(&query, t + secs(at)));
    assert_eq!(before(&names, 1199).as_deref(), Some("192.0.2.1"));
    assert_eq!(before(&names, 1200).as_deref(), Some("192.0.2.2"));
    // An answer of another kind, or an empty one, is none.
    for odd in [Answer::srv(Vec::new()), Answer::new(Vec::new())] {
        told(&mut names, &query, t + secs(2000), Ok(odd));
        let at = t + secs(2000);
        assert!(matches!(names.lookup(&query, at, at), Found::Nothing));
    }
}

#[test]
fn no_name_service_fills_the_memory() {
    let t = start();
    let mut names: Names<u32> = Names::default();
    for n in 0..20_000 {
        let query = Query::new(format!("{n}.h"));
        told(&mut names, &query, t + secs(n), answer("192.0.2.1", 1));
    }
    assert!(names.len() <= 4096, "{}", names.len());
    let huge = (0..5000).map(|n| srv(5000 - n, 0, 5060, "a.h")).collect();
    let query = Query::srv("h");
    told(&mut names, &query, t, Ok(Answer::srv(huge)));
    let Found::Records(Records::Srv(kept)) = names.lookup(&query, t, t) else {
        panic!("no servers");
    };
    assert_eq!((kept.len(), kept[0].priority), (64, 1), "the best ones");
}

// ---- health

const A: &str = "192.0.2.1:5060";
const B: &str = "192.0.2.2:5060";
const C: &str = "192.0.2.3:5060";

fn target(address: &str) -> Target {
    Target::new(Protocol::Udp, address.parse().expect("an address"))
}

const fn id(index: u32) -> RegistrationId {
    RegistrationId::from_parts(index, 0)
}

struct World {
    health: Health,
    start: Instant,
    answered_at: Option<Instant>,
}

impl World {
    fn new() -> Self {
        Self {
            health: Health::default(),
            start: start(),
            answered_at: None,
        }
    }

    fn report(&mut self, by: u32, at: u64, address: &str, outcome: TargetOutcome) -> bool {
        let report = Report {
            by: id(by),
            now: self.start + secs(at),
            outcome,
            memory: (secs(60), secs(600)),
            answered_at: self.answered_at,
        };
        self.health.report(&target(address), &report)
    }

    /// Silence for 32 s until then.
    fn silent(&mut self, by: u32, at: u64, address: &str) -> bool {
        let since = self.start + secs(at.saturating_sub(32));
        self.report(by, at, address, TargetOutcome::Silent { since })
    }

    /// The order for one that is bound to `bound`, of A, B, C with ranks 0, 1, 2.
    fn order(&mut self, by: u32, at: u64, bound: Option<&str>) -> Vec<String> {
        let places = [A, B, C].iter().zip(0..).map(|(address, rank)| Place {
            target: target(address),
            rank,
        });
        let reader = Reader {
            id: id(by),
            now: self.start + secs(at),
            memory: true,
            may_try: true,
            trial: secs(45),
            healthy_for: secs(300),
        };
        let located = Located {
            places: places.collect(),
            certain: true,
        };
        let bound = bound.map(|address| Bound {
            target: target(address),
            kept: false,
        });
        self.health
            .order(located, bound, &reader)
            .iter()
            .map(|target| target.address().to_string())
            .collect()
    }
}

#[test]
fn a_dead_target_is_known_to_all_and_comes_last() {
    let mut world = World::new();
    assert!(world.silent(1, 32, A));
    assert!(!world.silent(2, 33, A), "it was down already");
    assert_eq!(world.order(3, 34, None), [B, C, A]);
    assert_eq!(world.order(3, 34, Some(A)), [B, C, A]);
    // All down: the one whose time is over first.
    world.report(1, 35, C, TargetOutcome::Unreachable);
    world.report(1, 36, B, TargetOutcome::Unreachable);
    assert_eq!(world.order(3, 40, None), [A, C, B]);
}

#[test]
fn its_time_doubles_up_to_the_longest_and_an_answer_ends_it() {
    let mut world = World::new();
    let mut at = 32;
    for wait in [60, 120, 240, 480, 600, 600] {
        assert!(world.silent(1, at, A));
        assert_eq!(world.order(1, at + wait - 1, None), [B, C, A], "{wait}");
        assert_eq!(world.order(1, at + wait, None), [A, B, C], "{wait}");
        at += wait + 32;
    }
    world.report(1, at, A, TargetOutcome::Answered);
    assert!(world.silent(1, at + 1, A));
    assert_eq!(world.order(1, at + 61, None), [A, B, C]);
}

#[test]
fn after_it_one_at_a_time_tries() {
    let mut world = World::new();
    world.silent(1, 32, A);
    assert_eq!(world.order(2, 92, None), [A, B, C]);
    assert_eq!(world.order(3, 93, None), [B, C, A]);
    assert_eq!(world.order(4, 94, Some(B)), [B, C, A]);
    assert_eq!(world.order(2, 95, None), [A, B, C], "it is the one");
    // It never said what came of it.
    assert_eq!(world.order(3, 95 + 45, None), [A, B, C]);
    world.report(3, 141, A, TargetOutcome::Answered);
    assert_eq!(world.order(4, 142, None), [A, B, C]);
    assert_eq!(world.order(5, 142, None), [A, B, C]);
}

#[test]
fn the_way_back_to_a_better_target_is_free_when_it_was_well_for_300_s() {
    let mut world = World::new();
    world.silent(1, 32, A);
    world.order(2, 100, None);
    world.report(2, 100, A, TargetOutcome::Answered);
    assert_eq!(world.order(3, 399, Some(B)), [B, A, C]);
    assert_eq!(world.order(3, 400, Some(B)), [A, B, C]);
    assert_eq!(world.order(3, 400, Some(C)), [A, C, B]);
    // A 503 without Retry-After is no reason to avoid it, but to stay where one is.
    world.report(2, 500, A, TargetOutcome::Unavailable { retry_after: None });
    assert_eq!(world.order(4, 501, None), [A, B, C]);
    assert_eq!(world.order(3, 799, Some(B)), [B, A, C]);
    assert_eq!(world.order(3, 800, Some(B)), [A, B, C]);
    // What nobody remembers as failing is well.
    assert_eq!(World::new().order(3, 0, Some(C)), [A, C, B]);
}

#[test]
fn one_account_that_is_ignored_does_not_take_the_target_from_the_others() {
    let mut world = World::new();
    // It answered another one in the meantime.
    world.answered_at = Some(world.start + secs(20));
    assert!(!world.silent(1, 32, A));
    assert_eq!(world.order(2, 33, Some(A)), [A, B, C]);
    assert_eq!(
        world.order(1, 33, None),
        [B, C, A],
        "it looks elsewhere itself"
    );
    world.answered_at = None;
    // Its word counts no more, until it gets an answer.
    assert!(!world.silent(1, 700, A));
    assert_eq!(world.order(2, 701, None), [A, B, C]);
    world.report(1, 1400, A, TargetOutcome::Answered);
    assert!(world.silent(1, 1500, A));
    // One whose word was refuted afterwards.
    assert_eq!(world.order(2, 1560, None), [A, B, C]);
    world.report(2, 1560, A, TargetOutcome::Answered);
    assert!(!world.silent(1, 1700, A));
    assert!(world.silent(3, 1701, A));
}

#[test]
fn retry_after_counts_for_those_without_memory_too() {
    let mut world = World::new();
    let retry_after = Some(secs(100));
    assert!(world.report(1, 0, A, TargetOutcome::Unavailable { retry_after }));
    assert_eq!(
        world.health.asked(&target(A), world.start + secs(40)),
        Some(secs(60))
    );
    assert_eq!(
        world.health.asked(&target(A), world.start + secs(100)),
        None
    );
    world.silent(1, 32, B);
    let forgetful = Reader {
        id: id(9),
        now: world.start + secs(40),
        memory: false,
        may_try: true,
        trial: secs(45),
        healthy_for: secs(300),
    };
    let located = Located {
        places: [A, B]
            .map(|address| Place {
                target: target(address),
                rank: 0,
            })
            .into(),
        certain: true,
    };
    let order = world.health.order(located, None, &forgetful);
    assert_eq!(order, [target(B), target(A)]);
}

#[test]
fn dead_targets_do_not_fill_the_memory() {
    let mut world = World::new();
    for n in 0..20_000u32 {
        let address = format!("10.0.{}.{}:5060", n >> 8 & 255, n & 255);
        world.report(1, u64::from(n), &address, TargetOutcome::Unreachable);
    }
    assert!(world.health.len() <= 4096, "{}", world.health.len());
}
