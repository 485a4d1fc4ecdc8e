//! How all trunks are now: a row each, sorted by what comes next and by what is wrong.

use sip_registration::{Activity, Failure, RegistrationId, Status};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a trunk is, in a word
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The registrar holds a binding, whatever is done about it
    Registered,
    /// No binding, and a REGISTER is under way
    Registering,
    /// No binding, and the first attempt is to come
    Waiting,
    /// No binding, the last attempt failed, another follows
    Failed,
    /// No binding, and nothing follows until somebody says so
    Stopped,
}

impl State {
    pub(crate) const ALL: [Self; 5] = [
        Self::Registered,
        Self::Registering,
        Self::Waiting,
        Self::Failed,
        Self::Stopped,
    ];

    pub(crate) fn of(status: &Status) -> Self {
        match (status.is_registered(), status.activity) {
            (true, _) => Self::Registered,
            (false, Activity::Waiting { .. }) if status.last_failure.is_some() => Self::Failed,
            (false, Activity::Waiting { .. }) => Self::Waiting,
            (false, Activity::Registering) => Self::Registering,
            _ => Self::Stopped,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Registering => "registering",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: Arc<str>,
    pub(crate) state: State,
    /// When the next attempt starts, from now
    pub(crate) next_in: Option<Duration>,
    pub(crate) lease_left: Option<Duration>,
    pub(crate) failure: Option<Failure>,
}

impl Row {
    fn of(name: Arc<str>, status: &Status, now: Instant) -> Self {
        Self {
            name,
            state: State::of(status),
            next_in: match status.activity {
                Activity::Waiting { until } => Some(until.saturating_duration_since(now)),
                _ => None,
            },
            lease_left: status
                .lease
                .as_ref()
                .map(|lease| lease.expires_at.saturating_duration_since(now)),
            failure: status.last_failure.clone(),
        }
    }

    /// What its next attempt is.
    pub(crate) const fn next(&self) -> &'static str {
        match (&self.failure, &self.lease_left) {
            (Some(_), _) => "retry",
            (None, Some(_)) => "refresh",
            (None, None) => "first",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn of(
        statuses: &[(RegistrationId, Status)],
        names: &HashMap<RegistrationId, Arc<str>>,
        now: Instant,
    ) -> Self {
        let row = |(id, status): &(RegistrationId, Status)| {
            Some(Row::of(Arc::clone(names.get(id)?), status, now))
        };
        Self {
            rows: statuses.iter().filter_map(row).collect(),
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn count(&self, state: State) -> usize {
        self.rows.iter().filter(|row| row.state == state).count()
    }

    /// Those with an attempt to come, the soonest first.
    pub(crate) fn soonest(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.next_in.is_some())
            .collect();
        rows.sort_by_key(|row| (row.next_in, &row.name));
        rows
    }

    /// Those whose last attempt failed: who has lost most first, and among these who tries again soonest.
    pub(crate) fn failing(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.failure.is_some())
            .collect();
        // What follows none is behind whatever has a time.
        let next = |row: &Row| (row.next_in.is_none(), row.next_in);
        rows.sort_by_key(|row| (row.lease_left.is_some(), next(row), &row.name));
        rows
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sip_registration::Clock;
    use sip_registration::{FlowId, LeaseStatus, Protocol, SystemClock, Target};

    pub(crate) fn after(now: Instant, milliseconds: u64) -> Instant {
        now + Duration::from_millis(milliseconds)
    }

    /// Bound for 40 s more, and what else is said.
    pub(crate) fn bound(now: Instant, activity: Activity) -> Status {
        let target = Target::new(Protocol::Udp, "127.0.0.1:5060".parse().unwrap());
        let lease = LeaseStatus::new(
            after(now, 40_000),
            Duration::from_secs(90),
            FlowId::new(1),
            target,
        );
        Status::new(activity).with_lease(lease)
    }

    pub(crate) fn rejected(code: u16, reason: &str) -> Failure {
        Failure::Rejected {
            code,
            reason: reason.into(),
        }
    }

    /// A table with trunks by these names.
    pub(crate) fn table(now: Instant, trunks: Vec<(&str, Status)>) -> Table {
        let id = |index| RegistrationId::from_parts(index, 0);
        let names = (0..).zip(&trunks);
        let names = names.map(|(index, (name, _))| (id(index), Arc::from(*name)));
        let names = names.collect();
        let statuses: Vec<_> = (0..)
            .zip(trunks)
            .map(|(index, (_, status))| (id(index), status))
            .collect();
        Table::of(&statuses, &names, now)
    }

    fn waiting(now: Instant, milliseconds: u64) -> Activity {
        Activity::Waiting {
            until: after(now, milliseconds),
        }
    }

    fn names<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
        rows.iter().map(|row| &*row.name).collect()
    }

    #[test]
    fn a_state_is_the_lease_first_and_what_is_done_about_it_second() {
        let now = SystemClock::new().now();
        let failure = || rejected(503, "Service Unavailable");
        for (status, state) in [
            (bound(now, Activity::Registering), State::Registered),
            (
                bound(now, waiting(now, 1)).with_last_failure(failure()),
                State::Registered,
            ),
            (Status::new(Activity::Registering), State::Registering),
            (Status::new(waiting(now, 1)), State::Waiting),
            (
                Status::new(waiting(now, 1)).with_last_failure(failure()),
                State::Failed,
            ),
            (
                Status::new(Activity::Idle).with_last_failure(failure()),
                State::Stopped,
            ),
            (Status::new(Activity::Unregistering), State::Stopped),
            (Status::new(Activity::Paused), State::Stopped),
        ] {
            assert_eq!(State::of(&status), state, "{status:?}");
        }
    }

    #[test]
    fn rows_are_sorted_by_when_and_by_what_is_wrong() {
        let now = SystemClock::new().now();
        let failed = |status: Status| status.with_last_failure(Failure::Timeout);
        let table = table(
            now,
            vec![
                ("gave-up", failed(Status::new(Activity::Idle))),
                ("later", bound(now, waiting(now, 9000))),
                ("bound", failed(bound(now, waiting(now, 100)))),
                ("busy", bound(now, Activity::Registering)),
                ("b", failed(Status::new(waiting(now, 5000)))),
                ("a", failed(Status::new(waiting(now, 5000)))),
                ("trying", failed(Status::new(Activity::Registering))),
            ],
        );
        assert_eq!(names(&table.soonest()), ["bound", "a", "b", "later"]);
        assert_eq!(
            names(&table.failing()),
            ["a", "b", "gave-up", "trying", "bound"]
        );
        let of_all: usize = State::ALL.map(|state| table.count(state)).iter().sum();
        assert_eq!((of_all, table.len()), (7, 7));
        let next: Vec<_> = table.soonest().iter().map(|row| row.next()).collect();
        assert_eq!(next, ["retry", "retry", "retry", "refresh"]);
    }

    #[test]
    fn a_time_that_has_passed_is_now_and_who_has_no_name_is_left_out() {
        let now = SystemClock::new().now();
        let late = after(now, 50);
        let statuses = [
            (
                RegistrationId::from_parts(0, 0),
                Status::new(Activity::Waiting { until: now }),
            ),
            (
                RegistrationId::from_parts(1, 0),
                Status::new(Activity::Idle),
            ),
        ];
        let names = HashMap::from([(RegistrationId::from_parts(0, 0), Arc::from("one"))]);
        let table = Table::of(&statuses, &names, late);
        assert_eq!(table.len(), 1);
        assert_eq!(table.soonest()[0].next_in, Some(Duration::ZERO));
    }
}
