//! What a claim and a look back walk over is walked in pieces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::settling::{retry, settle_whole};
use fresh::{LIMITS, Outbox, done, outbox};
use postrider_core::{OrderedRow, Origin, Seq, Walked};
use postrider_postgres::{ClaimFrom, ClaimLimits, LookBack, Settlement, Share};

/// As many messages with a key, then one without.
async fn insert_with_key(outbox: &Outbox, messages: i32) {
    let insert = "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key)";
    outbox
        .client
        .batch_execute(&format!(
            "{insert} SELECT 'e', 'k', '1', 'key-' || n % 7 FROM generate_series(1, {messages}) AS n; {insert} VALUES ('e', 'k', '1', NULL)"
        ))
        .await
        .unwrap();
}

/// Hazard: behind a restart, one statement walked over a whole backlog with keys, took longer than it may, and was sent again.
#[tokio::test]
async fn messages_without_a_key_are_found_among_many_with_one_piece_by_piece() {
    for share in [Share::InOrder, Share::Equal] {
        let outbox = outbox().await;
        insert_with_key(&outbox, 14_999).await;
        insert_with_key(&outbox, 19_999).await;
        let limits = ClaimLimits { share, ..LIMITS };
        let (mut found, mut ends) = (Vec::new(), Vec::new());
        let mut from = ClaimFrom::default();
        loop {
            let claim = outbox
                .database
                .claim_fresh(limits, &[], from)
                .await
                .unwrap();
            assert!(claim.ordered_waits() && !claim.reached_limit());
            let seqs: Vec<Seq> = claim.messages().iter().map(|m| m.seq).collect();
            found.extend(seqs.iter().map(|seq| seq.0));
            let walked = claim.walked();
            settle_whole(claim, &done(&seqs)).await;
            match walked {
                Walked::Until(until) => {
                    ends.push(until.0);
                    from.fresh = Some(until);
                }
                Walked::ToTheEnd => break,
                Walked::Full => panic!("{found:?}"),
            }
        }
        assert_eq!(found, [15_000, 35_000]);
        assert_eq!(ends, [10_001, 20_001, 30_001], "{share:?}");
    }
}

/// Otherwise a claim that found nothing would always be followed by another, and no frontier would know that there is nothing.
#[tokio::test]
async fn a_claim_that_comes_to_the_end_within_its_piece_says_so_and_without_messages_that_have_a_key_there_are_no_pieces()
 {
    let outbox = outbox().await;
    let far = |key: &str| {
        format!(
            "INSERT INTO outbox.messages (seq, exchange, routing_key, payload_json, ordering_key) OVERRIDING SYSTEM VALUE \
             VALUES (1, 'e', 'k', '1', NULL), (10000, 'e', 'k', '1', {key}), (10001, 'e', 'k', '1', NULL)"
        )
    };
    let claimed = async || {
        let claim = outbox.claim(Origin::Messages).await;
        let claimed = (claim.len(), claim.walked());
        claim.release().await.unwrap();
        claimed
    };
    outbox.client.batch_execute(&far("NULL")).await.unwrap();
    assert_eq!(claimed().await, (3, Walked::ToTheEnd));
    let again = format!("TRUNCATE outbox.messages; {}", far("'a'"));
    outbox.client.batch_execute(&again).await.unwrap();
    assert_eq!(claimed().await, (1, Walked::Until(Seq(10_001))));
    let last = "DELETE FROM outbox.messages WHERE seq = 10001";
    outbox.client.batch_execute(last).await.unwrap();
    assert_eq!(claimed().await, (1, Walked::ToTheEnd));
}

#[tokio::test]
async fn a_claim_takes_the_very_last_place_there_can_be_beside_messages_with_a_key() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (seq, exchange, routing_key, payload_json, ordering_key) OVERRIDING SYSTEM VALUE \
             VALUES (9223372036854775806, 'e', 'k', '1', 'a'), (9223372036854775807, 'e', 'k', '1', NULL)",
        )
        .await
        .unwrap();
    for from in [None, Some(Seq(i64::MAX))] {
        let from = ClaimFrom {
            fresh: from,
            ordered: None,
        };
        let claim = outbox.database.claim_fresh(LIMITS, &[], from).await;
        let claim = claim.unwrap();
        let seqs: Vec<i64> = claim.messages().iter().map(|m| m.seq.0).collect();
        assert_eq!((seqs, claim.walked()), (vec![i64::MAX], Walked::ToTheEnd));
        claim.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_look_back_looks_piece_by_piece_and_passes_over_messages_with_a_key() {
    let outbox = outbox().await;
    insert_with_key(&outbox, 24_999).await;
    let mut watch = outbox.database.watch_outbox().await.unwrap();
    let below = Seq(25_001);
    let mut look = async |from| watch.oldest_free(from, below).await.unwrap();
    assert_eq!(look(None).await, LookBack::NoneBelow(Seq(10_001)));
    assert_eq!(
        look(Some(Seq(10_001))).await,
        LookBack::NoneBelow(Seq(20_001))
    );
    assert_eq!(look(Some(Seq(20_001))).await, LookBack::Free(Seq(25_000)));
    outbox
        .client
        .batch_execute("DELETE FROM outbox.messages WHERE ordering_key IS NULL")
        .await
        .unwrap();
    assert_eq!(look(Some(Seq(20_001))).await, LookBack::None);
    assert_eq!(look(Some(Seq(25_000))).await, LookBack::None);
}

#[tokio::test]
async fn how_large_a_blocked_row_is_is_told_without_its_payload() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"]).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, ordering_key) \
             SELECT 'e', 'k', convert_to(repeat('x', 1 << 20), 'UTF8'), 'a'",
        )
        .await
        .unwrap();
    let claim = outbox.claim_lanes().await;
    let blocked = |row: &OrderedRow| {
        matches!(
            row,
            OrderedRow::Blocked {
                bytes: 1_048_576,
                ..
            }
        )
    };
    assert!(claim.rows.iter().all(blocked), "{:?}", claim.rows);
    assert_eq!(claim.rows.len(), 1);
    claim.claim.release().await.unwrap();
}
