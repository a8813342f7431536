//! Whether this program can work with the outbox in the database.

use super::{SchemaState, latest, migrations};
use crate::database::Database;
use crate::error::Error;

impl Database {
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
                               SELECT f.name, 'EXECUTE' \
                               FROM (VALUES ('header_names_are_at_most_255_bytes(jsonb)'), ('next_seq()')) AS f (name) \
                               WHERE NOT has_function_privilege($1::text || '.' || f.name, 'EXECUTE')) AS missing",
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

    /// What neither `run` nor `migrate` can work with.
    pub(super) fn refuse(&self, state: SchemaState) -> Result<(), Error> {
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
