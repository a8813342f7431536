//! Who writes to a table now: the transactions that a floor waits for.

use postrider_core::Writer;
use tokio_postgres::types::Oid;

use crate::error::Error;

/// Whoever writes to the table holds this lock until after its end, beside any stronger one that it took.
/// Prepared transactions are among them; a session that only reads, or only locks rows, is not.
///
/// In the same pass, whether anybody waits for the lock that `NOTIFY` takes at commit: it is on "database 0",
/// for all databases of the server (`PreCommit_Notify` in the server's async.c).
pub(crate) const WRITERS: &str = "SELECT virtualtransaction, locktype = 'object' FROM pg_locks \
     WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = $1::oid \
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     OR locktype = 'object' AND database = 0 AND classid = 1262 AND objid = 0 AND NOT granted";

/// What a look at the locks showed.
pub(crate) struct Writers {
    pub(crate) open: Vec<Writer>,
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
        notify_contended: false,
    };
    for row in &rows {
        if row.try_get(1).map_err(failed)? {
            writers.notify_contended = true;
        } else {
            let transaction: &str = row.try_get(0).map_err(failed)?;
            writers.open.push(transaction.parse()?);
        }
    }
    Ok(writers)
}
