//! The turns of messages with a key: by lane, and of what was parked.
//!
//! # States and races
//! - Nothing is to be had: other workers and relays have the lanes, an operator has a row, or the horizon stands still. Whoever has
//!   a lane looks again when its batch is settled, so it suffices to look again now and then, for the case that it died.
//! - A message comes while its lane is claimed: its wake-up finds nothing to be had. So a worker looks again after each
//!   batch, until there was nothing.
//! - A row is held for a late confirm between the question what to leave out and the claim: it is taken for one that cannot be
//!   had, and so is what follows it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use postrider_core::{Lane, OrderedPlan, OrderedRow, Seq};
use postrider_postgres::{
    ClaimLimits, Error, LANES_OF_HOT_KEYS, LookFor, OrderedClaim, Share, WaitingLanes,
};
use uuid::Uuid;

use super::{Cycle, SLOW_CLAIM, Worker, claim_limits, count};
use crate::breakers::OrderedSplit;
use crate::broker::{Broker, Publish};
use crate::delivery::Attempt;
use crate::frontiers::{ChosenLanes, Frontiers};
use crate::gate::Gate;
use crate::metrics::Phase;
use crate::shared::Shared;

/// The most lanes of one claim: a half, so that two workers at a time find some.
const MOST_LANES: usize = 128;
/// The fewest, where many workers share them.
const FEWEST_LANES: usize = 16;
/// The most keys that are resumed by one claim.
const MOST_KEYS: u32 = 128;

impl<B: Broker> Worker<B> {
    /// Claims, publishes and settles messages with a key.
    pub(super) async fn ordered_cycle(
        &mut self,
        publisher: &mut B::Publisher,
    ) -> Result<Cycle, Error> {
        let shared = std::sync::Arc::clone(&self.shared);
        let frontiers = &shared.frontiers;
        let began = Instant::now();
        let (waiting, has_looked) = self.lanes_with_work(frontiers, began).await?;
        if waiting.lanes.is_empty() {
            self.ordered_gate.open();
            return Ok(Cycle::Drained);
        }
        let limits = self.ordered_limits(publisher);
        let rows = usize::try_from(limits.rows).unwrap_or(usize::MAX);
        let workers = relays(&shared).saturating_mul(shared.settings.workers);
        let most = share_of_lanes(&waiting, has_looked, workers).min(rows);
        let claiming = self.claim_what_can_be_had(&shared, &waiting.lanes, most, limits, began);
        let (chosen, mut claimed) = match claiming.await? {
            ControlFlow::Continue(claimed) => claimed,
            ControlFlow::Break(cycle) => return Ok(cycle),
        };
        if waiting.many {
            frontiers.leave_known_lanes(&waiting.lanes, &chosen);
        }
        let lanes = chosen.starts.lanes.len();
        if waiting.lanes.len() > lanes && !claimed.rows.is_empty() {
            // There are lanes for others.
            shared.ordered.raise_waits();
            shared.wakeup.notify_one();
        }
        let least = least_expected(rows, lanes, claimed.locked);
        let is_short = chosen.is_bounded() && claimed.rows.len() < least;
        if is_short {
            frontiers.fell_short(has_looked);
        }
        if claimed.rows.is_empty() && (is_short || !has_looked) {
            // Others have been there since the look, or what there is lies farther on.
            shared.ordered.raise_waits();
            return Ok(Cycle::More);
        }
        self.observe(&claimed, began.elapsed(), publisher.is_proven());
        if claimed.cut_by_bytes && limits.share == Share::Equal {
            // The next claim takes the first rows, whatever their size. What this one has left out may be what the others are
            // superseded by.
            claimed.claim.release().await?;
            shared.ordered.raise_waits();
            return Ok(Cycle::More);
        }
        let read = std::mem::take(&mut claimed.lanes);
        let mut attempt = self.deliver_ordered(publisher, claimed, began).await?;
        let mut settled = match &mut attempt {
            Some(Attempt::Delivered(delivered)) => std::mem::take(&mut delivered.settled),
            Some(Attempt::NotSent(_)) | None => Vec::new(),
        };
        settled.sort_unstable();
        frontiers.read_lanes(&chosen, &read, |seq| settled.binary_search(&seq).is_err());
        shared.ordered.raise_waits();
        after(&mut self.ordered_gate, attempt)
    }

    /// The lanes to claim from, what an earlier look has left or has found for several claims, or what a look now finds; and whether a look was
    /// taken.
    async fn lanes_with_work(
        &self,
        frontiers: &Frontiers,
        now: Instant,
    ) -> Result<(WaitingLanes, bool), Error> {
        let known = frontiers.take_known_lanes();
        if !known.is_empty() {
            let left = WaitingLanes {
                lanes: known,
                many: true,
                ..WaitingLanes::default()
            };
            return Ok((left, false));
        }
        let look = frontiers.look_for_ordered(relays(&self.shared) > 1, now);
        let looking = self
            .database
            .waiting_lanes(look.from(), look.how, &look.starts);
        let waiting = self.alive_while(looking).await;
        let took = match &waiting {
            Ok(waiting) => waiting.took,
            Err(error) if error.is_timeout() => now.elapsed(),
            Err(_) => Duration::ZERO,
        };
        frontiers.look_took(&look, Instant::now(), took);
        let mut waiting = waiting?;
        waiting.many |= look.how == LookFor::Each && look.many_before;
        frontiers.found_ordered(look, &waiting);
        Ok((waiting, true))
    }

    /// A claim of `most` of these lanes, of which it has at least one; `Break` when none can be had, or a row cannot be read.
    async fn claim_what_can_be_had<'a>(
        &mut self,
        shared: &'a Shared,
        lanes: &[Lane],
        most: usize,
        limits: ClaimLimits,
        began: Instant,
    ) -> Result<ControlFlow<Cycle, (ChosenLanes<'a>, OrderedClaim)>, Error> {
        let frontiers = &shared.frontiers;
        let horizon = shared.live.get().ordering.horizon;
        // Lanes that another relay has are kept in hand until there is one to be had, so that each is tried once.
        let mut tried = Vec::new();
        loop {
            let chosen = frontiers.choose_lanes(lanes, most, limits.rows);
            if chosen.starts.lanes.is_empty() {
                return Ok(ControlFlow::Break(after(&mut self.ordered_gate, None)?));
            }
            let excluded = shared.excluded(began);
            let floor = horizon.then(|| frontiers.floor_of_claims());
            let claiming = self
                .database
                .claim_lanes(limits, &chosen.starts, &excluded, floor);
            match self.alive_while(claiming).await {
                Err(Error::Row { seq, detail }) => {
                    shared.ordered.raise_waits();
                    return Ok(ControlFlow::Break(self.note_unreadable(seq, &detail)));
                }
                Err(error) => {
                    if error.is_timeout() {
                        self.ordered_limit.too_slow();
                    }
                    return Err(error);
                }
                Ok(claimed) if claimed.locked == 0 => tried.push(chosen),
                Ok(claimed) => return Ok(ControlFlow::Continue((chosen, claimed))),
            }
        }
    }

    /// Claims, publishes and settles what was parked behind heads that are gone.
    pub(super) async fn resuming_cycle(
        &mut self,
        publisher: &mut B::Publisher,
    ) -> Result<Cycle, Error> {
        let shared = std::sync::Arc::clone(&self.shared);
        let began = Instant::now();
        let cursor = shared.ordered.cursor();
        let limits = self.ordered_limits(publisher);
        let most = MOST_KEYS.min(limits.rows);
        let looking = async {
            let keys = self.database.resuming_keys(&cursor, most).await?;
            if keys.is_empty() && !cursor.is_empty() {
                return self.database.resuming_keys("", most).await;
            }
            Ok(keys)
        };
        let keys = self.alive_while(looking).await?;
        let Some(last) = keys.last() else {
            self.resuming_gate.open();
            return Ok(Cycle::Drained);
        };
        shared.ordered.resume_after(&last.key);
        let excluded = shared.excluded(began);
        let claiming = self.database.claim_parked(limits, &keys, &excluded);
        let claimed = match self.alive_while(claiming).await {
            Err(Error::Row { seq, detail }) => {
                shared.ordered.raise_resuming();
                return Ok(self.note_unreadable(seq, &detail));
            }
            Err(error) => {
                shared.ordered.raise_resuming();
                if error.is_timeout() {
                    self.ordered_limit.too_slow();
                }
                return Err(error);
            }
            Ok(claimed) => claimed,
        };
        if claimed.unblocked > 0 {
            // It is still the others' turn.
            shared.ordered.resume_after(&cursor);
            shared.ordered.raise_resuming();
            self.resuming_gate.open();
            return Ok(Cycle::More);
        }
        if count(keys.len()) == most && !claimed.rows.is_empty() {
            shared.ordered.raise_resuming();
            shared.wakeup.notify_one();
        }
        self.observe(&claimed, began.elapsed(), publisher.is_proven());
        let attempt = self.deliver_ordered(publisher, claimed, began).await?;
        shared.ordered.raise_resuming();
        after(&mut self.resuming_gate, attempt)
    }

    /// Plans what was read, and delivers it. `None` when there was nothing to be had.
    async fn deliver_ordered(
        &mut self,
        publisher: &mut B::Publisher,
        claimed: OrderedClaim,
        began: Instant,
    ) -> Result<Option<Attempt>, Error> {
        let shared = std::sync::Arc::clone(&self.shared);
        let OrderedClaim {
            claim, mut rows, ..
        } = claimed;
        let claiming = began.elapsed();
        shared.unsettled.mark_held(&mut rows);
        let ids = ids_of_superseding(&rows);
        let claimed = rows.iter().filter_map(OrderedRow::seq);
        let floor = shared.frontiers.floor();
        let one_by_one = shared.ordered.one_by_one(claimed, floor);
        let plan = OrderedPlan::new(rows, &one_by_one);
        if plan.is_empty() {
            claim.release().await?;
            return Ok(None);
        }
        let rows = count(plan.send.len());
        shared.awake.claimed(rows);
        shared.frontiers.touch();
        let mut split = shared.breakers.split(plan.send);
        split.ordered = OrderedSplit {
            park: plan.park,
            superseded: plan
                .superseded
                .into_iter()
                .map(|(newest, seqs)| {
                    let known = |seq: Seq| ids.get(&seq).map(|id| (seq, *id));
                    (newest, seqs.into_iter().filter_map(known).collect())
                })
                .collect(),
        };
        split.put_suspects_last(&shared.suspects);
        let settings = shared.live.get();
        let attempt = self
            .delivery(&settings, &|| {
                shared.progress.turned(self.number, Instant::now())
            })
            .deliver(publisher, claim, &split)
            .await;
        if attempt.is_err() {
            self.ordered_limit.begin_anew();
        }
        let attempt = attempt?;
        if let Attempt::Delivered(_) = &attempt {
            shared.metrics.batch_messages.observe(f64::from(rows));
            shared.metrics.took(Phase::Claim, claiming);
        }
        Ok(Some(attempt))
    }

    fn ordered_limits(&self, publisher: &B::Publisher) -> ClaimLimits {
        let settings = self.shared.live.get();
        claim_limits(&settings, &self.ordered_limit, publisher.is_proven())
    }

    /// Learns how many rows to ask for next.
    fn observe(&mut self, claimed: &OrderedClaim, took: Duration, proven: bool) {
        if !proven || claimed.rows.is_empty() {
            return;
        }
        let is_free = |row: &&OrderedRow| matches!(row, OrderedRow::Free(_));
        let free = count(claimed.rows.iter().filter(is_free).count());
        let quick = took < SLOW_CLAIM;
        self.ordered_limit
            .observe(free, claimed.cut_by_bytes, quick);
    }
}

/// The ids of those that may be superseded: a plan names messages by their places alone.
fn ids_of_superseding(rows: &[OrderedRow]) -> HashMap<Seq, Uuid> {
    let messages = rows.iter().filter_map(|row| match row {
        OrderedRow::Free(message) => Some(message),
        OrderedRow::Held { .. } | OrderedRow::Blocked { .. } => None,
    });
    let superseding = messages.filter(|message| {
        let ordered = message.ordered.as_ref();
        ordered.is_some_and(|ordered| ordered.supersede)
    });
    superseding
        .map(|message| (message.seq, message.id))
        .collect()
}

/// What comes after a turn; `None` when nothing was to be had.
fn after(gate: &mut Gate, attempt: Option<Attempt>) -> Result<Cycle, Error> {
    let Some(attempt) = attempt else {
        gate.close(Instant::now());
        return Ok(Cycle::Drained);
    };
    gate.open();
    match attempt {
        Attempt::NotSent(not_sent) => not_sent.into_cycle(),
        Attempt::Delivered(delivered) if delivered.pause => Ok(Cycle::Pause),
        Attempt::Delivered(_) => Ok(Cycle::More),
    }
}

/// How many of the lanes one of so many workers may take.
///
/// Of a backlog each is to have some, however few lanes it is in: what one alone has in its hands, the others do not speed up. Of what the
/// one that looked has left, it has its share already. Where few messages wait, they are not worth a claim for each worker.
fn share_of_lanes(waiting: &WaitingLanes, has_looked: bool, workers: usize) -> usize {
    let lanes = waiting.lanes.len();
    let (lanes, workers) = if !waiting.many || lanes >= Lane::COUNT {
        (Lane::COUNT, workers)
    } else if has_looked {
        (lanes, workers)
    } else {
        (lanes, workers.saturating_sub(1))
    };
    let share = lanes.div_ceil(workers.max(1));
    share.clamp(FEWEST_LANES, MOST_LANES)
}

/// A claim of so many `rows` of so many lanes that could lock some of them finds at least so many, or messages lie otherwise than the look has
/// shown: a half of its share, of which few lanes may not give all.
fn least_expected(rows: usize, lanes: usize, locked: usize) -> usize {
    let expected = rows / lanes.max(LANES_OF_HOT_KEYS) * locked;
    expected.div_ceil(2).max(1)
}

/// How many relays there are, this one included.
fn relays(shared: &Shared) -> usize {
    usize::try_from(shared.metrics.relays.get())
        .unwrap_or(1)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_backlog(lanes: u8) -> WaitingLanes {
        WaitingLanes {
            lanes: (0..lanes).map(Lane).collect(),
            many: true,
            ..WaitingLanes::default()
        }
    }

    #[test]
    fn workers_share_the_lanes_of_a_backlog_however_few_they_are() {
        assert_eq!(share_of_lanes(&of_backlog(87), true, 2), 44);
        assert_eq!(share_of_lanes(&of_backlog(43), false, 2), 43);
        assert_eq!(share_of_lanes(&of_backlog(87), true, 4), 22);
        assert_eq!(share_of_lanes(&of_backlog(65), false, 4), 22);
        assert_eq!(share_of_lanes(&of_backlog(87), true, 8), FEWEST_LANES);
        assert_eq!(share_of_lanes(&of_backlog(9), false, 1), FEWEST_LANES);
        let mut all = of_backlog(255);
        all.lanes.push(Lane(255));
        for has_looked in [true, false] {
            assert_eq!(share_of_lanes(&all, has_looked, 1), MOST_LANES);
            assert_eq!(share_of_lanes(&all, has_looked, 8), 32);
        }
    }

    #[test]
    fn a_burst_over_some_lanes_is_one_claim() {
        let burst = WaitingLanes {
            many: false,
            ..of_backlog(100)
        };
        assert_eq!(share_of_lanes(&burst, true, 2), MOST_LANES);
        assert_eq!(share_of_lanes(&burst, true, 8), 32);
    }

    #[test]
    fn a_claim_is_short_with_less_than_half_of_what_its_lanes_may_give() {
        assert_eq!(least_expected(1_000, 128, 128), 448);
        assert_eq!(least_expected(1_000, 128, 2), 7);
        // 62 of each at most.
        assert_eq!(least_expected(1_000, 4, 4), 124);
        // One that is to find a single row has found nothing.
        assert_eq!(least_expected(1, 1, 1), 1);
    }
}
