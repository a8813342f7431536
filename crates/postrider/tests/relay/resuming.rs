//! What is parked goes out when nothing holds its key back any more: all keys in turn.

use std::collections::HashMap;

use postrider_testbed::{Place, daemon::Daemon};
use uuid::Uuid;

use crate::stage::{EXCHANGE, KEY, Stage, wait_for_rows};

/// As a relay leaves them whose heads were delivered before it ended.
async fn parked(stage: &Stage, key: &str, messages: i32) -> Vec<Uuid> {
    let client = stage.sql().await;
    let rows = client
        .query(
            "INSERT INTO outbox.parked (seq, id, exchange, routing_key, payload, headers, ordering_key, supersede, created_at) \
             SELECT nextval(pg_get_serial_sequence('outbox.messages', 'seq')), gen_random_uuid(), $1, $2, '', '{}', $3, false, now() \
             FROM generate_series(1, $4) RETURNING id",
            &[&EXCHANGE, &KEY, &key, &messages],
        )
        .await
        .unwrap();
    client
        .execute(
            "INSERT INTO outbox.blocked_keys (ordering_key, parked) VALUES ($1, $2)",
            &[&key, &i64::from(messages)],
        )
        .await
        .unwrap();
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    for (number, id) in (1..).zip(&ids) {
        let place = Place {
            key: key.to_owned(),
            number,
            supersede: None,
        };
        stage.audit.placed(*id, place);
    }
    stage.audit.committed(ids.iter().copied());
    ids
}

/// Hazard: the keys before one with a long backlog had one turn, and the next when it was through; for ever, where it grew as fast as it left.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_freed_together_with_one_that_has_a_long_backlog_do_not_wait_for_it() {
    let stage = Stage::new().await;
    let long = parked(&stage, "z", 3000).await;
    let short = [parked(&stage, "a", 60).await, parked(&stage, "b", 60).await].concat();
    let _consumer = stage.consumer();
    // A turn is ten messages of each.
    let options = stage.options().env("POSTRIDER_RELAY_BATCH_ROWS", "30");
    let daemon = Daemon::start(options).await.unwrap();
    stage.assert_clean().await;
    assert!(stage.audit.order().is_clean(), "{}", stage.audit.order());
    let arrived: HashMap<Uuid, u64> = stage
        .audit
        .deliveries()
        .into_iter()
        .map(|delivery| (delivery.id, delivery.order))
        .collect();
    let last = |ids: &[Uuid]| ids.iter().filter_map(|id| arrived.get(id)).max().copied();
    assert!(
        last(&short) < last(&long),
        "{:?} {:?}",
        last(&short),
        last(&long)
    );
    let client = stage.sql().await;
    for table in ["parked", "blocked_keys"] {
        wait_for_rows(&client, table, 0).await;
    }
    drop(daemon);
}
