//! A message for unit tests that look at nothing but its place.

use std::time::Duration;

use postrider_core::{Headers, Message, Origin, Payload, Properties, Seq};

pub(crate) fn message(seq: i64) -> Message {
    Message {
        seq: Seq(seq),
        id: uuid::Uuid::nil(),
        exchange: String::new(),
        routing_key: String::new(),
        payload: Payload::Fetched(Vec::new()),
        headers: Headers::default(),
        properties: Properties::default(),
        created_at_unix: 0,
        age_at_claim: Duration::ZERO,
        attempts: 0,
        origin: Origin::Messages,
        ordered: None,
    }
}
