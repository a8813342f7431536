//! One worker: claim, publish, settle.
//!
//! The claim's transaction is open while its batch is published. Whatever ends the worker in
//! between - a crash, a lost connection, the abandon token - the server rolls it back, the rows are
//! free again, and the messages that were already confirmed are published once more: the window that
//! guarantee 3 names.

mod ordered;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_core::{Backoff, Origin, Reason, Rest, RowLimit, Seq, Walked, jittered};
use postrider_postgres::{Claim, ClaimFrom, ClaimLimits, Database, Error, ErrorKind, Share};
use tracing::warn;

use crate::awake::SHORT_POLL;
use crate::broker::{Broker, Publish};
use crate::delivery::{Attempt, Delivery, SIGN_OF_LIFE};
use crate::frontiers::Freed;
use crate::gate::Gate;
use crate::late::LateConfirms;
use crate::metrics::Phase;
use crate::rehearsal::NotSent;
use crate::settings::Reloadable;
use crate::shared::Shared;
use crate::turn::Turn;

/// A claim that takes this long, over a slow path, is as large as it should be: the database's time for an answer is
/// some times as much.
const SLOW_CLAIM: Duration = Duration::from_secs(5);
/// The pause when more messages fail than are remembered: each would be tried again at once.
const PAUSE_WITHOUT_ROOM: Duration = Duration::from_secs(1);

pub(crate) struct Worker<B: Broker> {
    number: usize,
    shared: Arc<Shared>,
    database: Database,
    broker: B,
    late: LateConfirms<<B::Publisher as Publish>::Late>,
    row_limit: RowLimit,
    /// Of messages with a key.
    ordered_limit: RowLimit,
    turn: Turn,
    /// The last look at fresh messages found no more.
    fresh_is_drained: bool,
    /// Closed while messages with a key wait that others have.
    ordered_gate: Gate,
    /// The same of what was parked.
    resuming_gate: Gate,
}

/// What a cycle found, and so what comes next.
enum Cycle {
    /// Everything visible was claimed: sleep until the next hint.
    Drained,
    /// There may be more, or something has to be tried again: go on at once.
    More,
    /// Failing messages that nobody could note: go on after a pause.
    Pause,
}

impl<B: Broker> Worker<B> {
    pub(crate) fn new(
        number: usize,
        shared: Arc<Shared>,
        database: Database,
        broker: B,
        late: LateConfirms<<B::Publisher as Publish>::Late>,
    ) -> Self {
        Self {
            number,
            row_limit: RowLimit::new(shared.live.get().batch_rows),
            ordered_limit: RowLimit::new(shared.live.get().batch_rows),
            shared,
            database,
            broker,
            late,
            turn: Turn::Resuming,
            fresh_is_drained: false,
            ordered_gate: Gate::new(),
            resuming_gate: Gate::new(),
        }
    }

    /// Runs until the relay stops.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let mut held = None;
        let shared = Arc::clone(&self.shared);
        loop {
            let Some(mut publisher) = self.wait_for_broker(held.take()).await else {
                return;
            };
            let in_cycle = shared.at_work.begin(self.number);
            let cycle = tokio::select! {
                () = shared.abandon.cancelled() => return,
                cycle = self.cycle(&mut publisher) => cycle,
            };
            drop(in_cycle);
            match cycle {
                Ok(cycle) => {
                    shared.progress.database_answered();
                    shared.progress.cycled(self.number, Instant::now());
                    backoff.reset();
                    match cycle {
                        Cycle::More => {}
                        Cycle::Drained => self.sleep_until_woken().await,
                        Cycle::Pause => self.pause(PAUSE_WITHOUT_ROOM).await,
                    }
                }
                Err(error) => {
                    self.report(&error);
                    shared.progress.turned(self.number, Instant::now());
                    self.pause(backoff.next(rand::random())).await;
                }
            }
            held = Some(publisher);
        }
    }

    /// Claims nothing, and holds no transaction, for as long as the broker is away or blocked.
    /// `None` when the relay stops.
    async fn wait_for_broker(&self, held: Option<B::Publisher>) -> Option<B::Publisher> {
        let mut ready = std::pin::pin!(self.broker.ready(held));
        loop {
            self.shared.progress.turned(self.number, Instant::now());
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return None,
                publisher = &mut ready => return Some(publisher),
                () = tokio::time::sleep(SIGN_OF_LIFE) => {}
            }
        }
    }

    /// Says that the worker is alive while it waits for the database: connecting and claiming have
    /// timeouts of their own, which may add up to more than a worker may otherwise stand still.
    async fn alive_while<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.shared.progress.turned(self.number, Instant::now());
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(SIGN_OF_LIFE) => {}
            }
        }
    }

    async fn cycle(&mut self, publisher: &mut B::Publisher) -> Result<Cycle, Error> {
        let batch_rows = self.shared.live.get().batch_rows;
        self.row_limit.bound(batch_rows);
        self.ordered_limit.bound(batch_rows);
        self.shared.end_rests(Instant::now());
        self.turn = self.next_turn();
        let cycle = match self.turn {
            Turn::Fresh => {
                let cycle = self.cycle_of(Origin::Messages, publisher).await?;
                self.fresh_is_drained = matches!(cycle, Cycle::Drained);
                cycle
            }
            Turn::Due => self.cycle_of(Origin::Deferred, publisher).await?,
            Turn::Ordered => self.ordered_cycle(publisher).await?,
            Turn::Resuming => self.resuming_cycle(publisher).await?,
        };
        Ok(match cycle {
            Cycle::Drained if self.has_other_work() || !self.fresh_is_drained => Cycle::More,
            cycle => cycle,
        })
    }

    /// Of messages without a key, or of deferred ones.
    async fn cycle_of(
        &mut self,
        origin: Origin,
        publisher: &mut B::Publisher,
    ) -> Result<Cycle, Error> {
        let shared = Arc::clone(&self.shared);
        let settings = shared.live.get();
        let scan = shared.frontiers.scan();
        let began = Instant::now();
        let proven = publisher.is_proven();
        let limits = claim_limits(&settings, &self.row_limit, proven);
        let from = match origin {
            Origin::Messages | Origin::Parked => shared.frontiers.from(&scan),
            Origin::Deferred => ClaimFrom::default(),
        };
        let mut claim = match self.claim_of(origin, limits, from, began).await? {
            ControlFlow::Continue(claim) => claim,
            ControlFlow::Break(cycle) => return Ok(cycle),
        };
        let claiming = began.elapsed();
        let full = claim.reached_limit();
        let walks_on = matches!(claim.walked(), Walked::Until(_));
        if origin == Origin::Messages {
            shared.frontiers.claimed(scan, from, &claim);
            if claim.ordered_waits() {
                shared.ordered.raise_waits();
            }
        }
        if full && origin == Origin::Deferred {
            shared.due.raise();
        }
        let cut_by_bytes = claim.untaken().is_some();
        if claim.is_empty() {
            let Some(untaken) = claim.untaken() else {
                if walks_on {
                    return Ok(Cycle::More);
                }
                if origin == Origin::Messages {
                    shared.frontiers.found_no_fresh(began, claiming);
                }
                return Ok(self.drained(origin));
            };
            // All that was locked is beyond its share. It is free again, and another worker may have passed it meanwhile.
            shared.frontiers.given_back(untaken);
            self.row_limit.observe(0, true, true);
            return Ok(Cycle::More);
        }
        let freed = Freed::of(&claim);
        let mut messages = claim.take_messages();
        let rows = count(messages.len());
        if origin == Origin::Messages {
            shared.awake.claimed(rows);
            shared.frontiers.touch();
        }
        if proven {
            let quick = claiming < SLOW_CLAIM;
            self.row_limit.observe(rows, cut_by_bytes, quick);
        }
        if full || walks_on {
            shared.wakeup.notify_one();
        }
        let taken_out = shared.unsettled.take_out(&mut messages);
        let mut split = shared.breakers.split(messages);
        split.put_suspects_last(&shared.suspects);
        let attempt = self
            .delivery(&settings, &|| {
                shared.progress.turned(self.number, Instant::now())
            })
            .deliver(publisher, claim, &split)
            .await;
        if attempt.is_err() {
            self.row_limit.begin_anew();
        }
        // Now that the rows are free: told before, a claim in between would pass them once more.
        let all_went = matches!(&attempt, Ok(Attempt::Delivered(delivered)) if !delivered.again);
        if let Some(lowest) = freed.lowest(taken_out || !all_went) {
            shared.frontiers.given_back(lowest);
        }
        let delivered = match attempt? {
            Attempt::Delivered(delivered) => delivered,
            Attempt::NotSent(not_sent) => {
                if origin == Origin::Deferred {
                    // What is not kept is still due.
                    shared.due.raise();
                }
                return not_sent.into_cycle();
            }
        };
        shared.metrics.batch_messages.observe(f64::from(rows));
        shared.metrics.took(Phase::Claim, claiming);
        Ok(if delivered.pause {
            Cycle::Pause
        } else if full || walks_on || delivered.again || self.keeps_polling() {
            Cycle::More
        } else {
            self.drained(origin)
        })
    }

    /// A claim of this table; `Break` when a row cannot be read.
    async fn claim_of(
        &mut self,
        origin: Origin,
        limits: ClaimLimits,
        from: ClaimFrom,
        began: Instant,
    ) -> Result<ControlFlow<Cycle, Claim>, Error> {
        let shared = Arc::clone(&self.shared);
        let excluded = shared.excluded(began);
        let claim = async {
            let database = &self.database;
            match origin {
                Origin::Messages | Origin::Parked => {
                    database.claim_fresh(limits, &excluded, from).await
                }
                Origin::Deferred => {
                    let from = shared.due.from();
                    database.claim_due(limits, &excluded, from).await
                }
            }
        };
        match self.alive_while(claim).await {
            Ok(claim) => Ok(ControlFlow::Continue(claim)),
            Err(Error::Row { seq, detail }) => {
                if origin == Origin::Deferred {
                    // Its neighbours are still due.
                    shared.due.raise();
                }
                Ok(ControlFlow::Break(self.note_unreadable(seq, &detail)))
            }
            Err(error) => {
                if error.is_timeout() {
                    self.row_limit.too_slow();
                    // Nobody else tells of them, and they are claimed in another way, which may be quicker.
                    shared.ordered.raise_waits();
                }
                Err(error)
            }
        }
    }

    fn delivery<'a>(
        &'a self,
        settings: &Reloadable,
        alive: &'a (dyn Fn() + Sync),
    ) -> Delivery<'a, B> {
        Delivery {
            shared: &self.shared,
            database: &self.database,
            broker: &self.broker,
            late: &self.late,
            patience: settings.patience(self.shared.settings.confirm_timeout),
            probing: false,
            after_dead_letter: settings.ordering.after_dead_letter,
            alive,
        }
    }

    fn next_turn(&mut self) -> Turn {
        let now = Instant::now();
        let (ordered, resuming) = (
            self.ordered_gate.is_open(now),
            self.resuming_gate.is_open(now),
        );
        let shared = &self.shared;
        self.turn.next(|turn| match turn {
            Turn::Fresh => !shared.frontiers.spares_fresh(now),
            Turn::Ordered => ordered && shared.ordered.take_waits(),
            Turn::Due => shared.due.take(),
            Turn::Resuming => resuming && shared.ordered.take_resuming(),
        })
    }

    /// Whether something waits for its turn that can be had now.
    fn has_other_work(&self) -> bool {
        let shared = &self.shared;
        let now = Instant::now();
        shared.due.is_raised()
            || shared.ordered.waits() && self.ordered_gate.is_open(now)
            || shared.ordered.is_resuming() && self.resuming_gate.is_open(now)
    }

    /// All that was visible in one table is claimed: time to sleep, unless fresh messages were not looked at after it.
    fn drained(&self, origin: Origin) -> Cycle {
        match origin {
            Origin::Deferred | Origin::Parked => Cycle::More,
            Origin::Messages => Cycle::Drained,
        }
    }

    /// A row that cannot be read failed the claim of its whole batch: the next claim leaves it out.
    fn note_unreadable(&self, seq: Seq, detail: &str) -> Cycle {
        let reason = Reason::NotEncodable;
        self.shared.metrics.failed(reason);
        let rest = self.shared.resting().rest(seq, Instant::now());
        warn!(
            event = "publish_failed",
            seq = seq.0,
            reason = reason.as_str(),
            error = detail,
            "the row cannot be read; it stays in the outbox: mend or delete it"
        );
        match rest {
            Rest::For { .. } if seq.0 > 0 => Cycle::More,
            Rest::For { .. } | Rest::NoRoom => Cycle::Pause,
        }
    }

    fn report(&self, error: &Error) {
        if error.is_out_of_connections() {
            self.shared.connections_scarce.notify_waiters();
        }
        let progress = &self.shared.progress;
        match error.kind() {
            ErrorKind::Unavailable | ErrorKind::ReadOnly => progress.database_failed(error),
            ErrorKind::Schema
            | ErrorKind::Privilege
            | ErrorKind::Query
            | ErrorKind::Configuration => progress.database_refused(error),
        }
    }

    /// Whether to claim again at once after a claim that found all there was: more is sure to come, and nobody else is about to look.
    fn keeps_polling(&self) -> bool {
        let shared = &self.shared;
        shared.awake.is_polling() && shared.at_work.stand_by(self.number).is_none()
    }

    async fn sleep_until_woken(&self) {
        let shared = &self.shared;
        let idle = jittered(
            shared.live.get().idle_sleep(shared.settings.workers),
            rand::random(),
        );
        let now = Instant::now();
        let rested = shared.resting().next_end(now);
        let gates = [
            (shared.ordered.waits(), &self.ordered_gate),
            (shared.ordered.is_resuming(), &self.resuming_gate),
        ];
        let opens = |(waits, gate): (bool, &Gate)| gate.opens_at(now).filter(|_| waits);
        let opens = gates.into_iter().filter_map(opens);
        let opens = opens.map(|at| at.saturating_duration_since(now));
        let sleep = rested.into_iter().chain(opens).fold(idle, Duration::min);
        let short_poll = async {
            if !shared.awake.is_polling() {
                return std::future::pending().await;
            }
            let workers = count(shared.settings.workers);
            tokio::time::sleep(SHORT_POLL.saturating_mul(workers)).await;
            shared.at_work.not_left_to_others(self.number).await;
        };
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = shared.wakeup.notified() => {}
            () = short_poll => {}
            // Also while others do all there is: each worker is to show now and then that it can.
            () = tokio::time::sleep(sleep) => {}
        }
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl NotSent {
    fn into_cycle(self) -> Result<Cycle, Error> {
        match self {
            Self::Kept => Ok(Cycle::More),
            Self::AllKept(error) => Err(error),
        }
    }
}

/// What a claim may take. `proven`: the publisher's connection has answered; before, a single message is at stake.
fn claim_limits(settings: &Reloadable, limit: &RowLimit, proven: bool) -> ClaimLimits {
    ClaimLimits {
        rows: if proven { limit.rows() } else { 1 },
        bytes: settings.batch_bytes,
        max_message_bytes: settings.max_message_bytes,
        share: if proven && limit.shares_equally() {
            Share::Equal
        } else {
            Share::InOrder
        },
    }
}

fn count(messages: usize) -> u32 {
    u32::try_from(messages).unwrap_or(u32::MAX)
}
