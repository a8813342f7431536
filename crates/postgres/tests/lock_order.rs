//! Whatever frees several keys locks them in the order of their names, as a settle does: no two of them wait for each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::keyed::{park, shown};
use fresh::settling::{HOUR, dead, retry, settle_whole, text};
use fresh::{Outbox, client, done, outbox, until};
use postrider_core::{Origin, Seq};
use postrider_postgres::{DeadLetterFilter, Settled, Settlement};

#[derive(Debug, Clone, Copy)]
enum Frees {
    Discard,
    Purge,
    Retry,
}

async fn waits(outbox: &Outbox) {
    until("it waits for the first name", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        text(outbox, waiting).await == "1"
    })
    .await;
}

/// The first in the order of places is the last in that of names. Somebody holds the first name: whoever has locked the last
/// one meanwhile went by places.
#[tokio::test]
async fn dead_letters_leave_in_the_order_of_their_keys() {
    for frees in [Frees::Discard, Frees::Purge, Frees::Retry] {
        let outbox = outbox().await;
        outbox.insert_keys(&["z", "a"]).await;
        let claim = outbox.claim_lanes().await;
        let settlement = Settlement {
            dead: vec![dead(1), dead(2)],
            blocking: [Seq(1), Seq(2)].into_iter().collect(),
            ..Settlement::default()
        };
        settle_whole(claim.claim, &settlement).await;
        assert_eq!(outbox.blocked().await, "a:2:0 z:1:0");

        let other = client(&outbox.url).await;
        let hold = "BEGIN; SELECT FROM outbox.blocked_keys WHERE ordering_key = 'a' FOR UPDATE";
        other.batch_execute(hold).await.unwrap();
        let database = outbox.database.clone();
        let freed = tokio::spawn(async move {
            let all = DeadLetterFilter::default();
            match frees {
                Frees::Discard => database
                    .discard_dead_letters(&all, None, 10)
                    .await
                    .map(|c| c.rows),
                Frees::Purge => database.purge_dead_letters(Duration::ZERO, 10).await,
                Frees::Retry => database
                    .retry_dead_letters(&all, None, 10)
                    .await
                    .map(|c| c.rows),
            }
        });
        waits(&outbox).await;
        let last = "SELECT FROM outbox.blocked_keys WHERE ordering_key = 'z' FOR UPDATE NOWAIT";
        let is_free = other.batch_execute(last).await;
        assert!(is_free.is_ok(), "{frees:?}: {is_free:?}");
        other.batch_execute("COMMIT").await.unwrap();
        assert_eq!(freed.await.unwrap().unwrap(), 2, "{frees:?}");
    }
}

/// Keys that are not blocked yet nobody can lock. Somebody else is just blocking the first name: whoever has blocked the last one meanwhile went
/// by places.
#[tokio::test]
async fn messages_that_fail_block_their_keys_in_the_order_of_their_names() {
    for gives_up in [false, true] {
        let outbox = outbox().await;
        outbox.insert_keys(&["z", "a"]).await;
        let claim = outbox.claim_lanes().await;
        let settlement = if gives_up {
            Settlement {
                dead: vec![dead(1), dead(2)],
                blocking: vec![Seq(1), Seq(2)],
                ..Settlement::default()
            }
        } else {
            Settlement {
                retry: vec![retry(1, HOUR), retry(2, HOUR)],
                ..Settlement::default()
            }
        };
        let other = client(&outbox.url).await;
        let block =
            |key| format!("INSERT INTO outbox.blocked_keys (ordering_key) VALUES ('{key}')");
        other
            .batch_execute(&format!("BEGIN; {}", block("a")))
            .await
            .unwrap();
        let settled = tokio::spawn(async move { claim.claim.settle(&settlement).await });
        waits(&outbox).await;
        // Otherwise the two of them would wait for each other, and the database would end one.
        other.batch_execute(&block("z")).await.unwrap();
        other.batch_execute("ROLLBACK").await.unwrap();
        let settled = settled.await.unwrap().unwrap();
        assert!(matches!(settled, Settled::Whole), "{gives_up}: {settled:?}");
        assert_eq!(outbox.blocked().await, "a:2:0 z:1:0");
    }
}

/// One key is parked and the last by name, the other deferred and the first: the tables come in the other order.
#[tokio::test]
async fn late_confirms_lock_the_keys_of_all_tables_in_the_order_of_their_names() {
    let outbox = outbox().await;
    outbox.insert_keys(&["z", "a", "z"]).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, HOUR), retry(2, HOUR)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &park(&[3])).await;
    let ids = "SELECT string_agg(id::text, ' ' ORDER BY seq) FROM (SELECT seq, id FROM outbox.deferred UNION ALL SELECT seq, id FROM outbox.parked) AS m WHERE seq > 1";
    let ids = text(&outbox, ids).await;
    let ids: Vec<uuid::Uuid> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
    let confirmed = [(Seq(2), ids[0]), (Seq(3), ids[1])];

    let other = client(&outbox.url).await;
    let hold = "BEGIN; SELECT FROM outbox.blocked_keys WHERE ordering_key = 'a' FOR UPDATE";
    other.batch_execute(hold).await.unwrap();
    let database = outbox.database.clone();
    let deleted = tokio::spawn(async move { database.delete_confirmed(&confirmed).await });
    waits(&outbox).await;
    let last = "SELECT FROM outbox.blocked_keys WHERE ordering_key = 'z' FOR UPDATE NOWAIT";
    let is_free = other.batch_execute(last).await;
    assert!(is_free.is_ok(), "{is_free:?}");
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(deleted.await.unwrap().unwrap(), 2);
    assert_eq!(outbox.blocked().await, "a:-:0 z:1:0");
}

/// A command that frees such a key again would wait for a publish.
#[tokio::test]
async fn keys_that_are_unblocked_are_let_go_before_anything_parked_is_claimed() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a", "b", "b"]).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO), retry(2, Duration::ZERO)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &park(&[3])).await;
    let claim = outbox.claim(Origin::Deferred).await;
    settle_whole(claim, &done(&[Seq(1), Seq(2)])).await;
    assert_eq!(outbox.blocked().await, "a:-:0 b:-:1");

    let claim = outbox.claim_parked().await;
    assert_eq!((claim.unblocked, claim.rows.len()), (1, 0));
    assert!(claim.claim.is_empty());
    let other = client(&outbox.url).await;
    let all = "SELECT FROM outbox.blocked_keys FOR UPDATE NOWAIT";
    other.batch_execute(all).await.unwrap();
    assert_eq!(outbox.blocked().await, "b:-:1");
    let claim = outbox.claim_parked().await;
    assert_eq!((claim.unblocked, shown(&claim)), (0, "free 3".to_owned()));
    settle_whole(claim.claim, &done(&[Seq(3)])).await;
    assert_eq!(outbox.blocked().await, "null");
}
