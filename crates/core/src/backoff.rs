//! How long to wait before the next attempt: exponential, with full jitter, so that many relays
//! that lost one server do not come back to it at the same moment.

use std::time::Duration;

/// A growing wait between attempts at the same thing. The random choice is passed in.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    longest: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// No wait is shorter than this, whatever the jitter says: an attempt at a server that is away
    /// costs sockets and log lines on both sides.
    pub const SHORTEST: Duration = Duration::from_millis(20);

    /// Waits of up to `initial` at first, twice as long after each attempt, never above `longest`.
    #[must_use]
    pub fn new(initial: Duration, longest: Duration) -> Self {
        let longest = longest.max(Self::SHORTEST);
        let initial = initial.clamp(Self::SHORTEST, longest);
        Self {
            initial,
            longest,
            ceiling: initial,
        }
    }

    /// The next wait, between [`Self::SHORTEST`] and the current ceiling, chosen by `random` (0 to 1).
    #[must_use]
    pub fn next(&mut self, random: f64) -> Duration {
        let wait = self
            .ceiling
            .mul_f64(random.clamp(0.0, 1.0))
            .max(Self::SHORTEST);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.longest);
        wait
    }

    /// Starts again from the initial wait: the thing succeeded.
    pub fn reset(&mut self) {
        self.ceiling = self.initial;
    }
}

/// `interval`, shifted by up to a quarter either way by `random` (0 to 1), so that the polls of many
/// relays do not fall on one moment.
#[must_use]
pub fn jittered(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let ceilings: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_millis(), 100);
    }

    proptest! {
        #[test]
        fn every_wait_lies_between_the_shortest_and_the_longest(
            initial in 0u64..100_000, longest in 0u64..100_000, randoms in prop::collection::vec(-1.0f64..2.0, 1..40)
        ) {
            let mut backoff = Backoff::new(Duration::from_millis(initial), Duration::from_millis(longest));
            for random in randoms {
                let wait = backoff.next(random);
                prop_assert!(wait >= Backoff::SHORTEST);
                prop_assert!(wait <= Duration::from_millis(longest).max(Backoff::SHORTEST));
            }
        }

        #[test]
        fn jitter_stays_within_a_quarter(millis in 1u64..1_000_000, random in 0.0f64..1.0) {
            let interval = Duration::from_millis(millis);
            let shifted = jittered(interval, random);
            prop_assert!(shifted >= interval.mul_f64(0.75) && shifted <= interval.mul_f64(1.25));
        }
    }
}
