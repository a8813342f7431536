//! The net below the floor: rows that should not be there, since they were not written as rows are
//! (an explicit `seq`, a restored dump, a sequence set back and forth between two looks, a clock
//! set back).
//!
//! To look for them means to walk over everything that was ever there and that vacuum may not
//! remove. So it is done in pieces, each with a pause in proportion to what it cost, and by one
//! relay of an outbox at a time (who it is, is for the caller to settle, by a lock in the
//! database).

use std::time::Duration;

/// Keeps a chore to a share of the time: about one part in a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    shortest: Duration,
    longest: Duration,
}

impl Pace {
    /// How much longer a chore rests than it took.
    const REST: u32 = 99;

    /// Rests no shorter and no longer than this. Where the longest comes first, the chore takes more
    /// than its share.
    #[must_use]
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest }
    }

    /// How long to rest after the chore took `cost`.
    #[must_use]
    pub fn rest(self, cost: Duration) -> Duration {
        let longest = self.longest.max(self.shortest);
        cost.saturating_mul(Self::REST)
            .clamp(self.shortest, longest)
    }
}

/// Goes through everything below the floor, piece by piece, round after round.
///
/// Positions are numbers here: `seq`, or microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    first: i64,
    width: i64,
    at: Option<i64>,
}

/// What to look through next for any row: `seq >= from AND seq < to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its lower end; `None` when it has none.
    pub from: Option<i64>,
    /// Its upper end, not included.
    pub to: i64,
    last: bool,
}

impl Sweep {
    /// Between pieces. A piece that costs little would otherwise be followed at once by the next.
    const BETWEEN_PIECES: Pace = Pace {
        shortest: Duration::from_millis(10),
        longest: Duration::from_secs(60),
    };
    /// Between the last piece of a round and the first of the next.
    const BETWEEN_ROUNDS: Duration = Duration::from_secs(60);
    /// A piece that cost less is followed by one twice as wide: where vacuum has been, a billion positions are
    /// looked through as fast as one.
    const CHEAP: Duration = Duration::from_millis(2);
    /// One that cost more by one half as wide.
    const EXPENSIVE: Duration = Duration::from_millis(10);

    /// The first piece of a round is everything below `first`, the next is `width` wide (at least 1), and every other
    /// as wide as the cost of the last allows.
    #[must_use]
    pub fn new(first: i64, width: i64) -> Self {
        Self {
            first,
            width: width.max(1),
            at: None,
        }
    }

    /// The next piece below the floor. Asked again before [`Sweep::swept`], the same.
    #[must_use]
    pub fn piece(&self, floor: i64) -> Piece {
        // The floor may have fallen below where this round is: then the round ends with a piece without
        // rows.
        let to = self
            .at
            .map_or(self.first, |at| at.saturating_add(self.width))
            .min(floor);
        Piece {
            from: self.at,
            to,
            last: to >= floor,
        }
    }

    /// A piece was looked through, which took `cost`: how long to rest.
    #[must_use]
    pub fn swept(&mut self, piece: Piece, cost: Duration) -> Duration {
        let rest = Self::BETWEEN_PIECES.rest(cost);
        if cost < Self::CHEAP {
            self.width = self.width.saturating_mul(2);
        } else if cost > Self::EXPENSIVE {
            self.width = (self.width / 2).max(1);
        }
        if piece.last {
            self.at = None;
            rest.max(Self::BETWEEN_ROUNDS)
        } else {
            self.at = Some(piece.to);
            rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chore_rests_in_proportion_to_its_cost_between_its_bounds() {
        let pace = Pace::new(Duration::from_millis(200), Duration::from_secs(60));
        let rest = |micros| pace.rest(Duration::from_micros(micros)).as_millis();
        assert_eq!(
            [rest(100), rest(108_000), rest(5_000_000)],
            [200, 10_692, 60_000]
        );
    }

    #[test]
    fn an_expensive_piece_is_followed_by_a_long_rest_and_a_round_by_a_minute() {
        let mut sweep = Sweep::new(1, 10);
        let piece = sweep.piece(15);
        assert_eq!((piece.from, piece.to), (None, 1));
        assert_eq!(sweep.swept(piece, Duration::ZERO).as_millis(), 10);
        let piece = sweep.piece(25);
        assert_eq!((piece.from, piece.to), (Some(1), 21));
        assert_eq!(
            sweep.swept(piece, Duration::from_millis(3)).as_millis(),
            297
        );
        let piece = sweep.piece(25);
        assert_eq!((piece.from, piece.to), (Some(21), 25));
        assert_eq!(sweep.swept(piece, Duration::ZERO).as_secs(), 60);
        assert_eq!(sweep.piece(25).from, None);
    }

    #[test]
    fn pieces_grow_while_they_cost_little_and_shrink_when_they_cost_much() {
        let mut sweep = Sweep::new(0, 10);
        let mut width = |cost| {
            let piece = sweep.piece(i64::MAX);
            let _ = sweep.swept(piece, Duration::from_millis(cost));
            piece.from.map(|from| piece.to - from)
        };
        let widths = [0, 0, 5, 5, 50, 50, 5].map(&mut width);
        let expected = [
            None,
            Some(20),
            Some(40),
            Some(40),
            Some(40),
            Some(20),
            Some(10),
        ];
        assert_eq!(widths, expected);
    }

    proptest! {
        #[test]
        fn a_round_looks_at_every_position_below_the_floor_once_in_pieces_no_wider_than_asked(
            first in -5i64..20, width in 0i64..9, floor in -10i64..60
        ) {
            let mut sweep = Sweep::new(first, width);
            let mut reached = None;
            for _ in 0..100 {
                let piece = sweep.piece(floor);
                prop_assert_eq!(piece.from, reached);
                if let Some(from) = piece.from {
                    prop_assert!(piece.to - from <= width.max(1));
                }
                prop_assert!(piece.to <= floor);
                reached = Some(piece.to);
                let _ = sweep.swept(piece, Duration::from_millis(5));
                if sweep == Sweep::new(first, width) {
                    break;
                }
            }
            prop_assert_eq!(reached, Some(floor));
        }

        #[test]
        fn a_floor_that_falls_ends_the_round(floors in prop::collection::vec(0i64..100, 1..50)) {
            let mut sweep = Sweep::new(1, 10);
            for floor in floors {
                let piece = sweep.piece(floor);
                prop_assert!(piece.to <= floor);
                let _ = sweep.swept(piece, Duration::ZERO);
                prop_assert!(sweep.at.is_none_or(|at| at < floor));
            }
        }
    }
}
