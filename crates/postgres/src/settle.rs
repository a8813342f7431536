//! The settle: what becomes of each row of a claim, in the claim's own transaction.
//!
//! A row that moves is deleted from one table and inserted into the other by one statement, from what the
//! deletion returned: it is never in two tables or in none, and a payload stays the bytes it was.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use futures_util::future;
use postgres_types::{ToSql, Type};
use postrider_core::{Origin, Reason, Seq};
use tokio_postgres::Statement;

use crate::claim::Claim;
use crate::database::{Database, Lease};
use crate::error::Error;
use crate::ordered::unblock_sql;
use crate::schema_name::Schema;

/// The columns that move with a message, whatever table it is in.
pub(crate) const MESSAGE_COLUMNS: &str = "seq, id, exchange, routing_key, payload, payload_json, content_type, headers, ordering_key, type, \
     content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede, created_at";

/// The most characters of an error that are kept with its row.
const ERROR_CHARACTERS: usize = 1000;

/// No retry waits longer: beyond, the sum of dates overflows.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What becomes of the rows of a claim; those not named stay where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Confirmed, or accepted as sent: deleted.
    pub done: Vec<Seq>,
    /// To be tried again later.
    pub retry: Vec<Retry>,
    /// Given up.
    pub dead: Vec<Dead>,
    /// Of those given up, the ones that block their key until a person decides. They have one.
    pub blocking: Vec<Seq>,
    /// To be parked behind the head of their key, which is blocked; of a claim by lanes only.
    pub park: Vec<Seq>,
}

/// A message that waits, then is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Its row.
    pub seq: Seq,
    /// For how long it waits, by the database's clock from the settle on; ten years at most.
    pub after: Duration,
    /// How many attempts have failed, the last one included.
    pub attempts: u32,
    /// Why the last one failed.
    pub reason: Reason,
    /// What was said about it; the first 1,000 characters are kept.
    pub error: String,
}

/// A message that becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    /// Its row.
    pub seq: Seq,
    /// How many attempts have failed, the last one included.
    pub attempts: u32,
    /// Why the last one failed.
    pub reason: Reason,
    /// What was said about it; the first 1,000 characters are kept.
    pub error: String,
}

impl Settlement {
    /// Every row that leaves its place.
    pub fn seqs(&self) -> impl Iterator<Item = Seq> + '_ {
        self.done.iter().copied().chain(self.moving())
    }

    fn moving(&self) -> impl Iterator<Item = Seq> + '_ {
        let retry = self.retry.iter().map(|retry| retry.seq);
        let dead = self.dead.iter().map(|dead| dead.seq);
        retry.chain(dead).chain(self.park.iter().copied())
    }

    fn len(&self) -> usize {
        self.done.len() + self.retry.len() + self.dead.len() + self.park.len()
    }

    fn moves(&self) -> bool {
        self.len() > self.done.len()
    }
}

/// The statements that settle the rows of one table. Each is served by its primary key; the rows are
/// locked by the claim, so nobody else changes them.
pub(crate) struct SettleSql {
    pub(crate) delete: String,
    pub(crate) retry: String,
    pub(crate) give_up: String,
    /// Locks what blocks the keys `$1`, in one order for all.
    pub(crate) lock_keys: String,
    /// Of `messages` only.
    pub(crate) park: String,
    /// Of `parked` only: of the keys `$1`, so many `$2` left it, and what is left is at `$3` or above.
    pub(crate) resumed: String,
    pub(crate) unblock: String,
}

impl SettleSql {
    pub(crate) fn new(schema: &Schema, origin: Origin) -> Self {
        let table = match origin {
            Origin::Messages => "messages",
            Origin::Deferred => "deferred",
            Origin::Parked => "parked",
        };
        // In place: the payload is not written again.
        let retry = match origin {
            Origin::Messages | Origin::Parked => format!(
                "WITH {}, gone AS ({}) \
                 INSERT INTO {schema}.deferred ({MESSAGE_COLUMNS}, attempts, due_at, cause, reason, error) \
                 SELECT {MESSAGE_COLUMNS}, f_attempts, \
                        clock_timestamp() + f_after * interval '1 microsecond', 'retry', f_reason, f_error FROM gone",
                failed(AFTER),
                delete_returning(
                    schema,
                    table,
                    "f.f_attempts, f.f_after, f.f_reason, f.f_error"
                ),
            ),
            Origin::Deferred => format!(
                "WITH {} \
                 UPDATE {schema}.deferred AS m \
                 SET attempts = f_attempts, due_at = clock_timestamp() + f_after * interval '1 microsecond', \
                     cause = 'retry', reason = f_reason, error = f_error, deferred_at = clock_timestamp() \
                 FROM failed AS f WHERE m.seq = ANY ($1::bigint[]) AND m.seq = f.f_seq",
                failed(AFTER),
            ),
        };
        Self {
            delete: format!("DELETE FROM {schema}.{table} WHERE seq = ANY ($1::bigint[])"),
            retry,
            give_up: format!(
                "WITH {}, gone AS ({}) \
                 INSERT INTO {schema}.dead_letters ({MESSAGE_COLUMNS}, attempts, reason, error, blocks) \
                 SELECT {MESSAGE_COLUMNS}, f_attempts, f_reason, f_error, f_blocks FROM gone",
                failed(BLOCKS),
                delete_returning(
                    schema,
                    table,
                    "f.f_attempts, f.f_reason, f.f_error, f.f_blocks"
                ),
            ),
            lock_keys: format!(
                "SELECT FROM {schema}.blocked_keys WHERE ordering_key = ANY ($1::text[]) ORDER BY ordering_key FOR UPDATE"
            ),
            // Never behind nothing: what would be parked without a row for its key stays where it is.
            park: format!(
                "WITH gone AS (DELETE FROM {schema}.{table} AS m WHERE seq = ANY ($1::bigint[]) \
                                  AND EXISTS (SELECT FROM {schema}.blocked_keys AS b WHERE b.ordering_key = m.ordering_key COLLATE \"C\") \
                                RETURNING {MESSAGE_COLUMNS}), \
                      parked AS (INSERT INTO {schema}.parked ({MESSAGE_COLUMNS}) SELECT {MESSAGE_COLUMNS} FROM gone \
                                 RETURNING seq, ordering_key), \
                      of_key AS (SELECT ordering_key, count(*) AS parked, min(seq) AS lowest FROM parked GROUP BY ordering_key), \
                      blocked AS (UPDATE {schema}.blocked_keys AS b \
                                  SET parked = b.parked + k.parked, resume_from = least(b.resume_from, k.lowest) \
                                  FROM of_key AS k WHERE b.ordering_key = k.ordering_key COLLATE \"C\" RETURNING k.parked) \
                 SELECT coalesce(sum(parked), 0)::bigint FROM blocked"
            ),
            resumed: format!(
                "UPDATE {schema}.blocked_keys AS b SET parked = greatest(b.parked - k.gone, 0), resume_from = k.first \
                 FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (ordering_key, gone, first) \
                 WHERE b.ordering_key = k.ordering_key"
            ),
            unblock: unblock_sql(schema),
        }
    }
}

/// What a retry has besides, and a dead letter: the name and the type of a column.
const AFTER: (&str, &str) = ("f_after", "bigint");
const BLOCKS: (&str, &str) = ("f_blocks", "bool");

fn failed((name, kind): (&str, &str)) -> String {
    format!(
        "failed AS (SELECT * FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::{kind}[]) \
         AS f (f_seq, f_attempts, f_reason, f_error, {name}))"
    )
}

fn delete_returning(schema: &Schema, table: &str, extra: &str) -> String {
    let columns: Vec<String> = MESSAGE_COLUMNS
        .split(", ")
        .map(|column| format!("m.{}", column.trim()))
        .collect();
    format!(
        "DELETE FROM {schema}.{table} AS m USING failed AS f \
         WHERE m.seq = ANY ($1::bigint[]) AND m.seq = f.f_seq RETURNING {}, {extra}",
        columns.join(", ")
    )
}

/// The parameters of a move, column by column.
struct Failures {
    seqs: Vec<i64>,
    attempts: Vec<i32>,
    reasons: Vec<&'static str>,
    errors: Vec<String>,
    besides: Besides,
}

/// The column that only a retry has, or only a dead letter.
enum Besides {
    After(Vec<i64>),
    Blocks(Vec<bool>),
}

impl Failures {
    fn retries(retries: &[Retry]) -> Self {
        let after = |retry: &Retry| {
            i64::try_from(retry.after.min(LONGEST_WAIT).as_micros()).unwrap_or(i64::MAX)
        };
        Self {
            seqs: retries.iter().map(|retry| retry.seq.0).collect(),
            attempts: retries.iter().map(|retry| count(retry.attempts)).collect(),
            reasons: retries.iter().map(|retry| retry.reason.as_str()).collect(),
            errors: retries.iter().map(|retry| kept(&retry.error)).collect(),
            besides: Besides::After(retries.iter().map(after).collect()),
        }
    }

    fn dead(dead: &[Dead], blocking: &[Seq]) -> Self {
        let blocking: HashSet<Seq> = blocking.iter().copied().collect();
        let blocks = |dead: &Dead| blocking.contains(&dead.seq);
        Self {
            seqs: dead.iter().map(|dead| dead.seq.0).collect(),
            attempts: dead.iter().map(|dead| count(dead.attempts)).collect(),
            reasons: dead.iter().map(|dead| dead.reason.as_str()).collect(),
            errors: dead.iter().map(|dead| kept(&dead.error)).collect(),
            besides: Besides::Blocks(dead.iter().map(blocks).collect()),
        }
    }

    fn types(&self) -> [Type; 5] {
        let besides = match self.besides {
            Besides::After(_) => Type::INT8_ARRAY,
            Besides::Blocks(_) => Type::BOOL_ARRAY,
        };
        [
            Type::INT8_ARRAY,
            Type::INT4_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            besides,
        ]
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 5] {
        let besides: &(dyn ToSql + Sync) = match &self.besides {
            Besides::After(after) => after,
            Besides::Blocks(blocks) => blocks,
        };
        [
            &self.seqs,
            &self.attempts,
            &self.reasons,
            &self.errors,
            besides,
        ]
    }
}

fn count(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

/// What a text column takes of what a broker said: no text of PostgreSQL holds a NUL, and one that
/// did would fail every settle of its row.
fn kept(error: &str) -> String {
    error
        .chars()
        .take(ERROR_CHARACTERS)
        .map(|c| {
            if c == '\0' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

impl Claim {
    /// Deletes what is done, moves what failed, and commits: in one round trip, with one more where
    /// something is moved. Rows that are not named are free for the next claim.
    ///
    /// A row that cannot be moved (its `seq` is taken there already, a right is missing) keeps the others
    /// from being moved, but never what is done from being deleted: confirmed messages would be published
    /// again and again.
    ///
    /// # Errors
    /// [`Error::NotClaimed`] and [`Error::NamedTwice`], with nothing changed. [`Error::Settled`] if the
    /// database deleted or moved fewer rows: those left are delivered again. After any other error it is
    /// unknown whether this was done; no message is lost, some may be repeated.
    pub async fn settle(mut self, settlement: &Settlement) -> Result<Settled, Error> {
        if let Err(error) = self.own(settlement) {
            self.roll_back().await?;
            return Err(error);
        }
        if settlement.len() == 0 {
            self.roll_back().await?;
            return Ok(Settled::Whole);
        }
        let Some(lease) = self.lease.take() else {
            return Ok(Settled::Whole);
        };
        let claimed = Claimed {
            origin: self.origin,
            keys: std::mem::take(&mut self.keys),
        };
        let (settled, not_moved) = self
            .database
            .answer(DOING, execute(&self.database, &lease, &claimed, settlement))
            .await?;
        lease.give_back();
        let named = match not_moved {
            None => settlement.len() as u64,
            Some(_) => settlement.done.len() as u64,
        };
        if settled != named {
            return Err(Error::Settled { named, settled });
        }
        Ok(not_moved.map_or(Settled::Whole, Settled::NothingMoved))
    }

    /// Whether every row is this claim's, and named once.
    fn own(&self, settlement: &Settlement) -> Result<(), Error> {
        let mut named = HashSet::with_capacity(settlement.len());
        for seq in settlement.seqs() {
            if self.seqs.binary_search(&seq.0).is_err() {
                return Err(Error::NotClaimed(seq));
            }
            if !named.insert(seq) {
                return Err(Error::NamedTwice(seq));
            }
        }
        Ok(())
    }
}

/// How far a settle came.
#[derive(Debug)]
#[must_use = "rows that were not moved are claimed again at once"]
pub enum Settled {
    /// Everything was done.
    Whole,
    /// What was done is deleted; nothing was moved, for this reason. The rows stay where they were.
    NothingMoved(Error),
}

const DOING: &str = "settle messages";
/// How the rows that move are best joined depends on how many they are, which a claim's generic plans do not know.
const SAVEPOINT: &str = "SAVEPOINT moves; SET LOCAL plan_cache_mode = force_custom_plan";

async fn execute(
    database: &Database,
    lease: &Lease,
    claim: &Claimed,
    settlement: &Settlement,
) -> Result<(u64, Option<Error>), Error> {
    let failed = |error| Error::query(DOING, error);
    let client = lease.client()?;
    let sql = database.sql().settle(claim.origin);
    let done: Vec<i64> = settlement.done.iter().map(|seq| seq.0).collect();
    // Prepared before any is sent: the rest is one round trip.
    let delete = if done.is_empty() {
        None
    } else {
        let prepared = client.prepare_typed_cached(&sql.delete, &[Type::INT8_ARRAY]);
        Some(prepared.await.map_err(failed)?)
    };
    let keys = claim.touched(settlement);
    let lock = if keys.is_empty() {
        None
    } else {
        let prepared = client.prepare_typed_cached(&sql.lock_keys, &[Type::TEXT_ARRAY]);
        Some(prepared.await.map_err(failed)?)
    };
    // Polled in this order, all are on the wire before the first answer is awaited.
    let delete = async {
        let lock = rows(client, lock.as_ref(), vec![&keys]);
        let delete = rows(client, delete.as_ref(), vec![&done]);
        let (locked, deleted) = future::join(lock, delete).await;
        locked.and(deleted)
    };
    if !settlement.moves() && claim.origin != Origin::Parked {
        let (deleted, committed) = future::join(delete, client.batch_execute("COMMIT")).await;
        // A COMMIT after a failed statement rolls back and does not say so: the statement comes first.
        let deleted = deleted.map_err(failed)?;
        committed.map_err(failed)?;
        return Ok((deleted, None));
    }
    let (deleted, saved) = future::join(delete, client.batch_execute(SAVEPOINT)).await;
    let deleted = deleted.map_err(failed)?;
    saved.map_err(failed)?;
    match move_rows(client, sql, settlement).await {
        Ok(moved) => {
            if claim.origin == Origin::Parked {
                resume(client, sql, claim, settlement.seqs())
                    .await
                    .map_err(failed)?;
            }
            client.batch_execute("COMMIT").await.map_err(failed)?;
            Ok((deleted + moved, None))
        }
        Err(error) if error.as_db_error().is_some() => {
            client
                .batch_execute("ROLLBACK TO SAVEPOINT moves")
                .await
                .map_err(failed)?;
            if claim.origin == Origin::Parked {
                let done = settlement.done.iter().copied();
                resume(client, sql, claim, done).await.map_err(failed)?;
            }
            client.batch_execute("COMMIT").await.map_err(failed)?;
            Ok((deleted, Some(Error::query("move messages", error))))
        }
        Err(error) => Err(failed(error)),
    }
}

/// What of a claim the statements depend on.
struct Claimed {
    origin: Origin,
    keys: HashMap<i64, String>,
}

impl Claimed {
    /// The keys that this may block or free. What blocks them is locked before anything else, in the order of their names: the triggers lock
    /// it in that of the rows, and two settles that met the same keys in two orders would wait for each other. A message that goes
    /// straight out touches nothing: its key is free.
    fn touched(&self, settlement: &Settlement) -> Vec<&str> {
        let of = |seq: Seq| self.keys.get(&seq.0).map(String::as_str);
        let mut keys: Vec<&str> = match self.origin {
            Origin::Messages => settlement.moving().filter_map(of).collect(),
            Origin::Deferred | Origin::Parked => settlement.seqs().filter_map(of).collect(),
        };
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// Moves what failed and what is to be parked, and says how many rows that were.
async fn move_rows(
    client: &ClientWrapper,
    sql: &SettleSql,
    settlement: &Settlement,
) -> Result<u64, tokio_postgres::Error> {
    let mut moved = 0;
    if !settlement.retry.is_empty() {
        let retries = Failures::retries(&settlement.retry);
        let statement = client
            .prepare_typed_cached(&sql.retry, &retries.types())
            .await?;
        moved += client.execute(&statement, &retries.parameters()).await?;
    }
    if !settlement.dead.is_empty() {
        let dead = Failures::dead(&settlement.dead, &settlement.blocking);
        let statement = client
            .prepare_typed_cached(&sql.give_up, &dead.types())
            .await?;
        moved += client.execute(&statement, &dead.parameters()).await?;
    }
    if !settlement.park.is_empty() {
        let seqs: Vec<i64> = settlement.park.iter().map(|seq| seq.0).collect();
        let statement = client
            .prepare_typed_cached(&sql.park, &[Type::INT8_ARRAY])
            .await?;
        let parked: i64 = client.query_one(&statement, &[&seqs]).await?.try_get(0)?;
        moved += u64::try_from(parked).unwrap_or(0);
    }
    Ok(moved)
}

/// Notes how far the keys of what left the parked messages have come, and unblocks those that are through.
async fn resume(
    client: &ClientWrapper,
    sql: &SettleSql,
    claim: &Claimed,
    gone: impl Iterator<Item = Seq>,
) -> Result<(), tokio_postgres::Error> {
    let gone: HashSet<i64> = gone.map(|seq| seq.0).collect();
    let mut of_key: HashMap<&str, (i64, i64)> = HashMap::new();
    for seq in &gone {
        if let Some(key) = claim.keys.get(seq) {
            let (gone, first) = of_key.entry(key).or_insert((0, i64::MIN));
            *gone += 1;
            *first = (*first).max(seq.saturating_add(1));
        }
    }
    // Not always what follows the last: of several in flight, one may have been confirmed behind another that was not.
    for (seq, key) in claim.keys.iter().filter(|(seq, _)| !gone.contains(seq)) {
        if let Some((_, first)) = of_key.get_mut(key.as_str()) {
            *first = (*first).min(*seq);
        }
    }
    let keys: Vec<&str> = of_key.keys().copied().collect();
    let (gone, first): (Vec<i64>, Vec<i64>) = of_key.values().copied().unzip();
    let resumed = client
        .prepare_typed_cached(
            &sql.resumed,
            &[Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::INT8_ARRAY],
        )
        .await?;
    client.execute(&resumed, &[&keys, &gone, &first]).await?;
    let unblock = client
        .prepare_typed_cached(&sql.unblock, &[Type::TEXT_ARRAY])
        .await?;
    client.execute(&unblock, &[&keys]).await?;
    Ok(())
}

async fn rows(
    client: &tokio_postgres::Client,
    statement: Option<&Statement>,
    parameters: Vec<&(dyn ToSql + Sync)>,
) -> Result<u64, tokio_postgres::Error> {
    match statement {
        Some(statement) => client.execute(statement, &parameters).await,
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn an_error_is_cut_between_characters_and_holds_no_nul() {
        assert_eq!(kept("a\0b"), "a\u{fffd}b");
        assert_eq!(kept(&"é".repeat(2000)), "é".repeat(1000));
    }
}
