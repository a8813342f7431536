//! The statements that claim messages without a key, and deferred ones.

use super::Share;
use crate::schema_name::Schema;

/// The size of a row's payload in bytes, without reading it.
///
/// `octet_length` of a `bytea` never reads it. A `json` has no such function: its column size is its
/// length as long as it is stored uncompressed, which the column asks for (a value copied from another
/// table may still come compressed, and then is measured by reading it).
pub(crate) const SIZE: &str = "CASE WHEN m.payload IS NOT NULL THEN octet_length(m.payload) \
          WHEN pg_column_compression(m.payload_json) IS NULL THEN pg_column_size(m.payload_json) \
          ELSE octet_length(m.payload_json::text) END";

/// Which rows a claim locks, and in which order.
pub(crate) struct Rows<'a> {
    pub(crate) table: &'a str,
    /// On the row `m`. `$1` to `$3` are the limits.
    pub(crate) condition: &'a str,
    /// Of the row `m`, as an index has it: the first that are free are locked.
    pub(crate) locked_by: &'a str,
    /// How those that were locked are returned, and with [`Share::InOrder`] which fall out for the bytes: the last. As
    /// they were locked, if empty.
    pub(crate) returned_by: &'a [&'a str],
    pub(crate) share: Share,
    /// What is read besides the columns of every message.
    pub(crate) extra: &'a str,
}

/// What a deferred row has besides.
pub(crate) const DEFERRED_EXTRA: &str = ", attempts, due_at, ordering_key";

/// Whether a deferred row may be tried: of those of one key only the one that the others wait for. Served by the primary key of
/// `blocked_keys`. No lock of the key's lane is needed: the row is locked, and whoever has the lane sees its key blocked.
pub(crate) fn is_head(schema: &Schema) -> String {
    format!(
        "(m.ordering_key IS NULL OR EXISTS (SELECT FROM {schema}.blocked_keys AS b \
         WHERE b.ordering_key = m.ordering_key COLLATE \"C\" AND b.head_seq = m.seq))"
    )
}

/// How many places a claim walks, from the first row on, where rows with a key are among them: a few milliseconds' worth, and some
/// megabytes to be read at most. As many rows without a key fit into it as a batch may have.
const PIECE: i64 = 10_000;

/// The end of the piece, not included, that begins with the first row at or above `from`: `PIECE` places, and so no more rows. Null if
/// no row is there or behind: a claim that has come to the end is to know it.
pub(crate) fn end_of_piece(schema: &Schema, from: &str) -> String {
    let last = i64::MAX - PIECE;
    format!(
        "(SELECT piece.until FROM ( \
             SELECT CASE WHEN p.seq <= {last} THEN p.seq + {PIECE} END AS until \
             FROM {schema}.messages AS p WHERE p.seq >= {from} ORDER BY p.seq LIMIT 1 \
         ) AS piece \
         WHERE (SELECT true FROM {schema}.messages AS p WHERE p.seq >= piece.until ORDER BY p.seq LIMIT 1))"
    )
}

/// The claim of messages without a key, with or without those that rest.
///
/// Served by the primary key. It is read in `seq` order from `$4` on and stops after `$1` rows that were free and have no key;
/// those that have one are walked over, and left behind by the frontier. Beside them, whether any row with a key is at or above
/// `$5`: one look at an index that has no other rows. If so, no more than a piece is walked, and the row says where it ends: behind a
/// restart, the whole backlog might have a key. There is a row for that alone when nothing was claimed.
///
/// The offsets keep what is asked once from being asked for each row.
pub(crate) fn fresh_sql(schema: &Schema, except: bool, share: Share) -> String {
    let except = if except {
        " AND m.seq <> ALL ($6::bigint[])"
    } else {
        ""
    };
    let rows = locking_sql(
        schema,
        &Rows {
            table: "messages",
            condition: &format!(
                "m.seq >= $4::bigint AND m.seq <= coalesce(ordered.until - 1, {last}) AND m.ordering_key IS NULL{except}",
                last = i64::MAX
            ),
            locked_by: "m.seq",
            returned_by: &[],
            share,
            extra: "",
        },
    );
    format!(
        "SELECT claimed.*, ordered.waits, ordered.until \
         FROM ( \
             SELECT waits, CASE WHEN waits THEN {end_of_piece} END AS until \
             FROM (SELECT EXISTS (SELECT FROM {schema}.messages WHERE ordering_key IS NOT NULL AND seq >= $5::bigint) AS waits OFFSET 0) AS any_row \
             OFFSET 0 \
         ) AS ordered \
         LEFT JOIN LATERAL ({rows}) AS claimed ON true",
        end_of_piece = end_of_piece(schema, "$4::bigint"),
    )
}

/// The claim of deferred messages that are due, with or without those that rest.
///
/// Served by the index on `(due_at, seq)`, in that order, from `$4` up to this statement's time (`clock_timestamp` is
/// volatile and would be no bound of an index).
pub(crate) fn due_sql(schema: &Schema, except: bool) -> String {
    let except = if except {
        " AND m.seq <> ALL ($5::bigint[])"
    } else {
        ""
    };
    let head = is_head(schema);
    locking_sql(
        schema,
        &Rows {
            table: "deferred",
            condition: &format!(
                "m.due_at >= $4::timestamptz AND m.due_at <= statement_timestamp() AND {head}{except}"
            ),
            locked_by: "m.due_at, m.seq",
            returned_by: &["due_at", "seq"],
            share: Share::InOrder,
            extra: DEFERRED_EXTRA,
        },
    )
}

/// A query that locks rows and returns them whole, in the order of the columns `returned_by`.
///
/// What others have locked is skipped, so two claims never share a row; what they changed meanwhile is
/// looked at again.
///
/// The locked rows hold payloads as TOAST pointers; sizes come from the pointers alone. Only the outermost select reads
/// payloads, of the rows whose predecessors leave room in the bytes, or that are within their share. The others are
/// returned without: they are locked and not taken.
///
/// Without columns to return by the order is that in which rows were locked, which the window keeps: it sorts
/// nothing. (A materialised CTE, a second window for the number of rows, and a sort were a quarter of a claim's cost, the
/// window that is left is another.)
pub(crate) fn locking_sql(schema: &Schema, rows: &Rows<'_>) -> String {
    let Rows {
        table,
        condition,
        locked_by,
        returned_by,
        share,
        extra,
    } = rows;
    let order = if returned_by.is_empty() {
        String::new()
    } else {
        format!("ORDER BY {}", returned_by.join(", "))
    };
    let is_taken = match share {
        Share::InOrder => {
            format!(
                "sum(bytes) OVER ({order} ROWS UNBOUNDED PRECEDING) - bytes < greatest($2::bigint, 1)"
            )
        }
        Share::Equal => "bytes <= $2::bigint / $1::bigint".to_owned(),
    };
    format!(
        "SELECT seq, id, exchange, routing_key, \
                CASE WHEN is_taken AND size <= $3::bigint THEN payload END AS payload, \
                CASE WHEN is_taken AND size <= $3::bigint THEN payload_json END AS payload_json, \
                size, headers, content_type, content_encoding, type, correlation_id, reply_to, app_id, \
                priority, expiration, created_at, clock_timestamp() AS claimed_at, is_taken{extra} \
         FROM ( \
             SELECT measured.*, {is_taken} AS is_taken \
             FROM ( \
                 SELECT locked.*, CASE WHEN size > $3::bigint THEN 0 ELSE size END + header_bytes AS bytes \
                 FROM ( \
                     SELECT m.seq, m.id, m.exchange, m.routing_key, m.payload, m.payload_json, \
                            {SIZE} AS size, \
                            CASE WHEN m.headers = '{{}}' THEN 0 ELSE octet_length(m.headers::text) END AS header_bytes, \
                            m.headers, m.content_type, m.content_encoding, m.type, m.correlation_id, m.reply_to, \
                            m.app_id, m.priority, m.expiration, m.created_at{extra} \
                     FROM {schema}.{table} AS m WHERE {condition} \
                     ORDER BY {locked_by} LIMIT $1::bigint FOR UPDATE OF m SKIP LOCKED \
                 ) AS locked \
             ) AS measured \
         ) AS bounded {order}"
    )
}
