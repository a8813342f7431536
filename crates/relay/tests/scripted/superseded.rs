//! Messages that stand for others, and fail.

use std::time::Duration;

use postrider_core::Scope;
use uuid::Uuid;

use crate::fate::{Fate, Word};
use crate::outbox::until;
use crate::scene::{Running, Scene, retry, settings};

/// One worker, whose connection has proven itself: a new one is given one message at first. What fails waits for an hour.
async fn proven(scene: &Scene) -> Running {
    let mut settings = settings();
    settings.workers = 1;
    let hour = Duration::from_secs(3600);
    settings.reloadable.retry = retry(hour, hour);
    let relay = scene.start(settings);
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    relay
}

/// Commits messages of one key at once, each of which may stand for the one before; these may leave without being taken.
async fn superseding(scene: &Scene, messages: &[(Uuid, bool)]) {
    let rows = messages
        .iter()
        .map(|(id, _)| format!("('{id}', 'e', 'k', '1', 'a', true)"));
    let rows: Vec<String> = rows.collect();
    let leaves = messages.iter().filter(|(_, leaves)| *leaves);
    for (id, _) in leaves {
        let discarded = format!("INSERT INTO audit.discarded VALUES ('{id}', 'superseded', 0)");
        scene.outbox.client.batch_execute(&discarded).await.unwrap();
    }
    scene
        .outbox
        .client
        .batch_execute(&format!(
            "INSERT INTO outbox.messages (id, exchange, routing_key, payload_json, ordering_key, supersede) VALUES {}",
            rows.join(", ")
        ))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_message_stood_for_is_counted_as_superseded_when_it_is_confirmed_late() {
    let scene = Scene::new().await;
    let relay = proven(&scene).await;
    let (older, newer) = (Uuid::new_v4(), Uuid::new_v4());
    let (scope, word) = (Scope::Broker, Word::OnCommand);
    scene.broker.fates(newer, [Fate::Late { scope, word }]);
    superseding(&scene, &[(older, true), (newer, false)]).await;
    until("its batch is over", async || scene.broker.lates() == 1).await;
    assert_eq!(relay.sum("postrider_superseded_total"), 0);
    scene.broker.answer_late(newer, true).await;
    scene.delivered().await;
    until("it is counted", async || {
        relay.sum("postrider_superseded_total") == 1
    })
    .await;
    let sent = |id| scene.broker.sent(id);
    assert_eq!((sent(older), sent(newer)), (0, 1));
    relay.stop().await;
}

/// It was sent once, for both, and refused: a queue may have it all the same.
#[tokio::test]
async fn what_may_have_been_sent_is_left_out_for_no_newer_one_after_it_was_parked() {
    let scene = Scene::new().await;
    let relay = proven(&scene).await;
    let ids: [Uuid; 3] = std::array::from_fn(|_| Uuid::new_v4());
    let [older, newer, newest] = ids;
    for id in [older, newer] {
        scene.broker.fates(id, [Fate::UNROUTABLE]);
    }
    superseding(&scene, &[(older, false), (newer, false)]).await;
    let parked = "SELECT count(*) FROM outbox.parked";
    until("the newer is parked behind the older", async || {
        scene.outbox.number(parked).await == 1
    })
    .await;
    superseding(&scene, &[(newest, false)]).await;
    until("so is the newest", async || {
        scene.outbox.number(parked).await == 2
    })
    .await;
    let due = "UPDATE outbox.deferred SET due_at = now()";
    scene.outbox.client.batch_execute(due).await.unwrap();
    scene.delivered().await;
    for id in ids {
        assert_eq!(scene.outbox.taken(id).await, 1);
    }
    assert_eq!(relay.sum("postrider_superseded_total"), 0);
    relay.stop().await;
}
