//! What a claim locks, returns and deletes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::{LIMITS, client, done, fetched, outbox, until};
use postrider_core::{Payload, Seq};
use postrider_postgres::{ClaimFrom, ClaimLimits, Database, Error, Settings, Settled, Share};
use serde_json::json;

#[tokio::test]
async fn rows_are_claimed_in_seq_order_with_everything_that_was_written() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            r#"INSERT INTO outbox.messages (id, exchange, routing_key, payload, content_type, headers, type, content_encoding,
                   correlation_id, reply_to, app_id, priority, expiration)
               VALUES ('00000000-0000-0000-0000-000000000001', 'orders', 'order.created', '\x00ff10', 'application/octet-stream',
                   '{"i": -3, "big": 18446744073709551615, "d": 1.5, "b": true, "s": "é", "n": null, "a": [1, "x"], "o": {"p": {}}}',
                   'created', 'gzip', 'c-1', 'answers', 'shop', 255, 315360000000);
               INSERT INTO outbox.messages (exchange, routing_key, payload_json, content_type) VALUES ('', 'q', '{"b" :1,  "a":2}', NULL);
               INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('', 'q', '')"#,
        )
        .await
        .unwrap();
    let mut claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert!(!claim.reached_limit());
    assert!(claim.untaken().is_none());
    let messages = claim.take_messages();
    let [first, second, third] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!(first.id.as_u128(), 1);
    assert_eq!(
        (first.exchange.as_str(), first.routing_key.as_str()),
        ("orders", "order.created")
    );
    assert_eq!(fetched(first), [0, 255, 16]);
    assert_eq!(
        serde_json::Value::Object(first.headers.parse().unwrap()),
        json!({"i": -3, "big": u64::MAX, "d": 1.5, "b": true, "s": "é", "n": null, "a": [1, "x"], "o": {"p": {}}})
    );
    let properties = &first.properties;
    assert_eq!(
        properties.content_type.as_deref(),
        Some("application/octet-stream")
    );
    assert_eq!(properties.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(properties.kind.as_deref(), Some("created"));
    assert_eq!(properties.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(properties.reply_to.as_deref(), Some("answers"));
    assert_eq!(properties.app_id.as_deref(), Some("shop"));
    assert_eq!(properties.priority, Some(255));
    assert_eq!(properties.expiration_ms, Some(315_360_000_000));

    assert_eq!(fetched(second), br#"{"b" :1,  "a":2}"#);
    assert_eq!(second.properties, postrider_core::Properties::default());
    assert!(second.headers.is_empty());
    assert!(second.age_at_claim < Duration::from_secs(60));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(now.abs_diff(second.created_at_unix) < 60);

    assert_eq!(fetched(third), b"");
    assert_eq!(
        third.properties.content_type.as_deref(),
        Some("application/json")
    );
    claim.release().await.unwrap();
}

#[tokio::test]
async fn a_row_of_a_transaction_that_is_open_or_rolled_back_is_never_claimed() {
    let outbox = outbox().await;
    let writer = client(&outbox.url).await;
    writer
        .batch_execute("BEGIN; INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('e', 'gone', '1')")
        .await
        .unwrap();
    outbox.insert(1).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert_eq!(claim.len(), 1);
    claim.release().await.unwrap();
    writer.batch_execute("ROLLBACK").await.unwrap();
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert_eq!(claim.len(), 1);
    assert_eq!(claim.messages()[0].routing_key, "k");
    claim.release().await.unwrap();
}

#[tokio::test]
async fn two_claims_never_share_a_row() {
    let outbox = outbox().await;
    outbox.insert(10).await;
    let limits = ClaimLimits { rows: 4, ..LIMITS };
    let first = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
    let second = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
    let third = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
    let seqs = |claim: &postrider_postgres::Claim| {
        claim
            .messages()
            .iter()
            .map(|message| message.seq.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(seqs(&first), [1, 2, 3, 4]);
    assert_eq!(seqs(&second), [5, 6, 7, 8]);
    assert_eq!(seqs(&third), [9, 10]);
    assert!(first.reached_limit() && second.reached_limit() && !third.reached_limit());
    for claim in [first, second, third] {
        claim.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_stops_at_its_bytes_but_always_takes_one_row() {
    let outbox = outbox().await;
    for payload in ["repeat('x', 100000)", "repeat('y', 100000)", "'z'"] {
        outbox
            .client
            .batch_execute(&format!(
                "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', convert_to({payload}, 'UTF8'))"
            ))
            .await
            .unwrap();
    }
    for (bytes, rows, cut) in [
        (0, 1, true),
        (1, 1, true),
        (100_000, 1, true),
        (100_001, 2, true),
        (200_001, 3, false),
    ] {
        let limits = ClaimLimits { bytes, ..LIMITS };
        let claim = outbox
            .database
            .claim_fresh(limits, &[], ClaimFrom::default())
            .await
            .unwrap();
        assert_eq!(claim.len(), rows, "bytes {bytes}");
        assert_eq!(claim.untaken().is_some(), cut, "bytes {bytes}");
        assert_eq!(claim.reached_limit(), cut, "bytes {bytes}");
        claim.release().await.unwrap();
    }
}

#[tokio::test]
async fn with_equal_shares_every_row_within_its_share_is_taken_and_the_others_are_left_for_the_next_claim()
 {
    let outbox = outbox().await;
    for bytes in [10, 2_000, 10, 1_999, 5_000, 30_000_000] {
        let insert = format!(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'k', convert_to(repeat('x', {bytes}), 'UTF8'))"
        );
        outbox.client.batch_execute(&insert).await.unwrap();
    }
    let limits = ClaimLimits {
        rows: 10,
        bytes: 20_000,
        share: Share::Equal,
        ..LIMITS
    };
    let claim = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default());
    let claim = claim.await.unwrap();
    let taken: Vec<i64> = claim.messages().iter().map(|m| m.seq.0).collect();
    // What is not loaded at all is within any share.
    assert_eq!(taken, [1, 2, 3, 4, 6]);
    assert_eq!(claim.untaken(), Some(Seq(5)));
    assert!(claim.reached_limit());
    let other = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default());
    assert!(other.await.unwrap().is_empty(), "all are locked");
    let seqs: Vec<Seq> = taken.into_iter().map(Seq).collect();
    let settled = claim.settle(&done(&seqs)).await.unwrap();
    assert!(matches!(settled, Settled::Whole));

    let claim = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default());
    let claim = claim.await.unwrap();
    assert!(claim.is_empty() && claim.reached_limit());
    assert_eq!(claim.untaken(), Some(Seq(5)));
    let limits = ClaimLimits {
        share: Share::InOrder,
        ..limits
    };
    let claim = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default());
    let claim = claim.await.unwrap();
    assert_eq!((claim.len(), claim.untaken()), (1, None));
    claim.release().await.unwrap();
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_told_by_its_size_and_counts_no_bytes() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'bytea', convert_to(repeat('x', 100001), 'UTF8'));
             INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('e', 'json', to_json(repeat('x', 99999)));
             INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('e', 'fits', to_json(repeat('x', 99998)));
             INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('e', 'fits', convert_to(repeat('x', 100000), 'UTF8'))",
        )
        .await
        .unwrap();
    let limits = ClaimLimits {
        max_message_bytes: 100_000,
        bytes: 100_001,
        ..LIMITS
    };
    let claim = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
    let payloads: Vec<_> = claim
        .messages()
        .iter()
        .map(|message| match &message.payload {
            Payload::Fetched(bytes) => Ok(bytes.len()),
            Payload::TooLarge { bytes } => Err(*bytes),
        })
        .collect();
    assert_eq!(
        payloads,
        [Err(100_001), Err(100_001), Ok(100_000), Ok(100_000)]
    );
    claim.release().await.unwrap();
}

/// A JSON value copied from another table may come compressed: its stored size is not its length.
#[tokio::test]
async fn a_compressed_json_payload_is_measured_by_its_length() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "CREATE TABLE documents (body json);
             INSERT INTO documents SELECT to_json(repeat('x', 100000));
             INSERT INTO outbox.messages (exchange, routing_key, payload_json) SELECT 'e', 'k', body FROM documents",
        )
        .await
        .unwrap();
    let compressed: bool = outbox
        .client
        .query_one(
            "SELECT pg_column_size(payload_json) < 10000 FROM outbox.messages",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(compressed, "this test shows nothing");
    let limits = ClaimLimits {
        max_message_bytes: 100_000,
        ..LIMITS
    };
    let claim = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert!(claim.messages()[0].payload == Payload::TooLarge { bytes: 100_002 });
    claim.release().await.unwrap();
}

#[tokio::test]
async fn resting_rows_are_left_out() {
    let outbox = outbox().await;
    outbox.insert(5).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[Seq(1), Seq(4), Seq(77)], ClaimFrom::default())
        .await
        .unwrap();
    let seqs: Vec<_> = claim
        .messages()
        .iter()
        .map(|message| message.seq.0)
        .collect();
    assert_eq!(seqs, [2, 3, 5]);
    claim.release().await.unwrap();
}

#[tokio::test]
async fn settle_deletes_only_the_confirmed_and_frees_the_others() {
    let outbox = outbox().await;
    outbox.insert(4).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert!(matches!(
        claim.settle(&done(&[Seq(3), Seq(1)])).await.unwrap(),
        Settled::Whole
    ));
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let seqs: Vec<_> = claim
        .messages()
        .iter()
        .map(|message| message.seq.0)
        .collect();
    assert_eq!(seqs, [2, 4]);
    assert!(matches!(
        claim.settle(&done(&[])).await.unwrap(),
        Settled::Whole
    ));
    assert_eq!(outbox.count().await, 2);
}

#[tokio::test]
async fn settle_refuses_a_row_it_did_not_claim_and_deletes_nothing() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    let limits = ClaimLimits { rows: 2, ..LIMITS };
    let claim = outbox
        .database
        .claim_fresh(limits, &[], ClaimFrom::default())
        .await
        .unwrap();
    let error = claim.settle(&done(&[Seq(1), Seq(3)])).await.unwrap_err();
    assert!(matches!(error, Error::NotClaimed(Seq(3))), "{error}");
    assert_eq!(outbox.count().await, 3);
}

#[tokio::test]
async fn settle_tells_when_the_database_deleted_fewer_rows() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN CASE WHEN OLD.seq = 2 THEN NULL ELSE OLD END; END';
             CREATE TRIGGER keep BEFORE DELETE ON outbox.messages FOR EACH ROW EXECUTE FUNCTION keep()",
        )
        .await
        .unwrap();
    outbox.insert(2).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let error = claim.settle(&done(&[Seq(1), Seq(2)])).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Settled {
                named: 2,
                settled: 1
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_dropped_claim_frees_its_rows_and_its_connection_never_comes_back() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    // Another pool: a session that kept the locks would find its own rows.
    let database = Database::new(Settings::new(&outbox.url)).unwrap();
    for _ in 0..3 {
        let claim = database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
            .unwrap();
        assert_eq!(claim.len(), 3);
        drop(claim);
        until_free(&outbox.database, 3).await;
    }
    let open: i64 = outbox
        .client
        .query_one(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(open, 0);
}

#[tokio::test]
async fn a_claim_that_is_cancelled_half_way_frees_its_rows() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    // Held up by a lock on the table, the claim is cancelled when its query waits.
    let blocker = client(&outbox.url).await;
    blocker
        .batch_execute("BEGIN; LOCK TABLE outbox.messages IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let database = Database::new(Settings::new(&outbox.url)).unwrap();
    let its_pool = database.clone();
    let waiting = tokio::spawn(async move {
        database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
    });
    until("the claim waits", || async {
        let row = outbox
            .client
            .query_one("SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())", &[])
            .await
            .unwrap();
        row.get::<_, i64>(0) == 1
    })
    .await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    blocker.batch_execute("ROLLBACK").await.unwrap();
    until_free(&outbox.database, 3).await;
    drop(its_pool);
}

async fn until_free(database: &Database, rows: usize) {
    until("the rows are free", || async {
        let claim = database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
            .unwrap();
        let all = claim.len() == rows;
        claim.release().await.unwrap();
        all
    })
    .await;
}

#[tokio::test]
async fn a_settle_on_a_broken_connection_deletes_nothing_and_the_next_claim_works() {
    let outbox = outbox().await;
    outbox.insert(2).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    outbox
        .client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
            &[],
        )
        .await
        .unwrap();
    let error = claim.settle(&done(&[Seq(1), Seq(2)])).await.unwrap_err();
    assert!(error.is_connection(), "{error}");
    until("a new connection claims", || async {
        match outbox
            .database
            .claim_fresh(LIMITS, &[], ClaimFrom::default())
            .await
        {
            Ok(claim) => {
                let all = claim.len() == 2;
                claim.release().await.unwrap();
                all
            }
            Err(error) => {
                assert!(error.is_connection(), "{error}");
                false
            }
        }
    })
    .await;
}

/// Hazard: under REPEATABLE READ a row deleted since the snapshot is an error, not skipped.
#[tokio::test]
async fn a_database_whose_default_is_repeatable_read_is_claimed_from_as_any_other() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(&format!(
            "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
            outbox.name
        ))
        .await
        .unwrap();
    let database = Database::new(Settings::new(&outbox.url)).unwrap();
    outbox.insert(200).await;
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let database = database.clone();
            tokio::spawn(async move {
                let limits = ClaimLimits { rows: 2, ..LIMITS };
                loop {
                    let claim = database
                        .claim_fresh(limits, &[], ClaimFrom::default())
                        .await
                        .unwrap();
                    if claim.is_empty() {
                        break;
                    }
                    let seqs: Vec<_> = claim.messages().iter().map(|message| message.seq).collect();
                    assert!(matches!(
                        claim.settle(&done(&seqs)).await.unwrap(),
                        Settled::Whole
                    ));
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(outbox.count().await, 0);
}

#[tokio::test]
async fn an_empty_claim_holds_no_connection() {
    let outbox = outbox().await;
    let database = Database::new(Settings {
        connections: 1,
        ..Settings::new(&outbox.url)
    })
    .unwrap();
    let first = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let second = database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    assert!(first.is_empty() && second.is_empty());
    assert!(matches!(
        first.settle(&done(&[])).await.unwrap(),
        Settled::Whole
    ));
    second.release().await.unwrap();
}
