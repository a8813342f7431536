//! What the workers of one relay share about messages with a key.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use postrider_core::Seq;

/// How many messages are remembered as to be sent one by one. Beyond, all are.
const CAPACITY: usize = 10_000;

/// Hints, like [`Due`](crate::due::Due): the worker that takes one claims, and raises it again if there may be more.
#[derive(Debug, Default)]
pub(crate) struct Ordered {
    waits: AtomicBool,
    resuming: AtomicBool,
    /// The key after which the next look for keys to resume begins.
    cursor: Mutex<String>,
    one_by_one: Mutex<HashSet<Seq>>,
}

impl Ordered {
    /// Messages with a key wait.
    pub(crate) fn raise_waits(&self) {
        self.waits.store(true, Ordering::Release);
    }

    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    pub(crate) fn take_waits(&self) -> bool {
        self.waits.swap(false, Ordering::AcqRel)
    }

    /// What was parked may go out: the head of its key is gone.
    pub(crate) fn raise_resuming(&self) {
        self.resuming.store(true, Ordering::Release);
    }

    pub(crate) fn is_resuming(&self) -> bool {
        self.resuming.load(Ordering::Acquire)
    }

    pub(crate) fn take_resuming(&self) -> bool {
        self.resuming.swap(false, Ordering::AcqRel)
    }

    /// The key after which to look for keys to resume: each has its turn before any has it twice.
    pub(crate) fn cursor(&self) -> String {
        self.cursor
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone()
    }

    pub(crate) fn resume_after(&self, key: &str) {
        let mut cursor = self.cursor.lock().unwrap_or_else(|e| e.into_inner());
        key.clone_into(&mut cursor);
    }

    /// These stood for each other, and that failed: from now on each is sent by itself, so that what is charged is charged to
    /// the one at fault, and none is taken for superseded by one that may never be delivered. `floor`: below it nothing is left but what
    /// was parked.
    pub(crate) fn send_one_by_one(&self, seqs: impl IntoIterator<Item = Seq>, floor: Option<Seq>) {
        let mut one_by_one = self.seqs();
        for seq in seqs {
            if one_by_one.len() >= CAPACITY {
                // Those that another relay has sent nobody else forgets.
                one_by_one.retain(|known| floor.is_none_or(|floor| *known >= floor));
            }
            if one_by_one.len() >= CAPACITY {
                return;
            }
            one_by_one.insert(seq);
        }
    }

    /// Those among the claimed, for a plan; all of them when there is no room for more: one that could not be remembered would be planned
    /// as it was before, and fail as it did, again and again. `floor`: as in [`Ordered::send_one_by_one`].
    pub(crate) fn one_by_one(
        &self,
        claimed: impl Iterator<Item = Seq>,
        floor: Option<Seq>,
    ) -> HashSet<Seq> {
        let mut one_by_one = self.seqs();
        if one_by_one.is_empty() {
            return HashSet::new();
        }
        if one_by_one.len() >= CAPACITY {
            one_by_one.retain(|known| floor.is_none_or(|floor| *known >= floor));
        }
        let is_full = one_by_one.len() >= CAPACITY;
        claimed
            .filter(|seq| is_full || one_by_one.contains(seq))
            .collect()
    }

    /// They are gone, or are in another table.
    pub(crate) fn forget(&self, seqs: impl IntoIterator<Item = Seq>) {
        let mut one_by_one = self.seqs();
        if one_by_one.is_empty() {
            return;
        }
        for seq in seqs {
            one_by_one.remove(&seq);
        }
    }

    fn seqs(&self) -> MutexGuard<'_, HashSet<Seq>> {
        self.one_by_one.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_room_what_lies_below_the_floor_is_forgotten_and_without_it_all_are_sent_one_by_one()
     {
        let ordered = Ordered::default();
        let capacity = i64::try_from(CAPACITY).unwrap();
        let is_one_by_one = |seq| {
            let claimed = std::iter::once(Seq(seq));
            ordered.one_by_one(claimed, None).contains(&Seq(seq))
        };
        ordered.send_one_by_one((1..capacity).map(Seq), None);
        assert!(is_one_by_one(3) && !is_one_by_one(capacity + 1));
        // From here on nobody stands for anybody.
        ordered.send_one_by_one([Seq(capacity)], None);
        ordered.send_one_by_one([Seq(capacity + 1)], None);
        assert!(is_one_by_one(capacity + 1) && is_one_by_one(capacity + 2));
        ordered.send_one_by_one([Seq(capacity + 1)], Some(Seq(3)));
        assert!(is_one_by_one(capacity + 1) && is_one_by_one(3));
        assert!(!is_one_by_one(2) && !is_one_by_one(capacity + 2));
        // Nor need another fail for what is gone to be forgotten.
        ordered.send_one_by_one([Seq(capacity + 2)], None);
        assert!(is_one_by_one(capacity + 3));
        let none = ordered.one_by_one([Seq(capacity + 3)].into_iter(), Some(Seq(4)));
        assert!(none.is_empty() && !is_one_by_one(capacity + 3));
        ordered.forget([Seq(4)]);
        assert!(!is_one_by_one(4));
    }
}
