//! What a user that may do nothing but publish learns of a broker, and that it leaves no trace.

use postrider_rabbitmq::{Alarm, Connection, Found, MayPublish, examine_exchange_type, greeting};
use postrider_testbed::{RabbitOptions, RabbitServer, TestVhost, shared};

use crate::{drained_ids, exchange_and_queue, settings};

/// A user that may write to the exchange `open`, to `both` and to the default one.
async fn writer(rabbit: &RabbitServer, vhost: &TestVhost) -> String {
    rabbit.add_user(&vhost.name, "secret").await.unwrap();
    rabbit
        .set_permissions(
            &vhost.name,
            &vhost.name,
            "^$",
            "^(open|missing|amq\\.default)$",
            "^$",
        )
        .await
        .unwrap();
    vhost.url_for(&vhost.name, "secret", vhost.port)
}

#[tokio::test]
async fn exchanges_and_the_right_to_publish_to_them_are_found_out_without_a_message() {
    let vhost = shared::vhost().await;
    let admin = vhost.connection().await.unwrap();
    let channel = admin.create_channel().await.unwrap();
    exchange_and_queue(&channel, "open").await;
    exchange_and_queue(&channel, "closed").await;
    let url = writer(shared::rabbit().await, &vhost).await;
    let connection = Connection::open(&settings(&url), 0).await.unwrap();

    assert_eq!(connection.find_exchange("open").await, Found::Yes);
    assert_eq!(connection.find_exchange("closed").await, Found::Yes);
    assert_eq!(connection.find_exchange("").await, Found::Yes);
    match connection.find_exchange("missing").await {
        Found::No(said) => assert!(said.contains("no exchange 'missing'"), "{said}"),
        other => panic!("{other:?}"),
    }
    for (exchange, may) in [("open", true), ("closed", false), ("", true)] {
        match (connection.may_publish(exchange).await, may) {
            (MayPublish::Yes, true) => {}
            (MayPublish::No(said), false) => assert!(said.contains("'closed'"), "{said}"),
            (other, _) => panic!("{exchange}: {other:?}"),
        }
    }
    // Who may do more is told the same.
    let all = Connection::open(&settings(&vhost.url), 0).await.unwrap();
    assert_eq!(all.may_publish("closed").await, MayPublish::Yes);
    assert_eq!(connection.alarm().await, Alarm::None);
    assert!(connection.is_alive());
    for queue in ["open", "closed"] {
        assert!(drained_ids(&channel, queue).await.is_empty());
    }
}

#[tokio::test]
async fn a_user_that_may_not_write_to_the_default_exchange_is_told_so_and_still_hears_of_alarms() {
    let vhost = shared::vhost().await;
    let rabbit = shared::rabbit().await;
    writer(rabbit, &vhost).await;
    rabbit
        .set_permissions(&vhost.name, &vhost.name, "^$", "^$", "^$")
        .await
        .unwrap();
    let url = vhost.url_for(&vhost.name, "secret", vhost.port);
    let connection = Connection::open(&settings(&url), 0).await.unwrap();
    match connection.may_publish("").await {
        MayPublish::No(said) => assert!(said.contains("amq.default"), "{said}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(connection.alarm().await, Alarm::None);
}

#[tokio::test]
async fn an_alarm_is_heard_of_on_a_fresh_connection() {
    let rabbit = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let vhost = rabbit.create_vhost().await.unwrap();
    let url = writer(&rabbit, &vhost).await;
    rabbit.set_memory_alarm(true).await.unwrap();
    for (write, what) in [(".*", "may"), ("^$", "may not")] {
        rabbit
            .set_permissions(&vhost.name, &vhost.name, "^$", write, "^$")
            .await
            .unwrap();
        let connection = Connection::open(&settings(&url), 0).await.unwrap();
        match connection.alarm().await {
            Alarm::Raised(reason) => assert!(reason.contains("memory"), "{reason}"),
            other => panic!("{what} publish: {other:?}"),
        }
    }
    rabbit.set_memory_alarm(false).await.unwrap();
    let connection = Connection::open(&settings(&url), 0).await.unwrap();
    assert_eq!(connection.alarm().await, Alarm::None);
}

#[tokio::test]
async fn a_broker_says_what_it_is_and_which_kinds_of_exchanges_it_knows() {
    let vhost = shared::vhost().await;
    for url in [
        vhost.url.clone(),
        writer(shared::rabbit().await, &vhost).await,
    ] {
        let settings = settings(&url);
        let connection = Connection::open(&settings, 0).await.unwrap();
        let said = greeting(&settings, connection.peer()).await.unwrap();
        assert_eq!(said.product, "RabbitMQ");
        let shown = shared::rabbit().await.eval("rabbit_misc:version().").await;
        assert!(shown.unwrap().contains(&said.version), "{said:?}");
        assert_eq!(greeting(&settings, "elsewhere:5672").await, None);
        for (kind, known) in [("topic", true), ("x-delayed-message", false)] {
            let found = examine_exchange_type(&settings, kind).await.unwrap();
            assert_eq!(found, Some(known), "{kind}");
        }
    }
}
