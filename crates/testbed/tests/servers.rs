//! The private servers themselves.

use std::time::Duration;

use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use postrider_testbed::{
    PostgresOptions, PostgresServer, RabbitOptions, RabbitServer, StopMode, shared, wait_until,
};

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn postgres_keeps_what_was_committed_through_every_kind_of_stop() {
    let server = PostgresServer::start(PostgresOptions {
        config: vec!["max_connections = 33".into()],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let database = server.create_database().await.unwrap();
    let client = database.client().await.unwrap();
    let connections: String = client
        .query_one("SHOW max_connections", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(connections, "33");
    client
        .batch_execute("CREATE TABLE kept (number integer)")
        .await
        .unwrap();
    let port = server.port();
    for (number, stop) in [
        None,
        Some(StopMode::Fast),
        Some(StopMode::Immediate),
        Some(StopMode::Smart),
    ]
    .into_iter()
    .enumerate()
    {
        let client = database.client().await.unwrap();
        client
            .execute("INSERT INTO kept VALUES ($1)", &[&(number as i32)])
            .await
            .unwrap();
        drop(client);
        match stop {
            None => {
                server.kill().await.unwrap();
                assert!(!server.is_running());
                server.start_again().await.unwrap();
            }
            Some(mode) => {
                // A smart stop waits for this one otherwise.
                server.terminate_backends("%").await.unwrap();
                server.restart(mode).await.unwrap();
            }
        }
        assert_eq!(server.port(), port);
        let rows: i64 = database
            .client()
            .await
            .unwrap()
            .query_one("SELECT count(*) FROM kept", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(rows, number as i64 + 1);
    }
}

#[tokio::test]
async fn a_paused_postgres_answers_when_it_is_resumed() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let client = server.client("postgres").await.unwrap();
    server.pause().await.unwrap();
    let mut answer = Box::pin(client.query_one("SELECT 1", &[]));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut answer)
            .await
            .is_err()
    );
    server.resume().await.unwrap();
    answer.await.unwrap();
}

#[tokio::test]
async fn rabbit_keeps_confirmed_messages_through_a_kill_and_a_restart() {
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let vhost = server.create_vhost().await.unwrap();
    let port = server.port();
    publish_to_quorum_queue(&vhost).await;
    server.kill().await.unwrap();
    assert!(!server.is_running());
    server.start_again().await.unwrap();
    publish_to_quorum_queue(&vhost).await;
    server.restart().await.unwrap();
    let (_connection, channel) = publish_to_quorum_queue(&vhost).await;
    for _ in 0..3 {
        wait_until(DEADLINE, "a message in the queue", async || {
            channel
                .basic_get("kept".into(), BasicGetOptions { no_ack: true })
                .await
                .unwrap()
                .is_some()
        })
        .await
        .unwrap();
    }
    assert_eq!(server.port(), port);
}

/// Publishes one confirmed message.
async fn publish_to_quorum_queue(
    vhost: &postrider_testbed::TestVhost,
) -> (lapin::Connection, lapin::Channel) {
    let connection = vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        lapin::types::AMQPValue::LongString("quorum".into()),
    );
    channel
        .queue_declare("kept".into(), QueueDeclareOptions::durable(), arguments)
        .await
        .unwrap();
    let confirmation = channel
        .basic_publish(
            "".into(),
            "kept".into(),
            BasicPublishOptions::default(),
            b"kept",
            BasicProperties::default().with_delivery_mode(2),
        )
        .await
        .unwrap()
        .await
        .unwrap();
    assert!(confirmation.is_ack());
    (connection, channel)
}

#[tokio::test]
async fn the_shared_servers_give_each_test_its_own_database_and_virtual_host() {
    let (first, second) = (shared::database().await, shared::database().await);
    assert_ne!(first.name, second.name);
    first.client().await.unwrap();
    second.client().await.unwrap();
    let (first, second) = (shared::vhost().await, shared::vhost().await);
    assert_ne!(first.name, second.name);
    first.connection().await.unwrap();
    second.connection().await.unwrap();
}

#[tokio::test]
async fn rabbit_can_be_controlled() {
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let vhost = server.create_vhost().await.unwrap();
    server.add_user("alice", "pa\"ss wörd").await.unwrap();
    server
        .set_permissions("alice", &vhost.name, "^$", ".*", "^$")
        .await
        .unwrap();
    let listed = server
        .ctl(&["list_permissions", "-p", &vhost.name])
        .await
        .unwrap();
    assert!(listed.contains("alice"), "{listed}");
    assert!(server.eval("1 / 0.").await.is_err());

    let connection = vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    server.set_memory_alarm(true).await.unwrap();
    channel
        .basic_publish(
            "".into(),
            "nowhere".into(),
            BasicPublishOptions::default(),
            b"",
            BasicProperties::default(),
        )
        .await
        .unwrap();
    wait_until(DEADLINE, "the connection to be blocked", async || {
        connection.status().blocked()
    })
    .await
    .unwrap();
    server.set_memory_alarm(false).await.unwrap();
    wait_until(DEADLINE, "the connection to be unblocked", async || {
        !connection.status().blocked()
    })
    .await
    .unwrap();

    server.close_connections("so there").await.unwrap();
    wait_until(DEADLINE, "the connection to be closed", async || {
        !connection.status().connected()
    })
    .await
    .unwrap();

    server.pause().await.unwrap();
    assert!(server.is_running());
    server.resume().await.unwrap();
    vhost.connection().await.unwrap();
}
