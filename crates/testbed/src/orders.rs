//! The two applications of `docker-compose.yml`: one places orders, one receives their messages. Both go on for ever,
//! with bounded memory, and survive restarts of their servers.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::{
    consumer::{QueueKind, bind, declare_exchange, declare_queue},
    postgres::Client,
};

/// The exchange to which orders are published.
pub const EXCHANGE: &str = "shop";
/// Their routing key.
pub const ROUTING_KEY: &str = "order.placed";
/// The queue from which they are received.
pub const QUEUE: &str = "orders";

/// How often each of them says what it has done.
const REPORT_EVERY: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(15);
/// Of how many messages the receiver remembers the ids, to know repeats.
const REMEMBERED: usize = 100_000;

/// Places `rate` orders a second, each with its message in one transaction; every tenth is rolled back. `report` is
/// told what there is to say.
pub async fn place(url: &str, rate: f64, report: impl Fn(String)) -> Infallible {
    let mut placed = 0;
    loop {
        let Err(error) = place_until_lost(url, rate, &mut placed, &report).await;
        report(format!("no order can be placed, trying again: {error:#}"));
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

async fn place_until_lost(
    url: &str,
    rate: f64,
    placed: &mut u64,
    report: &impl Fn(String),
) -> Result<Infallible> {
    let mut client = timeout(DEADLINE, Client::connect(url))
        .await
        .context("no connection in time")??;
    client
        .batch_execute(
            "SET statement_timeout = '15s';
             CREATE TABLE IF NOT EXISTS orders (
                 id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                 placed_at timestamptz NOT NULL DEFAULT now()
             )",
        )
        .await?;
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut reports = interval(REPORT_EVERY);
    let mut tried: u64 = 0;
    loop {
        tokio::select! {
            _ = reports.tick() => {
                report(format!("placed {placed} orders"));
                continue;
            }
            _ = ticks.tick() => {}
        }
        let transaction = client.transaction().await?;
        let order: i64 = transaction
            .query_one("INSERT INTO orders DEFAULT VALUES RETURNING id", &[])
            .await?
            .get(0);
        transaction
            .execute(
                "SELECT outbox.publish(exchange => $1, routing_key => $2, payload => json_build_object('order', $3::bigint))",
                &[&EXCHANGE, &ROUTING_KEY, &order],
            )
            .await?;
        tried += 1;
        if tried.is_multiple_of(10) {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
            *placed += 1;
        }
    }
}

/// Declares exchange and queue, binds them, and receives; a message that it remembers is a repeat. `report` is told
/// what there is to say.
pub async fn receive(url: &str, report: impl Fn(String)) -> Infallible {
    let mut received = Received::default();
    loop {
        let Err(error) = receive_until_lost(url, &mut received, &report).await;
        report(format!("nothing can be received, trying again: {error:#}"));
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

#[derive(Default)]
struct Received {
    messages: u64,
    repeats: u64,
    known: HashSet<Uuid>,
    oldest_first: VecDeque<Uuid>,
}

impl Received {
    fn note(&mut self, id: Uuid) {
        if !self.known.insert(id) {
            self.repeats += 1;
            return;
        }
        self.messages += 1;
        self.oldest_first.push_back(id);
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

async fn receive_until_lost(
    url: &str,
    received: &mut Received,
    report: &impl Fn(String),
) -> Result<Infallible> {
    let subscribe = async {
        let separator = if url.contains('?') { '&' } else { '?' };
        let connection = Connection::connect(
            &format!("{url}{separator}heartbeat=10"),
            ConnectionProperties::default().with_connection_name("orders receive".into()),
        )
        .await?;
        let channel = connection.create_channel().await?;
        declare_exchange(&channel, EXCHANGE).await?;
        declare_queue(&channel, QUEUE, QueueKind::Quorum).await?;
        bind(&channel, QUEUE, EXCHANGE, ROUTING_KEY).await?;
        channel.basic_qos(100, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(
                QUEUE.into(),
                "orders".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        anyhow::Ok((connection, consumer))
    };
    let (_connection, mut deliveries) = timeout(DEADLINE, subscribe)
        .await
        .context("no subscription in time")??;
    let mut reports = interval(REPORT_EVERY);
    loop {
        tokio::select! {
            _ = reports.tick() => report(format!(
                "received {} orders, and {} repeats",
                received.messages, received.repeats
            )),
            delivery = deliveries.next() => {
                let Some(delivery) = delivery else { bail!("the subscription ended") };
                let delivery = delivery?;
                let id = delivery
                    .properties
                    .message_id()
                    .as_ref()
                    .and_then(|id| Uuid::parse_str(id.as_str()).ok())
                    .context("a message without an id")?;
                received.note(id);
                timeout(DEADLINE, delivery.ack(BasicAckOptions::default()))
                    .await
                    .context("the acknowledgement did not leave")??;
            }
        }
    }
}
