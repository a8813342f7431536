//! The same model at a scope too large to search: long random schedules.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use stateright::{Expectation, Model};

use crate::floor::Scope;
use crate::relay::Broken;

fn any_scope() -> impl Strategy<Value = Scope> {
    let producers = prop::collection::vec(1u8..4, 1..8);
    (
        1usize..4,
        1usize..4,
        producers,
        1usize..4,
        0u8..12,
        any::<bool>(),
    )
        .prop_map(
            |(relays, workers, producers, limit, accidents, others)| Scope {
                broken: Broken::Nothing,
                relays,
                workers,
                producers,
                limit,
                given_back: true,
                accidents,
                slow_deletes: true,
                others,
            },
        )
}

fn any_schedule() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 1..400)
}

/// The first property that a schedule violates. Each number chooses among the actions possible
/// then.
fn violated(scope: &Scope, schedule: &[Index]) -> Option<&'static str> {
    let properties = scope.properties();
    let mut state = scope.init_states().remove(0);
    for choice in schedule {
        let mut actions = Vec::new();
        scope.actions(&state, &mut actions);
        if let Some(next) = scope.next_state(&state, *choice.get(&actions)) {
            state = next;
        }
        let mut always = properties
            .iter()
            .filter(|property| property.expectation == Expectation::Always);
        if let Some(property) = always.find(|property| !(property.condition)(scope, &state)) {
            return Some(property.name);
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn no_schedule_of_many_relays_and_writers_passes_a_row_for_good(
        scope in any_scope(), schedule in any_schedule()
    ) {
        prop_assert_eq!(violated(&scope, &schedule), None);
    }
}

#[test]
fn a_floor_or_a_frontier_broken_on_purpose_is_found_by_chance() {
    for broken in [
        Broken::NoWriters,
        Broken::StepsSwapped,
        Broken::OneStatement,
        Broken::OldestIgnored,
        Broken::SurvivesRestart,
        Broken::PlainCursor,
        Broken::OldClaimsCount,
        Broken::GivenBackUntold,
    ] {
        let config = ProptestConfig {
            cases: 5_000,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        };
        let found = TestRunner::new_with_rng(
            config,
            TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        )
        .run(&(any_scope(), any_schedule()), |(scope, schedule)| {
            let scope = Scope { broken, ..scope };
            prop_assert_eq!(violated(&scope, &schedule), None);
            Ok(())
        });
        assert!(found.is_err(), "{broken:?}");
    }
}
