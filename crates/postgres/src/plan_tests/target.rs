//! The statements on the messages of one exchange or route.

use super::{outbox, plan};

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
    let fresh = &sql.messages;
    let deferred = &sql.deferred;
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
    // What is read, in pages, where fewer are found than asked for: the whole target was looked through. Done once before, since a
    // session's first update reads the catalogue for the function that the rules are in.
    for (execute, _) in &executes {
        session
            .batch_execute(&format!("BEGIN; EXECUTE {execute}; ROLLBACK; BEGIN"))
            .await
            .unwrap();
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
