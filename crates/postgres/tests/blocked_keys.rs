//! What blocks a key, what waits behind it, and what frees it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::keyed::{done, park, resuming, shown, waiting};
use fresh::settling::{HOUR, dead, retry, settle_whole, text};
use fresh::{LIMITS, Outbox, client, next_due, outbox, until};
use postrider_core::{Origin, Seq, Target};
use postrider_postgres::{
    ClaimLimits, Database, DeadLetterFilter, DeferredFilter, Error, Head, Settings, Settled,
    Settlement,
};

/// A message was tried in vain.
async fn deferred(outbox: &Outbox, seq: i64, after: Duration) {
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(seq, after)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
}

/// A message was given up.
async fn given_up(outbox: &Outbox, seq: i64, blocks: bool) {
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &gives_up(seq, blocks)).await;
}

fn gives_up(seq: i64, blocks: bool) -> Settlement {
    Settlement {
        dead: vec![dead(seq)],
        blocking: blocks.then_some(Seq(seq)).into_iter().collect(),
        ..Settlement::default()
    }
}

/// Parks all that is behind a head.
async fn park_all(outbox: &Outbox, seqs: &[i64]) {
    let claim = outbox.claim_lanes().await;
    settle_whole(claim.claim, &park(seqs)).await;
}

async fn release(outbox: &Outbox) {
    let filter = DeferredFilter::default();
    let released = outbox.database.release_deferred(&filter, None, 100).await;
    let _ = released.unwrap();
}

async fn claim_due(outbox: &Outbox) -> (Vec<i64>, postrider_postgres::Claim) {
    let claim = outbox.claim(Origin::Deferred).await;
    let seqs = claim.messages().iter().map(|m| m.seq.0).collect();
    (seqs, claim)
}

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
    fresh::settling::all_kinds(&outbox).await;
    outbox
        .client
        .batch_execute("ALTER TABLE outbox.messages DISABLE TRIGGER USER; UPDATE outbox.messages SET ordering_key = 'a', priority = NULL")
        .await
        .unwrap();
    let before = fresh::settling::contents(&outbox, "messages").await;
    deferred(&outbox, 1, Duration::ZERO).await;
    let claim = outbox.claim_lanes().await;
    assert_eq!(shown(&claim), "blocked 2, blocked 3, blocked 4, blocked 5");
    settle_whole(claim.claim, &park(&[2, 3, 4, 5])).await;
    assert_eq!(outbox.blocked().await, "a:1:4");
    let after = format!(
        "{} {}",
        fresh::settling::contents(&outbox, "deferred").await,
        fresh::settling::contents(&outbox, "parked").await
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
                fresh::fetched(message).len()
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

/// Several messages of a key were given up, since the relays were told to go on without them.
async fn three_dead_letters_retried() -> Outbox {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 5]).await;
    for seq in [1, 2, 3] {
        given_up(&outbox, seq, false).await;
    }
    assert_eq!(outbox.blocked().await, "null");
    let all = DeadLetterFilter::default();
    let changed = outbox
        .database
        .retry_dead_letters(&all, None, 10)
        .await
        .unwrap();
    assert_eq!(changed.rows, 3);
    assert_eq!(outbox.blocked().await, "a:1:0");
    outbox
}

#[tokio::test]
async fn dead_letters_of_one_key_that_are_retried_at_once_go_one_after_the_other() {
    let outbox = three_dead_letters_retried().await;
    park_all(&outbox, &[4, 5]).await;
    let target = Target::Exchange("e".to_owned());
    for seq in [1, 2, 3] {
        assert_eq!(next_due(&outbox.database).await, Some(Duration::ZERO));
        let probe = outbox
            .database
            .claim_of_target(&target, LIMITS, &[])
            .await
            .unwrap();
        assert_eq!(probe.len(), 1);
        assert_eq!(probe.messages()[0].seq, Seq(seq));
        probe.release().await.unwrap();
        let (seqs, claim) = claim_due(&outbox).await;
        assert_eq!(seqs, [seq]);
        if seq == 2 {
            // It waits again, and the third with it.
            let settlement = Settlement {
                retry: vec![retry(2, HOUR)],
                ..Settlement::default()
            };
            settle_whole(claim, &settlement).await;
            assert!(next_due(&outbox.database).await.unwrap() > HOUR / 2);
            assert!(claim_due(&outbox).await.0.is_empty());
            release(&outbox).await;
            assert_eq!(
                outbox.database.release_target(&target, 10).await.unwrap(),
                0
            );
            let (seqs, claim) = claim_due(&outbox).await;
            assert_eq!(seqs, [2]);
            settle_whole(claim, &done(&[2])).await;
        } else {
            settle_whole(claim, &done(&[seq])).await;
        }
    }
    assert_eq!(outbox.blocked().await, "a:-:2");
    let claim = outbox.claim_parked().await;
    assert_eq!(shown(&claim), "free 4, free 5");
    settle_whole(claim.claim, &done(&[4, 5])).await;
    assert_eq!(outbox.blocked().await, "null");
}

#[tokio::test]
async fn a_head_whose_turn_comes_while_somebody_has_it_locked_is_found_when_it_is_let_go() {
    let outbox = three_dead_letters_retried().await;
    let mut operator = client(&outbox.url).await;
    let locking = operator.transaction().await.unwrap();
    locking
        .batch_execute("SELECT FROM outbox.deferred WHERE seq = 2 FOR UPDATE")
        .await
        .unwrap();
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [1]);
    settle_whole(claim, &done(&[1])).await;
    assert_eq!(outbox.blocked().await, "a:2:0");
    assert_eq!(outbox.database.wake_heads().await.unwrap(), 0);
    locking.rollback().await.unwrap();
    assert!(claim_due(&outbox).await.0.is_empty());
    assert_eq!(outbox.database.wake_heads().await.unwrap(), 1);
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [2]);
    claim.release().await.unwrap();
    assert_eq!(outbox.database.wake_heads().await.unwrap(), 0);
}

#[tokio::test]
async fn a_dead_letter_that_is_retried_before_the_head_takes_its_place_until_it_is_gone() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 4]).await;
    given_up(&outbox, 1, false).await;
    deferred(&outbox, 2, Duration::ZERO).await;
    let all = DeadLetterFilter::default();
    let _ = outbox
        .database
        .retry_dead_letters(&all, None, 10)
        .await
        .unwrap();
    assert_eq!(outbox.blocked().await, "a:1:0");
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [1]);
    settle_whole(claim, &done(&[1])).await;
    assert_eq!(outbox.blocked().await, "a:2:0");
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [2]);
    settle_whole(claim, &gives_up(2, true)).await;

    // Nor is one that blocks passed over when another one is retried, delivered, or discarded.
    outbox
        .client
        .batch_execute("INSERT INTO outbox.dead_letters (seq, id, exchange, routing_key, payload_json, headers, ordering_key, supersede, created_at, attempts, reason, error) \
             SELECT 0, gen_random_uuid(), 'e', 'k', '1', '{}', 'a', false, now(), 1, 'nacked', ''")
        .await
        .unwrap();
    let first = DeadLetterFilter {
        seqs: vec![Seq(0)],
        ..DeadLetterFilter::default()
    };
    let _ = outbox
        .database
        .retry_dead_letters(&first, None, 10)
        .await
        .unwrap();
    assert_eq!(outbox.blocked().await, "a:0:0");
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [0]);
    settle_whole(claim, &done(&[0])).await;
    assert_eq!(outbox.blocked().await, "a:2:0");
    let _ = outbox
        .database
        .retry_dead_letters(&all, None, 10)
        .await
        .unwrap();
    assert_eq!(outbox.blocked().await, "a:2:0");
    assert_eq!(claim_due(&outbox).await.0, [2]);
}

/// The former head is being published when an earlier one comes: it cannot be kept from that, but from its next turn.
#[tokio::test]
async fn a_head_that_is_displaced_while_it_is_published_waits_for_its_next_turn() {
    let outbox = outbox().await;
    outbox.insert_keys(&["a"; 2]).await;
    given_up(&outbox, 1, false).await;
    deferred(&outbox, 2, Duration::ZERO).await;
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [2]);
    let all = DeadLetterFilter::default();
    let _ = outbox
        .database
        .retry_dead_letters(&all, None, 10)
        .await
        .unwrap();
    let settlement = Settlement {
        retry: vec![retry(2, Duration::ZERO)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    let (seqs, claim) = claim_due(&outbox).await;
    assert_eq!(seqs, [1]);
    let sample = outbox.database.sample(10).await.unwrap();
    assert_eq!(sample.backlog, 1);
    settle_whole(claim, &done(&[1])).await;
    assert_eq!(claim_due(&outbox).await.0, [2]);
}

#[tokio::test]
async fn what_waits_for_its_turn_is_neither_lag_nor_backlog_nor_due() {
    let outbox = three_dead_letters_retried().await;
    park_all(&outbox, &[4, 5]).await;
    let sample = outbox.database.sample(10).await.unwrap();
    assert_eq!((sample.backlog, sample.oldest.unwrap().seq), (1, Seq(1)));
    let (_, claim) = claim_due(&outbox).await;
    let settlement = Settlement {
        retry: vec![retry(1, HOUR)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    let sample = outbox.database.sample(10).await.unwrap();
    assert_eq!((sample.backlog, sample.lag), (0, Duration::ZERO));
    assert_eq!(sample.deferred_retry.count, 3);
    assert_eq!(
        (sample.blocked.keys.count, sample.blocked.keys.capped),
        (1, false)
    );
    assert_eq!(sample.blocked.parked, 2);
    assert!(sample.blocked.longest > Duration::ZERO);
}

#[tokio::test]
async fn blocked_keys_are_counted_up_to_the_limit_and_listed_page_by_page_with_what_they_wait_for()
{
    let outbox = outbox().await;
    outbox.insert_keys(&["a", "b", "c", "d", "a", "c"]).await;
    let claim = outbox.claim_lanes().await;
    let settlement = Settlement {
        retry: vec![retry(1, HOUR), retry(3, Duration::ZERO)],
        dead: vec![dead(2)],
        blocking: vec![Seq(2)],
        ..Settlement::default()
    };
    settle_whole(claim.claim, &settlement).await;
    park_all(&outbox, &[5, 6]).await;
    let (_, claim) = claim_due(&outbox).await;
    settle_whole(claim, &done(&[3])).await;
    let sample = outbox.database.sample(2).await.unwrap();
    assert_eq!(
        (sample.blocked.keys.count, sample.blocked.keys.capped),
        (2, true)
    );

    let database = &outbox.database;
    let first = database.blocked_keys(None, 2).await.unwrap();
    let rest = database.blocked_keys(Some(&first[1].key), 2).await.unwrap();
    let all: Vec<_> = first.iter().chain(&rest).collect();
    let names: Vec<_> = all
        .iter()
        .map(|key| (key.key.as_str(), key.parked))
        .collect();
    assert_eq!(names, [("a", 1), ("b", 0), ("c", 1)]);
    let Head::Deferred { message, .. } = &all[0].head else {
        panic!("{all:?}");
    };
    assert_eq!((message.seq, message.attempts), (Seq(1), 3));
    assert_eq!(message.reason.as_deref(), Some("nacked"));
    assert_eq!(message.error.as_deref(), Some("queue full"));
    let Head::DeadLetter { message } = &all[1].head else {
        panic!("{all:?}");
    };
    assert_eq!((message.seq, message.attempts), (Seq(2), 5));
    assert_eq!(message.reason.as_deref(), Some("unroutable"));
    assert_eq!(message.error.as_deref(), Some("no queue"));
    let id: uuid::Uuid = outbox
        .client
        .query_one("SELECT id FROM outbox.dead_letters", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(message.id, id);
    assert_eq!(all[2].head, Head::Resuming);

    outbox.insert_keys(&["a", "a"]).await;
    let key = database.key("a", 1).await.unwrap();
    assert_eq!(key.blocked.as_ref(), Some(all[0]));
    let seqs = |messages: &[postrider_postgres::KeyMessage]| {
        messages.iter().map(|m| m.seq.0).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&key.messages), [7]);
    assert_eq!(seqs(&key.parked), [5]);
    assert_eq!(seqs(&key.deferred), [1]);
    assert!(seqs(&key.dead_letters).is_empty());
    assert_eq!(seqs(&database.key("b", 9).await.unwrap().dead_letters), [2]);
    assert_eq!(seqs(&database.key("d", 9).await.unwrap().messages), [4]);
    let free = database.key("nobody's", 9).await.unwrap();
    assert!(free.blocked.is_none() && free.messages.is_empty());
    // In a way that no trigger sees.
    outbox
        .client
        .batch_execute("SET session_replication_role = replica; DELETE FROM outbox.dead_letters; SET session_replication_role = origin")
        .await
        .unwrap();
    let key = database.key("b", 9).await.unwrap().blocked.unwrap();
    assert_eq!(key.head, Head::Missing { seq: Seq(2) });
}

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
