//! What relays in a measurement: the daemon, or a loop that it is compared with. Such a loop is part of this program,
//! but runs as a process of its own, so that its CPU time can be told from the bench's.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use postrider_testbed::{Daemon, DaemonOptions};
use serde::Serialize;

use crate::{
    daemon, handwritten, listening,
    stage::{Installation, Stage},
};

/// How long a relay may take to be ready.
const DEADLINE: Duration = Duration::from_secs(60);

/// The variables that tell a loop where it belongs. Not arguments: those can be read by everyone on the machine.
const DATABASE_VARIABLE: &str = "BENCH_LOOP_DATABASE_URL";
const BROKER_VARIABLE: &str = "BENCH_LOOP_BROKER_URL";

/// What a loop says when it is connected.
pub(crate) const READY: &str = "the loop is connected";

/// A loop as it is written by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Loop {
    /// Two tasks, batches of 500
    Handwritten,
    /// One message at a time, always listening
    Listening,
}

impl Loop {
    /// The process of the loop.
    ///
    /// # Errors
    /// Whatever goes wrong ends it.
    pub(crate) async fn run(self) -> Result<()> {
        let variable = |name| std::env::var(name).with_context(|| format!("{name} is not set"));
        let (database, broker) = (variable(DATABASE_VARIABLE)?, variable(BROKER_VARIABLE)?);
        match self {
            Self::Handwritten => handwritten::run(&database, &broker).await,
            Self::Listening => listening::run(&database, &broker).await,
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Handwritten => "handwritten",
            Self::Listening => "listening",
        }
    }
}

/// What relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The daemon, with the settings of the run.
    Postrider,
    /// The daemon, with no wake-up but its poll.
    Polling,
    /// A loop.
    Loop(Loop),
}

impl Contender {
    /// How it is called in tables and results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postrider => "postrider",
            Self::Polling => "postrider, polling alone",
            Self::Loop(Loop::Handwritten) => "hand-written loop",
            Self::Loop(Loop::Listening) => "loop that always listens",
        }
    }

    /// Starts it and waits until messages can move.
    ///
    /// # Errors
    /// It ends, or is not ready within a minute.
    pub(crate) async fn start(self, stage: &Stage, installation: &Installation) -> Result<Daemon> {
        match self {
            Self::Postrider => daemon::start(stage, installation).await,
            Self::Polling => {
                daemon::start_with(stage, installation, &[("POSTRIDER_WAKEUP_NOTIFY", "false")])
                    .await
            }
            Self::Loop(which) => {
                let this =
                    std::env::current_exe().context("could not find out where this program is")?;
                let mut options = DaemonOptions::new(this)
                    .env(DATABASE_VARIABLE, &installation.database.url)
                    .env(BROKER_VARIABLE, &stage.vhost.url);
                options.args = vec!["loop".to_owned(), which.argument().to_owned()];
                let process = Daemon::start(options).await?;
                process.wait_for_log(READY, DEADLINE).await?;
                Ok(process)
            }
        }
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not end, or the daemon ends with an error.
    pub(crate) async fn stop(self, process: Daemon) -> Result<()> {
        match self {
            Self::Postrider | Self::Polling => daemon::stop(process).await,
            // It knows no good order.
            Self::Loop(_) => process.kill().await,
        }
    }
}
