//! From the commit of a message to its consumer, on an otherwise idle system.
//!
//! The producer keeps to a schedule, whatever the system does: a slow commit delays the messages after it, not the
//! schedule, and so does not thin out the load. Both ends read one monotonic clock, in one process.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use postrider_testbed::QueueKind;
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout_at},
};
use uuid::Uuid;

use crate::{
    daemon,
    queue::Queue,
    report::grouped,
    stage::{CONTENT_TYPE, Installation, Stage},
    statistics::percentile,
};

const PAYLOAD_BYTES: usize = 256;

/// The first second's messages find cold caches and new connections; they are not counted.
const WARM_UP_SECONDS: u32 = 1;

/// How long the last messages may take to arrive.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(30);

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LatencyPlan {
    /// Messages, and so transactions, a second.
    pub(crate) rate: u32,
    pub(crate) seconds: u32,
}

/// The clock around one commit.
#[derive(Clone, Copy, Debug)]
struct Commit {
    id: Uuid,
    /// When the COMMIT was sent.
    sent: Instant,
    /// When the database had answered it.
    answered: Instant,
    /// How far behind its schedule the transaction began.
    late: Duration,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p95: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Percentiles {
    /// `None` without values.
    fn of(mut milliseconds: Vec<f64>) -> Option<Self> {
        milliseconds.sort_unstable_by(f64::total_cmp);
        let at = |share| percentile(&milliseconds, share);
        Some(Self {
            p50: at(0.5)?,
            p95: at(0.95)?,
            p99: at(0.99)?,
            p99_9: at(0.999)?,
            max: at(1.0)?,
        })
    }
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    rate: u32,
    seconds: u32,
    payload_bytes: usize,
    /// How many were counted.
    messages: usize,
    /// From the moment at which COMMIT had returned.
    after_commit_ms: Percentiles,
    /// From the moment at which COMMIT was sent: the database's own time is part of it.
    with_commit_ms: Percentiles,
    /// How long COMMIT took.
    commit_ms: Percentiles,
    /// How far behind its schedule the producer ever was.
    producer_late_ms_max: f64,
    /// Of one core, used by the daemon meanwhile.
    daemon_cpu_share: f64,
}

/// Measures with a quorum queue and a consumer that acknowledges each message.
///
/// # Errors
/// A message is lost or arrives twice, or a server or the daemon fails.
pub(crate) async fn measure(stage: &Stage, plan: LatencyPlan) -> Result<Latency> {
    println!(
        "Measuring the latency for {} s.\n",
        plan.seconds + WARM_UP_SECONDS
    );
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let installation = stage.install(&stage.binary).await?;
    let daemon = daemon::start(stage, &installation).await?;
    let (arrivals_in, arrivals) = mpsc::unbounded_channel();
    let consumer = tokio::spawn(consume(
        stage.vhost.connection().await?,
        queue.name.clone(),
        arrivals_in,
    ));
    stage.wait_until_quiet().await?;

    let cpu_before = daemon.cpu_seconds()?;
    let began = Instant::now();
    let commits = produce(&installation, &queue.name, plan).await?;
    let arrivals = collect(arrivals, &commits)
        .await
        .with_context(|| daemon.log());
    let cpu = (daemon.cpu_seconds()? - cpu_before) / began.elapsed().as_secs_f64();
    let arrivals = match arrivals {
        Ok(arrivals) => arrivals,
        // Nothing is missing by itself where the consumer has failed.
        Err(_) if consumer.is_finished() => {
            consumer.await.context("the consumer panicked")??;
            bail!("the consumer ended");
        }
        Err(error) => return Err(error),
    };
    consumer.abort();
    daemon::stop(daemon).await?;
    queue.delete().await?;
    stage.remove(installation).await?;

    let counted = commits
        .get((plan.rate * WARM_UP_SECONDS) as usize..)
        .unwrap_or_default();
    let since = |from: fn(&Commit) -> Instant| {
        let milliseconds = counted
            .iter()
            .filter_map(|commit| Some(milliseconds(*arrivals.get(&commit.id)?, from(commit))))
            .collect();
        Percentiles::of(milliseconds).context("no message was counted")
    };
    let commit_ms = counted
        .iter()
        .map(|commit| milliseconds(commit.answered, commit.sent))
        .collect();
    Ok(Latency {
        rate: plan.rate,
        seconds: plan.seconds,
        payload_bytes: PAYLOAD_BYTES,
        messages: counted.len(),
        after_commit_ms: since(|commit| commit.answered)?,
        with_commit_ms: since(|commit| commit.sent)?,
        commit_ms: Percentiles::of(commit_ms).context("no message was counted")?,
        producer_late_ms_max: counted
            .iter()
            .map(|commit| commit.late.as_secs_f64() * 1e3)
            .fold(0.0, f64::max),
        daemon_cpu_share: cpu,
    })
}

/// Signed: a message may be with its consumer before the producer has the answer to its COMMIT.
fn milliseconds(to: Instant, from: Instant) -> f64 {
    let forward = to.saturating_duration_since(from).as_secs_f64();
    let backward = from.saturating_duration_since(to).as_secs_f64();
    (forward - backward) * 1e3
}

/// One row in each transaction, by the schedule.
async fn produce(
    installation: &Installation,
    queue: &str,
    plan: LatencyPlan,
) -> Result<Vec<Commit>> {
    let client = installation.database.client().await?;
    let insert = client
        .prepare(
            "INSERT INTO outbox.messages (id, exchange, routing_key, payload, content_type) \
             VALUES ($1, '', $2, $3, $4)",
        )
        .await
        .context("could not prepare the insert")?;
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let messages = plan.rate * (plan.seconds + WARM_UP_SECONDS);
    let every = Duration::from_secs(1) / plan.rate;
    let began = Instant::now();
    let mut commits = Vec::with_capacity(messages as usize);
    for number in 0..messages {
        let due = began + every * number;
        sleep_until(due.into()).await;
        let late = due.elapsed();
        let id = Uuid::new_v4();
        client.batch_execute("BEGIN").await?;
        client
            .execute(&insert, &[&id, &queue, &payload, &CONTENT_TYPE])
            .await
            .context("could not insert a message")?;
        let sent = Instant::now();
        client.batch_execute("COMMIT").await?;
        commits.push(Commit {
            id,
            sent,
            answered: Instant::now(),
            late,
        });
    }
    Ok(commits)
}

/// Reports each message's id and the time of its arrival, then acknowledges it.
async fn consume(
    connection: lapin::Connection,
    queue: String,
    arrivals: mpsc::UnboundedSender<(Uuid, Instant)>,
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
        let arrived = Instant::now();
        let delivery = delivery.context("the consumer failed")?;
        let id = delivery
            .properties
            .message_id()
            .as_ref()
            .and_then(|id| Uuid::parse_str(id.as_str()).ok())
            .context("a message has no UUID as its message-id")?;
        if arrivals.send((id, arrived)).is_err() {
            return Ok(());
        }
        delivery.ack(BasicAckOptions::default()).await?;
    }
    bail!("the broker cancelled the consumer")
}

/// The arrival of each commit's message.
async fn collect(
    mut arrivals: mpsc::UnboundedReceiver<(Uuid, Instant)>,
    commits: &[Commit],
) -> Result<HashMap<Uuid, Instant>> {
    let mut missing: HashSet<Uuid> = commits.iter().map(|commit| commit.id).collect();
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

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Latency: {} messages of {} bytes at {} a second, one a transaction, to the consumer of a quorum queue\n",
            grouped(self.messages as f64),
            self.payload_bytes,
            self.rate
        )?;
        writeln!(f, "| milliseconds | p50 | p95 | p99 | p99.9 | max |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|")?;
        for (what, values) in [
            ("from COMMIT answered to consumer", self.after_commit_ms),
            ("from COMMIT sent to consumer", self.with_commit_ms),
            ("COMMIT itself", self.commit_ms),
        ] {
            writeln!(
                f,
                "| {what} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
                values.p50, values.p95, values.p99, values.p99_9, values.max
            )?;
        }
        writeln!(
            f,
            "\nThe producer was at most {:.1} ms behind its schedule; the daemon used {:.1} % of a core.",
            self.producer_late_ms_max,
            self.daemon_cpu_share * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Percentiles, milliseconds};

    #[test]
    fn an_arrival_before_the_answer_counts_as_negative() {
        let now = Instant::now();
        let later = now + Duration::from_millis(2);
        assert_eq!(milliseconds(later, now), 2.0);
        assert_eq!(milliseconds(now, later), -2.0);
    }

    #[test]
    fn the_slowest_message_is_in_no_percentile_but_the_last() {
        let mut values: Vec<f64> = vec![1.0; 9_999];
        values.push(50.0);
        let found = Percentiles::of(values).unwrap();
        assert_eq!((found.p50, found.p99_9, found.max), (1.0, 1.0, 50.0));
        assert_eq!(Percentiles::of(Vec::new()), None);
    }
}
