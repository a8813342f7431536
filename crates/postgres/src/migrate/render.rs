//! The migrations as SQL: for a schema of any name, each with its record.

use std::fmt::Write as _;

use super::{Migration, latest, migrations};
use crate::schema_name::Schema;

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

pub(super) fn record_table(schema: &Schema) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {schema}.postrider_migrations (\n    \
             version integer PRIMARY KEY,\n    \
             name text NOT NULL,\n    \
             checksum text NOT NULL,\n    \
             applied_at timestamptz NOT NULL DEFAULT clock_timestamp()\n\
         );"
    )
}

pub(super) fn record(migration: &Migration, schema: &Schema) -> String {
    // Only once a migration has made the column.
    let (column, value) = match migration.compatible_from {
        Some(version) => (", compatible_from", format!(", {version}")),
        None => ("", String::new()),
    };
    format!(
        "INSERT INTO {schema}.postrider_migrations (version, name, checksum{column}) VALUES ({}, '{}', '{}'{value});",
        migration.version, migration.name, migration.checksum,
    )
}

/// The same statements for another schema: `outbox` is replaced where it qualifies a name, and in the
/// name of the wake-up channel; not where prose speaks of the outbox.
pub(super) fn in_schema(sql: &str, schema: &Schema) -> String {
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
