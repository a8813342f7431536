//! Messages that make the broker end the connection.

use std::time::Duration;

use postrider_core::{RetryPolicy, Scope};

use crate::broker::Hold;
use crate::fate::{Fate, Word};
use crate::outbox::{DeadLetter, until};
use crate::scene::{MAX_ATTEMPTS, Running, Scene, settings};

/// A relay whose connection has answered: batches are whole.
async fn warm(scene: &Scene) -> Running {
    let relay = scene.start(settings());
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    relay
}

fn ends_connection(id: uuid::Uuid) -> DeadLetter {
    DeadLetter {
        id,
        reason: "ends_connection".to_owned(),
        attempts: i32::try_from(MAX_ATTEMPTS).unwrap(),
    }
}

#[tokio::test]
async fn what_ends_connections_is_found_singly_and_its_neighbours_are_delivered() {
    let scene = Scene::new().await;
    let relay = warm(&scene).await;
    let ids: Vec<_> = (0..20).map(|_| uuid::Uuid::new_v4()).collect();
    let culprits = [ids[4], ids[11]];
    for culprit in culprits {
        scene.broker.culprit(culprit);
    }
    let rows: Vec<_> = ids.iter().map(|id| (*id, "e", "k")).collect();
    scene.outbox.insert_rows(&rows, true).await;
    scene.delivered().await;

    let mut dead = scene.outbox.dead_letters().await;
    dead.sort_by_key(|letter| ids.iter().position(|id| *id == letter.id));
    assert_eq!(dead, culprits.map(ends_connection));
    for id in ids.iter().filter(|id| !culprits.contains(id)) {
        assert!(scene.outbox.taken(*id).await >= 1);
    }
    let batches = scene.broker.batches();
    let isolated = || batches.iter().filter(|batch| batch.isolated);
    assert!(isolated().all(|batch| batch.ids.len() == 1));
    for culprit in culprits {
        // Alone it was sent once for each attempt. Each culprit costs the others one connection at most, as it is suspected
        // at the first.
        let alone = isolated().filter(|batch| batch.ids == [culprit]);
        assert_eq!(alone.count(), MAX_ATTEMPTS as usize);
        let with_others = batches.iter().filter(|batch| !batch.isolated);
        assert!(
            with_others
                .filter(|batch| batch.ids.contains(&culprit))
                .count()
                <= 2
        );
    }
    relay.stop().await;
}

#[tokio::test]
async fn what_ends_connections_is_found_also_where_its_route_is_suspended() {
    let scene = Scene::new().await;
    let relay = warm(&scene).await;
    let (stuck, culprit) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let not_taken = Fate::Late {
        scope: Scope::Route,
        word: Word::NotTakenAfter(0),
    };
    scene.broker.fates(stuck, [not_taken]);
    scene.broker.culprit(culprit);
    let rows = [(stuck, "e", "k"), (culprit, "e", "k")];
    scene.outbox.insert_rows(&rows, true).await;
    scene.delivered().await;
    assert_eq!(
        scene.outbox.dead_letters().await,
        [ends_connection(culprit)]
    );
    assert_eq!(scene.outbox.taken(stuck).await, 1);
    // Neither worker nor prober sends it with others again once it is suspected.
    let batches = scene.broker.batches();
    let ended = batches
        .iter()
        .filter(|batch| !batch.isolated && batch.ids.contains(&culprit));
    assert!(ended.count() <= 2, "{batches:?}");
    until("the route is resumed", async || relay.suspended() == 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn nobody_is_found_guilty_because_a_connection_ended_by_itself() {
    let scene = Scene::new().await;
    let relay = warm(&scene).await;
    let ids: Vec<_> = (0..10).map(|_| uuid::Uuid::new_v4()).collect();
    scene.broker.culprit(ids[5]);
    for id in &ids {
        // Once among the others, and, where it is suspected, once when it is sent alone.
        scene.broker.fates(*id, [Fate::Lost, Fate::TakenThenLost]);
    }
    let rows: Vec<_> = ids.iter().map(|id| (*id, "e", "k")).collect();
    scene.outbox.insert_rows(&rows, true).await;
    scene.delivered().await;
    assert_eq!(scene.outbox.dead_letters().await, [ends_connection(ids[5])]);
    relay.stop().await;
}

#[tokio::test]
async fn what_a_broker_that_is_ill_ends_connections_over_outlives_the_illness() {
    let scene = Scene::new().await;
    let mut settings = settings();
    let (soon, often) = (Duration::from_millis(20), 10_000);
    settings.reloadable.retry = RetryPolicy::new(often, soon, soon, 1.0).unwrap();
    let relay = scene.start(settings);
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    let ids: Vec<_> = (0..5).map(|_| uuid::Uuid::new_v4()).collect();
    for id in &ids {
        scene.broker.culprit(*id);
    }
    let rows: Vec<_> = ids.iter().map(|id| (*id, "e", "k")).collect();
    scene.outbox.insert_rows(&rows, true).await;
    until("each was charged twice", async || {
        let sql =
            "SELECT id FROM outbox.deferred WHERE reason = 'ends_connection' AND attempts >= 2";
        scene.outbox.ids(sql).await.len() == ids.len()
    })
    .await;
    // What goes out meanwhile is not sent with them.
    let other = scene.outbox.insert("e", "other").await;
    until("another is delivered", async || {
        scene.outbox.taken(other).await == 1
    })
    .await;
    scene.broker.acquit_all();
    scene.delivered().await;
    assert_eq!(scene.outbox.dead_letters().await, []);
    for id in ids {
        assert_eq!(scene.outbox.taken(id).await, 1);
    }
    relay.stop().await;
}

#[tokio::test]
async fn suspects_are_freed_when_an_alarm_begins_while_they_are_sent() {
    let scene = Scene::new().await;
    let mut settings = settings();
    // Nothing but the alarm frees them.
    settings.confirm_timeout = Duration::from_secs(3600);
    let relay = scene.start(settings);
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    scene.broker.hold(Some(Hold::Isolated));
    let culprit = uuid::Uuid::new_v4();
    scene.broker.culprit(culprit);
    let rows = [(culprit, "e", "k")];
    scene.outbox.insert_rows(&rows, true).await;
    scene.broker.held(1).await;
    scene.broker.block();
    scene.nothing_is_claimed().await;
    assert!(!scene.outbox.any_locked().await);
    scene.broker.hold(None);
    scene.broker.unblock();
    scene.delivered().await;
    assert_eq!(
        scene.outbox.dead_letters().await,
        [ends_connection(culprit)]
    );
    relay.stop().await;
}
