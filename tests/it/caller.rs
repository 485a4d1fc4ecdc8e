//! Somebody who calls by way of a registrar, over UDP, and knows nothing of us

use crate::lab::Lab;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long a final answer may take; Kamailio gives a branch 3 s
const PATIENCE: Duration = Duration::from_secs(15);

/// When a request is sent again, T1
const AGAIN: Duration = Duration::from_millis(500);

pub(crate) struct Caller {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Caller {
    pub(crate) async fn of(lab: &Lab) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        Self {
            socket,
            server: ([127, 0, 0, 1], lab.port()).into(),
        }
    }

    /// The final answer to a request for `uri`, addressed to `to`; one to an INVITE is acknowledged.
    pub(crate) async fn asks(&self, method: &str, uri: &str, to: &str) -> u16 {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = self.socket.local_addr().expect("its address");
        let unique = format!("{}x{}", own.port(), COUNT.fetch_add(1, Ordering::Relaxed));
        let write = |method: &str, to: &str| {
            format!(
                "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};rport;branch=z9hG4bK{unique}\r\nMax-Forwards: 70\r\n\
                 From: <sip:caller@registrar.test>;tag={unique}\r\nTo: {to}\r\nCall-ID: {unique}@caller\r\n\
                 CSeq: 1 {method}\r\nContact: <sip:caller@{own}>\r\nContent-Length: 0\r\n\r\n"
            )
        };
        let request = write(method, &format!("<{to}>"));
        let ask = async {
            let mut answered = false;
            loop {
                if !answered {
                    self.send(&request).await;
                }
                while let Ok((code, to)) = timeout(AGAIN, self.answer(&unique)).await {
                    answered = true;
                    if code >= 200 {
                        if method == "INVITE" {
                            self.send(&write("ACK", &to)).await;
                        }
                        return code;
                    }
                }
            }
        };
        let code = timeout(PATIENCE, ask).await;
        code.unwrap_or_else(|_| panic!("{method} {uri}: no final answer"))
    }

    /// The next answer to the request of this branch, and the To of it; not a late copy of one before.
    async fn answer(&self, branch: &str) -> (u16, String) {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, _) = self.socket.recv_from(&mut buffer).await.expect("a socket");
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.contains(&format!("branch=z9hG4bK{branch}")) {
                let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
                let to = text.lines().find_map(|line| line.strip_prefix("To: "));
                return (code.expect("a code"), to.expect("a To").to_owned());
            }
        }
    }

    async fn send(&self, message: &str) {
        let sent = self.socket.send_to(message.as_bytes(), self.server);
        let sent = timeout(PATIENCE, sent).await.expect("in time");
        sent.expect("sent");
    }
}
