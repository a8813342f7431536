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

use fresh::settling::{dead, settle_whole, text};
use fresh::{client, outbox, until};
use postrider_core::Seq;
use postrider_postgres::{DeadLetterFilter, Settlement};

#[derive(Debug, Clone, Copy)]
enum Frees {
    Discard,
    Purge,
    Retry,
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
        until("it waits for the first name", || async {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
            text(&outbox, waiting).await == "1"
        })
        .await;
        let last = "SELECT FROM outbox.blocked_keys WHERE ordering_key = 'z' FOR UPDATE NOWAIT";
        let is_free = other.batch_execute(last).await;
        assert!(is_free.is_ok(), "{frees:?}: {is_free:?}");
        other.batch_execute("COMMIT").await.unwrap();
        assert_eq!(freed.await.unwrap().unwrap(), 2, "{frees:?}");
    }
}
