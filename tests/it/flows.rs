//! Outbound for real: Kamailio as registrar, its edge proxies with flow tokens in front (RFC 5626, 5627)
//!
//! Bindings are asked of the registrar, calls come from somebody else, by way of it.

mod device;

use crate::caller::Caller;
use crate::lab::Lab;
use crate::relay::TcpRelay;
use assert_matches::assert_matches;
use device::*;
use sip_registration::{Credentials, Event, Registrar, Registration, Removal};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::sleep;

/// When a failed attempt is repeated.
fn retry(event: &Event) -> Option<Duration> {
    match event {
        Event::Rejected { retry_in, .. } => Some(*retry_in),
        _ => None,
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn edge_with_flow_tokens_its_flow_timer_and_gruus() {
    let lab = Lab::registrar(&[]);
    let relay = TcpRelay::to(([127, 0, 0, 1], Lab::edge().port()).into()).await;
    let user = "alice-edge-gruu";
    let account = with_line(account(user))
        .instance(instance())
        .outbound(true)
        .gruu(true)
        .outbound_proxy(by(relay.address.port(), "tcp"));
    let mut device = Device::new(lab, user, account).await;
    let granted = device.registered().await;
    let at = now();
    assert!(granted.outbound && granted.reg_id == Some(1), "{granted:?}");
    assert_matches!(&*granted.path, [path] if path.ends_with(";ob>"));
    assert_matches!(&device.bindings().await[..], [bound] if bound.reg_id == 1);

    let public = granted.public_gruu.clone().expect("a public GRUU");
    let temporary = granted.temporary_gruu.clone().expect("a temporary GRUU");
    assert_eq!(*public, *format!("{};gr={URN}", device.aor()));
    assert!(temporary.ends_with(";gr"), "{temporary}");
    let ways = device.ways().await;
    assert_matches!(&ways[..], [way] if way.public_gruu.as_ref() == Some(&public)
        && way.temporary_gruu.as_ref() == Some(&temporary) && way.contact.starts_with(&*public));
    let (caller, flow) = (Caller::of(lab).await, ways[0].flow);
    for uri in [&*device.aor(), &*public, &*temporary] {
        device.is_called(&caller, uri, flow).await;
    }

    // The flow is kept alive as often as the edge wants it, which is more than we allow: each 8 to 10 s (D14).
    while relay.pongs() == 0 {
        assert!(now() - at < Duration::from_secs(11), "no ping");
        sleep(Duration::from_millis(50)).await;
    }
    let took = now() - at;
    assert!(took > Duration::from_secs(7), "{took:?}");

    // All that there were lead here, and the public one stays.
    let refreshed = device.refreshed().await;
    assert_eq!(refreshed.public_gruu, Some(public));
    let newest = refreshed.temporary_gruu.expect("a temporary GRUU");
    for uri in [&*newest, &*temporary] {
        device.is_called(&caller, uri, flow).await;
    }
    device.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn edge_without_outbound_says_439_and_is_registered_through_all_the_same() {
    let lab = Lab::registrar(&[]);
    let edge = lab.own_edge(&["NO_OB"]);
    let user = "alice-439";
    for transport in ["udp", "tcp"] {
        let account = account(user)
            .instance(instance())
            .outbound_proxy(by(edge.port(), transport))
            .further_flow(by(lab.own_edge(&["NO_OB"]).port(), transport));
        let before = lab.arrived(user).len();
        let mut device = Device::new(lab, user, account).await;
        let granted = device.registered().await;
        assert!(!granted.outbound && granted.reg_id.is_none(), "{granted:?}");
        // 401, 439, and the same without reg-id; the credentials are good for it.
        assert_eq!(lab.arrived(user).len() - before, 3);
        let bindings = device.bindings().await;
        assert_matches!(&bindings[..], [bound] if bound.reg_id == 0);
        let ways = device.ways().await;
        assert_matches!(&ways[..], [way] if way.reg_id.is_none() && !way.contact.contains(";ob"));
        let caller = Caller::of(lab).await;
        let aor = device.aor();
        device.is_called(&caller, &aor, ways[0].flow).await;
        // This edge is not asked again.
        device.refreshed().await;
        assert_eq!(lab.arrived(user).len() - before, 4);
        device.ends().await;
    }
}

// The registrar tries the youngest binding first, which is that of the second flow. So that is the one to die.

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn one_of_two_edges_dies_and_its_flow_comes_back_by_itself() {
    let lab = Lab::registrar(&[]);
    let (one, two) = (lab.own_edge(&[]), lab.own_edge(&[]));
    let proxies = [one, two].map(|edge| by(edge.port(), "tcp"));
    let user = "alice-two-tcp";
    let mut device = Device::with_both(lab, user, with_line(account(user)), proxies).await;
    let (caller, aor) = (Caller::of(lab).await, device.aor());
    let flow = device.flow(2).await;
    device.is_called(&caller, &aor, flow).await;

    two.stop();
    device.of_flow(PATIENCE, 2, "the loss", lost).await;
    let died = now();
    assert_eq!(device.up().await, [true, false]);
    let flow = device.flow(1).await;
    device.is_called(&caller, &aor, flow).await;
    // What led by the dead edge was dropped by the registrar.
    assert_matches!(&device.bindings().await[..], [bound] if bound.reg_id == 1);

    // It cannot be made again at once, so it waits: 90 s doubled, half to all of it (RFC 5626 §4.5).
    let wait = device.of_flow(PATIENCE, 2, "a failed try", retry).await;
    assert!((85..=180).contains(&wait.as_secs()), "{wait:?}");
    two.restart();
    device.is_called(&caller, &aor, flow).await;
    let limit = wait + PATIENCE;
    device.of_flow(limit, 2, "the return", granted_to).await;
    let took = now() - died;
    assert!(took > wait, "{took:?}");
    device.has_both().await;

    // And it is used again, as the youngest, and when it is all there is.
    let flow = device.flow(2).await;
    device.is_called(&caller, &aor, flow).await;
    one.stop();
    device.of_flow(PATIENCE, 1, "the loss", lost).await;
    device.is_called(&caller, &aor, flow).await;
    device.agent.shutdown(Duration::from_secs(2)).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn one_of_two_edges_over_udp_dies_and_its_flow_comes_back_when_it_is_asked_for() {
    let lab = Lab::registrar(&[]);
    let (one, two) = (lab.own_edge(&[]), lab.own_edge(&[]));
    let proxies = [one, two].map(|edge| by(edge.port(), "udp"));
    // Without a token: both flows have one Contact on one socket, and each call is the registration's.
    let user = "alice-two-udp";
    let mut device = Device::with_both(lab, user, account(user), proxies).await;
    let (caller, aor) = (Caller::of(lab).await, device.aor());

    // The registrar notices first.
    two.stop();
    let flow = device.flow(1).await;
    device.is_called(&caller, &aor, flow).await;
    assert_matches!(&device.bindings().await[..], [bound] if bound.reg_id == 1);
    // We do by the next keep-alive, which the edge wants often.
    device.of_flow(PATIENCE, 2, "the loss", lost).await;
    assert_eq!(device.up().await, [true, false]);
    device.is_called(&caller, &aor, flow).await;

    two.restart();
    device.handle.refresh().await.expect("it is there");
    device.of_flow(PATIENCE, 2, "the return", granted_to).await;
    device.has_both().await;
    one.stop();
    let flow = device.flow(2).await;
    device.is_called(&caller, &aor, flow).await;

    // What leads by a dead edge cannot be removed, which is told, in the time that there is.
    let (at, within) = (now(), Duration::from_secs(3));
    assert_eq!(device.handle.unregister(within).await, Removal::Unanswered);
    assert!(now() - at < within + Duration::from_secs(1));
    assert_matches!(&device.bindings().await[..], [bound] if bound.reg_id == 1);
    device.agent.shutdown(within).await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn flow_that_is_dead_at_the_edge_only_leaves_the_call_to_the_next() {
    let lab = Lab::registrar(&[]);
    let edges = (lab.own_edge(&[]), lab.own_edge(&[]));
    let relay = TcpRelay::to(([127, 0, 0, 1], edges.1.port()).into()).await;
    let proxies = [edges.0.port(), relay.address.port()].map(|port| by(port, "tcp"));
    let user = "alice-dead-flow";
    let mut device = Device::with_both(lab, user, with_line(account(user)), proxies).await;
    let (caller, aor) = (Caller::of(lab).await, device.aor());

    relay.orphan();
    // Until the edge has noticed: what it sent before would have to time out.
    sleep(Duration::from_millis(300)).await;
    let died = now();
    let flow = device.flow(1).await;
    device.is_called(&caller, &aor, flow).await;
    // The edge said 430, so the registrar has dropped that binding; we know of nothing yet.
    assert_matches!(&device.bindings().await[..], [bound] if bound.reg_id == 1);
    assert_eq!(device.up().await, [true, true]);

    // No pong within 10 s of the next ping; the way is open again, and the flow is made anew.
    let limit = Duration::from_secs(22);
    device.of_flow(limit, 2, "the loss", lost).await;
    let took = now() - died;
    assert!(took > Duration::from_secs(10), "{took:?}");
    device.of_flow(PATIENCE, 2, "the return", granted_to).await;
    device.has_both().await;
    let flow = device.flow(2).await;
    device.is_called(&caller, &aor, flow).await;
    device.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn an_edge_that_is_down_at_the_start_is_made_up_for_by_the_other() {
    let lab = Lab::registrar(&[]);
    for transport in ["tcp", "udp"] {
        let (one, two) = (lab.own_edge(&[]), lab.own_edge(&[]));
        one.stop();
        let user = format!("alice-late-{transport}");
        let account = with_line(account(&user))
            .instance(instance())
            .outbound_proxy(by(one.port(), transport))
            .further_flow(by(two.port(), transport));
        let mut device = Device::new(lab, &user, account).await;
        let at = now();
        let granted = device.handle.registered().await.expect("registered");
        assert!(now() - at < Duration::from_secs(2), "{:?}", now() - at);
        assert!(granted.outbound && granted.reg_id == Some(2), "{granted:?}");
        assert_eq!(device.up().await, [false, true]);
        let (caller, aor, flow) = (Caller::of(lab).await, device.aor(), device.flow(2).await);
        device.is_called(&caller, &aor, flow).await;

        one.restart();
        // A flow that could not be made is not tried again within a second, whoever asks (D13).
        sleep(Duration::from_secs(1)).await;
        device.handle.refresh().await.expect("it is there");
        device
            .of_flow(PATIENCE, 1, "the first flow", granted_to)
            .await;
        device.has_both().await;
        device.ends().await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrar_without_an_edge_holds_the_flow_itself() {
    let lab = Lab::registrar(&[]);
    for transport in ["udp", "tcp"] {
        let user = format!("alice-direct-{transport}");
        let server = format!("sip:127.0.0.1:{};transport={transport}", lab.port());
        let account = Registration::builder(server, format!("sip:{user}@registrar.test"))
            .contact_user(&*user)
            .outbound_auth(Credentials::password(&*user, "secret"))
            .max_random_initial_delay(Duration::ZERO)
            .instance(instance())
            .outbound(true);
        let mut device = Device::new(lab, &user, account).await;
        let granted = device.registered().await;
        assert!(granted.outbound && granted.path.is_empty(), "{granted:?}");
        let bindings = device.bindings().await;
        assert_matches!(&bindings[..], [bound] if bound.reg_id == 1 && bound.instance.contains(URN));
        let (caller, aor, flow) = (Caller::of(lab).await, device.aor(), device.flow(1).await);
        device.is_called(&caller, &aor, flow).await;
        device.ends().await;
    }
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn registrar_that_requires_outbound_and_edges_with_passwords_of_their_own() {
    let lab = Lab::registrar(&["OB_MODE=2"]);
    // 407 of the edge, then 401 of the registrar, on each flow.
    let user = "both-flows";
    let account = with_line(account(user))
        .outbound_auth(Credentials::password(user, "secret").realm("registrar.test"))
        .outbound_auth(Credentials::password(user, "edgesecret").realm("edge.test"));
    let proxies = [lab.own_edge(&[]), lab.own_edge(&[])].map(|edge| by(edge.port(), "tcp"));
    let mut device = Device::with_both(lab, user, account, proxies).await;
    // What the edge refused did not get here.
    assert_eq!(lab.arrived(user).len(), 4);
    let (caller, aor, flow) = (Caller::of(lab).await, device.aor(), device.flow(2).await);
    device.is_called(&caller, &aor, flow).await;
    // Each flow with what it has learnt: no challenge gets here again.
    device.handle.refresh().await.expect("it is there");
    let mut seen = HashSet::new();
    while seen.len() < 2 {
        let flow = device.until("both", |event| match event {
            Event::OfFlow { reg_id, event } => granted_to(event).map(|_| *reg_id),
            _ => None,
        });
        seen.insert(flow.await);
    }
    assert_eq!(lab.arrived(user).len(), 6);
    device.ends().await;
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn bindings_are_replaced_on_a_new_network_and_after_a_crash() {
    let lab = Lab::registrar(&[]);
    let user = "alice-replaced";
    let proxies = [lab.own_edge(&[]), lab.own_edge(&[])].map(|edge| by(edge.port(), "tcp"));
    let account = || with_line(account(user));
    let mut device = Device::with_both(lab, user, account(), proxies.clone()).await;
    let before = uris(lab, user).await;

    device.agent.network_changed().await;
    // Either flow may be first: what the other does then changes nothing of the whole.
    for _ in 0..2 {
        device
            .until("both flows", |event| match event {
                Event::OfFlow { event, .. } => granted_to(event),
                event => granted_to(event),
            })
            .await;
    }
    device.has_both().await;
    let moved = uris(lab, user).await;
    assert!(moved.iter().all(|uri| !before.contains(uri)), "{moved:?}");

    // A crash: nobody un-registers.
    drop(device);
    let mut device = Device::with_both(lab, user, account(), proxies).await;
    let again = uris(lab, user).await;
    assert!(again.iter().all(|uri| !moved.contains(uri)), "{again:?}");
    let (caller, aor, flow) = (Caller::of(lab).await, device.aor(), device.flow(2).await);
    device.is_called(&caller, &aor, flow).await;
    device.ends().await;
}

/// The addresses of whoever else is bound, in any order
async fn uris(lab: &Lab, user: &str) -> Vec<String> {
    let mut uris: Vec<_> = lab
        .bindings(user)
        .await
        .into_iter()
        .map(|b| b.uri)
        .collect();
    uris.sort();
    uris
}

#[tokio::test]
#[ignore = "needs Kamailio; .ci/run runs it"]
async fn reconciliation_removes_what_this_device_left_behind_and_nobody_elses() {
    let lab = Lab::registrar(&[]);
    let user = "alice-reconciled";
    let edges = [lab.own_edge(&[]), lab.own_edge(&[])];
    let proxies = edges.map(|edge| by(edge.port(), "tcp"));
    let [first, second] = proxies;
    // An earlier run of this device had no outbound; it crashed. And there is another device.
    let earlier = account(user).instance(instance()).outbound_proxy(&*first);
    let mut earlier = Device::new(lab, user, earlier).await;
    let stale = earlier.registered().await.contact.to_string();
    let foreign = "sip:foreign@127.0.0.1:9";
    lab.add_foreign(user, foreign).await;
    drop(earlier);

    let account = account(user)
        .instance(instance())
        .outbound_proxy(first)
        .further_flow(second);
    let mut device = Device::new(lab, user, account).await;
    let one = device.registered().await.contact.to_string();
    let two = device
        .of_flow(PATIENCE, 2, "the second flow", granted_to)
        .await;
    let ours = [one, two.contact.to_string()];
    let bindings = |event: &Event| match event {
        Event::Bindings(bindings) => Some(bindings.clone()),
        Event::QueryFailed(failure) => panic!("{failure}"),
        _ => None,
    };
    let mut all = [&ours[..], &[stale.clone(), foreign.into()]].concat();
    all.sort();
    assert_eq!(uris(lab, user).await, all);

    device.agent.query(device.handle.id()).await.expect("taken");
    let listed = device.until("the bindings", bindings).await;
    let mut whose: Vec<_> = listed.iter().map(|b| (&*b.uri, b.ours, b.stale)).collect();
    whose.sort_unstable();
    let mut expected = vec![
        (&*ours[0], true, false),
        (&*ours[1], true, false),
        (&*stale, false, true),
        (foreign, false, false),
    ];
    expected.sort_unstable();
    assert_eq!(whose, expected);
    assert_eq!(uris(lab, user).await, all, "a question changes nothing");

    device
        .agent
        .reconcile(device.handle.id())
        .await
        .expect("taken");
    let left = device.until("the bindings", bindings).await;
    assert_eq!(left.len(), 3);
    assert!(
        left.iter().all(|one| *one.uri != *stale && !one.stale),
        "{left:?}"
    );
    all.retain(|uri| *uri != stale);
    assert_eq!(uris(lab, user).await, all);
    // Its own end leaves the other device's.
    assert_eq!(device.handle.unregister(PATIENCE).await, Removal::Removed);
    assert_eq!(uris(lab, user).await, [foreign]);
    device.agent.shutdown(PATIENCE).await;
}
