//! Deferred messages: when they are claimed, and how they are found and let go early.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;

use std::time::Duration;

use fresh::settling::{HOUR, all_kinds, dead, places, retry, settle_whole, text};
use fresh::{LIMITS, done, next_due, outbox, until};
use postrider_core::{Origin, Payload, Reason, Seq};
use postrider_postgres::{Cause, ClaimLimits, DeferredFilter, Settlement};

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
        let claim = outbox.claim(Origin::Deferred).await;
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
    let claim = outbox.claim(Origin::Messages).await;
    let settlement = Settlement {
        retry: (1..=4).map(|seq| retry(seq, HOUR)).collect(),
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    outbox
        .client
        .batch_execute(
            "UPDATE outbox.deferred SET due_at = clock_timestamp() - seq * interval '1 minute', created_at = clock_timestamp() - interval '1 day' WHERE seq < 4",
        )
        .await
        .unwrap();
    let limits = ClaimLimits { rows: 2, ..LIMITS };
    let claim = outbox.claim_within(limits, Origin::Deferred).await;
    let seqs: Vec<_> = claim.messages().iter().map(|message| message.seq).collect();
    assert_eq!(seqs, [Seq(3), Seq(2)]);
    assert!(claim.reached_limit());
    let age = claim.messages()[0].age_at_claim.as_secs();
    assert!((180..240).contains(&age), "{age}");
    // What one has locked, another skips; what rests is left out.
    let other = outbox.claim_within(limits, Origin::Deferred).await;
    assert_eq!(other.messages()[0].seq, Seq(1));
    other.release().await.unwrap();
    let resting = outbox
        .database
        .claim_due(limits, &[Seq(1)], None)
        .await
        .unwrap();
    assert!(resting.is_empty());
    settle_whole(claim, &done(&[Seq(2), Seq(3)])).await;
    assert_eq!(places(&outbox).await, "|1,4|");
}

#[tokio::test]
async fn a_deferred_claim_is_bounded_by_bytes_as_any_other() {
    let outbox = outbox().await;
    all_kinds(&outbox).await;
    let claim = outbox.claim(Origin::Messages).await;
    let settlement = Settlement {
        retry: [4, 5].map(|seq| retry(seq, Duration::ZERO)).to_vec(),
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    let one = ClaimLimits { bytes: 1, ..LIMITS };
    let claim = outbox.claim_within(one, Origin::Deferred).await;
    assert_eq!((claim.len(), claim.untaken().is_some()), (1, true));
    claim.release().await.unwrap();
    let small = ClaimLimits {
        max_message_bytes: 1000,
        ..LIMITS
    };
    let claim = outbox.claim_within(small, Origin::Deferred).await;
    assert!(claim.messages()[0].payload == Payload::TooLarge { bytes: 1_500_000 });
    claim.release().await.unwrap();
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
    let claim = outbox.claim(Origin::Deferred).await;
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
    let claim = outbox.claim(Origin::Messages).await;
    let settlement = Settlement {
        done: vec![],
        retry: vec![retry(1, HOUR), retry(2, HOUR)],
        dead: vec![dead(3)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
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
    let claim = outbox.claim(Origin::Messages).await;
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
    let claim = outbox.claim(Origin::Deferred).await;
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
    let claim = outbox.claim(Origin::Messages).await;
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
    settle_whole(claim, &at_once).await;
    assert_eq!(text(&outbox, written).await, "(INSERT,f) (INSERT,f)");
    outbox.client.batch_execute(clear).await.unwrap();

    let claim = outbox
        .database
        .claim_due(LIMITS, &[Seq(3)], None)
        .await
        .unwrap();
    let settlement = Settlement {
        retry: vec![retry(1, Duration::ZERO)],
        dead: vec![dead(2)],
        ..Settlement::default()
    };
    settle_whole(claim, &settlement).await;
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
