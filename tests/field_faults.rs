//! What people ran into with other registration clients, as scripts in virtual time: one test a row, named after the
//! row's id and the rule that is kept here.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const DAY: Duration = secs(86_400);

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(server: &str) -> RegistrationBuilder {
    Registration::builder(server, "sip:alice@example.com")
        .outbound_auth(Credentials::password("alice", "secret"))
        .max_random_initial_delay(Duration::ZERO)
}

fn account() -> RegistrationBuilder {
    at("sip:192.0.2.9")
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().expect("a good configuration")
}

/// The default profile, without its jitter: what happens, happens on the second.
fn punctual() -> Policy {
    let mut policy = Policy::default();
    policy.retry.jitter = 0.0;
    policy.retry.retry_after_jitter = 0.0;
    policy.refresh.jitter = 0.0;
    policy
}

/// The next request, whenever it comes.
fn next(sim: &mut Sim) -> SentRequest {
    for _ in 0..100 {
        if !sim.is_silent() {
            return sim.sent();
        }
        let due = sim.deadline().expect("nothing is planned any more");
        sim.advance(due);
    }
    panic!("nothing was sent at a hundred deadlines");
}

/// Whatever is due until the end of `by`, unanswered.
fn all_within(sim: &mut Sim, by: Duration) -> Vec<SentRequest> {
    sim.advance(by);
    sim.all_sent()
}

fn header(request: &SentRequest, name: &str) -> String {
    request.text_of(name)
}

/// The lines of a header that is not a list.
fn lines(request: &SentRequest, name: &str) -> Vec<String> {
    request
        .headers(name)
        .map(|value| value.into_owned())
        .collect()
}

/// The single `Registered` or `Refreshed` among the events since the last look.
fn granted(sim: &mut Sim) -> Registered {
    let events = sim.events();
    let mut grants = events.iter().filter_map(|event| match event {
        Event::Registered(registered) | Event::Refreshed(registered) => Some(&**registered),
        _ => None,
    });
    let grant = grants.next().cloned();
    assert_eq!(grants.next(), None, "{events:#?}");
    grant.unwrap_or_else(|| panic!("no grant: {events:#?}"))
}

fn warnings(sim: &mut Sim) -> Vec<Warning> {
    let warning = |event| match event {
        Event::Warning(warning) => Some(warning),
        _ => None,
    };
    sim.events().into_iter().filter_map(warning).collect()
}

/// One that answered a challenge with the nonce `n1` and was granted `seconds`.
fn challenged(registration: Registration, seconds: u32) -> Sim {
    let mut sim = Sim::new(registration);
    let first = next(&mut sim);
    sim.reply(&first, Reply::challenge("r", "n1"));
    let answer = sim.sent();
    sim.reply(&answer, Reply::granted(seconds));
    assert!(sim.status().is_registered(), "{:?}", sim.events());
    sim.events();
    sim
}

/// pjproject#1936, kamailio#124, #149, #255: a failed send or a lost answer left a busy flag set for good.
#[test]
fn f01_no_way_out_of_a_request_leaves_neither_a_timer_nor_a_report() {
    type Fault = (&'static str, fn(&mut Sim), fn(&mut Sim));
    const NOTHING: fn(&mut Sim) = |_| {};
    let faults: [Fault; 7] = [
        ("a refusal", NOTHING, |sim| {
            let request = sim.sent();
            sim.reply(&request, Reply::status(500));
        }),
        ("no answer", NOTHING, |sim| sim.advance(secs(33))),
        ("only a provisional answer", NOTHING, |sim| {
            let request = sim.sent();
            sim.reply(&request, Reply::status(100));
            sim.advance(secs(33));
        }),
        (
            "a flow that cannot be made",
            |sim| sim.refuse_next_open(FlowError::Refused),
            NOTHING,
        ),
        ("a flow that ends under the request", NOTHING, |sim| {
            let request = sim.sent();
            sim.fail_flow(request.flow(), FlowError::Reset);
        }),
        (
            "a name without address",
            |sim| {
                sim.resolve(
                    "example.com",
                    Err(ResolveError::NoAddress("example.com".into())),
                )
            },
            NOTHING,
        ),
        (
            "a name service that does not answer",
            |sim| sim.resolve("example.com", Err(ResolveError::Timeout)),
            NOTHING,
        ),
    ];
    for (name, before, after) in faults {
        let mut sim = Sim::many([]);
        before(&mut sim);
        sim.add(built(at("sip:example.com;transport=tcp")));
        after(&mut sim);
        assert_matches!(&sim.events()[..], [Event::Rejected { .. }], "{name}");
        assert_matches!(sim.status().activity, Activity::Waiting { .. }, "{name}");
        assert!(sim.deadline().is_some(), "{name}");
        sim.all_sent();
        sim.resolve("example.com", Ok(vec![IpAddr::from([192, 0, 2, 9])]));
        let again = next(&mut sim);
        sim.reply(&again, Reply::granted(3600));
        assert!(sim.status().is_registered(), "{name}");

        // The same under a refresh: the lease stays, and so does a plan.
        sim.events();
        let refresh = next(&mut sim);
        match name {
            "a refusal" => sim.reply(&refresh, Reply::status(500)),
            // And once more over another connection.
            _ => sim.advance(secs(65)),
        }
        assert_matches!(
            &sim.events()[..],
            [Event::Rejected {
                lease_left: Some(_),
                ..
            }],
            "{name}"
        );
        assert!(
            sim.status().is_registered() && sim.deadline().is_some(),
            "{name}"
        );
    }
}

/// futel/asteriskserver#514, jitsi/jigasi#539, SIP.js#472: gave up for good after an outage of some minutes, and
/// nobody was told.
#[test]
fn f02_retries_are_counted_as_configured_and_giving_up_is_told_with_its_reason() {
    let outage = |builder: RegistrationBuilder| {
        let mut sim = Sim::new(built(builder.policy(punctual())));
        let mut attempts = 0;
        while attempts < 100 && !(sim.is_silent() && sim.deadline().is_none()) {
            let request = next(&mut sim);
            attempts += 1;
            sim.reply(&request, Reply::status(503));
        }
        (sim, attempts)
    };
    for max in [0, 1, 10] {
        let (mut sim, attempts) = outage(account().max_retries(max));
        assert_eq!(attempts, max + 1, "the first attempt and {max} retries");
        assert_matches!(
            sim.events().last(),
            Some(Event::GaveUp {
                why: GiveUp::MaxRetries,
                failure: Failure::Rejected { code: 503, .. },
                ..
            })
        );
        assert_eq!(sim.status().activity, Activity::Idle);
    }
    let (mut sim, attempts) = outage(account().unlimited_retries());
    assert_eq!(attempts, 100);
    assert!(
        sim.events()
            .iter()
            .all(|event| matches!(event, Event::Rejected { of: None, .. }))
    );
    let recovered = next(&mut sim);
    sim.reply(&recovered, Reply::granted(600));
    assert!(sim.status().is_registered());
}

/// asterisk#1859: a manual refresh sent a REGISTER without Expires.
#[test]
fn f03_every_register_states_its_expiration_however_it_was_triggered() {
    let mut sim = challenged(built(account().expiration(secs(1800))), 600);
    let timed = next(&mut sim);
    assert_eq!(header(&timed, "Expires"), "1800");
    sim.reply(&timed, Reply::challenge("r", "n2"));
    let answer = sim.sent();
    assert_eq!(header(&answer, "Expires"), "1800");
    sim.reply(&answer, Reply::granted(600));

    sim.input(Input::Refresh);
    let manual = sim.sent();
    assert_eq!(header(&manual, "Expires"), "1800");
    sim.advance(Duration::from_millis(500));
    assert_eq!(header(&sim.sent(), "Expires"), "1800", "a retransmission");
    sim.reply(&manual, Reply::granted(600));

    sim.input(Input::Reregister);
    let removal = sim.sent();
    assert_eq!(header(&removal, "Expires"), "0");
    sim.reply(&removal, Reply::status(200));
    assert_eq!(header(&next(&mut sim), "Expires"), "1800");

    let none = secs(u64::from(u32::MAX));
    assert_matches!(
        account().expiration(none).build(),
        Err(BuildError::NoExpires)
    );
    let reference = built(account().policy(Policy::asterisk()).expiration(none));
    assert_eq!(header(&next(&mut Sim::new(reference)), "Expires"), "");
}

/// asterisk#452, pjproject#371, SIP.js#868, sipsorcery#1375: of several Contacts in the 200 the wrong expiry was taken.
#[test]
fn f04_the_granted_time_is_that_of_our_own_binding_among_several() {
    let other = "<sip:s@198.51.100.7:5060>;expires=10";
    let lists: [&dyn Fn(&str) -> Reply; 4] = [
        &|ours| Reply::status(200).header("Contact", &format!("{other}, {ours};expires=600")),
        &|ours| Reply::status(200).header("Contact", &format!("{ours};expires=600 , {other}")),
        &|ours| {
            Reply::status(200)
                .header("Contact", other)
                .header("m", &format!("{ours};expires=600"))
        },
        // RFC 3261 §19.1.4: the host in any case, escapes of what need not be escaped.
        &|ours| {
            let ours = ours.replace("sip:s@", "sip:%73@");
            Reply::status(200).header("Contact", &format!("{other},{ours};q=0.5;expires=600"))
        },
    ];
    for (number, list) in lists.into_iter().enumerate() {
        let mut sim = Sim::new(built(account()));
        let request = sim.sent();
        sim.reply(&request, list(&header(&request, "Contact")));
        let grant = granted(&mut sim);
        assert_eq!(
            (grant.granted, grant.confirmed, grant.other_bindings),
            (secs(600), true, 1),
            "{number}"
        );
    }

    // The instance goes before the URI (RFC 5626 §6): an old binding of ours at the same address is another one.
    let instance = "+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000A95A0E128>\";reg-id=1";
    let mut sim = Sim::new(built(account().contact_header_params(instance)));
    let request = sim.sent();
    sim.reply(
        &request,
        Reply::status(200)
            .header("Contact", "<sip:s@192.0.2.1:5060>;expires=20")
            .header(
                "Contact",
                &format!("<sip:s@203.0.113.5:1024>;{instance};expires=900"),
            ),
    );
    assert_eq!(granted(&mut sim).granted, secs(900));
}

/// SIP.js#852: an SBC rewrote our Contact in the 200, no binding matched, and the answer was dropped.
#[test]
fn f05_a_contact_that_an_sbc_rewrote_does_not_lose_the_answer() {
    let answered = |reply: Reply| {
        let mut sim = Sim::new(built(account().contact_user("alice")));
        let request = sim.sent();
        sim.reply(&request, reply);
        assert!(sim.status().is_registered());
        let warned = sim.events().contains(&Event::Warning(Warning::Unconfirmed));
        let lease = sim.status().lease.expect("a lease");
        (lease.granted, lease.confirmed, warned)
    };
    let sole = Reply::status(200).header("Contact", "<sip:alice@203.0.113.5:1024>;expires=300");
    assert_eq!(answered(sole), (secs(300), true, false));
    let strange = |reply: Reply| {
        reply
            .header("Contact", "<sip:b2bua-17@203.0.113.5:1024>;expires=30")
            .header("Contact", "<sip:b2bua-18@203.0.113.5:1024>;expires=40")
    };
    let with = strange(Reply::status(200)).header("Expires", "240");
    assert_eq!(answered(with), (secs(240), false, true));
    assert_eq!(
        answered(strange(Reply::status(200))),
        (secs(3600), false, true)
    );

    let mut policy = Policy::default();
    policy.require_own_contact = true;
    let mut sim = Sim::new(built(account().policy(policy)));
    let request = sim.sent();
    sim.reply(&request, strange(Reply::status(200)));
    assert_matches!(
        sim.events().last(),
        Some(Event::Rejected {
            failure: Failure::NotListed,
            class: FailureClass::Temporary,
            ..
        })
    );
}

/// pjproject#3414: a 200 whose Contact has no expires parameter.
#[test]
fn f07_without_expires_at_the_contact_the_header_counts_and_then_what_was_asked_for() {
    for (headers, expected) in [
        (&[("Expires", "120")][..], 120),
        (&[][..], 1800),
        // A malformed one is as none (D9).
        (&[("Expires", "soon")][..], 1800),
    ] {
        let mut sim = Sim::new(built(account().expiration(secs(1800))));
        let request = sim.sent();
        let bare = Reply::status(200).header("Contact", &header(&request, "Contact"));
        let reply = headers
            .iter()
            .fold(bare, |reply, (name, value)| reply.header(name, value));
        sim.reply(&request, reply);
        let grant = granted(&mut sim);
        assert_eq!(
            (grant.granted, grant.confirmed),
            (secs(expected), true),
            "{headers:?}"
        );
    }
}

/// pjproject#5146, #5154: after 439 First Hop Lacks Outbound Support it never registered again.
#[test]
fn f08_439_is_answered_without_reg_id_and_the_wish_is_kept_for_the_next_network() {
    let urn = "urn:uuid:00000000-0000-1000-8000-000a95a0e128";
    let instance = InstanceId::parse(urn).expect("a urn");
    let device = account()
        .instance(instance)
        .outbound(true)
        .policy(punctual());
    let asks = |request: &SentRequest| {
        assert!(header(request, "Contact").contains(urn));
        let supported = request
            .option_tags("Supported")
            .contains(&"outbound".into());
        assert_eq!(header(request, "Contact").contains(";reg-id=1"), supported);
        supported
    };
    let outbound = || Reply::granted(3600).header("Require", "outbound");
    let mut sim = Sim::new(built(device));
    let first = sim.sent();
    assert!(asks(&first));
    sim.reply(&first, Reply::status(439));
    let second = sim.sent();
    assert!(!asks(&second));
    sim.reply(&second, Reply::granted(3600));
    let lease = granted(&mut sim);
    assert_eq!((lease.reg_id, lease.outbound), (None, false));

    // This edge has been asked, the next one has not.
    let refresh = next(&mut sim);
    assert!(!asks(&refresh));
    sim.reply(&refresh, Reply::granted(3600));
    sim.with(|pool, cx| pool.network_changed(cx));
    let anew = next(&mut sim);
    assert!(asks(&anew));
    sim.events();
    sim.reply(&anew, outbound());
    let lease = granted(&mut sim);
    assert_eq!((lease.reg_id, lease.outbound), (Some(1), true));
}

/// JsSIP#105, #851, pjproject#1031, #4038, opensips#3910: the Min-Expires of a 423 was ignored, or the same value was
/// sent again, or only at the next interval.
#[test]
fn f09_min_expires_is_taken_at_once_and_kept() {
    let mut sim = Sim::new(built(account().expiration(secs(60))));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n1"));
    let brief = sim.sent();
    assert_eq!(header(&brief, "Expires"), "60");
    sim.reply(&brief, Reply::status(423).header("Min-Expires", "900"));
    let raised = sim.sent();
    assert_eq!(sim.elapsed(), Duration::ZERO);
    assert_eq!(header(&raised, "Expires"), "900");
    assert_eq!(raised.call_id(), brief.call_id());
    assert_eq!(
        raised.cseq().map(|(number, _)| number),
        brief.cseq().map(|(number, _)| number + 1)
    );
    assert!(
        header(&raised, "Authorization").contains("nc=00000002"),
        "{}",
        raised.text()
    );
    assert_eq!(header(&raised, "Contact"), header(&brief, "Contact"));
    sim.reply(&raised, Reply::granted(900));
    assert_eq!(granted(&mut sim).granted, secs(900));
    assert_eq!(header(&next(&mut sim), "Expires"), "900");

    for min_expires in ["", "60", "30", "never", "4294967296", "999999999"] {
        let mut sim = Sim::new(built(
            account()
                .expiration(secs(60))
                .fatal_retry_interval(secs(300)),
        ));
        let request = sim.sent();
        sim.reply(
            &request,
            Reply::status(423).header("Min-Expires", min_expires),
        );
        assert!(sim.is_silent(), "{min_expires:?}");
        assert_matches!(
            &sim.events()[..],
            [Event::Rejected { failure: Failure::Rejected { code: 423, .. }, class: FailureClass::Fatal, retry_in, .. }]
                if *retry_in >= secs(300),
            "{min_expires:?}"
        );
    }
    // A registrar that asks for what it has got already.
    let mut sim = Sim::new(built(account().expiration(secs(60))));
    for _ in 0..2 {
        let request = sim.sent();
        sim.reply(&request, Reply::status(423).header("Min-Expires", "900"));
    }
    assert!(sim.is_silent());
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp {
            why: GiveUp::NoInterval,
            ..
        }]
    );
}

/// rustpbx#243, JsSIP#52: refreshed by the requested expiry though the registrar had granted less.
#[test]
fn f11_the_granted_time_rules_and_a_short_one_is_no_busy_loop() {
    for granted in [3600, 600, 120, 60, 20, 10] {
        let mut sim = Sim::registered(built(account()), secs(granted));
        let refresh = next(&mut sim);
        assert!(sim.elapsed() < secs(granted), "{granted}");
        assert!(
            sim.elapsed() >= secs(granted) / 3,
            "{granted}: {:?}",
            sim.elapsed()
        );
        sim.reply(&refresh, Reply::granted(granted as u32));
        assert_matches!(&sim.events()[..], [Event::Refreshed(_)], "{granted}");
    }
    for policy in [Policy::default(), Policy::asterisk(), Policy::persistent()] {
        let mut sim = Sim::registered(built(account().policy(policy)), secs(1));
        let mut requests = 0;
        while sim.elapsed() < secs(100) {
            let request = next(&mut sim);
            requests += 1;
            sim.reply(&request, Reply::granted(1));
        }
        assert!((50..=101).contains(&requests), "{requests} in 100 s");
    }
}

/// creytiv/re#223, baresip#717, #786: a registrar that leaves out `stale=true` when a nonce has expired made the
/// client report a wrong password.
#[test]
fn f14_an_expired_nonce_without_stale_is_no_wrong_password() {
    let mut sim = challenged(built(account()), 600);
    let refresh = next(&mut sim);
    assert!(header(&refresh, "Authorization").contains("nonce=\"n1\""));
    sim.reply(&refresh, Reply::challenge("r", "n2"));
    let answer = sim.sent();
    assert!(
        header(&answer, "Authorization").contains("nonce=\"n2\""),
        "{}",
        answer.text()
    );
    assert!(
        header(&answer, "Authorization").contains("nc=00000001"),
        "{}",
        answer.text()
    );
    sim.reply(&answer, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);

    // The answer to a fresh nonce refused: these are wrong credentials, and that at once.
    let refresh = next(&mut sim);
    sim.reply(&refresh, Reply::challenge("r", "n3"));
    let answer = sim.sent();
    sim.reply(&answer, Reply::challenge("r", "n4"));
    assert!(sim.is_silent());
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp { failure: Failure::CredentialsRefused { realm }, lease_left: Some(_), .. }] if &**realm == "r"
    );
    assert_eq!(all_within(&mut sim, DAY).len(), 0);
}

/// jain-sip#181: `nc` stayed 00000001 with a nonce that the server sent again, and was refused as a replay.
#[test]
fn f15_nc_counts_the_uses_of_a_nonce_across_refreshes() {
    let mut sim = challenged(built(account()), 600);
    for nc in 2..=18 {
        let refresh = next(&mut sim);
        let expected = format!("nc={nc:08x}");
        assert!(
            header(&refresh, "Authorization").contains(&expected),
            "{}",
            refresh.text()
        );
        sim.reply(&refresh, Reply::granted(600));
    }
    sim.remove(sim.id(), secs(10));
    assert!(header(&sim.sent(), "Authorization").contains("nc=00000013"));

    // Not sent unasked, as in the reference; the registrar has one nonce for all.
    let mut sim = challenged(built(account().policy(Policy::asterisk())), 600);
    for nc in 2..=4 {
        let refresh = next(&mut sim);
        assert_eq!(header(&refresh, "Authorization"), "");
        sim.reply(&refresh, Reply::challenge("r", "n1"));
        let answer = sim.sent();
        let expected = format!("nc={nc:08x}");
        assert!(
            header(&answer, "Authorization").contains(&expected),
            "{}",
            answer.text()
        );
        sim.reply(&answer, Reply::granted(600));
    }
}

/// twinkle#163, neon#26: of several challenges the last one was answered, or one that is not supported.
#[test]
fn f16_the_topmost_supported_challenge_of_each_realm_is_answered() {
    let offer = |algorithms: &[&str]| {
        algorithms
            .iter()
            .fold(Reply::status(401), |reply, algorithm| {
                let value = format!(
                    "Digest realm=\"r\", nonce=\"{algorithm}\", qop=\"auth\", algorithm={algorithm}"
                );
                reply.header("WWW-Authenticate", &value)
            })
    };
    for (offered, taken, weak) in [
        (&["AKAv1-MD5", "SHA-256", "MD5"][..], "SHA-256", false),
        (&["SHA-512-256", "SHA-256", "MD5"][..], "SHA-512-256", false),
        (&["MD5", "X-NEW"][..], "MD5", false),
        (&["MD5", "SHA-256"][..], "MD5", true),
    ] {
        let mut sim = Sim::new(built(account()));
        let first = sim.sent();
        sim.reply(&first, offer(offered));
        let answer = sim.sent();
        let lines: Vec<_> = answer.headers("Authorization").collect();
        assert_eq!(lines.len(), 1, "{offered:?}");
        assert!(
            lines[0].contains(&format!("nonce=\"{taken}\"")),
            "{offered:?}: {}",
            lines[0]
        );
        assert!(
            lines[0].contains(&format!("algorithm={taken}")),
            "{offered:?}: {}",
            lines[0]
        );
        let warned = warnings(&mut sim).contains(&Warning::WeakAlgorithm("r".into()));
        assert_eq!(warned, weak, "{offered:?}");
    }

    // One answer a realm, the registrar's beside the proxy's.
    let mut sim = Sim::new(built(account()));
    let first = sim.sent();
    let proxy = "Digest realm=\"edge\", nonce=\"p1\", qop=\"auth\"";
    sim.reply(
        &first,
        Reply::status(407).header("Proxy-Authenticate", proxy),
    );
    let second = sim.sent();
    sim.reply(&second, offer(&["SHA-256", "MD5"]));
    let third = sim.sent();
    assert!(
        header(&third, "Authorization").contains("nonce=\"SHA-256\""),
        "{}",
        third.text()
    );
    assert!(
        header(&third, "Proxy-Authorization").contains("realm=\"edge\""),
        "{}",
        third.text()
    );
    sim.reply(&third, Reply::granted(600));
    assert_eq!(granted(&mut sim).algorithm, Some(Algorithm::Sha256));

    // And no way back to MD5 in that realm.
    let refresh = next(&mut sim);
    sim.reply(&refresh, offer(&["MD5"]));
    assert!(sim.is_silent());
    assert_matches!(
        &sim.events()[..],
        [Event::GaveUp {
            failure: Failure::Unanswerable { .. },
            lease_left: Some(_),
            ..
        }]
    );
}

/// rapida-voice-ai#147, asterisk#1927: a refresh went out on a new connection, and the registrar routed calls to a
/// dead one.
#[test]
fn f19_a_refresh_uses_the_flow_that_registered_and_the_host_can_see_it() {
    for transport in ["udp", "tcp"] {
        let [one, two] = [9, 10].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut sim = Sim::many([]);
        sim.resolve("example.com", Ok(vec![one, two]));
        sim.add(built(at(&format!("sip:example.com;transport={transport}"))));
        let first = sim.sent();
        sim.reply(&first, Reply::granted(600));
        let grant = granted(&mut sim);
        let remote: SocketAddr = "192.0.2.9:5060".parse().expect("an address");
        assert_eq!((grant.flow, grant.target.address()), (first.flow(), remote));

        // The name now gives another address first.
        sim.resolve("example.com", Ok(vec![two, one]));
        for _ in 0..3 {
            let refresh = next(&mut sim);
            assert_eq!(
                (refresh.flow(), refresh.target().address()),
                (first.flow(), remote)
            );
            sim.reply(&refresh, Reply::granted(600));
        }
        let lease = sim.status().lease.expect("a lease");
        assert_eq!(
            (lease.flow, lease.target.address()),
            (Some(first.flow()), remote)
        );
        assert_eq!(sim.pool().flow(sim.id()), Some(first.flow()));
        sim.remove(sim.id(), secs(10));
        assert_eq!(sim.sent().flow(), first.flow());
        assert!(
            sim.closed().is_empty(),
            "closed before the un-REGISTER was answered"
        );
    }
}

/// rustpbx#247, pjproject#1677: the Contact had another connection's ephemeral port, so that calls never arrived.
#[test]
fn f21_contact_names_what_this_registration_uses() {
    let contact = |request: &SentRequest| {
        let port = 40_000 + request.flow().number();
        format!("<sip:s@192.0.2.1:{port};transport=TCP>")
    };
    let servers = [
        "sip:192.0.2.9;transport=tcp",
        "sip:192.0.2.10;transport=tcp",
    ];
    let mut sim = Sim::many(servers.map(|server| built(at(server))));
    let sent = sim.all_sent();
    assert_eq!(sent.len(), 2);
    assert_ne!(sent[0].flow(), sent[1].flow());
    for request in &sent {
        assert_eq!(header(request, "Contact"), contact(request));
        let port = 40_000 + request.flow().number();
        assert!(header(request, "Via").starts_with(&format!("SIP/2.0/TCP 192.0.2.1:{port};")));
        sim.reply(request, Reply::granted(600));
    }
    // A new connection has a new port, and Via and Contact change together.
    sim.advance(secs(60));
    sim.fail_flow(sent[0].flow(), FlowError::Closed);
    let again = next(&mut sim);
    assert_ne!(again.flow(), sent[0].flow());
    assert_eq!(header(&again, "Contact"), contact(&again));
    let port = 40_000 + again.flow().number();
    assert!(header(&again, "Via").contains(&format!("192.0.2.1:{port}")));

    let mut sim = Sim::new(built(account()));
    assert_eq!(header(&sim.sent(), "Contact"), "<sip:s@192.0.2.1:5060>");
}

/// asterisk#1731, #48, #789: Security-Verify grew with each refresh, and went out wrong after a 401 against a 494.
#[test]
fn f23_the_server_s_security_list_is_replaced_and_the_host_can_see_it() {
    for policy in [punctual(), Policy::asterisk()] {
        let refreshed_with = policy.security_verify_on_refresh;
        let mut sim = Sim::new(built(
            account()
                .policy(policy)
                .security_negotiation(SecurityNegotiation::Mediasec)
                .security_mechanisms("sdes-srtp;mediasec"),
        ));
        let mut list = vec![
            "msrp-tls;mediasec".to_owned(),
            "sdes-srtp;mediasec".to_owned(),
        ];
        for round in 0..4 {
            let first = next(&mut sim);
            let before = if round > 0 && refreshed_with {
                list.clone()
            } else {
                Vec::new()
            };
            assert_eq!(lines(&first, "Security-Verify"), before, "round {round}");
            if round == 2 {
                list = vec!["dtls-srtp;mediasec;q=0.1".to_owned()];
            }
            let nonce = format!("n{round}");
            let challenge =
                format!("Digest realm=\"r\", nonce=\"{nonce}\", qop=\"auth\", stale=true");
            let mut challenge = Reply::status(401).header("WWW-Authenticate", &challenge);
            for mechanism in &list {
                challenge = challenge.header("Security-Server", mechanism);
            }
            sim.reply(&first, challenge);
            let answer = sim.sent();
            assert_eq!(lines(&answer, "Security-Verify"), list, "round {round}");
            assert_eq!(lines(&answer, "Security-Client"), ["sdes-srtp;mediasec"]);
            sim.reply(&answer, Reply::granted(600));
            assert_eq!(*granted(&mut sim).security_server, *list, "round {round}");
        }
    }
}

/// SIP.js#472: the Retry-After of a 503 was ignored.
#[test]
fn f24_retry_after_rules_over_the_configured_interval_in_all_its_forms() {
    for (value, seconds) in [
        ("120", 120),
        ("5", 5),
        (" 300  ", 300),
        ("120 (I am in a meeting)", 120),
        ("1800;duration=3600", 1800),
        ("90 (a, \\) b);duration=10", 90),
        // Not more than an hour (D11).
        ("18000", 3600),
        // What cannot be read is as absent: retry_interval.
        ("Fri, 31 Dec 1999 23:59:59 GMT", 60),
        ("-5", 60),
    ] {
        for code in [503, 500, 480] {
            let mut sim = Sim::new(built(account().policy(punctual())));
            let request = sim.sent();
            sim.reply(&request, Reply::status(code).header("Retry-After", value));
            assert_matches!(
                &sim.events()[..],
                [Event::Rejected { retry_in, .. }] if *retry_in == secs(seconds),
                "{code} {value:?}"
            );
            assert_eq!(
                all_within(&mut sim, secs(seconds) - Duration::from_millis(1)).len(),
                0
            );
            assert_eq!(
                all_within(&mut sim, Duration::from_millis(1)).len(),
                1,
                "{code} {value:?}"
            );
        }
    }
    // Never earlier than asked, and at most a tenth later.
    for seed in 0..20 {
        let mut sim = Sim::seeded([seed; 32], [built(account())]);
        let request = sim.sent();
        sim.reply(&request, Reply::status(503).header("Retry-After", "200"));
        assert_matches!(&sim.events()[..], [Event::Rejected { retry_in, .. }]
            if (secs(200)..=secs(220)).contains(retry_in));
    }
}

/// pjproject#4586, #3687, kamailio#363: IPv6 hosts without brackets in Via, Contact and Request-URI.
#[test]
fn f32_ipv6_is_always_in_brackets_and_zones_stay_at_home() {
    for (transport, suffix) in [("udp", ""), ("tcp", ";transport=TCP")] {
        let server = format!("sip:[2001:db8::9]:5070;transport={transport}");
        let mut sim = Sim::registered(built(at(&server)), secs(600));
        let request = next(&mut sim);
        let port = match transport {
            "udp" => 5060,
            _ => 40_000 + request.flow().number(),
        };
        assert!(
            request
                .text()
                .starts_with(&format!("REGISTER {server} SIP/2.0\r\n")),
            "{}",
            request.text()
        );
        assert!(
            header(&request, "Via").contains(&format!(" [2001:db8::1]:{port};")),
            "{}",
            request.text()
        );
        assert_eq!(
            header(&request, "Contact"),
            format!("<sip:s@[2001:db8::1]:{port}{suffix}>")
        );
    }
    // A name that has only an IPv6 address.
    let mut sim = Sim::many([]);
    sim.resolve(
        "example.com",
        Ok(vec!["2001:db8::9".parse().expect("an address")]),
    );
    sim.add(built(at("sip:example.com")));
    assert_eq!(header(&sim.sent(), "Contact"), "<sip:s@[2001:db8::1]:5060>");

    // A link-local flow has a zone; the wire has none.
    assert_matches!(at("sip:[fe80::9%25eth0]").build(), Err(_));
    let local = "[fe80::1%3]:5060".parse().expect("an address with a zone");
    let remote = "[fe80::9%3]:5060".parse().expect("an address with a zone");
    let info = Arc::new(FlowInfo::new(Protocol::Udp, local, remote));
    let mut entropy = Entropy::from_seed([1; 32]);
    let mut machine = Machine::new(
        Arc::new(built(at("sip:[fe80::9]"))),
        Identity::default(),
        &mut entropy,
    );
    let mut sim = Sim::many([]);
    let now = sim.now();
    let mut feed = |input: Input<'_>| {
        let mut out = Vec::new();
        let wall = SystemTime::UNIX_EPOCH;
        machine.handle(
            &mut Cx {
                now,
                wall,
                entropy: &mut entropy,
                out: &mut out,
            },
            input,
        );
        out
    };
    let started = feed(Input::Start);
    let [Output::Locate { op, .. }] = started[..] else {
        panic!("{started:?}")
    };
    let located = feed(Input::Located {
        op,
        result: Ok(vec![Target::new(Protocol::Udp, remote)]),
    });
    let [Output::Open { op, .. }] = located[..] else {
        panic!("{located:?}")
    };
    let opened = feed(Input::Opened {
        op,
        result: Ok((FlowId::new(1), info)),
        retry_in: None,
    });
    let [Output::Transmit { message, .. }] = &opened[..] else {
        panic!("{opened:?}")
    };
    let text = String::from_utf8_lossy(message);
    assert!(text.contains("Via: SIP/2.0/UDP [fe80::1]:5060;"), "{text}");
    assert!(
        text.contains("Contact: <sip:s@[fe80::1]:5060>") && !text.contains('%'),
        "{text}"
    );
    assert!(sim.all_sent().is_empty());
}

/// sipsorcery#221, #562: the program ended before the un-REGISTER had left, or nobody could wait for it.
#[test]
fn f33_a_removal_has_a_deadline_and_says_what_became_of_the_binding() {
    let bound = || Sim::registered(built(account()), secs(600));
    let mut sim = bound();
    sim.remove(sim.id(), secs(5));
    let removal = sim.sent();
    assert_eq!(
        (header(&removal, "Expires").as_str(), removal.method()),
        ("0", "REGISTER")
    );
    assert_eq!(sim.removals(), []);
    sim.reply(&removal, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);
    assert!(sim.pool().is_empty());

    let mut sim = bound();
    sim.remove(sim.id(), secs(5));
    let removal = sim.sent();
    sim.reply(&removal, Reply::status(500));
    assert_eq!(sim.removals(), [Removal::Refused(500)]);

    let mut sim = bound();
    sim.remove(sim.id(), secs(5));
    sim.advance(Duration::from_millis(4999));
    assert_eq!(sim.removals(), []);
    sim.advance(Duration::from_millis(1));
    assert_eq!(sim.removals(), [Removal::Unanswered]);
    assert!(sim.pool().is_empty());

    // A challenge is answered on the way out.
    let mut sim = bound();
    sim.remove(sim.id(), secs(5));
    let removal = sim.sent();
    sim.reply(&removal, Reply::challenge("r", "n1"));
    let answer = sim.sent();
    assert_eq!(header(&answer, "Expires"), "0");
    sim.reply(&answer, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);

    // Never answered at all, so there may be a binding: half of the time for the REGISTER, half to undo it.
    let mut sim = Sim::new(built(account()));
    let pending = sim.sent();
    sim.remove(sim.id(), secs(10));
    let undo = all_within(&mut sim, secs(5))
        .into_iter()
        .find(|request| header(request, "Expires") == "0")
        .expect("an un-REGISTER");
    assert!(undo.cseq().map(|(number, _)| number) > pending.cseq().map(|(number, _)| number));
    sim.advance(secs(5));
    assert_eq!(sim.removals(), [Removal::Unanswered]);

    // Nothing was sent yet, so there is nothing to remove.
    let mut sim = Sim::new(built(account().max_random_initial_delay(secs(10))));
    sim.remove(sim.id(), secs(5));
    assert_eq!(sim.removals(), [Removal::NeverBound]);
    assert!(sim.is_silent());
}

/// hass-sip#77: the status went registered, registering, registered at each refresh.
#[test]
fn f35_a_refresh_under_way_is_still_registered() {
    let mut sim = challenged(built(account()), 600);
    for nonce in ["n2", "n3", "n4"] {
        let refresh = next(&mut sim);
        let look = |sim: &mut Sim| {
            let status = sim.status();
            assert!(status.is_registered() && status.is_reachable());
            assert_eq!(status.reference_status(), ReferenceStatus::Registered);
            assert_eq!(status.activity, Activity::Registering);
            assert_eq!(sim.events(), []);
        };
        look(&mut sim);
        sim.reply(&refresh, Reply::status(100));
        look(&mut sim);
        sim.reply(&refresh, Reply::challenge("r", nonce));
        look(&mut sim);
        let answer = sim.sent();
        sim.reply(&answer, Reply::granted(600));
        assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);
    }
}

/// baresip#469, #636: a successful un-registration had no event.
#[test]
fn f36_every_change_is_told_and_told_once() {
    let mut sim = Sim::new(built(account()));
    let first = sim.sent();
    for _ in 0..2 {
        sim.reply(&first, Reply::granted(600));
    }
    assert_matches!(&sim.events()[..], [Event::Registered(_)]);

    let refresh = next(&mut sim);
    for _ in 0..2 {
        sim.reply(&refresh, Reply::granted(600));
    }
    assert_matches!(&sim.events()[..], [Event::Refreshed(_)]);

    sim.input(Input::Pause {
        until: None,
        unregister: true,
    });
    let removal = sim.sent();
    assert_eq!(sim.events(), []);
    for _ in 0..2 {
        sim.reply(&removal, Reply::status(200));
    }
    assert_eq!(
        sim.events(),
        [
            Event::Unregistered(Removal::Removed),
            Event::Paused { resumes_in: None }
        ]
    );
    assert!(!sim.status().is_registered());
    sim.advance(DAY);
    assert_eq!((sim.events(), sim.is_silent()), (vec![], true));

    sim.input(Input::Resume);
    let again = sim.sent();
    sim.reply(&again, Reply::granted(600));
    assert_matches!(&sim.events()[..], [Event::Registered(_)]);
    sim.remove(sim.id(), secs(5));
    let removal = sim.sent();
    for _ in 0..2 {
        sim.reply(&removal, Reply::status(200));
    }
    assert_eq!(sim.events(), [Event::Unregistered(Removal::Removed)]);
    assert_eq!(sim.removals(), [Removal::Removed]);
}

/// opensips#3270: with a wrong password the registrar was hammered at the timer's pace.
#[test]
fn f40_failed_registrations_follow_their_own_intervals() {
    // The first refusal is the last, also where everything else is tried for ever.
    for policy in [Policy::default(), Policy::persistent()] {
        let mut sim = Sim::new(built(account().policy(policy).expiration(secs(20))));
        let first = sim.sent();
        sim.reply(&first, Reply::challenge("r", "n1"));
        let answer = sim.sent();
        sim.reply(&answer, Reply::challenge("r", "n2"));
        assert_matches!(
            &sim.events()[..],
            [Event::GaveUp {
                failure: Failure::CredentialsRefused { .. },
                why: GiveUp::CredentialsRefused,
                ..
            }]
        );
        assert_eq!(all_within(&mut sim, DAY).len(), 0);
    }

    // Refusals that may pass: retry_interval apart, and three an hour at most.
    for policy in [Policy::default(), Policy::asterisk()] {
        let guarded = policy.auth.guard_account;
        let registration = account()
            .policy(policy)
            .expiration(secs(20))
            .auth_rejection_permanent(false)
            .retry_interval(secs(300))
            .unlimited_retries();
        let mut sim = Sim::new(built(registration));
        let (mut cycles, mut refused, mut last) = (0, 0, None);
        while sim.elapsed() < secs(3600) && !(sim.is_silent() && sim.deadline().is_none()) {
            let request = next(&mut sim);
            if header(&request, "Authorization").is_empty() {
                cycles += 1;
                if let Some(last) = last {
                    assert!(
                        sim.elapsed() - last >= secs(300),
                        "{:?}",
                        sim.elapsed() - last
                    );
                }
                last = Some(sim.elapsed());
            } else {
                refused += 1;
            }
            sim.reply(
                &request,
                Reply::challenge("r", &format!("n{cycles}{refused}")),
            );
        }
        assert!(cycles <= 13, "{cycles} attempts in an hour");
        assert_eq!(refused, if guarded { 3 } else { cycles - 1 });
    }

    // 403 and what else is fatal have intervals of their own.
    for (code, interval) in [(403, 600), (404, 900), (500, 300)] {
        let registration = account()
            .policy(punctual())
            .expiration(secs(20))
            .retry_interval(secs(300))
            .forbidden_retry_interval(secs(600))
            .fatal_retry_interval(secs(900));
        let mut sim = Sim::new(built(registration));
        let request = sim.sent();
        sim.reply(&request, Reply::status(code));
        assert_eq!(all_within(&mut sim, secs(interval - 1)).len(), 0, "{code}");
        assert_eq!(all_within(&mut sim, secs(1)).len(), 1, "{code}");
    }
}

/// baresip-studio#420: a provider insists that the Contact user equals the account.
#[test]
fn f41_the_contact_user_is_written_exactly_as_configured() {
    for user in [
        "alice",
        "+1.555-0100",
        "alice%40example.com",
        "0049(89)1234;ext=7",
        "A.b_c~d",
    ] {
        let expected = format!("<sip:{user}@192.0.2.1:5060>");
        let mut sim = challenged(built(account().contact_user(user)), 600);
        let refresh = next(&mut sim);
        assert_eq!(header(&refresh, "Contact"), expected);
        sim.reply(&refresh, Reply::granted(600));
        assert!(granted(&mut sim).confirmed, "{user}");
        sim.remove(sim.id(), secs(5));
        assert_eq!(header(&sim.sent(), "Contact"), expected);
    }
    let mut sim = Sim::new(built(account().contact_user(ContactUser::None)));
    assert_eq!(header(&sim.sent(), "Contact"), "<sip:192.0.2.1:5060>");
    for wrong in ["al ice", "a@b", "a<b", "a\r\nb", "%zz"] {
        assert_matches!(
            account().contact_user(wrong).build(),
            Err(BuildError::ContactUser { .. }),
            "{wrong:?}"
        );
    }
}

/// baresip#916, #1008, #1083: one account, several servers in the order of priority, and no way to say so.
#[test]
fn f45_several_registrars_or_proxies_serve_one_account_in_series_or_at_once() {
    // In series: the next one while the first is silent, and the first again when it is back.
    let series = at("sip:192.0.2.9")
        .fallback_server("sip:192.0.2.8")
        .policy(punctual());
    let mut sim = Sim::new(built(series));
    let first = sim.sent();
    let place = |request: &SentRequest| request.target().address().ip().to_string();
    assert_eq!(place(&first), "192.0.2.9");
    sim.advance(secs(32));
    let second = sim.all_sent().pop().expect("the next choice");
    assert_eq!(place(&second), "192.0.2.8");
    sim.reply(&second, Reply::granted(600));
    granted(&mut sim);
    let back = next(&mut sim);
    assert_eq!(place(&back), "192.0.2.9");
    sim.reply(&back, Reply::granted(600));
    assert!(sim.status().is_reachable());

    // At once: bound through both, reachable while one holds.
    let parallel = at("sip:example.com")
        .instance(InstanceId::from_random([7; 16]))
        .outbound_proxy("sip:192.0.2.9;lr;transport=tcp")
        .further_flow("sip:192.0.2.8;lr;transport=tcp")
        .policy(punctual());
    let mut sim = Sim::new(built(parallel));
    for expected in ["192.0.2.9", "192.0.2.8"] {
        let register = sim.sent();
        assert_eq!(place(&register), expected);
        sim.reply(&register, Reply::granted(600).header("Require", "outbound"));
    }
    sim.events();
    let one = sim.pool().flows_of(sim.id());
    assert_eq!(one.len(), 2);
    sim.fail_flow(one[0], FlowError::Closed);
    assert!(sim.status().is_reachable());
    assert_eq!(sim.pool().flow(sim.id()), Some(one[1]));
    sim.fail_flow(one[1], FlowError::Closed);
    assert!(!sim.status().is_reachable());
}

/// SIP.js#902, sipsorcery#490: the margin of a refresh could not be configured.
#[test]
fn f47_the_refresh_margin_is_an_option_with_a_safe_default() {
    let refreshed_after = |policy: Policy, granted: u64| {
        let mut sim = Sim::registered(built(account().policy(policy)), secs(granted));
        next(&mut sim);
        sim.elapsed()
    };
    let with = |lead: RefreshLead| {
        let mut policy = punctual();
        policy.refresh.lead = lead;
        policy
    };
    for (policy, granted, after) in [
        // A tenth, from 40 to 300 s, at most half of it (D1).
        (punctual(), 3600, 3300),
        (punctual(), 1000, 900),
        (punctual(), 120, 80),
        (punctual(), 60, 30),
        (Policy::asterisk(), 3600, 3590),
        (Policy::asterisk(), 20, 10),
        (with(RefreshLead::Fixed(secs(45))), 600, 555),
        (with(RefreshLead::Fraction(0.25)), 600, 150),
    ] {
        assert_eq!(refreshed_after(policy, granted), secs(after), "{granted}");
    }
    // The default is earlier at random, never later.
    for seed in 0..20 {
        let mut sim = Sim::seeded([seed; 32], [built(account())]);
        let first = sim.sent();
        sim.reply(&first, Reply::granted(600));
        next(&mut sim);
        let after = sim.elapsed();
        assert!((secs(486)..=secs(540)).contains(&after), "{after:?}");
    }
}

/// siphon-sip#434: a registration deleted from the configuration stayed bound at the registrar.
#[test]
fn f48_a_registration_that_goes_is_removed_in_the_same_call() {
    let mut sim = Sim::new(built(account()));
    let first = sim.sent();
    sim.reply(&first, Reply::granted(600));
    sim.remove(sim.id(), secs(32));
    let removal = sim.sent();
    assert_eq!(header(&removal, "Call-ID"), header(&first, "Call-ID"));
    assert_eq!(header(&removal, "Contact"), header(&first, "Contact"));
    assert_eq!(header(&removal, "Expires"), "0");
    let number = |request: &SentRequest| request.cseq().map(|(number, _)| number);
    assert_eq!(number(&removal), number(&first).map(|number| number + 1));
    sim.reply(&removal, Reply::status(200));
    assert_eq!(sim.removals(), [Removal::Removed]);
}

/// pjproject#4477, kamailio#210, opensips#140, linphone-desktop#300: SRV named a second server, and nobody asked it.
#[test]
fn f18_a_target_that_fails_is_followed_by_the_next_one_in_the_same_attempt() {
    type Fail = fn(&mut Sim, &SentRequest);
    let failures: [(&str, &str, Fail); 5] = [
        ("a timeout", "udp", |sim, _| sim.advance(secs(32))),
        ("503", "udp", |sim, request| {
            sim.reply(request, Reply::status(503));
        }),
        ("503 with Retry-After", "udp", |sim, request| {
            sim.reply(request, Reply::status(503).header("Retry-After", "600"));
        }),
        ("an ICMP error", "udp", |sim, request| {
            sim.fail_flow(request.flow(), FlowError::Refused);
        }),
        ("a closed connection", "tcp", |sim, request| {
            sim.fail_flow(request.flow(), FlowError::Closed);
        }),
    ];
    for (name, transport, fail) in failures {
        let mut sim = Sim::many([]);
        let server = |priority, target: &str| Srv {
            priority,
            weight: 0,
            port: 5070,
            target: target.into(),
        };
        let servers = vec![
            server(2, "three.example.com"),
            server(0, "one.example.com"),
            server(1, "two.example.com"),
        ];
        let service = format!("_sip._{transport}.example.com");
        sim.answer(Query::srv(service), Ok(Answer::srv(servers)));
        for (n, host) in (1..).zip(["one", "two", "three"]) {
            let address = IpAddr::from([192, 0, 2, n]);
            sim.resolve(&format!("{host}.example.com"), Ok(vec![address]));
        }
        sim.add(built(at(&format!("sip:example.com;transport={transport}"))));
        for n in 1..=3 {
            let request = sim.all_sent().pop().expect("a request");
            let expected: SocketAddr = ([192, 0, 2, n], 5070).into();
            assert_eq!(request.target().address(), expected, "{name}");
            assert!(sim.events().is_empty(), "{name}: the attempt goes on");
            fail(&mut sim, &request);
        }
        assert_matches!(&sim.events()[..], [Event::Rejected { .. }], "{name}");
    }
}

/// pjproject#1375: after an outage all clients came in the same second.
#[test]
fn f39_clients_do_not_all_come_in_the_same_second() {
    let crowd = |server: &str| {
        let mut sim = Sim::many([]);
        for n in 0..1000 {
            let aor = format!("sip:u{n}@example.com");
            sim.add(built(
                Registration::builder(server, aor.as_str())
                    .max_random_initial_delay(Duration::ZERO),
            ));
        }
        sim
    };
    // All that is sent until then, answered; and the most that came in one second.
    let serve = |sim: &mut Sim, until: Duration, reply: &Reply| {
        let (mut seconds, mut all) = (std::collections::HashMap::new(), Vec::new());
        loop {
            for request in sim.all_sent() {
                *seconds.entry(sim.elapsed().as_secs()).or_insert(0) += 1;
                sim.reply(&request, reply.clone());
                all.push(request);
            }
            if !sim.is_silent() {
                continue;
            }
            match sim.deadline() {
                Some(next) if sim.elapsed() + next <= until => sim.advance(next),
                _ => break,
            }
        }
        let most: u32 = seconds.values().max().copied().unwrap_or_default();
        (all, most)
    };
    // Retries of failures in the same moment spread over 12 s.
    let mut sim = crowd("sip:192.0.2.9");
    serve(&mut sim, secs(1), &Reply::status(500));
    let (retries, most) = serve(&mut sim, secs(73), &Reply::granted(3600));
    assert!(
        retries.len() == 1000 && most < 150,
        "{most} retries in a second"
    );
    // Refreshes, within a minute at first.
    let (refreshes, most) = serve(&mut sim, secs(3400), &Reply::granted(3600));
    assert!(
        refreshes.len() == 1000 && most < 50,
        "{most} refreshes in a second"
    );
    // Users of a lost connection, over 10 s, however long it lasted.
    for lasted in [1, 40] {
        let mut sim = crowd("sip:192.0.2.9;transport=tcp");
        let (registers, _) = serve(&mut sim, secs(1), &Reply::granted(3600));
        sim.advance_to(secs(lasted));
        sim.fail_flow(registers[0].flow(), FlowError::Reset);
        let (again, most) = serve(&mut sim, secs(lasted + 12), &Reply::granted(3600));
        // Those who would have come within a second wait for that (D2).
        assert!(
            again.len() == 1000 && most < 250,
            "{lasted} s: {most} in a second"
        );
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn contacts(request: &SentRequest) -> Vec<String> {
    let contacts = request.values("Contact");
    contacts.map(|value| value.into_owned()).collect()
}

/// After a change of address Via and Contact change together, and the old binding goes in the same REGISTER, or is the
/// registrar's to replace where it knows us by instance and reg-id; one that refuses two Contacts gets the new one alone.
#[test]
fn f29_after_a_change_of_address_nothing_of_the_old_one_is_left() {
    let move_to = |sim: &mut Sim| {
        sim.dress_flows(|info| {
            FlowInfo::new(info.protocol(), address("198.51.100.7:5060"), info.remote())
        });
        sim.with(|pool, cx| pool.network_changed(cx));
        next(sim)
    };
    let mut sim = Sim::registered(built(account().contact_user("alice")), secs(3600));
    let moved = move_to(&mut sim);
    assert!(header(&moved, "Via").starts_with("SIP/2.0/UDP 198.51.100.7:5060;"));
    assert_eq!(
        contacts(&moved),
        [
            "<sip:alice@198.51.100.7:5060>",
            "<sip:alice@192.0.2.1:5060>;expires=0"
        ]
    );
    sim.reply(&moved, Reply::status(403));
    let alone = sim.sent();
    assert_eq!(contacts(&alone), ["<sip:alice@198.51.100.7:5060>"]);
    sim.reply(&alone, Reply::granted(3600));
    assert!(sim.status().is_reachable());

    let instance = "+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000a95a0e128>\";reg-id=1";
    let known = account()
        .contact_user("alice")
        .contact_header_params(instance);
    let mut sim = Sim::registered(built(known), secs(3600));
    let moved = move_to(&mut sim);
    assert_eq!(
        contacts(&moved),
        [format!("<sip:alice@198.51.100.7:5060>;{instance}")]
    );
}

/// What a middlebox made of `received` and `rport` never reaches a Contact: by default nothing is rewritten at all, and
/// where it is asked for, only an address that can be ours is taken, once.
#[test]
fn f30_no_contact_is_rewritten_to_a_mangled_address_nor_again_and_again() {
    let mut rewriting = punctual();
    rewriting.contact_rewriting = ContactRewriting::Mapped;
    let registered = |policy: &Policy, seen: &str| {
        let account = account().contact_user("alice").policy(policy.clone());
        let mut sim = Sim::new(built(account));
        let first = sim.sent();
        sim.reply(&first, Reply::granted(3600).seen_from(address(seen)));
        sim
    };
    for (policy, seen) in [
        (&punctual(), "203.0.113.7:1024"),
        (&rewriting, "10.0.0.3:5060"),
        (&rewriting, "0.0.0.0:5060"),
        (&rewriting, "203.0.113.7:0"),
    ] {
        let mut sim = registered(policy, seen);
        assert_eq!(all_within(&mut sim, secs(600)).len(), 0, "{seen}");
    }
    let mut sim = registered(&rewriting, "203.0.113.7:1024");
    for answer in 0..10_u16 {
        for request in sim.all_sent() {
            assert!(contacts(&request)[0].starts_with("<sip:alice@203.0.113.7:"));
            let seen = SocketAddr::new(address("203.0.113.7:1").ip(), 2000 + answer);
            sim.reply(&request, Reply::granted(3600).seen_from(seen));
        }
        sim.advance(secs(60));
    }
    // Ten answers from ten ports in ten minutes: one REGISTER more, not ten.
    let Some(Activity::Waiting { until }) = Some(sim.status().activity) else {
        panic!("{:?}", sim.status());
    };
    assert!(until > sim.now() + secs(1800));
}

/// What an answer showed of the way in lasts as long as the flow, whatever later answers leave out.
#[test]
fn f31_the_public_address_learnt_at_first_is_kept_on_refresh() {
    let mut rewriting = punctual();
    rewriting.contact_rewriting = ContactRewriting::Mapped;
    let account = account().contact_user("alice").policy(rewriting);
    let mut sim = Sim::new(built(account));
    let public = address("203.0.113.7:1024");
    let first = sim.sent();
    sim.reply(&first, Reply::granted(600).seen_from(public));
    for _ in 0..5 {
        let refresh = next(&mut sim);
        assert_eq!(contacts(&refresh)[0], "<sip:alice@203.0.113.7:1024>");
        // This one fills in nothing.
        sim.reply(&refresh, Reply::granted(600));
        let lease = sim.status().lease.expect("a lease");
        assert_eq!(lease.mapped, Some(public));
    }
}

/// Where it was negotiated, Flow-Timer sets the pace and a missing pong ends the flow in 10 s; where it was not, a server
/// that never pongs keeps working.
#[test]
fn f38_a_missing_pong_counts_where_it_was_negotiated_and_flow_timer_sets_the_pace() {
    let registered = |reply: Reply| {
        let mut sim = Sim::new(built(at("sip:192.0.2.9;transport=tcp").policy(punctual())));
        let first = sim.sent();
        sim.reply(&first, reply);
        sim.events();
        sim
    };
    let mut sim = registered(Reply::granted(7200));
    sim.advance(secs(1800));
    assert!(sim.keep_alives().len() >= 15 && sim.events().is_empty());
    assert!(sim.status().is_reachable());

    let negotiated = Reply::granted(7200).header("Require", "outbound");
    let mut sim = registered(negotiated.header("Flow-Timer", "60"));
    sim.answer_keep_alives(Some(address("192.0.2.1:40001")));
    sim.advance(secs(1800));
    let kept = sim.keep_alives().len();
    assert!((30..=37).contains(&kept), "{kept} in half an hour");
    sim.answer_keep_alives(None);
    sim.advance(secs(70));
    assert_matches!(
        sim.events().first(),
        Some(Event::FlowLost {
            error: FlowError::KeepAliveUnanswered(_),
            ..
        })
    );
}
