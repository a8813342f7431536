//! Sessions that meet the same keys at the same time, or end halfway.

use std::time::Duration;

use postrider_core::Seq;
use postrider_postgres::{DeadLetterFilter, Settled, Settlement};

use crate::fresh::keyed::{done, park, waiting};
use crate::fresh::settling::{retry, settle_whole, text};
use crate::fresh::{client, outbox, until};
use crate::{claim_due, deferred, given_up, park_all};

/// Hazard: two settles that met the same keys in two orders would wait for each other, and one of them be ended by the server.
#[tokio::test]
async fn settles_of_heads_and_of_followers_of_the_same_keys_do_not_wait_for_each_other_for_ever() {
    let outbox = outbox().await;
    let keys: Vec<String> = (0..60).map(|n| format!("k{:02}", (n * 37) % 60)).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for round in 0..10 {
        outbox.insert_keys(&keys).await;
        let claim = outbox.claim_lanes().await;
        let seqs: Vec<i64> = claim
            .rows
            .iter()
            .map(|row| match row {
                postrider_core::OrderedRow::Free(m) => m.seq.0,
                other => panic!("{other:?}"),
            })
            .collect();
        let settlement = Settlement {
            retry: seqs.iter().map(|seq| retry(*seq, Duration::ZERO)).collect(),
            ..Settlement::default()
        };
        settle_whole(claim.claim, &settlement).await;
        let mut reversed = keys.clone();
        reversed.reverse();
        outbox.insert_keys(&reversed).await;
        let (heads, due) = claim_due(&outbox).await;
        assert_eq!(heads.len(), 60);
        let lanes = outbox.claim_lanes().await;
        let followers: Vec<i64> = lanes
            .rows
            .iter()
            .map(|row| match row {
                postrider_core::OrderedRow::Blocked { seq, .. } => seq.0,
                other => panic!("{other:?}"),
            })
            .collect();
        let (freed, parks) = (done(&heads), park(&followers));
        let (freed, parked) = tokio::join!(due.settle(&freed), lanes.claim.settle(&parks));
        assert!(matches!(freed.unwrap(), Settled::Whole), "{round}");
        assert!(matches!(parked.unwrap(), Settled::Whole), "{round}");
        while !outbox.blocked().await.starts_with("null") {
            let claim = outbox.claim_parked().await;
            let seqs: Vec<i64> = claim
                .rows
                .iter()
                .map(|row| match row {
                    postrider_core::OrderedRow::Free(m) => m.seq.0,
                    other => panic!("{other:?}"),
                })
                .collect();
            settle_whole(claim.claim, &done(&seqs)).await;
        }
    }
    assert_eq!(outbox.where_all_are().await, "|||");
}

/// One transaction blocks the key again while another frees it: the head is never forgotten.
#[tokio::test]
async fn a_head_that_comes_while_another_goes_is_seen_by_whoever_is_second() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 3]).await;
    given_up(&outbox, 2, false).await;
    given_up(&outbox, 1, true).await;
    let operator = client(&outbox.url).await;
    // Retries the second, and takes its time to commit.
    let retry_second = "BEGIN; WITH gone AS (DELETE FROM outbox.dead_letters WHERE seq = 2 RETURNING *) \
         INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at, attempts, due_at, cause) \
         SELECT seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at, 0, clock_timestamp(), 'retry' FROM gone";
    operator.batch_execute(retry_second).await.unwrap();
    let database = outbox.database.clone();
    let first = DeadLetterFilter {
        seqs: vec![Seq(1)],
        ..DeadLetterFilter::default()
    };
    let discard =
        tokio::spawn(async move { database.discard_dead_letters(&first, None, 10).await });
    until("the discard waits", || async {
        text(&outbox, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()").await == "1"
    })
    .await;
    operator.batch_execute("COMMIT").await.unwrap();
    assert_eq!(discard.await.unwrap().unwrap().rows, 1);
    assert_eq!(outbox.blocked().await, "a:2:0");
    assert_eq!(claim_due(&outbox).await.0, [2]);
}

#[tokio::test]
async fn a_session_that_ends_in_the_middle_of_a_settle_leaves_everything_as_it_was() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 3]).await;
    deferred(&outbox, 1, Duration::ZERO).await;
    park_all(&outbox, &[2, 3]).await;
    let before = outbox.where_all_are().await;
    let (_, claim) = claim_due(&outbox).await;
    outbox
        .client
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'")
        .await
        .unwrap();
    assert!(claim.settle(&done(&[1])).await.unwrap_err().is_connection());
    assert_eq!(outbox.where_all_are().await, before);
    assert_eq!(outbox.blocked().await, "a:1:2");
    assert!(waiting(&outbox.database).await.lanes.is_empty());
}
