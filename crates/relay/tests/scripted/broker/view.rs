//! The connection, as everybody sees it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How the connection is.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(super) away: bool,
    pub(super) alarms: usize,
    pub(super) generation: u64,
    pub(super) proven: Arc<AtomicBool>,
}

impl View {
    pub(super) fn is_up(&self) -> bool {
        !self.away && self.alarms == 0
    }

    pub(super) fn is_blocked(&self) -> bool {
        !self.away && self.alarms > 0
    }

    pub(super) fn end(&mut self) {
        self.generation += 1;
        self.proven = Arc::default();
    }
}
