use super::*;
use assert_matches::assert_matches;

type Edit = fn(RegistrationBuilder) -> RegistrationBuilder;

fn builder() -> RegistrationBuilder {
    Registration::builder("sip:example.com", "sip:alice@example.com")
}

fn built(builder: RegistrationBuilder) -> Registration {
    builder.build().unwrap_or_else(|error| panic!("{error}"))
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn defaults_are_those_of_the_reference() {
    let r = built(builder());
    assert_eq!(
        (
            r.expiration(),
            r.max_random_initial_delay(),
            r.max_retries()
        ),
        (3600, secs(10), Some(10))
    );
    assert_eq!(
        (
            r.retry_interval(),
            r.forbidden_retry_interval(),
            r.fatal_retry_interval()
        ),
        (secs(60), secs(0), secs(0))
    );
    assert!(
        r.auth_rejection_permanent() && !r.line() && !r.support_path() && !r.support_outbound()
    );
    assert_eq!(
        (r.contact_user().as_str(), r.type_(), r.aor_text()),
        (Some("s"), "registration", "sip:alice@example.com")
    );
    assert!(r.extra.is_none() && r.warnings().is_empty());
}

#[test]
fn explicit_options_win_over_the_policy_in_any_order() {
    for r in [
        builder().max_retries(3).policy(Policy::persistent()),
        builder().policy(Policy::persistent()).max_retries(3),
    ] {
        let r = built(r);
        assert_eq!(
            (r.max_retries(), r.fatal_retry_interval()),
            (Some(3), secs(1800))
        );
    }
    let shared = Arc::new(Policy::asterisk());
    assert!(Arc::ptr_eq(
        &shared,
        built(builder().policy(Arc::clone(&shared)).max_retries(10)).policy()
    ));
}

#[test]
fn the_contact_user_is_taken_as_it_comes() {
    for (user, contact) in [("alice", "alice"), ("", "s")] {
        let owned = user.to_owned();
        let account = built(builder().contact_user(&owned));
        assert_eq!(account.contact_user().as_str(), Some(contact));
        assert_eq!(built(builder().contact_user(user)), account);
        assert_eq!(built(builder().contact_user(owned)), account);
    }
}

#[test]
fn each_rule_has_its_error() {
    let table: &[(Edit, &str)] = &[
        (|b| b.server_uri("tel:1"), "server_uri is not a sip"),
        (|b| b.client_uri(""), "client_uri is not a sip"),
        (
            |b| b.server_uri(format!("sip:{}@h", "a".repeat(600))),
            "server_uri has 606 bytes",
        ),
        (
            |b| b.client_uri(format!("sip:{}x", "a.".repeat(125))),
            "host of 251 bytes",
        ),
        (|b| b.line(true), "line is on without"),
        (|b| b.endpoint("e"), "without line"),
        (|b| b.expiration(secs(0)), "expiration is 0ns"),
        (|b| b.expiration(secs(u64::MAX)), "expiration is"),
        (|b| b.expiration(secs(u32::MAX.into())), "allow_no_expires"),
        (|b| b.contact_user("a b"), "contact_user"),
        (|b| b.contact_user("a%4"), "contact_user"),
        (
            |b| b.contact_header_params("q=1\r\nX: y"),
            "contact_header_params",
        ),
        (
            |b| b.contact_header_params("q=1, <sip:x>"),
            "contact_header_params",
        ),
        (
            |b| b.contact_header_params("Expires=5"),
            "use the option expiration",
        ),
        (|b| b.contact_uri_params("line=x"), "of ours"),
        (|b| b.contact_uri_params("a>"), "contact_uri_params"),
        (|b| b.contact_uri_params("a;a"), "contact_uri_params"),
        (
            |b| b.outbound_proxy("proxy"),
            "outbound_proxy has no sip or sips uri at index 0",
        ),
        (|b| b.outbound_proxy("<sip:a;lr>, <sip:b"), "at index 1"),
        (|b| b.outbound_proxy("<sip:a>\r\nX: y"), "outbound_proxy"),
        (|b| b.user_agent("a\r\nb"), "user_agent"),
        (|b| b.transport("a\0"), "transport"),
        (|b| b.security_mechanisms("tls"), "security_mechanisms"),
        (
            |b| b.outbound_auth(Credentials::password("", "secret")),
            "outbound_auth",
        ),
        (|b| b.header("X Y", ""), "no token"),
        (|b| b.header("VIA", "x"), "written by the library"),
        (|b| b.header("X-Y", "secret\r\nX: y"), "control character"),
        (|b| b.server_uri("sip:h?X=%0d%0aY:z"), "control character"),
        (
            |b| b.server_uri("sip:h?Route=%3Csip:x%3E"),
            "written by the library",
        ),
        (|b| b.allow(["INVITE", "A B"]), "allow"),
        (|b| b.supported(""), "supported"),
        (
            |b| b.max_random_initial_delay(Duration::MAX),
            "max_random_initial_delay",
        ),
        (|b| b.retry_interval(Duration::MAX), "retry_interval"),
    ];
    for (edit, text) in table {
        let error = edit(builder()).build().expect_err(text).to_string();
        assert!(
            error.contains(text) && !error.contains("secret"),
            "{text}: {error}"
        );
    }
    let no_expires = builder()
        .policy(Policy::asterisk())
        .expiration(secs(u32::MAX.into()));
    assert_eq!(built(no_expires).expiration(), u32::MAX);
}

#[test]
fn changes_are_as_strong_as_the_registrar_sees_them() {
    use Change::{InPlace, Registers, Replaces, Untouched};
    let table: &[(Edit, Change)] = &[
        (|b| b, Untouched),
        (|b| b.contact_user(""), Untouched),
        (|b| b.retry_interval(secs(5)), InPlace),
        (|b| b.policy(Policy::asterisk()), InPlace),
        (|b| b.max_random_initial_delay(secs(0)), InPlace),
        (
            |b| b.outbound_auth(Credentials::password("a", "b")),
            InPlace,
        ),
        (|b| b.expiration(secs(60)), Registers),
        (|b| b.contact_header_params("q=1"), Registers),
        (|b| b.user_agent("x"), Registers),
        (|b| b.support_path(true), Registers),
        (|b| b.support_outbound(true), Registers),
        (
            |b| b.security_negotiation(SecurityNegotiation::Mediasec),
            Registers,
        ),
        (|b| b.security_mechanisms("none"), Registers),
        (|b| b.header("X", "y"), Registers),
        (|b| b.allow(["INVITE"]), Registers),
        (
            |b| b.require("gin").proxy_require("gin").supported("x"),
            Registers,
        ),
        (|b| b.server_uri("sip:other.example"), Replaces),
        (|b| b.client_uri("sip:bob@example.com"), Replaces),
        (|b| b.contact_user(ContactUser::None), Replaces),
        (|b| b.contact_uri_params("bnc"), Replaces),
        (|b| b.line(true).endpoint("e"), Replaces),
        (|b| b.transport("wan"), Replaces),
        (
            |b| b.outbound_proxy("sip:p;lr").expiration(secs(60)),
            Replaces,
        ),
    ];
    let from = built(builder());
    for (index, (edit, change)) in table.iter().enumerate() {
        let to = built(edit(builder()));
        assert_eq!(
            (from.change_to(&to), to.change_to(&from)),
            (*change, *change),
            "row {index}"
        );
    }
}

#[test]
fn the_aor_and_the_request_uri_leave_out_what_cannot_be_there() {
    let r = built(Registration::builder(
        "sip:them@h:5061;x=y?X-A=b%20c&X-D=",
        "sip:u:pw@127.0.0.1:5060;transport=udp;user=phone;MADDR=h;ttl=3;method=INFO?x=y",
    ));
    assert_eq!(r.aor_text(), "sip:u@127.0.0.1;user=phone");
    assert_eq!(r.request_uri(), "sip:them@h:5061;x=y");
    assert_eq!(
        r.headers().collect::<Vec<_>>(),
        [("X-A", "b c"), ("X-D", "")]
    );
}

#[test]
fn routes_are_written_as_name_addr_and_lr_is_added_on_demand() {
    let routes = builder()
        .outbound_proxy("sip:a;lr, <sip:b>;x=y")
        .outbound_proxy("<sip:u:pw@c;lr>");
    let written = |r: &Registration| {
        r.outbound_proxy()
            .iter()
            .map(Route::to_string)
            .collect::<Vec<_>>()
    };
    let r = built(routes.clone());
    assert_eq!(
        written(&r),
        ["<sip:a;lr>", "<sip:b>;x=y", "<sip:u:pw@c;lr>"]
    );
    assert_eq!(r.first_route().map(SipUri::host), Some("a"));
    assert_matches!(r.warnings()[..], [ConfigWarning::StrictRoute { .. }]);
    let debug = format!("{r:?} {routes:?}");
    assert!(!debug.contains("pw"), "{debug}");
    let auto_lr = Policy {
        auto_lr: true,
        ..Policy::default()
    };
    assert_eq!(written(&built(routes.policy(auto_lr)))[1], "<sip:b;lr>;x=y");
}

#[test]
fn what_may_not_be_meant_is_warned_about() {
    let r = built(
        builder()
            .expiration(secs(30))
            .server_uri("sip:h;transport=foo"),
    );
    assert_matches!(
        r.warnings()[..],
        [
            ConfigWarning::UnknownTransport { .. },
            ConfigWarning::ShortLead { .. }
        ]
    );
    let any = || Credentials::password("a", "b");
    let r = built(
        builder()
            .outbound_auth(any())
            .outbound_auth(any())
            .policy(Policy::asterisk()),
    );
    assert_eq!(r.warnings(), [ConfigWarning::DuplicateWildcard]);
}

#[test]
fn a_sip_instance_is_a_contact_parameter() {
    let text = ";+sip.instance=\"<urn:uuid:0;,>\";reg-id=1;q=0.5";
    assert_eq!(
        built(builder().contact_header_params(text)).contact_header_params(),
        text.strip_prefix(';')
    );
}
