//! The only OpenTelemetry of Postrider: a span for each publish, sent to a collector by OTLP over gRPC.
//!
//! A [`Recorder`] takes what became of a batch and never waits: what is to be told of a message is copied into a bounded
//! queue, and what finds no room is dropped and counted. An [`Exporter`] empties the queue at its own pace, through
//! whatever the collector does: away, slow, silent or refusing, it costs spans and nothing else.
//!
//! # Why not OpenTelemetry's own SDK
//! Of it only the messages of OTLP and their client are used. Its batch processor is a thread that nobody here could join, it says
//! nothing of what it dropped, and its exporter makes connections by a TLS of its own, which reads its files once. A span here
//! is never more than one record: nothing has a current span, and nothing is a child.

mod connect;
mod counters;
mod export;
mod failure;
mod inserting;
mod publish;
mod record;
mod settings;
mod span;

pub use counters::Counters;
pub use export::Exporter;
pub use record::Recorder;
pub use settings::{Collector, Settings};

use std::sync::Arc;

use tokio::sync::mpsc;

/// The collector's host cannot stand in a URL.
#[derive(Debug, thiserror::Error)]
#[error("the collector's address cannot be used: {0}")]
pub struct AddressError(#[from] tonic::transport::Error);

/// Both ends of the queue. Nothing is connected before there is a span to send.
///
/// # Errors
/// When the collector's host is none.
pub fn start(settings: Settings, counters: Counters) -> Result<(Recorder, Exporter), AddressError> {
    let (sender, receiver) = mpsc::channel(settings.max_queued_spans.max(1));
    let counters = Arc::new(counters);
    let recorder = Recorder::new(settings.sample_ratio, sender, Arc::clone(&counters));
    Ok((recorder, Exporter::new(settings, receiver, counters)?))
}
