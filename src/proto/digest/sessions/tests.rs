use super::*;
use crate::config::credentials::CredentialsError;
use crate::proto::digest::parse_challenges;
use assert_matches::assert_matches;

const URI: &str = "sip:example.com;transport=tcp";
const KEY: [u8; 16] = [9; 16];

/// A registration of alice, and what its server says.
struct Script {
    sessions: Sessions,
    credentials: Vec<Credentials>,
    rules: Rules<'static>,
    entropy: Entropy,
    unasked: bool,
}

impl Script {
    fn new() -> Self {
        Self::with(vec![Credentials::password("alice", "secret")])
    }

    fn with(credentials: Vec<Credentials>) -> Self {
        let entropy = Entropy::from_seed([1; 32]);
        Self {
            sessions: Sessions::default(),
            credentials,
            rules: Rules::default(),
            entropy,
            unasked: true,
        }
    }

    /// The header lines of the next REGISTER.
    fn send(&mut self) -> String {
        let mut out = String::new();
        self.sessions
            .authorize(URI, &mut self.entropy, self.unasked, &mut out);
        out
    }

    fn told(&mut self, role: Role, values: &[&str]) -> Reaction {
        let mut challenges = Vec::new();
        values
            .iter()
            .for_each(|value| parse_challenges(value, &mut challenges));
        self.sessions
            .challenged(role, &challenges, &self.credentials, &self.rules)
    }

    /// A 401 with one challenge of realm `r`.
    fn told_401(&mut self, nonce: &str, more: &str) -> Reaction {
        self.told(Role::Origin, &[&digest("r", nonce, more)])
    }

    fn told_407(&mut self, nonce: &str) -> Reaction {
        self.told(Role::Proxy, &[&digest("p", nonce, "")])
    }

    /// Registered with nonce `n1` in a cycle that is over; the next has begun.
    fn registered() -> Self {
        let mut script = Self::new();
        script.sessions.begin_cycle();
        assert_eq!(script.send(), "");
        assert_eq!(script.told_401("n1", ""), ANSWER);
        assert_eq!(nc(&script.send()), ["n1 00000001"]);
        script.sessions.accepted();
        script.sessions.begin_cycle();
        script
    }
}

const ANSWER: Reaction = Reaction::Answer { weak_first: false };

fn digest(realm: &str, nonce: &str, more: &str) -> String {
    format!(r#"Digest realm="{realm}", nonce="{nonce}", qop="auth"{more}"#)
}

fn param<'a>(line: &'a str, name: &str) -> &'a str {
    let rest = line
        .split(", ")
        .find_map(|part| part.trim_end().strip_prefix(name)?.strip_prefix('='));
    rest.unwrap_or_default().trim_matches('"')
}

/// `nonce nc` of each header line.
fn nc(lines: &str) -> Vec<String> {
    lines
        .lines()
        .map(|line| format!("{} {}", param(line, "nonce"), param(line, "nc")))
        .collect()
}

fn names(lines: &str) -> Vec<&str> {
    lines
        .lines()
        .filter_map(|line| line.split(": ").next())
        .collect()
}

#[test]
fn the_answer_is_the_hash_of_what_is_in_it() {
    let mut script = Script::new();
    assert_eq!(
        script.told_401("n1", ", algorithm=SHA-256, opaque=\"\""),
        ANSWER
    );
    let line = script.send();
    let ha1 = crate::proto::digest::response::hash(Algorithm::Sha256, &["alice", "r", "secret"]);
    let expected = Answer {
        algorithm: Algorithm::Sha256,
        sess: false,
        ha1: ha1.as_str(),
        nonce: "n1",
        cnonce: param(&line, "cnonce"),
        nc: 1,
        qop: Some(Qop::Auth),
        method: "REGISTER",
        uri: URI,
        body: b"",
    };
    assert_eq!(param(&line, "response"), expected.response().as_str());
    assert_eq!(param(&line, "cnonce").len(), 32);
    assert!(
        line.starts_with("Authorization: Digest username=\"alice\", ") && line.ends_with("\r\n"),
        "{line}"
    );
    assert_eq!(script.sessions.algorithm_used(), Some(Algorithm::Sha256));
}

#[test]
fn without_qop_there_is_neither_count_nor_cnonce() {
    let mut script = Script::new();
    assert_eq!(
        script.told(Role::Origin, &[r#"Digest realm="r", nonce="n""#]),
        ANSWER
    );
    let line = script.send();
    assert!(
        !line.contains("nc=") && !line.contains("cnonce=") && !line.contains("qop="),
        "{line}"
    );
}

#[test]
fn f14_an_expired_nonce_without_stale_is_answered_once() {
    let mut script = Script::registered();
    assert_eq!(nc(&script.send()), ["n1 00000002"]);
    assert_eq!(script.told_401("n2", ""), ANSWER);
    assert_eq!(nc(&script.send()), ["n2 00000001"]);
    assert_matches!(script.told_401("n3", ""), Reaction::Refused(_));
    assert_eq!(script.send(), "");
}

#[test]
fn f14_wrong_credentials_are_refused_after_one_answer() {
    let mut script = Script::new();
    assert_eq!(script.told_401("n1", ""), ANSWER);
    script.send();
    let refusal = assert_matches!(script.told_401("n2", ""), Reaction::Refused(refusal) => refusal);
    assert_eq!((refusal.username(), refusal.realm.as_str()), ("alice", "r"));
    let configured = Resolved::new(script.credentials[0].clone(), None);
    assert_eq!(refusal.fingerprint(&KEY), configured.fingerprint(&KEY, "r"));
    assert_eq!(script.send(), "");
}

#[test]
fn f15_the_count_of_a_nonce_goes_on_across_refreshes() {
    let mut script = Script::registered();
    let first = script.send();
    assert_eq!(nc(&first), ["n1 00000002"]);
    script.sessions.accepted();
    script.sessions.begin_cycle();
    let second = script.send();
    assert_eq!(nc(&second), ["n1 00000003"]);
    assert_eq!(param(&first, "cnonce"), param(&second, "cnonce"));
    assert_ne!(param(&first, "response"), param(&second, "response").trim());
}

#[test]
fn f15_a_nonce_sent_again_is_counted_on() {
    for failed_between in [false, true] {
        let mut script = Script::registered();
        script.unasked = false;
        if failed_between {
            script.sessions.clear_for_retry();
        }
        assert_eq!(script.send(), "");
        assert_eq!(script.told_401("n1", ""), ANSWER);
        assert_eq!(nc(&script.send()), ["n1 00000002"]);
        // Used before: its refusal says nothing about the password, once.
        assert_eq!(script.told_401("n2", ""), ANSWER);
        assert_eq!(nc(&script.send()), ["n2 00000001"]);
        assert_matches!(script.told_401("n3", ""), Reaction::Refused(_));
    }
}

#[test]
fn f16_the_topmost_supported_and_allowed_challenge_is_answered_once_a_realm() {
    let value = |algorithm: &str| digest("r", algorithm, &format!(", algorithm={algorithm}"));
    let all = Rules::default();
    let strict = Rules {
        reject_md5: true,
        ..all
    };
    let asterisk = Rules {
        algorithms: &[Algorithm::Md5],
        sess: false,
        auth_int: false,
        ..all
    };
    for (rules, offered, expected, weak_first) in [
        (
            all,
            &["AKAv1-MD5", "SHA-512-256", "SHA-256", "MD5"][..],
            "SHA-512-256",
            false,
        ),
        (all, &["SHA-256", "MD5"], "SHA-256", false),
        (all, &["MD5", "SHA-256"], "MD5", true),
        (all, &["MD5-sess", "MD5"], "MD5-sess", false),
        (strict, &["MD5", "SHA-256"], "SHA-256", false),
        (asterisk, &["MD5-sess", "SHA-256", "MD5"], "MD5", false),
    ] {
        for joined in [false, true] {
            let mut script = Script::new();
            script.rules = rules;
            let mut values: Vec<_> = offered.iter().map(|one| value(one)).collect();
            if joined {
                values = vec![values.join(", ")];
            }
            let values: Vec<_> = values.iter().map(String::as_str).collect();
            assert_eq!(
                script.told(Role::Origin, &values),
                Reaction::Answer { weak_first },
                "{offered:?}"
            );
            let lines = script.send();
            assert_eq!(lines.lines().count(), 1);
            assert_eq!(
                (param(&lines, "algorithm"), param(&lines, "nonce")),
                (expected, expected)
            );
        }
    }
}

#[test]
fn d4_the_fourth_stale_of_a_cycle_is_the_limit() {
    for same in [false, true] {
        let mut script = Script::new();
        assert_eq!(script.told_401("n", ""), ANSWER);
        for round in 1..=4 {
            assert_eq!(script.send().lines().count(), 1);
            let nonce = if same {
                "n".to_owned()
            } else {
                format!("n{round}")
            };
            let reaction = script.told_401(&nonce, ", stale=TRUE");
            match round {
                4 => assert_eq!(
                    reaction,
                    Reaction::StaleLimit {
                        realm: "r".to_owned()
                    }
                ),
                _ => assert_eq!(reaction, ANSWER),
            }
        }
        assert_eq!(script.send(), "");
        script.sessions.begin_cycle();
        script.send();
        assert_eq!(script.told_401("later", ""), ANSWER);
    }
}

#[test]
fn d4_a_nonce_after_stale_is_refused_like_any_other() {
    let mut script = Script::registered();
    script.send();
    assert_eq!(script.told_401("n2", ", stale=true"), ANSWER);
    script.send();
    assert_matches!(script.told_401("n3", ", stale=false"), Reaction::Refused(_));
}

#[test]
fn d4_the_same_nonce_without_stale_is_a_refusal() {
    let mut script = Script::registered();
    script.send();
    assert_matches!(script.told_401("n1", ""), Reaction::Refused(_));
}

#[test]
fn d4_a_nonce_used_before_in_this_cycle_is_answered_once_more() {
    let mut script = Script::new();
    assert_eq!(script.told_401("n1", ""), ANSWER);
    script.send();
    // 423: the request is built anew.
    script.sessions.begin_request();
    assert_eq!(nc(&script.send()), ["n1 00000002"]);
    assert_eq!(script.told_401("n2", ""), ANSWER);
    script.send();
    assert_matches!(script.told_401("n3", ""), Reaction::Refused(_));
}

#[test]
fn d4_407_then_401_keeps_both_answers() {
    let mut script = Script::new();
    script.unasked = false;
    assert_eq!(script.told_407("p1"), ANSWER);
    assert_eq!(names(&script.send()), ["Proxy-Authorization"]);
    assert_eq!(script.told_401("n1", ""), ANSWER);
    let due: Vec<_> = script
        .sessions
        .due()
        .map(|due| due.realm.to_owned())
        .collect();
    assert_eq!(due, ["r"]);
    let lines = script.send();
    assert_eq!(names(&lines), ["Proxy-Authorization", "Authorization"]);
    assert_eq!(nc(&lines), ["p1 00000002", "n1 00000001"]);
    // D3: 407, 401, 423, 407, 401, 200.
    script.sessions.begin_request();
    assert_eq!(script.send(), "");
    assert_eq!(script.told_407("p2"), ANSWER);
    assert_eq!(nc(&script.send()), ["p2 00000001"]);
    assert_eq!(script.told_401("n2", ""), ANSWER);
    assert_eq!(nc(&script.send()), ["p2 00000002", "n2 00000001"]);
}

#[test]
fn d4_a_proxy_and_a_registrar_of_the_same_realm_are_told_apart() {
    let mut script = Script::new();
    assert_eq!(script.told(Role::Proxy, &[&digest("r", "a", "")]), ANSWER);
    script.send();
    assert_eq!(script.told_401("a", ""), ANSWER);
    assert_eq!(nc(&script.send()), ["a 00000002", "a 00000001"]);
}

#[test]
fn d4_every_realm_with_credentials_is_answered_and_one_is_enough() {
    let bound = |realm: &str| Credentials::password(format!("of-{realm}"), "x").realm(realm);
    let values = [
        digest("a", "1", ""),
        digest("b", "2", ""),
        digest("c", "3", ""),
    ];
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    let mut script = Script::with(vec![bound("A"), bound("c")]);
    assert_eq!(script.told(Role::Proxy, &values), ANSWER);
    let lines = script.send();
    let users: Vec<_> = lines
        .lines()
        .map(|line| param(line, "Proxy-Authorization: Digest username"))
        .collect();
    assert_eq!(users, ["of-A", "of-c"]);

    let mut script = Script::with(vec![bound("z")]);
    let none = Unanswerable::NoCredentials {
        realm: "a".to_owned(),
    };
    assert_eq!(
        script.told(Role::Proxy, &values),
        Reaction::Unanswerable(none)
    );
    assert!(script.sessions.is_empty() && script.send().is_empty());
}

#[test]
fn d4_a_realm_spelled_otherwise_is_no_new_one() {
    let mut script = Script::new();
    assert_eq!(script.told_401("n1", ""), ANSWER);
    script.send();
    assert_matches!(
        script.told(Role::Origin, &[&digest("R", "n2", "")]),
        Reaction::Refused(_)
    );
}

#[test]
fn d5_sha2_is_not_followed_by_md5_until_the_configuration_changes() {
    let md5 = [digest("r", "n2", ", algorithm=MD5")];
    let md5: Vec<_> = md5.iter().map(String::as_str).collect();
    for refuse in [true, false] {
        let mut script = Script::new();
        script.rules.downgrade_refuse = refuse;
        assert_eq!(script.told_401("n1", ", algorithm=SHA-256"), ANSWER);
        script.send();
        script.sessions.accepted();
        script.sessions.clear_for_retry();
        assert_eq!(script.send(), "");
        let downgrade = Reaction::Unanswerable(Unanswerable::Downgrade {
            realm: "r".to_owned(),
        });
        let reaction = script.told(Role::Origin, &md5);
        assert_eq!(reaction, if refuse { downgrade } else { ANSWER });
        script.sessions.forget();
        assert!(script.sessions.is_empty());
        assert_eq!(script.told(Role::Origin, &md5), ANSWER);
    }
}

#[test]
fn d5_what_cannot_be_answered_says_why() {
    use Unanswerable as U;
    let realm = || "r".to_owned();
    let strict = Rules {
        reject_md5: true,
        auth_int: false,
        ..Rules::default()
    };
    for (values, expected) in [
        (&[][..], U::NoChallenge),
        (&["Basic realm=\"r\""], U::NoChallenge),
        (&["Digest realm=\"r\""], U::Malformed),
        (
            &[
                "Digest realm=\"r\", nonce=\"n\"",
                "Digest realm=\"r\", nonce=\"n\", algorithm=AKAv1-MD5",
            ],
            U::Algorithm {
                realm: realm(),
                offered: vec!["MD5".to_owned(), "AKAv1-MD5".to_owned()],
            },
        ),
        (
            &["Digest realm=\"r\", nonce=\"n\", algorithm=SHA-256, qop=\"auth-int\""],
            U::Qop { realm: realm() },
        ),
    ] {
        let mut script = Script::new();
        script.rules = strict;
        assert_eq!(
            script.told(Role::Origin, values),
            Reaction::Unanswerable(expected)
        );
    }
}

#[test]
fn d5_a_hash_decides_which_challenge_it_can_answer() -> Result<(), CredentialsError> {
    let hashed = Credentials::ha1("alice", "r", Algorithm::Md5, "0".repeat(32))?;
    let mut script = Script::with(vec![hashed]);
    let values = [
        digest("r", "1", ", algorithm=SHA-256"),
        digest("r", "2", ", algorithm=MD5"),
    ];
    assert_eq!(script.told(Role::Origin, &[&values[0], &values[1]]), ANSWER);
    assert_eq!(nc(&script.send()), ["2 00000001"]);
    Ok(())
}

#[test]
fn credentials_go_unasked_only_after_success_and_where_the_profile_says_so() {
    let mut script = Script::registered();
    script.unasked = false;
    assert_eq!(script.send(), "");
    script.unasked = true;
    assert_eq!(script.send().lines().count(), 1);
    script.sessions.clear_for_retry();
    assert_eq!(script.send(), "");

    // Answered, and the cycle ended without a final answer.
    let mut script = Script::new();
    assert_eq!(script.told_401("n1", ""), ANSWER);
    script.send();
    script.sessions.begin_cycle();
    assert_eq!(script.send(), "");
}

#[test]
fn a_secret_is_asked_for_and_kept_while_it_is_accepted() -> Result<(), CredentialsError> {
    let mut script = Script::with(vec![Credentials::provided("alice")]);
    let values = [
        digest("r", "1", ", algorithm=SHA-256"),
        digest("r", "2", ", algorithm=MD5"),
    ];
    let values = [values[0].as_str(), values[1].as_str()];
    let query = assert_matches!(script.told(Role::Origin, &values), Reaction::Ask(query) => query);
    assert_eq!(
        (query.username.as_str(), query.realm.as_str()),
        ("alice", "r")
    );
    assert_eq!(query.algorithms, [Algorithm::Sha256, Algorithm::Md5]);
    assert_eq!(script.send(), "");
    let hash = Secret::ha1(Algorithm::Md5, "0".repeat(32))?;
    assert_eq!(
        script.sessions.provide(Role::Origin, "r", Some(hash)),
        ANSWER
    );
    assert_eq!(
        script
            .sessions
            .due()
            .map(|due| due.accepted_before)
            .collect::<Vec<_>>(),
        [false]
    );
    assert_eq!(nc(&script.send()), ["2 00000001"]);
    script.sessions.accepted();

    script.sessions.begin_cycle();
    script.send();
    assert_eq!(script.told_401("3", ""), ANSWER);
    assert_eq!(
        script
            .sessions
            .due()
            .map(|due| due.accepted_before)
            .collect::<Vec<_>>(),
        [true]
    );
    script.send();
    assert_matches!(script.told_401("4", ""), Reaction::Refused(_));
    script.sessions.clear_for_retry();
    script.send();
    assert_matches!(script.told_401("5", ""), Reaction::Ask(_));
    let none = Reaction::Unanswerable(Unanswerable::NoSecret {
        realm: "r".to_owned(),
    });
    assert_eq!(script.sessions.provide(Role::Origin, "r", None), none);
    Ok(())
}

#[test]
fn several_secrets_are_asked_for_one_after_the_other() {
    let mut script = Script::with(vec![Credentials::provided("alice")]);
    let values = [digest("a", "1", ""), digest("b", "2", "")];
    let query = assert_matches!(script.told(Role::Proxy, &[&values[0], &values[1]]), Reaction::Ask(query) => query);
    assert_eq!(query.realm, "a");
    let reaction = script
        .sessions
        .provide(Role::Proxy, "a", Some(Secret::password("x")));
    let query = assert_matches!(reaction, Reaction::Ask(query) => query);
    assert_eq!(query.realm, "b");
    assert_eq!(script.sessions.provide(Role::Proxy, "b", None), ANSWER);
    assert_eq!(nc(&script.send()), ["1 00000001"]);
}

#[test]
fn due_answers_match_their_refusal() {
    let mut script = Script::new();
    assert_eq!(script.told_401("n1", ""), ANSWER);
    let due: Vec<_> = script
        .sessions
        .due()
        .map(|due| (due.accepted_before, due.fingerprint(&KEY)))
        .collect();
    script.send();
    assert_eq!(script.sessions.due().count(), 0);
    let refusal = assert_matches!(script.told_401("n2", ""), Reaction::Refused(refusal) => refusal);
    assert_eq!(due, [(false, refusal.fingerprint(&KEY))]);
}

#[test]
fn nextnonce_is_used_first_and_counts_as_an_older_one_in_the_next_cycle() {
    let mut script = Script::registered();
    let before = script.send();
    script.sessions.accepted();
    let info = "qop=auth , NextNonce = \"n2\"";
    assert_eq!(
        script
            .sessions
            .authentication_info(Role::Origin, info, URI, b""),
        ServerProof::Absent
    );
    script.sessions.begin_cycle();
    let after = script.send();
    assert_eq!(nc(&after), ["n2 00000001"]);
    assert_ne!(param(&before, "cnonce"), param(&after, "cnonce"));
    assert_eq!(script.told_401("n3", ""), ANSWER);
    script.send();
    assert_matches!(script.told_401("n4", ""), Reaction::Refused(_));
}

#[test]
fn rspauth_is_checked() {
    for sess in [false, true] {
        let mut script = Script::new();
        let algorithm = if sess {
            ", algorithm=SHA-256-sess"
        } else {
            ", algorithm=SHA-256"
        };
        assert_eq!(script.told_401("n1", algorithm), ANSWER);
        let line = script.send();
        script.sessions.accepted();
        let h = |text: String| {
            crate::proto::digest::response::hash(Algorithm::Sha256, &[text.as_str()])
                .as_str()
                .to_owned()
        };
        let cnonce = param(&line, "cnonce");
        let mut a1 = h("alice:r:secret".to_owned());
        if sess {
            a1 = h(format!("{a1}:n1:{cnonce}"));
        }
        let right = h(format!(
            "{a1}:n1:00000001:{cnonce}:auth:{}",
            h(format!(":{URI}"))
        ));
        let mut said = |rspauth: &str, next: &str| {
            let value = format!(
                "qop=auth, rspauth=\"{rspauth}\", cnonce=\"{cnonce}\", nc=00000001, nextnonce=\"{next}\""
            );
            script
                .sessions
                .authentication_info(Role::Origin, &value, URI, b"")
        };
        assert_eq!(said("0", "evil"), ServerProof::Wrong);
        assert_eq!(said(&right, "n2"), ServerProof::Right);
        script.sessions.begin_cycle();
        assert_eq!(nc(&script.send()), ["n2 00000001"]);
        let nothing = script
            .sessions
            .authentication_info(Role::Proxy, "nextnonce=\"x\"", URI, b"");
        assert_eq!(nothing, ServerProof::Absent);
    }
}

#[test]
fn a_server_that_makes_up_realms_does_not_fill_the_memory() {
    let mut script = Script::new();
    for round in 0..200 {
        script.sessions.begin_cycle();
        let more = if round == 0 {
            ", algorithm=SHA-256"
        } else {
            ""
        };
        assert_eq!(
            script.told(Role::Origin, &[&digest(&format!("r{round}"), "n", more)]),
            ANSWER
        );
        script.send();
    }
    assert!(script.sessions.0.len() <= MOST_REALMS * 2);
    assert!(
        script.sessions.0.iter().any(|session| session.sha2),
        "what was answered with SHA-2 stays"
    );
}

#[test]
fn nothing_secret_is_shown() {
    let mut script = Script::new();
    assert_eq!(script.told_401("geheim", ""), ANSWER);
    let line = script.send();
    let shown = format!("{:?}", script.sessions);
    let shown = format!("{shown} {:?}", script.told_401("geheim", ""));
    for secret in [
        "geheim",
        "secret\"",
        param(&line, "cnonce"),
        param(&line, "response"),
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn an_idle_registration_pays_one_vector() {
    assert_eq!(size_of::<Sessions>(), size_of::<Vec<()>>());
    assert!(size_of::<Session>() <= 48, "{}", size_of::<Session>());
}

/// Whatever a server says, a cycle without `stale` ends after few answers.
#[test]
fn d4_no_script_of_401_is_answered_for_ever() {
    let mut entropy = Entropy::from_seed([3; 32]);
    for _ in 0..2000 {
        let mut script = if entropy.below(2) == 0 {
            Script::new()
        } else {
            Script::registered()
        };
        let mut answers = 0;
        script.send();
        loop {
            let nonce = format!("n{}", entropy.below(4));
            let stale = if entropy.below(3) == 0 {
                ", stale=true"
            } else {
                ""
            };
            let sess = if entropy.below(3) == 0 {
                ", algorithm=MD5-sess"
            } else {
                ""
            };
            match script.told_401(&nonce, &format!("{stale}{sess}")) {
                Reaction::Answer { .. } => answers += 1,
                Reaction::Refused(_) | Reaction::StaleLimit { .. } => break,
                other => panic!("{other:?}"),
            }
            script.send();
        }
        // One to begin with, three stale ones, one for each nonce known before.
        assert!(answers <= 9, "{answers}");
    }
}
