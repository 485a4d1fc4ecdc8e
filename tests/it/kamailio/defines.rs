//! What else the lab does by user and by define (`tests/lab/README.md`)

use super::*;

/// Kamailio offers auth-int and cannot verify it: what it refuses, we answer once.
#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn an_auth_int_answer_that_nobody_verifies_ends_as_refused() {
    let mut phone = Phone::new(Lab::registrar(&[]), "aint-a", Udp4).await;
    let (failure, class, why, _) = phone.gave_up().await;
    assert_matches!(failure, Failure::CredentialsRefused { .. });
    assert_eq!(
        (class, why),
        (FailureClass::Credentials, GiveUp::CredentialsRefused)
    );
    sleep(Duration::from_secs(1)).await;
    assert_matches!(&phone.arrived()[..], [first, second] if !first.authorized && second.authorized);
    assert_eq!(phone.bindings().await, []);
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn every_redirection_and_what_else_is_final_is_asked_once() {
    for (user, status) in [
        ("f301-a", 301),
        ("f305-a", 305),
        ("f302e-a", 302),
        ("f405-a", 405),
        ("f513-a", 513),
    ] {
        refused(user, status, FailureClass::Fatal, 1).await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn an_error_after_good_credentials_is_temporary_and_no_refusal() {
    let policy = retrying(Duration::from_secs(60));
    let mut phone = Phone::with(Lab::registrar(&[]), "a500-a", Tcp4, |account| {
        account.policy(policy)
    })
    .await;
    let rejection = phone.rejected().await;
    assert_eq!(code(&rejection.failure), 500);
    assert_eq!(rejection.class, FailureClass::Temporary);
    assert_eq!(phone.arrived().len(), 2);
}

/// Followed where the policy has it so: to the proxy, which leads to the registrar that redirects again.
#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_redirection_to_the_proxy_and_back_ends() {
    let lab = Lab::registrar(&[]);
    let edge = lab.behind_an_edge();
    // One that knows where the proxy is.
    let told = Lab::registrar(&[&format!("EDGE_PORT={}", edge.port())]);
    let mut policy = retrying(Duration::from_secs(60));
    policy.redirects = Redirects::Follow { max: 3 };
    let mut phone = Phone::with(told, "f302e-b", Udp4, |account| account.policy(policy)).await;
    phone.outcome().await;
    sleep(Duration::from_secs(1)).await;
    let arrived = phone.arrived().len() + lab.arrived("f302e-b").len();
    assert!((2..=4).contains(&arrived), "{arrived}");
    assert_eq!(phone.bindings().await, []);
}

/// Over UDP nobody says that the requests are ignored; over TCP neither.
#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn requests_that_are_dropped_are_no_answer_over_either_transport() {
    for (user, via) in [("drop-a", Udp4), ("drop-b", Tcp6)] {
        let mut policy = retrying(Duration::from_secs(60));
        policy.timers.timer_f = Duration::from_secs(2);
        let lab = Lab::registrar(&[]);
        let mut phone = Phone::with(lab, user, via, |account| account.policy(policy)).await;
        let rejection = phone.rejected().await;
        assert_eq!(rejection.failure, Failure::Timeout, "{user}");
        assert_eq!(rejection.class, FailureClass::Temporary);
        assert_eq!(distinct(&phone.arrived()), 1);
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_nat_helper_that_does_not_tell_what_it_stored() {
    let lab = Lab::registrar(&["NO_RECEIVED_PARAM"]);
    for (user, via) in [("nat-quiet", Udp4), ("alice-quiet", Tcp4)] {
        let mut phone = Phone::new(lab, user, via).await;
        let registered = phone.registered().await;
        let bound = phone.is_bound(&registered).await;
        assert!(bound.received.starts_with("sip:127.0.0.1:"), "{bound:?}");
        let refreshed = phone.refresh().await;
        phone.is_bound(&refreshed).await;
        assert!(!phone.warned());
        phone.ends().await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_registrar_without_gruu_gives_none() {
    let lab = Lab::registrar(&["GRUU=0"]);
    let mut phone = Phone::with(lab, "alice-nogruu", Udp4, |account| {
        account
            .contact_header_params(format!("+sip.instance=\"<{INSTANCE}>\""))
            .supported("gruu")
    })
    .await;
    let registered = phone.registered().await;
    assert_eq!(registered.public_gruu, None);
    assert_eq!(registered.temporary_gruu, None);
    phone.is_bound(&registered).await;
    phone.ends().await;
}

/// A proxy with two sides (TCP to us, UDP to the registrar) says both in Path.
#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn both_sides_of_a_proxy_are_in_path() {
    let lab = Lab::registrar(&[]);
    let edge = lab.behind_an_edge_with(&["PATH_R2"]);
    let user = "alice-r2";
    let account = Registration::builder("sip:registrar.test", format!("sip:{user}@registrar.test"))
        .contact_user(user)
        .max_random_initial_delay(Duration::ZERO)
        .outbound_auth(Credentials::password(user, "secret"))
        .outbound_proxy(format!("sip:127.0.0.1:{};transport=tcp;lr", edge.port()))
        .support_path(true);
    let mut phone = Phone::of(lab, user, account).await;
    let registered = phone.registered().await;
    let bound = phone.is_bound(&registered).await;
    let [out, side] = &*registered.path else {
        panic!("{:?}", registered.path);
    };
    for path in [out, side] {
        assert!(path.contains("r2=on"), "{path}");
        assert!(bound.path.contains(path.as_str()), "{bound:?}");
    }
    phone.ends().await;
}

/// Nobody listens on IPv6: the network says so, and the same attempt goes on over IPv4.
#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn a_registrar_without_ipv6_is_found_over_ipv4_in_one_attempt() {
    let lab = Lab::registrar(&["NO_IPV6"]);
    for (transport, user) in [("udp", "alice-v4"), ("tcp", "alice-v4-tcp")] {
        let at = |host: &str| format!("sip:{host}:{};transport={transport}", lab.port());
        let account = Registration::builder(at("[::1]"), format!("sip:{user}@registrar.test"))
            .fallback_server(at("127.0.0.1"))
            .contact_user(user)
            .max_random_initial_delay(Duration::ZERO)
            .outbound_auth(Credentials::password(user, "secret"));
        let mut phone = Phone::of(lab, user, account).await;
        let registered = phone.registered().await;
        assert!(registered.target.address().is_ipv4());
        assert!(registered.took < Duration::from_secs(5));
        phone.is_bound(&registered).await;
        phone.ends().await;
    }
}
