//! Dead letters: found, sent again, thrown away, in bounded transactions.
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
use fresh::{DEADLINE, LIMITS, Outbox, client, outbox};
use postrider_core::{Origin, Payload, Reason, Seq};
use postrider_postgres::{ClaimLimits, DeadLetterFilter, Listener};
use tokio::time::timeout;
use uuid::Uuid;

const HOUR: Duration = Duration::from_secs(3600);

/// Dead letters numbered from 1: the odd ones to `e1` and nacked, the even ones to `e0` and unroutable,
/// each given up as many minutes ago as its number says.
async fn dead(outbox: &Outbox, rows: i32) {
    outbox
        .client
        .execute(
            "INSERT INTO outbox.dead_letters (seq, id, exchange, routing_key, payload_json, content_type, headers, supersede, created_at, \
                                              attempts, reason, error, given_up_at) \
             SELECT n, ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'e' || n % 2, 'k', to_json('body ' || n), 'application/json', \
                    '{\"n\": 1}', false, clock_timestamp() - interval '1 day', 5, \
                    CASE n % 2 WHEN 1 THEN 'nacked' ELSE 'unroutable' END, 'error ' || n, clock_timestamp() - n * interval '1 minute' \
             FROM generate_series(1, $1::int) AS n",
            &[&rows],
        )
        .await
        .unwrap();
}

async fn count(outbox: &Outbox, table: &str) -> i64 {
    outbox
        .client
        .query_one(&format!("SELECT count(*) FROM outbox.{table}"), &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn every_filter_selects_the_same_rows_for_every_command() {
    let outbox = outbox().await;
    dead(&outbox, 10).await;
    let database = &outbox.database;
    let any = DeadLetterFilter::default();
    for (filter, expected) in [
        (any.clone(), &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10][..]),
        (
            DeadLetterFilter {
                ids: vec![Uuid::from_u128(3), Uuid::from_u128(0x10), Uuid::nil()],
                ..any.clone()
            },
            &[3, 10],
        ),
        (
            DeadLetterFilter {
                seqs: vec![Seq(4), Seq(77), Seq(1)],
                ..any.clone()
            },
            &[1, 4],
        ),
        (
            DeadLetterFilter {
                exchange: Some("e1".into()),
                ..any.clone()
            },
            &[1, 3, 5, 7, 9],
        ),
        (
            DeadLetterFilter {
                reason: Some(Reason::Unroutable),
                ..any.clone()
            },
            &[2, 4, 6, 8, 10],
        ),
        (
            DeadLetterFilter {
                older_than: Some(Duration::from_secs(450)),
                ..any.clone()
            },
            &[8, 9, 10],
        ),
        (
            DeadLetterFilter {
                newer_than: Some(Duration::from_secs(210)),
                ..any.clone()
            },
            &[1, 2, 3],
        ),
        (
            DeadLetterFilter {
                exchange: Some("e1".into()),
                older_than: Some(Duration::from_secs(150)),
                newer_than: Some(Duration::from_secs(390)),
                ..any.clone()
            },
            &[3, 5],
        ),
        (
            DeadLetterFilter {
                exchange: Some("e1".into()),
                reason: Some(Reason::Unroutable),
                ..any.clone()
            },
            &[],
        ),
        (
            DeadLetterFilter {
                older_than: Some(Duration::MAX),
                ..any.clone()
            },
            &[],
        ),
    ] {
        let expected: Vec<i64> = expected.to_vec();
        let listed = database.dead_letters(&filter, None, 100).await.unwrap();
        let seqs: Vec<_> = listed.iter().map(|dead| dead.seq.0).collect();
        assert_eq!(seqs, expected, "{filter:?}");
        let exported = database
            .export_dead_letters(&filter, None, LIMITS)
            .await
            .unwrap();
        let summaries: Vec<_> = exported.iter().map(|dead| dead.summary.clone()).collect();
        assert_eq!(summaries, listed, "{filter:?}");
        let counted = database.count_dead_letters(&filter, 100).await.unwrap();
        assert_eq!(counted, expected.len() as u64, "{filter:?}");

        for discard in [true, false] {
            let changed = if discard {
                database.discard_dead_letters(&filter, None, 100).await
            } else {
                database.retry_dead_letters(&filter, None, 100).await
            }
            .unwrap();
            assert_eq!(changed.rows, expected.len() as u64, "{filter:?}");
            assert_eq!(changed.last.map(|seq| seq.0), expected.last().copied());
            let left = database.count_dead_letters(&filter, 100).await.unwrap();
            assert_eq!(left, 0, "{filter:?}");
            assert_eq!(
                count(&outbox, "dead_letters").await,
                10 - i64::try_from(expected.len()).unwrap()
            );
            outbox
                .client
                .batch_execute("TRUNCATE outbox.dead_letters, outbox.deferred")
                .await
                .unwrap();
            dead(&outbox, 10).await;
        }
    }
}

#[tokio::test]
async fn a_dead_letter_is_shown_whole_and_a_list_of_them_without_payloads() {
    let outbox = outbox().await;
    dead(&outbox, 3).await;
    let database = &outbox.database;
    let any = DeadLetterFilter::default();
    let listed = database.dead_letters(&any, Some(Seq(1)), 1).await.unwrap();
    let [summary] = &listed[..] else {
        panic!("{listed:?}")
    };
    assert_eq!((summary.seq, summary.id), (Seq(2), Uuid::from_u128(2)));
    assert_eq!(
        (summary.exchange.as_str(), summary.routing_key.as_str()),
        ("e0", "k")
    );
    assert_eq!(
        (
            summary.attempts,
            summary.reason.as_str(),
            summary.error.as_str()
        ),
        (5, "unroutable", "error 2")
    );
    let between = summary
        .given_up_at
        .duration_since(summary.created_at)
        .unwrap();
    assert!(between > 23 * HOUR && between < 24 * HOUR, "{between:?}");

    let whole = database
        .export_dead_letters(&any, Some(Seq(1)), LIMITS)
        .await
        .unwrap();
    assert_eq!(whole.len(), 2);
    assert_eq!(&whole[0].summary, summary);
    assert!(whole[0].payload == Payload::Fetched(br#""body 2""#.to_vec()));
    assert!(whole[0].payload_is_json);
    assert_eq!(whole[0].headers["n"], 1);
    assert_eq!(
        whole[0].properties.content_type.as_deref(),
        Some("application/json")
    );
    assert!(!format!("{:?}", whole[0]).contains("body"));
    // Bounded: the first always, then within the bytes; what is too large is told by its size.
    let one = ClaimLimits { bytes: 1, ..LIMITS };
    let page = database.export_dead_letters(&any, None, one).await.unwrap();
    assert_eq!(page.len(), 1);
    let tiny = ClaimLimits {
        max_message_bytes: 3,
        ..LIMITS
    };
    let page = database
        .export_dead_letters(&any, None, tiny)
        .await
        .unwrap();
    assert_eq!(page.len(), 3);
    assert!(matches!(page[0].payload, Payload::TooLarge { bytes } if bytes >= 8));
}

#[tokio::test]
async fn a_retried_dead_letter_is_due_at_once_uncharged_and_wakes_the_relays() {
    let outbox = outbox().await;
    dead(&outbox, 3).await;
    let mut listener = Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    let two = DeadLetterFilter {
        seqs: vec![Seq(2)],
        ..DeadLetterFilter::default()
    };
    let changed = outbox.database.retry_dead_letters(&two, None, 10).await;
    assert_eq!(changed.unwrap().rows, 1);
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
    let claim = outbox.claim(Origin::Deferred).await;
    assert_eq!(claim.len(), 1);
    let message = &claim.messages()[0];
    assert_eq!((message.seq, message.attempts), (Seq(2), 0));
    // Its age counts from the retry.
    assert!(message.age_at_claim < HOUR);
    claim.release().await.unwrap();
    let kept: String = outbox
        .client
        .query_one(
            "SELECT concat_ws(' ', cause, reason, error) FROM outbox.deferred",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(kept, "retry unroutable error 2");
    // Nothing found, nobody woken.
    let none = outbox.database.retry_dead_letters(&two, None, 10).await;
    assert_eq!(none.unwrap().rows, 0);
    outbox
        .client
        .batch_execute("NOTIFY postrider_outbox")
        .await
        .unwrap();
    timeout(DEADLINE, listener.next()).await.unwrap().unwrap();
    let nothing = futures_util::future::poll_immediate(std::pin::pin!(listener.next())).await;
    assert!(nothing.is_none());
}

#[tokio::test]
async fn a_hundred_thousand_dead_letters_are_listed_and_retried_in_bounded_transactions() {
    const ROWS: u64 = 100_000;
    const BATCH: u32 = 5_000;
    let outbox = outbox().await;
    dead(&outbox, i32::try_from(ROWS).unwrap()).await;
    let any = DeadLetterFilter::default();
    let mut after = None;
    let mut listed = 0;
    loop {
        let page = outbox
            .database
            .dead_letters(&any, after, 1_000)
            .await
            .unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.iter().map(|dead| dead.seq).is_sorted());
        after = Some(last.seq);
        listed += page.len() as u64;
    }
    assert_eq!(listed, ROWS);
    assert_eq!(
        outbox
            .database
            .count_dead_letters(&any, 1_000)
            .await
            .unwrap(),
        1_000
    );

    let mut after = None;
    let mut transactions = 0;
    let mut retried = 0;
    loop {
        let changed = outbox
            .database
            .retry_dead_letters(&any, after, BATCH)
            .await
            .unwrap();
        assert!(changed.rows <= u64::from(BATCH));
        if changed.rows == 0 {
            break;
        }
        retried += changed.rows;
        transactions += 1;
        after = changed.last;
        // Between two of them all is as it should be.
        if transactions == 7 {
            let left = ROWS - retried;
            assert_eq!(count(&outbox, "dead_letters").await as u64, left);
            assert_eq!(count(&outbox, "deferred").await as u64, retried);
        }
    }
    assert_eq!((retried, transactions), (ROWS, ROWS / u64::from(BATCH)));
    assert_eq!(count(&outbox, "deferred").await as u64, ROWS);
    assert_eq!(count(&outbox, "dead_letters").await, 0);
}

/// Without the place to go on from, a command would meet for ever what dies again behind it.
#[tokio::test]
async fn what_dies_again_during_a_retry_is_not_met_twice() {
    let outbox = outbox().await;
    dead(&outbox, 6).await;
    let any = DeadLetterFilter::default();
    let mut after = None;
    let mut retried = Vec::new();
    loop {
        let changed = outbox
            .database
            .retry_dead_letters(&any, after, 2)
            .await
            .unwrap();
        if changed.rows == 0 {
            break;
        }
        retried.push((changed.rows, changed.last.unwrap().0));
        after = changed.last;
        let claim = outbox.claim(Origin::Deferred).await;
        let settlement = postrider_postgres::Settlement {
            dead: claim
                .messages()
                .iter()
                .map(|message| postrider_postgres::Dead {
                    seq: message.seq,
                    attempts: 1,
                    reason: Reason::TooLarge,
                    error: String::new(),
                })
                .collect(),
            ..postrider_postgres::Settlement::default()
        };
        settle_whole(claim, &settlement).await;
    }
    assert_eq!(retried, [(2, 2), (2, 4), (2, 6)]);
    assert_eq!(count(&outbox, "dead_letters").await, 6);
}

#[tokio::test]
async fn two_commands_at_once_share_the_work_and_wait_for_nobody() {
    let outbox = outbox().await;
    dead(&outbox, 10).await;
    let somebody = client(&outbox.url).await;
    somebody
        .batch_execute("BEGIN; SELECT FROM outbox.dead_letters WHERE seq <= 4 FOR UPDATE")
        .await
        .unwrap();
    let any = DeadLetterFilter::default();
    let (one, other) = tokio::join!(
        outbox.database.retry_dead_letters(&any, None, 100),
        outbox.database.discard_dead_letters(&any, None, 100),
    );
    assert_eq!(one.unwrap().rows + other.unwrap().rows, 6);
    somebody.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(count(&outbox, "dead_letters").await, 4);
}

#[tokio::test]
async fn retention_deletes_what_has_been_dead_for_longer_the_longest_first() {
    let outbox = outbox().await;
    dead(&outbox, 10).await;
    let retention = Duration::from_secs(330);
    let purged = outbox.database.purge_dead_letters(retention, 2).await;
    assert_eq!(purged.unwrap(), 2);
    let any = DeadLetterFilter::default();
    let left = outbox.database.dead_letters(&any, None, 100).await.unwrap();
    assert_eq!(left.last().unwrap().seq, Seq(8));
    for expected in [2, 1, 0] {
        let purged = outbox.database.purge_dead_letters(retention, 2).await;
        assert_eq!(purged.unwrap(), expected);
    }
    assert_eq!(count(&outbox, "dead_letters").await, 5);
}
