//! What consumers saw, and what is still on its way to them.

use postrider_core::Seq;

use super::outbox::{Set, bit};

/// A copy of a message, with those that it was sent instead of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Copy {
    pub(crate) seq: Seq,
    pub(crate) stands_for: Set,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Broker {
    /// Of each message those that must be delivered before it, once it was claimed.
    pub(crate) before: Vec<Option<Set>>,
    pub(crate) delivered: Set,
    /// What is covered by a later message that was delivered.
    pub(crate) superseded: Set,
    /// Dead letters that were discarded, or passed over by policy: the promise excepts them.
    pub(crate) excepted: Set,
    /// Left on connections that were given up, and may arrive at any time.
    pub(crate) late: Vec<Copy>,
    /// A first delivery came too early.
    pub(crate) inverted: bool,
}

impl Broker {
    pub(crate) fn new(rows: usize) -> Self {
        Self {
            before: vec![None; rows],
            delivered: 0,
            superseded: 0,
            excepted: 0,
            late: Vec::new(),
            inverted: false,
        }
    }

    /// Whether `earlier` must be delivered before `seq`.
    pub(crate) fn is_before(&self, earlier: Seq, seq: Seq) -> bool {
        self.before[seq.0 as usize - 1].is_some_and(|before| before & bit(earlier) != 0)
    }

    pub(crate) fn deliver(&mut self, copy: Copy) {
        self.superseded |= copy.stands_for;
        if self.delivered & bit(copy.seq) == 0 {
            let settled = self.delivered | self.superseded | self.excepted;
            let before = self.before[copy.seq.0 as usize - 1].unwrap_or(0);
            self.inverted |= before & !settled != 0;
        }
        self.delivered |= bit(copy.seq);
        self.forget();
    }

    pub(crate) fn lose(&mut self, copy: Copy) {
        self.late.push(copy);
        self.late.sort_unstable();
        self.late.dedup();
        self.forget();
    }

    /// A copy that would only be a repeat cannot do anything.
    fn forget(&mut self) {
        let (delivered, superseded) = (self.delivered, self.superseded);
        self.late
            .retain(|copy| delivered & bit(copy.seq) == 0 || copy.stands_for & !superseded != 0);
    }
}
