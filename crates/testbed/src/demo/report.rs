//! The figures at the end, and the verdict.

use std::time::Duration;

use postrider_testbed::AuditReport;

/// What the demo found.
pub(crate) struct Report {
    /// The books: what the shop was told against what the consumer got.
    pub(crate) books: AuditReport,
    /// Orders in the shop's table at the end.
    pub(crate) orders: u64,
    /// Rows left in the outbox at the end.
    pub(crate) left: u64,
    /// Commit to consumer, of messages whose way the kill did not touch.
    pub(crate) steady: Percentiles,
    /// Commit to consumer, the longest of all.
    pub(crate) worst: Duration,
    /// Distinct messages a second over the shop's opening hours.
    pub(crate) throughput: f64,
    /// How fast the new daemon brought what had piled up.
    pub(crate) catch_up: CatchUp,
}

/// What the second daemon found, and how long it took.
pub(crate) struct CatchUp {
    /// Messages that waited when it was ready.
    pub(crate) waiting: u64,
    /// From its start until it had caught up.
    pub(crate) duration: Duration,
}

impl Report {
    /// Whether the demo shows what it promises.
    pub(crate) fn is_good(&self) -> bool {
        self.problems().is_empty()
    }

    /// What is wrong, in sentences.
    pub(crate) fn problems(&self) -> Vec<String> {
        let books = &self.books;
        let mut problems = Vec::new();
        if books.delivered == 0 {
            problems.push("nothing was delivered".to_owned());
        }
        for (what, ids) in [("lost", &books.lost), ("phantom", &books.phantom)] {
            if let Some(first) = ids.first() {
                problems.push(format!("{} {what}, such as {first}", ids.len()));
            }
        }
        if books.unknown > 0 {
            problems.push(format!("{} commits were never answered", books.unknown));
        }
        if self.orders != books.committed {
            problems.push(format!(
                "the database holds {} orders, the shop committed {}",
                self.orders, books.committed
            ));
        }
        if self.left > 0 {
            problems.push(format!("{} rows are left in the outbox", self.left));
        }
        problems
    }
}

/// Two percentiles of some durations; zero of none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Percentiles {
    fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        // Nearest rank.
        let at = |percent: usize| {
            let rank = (durations.len() * percent).div_ceil(100).max(1);
            durations.get(rank - 1).copied().unwrap_or_default()
        };
        Self {
            p50: at(50),
            p99: at(99),
        }
    }
}

/// The percentiles over all messages but those that arrived between `before` and `after`: three looks at the
/// latencies of what had arrived so far, each sorted, each holding all of the one before it.
pub(crate) fn steady(before: &[Duration], after: &[Duration], all: &[Duration]) -> Percentiles {
    let mut steady = before.to_vec();
    let mut disturbed = after.iter().peekable();
    for latency in all {
        if disturbed.next_if_eq(&latency).is_none() {
            steady.push(*latency);
        }
    }
    Percentiles::of(steady)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_testbed::Audit;
    use uuid::Uuid;

    const MS: Duration = Duration::from_millis(1);

    fn report_of(audit: &Audit) -> Report {
        Report {
            books: audit.report(),
            orders: audit.report().committed,
            left: 0,
            steady: Percentiles::of(Vec::new()),
            worst: Duration::ZERO,
            throughput: 0.0,
            catch_up: CatchUp {
                waiting: 0,
                duration: Duration::ZERO,
            },
        }
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let percentiles = Percentiles::of((1..=200).rev().map(|n| n * MS).collect());
        assert_eq!(percentiles.p50, 100 * MS);
        assert_eq!(percentiles.p99, 198 * MS);
        assert_eq!(Percentiles::of(vec![MS]).p99, MS);
        assert_eq!(Percentiles::of(Vec::new()).p50, Duration::ZERO);
    }

    #[test]
    fn what_arrived_around_the_kill_counts_for_no_percentile() {
        let ms = |numbers: &[u32]| numbers.iter().map(|n| *n * MS).collect::<Vec<_>>();
        // 5 and 5 came first, 400, 5 and 900 around the kill, 7 and 400 later.
        let found = steady(
            &ms(&[5, 5]),
            &ms(&[5, 5, 5, 400, 900]),
            &ms(&[5, 5, 5, 7, 400, 400, 900]),
        );
        assert_eq!(found, Percentiles::of(ms(&[5, 5, 7, 400])));
        assert_eq!(found.p50, 5 * MS);
        assert_eq!(found.p99, 400 * MS);
    }

    #[test]
    fn lost_phantom_and_nothing_at_all_are_no_success() {
        let audit = Audit::new();
        assert!(!report_of(&audit).is_good());

        let id = Uuid::new_v4();
        audit.committed([id]);
        assert_eq!(report_of(&audit).problems().len(), 2);

        audit.delivered(id, "q", false);
        assert!(report_of(&audit).is_good());
        audit.delivered(id, "q", false);
        assert!(report_of(&audit).is_good(), "a repeat is no failure");

        audit.delivered(Uuid::new_v4(), "q", false);
        assert!(!report_of(&audit).is_good());
    }

    #[test]
    fn orders_that_the_shop_does_not_know_and_rows_that_stay_are_no_success() {
        let audit = Audit::new();
        let id = Uuid::new_v4();
        audit.committed([id]);
        audit.delivered(id, "q", false);
        let good = || report_of(&audit);
        assert!(
            !Report {
                orders: 2,
                ..good()
            }
            .is_good()
        );
        assert!(!Report { left: 1, ..good() }.is_good());
    }
}
