//! The floor: a position below which no row is left and none can appear, so that no claim and no
//! poll walks over the index entries of rows deleted long ago that vacuum may not remove yet.
//!
//! The highest `seq` seen is no such position: a transaction that drew a lower one may commit
//! later. A [`Floor`] is told what separate statements saw, each `READ COMMITTED`, so each with a
//! snapshot of its own, in this order, again and again (every 100 ms, or as the cost of the second
//! allows):
//!
//! 1. `next`: the `seq` the sequence gives next, never above it: a SELECT of `last_value` is, while the server logs the sequence
//!    in advance (migration 9).
//! 2. `writers`: the transactions that hold a `RowExclusiveLock` on the table now. Both go into
//!    [`Floor::looked`].
//! 3. If [`Floor::ask`] wants it: the oldest row visible to a snapshot taken now, into
//!    [`Floor::raise`].
//!
//! # Why it holds
//!
//! An `INSERT` takes the lock before it draws, and the lock goes with the transaction, after its
//! rows became visible. So, of the transactions that a look shows, one that the look before it did
//! not show took its lock after that, and all it writes is at or above the `next` that was read
//! before that look: this is noted as its `since`. One that a look does not show either ended
//! before it, and is visible to every later snapshot, or has yet to take the lock, and writes at or
//! above this look's `next`. Hence what may still appear is at or above the *horizon*, the smallest
//! of the newest `next` and every open writer's `since`; and what is already there is at or above
//! the oldest visible row. The floor is the smaller of the two.
//!
//! This is the checkpoint of the design (note `S` and its writers, wait until they are gone) taken
//! at every look: the horizon is the newest checkpoint whose writers are all gone, and instead of
//! every pending checkpoint with its set, each open writer is kept once. Memory is bounded by the
//! transactions the server can have open; nothing waits for anything.
//!
//! # What would break it
//!
//! - `next` after the writers, or in one statement with them: a transaction that takes its lock,
//!   draws and commits in between is in neither.
//! - The oldest row in one statement with the writers, or before it: what committed between the
//!   snapshot and the look at the locks is in neither.
//! - Anything kept over a restart: a crashed server gives values again that it gave before, and the
//!   names of transactions too. [`Floor::reset`] whenever the session in which the looks are taken
//!   was made anew, or the table's OID is another. A `next` that fell (a sequence set back, a table
//!   restored) is seen here; one that fell and rose again between two looks is not.
//! - A row written explicitly below the floor (`OVERRIDING SYSTEM VALUE`, a partial restore). For
//!   both of these, a [`Sweep`](crate::Sweep) is the net.
//! - A standby: there a lock may go before its rows are visible. Only a primary.
//!
//! # Which transactions count
//!
//! Of `messages`, the relay's own sessions may be left out: their claims delete, and never insert;
//! a row that is deleted stays visible to others until that has committed. Other relays' claims
//! cannot be told from producers and do count: each is short, and the horizon keeps close behind. A
//! claim whose rows are only locked holds no such lock (`FOR UPDATE` takes `RowShareLock`); its
//! rows are visible, and hold the floor below them.
//!
//! # Another position
//!
//! Nothing here counts; a position is anything ordered, if it can be read first and nobody writes
//! below what was read: so the floor of the due times of `deferred`, where `next` is the database's
//! `clock_timestamp()`. It needs every due time taken as the later of the wanted one and
//! `clock_timestamp()`, *in the statement that writes it*, so after its lock. There the relay's own
//! sessions do count, since they defer: none may be left out. A clock that is set back is a `next`
//! that fell.

use std::collections::BTreeMap;

use crate::Writer;

/// The floor of one table, as one relay knows it. Starts at the beginning, and each restart with
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Floor<P> {
    floor: Option<P>,
    next: Option<P>,
    open: BTreeMap<Writer, Open<P>>,
    /// Answers asked for in an earlier one do not count.
    generation: u64,
}

/// An open writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Open<P> {
    /// Whatever it writes is at or above this; `None` when that may be anywhere.
    since: Option<P>,
    /// How many looks that count have shown it, up to 2.
    shown: u8,
}

/// What a look changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look<P> {
    /// `next` was lower than before, and everything known was dropped: the sequence was set back.
    pub fell: bool,
    /// Of the writers that ended since the last look, the lowest position any may have written at; the
    /// inner `None` is the beginning.
    pub ended: Option<Option<P>>,
}

/// A wish to know the oldest visible row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ask<P> {
    from: Option<P>,
    horizon: P,
    generation: u64,
}

impl<P: Copy> Ask<P> {
    /// The rows to look among: those at or above this, `None` for all.
    #[must_use]
    pub fn from(&self) -> Option<P> {
        self.from
    }

    /// And below this: a row that is not lower changes nothing.
    #[must_use]
    pub fn below(&self) -> P {
        self.horizon
    }
}

impl<P: Ord + Copy> Default for Floor<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Ord + Copy> Floor<P> {
    /// Nothing is known: the floor is the beginning.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            floor: None,
            next: None,
            open: BTreeMap::new(),
            generation: 0,
        }
    }

    /// No row is below this, and none can appear there: read `WHERE seq >= floor`. `None` is the
    /// beginning.
    #[must_use]
    pub fn floor(&self) -> Option<P> {
        self.floor
    }

    /// The newest `next`.
    #[must_use]
    pub fn next(&self) -> Option<P> {
        self.next
    }

    /// The position below which nothing can appear any more, though rows may still be there.
    #[must_use]
    pub fn horizon(&self) -> Option<P> {
        let writers = self.open.values().map(|open| open.since);
        writers.chain([self.next]).min().flatten()
    }

    /// Whether the newest look showed a writer.
    #[must_use]
    pub fn has_writers(&self) -> bool {
        !self.open.is_empty()
    }

    /// Where rows may appear that are of no old writer: at or above the smallest of the newest `next`
    /// and the `since` of the writers that no two looks that count have shown.
    pub(crate) fn fresh(&self) -> Option<P> {
        let writers = self.open.values().filter(|open| open.shown < 2);
        writers.map(|open| open.since).chain([self.next]).min()?
    }

    /// The writers that two looks that count have shown, each with the position at or above which it may have written; `None` is
    /// anywhere.
    pub(crate) fn old_writers(&self) -> impl Iterator<Item = (Writer, Option<P>)> {
        let old = |(writer, open): (&Writer, &Open<P>)| {
            (open.shown >= 2).then_some((*writer, open.since))
        };
        self.open.iter().filter_map(old)
    }

    /// Takes in a look: `next`, read first, then every writer there was in a statement of its own.
    ///
    /// Two looks that `count` should be as far apart as a transaction may take that is not to be called long: see
    /// [`Frontier`](crate::Frontier). In between there may be any number that do not.
    pub fn looked(
        &mut self,
        next: P,
        writers: impl IntoIterator<Item = Writer>,
        count: bool,
    ) -> Look<P> {
        let fell = self.next.is_some_and(|before| next < before);
        if fell {
            self.reset();
        }
        let mut before = std::mem::take(&mut self.open);
        for writer in writers {
            let since = self.next;
            self.open.entry(writer).or_insert_with(|| {
                let open = before.remove(&writer).unwrap_or(Open { since, shown: 0 });
                let shown = open.shown.saturating_add(u8::from(count)).min(2);
                Open { shown, ..open }
            });
        }
        self.next = Some(next);
        Look {
            fell,
            ended: before.into_values().map(|open| open.since).min(),
        }
    }

    /// The question whose answer may raise the floor; `None` when it is at the horizon already.
    #[must_use]
    pub fn ask(&self) -> Option<Ask<P>> {
        let horizon = self.horizon()?;
        (self.floor < Some(horizon)).then_some(Ask {
            from: self.floor,
            horizon,
            generation: self.generation,
        })
    }

    /// Raises the floor by the answer: the oldest row in the asked range that was visible to a snapshot
    /// taken after the question was. `None` when there was none. An answer that something overtook is
    /// ignored.
    pub fn raise(&mut self, ask: Ask<P>, oldest: Option<P>) {
        if ask.generation == self.generation {
            let raised = oldest.map_or(ask.horizon, |oldest| oldest.min(ask.horizon));
            self.floor = self.floor.max(Some(raised));
        }
    }

    /// Lowers the floor to a row that should not be there: the sweep found it.
    pub fn found_below(&mut self, row: P) {
        if Some(row) < self.floor {
            self.floor = Some(row);
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Forgets everything: the session is another, or the table.
    pub fn reset(&mut self) {
        *self = Self {
            generation: self.generation.wrapping_add(1),
            ..Self::new()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Writer = Writer::new(1, 1);
    const B: Writer = Writer::new(2, 1);

    fn raise(floor: &mut Floor<i64>, oldest: Option<i64>) -> Option<i64> {
        if let Some(ask) = floor.ask() {
            floor.raise(ask, oldest);
        }
        floor.floor()
    }

    #[test]
    fn the_floor_waits_for_the_writers_of_the_first_look_and_then_for_nobody_who_came_later() {
        let mut floor = Floor::new();
        floor.looked(10, [A], true);
        assert_eq!(floor.ask(), None);
        floor.looked(20, [A, B], true);
        assert_eq!(floor.ask(), None);
        // B may have written from 10 on, and nothing below is open.
        floor.looked(30, [B], true);
        assert_eq!(raise(&mut floor, None), Some(10));
        floor.looked(40, [], true);
        assert_eq!(raise(&mut floor, Some(33)), Some(33));
        assert_eq!(raise(&mut floor, None), Some(40));
        assert_eq!(floor.ask(), None);
    }

    #[test]
    fn a_writer_shown_twice_in_one_look_keeps_its_place() {
        let mut floor = Floor::new();
        floor.looked(10, [], true);
        floor.looked(20, [A], true);
        floor.looked(30, [A, A], true);
        assert_eq!(floor.horizon(), Some(10));
    }

    #[test]
    fn a_sequence_that_fell_sends_the_floor_back_to_the_beginning() {
        let mut floor = Floor::new();
        floor.looked(10, [], true);
        assert_eq!(raise(&mut floor, None), Some(10));
        let look = floor.looked(5, [A], true);
        assert!(look.fell);
        assert_eq!((floor.floor(), floor.horizon()), (None, None));
    }

    #[test]
    fn an_answer_asked_for_before_a_reset_or_a_found_row_raises_nothing() {
        let mut floor = Floor::new();
        floor.looked(10, [], true);
        raise(&mut floor, None);
        floor.looked(20, [], true);
        let ask = floor.ask().unwrap();
        floor.found_below(3);
        floor.raise(ask, None);
        assert_eq!(floor.floor(), Some(3));
        let ask = floor.ask().unwrap();
        floor.reset();
        floor.raise(ask, None);
        assert_eq!(floor.floor(), None);
    }

    #[test]
    fn the_floor_of_due_times_waits_for_whoever_may_still_write_an_earlier_one() {
        let at =
            |seconds| std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let mut floor = Floor::new();
        floor.looked(at(100), [], true);
        floor.looked(at(200), [A], true);
        let ask = floor.ask().unwrap();
        assert_eq!(ask.below(), at(100));
        floor.raise(ask, None);
        floor.looked(at(300), [], true);
        let ask = floor.ask().unwrap();
        floor.raise(ask, Some(at(250)));
        assert_eq!(floor.floor(), Some(at(250)));
    }
}
