//! A database that lets the relay claim, and refuses to delete.

use uuid::Uuid;

use crate::outbox::until;
use crate::scene::{Scene, settings};

/// How often is looked whether repeats come one by one.
const TRIES: usize = 3;

/// Hazard: with the right to DELETE taken away, each worker published a whole batch again every few seconds, and no metric told of it.
#[tokio::test]
async fn while_the_database_refuses_the_end_of_a_claim_one_message_at_a_time_is_repeated_and_not_a_batch()
 {
    for key in [None, Some("key")] {
        let scene = Scene::new().await;
        let mut settings = settings();
        settings.workers = 1;
        let relay = scene.start(settings);
        scene.outbox.insert("e", "first").await;
        scene.delivered().await;
        scene
            .outbox
            .unwatched(
                "CREATE FUNCTION outbox.refuse() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'insufficient_privilege'; END $$; \
                 CREATE TRIGGER refuse BEFORE DELETE ON outbox.messages FOR EACH ROW EXECUTE FUNCTION outbox.refuse()",
            )
            .await;
        let before = scene.broker.batches().len();
        let rows: Vec<_> = (0..30).map(|_| (Uuid::new_v4(), "e", "k", key)).collect();
        scene.outbox.insert_in_order(&rows, true).await;
        until("it was tried again and again", async || {
            scene.broker.batches().len() > before + TRIES
        })
        .await;
        let batches = scene.broker.batches();
        let sizes: Vec<usize> = batches[before..].iter().map(|b| b.ids.len()).collect();
        assert_eq!(sizes[0], 30);
        assert!(sizes[1..].iter().all(|size| *size == 1), "{sizes:?}");
        scene
            .outbox
            .unwatched("DROP TRIGGER refuse ON outbox.messages")
            .await;
        scene.delivered().await;
        relay.stop().await;
    }
}
