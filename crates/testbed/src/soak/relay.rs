//! One relay over its lives: started, killed, stopped, paused; its log is kept in one.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use postrider_testbed::{Daemon, DaemonOptions};

const MIGRATE_DEADLINE: Duration = Duration::from_secs(60);

/// Far longer than `shutdown_grace`.
const STOP_DEADLINE: Duration = Duration::from_secs(45);

/// A relay, when it runs, and what all of its lives have logged.
#[derive(Debug)]
pub(crate) struct Relay {
    number: u64,
    options: DaemonOptions,
    daemon: Option<Daemon>,
    log: Vec<String>,
    starts: u64,
}

impl Relay {
    pub(crate) fn new(number: u64, options: DaemonOptions) -> Self {
        Self {
            number,
            options,
            daemon: None,
            log: Vec::new(),
            starts: 0,
        }
    }

    /// How often it was started again.
    pub(crate) fn restarts(&self) -> u64 {
        self.starts.saturating_sub(1)
    }

    /// Starts it, and does not wait: its servers may be away.
    pub(crate) async fn start(&mut self) -> Result<()> {
        self.daemon = Some(Daemon::start(self.options.clone()).await?);
        self.starts += 1;
        Ok(())
    }

    /// Whether it has ended without being asked to.
    pub(crate) fn has_ended(&self) -> bool {
        self.daemon
            .as_ref()
            .is_some_and(|daemon| !daemon.is_running())
    }

    pub(crate) async fn kill(&mut self) -> Result<()> {
        let killed = self.running()?.kill().await;
        self.retire();
        killed
    }

    /// SIGTERM. It must end in good order whatever its servers do.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let daemon = self.running()?;
        daemon.sigterm()?;
        let status = daemon.wait_exit(STOP_DEADLINE).await;
        if status.is_err() {
            // Still there: the next life must not run beside it.
            let _ = daemon.kill().await;
        }
        self.retire();
        let status = status?;
        ensure!(
            status.success(),
            "relay {} ended with {status} on SIGTERM",
            self.number
        );
        Ok(())
    }

    pub(crate) fn pause(&self) -> Result<()> {
        self.running()?.pause()
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.running()?.resume()
    }

    /// `None` when it is ready, else what it says about that.
    pub(crate) async fn unready(&self) -> Option<String> {
        let Some(daemon) = &self.daemon else {
            return Some("does not run".into());
        };
        match daemon.http("/readyz").await {
            Ok((200, _)) => None,
            Ok((_, body)) => Some(body),
            Err(error) => Some(format!("{error:#}")),
        }
    }

    /// Runs another command of the program to its end; what it printed.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut options = self.options.clone();
        options.args = arguments.iter().map(ToString::to_string).collect();
        let program = Daemon::start(options).await?;
        let status = program.wait_exit(MIGRATE_DEADLINE).await?;
        ensure!(
            status.success(),
            "`postrider {}` ended with {status}:\n{}",
            arguments.join(" "),
            program.log()
        );
        Ok(program.log())
    }

    /// Every line that was logged so far.
    pub(crate) fn log(&self) -> Vec<String> {
        let mut log = self.log.clone();
        if let Some(daemon) = &self.daemon {
            log.extend(daemon.log_lines());
        }
        log
    }

    /// How often it logged each event that is no mere information, with its reason where it has one.
    pub(crate) fn count_events(&self, counts: &mut BTreeMap<String, u64>) {
        for line in self.log() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            let text = |key: &str| line.get(key).and_then(serde_json::Value::as_str);
            let level = text("level").unwrap_or_default();
            if let Some(event) = text("event")
                && !level.eq_ignore_ascii_case("info")
            {
                let name = match text("reason") {
                    Some(reason) => format!("{event} {reason}"),
                    None => event.to_owned(),
                };
                *counts.entry(name).or_default() += 1;
            }
        }
    }

    /// Forgets a daemon that has ended; its log stays.
    pub(crate) fn retire(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            self.log.extend(daemon.log_lines());
        }
    }

    fn running(&self) -> Result<&Daemon> {
        self.daemon
            .as_ref()
            .with_context(|| format!("relay {} does not run", self.number))
    }
}
