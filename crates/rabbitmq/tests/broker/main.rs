//! The publisher and its connection on a real RabbitMQ.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics, in its functions as well"
)]

mod arrival;
#[path = "../at/mod.rs"]
mod at;
mod channel_errors;
mod examine;
mod exchanges;
mod link;
mod ordering;
mod outcomes;
mod stragglers;
mod tls;

use std::time::Duration;

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, ExchangeKind};
use postrider_core::{Headers, Message, Outcome, Patience, Payload, Properties, Reason, Seq};
use postrider_rabbitmq::{Connection, Publisher, Settings};
use postrider_testbed::{TestVhost, shared};
use uuid::Uuid;

/// Generous: machines that run tests are slow at times.
const LONG: Duration = Duration::from_secs(120);

const PATIENT: Patience = Patience {
    confirm_timeout: LONG,
    straggler_timeout: LONG,
};

fn settings(url: &str) -> Settings {
    Settings {
        connect_timeout: LONG,
        ..Settings::new(vec![at::broker(url)])
    }
}

async fn publisher(url: &str) -> (Connection, Publisher) {
    let connection = Connection::open(&settings(url), 0).await.unwrap();
    let publisher = connection.publisher().await.unwrap();
    (connection, publisher)
}

fn message(exchange: &str, routing_key: &str) -> Message {
    Message {
        seq: Seq(1),
        id: Uuid::new_v4(),
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        payload: Payload::Fetched(b"payload".to_vec()),
        headers: Headers::default(),
        properties: Properties::default(),
        created_at_unix: 1_700_000_000,
        age_at_claim: Duration::ZERO,
        attempts: 0,
        origin: postrider_core::Origin::Messages,
        ordered: None,
    }
}

fn headers(object: &serde_json::Value) -> Headers {
    Headers::from_json(&object.to_string())
}

fn messages(count: usize, exchange: &str, routing_key: &str) -> Vec<Message> {
    (0..count).map(|_| message(exchange, routing_key)).collect()
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Confirmed => None,
        Outcome::Failed(failure) => Some(failure.reason),
        Outcome::HeldBack => panic!("held back"),
    }
}

fn detail(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Confirmed => "confirmed",
        Outcome::Failed(failure) => &failure.detail,
        Outcome::HeldBack => "held back",
    }
}

/// Asserts that exactly the messages at these positions failed, for this reason, and that the others
/// are confirmed.
fn only_failed(outcomes: &[Outcome], positions: &[usize], why: Reason) {
    for (position, outcome) in outcomes.iter().enumerate() {
        let expected = positions.contains(&position).then_some(why);
        assert_eq!(reason(outcome), expected, "message {position}: {outcome:?}");
    }
}

async fn queue(channel: &Channel, name: &str) {
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await
        .unwrap();
}

/// A topic exchange with everything bound to a queue of the same name.
async fn exchange_and_queue(channel: &Channel, name: &str) {
    channel
        .exchange_declare(
            name.into(),
            ExchangeKind::Topic,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    queue(channel, name).await;
    channel
        .queue_bind(
            name.into(),
            name.into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
}

/// Everything in the queue. What was confirmed is there already.
async fn drain(channel: &Channel, queue: &str) -> Vec<(BasicProperties, Vec<u8>)> {
    let mut messages = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(got) = channel.basic_get(queue.into(), options).await.unwrap() {
        messages.push((got.delivery.properties, got.delivery.data));
    }
    messages
}

async fn drained_ids(channel: &Channel, queue: &str) -> Vec<Uuid> {
    drain(channel, queue)
        .await
        .iter()
        .map(|(properties, _)| {
            let id = properties.message_id().as_ref().unwrap();
            id.as_str().parse().unwrap()
        })
        .collect()
}

/// The channels that the broker has in the virtual host, those of the test's own included.
async fn channels(vhost: &TestVhost) -> Vec<String> {
    // The broker's own register: a channel that is held up, by another test, answers no questions.
    let expression = format!(
        "[pid_to_list(C) || {{C, Infos}} <- ets:tab2list(channel_created), rabbit_misc:pget(vhost, Infos) =:= <<\"{}\">>].",
        vhost.name
    );
    let answer = shared::rabbit().await.eval(&expression).await.unwrap();
    let pids = answer.split(|letter| !matches!(letter, '<' | '>' | '.' | '0'..='9'));
    let mut pids: Vec<_> = pids
        .filter(|pid| !pid.is_empty())
        .map(str::to_owned)
        .collect();
    pids.sort();
    pids
}
