//! Who may be sent now: of each key so many at a time, the next when those before it are confirmed.

use std::collections::{HashMap, VecDeque};

use crate::Message;

/// The turns of the messages of one batch, named by their positions in it. Messages without a key have none to wait for.
///
/// With more than one of a key in flight, order holds only while nothing is refused: one that is refused may be followed by
/// another that was on its way already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// The key of each position, as an index; empty when no message has one.
    keys: Vec<Option<usize>>,
    /// Of each key the positions that have no outcome yet, in order.
    open: Vec<VecDeque<usize>>,
    in_flight_per_key: usize,
}

impl Turns {
    /// The turns of a batch in which the messages of each key are in the order of their `seq`. At least one of each key is
    /// in flight at a time.
    #[must_use]
    pub fn new(batch: &[Message], in_flight_per_key: u32) -> Self {
        Self::of_keys(batch.iter().map(Message::key), in_flight_per_key)
    }

    /// The same, of the keys alone.
    #[must_use]
    pub fn of_keys<'a>(
        keys: impl ExactSizeIterator<Item = Option<&'a str>>,
        in_flight_per_key: u32,
    ) -> Self {
        let mut turns = Self {
            keys: Vec::new(),
            open: Vec::new(),
            in_flight_per_key: usize::try_from(in_flight_per_key)
                .unwrap_or(usize::MAX)
                .max(1),
        };
        let mut known: HashMap<&str, usize> = HashMap::new();
        let batch = keys.len();
        for (position, key) in keys.enumerate() {
            let Some(key) = key else { continue };
            if known.is_empty() {
                known.reserve(batch - position);
                turns.keys.reserve(batch);
            }
            let index = *known.entry(key).or_insert_with(|| {
                turns.open.push(VecDeque::new());
                turns.open.len() - 1
            });
            if let Some(open) = turns.open.get_mut(index) {
                open.push_back(position);
            }
            turns.keys.resize(position, None);
            turns.keys.push(Some(index));
        }
        turns
    }

    /// Whether any message has a key.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether the message at this position has a key.
    #[must_use]
    pub fn has_key(&self, position: usize) -> bool {
        self.index(position).is_some()
    }

    /// Whether the message at this position may be sent while nothing else of its key is in flight but those before it.
    #[must_use]
    pub fn is_up(&self, position: usize) -> bool {
        let Some(open) = self.index(position).and_then(|key| self.open.get(key)) else {
            return true;
        };
        open.iter()
            .take(self.in_flight_per_key)
            .any(|first| *first == position)
    }

    /// The message was delivered. Gives the position of the next one of its key, if that is up by this.
    pub fn delivered(&mut self, position: usize) -> Option<usize> {
        let in_flight = self.in_flight_per_key;
        let key = self.index(position)?;
        let open = self.open.get_mut(key)?;
        let place = open.iter().position(|of_key| *of_key == position)?;
        open.remove(place);
        if place < in_flight {
            open.get(in_flight - 1).copied()
        } else {
            None
        }
    }

    /// The message has another outcome, or none for now: nothing of its key is sent after it. Gives the positions that are
    /// held back by that.
    pub fn stopped(&mut self, position: usize) -> Vec<usize> {
        let Some(open) = self.index(position).and_then(|key| self.open.get_mut(key)) else {
            return Vec::new();
        };
        let after = open.partition_point(|of_key| *of_key <= position);
        let held_back = open.split_off(after).into();
        open.retain(|of_key| *of_key != position);
        held_back
    }

    fn index(&self, position: usize) -> Option<usize> {
        self.keys.get(position).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(keys: &[Option<&str>], in_flight: u32) -> Turns {
        Turns::of_keys(keys.iter().copied(), in_flight)
    }

    fn up(turns: &Turns, positions: usize) -> Vec<usize> {
        (0..positions).filter(|p| turns.is_up(*p)).collect()
    }

    #[test]
    fn the_first_of_each_key_is_up_and_the_next_when_it_is_delivered() {
        let keys = [Some("a"), None, Some("b"), Some("a"), Some("a"), Some("b")];
        let mut turns = turns(&keys, 1);
        assert_eq!(up(&turns, 6), [0, 1, 2]);
        assert_eq!(turns.delivered(1), None);
        assert_eq!(turns.delivered(0), Some(3));
        assert!(turns.is_up(3) && !turns.is_up(4));
        assert_eq!(turns.delivered(2), Some(5));
        assert_eq!(turns.delivered(3), Some(4));
        assert!(turns.is_up(4) && turns.is_up(5));
    }

    #[test]
    fn what_follows_one_that_stopped_is_held_back_and_no_other_key_is() {
        let keys = [Some("a"), Some("b"), Some("a"), Some("a")];
        let mut turns = turns(&keys, 1);
        assert_eq!(turns.stopped(0), [2, 3]);
        assert_eq!(turns.stopped(2), Vec::<usize>::new());
        assert!(turns.is_up(1));
    }

    #[test]
    fn with_two_in_flight_two_of_a_key_are_up() {
        let keys = [Some("a"), Some("a"), Some("a")];
        let mut turns = turns(&keys, 2);
        assert_eq!(up(&turns, 3), [0, 1]);
        assert_eq!(turns.delivered(1), Some(2));
        assert_eq!(up(&turns, 3), [0, 2]);
        assert_eq!(turns.stopped(0), [2]);
        assert_eq!(turns.delivered(2), None);
    }

    #[test]
    fn without_keys_everything_is_up() {
        let turns = turns(&[None, None], 1);
        assert!(!turns.is_ordered());
        assert_eq!(up(&turns, 2), [0, 1]);
    }
}
