//! The state of one batch on its way through windows, closed channels and the search for culprits.
//! Decides only; `publisher.rs` does the sending.

use std::collections::{HashSet, VecDeque};

use postrider_core::{Failure, Message, Outcome, Reason};
use uuid::Uuid;

use crate::classify::ChannelError;
use crate::judge::Verdict;
use crate::straggle::{Blame, Route};

/// A batch, and what is known of each of its messages.
pub(crate) struct Run<'a> {
    batch: &'a [Message],
    outcomes: Vec<Option<Outcome>>,
    /// Everything before this has an outcome.
    first_open: usize,
    /// Messages one of which had the channel closed, nobody knows which: to be sent one by one.
    suspects: VecDeque<usize>,
    heard: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(batch: &'a [Message]) -> Self {
        Self {
            batch,
            outcomes: vec![None; batch.len()],
            first_open: 0,
            suspects: VecDeque::new(),
            heard: false,
        }
    }

    /// The positions to send next, in the order of the batch: a suspect alone, else as many as follow
    /// without an id occurring twice, up to `most`. `None` when every message has its outcome.
    pub(crate) fn next_window(&mut self, most: usize) -> Option<Vec<usize>> {
        while let Some(&suspect) = self.suspects.front() {
            if self.is_open(suspect) {
                return Some(vec![suspect]);
            }
            self.suspects.pop_front();
        }
        while self.outcomes.get(self.first_open)?.is_some() {
            self.first_open += 1;
        }
        let mut ids: HashSet<Uuid> = HashSet::with_capacity(most.min(self.batch.len()));
        let window: Vec<usize> = self
            .open()
            .take(most)
            .take_while(|(_, message)| ids.insert(message.id))
            .map(|(position, _)| position)
            .collect();
        Some(window)
    }

    /// Settles what the verdicts make certain and returns the positions that stay open.
    pub(crate) fn apply(&mut self, sent: &[usize], verdicts: Vec<Verdict>) -> Vec<usize> {
        let mut unsure = Vec::new();
        for (&position, verdict) in sent.iter().zip(verdicts) {
            self.heard |= verdict != Verdict::Unsure;
            match verdict {
                Verdict::Confirmed => self.settle(position, Outcome::Confirmed),
                Verdict::Unroutable(detail) => {
                    self.settle(position, Failure::new(Reason::Unroutable, detail).into());
                }
                Verdict::Nacked => self.settle(
                    position,
                    Failure::new(
                        Reason::Nacked,
                        "the broker refused the message: a queue is full and its overflow is reject-publish, or the broker has an error in its log",
                    )
                    .into(),
                ),
                Verdict::Unsure => unsure.push(position),
            }
        }
        unsure
    }

    /// Finds whose fault it is that the channel was closed with `unsure` in flight, out of `sent`
    /// messages. When it cannot be told, all of them become suspects.
    pub(crate) fn blame(&mut self, error: &ChannelError, unsure: &[usize], sent: usize) {
        let named = error
            .blamed(self.open())
            .filter(|(_, positions)| positions.iter().any(|position| unsure.contains(position)));
        if let (1, Some(&culprit)) = (sent, unsure.first()) {
            self.settle(culprit, error.alone().into());
            self.suspects.clear();
        }
        if let Some((reason, positions)) = named {
            self.suspects.clear();
            for position in positions {
                if self.is_open(position) {
                    self.settle(position, error.failure(reason).into());
                }
            }
        } else if sent > 1 {
            self.suspects = unsure.iter().copied().collect();
        }
    }

    /// Whether the broker has spoken of any of the messages.
    pub(crate) fn heard(&self) -> bool {
        self.heard
    }

    /// Fails all messages of these routes, and sends one by one those that may be of another.
    pub(crate) fn accuse(&mut self, blame: &Blame<'_>, failure: &Failure) {
        let batch = self.batch;
        let accused: HashSet<Route<'_>> = blame.accused.iter().copied().collect();
        for (position, message) in batch.iter().enumerate() {
            if self.is_open(position) && accused.contains(&route(message)) {
                self.settle(position, failure.clone().into());
            }
        }
        if !accused.is_empty() || !blame.suspects.is_empty() {
            self.suspects = blame.suspects.iter().copied().collect();
        }
    }

    /// Records what became of a message.
    pub(crate) fn settle(&mut self, position: usize, outcome: Outcome) {
        if let Some(slot) = self.outcomes.get_mut(position) {
            *slot = Some(outcome);
        }
    }

    /// Fails all messages of an exchange that the broker does not have.
    pub(crate) fn exchange_missing(&mut self, exchange: &str, said: &ChannelError) {
        let batch = self.batch;
        for (position, message) in batch.iter().enumerate() {
            if message.exchange == exchange && self.is_open(position) {
                self.settle(position, said.failure(Reason::ExchangeMissing).into());
            }
        }
    }

    /// The exchanges that are known to be missing by now.
    pub(crate) fn exchanges_missing(&self) -> impl Iterator<Item = &'a str> + use<'a, '_> {
        self.batch
            .iter()
            .zip(&self.outcomes)
            .filter(|(_, outcome)| {
                matches!(outcome, Some(Outcome::Failed(failure))
                    if failure.reason == Reason::ExchangeMissing)
            })
            .map(|(message, _)| message.exchange.as_str())
    }

    /// The outcomes, with every message that has none failed for this reason.
    pub(crate) fn outcomes(self, reason: Reason, detail: &str) -> Vec<Outcome> {
        self.outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| Failure::new(reason, detail).into()))
            .collect()
    }

    fn is_open(&self, position: usize) -> bool {
        matches!(self.outcomes.get(position), Some(None))
    }

    fn open(&self) -> impl Iterator<Item = (usize, &'a Message)> + Clone + use<'a, '_> {
        self.batch
            .iter()
            .zip(&self.outcomes)
            .enumerate()
            .skip(self.first_open)
            .filter(|(_, (_, outcome))| outcome.is_none())
            .map(|(position, (message, _))| (position, message))
    }
}

pub(crate) fn route(message: &Message) -> Route<'_> {
    (&message.exchange, &message.routing_key)
}

#[cfg(test)]
mod tests {
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
        let mut run = Run::new(&batch);
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
            }
        }
        assert_eq!(closed, 4);
    }

    #[test]
    fn an_exchange_that_is_named_but_was_not_in_flight_is_not_taken_for_the_culprit() {
        let batch = batch(&[(1, "a"), (1, "b"), (2, "a")]);
        let mut run = Run::new(&batch);
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
        let mut run = Run::new(&batch);
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
            let mut run = Run::new(&batch);
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
}
