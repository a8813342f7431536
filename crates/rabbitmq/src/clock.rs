//! How long a batch may take, and the clocks that know when the broker does not want to be waited for.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::Patience;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::LinkState;

/// How often what is in flight is looked at: at a quarter of the straggler timeout, within these.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

/// The clocks of one batch.
pub(crate) struct Clock {
    patience: Patience,
    connection: Arc<lapin::Connection>,
    /// `None` when nobody follows the connection any more: it was dropped, and its socket ended.
    link: Option<watch::Receiver<LinkState>>,
    begun: Instant,
    deadline: Instant,
    last_news: Instant,
}

impl Clock {
    pub(crate) fn start(
        patience: Patience,
        connection: Arc<lapin::Connection>,
        mut link: watch::Receiver<LinkState>,
    ) -> Self {
        link.mark_unchanged();
        let patience = Patience {
            straggler_timeout: patience.straggler_timeout.min(patience.confirm_timeout / 2),
            ..patience
        };
        let now = Instant::now();
        Self {
            patience,
            connection,
            link: Some(link),
            begun: now,
            deadline: now + patience.confirm_timeout,
            last_news: now,
        }
    }

    /// Returns when it is time to look, at the deadline at the latest. Safe to drop.
    pub(crate) async fn tick(&mut self) {
        let look = (self.patience.straggler_timeout / 4).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        sleep_until((Instant::now() + look).min(self.deadline)).await;
        // Looked at here, not waited for: the waiting would cost each confirm that wakes the task a little.
        match self.link.as_ref().map(watch::Receiver::has_changed) {
            Some(Ok(false)) | None => {}
            // Blocked and unblocked between two looks leaves no other trace.
            Some(Ok(true)) => {
                if let Some(link) = &mut self.link {
                    link.mark_unchanged();
                }
                self.start_anew();
            }
            Some(Err(_)) => self.link = None,
        }
        if self.is_blocked() {
            self.start_anew();
        }
    }

    /// Waits for `future` until the deadline: `None` when that passed first.
    pub(crate) async fn in_time<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                biased;
                output = future.as_mut() => return Some(output),
                () = self.tick() => {}
            }
            if self.is_over() {
                return None;
            }
        }
    }

    /// Something was heard, or written.
    pub(crate) fn note_news(&mut self) {
        self.last_news = Instant::now();
    }

    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    /// Whether nothing has happened for the straggler timeout and `longer`.
    pub(crate) fn stands_still(&self, longer: Duration) -> bool {
        let limit = self.patience.straggler_timeout.saturating_add(longer);
        self.last_news.elapsed() >= limit
    }

    /// How long ago the batch began; waiting for an alarm to end is no reason to count anew.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// What is left until the deadline.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the broker accepts no messages. The library knows that it does again before the
    /// follower of the connection has been told: until then it counts as blocked, so that no clock
    /// runs out between the two.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
            || self
                .link
                .as_ref()
                .is_some_and(|link| matches!(&*link.borrow(), LinkState::Blocked { .. }))
    }

    fn start_anew(&mut self) {
        self.last_news = Instant::now();
        self.deadline = self.last_news + self.patience.confirm_timeout;
    }
}
