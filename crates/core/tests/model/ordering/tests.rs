use stateright::{Checker, HasDiscoveries, Model};

use super::broken::Broken;
use super::relay::{Answer, Letter, Rules};
use super::{BLOCKED, DONE, DRAINS, Faults, KEPT, ORDER, Scope, UP_TO_THE_LAST};

impl Scope {
    /// Searches everything, or until that; names what was violated.
    fn search(self, until: HasDiscoveries) -> Vec<&'static str> {
        let described = format!("{self:?}");
        let checker = self
            .checker()
            .threads(2)
            .finish_when(until)
            .spawn_bfs()
            .join();
        println!(
            "{described}: {} states, depth {}",
            checker.unique_state_count(),
            checker.max_depth()
        );
        let mut found = checker.discoveries();
        let done = found.remove(DONE).is_some();
        assert!(
            done || !found.is_empty(),
            "no search in which all was delivered"
        );
        for (name, path) in &found {
            println!("violated: {name}: {:?}", path.clone().into_actions());
        }
        found.into_keys().collect()
    }

    fn holds(self) {
        let found = self.search(HasDiscoveries::AnyFailures);
        assert_eq!(found, Vec::<&str>::new());
    }
}

pub(super) const NO_FAULTS: Faults = Faults {
    refused: 0,
    given_up: 0,
    lost: 0,
    withheld: 0,
    crashes: 0,
    aborts: 0,
    late_settles: 0,
    locks: 0,
    retries: 0,
    discards: 0,
};

/// The key of a dead letter waits for a person.
const BLOCK: &[Answer] = &[Answer::GivenUp { blocks: true }];
const CONTINUE: &[Answer] = &[Answer::GivenUp { blocks: false }];
/// The policy was changed, or not all relays have the same.
pub(super) const EITHER: &[Answer] = &[
    Answer::GivenUp { blocks: true },
    Answer::GivenUp { blocks: false },
];

const THREE: &[usize] = &[0, 0, 0];
const FOUR: &[usize] = &[0, 0, 0, 0];

/// Two relays, and messages of these keys, which are all in one lane.
fn messages(keys: &[usize]) -> Scope {
    let letter = |key: &usize| Letter {
        key: *key,
        supersede: false,
    };
    Scope {
        rules: Rules {
            broken: Broken::Nothing,
            letters: keys.iter().map(letter).collect(),
            lanes: vec![0; keys.iter().max().map_or(0, |key| key + 1)],
            // Less than all: some are left where they are by the limit.
            limit: keys.len() - 1,
            in_flight_per_key: 1,
            horizon: false,
        },
        relays: 2,
        exclusive: true,
        stepwise: false,
        dead_letters: BLOCK,
        faults: Faults {
            refused: 1,
            lost: 1,
            aborts: 1,
            crashes: 1,
            ..NO_FAULTS
        },
    }
}

fn dead_letters(keys: &[usize], what: &'static [Answer]) -> Scope {
    let faults = Faults {
        refused: 1,
        given_up: 2,
        retries: 1,
        aborts: 1,
        ..NO_FAULTS
    };
    Scope {
        dead_letters: what,
        faults,
        ..messages(keys)
    }
}

fn discards(keys: &[usize]) -> Scope {
    let faults = Faults {
        refused: 1,
        given_up: 1,
        discards: 1,
        aborts: 1,
        ..NO_FAULTS
    };
    Scope {
        faults,
        ..messages(keys)
    }
}

fn withheld(keys: &[usize]) -> Scope {
    let faults = Faults {
        withheld: 1,
        refused: 1,
        lost: 1,
        aborts: 1,
        ..NO_FAULTS
    };
    Scope {
        faults,
        ..messages(keys)
    }
}

fn locked_rows(keys: &[usize]) -> Scope {
    let faults = Faults {
        refused: 1,
        locks: 1,
        late_settles: 1,
        aborts: 1,
        ..NO_FAULTS
    };
    Scope {
        faults,
        ..messages(keys)
    }
}

fn late_commits(keys: &[usize]) -> Scope {
    Scope {
        exclusive: false,
        ..messages(keys)
    }
}

fn horizon(keys: &[usize]) -> Scope {
    let late_commits = late_commits(keys);
    Scope {
        stepwise: true,
        rules: Rules {
            horizon: true,
            ..late_commits.rules
        },
        ..late_commits
    }
}

fn superseding(keys: &[usize]) -> Scope {
    let mut scope = messages(keys);
    scope.rules.limit = keys.len();
    for letter in &mut scope.rules.letters {
        letter.supersede = true;
    }
    scope
}

/// 210,000 states.
#[test]
fn no_message_overtakes_an_earlier_one_though_relays_crash_and_go_on_without_their_session() {
    Scope {
        stepwise: true,
        ..messages(FOUR)
    }
    .holds();
}

/// 270,000 states.
#[test]
fn a_message_that_cannot_be_delivered_holds_back_its_own_key_and_no_other() {
    Scope {
        faults: Faults {
            refused: 1,
            given_up: 1,
            aborts: 1,
            ..NO_FAULTS
        },
        ..messages(&[0, 1, 0, 1])
    }
    .holds();
}

/// 120,000 states.
#[test]
fn a_dead_letter_blocks_its_key_until_a_person_retries_or_discards_it_and_what_is_parked_follows_in_order()
 {
    dead_letters(THREE, BLOCK).holds();
    discards(FOUR).holds();
}

/// 170,000 states.
#[test]
fn a_dead_letter_that_blocks_is_not_passed_over_when_another_that_did_not_is_retried() {
    dead_letters(THREE, EITHER).holds();
}

/// 440,000 states.
#[test]
fn a_message_that_commits_late_comes_after_no_message_that_was_claimed_later() {
    late_commits(THREE).holds();
}

/// 250,000 states.
#[test]
fn with_the_horizon_messages_go_in_the_order_of_seq_though_they_commit_in_another() {
    horizon(FOUR).holds();
}

/// 80,000 states.
#[test]
fn rows_that_operators_lock_and_rows_that_are_deleted_late_are_not_overtaken() {
    locked_rows(FOUR).holds();
}

/// 70,000 states.
#[test]
fn a_message_to_a_suspended_target_is_not_overtaken() {
    withheld(THREE).holds();
}

/// 270,000 states.
#[test]
fn what_is_superseded_leaves_with_a_newer_one_that_was_delivered_and_not_before() {
    superseding(THREE).holds();
}

/// 5,000 states.
#[test]
fn with_two_of_a_key_in_flight_order_holds_while_nothing_is_refused() {
    let mut scope = messages(FOUR);
    scope.rules.in_flight_per_key = 2;
    (scope.faults.refused, scope.faults.lost) = (0, 0);
    scope.holds();
}

#[test]
#[ignore = "twelve million states take three minutes: after a change to order by key"]
fn messages_of_a_key_are_in_order_at_a_larger_scope() {
    let more = Faults {
        refused: 2,
        aborts: 2,
        ..messages(FOUR).faults
    };
    for scope in [
        dead_letters(FOUR, BLOCK),
        dead_letters(FOUR, EITHER),
        withheld(FOUR),
        superseding(FOUR),
        late_commits(FOUR),
        Scope {
            faults: more,
            ..messages(FOUR)
        },
    ] {
        scope.holds();
    }
}

#[test]
fn an_order_broken_on_purpose_is_found() {
    let refused_twice = |scope: Scope| Scope {
        faults: Faults {
            refused: 2,
            ..scope.faults
        },
        stepwise: true,
        ..scope
    };
    for (broken, scope, violated) in [
        (Broken::MovesAll, withheld(THREE), ORDER),
        (Broken::TwoInFlight, messages(THREE), ORDER),
        (Broken::SendsOn, messages(THREE), ORDER),
        (Broken::SendsPastWithheld, withheld(THREE), ORDER),
        (
            Broken::RowsBeforeLock,
            refused_twice(messages(THREE)),
            ORDER,
        ),
        (
            Broken::ParksByOldBlocks,
            refused_twice(messages(THREE)),
            BLOCKED,
        ),
        (
            Broken::ResumesBlindly,
            refused_twice(messages(THREE)),
            ORDER,
        ),
        (Broken::SkipsHeld, locked_rows(THREE), ORDER),
        (Broken::UnblocksTooSoon, messages(THREE), BLOCKED),
        (Broken::UnblocksWithoutLock, messages(THREE), BLOCKED),
        (Broken::DeadLettersFree, dead_letters(THREE, BLOCK), ORDER),
        (
            Broken::ForgetsDeadLetters,
            dead_letters(THREE, EITHER),
            DRAINS,
        ),
        (
            Broken::NextHeadBeforeLock,
            dead_letters(THREE, CONTINUE),
            DRAINS,
        ),
        (Broken::ParksBelowResume, late_commits(THREE), DRAINS),
        (Broken::ResumesBehindBatch, messages(THREE), DRAINS),
        (Broken::SupersededLeave, superseding(THREE), KEPT),
        (Broken::NewestMoves, superseding(THREE), ORDER),
        (Broken::ForgetsRuns, superseding(THREE), UP_TO_THE_LAST),
        (Broken::NoHorizon, horizon(THREE), ORDER),
        (Broken::HorizonTooLate, horizon(THREE), ORDER),
    ] {
        let scope = Scope {
            rules: Rules {
                broken,
                ..scope.rules
            },
            ..scope
        };
        let found = scope.search(HasDiscoveries::AnyOf([violated].into()));
        assert!(found.contains(&violated), "{broken:?}: {found:?}");
    }
}
