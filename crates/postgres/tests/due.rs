//! The floor of the due times: nothing that is due is below it, whatever its writer does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::{LIMITS, Outbox, client, done, outbox, outbox_at, until};
use postrider_core::{Reason, Seq};
use postrider_postgres::{
    Claim, ClaimFrom, Database, DeadLetterFilter, DeferredFilter, DueTime, DueWatch, Retry,
    Settled, Settlement,
};
use postrider_testbed::{PostgresOptions, PostgresServer, StopMode};

const SOON: &str = "SELECT outbox.publish('e', 'soon', '1', deliver_at => clock_timestamp() + interval '1 second')";
const HOUR: &str =
    "SELECT outbox.publish('e', 'hour', '1', deliver_at => clock_timestamp() + interval '1 hour')";

async fn from(watch: &mut DueWatch) -> Option<DueTime> {
    watch.look().await.unwrap().from
}

async fn due(database: &Database, from: Option<DueTime>) -> Claim {
    database.claim_due(LIMITS, &[], from).await.unwrap()
}

/// What a claim from the newest floor on finds.
async fn keys(outbox: &Outbox, watch: &mut DueWatch) -> Vec<String> {
    let claim = due(&outbox.database, from(watch).await).await;
    let keys = claim.messages().iter().map(|m| m.routing_key.clone());
    let keys = keys.collect();
    claim.release().await.unwrap();
    keys
}

/// Settles the only message that a claim from the newest floor on finds.
async fn settle(outbox: &Outbox, watch: &mut DueWatch, settlement: impl FnOnce(Seq) -> Settlement) {
    let claim = due(&outbox.database, from(watch).await).await;
    assert_eq!(claim.len(), 1);
    let settlement = settlement(claim.messages()[0].seq);
    let settled = claim.settle(&settlement).await.unwrap();
    assert!(matches!(settled, Settled::Whole));
}

/// Others write, and look, until what was to come soon is long due.
async fn while_others_come_and_go(outbox: &Outbox, watch: &mut DueWatch) {
    let mut others = 0;
    let overdue = "SELECT now() > $1::timestamptz + interval '2 seconds'";
    let began: std::time::SystemTime = outbox
        .client
        .query_one("SELECT clock_timestamp()", &[])
        .await
        .unwrap()
        .get(0);
    loop {
        outbox.client.batch_execute(HOUR).await.unwrap();
        others += 1;
        from(watch).await;
        let row = outbox.client.query_one(overdue, &[&began]).await.unwrap();
        if row.get(0) && others > 20 {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_message_whose_transaction_ends_long_after_it_was_due_is_claimed() {
    let outbox = outbox().await;
    let mut watch = outbox.database.watch_due().await.unwrap();
    let before = from(&mut watch).await;
    assert!(before.is_some());
    let late = client(&outbox.url).await;
    late.batch_execute("BEGIN").await.unwrap();
    late.batch_execute(SOON).await.unwrap();
    while_others_come_and_go(&outbox, &mut watch).await;
    let pinned = from(&mut watch).await;
    assert!(keys(&outbox, &mut watch).await.is_empty());
    late.batch_execute("COMMIT").await.unwrap();
    assert_eq!(keys(&outbox, &mut watch).await, ["soon"]);
    assert_eq!(
        watch.look().await.unwrap().next_due,
        Some(Duration::ZERO),
        "and it is seen"
    );
    settle(&outbox, &mut watch, |seq| done(&[seq])).await;
    assert!(from(&mut watch).await > pinned);
}

#[tokio::test]
async fn a_message_whose_writer_was_there_before_the_watch_is_claimed() {
    let outbox = outbox().await;
    let late = client(&outbox.url).await;
    late.batch_execute("BEGIN").await.unwrap();
    late.batch_execute(SOON).await.unwrap();
    let mut watch = outbox.database.watch_due().await.unwrap();
    while_others_come_and_go(&outbox, &mut watch).await;
    assert_eq!(from(&mut watch).await, None);
    late.batch_execute("COMMIT").await.unwrap();
    assert_eq!(keys(&outbox, &mut watch).await, ["soon"]);
}

#[tokio::test]
async fn a_writer_that_rolls_back_leaves_what_was_due_and_holds_the_floor_no_longer() {
    let outbox = outbox().await;
    let mut watch = outbox.database.watch_due().await.unwrap();
    outbox.client.batch_execute(SOON).await.unwrap();
    until("it is due", || async {
        fresh::next_due(&outbox.database).await == Some(Duration::ZERO)
    })
    .await;

    let other = client(&outbox.url).await;
    other
        .batch_execute("BEGIN; UPDATE outbox.deferred SET due_at = clock_timestamp()")
        .await
        .unwrap();
    other.batch_execute(SOON).await.unwrap();
    while_others_come_and_go(&outbox, &mut watch).await;
    assert!(keys(&outbox, &mut watch).await.is_empty(), "it is locked");
    other.batch_execute("ROLLBACK").await.unwrap();
    let below = from(&mut watch).await;
    assert_eq!(keys(&outbox, &mut watch).await, ["soon"]);
    settle(&outbox, &mut watch, |seq| done(&[seq])).await;
    let above = from(&mut watch).await;
    assert!(above > below);
    assert!(keys(&outbox, &mut watch).await.is_empty());
    assert!(from(&mut watch).await > above);
}

#[tokio::test]
async fn what_is_retried_or_released_is_found_above_the_floor() {
    let outbox = outbox().await;
    let mut watch = outbox.database.watch_due().await.unwrap();
    let at_once = |seq| Settlement {
        retry: vec![Retry {
            seq,
            after: Duration::ZERO,
            attempts: 1,
            reason: Reason::Nacked,
            error: "full".to_owned(),
        }],
        ..Settlement::default()
    };
    outbox.client.batch_execute(HOUR).await.unwrap();
    let mut floor = from(&mut watch).await;
    let mut rose = async |watch: &mut DueWatch| {
        let now = from(watch).await;
        assert!(now > floor);
        floor = now;
    };
    rose(&mut watch).await;
    let all = DeferredFilter::default();
    let released = outbox.database.release_deferred(&all, None, 10).await;
    assert_eq!(released.unwrap().rows, 1);
    settle(&outbox, &mut watch, at_once).await;
    rose(&mut watch).await;
    settle(&outbox, &mut watch, at_once).await;
    rose(&mut watch).await;
    settle(&outbox, &mut watch, |seq| Settlement {
        dead: vec![postrider_postgres::Dead {
            seq,
            attempts: 2,
            reason: Reason::Nacked,
            error: "full".to_owned(),
        }],
        ..Settlement::default()
    })
    .await;
    rose(&mut watch).await;
    let all = DeadLetterFilter::default();
    let retried = outbox.database.retry_dead_letters(&all, None, 10).await;
    assert_eq!(retried.unwrap().rows, 1);
    settle(&outbox, &mut watch, |seq| done(&[seq])).await;

    outbox.insert(1).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await;
    let claim = claim.unwrap();
    let settlement = at_once(claim.messages()[0].seq);
    rose(&mut watch).await;
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    settle(&outbox, &mut watch, |seq| done(&[seq])).await;
}

/// As a partial restore, or an operator's hand.
#[tokio::test]
async fn a_message_written_below_the_floor_is_found_by_the_look_at_all() {
    let outbox = outbox().await;
    let mut watch = outbox.database.watch_due().await.unwrap();
    let floor = from(&mut watch).await;
    outbox.client.batch_execute(HOUR).await.unwrap();
    outbox
        .client
        .batch_execute("UPDATE outbox.deferred SET due_at = '2001-02-03'")
        .await
        .unwrap();
    assert!(keys(&outbox, &mut watch).await.is_empty());
    assert_eq!(watch.look().await.unwrap().next_due, None);

    let look = watch.look_at_all().await.unwrap();
    assert_eq!(look.next_due, Some(Duration::ZERO));
    assert!(look.from.is_some() && look.from < floor);
    assert_eq!(keys(&outbox, &mut watch).await, ["hour"]);
    settle(&outbox, &mut watch, |seq| done(&[seq])).await;
    assert!(from(&mut watch).await > floor);
    // And where nothing is amiss it changes nothing.
    let floor = from(&mut watch).await;
    assert!(watch.look_at_all().await.unwrap().from > floor);
}

#[tokio::test]
async fn a_table_that_was_replaced_is_looked_at_from_the_beginning() {
    let outbox = outbox().await;
    let mut watch = outbox.database.watch_due().await.unwrap();
    assert!(from(&mut watch).await.is_some());
    outbox
        .client
        .batch_execute(
            "ALTER TABLE outbox.deferred RENAME TO before;
             CREATE TABLE outbox.deferred (LIKE outbox.before INCLUDING ALL)",
        )
        .await
        .unwrap();
    outbox.client.batch_execute(HOUR).await.unwrap();
    outbox
        .client
        .batch_execute("UPDATE outbox.deferred SET due_at = '2001-02-03'")
        .await
        .unwrap();
    assert_eq!(keys(&outbox, &mut watch).await, ["hour"]);
}

/// A prepared transaction survives the server, and goes by another name after it.
#[tokio::test]
async fn a_watch_ends_with_the_server_and_the_next_one_waits_for_whoever_was_prepared() {
    let server = PostgresServer::start(PostgresOptions {
        config: vec!["max_prepared_transactions = 2".to_owned()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let mut watch = outbox.database.watch_due().await.unwrap();
    let floor = from(&mut watch).await;
    assert!(floor.is_some());
    let late = client(&outbox.url).await;
    late.batch_execute("BEGIN; SET LOCAL postrider.notify = 'off'")
        .await
        .unwrap();
    late.batch_execute(SOON).await.unwrap();
    assert_eq!(from(&mut watch).await, floor);
    late.batch_execute("PREPARE TRANSACTION 'late'")
        .await
        .unwrap();
    let outbox = Outbox {
        client: client(&test.url).await,
        ..outbox
    };
    while_others_come_and_go(&outbox, &mut watch).await;
    let pinned = from(&mut watch).await;
    assert_eq!(from(&mut watch).await, pinned);

    server.restart(StopMode::Immediate).await.unwrap();
    watch.look().await.unwrap_err();
    let outbox = Outbox {
        client: client(&test.url).await,
        ..outbox
    };
    let mut watch = outbox.database.watch_due().await.unwrap();
    assert_eq!(from(&mut watch).await, None);
    while_others_come_and_go(&outbox, &mut watch).await;
    outbox
        .client
        .batch_execute("COMMIT PREPARED 'late'")
        .await
        .unwrap();
    assert_eq!(keys(&outbox, &mut watch).await, ["soon"]);
}
