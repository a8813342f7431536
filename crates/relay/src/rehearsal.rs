//! Whether the database lets go what is claimed is tried before it is sent, once it has refused that.
//!
//! # States and races
//! - The end of a claim was refused: its messages have been sent, once. From then on the end of every claim is rehearsed first, by all
//!   workers and the prober: what is refused then was not sent.
//! - All rows are refused alike, since a right or the table is gone: the worker waits as for any statement that the database refuses.
//! - One row is refused, by a foreign key or a trigger: a claim of several only shows that there is one, and the next ones are smaller. One
//!   that is refused by itself rests in memory, and others go on without it. If it has a key, what follows it in its key waits.
//! - Somebody makes the database refuse something between a rehearsal and the settle: that is as it was the first time.
//! - No row rests for a refusal any more, and for a while nothing was refused: nothing is rehearsed any more.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{Rest, Seq};
use postrider_postgres::{Claim, Error, ErrorKind};
use tracing::error;

use crate::broker::Broker;
use crate::delivery::{Delivered, Delivery};
use crate::shared::Shared;

/// For how long after a refusal, or after the end of a rest for one: workers are back by then, also those that wait for ten seconds because all is
/// refused. Each rehearsal has PostgreSQL delete everything twice.
const LASTS: Duration = Duration::from_secs(30);
/// A worker that has found a row which the database keeps goes on after this long: many of them are to be found soon, but where the database keeps
/// all there are, the log has a line for each.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether the end of claims is to be rehearsed, of one relay.
#[derive(Debug, Default)]
pub(crate) struct Rehearsal {
    until: Mutex<Option<Instant>>,
}

impl Rehearsal {
    /// The end of a claim failed, in earnest or in a rehearsal.
    pub(crate) fn failed(&self, error: &Error, now: Instant) {
        if error.is_refusal() {
            self.goes_on_after(now);
        }
    }

    /// A row that was refused rests until then.
    fn goes_on_after(&self, rest: Instant) {
        let mut until = self.until();
        *until = until.max(rest.checked_add(LASTS));
    }

    fn is_due(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl<B: Broker> Delivery<'_, B> {
    /// Rehearses the end of the claim if that is due: `Break` when nothing of it is to be sent, and its rows are free.
    ///
    /// # Errors
    /// When the database refuses all rows alike, or fails otherwise.
    pub(crate) async fn rehearse(
        &self,
        mut claim: Claim,
    ) -> Result<ControlFlow<Delivered, Claim>, Error> {
        let rehearsal = &self.shared.rehearsal;
        if !rehearsal.is_due(Instant::now()) {
            return Ok(ControlFlow::Continue(claim));
        }
        let Err(error) = claim.rehearse().await else {
            return Ok(ControlFlow::Continue(claim));
        };
        rehearsal.failed(&error, Instant::now());
        let is_of_rows = error.is_refusal() && error.kind() == ErrorKind::Query;
        let lone = claim.lone();
        if !is_of_rows || lone.is_some_and(|seq| !rests(self.shared, seq, &error)) {
            return Err(error);
        }
        claim.release().await?;
        Ok(ControlFlow::Break(Delivered::refused(lone.map(|_| PAUSE))))
    }
}

/// Leaves the row out of claims for a while, if there is room to note it.
fn rests(shared: &Shared, seq: Seq, error: &Error) -> bool {
    let now = Instant::now();
    let rest = shared.resting().rest(seq, now);
    if let Rest::For { pause, .. } = rest {
        shared.rehearsal.goes_on_after(now + pause);
        error!(
            event = "not_deletable",
            seq = seq.0,
            %error,
            retry_in_s = pause.as_secs_f64(),
            "the database does not let the message be deleted, so it is not sent; it stays where it is"
        );
    }
    rest != Rest::NoRoom
}

#[cfg(test)]
mod tests {
    use postrider_core::Resting;

    use super::*;

    #[test]
    fn ends_of_claims_are_rehearsed_for_a_while_after_a_refusal_and_not_after_an_outage() {
        let rehearsal = Rehearsal::default();
        let start = Instant::now();
        assert!(!rehearsal.is_due(start));
        rehearsal.failed(&Error::SessionEnded, start);
        assert!(!rehearsal.is_due(start));
        let refusal = Error::Settled {
            named: 2,
            settled: 1,
        };
        rehearsal.failed(&refusal, start);
        assert!(rehearsal.is_due(start));
        assert!(!rehearsal.is_due(start + LASTS));
        let rested = start + Resting::LONGEST;
        rehearsal.goes_on_after(rested);
        rehearsal.failed(&refusal, start + LASTS);
        assert!(rehearsal.is_due(rested));
        assert!(!rehearsal.is_due(rested + LASTS));
    }
}
