//! The commands that look at an outbox or write to it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use postrider_testbed::wait_until;

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_lag_backlog_the_oldest_message_and_the_relays() {
    let stage = Stage::new().await;
    let empty = stage.run(&["status"]);
    assert!(empty.status.success(), "{empty:?}");
    assert!(text(&empty.stdout).contains("relays   none"), "{empty:?}");

    let published = stage.run(&["publish", "-e", EXCHANGE, "-k", "nobody.listens", "{}"]);
    assert!(published.status.success(), "{published:?}");
    let id: uuid::Uuid = text(&published.stdout).parse().unwrap();
    let report = || -> serde_json::Value {
        let status = stage.run(&["status", "--json"]);
        serde_json::from_slice(&status.stdout).unwrap()
    };
    let waiting = report();
    assert_eq!(waiting["backlog"], 1);
    assert_eq!(waiting["oldest"]["id"], id.to_string());
    assert!(waiting["lag_seconds"].as_f64().unwrap() > 0.0);
    assert!(waiting["relays"].as_array().unwrap().is_empty());
    let late = stage.run(&["status", "--max-lag", "1ms"]);
    assert_eq!(late.status.code(), Some(3), "{late:?}");
    let in_time = stage.run(&["status", "--max-lag", "1h"]);
    assert_eq!(in_time.status.code(), Some(0), "{in_time:?}");
    let _daemon = stage.daemon().await;
    wait_until(DEADLINE, "a relay is connected", async || {
        report()["relays"].as_array().unwrap().len() == 1
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_puts_a_message_into_the_outbox_from_an_argument_or_from_standard_input() {
    let stage = Stage::new().await;
    let bad = stage.run(&["publish", "-e", EXCHANGE, "-k", KEY, "{not json"]);
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    assert!(text(&bad.stderr).to_lowercase().contains("json"), "{bad:?}");
    stage.wait_until_outbox_holds(0).await;

    let mut child = Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(["publish", "-e", EXCHANGE, "-k", KEY, "-"])
        .env("POSTRIDER_DATABASE_URL", &stage.database.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&[0, 159, 146, 150])
        .unwrap();
    let written = child.wait_with_output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let client = stage.sql().await;
    let (id, payload): (uuid::Uuid, Vec<u8>) = {
        let row = client
            .query_one("SELECT id, payload FROM outbox.messages", &[])
            .await
            .unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!(text(&written.stdout), id.to_string());
    assert_eq!(payload, [0, 159, 146, 150]);
    let _daemon = stage.daemon().await;
    stage.wait_until_outbox_holds(0).await;
    assert_eq!(stage.depth(QUEUE).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_readiness_of_the_relay() {
    let stage = Stage::new().await;
    let daemon = stage.daemon().await;
    wait_until_readyz(&daemon, None).await;
    let health = |address: &str| {
        Command::new(env!("CARGO_BIN_EXE_postrider"))
            .arg("health")
            .env("POSTRIDER_HTTP_LISTEN", address)
            .output()
            .unwrap()
    };
    let address = daemon.http_addr().to_string();
    assert_eq!(health(&address).status.code(), Some(0));
    daemon.kill().await.unwrap();
    let away = health(&address);
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away.stderr).contains("postrider run"), "{away:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_lists_prints_and_applies_and_may_be_repeated() {
    let stage = Stage::new().await;
    let again = stage.run(&["migrate"]);
    assert!(text(&again.stdout).contains("up to date"), "{again:?}");
    stage
        .sql()
        .await
        .batch_execute("DROP SCHEMA outbox CASCADE")
        .await
        .unwrap();
    let listed = stage.run(&["migrate", "--dry-run"]);
    assert!(
        text(&listed.stdout).contains("would apply 0001_outbox"),
        "{listed:?}"
    );
    let printed = stage.run(&["migrate", "--print"]);
    assert!(printed.status.success());
    stage
        .sql()
        .await
        .batch_execute(&text(&printed.stdout))
        .await
        .unwrap();
    let accepted = stage.run(&["migrate", "--dry-run"]);
    assert!(
        text(&accepted.stdout).contains("up to date"),
        "{accepted:?}"
    );
}
