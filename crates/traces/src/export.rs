//! The end of the queue from which spans go to the collector.
//!
//! One request at a time, and the same spans again until they are taken, refused or tried often enough; meanwhile
//! the queue fills, and what finds no room is dropped by those who record. After a request that failed the connection is made anew: one that
//! a dead peer left behind would swallow the next request as well.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use postrider_core::Backoff;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::AddressError;
use crate::connect::{Client, Way};
use crate::counters::{Counters, Loss};
use crate::failure::Failure;
use crate::publish::Publish;
use crate::settings::Settings;
use crate::span::{SCHEMA, resource, scope, span};

/// The most spans of one request.
const MOST_AT_ONCE: usize = 512;
/// How long spans wait for others to go with them, and how often it is seen whether there are enough.
const COMPANY: Duration = Duration::from_secs(1);
const COMPANY_CHECK: Duration = Duration::from_millis(50);
/// How often a request is sent that fails for want of a collector. The waits between are some 40 seconds together, which
/// outlasts a collector's restart.
const MOST_ATTEMPTS: u32 = 12;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a relay that has stopped goes on sending spans.
const FLUSH: Duration = Duration::from_secs(2);
/// How often the log says that spans are dropped.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Sends spans to the collector.
#[derive(Debug)]
pub struct Exporter {
    settings: Settings,
    resource: Resource,
    scope: InstrumentationScope,
    queue: Receiver<Publish>,
    counters: Arc<Counters>,
    way: Way,
    client: Option<Client>,
    /// What is on its way, until somebody knows what became of it.
    batch: Vec<Publish>,
    /// The collector did not take the last request.
    away: bool,
    /// How many spans the log has said are lost, and when.
    said: u64,
    said_at: Option<Instant>,
}

impl Exporter {
    pub(crate) fn new(
        settings: Settings,
        queue: Receiver<Publish>,
        counters: Arc<Counters>,
    ) -> Result<Self, AddressError> {
        Ok(Self {
            resource: resource(&settings),
            scope: scope(&settings),
            way: Way::to(settings.collector.clone(), settings.timeout)?,
            settings,
            queue,
            counters,
            client: None,
            batch: Vec::new(),
            away: false,
            said: 0,
            said_at: None,
        })
    }

    /// Sends what is recorded until `stop`; then what is left, for two seconds at most. What cannot be sent by then is
    /// dropped.
    pub async fn run(mut self, stop: CancellationToken) {
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(FLUSH).await;
        };
        tokio::select! {
            () = self.send_all(&stop) => {}
            () = too_late => {}
        }
        self.queue.close();
        let mut left = self.batch.len();
        while self.queue.try_recv().is_ok() {
            left += 1;
        }
        self.counters.dropped(Loss::Stopped, count(left));
        self.say_dropped(true);
    }

    async fn send_all(&mut self, stop: &CancellationToken) {
        while self.next_batch(stop).await {
            self.send(stop).await;
            self.say_dropped(false);
        }
    }

    /// Waits for spans; says whether there will be any.
    async fn next_batch(&mut self, stop: &CancellationToken) -> bool {
        let more = tokio::select! {
            biased;
            received = self.queue.recv_many(&mut self.batch, 1) => received,
            () = stop.cancelled() => {
                // From now on there are only those that wait.
                self.queue.close();
                self.queue.recv_many(&mut self.batch, 1).await
            }
        };
        // Not woken by each span: the tasks that record them would pay for that.
        let until = Instant::now() + COMPANY;
        while self.queue.len() < MOST_AT_ONCE && Instant::now() < until && !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(COMPANY_CHECK) => {}
            }
        }
        while self.batch.len() < MOST_AT_ONCE {
            let Ok(publish) = self.queue.try_recv() else {
                break;
            };
            self.batch.push(publish);
        }
        more > 0
    }

    /// Sends the batch until it is taken or given up.
    async fn send(&mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut attempts = 0;
        loop {
            let failure = match self.request().await {
                Ok(rejected) => return self.taken(rejected),
                Err(failure) => failure,
            };
            attempts += 1;
            self.client = None;
            self.note_away(&failure);
            let loss = match failure {
                Failure::Refused(_) => Loss::Refused,
                Failure::Silence(_) | Failure::Transient(_) if stop.is_cancelled() => Loss::Stopped,
                Failure::Silence(_) | Failure::Transient(_) if attempts >= MOST_ATTEMPTS => {
                    Loss::Unreachable
                }
                Failure::Silence(_) | Failure::Transient(_) => {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(backoff.next(rand::random())) => {}
                    }
                    continue;
                }
            };
            self.counters.dropped(loss, count(self.batch.len()));
            self.batch.clear();
            return;
        }
    }

    /// Sends the batch once; gives how many of it the collector did not want.
    async fn request(&mut self) -> Result<u64, Failure> {
        let broker = self.settings.broker.as_ref();
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(self.scope.clone()),
                    spans: self
                        .batch
                        .iter()
                        .map(|publish| span(publish, broker))
                        .collect(),
                    schema_url: SCHEMA.to_owned(),
                }],
                schema_url: SCHEMA.to_owned(),
            }],
        };
        let patience = self.settings.timeout;
        let client = self.client.get_or_insert_with(|| self.way.client());
        match tokio::time::timeout(patience, client.export(request)).await {
            Err(_) => Err(Failure::Silence(patience)),
            Ok(Err(status)) => Err(Failure::of(&status)),
            Ok(Ok(response)) => {
                let Some(partial) = response.into_inner().partial_success else {
                    return Ok(0);
                };
                if !partial.error_message.is_empty() {
                    debug!(
                        said = partial.error_message,
                        "the collector has something to say"
                    );
                }
                Ok(u64::try_from(partial.rejected_spans).unwrap_or(0))
            }
        }
    }

    fn taken(&mut self, rejected: u64) {
        let sent = count(self.batch.len());
        let rejected = rejected.min(sent);
        self.counters.exported(sent - rejected);
        self.counters.dropped(Loss::Refused, rejected);
        self.batch.clear();
        if std::mem::take(&mut self.away) {
            info!(event = "collector_found", "the collector takes spans again");
        }
    }

    fn note_away(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.away, true) {
            warn!(
                event = "collector_lost",
                collector = self.settings.collector.authority(),
                error = %failure,
                "the collector takes no spans; some wait for it, the rest is dropped, and messages are delivered all the same"
            );
        } else {
            debug!(error = %failure, "the collector takes no spans");
        }
    }

    /// Says how many spans were dropped since it last said so: at once, then once a minute at most.
    fn say_dropped(&mut self, at_last: bool) {
        let lost = self.counters.lost();
        let due = self.said_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN);
        if lost > self.said && (due || at_last) {
            warn!(
                event = "spans_dropped",
                spans = lost - self.said,
                "spans were dropped; why, postrider_spans_dropped_total says"
            );
            self.said = lost;
            self.said_at = Some(Instant::now());
        }
    }
}

fn count(spans: usize) -> u64 {
    u64::try_from(spans).unwrap_or(u64::MAX)
}
