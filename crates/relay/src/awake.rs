//! Whether the relay is awake: whether it looks by itself so often that nobody need notify it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{Demand, DemandSettings};

/// How long producers that were seen to wait for the notify lock are not to notify, however slow they are.
const HOLD: Duration = Duration::from_secs(5);

/// How long a worker of a relay that is awake rests after a claim that found nothing; the workers take turns. After one that found something
/// it claims again at once, since what came meanwhile makes a batch of its own; the others stand by as long as it keeps up.
pub(crate) const SHORT_POLL: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct Awake {
    polling: AtomicBool,
    demand: Mutex<Demand>,
}

impl Awake {
    /// Awake from so many rows a second on, until they are half as many.
    pub(crate) fn new(quiet_above: u32) -> Self {
        Self {
            polling: AtomicBool::new(false),
            demand: Mutex::new(Demand::new(bounds(quiet_above))),
        }
    }

    /// As [`Awake::new`], for what comes from now on.
    pub(crate) fn quiet_above(&self, rows: u32) {
        self.demand().bound(bounds(rows));
    }

    /// Whether workers are to look again after [`SHORT_POLL`].
    pub(crate) fn is_polling(&self) -> bool {
        self.polling.load(Ordering::Acquire)
    }

    pub(crate) fn poll(&self, polling: bool) {
        self.polling.store(polling, Ordering::Release);
    }

    pub(crate) fn claimed(&self, rows: u32) {
        self.demand().claimed(rows, Instant::now());
    }

    /// Whether a look saw producers wait for each other to notify.
    pub(crate) fn looked(&self, notify_contended: bool) {
        self.demand().looked(notify_contended, Instant::now());
    }

    pub(crate) fn wants_quiet(&self) -> bool {
        self.demand().wants_quiet(Instant::now())
    }

    fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn bounds(quiet_above: u32) -> DemandSettings {
    let enter = f64::from(quiet_above);
    DemandSettings {
        enter,
        leave: enter / 2.0,
        hold: HOLD,
    }
}
