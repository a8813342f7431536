//! What is logged and counted of a batch that was not confirmed whole.

use std::time::Instant;

use postrider_core::{Message, Outcome, Rest};
use postrider_postgres::Error;
use tracing::{debug, error, warn};

use super::Delivery;
use crate::broker::Broker;
use crate::disposal::Batch;

impl<B: Broker> Delivery<'_, B> {
    pub(super) fn count_failures(&self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            if let Outcome::Failed(failure) = outcome {
                self.shared.metrics.failed(failure.reason);
            }
        }
    }

    /// Logs what was not confirmed, and counts what became of it, after it was settled.
    pub(super) fn tell_of_failures(&self, batch: &Batch<'_>) {
        let metrics = &self.shared.metrics;
        for (message, failure) in &batch.accepted {
            debug!(
                event = "accepted_as_sent",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                reason = failure.reason.as_str(),
                "no queue took the message; it is taken as sent by policy"
            );
        }
        for (message, failure, again) in &batch.retried {
            metrics.retried(failure.reason);
            warn!(
                event = "publish_failed",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                ordering_key = message.key(),
                reason = failure.reason.as_str(),
                attempt = again.attempts,
                error = failure.detail,
                retry_in_s = again.after.as_secs_f64(),
                "the broker did not take the message; it is deferred"
            );
        }
        for (message, failure, attempts) in &batch.given_up {
            metrics.dead_lettered(failure.reason);
            error!(
                event = "dead_lettered",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                ordering_key = message.key(),
                reason = failure.reason.as_str(),
                attempt = attempts,
                error = failure.detail,
                "given up on the message: see `postrider dead-letters show`"
            );
        }
        for (message, failure, after) in &batch.postponed {
            debug!(
                event = "postponed",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                ordering_key = message.key(),
                reason = failure.reason.as_str(),
                retry_in_s = after.as_secs_f64(),
                "deferred until its exchange or route takes messages again; no attempt is charged"
            );
        }
        for (message, failure) in &batch.in_doubt {
            debug!(
                event = "outcome_unknown",
                message_id = %message.id,
                seq = message.seq.0,
                reason = failure.reason.as_str(),
                "no confirm"
            );
        }
        if let Some((_, failure)) = batch.in_doubt.first() {
            warn!(
                event = "outcome_unknown",
                messages = batch.in_doubt.len(),
                reason = failure.reason.as_str(),
                error = failure.detail,
                "no confirm for these messages; they stay in the outbox and are published again"
            );
        }
    }

    /// Rows that could be put neither into the deferred messages nor into the dead letters rest where they
    /// are: claimed again at once, they would be published again at once. Says whether there was no room to note
    /// one.
    pub(super) fn note_not_moved(&self, batch: &Batch<'_>, error: &Error) -> bool {
        let now = Instant::now();
        let mut no_room = false;
        let retried = batch.retried.iter().map(|(message, ..)| *message);
        let given_up = batch.given_up.iter().map(|(message, ..)| *message);
        let postponed = batch.postponed.iter().map(|(message, ..)| *message);
        let moved: Vec<&Message> = retried.chain(given_up).chain(postponed).collect();
        for message in &moved {
            // One of a key that was left out would be passed by the next: it is tried again, after a pause.
            no_room |= message.ordered.is_some()
                || self.shared.resting().rest(message.seq, now) == Rest::NoRoom;
        }
        error!(
            event = "not_moved",
            messages = moved.len(),
            first_seq = moved.first().map(|message| message.seq.0),
            %error,
            "messages that failed could not be deferred or given up; they stay where they are and are tried again"
        );
        no_room
    }
}
