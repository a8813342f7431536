//! The quiet wake-up on a real server: who is told of an insert, who is not, and what the lock of it does to producers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod fresh;
mod watched;

use std::future::poll_fn;

use fresh::{DEADLINE, Outbox, client, outbox, outbox_at, until};
use postrider_postgres::{LONGEST_SILENCE, OutboxWatch};
use postrider_testbed::{PostgresOptions, PostgresServer};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, NoTls};
use watched::{database_in, insert, role};

type Connection =
    tokio_postgres::Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>;

/// A session that listens, and reads what it is told when it is asked.
struct Ear {
    client: tokio_postgres::Client,
    connection: Connection,
}

impl Ear {
    async fn on(url: &str, channel: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let mut ear = Self { client, connection };
        let listen = format!("LISTEN {channel}");
        let client = &ear.client;
        let connection = &mut ear.connection;
        tokio::select! {
            listening = client.batch_execute(&listen) => listening.unwrap(),
            _ = poll_fn(|cx| connection.poll_message(cx)) => panic!("nobody has notified yet"),
        }
        ear
    }

    /// The payload of the next notification: that of an insert is empty.
    async fn next(&mut self) -> String {
        let next = async {
            loop {
                let message = poll_fn(|cx| self.connection.poll_message(cx)).await;
                if let AsyncMessage::Notification(heard) = message.unwrap().unwrap() {
                    return heard.payload().to_owned();
                }
            }
        };
        timeout(DEADLINE, next).await.unwrap()
    }

    /// Whether nothing was notified before this: in the order of their commits.
    async fn has_heard_nothing(&mut self, outbox: &Outbox) -> bool {
        let mark = "NOTIFY postrider_outbox, 'mark'";
        outbox.client.batch_execute(mark).await.unwrap();
        self.next().await == "mark"
    }
}

async fn publish(outbox: &Outbox) {
    let insert = insert("k");
    outbox.client.batch_execute(&insert).await.unwrap();
}

async fn watch(outbox: &Outbox) -> OutboxWatch {
    outbox.database.watch_outbox().await.unwrap()
}

/// How many locks of the kind that a trigger tries, or a relay holds, there are.
async fn quiet_locks(outbox: &Outbox, mode: &str) -> i64 {
    let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1886352244 \
          AND objid = 'outbox.messages'::regclass AND objsubid = 2 AND mode = $1 \
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let row = outbox.client.query_one(count, &[&mode]).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn while_a_relay_is_awake_an_insert_notifies_nobody_and_then_it_does_again() {
    let outbox = outbox().await;
    let mut ear = Ear::on(&outbox.url, "postrider_outbox").await;
    let mut relay = watch(&outbox).await;
    publish(&outbox).await;
    assert_eq!(ear.next().await, "");
    for _ in 0..2 {
        assert!(relay.try_quiet().await.unwrap());
        publish(&outbox).await;
        assert!(ear.has_heard_nothing(&outbox).await);
        relay.end_quiet().await.unwrap();
        publish(&outbox).await;
        assert_eq!(ear.next().await, "");
    }
    assert!(ear.has_heard_nothing(&outbox).await);
}

#[tokio::test]
async fn of_several_relays_one_holds_the_lock_until_it_gives_it_up_or_is_gone() {
    let outbox = outbox().await;
    let mut first = watch(&outbox).await;
    let mut second = watch(&outbox).await;
    assert!(first.try_quiet().await.unwrap());
    assert!(!second.try_quiet().await.unwrap());
    first.end_quiet().await.unwrap();
    assert!(second.try_quiet().await.unwrap());
    assert!(!first.try_quiet().await.unwrap());
    // Dropped, a watch ends its session.
    drop(second);
    let end = std::time::Instant::now() + DEADLINE;
    while !first.try_quiet().await.unwrap() {
        assert!(std::time::Instant::now() < end);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_relay_that_hands_over_frees_its_locks_and_wakes_the_others() {
    let outbox = outbox().await;
    let mut ear = Ear::on(&outbox.url, "postrider_outbox").await;
    let mut first = watch(&outbox).await;
    let mut second = watch(&outbox).await;
    assert!(first.try_quiet().await.unwrap());
    assert!(first.try_sweeping().await.unwrap());
    assert!(!second.try_sweeping().await.unwrap());
    publish(&outbox).await;
    first.hand_over().await.unwrap();
    assert_eq!(ear.next().await, "");
    assert!(
        ear.has_heard_nothing(&outbox).await,
        "the insert was silent"
    );
    assert!(second.try_quiet().await.unwrap());
    assert!(second.try_sweeping().await.unwrap());
    // It goes on looking.
    first.look().await.unwrap();
    assert!(!first.try_quiet().await.unwrap());
}

/// As when its process is stopped.
#[tokio::test]
async fn a_relay_that_stays_silent_loses_its_session_and_the_lock_with_it() {
    let outbox = outbox().await;
    let mut ear = Ear::on(&outbox.url, "postrider_outbox").await;
    let mut relay = watch(&outbox).await;
    assert!(relay.try_quiet().await.unwrap());
    assert_eq!(quiet_locks(&outbox, "ExclusiveLock").await, 1);
    assert!(LONGEST_SILENCE < DEADLINE / 4);
    until("the server ends the silent session", || async {
        quiet_locks(&outbox, "ExclusiveLock").await == 0
    })
    .await;
    publish(&outbox).await;
    assert_eq!(ear.next().await, "");
    let error = relay.look().await.unwrap_err();
    assert!(error.is_connection(), "{error}");
}

/// Hazard: a lock of the session outlives the failed transaction, and a pool keeps the session.
#[tokio::test]
async fn an_insert_that_is_cancelled_wherever_it_is_leaves_no_lock_in_its_session() {
    let outbox = outbox().await;
    let producer = client(&outbox.url).await;
    let pid: i32 = producer
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    // One after the other until it is cancelled.
    let inserts = format!(
        "DO $$ BEGIN FOR n IN 1..100000 LOOP {}; END LOOP; END $$",
        insert("k")
    );
    for milliseconds in (1..=20).cycle().take(100) {
        let within = format!("SET statement_timeout = {milliseconds}; {inserts}");
        let error = producer.batch_execute(&within).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "57014");
        assert_eq!(quiet_locks(&outbox, "ShareLock").await, 0);
    }
    producer
        .batch_execute("RESET statement_timeout")
        .await
        .unwrap();
    for _ in 0..100 {
        let cancel = async {
            // Over and over: one that comes too early is lost.
            loop {
                let cancel = "SELECT pg_cancel_backend($1)";
                outbox.client.query_one(cancel, &[&pid]).await.unwrap();
            }
        };
        let cancelled = tokio::select! {
            cancelled = producer.batch_execute(&inserts) => cancelled,
            () = cancel => Ok(()),
        };
        assert_eq!(cancelled.unwrap_err().code().unwrap().code(), "57014");
        assert_eq!(quiet_locks(&outbox, "ShareLock").await, 0);
    }
    // One that failed, and one that was rolled back.
    let twice = format!("{}; SELECT 1 / 0", insert("k"));
    producer.batch_execute(&twice).await.unwrap_err();
    let rolled_back = format!("BEGIN; {}; ROLLBACK", insert("k"));
    producer.batch_execute(&rolled_back).await.unwrap();
    assert_eq!(quiet_locks(&outbox, "ShareLock").await, 0);
    assert!(watch(&outbox).await.try_quiet().await.unwrap());
    assert_eq!(outbox.count().await, 0);
}

#[tokio::test]
async fn a_transaction_that_leaves_the_wake_up_out_notifies_nobody_while_all_relays_sleep() {
    let outbox = outbox().await;
    let mut ear = Ear::on(&outbox.url, "postrider_outbox").await;
    let off = format!(
        "BEGIN; SET LOCAL postrider.notify = 'off'; {}; COMMIT",
        insert("k")
    );
    outbox.client.batch_execute(&off).await.unwrap();
    assert!(ear.has_heard_nothing(&outbox).await);
    publish(&outbox).await;
    assert_eq!(ear.next().await, "");
}

/// The trigger asks nothing of a producer that it does not have: awake or asleep.
async fn is_told_of(outbox: &Outbox, producer: &tokio_postgres::Client, statement: &str) {
    let mut ear = Ear::on(&outbox.url, "postrider_outbox").await;
    let mut relay = watch(outbox).await;
    producer.batch_execute(statement).await.unwrap();
    assert_eq!(ear.next().await, "");
    assert!(relay.try_quiet().await.unwrap());
    producer.batch_execute(statement).await.unwrap();
    assert!(ear.has_heard_nothing(outbox).await);
    assert_eq!(outbox.count().await, 2);
}

#[tokio::test]
async fn a_role_that_may_only_call_publish_wakes_a_relay_that_sleeps_and_no_other() {
    let outbox = outbox().await;
    let publish = "EXECUTE ON FUNCTION outbox.publish(text, text, text, jsonb, text, text, timestamptz, uuid, text, \
                   text, text, text, text, integer, bigint, boolean)";
    let producer = role(&outbox, &[publish]).await;
    is_told_of(
        &outbox,
        &producer,
        "SELECT outbox.publish('e', 'k', '{}'::text)",
    )
    .await;
    producer.batch_execute(&insert("k")).await.unwrap_err();
}

#[tokio::test]
async fn a_role_that_may_only_insert_wakes_a_relay_that_sleeps_and_no_other() {
    let outbox = outbox().await;
    let producer = role(&outbox, &["INSERT ON outbox.messages"]).await;
    is_told_of(&outbox, &producer, &insert("k")).await;
    let read = "SELECT count(*) FROM outbox.messages";
    producer.batch_execute(read).await.unwrap_err();
}

#[tokio::test]
async fn an_outbox_in_a_schema_of_another_name_wakes_by_its_own_name_and_has_a_lock_of_its_own() {
    let outbox = outbox().await;
    let other = database_in(&outbox.url, "other").await;
    let mut ear = Ear::on(&outbox.url, "postrider_outbox").await;
    let mut ear_of_other = Ear::on(&outbox.url, "postrider_other").await;
    let mut relay = watch(&outbox).await;
    let mut relay_of_other = other.watch_outbox().await.unwrap();
    let insert = insert("k").replace("outbox.", "other.");
    assert!(relay.try_quiet().await.unwrap());
    outbox.client.batch_execute(&insert).await.unwrap();
    assert_eq!(ear_of_other.next().await, "");
    assert!(relay_of_other.try_quiet().await.unwrap());
    outbox.client.batch_execute(&insert).await.unwrap();
    let mark = "NOTIFY postrider_other, 'mark'";
    outbox.client.batch_execute(mark).await.unwrap();
    assert_eq!(ear_of_other.next().await, "mark");
    relay_of_other.hand_over().await.unwrap();
    assert_eq!(ear_of_other.next().await, "");
    assert!(ear.has_heard_nothing(&outbox).await);
}

/// Hazard: where commits are slow, rows never come fast, and it shows in those who wait.
#[tokio::test]
async fn a_look_shows_that_producers_wait_for_each_other_to_notify() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let test = server.create_database().await.unwrap();
    let outbox = outbox_at(&test.url, &test.name).await;
    let mut watch = watch(&outbox).await;
    let before = watch.look().await.unwrap();
    assert!(!before.notify_contended);
    // A commit waits for a standby that never comes, with what it holds.
    let set_up = |sql: &'static str| async {
        outbox.client.batch_execute(sql).await.unwrap();
        outbox
            .client
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .unwrap();
    };
    set_up("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    let producer = |name: &'static str| {
        let url = format!("{}?application_name={name}", test.url);
        tokio::spawn(async move { client(&url).await.batch_execute(&insert("k")).await })
    };
    let waits = async |name: &str, event: &str| {
        until(&format!("{name} waits for {event}"), || async {
            let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event = $2)";
            let row = outbox.client.query_one(waits, &[&name, &event]).await;
            row.unwrap().get(0)
        })
        .await;
    };
    let first = producer("first");
    waits("first", "SyncRep").await;
    let one = watch.look().await.unwrap();
    assert!(!one.notify_contended, "nobody waits for it");
    let second = producer("second");
    waits("second", "object").await;
    let two = watch.look().await.unwrap();
    assert!(two.notify_contended);
    assert_eq!(two.writers.len(), 2);

    set_up("ALTER SYSTEM RESET synchronous_standby_names").await;
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    let after = watch.look().await.unwrap();
    assert!(!after.notify_contended && after.writers.is_empty());
}
