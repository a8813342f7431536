//! What the tasks of one relay share.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{Message, Outcome, Resting, Seq};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::at_work::AtWork;
use crate::awake::Awake;
use crate::breakers::Breakers;
use crate::due::Due;
use crate::frontiers::Frontiers;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::ordered::Ordered;
use crate::progress::Progress;
use crate::rehearsal::Rehearsal;
use crate::reload::Live;
use crate::suspects::Suspects;
use crate::unsettled::Unsettled;

/// What stays as it is for as long as the relay runs; told in [`Settings`](crate::Settings).
#[derive(Debug)]
pub(crate) struct Fixed {
    pub(crate) name: String,
    pub(crate) workers: usize,
    pub(crate) confirm_timeout: Duration,
    pub(crate) notify: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Fixed,
    pub(crate) live: Live,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) resting: Mutex<Resting>,
    pub(crate) frontiers: Arc<Frontiers>,
    pub(crate) awake: Awake,
    pub(crate) at_work: AtWork,
    pub(crate) unsettled: Unsettled,
    pub(crate) suspects: Suspects,
    pub(crate) breakers: Breakers,
    pub(crate) rehearsal: Rehearsal,
    pub(crate) wakeup: Notify,
    pub(crate) due: Due,
    pub(crate) ordered: Ordered,
    /// A worker gets no connection: whoever keeps one that delivery can do without lets it go.
    pub(crate) connections_scarce: Notify,
    /// Claim nothing more; finish what is in flight.
    pub(crate) stop: CancellationToken,
    /// Drop what is in flight: the server rolls it back.
    pub(crate) abandon: CancellationToken,
}

impl Shared {
    pub(crate) fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells who wants to know what became of a batch that was sent at `began`. Nothing where nobody does.
    pub(crate) fn observe(&self, sent: &[Message], outcomes: &[Outcome], began: Instant) {
        if let Some(observer) = &self.settings.observer {
            observer.published(sent, outcomes, began.elapsed());
        }
    }

    /// Has claims begin again at rows that rested, and do so no longer.
    pub(crate) fn end_rests(&self, now: Instant) {
        let ended = self.resting().ended(now);
        if let Some(lowest) = ended {
            self.frontiers.given_back(lowest);
        }
    }

    /// The rows that a claim at `now` leaves out.
    pub(crate) fn excluded(&self, now: Instant) -> Vec<Seq> {
        let mut excluded = self.resting().excluded(now);
        excluded.extend(self.unsettled.seqs());
        excluded
    }
}
