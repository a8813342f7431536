//! Whose rights a watch needs, and in which schema.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use fresh::{client, outbox};
use postrider_core::Seq;
use postrider_postgres::{Database, Group, LookBack, OutboxWatch, RoleName, Settings, grants_sql};
use postrider_testbed::shared;
use watched::{database_in, insert, role};

#[tokio::test]
async fn a_role_that_may_only_use_the_schema_reads_the_next_place_and_nothing_else() {
    let outbox = outbox().await;
    let reader = role(&outbox, &[]).await;
    let next = async || -> i64 {
        let row = reader.query_one("SELECT outbox.next_seq()", &[]).await;
        row.unwrap().get(0)
    };
    assert_eq!(next().await, 1);
    outbox.insert(1).await;
    assert_eq!(next().await, 2);
    reader
        .batch_execute("SELECT last_value FROM outbox.messages_seq_seq")
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_role_with_the_rights_that_a_relay_is_granted_can_watch() {
    let outbox = outbox().await;
    let role = format!("role_{}", outbox.name);
    let name = RoleName::new(&role).unwrap();
    let sql = grants_sql(Group::Relay, &name, outbox.database.schema());
    let login = format!("{sql} ALTER ROLE {role} LOGIN");
    outbox.client.batch_execute(&login).await.unwrap();
    let url = outbox.url.replace("postgres@", &format!("{role}@"));
    let database = Database::new(Settings::new(url)).unwrap();
    let mut watch = database.watch_outbox().await.unwrap();
    watches(&mut watch, &outbox.client, "outbox").await;
}

/// All that a watch does.
async fn watches(watch: &mut OutboxWatch, client: &tokio_postgres::Client, schema: &str) {
    let insert = insert("k").replace("outbox.", &format!("{schema}."));
    assert_eq!(watch.look().await.unwrap().next, Seq(1));
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute(&insert).await.unwrap();
    let look = watch.look().await.unwrap();
    assert_eq!((look.next, look.writers.len()), (Seq(2), 1));
    client.batch_execute("COMMIT").await.unwrap();
    let look = watch.look().await.unwrap();
    assert!(look.writers.is_empty() && !look.notify_contended);
    assert_eq!(watch.oldest(None, Seq(2)).await.unwrap(), Some(Seq(1)));
    assert_eq!(watch.oldest(None, Seq(1)).await.unwrap(), None);
    assert_eq!(watch.oldest(Some(Seq(2)), Seq(9)).await.unwrap(), None);
    let free = watch.oldest_free(None, Seq(2)).await.unwrap();
    assert_eq!(free, LookBack::Free(Seq(1)));
    let free = watch.oldest_free(Some(Seq(2)), Seq(9)).await.unwrap();
    assert_eq!(free, LookBack::None);
    assert!(watch.try_quiet().await.unwrap());
    assert!(watch.try_sweeping().await.unwrap());
    watch.end_quiet().await.unwrap();
    watch.hand_over().await.unwrap();
}

#[tokio::test]
async fn an_outbox_in_a_schema_of_another_name_is_watched() {
    let test = shared::database().await;
    let database = database_in(&test.url, "other").await;
    let mut watch = database.watch_outbox().await.unwrap();
    watches(&mut watch, &client(&test.url).await, "other").await;
}
