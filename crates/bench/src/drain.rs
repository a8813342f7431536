//! The relay against a full outbox: all rows become visible at once, and the time runs until the last is settled.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postrider_testbed::Client;

use crate::{
    daemon,
    queue::Queue,
    stage::{CONTENT_TYPE, Stage},
    throughput::Measured,
};

/// How often the end of the table is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How many rows at the end of the table are looked at. Rows leave in their order but for what is in flight, so the
/// outbox is not empty before these are gone; a look at all of it would walk over every row already deleted, at the
/// expense of what is measured.
const TAIL: i64 = 5_000;

/// A rate so low that something is wrong.
const LEAST_PER_SECOND: u32 = 500;

/// Drains `messages` rows with `payload` into the queue, and stops the daemon.
///
/// The rows are written, analysed and on disk before the time starts: the transaction that inserted them stays open,
/// the daemon runs, connected and idle, and the COMMIT is the start.
///
/// # Errors
/// The daemon fails, stalls, or leaves something behind.
pub(crate) async fn drain(
    stage: &Stage,
    queue: &Queue,
    payload: &[u8],
    messages: u32,
) -> Result<Measured> {
    let writer = stage.database.client().await?;
    // After the last measurement, so that all start from an empty table and not from a worn one.
    writer
        .batch_execute("TRUNCATE outbox.messages")
        .await
        .context("could not empty the outbox")?;
    let watcher = stage.database.client().await?;
    // No plan but the index's, whatever the statistics say of a table that fills and empties.
    watcher
        .batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        .await
        .context("could not prepare the watching session")?;

    let daemon = daemon::start(stage).await?;
    writer.batch_execute("BEGIN").await?;
    writer
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, content_type) \
             SELECT '', $1, $2, $3 FROM generate_series(1, $4::bigint)",
            &[&queue.name, &payload, &CONTENT_TYPE, &i64::from(messages)],
        )
        .await
        .context("could not fill the outbox")?;
    writer
        .batch_execute("ANALYZE outbox.messages")
        .await
        .context("could not analyse the outbox")?;
    let last: i64 = writer
        .query_one("SELECT max(seq) FROM outbox.messages", &[])
        .await
        .context("could not look for the last row")?
        .get(0);
    watcher.batch_execute("CHECKPOINT").await?;
    stage.wait_until_quiet().await?;

    let before = stage.cpu(daemon.cpu_seconds()?)?;
    let began = Instant::now();
    writer.batch_execute("COMMIT").await?;
    let deadline = Duration::from_secs(60 + u64::from(messages / LEAST_PER_SECOND));
    let elapsed = match tokio::time::timeout(deadline, until_empty(&watcher, last, began)).await {
        Ok(Ok(elapsed)) => elapsed,
        Ok(Err(error)) => return Err(error.context(daemon.log())),
        Err(_) => bail!(
            "the outbox was not empty within {deadline:?}:\n{}",
            daemon.log()
        ),
    };
    let measured = Measured {
        elapsed,
        cpu_us_a_message: stage
            .cpu(daemon.cpu_seconds()?)?
            .microseconds_a_message(before, messages),
        peak_memory_bytes: Some(daemon.peak_rss_bytes()?),
    };
    daemon::stop(daemon).await?;
    Ok(measured)
}

/// The time from `began` to the moment at which the outbox, whose last row was `last`, was found empty.
async fn until_empty(watcher: &Client, last: i64, began: Instant) -> Result<Duration> {
    let has_rows_above = watcher
        .prepare("SELECT EXISTS (SELECT FROM outbox.messages WHERE seq > $1)")
        .await?;
    let look = async |above: i64| -> Result<bool> {
        let found = watcher
            .query_one(&has_rows_above, &[&above])
            .await
            .context("could not look into the outbox")?;
        Ok(found.get(0))
    };
    while look(last - TAIL).await? {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // The end is gone. What came before is, too, unless a batch was late; the look at all of it is slow, and does not
    // count if it only finds that.
    let mut elapsed = began.elapsed();
    while look(0).await? {
        tokio::time::sleep(LOOK_EVERY).await;
        elapsed = began.elapsed();
    }
    Ok(elapsed)
}
