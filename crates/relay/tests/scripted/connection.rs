//! Connections that end: to the broker, to the database.

use crate::broker::Hold;
use crate::fate::Fate;
use crate::scene::{Scene, settings};

#[tokio::test]
async fn a_connection_lost_between_publish_and_confirm_repeats_and_loses_nothing() {
    let scene = Scene::new().await;
    let ids = scene.outbox.insert_many("e", "k", 30).await;
    scene.broker.is_away_after_a_loss(10);
    for (number, id) in ids.iter().enumerate() {
        match number % 5 {
            0 => scene.broker.fates(*id, [Fate::TakenThenLost]),
            1 => scene.broker.fates(*id, [Fate::Lost]),
            _ => {}
        }
    }
    // With one worker no other batch is on a connection that ends, and what was scripted is what happens.
    let mut settings = settings();
    settings.workers = 1;
    let relay = scene.start(settings);
    scene.delivered().await;
    for (number, id) in ids.iter().enumerate() {
        let times = if number % 5 == 0 { 2 } else { 1 };
        assert_eq!(scene.outbox.taken(*id).await, times);
    }
    assert_eq!(scene.outbox.dead_letters().await, []);
    relay.stop().await;
}

#[tokio::test]
async fn a_database_session_lost_between_confirm_and_settle_repeats_and_loses_nothing() {
    let scene = Scene::new().await;
    let relay = scene.start(settings());
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    scene.broker.hold(Some(Hold::Taken));
    let ids = scene.outbox.insert_many("e", "k", 10).await;
    scene.broker.held(1).await;
    // The other worker may be looking at the same moment.
    assert!(scene.outbox.end_sessions(true).await >= 1);
    scene.broker.hold(None);
    scene.delivered().await;
    for id in ids {
        assert_eq!(scene.outbox.taken(id).await, 2);
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_new_connection_gets_one_message_a_worker_until_the_broker_has_answered() {
    let scene = Scene::new().await;
    let mut settings = settings();
    settings.workers = 3;
    scene.outbox.insert_many("e", "k", 60).await;
    scene.broker.hold(Some(Hold::Untaken));
    let relay = scene.start(settings);
    scene.broker.held(3).await;
    scene.broker.hold(None);
    scene.delivered().await;

    scene.broker.lose();
    scene.outbox.insert_many("e", "k", 60).await;
    scene.delivered().await;

    let batches = scene.broker.batches();
    for generation in [1, 2] {
        let of_it = || {
            batches
                .iter()
                .filter(|batch| batch.generation == generation)
        };
        let unproven: Vec<_> = of_it().filter(|batch| !batch.proven).collect();
        assert!(!unproven.is_empty());
        assert!(
            unproven.iter().all(|batch| batch.ids.len() == 1),
            "{unproven:?}"
        );
        assert!(of_it().any(|batch| batch.ids.len() > 1));
    }
    relay.stop().await;
}
