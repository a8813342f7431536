//! Starts the tasks of one relay, and stops them in order.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postrider_core::{Resting, Routes};
use postrider_postgres::Database;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::at_work::AtWork;
use crate::awake::Awake;
use crate::breakers::Breakers;
use crate::broker::Broker;
use crate::due::{Due, keep_watching};
use crate::frontiers::Frontiers;
use crate::late::{LateConfirms, keep_settling_late};
use crate::metrics::Metrics;
use crate::ordered::Ordered;
use crate::prober::Prober;
use crate::progress::Progress;
use crate::rehearsal::Rehearsal;
use crate::reload::{Live, Reloader};
use crate::retention::keep_purging;
use crate::sampler::keep_sampling;
use crate::settings::Settings;
use crate::shared::{Fixed, Shared};
use crate::suspects::Suspects;
use crate::tasks::Tasks;
use crate::unsettled::Unsettled;
use crate::wakeup::keep_listening;
use crate::watcher::keep_watching_outbox;
use crate::worker::Worker;

/// The longest wait between two attempts to listen.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How many rows are left out of the claims at most, because they cannot be read, or because the database keeps them.
const MOST_RESTING: usize = 5_000;
/// How often a stopping relay looks whether the broker has blocked what is in flight.
const BLOCKED_CHECK: Duration = Duration::from_millis(100);

/// The signal to stop: cancel it once, from anywhere; what comes late sees it too.
pub type Stop = CancellationToken;

/// Why a relay ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A task ended by a panic. Nothing is lost: its claim was rolled back.
    #[error(
        "the task `{task}` of the relay failed; this is a bug: please report it with the log lines above"
    )]
    TaskFailed {
        /// The name of the task.
        task: String,
        /// The panic.
        #[source]
        source: tokio::task::JoinError,
    },
    /// The database is not fit to be relayed from.
    #[error(transparent)]
    Database(#[from] postrider_postgres::Error),
}

/// One relay: workers on one outbox and one broker.
#[derive(Debug)]
pub struct Relay<B> {
    shared: Arc<Shared>,
    database: Database,
    broker: B,
}

impl<B: Broker> Relay<B> {
    /// A relay that will run with these settings; nothing is connected yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        database: Database,
        broker: B,
        metrics: Arc<Metrics>,
        progress: Arc<Progress>,
    ) -> Self {
        let Settings {
            name,
            workers,
            confirm_timeout,
            notify,
            observer,
            reloadable,
        } = settings;
        let awake = Awake::new(reloadable.quiet_above);
        let routes = Routes::new(reloadable.retry, reloadable.unroutable.clone());
        let frontiers = Arc::new(Frontiers::default());
        Self {
            shared: Arc::new(Shared {
                settings: Fixed {
                    name,
                    workers,
                    confirm_timeout,
                    notify,
                    observer,
                },
                live: Live::new(reloadable),
                breakers: Breakers::new(routes, Arc::clone(&metrics)),
                rehearsal: Rehearsal::default(),
                unsettled: Unsettled::new(Arc::clone(&frontiers)),
                frontiers,
                awake,
                at_work: AtWork::new(workers),
                suspects: Suspects::default(),
                metrics,
                progress,
                resting: Mutex::new(Resting::new(MOST_RESTING)),
                wakeup: Notify::new(),
                due: Due::default(),
                ordered: Ordered::default(),
                connections_scarce: Notify::new(),
                stop: CancellationToken::new(),
                abandon: CancellationToken::new(),
            }),
            database,
            broker,
        }
    }

    /// By which it can be told to do some things otherwise, also before it runs.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader(Arc::clone(&self.shared))
    }

    /// Connects to the broker while `prepared` waits for the database and sees whether it is fit; then
    /// relays until `stop`; then claims nothing more, settles what is in flight within the grace,
    /// abandons the rest (the server rolls it back), and closes its connections.
    ///
    /// # Errors
    /// [`RelayError::Database`] when `prepared` says so, and [`RelayError::TaskFailed`] when a task
    /// panicked; everything else is stopped in order first.
    pub async fn run(
        self,
        prepared: impl Future<Output = Result<(), postrider_postgres::Error>>,
        stop: Stop,
    ) -> Result<(), RelayError> {
        let Self {
            shared,
            database,
            broker,
        } = self;
        let services_stop = CancellationToken::new();
        let mut services = Tasks::default();
        services.spawn("broker connection", {
            let (broker, shared, stop) = (broker.clone(), shared.clone(), services_stop.clone());
            async move { broker.keep(&shared.progress, &stop).await }
        });
        let prepared = tokio::select! {
            () = stop.cancelled() => Ok(()),
            prepared = prepared => prepared,
        };
        if prepared.is_err() || stop.is_cancelled() {
            shared.progress.stopping();
            services_stop.cancel();
            services.join().await?;
            return prepared.map_err(RelayError::Database);
        }
        services.spawn("listener", {
            let (database, shared, stop) =
                (database.clone(), shared.clone(), services_stop.clone());
            async move { keep_listening(&database, &shared, LONGEST_WAIT, &stop).await }
        });
        services.spawn("outbox watcher", {
            let (database, shared, stop) =
                (database.clone(), shared.clone(), services_stop.clone());
            async move {
                keep_watching_outbox(&database, &shared).await;
                // It ends before the others do.
                stop.cancelled().await;
            }
        });
        services.spawn("sampler", {
            let (database, shared, stop) =
                (database.clone(), shared.clone(), services_stop.clone());
            async move { keep_sampling(&database, &shared, &stop).await }
        });
        services.spawn("due watcher", {
            let (database, shared, stop) =
                (database.clone(), shared.clone(), services_stop.clone());
            async move { keep_watching(&database, &shared, &stop).await }
        });
        services.spawn("retention", {
            let (database, shared, stop) =
                (database.clone(), shared.clone(), services_stop.clone());
            async move { keep_purging(&database, &shared, &stop).await }
        });
        let (late, late_batches) = LateConfirms::new();
        services.spawn("late confirms", {
            let (database, shared, stop) =
                (database.clone(), shared.clone(), services_stop.clone());
            async move { keep_settling_late(&shared, &database, late_batches, &stop).await }
        });
        services.spawn("prober", {
            let (database, broker, late) = (database.clone(), broker.clone(), late.clone());
            let (shared, stop) = (shared.clone(), services_stop.clone());
            async move {
                let prober = Prober {
                    shared: &shared,
                    database: &database,
                    broker: &broker,
                    late,
                };
                prober.run(&stop).await;
            }
        });
        let mut workers = Tasks::default();
        for number in 0..shared.settings.workers {
            let (shared, database) = (shared.clone(), database.clone());
            let worker = Worker::new(number, shared, database, broker.clone(), late.clone());
            workers.spawn(format!("worker {number}"), worker.run());
        }

        let mut result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = workers.next() => ended.unwrap_or(Ok(())),
            ended = services.next() => ended.unwrap_or(Ok(())),
        };
        shared.progress.stopping();
        shared.stop.cancel();
        let drained = tokio::select! {
            drained = workers.join() => drained,
            () = end_of_grace(&shared) => {
                shared.abandon.cancel();
                workers.join().await
            }
        };
        services_stop.cancel();
        result = result.and(drained).and(services.join().await);
        result
    }
}

/// Resolves when what is in flight has had its time: after the grace, or as soon as the broker blocks
/// publishers, since no confirm comes before its alarm ends.
async fn end_of_grace(shared: &Shared) {
    let until = Instant::now() + shared.live.get().shutdown_grace;
    while Instant::now() < until && !shared.progress.is_blocked() {
        tokio::time::sleep(BLOCKED_CHECK).await;
    }
    warn!(
        event = "abandoned",
        messages = shared.metrics.in_flight_messages.get(),
        blocked = shared.progress.is_blocked(),
        "giving up on what is still in flight; it stays in the outbox for the next relay"
    );
}
