//! The daemon under measurement: the real program, as an operator starts it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postrider_testbed::{Client, Daemon, DaemonOptions, exposition, wait_until};

use crate::{
    cpu::ProcessTimes,
    stage::{Installation, Stage},
};

/// How long the daemon may take to be ready, or to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often its counters are looked at: seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
    start_with(stage, installation, &[]).await
}

/// [`start`], with variables of its own beside the settings of the run.
///
/// # Errors
/// As [`start`].
pub(crate) async fn start_with(
    stage: &Stage,
    installation: &Installation,
    variables: &[(&str, &str)],
) -> Result<Daemon> {
    let mut options = options(stage, installation);
    for &(name, value) in variables {
        options = options.env(name, value);
    }
    let daemon = Daemon::start(options).await?;
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

/// What a daemon's counters stood at, and when.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    metrics: String,
}

impl Sample {
    /// # Errors
    /// The daemon does not answer.
    pub(crate) async fn take(daemon: &Daemon) -> Result<Self> {
        let (status, metrics) = daemon.http("/metrics").await?;
        ensure!(status == 200, "GET /metrics was answered with {status}");
        Ok(Self {
            at: Instant::now(),
            metrics,
        })
    }

    /// Messages that were confirmed and deleted, of those to the default exchange.
    pub(crate) fn published(&self) -> f64 {
        let labels = [("exchange", "amq.default")];
        self.value("postrider_published_total", &labels)
    }

    /// How long a batch was claimed on average since `earlier`. `None` without any batch.
    pub(crate) fn claim_ms_since(&self, earlier: &Self) -> Option<f64> {
        let labels = [("phase", "claim")];
        let since = |name| self.value(name, &labels) - earlier.value(name, &labels);
        let claims = since("postrider_batch_seconds_count");
        (claims > 0.0).then(|| since("postrider_batch_seconds_sum") / claims * 1e3)
    }

    /// A series that is not there yet has counted nothing.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        exposition::value(&self.metrics, name, labels).unwrap_or_default()
    }
}

/// Waits until a daemon has published that many messages in all; its counters then.
///
/// # Errors
/// It ends, or has not within `deadline`.
pub(crate) async fn until_published(
    daemon: &Daemon,
    messages: u32,
    deadline: Duration,
) -> Result<Sample> {
    let began = Instant::now();
    loop {
        let sample = Sample::take(daemon).await.with_context(|| daemon.log())?;
        if sample.published() >= f64::from(messages) {
            return Ok(sample);
        }
        ensure!(
            began.elapsed() < deadline,
            "{} of {messages} messages were published within {deadline:?}:\n{}",
            sample.published(),
            daemon.log()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The CPU time of the sessions that all daemons have in this database.
///
/// # Errors
/// PostgreSQL does not say which they are.
pub(crate) async fn sessions(client: &Client) -> Result<ProcessTimes> {
    let rows = client
        .query(
            "SELECT pid FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name LIKE 'postrider%'",
            &[],
        )
        .await
        .context("could not look for the daemon's sessions")?;
    Ok(ProcessTimes::of(rows.iter().map(|row| row.get(0))))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::Sample;

    fn sample(metrics: &str) -> Sample {
        Sample {
            at: Instant::now(),
            metrics: metrics.to_owned(),
        }
    }

    #[test]
    fn what_a_daemon_has_not_counted_yet_is_nothing() {
        let nothing = sample("");
        assert_eq!(nothing.published(), 0.0);
        assert_eq!(nothing.claim_ms_since(&nothing), None);
    }

    #[test]
    fn claims_are_averaged_over_what_came_between_two_samples() {
        let earlier = sample(
            "postrider_batch_seconds_sum{outbox=\"o\",phase=\"claim\"} 10\n\
             postrider_batch_seconds_count{outbox=\"o\",phase=\"claim\"} 2\n",
        );
        let now = sample(
            "postrider_batch_seconds_sum{outbox=\"o\",phase=\"claim\"} 10.5\n\
             postrider_batch_seconds_count{outbox=\"o\",phase=\"claim\"} 12\n\
             postrider_published_total{exchange=\"amq.default\",outbox=\"o\"} 7\n",
        );
        assert_eq!(now.claim_ms_since(&earlier), Some(50.0));
        assert_eq!(now.published(), 7.0);
    }
}
