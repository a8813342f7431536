//! The schema's migrations: which there are, which are applied, and the runner.
//!
//! The files are embedded; each is applied in a transaction of its own together with its record. A runner
//! of our own, because the usual ones take no lock: several machines may migrate at once.

mod check;
mod render;
mod state;

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::database::Database;
use crate::error::Error;
use crate::presence::{LOCK_CLASS, key_of};
use crate::schema_name::Schema;
use render::{in_schema, record, record_table};
use state::{applied, compare};

pub use render::print_sql;
pub use state::SchemaState;

/// How often the lock is tried. A waiting lock would deadlock with CREATE INDEX CONCURRENTLY.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// How long a migration waits for a lock on a table in use, in milliseconds: behind it, writers queue.
const TABLE_LOCK_TIMEOUT_MS: u32 = 10_000;

/// One file of `migrations/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Counted from 1, without gaps.
    pub version: i32,
    /// The file's name without number and ending.
    pub name: &'static str,
    /// The file, for the schema `outbox`.
    pub sql: &'static str,
    /// SHA-256 of the file in hexadecimal, with line endings taken as LF.
    pub checksum: String,
    /// The oldest version whose programs work on the outbox as this migration leaves it; `None`: none that does not know this one.
    pub compatible_from: Option<i32>,
}

static MIGRATIONS: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    [
        (
            "outbox",
            include_str!("../../../migrations/0001_outbox.sql"),
            None,
        ),
        (
            "publish",
            include_str!("../../../migrations/0002_publish.sql"),
            None,
        ),
        (
            "deferred",
            include_str!("../../../migrations/0003_deferred.sql"),
            None,
        ),
        (
            "quiet_wakeup",
            include_str!("../../../migrations/0004_quiet_wakeup.sql"),
            None,
        ),
        (
            "rules",
            include_str!("../../../migrations/0005_rules.sql"),
            None,
        ),
        (
            "rules_validated",
            include_str!("../../../migrations/0006_rules_validated.sql"),
            None,
        ),
        (
            "compatible_from",
            include_str!("../../../migrations/0007_compatible_from.sql"),
            Some(4),
        ),
        (
            "ordering",
            include_str!("../../../migrations/0008_ordering.sql"),
            // As long as nothing with a key is published: docs/upgrading.md.
            Some(4),
        ),
        (
            "next_seq",
            include_str!("../../../migrations/0009_next_seq.sql"),
            // With a key, programs before 8 do not work on what 8 leaves either.
            Some(4),
        ),
    ]
    .into_iter()
    .zip(1..)
    .map(|((name, sql, compatible_from), version)| Migration {
        version,
        name,
        sql,
        checksum: checksum(sql),
        compatible_from,
    })
    .collect()
});

/// All migrations of this program, in order.
#[must_use]
pub fn migrations() -> &'static [Migration] {
    &MIGRATIONS
}

impl Database {
    /// What [`Database::migrate`] would apply, in order.
    ///
    /// # Errors
    /// [`Error::SchemaEdited`], [`Error::SchemaNewer`], and what connecting and querying can fail with.
    pub async fn plan(&self) -> Result<Vec<&'static Migration>, Error> {
        let state = self.migration_state().await?;
        self.pending(state)
    }

    /// Applies what is not applied yet, each file in a transaction of its own, and says what that was.
    /// Safe to run from several machines at once: one works, the others wait for it, for `wait` at
    /// most, and then find nothing to do.
    ///
    /// # Errors
    /// [`Error::SchemaEdited`] and [`Error::SchemaNewer`], with nothing changed; [`Error::MigrationLock`];
    /// [`Error::Migration`], with the files before the failed one applied.
    pub async fn migrate(&self, wait: Duration) -> Result<Vec<&'static Migration>, Error> {
        const DOING: &str = "prepare to migrate";
        // Never given back: the lock belongs to the session, which ends with the lease.
        let lease = self.lease().await?;
        let client: &Client = lease.client()?;
        self.answer(DOING, async {
            client
                .batch_execute(&format!(
                    "SET statement_timeout = 0; SET lock_timeout = {TABLE_LOCK_TIMEOUT_MS}"
                ))
                .await
                .map_err(|error| Error::query(DOING, error))
        })
        .await?;
        self.lock_migrations(client, wait).await?;
        let applied = self.answer(DOING, applied(client, self.schema())).await?;
        let pending = self.pending(compare(&applied))?;
        for migration in &pending {
            apply(client, migration, self.schema()).await?;
        }
        Ok(pending)
    }

    async fn lock_migrations(&self, client: &Client, wait: Duration) -> Result<(), Error> {
        const DOING: &str = "lock the migrations";
        let failed = |error| Error::query(DOING, error);
        let deadline = Instant::now() + wait;
        loop {
            let row = self
                .answer(DOING, async {
                    client
                        .query_one(
                            "SELECT pg_try_advisory_lock($1, $2)",
                            &[&LOCK_CLASS, &key_of("migrate", self.schema())],
                        )
                        .await
                        .map_err(failed)
                })
                .await?;
            if row.try_get(0).map_err(failed)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::MigrationLock(wait));
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
    }

    fn pending(&self, state: SchemaState) -> Result<Vec<&'static Migration>, Error> {
        match state {
            SchemaState::Missing => Ok(migrations().iter().collect()),
            SchemaState::Older { pending, .. } => Ok(migrations()
                .iter()
                .filter(|migration| pending.contains(&migration.version))
                .collect()),
            nothing_pending_or_refused => {
                self.refuse(nothing_pending_or_refused)?;
                Ok(Vec::new())
            }
        }
    }
}

async fn apply(client: &Client, migration: &Migration, schema: &Schema) -> Result<(), Error> {
    let failed = |source| Error::Migration {
        version: migration.version,
        name: migration.name,
        detail: crate::error::describe(&source),
        source,
    };
    // Only if it is not there: even IF NOT EXISTS asks for the right to create schemas.
    let exists = client
        .query_one(
            "SELECT to_regnamespace($1) IS NOT NULL",
            &[&schema.as_str()],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed)?;
    let create_schema = if exists {
        String::new()
    } else {
        format!("CREATE SCHEMA {schema};")
    };
    let script = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n{create_schema}\n{}\n{}\n{}\nCOMMIT;",
        record_table(schema),
        in_schema(migration.sql, schema),
        record(migration, schema),
    );
    // The first error ends the script, and the session with its open transaction ends with the lease.
    client.batch_execute(&script).await.map_err(failed)
}

fn latest() -> i32 {
    migrations().last().map_or(0, |migration| migration.version)
}

/// Checked out on Windows or by a tool that rewrites line endings, a file is still the same.
fn checksum(sql: &str) -> String {
    let digest = Sha256::digest(sql.replace("\r\n", "\n"));
    digest
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn a_checksum_does_not_depend_on_line_endings() {
        assert_eq!(checksum("a\r\nb\r\n"), checksum("a\nb\n"));
        assert_ne!(checksum("a\nb\n"), checksum("ab\n"));
    }
}
