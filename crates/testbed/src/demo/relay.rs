//! The daemon over its lives: started, killed, started again, stopped; its log is kept in one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postrider_testbed::{Daemon, DaemonOptions};
use tokio::time::Instant;

const READY_DEADLINE: Duration = Duration::from_secs(60);
const MIGRATE_DEADLINE: Duration = Duration::from_secs(60);

/// Longer than the daemon's own `shutdown_grace`.
const STOP_DEADLINE: Duration = Duration::from_secs(40);

/// The daemon, when it runs, and what all of them have logged.
pub(crate) struct Relay {
    options: DaemonOptions,
    daemon: Option<Daemon>,
    log: Vec<String>,
}

impl Relay {
    pub(crate) fn new(options: DaemonOptions) -> Self {
        Self {
            options,
            daemon: None,
            log: Vec::new(),
        }
    }

    /// Runs `postrider migrate`.
    pub(crate) async fn migrate(&mut self) -> Result<()> {
        let mut options = self.options.clone();
        options.args = vec!["migrate".into()];
        let migration = self.daemon.insert(Daemon::start(options).await?);
        let status = migration.wait_exit(MIGRATE_DEADLINE).await;
        self.retire();
        let status = status?;
        ensure!(status.success(), "`postrider migrate` ended with {status}");
        Ok(())
    }

    /// Starts the daemon and waits until it says that it is ready; its process id.
    pub(crate) async fn start(&mut self) -> Result<i32> {
        let daemon = self
            .daemon
            .insert(Daemon::start(self.options.clone()).await?);
        let end = Instant::now() + READY_DEADLINE;
        loop {
            if let Ok((200, _)) = daemon.http("/readyz").await {
                return Ok(daemon.pid());
            }
            if !daemon.is_running() {
                bail!("the daemon ended at its start");
            }
            if Instant::now() >= end {
                let reasons = match daemon.http("/readyz").await {
                    Ok((_, body)) => body,
                    Err(error) => format!("{error:#}"),
                };
                bail!("the daemon was not ready within {READY_DEADLINE:?}: {reasons}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The error of a daemon that ended without being asked to.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.daemon {
            Some(daemon) if !daemon.is_running() => bail!("the daemon ended by itself"),
            _ => Ok(()),
        }
    }

    /// SIGKILL; the process id that was.
    pub(crate) async fn kill(&mut self) -> Result<i32> {
        let daemon = self.daemon.as_ref().context("the daemon does not run")?;
        let pid = daemon.pid();
        let killed = daemon.kill().await;
        self.retire();
        killed.map(|()| pid)
    }

    /// SIGTERM, and waits for an end in good order.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the daemon does not run")?;
        daemon.sigterm()?;
        let status = daemon.wait_exit(STOP_DEADLINE).await;
        self.retire();
        let status = status?;
        ensure!(
            status.success(),
            "the daemon ended with {status} on SIGTERM"
        );
        Ok(())
    }

    /// Kills what still runs; every line that was logged.
    pub(crate) async fn into_log(mut self) -> Vec<String> {
        if let Some(daemon) = &self.daemon {
            let _ = daemon.kill().await;
        }
        self.retire();
        self.log
    }

    fn retire(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            self.log.extend(daemon.log_lines());
        }
    }
}
