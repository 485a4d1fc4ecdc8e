//! The example `trunks` as somebody runs it, without a terminal.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Beside the test's own binary, where `cargo build` puts examples.
fn example() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let target = own.ancestors().nth(2).expect("a target directory");
    target.join("examples/trunks")
}

async fn run(args: &str) -> (Output, String) {
    let command = Command::new(example())
        .args(args.split_whitespace())
        .stdin(Stdio::null())
        .output();
    let output = timeout(PATIENCE, command).await.expect("it ends");
    let output = output.expect("the example is built");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

/// The number before a word of the report.
fn number(text: &str, word: &str) -> u64 {
    let before = text.split_once(word).map(|(before, _)| before);
    let number = before.and_then(|before| before.split_whitespace().last());
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number before {word:?} in\n{text}"))
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example trunks"]
async fn two_hundred_trunks_are_registered_refreshed_and_removed() {
    // A lease of 10 s is refreshed after 4.5 s at the earliest, and 5 s at the latest.
    for transport in ["", "--tcp"] {
        let (output, text) = run(&format!(
            "--plain --seconds 10 --trunks 200 --expires 10 --spread 2 {transport}"
        ))
        .await;
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains("all 200 registered after "), "{text}");
        assert!(text.contains("\n200 of 200 bindings removed\n"), "{text}");
        // A challenge for each; grants for each, for its refreshes and its removal. A busy machine may be late, and see
        // a request again.
        let again = number(&text, " were retransmissions");
        let challenged = number(&text, " answered with 401");
        assert!((200..=200 + again).contains(&challenged), "{text}");
        let refreshed = number(&text, " refreshed,");
        assert!((200..=400).contains(&refreshed), "{text}");
        let granted = number(&text, " answered with 200");
        let least = 400 + refreshed;
        assert!((least..=least + again).contains(&granted), "{text}");
        assert!(
            text.contains("\n200 registered, ")
                && text.contains(" 0 failed, 0 gave up, 0 expired, 0 lost their connection\n"),
            "{text}"
        );
    }
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example trunks"]
async fn what_is_refused_is_told_and_the_others_are_registered() {
    let (output, text) =
        run("--seconds 5 --trunks 100 --spread 1 --faults 10 --fault 403 --fault password").await;
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains(" 90 registered, 0 registering, 0 waiting, 0 failed, 10 stopped,"),
        "{text}"
    );
    assert!(
        text.contains("; trunk-0010 403 Forbidden, stopped, and 9 more fail\n"),
        "{text}"
    );
    assert!(
        text.contains("all 90 that can be registered were so after "),
        "{text}"
    );
    assert!(
        text.contains(" 10 failed, 10 gave up, 0 expired, "),
        "{text}"
    );
    assert!(text.contains("\n90 of 90 bindings removed\n"), "{text}");
}

#[tokio::test]
#[ignore = "needs the example: cargo build --example trunks"]
async fn an_interrupt_un_registers_all_and_a_wrong_flag_is_named() {
    let mut command = Command::new(example());
    command.args(["--trunks", "20", "--spread", "0"]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the example is built");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let id = child.id().expect("it runs").to_string();
    let kill = Command::new("kill").args(["-INT", &id]).status().await;
    assert!(kill.expect("kill").success());
    let output = timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.expect("it ends").expect("waited for");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("\n20 of 20 bindings removed\n"), "{text}");

    let (output, _) = run("--trunks 0").await;
    assert_eq!(output.status.code(), Some(2));
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        problem.starts_with("--trunks \"0\" is no number from 1 to 100000\ntrunks [--trunks N]"),
        "{problem}"
    );
}
