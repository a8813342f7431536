//! Settling: what moves where, whole or not at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::settling::{HOUR, all_kinds, contents, dead, places, retry, settle_whole, text};
use fresh::{LIMITS, claim_within, fetched, outbox, until};
use postrider_core::{Origin, Seq};
use postrider_postgres::{ClaimLimits, Database, Error, Retry, Settings, Settled, Settlement};

#[tokio::test]
async fn every_move_keeps_the_place_the_id_the_time_and_all_that_is_sent() {
    let outbox = outbox().await;
    all_kinds(&outbox).await;
    let before = contents(&outbox, "messages").await;
    let mut claim = outbox.claim(Origin::Messages).await;
    let first = claim.take_messages();
    let settlement = Settlement {
        retry: (1..=5).map(|seq| retry(seq, Duration::ZERO)).collect(),
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(places(&outbox).await, "|1,2,3,4,5|");
    assert_eq!(contents(&outbox, "deferred").await, before);

    let mut claim = outbox.claim(Origin::Deferred).await;
    let again = claim.take_messages();
    assert_eq!(again.len(), 5);
    for (first, again) in first.iter().zip(&again) {
        assert_eq!((first.attempts, first.origin), (0, Origin::Messages));
        assert_eq!((again.attempts, again.origin), (3, Origin::Deferred));
        assert_eq!((first.seq, first.id), (again.seq, again.id));
        assert_eq!(fetched(first), fetched(again));
        assert_eq!(first.headers, again.headers);
        assert_eq!(first.properties, again.properties);
        assert_eq!(first.created_at_unix, again.created_at_unix);
    }
    // In place.
    settle_whole(claim, &settlement).await;
    assert_eq!(contents(&outbox, "deferred").await, before);

    let claim = outbox.claim(Origin::Deferred).await;
    let settlement = Settlement {
        dead: (1..=5).map(dead).collect(),
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(places(&outbox).await, "||1,2,3,4,5");
    assert_eq!(contents(&outbox, "dead_letters").await, before);

    let moved = outbox
        .database
        .retry_dead_letters(&postrider_postgres::DeadLetterFilter::default(), None, 100)
        .await
        .unwrap();
    assert_eq!((moved.rows, moved.last), (5, Some(Seq(5))));
    assert_eq!(places(&outbox).await, "|1,2,3,4,5|");
    assert_eq!(contents(&outbox, "deferred").await, before);
}

#[tokio::test]
async fn one_settle_deletes_defers_gives_up_and_leaves() {
    let outbox = outbox().await;
    outbox.insert(5).await;
    let claim = outbox.claim(Origin::Messages).await;
    let settlement = Settlement {
        done: vec![Seq(4), Seq(1)],
        retry: vec![Retry {
            error: format!("\0{}", "é".repeat(2000)),
            ..retry(2, HOUR)
        }],
        dead: vec![dead(3)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(places(&outbox).await, "5|2|3");
    assert_eq!(
        text(
            &outbox,
            "SELECT (attempts, cause, reason, char_length(error), due_at - deferred_at BETWEEN interval '59 minutes' AND interval '1 hour')::text FROM outbox.deferred"
        )
        .await,
        "(3,retry,nacked,1000,t)"
    );
    assert_eq!(
        text(
            &outbox,
            "SELECT (attempts, reason, error, given_up_at > created_at)::text FROM outbox.dead_letters"
        )
        .await,
        "(5,unroutable,\"no queue\",t)"
    );
    // Of the deferred table the same.
    outbox
        .client
        .batch_execute("UPDATE outbox.deferred SET due_at = clock_timestamp()")
        .await
        .unwrap();
    outbox
        .client
        .batch_execute(
            "INSERT INTO outbox.deferred SELECT 100 + n, d.id, d.exchange, d.routing_key, d.payload, d.payload_json, d.content_type, d.headers, \
                    d.ordering_key, d.type, d.content_encoding, d.correlation_id, d.reply_to, d.app_id, d.priority, d.expiration, \
                    d.supersede, d.created_at, 1, d.due_at, 'retry', 'nacked', 'x' FROM outbox.deferred AS d, generate_series(1, 3) AS n",
        )
        .await
        .unwrap();
    let claim = outbox.claim(Origin::Deferred).await;
    assert_eq!(claim.len(), 4);
    let settlement = Settlement {
        done: vec![Seq(103)],
        retry: vec![retry(101, HOUR)],
        dead: vec![dead(2)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    assert_eq!(places(&outbox).await, "5|101,102|2,3");
    assert_eq!(
        text(
            &outbox,
            "SELECT (seq, attempts, due_at > clock_timestamp())::text FROM outbox.deferred ORDER BY seq"
        )
        .await,
        "(101,3,t) (102,1,f)"
    );
}

#[tokio::test]
async fn a_settle_with_a_row_of_another_claim_or_two_fates_for_one_changes_nothing() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    let limits = ClaimLimits { rows: 2, ..LIMITS };
    let of = |done: Vec<i64>, retries: Vec<i64>, gone: Vec<i64>| Settlement {
        done: done.into_iter().map(Seq).collect(),
        retry: retries.into_iter().map(|seq| retry(seq, HOUR)).collect(),
        dead: gone.into_iter().map(dead).collect(),
        ..Settlement::default()
    };
    for (settlement, twice) in [
        (of(vec![1, 3], vec![], vec![]), None),
        (of(vec![1], vec![3], vec![]), None),
        (of(vec![1], vec![2], vec![3]), None),
        (of(vec![1, 1], vec![2], vec![]), Some(Seq(1))),
        (of(vec![1], vec![1], vec![]), Some(Seq(1))),
        (of(vec![1], vec![2], vec![2]), Some(Seq(2))),
    ] {
        let claim = outbox.claim_within(limits, Origin::Messages).await;
        assert_eq!(claim.len(), 2);
        match (claim.settle(&settlement).await.unwrap_err(), twice) {
            (Error::NotClaimed(Seq(3)), None) => {}
            (Error::NamedTwice(seq), Some(twice)) if seq == twice => {}
            (other, _) => panic!("{settlement:?}: {other}"),
        }
        assert_eq!(places(&outbox).await, "1,2,3||");
    }
}

/// The session ends, or a statement fails, in the middle of the moves.
#[tokio::test]
async fn a_settle_that_does_not_commit_moves_nothing() {
    let outbox = outbox().await;
    outbox.insert(3).await;
    let settlement = Settlement {
        done: vec![Seq(1)],
        retry: vec![retry(2, HOUR)],
        dead: vec![dead(3)],
        ..Settlement::default()
    };
    for table in ["deferred", "dead_letters"] {
        outbox
            .client
            .batch_execute(&format!(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
                 CREATE TRIGGER fail AFTER INSERT ON outbox.{table} FOR EACH ROW EXECUTE FUNCTION fail()"
            ))
            .await
            .unwrap();
        let claim = outbox.claim(Origin::Messages).await;
        assert_eq!(claim.len(), 3);
        claim.settle(&settlement).await.unwrap_err();
        assert_eq!(places(&outbox).await, "1,2,3||", "{table}");
        outbox
            .client
            .batch_execute("DROP FUNCTION fail CASCADE")
            .await
            .unwrap();
        until("the rows are free", || async {
            let claim = outbox.claim(Origin::Messages).await;
            let all = claim.len() == 3;
            claim.release().await.unwrap();
            all
        })
        .await;
    }
}

#[tokio::test]
async fn a_move_that_the_database_refuses_moves_nothing_and_still_deletes_what_is_done() {
    for table in ["deferred", "dead_letters"] {
        let outbox = outbox().await;
        outbox.insert(3).await;
        outbox
            .client
            .batch_execute(&format!(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'disk full'; END $$;
                 CREATE TRIGGER fail AFTER INSERT ON outbox.{table} FOR EACH ROW EXECUTE FUNCTION fail()"
            ))
            .await
            .unwrap();
        let claim = outbox.claim(Origin::Messages).await;
        let settlement = Settlement {
            done: vec![Seq(1)],
            retry: vec![retry(2, HOUR)],
            dead: vec![dead(3)],
            ..Settlement::default()
        };
        match claim.settle(&settlement).await.unwrap() {
            Settled::NothingMoved(error) => {
                assert!(error.to_string().contains("disk full"), "{error}");
            }
            Settled::Whole => panic!("moved into {table}"),
        }
        assert_eq!(places(&outbox).await, "2,3||", "{table}");
        let again = outbox.claim(Origin::Messages).await;
        assert_eq!(again.len(), 2, "the rows are free");
    }
}

#[tokio::test]
async fn claims_of_many_workers_from_both_tables_move_every_row_and_lose_none() {
    const ROWS: i64 = 400;
    let outbox = outbox().await;
    outbox.insert(i32::try_from(ROWS).unwrap()).await;
    let database = Database::new(Settings {
        connections: 8,
        ..Settings::new(&outbox.url)
    })
    .unwrap();
    let workers: Vec<_> = (0..6)
        .map(|worker| {
            let database = database.clone();
            tokio::spawn(async move {
                let limits = ClaimLimits { rows: 7, ..LIMITS };
                let origin = if worker % 2 == 0 {
                    Origin::Messages
                } else {
                    Origin::Deferred
                };
                let end = std::time::Instant::now() + fresh::DEADLINE;
                let mut sent = 0_i64;
                loop {
                    assert!(std::time::Instant::now() < end, "never finished");
                    let claim = claim_within(&database, limits, origin).await;
                    if claim.is_empty() {
                        let sample = database.sample(10).await.unwrap();
                        if sample.backlog == 0 && sample.deferred_retry.count == 0 {
                            return sent;
                        }
                        tokio::task::yield_now().await;
                        continue;
                    }
                    let mut settlement = Settlement::default();
                    for message in claim.messages() {
                        // Each third is done, each third given up, both after a few tries.
                        let seq = message.seq.0;
                        if i64::from(message.attempts) < seq % 4 {
                            settlement.retry.push(Retry {
                                attempts: message.attempts + 1,
                                ..retry(seq, Duration::from_millis(1))
                            });
                        } else if seq % 3 == 0 {
                            settlement.dead.push(dead(seq));
                        } else {
                            settlement.done.push(message.seq);
                            sent += 1;
                        }
                    }
                    settle_whole(claim, &settlement).await;
                }
            })
        })
        .collect();
    let mut sent = 0;
    for worker in workers {
        sent += worker.await.unwrap();
    }
    let given_up: i64 = outbox
        .client
        .query_one("SELECT count(*) FROM outbox.dead_letters", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(given_up, ROWS / 3);
    assert_eq!(sent, ROWS - ROWS / 3);
}
