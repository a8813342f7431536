//! Confirms that come after their batch was settled.
//!
//! A queue that was slow or stuck confirms in the end what it took. Its rows are deleted then, wherever they
//! are by now, and its route is resumed: so a pause of one queue repeats nothing. Whoever has claimed such a
//! row meanwhile publishes it once more; that is a repeat like any other.

use std::sync::Arc;

use postrider_core::{LateNews, Message, Seq, Target};
use postrider_postgres::Database;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};
use uuid::Uuid;

use crate::breakers::OrderedSplit;
use crate::broker::Late;
use crate::shared::Shared;
use crate::unsettled::Held;

/// How many batches may be waited for at the same time; each keeps a channel of the broker open. What is not
/// waited for is published again.
const MOST_WAITED_FOR: usize = 16;

/// Where workers and prober leave what may be confirmed late.
#[derive(Debug)]
pub(crate) struct LateConfirms<L> {
    batches: mpsc::UnboundedSender<LateBatch<L>>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
pub(crate) struct LateBatch<L> {
    late: L,
    rows: Vec<LateRow>,
    settled: CancellationToken,
    room: OwnedSemaphorePermit,
}

/// What is needed of a message once it is on its way.
#[derive(Debug)]
struct LateRow {
    position: usize,
    /// Its row, and those of what it stood for.
    rows: Vec<(Seq, Uuid)>,
    target: Target,
    bytes: u64,
    /// Each by itself: what one queue never confirms keeps nobody from sending the others again.
    held: Held,
}

impl<L: Late> LateConfirms<L> {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<LateBatch<L>>) {
        let (batches, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(MOST_WAITED_FOR));
        (Self { batches, room }, receiver)
    }

    /// Has the confirms of these messages of `sent` waited for. To be called before their rows are settled: from
    /// then on they are left out of this relay's claims.
    ///
    /// What is returned is to be dropped when their claim is over, whichever way. Confirms that come before, as they do
    /// from a slow path just when its batch was given up, are kept until then: their rows are locked, and would
    /// be neither deleted nor released.
    pub(crate) fn wait_for(
        &self,
        shared: &Shared,
        late: L,
        sent: &[Message],
        ordered: &OrderedSplit,
    ) -> Option<DropGuard> {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            debug!("too many batches are waited for; what they left is published again");
            return None;
        };
        let settled = CancellationToken::new();
        let settling = settled.clone().drop_guard();
        let rows: Vec<LateRow> = late
            .positions()
            .iter()
            .filter_map(|&position| {
                let message = sent.get(position)?;
                let stood_for = ordered.superseded.get(&message.seq);
                let rows: Vec<_> = std::iter::once((message.seq, message.id))
                    .chain(stood_for.into_iter().flatten().copied())
                    .collect();
                let fresh = message.is_fresh().then_some(message.seq);
                let seqs = rows.iter().map(|(seq, _)| *seq).collect();
                Some(LateRow {
                    position,
                    held: shared.unsettled.hold(seqs, fresh),
                    rows,
                    target: Target::Route {
                        exchange: message.exchange.clone(),
                        routing_key: message.routing_key.clone(),
                    },
                    bytes: message.payload.fetched_bytes(),
                })
            })
            .collect();
        // Fails only when the relay stops: the rows are published again then.
        let _ = self.batches.send(LateBatch {
            late,
            rows,
            settled,
            room,
        });
        Some(settling)
    }
}

impl<L> Clone for LateConfirms<L> {
    fn clone(&self) -> Self {
        Self {
            batches: self.batches.clone(),
            room: Arc::clone(&self.room),
        }
    }
}

/// Settles what is confirmed late, until `stop`.
pub(crate) async fn keep_settling_late<L: Late>(
    shared: &Shared,
    database: &Database,
    mut batches: mpsc::UnboundedReceiver<LateBatch<L>>,
    stop: &CancellationToken,
) {
    let mut waiting = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(batch) = batches.recv() => {
                waiting.spawn(hear(batch));
            }
            Some(ended) = waiting.join_next(), if !waiting.is_empty() => {
                // A panic of the broker's library costs these confirms: the rows are published again.
                let Ok((news, rows, left)) = ended else {
                    shared.wakeup.notify_one();
                    continue;
                };
                let (confirmed, mut left_over): (Vec<_>, Vec<_>) = rows
                    .into_iter()
                    .partition(|row| news.confirmed.contains(&row.position));
                let deleted = tokio::select! {
                    () = stop.cancelled() => return,
                    deleted = settle(shared, database, &confirmed) => deleted,
                };
                if deleted {
                    for row in confirmed {
                        let _ = row.held.let_go();
                    }
                } else {
                    left_over.extend(confirmed);
                }
                // Once for all of them: each time the claims under way count for nothing.
                let lowest = left_over.into_iter().filter_map(|row| row.held.let_go()).min();
                if let Some(lowest) = lowest {
                    shared.frontiers.given_back(lowest);
                }
                shared.due.raise();
                shared.wakeup.notify_one();
                if let Some(left) = left {
                    waiting.spawn(hear(left));
                }
            }
        }
    }
}

/// The next news of a batch, with the rows that they are of, and what is left of it.
async fn hear<L: Late>(batch: LateBatch<L>) -> (LateNews, Vec<LateRow>, Option<LateBatch<L>>) {
    let LateBatch {
        late,
        rows,
        settled,
        room,
    } = batch;
    let (news, late) = late.next().await;
    settled.cancelled().await;
    let is_told =
        |row: &LateRow| news.confirmed.contains(&row.position) || news.lost.contains(&row.position);
    let Some(late) = late else {
        return (news, rows, None);
    };
    let (told, rows) = rows.into_iter().partition(is_told);
    let left = LateBatch {
        late,
        rows,
        settled,
        room,
    };
    (news, told, Some(left))
}

/// Whether the rows are deleted.
async fn settle(shared: &Shared, database: &Database, rows: &[LateRow]) -> bool {
    if rows.is_empty() {
        return true;
    }
    let confirmed: Vec<(Seq, Uuid)> = rows.iter().flat_map(|row| &row.rows).copied().collect();
    let deleted = database.delete_confirmed(&confirmed).await;
    let is_deleted = deleted.is_ok();
    match deleted {
        Ok(deleted) => {
            shared.ordered.forget(confirmed.iter().map(|(seq, _)| *seq));
            // Among them may be what others of its key wait for.
            shared.ordered.raise_resuming();
            shared.metrics.superseded_late(deleted, rows.len());
            for row in rows {
                shared
                    .metrics
                    .published_late(row.target.exchange(), row.bytes);
            }
            info!(
                event = "confirmed_late",
                messages = rows.len(),
                deleted,
                "messages that had been given up on were confirmed after all"
            );
        }
        Err(error) => {
            debug!(%error, "late confirms could not be settled; the messages are published again")
        }
    }
    let mut targets: Vec<&Target> = rows.iter().map(|row| &row.target).collect();
    targets.sort();
    targets.dedup();
    for target in targets {
        if shared.breakers.confirmed_late(target) {
            release(shared, database, target).await;
        }
    }
    is_deleted
}

/// How many rows of a resumed target are let go in one transaction.
const RELEASED_AT_ONCE: u32 = 1_000;

/// Makes everything that waits for a resumed target due.
pub(crate) async fn release(shared: &Shared, database: &Database, target: &Target) {
    loop {
        let released = match database.release_target(target, RELEASED_AT_ONCE).await {
            Ok(released) => released,
            Err(error) => {
                debug!(%error, "messages of a resumed route were not released; they come due by themselves");
                return;
            }
        };
        shared.due.raise();
        shared.wakeup.notify_one();
        if released < u64::from(RELEASED_AT_ONCE) {
            return;
        }
    }
}
