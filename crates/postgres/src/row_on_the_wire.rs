//! Rows of the claim whose columns hold any bytes: for the property test here, and for the fuzz target `row` in `fuzz/`.
//!
//! No server sends these, with the constraints in place; one that was restored in parts, or another program that speaks its protocol, may.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "what does not hold ends the test"
)]

use postrider_core::{Message, OrderedRow, Origin, Payload};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_postgres::{Config, NoTls, Row};

use crate::row::{decode, decode_ordered};

/// The types of the columns, by their numbers in `pg_type`, in the order of the claim.
const TYPES: [u32; 19] = [
    20, 2950, 25, 25, 17, 114, 23, 3802, 25, 25, 25, 25, 25, 25, 23, 20, 1184, 1184, 16,
];

/// Those that follow in a row of `deferred`, and what no claim reads.
const OF_DEFERRED: [u32; 4] = [23, 1184, 25, 23];

/// Those that follow in a row that is read by lane or by key.
const OF_ORDERED: [u32; 4] = [25, 16, 23, 23];

/// How many columns a row has that is read by lane or by key: no other has more.
pub const COLUMNS: usize = 23;

/// What stands for a secret, at the end of each payload.
const SECRET: &[u8] = b"canary-6d1f";

const EXCHANGE: usize = 2;
const PAYLOAD: usize = 4;

/// The row is refused without a word of its payload, or decoded with the payload and the exchange that it came with.
///
/// # Panics
/// When that does not hold.
pub fn decodes_or_is_refused(columns: &[Option<Vec<u8>>; COLUMNS], origin: Origin) {
    let mut columns = columns.clone();
    if let Some(payload) = &mut columns[PAYLOAD] {
        payload.extend_from_slice(SECRET);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let row = runtime.block_on(row_of(&columns, origin));
    let message = match origin {
        Origin::Messages | Origin::Deferred => decode(&row, origin).map(Result::ok),
        Origin::Parked => decode_ordered(&row, origin).map(|read| match read.row {
            OrderedRow::Free(message) => Some(message),
            OrderedRow::Blocked { .. } | OrderedRow::Held { .. } => None,
        }),
    };
    match message {
        Err(error) => assert!(!shows_the_secret(&error), "{error:?}"),
        Ok(None) => {}
        Ok(Some(message)) => {
            assert!(!shows_the_secret(&message), "{message:?}");
            is_as_it_came(&message, &columns);
        }
    }
}

fn shows_the_secret(shown: &impl std::fmt::Debug) -> bool {
    let secret = std::str::from_utf8(SECRET).unwrap();
    let in_bytes = format!("{SECRET:?}");
    let shown = format!("{shown:?}");
    shown.contains(secret) || shown.contains(in_bytes.trim_matches(['[', ']']))
}

fn is_as_it_came(message: &Message, columns: &[Option<Vec<u8>>; COLUMNS]) {
    assert_eq!(
        Some(message.exchange.as_bytes()),
        columns[EXCHANGE].as_deref()
    );
    match (&message.payload, &columns[PAYLOAD], &columns[PAYLOAD + 1]) {
        (Payload::Fetched(bytes), Some(payload), _)
        | (Payload::Fetched(bytes), None, Some(payload)) => {
            assert_eq!(bytes, payload);
        }
        (Payload::TooLarge { .. }, None, None) => {}
        (payload, ..) => panic!("{} bytes from nowhere", payload.fetched_bytes()),
    }
    // Whatever the text is, to take it apart is safe.
    drop(message.headers.parse());
}

/// The row as the driver makes it of what a server sends.
async fn row_of(columns: &[Option<Vec<u8>>; COLUMNS], origin: Origin) -> Row {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let exchange = async {
        let (client, connection) = Config::new()
            .user("relay")
            .connect_raw(near, NoTls)
            .await
            .unwrap();
        let query = client.query_typed("SELECT", &[]);
        tokio::select! {
            rows = query => rows.unwrap().pop().unwrap(),
            ended = connection => panic!("the connection ended: {ended:?}"),
        }
    };
    tokio::select! {
        row = exchange => row,
        () = answer(far, columns, origin) => panic!("nobody reads the row"),
    }
}

/// The server's side of one login and one query. (PostgreSQL manual, "Message Formats")
async fn answer(mut stream: DuplexStream, columns: &[Option<Vec<u8>>; COLUMNS], origin: Origin) {
    let mut asked = [0; 1024];
    let _ = stream.read(&mut asked).await.unwrap();
    let mut hello = message(b'R', &0i32.to_be_bytes());
    hello.extend(message(b'Z', b"I"));
    stream.write_all(&hello).await.unwrap();

    let mut query = Vec::new();
    let sync = message(b'S', b"");
    while !query.ends_with(&sync) {
        let read = stream.read(&mut asked).await.unwrap();
        query.extend(asked.iter().take(read));
    }
    let count = i16::try_from(COLUMNS).unwrap().to_be_bytes();
    let mut described = count.to_vec();
    let rest = match origin {
        Origin::Messages | Origin::Deferred => OF_DEFERRED,
        Origin::Parked => OF_ORDERED,
    };
    for type_oid in TYPES.into_iter().chain(rest) {
        // A name, no table, the type of any size, binary.
        described.extend(b"c\0\0\0\0\0\0\0");
        described.extend(type_oid.to_be_bytes());
        described.extend((-1i16).to_be_bytes());
        described.extend((-1i32).to_be_bytes());
        described.extend(1i16.to_be_bytes());
    }
    let mut row = count.to_vec();
    for column in columns {
        let length = column
            .as_ref()
            .map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap());
        row.extend(length.to_be_bytes());
        row.extend(column.iter().flatten());
    }
    let mut all = message(b'1', b"");
    all.extend(message(b'2', b""));
    all.extend(message(b't', &0i16.to_be_bytes()));
    all.extend(message(b'T', &described));
    all.extend(message(b'D', &row));
    all.extend(message(b'C', b"SELECT 1\0"));
    all.extend(message(b'Z', b"I"));
    stream.write_all(&all).await.unwrap();
    std::future::pending().await
}

fn message(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = i32::try_from(content.len() + 4).unwrap();
    let mut message = vec![kind];
    message.extend(length.to_be_bytes());
    message.extend(content);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::standing;
    use proptest::prelude::*;

    /// A row that is in order.
    fn sound(origin: Origin) -> [Option<Vec<u8>>; COLUMNS] {
        let int4 = |value: i32| Some(value.to_be_bytes().to_vec());
        let int8 = |value: i64| Some(value.to_be_bytes().to_vec());
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let rest = match origin {
            Origin::Messages | Origin::Deferred => [int4(2), int8(4), text("k"), None],
            Origin::Parked => [text("k"), Some(vec![1]), int4(standing::FREE), int4(7)],
        };
        let [first, second, third, fourth] = rest;
        [
            int8(7),
            Some(vec![3; 16]),
            text("shop"),
            text("order.placed"),
            text("{}"),
            None,
            int4(2),
            text("\u{1}{\"a\":1}"),
            text("application/json"),
            None,
            None,
            None,
            None,
            None,
            int4(3),
            int8(60_000),
            int8(5),
            int8(6),
            Some(vec![1]),
            first,
            second,
            third,
            fourth,
        ]
    }

    #[test]
    fn a_row_that_is_in_order_is_decoded() {
        for origin in [Origin::Messages, Origin::Deferred, Origin::Parked] {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let row = runtime.block_on(row_of(&sound(origin), origin));
            let message = match origin {
                Origin::Messages | Origin::Deferred => decode(&row, origin).unwrap().ok().unwrap(),
                Origin::Parked => match decode_ordered(&row, origin).unwrap().row {
                    OrderedRow::Free(message) => message,
                    other => panic!("{other:?}"),
                },
            };
            assert_eq!(message.key().is_some(), origin != Origin::Messages);
            assert_eq!((message.seq.0, message.exchange.as_str()), (7, "shop"));
            assert_eq!(message.properties.expiration_ms, Some(60_000));
        }
    }

    proptest! {
        #[test]
        fn a_row_of_any_bytes_is_refused_without_a_word_of_its_payload_or_decoded_as_it_came(
            changed in prop::collection::vec(
                (
                    0..COLUMNS,
                    prop_oneof![
                        Just(None),
                        prop::collection::vec(any::<u8>(), 0..20).prop_map(Some),
                        any::<i64>().prop_map(|number| Some(number.to_be_bytes().to_vec())),
                        any::<i32>().prop_map(|number| Some(number.to_be_bytes().to_vec())),
                        "\u{1}\\PC{0,20}".prop_map(|text| Some(text.into_bytes())),
                    ],
                ),
                0..4,
            ),
            origin in prop::sample::select(vec![Origin::Messages, Origin::Deferred, Origin::Parked]),
        ) {
            let mut columns = sound(origin);
            for (column, bytes) in changed {
                columns[column] = bytes;
            }
            decodes_or_is_refused(&columns, origin);
        }
    }
}
