//! Who is told of publishes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{Message, Outcome, Reason};
use postrider_relay::{Observer, Settings};
use uuid::Uuid;

use crate::broker::Hold;
use crate::outbox::until;
use crate::scene::{Scene, settings};

#[derive(Debug, Default)]
struct Told(Mutex<Vec<(Uuid, Outcome)>>);

impl Observer for Told {
    fn published(&self, sent: &[Message], outcomes: &[Outcome], _: Duration) {
        assert_eq!(sent.len(), outcomes.len());
        let ids = sent.iter().map(|message| message.id);
        let told = ids.zip(outcomes.iter().cloned());
        self.0.lock().unwrap().extend(told);
    }
}

impl Told {
    fn of(&self, id: Uuid) -> Vec<Outcome> {
        let told = self.0.lock().unwrap();
        let of_id = told.iter().filter(|(told, _)| *told == id);
        of_id.map(|(_, outcome)| outcome.clone()).collect()
    }
}

fn observed(told: &Arc<Told>) -> Settings {
    Settings {
        observer: Some(Arc::clone(told) as Arc<dyn Observer>),
        ..settings()
    }
}

#[tokio::test]
async fn the_observer_is_told_of_each_publish_once_and_by_its_outcome_also_of_those_sent_singly() {
    let scene = Scene::new().await;
    let told = Arc::default();
    let relay = scene.start(observed(&told));
    let first = scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    let ids: Vec<_> = (0..10).map(|_| Uuid::new_v4()).collect();
    scene.broker.culprit(ids[4]);
    let rows: Vec<_> = ids.iter().map(|id| (*id, "e", "k")).collect();
    scene.outbox.insert_rows(&rows, true).await;
    scene.delivered().await;
    relay.stop().await;

    let batches = scene.broker.batches();
    for id in ids.iter().chain([&first]) {
        let told = told.of(*id);
        let sent = batches.iter().filter(|batch| batch.ids.contains(id));
        assert_eq!(told.len(), sent.count(), "{told:?}");
        match (told.last().unwrap(), *id == ids[4]) {
            (Outcome::Confirmed, false) => {}
            (Outcome::Failed(failure), true) => assert_eq!(failure.reason, Reason::EndsConnection),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_observer_is_told_of_what_was_in_flight_when_an_alarm_began_once_it_is_confirmed() {
    let scene = Scene::new().await;
    let told = Arc::default();
    let relay = scene.start(observed(&told));
    scene.outbox.insert("e", "first").await;
    scene.delivered().await;
    scene.broker.hold(Some(Hold::Taken));
    let ids = scene.outbox.insert_many("e", "k", 10).await;
    scene.broker.held(1).await;
    scene.broker.block();
    scene.nothing_is_claimed().await;
    for id in &ids {
        assert_eq!(told.of(*id), []);
    }
    scene.broker.hold(None);
    scene.broker.unblock();
    scene.delivered().await;
    for id in ids {
        until("the observer is told", async || {
            told.of(id) == [Outcome::Confirmed]
        })
        .await;
    }
    relay.stop().await;
}
