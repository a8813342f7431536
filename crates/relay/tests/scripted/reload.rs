//! What a running relay is told anew.

use std::time::Duration;

use postrider_relay::{Reloadable, Settings};

use crate::outbox::until;
use crate::quiet::somebody_is_awake;
use crate::scene::{Scene, reloadable, settings};

#[tokio::test]
async fn producers_are_left_in_peace_from_the_rate_on_that_was_told_last() {
    let scene = Scene::new().await;
    let never = Reloadable {
        quiet_above: 1_000_000,
        ..reloadable()
    };
    let relay = scene.start(Settings {
        reloadable: never.clone(),
        ..settings()
    });
    for _ in 0..10 {
        scene.outbox.insert_many("e", "k", 300).await;
        scene.delivered().await;
        assert!(!somebody_is_awake(&scene.outbox).await);
    }
    relay.reloader.apply(Reloadable {
        quiet_above: 100,
        ..reloadable()
    });
    until("rows that come fast keep the relay awake", async || {
        scene.outbox.insert_many("e", "k", 300).await;
        somebody_is_awake(&scene.outbox).await
    })
    .await;
    relay.reloader.apply(never);
    until("the relay goes to sleep though rows come", async || {
        scene.outbox.insert_many("e", "k", 30).await;
        !somebody_is_awake(&scene.outbox).await
    })
    .await;
    scene.delivered().await;
    relay.stop().await;
}

#[tokio::test]
async fn nobody_sleeps_on_by_an_interval_that_was_told_to_be_shorter() {
    const SAMPLED: &str = "postrider_sample_timestamp_seconds";
    let scene = Scene::new().await;
    let relay = scene.start(Settings {
        reloadable: Reloadable {
            sample_interval: Duration::from_secs(3600),
            ..reloadable()
        },
        ..settings()
    });
    until("it has measured once", async || relay.sum(SAMPLED) > 0).await;
    let once = relay.sum(SAMPLED);
    relay.reloader.apply(reloadable());
    // It is in seconds: the first that follows the change may still be within the same one.
    until("it measures again and again", async || {
        relay.sum(SAMPLED) > once + 1
    })
    .await;
    relay.stop().await;
}
