//! D24 and D26: which registration a request is for, and trunks that register a whole number block; 439.

use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::net::SocketAddr;
use std::time::Duration;

fn account() -> RegistrationBuilder {
    Registration::builder("sip:192.0.2.9", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO)
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

fn registrar() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], 5060))
}

#[test]
fn the_line_token_finds_registration_and_endpoint() {
    let trunk = |endpoint: &str| built(account().line(true).endpoint(endpoint));
    let mut sim = Sim::many([trunk("one"), trunk("two")]);
    let uris: Vec<String> = sim
        .all_sent()
        .iter()
        .map(|request| {
            request
                .contacts()
                .next()
                .expect("a Contact")
                .uri()
                .to_owned()
        })
        .collect();
    let ids = sim.ids().to_vec();
    for (at, endpoint) in ["one", "two"].into_iter().enumerate() {
        // In the Request-URI, or in To, which goes first.
        for (uri, to) in [
            (uris[at].clone(), "<sip:x@y>".to_owned()),
            (uris[at].replace(";line=", ";LINE="), "<sip:x@y>".to_owned()),
            ("sip:s@z".to_owned(), format!("<{}>", uris[at])),
            (uris[1 - at].clone(), format!("<{}>", uris[at])),
        ] {
            let found = sim.pool().matches(&uri, &to, registrar()).expect("a match");
            assert_eq!(found.registration, ids[at]);
            assert_eq!(found.endpoint.as_deref(), Some(endpoint));
        }
        // The token itself is compared as it is.
        let (before, token) = uris[at].split_once(";line=").expect("a token");
        let loud = format!("{before};line={}", token.to_ascii_uppercase());
        let found = sim.pool().matches(&loud, "<sip:x@y>", registrar());
        assert_eq!(found, None);
    }
    assert_eq!(
        sim.pool()
            .matches("sip:s@z;line=", "<sip:x@y>", registrar()),
        None
    );
    assert_eq!(
        sim.pool()
            .matches("sip:s@z;line=zzzzzzz", "<sip:x@y>", registrar()),
        None
    );
}

#[test]
fn a_contact_user_that_two_registrations_share_belongs_to_neither() {
    let user = |name: &str| built(account().contact_user(name));
    let mut sim = Sim::many([user("anna"), user("bob"), user("bob")]);
    for request in sim.all_sent() {
        sim.reply(&request, Reply::granted(600));
    }
    let found = |user: &str| {
        sim.pool()
            .matches(&format!("sip:{user}@192.0.2.1"), "<sip:x@y>", registrar())
    };
    assert_eq!(
        found("anna").map(|found| found.registration),
        Some(sim.ids()[0])
    );
    assert_eq!(found("bob"), None);
    let uri = "sip:bob@192.0.2.1";
    let candidates = sim.pool().candidates(uri, "<sip:x@y>", registrar());
    assert_eq!(ids_of(&candidates), sim.ids()[1..]);
    assert_eq!(found("nobody"), None);
    let elsewhere = SocketAddr::from(([198, 51, 100, 7], 5060));
    assert_eq!(
        sim.pool()
            .matches("sip:anna@192.0.2.1", "<sip:x@y>", elsewhere),
        None
    );
}

fn ids_of(candidates: &[Match]) -> Vec<RegistrationId> {
    candidates.iter().map(|found| found.registration).collect()
}

/// Registrations of one agent, each granted.
fn registered(registrations: impl IntoIterator<Item = RegistrationBuilder>) -> Sim {
    let mut sim = Sim::many([]);
    sim.with(|pool, _| pool.add_transport("trunk", &[Protocol::Tcp]));
    for registration in registrations {
        sim.add(built(registration));
        for request in sim.all_sent() {
            sim.reply(&request, Reply::granted(600));
        }
    }
    sim.events();
    sim
}

fn invite(user: &str) -> String {
    format!(
        "INVITE sip:{user}@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKx\r\n\
         Max-Forwards: 70\r\nFrom: <sip:carol@example.net>;tag=1\r\nTo: <sip:alice@example.com>\r\n\
         Call-ID: 1\r\nCSeq: 1 INVITE\r\nContact: <sip:carol@192.0.2.77>\r\nContent-Length: 0\r\n\r\n"
    )
}

/// Who a request belongs to, and who it may belong to, as the host is told.
fn told(sim: &mut Sim) -> (Option<RegistrationId>, Vec<RegistrationId>) {
    let messages = sim.messages();
    let [message] = &messages[..] else {
        panic!("{messages:?}");
    };
    let found = message.registration.as_ref();
    (
        found.map(|found| found.registration),
        ids_of(message.candidates()),
    )
}

#[test]
fn one_address_of_record_at_two_providers_is_told_apart_by_where_calls_come_from() {
    let at = |server: &str| {
        Registration::builder(server, "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO)
    };
    let mut sim = registered([
        at("sip:192.0.2.9"),
        at("sip:192.0.2.10"),
        at("sip:192.0.2.10:5080"),
    ]);
    let ids = sim.ids().to_vec();
    for (source, owner, candidates) in [
        ("192.0.2.9:5060", Some(0), vec![]),
        ("192.0.2.9:6000", Some(0), vec![]),
        ("192.0.2.10:5060", Some(1), vec![]),
        ("192.0.2.10:5080", Some(2), vec![]),
        ("192.0.2.10:6000", None, vec![ids[1], ids[2]]),
        ("192.0.2.11:5060", None, vec![]),
    ] {
        sim.receive(source.parse().expect("an address"), invite("s"));
        let owner = owner.map(|at: usize| ids[at]);
        assert_eq!(told(&mut sim), (owner, candidates), "{source}");
    }
}

#[test]
fn two_accounts_at_one_registrar_are_told_apart_by_connection() {
    let tcp = || {
        Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO)
    };
    let mut sim = registered([tcp(), tcp().transport("trunk"), account()]);
    let ids = sim.ids().to_vec();
    let flow = |sim: &Sim, id| sim.pool().flow(id).expect("a flow");
    for id in [ids[0], ids[1]] {
        let flow = flow(&sim, id);
        sim.deliver(flow, invite("s").into());
        assert_eq!(told(&mut sim), (Some(id), vec![]));
    }
    // A datagram from there is on no connection, so that the answer does not go to one.
    sim.receive(registrar(), invite("s"));
    let messages = sim.messages();
    assert_eq!(messages[0].flow, Some(flow(&sim, ids[2])));
    // The registrar connects to us, or the host does not know how it came: it may be each of them.
    let accepted = Received::new(registrar(), invite("s").into()).with_flow(FlowId::new(1 << 32));
    sim.with(|pool, cx| pool.received(cx, accepted));
    assert_eq!(told(&mut sim), (None, ids.clone()));
    let asked = sim
        .pool()
        .candidates("sip:s@192.0.2.1", "<sip:x@y>", registrar());
    assert_eq!(ids_of(&asked), ids);
}

#[test]
fn a_call_over_any_flow_of_a_registration_is_for_it() {
    let mut policy = Policy::default();
    policy.inbound_from = InboundFrom::Flow;
    let urn = "urn:uuid:00000000-0000-1000-8000-000a95a0e128";
    let two = account()
        .instance(InstanceId::parse(urn).expect("a urn"))
        .outbound(true)
        .outbound_proxy("sip:192.0.2.11;lr")
        .further_flow("sip:192.0.2.12;lr")
        .policy(policy);
    let mut sim = Sim::new(built(two));
    while !sim.is_silent() {
        for request in sim.all_sent() {
            sim.reply(&request, Reply::granted(600).header("Require", "outbound"));
        }
        sim.advance(Duration::from_secs(1));
    }
    let same = |event: &Event| matches!(event, Event::Warning(Warning::SameBinding(_)));
    assert!(!sim.events().iter().any(same), "its flows are no rivals");
    let id = sim.id();
    for source in ["192.0.2.11:5060", "192.0.2.12:5060"] {
        sim.receive(source.parse().expect("an address"), invite("s"));
        assert_eq!(told(&mut sim), (Some(id), vec![]), "{source}");
    }
    sim.receive(registrar(), invite("s"));
    assert_eq!(told(&mut sim), (None, vec![]), "not by an edge");
}

#[test]
fn a_datagram_belongs_to_no_connection() {
    let tcp = Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO);
    let mut sim = registered([tcp]);
    sim.receive(registrar(), invite("s"));
    assert_eq!(sim.messages()[0].flow, None);
}

#[test]
fn candidates_are_listed_up_to_sixteen() {
    let mut sim = registered((0..40).map(|_| account()));
    sim.receive(registrar(), invite("s"));
    assert_eq!(told(&mut sim), (None, sim.ids()[..16].to_vec()));
}

#[test]
fn a_new_contact_user_is_found_and_the_old_one_is_not() {
    let mut sim = registered([account().contact_user("anna")]);
    let id = sim.id();
    let to = built(account().contact_user("bob"));
    sim.with(|pool, cx| pool.reconfigure(cx, id, to.into()));
    for _ in 0..2 {
        let request = sim.sent();
        sim.reply(&request, Reply::granted(600));
    }
    for (user, owner) in [("anna", None), ("bob", Some(id))] {
        sim.receive(registrar(), invite(user));
        assert_eq!(told(&mut sim), (owner, vec![]), "{user}");
    }
    sim.remove(id, Duration::from_secs(5));
    let request = sim.sent();
    sim.reply(&request, Reply::status(200));
    sim.receive(registrar(), invite("bob"));
    assert_eq!(told(&mut sim), (None, vec![]));
    assert_eq!(
        sim.closed().len(),
        2,
        "nobody was on the flow after either removal"
    );
}

#[test]
fn a_request_may_have_to_come_from_the_registrar() {
    let spoofed = "198.51.100.7:5060";
    for (from, server, allowed, refused) in [
        (
            InboundFrom::Anywhere,
            "sip:192.0.2.9",
            &[spoofed, "192.0.2.9:6000"][..],
            &[][..],
        ),
        (
            InboundFrom::Registrar,
            "sip:192.0.2.9",
            &["192.0.2.9:5060", "192.0.2.9:6000"],
            &[spoofed],
        ),
        (
            InboundFrom::Flow,
            "sip:192.0.2.9",
            &["192.0.2.9:5060"],
            &["192.0.2.9:6000", spoofed],
        ),
        (
            InboundFrom::Registrar,
            "sip:192.0.2.9;transport=tcp",
            &["192.0.2.9:6000"],
            &[spoofed],
        ),
        // A datagram is no message of the connection, wherever it says that it is from.
        (
            InboundFrom::Flow,
            "sip:192.0.2.9;transport=tcp",
            &[],
            &["192.0.2.9:5060", spoofed],
        ),
    ] {
        let mut policy = Policy::default();
        policy.inbound_from = from;
        let trunk = Registration::builder(server, "sip:alice@example.com")
            .max_random_initial_delay(Duration::ZERO)
            .line(true)
            .endpoint("trunk")
            .policy(policy);
        let mut sim = Sim::new(built(trunk));
        let register = sim.sent();
        let contact = register
            .contacts()
            .next()
            .expect("a Contact")
            .uri()
            .to_owned();
        let (_, line) = contact.split_once("line=").expect("a line");
        let call = invite("s").replace("sip:s@192.0.2.1", &format!("sip:s@192.0.2.1;line={line}"));
        sim.reply(&register, Reply::granted(600));
        let id = sim.id();
        for (sources, owner) in [(allowed, Some(id)), (refused, None)] {
            for source in sources {
                sim.receive(source.parse().expect("an address"), call.clone());
                assert_eq!(
                    told(&mut sim),
                    (owner, vec![]),
                    "{from:?} {server} {source}"
                );
            }
        }
        let flow = sim.pool().flow(id).expect("a flow");
        sim.deliver(flow, call.clone().into());
        assert_eq!(told(&mut sim), (Some(id), vec![]), "{from:?}: on its flow");
        // Its connection is gone: the address is what is left.
        sim.fail_flow(flow, FlowError::Closed);
        sim.receive(registrar(), call);
        let owner = Some(id).filter(|_| from != InboundFrom::Flow);
        assert_eq!(told(&mut sim), (owner, vec![]), "{from:?}: without a flow");
    }
}

#[test]
fn a_line_token_is_never_given_twice() {
    let mut pool = Pool::new(&mut Entropy::from_seed([1; 32]));
    pool.add_transport("udp", &[Protocol::Udp]);
    let mut sim = Sim::many([]);
    let ids = [(); 2].map(|()| {
        sim.with(|_, cx| {
            let mut cx = Cx {
                now: cx.now,
                wall: cx.wall,
                // The same draw for both.
                entropy: &mut Entropy::from_seed([2; 32]),
                out: &mut Vec::new(),
            };
            let registration = built(account().line(true).endpoint("trunk"));
            pool.insert(&mut cx, registration.into())
        })
    });
    let token = Entropy::from_seed([2; 32]).letters(7);
    let uri = format!("sip:s@192.0.2.1;line={token}");
    let found = pool.matches(&uri, "<sip:x@y>", registrar());
    assert_eq!(found.map(|found| found.registration), Some(ids[0]));
    sim.with(|_, cx| pool.remove(cx, ids[1], Duration::ZERO));
    assert!(pool.matches(&uri, "<sip:x@y>", registrar()).is_some());
}

#[test]
fn the_later_of_two_that_make_the_same_binding_is_told() {
    let warnings = |sim: &mut Sim| -> Vec<_> {
        let events = sim.all_events();
        let same = events.into_iter().filter_map(|(id, event)| match event {
            Event::Warning(Warning::SameBinding(other)) => Some((id, other)),
            _ => None,
        });
        same.collect()
    };
    let mut sim = Sim::many([]);
    let first = sim.add(built(account()));
    assert_eq!(warnings(&mut sim), []);
    // Another provider, user, transport, instance, or a token of its own: another binding.
    let elsewhere = Registration::builder("sip:192.0.2.10", "sip:alice@example.com");
    let params = "+sip.instance=\"<urn:uuid:1>\";reg-id=2";
    for other in [
        elsewhere,
        account().contact_user("alice"),
        account().transport("udp"),
        account().contact_header_params(params),
        account().line(true).endpoint("trunk"),
    ] {
        sim.add(built(other));
    }
    assert_eq!(warnings(&mut sim), []);
    let upper = Registration::builder("sip:192.0.2.9", "sip:alice@EXAMPLE.com").user_agent("x");
    let second = sim.add(built(upper));
    let third = sim.add(built(account()));
    assert_eq!(warnings(&mut sim), [(second, first), (third, first)]);
    // What does not change the binding is not told again; who leaves is not named any more.
    let mut policy = Policy::default();
    policy.retry.jitter = 0.0;
    let same = built(account().policy(policy));
    sim.with(|pool, cx| pool.reconfigure(cx, third, same.into()));
    assert_eq!(warnings(&mut sim), []);
    sim.remove(first, Duration::from_secs(1));
    sim.advance(Duration::from_secs(1));
    let fourth = sim.add(built(account()));
    assert_eq!(warnings(&mut sim), [(fourth, second)]);
    // One that becomes the same by a change of its configuration.
    let fifth = sim.add(built(account().contact_user("bob")));
    sim.events();
    sim.with(|pool, cx| pool.reconfigure(cx, fifth, built(account()).into()));
    // Nobody answers: the REGISTER under way and the un-REGISTER have to time out first.
    sim.advance(Duration::from_secs(70));
    assert_eq!(warnings(&mut sim), [(fifth, second)]);
}

#[test]
fn a_number_block_is_registered_as_rfc_6140_says() {
    let trunk = account()
        .contact_user(ContactUser::None)
        .contact_uri_params("bnc")
        .require("gin")
        .proxy_require("gin")
        .supported("path");
    let mut sim = Sim::new(built(trunk));
    let register = sim.sent();
    assert_eq!(register.text_of("Contact"), "<sip:192.0.2.1:5060;bnc>");
    assert_eq!(register.text_of("Require"), "gin");
    assert_eq!(register.text_of("Proxy-Require"), "gin");
    // D19: gin is never dropped.
    sim.reply(&register, Reply::status(420).header("Unsupported", "gin"));
    assert!(sim.is_silent());
}

#[test]
fn a_439_is_answered_once_without_outbound() {
    let mut sim = Sim::new(built(account().support_outbound(true).support_path(true)));
    let first = sim.sent();
    assert_eq!(first.text_of("Supported"), "path, outbound");
    sim.reply(&first, Reply::status(439));
    let second = sim.sent();
    assert_eq!(second.text_of("Supported"), "path");
    sim.reply(&second, Reply::status(439));
    assert!(sim.is_silent());
}

#[test]
fn the_topmost_challenge_that_is_allowed_is_answered_once_a_realm() {
    let challenge = |algorithm: &str| {
        format!("Digest realm=\"r\", nonce=\"{algorithm}\", qop=\"auth\", algorithm={algorithm}")
    };
    for (offered, taken) in [
        (&["FOO-9", "SHA-512-256", "MD5"][..], "SHA-512-256"),
        (&["SHA-256", "SHA-512-256", "MD5"][..], "SHA-256"),
        (&["MD5", "SHA-256"][..], "MD5"),
    ] {
        let mut sim = Sim::new(built(
            account().outbound_auth(Credentials::password("alice", "secret")),
        ));
        let first = sim.sent();
        let reply = offered.iter().fold(Reply::status(401), |reply, name| {
            reply.header("WWW-Authenticate", &challenge(name))
        });
        sim.reply(&first, reply);
        let second = sim.sent();
        assert_eq!(second.headers("Authorization").count(), 1);
        let answer = second.text_of("Authorization");
        assert!(
            answer.contains(&format!("algorithm={taken},")),
            "{offered:?}: {answer}"
        );
        let warned = sim
            .events()
            .iter()
            .any(|event| matches!(event, Event::Warning(Warning::WeakAlgorithm(_))));
        assert_eq!(warned, taken == "MD5");
    }
}
