//! What relays are told of the sequence, on which the floor and every frontier rest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use fresh::{client, outbox};

const NEXT: &str = "SELECT outbox.next_seq()";

async fn next(client: &tokio_postgres::Client) -> i64 {
    client.query_one(NEXT, &[]).await.unwrap().get(0)
}

/// While the server logs the sequence in advance, its row has a value that nobody was given, up to 32 above the last that was: a SELECT of the row
/// shows it once in a thousand times here. What is asked for after that, under the lock of the row, can be no smaller than what was told.
#[tokio::test]
async fn the_next_seq_is_never_beyond_what_was_given_while_others_are_given() {
    const LOOKS: &str = "SELECT count(*), count(*) FILTER (WHERE next > after) \
        FROM (SELECT outbox.next_seq() AS next, pg_sequence_last_value('outbox.messages_seq_seq') + 1 AS after \
              FROM generate_series(1, 100000) OFFSET 0) AS looks";
    let outbox = outbox().await;
    outbox.insert(1).await;
    let take = async || -> () {
        let session = client(&outbox.url).await;
        let take =
            "SELECT count(nextval('outbox.messages_seq_seq')) FROM generate_series(1, 10000)";
        loop {
            session.batch_execute(take).await.unwrap();
        }
    };
    let looks = tokio::select! {
        looks = outbox.client.query_one(LOOKS, &[]) => looks.unwrap(),
        _ = async { tokio::join!(take(), take()) } => unreachable!("values are taken for ever"),
    };
    let (looks, too_high): (i64, i64) = (looks.get(0), looks.get(1));
    assert_eq!((looks, too_high), (100_000, 0));
}

#[tokio::test]
async fn the_next_seq_is_told_of_a_sequence_that_was_never_called_or_was_set() {
    let outbox = outbox().await;
    assert_eq!(next(&outbox.client).await, 1);
    outbox.insert(1).await;
    assert_eq!(next(&outbox.client).await, 2);
    for (set, told) in [
        ("SELECT setval('outbox.messages_seq_seq', 40)", 41),
        ("SELECT setval('outbox.messages_seq_seq', 7, false)", 7),
        (
            "ALTER TABLE outbox.messages ALTER COLUMN seq RESTART WITH 12",
            12,
        ),
        ("TRUNCATE outbox.messages RESTART IDENTITY", 1),
    ] {
        outbox.client.batch_execute(set).await.unwrap();
        assert_eq!(next(&outbox.client).await, told, "{set}");
    }
}
