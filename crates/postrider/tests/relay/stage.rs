//! What every test here needs: an outbox, an exchange with a queue, daemons between them.

use std::process::{Command, Output};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use postrider_testbed::audit::Audit;
use postrider_testbed::consumer::{Consumer, QueueKind, bind, declare_exchange, declare_queue};
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::producer::{Producer, ProducerOptions};
use postrider_testbed::{Client, TestDatabase, TestVhost, shared, wait_until};

/// How long anything may take before a test gives up: these machines are slow and noisy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) const EXCHANGE: &str = "shop";
pub(crate) const QUEUE: &str = "orders";
pub(crate) const KEY: &str = "order.placed";

/// An outbox in one database, a bound queue in one virtual host.
pub(crate) struct Stage {
    pub(crate) database: TestDatabase,
    pub(crate) vhost: TestVhost,
    pub(crate) audit: Audit,
}

impl Stage {
    /// On the servers that all tests share.
    pub(crate) async fn new() -> Self {
        Self::on(shared::database().await, shared::vhost().await).await
    }

    /// On servers of the test's own.
    pub(crate) async fn on(database: TestDatabase, vhost: TestVhost) -> Self {
        let stage = Self {
            database,
            vhost,
            audit: Audit::new(),
        };
        let migrated = stage.run(&["migrate"]);
        assert!(migrated.status.success(), "{migrated:?}");
        let connection = stage.vhost.connection().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        declare_exchange(&channel, EXCHANGE).await.unwrap();
        declare_queue(&channel, QUEUE, QueueKind::Quorum)
            .await
            .unwrap();
        bind(&channel, QUEUE, EXCHANGE, KEY).await.unwrap();
        stage
    }

    pub(crate) async fn sql(&self) -> Client {
        self.database.client().await.unwrap()
    }

    /// A `run` of the daemon with short intervals, to be given more settings.
    pub(crate) fn options(&self) -> DaemonOptions {
        DaemonOptions::new(env!("CARGO_BIN_EXE_postrider"))
            .env("POSTRIDER_DATABASE_URL", &self.database.url)
            .env("POSTRIDER_BROKER_URL", &self.vhost.url)
            .env("POSTRIDER_METRICS_SAMPLE_INTERVAL", "100ms")
    }

    pub(crate) async fn daemon(&self) -> Daemon {
        Daemon::start(self.options()).await.unwrap()
    }

    /// Runs a command of the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_postrider"))
            .args(arguments)
            .env("POSTRIDER_DATABASE_URL", &self.database.url)
            .env("POSTRIDER_BROKER_URL", &self.vhost.url)
            .output()
            .unwrap()
    }

    pub(crate) fn producer(&self) -> ProducerOptions {
        ProducerOptions::new(&self.database.url, EXCHANGE, KEY)
    }

    /// Places so many orders (a tenth rolls back besides), and waits until all are placed.
    pub(crate) async fn produce(&self, transactions: usize) {
        let options = ProducerOptions {
            transactions: Some(transactions),
            ..self.producer()
        };
        let producer = Producer::start(options, &self.audit).await.unwrap();
        producer.finish(DEADLINE).await.unwrap();
    }

    pub(crate) fn consumer(&self) -> Consumer {
        Consumer::start(&self.vhost.url, QUEUE, &self.audit)
    }

    pub(crate) async fn wait_until_outbox_holds(&self, messages: i64) {
        wait_for_rows(&self.sql().await, "messages", messages).await;
    }

    /// How many messages wait in a queue that nobody consumes.
    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        let connection = self.vhost.connection().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare(queue.into(), passive, FieldTable::default())
            .await
            .unwrap();
        queue.message_count()
    }

    /// Everything committed was delivered, and nothing else.
    pub(crate) async fn assert_clean(&self) {
        self.audit.wait_until_all_delivered(DEADLINE).await.unwrap();
        let report = self.audit.report();
        assert!(report.is_clean(), "{report}");
        assert!(report.delivered > 0, "{report}");
    }
}

pub(crate) async fn rows(client: &Client) -> i64 {
    rows_of(client, "messages").await
}

/// Rows of one of the outbox's tables.
pub(crate) async fn rows_of(client: &Client, table: &str) -> i64 {
    client
        .query_one(&format!("SELECT count(*) FROM outbox.{table}"), &[])
        .await
        .unwrap()
        .get(0)
}

pub(crate) async fn wait_for_rows(client: &Client, table: &str, rows: i64) {
    let what = format!("{rows} rows in {table}");
    wait_until(DEADLINE, &what, async || {
        rows_of(client, table).await == rows
    })
    .await
    .unwrap();
}

/// Inserts one message and returns its id.
pub(crate) async fn insert(
    client: &Client,
    exchange: &str,
    key: &str,
    payload: &[u8],
) -> uuid::Uuid {
    client
        .query_one(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ($1, $2, $3) RETURNING id",
            &[&exchange, &key, &payload],
        )
        .await
        .unwrap()
        .get(0)
}
