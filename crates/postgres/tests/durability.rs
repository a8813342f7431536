//! A message that can be claimed survives a crash of the server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use fresh::{LIMITS, client, outbox, outbox_at};
use postrider_core::Origin;
use postrider_postgres::ClaimFrom;
use postrider_testbed::postgres::{PostgresOptions, PostgresServer};

const INSERTS: [&str; 2] = [
    "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', '')",
    "SELECT outbox.publish('e', 'k', '{}')",
];

#[tokio::test]
async fn an_insert_makes_its_own_commit_synchronous_and_no_other() {
    let outbox = outbox().await;
    let setting = || async {
        let row = outbox
            .client
            .query_one("SHOW synchronous_commit", &[])
            .await
            .unwrap();
        row.get::<_, String>(0)
    };
    for insert in INSERTS {
        for (before, during) in [("off", "on"), ("local", "local"), ("on", "on")] {
            outbox
                .client
                .batch_execute(&format!(
                    "SET synchronous_commit = {before}; BEGIN; {insert}"
                ))
                .await
                .unwrap();
            assert_eq!(setting().await, during, "{insert} with {before}");
            outbox.client.batch_execute("COMMIT").await.unwrap();
            assert_eq!(setting().await, before);
        }
    }
}

/// Without the trigger's part, the row is claimed from memory and gone after the crash: a phantom.
#[tokio::test]
async fn a_message_that_was_claimed_is_still_there_after_a_crash_though_its_producer_commits_asynchronously()
 {
    let server = PostgresServer::start(PostgresOptions {
        // The log is written once in ten seconds unless a commit waits for it. (With a small
        // wal_writer_flush_after, PostgreSQL 17 wakes its writer at each asynchronous commit.)
        config: vec![
            "wal_writer_delay = '10s'".into(),
            "wal_writer_flush_after = '1GB'".into(),
        ],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let producer = client(&outbox.url).await;
    producer
        .batch_execute(
            "CREATE TABLE bystander (n int); CREATE ROLE somebody; SET synchronous_commit = off",
        )
        .await
        .unwrap();
    for insert in INSERTS {
        producer.batch_execute(insert).await.unwrap();
    }
    let claim = outbox.claim(Origin::Messages).await;
    let claimed: Vec<_> = claim.messages().iter().map(|message| message.seq).collect();
    assert_eq!(claimed.len(), 2);
    // Proof that asynchronous commits are lost in this crash: some of those answered just before it.
    let (answered, mut count) = tokio::sync::watch::channel(0_i64);
    let bystander = tokio::spawn(async move {
        while producer
            .batch_execute("INSERT INTO bystander VALUES (1)")
            .await
            .is_ok()
        {
            answered.send_modify(|count| *count += 1);
        }
        *answered.borrow()
    });
    count.wait_for(|count| *count >= 100).await.unwrap();
    server.kill().await.unwrap();
    let answered = bystander.await.unwrap();
    drop(claim);
    server.start_again().await.unwrap();

    let after = client(&outbox.url).await;
    let bystanders: i64 = after
        .query_one("SELECT count(*) FROM bystander", &[])
        .await
        .unwrap()
        .get(0);
    assert!(
        bystanders < answered,
        "none of {answered} was lost in this crash: it proves nothing"
    );
    let database =
        postrider_postgres::Database::new(postrider_postgres::Settings::new(&outbox.url)).unwrap();
    let claim = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let again: Vec<_> = claim.messages().iter().map(|message| message.seq).collect();
    assert_eq!(again, claimed);
    claim.release().await.unwrap();
}
