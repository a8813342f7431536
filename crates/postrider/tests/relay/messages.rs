//! What is written with SQL is what a consumer gets.

use std::collections::BTreeMap;

use lapin::message::Delivery;
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use postrider_testbed::wait_until;

use crate::stage::{DEADLINE, EXCHANGE, KEY, QUEUE, Stage, wait_for_rows};

/// Takes one message from the queue.
pub(crate) async fn take(stage: &Stage) -> Delivery {
    let connection = stage.vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut taken = None;
    wait_until(DEADLINE, "a message in the queue", async || {
        taken = channel
            .basic_get(QUEUE.into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap();
        taken.is_some()
    })
    .await
    .unwrap();
    taken.unwrap().delivery
}

#[tokio::test(flavor = "multi_thread")]
async fn every_amqp_property_and_header_type_arrives_as_it_was_written() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let row = client
        .query_one(
            r#"INSERT INTO outbox.messages
                 (exchange, routing_key, payload_json, headers, type, content_encoding, correlation_id, reply_to, app_id,
                  priority, expiration)
               VALUES ($1, $2, '{"a" : "C:\\new"}',
                 '{"int": -9223372036854775808, "double": 1.5, "whole": 2.0, "yes": true, "text": "żółw", "none": null,
                   "list": [1, "two", [3.5], null], "table": {"inner": {"deep": false}}}',
                 'OrderPlaced', 'utf-8', 'corr-1', 'answers', 'shop', 7, 60000)
               RETURNING id, extract(epoch FROM created_at)::bigint"#,
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let (id, created_at): (uuid::Uuid, i64) = (row.get(0), row.get(1));
    let _daemon = stage.daemon().await;
    let delivery = take(&stage).await;
    assert_eq!(delivery.data, br#"{"a" : "C:\\new"}"#);
    assert_eq!(delivery.exchange.as_str(), EXCHANGE);
    assert_eq!(delivery.routing_key.as_str(), KEY);
    let properties = &delivery.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|v| v.to_string());
    assert_eq!(text(properties.message_id()), Some(id.to_string()));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert!((created_at - 1..=created_at).contains(&(properties.timestamp().unwrap() as i64)));
    assert_eq!(
        text(properties.content_type()).as_deref(),
        Some("application/json")
    );
    assert_eq!(text(properties.kind()).as_deref(), Some("OrderPlaced"));
    assert_eq!(
        text(properties.content_encoding()).as_deref(),
        Some("utf-8")
    );
    assert_eq!(text(properties.correlation_id()).as_deref(), Some("corr-1"));
    assert_eq!(text(properties.reply_to()).as_deref(), Some("answers"));
    assert_eq!(text(properties.app_id()).as_deref(), Some("shop"));
    assert_eq!(*properties.priority(), Some(7));
    assert_eq!(text(properties.expiration()).as_deref(), Some("60000"));
    let headers: BTreeMap<String, AMQPValue> = properties
        .headers()
        .as_ref()
        .unwrap()
        .inner()
        .iter()
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect();
    let long = |text: &str| AMQPValue::LongString(text.into());
    assert_eq!(headers["int"], AMQPValue::LongLongInt(i64::MIN));
    assert_eq!(headers["double"], AMQPValue::Double(1.5));
    assert_eq!(headers["whole"], AMQPValue::Double(2.0));
    assert_eq!(headers["yes"], AMQPValue::Boolean(true));
    assert_eq!(headers["text"], long("żółw"));
    assert_eq!(headers["none"], AMQPValue::Void);
    let AMQPValue::FieldArray(list) = &headers["list"] else {
        panic!("{headers:?}")
    };
    let list = list.as_slice();
    assert_eq!(list[0], AMQPValue::LongLongInt(1));
    assert_eq!(list[1], long("two"));
    assert!(
        matches!(&list[2], AMQPValue::FieldArray(inner) if inner.as_slice() == [AMQPValue::Double(3.5)])
    );
    assert_eq!(list[3], AMQPValue::Void);
    let AMQPValue::FieldTable(table) = &headers["table"] else {
        panic!("{headers:?}")
    };
    let AMQPValue::FieldTable(inner) = &table.inner()["inner"] else {
        panic!("{headers:?}")
    };
    assert_eq!(inner.inner()["deep"], AMQPValue::Boolean(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_empty_binary_and_of_8_mib_arrive_byte_for_byte() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    let _daemon = stage.daemon().await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let large: Vec<u8> = (0..8u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for payload in [Vec::new(), every_byte, large] {
        crate::stage::insert(&client, EXCHANGE, KEY, &payload).await;
        let delivery = take(&stage).await;
        assert!(delivery.data == payload, "{} bytes differ", payload.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_above_the_limit_is_never_loaded_and_delays_no_other() {
    let stage = Stage::new().await;
    let client = stage.sql().await;
    client
        .execute(
            "INSERT INTO outbox.messages (exchange, routing_key, payload) \
             SELECT $1, $2, decode(repeat('00', 100 << 20), 'hex')",
            &[&EXCHANGE, &KEY],
        )
        .await
        .unwrap();
    let _consumer = stage.consumer();
    let daemon = stage.daemon().await;
    stage.produce(100).await;
    stage.assert_clean().await;
    daemon.wait_for_log("too_large", DEADLINE).await.unwrap();
    stage.wait_until_outbox_holds(0).await;
    wait_for_rows(&client, "dead_letters", 1).await;
    let peak = daemon.peak_rss_bytes().unwrap();
    assert!(peak < 80 << 20, "{} MiB", peak >> 20);
}
