//! Measures lag and backlog on a schedule of its own, so that they rise while nothing can be
//! published, and the log can say when the relay has caught up.

use std::time::{Duration, Instant};

use postrider_core::{Backoff, jittered};
use postrider_postgres::{Database, Error, Sample};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::metrics::unix_now;
use crate::shared::Shared;

/// Counting a large backlog, many deferred messages or dead letters takes time: the next sample comes after so many times
/// what this one took, at least.
const SHARE: u32 = 20;
/// The longest wait between two attempts while the database is away.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A lag from which on it is news that it is gone.
const NOTEWORTHY_LAG: Duration = Duration::from_secs(10);
/// A lag below which it is gone.
const CAUGHT_UP: Duration = Duration::from_secs(1);

pub(crate) async fn keep_sampling(database: &Database, shared: &Shared, stop: &CancellationToken) {
    let Shared {
        settings,
        metrics,
        progress,
        ..
    } = shared;
    let mut last: Option<(Instant, Sample)> = None;
    let mut worst_lag = Duration::ZERO;
    let mut backoff = Backoff::new(settings.sample_interval, LONGEST_WAIT);
    loop {
        let began = Instant::now();
        let sampled = tokio::select! {
            () = stop.cancelled() => return,
            sampled = sample(database, settings.backlog_limit) => sampled,
        };
        let mut interval = settings.sample_interval;
        match sampled {
            Ok((sample, relays)) => {
                backoff.reset();
                interval = interval.max(began.elapsed() * SHARE);
                progress.database_sampled(Ok(()));
                metrics.lag_seconds.set(sample.lag.as_secs_f64());
                metrics
                    .backlog_messages
                    .set(i64::try_from(sample.backlog).unwrap_or(i64::MAX));
                metrics.backlog_capped.set(i64::from(sample.backlog_capped));
                metrics
                    .relays
                    .set(i64::try_from(relays).unwrap_or(i64::MAX));
                for (cause, counted) in [
                    ("retry", sample.deferred_retry),
                    ("scheduled", sample.deferred_scheduled),
                ] {
                    metrics
                        .deferred(cause)
                        .set(i64::try_from(counted.count).unwrap_or(i64::MAX));
                }
                metrics
                    .dead_letters
                    .set(i64::try_from(sample.dead_letters.count).unwrap_or(i64::MAX));
                metrics.sample_timestamp_seconds.set(unix_now());
                progress.measured(sample.lag, sample.backlog);
                worst_lag = worst_lag.max(sample.lag);
                if sample.lag < CAUGHT_UP {
                    if worst_lag >= NOTEWORTHY_LAG {
                        info!(
                            event = "caught_up",
                            worst_lag_s = worst_lag.as_secs_f64(),
                            "caught up: nothing old waits to be published"
                        );
                    }
                    worst_lag = Duration::ZERO;
                }
                last = Some((Instant::now(), sample));
            }
            Err(error) => {
                interval = interval.max(backoff.next(rand::random()));
                progress.database_sampled(Err(&error));
                // What waited then still waits, and has grown older by our own clock. Where nothing
                // waited, nothing is known, and a made-up lag would be a false alarm: that the
                // database is away is a metric of its own.
                if let Some((at, sample)) = &last
                    && sample.backlog > 0
                {
                    let lag = sample.lag + at.elapsed();
                    worst_lag = worst_lag.max(lag);
                    metrics.lag_seconds.set(lag.as_secs_f64());
                    progress.measured(lag, sample.backlog);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(jittered(interval, rand::random())) => {}
        }
    }
}

async fn sample(database: &Database, backlog_limit: u64) -> Result<(Sample, usize), Error> {
    let sample = database.sample(backlog_limit).await?;
    let relays = database.relays().await?.len();
    Ok((sample, relays))
}
