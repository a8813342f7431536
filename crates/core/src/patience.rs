//! How long a publish is waited for.

use std::time::Duration;

/// How long a batch waits for the broker's confirms. Neither time runs while the broker blocks publishers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For all of them together.
    pub confirm_timeout: Duration,
    /// For the last of them, once others were confirmed and nothing more is heard: their queue is slow or stuck,
    /// and the others must not wait for it.
    pub straggler_timeout: Duration,
}
