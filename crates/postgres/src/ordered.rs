//! Claims of messages with a key: by lane, and of what was parked by key.
//!
//! Both lock lanes first, by advisory locks that go with the transaction, trying and never waiting; and only then, by a statement
//! and so a snapshot of its own, read the rows. A snapshot taken before the lock might show a key as free which another
//! relay, that had the lane, has just blocked.
//!
//! Rows are read in order without locking them, and locked then: `SKIP LOCKED` alone would go on with the second message of a key
//! whose first an operator has locked. One that could not be locked is returned as held, and what follows it in its key
//! is not taken.

mod on_the_wire;
mod read;
mod statements;
mod waiting;

use futures_util::{TryStreamExt, future, pin_mut};
use postgres_types::{ToSql, Type};
use postrider_core::{Floor, Lane, LaneStarts, OrderedRow, Origin, Seq};

use self::on_the_wire::LanesOnTheWire;
pub use self::read::ReadLane;
use self::read::read_lanes;
pub(crate) use self::statements::{LANE, OrderedSql, unblock_sql};
pub use self::waiting::{LookFor, WaitingLanes};
use crate::claim::{Claim, ClaimLimits, KeysOfRows, begin};
use crate::database::{Database, Lease};
use crate::error::Error;
use crate::presence::key_of;
use crate::row::{self, ReadRow};
use crate::writers::look_at_writers;

/// The first half of the keys of the lanes' locks: `lane` in ASCII.
const LANE_LOCK_CLASS: i32 = 0x6c61_6e65;

/// A claim that is bounded by how far it reads takes no more of a lane than its part of the rows if it was of so many lanes, however many wait in it.
pub const LANES_OF_HOT_KEYS: usize = 16;

/// Rows of lanes, or of keys that are resumed, locked with their lanes until they are settled or released.
#[derive(Debug)]
#[must_use = "a claim that is dropped closes its connection"]
pub struct OrderedClaim {
    /// To be settled. It has no messages of its own.
    pub claim: Claim,
    /// What was read, in the order of `seq`.
    pub rows: Vec<OrderedRow>,
    /// How many lanes were locked.
    pub locked: usize,
    /// What was read of each. One that was not come to, for so many rows of the others, is not among them.
    pub lanes: Vec<ReadLane>,
    /// How many keys were unblocked, because nothing was parked behind them. If any, that was all that was done.
    pub unblocked: u64,
    /// Some are held for no other reason than that there was no room for their bytes.
    pub cut_by_bytes: bool,
}

/// A key whose head is gone: what is parked behind it can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumingKey {
    /// The key.
    pub key: String,
    /// Its lane.
    pub lane: Lane,
}

const DOING: &str = "claim messages in order";

impl Database {
    /// Locks those of the lanes that nobody else has, and of each the first rows that are there, `limits.rows` of all of them at most, except
    /// the `left_out`, and opens the transaction in which they are to be settled. `horizon`: the floor of the watch, if only what no
    /// transaction can get in front of any more is to be claimed; it takes a look of its own.
    ///
    /// # Errors
    /// As [`Database::claim_fresh`].
    pub async fn claim_lanes(
        &self,
        limits: ClaimLimits,
        starts: &LaneStarts,
        left_out: &[Seq],
        horizon: Option<Floor<Seq>>,
    ) -> Result<OrderedClaim, Error> {
        if left_out.is_empty() {
            let unlocked = self
                .claim_lanes_by(limits, starts, None, horizon.clone())
                .await?;
            if let Some(claim) = unlocked {
                return Ok(claim);
            }
        }
        let held = self.claim_lanes_by(limits, starts, Some(left_out), horizon);
        // The other statement waits for no lock, and so fails over none.
        held.await?.ok_or(Error::Settings(
            "the database refused to lock messages that nobody was asked to wait for",
        ))
    }

    /// With what is to be left out, by the statement that tells which rows are held. Without, by the one that does not, and `None` when there
    /// is one.
    async fn claim_lanes_by(
        &self,
        limits: ClaimLimits,
        starts: &LaneStarts,
        left_out: Option<&[Seq]>,
        horizon: Option<Floor<Seq>>,
    ) -> Result<Option<OrderedClaim>, Error> {
        let lanes: Vec<Lane> = starts.lanes.iter().map(|start| start.lane).collect();
        let claimed = async {
            let lease = self.lease().await?;
            let locked = self.lock_lanes(&lease, &lanes).await?;
            let end = match horizon {
                Some(floor) if !locked.is_empty() => {
                    Some(self.horizon(&lease, floor).await?.unwrap_or(Seq(i64::MIN)))
                }
                Some(_) | None => None,
            };
            let mut starts = starts.clone();
            starts.lanes.retain(|start| locked.contains(&start.lane));
            let wire = LanesOnTheWire::new(&starts, end);
            let starts = starts.lanes;
            let sql = &self.sql().ordered;
            let sql = match left_out {
                Some(_) => &sql.claim,
                None => sql.claim_unlocked.claim(limits.share),
            };
            let most = limits.rows.max(1);
            let is_bounded = left_out.is_none() && starts.iter().all(|s| s.until.is_some());
            let limits = share(
                limits,
                if is_bounded {
                    LANES_OF_HOT_KEYS
                } else {
                    starts.len()
                },
            );
            let (all, mut others) = (i64::from(most), Vec::<&(dyn ToSql + Sync)>::new());
            others.extend_from_slice(&[
                &wire.lanes,
                &wire.from,
                &wire.until,
                &wire.passed,
                &wire.since,
            ]);
            if left_out.is_none() {
                others.push(&all);
            }
            let rows = if starts.is_empty() {
                Ok(Vec::new())
            } else {
                self.read_ordered(&lease, sql, &others, left_out, limits, Origin::Messages)
                    .await
            };
            let rows = match rows {
                Err(error) if left_out.is_none() && error.is_of_a_locked_row() => {
                    let client = lease.client()?;
                    let ended = client.batch_execute("ROLLBACK").await;
                    ended.map_err(|error| Error::query(DOING, error))?;
                    lease.give_back();
                    return Ok(None);
                }
                rows => rows?,
            };
            let read = read_lanes(&starts, end, &rows, limits.rows, most);
            Ok(Some((lease, locked.len(), read, rows)))
        };
        let Some((lease, locked, read, rows)) = self.answer(DOING, claimed).await? else {
            return Ok(None);
        };
        let mut claim = self.ordered_claim(lease, Origin::Messages, rows, limits);
        claim.locked = locked;
        claim.lanes = read;
        claim.end_if_empty().await.map(Some)
    }

    /// Up to `most` keys whose head is gone, in the order of their bytes, after this one; no key is empty, so after `""` come all.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn resuming_keys(&self, after: &str, most: u32) -> Result<Vec<ResumingKey>, Error> {
        const DOING: &str = "look for keys to resume";
        let failed = |error| Error::query(DOING, error);
        let lease = self.lease().await?;
        let keys = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client
                    .prepare_cached(&self.sql().ordered.resuming)
                    .await
                    .map_err(failed)?;
                let rows = client.query(&statement, &[&after, &i64::from(most)]).await;
                let key = |row: &tokio_postgres::Row| {
                    Ok(ResumingKey {
                        key: row.try_get(0).map_err(failed)?,
                        lane: lane(row.try_get(1).map_err(failed)?)?,
                    })
                };
                rows.map_err(failed)?.iter().map(key).collect()
            })
            .await?;
        lease.give_back();
        Ok(keys)
    }

    /// Makes due what waits for an earlier message of its key although there is none any more, and says how many that were: the
    /// trigger that does so when the earlier one goes never waits for a row, and leaves one that a claim or an operator has locked.
    /// To be called now and then.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn wake_heads(&self) -> Result<u64, Error> {
        const DOING: &str = "look for messages whose turn has come";
        let failed = |error| Error::query(DOING, error);
        let lease = self.lease().await?;
        let woken = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client
                    .prepare_cached(&self.sql().ordered.wake_heads)
                    .await
                    .map_err(failed)?;
                client.execute(&statement, &[]).await.map_err(failed)
            })
            .await?;
        lease.give_back();
        Ok(woken)
    }

    /// Locks the lanes of these keys, and unblocks those of them that have nothing parked any more. If there is none, locks the first parked rows,
    /// `limits.rows` of all keys at most. Keys that have a head again meanwhile, or whose lane someone else has, are left.
    ///
    /// One or the other: what was unblocked stays locked until the transaction ends, and an operator's command that frees the same
    /// key would wait for a publish.
    ///
    /// # Errors
    /// As [`Database::claim_fresh`].
    pub async fn claim_parked(
        &self,
        limits: ClaimLimits,
        keys: &[ResumingKey],
        left_out: &[Seq],
    ) -> Result<OrderedClaim, Error> {
        let failed = |error| Error::query(DOING, error);
        let mut lanes: Vec<Lane> = keys.iter().map(|key| key.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        let claimed = async {
            let lease = self.lease().await?;
            let locked = self.lock_lanes(&lease, &lanes).await?;
            let names: Vec<&str> = keys
                .iter()
                .filter(|key| locked.contains(&key.lane))
                .map(|key| key.key.as_str())
                .collect();
            if names.is_empty() {
                return Ok((lease, locked.len(), 0, Vec::new()));
            }
            let client = lease.client()?;
            let unblock = client
                .prepare_typed_cached(&self.sql().ordered.unblock, &[Type::TEXT_ARRAY])
                .await
                .map_err(failed)?;
            let unblocked = client.execute(&unblock, &[&names]).await.map_err(failed)?;
            if unblocked > 0 {
                return Ok((lease, locked.len(), unblocked, Vec::new()));
            }
            let limits = share(limits, names.len());
            let sql = &self.sql().ordered.claim_parked;
            let rows = self
                .read_ordered(
                    &lease,
                    sql,
                    &[&names],
                    Some(left_out),
                    limits,
                    Origin::Parked,
                )
                .await?;
            Ok((lease, locked.len(), unblocked, rows))
        };
        let (lease, locked, unblocked, rows) = self.answer(DOING, claimed).await?;
        let mut claim = self.ordered_claim(lease, Origin::Parked, rows, limits);
        claim.locked = locked;
        claim.unblocked = unblocked;
        claim.end_if_empty().await
    }

    /// Opens the transaction, and tries the locks.
    async fn lock_lanes(&self, lease: &Lease, lanes: &[Lane]) -> Result<Vec<Lane>, Error> {
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        let statement = client
            .prepare_cached(&self.sql().ordered.lock)
            .await
            .map_err(failed)?;
        let numbers: Vec<i32> = lanes.iter().map(|lane| i32::from(lane.0)).collect();
        // The last byte is the lane's.
        let outbox = key_of("lanes", self.schema()) & !0xff;
        let parameters: [&(dyn ToSql + Sync); 3] = [&LANE_LOCK_CLASS, &numbers, &outbox];
        let (begun, rows) = future::join(
            client.batch_execute(begin(Origin::Messages)),
            client.query(&statement, &parameters),
        )
        .await;
        begun.map_err(failed)?;
        let rows = rows.map_err(failed)?;
        rows.iter()
            .map(|row| lane(row.try_get(0).map_err(failed)?))
            .collect()
    }

    /// Below which `seq` no row can appear any more, by the watch's looks and one that is taken now.
    async fn horizon(&self, lease: &Lease, mut floor: Floor<Seq>) -> Result<Option<Seq>, Error> {
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        let next = client
            .prepare_cached(self.sql().watch.next())
            .await
            .map_err(failed)?;
        let row = client.query_one(&next, &[]).await.map_err(failed)?;
        let next = Seq(row.try_get(0).map_err(failed)?);
        let table = row.try_get(1).map_err(failed)?;
        let writers = look_at_writers(client, table, DOING).await?;
        let look = floor.looked(next, writers.open, false);
        Ok(floor.horizon().filter(|_| !look.fell))
    }

    async fn read_ordered(
        &self,
        lease: &Lease,
        sql: &str,
        others: &[&(dyn ToSql + Sync)],
        left_out: Option<&[Seq]>,
        limits: ClaimLimits,
        origin: Origin,
    ) -> Result<Vec<ReadRow>, Error> {
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        let claim = client.prepare_cached(sql).await.map_err(failed)?;
        let limit = i64::from(limits.rows);
        let bytes = i64::try_from(limits.bytes).unwrap_or(i64::MAX);
        let max_message_bytes = i64::try_from(limits.max_message_bytes).unwrap_or(i64::MAX);
        let left_out: Option<Vec<i64>> =
            left_out.map(|left_out| left_out.iter().map(|seq| seq.0).collect());
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&limit, &bytes, &max_message_bytes];
        parameters.extend_from_slice(others);
        if let Some(left_out) = &left_out {
            parameters.push(left_out);
        }
        let rows = client.query_raw(&claim, parameters).await.map_err(failed)?;
        pin_mut!(rows);
        let mut read: Vec<ReadRow> = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            read.push(row::decode_ordered(&row, origin)?);
        }
        // Lane by lane, as far as they came: what has waited longest goes first. By their places, since a row takes half a kilobyte to move.
        read.sort_by_cached_key(|read| read.seq);
        Ok(read)
    }

    fn ordered_claim(
        &self,
        lease: Lease,
        origin: Origin,
        rows: Vec<ReadRow>,
        limits: ClaimLimits,
    ) -> OrderedClaim {
        let full = is_full(rows.len(), limits.rows);
        let mut claim = Claim::of(self.clone(), lease, origin, full);
        let cut_by_bytes = rows.iter().any(|read| read.cut_by_bytes);
        let mut keys = Vec::with_capacity(rows.len());
        let rows = rows.into_iter().map(|ReadRow { seq, row, .. }| {
            let key = match &row {
                OrderedRow::Held { .. } => None,
                OrderedRow::Blocked { key, .. } => Some(key.as_str()),
                OrderedRow::Free(message) => message.key(),
            };
            keys.extend(key.map(|key| (seq.0, key.to_owned())));
            row
        });
        let rows = rows.collect();
        claim.seqs = keys.iter().map(|(seq, _)| *seq).collect();
        claim.keys = KeysOfRows::new(keys);
        OrderedClaim {
            claim,
            rows,
            locked: 0,
            lanes: Vec::new(),
            unblocked: 0,
            cut_by_bytes,
        }
    }
}

impl OrderedClaim {
    /// Ends the transaction of a claim that has nothing to settle.
    async fn end_if_empty(mut self) -> Result<Self, Error> {
        if self.claim.is_empty() {
            if self.unblocked > 0 {
                self.claim.commit().await?;
            } else {
                self.claim.roll_back().await?;
            }
        }
        Ok(self)
    }
}

/// The same limits, for each of so many lanes or keys.
fn share(limits: ClaimLimits, among: usize) -> ClaimLimits {
    let among = u32::try_from(among).unwrap_or(u32::MAX).max(1);
    ClaimLimits {
        rows: (limits.rows / among).max(1),
        ..limits
    }
}

fn is_full(rows: usize, limit: u32) -> bool {
    rows >= usize::try_from(limit).unwrap_or(usize::MAX)
}

fn lane(number: i32) -> Result<Lane, Error> {
    u8::try_from(number)
        .map(Lane)
        .map_err(|_| Error::Settings("the database numbers lanes in a way that is not known here"))
}
