//! Which exchanges the outbox names. No index leads to those of `outbox.messages`: a sample has to do.

use std::collections::BTreeMap;

use crate::database::Database;
use crate::error::Error;
use crate::schema_name::Schema;

/// How many rows are looked at, at each end of a table that is only sampled.
const SAMPLE: u32 = 2_000;

/// Where an exchange is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExchangeUse {
    /// By messages that are to be sent, now or later.
    pub to_send: bool,
    /// By dead letters.
    pub dead: bool,
}

/// The exchanges that were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamedExchanges {
    /// By name; the empty one is RabbitMQ's default exchange.
    pub found: BTreeMap<String, ExchangeUse>,
    /// Whether there were more than were asked for.
    pub capped: bool,
}

/// Messages of one exchange that failed because no queue was bound for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unroutable {
    /// The exchange.
    pub exchange: String,
    /// How many, among the first thousands of each kind.
    pub messages: i64,
}

impl Database {
    /// The exchanges named by the first and last rows of `outbox.messages` and `outbox.deferred`, by what failed
    /// in the latter, and by dead letters: up to `limit` of each.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn named_exchanges(&self, limit: u32) -> Result<NamedExchanges, Error> {
        const DOING: &str = "look for the exchanges that the outbox names";
        let failed = |error| Error::query(DOING, error);
        let mut named = NamedExchanges::default();
        for (sql, dead) in [
            (sampled_sql(self.schema()), false),
            (failed_sql(self.schema()), false),
            (dead_sql(self.schema()), true),
        ] {
            let more = i64::from(limit) + 1;
            let rows = self.ask(DOING, &sql, &[&more]).await?;
            for (position, row) in (0_u32..).zip(&rows) {
                if position == limit {
                    named.capped = true;
                    break;
                }
                let exchange = row.try_get(0).map_err(failed)?;
                let used = named.found.entry(exchange).or_default();
                used.dead |= dead;
                used.to_send |= !dead;
            }
        }
        Ok(named)
    }

    /// Which exchanges have messages that failed as unroutable, by a bounded look at those that are tried again and
    /// at dead letters.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn unroutable(&self) -> Result<Vec<Unroutable>, Error> {
        const DOING: &str = "look for messages without a route";
        let failed = |error| Error::query(DOING, error);
        let schema = self.schema();
        // By the indexes on (cause, seq) and (reason, seq).
        let sql = format!(
            "SELECT u.exchange, count(*) FROM ( \
                 SELECT d.exchange FROM (SELECT exchange, reason FROM {schema}.deferred WHERE cause = 'retry' \
                     ORDER BY cause, seq LIMIT {SAMPLE}) AS d WHERE d.reason = 'unroutable' \
                 UNION ALL \
                 (SELECT exchange FROM {schema}.dead_letters WHERE reason = 'unroutable' ORDER BY reason, seq LIMIT {SAMPLE}) \
             ) AS u GROUP BY u.exchange ORDER BY 2 DESC, 1 LIMIT 20"
        );
        self.ask(DOING, &sql, &[])
            .await?
            .iter()
            .map(|row| {
                Ok(Unroutable {
                    exchange: row.try_get(0).map_err(failed)?,
                    messages: row.try_get(1).map_err(failed)?,
                })
            })
            .collect()
    }
}

/// By the primary keys, from both ends.
fn sampled_sql(schema: &Schema) -> String {
    let ends = ["messages", "deferred"].map(|table| {
        ["ASC", "DESC"]
            .map(|order| {
                format!(
                    "(SELECT exchange FROM {schema}.{table} ORDER BY seq {order} LIMIT {SAMPLE})"
                )
            })
            .join(" UNION ALL ")
    });
    format!(
        "SELECT DISTINCT exchange FROM ({}) AS ends ORDER BY 1 LIMIT $1",
        ends.join(" UNION ALL ")
    )
}

/// One step of the index for each exchange, however many messages it has.
fn failed_sql(schema: &Schema) -> String {
    let first = |condition: &str| {
        format!(
            "SELECT m.exchange COLLATE \"C\" AS exchange FROM {schema}.deferred AS m \
             WHERE m.cause = 'retry' {condition} ORDER BY m.exchange COLLATE \"C\" LIMIT 1"
        )
    };
    loose_scan(
        &first(""),
        &first("AND m.exchange COLLATE \"C\" > named.exchange"),
    )
}

/// The same, by the index on (exchange, seq).
fn dead_sql(schema: &Schema) -> String {
    let first = |condition: &str| {
        format!(
            "SELECT m.exchange FROM {schema}.dead_letters AS m {condition} ORDER BY m.exchange LIMIT 1"
        )
    };
    loose_scan(&first(""), &first("WHERE m.exchange > named.exchange"))
}

fn loose_scan(first: &str, next: &str) -> String {
    format!(
        "WITH RECURSIVE named AS ( \
             ({first}) UNION ALL SELECT ({next}) FROM named WHERE named.exchange IS NOT NULL \
         ) SELECT exchange FROM named WHERE exchange IS NOT NULL LIMIT $1"
    )
}
