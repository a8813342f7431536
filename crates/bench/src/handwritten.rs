//! The loop that a good team writes by hand: two tasks that claim, publish, await all confirms and delete, 500 messages
//! at a time.
//!
//! It is correct where nothing fails: no row is deleted before its message was confirmed and routed. Everything else
//! ends it: there are no retries, no reconnects, no limits of memory, and one faulty message stops it for good.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_testbed::Client;
use tokio::task::JoinSet;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::contender::READY;

const WORKERS: usize = 2;

const CLAIM: &str = "SELECT seq, id, exchange, routing_key, payload, content_type FROM outbox.messages \
                     ORDER BY seq FOR UPDATE SKIP LOCKED LIMIT 500";

/// How soon an empty outbox is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Relays until something fails.
///
/// # Errors
/// The first failure, whatever it is.
pub(crate) async fn run(database: &str, broker: &str) -> Result<()> {
    let connection = Connection::connect(broker, ConnectionProperties::default())
        .await
        .context("could not connect to the broker")?;
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let client = Client::connect(database).await?;
        workers.spawn(work(client, open_channel(&connection).await?));
    }
    println!("{READY}");
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")??;
    }
    Ok(())
}

async fn work(mut client: Client, channel: Channel) -> Result<()> {
    let claim = client.prepare(CLAIM).await?;
    let delete = client
        .prepare("DELETE FROM outbox.messages WHERE seq = ANY($1)")
        .await?;
    loop {
        let transaction = client.transaction().await?;
        let rows = transaction.query(&claim, &[]).await?;
        if rows.is_empty() {
            transaction.rollback().await?;
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        }
        try_join_all(rows.iter().map(|row| publish(&channel, row))).await?;
        let seqs: Vec<i64> = rows.iter().map(|row| row.get("seq")).collect();
        transaction.execute(&delete, &[&seqs]).await?;
        transaction.commit().await?;
    }
}

/// A channel with confirms.
///
/// # Errors
/// The broker refuses.
pub(crate) async fn open_channel(connection: &Connection) -> Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .context("could not switch confirms on")?;
    Ok(channel)
}

/// Publishes the message of a row and waits for its confirm.
///
/// # Errors
/// It was not confirmed, or went to no queue.
pub(crate) async fn publish(channel: &Channel, row: &Row) -> Result<()> {
    let (exchange, routing_key): (&str, &str) = (row.get("exchange"), row.get("routing_key"));
    let (id, content_type): (Uuid, &str) = (row.get("id"), row.get("content_type"));
    let confirmation = channel
        .basic_publish(
            exchange.into(),
            routing_key.into(),
            BasicPublishOptions {
                mandatory: true,
                immediate: false,
            },
            row.get("payload"),
            BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(id.to_string().into())
                .with_content_type(content_type.into()),
        )
        .await?
        .await?;
    ensure!(
        confirmation == Confirmation::Ack(None),
        "the broker did not take message {id}"
    );
    Ok(())
}
