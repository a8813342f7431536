//! The statements on messages with a key.

use super::{MODES, old_snapshot, outbox, pages, plan};
use crate::Share;

pub(super) const ANALYSE: &str = "(ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE";
pub(super) const INSERT: &str =
    "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key)";

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
    let report = old_snapshot(&url, "blocked_keys").await;
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

fn joined(numbers: &[i32]) -> String {
    numbers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
