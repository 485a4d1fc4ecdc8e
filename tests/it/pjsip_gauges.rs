//! The statsd gauges of the reference: what adds up is what `pjsip show registrations` lists, whatever happens.

use sip_registration::pjsip_conf::Gauges;
use sip_registration::testkit::{Reply, Sim};
use sip_registration::{
    Credentials, FlowError, Input, Policy, ReferenceStatus, Registration, RegistrationId,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// A statsd server: `NAME:0|g` sets, a sign changes.
#[derive(Debug, Default)]
struct Server(BTreeMap<String, i64>);

impl Server {
    fn take(&mut self, lines: Vec<String>) {
        for line in lines {
            let (name, value) = line.split_once(':').expect("a name");
            let value = value.strip_suffix("|g").expect("a gauge");
            let number: i64 = value.parse().expect("a number");
            let gauge = self.0.entry(name.to_owned()).or_default();
            *gauge = match value.starts_with(['+', '-']) {
                true => *gauge + number,
                false => number,
            };
        }
    }

    fn reads(&self) -> (i64, [i64; 3]) {
        let gauge = |name: &str| {
            let known = self.0.get(&format!("PJSIP.registrations.{name}"));
            *known.expect("all four are there from the start")
        };
        let state = |state: &str| gauge(&format!("state.{state}"));
        let states = ["Registered", "Unregistered", "Rejected"].map(state);
        (gauge("count"), states)
    }
}

fn account(user: &str) -> Registration {
    Registration::builder("sip:192.0.2.9", format!("sip:{user}@example.com"))
        .policy(Policy::asterisk())
        .contact_user(user)
        .outbound_auth(Credentials::password(user, "s3cr3t"))
        .retry_interval(Duration::from_secs(5))
        .max_retries(1)
        .max_random_initial_delay(Duration::ZERO)
        .build()
        .expect("in order")
}

struct Script {
    sim: Sim,
    gauges: Gauges,
    server: Server,
}

impl Script {
    /// Feeds what has happened, and compares with what the registrations say themselves.
    fn reads(&mut self) -> (i64, [i64; 3]) {
        for (id, event) in self.sim.all_events() {
            let lines = self.gauges.event(id, &event);
            self.server.take(lines);
        }
        let reads = self.server.reads();
        let statuses = self.sim.with(|pool, _| {
            let ids: Vec<RegistrationId> = pool.ids().collect();
            ids.into_iter()
                .filter_map(|id| Some(pool.status(id)?.reference_status()))
                .collect::<Vec<_>>()
        });
        let count = |state| {
            let found = statuses.iter().filter(|status| **status == state).count();
            i64::try_from(found).expect("few")
        };
        use ReferenceStatus::{Registered, Rejected, Unregistered};
        let expected = [Registered, Unregistered, Rejected].map(count);
        assert_eq!(reads.1, expected);
        reads
    }

    fn reply(&mut self, reply: impl Into<Reply>) {
        let request = self.sim.sent();
        self.sim.reply(&request, reply);
    }
}

#[test]
fn the_gauges_add_up_to_what_the_registrations_say() {
    let mut server = Server::default();
    server.take(Gauges::zeros());
    assert_eq!(server.reads(), (0, [0, 0, 0]));
    let mut script = Script {
        sim: Sim::many([account("alice")]),
        gauges: Gauges::new(),
        server,
    };
    let alice = script.sim.id();
    let lines = script.gauges.only([alice]);
    script.server.take(lines);
    assert_eq!(script.reads(), (1, [0, 1, 0]));

    script.sim.advance(Duration::from_secs(1));
    script.reply(Reply::granted(3600));
    assert_eq!(script.reads(), (1, [1, 0, 0]));
    // A refresh changes nothing, and a lost flow does not either.
    script.sim.input(Input::Refresh);
    script.reply(Reply::granted(3600));
    assert_eq!(script.reads(), (1, [1, 0, 0]));
    let flow = script.sim.status().lease.and_then(|lease| lease.flow);
    script
        .sim
        .fail_flow(flow.expect("it is up"), FlowError::Reset);
    assert_eq!(script.reads(), (1, [1, 0, 0]));

    // Rejected for a while, then for good: the same word.
    script.sim.input(Input::Refresh);
    script.reply(503);
    assert_eq!(script.reads(), (1, [0, 0, 1]));
    script.sim.advance(Duration::from_secs(5));
    script.reply(403);
    assert_eq!(script.reads(), (1, [0, 0, 1]));

    // A grant of no time.
    script.sim.input(Input::Refresh);
    script.reply(Reply::granted(0));
    assert_eq!(script.reads(), (1, [0, 1, 0]));
    script.sim.advance(Duration::from_secs(5));
    script.reply(Reply::granted(3600));
    assert_eq!(script.reads(), (1, [1, 0, 0]));

    // An un-REGISTER that is refused is a failure like any other; one that is taken is the end.
    script.sim.input(Input::Stop(Duration::from_secs(30)));
    script.reply(403);
    assert_eq!(script.reads(), (1, [0, 0, 1]));
    script.sim.input(Input::Stop(Duration::from_secs(30)));
    script.reply(Reply::granted(0));
    assert_eq!(script.reads(), (1, [0, 1, 0]));

    // A second one, which is rejected for good before it was ever bound.
    let bob = script.sim.add(account("bob"));
    let lines = script.gauges.created(bob);
    script.server.take(lines);
    assert_eq!(script.reads(), (2, [0, 2, 0]));
    script.sim.advance(Duration::from_secs(1));
    script.reply(404);
    assert_eq!(script.reads(), (2, [0, 1, 1]));
    // To stop it sends nothing and is told by no event, but by its status.
    script.sim.remove(bob, Duration::from_secs(30));
    assert!(script.sim.is_silent());
    let lines = script.gauges.destroyed(bob);
    assert_eq!(
        lines,
        [
            "PJSIP.registrations.count:-1|g",
            "PJSIP.registrations.state.Rejected:-1|g"
        ]
    );
    script.server.take(lines);
    assert_eq!(script.reads(), (1, [0, 1, 0]));
    assert_eq!(script.gauges.destroyed(bob), [""; 0]);

    let lines = script.gauges.only([]);
    script.server.take(lines);
    assert_eq!(script.server.reads(), (0, [0, 0, 0]));
}

#[test]
fn a_status_that_no_event_tells_is_caught_up_with() {
    let mut gauges = Gauges::new();
    let id = RegistrationId::from_parts(3, 1);
    assert_eq!(
        gauges.stands(id, ReferenceStatus::Rejected),
        [
            "PJSIP.registrations.count:+1|g",
            "PJSIP.registrations.state.Unregistered:+1|g",
            "PJSIP.registrations.state.Unregistered:-1|g",
            "PJSIP.registrations.state.Rejected:+1|g",
        ]
    );
    assert_eq!(gauges.stands(id, ReferenceStatus::Rejected), [""; 0]);
    assert_eq!(
        gauges.stands(id, ReferenceStatus::Unregistered),
        [
            "PJSIP.registrations.state.Rejected:-1|g",
            "PJSIP.registrations.state.Unregistered:+1|g",
        ]
    );
}
