//! What arrives is what was written.

use lapin::types::{AMQPValue, FieldArray, FieldTable};
use postrider_core::{Outcome, Payload, Properties};
use postrider_rabbitmq::ChannelFate;
use postrider_testbed::shared;
use serde_json::json;

use crate::{PATIENT, drain, drained_ids, headers, message, messages, publisher, queue};

#[tokio::test]
async fn every_property_and_header_type_arrives_as_it_was_written() {
    let vhost = shared::vhost().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    queue(&channel, "q").await;
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let mut sent = message("", "q");
    sent.properties = Properties {
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        kind: Some("order.created".to_owned()),
        correlation_id: Some("ü".repeat(127)),
        reply_to: Some("answers".to_owned()),
        app_id: Some("shop".to_owned()),
        priority: Some(7),
        expiration_ms: Some(315_360_000_000),
    };
    let sent_headers = json!({
        "null": null, "true": true, "false": false, "zero": 0, "min": i64::MIN, "max": i64::MAX,
        "beyond": u64::MAX, "double": 1.5, "tiny": 5e-324, "huge": f64::MAX, "text": "grün\u{0}",
        "empty": "", "array": [1, [2.5, null], {"a": []}], "object": {"deep": {"er": [true]}},
        "long": "x".repeat(30_000), ("n".repeat(255)): 1
    });
    sent.headers = headers(&sent_headers);

    let published = publisher
        .publish(&[sent.clone(), message("", "q")], PATIENT)
        .await;

    assert_eq!(published.channel, ChannelFate::Usable);
    assert_eq!(published.outcomes, [Outcome::Confirmed, Outcome::Confirmed]);
    let arrived = drain(&channel, "q").await;
    let properties = &arrived[0].0;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    assert_eq!(text(properties.message_id()), Some(sent.id.to_string()));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(*properties.timestamp(), Some(1_700_000_000));
    assert_eq!(
        text(properties.content_type()),
        sent.properties.content_type
    );
    assert_eq!(
        text(properties.content_encoding()),
        sent.properties.content_encoding
    );
    assert_eq!(text(properties.kind()), sent.properties.kind);
    assert_eq!(
        text(properties.correlation_id()),
        sent.properties.correlation_id
    );
    assert_eq!(text(properties.reply_to()), sent.properties.reply_to);
    assert_eq!(text(properties.app_id()), sent.properties.app_id);
    assert_eq!(*properties.priority(), Some(7));
    assert_eq!(
        text(properties.expiration()).as_deref(),
        Some("315360000000")
    );
    let table = |entries: Vec<(&str, AMQPValue)>| {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.into(), value);
        }
        table
    };
    let array = |values| AMQPValue::FieldArray(FieldArray::from(values));
    let string = |text: &str| AMQPValue::LongString(text.into());
    let whole = AMQPValue::LongLongInt;
    let expected = table(vec![
        ("null", AMQPValue::Void),
        ("true", AMQPValue::Boolean(true)),
        ("false", AMQPValue::Boolean(false)),
        ("zero", whole(0)),
        ("min", whole(i64::MIN)),
        ("max", whole(i64::MAX)),
        ("beyond", AMQPValue::Double(18_446_744_073_709_551_615.0)),
        ("double", AMQPValue::Double(1.5)),
        ("tiny", AMQPValue::Double(5e-324)),
        ("huge", AMQPValue::Double(f64::MAX)),
        ("text", string("grün\u{0}")),
        ("empty", string("")),
        (
            "array",
            array(vec![
                whole(1),
                array(vec![AMQPValue::Double(2.5), AMQPValue::Void]),
                AMQPValue::FieldTable(table(vec![("a", array(vec![]))])),
            ]),
        ),
        (
            "object",
            AMQPValue::FieldTable(table(vec![(
                "deep",
                AMQPValue::FieldTable(table(vec![("er", array(vec![AMQPValue::Boolean(true)]))])),
            )])),
        ),
        ("long", string(&"x".repeat(30_000))),
        (&"n".repeat(255), whole(1)),
    ]);
    assert_eq!(properties.headers().as_ref(), Some(&expected));
    let bare = &arrived[1].0;
    assert_eq!(bare.headers(), &None);
    assert_eq!(bare.content_type(), &None);
    assert_eq!(bare.priority(), &None);
    assert_eq!(bare.expiration(), &None);
}

#[tokio::test]
async fn payloads_empty_binary_and_of_8_mib_arrive_byte_for_byte() {
    let vhost = shared::vhost().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    queue(&channel, "q").await;
    let (connection, mut publisher) = publisher(&vhost.url).await;
    let frame = connection.frame_max() as usize;
    let binary =
        |length: usize| -> Vec<u8> { (0..length).map(|byte| (byte * 7 % 251) as u8).collect() };
    let payloads = [
        binary(0),
        (0..=255).collect(),
        binary(8 * 1024 * 1024),
        // Around the largest body that fits into one frame.
        binary(frame - 9),
        binary(frame - 8),
        binary(frame - 7),
        binary(0),
    ];
    let batch: Vec<_> = payloads
        .iter()
        .map(|payload| {
            let mut message = message("", "q");
            message.payload = Payload::Fetched(payload.clone());
            message
        })
        .collect();

    let published = publisher.publish(&batch, PATIENT).await;

    assert!(
        published
            .outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Confirmed)
    );
    let arrived: Vec<_> = drain(&channel, "q")
        .await
        .into_iter()
        .map(|(_, payload)| payload)
        .collect();
    assert!(arrived == payloads, "a payload changed on its way");
}

#[tokio::test]
async fn a_batch_arrives_in_its_order_also_when_it_is_larger_than_what_may_wait_for_the_socket() {
    let vhost = shared::vhost().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    queue(&channel, "q").await;
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let mut batch = messages(300, "", "q");
    for message in batch.iter_mut().step_by(3) {
        message.payload = Payload::Fetched(vec![1; 100_000]);
    }
    for _ in 0..2 {
        let published = publisher.publish(&batch, PATIENT).await;
        assert!(
            published
                .outcomes
                .iter()
                .all(|outcome| *outcome == Outcome::Confirmed)
        );
        let sent: Vec<_> = batch.iter().map(|message| message.id).collect();
        assert_eq!(drained_ids(&channel, "q").await, sent);
    }
}
