//! The claim: a batch of unsent rows, locked inside a transaction that stays open until it is settled.
//!
//! A crash of the relay ends the session, and with it the locks: there is no lease to wait for.

mod keys_of_rows;
mod statements;

use futures_util::{TryStreamExt, future, pin_mut};
use postgres_types::{ToSql, Type};
use postrider_core::{Message, Origin, Seq, Walked};

pub(crate) use self::keys_of_rows::KeysOfRows;
pub(crate) use self::statements::{
    DEFERRED_EXTRA, Rows, SIZE, due_sql, end_of_piece, fresh_sql, is_head, locking_sql,
};
use crate::database::{ClaimSql, Database, Lease};
use crate::due::{DueTime, bound};
use crate::error::Error;
use crate::row::{self, Untaken};
use crate::watch;

/// The bounds of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimLimits {
    /// The most rows.
    pub rows: u32,
    /// The most bytes of payload and of headers, as text. With [`Share::InOrder`] the first row is claimed even when it alone
    /// is larger, and the last may go beyond: memory is bounded by `bytes + max_message_bytes`.
    pub bytes: u64,
    /// A payload larger than this stays in the database: its message is
    /// [`Payload::TooLarge`](postrider_core::Payload::TooLarge) and counts no bytes. A JSON payload
    /// stored inline is measured up to 4 bytes too large.
    pub max_message_bytes: u64,
    /// How rows are kept within the bytes.
    pub share: Share,
}

/// How the bytes of a claim are shared out among its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Row by row, as long as there are any: the first rows are taken.
    InOrder,
    /// Each row may take as much as every other, `bytes / rows`: those that need more are left, were it the first. It costs
    /// a third less, since no sum has to be carried from row to row. Of `messages` only; deferred ones are
    /// claimed as by [`Share::InOrder`].
    Equal,
}

/// Rows locked for this session until they are settled or released.
///
/// Dropped, it closes its connection, and the server rolls back: the rows are free for others.
#[must_use = "a claim that is dropped closes its connection"]
pub struct Claim {
    pub(crate) database: Database,
    /// `None` once nothing was found: then no transaction is open.
    pub(crate) lease: Option<Lease>,
    pub(crate) origin: Origin,
    messages: Vec<Message>,
    /// Ascending; what this claim may settle.
    pub(crate) seqs: Vec<i64>,
    reached_limit: bool,
    untaken: Option<Seq>,
    ordered_waits: bool,
    /// The end of the piece, where there is more behind it.
    until: Option<Seq>,
    pub(crate) keys: KeysOfRows,
}

/// What a claim's query locked.
struct Locked {
    messages: Vec<Message>,
    /// The lowest of the rows that did not fit into the bytes.
    untaken: Option<Seq>,
    ordered_waits: bool,
    until: Option<Seq>,
}

/// Where a claim of fresh messages begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClaimFrom {
    /// Of the messages without a key; `None` is the beginning.
    pub fresh: Option<Seq>,
    /// Of those with a key, which are not claimed but looked for; `None` is the beginning.
    pub ordered: Option<Seq>,
}

impl Database {
    /// Locks rows that nobody else has locked, except the `resting`, and opens the transaction in which
    /// they are to be settled: of `messages` the oldest without a key, of `deferred` those that are due by the
    /// database's clock, the longest due first.
    ///
    /// An empty claim holds no transaction and no connection.
    ///
    /// # Errors
    /// What connecting and querying can fail with; no row stays locked then.
    pub async fn claim_fresh(
        &self,
        limits: ClaimLimits,
        resting: &[Seq],
        from: ClaimFrom,
    ) -> Result<Claim, Error> {
        let statements = self.sql().messages.claim(limits.share);
        let (fresh, ordered) = (watch::bound(from.fresh), watch::bound(from.ordered));
        let from: [&(dyn ToSql + Sync); 2] = [&fresh, &ordered];
        self.claim_from(statements, &from, limits, resting, Origin::Messages)
            .await
    }

    /// The same of `deferred`, without a look at what was due before `from`: see
    /// [`DueLook::from`](crate::DueLook::from). Of the messages of one key only the one that the others wait for.
    ///
    /// # Errors
    /// As [`Database::claim_fresh`].
    pub async fn claim_due(
        &self,
        limits: ClaimLimits,
        resting: &[Seq],
        from: Option<DueTime>,
    ) -> Result<Claim, Error> {
        let from = bound(from);
        let statements = &self.sql().deferred.claim;
        self.claim_from(statements, &[&from], limits, resting, Origin::Deferred)
            .await
    }

    async fn claim_from(
        &self,
        statements: &ClaimSql,
        from: &[&(dyn ToSql + Sync)],
        limits: ClaimLimits,
        resting: &[Seq],
        origin: Origin,
    ) -> Result<Claim, Error> {
        if resting.is_empty() {
            return self.claim_by(&statements.all, from, limits, origin).await;
        }
        let resting: Vec<i64> = resting.iter().map(|seq| seq.0).collect();
        let parameters = [from, &[&resting]].concat();
        self.claim_by(&statements.except, &parameters, limits, origin)
            .await
    }

    /// Claims what the statement locks. Its first three parameters are the limits, the others are given.
    pub(crate) async fn claim_by(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limits: ClaimLimits,
        origin: Origin,
    ) -> Result<Claim, Error> {
        let lease = self.lease().await?;
        let rows = self.lock_rows(&lease, sql, parameters, limits, origin);
        let rows = self.answer("claim messages", rows).await?;

        let Locked {
            messages,
            untaken,
            ordered_waits,
            until,
        } = rows;
        let mut seqs: Vec<i64> = messages.iter().map(|message| message.seq.0).collect();
        seqs.sort_unstable();
        let is_full = seqs.len() >= usize::try_from(limits.rows).unwrap_or(usize::MAX);
        let key_of = |message: &Message| Some((message.seq.0, message.key()?.to_owned()));
        let keys = KeysOfRows::new(messages.iter().filter_map(key_of).collect());
        let mut claim = Claim {
            database: self.clone(),
            lease: Some(lease),
            origin,
            messages,
            seqs,
            reached_limit: is_full || untaken.is_some(),
            untaken,
            ordered_waits,
            until,
            keys,
        };
        if claim.seqs.is_empty() {
            claim.roll_back().await?;
        }
        Ok(claim)
    }

    async fn lock_rows(
        &self,
        lease: &Lease,
        sql: &str,
        others: &[&(dyn ToSql + Sync)],
        limits: ClaimLimits,
        origin: Origin,
    ) -> Result<Locked, Error> {
        const DOING: &str = "claim messages";
        let failed = |error| Error::query(DOING, error);
        let client = lease.client()?;
        // Both before BEGIN, so that neither costs a round trip within the transaction.
        let claim = client.prepare_cached(sql).await.map_err(failed)?;
        client
            .prepare_typed_cached(&self.sql().settle(origin).delete, &[Type::INT8_ARRAY])
            .await
            .map_err(failed)?;

        let limit = i64::from(limits.rows);
        let bytes = i64::try_from(limits.bytes).unwrap_or(i64::MAX);
        let max_message_bytes = i64::try_from(limits.max_message_bytes).unwrap_or(i64::MAX);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&limit, &bytes, &max_message_bytes];
        parameters.extend_from_slice(others);

        // Polled in this order, both are on the wire before either answer is awaited. The isolation
        // level is named because the database's default may be another: under REPEATABLE READ a row
        // settled meanwhile is an error instead of being skipped.
        let (begun, rows) = future::join(
            client.batch_execute(begin(origin)),
            client.query_raw(&claim, parameters),
        )
        .await;
        begun.map_err(failed)?;
        let rows = rows.map_err(failed)?;
        pin_mut!(rows);
        let mut locked = Locked {
            messages: Vec::new(),
            untaken: None,
            ordered_waits: false,
            until: None,
        };
        let mut is_first = true;
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            // The same in every row.
            if origin == Origin::Messages && std::mem::take(&mut is_first) {
                locked.ordered_waits = row::ordered_waits(&row)?;
                locked.until = row::until(&row)?;
                if row::is_absent(&row)? {
                    break;
                }
            }
            match row::decode(&row, origin)? {
                Ok(message) => locked.messages.push(message),
                Err(Untaken(seq)) => {
                    locked.untaken = Some(locked.untaken.map_or(seq, |lowest| lowest.min(seq)));
                }
            }
        }
        Ok(locked)
    }
}

/// Opens the transaction of a claim.
///
/// Planning costs a claim of few rows twice as much as executing it, so the statements on `messages` are planned once: they
/// read in the order of the primary key, and there is no other index to choose, now or when the table has grown.
/// `deferred` has several, and the best depends on what is in it.
pub(crate) fn begin(origin: Origin) -> &'static str {
    match origin {
        Origin::Messages | Origin::Parked => {
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL plan_cache_mode = force_generic_plan"
        }
        Origin::Deferred => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    }
}

impl Claim {
    /// A claim whose rows are named by the caller, in their order.
    pub(crate) fn of(
        database: Database,
        lease: Lease,
        origin: Origin,
        reached_limit: bool,
    ) -> Self {
        Self {
            database,
            lease: Some(lease),
            origin,
            messages: Vec::new(),
            seqs: Vec::new(),
            reached_limit,
            untaken: None,
            ordered_waits: false,
            until: None,
            keys: KeysOfRows::default(),
        }
    }

    /// The claimed messages, unless they were taken: in `seq` order, deferred ones in that of their due
    /// times.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The claimed messages in the same order, to be owned by the publisher. The rows stay locked.
    pub fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// Whether no row was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// The rows that may be settled, ascending.
    pub fn rows(&self) -> impl Iterator<Item = Seq> {
        self.seqs.iter().copied().map(Seq)
    }

    /// How many rows were claimed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seqs.len()
    }

    /// How far a claim of fresh messages came.
    #[must_use]
    pub fn walked(&self) -> Walked<Seq> {
        match self.until {
            _ if self.reached_limit => Walked::Full,
            Some(until) => Walked::Until(until),
            None => Walked::ToTheEnd,
        }
    }

    /// Whether the bound on rows or bytes was hit, so that more may be waiting.
    #[must_use]
    pub fn reached_limit(&self) -> bool {
        self.reached_limit
    }

    /// The lowest of the rows that were locked and left out for the bytes, if any: a smaller bound on rows would
    /// suit.
    #[must_use]
    pub fn untaken(&self) -> Option<Seq> {
        self.untaken
    }

    /// Whether messages with a key wait to be claimed: told by a claim of fresh messages.
    #[must_use]
    pub fn ordered_waits(&self) -> bool {
        self.ordered_waits
    }

    /// Frees the rows and deletes none.
    ///
    /// # Errors
    /// When the server does not answer; the connection is closed then, which frees the rows too.
    pub async fn release(mut self) -> Result<(), Error> {
        self.roll_back().await
    }

    pub(crate) async fn roll_back(&mut self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    /// Keeps what the claim itself changed.
    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        self.end("COMMIT").await
    }

    async fn end(&mut self, sql: &str) -> Result<(), Error> {
        const DOING: &str = "release a claim";
        let Some(lease) = self.lease.take() else {
            return Ok(());
        };
        self.database
            .answer(DOING, async {
                lease
                    .client()?
                    .batch_execute(sql)
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
            .field("origin", &self.origin)
            .field("seqs", &self.seqs)
            .field("reached_limit", &self.reached_limit)
            .finish_non_exhaustive()
    }
}
