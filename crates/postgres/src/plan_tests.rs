//! How the server executes the statements of the hot path, in the relay's own session.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::time::Duration;

use postrider_core::Origin;
use postrider_testbed::shared;

use crate::due::bound;
use crate::{ClaimLimits, Database, Settings};

const MIB: u64 = 1 << 20;

async fn outbox() -> (Database, postrider_testbed::Client, String) {
    let test = shared::database().await;
    let database = Database::new(Settings::new(&test.url)).unwrap();
    database.migrate(Duration::from_secs(60)).await.unwrap();
    (database, test.client().await.unwrap(), test.url)
}

/// Hazard: prepared on an empty, analysed table, the claim became a sequential scan and a sort.
#[tokio::test]
async fn a_claim_prepared_on_an_empty_table_reads_the_primary_key_when_the_backlog_has_grown() {
    let (database, client, _) = outbox().await;
    client
        .batch_execute(
            "ALTER TABLE outbox.messages SET (autovacuum_enabled = off); ANALYZE outbox.messages",
        )
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let sql = database.sql().of(Origin::Messages);
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint) AS {}; \
             PREPARE claim_except (bigint, bigint, bigint, bigint[]) AS {}; \
             PREPARE settle (bigint[]) AS {}",
            sql.claim, sql.claim_except, sql.settle.delete
        ))
        .await
        .unwrap();
    // More than the five executions after which a generic plan may be taken.
    let execute = "EXECUTE claim (500, 8000000, 8000000); EXECUTE claim_except (500, 8000000, 8000000, '{1}'); EXECUTE settle ('{1}');";
    session.batch_execute(&execute.repeat(7)).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', '{}' FROM generate_series(1, 300000)",
        )
        .await
        .unwrap();
    for execute in [
        "EXECUTE claim (500, 8000000, 8000000)",
        "EXECUTE claim_except (500, 8000000, 8000000, '{1,2,3}')",
        "EXECUTE settle ('{1,2,3}')",
    ] {
        let plan = session
            .query(&format!("EXPLAIN {execute}"), &[])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<_, String>(0))
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            plan.contains("Index Scan using messages_pkey"),
            "{execute}: {plan}"
        );
        assert!(!plan.contains("Seq Scan"), "{execute}: {plan}");
        // Sorted is what the claim returns, never what it reads.
        assert!(plan.matches("Sort Key").count() <= 1, "{execute}: {plan}");
    }
}

/// How many rows such a claim returns, and how many pages of payloads it reads. In a session of its
/// own: the counters are the session's until it reports them.
async fn rows_and_payload_pages(url: &str, limits: ClaimLimits) -> (usize, i64) {
    let database = Database::new(Settings::new(url)).unwrap();
    let claim = database.claim(limits, &[], Origin::Messages).await.unwrap();
    let rows = claim.len();
    let session = claim.lease.as_ref().unwrap().client().unwrap();
    let pages = session
        .query_one(
            "SELECT pg_stat_get_xact_blocks_fetched(reltoastrelid) FROM pg_class WHERE oid = 'outbox.messages'::regclass",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    claim.release().await.unwrap();
    (rows, pages)
}

#[tokio::test]
async fn payloads_that_are_too_large_or_beyond_the_bytes_are_not_read() {
    let (_, client, url) = outbox().await;
    client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) SELECT 'e', 'k', convert_to(repeat('x', 1048576), 'UTF8') FROM generate_series(1, 20);
             INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', to_json(repeat('x', 1048576)) FROM generate_series(1, 20)",
        )
        .await
        .unwrap();
    let all = ClaimLimits {
        rows: 500,
        bytes: 1000 * MIB,
        max_message_bytes: 16 * MIB,
    };
    let (rows, pages_of_all) = rows_and_payload_pages(&url, all).await;
    assert_eq!(rows, 40);
    assert!(pages_of_all >= 40 * 128, "{pages_of_all}");

    let too_large = ClaimLimits {
        max_message_bytes: MIB - 1,
        ..all
    };
    assert_eq!(rows_and_payload_pages(&url, too_large).await, (40, 0));

    let few_bytes = ClaimLimits {
        bytes: 4 * MIB,
        ..all
    };
    let (rows, pages) = rows_and_payload_pages(&url, few_bytes).await;
    assert_eq!(rows, 4);
    assert!(pages <= pages_of_all / 8, "{pages} of {pages_of_all}");
}

async fn plan(session: &tokio_postgres::Client, execute: &str) -> String {
    session
        .query(&format!("EXPLAIN {execute}"), &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get::<_, String>(0))
        .collect::<Vec<_>>()
        .join("\n")
}

/// As above, with 300,000 messages that wait, for the table of those.
#[tokio::test]
async fn what_is_due_is_found_by_its_time_and_moved_by_its_place_however_many_wait() {
    let (database, client, _) = outbox().await;
    client
        .batch_execute(
            "ALTER TABLE outbox.deferred SET (autovacuum_enabled = off); ANALYZE outbox.deferred, outbox.messages, outbox.dead_letters",
        )
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let sql = database.sql().of(Origin::Deferred);
    let fresh = database.sql().of(Origin::Messages);
    let schema = database.schema();
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint, timestamptz) AS {}; \
             PREPARE claim_except (bigint, bigint, bigint, timestamptz, bigint[]) AS {}; \
             PREPARE done (bigint[]) AS {}; \
             PREPARE retry (bigint[], int[], text[], text[], bigint[]) AS {}; \
             PREPARE give_up (bigint[], int[], text[], text[]) AS {}; \
             PREPARE retry_fresh (bigint[], int[], text[], text[], bigint[]) AS {}; \
             PREPARE give_up_fresh (bigint[], int[], text[], text[]) AS {}; \
             PREPARE next_due (timestamptz) AS {}; \
             PREPARE sample (bigint) AS {}",
            sql.claim,
            sql.claim_except,
            sql.settle.delete,
            sql.settle.retry,
            sql.settle.give_up,
            fresh.settle.retry,
            fresh.settle.give_up,
            database.sql().due.first,
            crate::inspect::sample_sql(schema),
        ))
        .await
        .unwrap();
    let moved = "'{1,2,3}', '{1,1,1}', '{r,r,r}', '{e,e,e}'";
    let executes = [
        (
            "claim (500, 8000000, 8000000, '-infinity')".to_owned(),
            "deferred_due_at_seq",
        ),
        (
            "claim_except (500, 8000000, 8000000, '2001-01-01', '{1}')".to_owned(),
            "deferred_due_at_seq",
        ),
        ("done ('{1,2,3}')".to_owned(), "deferred_pkey"),
        (format!("retry ({moved}, '{{1,1,1}}')"), "deferred_pkey"),
        (format!("give_up ({moved})"), "deferred_pkey"),
        (
            format!("retry_fresh ({moved}, '{{1,1,1}}')"),
            "messages_pkey",
        ),
        (format!("give_up_fresh ({moved})"), "messages_pkey"),
        ("next_due ('-infinity')".to_owned(), "deferred_due_at_seq"),
        ("sample (100000)".to_owned(), "deferred_due_at_seq"),
    ];
    for (execute, _) in &executes {
        session
            .batch_execute(&format!("EXECUTE {execute};").repeat(7))
            .await
            .unwrap();
    }
    client
        .batch_execute(
            "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, attempts, due_at, cause)
             SELECT n, gen_random_uuid(), 'e', 'k', '{}', '{}', false, now(), 0, now() + n * interval '1 minute', 'scheduled' FROM generate_series(1, 300000) AS n;
             INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', '{}' FROM generate_series(1, 50000)",
        )
        .await
        .unwrap();
    for analysed in [false, true] {
        if analysed {
            client
                .batch_execute("ANALYZE outbox.deferred, outbox.messages")
                .await
                .unwrap();
        }
        for (execute, index) in &executes {
            let plan = plan(session, &format!("EXECUTE {execute}")).await;
            assert!(plan.contains(index), "{execute}: {plan}");
            assert!(!plan.contains("Seq Scan"), "{execute}: {plan}");
            // An index that is read by a bound or from its start, not from end to end and filtered.
            assert!(!plan.contains("Filter: (due_at"), "{execute}: {plan}");
        }
        let due = plan(session, "EXECUTE next_due ('2001-01-01')").await;
        assert!(due.contains("Index Only Scan"), "{due}");
    }
    // What it reads, in pages: as little as of an empty table.
    let analysed = plan(
        session,
        "(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE claim (500, 8000000, 8000000, '-infinity')",
    )
    .await;
    let (_, hit) = analysed.split_once("Buffers: shared hit=").unwrap();
    let pages: String = hit.chars().take_while(char::is_ascii_digit).collect();
    assert!(pages.parse::<u64>().unwrap() < 20, "{analysed}");
}

/// With 300,000 messages of other targets and 100,000 scheduled ones of its own, that wait.
#[tokio::test]
async fn a_target_is_claimed_from_and_released_without_a_look_at_others_or_at_what_is_scheduled() {
    let (database, client, _) = outbox().await;
    client
        .batch_execute(
            "ALTER TABLE outbox.deferred SET (autovacuum_enabled = off); ANALYZE outbox.deferred, outbox.messages",
        )
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let sql = database.sql();
    let fresh = sql.of(Origin::Messages);
    let deferred = sql.of(Origin::Deferred);
    session
        .batch_execute(&format!(
            "PREPARE claim_exchange (bigint, bigint, bigint, bigint[], text) AS {}; \
             PREPARE claim_route (bigint, bigint, bigint, bigint[], text, text) AS {}; \
             PREPARE release_exchange (bigint, text) AS {}; \
             PREPARE release_route (bigint, text, text) AS {}; \
             PREPARE late_fresh (bigint[], uuid[]) AS {}; \
             PREPARE late_deferred (bigint[], uuid[]) AS {}",
            sql.exchange.claim,
            sql.route.claim,
            sql.exchange.release,
            sql.route.release,
            fresh.delete_confirmed,
            deferred.delete_confirmed,
        ))
        .await
        .unwrap();
    let target = "deferred_target_due_at";
    let id = uuid::Uuid::nil();
    let executes = [
        (
            "claim_exchange (50, 8000000, 8000000, '{7}', 'm')".to_owned(),
            target,
        ),
        (
            "claim_route (50, 8000000, 8000000, '{7}', 'm', 'k')".to_owned(),
            target,
        ),
        ("release_exchange (50, 'm')".to_owned(), target),
        ("release_route (50, 'm', 'k')".to_owned(), target),
        (
            format!("late_fresh ('{{1,2}}', '{{{id},{id}}}')"),
            "messages_pkey",
        ),
        (
            format!("late_deferred ('{{1,2}}', '{{{id},{id}}}')"),
            "deferred_pkey",
        ),
    ];
    for (execute, _) in &executes {
        session
            .batch_execute(&format!("EXECUTE {execute};").repeat(7))
            .await
            .unwrap();
    }
    client
        .batch_execute(
            "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, attempts, due_at, cause)
             SELECT n, gen_random_uuid(), CASE WHEN n % 4 = 0 THEN 'm' ELSE 'e' || n % 50 END, 'k', '{}', '{}', false, now(), 0,
                    now() + n * interval '1 second', CASE WHEN n % 4 = 0 THEN 'scheduled' ELSE 'retry' END
             FROM generate_series(1, 400000) AS n;
             INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, attempts, due_at, cause)
             SELECT 1000000 + n, gen_random_uuid(), 'm', 'k', '{}', '{}', false, now(), 0, now() + interval '30 days', 'retry'
             FROM generate_series(1, 3) AS n;
             INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', '{}' FROM generate_series(1, 50000)",
        )
        .await
        .unwrap();
    for analysed in [false, true] {
        if analysed {
            client
                .batch_execute("ANALYZE outbox.deferred, outbox.messages")
                .await
                .unwrap();
        }
        for (execute, index) in &executes {
            let plan = plan(session, &format!("EXECUTE {execute}")).await;
            assert!(plan.contains(index), "{execute}: {plan}");
            assert!(!plan.contains("Seq Scan"), "{execute}: {plan}");
        }
    }
    // What is read, in pages, where fewer are found than asked for: the whole target was looked through.
    for (execute, _) in &executes {
        session.batch_execute("BEGIN").await.unwrap();
        let analysed = plan(
            session,
            &format!("(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE {execute}"),
        )
        .await;
        session.batch_execute("ROLLBACK").await.unwrap();
        let (_, hit) = analysed.split_once("Buffers: shared hit=").unwrap();
        let pages: String = hit.chars().take_while(char::is_ascii_digit).collect();
        assert!(pages.parse::<u64>().unwrap() < 150, "{execute}: {analysed}");
    }
}

/// All pages that a plan read, from its first line of buffers: that of the whole.
fn pages(analysed: &str) -> u64 {
    let (_, buffers) = analysed.split_once("Buffers: shared").unwrap();
    let buffers = buffers.lines().next().unwrap();
    let counts = buffers.split_whitespace().filter_map(|part| {
        let (kind, count) = part.split_once('=')?;
        ["hit", "read"].contains(&kind).then_some(count)
    });
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// Hazard: 500,000 rows that were moved out, and that an old snapshot kept from being removed, made each look
/// take 51 to 63 ms.
#[tokio::test]
async fn from_the_floor_on_what_was_deferred_under_an_old_snapshot_is_not_read_again() {
    let (database, client, url) = outbox().await;
    client
        .batch_execute("ALTER TABLE outbox.deferred SET (autovacuum_enabled = off)")
        .await
        .unwrap();
    let report = postrider_testbed::Client::connect(&url).await.unwrap();
    report
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.deferred",
        )
        .await
        .unwrap();
    client
        .batch_execute(
            "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, attempts, due_at, cause)
             SELECT n, gen_random_uuid(), 'e', 'k', '{}', '{}', false, now(), 0, clock_timestamp(), 'scheduled' FROM generate_series(1, 200000) AS n",
        )
        .await
        .unwrap();
    client
        .batch_execute("DELETE FROM outbox.deferred")
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint, timestamptz) AS {}; PREPARE look (timestamptz) AS {}",
            database.sql().of(Origin::Deferred).claim,
            database.sql().due.first,
        ))
        .await
        .unwrap();
    let read = async |from: &str| {
        let analyse = "(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE";
        let claim = format!("{analyse} claim (500, 8000000, 8000000, {from})");
        let look = format!("{analyse} look ({from})");
        [
            pages(&plan(session, &claim).await),
            pages(&plan(session, &look).await),
        ]
    };

    let mut watch = database.watch_due().await.unwrap();
    let from = watch.look().await.unwrap().from;
    assert!(from.is_some());
    let row = session
        .query_one("SELECT quote_literal($1::timestamptz)", &[&bound(from)])
        .await
        .unwrap();
    let without = read("'-infinity'").await;
    let with = read(row.get(0)).await;
    assert!(without.iter().all(|pages| *pages > 1000), "{without:?}");
    assert!(with.iter().all(|pages| *pages < 20), "{with:?}");
    report.batch_execute("ROLLBACK").await.unwrap();
}
