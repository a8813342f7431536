//! Whose turn it is: each worker claims from four places, and none of them starves another.

/// Where a claim is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Messages without a key. Always looked at: that look tells whether there are any with a key.
    Fresh,
    /// Messages with a key, by lane.
    Ordered,
    /// Deferred messages that are due.
    Due,
    /// What was parked behind the head of a key that is gone.
    Resuming,
}

impl Turn {
    /// The next one that has work: those after this one in their order, and then [`Turn::Fresh`], which need not have any. `has_work`
    /// is asked once for each at most, and takes the hint.
    pub(crate) fn next(self, mut has_work: impl FnMut(Self) -> bool) -> Self {
        let after: &[Self] = match self {
            Self::Fresh => &[Self::Ordered, Self::Due, Self::Resuming],
            Self::Ordered => &[Self::Due, Self::Resuming],
            Self::Due => &[Self::Resuming],
            Self::Resuming => &[],
        };
        let found = after.iter().find(|turn| has_work(**turn));
        found.copied().unwrap_or(Self::Fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_have_work_take_turns_and_fresh_messages_are_looked_at_in_each_round() {
        let mut turn = Turn::Fresh;
        let mut seen = Vec::new();
        for _ in 0..8 {
            turn = turn.next(|_| true);
            seen.push(turn);
        }
        let round = [Turn::Ordered, Turn::Due, Turn::Resuming, Turn::Fresh];
        assert_eq!(seen, [round, round].concat());
    }

    #[test]
    fn without_other_work_it_is_always_the_turn_of_fresh_messages() {
        assert_eq!(Turn::Fresh.next(|_| false), Turn::Fresh);
        assert_eq!(
            Turn::Fresh.next(|turn| turn == Turn::Resuming),
            Turn::Resuming
        );
        assert_eq!(Turn::Resuming.next(|_| true), Turn::Fresh);
    }
}
