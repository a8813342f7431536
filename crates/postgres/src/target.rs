//! The messages of one exchange or route that wait for another try: to probe with, and to let go.
//!
//! Only those that wait because a publish failed. What is scheduled waits for its own time, and is served by
//! ordinary claims when it comes: if the target is out of order then, it becomes one of those here.

use futures_util::future;
use postgres_types::ToSql;
use postrider_core::{Origin, Seq, Target};

use crate::claim::{Claim, ClaimLimits, DEFERRED_EXTRA, Rows, Share, is_head, locking_sql};
use crate::database::Database;
use crate::error::Error;
use crate::schema_name::Schema;

/// The statements for one kind of target. The index on `(exchange, routing_key, due_at)` of what failed
/// serves both: rows of other targets are not read, however many there are.
pub(crate) struct TargetSql {
    pub(crate) claim: String,
    pub(crate) release: String,
}

impl TargetSql {
    /// For an exchange, or for an exchange and a routing key: the last parameters.
    pub(crate) fn new(schema: &Schema, route: bool) -> Self {
        Self {
            claim: claim_sql(schema, route),
            release: release_sql(schema, route),
        }
    }
}

/// The condition on the row `m`, with parameters from the given one on.
///
/// The cause is a literal, and the collation the index's, or the index would not be considered.
fn of_target(route: bool, first: usize) -> String {
    let key = if route {
        format!(
            " AND m.routing_key COLLATE \"C\" = ${}::text",
            first.saturating_add(1)
        )
    } else {
        String::new()
    };
    format!("m.cause = 'retry' AND m.exchange COLLATE \"C\" = ${first}::text{key}")
}

/// As the index has them: of one route that is by due time.
const INDEX_ORDER: &str = "m.exchange COLLATE \"C\", m.routing_key COLLATE \"C\", m.due_at";

fn claim_sql(schema: &Schema, route: bool) -> String {
    locking_sql(
        schema,
        &Rows {
            table: "deferred",
            condition: &format!(
                "{} AND m.seq <> ALL ($4::bigint[]) AND {}",
                of_target(route, 5),
                is_head(schema)
            ),
            locked_by: INDEX_ORDER,
            returned_by: &["due_at", "seq"],
            share: Share::InOrder,
            extra: DEFERRED_EXTRA,
        },
    )
}

/// Of the messages of one key only the first is chosen: the others are not due before their turn, whatever is written there. What it releases is due by then, and not chosen again: the clock of the update is past the time at which
/// any earlier statement started. Rows are chosen and changed by one statement under their locks.
fn release_sql(schema: &Schema, route: bool) -> String {
    format!(
        "WITH chosen AS MATERIALIZED ( \
             SELECT m.seq FROM {schema}.deferred AS m \
             WHERE {} AND m.due_at > statement_timestamp() AND {} \
             ORDER BY {INDEX_ORDER} LIMIT $1::bigint FOR UPDATE OF m SKIP LOCKED \
         ) \
         UPDATE {schema}.deferred SET due_at = clock_timestamp() \
         WHERE seq = ANY (ARRAY (SELECT seq FROM chosen))",
        of_target(route, 2),
        is_head(schema),
    )
}

impl Database {
    /// Locks messages of this target that wait for another try, whether they are due or not, except those `left_out`, and opens the
    /// transaction in which they are to be settled. All else is as in [`Database::claim_due`].
    ///
    /// Of a route, those due first. Of an exchange, those with the first routing key in the order of bytes,
    /// and of that those due first: a message that is deferred again may be the next one found, so the pace
    /// of its attempts is up to the caller. Scheduled messages are not among them, due or not.
    ///
    /// # Errors
    /// As [`Database::claim_fresh`].
    pub async fn claim_of_target(
        &self,
        target: &Target,
        limits: ClaimLimits,
        left_out: &[Seq],
    ) -> Result<Claim, Error> {
        let sql = &self.target_sql(target).claim;
        let names = names(target);
        let left_out: Vec<i64> = left_out.iter().map(|seq| seq.0).collect();
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&left_out];
        parameters.extend(names.iter().map(parameter));
        self.claim_by(sql, &parameters, limits, Origin::Deferred)
            .await
    }

    /// Makes up to `batch` messages of this target that wait for another try due now, in one transaction,
    /// and says how many. Attempts stay charged; those that are locked and those that are due are left as
    /// they are. Fewer than `batch`: there are no more.
    ///
    /// Nobody is notified: the relay that resumes a target looks for what is due itself, every other one
    /// when it looks next. A notification would wake all of them for each batch, and serialise its commit
    /// with those of the producers.
    ///
    /// # Errors
    /// What connecting and querying can fail with; after a broken connection it is unknown whether this
    /// was done: all of it or nothing.
    pub async fn release_target(&self, target: &Target, batch: u32) -> Result<u64, Error> {
        const DOING: &str = "release the messages of a target";
        let failed = |error| Error::query(DOING, error);
        let names = names(target);
        let batch = i64::from(batch);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&batch];
        parameters.extend(names.iter().map(parameter));
        let lease = self.lease().await?;
        let released = self
            .answer(DOING, async {
                let client = lease.client()?;
                let statement = client
                    .prepare_cached(&self.target_sql(target).release)
                    .await
                    .map_err(failed)?;
                // The isolation level is named as in a claim, for the same reason.
                let (begun, released, committed) = future::join3(
                    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
                    client.execute(&statement, &parameters),
                    client.batch_execute("COMMIT"),
                )
                .await;
                begun.map_err(failed)?;
                // A COMMIT after a failed statement rolls back and does not say so.
                let released = released.map_err(failed)?;
                committed.map_err(failed)?;
                Ok(released)
            })
            .await?;
        lease.give_back();
        Ok(released)
    }

    fn target_sql(&self, target: &Target) -> &TargetSql {
        match target {
            Target::Exchange(_) => &self.sql().exchange,
            Target::Route { .. } => &self.sql().route,
        }
    }
}

fn names(target: &Target) -> Vec<&str> {
    std::iter::once(target.exchange())
        .chain(target.routing_key())
        .collect()
}

fn parameter<'a>(name: &'a &str) -> &'a (dyn ToSql + Sync) {
    name
}
