//! The message: one row of the outbox, as the relay carries it from the claim to the settle.

use std::time::Duration;

use uuid::Uuid;

use crate::Headers;

/// The place of a message in the outbox table: the row's `seq`, unique within one outbox.
///
/// This, and never the id, names a row inside the relay: two rows may carry one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub i64);

impl std::fmt::Display for Seq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One claimed outbox row with everything that goes on the wire.
///
/// The payload is left out of the `Debug` output: it belongs to the application and may be secret.
#[derive(Clone)]
pub struct Message {
    /// The row's place in the table.
    pub seq: Seq,
    /// What consumers deduplicate on; sent as `message-id`. Unique by convention only.
    pub id: Uuid,
    /// The exchange, `""` for RabbitMQ's default exchange.
    pub exchange: String,
    /// The routing key, at most 255 bytes.
    pub routing_key: String,
    /// The body, byte for byte as the application wrote it.
    pub payload: Payload,
    /// The header table; empty when the row has none.
    pub headers: Headers,
    /// The other AMQP properties of the row.
    pub properties: Properties,
    /// When the row was inserted, in whole seconds since the Unix epoch; sent as `timestamp`.
    pub created_at_unix: u64,
    /// How long the message could have been published already when it was claimed, by the database's
    /// clock: since its insert, or since the time it was deferred to.
    pub age_at_claim: Duration,
    /// How many publishes of this message failed by its own fault.
    pub attempts: u32,
    /// The table the row was claimed from.
    pub origin: Origin,
    /// What it is kept in order with; `None` when it has no ordering key.
    pub ordered: Option<Ordered>,
}

/// What a message with an ordering key carries besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    /// Messages of one key are first delivered in the order of their [`Seq`].
    pub key: String,
    /// Whether a later message of the same key, exchange and routing key may take its place.
    pub supersede: bool,
}

impl Message {
    /// The ordering key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.ordered.as_ref().map(|ordered| ordered.key.as_str())
    }

    /// Whether it is claimed from the frontier on: it was never deferred, and has no key.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.origin == Origin::Messages && self.ordered.is_none()
    }
}

/// The table a row was claimed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `messages`: what can go now, written once.
    Messages,
    /// `deferred`: what had to wait for a time that has come.
    Deferred,
    /// `parked`: what had to wait for an earlier message of its ordering key.
    Parked,
}

/// The AMQP properties an application may set on a row; `None` is not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// Encoding of the payload, such as `gzip`.
    pub content_encoding: Option<String>,
    /// The application's name for the kind of message.
    pub kind: Option<String>,
    /// What this message answers.
    pub correlation_id: Option<String>,
    /// The queue an answer goes to.
    pub reply_to: Option<String>,
    /// The application that wrote the row.
    pub app_id: Option<String>,
    /// 0 to 255.
    pub priority: Option<u8>,
    /// Time to live in the queue, in milliseconds.
    pub expiration_ms: Option<u64>,
}

/// What the claim fetched of the payload.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// The bytes to publish.
    Fetched(Vec<u8>),
    /// Larger than `max_message_bytes`: it stays in the database, so that one row cannot exhaust
    /// the relay's memory, and must not be published.
    TooLarge {
        /// Size of the payload in bytes.
        bytes: u64,
    },
}

/// How many bytes of payload one transaction moves from table to table, and one payload more: the server reads and writes what it moves, and
/// a statement that exceeds its time would be tried again, and exceed it again.
pub const MOST_MOVED_BYTES: u64 = 64 << 20;

impl Payload {
    /// How many bytes of memory the payload takes here: 0 when it was not fetched.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        match self {
            Self::Fetched(bytes) => bytes.len() as u64,
            Self::TooLarge { .. } => 0,
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("seq", &self.seq)
            .field("id", &self.id)
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .finish_non_exhaustive()
    }
}
