//! Messages of ordering keys: inserted, told to the audit, and awaited.

use std::collections::HashMap;

use lapin::options::QueueBindOptions;
use lapin::types::FieldTable;
use postrider_testbed::daemon::DaemonOptions;
use postrider_testbed::{Client, Place, wait_until};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, wait_for_rows};

/// A routing key that no queue is bound for, until [`bind_astray`].
pub(crate) const ASTRAY: &str = "order.astray";

/// Inserts messages with a key, and tells the audit in which order they are to come.
pub(crate) struct Line<'a> {
    stage: &'a Stage,
    pub(crate) client: Client,
    numbers: HashMap<String, i64>,
}

impl<'a> Line<'a> {
    pub(crate) async fn new(stage: &'a Stage) -> Self {
        Self {
            stage,
            client: stage.sql().await,
            numbers: HashMap::new(),
        }
    }

    /// So many messages that go to the queue, on so many keys in turn, in one transaction.
    pub(crate) async fn many(&mut self, prefix: &str, keys: i32, messages: i32) -> Vec<Uuid> {
        let rows = self
            .client
            .query(
                "INSERT INTO outbox.messages (exchange, routing_key, payload, ordering_key) \
                 SELECT $1, $2, '', $3 || n % $4 FROM generate_series(1, $5) AS n RETURNING id, ordering_key, supersede",
                &[&EXCHANGE, &KEY, &prefix, &keys, &messages],
            )
            .await
            .unwrap();
        self.committed(&rows)
    }

    /// One of a key.
    pub(crate) async fn one(&mut self, key: &str, routing_key: &str) -> Uuid {
        let row = insert_one(&self.client, key, routing_key).await;
        self.committed(&[row])[0]
    }

    /// So many of a key that may be superseded by the next.
    pub(crate) async fn superseding(&mut self, key: &str, messages: i32) -> Vec<Uuid> {
        let rows = self
            .client
            .query(
                "INSERT INTO outbox.messages (exchange, routing_key, payload, ordering_key, supersede) \
                 SELECT $1, $2, '', $3, true FROM generate_series(1, $4) RETURNING id, ordering_key, supersede",
                &[&EXCHANGE, &KEY, &key, &messages],
            )
            .await
            .unwrap();
        self.committed(&rows)
    }

    /// These rows (`id`, `ordering_key`, `supersede`) are committed in this order.
    pub(crate) fn committed(&mut self, rows: &[Row]) -> Vec<Uuid> {
        let mut ids = Vec::new();
        for row in rows {
            let (id, key): (Uuid, String) = (row.get(0), row.get(1));
            let number = self.numbers.entry(key.clone()).or_default();
            *number += 1;
            let place = Place {
                key,
                number: *number,
                supersede: row.get::<_, bool>(2).then(|| "the way".to_owned()),
            };
            self.stage.audit.placed(id, place);
            ids.push(id);
        }
        self.stage.audit.committed(ids.iter().copied());
        ids
    }
}

pub(crate) async fn insert_one(client: &Client, key: &str, routing_key: &str) -> Row {
    client
        .query_one(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, ordering_key) VALUES ($1, $2, '', $3) \
             RETURNING id, ordering_key, supersede",
            &[&EXCHANGE, &routing_key, &key],
        )
        .await
        .unwrap()
}

/// Inserts a message without a key.
pub(crate) async fn unkeyed(stage: &Stage, client: &Client) -> Uuid {
    let id = crate::stage::insert(client, EXCHANGE, KEY, b"").await;
    stage.audit.committed([id]);
    id
}

/// A daemon that tries again soon, and as often as it takes.
pub(crate) fn patient(stage: &Stage) -> DaemonOptions {
    stage
        .options()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "1000")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "50ms")
        .env("POSTRIDER_RETRY_MAX_DELAY", "300ms")
}

/// A daemon that gives up at the first failure.
pub(crate) fn impatient(stage: &Stage) -> DaemonOptions {
    stage.options().env("POSTRIDER_RETRY_MAX_ATTEMPTS", "1")
}

/// From now on there is a queue for [`ASTRAY`].
pub(crate) async fn bind_astray(stage: &Stage) {
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .queue_bind(
            QUEUE.into(),
            EXCHANGE.into(),
            ASTRAY.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
}

pub(crate) fn has_arrived(stage: &Stage, id: Uuid) -> bool {
    let deliveries = stage.audit.deliveries();
    deliveries.iter().any(|delivery| delivery.id == id)
}

pub(crate) async fn wait_for_arrivals(stage: &Stage, ids: &[Uuid]) {
    wait_until(DEADLINE, "these messages to arrive", async || {
        let deliveries = stage.audit.deliveries();
        let arrived: std::collections::HashSet<Uuid> =
            deliveries.iter().map(|delivery| delivery.id).collect();
        ids.iter().all(|id| arrived.contains(id))
    })
    .await
    .unwrap();
}

/// Waits until every table is empty; then all has arrived, in order, and nothing else.
pub(crate) async fn assert_all_in_order(stage: &Stage) {
    let client = stage.sql().await;
    for table in [
        "messages",
        "deferred",
        "dead_letters",
        "parked",
        "blocked_keys",
    ] {
        wait_for_rows(&client, table, 0).await;
    }
    wait_until(DEADLINE, "all to arrive", async || {
        stage.audit.report().lost.is_empty()
    })
    .await
    .unwrap();
    let report = stage.audit.report();
    assert!(report.is_clean(), "{report}");
    let order = stage.audit.order();
    assert!(order.is_clean() && order.excepted.is_empty(), "{order}");
    assert!(order.delivered > 0, "{order}");
}
