//! The broker blocks publishers, or is not there.

use crate::broker::Hold;
use crate::outbox::until;
use crate::scene::{Scene, settings};

#[tokio::test]
async fn what_is_in_flight_when_an_alarm_begins_is_freed_and_deleted_when_it_is_confirmed() {
    let scene = Scene::new().await;
    let relay = scene.start(settings());
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;

    scene.broker.hold(Some(Hold::Untaken));
    let ids = scene.outbox.insert_many("e", "k", 10).await;
    scene.broker.held(1).await;
    scene.broker.block();
    scene.nothing_is_claimed().await;
    assert!(!scene.outbox.any_locked().await);

    // The alarm ends; the batch is taken, and its confirms are on their way when the relay goes on.
    scene.broker.hold(Some(Hold::Taken));
    scene.broker.unblock();
    let next = scene.outbox.insert("e", "k").await;
    until("the relay goes on", async || scene.broker.sent(next) > 0).await;
    scene.broker.hold(None);
    scene.delivered().await;
    for id in ids {
        assert_eq!(scene.broker.sent(id), 1);
    }
    relay.stop().await;
}

#[tokio::test]
async fn nothing_is_claimed_while_the_broker_is_away_or_blocks_publishers() {
    for away in [true, false] {
        let scene = Scene::new().await;
        if away {
            scene.broker.go_away();
        } else {
            scene.broker.block();
        }
        let relay = scene.start(settings());
        scene.outbox.insert_many("e", "k", 10).await;
        until("the relay has seen them", async || {
            relay.sum("postrider_backlog_messages") == 10
        })
        .await;
        scene.nothing_is_claimed().await;
        assert!(!scene.outbox.any_locked().await);
        assert_eq!(scene.broker.batches().len(), 0);
        if away {
            scene.broker.come_back();
        } else {
            scene.broker.unblock();
        }
        scene.delivered().await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_connection_that_ends_while_it_is_blocked_loses_nothing() {
    let scene = Scene::new().await;
    scene.broker.hold(Some(Hold::Untaken));
    let ids = scene.outbox.insert_many("e", "k", 10).await;
    let relay = scene.start(settings());
    scene.broker.held(1).await;
    scene.broker.block();
    scene.nothing_is_claimed().await;
    scene.broker.hold(None);
    scene.broker.go_away();
    scene.broker.unblock();
    scene.nothing_is_claimed().await;
    scene.broker.come_back();
    scene.delivered().await;
    for id in ids {
        assert_eq!(scene.outbox.taken(id).await, 1);
    }
    relay.stop().await;
}
