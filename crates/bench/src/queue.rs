//! The queues that messages go to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::{
    Channel,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use postrider_testbed::{QueueKind, consumer::declare_queue, wait_until};

/// How long a queue may take to say how much it holds: a quorum queue counts after it has confirmed.
const COUNT_DEADLINE: Duration = Duration::from_secs(60);

/// How a kind of queue is called in tables and results.
pub(crate) fn name_of(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Quorum => "quorum",
        QueueKind::Classic => "classic",
    }
}

/// A durable queue of its own for one measurement, reached through the default exchange.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) name: String,
    channel: Channel,
}

impl Queue {
    pub(crate) async fn declare(connection: &lapin::Connection, kind: QueueKind) -> Result<Self> {
        let channel = connection
            .create_channel()
            .await
            .context("could not open a channel for the queue")?;
        let name = format!("bench-{}-{}", name_of(kind), uuid::Uuid::now_v7().simple());
        declare_queue(&channel, &name, kind).await?;
        Ok(Self { name, channel })
    }

    async fn depth(&self) -> Result<u32> {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = self
            .channel
            .queue_declare(self.name.as_str().into(), options, FieldTable::default())
            .await
            .with_context(|| format!("could not ask for the depth of {}", self.name))?;
        Ok(queue.message_count())
    }

    /// Makes sure that the queue holds that many messages, neither fewer nor more. Nothing may be publishing to it.
    ///
    /// # Errors
    /// It holds another number: what was measured was not one delivery of each message.
    pub(crate) async fn verify(&self, messages: u32) -> Result<()> {
        let more = self.beyond(messages).await?;
        ensure!(
            more == 0,
            "{} holds {more} messages more than {messages}: some were delivered more than once",
            self.name
        );
        Ok(())
    }

    /// How many messages the queue holds beyond that many. Nothing may be publishing to it.
    ///
    /// # Errors
    /// It holds fewer.
    pub(crate) async fn beyond(&self, messages: u32) -> Result<u32> {
        let arrived = wait_until(COUNT_DEADLINE, "all messages in the queue", async || {
            self.depth().await.is_ok_and(|depth| depth >= messages)
        })
        .await;
        let depth = self.depth().await?;
        arrived.with_context(|| format!("{} holds {depth} messages of {messages}", self.name))?;
        Ok(depth.saturating_sub(messages))
    }

    /// Deletes the queue with all it holds.
    ///
    /// # Errors
    /// The broker refuses.
    pub(crate) async fn delete(self) -> Result<()> {
        self.channel
            .queue_delete(self.name.as_str().into(), QueueDeleteOptions::default())
            .await
            .with_context(|| format!("could not delete {}", self.name))?;
        self.channel
            .close(200, "done".into())
            .await
            .context("could not close the queue's channel")
    }
}
