//! The frontier: where the next claim starts. Above the floor, so that a transaction that stays
//! open and pins the floor does not make claims slow.
//!
//! What lies below the frontier was looked at, and may still have to be looked at again. Nothing is
//! lost by a frontier that is too high, since a look back is made now and then ([`Frontier::below`], paced by its
//! cost); it is only late. So safety rests on the [`Floor`] alone, and what follows keeps rows from being late.
//!
//! # What a claim may pass
//!
//! A claim that reads from the frontier in order, skips what is locked and takes up to its limit
//! has looked at all that its snapshot showed. What may appear below is known from the newest look
//! at the writers that came before it:
//!
//! - A transaction that no look has shown yet writes at or above that look's `next`. No claim moves
//!   the frontier above it, so what was drawn since the last look is read again by each claim: no
//!   more than a tenth of a second's rows. Without this, two transactions that draw 10 and 11 and
//!   commit in the other order would make 10 wait for the next look. It also keeps a row with an
//!   explicit `seq`, far above the sequence, from carrying the frontier with it.
//! - One that no two looks that count have shown has hardly begun and ends soon: the frontier
//!   waits below it. Passed as soon as it was shown twice, while looks come every few milliseconds, its rows
//!   would be found by the next look only, and not by the claim that its notification brings about.
//! - One shown for the second time is open for long. The frontier passes it; when a look shows it
//!   no longer, the frontier falls back to where it may have written: once, and not to the floor.
//!
//! # Races
//!
//! - A claim was sent before a look or a fall of the frontier and answers after it: it saw too
//!   early a snapshot, so its answer does not move the frontier ([`Scan`] knows when it began).
//! - `SKIP LOCKED` does not say what it skipped. What a worker of this relay had locked and gives
//!   back (roll back, a row it left unsettled, one it locked and did not take for its bytes) it
//!   tells here, *after* the rows are free: [`Frontier::given_back`]. What another relay or an
//!   operator locked and left is only found by the look back. It is no noted writer either: a lock
//!   of rows is not one of `RowExclusiveLock`. It stays visible, though, so it holds the floor
//!   below it.
//! - A connection that was lost may hold its locks for a while after its worker told of it: the
//!   look back finds those too.
//! - A row left out of claims on purpose, because it could not be read, is to be told as given back
//!   when its rest ends.

use crate::{Ask, Floor, Look, Writer};

/// Where the claims of one relay on one table start. One for all its workers; with its own
/// [`Floor`].
///
/// Looks are taken one after the other in one session, and [`Frontier::reset`] is called when that
/// session is lost; claims may run beside them in any number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Frontier<P> {
    floor: Floor<P>,
    at: Option<P>,
    /// A scan that began in an earlier one moves nothing.
    turn: u64,
    /// The `next` known to a scan of this turn that reached the end.
    drained: Option<P>,
}

/// A claim on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a claim that is not told of moves no frontier"]
pub struct Scan<P> {
    from: Option<P>,
    limit: Option<P>,
    next: Option<P>,
    turn: u64,
}

impl<P: Copy> Scan<P> {
    /// The rows to claim: those at or above this, in order; `None` for all.
    #[must_use]
    pub fn from(&self) -> Option<P> {
        self.from
    }
}

/// How far a claim came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Passed<P> {
    /// It stopped at its limit: everything below this was looked at. One above the last row that it
    /// *returned*.
    Below(P),
    /// There was nothing more to claim.
    All,
}

impl<P: Ord + Copy> Default for Frontier<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Ord + Copy> Frontier<P> {
    /// Nothing is known: claims start at the beginning.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            floor: Floor::new(),
            at: None,
            turn: 0,
            drained: None,
        }
    }

    /// What it stands on.
    #[must_use]
    pub fn floor(&self) -> &Floor<P> {
        &self.floor
    }

    /// Where the next claim starts; `None` is the beginning.
    #[must_use]
    pub fn at(&self) -> Option<P> {
        self.at
    }

    /// A claim is about to be sent.
    pub fn scan(&self) -> Scan<P> {
        Scan {
            from: self.at,
            limit: self.floor.fresh(),
            next: self.floor.next(),
            turn: self.turn,
        }
    }

    /// A claim was answered. One that failed is not told.
    pub fn passed(&mut self, scan: Scan<P>, passed: Passed<P>) {
        if scan.turn != self.turn {
            return;
        }
        let to = match passed {
            Passed::Below(to) => scan.limit.min(Some(to)),
            Passed::All => {
                self.drained = self.drained.max(scan.next);
                scan.limit
            }
        };
        self.at = self.at.max(to);
    }

    /// Takes in a look, as [`Floor::looked`] says.
    pub fn looked(
        &mut self,
        next: P,
        writers: impl IntoIterator<Item = Writer>,
        count: bool,
    ) -> Look<P> {
        let look = self.floor.looked(next, writers, count);
        if look.fell {
            self.fall_back(None);
        }
        if let Some(since) = look.ended {
            self.fall_back(since);
        }
        look
    }

    /// See [`Floor::ask`].
    #[must_use]
    pub fn ask(&self) -> Option<Ask<P>> {
        self.floor.ask()
    }

    /// See [`Floor::raise`].
    pub fn raise(&mut self, ask: Ask<P>, oldest: Option<P>) {
        self.floor.raise(ask, oldest);
        self.at = self.at.max(self.floor.floor());
    }

    /// Rows that this relay had claimed are free again, the lowest of them this one.
    pub fn given_back(&mut self, lowest: P) {
        self.fall_back(Some(lowest));
    }

    /// Where a look back looks for rows that nobody has locked: from the first on, and below the second; `None`
    /// when there is nothing to look back to. The lowest that it finds is told by [`Frontier::given_back`].
    #[must_use]
    pub fn below(&self) -> Option<(Option<P>, P)> {
        let floor = self.floor.floor();
        self.at.filter(|at| Some(*at) > floor).map(|at| (floor, at))
    }

    /// The sweep found a row below the floor.
    pub fn found_below(&mut self, row: P) {
        self.floor.found_below(row);
        self.fall_back(Some(row));
    }

    /// Forgets everything: the session in which looks are taken was lost, or the table is another one.
    /// Claims that are on their way move nothing any more.
    pub fn reset(&mut self) {
        self.floor.reset();
        self.fall_back(None);
    }

    /// Whether the newest look showed that something may have appeared since the last claim that found
    /// nothing more began.
    #[must_use]
    pub fn wants_claim(&self) -> bool {
        self.drained.is_none() || self.drained != self.floor.next()
    }

    /// Whether looks may cease until something was drawn: all that ever was is gone.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let next = self.floor.next();
        next.is_some() && !self.floor.has_writers() && self.floor.floor() == next
    }

    fn fall_back(&mut self, to: Option<P>) {
        self.at = self.at.min(to).max(self.floor.floor());
        self.turn = self.turn.wrapping_add(1);
        self.drained = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Writer = Writer::new(1, 1);

    fn claim(frontier: &mut Frontier<i64>, passed: Passed<i64>) -> Option<i64> {
        let scan = frontier.scan();
        frontier.passed(scan, passed);
        frontier.at()
    }

    #[test]
    fn claims_follow_each_other_up_to_what_was_drawn_before_the_last_look() {
        let mut frontier = Frontier::new();
        assert_eq!(claim(&mut frontier, Passed::Below(5)), None);
        frontier.looked(100, [], true);
        assert_eq!(claim(&mut frontier, Passed::Below(51)), Some(51));
        assert_eq!(claim(&mut frontier, Passed::Below(151)), Some(100));
        assert_eq!(claim(&mut frontier, Passed::All), Some(100));
    }

    #[test]
    fn the_frontier_waits_for_a_new_writer_passes_an_old_one_and_returns_when_it_ends() {
        let mut frontier = Frontier::new();
        frontier.looked(10, [], true);
        frontier.looked(20, [A], true);
        assert_eq!(claim(&mut frontier, Passed::All), Some(10));
        frontier.looked(30, [A], true);
        assert_eq!(claim(&mut frontier, Passed::All), Some(30));
        assert!(!frontier.wants_claim());
        frontier.looked(30, [], true);
        assert!(frontier.wants_claim());
        assert_eq!(frontier.at(), Some(10));
    }

    #[test]
    fn looks_that_do_not_count_make_no_writer_an_old_one() {
        let mut frontier = Frontier::new();
        frontier.looked(10, [], true);
        for next in 20..30 {
            frontier.looked(next, [A], false);
        }
        assert_eq!(claim(&mut frontier, Passed::All), Some(10));
        frontier.looked(30, [A], true);
        assert_eq!(claim(&mut frontier, Passed::All), Some(10));
        frontier.looked(30, [A], true);
        assert_eq!(claim(&mut frontier, Passed::All), Some(30));
    }

    #[test]
    fn a_claim_that_began_before_the_frontier_fell_does_not_lift_it() {
        let mut frontier = Frontier::new();
        frontier.looked(10, [], true);
        let scan = frontier.scan();
        frontier.given_back(3);
        frontier.passed(scan, Passed::All);
        assert_eq!(frontier.at(), None);
        assert!(frontier.wants_claim());
    }

    #[test]
    fn a_look_back_looks_between_floor_and_frontier() {
        let mut frontier = Frontier::new();
        assert_eq!(frontier.below(), None);
        frontier.looked(10, [], true);
        claim(&mut frontier, Passed::All);
        assert_eq!(frontier.below(), Some((None, 10)));
        frontier.given_back(4);
        assert_eq!(frontier.at(), Some(4));
        claim(&mut frontier, Passed::All);
        let ask = frontier.ask().unwrap();
        frontier.raise(ask, None);
        assert_eq!(frontier.below(), None);
    }

    #[test]
    fn looks_cease_only_when_all_that_was_drawn_is_gone() {
        let mut frontier = Frontier::new();
        frontier.looked(10, [], true);
        let ask = frontier.ask().unwrap();
        frontier.raise(ask, Some(7));
        assert!(!frontier.is_at_rest());
        let ask = frontier.ask().unwrap();
        frontier.raise(ask, None);
        assert!(frontier.is_at_rest());
        assert_eq!(frontier.at(), Some(10));
        frontier.looked(10, [A], true);
        assert!(!frontier.is_at_rest());
    }

    #[test]
    fn a_row_found_below_the_floor_brings_floor_and_frontier_down_to_it() {
        let mut frontier = Frontier::new();
        frontier.looked(10, [], true);
        let ask = frontier.ask().unwrap();
        frontier.raise(ask, None);
        frontier.found_below(4);
        assert_eq!(
            (frontier.at(), frontier.floor().floor()),
            (Some(4), Some(4))
        );
    }
}
