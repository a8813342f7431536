//! What a claim and a look back walk over is walked in pieces, and what a settle has to move is claimed in such.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::keyed::shown;
use fresh::settling::{dead, retry, settle_whole};
use fresh::{LIMITS, Outbox, done, outbox};
use postrider_core::{OrderedRow, Origin, Payload, Seq, Walked};
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
        assert_eq!(ends, [10_001, 20_001, 30_001, 40_001], "{share:?}");
    }
}

#[tokio::test]
async fn without_messages_that_have_a_key_everything_is_one_piece() {
    let outbox = outbox().await;
    outbox.insert(1).await;
    outbox
        .client
        .batch_execute("INSERT INTO outbox.messages (seq, exchange, routing_key, payload_json) OVERRIDING SYSTEM VALUE VALUES (1000000, 'e', 'k', '1')")
        .await
        .unwrap();
    let claim = outbox.claim(Origin::Messages).await;
    assert_eq!((claim.len(), claim.walked()), (2, Walked::ToTheEnd));
    claim.release().await.unwrap();
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

/// Each with 40 MiB of payload.
async fn insert_large(outbox: &Outbox, rows: u32, key: Option<&str>) {
    outbox
        .client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
             SELECT 'e', 'k', to_json(repeat('x', 40 << 20)), $2 FROM generate_series(1, $1::bigint)",
            &[&i64::from(rows), &key],
        )
        .await
        .unwrap();
}

/// Hazard: a thousand payloads that are too large were to become dead letters by one statement, which took longer than it may, and were claimed again.
#[tokio::test]
async fn no_more_that_is_too_large_is_claimed_than_one_transaction_moves() {
    let outbox = outbox().await;
    insert_large(&outbox, 4, None).await;
    for (first, second, untaken) in [(1, 2, Some(Seq(3))), (3, 4, None)] {
        for share in [Share::InOrder, Share::Equal] {
            let limits = ClaimLimits { share, ..LIMITS };
            let claim = outbox.claim_within(limits, Origin::Messages).await;
            let places: Vec<i64> = claim.messages().iter().map(|m| m.seq.0).collect();
            assert_eq!((places, claim.untaken()), (vec![first, second], untaken));
            let large = |m: &postrider_core::Message| matches!(m.payload, Payload::TooLarge { .. });
            assert!(claim.messages().iter().all(large));
            claim.release().await.unwrap();
        }
        let claim = outbox.claim(Origin::Messages).await;
        let settlement = Settlement {
            dead: vec![dead(first), dead(second)],
            ..Settlement::default()
        };
        settle_whole(claim, &settlement).await;
    }
    assert_eq!(outbox.where_all_are().await, "|||1,2,3,4");
}

#[tokio::test]
async fn of_messages_with_a_key_what_there_is_no_room_to_move_for_is_held_with_what_follows_it() {
    let outbox = outbox().await;
    // Places 1 and 2, then 3 to 6 and 7.
    outbox.insert_keys(&["a", "b"]).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        done: vec![Seq(2)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    insert_large(&outbox, 4, Some("a")).await;
    outbox.insert_keys(&["a"]).await;
    let claim = outbox.claim_lanes().await;
    assert_eq!(
        shown(&claim),
        "blocked 3, blocked 4, held a, held a, held a"
    );
    assert!(!claim.cut_by_bytes);
    let plan = postrider_core::OrderedPlan::new(claim.rows, &Default::default());
    assert_eq!(plan.park, [Seq(3), Seq(4)]);
    settle_whole(claim.claim, &fresh::keyed::park(&[3, 4])).await;
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "blocked 5, blocked 6, held a");
    settle_whole(claim.claim, &fresh::keyed::park(&[5, 6])).await;
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "blocked 7");
    settle_whole(claim.claim, &fresh::keyed::park(&[7])).await;
    assert_eq!(outbox.where_all_are().await, "|3,4,5,6,7|1|");

    // And what is to be given up.
    insert_large(&outbox, 3, Some("b")).await;
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "free 8, free 9, held b");
    let large = |row: &OrderedRow| matches!(row, OrderedRow::Free(m) if matches!(m.payload, Payload::TooLarge { .. }));
    assert_eq!(claim.rows.iter().filter(|row| large(row)).count(), 2);
    claim.claim.release().await.unwrap();
}
