//! Requests that are too long for a datagram (RFC 3261 §18.1.1, D23), in virtual time.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::machine::{account, built, due, secs};

/// An account whose REGISTER has at least so many bytes.
fn long(bytes: usize) -> RegistrationBuilder {
    account().header("X-Long", &"x".repeat(bytes))
}

fn via(request: &SentRequest) -> String {
    request.text_of("Via")
}

fn contact(request: &SentRequest) -> String {
    request.text_of("Contact")
}

/// The URI of our Contact.
fn uri(request: &SentRequest) -> String {
    let contact = contact(request);
    let uri = contact.trim_start_matches('<').split('>').next();
    uri.expect("an address").to_owned()
}

/// What tells of TCP, and what of UDP, belongs together.
fn assert_over(request: &SentRequest, protocol: Protocol) {
    let tcp = protocol == Protocol::Tcp;
    assert_eq!(request.target().protocol(), protocol);
    assert_eq!(request.target().address().to_string(), "192.0.2.9:5060");
    let name = format!("SIP/2.0/{protocol} ");
    assert!(via(request).starts_with(&name), "{}", via(request));
    let says_tcp = contact(request).contains(";transport=TCP");
    assert_eq!(says_tcp, tcp, "{}", contact(request));
}

fn warned(sim: &mut Sim) -> usize {
    let is = |event: &Event| matches!(event, Event::Warning(Warning::Oversize(1301..)));
    sim.events().iter().filter(|event| is(event)).count()
}

#[test]
fn d23_a_long_request_goes_over_tcp_and_stays_there() {
    let mut sim = Sim::new(built(long(1300)));
    let register = sim.sent();
    assert_over(&register, Protocol::Tcp);
    assert!(sim.is_silent(), "nothing went over UDP");
    sim.reply(&register, Reply::challenge("example.com", "n1"));
    let register = sim.sent();
    assert_over(&register, Protocol::Tcp);
    sim.reply(&register, Reply::granted(600));
    assert_eq!(warned(&mut sim), 1);
    for _ in 0..2 {
        let refresh = due(&mut sim);
        assert_over(&refresh, Protocol::Tcp);
        assert_eq!(refresh.flow(), register.flow(), "on the same connection");
        sim.reply(&refresh, Reply::granted(600));
        assert_eq!(warned(&mut sim), 0, "it does not touch UDP");
    }
    sim.remove(sim.id(), secs(35));
    let unregister = sim.sent();
    assert_over(&unregister, Protocol::Tcp);
    assert_eq!(contact(&unregister), contact(&register));
    sim.reply(&unregister, Reply::status(200));
    assert_matches!(&sim.removals()[..], [Removal::Removed]);
}

#[test]
fn d23_a_request_that_fits_goes_over_udp() {
    let mut sim = Sim::new(built(long(600)));
    let register = sim.sent();
    assert_over(&register, Protocol::Udp);
    sim.reply(&register, Reply::granted(600));
    assert_eq!(warned(&mut sim), 0);
}

#[test]
fn d23_credentials_may_make_it_too_long() {
    let mut sim = Sim::new(built(long(800)));
    let first = sim.sent();
    assert_over(&first, Protocol::Udp);
    sim.reply(&first, Reply::challenge("example.com", "n1"));
    let answer = sim.sent();
    assert_over(&answer, Protocol::Tcp);
    let authorization = answer.text_of("Authorization");
    assert!(authorization.contains("nc=00000001"), "{authorization}");
    let number = |request: &SentRequest| request.cseq().expect("a CSeq").0;
    assert_eq!(number(&answer), number(&first) + 1, "none is left out");
    sim.reply(&answer, Reply::granted(600));
    assert_eq!(warned(&mut sim), 1);
    // Its credentials go along unasked, and over what granted the lease.
    let refresh = due(&mut sim);
    assert_over(&refresh, Protocol::Tcp);
    assert!(refresh.text_of("Authorization").contains("nc=00000002"));
}

/// Two registrations: the first brings the flow over UDP up, so that what is refused next is the second one's TCP.
fn without_tcp(error: FlowError) -> Sim {
    let mut sim = Sim::new(built(account()));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(604_800));
    sim.events();
    sim.refuse_next_open(error);
    sim.add(built(long(1300).contact_user("long")));
    sim
}

#[test]
fn d23_without_tcp_it_goes_over_udp_and_stays_there() {
    for error in [FlowError::Refused, FlowError::ConnectTimeout(secs(8))] {
        let mut sim = without_tcp(error);
        let register = sim.sent();
        assert_over(&register, Protocol::Udp);
        sim.reply(&register, Reply::granted(600));
        let events = sim.events();
        assert_matches!(
            &events[..],
            [
                Event::Warning(Warning::Oversize(1301..)),
                Event::Registered(_)
            ]
        );
        for _ in 0..2 {
            let refresh = due(&mut sim);
            assert_over(&refresh, Protocol::Udp);
            sim.reply(&refresh, Reply::granted(600));
            assert_eq!(warned(&mut sim), 1);
        }
    }
}

#[test]
fn d23_what_could_not_go_over_tcp_fails_as_over_udp() {
    let mut sim = without_tcp(FlowError::Refused);
    let register = sim.sent();
    assert_over(&register, Protocol::Udp);
    sim.reply(&register, Reply::status(503));
    let events = sim.events();
    assert_matches!(
        events.last(),
        Some(Event::Rejected {
            failure: Failure::Rejected { code: 503, .. },
            ..
        })
    );
    // The next attempt tries TCP again.
    assert_over(&due(&mut sim), Protocol::Tcp);
}

#[test]
fn d23_where_nobody_answers_over_tcp_it_goes_over_udp_with_a_contact_of_its_own() {
    let mut sim = Sim::new(built(long(1300)));
    let over_tcp = sim.sent();
    assert_over(&over_tcp, Protocol::Tcp);
    sim.advance(secs(33));
    let over_udp = sim.sent();
    let old = format!("<{}>;expires=0", uri(&over_tcp));
    let contacts = over_udp.text().matches(&old).count();
    assert_eq!(contacts, 1, "what may be bound over TCP is removed: {old}");
    assert!(!uri(&over_udp).contains("transport"));
    sim.reply(&over_udp, Reply::granted(600));
    assert!(sim.status().is_registered());
    assert_over(&due(&mut sim), Protocol::Udp);
}

#[test]
fn d23_a_refresh_whose_connection_is_lost_makes_another_one() {
    let mut sim = Sim::new(built(long(1300)));
    let register = sim.sent();
    sim.reply(&register, Reply::granted(3600));
    sim.advance(secs(60));
    sim.fail_flow(register.flow(), FlowError::Reset);
    let again = due(&mut sim);
    assert_over(&again, Protocol::Tcp);
    assert_ne!(again.flow(), register.flow());
}

#[test]
fn d23_what_is_pinned_stays_on_udp_with_a_warning() {
    let mut datagrams = Policy::default();
    datagrams.stream_fallback = false;
    let pinned = [
        long(1300).server_uri("sip:192.0.2.9;transport=udp"),
        long(1300).transport("udp"),
        long(1300).outbound_proxy("sip:192.0.2.9;transport=udp;lr"),
        long(1300).policy(Policy::asterisk()),
        long(1300).policy(datagrams),
    ];
    for builder in pinned {
        let mut sim = Sim::new(built(builder));
        let register = due(&mut sim);
        assert_over(&register, Protocol::Udp);
        sim.reply(&register, Reply::granted(600));
        assert_eq!(warned(&mut sim), 1);
    }
}

#[test]
fn d23_a_proxy_is_reached_over_tcp_too() {
    let mut sim = Sim::new(built(
        long(1300)
            .server_uri("sip:example.com")
            .outbound_proxy("sip:192.0.2.9;lr"),
    ));
    assert_over(&sim.sent(), Protocol::Tcp);
}

#[test]
fn d23_a_larger_configuration_may_go_over_tcp_after_all() {
    let mut sim = Sim::new(built(long(600)));
    let register = sim.sent();
    assert_over(&register, Protocol::Udp);
    sim.reply(&register, Reply::granted(600));
    sim.events();
    sim.input(Input::Reconfigure(Arc::new(built(long(1300)))));
    let register = sim.sent();
    assert_over(&register, Protocol::Tcp);
    assert_eq!(
        register.text().matches("expires=0").count(),
        1,
        "the Contact over UDP goes with it"
    );
}

#[test]
fn d23_nothing_is_asked_of_a_pool_that_has_no_tcp() {
    let mut entropy = Entropy::from_seed([9; 32]);
    let mut pool = Pool::new(&mut entropy);
    pool.add_transport("udp", &[Protocol::Udp]);
    let sim = Sim::many([]);
    let (now, wall) = (sim.now(), SystemTime::UNIX_EPOCH);
    let mut call = |pool: &mut Pool, act: &dyn Fn(&mut Pool, &mut Cx<'_, PoolOutput>)| {
        let mut out = Vec::new();
        let (entropy, out_to) = (&mut entropy, &mut out);
        let mut cx = Cx {
            now,
            wall,
            entropy,
            out: out_to,
        };
        act(pool, &mut cx);
        out
    };
    let registration = Arc::new(built(long(1300)));
    let mut out = call(&mut pool, &|pool, cx| {
        pool.insert(cx, Arc::clone(&registration));
    });
    let mut sent = 0;
    while let Some(output) = out.pop() {
        match output {
            PoolOutput::Open { flow, target, .. } => {
                assert_eq!(target.protocol(), Protocol::Udp);
                let local = "192.0.2.1:5060".parse().expect("an address");
                let info = Arc::new(FlowInfo::new(Protocol::Udp, local, target.address()));
                out.extend(call(&mut pool, &|pool, cx| {
                    pool.opened(cx, flow, Ok(Arc::clone(&info)));
                }));
            }
            PoolOutput::Send { message, .. } => {
                assert!(message.len() > 1300);
                sent += 1;
            }
            PoolOutput::Event(_, Event::Warning(Warning::Oversize(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, 1);
}

/// A registration at a name with two addresses whose requests are too long for a datagram.
fn at_two_addresses() -> Sim {
    let mut sim = Sim::many([]);
    let addresses = [9, 10].map(|last| IpAddr::from([192, 0, 2, last]));
    sim.resolve("example.com", Ok(addresses.to_vec()));
    sim.add(built(long(1300).server_uri("sip:example.com")));
    sim
}

#[test]
fn d23_a_server_that_dies_costs_timer_f_once_and_no_lease() {
    for grant in [80, 120, 600] {
        for made_anew in [false, true] {
            let mut sim = at_two_addresses();
            let register = sim.sent();
            assert_over(&register, Protocol::Tcp);
            sim.reply(&register, Reply::granted(grant));
            sim.advance(secs(35));
            if made_anew {
                // Nor is a connection to it made any more.
                sim.stall_opens(true);
                sim.fail_flow(register.flow(), FlowError::Reset);
                sim.advance(secs(8));
                sim.stall_opens(false);
            } else {
                assert_over(&due(&mut sim), Protocol::Tcp);
            }
            sim.advance(secs(32));
            let other = sim.sent();
            assert_eq!(other.target().to_string(), "TCP 192.0.2.10:5060");
            sim.reply(&other, Reply::granted(grant));
            let events = sim.events();
            let lost =
                |event: &Event| matches!(event, Event::Expired { .. } | Event::Rejected { .. });
            assert!(!events.iter().any(lost), "{grant}: {events:#?}");
        }
    }
    // With nothing over TCP at any address, UDP has its turn all the same.
    let mut sim = at_two_addresses();
    let mut went = Vec::new();
    for _ in 0..4 {
        let request = sim.sent();
        went.push(request.target().to_string());
        sim.advance(secs(31));
        sim.all_sent();
        if request.target().protocol() == Protocol::Udp {
            sim.reply(&request, Reply::granted(600));
            break;
        }
        sim.advance(secs(1));
    }
    assert_eq!(
        went,
        [
            "TCP 192.0.2.9:5060",
            "TCP 192.0.2.10:5060",
            "UDP 192.0.2.9:5060"
        ]
    );
    assert!(sim.status().is_registered());
}
