//! Dead letters: to be found, sent again, or thrown away.
//!
//! Everything goes by `seq`, a page or a bounded transaction at a time, each from where the last one ended: no
//! row is met twice, not even one that died again meanwhile, and no deleted row is walked over again.

use std::time::{Duration, SystemTime};

use postrider_core::{MOST_MOVED_BYTES, Payload, Properties, Reason, Seq};
use serde_json::{Map, Value};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::claim::{ClaimLimits, SIZE};
use crate::database::Database;
use crate::error::Error;
use crate::row;
use crate::schema_name::Schema;
use crate::selection::{Changed, Selection, changed_and_due, heads, microseconds};
use crate::settle::MESSAGE_COLUMNS;

/// Which dead letters: those for which everything given holds; by default all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// With one of these ids; empty for any.
    pub ids: Vec<Uuid>,
    /// With one of these places; empty for any.
    pub seqs: Vec<Seq>,
    /// To this exchange.
    pub exchange: Option<String>,
    /// Given up for this reason.
    pub reason: Option<Reason>,
    /// Given up longer ago than this, by the database's clock.
    pub older_than: Option<Duration>,
    /// Given up since then.
    pub newer_than: Option<Duration>,
}

/// A dead letter without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterSummary {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Where it should have gone.
    pub exchange: String,
    /// And with which key.
    pub routing_key: String,
    /// Its ordering key.
    pub ordering_key: Option<String>,
    /// Whether that waits until this one has left.
    pub blocks: bool,
    /// When the producer inserted it.
    pub created_at: SystemTime,
    /// When it was given up.
    pub given_up_at: SystemTime,
    /// How many publishes failed.
    pub attempts: u32,
    /// Why the last one failed: the name of a [`Reason`], as the version that wrote it had it.
    pub reason: String,
    /// What was said about it.
    pub error: String,
    /// The size of its payload.
    pub payload_bytes: u64,
}

/// A dead letter with everything that would be sent.
///
/// The contents are left out of the `Debug` output: they belong to the application and may be secret.
#[derive(Clone, PartialEq)]
pub struct DeadLetter {
    /// What is known of it.
    pub summary: DeadLetterSummary,
    /// The header table.
    pub headers: Map<String, Value>,
    /// The other properties.
    pub properties: Properties,
    /// The body, if it is within the bound.
    pub payload: Payload,
    /// Whether the body was given as JSON.
    pub payload_is_json: bool,
    /// Whether the next one of its key might have stood for it.
    pub supersede: bool,
}

impl DeadLetterFilter {
    fn selection(&self) -> Selection {
        let mut selection = Selection::default();
        selection.ids(&self.ids);
        selection.seqs(&self.seqs);
        selection.exchange(self.exchange.as_ref());
        selection.reason(self.reason);
        if let Some(age) = self.older_than {
            selection.require(
                "m.given_up_at < statement_timestamp() - {}::bigint * interval '1 microsecond'",
                microseconds(age),
            );
        }
        if let Some(age) = self.newer_than {
            selection.require(
                "m.given_up_at >= statement_timestamp() - {}::bigint * interval '1 microsecond'",
                microseconds(age),
            );
        }
        selection
    }
}

impl Database {
    /// One page of dead letters, in `seq` order, from after `after`. Reads no payload.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        limit: u32,
    ) -> Result<Vec<DeadLetterSummary>, Error> {
        let schema = self.schema();
        let mut selection = filter.selection();
        selection.after(after);
        let limit = selection.parameter(i64::from(limit));
        // Served by the primary key, or by an index on what is asked for and seq.
        let sql = format!(
            "SELECT m.seq, m.id, m.exchange, m.routing_key, {SIZE}, m.created_at, m.given_up_at, m.attempts, \
                    m.reason, m.error, m.ordering_key, m.blocks \
             FROM {schema}.dead_letters AS m {} ORDER BY m.seq LIMIT {limit}::bigint",
            selection.clause()
        );
        let rows = self.select("list dead letters", &sql, &selection).await?;
        rows.iter().map(|row| summary(row, 4, 5)).collect()
    }

    /// One page of whole dead letters, in `seq` order, from after `after`: `limits.rows` at most, and once
    /// their payloads have `limits.bytes` no further one. Payloads above `limits.max_message_bytes` are left
    /// out. Empty at the end only.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn export_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        limits: ClaimLimits,
    ) -> Result<Vec<DeadLetter>, Error> {
        let schema = self.schema();
        let mut selection = filter.selection();
        selection.after(after);
        let rows = selection.parameter(i64::from(limits.rows));
        let bytes = selection.parameter(i64::try_from(limits.bytes).unwrap_or(i64::MAX));
        let most = selection.parameter(i64::try_from(limits.max_message_bytes).unwrap_or(i64::MAX));
        // As in a claim: sizes without payloads first, then the payloads within the bytes.
        let sql = format!(
            "WITH chosen AS MATERIALIZED ( \
                 SELECT m.*, {SIZE} AS size FROM {schema}.dead_letters AS m {} ORDER BY m.seq LIMIT {rows}::bigint \
             ), measured AS ( \
                 SELECT c.*, sum(CASE WHEN c.size > {most}::bigint THEN 0 ELSE c.size END) \
                             OVER (ORDER BY c.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
                 FROM chosen AS c \
             ) \
             SELECT seq, id, exchange, routing_key, \
                    CASE WHEN size <= {most}::bigint THEN payload END, \
                    CASE WHEN size <= {most}::bigint THEN payload_json END, \
                    size, headers, content_type, content_encoding, type, correlation_id, reply_to, app_id, \
                    priority, expiration, created_at, given_up_at, attempts, reason, error, ordering_key, blocks, payload IS NULL, supersede \
             FROM measured WHERE before IS NULL OR before < {bytes}::bigint ORDER BY seq",
            selection.clause()
        );
        let rows = self.select("read dead letters", &sql, &selection).await?;
        rows.iter().map(whole).collect()
    }

    /// How many dead letters there are, counted up to `limit`.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn count_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        limit: u64,
    ) -> Result<u64, Error> {
        self.count_up_to(
            "count dead letters",
            "dead_letters",
            filter.selection(),
            limit,
        )
        .await
    }

    /// Makes up to `batch` dead letters after `after` deferred messages that are due now, with no attempt
    /// charged, in one transaction. The relays find them when they look for due messages. What was said of their last failure stays.
    ///
    /// # Errors
    /// What connecting and querying can fail with; after a broken connection it is unknown whether this
    /// was done: all of it or nothing.
    pub async fn retry_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        batch: u32,
    ) -> Result<Changed, Error> {
        let schema = self.schema();
        let mut selection = filter.selection();
        selection.after(after);
        let batch = selection.parameter(i64::from(batch));
        // Rows that somebody else is at are skipped. Their deletion and insertion are one statement.
        // The triggers of the insertion are the first to lock what blocks a key: in the order of names, as a settle does. In another,
        // each of the two could wait for the other.
        let sql = format!(
            "{}, gone AS ( \
                 DELETE FROM {schema}.dead_letters WHERE seq = ANY (ARRAY (SELECT seq FROM chosen)) \
                 RETURNING {MESSAGE_COLUMNS}, reason, error \
             ), moved AS ( \
                 INSERT INTO {schema}.deferred ({MESSAGE_COLUMNS}, attempts, due_at, cause, reason, error) \
                 SELECT {MESSAGE_COLUMNS}, 0, clock_timestamp(), 'retry', reason, error FROM gone \
                 ORDER BY ordering_key COLLATE \"C\", seq RETURNING seq \
             ) \
             {}",
            chosen(schema, &selection, "m.seq", &batch),
            changed_and_due("moved", &heads("gone", schema), schema),
        );
        self.change("retry dead letters", &sql, &selection).await
    }

    /// Deletes up to `batch` dead letters after `after`, in one transaction.
    ///
    /// # Errors
    /// As [`Database::retry_dead_letters`].
    pub async fn discard_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        batch: u32,
    ) -> Result<Changed, Error> {
        let mut selection = filter.selection();
        selection.after(after);
        self.delete_dead_letters("discard dead letters", selection, "m.seq", batch)
            .await
    }

    /// Deletes up to `batch` of the dead letters that were given up longer ago than `retention`, the
    /// longest dead first, in one transaction, and says how many.
    ///
    /// # Errors
    /// As [`Database::retry_dead_letters`].
    pub async fn purge_dead_letters(&self, retention: Duration, batch: u32) -> Result<u64, Error> {
        let selection = DeadLetterFilter {
            older_than: Some(retention),
            ..DeadLetterFilter::default()
        }
        .selection();
        // Served by the index on (given_up_at, seq).
        let changed = self
            .delete_dead_letters(
                "purge dead letters",
                selection,
                "m.given_up_at, m.seq",
                batch,
            )
            .await?;
        Ok(changed.rows)
    }

    async fn delete_dead_letters(
        &self,
        doing: &'static str,
        mut selection: Selection,
        order: &str,
        batch: u32,
    ) -> Result<Changed, Error> {
        let schema = self.schema();
        let batch = selection.parameter(i64::from(batch));
        // The triggers of the deletion lock what blocks a key, when the statement has ended, in the order of its rows. Locked before
        // in the order of names, as a settle does: else each of the two could wait for the other.
        let sql = format!(
            "{}, gone AS ( \
                 DELETE FROM {schema}.dead_letters WHERE seq = ANY (ARRAY (SELECT seq FROM chosen)) RETURNING seq, ordering_key \
             ), freed AS MATERIALIZED ( \
                 SELECT b.ordering_key FROM gone AS g JOIN {schema}.blocked_keys AS b \
                     ON b.ordering_key = g.ordering_key COLLATE \"C\" AND b.head_seq = g.seq \
                 ORDER BY b.ordering_key FOR UPDATE OF b \
             ) \
             SELECT count(*), max(seq), (SELECT count(*) FROM freed) FROM gone",
            chosen(schema, &selection, order, &batch),
        );
        self.change(doing, &sql, &selection).await
    }
}

/// The rows of one transaction: up to `batch` of them, and up to [`MOST_MOVED_BYTES`] of payload, the first
/// always.
fn chosen(schema: &Schema, selection: &Selection, order: &str, batch: &str) -> String {
    format!(
        "WITH locked AS MATERIALIZED ( \
             SELECT m.seq, {SIZE} AS size FROM {schema}.dead_letters AS m {} \
             ORDER BY {order} LIMIT {batch}::bigint FOR UPDATE OF m SKIP LOCKED \
         ), chosen AS MATERIALIZED ( \
             SELECT seq FROM (SELECT seq, sum(size) OVER (ORDER BY seq) - size AS before FROM locked) AS measured \
             WHERE before < {MOST_MOVED_BYTES} \
         )",
        selection.clause()
    )
}

/// Reads a summary whose size is in the one column, and `created_at` with what follows from the other on.
fn summary(row: &Row, size: usize, dates: usize) -> Result<DeadLetterSummary, Error> {
    let seq = Seq(row::get(row, 0, Seq(0))?);
    let created_at: row::Instant = row::get(row, dates, seq)?;
    let given_up_at: row::Instant = row::get(row, dates + 1, seq)?;
    Ok(DeadLetterSummary {
        seq,
        id: row::get(row, 1, seq)?,
        exchange: row::get(row, 2, seq)?,
        routing_key: row::get(row, 3, seq)?,
        created_at: created_at.system_time(),
        given_up_at: given_up_at.system_time(),
        attempts: u32::try_from(row::get::<i32>(row, dates + 2, seq)?).unwrap_or(0),
        reason: row::get(row, dates + 3, seq)?,
        error: row::get(row, dates + 4, seq)?,
        ordering_key: row::get(row, dates + 5, seq)?,
        blocks: row::get(row, dates + 6, seq)?,
        payload_bytes: u64::try_from(row::get::<i32>(row, size, seq)?).unwrap_or(0),
    })
}

fn whole(row: &Row) -> Result<DeadLetter, Error> {
    let summary = summary(row, 6, 16)?;
    let seq = summary.seq;
    Ok(DeadLetter {
        headers: row::get::<row::HeadersText>(row, 7, seq)?
            .0
            .parse()
            .map_err(|error| Error::Row {
                seq,
                detail: format!("the headers are no JSON object: {error}"),
            })?,
        properties: row::properties(row, seq)?,
        payload: row::payload(row, seq)?,
        payload_is_json: row::get(row, 23, seq)?,
        supersede: row::get(row, 24, seq)?,
        summary,
    })
}

impl std::fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetter")
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}
