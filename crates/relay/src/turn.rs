//! Whose turn it is: each worker claims from four places, and none of them starves another.

/// Where a claim is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Messages without a key. That look tells whether there are any with a key, too.
    Fresh,
    /// Messages with a key, by lane.
    Ordered,
    /// Deferred messages that are due.
    Due,
    /// What was parked behind the head of a key that is gone.
    Resuming,
}

impl Turn {
    /// The next one that has work, in their order, this one last; [`Turn::Fresh`] when none has. `has_work` is asked once for each at
    /// most, and takes the hint.
    pub(crate) fn next(self, mut has_work: impl FnMut(Self) -> bool) -> Self {
        let after = match self {
            Self::Fresh => [Self::Ordered, Self::Due, Self::Resuming, Self::Fresh],
            Self::Ordered => [Self::Due, Self::Resuming, Self::Fresh, Self::Ordered],
            Self::Due => [Self::Resuming, Self::Fresh, Self::Ordered, Self::Due],
            Self::Resuming => [Self::Fresh, Self::Ordered, Self::Due, Self::Resuming],
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

    #[test]
    fn fresh_messages_that_are_known_not_to_be_there_are_passed_over_while_there_is_other_work() {
        let ordered = |turn| turn == Turn::Ordered;
        assert_eq!(Turn::Resuming.next(ordered), Turn::Ordered);
        assert_eq!(Turn::Ordered.next(ordered), Turn::Ordered);
    }
}
