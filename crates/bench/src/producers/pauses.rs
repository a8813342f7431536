//! Ten thousand transactions in bursts with pauses between them, so that the relay falls asleep and is woken again and
//! again, and some that stay open across it: whether one of them waits for the poll.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use postrider_testbed::{Client, QueueKind};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, sleep_until, timeout_at},
};
use uuid::Uuid;

use crate::{
    daemon,
    queue::Queue,
    stage::{CONTENT_TYPE, Stage},
    statistics::percentile,
    throughput::PAYLOAD_BYTES,
};

/// Longer than this nothing should wait: a poll of a relay that sleeps is due far later.
pub(super) const LATE_MS: f64 = 50.0;

/// Producers' connections.
const CONNECTIONS: usize = 16;

/// How long the last messages may take to arrive.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(60);

/// One transaction of the plan.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Planned {
    /// Since the start.
    begins: Duration,
    /// Between INSERT and COMMIT.
    held: Duration,
}

/// The result.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Pauses {
    pub(super) transactions: u32,
    pub(super) seconds: f64,
    /// Transactions that stayed open for 5 to 50 ms.
    pub(super) held: usize,
    /// Pauses of more than 100 ms.
    pub(super) long_pauses: usize,
    /// From COMMIT answered to consumer, in milliseconds.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
    pub(super) late: usize,
}

/// Numbers that look like chance and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    /// From 0 up to 1.
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.roll()
    }

    /// Each order of magnitude as often as the next.
    fn of_any_size(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.roll())
    }
}

/// Bursts of 1 to 100 transactions, each up to 4 ms after the one before; 1 to 600 ms of pause between bursts. A fifth
/// of them stays open for 5 to 50 ms, into the pause where it is at the end of its burst.
fn plan(transactions: u32) -> Vec<Planned> {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let milliseconds = |value: f64| Duration::from_secs_f64(value / 1e3);
    let mut begins = Duration::ZERO;
    let mut planned = Vec::with_capacity(transactions as usize);
    while planned.len() < transactions as usize {
        let burst = dice.of_any_size(1.0, 100.0).round() as usize;
        for _ in 0..burst.min(transactions as usize - planned.len()) {
            let held = if dice.roll() < 0.2 {
                milliseconds(dice.between(5.0, 50.0))
            } else {
                Duration::ZERO
            };
            planned.push(Planned { begins, held });
            begins += milliseconds(dice.between(0.0, 4.0));
        }
        begins += milliseconds(dice.of_any_size(1.0, 600.0));
    }
    planned
}

fn long_pauses(planned: &[Planned]) -> usize {
    planned
        .windows(2)
        .filter(|pair| match pair {
            [earlier, later] => later.begins - earlier.begins > Duration::from_millis(100),
            _ => false,
        })
        .count()
}

/// Runs the plan with a quorum queue and a consumer.
///
/// # Errors
/// A message is lost or arrives twice, or a server or the daemon fails.
pub(super) async fn measure(stage: &Stage, transactions: u32) -> Result<Pauses> {
    let planned = plan(transactions);
    let installation = stage.install(&stage.binary).await?;
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let daemon = daemon::start(stage, &installation).await?;
    let (arrived, arrivals) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(consume(
        stage.vhost.connection().await?,
        queue.name.clone(),
        arrived,
    ));
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(installation.database.client().await?);
    }
    stage.wait_until_quiet().await?;

    let began = Instant::now();
    let mut producers = JoinSet::new();
    for (place, client) in clients.into_iter().enumerate() {
        let own: Vec<Planned> = planned
            .iter()
            .skip(place)
            .step_by(CONNECTIONS)
            .copied()
            .collect();
        producers.spawn(produce(client, queue.name.clone(), began, own));
    }
    let mut commits = Vec::with_capacity(planned.len());
    while let Some(done) = producers.join_next().await {
        commits.extend(done.context("a producer panicked")??);
    }
    let seconds = began.elapsed().as_secs_f64();
    let arrivals = tokio::select! {
        arrivals = collect(arrivals, &commits) => arrivals,
        Some(ended) = tasks.join_next() => {
            ended.context("the consumer panicked")??;
            bail!("the consumer ended");
        }
    };
    let arrivals = arrivals.with_context(|| daemon.log())?;
    drop(tasks);
    daemon::stop(daemon).await?;
    queue.delete().await?;
    stage.remove(installation).await?;

    let mut waited: Vec<f64> = commits
        .iter()
        .filter_map(|(id, answered)| {
            let waited = arrivals.get(id)?.saturating_duration_since(*answered);
            Some(waited.as_secs_f64() * 1e3)
        })
        .collect();
    waited.sort_unstable_by(f64::total_cmp);
    let at = |share| percentile(&waited, share).context("nothing was measured");
    Ok(Pauses {
        transactions,
        seconds,
        held: planned.iter().filter(|one| !one.held.is_zero()).count(),
        long_pauses: long_pauses(&planned),
        p50_ms: at(0.5)?,
        p99_ms: at(0.99)?,
        max_ms: at(1.0)?,
        late: waited.iter().filter(|ms| **ms > LATE_MS).count(),
    })
}

/// The id of each message, and when its COMMIT was answered.
async fn produce(
    client: Client,
    queue: String,
    began: Instant,
    planned: Vec<Planned>,
) -> Result<Vec<(Uuid, Instant)>> {
    let insert = client
        .prepare(
            "INSERT INTO outbox.messages (id, exchange, routing_key, payload, content_type) \
             VALUES ($1, '', $2, $3, $4)",
        )
        .await
        .context("could not prepare the insert")?;
    let payload = [b'x'; PAYLOAD_BYTES];
    let mut commits = Vec::with_capacity(planned.len());
    for Planned { begins, held } in planned {
        sleep_until((began + begins).into()).await;
        let id = Uuid::new_v4();
        client.batch_execute("BEGIN").await?;
        client
            .execute(&insert, &[&id, &queue, &&payload[..], &CONTENT_TYPE])
            .await
            .context("could not insert a message")?;
        if !held.is_zero() {
            sleep(held).await;
        }
        client.batch_execute("COMMIT").await?;
        commits.push((id, Instant::now()));
    }
    Ok(commits)
}

async fn consume(
    connection: lapin::Connection,
    queue: String,
    arrived: mpsc::UnboundedSender<(Uuid, Instant)>,
) -> Result<()> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(1_000, BasicQosOptions::default()).await?;
    let mut deliveries = channel
        .basic_consume(
            queue.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .context("could not consume")?;
    while let Some(delivery) = deliveries.next().await {
        let at = Instant::now();
        let delivery = delivery.context("the consumer failed")?;
        let id = delivery
            .properties
            .message_id()
            .as_ref()
            .and_then(|id| Uuid::parse_str(id.as_str()).ok())
            .context("a message has no UUID as its message-id")?;
        if arrived.send((id, at)).is_err() {
            return Ok(());
        }
        delivery.ack(BasicAckOptions::default()).await?;
    }
    bail!("the broker cancelled the consumer")
}

async fn collect(
    mut arrivals: mpsc::UnboundedReceiver<(Uuid, Instant)>,
    commits: &[(Uuid, Instant)],
) -> Result<HashMap<Uuid, Instant>> {
    let mut missing: HashSet<Uuid> = commits.iter().map(|(id, _)| *id).collect();
    let mut arrived = HashMap::with_capacity(missing.len());
    let deadline = tokio::time::Instant::now() + ARRIVAL_DEADLINE;
    while !missing.is_empty() {
        let Ok(Some((id, at))) = timeout_at(deadline, arrivals.recv()).await else {
            bail!(
                "{} of {} messages did not arrive within {ARRIVAL_DEADLINE:?}",
                missing.len(),
                commits.len()
            );
        };
        missing.remove(&id);
        ensure!(
            arrived.insert(id, at).is_none(),
            "message {id} arrived twice"
        );
    }
    Ok(arrived)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Dice, long_pauses, plan};

    #[test]
    fn the_plan_is_the_same_in_every_run_and_has_bursts_pauses_and_held_transactions() {
        let planned = plan(10_000);
        assert_eq!(planned, plan(10_000));
        assert_eq!(planned.len(), 10_000);
        assert!(planned.is_sorted_by_key(|one| one.begins));
        let held = planned.iter().filter(|one| !one.held.is_zero()).count();
        assert!((1_500..2_500).contains(&held), "{held}");
        assert!(long_pauses(&planned) >= 100, "{}", long_pauses(&planned));
        let longest = planned.iter().map(|one| one.held).max().unwrap();
        assert!(longest <= Duration::from_millis(50));
    }

    #[test]
    fn dice_fall_evenly_from_0_to_1() {
        let mut dice = Dice(1);
        let rolls: Vec<f64> = (0..10_000).map(|_| dice.roll()).collect();
        assert!(rolls.iter().all(|roll| (0.0..1.0).contains(roll)));
        let below = rolls.iter().filter(|roll| **roll < 0.25).count();
        assert!((2_300..2_700).contains(&below), "{below}");
    }
}
