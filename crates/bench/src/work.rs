//! What a daemon says of its own work: where the time of its batches went, and what failed.

use std::collections::BTreeMap;

use postrider_testbed::exposition::value;
use serde::Serialize;

/// The label values of `postrider_publish_failures_total`.
const REASONS: [&str; 9] = [
    "unroutable",
    "nacked",
    "exchange_missing",
    "forbidden",
    "too_large",
    "not_encodable",
    "ends_connection",
    "confirm_timeout",
    "connection_lost",
];

/// From the daemon's metrics, over its whole life. What one of another version does not tell is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Work {
    pub(crate) batches: Option<f64>,
    /// Means.
    pub(crate) claim_ms_a_batch: Option<f64>,
    pub(crate) publish_ms_a_batch: Option<f64>,
    pub(crate) settle_ms_a_batch: Option<f64>,
    /// Publishes without a confirm, by reason: those that did not happen are left out.
    pub(crate) failures: BTreeMap<&'static str, f64>,
}

impl Work {
    /// Reads the text that the daemon serves.
    pub(crate) fn of(metrics: &str) -> Self {
        let mean_ms = |phase| {
            let labels = [("phase", phase)];
            let sum = value(metrics, "postrider_batch_seconds_sum", &labels)?;
            let count = value(metrics, "postrider_batch_seconds_count", &labels)?;
            (count > 0.0).then(|| sum / count * 1e3)
        };
        let failures = REASONS.into_iter().filter_map(|reason| {
            let labels = [("reason", reason)];
            let failures = value(metrics, "postrider_publish_failures_total", &labels)?;
            (failures > 0.0).then_some((reason, failures))
        });
        Self {
            batches: value(metrics, "postrider_batch_messages_count", &[]),
            claim_ms_a_batch: mean_ms("claim"),
            publish_ms_a_batch: mean_ms("publish"),
            settle_ms_a_batch: mean_ms("settle"),
            failures: failures.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Work;

    #[test]
    fn what_the_daemon_does_not_tell_is_missing_and_what_never_failed_is_left_out() {
        let work = Work::of(
            "postrider_batch_messages_count{outbox=\"o\"} 4\n\
             postrider_batch_seconds_sum{outbox=\"o\",phase=\"claim\"} 0.5\n\
             postrider_batch_seconds_count{outbox=\"o\",phase=\"claim\"} 10\n\
             postrider_batch_seconds_sum{outbox=\"o\",phase=\"settle\"} 0\n\
             postrider_batch_seconds_count{outbox=\"o\",phase=\"settle\"} 0\n\
             postrider_publish_failures_total{outbox=\"o\",reason=\"nacked\"} 0\n\
             postrider_publish_failures_total{outbox=\"o\",reason=\"unroutable\"} 3\n",
        );
        assert_eq!(
            work,
            Work {
                batches: Some(4.0),
                claim_ms_a_batch: Some(50.0),
                publish_ms_a_batch: None,
                settle_ms_a_batch: None,
                failures: [("unroutable", 3.0)].into(),
            }
        );
    }
}
