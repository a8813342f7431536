//! Confirms that come after their batch was settled.
//!
//! A queue that was slow or stuck confirms in the end what it took. Its rows are deleted then, wherever they
//! are by now, and its route is resumed: so a pause of one queue repeats nothing. Whoever has claimed such a
//! row meanwhile publishes it once more; that is a repeat like any other.

use std::sync::Arc;

use postrider_core::{Message, Seq, Target};
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
    _held: Held,
    _room: OwnedSemaphorePermit,
}

/// What is needed of a message once it is on its way.
#[derive(Debug)]
struct LateRow {
    position: usize,
    /// Its row, and those of what it stood for.
    rows: Vec<(Seq, Uuid)>,
    target: Target,
    bytes: u64,
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
                Some(LateRow {
                    position,
                    rows: std::iter::once((message.seq, message.id))
                        .chain(stood_for.into_iter().flatten().copied())
                        .collect(),
                    target: Target::Route {
                        exchange: message.exchange.clone(),
                        routing_key: message.routing_key.clone(),
                    },
                    bytes: message.payload.fetched_bytes(),
                })
            })
            .collect();
        let fresh = |row: &LateRow| {
            let message = sent.get(row.position)?;
            message.is_fresh().then_some(message.seq)
        };
        let held = shared.unsettled.hold(
            rows.iter()
                .flat_map(|row| &row.rows)
                .map(|(seq, _)| *seq)
                .collect(),
            rows.iter().filter_map(fresh).min(),
        );
        // Fails only when the relay stops: the rows are published again then.
        let _ = self.batches.send(LateBatch {
            late,
            rows,
            settled,
            _held: held,
            _room: room,
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
            Some(LateBatch { late, rows, settled, _held, _room }) = batches.recv() => {
                waiting.spawn(async move {
                    let confirmed = late.confirmed().await;
                    settled.cancelled().await;
                    (confirmed, rows, _held, _room)
                });
            }
            Some(ended) = waiting.join_next(), if !waiting.is_empty() => {
                // A panic of the broker's library costs these confirms: the rows are published again.
                if let Ok((confirmed, mut rows, held, _room)) = ended {
                    rows.retain(|row| confirmed.contains(&row.position));
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = settle(shared, database, &rows) => {}
                    }
                    drop(held);
                    shared.wakeup.notify_one();
                }
            }
        }
    }
}

async fn settle(shared: &Shared, database: &Database, rows: &[LateRow]) {
    if rows.is_empty() {
        return;
    }
    let confirmed: Vec<(Seq, Uuid)> = rows.iter().flat_map(|row| &row.rows).copied().collect();
    match database.delete_confirmed(&confirmed).await {
        Ok(deleted) => {
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
