//! How a blocked key and the messages of a key are shown.

use std::time::{Duration, SystemTime};

use postrider_postgres::{BlockedKey, Head, HeadMessage, KeyMessage, KeyState, Schema};
use serde::Serialize;
use uuid::Uuid;

use super::literal::literal;
use crate::table::{coarse, name, timestamp};

/// For how long the key has been blocked.
pub(super) fn blocked_for(key: &BlockedKey, now: SystemTime) -> Duration {
    now.duration_since(key.blocked_at).unwrap_or_default()
}

/// What happens next, in a few words.
pub(super) fn next(head: &Head, now: SystemTime) -> String {
    match head {
        Head::Deferred { due_at, .. } => match due_at.duration_since(now) {
            Ok(wait) => format!("tried again in {}", coarse(wait)),
            Err(_) => "tried again now".to_owned(),
        },
        Head::DeadLetter { message } => {
            format!(
                "a person decides: dead-letters retry|discard {}",
                message.id
            )
        }
        Head::Resuming => "going out".to_owned(),
        Head::Missing { .. } => "nothing: its message is gone, see keys show".to_owned(),
    }
}

/// The same, with what there is to do in the outbox of this schema.
pub(super) fn advice(head: &Head, key: &str, schema: &Schema, now: SystemTime) -> String {
    match head {
        Head::Deferred { message, .. } => format!(
            "{}; mend what the reason says, then `postrider deferred release {}` to save the wait",
            next(head, now),
            message.id
        ),
        Head::DeadLetter { message } => format!(
            "a person decides: `postrider dead-letters retry {0}` sends it again, and then what is parked; \
             `postrider dead-letters discard {0}` goes on without it",
            message.id
        ),
        Head::Resuming => "nothing holds it back: what is parked is going out, in order".to_owned(),
        Head::Missing { seq } => format!(
            "nothing by itself: the message (seq {seq}) is in no table, it was taken away while triggers were off. As the outbox's owner: \
             UPDATE {schema}.blocked_keys SET head_seq = NULL WHERE ordering_key = {}",
            literal(key)
        ),
    }
}

/// A blocked key, in JSON.
#[derive(Debug, Serialize)]
pub(super) struct Key {
    key: String,
    blocked_at: String,
    blocked_seconds: f64,
    /// The table of the message that holds it back; null once nothing does.
    waits_in: Option<&'static str>,
    head: Option<HeadShown>,
    /// `retry`, `person`, `going_out` or `lost`.
    next: &'static str,
    parked: u64,
}

#[derive(Debug, Serialize)]
struct HeadShown {
    id: Uuid,
    seq: i64,
    exchange: String,
    routing_key: String,
    attempts: u32,
    reason: Option<String>,
    error: Option<String>,
    due_at: Option<String>,
}

impl Key {
    /// What is known of it at this time.
    pub(super) fn new(key: BlockedKey, now: SystemTime) -> Self {
        let blocked_seconds = blocked_for(&key, now).as_secs_f64();
        let shown = |message: HeadMessage, due_at: Option<SystemTime>| HeadShown {
            id: message.id,
            seq: message.seq.0,
            exchange: message.exchange,
            routing_key: message.routing_key,
            attempts: message.attempts,
            reason: message.reason,
            error: message.error,
            due_at: due_at.map(timestamp),
        };
        let (waits_in, head, next) = match key.head {
            Head::Deferred { message, due_at } => (
                Some("deferred"),
                Some(shown(message, Some(due_at))),
                "retry",
            ),
            Head::DeadLetter { message } => {
                (Some("dead_letters"), Some(shown(message, None)), "person")
            }
            Head::Resuming => (None, None, "going_out"),
            Head::Missing { .. } => (None, None, "lost"),
        };
        Self {
            key: key.key,
            blocked_at: timestamp(key.blocked_at),
            blocked_seconds,
            waits_in,
            head,
            next,
            parked: key.parked,
        }
    }
}

/// A message of a key that waits, in JSON.
#[derive(Debug, Serialize)]
pub(super) struct Waiting {
    seq: i64,
    id: Uuid,
    waits_in: &'static str,
    exchange: String,
    routing_key: String,
    created_at: String,
    age_seconds: f64,
}

impl Waiting {
    fn new(message: KeyMessage, waits_in: &'static str, now: SystemTime) -> Self {
        let age = now.duration_since(message.created_at).unwrap_or_default();
        Self {
            seq: message.seq.0,
            id: message.id,
            waits_in,
            exchange: message.exchange,
            routing_key: message.routing_key,
            created_at: timestamp(message.created_at),
            age_seconds: age.as_secs_f64(),
        }
    }

    /// As a row of a table.
    pub(super) fn cells(&self) -> Vec<String> {
        vec![
            self.seq.to_string(),
            self.id.to_string(),
            self.waits_in.to_owned(),
            name(&self.exchange),
            name(&self.routing_key),
            coarse(Duration::try_from_secs_f64(self.age_seconds).unwrap_or_default()),
        ]
    }
}

/// The first messages of all tables in their order, and whether there are more. One that moved while the tables were read is
/// shown once.
pub(super) fn in_order(state: KeyState, limit: u32, now: SystemTime) -> (Vec<Waiting>, bool) {
    let mut all: Vec<Waiting> = [
        ("messages", state.messages),
        ("deferred", state.deferred),
        ("dead_letters", state.dead_letters),
        ("parked", state.parked),
    ]
    .into_iter()
    .flat_map(|(table, messages)| {
        messages
            .into_iter()
            .map(move |message| Waiting::new(message, table, now))
    })
    .collect();
    all.sort_by_key(|message| message.seq);
    all.dedup_by_key(|message| message.seq);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = all.len() > limit;
    all.truncate(limit);
    (all, more)
}

#[cfg(test)]
mod tests {
    use postrider_core::Seq;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn message(seq: i64) -> KeyMessage {
        KeyMessage {
            seq: Seq(seq),
            id: Uuid::from_u128(u128::try_from(seq).unwrap()),
            exchange: String::new(),
            routing_key: "a".to_owned(),
            created_at: NOW,
        }
    }

    #[test]
    fn the_messages_of_all_tables_are_one_list_in_order_without_repeats() {
        let state = KeyState {
            blocked: None,
            messages: vec![message(5), message(7)],
            deferred: vec![message(2)],
            dead_letters: vec![],
            parked: vec![message(3), message(5)],
        };
        let (shown, more) = in_order(state.clone(), 3, NOW);
        let seqs: Vec<i64> = shown.iter().map(|message| message.seq).collect();
        assert_eq!((seqs, more), (vec![2, 3, 5], true));
        let (shown, more) = in_order(state, 4, NOW);
        assert_eq!((shown.len(), more), (4, false));
    }

    fn head(id: u128) -> HeadMessage {
        HeadMessage {
            seq: Seq(1),
            id: Uuid::from_u128(id),
            exchange: "shop".to_owned(),
            routing_key: "a".to_owned(),
            attempts: 2,
            reason: Some("nacked".to_owned()),
            error: None,
        }
    }

    #[test]
    fn what_to_do_names_the_command_and_the_message() {
        let dead = Head::DeadLetter { message: head(7) };
        let id = Uuid::from_u128(7);
        assert!(next(&dead, NOW).ends_with(&id.to_string()));
        let schema = Schema::new("billing").unwrap();
        let said = advice(&dead, "k", &schema, NOW);
        for verb in ["retry", "discard"] {
            assert!(
                said.contains(&format!("dead-letters {verb} {id}")),
                "{said}"
            );
        }
        let due = |due_at| Head::Deferred {
            message: head(7),
            due_at,
        };
        let later = due(NOW + Duration::from_secs(250));
        assert_eq!(next(&later, NOW), "tried again in 4m 10s");
        assert!(advice(&later, "k", &schema, NOW).contains(&format!("deferred release {id}")));
        assert_eq!(
            next(&due(NOW - Duration::from_secs(1)), NOW),
            "tried again now"
        );
        let said = advice(&Head::Missing { seq: Seq(9) }, "it's\\", &schema, NOW);
        let statement =
            "UPDATE billing.blocked_keys SET head_seq = NULL WHERE ordering_key = E'it''s\\\\'";
        assert!(
            said.contains("seq 9") && said.ends_with(statement),
            "{said}"
        );
    }
}
