//! The claim: a batch of unsent rows, locked inside a transaction that stays open until it is settled.
//!
//! A crash of the relay ends the session, and with it the locks: there is no lease to wait for.

use futures_util::{TryStreamExt, future, pin_mut};
use postgres_types::{ToSql, Type};
use postrider_core::{Message, Seq};

use crate::database::{Database, Lease};
use crate::error::Error;
use crate::row;
use crate::schema_name::Schema;

/// The bounds of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimLimits {
    /// The most rows.
    pub rows: u32,
    /// The most bytes of payload and of headers, as text. The first row is claimed even when it alone is larger, and the last
    /// may go beyond: memory is bounded by `bytes + max_message_bytes`.
    pub bytes: u64,
    /// A payload larger than this stays in the database: its message is
    /// [`Payload::TooLarge`](postrider_core::Payload::TooLarge) and counts no bytes. A JSON payload
    /// stored inline is measured up to 4 bytes too large.
    pub max_message_bytes: u64,
}

/// Rows locked for this session, in `seq` order, until they are settled or released.
///
/// Dropped, it closes its connection, and the server rolls back: the rows are free for others.
#[must_use = "a claim that is dropped closes its connection"]
pub struct Claim {
    database: Database,
    /// `None` once nothing was found: then no transaction is open.
    pub(crate) lease: Option<Lease>,
    messages: Vec<Message>,
    /// Ascending; what this claim may delete.
    seqs: Vec<i64>,
    reached_limit: bool,
    cut_by_bytes: bool,
}

/// The claim query.
///
/// Served by the primary key: it is read in `seq` order and stops after `$1` rows that were free. What
/// others have locked is skipped, so two claims never share a row.
///
/// `locked` is materialised with the payloads as TOAST pointers; sizes come from the pointers alone.
/// Only the outermost select, whose rows are within the bytes, reads payloads. `octet_length` of a
/// `bytea` never reads it. A `json` has no such function: its column size is its length as long as it
/// is stored uncompressed, which the column asks for (a value copied from another table may
/// still come compressed, and then is measured by reading it).
pub(crate) fn claim_sql(schema: &Schema, except: bool) -> String {
    let condition = if except {
        "WHERE m.seq <> ALL ($4::bigint[])"
    } else {
        ""
    };
    format!(
        "WITH locked AS MATERIALIZED ( \
             SELECT m.seq, m.id, m.exchange, m.routing_key, m.payload, m.payload_json, \
                    CASE WHEN m.payload IS NOT NULL THEN octet_length(m.payload) \
                         WHEN pg_column_compression(m.payload_json) IS NULL THEN pg_column_size(m.payload_json) \
                         ELSE octet_length(m.payload_json::text) END AS size, \
                    CASE WHEN m.headers = '{{}}' THEN 0 ELSE octet_length(m.headers::text) END AS header_bytes, \
                    m.headers, m.content_type, m.content_encoding, m.type, m.correlation_id, m.reply_to, \
                    m.app_id, m.priority, m.expiration, m.created_at \
             FROM {schema}.messages AS m {condition} \
             ORDER BY m.seq LIMIT $1::bigint FOR UPDATE OF m SKIP LOCKED \
         ), measured AS ( \
             SELECT l.*, \
                    sum(CASE WHEN l.size > $3::bigint THEN 0 ELSE l.size END + l.header_bytes) \
                        OVER (ORDER BY l.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before, \
                    count(*) OVER () AS locked \
             FROM locked AS l \
         ) \
         SELECT seq, id, exchange, routing_key, \
                CASE WHEN size <= $3::bigint THEN payload END, \
                CASE WHEN size <= $3::bigint THEN payload_json END, \
                size, headers, content_type, content_encoding, type, correlation_id, reply_to, app_id, \
                priority, expiration, created_at, clock_timestamp(), locked \
         FROM measured WHERE before IS NULL OR before < $2::bigint ORDER BY seq"
    )
}

/// Served by the primary key; the rows are locked by this session, so nobody else changes them.
pub(crate) fn settle_sql(schema: &Schema) -> String {
    format!("DELETE FROM {schema}.messages WHERE seq = ANY ($1::bigint[])")
}

impl Database {
    /// Locks the oldest unsent rows that nobody else has locked, except the `resting`, and opens
    /// the transaction in which they are to be settled.
    ///
    /// An empty claim holds no transaction and no connection.
    ///
    /// # Errors
    /// What connecting and querying can fail with; no row stays locked then.
    pub async fn claim(&self, limits: ClaimLimits, resting: &[Seq]) -> Result<Claim, Error> {
        let lease = self.lease().await?;
        let rows = self.answer("claim messages", self.lock_rows(&lease, limits, resting));
        let rows = rows.await?;

        let seqs: Vec<i64> = rows.iter().map(|row| row.message.seq.0).collect();
        let locked = rows.first().map_or(0, |row| row.locked);
        let returned = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let mut claim = Claim {
            database: self.clone(),
            lease: Some(lease),
            messages: rows.into_iter().map(|row| row.message).collect(),
            seqs,
            reached_limit: locked >= i64::from(limits.rows) || returned < locked,
            cut_by_bytes: returned < locked,
        };
        if claim.seqs.is_empty() {
            claim.roll_back().await?;
        }
        Ok(claim)
    }

    async fn lock_rows(
        &self,
        lease: &Lease,
        limits: ClaimLimits,
        resting: &[Seq],
    ) -> Result<Vec<row::ClaimedRow>, Error> {
        const DOING: &str = "claim messages";
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        let sql = if resting.is_empty() {
            &self.sql().claim
        } else {
            &self.sql().claim_except
        };
        // Both before BEGIN, so that neither costs a round trip within the transaction.
        let claim = client.prepare_cached(sql).await.map_err(failed)?;
        client
            .prepare_typed_cached(&self.sql().settle, &[Type::INT8_ARRAY])
            .await
            .map_err(failed)?;

        let limit = i64::from(limits.rows);
        let bytes = i64::try_from(limits.bytes).unwrap_or(i64::MAX);
        let max_message_bytes = i64::try_from(limits.max_message_bytes).unwrap_or(i64::MAX);
        let resting: Vec<i64> = resting.iter().map(|seq| seq.0).collect();
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&limit, &bytes, &max_message_bytes];
        if !resting.is_empty() {
            parameters.push(&resting);
        }

        // Polled in this order, both are on the wire before either answer is awaited. The isolation
        // level is named because the database's default may be another: under REPEATABLE READ a row
        // settled meanwhile is an error instead of being skipped.
        let (begun, rows) = future::join(
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
            client.query_raw(&claim, parameters),
        )
        .await;
        begun.map_err(failed)?;
        let rows = rows.map_err(failed)?;
        pin_mut!(rows);
        let mut claimed = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            claimed.push(row::decode(&row)?);
        }
        Ok(claimed)
    }
}

impl Claim {
    /// The claimed messages in `seq` order, unless they were taken.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The claimed messages in `seq` order, to be owned by the publisher. The rows stay locked.
    pub fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// Whether no row was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// How many rows were claimed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seqs.len()
    }

    /// Whether the bound on rows or bytes was hit, so that more may be waiting.
    #[must_use]
    pub fn reached_limit(&self) -> bool {
        self.reached_limit
    }

    /// Whether rows were locked and left out for the bytes: a smaller bound on rows would suit.
    #[must_use]
    pub fn cut_by_bytes(&self) -> bool {
        self.cut_by_bytes
    }

    /// Deletes exactly the rows of the confirmed messages and commits, in one round trip. The other
    /// rows of the claim are free for the next.
    ///
    /// # Errors
    /// [`Error::NotClaimed`], with nothing deleted, if a message is not of this claim.
    /// [`Error::Deleted`] if the database deleted fewer rows: those left are delivered again. After
    /// any other error it is unknown whether the rows are deleted; none is lost, some may be repeated.
    pub async fn settle(mut self, confirmed: &[Seq]) -> Result<(), Error> {
        const DOING: &str = "settle messages";
        let failed = |error| Error::query(DOING, error);
        let mut seqs: Vec<i64> = confirmed.iter().map(|seq| seq.0).collect();
        seqs.sort_unstable();
        seqs.dedup();
        if let Some(foreign) = seqs
            .iter()
            .find(|seq| self.seqs.binary_search(seq).is_err())
        {
            let foreign = Seq(*foreign);
            self.roll_back().await?;
            return Err(Error::NotClaimed(foreign));
        }
        if seqs.is_empty() {
            return self.roll_back().await;
        }
        let Some(lease) = self.lease.take() else {
            return Ok(());
        };
        let deleted = self
            .database
            .answer(DOING, async {
                let client = lease.client()?;
                let settle = client
                    .prepare_typed_cached(&self.database.sql().settle, &[Type::INT8_ARRAY])
                    .await
                    .map_err(failed)?;
                let (deleted, committed) = future::join(
                    client.execute(&settle, &[&seqs]),
                    client.batch_execute("COMMIT"),
                )
                .await;
                // A COMMIT after a failed DELETE rolls back and does not say so: the DELETE comes first.
                let deleted = deleted.map_err(failed)?;
                committed.map_err(failed)?;
                Ok(deleted)
            })
            .await?;
        lease.give_back();
        let confirmed = seqs.len() as u64;
        if deleted == confirmed {
            Ok(())
        } else {
            Err(Error::Deleted { confirmed, deleted })
        }
    }

    /// Frees the rows and deletes none.
    ///
    /// # Errors
    /// When the server does not answer; the connection is closed then, which frees the rows too.
    pub async fn release(mut self) -> Result<(), Error> {
        self.roll_back().await
    }

    async fn roll_back(&mut self) -> Result<(), Error> {
        const DOING: &str = "release a claim";
        let Some(lease) = self.lease.take() else {
            return Ok(());
        };
        self.database
            .answer(DOING, async {
                lease
                    .client()?
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(|error| Error::query(DOING, error))
            })
            .await?;
        lease.give_back();
        Ok(())
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim")
            .field("seqs", &self.seqs)
            .field("reached_limit", &self.reached_limit)
            .finish_non_exhaustive()
    }
}
