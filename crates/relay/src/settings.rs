//! What the loop needs to know, already validated.

use std::sync::Arc;
use std::time::Duration;

use postrider_core::{Patience, RetryPolicy, UnroutablePolicies};

use crate::observer::Observer;

/// The settings of one relay; see `config/postrider.toml` for the reason behind each default.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of this relay among those on the same outbox.
    pub name: String,
    /// How many workers claim, publish and settle at the same time, each with a database
    /// connection and an AMQP channel of its own. At least 1.
    pub workers: usize,
    /// How long one batch may wait for the broker's confirms. The database's sessions are bounded by it, and so is
    /// how long a worker may stand still: it stays what it was when they began.
    pub confirm_timeout: Duration,
    /// Whether the relay listens for the notifications of the outbox's trigger.
    pub notify: bool,
    /// Who is told of each publish, if anybody is.
    pub observer: Option<Arc<dyn Observer>>,
    /// What can change while the relay runs.
    pub reloadable: Reloadable,
}

/// What a running relay takes over anew, by [`Reloader::apply`](crate::Reloader::apply).
#[derive(Debug, Clone, PartialEq)]
pub struct Reloadable {
    /// The most messages of one claim. At least 1.
    pub batch_rows: u32,
    /// The most payload bytes of one claim; a single message may be larger, up to
    /// `max_message_bytes`.
    pub batch_bytes: u64,
    /// The largest payload that is published, in bytes.
    pub max_message_bytes: u64,
    /// How often the outbox is looked at when nothing wakes the relay; at most half a minute.
    pub poll_interval: Duration,
    /// How long nothing may happen, while others of a batch are confirmed, before the rest is given up on.
    pub straggler_timeout: Duration,
    /// How long a stopping relay goes on with what is in flight.
    pub shutdown_grace: Duration,
    /// From how many messages a second on the relay looks by itself all the time, and producers need not notify it.
    /// Until they are half as many.
    pub quiet_above: u32,
    /// How often lag and backlog are measured.
    pub sample_interval: Duration,
    /// How far the backlog, deferred messages and dead letters are counted.
    pub backlog_limit: u64,
    /// How often and after which waits a failed message is tried again.
    pub retry: RetryPolicy,
    /// What is done with messages that no queue is bound for.
    pub unroutable: UnroutablePolicies,
    /// What holds for messages with an ordering key.
    pub ordering: Ordering,
    /// After how long dead letters are deleted; never when not given. The relay uses one database connection more
    /// where it is.
    pub dead_letter_retention: Option<Duration>,
}

/// How messages with an ordering key are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordering {
    /// Whether they are claimed only below the point under which no transaction can still commit.
    pub horizon: bool,
    /// What becomes of a key whose head was given up.
    pub after_dead_letter: AfterDeadLetter,
}

/// What becomes of a key when its first message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AfterDeadLetter {
    /// It waits until a person has retried or discarded the dead letter.
    Block,
    /// The next message goes.
    Continue,
}

impl Settings {
    /// How long a worker may take for one turn of its loop before it counts as stuck: a batch waits
    /// at most `confirm_timeout` for the broker, and a minute covers the database's own timeouts.
    #[must_use]
    pub fn stuck_after(&self) -> Duration {
        self.confirm_timeout + Duration::from_secs(60)
    }
}

impl Reloadable {
    /// How long an idle worker of so many sleeps when nothing wakes it: the workers take turns, so that
    /// together they look once every `poll_interval`; but none sleeps longer than half a minute, so that
    /// a worker without a cycle for [`Settings::stuck_after`] is one that stands still.
    #[must_use]
    pub fn idle_sleep(&self, workers: usize) -> Duration {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        self.poll_interval
            .saturating_mul(workers)
            .min(Duration::from_secs(30))
    }

    /// How long a publish is waited for.
    #[must_use]
    pub fn patience(&self, confirm_timeout: Duration) -> Patience {
        Patience {
            confirm_timeout,
            straggler_timeout: self.straggler_timeout,
        }
    }
}
