//! Where the claims and the samples of one relay begin: shared by its workers, the watcher of the outbox and the
//! sampler.

use std::sync::{Mutex, MutexGuard};

use postrider_core::{Ask, Frontier, Message, Origin, Passed, Scan, Seq};
use postrider_postgres::{Claim, OutboxLook};
use tokio::sync::Notify;

/// The frontiers of `outbox.messages`.
///
/// Whatever is wrong with the session in which looks are taken, [`Frontiers::reset`] is the answer: everything begins
/// at the beginning again, which costs time and loses nothing.
#[derive(Debug, Default)]
pub(crate) struct Frontiers {
    both: Mutex<Both>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Both {
    /// What is locked is skipped and passed.
    claims: Frontier<Seq>,
    /// What is locked is seen and not passed: the lag counts what is on its way. Of the same looks, so with the same
    /// floor.
    samples: Frontier<Seq>,
}

impl Frontiers {
    /// A claim is about to be sent. To be asked before what the claim leaves out: what is given back in between
    /// makes this scan count for nothing.
    pub(crate) fn scan(&self) -> Scan<Seq> {
        self.both().claims.scan()
    }

    /// A claim was answered.
    pub(crate) fn claimed(&self, scan: Scan<Seq>, claim: &Claim) {
        let last = claim.messages().last().map(after);
        let passed = match (claim.reached_limit(), claim.untaken().or(last)) {
            (false, _) => Passed::All,
            (true, Some(next)) => Passed::Below(next),
            (true, None) => return,
        };
        self.both().claims.passed(scan, passed);
    }

    /// Rows are free again that a claim had locked or left out, the lowest of them this one.
    pub(crate) fn given_back(&self, lowest: Seq) {
        self.both().claims.given_back(lowest);
    }

    /// A sample is about to be taken.
    pub(crate) fn sample(&self) -> Scan<Seq> {
        self.both().samples.scan()
    }

    /// It was taken, and showed this row as the oldest.
    pub(crate) fn sampled(&self, sample: Scan<Seq>, oldest: Option<Seq>) {
        let passed = oldest.map_or(Passed::All, Passed::Below);
        self.both().samples.passed(sample, passed);
    }

    /// Takes in a look, which `counts` or comes soon after the last that did; the question it leads to.
    pub(crate) fn looked(&self, look: &OutboxLook, counts: bool) -> Option<Ask<Seq>> {
        let mut both = self.both();
        let writers = look.writers.iter().copied();
        let _ = both.claims.looked(look.next, writers.clone(), counts);
        let _ = both.samples.looked(look.next, writers, counts);
        both.claims.ask()
    }

    /// The answer to it.
    pub(crate) fn raise(&self, ask: Ask<Seq>, oldest: Option<Seq>) {
        let mut both = self.both();
        both.claims.raise(ask, oldest);
        both.samples.raise(ask, oldest);
    }

    /// See [`Frontier::below`].
    pub(crate) fn below(&self) -> Option<(Option<Seq>, Seq)> {
        self.both().claims.below()
    }

    /// No row should be below this.
    pub(crate) fn floor(&self) -> Option<Seq> {
        self.both().claims.floor().floor()
    }

    /// The sweep found a row below the floor.
    pub(crate) fn found_below(&self, row: Seq) {
        let mut both = self.both();
        both.claims.found_below(row);
        both.samples.found_below(row);
    }

    /// Whether something may have appeared since the last claim that found nothing more.
    pub(crate) fn wants_claim(&self) -> bool {
        self.both().claims.wants_claim()
    }

    /// Whether looks may cease until something happens.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.both().claims.is_at_rest()
    }

    /// The session of the looks was lost.
    pub(crate) fn reset(&self) {
        let mut both = self.both();
        both.claims.reset();
        both.samples.reset();
    }

    /// Something happened to the outbox: a look is worth its while.
    pub(crate) fn touch(&self) {
        self.moved.notify_one();
    }

    /// Waits until something happens to the outbox.
    pub(crate) async fn touched(&self) {
        self.moved.notified().await;
    }

    fn both(&self) -> MutexGuard<'_, Both> {
        self.both.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Where claims have to begin again when a claim of fresh rows ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freed {
    lowest: Option<Seq>,
    /// Locked and not taken, for the bytes.
    beyond: Option<Seq>,
}

impl Freed {
    pub(crate) fn of(claim: &Claim) -> Self {
        let fresh = |message: &&Message| message.origin == Origin::Messages;
        let first = claim.messages().first().filter(fresh);
        Self {
            lowest: first.map(|first| first.seq),
            beyond: first.and_then(|_| claim.untaken()),
        }
    }

    /// The lowest row that is free now; `left` when the settle left any where it was.
    pub(crate) fn lowest(self, left: bool) -> Option<Seq> {
        if left { self.lowest } else { self.beyond }
    }
}

fn after(message: &Message) -> Seq {
    Seq(message.seq.0.saturating_add(1))
}
