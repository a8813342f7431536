//! The statements on what waits behind another message of its key, and on what lets it go.

use super::ordered::{ANALYSE, INSERT};
use super::{MODES, old_snapshot, outbox, pages, plan};

/// A parked message, and a deferred one, of the key `$key` at the place `n`.
const PARKED: &str = "INSERT INTO outbox.parked (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at)";
const DEFERRED: &str = "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at, attempts, due_at, cause)";

/// Hazard: a key with many dead letters that block nothing was looked through from the first whenever its head left.
#[tokio::test]
async fn whatever_frees_a_key_reads_none_of_its_dead_letters_that_block_nothing() {
    let (_, client, url) = outbox().await;
    client
        .batch_execute(&format!(
            "INSERT INTO outbox.dead_letters (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at, attempts, reason, error, blocks) \
             SELECT n, gen_random_uuid(), 'e', 'k', '1', '{{}}', 'key', false, now(), 1, 'unroutable', '', false FROM generate_series(1, 20000) AS n; \
             {DEFERRED} VALUES (30000, gen_random_uuid(), 'e', 'k', '1', '{{}}', 'key', false, now(), 1, now(), 'retry')"
        ))
        .await
        .unwrap();
    let head = "SELECT head_seq, resume_from FROM outbox.blocked_keys";
    let head = client.query_one(head, &[]).await.unwrap();
    assert_eq!(
        (head.get::<_, i64>(0), head.get::<_, i64>(1)),
        (30_000, 30_000)
    );
    // In a session of its own: the counters are the session's until it reports them.
    let session = postrider_testbed::Client::connect(&url).await.unwrap();
    session
        .batch_execute("BEGIN; DELETE FROM outbox.deferred")
        .await
        .unwrap();
    let read = "SELECT pg_stat_get_xact_blocks_fetched('outbox.dead_letters'::regclass)";
    let read: i64 = session.query_one(read, &[]).await.unwrap().get(0);
    assert!(read < 100, "{read}");
    session.batch_execute("COMMIT").await.unwrap();
    let head = "SELECT head_seq FROM outbox.blocked_keys";
    let head: Option<i64> = client.query_one(head, &[]).await.unwrap().get(0);
    assert_eq!(head, None);
}

/// With 300,000 keys that are blocked, one of them with 300,000 messages behind it.
#[tokio::test]
async fn what_is_parked_is_found_by_its_key_and_moved_by_its_place_however_much_is() {
    let (database, client, _) = outbox().await;
    client
        .batch_execute(
            "ALTER TABLE outbox.parked SET (autovacuum_enabled = off); ALTER TABLE outbox.blocked_keys SET (autovacuum_enabled = off); \
             ALTER TABLE outbox.deferred SET (autovacuum_enabled = off); \
             ANALYZE outbox.parked, outbox.blocked_keys, outbox.deferred, outbox.messages, outbox.dead_letters",
        )
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let sql = &database.sql().ordered;
    let fresh = &database.sql().messages.settle;
    let schema = database.schema();
    session
        .batch_execute(&format!(
            "PREPARE claim_parked (bigint, bigint, bigint, text[], bigint[]) AS {}; \
             PREPARE resuming (text, bigint) AS {}; \
             PREPARE unblock (text[]) AS {}; \
             PREPARE done (bigint[]) AS {}; \
             PREPARE retry (bigint[], int[], text[], text[], bigint[]) AS {}; \
             PREPARE give_up (bigint[], int[], text[], text[], bool[]) AS {}; \
             PREPARE resumed (text[], bigint[], bigint[]) AS {}; \
             PREPARE lock_keys (text[]) AS {}; \
             PREPARE park (bigint[]) AS {}; \
             PREPARE late (bigint[], uuid[]) AS {}; \
             PREPARE due (bigint, bigint, bigint, timestamptz) AS {}; \
             PREPARE keys (text, bigint) AS {}; PREPARE key (text, bigint) AS {}; \
             PREPARE of_messages (text, bigint) AS {}; PREPARE of_parked (text, bigint) AS {}; \
             PREPARE of_deferred (text, bigint) AS {}; PREPARE of_dead_letters (text, bigint) AS {}",
            sql.claim_parked,
            sql.resuming,
            sql.unblock,
            sql.settle.delete,
            sql.settle.retry,
            sql.settle.give_up,
            sql.settle.resumed,
            sql.settle.lock_keys,
            fresh.park,
            sql.delete_confirmed,
            database.sql().deferred.claim.all,
            crate::keys::blocked_sql(schema, ">"),
            crate::keys::blocked_sql(schema, "="),
            crate::keys::messages_sql(schema, "messages"),
            crate::keys::messages_sql(schema, "parked"),
            crate::keys::messages_sql(schema, "deferred"),
            crate::keys::messages_sql(schema, "dead_letters"),
        ))
        .await
        .unwrap();
    let moved = "'{1000001,1000002}', '{1,1}', '{r,r}', '{e,e}'";
    let id = uuid::Uuid::nil();
    let executes = [
        (
            "claim_parked (100, 8000000, 8000000, '{big,key-7}', '{7}')".to_owned(),
            "parked_ordering_key_seq",
        ),
        ("resuming ('', 50)".to_owned(), "blocked_keys_resuming"),
        ("unblock ('{big,key-7}')".to_owned(), "blocked_keys_"),
        ("done ('{1000001,1000002}')".to_owned(), "parked_pkey"),
        (format!("retry ({moved}, '{{1,1}}')"), "parked_pkey"),
        (format!("give_up ({moved}, '{{t,f}}')"), "parked_pkey"),
        (
            "resumed ('{big,key-7}', '{1,1}', '{1000001,7}')".to_owned(),
            "blocked_keys_",
        ),
        ("lock_keys ('{big,key-7}')".to_owned(), "blocked_keys_"),
        ("park ('{1,2,3}')".to_owned(), "using messages_"),
        ("park ('{1,2,3}')".to_owned(), "blocked_keys_"),
        (
            format!("late ('{{1000001,1000002}}', '{{{id},{id}}}')"),
            "parked_pkey",
        ),
        (
            "due (100, 8000000, 8000000, '-infinity')".to_owned(),
            "blocked_keys_",
        ),
        ("keys ('', 50)".to_owned(), "blocked_keys_"),
        ("key ('big', 1)".to_owned(), "blocked_keys_"),
        ("of_messages ('big', 10)".to_owned(), "messages_lane_seq"),
        (
            "of_parked ('key-7', 10)".to_owned(),
            "parked_ordering_key_seq",
        ),
        (
            "of_deferred ('key-7', 10)".to_owned(),
            "deferred_ordering_key_seq",
        ),
        (
            "of_dead_letters ('key-7', 10)".to_owned(),
            "dead_letters_ordering_key_seq",
        ),
    ];
    // Of the two indexes on the keys of `blocked_keys`, either.
    for (execute, _) in &executes {
        session
            .batch_execute(&format!(
                "BEGIN; {} ROLLBACK",
                format!("EXECUTE {execute};").repeat(7)
            ))
            .await
            .unwrap();
    }
    client
        .batch_execute(&format!(
            "{DEFERRED} SELECT n, gen_random_uuid(), 'e', 'k', '1', '{{}}', 'key-' || n, false, now(), 1, now() + n * interval '1 minute', 'retry' \
             FROM generate_series(1, 100000) AS n; \
             INSERT INTO outbox.blocked_keys (ordering_key, parked) VALUES ('big', 300000); \
             {PARKED} SELECT 1000000 + n, gen_random_uuid(), 'e', 'k', '1', '{{}}', 'big', false, now() FROM generate_series(1, 300000) AS n; \
             {PARKED} SELECT 2000000 + n, gen_random_uuid(), 'e', 'k', '1', '{{}}', 'key-' || n, false, now() FROM generate_series(1, 100000) AS n; \
             {INSERT} SELECT 'e', 'k', '1', 'key-' || n FROM generate_series(1, 50000) AS n"
        ))
        .await
        .unwrap();
    for analysed in [false, true] {
        if analysed {
            let all =
                "ANALYZE outbox.parked, outbox.blocked_keys, outbox.deferred, outbox.messages";
            client.batch_execute(all).await.unwrap();
        }
        for mode in MODES {
            session
                .batch_execute(&format!("SET plan_cache_mode = {mode}"))
                .await
                .unwrap();
            for (execute, index) in &executes {
                session.batch_execute("BEGIN").await.unwrap();
                let shown = plan(session, &format!("{ANALYSE} {execute}")).await;
                session.batch_execute("ROLLBACK").await.unwrap();
                assert!(shown.contains(index), "{mode}: {execute}: {shown}");
                assert!(!shown.contains("Seq Scan"), "{mode}: {execute}: {shown}");
                assert!(pages(&shown) < 1500, "{mode}: {execute}: {shown}");
            }
        }
    }
}

/// Hazard: what was deleted, and an old snapshot keeps from being removed, made "is this key blocked" take 83 ms.
#[tokio::test]
async fn a_key_is_resumed_from_where_it_was_left_and_not_from_what_has_gone_out_since() {
    let (database, client, url) = outbox().await;
    client
        .batch_execute("ALTER TABLE outbox.parked SET (autovacuum_enabled = off)")
        .await
        .unwrap();
    let report = old_snapshot(&url, "parked").await;
    client
        .batch_execute(&format!(
            "INSERT INTO outbox.blocked_keys (ordering_key, parked) VALUES ('a', 100001); \
             {PARKED} SELECT n, gen_random_uuid(), 'e', 'k', '1', '{{}}', 'a', false, now() FROM generate_series(1, 100001) AS n; \
             DELETE FROM outbox.parked WHERE seq <= 100000"
        ))
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint, text[], bigint[]) AS {}; PREPARE unblock (text[]) AS {}",
            database.sql().ordered.claim_parked,
            database.sql().ordered.unblock
        ))
        .await
        .unwrap();
    let read = async || {
        let mut read = [0; 2];
        for (read, execute) in read.iter_mut().zip([
            "claim (100, 8000000, 8000000, '{a}', '{}')",
            "unblock ('{a}')",
        ]) {
            *read = pages(&plan(session, &format!("{ANALYSE} {execute}")).await);
        }
        read
    };
    let without = read().await;
    client
        .batch_execute("UPDATE outbox.blocked_keys SET resume_from = 100001")
        .await
        .unwrap();
    let with = read().await;
    assert!(without.iter().all(|pages| *pages > 500), "{without:?}");
    assert!(with.iter().all(|pages| *pages < 30), "{with:?}");
    report.batch_execute("ROLLBACK").await.unwrap();
}
