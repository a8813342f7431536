//! The end of the queue at which the tasks that deliver stand.

use std::sync::Arc;
use std::time::Duration;

use postrider_core::{Message, Outcome};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::counters::{Counters, Loss};
use crate::inserting::Inserting;
use crate::publish::{Publish, Times};

/// Takes what became of batches. It never waits.
#[derive(Debug)]
pub struct Recorder {
    sample_ratio: f64,
    queue: Sender<Publish>,
    counters: Arc<Counters>,
}

impl Recorder {
    pub(crate) fn new(sample_ratio: f64, queue: Sender<Publish>, counters: Arc<Counters>) -> Self {
        Self {
            sample_ratio,
            queue,
            counters,
        }
    }

    /// Has each of these publishes told, as far as it is sampled and there is room: a batch of which `outcomes` are
    /// known by now and which went out `took` ago.
    pub fn record(&self, sent: &[Message], outcomes: &[Outcome], took: Duration) {
        let times = Times::up_to_now(took);
        for (message, outcome) in sent.iter().zip(outcomes) {
            let failure = match outcome {
                // Never sent.
                Outcome::HeldBack => continue,
                Outcome::Confirmed => None,
                Outcome::Failed(failure) => Some(failure),
            };
            let inserting = Inserting::of(&message.headers);
            if !is_sampled(inserting.as_ref(), self.sample_ratio, rand::random) {
                continue;
            }
            match self.queue.try_reserve() {
                Ok(place) => place.send(Publish::of(message, failure, inserting, times)),
                Err(TrySendError::Full(())) => self.counters.dropped(Loss::QueueFull, 1),
                Err(TrySendError::Closed(())) => self.counters.dropped(Loss::Stopped, 1),
            }
        }
    }
}

/// Whoever began the trace has decided; where nobody did, so many of them are told.
fn is_sampled(inserting: Option<&Inserting>, ratio: f64, random: impl FnOnce() -> f64) -> bool {
    match inserting {
        Some(inserting) => inserting.is_sampled(),
        None => random() < ratio,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::Headers;

    #[test]
    fn the_inserting_trace_decides_and_the_ratio_only_where_there_is_none() {
        let of = |flags: &str| {
            let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            Inserting::of(&Headers::from_json(&format!(
                r#"{{"traceparent": "{parent}"}}"#
            )))
        };
        let random = || 0.5;
        assert!(is_sampled(of("01").as_ref(), 0.0, random));
        assert!(!is_sampled(of("00").as_ref(), 1.0, random));
        assert!(is_sampled(None, 0.6, random));
        assert!(!is_sampled(None, 0.5, random));
        assert!(is_sampled(None, 1.0, || 0.999_999), "all of them");
        assert!(!is_sampled(None, 0.0, || 0.0), "none of them");
    }
}
