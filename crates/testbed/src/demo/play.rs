//! The script: the shop opens, the daemon is killed and comes back, the shop closes, the books are compared.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use postrider_testbed::{Audit, Consumer, Producer, ProducerOptions};
use tokio::time::{MissedTickBehavior, interval_at, sleep};

use super::{
    relay::Relay,
    report::{CatchUp, Report, steady},
    screen::{Screen, thousands},
    settings::Settings,
    stage::{ROUTING_KEY, Stage},
};

const CONNECTIONS: usize = 8;

/// Transactions a second.
const RATE: f64 = 400.0;

const ROLLBACK_SHARE: f64 = 0.05;

/// Orders in the one transaction after whose commit the kill comes: so many that some are in flight.
const SALE: usize = 2_000;

/// So few of the sale's messages have arrived when the kill comes.
const ARRIVED: u64 = 20;

/// So few messages that wait are the normal traffic's.
const CAUGHT_UP: u64 = 10;

const SALE_DEADLINE: Duration = Duration::from_secs(60);
const DELIVERY_DEADLINE: Duration = Duration::from_secs(60);

/// How long nothing must arrive before the consumer is believed to have all.
const QUIET: Duration = Duration::from_millis(500);

/// The shop's books and the consumer's, as the script and the screen look at them.
#[derive(Clone, Default)]
struct Books {
    audit: Audit,
    seen: Arc<Mutex<Seen>>,
}

/// What every consumer keeps to drop repeats: the ids it has worked on.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    repeats: u64,
}

impl Books {
    /// A consumer of the stage's queue.
    fn consume(&self, stage: &Stage) -> Consumer {
        let seen = Arc::clone(&self.seen);
        Consumer::start_with(
            &stage.broker_url,
            &stage.queue,
            &self.audit,
            move |delivery| {
                let id = delivery.properties.message_id().as_ref();
                let id = id.map(|id| id.as_str().to_owned()).unwrap_or_default();
                let mut seen = seen.lock().unwrap();
                if !seen.ids.insert(id) {
                    seen.repeats += 1;
                }
            },
        )
    }

    fn progress(&self) -> Progress {
        let seen = self.seen.lock().unwrap();
        Progress {
            committed: self.audit.committed_count() as u64,
            delivered: seen.ids.len() as u64,
            repeats: seen.repeats,
        }
    }
}

/// Figures of one moment.
#[derive(Clone, Copy)]
pub(crate) struct Progress {
    /// Messages whose commit the database confirmed.
    pub(crate) committed: u64,
    /// Distinct messages at the consumer.
    pub(crate) delivered: u64,
    /// Messages that the consumer dropped because it had their id.
    pub(crate) repeats: u64,
}

impl Progress {
    /// Messages committed and not delivered.
    pub(crate) fn waiting(self) -> u64 {
        // A message may be quicker than the answer to its COMMIT.
        self.committed.saturating_sub(self.delivered)
    }
}

/// Runs the script on a stage where nothing is made yet.
pub(crate) async fn play(
    settings: &Settings,
    stage: &Stage,
    relay: &mut Relay,
    screen: &Screen,
) -> Result<Report> {
    relay.migrate().await?;
    stage.declare().await?;
    let books = Books::default();
    let consumer = books.consume(stage);
    consumer
        .wait_until_consuming(Duration::from_secs(30))
        .await?;
    let pid = relay.start().await?;
    screen.stage(
        stage,
        pid,
        &format!(
            "{CONNECTIONS} connections, {RATE} transactions a second, {} in 100 rolled back",
            ROLLBACK_SHARE * 100.0
        ),
    );
    let opened = Instant::now();
    tokio::select! {
        report = acts(settings, stage, relay, screen, &books, opened) => report,
        never = show_progress(screen, &books, opened) => match never {},
    }
}

async fn acts(
    settings: &Settings,
    stage: &Stage,
    relay: &mut Relay,
    screen: &Screen,
    books: &Books,
    opened: Instant,
) -> Result<Report> {
    let audit = &books.audit;
    let shop = start_shop(
        ProducerOptions {
            connections: CONNECTIONS,
            rate: Some(RATE),
            rollback_share: ROLLBACK_SHARE,
            ..shop_options(stage)
        },
        audit,
    )
    .await?;

    sleep_watching(relay, opened + settings.length.mul_f64(0.4)).await?;
    let before = audit.latencies();
    let sale = start_shop(
        ProducerOptions {
            connections: 1,
            rollback_share: 0.0,
            messages_per_transaction: SALE,
            transactions: Some(1),
            ..shop_options(stage)
        },
        audit,
    )
    .await?;
    sale.wait_for_committed(SALE as u64, SALE_DEADLINE).await?;
    audit
        .wait_for_deliveries(audit.delivery_count() + ARRIVED, DELIVERY_DEADLINE)
        .await?;
    let pid = relay.kill().await?;
    screen.event(
        opened.elapsed(),
        &format!(
            "kill -9 {pid}, with {} orders of one transaction on their way; the shop goes on",
            thousands(SALE as u64)
        ),
    );

    sleep((settings.length / 15).clamp(Duration::from_secs(1), Duration::from_secs(3))).await;
    let waiting = books.progress().waiting();
    screen.event(
        opened.elapsed(),
        &format!("starting it again: {} messages wait", thousands(waiting)),
    );
    let starting = Instant::now();
    let pid = relay.start().await?;
    screen.event(
        opened.elapsed(),
        &format!("the daemon runs as process {pid}"),
    );
    caught_up(relay, books).await?;
    let after = audit.latencies();
    let catch_up = CatchUp {
        waiting,
        duration: starting.elapsed(),
    };

    sleep_watching(relay, opened + settings.length).await?;
    shop.stop().await.map_err(without_url)?;
    sale.stop().await.map_err(without_url)?;
    let open_for = opened.elapsed();
    screen.event(open_for, "the shop closes; the last messages come in");
    // What is missing is in the report.
    let _ = audit.wait_until_all_delivered(DELIVERY_DEADLINE).await;
    relay.check()?;
    // From here on nothing is published any more: what comes now was on its way.
    relay.stop().await?;
    all_consumed(stage, audit).await?;

    let (orders, left) = stage.rows().await?;
    let books = audit.report();
    let latencies = audit.latencies();
    Ok(Report {
        orders,
        left,
        steady: steady(&before, &after, &latencies),
        worst: latencies.last().copied().unwrap_or_default(),
        throughput: books.delivered as f64 / open_for.as_secs_f64(),
        catch_up,
        books,
    })
}

fn shop_options(stage: &Stage) -> ProducerOptions {
    ProducerOptions {
        outbox: stage.outbox.clone(),
        shop: stage.shop.clone(),
        ..ProducerOptions::new(&stage.database_url, &stage.exchange, ROUTING_KEY)
    }
}

async fn start_shop(options: ProducerOptions, audit: &Audit) -> Result<Producer> {
    Producer::start(options, audit).await.map_err(without_url)
}

/// The testbed names the URL it could not connect to, and the password of somebody's own server is in it.
fn without_url(error: anyhow::Error) -> anyhow::Error {
    anyhow!(
        "the shop could not reach the database: {}",
        error.root_cause()
    )
}

/// Waits, and fails when the daemon ends meanwhile.
async fn sleep_watching(relay: &Relay, until: Instant) -> Result<()> {
    while Instant::now() < until {
        relay.check()?;
        let rest = until.saturating_duration_since(Instant::now());
        sleep(rest.min(Duration::from_millis(50))).await;
    }
    Ok(())
}

async fn caught_up(relay: &Relay, books: &Books) -> Result<()> {
    let end = Instant::now() + DELIVERY_DEADLINE;
    // A machine too slow for the shop's rate never gets there: that is no failure, lost messages are.
    while books.progress().waiting() > CAUGHT_UP && Instant::now() < end {
        relay.check()?;
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until the queue is empty and nothing has arrived for a moment.
async fn all_consumed(stage: &Stage, audit: &Audit) -> Result<()> {
    let end = Instant::now() + DELIVERY_DEADLINE;
    loop {
        let before = audit.delivery_count();
        let queued = stage.queued().await?;
        sleep(QUIET).await;
        if queued == 0 && audit.delivery_count() == before {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(anyhow!("{queued} messages are in the queue"))
                .context("the consumer did not empty it in time");
        }
    }
}

async fn show_progress(screen: &Screen, books: &Books, opened: Instant) -> Infallible {
    let second = Duration::from_secs(1);
    let mut ticks = interval_at(tokio::time::Instant::from_std(opened) + second, second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut delivered = 0;
    loop {
        ticks.tick().await;
        let progress = books.progress();
        screen.row(opened.elapsed(), progress, progress.delivered - delivered);
        delivered = progress.delivered;
    }
}
