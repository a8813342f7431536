//! Several relays on one outbox: whether they share the work, get in each other's way, or do it twice.

use std::{fmt, time::Instant};

use anyhow::{Context, Result, ensure};
use postrider_testbed::QueueKind;
use serde::Serialize;

use crate::{
    chart::{Chart, Scale, Series},
    cpu::CpuTimes,
    deliveries::Deliveries,
    fleet::{self, Fleet},
    queue::Queue,
    report::grouped,
    stage::{self, Stage},
    statistics::Spread,
    throughput::PAYLOAD_BYTES,
};

/// How many relays there are.
const COUNTS: [u32; 3] = [1, 2, 4];

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelaysPlan {
    pub(crate) rounds: u32,
    pub(crate) short: bool,
}

impl RelaysPlan {
    fn messages(self) -> u32 {
        if self.short { 40_000 } else { 200_000 }
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
    let fleet = Fleet::start(stage, &installation, relays, &[]).await?;
    let writer = installation.database.client().await?;
    writer.batch_execute("BEGIN").await?;
    stage::insert(&writer, &queue.name, &[b'x'; PAYLOAD_BYTES], messages).await?;
    writer.batch_execute("ANALYZE outbox.messages").await?;
    let other = installation.database.client().await?;
    other.batch_execute("CHECKPOINT").await?;
    stage.wait_until_quiet().await?;

    let earlier = fleet.published().await?;
    let before = stage.cpu(fleet.cpu_seconds()?)?;
    let began = Instant::now();
    writer.batch_execute("COMMIT").await?;
    let (published, elapsed) = fleet.until_published(&earlier, messages, began).await?;
    let cpu_us_a_message = stage
        .cpu(fleet.cpu_seconds()?)?
        .microseconds_a_message(before, messages);
    fleet.stop().await?;
    let beyond = queue.beyond(messages).await?;
    let duplicates = Deliveries::of(stage, &queue.name, messages + beyond)
        .await?
        .repeats;
    ensure!(
        duplicates == beyond,
        "{} messages are missing",
        duplicates.abs_diff(beyond)
    );
    queue.delete().await?;
    stage.remove(installation).await?;
    let seconds = elapsed.as_secs_f64();
    Ok(Run {
        round,
        relays,
        seconds,
        messages_a_second: f64::from(messages) / seconds,
        cpu_us_a_message,
        shares: fleet::shares(&published),
        duplicates,
    })
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
        let equal = || own().map(|run| fleet::of_an_equal_share(&run.shares));
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
            least: Spread::of(equal().map(|(least, _)| least))?,
            most: Spread::of(equal().map(|(_, most)| most))?,
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
