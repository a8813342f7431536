//! Whether autovacuum looks after the tables of the outbox.

use std::time::Duration;

use super::horizon::seconds;
use crate::database::Database;
use crate::error::Error;

/// One of the tables.
#[derive(Debug, Clone, PartialEq)]
pub struct TableVacuum {
    /// Its name, without the schema.
    pub table: String,
    /// Whether it was switched off, for the table or for its large values.
    pub switched_off: bool,
    /// How many deleted rows there are by the server's statistics.
    pub dead_rows: i64,
    /// How long ago it was vacuumed; `None` for never since the statistics began.
    pub vacuumed: Option<Duration>,
}

impl Database {
    /// Looks at the tables that hold messages and their keys. One that is not there is left out: an older schema has fewer, and where there
    /// is no outbox there is none.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn vacuum_of_tables(&self) -> Result<Vec<TableVacuum>, Error> {
        const DOING: &str = "look at the vacuum of the outbox";
        const SQL: &str = "SELECT c.relname::text, \
             NOT coalesce((SELECT bool_and(o.option_value::bool) FROM pg_class AS k, \
                 pg_options_to_table(k.reloptions) AS o \
                 WHERE k.oid IN (c.oid, c.reltoastrelid) AND o.option_name = 'autovacuum_enabled'), true), \
             coalesce(pg_stat_get_dead_tuples(c.oid), 0), \
             extract(epoch FROM clock_timestamp() - greatest(pg_stat_get_last_autovacuum_time(c.oid), \
                 pg_stat_get_last_vacuum_time(c.oid)))::float8 \
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1::text AND c.relkind = 'r' \
               AND c.relname IN ('messages', 'deferred', 'dead_letters', 'parked', 'blocked_keys') \
             ORDER BY c.relname";
        let failed = |error| Error::query(DOING, error);
        self.ask(DOING, SQL, &[&self.schema().as_str()])
            .await?
            .iter()
            .map(|row| {
                Ok(TableVacuum {
                    table: row.try_get(0).map_err(failed)?,
                    switched_off: row.try_get(1).map_err(failed)?,
                    dead_rows: row.try_get(2).map_err(failed)?,
                    vacuumed: row
                        .try_get::<_, Option<f64>>(3)
                        .map_err(failed)?
                        .map(seconds),
                })
            })
            .collect()
    }
}
