//! A fresh migrated outbox on the test run's server.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod keyed;
pub(crate) mod settling;

use std::future::Future;
use std::time::{Duration, Instant};

use postrider_core::{Message, Origin, Payload, Seq};
use postrider_postgres::{Claim, ClaimFrom, ClaimLimits, Database, Settings, Settlement};
use postrider_testbed::shared;

/// How long a condition may take to come true on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const LIMITS: ClaimLimits = ClaimLimits {
    rows: 500,
    bytes: 8 << 20,
    max_message_bytes: 16 << 20,
    share: postrider_postgres::Share::InOrder,
};

pub(crate) struct Outbox {
    pub(crate) database: Database,
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) client: tokio_postgres::Client,
}

pub(crate) async fn outbox() -> Outbox {
    let test = shared::database().await;
    outbox_at(&test.url, &test.name).await
}

pub(crate) async fn outbox_at(url: &str, name: &str) -> Outbox {
    let database = Database::new(Settings::new(url)).unwrap();
    database.migrate(DEADLINE).await.unwrap();
    Outbox {
        database,
        name: name.to_owned(),
        url: url.to_owned(),
        client: client(url).await,
    }
}

/// What a relay that starts now finds.
pub(crate) async fn next_due(database: &Database) -> Option<Duration> {
    let mut watch = database.watch_due().await.unwrap();
    watch.look().await.unwrap().next_due
}

/// A plain client, as an application has.
pub(crate) async fn client(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

impl Outbox {
    /// Inserts rows whose payloads are their numbers, in one transaction.
    pub(crate) async fn insert(&self, rows: i32) {
        self.client
            .execute(
                "INSERT INTO outbox.messages (exchange, routing_key, payload_json) \
                 SELECT 'e', 'k', to_json(n) FROM generate_series(1, $1::int) AS n",
                &[&rows],
            )
            .await
            .unwrap();
    }

    /// Claims what can be claimed within [`LIMITS`].
    pub(crate) async fn claim(&self, origin: Origin) -> Claim {
        self.claim_within(LIMITS, origin).await
    }

    pub(crate) async fn claim_within(&self, limits: ClaimLimits, origin: Origin) -> Claim {
        claim_within(&self.database, limits, origin).await
    }

    pub(crate) async fn count(&self) -> i64 {
        self.client
            .query_one("SELECT count(*) FROM outbox.messages", &[])
            .await
            .unwrap()
            .get(0)
    }
}

/// Claims from the beginning: of `messages` those without a key.
pub(crate) async fn claim_within(
    database: &Database,
    limits: ClaimLimits,
    origin: Origin,
) -> Claim {
    let claim = match origin {
        Origin::Messages => {
            let from = ClaimFrom::default();
            database.claim_fresh(limits, &[], from).await
        }
        Origin::Deferred => database.claim_due(limits, &[], None).await,
        Origin::Parked => panic!("what is parked is claimed by key"),
    };
    claim.unwrap()
}

pub(crate) fn done(seqs: &[Seq]) -> Settlement {
    Settlement {
        done: seqs.to_vec(),
        ..Settlement::default()
    }
}

pub(crate) fn fetched(message: &Message) -> &[u8] {
    match &message.payload {
        Payload::Fetched(bytes) => bytes,
        Payload::TooLarge { bytes } => panic!("too large: {bytes}"),
    }
}

/// Waits until the condition holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
