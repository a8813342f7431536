//! Messages that are published for a later time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use fresh::outbox;
use fresh::settling::{places, text};

#[tokio::test]
async fn deliver_at_writes_straight_to_the_deferred_table_in_the_callers_transaction() {
    let outbox = outbox().await;
    let publish = r#"SELECT outbox.publish('orders', 'k', '{"b" :1}', headers => '{"n": 1}', type => 't',
        id => '00000000-0000-0000-0000-000000000007', priority => 5, app_id => 'shop', deliver_at => now() + interval '1 hour')"#;
    outbox
        .client
        .batch_execute(&format!("BEGIN; {publish}; ROLLBACK"))
        .await
        .unwrap();
    assert_eq!(places(&outbox).await, "||");
    outbox.client.batch_execute(publish).await.unwrap();
    outbox.insert(1).await;
    assert_eq!(places(&outbox).await, "3|2|");
    assert_eq!(
        text(
            &outbox,
            "SELECT (id, exchange, routing_key, payload_json, content_type, headers, type, priority, app_id, supersede, \
                     attempts, cause, reason, error, due_at > created_at)::text FROM outbox.deferred"
        )
        .await,
        r#"(00000000-0000-0000-0000-000000000007,orders,k,"{""b"" :1}",application/json,"{""n"": 1}",t,5,shop,f,0,scheduled,,,t)"#
    );
    // A time that has come makes an ordinary message.
    for deliver_at in ["clock_timestamp()", "'-infinity'", "NULL"] {
        outbox
            .client
            .batch_execute(&format!(
                "SELECT outbox.publish('e', 'k', '1', deliver_at => {deliver_at})"
            ))
            .await
            .unwrap();
    }
    assert_eq!(places(&outbox).await, "3,4,5,6|2|");
}

#[tokio::test]
async fn a_scheduled_message_is_held_to_the_rules_of_any_other() {
    let outbox = outbox().await;
    for (argument, constraint) in [
        ("priority => 256", "priority_within_0_to_255"),
        ("headers => '[]'", "headers_is_json_object"),
        (
            "reply_to => 'amq.rabbitmq.reply-to'",
            "reply_to_is_not_direct_reply_to",
        ),
        ("type => repeat('x', 256)", "type_at_most_255_bytes"),
    ] {
        let error = outbox
            .client
            .batch_execute(&format!(
                "SELECT outbox.publish('e', 'k', '1', deliver_at => now() + interval '1 hour', {argument})"
            ))
            .await
            .unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.constraint(), Some(constraint), "{argument}");
    }
    let missing: i64 = outbox
        .client
        .query_one(
            "SELECT count(*) FROM pg_constraint AS m WHERE m.conrelid = 'outbox.messages'::regclass AND m.contype = 'c' \
             AND NOT EXISTS (SELECT FROM pg_constraint AS d WHERE d.conrelid = 'outbox.deferred'::regclass \
                             AND d.conname = m.conname AND pg_get_constraintdef(d.oid) = pg_get_constraintdef(m.oid))",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(missing, 0);
}

#[tokio::test]
async fn a_scheduled_message_makes_its_own_commit_synchronous() {
    let outbox = outbox().await;
    for (before, during) in [("off", "on"), ("local", "local"), ("on", "on")] {
        outbox
            .client
            .batch_execute(&format!(
                "SET synchronous_commit = {before}; BEGIN; \
                 SELECT outbox.publish('e', 'k', '1', deliver_at => now() + interval '1 hour')"
            ))
            .await
            .unwrap();
        assert_eq!(text(&outbox, "SHOW synchronous_commit").await, during);
        outbox.client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(text(&outbox, "SHOW synchronous_commit").await, before);
    }
}
