//! Confirms that came after their claim was settled or released: their rows are deleted in a transaction of
//! its own.
//!
//! Whoever has claimed such a row meanwhile publishes it again, which is a permitted repeat; to wait for that
//! claim would stop the caller for as long as a publish may take.

use futures_util::future;
use postgres_types::Type;
use postrider_core::{Origin, Seq};
use uuid::Uuid;

use crate::database::Database;
use crate::error::Error;
use crate::schema_name::Schema;

/// Deletes the rows among `$1` (`seq`) and `$2` (`id`) that nobody has locked. Served by the primary key.
///
/// Locked first, deleted then: a DELETE alone would wait for locks.
pub(crate) fn delete_confirmed_sql(schema: &Schema, origin: Origin) -> String {
    let table = match origin {
        Origin::Messages => "messages",
        Origin::Deferred => "deferred",
        Origin::Parked => "parked",
    };
    let counted = match origin {
        Origin::Messages | Origin::Deferred => String::new(),
        Origin::Parked => format!(
            ", counted AS ( \
                 UPDATE {schema}.blocked_keys AS b SET parked = greatest(b.parked - k.gone, 0) \
                 FROM (SELECT ordering_key COLLATE \"C\" AS ordering_key, count(*) AS gone FROM free GROUP BY 1) AS k \
                 WHERE b.ordering_key = k.ordering_key \
             )"
        ),
    };
    format!(
        "WITH confirmed AS (SELECT * FROM unnest($1::bigint[], $2::uuid[]) AS c (c_seq, c_id)), \
              free AS MATERIALIZED ( \
                  SELECT m.seq, m.ordering_key FROM {schema}.{table} AS m JOIN confirmed AS c ON m.seq = c.c_seq AND m.id = c.c_id \
                  WHERE m.seq = ANY ($1::bigint[]) FOR UPDATE OF m SKIP LOCKED \
              ){counted} \
         DELETE FROM {schema}.{table} WHERE seq = ANY (ARRAY (SELECT seq FROM free))"
    )
}

/// Locks what blocks the keys of the rows `$1`, parked or deferred: in the order of their names, as a settle does. What follows, and its triggers, touch
/// the keys in the order of the rows, and two transactions that met the same keys in two orders would wait for each other.
pub(crate) fn lock_confirmed_keys_sql(schema: &Schema) -> String {
    let keys_of = |table: &str| {
        format!(
            "SELECT ordering_key COLLATE \"C\" FROM {schema}.{table} WHERE seq = ANY ($1::bigint[]) AND ordering_key IS NOT NULL"
        )
    };
    format!(
        "SELECT FROM {schema}.blocked_keys AS b WHERE b.ordering_key = ANY (ARRAY ({} UNION {})) ORDER BY b.ordering_key FOR UPDATE",
        keys_of("parked"),
        keys_of("deferred")
    )
}

impl Database {
    /// Deletes messages that the broker confirmed after all, wherever they wait, and says how many. Never
    /// waits for a message's row: one that is locked stays, and so does one that was given up.
    ///
    /// A message is named by its place and its id. Within one history of the database a place is enough;
    /// but this transaction is not the claim's, and after a failover to a standby that had not received the
    /// message, or a restored backup, its place may be that of another, which nobody has confirmed.
    ///
    /// A row that moves from `messages` to `parked` or `deferred` meanwhile: the tables are looked at in the order in
    /// which rows move, by a statement and a snapshot each. If the move commits before the second snapshot, the
    /// row is found there; otherwise its mover still had it locked, it stays, and is published once more.
    /// In the other order, or by one statement, a row could be missed that nobody has locked any more.
    ///
    /// # Errors
    /// What connecting and querying can fail with; after a broken connection it is unknown whether this
    /// was done: all of it or nothing. Rows that stay are published once more.
    pub async fn delete_confirmed(&self, confirmed: &[(Seq, Uuid)]) -> Result<u64, Error> {
        const DOING: &str = "delete messages confirmed late";
        const TYPES: [Type; 2] = [Type::INT8_ARRAY, Type::UUID_ARRAY];
        let failed = |error| Error::query(DOING, error);
        if confirmed.is_empty() {
            return Ok(0);
        }
        let (seqs, ids): (Vec<i64>, Vec<Uuid>) =
            confirmed.iter().map(|(seq, id)| (seq.0, *id)).unzip();
        let sql = |origin| self.sql().delete_confirmed(origin);
        let lease = self.lease().await?;
        let deleted = self
            .answer(DOING, async {
                let client = lease.client()?;
                let lock = client
                    .prepare_typed_cached(&self.sql().lock_confirmed_keys, &[Type::INT8_ARRAY])
                    .await
                    .map_err(failed)?;
                let messages = client
                    .prepare_typed_cached(sql(Origin::Messages), &TYPES)
                    .await
                    .map_err(failed)?;
                let parked = client
                    .prepare_typed_cached(sql(Origin::Parked), &TYPES)
                    .await
                    .map_err(failed)?;
                let deferred = client
                    .prepare_typed_cached(sql(Origin::Deferred), &TYPES)
                    .await
                    .map_err(failed)?;
                // READ COMMITTED by name, whatever the default: the second statement needs a snapshot of
                // its own, and so does the third. Polled in this order, all are on the wire before the first answer is awaited.
                let begin = async {
                    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
                    future::join(client.batch_execute(begin), client.execute(&lock, &[&seqs])).await
                };
                let ((begun, locked), messages, parked, deferred, committed) = future::join5(
                    begin,
                    client.execute(&messages, &[&seqs, &ids]),
                    client.execute(&parked, &[&seqs, &ids]),
                    client.execute(&deferred, &[&seqs, &ids]),
                    client.batch_execute("COMMIT"),
                )
                .await;
                begun.map_err(failed)?;
                locked.map_err(failed)?;
                // A COMMIT after a failed statement rolls back and does not say so.
                let deleted = messages.map_err(failed)?
                    + parked.map_err(failed)?
                    + deferred.map_err(failed)?;
                committed.map_err(failed)?;
                Ok(deleted)
            })
            .await?;
        lease.give_back();
        Ok(deleted)
    }
}
