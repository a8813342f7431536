//! Claims of messages with a key: by lane, and of what was parked by key.
//!
//! Both lock lanes first, by advisory locks that go with the transaction, trying and never waiting; and only then, by a statement
//! and so a snapshot of its own, read the rows. A snapshot taken before the lock might show a key as free which another
//! relay, that had the lane, has just blocked.
//!
//! Rows are read in order without locking them, and locked then: `SKIP LOCKED` alone would go on with the second message of a key
//! whose first an operator has locked. One that could not be locked is returned as held, and what follows it in its key
//! is not taken.

use std::collections::HashMap;

use futures_util::{TryStreamExt, future, pin_mut};
use postgres_types::{ToSql, Type};
use postrider_core::{Floor, Lane, LaneStart, OrderedRow, Origin, Seq};

use crate::claim::{Claim, ClaimLimits, SIZE, begin};
use crate::database::{Database, Lease};
use crate::error::Error;
use crate::late::delete_confirmed_sql;
use crate::presence::key_of;
use crate::row;
use crate::row::standing;
use crate::schema_name::Schema;
use crate::settle::SettleSql;
use crate::watch;
use crate::writers::look_at_writers;

/// The first half of the keys of the lanes' locks: `lane` in ASCII.
const LANE_LOCK_CLASS: i32 = 0x6c61_6e65;

/// How many rows a look at what waits reads. Where there are more, each lane is looked at instead.
const LOOKED_THROUGH: i64 = 1_000;

/// The lane of a row `m`, as the index has it.
pub(crate) const LANE: &str = "(hashtextextended(m.ordering_key COLLATE \"C\", 0) & 255)::integer";

/// The statements for messages with a key.
pub(crate) struct OrderedSql {
    /// The lanes of the first rows from `$1` on.
    pub(crate) waiting: String,
    /// Of the lanes `$1`, each with its beginning `$2`, those that have rows.
    pub(crate) lanes: String,
    /// Of the lanes `$2`, those whose lock, of the class `$1` and with the number `$3` plus the lane, could be had.
    lock: String,
    /// As long as nobody else has locked any of the rows.
    pub(crate) claim_unlocked: String,
    pub(crate) claim: String,
    /// Keys from `$1` on whose head is gone, `$2` of them.
    pub(crate) resuming: String,
    /// Makes those due that became the first of their key while somebody had them locked.
    wake_heads: String,
    /// Frees those of the keys `$1` that have nothing parked.
    pub(crate) unblock: String,
    pub(crate) claim_parked: String,
    pub(crate) settle: SettleSql,
    pub(crate) delete_confirmed: String,
}

impl OrderedSql {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            waiting: format!(
                "SELECT lane, min(seq), count(*) FROM ( \
                     SELECT {LANE} AS lane, m.seq FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND m.seq >= $1::bigint ORDER BY m.seq LIMIT {LOOKED_THROUGH} \
                 ) AS looked GROUP BY lane"
            ),
            lanes: format!(
                "SELECT l.lane FROM unnest($1::integer[], $2::bigint[]) AS l (lane, start) \
                 CROSS JOIN LATERAL ( \
                     SELECT FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND {LANE} = l.lane AND m.seq >= l.start LIMIT 1 \
                 ) AS any_row"
            ),
            lock: "SELECT lane FROM unnest($2::integer[]) AS l (lane) WHERE pg_try_advisory_xact_lock($1::integer, $3::integer + lane)"
                .to_owned(),
            claim_unlocked: claim_unlocked_sql(schema),
            claim: claim_sql(schema, Origin::Messages),
            resuming: format!(
                "SELECT m.ordering_key, {LANE} FROM {schema}.blocked_keys AS m \
                 WHERE m.head_seq IS NULL AND m.ordering_key >= $1::text COLLATE \"C\" ORDER BY m.ordering_key LIMIT $2::bigint"
            ),
            // By the index on (due_at, seq): few are that late.
            wake_heads: format!(
                "UPDATE {schema}.deferred SET due_at = clock_timestamp() WHERE seq = ANY (ARRAY ( \
                     SELECT m.seq FROM {schema}.deferred AS m \
                     JOIN {schema}.blocked_keys AS b ON b.ordering_key = m.ordering_key COLLATE \"C\" AND b.head_seq = m.seq \
                     WHERE m.due_at = '9999-12-31 00:00:00+00' ORDER BY m.seq LIMIT 1000 FOR UPDATE OF m SKIP LOCKED))"
            ),
            unblock: unblock_sql(schema),
            claim_parked: claim_sql(schema, Origin::Parked),
            settle: SettleSql::new(schema, Origin::Parked),
            delete_confirmed: delete_confirmed_sql(schema, Origin::Parked),
        }
    }
}

/// Unblocks those of the keys `$1` that no head holds and that have nothing parked. Under their lanes' locks.
pub(crate) fn unblock_sql(schema: &Schema) -> String {
    format!(
        "DELETE FROM {schema}.blocked_keys AS b WHERE b.ordering_key = ANY ($1::text[]) AND b.head_seq IS NULL \
           AND NOT EXISTS (SELECT FROM {schema}.parked AS p \
                           WHERE p.ordering_key COLLATE \"C\" = b.ordering_key AND p.seq >= b.resume_from)"
    )
}

/// Reads, in the order of `seq`, at most `$1` rows of each lane or key, locks those that nobody else has locked and that are not among
/// the left out, and returns all: with its payload each that is free and within the bytes.
///
/// Of `messages`: `$4` are the lanes, `$5` where each begins, `$6` where all end, `$7` the left out. The index on lane and
/// seq is read once for each lane, since by one condition for all of them the planner would rather read the primary key through. Of `parked`:
/// `$4` are the keys, `$5` the left out; the index on key and seq is read from where the key is to be resumed.
fn claim_sql(schema: &Schema, origin: Origin) -> String {
    let (table, candidates, left_out) = match origin {
        Origin::Messages | Origin::Deferred => (
            "messages",
            format!(
                "SELECT c.seq, c.ordering_key, l.lane FROM unnest($4::integer[], $5::bigint[]) AS l (lane, start) \
                 CROSS JOIN LATERAL ( \
                     SELECT m.seq, m.ordering_key FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND {LANE} = l.lane AND m.seq >= l.start AND m.seq < $6::bigint \
                     ORDER BY m.seq LIMIT $1::bigint \
                 ) AS c"
            ),
            7,
        ),
        Origin::Parked => (
            "parked",
            format!(
                "SELECT c.seq, b.ordering_key, 0 AS lane FROM {schema}.blocked_keys AS b \
                 CROSS JOIN LATERAL ( \
                     SELECT p.seq FROM {schema}.parked AS p \
                     WHERE p.ordering_key COLLATE \"C\" = b.ordering_key AND p.seq >= b.resume_from \
                     ORDER BY p.seq LIMIT $1::bigint \
                 ) AS c \
                 WHERE b.ordering_key = ANY ($4::text[]) AND b.head_seq IS NULL"
            ),
            5,
        ),
    };
    // Whatever is parked was blocked, and its key is still in the table.
    let blocked = match origin {
        Origin::Messages | Origin::Deferred => format!(
            "EXISTS (SELECT FROM {schema}.blocked_keys AS b WHERE b.ordering_key = c.ordering_key COLLATE \"C\")"
        ),
        Origin::Parked => "false".to_owned(),
    };
    let (held, free, is_blocked) = (standing::HELD, standing::FREE, standing::BLOCKED);
    let rows = format!(
        "SELECT c.seq, c.ordering_key, c.lane, m.id, m.exchange, m.routing_key, m.payload, m.payload_json, \
                {SIZE} AS size, m.headers, m.content_type, m.content_encoding, m.type, m.correlation_id, m.reply_to, \
                m.app_id, m.priority, m.expiration, m.created_at, m.supersede, \
                CASE WHEN m.seq IS NULL THEN {held} WHEN {blocked} THEN {is_blocked} ELSE {free} END AS standing \
         FROM candidates AS c LEFT JOIN locked AS m ON m.seq = c.seq AND m.ordering_key = c.ordering_key COLLATE \"C\""
    );
    format!(
        "WITH candidates AS MATERIALIZED ({candidates}), \
              locked AS MATERIALIZED ( \
                  SELECT m.* FROM {schema}.{table} AS m \
                  WHERE m.seq = ANY (ARRAY (SELECT seq FROM candidates)) AND m.seq <> ALL (${left_out}::bigint[]) \
                  FOR UPDATE OF m SKIP LOCKED \
              ) \
         {}",
        bounded(&rows, "ORDER BY seq")
    )
}

/// The same of `messages`, lane by lane, with nothing left out, and an error instead of a row that is held: half the cost, since each row is
/// found once and locked where it is found.
fn claim_unlocked_sql(schema: &Schema) -> String {
    let (free, is_blocked) = (standing::FREE, standing::BLOCKED);
    bounded(
        &format!(
            "SELECT m.seq, m.ordering_key, l.lane, m.id, m.exchange, m.routing_key, m.payload, m.payload_json, \
                    {SIZE} AS size, m.headers, m.content_type, m.content_encoding, m.type, m.correlation_id, m.reply_to, \
                    m.app_id, m.priority, m.expiration, m.created_at, m.supersede, \
                    CASE WHEN (SELECT true FROM {schema}.blocked_keys AS b WHERE b.ordering_key = m.ordering_key COLLATE \"C\") \
                         THEN {is_blocked} ELSE {free} END AS standing \
             FROM unnest($4::integer[], $5::bigint[]) AS l (lane, start) \
             CROSS JOIN LATERAL ( \
                 SELECT m.* FROM {schema}.messages AS m \
                 WHERE m.ordering_key IS NOT NULL AND {LANE} = l.lane AND m.seq >= l.start AND m.seq < $6::bigint \
                 ORDER BY m.seq LIMIT $1::bigint FOR UPDATE OF m NOWAIT \
             ) AS m"
        ),
        "",
    )
}

/// Rows with their standing, as they are returned: with its payload each that is free and within the bytes, which are shared out in this order.
///
/// The offset keeps the standing from being found out anew wherever it is named.
fn bounded(rows: &str, order: &str) -> String {
    let free = standing::FREE;
    format!(
        "SELECT seq, id, exchange, routing_key, \
                CASE WHEN is_taken AND standing = {free} AND size <= $3::bigint THEN payload END, \
                CASE WHEN is_taken AND standing = {free} AND size <= $3::bigint THEN payload_json END, \
                size, headers, content_type, content_encoding, type, correlation_id, reply_to, app_id, \
                priority, expiration, created_at, clock_timestamp(), is_taken, ordering_key, supersede, standing, lane \
         FROM ( \
             SELECT measured.*, sum(bytes) OVER ({order} ROWS UNBOUNDED PRECEDING) - bytes < greatest($2::bigint, 1) AS is_taken \
             FROM ( \
                 SELECT stood.*, \
                        CASE WHEN standing <> {free} THEN 0 \
                             ELSE CASE WHEN size > $3::bigint THEN 0 ELSE size END \
                                  + CASE WHEN headers = '{{}}' THEN 0 ELSE octet_length(headers::text) END END AS bytes \
                 FROM ({rows} OFFSET 0) AS stood \
             ) AS measured \
         ) AS bounded {order}"
    )
}

/// Which lanes have messages that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitingLanes {
    /// Their lanes, in no order.
    pub lanes: Vec<Lane>,
    /// The lowest message with a key there was, from where the look began.
    pub lowest: Option<Seq>,
    /// So many wait that another claim will find some in each of them.
    pub many: bool,
}

/// Rows of lanes, or of keys that are resumed, locked with their lanes until they are settled or released.
#[derive(Debug)]
#[must_use = "a claim that is dropped closes its connection"]
pub struct OrderedClaim {
    /// To be settled. It has no messages of its own.
    pub claim: Claim,
    /// What was read, in the order of `seq`.
    pub rows: Vec<OrderedRow>,
    /// Each lane that was locked, and what was read of it.
    pub lanes: Vec<ReadLane>,
    /// Whether all that was asked for was locked.
    pub all_locked: bool,
}

/// What a claim read of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLane {
    /// The lane.
    pub lane: Lane,
    /// The rows, ascending.
    pub seqs: Vec<Seq>,
    /// Whether there may be more.
    pub more: bool,
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
    /// The lanes of messages with a key at or above `from`, the beginning if not given. Where many wait, every lane of `starts` is looked
    /// at by itself, so that none is hidden by the others.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn waiting_lanes(
        &self,
        from: Option<Seq>,
        starts: impl FnOnce() -> Vec<LaneStart>,
    ) -> Result<WaitingLanes, Error> {
        const DOING: &str = "look for messages in order";
        let failed = |error| Error::query(DOING, error);
        let lease = self.lease().await?;
        let sql = &self.sql().ordered;
        let found = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client.prepare_cached(&sql.waiting).await.map_err(failed)?;
                // Within a transaction for its setting alone: to plan these two anew costs as much as they do.
                let from = watch::bound(from);
                let parameters: [&(dyn ToSql + Sync); 1] = [&from];
                let (begun, rows) = future::join(
                    client.batch_execute(begin(Origin::Messages)),
                    client.query(&statement, &parameters),
                )
                .await;
                begun.map_err(failed)?;
                let mut found = WaitingLanes::default();
                let mut looked_through = 0;
                for row in rows.map_err(failed)? {
                    found.lanes.push(lane(row.try_get(0).map_err(failed)?)?);
                    let lowest = Seq(row.try_get(1).map_err(failed)?);
                    found.lowest = Some(found.lowest.map_or(lowest, |known| known.min(lowest)));
                    looked_through += row.try_get::<_, i64>(2).map_err(failed)?;
                }
                found.many = looked_through >= LOOKED_THROUGH;
                if found.many {
                    let (lanes, from) = arrays(&starts());
                    let statement = client.prepare_cached(&sql.lanes).await.map_err(failed)?;
                    let rows = client.query(&statement, &[&lanes, &from]).await;
                    found.lanes.clear();
                    for row in rows.map_err(failed)? {
                        found.lanes.push(lane(row.try_get(0).map_err(failed)?)?);
                    }
                }
                client.batch_execute("COMMIT").await.map_err(failed)?;
                Ok(found)
            })
            .await?;
        lease.give_back();
        Ok(found)
    }

    /// Locks those of the lanes that nobody else has, and of each the first rows that are there, `limits.rows` of all of them at most, except
    /// the `left_out`, and opens the transaction in which they are to be settled. `horizon`: the floor of the watch, if only what no
    /// transaction can get in front of any more is to be claimed; it takes a look of its own.
    ///
    /// # Errors
    /// As [`Database::claim_fresh`].
    pub async fn claim_lanes(
        &self,
        limits: ClaimLimits,
        starts: &[LaneStart],
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
        starts: &[LaneStart],
        left_out: Option<&[Seq]>,
        horizon: Option<Floor<Seq>>,
    ) -> Result<Option<OrderedClaim>, Error> {
        let lanes: Vec<Lane> = starts.iter().map(|start| start.lane).collect();
        let claimed = async {
            let lease = self.lease().await?;
            let locked = self.lock_lanes(&lease, &lanes).await?;
            let end = match horizon {
                _ if locked.is_empty() => i64::MIN,
                None => i64::MAX,
                Some(floor) => self
                    .horizon(&lease, floor)
                    .await?
                    .map_or(i64::MIN, |end| end.0),
            };
            let starts: Vec<LaneStart> = starts
                .iter()
                .filter(|start| locked.contains(&start.lane))
                .copied()
                .collect();
            let (numbers, from) = arrays(&starts);
            let limits = share(limits, starts.len());
            let sql = &self.sql().ordered;
            let sql = match left_out {
                Some(_) => &sql.claim,
                None => &sql.claim_unlocked,
            };
            let others: [&(dyn ToSql + Sync); 3] = [&numbers, &from, &end];
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
            let mut of_lane: HashMap<Lane, Vec<Seq>> = HashMap::new();
            for (lane, seq, _) in &rows {
                of_lane.entry(*lane).or_default().push(*seq);
            }
            let read = starts.iter().map(|start| {
                let seqs = of_lane.remove(&start.lane).unwrap_or_default();
                ReadLane {
                    lane: start.lane,
                    more: end != i64::MAX || is_full(seqs.len(), limits.rows),
                    seqs,
                }
            });
            let read: Vec<ReadLane> = read.collect();
            Ok(Some((lease, read, rows)))
        };
        let Some((lease, read, rows)) = self.answer(DOING, claimed).await? else {
            return Ok(None);
        };
        let mut claim = self.ordered_claim(lease, Origin::Messages, rows, limits);
        claim.all_locked = read.len() == lanes.len();
        claim.lanes = read;
        claim.end_if_empty(false).await.map(Some)
    }

    /// Up to `most` keys whose head is gone, from this one on in the order of their bytes.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn resuming_keys(&self, from: &str, most: u32) -> Result<Vec<ResumingKey>, Error> {
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
                let rows = client.query(&statement, &[&from, &i64::from(most)]).await;
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

    /// Locks the lanes of these keys, unblocks those of them that have nothing parked any more, and locks the first parked rows of the others,
    /// `limits.rows` of all of them at most. Keys that have a head again meanwhile, or whose lane someone else has, are left.
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
        claim.all_locked = locked == lanes.len();
        claim.end_if_empty(unblocked > 0).await
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
    ) -> Result<Vec<(Lane, Seq, OrderedRow)>, Error> {
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
        let mut read = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            read.push(row::decode_ordered(&row, origin)?);
        }
        // Lane by lane, as far as they came: what has waited longest goes first.
        read.sort_unstable_by_key(|(_, seq, _)| *seq);
        Ok(read)
    }

    fn ordered_claim(
        &self,
        lease: Lease,
        origin: Origin,
        rows: Vec<(Lane, Seq, OrderedRow)>,
        limits: ClaimLimits,
    ) -> OrderedClaim {
        let full = is_full(rows.len(), limits.rows);
        let mut claim = Claim::of(self.clone(), lease, origin, full);
        let rows = rows.into_iter().map(|(_, seq, row)| {
            match &row {
                OrderedRow::Held { .. } => {}
                OrderedRow::Blocked { key, .. } => {
                    claim.seqs.push(seq.0);
                    claim.keys.insert(seq.0, key.clone());
                }
                OrderedRow::Free(message) => {
                    claim.seqs.push(seq.0);
                    let key = message.key().unwrap_or_default();
                    claim.keys.insert(seq.0, key.to_owned());
                }
            }
            row
        });
        let rows = rows.collect();
        OrderedClaim {
            claim,
            rows,
            lanes: Vec::new(),
            all_locked: false,
        }
    }
}

impl OrderedClaim {
    /// Ends the transaction of a claim that has nothing to settle.
    async fn end_if_empty(mut self, changed: bool) -> Result<Self, Error> {
        if self.claim.is_empty() {
            if changed {
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

fn arrays(starts: &[LaneStart]) -> (Vec<i32>, Vec<i64>) {
    starts
        .iter()
        .map(|start| (i32::from(start.lane.0), watch::bound(start.from)))
        .unzip()
}

fn lane(number: i32) -> Result<Lane, Error> {
    u8::try_from(number)
        .map(Lane)
        .map_err(|_| Error::Settings("the database numbers lanes in a way that is not known here"))
}
