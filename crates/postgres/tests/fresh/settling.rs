//! Settlements, and where everything is after them.

use std::time::Duration;

use postrider_core::{Reason, Seq};
use postrider_postgres::{Claim, Dead, Retry, Settled, Settlement};

use super::Outbox;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Everything that moves with a message, as text.
const COLUMNS: &str = "seq, id, exchange, routing_key, encode(payload, 'hex'), payload_json::text, content_type, headers, \
     ordering_key, type, content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede, created_at";

pub(crate) fn retry(seq: i64, after: Duration) -> Retry {
    Retry {
        seq: Seq(seq),
        after,
        attempts: 3,
        reason: Reason::Nacked,
        error: "queue full".to_owned(),
    }
}

pub(crate) fn dead(seq: i64) -> Dead {
    Dead {
        seq: Seq(seq),
        attempts: 5,
        reason: Reason::Unroutable,
        error: "no queue".to_owned(),
    }
}

pub(crate) async fn text(outbox: &Outbox, sql: &str) -> String {
    let rows = outbox.client.simple_query(sql).await.unwrap();
    rows.iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some(row.get(0).unwrap_or("null").to_owned())
            }
            _ => None,
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// All that moves, of all messages in the table.
pub(crate) async fn contents(outbox: &Outbox, table: &str) -> String {
    text(
        outbox,
        &format!("SELECT ({COLUMNS})::text FROM outbox.{table} ORDER BY seq"),
    )
    .await
}

/// Where each message is: `messages|deferred|dead_letters`, by their places.
pub(crate) async fn places(outbox: &Outbox) -> String {
    text(
        outbox,
        "SELECT concat_ws('|', (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.messages), \
                               (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.deferred), \
                               (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.dead_letters))",
    )
    .await
}

pub(crate) async fn all_kinds(outbox: &Outbox) {
    outbox
        .client
        .batch_execute(
            r#"INSERT INTO outbox.messages
                   (id, exchange, routing_key, payload, content_type, headers, type, content_encoding,
                    correlation_id, reply_to, app_id, priority, expiration, created_at)
               VALUES
                   ('00000000-0000-0000-0000-000000000001', 'orders', 'order.created', '\x00ff10', 'application/octet-stream',
                    '{"CC": ["a"], "d": 1.5, "s": "é"}', 'created', 'gzip', 'c-1', 'answers', 'shop', 255, 315360000000, '2001-02-03 04:05:06.789+00');
               INSERT INTO outbox.messages (exchange, routing_key, payload_json, content_type) VALUES ('', 'q', '{"b" :1,  "a":2, "a": "C:\\new"}', NULL);
               INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('', 'q', '');
               INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('', 'big', convert_to(repeat('xyz', 500000), 'UTF8'));
               INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('', 'big', to_json(repeat('é', 500000)))"#,
        )
        .await
        .unwrap();
}

/// Settles, and all of it was done.
pub(crate) async fn settle_whole(claim: Claim, settlement: &Settlement) {
    let settled = claim.settle(settlement).await.unwrap();
    assert!(matches!(settled, Settled::Whole), "{settlement:?}");
}
