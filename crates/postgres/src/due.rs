//! Looks for deferred messages that are due, from a floor on: a due time below which none is left and
//! none can appear.
//!
//! The index on `(due_at, seq)` still has an entry for each row that was moved out and that vacuum may
//! not remove yet, because of an old snapshot somewhere in the database. Every look at what is due would
//! walk over all of them. How the floor is known, and what would break it, is told in
//! [`Floor`]; here a position is a due time, and the next one is the database's clock. Whoever writes
//! a row takes `clock_timestamp()` at least, in the statement that writes it, so under the lock by which
//! it is seen.

use std::time::{Duration, SystemTime};

use postgres_types::Timestamp;
use postrider_core::{Ask, Floor};
use tokio_postgres::types::Oid;

use crate::database::{Database, Lease};
use crate::error::Error;
use crate::schema_name::Schema;
use crate::writers::look_at_writers;

const DOING: &str = "look for due messages";

/// A point in time by the database's clock, to its last digit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DueTime(SystemTime);

impl DueTime {
    fn until(self, due: Self) -> Duration {
        due.0.duration_since(self.0).unwrap_or_default()
    }
}

/// As a bound of a query: before every other where there is none.
pub(crate) fn bound(from: Option<DueTime>) -> Timestamp<SystemTime> {
    from.map_or(Timestamp::NegInfinity, |from| Timestamp::Value(from.0))
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueLook {
    /// How long until the first deferred message is due, by the database's clock: zero when one is due
    /// now, `None` when there is none.
    ///
    /// One that another claim has locked counts as well: a caller that finds nothing to claim has to
    /// pause.
    pub next_due: Option<Duration>,
    /// No deferred message is due before this, and none will be: where claims may begin. `None` while
    /// that is not known. It may be lower than that of the look before, and then the older one no longer
    /// holds.
    pub from: Option<DueTime>,
}

/// Looks for what is due next, again and again, on one connection that it keeps.
///
/// After an error it is to be dropped, with every floor it gave: a server that crashed and came back, or
/// another one that took over, names other transactions the same.
pub struct DueWatch {
    database: Database,
    lease: Lease,
    table: Option<Oid>,
    floor: Floor<DueTime>,
}

/// The statements of a look, each a transaction of its own with a snapshot of its own, in this order.
pub(crate) struct DueSql {
    /// The table's OID is asked for each time: a restore makes it another.
    clock: String,
    pub(crate) first: String,
}

impl DueSql {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            clock: format!("SELECT clock_timestamp(), to_regclass('{schema}.deferred')::oid"),
            // Reads one entry of the index on (due_at, seq), and nothing else where vacuum has been.
            first: format!(
                "SELECT due_at, clock_timestamp() FROM {schema}.deferred \
                 WHERE due_at >= $1::timestamptz ORDER BY due_at, seq LIMIT 1"
            ),
        }
    }
}

impl Database {
    /// Takes a connection of the pool to look for due messages with, for as long as the watch lives.
    ///
    /// # Errors
    /// What connecting can fail with.
    pub async fn watch_due(&self) -> Result<DueWatch, Error> {
        Ok(DueWatch {
            database: self.clone(),
            lease: self.lease().await?,
            table: None,
            floor: Floor::new(),
        })
    }
}

impl DueWatch {
    /// Looks at what is due next, from the floor on, and raises the floor as far as that shows.
    ///
    /// # Errors
    /// What querying can fail with. The watch is of no use then.
    pub async fn look(&mut self) -> Result<DueLook, Error> {
        self.look_in_time(false).await
    }

    /// The same from the beginning: finds what is below the floor all the same, written there by hand or
    /// by a partial restore, or while the clock went back and came forward again between two looks. It
    /// walks over all that vacuum has not removed.
    ///
    /// # Errors
    /// As [`DueWatch::look`].
    pub async fn look_at_all(&mut self) -> Result<DueLook, Error> {
        self.look_in_time(true).await
    }

    async fn look_in_time(&mut self, all: bool) -> Result<DueLook, Error> {
        let database = self.database.clone();
        database.answer(DOING, self.look_from(all)).await
    }

    async fn look_from(&mut self, all: bool) -> Result<DueLook, Error> {
        let failed = |error| Error::query(DOING, error);
        let client = self.lease.client()?;
        let sql = &self.database.sql().due;

        let clock = client.prepare_cached(&sql.clock).await.map_err(failed)?;
        let row = client.query_one(&clock, &[]).await.map_err(failed)?;
        let now = row.try_get(0).map(DueTime).map_err(failed)?;
        let table: Option<Oid> = row.try_get(1).map_err(failed)?;
        if table != self.table {
            self.floor.reset();
            self.table = table;
        }

        let writers = look_at_writers(client, table, DOING).await?;
        self.floor.looked(now, writers.open, true);

        let ask = self.floor.ask();
        let floor = self.floor.floor();
        let from = if all { None } else { floor };
        let first = client.prepare_cached(&sql.first).await.map_err(failed)?;
        let row = client
            .query_opt(&first, &[&bound(from)])
            .await
            .map_err(failed)?;
        let Some(row) = row else {
            self.raise(ask, None);
            return Ok(self.looked(None));
        };
        let due_at = row.try_get(0).map(DueTime).map_err(failed)?;
        let now = row.try_get(1).map(DueTime).map_err(failed)?;
        if Some(due_at) < floor {
            tracing::debug!("a deferred message is due before any that could be");
            self.floor.found_below(due_at);
        } else {
            self.raise(ask, Some(due_at));
        }
        Ok(self.looked(Some(now.until(due_at))))
    }

    /// What lies at the horizon or beyond is no answer to the question, and does not change it.
    fn raise(&mut self, ask: Option<Ask<DueTime>>, first: Option<DueTime>) {
        if let Some(ask) = ask {
            self.floor.raise(ask, first);
        }
    }

    fn looked(&self, next_due: Option<Duration>) -> DueLook {
        DueLook {
            next_due,
            from: self.floor.floor(),
        }
    }
}

impl std::fmt::Debug for DueWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DueWatch")
            .field("floor", &self.floor.floor())
            .finish_non_exhaustive()
    }
}
