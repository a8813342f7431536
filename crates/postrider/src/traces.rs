//! Spans of what the relay publishes, where somebody wants them.

use std::sync::Arc;

use postrider_relay::Observer;
use prometheus::Registry;

use crate::config::Config;

#[cfg(feature = "opentelemetry")]
pub(crate) use on::Traces;

#[cfg(not(feature = "opentelemetry"))]
pub(crate) use off::Traces;

#[cfg(feature = "opentelemetry")]
mod on {
    use std::time::Duration;

    use anyhow::Context as _;
    use postrider_core::{Message, Outcome};
    use postrider_traces::{Collector, Counters, Recorder, Settings};
    use tokio_util::sync::CancellationToken;
    use tracing::info;

    use super::{Arc, Config, Observer, Registry};
    use crate::commands::run::AbortOnDrop;

    /// What records and sends them; nothing while `[tracing] endpoint` is not set.
    #[derive(Debug)]
    pub(crate) struct Traces {
        recorder: Option<Arc<dyn Observer>>,
        exporter: Option<AbortOnDrop<()>>,
        stop: CancellationToken,
    }

    /// The relay tells, and knows nothing of spans.
    #[derive(Debug)]
    struct Told(Recorder);

    impl Observer for Told {
        fn published(&self, sent: &[Message], outcomes: &[Outcome], took: Duration) {
            self.0.record(sent, outcomes, took);
        }
    }

    impl Traces {
        /// Starts the task that sends them, if there is a collector to send them to. It is not connected to yet.
        ///
        /// # Errors
        /// When the metrics are registered already, or the collector's host is none.
        pub(crate) fn start(registry: &Registry, config: &Config) -> anyhow::Result<Self> {
            let counters = Counters::register(registry, &config.relay.outbox)
                .context("cannot register the metrics")?;
            let stop = CancellationToken::new();
            let Some(settings) = settings(config) else {
                return Ok(Self {
                    recorder: None,
                    exporter: None,
                    stop,
                });
            };
            info!(
                event = "tracing",
                collector = format!("{}:{}", settings.collector.host, settings.collector.port),
                "each publish that is sampled becomes a span"
            );
            let (recorder, exporter) = postrider_traces::start(settings, counters)?;
            Ok(Self {
                recorder: Some(Arc::new(Told(recorder))),
                exporter: Some(AbortOnDrop(tokio::spawn(exporter.run(stop.clone())))),
                stop,
            })
        }

        /// Who is to be told of each publish, if anybody.
        pub(crate) fn observer(&self) -> Option<Arc<dyn Observer>> {
            self.recorder.clone()
        }

        /// Sends what is left, for a bounded time.
        ///
        /// # Errors
        /// When the task ended by a panic.
        pub(crate) async fn stop(self) -> anyhow::Result<()> {
            self.stop.cancel();
            match self.exporter {
                Some(exporter) => exporter.join().await,
                None => Ok(()),
            }
        }
    }

    fn settings(config: &Config) -> Option<Settings> {
        let tracing = &config.tracing;
        let collector = tracing.collector.as_ref()?;
        let broker = match config.broker.endpoints.as_slice() {
            [only] => Some((only.host.clone(), only.port)),
            // Which of them a batch went to nobody here knows.
            _ => None,
        };
        Some(Settings {
            collector: Collector {
                host: collector.host.clone(),
                port: collector.port,
                tls: collector.tls.clone(),
            },
            service_name: tracing.service_name.clone(),
            service_version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: config.relay.name.clone(),
            outbox: config.relay.outbox.clone(),
            resource: tracing.resource.clone(),
            broker,
            sample_ratio: tracing.sample_ratio,
            timeout: tracing.timeout,
            max_queued_spans: usize::try_from(tracing.max_queued_spans).unwrap_or(usize::MAX),
        })
    }
}

#[cfg(not(feature = "opentelemetry"))]
mod off {
    use super::{Arc, Config, Observer, Registry};

    /// Built without them: a configuration that asks for them was refused.
    #[derive(Debug)]
    pub(crate) struct Traces;

    impl Traces {
        pub(crate) fn start(_: &Registry, _: &Config) -> anyhow::Result<Self> {
            Ok(Self)
        }

        pub(crate) fn observer(&self) -> Option<Arc<dyn Observer>> {
            None
        }

        pub(crate) async fn stop(self) -> anyhow::Result<()> {
            Ok(())
        }
    }
}
