//! Exchange names as metric labels: readable and bounded.

use std::collections::HashMap;
use std::sync::Mutex;

use prometheus::{IntCounter, IntCounterVec};

/// The label of every exchange past the bound.
const OTHER: &str = "_other";
/// RabbitMQ's own name for its default exchange, whose name on the wire is empty.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// A counter for each exchange, for a bounded number of exchanges: an application that makes up
/// exchange names cannot fill the memory of the relay or of Prometheus.
#[derive(Debug)]
pub(crate) struct ExchangeCounters {
    family: IntCounterVec,
    most: usize,
    known: Mutex<HashMap<String, IntCounter>>,
}

impl ExchangeCounters {
    pub(crate) fn new(family: IntCounterVec, most: usize) -> Self {
        Self {
            family,
            most,
            known: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn add(&self, exchange: &str, count: u64) {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(counter) = known.get(exchange) {
            counter.inc_by(count);
            return;
        }
        if known.len() >= self.most {
            self.family.with_label_values(&[OTHER]).inc_by(count);
            return;
        }
        let label = if exchange.is_empty() {
            DEFAULT_EXCHANGE
        } else {
            exchange
        };
        let counter = self.family.with_label_values(&[label]);
        counter.inc_by(count);
        known.insert(exchange.to_owned(), counter);
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
}
