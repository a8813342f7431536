//! When a worker of a relay that is awake leaves what comes to another that is at work.

use std::time::Duration;

/// A cycle that is no older than this is soon over: one of few messages, to a broker that is near, is claimed, published and settled
/// in two to eight milliseconds.
const SOON_OVER: Duration = Duration::from_millis(10);

/// For how long a worker is to leave what comes to others, whose cycles are so old by now and who will look again; `None` if it is to look itself.
///
/// It is for rows that come faster than notifications would be worth, when workers look by themselves. A message that was notified is claimed at once by whoever
/// is idle: left to another, at 1,000 a second, it took a third longer (median; 2.2 ms and 1.7).
///
/// A cycle costs the database two round trips and a commit, and the broker a write to disk, for one message as for twenty. With
/// 8 producers as fast as they can, a relay whose second worker stood by took two thirds of the CPU time for a message in the database,
/// three quarters in the daemon, and nine tenths in the broker (docs/benchmarks.md), on the cores that the producers need. What is
/// left to another waits for the end of its cycle, and [`SOON_OVER`] at most: one that is held up, by a slow broker or a queue that does not answer, is not
/// waited for. Neither is it when there is more than one can do: a claim that came back full wakes the next worker.
pub fn stand_by(ages_of_others: impl IntoIterator<Item = Duration>) -> Option<Duration> {
    let left = |age| SOON_OVER.checked_sub(age).filter(|left| !left.is_zero());
    ages_of_others.into_iter().filter_map(left).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn nothing_is_left_to_others_when_none_is_at_work() {
        assert_eq!(stand_by([]), None);
    }

    #[test]
    fn it_is_left_to_one_that_has_just_begun_until_that_should_be_through() {
        assert_eq!(stand_by([MS(0)]), Some(SOON_OVER));
        assert_eq!(stand_by([MS(9)]), Some(MS(1)));
        assert_eq!(stand_by([MS(9), MS(4), MS(7)]), Some(MS(6)));
    }

    #[test]
    fn one_that_is_held_up_is_not_waited_for() {
        assert_eq!(stand_by([SOON_OVER]), None);
        assert_eq!(stand_by([MS(11), MS(30_000)]), None);
        assert_eq!(stand_by([MS(30_000), MS(8)]), Some(MS(2)));
    }
}
