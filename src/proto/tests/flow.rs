//! The table by itself: who shares a flow, what a failed one leads to, what an idle one costs.

use super::*;
use crate::KeepAlivePolicy;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can be had no other way; only differences matter"
)]
fn start() -> Instant {
    Instant::now()
}

struct Script {
    table: FlowTable,
    entropy: Entropy,
    now: Instant,
    ops: u32,
}

impl Script {
    fn new() -> Self {
        Self {
            table: FlowTable::new([1, 2, 3, 4]),
            entropy: Entropy::from_seed([3; 32]),
            now: start(),
            ops: 0,
        }
    }

    fn wish(port: u16) -> Wish {
        Wish {
            key: FlowKey {
                transport: None,
                protocol: Protocol::Tcp,
                address: SocketAddr::from(([192, 0, 2, 9], port)),
                host: None,
            },
            prefer: None,
            fresh: false,
            within: secs(8),
            another_is_up: false,
        }
    }

    fn asker(&mut self) -> Asker {
        self.ops += 1;
        Asker {
            id: RegistrationId::from_parts(self.ops, 0),
            op: OpId::new(self.ops),
        }
    }

    fn ask(&mut self, wish: Wish) -> Asked {
        let asker = self.asker();
        self.table.ask(self.now, &mut self.entropy, asker, wish)
    }

    fn make(&mut self, port: u16) -> FlowId {
        match self.ask(Self::wish(port)) {
            Asked::Make(flow) => flow,
            other => panic!("{other:?}"),
        }
    }

    fn up(&mut self, port: u16) -> FlowId {
        let flow = self.make(port);
        let info = FlowInfo::new(
            Protocol::Tcp,
            SocketAddr::from(([192, 0, 2, 1], 40_000)),
            SocketAddr::from(([192, 0, 2, 9], port)),
        );
        self.table.opened(flow, Arc::new(info));
        self.table.join(flow, (1, 0));
        flow
    }

    fn refuse(&mut self, port: u16) -> Duration {
        self.refuse_while(port, false)
    }

    fn refuse_while(&mut self, port: u16, another_is_up: bool) -> Duration {
        let flow = self.make(port);
        let error = FlowError::Refused;
        let told = self
            .table
            .not_made(self.now, &mut self.entropy, flow, &error, |_| another_is_up);
        assert_eq!(told.len(), 1);
        told[0].1.retry_in
    }
}

#[test]
fn one_flow_is_made_for_all_who_ask_and_all_are_told() {
    let mut script = Script::new();
    let flow = script.make(5060);
    for _ in 0..9 {
        assert!(matches!(script.ask(Script::wish(5060)), Asked::Waits));
    }
    assert!(matches!(script.ask(Script::wish(5070)), Asked::Make(_)));
    let error = FlowError::Refused;
    let told = script
        .table
        .not_made(script.now, &mut script.entropy, flow, &error, |_| false);
    assert_eq!(told.len(), 10);
    // Those who come right after are told the same, without another try.
    assert!(matches!(script.ask(Script::wish(5060)), Asked::Failed(_)));
    script.now += secs(1);
    assert!(matches!(script.ask(Script::wish(5060)), Asked::Make(_)));
}

#[test]
fn d13_a_flow_that_cannot_be_made_waits_longer_and_longer() {
    let mut script = Script::new();
    for failures in 1..10_u32 {
        let longest = (30.0 * f64::from(1 << failures.min(6))).min(1800.0);
        let wait = script.refuse(5060);
        let spread = 0.01;
        assert!(
            (longest / 2.0..=longest + spread).contains(&wait.as_secs_f64()),
            "{failures}: {wait:?}"
        );
        // Whoever tries before then learns nothing new.
        script.now += secs(2);
        let rest = script.refuse(5060);
        assert!(rest <= wait && rest + secs(3) >= wait, "{wait:?} {rest:?}");
        script.now += wait;
    }
    // One that comes up, and keeps a registration, is as new.
    let flow = script.up(5060);
    let (policy, terms) = (KeepAlivePolicy::default(), KeepAliveTerms::default());
    script
        .table
        .granted(script.now, &mut script.entropy, flow, &policy, terms);
    script.table.end(flow);
    let wait = script.refuse(5060);
    assert!((15.0..=60.01).contains(&wait.as_secs_f64()), "{wait:?}");
}

#[test]
fn d13_while_another_flow_is_up_the_base_is_ninety_seconds() {
    let mut script = Script::new();
    // Somebody else's flow is not another one of this registration.
    script.up(5070);
    let wait = script.refuse(5060).as_secs_f64();
    assert!((30.0..=60.01).contains(&wait), "{wait}");
    let wait = script.refuse_while(5061, true).as_secs_f64();
    assert!((90.0..=180.01).contains(&wait), "{wait}");
}

#[test]
fn a_flow_that_must_answer_keep_alives_is_good_once_it_did() {
    let mut script = Script::new();
    let first = script.refuse(5060);
    script.now += first;
    let second = script.refuse(5060);
    script.now += second;
    let flow = script.up(5060);
    let policy = KeepAlivePolicy::default();
    let terms = KeepAliveTerms {
        negotiated: true,
        interval: None,
    };
    script
        .table
        .granted(script.now, &mut script.entropy, flow, &policy, terms);
    assert_eq!(script.table.failed.len(), 1);
    script.table.pong(flow);
    assert!(script.table.failed.is_empty());
}

#[test]
fn a_flow_that_is_not_made_in_time_has_failed() {
    let mut script = Script::new();
    let flow = script.make(5060);
    assert_eq!(script.table.deadline(), Some(script.now + secs(8)));
    script.now += secs(8);
    let due = script.table.due(script.now, &mut script.entropy);
    let Some((of, TableDue::NotMade(FlowError::ConnectTimeout(within)))) = due else {
        panic!("{due:?}");
    };
    assert_eq!((of, within), (flow, secs(8)));
}

#[test]
fn a_flow_without_users_is_gone_and_leaves_nothing() {
    let mut script = Script::new();
    let flow = script.up(5060);
    script.table.join(flow, (1, 7));
    assert!(!script.table.leave(flow, (1, 0)));
    assert!(script.table.leave(flow, (1, 7)));
    let other = script.make(5070);
    let asker = Asker {
        id: RegistrationId::from_parts(script.ops, 0),
        op: OpId::new(script.ops),
    };
    assert_eq!(script.table.cancel(asker), [other]);
    let table = &script.table;
    assert!(table.flows.is_empty() && table.by_key.is_empty() && table.by_address.is_empty());
    assert!(table.opening.is_empty() && table.deadlines.is_empty() && table.failed.is_empty());
}

#[test]
fn an_idle_flow_has_one_deadline_however_many_ride_on_it() {
    let mut script = Script::new();
    let flow = script.up(5060);
    let policy = KeepAlivePolicy::default();
    for slot in 0..100_000 {
        script.table.join(flow, (slot % 7, slot));
        let terms = KeepAliveTerms::default();
        script
            .table
            .granted(script.now, &mut script.entropy, flow, &policy, terms);
    }
    assert_eq!(script.table.deadlines.len(), 1);
    assert_eq!(script.table.end(flow).len(), 100_000);
}

#[test]
fn failures_of_targets_that_are_gone_are_forgotten() {
    let mut script = Script::new();
    for port in 1..2000 {
        script.refuse(port);
        script.now += secs(60);
    }
    let kept = script.table.failed.len();
    // 1800 s and the longest first wait, at one a minute, and as many again before they are looked for.
    assert!(kept < 128, "{kept}");
}

#[test]
fn the_branch_of_a_keep_alive_names_its_flow_and_no_registration() {
    let mut entropy = Entropy::from_seed([1; 32]);
    let branch = branch("0123abcd", FlowId::new(77), &mut entropy);
    assert_eq!(flow_of(&branch), Some(FlowId::new(77)));
    assert_eq!(branch.len(), 7 + 8 + 1 + 16 + 16);
    for other in ["z9hG4bK0123abcd0000000000000000ffff", "z9hG4bKo", "o12", ""] {
        assert_eq!(flow_of(other), None);
    }
}
