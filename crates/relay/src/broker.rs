//! The seam between the loop and the broker: messages in, outcomes out.
//!
//! It exists so that a scripted broker can lose or delay confirms in tests, and so that another
//! protocol fits behind it. It knows nothing of AMQP.

use std::time::Duration;

use postrider_core::{Message, Outcome};

/// Publishes batches for one worker at a time.
pub trait Publish: Send {
    /// Publishes the batch and waits for what becomes of each message, at most `timeout`.
    ///
    /// Returns one outcome a message, in the order of the batch. [`Outcome::Confirmed`] means that
    /// the broker has taken responsibility for the message and routed it to at least one queue;
    /// the row will be deleted on that word alone.
    fn publish(
        &mut self,
        batch: &[Message],
        timeout: Duration,
    ) -> impl Future<Output = Vec<Outcome>> + Send;
}

/// A broker that may be away, and comes back by itself.
pub trait Broker: Send + Sync + 'static {
    /// What a worker publishes through.
    type Publisher: Publish;

    /// Waits until the broker takes messages; then gives back `held` if it still works, or else a
    /// new publisher. Pends while the broker is away or blocks publishers, however long that is;
    /// may be dropped at any time.
    fn ready(&self, held: Option<Self::Publisher>) -> impl Future<Output = Self::Publisher> + Send;
}
