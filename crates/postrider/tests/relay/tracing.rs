//! Spans, as a collector gets them.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::types::AMQPValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use postrider_testbed::daemon::{Daemon, DaemonOptions};
use postrider_testbed::proxy::{Direction, Proxy};
use postrider_testbed::test_dir::TestDir;
use postrider_testbed::{Authority, Client, wait_until};
use tonic::Status;
use uuid::Uuid;

use crate::collector::{Collector, attribute, text};
use crate::messages::take;
use crate::stage::{DEADLINE, EXCHANGE, KEY, Stage, insert, rows_of, wait_for_rows};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const STATE: &str = "shop=00f067aa0ba902b7,congo=t61rcWkgMzE";
const DROPPED: &str = "postrider_spans_dropped_total";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// A daemon that sends spans to a port of this machine.
fn traced(stage: &Stage, port: u16) -> DaemonOptions {
    stage.options().env(
        "POSTRIDER_TRACING_ENDPOINT",
        format!("http://localhost:{port}"),
    )
}

/// Inserts a message as an application within a trace does.
async fn insert_traced(client: &Client, key: &str, flags: &str) -> Uuid {
    client
        .query_one(
            "INSERT INTO outbox.messages (exchange, routing_key, payload, correlation_id, headers) \
             VALUES ($1, $2, 'hello', 'corr-1', jsonb_build_object('n', 7, 'traceparent', $3::text, 'tracestate', $4::text)) \
             RETURNING id",
            &[&EXCHANGE, &key, &traceparent(flags), &STATE],
        )
        .await
        .unwrap()
        .get(0)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn of_message(spans: &[Span], id: Uuid) -> Vec<Span> {
    let id = id.to_string();
    spans
        .iter()
        .filter(|span| text(&span.attributes, "messaging.message.id") == id)
        .cloned()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn traceparent_and_tracestate_of_a_row_travel_as_headers_just_as_they_were_written() {
    let collector = Collector::start().await;
    for with_spans in [false, true] {
        let stage = Stage::new().await;
        insert_traced(&stage.sql().await, KEY, "01").await;
        let options = match with_spans {
            false => stage.options(),
            true => traced(&stage, collector.port()),
        };
        let _daemon = Daemon::start(options).await.unwrap();
        let delivery = take(&stage).await;
        let headers = delivery.properties.headers().as_ref().unwrap().inner();
        let header = |name: &str| headers.get(name).cloned();
        // Strings, as the propagators of OpenTelemetry read them from AMQP.
        let string = |text: &str| Some(AMQPValue::LongString(text.into()));
        assert_eq!(header("traceparent"), string(&traceparent("01")));
        assert_eq!(header("tracestate"), string(STATE));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_publish_is_a_producer_span_linked_to_the_inserting_one() {
    let collector = Collector::start().await;
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let before = SystemTime::now();
    let id = insert_traced(&client, KEY, "01").await;
    let options = traced(&stage, collector.port())
        .env("POSTRIDER_RELAY_NAME", "relay-1")
        .env("POSTRIDER_RELAY_OUTBOX", "shop-outbox")
        .env(
            "POSTRIDER_TRACING_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test%20bed",
        );
    let daemon = Daemon::start(options).await.unwrap();
    let spans = collector.wait_for(1).await;
    let after = SystemTime::now();

    let span = &spans[0];
    assert_eq!(span.name, format!("send {EXCHANGE}"));
    assert_eq!(span.kind(), SpanKind::Producer);
    assert_eq!(span.status, None);
    assert_eq!(span.parent_span_id, b"");
    assert_eq!(span.trace_id.len(), 16);
    assert_ne!(span.trace_id, bytes(TRACE), "a trace of its own");
    let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    assert!(nanos(before) <= span.start_time_unix_nano);
    assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    assert!(span.end_time_unix_nano <= nanos(after));

    assert_eq!(span.links.len(), 1);
    let link = &span.links[0];
    assert_eq!(link.trace_id, bytes(TRACE));
    assert_eq!(link.span_id, bytes(SPAN));
    assert_eq!(link.trace_state, STATE);
    assert_eq!(link.flags & 0xff, 1, "sampled");

    let said = |key| text(&span.attributes, key);
    assert_eq!(said("messaging.system"), "rabbitmq");
    assert_eq!(said("messaging.operation.type"), "send");
    assert_eq!(said("messaging.operation.name"), "send");
    assert_eq!(
        said("messaging.destination.name"),
        format!("{EXCHANGE}:{KEY}")
    );
    assert_eq!(said("messaging.rabbitmq.destination.routing_key"), KEY);
    assert_eq!(said("messaging.message.id"), id.to_string());
    assert_eq!(said("messaging.message.conversation_id"), "corr-1");
    let number = |key| attribute(&span.attributes, key).cloned();
    assert_eq!(
        number("messaging.message.body.size"),
        Some(Value::IntValue(5))
    );
    let port = i64::from(stage.vhost.port);
    assert_eq!(number("server.port"), Some(Value::IntValue(port)));
    assert_eq!(attribute(&span.attributes, "error.type"), None);

    let resource = collector.resource().attributes;
    assert_eq!(text(&resource, "service.name"), "postrider");
    assert_eq!(text(&resource, "service.instance.id"), "relay-1");
    assert_eq!(text(&resource, "postrider.outbox"), "shop-outbox");
    assert_eq!(text(&resource, "deployment.environment.name"), "test bed");
    daemon
        .wait_for_metric(
            "postrider_spans_exported_total",
            &[],
            |n| n == 1.0,
            DEADLINE,
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_failed_is_a_span_with_the_reason_as_its_error_and_each_attempt_is_one() {
    let collector = Collector::start().await;
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let unroutable = insert_traced(&client, "nobody.listens", "01").await;
    let good = insert_traced(&client, KEY, "01").await;
    let options = traced(&stage, collector.port())
        .env("POSTRIDER_RETRY_MAX_ATTEMPTS", "2")
        .env("POSTRIDER_RETRY_INITIAL_DELAY", "20ms");
    let _daemon = Daemon::start(options).await.unwrap();
    wait_for_rows(&client, "dead_letters", 1).await;
    let spans = collector.wait_for(3).await;
    let failed = of_message(&spans, unroutable);
    assert_eq!(failed.len(), 2, "{failed:?}");
    for span in &failed {
        let status = span.status.as_ref().unwrap();
        assert_eq!(status.code(), StatusCode::Error);
        assert!(!status.message.is_empty());
        assert_eq!(text(&span.attributes, "error.type"), "unroutable");
        assert_eq!(span.links[0].span_id, bytes(SPAN));
    }
    assert_ne!(failed[0].span_id, failed[1].span_id);
    let attempts = |span: &Span| attribute(&span.attributes, "postrider.attempts").cloned();
    let again = failed.iter().filter_map(attempts).collect::<Vec<_>>();
    assert_eq!(again, [Value::IntValue(1)]);
    assert_eq!(of_message(&spans, good)[0].status, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_inserting_trace_left_out_has_no_span_and_the_ratio_is_for_rows_without_a_trace() {
    let collector = Collector::start().await;
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    for sample_ratio in ["0.0", "1.0"] {
        let options =
            traced(&stage, collector.port()).env("POSTRIDER_TRACING_SAMPLE_RATIO", sample_ratio);
        let daemon = Daemon::start(options).await.unwrap();
        let before = collector.spans().len();
        insert_traced(&client, KEY, "00").await;
        let without = insert(&client, EXCHANGE, KEY, b"x").await;
        let sampled = insert_traced(&client, KEY, "01").await;
        stage.wait_until_outbox_holds(0).await;
        // What is left goes out with the end.
        daemon.sigterm().unwrap();
        assert!(daemon.wait_exit(DEADLINE).await.unwrap().success());
        let spans = &collector.spans()[before..];
        assert_eq!(of_message(spans, sampled).len(), 1);
        let rooted = of_message(spans, without);
        match sample_ratio {
            "0.0" => assert_eq!(spans.len(), 1, "{spans:?}"),
            _ => {
                assert_eq!(spans.len(), 2, "{spans:?}");
                assert!(rooted[0].links.is_empty());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_costs_spans_and_delays_neither_messages_nor_the_stop() {
    let collector = Collector::start().await;
    let proxy = Proxy::to_port(collector.port()).await.unwrap();
    proxy.stall(Direction::ToClient);
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let options = traced(&stage, proxy.port())
        .env("POSTRIDER_TRACING_TIMEOUT", "60s")
        .env("POSTRIDER_TRACING_MAX_QUEUED_SPANS", "50");
    let daemon = Daemon::start(options).await.unwrap();
    stage.produce(2_000).await;
    stage.assert_healed(&daemon).await;
    let full = [("reason", "queue_full")];
    let lost = daemon
        .wait_for_metric(DROPPED, &full, |lost| lost >= 1.0, DEADLINE)
        .await
        .unwrap();
    let delivered = daemon
        .metric("postrider_published_total", &[])
        .await
        .unwrap();
    // The queue, and what is on its way.
    assert!(lost >= delivered - 50.0 - 512.0, "{lost} of {delivered}");
    proxy.wait_for_connection(DEADLINE).await.unwrap();

    daemon.sigterm().unwrap();
    // A tenth of the time that is allowed for an answer.
    let status = daemon.wait_exit(Duration::from_secs(6)).await.unwrap();
    assert!(status.success(), "{status:?}");
    let log = daemon.log();
    assert!(log.contains("event=\"spans_dropped\""), "{log}");
    assert!(log.contains("event=\"stopped\""), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_was_away_gets_what_waited_for_it_and_the_log_says_so_twice() {
    let collector = Collector::start().await;
    let proxy = Proxy::to_port(collector.port()).await.unwrap();
    proxy.cut();
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let daemon = Daemon::start(traced(&stage, proxy.port())).await.unwrap();
    let id = insert_traced(&client, KEY, "01").await;
    let line = daemon
        .wait_for_log("collector_lost", DEADLINE)
        .await
        .unwrap();
    assert!(
        line.contains(&format!("localhost:{}", proxy.port())),
        "{line}"
    );
    assert!(line.contains("refused"), "the cause is named: {line}");
    stage.wait_until_outbox_holds(0).await;
    proxy.pass();
    let spans = collector.wait_for(1).await;
    assert_eq!(of_message(&spans, id).len(), 1);
    daemon
        .wait_for_log("collector_found", DEADLINE)
        .await
        .unwrap();
    let log = daemon.log();
    assert_eq!(log.matches("collector_lost").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_collector_refuses_is_not_sent_again_and_what_it_is_too_busy_for_is() {
    let collector = Collector::start().await;
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let client = stage.sql().await;
    let daemon = Daemon::start(traced(&stage, collector.port()))
        .await
        .unwrap();
    collector.refuse(Some(Status::unauthenticated("no token")));
    insert_traced(&client, KEY, "01").await;
    let line = daemon
        .wait_for_log("collector_lost", DEADLINE)
        .await
        .unwrap();
    assert!(line.contains("no token"), "{line}");
    let refused = [("reason", "refused")];
    daemon
        .wait_for_metric(DROPPED, &refused, |lost| lost == 1.0, DEADLINE)
        .await
        .unwrap();
    assert_eq!(collector.requests(), 1);

    collector.refuse(Some(Status::unavailable("busy")));
    let id = insert_traced(&client, KEY, "01").await;
    wait_until(DEADLINE, "a second attempt", async || {
        collector.requests() >= 3
    })
    .await
    .unwrap();
    collector.refuse(None);
    let spans = collector.wait_for(1).await;
    assert_eq!(of_message(&spans, id).len(), 1);
    assert_eq!(daemon.metric(DROPPED, &refused).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_travel_by_tls_to_a_collector_that_is_verified_and_to_no_other() {
    let mut collector = Collector::start().await;
    let authority = Authority::new().unwrap();
    let port = collector
        .tls_port(&authority.server(&["localhost"]).unwrap())
        .await;
    let directory = TestDir::create().unwrap();
    let trusted = directory.path().join("ca.crt");
    fs::write(&trusted, authority.certificate()).unwrap();
    let other = directory.path().join("other.crt");
    fs::write(&other, Authority::new().unwrap().certificate()).unwrap();
    for (ca_file, is_trusted) in [(&other, false), (&trusted, true)] {
        let stage = Stage::new().await;
        let _consumer = stage.consumer();
        let options = stage
            .options()
            .env(
                "POSTRIDER_TRACING_ENDPOINT",
                format!("https://localhost:{port}"),
            )
            .env("POSTRIDER_TRACING_TLS_CA_FILE", ca_file.to_str().unwrap());
        let daemon = Daemon::start(options).await.unwrap();
        insert_traced(&stage.sql().await, KEY, "01").await;
        stage.wait_until_outbox_holds(0).await;
        if is_trusted {
            collector.wait_for(1).await;
        } else {
            let line = daemon
                .wait_for_log("collector_lost", DEADLINE)
                .await
                .unwrap();
            assert!(line.contains("[tracing.tls] ca_file"), "{line}");
            assert_eq!(collector.requests(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_tracing_is_off_nothing_connects_but_to_the_database_and_the_broker() {
    let collector = Collector::start().await;
    let proxy = Proxy::to_port(collector.port()).await.unwrap();
    let stage = Stage::new().await;
    let _consumer = stage.consumer();
    let url = format!("http://127.0.0.1:{}", proxy.port());
    // The variables of OpenTelemetry's own exporters, as operators of Kubernetes put them into every pod.
    let options = stage
        .options()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url)
        .env("OTEL_TRACES_EXPORTER", "otlp");
    let daemon = Daemon::start(options).await.unwrap();
    let id = insert_traced(&stage.sql().await, KEY, "01").await;
    stage.audit.committed([id]);
    stage.produce(100).await;
    stage.assert_clean().await;
    stage.wait_until_outbox_holds(0).await;
    let peers = peers(&daemon);
    assert!(
        peers.contains(&stage.database.port) && peers.contains(&stage.vhost.port),
        "{peers:?}"
    );
    let own = [
        stage.database.port,
        stage.vhost.port,
        daemon.http_addr().port(),
    ];
    assert!(peers.iter().all(|port| own.contains(port)), "{peers:?}");
    daemon.sigterm().unwrap();
    assert!(daemon.wait_exit(DEADLINE).await.unwrap().success());
    assert_eq!(proxy.accepted(), 0);
    assert_eq!(rows_of(&stage.sql().await, "deferred").await, 0);
}

/// The ports that a daemon's own connections lead to.
fn peers(daemon: &Daemon) -> Vec<u16> {
    let process = format!("/proc/{}", daemon.pid());
    let sockets: Vec<String> = fs::read_dir(format!("{process}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            Some(inode.trim_end_matches(']').to_owned())
        })
        .collect();
    let mut peers = Vec::new();
    for table in ["tcp", "tcp6"] {
        let Ok(text) = fs::read_to_string(format!("{process}/net/{table}")) else {
            continue;
        };
        for line in text.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let port = |column: &str| {
                let (_, port) = column.rsplit_once(':').unwrap();
                u16::from_str_radix(port, 16).unwrap()
            };
            let (local, remote, inode) = (port(columns[1]), port(columns[2]), columns[9]);
            // What others opened to it leads to wherever they are.
            if sockets.iter().any(|socket| socket == inode)
                && remote != 0
                && local != daemon.http_addr().port()
            {
                peers.push(remote);
            }
        }
    }
    peers
}
