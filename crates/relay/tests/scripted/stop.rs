//! A relay that is told to stop in the middle of something.

use std::time::Duration;

use postrider_core::Scope;

use crate::broker::Hold;
use crate::fate::{Fate, Word};
use crate::outbox::until;
use crate::scene::{Scene, settings};

/// Longer than any test.
const A_LONG_GRACE: Duration = Duration::from_secs(3600);

/// A relay that went on where another was stopped delivers everything.
async fn goes_on(scene: &Scene) {
    let relay = scene.start(settings());
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_publish_that_nobody_answers_is_abandoned_after_the_grace_and_its_rows_stay() {
    for hold in [Hold::Untaken, Hold::Taken] {
        let scene = Scene::new().await;
        let relay = scene.start(settings());
        scene.outbox.insert("e", "first").await;
        scene.delivered().await;
        scene.broker.hold(Some(hold));
        scene.outbox.insert_many("e", "k", 10).await;
        scene.broker.held(1).await;
        relay.stop().await;
        assert_eq!(scene.outbox.waiting().await, 10);
        scene.broker.hold(None);
        goes_on(&scene).await;
    }
}

#[tokio::test]
async fn what_is_answered_within_the_grace_is_settled() {
    let scene = Scene::new().await;
    let mut settings = settings();
    settings.reloadable.shutdown_grace = A_LONG_GRACE;
    scene.broker.hold(Some(Hold::Taken));
    let ids = scene.outbox.insert_many("e", "k", 1).await;
    let relay = scene.start(settings);
    scene.broker.held(1).await;
    let stopping = tokio::spawn(relay.stop());
    scene.broker.hold(None);
    stopping.await.unwrap();
    assert_eq!(scene.outbox.place(ids[0]).await, None);
    assert_eq!(scene.outbox.violations().await, []);
}

#[tokio::test]
async fn an_alarm_ends_the_grace_and_what_is_in_flight_stays() {
    let scene = Scene::new().await;
    let mut settings = settings();
    settings.reloadable.shutdown_grace = A_LONG_GRACE;
    scene.broker.hold(Some(Hold::Untaken));
    let id = scene.outbox.insert("e", "k").await;
    let relay = scene.start(settings);
    scene.broker.held(1).await;
    scene.broker.block();
    scene.nothing_is_claimed().await;
    relay.stop().await;
    assert_eq!(scene.outbox.place(id).await.as_deref(), Some("messages"));
    scene.broker.hold(None);
    scene.broker.unblock();
    goes_on(&scene).await;
}

#[tokio::test]
async fn a_relay_whose_broker_is_away_or_blocked_stops_at_once() {
    for away in [true, false] {
        let scene = Scene::new().await;
        let mut settings = settings();
        settings.reloadable.shutdown_grace = A_LONG_GRACE;
        if away {
            scene.broker.go_away();
        } else {
            scene.broker.block();
        }
        scene.outbox.insert_many("e", "k", 5).await;
        let relay = scene.start(settings);
        until("the relay has seen them", async || {
            relay.sum("postrider_backlog_messages") == 5
        })
        .await;
        assert!(!relay.is_over());
        relay.stop().await;
        assert_eq!(scene.outbox.waiting().await, 5);
        if away {
            scene.broker.come_back();
        } else {
            scene.broker.unblock();
        }
        goes_on(&scene).await;
    }
}

#[tokio::test]
async fn a_confirm_that_may_still_come_does_not_keep_a_relay_from_stopping() {
    for scope in [Scope::Route, Scope::Broker] {
        let scene = Scene::new().await;
        let mut settings = settings();
        settings.reloadable.shutdown_grace = A_LONG_GRACE;
        let id = scene.outbox.insert("e", "k").await;
        let word = Word::OnCommand;
        scene.broker.fates(id, [Fate::Late { scope, word }]);
        let relay = scene.start(settings);
        until("its batch is over", async || scene.broker.lates() == 1).await;
        relay.stop().await;
        assert_eq!(scene.broker.lates(), 0);
        assert_eq!(scene.outbox.waiting().await, 1);
        goes_on(&scene).await;
    }
}

#[tokio::test]
async fn a_suspect_that_nobody_answers_for_is_abandoned_after_the_grace_and_stays() {
    let scene = Scene::new().await;
    let relay = scene.start(settings());
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    scene.broker.hold(Some(Hold::Isolated));
    let culprit = uuid::Uuid::new_v4();
    scene.broker.culprit(culprit);
    scene.outbox.insert_rows(&[(culprit, "e", "k")], true).await;
    scene.broker.held(1).await;
    relay.stop().await;
    assert_eq!(
        scene.outbox.place(culprit).await.as_deref(),
        Some("messages")
    );
    scene.broker.hold(None);
    goes_on(&scene).await;
    assert_eq!(
        scene.outbox.place(culprit).await.as_deref(),
        Some("dead_letters")
    );
}
