//! What is kept of one publish until its span is sent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postrider_core::{Failure, Message, Payload, Reason};
use uuid::Uuid;

use crate::inserting::Inserting;

/// One publish that is to be told. Small: thousands of them may wait.
#[derive(Debug)]
pub(crate) struct Publish {
    /// Chosen once, so that a span which arrives twice is one.
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    pub(crate) inserting: Option<Inserting>,
    pub(crate) times: Times,
    pub(crate) seq: i64,
    pub(crate) id: Uuid,
    pub(crate) exchange: Box<str>,
    pub(crate) routing_key: Box<str>,
    pub(crate) correlation_id: Option<Box<str>>,
    pub(crate) body_bytes: u64,
    pub(crate) attempts: u32,
    pub(crate) failure: Option<(Reason, Box<str>)>,
}

/// Begin and end, in nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) began: u64,
    pub(crate) ended: u64,
}

impl Times {
    /// Of something that ends now. A clock that is set meanwhile changes no duration.
    pub(crate) fn up_to_now(took: Duration) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            began: nanos(now.saturating_sub(took)),
            ended: nanos(now),
        }
    }
}

impl Publish {
    pub(crate) fn of(
        message: &Message,
        failure: Option<&Failure>,
        inserting: Option<Inserting>,
        times: Times,
    ) -> Self {
        Self {
            trace_id: not_zero(),
            span_id: not_zero(),
            inserting,
            times,
            seq: message.seq.0,
            id: message.id,
            exchange: message.exchange.as_str().into(),
            routing_key: message.routing_key.as_str().into(),
            correlation_id: message.properties.correlation_id.as_deref().map(Into::into),
            body_bytes: match &message.payload {
                Payload::Fetched(bytes) => bytes.len() as u64,
                Payload::TooLarge { bytes } => *bytes,
            },
            attempts: message.attempts,
            failure: failure.map(|failure| (failure.reason, failure.detail.as_str().into())),
        }
    }
}

/// A random id. All zeros mean that there is none.
fn not_zero<const N: usize>() -> [u8; N] {
    let mut id = [0; N];
    while id == [0; N] {
        rand::fill(&mut id);
    }
    id
}
