//! Traps of the reference (BEHAVIOUR §10) that need a script of their own; `docs/conformance.md` lists all rows.

use assert_matches::assert_matches;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::sync::Arc;

use super::machine::{account, built, due, secs, under};

fn profiles() -> [Policy; 3] {
    [Policy::default(), Policy::persistent(), Policy::asterisk()]
}

/// Registers it for `seconds`, with whatever delay its profile has.
fn registered(registration: Registration, seconds: u32) -> Sim {
    let mut sim = Sim::new(registration);
    let register = due(&mut sim);
    sim.reply(&register, Reply::granted(seconds));
    assert_matches!(sim.events().last(), Some(Event::Registered(_)));
    sim
}

/// Row 6: a registrar may not send 6xx (RFC 3261 §10.3), so a proxy did, and it may pass; as 500 and 504.
#[test]
fn what_proxies_and_servers_fail_with_is_temporary_in_every_profile() {
    for policy in profiles() {
        for code in [500, 504, 600, 603, 604, 606] {
            let mut sim = Sim::new(under(policy.clone()));
            let register = due(&mut sim);
            sim.reply(&register, Reply::status(code));
            assert_matches!(
                sim.events().last(),
                Some(Event::Rejected {
                    class: FailureClass::Temporary,
                    attempt: 1,
                    ..
                }),
                "{code}"
            );
        }
    }
}

/// Row 10.
#[test]
fn an_un_register_that_fails_ends_it_and_registers_nothing() {
    for policy in profiles() {
        for reply in [Some(500), Some(403), Some(503), None] {
            let mut sim = registered(under(policy.clone()), 3600);
            sim.input(Input::Stop(secs(35)));
            let unregister = sim.sent();
            assert_eq!(unregister.text_of("Expires"), "0");
            if let Some(code) = reply {
                sim.reply(&unregister, Reply::status(code));
            }
            for _ in 0..200 {
                sim.advance(secs(60));
                for request in sim.all_sent() {
                    assert_eq!(request.text_of("Expires"), "0", "{reply:?}");
                }
            }
            assert_eq!(sim.status().activity, Activity::Idle);
            assert_eq!(sim.deadline(), None);
            // Its word is that of any failure, and it stays.
            assert_eq!(sim.status().reference_status(), ReferenceStatus::Rejected);
            let told = sim.events();
            let removals = told
                .iter()
                .filter(|event| matches!(event, Event::Unregistered(_)));
            assert_eq!(removals.count(), 1, "{told:?}");
        }
    }
}

/// A 2xx ends the binding to the reference, whatever the answer lists.
#[test]
fn an_un_register_that_is_only_pretended_is_unregistered_to_the_reference() {
    let mut sim = registered(under(Policy::asterisk()), 3600);
    sim.input(Input::Stop(secs(35)));
    let unregister = sim.sent();
    let ours = format!("{};expires=3000", unregister.text_of("Contact"));
    sim.reply(&unregister, Reply::status(200).header("Contact", &ours));
    let status = sim.status();
    assert_eq!(status.reference_status(), ReferenceStatus::Unregistered);
    assert!(status.is_registered(), "which is the truth");
}

/// Row 13: nothing that the first request has is missing in the repeat, nor in the answer to its challenge.
#[test]
fn the_repeat_after_a_423_is_a_full_request_and_its_credentials_too() {
    const ALL: [&str; 8] = [
        "Supported",
        "User-Agent",
        "Require",
        "Proxy-Require",
        "Security-Client",
        "X-Account",
        "Contact",
        "Allow",
    ];
    for policy in profiles() {
        let full = account()
            .policy(policy)
            .support_path(true)
            .user_agent("Hall/1")
            .security_negotiation(SecurityNegotiation::Mediasec)
            .security_mechanisms("sdes-srtp;mediasec")
            .allow(["OPTIONS"])
            .header("X-Account", "7")
            .expiration(secs(60));
        let mut sim = Sim::new(built(full));
        let first = due(&mut sim);
        assert_eq!(first.text_of("Expires"), "60");
        sim.reply(&first, Reply::status(423).header("Min-Expires", "300"));
        let repeat = sim.sent();
        sim.reply(&repeat, Reply::challenge("r", "n"));
        let answer = sim.sent();
        assert_ne!(answer.text_of("Authorization"), "");
        for request in [&repeat, &answer] {
            assert_eq!(request.text_of("Expires"), "300");
            for name in ALL {
                assert_ne!(first.text_of(name), "", "{name}");
                assert_eq!(request.text_of(name), first.text_of(name), "{name}");
            }
        }
        // Also where the registrar had granted just that before (the reference then sends none at all).
        sim.reply(&answer, Reply::granted(300));
        assert_eq!(due(&mut sim).text_of("Expires"), "300");
    }
}

/// Row 23.
#[test]
fn support_outbound_alone_puts_nothing_into_the_contact() {
    for policy in profiles() {
        let mut sim = Sim::new(built(account().policy(policy).support_outbound(true)));
        let register = due(&mut sim);
        assert_eq!(register.text_of("Supported"), "outbound");
        assert_eq!(register.text_of("Contact"), "<sip:s@192.0.2.1:5060>");
    }
}

/// Row 24.
#[test]
fn routes_identities_and_gruus_of_a_grant_are_told_in_order() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    let contact = format!(
        "{};expires=600;pub-gruu=\"sip:a@example.com;gr=1\";temp-gruu=\"sip:t1@example.com;gr\"",
        register.text_of("Contact")
    );
    let reply = Reply::status(200)
        .header("Contact", &contact)
        .header("Service-Route", "<sip:a.example;lr>, <sip:b.example;lr>")
        .header("Service-Route", "<sip:c.example;lr>")
        .header("Path", "<sip:p.example;lr;ob>")
        .header(
            "P-Associated-URI",
            "<sip:a@example.com>, \"B, C\" <tel:+15551234>",
        );
    sim.reply(&register, reply);
    let events = sim.events();
    let Some(Event::Registered(told)) = events.last() else {
        panic!("{events:?}");
    };
    assert_eq!(
        *told.service_route,
        [
            "<sip:a.example;lr>",
            "<sip:b.example;lr>",
            "<sip:c.example;lr>"
        ]
    );
    assert_eq!(*told.path, ["<sip:p.example;lr;ob>"]);
    assert_eq!(
        *told.associated_uris,
        ["<sip:a@example.com>", "\"B, C\" <tel:+15551234>"]
    );
    assert_eq!(told.public_gruu.as_deref(), Some("sip:a@example.com;gr=1"));
    assert_eq!(
        told.temporary_gruu.as_deref(),
        Some("sip:t1@example.com;gr")
    );
}

/// Row 26: with the same Contact a slow un-REGISTER would remove the new binding.
#[test]
fn a_replaced_registration_is_removed_before_it_registers_again() {
    for policy in profiles() {
        for reply in [Some(200), Some(500), None] {
            let mut sim = registered(under(policy.clone()), 3600);
            let moved = account()
                .policy(policy.clone())
                .contact_user("hall")
                .max_random_initial_delay(secs(0));
            sim.input(Input::Reconfigure(Arc::new(built(moved))));
            let unregister = sim.sent();
            assert_eq!(unregister.text_of("Expires"), "0");
            assert!(unregister.text_of("Contact").starts_with("<sip:s@"));
            sim.advance(secs(20));
            for copy in sim.all_sent() {
                assert_eq!(copy.text_of("CSeq"), unregister.text_of("CSeq"));
            }
            if let Some(code) = reply {
                sim.reply(&unregister, Reply::status(code));
            }
            let register = loop {
                let request = due(&mut sim);
                if request.text_of("Expires") != "0" {
                    break request;
                }
            };
            assert_eq!(register.text_of("Expires"), "3600", "{reply:?}");
            assert!(register.text_of("Contact").starts_with("<sip:hall@"));
        }
    }
}

/// Row 29: another connection, another Contact; an answer that lists both grants what the new one has.
#[test]
fn a_contact_is_compared_with_what_was_sent_last() {
    let over_tcp = Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
        .max_random_initial_delay(secs(0));
    let mut sim = Sim::registered(built(over_tcp), secs(3600));
    sim.advance(secs(60));
    let flow = sim.pool().flow(sim.id()).expect("a flow");
    sim.fail_flow(flow, FlowError::Reset);
    let again = due(&mut sim);
    let [new, old] = [40002, 40001].map(|port| format!("<sip:s@192.0.2.1:{port};transport=TCP>"));
    assert!(again.text_of("Contact").contains(&new));
    let reply = Reply::status(200)
        .header("Contact", &format!("{old};expires=3500"))
        .header("Contact", &format!("{new};expires=120"));
    sim.reply(&again, reply);
    let lease = sim.status().lease.expect("a binding");
    assert_eq!((lease.granted, lease.confirmed), (secs(120), true));
}

fn following(max: u8) -> Policy {
    let mut policy = Policy::default();
    policy.redirects = Redirects::Follow { max };
    policy
}

/// Row 33.
#[test]
fn a_redirection_is_fatal_unless_it_is_to_be_followed_and_then_ends() {
    let redirect = Reply::status(302)
        .header("Contact", "<sip:192.0.2.10>;q=0.2, <sip:192.0.2.11>;q=0.7")
        .header("Contact", "<sip:192.0.2.12>;q=0.5");
    for policy in profiles() {
        let fatal = policy.retry.fatal_retry_interval;
        let mut sim = Sim::new(under(policy));
        let register = due(&mut sim);
        sim.reply(&register, redirect.clone());
        assert!(sim.is_silent());
        match sim.events().last() {
            Some(Event::GaveUp { class, .. }) => {
                assert_eq!((*class, fatal), (FailureClass::Fatal, secs(0)));
            }
            Some(Event::Rejected { class, .. }) => {
                assert_eq!(*class, FailureClass::Fatal);
                assert!(fatal > secs(0));
            }
            other => panic!("{other:?}"),
        }
    }

    // The greatest q first (RFC 3261 §8.1.3.4); the Request-URI stays, and what was answered elsewhere is not shown.
    let mut sim = Sim::new(under(following(2)));
    let first = sim.sent();
    sim.reply(&first, Reply::challenge("r", "n"));
    let answer = sim.sent();
    assert_ne!(answer.text_of("Authorization"), "");
    sim.reply(&answer, redirect.clone());
    let second = sim.sent();
    assert_eq!(second.target().address().to_string(), "192.0.2.11:5060");
    assert_eq!(second.uri(), "sip:192.0.2.9");
    assert_eq!(second.text_of("Authorization"), "");
    sim.reply(&second, redirect.clone());
    let third = sim.sent();
    sim.reply(&third, redirect);
    assert!(sim.is_silent(), "two redirections and no more");
    assert_matches!(sim.events().last(), Some(Event::GaveUp { .. }));
}

/// D27: also where the attempt ends without an answer of its own.
#[test]
fn a_used_up_budget_and_a_blocked_account_have_the_last_exchange() {
    let mut sim = Sim::new(under(Policy::default()));
    let mut last = sim.sent();
    for least in 1..6 {
        let least = (3600 + least * 60).to_string();
        sim.reply(&last, Reply::status(423).header("Min-Expires", &least));
        last = sim.sent();
    }
    sim.reply(&last, Reply::status(423).header("Min-Expires", "4200"));
    assert!(sim.is_silent());
    let events = sim.events();
    let Some(Event::Rejected {
        failure: Failure::Budget,
        exchange: Some(told),
        ..
    }) = events.last()
    else {
        panic!("{events:?}");
    };
    assert_eq!(format!("{} REGISTER", told.cseq), last.text_of("CSeq"));
    assert!(told.status_line.starts_with("SIP/2.0 423"));

    // Three of one account are refused; the fourth is challenged, and not let through.
    let mut sim = Sim::many((0..4).map(|_| under(Policy::default())));
    let requests = sim.all_sent();
    for request in &requests[..3] {
        sim.reply(request, Reply::challenge("r", "n"));
        let answer = sim.sent();
        sim.reply(&answer, Reply::challenge("r", "n2"));
    }
    sim.all_events();
    sim.reply(&requests[3], Reply::challenge("r", "n"));
    let events = sim.all_events();
    let Some((
        _,
        Event::GaveUp {
            failure: Failure::CredentialsRefused { .. },
            exchange: Some(told),
            ..
        },
    )) = events.last()
    else {
        panic!("{events:?}");
    };
    assert!(told.status_line.starts_with("SIP/2.0 401"));
}

/// D27.
#[test]
fn an_outcome_has_what_a_support_ticket_needs() {
    let mut sim = Sim::new(under(Policy::default()));
    let register = sim.sent();
    let seen_from = "192.0.2.1:5060".parse().expect("an address");
    let reply = Reply::status(500)
        .header("Warning", "399 sbc \"no route\"")
        .header("Reason", "Q.850;cause=38")
        .header("Server", "Box/7")
        .seen_from(seen_from);
    sim.reply(&register, reply);
    let events = sim.events();
    let Some(Event::Rejected {
        exchange: Some(told),
        ..
    }) = events.last()
    else {
        panic!("{events:?}");
    };
    assert_eq!(*told.call_id, *register.text_of("Call-ID"));
    assert_eq!(format!("{} REGISTER", told.cseq), register.text_of("CSeq"));
    assert!(register.text_of("Via").contains(&*told.branch));
    let target = told.target.as_ref().expect("a target");
    assert_eq!(target, register.target());
    assert_eq!(told.local, Some(seen_from));
    assert!(told.status_line.starts_with("SIP/2.0 500"));
    assert_eq!(told.warning.as_deref(), Some("399 sbc \"no route\""));
    assert_eq!(told.reason.as_deref(), Some("Q.850;cause=38"));
    assert_eq!(told.server.as_deref(), Some("Box/7"));
}
