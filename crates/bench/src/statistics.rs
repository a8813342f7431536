//! Medians, spreads and percentiles.

use serde::Serialize;

/// The median of several measurements, and between what they lay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without any measurement.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            min,
            max,
        })
    }

    /// The median with the lowest and the highest, unless there was one measurement only.
    pub(crate) fn written(self, number: impl Fn(f64) -> String) -> String {
        let median = number(self.median);
        if self.min == self.max {
            return median;
        }
        format!("{median} ({} to {})", number(self.min), number(self.max))
    }
}

/// The smallest of the sorted values that at least `share` (0 to 1) of them do not exceed. `None` without values.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Of one measurement's values, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

impl Percentiles {
    /// `None` without values.
    pub(crate) fn of(milliseconds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut milliseconds: Vec<f64> = milliseconds.into_iter().collect();
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

#[cfg(test)]
mod tests {
    use super::{Percentiles, Spread, percentile};

    #[test]
    fn the_slowest_message_is_in_no_percentile_but_the_last() {
        let mut values: Vec<f64> = vec![1.0; 9_999];
        values.push(50.0);
        let found = Percentiles::of(values).unwrap();
        assert_eq!((found.p50, found.p99_9, found.max), (1.0, 1.0, 50.0));
        assert_eq!(Percentiles::of([]), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            spread,
            Some(Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            })
        );
        assert_eq!(Spread::of([7.0, 9.0, 8.0]).map(|s| s.median), Some(8.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_single_measurement_is_written_without_a_range() {
        let whole = |value: f64| format!("{value:.0}");
        let written = |values: &[f64]| Spread::of(values.iter().copied()).unwrap().written(whole);
        assert_eq!(written(&[3.0]), "3");
        assert_eq!(written(&[4.0, 3.0, 5.0]), "4 (3 to 5)");
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(500.0));
        assert_eq!(percentile(&values, 0.999), Some(999.0));
        assert_eq!(percentile(&values, 1.0), Some(1000.0));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&[3.0], 0.99), Some(3.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
