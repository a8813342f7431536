//! What became of one publish, and the one set of reasons that metrics, logs and tables use.

use std::fmt;

/// What became of one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// RabbitMQ confirmed the message and routed it to at least one queue: the row may be deleted.
    Confirmed,
    /// The message did not get through, or nobody can tell whether it did: the row stays.
    Failed(Failure),
    /// An earlier message of its ordering key is not confirmed: the row stays where it is. It was not sent, unless several of one key
    /// may be in flight: then it may have been, behind one that was refused.
    HeldBack,
}

/// What has become certain of messages of a batch that were given up on, by their positions in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LateNews {
    /// Confirmed, as certainly as [`Outcome::Confirmed`] has it.
    pub confirmed: Vec<usize>,
    /// Nothing that was sent of them will be confirmed any more: refused, come back, or what they were sent on has ended.
    pub lost: Vec<usize>,
}

/// Why a message was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The class, from the closed set.
    pub reason: Reason,
    /// Whom it concerns besides this message.
    pub scope: Scope,
    /// What the broker or the relay said, for people.
    pub detail: String,
}

impl Failure {
    /// A failure of this class with what was said about it, of the usual scope (see [`Reason::scope`]).
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            scope: reason.scope(),
            detail: detail.into(),
        }
    }

    /// The same failure, known to concern others than it usually does.
    #[must_use]
    pub fn with_scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }
}

/// Whom a failure concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This message alone: another one to the same place may well get through.
    Message,
    /// Every message with this exchange and routing key.
    Route,
    /// Every message to this exchange.
    Exchange,
    /// The connection or the broker: nothing can be said about the message.
    Broker,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The classes of failure. Their names are part of the surface: metric labels, log fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Returned by the broker: no queue is bound for this exchange and routing key.
    Unroutable,
    /// Negatively acknowledged: a full queue with `reject-publish`, or an error inside the broker.
    Nacked,
    /// The exchange does not exist (404).
    ExchangeMissing,
    /// The broker's user may not write to the exchange or the topic (403).
    Forbidden,
    /// Larger than `max_message_bytes`, or than the broker's own limit (406).
    TooLarge,
    /// Cannot be put into AMQP frames: headers beyond the frame, a property the broker refuses.
    NotEncodable,
    /// The broker ended a connection on which nothing but this message was sent, with an error of its own or over what it could not read. Who is at
    /// fault is not known for sure: a broker that is ill does so over any message.
    EndsConnection,
    /// No confirm within the timeout: the outcome is unknown.
    ConfirmTimeout,
    /// The connection ended before the confirm: the outcome is unknown.
    ConnectionLost,
}

impl Reason {
    /// Every reason, in the order of the documentation; counters exist for each from the start.
    pub const ALL: [Self; 9] = [
        Self::Unroutable,
        Self::Nacked,
        Self::ExchangeMissing,
        Self::Forbidden,
        Self::TooLarge,
        Self::NotEncodable,
        Self::EndsConnection,
        Self::ConfirmTimeout,
        Self::ConnectionLost,
    ];

    /// The name used in metrics, logs and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unroutable => "unroutable",
            Self::Nacked => "nacked",
            Self::ExchangeMissing => "exchange_missing",
            Self::Forbidden => "forbidden",
            Self::TooLarge => "too_large",
            Self::NotEncodable => "not_encodable",
            Self::EndsConnection => "ends_connection",
            Self::ConfirmTimeout => "confirm_timeout",
            Self::ConnectionLost => "connection_lost",
        }
    }

    /// Whom a failure of this class concerns where nothing else is known.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::Unroutable | Self::TooLarge | Self::NotEncodable | Self::EndsConnection => {
                Scope::Message
            }
            Self::Nacked => Scope::Route,
            Self::ExchangeMissing | Self::Forbidden => Scope::Exchange,
            Self::ConfirmTimeout | Self::ConnectionLost => Scope::Broker,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
