//! A message as AMQP carries it, and what AMQP cannot carry.

use lapin::BasicProperties;
use lapin::protocol::basic::gen_properties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use postrider_core::{Failure, Message, Payload, Reason};
use serde_json::{Map, Number, Value};

use crate::{HeaderName, OrderingSettings};

/// What `basic.publish` takes.
pub(crate) struct Encoded<'a> {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: &'a [u8],
    /// About what the message takes in memory until it is sent: the payload and, encoded, the headers.
    pub(crate) bytes: usize,
}

/// Deeper headers than this would take the encoder's stack, here and in the broker. The outbox refuses
/// more than 64 levels, and the JSON reader more than 128.
const DEEPEST: usize = 100;

/// A content header frame around the properties: frame type, channel and size, class, weight and body
/// size, end of frame. (AMQP 0-9-1, 2.3.5.2)
pub(crate) const HEADER_FRAME_BYTES: u64 = 7 + 12 + 1;

/// What a frame has at most, if the row has no headers: nine strings and two names of headers of 255 bytes, and less than a hundred for the
/// rest.
const MOST_BESIDE_THE_KEY: u64 = HEADER_FRAME_BYTES + 11 * 256 + 100;

/// And about that mostly.
const USUAL_BESIDE_THE_KEY: u64 = 128;

/// Encodes a message for frames of at most `frame_max` bytes.
///
/// # Errors
/// [`Reason::TooLarge`] for a payload that was not fetched, and [`Reason::NotEncodable`] for what
/// does not fit into AMQP: sending that would end the connection, and with it everybody's messages.
pub(crate) fn encode<'a>(
    message: &'a Message,
    ordering: &OrderingSettings,
    frame_max: u32,
) -> Result<Encoded<'a>, Failure> {
    let payload = match &message.payload {
        Payload::Fetched(bytes) => bytes.as_slice(),
        Payload::TooLarge { bytes } => {
            return Err(Failure::new(
                Reason::TooLarge,
                format!(
                    "the payload of {bytes} bytes is larger than [relay] max_message_bytes: raise it, or send less"
                ),
            ));
        }
    };
    let properties = properties(message, ordering)?;
    let mut in_memory = payload.len();
    if properties.headers().is_some() {
        let bytes = fitting_header_bytes(message, &properties, u64::from(frame_max))?;
        in_memory = in_memory.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    Ok(Encoded {
        exchange: short("exchange", &message.exchange)?,
        routing_key: short("routing_key", &message.routing_key)?,
        properties,
        payload,
        bytes: in_memory,
    })
}

/// How many bytes the frame has, if it fits; about so many where the length of the key alone shows that it does. Otherwise all would be
/// encoded twice, for every message with a key.
fn fitting_header_bytes(
    message: &Message,
    properties: &BasicProperties,
    frame_max: u64,
) -> Result<u64, Failure> {
    if let (true, Some(ordered)) = (message.headers.is_empty(), &message.ordered) {
        let key = u64::try_from(ordered.key.len()).unwrap_or(u64::MAX);
        if key.saturating_add(MOST_BESIDE_THE_KEY) <= frame_max {
            return Ok(key.saturating_add(USUAL_BESIDE_THE_KEY));
        }
    }
    let bytes = header_frame_bytes(properties)?;
    if bytes > frame_max {
        return Err(not_encodable(format!(
            "headers and properties take {bytes} bytes on the wire, more than the frame of {frame_max} bytes agreed on with the broker: send less in headers, or raise frame_max on both sides"
        )));
    }
    Ok(bytes)
}

/// Without headers, nine strings of at most 255 bytes stay far below the smallest frame there is
/// (4096 bytes), so only headers are measured.
fn header_frame_bytes(properties: &BasicProperties) -> Result<u64, Failure> {
    let (_, bytes) = gen_properties(properties)(Vec::<u8>::with_capacity(512).into())
        .map_err(|error| not_encodable(format!("properties cannot be encoded: {error}")))?
        .into_inner();
    Ok(HEADER_FRAME_BYTES + bytes)
}

fn properties(message: &Message, ordering: &OrderingSettings) -> Result<BasicProperties, Failure> {
    let row = &message.properties;
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(short("id", message.id.to_string())?)
        .with_timestamp(message.created_at_unix);
    if let Some(headers) = headers(message, ordering)? {
        properties = properties.with_headers(headers);
    }
    if let Some(value) = &row.content_type {
        properties = properties.with_content_type(short("content_type", value)?);
    }
    if let Some(value) = &row.content_encoding {
        properties = properties.with_content_encoding(short("content_encoding", value)?);
    }
    if let Some(value) = &row.kind {
        properties = properties.with_type(short("type", value)?);
    }
    if let Some(value) = &row.correlation_id {
        properties = properties.with_correlation_id(short("correlation_id", value)?);
    }
    if let Some(value) = &row.reply_to {
        properties = properties.with_reply_to(short("reply_to", value)?);
    }
    if let Some(value) = &row.app_id {
        properties = properties.with_app_id(short("app_id", value)?);
    }
    if let Some(value) = row.priority {
        properties = properties.with_priority(value);
    }
    if let Some(value) = row.expiration_ms {
        properties = properties.with_expiration(short("expiration", value.to_string())?);
    }
    Ok(properties)
}

/// The row's headers and those of its place in the order of its key, which no row can give itself.
fn headers(message: &Message, ordering: &OrderingSettings) -> Result<Option<FieldTable>, Failure> {
    let mut headers = None;
    if !message.headers.is_empty() {
        let entries = message.headers.parse().map_err(|error| {
            not_encodable(format!(
                "the headers cannot be read as a JSON object: {error}"
            ))
        })?;
        headers = Some(table(&entries, 0)?);
    }
    if let Some(ordered) = &message.ordered {
        let mut put = |name: &Option<HeaderName>, value| {
            if let Some(name) = name {
                let headers = headers.get_or_insert_default();
                headers.insert(name.to_short_string(), value);
            }
        };
        let key = LongString::from(ordered.key.as_bytes());
        put(&ordering.key_header, AMQPValue::LongString(key));
        put(&ordering.seq_header, AMQPValue::LongLongInt(message.seq.0));
    }
    Ok(headers)
}

fn table(map: &Map<String, Value>, depth: usize) -> Result<FieldTable, Failure> {
    let mut table = FieldTable::default();
    for (name, value) in map {
        table.insert(short("header name", name)?, field(value, depth)?);
    }
    Ok(table)
}

fn field(value: &Value, depth: usize) -> Result<AMQPValue, Failure> {
    if depth >= DEEPEST {
        return Err(not_encodable(format!(
            "headers are nested deeper than {DEEPEST} levels"
        )));
    }
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => numeric(number)?,
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
        Value::Array(values) => AMQPValue::FieldArray(FieldArray::from(
            values
                .iter()
                .map(|value| field(value, depth + 1))
                .collect::<Result<Vec<_>, _>>()?,
        )),
        Value::Object(map) => AMQPValue::FieldTable(table(map, depth + 1)?),
    })
}

/// AMQP as RabbitMQ speaks it has no unsigned 64 bit integer: what does not fit a signed one becomes
/// a double, as in JSON itself.
fn numeric(number: &Number) -> Result<AMQPValue, Failure> {
    if let Some(value) = number.as_i64() {
        return Ok(AMQPValue::LongLongInt(value));
    }
    match number.as_f64() {
        Some(value) if value.is_finite() => Ok(AMQPValue::Double(value)),
        _ => Err(not_encodable(
            "a header holds a number beyond what a double can hold".to_owned(),
        )),
    }
}

fn short(what: &str, value: impl Into<String>) -> Result<ShortString, Failure> {
    ShortString::try_new(value)
        .map_err(|error| not_encodable(format!("{what} does not fit into AMQP: {error}")))
}

fn not_encodable(detail: String) -> Failure {
    Failure::new(Reason::NotEncodable, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::{Headers, Ordered, Properties, Seq};
    use proptest::prelude::*;
    use serde_json::json;
    use std::time::Duration;

    fn message(headers: Map<String, Value>) -> Message {
        Message {
            seq: Seq(1),
            id: uuid::Uuid::from_u128(1),
            exchange: "e".to_owned(),
            routing_key: "k".to_owned(),
            payload: Payload::Fetched(vec![1, 2]),
            headers: Headers::from(&headers),
            properties: Properties::default(),
            created_at_unix: 7,
            age_at_claim: Duration::ZERO,
            attempts: 0,
            origin: postrider_core::Origin::Messages,
            ordered: None,
        }
    }

    fn carried(message: &Message, frame_max: u32) -> Result<Encoded<'_>, Failure> {
        encode(message, &OrderingSettings::default(), frame_max)
    }

    fn refusal(message: &Message) -> Failure {
        match carried(message, 131_072) {
            Ok(_) => panic!("encoded"),
            Err(failure) => failure,
        }
    }

    fn nested(levels: usize) -> Map<String, Value> {
        let mut value = Value::Null;
        for _ in 1..levels {
            value = Value::Array(vec![value]);
        }
        Map::from_iter([("h".to_owned(), value)])
    }

    #[test]
    fn nesting_is_carried_up_to_the_limit_and_refused_beyond() {
        assert!(carried(&message(nested(DEEPEST)), 131_072).is_ok());
        let failure = refusal(&message(nested(DEEPEST + 1)));
        assert_eq!(failure.reason, Reason::NotEncodable);
    }

    #[test]
    fn what_was_not_fetched_or_does_not_fit_names_the_reason_and_the_field() {
        let mut large = message(Map::new());
        large.payload = Payload::TooLarge { bytes: 99 };
        let failure = refusal(&large);
        assert_eq!(failure.reason, Reason::TooLarge);
        assert!(failure.detail.contains("max_message_bytes"));
        let mut long = message(Map::new());
        long.properties.reply_to = Some("r".repeat(256));
        let failure = refusal(&long);
        assert_eq!(failure.reason, Reason::NotEncodable);
        assert!(failure.detail.contains("reply_to"));
    }

    fn longest_properties() -> Properties {
        let longest = || Some("x".repeat(255));
        Properties {
            content_type: longest(),
            content_encoding: longest(),
            kind: longest(),
            correlation_id: longest(),
            reply_to: longest(),
            app_id: longest(),
            priority: Some(255),
            expiration_ms: Some(u64::MAX),
        }
    }

    #[test]
    fn the_longest_properties_without_headers_fit_into_the_smallest_frame() {
        let mut message = message(Map::new());
        message.properties = longest_properties();
        let encoded = carried(&message, 4096).unwrap_or_else(|failure| panic!("{failure:?}"));
        assert!(header_frame_bytes(&encoded.properties).unwrap() <= 4096);
    }

    #[test]
    fn a_key_whose_length_alone_shows_that_it_fits_does_beside_the_longest_of_everything() {
        let mut message = with_key(message(Map::new()), &"k".repeat(1_000));
        message.properties = longest_properties();
        let name = |letter: &str| Some(HeaderName::new(&letter.repeat(255)).unwrap());
        let ordering = OrderingSettings {
            key_header: name("a"),
            seq_header: name("b"),
            ..OrderingSettings::default()
        };
        let encoded = encode(&message, &ordering, 131_072).unwrap_or_else(|f| panic!("{f:?}"));
        let bytes = header_frame_bytes(&encoded.properties).unwrap();
        assert!(bytes <= 1_000 + MOST_BESIDE_THE_KEY, "{bytes}");
    }

    fn with_key(mut message: Message, key: &str) -> Message {
        message.seq = Seq(i64::MAX - 1);
        message.ordered = Some(Ordered {
            key: key.to_owned(),
            supersede: false,
        });
        message
    }

    fn sent_headers(
        message: &Message,
        ordering: &OrderingSettings,
    ) -> Option<Vec<(String, AMQPValue)>> {
        let encoded =
            encode(message, ordering, 4096).unwrap_or_else(|failure| panic!("{failure:?}"));
        let headers = encoded.properties.headers().as_ref()?.inner();
        let entries = headers.iter();
        Some(
            entries
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
        )
    }

    #[test]
    fn key_and_seq_take_the_place_of_headers_with_their_names_and_leave_the_others() {
        let own = json!({"x-ordering-key": 7, "x-ordering-seq": "mine", "a": true});
        let message = with_key(message(own.as_object().unwrap().clone()), "schlüssel");
        let key = AMQPValue::LongString("schlüssel".into());
        let seq = AMQPValue::LongLongInt(i64::MAX - 1);
        let entry = |name: &str, value: &AMQPValue| (name.to_owned(), value.clone());
        assert_eq!(
            sent_headers(&message, &OrderingSettings::default()).unwrap(),
            [
                entry("a", &AMQPValue::Boolean(true)),
                entry("x-ordering-key", &key),
                entry("x-ordering-seq", &seq),
            ]
        );
        let renamed = OrderingSettings {
            key_header: Some(HeaderName::new("a").unwrap()),
            seq_header: None,
            ..OrderingSettings::default()
        };
        assert_eq!(
            sent_headers(&message, &renamed).unwrap(),
            [
                entry("a", &key),
                entry("x-ordering-key", &AMQPValue::LongLongInt(7)),
                entry("x-ordering-seq", &AMQPValue::LongString("mine".into())),
            ]
        );
    }

    #[test]
    fn a_message_without_a_key_or_with_both_headers_off_has_only_the_headers_of_its_row() {
        let off = OrderingSettings {
            key_header: None,
            seq_header: None,
            ..OrderingSettings::default()
        };
        let bare = message(Map::new());
        assert_eq!(sent_headers(&bare, &OrderingSettings::default()), None);
        assert_eq!(sent_headers(&with_key(bare, "k"), &off), None);
    }

    #[test]
    fn a_key_that_does_not_fit_the_frame_is_refused_also_without_other_headers() {
        let failure = refusal(&with_key(message(Map::new()), &"k".repeat(131_072)));
        assert_eq!(failure.reason, Reason::NotEncodable);
        assert!(failure.detail.contains("frame"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".{0,20}", inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn headers_keep_their_types_and_are_measured_as_they_are_sent(
            headers in prop::collection::vec((".{0,20}", any_json()), 1..6),
            key in prop::option::of(".{1,60}")
        ) {
            let mut headers: Map<String, Value> = headers.into_iter().collect();
            let mut message = message(headers.clone());
            if let Some(key) = key {
                message = with_key(message, &key);
                headers.insert("x-ordering-key".to_owned(), key.into());
                headers.insert("x-ordering-seq".to_owned(), message.seq.0.into());
            }
            let encoded = carried(&message, u32::MAX).map_err(|failure| TestCaseError::fail(failure.detail))?;
            let table = encoded.properties.headers().clone().unwrap_or_default();
            prop_assert!(same_table(&headers, &table));
            let bytes = header_frame_bytes(&encoded.properties).unwrap();
            prop_assert!(carried(&message, bytes as u32).is_ok());
            prop_assert!(carried(&message, bytes as u32 - 1).is_err());
        }
    }

    fn same_table(json: &Map<String, Value>, table: &FieldTable) -> bool {
        json.len() == table.inner().len()
            && json.iter().all(|(name, value)| {
                table
                    .inner()
                    .get(name.as_str())
                    .is_some_and(|field| same(value, field))
            })
    }

    fn same(json: &Value, field: &AMQPValue) -> bool {
        match (json, field) {
            (Value::Null, AMQPValue::Void) => true,
            (Value::Bool(json), AMQPValue::Boolean(field)) => json == field,
            (Value::Number(json), AMQPValue::LongLongInt(field)) => json.as_i64() == Some(*field),
            (Value::Number(json), AMQPValue::Double(field)) => {
                json.as_i64().is_none() && json.as_f64() == Some(*field)
            }
            (Value::String(json), AMQPValue::LongString(field)) => {
                json.as_bytes() == field.as_bytes()
            }
            (Value::Array(json), AMQPValue::FieldArray(field)) => {
                json.len() == field.as_slice().len()
                    && json
                        .iter()
                        .zip(field.as_slice())
                        .all(|(json, field)| same(json, field))
            }
            (Value::Object(json), AMQPValue::FieldTable(field)) => same_table(json, field),
            _ => false,
        }
    }
}
