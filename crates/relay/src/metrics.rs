//! What Prometheus sees of the relay: one struct, its help texts beside the fields' names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postrider_core::{Message, Reason};
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::labels::{ExchangeCounters, SuspendedRoutes};

/// Insert to confirm: fine where an idle system is, coarse where an outage is.
const DELIVERY_BUCKETS: [f64; 18] = [
    0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0,
];
const LAST_DELIVERY_BUCKET: f64 = 7200.0;
const BATCH_SIZE_BUCKETS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10000.0,
];
const PHASE_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// The peers of `postrider_connected` and `postrider_reconnects_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Database,
    Broker,
}

impl Peer {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Broker => "broker",
        }
    }
}

/// The phases of `postrider_batch_seconds`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Phase {
    Claim,
    Publish,
    Settle,
}

/// Every metric of the relay, registered in the registry it was made for.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) lag_seconds: Gauge,
    pub(crate) backlog_messages: IntGauge,
    pub(crate) backlog_capped: IntGauge,
    pub(crate) sample_timestamp_seconds: Gauge,
    pub(crate) relays: IntGauge,
    published_total: ExchangeCounters,
    published_bytes_total: IntCounter,
    publish_failures_total: IntCounterVec,
    retries_total: IntCounterVec,
    dead_lettered_total: IntCounterVec,
    suspended_routes: SuspendedRoutes,
    deferred_messages: IntGaugeVec,
    pub(crate) dead_letters: IntGauge,
    pub(crate) blocked_keys: IntGauge,
    pub(crate) blocked_key_age_seconds: Gauge,
    pub(crate) parked_messages: IntGauge,
    pub(crate) superseded_total: IntCounter,
    pub(crate) delivery_seconds: Histogram,
    pub(crate) batch_messages: Histogram,
    batch_seconds: HistogramVec,
    pub(crate) in_flight_messages: IntGauge,
    pub(crate) last_cycle_timestamp_seconds: Gauge,
    pub(crate) last_publish_timestamp_seconds: Gauge,
    connected: IntGaugeVec,
    reconnects_total: IntCounterVec,
    pub(crate) broker_blocked: IntGauge,
}

impl Metrics {
    /// Makes the metrics of the outbox with this label and registers them.
    ///
    /// # Errors
    /// When the registry already holds one of them.
    pub fn register(
        registry: &Registry,
        outbox: &str,
        max_exchanges: usize,
    ) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| {
            Opts::new(format!("postrider_{name}"), help).const_label("outbox", outbox)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())
        };
        let mut delivery_buckets = DELIVERY_BUCKETS.to_vec();
        delivery_buckets.push(LAST_DELIVERY_BUCKET);

        let published_total = kept(
            registry,
            IntCounterVec::new(
                opts(
                    "published_total",
                    "Messages confirmed by the broker, routed to a queue and deleted from the outbox, by exchange (amq.default is the default exchange, _other all past [metrics] max_exchanges).",
                ),
                &["exchange"],
            )?,
        )?;
        let suspended_routes = kept(
            registry,
            IntGaugeVec::new(
                opts(
                    "suspended_routes",
                    "Exchanges and routes (exchange and routing key) that this relay does not publish to for now, because they refuse messages or do not answer, by exchange (amq.default is the default exchange, _other all past [metrics] max_exchanges) and reason. Each relay finds out by itself.",
                ),
                &["exchange", "reason"],
            )?,
        )?;
        let metrics = Self {
            lag_seconds: kept(
                registry,
                Gauge::with_opts(opts(
                    "lag_seconds",
                    "Of the messages that could be published now, how long the one has waited that has waited the longest, by the database's clock: since its insert, or since it was due when it was deferred or scheduled; 0 when there is none. Dead letters and what is parked behind a blocked key do not count. The same from every relay: use max by (outbox), never sum. While the database is away it ages on by the local clock if messages waited at the last sample.",
                ))?,
            )?,
            backlog_messages: kept(
                registry,
                IntGauge::with_opts(opts(
                    "backlog_messages",
                    "Messages that could be published now: those in outbox.messages, those in flight included, and the deferred ones that are due; counted up to [metrics] backlog_limit (see postrider_backlog_capped). The same from every relay: use max by (outbox), never sum.",
                ))?,
            )?,
            backlog_capped: kept(
                registry,
                IntGauge::with_opts(opts(
                    "backlog_capped",
                    "1 when the backlog is larger than postrider_backlog_messages says, because counting stopped at [metrics] backlog_limit.",
                ))?,
            )?,
            sample_timestamp_seconds: kept(
                registry,
                Gauge::with_opts(opts(
                    "sample_timestamp_seconds",
                    "When the lag was last measured in the database, and whether there is a backlog, in seconds since the epoch; 0 until the first time.",
                ))?,
            )?,
            relays: kept(
                registry,
                IntGauge::with_opts(opts(
                    "relays",
                    "Relays connected to this outbox when it was last measured. The same from every relay.",
                ))?,
            )?,
            published_total: ExchangeCounters::new(published_total, max_exchanges),
            published_bytes_total: kept(
                registry,
                IntCounter::with_opts(opts(
                    "published_bytes_total",
                    "Payload bytes of the messages in postrider_published_total.",
                ))?,
            )?,
            publish_failures_total: kept(
                registry,
                IntCounterVec::new(
                    opts(
                        "publish_failures_total",
                        "Publishes that were not confirmed, by reason.",
                    ),
                    &["reason"],
                )?,
            )?,
            retries_total: kept(
                registry,
                IntCounterVec::new(
                    opts(
                        "retries_total",
                        "Messages deferred after a failed publish, to be tried again, by reason.",
                    ),
                    &["reason"],
                )?,
            )?,
            dead_lettered_total: kept(
                registry,
                IntCounterVec::new(
                    opts(
                        "dead_lettered_total",
                        "Messages given up on, by the reason of the last failure.",
                    ),
                    &["reason"],
                )?,
            )?,
            suspended_routes: SuspendedRoutes::new(suspended_routes, max_exchanges),
            deferred_messages: kept(
                registry,
                IntGaugeVec::new(
                    opts(
                        "deferred_messages",
                        "Messages that wait for a time: to be tried again (retry), or for their deliver_at (scheduled); counted up to [metrics] backlog_limit. The same from every relay: use max by (outbox, cause), never sum.",
                    ),
                    &["cause"],
                )?,
            )?,
            dead_letters: kept(
                registry,
                IntGauge::with_opts(opts(
                    "dead_letters",
                    "Messages given up on that wait for a person, counted up to [metrics] backlog_limit. The same from every relay: use max by (outbox), never sum.",
                ))?,
            )?,
            blocked_keys: kept(
                registry,
                IntGauge::with_opts(opts(
                    "blocked_keys",
                    "Ordering keys that are held back by a message that waits or was given up, or whose parked messages are not out yet; counted up to [metrics] backlog_limit. The same from every relay: use max by (outbox), never sum.",
                ))?,
            )?,
            blocked_key_age_seconds: kept(
                registry,
                Gauge::with_opts(opts(
                    "blocked_key_age_seconds",
                    "For how long the key has been blocked that has been so the longest; 0 when none is. What waits behind a blocked key is not part of the lag. The same from every relay: use max by (outbox), never sum.",
                ))?,
            )?,
            parked_messages: kept(
                registry,
                IntGauge::with_opts(opts(
                    "parked_messages",
                    "Messages parked behind the heads of blocked keys, as the relays counted them. The same from every relay: use max by (outbox), never sum.",
                ))?,
            )?,
            superseded_total: kept(
                registry,
                IntCounter::with_opts(opts(
                    "superseded_total",
                    "Messages left out because a newer one of their key, marked as superseding, was delivered in their place.",
                ))?,
            )?,
            delivery_seconds: kept(
                registry,
                Histogram::with_opts(histogram(
                    "delivery_seconds",
                    "Time from the insert of a message, or from its due time when it was deferred or scheduled, to the last confirm of its batch: the database's clock up to the claim, then the relay's monotonic one.",
                    &delivery_buckets,
                ))?,
            )?,
            batch_messages: kept(
                registry,
                Histogram::with_opts(histogram(
                    "batch_messages",
                    "Messages in one claimed batch.",
                    &BATCH_SIZE_BUCKETS,
                ))?,
            )?,
            batch_seconds: kept(
                registry,
                HistogramVec::new(
                    histogram(
                        "batch_seconds",
                        "Time one batch took, by phase: claim, publish (to the last confirm), settle.",
                        &PHASE_BUCKETS,
                    ),
                    &["phase"],
                )?,
            )?,
            in_flight_messages: kept(
                registry,
                IntGauge::with_opts(opts(
                    "in_flight_messages",
                    "Messages of this relay that are claimed and not yet settled.",
                ))?,
            )?,
            last_cycle_timestamp_seconds: kept(
                registry,
                Gauge::with_opts(opts(
                    "last_cycle_timestamp_seconds",
                    "When the slowest worker last completed a cycle (a claim, and its settle if it found anything), in seconds since the epoch; 0 until each has completed one.",
                ))?,
            )?,
            last_publish_timestamp_seconds: kept(
                registry,
                Gauge::with_opts(opts(
                    "last_publish_timestamp_seconds",
                    "When a message was last confirmed and settled by this relay, in seconds since the epoch; 0 until the first.",
                ))?,
            )?,
            connected: kept(
                registry,
                IntGaugeVec::new(
                    opts(
                        "connected",
                        "1 while the relay is connected to the peer (database, broker).",
                    ),
                    &["peer"],
                )?,
            )?,
            reconnects_total: kept(
                registry,
                IntCounterVec::new(
                    opts(
                        "reconnects_total",
                        "How often the relay found a peer (database, broker) again after it had lost it.",
                    ),
                    &["peer"],
                )?,
            )?,
            broker_blocked: kept(
                registry,
                IntGauge::with_opts(opts(
                    "broker_blocked",
                    "1 while the broker blocks publishers because of a memory or disk alarm.",
                ))?,
            )?,
        };
        for reason in Reason::ALL {
            for counters in [
                &metrics.publish_failures_total,
                &metrics.retries_total,
                &metrics.dead_lettered_total,
            ] {
                counters.with_label_values(&[reason.as_str()]);
            }
        }
        for peer in [Peer::Database, Peer::Broker] {
            metrics.connected(peer).set(0);
            metrics.reconnects(peer);
        }
        for phase in [Phase::Claim, Phase::Publish, Phase::Settle] {
            metrics.phase(phase);
        }
        Ok(metrics)
    }

    pub(crate) fn connected(&self, peer: Peer) -> IntGauge {
        self.connected.with_label_values(&[peer.as_str()])
    }

    pub(crate) fn reconnects(&self, peer: Peer) -> IntCounter {
        self.reconnects_total.with_label_values(&[peer.as_str()])
    }

    pub(crate) fn took(&self, phase: Phase, duration: Duration) {
        self.phase(phase).observe(duration.as_secs_f64());
    }

    fn phase(&self, phase: Phase) -> Histogram {
        let label = match phase {
            Phase::Claim => "claim",
            Phase::Publish => "publish",
            Phase::Settle => "settle",
        };
        self.batch_seconds.with_label_values(&[label])
    }

    pub(crate) fn failed(&self, reason: Reason) {
        self.publish_failures_total
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    pub(crate) fn retried(&self, reason: Reason) {
        self.retries_total
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    pub(crate) fn dead_lettered(&self, reason: Reason) {
        self.dead_lettered_total
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    /// Shows what is suspended now: an exchange and a reason for each target.
    pub(crate) fn suspended<'a>(&self, suspended: impl Iterator<Item = (&'a str, Reason)>) {
        self.suspended_routes.show(suspended);
    }

    /// So many rows were deleted for so many messages that were confirmed late: what is beyond them, others stood for. Where some were left
    /// because somebody had them locked, fewer are counted.
    pub(crate) fn superseded_late(&self, deleted: u64, confirmed: usize) {
        let confirmed = u64::try_from(confirmed).unwrap_or(u64::MAX);
        self.superseded_total
            .inc_by(deleted.saturating_sub(confirmed));
    }

    /// Counts a message whose confirm came after its batch was settled.
    pub(crate) fn published_late(&self, exchange: &str, bytes: u64) {
        self.published_total.add(exchange, 1);
        self.published_bytes_total.inc_by(bytes);
        self.last_publish_timestamp_seconds.set(unix_now());
    }

    pub(crate) fn deferred(&self, cause: &str) -> IntGauge {
        self.deferred_messages.with_label_values(&[cause])
    }

    /// Counts messages that were confirmed and whose rows are deleted; `since_claim` is how long
    /// ago they were claimed when the last confirm came.
    pub(crate) fn published<'a>(
        &self,
        messages: impl Iterator<Item = &'a Message>,
        since_claim: Duration,
    ) {
        let mut run: Option<(&str, u64)> = None;
        let mut bytes = 0;
        for message in messages {
            bytes += message.payload.fetched_bytes();
            let delivery = message.age_at_claim + since_claim;
            self.delivery_seconds.observe(delivery.as_secs_f64());
            run = match run {
                Some((exchange, count)) if exchange == message.exchange => {
                    Some((exchange, count + 1))
                }
                other => {
                    if let Some((exchange, count)) = other {
                        self.published_total.add(exchange, count);
                    }
                    Some((message.exchange.as_str(), 1))
                }
            };
        }
        if let Some((exchange, count)) = run {
            self.published_total.add(exchange, count);
            self.published_bytes_total.inc_by(bytes);
            self.last_publish_timestamp_seconds.set(unix_now());
        }
    }
}

fn kept<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

pub(crate) fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
