//! A row of the outbox, decoded straight from the wire.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use postgres_types::{FromSql, Type};
use postrider_core::{
    Headers, Lane, Message, Ordered, OrderedRow, Origin, Payload, Properties, Seq,
};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::Error;

/// What the claim query returns, in this order. Up to `created_at` every query for whole rows does.
mod column {
    pub(super) const SEQ: usize = 0;
    pub(super) const ID: usize = 1;
    pub(super) const EXCHANGE: usize = 2;
    pub(super) const ROUTING_KEY: usize = 3;
    pub(super) const PAYLOAD: usize = 4;
    pub(super) const PAYLOAD_JSON: usize = 5;
    pub(super) const SIZE: usize = 6;
    pub(super) const HEADERS: usize = 7;
    pub(super) const CONTENT_TYPE: usize = 8;
    pub(super) const CONTENT_ENCODING: usize = 9;
    pub(super) const TYPE: usize = 10;
    pub(super) const CORRELATION_ID: usize = 11;
    pub(super) const REPLY_TO: usize = 12;
    pub(super) const APP_ID: usize = 13;
    pub(super) const PRIORITY: usize = 14;
    pub(super) const EXPIRATION: usize = 15;
    pub(super) const CREATED_AT: usize = 16;
    pub(super) const CLAIMED_AT: usize = 17;
    pub(super) const IS_TAKEN: usize = 18;
    // Of fresh rows without a key only.
    pub(super) const ORDERED_WAITS: usize = 19;
    pub(super) const UNTIL: usize = 20;
    // Of deferred rows only.
    pub(super) const ATTEMPTS: usize = 19;
    pub(super) const DUE_AT: usize = 20;
    pub(super) const DEFERRED_KEY: usize = 21;
    // Of rows that were read by lane or key only.
    pub(super) const KEY: usize = 19;
    pub(super) const SUPERSEDE: usize = 20;
    pub(super) const STANDING: usize = 21;
    pub(super) const LANE: usize = 22;
}

/// The bytes of a `bytea`, or the text of a `json`, as they came.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::BYTEA | Type::JSON)
    }
}

/// A `jsonb` object, as its text.
pub(crate) struct HeadersText(pub(crate) Headers);

impl<'a> FromSql<'a> for HeadersText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        // One byte of version, then the text.
        match raw.split_first() {
            Some((1, text)) => Ok(Self(Headers::from_json(std::str::from_utf8(text)?))),
            _ => Err("unknown version of jsonb on the wire".into()),
        }
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSONB
    }
}

/// Microseconds since 2000-01-01: infinity and years before Christ are numbers like any other here.
pub(crate) struct Instant(i64);

impl Instant {
    /// As the program's clock would have it; what that cannot express is the epoch.
    pub(crate) fn system_time(&self) -> SystemTime {
        let unix = Duration::from_secs(POSTGRES_EPOCH.unsigned_abs());
        let distance = Duration::from_micros(self.0.unsigned_abs());
        let epoch = SystemTime::UNIX_EPOCH;
        epoch
            .checked_add(unix)
            .and_then(|epoch| {
                if self.0 < 0 {
                    epoch.checked_sub(distance)
                } else {
                    epoch.checked_add(distance)
                }
            })
            .unwrap_or(epoch)
    }
}

impl<'a> FromSql<'a> for Instant {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        i64::from_sql(ty, raw).map(Self)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800;

/// One row of the claim query: its message, or, of a row that was locked and is beyond the bytes, its place. That one came
/// without its payload.
pub(crate) type ClaimedRow = Result<Message, Untaken>;

/// The place of a row that was locked and not taken.
pub(crate) struct Untaken(pub(crate) Seq);

/// Whether a row is there only for what it says besides.
pub(crate) fn is_absent(row: &Row) -> Result<bool, Error> {
    let seq: Option<i64> = get(row, column::SEQ, Seq(0))?;
    Ok(seq.is_none())
}

/// Whether messages with a key wait.
pub(crate) fn ordered_waits(row: &Row) -> Result<bool, Error> {
    get(row, column::ORDERED_WAITS, Seq(0))
}

/// Where the piece ended that was walked; `None` if there was none with a row in it, or no need of pieces.
pub(crate) fn until(row: &Row) -> Result<Option<Seq>, Error> {
    let until: Option<i64> = get(row, column::UNTIL, Seq(0))?;
    Ok(until.map(Seq))
}

pub(crate) fn decode(row: &Row, origin: Origin) -> Result<ClaimedRow, Error> {
    let seq: i64 = get(row, column::SEQ, Seq(0))?;
    let at = Seq(seq);
    if !get::<bool>(row, column::IS_TAKEN, at)? {
        return Ok(Err(Untaken(at)));
    }
    let since = match origin {
        Origin::Messages | Origin::Parked => Since {
            attempts: 0,
            publishable: None,
            ordered: None,
        },
        Origin::Deferred => {
            let due_at: Instant = get(row, column::DUE_AT, at)?;
            let key: Option<String> = get(row, column::DEFERRED_KEY, at)?;
            Since {
                attempts: get(row, column::ATTEMPTS, at)?,
                publishable: Some(due_at),
                // One that was tried stands for no other.
                ordered: key.map(|key| Ordered {
                    key,
                    supersede: false,
                }),
            }
        }
    };
    whole(row, at, origin, since).map(Ok)
}

/// A row that was read by lane or by key: its lane, its place, and what it is for.
pub(crate) fn decode_ordered(row: &Row, origin: Origin) -> Result<ReadRow, Error> {
    let at = Seq(get(row, column::SEQ, Seq(0))?);
    let lane: i32 = get(row, column::LANE, at)?;
    let lane = Lane(u8::try_from(lane).map_err(|_| Error::Row {
        seq: at,
        detail: format!("its lane is {lane}"),
    })?);
    let key: String = get(row, column::KEY, at)?;
    let standing: i32 = get(row, column::STANDING, at)?;
    let is_taken: bool = get(row, column::IS_TAKEN, at)?;
    let row = match standing {
        standing::BLOCKED => {
            let size: i32 = get(row, column::SIZE, at)?;
            let bytes = u64::try_from(size).unwrap_or(0);
            OrderedRow::Blocked {
                seq: at,
                key,
                bytes,
            }
        }
        standing::FREE if is_taken => {
            let since = Since {
                attempts: 0,
                publishable: None,
                ordered: Some(Ordered {
                    key,
                    supersede: get(row, column::SUPERSEDE, at)?,
                }),
            };
            OrderedRow::Free(whole(row, at, origin, since)?)
        }
        _ => OrderedRow::Held { key },
    };
    Ok(ReadRow {
        lane,
        seq: at,
        row,
        cut_by_bytes: standing == standing::FREE && !is_taken,
    })
}

/// A row that was read by lane or by key.
pub(crate) struct ReadRow {
    pub(crate) lane: Lane,
    pub(crate) seq: Seq,
    pub(crate) row: OrderedRow,
    /// It is held for no other reason than that there was no room for its bytes.
    pub(crate) cut_by_bytes: bool,
}

/// How a row that was read by lane or by key stands.
pub(crate) mod standing {
    /// It could not be locked.
    pub(crate) const HELD: i32 = 0;
    pub(crate) const FREE: i32 = 1;
    /// Its key is blocked.
    pub(crate) const BLOCKED: i32 = 2;
}

/// What not every query returns.
struct Since {
    attempts: i32,
    /// When it could be published first; when it was inserted, if not given.
    publishable: Option<Instant>,
    ordered: Option<Ordered>,
}

fn whole(row: &Row, at: Seq, origin: Origin, since: Since) -> Result<Message, Error> {
    let created_at: Instant = get(row, column::CREATED_AT, at)?;
    let claimed_at: Instant = get(row, column::CLAIMED_AT, at)?;
    let publishable_since = since.publishable.map_or(created_at.0, |since| since.0);
    Ok(Message {
        seq: at,
        id: get::<Uuid>(row, column::ID, at)?,
        exchange: get(row, column::EXCHANGE, at)?,
        routing_key: get(row, column::ROUTING_KEY, at)?,
        payload: payload(row, at)?,
        headers: get::<HeadersText>(row, column::HEADERS, at)?.0,
        properties: properties(row, at)?,
        created_at_unix: u64::try_from(
            (created_at.0.div_euclid(1_000_000)).saturating_add(POSTGRES_EPOCH),
        )
        .unwrap_or(0),
        age_at_claim: Duration::from_micros(
            u64::try_from(claimed_at.0.saturating_sub(publishable_since)).unwrap_or(0),
        ),
        attempts: u32::try_from(since.attempts).unwrap_or(0),
        origin,
        ordered: since.ordered,
    })
}

/// The payload of a whole row: too large if it was left out.
pub(crate) fn payload(row: &Row, at: Seq) -> Result<Payload, Error> {
    let payload: Option<Raw<'_>> = get(row, column::PAYLOAD, at)?;
    let payload_json: Option<Raw<'_>> = get(row, column::PAYLOAD_JSON, at)?;
    let size: i32 = get(row, column::SIZE, at)?;
    Ok(match payload.or(payload_json) {
        Some(Raw(bytes)) => Payload::Fetched(bytes.to_vec()),
        None => Payload::TooLarge {
            bytes: u64::try_from(size).unwrap_or(0),
        },
    })
}

/// The properties of a whole row.
pub(crate) fn properties(row: &Row, at: Seq) -> Result<Properties, Error> {
    let priority: Option<i32> = get(row, column::PRIORITY, at)?;
    let expiration: Option<i64> = get(row, column::EXPIRATION, at)?;
    Ok(Properties {
        content_type: get(row, column::CONTENT_TYPE, at)?,
        content_encoding: get(row, column::CONTENT_ENCODING, at)?,
        kind: get(row, column::TYPE, at)?,
        correlation_id: get(row, column::CORRELATION_ID, at)?,
        reply_to: get(row, column::REPLY_TO, at)?,
        app_id: get(row, column::APP_ID, at)?,
        priority: in_range(priority, at, "priority is not within 0 to 255")?,
        expiration_ms: in_range(expiration, at, "expiration is negative")?,
    })
}

fn in_range<T, U: TryFrom<T>>(
    value: Option<T>,
    seq: Seq,
    otherwise: &'static str,
) -> Result<Option<U>, Error> {
    value.map(U::try_from).transpose().map_err(|_| Error::Row {
        seq,
        detail: otherwise.to_owned(),
    })
}

pub(crate) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize, seq: Seq) -> Result<T, Error> {
    row.try_get(column).map_err(|error| Error::Row {
        seq,
        detail: crate::error::describe(&error),
    })
}
