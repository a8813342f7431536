//! Messages with a key, beside a transaction that has written one and stays open.

use std::time::{Duration, SystemTime};

use postrider_testbed::{Client, Place, daemon::Daemon};
use uuid::Uuid;

use crate::stage::{DEADLINE, EXCHANGE, KEY, Stage};

/// Tells the audit of a message that will be committed as this one of its key.
fn placed(stage: &Stage, key: &str, number: i64) -> Uuid {
    let id = Uuid::new_v4();
    let place = Place {
        key: key.to_owned(),
        number,
        supersede: None,
    };
    stage.audit.placed(id, place);
    id
}

fn insert(id: Uuid, key: &str) -> String {
    format!(
        "INSERT INTO outbox.messages (id, exchange, routing_key, payload, ordering_key) VALUES ('{id}', '{EXCHANGE}', '{KEY}', '', '{key}')"
    )
}

/// A key of the same lane as another.
async fn mate(client: &Client, key: &str) -> String {
    let lane = |key: &str| format!("hashtextextended({key} COLLATE \"C\", 0) & 255");
    let sql = format!(
        "SELECT 'mate-' || n FROM generate_series(1, 100000) AS n WHERE {} = {} LIMIT 1",
        lane("('mate-' || n)"),
        lane("$1::text")
    );
    client.query_one(&sql, &[&key]).await.unwrap().get(0)
}

/// When the relay began its last look at who writes.
async fn last_look(client: &Client) -> Option<SystemTime> {
    let sql = "SELECT max(query_start) FROM pg_stat_activity \
               WHERE datname = current_database() AND query LIKE '%pg\\_locks%' AND pid <> pg_backend_pid()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Hazard: a lane that begins above an open transaction passes its messages for good, or sends the next of their key before them; one that
/// begins below it is walked over again and again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_long_transaction_commits_at_last_goes_before_what_its_key_has_next_though_its_lane_went_on_meanwhile()
 {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemon = Daemon::start(stage.options()).await.unwrap();
    let (client, late) = (stage.sql().await, stage.sql().await);
    let mate = mate(&client, "a").await;
    let first = placed(&stage, "a", 1);
    late.batch_execute(&format!("BEGIN; {}", insert(first, "a")))
        .await
        .unwrap();
    // By two looks it is known as a long one, and the lane passes it with the next claim. Looks that follow each other sooner than this may
    // be taken for one.
    let apart = Duration::from_millis(100);
    let goes_on = async {
        let mut looks: Vec<SystemTime> = Vec::new();
        let mut number = 0;
        while looks.len() < 10 {
            number += 1;
            let id = placed(&stage, &mate, number);
            client.batch_execute(&insert(id, &mate)).await.unwrap();
            stage.audit.committed([id]);
            let delivered = stage.audit.wait_until_all_delivered(DEADLINE);
            delivered.await.unwrap();
            let look = last_look(&client).await;
            let counts = |look: &SystemTime| looks.last().is_none_or(|last| *last + apart < *look);
            looks.extend(look.filter(counts));
        }
    };
    let goes_on = tokio::time::timeout(DEADLINE, goes_on);
    goes_on.await.expect("the relay looks at who writes");
    let second = placed(&stage, "a", 2);
    late.batch_execute(&format!("COMMIT; {}", insert(second, "a")))
        .await
        .unwrap();
    stage.audit.committed([first, second]);
    stage.assert_clean().await;
    assert!(stage.audit.order().is_clean(), "{}", stage.audit.order());
    drop(daemon);
}
