//! The state of one batch on its way through windows, closed channels and the search for culprits.
//! Decides only; `publisher.rs` does the sending.

use std::collections::{HashMap, HashSet, VecDeque};

use postrider_core::{Failure, Message, Outcome, Reason, Turns};
use uuid::Uuid;

use crate::classify::ChannelError;
use crate::judge::Verdict;
use crate::straggle::{Blame, Route};
use crate::up::Up;

/// A batch, and what is known of each of its messages.
pub(crate) struct Run<'a> {
    batch: &'a [Message],
    outcomes: Vec<Option<Outcome>>,
    turns: Turns,
    /// Those without an outcome whose turn it is. What a window costs goes by these and not by the batch: one hot key makes as many
    /// windows as it has messages.
    up: Up,
    /// What befalls messages when their turn comes.
    doomed: HashMap<usize, Failure>,
    /// Of each position whether a message with a key was sent; empty when none was.
    sent: Vec<bool>,
    /// Messages one of which had the channel closed, nobody knows which: to be sent one by one.
    suspects: VecDeque<usize>,
    heard: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(batch: &'a [Message], in_flight_per_key: u32) -> Self {
        let turns = Turns::new(batch, in_flight_per_key);
        Self {
            batch,
            outcomes: vec![None; batch.len()],
            up: Up::new(batch.len(), |position| turns.is_up(position)),
            turns,
            doomed: HashMap::new(),
            sent: Vec::new(),
            suspects: VecDeque::new(),
            heard: false,
        }
    }

    /// The positions to send next, in the order of the batch: a suspect alone, else as many of those whose
    /// turn it is as follow without an id occurring twice, up to `most`. `None` when every message has its
    /// outcome.
    pub(crate) fn next_window(&mut self, most: usize) -> Option<Vec<usize>> {
        while let Some(&suspect) = self.suspects.front() {
            if self.up.contains(suspect) {
                return Some(vec![suspect]);
            }
            self.suspects.pop_front();
        }
        let mut ids: HashSet<Uuid> = HashSet::with_capacity(most.min(self.up.len()));
        let mut is_new = |position: usize| {
            let message = self.batch.get(position);
            message.is_some_and(|message| ids.insert(message.id))
        };
        let up = self.up.iter().take(most);
        let window: Vec<usize> = up.take_while(|position| is_new(*position)).collect();
        (!window.is_empty()).then_some(window)
    }

    /// Holds back the messages with a key that were not sent: there is no time left for them. One window of such messages is
    /// sent in any case, so that a batch never comes to nothing.
    pub(crate) fn hold_back_unsent(&mut self) {
        for position in 0..self.sent.len() {
            let sent = self.sent.get(position).copied().unwrap_or_default();
            if !sent && self.turns.has_key(position) {
                self.settle(position, Outcome::HeldBack);
            }
        }
    }

    /// Settles what the verdicts make certain and returns the positions that stay open.
    pub(crate) fn apply(&mut self, sent: &[usize], verdicts: Vec<Verdict>) -> Vec<usize> {
        let mut unsure = Vec::new();
        for &position in sent {
            self.note_sent(position);
        }
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
        // With several of a key in flight, one that was refused holds back another that is unsure.
        unsure.retain(|position| self.is_open(*position));
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
                self.fail_in_turn(position, error.failure(reason));
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
            if accused.contains(&route(message)) {
                self.fail_in_turn(position, failure.clone());
            }
        }
        if !accused.is_empty() || !blame.suspects.is_empty() {
            self.suspects = blame.suspects.iter().copied().collect();
        }
    }

    /// Records what became of a message, once, and with that of those behind it: the next of its key is up when it is confirmed, all
    /// of them are held back when it is not. Only that it was confirmed is said also of one that is held back: of those in flight
    /// together one was refused.
    pub(crate) fn settle(&mut self, position: usize, outcome: Outcome) {
        let Some(slot) = self.outcomes.get_mut(position) else {
            return;
        };
        let confirmed = outcome == Outcome::Confirmed;
        match slot {
            None => {}
            Some(Outcome::HeldBack) if confirmed => {}
            Some(Outcome::Confirmed | Outcome::Failed(_) | Outcome::HeldBack) => return,
        }
        *slot = Some(outcome);
        self.up.remove(position);
        if confirmed {
            if let Some(next) = self.turns.delivered(position) {
                self.move_up(next);
            }
            return;
        }
        for held_back in self.turns.stopped(position) {
            self.up.remove(held_back);
            if let Some(slot @ None) = self.outcomes.get_mut(held_back) {
                *slot = Some(Outcome::HeldBack);
            }
        }
    }

    fn move_up(&mut self, position: usize) {
        match self.doomed.remove(&position) {
            Some(failure) => self.settle(position, failure.into()),
            None => {
                self.up.insert(position);
            }
        }
    }

    /// Fails a message without an outcome, when its turn comes: until then it is not known whether it would have been sent at all.
    fn fail_in_turn(&mut self, position: usize, failure: Failure) {
        if self.up.contains(position) {
            self.settle(position, failure.into());
        } else if self.is_open(position) {
            self.doomed.insert(position, failure);
        }
    }

    fn note_sent(&mut self, position: usize) {
        if !self.turns.has_key(position) {
            return;
        }
        self.sent.resize(self.batch.len(), false);
        if let Some(sent) = self.sent.get_mut(position) {
            *sent = true;
        }
    }

    /// Fails all messages of an exchange that the broker does not have.
    pub(crate) fn exchange_missing(&mut self, exchange: &str, said: &ChannelError) {
        let batch = self.batch;
        for (position, message) in batch.iter().enumerate() {
            if message.exchange == exchange {
                self.fail_in_turn(position, said.failure(Reason::ExchangeMissing));
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

    /// The outcomes. Those that have none are failed for this reason, if their turn had come, and held back otherwise.
    pub(crate) fn outcomes(self, reason: Reason, detail: &str) -> Vec<Outcome> {
        let up = self.up;
        let unknown = |position| {
            if up.contains(position) {
                Failure::new(reason, detail).into()
            } else {
                Outcome::HeldBack
            }
        };
        self.outcomes
            .into_iter()
            .enumerate()
            .map(|(position, outcome)| outcome.unwrap_or_else(|| unknown(position)))
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
            .filter(|(_, (_, outcome))| outcome.is_none())
            .map(|(position, (message, _))| (position, message))
    }
}

pub(crate) fn route(message: &Message) -> Route<'_> {
    (&message.exchange, &message.routing_key)
}

#[cfg(test)]
mod tests;
