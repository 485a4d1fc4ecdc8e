//! A few accounts that a registrar refuses or ignores do not take the others down with them

use sip_registration::testkit::{Reply, Sim};
use sip_registration::*;
use std::time::Duration;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One in fifty
const BAD: usize = 50;
const ALL: usize = 1000;

/// A thousand accounts, granted a minute each; `bad` is what becomes of one in fifty. How many of the others were not
/// bound at some time from `settled` on, and when anybody was so last.
fn neighbours(
    server: &str,
    settled: Duration,
    mut bad: impl FnMut(usize) -> Option<Reply>,
) -> (usize, Option<Duration>) {
    let mut sim = Sim::many([]);
    for user in 0..ALL {
        let account = Registration::builder(server, format!("sip:u{user}@example.com"))
            .contact_user(format!("u{user}"))
            .expiration(secs(60))
            .max_random_initial_delay(secs(10))
            .policy(Policy::persistent())
            .build();
        sim.add(account.expect("a good configuration"));
    }
    let (mut unbound, mut last) = (0, None);
    let mut down = vec![false; ALL];
    while sim.elapsed() < secs(900) {
        while !sim.is_silent() {
            let request = sim.sent();
            let to = request.header("To").expect("a to").into_owned();
            let user: usize = to
                .split(['u', '@'])
                .nth(1)
                .and_then(|number| number.parse().ok())
                .expect("a number");
            let reply = match user % BAD {
                0 => bad(user / BAD),
                _ => Some(Reply::granted(60)),
            };
            if let Some(reply) = reply {
                sim.reply(&request, reply);
            }
        }
        let step = sim.deadline().unwrap_or(secs(1)).min(secs(1));
        sim.advance(step);
        if sim.elapsed() >= settled {
            for (user, id) in sim.ids().to_vec().into_iter().enumerate() {
                let status = sim.pool().status(id).expect("it is there");
                if user % BAD != 0 && !status.is_registered() {
                    last = Some(sim.elapsed());
                    unbound += usize::from(!std::mem::replace(&mut down[user], true));
                }
            }
        }
    }
    (unbound, last)
}

fn unavailable() -> Option<Reply> {
    Some(Reply::status(503).header("Retry-After", "15"))
}

#[test]
fn accounts_that_get_503_with_retry_after_keep_the_others_waiting_once() {
    // Each of the twenty may be believed once, and that is over soon.
    let (unbound, last) = neighbours("sip:192.0.2.9", secs(120), |_| unavailable());
    assert_eq!((unbound, last), (0, None));
}

#[test]
fn accounts_that_are_ignored_do_not_hold_the_places_of_the_others() {
    for server in ["sip:192.0.2.9", "sip:192.0.2.9;transport=tcp"] {
        let (unbound, last) = neighbours(server, secs(30), |_| None);
        assert_eq!((unbound, last), (0, None), "{server}");
    }
}

#[test]
fn accounts_that_fail_in_all_ways_leave_the_others_in_peace() {
    let (unbound, last) = neighbours("sip:192.0.2.9", secs(120), |bad| match bad % 4 {
        0 => unavailable(),
        1 => Some(Reply::status(403)),
        2 => Some(Reply::status(500)),
        _ => None,
    });
    assert_eq!((unbound, last), (0, None));
}
