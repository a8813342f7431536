//! Messages a second to a queue: the relay with a full outbox, against the bare publisher, in interleaved rounds.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use postrider_testbed::QueueKind;
use serde::Serialize;

use crate::{
    bare,
    cpu::CpuTimes,
    drain::{self, Backlog},
    queue::{Queue, name_of},
    report::grouped,
    stage::{Installation, Stage},
    statistics::Spread,
};

/// The size of every payload.
pub(crate) const PAYLOAD_BYTES: usize = 256;

/// What publishes, in the order of the table. The first ones are the broker's limit: whichever is the fastest.
const PUBLISHERS: [Publisher; 3] = [
    Publisher::Bare { channels: 1 },
    Publisher::Bare { channels: 2 },
    Publisher::Relay,
];

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThroughputPlan {
    pub(crate) rounds: u32,
    pub(crate) messages: u32,
}

/// One of the contenders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publisher {
    /// One connection, so many channels, nothing but publishing.
    Bare { channels: u32 },
    /// The daemon.
    Relay,
}

impl Publisher {
    fn name(self) -> String {
        match self {
            Self::Bare { channels: 1 } => "bare publisher, 1 channel".to_owned(),
            Self::Bare { channels } => format!("bare publisher, {channels} channels"),
            Self::Relay => "postrider".to_owned(),
        }
    }
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) elapsed: Duration,
    pub(crate) cpu_us_a_message: CpuTimes,
    /// Of the daemon.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    queue: &'static str,
    publisher: String,
    seconds: f64,
    messages_a_second: f64,
    cpu_us_a_message: CpuTimes,
    peak_memory_bytes: Option<u64>,
}

/// One line of the table: all rounds of one publisher to one kind of queue.
#[derive(Clone, Debug, Serialize)]
struct Line {
    queue: &'static str,
    publisher: String,
    messages_a_second: Spread,
    /// Against the bare publisher with the highest median, round by round.
    ratio: Spread,
    /// Medians.
    cpu_us_a_message: CpuTimes,
    /// The highest.
    peak_memory_bytes: Option<u64>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Throughput {
    messages: u32,
    payload_bytes: usize,
    rounds: u32,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

/// Measures all publishers to both kinds of queue.
///
/// # Errors
/// A measurement fails, or a queue did not get each message once.
pub(crate) async fn measure(stage: &Stage, plan: ThroughputPlan) -> Result<Throughput> {
    let installation = stage.install(&stage.binary).await?;
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        for kind in [QueueKind::Quorum, QueueKind::Classic] {
            let mut publishers = PUBLISHERS;
            // What drifts during a run shall favour nobody.
            if round % 2 == 0 {
                publishers.reverse();
            }
            for publisher in publishers {
                let run = run(stage, &installation, plan, round, kind, publisher, &payload)
                    .await
                    .with_context(|| {
                        format!("{} to a {} queue", publisher.name(), name_of(kind))
                    })?;
                println!(
                    "round {round} of {}: {:<7} {:<27} {:>8} messages/s",
                    plan.rounds,
                    run.queue,
                    run.publisher,
                    grouped(run.messages_a_second)
                );
                runs.push(run);
            }
        }
    }
    println!();
    stage.remove(installation).await?;
    Ok(Throughput {
        messages: plan.messages,
        payload_bytes: PAYLOAD_BYTES,
        rounds: plan.rounds,
        summary: summarise(&runs).context("a measurement is missing")?,
        runs,
    })
}

async fn run(
    stage: &Stage,
    installation: &Installation,
    plan: ThroughputPlan,
    round: u32,
    kind: QueueKind,
    publisher: Publisher,
    payload: &[u8],
) -> Result<Run> {
    let messages = plan.messages;
    let queue = Queue::declare(&stage.control, kind).await?;
    let measured = match publisher {
        Publisher::Bare { channels } => {
            bare::publish(stage, &queue, payload, messages, channels).await?
        }
        Publisher::Relay => {
            let backlog = Backlog {
                payload,
                good: messages,
                faulty: None,
            };
            drain::drain(stage, installation, &queue, &backlog)
                .await?
                .measured
        }
    };
    queue.verify(messages).await?;
    queue.delete().await?;
    let seconds = measured.elapsed.as_secs_f64();
    Ok(Run {
        round,
        queue: name_of(kind),
        publisher: publisher.name(),
        seconds,
        messages_a_second: f64::from(messages) / seconds,
        cpu_us_a_message: measured.cpu_us_a_message,
        peak_memory_bytes: measured.peak_memory_bytes,
    })
}

/// `None` when there is not a run of each publisher to each queue.
fn summarise(runs: &[Run]) -> Option<Vec<Line>> {
    let mut lines = Vec::new();
    for kind in [QueueKind::Quorum, QueueKind::Classic] {
        let of = |publisher: Publisher| -> Vec<&Run> {
            runs.iter()
                .filter(|run| run.queue == name_of(kind) && run.publisher == publisher.name())
                .collect()
        };
        let rates = |runs: &[&Run]| Spread::of(runs.iter().map(|run| run.messages_a_second));
        let limit = PUBLISHERS
            .into_iter()
            .filter(|publisher| *publisher != Publisher::Relay)
            .map(of)
            .max_by(|a, b| {
                let median = |runs: &[&Run]| rates(runs).map_or(0.0, |spread| spread.median);
                median(a).total_cmp(&median(b))
            })?;
        for publisher in PUBLISHERS {
            let runs = of(publisher);
            let cpu = |of: fn(&CpuTimes) -> f64| {
                Some(Spread::of(runs.iter().map(|run| of(&run.cpu_us_a_message)))?.median)
            };
            lines.push(Line {
                queue: name_of(kind),
                publisher: publisher.name(),
                messages_a_second: rates(&runs)?,
                ratio: Spread::of(
                    runs.iter()
                        .zip(&limit)
                        .map(|(run, limit)| run.messages_a_second / limit.messages_a_second),
                )?,
                cpu_us_a_message: CpuTimes {
                    publisher: cpu(|cpu| cpu.publisher)?,
                    postgres: cpu(|cpu| cpu.postgres)?,
                    broker: cpu(|cpu| cpu.broker)?,
                },
                peak_memory_bytes: runs.iter().filter_map(|run| run.peak_memory_bytes).max(),
            });
        }
    }
    Some(lines)
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Throughput: {} persistent messages of {} bytes, medians of {} interleaved rounds (lowest to highest)\n",
            grouped(f64::from(self.messages)),
            self.payload_bytes,
            self.rounds
        )?;
        writeln!(
            f,
            "| queue | publisher | messages/s | of the limit | CPU/message: publisher | PostgreSQL | broker | peak memory |"
        )?;
        writeln!(f, "|---|---|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.summary {
            let (rate, ratio, cpu) = (line.messages_a_second, line.ratio, line.cpu_us_a_message);
            writeln!(
                f,
                "| {} | {} | {} ({} to {}) | {:.2} ({:.2} to {:.2}) | {:.1} µs | {:.1} µs | {:.1} µs | {} |",
                line.queue,
                line.publisher,
                grouped(rate.median),
                grouped(rate.min),
                grouped(rate.max),
                ratio.median,
                ratio.min,
                ratio.max,
                cpu.publisher,
                cpu.postgres,
                cpu.broker,
                line.peak_memory_bytes.map_or_else(
                    || "-".to_owned(),
                    |bytes| format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
                ),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{PUBLISHERS, Publisher, Run, summarise};
    use crate::cpu::CpuTimes;

    fn run(round: u32, queue: &'static str, publisher: Publisher, rate: f64) -> Run {
        Run {
            round,
            queue,
            publisher: publisher.name(),
            seconds: 1.0,
            messages_a_second: rate,
            cpu_us_a_message: CpuTimes {
                publisher: 7.0,
                postgres: 8.0,
                broker: 9.0,
            },
            peak_memory_bytes: None,
        }
    }

    #[test]
    fn the_limit_is_the_faster_bare_publisher_of_each_queue_and_ratios_are_taken_within_a_round() {
        let mut runs = Vec::new();
        for (round, speed) in [(1, 1.0), (2, 0.5)] {
            for (queue, rates) in [
                ("quorum", [100.0, 80.0, 90.0]),
                ("classic", [40.0, 50.0, 25.0]),
            ] {
                for (publisher, rate) in PUBLISHERS.into_iter().zip(rates) {
                    runs.push(run(round, queue, publisher, rate * speed));
                }
            }
        }
        let ratios: Vec<(f64, f64, f64)> = summarise(&runs)
            .unwrap()
            .iter()
            .map(|line| (line.ratio.min, line.ratio.median, line.ratio.max))
            .collect();
        let same = |ratio: f64| (ratio, ratio, ratio);
        assert_eq!(ratios, [1.0, 0.8, 0.9, 0.8, 1.0, 0.5].map(same));
    }
}
