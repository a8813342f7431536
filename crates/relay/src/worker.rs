//! One worker: claim, publish, settle.
//!
//! The claim's transaction is open while its batch is published. Whatever ends the worker in
//! between - a crash, a lost connection, the abandon token - the server rolls it back, the rows are
//! free again, and the messages that were already confirmed are published once more: the window that
//! guarantee 3 names.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_core::{
    Backoff, Failure, Message, Outcome, Reason, Rest, Resting, RowLimit, Seq, jittered,
};
use postrider_postgres::{ClaimLimits, Database, Error, ErrorKind};
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::broker::{Broker, Publish};
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
        let claim = self.database.claim(limits, &excluded);
        let mut claim = match self.alive_while(claim).await {
            Err(Error::Row { seq, detail }) => return Ok(self.note_unreadable(seq, &detail)),
            claim => claim?,
        };
        let claimed = Instant::now();
        if claim.is_empty() {
            claim.release().await?;
            return Ok(Cycle::Drained);
        }
        let full = claim.reached_limit();
        let cut_by_bytes = claim.cut_by_bytes();
        let messages = claim.take_messages();
        self.row_limit.observe(count(messages.len()), cut_by_bytes);
        if full {
            shared.wakeup.notify_one();
        }
        let _in_flight = InFlight::new(&shared.metrics, messages.len());
        let publish = publisher.publish(&messages, settings.confirm_timeout);
        let batch = Batch::new(&messages, publish.await);
        shared.progress.turned(self.number, Instant::now());
        let published = Instant::now();
        let seqs: Vec<Seq> = batch.confirmed.iter().map(|message| message.seq).collect();
        claim.settle(&seqs).await?;

        let metrics = &shared.metrics;
        metrics
            .batch_messages
            .observe(f64::from(count(messages.len())));
        metrics.took(Phase::Claim, claimed - began);
        metrics.took(Phase::Publish, published - claimed);
        metrics.took(Phase::Settle, published.elapsed());
        metrics.published(batch.confirmed.iter().copied(), published - claimed);
        self.resting().forget(&seqs);
        let room = self.note_failures(&batch.failed);
        Ok(if !room {
            Cycle::Pause
        } else if full
            || batch
                .failed
                .iter()
                .any(|(_, failure)| !failure.reason.is_the_messages_fault())
        {
            Cycle::More
        } else {
            Cycle::Drained
        })
    }

    /// Lets what failed by its own fault rest, and logs every failure. False when there was no room
    /// to note one of them.
    fn note_failures(&self, failed: &[(&Message, Failure)]) -> bool {
        let now = Instant::now();
        let mut room = true;
        let mut in_doubt: Option<(usize, &Failure)> = None;
        for (message, failure) in failed {
            self.shared.metrics.failed(failure.reason);
            if !failure.reason.is_the_messages_fault() {
                in_doubt = Some(in_doubt.map_or((1, failure), |(n, first)| (n + 1, first)));
                debug!(
                    event = "outcome_unknown",
                    message_id = %message.id,
                    seq = message.seq.0,
                    reason = failure.reason.as_str(),
                    "no confirm"
                );
                continue;
            }
            let (pause, failures) = match self.resting().rest(message.seq, now) {
                Rest::For { pause, failures } => (pause, failures),
                Rest::NoRoom => {
                    room = false;
                    (PAUSE_WITHOUT_ROOM, 1)
                }
            };
            warn!(
                event = "publish_failed",
                message_id = %message.id,
                seq = message.seq.0,
                exchange = message.exchange,
                routing_key = message.routing_key,
                reason = failure.reason.as_str(),
                attempt = failures,
                error = failure.detail,
                retry_in_s = pause.as_secs_f64(),
                "the message was not taken by the broker; it stays in the outbox"
            );
        }
        if let Some((messages, first)) = in_doubt {
            warn!(
                event = "outcome_unknown",
                messages,
                reason = first.reason.as_str(),
                error = first.detail,
                "no confirm for these messages; they stay in the outbox and are published again"
            );
        }
        room
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

/// The messages of one batch, sorted by what became of them.
struct Batch<'a> {
    confirmed: Vec<&'a Message>,
    failed: Vec<(&'a Message, Failure)>,
}

impl<'a> Batch<'a> {
    fn new(messages: &'a [Message], outcomes: Vec<Outcome>) -> Self {
        let mut batch = Self {
            confirmed: Vec::with_capacity(messages.len()),
            failed: Vec::new(),
        };
        // A message without an outcome would be one that nobody can vouch for: `zip` leaves it out
        // of both lists, so its row is not deleted.
        for (message, outcome) in messages.iter().zip(outcomes) {
            match outcome {
                Outcome::Confirmed => batch.confirmed.push(message),
                Outcome::Failed(failure) => batch.failed.push((message, failure)),
            }
        }
        batch
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
