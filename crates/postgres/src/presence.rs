//! Which relays are connected now.
//!
//! Each holds a shared session-level advisory lock on a key made from the schema's name; the server
//! frees it with the session, so a relay that is gone is never shown.

use std::time::SystemTime;

use postgres_types::ToSql;
use sha2::{Digest, Sha256};

use crate::database::Database;
use crate::error::Error;
use crate::schema_name::Schema;

/// The first half of the key of every advisory lock of Postrider: `post` in ASCII.
pub(crate) const LOCK_CLASS: i32 = 0x706f_7374;

/// A relay that is connected to this outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayPresence {
    /// The relay's name, as far as it fits into `application_name`.
    pub name: String,
    /// The process of its listening session on the server.
    pub pid: i32,
    /// When that session began; `None` when this role may not see it (it needs `pg_monitor`, or to be
    /// the relay's own role).
    pub since: Option<SystemTime>,
}

/// The two halves of the presence lock's key. Advisory locks belong to one database, so only the
/// schema has to be told apart.
pub(crate) fn lock_key(schema: &Schema) -> (i32, i32) {
    (LOCK_CLASS, key_of("presence", schema))
}

/// The second half of the key of a lock of this purpose in this schema.
pub(crate) fn key_of(purpose: &str, schema: &Schema) -> i32 {
    let digest = Sha256::digest(format!("{purpose}:{schema}"));
    digest
        .first_chunk::<4>()
        .map_or(0, |bytes| i32::from_be_bytes(*bytes))
}

/// What separates the application's name from the relay's.
const SEPARATOR: &str = ": ";

pub(crate) fn application_name(application: &str, relay: &str) -> String {
    format!("{application}{SEPARATOR}{relay}")
}

/// Which locks `l` are the relays', whose key's halves are `$1` and `$2`. `pg_locks` shows them as oid, without sign.
const HELD: &str = "l.locktype = 'advisory' AND l.objsubid = 2 AND l.mode = 'ShareLock' AND l.granted \
                    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                    AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid";

impl Database {
    /// How many relays are connected to this outbox now. Costs little: asked again and again.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn count_relays(&self) -> Result<u64, Error> {
        const DOING: &str = "count the relays";
        let failed = |error| Error::query(DOING, error);
        let (class, object) = lock_key(self.schema());
        let lease = self.lease().await?;
        let count = self
            .answer(DOING, async {
                let client = lease.client()?;
                let sql = format!("SELECT count(*) FROM pg_locks AS l WHERE {HELD}");
                let statement = client.prepare_cached(&sql).await.map_err(failed)?;
                let key: [&(dyn ToSql + Sync); 2] = [
                    &i64::from(class.cast_unsigned()),
                    &i64::from(object.cast_unsigned()),
                ];
                let row = client.query_one(&statement, &key).await.map_err(failed)?;
                row.try_get::<_, i64>(0).map_err(failed)
            })
            .await?;
        lease.give_back();
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// The relays connected to this outbox now, by name.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn relays(&self) -> Result<Vec<RelayPresence>, Error> {
        const DOING: &str = "list the relays";
        let failed = |error| Error::query(DOING, error);
        let (class, object) = lock_key(self.schema());
        let lease = self.lease().await?;
        let rows = self
            .answer(DOING, async {
                // Every role may read pg_locks, and application_name in pg_stat_activity; backend_start only with more
                // rights.
                lease
                    .client()?
                    .query(
                        &format!(
                            "SELECT a.application_name, l.pid, a.backend_start \
                             FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE {HELD} ORDER BY 1, 2"
                        ),
                        &[&i64::from(class.cast_unsigned()), &i64::from(object.cast_unsigned())],
                    )
                    .await
                    .map_err(failed)
            })
            .await?;
        lease.give_back();
        rows.iter()
            .map(|row| {
                let shown: Option<String> = row.try_get(0).map_err(failed)?;
                let shown = shown.unwrap_or_default();
                let name = match shown.split_once(SEPARATOR) {
                    Some((_, relay)) => relay.to_owned(),
                    None => shown,
                };
                Ok(RelayPresence {
                    name,
                    pid: row.try_get(1).map_err(failed)?,
                    since: row.try_get(2).map_err(failed)?,
                })
            })
            .collect()
    }
}
