//! What the rounds come to: medians, ratios within a round, the tables and the drawing.

use std::fmt;

use postrider_testbed::QueueKind;
use serde::Serialize;

use super::{KINDS, PUBLISHERS, Publisher, Run, Size, Throughput};
use crate::{
    chart::{Chart, Scale, Series},
    contender::{Contender, Loop},
    cpu::CpuTimes,
    queue::name_of,
    report::{grouped, sized},
    statistics::Spread,
};

/// One line of the table: all rounds of one publisher with one size to one kind of queue.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    payload_bytes: u32,
    queue: &'static str,
    publisher: String,
    messages_a_second: Spread,
    /// Against the bare publisher with the highest median, round by round.
    ratio: Spread,
    /// Against the loop written by hand, round by round.
    to_handwritten: Spread,
    /// Medians.
    cpu_us_a_message: CpuTimes,
    /// The highest.
    peak_memory_bytes: Option<u64>,
}

/// `None` when there is not a run of each publisher to each queue with each size.
pub(super) fn summarise(sizes: &[Size], runs: &[Run]) -> Option<Vec<Line>> {
    let mut lines = Vec::new();
    for (size, kind) in sizes.iter().flat_map(|size| KINDS.map(|kind| (size, kind))) {
        // In the order of the rounds.
        let of = |publisher: Publisher| -> Vec<&Run> {
            runs.iter()
                .filter(|run| run.payload_bytes == size.payload_bytes)
                .filter(|run| run.queue == name_of(kind) && run.publisher == publisher.name())
                .collect()
        };
        let rates = |runs: &[&Run]| Spread::of(runs.iter().map(|run| run.messages_a_second));
        let limit = PUBLISHERS
            .into_iter()
            .filter(|publisher| matches!(publisher, Publisher::Bare { .. }))
            .map(of)
            .max_by(|a, b| {
                let median = |runs: &[&Run]| rates(runs).map_or(0.0, |spread| spread.median);
                median(a).total_cmp(&median(b))
            })?;
        let handwritten = of(Publisher::By(Contender::Loop(Loop::Handwritten)));
        for publisher in PUBLISHERS {
            let runs = of(publisher);
            let cpu = |of: fn(&CpuTimes) -> f64| {
                Some(Spread::of(runs.iter().map(|run| of(&run.cpu_us_a_message)))?.median)
            };
            let against = |others: &[&Run]| {
                let pairs = runs.iter().zip(others);
                Spread::of(
                    pairs.map(|(run, other)| run.messages_a_second / other.messages_a_second),
                )
            };
            lines.push(Line {
                payload_bytes: size.payload_bytes,
                queue: name_of(kind),
                publisher: publisher.name(),
                messages_a_second: rates(&runs)?,
                ratio: against(&limit)?,
                to_handwritten: against(&handwritten)?,
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

impl Throughput {
    /// The rates from the outbox against the limit, by size and queue.
    pub(crate) fn chart(&self) -> Chart {
        let groups = || {
            self.sizes
                .iter()
                .flat_map(|size| KINDS.map(|kind| (size, kind)))
        };
        let series = |contender: Contender| {
            let value = |(size, kind): (&Size, QueueKind)| {
                let mut lines = self.summary.iter();
                let line = lines.find(|line| {
                    line.payload_bytes == size.payload_bytes
                        && line.queue == name_of(kind)
                        && line.publisher == contender.name()
                })?;
                Some(line.ratio)
            };
            Series {
                name: contender.name().to_owned(),
                values: groups().map(value).collect(),
            }
        };
        Chart {
            name: "throughput",
            title: "Throughput: an outbox drained, against a bare publisher".to_owned(),
            unit: "of the bare publisher's messages/s".to_owned(),
            scale: Scale::Linear,
            labels: groups()
                .map(|(size, kind)| format!("{}, {}", name_of(kind), sized(size.payload_bytes)))
                .collect(),
            series: vec![
                series(Contender::Postrider),
                series(Contender::Loop(Loop::Handwritten)),
            ],
        }
    }
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, size) in self.sizes.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            writeln!(
                f,
                "Throughput: {} persistent messages of {}, medians of {} interleaved rounds (lowest to highest)\n",
                grouped(f64::from(size.messages)),
                sized(size.payload_bytes),
                size.rounds
            )?;
            writeln!(
                f,
                "| queue | publisher | messages/s | of the limit | of the loop | CPU/message: publisher | PostgreSQL | broker | peak memory |"
            )?;
            writeln!(f, "|---|---|---:|---:|---:|---:|---:|---:|---:|")?;
            let of_size = |line: &&Line| line.payload_bytes == size.payload_bytes;
            for line in self.summary.iter().filter(of_size) {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |spread: Spread| spread.written(|value| format!("{value:.2}"));
        let cpu = self.cpu_us_a_message;
        write!(
            f,
            "| {} | {} | {} | {} | {} | {:.1} µs | {:.1} µs | {:.1} µs | {} |",
            self.queue,
            self.publisher,
            self.messages_a_second.written(grouped),
            ratio(self.ratio),
            ratio(self.to_handwritten),
            cpu.publisher,
            cpu.postgres,
            cpu.broker,
            self.peak_memory_bytes.map_or_else(
                || "-".to_owned(),
                |bytes| format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{PUBLISHERS, Publisher, Run, Size, Throughput, summarise};
    use crate::cpu::CpuTimes;

    const SMALL: Size = Size {
        payload_bytes: 256,
        messages: 1_000,
        rounds: 2,
    };
    const LARGE: Size = Size {
        payload_bytes: 65_536,
        ..SMALL
    };

    fn run(size: Size, round: u32, queue: &'static str, publisher: Publisher, rate: f64) -> Run {
        Run {
            payload_bytes: size.payload_bytes,
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

    /// The second round at half the speed: no ratio may show that.
    fn runs() -> Vec<Run> {
        let mut runs = Vec::new();
        for (size, scale) in [(SMALL, 1.0), (LARGE, 0.1)] {
            for (round, speed) in [(1, scale), (2, 0.5 * scale)] {
                for (queue, rates) in [
                    ("quorum", [100.0, 80.0, 90.0, 60.0]),
                    ("classic", [40.0, 50.0, 25.0, 50.0]),
                ] {
                    for (publisher, rate) in PUBLISHERS.into_iter().zip(rates) {
                        runs.push(run(size, round, queue, publisher, rate * speed));
                    }
                }
            }
        }
        runs
    }

    #[test]
    fn the_limit_is_the_faster_bare_publisher_of_each_queue_and_ratios_are_taken_within_a_round() {
        let lines = summarise(&[SMALL, LARGE], &runs()).unwrap();
        let ratios: Vec<(f64, f64, f64)> = lines
            .iter()
            .map(|line| (line.ratio.min, line.ratio.median, line.ratio.max))
            .collect();
        let same = |ratio: f64| (ratio, ratio, ratio);
        let of_a_size = [1.0, 0.8, 0.9, 0.6, 0.8, 1.0, 0.5, 1.0].map(same);
        assert_eq!(ratios, [of_a_size, of_a_size].concat());
        let to_handwritten: Vec<f64> = lines
            .iter()
            .filter(|line| line.publisher == "postrider")
            .map(|line| line.to_handwritten.median)
            .collect();
        assert_eq!(to_handwritten, [1.5, 0.5, 1.5, 0.5]);
    }

    #[test]
    fn a_missing_measurement_is_no_result() {
        let mut runs = runs();
        runs.retain(|run| run.publisher != "hand-written loop");
        assert!(summarise(&[SMALL], &runs).is_none());
    }

    #[test]
    fn each_size_has_a_table_whose_lines_have_as_many_cells_as_its_head() {
        let throughput = Throughput {
            sizes: vec![SMALL, LARGE],
            summary: summarise(&[SMALL, LARGE], &runs()).unwrap(),
            runs: runs(),
        };
        let text = throughput.to_string();
        let cells: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(cells, [10; 2 * (2 + 8)]);
        assert!(text.contains("messages of 64 KiB"), "{text}");
        assert!(
            text.contains("| quorum | postrider | 68 (45 to 90) | 0.90 | 1.50 |"),
            "{text}"
        );
    }
}
