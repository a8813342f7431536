//! Starting, stopping, readiness, and what the log and the metrics say.

use postrider_testbed::daemon::Daemon;
use postrider_testbed::proxy::{Direction, Proxy};
use postrider_testbed::wait_until;

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, insert, rows, wait_for_rows};

/// Waits until `/readyz` answers with this status and names this reason (none when ready).
pub(crate) async fn wait_until_readyz(daemon: &Daemon, reason: Option<&str>) {
    let what = format!("readyz says {reason:?}");
    wait_until(DEADLINE, &what, async || {
        match daemon.http("/readyz").await {
            Ok((code, body)) => match reason {
                None => code == 200 && body.contains("\"ready\":true"),
                Some(reason) => {
                    code == 503 && body.contains("\"ready\":false") && body.contains(reason)
                }
            },
            Err(_) => false,
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_settle_what_is_in_flight_and_exit_with_0() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let producer = stage.busy_shop().await;
    for round in 0..6 {
        let daemon = stage.daemon().await;
        stage.wait_for_more(200).await;
        if round % 2 == 0 {
            daemon.sigterm().unwrap();
        } else {
            daemon.sigint().unwrap();
        }
        let status = daemon.wait_exit(DEADLINE).await.unwrap();
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
    }
    let _daemon = stage.daemon().await;
    producer.stop().await.unwrap();
    stage.assert_clean().await;
    // Nothing was abandoned, so nothing was sent twice.
    let report = stage.audit.report();
    assert_eq!(report.duplicates, 0, "{report}");
}

/// A daemon behind a proxy, patient with a broker that does not answer until it is stopped.
async fn patient_behind_proxy(stage: &Stage, shutdown_grace: &str) -> (Proxy, Daemon) {
    let proxy = Proxy::to_port(stage.vhost.port).await.unwrap();
    let url = stage.vhost.url_for("guest", "guest", proxy.port());
    let options = stage
        .options()
        .env("POSTRIDER_BROKER_URL", url)
        .env("POSTRIDER_BROKER_HEARTBEAT", "60s")
        .env("POSTRIDER_RELAY_CONFIRM_TIMEOUT", "5min")
        .env("POSTRIDER_RELAY_SHUTDOWN_GRACE", shutdown_grace);
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    (proxy, daemon)
}

async fn wait_until_one_is_in_flight(daemon: &Daemon) {
    daemon
        .wait_for_metric(
            "postrider_in_flight_messages",
            &[],
            |messages| messages == 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_daemon_at_once_and_loses_nothing() {
    let stage = Stage::new().await;
    let (proxy, daemon) = patient_behind_proxy(&stage, "5min").await;
    proxy.stall(Direction::Both);
    insert(&stage.sql().await, EXCHANGE, KEY, b"in flight").await;
    wait_until_one_is_in_flight(&daemon).await;
    daemon.sigterm().unwrap();
    daemon.wait_for_log("stopping", DEADLINE).await.unwrap();
    assert!(
        daemon.is_running(),
        "the first signal waits for the confirm"
    );
    daemon.sigterm().unwrap();
    let status = daemon.wait_exit(DEADLINE).await.unwrap();
    assert_eq!(status.code(), Some(143));
    assert_eq!(rows(&stage.sql().await).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_confirmed_within_the_grace_is_left_for_the_next_relay_and_the_exit_is_0() {
    let stage = Stage::new().await;
    let (proxy, daemon) = patient_behind_proxy(&stage, "1s").await;
    proxy.stall(Direction::ToClient);
    let id = insert(&stage.sql().await, EXCHANGE, KEY, b"in flight").await;
    stage.audit.committed([id]);
    wait_until_one_is_in_flight(&daemon).await;
    daemon.sigterm().unwrap();
    let status = daemon.wait_exit(DEADLINE).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(daemon.log().contains("abandoned") || daemon.log().contains("giving up"));
    stage.wait_until_outbox_holds(1).await;
    let _consumer = stage.consumer();
    let _next = stage.daemon().await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_alone_works_without_notifications() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_WAKEUP_NOTIFY", "false")
        .env("POSTRIDER_RELAY_POLL_INTERVAL", "50ms");
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    stage.produce(200).await;
    stage.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_wakes_a_relay_long_before_it_would_look_by_itself() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = stage
        .options()
        .env("POSTRIDER_RELAY_WORKERS", "1")
        .env("POSTRIDER_RELAY_POLL_INTERVAL", "30s");
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, None).await;
    // One after the other: by polling alone, 20 messages would take about ten minutes.
    let client = stage.sql().await;
    let one_by_one = async {
        for sent in 1..=20 {
            let id = insert(&client, EXCHANGE, KEY, b"one").await;
            stage.audit.committed([id]);
            stage
                .audit
                .wait_for_deliveries(sent, DEADLINE)
                .await
                .unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, one_by_one).await.unwrap();
    stage.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_when_a_relay_that_was_behind_has_caught_up() {
    let stage = Stage::new().await;
    stage
        .sql()
        .await
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, created_at) \
             SELECT $1, $2, 'x', clock_timestamp() - interval '1 minute' FROM generate_series(1, 2000)",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let proxy = Proxy::to_port(stage.vhost.port).await.unwrap();
    proxy.cut();
    let url = stage.vhost.url_for("guest", "guest", proxy.port());
    let options = stage.options().env("POSTRIDER_BROKER_URL", url);
    let daemon = Daemon::start(options).await.unwrap();
    daemon
        .wait_for_metric("postrider_lag_seconds", &[], |lag| lag > 60.0, DEADLINE)
        .await
        .unwrap();
    proxy.pass();
    let line = daemon.wait_for_log("caught_up", DEADLINE).await.unwrap();
    assert!(line.contains("worst_lag_s=6"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_refuses_a_missing_schema_and_names_the_command_that_mends_it() {
    let stage = Stage::new().await;
    stage
        .sql()
        .await
        .batch_execute("DROP SCHEMA outbox CASCADE")
        .await
        .unwrap();
    let refused = stage.run(&["run"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("postrider migrate"), "{text}");

    let options = stage.options().arg("--migrate");
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_port_that_is_taken_is_an_error_that_says_what_to_do() {
    let stage = Stage::new().await;
    let first = stage.daemon().await;
    wait_until_readyz(&first, None).await;
    let mut options = stage.options();
    options.http = Some(first.http_addr());
    let second = Daemon::start(options).await.unwrap();
    let status = second.wait_exit(DEADLINE).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(second.log().contains("[http] listen"), "{}", second.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_and_no_payload_is_in_the_log_at_any_level() {
    const SECRET: &str = "canary-4f1d";
    let stage = Stage::new().await;
    let client = stage.sql().await;
    client
        .batch_execute(&format!(
            "CREATE ROLE \"{0}\" LOGIN SUPERUSER PASSWORD '{SECRET}'",
            stage.database.name
        ))
        .await
        .unwrap();
    // Refused by the broker first (no such user), then by nobody.
    let wrong = format!(
        "amqp://nobody:{SECRET}@127.0.0.1:{}/{}",
        stage.vhost.port, stage.vhost.name
    );
    let options = stage
        .options()
        .env(
            "POSTRIDER_DATABASE_URL",
            format!(
                "postgresql://{0}:{SECRET}@127.0.0.1:{1}/{0}",
                stage.database.name, stage.database.port
            ),
        )
        .env(
            "POSTRIDER_BROKER_URLS",
            format!("{wrong},{}", stage.vhost.url),
        )
        .env("POSTRIDER_BROKER_URL", "")
        .env("POSTRIDER_LOG_LEVEL", "trace")
        .env("POSTRIDER_LOG_FORMAT", "json");
    insert(&client, EXCHANGE, "nobody.listens", SECRET.as_bytes()).await;
    insert(&client, "no-such-exchange", KEY, SECRET.as_bytes()).await;
    insert(&client, EXCHANGE, KEY, SECRET.as_bytes()).await;
    let daemon = Daemon::start(options).await.unwrap();
    for reason in ["unroutable", "exchange_missing"] {
        daemon.wait_for_log(reason, DEADLINE).await.unwrap();
    }
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "deferred", 2).await;
    daemon.sigterm().unwrap();
    daemon.wait_exit(DEADLINE).await.unwrap();
    let hex: String = SECRET.bytes().map(|byte| format!("{byte}, ")).collect();
    for line in daemon.log_lines() {
        assert!(!line.contains(SECRET), "{line}");
        assert!(!line.contains(&hex), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(
            parsed
                .as_object()
                .unwrap()
                .values()
                .all(|value| !value.is_object()),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_with_its_labels_and_every_documented_metric_exists() {
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    stage.produce(50).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    // This one has no series before something is suspended.
    insert(&stage.sql().await, "no-such-exchange", KEY, b"x").await;
    daemon
        .wait_for_metric(
            "postrider_suspended_routes",
            &[("exchange", "no-such-exchange")],
            |routes| routes == 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
    let (_, text) = daemon.http("/metrics").await.unwrap();
    let exposed: std::collections::BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with("postrider_"))
        .collect();
    let documented: std::collections::BTreeSet<&str> = include_str!("../../../../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `postrider_"))
        .filter_map(|line| line.split(['`', '{']).next())
        // There is none without TLS, or without a token: see the tests of those.
        .filter(|rest| {
            let elsewhere = [
                "certificate_expiry_timestamp_seconds",
                "token_expiry_timestamp_seconds",
            ];
            let spans = !cfg!(feature = "opentelemetry") && rest.starts_with("spans_");
            !elsewhere.contains(rest) && !spans
        })
        .map(|rest| {
            let names: Vec<&&str> = exposed
                .iter()
                .filter(|name| name.strip_prefix("postrider_") == Some(rest))
                .collect();
            assert_eq!(names.len(), 1, "documented, but not exposed: {rest}");
            *names[0]
        })
        .collect();
    assert_eq!(exposed, documented);
    for line in text.lines().filter(|line| line.starts_with("postrider_")) {
        assert!(line.contains("outbox=\""), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_lag_backlog_deliveries_and_failures() {
    let stage = Stage::new().await;
    stage.produce(300).await;
    let waiting = rows(&stage.sql().await).await;
    let proxy = Proxy::to_port(stage.vhost.port).await.unwrap();
    proxy.cut();
    let url = stage.vhost.url_for("guest", "guest", proxy.port());
    let options = stage
        .options()
        .env("POSTRIDER_BROKER_URL", url)
        .env("POSTRIDER_METRICS_BACKLOG_LIMIT", "100");
    let daemon = Daemon::start(options).await.unwrap();
    wait_until_readyz(&daemon, Some("broker_away")).await;
    let wait = async |name: &str, labels: &[(&str, &str)], wanted: f64| {
        daemon
            .wait_for_metric(name, labels, |value| value >= wanted, DEADLINE)
            .await
            .unwrap()
    };
    // The lag rises although nothing can be published.
    wait("postrider_lag_seconds", &[], 0.2).await;
    wait("postrider_backlog_capped", &[], 1.0).await;
    assert_eq!(
        daemon.metric("postrider_backlog_messages", &[]).await,
        Some(100.0)
    );
    assert_eq!(
        daemon
            .metric("postrider_connected", &[("peer", "broker")])
            .await,
        Some(0.0)
    );
    assert_eq!(
        daemon
            .metric("postrider_publish_failures_total", &[("reason", "nacked")])
            .await,
        Some(0.0)
    );
    let _consumer = stage.consumer();
    proxy.pass();
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let waiting = waiting as f64;
    wait(
        "postrider_published_total",
        &[("exchange", EXCHANGE)],
        waiting,
    )
    .await;
    wait("postrider_delivery_seconds_count", &[], waiting).await;
    wait("postrider_published_bytes_total", &[], 256.0 * waiting).await;
    wait("postrider_last_publish_timestamp_seconds", &[], 1.0).await;
    wait("postrider_last_cycle_timestamp_seconds", &[], 1.0).await;
    for phase in ["claim", "publish", "settle"] {
        wait("postrider_batch_seconds_count", &[("phase", phase)], 1.0).await;
    }
    daemon
        .wait_for_metric("postrider_backlog_messages", &[], |n| n == 0.0, DEADLINE)
        .await
        .unwrap();
    assert_eq!(daemon.metric("postrider_lag_seconds", &[]).await, Some(0.0));
    wait_until_readyz(&daemon, None).await;
    assert_eq!(daemon.http("/livez").await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_messages_wait_longer_each_time_and_delay_no_other() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    // More than a batch, at the head of the outbox.
    client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) \
             SELECT $1, 'nobody.listens', 'x' FROM generate_series(1, 1200)",
            &[&EXCHANGE],
        )
        .await
        .unwrap();
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    stage.produce(1_000).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "deferred", 1_200).await;
    daemon.wait_for_log("attempt=3", DEADLINE).await.unwrap();
    assert_eq!(stage.depth(QUEUE).await, 0);
}
