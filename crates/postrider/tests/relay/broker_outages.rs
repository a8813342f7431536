//! Faults of the broker while producers run: nothing is lost, no message is charged an attempt, and
//! delivery goes on by itself.

use postrider_testbed::daemon::Daemon;
use postrider_testbed::{RabbitOptions, RabbitServer, shared, wait_until};

use crate::lifecycle::wait_until_readyz;
use crate::stage::{DEADLINE, Stage};

const WORKERS: u64 = 2;
const BATCH_ROWS: u64 = 20;
/// So much that the relay is in the midst of it, with full batches in flight, when the fault comes.
const BACKLOG: i32 = 20_000;

async fn own_broker() -> (RabbitServer, Stage) {
    let broker = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let stage = Stage::on_rabbit(&broker).await;
    (broker, stage)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_while_producers_run_costs_no_attempt_and_repeats_only_what_was_in_flight() {
    let (broker, stage) = own_broker().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_WORKERS", WORKERS.to_string())
        .env("POSTRIDER_RELAY_BATCH_ROWS", BATCH_ROWS.to_string())
        .env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "5s");
    stage.place_backlog(BACKLOG, 100).await;
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(300.0).await;
    stage.wait_for_more(300).await;

    broker.set_memory_alarm(true).await.unwrap();
    wait_until_readyz(&daemon, Some("broker_blocked")).await;
    assert_eq!(
        daemon.metric("postrider_broker_blocked", &[]).await,
        Some(1.0)
    );
    // At this rate they take twenty seconds: the alarm outlasts the confirm timeout.
    let before = producer.committed();
    producer
        .wait_for_committed(before + 6_000, DEADLINE)
        .await
        .unwrap();
    wait_until_readyz(&daemon, Some("[\"broker_blocked\"]")).await;
    assert_eq!(daemon.http("/livez").await.unwrap().0, 200);
    let client = stage.sql().await;
    wait_until(DEADLINE, "no row is locked", async || {
        let counted = client
            .query_one(
                "SELECT (SELECT count(*) FROM outbox.messages), \
                        (SELECT count(*) FROM (SELECT seq FROM outbox.messages FOR UPDATE SKIP LOCKED) AS free)",
                &[],
            )
            .await
            .unwrap();
        counted.get::<_, i64>(0) == counted.get::<_, i64>(1)
    })
    .await
    .unwrap();

    broker.set_memory_alarm(false).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    for event in ["broker_blocked", "broker_unblocked"] {
        daemon.wait_for_log(event, DEADLINE).await.unwrap();
    }
    // Each worker had one batch in flight at most, and sent no other before the alarm ended.
    let report = stage.audit.report();
    assert!(report.duplicates <= WORKERS * BATCH_ROWS, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_stays_away_until_the_longest_wait_costs_no_attempt() {
    const ATTEMPT: &str = "broker connection attempt";
    let (broker, stage) = own_broker().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_BROKER_HEARTBEAT", "1s")
        .env("POSTRIDER_LOG_LEVEL", "info,postrider_relay=debug");
    stage.place_backlog(BACKLOG, 100).await;
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(300.0).await;
    stage.wait_for_more(300).await;

    broker.kill().await.unwrap();
    wait_until_readyz(&daemon, Some("[\"broker_away\"]")).await;
    daemon.wait_for_log("broker_lost", DEADLINE).await.unwrap();
    // Each wait may be twice as long as the one before: the ninth is the longest there is. By then the
    // heartbeat is long over as well.
    wait_until(DEADLINE, "nine attempts to connect", async || {
        let attempts = daemon.log_lines();
        attempts
            .iter()
            .filter(|line| line.contains(ATTEMPT))
            .count()
            >= 9
    })
    .await
    .unwrap();
    assert_eq!(
        daemon
            .metric("postrider_connected", &[("peer", "broker")])
            .await,
        Some(0.0)
    );
    let before = producer.committed();
    producer
        .wait_for_committed(before + 100, DEADLINE)
        .await
        .unwrap();

    broker.start_again().await.unwrap();
    stage.wait_for_more(300).await;
    wait_until_readyz(&daemon, None).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_broker_closes_or_lets_hang_are_replaced_and_cost_no_attempt() {
    let (broker, stage) = own_broker().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_WORKERS", WORKERS.to_string())
        .env("POSTRIDER_RELAY_BATCH_ROWS", BATCH_ROWS.to_string())
        .env("POSTRIDER_BROKER_HEARTBEAT", "1s");
    stage.place_backlog(BACKLOG, 100).await;
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(300.0).await;
    let mut faults = 0;
    let mut healed_from = async |said: &str| {
        faults += 1;
        daemon.wait_for_log(said, DEADLINE).await.unwrap();
        daemon
            .wait_for_metric(
                "postrider_reconnects_total",
                &[("peer", "broker")],
                |reconnects| reconnects >= f64::from(faults),
                DEADLINE,
            )
            .await
            .unwrap();
        stage.wait_for_more(200).await;
        wait_until_readyz(&daemon, None).await;
    };
    stage.wait_for_more(200).await;
    for reason in ["once", "and again", "and once more"] {
        broker.close_connections(reason).await.unwrap();
        healed_from(reason).await;
    }
    broker
        .ctl(&["close_all_connections", "--global", "by the operator"])
        .await
        .unwrap();
    healed_from("by the operator").await;
    // The connection stands, and nobody answers on it.
    broker.pause().await.unwrap();
    wait_until_readyz(&daemon, Some("[\"broker_away\"]")).await;
    broker.resume().await.unwrap();
    healed_from("broker_connected").await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    // Five times, what was in flight.
    let report = stage.audit.report();
    assert!(report.duplicates <= 5 * WORKERS * BATCH_ROWS, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_paused_past_the_heartbeat_goes_on_by_itself_when_it_is_resumed() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_WORKERS", WORKERS.to_string())
        .env("POSTRIDER_RELAY_BATCH_ROWS", BATCH_ROWS.to_string())
        .env("POSTRIDER_BROKER_HEARTBEAT", "1s");
    let daemon = Daemon::start(options).await.unwrap();
    let producer = stage.shop(300.0).await;
    stage.wait_for_more(300).await;
    stage.place_backlog(BACKLOG, 100).await;
    let rabbit = shared::rabbit().await;
    let ours = async || {
        let all = rabbit
            .ctl(&["list_connections", "vhost", "client_properties"])
            .await
            .unwrap();
        all.lines()
            .filter(|line| line.contains(&stage.vhost.name) && line.contains("Postrider"))
            .count()
    };
    assert!(ours().await > 0);
    daemon.pause().unwrap();
    wait_until(DEADLINE, "the broker gives the daemon up", async || {
        ours().await == 0
    })
    .await
    .unwrap();
    let before = producer.committed();
    producer
        .wait_for_committed(before + 300, DEADLINE)
        .await
        .unwrap();
    daemon.resume().unwrap();
    daemon
        .wait_for_metric(
            "postrider_reconnects_total",
            &[("peer", "broker")],
            |reconnects| reconnects >= 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
    stage.wait_for_more(600).await;
    wait_until_readyz(&daemon, None).await;
    producer.stop().await.unwrap();
    stage.assert_healed(&daemon).await;
    let report = stage.audit.report();
    assert!(report.duplicates <= WORKERS * BATCH_ROWS, "{report}");
}
