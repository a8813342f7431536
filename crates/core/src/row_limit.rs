//! How many rows the next claim asks for.

/// The row limit of one worker's claims.
///
/// A claim locks as many rows as it asks for, but takes only those that fit into `batch_bytes`: with
/// large payloads most of the locked rows would be kept from the other workers for nothing. So the
/// limit follows what fitted the last time, and grows back as the payloads get smaller.
#[derive(Debug, Clone)]
pub struct RowLimit {
    most: u32,
    current: u32,
}

impl RowLimit {
    /// Starts at `most` rows (at least one) and never goes above.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let most = most.max(1);
        Self {
            most,
            current: most,
        }
    }

    /// The rows the next claim may lock.
    #[must_use]
    pub const fn rows(&self) -> u32 {
        self.current
    }

    /// Learns from a claim that took `rows` rows; `cut_by_bytes` when more were locked than fitted.
    pub fn observe(&mut self, rows: u32, cut_by_bytes: bool) {
        let next = if cut_by_bytes {
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
    fn the_limit_follows_large_payloads_down_and_small_ones_up() {
        let mut limit = RowLimit::new(500);
        limit.observe(8, true);
        assert_eq!(limit.rows(), 11);
        limit.observe(11, false);
        assert_eq!(limit.rows(), 22);
        for _ in 0..10 {
            limit.observe(limit.rows(), false);
        }
        assert_eq!(limit.rows(), 500);
    }

    proptest! {
        #[test]
        fn the_limit_stays_between_one_and_the_most(
            most in 0u32..20_000, claims in prop::collection::vec((0u32..30_000, any::<bool>()), 0..50)
        ) {
            let mut limit = RowLimit::new(most);
            for (rows, cut) in claims {
                limit.observe(rows, cut);
                prop_assert!(limit.rows() >= 1 && limit.rows() <= most.max(1));
            }
        }
    }
}
