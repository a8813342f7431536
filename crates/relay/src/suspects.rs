//! Messages one of which made the broker end a connection.
//!
//! Some errors concern the connection, not a channel (a frame error, an internal one), and name no message. The
//! batch comes again, with the culprit in it, and would end connection after connection. So what was in
//! flight then is published one by one, on a connection of its own, until the culprit is found.
//!
//! One that ends its own connection is charged an attempt, and not given up at once: a broker that is ill ends connections over
//! whatever it is sent. A culprit ends so many connections as it has attempts, and each of them is its own; a message that happened to be sent
//! meanwhile outlives an illness that is shorter than all its attempts.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use postrider_core::{Failure, Message, Outcome, Reason, Scope, Seq};

/// How many are remembered; what is forgotten ends one connection more before it is suspected again.
const CAPACITY: usize = 20_000;
/// How many of one batch are published singly; the others wait for a later batch.
pub(crate) const MOST_AT_ONCE: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Suspects(Mutex<HashSet<Seq>>);

impl Suspects {
    /// Puts those under suspicion last, and says how many there are.
    pub(crate) fn put_last(&self, messages: &mut [Message]) -> usize {
        let suspects = self.seqs();
        if suspects.is_empty() {
            return 0;
        }
        messages.sort_by_key(|message| suspects.contains(&message.seq));
        let first = messages.partition_point(|message| !suspects.contains(&message.seq));
        messages.len() - first
    }

    /// Suspects, of messages published together, those that the outcomes say may be at fault, and acquits those
    /// of whom more is known. `floor`: below it nothing is left but what is deferred or parked. Where there is no room, that is forgotten first: what
    /// another relay has published since nobody else acquits.
    pub(crate) fn observe<'a>(
        &self,
        published: impl Iterator<Item = (&'a Message, &'a Outcome)>,
        floor: Option<Seq>,
    ) {
        let mut suspects = self.seqs();
        if suspects.len() >= CAPACITY {
            suspects.retain(|known| floor.is_none_or(|floor| *known >= floor));
        }
        for (message, outcome) in published {
            match outcome {
                Outcome::Failed(failure) if is_suspect(failure) => {
                    if suspects.len() < CAPACITY {
                        suspects.insert(message.seq);
                    }
                }
                Outcome::Failed(failure) if failure.scope == Scope::Broker => {}
                Outcome::HeldBack => {}
                Outcome::Failed(_) | Outcome::Confirmed => {
                    if !suspects.is_empty() {
                        suspects.remove(&message.seq);
                    }
                }
            }
        }
    }

    fn seqs(&self) -> MutexGuard<'_, HashSet<Seq>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What to say of a message that was published alone on its own connection.
pub(crate) fn convicted(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failed(failure) if was_in_flight(&failure) => Failure::new(
            Reason::EndsConnection,
            format!(
                "the broker ends the connection over this message: {}",
                failure.detail
            ),
        )
        .into(),
        outcome => outcome,
    }
}

/// Whether it is one of those that were in flight when the broker ended the connection.
fn was_in_flight(failure: &Failure) -> bool {
    (failure.reason, failure.scope) == (Reason::ConnectionLost, Scope::Message)
}

fn is_suspect(failure: &Failure) -> bool {
    was_in_flight(failure) || failure.reason == Reason::EndsConnection
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_message::message;

    /// What is said of a message that was in flight when the broker ended the connection.
    fn ended() -> Outcome {
        let lost = Failure::new(Reason::ConnectionLost, "FRAME_ERROR");
        lost.with_scope(Scope::Message).into()
    }

    impl Suspects {
        fn hear(&self, seqs: impl IntoIterator<Item = i64>, outcome: &Outcome, floor: Option<i64>) {
            let messages: Vec<_> = seqs.into_iter().map(message).collect();
            let published = messages.iter().map(|message| (message, outcome));
            self.observe(published, floor.map(Seq));
        }

        fn suspects(&self, seq: i64) -> bool {
            self.put_last(&mut [message(seq)]) == 1
        }
    }

    #[test]
    fn suspects_come_last_and_all_keep_their_order() {
        let suspects = Suspects::default();
        let mut messages: Vec<_> = (1..=6).map(message).collect();
        assert_eq!(suspects.put_last(&mut messages), 0);
        suspects.hear([2, 4], &ended(), None);
        assert_eq!(suspects.put_last(&mut messages), 2);
        let order: Vec<_> = messages.iter().map(|message| message.seq.0).collect();
        assert_eq!(order, [1, 3, 5, 6, 2, 4]);
    }

    #[test]
    fn only_what_is_said_of_a_message_itself_acquits_it() {
        let lost = Failure::new(Reason::ConnectionLost, "reset by peer");
        let refused = Failure::new(Reason::Nacked, "the queue is full");
        for (outcome, acquits) in [
            (Outcome::HeldBack, false),
            (lost.into(), false),
            (ended(), false),
            (convicted(ended()), false),
            (refused.into(), true),
            (Outcome::Confirmed, true),
        ] {
            let suspects = Suspects::default();
            suspects.hear([1, 2], &ended(), None);
            suspects.hear([1, 3], &outcome, None);
            assert_eq!(suspects.suspects(1), !acquits, "{outcome:?}");
            assert!(suspects.suspects(2), "{outcome:?}");
            let itself = [ended(), convicted(ended())].contains(&outcome);
            assert_eq!(suspects.suspects(3), itself, "{outcome:?}");
        }
    }

    #[test]
    fn where_there_is_no_room_what_lies_below_the_floor_is_forgotten() {
        let suspects = Suspects::default();
        let capacity = i64::try_from(CAPACITY).unwrap();
        suspects.hear(1..=capacity, &ended(), None);
        let newcomer = capacity + 1;
        suspects.hear([newcomer], &ended(), None);
        assert!(!suspects.suspects(newcomer) && suspects.suspects(1));
        suspects.hear([newcomer], &ended(), Some(3));
        assert!(suspects.suspects(newcomer) && suspects.suspects(3));
        assert!(!suspects.suspects(1) && !suspects.suspects(2));
        // With room nothing is forgotten.
        suspects.hear([newcomer], &ended(), Some(10));
        assert!(suspects.suspects(4));
    }

    #[test]
    fn nobody_is_convicted_but_of_ending_a_connection_alone() {
        let lost: Outcome = Failure::new(Reason::ConnectionLost, "reset by peer").into();
        for outcome in [Outcome::Confirmed, Outcome::HeldBack, lost] {
            assert_eq!(convicted(outcome.clone()), outcome);
        }
        match convicted(ended()) {
            Outcome::Failed(failure) => {
                assert_eq!(failure.reason, Reason::EndsConnection);
                assert!(failure.detail.contains("FRAME_ERROR"), "{failure:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}
