//! Each message is charged with what happened to it, and with nothing else.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use postrider_core::{Outcome, Payload, Reason};
use postrider_rabbitmq::ChannelFate;
use postrider_testbed::{RabbitOptions, RabbitServer, shared};
use serde_json::json;

use crate::{
    PATIENT, detail, drained_ids, headers, message, messages, only_failed, publisher, queue, reason,
};

#[tokio::test]
async fn an_unroutable_message_among_a_thousand_good_ones_is_the_only_one_that_fails() {
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
    let mut batch = messages(1_001, "", "q");
    batch[400].routing_key = "nobody".to_owned();

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_failed(&published.outcomes, &[400], Reason::Unroutable);
    assert!(
        detail(&published.outcomes[400]).contains("NO_ROUTE"),
        "{:?}",
        published.outcomes[400]
    );
    assert_eq!(drained_ids(&channel, "q").await.len(), 1_000);
}

#[tokio::test]
async fn many_unroutable_messages_are_told_apart_batch_after_batch() {
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
    for step in [2, 3, 7] {
        let mut batch = messages(400, "", "q");
        let lost: Vec<_> = (0..400).filter(|position| position % step == 1).collect();
        for position in &lost {
            batch[*position].routing_key = "nobody".to_owned();
        }
        let published = publisher.publish(&batch, PATIENT).await;
        only_failed(&published.outcomes, &lost, Reason::Unroutable);
    }
}

#[tokio::test]
async fn of_two_messages_with_one_id_only_the_unroutable_one_fails() {
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
    for unroutable in [1, 3] {
        let mut batch = messages(5, "", "q");
        batch[3].id = batch[1].id;
        batch[unroutable].routing_key = "nobody".to_owned();
        let published = publisher.publish(&batch, PATIENT).await;
        only_failed(&published.outcomes, &[unroutable], Reason::Unroutable);
        let mut sent: Vec<_> = batch.iter().map(|message| message.id).collect();
        sent.remove(unroutable);
        assert_eq!(drained_ids(&channel, "q").await, sent);
    }
}

#[tokio::test]
async fn a_full_queue_that_rejects_publishes_fails_only_its_own_messages() {
    let vhost = shared::vhost().await;
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    queue(&channel, "q").await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    channel
        .queue_declare("full".into(), QueueDeclareOptions::default(), arguments)
        .await
        .unwrap();
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let filling = publisher.publish(&[message("", "full")], PATIENT).await;
    assert_eq!(filling.outcomes, [Outcome::Confirmed]);
    let mut batch = messages(100, "", "q");
    batch[10].routing_key = "full".to_owned();
    batch[90].routing_key = "full".to_owned();

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_failed(&published.outcomes, &[10, 90], Reason::Nacked);
    assert_eq!(drained_ids(&channel, "q").await.len(), 98);
}

#[tokio::test]
async fn what_amqp_cannot_carry_never_reaches_the_wire_and_its_neighbours_are_delivered() {
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
    let mut batch = messages(9, "", "q");
    // 64 KiB of JSON that take three times as much on the wire.
    batch[1].headers = headers(&json!({"a": vec![1; 20_000]}));
    batch[2].headers = headers(&json!({"n".repeat(256): 1}));
    batch[3].properties.app_id = Some("a".repeat(256));
    batch[4].routing_key = "q".repeat(256);
    batch[5].exchange = "q".repeat(256);
    batch[7].payload = Payload::TooLarge { bytes: 20_000_000 };

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    let reasons: Vec<_> = published.outcomes.iter().map(reason).collect();
    let no = Some(Reason::NotEncodable);
    assert_eq!(
        reasons,
        [None, no, no, no, no, no, None, Some(Reason::TooLarge), None]
    );
    assert!(detail(&published.outcomes[1]).contains("frame"));
    assert!(detail(&published.outcomes[7]).contains("max_message_bytes"));
    assert!(connection.is_alive());
    assert_eq!(
        drained_ids(&channel, "q").await,
        [batch[0].id, batch[6].id, batch[8].id]
    );
}

#[tokio::test]
async fn headers_that_just_fit_into_the_frame_arrive_and_one_byte_more_is_refused() {
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
    // Frame 8, class, weight and size 12, flags 2, table 4, name 2, type 1, length 4, delivery mode 1,
    // message id 37, timestamp 8.
    let room = connection.frame_max() as usize - (8 + 12 + 2 + 4 + 2 + 1 + 4 + 1 + 37 + 8);
    let mut batch = messages(3, "", "q");
    for (message, length) in batch.iter_mut().zip([room, room + 1, room - 1]) {
        message.headers = headers(&json!({"h": "x".repeat(length)}));
    }

    let published = publisher.publish(&batch, PATIENT).await;

    only_failed(&published.outcomes, &[1], Reason::NotEncodable);
    assert!(connection.is_alive());
    assert_eq!(drained_ids(&channel, "q").await, [batch[0].id, batch[2].id]);
}

#[tokio::test]
async fn a_broker_killed_with_a_thousand_in_flight_leaves_all_unknown_and_none_confirmed() {
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let vhost = server.create_vhost().await.unwrap();
    let channel = vhost
        .connection()
        .await
        .unwrap()
        .create_channel()
        .await
        .unwrap();
    queue(&channel, "q").await;
    let (connection, mut publisher) = publisher(&vhost.url).await;
    let batch = messages(1_000, "", "q");
    // Paused, the broker takes what the sockets hold and answers nothing.
    server.pause().await.unwrap();
    let mut publishing = Box::pin(publisher.publish(&batch, PATIENT));
    assert!(futures_util::poll!(publishing.as_mut()).is_pending());
    server.kill().await.unwrap();
    let published = publishing.await;
    let again = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::ConnectionSuspect);
    assert_eq!(published.outcomes.len(), 1_000);
    for outcome in &published.outcomes {
        assert_eq!(reason(outcome), Some(Reason::ConnectionLost), "{outcome:?}");
    }
    assert_eq!(again.channel, ChannelFate::ConnectionSuspect);
    assert_eq!(reason(&again.outcomes[0]), Some(Reason::ConnectionLost));
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn a_publish_given_up_midway_leaves_a_publisher_that_says_so_and_sends_nothing() {
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
    let batch = messages(10, "", "q");
    {
        let mut publishing = Box::pin(publisher.publish(&batch, PATIENT));
        let first_poll = futures_util::poll!(publishing.as_mut());
        assert!(first_poll.is_pending());
    }
    let published = publisher.publish(&messages(3, "", "q"), PATIENT).await;
    assert_eq!(published.channel, ChannelFate::ConnectionSuspect);
    for outcome in &published.outcomes {
        assert_eq!(reason(outcome), Some(Reason::ConnectionLost));
    }
}
