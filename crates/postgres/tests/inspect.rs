//! What a sample tells.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use postrider_postgres::ClaimFrom;
use std::time::Duration;

use fresh::{LIMITS, outbox};

#[tokio::test]
async fn an_empty_outbox_has_no_lag() {
    let outbox = outbox().await;
    let sample = outbox.database.sample(10).await.unwrap();
    assert_eq!(sample.lag, Duration::ZERO);
    assert_eq!((sample.backlog, sample.backlog_capped), (0, false));
    assert_eq!(sample.oldest, None);
}

#[tokio::test]
async fn lag_is_the_age_of_the_oldest_message_by_the_databases_clock_claimed_or_not() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, created_at) VALUES ('orders', 'k1', '', clock_timestamp() - interval '1 hour')",
        )
        .await
        .unwrap();
    outbox.insert(2).await;
    let claim = outbox
        .database
        .claim_fresh(LIMITS, &[], ClaimFrom::default())
        .await
        .unwrap();
    let sample = outbox.database.sample(10).await.unwrap();
    let hour = Duration::from_secs(3600);
    assert!(
        sample.lag >= hour && sample.lag < hour + Duration::from_secs(60),
        "{sample:?}"
    );
    let oldest = sample.oldest.unwrap();
    assert_eq!(oldest.seq.0, 1);
    assert_eq!(
        (oldest.exchange.as_str(), oldest.routing_key.as_str()),
        ("orders", "k1")
    );
    assert_eq!(oldest.age, sample.lag);
    assert_eq!(sample.backlog, 3);
    claim.release().await.unwrap();
}

#[tokio::test]
async fn the_backlog_is_exact_up_to_its_limit_and_then_the_limit_with_a_flag() {
    let outbox = outbox().await;
    outbox.insert(10).await;
    for (limit, backlog, capped) in [(9, 9, true), (10, 10, false), (11, 10, false), (0, 0, true)] {
        let sample = outbox.database.sample(limit).await.unwrap();
        assert_eq!(
            (sample.backlog, sample.backlog_capped),
            (backlog, capped),
            "limit {limit}"
        );
    }
}

#[tokio::test]
async fn a_message_dated_in_the_future_has_no_lag() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, created_at) VALUES ('e', 'k', '', clock_timestamp() + interval '1 hour')",
        )
        .await
        .unwrap();
    assert_eq!(
        outbox.database.sample(10).await.unwrap().lag,
        Duration::ZERO
    );
}
