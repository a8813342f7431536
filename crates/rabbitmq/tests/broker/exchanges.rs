//! What goes to an exchange that does not exist is not sent, and costs nobody a repeat.

use lapin::Channel;
use lapin::options::ExchangeDeleteOptions;
use postrider_core::{Outcome, Reason, Scope};
use postrider_rabbitmq::ChannelFate;
use postrider_testbed::{TestVhost, shared, wait_until};

use crate::{
    LONG, PATIENT, channels, detail, drained_ids, exchange_and_queue, message, messages,
    only_failed, publisher, queue,
};

async fn broker() -> (TestVhost, Channel) {
    let vhost = shared::vhost().await;
    let connection = vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    queue(&channel, "q").await;
    (vhost, channel)
}

#[tokio::test]
async fn a_missing_exchange_costs_no_neighbour_a_repeat() {
    let (vhost, channel) = broker().await;
    exchange_and_queue(&channel, "there").await;
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let mut batch = messages(1_000, "", "q");
    for position in [0, 1, 500, 501, 999] {
        batch[position].exchange = "missing".to_owned();
    }
    batch[700].exchange = "also missing".to_owned();
    batch[701].exchange = "there".to_owned();

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    let missing = [0, 1, 500, 501, 700, 999];
    only_failed(&published.outcomes, &missing, Reason::ExchangeMissing);
    match &published.outcomes[700] {
        Outcome::Failed(failure) => assert_eq!(failure.scope, Scope::Exchange),
        Outcome::Confirmed | Outcome::HeldBack => unreachable!(),
    }
    let text = detail(&published.outcomes[700]);
    assert!(
        text.contains("no exchange 'also missing'") && text.contains("declare the exchange"),
        "{text}"
    );
    // Each once, and in order.
    let sent: Vec<_> = batch
        .iter()
        .enumerate()
        .filter(|(position, message)| !missing.contains(position) && message.exchange.is_empty())
        .map(|(_, message)| message.id)
        .collect();
    assert_eq!(drained_ids(&channel, "q").await, sent);
    assert_eq!(drained_ids(&channel, "there").await, [batch[701].id]);
}

#[tokio::test]
async fn an_exchange_that_is_declared_later_is_found_at_the_next_publish() {
    let (vhost, channel) = broker().await;
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    let before = channels(&vhost).await;
    for _ in 0..2 {
        let early = publisher.publish(&[message("late", "k")], PATIENT).await;
        only_failed(&early.outcomes, &[0], Reason::ExchangeMissing);
    }
    // It was never sent, which would have cost the publisher its channel.
    wait_until(LONG, "the channels that asked to be gone", async || {
        channels(&vhost).await == before
    })
    .await
    .unwrap();
    exchange_and_queue(&channel, "late").await;
    let found = publisher.publish(&[message("late", "k")], PATIENT).await;
    assert_eq!(found.outcomes, [Outcome::Confirmed]);
}

#[tokio::test]
async fn an_exchange_deleted_after_it_was_known_is_refused_once_and_then_known_to_be_missing() {
    let (vhost, channel) = broker().await;
    exchange_and_queue(&channel, "gone").await;
    let (connection, mut publisher) = publisher(&vhost.url).await;
    let mut others_publisher = connection.publisher().await.unwrap();
    let first = publisher.publish(&[message("gone", "k")], PATIENT).await;
    assert_eq!(first.outcomes, [Outcome::Confirmed]);
    channel
        .exchange_delete("gone".into(), ExchangeDeleteOptions::default())
        .await
        .unwrap();
    let refused = publisher.publish(&[message("gone", "k")], PATIENT).await;
    only_failed(&refused.outcomes, &[0], Reason::ExchangeMissing);
    // Every publisher of the connection knows: no channel is lost over it any more.
    let before = channels(&vhost).await;
    let mut batch = messages(300, "", "q");
    batch[0].exchange = "gone".to_owned();
    let published = others_publisher.publish(&batch, PATIENT).await;
    only_failed(&published.outcomes, &[0], Reason::ExchangeMissing);
    let after = channels(&vhost).await;
    assert!(
        after.iter().all(|channel| before.contains(channel)),
        "{before:?} {after:?}"
    );
    let sent: Vec<_> = batch.iter().skip(1).map(|message| message.id).collect();
    assert_eq!(drained_ids(&channel, "q").await, sent);
}
