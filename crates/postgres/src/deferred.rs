//! Deferred messages: which there are, and to let them go early.

use std::time::{Duration, SystemTime};

use postrider_core::{Reason, Seq};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::claim::is_head;
use crate::database::Database;
use crate::error::Error;
use crate::row;
use crate::selection::{Changed, NO_KEYS, Selection, changed_and_due};

/// Why a message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A publish failed.
    Retry,
    /// Its producer asked for it.
    Scheduled,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 2] = [Self::Retry, Self::Scheduled];

    /// The name used in the table, metrics and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Scheduled => "scheduled",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which deferred messages: those for which everything given holds; by default all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeferredFilter {
    /// With one of these ids; empty for any.
    pub ids: Vec<Uuid>,
    /// With one of these places; empty for any.
    pub seqs: Vec<Seq>,
    /// To this exchange.
    pub exchange: Option<String>,
    /// That wait for this cause.
    pub cause: Option<Cause>,
    /// Whose last publish failed for this reason.
    pub reason: Option<Reason>,
}

/// A deferred message without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeferredSummary {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: Uuid,
    /// Where it goes.
    pub exchange: String,
    /// And with which key.
    pub routing_key: String,
    /// Its ordering key, which waits for it.
    pub ordering_key: Option<String>,
    /// When the producer inserted it.
    pub created_at: SystemTime,
    /// When it is due.
    pub due_at: SystemTime,
    /// Why it waits.
    pub cause: Cause,
    /// How many publishes failed by its own fault.
    pub attempts: u32,
    /// Why the last one failed: the name of a [`Reason`], as the version that wrote it had it.
    pub reason: Option<String>,
    /// What was said about it.
    pub error: Option<String>,
}

/// Until when one waits that waits for an earlier one of its ordering key: the triggers of migration 8 write it. 9999-12-31.
const NOT_YET: Duration = Duration::from_secs(253_402_214_400);

impl DeferredSummary {
    /// Whether it waits for an earlier deferred message of its ordering key, whatever its due time says.
    #[must_use]
    pub fn waits_for_its_turn(&self) -> bool {
        self.ordering_key.is_some() && self.due_at >= SystemTime::UNIX_EPOCH + NOT_YET
    }

    /// Where the page after the one that ends with this message starts.
    #[must_use]
    pub fn cursor(&self) -> DeferredCursor {
        DeferredCursor {
            due_at: self.due_at,
            seq: self.seq,
        }
    }
}

/// A place in the list of deferred messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeferredCursor {
    due_at: SystemTime,
    seq: Seq,
}

impl DeferredFilter {
    fn selection(&self) -> Selection {
        let mut selection = Selection::default();
        selection.ids(&self.ids);
        selection.seqs(&self.seqs);
        selection.exchange(self.exchange.as_ref());
        if let Some(cause) = self.cause {
            selection.require("m.cause = {}::text", cause.as_str());
        }
        selection.reason(self.reason);
        selection
    }
}

impl Database {
    /// One page of deferred messages, the first due first, from after `after`. Reads no payload.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn deferred(
        &self,
        filter: &DeferredFilter,
        after: Option<DeferredCursor>,
        limit: u32,
    ) -> Result<Vec<DeferredSummary>, Error> {
        let mut selection = filter.selection();
        if let Some(after) = after {
            let due_at = selection.parameter(after.due_at);
            let seq = selection.parameter(after.seq.0);
            selection.require_that(&format!(
                "(m.due_at, m.seq) > ({due_at}::timestamptz, {seq}::bigint)"
            ));
        }
        let limit = selection.parameter(i64::from(limit));
        // Served by the index on (due_at, seq).
        let sql = format!(
            "SELECT m.seq, m.id, m.exchange, m.routing_key, m.created_at, m.due_at, m.cause, m.attempts, m.reason, \
                    m.error, m.ordering_key \
             FROM {}.deferred AS m {} ORDER BY m.due_at, m.seq LIMIT {limit}::bigint",
            self.schema(),
            selection.clause()
        );
        let rows = self
            .select("list deferred messages", &sql, &selection)
            .await?;
        rows.iter().map(summary).collect()
    }

    /// How many deferred messages there are, counted up to `limit`.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn count_deferred(&self, filter: &DeferredFilter, limit: u64) -> Result<u64, Error> {
        self.count_up_to(
            "count deferred messages",
            "deferred",
            filter.selection(),
            limit,
        )
        .await
    }

    /// Makes up to `batch` of the deferred messages after `after` in `seq` order that wait due now, in one
    /// transaction. Attempts stay charged. Of the messages of one key only the first is taken. Messages that are being published are
    /// skipped, and those due already left as they are.
    ///
    /// # Errors
    /// What connecting and querying can fail with; after a broken connection it is unknown whether this
    /// was done: all of it or nothing.
    pub async fn release_deferred(
        &self,
        filter: &DeferredFilter,
        after: Option<Seq>,
        batch: u32,
    ) -> Result<Changed, Error> {
        let schema = self.schema();
        let mut selection = filter.selection();
        selection.after(after);
        selection.require_that("m.due_at > statement_timestamp()");
        selection.require_that(&is_head(self.schema()));
        let batch = selection.parameter(i64::from(batch));
        let sql = format!(
            "WITH chosen AS MATERIALIZED ( \
                 SELECT m.seq FROM {schema}.deferred AS m {} ORDER BY m.seq LIMIT {batch}::bigint \
                 FOR UPDATE OF m SKIP LOCKED \
             ), due AS ( \
                 UPDATE {schema}.deferred SET due_at = clock_timestamp() \
                 WHERE seq = ANY (ARRAY (SELECT seq FROM chosen)) RETURNING seq \
             ) \
             {}",
            selection.clause(),
            changed_and_due("due", NO_KEYS, schema),
        );
        self.change("release deferred messages", &sql, &selection)
            .await
    }
}

fn summary(row: &Row) -> Result<DeferredSummary, Error> {
    let seq = Seq(row::get(row, 0, Seq(0))?);
    let created_at: row::Instant = row::get(row, 4, seq)?;
    let due_at: row::Instant = row::get(row, 5, seq)?;
    let cause: String = row::get(row, 6, seq)?;
    Ok(DeferredSummary {
        seq,
        id: row::get(row, 1, seq)?,
        exchange: row::get(row, 2, seq)?,
        routing_key: row::get(row, 3, seq)?,
        created_at: created_at.system_time(),
        due_at: due_at.system_time(),
        cause: Cause::ALL
            .into_iter()
            .find(|known| known.as_str() == cause)
            .ok_or_else(|| Error::Row {
                seq,
                detail: "unknown cause".to_owned(),
            })?,
        attempts: u32::try_from(row::get::<i32>(row, 7, seq)?).unwrap_or(0),
        reason: row::get(row, 8, seq)?,
        error: row::get(row, 9, seq)?,
        ordering_key: row::get(row, 10, seq)?,
    })
}
