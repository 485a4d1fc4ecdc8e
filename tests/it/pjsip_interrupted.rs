//! Reloads that are interrupted, and reloads whose un-REGISTERs nobody answers: the next one does the rest.

use crate::pjsip_files::{File, secs};
use crate::pjsip_registrars::{World, now};
use sip_registration::Registrar;
use sip_registration::pjsip_conf::{Applied, Running};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

const WITHIN: Duration = secs(35);

/// Sections by name, each with the user of its address of record, which is that of its Contact too.
fn file(sections: &[(&str, &str)]) -> File {
    let mut text = "[udp]\ntype=transport\nbind=0.0.0.0\n\
         [t](!)\ntype=registration\nserver_uri=sip:192.0.2.9\nmax_random_initial_delay=0\n"
        .to_owned();
    for (name, user) in sections {
        let (user, more) = user.split_once(' ').unwrap_or((user, ""));
        text.push_str(&format!(
            "[{name}](t)\nclient_uri=sip:{user}@example.com\ncontact_user={user}\n{more}\n"
        ));
    }
    File(text)
}

async fn apply(world: &World, running: &mut Running, sections: &[(&str, &str)]) -> Applied {
    let new = running.loaded().reload(&file(sections), "pjsip.conf");
    assert!(!new.has_errors(), "{new}");
    running
        .apply(&world.agent, new, WITHIN)
        .await
        .expect("it runs")
}

/// Where a future is dropped.
#[derive(Debug, Clone, Copy)]
enum Dropped {
    /// When it has asked for something, before that was looked at.
    Asked,
    /// When what it waits for is there, before it looks at it.
    Told,
}

/// Polls a future until it has waited `most` times, and drops it; none where it was dropped.
async fn interrupted<T>(future: impl Future<Output = T>, most: usize, at: Dropped) -> Option<T> {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        if matches!(at, Dropped::Told) && polls > most {
            return Poll::Ready(None);
        }
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if matches!(at, Dropped::Asked) && polls >= most => Poll::Ready(None),
            Poll::Pending => {
                polls += 1;
                Poll::Pending
            }
        }
    })
    .await
}

/// All that must hold when nothing is under way: what runs and what is bound is what the file says, once.
async fn check(world: &World, running: &Running, sections: &[(&str, &str)], what: &str) {
    assert_eq!(
        world.agent.statuses().await.len(),
        sections.len(),
        "{what}: what runs and no section has"
    );
    let mut wanted = BTreeMap::new();
    for (name, user) in sections {
        let user = user.split(' ').next().unwrap_or_default().to_owned();
        let id = running
            .id(name)
            .unwrap_or_else(|| panic!("{what}: {name} does not run"));
        let runs = world.agent.registration(id).await;
        let section = running.loaded().registration(name).expect("it is there");
        assert_eq!(runs.as_ref(), Some(&section.registration), "{what}: {name}");
        wanted.insert(("192.0.2.9".to_owned(), user.clone()), vec![user]);
    }
    assert_eq!(world.registrars().bindings(), wanted, "{what}");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_an_address_without_an_answer_never_touches_it_again() {
    let world = World::new(1, secs(0)).await;
    let mut running = Running::new();
    apply(&world, &mut running, &[("a", "x")]).await;
    tokio::time::sleep(secs(5)).await;
    let from = world.registrars().seen.len();
    world.registrars().deaf = true;
    let applied = apply(&world, &mut running, &[("a", "y"), ("b", "x")]);
    let back = async {
        // The registrar is back when the one who took the address over has registered.
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut registrars = world.registrars();
            if registrars.lines(from).contains(&"+x".to_owned()) {
                registrars.deaf = false;
                return;
            }
        }
    };
    let (applied, ()) = tokio::join!(applied, back);
    assert_eq!(applied.removed.len(), 1);
    tokio::time::sleep(secs(60)).await;
    let sent = world.registrars().lines(from);
    assert_eq!(
        sent.iter().filter(|line| *line == "-x").count(),
        1,
        "{sent:?}"
    );
    assert_eq!(sent.len(), 3, "{sent:?}");
    check(&world, &running, &[("a", "y"), ("b", "x")], "both").await;
}

#[tokio::test(start_paused = true)]
async fn what_had_begun_to_leave_comes_back_with_the_file() {
    let both = [("a", "x"), ("b", "y")];
    for (what, other) in [
        ("gone", &[("b", "y")] as &[_]),
        ("swapped", &[("a", "y"), ("b", "x")]),
        ("renamed", &[("b", "y"), ("c", "x")]),
        ("moved", &[("a", "z"), ("b", "y")]),
    ] {
        for (patience, deaf) in [(2, 1), (2, 20), (20, 60), (34, 40)] {
            let world = World::new(1, secs(0)).await;
            let mut running = Running::new();
            apply(&world, &mut running, &both).await;
            tokio::time::sleep(secs(5)).await;
            world.registrars().deaf = true;
            let awake = async {
                tokio::time::sleep(secs(deaf)).await;
                world.registrars().deaf = false;
            };
            let reloads = async {
                let first = apply(&world, &mut running, other);
                let _ = tokio::time::timeout(secs(patience), first).await;
                apply(&world, &mut running, &both).await;
                tokio::time::sleep(secs(100)).await;
            };
            tokio::join!(awake, reloads);
            let what = format!("{what}, {patience} s, deaf for {deaf} s");
            if world.registrars().lost().is_empty() {
                check(&world, &running, &both, &what).await;
            } else {
                // What was left behind is bound until it expires.
                let bindings = world.registrars().bindings();
                for (_, user) in both {
                    let key = ("192.0.2.9".to_owned(), user.to_owned());
                    assert!(bindings.contains_key(&key), "{what}: {bindings:?}");
                }
                assert_eq!(world.agent.statuses().await.len(), 2, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_can_be_dropped_wherever_it_waits() {
    let old = [("a", "x"), ("b", "y"), ("c", "z")];
    let versions: [&[(&str, &str)]; 7] = [
        &old,
        &[("a", "y"), ("b", "x"), ("c", "z")],
        &[("c", "z"), ("d", "x")],
        &[("a", "v"), ("b", "w"), ("c", "z retry_interval=90")],
        &[
            ("a", "x expiration=7200"),
            ("b", "y"),
            ("c", "z"),
            ("d", "v"),
        ],
        &[],
        &[("a", "z"), ("b", "x"), ("c", "y")],
    ];
    let mut drops = 0;
    for at in [Dropped::Asked, Dropped::Told] {
        for first in versions {
            for last in versions {
                for most in 0.. {
                    let what = format!("{first:?}, {at:?} after {most}, {last:?}");
                    let world = World::new(1, secs(0)).await;
                    let mut running = Running::new();
                    apply(&world, &mut running, &old).await;
                    tokio::time::sleep(secs(5)).await;
                    let whole = interrupted(apply(&world, &mut running, first), most, at).await;
                    let start = now();
                    apply(&world, &mut running, last).await;
                    assert!(start.elapsed() < secs(1), "{what}: {:?}", start.elapsed());
                    tokio::time::sleep(secs(5)).await;
                    check(&world, &running, last, &what).await;
                    world.registrars().check_order(WITHIN, &what);
                    if whole.is_some() {
                        break;
                    }
                    drops += 1;
                }
            }
        }
    }
    assert!(drops > 250, "{drops}");
}

#[tokio::test(start_paused = true)]
async fn a_second_reload_waits_for_the_un_registers_of_the_first() {
    for seed in 1..20 {
        let world = World::new(seed, secs(3)).await;
        let mut running = Running::new();
        apply(&world, &mut running, &[("a", "x"), ("b", "y")]).await;
        tokio::time::sleep(secs(10)).await;
        apply(&world, &mut running, &[("a", "z"), ("b", "y")]).await;
        let last = [("a", "z"), ("b", "y"), ("c", "x")];
        apply(&world, &mut running, &last).await;
        tokio::time::sleep(secs(20)).await;
        let what = format!("seed {seed}");
        world.registrars().check_order(WITHIN, &what);
        check(&world, &running, &last, &what).await;
    }
}
