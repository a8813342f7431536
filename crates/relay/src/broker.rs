//! The seam between the loop and the broker: messages in, outcomes out.
//!
//! It exists so that a scripted broker can lose or delay confirms in tests, and so that another
//! protocol fits behind it. It knows nothing of AMQP.

use postrider_core::{LateNews, Message, Outcome, Patience};
use tokio_util::sync::CancellationToken;

use crate::progress::Progress;

/// What became of a batch.
#[derive(Debug)]
#[must_use = "a message that is not settled by its outcome is published again"]
pub struct Published<L> {
    /// One for each message, in the order of the batch. [`Outcome::Confirmed`] means that the broker has
    /// taken responsibility for the message and routed it to at least one queue; its row will be deleted on
    /// that word alone. [`Reason::ConnectionLost`](postrider_core::Reason) with
    /// [`Scope::Message`](postrider_core::Scope): the broker ended the connection with an error that one of the
    /// messages so marked brought about.
    ///
    /// Of the messages of one key, in the order of the batch: any number that are confirmed, then at most one that failed, then only such
    /// as are [`Outcome::HeldBack`]. The relay settles by that; see [`Publish::publish`].
    pub outcomes: Vec<Outcome>,
    /// Where messages without a confirm may still be confirmed.
    pub late: Option<L>,
}

/// Messages of a batch that were given up on and may be confirmed all the same, later.
pub trait Late: Send + 'static {
    /// Their positions in the batch.
    fn positions(&self) -> &[usize];

    /// Waits, however long, until it is certain of any of them whether it was confirmed, or that it will not be known any more; each is
    /// told once, as soon as it is certain, whatever is still silent. Gives back what is still waited for, if anything. Dropped, it lets go of that.
    fn next(self) -> impl Future<Output = (LateNews, Option<Self>)> + Send
    where
        Self: Sized;
}

/// Publishes batches for one worker at a time.
pub trait Publish: Send {
    /// What it leaves behind of a batch that was not confirmed whole.
    type Late: Late;

    /// Publishes the batch and waits for what becomes of each message, as long as `patience` says; longer only
    /// while the broker blocks publishers.
    ///
    /// A message with a key ([`Message::key`]) is not sent before the one before it in its key is confirmed; when that is not, it is
    /// not sent at all. Keys do not wait for each other, and messages without a key for nobody. An implementation may hold back what is left
    /// of a key, so that what is confirmed is settled soon, and may be told to have more than one of a key in flight: then a message may be
    /// confirmed although one before it failed, and order holds only while none does.
    fn publish(
        &mut self,
        batch: &[Message],
        patience: Patience,
    ) -> impl Future<Output = Published<Self::Late>> + Send;

    /// Whether the broker has answered a publish on this connection. Until then one message at a time is
    /// enough to lose: a new connection under an alarm takes what it is given and confirms nothing.
    fn is_proven(&self) -> bool;
}

/// A broker that may be away, and comes back by itself.
pub trait Broker: Clone + Send + Sync + 'static {
    /// What a worker publishes through.
    type Publisher: Publish;

    /// Keeps the connection, and reports how it is, until `stop`; then closes it.
    fn keep(
        &self,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send;

    /// Waits until the broker takes messages; then gives back `held` if it still works, or else a
    /// new publisher. Pends while the broker is away or blocks publishers, however long that is;
    /// may be dropped at any time.
    fn ready(&self, held: Option<Self::Publisher>) -> impl Future<Output = Self::Publisher> + Send;

    /// A publisher on a connection of its own, for messages one of which made the broker end a connection;
    /// dropped, its connection ends. `None` when there is none to be had now.
    fn isolated(&self) -> impl Future<Output = Option<Self::Publisher>> + Send;

    /// Waits until the broker blocks publishers because of an alarm.
    fn blocked(&self) -> impl Future<Output = ()> + Send;
}
