//! Batches with ordering keys, and everything that may happen on their way.

use super::*;
use crate::judge::{Resolution, Returned, judge};
use crate::straggle::{Standing, Standstill, blame};
use postrider_core::Ordered;

/// One message each of exchange and key; `""` is no key.
fn keyed(of: &[(&str, &str)]) -> Vec<Message> {
    let ids = of.iter().enumerate();
    let plain: Vec<_> = ids
        .map(|(position, (exchange, _))| (position as u128, *exchange))
        .collect();
    let mut batch = batch(&plain);
    for (message, (_, key)) in batch.iter_mut().zip(of) {
        message.ordered = (!key.is_empty()).then(|| Ordered {
            key: (*key).to_owned(),
            supersede: false,
        });
    }
    batch
}

fn of_keys(keys: &[&str]) -> Vec<Message> {
    keyed(&keys.iter().map(|key| ("e", *key)).collect::<Vec<_>>())
}

fn window(run: &mut Run<'_>) -> Vec<usize> {
    run.next_window(usize::MAX).unwrap_or_default()
}

fn confirm(run: &mut Run<'_>, sent: &[usize]) {
    assert!(
        run.apply(sent, vec![Verdict::Confirmed; sent.len()])
            .is_empty()
    );
}

/// `c`onfirmed, `f`ailed, `u`nknown and `h`eld back.
fn shown(outcomes: &[Outcome]) -> String {
    let letter = |outcome: &Outcome| match outcome {
        Outcome::Confirmed => 'c',
        Outcome::Failed(failure) if failure.reason == Reason::ConnectionLost => 'u',
        Outcome::Failed(_) => 'f',
        Outcome::HeldBack => 'h',
    };
    outcomes.iter().map(letter).collect()
}

fn ended(run: Run<'_>) -> String {
    shown(&run.outcomes(Reason::ConnectionLost, ""))
}

fn no_exchange(name: &str) -> ChannelError {
    ChannelError {
        code: 404,
        text: format!("NOT_FOUND - no exchange '{name}' in vhost '/'"),
    }
}

fn straggling(route: Route<'static>) -> Blame<'static> {
    Blame {
        accused: vec![route],
        suspects: Vec::new(),
    }
}

fn straggler() -> Failure {
    Failure::new(Reason::ConfirmTimeout, "")
}

#[test]
fn each_message_of_a_key_is_sent_when_the_one_before_it_is_confirmed_and_keys_go_together() {
    let batch = of_keys(&["a", "b", "", "a", "a", "b"]);
    let mut run = Run::new(&batch, 1);
    for expected in [vec![0, 1, 2], vec![3, 5], vec![4]] {
        assert_eq!(window(&mut run), expected);
        confirm(&mut run, &expected);
    }
    assert_eq!(run.next_window(usize::MAX), None);
    assert_eq!(ended(run), "cccccc");
}

#[test]
fn a_window_is_full_with_what_is_up_and_the_rest_waits_for_the_next_in_the_order_of_the_batch() {
    let batch = of_keys(&["a", "b", "a", "c"]);
    let mut run = Run::new(&batch, 1);
    assert_eq!(run.next_window(2), Some(vec![0, 1]));
    confirm(&mut run, &[0, 1]);
    assert_eq!(run.next_window(2), Some(vec![2, 3]));
}

#[test]
fn whatever_a_message_fails_of_holds_back_those_behind_it_and_nobody_elses() {
    let fails: [fn(&mut Run<'_>); 6] = [
        |run| {
            run.apply(
                &[0, 1],
                vec![Verdict::Unroutable(String::new()), Verdict::Confirmed],
            );
        },
        |run| {
            run.apply(&[0, 1], vec![Verdict::Nacked, Verdict::Confirmed]);
        },
        // Not encodable.
        |run| {
            run.settle(0, Failure::new(Reason::NotEncodable, "").into());
            confirm(run, &[1]);
        },
        |run| {
            let unsure = run.apply(&[0, 1], vec![Verdict::Unsure, Verdict::Confirmed]);
            run.blame(&no_exchange("x"), &unsure, 2);
        },
        |run| {
            run.apply(&[0, 1], vec![Verdict::Unsure, Verdict::Confirmed]);
            run.accuse(&straggling(("x", "")), &straggler());
        },
        |run| {
            run.exchange_missing("x", &no_exchange("x"));
            confirm(run, &[1]);
        },
    ];
    for fail in fails {
        let batch = keyed(&[("x", "a"), ("e", "b"), ("e", "a"), ("e", "b"), ("x", "a")]);
        let mut run = Run::new(&batch, 1);
        fail(&mut run);
        assert_eq!(window(&mut run), [3]);
        confirm(&mut run, &[3]);
        assert_eq!(run.next_window(usize::MAX), None);
        assert_eq!(ended(run), "fchch");
    }
}

#[test]
fn a_message_that_alone_closes_the_channel_holds_back_those_behind_it() {
    let batch = of_keys(&["a", "a", ""]);
    let mut run = Run::new(&batch, 1);
    let unsure = run.apply(&[0, 2], vec![Verdict::Unsure, Verdict::Unsure]);
    run.blame(&nameless(), &unsure, 2);
    assert_eq!(window(&mut run), [0]);
    let unsure = run.apply(&[0], vec![Verdict::Unsure]);
    run.blame(&nameless(), &unsure, 1);
    assert_eq!(window(&mut run), [2]);
    confirm(&mut run, &[2]);
    assert_eq!(ended(run), "fhc");
}

#[test]
fn a_suspect_that_is_confirmed_lets_the_next_of_its_key_follow_when_the_suspects_are_through() {
    let batch = of_keys(&["a", "b", "a", "b"]);
    let mut run = Run::new(&batch, 1);
    let unsure = run.apply(&[0, 1], vec![Verdict::Unsure, Verdict::Unsure]);
    run.blame(&nameless(), &unsure, 2);
    for expected in [vec![0], vec![1], vec![2, 3]] {
        assert_eq!(window(&mut run), expected);
        confirm(&mut run, &expected);
    }
    assert_eq!(ended(run), "cccc");
}

/// What is said against a message whose turn has not come.
fn said_too_early() -> [fn(&mut Run<'_>); 3] {
    [
        |run| run.exchange_missing("x", &no_exchange("x")),
        |run| run.accuse(&straggling(("x", "")), &straggler()),
        |run| {
            let unsure = run.apply(&[2], vec![Verdict::Unsure]);
            run.blame(&no_exchange("x"), &unsure, 2);
        },
    ]
}

#[test]
fn what_is_said_of_a_message_before_its_turn_befalls_it_in_its_turn() {
    for say in said_too_early() {
        let batch = keyed(&[("e", "a"), ("e", "a"), ("x", ""), ("x", "a"), ("e", "a")]);
        let mut run = Run::new(&batch, 1);
        say(&mut run);
        for expected in [[0], [1]] {
            assert_eq!(window(&mut run), expected);
            confirm(&mut run, &expected);
        }
        assert_eq!(run.next_window(usize::MAX), None);
        assert_eq!(ended(run), "ccffh");
    }
}

#[test]
fn what_is_said_of_a_message_before_its_turn_is_nothing_when_its_turn_does_not_come() {
    for say in said_too_early() {
        let batch = keyed(&[("e", "a"), ("e", "a"), ("x", ""), ("x", "a"), ("e", "a")]);
        let mut run = Run::new(&batch, 1);
        say(&mut run);
        confirm(&mut run, &[0]);
        run.apply(&[1], vec![Verdict::Nacked]);
        assert_eq!(run.next_window(usize::MAX), None);
        assert_eq!(ended(run), "cffhh");
    }
}

#[test]
fn at_the_end_a_message_in_its_turn_is_unknown_and_those_behind_it_are_held_back() {
    let batch = of_keys(&["a", "a", "a", "", "b", "b"]);
    let mut run = Run::new(&batch, 1);
    let sent = window(&mut run);
    let verdicts = vec![Verdict::Confirmed, Verdict::Unsure, Verdict::Unsure];
    assert_eq!(run.apply(&sent, verdicts), [3, 4]);
    assert_eq!(ended(run), "cuhuuh");
}

#[test]
fn without_time_left_what_was_sent_is_sent_again_and_nothing_new_but_what_has_no_key() {
    let batch = of_keys(&["a", "a", "b", "b", "", "c"]);
    let mut run = Run::new(&batch, 1);
    run.hold_back_unsent();
    // The first are sent in any case.
    assert_eq!(run.next_window(3), Some(vec![0, 2, 4]));
    let verdicts = vec![Verdict::Confirmed, Verdict::Unsure, Verdict::Unsure];
    run.apply(&[0, 2, 4], verdicts);
    for _ in 0..2 {
        run.hold_back_unsent();
        assert_eq!(window(&mut run), [2, 4]);
    }
    confirm(&mut run, &[2, 4]);
    assert_eq!(run.next_window(usize::MAX), None);
    assert_eq!(ended(run), "chchch");
}

#[test]
fn of_several_in_flight_those_behind_a_refused_one_are_confirmed_or_held_back() {
    let batch = of_keys(&["a", "a", "a", "a", ""]);
    let mut run = Run::new(&batch, 3);
    assert_eq!(window(&mut run), [0, 1, 2, 4]);
    let verdicts = vec![
        Verdict::Nacked,
        Verdict::Unsure,
        Verdict::Confirmed,
        Verdict::Unsure,
    ];
    let unsure = run.apply(&[0, 1, 2, 4], verdicts);
    assert_eq!(unsure, [4]);
    run.blame(&nameless(), &unsure, 4);
    assert_eq!(window(&mut run), [4]);
    confirm(&mut run, &[4]);
    assert_eq!(run.next_window(usize::MAX), None);
    assert_eq!(ended(run), "fhchc");
}

#[test]
fn a_suspect_that_is_held_back_is_not_sent() {
    let batch = of_keys(&["a", "a", ""]);
    let mut run = Run::new(&batch, 2);
    let unsure = run.apply(&[0, 1, 2], vec![Verdict::Unsure; 3]);
    run.blame(&nameless(), &unsure, 3);
    assert_eq!(window(&mut run), [0]);
    run.apply(&[0], vec![Verdict::Nacked]);
    assert_eq!(window(&mut run), [2]);
}

#[test]
fn a_return_on_the_acknowledgement_of_another_lets_nothing_of_its_key_pass() {
    // Heads of a and b; that of b is returned, and the library hands its return out with the confirm of a's.
    let batch = of_keys(&["a", "b", "a", "b"]);
    let mut run = Run::new(&batch, 1);
    let sent = window(&mut run);
    let acked: Vec<_> = sent
        .iter()
        .map(|position| (batch[*position].id, Resolution::Acked))
        .collect();
    let returned = Returned {
        id: Some(batch[1].id),
        detail: String::new(),
    };
    // Before the confirm of b's is in, nothing is certain, a's least of all: nobody's next is up.
    let incomplete = [acked[0], (acked[1].0, Resolution::Unresolved)];
    let judged = judge(&incomplete, std::slice::from_ref(&returned)).verdicts;
    assert_eq!(judged[0], Verdict::Unsure);
    let judged = judge(&acked, &[returned]).verdicts;
    assert!(run.apply(&sent, judged).is_empty());
    assert_eq!(window(&mut run), [2]);
    confirm(&mut run, &[2]);
    assert_eq!(run.next_window(usize::MAX), None);
    assert_eq!(ended(run), "cfch");
}

/// Decisions of chance; when they are used up, everything goes well.
struct Chance(Vec<u8>);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.0.pop().unwrap_or(0)) % limit
    }
}

/// What was seen of a batch from outside.
#[derive(Default)]
struct Seen {
    sent: HashSet<usize>,
    confirmed: HashSet<usize>,
    out_of_time: bool,
}

const EXCHANGES: [&str; 3] = ["x", "y", "z"];

impl Seen {
    /// Of each key only the first that is not confirmed is in the window, and after the time is up nothing new.
    fn check(&self, batch: &[Message], window: &[usize]) -> Result<(), TestCaseError> {
        prop_assert!(!window.is_empty());
        prop_assert!(window.is_sorted_by(|one, next| one < next));
        let ids: HashSet<_> = window.iter().map(|position| batch[*position].id).collect();
        prop_assert_eq!(ids.len(), window.len());
        for &position in window {
            prop_assert!(!self.confirmed.contains(&position));
            let Some(key) = batch[position].key() else {
                continue;
            };
            let before = (0..position).filter(|before| batch[*before].key() == Some(key));
            for before in before {
                prop_assert!(
                    self.confirmed.contains(&before),
                    "{} before {}",
                    position,
                    before
                );
            }
            prop_assert!(!self.out_of_time || self.sent.contains(&position));
        }
        Ok(())
    }

    /// Of each key: confirmed ones, then at most one that failed, then those held back, which were never sent.
    fn check_end(&self, batch: &[Message], outcomes: &[Outcome]) -> Result<(), TestCaseError> {
        prop_assert_eq!(batch.len(), outcomes.len());
        let mut stopped = HashSet::new();
        for (position, (message, outcome)) in batch.iter().zip(outcomes).enumerate() {
            let confirmed = *outcome == Outcome::Confirmed;
            prop_assert_eq!(confirmed, self.confirmed.contains(&position));
            let held_back = *outcome == Outcome::HeldBack;
            prop_assert!(!held_back || !self.sent.contains(&position));
            let Some(key) = message.key() else {
                prop_assert!(!held_back);
                continue;
            };
            if stopped.contains(key) {
                prop_assert!(held_back, "{}: {:?}", position, outcome);
            } else if !confirmed {
                prop_assert!(
                    !held_back || self.out_of_time,
                    "{} held back by nobody",
                    position
                );
                stopped.insert(key);
            }
        }
        Ok(())
    }
}

/// A batch on its way through everything that chance has in store for it, watched from outside.
fn survive(batch: &[Message], mut chance: Chance) -> Result<(), TestCaseError> {
    let mut run = Run::new(batch, 1);
    let mut seen = Seen::default();
    if chance.below(4) == 1 {
        run.exchange_missing("x", &no_exchange("x"));
    }
    loop {
        if chance.below(8) == 1 {
            run.hold_back_unsent();
            let is_keyed = |position: &usize| batch[*position].ordered.is_some();
            seen.out_of_time |= seen.sent.iter().any(is_keyed);
        }
        let most = [usize::MAX, 1, 2, 5][chance.below(4)];
        let Some(mut sent) = run.next_window(most) else {
            break;
        };
        prop_assert!(sent.len() <= most);
        seen.check(batch, &sent)?;
        sent.retain(|position| {
            let refused = chance.below(12) == 1;
            if refused {
                run.settle(*position, Failure::new(Reason::NotEncodable, "").into());
            }
            !refused
        });
        let end = chance.below(6);
        let complete = end != 1 && end != 2 && end != 3;
        if end == 1 && chance.below(2) == 1 {
            // The channel was found closed before everything was sent.
            sent.truncate(1 + chance.below(3));
        }
        let verdicts: Vec<_> = sent
            .iter()
            .map(|_| match chance.below(7) {
                5 => Verdict::Unroutable(String::new()),
                6 => Verdict::Nacked,
                3 | 4 if !complete => Verdict::Unsure,
                _ => Verdict::Confirmed,
            })
            .collect();
        let standings: Vec<_> = sent
            .iter()
            .zip(&verdicts)
            .map(|(position, verdict)| Standing {
                position: *position,
                route: route(&batch[*position]),
                resolved: *verdict != Verdict::Unsure,
            })
            .collect();
        for (position, verdict) in sent.iter().zip(&verdicts) {
            seen.sent.insert(*position);
            if *verdict == Verdict::Confirmed {
                seen.confirmed.insert(*position);
            }
        }
        let unsure = run.apply(&sent, verdicts);
        match end {
            1 => {
                let error = match chance.below(2) {
                    1 => no_exchange(EXCHANGES[chance.below(3)]),
                    _ => nameless(),
                };
                run.blame(&error, &unsure, sent.len());
            }
            2 => {
                let standstills = [
                    Standstill::Straggling,
                    Standstill::Held,
                    Standstill::NothingHeard,
                ];
                let blame = blame(standstills[chance.below(3)], &standings);
                run.accuse(&blame, &straggler());
            }
            // The end of the connection.
            3 => break,
            _ => {}
        }
    }
    seen.check_end(batch, &run.outcomes(Reason::ConnectionLost, ""))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_happens_nothing_of_a_key_is_sent_before_all_before_it_is_confirmed(
        messages in prop::collection::vec((0usize..3, 0usize..4, 0u128..30), 0..24),
        chance in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let of: Vec<_> = messages
            .iter()
            .map(|(exchange, key, _)| (EXCHANGES[*exchange], ["", "a", "b", "c"][*key]))
            .collect();
        let mut batch = keyed(&of);
        for (message, (_, _, id)) in batch.iter_mut().zip(&messages) {
            message.id = Uuid::from_u128(*id);
        }
        survive(&batch, Chance(chance))?;
    }
}
