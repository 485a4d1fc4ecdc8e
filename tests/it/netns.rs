//! Computers of their own for tests: network namespaces without names, each held by a thread
//!
//! The thread leaves the process's namespace for a new one, and all tasks, sockets and child processes that it starts
//! are in there. The namespace goes with the thread: however a test ends, nothing is left behind, and no name can clash.

use nix::sched::{CloneFlags, unshare};
use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use tokio::sync::{mpsc, oneshot};

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A namespace and the thread that lives in it
pub(crate) struct Place {
    jobs: mpsc::UnboundedSender<Job>,
    path: String,
}

impl Place {
    /// A namespace with nothing but loopback.
    pub(crate) fn new() -> Self {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let (ready, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("a network namespace: these tests need root (CAP_SYS_ADMIN)");
            let thread = std::fs::read_link("/proc/thread-self").expect("/proc");
            command("ip link set lo up");
            let _ = ready.send(format!("/proc/{}/ns/net", thread.display()));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    tokio::spawn(job);
                }
            });
        });
        let path = told.recv().expect("a network namespace");
        Self { jobs, path }
    }

    /// Two of them and a cable between, `v0` at both ends, with these addresses.
    pub(crate) async fn pair(one: &'static str, other: &'static str) -> (Self, Self) {
        let (left, right) = (Self::new(), Self::new());
        left.plug(&right).await;
        left.command(&format!("ip address add {one} dev v0")).await;
        right
            .command(&format!("ip address add {other} dev v0"))
            .await;
        (left, right)
    }

    /// A cable to another one, `v0` at both ends.
    pub(crate) async fn plug(&self, other: &Self) {
        self.plug_into("v0", other).await;
    }

    /// A cable to another one, `v0` here and `there` at its end.
    pub(crate) async fn plug_into(&self, there: &str, other: &Self) {
        let path = &other.path;
        self.command(&format!(
            "ip link add v0 type veth peer name {there} netns {path}"
        ))
        .await;
        self.command("ip link set v0 up").await;
        other.command(&format!("ip link set {there} up")).await;
    }

    /// Runs `future` in there, with all the tasks that it starts.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (sender, result) = oneshot::channel();
        let job = async move {
            let _ = sender.send(future.await);
        };
        assert!(
            self.jobs.send(Box::pin(job)).is_ok(),
            "the thread has ended"
        );
        result.await.expect("what ran in the namespace panicked")
    }

    /// Runs a command in there, which must succeed.
    pub(crate) async fn command(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(async move { command(&line) }).await
    }
}

/// Runs a command in the namespace of this thread.
fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let tool = words.next().expect("a command");
    let output = Command::new(tool)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}; these tests need iproute2 and nftables"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{line}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
