use super::*;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A client as plain as can be: it sends what it is told.
struct Client {
    server: TestServer,
    now: Duration,
    cseq: u32,
}

impl Client {
    fn of(server: TestServer) -> Self {
        Self {
            server,
            now: Duration::ZERO,
            cseq: 0,
        }
    }

    fn open(server: TestServer) -> Self {
        Self::of(server.require_auth(false))
    }

    fn replies(&mut self, cseq: u32, headers: &str) -> Vec<ServerReply> {
        let request = format!(
            "REGISTER sip:test SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;rport;branch=z9hG4bK{cseq}-{}\r\n\
             f: <sip:alice@test>;tag=1\r\nt: <sip:alice@test>\r\ni: c\r\nCSeq: {cseq} REGISTER\r\n{headers}\r\n",
            headers.len()
        );
        let source = "192.0.2.1:4000".parse().unwrap();
        self.server
            .handle(self.now, source, Protocol::Udp, request.as_bytes())
    }

    fn sends(&mut self, headers: &str) -> String {
        self.cseq += 1;
        let replies = self.replies(self.cseq, headers);
        replies
            .first()
            .map(|reply| String::from_utf8_lossy(&reply.message).into_owned())
            .unwrap_or_default()
    }

    fn code(&mut self, headers: &str) -> String {
        self.sends(headers)
            .get(8..11)
            .unwrap_or_default()
            .to_owned()
    }

    fn contacts(&self) -> Vec<String> {
        self.server
            .bindings("sip:alice@test")
            .into_iter()
            .map(|binding| binding.contact)
            .collect()
    }
}

fn value<'a>(challenge: &'a str, name: &str) -> &'a str {
    let start = challenge.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
    challenge[start..].split('"').next().unwrap()
}

/// Credentials of alice for `challenge`.
fn credentials(algorithm: ServerAlgorithm, challenge: &str, password: &str, count: u32) -> String {
    let (nonce, realm, token) = (
        value(challenge, "nonce"),
        value(challenge, "realm"),
        algorithm.token(),
    );
    let ha1 = algorithm.hash(&format!("alice:{realm}:{password}"));
    let ha2 = algorithm.hash("REGISTER:sip:test");
    let response = algorithm.hash(&format!("{ha1}:{nonce}:{count:08x}:cn:auth:{ha2}"));
    format!(
        "Authorization: Digest username=\"alice\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"sip:test\", \
         response=\"{response}\", algorithm={token}, cnonce=\"cn\", opaque=\"testserver\", qop=auth, nc={count:08x}\r\n"
    )
}

const CONTACT: &str = "m: <sip:alice@10.0.0.1:5060;line=a>;q=0.5;Expires=60\r\n";

#[test]
fn a_binding_is_stored_told_refreshed_and_expires() {
    let mut client = Client::open(TestServer::new().grant(secs(50)));
    let answer = client.sends(CONTACT);
    assert!(
        answer.contains("\r\nContact: <sip:alice@10.0.0.1:5060;line=a>;q=0.5;expires=50\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains(";rport=4000;branch=z9hG4bK1-")
            && answer.contains(";received=192.0.2.1\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nTo: <sip:alice@test>;tag=ts"),
        "{answer}"
    );
    client.now = secs(40);
    assert!(client.sends("").contains(";expires=10\r\n"));
    assert!(client.sends(CONTACT).contains(";expires=50\r\n"));
    client.now = secs(89);
    assert!(client.sends("").contains(";expires=1\r\n"));
    client.now = secs(90);
    assert!(!client.sends("").contains("Contact"));
    assert_eq!(client.contacts().len(), 0);
}

#[test]
fn several_bindings_go_one_by_one_or_all_at_once() {
    let mut client = Client::open(TestServer::new());
    client.sends("Contact: <sip:a@h>, \"x, y\" <sip:b@h>\r\nContact: sip:c@h;expires=9\r\n");
    assert_eq!(client.contacts(), ["sip:a@h", "sip:b@h", "sip:c@h"]);
    client.sends("Contact: <sip:b@h>;expires=0\r\n");
    assert_eq!(client.contacts(), ["sip:a@h", "sip:c@h"]);
    assert_eq!(client.code("Contact: *\r\n"), "400");
    assert_eq!(
        client.code("Contact: *, <sip:a@h>\r\nExpires: 0\r\n"),
        "400"
    );
    assert_eq!(client.code("Contact: *\r\nExpires: 0\r\n"), "200");
    assert_eq!(client.contacts().len(), 0);
}

#[test]
fn an_update_out_of_order_fails_as_a_whole() {
    let mut client = Client::open(TestServer::new());
    client.cseq = 5;
    client.sends("Contact: <sip:a@h>\r\n");
    client.cseq = 4;
    assert_eq!(client.code("Contact: <sip:new@h>, <sip:a@h>\r\n"), "400");
    client.cseq = 4;
    assert_eq!(client.code("Contact: *\r\nExpires: 0\r\n"), "400");
    assert_eq!(client.contacts(), ["sip:a@h"]);
}

#[test]
fn a_lifetime_that_is_too_short_is_refused_with_the_least() {
    let mut client = Client::open(TestServer::new().min_expires(secs(120)));
    let answer = client.sends(CONTACT);
    assert!(
        answer.starts_with("SIP/2.0 423 ") && answer.contains("\r\nMin-Expires: 120\r\n"),
        "{answer}"
    );
    assert_eq!(client.code("Contact: <sip:a@h>;expires=120\r\n"), "200");
    assert_eq!(client.code("Contact: <sip:a@h>;expires=0\r\n"), "200");
}

#[test]
fn good_credentials_are_taken_with_each_algorithm_and_bad_ones_are_not() {
    for algorithm in [
        ServerAlgorithm::Md5,
        ServerAlgorithm::Sha256,
        ServerAlgorithm::Sha512_256,
    ] {
        let server = TestServer::new()
            .realm("a \"b\"")
            .realm("r")
            .user("alice", "secret")
            .algorithms([algorithm]);
        let mut client = Client::of(server);
        let challenge = client.sends(CONTACT);
        assert!(
            challenge.starts_with("SIP/2.0 401 ") && !challenge.contains("stale"),
            "{challenge}"
        );
        assert_eq!(
            client.code(&credentials(algorithm, &challenge, "wrong", 1)),
            "401"
        );
        let good = credentials(algorithm, &challenge, "secret", 1) + CONTACT;
        assert_eq!(client.code(&good), "200");
        let replayed = client.sends(&good);
        assert!(replayed.contains("stale=true"), "{replayed}");
        assert_eq!(
            client.code(&credentials(algorithm, &challenge, "secret", 2)),
            "200"
        );
    }
}

#[test]
fn a_nonce_wears_out_and_another_is_stale() {
    let mut client = Client::of(TestServer::new().user("alice", "secret").nonce_uses(1));
    let challenge = client.sends("");
    assert_eq!(challenge.matches("WWW-Authenticate: Digest").count(), 2);
    assert_eq!(
        client.code(&credentials(
            ServerAlgorithm::Sha256,
            &challenge,
            "secret",
            1
        )),
        "200"
    );
    let worn = client.sends(&credentials(
        ServerAlgorithm::Sha256,
        &challenge,
        "secret",
        2,
    ));
    assert!(
        worn.starts_with("SIP/2.0 401 ") && worn.contains("stale=true"),
        "{worn}"
    );
    assert_eq!(
        client.code(&credentials(ServerAlgorithm::Md5, &worn, "secret", 1)),
        "200"
    );
}

#[test]
fn faults_come_in_their_order() {
    let mut client = Client::open(TestServer::new());
    client
        .server
        .fault(Fault::respond(503).header("Retry-After", "7"));
    client.server.fault(Fault::Drop(2));
    client.server.fault(Fault::Delay(secs(3)));
    assert!(client.sends(CONTACT).contains("\r\nRetry-After: 7\r\n"));
    assert_eq!(
        (client.sends(CONTACT), client.sends(CONTACT)),
        (String::new(), String::new())
    );
    assert_eq!(client.replies(10, CONTACT)[0].after, secs(3));
    client.now = secs(1);
    assert_eq!(client.replies(10, CONTACT), []);
    client.now = secs(3);
    assert_eq!(client.replies(10, CONTACT)[0].after, Duration::ZERO);
    assert_eq!(client.server.requests().len(), 6);
}

#[test]
fn a_fault_after_authentication_waits_for_it() {
    let mut client = Client::of(TestServer::new().user("alice", "secret"));
    client.server.fault(Fault::respond(500).after_auth());
    let challenge = client.sends(CONTACT);
    assert!(challenge.starts_with("SIP/2.0 401 "));
    assert_eq!(
        client.code(&credentials(ServerAlgorithm::Md5, &challenge, "secret", 1)),
        "500"
    );
    assert_eq!(
        client.code(&credentials(ServerAlgorithm::Md5, &challenge, "secret", 2)),
        "200"
    );
}

#[test]
fn what_stands_for_a_user_goes_wrong_until_it_is_taken_away_and_the_queue_comes_first() {
    let mut client = Client::open(TestServer::new());
    client
        .server
        .set_user_fault("alice", Some(Fault::respond(403)));
    client.server.set_user_fault("bob", Some(Fault::Drop(1)));
    client.server.fault(Fault::respond(500));
    assert_eq!(client.code(CONTACT), "500");
    assert_eq!(
        (client.code(CONTACT), client.code(CONTACT)),
        ("403".to_owned(), "403".to_owned())
    );
    client.server.set_user_fault("alice", Some(Fault::Drop(1)));
    assert_eq!(
        (client.sends(CONTACT), client.sends(CONTACT)),
        (String::new(), String::new())
    );
    client.server.set_user_fault("alice", None);
    assert_eq!(client.code(CONTACT), "200");
    let answers = client.server.take_requests();
    let answers: Vec<_> = answers.iter().map(|logged| logged.answer).collect();
    assert_eq!(
        answers,
        [Some(500), Some(403), Some(403), None, None, Some(200)]
    );
    assert_eq!(client.server.requests(), []);
}

#[test]
fn a_fault_of_a_user_after_authentication_waits_for_it() {
    let mut client = Client::of(TestServer::new().user("alice", "secret"));
    let fault = Fault::respond(503).after_auth();
    client.server.set_user_fault("alice", Some(fault));
    for _ in 0..2 {
        let challenge = client.sends(CONTACT);
        assert!(challenge.starts_with("SIP/2.0 401 "));
        assert_eq!(
            client.code(&credentials(ServerAlgorithm::Md5, &challenge, "secret", 1)),
            "503"
        );
    }
}

#[test]
fn a_silent_server_answers_nothing_and_forgets_nothing() {
    let mut client = Client::open(TestServer::new());
    client.sends(CONTACT);
    client.server.set_silent(true);
    assert_eq!(client.replies(1, CONTACT), []);
    assert_eq!(client.sends(CONTACT), "");
    let source = "192.0.2.1:4000".parse().unwrap();
    let ping =
        |server: &mut TestServer| server.keep_alive(secs(0), source, Protocol::Tcp, b"\r\n\r\n");
    assert_eq!(ping(&mut client.server), None);
    let answers = client.server.requests().iter().map(|logged| logged.answer);
    assert_eq!(answers.collect::<Vec<_>>(), [Some(200), None, None]);
    client.server.set_silent(false);
    assert!(ping(&mut client.server).is_some());
    assert_eq!(client.contacts().len(), 1);
    assert_eq!(client.code(CONTACT), "200");
}

#[test]
fn what_is_required_and_unknown_is_refused() {
    let mut client = Client::open(TestServer::new().supports("gruu"));
    let answer = client.sends("Require: gruu, mediasec\r\n");
    assert!(
        answer.starts_with("SIP/2.0 420 ") && answer.contains("\r\nUnsupported: mediasec\r\n"),
        "{answer}"
    );
    assert_eq!(client.code("Require: path\r\n"), "200");
}

#[test]
fn garbage_gets_no_answer() {
    let mut server = TestServer::new();
    for garbage in [
        &b"\r\n\r\n"[..],
        b"",
        b"\xff\xfe",
        b"REGISTER sip:a SIP/2.0\r\nVia: x\r\n\r\n",
    ] {
        assert_eq!(
            server.handle(
                secs(0),
                "192.0.2.1:1".parse().unwrap(),
                Protocol::Udp,
                garbage
            ),
            []
        );
    }
}
