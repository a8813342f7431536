//! Floor and frontier on a real server: a row whose transaction stays open, or prepared, is claimed as soon as it is
//! committed, and costs the claims of others nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use fresh::{client, outbox, outbox_at, until};
use postrider_testbed::{PostgresOptions, PostgresServer, StopMode};
use watched::{Watched, insert, watched};

/// Ends with the transaction of `late` committed: at the first look after that, `keys` are claimed, and then the
/// floor moves on.
async fn claimed_at_the_first_look(
    watched: &mut Watched,
    late: &tokio_postgres::Client,
    commit: &str,
    keys: &[&str],
) {
    let before = watched.frontier.at();
    assert!(watched.drain().await.is_empty());
    late.batch_execute(commit).await.unwrap();
    watched.look().await;
    assert!(watched.frontier.at() < before, "the claims fall back");
    assert_eq!(watched.drain().await, keys);
    watched.floor_moves_on().await;
}

#[tokio::test]
async fn a_row_whose_transaction_stays_open_while_thousands_come_and_go_is_claimed_at_the_first_look_after_its_commit()
 {
    let mut watched = watched().await;
    watched.while_thousands_come_and_go().await;
    watched.look().await;
    let low = watched.next().await;
    let late = client(&watched.outbox.url).await;
    late.batch_execute(&format!("BEGIN; {}", insert("late")))
        .await
        .unwrap();
    watched.while_thousands_come_and_go().await;
    assert_eq!(watched.floor(), Some(low), "the floor waits for it");
    let next = watched.next().await;
    assert_eq!(watched.frontier.at(), Some(next), "the frontier does not");
    claimed_at_the_first_look(&mut watched, &late, "COMMIT", &["late"]).await;
}

#[tokio::test]
async fn a_row_whose_transaction_was_open_before_the_watch_is_claimed_at_the_first_look_after_its_commit()
 {
    let outbox = outbox().await;
    let late = client(&outbox.url).await;
    late.batch_execute(&format!("BEGIN; {}", insert("late")))
        .await
        .unwrap();
    let mut watched = Watched::new(outbox).await;
    watched.while_thousands_come_and_go().await;
    assert_eq!(watched.floor(), None);
    let next = watched.next().await;
    assert_eq!(watched.frontier.at(), Some(next));
    claimed_at_the_first_look(&mut watched, &late, "COMMIT", &["late"]).await;
}

#[tokio::test]
async fn what_a_transaction_with_savepoints_leaves_is_claimed_at_the_first_look_after_its_commit() {
    let mut watched = watched().await;
    watched.look().await;
    let late = client(&watched.outbox.url).await;
    late.batch_execute(&format!("BEGIN; SAVEPOINT one; {}", insert("gone")))
        .await
        .unwrap();
    watched.while_thousands_come_and_go().await;
    let floor = watched.floor();
    // With the savepoint its lock goes, and so may the floor; then it writes again.
    late.batch_execute("ROLLBACK TO one").await.unwrap();
    watched.while_thousands_come_and_go().await;
    assert!(watched.floor() > floor);
    let low = watched.floor();
    late.batch_execute(&insert("first")).await.unwrap();
    watched.while_thousands_come_and_go().await;
    late.batch_execute(&format!(
        "SAVEPOINT two; {}; RELEASE two; SAVEPOINT three; {}",
        insert("second"),
        insert("gone")
    ))
    .await
    .unwrap();
    watched.while_thousands_come_and_go().await;
    late.batch_execute("ROLLBACK TO three").await.unwrap();
    watched.while_thousands_come_and_go().await;
    assert_eq!(watched.floor(), low);
    claimed_at_the_first_look(&mut watched, &late, "COMMIT", &["first", "second"]).await;
}

#[tokio::test]
async fn a_transaction_that_rolls_back_lets_the_floor_move_on() {
    let mut watched = watched().await;
    watched.look().await;
    let low = watched.floor();
    let late = client(&watched.outbox.url).await;
    late.batch_execute(&format!("BEGIN; {}", insert("late")))
        .await
        .unwrap();
    watched.while_thousands_come_and_go().await;
    assert_eq!(watched.floor(), low);
    late.batch_execute("ROLLBACK").await.unwrap();
    watched.look().await;
    assert!(watched.drain().await.is_empty());
    assert_eq!(watched.floor(), Some(watched.next().await));
    watched.floor_moves_on().await;
}

/// A stronger lock is held beside the one that every writer takes, not instead of it.
#[tokio::test]
async fn a_writer_that_has_locked_the_table_as_well_is_waited_for_like_any_other() {
    let mut watched = watched().await;
    watched.look().await;
    let low = watched.floor();
    let late = client(&watched.outbox.url).await;
    late.batch_execute(&format!(
        "BEGIN; LOCK TABLE outbox.messages IN EXCLUSIVE MODE; {}",
        insert("locked first")
    ))
    .await
    .unwrap();
    let waiting = client(&watched.outbox.url).await;
    let pid: i32 = waiting
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    let waiting =
        tokio::spawn(async move { waiting.batch_execute(&insert("waited")).await.unwrap() });
    until("the next producer waits for the table", || async {
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)";
        let row = watched.outbox.client.query_one(waits, &[&pid]).await;
        row.unwrap().get(0)
    })
    .await;
    for _ in 0..5 {
        watched.look().await;
        assert_eq!(watched.floor(), low);
    }
    late.batch_execute("COMMIT").await.unwrap();
    waiting.await.unwrap();
    watched.look().await;
    assert_eq!(watched.drain().await, ["locked first", "waited"]);
    watched.floor_moves_on().await;

    let low = watched.floor();
    late.batch_execute(&format!("BEGIN; {}", insert("locked later")))
        .await
        .unwrap();
    watched.while_thousands_come_and_go().await;
    late.batch_execute("LOCK TABLE outbox.messages IN EXCLUSIVE MODE")
        .await
        .unwrap();
    for _ in 0..5 {
        watched.look().await;
        assert_eq!(watched.floor(), low);
    }
    late.batch_execute("COMMIT").await.unwrap();
    watched.look().await;
    assert_eq!(watched.drain().await, ["locked later"]);
}

async fn prepare(url: &str, name: &str) {
    let client = client(url).await;
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL postrider.notify = 'off'; {}; PREPARE TRANSACTION '{name}'",
            insert(name)
        ))
        .await
        .unwrap();
}

/// A prepared transaction survives its connection and the server, and goes by another name after it.
#[tokio::test]
async fn a_prepared_transaction_is_waited_for_whenever_it_was_prepared_and_after_a_restart_of_the_server()
 {
    let server = PostgresServer::start(PostgresOptions {
        config: vec!["max_prepared_transactions = 4".to_owned()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    prepare(&test.url, "before").await;
    let mut watched = Watched::new(outbox).await;
    watched.while_thousands_come_and_go().await;
    assert_eq!(watched.floor(), None);
    let commits = client(&test.url).await;
    claimed_at_the_first_look(
        &mut watched,
        &commits,
        "COMMIT PREPARED 'before'",
        &["before"],
    )
    .await;

    let low = watched.floor();
    let during = client(&test.url).await;
    during
        .batch_execute(&format!(
            "BEGIN; SET LOCAL postrider.notify = 'off'; {}",
            insert("during")
        ))
        .await
        .unwrap();
    watched.while_thousands_come_and_go().await;
    during
        .batch_execute("PREPARE TRANSACTION 'during'")
        .await
        .unwrap();
    drop(during);
    watched.while_thousands_come_and_go().await;
    assert_eq!(watched.floor(), low);
    claimed_at_the_first_look(
        &mut watched,
        &commits,
        "COMMIT PREPARED 'during'",
        &["during"],
    )
    .await;

    for (mode, name) in [
        (StopMode::Fast, "over a restart"),
        (StopMode::Immediate, "over a crash"),
    ] {
        prepare(&test.url, name).await;
        watched.while_thousands_come_and_go().await;
        server.restart(mode).await.unwrap();
        watched.watch.look().await.unwrap_err();
        watched.outbox.client = client(&test.url).await;
        watched.watch_again().await;
        watched.while_thousands_come_and_go().await;
        assert_eq!(watched.floor(), None);
        assert!(watched.frontier.at().is_some());
        let commits = client(&test.url).await;
        let commit = format!("COMMIT PREPARED '{name}'");
        claimed_at_the_first_look(&mut watched, &commits, &commit, &[name]).await;
    }
}
