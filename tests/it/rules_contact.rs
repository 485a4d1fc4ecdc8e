//! D18: a Contact that changes takes the old one along, and what is removed is what was bound.

use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::time::Duration;

fn over_tcp() -> Sim {
    let account = Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
        .max_random_initial_delay(Duration::ZERO);
    Sim::registered(
        account.build().expect("a good configuration"),
        Duration::from_secs(3600),
    )
}

fn contacts(request: &SentRequest) -> Vec<String> {
    request
        .values("Contact")
        .map(|value| value.into_owned())
        .collect()
}

fn lose_flow(sim: &mut Sim) {
    sim.advance(Duration::from_secs(60));
    let flow = sim.pool().flow(sim.id()).expect("a flow");
    sim.fail_flow(flow, FlowError::Reset);
    sim.advance(Duration::from_secs(1));
}

#[test]
fn after_a_lost_connection_the_old_contact_goes_with_the_same_register() {
    let mut sim = over_tcp();
    lose_flow(&mut sim);
    let again = sim.sent();
    assert_eq!(
        contacts(&again),
        [
            "<sip:s@192.0.2.1:40002;transport=TCP>",
            "<sip:s@192.0.2.1:40001;transport=TCP>;expires=0"
        ]
    );
    assert_eq!(again.text_of("Expires"), "3600");
    let reply = Reply::status(200).header(
        "Contact",
        "<sip:s@192.0.2.1:40002;transport=TCP>;expires=3600",
    );
    sim.reply(&again, reply);
    sim.input(Input::Refresh);
    assert_eq!(
        contacts(&sim.sent()),
        ["<sip:s@192.0.2.1:40002;transport=TCP>"]
    );
}

#[test]
fn a_registrar_that_refuses_two_contacts_gets_the_new_one_alone_and_is_remembered() {
    for code in [400, 403, 413, 500] {
        let mut sim = over_tcp();
        lose_flow(&mut sim);
        let both = sim.sent();
        assert_eq!(contacts(&both).len(), 2);
        sim.reply(&both, Reply::status(code));
        let alone = sim.sent();
        assert_eq!(
            contacts(&alone),
            ["<sip:s@192.0.2.1:40002;transport=TCP>"],
            "{code}"
        );
        sim.reply(&alone, Reply::granted(3600));
        lose_flow(&mut sim);
        assert_eq!(
            contacts(&sim.sent()),
            ["<sip:s@192.0.2.1:40003;transport=TCP>"],
            "{code}"
        );
    }
}

#[test]
fn an_unregister_over_a_new_connection_names_the_contact_that_was_bound() {
    let mut sim = over_tcp();
    let flow = sim.pool().flow(sim.id()).expect("a flow");
    sim.advance(Duration::from_secs(60));
    sim.fail_flow(flow, FlowError::Closed);
    sim.input(Input::Stop(Duration::from_secs(35)));
    let unregister = sim.sent();
    assert_eq!(unregister.text_of("Expires"), "0");
    assert_eq!(
        contacts(&unregister),
        ["<sip:s@192.0.2.1:40001;transport=TCP>"]
    );
}

#[test]
fn a_contact_whose_register_was_never_answered_is_removed_too() {
    let mut sim = over_tcp();
    lose_flow(&mut sim);
    let lost = sim.sent();
    // The connection dies with the request in flight; the registrar may have bound it.
    sim.fail_flow(lost.flow(), FlowError::Reset);
    while sim.is_silent() {
        let next = sim.deadline().expect("a plan");
        sim.advance(next);
    }
    let next = sim.sent();
    assert_eq!(contacts(&next).len(), 3, "{}", next.text());
    sim.reply(&next, Reply::granted(3600));
    sim.input(Input::Stop(Duration::from_secs(35)));
    assert_eq!(contacts(&sim.sent()).len(), 1);
}

#[test]
fn instance_and_reg_id_leave_the_old_contact_to_the_registrar() {
    let account = Registration::builder("sip:192.0.2.9;transport=tcp", "sip:alice@example.com")
        .contact_header_params(
            "reg-id=1;+sip.instance=\"<urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6>\"",
        )
        .max_random_initial_delay(Duration::ZERO);
    let mut sim = Sim::registered(
        account.build().expect("a good configuration"),
        Duration::from_secs(3600),
    );
    lose_flow(&mut sim);
    assert_eq!(contacts(&sim.sent()).len(), 1);
}
