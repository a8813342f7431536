//! Whether this program can work with the outbox in the database.

use super::{SchemaState, latest, migrations};
use crate::database::Database;
use crate::error::Error;
use crate::rights::{Group, On, Right};

/// The role of the session, and each right that it lacks, in the schema `$1`.
///
/// By the catalogue and not by names, which a role that may not use the schema may not even look up. An object that is
/// missing is the business of the schema's version.
struct LackingSql(String);

impl LackingSql {
    fn new(rights: &[Right]) -> Self {
        let mut lacking = vec![
            "SELECT 'USAGE on the schema' AS missing WHERE NOT has_schema_privilege(n.oid, 'USAGE')"
                .to_owned(),
        ];
        for Right { privilege, on } in rights {
            let relation = "FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname =";
            lacking.push(match on {
                On::Table(table) => format!(
                    "SELECT '{privilege} on {table}' {relation} '{table}' \
                     AND NOT has_table_privilege(c.oid, '{privilege}')"
                ),
                On::Columns(table, columns) => format!(
                    "SELECT '{privilege} on {table} (' || string_agg(l.name, ', ') || ')' \
                     FROM pg_class AS c, unnest(ARRAY['{}']) AS l (name) \
                     WHERE c.relnamespace = n.oid AND c.relname = '{table}' \
                       AND NOT has_column_privilege(c.oid, l.name, '{privilege}') HAVING count(*) > 0",
                    columns.join("','")
                ),
                On::Function(name, parameters) => format!(
                    "SELECT '{privilege} on {name}({parameters})' FROM pg_proc AS p \
                     WHERE p.pronamespace = n.oid AND p.proname = '{name}' \
                       AND NOT has_function_privilege(p.oid, '{privilege}')"
                ),
            });
        }
        Self(format!(
            "SELECT current_user::text, lacking.missing FROM pg_namespace AS n, \
             LATERAL ({}) AS lacking WHERE n.nspname = $1::text",
            lacking.join(" UNION ALL ")
        ))
    }
}

impl Database {
    /// Makes sure that this program can work with the outbox in the database: every migration applied
    /// as it is here, none that is unknown but those that say that this program works all the same, and a
    /// sequence that hands out its values in order.
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
            current_ahead_or_refused => self.refuse(current_ahead_or_refused)?,
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
        let failed = |error| Error::query(DOING, error);
        let lacking = LackingSql::new(&Group::Relay.rights());
        let lease = self.lease().await?;
        let rows = self
            .answer(DOING, async {
                lease
                    .client()?
                    .query(&lacking.0, &[&self.schema().as_str()])
                    .await
                    .map_err(failed)
            })
            .await?;
        lease.give_back();
        let mut role = String::new();
        let mut missing = Vec::new();
        for row in &rows {
            role = row.try_get(0).map_err(failed)?;
            missing.push(row.try_get::<_, String>(1).map_err(failed)?);
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Rights {
            role,
            schema: self.schema().clone(),
            missing: missing.join(", "),
        })
    }

    /// What neither `run` nor `migrate` can work with.
    pub(super) fn refuse(&self, state: SchemaState) -> Result<(), Error> {
        match state {
            SchemaState::Missing
            | SchemaState::Older { .. }
            | SchemaState::Current
            | SchemaState::Ahead { .. } => Ok(()),
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
