//! Exchanges and queues that refuse messages or do not answer, while others take theirs.

use lapin::options::BasicGetOptions;
use postrider_testbed::audit::Audit;
use postrider_testbed::consumer::{Consumer, QueueKind, bind, declare_exchange, declare_queue};
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::{Client, Proxy, RabbitOptions, RabbitServer, shared, wait_until};
use uuid::Uuid;

use crate::stage::{
    DEADLINE, EXCHANGE, KEY, QUEUE, Stage, declare_small_queue, insert, rows_of, wait_for_rows,
};

/// Tries again soon, and has attempts to spare unless told otherwise.
fn impatient(stage: &Stage) -> DaemonOptions {
    stage
        .options()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "1000")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "50ms")
        .env("POSTRIDER_RETRY_MAX_DELAY", "500ms")
        .env("POSTRIDER_RELAY_STRAGGLER_TIMEOUT", "500ms")
}

async fn suspended(daemon: &Daemon, exchange: &str, reason: &str, routes: f64) {
    let labels = [("exchange", exchange), ("reason", reason)];
    daemon
        .wait_for_metric(
            "postrider_suspended_routes",
            &labels,
            |shown| shown == routes,
            DEADLINE,
        )
        .await
        .unwrap();
}

async fn sum_of_attempts(client: &Client) -> i64 {
    let sql = "SELECT coalesce(sum(attempts), 0)::bigint FROM outbox.deferred";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Waits until every deferred message has come due and was deferred again, twice.
async fn wait_until_deferred_again_twice(client: &Client) {
    for _ in 0..2 {
        let now: std::time::SystemTime = client
            .query_one("SELECT clock_timestamp()", &[])
            .await
            .unwrap()
            .get(0);
        let sql = "SELECT count(*) FROM outbox.deferred WHERE deferred_at < $1";
        wait_until(DEADLINE, "all to be deferred again", async || {
            let row = client.query_one(sql, &[&now]).await.unwrap();
            row.get::<_, i64>(0) == 0
        })
        .await
        .unwrap();
    }
}

async fn assert_nothing_charged(daemon: &Daemon) {
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
async fn a_queue_that_does_not_answer_delays_no_other_message_and_costs_none_an_attempt() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (neighbours, stuck) = (Audit::new(), Audit::new());
    let mut consumers = Vec::new();
    for n in 0..20 {
        let queue = format!("q{n}");
        declare_queue(&channel, &queue, QueueKind::Quorum)
            .await
            .unwrap();
        bind(&channel, &queue, EXCHANGE, &queue).await.unwrap();
        let audit = if n == 7 { &stuck } else { &neighbours };
        consumers.push(Consumer::start(&stage.vhost.url, &queue, audit));
    }
    let produce = async |rounds: usize| {
        for _ in 0..rounds {
            for n in 0..20 {
                let id = insert(&client, EXCHANGE, &format!("q{n}"), b"x").await;
                let audit = if n == 7 { &stuck } else { &neighbours };
                audit.committed([id]);
            }
        }
    };
    // One worker, whose channel knows every queue before one of them stops. A channel that sends to that one for the first time
    // then is held, with all its confirms, and whatever else it has sent to is sent again elsewhere: repeats, as promised.
    let options = impatient(&stage).env("POSTRIDER_RELAY_WORKERS", "1");
    let daemon = Daemon::start(options).await.unwrap();
    produce(5).await;
    for audit in [&neighbours, &stuck] {
        audit.wait_until_all_delivered(DEADLINE).await.unwrap();
    }

    let rabbit = shared::rabbit().await;
    rabbit.suspend_queue(&stage.vhost.name, "q7").await.unwrap();
    // Again and again: also what comes after the route is known to be stuck, and while it is probed.
    for _ in 0..5 {
        produce(10).await;
        neighbours.wait_until_all_delivered(DEADLINE).await.unwrap();
    }
    suspended(&daemon, EXCHANGE, "confirm_timeout", 1.0).await;
    wait_for_rows(&client, "messages", 0).await;
    assert_eq!(rows_of(&client, "deferred").await, 50);
    assert_eq!(sum_of_attempts(&client).await, 0);
    assert_eq!(
        daemon
            .metric("postrider_reconnects_total", &[("peer", "broker")])
            .await,
        Some(0.0)
    );

    rabbit.resume_queue(&stage.vhost.name, "q7").await.unwrap();
    stuck.wait_until_all_delivered(DEADLINE).await.unwrap();
    wait_for_rows(&client, "deferred", 0).await;
    suspended(&daemon, EXCHANGE, "confirm_timeout", 0.0).await;
    for audit in [&neighbours, &stuck] {
        let report = audit.report();
        assert!(report.is_clean(), "{report}");
    }
    let report = neighbours.report();
    assert_eq!(report.duplicates, 0, "{report}");
    assert_nothing_charged(&daemon).await;
    daemon
        .wait_for_log("route_resumed", DEADLINE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_for_a_missing_exchange_is_not_charged_message_by_message_and_goes_out_when_it_is_declared()
 {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let _consumer = stage.consumer();
    let daemon = Daemon::start(impatient(&stage)).await.unwrap();
    let mut ids: Vec<Uuid> = Vec::new();
    for _ in 0..200 {
        ids.push(insert(&client, "not-yet", "k", b"x").await);
    }
    suspended(&daemon, "not-yet", "exchange_missing", 1.0).await;
    stage.produce(200).await;
    stage.assert_clean().await;
    assert_eq!(stage.audit.report().duplicates, 0);
    wait_for_rows(&client, "deferred", 200).await;
    wait_until_deferred_again_twice(&client).await;
    // Each would have been charged three times.
    let attempts = sum_of_attempts(&client).await;
    assert!((1..200).contains(&attempts), "{attempts}");

    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "not-yet").await.unwrap();
    declare_queue(&channel, "late", QueueKind::Quorum)
        .await
        .unwrap();
    bind(&channel, "late", "not-yet", "k").await.unwrap();
    let late = Audit::new();
    late.committed(ids);
    let _consumer = Consumer::start(&stage.vhost.url, "late", &late);
    late.wait_until_all_delivered(DEADLINE).await.unwrap();
    wait_for_rows(&client, "deferred", 0).await;
    suspended(&daemon, "not-yet", "exchange_missing", 0.0).await;
    let report = late.report();
    assert!(report.is_clean(), "{report}");
    assert_eq!(rows_of(&client, "dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_taken_away_and_given_back_stops_one_exchange_and_resumes_it() {
    let rabbit = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let stage = Stage::on_rabbit(&rabbit).await;
    let client = stage.sql().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_exchange(&channel, "sealed").await.unwrap();
    declare_queue(&channel, "letters", QueueKind::Quorum)
        .await
        .unwrap();
    bind(&channel, "letters", "sealed", "k").await.unwrap();
    let sealed = Audit::new();
    let _letters = Consumer::start(&stage.vhost.url, "letters", &sealed);
    let _orders = stage.consumer();
    let user = format!("relay-{}", Uuid::now_v7().simple());
    rabbit.add_user(&user, "secret").await.unwrap();
    let permit = async |write: &str| {
        let vhost = &stage.vhost.name;
        rabbit
            .set_permissions(&user, vhost, "^$", write, "^$")
            .await
            .unwrap();
    };
    permit(".*").await;
    let url = stage.vhost.url_for(&user, "secret", stage.vhost.port);
    let daemon = Daemon::start(impatient(&stage).env("POSTRIDER_BROKER_URL", url))
        .await
        .unwrap();
    let produce = async |count: usize| {
        for _ in 0..count {
            sealed.committed([insert(&client, "sealed", "k", b"x").await]);
        }
    };
    produce(10).await;
    sealed.wait_until_all_delivered(DEADLINE).await.unwrap();

    permit(&format!("^{EXCHANGE}$")).await;
    // A channel keeps the permissions it has asked for.
    rabbit
        .close_connections("permissions changed")
        .await
        .unwrap();
    produce(100).await;
    suspended(&daemon, "sealed", "forbidden", 1.0).await;
    stage.produce(200).await;
    stage.assert_clean().await;
    wait_for_rows(&client, "messages", 0).await;

    permit(".*").await;
    sealed.wait_until_all_delivered(DEADLINE).await.unwrap();
    suspended(&daemon, "sealed", "forbidden", 0.0).await;
    wait_for_rows(&client, "deferred", 0).await;
    let report = sealed.report();
    assert!(report.is_clean(), "{report}");
    assert_eq!(rows_of(&client, "dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_every_exchange_at_once_is_an_outage_and_charges_nothing() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for name in ["a", "b", "c"] {
        declare_exchange(&channel, name).await.unwrap();
        bind(&channel, QUEUE, name, KEY).await.unwrap();
    }
    let _consumer = stage.consumer();
    let rabbit = shared::rabbit().await;
    let user = format!("relay-{}", Uuid::now_v7().simple());
    rabbit.add_user(&user, "secret").await.unwrap();
    let vhost = &stage.vhost.name;
    rabbit
        .set_permissions(&user, vhost, "^$", "^$", "^$")
        .await
        .unwrap();
    for _ in 0..30 {
        for name in ["a", "b", "c"] {
            let id = insert(&client, name, KEY, b"x").await;
            stage.audit.committed([id]);
        }
    }
    let url = stage.vhost.url_for(&user, "secret", stage.vhost.port);
    let daemon = Daemon::start(impatient(&stage).env("POSTRIDER_BROKER_URL", url))
        .await
        .unwrap();
    for name in ["a", "b", "c"] {
        suspended(&daemon, name, "forbidden", 1.0).await;
    }
    wait_for_rows(&client, "deferred", 90).await;
    let before = sum_of_attempts(&client).await;
    // The first exchange may be refused while no other has been: that costs one message an attempt.
    assert!(before <= 1, "{before}");
    wait_until_deferred_again_twice(&client).await;
    assert_eq!(sum_of_attempts(&client).await, before);

    rabbit
        .set_permissions(&user, vhost, "^$", ".*", "^$")
        .await
        .unwrap();
    stage.assert_clean().await;
    wait_for_rows(&client, "deferred", 0).await;
    assert_eq!(rows_of(&client, "dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_stays_full_is_left_alone_and_its_backlog_does_not_become_dead_letters() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare_small_queue(&channel).await;
    let _consumer = stage.consumer();
    let options = impatient(&stage).env("POSTRIDER_RETRY_MAX_ATTEMPTS", "50");
    let daemon = Daemon::start(options).await.unwrap();
    for _ in 0..300 {
        insert(&client, "", "small", b"squeezed").await;
    }
    suspended(&daemon, "amq.default", "nacked", 1.0).await;
    stage.produce(200).await;
    stage.assert_clean().await;
    wait_until_deferred_again_twice(&client).await;
    let before = sum_of_attempts(&client).await;
    wait_until_deferred_again_twice(&client).await;
    let after = sum_of_attempts(&client).await;
    let waiting = rows_of(&client, "deferred").await;
    // Two rounds would have charged each of them twice.
    assert!(after - before < waiting, "{before} {after} {waiting}");

    let mut drained = std::collections::HashSet::new();
    wait_until(DEADLINE, "all messages", async || {
        while let Some(message) = channel
            .basic_get("small".into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap()
        {
            let id = message.delivery.properties.message_id().clone();
            drained.insert(id.unwrap().to_string());
        }
        drained.len() == 300
    })
    .await
    .unwrap();
    wait_for_rows(&client, "deferred", 0).await;
    assert_eq!(rows_of(&client, "dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_flight_when_an_alarm_began_holds_no_locks_and_is_sent_once() {
    let broker =
        postrider_testbed::RabbitServer::start(postrider_testbed::RabbitOptions::default())
            .await
            .unwrap();
    let stage = Stage::on_rabbit(&broker).await;
    let client = stage.sql().await;
    let _consumer = stage.consumer();
    let daemon = Daemon::start(impatient(&stage)).await.unwrap();
    stage.produce(20).await;
    stage.assert_clean().await;

    broker.set_memory_alarm(true).await.unwrap();
    for _ in 0..200 {
        let id = insert(&client, EXCHANGE, KEY, b"x").await;
        stage.audit.committed([id]);
    }
    daemon
        .wait_for_log("claim_released", DEADLINE)
        .await
        .unwrap();
    wait_until(DEADLINE, "no row to be locked", async || {
        let sql =
            "SELECT count(*) FROM (SELECT FROM outbox.messages FOR UPDATE SKIP LOCKED) AS free";
        let free: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
        free == rows_of(&client, "messages").await
    })
    .await
    .unwrap();
    assert_eq!(rows_of(&client, "messages").await, 200);
    broker.set_memory_alarm(false).await.unwrap();
    stage.assert_clean().await;
    wait_for_rows(&client, "messages", 0).await;
    daemon
        .wait_for_log("confirmed_late", DEADLINE)
        .await
        .unwrap();
    assert_eq!(stage.audit.report().duplicates, 0);
    assert_nothing_charged(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_which_the_broker_ends_the_connection_is_found_and_its_neighbours_arrive() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let _consumer = stage.consumer();
    let proxy = Proxy::to_port(stage.vhost.port).await.unwrap();
    proxy.spoil_frames_with(b"POISON");
    let mut culprit = None;
    for n in 0..100 {
        if n == 50 {
            culprit = Some(insert(&client, EXCHANGE, KEY, b"POISON").await);
        } else {
            let id = insert(&client, EXCHANGE, KEY, b"x").await;
            stage.audit.committed([id]);
        }
    }
    let url = stage.vhost.url_for("guest", "guest", proxy.port());
    let options = impatient(&stage)
        .env("POSTRIDER_BROKER_URL", url)
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "3");
    let daemon = Daemon::start(options).await.unwrap();
    wait_for_rows(&client, "dead_letters", 1).await;
    let sql = "SELECT id, reason, error, attempts FROM outbox.dead_letters";
    let letter = client.query_one(sql, &[]).await.unwrap();
    assert_eq!(Some(letter.get::<_, Uuid>(0)), culprit);
    assert_eq!(letter.get::<_, &str>(1), "ends_connection");
    assert!(letter.get::<_, &str>(2).contains("FRAME_ERROR"));
    assert_eq!(letter.get::<_, i32>(3), 3);
    stage.assert_clean().await;
    wait_for_rows(&client, "messages", 0).await;
    assert_eq!(rows_of(&client, "deferred").await, 0);
    // What comes later goes out as ever.
    stage.produce(50).await;
    stage.assert_clean().await;
    drop(daemon);
}
