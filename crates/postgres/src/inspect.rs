//! How far behind the outbox is: for metrics and for people. No query here scans a table of any size.

use std::time::{Duration, SystemTime};

use postrider_core::{Origin, Seq};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::database::Database;
use crate::deferred::Cause;
use crate::due::{self, DueTime};
use crate::error::Error;
use crate::schema_name::Schema;
use crate::watch;

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
    /// The oldest visible row of `outbox.messages`.
    pub oldest_fresh: Option<Seq>,
    /// Messages that wait to be tried again, or could by now.
    pub deferred_retry: Counted,
    /// Messages that wait for the time their producer gave, or could go by now.
    pub deferred_scheduled: Counted,
    /// Messages that were given up.
    pub dead_letters: Counted,
    /// Ordering keys whose messages wait for an earlier one of them. Neither these messages nor their number are part of
    /// `lag` and `backlog`, which tell what could be published now.
    pub blocked: BlockedSample,
    /// When this was, by the database's clock.
    pub database_now: SystemTime,
}

/// The blocked keys at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockedSample {
    /// How many keys.
    pub keys: Counted,
    /// How many messages are parked behind their heads, of as many keys as were counted.
    pub parked: u64,
    /// For how long the one of these that was blocked first has been, by the database's clock. Zero when there is none.
    pub longest: Duration,
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

/// From where on to look for what could be published: nothing is before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SampleFrom {
    /// Of `outbox.messages`; `None` is the beginning.
    pub fresh: Option<Seq>,
    /// Of `outbox.deferred`; `None` is the beginning.
    pub due: Option<DueTime>,
}

/// How long the oldest publishable message has waited, and which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// See [`Sample::lag`].
    pub lag: Duration,
    /// The message that `lag` is the age of.
    pub oldest: Option<OldestMessage>,
    /// The oldest visible row of `outbox.messages`.
    pub oldest_fresh: Option<Seq>,
    /// When this was, by the database's clock.
    pub database_now: SystemTime,
}

impl Database {
    /// Looks at the oldest publishable messages, and counts each kind of message up to `limit`, from the beginning
    /// of each table.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn sample(&self, limit: u64) -> Result<Sample, Error> {
        self.sample_from(SampleFrom::default(), limit).await
    }

    /// The same from there on: what was deleted before, and vacuum may not remove yet, is not walked over.
    ///
    /// # Errors
    /// As [`Database::sample`].
    pub async fn sample_from(&self, from: SampleFrom, limit: u64) -> Result<Sample, Error> {
        let counted = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
        let sql = sample_sql(self.schema());
        let row = self.measure(&sql, from, Some(&counted)).await?;
        read(&row, limit).map_err(|error| Error::query(DOING, error))
    }

    /// Looks at the oldest publishable messages only, which costs the same however many there are.
    ///
    /// # Errors
    /// As [`Database::sample`].
    pub async fn lag(&self, from: SampleFrom) -> Result<Lag, Error> {
        let sql = lag_sql(self.schema());
        let row = self.measure(&sql, from, None).await?;
        read_lag(&row).map_err(|error| Error::query(DOING, error))
    }

    async fn measure(
        &self,
        sql: &str,
        from: SampleFrom,
        limit: Option<&i64>,
    ) -> Result<Row, Error> {
        let failed = |error| Error::query(DOING, error);
        let fresh = watch::bound(from.fresh);
        let due = due::bound(from.due);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&fresh, &due];
        if let Some(limit) = limit {
            parameters.push(limit);
        }
        let lease = self.lease().await?;
        let row = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client.prepare_cached(sql).await.map_err(failed)?;
                client
                    .query_one(&statement, &parameters)
                    .await
                    .map_err(failed)
            })
            .await?;
        lease.give_back();
        Ok(row)
    }
}

const DOING: &str = "measure the outbox";

/// The heads of what is publishable, from `$1` and `$2` on. Each part reads one index from there and stops after one
/// row: `messages` by its primary key, what is due by (due_at, seq). Messages locked by a claim are seen as well.
pub(crate) fn lag_sql(schema: &Schema) -> String {
    let head = "seq, id, exchange, routing_key, created_at";
    format!(
        "SELECT clock_timestamp(), \
                fresh.seq, fresh.id, fresh.exchange, fresh.routing_key, fresh.created_at, fresh.created_at, \
                due.seq, due.id, due.exchange, due.routing_key, due.created_at, due.due_at \
         FROM (SELECT) AS always \
         LEFT JOIN (SELECT {head} FROM {schema}.messages WHERE seq >= $1::bigint ORDER BY seq LIMIT 1) AS fresh ON true \
         LEFT JOIN (SELECT {head}, due_at FROM {schema}.deferred \
                    WHERE due_at >= $2::timestamptz AND due_at <= statement_timestamp() \
                    ORDER BY due_at, seq LIMIT 1) AS due ON true"
    )
}

/// The same with the counts, which stop after `$3`: the causes by (cause, seq), the dead letters and the blocked keys by their
/// primary keys. Rows already deleted that vacuum may not remove yet are walked over, from where a count begins: about 0.1 ms for each
/// thousand of them.
pub(crate) fn sample_sql(schema: &Schema) -> String {
    let counted = |rows: &str| {
        format!("(SELECT count(*) FROM (SELECT FROM {schema}.{rows} LIMIT $3::bigint) AS counted)")
    };
    let of_cause = |cause: Cause| {
        counted(&format!(
            "deferred WHERE cause = '{cause}' ORDER BY cause, seq"
        ))
    };
    format!(
        "SELECT head.*, {}, {}, {}, {}, {}, blocked.keys, blocked.parked, blocked.since \
         FROM ({}) AS head, \
              (SELECT count(*) AS keys, coalesce(sum(parked), 0)::bigint AS parked, min(blocked_at) AS since \
               FROM (SELECT parked, blocked_at FROM {schema}.blocked_keys ORDER BY ordering_key LIMIT $3::bigint) AS counted) AS blocked",
        counted("messages WHERE seq >= $1::bigint ORDER BY seq"),
        counted(
            "deferred WHERE due_at >= $2::timestamptz AND due_at <= statement_timestamp() ORDER BY due_at, seq"
        ),
        of_cause(Cause::Retry),
        of_cause(Cause::Scheduled),
        counted("dead_letters ORDER BY seq"),
        lag_sql(schema),
    )
}

/// How many columns the heads have.
const HEADS: usize = 13;

fn read(row: &Row, limit: u64) -> Result<Sample, tokio_postgres::Error> {
    let Lag {
        lag,
        oldest,
        oldest_fresh,
        database_now,
    } = read_lag(row)?;
    let fresh: i64 = row.try_get(HEADS)?;
    let due: i64 = row.try_get(HEADS + 1)?;
    let backlog = Counted::up_to(limit, fresh.saturating_add(due));
    Ok(Sample {
        lag,
        backlog: backlog.count,
        backlog_capped: backlog.capped,
        oldest,
        oldest_fresh,
        deferred_retry: Counted::up_to(limit, row.try_get(HEADS + 2)?),
        deferred_scheduled: Counted::up_to(limit, row.try_get(HEADS + 3)?),
        dead_letters: Counted::up_to(limit, row.try_get(HEADS + 4)?),
        blocked: BlockedSample {
            keys: Counted::up_to(limit, row.try_get(HEADS + 5)?),
            parked: u64::try_from(row.try_get::<_, i64>(HEADS + 6)?).unwrap_or(0),
            longest: row
                .try_get::<_, Option<SystemTime>>(HEADS + 7)?
                .and_then(|since| database_now.duration_since(since).ok())
                .unwrap_or_default(),
        },
        database_now,
    })
}

fn read_lag(row: &Row) -> Result<Lag, tokio_postgres::Error> {
    let database_now: SystemTime = row.try_get(0)?;
    let fresh = head(row, 1, Origin::Messages, database_now)?;
    let due = head(row, 7, Origin::Deferred, database_now)?;
    let oldest_fresh = fresh.as_ref().map(|fresh| fresh.seq);
    let oldest = fresh.into_iter().chain(due).max_by_key(|head| head.age);
    Ok(Lag {
        lag: oldest.as_ref().map_or(Duration::ZERO, |oldest| oldest.age),
        oldest,
        oldest_fresh,
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
