//! The statements for messages with a key.

use postrider_core::Origin;

use crate::claim::{SIZE, Share};
use crate::late::delete_confirmed_sql;
use crate::row::standing;
use crate::schema_name::Schema;
use crate::settle::SettleSql;

/// How many rows a look at what waits reads. Where there are more, each lane is looked at instead.
pub(super) const LOOKED_THROUGH: i64 = 1_000;

/// How large the table of blocked keys may be to be read through by every claim.
const READ_THROUGH_BYTES: u32 = 64 * 1024;

/// The lane of a row `m`, as the index has it.
pub(crate) const LANE: &str = "(hashtextextended(m.ordering_key COLLATE \"C\", 0) & 255)::integer";

/// The beginning `l.start` of a lane, or where writers that it has passed may have written, if this statement's snapshot shows any of
/// them as ended: see [`PassedWriter`](postrider_core::PassedWriter). `ids` and `since`: the parameters for them. It is found out once for all
/// lanes.
fn start(ids: &str, since: &str) -> String {
    format!(
        "least(l.start, (SELECT min(p.since) FROM unnest({ids}::bigint[], {since}::bigint[]) AS p (id, since) \
         WHERE pg_visible_in_snapshot(p.id::text::xid8, pg_current_snapshot())))"
    )
}

/// The statements for messages with a key.
pub(crate) struct OrderedSql {
    /// The lanes of the first rows from `$1` on, of each the lowest row, the highest, and how many there are; and for how many seconds they were looked for.
    pub(crate) waiting: String,
    /// Of each of the lanes `$1` that has rows from its beginning `$2` on, the first of them. `$3` and `$4` are the writers that were passed.
    pub(crate) lanes: String,
    /// Of the lanes `$2`, those whose lock, of the class `$1` and with the number `$3` plus the lane, could be had.
    pub(super) lock: String,
    /// As long as nobody else has locked any of the rows.
    pub(crate) claim_unlocked: UnlockedSql,
    pub(crate) claim: String,
    /// Keys after `$1` whose head is gone, `$2` of them.
    pub(crate) resuming: String,
    /// Makes those due that became the first of their key while somebody had them locked.
    pub(super) wake_heads: String,
    /// Frees those of the keys `$1` that have nothing parked.
    pub(crate) unblock: String,
    pub(crate) claim_parked: String,
    pub(crate) settle: SettleSql,
    pub(crate) delete_confirmed: String,
}

/// One claim by each way of sharing out the bytes.
pub(crate) struct UnlockedSql {
    in_order: String,
    equal: String,
}

impl UnlockedSql {
    pub(crate) fn claim(&self, share: Share) -> &str {
        match share {
            Share::InOrder => &self.in_order,
            Share::Equal => &self.equal,
        }
    }
}

impl OrderedSql {
    pub(crate) fn new(schema: &Schema) -> Self {
        Self {
            waiting: format!(
                "SELECT lane, min(seq), max(seq), count(*), \
                        extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision FROM ( \
                     SELECT {LANE} AS lane, m.seq FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND m.seq >= $1::bigint ORDER BY m.seq LIMIT {LOOKED_THROUGH} \
                 ) AS looked GROUP BY lane"
            ),
            lanes: format!(
                "SELECT l.lane, first.seq FROM unnest($1::integer[], $2::bigint[]) AS l (lane, start) \
                 CROSS JOIN LATERAL ( \
                     SELECT m.seq FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND {LANE} = l.lane AND m.seq >= {start} ORDER BY m.seq LIMIT 1 \
                 ) AS first",
                start = start("$3", "$4")
            ),
            lock: "SELECT lane FROM unnest($2::integer[]) AS l (lane) WHERE pg_try_advisory_xact_lock($1::integer, $3::integer + lane)"
                .to_owned(),
            claim_unlocked: UnlockedSql {
                in_order: claim_unlocked_sql(schema, Share::InOrder),
                equal: claim_unlocked_sql(schema, Share::Equal),
            },
            claim: claim_sql(schema, Origin::Messages),
            resuming: format!(
                "SELECT m.ordering_key, {LANE} FROM {schema}.blocked_keys AS m \
                 WHERE m.head_seq IS NULL AND m.ordering_key > $1::text COLLATE \"C\" ORDER BY m.ordering_key LIMIT $2::bigint"
            ),
            // By the index on (due_at, seq): few are that late.
            wake_heads: format!(
                "UPDATE {schema}.deferred SET due_at = clock_timestamp() WHERE seq = ANY (ARRAY ( \
                     SELECT m.seq FROM {schema}.deferred AS m \
                     JOIN {schema}.blocked_keys AS b ON b.ordering_key = m.ordering_key COLLATE \"C\" AND b.head_seq = m.seq \
                     WHERE m.due_at = '9999-12-31 00:00:00+00' ORDER BY m.seq LIMIT 1000 FOR UPDATE OF m SKIP LOCKED))"
            ),
            unblock: unblock_sql(schema),
            claim_parked: claim_sql(schema, Origin::Parked),
            settle: SettleSql::new(schema, Origin::Parked),
            delete_confirmed: delete_confirmed_sql(schema, Origin::Parked),
        }
    }
}

/// Unblocks those of the keys `$1` that no head holds and that have nothing parked. Under their lanes' locks.
pub(crate) fn unblock_sql(schema: &Schema) -> String {
    format!(
        "DELETE FROM {schema}.blocked_keys AS b WHERE b.ordering_key = ANY ($1::text[]) AND b.head_seq IS NULL \
           AND NOT EXISTS (SELECT FROM {schema}.parked AS p \
                           WHERE p.ordering_key COLLATE \"C\" = b.ordering_key AND p.seq >= b.resume_from)"
    )
}

/// Reads, in the order of `seq`, at most `$1` rows of each lane or key, locks those that nobody else has locked and that are not among
/// the left out, and returns all: with its payload each that is free and within the bytes.
///
/// Of `messages`: `$4` are the lanes, `$5` where each begins, `$6` where each ends, `$7` and `$8` the writers that were passed, `$9` the left
/// out. The index on lane and seq is read once for each lane, since by one condition for all of them the planner would rather read the primary key through. Of `parked`:
/// `$4` are the keys, `$5` the left out; the index on key and seq is read from where the key is to be resumed.
fn claim_sql(schema: &Schema, origin: Origin) -> String {
    let (table, candidates, left_out) = match origin {
        Origin::Messages | Origin::Deferred => (
            "messages",
            format!(
                "SELECT c.seq, c.ordering_key, l.lane FROM unnest($4::integer[], $5::bigint[], $6::bigint[]) AS l (lane, start, stop) \
                 CROSS JOIN LATERAL ( \
                     SELECT m.seq, m.ordering_key FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND {LANE} = l.lane AND m.seq >= {start} AND m.seq < l.stop \
                     ORDER BY m.seq LIMIT $1::bigint \
                 ) AS c",
                start = start("$7", "$8")
            ),
            9,
        ),
        Origin::Parked => (
            "parked",
            format!(
                "SELECT c.seq, b.ordering_key, 0 AS lane FROM {schema}.blocked_keys AS b \
                 CROSS JOIN LATERAL ( \
                     SELECT p.seq FROM {schema}.parked AS p \
                     WHERE p.ordering_key COLLATE \"C\" = b.ordering_key AND p.seq >= b.resume_from \
                     ORDER BY p.seq LIMIT $1::bigint \
                 ) AS c \
                 WHERE b.ordering_key = ANY ($4::text[]) AND b.head_seq IS NULL"
            ),
            5,
        ),
    };
    // Whatever is parked was blocked, and its key is still in the table.
    let blocked = match origin {
        Origin::Messages | Origin::Deferred => format!(
            "EXISTS (SELECT FROM {schema}.blocked_keys AS b WHERE b.ordering_key = c.ordering_key COLLATE \"C\")"
        ),
        Origin::Parked => "false".to_owned(),
    };
    let (held, free, is_blocked) = (standing::HELD, standing::FREE, standing::BLOCKED);
    let rows = format!(
        "SELECT c.seq, c.ordering_key, c.lane, m.id, m.exchange, m.routing_key, m.payload, m.payload_json, \
                {SIZE} AS size, m.headers, m.content_type, m.content_encoding, m.type, m.correlation_id, m.reply_to, \
                m.app_id, m.priority, m.expiration, m.created_at, m.supersede, \
                CASE WHEN m.seq IS NULL THEN {held} WHEN {blocked} THEN {is_blocked} ELSE {free} END AS standing \
         FROM candidates AS c LEFT JOIN locked AS m ON m.seq = c.seq AND m.ordering_key = c.ordering_key COLLATE \"C\""
    );
    format!(
        "WITH candidates AS MATERIALIZED ({candidates}), \
              locked AS MATERIALIZED ( \
                  SELECT m.* FROM {schema}.{table} AS m \
                  WHERE m.seq = ANY (ARRAY (SELECT seq FROM candidates)) AND m.seq <> ALL (${left_out}::bigint[]) \
                  FOR UPDATE OF m SKIP LOCKED \
              ) \
         {}",
        bounded(&rows)
    )
}

/// The same of `messages`, lane by lane, with nothing left out, and an error instead of a row that is held: less than half the cost, since each
/// row is found once and locked where it is found, and an index page is read no further than to where the lane ends. `$9` is the most rows of all
/// lanes: from where it is reached, lanes are not read. Bytes that are shared out equally need no window over the rows.
///
/// What is computed of a row is computed where it is locked, once.
fn claim_unlocked_sql(schema: &Schema, share: Share) -> String {
    let (free, is_blocked) = (standing::FREE, standing::BLOCKED);
    let is_taken = match share {
        Share::InOrder => {
            "sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) - bytes < greatest($2::bigint, 1)"
        }
        Share::Equal => "bytes <= $2::bigint / $9::bigint",
    };
    format!(
        "SELECT {returned} \
         FROM ( \
             SELECT measured.*, {is_taken} AS is_taken \
             FROM ( \
                 SELECT m.*, l.lane, \
                        CASE WHEN m.standing <> {free} THEN 0 \
                             ELSE CASE WHEN m.size > $3::bigint THEN 0 ELSE m.size END + m.header_bytes END AS bytes \
                 FROM unnest($4::integer[], $5::bigint[], $6::bigint[]) AS l (lane, start, stop) \
                 CROSS JOIN LATERAL ( \
                     SELECT m.seq, m.ordering_key, m.id, m.exchange, m.routing_key, m.payload, m.payload_json, {SIZE} AS size, \
                            CASE WHEN m.headers = '{{}}' THEN 0 ELSE octet_length(m.headers::text) END AS header_bytes, \
                            m.headers, m.content_type, m.content_encoding, m.type, m.correlation_id, m.reply_to, \
                            m.app_id, m.priority, m.expiration, m.created_at, m.supersede, \
                            CASE WHEN {any_blocked} AND \
                                      (SELECT true FROM {schema}.blocked_keys AS b WHERE b.ordering_key = m.ordering_key COLLATE \"C\") \
                                 THEN {is_blocked} ELSE {free} END AS standing \
                     FROM {schema}.messages AS m \
                     WHERE m.ordering_key IS NOT NULL AND {LANE} = l.lane AND m.seq >= {start} AND m.seq < l.stop \
                     ORDER BY m.seq LIMIT $1::bigint FOR UPDATE OF m NOWAIT \
                 ) AS m LIMIT $9::bigint \
             ) AS measured \
         ) AS bounded",
        start = start("$7", "$8"),
        any_blocked = any_blocked(schema),
        returned = returned(),
    )
}

/// Whether any key may be blocked, found out once for a statement: to ask for the key of each row costs a quarter of a claim, and mostly
/// none is. A table that has grown beyond a few pages is not read through for that: what was blocked once may lie there dead, and an
/// old snapshot keeps it from vacuum.
fn any_blocked(schema: &Schema) -> String {
    format!(
        "(SELECT CASE WHEN pg_relation_size('{schema}.blocked_keys') <= {READ_THROUGH_BYTES} \
                      THEN EXISTS (SELECT FROM {schema}.blocked_keys) ELSE true END)"
    )
}

/// Of a row whose bytes are known: what is returned of it, with its payload if it is free and within them.
fn returned() -> String {
    let free = standing::FREE;
    format!(
        "seq, id, exchange, routing_key, \
         CASE WHEN is_taken AND standing = {free} AND size <= $3::bigint THEN payload END, \
         CASE WHEN is_taken AND standing = {free} AND size <= $3::bigint THEN payload_json END, \
         size, headers, content_type, content_encoding, type, correlation_id, reply_to, app_id, \
         priority, expiration, created_at, clock_timestamp(), is_taken, ordering_key, supersede, standing, lane"
    )
}

/// Rows with their standing, as they are returned, in the order of `seq`, in which the bytes are shared out.
///
/// The offset keeps the standing from being found out anew wherever it is named.
fn bounded(rows: &str) -> String {
    let free = standing::FREE;
    format!(
        "SELECT {returned} \
         FROM ( \
             SELECT measured.*, sum(bytes) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - bytes < greatest($2::bigint, 1) AS is_taken \
             FROM ( \
                 SELECT stood.*, \
                        CASE WHEN standing <> {free} THEN 0 \
                             ELSE CASE WHEN size > $3::bigint THEN 0 ELSE size END \
                                  + CASE WHEN headers = '{{}}' THEN 0 ELSE octet_length(headers::text) END END AS bytes \
                 FROM ({rows} OFFSET 0) AS stood \
             ) AS measured \
         ) AS bounded ORDER BY seq",
        returned = returned(),
    )
}
