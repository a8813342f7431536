//! The plain loop that always listens: one database connection, one message at a time. Claim, publish, await the
//! confirm, delete, commit; when there is none left, wait for a notification.
//!
//! It is what latency can be with nothing in the way, and what it costs: every insert has to notify it.

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};

use crate::{
    contender::READY,
    handwritten::{open_channel, publish},
};

const CLAIM: &str = "SELECT seq, id, exchange, routing_key, payload, content_type FROM outbox.messages \
                     ORDER BY seq FOR UPDATE SKIP LOCKED LIMIT 1";

/// Relays until something fails.
///
/// # Errors
/// The first failure, whatever it is.
pub(crate) async fn run(database: &str, broker: &str) -> Result<()> {
    let broker = Connection::connect(broker, ConnectionProperties::default())
        .await
        .context("could not connect to the broker")?;
    let channel = open_channel(&broker).await?;
    let (mut client, mut connection) = tokio_postgres::connect(database, NoTls)
        .await
        .context("could not connect to the database")?;
    let (notify, mut notified) = mpsc::unbounded_channel();
    let driver = tokio::spawn(async move {
        let mut messages = stream::poll_fn(|context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(_) = message? {
                notify.send(())?;
            }
        }
        anyhow::Ok(())
    });
    client.batch_execute("LISTEN postrider_outbox").await?;
    let claim = client.prepare(CLAIM).await?;
    let delete = client
        .prepare("DELETE FROM outbox.messages WHERE seq = $1")
        .await?;
    println!("{READY}");
    loop {
        while relay_one(&mut client, &channel, &claim, &delete).await? {}
        if notified.recv().await.is_none() {
            return driver.await.context("the connection's task panicked")?;
        }
        // Many say no more than one.
        while notified.try_recv().is_ok() {}
    }
}

/// Whether there was one.
async fn relay_one(
    client: &mut Client,
    channel: &Channel,
    claim: &Statement,
    delete: &Statement,
) -> Result<bool> {
    let transaction = client.transaction().await?;
    let Some(row) = transaction.query_opt(claim, &[]).await? else {
        transaction.rollback().await?;
        return Ok(false);
    };
    publish(channel, &row).await?;
    let seq: i64 = row.get("seq");
    transaction.execute(delete, &[&seq]).await?;
    transaction.commit().await?;
    Ok(true)
}
