//! From the single measurements to the lines of the table.

use serde::Serialize;

use super::{
    LOADS, Load, Run,
    pgbench::Delays,
    wakeup::{self, Wakeup},
};
use crate::statistics::Spread;

/// What one load gave with one wake-up, and how much that is of what it gave without a relay in the same round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub(super) load: Load,
    pub(super) wakeup: Wakeup,
    pub(super) transactions_a_second: Spread,
    pub(super) rate_ratio: Spread,
    pub(super) producing_us: Spread,
    pub(super) producing_ratio: Spread,
    pub(super) relaying_us: Spread,
    pub(super) daemon_us: Spread,
    pub(super) broker_us: Spread,
    pub(super) mean_ms: Option<Spread>,
    pub(super) p99_ms: Option<Spread>,
}

/// The lines of the table, in its order.
pub(super) fn summarise(runs: &[Run]) -> Vec<Line> {
    let alone = |own: &Run| {
        let same = |run: &&Run| {
            run.round == own.round && run.load == own.load && run.wakeup == Wakeup::Nothing
        };
        runs.iter().find(same)
    };
    let mut lines = Vec::new();
    for load in LOADS {
        for wakeup in wakeup::ALL {
            let own = || {
                runs.iter()
                    .filter(move |run| run.load == load && run.wakeup == wakeup)
            };
            let spread = |of: fn(&Run) -> f64| Spread::of(own().map(of));
            let ratio = |of: fn(&Run) -> f64| {
                Spread::of(own().filter_map(|run| Some(of(run) / of(alone(run)?))))
            };
            let delays =
                |of: fn(Delays) -> f64| Spread::of(own().filter_map(|run| run.delays_ms.map(of)));
            let line = || {
                Some(Line {
                    load,
                    wakeup,
                    transactions_a_second: spread(|run| run.transactions_a_second)?,
                    rate_ratio: ratio(|run| run.transactions_a_second)?,
                    producing_us: spread(|run| run.cpu_us_a_transaction.producing)?,
                    producing_ratio: ratio(|run| run.cpu_us_a_transaction.producing)?,
                    relaying_us: spread(|run| run.cpu_us_a_transaction.relaying)?,
                    daemon_us: spread(|run| run.cpu_us_a_transaction.daemon)?,
                    broker_us: spread(|run| run.cpu_us_a_transaction.broker)?,
                    mean_ms: delays(|delays| delays.mean),
                    p99_ms: delays(|delays| delays.p99),
                })
            };
            lines.extend(line());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{Wakeup, summarise};
    use crate::producers::tests::run;

    #[test]
    fn everything_is_compared_with_no_relay_in_the_same_round() {
        let runs = [
            run(1, Wakeup::Nothing, 100.0, 10.0),
            run(1, Wakeup::Postrider, 90.0, 11.0),
            run(2, Wakeup::Postrider, 180.0, 22.0),
            run(2, Wakeup::Nothing, 200.0, 20.0),
        ];
        let lines = summarise(&runs);
        let [nothing, postrider] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!((nothing.rate_ratio.min, nothing.rate_ratio.max), (1.0, 1.0));
        assert_eq!(
            (postrider.rate_ratio.min, postrider.rate_ratio.max),
            (0.9, 0.9)
        );
        assert_eq!(postrider.producing_ratio.median, 1.1);
        assert_eq!(postrider.transactions_a_second.median, 135.0);
        assert!(postrider.mean_ms.is_none());
    }
}
