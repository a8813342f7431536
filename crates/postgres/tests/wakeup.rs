//! The insert trigger and the listening session.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::{DEADLINE, LIMITS, client, outbox, outbox_at, until};
use postrider_postgres::{ClaimFrom, Database, Listener, Settings};
use postrider_testbed::postgres::{PostgresOptions, PostgresServer};
use tokio::time::timeout;

#[tokio::test]
async fn a_committed_insert_wakes_the_listener_and_a_rolled_back_one_does_not() {
    let outbox = outbox().await;
    let mut listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    let writer = client(&outbox.url).await;
    writer
        .batch_execute(
            "BEGIN; INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', ''); ROLLBACK",
        )
        .await
        .unwrap();
    // What was rolled back would have come before this.
    outbox
        .client
        .batch_execute("NOTIFY postrider_outbox, 'mark'")
        .await
        .unwrap();
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
    outbox.insert(3).await;
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
    // One statement is one wake-up, whatever its rows.
    let nothing = futures_util::future::poll_immediate(std::pin::pin!(listener.next())).await;
    assert!(nothing.is_none());
}

#[tokio::test]
async fn a_wake_up_that_came_while_nobody_waited_is_not_lost() {
    let outbox = outbox().await;
    let mut listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    for _ in 0..20 {
        // Cancelled over and over, as in a select.
        let _ = timeout(Duration::from_millis(1), listener.next()).await;
    }
    outbox.insert(1).await;
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_notify_the_listener_shows_presence_alone() {
    let outbox = outbox().await;
    let mut silent = Listener::connect(&outbox.database, "silent", false)
        .await
        .unwrap();
    let mut awake = Listener::connect(&outbox.database, "awake", true)
        .await
        .unwrap();
    outbox.insert(1).await;
    timeout(DEADLINE, awake.next()).await.unwrap().unwrap();
    let nothing = futures_util::future::poll_immediate(std::pin::pin!(silent.next())).await;
    assert!(nothing.is_none());

    let names = || async {
        let relays = outbox.database.relays().await.unwrap();
        let counted = outbox.database.count_relays().await.unwrap();
        assert_eq!(usize::try_from(counted).unwrap(), relays.len());
        assert!(
            relays
                .iter()
                .all(|relay| relay.pid > 0 && relay.since.is_some())
        );
        relays
            .into_iter()
            .map(|relay| relay.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["awake", "silent"]);
    drop(awake);
    until("the relay that left is no longer shown", || async {
        names().await == ["silent"]
    })
    .await;
}

#[tokio::test]
async fn every_role_sees_which_relays_are_connected() {
    let outbox = outbox().await;
    let _listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    let role = format!("nobody_{}", outbox.name);
    outbox
        .client
        .batch_execute(&format!("CREATE ROLE {role} LOGIN"))
        .await
        .unwrap();
    let url = outbox.url.replace("postgres@", &format!("{role}@"));
    let relays = Database::new(Settings::new(url))
        .unwrap()
        .relays()
        .await
        .unwrap();
    assert_eq!(relays.len(), 1);
    assert_eq!(relays[0].name, "one");
    assert_eq!(relays[0].since, None);
}

#[tokio::test]
async fn a_listener_whose_session_is_ended_says_so() {
    let outbox = outbox().await;
    let mut listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    outbox
        .client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'postrider: one'",
            &[],
        )
        .await
        .unwrap();
    let error = timeout(DEADLINE, listener.next())
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.is_connection(), "{error}");
}

#[tokio::test]
async fn a_listener_notices_a_server_that_has_stopped_answering() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let mut listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    server.pause().await.unwrap();
    let error = timeout(DEADLINE, listener.next())
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.is_connection(), "{error}");
    server.resume().await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_leaves_the_wake_up_out_can_be_prepared() {
    let server = PostgresServer::start(PostgresOptions {
        config: vec!["max_prepared_transactions = 4".into()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let insert =
        "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', '')";
    let error = outbox
        .client
        .batch_execute(&format!("BEGIN; {insert}; PREPARE TRANSACTION 'one'"))
        .await
        .unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "0A000");
    outbox.client.batch_execute("ROLLBACK").await.unwrap();

    outbox
        .client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL postrider.notify = 'off'; {insert}; PREPARE TRANSACTION 'one'"
        ))
        .await
        .unwrap();
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert!(claim.is_empty(), "prepared is not committed");
    outbox
        .client
        .batch_execute("COMMIT PREPARED 'one'")
        .await
        .unwrap();
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert_eq!(claim.len(), 1);
    claim.release().await.unwrap();

    // The setting ended with its transaction.
    let mut listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    outbox.client.batch_execute(insert).await.unwrap();
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
}
