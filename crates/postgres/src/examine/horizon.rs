//! What keeps vacuum from removing rows that were sent.

use std::time::Duration;

use crate::database::Database;
use crate::error::Error;

/// An open transaction: vacuum keeps all that was deleted since it began.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    /// What it is.
    pub by: HeldBy,
    /// How long it has been open; `None` where this role may not see it.
    pub age: Option<Duration>,
    /// How many transactions have begun since.
    pub transactions: i64,
}

/// Which kind of transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldBy {
    /// One of a session.
    Session {
        /// Its process on the server.
        pid: i32,
        /// Its role; empty where it has none.
        role: String,
        /// What it calls itself.
        application: String,
    },
    /// One that was prepared, and that nobody has ended: it outlives its session, and the server.
    Prepared {
        /// Its name.
        name: String,
        /// Whose it is.
        owner: String,
    },
}

/// A replication slot that holds something back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its name.
    pub name: String,
    /// Whether anybody reads from it now.
    pub active: bool,
    /// How many transactions ago the oldest began whose deleted rows it keeps, in every table.
    pub transactions: Option<i64>,
}

impl Database {
    /// The transactions of this database, and those of standbys, that hold vacuum back: a hundred at most of each
    /// kind, the oldest first.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn open_transactions(&self) -> Result<Vec<Holder>, Error> {
        const DOING: &str = "look for open transactions";
        // Vacuum does not wait for vacuum. Every role sees process, role, application and horizon of every session,
        // but not since when its transaction is open.
        const SESSIONS: &str = "SELECT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, ''), \
             extract(epoch FROM clock_timestamp() - a.xact_start)::float8, \
             age(coalesce(a.backend_xmin, a.backend_xid))::bigint AS transactions \
             FROM pg_stat_activity AS a \
             WHERE coalesce(a.backend_xmin, a.backend_xid) IS NOT NULL AND a.pid <> pg_backend_pid() \
               AND (a.datname = current_database() OR a.datid IS NULL) \
               AND a.backend_type IS DISTINCT FROM 'autovacuum worker' \
             ORDER BY transactions DESC LIMIT 100";
        const PREPARED: &str = "SELECT gid, owner::text, \
             extract(epoch FROM clock_timestamp() - prepared)::float8, age(transaction)::bigint \
             FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 100";
        let failed = |error| Error::query(DOING, error);
        let mut holders = Vec::new();
        for row in self.ask(DOING, SESSIONS, &[]).await? {
            holders.push(Holder {
                by: HeldBy::Session {
                    pid: row.try_get(0).map_err(failed)?,
                    role: row.try_get(1).map_err(failed)?,
                    application: row.try_get(2).map_err(failed)?,
                },
                age: row
                    .try_get::<_, Option<f64>>(3)
                    .map_err(failed)?
                    .map(seconds),
                transactions: row.try_get(4).map_err(failed)?,
            });
        }
        for row in self.ask(DOING, PREPARED, &[]).await? {
            holders.push(Holder {
                by: HeldBy::Prepared {
                    name: row.try_get(0).map_err(failed)?,
                    owner: row.try_get(1).map_err(failed)?,
                },
                age: row
                    .try_get::<_, Option<f64>>(2)
                    .map_err(failed)?
                    .map(seconds),
                transactions: row.try_get(3).map_err(failed)?,
            });
        }
        Ok(holders)
    }

    /// The replication slots that keep deleted rows, of tables or of the catalogue alone.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn replication_slots(&self) -> Result<Vec<SlotFacts>, Error> {
        const DOING: &str = "look at the replication slots";
        const SQL: &str = "SELECT slot_name::text, active, age(xmin)::bigint FROM pg_replication_slots \
             WHERE (xmin IS NOT NULL OR catalog_xmin IS NOT NULL) \
               AND (database = current_database() OR database IS NULL) ORDER BY slot_name LIMIT 100";
        let failed = |error| Error::query(DOING, error);
        self.ask(DOING, SQL, &[])
            .await?
            .iter()
            .map(|row| {
                Ok(SlotFacts {
                    name: row.try_get(0).map_err(failed)?,
                    active: row.try_get(1).map_err(failed)?,
                    transactions: row.try_get(2).map_err(failed)?,
                })
            })
            .collect()
    }
}

/// As the server counts them; a clock that was set back makes them negative.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
