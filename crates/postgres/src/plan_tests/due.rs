//! The statements on the table of the messages that wait.

use super::{old_snapshot, outbox, pages, plan};
use crate::due::bound;

/// With 300,000 messages that wait, for the table of those.
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
    let sql = &database.sql().deferred;
    let fresh = &database.sql().messages;
    let schema = database.schema();
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint, timestamptz) AS {}; \
             PREPARE claim_except (bigint, bigint, bigint, timestamptz, bigint[]) AS {}; \
             PREPARE done (bigint[]) AS {}; \
             PREPARE retry (bigint[], int[], text[], text[], bigint[]) AS {}; \
             PREPARE give_up (bigint[], int[], text[], text[], bool[]) AS {}; \
             PREPARE retry_fresh (bigint[], int[], text[], text[], bigint[]) AS {}; \
             PREPARE give_up_fresh (bigint[], int[], text[], text[], bool[]) AS {}; \
             PREPARE next_due (timestamptz) AS {}; \
             PREPARE sample (bigint, timestamptz, bigint) AS {}; \
             PREPARE lag (bigint, timestamptz) AS {}",
            sql.claim.all,
            sql.claim.except,
            sql.settle.delete,
            sql.settle.retry,
            sql.settle.give_up,
            fresh.settle.retry,
            fresh.settle.give_up,
            database.sql().due.first,
            crate::inspect::sample_sql(schema),
            crate::inspect::lag_sql(schema),
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
        (format!("give_up ({moved}, '{{t,f,t}}')"), "deferred_pkey"),
        (
            format!("retry_fresh ({moved}, '{{1,1,1}}')"),
            "messages_pkey",
        ),
        (
            format!("give_up_fresh ({moved}, '{{t,f,t}}')"),
            "messages_pkey",
        ),
        ("next_due ('-infinity')".to_owned(), "deferred_due_at_seq"),
        (
            "sample (0, '-infinity', 100000)".to_owned(),
            "deferred_due_at_seq",
        ),
        ("lag (0, '2001-01-01')".to_owned(), "deferred_due_at_seq"),
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

/// Hazard: 500,000 rows that were moved out, and that an old snapshot kept from being removed, made each look
/// take 51 to 63 ms.
#[tokio::test]
async fn from_the_floor_on_what_was_deferred_under_an_old_snapshot_is_not_read_again() {
    let (database, client, url) = outbox().await;
    client
        .batch_execute("ALTER TABLE outbox.deferred SET (autovacuum_enabled = off)")
        .await
        .unwrap();
    let report = old_snapshot(&url, "deferred").await;
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
            database.sql().deferred.claim.all,
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
