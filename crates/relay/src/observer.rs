//! Who is told of each publish, beside metrics and log.

use std::fmt;
use std::time::Duration;

use postrider_core::{Message, Outcome};

/// Is told of every batch that was published, once its outcomes are known and before it is settled.
///
/// Called by the tasks that deliver, which wait for it: it must neither block nor wait for anybody, and what it has to
/// do with the batch beyond a look it has to do elsewhere.
pub trait Observer: fmt::Debug + Send + Sync {
    /// `outcomes` are those of `sent`, in its order; where they are fewer, the rest was not sent. The batch went out
    /// `took` ago.
    ///
    /// Not told is what was in flight when the relay gave it up, and what is confirmed after its batch was settled.
    fn published(&self, sent: &[Message], outcomes: &[Outcome], took: Duration);
}
