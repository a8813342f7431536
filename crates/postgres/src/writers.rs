//! Who writes to a table now: the transactions that a floor waits for.

use std::collections::HashMap;

use postrider_core::{TransactionId, Writer};
use tokio_postgres::types::Oid;

use crate::error::Error;

/// Whoever writes to the table holds this lock until after its end, beside any stronger one that it took.
/// Prepared transactions are among them; a session that only reads, or only locks rows, is not.
///
/// In the same pass, whether anybody waits for the lock that `NOTIFY` takes at commit: it is on "database 0",
/// for all databases of the server (`PreCommit_Notify` in the server's async.c).
///
/// And the id of each writer that has one: every transaction that has an id holds a lock on it, and one on that of each of its
/// subtransactions, whose ids are younger. An id in these locks has 32 bits and lies within a half of the circle around the next one, which
/// completes it. By the name of the transaction and not by its process: between the two locks a process may have begun another
/// transaction, and its id would be taken for that of one that has ended.
pub(crate) const WRITERS: &str = "WITH locks AS MATERIALIZED ( \
         SELECT locktype, virtualtransaction, transactionid FROM pg_locks \
         WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = $1::oid \
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         OR locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted \
         OR locktype = 'object' AND database = 0 AND classid = 1262 AND objid = 0 AND NOT granted \
     ) \
     SELECT locks.virtualtransaction, locks.locktype = 'object', \
            around.highest - ((around.highest - own.id) & 4294967295) \
     FROM locks \
     CROSS JOIN (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 2147483647 AS highest) AS around \
     LEFT JOIN ( \
         SELECT DISTINCT ON (virtualtransaction) virtualtransaction, transactionid::text::bigint AS id \
         FROM locks WHERE locktype = 'transactionid' ORDER BY virtualtransaction, age(transactionid) DESC \
     ) AS own ON own.virtualtransaction = locks.virtualtransaction \
     WHERE locks.locktype <> 'transactionid'";

/// What a look at the locks showed.
pub(crate) struct Writers {
    pub(crate) open: Vec<Writer>,
    /// Of those that have one.
    pub(crate) ids: HashMap<Writer, TransactionId>,
    pub(crate) notify_contended: bool,
}

/// Takes a look, in a statement of its own.
pub(crate) async fn look_at_writers(
    client: &deadpool_postgres::ClientWrapper,
    table: Option<Oid>,
    doing: &'static str,
) -> Result<Writers, Error> {
    let failed = |error| Error::query(doing, error);
    let statement = client.prepare_cached(WRITERS).await.map_err(failed)?;
    let rows = client.query(&statement, &[&table]).await.map_err(failed)?;
    let mut writers = Writers {
        open: Vec::with_capacity(rows.len()),
        ids: HashMap::new(),
        notify_contended: false,
    };
    for row in &rows {
        if row.try_get(1).map_err(failed)? {
            writers.notify_contended = true;
        } else {
            let transaction: &str = row.try_get(0).map_err(failed)?;
            let writer = transaction.parse()?;
            writers.open.push(writer);
            if let Some(id) = row.try_get(2).map_err(failed)? {
                writers.ids.insert(writer, TransactionId(id));
            }
        }
    }
    Ok(writers)
}
