//! Messages of one key arrive in their order, and what follows a failed one is not sent.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lapin::Channel;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use postrider_core::{Message, Ordered, Outcome, Reason, Seq};
use postrider_rabbitmq::{
    ChannelFate, Connection, HeaderName, OrderingSettings, Publisher, Settings,
};
use postrider_testbed::{TestVhost, shared};
use serde_json::json;
use uuid::Uuid;

use crate::{LONG, PATIENT, drain, drained_ids, exchange_and_queue, headers, message, settings};

async fn broker() -> (TestVhost, Channel) {
    let vhost = shared::vhost().await;
    let connection = vhost.connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("q".into(), options, arguments)
        .await
        .unwrap();
    (vhost, channel)
}

/// Time enough for a batch also on a slow machine.
fn unhurried() -> OrderingSettings {
    OrderingSettings {
        budget: LONG,
        ..OrderingSettings::default()
    }
}

async fn with(vhost: &TestVhost, ordering: OrderingSettings) -> (Connection, Publisher) {
    let settings = Settings {
        ordering,
        ..settings(&vhost.url)
    };
    let connection = Connection::open(&settings, 0).await.unwrap();
    let publisher = connection.publisher().await.unwrap();
    (connection, publisher)
}

/// Messages to the queue, with these keys.
fn of_keys<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<Message> {
    let keyed = keys.zip(1..).map(|(key, seq)| Message {
        seq: Seq(seq),
        ordered: Some(Ordered {
            key: key.to_owned(),
            supersede: false,
        }),
        ..message("", "q")
    });
    keyed.collect()
}

/// So many of each of these keys, in turn.
fn in_turn(keys: &[String], each: usize) -> Vec<Message> {
    let keys = keys.iter().map(String::as_str);
    of_keys(keys.clone().cycle().take(keys.len() * each))
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|key| format!("key {key}")).collect()
}

/// `c`onfirmed, `h`eld back, and the first letter of the reason of what failed.
fn shown(outcomes: &[Outcome]) -> String {
    let letter = |outcome: &Outcome| match outcome {
        Outcome::Confirmed => "c",
        Outcome::HeldBack => "h",
        Outcome::Failed(failure) => &failure.reason.as_str()[..1],
    };
    outcomes.iter().map(letter).collect()
}

fn confirmed_ids(batch: &[Message], outcomes: &[Outcome]) -> HashSet<Uuid> {
    let all = batch.iter().zip(outcomes);
    all.filter(|(_, outcome)| **outcome == Outcome::Confirmed)
        .map(|(message, _)| message.id)
        .collect()
}

/// Asserts that each message of the batch that arrived did so first after all before it of its key.
fn in_order(batch: &[Message], arrived: &[Uuid]) {
    let mut first = HashMap::new();
    for (place, id) in arrived.iter().enumerate() {
        first.entry(*id).or_insert(place);
    }
    let mut last: HashMap<&str, Option<usize>> = HashMap::new();
    for message in batch {
        let place = first.get(&message.id).copied();
        let Some(key) = message.key() else { continue };
        if let Some(before) = last.insert(key, place) {
            let in_order = place.is_none() || before.is_some_and(|before| Some(before) < place);
            assert!(in_order, "{message:?} of {key}: {before:?}, {place:?}");
        }
    }
}

#[tokio::test]
async fn the_messages_of_each_key_arrive_in_order_with_their_key_and_seq() {
    let (vhost, channel) = broker().await;
    let (_connection, mut publisher) = with(&vhost, unhurried()).await;
    let mut batch = in_turn(&names(40), 4);
    batch.extend(of_keys(std::iter::repeat_n("hot", 60)));
    batch[0].headers = headers(&json!({"x-ordering-seq": "forged", "own": 1}));
    batch.insert(7, message("", "q"));

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    assert!(
        published
            .outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Confirmed)
    );
    let arrived = drain(&channel, "q").await;
    assert_eq!(arrived.len(), batch.len());
    let mut ids = Vec::new();
    for (properties, _) in &arrived {
        let id = properties.message_id().as_ref().unwrap();
        let id: Uuid = id.as_str().parse().unwrap();
        ids.push(id);
        let sent = batch.iter().find(|message| message.id == id).unwrap();
        let header = |name: &str| {
            let headers = properties.headers().as_ref()?;
            headers.inner().get(name).cloned()
        };
        let key = sent.key().map(|key| AMQPValue::LongString(key.into()));
        assert_eq!(header("x-ordering-key"), key);
        let seq = sent.key().map(|_| AMQPValue::LongLongInt(sent.seq.0));
        assert_eq!(header("x-ordering-seq"), seq);
        let own = (id == batch[0].id).then_some(AMQPValue::LongLongInt(1));
        assert_eq!(header("own"), own);
    }
    in_order(&batch, &ids);
}

#[tokio::test]
async fn the_headers_have_the_names_that_are_set() {
    let (vhost, channel) = broker().await;
    let ordering = OrderingSettings {
        key_header: Some(HeaderName::new("aggregate").unwrap()),
        seq_header: None,
        ..OrderingSettings::default()
    };
    let (_connection, mut publisher) = with(&vhost, ordering).await;
    let batch = of_keys(["order 7"].into_iter());
    let published = publisher.publish(&batch, PATIENT).await;
    assert_eq!(published.outcomes, [Outcome::Confirmed]);
    let arrived = drain(&channel, "q").await;
    let sent = arrived[0].0.headers().clone().unwrap();
    let key = AMQPValue::LongString("order 7".into());
    assert_eq!(sent.inner().get("aggregate"), Some(&key));
    for absent in ["x-ordering-key", "x-ordering-seq"] {
        assert_eq!(sent.inner().get(absent), None);
    }
}

#[tokio::test]
async fn nothing_passes_an_unroutable_head_and_no_other_key_is_held_back_whoevers_confirm_brings_its_return()
 {
    let (vhost, channel) = broker().await;
    let (_connection, mut publisher) = with(&vhost, unhurried()).await;
    for step in [2, 3, 7] {
        let keys = names(300);
        let mut batch = in_turn(&keys, 3);
        for head in (0..keys.len()).step_by(step) {
            batch[head].routing_key = "nobody".to_owned();
        }

        let published = publisher.publish(&batch, PATIENT).await;

        assert_eq!(published.channel, ChannelFate::Usable);
        let round: String = (0..keys.len())
            .map(|key| if key % step == 0 { 'u' } else { 'c' })
            .collect();
        let later = round.replace('u', "h");
        assert_eq!(shown(&published.outcomes), format!("{round}{later}{later}"));
        let arrived = drained_ids(&channel, "q").await;
        let confirmed = confirmed_ids(&batch, &published.outcomes);
        assert_eq!(arrived.len(), confirmed.len());
        assert!(arrived.iter().all(|id| confirmed.contains(id)));
        in_order(&batch, &arrived);
    }
}

#[tokio::test]
async fn a_missing_exchange_in_the_middle_of_a_key_lets_those_before_it_through_and_none_behind() {
    let (vhost, channel) = broker().await;
    let (_connection, mut publisher) = with(&vhost, unhurried()).await;
    let mut batch = of_keys(["a", "a", "b", "a", "a", "b", "c", "c"].into_iter());
    for position in [3, 6] {
        batch[position].exchange = "missing".to_owned();
    }

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    assert_eq!(shown(&published.outcomes), "cccehceh");
    // The first of each key, and then the second: each once.
    let sent = [0, 2, 1, 5].map(|position: usize| batch[position].id);
    assert_eq!(drained_ids(&channel, "q").await, sent);
}

#[tokio::test]
async fn a_channel_that_is_closed_over_another_message_costs_keys_repeats_and_never_their_order() {
    let (vhost, channel) = broker().await;
    exchange_and_queue(&channel, "gone").await;
    let (_connection, mut publisher) = with(&vhost, unhurried()).await;
    let known = publisher.publish(&[message("gone", "k")], PATIENT).await;
    assert_eq!(known.outcomes, [Outcome::Confirmed]);
    channel
        .exchange_delete("gone".into(), ExchangeDeleteOptions::default())
        .await
        .unwrap();
    let mut batch = in_turn(&names(100), 4);
    // Two keys stumble over it in their second message, at different times in the window.
    for position in [120, 180] {
        batch[position].exchange = "gone".to_owned();
    }
    batch.insert(30, message("", "q"));

    let published = publisher.publish(&batch, PATIENT).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    for (position, (message, outcome)) in batch.iter().zip(&published.outcomes).enumerate() {
        let stumbled = matches!(message.key(), Some("key 20" | "key 80"));
        let expected = match position / 100 {
            _ if !stumbled => "c",
            0 => "c",
            1 => "e",
            _ => "h",
        };
        assert_eq!(shown(std::slice::from_ref(outcome)), expected, "{position}");
    }
    let arrived = drained_ids(&channel, "q").await;
    let once: HashSet<_> = arrived.iter().copied().collect();
    assert_eq!(once, confirmed_ids(&batch, &published.outcomes));
    in_order(&batch, &arrived);
}

#[tokio::test]
async fn without_time_left_the_first_of_each_key_are_confirmed_and_the_rest_is_held_back_for_later_batches()
 {
    let (vhost, channel) = broker().await;
    let ordering = OrderingSettings {
        budget: Duration::ZERO,
        ..OrderingSettings::default()
    };
    let (_connection, mut publisher) = with(&vhost, ordering).await;
    let batch = of_keys(["a", "a", "b", "a"].into_iter());
    let mut left = batch.clone();
    // Two of one id are two windows.
    left.extend([message("", "q"), message("", "q")]);
    left[5].id = left[4].id;
    for expected in ["chchcc", "ch", "c"] {
        let published = publisher.publish(&left, PATIENT).await;
        assert_eq!(published.channel, ChannelFate::Usable);
        assert_eq!(shown(&published.outcomes), expected);
        let mut outcomes = published.outcomes.into_iter();
        left.retain(|_| outcomes.next() == Some(Outcome::HeldBack));
    }
    let arrived = drained_ids(&channel, "q").await;
    assert_eq!(arrived.len(), 6);
    in_order(&batch, &arrived);
}

#[tokio::test]
async fn a_key_whose_head_cannot_be_encoded_or_is_too_large_is_held_back_behind_it() {
    let (vhost, channel) = broker().await;
    let (_connection, mut publisher) = with(&vhost, unhurried()).await;
    let mut batch = of_keys(["a", "a", "b", "b", "c"].into_iter());
    batch[0].headers = headers(&json!({"n".repeat(256): 1}));
    batch[2].payload = postrider_core::Payload::TooLarge { bytes: 20_000_000 };
    let published = publisher.publish(&batch, PATIENT).await;
    assert_eq!(shown(&published.outcomes), "nhthc");
    assert_eq!(drained_ids(&channel, "q").await, [batch[4].id]);
    match &published.outcomes[0] {
        Outcome::Failed(failure) => assert_eq!(failure.reason, Reason::NotEncodable),
        Outcome::Confirmed | Outcome::HeldBack => unreachable!(),
    }
}
