//! The daemon under measurement: the real program, as an operator starts it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postrider_testbed::{Daemon, DaemonOptions, wait_until};

use crate::stage::{Installation, Stage};

/// How long the daemon may take to be ready, or to end.
const DEADLINE: Duration = Duration::from_secs(60);

fn options(stage: &Stage, installation: &Installation) -> DaemonOptions {
    let mut options = DaemonOptions::new(&installation.binary)
        // An empty file, so that the machine's own configuration is not read.
        .config("")
        .env("POSTRIDER_DATABASE_URL", &installation.database.url)
        .env("POSTRIDER_BROKER_URL", &stage.vhost.url);
    for setting in &stage.settings {
        options = options.env(&setting.name, &setting.value);
    }
    options
}

/// Creates the outbox.
///
/// # Errors
/// `postrider migrate` fails.
pub(crate) async fn migrate(stage: &Stage, installation: &Installation) -> Result<()> {
    let mut options = options(stage, installation);
    options.args = vec!["migrate".into()];
    let migration = Daemon::start(options).await?;
    let status = migration.wait_exit(DEADLINE).await?;
    ensure!(
        status.success(),
        "`postrider migrate` ended with {status}:\n{}",
        migration.log()
    );
    Ok(())
}

/// Starts the daemon and waits until it says that messages can move.
///
/// # Errors
/// It ends, or is not ready within a minute.
pub(crate) async fn start(stage: &Stage, installation: &Installation) -> Result<Daemon> {
    let daemon = Daemon::start(options(stage, installation)).await?;
    let ready = wait_until(DEADLINE, "the daemon to be ready", async || {
        !daemon.is_running() || matches!(daemon.http("/readyz").await, Ok((200, _)))
    })
    .await;
    ready.with_context(|| daemon.log())?;
    ensure!(
        daemon.is_running(),
        "the daemon ended at its start:\n{}",
        daemon.log()
    );
    Ok(daemon)
}

/// Stops the daemon in good order.
///
/// # Errors
/// It does not end within a minute, or not with success.
pub(crate) async fn stop(daemon: Daemon) -> Result<()> {
    daemon.sigterm()?;
    let status = daemon.wait_exit(DEADLINE).await?;
    ensure!(
        status.success(),
        "the daemon ended with {status}:\n{}",
        daemon.log()
    );
    Ok(())
}
