//! An outbox, a scripted broker and a relay between them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_core::{RetryPolicy, UnroutablePolicies, UnroutablePolicy};
use postrider_relay::{
    AfterDeadLetter, Metrics, Ordering, Progress, Relay, RelayError, Reloadable, Reloader,
    Settings, Stop,
};
use prometheus::Registry;
use tokio::task::JoinHandle;

use crate::broker::Scripted;
use crate::outbox::{DEADLINE, Outbox, until};

/// The most attempts of a message.
pub(crate) const MAX_ATTEMPTS: u32 = 6;

/// Settings with intervals as small as they make sense.
pub(crate) fn settings() -> Settings {
    Settings {
        name: "scripted".to_owned(),
        workers: 2,
        confirm_timeout: Duration::from_secs(1),
        notify: true,
        observer: None,
        reloadable: reloadable(),
    }
}

/// What of them can change.
pub(crate) fn reloadable() -> Reloadable {
    Reloadable {
        batch_rows: 100,
        batch_bytes: 1 << 20,
        max_message_bytes: 1 << 20,
        poll_interval: Duration::from_millis(20),
        straggler_timeout: Duration::from_millis(100),
        shutdown_grace: Duration::from_millis(200),
        quiet_above: 2_000,
        sample_interval: Duration::from_millis(100),
        backlog_limit: 1_000,
        retry: retry(Duration::from_millis(20), Duration::from_millis(100)),
        unroutable: UnroutablePolicies::new(UnroutablePolicy::Retry, HashMap::new()),
        ordering: Ordering {
            horizon: false,
            after_dead_letter: AfterDeadLetter::Block,
        },
        dead_letter_retention: None,
    }
}

pub(crate) fn retry(initial: Duration, longest: Duration) -> RetryPolicy {
    RetryPolicy::new(MAX_ATTEMPTS, initial, longest, 2.0).unwrap()
}

/// One that never comes due within a test, and is probed now and then.
pub(crate) fn rarely() -> RetryPolicy {
    retry(Duration::from_millis(20), Duration::from_secs(3600))
}

pub(crate) struct Scene {
    pub(crate) outbox: Outbox,
    pub(crate) broker: Scripted,
}

pub(crate) struct Running {
    pub(crate) reloader: Reloader,
    stop: Stop,
    relay: JoinHandle<Result<(), RelayError>>,
    registry: Registry,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let outbox = Outbox::fresh().await;
        let broker = Scripted::new(outbox.session().await);
        Self { outbox, broker }
    }

    pub(crate) fn start(&self, settings: Settings) -> Running {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::register(&registry, "test", 100).unwrap());
        let progress = Arc::new(Progress::new(
            settings.workers,
            settings.stuck_after(),
            Arc::clone(&metrics),
            Instant::now(),
        ));
        let database = self.outbox.database(settings.workers);
        let relay = Relay::new(settings, database, self.broker.clone(), metrics, progress);
        let stop = Stop::new();
        Running {
            reloader: relay.reloader(),
            relay: tokio::spawn(relay.run(async { Ok(()) }, stop.clone())),
            stop,
            registry,
        }
    }

    /// Waits until nothing waits, and asserts that nothing was ever out of place.
    pub(crate) async fn delivered(&self) {
        until("nothing waits any more", async || {
            self.outbox.waiting().await == 0
        })
        .await;
        assert_eq!(self.outbox.violations().await, []);
    }

    /// Waits until no transaction of the relay stays open.
    ///
    /// One may be seen open for the blink of an eye: of what is settled late, or of a claim that had begun
    /// when the broker went.
    pub(crate) async fn nothing_is_claimed(&self) {
        let mut quiet = 0;
        let mut seen: Vec<(i32, i64)> = Vec::new();
        until("no transaction of the relay stays open", async || {
            let open = self.outbox.open_transactions().await;
            let stays = open.iter().any(|open| seen.contains(open));
            quiet = if stays { 0 } else { quiet + 1 };
            seen = open;
            quiet > 5
        })
        .await;
    }
}

impl Running {
    pub(crate) fn is_over(&self) -> bool {
        self.relay.is_finished()
    }

    /// Tells the relay to stop, and waits until it has.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.relay).await;
        ended.expect("the relay does not stop").unwrap().unwrap();
    }

    /// How many exchanges and routes are suspended.
    pub(crate) fn suspended(&self) -> u64 {
        self.sum("postrider_suspended_routes")
    }

    pub(crate) fn sum(&self, metric: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == metric);
        let series = family.map(|family| family.get_metric()).unwrap_or_default();
        let values = series
            .iter()
            .map(|series| series.get_gauge().get_value() + series.get_counter().get_value());
        values.sum::<f64>() as u64
    }
}
