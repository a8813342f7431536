//! How the rows that a claim only passes over are walked in pieces.
//!
//! Messages with a key stand among those without, and a claim of the latter walks over the former. Behind a restart, or a
//! [`Frontier`](crate::Frontier) that fell, that may be a whole backlog: read at one go, it would take longer than a statement may, and
//! every further attempt would begin at the same place. So a claim walks no farther than a piece, and the next one goes on where it ended.
//!
//! Mostly the frontier comes along, and is where to go on. Where it must not (a transaction that has just begun pins it, or nobody
//! watches the outbox at all), the walk itself remembers, and once it has reached the end, begins at the frontier again.
//! What appears between the frontier and the walk meanwhile is not left until then, which under load may be never: now and then a claim begins at the
//! frontier all the same. By these the frontier follows, too, once it may, and the walk is over when it has come along.
//! (While nobody watches the outbox it may not, and they see the same piece each time.)

/// How many claims of the walk are followed by one from the frontier.
const CLAIMS_OF_THE_WALK: u32 = 7;

/// Where the claims of one relay go on that walk over others' rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk<P> {
    at: Option<P>,
    /// Claims of the walk that have begun since one from the frontier did.
    claims: u32,
}

impl<P> Default for Walk<P> {
    fn default() -> Self {
        Self {
            at: None,
            claims: 0,
        }
    }
}

/// Where a claim began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkedFrom {
    /// Where the frontier stood.
    Frontier,
    /// Above it, where the walk had come to. It is not to be told to the frontier: what lies between, others have looked at, at another time.
    Walk,
}

impl<P: Ord + Copy> Walk<P> {
    /// Where a claim that begins now does, by a frontier that stands here. One that fails has had its turn as well: behind what it could not
    /// walk over, the walk goes on.
    #[must_use]
    pub fn begin(&mut self, frontier: Option<P>) -> Option<P> {
        if self.at <= frontier || self.claims >= CLAIMS_OF_THE_WALK {
            self.claims = 0;
            return frontier;
        }
        self.claims += 1;
        self.at
    }

    /// A claim ended. `next`: what comes behind the last row it took. `frontier` is where the frontier stands after that.
    pub fn walked(
        &mut self,
        from: WalkedFrom,
        walked: Walked<P>,
        next: Option<P>,
        frontier: Option<P>,
    ) {
        match (walked, from) {
            // Else each would walk over what those before it have taken.
            (Walked::Full, WalkedFrom::Walk) if self.at.is_some() => self.at = self.at.max(next),
            (Walked::Full, _) => {}
            (Walked::Until(until), _) => self.at = self.at.max(Some(until)),
            (Walked::ToTheEnd, _) => self.at = None,
        }
        if self.at <= frontier {
            *self = Self::default();
        }
    }
}

/// How far a claim walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walked<P> {
    /// It took as many rows as it could.
    Full,
    /// To the end of a piece: everything below this was looked at, and there may be more.
    Until(P),
    /// There was nothing more.
    ToTheEnd,
}

#[cfg(test)]
mod tests {
    use super::*;

    use WalkedFrom::{Frontier, Walk as OfWalk};

    #[test]
    fn a_walk_goes_on_where_a_piece_ended_or_a_claim_was_full_and_begins_again_at_the_frontier_after_the_end()
     {
        let mut walk = Walk::default();
        assert_eq!(walk.begin(Some(3)), Some(3));
        walk.walked(Frontier, Walked::Full, Some(5), Some(3));
        assert_eq!(walk.begin(Some(3)), Some(3));
        walk.walked(Frontier, Walked::Until(10), None, Some(3));
        assert_eq!(walk.begin(Some(3)), Some(10));
        walk.walked(OfWalk, Walked::Full, Some(12), Some(3));
        assert_eq!(walk.begin(Some(3)), Some(12));
        walk.walked(OfWalk, Walked::Until(20), None, Some(3));
        assert_eq!(walk.begin(None), Some(20));
        walk.walked(OfWalk, Walked::ToTheEnd, None, Some(3));
        assert_eq!(walk.begin(Some(3)), Some(3));
        // One that was under way when the walk ended does not begin another.
        walk.walked(OfWalk, Walked::Full, Some(25), Some(3));
        assert_eq!(walk.begin(Some(3)), Some(3));
    }

    #[test]
    fn two_claims_that_end_in_the_other_order_do_not_take_the_walk_back() {
        let mut walk = Walk::default();
        walk.walked(Frontier, Walked::Until(20), None, None);
        walk.walked(Frontier, Walked::Until(10), None, None);
        assert_eq!(walk.begin(None), Some(20));
    }

    /// Hazard: under a backlog every claim is full, and what lay between frontier and walk, such as what a long transaction committed, was not
    /// looked for before the backlog was gone.
    #[test]
    fn however_many_claims_of_a_walk_are_full_one_in_eight_begins_at_the_frontier() {
        let mut walk = Walk::default();
        walk.walked(Frontier, Walked::Until(100), None, Some(3));
        let mut frontier = Some(3);
        for round in 1..=3 {
            for claim in 0..7 {
                let at = walk.begin(frontier);
                assert!(at > frontier, "claim {claim} of round {round}");
                walk.walked(OfWalk, Walked::Full, at.map(|at| at + 10), frontier);
            }
            assert_eq!(walk.begin(frontier), frontier);
            // It follows, once it may.
            frontier = frontier.map(|at| at + 50 * round);
            walk.walked(Frontier, Walked::Until(1), None, frontier);
        }
        assert_eq!(walk.begin(frontier), Some(310));
        walk.walked(Frontier, Walked::Until(310), None, Some(310));
        assert_eq!(walk, Walk::default());
    }

    #[test]
    fn a_walk_is_over_as_soon_as_the_frontier_has_come_along() {
        let mut walk = Walk::default();
        walk.walked(Frontier, Walked::Until(10), None, Some(10));
        assert_eq!(walk, Walk::default());
        walk.walked(Frontier, Walked::Until(20), None, Some(10));
        walk.walked(Frontier, Walked::Full, Some(25), Some(25));
        // The frontier falls: nothing is left that would keep claims above it.
        assert_eq!(walk.begin(Some(4)), Some(4));
    }
}
