//! Knows when deferred messages are due, so that the workers' hot claim need not look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{Pace, jittered};
use postrider_postgres::{Database, DueLook, DueTime, DueWatch, Error};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::shared::Shared;

/// How often a row that no look from the floor on would find is looked for.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(60);

/// Between looks after the keys, which are taken together with others.
const LOOKS_AFTER_KEYS: Pace = Pace::new(Duration::ZERO, LOOK_AT_ALL_EVERY);

/// Whether deferred messages wait to be claimed now.
///
/// A hint, like a wake-up: the worker that takes it claims, and raises it again if more may be due.
/// Raised between a worker's claim and its sleep, it stays raised.
#[derive(Debug, Default)]
pub(crate) struct Due {
    raised: AtomicBool,
    from: Mutex<Option<DueTime>>,
}

impl Due {
    pub(crate) fn raise(&self) {
        self.raised.store(true, Ordering::Release);
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Takes the hint: to be done before the claim, so that what becomes due after it is not
    /// forgotten.
    pub(crate) fn take(&self) -> bool {
        self.raised.swap(false, Ordering::AcqRel)
    }

    /// Where a claim begins: no message is due before. `None`, the beginning, while that is not known.
    ///
    /// To be asked after the hint is taken. An older answer than the newest is lower, and so as good; where the
    /// newest is lower, after a restart of the server or when its clock was set back, the claim may find too
    /// little, and the look that lowered it raises the hint once more.
    pub(crate) fn from(&self) -> Option<DueTime> {
        *self.lock()
    }

    fn begin_at(&self, from: Option<DueTime>) {
        *self.lock() = from;
    }

    fn lock(&self) -> MutexGuard<'_, Option<DueTime>> {
        self.from.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The watch of one session, and when it is to look from the beginning.
struct Watch {
    watch: DueWatch,
    all_at: Instant,
}

impl Watch {
    async fn start(database: &Database) -> Result<Self, Error> {
        Ok(Self {
            watch: database.watch_due().await?,
            all_at: Instant::now(),
        })
    }

    async fn look(&mut self) -> Result<DueLook, Error> {
        let began = Instant::now();
        if began < self.all_at {
            return self.watch.look().await;
        }
        let look = self.watch.look_at_all().await?;
        let now = Instant::now();
        self.all_at = now + pause_after_all(now - began);
        Ok(look)
    }
}

/// A look from the beginning walks over all that vacuum may not remove: it takes a hundredth of the time
/// at most.
fn pause_after_all(took: Duration) -> Duration {
    took.saturating_mul(100).max(LOOK_AT_ALL_EVERY)
}

/// Takes the watch, which is put back only when its look was answered: what an error, or a stop in the middle,
/// leaves behind is no ground for a floor.
async fn look(database: &Database, kept: &mut Option<Watch>) -> Result<DueLook, Error> {
    let mut watch = match kept.take() {
        Some(watch) => watch,
        None => Watch::start(database).await?,
    };
    let look = watch.look().await?;
    *kept = Some(watch);
    Ok(look)
}

/// What no claim or settle has told: a head whose turn came while it was locked, and keys that somebody else has freed. It walks over
/// what vacuum may not remove, and over each deferred message that waits for its turn: a hundredth of the time is spent on it, or less.
async fn look_after_keys(database: &Database, shared: &Shared) {
    let looked = async {
        let woken = database.wake_heads().await?;
        let resuming = database.resuming_keys("", 1).await?;
        Ok::<_, Error>((woken, resuming))
    };
    match looked.await {
        Ok((woken, resuming)) => {
            if woken > 0 {
                shared.due.raise();
                shared.wakeup.notify_one();
            }
            if !resuming.is_empty() {
                shared.ordered.raise_resuming();
                shared.wakeup.notify_one();
            }
        }
        Err(error) => debug!(%error, "blocked keys could not be looked at"),
    }
}

/// Raises `due` and wakes a worker whenever a deferred message is due, until `stop`. Looks once every
/// `poll_interval`, and at the moment the next one is due if that comes first.
pub(crate) async fn keep_watching(database: &Database, shared: &Shared, stop: &CancellationToken) {
    let Shared { due, wakeup, .. } = shared;
    let mut live = shared.live.subscribe();
    let mut watch = None;
    let mut keys_at = Instant::now();
    loop {
        let interval = live.get().poll_interval;
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = look(database, &mut watch) => looked,
        };
        // Before the hint is raised: the claim that follows it begins here.
        due.begin_at(looked.as_ref().ok().and_then(|look| look.from));
        let mut wait = jittered(interval, rand::random());
        match looked.map(|look| look.next_due) {
            Ok(None) => {}
            Ok(Some(Duration::ZERO)) => {
                due.raise();
                wakeup.notify_one();
            }
            Ok(Some(until)) => wait = wait.min(until),
            Err(error) => debug!(%error, "the deferred messages could not be looked at"),
        }
        let began = Instant::now();
        if keys_at <= began {
            tokio::select! {
                () = stop.cancelled() => return,
                () = look_after_keys(database, shared) => {}
            }
            keys_at = began + LOOKS_AFTER_KEYS.rest(began.elapsed());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = live.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_taken_once_and_one_that_comes_after_the_taking_stays() {
        let due = Due::default();
        assert!(!due.take());
        due.raise();
        assert!(due.is_raised());
        assert!(due.take());
        assert!(!due.take());
        due.raise();
        assert!(due.is_raised());
    }

    #[test]
    fn a_look_from_the_beginning_takes_a_hundredth_of_the_time_at_most() {
        let quick = pause_after_all(Duration::from_millis(60));
        assert_eq!(quick, LOOK_AT_ALL_EVERY);
        let slow = pause_after_all(Duration::from_secs(2));
        assert_eq!(slow, Duration::from_secs(200));
    }
}
