//! Messages by a fixed schedule, whatever the system does meanwhile: a slow commit delays the messages after it, not the
//! schedule, and so does not thin out the load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::{task::JoinSet, time::sleep_until};
use uuid::Uuid;

use crate::stage::{CONTENT_TYPE, Installation};

/// More than so many transactions a second are shared among several connections: each transaction waits for the disk.
const PER_CONNECTION: u32 = 625;

/// What to send where.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) queue: String,
    pub(crate) payload_bytes: usize,
    /// Messages, and so transactions, a second.
    pub(crate) rate: u32,
    pub(crate) messages: u32,
}

/// The clock around one commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    /// Its place in the schedule.
    pub(crate) number: u32,
    pub(crate) id: Uuid,
    /// When the COMMIT was sent.
    pub(crate) sent: Instant,
    /// When the database had answered it.
    pub(crate) answered: Instant,
    /// How far behind its schedule the transaction began.
    pub(crate) late: Duration,
}

impl Schedule {
    /// How many connections take turns.
    pub(crate) fn connections(&self) -> u32 {
        self.rate.div_ceil(PER_CONNECTION)
    }

    /// When a message is due, from the start on.
    fn due(&self, number: u32) -> Duration {
        Duration::from_secs(1) * number / self.rate
    }

    /// The messages of one connection, in their order.
    fn numbers(&self, connection: u32) -> impl Iterator<Item = u32> + use<> {
        (connection..self.messages).step_by(self.connections() as usize)
    }

    /// Inserts one row in each transaction; all commits, in the order of the schedule.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn produce(self, installation: &Installation) -> Result<Vec<Commit>> {
        let mut clients = Vec::new();
        for _ in 0..self.connections() {
            let client = installation.database.client().await?;
            let insert = client
                .prepare(
                    "INSERT INTO outbox.messages (id, exchange, routing_key, payload, content_type) \
                     VALUES ($1, '', $2, $3, $4)",
                )
                .await
                .context("could not prepare the insert")?;
            clients.push((client, insert));
        }
        let began = Instant::now();
        let mut producers = JoinSet::new();
        for (connection, (client, insert)) in (0..).zip(clients) {
            let schedule = self.clone();
            producers.spawn(async move {
                let payload = vec![b'x'; schedule.payload_bytes];
                let mut commits = Vec::new();
                for number in schedule.numbers(connection) {
                    let due = began + schedule.due(number);
                    sleep_until(due.into()).await;
                    let late = due.elapsed();
                    let id = Uuid::new_v4();
                    // Both are on their way before the first is answered.
                    let begin = client.batch_execute("BEGIN");
                    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                        [&id, &schedule.queue, &payload, &CONTENT_TYPE];
                    let inserted = client.execute(&insert, &values);
                    tokio::try_join!(begin, inserted).context("could not insert a message")?;
                    let sent = Instant::now();
                    client.batch_execute("COMMIT").await?;
                    commits.push(Commit {
                        number,
                        id,
                        sent,
                        answered: Instant::now(),
                        late,
                    });
                }
                anyhow::Ok(commits)
            });
        }
        let mut commits = Vec::with_capacity(self.messages as usize);
        while let Some(produced) = producers.join_next().await {
            commits.extend(produced.context("a producer panicked")??);
        }
        commits.sort_unstable_by_key(|commit| commit.number);
        Ok(commits)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Schedule;

    fn schedule(rate: u32, messages: u32) -> Schedule {
        Schedule {
            queue: "q".to_owned(),
            payload_bytes: 0,
            rate,
            messages,
        }
    }

    #[test]
    fn every_message_is_sent_by_one_connection_alone() {
        for (rate, connections) in [(100, 1), (1_000, 2), (5_000, 8)] {
            let schedule = schedule(rate, 1_003);
            assert_eq!(schedule.connections(), connections);
            let mut numbers: Vec<u32> = (0..connections)
                .flat_map(|connection| schedule.numbers(connection))
                .collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..1_003).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_schedule_does_not_drift_where_a_second_is_no_multiple_of_its_steps() {
        let schedule = schedule(7, 7 * 3_600);
        assert_eq!(schedule.due(7 * 3_600), Duration::from_secs(3_600));
        assert_eq!(schedule.due(0), Duration::ZERO);
    }
}
