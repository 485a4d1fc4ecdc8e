//! What the resolver makes of what name servers say

use super::server::{Dnsmasq, Fake, Manner};
use assert_matches::assert_matches;
use sip_registration::{
    Answer, DnsResolver, DnsResolverBuilder, Naptr, Query, Records, ResolveError, Resolver, Srv,
};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A resolver in a hurry: a question is over after 0.9 s.
fn hurried(servers: &[SocketAddr]) -> DnsResolver {
    asking(servers)
        .timeout(Duration::from_millis(300))
        .attempts(3)
        .build()
}

fn asking(servers: &[SocketAddr]) -> DnsResolverBuilder {
    let builder = DnsResolver::builder();
    servers
        .iter()
        .fold(builder, |builder, server| builder.name_server(*server))
}

async fn ask(resolver: &DnsResolver, query: Query) -> Result<Answer, ResolveError> {
    timeout(PATIENCE, resolver.resolve(&query))
        .await
        .expect("a question ends")
}

async fn addresses(resolver: &DnsResolver, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let answer = ask(resolver, Query::new(name)).await;
    answer.map(|answer| answer.addresses().to_vec())
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses
        .iter()
        .map(|address| address.parse().expect("an address"))
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "how long a real question takes")]
fn now() -> Instant {
    Instant::now()
}

// ---- without a name server, or with one that misbehaves

#[tokio::test]
async fn addresses_and_this_machine_are_asked_of_nobody() {
    let silent = Fake::start(Manner::Silent).await;
    for resolver in [hurried(&[silent.address()]), DnsResolver::new()] {
        for (host, address) in [
            ("192.0.2.7", "192.0.2.7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            assert_eq!(addresses(&resolver, host).await, Ok(ips(&[address])));
        }
        let local = addresses(&resolver, "LOCALHOST.").await;
        let local = local.expect("this machine");
        assert!(!local.is_empty() && local.iter().all(IpAddr::is_loopback));
        for query in [
            Query::new("nowhere.invalid"),
            Query::naptr("localhost"),
            Query::srv("_sip._udp.localhost"),
            Query::srv("192.0.2.7"),
        ] {
            assert_matches!(
                ask(&resolver, query.clone()).await,
                Err(ResolveError::NoAddress(name)) if name == query.name
            );
        }
    }
    assert_eq!(silent.asked(), 0);
}

#[tokio::test]
async fn what_is_no_name_is_said_with_the_name() {
    let silent = Fake::start(Manner::Silent).await;
    let resolver = hurried(&[silent.address()]);
    let long = format!("{}.test", "a".repeat(64));
    let longer = format!("{}test", "abcdefg.".repeat(40));
    for name in [
        "",
        ".",
        "..",
        "a..test",
        ".test",
        &long,
        &longer,
        "käse.test",
        "a\\999.test",
    ] {
        for query in [Query::new(name), Query::srv(name), Query::naptr(name)] {
            assert_matches!(
                ask(&resolver, query).await,
                Err(ResolveError::NoAddress(said)) if *said == *name,
                "{name:?}"
            );
        }
    }
    assert_eq!(silent.asked(), 0);
}

#[tokio::test]
async fn silence_is_a_timeout_and_takes_the_time_it_may() {
    let silent = Fake::start(Manner::Silent).await;
    let resolver = hurried(&[silent.address()]);
    for query in [
        Query::new("a.test"),
        Query::srv("_sip._udp.test"),
        Query::naptr("test"),
    ] {
        let began = now();
        assert_eq!(ask(&resolver, query).await, Err(ResolveError::Timeout));
        let took = now() - began;
        assert!(
            took >= Duration::from_millis(850) && took < Duration::from_secs(5),
            "{took:?}"
        );
    }
    assert!(silent.asked() >= 4 * 3);
}

#[tokio::test]
async fn a_name_server_that_cannot_tell_is_a_failure_and_says_why() {
    for (manner, why) in [
        (Manner::Code(2), "Server Failure"),
        (Manner::Code(5), "Query Refused"),
        (Manner::Code(4), "Not Implemented"),
        (Manner::Refers, "does not resolve for others"),
    ] {
        let server = Fake::start(manner).await;
        let resolver = hurried(&[server.address()]);
        for query in [
            Query::new("a.test"),
            Query::srv("_sip._udp.test"),
            Query::naptr("test"),
        ] {
            assert_matches!(
                ask(&resolver, query).await,
                Err(ResolveError::Failed(text)) if text.contains(why),
                "{manner:?}"
            );
        }
    }
}

#[tokio::test]
async fn no_such_name_and_no_such_record_are_no_address() {
    for code in [0, 3] {
        let server = Fake::start(Manner::Code(code)).await;
        let resolver = hurried(&[server.address()]);
        for query in [
            Query::new("a.test"),
            Query::srv("_sip._udp.test"),
            Query::naptr("test"),
        ] {
            assert_matches!(
                ask(&resolver, query.clone()).await,
                Err(ResolveError::NoAddress(name)) if name == query.name
            );
        }
        // Said once for each: A, AAAA, SRV, NAPTR.
        assert_eq!(server.asked(), 4);
    }
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let server = Fake::start(Manner::Garbage).await;
    let resolver = hurried(&[server.address()]);
    assert_matches!(
        addresses(&resolver, "a.test").await,
        Err(ResolveError::Failed(_) | ResolveError::Timeout)
    );
}

#[tokio::test]
async fn many_questions_at_a_silent_server_end_together() {
    let silent = Fake::start(Manner::Silent).await;
    let resolver = std::sync::Arc::new(hurried(&[silent.address()]));
    let began = now();
    let questions: Vec<_> = (0..300)
        .map(|n| {
            let resolver = std::sync::Arc::clone(&resolver);
            tokio::spawn(async move { addresses(&resolver, &format!("a{n}.test")).await })
        })
        .collect();
    for question in questions {
        let answer = question.await.expect("no panic");
        assert_eq!(answer, Err(ResolveError::Timeout));
    }
    assert!(now() - began < Duration::from_secs(8));
}

// ---- with dnsmasq

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn both_families_with_the_smallest_lifetime() {
    let dns = Dnsmasq::start(
        "host-record=one.test,127.0.0.5,70
         host-record=both.test,127.0.0.6,::1,50
         host-record=Six_under.Score.test,::1,40
         cname=alias.test,both.test,20
         cname=again.test,alias.test,90
         cname=nowhere.test,missing.test",
    );
    let resolver = asking(&[dns.address()]).build();
    for (name, expected, ttl) in [
        ("one.test", &["127.0.0.5"][..], 70),
        ("one.test.", &["127.0.0.5"], 70),
        ("ONE.Test", &["127.0.0.5"], 70),
        ("both.test", &["::1", "127.0.0.6"], 50),
        ("six_under.score.test", &["::1"], 40),
        ("alias.test", &["::1", "127.0.0.6"], 20),
        ("again.test", &["::1", "127.0.0.6"], 20),
    ] {
        let answer = ask(&resolver, Query::new(name)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer.addresses(), ips(expected), "{name}");
        assert_eq!(answer.ttl, Duration::from_secs(ttl), "{name}");
    }
    // No such name, no such record, an alias for nothing
    for query in [
        Query::new("missing.test"),
        Query::srv("one.test"),
        Query::new("nowhere.test"),
    ] {
        assert_matches!(
            ask(&resolver, query.clone()).await,
            Err(ResolveError::NoAddress(name)) if name == query.name
        );
    }
    assert_matches!(
        addresses(&resolver, "refused.example").await,
        Err(ResolveError::Failed(_))
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn servers_and_services_are_read_whole() {
    let dns = Dnsmasq::start(
        "local-ttl=33
         srv-host=_sip._udp.test,a.test,5062,10,60
         srv-host=_sip._udp.test,b.test,5064,20,0
         srv-host=_sips._tcp.test
         cname=_sip._udp.alias.test,_sip._udp.test
         naptr-record=test,10,20,s,SIP+D2U,,_sip._udp.test
         naptr-record=test,20,30,S,SIPS+D2T,,_sips._tcp.other.test
         naptr-record=test,30,30,u,E2U+sip,!^.*$!sip:info@test!",
    );
    let resolver = asking(&[dns.address()]).build();
    let server = |target: &str, port, priority, weight| Srv {
        priority,
        weight,
        port,
        target: target.into(),
    };
    for name in ["_SIP._udp.test", "_sip._udp.alias.test"] {
        let answer = ask(&resolver, Query::srv(name)).await.expect("SRV");
        assert_eq!(answer.ttl, Duration::from_secs(33));
        let Records::Srv(mut servers) = answer.records else {
            panic!("not SRV")
        };
        servers.sort_by_key(|server| server.priority);
        assert_eq!(
            servers,
            [
                server("a.test.", 5062, 10, 60),
                server("b.test.", 5064, 20, 0)
            ]
        );
    }

    let answer = ask(&resolver, Query::srv("_sips._tcp.test")).await;
    assert_matches!(
        answer.map(|answer| answer.records),
        Ok(Records::Srv(servers)) if *servers[0].target == *"."
    );

    let answer = ask(&resolver, Query::naptr("test")).await.expect("NAPTR");
    let Records::Naptr(mut services) = answer.records else {
        panic!("not NAPTR")
    };
    services.sort_by_key(|service| service.order);
    let service = |order, preference, flags: &str, service: &str, replacement: &str| Naptr {
        order,
        preference,
        flags: flags.into(),
        service: service.into(),
        replacement: replacement.into(),
    };
    // The one with a regular expression is none of SIP's.
    assert_eq!(
        services,
        [
            service(10, 20, "s", "SIP+D2U", "_sip._udp.test."),
            service(20, 30, "S", "SIPS+D2T", "_sips._tcp.other.test."),
        ]
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn an_answer_too_long_for_a_datagram_comes_by_tcp() {
    let mut records = String::new();
    for n in 0..150 {
        records += &format!(
            "srv-host=_sip._tcp.many.test,server-number-{n}.test,{},1,1\n",
            6000 + n
        );
    }
    let dns = Dnsmasq::start(&records);
    let resolver = asking(&[dns.address()]).build();
    for _ in 0..2 {
        let answer = ask(&resolver, Query::srv("_sip._tcp.many.test")).await;
        assert_matches!(
            answer.map(|answer| answer.records),
            Ok(Records::Srv(servers)) if servers.len() == 150
        );
    }
    // Where only UDP gets through, it is a failure, and no short list.
    let fake = Fake::start(Manner::Passes(dns.address(), Duration::ZERO)).await;
    let resolver = hurried(&[fake.address()]);
    assert_matches!(
        ask(&resolver, Query::srv("_sip._tcp.many.test")).await,
        Err(ResolveError::Failed(_) | ResolveError::Timeout)
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_name_server_on_ipv6() {
    let dns = Dnsmasq::start_on6("host-record=one.test,127.0.0.5");
    let resolver = asking(&[dns.address()]).build();
    assert_eq!(
        addresses(&resolver, "one.test").await,
        Ok(ips(&["127.0.0.5"]))
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn what_changes_is_seen_at_the_next_question() {
    let mut dns = Dnsmasq::start("host-record=one.test,127.0.0.5,3600");
    let resolver = asking(&[dns.address()]).build();
    assert_eq!(
        addresses(&resolver, "one.test").await,
        Ok(ips(&["127.0.0.5"]))
    );
    dns.change("host-record=one.test,127.0.0.6,3600");
    assert_eq!(
        addresses(&resolver, "one.test").await,
        Ok(ips(&["127.0.0.6"]))
    );
    dns.change("");
    assert_matches!(
        addresses(&resolver, "one.test").await,
        Err(ResolveError::NoAddress(_))
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_swallowed_question_for_ipv6_costs_a_second_once_in_a_while() {
    let dns = Dnsmasq::start("host-record=one.test,127.0.0.5,3600");
    let fake = Fake::start(Manner::Swallows6(dns.address())).await;
    let resolver = asking(&[fake.address()]).build();
    let began = now();
    let answer = ask(&resolver, Query::new("one.test")).await.expect("IPv4");
    let took = now() - began;
    assert_eq!(answer.addresses(), ips(&["127.0.0.5"]));
    assert_eq!(answer.ttl, Duration::from_secs(30));
    assert!(
        took >= Duration::from_millis(950) && took < Duration::from_secs(4),
        "{took:?}"
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn a_slow_name_server_is_waited_for() {
    let dns = Dnsmasq::start("host-record=one.test,127.0.0.5");
    let slow = Fake::start(Manner::Passes(dns.address(), Duration::from_millis(900))).await;
    let resolver = asking(&[slow.address()]).build();
    assert_eq!(
        addresses(&resolver, "one.test").await,
        Ok(ips(&["127.0.0.5"]))
    );
}

#[tokio::test]
#[ignore = "needs dnsmasq"]
async fn the_next_name_server_is_asked_and_remembered() {
    let dns = Dnsmasq::start("host-record=one.test,127.0.0.5");
    for manner in [
        Manner::Silent,
        Manner::Code(2),
        Manner::Code(5),
        Manner::Refers,
        Manner::Garbage,
    ] {
        let bad = Fake::start(manner).await;
        let resolver = hurried(&[bad.address(), dns.address()]);
        assert_eq!(
            addresses(&resolver, "one.test").await,
            Ok(ips(&["127.0.0.5"])),
            "{manner:?}"
        );
        let asked = bad.asked();
        assert!(asked >= 2, "{manner:?}");
        assert_matches!(
            addresses(&resolver, "two.test").await,
            Err(ResolveError::NoAddress(_)),
            "{manner:?}"
        );
        assert_eq!(bad.asked(), asked, "{manner:?}");
    }
    // What says that there is no such name is believed, and nobody else asked.
    let none = Fake::start(Manner::Code(3)).await;
    let resolver = hurried(&[none.address(), dns.address()]);
    assert_matches!(
        addresses(&resolver, "one.test").await,
        Err(ResolveError::NoAddress(_))
    );
}
