//! What is shown of registrations: Asterisk's table and field names, and nothing of a secret.

use sip_registration::pjsip_conf::{AuthDetail, Directory, RegistrationDetail, load, table};
use sip_registration::{
    Activity, Failure, FlowId, LeaseStatus, Protocol, ReferenceStatus, Registration, Status, Target,
};
use std::path::Path;
use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "a time to count from")]
fn now() -> Instant {
    Instant::now()
}

fn detail(name: &str, server_uri: &str) -> RegistrationDetail {
    let registration = Registration::builder(server_uri, "sip:a@example.com")
        .build()
        .expect("in order");
    RegistrationDetail::new(name, &registration)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn registered(now: Instant) -> Status {
    let target = Target::new(Protocol::Udp, "192.0.2.9:5060".parse().expect("an address"));
    let lease = LeaseStatus::new(now + secs(3425), secs(3600), FlowId::new(7), target);
    Status::new(Activity::Waiting {
        until: now + secs(3415),
    })
    .with_lease(lease)
}

#[test]
fn the_table_has_the_columns_of_the_reference() {
    let now = now();
    let long = format!("sip:{}.example.com", "x".repeat(60));
    let mut with_auth = detail("office", "sip:sip.example.com").with_status(&registered(now), now);
    with_auth.outbound_auth = "office,second".to_owned();
    let mut rejected = Status::new(Activity::Idle).with_last_failure(Failure::Timeout);
    rejected.reference = ReferenceStatus::Rejected;
    let rows = [
        with_auth,
        detail("long", &long).with_status(&rejected, now),
        detail("not-running", "sip:192.0.2.9"),
    ];
    assert_eq!(
        table(&rows),
        "\u{20}<Registration/ServerURI..............................>  <Auth....................>  <Status.......>\n\
         ==========================================================================================\n\
         \n\
         \u{20}office/sip:sip.example.com                              office                      Registered       (exp. 3415s)\n\
         \u{20}long/sip:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  n/a                         Rejected\n\
         \u{20}not-running/sip:192.0.2.9                               n/a                         Unregistered    0\n\
         \n\
         Objects found: 3\n"
    );
    assert_eq!(table(&[]), "No objects found.\n");
}

#[test]
fn a_detail_has_the_fields_of_ami_and_the_live_figures() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pjsip");
    let loaded = load(&Directory::new(corpus), "sample.conf");
    let section = loaded.registration("lab").expect("it is there");
    let now = now();
    let detail = RegistrationDetail::of("lab", section).with_status(&registered(now), now);
    assert_eq!(
        detail.to_string(),
        "ObjectType: registration\nObjectName: lab\nServerUri: sips:sip.example.net\nClientUri: sip:lab@example.net\n\
         ContactUser: \nContactHeaderParams: q=0.5\nTransport: wan-tls\nOutboundProxy: <sip:edge.example.net;lr>\n\
         Expiration: 600\nMaxRandomInitialDelay: 0\nRetryInterval: 30\nForbiddenRetryInterval: 600\n\
         FatalRetryInterval: 3600\nMaxRetries: 100\nAuthRejectionPermanent: false\nOutboundAuth: lab\n\
         SupportPath: true\nSupportOutbound: yes\nSecurityNegotiation: mediasec\n\
         SecurityMechanisms: sdes-srtp;mediasec,dtls-srtp;mediasec\nLine: false\nEndpoint: \nUserAgent: lab/1\n\
         Status: Registered\nNextReg: 0\nBound: true\nReachable: true\nActivity: waiting\nNextAttemptIn: 3415\n\
         ExpiresIn: 3425\nGranted: 3600\nConfirmed: true\nTarget: UDP 192.0.2.9:5060\nFlow: 7\nRetries: 0\n"
    );
    let auths: Vec<AuthDetail> = loaded.auth_details("lab");
    assert_eq!(
        auths.iter().map(ToString::to_string).collect::<String>(),
        "ObjectType: auth\nObjectName: lab\nUsername: lab\nRealm: example.net\nAuthType: digest\n\
         SupportedAlgorithmsUac: SHA-256\n"
    );
    let without = self::detail("plain", "sip:user:s3cr3t@192.0.2.9");
    let text = without.to_string();
    assert!(
        text.contains("ServerUri: sip:user:***@192.0.2.9\n"),
        "{text}"
    );
    assert!(
        !text.contains("SecurityMechanisms") && !text.contains("Status"),
        "{text}"
    );
}

#[test]
fn json_has_the_same_names() {
    let now = now();
    let detail = detail("office", "sip:sip.example.com").with_status(&registered(now), now);
    let json = serde_json::to_value(&detail).expect("it can be written");
    let text = detail.to_string();
    let fields = json.as_object().expect("an object");
    for line in text.lines() {
        let name = line.split(':').next().unwrap_or_default();
        assert!(fields.contains_key(name), "{name}");
    }
    assert_eq!(json["Expiration"], 3600);
    assert_eq!(json["AuthRejectionPermanent"], true);
    assert_eq!(json["NextReg"], 0);
    assert_eq!(json["ExpiresIn"], 3425);
    assert_eq!(json["LastFailure"], serde_json::Value::Null);
    let stopped =
        serde_json::to_value(self::detail("a", "sip:192.0.2.9")).expect("it can be written");
    assert!(
        stopped.get("Status").is_none() && stopped.get("Bound").is_none(),
        "{stopped}"
    );
}
