//! Keeps a worker from looking again and again for what others have.

use std::time::{Duration, Instant};

use postrider_core::Backoff;

/// How soon it is looked for again: each look costs a thousand rows read.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(250);

/// Closed for a while, and for longer and longer, whenever a look found work and nothing of it was to be had.
#[derive(Debug)]
pub(crate) struct Gate {
    closed_until: Option<Instant>,
    backoff: Backoff,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            closed_until: None,
            backoff: Backoff::new(SHORTEST, LONGEST),
        }
    }

    pub(crate) fn is_open(&self, now: Instant) -> bool {
        self.closed_until.is_none_or(|until| now >= until)
    }

    /// When it opens by itself, if it is closed.
    pub(crate) fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.closed_until.filter(|until| *until > now)
    }

    pub(crate) fn close(&mut self, now: Instant) {
        self.closed_until = now.checked_add(self.backoff.next(rand::random()));
    }

    /// There was something to be had, or there was nothing at all.
    pub(crate) fn open(&mut self) {
        self.closed_until = None;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_closed_for_at_most_a_quarter_of_a_second_and_opened_by_success() {
        let mut gate = Gate::new();
        let now = Instant::now();
        assert!(gate.is_open(now));
        for _ in 0..20 {
            gate.close(now);
        }
        assert!(!gate.is_open(now));
        let until = gate.opens_at(now).unwrap();
        assert!(until <= now + LONGEST, "{:?}", until - now);
        assert!(gate.is_open(until) && gate.opens_at(until).is_none());
        gate.open();
        assert!(gate.is_open(now));
    }
}
