//! Two sides that do the same, in turns, and what the second needs against the first.
//!
//! The ratio is taken within each round and its median over the rounds: what drifts on a shared machine from one minute
//! to the next is in both sides of a round. Who goes first changes with each round, so that what drifts within one
//! favours nobody.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    cpu::CpuTimes, drain::Drained, report::grouped, statistics::Spread, throughput::PAYLOAD_BYTES,
    work::Work,
};

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DuelPlan {
    pub(crate) rounds: u32,
    /// Good ones, of one measurement.
    pub(crate) messages: u32,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// What the other is compared with.
    First,
    /// What is in question.
    Second,
}

/// What one measurement gave.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) drained: Drained,
    /// Good messages that were delivered once more than needed.
    pub(crate) repeats: u32,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
struct Run {
    round: u32,
    side: Side,
    seconds: f64,
    messages_a_second: f64,
    cpu_us_a_message: CpuTimes,
    peak_memory_bytes: Option<u64>,
    repeats: u32,
    work: Work,
}

/// What a run says of one quantity.
type Told = fn(&Run) -> Option<f64>;

/// What is told of both sides, in the order of the table. Missing where the daemon does not tell it.
const QUANTITIES: [(&str, Told); 13] = [
    ("messages/s", |run| Some(run.messages_a_second)),
    ("CPU µs/message: daemon", |run| {
        Some(run.cpu_us_a_message.publisher)
    }),
    ("CPU µs/message: PostgreSQL", |run| {
        Some(run.cpu_us_a_message.postgres)
    }),
    ("CPU µs/message: broker", |run| {
        Some(run.cpu_us_a_message.broker)
    }),
    // What the broker does for one and the same message differs by a third from drain to drain: without it a small
    // difference shows.
    ("CPU µs/message: daemon and PostgreSQL", |run| {
        Some(run.cpu_us_a_message.publisher + run.cpu_us_a_message.postgres)
    }),
    ("CPU µs/message: all three", |run| {
        Some(run.cpu_us_a_message.all())
    }),
    ("peak memory of the daemon, MiB", |run| {
        Some(run.peak_memory_bytes? as f64 / (1024.0 * 1024.0))
    }),
    ("batches", |run| run.work.batches),
    ("ms/batch: claim", |run| run.work.claim_ms_a_batch),
    ("ms/batch: publish", |run| run.work.publish_ms_a_batch),
    ("ms/batch: settle", |run| run.work.settle_ms_a_batch),
    ("publishes that failed", |run| {
        // Not `sum`, which is -0.0 for nothing.
        Some(run.work.failures.values().fold(0.0, |sum, of| sum + of))
    }),
    ("good messages delivered again", |run| {
        Some(f64::from(run.repeats))
    }),
];

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
struct Line {
    quantity: &'static str,
    first: Spread,
    second: Spread,
    /// Second to first, round by round. Missing where the first is zero in a round.
    ratio: Option<Spread>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Duel {
    messages: u32,
    payload_bytes: usize,
    rounds: u32,
    first: String,
    second: String,
    summary: Vec<Line>,
    runs: Vec<Run>,
}

impl Duel {
    /// Measures both sides, called `names`, in turns, after one drain that does not count: the first one finds
    /// servers that have just been started.
    ///
    /// # Errors
    /// A measurement fails.
    pub(crate) async fn fight(
        plan: DuelPlan,
        names: [&str; 2],
        turn: impl AsyncFn(Side) -> Result<Turn>,
    ) -> Result<Self> {
        let [first, second] = names;
        turn(Side::First).await.context("warming up")?;
        let mut runs = Vec::new();
        for round in 1..=plan.rounds {
            for side in order(round) {
                let name = match side {
                    Side::First => first,
                    Side::Second => second,
                };
                let Turn { drained, repeats } =
                    turn(side).await.with_context(|| name.to_owned())?;
                let seconds = drained.measured.elapsed.as_secs_f64();
                let run = Run {
                    round,
                    side,
                    seconds,
                    messages_a_second: f64::from(plan.messages) / seconds,
                    cpu_us_a_message: drained.measured.cpu_us_a_message,
                    peak_memory_bytes: drained.measured.peak_memory_bytes,
                    repeats,
                    work: drained.work,
                };
                println!(
                    "round {round} of {}: {name:<27} {:>8} messages/s",
                    plan.rounds,
                    grouped(run.messages_a_second)
                );
                runs.push(run);
            }
        }
        println!();
        Ok(Self {
            messages: plan.messages,
            payload_bytes: PAYLOAD_BYTES,
            rounds: plan.rounds,
            first: first.to_owned(),
            second: second.to_owned(),
            summary: summarise(&runs),
            runs,
        })
    }
}

fn order(round: u32) -> [Side; 2] {
    if round.is_multiple_of(2) {
        [Side::Second, Side::First]
    } else {
        [Side::First, Side::Second]
    }
}

/// What a run does not tell, and what never happened, has no line.
fn summarise(runs: &[Run]) -> Vec<Line> {
    let line = |(quantity, of): (&'static str, Told)| {
        // In the order of the rounds, whoever went first.
        let values = |side| -> Option<Vec<f64>> {
            let of_side = runs.iter().filter(|run| run.side == side);
            of_side.map(of).collect()
        };
        let (first, second) = (values(Side::First)?, values(Side::Second)?);
        let happened = first.iter().chain(&second).any(|value| *value != 0.0);
        let ratio = first
            .iter()
            .all(|value| *value != 0.0)
            .then(|| {
                Spread::of(
                    first
                        .iter()
                        .zip(&second)
                        .map(|(first, second)| second / first),
                )
            })
            .flatten();
        happened.then_some(Line {
            quantity,
            first: Spread::of(first.iter().copied())?,
            second: Spread::of(second.iter().copied())?,
            ratio,
        })
    };
    QUANTITIES.into_iter().filter_map(line).collect()
}

impl fmt::Display for Duel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} persistent messages of {} bytes to a quorum queue, medians of {} interleaved rounds (lowest to highest)\n",
            grouped(f64::from(self.messages)),
            self.payload_bytes,
            self.rounds
        )?;
        writeln!(
            f,
            "| | {first} | {second} | {second} / {first} |",
            first = self.first,
            second = self.second
        )?;
        writeln!(f, "|---|---:|---:|---:|")?;
        for line in &self.summary {
            let ratio = line.ratio.map_or_else(
                || "-".to_owned(),
                |ratio| format!("{:.3} ({:.3} to {:.3})", ratio.median, ratio.min, ratio.max),
            );
            writeln!(
                f,
                "| {} | {} | {} | {ratio} |",
                line.quantity,
                written(line.first),
                written(line.second)
            )?;
        }
        Ok(())
    }
}

/// A spread with as many digits as its size asks for.
fn written(spread: Spread) -> String {
    let number = |value: f64| {
        if spread.max >= 1_000.0 {
            grouped(value)
        } else {
            format!("{value:.1}")
        }
    };
    format!(
        "{} ({} to {})",
        number(spread.median),
        number(spread.min),
        number(spread.max)
    )
}

#[cfg(test)]
mod tests {
    use super::{Line, Run, Side, order, summarise, written};
    use crate::{cpu::CpuTimes, statistics::Spread, work::Work};

    fn run(round: u32, side: Side, rate: f64, cpu: f64, repeats: u32) -> Run {
        Run {
            round,
            side,
            seconds: 1.0,
            messages_a_second: rate,
            cpu_us_a_message: CpuTimes {
                publisher: cpu,
                postgres: 2.0 * cpu,
                broker: 3.0 * cpu,
            },
            peak_memory_bytes: None,
            repeats,
            work: Work::default(),
        }
    }

    /// Each round twice as fast as the one before it: no ratio may show that.
    fn runs(repeats: [u32; 2]) -> Vec<Run> {
        let mut runs = Vec::new();
        for (round, speed, ratio) in [(1, 1.0, 0.9), (2, 2.0, 0.98), (3, 4.0, 1.01)] {
            for side in order(round) {
                let (rate, cpu, repeats) = match side {
                    Side::First => (100.0 * speed, 10.0, repeats[0]),
                    Side::Second => (100.0 * speed * ratio, 11.0, repeats[1]),
                };
                runs.push(run(round, side, rate, cpu, repeats));
            }
        }
        runs
    }

    fn line<'a>(lines: &'a [Line], quantity: &str) -> Option<&'a Line> {
        lines.iter().find(|line| line.quantity == quantity)
    }

    fn close(found: Option<Spread>, median: f64, min: f64, max: f64) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        found.is_some_and(|found| {
            near(found.median, median) && near(found.min, min) && near(found.max, max)
        })
    }

    #[test]
    fn each_side_goes_first_in_every_second_round() {
        assert_eq!(order(1), [Side::First, Side::Second]);
        assert_eq!(order(2), [Side::Second, Side::First]);
        assert_eq!(order(3), order(1));
    }

    #[test]
    fn ratios_are_taken_within_a_round_whoever_went_first() {
        let lines = summarise(&runs([0, 0]));
        let rate = line(&lines, "messages/s").unwrap();
        assert!(close(rate.ratio, 0.98, 0.9, 1.01), "{rate:?}");
        assert!(close(Some(rate.first), 200.0, 100.0, 400.0), "{rate:?}");
        assert!(close(Some(rate.second), 196.0, 90.0, 404.0), "{rate:?}");
        let all = line(&lines, "CPU µs/message: all three").unwrap();
        assert!(close(all.ratio, 1.1, 1.1, 1.1), "{all:?}");
        assert!(close(Some(all.first), 60.0, 60.0, 60.0), "{all:?}");
    }

    #[test]
    fn what_no_run_tells_or_never_happened_has_no_line_and_nothing_is_divided_by_zero() {
        let lines = summarise(&runs([0, 0]));
        assert!(line(&lines, "peak memory of the daemon, MiB").is_none());
        assert!(line(&lines, "good messages delivered again").is_none());
        let lines = summarise(&runs([0, 7]));
        let repeats = line(&lines, "good messages delivered again").unwrap();
        assert!(close(Some(repeats.second), 7.0, 7.0, 7.0), "{repeats:?}");
        assert_eq!(repeats.ratio, None);
    }

    #[test]
    fn small_quantities_are_written_with_a_fraction() {
        let spread = |median, min, max| Spread { median, min, max };
        assert_eq!(written(spread(9.94, 9.0, 10.0)), "9.9 (9.0 to 10.0)");
        assert_eq!(
            written(spread(31_000.4, 900.0, 32_000.0)),
            "31,000 (900 to 32,000)"
        );
    }
}
