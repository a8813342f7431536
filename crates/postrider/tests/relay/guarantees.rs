//! The guarantees of docs/guarantees.md, each a test whose name is the sentence.

use postrider_testbed::consumer::bind;
use postrider_testbed::daemon::Daemon;
use postrider_testbed::producer::{Producer, ProducerOptions};
use postrider_testbed::{PostgresOptions, PostgresServer, RabbitOptions, RabbitServer, StopMode};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, insert, wait_for_rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_deleted_only_after_rabbitmq_confirmed_its_message_and_routed_it_to_at_least_one_queue()
 {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let unroutable = insert(&client, EXCHANGE, "nobody.listens", b"1").await;
    let missing = insert(&client, "no-such-exchange", KEY, b"2").await;
    for _ in 0..20 {
        let id = insert(&client, EXCHANGE, KEY, b"3").await;
        stage.audit.committed([id]);
    }
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    stage.assert_clean().await;
    for (id, reason) in [(unroutable, "unroutable"), (missing, "exchange_missing")] {
        let line = daemon
            .wait_for_log(&id.to_string(), DEADLINE)
            .await
            .unwrap();
        assert!(line.contains(reason), "{line}");
    }
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "deferred", 2).await;

    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    bind(&channel, QUEUE, EXCHANGE, "nobody.listens")
        .await
        .unwrap();
    stage.audit.committed([unroutable]);
    stage.assert_clean().await;
    wait_for_rows(&client, "deferred", 1).await;
    let left: uuid::Uuid = client
        .query_one("SELECT id FROM outbox.deferred", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_transaction_that_rolled_back_or_whose_commit_is_not_durable_yet_is_never_published()
 {
    // Asynchronous commits become durable only when the WAL writer comes by: every ten seconds here.
    let server = PostgresServer::start(PostgresOptions {
        config: vec![
            "wal_writer_delay = 10s".into(),
            "wal_writer_flush_after = 1GB".into(),
        ],
        ..PostgresOptions::default()
    })
    .await
    .unwrap();
    let stage = Stage::on_postgres(&server).await;
    stage
        .sql()
        .await
        .batch_execute(&format!(
            "ALTER DATABASE \"{}\" SET synchronous_commit = off",
            stage.database.name
        ))
        .await
        .unwrap();
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    let producer = Producer::start(
        ProducerOptions {
            rollback_share: 0.4,
            ..stage.producer()
        },
        &stage.audit,
    )
    .await
    .unwrap();
    for _ in 0..3 {
        stage.wait_for_more(200).await;
        server.kill().await.unwrap();
        server.start_again().await.unwrap();
    }
    producer.stop().await.unwrap();
    stage
        .audit
        .wait_until_all_delivered(DEADLINE)
        .await
        .unwrap();

    // What the database still knows after its crashes is what was committed for good.
    let client = stage.sql().await;
    let kept: std::collections::HashSet<uuid::Uuid> = client
        .query("SELECT message_id FROM shop.orders", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let phantoms: Vec<_> = stage
        .audit
        .deliveries()
        .into_iter()
        .filter(|delivery| !kept.contains(&delivery.id))
        .collect();
    assert!(phantoms.is_empty(), "{} phantoms", phantoms.len());
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_crash_of_the_relay_every_committed_message_is_delivered_at_least_once() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let producer = stage.busy_shop().await;
    for _ in 0..8 {
        let daemon = stage.daemon().await;
        stage.wait_for_more(300).await;
        daemon.kill().await.unwrap();
    }
    let _daemon = stage.daemon().await;
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_crash_of_the_database_every_committed_message_is_delivered_at_least_once() {
    let server = PostgresServer::start(PostgresOptions::default())
        .await
        .unwrap();
    let stage = Stage::on_postgres(&server).await;
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    let producer = stage.busy_shop().await;
    for round in 0..4 {
        stage.wait_for_more(300).await;
        if round % 2 == 0 {
            server.kill().await.unwrap();
            server.start_again().await.unwrap();
        } else {
            server.restart(StopMode::Immediate).await.unwrap();
        }
    }
    stage.wait_for_more(300).await;
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    assert!(daemon.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_crash_of_the_broker_every_committed_message_is_delivered_at_least_once() {
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let stage = Stage::on_rabbit(&server).await;
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    let options = ProducerOptions {
        rate: Some(500.0),
        ..stage.producer()
    };
    let producer = Producer::start(options, &stage.audit).await.unwrap();
    for graceful in [false, true] {
        stage.wait_for_more(300).await;
        if graceful {
            server.restart().await.unwrap();
        } else {
            server.kill().await.unwrap();
            server.start_again().await.unwrap();
        }
    }
    stage.wait_for_more(300).await;
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    assert!(daemon.is_running());
    daemon
        .wait_for_metric(
            "postrider_reconnects_total",
            &[("peer", "broker")],
            |reconnects| reconnects >= 2.0,
            DEADLINE,
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_by_configuration_whatever_the_backlog_or_the_payload_sizes() {
    const MESSAGES: u32 = 1_000;
    let stage = Stage::new().await;
    stage
        .sql()
        .await
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) \
             SELECT $1, $2, decode(repeat(md5(n::text), 65536), 'hex') FROM generate_series(1, 1000) AS n",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let daemon = stage.daemon().await;
    stage.wait_until_outbox_holds(0).await;
    assert_eq!(stage.depth(QUEUE).await, MESSAGES);
    let peak = daemon.peak_rss_bytes().unwrap();
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_with_large_headers_and_returned_payloads_too() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    // Small as text, large when taken apart; and payloads that come back.
    client
        .batch_execute(&format!(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, headers)
             SELECT '{EXCHANGE}', '{KEY}', 'x', jsonb_build_object('a', array_fill(1, ARRAY[20000]))
             FROM generate_series(1, 1000);
             INSERT INTO outbox.messages (exchange, routing_key, payload)
             SELECT '{EXCHANGE}', 'nobody.listens', decode(repeat('00', 1 << 20), 'hex')
             FROM generate_series(1, 200)"
        ))
        .await
        .unwrap();
    let daemon = stage.daemon().await;
    // The headers of the first thousand exceed the frame: they stay as well.
    for (reason, messages) in [("not_encodable", 1000.0), ("unroutable", 200.0)] {
        daemon
            .wait_for_metric(
                "postrider_publish_failures_total",
                &[("reason", reason)],
                |failures| failures >= messages,
                DEADLINE,
            )
            .await
            .unwrap();
    }
    let peak = daemon.peak_rss_bytes().unwrap();
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_relays_on_one_outbox_deliver_everything_once_in_a_run_without_faults() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemons = [
        stage.daemon().await,
        stage.daemon().await,
        stage.daemon().await,
    ];
    for daemon in &daemons {
        wait_until_readyz(daemon, None).await;
    }
    stage.produce(20_000).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let report = stage.audit.report();
    assert_eq!(report.duplicates, 0, "{report}");
    let mut sharing = 0;
    for daemon in &daemons {
        let published = daemon
            .metric("postrider_published_total", &[("exchange", EXCHANGE)])
            .await;
        sharing += u32::from(published.is_some_and(|messages| messages > 0.0));
        assert_eq!(
            daemon.metric("postrider_relays", &[]).await,
            Some(3.0),
            "every relay sees all of them"
        );
    }
    assert!(sharing >= 2, "only {sharing} of the relays worked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_paused_past_the_claims_timeout_repeats_at_most_and_loses_nothing() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage.options().env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "1s");
    let paused = Daemon::start(options).await.unwrap();
    let producer = stage.busy_shop().await;
    stage
        .audit
        .wait_for_deliveries(300, DEADLINE)
        .await
        .unwrap();
    paused.pause().unwrap();
    let _other = stage.daemon().await;
    stage.wait_for_more(1_000).await;
    producer.stop().await.unwrap();
    // The server ends the paused relay's open claims: the rows it held go out by the other one.
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    paused.resume().unwrap();
    wait_until_readyz(&paused, None).await;
    stage.produce(500).await;
    stage.assert_clean().await;
}
