//! Deferred messages: how they come, when they are claimed, what becomes of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::{LIMITS, Outbox, done, fetched, next_due, outbox, until};
use postrider_core::{Origin, Payload, Reason, Seq};
use postrider_postgres::{
    Cause, ClaimLimits, Database, Dead, DeferredFilter, Error, Retry, Settings, Settled, Settlement,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Everything that moves with a message, as text.
const COLUMNS: &str = "seq, id, exchange, routing_key, encode(payload, 'hex'), payload_json::text, content_type, headers, \
     ordering_key, type, content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede, created_at";

fn retry(seq: i64, after: Duration) -> Retry {
    Retry {
        seq: Seq(seq),
        after,
        attempts: 3,
        reason: Reason::Nacked,
        error: "queue full".to_owned(),
    }
}

fn dead(seq: i64) -> Dead {
    Dead {
        seq: Seq(seq),
        attempts: 5,
        reason: Reason::Unroutable,
        error: "no queue".to_owned(),
    }
}

async fn text(outbox: &Outbox, sql: &str) -> String {
    let rows = outbox.client.simple_query(sql).await.unwrap();
    rows.iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some(row.get(0).unwrap_or("null").to_owned())
            }
            _ => None,
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// All that moves, of all messages in the table.
async fn contents(outbox: &Outbox, table: &str) -> String {
    text(
        outbox,
        &format!("SELECT ({COLUMNS})::text FROM outbox.{table} ORDER BY seq"),
    )
    .await
}

/// Where each message is: `messages|deferred|dead_letters`, by their places.
async fn places(outbox: &Outbox) -> String {
    text(
        outbox,
        "SELECT concat_ws('|', (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.messages), \
                               (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.deferred), \
                               (SELECT coalesce(string_agg(seq::text, ',' ORDER BY seq), '') FROM outbox.dead_letters))",
    )
    .await
}

async fn all_kinds(outbox: &Outbox) {
    outbox
        .client
        .batch_execute(
            r#"INSERT INTO outbox.messages
                   (id, exchange, routing_key, payload, content_type, headers, type, content_encoding,
                    correlation_id, reply_to, app_id, priority, expiration, created_at)
               VALUES
                   ('00000000-0000-0000-0000-000000000001', 'orders', 'order.created', '\x00ff10', 'application/octet-stream',
                    '{"CC": ["a"], "d": 1.5, "s": "é"}', 'created', 'gzip', 'c-1', 'answers', 'shop', 255, 315360000000, '2001-02-03 04:05:06.789+00');
               INSERT INTO outbox.messages (exchange, routing_key, payload_json, content_type) VALUES ('', 'q', '{"b" :1,  "a":2, "a": "C:\\new"}', NULL);
               INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('', 'q', '');
               INSERT INTO outbox.messages (exchange, routing_key, payload) VALUES ('', 'big', convert_to(repeat('xyz', 500000), 'UTF8'));
               INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('', 'big', to_json(repeat('é', 500000)))"#,
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn every_move_keeps_the_place_the_id_the_time_and_all_that_is_sent() {
    let outbox = outbox().await;
    all_kinds(&outbox).await;
    let before = contents(&outbox, "messages").await;
    let mut claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    let first = claim.take_messages();
    let settlement = Settlement {
        retry: (1..=5).map(|seq| retry(seq, Duration::ZERO)).collect(),
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    assert_eq!(places(&outbox).await, "|1,2,3,4,5|");
    assert_eq!(contents(&outbox, "deferred").await, before);

    let mut claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Deferred)
        .await
        .unwrap();
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
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    assert_eq!(contents(&outbox, "deferred").await, before);

    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Deferred)
        .await
        .unwrap();
    let settlement = Settlement {
        dead: (1..=5).map(dead).collect(),
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
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
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    let settlement = Settlement {
        done: vec![Seq(4), Seq(1)],
        retry: vec![Retry {
            error: format!("\0{}", "é".repeat(2000)),
            ..retry(2, HOUR)
        }],
        dead: vec![dead(3)],
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
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
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Deferred)
        .await
        .unwrap();
    assert_eq!(claim.len(), 4);
    let settlement = Settlement {
        done: vec![Seq(103)],
        retry: vec![retry(101, HOUR)],
        dead: vec![dead(2)],
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
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
    };
    for (settlement, twice) in [
        (of(vec![1, 3], vec![], vec![]), None),
        (of(vec![1], vec![3], vec![]), None),
        (of(vec![1], vec![2], vec![3]), None),
        (of(vec![1, 1], vec![2], vec![]), Some(Seq(1))),
        (of(vec![1], vec![1], vec![]), Some(Seq(1))),
        (of(vec![1], vec![2], vec![2]), Some(Seq(2))),
    ] {
        let claim = outbox
            .database
            .claim(limits, &[], Origin::Messages)
            .await
            .unwrap();
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
        let claim = outbox
            .database
            .claim(LIMITS, &[], Origin::Messages)
            .await
            .unwrap();
        assert_eq!(claim.len(), 3);
        claim.settle(&settlement).await.unwrap_err();
        assert_eq!(places(&outbox).await, "1,2,3||", "{table}");
        outbox
            .client
            .batch_execute("DROP FUNCTION fail CASCADE")
            .await
            .unwrap();
        until("the rows are free", || async {
            let claim = outbox
                .database
                .claim(LIMITS, &[], Origin::Messages)
                .await
                .unwrap();
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
        let claim = outbox
            .database
            .claim(LIMITS, &[], Origin::Messages)
            .await
            .unwrap();
        let settlement = Settlement {
            done: vec![Seq(1)],
            retry: vec![retry(2, HOUR)],
            dead: vec![dead(3)],
        };
        match claim.settle(&settlement).await.unwrap() {
            Settled::NothingMoved(error) => {
                assert!(error.to_string().contains("disk full"), "{error}");
            }
            Settled::Whole => panic!("moved into {table}"),
        }
        assert_eq!(places(&outbox).await, "2,3||", "{table}");
        let again = outbox
            .database
            .claim(LIMITS, &[], Origin::Messages)
            .await
            .unwrap();
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
                    let claim = database.claim(limits, &[], origin).await.unwrap();
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
                    assert!(matches!(
                        claim.settle(&settlement).await.unwrap(),
                        Settled::Whole
                    ));
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

#[tokio::test]
async fn a_deferred_message_is_claimed_when_it_is_due_and_not_before() {
    let outbox = outbox().await;
    assert_eq!(next_due(&outbox.database).await, None);
    outbox
        .client
        .batch_execute(
            "SELECT outbox.publish('e', 'late', '1', deliver_at => clock_timestamp() + interval '1 hour');
             SELECT outbox.publish('e', 'soon', '1', deliver_at => clock_timestamp() + interval '1 second')",
        )
        .await
        .unwrap();
    let due_at: std::time::SystemTime = outbox
        .client
        .query_one("SELECT min(due_at) FROM outbox.deferred", &[])
        .await
        .unwrap()
        .get(0);
    let wait = next_due(&outbox.database).await.unwrap();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    until("it is claimed", || async {
        let claim = outbox
            .database
            .claim(LIMITS, &[], Origin::Deferred)
            .await
            .unwrap();
        let now: std::time::SystemTime = outbox
            .client
            .query_one("SELECT clock_timestamp()", &[])
            .await
            .unwrap()
            .get(0);
        let keys: Vec<_> = claim
            .messages()
            .iter()
            .map(|message| message.routing_key.clone())
            .collect();
        if let Some(message) = claim.messages().first() {
            assert!(now >= due_at);
            assert!(message.age_at_claim <= now.duration_since(due_at).unwrap());
        }
        claim.release().await.unwrap();
        assert!(keys.is_empty() || keys == ["soon"], "{keys:?}");
        keys == ["soon"]
    })
    .await;
    assert_eq!(next_due(&outbox.database).await, Some(Duration::ZERO));
}

#[tokio::test]
async fn due_messages_come_in_the_order_of_their_times_and_age_from_them() {
    let outbox = outbox().await;
    outbox.insert(4).await;
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    let settlement = Settlement {
        retry: (1..=4).map(|seq| retry(seq, HOUR)).collect(),
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    outbox
        .client
        .batch_execute(
            "UPDATE outbox.deferred SET due_at = clock_timestamp() - seq * interval '1 minute', created_at = clock_timestamp() - interval '1 day' WHERE seq < 4",
        )
        .await
        .unwrap();
    let limits = ClaimLimits { rows: 2, ..LIMITS };
    let claim = outbox
        .database
        .claim(limits, &[], Origin::Deferred)
        .await
        .unwrap();
    let seqs: Vec<_> = claim.messages().iter().map(|message| message.seq).collect();
    assert_eq!(seqs, [Seq(3), Seq(2)]);
    assert!(claim.reached_limit());
    let age = claim.messages()[0].age_at_claim.as_secs();
    assert!((180..240).contains(&age), "{age}");
    // What one has locked, another skips; what rests is left out.
    let other = outbox
        .database
        .claim(limits, &[], Origin::Deferred)
        .await
        .unwrap();
    assert_eq!(other.messages()[0].seq, Seq(1));
    other.release().await.unwrap();
    let resting = outbox
        .database
        .claim(limits, &[Seq(1)], Origin::Deferred)
        .await
        .unwrap();
    assert!(resting.is_empty());
    assert!(matches!(
        claim.settle(&done(&[Seq(2), Seq(3)])).await.unwrap(),
        Settled::Whole
    ));
    assert_eq!(places(&outbox).await, "|1,4|");
}

#[tokio::test]
async fn a_deferred_claim_is_bounded_by_bytes_as_any_other() {
    let outbox = outbox().await;
    all_kinds(&outbox).await;
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    let settlement = Settlement {
        retry: [4, 5].map(|seq| retry(seq, Duration::ZERO)).to_vec(),
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    let one = ClaimLimits { bytes: 1, ..LIMITS };
    let claim = outbox
        .database
        .claim(one, &[], Origin::Deferred)
        .await
        .unwrap();
    assert_eq!((claim.len(), claim.cut_by_bytes()), (1, true));
    claim.release().await.unwrap();
    let small = ClaimLimits {
        max_message_bytes: 1000,
        ..LIMITS
    };
    let claim = outbox
        .database
        .claim(small, &[], Origin::Deferred)
        .await
        .unwrap();
    assert!(claim.messages()[0].payload == Payload::TooLarge { bytes: 1_500_000 });
    claim.release().await.unwrap();
}

#[tokio::test]
async fn deliver_at_writes_straight_to_the_deferred_table_in_the_callers_transaction() {
    let outbox = outbox().await;
    let publish = r#"SELECT outbox.publish('orders', 'k', '{"b" :1}', headers => '{"n": 1}', type => 't',
        id => '00000000-0000-0000-0000-000000000007', priority => 5, app_id => 'shop', deliver_at => now() + interval '1 hour')"#;
    outbox
        .client
        .batch_execute(&format!("BEGIN; {publish}; ROLLBACK"))
        .await
        .unwrap();
    assert_eq!(places(&outbox).await, "||");
    outbox.client.batch_execute(publish).await.unwrap();
    outbox.insert(1).await;
    assert_eq!(places(&outbox).await, "3|2|");
    assert_eq!(
        text(
            &outbox,
            "SELECT (id, exchange, routing_key, payload_json, content_type, headers, type, priority, app_id, supersede, \
                     attempts, cause, reason, error, due_at > created_at)::text FROM outbox.deferred"
        )
        .await,
        r#"(00000000-0000-0000-0000-000000000007,orders,k,"{""b"" :1}",application/json,"{""n"": 1}",t,5,shop,f,0,scheduled,,,t)"#
    );
    // A time that has come makes an ordinary message.
    for deliver_at in ["clock_timestamp()", "'-infinity'", "NULL"] {
        outbox
            .client
            .batch_execute(&format!(
                "SELECT outbox.publish('e', 'k', '1', deliver_at => {deliver_at})"
            ))
            .await
            .unwrap();
    }
    assert_eq!(places(&outbox).await, "3,4,5,6|2|");
}

#[tokio::test]
async fn a_scheduled_message_is_held_to_the_rules_of_any_other() {
    let outbox = outbox().await;
    for (argument, constraint) in [
        ("priority => 256", "priority_within_0_to_255"),
        ("headers => '[]'", "headers_is_json_object"),
        (
            "reply_to => 'amq.rabbitmq.reply-to'",
            "reply_to_is_not_direct_reply_to",
        ),
        ("type => repeat('x', 256)", "type_at_most_255_bytes"),
    ] {
        let error = outbox
            .client
            .batch_execute(&format!(
                "SELECT outbox.publish('e', 'k', '1', deliver_at => now() + interval '1 hour', {argument})"
            ))
            .await
            .unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.constraint(), Some(constraint), "{argument}");
    }
    let missing: i64 = outbox
        .client
        .query_one(
            "SELECT count(*) FROM pg_constraint AS m WHERE m.conrelid = 'outbox.messages'::regclass AND m.contype = 'c' \
             AND NOT EXISTS (SELECT FROM pg_constraint AS d WHERE d.conrelid = 'outbox.deferred'::regclass \
                             AND d.conname = m.conname AND pg_get_constraintdef(d.oid) = pg_get_constraintdef(m.oid))",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(missing, 0);
}

#[tokio::test]
async fn a_scheduled_message_makes_its_own_commit_synchronous() {
    let outbox = outbox().await;
    for (before, during) in [("off", "on"), ("local", "local"), ("on", "on")] {
        outbox
            .client
            .batch_execute(&format!(
                "SET synchronous_commit = {before}; BEGIN; \
                 SELECT outbox.publish('e', 'k', '1', deliver_at => now() + interval '1 hour')"
            ))
            .await
            .unwrap();
        assert_eq!(text(&outbox, "SHOW synchronous_commit").await, during);
        outbox.client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(text(&outbox, "SHOW synchronous_commit").await, before);
    }
}

#[tokio::test]
async fn deferred_messages_are_listed_by_their_times_page_by_page_and_released_in_batches() {
    let outbox = outbox().await;
    outbox
        .client
        .batch_execute(
            "SELECT outbox.publish('e' || n % 2, 'k', '1', deliver_at => now() + (11 - n) * interval '1 hour') FROM generate_series(1, 10) AS n",
        )
        .await
        .unwrap();
    let all = DeferredFilter::default();
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = outbox.database.deferred(&all, after, 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.cursor());
        listed.extend(page.iter().map(|deferred| deferred.seq.0));
    }
    assert_eq!(listed, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
    let odd = DeferredFilter {
        exchange: Some("e1".to_owned()),
        cause: Some(Cause::Scheduled),
        ..DeferredFilter::default()
    };
    let page = outbox.database.deferred(&odd, None, 2).await.unwrap();
    assert_eq!(page[0].seq, Seq(9));
    assert_eq!(
        (page[0].attempts, page[0].reason.as_deref(), page[0].cause),
        (0, None, Cause::Scheduled)
    );
    for none in [
        DeferredFilter {
            cause: Some(Cause::Retry),
            ..DeferredFilter::default()
        },
        DeferredFilter {
            reason: Some(Reason::Nacked),
            ..DeferredFilter::default()
        },
        DeferredFilter {
            seqs: vec![Seq(77)],
            ..DeferredFilter::default()
        },
        DeferredFilter {
            ids: vec![uuid::Uuid::nil()],
            ..DeferredFilter::default()
        },
    ] {
        let page = outbox.database.deferred(&none, None, 10).await.unwrap();
        assert_eq!(page, []);
        let released = outbox.database.release_deferred(&none, None, 10);
        assert_eq!(released.await.unwrap().rows, 0);
    }

    let mut listener = postrider_postgres::Listener::connect(&outbox.database, "one", true)
        .await
        .unwrap();
    let first = outbox
        .database
        .release_deferred(&odd, None, 3)
        .await
        .unwrap();
    assert_eq!((first.rows, first.last), (3, Some(Seq(5))));
    tokio::time::timeout(fresh::DEADLINE, listener.next())
        .await
        .unwrap()
        .unwrap();
    let second = outbox.database.release_deferred(&odd, first.last, 3);
    assert_eq!(second.await.unwrap().rows, 2);
    let again = outbox.database.release_deferred(&odd, None, 3);
    assert_eq!(again.await.unwrap().rows, 0);
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Deferred)
        .await
        .unwrap();
    let mut seqs: Vec<_> = claim
        .messages()
        .iter()
        .map(|message| message.seq.0)
        .collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 3, 5, 7, 9]);
    claim.release().await.unwrap();
}

#[tokio::test]
async fn a_sample_counts_what_waits_by_its_cause_and_what_is_due_as_backlog() {
    let outbox = outbox().await;
    outbox.insert(6).await;
    outbox
        .client
        .batch_execute(
            "SELECT outbox.publish('e', 'k', '1', deliver_at => now() + interval '1 hour') FROM generate_series(1, 3)",
        )
        .await
        .unwrap();
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    let settlement = Settlement {
        done: vec![],
        retry: vec![retry(1, HOUR), retry(2, HOUR)],
        dead: vec![dead(3)],
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    let sample = outbox.database.sample(2).await.unwrap();
    let counts = |sample: &postrider_postgres::Sample| {
        [
            sample.deferred_retry,
            sample.deferred_scheduled,
            sample.dead_letters,
        ]
        .map(|counted| (counted.count, counted.capped))
    };
    assert_eq!(counts(&sample), [(2, false), (2, true), (1, false)]);
    assert_eq!((sample.backlog, sample.backlog_capped), (2, true));
    assert!(sample.lag < HOUR);
    assert_eq!(sample.oldest.unwrap().origin, Origin::Messages);

    // Two hours due, and a day old.
    outbox
        .client
        .batch_execute(
            "UPDATE outbox.deferred SET due_at = clock_timestamp() - interval '2 hours', created_at = clock_timestamp() - interval '1 day' WHERE seq = 2",
        )
        .await
        .unwrap();
    let sample = outbox.database.sample(10).await.unwrap();
    assert_eq!(counts(&sample), [(2, false), (3, false), (1, false)]);
    assert_eq!((sample.backlog, sample.backlog_capped), (4, false));
    assert!(
        sample.lag >= 2 * HOUR && sample.lag < 3 * HOUR,
        "{sample:?}"
    );
    let oldest = sample.oldest.unwrap();
    assert_eq!((oldest.origin, oldest.seq), (Origin::Deferred, Seq(2)));
}

/// A claimed due row counts as due: whoever finds nothing to claim has to pause.
#[tokio::test]
async fn the_next_due_time_does_not_look_at_locks() {
    let outbox = outbox().await;
    outbox.insert(1).await;
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Deferred)
        .await
        .unwrap();
    assert_eq!(claim.len(), 1);
    assert_eq!(next_due(&outbox.database).await, Some(Duration::ZERO));
    // And an operator's command waits for no relay.
    let released = outbox
        .database
        .release_deferred(&DeferredFilter::default(), None, 10)
        .await
        .unwrap();
    assert_eq!(released.rows, 0);
    claim.release().await.unwrap();
}

/// A place from which due rows are looked for holds only if no row appears before it. The trigger lets time pass
/// between the decision to defer and the row, and keeps the time from which on others can see the writer.
#[tokio::test]
async fn no_row_becomes_due_before_its_writer_could_be_seen() {
    let outbox = outbox().await;
    outbox.insert(2).await;
    let claim = outbox
        .database
        .claim(LIMITS, &[], Origin::Messages)
        .await
        .unwrap();
    outbox
        .client
        .batch_execute(
            "CREATE TABLE written (op text, early boolean);
             CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_sleep_until(nullif(current_setting('test.until', true), '')::timestamptz);
                 PERFORM set_config('test.seen', clock_timestamp()::text, true);
                 RETURN NULL;
             END $$;
             CREATE FUNCTION written() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.written VALUES (TG_OP, NEW.due_at < current_setting('test.seen')::timestamptz);
                 RETURN NEW;
             END $$;
             CREATE TRIGGER seen BEFORE INSERT OR UPDATE ON outbox.deferred FOR EACH STATEMENT EXECUTE FUNCTION seen();
             CREATE TRIGGER written BEFORE INSERT OR UPDATE ON outbox.deferred FOR EACH ROW EXECUTE FUNCTION written()",
        )
        .await
        .unwrap();
    let written = "SELECT coalesce(string_agg((op, early)::text, ' '), '') FROM written";
    let clear = "TRUNCATE written";

    // A time that is to come when it is looked at, and has come when the row is written.
    outbox
        .client
        .batch_execute(
            "SELECT set_config('test.until', (clock_timestamp() + interval '2 seconds')::text, false);
             SELECT outbox.publish('e', 'k', '1', deliver_at => current_setting('test.until')::timestamptz);
             RESET test.until",
        )
        .await
        .unwrap();
    assert_eq!(text(&outbox, written).await, "(INSERT,f)");
    outbox.client.batch_execute(clear).await.unwrap();

    let at_once = Settlement {
        retry: vec![retry(1, Duration::ZERO), retry(2, Duration::ZERO)],
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&at_once).await.unwrap(),
        Settled::Whole
    ));
    assert_eq!(text(&outbox, written).await, "(INSERT,f) (INSERT,f)");
    outbox.client.batch_execute(clear).await.unwrap();

    let claim = outbox
        .database
        .claim(LIMITS, &[Seq(3)], Origin::Deferred)
        .await
        .unwrap();
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        dead: vec![dead(2)],
        ..Settlement::default()
    };
    assert!(matches!(
        claim.settle(&settlement).await.unwrap(),
        Settled::Whole
    ));
    assert_eq!(text(&outbox, written).await, "(UPDATE,f)");
    outbox.client.batch_execute(clear).await.unwrap();

    let all = postrider_postgres::DeadLetterFilter::default();
    let moved = outbox.database.retry_dead_letters(&all, None, 10);
    assert_eq!(moved.await.unwrap().rows, 1);
    assert_eq!(text(&outbox, written).await, "(INSERT,f)");

    let later = "ALTER TABLE outbox.deferred DISABLE TRIGGER USER;
                 UPDATE outbox.deferred SET due_at = clock_timestamp() + interval '1 hour' WHERE cause = 'retry';
                 ALTER TABLE outbox.deferred ENABLE TRIGGER USER; TRUNCATE written";
    outbox.client.batch_execute(later).await.unwrap();
    let every = DeferredFilter::default();
    let released = outbox.database.release_deferred(&every, None, 10);
    assert_eq!(released.await.unwrap().rows, 2);
    assert_eq!(text(&outbox, written).await, "(UPDATE,f) (UPDATE,f)");
    outbox.client.batch_execute(later).await.unwrap();
    let target = postrider_core::Target::Exchange("e".to_owned());
    let released = outbox.database.release_target(&target, 10);
    assert_eq!(released.await.unwrap(), 2);
    assert_eq!(text(&outbox, written).await, "(UPDATE,f) (UPDATE,f)");
}
