//! Knows when deferred messages are due, so that the workers' hot claim need not look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postrider_core::jittered;
use postrider_postgres::Database;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Whether deferred messages wait to be claimed now.
///
/// A hint, like a wake-up: the worker that takes it claims, and raises it again if more may be due.
/// Raised between a worker's claim and its sleep, it stays raised.
#[derive(Debug, Default)]
pub(crate) struct Due {
    raised: AtomicBool,
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
}

/// Raises `due` and wakes a worker whenever a deferred message is due, until `stop`. Looks once every
/// `interval`, and at the moment the next one is due if that comes first.
pub(crate) async fn keep_watching(
    database: &Database,
    interval: Duration,
    due: &Due,
    wakeup: &Notify,
    stop: &CancellationToken,
) {
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = database.next_due() => next,
        };
        let mut wait = jittered(interval, rand::random());
        match next {
            Ok(None) => {}
            Ok(Some(Duration::ZERO)) => {
                due.raise();
                wakeup.notify_one();
            }
            Ok(Some(until)) => wait = wait.min(until),
            Err(error) => debug!(%error, "the deferred messages could not be looked at"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
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
}
