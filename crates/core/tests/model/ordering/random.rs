//! The same model at scopes too large to search: long random schedules.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use stateright::{Expectation, Model};

use super::broken::Broken;
use super::relay::{Letter, Rules};
use super::tests::EITHER;
use super::{Faults, Scope};

fn any_scope() -> impl Strategy<Value = Scope> {
    let letter = (0usize..2, prop::bool::weighted(0.3));
    let letter = letter.prop_map(|(key, supersede)| Letter { key, supersede });
    let faults = any::<[bool; 10]>().prop_map(|some| {
        let [
            refused,
            given_up,
            lost,
            withheld,
            crashes,
            aborts,
            late_settles,
            locks,
            retries,
            discards,
        ] = some.map(|some| 4 * u8::from(some));
        Faults {
            refused,
            given_up,
            lost,
            withheld,
            crashes,
            aborts,
            late_settles,
            locks,
            retries,
            discards,
        }
    });
    (
        prop::collection::vec(letter, 1..8),
        0usize..2,
        1usize..6,
        1usize..4,
        any::<[bool; 3]>(),
        faults,
    )
        .prop_map(
            |(letters, lane, limit, relays, [horizon, exclusive, stepwise], faults)| Scope {
                rules: Rules {
                    broken: Broken::Nothing,
                    letters,
                    lanes: vec![0, lane],
                    limit,
                    in_flight_per_key: 1,
                    horizon,
                },
                relays,
                exclusive,
                stepwise: stepwise || horizon,
                dead_letters: EITHER,
                faults,
            },
        )
}

fn any_schedule() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 1..200)
}

/// The first property that a schedule violates, at whose end every relay crashes. Each number chooses among the actions possible
/// then.
fn violated(scope: &Scope, schedule: &[Index]) -> Option<&'static str> {
    let mut properties = scope.properties();
    properties.retain(|property| property.expectation == Expectation::Always);
    let mut state = scope.init_states().remove(0);
    let mut schedule = schedule.iter();
    loop {
        let mut actions = Vec::new();
        scope.actions(&state, &mut actions);
        let choice = schedule.next().filter(|_| !actions.is_empty());
        match choice {
            Some(choice) => scope.act(&mut state, *choice.get(&actions)),
            None => {
                for relay in &mut state.relays {
                    relay.crash(&mut state.outbox);
                }
            }
        }
        let violated = properties
            .iter()
            .find(|property| !(property.condition)(scope, &state));
        if violated.is_some() || choice.is_none() {
            return violated.map(|property| property.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn no_schedule_of_many_relays_and_messages_inverts_or_loses_any(
        scope in any_scope(), schedule in any_schedule()
    ) {
        prop_assert_eq!(violated(&scope, &schedule), None);
    }
}

#[test]
fn an_order_broken_on_purpose_is_found_by_chance() {
    for broken in [
        Broken::SendsOn,
        Broken::UnblocksWithoutLock,
        Broken::SkipsHeld,
        Broken::NewestMoves,
    ] {
        let config = ProptestConfig {
            cases: 5_000,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let found = TestRunner::new_with_rng(config, rng).run(
            &(any_scope(), any_schedule()),
            |(mut scope, schedule)| {
                scope.rules.broken = broken;
                prop_assert_eq!(violated(&scope, &schedule), None);
                Ok(())
            },
        );
        assert!(found.is_err(), "{broken:?}");
    }
}
