//! One measurement: the outbox is brought where it shall be, the relays have delivered something in that state, and then
//! the time runs from the COMMIT of the backlog until they have published all of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postrider_testbed::{Client, QueueKind, wait_until};
use serde::Serialize;

use super::case::{Before, Case};
use crate::{
    cpu::CpuTimes,
    deliveries::Deliveries,
    fleet::{self, Fleet},
    queue::Queue,
    stage::{CONTENT_TYPE, Installation, Stage},
    throughput::PAYLOAD_BYTES,
};

const PAYLOAD: [u8; PAYLOAD_BYTES] = [b'x'; PAYLOAD_BYTES];

/// Delivered before those that are measured are committed, with the same keys: it is the cost of a message that is told,
/// not that of a start.
const WARM: u32 = 1_000;

/// So often. What was learned of open transactions after the first time moves the lanes' beginnings the second time: a lane that
/// was never read since walks once over all that lies dead in it.
const WARM_UPS: u32 = 2;

/// How long the daemons then have for what they learn in the background, such as where a floor can be.
const WARMED_UP_FOR: Duration = Duration::from_secs(1);

/// How long servers may take to come to rest beside a daemon, which may not let them.
const REST: Duration = Duration::from_secs(10);

/// The key that is blocked: none of the others' names.
const BLOCKED: &str = "blocked";

/// Where its first message goes.
const NOWHERE: &str = "bench-no-such-queue";

/// So rarely that the blocked key stays so: a wait is chosen at random, up to the longest. For all cases, though only one
/// has something to retry.
const RETRIES: [(&str, &str); 2] = [
    ("POSTRIDER_RETRY_INITIAL_DELAY", "1day"),
    ("POSTRIDER_RETRY_MAX_DELAY", "1day"),
];

/// How long the first message of the blocked key may take to be deferred.
const DEFERRED: Duration = Duration::from_secs(60);

/// A rate of parking so low that something is wrong.
const LEAST_PARKED_PER_SECOND: u32 = 500;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) case: Case,
    pub(super) messages: u32,
    pub(super) seconds: f64,
    pub(super) messages_a_second: f64,
    pub(super) cpu_us_a_message: CpuTimes,
    /// Of each relay, as a part of 1.
    pub(super) shares: Vec<f64>,
    /// Messages that were delivered once more than needed.
    pub(super) repeats: u32,
}

/// Drains `messages` as the case has it, in a database of its own.
///
/// # Errors
/// A server or a daemon fails, a message is missing, or the order of a key was not kept.
pub(super) async fn measure(stage: &Stage, round: u32, case: Case, messages: u32) -> Result<Run> {
    let installation = stage.install(&stage.binary).await?;
    let queue = Queue::declare(&stage.control, QueueKind::Quorum).await?;
    let client = installation.database.client().await?;
    // What it would remove is removed below; and it would come over one measurement and not over another.
    client
        .batch_execute(
            "ALTER TABLE outbox.messages SET (autovacuum_enabled = off, toast.autovacuum_enabled = off); \
             ALTER TABLE outbox.parked SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
        )
        .await
        .context("could not switch autovacuum off")?;
    let outbox = Outbox {
        client: &client,
        queue: &queue.name,
        keys: case.keys,
    };
    let kept = match case.before {
        Before::Nothing | Before::Parked(_) => None,
        Before::UnderSnapshot(rows) => {
            let reader = outbox.reader(&installation).await?;
            outbox.leave_behind(rows).await?;
            Some(reader)
        }
        Before::UnderWriter(rows) => {
            let writer = installation.database.client().await?;
            writer.batch_execute("BEGIN").await?;
            outbox.insert(&writer, 1).await?;
            outbox.leave_behind(rows).await?;
            Some(writer)
        }
    };
    let fleet = Fleet::start(stage, &installation, case.relays, &RETRIES).await?;
    if let Before::Parked(rows) = case.before {
        let parked = outbox.park(rows).await;
        parked.with_context(|| fleet.log())?;
    }

    let warm = WARM.min(messages);
    for _ in 0..WARM_UPS {
        let earlier = fleet.published().await?;
        outbox.insert(&client, warm).await?;
        fleet
            .until_published(&earlier, warm, Instant::now())
            .await?;
        tokio::time::sleep(WARMED_UP_FOR).await;
    }
    for statement in [
        "VACUUM ANALYZE outbox.messages",
        "VACUUM ANALYZE outbox.parked",
    ] {
        client
            .batch_execute(statement)
            .await
            .context("could not tidy the outbox up")?;
    }
    let writer = installation.database.client().await?;
    writer.batch_execute("BEGIN").await?;
    outbox.insert(&writer, messages).await?;
    writer.batch_execute("ANALYZE outbox.messages").await?;
    client.batch_execute("CHECKPOINT").await?;
    stage.come_to_rest(REST).await?;

    let earlier = fleet.published().await?;
    let before = stage.cpu(fleet.cpu_seconds()?)?;
    let began = Instant::now();
    writer.batch_execute("COMMIT").await?;
    let (published, elapsed) = fleet.until_published(&earlier, messages, began).await?;
    let cpu_us_a_message = stage
        .cpu(fleet.cpu_seconds()?)?
        .microseconds_a_message(before, messages);
    fleet.stop().await?;
    drop(kept);

    if let Before::Parked(rows) = case.before {
        outbox.ensure_parked(rows).await?;
    }
    let all = WARM_UPS * warm + messages;
    let beyond = queue.beyond(all).await?;
    let deliveries = Deliveries::of(stage, &queue.name, all + beyond).await?;
    ensure!(
        deliveries.distinct() == all as usize,
        "{} of {all} messages arrived",
        deliveries.distinct()
    );
    let keyed = if case.keys.is_some() { all } else { 0 };
    ensure!(
        deliveries.keyed == keyed,
        "{} messages arrived with their key, not {keyed}",
        deliveries.keyed
    );
    queue.delete().await?;
    stage.remove(installation).await?;
    let seconds = elapsed.as_secs_f64();
    Ok(Run {
        round,
        case,
        messages,
        seconds,
        messages_a_second: f64::from(messages) / seconds,
        cpu_us_a_message,
        shares: fleet::shares(&published),
        repeats: deliveries.repeats,
    })
}

/// The outbox of a measurement.
struct Outbox<'a> {
    client: &'a Client,
    queue: &'a str,
    keys: Option<u32>,
}

impl Outbox<'_> {
    /// Messages for the queue, with the keys of the case in turns.
    async fn insert(&self, client: &Client, messages: u32) -> Result<()> {
        client
            .execute(
                // Without a number of keys there is no key.
                "INSERT INTO outbox.messages (exchange, routing_key, payload, content_type, ordering_key) \
                 SELECT '', $1, $2, $3, 'key-' || n % $5::bigint FROM generate_series(1, $4::bigint) AS n",
                &[
                    &self.queue,
                    &&PAYLOAD[..],
                    &CONTENT_TYPE,
                    &i64::from(messages),
                    &self.keys.map(i64::from),
                ],
            )
            .await
            .with_context(|| format!("could not insert {messages} messages"))?;
        Ok(())
    }

    /// A session with a snapshot, for as long as it lives.
    async fn reader(&self, installation: &Installation) -> Result<Client> {
        let reader = installation.database.client().await?;
        reader
            // The snapshot is taken by the first query, not by BEGIN.
            .batch_execute(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.messages",
            )
            .await
            .context("could not take a snapshot")?;
        Ok(reader)
    }

    /// Rows that are deleted, and stay as long as an older transaction is open.
    async fn leave_behind(&self, rows: u32) -> Result<()> {
        self.insert(self.client, rows).await?;
        // In a transaction of its own: what one transaction inserts and deletes nobody keeps.
        let deleted = self
            .client
            .execute("DELETE FROM outbox.messages", &[])
            .await
            .context("could not delete the rows")?;
        ensure!(
            deleted == u64::from(rows),
            "{deleted} rows were deleted, not {rows}"
        );
        Ok(())
    }

    /// Has the daemon block a key, and park so many messages behind its first one.
    async fn park(&self, rows: u32) -> Result<()> {
        self.insert_of_blocked_key(NOWHERE, 1).await?;
        wait_until(DEFERRED, "the head of the key to be deferred", async || {
            self.blocked_by("deferred")
                .await
                .is_ok_and(|heads| heads == 1)
        })
        .await?;
        self.insert_of_blocked_key(self.queue, rows).await?;
        let deadline = DEFERRED + Duration::from_secs(u64::from(rows / LEAST_PARKED_PER_SECOND));
        wait_until(deadline, "all messages to be parked", async || {
            self.parked()
                .await
                .is_ok_and(|parked| parked >= i64::from(rows))
        })
        .await
    }

    async fn insert_of_blocked_key(&self, queue: &str, messages: u32) -> Result<()> {
        self.client
            .execute(
                "INSERT INTO outbox.messages (exchange, routing_key, payload, content_type, ordering_key) \
                 SELECT '', $1, $2, $3, $5 FROM generate_series(1, $4::bigint)",
                &[
                    &queue,
                    &&PAYLOAD[..],
                    &CONTENT_TYPE,
                    &i64::from(messages),
                    &BLOCKED,
                ],
            )
            .await
            .with_context(|| format!("could not insert {messages} messages of the blocked key"))?;
        Ok(())
    }

    /// As the relays counted: a count of the rows themselves, again and again, would hold up what is waited for.
    async fn parked(&self) -> Result<i64> {
        let row = self
            .client
            .query_one(
                "SELECT parked FROM outbox.blocked_keys WHERE ordering_key = $1",
                &[&BLOCKED],
            )
            .await
            .context("the key is not blocked")?;
        Ok(row.get(0))
    }

    /// Messages of the blocked key in a table.
    async fn blocked_by(&self, table: &str) -> Result<i64> {
        let row = self
            .client
            .query_one(
                &format!("SELECT count(*) FROM outbox.{table} WHERE ordering_key = $1"),
                &[&BLOCKED],
            )
            .await
            .with_context(|| format!("could not look into outbox.{table}"))?;
        Ok(row.get(0))
    }

    /// Makes sure that the key was blocked all the time.
    async fn ensure_parked(&self, rows: u32) -> Result<()> {
        let (head, parked) = (
            self.blocked_by("deferred").await?,
            self.blocked_by("parked").await?,
        );
        ensure!(
            head == 1 && parked == i64::from(rows),
            "of the blocked key {head} messages were deferred and {parked} parked, not 1 and {rows}"
        );
        Ok(())
    }
}
