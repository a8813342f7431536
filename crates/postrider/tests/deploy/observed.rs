//! A running daemon, seen by a real Prometheus with the rules that are shipped.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use postrider_testbed::audit::Audit;
use postrider_testbed::consumer::{Consumer, QueueKind, bind, declare_exchange, declare_queue};
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::producer::{Producer, ProducerOptions};
use postrider_testbed::proxy::Proxy;
use postrider_testbed::{TestDatabase, TestVhost, shared, wait_until};

use crate::prometheus::Prometheus;
use crate::queries::{Query, grouping_labels, metrics, of_dashboard, of_rules, selectors};

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// What Prometheus itself puts on every series.
const LABELS_OF_A_TARGET: [&str; 2] = ["job", "instance"];

/// Metrics that this test's daemon has no reason to show.
const NOT_SHOWN: [&str; 2] = [
    // No client certificate is configured here.
    "postrider_certificate_expiry_timestamp_seconds",
    // Nor is a token.
    "postrider_token_expiry_timestamp_seconds",
];

/// Queries that rightly find nothing in an outbox that is neither enormous nor restarted.
const MAY_BE_EMPTY: [&str; 2] = [
    "panel \"Backlog and deferred\", \"C\"",
    "annotation \"Restarts\"",
];

struct Outbox {
    database: TestDatabase,
    vhost: TestVhost,
    audit: Audit,
}

impl Outbox {
    async fn new() -> Self {
        let outbox = Self {
            database: shared::database().await,
            vhost: shared::vhost().await,
            audit: Audit::new(),
        };
        let migrated = Command::new(env!("CARGO_BIN_EXE_postrider"))
            .arg("migrate")
            .env("POSTRIDER_DATABASE_URL", &outbox.database.url)
            .env("POSTRIDER_DATABASE_TLS_MODE", "disable")
            .output()
            .unwrap();
        assert!(migrated.status.success(), "{migrated:?}");
        let connection = outbox.vhost.connection().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        declare_exchange(&channel, "shop").await.unwrap();
        declare_queue(&channel, "orders", QueueKind::Quorum)
            .await
            .unwrap();
        bind(&channel, "orders", "shop", "order.placed")
            .await
            .unwrap();
        outbox
    }

    fn relay(&self) -> DaemonOptions {
        DaemonOptions::new(env!("CARGO_BIN_EXE_postrider"))
            .env("POSTRIDER_DATABASE_URL", &self.database.url)
            .env("POSTRIDER_BROKER_URL", &self.vhost.url)
            .env("POSTRIDER_RELAY_OUTBOX", "shop")
            .env("POSTRIDER_METRICS_SAMPLE_INTERVAL", "100ms")
    }

    async fn execute(&self, sql: &str) {
        let client = self.database.client().await.unwrap();
        client.batch_execute(sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_alert_fires_while_messages_wait_and_clears_once_they_are_delivered() {
    let outbox = Outbox::new().await;
    let broker = Proxy::to_port(outbox.vhost.port).await.unwrap();
    let relay = outbox.relay().env(
        "POSTRIDER_BROKER_URL",
        outbox.vhost.url_for("guest", "guest", broker.port()),
    );
    let relay = Daemon::start(relay).await.unwrap();
    relay
        .wait_for_metric(
            "postrider_connected",
            &[("peer", "broker")],
            |up| up == 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
    let prometheus = Prometheus::scraping(&[relay.http_addr()]).await;
    wait_until(DEADLINE, "the relay is scraped", async || {
        !prometheus
            .query("outbox:postrider_lag_seconds:max == 0")
            .await
            .unwrap()
            .is_empty()
    })
    .await
    .unwrap();
    assert!(prometheus.firing("PostriderLag").await.is_empty());

    broker.cut();
    // Older than it is, so that nobody has to wait for a minute.
    outbox
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload_json, created_at)
             VALUES ('shop', 'order.placed', '{}', now() - interval '5 minutes')",
        )
        .await;
    wait_until(DEADLINE, "the lag alert fires", async || {
        !prometheus.firing("PostriderLag").await.is_empty()
    })
    .await
    .unwrap();
    let alerts = prometheus.firing("PostriderLag").await;
    assert_eq!(alerts[0]["labels"]["outbox"], "shop");
    let summary = alerts[0]["annotations"]["summary"].as_str().unwrap();
    assert!(
        summary.starts_with("Messages of outbox shop wait for 5m"),
        "{summary}"
    );
    assert!(prometheus.firing("PostriderLagHigh").await.is_empty());

    broker.pass();
    wait_until(DEADLINE, "the lag alert clears", async || {
        prometheus.firing("PostriderLag").await.is_empty()
    })
    .await
    .unwrap();
    relay
        .wait_for_metric(
            "postrider_published_total",
            &[("exchange", "shop")],
            |sent| sent == 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
}

/// The metrics that the daemon shows, with their labels.
fn shown(exposition: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        shown.entry(name.to_owned()).or_default().extend(
            labels
                .split("=\"")
                .filter_map(|part| part.rsplit([',', '"', '{']).next())
                .map(str::to_owned)
                .filter(|label| !label.is_empty() && label != "}"),
        );
    }
    shown
}

fn assert_shown(query: &Query, shown: &BTreeMap<String, BTreeSet<String>>) {
    let mut known: BTreeSet<&str> = LABELS_OF_A_TARGET.into();
    for (metric, labels) in metrics(&query.expression) {
        if NOT_SHOWN.contains(&metric.as_str()) {
            known.extend(["outbox", "peer"]);
            continue;
        }
        let Some(has) = shown.get(&metric) else {
            panic!("{}: the daemon shows no {metric}", query.owner);
        };
        for label in labels {
            assert!(
                has.contains(&label) || LABELS_OF_A_TARGET.contains(&label.as_str()),
                "{}: {metric} has no label {label}: {has:?}",
                query.owner
            );
        }
        known.extend(has.iter().map(String::as_str));
    }
    for label in grouping_labels(&query.expression) {
        assert!(
            known.contains(label.as_str()),
            "{}: nothing it asks for has the label {label}",
            query.owner
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_rules_and_of_the_dashboard_finds_what_the_daemon_shows() {
    let outbox = Outbox::new().await;
    let relay = outbox
        .relay()
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "2")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "20ms");
    let relay = Daemon::start(relay).await.unwrap();
    let prometheus = Prometheus::scraping(&[relay.http_addr()]).await;
    let _consumer = Consumer::start(&outbox.vhost.url, "orders", &outbox.audit);
    let shop = ProducerOptions {
        rate: Some(20.0),
        ..ProducerOptions::new(&outbox.database.url, "shop", "order.placed")
    };
    let shop = Producer::start(shop, &outbox.audit).await.unwrap();
    // What has failed must go on failing for its rate to show.
    let mut failing = Vec::new();
    for (exchange, key) in [("shop", "nobody.listens"), ("missing", "x")] {
        let options = ProducerOptions {
            rate: Some(10.0),
            ..ProducerOptions::new(&outbox.database.url, exchange, key)
        };
        failing.push(Producer::start(options, &Audit::new()).await.unwrap());
    }
    for reason in ["unroutable", "exchange_missing"] {
        relay
            .wait_for_metric(
                "postrider_dead_lettered_total",
                &[("reason", reason)],
                |dead| dead > 0.0,
                DEADLINE,
            )
            .await
            .unwrap();
    }
    relay
        .wait_for_metric(
            "postrider_suspended_routes",
            &[("exchange", "missing")],
            |_| true,
            DEADLINE,
        )
        .await
        .unwrap();

    let (_, exposition) = relay.http("/metrics").await.unwrap();
    let shown = shown(&exposition);
    let (rules, dashboard) = (of_rules(), of_dashboard());
    for query in rules.iter().chain(&dashboard) {
        assert_shown(query, &shown);
    }

    // Of an alert, what it looks at is there; of all others, the answer.
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for Query { owner, expression } in rules {
        if owner.contains(':') {
            wanted.insert(expression, owner);
        } else {
            prometheus.query(&expression).await.unwrap();
            for selector in selectors(&expression) {
                wanted.insert(selector, owner.clone());
            }
        }
    }
    for Query { owner, expression } in dashboard {
        if MAY_BE_EMPTY.contains(&owner.as_str()) {
            prometheus.query(&expression).await.unwrap();
        } else {
            wanted.insert(expression, owner);
        }
    }
    wanted.retain(|expression, _| !NOT_SHOWN.iter().any(|name| expression.contains(name)));
    for (expression, owner) in wanted {
        let what = format!("{owner} finds something: {expression}");
        wait_until(DEADLINE, &what, async || {
            let found = prometheus
                .query(&expression)
                .await
                .unwrap_or_else(|error| panic!("{owner}: {expression}: {error}"));
            found.iter().any(|series| series["value"][1] != "NaN")
        })
        .await
        .unwrap();
    }
    for producer in failing.into_iter().chain([shop]) {
        producer.stop().await.unwrap();
    }
}
