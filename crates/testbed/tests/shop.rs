//! Producer, consumer and auditor together, with a relay of ten lines between them.

use std::time::Duration;

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_testbed::{
    Audit, Consumer, PostgresOptions, PostgresServer, Producer, ProducerOptions, QueueKind,
    RabbitOptions, RabbitServer, consumer, wait_until,
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn the_books_balance_through_a_crash_of_the_database_and_a_restart_of_the_broker() {
    let (postgres, rabbit) = tokio::try_join!(
        PostgresServer::start(PostgresOptions::default()),
        RabbitServer::start(RabbitOptions::default())
    )
    .unwrap();
    let database = postgres.create_database().await.unwrap();
    database
        .client()
        .await
        .unwrap()
        .batch_execute(
            "CREATE SCHEMA outbox; CREATE TABLE outbox.messages (id uuid, exchange text, routing_key text, \
             payload bytea, content_type text)",
        )
        .await
        .unwrap();
    let vhost = rabbit.create_vhost().await.unwrap();
    let connection = vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    consumer::declare_queue(&channel, "orders", QueueKind::Quorum)
        .await
        .unwrap();
    consumer::declare_exchange(&channel, "shop").await.unwrap();
    consumer::bind(&channel, "orders", "shop", "order.*")
        .await
        .unwrap();

    let audit = Audit::new();
    let mut options = ProducerOptions::new(&database.url, "shop", "order.placed");
    options.rollback_share = 0.25;
    options.messages_per_transaction = 2;
    let producer = Producer::start(options, &audit).await.unwrap();
    producer.wait_for_committed(100, DEADLINE).await.unwrap();
    postgres.kill().await.unwrap();
    postgres.start_again().await.unwrap();
    let before = producer.committed();
    producer
        .wait_for_committed(before + 100, DEADLINE)
        .await
        .unwrap();
    producer.stop().await.unwrap();

    let consumer = Consumer::start(&vhost.url, "orders", &audit);
    consumer.wait_until_consuming(DEADLINE).await.unwrap();
    rabbit.restart().await.unwrap();
    let rows = database
        .client()
        .await
        .unwrap()
        .query("SELECT id, payload FROM outbox.messages", &[])
        .await
        .unwrap();
    let connection = vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    for row in &rows {
        let id: Uuid = row.get(0);
        channel
            .basic_publish(
                "shop".into(),
                "order.placed".into(),
                BasicPublishOptions::default(),
                row.get(1),
                BasicProperties::default().with_message_id(id.to_string().into()),
            )
            .await
            .unwrap()
            .await
            .unwrap();
    }
    audit.wait_until_all_delivered(DEADLINE).await.unwrap();
    let report = audit.report();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.unknown, 0);
    assert_eq!(report.committed, rows.len() as u64, "{report}");
    assert!(report.rolled_back > 0);
    assert_eq!(report.duplicates, 0);
    assert_eq!(audit.latencies().len(), rows.len());
}

#[tokio::test]
async fn a_shop_with_a_limit_ends_by_itself() {
    let database = postrider_testbed::shared::database().await;
    database
        .client()
        .await
        .unwrap()
        .batch_execute(
            "CREATE SCHEMA outbox; CREATE TABLE outbox.messages (id uuid, exchange text, routing_key text, \
             payload bytea, content_type text)",
        )
        .await
        .unwrap();
    let audit = Audit::new();
    let mut options = ProducerOptions::new(&database.url, "shop", "order.placed");
    options.transactions = Some(50);
    options.rate = Some(1_000.0);
    Producer::start(options, &audit)
        .await
        .unwrap()
        .finish(DEADLINE)
        .await
        .unwrap();
    let report = audit.report();
    assert_eq!(report.committed + report.rolled_back, 50);
    assert!(report.committed > report.rolled_back, "{report}");
    wait_until(DEADLINE, "the shop's sessions to end", async || {
        let client = database.client().await.unwrap();
        let row = client
            .query_one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop' AND datname = current_database()", &[])
            .await
            .unwrap();
        row.get::<_, i64>(0) == 0
    })
    .await
    .unwrap();
}
