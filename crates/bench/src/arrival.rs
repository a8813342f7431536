//! The consumer of a measurement: when which message arrived.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout_at};
use uuid::Uuid;

use crate::{schedule::Commit, stage::Stage};

/// How many messages the consumer may hold.
const PREFETCH: u16 = 1_000;

/// How many that have arrived are acknowledged at once.
const ACKNOWLEDGED_AT_ONCE: usize = 100;

/// How long the last messages may take to arrive.
const DEADLINE: Duration = Duration::from_secs(30);

/// A consumer at work, on a connection of its own.
#[derive(Debug)]
pub(crate) struct Arrivals {
    consumer: JoinHandle<Result<()>>,
    seen: mpsc::UnboundedReceiver<(Uuid, Instant)>,
}

impl Arrivals {
    /// Starts to consume.
    ///
    /// # Errors
    /// The broker cannot be reached.
    pub(crate) async fn of(stage: &Stage, queue: &str) -> Result<Self> {
        let connection = stage.vhost.connection().await?;
        let (see, seen) = mpsc::unbounded_channel();
        Ok(Self {
            consumer: tokio::spawn(consume(connection, queue.to_owned(), see)),
            seen,
        })
    }

    /// Waits until all are there, and ends the consumer: the arrival of each commit's message.
    ///
    /// # Errors
    /// A message is missing or arrived twice, or the consumer has failed.
    pub(crate) async fn collect(mut self, commits: &[Commit]) -> Result<HashMap<Uuid, Instant>> {
        let mut missing: HashSet<Uuid> = commits.iter().map(|commit| commit.id).collect();
        let mut arrived = HashMap::with_capacity(missing.len());
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !missing.is_empty() {
            match timeout_at(deadline, self.seen.recv()).await {
                Ok(Some((id, at))) => {
                    missing.remove(&id);
                    ensure!(
                        arrived.insert(id, at).is_none(),
                        "message {id} arrived twice"
                    );
                }
                Ok(None) => {
                    self.consumer.await.context("the consumer panicked")??;
                    bail!("the consumer ended");
                }
                Err(_) => bail!(
                    "{} of {} messages did not arrive within {DEADLINE:?}",
                    missing.len(),
                    commits.len()
                ),
            }
        }
        self.consumer.abort();
        Ok(arrived)
    }
}

/// Reports each message's id and the time of its arrival, then acknowledges it, with the others that came meanwhile: one
/// after the other, the acknowledgements would hold up what arrives.
async fn consume(
    connection: lapin::Connection,
    queue: String,
    see: mpsc::UnboundedSender<(Uuid, Instant)>,
) -> Result<()> {
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let deliveries = channel
        .basic_consume(
            queue.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .context("could not consume")?;
    let mut deliveries = deliveries.ready_chunks(ACKNOWLEDGED_AT_ONCE);
    while let Some(chunk) = deliveries.next().await {
        let arrived = Instant::now();
        let mut last = None;
        for delivery in chunk {
            let delivery = delivery.context("the consumer failed")?;
            let id = delivery
                .properties
                .message_id()
                .as_ref()
                .and_then(|id| Uuid::parse_str(id.as_str()).ok())
                .context("a message has no UUID as its message-id")?;
            if see.send((id, arrived)).is_err() {
                return Ok(());
            }
            last = Some(delivery);
        }
        if let Some(last) = last {
            last.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    bail!("the broker cancelled the consumer")
}
