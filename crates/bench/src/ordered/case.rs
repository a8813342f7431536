//! What is drained, by how many relays, and behind what.

use serde::Serialize;

use crate::report::grouped;

/// What stands before the messages that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// A key of its own, blocked by a message that no queue takes, with so many messages parked behind it.
    Parked(u32),
    /// So many deleted rows with the same keys, which an older snapshot still sees, so that vacuum may not remove them.
    UnderSnapshot(u32),
    /// As many, and a transaction that stays open has itself written a message with a key before them.
    UnderWriter(u32),
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    /// How many keys the messages have, in turns. `None` for messages without a key.
    pub(super) keys: Option<u32>,
    pub(super) relays: u32,
    pub(super) before: Before,
}

/// What order is compared with.
pub(super) const UNORDERED: Case = Case {
    keys: None,
    relays: 1,
    before: Before::Nothing,
};

/// What relays, blocked keys and deleted rows are compared with.
pub(super) const REFERENCE: Case = keys(1_000);

/// A single key waits for one confirm after the other: so many times fewer messages.
const FEWER_OF_ONE_KEY: u32 = 20;

const fn keys(keys: u32) -> Case {
    Case {
        keys: Some(keys),
        ..UNORDERED
    }
}

const fn relays(relays: u32) -> Case {
    Case {
        relays,
        ..REFERENCE
    }
}

const fn before(before: Before) -> Case {
    Case {
        before,
        ..REFERENCE
    }
}

pub(super) const FULL: [Case; 11] = [
    UNORDERED,
    keys(1),
    keys(100),
    REFERENCE,
    keys(100_000),
    before(Before::Parked(1_000_000)),
    relays(2),
    relays(4),
    before(Before::UnderSnapshot(1_000_000)),
    before(Before::UnderSnapshot(5_000_000)),
    before(Before::UnderWriter(1_000_000)),
];

/// As [`FULL`], but with less to stand before the messages.
const SHORT: [Case; 10] = [
    UNORDERED,
    keys(1),
    keys(100),
    REFERENCE,
    keys(100_000),
    before(Before::Parked(50_000)),
    relays(2),
    relays(4),
    before(Before::UnderSnapshot(200_000)),
    before(Before::UnderWriter(200_000)),
];

/// What is measured: of these numbers of keys only, if any are given, and always what the others are compared with.
pub(crate) fn cases(short: bool, numbers: &[u32]) -> Vec<Case> {
    if numbers.is_empty() {
        let all: &[Case] = if short { &SHORT } else { &FULL };
        return all.to_vec();
    }
    let mut cases = vec![UNORDERED, REFERENCE];
    for case in numbers.iter().map(|number| keys(*number)) {
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    cases
}

impl Case {
    pub(super) fn name(self) -> String {
        let mut name = match self.keys {
            None => "without a key".to_owned(),
            Some(1) => "1 key".to_owned(),
            Some(keys) => format!("{} keys", grouped(f64::from(keys))),
        };
        if self.relays > 1 {
            name.push_str(&format!(", {} relays", self.relays));
        }
        match self.before {
            Before::Nothing => {}
            Before::Parked(rows) => name.push_str(&format!(
                ", {} parked behind another",
                grouped(f64::from(rows))
            )),
            Before::UnderSnapshot(rows) => name.push_str(&format!(
                ", {} deleted, kept by a snapshot",
                grouped(f64::from(rows))
            )),
            Before::UnderWriter(rows) => name.push_str(&format!(
                ", {} deleted, kept by a writer",
                grouped(f64::from(rows))
            )),
        }
        name
    }

    /// The name, as short as beneath a bar.
    pub(super) fn label(self) -> String {
        let short = |rows: u32| match rows {
            rows if rows.is_multiple_of(1_000_000) => format!("{}M", rows / 1_000_000),
            rows => format!("{}k", rows / 1_000),
        };
        match (self.before, self.relays) {
            (Before::Parked(rows), _) => format!("{} parked", short(rows)),
            (Before::UnderSnapshot(rows), _) => format!("{} deleted", short(rows)),
            (Before::UnderWriter(rows), _) => format!("{} writer", short(rows)),
            (Before::Nothing, 2..) => format!("{} relays", self.relays),
            (Before::Nothing, _) => match self.keys {
                None => "no key".to_owned(),
                Some(1) => "1 key".to_owned(),
                Some(keys) => format!("{} keys", grouped(f64::from(keys))),
            },
        }
    }

    /// How many messages are drained, where it is `messages` of many keys.
    pub(super) fn messages(self, messages: u32) -> u32 {
        match self.keys {
            Some(1) => (messages / FEWER_OF_ONE_KEY).max(1),
            Some(_) | None => messages,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Case, FULL, REFERENCE, SHORT, UNORDERED, cases, keys};

    #[test]
    fn asked_for_some_keys_only_those_are_measured_and_what_they_are_compared_with() {
        assert_eq!(cases(false, &[]), FULL);
        assert_eq!(cases(true, &[]), SHORT);
        assert_eq!(cases(true, &[1_000]), [UNORDERED, REFERENCE]);
        let some = [UNORDERED, REFERENCE, keys(7), keys(100)];
        assert_eq!(cases(false, &[7, 100, 7]), some);
    }

    #[test]
    fn both_forms_have_what_the_others_are_compared_with() {
        for cases in [&FULL[..], &SHORT[..]] {
            assert!(cases.contains(&UNORDERED) && cases.contains(&REFERENCE));
        }
    }

    #[test]
    fn every_case_has_a_name_and_a_label_of_its_own() {
        for name in [Case::name, Case::label] {
            let distinct: HashSet<String> = FULL.into_iter().map(name).collect();
            assert_eq!(distinct.len(), FULL.len(), "{distinct:?}");
        }
    }

    #[test]
    fn a_single_key_has_fewer_messages_and_all_others_as_many() {
        let messages: HashSet<u32> = SHORT.iter().map(|case| case.messages(40_000)).collect();
        assert_eq!(messages, HashSet::from([2_000, 40_000]));
    }
}
