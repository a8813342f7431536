//! The claim of fresh messages, and which payloads it reads.

use postrider_core::Origin;

use super::{outbox, plan};
use crate::{ClaimFrom, ClaimLimits, Database, Settings, Share};

const MIB: u64 = 1 << 20;

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
    let sql = &database.sql().messages;
    let (in_order, equal) = (sql.claim(Share::InOrder), sql.claim(Share::Equal));
    session
        .batch_execute(&format!(
            "PREPARE claim (bigint, bigint, bigint, bigint, bigint) AS {}; \
             PREPARE claim_except (bigint, bigint, bigint, bigint, bigint, bigint[]) AS {}; \
             PREPARE equal (bigint, bigint, bigint, bigint, bigint) AS {}; \
             PREPARE equal_except (bigint, bigint, bigint, bigint, bigint, bigint[]) AS {}; \
             PREPARE settle (bigint[]) AS {}",
            in_order.all, in_order.except, equal.all, equal.except, sql.settle.delete
        ))
        .await
        .unwrap();
    // More than the five executions after which a generic plan may be taken.
    let execute = "EXECUTE claim (500, 8000000, 8000000, 0, 0); EXECUTE claim_except (500, 8000000, 8000000, 0, 0, '{1}'); EXECUTE settle ('{1}'); \
                   EXECUTE equal (500, 8000000, 8000000, 0, 0); EXECUTE equal_except (500, 8000000, 8000000, 0, 0, '{1}');";
    session.batch_execute(&execute.repeat(7)).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', '{}' FROM generate_series(1, 300000)",
        )
        .await
        .unwrap();
    // The one is how claims run, the other what sessions are set to.
    for mode in ["force_generic_plan", "force_custom_plan"] {
        session
            .batch_execute(&format!("SET plan_cache_mode = {mode}"))
            .await
            .unwrap();
        for execute in [
            "EXECUTE claim (500, 8000000, 8000000, 7, 7)",
            "EXECUTE claim_except (500, 8000000, 8000000, 0, 0, '{1,2,3}')",
            "EXECUTE equal (500, 8000000, 8000000, 7, 7)",
            "EXECUTE equal_except (500, 8000000, 8000000, 0, 0, '{1,2,3}')",
            "EXECUTE settle ('{1,2,3}')",
        ] {
            let plan = plan(session, execute).await;
            assert!(
                plan.contains("Index Scan using messages_pkey"),
                "{mode}: {execute}: {plan}"
            );
            assert!(!plan.contains("Seq Scan"), "{mode}: {execute}: {plan}");
            assert!(!plan.contains("Sort"), "{mode}: {execute}: {plan}");
            // The one thing that messages with a key add, where there are none.
            assert_eq!(
                plan.contains("messages_ordered_seq"),
                !execute.contains("settle"),
                "{mode}: {execute}: {plan}"
            );
            assert!(
                !plan.contains("messages_lane_seq"),
                "{mode}: {execute}: {plan}"
            );
        }
    }
}

/// Planning costs a claim of few rows twice as much as executing it. What fails is moved by other statements, whose best plan
/// depends on how many rows there are.
#[tokio::test]
async fn fresh_messages_are_claimed_and_deleted_by_a_plan_that_is_kept_and_deferred_ones_by_a_new_one()
 {
    let (database, client, _) = outbox().await;
    client
        .batch_execute(
            "SELECT outbox.publish('e', 'k', '1'); SELECT outbox.publish('e', 'k', '2', deliver_at => now() + interval '1 hour'); \
             UPDATE outbox.deferred SET due_at = now()",
        )
        .await
        .unwrap();
    for (origin, expected) in [
        (Origin::Messages, "force_generic_plan"),
        (Origin::Deferred, "force_custom_plan"),
    ] {
        let limits = ClaimLimits {
            rows: 10,
            bytes: MIB,
            max_message_bytes: MIB,
            share: Share::InOrder,
        };
        let claim = match origin {
            Origin::Messages => {
                let from = ClaimFrom::default();
                database.claim_fresh(limits, &[], from).await
            }
            Origin::Deferred | Origin::Parked => database.claim_due(limits, &[], None).await,
        };
        let claim = claim.unwrap();
        assert_eq!(claim.len(), 1);
        let session = claim.lease.as_ref().unwrap().client().unwrap();
        let mode = |row: tokio_postgres::Row| row.get::<_, String>(0);
        let during = session.query_one("SHOW plan_cache_mode", &[]).await;
        assert_eq!(mode(during.unwrap()), expected);
        claim.release().await.unwrap();
        let lease = database.lease().await.unwrap();
        let after = lease.client().unwrap();
        let after = after.query_one("SHOW plan_cache_mode", &[]).await;
        assert_eq!(mode(after.unwrap()), "force_custom_plan");
        lease.give_back();
    }
}

/// Hazard: what came after the last ANALYZE lies above all that the statistics know. From the frontier on there
/// seems to be next to nothing, and a bitmap of it, sorted, seems cheap: it was made of the whole backlog for each claim.
#[tokio::test]
async fn a_claim_from_a_frontier_above_all_that_was_analysed_reads_the_primary_key_in_its_order() {
    let (database, client, _) = outbox().await;
    let insert = "INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', '{}' FROM generate_series(1, 50000)";
    client
        .batch_execute(&format!(
            "ALTER TABLE outbox.messages SET (autovacuum_enabled = off); {insert}; DELETE FROM outbox.messages WHERE seq > 100; \
             ANALYZE outbox.messages; {insert}"
        ))
        .await
        .unwrap();
    let lease = database.lease().await.unwrap();
    let session = lease.client().unwrap();
    for share in [Share::InOrder, Share::Equal] {
        let sql = &database.sql().messages.claim(share).all;
        session
            .batch_execute(&format!(
                "PREPARE {share:?} (bigint, bigint, bigint, bigint, bigint) AS {sql}"
            ))
            .await
            .unwrap();
        for mode in ["force_generic_plan", "force_custom_plan"] {
            session
                .batch_execute(&format!("SET plan_cache_mode = {mode}"))
                .await
                .unwrap();
            let plan = plan(
                session,
                &format!("EXECUTE {share:?} (500, 8000000, 8000000, 50001, 50001)"),
            )
            .await;
            assert!(
                plan.contains("Index Scan using messages_pkey"),
                "{mode}: {plan}"
            );
            assert!(
                !plan.contains("Sort") && !plan.contains("Bitmap"),
                "{mode}: {plan}"
            );
        }
    }
}

/// How many rows such a claim returns, and how many pages of payloads it reads. In a session of its
/// own: the counters are the session's until it reports them.
async fn rows_and_payload_pages(url: &str, limits: ClaimLimits) -> (usize, i64) {
    let database = Database::new(Settings::new(url)).unwrap();
    let claim = database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
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
        share: crate::Share::InOrder,
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
