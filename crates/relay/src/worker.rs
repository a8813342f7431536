//! One worker: claim, publish, settle.
//!
//! The claim's transaction is open while its batch is published. Whatever ends the worker in
//! between - a crash, a lost connection, the abandon token - the server rolls it back, the rows are
//! free again, and the messages that were already confirmed are published once more: the window that
//! guarantee 3 names.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{Backoff, Origin, Reason, Rest, Resting, RowLimit, Seq, jittered};
use postrider_postgres::{ClaimLimits, Database, Error, ErrorKind, Settled};
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::broker::{Broker, Publish};
use crate::disposal::Batch;
use crate::due::Due;
use crate::metrics::{Metrics, Phase};
use crate::progress::Progress;
use crate::settings::Settings;

/// How often a worker that waits for a peer says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// The pause when more messages fail than are remembered: each would be tried again at once.
const PAUSE_WITHOUT_ROOM: Duration = Duration::from_secs(1);

/// What the workers of one relay share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) resting: Mutex<Resting>,
    pub(crate) wakeup: Notify,
    pub(crate) due: Due,
    /// Claim nothing more; finish what is in flight.
    pub(crate) stop: CancellationToken,
    /// Drop what is in flight: the server rolls it back.
    pub(crate) abandon: CancellationToken,
}

pub(crate) struct Worker<B: Broker> {
    number: usize,
    shared: Arc<Shared>,
    database: Database,
    broker: B,
    row_limit: RowLimit,
    /// The table of the last claim: the two take turns while both have work.
    last_origin: Origin,
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
    pub(crate) fn new(number: usize, shared: Arc<Shared>, database: Database, broker: B) -> Self {
        Self {
            number,
            row_limit: RowLimit::new(shared.settings.batch_rows),
            shared,
            database,
            broker,
            last_origin: Origin::Deferred,
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
            let cycle = tokio::select! {
                () = shared.abandon.cancelled() => return,
                cycle = self.cycle(&mut publisher) => cycle,
            };
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
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let began = Instant::now();
        let excluded = self.resting().excluded(began);
        let limits = ClaimLimits {
            rows: self.row_limit.rows(),
            bytes: settings.batch_bytes,
            max_message_bytes: settings.max_message_bytes,
        };
        let origin = self.next_origin();
        let claim = self.database.claim(limits, &excluded, origin);
        let mut claim = match self.alive_while(claim).await {
            Err(Error::Row { seq, detail }) => {
                if origin == Origin::Deferred {
                    // Its neighbours are still due.
                    shared.due.raise();
                }
                return Ok(self.note_unreadable(seq, &detail));
            }
            claim => claim?,
        };
        let claimed = Instant::now();
        let full = claim.reached_limit();
        if full && origin == Origin::Deferred {
            shared.due.raise();
        }
        if claim.is_empty() {
            return Ok(self.drained(origin));
        }
        let cut_by_bytes = claim.cut_by_bytes();
        let messages = claim.take_messages();
        self.row_limit.observe(count(messages.len()), cut_by_bytes);
        if full {
            shared.wakeup.notify_one();
        }
        let _in_flight = InFlight::new(&shared.metrics, messages.len());
        let publish = publisher.publish(&messages, settings.confirm_timeout);
        let outcomes = publish.await;
        let (retry, unroutable) = (&settings.retry, &settings.unroutable);
        let batch = Batch::sort(&messages, outcomes, retry, unroutable, rand::random);
        shared.progress.turned(self.number, Instant::now());
        let published = Instant::now();
        let not_moved = match claim.settle(&batch.settlement()).await? {
            Settled::Whole => None,
            Settled::NothingMoved(error) => Some(error),
        };

        let metrics = &shared.metrics;
        metrics
            .batch_messages
            .observe(f64::from(count(messages.len())));
        metrics.took(Phase::Claim, claimed - began);
        metrics.took(Phase::Publish, published - claimed);
        metrics.took(Phase::Settle, published.elapsed());
        metrics.published(batch.confirmed.iter().copied(), published - claimed);
        if let Some(error) = not_moved {
            return Ok(self.note_not_moved(&batch, &error));
        }
        self.tell_of_failures(&batch);
        Ok(if full || batch.left > 0 || !batch.in_doubt.is_empty() {
            Cycle::More
        } else {
            self.drained(origin)
        })
    }

    /// Deferred messages that are due and fresh ones take turns, so that neither starves the other.
    fn next_origin(&mut self) -> Origin {
        let due = self.last_origin == Origin::Messages && self.shared.due.take();
        self.last_origin = if due {
            Origin::Deferred
        } else {
            Origin::Messages
        };
        self.last_origin
    }

    /// All that was visible in one table is claimed: time to sleep, unless the other one's turn is due.
    fn drained(&self, origin: Origin) -> Cycle {
        match origin {
            Origin::Deferred => Cycle::More,
            Origin::Messages if self.shared.due.is_raised() => Cycle::More,
            Origin::Messages => Cycle::Drained,
        }
    }

    /// Counts and logs what was not confirmed, after it was settled.
    fn tell_of_failures(&self, batch: &Batch<'_>) {
        let metrics = &self.shared.metrics;
        for (message, failure) in &batch.accepted {
            metrics.failed(failure.reason);
            debug!(
                event = "accepted_as_sent",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                reason = failure.reason.as_str(),
                "no queue took the message; it is taken as sent by policy"
            );
        }
        for (message, failure, again) in &batch.retried {
            metrics.failed(failure.reason);
            metrics.retried(failure.reason);
            warn!(
                event = "publish_failed",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                reason = failure.reason.as_str(),
                attempt = again.attempts,
                error = failure.detail,
                retry_in_s = again.after.as_secs_f64(),
                "the broker did not take the message; it is deferred"
            );
        }
        for (message, failure, attempts) in &batch.given_up {
            metrics.failed(failure.reason);
            metrics.dead_lettered(failure.reason);
            error!(
                event = "dead_lettered",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                reason = failure.reason.as_str(),
                attempt = attempts,
                error = failure.detail,
                "given up on the message: see `postrider dead-letters show`"
            );
        }
        for (message, failure) in &batch.in_doubt {
            metrics.failed(failure.reason);
            debug!(
                event = "outcome_unknown",
                message_id = %message.id,
                seq = message.seq.0,
                reason = failure.reason.as_str(),
                "no confirm"
            );
        }
        if let Some((_, failure)) = batch.in_doubt.first() {
            warn!(
                event = "outcome_unknown",
                messages = batch.in_doubt.len(),
                reason = failure.reason.as_str(),
                error = failure.detail,
                "no confirm for these messages; they stay in the outbox and are published again"
            );
        }
    }

    /// Rows that could be put neither into the deferred messages nor into the dead letters rest where they
    /// are: claimed again at once, they would be published again at once.
    fn note_not_moved(&self, batch: &Batch<'_>, error: &Error) -> Cycle {
        let now = Instant::now();
        let mut room = true;
        let retried = batch
            .retried
            .iter()
            .map(|(message, failure, _)| (message, failure));
        let given_up = batch
            .given_up
            .iter()
            .map(|(message, failure, _)| (message, failure));
        for (message, failure) in retried.chain(given_up) {
            self.shared.metrics.failed(failure.reason);
            room &= self.resting().rest(message.seq, now) != Rest::NoRoom;
        }
        error!(
            event = "not_moved",
            messages = batch.retried.len() + batch.given_up.len(),
            %error,
            "messages that failed could not be deferred or given up; they stay where they are and are tried again"
        );
        if room { Cycle::More } else { Cycle::Pause }
    }

    /// A row that cannot be read failed the claim of its whole batch: the next claim leaves it out.
    fn note_unreadable(&self, seq: Seq, detail: &str) -> Cycle {
        let reason = Reason::NotEncodable;
        self.shared.metrics.failed(reason);
        let rest = self.resting().rest(seq, Instant::now());
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
        let progress = &self.shared.progress;
        match error.kind() {
            ErrorKind::Unavailable | ErrorKind::ReadOnly => progress.database_failed(error),
            ErrorKind::Schema
            | ErrorKind::Privilege
            | ErrorKind::Query
            | ErrorKind::Configuration => progress.database_refused(error),
        }
    }

    async fn sleep_until_woken(&self) {
        let idle = jittered(self.shared.settings.idle_sleep(), rand::random());
        let rested = self.resting().next_end(Instant::now());
        let sleep = rested.map_or(idle, |rested| idle.min(rested));
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = self.shared.wakeup.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.shared
            .resting
            .lock()
            .unwrap_or_else(|e| e.into_inner())
    }
}

/// Counts messages as in flight for as long as it lives, also when the cycle is dropped.
struct InFlight {
    gauge: IntGauge,
    messages: i64,
}

impl InFlight {
    fn new(metrics: &Metrics, messages: usize) -> Self {
        let gauge = metrics.in_flight_messages.clone();
        let messages = i64::from(count(messages));
        gauge.add(messages);
        Self { gauge, messages }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.sub(self.messages);
    }
}

fn count(messages: usize) -> u32 {
    u32::try_from(messages).unwrap_or(u32::MAX)
}
