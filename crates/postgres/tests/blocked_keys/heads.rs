//! Several messages of one key that wait as heads: one after the other, by their `seq`.

use std::time::Duration;

use postrider_core::{Seq, Target};
use postrider_postgres::{DeadLetterFilter, Settlement};

use crate::fresh::keyed::{done, shown};
use crate::fresh::settling::{HOUR, retry, settle_whole};
use crate::fresh::{LIMITS, Outbox, client, next_due, outbox};
use crate::{claim_due, deferred, given_up, gives_up, park_all, release};

/// Several messages of a key were given up, since the relays were told to go on without them.
pub(crate) async fn three_dead_letters_retried() -> Outbox {
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
