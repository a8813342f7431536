//! The state of the connection, for whoever waits for it.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How the connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Connected, and the broker accepts messages as far as is known. RabbitMQ says that it blocks
    /// a connection only after something was published on it.
    Up,
    /// The broker accepts no messages for now: a memory or disk alarm.
    Blocked {
        /// What the broker said.
        reason: String,
    },
    /// The connection has ended and will not come back.
    Lost {
        /// What ended it.
        reason: String,
    },
}

/// Not every end of a connection sends an event: the state is looked at this often as well.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Starts the one task that listens to the connection's events: several would take them from each
/// other. It ends with the connection, or when the handle is dropped.
pub(crate) fn follow(
    connection: &lapin::Connection,
) -> (watch::Receiver<LinkState>, AbortOnDropHandle<()>) {
    let (state, receiver) = watch::channel(LinkState::Up);
    let events = connection.events_listener();
    let status = connection.status().clone();
    let task = tokio::spawn(async move {
        let mut events = Box::pin(events);
        let mut look = tokio::time::interval(LOOK_EVERY);
        let lost = loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(lapin::Event::ConnectionBlocked(reason)) => {
                        state.send_replace(LinkState::Blocked { reason });
                    }
                    Some(lapin::Event::ConnectionUnblocked) => {
                        state.send_replace(LinkState::Up);
                    }
                    // An error that closed one channel is an event of the connection as well.
                    Some(lapin::Event::Error(error)) if !error.is_amqp_soft_error() => {
                        break error.to_string();
                    }
                    Some(_) => {}
                    None => break "the connection is gone".to_owned(),
                },
                _ = look.tick() => {
                    if !status.connected() {
                        // The event that says why may be on its way.
                        let event = tokio::time::timeout(LOOK_EVERY, events.next()).await;
                        break match event {
                            Ok(Some(lapin::Event::Error(error))) => error.to_string(),
                            _ => "the connection was closed".to_owned(),
                        };
                    }
                }
            }
        };
        state.send_replace(LinkState::Lost { reason: lost });
    });
    (receiver, AbortOnDropHandle::new(task))
}
