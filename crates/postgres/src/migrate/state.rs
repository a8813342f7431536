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
    /// All are applied, and others that this program does not know, each of which says that this one works all the same.
    Ahead {
        /// The last version applied.
        applied: i32,
        /// The last version known.
        known: i32,
    },
    /// One that is applied is not the one this program has.
    Edited {
        /// Which.
        version: i32,
        /// Its name in the database.
        applied_name: String,
        /// Its checksum in the database.
        applied_checksum: String,
    },
    /// One is applied that this program does not know, and with which it cannot work.
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
    compatible_from: Option<i32>,
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
            // By way of JSON: the column came with migration 7.
            &format!(
                "SELECT m.version, m.name, m.checksum, (to_jsonb(m) ->> 'compatible_from')::integer \
                 FROM {schema}.postrider_migrations AS m ORDER BY m.version"
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
                compatible_from: row.try_get(3).map_err(failed)?,
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
    let known = latest();
    let works = |newer: &Applied| newer.compatible_from.is_some_and(|from| from <= known);
    if !applied
        .iter()
        .filter(|found| found.version > known)
        .all(works)
    {
        return SchemaState::Newer {
            applied: last,
            known,
        };
    }
    let applied: Vec<i32> = applied.iter().map(|found| found.version).collect();
    let pending: Vec<i32> = migrations()
        .iter()
        .map(|migration| migration.version)
        .filter(|version| !applied.contains(version))
        .collect();
    if pending.is_empty() && last > known {
        SchemaState::Ahead {
            applied: last,
            known,
        }
    } else if pending.is_empty() {
        SchemaState::Current
    } else if last > known {
        // A file of an older version after one of a newer is in no order that was ever tested.
        SchemaState::Newer {
            applied: last,
            known,
        }
    } else {
        SchemaState::Older { applied, pending }
    }
}
