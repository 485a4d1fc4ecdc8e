//! Flows folded into one registration: what is told of the whole, whose turn it is.

use super::*;
use crate::{Failure, FailureClass, FlowError, FlowId, GiveUp, Protocol, Registered, Target};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);

#[expect(clippy::disallowed_methods, reason = "only differences matter")]
fn later() -> Instant {
    Instant::now() + HOUR
}

fn id(number: u32) -> RegistrationId {
    RegistrationId::from_parts(number, 0)
}

fn target() -> Target {
    Target::new(Protocol::Udp, ([192, 0, 2, 9], 5060).into())
}

fn granted(outbound: bool) -> Event {
    Event::Registered(Box::new(Registered {
        outbound,
        ..Registered::new(HOUR, FlowId::new(1), target())
    }))
}

fn failed(failure: Failure, lease_left: Option<Duration>) -> Event {
    Event::Rejected {
        failure,
        class: FailureClass::Temporary,
        attempt: 1,
        of: Some(10),
        retry_in: Duration::from_secs(60),
        lease_left,
        exchange: None,
    }
}

fn gave_up(failure: Failure) -> Event {
    Event::GaveUp {
        failure,
        class: FailureClass::Fatal,
        why: GiveUp::NoInterval,
        lease_left: None,
        exchange: None,
    }
}

fn lost() -> Event {
    Event::FlowLost {
        flow: FlowId::new(1),
        error: FlowError::Closed,
        next_in: None,
    }
}

fn refused(code: u16) -> Failure {
    let reason = "".into();
    Failure::Rejected { code, reason }
}

/// Three flows: 1 has begun, 2 and 3 wait.
fn group() -> Group {
    let mut group = Group::new(id(1));
    group.push(id(2), false);
    group.push(id(3), false);
    group
}

/// All three are bound at a registrar that does outbound.
fn bound() -> Group {
    let mut group = group();
    for number in 1..=3 {
        group.event(id(number), granted(true));
    }
    group
}

fn is_of(event: &Event, flow: u8) -> bool {
    matches!(event, Event::OfFlow { reg_id, .. } if *reg_id == flow)
}

#[test]
fn the_others_start_when_the_registrar_has_said_that_it_knows_flows() {
    let mut group = group();
    let (told, turns) = group.event(id(1), granted(true));
    assert!(matches!(told, Event::Registered(_)));
    assert_eq!(turns, [Turn::Start(id(2)), Turn::Start(id(3))]);
    let (told, turns) = group.event(id(3), granted(true));
    assert!(is_of(&told, 3), "{told:?}");
    assert_eq!(turns, []);
}

#[test]
fn one_flow_is_all_there_is_where_the_registrar_does_not_know_them_apart() {
    let mut group = group();
    let (_, turns) = group.event(id(1), granted(false));
    assert_eq!(turns, []);
    // It stays so, until it learns. That it is registered was told.
    let (told, turns) = group.event(id(1), granted(true));
    assert!(is_of(&told, 1), "{told:?}");
    assert_eq!(turns, [Turn::Start(id(2)), Turn::Start(id(3))]);
    group.event(id(2), granted(true));
    // And forgets again: the others go once none of them is known to it.
    group.event(id(1), granted(false));
    let (_, turns) = group.event(id(2), granted(false));
    assert_eq!(turns, [Turn::Stop(id(2)), Turn::Stop(id(3))]);
    assert_eq!(group.ended(id(3), Removal::NeverBound), Ended::Goes);
}

#[test]
fn a_broken_way_gives_the_next_flow_its_turn_and_the_registrars_word_does_not() {
    for (failure, next) in [
        (Failure::Timeout, true),
        (Failure::Flow(FlowError::Refused), true),
        (Failure::Budget, true),
        (refused(408), true),
        (refused(430), true),
        (refused(439), true),
        (refused(503), true),
        (refused(500), false),
        (refused(403), false),
        (refused(603), false),
        (Failure::NotGranted, false),
        (Failure::CredentialsRefused { realm: "r".into() }, false),
    ] {
        let mut group = group();
        let (told, turns) = group.event(id(1), failed(failure.clone(), None));
        assert!(
            matches!(told, Event::Rejected { .. }),
            "not bound: {told:?}"
        );
        let expected: &[Turn] = if next { &[Turn::Start(id(2))] } else { &[] };
        assert_eq!(turns, expected, "{failure:?}");
        if next {
            let (_, turns) = group.event(id(2), gave_up(failure.clone()));
            assert_eq!(turns, [Turn::Start(id(3))], "{failure:?}");
        }
    }
}

#[test]
fn the_one_that_failed_first_goes_when_another_is_all_there_is_and_comes_back_after_that_one() {
    let mut group = group();
    group.event(id(1), failed(Failure::Timeout, None));
    let (told, turns) = group.event(id(2), granted(false));
    assert!(matches!(told, Event::Registered(_)));
    assert_eq!(turns, [Turn::Stop(id(1))]);
    // Its turn comes again before it has stopped: it starts after that, and is not forgotten.
    group.event(id(2), lost());
    let (_, turns) = group.event(id(2), failed(Failure::Timeout, Some(HOUR)));
    assert_eq!(turns, []);
    assert_eq!(group.ended(id(1), Removal::NeverBound), Ended::Starts);
}

#[test]
fn what_changes_nothing_of_the_whole_is_told_as_of_one_flow() {
    let mut group = bound();
    let (told, _) = group.event(id(2), lost());
    assert!(is_of(&told, 2));
    let (told, _) = group.event(id(2), failed(Failure::Timeout, Some(HOUR)));
    assert!(is_of(&told, 2));
    let (told, _) = group.event(id(2), Event::Expired { next_in: None });
    assert!(is_of(&told, 2));
    let (told, _) = group.event(id(2), gave_up(refused(403)));
    assert!(is_of(&told, 2));
    let (told, _) = group.event(id(1), Event::Expired { next_in: None });
    assert!(is_of(&told, 1));
    // The last one that holds is the whole.
    let (told, _) = group.event(id(3), lost());
    assert_eq!(told, lost());
    let (told, _) = group.event(id(3), Event::Expired { next_in: None });
    assert_eq!(told, Event::Expired { next_in: None });
    let (told, _) = group.event(id(1), gave_up(refused(403)));
    assert!(is_of(&told, 1), "3 is still being tried: {told:?}");
    let (told, _) = group.event(id(3), gave_up(refused(403)));
    assert!(matches!(told, Event::GaveUp { .. }), "{told:?}");
    let (told, _) = group.event(id(2), granted(true));
    assert!(matches!(told, Event::Registered(_)), "{told:?}");
}

#[test]
fn a_stop_is_over_when_the_last_flow_has_stopped_and_the_worst_end_counts() {
    let mut group = bound();
    group.stop(later());
    let (told, turns) = group.event(id(1), Event::Unregistered(Removal::Removed));
    assert!(is_of(&told, 1));
    assert_eq!(turns, []);
    assert_eq!(group.ended(id(1), Removal::Removed), Ended::Goes);
    assert_eq!(group.ended(id(3), Removal::Unanswered), Ended::Goes);
    assert_eq!(group.all_stopped(), None);
    // One that comes meanwhile has nothing to stop.
    group.push(id(4), false);
    assert_eq!(group.ended(id(2), Removal::Refused(500)), Ended::Goes);
    assert_eq!(group.all_stopped(), Some((Removal::Unanswered, true)));
    assert_eq!(group.all_stopped(), None);
    // The last one that is waited for may leave instead.
    group.stop(later());
    for number in [1, 2, 3] {
        group.ended(id(number), Removal::Removed);
    }
    assert_eq!(group.retire(3), [id(4)]);
    assert_eq!(group.all_stopped(), None);
    assert_eq!(group.ended(id(4), Removal::Removed), Ended::Left);
    assert_eq!(group.all_stopped(), Some((Removal::Removed, true)));
}

#[test]
fn when_all_bindings_were_removed_the_others_let_go_of_theirs() {
    let mut group = bound();
    group.empty(id(2));
    let (_, turns) = group.event(id(1), Event::Unregistered(Removal::Removed));
    assert_eq!(turns, [], "that was not the one");
    let (_, turns) = group.event(id(2), Event::Unregistered(Removal::Removed));
    assert_eq!(turns, [Turn::Gone(id(1)), Turn::Gone(id(3))]);
    assert_eq!(group.ended(id(1), Removal::Removed), Ended::Goes);

    let mut group = bound();
    group.empty(id(2));
    let (told, turns) = group.event(id(2), Event::QueryFailed(refused(403)));
    assert_eq!((told, turns), (Event::QueryFailed(refused(403)), vec![]));
}

#[test]
fn flows_that_are_no_more_leave_and_one_stays() {
    let mut group = bound();
    assert_eq!(group.retire(0), [id(2), id(3)]);
    assert_eq!(group.ids().collect::<Vec<_>>(), [id(1)]);
    assert_eq!(group.ended(id(3), Removal::Removed), Ended::Left);
    assert_eq!(group.retired().collect::<Vec<_>>(), [id(2)]);
    // The one that is left takes its turn, if it was waiting.
    let mut group = self::group();
    group.event(id(1), failed(Failure::Timeout, None));
    group.event(id(2), granted(false));
    group.ended(id(1), Removal::NeverBound);
    group.retire(1);
    assert_eq!(group.take_turns(), [Turn::Start(id(1))]);
}

#[test]
fn questions_for_credentials_have_one_number_for_all_and_an_answer_each() {
    let mut group = group();
    let one = group.asks(id(1), OpId(4));
    let two = group.asks(id(2), OpId(4));
    assert_ne!(one, two);
    assert_eq!(group.asked(two), Some((id(2), OpId(4))));
    assert_eq!(group.asked(two), None);
    // One that asks again has given up its earlier question.
    let again = group.asks(id(1), OpId(5));
    assert_eq!(group.asked(one), None);
    assert_eq!(group.asked(again), Some((id(1), OpId(5))));
}

#[test]
fn the_whole_is_bound_by_its_best_flow() {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had no other way; only differences matter"
    )]
    let now = Instant::now();
    let waits = |secs| Activity::Waiting {
        until: now + Duration::from_secs(secs),
    };
    let bound = |secs, flow: Option<u64>| {
        let until = now + Duration::from_secs(secs);
        let mut lease = crate::LeaseStatus::new(until, HOUR, FlowId::new(0), target());
        lease.flow = flow.map(FlowId::new);
        Status::new(waits(secs)).with_lease(lease)
    };
    let failing = Status::new(waits(5)).with_last_failure(Failure::Timeout);
    let of = |members: &[Status]| fold(members.iter().cloned()).expect("a status");

    let whole = of(&[failing.clone(), bound(60, Some(1)), bound(30, Some(2))]);
    assert_eq!(
        whole.lease.as_ref().and_then(|lease| lease.flow),
        Some(FlowId::new(1))
    );
    assert_eq!((whole.activity, whole.last_failure), (waits(5), None));
    // One whose flow is up is better than one that lasts longer.
    let whole = of(&[bound(60, None), bound(30, Some(2))]);
    assert!(whole.is_reachable());
    let whole = of(&[Status::new(Activity::Idle), failing.clone()]);
    assert_eq!(whole.last_failure, Some(Failure::Timeout));
    let whole = of(&[failing, Status::new(Activity::Registering)]);
    assert_eq!(whole.activity, Activity::Registering);
    assert_eq!(fold(std::iter::empty()), None);
}
