//! The schema's migrations: which there are, which are applied, and the runner.
//!
//! The files are embedded; each is applied in a transaction of its own together with its record. A runner
//! of our own, because the usual ones take no lock: several machines may migrate at once.

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
}

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
struct Applied {
    version: i32,
    name: String,
    checksum: String,
}

static MIGRATIONS: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    [
        (
            "outbox",
            include_str!("../../../migrations/0001_outbox.sql"),
        ),
        (
            "publish",
            include_str!("../../../migrations/0002_publish.sql"),
        ),
        (
            "deferred",
            include_str!("../../../migrations/0003_deferred.sql"),
        ),
    ]
    .into_iter()
    .zip(1..)
    .map(|((name, sql), version)| Migration {
        version,
        name,
        sql,
        checksum: checksum(sql),
    })
    .collect()
});

/// All migrations of this program, in order.
#[must_use]
pub fn migrations() -> &'static [Migration] {
    &MIGRATIONS
}

/// Everything as one SQL script, for people with a migration tool of their own. It records what it
/// applies as the runner does, so the relay accepts the result. It names no transaction: the tool's
/// own, or `psql --single-transaction`, shall be around it.
#[must_use]
pub fn print_sql(schema: &Schema) -> String {
    let mut sql = format!(
        "-- The outbox of Postrider in schema {schema}: everything up to version {}.\n\n\
         CREATE SCHEMA IF NOT EXISTS {schema};\n\n{}\n",
        latest(),
        record_table(schema),
    );
    for migration in migrations() {
        let _ = write!(
            sql,
            "\n-- {:04}_{}\n\n{}\n{}\n",
            migration.version,
            migration.name,
            in_schema(migration.sql, schema).trim_end(),
            record(migration, schema),
        );
    }
    sql
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

    /// Makes sure that this program can work with the outbox in the database: every migration applied
    /// as it is here and none that is unknown, and a sequence that hands out its values in order.
    ///
    /// # Errors
    /// [`Error::SchemaMissing`], [`Error::SchemaOlder`], [`Error::SchemaNewer`], [`Error::SchemaEdited`],
    /// [`Error::SequenceCache`]; each says what mends it.
    pub async fn check_schema(&self) -> Result<(), Error> {
        const DOING: &str = "read the sequence of the outbox";
        let state = self.migration_state().await?;
        match state {
            SchemaState::Missing => return Err(self.missing()),
            SchemaState::Older { applied, .. } => {
                return Err(Error::SchemaOlder {
                    schema: self.schema().clone(),
                    applied: applied.into_iter().max().unwrap_or(0),
                    needed: latest(),
                });
            }
            edited_or_newer => self.refuse(edited_or_newer)?,
        }
        let lease = self.lease().await?;
        let cache = self
            .answer(DOING, async {
                lease
                    .client()?
                    .query_opt(
                        "SELECT s.seqcache FROM pg_sequence AS s \
                         WHERE s.seqrelid = pg_get_serial_sequence($1, 'seq')::regclass",
                        &[&format!("{}.messages", self.schema())],
                    )
                    .await
                    .map_err(|error| Error::query(DOING, error))
            })
            .await?;
        lease.give_back();
        let Some(cache) = cache else {
            return Err(self.missing());
        };
        match cache
            .try_get::<_, i64>(0)
            .map_err(|error| Error::query(DOING, error))?
        {
            1 => Ok(()),
            cache => Err(Error::SequenceCache {
                schema: self.schema().clone(),
                cache,
            }),
        }
    }

    /// Makes sure that this role may do what the relay does: lock, read, move and delete messages.
    ///
    /// # Errors
    /// [`Error::Rights`] with what is missing, and what connecting and querying can fail with.
    pub async fn check_rights(&self) -> Result<(), Error> {
        const DOING: &str = "look at the rights of this role";
        let lease = self.lease().await?;
        let row = self
            .answer(DOING, async {
                lease
                    .client()?
                    .query_one(
                        "SELECT current_user::text, array_agg(missing.what || ' on ' || missing.relation) \
                         FROM (SELECT r.relation, r.what \
                               FROM (VALUES ('messages', 'SELECT'), ('messages', 'UPDATE'), ('messages', 'DELETE'), \
                                            ('deferred', 'SELECT'), ('deferred', 'INSERT'), ('deferred', 'UPDATE'), \
                                            ('deferred', 'DELETE'), ('dead_letters', 'SELECT'), \
                                            ('dead_letters', 'INSERT'), ('dead_letters', 'UPDATE'), \
                                            ('dead_letters', 'DELETE')) AS r (relation, what) \
                               WHERE NOT has_table_privilege($1::text || '.' || r.relation, r.what) \
                               UNION ALL \
                               SELECT 'header_names_are_at_most_255_bytes', 'EXECUTE' \
                               WHERE NOT has_function_privilege( \
                                   $1::text || '.header_names_are_at_most_255_bytes(jsonb)', 'EXECUTE')) AS missing",
                        &[&self.schema().to_string()],
                    )
                    .await
                    .map_err(|error| Error::query(DOING, error))
            })
            .await?;
        lease.give_back();
        let read = |error| Error::query(DOING, error);
        let missing: Option<Vec<String>> = row.try_get(1).map_err(read)?;
        let Some(missing) = missing else {
            return Ok(());
        };
        Err(Error::Rights {
            role: row.try_get(0).map_err(read)?,
            schema: self.schema().clone(),
            missing: missing.join(", "),
        })
    }

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
            current_edited_or_newer => {
                self.refuse(current_edited_or_newer)?;
                Ok(Vec::new())
            }
        }
    }

    /// What neither `run` nor `migrate` can work with.
    fn refuse(&self, state: SchemaState) -> Result<(), Error> {
        match state {
            SchemaState::Missing | SchemaState::Older { .. } | SchemaState::Current => Ok(()),
            SchemaState::Newer { applied, known } => Err(Error::SchemaNewer {
                schema: self.schema().clone(),
                applied,
                known,
            }),
            SchemaState::Edited {
                version,
                applied_name,
                applied_checksum,
            } => {
                let known = migrations()
                    .iter()
                    .find(|migration| migration.version == version);
                Err(Error::SchemaEdited {
                    schema: self.schema().clone(),
                    version,
                    applied_name,
                    applied: applied_checksum,
                    known_name: known.map_or("", |migration| migration.name),
                    known: known.map_or_else(String::new, |migration| migration.checksum.clone()),
                })
            }
        }
    }

    fn missing(&self) -> Error {
        Error::SchemaMissing {
            schema: self.schema().clone(),
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

/// Reads the record; empty when there is none.
async fn applied(client: &Client, schema: &Schema) -> Result<Vec<Applied>, Error> {
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

fn compare(applied: &[Applied]) -> SchemaState {
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

fn latest() -> i32 {
    migrations().last().map_or(0, |migration| migration.version)
}

fn record_table(schema: &Schema) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {schema}.postrider_migrations (\n    \
             version integer PRIMARY KEY,\n    \
             name text NOT NULL,\n    \
             checksum text NOT NULL,\n    \
             applied_at timestamptz NOT NULL DEFAULT clock_timestamp()\n\
         );"
    )
}

fn record(migration: &Migration, schema: &Schema) -> String {
    format!(
        "INSERT INTO {schema}.postrider_migrations (version, name, checksum) VALUES ({}, '{}', '{}');",
        migration.version, migration.name, migration.checksum,
    )
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

/// The same statements for another schema: `outbox` is replaced where it qualifies a name, and in the
/// name of the wake-up channel; not where prose speaks of the outbox.
fn in_schema(sql: &str, schema: &Schema) -> String {
    const QUALIFIER: &str = "outbox.";
    let mut result = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(at) = rest.find(QUALIFIER) {
        let (before, from) = rest.split_at(at);
        let after = from.strip_prefix(QUALIFIER).unwrap_or_default();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let qualifies = !last_character(before, &result).is_some_and(is_name)
            && after.starts_with(|c: char| c.is_ascii_lowercase());
        result.push_str(before);
        result.push_str(if qualifies { schema.as_str() } else { "outbox" });
        result.push('.');
        rest = after;
    }
    result.push_str(rest);
    result.replace(
        "'postrider_outbox'",
        &format!("'{}'", schema.wakeup_channel()),
    )
}

/// The character before the match: the last of this piece, or of what was written before it.
fn last_character(before: &str, written: &str) -> Option<char> {
    before
        .chars()
        .next_back()
        .or_else(|| written.chars().next_back())
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
