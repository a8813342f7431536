//! The messages of one exchange or route that wait for another try.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::settling::settle_whole;
use fresh::{LIMITS, Outbox, outbox};
use postrider_core::{Origin, Reason, Seq, Target};
use postrider_postgres::{Claim, ClaimLimits, Retry, Settlement};

fn exchange(exchange: &str) -> Target {
    Target::Exchange(exchange.to_owned())
}

fn route(exchange: &str, routing_key: &str) -> Target {
    Target::Route {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
    }
}

/// Deferred rows: place, exchange, routing key, minutes until they are due, cause.
async fn deferred(outbox: &Outbox, rows: &[(i64, &str, &str, i32, &str)]) {
    for (seq, exchange, routing_key, minutes, cause) in rows {
        outbox
            .client
            .execute(
                "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, \
                     attempts, due_at, cause) \
                 VALUES ($1, gen_random_uuid(), $2, $3, '{}', '{}', false, clock_timestamp(), 3, \
                     clock_timestamp() + $4::int * interval '1 minute', $5)",
                &[seq, exchange, routing_key, minutes, cause],
            )
            .await
            .unwrap();
    }
}

async fn mixed() -> Outbox {
    let outbox = outbox().await;
    deferred(
        &outbox,
        &[
            (1, "orders", "b", 60, "retry"),
            (2, "orders", "b", -5, "retry"),
            (3, "orders", "a", 90, "retry"),
            (4, "orders", "b", 30, "retry"),
            (5, "orders", "b", 1, "scheduled"),
            (6, "orders", "b", -9, "scheduled"),
            (7, "Orders", "b", 10, "retry"),
            (8, "", "b", 10, "retry"),
            (9, "orders", "", 10, "retry"),
        ],
    )
    .await;
    outbox
}

fn seqs(claim: &Claim) -> Vec<i64> {
    claim
        .messages()
        .iter()
        .map(|message| message.seq.0)
        .collect()
}

async fn claimed(outbox: &Outbox, target: &Target, rows: u32) -> Vec<i64> {
    let limits = ClaimLimits { rows, ..LIMITS };
    let claim = outbox
        .database
        .claim_of_target(target, limits, &[])
        .await
        .unwrap();
    let seqs = seqs(&claim);
    claim.release().await.unwrap();
    seqs
}

#[tokio::test]
async fn a_claim_of_a_target_takes_what_waits_for_another_try_due_or_not_and_nothing_of_others() {
    let outbox = mixed().await;
    for (target, all) in [
        (route("orders", "b"), &[2, 4, 1][..]),
        (route("orders", ""), &[9]),
        (route("", "b"), &[8]),
        (route("orders", "c"), &[]),
        (exchange("orders"), &[2, 9, 4, 1, 3]),
        (exchange("Orders"), &[7]),
        (exchange(""), &[8]),
        (exchange("none"), &[]),
    ] {
        assert_eq!(claimed(&outbox, &target, 500).await, all, "{target}");
    }
    // The first due of a route, the first key of an exchange.
    assert_eq!(claimed(&outbox, &route("orders", "b"), 2).await, [2, 4]);
    assert_eq!(claimed(&outbox, &exchange("orders"), 2).await, [9, 3]);
}

#[tokio::test]
async fn a_claim_of_a_target_is_bounded_locked_and_settled_as_any_other() {
    let outbox = mixed().await;
    let target = route("orders", "b");
    let two = ClaimLimits { rows: 2, ..LIMITS };
    let claim = outbox
        .database
        .claim_of_target(&target, two, &[])
        .await
        .unwrap();
    assert_eq!(seqs(&claim), [2, 4]);
    assert!(claim.reached_limit());
    let first = &claim.messages()[0];
    assert_eq!((first.attempts, first.origin), (3, Origin::Deferred));
    assert!(first.age_at_claim >= Duration::from_secs(300));
    assert_eq!(claim.messages()[1].age_at_claim, Duration::ZERO);

    // Neither a prober nor a worker of another relay gets them.
    assert_eq!(claimed(&outbox, &target, 2).await, [1]);
    let worker = outbox.claim(Origin::Deferred).await;
    assert_eq!(seqs(&worker), [6]);
    worker.release().await.unwrap();

    let settlement = Settlement {
        done: vec![Seq(2)],
        retry: vec![Retry {
            seq: Seq(4),
            after: Duration::from_secs(7200),
            attempts: 3,
            reason: Reason::Nacked,
            error: "queue full".to_owned(),
        }],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(claimed(&outbox, &target, 500).await, [1, 4]);

    let a_byte = ClaimLimits { bytes: 1, ..LIMITS };
    let claim = outbox
        .database
        .claim_of_target(&target, a_byte, &[])
        .await
        .unwrap();
    assert_eq!((seqs(&claim), claim.untaken().is_some()), (vec![1], true));
    claim.release().await.unwrap();
}

/// Which rows are due, and how many attempts all have together.
async fn due(outbox: &Outbox) -> (Vec<i64>, i64) {
    let row = outbox
        .client
        .query_one(
            "SELECT array_agg(seq ORDER BY seq) FILTER (WHERE due_at <= clock_timestamp()), sum(attempts) FROM outbox.deferred",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn releasing_a_target_makes_due_what_waits_for_another_try_and_nothing_of_others() {
    let outbox = mixed().await;
    let before = "SELECT due_at FROM outbox.deferred WHERE seq = 2";
    let earlier: std::time::SystemTime = outbox.client.query_one(before, &[]).await.unwrap().get(0);
    let route = route("orders", "b");
    assert_eq!(outbox.database.release_target(&route, 10).await.unwrap(), 2);
    assert_eq!(due(&outbox).await, (vec![1, 2, 4, 6], 27));
    let later: std::time::SystemTime = outbox.client.query_one(before, &[]).await.unwrap().get(0);
    assert_eq!(earlier, later, "what is due keeps its place");

    let orders = exchange("orders");
    assert_eq!(
        outbox.database.release_target(&orders, 10).await.unwrap(),
        2
    );
    assert_eq!(due(&outbox).await, (vec![1, 2, 3, 4, 6, 9], 27));
    let none = exchange("none");
    assert_eq!(outbox.database.release_target(&none, 10).await.unwrap(), 0);
}

#[tokio::test]
async fn releasing_a_target_in_batches_ends_and_waits_for_no_claim() {
    let outbox = outbox().await;
    let rows: Vec<_> = (1..=10).map(|seq| (seq, "e", "k", 60, "retry")).collect();
    deferred(&outbox, &rows).await;
    let target = route("e", "k");
    let one = ClaimLimits { rows: 1, ..LIMITS };
    let claim = outbox
        .database
        .claim_of_target(&target, one, &[Seq(1)])
        .await;
    let claim = claim.unwrap();
    assert_ne!(seqs(&claim), [1]);
    claim.release().await.unwrap();
    let claim = outbox
        .database
        .claim_of_target(&target, one, &[])
        .await
        .unwrap();
    assert_eq!(seqs(&claim), [1]);
    let mut released = Vec::new();
    for _ in 0..4 {
        released.push(outbox.database.release_target(&target, 4).await.unwrap());
    }
    assert_eq!(released, [4, 4, 1, 0]);
    claim.release().await.unwrap();
    assert_eq!(outbox.database.release_target(&target, 4).await.unwrap(), 1);
    assert_eq!(due(&outbox).await.0, (1..=10).collect::<Vec<_>>());
}
