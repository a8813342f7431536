//! Rows that cannot even be read, or that the database does not let be deleted, rest before they are claimed again, so that such a
//! row is no hot loop and does not keep failing the claims of the others. Everything else that fails is deferred in the
//! database.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Seq;

/// The rows that one relay process could not read or delete, and until when each is left alone.
///
/// Kept in memory: after a restart each is tried once more at once. Bounded by its capacity; a relay
/// that meets more of them than that must pause instead (see [`Rest::NoRoom`]).
#[derive(Debug)]
pub struct Resting {
    capacity: usize,
    entries: BTreeMap<Seq, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    failures: u32,
    until: Instant,
    /// Nobody was told yet that the rest is over.
    untold: bool,
}

/// What [`Resting::rest`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The row is left out of claims for this long.
    For {
        /// The rest.
        pause: Duration,
        /// How often the row could not be read or deleted since the relay started.
        failures: u32,
    },
    /// Too many rows rest already: nothing was noted, and the caller has to pause by itself.
    NoRoom,
}

impl Resting {
    /// The rest after a first failure; it doubles with each further one.
    pub const FIRST: Duration = Duration::from_secs(1);
    /// The longest rest.
    pub const LONGEST: Duration = Duration::from_secs(60);

    /// Room for `capacity` rows.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: BTreeMap::new(),
        }
    }

    /// Notes that this row could not be read or deleted at `now`.
    pub fn rest(&mut self, seq: Seq, now: Instant) -> Rest {
        if !self.entries.contains_key(&seq) && self.entries.len() >= self.capacity {
            return Rest::NoRoom;
        }
        let entry = self.entries.entry(seq).or_insert(Entry {
            failures: 0,
            until: now,
            untold: true,
        });
        let pause = Self::FIRST
            .saturating_mul(1 << entry.failures.min(16))
            .min(Self::LONGEST);
        entry.failures = entry.failures.saturating_add(1);
        entry.until = now + pause;
        entry.untold = true;
        Rest::For {
            pause,
            failures: entry.failures,
        }
    }

    /// How long, from `now`, until the next rest is over; `None` when no row rests.
    #[must_use]
    pub fn next_end(&self, now: Instant) -> Option<Duration> {
        let ends = self.entries.values().map(|entry| entry.until);
        let next = ends.filter(|until| *until > now).min()?;
        Some(next - now)
    }

    /// The lowest of the rows whose rest is over at `now`, and was not the last time this was asked: claims that left
    /// it out have to start there again.
    pub fn ended(&mut self, now: Instant) -> Option<Seq> {
        let mut lowest = None;
        for (seq, entry) in &mut self.entries {
            if entry.untold && entry.until <= now {
                entry.untold = false;
                lowest.get_or_insert(*seq);
            }
        }
        lowest
    }

    /// The rows a claim at `now` has to leave out, ascending.
    ///
    /// One whose rest has been over for as long as the longest rest, and that no claim of this relay
    /// met again, has been mended or deleted: it is forgotten here.
    pub fn excluded(&mut self, now: Instant) -> Vec<Seq> {
        self.entries
            .retain(|_, entry| now < entry.until + Self::LONGEST);
        self.entries
            .iter()
            .filter(|(_, entry)| entry.until > now)
            .map(|(seq, _)| *seq)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_message_is_left_out_until_its_rest_is_over_and_rests_longer_each_time() {
        let start = Instant::now();
        let mut resting = Resting::new(10);
        let pause = |rest| match rest {
            Rest::For { pause, .. } => pause.as_secs(),
            Rest::NoRoom => panic!("no room"),
        };
        assert_eq!(pause(resting.rest(Seq(7), start)), 1);
        assert_eq!(resting.excluded(start), [Seq(7)]);
        let later = start + Duration::from_secs(1);
        assert!(resting.excluded(later).is_empty());
        let pauses: Vec<_> = (0..8).map(|_| pause(resting.rest(Seq(7), later))).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn a_full_room_says_so_and_still_takes_the_messages_it_knows() {
        let now = Instant::now();
        let mut resting = Resting::new(1);
        assert!(matches!(resting.rest(Seq(1), now), Rest::For { .. }));
        assert_eq!(resting.rest(Seq(2), now), Rest::NoRoom);
        assert!(matches!(
            resting.rest(Seq(1), now),
            Rest::For { failures: 2, .. }
        ));
    }

    #[test]
    fn rows_that_no_claim_meets_again_give_their_room_back() {
        let now = Instant::now();
        let mut resting = Resting::new(2);
        resting.rest(Seq(1), now);
        resting.rest(Seq(2), now);
        assert_eq!(resting.next_end(now), Some(Resting::FIRST));
        assert_eq!(resting.excluded(now), [Seq(1), Seq(2)]);
        let much_later = now + Resting::FIRST + Resting::LONGEST;
        assert!(resting.excluded(much_later).is_empty());
        assert!(resting.entries.is_empty());
        assert_eq!(resting.next_end(much_later), None);
    }

    #[test]
    fn the_end_of_a_rest_is_told_once() {
        let start = Instant::now();
        let mut resting = Resting::new(10);
        resting.rest(Seq(7), start);
        resting.rest(Seq(5), start);
        assert_eq!(resting.ended(start), None);
        let over = start + Resting::FIRST;
        assert_eq!(resting.ended(over), Some(Seq(5)));
        assert_eq!(resting.ended(over), None);
        resting.rest(Seq(7), over);
        assert_eq!(resting.ended(over + 2 * Resting::FIRST), Some(Seq(7)));
    }
}
