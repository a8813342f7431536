//! A queue that takes no messages holds up nobody else's.

use std::collections::HashMap;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use postrider_core::{Message, Ordered, Outcome, Patience, Reason, Scope};
use postrider_rabbitmq::{
    ChannelFate, Connection, Late, LinkState, OrderingSettings, Published, Settings,
};
use postrider_testbed::{RabbitOptions, RabbitServer, TestVhost, shared, wait_until};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{LONG, channels, drained_ids, message, messages, publisher, queue, settings};

/// Long enough for a healthy queue on a slow machine, short enough to wait for.
const WATCHFUL: Patience = Patience {
    confirm_timeout: LONG,
    straggler_timeout: Duration::from_secs(3),
};

/// Quorum queues q0, q1 and so on, in a virtual host of their own.
struct Queues {
    vhost: TestVhost,
    channel: Channel,
    count: usize,
}

impl Queues {
    async fn declare(count: usize) -> Self {
        let vhost = shared::vhost().await;
        let connection = vhost.connection().await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        for queue in 0..count {
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
                .queue_declare(name(queue).into(), options, arguments)
                .await
                .unwrap();
        }
        Self {
            vhost,
            channel,
            count,
        }
    }

    /// Messages to all queues in turn.
    fn batch(&self, size: usize) -> Vec<Message> {
        (0..size)
            .map(|position| message("", &name(position % self.count)))
            .collect()
    }

    async fn suspend(&self, queue: usize) {
        self.call(queue, "suspend").await;
    }

    async fn resume(&self, queue: usize) {
        self.call(queue, "resume").await;
    }

    async fn call(&self, queue: usize, call: &str) {
        let expression = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"{}\">>)), {{Name, _}} = amqqueue:get_pid(Q), sys:{call}(Name), ok.",
            self.vhost.name,
            name(queue)
        );
        let answer = shared::rabbit().await.eval(&expression).await.unwrap();
        assert_eq!(answer, "ok");
    }

    /// How often each message is in the queues.
    async fn arrived(&self) -> HashMap<Uuid, usize> {
        let mut arrived = HashMap::new();
        for queue in 0..self.count {
            for id in drained_ids(&self.channel, &name(queue)).await {
                *arrived.entry(id).or_default() += 1;
            }
        }
        arrived
    }
}

fn name(queue: usize) -> String {
    format!("q{queue}")
}

fn to(batch: &[Message], queues: &[usize]) -> Vec<usize> {
    let names: Vec<_> = queues.iter().map(|queue| name(*queue)).collect();
    let positions = batch.iter().enumerate();
    positions
        .filter(|(_, message)| names.contains(&message.routing_key))
        .map(|(position, _)| position)
        .collect()
}

fn confirmed(published: &Published) -> bool {
    let mut outcomes = published.outcomes.iter();
    outcomes.all(|outcome| *outcome == Outcome::Confirmed)
}

fn scope(outcome: &Outcome) -> Option<(Reason, Scope)> {
    match outcome {
        Outcome::Confirmed => None,
        Outcome::Failed(failure) => Some((failure.reason, failure.scope)),
        Outcome::HeldBack => panic!("held back"),
    }
}

/// All that is confirmed in the end, in order.
async fn confirmed_late(late: Late) -> Vec<usize> {
    let mut confirmed = Vec::new();
    let mut waited_for = Some(late);
    while let Some(late) = waited_for {
        let (news, left) = timeout(LONG, late.next()).await.unwrap();
        confirmed.extend(news.confirmed);
        waited_for = left;
    }
    confirmed.sort_unstable();
    confirmed
}

const STRAGGLER: Option<(Reason, Scope)> = Some((Reason::ConfirmTimeout, Scope::Route));

/// Asserts that those positions are stragglers, and that all others are confirmed but `unroutable`.
fn only_straggling(published: &Published, positions: &[usize], unroutable: Option<usize>) {
    for (position, outcome) in published.outcomes.iter().enumerate() {
        let expected = if positions.contains(&position) {
            STRAGGLER
        } else if unroutable == Some(position) {
            Some((Reason::Unroutable, Scope::Message))
        } else {
            None
        };
        assert_eq!(scope(outcome), expected, "message {position}: {outcome:?}");
    }
}

#[tokio::test]
async fn one_suspended_queue_of_twenty_fails_only_its_own_messages_which_are_confirmed_late() {
    let queues = Queues::declare(20).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    let warm = queues.batch(40);
    assert!(confirmed(&publisher.publish(&warm, WATCHFUL).await));
    queues.suspend(7).await;
    let batch = queues.batch(400);

    let published = publisher.publish(&batch, WATCHFUL).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    let stuck = to(&batch, &[7]);
    only_straggling(&published, &stuck, None);
    let late = published.late.unwrap();
    assert_eq!(late.positions(), stuck);
    // The publisher goes on, and nothing of the old channel is taken for the new one's.
    let mut others = queues.batch(40);
    others.retain(|message| message.routing_key != "q7");
    assert!(confirmed(&publisher.publish(&others, WATCHFUL).await));
    queues.resume(7).await;
    let settled = confirmed_late(late).await;
    assert_eq!(settled, stuck);
    let arrived = queues.arrived().await;
    for message in warm.iter().chain(&batch).chain(&others) {
        assert_eq!(arrived.get(&message.id), Some(&1), "{message:?}");
    }
}

#[tokio::test]
async fn a_message_to_a_suspended_queue_holds_back_its_own_key_and_is_confirmed_late_alone() {
    let queues = Queues::declare(2).await;
    // The wait for the straggler is longer than the time that a batch takes for its keys otherwise.
    let settings = Settings {
        ordering: OrderingSettings {
            budget: LONG,
            ..OrderingSettings::default()
        },
        ..settings(&queues.vhost.url)
    };
    let connection = Connection::open(&settings, 0).await.unwrap();
    let mut publisher = connection.publisher().await.unwrap();
    let warm = queues.batch(2);
    assert!(confirmed(&publisher.publish(&warm, WATCHFUL).await));
    queues.suspend(1).await;
    // Of a the first, of b the second goes to the suspended queue, of c none.
    let mut batch: Vec<_> = [1, 0, 0, 0, 1, 0, 0, 0, 0]
        .map(|queue| message("", &name(queue)))
        .into();
    for (message, key) in batch.iter_mut().zip(["a", "b", "c"].into_iter().cycle()) {
        message.ordered = Some(Ordered {
            key: key.to_owned(),
            supersede: false,
        });
    }

    let published = publisher.publish(&batch, WATCHFUL).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    let held_back = [3, 6, 7];
    for (position, outcome) in published.outcomes.iter().enumerate() {
        match position {
            _ if held_back.contains(&position) => assert_eq!(*outcome, Outcome::HeldBack),
            0 | 4 => assert_eq!(scope(outcome), STRAGGLER, "{position}"),
            _ => assert_eq!(*outcome, Outcome::Confirmed, "{position}"),
        }
    }
    let late = published.late.unwrap();
    queues.resume(1).await;
    // That of b was not sent at all: the queue was known to take nothing when its turn came.
    assert_eq!(confirmed_late(late).await, [0]);
    let arrived = queues.arrived().await;
    for (position, message) in batch.iter().enumerate() {
        let sent = position != 4 && !held_back.contains(&position);
        assert_eq!(arrived.contains_key(&message.id), sent, "{position}");
    }
}

#[tokio::test]
async fn an_unroutable_message_beside_a_suspended_queue_makes_nobody_unsure() {
    let queues = Queues::declare(5).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    assert!(confirmed(
        &publisher.publish(&queues.batch(10), WATCHFUL).await
    ));
    queues.suspend(3).await;
    let mut batch = queues.batch(200);
    batch[50].routing_key = "nobody".to_owned();

    let published = publisher.publish(&batch, WATCHFUL).await;

    let stuck = to(&batch, &[3]);
    only_straggling(&published, &stuck, Some(50));
    let late = published.late.unwrap();
    queues.resume(3).await;
    assert_eq!(confirmed_late(late).await, stuck);
}

#[tokio::test]
async fn two_suspended_queues_are_both_found_and_nothing_is_sent_twice() {
    let queues = Queues::declare(6).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    assert!(confirmed(
        &publisher.publish(&queues.batch(12), WATCHFUL).await
    ));
    queues.suspend(0).await;
    queues.suspend(5).await;
    let batch = queues.batch(120);

    let published = publisher.publish(&batch, WATCHFUL).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    let stuck = to(&batch, &[0, 5]);
    only_straggling(&published, &stuck, None);
    let late = published.late.unwrap();
    queues.resume(0).await;
    queues.resume(5).await;
    assert_eq!(confirmed_late(late).await, stuck);
    let arrived = queues.arrived().await;
    for message in &batch {
        assert_eq!(arrived.get(&message.id), Some(&1), "{message:?}");
    }
}

/// Hazard: nothing was told of a batch before the last of its queues had answered, and what one of them had confirmed or refused stayed where it
/// was for as long as another was silent.
#[tokio::test]
async fn a_queue_that_stays_silent_keeps_nobody_from_hearing_what_another_confirms_late() {
    let queues = Queues::declare(3).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    assert!(confirmed(
        &publisher.publish(&queues.batch(6), WATCHFUL).await
    ));
    queues.suspend(0).await;
    queues.suspend(2).await;
    let batch = queues.batch(60);
    let published = publisher.publish(&batch, WATCHFUL).await;
    let (silent, late_ones) = (to(&batch, &[0]), to(&batch, &[2]));
    only_straggling(&published, &to(&batch, &[0, 2]), None);
    let mut late = published.late.unwrap();

    queues.resume(2).await;
    let mut heard = Vec::new();
    while heard.len() < late_ones.len() {
        let (news, left) = timeout(LONG, late.next()).await.unwrap();
        assert_eq!(news.lost, [] as [usize; 0]);
        heard.extend(news.confirmed);
        late = left.unwrap();
    }
    heard.sort_unstable();
    assert_eq!(heard, late_ones);
    assert_eq!(late.positions(), silent);

    queues.resume(0).await;
    assert_eq!(confirmed_late(late).await, silent);
    let arrived = queues.arrived().await;
    for message in &batch {
        assert_eq!(arrived.get(&message.id), Some(&1), "{message:?}");
    }
}

#[tokio::test]
async fn on_a_new_channel_the_queue_that_holds_it_up_is_found_and_all_others_are_confirmed() {
    let queues = Queues::declare(20).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    queues.suspend(7).await;
    let batch = queues.batch(1_000);

    let published = publisher.publish(&batch, WATCHFUL).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    let stuck = to(&batch, &[7]);
    only_straggling(&published, &stuck, None);
    let late = published.late.unwrap();
    // Only what was sent, and that is not the whole batch, may still be confirmed.
    assert!(!late.positions().is_empty());
    let may_be = late.positions().to_vec();
    assert!(may_be.iter().all(|late| stuck.contains(late)));
    let mut others = queues.batch(40);
    others.retain(|message| message.routing_key != "q7");
    assert!(confirmed(&publisher.publish(&others, WATCHFUL).await));
    queues.resume(7).await;
    assert_eq!(confirmed_late(late).await, may_be);
    let arrived = queues.arrived().await;
    for (position, message) in batch.iter().enumerate() {
        let expected = !stuck.contains(&position) || may_be.contains(&position);
        assert_eq!(arrived.contains_key(&message.id), expected, "{position}");
    }
}

#[tokio::test]
async fn two_suspended_queues_on_a_new_channel_are_found_one_after_the_other() {
    let queues = Queues::declare(4).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    queues.suspend(1).await;
    queues.suspend(2).await;
    let batch = queues.batch(300);

    let published = publisher.publish(&batch, WATCHFUL).await;

    assert_eq!(published.channel, ChannelFate::Usable);
    only_straggling(&published, &to(&batch, &[1, 2]), None);
    queues.resume(1).await;
    queues.resume(2).await;
}

#[tokio::test]
async fn a_batch_that_only_goes_to_a_suspended_queue_is_that_routes_fault_and_not_the_brokers() {
    let queues = Queues::declare(2).await;
    let hasty = Patience {
        confirm_timeout: Duration::from_secs(3),
        straggler_timeout: Duration::from_secs(1),
    };
    for warm in [true, false] {
        let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
        if warm {
            assert!(confirmed(
                &publisher.publish(&queues.batch(2), WATCHFUL).await
            ));
        }
        queues.suspend(1).await;
        let batch = messages(5, "", "q1");
        let published = publisher.publish(&batch, hasty).await;
        assert_eq!(published.channel, ChannelFate::Usable);
        only_straggling(&published, &[0, 1, 2, 3, 4], None);
        assert_eq!(published.late.unwrap().positions(), [0, 1, 2, 3, 4]);
        let others = messages(3, "", "q0");
        assert!(confirmed(&publisher.publish(&others, WATCHFUL).await));
        queues.resume(1).await;
    }
}

#[tokio::test]
async fn with_nothing_confirmed_in_time_several_routes_are_not_told_from_a_slow_broker() {
    let queues = Queues::declare(2).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    let warm = queues.batch(2);
    assert!(confirmed(&publisher.publish(&warm, WATCHFUL).await));
    queues.suspend(0).await;
    queues.suspend(1).await;
    let hasty = Patience {
        confirm_timeout: Duration::from_secs(3),
        straggler_timeout: Duration::from_secs(1),
    };
    let published = publisher.publish(&queues.batch(4), hasty).await;
    for outcome in &published.outcomes {
        let expected = Some((Reason::ConfirmTimeout, Scope::Broker));
        assert_eq!(scope(outcome), expected);
    }
    queues.resume(0).await;
    queues.resume(1).await;
}

#[tokio::test]
async fn fifty_of_a_thousand_to_a_suspended_queue_accuse_nobody_else_and_the_others_get_through() {
    let queues = Queues::declare(20).await;
    let (mut connection, mut publisher) = publisher(&queues.vhost.url).await;
    assert!(confirmed(
        &publisher.publish(&queues.batch(40), WATCHFUL).await
    ));
    queues.suspend(7).await;
    let mut batch = queues.batch(1_000);
    batch.rotate_left(8);
    assert_eq!(to(&batch, &[7]).len(), 50);
    let mut suspended = false;
    while !batch.is_empty() {
        let published = publisher.publish(&batch, WATCHFUL).await;
        let mut open = Vec::new();
        let mut straggling = 0;
        let mut settled = 0;
        for (message, outcome) in batch.into_iter().zip(&published.outcomes) {
            match scope(outcome) {
                None => {
                    assert_ne!(message.routing_key, "q7");
                    settled += 1;
                }
                STRAGGLER => {
                    assert_eq!(message.routing_key, "q7");
                    straggling += 1;
                }
                Some((_, Scope::Broker)) => open.push(message),
                other => panic!("{other:?}"),
            }
        }
        if straggling > 0 {
            // What the relay's breaker does.
            open.retain(|message| message.routing_key != "q7");
            suspended = true;
        }
        assert!(straggling + settled > 0, "no progress");
        batch = open;
        if published.channel == ChannelFate::ConnectionSuspect {
            (connection, publisher) = crate::publisher(&queues.vhost.url).await;
        }
    }
    assert!(suspended);
    assert!(connection.is_alive());
    queues.resume(7).await;
}

#[tokio::test]
async fn late_confirms_that_are_given_up_leave_no_channel_behind() {
    let queues = Queues::declare(2).await;
    let (_connection, mut publisher) = publisher(&queues.vhost.url).await;
    assert!(confirmed(
        &publisher.publish(&queues.batch(2), WATCHFUL).await
    ));
    queues.suspend(1).await;
    let published = publisher.publish(&queues.batch(10), WATCHFUL).await;
    assert_eq!(channels(&queues.vhost).await.len(), 3);
    drop(published.late.unwrap());
    wait_until(LONG, "the old channel to be closed", async || {
        channels(&queues.vhost).await.len() == 2
    })
    .await
    .unwrap();
    let others = messages(3, "", "q0");
    assert!(confirmed(&publisher.publish(&others, WATCHFUL).await));
    queues.resume(1).await;
}

#[tokio::test]
async fn late_confirms_end_with_their_connection() {
    let queues = Queues::declare(2).await;
    let (connection, mut publisher) = publisher(&queues.vhost.url).await;
    assert!(confirmed(
        &publisher.publish(&queues.batch(2), WATCHFUL).await
    ));
    queues.suspend(1).await;
    let published = publisher.publish(&queues.batch(10), WATCHFUL).await;
    let late = tokio::spawn(confirmed_late(published.late.unwrap()));
    drop(connection);
    let nothing: Vec<usize> = Vec::new();
    assert_eq!(late.await.unwrap(), nothing);
    queues.resume(1).await;
}

#[tokio::test]
async fn a_broker_that_answers_nothing_is_not_the_fault_of_the_only_route() {
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let vhost = server.create_vhost().await.unwrap();
    let (_connection, mut publisher) = publisher(&vhost.url).await;
    server.pause().await.unwrap();
    let hasty = Patience {
        confirm_timeout: Duration::from_secs(1),
        straggler_timeout: Duration::from_millis(100),
    };
    let published = publisher.publish(&messages(5, "", "q"), hasty).await;
    assert_eq!(published.channel, ChannelFate::ConnectionSuspect);
    for outcome in &published.outcomes {
        let expected = Some((Reason::ConfirmTimeout, Scope::Broker));
        assert_eq!(scope(outcome), expected);
    }
    assert!(published.late.is_none());
    server.resume().await.unwrap();
}

#[tokio::test]
async fn no_time_runs_out_while_an_alarm_blocks_the_connection() {
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
    let mut link = connection.watch();
    server.set_memory_alarm(true).await.unwrap();
    let patience = Patience {
        confirm_timeout: Duration::from_secs(4),
        straggler_timeout: Duration::from_secs(2),
    };
    let batch = messages(100, "", "q");
    let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
    let mut publishing = tokio::spawn(async move { publisher.publish(&batch, patience).await });
    let blocked = link.wait_for(|state| matches!(state, LinkState::Blocked { .. }));
    timeout(LONG, blocked).await.unwrap().unwrap();
    let longer = patience.confirm_timeout * 2;
    let ended = timeout(longer, &mut publishing).await;
    assert!(ended.is_err(), "{ended:?}");
    server.set_memory_alarm(false).await.unwrap();
    let published = timeout(LONG, publishing).await.unwrap().unwrap();
    assert_eq!(published.channel, ChannelFate::Usable);
    assert!(confirmed(&published));
    assert_eq!(drained_ids(&channel, "q").await, ids);
}
