//! What is to become of the rows of a claim.

use std::time::Duration;

use postrider_core::{Reason, Seq};

/// What becomes of the rows of a claim; those not named stay where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settlement {
    /// Confirmed, or accepted as sent: deleted.
    pub done: Vec<Seq>,
    /// To be tried again later.
    pub retry: Vec<Retry>,
    /// Given up.
    pub dead: Vec<Dead>,
    /// Of those given up, the ones that block their key until a person decides. They have one.
    pub blocking: Vec<Seq>,
    /// To be parked behind the head of their key, which is blocked; of a claim by lanes only.
    pub park: Vec<Seq>,
}

/// A message that waits, then is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Its row.
    pub seq: Seq,
    /// For how long it waits, by the database's clock from the settle on; ten years at most.
    pub after: Duration,
    /// How many attempts have failed, the last one included.
    pub attempts: u32,
    /// Why the last one failed.
    pub reason: Reason,
    /// What was said about it; the first 1,000 characters are kept.
    pub error: String,
}

/// A message that becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    /// Its row.
    pub seq: Seq,
    /// How many attempts have failed, the last one included.
    pub attempts: u32,
    /// Why the last one failed.
    pub reason: Reason,
    /// What was said about it; the first 1,000 characters are kept.
    pub error: String,
}

impl Settlement {
    /// Every row that leaves its place.
    pub fn seqs(&self) -> impl Iterator<Item = Seq> + '_ {
        self.done.iter().copied().chain(self.moving())
    }

    pub(super) fn moving(&self) -> impl Iterator<Item = Seq> + '_ {
        let retry = self.retry.iter().map(|retry| retry.seq);
        let dead = self.dead.iter().map(|dead| dead.seq);
        retry.chain(dead).chain(self.park.iter().copied())
    }

    pub(super) fn len(&self) -> usize {
        self.done.len() + self.retry.len() + self.dead.len() + self.park.len()
    }

    pub(super) fn moves(&self) -> bool {
        self.len() > self.done.len()
    }
}
