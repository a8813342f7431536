//! What lag, backlog and listings say of blocked keys.

use std::time::Duration;

use postrider_core::Seq;
use postrider_postgres::{Head, Settlement};

use crate::fresh::keyed::done;
use crate::fresh::outbox;
use crate::fresh::settling::{HOUR, dead, retry, settle_whole};
use crate::heads::three_dead_letters_retried;
use crate::{claim_due, park_all};

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
