//! Exchange names as metric labels: readable and bounded.

use std::collections::HashMap;
use std::sync::Mutex;

use postrider_core::Reason;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// The label of every exchange past the bound.
const OTHER: &str = "_other";
/// RabbitMQ's own name for its default exchange, whose name on the wire is empty.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// The exchanges that have a label of their own: a bounded number, so that an application that makes up
/// exchange names cannot fill the memory of the relay or of Prometheus.
#[derive(Debug)]
struct Labels<T> {
    most: usize,
    known: HashMap<String, T>,
}

impl<T> Labels<T> {
    fn new(most: usize) -> Self {
        Self {
            most,
            known: HashMap::new(),
        }
    }

    /// What is kept for this exchange; made by `make` from its label when it is new. Nothing past the bound.
    fn of(&mut self, exchange: &str, make: impl FnOnce(&str) -> T) -> Option<&T> {
        if !self.known.contains_key(exchange) {
            if self.known.len() >= self.most {
                return None;
            }
            let label = match exchange {
                "" => DEFAULT_EXCHANGE,
                name => name,
            };
            self.known.insert(exchange.to_owned(), make(label));
        }
        self.known.get(exchange)
    }
}

/// A counter for each exchange, for a bounded number of exchanges.
#[derive(Debug)]
pub(crate) struct ExchangeCounters {
    family: IntCounterVec,
    labels: Mutex<Labels<IntCounter>>,
}

impl ExchangeCounters {
    pub(crate) fn new(family: IntCounterVec, most: usize) -> Self {
        Self {
            family,
            labels: Mutex::new(Labels::new(most)),
        }
    }

    pub(crate) fn add(&self, exchange: &str, count: u64) {
        let mut labels = self.labels.lock().unwrap_or_else(|e| e.into_inner());
        let counter = labels.of(exchange, |label| self.family.with_label_values(&[label]));
        match counter {
            Some(counter) => counter.inc_by(count),
            None => self.family.with_label_values(&[OTHER]).inc_by(count),
        }
    }
}

/// How many targets are suspended, for a bounded number of exchanges. A series that was shown once stays, at 0.
#[derive(Debug)]
pub(crate) struct SuspendedRoutes {
    family: IntGaugeVec,
    state: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    labels: Labels<String>,
    gauges: HashMap<(String, Reason), IntGauge>,
}

impl SuspendedRoutes {
    pub(crate) fn new(family: IntGaugeVec, most: usize) -> Self {
        Self {
            family,
            state: Mutex::new(Shown {
                labels: Labels::new(most),
                gauges: HashMap::new(),
            }),
        }
    }

    /// Shows these, and nothing else.
    pub(crate) fn show<'a>(&self, suspended: impl Iterator<Item = (&'a str, Reason)>) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let mut counts: HashMap<(String, Reason), i64> = HashMap::new();
        for (exchange, reason) in suspended {
            let label = state.labels.of(exchange, str::to_owned);
            let label = label.map_or_else(|| OTHER.to_owned(), Clone::clone);
            *counts.entry((label, reason)).or_default() += 1;
        }
        for (key, gauge) in &state.gauges {
            gauge.set(counts.remove(key).unwrap_or(0));
        }
        for ((label, reason), count) in counts {
            let gauge = self
                .family
                .with_label_values(&[label.as_str(), reason.as_str()]);
            gauge.set(count);
            state.gauges.insert((label, reason), gauge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;

    #[test]
    fn exchanges_past_the_bound_share_one_label() {
        let family = IntCounterVec::new(Opts::new("n", "help"), &["exchange"]).unwrap();
        let counters = ExchangeCounters::new(family.clone(), 2);
        for exchange in ["", "orders", "x1", "x2", "orders", "x1"] {
            counters.add(exchange, 1);
        }
        let value = |label: &str| family.with_label_values(&[label]).get();
        assert_eq!(value("amq.default"), 1);
        assert_eq!(value("orders"), 2);
        assert_eq!(value("_other"), 3);
    }

    #[test]
    fn what_is_suspended_no_longer_shows_0_and_names_past_the_bound_share_one_label() {
        let family = IntGaugeVec::new(Opts::new("n", "help"), &["exchange", "reason"]).unwrap();
        let gauges = SuspendedRoutes::new(family.clone(), 2);
        let value = |label: &str, reason: &str| family.with_label_values(&[label, reason]).get();
        let stuck = Reason::ConfirmTimeout;
        gauges.show(
            ["", "a", "a", "x1", "x2"]
                .into_iter()
                .map(|name| (name, stuck)),
        );
        assert_eq!(value("amq.default", "confirm_timeout"), 1);
        assert_eq!(value("a", "confirm_timeout"), 2);
        assert_eq!(value("_other", "confirm_timeout"), 2);
        gauges.show([("a", Reason::Forbidden)].into_iter());
        assert_eq!(value("a", "confirm_timeout"), 0);
        assert_eq!(value("a", "forbidden"), 1);
        assert_eq!(value("_other", "confirm_timeout"), 0);
    }
}
