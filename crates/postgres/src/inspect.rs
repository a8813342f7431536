//! How far behind the outbox is: for metrics and for people. No query here scans a table of any size.

use std::time::{Duration, SystemTime};

use postrider_core::Seq;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::Database;
use crate::error::Error;

/// How far behind the outbox is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The age of the oldest message, by the database's clock; zero when there is none.
    pub lag: Duration,
    /// How many messages there are, counted up to the limit.
    pub backlog: u64,
    /// Whether there are more than were counted.
    pub backlog_capped: bool,
    /// The oldest message.
    pub oldest: Option<OldestMessage>,
    /// When this was, by the database's clock.
    pub database_now: SystemTime,
}

/// The message at the head of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestMessage {
    /// Its place in the table.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Where it goes.
    pub exchange: String,
    /// And with which key.
    pub routing_key: String,
    /// When it was inserted.
    pub created_at: SystemTime,
    /// Its age, by the database's clock.
    pub age: Duration,
}

impl Database {
    /// Looks at the head of the outbox, and counts messages up to `backlog_limit`.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn sample(&self, backlog_limit: u64) -> Result<Sample, Error> {
        const DOING: &str = "measure the outbox";
        let failed = |error| Error::query(DOING, error);
        let schema = self.schema();
        let limit = i64::try_from(backlog_limit.saturating_add(1)).unwrap_or(i64::MAX);
        // Both read the primary key from its start and stop: the head after one row, the count after the
        // limit. Messages locked by a claim are seen as well. Rows already deleted that vacuum may not
        // remove yet are walked over as by a claim: about 0.1 ms for each thousand of them.
        let sql = format!(
            "SELECT clock_timestamp(), \
                    (SELECT count(*) FROM (SELECT FROM {schema}.messages ORDER BY seq LIMIT $1::bigint) AS counted), \
                    oldest.seq, oldest.id, oldest.exchange, oldest.routing_key, oldest.created_at \
             FROM (SELECT) AS always \
             LEFT JOIN (SELECT seq, id, exchange, routing_key, created_at \
                        FROM {schema}.messages ORDER BY seq LIMIT 1) AS oldest ON true"
        );
        let lease = self.lease().await?;
        let row = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client.prepare_cached(&sql).await.map_err(failed)?;
                client
                    .query_one(&statement, &[&limit])
                    .await
                    .map_err(failed)
            })
            .await?;
        lease.give_back();
        read(&row, backlog_limit).map_err(failed)
    }
}

fn read(row: &Row, backlog_limit: u64) -> Result<Sample, tokio_postgres::Error> {
    let database_now: SystemTime = row.try_get(0)?;
    let counted = u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0);
    let oldest = match row.try_get::<_, Option<i64>>(2)? {
        None => None,
        Some(seq) => {
            let created_at: SystemTime = row.try_get(6)?;
            Some(OldestMessage {
                seq: Seq(seq),
                id: row.try_get(3)?,
                exchange: row.try_get(4)?,
                routing_key: row.try_get(5)?,
                created_at,
                // A client may have written a time of its own, in the future.
                age: database_now.duration_since(created_at).unwrap_or_default(),
            })
        }
    };
    Ok(Sample {
        lag: oldest.as_ref().map_or(Duration::ZERO, |oldest| oldest.age),
        backlog: counted.min(backlog_limit),
        backlog_capped: counted > backlog_limit,
        oldest,
        database_now,
    })
}
