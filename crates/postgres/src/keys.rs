//! Ordering keys for people: which are blocked, by what, and what waits of one key.

use std::time::SystemTime;

use postgres_types::ToSql;
use postrider_core::Seq;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::Database;
use crate::error::Error;
use crate::ordered::LANE;
use crate::row::{self, Instant};
use crate::schema_name::Schema;

/// A key whose messages wait for an earlier one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedKey {
    /// The key.
    pub key: String,
    /// What the others wait for.
    pub head: Head,
    /// How many are parked behind it, as the relays counted.
    pub parked: u64,
    /// Since when it is blocked.
    pub blocked_at: SystemTime,
}

/// What the messages of a blocked key wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// A message that is tried again when it is due.
    Deferred {
        /// Which.
        message: HeadMessage,
        /// When it is due.
        due_at: SystemTime,
    },
    /// A message that was given up: a person decides.
    DeadLetter {
        /// Which.
        message: HeadMessage,
    },
    /// Nothing any more: what is parked goes out.
    Resuming,
    /// A message that is in neither table: it was taken away in a way that no trigger saw.
    Missing {
        /// Its place.
        seq: Seq,
    },
}

/// The message that holds back a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadMessage {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Where it goes.
    pub exchange: String,
    /// And with which routing key.
    pub routing_key: String,
    /// How many publishes failed by its own fault.
    pub attempts: u32,
    /// Why the last one failed: the name of a [`Reason`](postrider_core::Reason), as the version that wrote it had it; `None` before
    /// the first.
    pub reason: Option<String>,
    /// What was said about it.
    pub error: Option<String>,
}

/// A key and the first of its messages in each table, in the order of `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyState {
    /// What it waits for, if it is blocked.
    pub blocked: Option<BlockedKey>,
    /// Messages that can go.
    pub messages: Vec<KeyMessage>,
    /// Messages that wait for their time or their turn.
    pub deferred: Vec<KeyMessage>,
    /// Messages that were given up.
    pub dead_letters: Vec<KeyMessage>,
    /// Messages that wait for an earlier one.
    pub parked: Vec<KeyMessage>,
}

/// A message of a key, without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMessage {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Where it goes.
    pub exchange: String,
    /// And with which routing key.
    pub routing_key: String,
    /// When it was inserted.
    pub created_at: SystemTime,
}

/// Blocked keys that fulfil the condition, with what is known of their heads: by the primary keys of all three tables.
pub(crate) fn blocked_sql(schema: &Schema, condition: &str) -> String {
    format!(
        "SELECT b.ordering_key, b.head_seq, b.parked, b.blocked_at, \
                d.due_at, coalesce(d.id, l.id), coalesce(d.exchange, l.exchange), coalesce(d.routing_key, l.routing_key), \
                coalesce(d.attempts, l.attempts), coalesce(d.reason, l.reason), coalesce(d.error, l.error) \
         FROM {schema}.blocked_keys AS b \
         LEFT JOIN {schema}.deferred AS d ON d.seq = b.head_seq \
         LEFT JOIN {schema}.dead_letters AS l ON l.seq = b.head_seq AND d.seq IS NULL \
         WHERE b.ordering_key {condition} $1::text COLLATE \"C\" ORDER BY b.ordering_key LIMIT $2::bigint"
    )
}

/// The first `$2` messages of the key `$1` in a table. Each is served by its index on the key and seq; `messages` by that on the lane and seq,
/// where those of other keys of the lane are walked over.
pub(crate) fn messages_sql(schema: &Schema, table: &str) -> String {
    let lane = match table {
        "messages" => {
            let of_key = LANE.replace("m.ordering_key", "$1::text");
            format!(" AND {LANE} = {of_key}")
        }
        _ => String::new(),
    };
    format!(
        "SELECT m.seq, m.id, m.exchange, m.routing_key, m.created_at FROM {schema}.{table} AS m \
         WHERE m.ordering_key IS NOT NULL AND m.ordering_key COLLATE \"C\" = $1::text{lane} ORDER BY m.seq LIMIT $2::bigint"
    )
}

const DOING: &str = "look at ordering keys";

impl Database {
    /// One page of blocked keys in the order of their bytes, from after `after`.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn blocked_keys(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<BlockedKey>, Error> {
        // No key is empty.
        let sql = blocked_sql(self.schema(), ">");
        let rows = self.of_key(&sql, after.unwrap_or_default(), limit).await?;
        rows.iter().map(blocked).collect()
    }

    /// What a key waits for, and the first `limit` of its messages in each table. Each table is looked at by itself: a message that
    /// moves meanwhile may be seen twice, or not at all.
    ///
    /// # Errors
    /// As [`Database::blocked_keys`].
    pub async fn key(&self, key: &str, limit: u32) -> Result<KeyState, Error> {
        let blocked_rows = self
            .of_key(&blocked_sql(self.schema(), "="), key, 1)
            .await?;
        Ok(KeyState {
            blocked: blocked_rows.first().map(blocked).transpose()?,
            messages: self.messages_of_key("messages", key, limit).await?,
            deferred: self.messages_of_key("deferred", key, limit).await?,
            dead_letters: self.messages_of_key("dead_letters", key, limit).await?,
            parked: self.messages_of_key("parked", key, limit).await?,
        })
    }

    async fn messages_of_key(
        &self,
        table: &str,
        key: &str,
        limit: u32,
    ) -> Result<Vec<KeyMessage>, Error> {
        let sql = messages_sql(self.schema(), table);
        let rows = self.of_key(&sql, key, limit).await?;
        rows.iter().map(message).collect()
    }

    async fn of_key(&self, sql: &str, key: &str, limit: u32) -> Result<Vec<Row>, Error> {
        let failed = |error| Error::query(DOING, error);
        let lease = self.lease().await?;
        let limit = i64::from(limit);
        let parameters: [&(dyn ToSql + Sync); 2] = [&key, &limit];
        let rows = self
            .answer(DOING, async {
                let client = lease.client()?;
                client.query(sql, &parameters).await.map_err(failed)
            })
            .await?;
        lease.give_back();
        Ok(rows)
    }
}

fn blocked(row: &Row) -> Result<BlockedKey, Error> {
    let head = row::get::<Option<i64>>(row, 1, Seq(0))?.map(Seq);
    let at = head.unwrap_or(Seq(0));
    let blocked_at: Instant = row::get(row, 3, at)?;
    Ok(BlockedKey {
        key: row::get(row, 0, at)?,
        head: match head {
            None => Head::Resuming,
            Some(seq) => head_at(row, seq)?,
        },
        parked: u64::try_from(row::get::<i64>(row, 2, at)?).unwrap_or(0),
        blocked_at: blocked_at.system_time(),
    })
}

fn head_at(row: &Row, seq: Seq) -> Result<Head, Error> {
    let Some(id) = row::get(row, 5, seq)? else {
        return Ok(Head::Missing { seq });
    };
    let due_at: Option<Instant> = row::get(row, 4, seq)?;
    let message = HeadMessage {
        seq,
        id,
        exchange: row::get(row, 6, seq)?,
        routing_key: row::get(row, 7, seq)?,
        attempts: u32::try_from(row::get::<i32>(row, 8, seq)?).unwrap_or(0),
        reason: row::get(row, 9, seq)?,
        error: row::get(row, 10, seq)?,
    };
    Ok(match due_at {
        Some(due_at) => Head::Deferred {
            message,
            due_at: due_at.system_time(),
        },
        None => Head::DeadLetter { message },
    })
}

fn message(row: &Row) -> Result<KeyMessage, Error> {
    let seq = Seq(row::get(row, 0, Seq(0))?);
    let created_at: Instant = row::get(row, 4, seq)?;
    Ok(KeyMessage {
        seq,
        id: row::get(row, 1, seq)?,
        exchange: row::get(row, 2, seq)?,
        routing_key: row::get(row, 3, seq)?,
        created_at: created_at.system_time(),
    })
}
