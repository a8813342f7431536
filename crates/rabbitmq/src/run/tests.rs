//! The state of a batch, told what happens.

use super::*;
use postrider_core::{Payload, Properties, Seq};
use proptest::prelude::*;
use std::time::Duration;

fn batch(of: &[(u128, &str)]) -> Vec<Message> {
    of.iter()
        .map(|(id, exchange)| Message {
            seq: Seq(1),
            id: Uuid::from_u128(*id),
            exchange: (*exchange).to_owned(),
            routing_key: String::new(),
            payload: Payload::Fetched(Vec::new()),
            headers: postrider_core::Headers::default(),
            properties: Properties::default(),
            created_at_unix: 0,
            age_at_claim: Duration::ZERO,
            attempts: 0,
            origin: postrider_core::Origin::Messages,
            ordered: None,
        })
        .collect()
}

fn nameless() -> ChannelError {
    ChannelError {
        code: 406,
        text: "PRECONDITION_FAILED - something".to_owned(),
    }
}

#[test]
fn nameless_errors_are_traced_to_their_culprits_and_everything_else_is_confirmed() {
    let culprits = [3, 7];
    let batch = batch(&(0..12).map(|id| (id, "e")).collect::<Vec<_>>());
    let mut run = Run::new(&batch, 1);
    let mut closed = 0;
    while let Some(window) = run.next_window(usize::MAX) {
        assert!(closed < 5, "the search does not end");
        match window
            .iter()
            .position(|position| culprits.contains(position))
        {
            None => {
                let verdicts = vec![Verdict::Confirmed; window.len()];
                assert!(run.apply(&window, verdicts).is_empty());
            }
            Some(first) => {
                closed += 1;
                // The first of the window was confirmed before the channel closed.
                let verdicts = (0..window.len())
                    .map(|place| {
                        if place == 0 && first > 0 {
                            Verdict::Confirmed
                        } else {
                            Verdict::Unsure
                        }
                    })
                    .collect();
                let unsure = run.apply(&window, verdicts);
                run.blame(&nameless(), &unsure, window.len());
            }
        }
    }
    for (position, outcome) in run.outcomes(Reason::ConnectionLost, "").iter().enumerate() {
        match outcome {
            Outcome::Confirmed => assert!(!culprits.contains(&position)),
            Outcome::Failed(failure) => {
                assert!(culprits.contains(&position), "{position}");
                assert_eq!(failure.reason, Reason::NotEncodable);
            }
            Outcome::HeldBack => panic!("{position} has no key"),
        }
    }
    assert_eq!(closed, 4);
}

#[test]
fn an_exchange_that_is_named_but_was_not_in_flight_is_not_taken_for_the_culprit() {
    let batch = batch(&[(1, "a"), (1, "b"), (2, "a")]);
    let mut run = Run::new(&batch, 1);
    let error = ChannelError {
        code: 404,
        text: "NOT_FOUND - no exchange 'b' in vhost '/'".to_owned(),
    };
    run.blame(&error, &[0, 2], 2);
    assert_eq!(run.next_window(usize::MAX), Some(vec![0]));
    let outcomes = run.outcomes(Reason::ConnectionLost, "");
    assert!(outcomes.iter().all(|outcome| matches!(
        outcome,
        Outcome::Failed(failure) if failure.reason == Reason::ConnectionLost
    )));
}

#[test]
fn of_accused_routes_everything_open_fails_and_suspects_go_one_by_one_until_then() {
    let batch = batch(&[(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "b")]);
    let mut run = Run::new(&batch, 1);
    run.settle(0, Outcome::Confirmed);
    let searching = Blame {
        accused: Vec::new(),
        suspects: vec![2, 1],
    };
    let failure = Failure::new(Reason::ConfirmTimeout, "");
    run.accuse(&searching, &failure);
    assert_eq!(run.next_window(2), Some(vec![2]));
    run.settle(2, Outcome::Confirmed);
    assert_eq!(run.next_window(2), Some(vec![1]));
    let found = Blame {
        accused: vec![("b", "")],
        suspects: Vec::new(),
    };
    run.accuse(&found, &failure);
    assert_eq!(run.next_window(2), Some(vec![3]));
    let outcomes = run.outcomes(Reason::ConnectionLost, "");
    assert_eq!(outcomes[0], Outcome::Confirmed);
    for position in [1, 4] {
        assert_eq!(outcomes[position], failure.clone().into());
    }
}

proptest! {
    #[test]
    fn windows_cover_the_batch_in_order_and_never_hold_one_id_twice(
        ids in prop::collection::vec(0u128..8, 0..40)
    ) {
        let batch = batch(&ids.iter().map(|id| (*id, "e")).collect::<Vec<_>>());
        let mut run = Run::new(&batch, 1);
        let mut sent = Vec::new();
        while let Some(window) = run.next_window(usize::MAX) {
            prop_assert!(!window.is_empty());
            let distinct: HashSet<_> = window.iter().map(|position| ids[*position]).collect();
            prop_assert_eq!(distinct.len(), window.len());
            run.apply(&window, vec![Verdict::Confirmed; window.len()]);
            sent.extend(window);
        }
        prop_assert_eq!(sent, (0..ids.len()).collect::<Vec<_>>());
    }
}

mod ordered;
