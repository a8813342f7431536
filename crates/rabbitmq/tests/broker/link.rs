//! Connecting, losing the connection, and being blocked.

use std::time::Duration;

use postrider_core::{Patience, Payload, Reason};
use postrider_rabbitmq::{ChannelFate, ConnectError, Connection, Error, LinkState, Settings};
use postrider_testbed::{RabbitOptions, RabbitServer, ports, shared};
use tokio::time::timeout;

use crate::{LONG, PATIENT, at, message, messages, publisher, queue, reason, settings};

#[tokio::test]
async fn several_brokers_are_tried_in_turn() {
    let vhost = shared::vhost().await;
    let dead = format!("amqp://u:p@127.0.0.1:{}", ports::free_port().unwrap());
    let several = Settings {
        brokers: [&dead, &vhost.url, &dead]
            .map(|url| at::broker(url))
            .to_vec(),
        ..settings(&dead)
    };
    for attempt in [0, 1, 2, 3, usize::MAX] {
        let connection = Connection::open(&several, attempt).await.unwrap();
        assert_eq!(connection.peer(), format!("127.0.0.1:{}", vhost.port));
    }
    let none = Settings {
        brokers: vec![at::broker(&dead), at::broker(&dead)],
        ..settings(&dead)
    };
    match Connection::open(&none, 0).await.unwrap_err() {
        Error::NoBroker(failures) => assert_eq!(failures.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refused_login_and_a_missing_virtual_host_say_what_to_do_and_no_password() {
    let vhost = shared::vhost().await;
    let rabbit = shared::rabbit().await;
    rabbit.add_user(&vhost.name, "right").await.unwrap();
    let open = async |url: String| match Connection::open(&settings(&url), 0).await {
        Err(Error::Connect(error)) => error,
        other => panic!("{other:?}"),
    };
    let login = open(vhost.url_for(&vhost.name, "s3cret", vhost.port)).await;
    assert!(
        matches!(login, ConnectError::LoginRefused { .. }),
        "{login:?}"
    );
    let refused = open(vhost.url_for(&vhost.name, "right", vhost.port)).await;
    assert!(
        matches!(refused, ConnectError::VhostRefused { .. }),
        "{refused:?}"
    );
    let missing = open(rabbit.url("no such virtual host")).await;
    assert!(
        matches!(missing, ConnectError::VhostMissing { .. }),
        "{missing:?}"
    );
    let empty = open(format!("amqp://guest:guest@127.0.0.1:{}/", vhost.port)).await;
    assert!(matches!(&empty, ConnectError::VhostMissing { vhost, .. } if vhost.is_empty()));
    let everything = format!("{login} {login:?} {refused} {refused:?}");
    assert!(
        !everything.contains("s3cret") && !everything.contains("right\""),
        "{everything}"
    );
}

#[tokio::test]
async fn a_connection_closed_by_the_broker_is_seen_in_the_watch_and_by_the_publisher() {
    let server = RabbitServer::start(RabbitOptions::default()).await.unwrap();
    let vhost = server.create_vhost().await.unwrap();
    let (connection, mut publisher) = publisher(&vhost.url).await;
    let mut link = connection.watch();
    assert_eq!(*link.borrow(), LinkState::Up);
    assert!(connection.is_alive());
    server.close_connections("maintenance").await.unwrap();
    let lost = timeout(
        LONG,
        link.wait_for(|state| matches!(state, LinkState::Lost { .. })),
    )
    .await
    .unwrap()
    .unwrap()
    .clone();
    match lost {
        LinkState::Lost { reason } => assert!(reason.contains("maintenance"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let published = publisher.publish(&[message("", "q")], PATIENT).await;
    assert_eq!(published.channel, ChannelFate::ConnectionSuspect);
    assert_eq!(reason(&published.outcomes[0]), Some(Reason::ConnectionLost));
    assert!(matches!(
        connection.publisher().await,
        Err(Error::Channel { .. })
    ));
}

#[tokio::test]
async fn a_channel_closed_by_the_broker_is_no_lost_connection() {
    let vhost = shared::vhost().await;
    let (connection, mut publisher) = publisher(&vhost.url).await;
    for _ in 0..20 {
        let published = publisher
            .publish(&messages(3, "missing", "k"), PATIENT)
            .await;
        assert_eq!(published.channel, ChannelFate::Usable);
        assert_eq!(*connection.watch().borrow(), LinkState::Up);
    }
    connection.close(LONG).await;
}

#[tokio::test]
async fn a_memory_alarm_shows_as_blocked_and_closing_meanwhile_returns_in_time() {
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
    let (other, mut others_publisher) = crate::publisher(&vhost.url).await;
    let mut link = connection.watch();
    server.set_memory_alarm(true).await.unwrap();
    let publishing = tokio::spawn(async move {
        let mut batch = messages(400, "", "q");
        for message in &mut batch {
            message.payload = Payload::Fetched(vec![0; 50_000]);
        }
        let hasty = Patience {
            confirm_timeout: Duration::from_millis(100),
            straggler_timeout: Duration::from_millis(100),
        };
        publisher.publish(&batch, hasty).await
    });
    timeout(
        LONG,
        link.wait_for(|state| matches!(state, LinkState::Blocked { .. })),
    )
    .await
    .unwrap()
    .unwrap();
    assert!(connection.is_blocked());

    timeout(LONG, connection.close(Duration::from_millis(200)))
        .await
        .expect("closing a blocked connection hangs");
    let published = publishing.await.unwrap();
    assert_eq!(published.channel, ChannelFate::ConnectionSuspect);
    let last = published.outcomes.last().unwrap();
    assert_eq!(reason(last), Some(Reason::ConnectionLost), "{last:?}");

    // Blocked, and let through when the alarm ends.
    let mut link = other.watch();
    let publishing = tokio::spawn(async move {
        others_publisher
            .publish(&messages(10, "", "q"), PATIENT)
            .await
    });
    timeout(
        LONG,
        link.wait_for(|state| matches!(state, LinkState::Blocked { .. })),
    )
    .await
    .unwrap()
    .unwrap();
    server.set_memory_alarm(false).await.unwrap();
    timeout(LONG, link.wait_for(|state| *state == LinkState::Up))
        .await
        .unwrap()
        .unwrap();
    let published = publishing.await.unwrap();
    assert_eq!(published.channel, ChannelFate::Usable);
    assert!(
        published
            .outcomes
            .iter()
            .all(|outcome| reason(outcome).is_none())
    );
}
