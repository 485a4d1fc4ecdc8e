use super::*;

fn request(lines: &[&str]) -> Bytes {
    let head = [
        "REGISTER sip:alice:hunter2@example.com SIP/2.0",
        "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx",
    ];
    let all: Vec<_> = head.iter().chain(lines).copied().collect();
    format!("{}\r\n\r\n", all.join("\r\n")).into()
}

fn response(lines: &[&str]) -> Response {
    let head = ["SIP/2.0 401 Unauthorized"];
    let all: Vec<_> = head.iter().chain(lines).copied().collect();
    Response::parse(format!("{}\r\n\r\n", all.join("\r\n")).into()).expect("a response")
}

fn shown(lines: &[&str], answer: &[&str]) -> String {
    let transcript = Transcript::of(&request(lines), Some(&response(answer)));
    transcript.expect("a request").to_string()
}

#[test]
fn no_secret_is_shown_however_it_is_written() {
    let nonce = "MTc5NTQzMDQwMQ==";
    for line in [
        "Authorization: Digest username=\"a\", nonce=\"MTc5NTQzMDQwMQ==\", response=\"5ccc069c403ebaf9\"",
        "AUTHORIZATION : Digest nonce=MTc5NTQzMDQwMQ==,response=5ccc069c403ebaf9",
        "Proxy-Authorization: Digest\r\n nonce=\"MTc5NTQzMDQwMQ==\",\r\n\tresponse=\"5ccc069c403ebaf9\"",
        "Authorization: Bearer 5ccc069c403ebaf9",
        "Authorization: 5ccc069c403ebaf9",
        "X-Auth-Token: 5ccc069c403ebaf9",
        "Cookie: id=5ccc069c403ebaf9",
    ] {
        for answer in [
            "WWW-Authenticate: Digest realm=\"r\", nonce=\"MTc5NTQzMDQwMQ==\", opaque=\"5ccc069c403ebaf9\"",
            "www-authenticate: Digest nonce = \"MTc5NTQzMDQwMQ==\"",
            "Proxy-Authenticate: Digest realm=\"r, nonce=MTc5NTQzMDQwMQ==",
            "Proxy-Authenticate: Digest realm=\"r\" nonce=\"MTc5NTQzMDQwMQ==\"",
            "Proxy-Authenticate: Digest realm=MTc5NTQzMDQwMQ==",
            "WWW-Authenticate: Negotiate MTc5NTQzMDQwMQ==",
            "WWW-Authenticate: MTc5NTQzMDQwMQ==",
            "Authentication-Info: nextnonce=\"MTc5NTQzMDQwMQ==\", rspauth=\"5ccc069c403ebaf9\"",
            "Proxy-Authentication-Info: nextnonce=MTc5NTQzMDQwMQ==",
        ] {
            let text = shown(&[line], &[answer]);
            for secret in [nonce, "5ccc069c403ebaf9", "hunter2"] {
                assert!(!text.contains(secret), "{line}\n{answer}\n{text}");
            }
        }
    }
}

#[test]
fn what_a_ticket_needs_is_shown() {
    let text = shown(
        &[
            "To: \"Alice\" <sip:alice:pw@example.com>",
            "Contact: <sip:s@192.0.2.1:5060>, <sips:b:c:d@[2001:db8::1]:5061;x=y>;expires=0",
            "Authorization: Digest username=\"alice\", nonce=\"0a1b2c3d\", response=\"00ff\"",
        ],
        &[
            "WWW-Authenticate: Digest realm=\"a, b\", nonce=\"9f8e7d6c\", algorithm=SHA-256, qop=\"auth,auth-int\", stale=TRUE",
            "Warning: 399 example \"nonce 0a1b2c3d is not 9f8e7d6c\"",
            "Server: example 1.0",
            "Content-Length: 3\r\n\r\nabc",
        ],
    );
    assert_eq!(
        text,
        "REGISTER sip:alice:***@example.com SIP/2.0\n\
         Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx\n\
         To: \"Alice\" <sip:alice:***@example.com>\n\
         Contact: <sip:s@192.0.2.1:5060>, <sips:b:***@[2001:db8::1]:5061;x=y>;expires=0\n\
         Authorization: Digest ***\n\
         \n\
         SIP/2.0 401 Unauthorized\n\
         WWW-Authenticate: Digest realm=\"a, b\", nonce=***, algorithm=SHA-256, qop=\"auth,auth-int\", stale=TRUE\n\
         Warning: 399 example \"nonce *** is not ***\"\n\
         Server: example 1.0\n\
         Content-Length: 3\n\
         (a body of 3 bytes)\n"
    );
}

#[test]
fn it_is_bounded_and_shows_no_control_characters() {
    let long = format!("X: {}\u{1b}[31m\u{202e}", "é".repeat(3000));
    let many = vec![&*long; 40];
    let transcript = Transcript::of(&request(&many), None).expect("a request");
    assert!(
        transcript.request.len() < MOST + 100,
        "{}",
        transcript.request.len()
    );
    assert!(transcript.request.ends_with("(39 more lines)\n"));
    assert!(!transcript.request.contains(['\u{1b}', '\u{202e}']));
    assert!(transcript.to_string().ends_with("\n(no answer)\n"));
}
