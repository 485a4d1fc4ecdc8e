//! One integration binary: what runs in virtual time, and over real sockets.

#[cfg(feature = "tokio")]
mod agents;
#[cfg(feature = "tokio")]
mod caller;
#[cfg(all(unix, feature = "ws"))]
mod calls;
#[cfg(feature = "dns")]
mod dns;
mod docs;
mod explore;
#[cfg(all(feature = "tokio", target_os = "linux"))]
mod flows;
mod foreign;
mod golden;
#[cfg(feature = "tokio")]
mod kamailio;
#[cfg(feature = "tokio")]
mod keep_alive;
#[cfg(feature = "tokio")]
mod lab;
mod machine;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "tokio")]
mod misreg;
#[cfg(all(feature = "tokio", target_os = "linux"))]
mod net;
#[cfg(all(feature = "tokio", target_os = "linux"))]
mod netns;
#[cfg(feature = "tokio")]
mod observe;
mod pjsip_corpus;
#[cfg(all(unix, feature = "tokio"))]
mod pjsip_example;
mod pjsip_files;
mod pjsip_gauges;
#[cfg(feature = "tokio")]
mod pjsip_interrupted;
#[cfg(feature = "tokio")]
mod pjsip_registrars;
mod pjsip_reload;
mod pjsip_show;
#[cfg(feature = "tokio")]
mod pjsip_storm;
#[cfg(all(unix, feature = "tokio"))]
mod pjsip_terminal;
#[cfg(all(target_os = "linux", feature = "tls"))]
mod pjsip_transports;
#[cfg(all(target_os = "linux", feature = "tls"))]
mod pjsip_trunks;
#[cfg(feature = "tokio")]
mod ports;
#[cfg(all(feature = "tokio", target_os = "linux"))]
mod relay;
#[cfg(feature = "tokio")]
mod routes;
mod rules_auth;
mod rules_ceiling;
mod rules_clock;
mod rules_commands;
mod rules_contact;
mod rules_fallback;
mod rules_file;
mod rules_flow;
mod rules_host;
mod rules_identity;
mod rules_inbound;
mod rules_locate;
mod rules_neighbours;
mod rules_outbound;
mod rules_oversize;
mod rules_pace;
mod rules_peer;
mod rules_reference;
mod rules_refresh;
mod rules_registrar;
mod rules_retry;
mod rules_section;
mod rules_silence;
mod rules_soak;
mod rules_stop;
mod rules_tickets;
mod rules_tls;
#[cfg(feature = "tokio")]
mod rules_transports;
mod rules_ws;
#[cfg(feature = "tokio")]
mod sipp;
#[cfg(feature = "tls")]
mod tls;
mod torture;
#[cfg(all(unix, feature = "tokio"))]
mod trunks_example;
#[cfg(feature = "ws")]
mod ws;
