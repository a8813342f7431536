//! How the rows that a claim only passes over are walked in pieces.
//!
//! Messages with a key stand among those without, and a claim of the latter walks over the former. Behind a restart, or a
//! [`Frontier`](crate::Frontier) that fell, that may be a whole backlog: read at one go, it would take longer than a statement may, and
//! every further attempt would begin at the same place. So a claim walks no farther than a piece, and the next one goes on where it ended.
//!
//! Mostly the frontier comes along, and is where to go on. Where it must not (a transaction that has just begun pins it, or nobody
//! watches the outbox at all), the walk itself remembers, and once it has reached the end, begins at the frontier again.
//! What appears between the frontier and the walk meanwhile is found then: late by the rest of one walk, and never lost.

/// Where the claims of one relay go on that walk over others' rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk<P> {
    at: Option<P>,
}

impl<P> Default for Walk<P> {
    fn default() -> Self {
        Self { at: None }
    }
}

impl<P: Ord + Copy> Walk<P> {
    /// Where the next claim begins, by a frontier that stands here.
    #[must_use]
    pub fn from(&self, frontier: Option<P>) -> Option<P> {
        self.at.max(frontier)
    }

    /// A claim ended at the end of its piece, and everything below `until` was looked at; or it came to the end of all rows, or
    /// was full before. `frontier` is where the frontier stands after that.
    ///
    /// A claim that began above the frontier is not to be told to the frontier: what lies between, others have looked at, at another time.
    pub fn walked(&mut self, walked: Walked<P>, frontier: Option<P>) {
        match walked {
            Walked::Full => {}
            Walked::Until(until) => self.at = self.at.max(Some(until)),
            Walked::ToTheEnd => self.at = None,
        }
        if self.at <= frontier {
            self.at = None;
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

    #[test]
    fn a_walk_goes_on_where_a_piece_ended_and_begins_again_at_the_frontier_after_the_end() {
        let mut walk = Walk::default();
        assert_eq!(walk.from(Some(3)), Some(3));
        walk.walked(Walked::Until(10), Some(3));
        assert_eq!(walk.from(Some(3)), Some(10));
        walk.walked(Walked::Full, Some(3));
        assert_eq!(walk.from(Some(3)), Some(10));
        walk.walked(Walked::Until(20), Some(3));
        assert_eq!(walk.from(None), Some(20));
        walk.walked(Walked::ToTheEnd, Some(3));
        assert_eq!(walk.from(Some(3)), Some(3));
    }

    #[test]
    fn two_claims_that_end_in_the_other_order_do_not_take_the_walk_back() {
        let mut walk = Walk::default();
        walk.walked(Walked::Until(20), None);
        walk.walked(Walked::Until(10), None);
        assert_eq!(walk.from(None), Some(20));
    }

    #[test]
    fn a_walk_is_over_as_soon_as_the_frontier_has_come_along() {
        let mut walk = Walk::default();
        walk.walked(Walked::Until(10), Some(10));
        assert_eq!(walk, Walk::default());
        walk.walked(Walked::Until(20), Some(10));
        walk.walked(Walked::Full, Some(25));
        // The frontier falls: nothing is left that would keep claims above it.
        assert_eq!(walk.from(Some(4)), Some(4));
    }
}
