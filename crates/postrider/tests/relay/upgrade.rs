//! A rolling upgrade with a real daemon of an older version, which `make test-upgrade OLD=...` builds and names.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use postrider_testbed::consumer::{bind, declare_exchange};
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::{PostgresOptions, PostgresServer};

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, insert, wait_for_rows};

/// The older program.
const OLD: &str = "POSTRIDER_OLD_BIN";
/// Where to write down what its relay asks of the database: crates/postgres/tests/statements.
const STATEMENTS: &str = "POSTRIDER_OLD_STATEMENTS";
/// By which its sessions are known in the server's log.
const OLD_NAME: &str = "the-old-one";

/// From this migration on programs read which newer ones they can work with.
const TELLS_WHAT_WORKS: i32 = 7;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a daemon of an older version: make test-upgrade OLD=COMMIT"]
async fn nothing_is_lost_while_the_schema_is_migrated_under_a_running_relay_and_relays_are_replaced_one_by_one()
 {
    let Some(old) = std::env::var_os(OLD).map(PathBuf::from) else {
        panic!("{OLD} names no older program: make test-upgrade OLD=COMMIT");
    };
    let server = PostgresServer::start(PostgresOptions {
        config: vec!["log_statement = all".into()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let stage = Stage::on_postgres_migrated_by(&server, &old).await;
    let client = stage.sql().await;
    let version = async || -> i32 {
        client
            .query_one("SELECT max(version) FROM outbox.postrider_migrations", &[])
            .await
            .unwrap()
            .get(0)
    };
    let old_version = version().await;
    let options = |binary: &PathBuf| DaemonOptions {
        binary: binary.clone(),
        ..stage
            .options()
            .env("POSTRIDER_RELAY_MAX_MESSAGE_BYTES", "1000")
            .env("POSTRIDER_RETRY_INITIAL_DELAY", "100ms")
            .env("POSTRIDER_DEAD_LETTERS_RETENTION", "1h")
    };
    let old_options = || options(&old).env("POSTRIDER_DATABASE_APPLICATION_NAME", OLD_NAME);
    let new_options = || options(&PathBuf::from(env!("CARGO_BIN_EXE_postrider")));

    let _consumer = stage.consumer();
    let shop = stage.shop(200.0).await;
    let old_relay = Daemon::start(old_options()).await.unwrap();
    stage.wait_for_more(300).await;

    // The schema is migrated under the old relay, which goes on: also with what fails.
    let migrated = stage.run(&["migrate"]);
    assert!(migrated.status.success(), "{migrated:?}");
    let new_version = version().await;
    stage.wait_for_more(300).await;
    insert(&client, EXCHANGE, KEY, &[0; 2_000]).await;
    wait_for_rows(&client, "dead_letters", 1).await;
    let unroutable = insert(&client, EXCHANGE, "nobody.listens", b"1").await;
    let missing = insert(&client, "not-yet", KEY, b"2").await;
    wait_for_rows(&client, "deferred", 2).await;

    // Side by side.
    let new_relay = Daemon::start(new_options()).await.unwrap();
    for relay in [&new_relay, &old_relay] {
        let so_far = published(relay).await;
        relay
            .wait_for_metric(
                "postrider_published_total",
                &[("exchange", EXCHANGE)],
                |now| now >= so_far + 100.0,
                DEADLINE,
            )
            .await
            .unwrap();
    }

    // An old one that starts now either works, or says at once why not.
    let restarted = Daemon::start(old_options()).await.unwrap();
    if old_version >= TELLS_WHAT_WORKS || old_version == new_version {
        restarted
            .wait_for_metric(
                "postrider_published_total",
                &[("exchange", EXCHANGE)],
                |published| published >= 10.0,
                DEADLINE,
            )
            .await
            .unwrap();
        restarted.sigterm().unwrap();
        let status = restarted.wait_exit(DEADLINE).await.unwrap();
        assert!(status.success(), "{}", restarted.log());
    } else {
        let status = restarted.wait_exit(DEADLINE).await.unwrap();
        assert_eq!(status.code(), Some(1));
        let log = restarted.log();
        assert!(log.contains("newer than this program knows"), "{log}");
    }

    // What failed under the old one is delivered by whichever comes to it, the new one at last.
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "not-yet").await.unwrap();
    bind(&channel, QUEUE, "not-yet", KEY).await.unwrap();
    bind(&channel, QUEUE, EXCHANGE, "nobody.listens")
        .await
        .unwrap();
    stage.audit.committed([unroutable, missing]);
    old_relay.sigterm().unwrap();
    let status = old_relay.wait_exit(DEADLINE).await.unwrap();
    assert!(status.success(), "{}", old_relay.log());
    stage.wait_for_more(300).await;
    shop.stop().await.unwrap();
    stage.assert_clean().await;
    for (table, left) in [("messages", 0), ("deferred", 0), ("dead_letters", 1)] {
        wait_for_rows(&client, table, left).await;
    }
    println!(
        "from schema {old_version} to {new_version}:\n{}",
        stage.audit.report()
    );
    if let Some(file) = std::env::var_os(STATEMENTS) {
        write_down(&server.log(), &old, &PathBuf::from(file));
    }
}

async fn published(relay: &Daemon) -> f64 {
    relay
        .metric("postrider_published_total", &[("exchange", EXCHANGE)])
        .await
        .unwrap_or(0.0)
}

/// Each statement with parameters once, as it is in the log of a server with `log_statement = all`: its further lines begin with a tab.
fn write_down(log: &str, old: &PathBuf, file: &PathBuf) {
    let mut statements = BTreeSet::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let statement = line
            .split_once(OLD_NAME)
            .and_then(|(_, said)| said.split_once(" LOG:  execute "))
            .and_then(|(_, said)| said.split_once(": "));
        let Some((_, first)) = statement else {
            continue;
        };
        let mut text = first.to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
            text.push('\n');
            text.push_str(more.trim());
        }
        statements.insert(text);
    }
    assert!(!statements.is_empty(), "the server's log holds none");
    let program = Command::new(old).arg("--version").output().unwrap();
    let mut text = format!(
        "-- What a relay asks of the database: {}\n-- Written by `make test-upgrade`; separated by empty lines.\n",
        String::from_utf8_lossy(&program.stdout).trim()
    );
    for statement in statements {
        text.push('\n');
        text.push_str(&statement);
        text.push('\n');
    }
    std::fs::write(file, text).unwrap();
}
