//! Several daemons on one outbox, and what they do together.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use postrider_testbed::Daemon;

use crate::{
    daemon::{self, Sample},
    stage::{Installation, Stage},
};

/// How often the daemons' counters are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A rate so low that something is wrong.
const LEAST_PER_SECOND: u32 = 200;

/// The daemons.
#[derive(Debug)]
pub(crate) struct Fleet {
    daemons: Vec<Daemon>,
}

impl Fleet {
    /// Starts so many, with a name each and the same variables, and waits until messages can move.
    ///
    /// # Errors
    /// One ends, or is not ready within a minute.
    pub(crate) async fn start(
        stage: &Stage,
        installation: &Installation,
        relays: u32,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let mut daemons = Vec::new();
        for number in 1..=relays {
            let name = format!("bench-{number}");
            let variables = [&[("POSTRIDER_RELAY_NAME", name.as_str())], variables].concat();
            daemons.push(daemon::start_with(stage, installation, &variables).await?);
        }
        Ok(Self { daemons })
    }

    /// Seconds of CPU time that all of them have used.
    ///
    /// # Errors
    /// One is gone.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        self.daemons.iter().map(Daemon::cpu_seconds).sum()
    }

    /// What each has published so far.
    ///
    /// # Errors
    /// One does not answer.
    pub(crate) async fn published(&self) -> Result<Vec<f64>> {
        let samples = try_join_all(self.daemons.iter().map(Sample::take)).await?;
        Ok(samples.iter().map(Sample::published).collect())
    }

    /// Waits until all together have published `messages` since `earlier`, of which [`published`](Self::published) told.
    /// What each has published since then, and how long after `began` that was.
    ///
    /// # Errors
    /// They have not within the time that a very slow daemon takes, or one does not answer.
    pub(crate) async fn until_published(
        &self,
        earlier: &[f64],
        messages: u32,
        began: Instant,
    ) -> Result<(Vec<f64>, Duration)> {
        let deadline = Duration::from_secs(60 + u64::from(messages / LEAST_PER_SECOND));
        loop {
            let published = self.published().await?;
            let elapsed = began.elapsed();
            let since = since(&published, earlier);
            if since.iter().sum::<f64>() >= f64::from(messages) {
                return Ok((since, elapsed));
            }
            if elapsed >= deadline {
                bail!(
                    "not all messages were published within {deadline:?}:\n{}",
                    self.log()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What all of them have logged.
    pub(crate) fn log(&self) -> String {
        let logs: Vec<String> = self.daemons.iter().map(Daemon::log).collect();
        logs.join("\n")
    }

    /// Stops them in good order.
    ///
    /// # Errors
    /// One does not end within a minute, or not with success.
    pub(crate) async fn stop(self) -> Result<()> {
        for daemon in self.daemons {
            daemon::stop(daemon).await?;
        }
        Ok(())
    }
}

fn since(published: &[f64], earlier: &[f64]) -> Vec<f64> {
    published
        .iter()
        .zip(earlier)
        .map(|(now, then)| now - then)
        .collect()
}

/// The least and the most that one of several has done, as parts of an equal share. `shares` are parts of 1.
pub(crate) fn of_an_equal_share(shares: &[f64]) -> (f64, f64) {
    let fair = |share: f64| share * shares.len() as f64;
    let least = shares.iter().copied().fold(1.0, f64::min);
    let most = shares.iter().copied().fold(0.0, f64::max);
    (fair(least), fair(most))
}

/// Parts of 1.
pub(crate) fn shares(published: &[f64]) -> Vec<f64> {
    let total: f64 = published.iter().sum();
    published.iter().map(|own| own / total).collect()
}

#[cfg(test)]
mod tests {
    use super::{of_an_equal_share, shares, since};

    #[test]
    fn what_was_published_before_the_clock_started_is_nobodys_share() {
        let done = since(&[110.0, 40.0], &[10.0, 10.0]);
        assert_eq!(done, [100.0, 30.0]);
        assert_eq!(shares(&[75.0, 25.0]), [0.75, 0.25]);
    }

    #[test]
    fn one_relay_does_an_equal_share_whatever_it_does() {
        assert_eq!(of_an_equal_share(&[1.0]), (1.0, 1.0));
        assert_eq!(of_an_equal_share(&[0.25, 0.75]), (0.5, 1.5));
        assert_eq!(of_an_equal_share(&[0.0, 0.5, 0.5, 0.0]), (0.0, 2.0));
    }
}
