//! How long a publish is waited for.

use std::time::Duration;

/// How long a batch may take. Neither time runs while the broker blocks the connection (a memory or
/// disk alarm): both start anew when it accepts messages again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Bounds the wait for the confirms of a batch.
    pub confirm_timeout: Duration,
    /// How long nothing may happen, while the broker has confirmed other messages of the batch, before
    /// those still unconfirmed are given up on. Ends the wait up to a quarter of a second later, and
    /// later still behind a large message that is being written. Counts for at most half of `confirm_timeout`.
    pub straggler_timeout: Duration,
}
