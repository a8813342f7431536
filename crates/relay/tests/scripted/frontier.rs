//! Claims begin at a frontier, and what lies below it goes out all the same, without a poll: no relay here
//! polls or looks back within a test, unless it is said.

use std::time::Duration;

use postrider_core::Scope;
use postrider_relay::{Reloadable, Settings};
use uuid::Uuid;

use crate::broker::Hold;
use crate::fate::{Fate, Word};
use crate::outbox::until;
use crate::scene::{Scene, reloadable, settings};

const INSERT: &str = "INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('e', 'low', '{}') RETURNING id";

/// No notification, no poll: what is found, the looks at the writers have shown.
fn by_looks_alone() -> Settings {
    Settings {
        notify: false,
        reloadable: Reloadable {
            poll_interval: Duration::from_secs(3600),
            ..reloadable()
        },
        ..settings()
    }
}

async fn low(client: &tokio_postgres::Client) -> Uuid {
    client.query_one(INSERT, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_transaction_that_holds_a_low_seq_open_while_thousands_commit_after_it_is_delivered_after_its_commit()
 {
    let scene = Scene::new().await;
    let relay = scene.start(by_looks_alone());
    let producer = scene.outbox.session().await;
    producer.batch_execute("BEGIN").await.unwrap();
    let low = low(&producer).await;
    for _ in 0..20 {
        scene.outbox.insert_many("e", "high", 100).await;
        scene.delivered().await;
    }
    producer.batch_execute("COMMIT").await.unwrap();
    scene.delivered().await;
    assert_eq!(scene.outbox.taken(low).await, 1);
    relay.stop().await;
}

#[tokio::test]
async fn what_is_left_of_a_batch_without_an_outcome_is_claimed_again() {
    let scene = Scene::new().await;
    let ids = scene.outbox.insert_many("e", "k", 20).await;
    // The connection ends twice, with all that is in flight.
    scene.broker.fates(ids[7], [Fate::Lost, Fate::CONFIRMED]);
    scene
        .broker
        .fates(ids[13], [Fate::TakenThenLost, Fate::CONFIRMED]);
    let relay = scene.start(by_looks_alone());
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_a_claim_locked_and_did_not_take_for_their_bytes_are_claimed_by_the_next() {
    let scene = Scene::new().await;
    let relay = scene.start(by_looks_alone());
    // Until a claim has come back empty, the frontier stays where it is.
    scene.outbox.insert_many("e", "first", 200).await;
    scene.delivered().await;
    scene.broker.hold(Some(Hold::Untaken));
    let insert = "INSERT INTO outbox.messages (exchange, routing_key, payload) \
                  SELECT 'e', 'k', convert_to(repeat('x', 100000), 'UTF8') FROM generate_series(1, 50)";
    scene.outbox.client.batch_execute(insert).await.unwrap();
    scene.broker.held(1).await;
    // The other worker claims meanwhile, and finds all of them locked or its own.
    until("every row is locked", async || {
        let free = "SELECT count(*) FROM (SELECT FROM outbox.messages FOR UPDATE SKIP LOCKED) AS m";
        scene.outbox.number(free).await == 0
    })
    .await;
    scene.outbox.insert("e", "one more").await;
    until("the other worker has passed them", async || {
        scene
            .broker
            .batches()
            .iter()
            .map(|batch| batch.ids.len())
            .sum::<usize>()
            > 210
    })
    .await;
    scene.broker.hold(None);
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_row_that_could_not_be_read_is_claimed_when_it_is_mended() {
    let scene = Scene::new().await;
    let broken = "ALTER TABLE outbox.messages DROP CONSTRAINT is_publishable; \
                  INSERT INTO outbox.messages (exchange, routing_key, payload_json, priority) VALUES ('e', 'k', '{}', 256)";
    scene.outbox.client.batch_execute(broken).await.unwrap();
    let relay = scene.start(by_looks_alone());
    scene.outbox.insert_many("e", "k", 300).await;
    until("only the broken row is left", async || {
        scene.outbox.waiting().await == 1
    })
    .await;
    let mend = "UPDATE outbox.messages SET priority = 5";
    scene.outbox.client.batch_execute(mend).await.unwrap();
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn what_was_in_flight_under_an_alarm_and_was_not_taken_is_claimed_when_it_is_over() {
    let scene = Scene::new().await;
    let relay = scene.start(by_looks_alone());
    scene.outbox.insert_many("e", "k", 10).await;
    scene.delivered().await;
    scene.broker.hold(Some(Hold::Untaken));
    scene.outbox.insert_many("e", "k", 10).await;
    scene.broker.held(1).await;
    scene.broker.block();
    scene.nothing_is_claimed().await;
    scene.broker.lose();
    scene.broker.hold(None);
    scene.broker.unblock();
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_somebody_else_had_locked_are_delivered_when_they_are_let_go() {
    let scene = Scene::new().await;
    scene.outbox.insert_many("e", "low", 3).await;
    let operator = scene.outbox.session().await;
    operator
        .batch_execute("BEGIN; SELECT FROM outbox.messages FOR UPDATE")
        .await
        .unwrap();
    let relay = scene.start(Settings {
        notify: false,
        ..settings()
    });
    for _ in 0..3 {
        scene.outbox.insert_many("e", "high", 100).await;
        until("the others are delivered", async || {
            scene.outbox.waiting().await == 3
        })
        .await;
    }
    operator.batch_execute("ROLLBACK").await.unwrap();
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_message_that_was_left_out_for_its_late_confirm_is_claimed_when_none_comes() {
    let scene = Scene::new().await;
    let id = scene.outbox.insert("e", "k").await;
    let (scope, word) = (Scope::Broker, Word::OnCommand);
    let fates = [Fate::Late { scope, word }, Fate::CONFIRMED];
    scene.broker.fates(id, fates);
    let relay = scene.start(by_looks_alone());
    for _ in 0..3 {
        scene.outbox.insert_many("e", "k", 100).await;
        until("the others are delivered", async || {
            scene.outbox.waiting().await == 1
        })
        .await;
    }
    scene.broker.answer_late(id, false).await;
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn when_the_watching_session_is_lost_again_and_again_nothing_stays_behind() {
    let scene = Scene::new().await;
    let relay = scene.start(by_looks_alone());
    for _ in 0..5 {
        let producer = scene.outbox.session().await;
        producer.batch_execute("BEGIN").await.unwrap();
        low(&producer).await;
        scene.outbox.insert_many("e", "high", 50).await;
        until("those committed are delivered", async || {
            scene.outbox.waiting().await == 0
        })
        .await;
        until(
            "sessions of the relay were there, and are ended",
            async || scene.outbox.end_sessions(false).await > 0,
        )
        .await;
        producer.batch_execute("COMMIT").await.unwrap();
        scene.delivered().await;
    }
    relay.stop().await;
}

/// An explicit `seq` that no transaction was given, above the floor, which an open writer holds. Once is not enough: the frontier of
/// messages with a key need not have passed it yet.
#[tokio::test]
async fn a_message_with_a_key_and_a_place_of_its_own_choice_is_delivered_while_a_writer_holds_the_floor()
 {
    const TIMES: i64 = 10;
    let scene = Scene::new().await;
    let relay = scene.start(settings());
    let producer = scene.outbox.session().await;
    producer.batch_execute("BEGIN").await.unwrap();
    let open = low(&producer).await;
    let skip =
        format!("SELECT min(nextval('outbox.messages_seq_seq')) FROM generate_series(1, {TIMES})");
    let skipped = scene.outbox.number(&skip).await;
    let ordinary = "INSERT INTO outbox.messages (exchange, routing_key, payload_json, ordering_key) \
                    SELECT 'e', 'k', '{}', 'a' FROM generate_series(1, 20)";
    let chosen = "INSERT INTO outbox.messages (seq, exchange, routing_key, payload_json, ordering_key) \
                  OVERRIDING SYSTEM VALUE VALUES ($1, 'e', 'k', '{}', 'a') RETURNING id";
    for seq in skipped..skipped + TIMES {
        for _ in 0..4 {
            scene.outbox.client.batch_execute(ordinary).await.unwrap();
            scene.delivered().await;
        }
        let row = scene.outbox.client.query_one(chosen, &[&seq]).await;
        let chosen: Uuid = row.unwrap().get(0);
        scene.delivered().await;
        assert_eq!(scene.outbox.taken(chosen).await, 1);
    }
    producer.batch_execute("COMMIT").await.unwrap();
    scene.delivered().await;
    assert_eq!(scene.outbox.taken(open).await, 1);
    relay.stop().await;
}
