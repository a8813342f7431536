//! A consumer that tells the auditor what arrives, and survives broker restarts.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::{
    audit::Audit,
    order::{KEY_HEADER, OrderingHeaders, SEQ_HEADER},
};

const PREFETCH: u16 = 1_000;

/// How long one attempt to get consuming may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// How long an acknowledgement may take to leave.
const ACK_DEADLINE: Duration = Duration::from_secs(15);

/// A kind of durable queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// `x-queue-type: classic`
    Classic,
    /// `x-queue-type: quorum`
    Quorum,
}

/// Declares a durable queue.
///
/// # Errors
/// The broker refuses.
pub async fn declare_queue(channel: &Channel, name: &str, kind: QueueKind) -> Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString(
            match kind {
                QueueKind::Classic => "classic",
                QueueKind::Quorum => "quorum",
            }
            .into(),
        ),
    );
    channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .with_context(|| format!("could not declare queue {name}"))?;
    Ok(())
}

/// Declares a durable topic exchange.
///
/// # Errors
/// The broker refuses.
pub async fn declare_exchange(channel: &Channel, name: &str) -> Result<()> {
    channel
        .exchange_declare(
            name.into(),
            lapin::ExchangeKind::Topic,
            ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("could not declare exchange {name}"))
}

/// Binds a queue to an exchange.
///
/// # Errors
/// The broker refuses.
pub async fn bind(channel: &Channel, queue: &str, exchange: &str, routing_key: &str) -> Result<()> {
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            routing_key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("could not bind queue {queue} to {exchange}"))
}

/// Consumes one queue in the background until it is dropped: prefetch 1000, each message noted, then acknowledged.
/// Reconnects for ever.
#[derive(Debug)]
pub struct Consumer {
    consuming: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

impl Consumer {
    /// Starts to consume a queue that exists. `url` is an AMQP URL; the audit gets every message whose `message-id`
    /// is a UUID, and a message with any other is noted with the nil UUID: a phantom.
    pub fn start(url: &str, queue: &str, audit: &Audit) -> Self {
        Self::start_with(url, queue, audit, |_| {})
    }

    /// [`start`](Self::start), with a look at each delivery before it is acknowledged (and before the audit has it).
    pub fn start_with(
        url: &str,
        queue: &str,
        audit: &Audit,
        mut look: impl FnMut(&lapin::message::Delivery) + Send + 'static,
    ) -> Self {
        let (url, queue, audit) = (url.to_owned(), queue.to_owned(), audit.clone());
        let (consuming, receiver) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                let end = consume(&url, &queue, &audit, &consuming, &mut look).await;
                consuming.send_replace(false);
                tracing::debug!(queue, ?end, "the consumer reconnects");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            consuming: receiver,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Waits until it is subscribed.
    ///
    /// # Errors
    /// It was not within `deadline`.
    pub async fn wait_until_consuming(&self, deadline: Duration) -> Result<()> {
        let mut consuming = self.consuming.clone();
        match timeout(deadline, consuming.wait_for(|consuming| *consuming)).await {
            Ok(Ok(_)) => Ok(()),
            _ => bail!("the consumer was not subscribed within {deadline:?}"),
        }
    }
}

async fn consume(
    url: &str,
    queue: &str,
    audit: &Audit,
    consuming: &watch::Sender<bool>,
    look: &mut (impl FnMut(&lapin::message::Delivery) + Send),
) -> Result<()> {
    let subscribe = async {
        // Without a heartbeat a broker that was killed behind a stalled connection would never be missed.
        let separator = if url.contains('?') { '&' } else { '?' };
        let connection = Connection::connect(
            &format!("{url}{separator}heartbeat=10"),
            ConnectionProperties::default().with_connection_name("testbed-consumer".into()),
        )
        .await?;
        let channel = connection.create_channel().await?;
        channel
            .basic_qos(PREFETCH, BasicQosOptions::default())
            .await?;
        let consumer = channel
            .basic_consume(
                queue.into(),
                "testbed".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        anyhow::Ok((connection, consumer))
    };
    let (_connection, mut deliveries) = timeout(CONNECT_DEADLINE, subscribe).await??;
    consuming.send_replace(true);
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        look(&delivery);
        let id = delivery
            .properties
            .message_id()
            .as_ref()
            .and_then(|id| Uuid::parse_str(id.as_str()).ok())
            .unwrap_or_default();
        audit.delivered_with(id, queue, delivery.redelivered, ordering_headers(&delivery));
        // One that a stopping broker overtook has been seen to wait for ever, without a connection.
        timeout(ACK_DEADLINE, delivery.ack(BasicAckOptions::default()))
            .await
            .context("the acknowledgement did not leave")??;
    }
    bail!("the subscription ended")
}

fn ordering_headers(delivery: &lapin::message::Delivery) -> Option<OrderingHeaders> {
    let headers = delivery.properties.headers().as_ref()?.inner();
    match (headers.get(KEY_HEADER)?, headers.get(SEQ_HEADER)?) {
        (AMQPValue::LongString(key), AMQPValue::LongLongInt(seq)) => Some(OrderingHeaders {
            key: key.to_string(),
            seq: *seq,
        }),
        _ => None,
    }
}
