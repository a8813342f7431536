//! Whether the database lets go what is claimed is tried before it is sent, once it has refused that.
//!
//! # States and races
//! - The end of a claim was refused: its messages have been sent, once, and are remembered. From then on the end of every claim of workers
//!   and prober is rehearsed first, until each of them was seen to go: what is refused then was not sent.
//! - The database keeps some rows, for a foreign key or by a trigger, and lets others of the same claim go: it is about those rows, whatever it says.
//!   They rest in memory, and the next claim goes on without them. If one has a key, what follows it in its key waits.
//! - It lets nothing go: a right or the table is gone, or all that waits is kept. The worker waits as for any statement that is refused.
//! - A row of a claim is deleted by an operator or another relay, and so never seen to go: it is forgotten after a while.
//! - Somebody makes the database refuse something between a rehearsal and the settle: that is as it was the first time. So is a worker's
//!   claim of rows that another one's refused settle has just freed, before that one has heard of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{Rest, Seq};
use postrider_postgres::{Claim, Error, ErrorKind, Refusal};
use tracing::error;

use crate::broker::Broker;
use crate::delivery::Delivery;
use crate::shared::Shared;

/// For how long after it was refused last a row is remembered that nobody sees go: longer than most outages, in which nothing is tried. Each
/// rehearsal has PostgreSQL delete everything twice meanwhile.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// How many are remembered. Of more than that, some are sent once more.
const MOST_REMEMBERED: usize = 20_000;

/// What the database did not let go, of one relay.
#[derive(Debug, Default)]
pub(crate) struct Rehearsal {
    refused: Mutex<BTreeMap<Seq, Instant>>,
}

impl Rehearsal {
    /// These rows were refused, or some of them.
    pub(crate) fn refused(&self, rows: impl IntoIterator<Item = Seq>, now: Instant) {
        let mut refused = self.lock();
        for row in rows {
            if refused.len() < MOST_REMEMBERED || refused.contains_key(&row) {
                refused.insert(row, now);
            }
        }
    }

    /// These rows can go.
    fn go(&self, rows: impl IntoIterator<Item = Seq>) {
        let mut refused = self.lock();
        for row in rows {
            refused.remove(&row);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut refused = self.lock();
        refused.retain(|_, last| now.saturating_duration_since(*last) < REMEMBERED);
        !refused.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Seq, Instant>> {
        self.refused.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Why nothing of a claim was sent.
pub(crate) enum NotSent {
    /// The database keeps some of its rows, which rest now. The others can be claimed at once.
    Kept,
    /// It keeps all of them.
    AllKept(Error),
}

impl<B: Broker> Delivery<'_, B> {
    /// Rehearses the end of the claim if that is due. `Break`: its rows are free.
    ///
    /// # Errors
    /// When the database does not answer, or so slowly that it is not known which rows it keeps, or another transaction is in the way.
    pub(crate) async fn rehearse(
        &self,
        mut claim: Claim,
    ) -> Result<ControlFlow<NotSent, Claim>, Error> {
        let rehearsal = &self.shared.rehearsal;
        if !rehearsal.is_due(Instant::now()) {
            return Ok(ControlFlow::Continue(claim));
        }
        let Some(refusal) = claim.rehearse().await? else {
            rehearsal.go(claim.rows());
            return Ok(ControlFlow::Continue(claim));
        };
        (self.alive)();
        rehearsal.refused(refusal.kept.iter().copied(), Instant::now());
        let is_lone = claim.len() == 1 && refusal.error.kind() == ErrorKind::Query;
        let not_sent = if refusal.kept.is_empty() {
            // Time was over: a smaller claim will tell, as after any other error.
            Err(refusal.error)
        } else if refusal.others_go || is_lone {
            Ok(leave_out(self.shared, refusal))
        } else {
            Ok(NotSent::AllKept(refusal.error))
        };
        claim.release().await?;
        not_sent.map(ControlFlow::Break)
    }
}

/// Leaves the rows out of claims for a while, as far as there is room to note them.
fn leave_out(shared: &Shared, refusal: Refusal) -> NotSent {
    let Refusal { kept, error, .. } = refusal;
    let now = Instant::now();
    let mut rested = 0;
    let mut longest = Duration::ZERO;
    {
        let mut resting = shared.resting();
        for row in &kept {
            if let Rest::For { pause, .. } = resting.rest(*row, now) {
                rested += 1;
                longest = longest.max(pause);
            }
        }
    }
    if rested == 0 {
        return NotSent::AllKept(error);
    }
    error!(
        event = "not_deletable",
        messages = rested,
        first_seq = kept.first().map(|row| row.0),
        %error,
        retry_in_s = longest.as_secs_f64(),
        "the database does not let these messages be deleted, so they are not sent; they stay where they are"
    );
    NotSent::Kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_claims_are_rehearsed_until_each_row_that_was_refused_was_seen_to_go() {
        let rehearsal = Rehearsal::default();
        let start = Instant::now();
        assert!(!rehearsal.is_due(start));
        rehearsal.refused([Seq(1), Seq(2)], start);
        rehearsal.go([Seq(1), Seq(3)]);
        assert!(rehearsal.is_due(start));
        rehearsal.go([Seq(2)]);
        assert!(!rehearsal.is_due(start));
    }

    #[test]
    fn a_row_that_nobody_sees_go_is_forgotten_after_a_while_unless_it_is_refused_again() {
        let rehearsal = Rehearsal::default();
        let start = Instant::now();
        rehearsal.refused([Seq(1)], start);
        let later = start + REMEMBERED / 2;
        rehearsal.refused([Seq(1)], later);
        assert!(rehearsal.is_due(start + REMEMBERED));
        assert!(!rehearsal.is_due(later + REMEMBERED));
    }

    #[test]
    fn no_more_rows_are_remembered_than_there_is_room_for() {
        let rehearsal = Rehearsal::default();
        let start = Instant::now();
        rehearsal.refused((0..=20_000).map(Seq), start);
        assert_eq!(rehearsal.lock().len(), MOST_REMEMBERED);
    }
}
