//! Watches `outbox.messages` from one session: what the floor and the frontier of the claims are known by, and
//! the lock that keeps producers from notifying while the relay is awake.
//!
//! Each statement is a transaction of its own, `READ COMMITTED`, with a snapshot of its own. Why they come in the
//! order they do is told in [`Floor`](postrider_core::Floor) and [`Quiet`](postrider_core::Quiet).

use std::collections::HashMap;

use postrider_core::{Seq, TransactionId, Writer};
use tokio_postgres::types::{Oid, ToSql};

use crate::claim::end_of_piece;
use crate::database::{Database, Lease};
use crate::error::Error;
use crate::presence::{LOCK_CLASS, key_of};
use crate::schema_name::Schema;
use crate::writers::look_at_writers;

const DOING: &str = "watch the outbox";

/// How long this session may be silent. A relay that is stopped while it holds the quiet lock would silence every
/// producer for as long as it stays stopped: the server ends its session, and the lock with it.
pub const LONGEST_SILENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxLook {
    /// The `seq` that is given next. Read first.
    pub next: Seq,
    /// Every transaction that held a write lock on the table after that.
    pub writers: Vec<Writer>,
    /// The ids of those that have written a row, as far as they could be told.
    pub ids: HashMap<Writer, TransactionId>,
    /// Whether anybody waited for the lock that `NOTIFY` takes at commit.
    pub notify_contended: bool,
}

/// What a look back found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookBack {
    /// This row is the oldest.
    Free(Seq),
    /// There is none below this place, where the piece ended.
    NoneBelow(Seq),
    /// There is none in the whole range.
    None,
}

/// Watches the table on one connection that it keeps.
///
/// At least once every [`LONGEST_SILENCE`] it is to be asked something, or the server ends it. After an error it is
/// to be dropped, and all that was concluded from its looks with it: a server that crashed and came back, or another
/// one that took over, gives the same `seq` and the same names of transactions once more.
pub struct OutboxWatch {
    database: Database,
    lease: Lease,
    table: Oid,
}

/// The statements of the watch.
pub(crate) struct WatchSql {
    open: String,
    next: String,
    /// By the primary key, up to the first row that is visible.
    pub(crate) oldest: String,
    /// The same of those with a key, by the index that has no others.
    pub(crate) oldest_with_a_key: String,
    /// The same of a piece, up to the first that nobody has locked, and where the piece ends. The lock is gone with the statement.
    pub(crate) free: String,
    hand_over: String,
}

impl WatchSql {
    /// The `seq` that is given next, and the table.
    pub(crate) fn next(&self) -> &str {
        &self.next
    }

    pub(crate) fn new(schema: &Schema) -> Self {
        let between = format!(
            "SELECT seq FROM {schema}.messages WHERE seq >= $1::bigint AND seq < $2::bigint"
        );
        Self {
            // A few statements, asked again and again, whose best plans are always the same: to plan the look at the writers anew took
            // half a millisecond each time, to execute it a fifth of that.
            open: format!(
                "SET idle_session_timeout = {}; SET plan_cache_mode = force_generic_plan",
                LONGEST_SILENCE.as_millis()
            ),
            // The table is asked for each time: a restore makes it another.
            next: format!("SELECT {schema}.next_seq(), to_regclass('{schema}.messages')::oid"),
            // One with a key is none that a claim from the frontier has passed by mistake: it waits there for its lane. Found here, it
            // would have every such claim walk over all that wait with it, again and again.
            free: format!(
                "SELECT free.seq, piece.until \
                 FROM (SELECT {until} AS until OFFSET 0) AS piece \
                 LEFT JOIN LATERAL ( \
                     SELECT m.seq FROM {schema}.messages AS m \
                     WHERE m.seq >= $1::bigint AND m.seq < least($2::bigint, piece.until) AND m.ordering_key IS NULL \
                     ORDER BY m.seq LIMIT 1 FOR UPDATE OF m SKIP LOCKED \
                 ) AS free ON true",
                until = end_of_piece(schema, "$1::bigint")
            ),
            oldest: format!("{between} ORDER BY seq LIMIT 1"),
            oldest_with_a_key: format!(
                "{between} AND ordering_key IS NOT NULL ORDER BY seq LIMIT 1"
            ),
            hand_over: format!(
                "SELECT pg_advisory_unlock_all(); NOTIFY {}",
                schema.wakeup_channel()
            ),
        }
    }
}

impl Database {
    /// Takes a connection of the pool to watch the outbox with, for as long as the watch lives.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn watch_outbox(&self) -> Result<OutboxWatch, Error> {
        let lease = self.lease().await?;
        let failed = |error| Error::query(DOING, error);
        let table = self
            .answer(DOING, async {
                let client = lease.client()?;
                let sql = &self.sql().watch;
                client.batch_execute(&sql.open).await.map_err(failed)?;
                let row = client.query_one(&sql.next, &[]).await.map_err(failed)?;
                row.try_get(1).map_err(failed)
            })
            .await?;
        Ok(OutboxWatch {
            database: self.clone(),
            lease,
            table,
        })
    }
}

impl OutboxWatch {
    /// Takes a look: the next `seq`, then who writes.
    ///
    /// # Errors
    /// What querying can fail with, and [`Error::Replaced`] when the table is another than at the beginning. The watch
    /// is of no use then.
    pub async fn look(&mut self) -> Result<OutboxLook, Error> {
        let looked = async {
            let failed = |error| Error::query(DOING, error);
            let client = self.lease.client()?;
            let next = client
                .prepare_cached(&self.database.sql().watch.next)
                .await
                .map_err(failed)?;
            let row = client.query_one(&next, &[]).await.map_err(failed)?;
            let next = Seq(row.try_get(0).map_err(failed)?);
            let table: Option<Oid> = row.try_get(1).map_err(failed)?;
            if table != Some(self.table) {
                return Err(Error::Replaced {
                    schema: self.database.schema().clone(),
                });
            }
            let writers = look_at_writers(client, table, DOING).await?;
            Ok(OutboxLook {
                next,
                writers: writers.open,
                ids: writers.ids,
                notify_contended: writers.notify_contended,
            })
        };
        self.database.answer(DOING, looked).await
    }

    /// The oldest visible row from `from` on (the beginning if not given) and below `below`.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn oldest(&mut self, from: Option<Seq>, below: Seq) -> Result<Option<Seq>, Error> {
        let sql = &self.database.sql().watch.oldest;
        self.first(sql, from, below).await
    }

    /// The oldest visible row with a key in the same range.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn oldest_with_a_key(
        &mut self,
        from: Option<Seq>,
        below: Seq,
    ) -> Result<Option<Seq>, Error> {
        let sql = &self.database.sql().watch.oldest_with_a_key;
        self.first(sql, from, below).await
    }

    /// The oldest row without a key in a piece of the same range that nobody has locked. It is locked for a moment: a claim
    /// at that moment passes over it.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn oldest_free(&mut self, from: Option<Seq>, below: Seq) -> Result<LookBack, Error> {
        let failed = |error| Error::query(DOING, error);
        let look_back = async {
            let client = self.lease.client()?;
            let sql = &self.database.sql().watch.free;
            let statement = client.prepare_cached(sql).await.map_err(failed)?;
            let row = client
                .query_one(&statement, &[&bound(from), &below.0])
                .await;
            let row = row.map_err(failed)?;
            let free: Option<i64> = row.try_get(0).map_err(failed)?;
            let until: Option<i64> = row.try_get(1).map_err(failed)?;
            Ok(match (free, until.map(Seq)) {
                (Some(free), _) => LookBack::Free(Seq(free)),
                (None, Some(until)) if until < below => LookBack::NoneBelow(until),
                (None, _) => LookBack::None,
            })
        };
        self.database.answer(DOING, look_back).await
    }

    async fn first(&self, sql: &str, from: Option<Seq>, below: Seq) -> Result<Option<Seq>, Error> {
        let failed = |error| Error::query(DOING, error);
        let first = async {
            let client = self.lease.client()?;
            let statement = client.prepare_cached(sql).await.map_err(failed)?;
            let from = bound(from);
            let row = client.query_opt(&statement, &[&from, &below.0]).await;
            row.map_err(failed)?
                .map(|row| row.try_get(0).map(Seq))
                .transpose()
                .map_err(failed)
        };
        self.database.answer(DOING, first).await
    }

    /// Tries to take the lock by which producers know that a relay is awake, and need not notify it. False when another
    /// relay has it, or when a producer happens to ask for it.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn try_quiet(&mut self) -> Result<bool, Error> {
        self.lock("SELECT pg_try_advisory_lock($1, $2)", self.quiet_key())
            .await
    }

    /// Gives the lock up: from now on producers notify.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn end_quiet(&mut self) -> Result<(), Error> {
        self.lock("SELECT pg_advisory_unlock($1, $2)", self.quiet_key())
            .await
            .map(|_| ())
    }

    /// Tries to become the relay that sweeps this outbox. It stays so until the watch is dropped.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn try_sweeping(&mut self) -> Result<bool, Error> {
        let key = key_of("sweep", self.database.schema());
        self.lock("SELECT pg_try_advisory_lock($1, $2)", key).await
    }

    /// Gives every lock up and wakes the other relays: what was silenced by this one and is not committed yet
    /// is theirs to watch.
    ///
    /// # Errors
    /// As [`OutboxWatch::look`].
    pub async fn hand_over(&mut self) -> Result<(), Error> {
        let hand_over = async {
            self.lease
                .client()?
                .batch_execute(&self.database.sql().watch.hand_over)
                .await
                .map_err(|error| Error::query(DOING, error))
        };
        self.database.answer(DOING, hand_over).await
    }

    /// As the trigger of the table writes it.
    fn quiet_key(&self) -> i32 {
        self.table.cast_signed()
    }

    async fn lock(&self, sql: &str, key: i32) -> Result<bool, Error> {
        let failed = |error| Error::query(DOING, error);
        let parameters: [&(dyn ToSql + Sync); 2] = [&LOCK_CLASS, &key];
        let locked = async {
            let client = self.lease.client()?;
            let statement = client.prepare_cached(sql).await.map_err(failed)?;
            let row = client.query_one(&statement, &parameters).await;
            row.map_err(failed)?.try_get(0).map_err(failed)
        };
        self.database.answer(DOING, locked).await
    }
}

/// As a bound of a query: below every `seq` where there is none.
pub(crate) fn bound(from: Option<Seq>) -> i64 {
    from.map_or(i64::MIN, |from| from.0)
}

impl std::fmt::Debug for OutboxWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboxWatch")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
