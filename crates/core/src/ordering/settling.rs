//! Who may leave its place: of each key those that were delivered, and the first that was not.

use std::collections::HashSet;

use crate::Message;

/// What a message's outcome would have done with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Confirmed, or taken as sent by policy: its row is deleted.
    Delivered,
    /// It waits among the deferred messages, or becomes a dead letter.
    Moves,
    /// Its row stays where it is.
    Stays,
}

/// Goes through a batch in its order and stops at the first message of each key that was not delivered.
///
/// If one that follows were moved as well, it would be found before the one that stayed: as the head of its key, behind
/// which the other is parked.
#[derive(Debug, Default)]
pub struct Settling<'a> {
    stopped: HashSet<&'a str>,
}

impl<'a> Settling<'a> {
    /// What is done with the row, given what would be done if it had no key.
    pub fn settle(&mut self, message: &'a Message, fate: Fate) -> Fate {
        match message.key() {
            Some(key) => self.settle_of_key(key, fate),
            None => fate,
        }
    }

    /// Whether an earlier message of its key was not delivered, so that nothing is decided of this one.
    #[must_use]
    pub fn has_stopped(&self, message: &Message) -> bool {
        message.key().is_some_and(|key| self.stopped.contains(key))
    }

    /// The same, of the key alone.
    pub fn settle_of_key(&mut self, key: &'a str, fate: Fate) -> Fate {
        match fate {
            Fate::Delivered => Fate::Delivered,
            Fate::Moves | Fate::Stays if !self.stopped.insert(key) => Fate::Stays,
            Fate::Moves => Fate::Moves,
            Fate::Stays => Fate::Stays,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_of_a_key_that_was_not_delivered_moves() {
        let mut settling = Settling::default();
        assert_eq!(
            settling.settle_of_key("a", Fate::Delivered),
            Fate::Delivered
        );
        assert_eq!(settling.settle_of_key("a", Fate::Moves), Fate::Moves);
        assert_eq!(settling.settle_of_key("a", Fate::Moves), Fate::Stays);
        assert_eq!(settling.settle_of_key("b", Fate::Moves), Fate::Moves);
    }

    #[test]
    fn nothing_moves_past_one_that_stays() {
        let mut settling = Settling::default();
        assert_eq!(settling.settle_of_key("a", Fate::Stays), Fate::Stays);
        assert_eq!(settling.settle_of_key("a", Fate::Moves), Fate::Stays);
        assert_eq!(
            settling.settle_of_key("a", Fate::Delivered),
            Fate::Delivered
        );
    }
}
