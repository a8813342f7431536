//! Tries suspended exchanges and routes now and then, and resumes those that take messages again.
//!
//! It has a channel of its own, because a queue that does not answer may hold up the channel that asks it, and a
//! database connection of its own, because the workers' claims must not wait for its. It sends messages that wait
//! for the target: one at first, and when that got through twice as many each time, so that neither a queue that
//! is still full nor one that hangs again takes a backlog down with it.

use std::time::{Duration, Instant};

use postrider_core::Target;
use postrider_postgres::{ClaimLimits, Database, Error, Share};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::breakers::{Probe, Split};
use crate::broker::{Broker, Publish};
use crate::delivery::{Answer, Attempt, Delivery};
use crate::late::{LateConfirms, release};
use crate::rehearsal::NotSent;
use crate::shared::Shared;

/// How long a probe waits for its confirm: the next target has to wait as long. The confirm may still come late.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How many messages in one go prove that a target takes what comes.
const PROOF: u32 = 64;

/// What the prober works with.
pub(crate) struct Prober<'a, B: Broker> {
    pub(crate) shared: &'a Shared,
    pub(crate) database: &'a Database,
    pub(crate) broker: &'a B,
    pub(crate) late: LateConfirms<<B::Publisher as Publish>::Late>,
}

/// How a probe ended.
enum Probed {
    /// The target takes messages.
    Takes,
    /// It does not, or nobody knows.
    Fails,
    /// Nothing waits for it.
    NothingWaits,
}

impl<B: Broker> Prober<'_, B> {
    /// Probes whatever is suspended, until `stop`.
    pub(crate) async fn run(self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.probe_all() => {}
        }
    }

    async fn probe_all(&self) {
        let breakers = &self.shared.breakers;
        let mut held = None;
        loop {
            let target = match breakers.next_probe() {
                Probe::Now(target) => target,
                Probe::At(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = breakers.suspended() => {}
                    }
                    continue;
                }
                Probe::Never => {
                    // An idle channel would be one more for the broker to keep.
                    held = None;
                    breakers.suspended().await;
                    continue;
                }
            };
            let mut publisher = self.broker.ready(held.take()).await;
            match self.probe(&target, &mut publisher).await {
                Ok(Probed::Takes) => {
                    if breakers.resume(&target) {
                        release(self.shared, self.database, &target).await;
                    }
                }
                Ok(Probed::Fails) => breakers.probe_failed(&target),
                Ok(Probed::NothingWaits) => breakers.nothing_waits(&target),
                Err(error) => {
                    debug!(%target, %error, "the target could not be probed");
                    breakers.probe_failed(&target);
                }
            }
            held = Some(publisher);
        }
    }

    async fn probe(&self, target: &Target, publisher: &mut B::Publisher) -> Result<Probed, Error> {
        let settings = self.shared.live.get();
        let patience = settings.patience(self.shared.settings.confirm_timeout.min(LONGEST_WAIT));
        let delivery = Delivery {
            shared: self.shared,
            database: self.database,
            broker: self.broker,
            late: &self.late,
            patience,
            probing: true,
            after_dead_letter: settings.ordering.after_dead_letter,
            alive: &|| {},
        };
        let mut rows = 1;
        loop {
            let limits = ClaimLimits {
                rows,
                bytes: settings.batch_bytes,
                max_message_bytes: settings.max_message_bytes,
                share: Share::InOrder,
            };
            // Asked before the claim: what it leaves out may be free by the time it finds nothing.
            let any_unsettled = !self.shared.unsettled.is_empty();
            let excluded = self.shared.excluded(Instant::now());
            let claim = self.database.claim_of_target(target, limits, &excluded);
            let mut claim = claim.await?;
            if claim.is_empty() {
                return Ok(if rows > 1 {
                    Probed::Takes
                } else if !any_unsettled && self.shared.unsettled.is_empty() {
                    Probed::NothingWaits
                } else {
                    // What waits may be among what was sent and may be confirmed late.
                    Probed::Fails
                });
            }
            let mut send = claim.take_messages();
            self.shared.unsettled.take_out(&mut send);
            if send.is_empty() {
                return Ok(Probed::Fails);
            }
            let mut split = Split::of(send);
            // Of a lone message that ends connections each probe would end one.
            split.put_suspects_last(&self.shared.suspects);
            let delivered = match delivery.deliver(publisher, claim, &split).await? {
                Attempt::Delivered(delivered) => delivered,
                // They rest, and are left out of the next claim. It says nothing of the target.
                Attempt::NotSent(NotSent::Kept) => continue,
                Attempt::NotSent(NotSent::AllKept(error)) => return Err(error),
            };
            match delivered.answer {
                Answer::Confirmed => {}
                // What the broker says of a message by itself is not for the target to answer for; and
                // the same message might be the next one claimed.
                Answer::Judged => return Ok(Probed::Takes),
                Answer::Faulty => return Ok(Probed::Fails),
            }
            if rows >= PROOF.min(settings.batch_rows) {
                return Ok(Probed::Takes);
            }
            rows = rows.saturating_mul(2).min(settings.batch_rows);
        }
    }
}
