//! A new version of a `pjsip.conf`: what it changes, what it keeps, and which packets it costs.

use crate::pjsip_files::File;
use sip_registration::Registration;
use sip_registration::pjsip_conf::{Loaded, Step, load};
use sip_registration::testkit::{Reply, Sim};
use std::sync::Arc;
use std::time::Duration;

const BASE: &str = "\
[udp]
type=transport
bind=0.0.0.0

[t](!)
type=registration
server_uri=sip:192.0.2.9
max_random_initial_delay=0

[auth]
type=auth
username=a
password=s3cr3t
";

/// Sections `[name](t)` of a user of that name, with more lines.
fn file(sections: &[(&str, &str)]) -> File {
    let mut text = BASE.to_owned();
    for (name, lines) in sections {
        text.push_str(&format!(
            "[{name}](t)\nclient_uri=sip:{name}@example.com\ncontact_user={name}\n{lines}\n"
        ));
    }
    File(text)
}

fn loaded(sections: &[(&str, &str)]) -> Loaded {
    let loaded = load(&file(sections), "pjsip.conf");
    assert_eq!(loaded.diagnostics(), []);
    loaded
}

fn steps(old: &Loaded, new: &Loaded) -> Vec<(String, Step)> {
    let steps = new.plan(old).steps.into_iter();
    steps.map(|(name, step)| (name.to_string(), step)).collect()
}

fn step(name: &str, step: Step) -> (String, Step) {
    (name.to_owned(), step)
}

#[test]
fn a_plan_says_for_each_registration_what_the_new_version_costs() {
    let old = loaded(&[
        ("gone", ""),
        ("same", "outbound_auth=auth"),
        ("slower", ""),
        ("longer", ""),
        ("moved", ""),
        ("broken", ""),
    ]);
    let new = old.reload(
        &file(&[
            ("same", "outbound_auth = auth ; written differently"),
            ("slower", "retry_interval=120"),
            ("longer", "expiration=7200"),
            ("moved", "server_uri=sip:192.0.2.10"),
            ("broken", "expiration=0"),
            ("new", ""),
        ]),
        "pjsip.conf",
    );
    assert_eq!(
        steps(&old, &new),
        [
            step("broken", Step::Kept),
            step("gone", Step::Removed),
            step("longer", Step::Registers),
            step("moved", Step::Replaces),
            step("new", Step::Added),
            step("same", Step::Untouched),
            step("slower", Step::InPlace),
        ]
    );
    assert!(!new.plan(&old).transports_changed);
    assert!(new.is_kept("broken"));
    let said: Vec<_> = new.diagnostics().iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "pjsip.conf:33: error: [broken] expiration = 0: not one of the seconds from 1 to 4294967295",
            "pjsip.conf:30: warning: [broken] the running version of this registration is kept",
        ]
    );
}

#[test]
fn of_a_transport_a_reload_changes_what_is_advertised_and_more_only_where_it_says_so() {
    let with = |lines: &str| File(file(&[("a", "")]).0.replace("bind=0.0.0.0", lines));
    let old = load(&with("bind=0.0.0.0"), "pjsip.conf");
    let reload = |lines: &str| {
        let new = old.reload(&with(lines), "pjsip.conf");
        let said: Vec<_> = new.diagnostics().iter().map(ToString::to_string).collect();
        // Its registration has not changed, whatever the transport does.
        assert!(said.len() > 1 || steps(&old, &new) == [step("a", Step::Untouched)]);
        let config = new.transports()[0].config.clone();
        (said, config, new.plan(&old).transports_changed)
    };
    let kept = [
        "pjsip.conf:1: warning: [udp] a reload changes protocol, bind, tos, cos and TLS only with \
         allow_reload=yes: the running version of them is kept",
    ];
    for lines in [
        "bind=127.0.0.1",
        "bind=0.0.0.0\ntos=cs3",
        "bind=0.0.0.0\ncos=3",
        "bind=0.0.0.0\nprotocol=tcp",
        "bind=127.0.0.1\nallow_reload=no",
    ] {
        let (said, config, changed) = reload(lines);
        assert_eq!(said, kept, "{lines}");
        assert_eq!((&config, changed), (&old.transports()[0].config, false));
        let (said, config, changed) = reload(&format!("{lines}\nallow_reload=yes"));
        // A registration that has no transport of its protocol any more is another matter.
        assert!(said.is_empty() || lines.contains("tcp"), "{said:?}");
        assert!(changed, "{lines}");
        assert_ne!(config, old.transports()[0].config);
    }
    // The one without the other.
    let (said, config, changed) = reload("bind=127.0.0.1\nexternal_signaling_address=192.0.2.7");
    assert_eq!((&said[..], changed), (&kept.map(String::from)[..], true));
    assert_eq!(config.external_signaling_address(), Some("192.0.2.7"));
    assert_eq!(config.bind(), old.transports()[0].config.bind());
    let (said, _, changed) = reload("bind=0.0.0.0\nallow_reload=yes");
    assert_eq!((said.len(), changed), (0, false));
}

#[test]
fn what_no_longer_parses_keeps_its_running_version() {
    let with_auth = |lines: &str| {
        let text = file(&[("a", "outbound_auth=auth"), ("b", "")]).0;
        File(text.replace("password=s3cr3t\n", lines))
    };
    let old = load(&with_auth("password=s3cr3t\n"), "pjsip.conf");
    let untouched = [step("a", Step::Untouched), step("b", Step::Untouched)];
    let kept = [step("a", Step::Kept), step("b", Step::Kept)];

    // A refused auth section: the old one is good for another call of the registration.
    let new = old.reload(&with_auth("passwd=s3cr3t\n"), "pjsip.conf");
    assert_eq!(steps(&old, &new), untouched);
    assert_eq!(new.auth("auth"), old.auth("auth"));
    // A changed password costs no message.
    let new = old.reload(&with_auth("password=another\n"), "pjsip.conf");
    assert_eq!(
        steps(&old, &new),
        [step("a", Step::InPlace), step("b", Step::Untouched)]
    );

    // A refused transport.
    let text = file(&[("a", "outbound_auth=auth"), ("b", "")]).0;
    let new = old.reload(
        &File(text.replace("bind=0.0.0.0", "bind=nowhere")),
        "pjsip.conf",
    );
    assert_eq!(steps(&old, &new), untouched);
    assert_eq!(new.transports(), old.transports());

    // A duplicate: no object of the type is loaded anew.
    let twice = file(&[("a", ""), ("c", ""), ("c", "")]);
    assert_eq!(steps(&old, &old.reload(&twice, "pjsip.conf")), kept);
    // A file that is none.
    for text in ["[a\n", "a=b\n"] {
        let new = old.reload(&File(text.to_owned()), "pjsip.conf");
        assert_eq!(steps(&old, &new), kept, "{text}");
        assert!(new.has_errors());
    }
    // And back: nothing has changed all the time.
    let broken = old.reload(&File("[a\n".to_owned()), "pjsip.conf");
    let back = broken.reload(&with_auth("password=s3cr3t\n"), "pjsip.conf");
    assert_eq!(steps(&broken, &back), untouched);
}

#[test]
fn who_takes_over_an_address_of_record_waits_for_its_un_register() {
    let aor = |user: &str| format!("client_uri=sip:{user}@example.com\ncontact_user={user}");
    let old = loaded(&[("a", ""), ("b", ""), ("c", "")]);
    let new = loaded(&[("b", &aor("c")), ("c", &aor("b")), ("renamed", &aor("a"))]);
    let plan = new.plan(&old);
    let after = |name: &str| {
        plan.after
            .get(name)
            .into_iter()
            .flatten()
            .map(Arc::as_ref)
            .collect::<Vec<&str>>()
    };
    assert_eq!(after("renamed"), ["a"]);
    assert_eq!(after("b"), ["c"]);
    assert_eq!(after("c"), ["b"]);
    let independent = loaded(&[("d", "")]).plan(&old);
    assert!(independent.after.is_empty());
}

#[cfg(feature = "tokio")]
mod applied {
    use super::*;
    use crate::pjsip_registrars::now;
    use sip_registration::pjsip_conf::{Applied, Running, table};
    use sip_registration::testkit::{MockTransport, SentRequest, Wire};
    use sip_registration::{Agent, Registrar, Removal};

    const WITHIN: Duration = Duration::from_secs(35);

    async fn agent() -> (Agent, Wire) {
        let (transport, wire) = MockTransport::new();
        let agent = Agent::builder()
            .transport("udp", transport)
            .seed([3; 32])
            .build()
            .await
            .expect("an agent");
        (agent, wire)
    }

    /// Answers what comes within a few seconds, which are not long enough for a refresh.
    async fn serve(wire: &mut Wire, code: u16) -> Vec<SentRequest> {
        let mut all = Vec::new();
        while let Ok(request) =
            tokio::time::timeout(Duration::from_secs(5), wire.next_request()).await
        {
            wire.reply(&request, code).await;
            all.push(request);
        }
        all
    }

    /// `alice 3600`, in order: whose request, and what it asks for.
    fn lines(requests: &[SentRequest]) -> Vec<String> {
        let line = |request: &SentRequest| {
            let text = request.text();
            let of = |name: &str| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap_or_default();
                line.trim().to_owned()
            };
            let to = of("To:");
            let user = to.split(['@', ':']).nth(1).unwrap_or_default().to_owned();
            format!("{user} {}", of("Expires:"))
        };
        requests.iter().map(line).collect()
    }

    async fn start(sections: &[(&str, &str)]) -> (Agent, Wire, Running) {
        let (agent, mut wire) = agent().await;
        let mut running = Running::new();
        running
            .apply(&agent, loaded(sections), WITHIN)
            .await
            .expect("it starts");
        let first = serve(&mut wire, 200).await;
        assert_eq!(first.len(), sections.len());
        (agent, wire, running)
    }

    async fn apply(
        agent: &Agent,
        wire: &mut Wire,
        running: &mut Running,
        file: &File,
    ) -> (Applied, Vec<String>) {
        let new = running.loaded().reload(file, "pjsip.conf");
        let (applied, requests) = tokio::join!(running.apply(agent, new, WITHIN), serve(wire, 200));
        (applied.expect("it runs"), lines(&requests))
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_changed_sends_packets() {
        let many: Vec<_> = (0..200).map(|number| format!("u{number}")).collect();
        let mut sections: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
        sections.extend([
            ("gone", ""),
            ("longer", ""),
            ("moved", ""),
            ("slower", ""),
            ("broken", ""),
        ]);
        let (agent, mut wire, mut running) = start(&sections).await;

        // Nothing has changed.
        let (applied, sent) = apply(&agent, &mut wire, &mut running, &file(&sections)).await;
        assert_eq!(sent, [""; 0]);
        assert_eq!(applied.to_string(), "");

        let mut sections: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
        sections.extend([
            ("longer", "expiration=7200"),
            ("moved", "server_uri=sip:192.0.2.10"),
            ("slower", "retry_interval=90"),
            ("broken", "expiration=0"),
            ("new", ""),
        ]);
        let (applied, mut sent) = apply(&agent, &mut wire, &mut running, &file(&sections)).await;
        sent.sort_unstable();
        assert_eq!(
            sent,
            ["gone 0", "longer 7200", "moved 0", "moved 3600", "new 3600"]
        );
        assert_eq!(
            applied.to_string(),
            "broken: kept, as the new version was refused\n\
             gone: removed, removed\n\
             longer: re-registered\n\
             moved: replaced\n\
             new: added\n\
             slower: changed in place\n"
        );
        assert_eq!(running.ids().count(), 205);
        assert!(running.id("gone").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renamed_section_registers_when_the_old_one_is_gone() {
        let (agent, mut wire, mut running) = start(&[("alice", ""), ("other", "")]).await;
        let renamed = file(&[
            (
                "renamed",
                "client_uri=sip:alice@example.com\ncontact_user=alice",
            ),
            ("other", ""),
            ("independent", ""),
        ]);
        let new = running.loaded().reload(&renamed, "pjsip.conf");
        let script = async {
            // The un-REGISTER is left alone for three seconds, and sent again meanwhile.
            let removal = wire.next_request().await;
            let mut meanwhile = Vec::new();
            let wait = tokio::time::sleep(Duration::from_secs(3));
            tokio::pin!(wait);
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    request = wire.next_request() => {
                        let line = lines(std::slice::from_ref(&request)).concat();
                        if line.starts_with("independent") {
                            wire.reply(&request, 200).await;
                        }
                        meanwhile.push(line);
                    }
                }
            }
            wire.reply(&removal, 200).await;
            let last = wire.next_request().await;
            wire.reply(&last, 200).await;
            (lines(&[removal, last]), meanwhile)
        };
        let (applied, (sent, mut meanwhile)) =
            tokio::join!(running.apply(&agent, new, WITHIN), script);
        assert_eq!(sent, ["alice 0", "alice 3600"]);
        meanwhile.sort_unstable();
        meanwhile.dedup();
        assert_eq!(meanwhile, ["alice 0", "independent 3600"]);
        let applied = applied.expect("it runs");
        assert_eq!(applied.removed.get("alice"), Some(&Removal::Removed));
    }

    #[tokio::test(start_paused = true)]
    async fn two_sections_can_swap_their_addresses() {
        let (agent, mut wire, mut running) = start(&[("a", ""), ("b", "")]).await;
        let aor = |user: &str| format!("client_uri=sip:{user}@example.com\ncontact_user={user}");
        let swapped = file(&[("a", &aor("b")), ("b", &aor("a"))]);
        let (_, sent) = apply(&agent, &mut wire, &mut running, &swapped).await;
        let (first, then) = sent.split_at(2);
        let sorted = |lines: &[String]| {
            let mut lines = lines.to_vec();
            lines.sort_unstable();
            lines
        };
        assert_eq!(
            (sorted(first), sorted(then)),
            (
                vec!["a 0".into(), "b 0".into()],
                vec!["a 3600".into(), "b 3600".into()]
            )
        );
    }

    #[tokio::test(start_paused = true)]
    async fn registrars_that_do_not_answer_cost_one_deadline_and_hold_up_nobody() {
        let gone: Vec<_> = (0..100).map(|number| format!("g{number}")).collect();
        let mut sections: Vec<_> = gone.iter().map(|name| (name.as_str(), "")).collect();
        sections.push(("stays", ""));
        let (agent, mut wire, mut running) = start(&sections).await;
        let new = running.loaded().reload(
            &file(&[("stays", ""), ("new", "server_uri=sip:192.0.2.10")]),
            "pjsip.conf",
        );
        let begun = now();
        let apply = async {
            let applied = running.apply(&agent, new, WITHIN).await.expect("it runs");
            (applied, now() - begun)
        };
        let added = async {
            loop {
                let request = wire.next_request().await;
                if lines(std::slice::from_ref(&request)) == ["new 3600"] {
                    wire.reply(&request, 200).await;
                    return now() - begun;
                }
            }
        };
        let ((applied, took), added) = tokio::join!(apply, added);
        // The first REGISTER after 1 s is the profile's.
        assert!(added < Duration::from_secs(2), "{added:?}");
        assert!(took < Duration::from_secs(36), "{took:?}");
        assert_eq!(
            applied
                .removed
                .values()
                .filter(|removal| **removal == Removal::Unanswered)
                .count(),
            100
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_revives_what_had_given_up_and_leaves_alone_what_was_stopped() {
        let (agent, mut wire) = agent().await;
        let mut running = Running::new();
        let sections = [
            ("refused", "outbound_auth=auth"),
            ("forbidden", ""),
            ("nothing", "retry_interval=0"),
            ("stopped", ""),
            ("fine", ""),
        ];
        let started = async {
            running
                .apply(&agent, loaded(&sections), WITHIN)
                .await
                .expect("it starts");
        };
        let script = async {
            while let Ok(request) =
                tokio::time::timeout(Duration::from_secs(5), wire.next_request()).await
            {
                match lines(std::slice::from_ref(&request))
                    .concat()
                    .split(' ')
                    .next()
                {
                    Some("refused") => {
                        let nonce = format!("n{}", request.text().len());
                        wire.reply(&request, Reply::challenge("r", &nonce)).await;
                    }
                    Some("forbidden") => wire.reply(&request, 403).await,
                    // In Asterisk it is unregistered for ever, and nothing is left to revive.
                    Some("nothing") => wire.reply(&request, Reply::granted(0)).await,
                    _ => wire.reply(&request, 200).await,
                }
            }
        };
        tokio::join!(started, script);
        let stopped = running.id("stopped").expect("it runs");
        // Refused: its word is Rejected then, and still nobody wants it.
        tokio::join!(
            async { agent.unregister(stopped).await.expect("taken") },
            serve(&mut wire, 500)
        );
        let words = |details: &[sip_registration::pjsip_conf::RegistrationDetail]| {
            details
                .iter()
                .map(|detail| detail.status.unwrap_or_default())
                .collect::<Vec<_>>()
        };
        let now = now().into_std();
        let details = running.details(&agent, now).await;
        assert_eq!(
            words(&details),
            [
                "Registered",
                "Rejected",
                "Unregistered",
                "Rejected",
                "Rejected"
            ]
        );

        let (applied, mut sent) = apply(&agent, &mut wire, &mut running, &file(&sections)).await;
        sent.sort_unstable();
        assert_eq!(sent, ["forbidden 3600", "nothing 3600", "refused 3600"]);
        assert_eq!(
            applied.revived.iter().map(Arc::as_ref).collect::<Vec<_>>(),
            ["forbidden", "nothing", "refused"]
        );
        let details = running.details(&agent, now).await;
        assert_eq!(
            words(&details),
            [
                "Registered",
                "Registered",
                "Registered",
                "Registered",
                "Rejected"
            ]
        );
        assert_eq!(
            details.len(),
            table(&details)
                .lines()
                .filter(|line| line.contains("/sip:192.0.2.9"))
                .count()
        );
    }
}

/// The Authorization header that a section with these lines in its `auth` answers a challenge with.
fn answer(auth: &str, challenge: &str) -> Option<String> {
    let text = format!(
        "{BASE}[own]\ntype=auth\nusername=a\n{auth}\n[a](t)\nclient_uri=sip:a@example.com\noutbound_auth=own\n"
    );
    let loaded = load(&File(text), "pjsip.conf");
    let registration = &loaded.registration("a").expect("in order").registration;
    let mut sim = Sim::seeded([5; 32], [Registration::clone(registration)]);
    sim.advance(Duration::from_secs(2));
    let first = sim.sent();
    sim.reply(
        &first,
        Reply::status(401).header("WWW-Authenticate", challenge),
    );
    let answer = sim.all_sent().pop()?;
    answer
        .headers("Authorization")
        .next()
        .map(|value| value.to_string())
}

#[test]
fn hashes_answer_as_the_password_does_also_where_the_file_names_no_realm() {
    let challenge = "Digest realm=\"realm.example\", nonce=\"n\", qop=\"auth\"";
    let by_password = answer("password=s3cr3t", challenge);
    assert!(
        by_password
            .as_ref()
            .is_some_and(|value| value.contains("response=")),
        "{by_password:?}"
    );
    let md5 = "8c4a4c4c69037e696632871fa1d6d90a";
    assert_eq!(
        answer(&format!("md5_cred={md5}\nrealm=realm.example"), challenge),
        by_password
    );
    assert_eq!(answer(&format!("md5_cred={md5}"), challenge), by_password);
    assert_eq!(
        answer(&format!("password_digest=MD5:{md5}\nrealm=*"), challenge),
        by_password
    );
    assert_eq!(
        answer(&format!("md5_cred={md5}\nrealm=other.example"), challenge),
        None
    );
    assert_eq!(
        answer("password=s3cr3t\nrealm=other.example", challenge),
        None
    );
}

#[test]
fn sha_256_is_answered_where_the_file_lists_it_and_only_there() {
    let challenge = "Digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=SHA-256";
    assert_eq!(answer("password=s3cr3t", challenge), None);
    let listed = answer(
        "password=s3cr3t\nsupported_algorithms_uac=SHA-256,MD5",
        challenge,
    );
    assert!(
        listed
            .as_ref()
            .is_some_and(|value| value.contains("algorithm=SHA-256")),
        "{listed:?}"
    );
    let md5 = "Digest realm=\"r\", nonce=\"n\", qop=\"auth\"";
    assert_eq!(
        answer("password=s3cr3t\nsupported_algorithms_uac=SHA-256", md5),
        None
    );
}
