//! The server, this session and what is left of its connections.

use std::time::{Duration, SystemTime};

use tokio_postgres::SimpleQueryMessage;

use crate::database::{Database, Lease};
use crate::error::Error;

/// What the server says of itself and of this session.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerFacts {
    /// Its clock, and this machine's half-way between question and answer.
    pub clock: (SystemTime, SystemTime),
    /// Half of the time between question and answer: the clocks are known to this.
    pub clock_known_to: Duration,
    /// Whether it flushes commits to disk.
    pub fsync: bool,
    /// Whether a torn page is mended after a crash.
    pub full_page_writes: bool,
    /// `synchronous_commit` of this session: of its role and database, where no role has another.
    pub synchronous_commit: String,
    /// Whether commits are to wait for standbys.
    pub has_synchronous_standbys: bool,
    /// Whether autovacuum runs, and has the statistics that it goes by.
    pub autovacuum: bool,
    /// How many sessions the server takes from a role such as this one.
    pub max_connections: i64,
    /// How many there are.
    pub connections: i64,
    /// How many the role may have; `None` for any number.
    pub role_limit: Option<i64>,
    /// How many it has.
    pub role_connections: i64,
    /// How many the database may have; `None` for any number.
    pub database_limit: Option<i64>,
    /// How many it has.
    pub database_connections: i64,
    /// How full the queue of notifications is, 0 to 1. A producer that notifies fails when it is full.
    pub notify_queue: f64,
    /// The version of TLS of this session, `None` for plain text.
    pub tls: Option<String>,
    /// Whether this role sees since when the sessions of others run.
    pub sees_others: bool,
}

impl Database {
    /// Asks for all of it, in one statement.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn server_facts(&self) -> Result<ServerFacts, Error> {
        const DOING: &str = "ask for the server's settings";
        /// Superusers are bound by neither the reserved connections nor a limit of their own.
        const SQL: &str = "SELECT clock_timestamp(), \
             current_setting('fsync')::bool, current_setting('full_page_writes')::bool, \
             current_setting('synchronous_commit'), current_setting('synchronous_standby_names') <> '', \
             current_setting('autovacuum')::bool AND current_setting('track_counts')::bool, \
             (current_setting('max_connections')::int - CASE WHEN r.rolsuper THEN 0 ELSE \
                 current_setting('superuser_reserved_connections')::int \
                 + coalesce(current_setting('reserved_connections', true)::int, 0) END)::bigint, \
             (SELECT coalesce(sum(numbackends), 0)::bigint FROM pg_stat_database), \
             CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END::bigint, \
             (SELECT count(*) FROM pg_stat_activity AS a WHERE a.usesysid = r.oid), \
             CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END::bigint, \
             pg_stat_get_db_numbackends(d.oid)::bigint, \
             pg_notification_queue_usage(), \
             (SELECT s.version FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid() AND s.ssl), \
             pg_has_role('pg_read_all_stats', 'USAGE') \
             FROM pg_roles AS r, pg_database AS d \
             WHERE r.rolname = session_user AND d.datname = current_database()";
        let failed = |error| Error::query(DOING, error);
        // The clock is asked for on a connection that is there already.
        let lease = self.lease().await?;
        let before = SystemTime::now();
        let row = self
            .answer(DOING, async {
                let client = lease.client()?;
                client.query_one(SQL, &[]).await.map_err(failed)
            })
            .await?;
        let known_to = before.elapsed().unwrap_or_default() / 2;
        lease.give_back();
        let limit = |position| -> Result<Option<i64>, Error> {
            let limit: i64 = row.try_get(position).map_err(failed)?;
            Ok((limit >= 0).then_some(limit))
        };
        Ok(ServerFacts {
            clock: (row.try_get(0).map_err(failed)?, before + known_to),
            clock_known_to: known_to,
            fsync: row.try_get(1).map_err(failed)?,
            full_page_writes: row.try_get(2).map_err(failed)?,
            synchronous_commit: row.try_get(3).map_err(failed)?,
            has_synchronous_standbys: row.try_get(4).map_err(failed)?,
            autovacuum: row.try_get(5).map_err(failed)?,
            max_connections: row.try_get(6).map_err(failed)?,
            connections: row.try_get(7).map_err(failed)?,
            role_limit: limit(8)?,
            role_connections: row.try_get(9).map_err(failed)?,
            database_limit: limit(10)?,
            database_connections: row.try_get(11).map_err(failed)?,
            notify_queue: row.try_get(12).map_err(failed)?,
            tls: row.try_get(13).map_err(failed)?,
            sees_others: row.try_get(14).map_err(failed)?,
        })
    }

    /// Whether there is a pooler between that gives a session of the server to each transaction: then nothing that a
    /// session keeps (`LISTEN`, advisory locks, settings) can be relied upon. Needs two connections.
    ///
    /// While one of two connections is in a transaction, the other goes on: with servers of their own each keeps its
    /// process, with a pooler the first one's was given to the second. A pooler that has more to give than to do may
    /// hide it.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn is_behind_transaction_pooler(&self) -> Result<bool, Error> {
        const DOING: &str = "look for a pooler between";
        let one = self.lease().await?;
        let other = self.lease().await?;
        let asked = async {
            let first = process(&one, "SELECT pg_backend_pid()", DOING).await?;
            let second = process(&other, "BEGIN; SELECT pg_backend_pid()", DOING).await?;
            let again = process(&one, "SELECT pg_backend_pid()", DOING).await?;
            process(&other, "SELECT pg_backend_pid(); ROLLBACK", DOING).await?;
            Ok(first == second || first != again)
        };
        let pooled = self.answer(DOING, asked).await?;
        one.give_back();
        other.give_back();
        Ok(pooled)
    }
}

/// By the simple protocol: older poolers do not know prepared statements.
async fn process(lease: &Lease, sql: &str, doing: &'static str) -> Result<String, Error> {
    let answered = lease.client()?.simple_query(sql).await;
    let answered = answered.map_err(|error| Error::query(doing, error))?;
    let process = answered.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(process.unwrap_or_default().to_owned())
}
