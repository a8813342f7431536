//! A message that makes the broker close the channel fails alone.

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use postrider_core::{Outcome, Payload, Reason};
use postrider_rabbitmq::ChannelFate;
use postrider_testbed::{RabbitOptions, RabbitServer, shared};
use serde_json::json;
use std::collections::HashSet;

use crate::{
    PATIENT, detail, drained_ids, exchange_and_queue, headers, message, messages, only_failed,
    publisher, queue,
};

#[tokio::test]
async fn a_missing_exchange_fails_only_its_own_messages_and_the_others_arrive() {
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
    let mut batch = messages(503, "", "q");
    batch[100].exchange = "missing".to_owned();
    batch[250].exchange = "missing".to_owned();
    batch[251].exchange = "also 'missing' in vhost".to_owned();

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_failed(
        &published.outcomes,
        &[100, 250, 251],
        Reason::ExchangeMissing,
    );
    assert!(
        detail(&published.outcomes[100]).contains("NOT_FOUND"),
        "{:?}",
        published.outcomes[100]
    );
    assert!(connection.is_alive());
    let arrived: HashSet<_> = drained_ids(&channel, "q").await.into_iter().collect();
    assert_eq!(arrived.len(), 500);
    let next = publisher.publish(&[message("", "q")], PATIENT).await;
    assert_eq!(next.outcomes, [Outcome::Confirmed]);
}

#[tokio::test]
async fn exchanges_with_names_longer_than_the_brokers_answer_are_told_apart() {
    let vhost = shared::vhost().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    let good = format!("{}-good", "x".repeat(250));
    exchange_and_queue(&channel, &good).await;
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let mut batch = messages(20, &good, "k");
    batch[7].exchange = format!("{}-bad1", "x".repeat(250));
    batch[12].exchange = format!("{}-bad2", "x".repeat(250));

    let published = publisher.publish(&batch, PATIENT).await;

    only_failed(&published.outcomes, &[7, 12], Reason::ExchangeMissing);
}

#[tokio::test]
async fn a_forbidden_exchange_fails_only_its_own_messages() {
    let vhost = shared::vhost().await;
    let rabbit = shared::rabbit().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    exchange_and_queue(&channel, "open").await;
    exchange_and_queue(&channel, "closed").await;
    channel
        .exchange_declare(
            "inner".into(),
            ExchangeKind::Fanout,
            ExchangeDeclareOptions {
                internal: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await
        .unwrap();
    rabbit.add_user(&vhost.name, "secret").await.unwrap();
    rabbit
        .set_permissions(&vhost.name, &vhost.name, "", "^(open|inner)$", "")
        .await
        .unwrap();
    let (connection, mut publisher) =
        publisher(&vhost.url_for(&vhost.name, "secret", vhost.port)).await;
    let mut batch = messages(200, "open", "k");
    batch[50].exchange = "closed".to_owned();
    batch[60].exchange = "inner".to_owned();
    batch[70] = message("", "open");
    batch[199].exchange = "closed".to_owned();

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_failed(&published.outcomes, &[50, 60, 70, 199], Reason::Forbidden);
    for position in [50, 60, 70] {
        assert!(detail(&published.outcomes[position]).contains("ACCESS_REFUSED"));
    }
    assert!(connection.is_alive());
    let arrived: HashSet<_> = drained_ids(&channel, "open").await.into_iter().collect();
    assert_eq!(arrived.len(), 196);
}

#[tokio::test]
async fn a_forbidden_topic_fails_only_the_messages_of_that_topic() {
    let vhost = shared::vhost().await;
    let rabbit = shared::rabbit().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    exchange_and_queue(&channel, "events").await;
    let user = &vhost.name;
    rabbit.add_user(user, "secret").await.unwrap();
    rabbit
        .set_permissions(user, user, "", ".*", "")
        .await
        .unwrap();
    rabbit
        .eval(&format!(
            "rabbit_auth_backend_internal:set_topic_permissions(<<\"{user}\">>, <<\"{user}\">>, <<\"events\">>, <<\"^public\">>, <<\"\">>, <<\"testbed\">>)."
        ))
        .await
        .unwrap();
    let (_connection, mut publisher) = publisher(&vhost.url_for(user, "secret", vhost.port)).await;
    let mut batch = messages(100, "events", "public.a");
    batch[20].routing_key = "private.a".to_owned();
    batch[21].routing_key = "private.b".to_owned();

    let published = publisher.publish(&batch, PATIENT).await;

    only_failed(&published.outcomes, &[20, 21], Reason::Forbidden);
    assert!(detail(&published.outcomes[21]).contains("private.b"));
}

#[tokio::test]
async fn a_message_whose_properties_the_broker_refuses_without_naming_it_is_found() {
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
    let mut batch = messages(60, "", "q");
    batch[5].headers = headers(&json!({"CC": "no array"}));
    batch[40].properties.expiration_ms = Some(u64::MAX);

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_failed(&published.outcomes, &[5, 40], Reason::NotEncodable);
    assert!(detail(&published.outcomes[5]).contains("PRECONDITION_FAILED"));
    let arrived: HashSet<_> = drained_ids(&channel, "q").await.into_iter().collect();
    assert_eq!(arrived.len(), 58);
}

#[tokio::test]
async fn a_message_too_large_for_the_broker_fails_alone() {
    let server = RabbitServer::start(RabbitOptions {
        config: vec!["max_message_size = 100000".to_owned()],
        ..RabbitOptions::default()
    })
    .await
    .unwrap();
    let vhost = server.create_vhost().await.unwrap();
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    queue(&channel, "q").await;
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let mut batch = messages(50, "", "q");
    batch[9].payload = Payload::Fetched(vec![0; 100_000]);
    batch[10].payload = Payload::Fetched(vec![0; 100_001]);
    batch[30].payload = Payload::Fetched(vec![0; 200_000]);

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_failed(&published.outcomes, &[10, 30], Reason::TooLarge);
    let arrived: HashSet<_> = drained_ids(&channel, "q").await.into_iter().collect();
    assert_eq!(arrived.len(), 48);
}
