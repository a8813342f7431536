//! Rows whose messages may still be confirmed, although their claim is over.
//!
//! They are free for any relay, since a claim must not outlast the broker's patience; but the relay that
//! waits for their confirms leaves them out of its own claims, or it would publish each a second time just
//! before the first is confirmed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use postrider_core::{Message, OrderedRow, Seq};

use crate::frontiers::Frontiers;

/// The rows that are left out of this relay's claims, and how many hold each. Bounded by whoever holds them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsettled {
    rows: Arc<Mutex<HashMap<Seq, u32>>>,
    frontiers: Arc<Frontiers>,
}

/// Rows that are left out for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    unsettled: Unsettled,
    seqs: Vec<Seq>,
    lowest_fresh: Option<Seq>,
}

impl Unsettled {
    /// Claims that left rows out begin there again when nobody holds them any more.
    pub(crate) fn new(frontiers: Arc<Frontiers>) -> Self {
        Self {
            rows: Arc::default(),
            frontiers,
        }
    }

    /// `lowest_fresh`: of those that claims of messages without a key leave out, the lowest. Of others these claims know nothing, and would
    /// only walk over what waits beside them.
    pub(crate) fn hold(&self, seqs: Vec<Seq>, lowest_fresh: Option<Seq>) -> Held {
        let mut rows = self.rows();
        for seq in &seqs {
            *rows.entry(*seq).or_default() += 1;
        }
        drop(rows);
        Held {
            unsettled: self.clone(),
            seqs,
            lowest_fresh,
        }
    }

    pub(crate) fn seqs(&self) -> Vec<Seq> {
        self.rows().keys().copied().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows().is_empty()
    }

    /// Takes out of a claimed batch what is held by now: between asking what to leave out and claiming, another
    /// worker may have held rows and freed them. Says whether there was any.
    pub(crate) fn take_out(&self, messages: &mut Vec<Message>) -> bool {
        let rows = self.rows();
        let claimed = messages.len();
        if !rows.is_empty() {
            messages.retain(|message| !rows.contains_key(&message.seq));
        }
        messages.len() < claimed
    }

    /// The same of rows with a key: what is held by now is not to be had, and so holds back what is behind it in its key.
    pub(crate) fn mark_held(&self, claimed: &mut [OrderedRow]) {
        let rows = self.rows();
        if rows.is_empty() {
            return;
        }
        for row in claimed {
            if let OrderedRow::Free(message) = row
                && rows.contains_key(&message.seq)
                && let Some(ordered) = &message.ordered
            {
                let key = ordered.key.clone();
                *row = OrderedRow::Held { key };
            }
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<Seq, u32>> {
        self.rows.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Held {
    /// Lets them go without having claims begin there again; tells where they would have to.
    pub(crate) fn let_go(mut self) -> Option<Seq> {
        self.lowest_fresh.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut rows = self.unsettled.rows();
        for seq in &self.seqs {
            if let Some(holders) = rows.get_mut(seq) {
                *holders = holders.saturating_sub(1);
                if *holders == 0 {
                    rows.remove(seq);
                }
            }
        }
        drop(rows);
        if let Some(lowest) = self.lowest_fresh {
            self.unsettled.frontiers.given_back(lowest);
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::Ordered;

    use super::*;
    use crate::test_message::message;

    #[test]
    fn what_was_held_after_the_claim_had_asked_is_taken_out_of_it() {
        let unsettled = Unsettled::default();
        let claimed = || (1..=3).map(message).collect::<Vec<_>>();
        let seqs = |messages: &[Message]| messages.iter().map(|m| m.seq.0).collect::<Vec<_>>();
        let mut none_held = claimed();
        assert!(!unsettled.take_out(&mut none_held));
        assert_eq!(seqs(&none_held), [1, 2, 3]);
        let _held = unsettled.hold(vec![Seq(2), Seq(9)], None);
        let mut one_held = claimed();
        assert!(unsettled.take_out(&mut one_held));
        assert_eq!(seqs(&one_held), [1, 3]);
    }

    #[test]
    fn of_rows_with_a_key_what_was_held_meanwhile_is_not_to_be_had() {
        let unsettled = Unsettled::default();
        let claimed = || {
            [1, 2, 3].map(|seq| {
                let ordered = Ordered {
                    key: format!("key {seq}"),
                    supersede: false,
                };
                OrderedRow::Free(Message {
                    ordered: Some(ordered),
                    ..message(seq)
                })
            })
        };
        let shown = |rows: [OrderedRow; 3]| {
            rows.map(|row| match row {
                OrderedRow::Free(message) => message.seq.0.to_string(),
                OrderedRow::Held { key } => key,
                OrderedRow::Blocked { .. } => "blocked".to_owned(),
            })
        };
        let mut none_held = claimed();
        unsettled.mark_held(&mut none_held);
        assert_eq!(shown(none_held), ["1", "2", "3"]);
        let _held = unsettled.hold(vec![Seq(2), Seq(9)], None);
        let mut one_held = claimed();
        unsettled.mark_held(&mut one_held);
        assert_eq!(shown(one_held), ["1", "key 2", "3"]);
    }

    #[test]
    fn rows_are_left_out_for_as_long_as_they_are_held() {
        let unsettled = Unsettled::default();
        let held = unsettled.hold(vec![Seq(1), Seq(2)], Some(Seq(1)));
        let other = unsettled.hold(vec![Seq(2), Seq(3)], Some(Seq(2)));
        assert_eq!(unsettled.seqs().len(), 3);
        drop(held);
        let mut left = unsettled.seqs();
        left.sort_unstable();
        assert_eq!(left, [Seq(2), Seq(3)]);
        assert_eq!(other.let_go(), Some(Seq(2)));
        assert!(unsettled.seqs().is_empty());
    }
}
