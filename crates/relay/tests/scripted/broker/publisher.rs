//! The publishers that the broker hands out.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postrider_core::{Message, Outcome, Patience, Reason, Scope};
use postrider_relay::{Publish, Published};

use super::late::ScriptedLate;
use super::script::Drawn;
use super::view::View;
use super::{Hold, Scripted};
use crate::fate::{Fate, Word, failed, lost};

/// A channel on the connection of one generation, or on one of its own.
#[derive(Debug)]
pub(crate) struct ScriptedPublisher {
    pub(super) broker: Scripted,
    pub(super) view: View,
    pub(super) isolated: bool,
    pub(super) usable: bool,
}

impl ScriptedPublisher {
    /// Waits while the broker takes nothing; says whether the connection has survived it.
    async fn unblocked(&self) -> bool {
        let mut link = self.broker.0.link.subscribe();
        let generation = self.view.generation;
        let ended = |link: &View| link.generation != generation;
        let view = link.wait_for(|link| link.alarms == 0 || ended(link)).await;
        !ended(&view.unwrap())
    }

    /// Stands still for as long as the test wants publishes to, at this point.
    async fn stand_still(&self, point: Hold) {
        let mut hold = self.broker.0.hold.subscribe();
        if *hold.borrow() == Some(point) {
            self.broker.0.held.send_modify(|held| *held += 1);
            hold.wait_for(|hold| *hold != Some(point)).await.unwrap();
        }
    }

    /// The connection ends over what was published on it.
    fn end(&self) {
        if !self.isolated {
            self.broker.end(Some(self.view.generation));
        }
    }
}

impl Publish for ScriptedPublisher {
    type Late = ScriptedLate;

    async fn publish(&mut self, batch: &[Message], _: Patience) -> Published<ScriptedLate> {
        assert!(!batch.is_empty(), "an empty batch was published");
        let everything = |outcome: Outcome| Published {
            outcomes: once_a_key(batch, &outcome),
            late: None,
        };
        if !std::mem::take(&mut self.usable) {
            return everything(lost(Scope::Broker));
        }
        let fates = self.broker.draw(self, batch);
        self.stand_still(if self.isolated {
            Hold::Isolated
        } else {
            Hold::Untaken
        })
        .await;
        for drawn in &fates {
            if let Drawn::Fate(Fate::Alarm { for_ms }) = drawn {
                self.broker.block();
                let (broker, for_ms) = (self.broker.clone(), *for_ms);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(for_ms)).await;
                    broker.unblock();
                });
            }
        }
        if !self.unblocked().await {
            return everything(lost(Scope::Broker));
        }

        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.len());
        let (mut taken, mut unanswered, mut wait_ms) = (Vec::new(), Vec::new(), 0);
        let mut ended = None;
        let mut stopped: HashSet<&str> = HashSet::new();
        for (position, (message, drawn)) in batch.iter().zip(fates).enumerate() {
            let is_stopped = message.key().is_some_and(|key| stopped.contains(key));
            let outcome = match drawn {
                Drawn::Culprit => {
                    // What was sent just before has not been answered when the connection ends: it is as
                    // suspicious as the culprit, and was taken. Not what the culprit had to wait for.
                    let waited = |position: usize| {
                        batch[position]
                            .key()
                            .is_some_and(|key| message.key() == Some(key))
                    };
                    if position > 0
                        && !waited(position - 1)
                        && let Some(before @ Outcome::Confirmed) = outcomes.last_mut()
                    {
                        *before = lost(Scope::Message);
                        stopped.extend(batch[position - 1].key());
                    }
                    ended = Some(Scope::Message);
                    lost(Scope::Message)
                }
                Drawn::NotReached | Drawn::HeldBack if is_stopped => Outcome::HeldBack,
                Drawn::HeldBack => Outcome::HeldBack,
                Drawn::NotReached => lost(ended.unwrap()),
                Drawn::Stuck(route) => {
                    unanswered.push((position, message.id, Word::OnCommand, Some(route)));
                    failed(Reason::ConfirmTimeout, Scope::Route)
                }
                Drawn::Fate(Fate::Confirmed { after_ms }) => {
                    wait_ms = after_ms.max(wait_ms);
                    taken.push(message.id);
                    Outcome::Confirmed
                }
                Drawn::Fate(Fate::Alarm { .. }) => {
                    taken.push(message.id);
                    Outcome::Confirmed
                }
                Drawn::Fate(fate @ (Fate::TakenThenLost | Fate::Lost)) => {
                    if fate == Fate::TakenThenLost {
                        taken.push(message.id);
                    }
                    ended = Some(Scope::Broker);
                    lost(Scope::Broker)
                }
                Drawn::Fate(Fate::Late { scope, word }) => {
                    unanswered.push((position, message.id, word, None));
                    failed(Reason::ConfirmTimeout, scope)
                }
                Drawn::Fate(Fate::Refused(reason, scope)) => failed(reason, scope),
            };
            outcomes.push(outcome);
        }
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        self.broker.take(&taken).await;
        // Only now: what has a key was not sent before the others of it were confirmed.
        let late: Vec<(usize, u64)> = unanswered
            .into_iter()
            .map(|(position, id, word, stuck)| {
                (position, self.broker.ticket(self, id, word, stuck))
            })
            .collect();
        self.stand_still(Hold::Taken).await;
        if ended.is_some() {
            self.end();
        } else if self.broker.0.link.borrow().generation == self.view.generation {
            self.usable = true;
        }
        let answered = outcomes.iter().any(|outcome| match outcome {
            Outcome::Confirmed => true,
            Outcome::HeldBack => false,
            Outcome::Failed(failure) => failure.scope != Scope::Broker,
        });
        if answered {
            self.view.proven.store(true, Ordering::SeqCst);
        }
        Published {
            outcomes,
            late: (!late.is_empty()).then(|| ScriptedLate::new(&self.broker, late)),
        }
    }

    fn is_proven(&self) -> bool {
        self.view.proven.load(Ordering::SeqCst)
    }
}

/// The outcome for every message whose turn has come: the first of its key.
fn once_a_key(batch: &[Message], outcome: &Outcome) -> Vec<Outcome> {
    let mut keys: HashSet<&str> = HashSet::new();
    batch
        .iter()
        .map(|message| match message.key() {
            Some(key) if !keys.insert(key) => Outcome::HeldBack,
            _ => outcome.clone(),
        })
        .collect()
}
