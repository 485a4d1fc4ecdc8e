//! What the options of a loaded `pjsip.conf` do on the wire, where the reference (BEHAVIOUR §5–§7) says it.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::time::Duration;

use super::machine::{due, secs};
use super::rules_file::section;

/// BEHAVIOUR §5: `register` reads the options anew. What a registrar asked for before is no matter any more, nor what had
/// failed.
#[test]
fn register_forgets_what_the_registrar_had_asked_for() {
    let lines = "server_uri=sip:192.0.2.9\nmax_retries=1\nsecurity_negotiation=mediasec\n\
                 security_mechanisms=sdes-srtp\\;mediasec\noutbound_auth=own\n";
    let mut sim = Sim::new(section(lines));
    let brief = due(&mut sim);
    sim.reply(&brief, Reply::status(423).header("Min-Expires", "7200"));
    let repeat = sim.sent();
    let challenge = Reply::challenge("r", "n").header("Security-Server", "sdes-srtp;mediasec");
    sim.reply(&repeat, challenge.clone());
    let answer = sim.sent();
    assert_eq!(answer.text_of("Security-Verify"), "sdes-srtp;mediasec");
    sim.reply(&answer, Reply::granted(7200));
    let refresh = due(&mut sim);
    assert_eq!(refresh.text_of("Expires"), "7200");
    sim.reply(&refresh, Reply::status(500));
    assert_eq!(sim.status().retries, 1);

    sim.input(Input::Reregister);
    let unregister = sim.sent();
    assert_eq!(unregister.text_of("Expires"), "0");
    sim.reply(&unregister, Reply::status(200));
    assert!(sim.is_silent(), "it has the delay of a first one");
    let register = due(&mut sim);
    assert_eq!(register.text_of("Expires"), "3600");
    // Rejected again before the server has said what it wants: there is nothing to verify.
    sim.reply(&register, Reply::status(500));
    assert_eq!(
        sim.status().retries,
        1,
        "and not the second, which is the end"
    );
    assert_eq!(due(&mut sim).text_of("Security-Verify"), "");

    // One that was never bound has nothing to remove, and is as new too.
    let mut sim = Sim::new(section("server_uri=sip:192.0.2.9\nmax_retries=1\n"));
    for _ in 0..2 {
        let register = due(&mut sim);
        sim.reply(&register, Reply::status(500));
        assert_eq!(sim.status().retries, 1);
        sim.input(Input::Reregister);
    }
    assert_eq!(due(&mut sim).text_of("Expires"), "3600");
}

/// BEHAVIOUR §6: of several `auth` sections the first of the realm, in any case, else the first for any realm.
#[test]
fn of_several_auth_sections_the_first_that_fits_is_used() {
    let auth = |name: &str, realm: &str| {
        format!("[{name}]\ntype=auth\nusername={name}\npassword=p\nrealm={realm}\n")
    };
    let auths = auth("any", "") + &auth("star", "*") + &auth("x", "x") + &auth("upper", "X");
    for (listed, realm, user) in [
        ("any,star,x,upper", "x", Some("x")),
        ("any,upper,x", "x", Some("upper")),
        ("x,star,any", "other", Some("star")),
        ("x,any,star", "other", Some("any")),
        ("x,upper", "other", None),
    ] {
        let lines = format!("server_uri=sip:192.0.2.9\noutbound_auth={listed}\n{auths}");
        let mut sim = Sim::new(section(&lines));
        let register = due(&mut sim);
        sim.reply(&register, Reply::challenge(realm, "n"));
        let answers = sim.all_sent();
        let answer = answers.first().map(|one| one.text_of("Authorization"));
        let wanted = user.map(|user| format!("username=\"{user}\", realm=\"{realm}\""));
        assert_eq!(answer.is_some(), wanted.is_some(), "{listed}");
        let answer = answer.unwrap_or_default();
        assert!(
            answer.contains(&wanted.unwrap_or_default()),
            "{listed}: {answer}"
        );
    }
}

/// BEHAVIOUR §7: the server's list is that of its challenges, not of a 200; the last one is in force.
#[test]
fn what_is_verified_is_the_list_of_the_last_challenge() {
    let mut sim = Sim::new(section(
        "server_uri=sip:192.0.2.9\noutbound_auth=own\nsecurity_negotiation=mediasec\n\
         security_mechanisms=sdes-srtp\\;mediasec\n",
    ));
    let listing = |reply: Reply, list: &str| reply.header("Security-Server", list);
    let mut verified = Vec::new();
    for (nth, list) in ["a;q=0.1, b;mediasec", "c"].into_iter().enumerate() {
        let register = due(&mut sim);
        assert_eq!(
            register.text_of("Security-Verify"),
            "",
            "not before it is asked"
        );
        sim.reply(
            &register,
            listing(Reply::challenge("r", &format!("n{nth}")), list),
        );
        let answer = sim.sent();
        let lines = answer.text();
        let lines = lines
            .lines()
            .filter_map(|line| line.strip_prefix("Security-Verify: "));
        verified.push(lines.map(str::to_owned).collect::<Vec<_>>());
        sim.reply(&answer, listing(Reply::granted(600), "d;mediasec"));
    }
    assert_eq!(verified, [vec!["a;q=0.1", "b;mediasec"], vec!["c"]]);
    // A failure, and the list is repeated.
    let refresh = due(&mut sim);
    sim.reply(&refresh, Reply::status(500));
    assert_eq!(due(&mut sim).text_of("Security-Verify"), "c");
}

/// `timer_t1` and `timer_b` are those of every transaction; a connection may take `timer_b` too.
#[test]
fn the_timers_of_the_file_are_those_of_its_transactions() {
    let with = |server: &str| {
        section(&format!(
            "server_uri={server}\n[tcp]\ntype=transport\nprotocol=tcp\nbind=0.0.0.0\n\
             [system]\ntype=system\ntimer_t1=200\ntimer_b=13000\n"
        ))
    };
    let mut sim = Sim::new(with("sip:192.0.2.9"));
    due(&mut sim);
    let start = sim.elapsed();
    let mut at = Vec::new();
    while sim.status().last_failure.is_none() {
        let next = sim.deadline().expect("it waits for an answer");
        sim.advance(next);
        let elapsed = (sim.elapsed() - start).as_millis();
        at.extend(sim.all_sent().iter().map(|_| elapsed));
    }
    assert_eq!(at, [200, 600, 1400, 3000, 6200, 10_200]);
    assert_eq!(sim.elapsed() - start, Duration::from_secs(13));

    let mut sim = Sim::new(with("sip:192.0.2.9\\;transport=tcp"));
    sim.stall_opens(true);
    let first = sim.deadline().expect("a delay");
    sim.advance(first);
    let start = sim.elapsed();
    assert_eq!(sim.opening().len(), 1);
    sim.advance(Duration::from_millis(12_999));
    assert_eq!(sim.status().last_failure, None);
    sim.advance(Duration::from_millis(1));
    assert_matches!(sim.status().last_failure, Some(Failure::Flow(_)));
    assert_eq!(sim.elapsed() - start, secs(13));

    // T1 over the usual T2 of 4 s moves that.
    let slow =
        section("server_uri=sip:192.0.2.9\n[system]\ntype=system\ntimer_t1=5000\ntimer_b=320000\n");
    assert_eq!(slow.policy().timers.t2, secs(5));
}

/// `keep_alive_interval` of `global` is when CRLFCRLF goes out on a connection; 0 is never.
#[test]
fn the_keep_alive_interval_of_the_file_is_that_of_its_connections() {
    for (lines, interval) in [
        ("", Some(90)),
        ("keep_alive_interval=30\n", Some(30)),
        ("keep_alive_interval=0\n", None),
    ] {
        let mut sim = Sim::new(section(&format!(
            "server_uri=sip:192.0.2.9\\;transport=tcp\n[tcp]\ntype=transport\nprotocol=tcp\nbind=0.0.0.0\n\
             [global]\ntype=global\n{lines}"
        )));
        let register = due(&mut sim);
        sim.reply(&register, Reply::granted(600));
        let start = sim.elapsed();
        sim.advance(secs(300));
        let kept = sim.keep_alives();
        let at: Vec<_> = kept.iter().map(|one| (one.at - start).as_secs()).collect();
        let wanted = interval.map(|seconds| (1..=300 / seconds).map(move |nth| nth * seconds));
        let wanted: Vec<u64> = wanted.into_iter().flatten().collect();
        assert_eq!(at, wanted, "{lines}");
    }
}

/// All routes go into every request, in their order; the first one without `lr` gets the Request-URI, and the registrar the
/// last route.
#[test]
fn each_route_of_a_file_is_in_each_request() {
    let routes = |request: &SentRequest| -> Vec<String> {
        let text = request.text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("Route: "));
        lines
            .flat_map(|line| line.split(", "))
            .map(str::to_owned)
            .collect()
    };
    for (first, uri, last) in [
        (
            "sip:192.0.2.20\\;lr",
            "sip:192.0.2.9",
            "<sip:192.0.2.21;lr>",
        ),
        ("sip:192.0.2.20", "sip:192.0.2.20", "<sip:192.0.2.9>"),
    ] {
        let mut sim = Sim::new(section(&format!(
            "server_uri=sip:192.0.2.9\noutbound_proxy=<{first}>, <sip:192.0.2.21\\;lr>\noutbound_auth=own\n"
        )));
        let strict = uri != "sip:192.0.2.9";
        let wanted = match strict {
            true => ["<sip:192.0.2.21;lr>", last],
            false => ["<sip:192.0.2.20;lr>", last],
        };
        let register = due(&mut sim);
        assert_eq!(
            (&*register.uri(), routes(&register)),
            (uri, wanted.map(str::to_owned).to_vec())
        );
        assert_eq!(register.target().address().to_string(), "192.0.2.20:5060");
        sim.reply(&register, Reply::challenge("r", "n"));
        let answer = sim.sent();
        assert!(
            answer
                .text_of("Authorization")
                .contains(&format!("uri=\"{uri}\""))
        );
        assert_eq!(routes(&answer), wanted);
        sim.reply(&answer, Reply::granted(600));
        sim.input(Input::Stop(secs(30)));
        assert_eq!(routes(&sim.sent()), wanted);
    }
}
