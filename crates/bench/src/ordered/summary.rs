//! What the rounds come to: medians, ratios within a round, the table and the drawings.

use std::fmt;

use serde::Serialize;

use super::{
    Ordered,
    case::{Case, REFERENCE, UNORDERED},
    measurement::Run,
};
use crate::{
    chart::{Chart, Scale, Series},
    fleet,
    report::grouped,
    statistics::Spread,
};

/// One line of the table: all rounds of one case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub(super) case: Case,
    messages: u32,
    messages_a_second: Spread,
    /// Against messages without a key in the same round.
    to_unordered: Spread,
    /// Against a thousand keys in the same round.
    to_thousand_keys: Spread,
    /// Of all daemons together, PostgreSQL and the broker.
    cpu_us_a_message: [Spread; 3],
    /// Of all three together, against messages without a key in the same round.
    cpu_to_unordered: Spread,
    /// What one relay did least, and most, as a part of an equal share.
    least: Spread,
    most: Spread,
    /// In all rounds together.
    repeats: u32,
}

/// The lines of the table, in the order of the cases. A case without a run has none.
pub(super) fn summarise(cases: &[Case], runs: &[Run]) -> Vec<Line> {
    let line = |case: &Case| {
        let own = || runs.iter().filter(|run| run.case == *case);
        let spread = |of: fn(&Run) -> f64| Spread::of(own().map(of));
        let against = |other: Case, of: fn(&Run) -> f64| {
            let beside = |own: &Run| {
                let mut runs = runs.iter();
                runs.find(|run| run.round == own.round && run.case == other)
            };
            Spread::of(own().filter_map(|run| Some(of(run) / of(beside(run)?))))
        };
        let equal = || own().map(|run| fleet::of_an_equal_share(&run.shares));
        Some(Line {
            case: *case,
            messages: own().next()?.messages,
            messages_a_second: spread(|run| run.messages_a_second)?,
            to_unordered: against(UNORDERED, |run| run.messages_a_second)?,
            to_thousand_keys: against(REFERENCE, |run| run.messages_a_second)?,
            cpu_us_a_message: [
                spread(|run| run.cpu_us_a_message.publisher)?,
                spread(|run| run.cpu_us_a_message.postgres)?,
                spread(|run| run.cpu_us_a_message.broker)?,
            ],
            cpu_to_unordered: against(UNORDERED, |run| run.cpu_us_a_message.all())?,
            least: Spread::of(equal().map(|(least, _)| least))?,
            most: Spread::of(equal().map(|(_, most)| most))?,
            repeats: own().map(|run| run.repeats).sum(),
        })
    };
    cases.iter().filter_map(line).collect()
}

impl Ordered {
    /// What order leaves of the rate, and what it adds to the cost.
    pub(crate) fn charts(&self) -> [Chart; 2] {
        let labels = || self.summary.iter().map(|line| line.case.label()).collect();
        let series = |name: &str, of: fn(&Line) -> Spread| Series {
            name: name.to_owned(),
            values: self.summary.iter().map(|line| Some(of(line))).collect(),
        };
        [
            Chart {
                name: "ordered",
                title: "Order by key: an outbox drained, against messages without a key".to_owned(),
                unit: "of the others' messages/s".to_owned(),
                scale: Scale::Linear,
                labels: labels(),
                series: vec![
                    series("of those without a key", |line| line.to_unordered),
                    series("of a thousand keys", |line| line.to_thousand_keys),
                ],
            },
            Chart {
                name: "ordered-cpu",
                title: "Order by key: CPU time of a message".to_owned(),
                unit: "µs".to_owned(),
                scale: Scale::Linear,
                labels: labels(),
                series: vec![
                    series(
                        "daemons",
                        |Line {
                             cpu_us_a_message: [cpu, _, _],
                             ..
                         }| *cpu,
                    ),
                    series(
                        "PostgreSQL",
                        |Line {
                             cpu_us_a_message: [_, cpu, _],
                             ..
                         }| *cpu,
                    ),
                    series(
                        "broker",
                        |Line {
                             cpu_us_a_message: [_, _, cpu],
                             ..
                         }| *cpu,
                    ),
                ],
            },
        ]
    }
}

impl fmt::Display for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Order by key: {} persistent messages of {} bytes to a quorum queue, medians of {} interleaved rounds (lowest \
             to highest)\n",
            grouped(f64::from(self.messages)),
            self.payload_bytes,
            self.rounds
        )?;
        writeln!(
            f,
            "| | messages/s | of those without a key | of 1,000 keys | CPU/message: daemons | PostgreSQL | broker \
             | all three, of those without a key | least share, of an equal one | most | repeats |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for line in &self.summary {
            let part = |part: Spread| part.written(|value| format!("{value:.2}"));
            let [daemons, postgres, broker] = line
                .cpu_us_a_message
                .map(|cpu| cpu.written(|value| format!("{value:.1} µs")));
            let mut name = line.case.name();
            if line.messages != self.messages {
                name.push_str(&format!(
                    " ({} messages)",
                    grouped(f64::from(line.messages))
                ));
            }
            writeln!(
                f,
                "| {name} | {} | {} | {} | {daemons} | {postgres} | {broker} | {} | {} | {} | {} |",
                line.messages_a_second.written(grouped),
                part(line.to_unordered),
                part(line.to_thousand_keys),
                part(line.cpu_to_unordered),
                part(line.least),
                part(line.most),
                line.repeats
            )?;
        }
        writeln!(
            f,
            "\nEach message came at least once, and the first deliveries of each key came in the order of its messages."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Ordered,
            case::{Case, FULL, REFERENCE, UNORDERED},
            measurement::Run,
        },
        summarise,
    };
    use crate::cpu::CpuTimes;

    fn run(round: u32, case: Case, rate: f64, shares: &[f64]) -> Run {
        Run {
            round,
            case,
            messages: case.messages(1_000),
            seconds: 1.0,
            messages_a_second: rate,
            cpu_us_a_message: CpuTimes {
                publisher: 1e3 / rate,
                postgres: 1e3 / rate,
                broker: 2e3 / rate,
            },
            shares: shares.to_vec(),
            repeats: 1,
        }
    }

    fn two_relays() -> Case {
        *FULL.iter().find(|case| case.relays == 2).unwrap()
    }

    /// The second round twice as fast as the first one: no ratio may show that.
    fn runs() -> Vec<Run> {
        let mut runs = Vec::new();
        for (round, speed) in [(1, 1.0), (2, 2.0)] {
            runs.push(run(round, two_relays(), 90.0 * speed, &[0.25, 0.75]));
            runs.push(run(round, UNORDERED, 125.0 * speed, &[1.0]));
            runs.push(run(round, REFERENCE, 100.0 * speed, &[1.0]));
        }
        runs
    }

    #[test]
    fn everything_is_compared_with_the_messages_without_a_key_and_with_a_thousand_keys_of_its_round()
     {
        let lines = summarise(&FULL, &runs());
        let [unordered, reference, relays] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(unordered.to_unordered.max, 1.0);
        assert_eq!(unordered.to_thousand_keys.min, 1.25);
        assert_eq!(
            (reference.to_unordered.min, reference.to_unordered.max),
            (0.8, 0.8)
        );
        assert_eq!(reference.cpu_to_unordered.median, 1.25);
        assert_eq!(relays.to_thousand_keys.median, 0.9);
        assert_eq!((relays.least.min, relays.most.max), (0.5, 1.5));
        assert_eq!(relays.repeats, 2);
    }

    #[test]
    fn every_line_has_as_many_cells_as_the_head_and_says_where_it_had_fewer_messages() {
        let mut runs = runs();
        let one_key = FULL[1];
        runs.push(run(1, one_key, 10.0, &[1.0]));
        let ordered = Ordered {
            rounds: 2,
            messages: 1_000,
            payload_bytes: 256,
            summary: summarise(&FULL, &runs),
            runs,
        };
        let text = ordered.to_string();
        let cells: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert_eq!(cells, [12; 2 + 4]);
        assert!(
            text.contains("| 1 key (50 messages) | 10 | 0.08 |"),
            "{text}"
        );
        assert_eq!(ordered.charts().map(|chart| chart.labels.len()), [4, 4]);
    }
}
