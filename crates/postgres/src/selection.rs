//! Which rows a person means: conditions and their parameters, and the transactions that change them.

use std::time::Duration;

use futures_util::future;
use postgres_types::ToSql;
use postrider_core::{Reason, Seq};
use tokio_postgres::Row;

use crate::database::Database;
use crate::error::Error;
use crate::schema_name::Schema;

/// What one bounded transaction changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// How many rows; 0 when there are no more.
    pub rows: u64,
    /// The highest place among them: where the next transaction goes on, so that what comes back meanwhile
    /// is not met twice.
    pub last: Option<Seq>,
    /// How many ordering keys waited for one of them, and do not any more, or only until it has left.
    pub keys: u64,
}

/// Conditions on the row `m`, all of which hold, with numbered parameters.
#[derive(Default)]
pub(crate) struct Selection {
    conditions: Vec<String>,
    parameters: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Selection {
    /// Adds a parameter and returns its placeholder.
    pub(crate) fn parameter(&mut self, value: impl ToSql + Sync + Send + 'static) -> String {
        self.parameters.push(Box::new(value));
        format!("${}", self.parameters.len())
    }

    /// Adds a condition, in which `{}` stands for the value.
    pub(crate) fn require(&mut self, condition: &str, value: impl ToSql + Sync + Send + 'static) {
        let placeholder = self.parameter(value);
        self.conditions.push(condition.replace("{}", &placeholder));
    }

    /// Adds a condition without a value.
    pub(crate) fn require_that(&mut self, condition: &str) {
        self.conditions.push(condition.to_owned());
    }

    pub(crate) fn ids(&mut self, ids: &[uuid::Uuid]) {
        if !ids.is_empty() {
            self.require("m.id = ANY ({}::uuid[])", ids.to_vec());
        }
    }

    pub(crate) fn seqs(&mut self, seqs: &[Seq]) {
        if !seqs.is_empty() {
            let seqs: Vec<i64> = seqs.iter().map(|seq| seq.0).collect();
            self.require("m.seq = ANY ({}::bigint[])", seqs);
        }
    }

    pub(crate) fn exchange(&mut self, exchange: Option<&String>) {
        if let Some(exchange) = exchange {
            self.require("m.exchange = {}::text", exchange.clone());
        }
    }

    pub(crate) fn reason(&mut self, reason: Option<Reason>) {
        if let Some(reason) = reason {
            self.require("m.reason = {}::text", reason.as_str());
        }
    }

    pub(crate) fn after(&mut self, after: Option<Seq>) {
        if let Some(after) = after {
            self.require("m.seq > {}::bigint", after.0);
        }
    }

    /// The clause, `WHERE` included.
    pub(crate) fn clause(&self) -> String {
        if self.conditions.is_empty() {
            String::new()
        } else {
            format!("WHERE {}", self.conditions.join(" AND "))
        }
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.parameters
            .iter()
            .map(|parameter| &**parameter as &(dyn ToSql + Sync))
            .collect()
    }
}

/// No key waited for any of the changed rows.
pub(crate) const NO_KEYS: &str = "0::bigint";

/// How many of the rows `gone` were the heads of blocked keys. By the primary key; the triggers of the same statement change
/// what only a later one sees.
pub(crate) fn heads(gone: &str, schema: &Schema) -> String {
    format!(
        "(SELECT count(*) FROM {gone} AS g JOIN {schema}.blocked_keys AS b \
             ON b.ordering_key = g.ordering_key COLLATE \"C\" AND b.head_seq = g.seq)"
    )
}

/// The end of a statement whose rows `changed` are due now: what [`Database::change`] reads, and the relays
/// are woken.
pub(crate) fn changed_and_due(changed: &str, keys: &str, schema: &Schema) -> String {
    format!(
        "SELECT count(*), max(seq), {keys}, \
                CASE WHEN count(*) > 0 THEN pg_notify('{}', '')::text END FROM {changed}",
        schema.wakeup_channel()
    )
}

/// For the sum of dates: as long as anyone waits, and no overflow.
pub(crate) fn microseconds(duration: Duration) -> i64 {
    const LONGEST: Duration = Duration::from_secs(1000 * 365 * 24 * 60 * 60);
    i64::try_from(duration.min(LONGEST).as_micros()).unwrap_or(i64::MAX)
}

impl Database {
    /// Runs a query that changes nothing.
    pub(crate) async fn select(
        &self,
        doing: &'static str,
        sql: &str,
        selection: &Selection,
    ) -> Result<Vec<Row>, Error> {
        let lease = self.lease().await?;
        let rows = self
            .answer(doing, async {
                lease
                    .client()?
                    .query(sql, &selection.values())
                    .await
                    .map_err(|error| Error::query(doing, error))
            })
            .await?;
        lease.give_back();
        Ok(rows)
    }

    /// Counts the selected rows of a table, up to `limit`.
    pub(crate) async fn count_up_to(
        &self,
        doing: &'static str,
        table: &str,
        mut selection: Selection,
        limit: u64,
    ) -> Result<u64, Error> {
        let limit = selection.parameter(i64::try_from(limit).unwrap_or(i64::MAX));
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM {}.{table} AS m {} LIMIT {limit}::bigint) AS counted",
            self.schema(),
            selection.clause()
        );
        let rows = self.select(doing, &sql, &selection).await?;
        let counted: i64 = match rows.first() {
            Some(row) => row.try_get(0).map_err(|error| Error::query(doing, error))?,
            None => 0,
        };
        Ok(u64::try_from(counted).unwrap_or(0))
    }

    /// Runs a statement that changes rows and returns their number, their highest `seq` and the number of keys, in a transaction of
    /// its own. The isolation level is named as in a claim, for the same reason.
    pub(crate) async fn change(
        &self,
        doing: &'static str,
        sql: &str,
        selection: &Selection,
    ) -> Result<Changed, Error> {
        let failed = |error| Error::query(doing, error);
        let lease = self.lease().await?;
        let row = self
            .answer(doing, async {
                let client = lease.client()?;
                let statement = client.prepare(sql).await.map_err(failed)?;
                let values = selection.values();
                let (begun, row, committed) = future::join3(
                    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
                    client.query_one(&statement, &values),
                    client.batch_execute("COMMIT"),
                )
                .await;
                begun.map_err(failed)?;
                let row = row.map_err(failed)?;
                committed.map_err(failed)?;
                Ok(row)
            })
            .await?;
        lease.give_back();
        Ok(Changed {
            rows: u64::try_from(row.try_get::<_, i64>(0).map_err(failed)?).unwrap_or(0),
            last: row.try_get::<_, Option<i64>>(1).map_err(failed)?.map(Seq),
            keys: u64::try_from(row.try_get::<_, i64>(2).map_err(failed)?).unwrap_or(0),
        })
    }
}
