//! A loaded `pjsip.conf` beside the decision procedure of the reference (BEHAVIOUR §4), written down once more as a model:
//! whatever the answers, the next REGISTER is when the model says, or there is none.

use assert_matches::assert_matches;
use sip_registration::pjsip_conf::{Files, Loaded, load, load_under};
use sip_registration::testkit::{Reply, SentRequest, Sim};
use sip_registration::*;
use std::io;
use std::time::Duration;

use super::machine::{due, secs};

struct File(String);

impl Files for File {
    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// The registration of a file with these lines in its section.
pub(crate) fn section(lines: &str) -> Registration {
    let text = format!(
        "[udp]\ntype=transport\nprotocol=udp\nbind=0.0.0.0\n[own]\ntype=auth\nusername=alice\npassword=secret\n\
         [a]\ntype=registration\nclient_uri=sip:alice@example.com\n{lines}"
    );
    let loaded = load(&File(text), "pjsip.conf");
    let section = loaded.registration("a");
    Registration::clone(&section.expect("in order").registration)
}

/// What is drawn from a seed.
struct Dice(u64);

impl Dice {
    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        list[(self.0 >> 33) as usize % list.len()]
    }
}

/// The options that decide, and the one counter that there is.
#[derive(Debug)]
struct Reference {
    retry_interval: u64,
    forbidden_retry_interval: u64,
    fatal_retry_interval: u64,
    max_retries: u64,
    auth_rejection_permanent: bool,
    retries: u64,
}

impl Reference {
    /// Steps 6 to 10 of BEHAVIOUR §4: after how many seconds it tries again, if it does. Retry-After has a cap here (D11).
    fn after(&mut self, code: u16, retry_after: u64) -> Option<u64> {
        let temporary = match code {
            401 | 407 => !self.auth_rejection_permanent,
            408 | 500 | 502 | 503 | 504 | 600.. => true,
            _ => false,
        };
        let left = self.retries < self.max_retries;
        if retry_after > 0 {
            return Some(retry_after.min(3600));
        }
        let after = if temporary && self.retry_interval > 0 {
            self.retry_interval
        } else if code == 403 && self.forbidden_retry_interval > 0 {
            self.forbidden_retry_interval
        } else {
            self.fatal_retry_interval
        };
        self.retries += 1;
        (left && after > 0).then_some(after)
    }

    fn lines(&self) -> String {
        let permanent = if self.auth_rejection_permanent {
            "yes"
        } else {
            "no"
        };
        format!(
            "server_uri=sip:192.0.2.9\nretry_interval={}\nforbidden_retry_interval={}\nfatal_retry_interval={}\n\
             max_retries={}\nauth_rejection_permanent={permanent}\n",
            self.retry_interval,
            self.forbidden_retry_interval,
            self.fatal_retry_interval,
            self.max_retries
        )
    }
}

const CODES: [u16; 40] = [
    300, 302, 380, 400, 401, 402, 403, 404, 405, 406, 407, 408, 410, 413, 416, 420, 421, 423, 429,
    430, 439, 480, 486, 488, 494, 500, 501, 502, 503, 504, 505, 513, 555, 580, 600, 603, 604, 606,
    607, 699,
];

#[test]
fn after_each_answer_a_loaded_file_does_what_the_reference_does() {
    let mut dice = Dice(1);
    let (mut ends, mut waits) = (0, 0);
    for nth in 0..1000 {
        let mut reference = Reference {
            retry_interval: dice.one_of(&[0, 5, 60]),
            forbidden_retry_interval: dice.one_of(&[0, 30]),
            fatal_retry_interval: dice.one_of(&[0, 90]),
            max_retries: dice.one_of(&[0, 1, 3]),
            auth_rejection_permanent: dice.one_of(&[true, false]),
            retries: 0,
        };
        let mut sim = Sim::new(section(&reference.lines()));
        let mut told = format!("{nth}: {reference:?}");
        for _ in 0..8 {
            let register = due(&mut sim);
            let code = dice.one_of(&CODES);
            if dice.one_of(&[true, false, false, false, false]) {
                told.push_str(" 200");
                sim.reply(&register, Reply::granted(600));
                reference.retries = 0;
                assert_eq!(word(&sim), "Registered", "{told}");
                next(&mut sim, 590, &told);
                continue;
            }
            let silent = dice.one_of(&[true, false, false, false, false, false]);
            let retry_after = dice.one_of(&[0, 0, 60, 100_000]);
            let after = if silent {
                told.push_str(" silence");
                sim.advance(secs(32));
                sim.all_sent();
                reference.after(408, 0)
            } else {
                told.push_str(&format!(" {code}/{retry_after}"));
                let reply = Reply::status(code).header("Retry-After", &retry_after.to_string());
                sim.reply(&register, reply);
                reference.after(code, retry_after)
            };
            assert_eq!(word(&sim), "Rejected", "{told}");
            match after {
                Some(seconds) => {
                    waits += 1;
                    next(&mut sim, seconds, &told);
                }
                None => {
                    ends += 1;
                    assert_matches!(sim.events().last(), Some(Event::GaveUp { .. }), "{told}");
                    sim.advance(secs(1_000_000));
                    assert!(sim.is_silent(), "{told}");
                    break;
                }
            }
        }
    }
    assert!(ends > 300 && waits > 300, "{ends} {waits}");
}

fn word(sim: &Sim) -> String {
    sim.status().reference_status().to_string()
}

fn number(request: &SentRequest) -> u32 {
    let cseq = request.text_of("CSeq");
    let number = cseq.trim_end_matches(" REGISTER");
    number.parse().expect("a number")
}

/// Nothing is sent for just so long, and then something is.
fn next(sim: &mut Sim, seconds: u64, told: &str) {
    assert!(sim.is_silent(), "{told}");
    sim.advance(secs(seconds) - Duration::from_millis(1));
    assert!(sim.is_silent(), "{told}");
    sim.advance(Duration::from_millis(1));
    assert!(!sim.is_silent(), "nothing after {seconds} s: {told}");
}

/// 408, 503 and silence go on to the next address in the same attempt, the same request but for branch and CSeq; any other
/// answer is the registrar's word.
#[test]
fn a_loaded_file_fails_over_after_408_503_and_silence_alone() {
    let addresses = [9, 10].map(|last| std::net::Ipv4Addr::new(192, 0, 2, last).into());
    for code in CODES.into_iter().map(Some).chain([None]) {
        let mut sim = Sim::new(section("server_uri=sip:pbx.example.com:5060\n"));
        sim.resolve("pbx.example.com", Ok(addresses.to_vec()));
        let first = due(&mut sim);
        match code {
            Some(code) => sim.reply(&first, Reply::status(code)),
            None => sim.advance(secs(32)),
        }
        let sent = sim.all_sent();
        let mut others = sent.iter().filter(|one| one.target() != first.target());
        let Some(second) = others.next() else {
            assert!(!matches!(code, Some(408 | 503) | None), "{code:?}");
            continue;
        };
        assert_matches!(code, Some(408 | 503) | None);
        assert_eq!(number(second), number(&first) + 1);
        for same in ["Call-ID", "From", "To", "Contact", "Expires"] {
            assert_eq!(second.text_of(same), first.text_of(same), "{same}");
        }
        assert_ne!(second.text_of("Via"), first.text_of("Via"));
        // The list is at its end: the table, and the next attempt begins at its top.
        sim.reply(second, Reply::status(503));
        assert_eq!(word(&sim), "Rejected");
        next(&mut sim, 60, "all failed");
        assert_eq!(sim.sent().target(), first.target());
    }
}

/// Each fresh request has a From tag of its own and no credentials; Call-ID stays, CSeq counts on.
#[test]
fn requests_of_a_loaded_file_are_one_call_and_begin_without_credentials() {
    let mut sim = Sim::new(section("server_uri=sip:192.0.2.9\noutbound_auth=own\n"));
    let (mut tags, mut last) = (Vec::new(), None);
    for code in [200, 200, 500, 403] {
        let first = due(&mut sim);
        assert_eq!(first.text_of("Authorization"), "");
        sim.reply(&first, Reply::challenge("r", &format!("n{}", tags.len())));
        let answer = sim.sent();
        assert!(answer.text_of("Authorization").contains("nc=00000001"));
        assert_eq!(answer.text_of("From"), first.text_of("From"));
        assert_eq!(answer.text_of("Call-ID"), first.text_of("Call-ID"));
        assert_eq!(number(&answer), number(&first) + 1);
        if let Some((call_id, cseq)) = last.replace((first.text_of("Call-ID"), number(&answer))) {
            assert_eq!(
                (call_id, cseq + 1),
                (first.text_of("Call-ID"), number(&first))
            );
        }
        assert!(!tags.contains(&first.text_of("From")));
        tags.push(first.text_of("From"));
        match code {
            200 => sim.reply(&answer, Reply::granted(600)),
            code => sim.reply(&answer, Reply::status(code)),
        }
    }
}

/// D6: in `asterisk()` the options decide alone. Where refused credentials have ended it, neither time nor another
/// registration brings it back, but `retry_credentials`.
#[test]
fn d6_refused_credentials_of_a_loaded_file_follow_its_options_alone() {
    for (lines, cycles, apart) in [
        ("", 1, 0),
        ("auth_rejection_permanent=no\n", 11, 60),
        (
            "auth_rejection_permanent=no\nretry_interval=5\nmax_retries=7\n",
            8,
            5,
        ),
        ("auth_rejection_permanent=no\nretry_interval=0\n", 1, 0),
        ("fatal_retry_interval=90\nmax_retries=4\n", 5, 90),
    ] {
        let lines = format!("server_uri=sip:192.0.2.9\noutbound_auth=own\n{lines}");
        let mut sim = Sim::new(section(&lines));
        let refuse = |sim: &mut Sim, nth: u64| {
            let register = due(sim);
            let at = sim.elapsed();
            sim.reply(&register, Reply::challenge("r", &format!("a{nth}")));
            let answer = sim.sent();
            assert_ne!(answer.text_of("Authorization"), "");
            sim.reply(&answer, Reply::challenge("r", &format!("b{nth}")));
            assert!(sim.is_silent(), "answered once: {lines}");
            at
        };
        let first = refuse(&mut sim, 0);
        for nth in 1..cycles {
            assert_eq!(refuse(&mut sim, nth), first + secs(nth * apart), "{lines}");
        }
        assert_matches!(
            sim.events().last(),
            Some(Event::GaveUp {
                failure: Failure::CredentialsRefused { .. },
                ..
            }),
            "{lines}"
        );
        sim.advance(secs(100_000));
        // Another one of the account that gets through.
        let other = sim.add(section(&lines));
        let register = due(&mut sim);
        sim.reply(&register, Reply::granted(3600));
        sim.remove(other, secs(0));
        sim.advance(secs(100_000));
        sim.all_sent();
        assert_eq!(sim.status().activity, Activity::Idle);
        assert_eq!(word(&sim), "Rejected");
        sim.input(Input::RetryCredentials);
        let register = sim.sent();
        sim.reply(&register, Reply::granted(600));
        assert_eq!(word(&sim), "Registered");
    }
}

/// An attempt has 96 s and 8 targets (D3), and remembers no dead ones: the next attempt begins with the first target that
/// this one did not come to, so that one which answers is found behind any number of silent ones.
#[test]
fn a_loaded_file_finds_the_server_that_answers_behind_silent_ones() {
    let all: Vec<std::net::IpAddr> = (1..=10)
        .map(|last| std::net::Ipv4Addr::new(192, 0, 2, last).into())
        .collect();
    for dead in 0..10 {
        let mut sim = Sim::new(section("server_uri=sip:pbx.example.com:5060\n"));
        sim.resolve("pbx.example.com", Ok(all.clone()));
        let (mut tried, mut attempts) = (Vec::new(), 1);
        while !sim.status().is_registered() {
            let next = sim.deadline().expect("it goes on");
            sim.advance(next);
            let events = sim.events();
            let failed = |event: &&Event| matches!(event, Event::Rejected { .. });
            attempts += events.iter().filter(failed).count();
            for request in sim.all_sent() {
                let address = request.target().address().ip();
                let number = all.iter().position(|one| *one == address);
                let number = number.expect("one of them");
                if tried.last() != Some(&number) {
                    tried.push(number);
                }
                if number == dead {
                    sim.reply(&request, Reply::granted(600));
                }
            }
        }
        assert_eq!(tried, (0..=dead).collect::<Vec<_>>());
        assert_eq!(attempts, dead / 3 + 1, "{dead} are silent");
        // Its refresh begins at the top again (D12).
        assert_eq!(due(&mut sim).target().address().ip(), all[0]);
    }
}

/// Where one of two servers asks for time and the other one does not, the wait is no longer than that after any failure; with
/// `retry_interval=0` there is none such, and who asked is given the time.
#[test]
fn a_server_that_asks_for_time_beside_one_that_does_not_is_asked_after_the_interval() {
    let addresses = [9, 10].map(|last| std::net::Ipv4Addr::new(192, 0, 2, last).into());
    for (interval, after) in [(60, 60), (200, 120), (0, 120)] {
        let mut sim = Sim::new(section(&format!(
            "server_uri=sip:pbx.example.com:5060\nretry_interval={interval}\n"
        )));
        sim.resolve("pbx.example.com", Ok(addresses.to_vec()));
        let first = due(&mut sim);
        sim.reply(&first, Reply::status(503));
        let second = sim.sent();
        sim.reply(&second, Reply::status(503).header("Retry-After", "120"));
        next(&mut sim, after, "both failed");
    }
}

/// What a file has no option for is the host's to say; what it has one for is the file's.
#[test]
fn a_policy_of_ones_own_decides_what_the_file_has_no_option_for() {
    const PLAIN: &str = "[udp]\ntype=transport\nbind=0.0.0.0\n[a]\ntype=registration\nserver_uri=sip:192.0.2.9\nclient_uri=sip:a@example.com\n";
    let mut policy = Policy::persistent();
    policy.inbound_from = InboundFrom::Flow;
    policy.keep_transcript = true;
    let mut text = PLAIN.to_owned();
    let mut loaded = load_under(&File(text.clone()), "pjsip.conf", policy);
    for round in 0..2 {
        let now = policy_in(&loaded);
        assert_eq!(now.inbound_from, InboundFrom::Flow, "{round}");
        assert!(now.keep_transcript, "{round}");
        let retry = secs(60 + 30 * round);
        assert_eq!(
            now.retry.retry_interval, retry,
            "the file's, or its default"
        );
        assert_eq!(now.retry.max_retries, Some(10));
        text.push_str("retry_interval=90\n");
        loaded = loaded.reload(&File(text.clone()), "pjsip.conf");
    }
    // A file that cannot be read changes nothing of that either.
    let broken = loaded.reload(&File("[a".to_owned()), "pjsip.conf");
    let again = broken.reload(&File(text), "pjsip.conf");
    assert_eq!(policy_in(&again).inbound_from, InboundFrom::Flow);
    let plain = load(&File(PLAIN.to_owned()), "pjsip.conf");
    assert_eq!(policy_in(&plain).inbound_from, InboundFrom::Anywhere);
}

fn policy_in(loaded: &Loaded) -> Policy {
    let (_, registration) = loaded.registrations().next().expect("one");
    Policy::clone(registration.policy())
}
