//! One claimed batch on its way: publish, decide, settle. Workers and prober do it alike.
//!
//! # States and races
//! - The claim's transaction is open while its batch is published, and ends with the settle.
//! - The database has refused a settle before: this one is rehearsed first, see `rehearsal.rs`.
//! - The broker blocks publishers meanwhile: the rows are freed at once, and the publish is waited for all the
//!   same, on the connection it began on. Before they are freed the rows are noted as unsettled, so that no
//!   worker of this relay claims them between the end of the alarm and their confirms. What is
//!   confirmed is deleted in a transaction of its own, where nobody has locked it meanwhile.
//! - Some messages straggle: they are noted as unsettled before the settle, whose commit would make them
//!   claimable, and their late confirms are waited for elsewhere.
//! - Those confirms come before the settle is over, as they do where the path is slow rather than a queue stuck. They
//!   are kept until then: a locked row is neither deleted nor released.
//! - A target is resumed while a worker has messages in its hands that are to wait for it, withheld or not confirmed: the
//!   release skips their locked rows, and the settle would leave them to wait as long as the longest wait. So the
//!   worker looks after its settle, and releases them itself; a target that is resumed after that look finds the
//!   rows where they are.
//! - The relay ends in between: the server rolls back, and what was confirmed is published once more.

mod told;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::time::{Duration, Instant};

use postrider_core::{Failure, Message, Origin, Outcome, Patience, Reason, Scope, Seq};
use postrider_postgres::{Claim, Database, Error, Settled};
use prometheus::IntGauge;
use tracing::{debug, info};
use uuid::Uuid;

use crate::breakers::{OrderedSplit, Split};
use crate::broker::{Broker, Publish, Published};
use crate::late::{LateConfirms, release};
use crate::metrics::{Metrics, Phase};
use crate::rehearsal::NotSent;
use crate::settings::AfterDeadLetter;
use crate::shared::Shared;
use crate::suspects::{MOST_AT_ONCE, convicted};

/// How often a task that waits for a peer says that it is alive.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What a batch is delivered with.
pub(crate) struct Delivery<'a, B: Broker> {
    pub(crate) shared: &'a Shared,
    pub(crate) database: &'a Database,
    pub(crate) broker: &'a B,
    pub(crate) late: &'a LateConfirms<<B::Publisher as Publish>::Late>,
    pub(crate) patience: Patience,
    /// Whether what is sent is to find out about a suspended target.
    pub(crate) probing: bool,
    /// What becomes of a key whose head is given up.
    pub(crate) after_dead_letter: AfterDeadLetter,
    /// Says that the task is alive, every [`SIGN_OF_LIFE`] of a long wait.
    pub(crate) alive: &'a (dyn Fn() + Sync),
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Some of it is claimable again at once.
    pub(crate) again: bool,
    /// Some of it is claimable again at once and would fare the same at once: pause first.
    pub(crate) pause: bool,
    /// How the broker took what was sent.
    pub(crate) answer: Answer,
    /// What of an ordered claim left its place.
    pub(crate) settled: Vec<Seq>,
}

/// How an attempt to deliver a batch ended.
pub(crate) enum Attempt {
    /// Nothing was sent, and its rows are free.
    NotSent(NotSent),
    /// It was sent, and settled.
    Delivered(Delivered),
}

/// How the broker took what was sent of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// It confirmed everything.
    Confirmed,
    /// It took or judged each message by itself: no exchange, route or connection was at fault.
    Judged,
    /// An exchange, a route or the connection was at fault, or nobody knows.
    Faulty,
}

impl Answer {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            // Said of one that the others of its key have outcomes for.
            Outcome::Confirmed | Outcome::HeldBack => Self::Confirmed,
            Outcome::Failed(failure) => match (failure.scope, failure.reason) {
                (Scope::Message, Reason::ConnectionLost | Reason::EndsConnection) => Self::Faulty,
                (Scope::Message, _) => Self::Judged,
                (Scope::Route | Scope::Exchange | Scope::Broker, _) => Self::Faulty,
            },
        }
    }
}

impl<B: Broker> Delivery<'_, B> {
    /// Publishes `split`, which was claimed by `claim`, and settles it.
    ///
    /// # Errors
    /// When the database does not settle, and whatever was confirmed is published again; or when it does not answer before anything was sent.
    pub(crate) async fn deliver(
        &self,
        publisher: &mut B::Publisher,
        claim: Claim,
        split: &Split,
    ) -> Result<Attempt, Error> {
        let metrics = &self.shared.metrics;
        let claim = match self.rehearse(claim).await? {
            ControlFlow::Continue(claim) => claim,
            ControlFlow::Break(not_sent) => return Ok(Attempt::NotSent(not_sent)),
        };
        let Split {
            send,
            alone,
            ordered,
            ..
        } = split;
        let (send, alone) = send.split_at(send.len().saturating_sub(*alone));
        let _in_flight = InFlight::new(metrics, send.len() + alone.len());
        let claimed = Instant::now();
        let mut published = if send.is_empty() {
            Published {
                outcomes: Vec::new(),
                late: None,
            }
        } else {
            let mut publish = std::pin::pin!(publisher.publish(send, self.patience));
            tokio::select! {
                biased;
                published = &mut publish => published,
                () = self.broker.blocked() => {
                    let delivered = self.outlast_the_alarm(publish, claim, send, ordered, claimed).await;
                    return Ok(Attempt::Delivered(delivered));
                }
            }
        };
        (self.alive)();
        let took = claimed.elapsed();
        self.shared.observe(send, &published.outcomes, claimed);
        let settling = published
            .late
            .and_then(|late| self.late.wait_for(self.shared, late, send, ordered));
        let floor = self.shared.frontiers.floor();
        self.shared
            .suspects
            .observe(send.iter().zip(&published.outcomes), floor);
        let singly = self
            .publish_singly(alone, &stopped_keys(send, &published.outcomes))
            .await;
        // As when no second connection can be had.
        let nothing_alone = !alone.is_empty() && singly.first().is_some_and(is_unknown);
        self.shared
            .suspects
            .observe(alone.iter().zip(&singly), floor);
        published.outcomes.extend(singly);
        let send = &split.send;
        let answers = published.outcomes.iter().map(Answer::of);
        let answer = answers.max().unwrap_or(Answer::Confirmed);
        self.count_failures(&published.outcomes);
        let batch = self
            .shared
            .breakers
            .sort(split, published.outcomes, self.probing);
        let floor = self.shared.frontiers.floor();
        let apart = batch.apart.iter().copied();
        self.shared.ordered.send_one_by_one(apart, floor);
        let settle = Instant::now();
        let settlement = batch.settlement(&ordered.park, self.after_dead_letter);
        let settled = claim.settle(&settlement).await;
        let refused = |error: &Error| {
            if error.is_refusal() {
                let rehearsal = &self.shared.rehearsal;
                rehearsal.refused(settlement.seqs(), Instant::now());
            }
        };
        let not_moved = match settled.inspect_err(refused)? {
            Settled::Whole => None,
            Settled::NothingMoved(error) => Some(error),
        };
        drop(settling);
        metrics.took(Phase::Publish, took);
        metrics.took(Phase::Settle, settle.elapsed());
        metrics.published(batch.confirmed.iter().copied(), took);
        for target in self.shared.breakers.resumed_meanwhile(&batch.awaited) {
            release(self.shared, self.database, &target).await;
        }
        metrics
            .superseded_total
            .inc_by(batch.superseded.len() as u64);
        if batch.gone().any(is_ordered_head) {
            self.shared.ordered.raise_resuming();
        }
        let mut no_room = false;
        let mut settled = Vec::new();
        if let Some(error) = not_moved {
            // What could not be parked is met again by the next claim: at once, it would fail again at once.
            no_room = self.note_not_moved(&batch, &error) || !ordered.park.is_empty();
        } else {
            self.tell_of_failures(&batch);
            let withheld = split.withheld.iter().map(|(message, _)| message);
            let mut taken = send.iter().chain(withheld);
            if taken.any(|message| message.ordered.is_some()) || !ordered.park.is_empty() {
                settled.extend(settlement.seqs());
                // What is parked may have been sent: it stands for no other when it comes back.
                let parked: HashSet<Seq> = ordered.park.iter().copied().collect();
                let gone = settlement.seqs().filter(|seq| !parked.contains(seq));
                self.shared.ordered.forget(gone);
            }
        }
        Ok(Attempt::Delivered(Delivered {
            again: no_room || split.left || batch.left > 0 || !batch.in_doubt.is_empty(),
            pause: no_room || nothing_alone,
            answer,
            settled,
        }))
    }

    /// Publishes messages under suspicion, each alone on a connection that ends over it if it is the culprit. Not one whose key
    /// is among the `stopped`: an earlier message of it was not delivered. Of one key there is one at most.
    async fn publish_singly(&self, messages: &[Message], stopped: &HashSet<&str>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut publisher = None;
        for message in messages.iter().take(MOST_AT_ONCE) {
            (self.alive)();
            if message.key().is_some_and(|key| stopped.contains(key)) {
                outcomes.push(Outcome::HeldBack);
                continue;
            }
            if publisher.is_none() {
                publisher = self.broker.isolated().await;
            }
            let Some(isolated) = &mut publisher else {
                break;
            };
            let message = std::slice::from_ref(message);
            let began = Instant::now();
            let publish = isolated.publish(message, self.patience);
            // While the broker blocks publishers no clock of the publisher runs, and no claim may stay open.
            let published = tokio::select! {
                published = tokio::time::timeout(self.patience.confirm_timeout * 2, publish) => published.ok(),
                () = self.broker.blocked() => None,
            };
            let Some(outcome) = published.and_then(|mut p| p.outcomes.pop()) else {
                break;
            };
            let outcome = convicted(outcome);
            let reason = match &outcome {
                Outcome::Failed(failure) => Some(failure.reason),
                Outcome::Confirmed | Outcome::HeldBack => None,
            };
            self.shared
                .observe(message, std::slice::from_ref(&outcome), began);
            outcomes.push(outcome);
            match reason {
                Some(Reason::ConnectionLost | Reason::EndsConnection) => publisher = None,
                // The claim is open: a second one like this might be one too many for the database's patience.
                Some(Reason::ConfirmTimeout) => break,
                _ => {}
            }
        }
        outcomes.resize_with(messages.len(), || {
            let detail = "not sent: it waits to be published alone, because the broker ended a connection over one of a batch";
            Failure::new(Reason::ConnectionLost, detail).into()
        });
        outcomes
    }

    /// Frees the rows and waits for the confirms that come when the alarm ends.
    async fn outlast_the_alarm(
        &self,
        mut publish: Pin<&mut impl Future<Output = Published<<B::Publisher as Publish>::Late>>>,
        claim: Claim,
        send: &[Message],
        ordered: &OrderedSplit,
        claimed: Instant,
    ) -> Delivered {
        let metrics = &self.shared.metrics;
        let stood_for = |message: &Message| ordered.superseded.get(&message.seq);
        let seqs = send.iter().map(|message| message.seq);
        let others = send.iter().filter_map(stood_for).flatten();
        let seqs = seqs.chain(others.map(|(seq, _)| *seq)).collect();
        let fresh = send.iter().filter(|message| message.is_fresh());
        let lowest_fresh = fresh.map(|message| message.seq).min();
        let _held = self.shared.unsettled.hold(seqs, lowest_fresh);
        info!(
            event = "claim_released",
            messages = send.len(),
            "the broker blocks publishers: the rows in flight are free, their confirms are waited for"
        );
        if let Err(error) = claim.release().await {
            debug!(%error, "the claim was not released in good order; its connection is closed instead");
        }
        let published = loop {
            tokio::select! {
                published = &mut publish => break published,
                () = tokio::time::sleep(SIGN_OF_LIFE) => (self.alive)(),
            }
        };
        self.shared.observe(send, &published.outcomes, claimed);
        if let Some(late) = published.late {
            // The claim is over.
            drop(self.late.wait_for(self.shared, late, send, ordered));
        }
        let floor = self.shared.frontiers.floor();
        let with_outcomes = || send.iter().zip(&published.outcomes);
        self.shared.suspects.observe(with_outcomes(), floor);
        // What may have been sent stands for no later one, and nothing for it.
        let in_doubt = with_outcomes()
            .filter(|(message, outcome)| {
                message.ordered.is_some() && matches!(outcome, Outcome::Failed(_))
            })
            .flat_map(|(message, _)| {
                let others = stood_for(message).into_iter().flatten();
                std::iter::once(message.seq).chain(others.map(|(seq, _)| *seq))
            });
        self.shared.ordered.send_one_by_one(in_doubt, floor);
        self.count_failures(&published.outcomes);
        let confirmed: Vec<&Message> = send
            .iter()
            .zip(&published.outcomes)
            .filter(|(_, outcome)| **outcome == Outcome::Confirmed)
            .map(|(message, _)| message)
            .collect();
        let rows: Vec<(Seq, Uuid)> = confirmed
            .iter()
            .map(|message| (message.seq, message.id))
            .chain(
                confirmed
                    .iter()
                    .filter_map(|message| stood_for(message))
                    .flatten()
                    .copied(),
            )
            .collect();
        match self.database.delete_confirmed(&rows).await {
            Ok(deleted) => {
                self.shared.ordered.forget(rows.iter().map(|(seq, _)| *seq));
                if confirmed.iter().any(|message| is_ordered_head(message)) {
                    self.shared.ordered.raise_resuming();
                }
                metrics.superseded_late(deleted, confirmed.len());
                metrics.published(confirmed.into_iter(), claimed.elapsed());
                info!(
                    event = "confirmed_late",
                    messages = rows.len(),
                    deleted,
                    "what was in flight when the broker began to block was confirmed"
                );
            }
            Err(error) => {
                debug!(%error, "late confirms could not be settled; the messages are published again");
            }
        }
        Delivered {
            again: true,
            pause: false,
            answer: Answer::Faulty,
            settled: Vec::new(),
        }
    }
}

/// The keys of which a message was sent and not confirmed.
fn stopped_keys<'a>(sent: &'a [Message], outcomes: &[Outcome]) -> HashSet<&'a str> {
    sent.iter()
        .zip(outcomes)
        .filter(|(_, outcome)| **outcome != Outcome::Confirmed)
        .filter_map(|(message, _)| message.key())
        .collect()
}

/// Whether others of its key may wait for it to be gone.
fn is_ordered_head(message: &Message) -> bool {
    message.ordered.is_some() && message.origin == Origin::Deferred
}

fn is_unknown(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(failure) if failure.scope == Scope::Broker)
}

/// Counts messages as in flight for as long as it lives, also when the cycle is dropped.
struct InFlight {
    gauge: IntGauge,
    messages: i64,
}

impl InFlight {
    fn new(metrics: &Metrics, messages: usize) -> Self {
        let gauge = metrics.in_flight_messages.clone();
        let messages = i64::try_from(messages).unwrap_or(i64::MAX);
        gauge.add(messages);
        Self { gauge, messages }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.sub(self.messages);
    }
}
