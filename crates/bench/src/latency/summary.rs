//! What the rounds come to: medians of their percentiles, the table and the drawing.

use std::fmt;

use serde::Serialize;

use super::{Latency, Run};
use crate::{
    chart::{Chart, Scale, Series},
    contender::{Contender, Loop},
    report::grouped,
    statistics::Spread,
};

/// One line of the table: all rounds of one relay at one rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    rate: u32,
    relay: &'static str,
    /// From the moment at which COMMIT had returned, in milliseconds: of the percentiles of each round.
    p50: Spread,
    p99: Spread,
    p99_9: Spread,
    max: Spread,
    /// How long COMMIT took, in milliseconds.
    commit_p50: Spread,
    reached_rate: Spread,
    producer_late_ms_max: Spread,
    relay_cpu_share: Spread,
}

/// How a percentile is called, and where it stands.
type Percentile = (&'static str, fn(&Line) -> Spread);

const PERCENTILES: [Percentile; 3] = [
    ("p50", |line| line.p50),
    ("p99", |line| line.p99),
    ("p99.9", |line| line.p99_9),
];

/// `None` when a case has no run.
pub(super) fn summarise(cases: &[(u32, Contender)], runs: &[Run]) -> Option<Vec<Line>> {
    let line = |&(rate, contender): &(u32, Contender)| {
        let spread = |of: fn(&Run) -> f64| {
            let runs = runs.iter();
            let of_case = runs.filter(|run| run.rate == rate && run.relay == contender.name());
            Spread::of(of_case.map(of))
        };
        Some(Line {
            rate,
            relay: contender.name(),
            p50: spread(|run| run.after_commit_ms.p50)?,
            p99: spread(|run| run.after_commit_ms.p99)?,
            p99_9: spread(|run| run.after_commit_ms.p99_9)?,
            max: spread(|run| run.after_commit_ms.max)?,
            commit_p50: spread(|run| run.commit_ms.p50)?,
            reached_rate: spread(|run| run.reached_rate)?,
            producer_late_ms_max: spread(|run| run.producer_late_ms_max)?,
            relay_cpu_share: spread(|run| run.relay_cpu_share)?,
        })
    };
    cases.iter().map(line).collect()
}

impl Latency {
    /// The percentiles by rate and relay.
    pub(crate) fn chart(&self) -> Chart {
        let mut rates: Vec<u32> = self.summary.iter().map(|line| line.rate).collect();
        rates.dedup();
        let groups = || {
            rates
                .iter()
                .flat_map(|rate| PERCENTILES.map(|of| (*rate, of)))
        };
        let series = |contender: Contender| {
            let value = |(rate, (_, of)): (u32, Percentile)| {
                let mut lines = self.summary.iter();
                let line =
                    lines.find(|line| line.rate == rate && line.relay == contender.name())?;
                Some(of(line))
            };
            Series {
                name: contender.name().to_owned(),
                values: groups().map(value).collect(),
            }
        };
        Chart {
            name: "latency",
            title: "Latency: from commit to consumer, by messages a second".to_owned(),
            unit: "ms".to_owned(),
            scale: Scale::Logarithmic,
            labels: groups()
                .map(|(rate, (percentile, _))| {
                    format!("{}/s {percentile}", grouped(f64::from(rate)))
                })
                .collect(),
            series: vec![
                series(Contender::Postrider),
                series(Contender::Polling),
                series(Contender::Loop(Loop::Listening)),
            ],
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Latency: from COMMIT answered to the consumer of a quorum queue, messages of {} bytes, one a transaction, for {} s; \
             milliseconds, medians of {} interleaved rounds (lowest to highest)\n",
            self.payload_bytes, self.seconds, self.rounds
        )?;
        writeln!(
            f,
            "| messages/s | reached | relay | p50 | p99 | p99.9 | max | COMMIT itself, p50 | producers late, max | CPU of the relay |"
        )?;
        writeln!(f, "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.summary {
            write!(
                f,
                "| {} | {} | {}",
                grouped(f64::from(line.rate)),
                line.reached_rate.written(grouped),
                line.relay
            )?;
            for values in [line.p50, line.p99, line.p99_9, line.max] {
                write!(f, " | {}", values.written(|value| format!("{value:.2}")))?;
            }
            writeln!(
                f,
                " | {:.2} | {:.1} | {:.1} % |",
                line.commit_p50.median,
                line.producer_late_ms_max.max,
                line.relay_cpu_share.median * 100.0
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cases, Latency, Run, summarise};
    use crate::statistics::Percentiles;

    fn run(round: u32, rate: u32, relay: &'static str, p50: f64) -> Run {
        let values = Percentiles::of([p50, 3.0 * p50]).unwrap();
        Run {
            round,
            rate,
            relay,
            messages: 2,
            reached_rate: 0.5 * f64::from(rate),
            after_commit_ms: values,
            with_commit_ms: values,
            commit_ms: values,
            producer_late_ms_max: 1.0,
            relay_cpu_share: 0.01,
        }
    }

    #[test]
    fn each_rate_has_a_line_for_each_relay_and_only_low_ones_for_the_loop() {
        let cases = cases(&[100, 5_000]);
        let mut runs = Vec::new();
        for round in 1..=3 {
            for (rate, contender) in &cases {
                runs.push(run(round, *rate, contender.name(), f64::from(round)));
            }
        }
        let latency = Latency {
            seconds: 10,
            rounds: 3,
            payload_bytes: 256,
            summary: summarise(&cases, &runs).unwrap(),
            runs: runs.clone(),
        };
        let text = latency.to_string();
        let heads: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(" | 2.00 (1.00 to 3.00) | 6.00 (3.00 to 9.00) |"))
            .filter_map(|line| line.split(" | 2.00").next())
            .collect();
        assert_eq!(
            heads,
            [
                "| 100 | 50 | postrider",
                "| 100 | 50 | postrider, polling alone",
                "| 100 | 50 | loop that always listens",
                "| 5,000 | 2,500 | postrider",
                "| 5,000 | 2,500 | postrider, polling alone",
            ]
        );
        runs.retain(|run| run.relay != "loop that always listens");
        assert!(summarise(&cases, &runs).is_none());
    }
}
