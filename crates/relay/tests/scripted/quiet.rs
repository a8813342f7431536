//! While a relay is awake nobody notifies it, and nothing that was silenced waits for a poll.

use std::time::Duration;

use postrider_relay::{Reloadable, Settings};

use crate::outbox::{Outbox, until};
use crate::scene::{Scene, reloadable, settings};

/// Whether a relay holds the lock that silences producers.
pub(crate) async fn somebody_is_awake(outbox: &Outbox) -> bool {
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                AND classid = 1886352244 AND objid = 'outbox.messages'::regclass";
    outbox.number(held).await > 0
}

fn without_polls() -> Settings {
    Settings {
        reloadable: Reloadable {
            poll_interval: Duration::from_secs(3600),
            quiet_above: 100,
            ..reloadable()
        },
        ..settings()
    }
}

#[tokio::test]
async fn what_was_silenced_while_the_relay_was_awake_is_delivered_after_it_went_to_sleep() {
    let scene = Scene::new().await;
    let relay = scene.start(without_polls());
    until("rows that come fast keep the relay awake", async || {
        scene.outbox.insert_many("e", "k", 300).await;
        somebody_is_awake(&scene.outbox).await
    })
    .await;
    let producer = scene.outbox.session().await;
    producer
        .batch_execute("BEGIN; INSERT INTO outbox.messages (exchange, routing_key, payload_json) VALUES ('e', 'silent', '{}')")
        .await
        .unwrap();
    until("the relay goes to sleep", async || {
        !somebody_is_awake(&scene.outbox).await
    })
    .await;
    // Now it is woken by each.
    scene.outbox.insert("e", "k").await;
    scene.delivered().await;
    producer.batch_execute("COMMIT").await.unwrap();
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_whose_broker_takes_nothing_and_one_that_stops_silence_nobody() {
    let scene = Scene::new().await;
    let relay = scene.start(without_polls());
    let awake = async || {
        until("rows that come fast keep the relay awake", async || {
            scene.outbox.insert_many("e", "k", 300).await;
            somebody_is_awake(&scene.outbox).await
        })
        .await;
    };
    awake().await;
    scene.broker.block();
    until("the lock is given up under an alarm", async || {
        !somebody_is_awake(&scene.outbox).await
    })
    .await;
    scene.broker.unblock();
    awake().await;
    relay.stop().await;
    assert!(!somebody_is_awake(&scene.outbox).await);
}
