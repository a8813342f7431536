//! Measures lag and backlog on a schedule of its own, so that they rise while nothing can be
//! published, and the log can say when the relay has caught up.

use std::time::{Duration, Instant};

use postrider_core::{Backoff, Pace, jittered};
use postrider_postgres::{Database, Error, Sample, SampleFrom};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::metrics::{Metrics, unix_now};
use crate::settings::Reloadable;
use crate::shared::Shared;

/// Counting takes time where there is much to count: a hundredth of it, unless that is more seldom than this. In between
/// the lag alone is looked at, which costs the same however many messages there are.
const LONGEST_BETWEEN_COUNTS: Duration = Duration::from_secs(60);
/// The longest wait between two attempts while the database is away.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A lag from which on it is news that it is gone.
const NOTEWORTHY_LAG: Duration = Duration::from_secs(10);
/// A lag below which it is gone.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// What was measured last.
#[derive(Debug, Clone, Copy)]
struct Last {
    at: Instant,
    lag: Duration,
    backlog: u64,
}

struct Sampler<'a> {
    database: &'a Database,
    shared: &'a Shared,
    count_at: Instant,
    last: Option<Last>,
    worst_lag: Duration,
}

/// Measures every `sample_interval`, until `stop`.
pub(crate) async fn keep_sampling(database: &Database, shared: &Shared, stop: &CancellationToken) {
    let mut live = shared.live.subscribe();
    let mut interval = live.get().sample_interval;
    let mut sampler = Sampler {
        database,
        shared,
        count_at: Instant::now(),
        last: None,
        worst_lag: Duration::ZERO,
    };
    let mut backoff = Backoff::new(interval, LONGEST_WAIT);
    loop {
        let settings = live.get();
        if settings.sample_interval != interval {
            interval = settings.sample_interval;
            backoff = Backoff::new(interval, LONGEST_WAIT);
        }
        let sampled = tokio::select! {
            () = stop.cancelled() => return,
            sampled = sampler.sample(&settings) => sampled,
        };
        let mut pause = interval;
        match sampled {
            Ok(()) => {
                backoff.reset();
                shared.progress.database_sampled(Ok(()));
            }
            Err(error) => {
                pause = pause.max(backoff.next(rand::random()));
                shared.progress.database_sampled(Err(&error));
                sampler.grow_older();
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = live.changed() => {}
            () = tokio::time::sleep(jittered(pause, rand::random())) => {}
        }
    }
}

impl Sampler<'_> {
    async fn sample(&mut self, settings: &Reloadable) -> Result<(), Error> {
        let Shared {
            frontiers,
            due,
            metrics,
            ..
        } = self.shared;
        let scan = frontiers.sample();
        let from = SampleFrom {
            fresh: scan.from(),
            due: due.from(),
        };
        // With each look, however long counting takes: workers share the lanes by it, and who thinks himself alone takes all.
        metrics
            .relays
            .set(gauge(self.database.count_relays().await?));
        let began = Instant::now();
        let (lag, oldest_fresh, backlog) = if began < self.count_at {
            let lag = self.database.lag(from).await?;
            let counted = self.last.map_or(0, |last| last.backlog);
            // Not counted, and known all the same: whether there is any.
            let backlog = lag.oldest.as_ref().map_or(0, |_| counted.max(1));
            (lag.lag, lag.oldest_fresh, backlog)
        } else {
            let sample = self
                .database
                .sample_from(from, settings.backlog_limit)
                .await?;
            let now = Instant::now();
            let counts = Pace::new(settings.sample_interval, LONGEST_BETWEEN_COUNTS);
            self.count_at = now + counts.rest(now - began);
            tell_counts(metrics, &sample);
            (sample.lag, sample.oldest_fresh, sample.backlog)
        };
        frontiers.sampled(scan, oldest_fresh);
        metrics.lag_seconds.set(lag.as_secs_f64());
        metrics.backlog_messages.set(gauge(backlog));
        metrics.sample_timestamp_seconds.set(unix_now());
        self.shared.progress.measured(lag, backlog);
        self.last = Some(Last {
            at: Instant::now(),
            lag,
            backlog,
        });
        self.tell_when_caught_up(lag);
        Ok(())
    }

    fn tell_when_caught_up(&mut self, lag: Duration) {
        self.worst_lag = self.worst_lag.max(lag);
        if lag >= CAUGHT_UP {
            return;
        }
        if self.worst_lag >= NOTEWORTHY_LAG {
            info!(
                event = "caught_up",
                worst_lag_s = self.worst_lag.as_secs_f64(),
                "caught up: nothing old waits to be published"
            );
        }
        self.worst_lag = Duration::ZERO;
    }

    /// Nothing could be measured. What waited then still waits, and has grown older by our own clock. Where nothing
    /// waited, nothing is known, and a made-up lag would be a false alarm: that the database is away is a
    /// metric of its own.
    fn grow_older(&mut self) {
        let Some(Last { at, lag, backlog }) = self.last.filter(|last| last.backlog > 0) else {
            return;
        };
        let lag = lag + at.elapsed();
        self.worst_lag = self.worst_lag.max(lag);
        self.shared.metrics.lag_seconds.set(lag.as_secs_f64());
        self.shared.progress.measured(lag, backlog);
    }
}

fn tell_counts(metrics: &Metrics, sample: &Sample) {
    metrics.backlog_capped.set(i64::from(sample.backlog_capped));
    for (cause, counted) in [
        ("retry", sample.deferred_retry),
        ("scheduled", sample.deferred_scheduled),
    ] {
        metrics.deferred(cause).set(gauge(counted.count));
    }
    metrics.dead_letters.set(gauge(sample.dead_letters.count));
    let blocked = &sample.blocked;
    metrics.blocked_keys.set(gauge(blocked.keys.count));
    metrics.parked_messages.set(gauge(blocked.parked));
    metrics
        .blocked_key_age_seconds
        .set(blocked.longest.as_secs_f64());
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
