//! How far behind the outbox is: for metrics and for people. No query here scans a table of any size.

use std::time::{Duration, SystemTime};

use postrider_core::{Origin, Seq};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::Database;
use crate::deferred::Cause;
use crate::error::Error;
use crate::schema_name::Schema;

/// How far behind the outbox is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// How long the message that could have been published the longest has waited, by the database's
    /// clock: since its insert, or since the time it was deferred to. Zero when there is none.
    pub lag: Duration,
    /// How many messages could be published now, deferred ones that are due among them, counted up to
    /// the limit.
    pub backlog: u64,
    /// Whether there are more than were counted.
    pub backlog_capped: bool,
    /// The message that `lag` is the age of.
    pub oldest: Option<OldestMessage>,
    /// Messages that wait to be tried again, or could by now.
    pub deferred_retry: Counted,
    /// Messages that wait for the time their producer gave, or could go by now.
    pub deferred_scheduled: Counted,
    /// Messages that were given up.
    pub dead_letters: Counted,
    /// When this was, by the database's clock.
    pub database_now: SystemTime,
}

/// A number of rows, counted up to a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// How many there are, or the limit.
    pub count: u64,
    /// Whether there are more.
    pub capped: bool,
}

impl Counted {
    fn up_to(limit: u64, counted: i64) -> Self {
        let counted = u64::try_from(counted).unwrap_or(0);
        Self {
            count: counted.min(limit),
            capped: counted > limit,
        }
    }
}

/// The message that could have been published the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestMessage {
    /// The table it is in.
    pub origin: Origin,
    /// Its place in the outbox.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Where it goes.
    pub exchange: String,
    /// And with which key.
    pub routing_key: String,
    /// When it was inserted.
    pub created_at: SystemTime,
    /// How long it could have been published, by the database's clock.
    pub age: Duration,
}

impl Database {
    /// Looks at the oldest publishable messages, and counts each kind of message up to `limit`.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn sample(&self, limit: u64) -> Result<Sample, Error> {
        const DOING: &str = "measure the outbox";
        let failed = |error| Error::query(DOING, error);
        let counted = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
        let sql = sample_sql(self.schema());
        let lease = self.lease().await?;
        let row = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client.prepare_cached(&sql).await.map_err(failed)?;
                client
                    .query_one(&statement, &[&counted])
                    .await
                    .map_err(failed)
            })
            .await?;
        lease.give_back();
        read(&row, limit).map_err(failed)
    }
}

/// Every part reads one index from its start and stops, the heads after one row, the counts after the
/// limit: `messages` by its primary key, what is due by (due_at, seq), the causes by (cause, seq), the
/// dead letters by their primary key. Messages locked by a claim are seen as well. Rows already deleted that
/// vacuum may not remove yet are walked over as by a claim: about 0.1 ms for each thousand of them.
pub(crate) fn sample_sql(schema: &Schema) -> String {
    let head = "seq, id, exchange, routing_key, created_at";
    let of_cause = |cause: Cause| {
        format!(
            "(SELECT count(*) FROM (SELECT FROM {schema}.deferred WHERE cause = '{cause}' \
              ORDER BY cause, seq LIMIT $1::bigint) AS counted)"
        )
    };
    format!(
        "SELECT clock_timestamp(), \
                (SELECT count(*) FROM (SELECT FROM {schema}.messages ORDER BY seq LIMIT $1::bigint) AS counted), \
                (SELECT count(*) FROM (SELECT FROM {schema}.deferred WHERE due_at <= statement_timestamp() \
                 ORDER BY due_at, seq LIMIT $1::bigint) AS counted), \
                {}, {}, \
                (SELECT count(*) FROM (SELECT FROM {schema}.dead_letters ORDER BY seq LIMIT $1::bigint) AS counted), \
                fresh.seq, fresh.id, fresh.exchange, fresh.routing_key, fresh.created_at, fresh.created_at, \
                due.seq, due.id, due.exchange, due.routing_key, due.created_at, due.due_at \
         FROM (SELECT) AS always \
         LEFT JOIN (SELECT {head} FROM {schema}.messages ORDER BY seq LIMIT 1) AS fresh ON true \
         LEFT JOIN (SELECT {head}, due_at FROM {schema}.deferred WHERE due_at <= statement_timestamp() \
                    ORDER BY due_at, seq LIMIT 1) AS due ON true",
        of_cause(Cause::Retry),
        of_cause(Cause::Scheduled),
    )
}

fn read(row: &Row, limit: u64) -> Result<Sample, tokio_postgres::Error> {
    let database_now: SystemTime = row.try_get(0)?;
    let fresh: i64 = row.try_get(1)?;
    let due: i64 = row.try_get(2)?;
    let backlog = Counted::up_to(limit, fresh.saturating_add(due));
    let heads = [
        head(row, 6, Origin::Messages, database_now)?,
        head(row, 12, Origin::Deferred, database_now)?,
    ];
    let oldest = heads.into_iter().flatten().max_by_key(|head| head.age);
    Ok(Sample {
        lag: oldest.as_ref().map_or(Duration::ZERO, |oldest| oldest.age),
        backlog: backlog.count,
        backlog_capped: backlog.capped,
        oldest,
        deferred_retry: Counted::up_to(limit, row.try_get(3)?),
        deferred_scheduled: Counted::up_to(limit, row.try_get(4)?),
        dead_letters: Counted::up_to(limit, row.try_get(5)?),
        database_now,
    })
}

fn head(
    row: &Row,
    from: usize,
    origin: Origin,
    now: SystemTime,
) -> Result<Option<OldestMessage>, tokio_postgres::Error> {
    let Some(seq) = row.try_get(from)? else {
        return Ok(None);
    };
    let publishable_since: SystemTime = row.try_get(from + 5)?;
    Ok(Some(OldestMessage {
        origin,
        seq: Seq(seq),
        id: row.try_get(from + 1)?,
        exchange: row.try_get(from + 2)?,
        routing_key: row.try_get(from + 3)?,
        created_at: row.try_get(from + 4)?,
        // A client may have written a time of its own, in the future.
        age: now.duration_since(publishable_since).unwrap_or_default(),
    }))
}
