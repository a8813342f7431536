//! When a key is blocked, and what frees it.

use std::time::Duration;

use postrider_core::Seq;
use postrider_postgres::{DeadLetterFilter, Settlement};

use crate::fresh::keyed::{done, shown};
use crate::fresh::outbox;
use crate::fresh::settling::{HOUR, settle_whole};
use crate::{claim_due, deferred, given_up, gives_up, park_all, release};

#[tokio::test]
async fn a_message_that_is_deferred_blocks_its_key_and_no_other() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a", "b", "a", "b"]).await;
    deferred(&outbox, 1, HOUR).await;
    assert_eq!(outbox.blocked().await, "a:1:0");
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "free 2, blocked 3, free 4");
    let settlement = Settlement {
        done: vec![Seq(2), Seq(4)],
        park: vec![Seq(3)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    assert_eq!(outbox.where_all_are().await, "|3|1|");
    assert_eq!(outbox.blocked().await, "a:1:1");
    // It is what it was, and the head is not sent before it is due.
    assert!(claim_due(&outbox).await.0.is_empty());
    assert_eq!(outbox.claim_parked().await.rows.len(), 0);
    release(&outbox).await;
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [1]);
    assert_eq!(claim.messages()[0].key(), Some("a"));
    settle_whole(claim, &done(&[1])).await;
    assert_eq!(outbox.blocked().await, "a:-:1");
}

#[tokio::test]
async fn a_dead_letter_blocks_its_key_if_it_is_told_to() {
    for from in ["messages", "deferred", "parked"] {
        for blocks in [true, false] {
            let outbox = outbox().await;
            outbox.insert_keys(&["a", "a"]).await;
            let first = if from == "parked" { 2 } else { 1 };
            match from {
                "messages" => given_up(&outbox, 1, blocks).await,
                "deferred" => {
                    deferred(&outbox, 1, Duration::ZERO).await;
                    let (_, claim) = claim_due(&outbox).await;
                    settle_whole(claim, &gives_up(1, blocks)).await;
                }
                _ => {
                    deferred(&outbox, 1, Duration::ZERO).await;
                    park_all(&outbox, &[2]).await;
                    let (_, claim) = claim_due(&outbox).await;
                    settle_whole(claim, &done(&[1])).await;
                    let claim = outbox.claim_parked().await;
                    settle_whole(claim.claim, &gives_up(2, blocks)).await;
                }
            }
            let expected = match (from, blocks) {
                (_, true) => format!("a:{first}:0"),
                ("deferred", false) => "a:-:0".to_owned(),
                _ => "null".to_owned(),
            };
            assert_eq!(outbox.blocked().await, expected, "{from}");
            outbox.insert_keys(&["a"]).await;
            let claim = outbox.claim_lanes().await;
            let seen = shown(&claim);
            let is_free = expected == "null";
            assert!(
                seen.ends_with(if is_free { "free 3" } else { "blocked 3" }),
                "{from}: {seen}"
            );
            claim.claim.release().await.unwrap();
        }
    }
}

#[tokio::test]
async fn whoever_takes_the_head_away_frees_the_key() {
    let delete = |table| format!("DELETE FROM outbox.{table}");
    for (head, how) in [
        ("dead", "discard"),
        ("dead", "purge"),
        ("dead", "by hand"),
        ("dead", "truncate"),
        ("deferred", "by hand"),
        ("deferred", "late confirm"),
        ("deferred", "truncate"),
    ] {
        let outbox = outbox().await;
        outbox.insert_keys(&["a", "b", "a"]).await;
        let id: uuid::Uuid = outbox
            .client
            .query_one("SELECT id FROM outbox.messages WHERE seq = 1", &[])
            .await
            .unwrap()
            .get(0);
        let table = match head {
            "dead" => {
                given_up(&outbox, 1, true).await;
                "dead_letters"
            }
            _ => {
                deferred(&outbox, 1, HOUR).await;
                "deferred"
            }
        };
        park_all(&outbox, &[3]).await;
        assert_eq!(outbox.blocked().await, "a:1:1");
        let database = &outbox.database;
        let all = DeadLetterFilter::default();
        match how {
            "discard" => drop(database.discard_dead_letters(&all, None, 10).await.unwrap()),
            "purge" => assert_eq!(
                database
                    .purge_dead_letters(Duration::ZERO, 10)
                    .await
                    .unwrap(),
                1
            ),
            "late confirm" => {
                assert_eq!(database.delete_confirmed(&[(Seq(1), id)]).await.unwrap(), 1)
            }
            "by hand" => outbox.client.batch_execute(&delete(table)).await.unwrap(),
            _ => outbox
                .client
                .batch_execute(&format!("TRUNCATE outbox.{table}"))
                .await
                .unwrap(),
        }
        assert_eq!(outbox.blocked().await, "a:-:1", "{head} {how}");
        let claim = outbox.claim_parked().await;
        assert_eq!(shown(&claim), "free 3");
        settle_whole(claim.claim, &done(&[3])).await;
        assert_eq!(outbox.blocked().await, "null");
        assert_eq!(outbox.where_all_are().await, "2|||");
    }
}
