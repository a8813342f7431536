//! The relay against a full outbox: all rows become visible at once, and the time runs until the last good one is
//! settled.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postrider_testbed::Client;

use crate::{
    contender::Contender,
    queue::Queue,
    stage::{CONTENT_TYPE, Installation, Stage},
    throughput::Measured,
    work::Work,
};

/// How often the end of the table is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How many rows at the end of the table are looked at. Rows leave in their order but for what is in flight, so the
/// outbox is not empty before these are gone; a look at all of it would walk over every row already deleted, at the
/// expense of what is measured.
const TAIL: i64 = 5_000;

/// A rate so low that something is wrong.
const LEAST_PER_SECOND: u32 = 500;

/// What lies in the outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog<'a> {
    pub(crate) payload: &'a [u8],
    /// Messages for the queue.
    pub(crate) good: u32,
    pub(crate) faulty: Option<Faulty>,
}

/// Messages that cannot be delivered, evenly among the good ones and with the same payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faulty {
    pub(crate) messages: u32,
    pub(crate) exchange: &'static str,
    pub(crate) routing_key: &'static str,
}

/// What a drain gave.
#[derive(Clone, Debug)]
pub(crate) struct Drained {
    /// Of the good messages.
    pub(crate) measured: Measured,
    pub(crate) work: Work,
}

/// Drains a backlog into the queue by the daemon, and stops it.
///
/// The rows are written, analysed and on disk before the time starts: the transaction that inserted them stays open,
/// the daemon runs, connected and idle, and the COMMIT is the start.
///
/// # Errors
/// The daemon fails, stalls, or leaves a good message behind.
pub(crate) async fn drain(
    stage: &Stage,
    installation: &Installation,
    queue: &Queue,
    backlog: &Backlog<'_>,
) -> Result<Drained> {
    drain_by(Contender::Postrider, stage, installation, queue, backlog).await
}

/// How long a loop that does not come to rest is waited for: until the servers have no more to do but for it.
const LOOPS_REST: Duration = Duration::from_secs(5);

/// As [`drain`], by any contender.
///
/// # Errors
/// It fails, stalls, or leaves a good message behind.
pub(crate) async fn drain_by(
    contender: Contender,
    stage: &Stage,
    installation: &Installation,
    queue: &Queue,
    backlog: &Backlog<'_>,
) -> Result<Drained> {
    let writer = installation.database.client().await?;
    // After the last measurement, so that all start from an empty table and not from a worn one.
    writer
        .batch_execute("TRUNCATE outbox.messages")
        .await
        .context("could not empty the outbox")?;
    let watcher = installation.database.client().await?;
    // No plan but the index's, whatever the statistics say of a table that fills and empties.
    watcher
        .batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        .await
        .context("could not prepare the watching session")?;

    let daemon = contender.start(stage, installation).await?;
    writer.batch_execute("BEGIN").await?;
    fill(&writer, queue, backlog).await?;
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
    match contender {
        Contender::Postrider | Contender::Polling => stage.wait_until_quiet().await?,
        // It walks over the rows that are not committed yet, each time it looks.
        Contender::Loop(_) => {
            stage.come_to_rest(LOOPS_REST).await?;
        }
    }

    let before = stage.cpu(daemon.cpu_seconds()?)?;
    let began = Instant::now();
    writer.batch_execute("COMMIT").await?;
    let deadline = Duration::from_secs(60 + u64::from(backlog.good / LEAST_PER_SECOND));
    let passed = until_passed(&watcher, &queue.name, last, began);
    let elapsed = match tokio::time::timeout(deadline, passed).await {
        Ok(Ok(elapsed)) => elapsed,
        Ok(Err(error)) => return Err(error.context(daemon.log())),
        Err(_) => bail!(
            "not all good messages had left the outbox within {deadline:?}:\n{}",
            daemon.log()
        ),
    };
    let measured = Measured {
        elapsed,
        cpu_us_a_message: stage
            .cpu(daemon.cpu_seconds()?)?
            .microseconds_a_message(before, backlog.good),
        peak_memory_bytes: Some(daemon.peak_rss_bytes()?),
    };
    let work = match contender {
        Contender::Postrider | Contender::Polling => Work::of(&daemon.http("/metrics").await?.1),
        Contender::Loop(_) => Work::default(),
    };
    contender.stop(daemon).await?;
    if backlog.faulty.is_some() {
        none_put_aside(&watcher, &queue.name).await?;
    }
    Ok(Drained { measured, work })
}

/// Inserts the backlog.
async fn fill(writer: &Client, queue: &Queue, backlog: &Backlog<'_>) -> Result<()> {
    let (faulty, exchange, routing_key) = backlog.faulty.map_or((0, "", ""), |faulty| {
        (faulty.messages, faulty.exchange, faulty.routing_key)
    });
    writer
        .execute(
            // Row n is faulty where the faulty rows due by then become one more.
            "INSERT INTO outbox.messages (exchange, routing_key, payload, content_type) \
             SELECT CASE WHEN faulty THEN $6 ELSE '' END, CASE WHEN faulty THEN $7 ELSE $1 END, $2, $3 \
             FROM (SELECT n, n * $5 / $4 > (n - 1) * $5 / $4 AS faulty FROM generate_series(1, $4::bigint) AS n) AS rows \
             ORDER BY n",
            &[
                &queue.name,
                &backlog.payload,
                &CONTENT_TYPE,
                &(i64::from(backlog.good) + i64::from(faulty)),
                &i64::from(faulty),
                &exchange,
                &routing_key,
            ],
        )
        .await
        .context("could not fill the outbox")?;
    Ok(())
}

/// Makes sure that no good message was deferred or given up: the time until it gets through was not measured then.
async fn none_put_aside(watcher: &Client, queue: &str) -> Result<()> {
    let aside: i64 = watcher
        .query_one(
            "SELECT (SELECT count(*) FROM outbox.deferred WHERE routing_key = $1) \
             + (SELECT count(*) FROM outbox.dead_letters WHERE routing_key = $1)",
            &[&queue],
        )
        .await
        .context("could not look for good messages among the deferred and the dead")?
        .get(0);
    ensure!(
        aside == 0,
        "{aside} good messages were deferred or given up"
    );
    Ok(())
}

/// The time from `began` to the moment at which no row for `queue` was found in the outbox, whose last row was `last`.
async fn until_passed(
    watcher: &Client,
    queue: &str,
    last: i64,
    began: Instant,
) -> Result<Duration> {
    let has_rows_above = watcher
        .prepare("SELECT EXISTS (SELECT FROM outbox.messages WHERE seq > $1 AND routing_key = $2)")
        .await?;
    let look = async |above: i64| -> Result<bool> {
        let found = watcher
            .query_one(&has_rows_above, &[&above, &queue])
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
