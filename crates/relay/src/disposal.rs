//! What becomes of each message of a batch, from what became of its publish.

use postrider_core::{
    Disposition, Failure, Fate, MOST_MOVED_BYTES, Message, Outcome, Payload, Seq, Settling, Target,
};
use postrider_postgres::{Dead, Retry, Settlement};

use std::time::Duration;

use crate::breakers::Split;
use crate::settings::AfterDeadLetter;

/// The messages of one batch, sorted by what is done with them.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    /// Confirmed: counted as published.
    pub(crate) confirmed: Vec<&'a Message>,
    /// Not taken by anyone, and accepted as sent by policy.
    pub(crate) accepted: Vec<(&'a Message, Failure)>,
    /// At fault themselves: they wait.
    pub(crate) retried: Vec<(&'a Message, Failure, Again)>,
    /// Not to be sent, or not confirmed, by the fault of their exchange or route: they wait, and no attempt is
    /// charged.
    pub(crate) postponed: Vec<(&'a Message, Failure, Duration)>,
    /// At fault for the last time.
    pub(crate) given_up: Vec<(&'a Message, Failure, u32)>,
    /// How many are left to a later batch: because moving all at once would take too long, or because an earlier message of their
    /// key is not delivered.
    pub(crate) left: usize,
    /// What messages that were delivered stood for: gone with them.
    pub(crate) superseded: Vec<Seq>,
    /// What stood for others and was not delivered, and what it stood for; and what has a key and may have been sent.
    pub(crate) apart: Vec<Seq>,
    /// Nobody knows; they stay where they are.
    pub(crate) in_doubt: Vec<(&'a Message, Failure)>,
    /// The exchanges and routes whose resumption is to let go of some of those that wait.
    pub(crate) awaited: Vec<Target>,
}

/// When a message is tried again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    pub(crate) after: Duration,
    pub(crate) attempts: u32,
}

impl<'a> Batch<'a> {
    /// Sorts the batch: what was sent, by its outcome, and what was withheld, each by what `decide` says of it and
    /// of whether it was sent.
    ///
    /// A message without an outcome would be one that nobody can vouch for: it is in no list, so its
    /// row stays.
    pub(crate) fn sort(
        split: &'a Split,
        outcomes: Vec<Outcome>,
        mut decide: impl FnMut(&Message, &Failure, bool) -> Disposition,
    ) -> Self {
        let mut batch = Self {
            confirmed: Vec::with_capacity(split.send.len()),
            accepted: Vec::new(),
            retried: Vec::new(),
            postponed: Vec::new(),
            given_up: Vec::new(),
            left: 0,
            superseded: Vec::new(),
            apart: Vec::new(),
            in_doubt: Vec::new(),
            awaited: Vec::new(),
        };
        let mut moved_bytes = 0;
        let mut settling = Settling::default();
        let sent = split.send.iter().zip(outcomes);
        let sent = sent.map(|(message, outcome)| (message, outcome, true));
        let withheld = split.withheld.iter();
        let withheld = withheld.map(|(message, failure)| (message, failure.clone().into(), false));
        for (message, outcome, was_sent) in sent.chain(withheld) {
            let failure = match outcome {
                Outcome::Confirmed => {
                    batch.confirmed.push(message);
                    batch.leave_with(message, split);
                    continue;
                }
                Outcome::HeldBack => {
                    settling.settle(message, Fate::Stays);
                    batch.left += 1;
                    continue;
                }
                Outcome::Failed(failure) => failure,
            };
            let stands_for = split.ordered.superseded.get(&message.seq);
            if settling.has_stopped(message) {
                batch.left += 1;
                continue;
            }
            let disposition = decide(message, &failure, was_sent);
            if let (Some(others), true) = (stands_for, disposition != Disposition::Done) {
                // Sent one by one, each pays for itself.
                settling.settle(message, Fate::Stays);
                batch.left += 1;
                batch.apart.push(message.seq);
                batch.apart.extend(others.iter().map(|(seq, _)| *seq));
                continue;
            }
            match disposition {
                Disposition::Postpone { after } => {
                    settling.settle(message, Fate::Moves);
                    batch.postponed.push((message, failure, after));
                }
                Disposition::Done => {
                    batch.accepted.push((message, failure));
                    batch.leave_with(message, split);
                }
                Disposition::Stay => {
                    settling.settle(message, Fate::Stays);
                    if message.ordered.is_some() {
                        // It may have been sent: no later one may stand for it.
                        batch.apart.push(message.seq);
                    }
                    batch.in_doubt.push((message, failure));
                }
                Disposition::Retry { after, attempts } => {
                    settling.settle(message, Fate::Moves);
                    batch
                        .retried
                        .push((message, failure, Again { after, attempts }));
                }
                Disposition::GiveUp { attempts } => {
                    if let Payload::TooLarge { bytes } = message.payload {
                        if moved_bytes >= MOST_MOVED_BYTES {
                            settling.settle(message, Fate::Stays);
                            batch.left += 1;
                            continue;
                        }
                        moved_bytes = moved_bytes.saturating_add(bytes);
                    }
                    settling.settle(message, Fate::Moves);
                    batch.given_up.push((message, failure, attempts));
                }
            }
        }
        batch
    }

    /// The message was delivered, and with it what it stands for.
    fn leave_with(&mut self, message: &Message, split: &Split) {
        if let Some(others) = split.ordered.superseded.get(&message.seq) {
            self.superseded.extend(others.iter().map(|(seq, _)| *seq));
        }
    }

    /// Those that are tried no more.
    pub(crate) fn gone(&self) -> impl Iterator<Item = &'a Message> {
        let accepted = self.accepted.iter().map(|(message, _)| *message);
        let given_up = self.given_up.iter().map(|(message, ..)| *message);
        self.confirmed
            .iter()
            .copied()
            .chain(accepted)
            .chain(given_up)
    }

    /// What the database is told.
    pub(crate) fn settlement(
        &self,
        park: &[Seq],
        after_dead_letter: AfterDeadLetter,
    ) -> Settlement {
        let accepted = self.accepted.iter().map(|(message, _)| message.seq);
        let postponed = self
            .postponed
            .iter()
            .map(|(message, failure, after)| Retry {
                seq: message.seq,
                after: *after,
                attempts: message.attempts,
                reason: failure.reason,
                error: failure.detail.clone(),
            });
        Settlement {
            done: self
                .confirmed
                .iter()
                .map(|message| message.seq)
                .chain(accepted)
                .chain(self.superseded.iter().copied())
                .collect(),
            retry: self
                .retried
                .iter()
                .map(|(message, failure, again)| Retry {
                    seq: message.seq,
                    after: again.after,
                    attempts: again.attempts,
                    reason: failure.reason,
                    error: failure.detail.clone(),
                })
                .chain(postponed)
                .collect(),
            dead: self
                .given_up
                .iter()
                .map(|(message, failure, attempts)| Dead {
                    seq: message.seq,
                    attempts: *attempts,
                    reason: failure.reason,
                    error: failure.detail.clone(),
                })
                .collect(),
            blocking: match after_dead_letter {
                AfterDeadLetter::Block => self
                    .given_up
                    .iter()
                    .filter(|(message, ..)| message.ordered.is_some())
                    .map(|(message, ..)| message.seq)
                    .collect(),
                AfterDeadLetter::Continue => Vec::new(),
            },
            park: park.to_vec(),
        }
    }
}
