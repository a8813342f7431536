//! What is done about a publish that failed: one exhaustive match.

use std::collections::HashMap;
use std::time::Duration;

use crate::{Failure, Reason, Scope};

/// How often, and after which waits, a message that failed by its own fault is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    max_attempts: u32,
    initial_delay: Duration,
    max_delay: Duration,
    multiplier: f64,
}

/// Why a retry policy cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RetryPolicyError {
    /// No attempt at all.
    #[error("max_attempts must be at least 1")]
    NoAttempts,
    /// A wait of nothing would be a hot loop.
    #[error("initial_delay must be longer than nothing, and max_delay at least as long")]
    Delays,
    /// Waits that shrink.
    #[error("multiplier must be a number from 1 to 100")]
    Multiplier,
}

/// What to do with a message that no queue is bound for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnroutablePolicy {
    /// Try again, then give up.
    Retry,
    /// Take it as sent: nobody listens, and nobody has to.
    Accept,
}

/// The policy of every exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnroutablePolicies {
    default: UnroutablePolicy,
    by_exchange: HashMap<String, UnroutablePolicy>,
}

impl UnroutablePolicies {
    /// `default` for every exchange that `by_exchange` does not name.
    #[must_use]
    pub fn new(default: UnroutablePolicy, by_exchange: HashMap<String, UnroutablePolicy>) -> Self {
        Self {
            default,
            by_exchange,
        }
    }

    /// The policy of this exchange.
    #[must_use]
    pub fn of(&self, exchange: &str) -> UnroutablePolicy {
        self.by_exchange
            .get(exchange)
            .copied()
            .unwrap_or(self.default)
    }
}

/// Whether a failure is held against the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// It costs an attempt.
    Yes,
    /// It is the fault of the message's exchange or route, for which others pay (see [`crate::Routes`]).
    No,
}

/// What becomes of a message whose publish failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It is taken as sent: its row is deleted.
    Done,
    /// Its row stays where it is, and no attempt is charged: a server or the network was at fault.
    Stay,
    /// It waits, then is tried again.
    Retry {
        /// For how long.
        after: Duration,
        /// How many attempts have failed, this one included.
        attempts: u32,
    },
    /// It waits as long as the longest wait, or until its exchange or route takes messages again. No
    /// attempt is charged.
    Postpone {
        /// For how long at most.
        after: Duration,
    },
    /// It becomes a dead letter: a person decides.
    GiveUp {
        /// How many attempts have failed, this one included.
        attempts: u32,
    },
}

impl RetryPolicy {
    /// No wait is shorter than this, whatever the jitter says.
    pub const SHORTEST: Duration = Duration::from_millis(20);

    /// A policy of at most `max_attempts` publishes, with waits of up to `initial_delay` after the
    /// first failure, `multiplier` times as long after each further one, never above `max_delay`.
    ///
    /// # Errors
    /// When no message could ever be tried, or the waits make no sense.
    pub fn new(
        max_attempts: u32,
        initial_delay: Duration,
        max_delay: Duration,
        multiplier: f64,
    ) -> Result<Self, RetryPolicyError> {
        if max_attempts == 0 {
            return Err(RetryPolicyError::NoAttempts);
        }
        if initial_delay.is_zero() || max_delay < initial_delay {
            return Err(RetryPolicyError::Delays);
        }
        if !(1.0..=100.0).contains(&multiplier) {
            return Err(RetryPolicyError::Multiplier);
        }
        Ok(Self {
            max_attempts,
            initial_delay,
            max_delay,
            multiplier,
        })
    }

    /// The longest wait after a first failure.
    #[must_use]
    pub fn initial_delay(&self) -> Duration {
        self.initial_delay
    }

    /// The longest wait of all.
    #[must_use]
    pub fn max_delay(&self) -> Duration {
        self.max_delay
    }

    /// The wait after this many failures, chosen by `random` (0 to 1): full jitter, so that messages
    /// which failed together do not come back together.
    #[must_use]
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let factor = self.multiplier.powi(exponent);
        let longest = self.max_delay.as_secs_f64();
        let ceiling = (self.initial_delay.as_secs_f64() * factor).min(longest);
        Duration::from_secs_f64(ceiling * random.clamp(0.0, 1.0))
            .max(Self::SHORTEST)
            .min(self.max_delay)
    }

    /// Decides what becomes of a message whose publish failed, after `attempts` earlier failures by its
    /// own fault. `charge` counts for faults of an exchange or a route. `random` (0 to 1) is for the jitter.
    ///
    /// The match has no catch-all arm: a new reason does not compile until someone decides.
    #[must_use]
    pub fn decide(
        &self,
        failure: &Failure,
        attempts: u32,
        charge: Charge,
        unroutable: UnroutablePolicy,
        random: f64,
    ) -> Disposition {
        match failure.reason {
            Reason::ConfirmTimeout => match failure.scope {
                Scope::Broker => Disposition::Stay,
                Scope::Message | Scope::Route | Scope::Exchange => self.postpone(random),
            },
            Reason::ConnectionLost => Disposition::Stay,
            Reason::TooLarge | Reason::NotEncodable => Disposition::GiveUp {
                attempts: attempts.saturating_add(1),
            },
            Reason::EndsConnection => self.charge(attempts, random),
            Reason::Unroutable => match unroutable {
                UnroutablePolicy::Accept => Disposition::Done,
                UnroutablePolicy::Retry => self.charge(attempts, random),
            },
            Reason::Nacked | Reason::ExchangeMissing | Reason::Forbidden => match charge {
                Charge::Yes => self.charge(attempts, random),
                Charge::No => self.postpone(random),
            },
        }
    }

    /// From half the longest wait on: with a long outage behind it, a backlog must not come due all the
    /// time, nor all at one time.
    fn postpone(&self, random: f64) -> Disposition {
        let share = 0.5 + random.clamp(0.0, 1.0) / 2.0;
        Disposition::Postpone {
            after: self.max_delay.mul_f64(share).max(Self::SHORTEST),
        }
    }

    fn charge(&self, attempts: u32, random: f64) -> Disposition {
        let attempts = attempts.saturating_add(1);
        if attempts >= self.max_attempts {
            Disposition::GiveUp { attempts }
        } else {
            Disposition::Retry {
                after: self.delay(attempts, random),
                attempts,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(max_attempts: u32) -> RetryPolicy {
        let (initial, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        RetryPolicy::new(max_attempts, initial, longest, 2.0).unwrap()
    }

    fn failed(reason: Reason) -> Failure {
        Failure::new(reason, "said the broker")
    }

    #[test]
    fn a_message_at_fault_is_retried_with_growing_waits_and_then_given_up() {
        for reason in [Reason::Nacked, Reason::EndsConnection] {
            let decide = |attempts| {
                let failure = failed(reason);
                policy(5).decide(
                    &failure,
                    attempts,
                    Charge::Yes,
                    UnroutablePolicy::Retry,
                    1.0,
                )
            };
            for (attempts, seconds) in [1, 2, 4, 8].into_iter().enumerate() {
                let attempts = u32::try_from(attempts).unwrap();
                let again = Disposition::Retry {
                    after: Duration::from_secs(seconds),
                    attempts: attempts + 1,
                };
                assert_eq!(decide(attempts), again, "{reason}");
            }
            let over = Disposition::GiveUp { attempts: 5 };
            assert_eq!(decide(4), over, "{reason}");
        }
    }

    #[test]
    fn an_outage_charges_nothing_and_a_permanent_fault_is_given_up_at_once() {
        for (reason, expected) in [
            (Reason::ConnectionLost, Disposition::Stay),
            (Reason::ConfirmTimeout, Disposition::Stay),
            (Reason::TooLarge, Disposition::GiveUp { attempts: 1 }),
            (Reason::NotEncodable, Disposition::GiveUp { attempts: 1 }),
        ] {
            let decided = policy(5).decide(
                &failed(reason),
                0,
                Charge::Yes,
                UnroutablePolicy::Retry,
                0.5,
            );
            assert_eq!(decided, expected, "{reason}");
        }
    }

    #[test]
    fn a_queue_that_does_not_answer_charges_nothing_nor_does_a_fault_others_pay_for() {
        let stuck = failed(Reason::ConfirmTimeout).with_scope(Scope::Route);
        for (failure, charge) in [
            (stuck, Charge::Yes),
            (failed(Reason::Nacked), Charge::No),
            (failed(Reason::ExchangeMissing), Charge::No),
            (failed(Reason::Forbidden), Charge::No),
        ] {
            for (random, seconds) in [(0.0, 30), (1.0, 60)] {
                let decided =
                    policy(1).decide(&failure, 0, charge, UnroutablePolicy::Retry, random);
                let after = Duration::from_secs(seconds);
                assert_eq!(decided, Disposition::Postpone { after }, "{failure:?}");
            }
        }
    }

    #[test]
    fn only_an_unroutable_message_can_be_accepted_as_sent() {
        for reason in Reason::ALL {
            let decided = policy(5).decide(
                &failed(reason),
                0,
                Charge::Yes,
                UnroutablePolicy::Accept,
                0.5,
            );
            assert_eq!(
                decided == Disposition::Done,
                reason == Reason::Unroutable,
                "{reason}"
            );
        }
    }

    #[test]
    fn a_policy_that_makes_no_sense_cannot_be_built() {
        let second = Duration::from_secs(1);
        for (built, error) in [
            (
                RetryPolicy::new(0, second, second, 2.0),
                RetryPolicyError::NoAttempts,
            ),
            (
                RetryPolicy::new(1, Duration::ZERO, second, 2.0),
                RetryPolicyError::Delays,
            ),
            (
                RetryPolicy::new(1, second * 2, second, 2.0),
                RetryPolicyError::Delays,
            ),
            (
                RetryPolicy::new(1, second, second, 0.5),
                RetryPolicyError::Multiplier,
            ),
            (
                RetryPolicy::new(1, second, second, f64::NAN),
                RetryPolicyError::Multiplier,
            ),
        ] {
            assert_eq!(built.unwrap_err(), error);
        }
    }

    proptest! {
        #[test]
        fn waits_stay_between_the_shortest_and_the_longest(
            initial in 1u64..10_000, more in 0u64..1_000_000, multiplier in 1.0f64..100.0, failures in any::<u32>(), random in -1.0f64..2.0
        ) {
            let (initial, longest) = (Duration::from_millis(initial), Duration::from_millis(initial + more));
            let policy = RetryPolicy::new(3, initial, longest, multiplier).unwrap();
            let wait = policy.delay(failures, random);
            prop_assert!(wait >= RetryPolicy::SHORTEST.min(longest) && wait <= longest);
        }
    }
}
