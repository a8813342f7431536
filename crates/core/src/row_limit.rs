//! How many rows the next claim asks for.

/// The row limit of one worker's claims.
///
/// A claim locks as many rows as it asks for, but takes only those that fit into `batch_bytes`: with
/// large payloads most of the locked rows would be kept from the other workers for nothing. So the
/// limit follows what fitted the last time, and grows back as the payloads get smaller. It also shrinks when a
/// claim could not be read within its time, over a slow path to the database: asked for the same rows again, it
/// would fail for ever.
#[derive(Debug, Clone)]
pub struct RowLimit {
    most: u32,
    current: u32,
    /// For so many more claims the rows are expected to differ in size.
    uneven: u32,
}

impl RowLimit {
    /// How many claims follow one that met a row beyond its equal share before the next is tried: the cheaper kind of claim
    /// leaves such rows, so where they are many, two claims would be needed for the work of one.
    const UNEVEN: u32 = 100;

    /// Starts at `most` rows (at least one) and never goes above.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let most = most.max(1);
        Self {
            most,
            current: most,
            uneven: 0,
        }
    }

    /// Never above `most` rows (at least one) from now on. What was learned stays; where that leaves room, the
    /// claims grow into it as after large payloads.
    pub fn bound(&mut self, most: u32) {
        self.most = most.max(1);
        self.current = self.current.min(self.most);
    }

    /// Whether each row of the next claim may have an equal share of the bytes, as long as the claims before left none.
    #[must_use]
    pub const fn shares_equally(&self) -> bool {
        self.uneven == 0
    }

    /// The rows the next claim may lock.
    #[must_use]
    pub const fn rows(&self) -> u32 {
        self.current
    }

    /// A claim of as many rows took longer than it may.
    pub fn too_slow(&mut self) {
        self.current = (self.current / 2).max(1);
    }

    /// A claim was published and could not be settled: the next one is of a single row, and each after one that could of twice as many. What is published in
    /// vain is published again, so what the reason is should show with few repeats.
    pub fn begin_anew(&mut self) {
        self.current = 1;
    }

    /// Learns from a claim that took `rows` rows; `cut_by_bytes` when more were locked than fitted, `quick` when
    /// one of twice as many would be in time, too.
    pub fn observe(&mut self, rows: u32, cut_by_bytes: bool, quick: bool) {
        self.uneven = if !cut_by_bytes {
            self.uneven.saturating_sub(1)
        } else if self.shares_equally() {
            // What was left says nothing of what fits.
            self.uneven = Self::UNEVEN;
            return;
        } else {
            Self::UNEVEN
        };
        let next = if !quick && !cut_by_bytes {
            self.current
        } else if cut_by_bytes {
            rows.saturating_add(rows / 4).saturating_add(1)
        } else {
            self.current.saturating_mul(2)
        };
        self.current = next.clamp(1, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn another_bound_holds_from_the_next_claim_on_and_is_grown_into() {
        let mut limit = RowLimit::new(500);
        limit.bound(3);
        assert_eq!(limit.rows(), 3);
        limit.observe(3, false, true);
        assert_eq!(limit.rows(), 3);
        limit.bound(10);
        let mut rows = vec![limit.rows()];
        for _ in 0..3 {
            limit.observe(limit.rows(), false, true);
            rows.push(limit.rows());
        }
        assert_eq!(rows, [3, 6, 10, 10]);
        limit.bound(0);
        assert_eq!(limit.rows(), 1);
    }

    #[test]
    fn behind_a_claim_that_could_not_be_settled_rows_are_doubled_from_one_on() {
        let mut limit = RowLimit::new(5);
        limit.begin_anew();
        let rows = [(); 4].map(|()| {
            let rows = limit.rows();
            limit.observe(rows, false, true);
            rows
        });
        assert_eq!(rows, [1, 2, 4, 5]);
    }

    #[test]
    fn the_limit_follows_large_payloads_down_and_small_ones_up() {
        let mut limit = RowLimit::new(500);
        assert!(limit.shares_equally());
        limit.observe(300, true, true);
        assert_eq!((limit.rows(), limit.shares_equally()), (500, false));
        limit.observe(8, true, true);
        assert_eq!(limit.rows(), 11);
        limit.observe(11, false, true);
        assert_eq!(limit.rows(), 22);
        for _ in 0..10 {
            limit.observe(limit.rows(), false, true);
        }
        assert_eq!(limit.rows(), 500);
    }

    #[test]
    fn equal_shares_are_tried_again_when_many_claims_left_nothing() {
        let mut limit = RowLimit::new(500);
        limit.observe(0, true, true);
        limit.observe(500, true, true);
        for _ in 0..RowLimit::UNEVEN {
            assert!(!limit.shares_equally());
            limit.observe(500, false, true);
        }
        assert!(limit.shares_equally());
    }

    #[test]
    fn the_limit_shrinks_until_claims_are_in_time_and_stays_while_they_are_slow() {
        let mut limit = RowLimit::new(1000);
        limit.too_slow();
        limit.too_slow();
        assert_eq!(limit.rows(), 250);
        limit.observe(250, false, false);
        assert_eq!(limit.rows(), 250);
        limit.observe(250, false, true);
        assert_eq!(limit.rows(), 500);
        for _ in 0..20 {
            limit.too_slow();
        }
        assert_eq!(limit.rows(), 1);
    }

    proptest! {
        #[test]
        fn the_limit_stays_between_one_and_the_most(
            most in 0u32..20_000, claims in prop::collection::vec((0u32..30_000, any::<bool>(), any::<bool>()), 0..50)
        ) {
            let mut limit = RowLimit::new(most);
            for (rows, cut, quick) in claims {
                limit.observe(rows, cut, quick);
                if !cut && !quick {
                    limit.too_slow();
                }
                prop_assert!(limit.rows() >= 1 && limit.rows() <= most.max(1));
            }
        }
    }
}
