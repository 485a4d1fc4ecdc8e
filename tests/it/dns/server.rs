//! Name servers on loopback: dnsmasq, and one of our own that misbehaves

use crate::ports::free_port;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often a port that was free a moment ago may turn out to be taken
const STARTS: u32 = 8;

/// dnsmasq with the records of a test; it ends when this is dropped, and when this process ends
pub(crate) struct Dnsmasq {
    address: SocketAddr,
    directory: PathBuf,
    child: Option<Child>,
}

impl Dnsmasq {
    /// Serves `records`, lines of dnsmasq.conf; below `test` it knows all there is, anything else it refuses.
    pub(crate) fn start(records: &str) -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST.into(), records)
    }

    pub(super) fn start_on6(records: &str) -> Self {
        Self::start_on(Ipv6Addr::LOCALHOST.into(), records)
    }

    fn start_on(ip: IpAddr, records: &str) -> Self {
        let found = ["/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin"]
            .iter()
            .any(|directory| PathBuf::from(directory).join("dnsmasq").is_file());
        assert!(
            found,
            "dnsmasq is missing: these tests need the package dnsmasq-base"
        );
        for _ in 0..STARTS {
            let address = SocketAddr::new(ip, free_port());
            let name = format!("sr-dns-{}-{}", std::process::id(), address.port());
            let mut server = Self {
                address,
                directory: std::env::temp_dir().join(name),
                child: None,
            };
            std::fs::create_dir_all(&server.directory).expect("a directory");
            if server.run(records) {
                return server;
            }
        }
        panic!("dnsmasq does not start with\n{records}");
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves other records on the same port.
    pub(super) fn change(&mut self, records: &str) {
        self.stop();
        let started = (0..STARTS).any(|_| self.run(records));
        assert!(started, "dnsmasq does not start again with\n{records}");
    }

    pub(super) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The end of its input tells the shell to end dnsmasq.
            drop(child.stdin.take());
            child.wait().expect("it ends");
        }
    }

    /// Runs it, and says whether it answers.
    fn run(&mut self, records: &str) -> bool {
        let mut text = format!(
            "no-resolv\nno-hosts\nno-negcache\nbind-interfaces\nlisten-address={}\nport={}\nlocal=/test/\n\
             host-record=ready.test,127.0.0.1\npid-file={}\n",
            self.address.ip(),
            self.address.port(),
            self.directory.join("pid").display(),
        );
        for line in records.lines() {
            writeln!(text, "{}", line.trim()).expect("a string");
        }
        let file = self.directory.join("dnsmasq.conf");
        std::fs::write(&file, text).expect("a configuration");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", HOLD, "sh", "dnsmasq", "--keep-in-foreground"])
            .arg(format!("--conf-file={}", file.display()))
            // Of root it would become somebody who may not read the file.
            .args(root().then_some("--user=root"))
            .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(shell.spawn().expect("a shell"));
        for _ in 0..60 {
            if answers(self.address) {
                return true;
            }
            sleep(Duration::from_millis(50));
        }
        self.stop();
        false
    }
}

/// Runs its arguments until the input ends
const HOLD: &str = r#""$@" & pid=$!; cat >/dev/null; kill $pid 2>/dev/null; wait $pid"#;

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout.starts_with(b"0\n"))
}

fn answers(server: SocketAddr) -> bool {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let question = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x05ready\x04test\0\0\x01\0\x01";
    let ask = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(question, server)?;
        socket.recv(&mut [0; 512])
    };
    ask().is_ok()
}

/// What a [`Fake`] does with a question
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    Silent,
    /// Answers with this response code and nothing else
    Code(u8),
    /// Answers that others know: a referral
    Refers,
    /// Answers with bytes that are no message
    Garbage,
    /// Asks another after this time
    Passes(SocketAddr, Duration),
    /// Asks another, but for AAAA
    Swallows6(SocketAddr),
}

/// A name server on UDP, with the manners that real ones have on bad days
pub(super) struct Fake {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start(manner: Manner) -> Self {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await;
        let socket = Arc::new(socket.expect("a port"));
        let address = socket.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::Relaxed);
                let question = buffer[..length].to_vec();
                let socket = Arc::clone(&socket);
                tokio::spawn(async move {
                    if let Some(answer) = answer(&question, manner).await {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams so far
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(question: &[u8], manner: Manner) -> Option<Vec<u8>> {
    // The name of the question ends with the root; its type and class follow.
    let end = 12 + question[12..].iter().position(|byte| *byte == 0)? + 5;
    let is_aaaa = question[end - 4..end - 2] == [0, 28];
    let coded = |code: u8| {
        let mut answer = question[..end].to_vec();
        answer[2] |= 0x80;
        answer[3] = 0x80 | code;
        answer[6..12].fill(0);
        answer
    };
    match manner {
        Manner::Silent => None,
        Manner::Code(code) => Some(coded(code)),
        Manner::Refers => {
            let mut answer = coded(0);
            answer[3] = 0;
            answer[9] = 1;
            // The root's server is a.test.
            answer.extend(b"\0\0\x02\0\x01\0\0\x0e\x10\0\x08\x01a\x04test\0");
            Some(answer)
        }
        Manner::Garbage => {
            let mut answer = coded(0);
            // Twelve answers are promised.
            answer[7] = 12;
            answer.extend((0..40).map(|n| 0xc0 ^ (n * 37) as u8));
            Some(answer)
        }
        Manner::Swallows6(_) if is_aaaa => None,
        Manner::Passes(to, after) => {
            tokio::time::sleep(after).await;
            pass(question, to).await
        }
        Manner::Swallows6(to) => pass(question, to).await,
    }
}

async fn pass(question: &[u8], to: SocketAddr) -> Option<Vec<u8>> {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.ok()?;
    socket.send_to(question, to).await.ok()?;
    let mut buffer = vec![0; 4096];
    let wait = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer));
    let length = wait.await.ok()?.ok()?;
    buffer.truncate(length);
    Some(buffer)
}
