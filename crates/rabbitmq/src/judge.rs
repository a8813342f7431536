//! Which messages of a window are certain, and of what.
//!
//! The AMQP library resolves each publish by its own delivery tag, so an acknowledgement is never
//! mixed up. A returned message is: it arrives before the acknowledgement of its publish, is put at
//! the end of a queue, and *every* acknowledgement that comes in, whosever it is, takes one return
//! from the front of that queue along. So the return of one message is found on the
//! acknowledgement of another. Returns are therefore matched by message id, and nothing is decided
//! before a window is over or given up on.
//!
//! # A complete window
//! All acknowledgements are in. Each return in the queue is followed by at least one
//! acknowledgement of its own, so every return has been taken by one of them: the queue is empty,
//! the set of returns is complete, and nothing is left over for the next window.
//!
//! # An incomplete window
//! A message that was acknowledged may have its return still in the queue, waiting for
//! acknowledgements that will never come: to count it as confirmed would lose it. Say that this is so
//! for message M at the last acknowledgement that is counted. Since the queue was last empty, it held
//! something all the time, so each acknowledgement since then took exactly one return out. Each return
//! put in since then belongs to a message acknowledged since then, after its return, or to one that is
//! unresolved; let there be k of the latter. So at most k returns are left in the queue. One of them is
//! M's, so fewer than k belong to unresolved messages: at least one return of an unresolved message has
//! been taken out, and was seen.
//!
//! Turned round: when no return that was seen belongs to an unresolved message, the acknowledged ones
//! that are not among the returns are certain. When one does, they stay unsure, and are repeated
//! rather than lost. An unresolved message whose return comes is acknowledged right behind it, so that
//! happens only where the broker or the connection ended in between. (It has to be looked at all
//! acknowledgements that came before the last one counted: see `window.rs`. What was acknowledged but
//! is not counted is unresolved here, which the argument allows.) A channel with an incomplete window
//! behind it is never used again, because its queue may hold returns that would be taken for those of
//! the next window.

use std::collections::HashMap;

use uuid::Uuid;

/// What the broker said about one publish, returns aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    Acked,
    Nacked,
    /// Nothing: a timeout, or the end of the channel or the connection.
    Unresolved,
}

/// A message that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returned {
    /// The id it carried; `None` when it was none of ours.
    pub(crate) id: Option<Uuid>,
    /// Why it came back.
    pub(crate) detail: String,
}

/// What can be said about one message of a window that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Confirmed,
    Nacked,
    Unroutable(String),
    /// May have arrived, may not.
    Unsure,
}

/// The verdicts on a window, in its order, and whether a return came that none of its messages
/// explains, which nothing but a fault in library or broker can bring about: such a window is
/// treated as incomplete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) stray_return: bool,
}

/// Judges a window: for each message its id (no two alike) and its resolution, and all returns that
/// came with any of them.
pub(crate) fn judge(window: &[(Uuid, Resolution)], returned: &[Returned]) -> Judgement {
    if returned.is_empty() {
        let verdicts = window
            .iter()
            .map(|(_, resolution)| match resolution {
                Resolution::Acked => Verdict::Confirmed,
                Resolution::Nacked => Verdict::Nacked,
                Resolution::Unresolved => Verdict::Unsure,
            })
            .collect();
        return Judgement {
            verdicts,
            stray_return: false,
        };
    }
    let resolutions: HashMap<Uuid, Resolution> = window.iter().copied().collect();
    let mut stray_return = false;
    let mut more_to_come = false;
    let mut details = HashMap::with_capacity(returned.len());
    for Returned { id, detail } in returned {
        match id.and_then(|id| Some((id, resolutions.get(&id)?))) {
            Some((id, resolution)) => {
                more_to_come |= *resolution == Resolution::Unresolved;
                // The same message back twice: as impossible as one that was never sent.
                stray_return |= details.insert(id, detail.as_str()).is_some();
            }
            None => stray_return = true,
        }
    }
    let certain = !more_to_come && !stray_return;
    let verdicts = window
        .iter()
        .map(|(id, resolution)| match (details.remove(id), resolution) {
            (Some(detail), _) => Verdict::Unroutable(detail.to_owned()),
            (None, Resolution::Nacked) => Verdict::Nacked,
            (None, Resolution::Acked) if certain => Verdict::Confirmed,
            (None, Resolution::Acked | Resolution::Unresolved) => Verdict::Unsure,
        })
        .collect();
    Judgement {
        verdicts,
        stray_return,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Routed,
        Unroutable,
        Refused,
    }

    fn id(index: usize) -> Uuid {
        Uuid::from_u128(index as u128 + 1)
    }

    fn came_back(index: usize) -> Returned {
        Returned {
            id: Some(id(index)),
            detail: format!("no route {index}"),
        }
    }

    /// What happens to one message.
    #[derive(Debug, Clone, Copy)]
    struct Message {
        fate: Fate,
        /// Its return comes long before its acknowledgement.
        early: bool,
        /// Its acknowledgement is looked at too late to count, or not at all if it comes after the
        /// last one that counts.
        uncounted: bool,
    }

    /// The library's queue of returns between broker and publisher, as its source has it. The broker
    /// works through `steps` (each the index of a message still open, in any order). The last
    /// acknowledgement that counts is that of the last step before `cut`; those of the steps from
    /// there to `end`, where the connection ends, are looked at (`late_look`) or not. So many steps at a time
    /// are acknowledged `together`, by one frame with `multiple`: their returns come first, all of them.
    fn played(
        messages: &[Message],
        steps: &[usize],
        (cut, end): (usize, usize),
        late_look: bool,
        together: usize,
    ) -> (Vec<(Uuid, Resolution)>, Vec<Returned>) {
        let mut window: Vec<_> = (0..messages.len())
            .map(|index| (id(index), Resolution::Unresolved))
            .collect();
        let mut waiting = VecDeque::new();
        let mut taken = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message.fate == Fate::Unroutable && message.early {
                waiting.push_back(came_back(index));
            }
        }
        for (step, index) in steps.iter().enumerate().take(end) {
            let message = messages[*index];
            if step % together == 0 {
                let frame = steps.iter().skip(step).take(together);
                let returned = frame.filter(|index| {
                    messages[**index].fate == Fate::Unroutable && !messages[**index].early
                });
                waiting.extend(returned.map(|index| came_back(*index)));
            }
            let with_it = waiting.pop_front();
            if step < cut || late_look {
                taken.extend(with_it);
            }
            let last = step + 1 == cut;
            if step < cut && (last || !message.uncounted) {
                window[*index].1 = match message.fate {
                    Fate::Refused => Resolution::Nacked,
                    Fate::Routed | Fate::Unroutable => Resolution::Acked,
                };
            }
        }
        if end >= messages.len() {
            assert!(waiting.is_empty(), "a complete window leaves nothing over");
        }
        (window, taken)
    }

    /// All messages are heard of, and count.
    fn completed(
        messages: &[Message],
        steps: &[usize],
        together: usize,
    ) -> (Vec<(Uuid, Resolution)>, Vec<Returned>) {
        let counted: Vec<_> = messages
            .iter()
            .map(|message| Message {
                uncounted: false,
                ..*message
            })
            .collect();
        let ends = (messages.len(), messages.len());
        played(&counted, steps, ends, true, together)
    }

    fn scenes() -> impl Strategy<Value = (Vec<Message>, Vec<usize>, (usize, usize))> {
        let fate = prop_oneof![
            6 => Just(Fate::Routed), 2 => Just(Fate::Unroutable), 1 => Just(Fate::Refused)
        ];
        let message = (fate, any::<bool>(), prop::bool::weighted(0.2));
        let message = message.prop_map(|(fate, early, uncounted)| Message {
            fate,
            early,
            uncounted,
        });
        prop::collection::vec(message, 0..40).prop_flat_map(|messages| {
            let order: Vec<usize> = (0..messages.len()).collect();
            let length = messages.len();
            (
                Just(messages),
                Just(order).prop_shuffle(),
                (0..=length, 0..=length).prop_map(|(one, other)| (one.min(other), one.max(other))),
            )
        })
    }

    proptest! {
        #[test]
        fn a_complete_window_is_judged_exactly((messages, steps, _) in scenes(), together in 1usize..8) {
            let (window, returned) = completed(&messages, &steps, together);
            let judgement = judge(&window, &returned);
            prop_assert!(!judgement.stray_return);
            for (index, (message, verdict)) in messages.iter().zip(judgement.verdicts).enumerate() {
                prop_assert_eq!(verdict, match message.fate {
                    Fate::Routed => Verdict::Confirmed,
                    Fate::Refused => Verdict::Nacked,
                    Fate::Unroutable => Verdict::Unroutable(format!("no route {index}")),
                });
            }
        }

        #[test]
        fn an_incomplete_window_confirms_only_what_was_routed_and_acknowledged(
            (messages, steps, ends) in scenes(), late_look in any::<bool>(), together in 1usize..8
        ) {
            let (window, returned) = played(&messages, &steps, ends, late_look, together);
            let none_unresolved = returned.iter().all(|returned| {
                let unresolved = |(id, resolution): &(Uuid, Resolution)| {
                    Some(*id) == returned.id && *resolution == Resolution::Unresolved
                };
                !window.iter().any(unresolved)
            });
            let judgement = judge(&window, &returned);
            for (index, verdict) in judgement.verdicts.iter().enumerate() {
                let (fate, resolution) = (messages[index].fate, window[index].1);
                match verdict {
                    Verdict::Confirmed => {
                        prop_assert_eq!(fate, Fate::Routed);
                        prop_assert_eq!(resolution, Resolution::Acked);
                    }
                    Verdict::Nacked => prop_assert_eq!(fate, Fate::Refused),
                    Verdict::Unroutable(_) => prop_assert_eq!(fate, Fate::Unroutable),
                    Verdict::Unsure => prop_assert!(
                        resolution == Resolution::Unresolved || !none_unresolved
                    ),
                }
            }
        }

        #[test]
        fn a_return_that_nothing_explains_leaves_no_acknowledgement_certain(
            (messages, steps, _) in scenes(), together in 1usize..8, foreign in any::<bool>()
        ) {
            let (window, mut returned) = completed(&messages, &steps, together);
            let id = foreign.then(|| Uuid::from_u128(u128::MAX));
            returned.push(Returned { id, detail: String::new() });
            let judgement = judge(&window, &returned);
            prop_assert!(judgement.stray_return);
            prop_assert!(!judgement.verdicts.contains(&Verdict::Confirmed));
        }
    }

    #[test]
    fn the_return_of_one_message_on_the_acknowledgement_of_another_is_charged_to_its_own() {
        let window = [(id(0), Resolution::Acked), (id(1), Resolution::Acked)];
        let judgement = judge(&window, &[came_back(1)]);
        assert_eq!(
            judgement.verdicts,
            [
                Verdict::Confirmed,
                Verdict::Unroutable("no route 1".to_owned())
            ]
        );
    }
}
