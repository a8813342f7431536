//! What failed, as the parameters of the statements that move it.

use std::collections::HashSet;
use std::time::Duration;

use postgres_types::{ToSql, Type};
use postrider_core::Seq;

use super::{Dead, Retry};

/// The most characters of an error that are kept with its row.
const ERROR_CHARACTERS: usize = 1000;

/// No retry waits longer: beyond, the sum of dates overflows.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The parameters of a move, column by column.
pub(super) struct Failures {
    seqs: Vec<i64>,
    attempts: Vec<i32>,
    reasons: Vec<&'static str>,
    errors: Vec<String>,
    besides: Besides,
}

/// The column that only a retry has, or only a dead letter.
enum Besides {
    After(Vec<i64>),
    Blocks(Vec<bool>),
}

impl Failures {
    pub(super) fn retries(retries: &[Retry]) -> Self {
        let after = |retry: &Retry| {
            i64::try_from(retry.after.min(LONGEST_WAIT).as_micros()).unwrap_or(i64::MAX)
        };
        Self {
            seqs: retries.iter().map(|retry| retry.seq.0).collect(),
            attempts: retries.iter().map(|retry| count(retry.attempts)).collect(),
            reasons: retries.iter().map(|retry| retry.reason.as_str()).collect(),
            errors: retries.iter().map(|retry| kept(&retry.error)).collect(),
            besides: Besides::After(retries.iter().map(after).collect()),
        }
    }

    pub(super) fn dead(dead: &[Dead], blocking: &[Seq]) -> Self {
        let blocking: HashSet<Seq> = blocking.iter().copied().collect();
        let blocks = |dead: &Dead| blocking.contains(&dead.seq);
        Self {
            seqs: dead.iter().map(|dead| dead.seq.0).collect(),
            attempts: dead.iter().map(|dead| count(dead.attempts)).collect(),
            reasons: dead.iter().map(|dead| dead.reason.as_str()).collect(),
            errors: dead.iter().map(|dead| kept(&dead.error)).collect(),
            besides: Besides::Blocks(dead.iter().map(blocks).collect()),
        }
    }

    pub(super) fn types(&self) -> [Type; 5] {
        let besides = match self.besides {
            Besides::After(_) => Type::INT8_ARRAY,
            Besides::Blocks(_) => Type::BOOL_ARRAY,
        };
        [
            Type::INT8_ARRAY,
            Type::INT4_ARRAY,
            Type::TEXT_ARRAY,
            Type::TEXT_ARRAY,
            besides,
        ]
    }

    pub(super) fn parameters(&self) -> [&(dyn ToSql + Sync); 5] {
        let besides: &(dyn ToSql + Sync) = match &self.besides {
            Besides::After(after) => after,
            Besides::Blocks(blocks) => blocks,
        };
        [
            &self.seqs,
            &self.attempts,
            &self.reasons,
            &self.errors,
            besides,
        ]
    }
}

fn count(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

/// What a text column takes of what a broker said: no text of PostgreSQL holds a NUL, and one that
/// did would fail every settle of its row.
fn kept(error: &str) -> String {
    error
        .chars()
        .take(ERROR_CHARACTERS)
        .map(|c| {
            if c == '\0' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn an_error_is_cut_between_characters_and_holds_no_nul() {
        assert_eq!(kept("a\0b"), "a\u{fffd}b");
        assert_eq!(kept(&"é".repeat(2000)), "é".repeat(1000));
    }
}
