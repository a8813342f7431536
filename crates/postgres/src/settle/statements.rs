//! The statements that settle.

use postrider_core::Origin;

use crate::ordered::unblock_sql;
use crate::schema_name::Schema;

/// The columns that move with a message, whatever table it is in.
pub(crate) const MESSAGE_COLUMNS: &str = "seq, id, exchange, routing_key, payload, payload_json, content_type, headers, ordering_key, type, \
     content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede, created_at";

/// The statements that settle the rows of one table. Each is served by its primary key; the rows are
/// locked by the claim, so nobody else changes them.
pub(crate) struct SettleSql {
    pub(crate) delete: String,
    pub(crate) retry: String,
    pub(crate) give_up: String,
    /// Locks what blocks the keys `$1`, in one order for all.
    pub(crate) lock_keys: String,
    /// Of `messages` only.
    pub(crate) park: String,
    /// Of `parked` only: of the keys `$1`, so many `$2` left it, and what is left is at `$3` or above.
    pub(crate) resumed: String,
    pub(crate) unblock: String,
}

impl SettleSql {
    pub(crate) fn new(schema: &Schema, origin: Origin) -> Self {
        let table = match origin {
            Origin::Messages => "messages",
            Origin::Deferred => "deferred",
            Origin::Parked => "parked",
        };
        // In place: the payload is not written again.
        let retry = match origin {
            Origin::Messages | Origin::Parked => format!(
                "WITH {}, gone AS ({}) \
                 INSERT INTO {schema}.deferred ({MESSAGE_COLUMNS}, attempts, due_at, cause, reason, error) \
                 SELECT {MESSAGE_COLUMNS}, f_attempts, \
                        clock_timestamp() + f_after * interval '1 microsecond', 'retry', f_reason, f_error FROM gone {BY_KEY}",
                failed(AFTER),
                delete_returning(
                    schema,
                    table,
                    "f.f_attempts, f.f_after, f.f_reason, f.f_error"
                ),
            ),
            Origin::Deferred => format!(
                "WITH {} \
                 UPDATE {schema}.deferred AS m \
                 SET attempts = f_attempts, due_at = clock_timestamp() + f_after * interval '1 microsecond', \
                     cause = 'retry', reason = f_reason, error = f_error, deferred_at = clock_timestamp() \
                 FROM failed AS f WHERE m.seq = ANY ($1::bigint[]) AND m.seq = f.f_seq",
                failed(AFTER),
            ),
        };
        Self {
            delete: format!("DELETE FROM {schema}.{table} WHERE seq = ANY ($1::bigint[])"),
            retry,
            give_up: format!(
                "WITH {}, gone AS ({}) \
                 INSERT INTO {schema}.dead_letters ({MESSAGE_COLUMNS}, attempts, reason, error, blocks) \
                 SELECT {MESSAGE_COLUMNS}, f_attempts, f_reason, f_error, f_blocks FROM gone {BY_KEY}",
                failed(BLOCKS),
                delete_returning(
                    schema,
                    table,
                    "f.f_attempts, f.f_reason, f.f_error, f.f_blocks"
                ),
            ),
            lock_keys: format!(
                "SELECT FROM {schema}.blocked_keys WHERE ordering_key = ANY ($1::text[]) ORDER BY ordering_key FOR UPDATE"
            ),
            // Never behind nothing: what would be parked without a row for its key stays where it is.
            park: format!(
                "WITH gone AS (DELETE FROM {schema}.{table} AS m WHERE seq = ANY ($1::bigint[]) \
                                  AND EXISTS (SELECT FROM {schema}.blocked_keys AS b WHERE b.ordering_key = m.ordering_key COLLATE \"C\") \
                                RETURNING {MESSAGE_COLUMNS}), \
                      parked AS (INSERT INTO {schema}.parked ({MESSAGE_COLUMNS}) SELECT {MESSAGE_COLUMNS} FROM gone \
                                 RETURNING seq, ordering_key), \
                      of_key AS (SELECT ordering_key, count(*) AS parked, min(seq) AS lowest FROM parked GROUP BY ordering_key), \
                      blocked AS (UPDATE {schema}.blocked_keys AS b \
                                  SET parked = b.parked + k.parked, resume_from = least(b.resume_from, k.lowest) \
                                  FROM of_key AS k WHERE b.ordering_key = k.ordering_key COLLATE \"C\" RETURNING k.parked) \
                 SELECT coalesce(sum(parked), 0)::bigint FROM blocked"
            ),
            resumed: format!(
                "UPDATE {schema}.blocked_keys AS b SET parked = greatest(b.parked - k.gone, 0), resume_from = k.first \
                 FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (ordering_key, gone, first) \
                 WHERE b.ordering_key = k.ordering_key"
            ),
            unblock: unblock_sql(schema),
        }
    }
}

/// The triggers block keys row by row. Those that are not blocked yet nobody can lock before: they are blocked in the order of their names.
const BY_KEY: &str = "ORDER BY ordering_key COLLATE \"C\", seq";

/// What a retry has besides, and a dead letter: the name and the type of a column.
const AFTER: (&str, &str) = ("f_after", "bigint");
const BLOCKS: (&str, &str) = ("f_blocks", "bool");

fn failed((name, kind): (&str, &str)) -> String {
    format!(
        "failed AS (SELECT * FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::{kind}[]) \
         AS f (f_seq, f_attempts, f_reason, f_error, {name}))"
    )
}

fn delete_returning(schema: &Schema, table: &str, extra: &str) -> String {
    let columns: Vec<String> = MESSAGE_COLUMNS
        .split(", ")
        .map(|column| format!("m.{}", column.trim()))
        .collect();
    format!(
        "DELETE FROM {schema}.{table} AS m USING failed AS f \
         WHERE m.seq = ANY ($1::bigint[]) AND m.seq = f.f_seq RETURNING {}, {extra}",
        columns.join(", ")
    )
}
