//! What holds of every row, whatever is in it: for the property tests here, and for the fuzz target `headers` in `fuzz/`.

#![allow(clippy::panic, reason = "what does not hold ends the test")]

use std::time::Duration;

use lapin::protocol::basic::{gen_properties, parse_properties};
use postrider_core::{Headers, Message, Origin, Payload, Properties, Reason, Seq};

use crate::OrderingSettings;
use crate::encode::{HEADER_FRAME_BYTES, encode};

/// A row as no constraint has seen it.
#[derive(Debug)]
pub struct AnyRow<'a> {
    /// Perhaps JSON.
    pub headers: &'a str,
    /// Exchange, routing key, content type, content encoding, type, correlation id, reply-to, application.
    pub texts: [&'a str; 8],
    /// Priority.
    pub priority: Option<u8>,
    /// Expiration.
    pub expiration_ms: Option<u64>,
    /// The size of the largest frame.
    pub frame_max: u32,
}

/// The row is refused as not encodable, or what is sent for it is what was measured, fits the frame, and is read back by the AMQP
/// library's own parser as it was meant.
///
/// # Panics
/// When that does not hold.
pub fn encodes_or_is_refused(row: &AnyRow<'_>) {
    let [exchange, routing_key, rest @ ..] = row.texts.map(str::to_owned);
    let [
        content_type,
        content_encoding,
        kind,
        correlation_id,
        reply_to,
        app_id,
    ] = rest.map(Some);
    let payload = vec![7; 3];
    let message = Message {
        seq: Seq(1),
        id: uuid::Uuid::from_u128(1),
        exchange,
        routing_key,
        payload: Payload::Fetched(payload.clone()),
        headers: Headers::from_json(row.headers),
        properties: Properties {
            content_type,
            content_encoding,
            kind,
            correlation_id,
            reply_to,
            app_id,
            priority: row.priority,
            expiration_ms: row.expiration_ms,
        },
        created_at_unix: 7,
        age_at_claim: Duration::ZERO,
        attempts: 0,
        origin: Origin::Messages,
        ordered: None,
    };
    let encoded = match encode(&message, &OrderingSettings::default(), row.frame_max) {
        Ok(encoded) => encoded,
        Err(failure) => {
            assert_eq!(failure.reason, Reason::NotEncodable);
            return;
        }
    };
    assert_eq!(encoded.payload, payload);
    let sent = gen_properties(&encoded.properties)(Vec::<u8>::new().into())
        .map(|written| written.into_inner().0)
        .unwrap_or_else(|error| panic!("what was measured cannot be sent: {error}"));
    let frame = HEADER_FRAME_BYTES + sent.len() as u64;
    if message.headers.is_empty() {
        assert!(frame <= 4096, "{frame} bytes without headers");
        assert_eq!(encoded.bytes, payload.len());
    } else {
        assert!(frame <= u64::from(row.frame_max), "{frame} bytes");
        assert_eq!(encoded.bytes as u64, payload.len() as u64 + frame);
    }
    let (rest, read) = parse_properties(sent.as_slice())
        .unwrap_or_else(|error| panic!("what is sent cannot be read: {error:?}"));
    assert!(rest.is_empty(), "{} bytes are left", rest.len());
    assert_eq!(read, encoded.properties);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts that are almost headers more often than chance would have it.
    fn almost_json() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("{".to_owned()),
            Just("}".to_owned()),
            Just("[".to_owned()),
            Just("]".to_owned()),
            Just("\"a\":".to_owned()),
            Just(",".to_owned()),
            Just("1e400".to_owned()),
            Just("-0.0".to_owned()),
            Just("18446744073709551615".to_owned()),
            Just("\"\\u0000\\ud800\"".to_owned()),
            Just("null".to_owned()),
            "\"[a-z]{200,300}\":1",
            any::<String>(),
        ];
        prop_oneof![
            prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat()),
            (1..200usize).prop_map(|depth| format!(
                "{{\"a\":{}{}}}",
                "[".repeat(depth),
                "]".repeat(depth)
            )),
            prop::collection::btree_map("\\PC{0,80}", any::<Option<f64>>(), 0..20)
                .prop_map(|object| serde_json::json!(object).to_string()),
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_row_says_is_refused_or_measured_as_it_is_sent_and_read_back_as_it_was_meant(
            headers in almost_json(),
            texts in prop::array::uniform8("\\PC{0,70}"),
            priority in any::<Option<u8>>(),
            expiration_ms in any::<Option<u64>>(),
            frame_max in prop_oneof![Just(4096u32), Just(131_072u32), Just(u32::MAX)],
        ) {
            encodes_or_is_refused(&AnyRow {
                headers: &headers,
                texts: texts.each_ref().map(String::as_str),
                priority,
                expiration_ms,
                frame_max,
            });
        }
    }
}
