//! What is read from the floor and from the frontier on, beside what is read from the beginning.

use postrider_core::{Frontier, Passed, Seq};

use super::{MODES, outbox, pages, plan};
use crate::database::Sql;
use crate::{Database, OutboxWatch, Schema, Share};

const INSERT: &str = "INSERT INTO outbox.messages (exchange, routing_key, payload_json)";

/// A look, and what the relay concludes from it.
async fn look(watch: &mut OutboxWatch, frontier: &mut Frontier<Seq>) {
    let look = watch.look().await.unwrap();
    let _ = frontier.looked(look.next, look.writers, true);
    if let Some(ask) = frontier.ask() {
        let oldest = watch.oldest(ask.from(), ask.below()).await.unwrap();
        frontier.raise(ask, oldest);
    }
}

fn prepare(sql: &Sql, schema: &Schema) -> String {
    format!(
        "PREPARE claim (bigint, bigint, bigint, bigint, bigint) AS {}; \
         PREPARE oldest (bigint, bigint) AS {}; \
         PREPARE lag (bigint, timestamptz) AS {}",
        sql.messages.claim(Share::Equal).all,
        sql.watch.oldest,
        crate::inspect::lag_sql(schema),
    )
}

/// The pages that a claim, a sample of the lag and the question for the floor read.
async fn read(session: &tokio_postgres::Client, from: i64, floor: i64, below: i64) -> [u64; 3] {
    let analyse = "(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE";
    let mut read = [0; 3];
    for (read, execute) in read.iter_mut().zip([
        format!("claim (500, 8000000, 8000000, {from}, {from})"),
        format!("lag ({from}, '-infinity')"),
        format!("oldest ({floor}, {below})"),
    ]) {
        *read = pages(&plan(session, &format!("{analyse} {execute}")).await);
    }
    read
}

/// With 200,000 rows that an old snapshot keeps from being removed, and behind them one message.
async fn what_is_read_after_many_were_deleted(database: &Database, url: &str, writer: bool) {
    let client = postrider_testbed::Client::connect(url).await.unwrap();
    let report = postrider_testbed::Client::connect(url).await.unwrap();
    let open = postrider_testbed::Client::connect(url).await.unwrap();
    client
        .batch_execute("ALTER TABLE outbox.messages SET (autovacuum_enabled = off)")
        .await
        .unwrap();
    let mut watch = database.watch_outbox().await.unwrap();
    let mut frontier = Frontier::new();
    look(&mut watch, &mut frontier).await;
    report
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.messages",
        )
        .await
        .unwrap();
    if writer {
        open.batch_execute(&format!("BEGIN; {INSERT} VALUES ('e', 'k', '{{}}')"))
            .await
            .unwrap();
    }
    client
        .batch_execute(&format!(
            "{INSERT} SELECT 'e', 'k', '{{}}' FROM generate_series(1, 200000); \
             DELETE FROM outbox.messages; \
             {INSERT} VALUES ('e', 'k', '{{}}')"
        ))
        .await
        .unwrap();
    // The writer is seen twice before it is passed.
    look(&mut watch, &mut frontier).await;
    look(&mut watch, &mut frontier).await;
    let Seq(next) = frontier.floor().next().unwrap();
    let scan = frontier.scan();
    frontier.passed(scan, Passed::Below(Seq(next - 1)));
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    session
        .batch_execute(&prepare(database.sql(), database.schema()))
        .await
        .unwrap();

    let Seq(from) = frontier.at().unwrap();
    let Seq(floor) = frontier.floor().floor().unwrap();
    let below = frontier.ask().map_or(floor, |ask| ask.below().0);
    assert_eq!(from, next - 1);
    assert_eq!(floor < 200_000, writer);
    for mode in MODES {
        let set = format!("SET plan_cache_mode = {mode}");
        session.batch_execute(&set).await.unwrap();
        let with = read(session, from, floor, below).await;
        assert!(with.iter().all(|pages| *pages < 20), "{mode}: {with:?}");
        let without = read(session, i64::MIN, i64::MIN, next).await;
        let all = without.iter().all(|pages| *pages > 1000);
        assert!(all, "{mode}: {without:?}");
    }
}

#[tokio::test]
async fn what_was_deleted_under_an_old_snapshot_is_not_read_again() {
    let (database, _, url) = outbox().await;
    what_is_read_after_many_were_deleted(&database, &url, false).await;
}

#[tokio::test]
async fn what_was_deleted_behind_an_open_transaction_that_wrote_is_not_read_again() {
    let (database, _, url) = outbox().await;
    what_is_read_after_many_were_deleted(&database, &url, true).await;
}

#[tokio::test]
async fn the_look_back_for_messages_with_a_key_reads_nothing_of_those_without() {
    let (database, _, url) = outbox().await;
    let client = postrider_testbed::Client::connect(&url).await.unwrap();
    client
        .batch_execute(&format!(
            "{INSERT} SELECT 'e', 'k', '{{}}' FROM generate_series(1, 50000); \
             INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) VALUES ('e', 'k', '{{}}', 'a'); \
             ANALYZE outbox.messages"
        ))
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let prepare = format!(
        "PREPARE look_back (bigint, bigint) AS {}",
        database.sql().watch.oldest_with_a_key
    );
    session.batch_execute(&prepare).await.unwrap();
    for mode in MODES {
        let set = format!("SET plan_cache_mode = {mode}");
        session.batch_execute(&set).await.unwrap();
        let look_back = "(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE look_back (0, 60000)";
        let read = pages(&plan(session, look_back).await);
        assert!(read < 20, "{mode}: {read}");
    }
}
