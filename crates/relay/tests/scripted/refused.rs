//! A database that lets the relay claim, and refuses to delete.

use std::time::Duration;

use postrider_core::Reason;
use postrider_relay::Settings;
use uuid::Uuid;

use crate::fate::Fate;
use crate::outbox::{Outbox, until};
use crate::scene::{Scene, rarely, retry, settings};

/// How often a deletion is refused while nothing is sent.
const TRIES: i64 = 5;
/// How often at most a deletion is refused until the row that is kept is found, and while it rests for the first times: a claim finds it by halves.
const MOST_TRIES: i64 = 100;

/// Has deletions from this table refused, of the rows for which `of` holds, with these words; each is counted.
async fn refuse(outbox: &Outbox, table: &str, of: &str, words: &str) {
    outbox
        .unwatched(&format!(
            "CREATE SEQUENCE audit.tries; \
             CREATE FUNCTION audit.refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM nextval('audit.tries'); {words}; END $$; \
             CREATE TRIGGER refuse BEFORE DELETE ON outbox.{table} FOR EACH ROW WHEN ({of}) EXECUTE FUNCTION audit.refuse()"
        ))
        .await;
}

async fn refuse_no_more(outbox: &Outbox, table: &str) {
    let sql = format!("DROP TRIGGER refuse ON outbox.{table}");
    outbox.unwatched(&sql).await;
}

/// How many deletions were tried; a sequence goes on also in what is rolled back.
async fn tries(outbox: &Outbox) -> i64 {
    outbox
        .number("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM audit.tries")
        .await
}

fn one_worker() -> Settings {
    Settings {
        workers: 1,
        ..settings()
    }
}

/// Hazard: with the right to DELETE taken away, each worker published a whole batch again every few seconds, and no metric told of it.
#[tokio::test]
async fn while_the_database_refuses_the_end_of_every_claim_nothing_is_sent_twice_over() {
    for key in [None, Some("key")] {
        let scene = Scene::new().await;
        let relay = scene.start(one_worker());
        scene.outbox.insert("e", "first").await;
        scene.delivered().await;
        let no = "RAISE EXCEPTION 'no' USING ERRCODE = 'insufficient_privilege'";
        refuse(&scene.outbox, "messages", "true", no).await;
        let before = scene.broker.batches().len();
        let rows: Vec<_> = (0..30).map(|_| (Uuid::new_v4(), "e", "k", key)).collect();
        scene.outbox.insert_in_order(&rows, true).await;
        until("it was tried again and again", async || {
            tries(&scene.outbox).await > TRIES
        })
        .await;
        let batches = scene.broker.batches();
        let sizes: Vec<usize> = batches[before..].iter().map(|b| b.ids.len()).collect();
        assert_eq!(sizes, [30], "what was sent before the refusal was known");
        refuse_no_more(&scene.outbox, "messages").await;
        scene.delivered().await;
        for (id, ..) in &rows {
            assert_eq!(scene.outbox.taken(*id).await, 2);
        }
        relay.stop().await;
    }
}

/// Hazard: one row that the database keeps, for a foreign key say, was sent for ever, and kept all behind it from being sent.
#[tokio::test]
async fn a_row_that_the_database_keeps_is_sent_by_each_worker_once_at_most_and_delays_no_other() {
    for (words, settings) in [
        ("RAISE EXCEPTION 'kept'", settings()),
        ("RETURN NULL", one_worker()),
        // Of this row alone, although it is what a missing right for all is called.
        (
            "RAISE EXCEPTION 'kept' USING ERRCODE = 'insufficient_privilege'",
            one_worker(),
        ),
    ] {
        let scene = Scene::new().await;
        let kept = Uuid::new_v4();
        let of = format!("OLD.id = '{kept}'");
        refuse(&scene.outbox, "messages", &of, words).await;
        // What one has sent before it knew, another may have claimed just then.
        let most = i64::try_from(settings.workers).unwrap();
        let relay = scene.start(settings);
        let mut rows: Vec<_> = (0..50).map(|_| (Uuid::new_v4(), "e", "k")).collect();
        rows[20].0 = kept;
        scene.outbox.insert_rows(&rows, true).await;
        until("the others are delivered", async || {
            scene.outbox.waiting().await == 1
        })
        .await;
        let taken = scene.outbox.taken(kept).await;
        assert!(taken <= most, "{taken}");
        let tried = tries(&scene.outbox).await;
        assert!(tried <= MOST_TRIES, "{tried}");
        let later = scene.outbox.insert_many("e", "k", 50).await;
        until("what comes later is delivered", async || {
            scene.outbox.waiting().await == 1
        })
        .await;
        for id in later {
            assert_eq!(scene.outbox.taken(id).await, 1);
        }
        let tried = tries(&scene.outbox).await;
        until("it is tried again", async || {
            tries(&scene.outbox).await > tried
        })
        .await;
        assert_eq!(scene.outbox.place(kept).await.unwrap(), "messages");
        assert_eq!(scene.outbox.taken(kept).await, taken);
        refuse_no_more(&scene.outbox, "messages").await;
        scene.delivered().await;
        assert_eq!(scene.outbox.taken(kept).await, taken + 1);
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_row_with_a_key_that_the_database_keeps_holds_back_its_own_key_and_no_other() {
    let scene = Scene::new().await;
    let kept = Uuid::new_v4();
    let of = format!("OLD.id = '{kept}'");
    refuse(&scene.outbox, "messages", &of, "RAISE EXCEPTION 'kept'").await;
    let relay = scene.start(settings());
    let keys: Vec<String> = (0..20).map(|key| format!("key {key}")).collect();
    let of_keys = || {
        let rows = (0..5).flat_map(|_| &keys);
        rows.map(|key| (Uuid::new_v4(), "e", "k", Some(key.as_str())))
    };
    let mut rows: Vec<_> = of_keys().collect();
    // The second of its key, with three behind it.
    rows[keys.len() + 7].0 = kept;
    scene.outbox.insert_in_order(&rows, true).await;
    until("all but those of the key are delivered", async || {
        scene.outbox.waiting().await == 4
    })
    .await;
    let more: Vec<_> = of_keys().collect();
    scene.outbox.insert_in_order(&more, true).await;
    until("and so is what comes later", async || {
        scene.outbox.waiting().await == 4 + 5
    })
    .await;
    let of_the_key: Vec<Uuid> = (rows.iter().chain(&more))
        .filter(|(.., key)| *key == Some("key 7"))
        .map(|(id, ..)| *id)
        .collect();
    // What was claimed together with the kept one has been sent with it, before anybody knew.
    for id in &of_the_key[5..] {
        assert_eq!(scene.outbox.taken(*id).await, 0);
    }
    refuse_no_more(&scene.outbox, "messages").await;
    scene.delivered().await;
    let first = "SELECT id FROM audit.taken GROUP BY id ORDER BY min(place)";
    let mut arrived = scene.outbox.ids(first).await;
    arrived.retain(|id| of_the_key.contains(id));
    assert_eq!(arrived, of_the_key);
    relay.stop().await;
}

/// What has failed before lies in another table.
#[tokio::test]
async fn a_deferred_row_that_the_database_keeps_is_sent_by_each_worker_once_at_most_and_delays_no_other()
 {
    let scene = Scene::new().await;
    let ids: Vec<Uuid> = (0..10).map(|_| Uuid::new_v4()).collect();
    let kept = ids[4];
    let of = format!("OLD.id = '{kept}'");
    refuse(&scene.outbox, "deferred", &of, "RAISE EXCEPTION 'kept'").await;
    for (place, id) in ids.iter().enumerate() {
        let deferred = format!(
            "INSERT INTO outbox.deferred (seq, id, exchange, routing_key, payload_json, headers, supersede, created_at, attempts, due_at, cause) \
             VALUES (-{place}, '{id}', 'e', 'k', '{{}}', '{{}}', false, clock_timestamp(), 0, clock_timestamp(), 'retry')"
        );
        scene.outbox.unwatched(&deferred).await;
    }
    let relay = scene.start(settings());
    until("the others are delivered", async || {
        scene.outbox.waiting().await == 1
    })
    .await;
    let tried = tries(&scene.outbox).await;
    until("it is tried again", async || {
        tries(&scene.outbox).await > tried
    })
    .await;
    let taken = scene.outbox.taken(kept).await;
    assert!(taken <= 2, "once by each worker: {taken}");
    refuse_no_more(&scene.outbox, "deferred").await;
    scene.delivered().await;
    assert_eq!(scene.outbox.taken(kept).await, taken + 1);
    relay.stop().await;
}

/// Hazard: claims that began anew with a single row went on with another lane each time, and met the row only together with others; and where
/// two of a key were kept, the second never came by itself.
#[tokio::test]
async fn rows_of_a_key_that_the_database_keeps_are_found_while_every_lane_has_work() {
    let scene = Scene::new().await;
    let kept = [Uuid::new_v4(), Uuid::new_v4()];
    let of = format!("OLD.id IN ('{}', '{}')", kept[0], kept[1]);
    let no = "RAISE EXCEPTION 'kept'";
    refuse(&scene.outbox, "messages", &of, no).await;
    let relay = scene.start(settings());
    let keys: Vec<String> = (0..500).map(|key| format!("key {key}")).collect();
    let wave = || {
        let rows = keys
            .iter()
            .map(|key| (Uuid::new_v4(), "e", "k", Some(key.as_str())));
        rows.collect::<Vec<_>>()
    };
    // What is kept of the key, and what follows it.
    for behind in 1..=6 {
        let mut rows = wave();
        if let Some(kept) = kept.get(behind - 1) {
            rows[7].0 = *kept;
        }
        scene.outbox.insert_in_order(&rows, true).await;
        until("the other keys are delivered", async || {
            scene.outbox.waiting().await == behind as i64
        })
        .await;
    }
    let tried = tries(&scene.outbox).await;
    assert!(tried <= MOST_TRIES, "{tried}");
    refuse_no_more(&scene.outbox, "messages").await;
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_suspended_exchange_is_resumed_although_the_database_keeps_a_message_for_it() {
    let scene = Scene::new().await;
    scene.broker.refuse("e", Some(Reason::ExchangeMissing));
    let mut settings = settings();
    settings.reloadable.retry = rarely();
    let relay = scene.start(settings);
    let ids = scene.outbox.insert_many("e", "k", 20).await;
    until("all wait for the exchange", async || {
        let deferred = "SELECT count(*) FROM outbox.deferred";
        scene.outbox.number(deferred).await == 20 && relay.suspended() == 1
    })
    .await;
    let of = format!("OLD.id = '{}'", ids[5]);
    let no = "RAISE EXCEPTION 'kept'";
    refuse(&scene.outbox, "deferred", &of, no).await;
    scene.broker.refuse("e", None);
    until("the others are delivered", async || {
        scene.outbox.waiting().await == 1 && relay.suspended() == 0
    })
    .await;
    refuse_no_more(&scene.outbox, "deferred").await;
    scene.delivered().await;
    relay.stop().await;
}

/// What was parked goes out by a turn of its own, and from another table.
#[tokio::test]
async fn a_parked_row_that_the_database_keeps_holds_back_its_own_key_and_no_other() {
    let scene = Scene::new().await;
    let mut settings = one_worker();
    let hour = Duration::from_secs(3600);
    settings.reloadable.retry = retry(hour, hour);
    let relay = scene.start(settings);
    // From now on a batch is larger than one message.
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    let keys = ["a", "b", "c"];
    let rows = (0..5).flat_map(|_| keys);
    let rows: Vec<_> = rows
        .map(|key| (Uuid::new_v4(), "e", "k", Some(key)))
        .collect();
    for (head, ..) in &rows[..keys.len()] {
        scene.broker.fates(*head, [Fate::UNROUTABLE]);
    }
    scene.outbox.insert_in_order(&rows, true).await;
    until("all but the heads are parked", async || {
        let parked = "SELECT count(*) FROM outbox.parked";
        scene.outbox.number(parked).await == 12
    })
    .await;
    // The third of the key, with two behind it.
    let kept = rows[2 * keys.len() + 1].0;
    let of = format!("OLD.id = '{kept}'");
    refuse(&scene.outbox, "parked", &of, "RAISE EXCEPTION 'kept'").await;
    let due = "UPDATE outbox.deferred SET due_at = now()";
    scene.outbox.client.batch_execute(due).await.unwrap();
    until("the others are delivered", async || {
        scene.outbox.waiting().await == 3
    })
    .await;
    assert_eq!(scene.outbox.place(kept).await.unwrap(), "parked");
    refuse_no_more(&scene.outbox, "parked").await;
    scene.delivered().await;
    let first = "SELECT id FROM audit.taken GROUP BY id ORDER BY min(place)";
    let arrived = scene.outbox.ids(first).await;
    for key in keys {
        let of_key = rows.iter().filter(|(.., of)| *of == Some(key));
        let of_key: Vec<Uuid> = of_key.map(|(id, ..)| *id).collect();
        let mut arrived = arrived.clone();
        arrived.retain(|id| of_key.contains(id));
        assert_eq!(arrived, of_key);
    }
    relay.stop().await;
}
