//! What becomes of messages that the broker does not take.

use lapin::options::BasicGetOptions;
use postrider_testbed::consumer::{bind, declare_exchange};
use postrider_testbed::daemon::Daemon;
use postrider_testbed::producer::{Producer, ProducerOptions};
use postrider_testbed::{RabbitOptions, RabbitServer, wait_until};

use crate::stage::{
    DEADLINE, EXCHANGE, KEY, QUEUE, Stage, declare_small_queue, insert, rows_of, wait_for_rows,
};

/// A daemon that tries again soon.
async fn impatient(stage: &Stage, max_attempts: &str) -> Daemon {
    let options = stage
        .options()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", max_attempts)
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "50ms")
        .env("POSTRIDER_RETRY_MAX_DELAY", "500ms");
    Daemon::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_queue_takes_is_deferred_and_goes_out_once_when_one_does() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let daemon = impatient(&stage, "1000").await;
    let id = insert(&client, EXCHANGE, "later", b"patient").await;
    daemon
        .wait_for_metric(
            "postrider_retries_total",
            &[("reason", "unroutable")],
            |retries| retries >= 3.0,
            DEADLINE,
        )
        .await
        .unwrap();
    let row = client
        .query_one(
            "SELECT id, reason, cause, attempts, (SELECT count(*) FROM outbox.messages) FROM outbox.deferred",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, uuid::Uuid>(0), id);
    assert_eq!(row.get::<_, &str>(1), "unroutable");
    assert_eq!(row.get::<_, &str>(2), "retry");
    assert!(row.get::<_, i32>(3) >= 3);
    assert_eq!(row.get::<_, i64>(4), 0);

    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    bind(&channel, QUEUE, EXCHANGE, "later").await.unwrap();
    stage.audit.committed([id]);
    stage.assert_clean().await;
    wait_for_rows(&client, "deferred", 0).await;
    assert_eq!(stage.audit.report().duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_to_a_missing_exchange_among_10_000_delays_no_other_and_costs_no_other_an_attempt()
 {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) \
             SELECT CASE n WHEN 5000 THEN 'no-such-exchange' ELSE $1 END, $2, 'x' FROM generate_series(1, 10000) AS n",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let daemon = impatient(&stage, "3").await;
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "dead_letters", 1).await;
    let row = client
        .query_one(
            "SELECT exchange, reason, attempts, (SELECT count(*) FROM outbox.deferred) FROM outbox.dead_letters",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "no-such-exchange");
    assert_eq!(row.get::<_, &str>(1), "exchange_missing");
    assert_eq!(row.get::<_, i32>(2), 3);
    assert_eq!(row.get::<_, i64>(3), 0);
    let (_, metrics) = daemon.http("/metrics").await.unwrap();
    for line in metrics.lines() {
        if line.starts_with("postrider_retries_total{") && !line.contains("exchange_missing") {
            assert!(line.ends_with(" 0"), "{line}");
        }
    }
    assert!(stage.depth(QUEUE).await >= 9_999);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_unroutable_messages_among_ten_thousand_become_dead_letters_and_the_others_arrive()
 {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) \
             SELECT $1, CASE n % 10 WHEN 0 THEN 'nobody' ELSE $2 END, 'x' FROM generate_series(1, 10000) AS n",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let daemon = impatient(&stage, "2").await;
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "dead_letters", 1_000).await;
    assert_eq!(stage.depth(QUEUE).await, 9_000);
    for (name, wanted) in [
        ("postrider_dead_letters", 1_000.0),
        ("postrider_dead_lettered_total", 1_000.0),
    ] {
        let labels: &[(&str, &str)] = if name.ends_with("_total") {
            &[("reason", "unroutable")]
        } else {
            &[]
        };
        daemon
            .wait_for_metric(name, labels, |value| value == wanted, DEADLINE)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_accepted_as_sent_where_the_policy_says_so_and_only_there() {
    let stage = Stage::new().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "gossip").await.unwrap();
    let client = stage.sql().await;
    for exchange in ["gossip", EXCHANGE] {
        insert(&client, exchange, "nobody", b"news").await;
    }
    let options = stage
        .options()
        .config("[retry]\nmax_attempts = 1\n[exchanges.gossip]\nunroutable = \"accept\"\n");
    let _daemon = Daemon::start(options).await.unwrap();
    wait_for_rows(&client, "dead_letters", 1).await;
    stage.wait_until_outbox_holds(0).await;
    let exchange: String = client
        .query_one("SELECT exchange FROM outbox.dead_letters", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(exchange, EXCHANGE);
    assert_eq!(rows_of(&client, "deferred").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_that_rejects_costs_attempts_of_its_messages_alone_and_they_arrive_when_it_is_drained()
 {
    let stage = Stage::new().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_small_queue(&channel).await;
    let client = stage.sql().await;
    for _ in 0..50 {
        insert(&client, "", "small", b"squeezed").await;
    }
    let _consumer = stage.consumer();
    let daemon = impatient(&stage, "1000").await;
    daemon
        .wait_for_metric(
            "postrider_retries_total",
            &[("reason", "nacked")],
            |retries| retries > 0.0,
            DEADLINE,
        )
        .await
        .unwrap();
    stage.produce(500).await;
    stage.assert_clean().await;

    let mut drained = std::collections::HashSet::new();
    wait_until(DEADLINE, "all fifty messages", async || {
        while let Some(message) = channel
            .basic_get("small".into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap()
        {
            let id = message.delivery.properties.message_id().clone();
            drained.insert(id.unwrap().to_string());
        }
        drained.len() == 50
    })
    .await
    .unwrap();
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "deferred", 0).await;
    assert_eq!(rows_of(&client, "dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_fault_becomes_a_dead_letter_at_once_with_everything_needed_to_send_it_again() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_MAX_MESSAGE_BYTES", "1MiB");
    let large = insert(&client, EXCHANGE, KEY, &vec![7; 2 << 20]).await;
    let daemon = Daemon::start(options).await.unwrap();
    wait_for_rows(&client, "dead_letters", 1).await;
    let row = client
        .query_one(
            "SELECT id, reason, attempts, payload FROM outbox.dead_letters",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, uuid::Uuid>(0), large);
    assert_eq!(row.get::<_, &str>(1), "too_large");
    assert_eq!(row.get::<_, i32>(2), 1);
    assert!(row.get::<_, Vec<u8>>(3) == vec![7; 2 << 20]);
    daemon
        .wait_for_log("dead_lettered", DEADLINE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_message_goes_out_when_it_is_due_and_not_before() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let _daemon = stage.daemon().await;
    let row = client
        .query_one(
            "SELECT outbox.publish(exchange => $1, routing_key => $2, payload => '{}'::json, \
                 deliver_at => clock_timestamp() + interval '3 seconds'), clock_timestamp() + interval '3 seconds'",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let (id, due): (uuid::Uuid, std::time::SystemTime) = (row.get(0), row.get(1));
    assert_eq!(rows_of(&client, "deferred").await, 1);
    assert_eq!(rows_of(&client, "messages").await, 0);
    // Others overtake it.
    stage.produce(50).await;
    stage.assert_clean().await;
    stage.audit.committed([id]);
    stage.assert_clean().await;
    let now: std::time::SystemTime = client
        .query_one("SELECT clock_timestamp()", &[])
        .await
        .unwrap()
        .get(0);
    assert!(now + std::time::Duration::from_millis(100) >= due);
    wait_for_rows(&client, "deferred", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_broker_costs_no_message_an_attempt() {
    let broker = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let stage = Stage::on_rabbit(&broker).await;
    let _consumer = stage.consumer();
    let daemon = impatient(&stage, "2").await;
    let options = ProducerOptions {
        rate: Some(500.0),
        ..stage.producer()
    };
    let producer = Producer::start(options, &stage.audit).await.unwrap();
    stage
        .audit
        .wait_for_deliveries(300, DEADLINE)
        .await
        .unwrap();
    broker.stop().await.unwrap();
    let before = producer.committed();
    producer
        .wait_for_committed(before + 500, DEADLINE)
        .await
        .unwrap();
    broker.start_again().await.unwrap();
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    let client = stage.sql().await;
    assert_eq!(rows_of(&client, "deferred").await, 0);
    assert_eq!(rows_of(&client, "dead_letters").await, 0);
    let (_, metrics) = daemon.http("/metrics").await.unwrap();
    for line in metrics.lines() {
        if line.starts_with("postrider_retries_total{")
            || line.starts_with("postrider_dead_lettered_total{")
        {
            assert!(line.ends_with(" 0"), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_while_rows_move_leaves_each_in_exactly_one_table() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) \
             SELECT $1, 'nobody', 'x' FROM generate_series(1, 5000)",
            &[&EXCHANGE],
        )
        .await
        .unwrap();
    for _ in 0..4 {
        let daemon = impatient(&stage, "1000").await;
        daemon
            .wait_for_metric(
                "postrider_retries_total",
                &[("reason", "unroutable")],
                |retries| retries >= 1_000.0,
                DEADLINE,
            )
            .await
            .unwrap();
        daemon.kill().await.unwrap();
        let places: i64 = client
            .query_one(
                "SELECT count(*) FROM (SELECT seq, id FROM outbox.messages UNION ALL \
                 SELECT seq, id FROM outbox.deferred UNION ALL SELECT seq, id FROM outbox.dead_letters) AS places",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let ids: i64 = client
            .query_one(
                "SELECT count(DISTINCT id) FROM (SELECT id FROM outbox.messages UNION ALL \
                 SELECT id FROM outbox.deferred UNION ALL SELECT id FROM outbox.dead_letters) AS places",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        assert_eq!((places, ids), (5_000, 5_000));
    }
    let _daemon = impatient(&stage, "4").await;
    wait_for_rows(&client, "dead_letters", 5_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_message_that_cannot_be_moved_keeps_no_confirmed_one_from_being_settled() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let stuck = insert(&client, EXCHANGE, "nobody", b"in the way").await;
    // As after a partial restore: its place is taken.
    client
        .batch_execute(
            "INSERT INTO outbox.deferred \
                 (seq, id, exchange, routing_key, payload, headers, supersede, created_at, attempts, due_at, cause) \
             SELECT seq, gen_random_uuid(), exchange, routing_key, payload, headers, supersede, created_at, 0, \
                 now() + interval '1 day', 'scheduled' \
             FROM outbox.messages",
        )
        .await
        .unwrap();
    for _ in 0..10 {
        let id = insert(&client, EXCHANGE, KEY, b"good").await;
        stage.audit.committed([id]);
    }
    let daemon = impatient(&stage, "1000").await;
    stage.assert_clean().await;
    wait_for_rows(&client, "messages", 1).await;
    daemon.wait_for_log("not_moved", DEADLINE).await.unwrap();
    stage.produce(100).await;
    stage.assert_clean().await;
    wait_for_rows(&client, "messages", 1).await;
    assert_eq!(stage.audit.report().duplicates, 0);
    let left: uuid::Uuid = client
        .query_one("SELECT id FROM outbox.messages", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, stuck);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_the_frame_and_a_payload_beyond_the_brokers_limit_are_given_up_at_once_and_delay_no_other()
 {
    let options = RabbitOptions {
        config: vec!["max_message_size = 100000".to_owned()],
        ..RabbitOptions::default()
    };
    let broker = RabbitServer::start(options).await.unwrap();
    let stage = Stage::on_rabbit(&broker).await;
    let client = stage.sql().await;
    let _consumer = stage.consumer();
    for n in 0..200 {
        if n == 100 {
            // Three times as long on the wire as in the table, which takes it.
            client
                .execute(
                    "INSERT INTO outbox.messages (exchange, routing_key, payload, headers) \
                     SELECT $1, $2, 'x', jsonb_build_object('a', jsonb_agg(1)) FROM generate_series(1, 21800)",
                    &[&EXCHANGE, &KEY],
                )
                .await
                .unwrap();
            insert(&client, EXCHANGE, KEY, &vec![7; 100_001]).await;
        }
        let id = insert(&client, EXCHANGE, KEY, b"x").await;
        stage.audit.committed([id]);
    }
    let daemon = stage.daemon().await;
    stage.assert_clean().await;
    wait_for_rows(&client, "dead_letters", 2).await;
    wait_for_rows(&client, "messages", 0).await;
    assert_eq!(rows_of(&client, "deferred").await, 0);
    let rows = client
        .query(
            "SELECT reason, attempts FROM outbox.dead_letters ORDER BY seq",
            &[],
        )
        .await
        .unwrap();
    let given_up: Vec<(String, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(
        given_up,
        [("not_encodable".to_owned(), 1), ("too_large".to_owned(), 1)]
    );
    let reconnects = daemon
        .metric("postrider_reconnects_total", &[("peer", "broker")])
        .await;
    assert_eq!(reconnects, Some(0.0));
}
