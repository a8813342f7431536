//! What became of the spans, for Prometheus.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Why a span was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// As many spans waited as may.
    QueueFull,
    /// The collector did not take it: it was away, silent or overloaded at each of several attempts.
    Unreachable,
    /// The collector refused it.
    Refused,
    /// The relay ended before it could be sent.
    Stopped,
}

impl Loss {
    const ALL: [Self; 4] = [
        Self::QueueFull,
        Self::Unreachable,
        Self::Refused,
        Self::Stopped,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
        }
    }
}

/// The counters of spans. They are 0 for as long as there is no collector.
#[derive(Debug, Clone)]
pub struct Counters {
    exported: IntCounter,
    dropped: IntCounterVec,
}

impl Counters {
    /// Makes the counters of the outbox with this label and registers them.
    ///
    /// # Errors
    /// When the registry already holds one of them.
    pub fn register(registry: &Registry, outbox: &str) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("outbox", outbox);
        let exported = IntCounter::with_opts(opts(
            "postrider_spans_exported_total",
            "Spans that the collector took. 0 while [tracing] endpoint is not set.",
        ))?;
        let dropped = IntCounterVec::new(
            opts(
                "postrider_spans_dropped_total",
                "Spans that the collector never got, by reason: queue_full ([tracing] max_queued_spans waited), unreachable, refused (by the collector), stopped (the relay ended). Messages are not affected.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(exported.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        for loss in Loss::ALL {
            dropped.with_label_values(&[loss.as_str()]);
        }
        Ok(Self { exported, dropped })
    }

    pub(crate) fn exported(&self, spans: u64) {
        self.exported.inc_by(spans);
    }

    pub(crate) fn dropped(&self, loss: Loss, spans: u64) {
        self.dropped
            .with_label_values(&[loss.as_str()])
            .inc_by(spans);
    }

    /// How many spans were dropped since the start.
    pub(crate) fn lost(&self) -> u64 {
        let counters = Loss::ALL.map(|loss| self.dropped.with_label_values(&[loss.as_str()]));
        counters.iter().map(IntCounter::get).sum()
    }
}
