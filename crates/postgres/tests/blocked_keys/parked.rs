//! What waits behind a head, and goes out in order when that one has left.

use std::time::Duration;

use postrider_core::{Origin, Seq};
use postrider_postgres::{ClaimLimits, Database, Error, Settings, Settlement};

use crate::fresh::keyed::{done, park, resuming, shown};
use crate::fresh::settling::{HOUR, all_kinds, contents, retry, settle_whole};
use crate::fresh::{LIMITS, client, fetched, outbox};
use crate::{claim_due, deferred, park_all, release};

#[tokio::test]
async fn nothing_is_parked_behind_nothing() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a", "b", "b"]).await;
    deferred(&outbox, 2, HOUR).await;
    let claim = outbox.claim_lanes().await;
    let settled = claim.claim.settle(&park(&[1, 3])).await;
    assert!(
        matches!(
            settled,
            Err(Error::Settled {
                named: 2,
                settled: 1
            })
        ),
        "{settled:?}"
    );
    assert_eq!(outbox.where_all_are().await, "1|3|2|");
    assert_eq!(outbox.blocked().await, "b:2:1");
}

#[tokio::test]
async fn what_is_parked_moves_whole_and_in_order_and_is_counted() {
    let outbox = outbox().await;
    all_kinds(&outbox).await;
    outbox
        .client
        .batch_execute("ALTER TABLE outbox.messages DISABLE TRIGGER USER; UPDATE outbox.messages SET ordering_key = 'a', priority = NULL")
        .await
        .unwrap();
    let before = contents(&outbox, "messages").await;
    deferred(&outbox, 1, Duration::ZERO).await;
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "blocked 2, blocked 3, blocked 4, blocked 5");
    settle_whole(claim.claim, &park(&[2, 3, 4, 5])).await;
    assert_eq!(outbox.blocked().await, "a:1:4");
    let after = format!(
        "{} {}",
        contents(&outbox, "deferred").await,
        contents(&outbox, "parked").await
    );
    assert_eq!(before, after);
    let (_, claim) = claim_due(&outbox).await;
    settle_whole(claim, &done(&[1])).await;
    let claim = outbox.claim_parked().await;
    let payloads: Vec<usize> = claim
        .rows
        .iter()
        .map(|row| match row {
            postrider_core::OrderedRow::Free(message) => {
                assert_eq!(message.origin, Origin::Parked);
                fetched(message).len()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(payloads, [32, 0, 1_500_000, 1_000_002]);
    claim.claim.release().await.unwrap();
}

#[tokio::test]
async fn when_the_head_is_delivered_its_followers_go_in_order_and_the_last_one_frees_the_key() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 6]).await;
    deferred(&outbox, 1, Duration::ZERO).await;
    park_all(&outbox, &[2, 3, 4, 5]).await;
    let (_, claim) = claim_due(&outbox).await;
    settle_whole(claim, &done(&[1])).await;
    // One that comes now goes behind them.
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "blocked 6");
    settle_whole(claim.claim, &park(&[6])).await;
    assert_eq!(outbox.blocked().await, "a:-:5");

    let two = ClaimLimits { rows: 2, ..LIMITS };
    let claim = resuming(&outbox.database, two).await;
    assert_eq!(shown(&claim), "free 2, free 3");
    settle_whole(claim.claim, &done(&[2, 3])).await;
    assert_eq!(outbox.blocked().await, "a:-:3");
    // A parked message that fails is the head again.
    let claim = outbox.claim_parked().await;
    assert_eq!(shown(&claim), "free 4, free 5, free 6");
    let settlement = Settlement {
        done: vec![Seq(4)],
        retry: vec![retry(5, Duration::ZERO)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    assert_eq!(outbox.where_all_are().await, "|6|5|");
    assert_eq!(outbox.blocked().await, "a:5:1");
    assert_eq!(outbox.claim_parked().await.rows.len(), 0);
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [5]);
    settle_whole(claim, &done(&[5])).await;
    // While the last one is being published, the key is blocked; with its settle it is free.
    let claim = outbox.claim_parked().await;
    assert_eq!(shown(&claim), "free 6");
    assert_eq!(outbox.blocked().await, "a:-:1");
    settle_whole(claim.claim, &done(&[6])).await;
    assert_eq!(outbox.blocked().await, "null");
    outbox.insert_keys(&["a"]).await;
    assert_eq!(shown(&outbox.claim_lanes().await), "free 7");
}

#[tokio::test]
async fn a_parked_message_that_stays_while_one_behind_it_goes_is_found_again() {
    // Of several in flight, one may be confirmed behind another whose confirm did not come.
    let outbox = outbox().await;
    outbox.insert_keys(&["a", "a", "a", "a"]).await;
    deferred(&outbox, 1, Duration::ZERO).await;
    park_all(&outbox, &[2, 3, 4]).await;
    let (_, head) = claim_due(&outbox).await;
    settle_whole(head, &done(&[1])).await;
    settle_whole(outbox.claim_parked().await.claim, &done(&[3])).await;
    let claim = outbox.claim_parked().await;
    assert_eq!(shown(&claim), "free 2, free 4");
    settle_whole(claim.claim, &done(&[2, 4])).await;
    assert_eq!(outbox.where_all_are().await, "|||");
    assert_eq!(outbox.blocked().await, "null");
}

#[tokio::test]
async fn a_key_with_nothing_parked_is_freed_by_the_claim_that_finds_nothing() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a", "b"]).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO), retry(2, HOUR)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    let (_, claim) = claim_due(&outbox).await;
    settle_whole(claim, &done(&[1])).await;
    assert_eq!(outbox.blocked().await, "a:-:0 b:2:0");
    let keys = outbox.database.resuming_keys("", 10).await.unwrap();
    let names: Vec<_> = keys.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(names, ["a"]);
    // One that has had its turn does not have the next one too.
    let keys = outbox.database.resuming_keys("a", 10).await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
    // Not while somebody has the lane: it may be about to park a message behind the block.
    outbox.insert_keys(&["a"]).await;
    let other = Database::new(Settings::new(&outbox.url)).unwrap();
    let lanes = outbox.claim_lanes().await;
    assert_eq!(shown(&lanes), "blocked 3");
    let parked = resuming(&other, LIMITS).await;
    assert!(parked.claim.is_empty());
    assert_eq!((parked.locked, parked.unblocked), (0, 0));
    assert_eq!(outbox.blocked().await, "a:-:0 b:2:0");
    settle_whole(lanes.claim, &park(&[3])).await;
    let claim = resuming(&other, LIMITS).await;
    assert_eq!(shown(&claim), "free 3");
    settle_whole(claim.claim, &done(&[3])).await;
    assert_eq!(outbox.blocked().await, "b:2:0");

    // And by one that finds nothing at all.
    release(&outbox).await;
    let (_, claim) = claim_due(&outbox).await;
    settle_whole(claim, &done(&[2])).await;
    let claim = outbox.claim_parked().await;
    assert!(claim.rows.is_empty());
    assert_eq!(claim.unblocked, 1);
    assert_eq!(outbox.blocked().await, "null");
}

#[tokio::test]
async fn a_parked_row_that_is_locked_or_left_out_holds_back_what_is_behind_it() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 4]).await;
    deferred(&outbox, 1, Duration::ZERO).await;
    park_all(&outbox, &[2, 3, 4]).await;
    let (_, claim) = claim_due(&outbox).await;
    settle_whole(claim, &done(&[1])).await;
    let keys = outbox.database.resuming_keys("", 10).await.unwrap();
    let claim = outbox.database.claim_parked(LIMITS, &keys, &[Seq(2)]).await;
    let claim = claim.unwrap();
    assert_eq!(shown(&claim), "held a, free 3, free 4");
    claim.claim.release().await.unwrap();
    let operator = client(&outbox.url).await;
    operator
        .batch_execute("BEGIN; SELECT FROM outbox.parked WHERE seq = 3 FOR UPDATE")
        .await
        .unwrap();
    let claim = outbox.claim_parked().await;
    assert_eq!(shown(&claim), "free 2, held a, free 4");
    settle_whole(claim.claim, &done(&[2])).await;
    assert_eq!(outbox.blocked().await, "a:-:2");
}

#[tokio::test]
async fn a_parked_message_that_is_confirmed_late_is_gone_and_not_counted() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 3]).await;
    let ids = outbox
        .client
        .query("SELECT seq, id FROM outbox.messages", &[])
        .await
        .unwrap();
    let confirmed: Vec<_> = ids
        .iter()
        .map(|row| (Seq(row.get(0)), row.get(1)))
        .collect();
    deferred(&outbox, 1, HOUR).await;
    park_all(&outbox, &[2, 3]).await;
    assert_eq!(
        outbox
            .database
            .delete_confirmed(&confirmed[1..2])
            .await
            .unwrap(),
        1
    );
    assert_eq!(outbox.blocked().await, "a:1:1");
    assert_eq!(
        outbox.database.delete_confirmed(&confirmed).await.unwrap(),
        2
    );
    assert_eq!(outbox.blocked().await, "a:-:0");
    assert_eq!(outbox.where_all_are().await, "|||");
    assert!(outbox.claim_parked().await.rows.is_empty());
    assert_eq!(outbox.blocked().await, "null");
}
