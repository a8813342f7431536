//! The statements on messages with a key, and on those that wait behind another.

use super::{MODES, outbox, pages, plan};
use crate::Share;

const ANALYSE: &str = "(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE";
const INSERT: &str =
    "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key)";

/// A parked message, and a deferred one, of the key `$key` at the place `n`.
const PARKED: &str = "INSERT INTO outbox.parked (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at)";
const DEFERRED: &str = "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at, attempts, due_at, cause)";

async fn lane(session: &tokio_postgres::Client, key: &str) -> i32 {
    let sql = format!(
        "SELECT {}",
        crate::ordered::LANE.replace("m.ordering_key", "$1::text")
    );
    session.query_one(&sql, &[&key]).await.unwrap().get(0)
}

/// Hazard: `lane = ANY (...) ORDER BY seq LIMIT` with one hot lane read the primary key from end to end: 68 ms, against 1.0 ms lane by
/// lane.
#[tokio::test]
async fn a_claim_reads_each_of_its_lanes_from_its_beginning_and_no_other_row_however_hot_one_is() {
    let (database, client, _) = outbox().await;
    client
        .batch_execute("ALTER TABLE outbox.messages SET (autovacuum_enabled = off); ANALYZE outbox.messages, outbox.blocked_keys")
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let sql = &database.sql().ordered;
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint, int[], bigint[], bigint[], bigint[], bigint[], bigint[]) AS {}; \
             PREPARE in_order (bigint, bigint, bigint, int[], bigint[], bigint[], bigint[], bigint[], bigint) AS {}; \
             PREPARE equal (bigint, bigint, bigint, int[], bigint[], bigint[], bigint[], bigint[], bigint) AS {}; \
             PREPARE waiting (bigint) AS {}; PREPARE lanes (int[], bigint[], bigint[], bigint[]) AS {}",
            sql.claim,
            sql.claim_unlocked.claim(Share::InOrder),
            sql.claim_unlocked.claim(Share::Equal),
            sql.waiting,
            sql.lanes
        ))
        .await
        .unwrap();
    let (hot, cold, none) = (
        lane(session, "hot").await,
        lane(session, "cold").await,
        lane(session, "none").await,
    );
    assert!(hot != cold && cold != none && hot != none);
    let of_lanes = format!(
        "(100, 8000000, 8000000, '{{{hot},{cold},{none}}}', '{{0,0,0}}', '{{400000,9223372036854775807,9223372036854775807}}'"
    );
    // Nobody has any of these ids yet.
    let passed = "'{4000000000,4000000001}', '{0,1}'";
    let claim = format!("claim {of_lanes}, {passed}, '{{7}}')");
    let (in_order, equal) = (
        format!("in_order {of_lanes}, {passed}, 300)"),
        format!("equal {of_lanes}, {passed}, 300)"),
    );
    let mut every: Vec<i32> = (0..256).collect();
    every.rotate_left(100);
    let lanes = format!(
        "lanes ('{{{}}}', '{{{}}}', {passed})",
        joined(&every),
        joined(&[0; 256])
    );
    let executes = [
        (claim.as_str(), "messages_lane_seq", 1500),
        (in_order.as_str(), "messages_lane_seq", 600),
        (equal.as_str(), "messages_lane_seq", 600),
        ("waiting (0)", "messages_ordered_seq", 600),
        (lanes.as_str(), "messages_lane_seq", 1200),
    ];
    for (execute, ..) in &executes {
        session
            .batch_execute(&format!("EXECUTE {execute};").repeat(7))
            .await
            .unwrap();
    }
    client
        .batch_execute(&format!(
            "{INSERT} SELECT 'e', 'k', '1', 'hot' FROM generate_series(1, 300000); \
             {INSERT} SELECT 'e', 'k', '1', NULL FROM generate_series(1, 50000); \
             {INSERT} SELECT 'e', 'k', '1', 'cold' FROM generate_series(1, 3)"
        ))
        .await
        .unwrap();
    for analysed in [false, true] {
        if analysed {
            client
                .batch_execute("ANALYZE outbox.messages")
                .await
                .unwrap();
        }
        for mode in MODES {
            session
                .batch_execute(&format!("SET plan_cache_mode = {mode}"))
                .await
                .unwrap();
            for (execute, index, most) in &executes {
                let shown = plan(session, &format!("{ANALYSE} {execute}")).await;
                assert!(shown.contains(index), "{mode}: {execute}: {shown}");
                // Whether any key is blocked is read off a few pages.
                let scanned = shown.replacen("Seq Scan on blocked_keys", "", 1);
                assert!(!scanned.contains("Seq Scan"), "{mode}: {execute}: {shown}");
                assert!(pages(&shown) < *most, "{mode}: {execute}: {shown}");
            }
        }
    }
    for execute in [&claim, &in_order, &equal] {
        let shown = plan(session, &format!("EXECUTE {execute}")).await;
        assert!(shown.contains("blocked_keys_"), "{shown}");
    }
    // A window over the rows is what equal shares spare.
    let shown = plan(session, &format!("EXECUTE {equal}")).await;
    assert!(!shown.contains("WindowAgg"), "{shown}");
}

/// Hazard: a look through the blocked keys before each claim walks over all that were ever blocked, where an old snapshot keeps them.
#[tokio::test]
async fn whether_keys_are_blocked_is_asked_of_each_only_where_some_are_and_reads_no_dead_ones() {
    let (database, client, url) = outbox().await;
    client
        .batch_execute(&format!(
            "ALTER TABLE outbox.blocked_keys SET (autovacuum_enabled = off); \
             {INSERT} SELECT 'e', 'k', '1', 'a' FROM generate_series(1, 20)"
        ))
        .await
        .unwrap();
    let report = postrider_testbed::Client::connect(&url).await.unwrap();
    report
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.blocked_keys",
        )
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    session
        .batch_execute(&format!(
            "SET plan_cache_mode = force_generic_plan; \
             PREPARE equal (bigint, bigint, bigint, int[], bigint[], bigint[], bigint[], bigint[], bigint) AS {}",
            database.sql().ordered.claim_unlocked.claim(Share::Equal)
        ))
        .await
        .unwrap();
    let lane = lane(session, "a").await;
    let execute = format!(
        "equal (100, 8000000, 8000000, '{{{lane}}}', '{{0}}', '{{9223372036854775807}}', '{{}}', '{{}}', 100)"
    );
    let explain = format!("{ANALYSE} {execute}");
    let shown = plan(session, &explain).await;
    let mut lookups = shown
        .lines()
        .filter(|line| line.contains(" on blocked_keys b "));
    assert!(
        lookups.all(|line| line.contains("never executed")),
        "{shown}"
    );
    let insert = "INSERT INTO outbox.blocked_keys (ordering_key, head_seq)";
    let block = format!("{insert} VALUES ('a', 0)");
    let standings = async || {
        let rows = session.query(&format!("EXECUTE {execute}"), &[]).await;
        let standing = |row: &tokio_postgres::Row| row.get::<_, i32>("standing");
        rows.unwrap().iter().map(standing).collect::<Vec<_>>()
    };
    assert_eq!(standings().await, [crate::row::standing::FREE; 20]);
    client.batch_execute(&block).await.unwrap();
    assert_eq!(standings().await, [crate::row::standing::BLOCKED; 20]);
    client
        .batch_execute(&format!(
            "{insert} SELECT 'key-' || n, 0 FROM generate_series(1, 100000) AS n; DELETE FROM outbox.blocked_keys"
        ))
        .await
        .unwrap();
    let shown = plan(session, &explain).await;
    assert!(pages(&shown) < 300, "{shown}");
    assert_eq!(standings().await, [crate::row::standing::FREE; 20]);
    client.batch_execute(&block).await.unwrap();
    assert_eq!(standings().await, [crate::row::standing::BLOCKED; 20]);
    report.batch_execute("ROLLBACK").await.unwrap();
}

/// Hazard: a lane that begins below an open transaction was walked over from there by each claim, dead rows and all.
#[tokio::test]
async fn what_an_open_transaction_keeps_from_vacuum_is_read_when_it_has_ended_and_not_before() {
    let (database, client, url) = outbox().await;
    client
        .batch_execute("ALTER TABLE outbox.messages SET (autovacuum_enabled = off)")
        .await
        .unwrap();
    let late = postrider_testbed::Client::connect(&url).await.unwrap();
    late.batch_execute(&format!("BEGIN; {INSERT} VALUES ('e', 'k', '1', 'a')"))
        .await
        .unwrap();
    let id = "SELECT pg_current_xact_id()::text::bigint";
    let id: i64 = late.query_one(id, &[]).await.unwrap().get(0);
    client
        .batch_execute(&format!(
            "{INSERT} SELECT 'e', 'k', '1', 'a' FROM generate_series(1, 20000); DELETE FROM outbox.messages"
        ))
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    let sql = &database.sql().ordered;
    session
        .batch_execute(&format!(
            "SET plan_cache_mode = force_generic_plan; \
             PREPARE claim (bigint, bigint, bigint, int[], bigint[], bigint[], bigint[], bigint[], bigint[]) AS {}; \
             PREPARE in_order (bigint, bigint, bigint, int[], bigint[], bigint[], bigint[], bigint[], bigint) AS {}; \
             PREPARE lanes (int[], bigint[], bigint[], bigint[]) AS {}",
            sql.claim,
            sql.claim_unlocked.claim(Share::InOrder),
            sql.lanes
        ))
        .await
        .unwrap();
    let lane = lane(session, "a").await;
    let of_lane =
        format!("100, 8000000, 8000000, '{{{lane}}}', '{{20002}}', '{{9223372036854775807}}'");
    let passed = format!("'{{{id}}}', '{{1}}'");
    let executes = [
        format!("EXECUTE claim ({of_lane}, {passed}, '{{}}')"),
        format!("EXECUTE in_order ({of_lane}, {passed}, 100)"),
        format!("EXECUTE lanes ('{{{lane}}}', '{{20002}}', {passed})"),
    ];
    for ended in [false, true] {
        for execute in &executes {
            let rows = session.query(execute, &[]).await.unwrap();
            assert_eq!(rows.len(), usize::from(ended), "{execute}");
            let analysed = execute.replace("EXECUTE", ANALYSE);
            let shown = plan(session, &analysed).await;
            assert!(ended || pages(&shown) < 50, "{shown}");
        }
        late.batch_execute("COMMIT").await.unwrap();
    }
}

/// What lies beyond how far a claim is to read waits for a later one, however much room there is in this.
#[tokio::test]
async fn a_claim_reads_a_lane_no_further_than_it_is_to() {
    let (database, client, _) = outbox().await;
    client
        .batch_execute(&format!(
            "{INSERT} SELECT 'e', 'k', '1', 'key' FROM generate_series(1, 50)"
        ))
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let lane = lane(lease.client().unwrap(), "key").await;
    let until = Some(postrider_core::Seq(31));
    let starts = postrider_core::LaneStarts {
        lanes: vec![postrider_core::LaneStart {
            lane: postrider_core::Lane(u8::try_from(lane).unwrap()),
            from: Some(postrider_core::Seq(11)),
            until,
        }],
        passed: Vec::new(),
    };
    let limits = crate::ClaimLimits {
        rows: 1000,
        bytes: 1 << 20,
        max_message_bytes: 1 << 20,
        share: Share::InOrder,
    };
    for left_out in [&[][..], &[postrider_core::Seq(99)][..]] {
        let claim = database.claim_lanes(limits, &starts, left_out, None);
        let claim = claim.await.unwrap();
        assert_eq!(claim.rows.len(), 20);
        assert_eq!(claim.lanes[0].until, until);
        claim.claim.release().await.unwrap();
    }
}

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

fn joined(numbers: &[i32]) -> String {
    numbers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
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
    let report = postrider_testbed::Client::connect(&url).await.unwrap();
    report
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.parked")
        .await
        .unwrap();
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
