//! The settle: what becomes of each row of a claim, in the claim's own transaction.
//!
//! A row that moves is deleted from one table and inserted into the other by one statement, from what the
//! deletion returned: it is never in two tables or in none, and a payload stays the bytes it was.

mod failures;
mod rehearsal;
mod settlement;
mod statements;

use std::collections::{HashMap, HashSet};

use deadpool_postgres::ClientWrapper;
use futures_util::future;
use postgres_types::{ToSql, Type};
use postrider_core::{Origin, Seq};
use tokio_postgres::Statement;

use self::failures::Failures;
pub use self::rehearsal::Refusal;
pub use self::settlement::{Dead, Retry, Settlement};
pub(crate) use self::statements::{MESSAGE_COLUMNS, SettleSql};
use crate::claim::{Claim, KeysOfRows};
use crate::database::{Database, Lease};
use crate::error::Error;

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
    keys: KeysOfRows,
}

impl Claimed {
    /// The keys that this may block or free. What blocks them is locked before anything else, in the order of their names: the triggers lock
    /// it in that of the rows, and two settles that met the same keys in two orders would wait for each other. A message that goes
    /// straight out touches nothing: its key is free.
    fn touched(&self, settlement: &Settlement) -> Vec<&str> {
        let of = |seq: Seq| self.keys.get(seq.0);
        match self.origin {
            Origin::Messages => in_one_order(settlement.moving().filter_map(of)),
            Origin::Deferred | Origin::Parked => in_one_order(settlement.seqs().filter_map(of)),
        }
    }
}

/// Each key once, in the order of their names.
fn in_one_order<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = keys.collect();
    keys.sort_unstable();
    keys.dedup();
    keys
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
        if let Some(key) = claim.keys.get(*seq) {
            let (gone, first) = of_key.entry(key).or_insert((0, i64::MIN));
            *gone += 1;
            *first = (*first).max(seq.saturating_add(1));
        }
    }
    // Not always what follows the last: of several in flight, one may have been confirmed behind another that was not.
    for (seq, key) in claim.keys.iter().filter(|(seq, _)| !gone.contains(seq)) {
        if let Some((_, first)) = of_key.get_mut(key) {
            *first = (*first).min(seq);
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
