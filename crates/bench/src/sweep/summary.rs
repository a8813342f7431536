//! What the rounds come to: medians, ratios within a round and the table.

use std::fmt;

use serde::Serialize;

use super::{Run, Sweep};
use crate::{report::grouped, statistics::Spread};

/// One quantity with one value of the setting.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    quantity: String,
    spread: Spread,
    /// To the value that the others are compared with, round by round.
    ratio: Option<Spread>,
    #[serde(skip)]
    digits: usize,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    value: String,
    cells: Vec<Cell>,
}

/// The lines of the table, in the order of the values. A value without a run has none.
pub(super) fn summarise(values: &[String], against: &str, runs: &[Run]) -> Vec<Line> {
    let figure = |run: &Run, place: usize| run.figures.get(place).map(|figure| figure.value);
    let line = |value: &String| {
        let own = || runs.iter().filter(move |run| run.value == *value);
        let first = own().next()?;
        let cell = |(place, told): (usize, &super::Figure)| {
            let compared = |run: &Run| {
                let mut runs = runs.iter();
                let other =
                    runs.find(|other| other.round == run.round && other.value == against)?;
                Some(figure(run, place)? / figure(other, place)?)
            };
            Some(Cell {
                quantity: told.quantity.clone(),
                spread: Spread::of(own().filter_map(|run| figure(run, place)))?,
                ratio: told
                    .compared
                    .then(|| Spread::of(own().filter_map(compared)))
                    .flatten(),
                digits: told.digits,
            })
        };
        Some(Line {
            value: value.clone(),
            cells: first.figures.iter().enumerate().filter_map(cell).collect(),
        })
    };
    values.iter().filter_map(line).collect()
}

impl Cell {
    fn written(&self) -> String {
        self.spread.written(|value| match self.digits {
            0 => grouped(value),
            digits => format!("{value:.digits$}"),
        })
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, medians of {} interleaved rounds (lowest to highest)\n",
            self.key, self.what, self.rounds
        )?;
        let Some(first) = self.summary.first() else {
            return Ok(());
        };
        write!(f, "| {} |", self.key)?;
        for cell in &first.cells {
            write!(f, " {} |", cell.quantity)?;
            if cell.ratio.is_some() {
                write!(f, " of {} |", self.against)?;
            }
        }
        write!(f, "\n|---:|")?;
        for cell in &first.cells {
            write!(f, "---:|")?;
            if cell.ratio.is_some() {
                write!(f, "---:|")?;
            }
        }
        writeln!(f)?;
        for line in &self.summary {
            write!(f, "| {} |", line.value)?;
            for cell in &line.cells {
                write!(f, " {} |", cell.written())?;
                if let Some(ratio) = cell.ratio {
                    write!(f, " {} |", ratio.written(|value| format!("{value:.2}")))?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Figure, Run, Subject, Sweep},
        summarise,
    };

    fn run(round: u32, value: &str, rate: f64) -> Run {
        Run {
            round,
            value: value.to_owned(),
            figures: vec![
                Figure::compared("messages/s", rate, 0),
                Figure::plain("broker", 20.25, 1),
                Figure::plain("peak", 3.0, 0),
            ],
        }
    }

    /// The second round at half the speed: no ratio may show that.
    fn runs() -> Vec<Run> {
        vec![
            run(1, "1", 8_000.0),
            run(1, "2", 10_000.0),
            run(2, "2", 5_000.0),
            run(2, "1", 4_000.0),
        ]
    }

    fn values() -> Vec<String> {
        ["1", "2"].map(str::to_owned).into()
    }

    #[test]
    fn a_value_is_compared_with_the_named_one_in_the_same_round() {
        let lines = summarise(&values(), "2", &runs());
        let ratios: Vec<_> = lines
            .iter()
            .map(|line| line.cells[0].ratio.unwrap())
            .map(|ratio| (ratio.min, ratio.max))
            .collect();
        assert_eq!(ratios, [(0.8, 0.8), (1.0, 1.0)]);
        assert!(lines.iter().all(|line| line.cells[1].ratio.is_none()));
    }

    #[test]
    fn the_table_can_be_pasted_into_a_page() {
        let sweep = Sweep {
            key: "POSTRIDER_RELAY_WORKERS".to_owned(),
            subject: Subject::Throughput,
            against: "2".to_owned(),
            rounds: 2,
            what: "messages".to_owned(),
            summary: summarise(&values(), "2", &runs()),
            runs: runs(),
        };
        let text = sweep.to_string();
        let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(
            table,
            [
                "| POSTRIDER_RELAY_WORKERS | messages/s | of 2 | broker | peak |",
                "|---:|---:|---:|---:|---:|",
                "| 1 | 6,000 (4,000 to 8,000) | 0.80 | 20.2 | 3 |",
                "| 2 | 7,500 (5,000 to 10,000) | 1.00 | 20.2 | 3 |",
            ]
        );
    }
}
