//! What is applied, and how it compares with what this program has.

use tokio_postgres::Client;

use super::{latest, migrations};
use crate::database::Database;
use crate::error::Error;
use crate::schema_name::Schema;

/// How the outbox in the database compares with this program's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaState {
    /// No migration was ever applied.
    Missing,
    /// Some are applied, others not.
    Older {
        /// The versions applied.
        applied: Vec<i32>,
        /// The versions this program has beside them.
        pending: Vec<i32>,
    },
    /// All are applied, and no others.
    Current,
    /// One that is applied is not the one this program has.
    Edited {
        /// Which.
        version: i32,
        /// Its name in the database.
        applied_name: String,
        /// Its checksum in the database.
        applied_checksum: String,
    },
    /// One is applied that this program does not know.
    Newer {
        /// The last version applied.
        applied: i32,
        /// The last version known.
        known: i32,
    },
}

/// One row of the record.
pub(super) struct Applied {
    version: i32,
    name: String,
    checksum: String,
}

impl Database {
    /// Compares the outbox in the database with this program's.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn migration_state(&self) -> Result<SchemaState, Error> {
        let lease = self.lease().await?;
        let applied = self
            .answer("read the schema's version", async {
                applied(lease.client()?, self.schema()).await
            })
            .await?;
        lease.give_back();
        Ok(compare(&applied))
    }
}

/// Reads the record; empty when there is none.
pub(super) async fn applied(client: &Client, schema: &Schema) -> Result<Vec<Applied>, Error> {
    let failed = |error| Error::query("read the schema's version", error);
    let exists: bool = client
        .query_one(
            "SELECT to_regclass($1) IS NOT NULL",
            &[&format!("{schema}.postrider_migrations")],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed)?;
    if !exists {
        return Ok(Vec::new());
    }
    client
        .query(
            &format!(
                "SELECT version, name, checksum FROM {schema}.postrider_migrations ORDER BY version"
            ),
            &[],
        )
        .await
        .map_err(failed)?
        .iter()
        .map(|row| {
            Ok(Applied {
                version: row.try_get(0).map_err(failed)?,
                name: row.try_get(1).map_err(failed)?,
                checksum: row.try_get(2).map_err(failed)?,
            })
        })
        .collect()
}

pub(super) fn compare(applied: &[Applied]) -> SchemaState {
    for found in applied {
        let known = migrations()
            .iter()
            .find(|migration| migration.version == found.version);
        if let Some(known) = known
            && known.checksum != found.checksum
        {
            return SchemaState::Edited {
                version: found.version,
                applied_name: found.name.clone(),
                applied_checksum: found.checksum.clone(),
            };
        }
    }
    let Some(last) = applied.iter().map(|found| found.version).max() else {
        return SchemaState::Missing;
    };
    if last > latest() {
        return SchemaState::Newer {
            applied: last,
            known: latest(),
        };
    }
    let applied: Vec<i32> = applied.iter().map(|found| found.version).collect();
    let pending: Vec<i32> = migrations()
        .iter()
        .map(|migration| migration.version)
        .filter(|version| !applied.contains(version))
        .collect();
    if pending.is_empty() {
        SchemaState::Current
    } else {
        SchemaState::Older { applied, pending }
    }
}
