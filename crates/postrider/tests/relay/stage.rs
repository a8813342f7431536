//! What every test here needs: an outbox, an exchange with a queue, daemons between them.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use postrider_testbed::audit::Audit;
use postrider_testbed::consumer::{Consumer, QueueKind, bind, declare_exchange, declare_queue};
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::producer::{Producer, ProducerOptions};
use postrider_testbed::{
    Client, PostgresServer, RabbitServer, TestDatabase, TestVhost, shared, wait_until,
};

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

    /// On a database server of the test's own.
    pub(crate) async fn on_postgres(server: &PostgresServer) -> Self {
        Self::on(
            server.create_database().await.unwrap(),
            shared::vhost().await,
        )
        .await
    }

    /// On a database server of the test's own, with the outbox as another version of the program makes it.
    pub(crate) async fn on_postgres_migrated_by(server: &PostgresServer, program: &Path) -> Self {
        let database = server.create_database().await.unwrap();
        Self::migrated_by(program, database, shared::vhost().await).await
    }

    /// On a broker of the test's own.
    pub(crate) async fn on_rabbit(server: &RabbitServer) -> Self {
        Self::on(
            shared::database().await,
            server.create_vhost().await.unwrap(),
        )
        .await
    }

    /// On servers of the test's own.
    pub(crate) async fn on_servers(postgres: &PostgresServer, rabbit: &RabbitServer) -> Self {
        Self::on(
            postgres.create_database().await.unwrap(),
            rabbit.create_vhost().await.unwrap(),
        )
        .await
    }

    async fn on(database: TestDatabase, vhost: TestVhost) -> Self {
        let this = Path::new(env!("CARGO_BIN_EXE_postrider"));
        Self::migrated_by(this, database, vhost).await
    }

    async fn migrated_by(program: &Path, database: TestDatabase, vhost: TestVhost) -> Self {
        let stage = Self {
            database,
            vhost,
            audit: Audit::new(),
        };
        let migrated = stage.run_with(program, &["migrate"]);
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
        self.run_with(Path::new(env!("CARGO_BIN_EXE_postrider")), arguments)
    }

    /// The same over the outbox in this schema.
    pub(crate) fn run_in_schema(&self, schema: &str, arguments: &[&str]) -> Output {
        self.command(Path::new(env!("CARGO_BIN_EXE_postrider")), arguments)
            .env("POSTRIDER_DATABASE_SCHEMA", schema)
            .output()
            .unwrap()
    }

    fn run_with(&self, program: &Path, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("POSTRIDER_DATABASE_URL", &self.database.url)
            .env("POSTRIDER_BROKER_URL", &self.vhost.url)
            // Another daemon of this machine may be where the default is.
            .env("POSTRIDER_HTTP_LISTEN", "off");
        command
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

    /// A shop that places orders as fast as it can until it is stopped.
    pub(crate) async fn busy_shop(&self) -> Producer {
        Producer::start(self.producer(), &self.audit).await.unwrap()
    }

    /// A shop that places so many orders a second until it is stopped.
    pub(crate) async fn shop(&self, rate: f64) -> Producer {
        let options = ProducerOptions {
            rate: Some(rate),
            ..self.producer()
        };
        Producer::start(options, &self.audit).await.unwrap()
    }

    /// Commits so many messages, each of so many bytes, at once: more than a relay is soon done with.
    pub(crate) async fn place_backlog(&self, messages: i32, bytes: i32) {
        let inserted = self
            .sql()
            .await
            .query(
                "INSERT INTO outbox.messages (exchange, routing_key, payload) \
                 SELECT $1, $2, decode(repeat('00', $4), 'hex') FROM generate_series(1, $3) RETURNING id",
                &[&EXCHANGE, &KEY, &messages, &bytes],
            )
            .await
            .unwrap();
        self.audit.committed(inserted.iter().map(|row| row.get(0)));
    }

    /// Waits until so many more messages have arrived than when it was called.
    pub(crate) async fn wait_for_more(&self, deliveries: u64) {
        let before = self.audit.delivery_count();
        self.audit
            .wait_for_deliveries(before + deliveries, DEADLINE)
            .await
            .unwrap();
    }

    /// After an outage everything is as before it: all is delivered, no table holds a row, and since its
    /// start the daemon has charged no message an attempt.
    pub(crate) async fn assert_healed(&self, daemon: &Daemon) {
        self.assert_clean().await;
        let client = self.sql().await;
        for table in ["messages", "deferred"] {
            wait_for_rows(&client, table, 0).await;
        }
        assert_eq!(rows_of(&client, "dead_letters").await, 0);
        let (_, metrics) = daemon.http("/metrics").await.unwrap();
        let charged: Vec<&str> = metrics
            .lines()
            .filter(|line| {
                line.starts_with("postrider_retries_total{")
                    || line.starts_with("postrider_dead_lettered_total{")
            })
            .collect();
        assert!(!charged.is_empty());
        for line in charged {
            assert!(line.ends_with(" 0"), "{line}");
        }
    }

    /// Everything committed was delivered, and nothing else.
    pub(crate) async fn assert_clean(&self) {
        self.audit.wait_until_all_delivered(DEADLINE).await.unwrap();
        let report = self.audit.report();
        assert!(report.is_clean(), "{report}");
        assert!(report.delivered > 0, "{report}");
    }
}

/// Declares the queue `small`, which refuses messages once it has ten.
pub(crate) async fn declare_small_queue(channel: &Channel) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(10));
    arguments.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("small".into(), durable, arguments)
        .await
        .unwrap();
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
