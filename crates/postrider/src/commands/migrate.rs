//! `migrate`: creates the outbox, or brings it up to date.

use std::io::{self, Write};
use std::time::Duration;

use postrider_postgres::{Schema, print_sql};

use crate::cli::Migrate;
use crate::config::DatabaseConfig;
use crate::wiring;

/// How long to wait for another migration that is under way.
const WAIT: Duration = Duration::from_secs(60);

/// Prints the SQL of all migrations; needs no database.
///
/// # Errors
/// When the output cannot be written.
pub(crate) fn print(schema: &Schema, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(print_sql(schema).as_bytes())
}

/// Applies what is missing, or lists it.
///
/// # Errors
/// When the database cannot be reached, or its schema was edited or is newer than this program.
pub(crate) async fn migrate(
    config: &DatabaseConfig,
    arguments: &Migrate,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let database = wiring::database_for_command(config)?;
    database.check_server().await?;
    let (migrations, done) = if arguments.dry_run {
        (database.plan().await?, "would apply")
    } else {
        (database.migrate(WAIT).await?, "applied")
    };
    for migration in &migrations {
        writeln!(out, "{done} {:04}_{}", migration.version, migration.name)?;
    }
    if migrations.is_empty() {
        writeln!(out, "the outbox in schema {} is up to date", config.schema)?;
    }
    Ok(())
}
