//! Several relays on one outbox: whether they share the work, get in each other's way, or do it twice.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, future::try_join_all};
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use postrider_testbed::{Daemon, QueueKind};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    chart::{Chart, Scale, Series},
    cpu::CpuTimes,
    daemon::{self, Sample},
    queue::Queue,
    report::grouped,
    stage::{self, Stage},
    statistics::Spread,
    throughput::PAYLOAD_BYTES,
};

/// How many relays there are.
const COUNTS: [u32; 3] = [1, 2, 4];

/// How often the daemons' counters are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A rate so low that something is wrong.
const LEAST_PER_SECOND: u32 = 500;

/// How long the next message of a queue that holds it may take to be delivered.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(60);

/// So many messages are acknowledged together when they are counted.
const ACKNOWLEDGED: u16 = 1_000;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelaysPlan {
    pub(crate) rounds: u32,
    pub(crate) short: bool,
}

impl RelaysPlan {
    fn messages(self) -> u32 {
        if self.short { 60_000 } else { 200_000 }
    }
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    relays: u32,
    seconds: f64,
    messages_a_second: f64,
    cpu_us_a_message: CpuTimes,
    /// Of each relay, as a part of 1.
    shares: Vec<f64>,
    duplicates: u32,
}

/// What a number of relays gave.
#[derive(Clone, Debug, Serialize)]
struct Line {
    relays: u32,
    messages_a_second: Spread,
    /// Of the rate of one relay in the same round.
    ratio: Spread,
    /// Of all daemons together, PostgreSQL and the broker.
    cpu_us_a_message: [Spread; 3],
    /// The least that one of them did, as a part of an equal share.
    least: Spread,
    /// The most.
    most: Spread,
    /// In all rounds together.
    duplicates: u32,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Relays {
    rounds: u32,
    messages: u32,
    payload_bytes: usize,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Drains the same backlog by one relay, by two and by four, round by round.
///
/// # Errors
/// A measurement fails, or a message is missing. One that was delivered twice is counted.
pub(crate) async fn measure(stage: &Stage, plan: RelaysPlan) -> Result<Relays> {
    println!("Measuring several relays on one outbox.\n");
    let mut runs = Vec::new();
    // The servers have just been started.
    measure_one(stage, plan, 0, 1).await.context("warming up")?;
    for round in 1..=plan.rounds {
        let mut counts = COUNTS;
        if round.is_multiple_of(2) {
            counts.reverse();
        }
        for relays in counts {
            let run = measure_one(stage, plan, round, relays)
                .await
                .with_context(|| format!("with {relays} relays"))?;
            println!(
                "round {round} of {}: relays: {relays} {:>8} messages/s",
                plan.rounds,
                grouped(run.messages_a_second)
            );
            runs.push(run);
        }
    }
    println!();
    Ok(Relays {
        rounds: plan.rounds,
        messages: plan.messages(),
        payload_bytes: PAYLOAD_BYTES,
        summary: summarise(&runs),
        runs,
    })
}

async fn measure_one(stage: &Stage, plan: RelaysPlan, round: u32, relays: u32) -> Result<Run> {
    let messages = plan.messages();
    let installation = stage.install(&stage.binary).await?;
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let mut daemons = Vec::new();
    for number in 1..=relays {
        let name = format!("bench-{number}");
        let daemon =
            daemon::start_with(stage, &installation, &[("POSTRIDER_RELAY_NAME", &name)]).await?;
        daemons.push(daemon);
    }
    let writer = installation.database.client().await?;
    writer.batch_execute("BEGIN").await?;
    stage::insert(&writer, &queue.name, &[b'x'; PAYLOAD_BYTES], messages).await?;
    writer.batch_execute("ANALYZE outbox.messages").await?;
    let other = installation.database.client().await?;
    other.batch_execute("CHECKPOINT").await?;
    stage.wait_until_quiet().await?;

    let before = stage.cpu(cpu_of(&daemons)?)?;
    let began = Instant::now();
    writer.batch_execute("COMMIT").await?;
    let (published, elapsed) = until_all_published(&daemons, messages, began).await?;
    let cpu_us_a_message = stage
        .cpu(cpu_of(&daemons)?)?
        .microseconds_a_message(before, messages);
    for daemon in daemons {
        daemon::stop(daemon).await?;
    }
    let beyond = queue.beyond(messages).await?;
    let duplicates = repeated(stage, &queue.name, messages + beyond).await?;
    ensure!(
        duplicates == beyond,
        "{} messages are missing",
        duplicates.abs_diff(beyond)
    );
    queue.delete().await?;
    stage.remove(installation).await?;
    let total: f64 = published.iter().sum();
    let seconds = elapsed.as_secs_f64();
    Ok(Run {
        round,
        relays,
        seconds,
        messages_a_second: f64::from(messages) / seconds,
        cpu_us_a_message,
        shares: published.iter().map(|own| own / total).collect(),
        duplicates,
    })
}

fn cpu_of(daemons: &[Daemon]) -> Result<f64> {
    daemons.iter().map(Daemon::cpu_seconds).sum()
}

/// What each has published when all together had published all, and how long it took.
async fn until_all_published(
    daemons: &[Daemon],
    messages: u32,
    began: Instant,
) -> Result<(Vec<f64>, Duration)> {
    let deadline = Duration::from_secs(60 + u64::from(messages / LEAST_PER_SECOND));
    loop {
        let samples = try_join_all(daemons.iter().map(Sample::take)).await?;
        let elapsed = began.elapsed();
        let published: Vec<f64> = samples.iter().map(Sample::published).collect();
        if published.iter().sum::<f64>() >= f64::from(messages) {
            return Ok((published, elapsed));
        }
        if elapsed >= deadline {
            let logs: Vec<String> = daemons.iter().map(Daemon::log).collect();
            bail!(
                "not all messages were published within {deadline:?}:\n{}",
                logs.join("\n")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How many of the queue's messages have an id that another one before them had. Empties the queue.
async fn repeated(stage: &Stage, queue: &str, messages: u32) -> Result<u32> {
    let connection = stage.vhost.connection().await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(2 * ACKNOWLEDGED, BasicQosOptions::default())
        .await?;
    let mut deliveries = channel
        .basic_consume(
            queue.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .context("could not consume")?;
    let mut times: HashMap<String, u32> = HashMap::with_capacity(messages as usize);
    for number in 1..=messages {
        let delivery = timeout(DELIVERY_DEADLINE, deliveries.next())
            .await
            .with_context(|| format!("only {} of {messages} messages came", number - 1))?
            .context("the broker cancelled the consumer")??;
        let id = delivery
            .properties
            .message_id()
            .as_ref()
            .context("a message has no message-id")?;
        *times.entry(id.as_str().to_owned()).or_default() += 1;
        if number.is_multiple_of(u32::from(ACKNOWLEDGED)) || number == messages {
            delivery.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    connection
        .close(200, "done".into())
        .await
        .context("could not close the consumer's connection")?;
    Ok(times.values().map(|times| times - 1).sum())
}

fn summarise(runs: &[Run]) -> Vec<Line> {
    let alone = |round: u32| {
        runs.iter()
            .find(|run| run.round == round && run.relays == 1)
            .map(|run| run.messages_a_second)
    };
    let line = |relays: u32| {
        let own = || runs.iter().filter(move |run| run.relays == relays);
        let spread = |of: fn(&Run) -> f64| Spread::of(own().map(of));
        let fair = |share: f64| share * f64::from(relays);
        let share = |first: f64, pick: fn(f64, f64) -> f64| {
            Spread::of(own().map(|run| fair(run.shares.iter().copied().fold(first, pick))))
        };
        Some(Line {
            relays,
            messages_a_second: spread(|run| run.messages_a_second)?,
            ratio: Spread::of(
                own().filter_map(|run| Some(run.messages_a_second / alone(run.round)?)),
            )?,
            cpu_us_a_message: [
                spread(|run| run.cpu_us_a_message.publisher)?,
                spread(|run| run.cpu_us_a_message.postgres)?,
                spread(|run| run.cpu_us_a_message.broker)?,
            ],
            least: share(1.0, f64::min)?,
            most: share(0.0, f64::max)?,
            duplicates: own().map(|run| run.duplicates).sum(),
        })
    };
    COUNTS.into_iter().filter_map(line).collect()
}

impl Relays {
    /// What several do together, and how evenly.
    pub(crate) fn chart(&self) -> Chart {
        let series = |name: &str, of: fn(&Line) -> Spread| Series {
            name: name.to_owned(),
            values: self.summary.iter().map(|line| Some(of(line))).collect(),
        };
        Chart {
            name: "relays",
            title: "Several relays on one outbox".to_owned(),
            unit: "of one relay, and of an equal share".to_owned(),
            scale: Scale::Linear,
            labels: self
                .summary
                .iter()
                .map(|line| format!("relays: {}", line.relays))
                .collect(),
            series: vec![
                series("messages/s of all", |line| line.ratio),
                series("least share", |line| line.least),
                series("largest share", |line| line.most),
            ],
        }
    }
}

impl fmt::Display for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Relays: {} persistent messages of {} bytes to a quorum queue, drained by several daemons, medians of {} \
             interleaved rounds (lowest to highest)\n",
            grouped(f64::from(self.messages)),
            self.payload_bytes,
            self.rounds
        )?;
        writeln!(
            f,
            "| relays | messages/s | of one alone | least share, of an equal one | most | duplicates \
             | CPU/message: all daemons | PostgreSQL | broker |"
        )?;
        writeln!(f, "|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.summary {
            let part = |part: Spread| part.written(|value| format!("{value:.2}"));
            let [daemons, postgres, broker] = line
                .cpu_us_a_message
                .map(|cpu| cpu.written(|value| format!("{value:.1} µs")));
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {daemons} | {postgres} | {broker} |",
                line.relays,
                line.messages_a_second.written(grouped),
                part(line.ratio),
                part(line.least),
                part(line.most),
                line.duplicates
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Run, summarise};
    use crate::cpu::CpuTimes;

    fn run(round: u32, relays: u32, rate: f64, shares: &[f64]) -> Run {
        Run {
            round,
            relays,
            seconds: 1.0,
            messages_a_second: rate,
            cpu_us_a_message: CpuTimes {
                publisher: 1.0,
                postgres: 1.0,
                broker: 1.0,
            },
            shares: shares.to_vec(),
            duplicates: relays - 1,
        }
    }

    #[test]
    fn shares_are_told_as_parts_of_an_equal_one_and_rates_within_a_round() {
        let runs = [
            run(1, 1, 100.0, &[1.0]),
            run(1, 2, 90.0, &[0.25, 0.75]),
            run(2, 2, 180.0, &[0.75, 0.25]),
            run(2, 1, 200.0, &[1.0]),
        ];
        let lines = summarise(&runs);
        let [one, two] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!((one.least.median, one.most.median), (1.0, 1.0));
        assert_eq!((two.ratio.min, two.ratio.max), (0.9, 0.9));
        assert_eq!((two.least.min, two.most.max), (0.5, 1.5));
        assert_eq!(two.duplicates, 2);
    }
}
