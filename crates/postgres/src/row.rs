//! A row of the outbox, decoded straight from the wire.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use postgres_types::{FromSql, Type};
use postrider_core::{Headers, Message, Origin, Payload, Properties, Seq};
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
    // Of deferred rows only.
    pub(super) const ATTEMPTS: usize = 19;
    pub(super) const DUE_AT: usize = 20;
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

pub(crate) fn decode(row: &Row, origin: Origin) -> Result<ClaimedRow, Error> {
    let seq: i64 = get(row, column::SEQ, Seq(0))?;
    let at = Seq(seq);
    if !get::<bool>(row, column::IS_TAKEN, at)? {
        return Ok(Err(Untaken(at)));
    }
    let created_at: Instant = get(row, column::CREATED_AT, at)?;
    let claimed_at: Instant = get(row, column::CLAIMED_AT, at)?;
    let (attempts, publishable_since) = match origin {
        Origin::Messages => (0, created_at.0),
        Origin::Deferred => {
            let due_at: Instant = get(row, column::DUE_AT, at)?;
            (get::<i32>(row, column::ATTEMPTS, at)?, due_at.0)
        }
    };
    Ok(Ok(Message {
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
        attempts: u32::try_from(attempts).unwrap_or(0),
        origin,
    }))
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
