//! One window of messages on one channel: all sent, then all awaited.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, PublisherConfirm};
use postrider_core::{Failure, Message};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::classify::ChannelError;
use crate::encode::encode;
use crate::judge::{Resolution, Returned};

/// How many payload bytes may wait in the library for the socket, at most one message more.
///
/// The library copies what it queues: without a bound a batch would be in memory twice. And what
/// still waits when the broker closes the channel is sent after the close all the same, for which
/// the broker ends the connection (504): the less waits, the less likely that is.
const UNSENT_BYTES: usize = 1024 * 1024;

/// What became of a window.
pub(crate) struct Report {
    /// The messages that were sent, by position, in the order of sending.
    pub(crate) sent: Vec<usize>,
    /// Their ids and what the broker said, in the same order.
    pub(crate) resolutions: Vec<(Uuid, Resolution)>,
    /// What came back.
    pub(crate) returned: Vec<Returned>,
    /// The messages that AMQP cannot carry: they were not sent.
    pub(crate) refused: Vec<(usize, Failure)>,
    pub(crate) end: End,
}

/// How a window ended.
pub(crate) enum End {
    /// Everything was sent, and every confirm is in.
    Complete,
    /// The deadline passed.
    Timeout,
    /// The broker closed the channel.
    ChannelClosed(ChannelError),
    /// The connection ended.
    ConnectionLost(String),
}

type Sending<'a> = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send + 'a>>;

enum State<'a> {
    /// Queued in the library, maybe on the socket.
    Sending(Sending<'a>),
    /// On the socket.
    Sent(PublisherConfirm),
    Resolved(Resolution),
}

struct InFlight<'a> {
    position: usize,
    id: Uuid,
    bytes: usize,
    state: State<'a>,
}

#[derive(Default)]
struct Window<'a> {
    in_flight: Vec<InFlight<'a>>,
    /// The first of `in_flight` that may not be on the socket yet, and the bytes from there on.
    first_unsent: usize,
    unsent_bytes: usize,
    returned: Vec<Returned>,
    refused: Vec<(usize, Failure)>,
    fault: Fault,
}

/// The most telling of the errors met: that a channel was closed and why says more than that the
/// next message found it closed.
#[derive(Default)]
struct Fault(Option<lapin::Error>);

/// Publishes the messages at `positions` of `batch`, no two of one id, and waits for what the broker
/// says, until `deadline`.
pub(crate) async fn publish(
    channel: &Channel,
    batch: &[Message],
    positions: &[usize],
    frame_max: u32,
    deadline: Instant,
) -> Report {
    let mut window = Window::default();
    let in_time = timeout_at(deadline, window.run(channel, batch, positions, frame_max))
        .await
        .is_ok();
    if !in_time {
        // One confirm that never comes must not hide those that did. And an acknowledgement counts
        // only if all that came before it have been looked at for returns, so there is a second
        // look, after the last one that is counted.
        window.look_again(true).await;
        window.look_again(false).await;
    }
    window.report(in_time)
}

impl<'a> Window<'a> {
    async fn run(
        &mut self,
        channel: &'a Channel,
        batch: &'a [Message],
        positions: &[usize],
        frame_max: u32,
    ) {
        self.in_flight.reserve(positions.len());
        for &position in positions {
            let Some(message) = batch.get(position) else {
                continue;
            };
            let encoded = match encode(message, frame_max) {
                Ok(encoded) => encoded,
                Err(failure) => {
                    self.refused.push((position, failure));
                    continue;
                }
            };
            self.wait_for_room().await;
            let mut sending: Sending<'a> = Box::pin(channel.basic_publish(
                encoded.exchange,
                encoded.routing_key,
                BasicPublishOptions {
                    mandatory: true,
                    immediate: false,
                },
                encoded.payload,
                encoded.properties,
            ));
            // The first poll queues the frames: polled here, in order, their order on the wire is
            // that of the batch, and the library counts delivery tags as the broker does.
            let state = match poll_once(sending.as_mut()).await {
                Poll::Pending => State::Sending(sending),
                Poll::Ready(Ok(confirm)) => State::Sent(confirm),
                Poll::Ready(Err(error)) => {
                    self.fault.note(error);
                    State::Resolved(Resolution::Unresolved)
                }
            };
            let bytes = encoded.bytes;
            self.unsent_bytes = self.unsent_bytes.saturating_add(bytes);
            self.in_flight.push(InFlight {
                position,
                id: message.id,
                bytes,
                state,
            });
            if self.fault.0.is_some() {
                // The channel is closed: nothing more can be sent on it.
                break;
            }
        }
        for flight in &mut self.in_flight {
            flight.sent(&mut self.fault).await;
            flight.resolved(&mut self.returned, &mut self.fault).await;
        }
    }

    async fn wait_for_room(&mut self) {
        while self.unsent_bytes > UNSENT_BYTES {
            let Some(flight) = self.in_flight.get_mut(self.first_unsent) else {
                return;
            };
            flight.sent(&mut self.fault).await;
            self.unsent_bytes = self.unsent_bytes.saturating_sub(flight.bytes);
            self.first_unsent += 1;
        }
    }

    /// Looks once at everything unresolved, without waiting. What is found counts only with
    /// `counts`; returns are taken in any case.
    async fn look_again(&mut self, counts: bool) {
        for flight in &mut self.in_flight {
            if matches!(flight.state, State::Resolved(_)) {
                continue;
            }
            let (returned, fault) = (&mut self.returned, &mut self.fault);
            let mut look = Box::pin(async {
                flight.sent(fault).await;
                flight.resolved(returned, fault).await;
            });
            let resolved = poll_once(look.as_mut()).await.is_ready();
            drop(look);
            if resolved && !counts {
                flight.state = State::Resolved(Resolution::Unresolved);
            }
        }
    }

    fn report(self, in_time: bool) -> Report {
        let end = match self.fault.end() {
            End::Complete if !in_time => End::Timeout,
            end => end,
        };
        let mut sent = Vec::with_capacity(self.in_flight.len());
        let mut resolutions = Vec::with_capacity(self.in_flight.len());
        for flight in self.in_flight {
            sent.push(flight.position);
            resolutions.push((
                flight.id,
                match flight.state {
                    State::Resolved(resolution) => resolution,
                    State::Sending(_) | State::Sent(_) => Resolution::Unresolved,
                },
            ));
        }
        Report {
            sent,
            resolutions,
            returned: self.returned,
            refused: self.refused,
            end,
        }
    }
}

impl InFlight<'_> {
    /// Waits until the message is on the socket.
    async fn sent(&mut self, fault: &mut Fault) {
        if let State::Sending(sending) = &mut self.state {
            self.state = match sending.as_mut().await {
                Ok(confirm) => State::Sent(confirm),
                Err(error) => {
                    fault.note(error);
                    State::Resolved(Resolution::Unresolved)
                }
            };
        }
    }

    /// Waits until the broker has spoken, of a message that is on the socket.
    async fn resolved(&mut self, returned: &mut Vec<Returned>, fault: &mut Fault) {
        let State::Sent(confirm) = &mut self.state else {
            return;
        };
        let (resolution, came_back) = match confirm.await {
            Ok(Confirmation::Ack(came_back)) => (Resolution::Acked, came_back),
            Ok(Confirmation::Nack(came_back)) => (Resolution::Nacked, came_back),
            // Only on a channel that is not in confirm mode.
            Ok(Confirmation::NotRequested) => (Resolution::Unresolved, None),
            Err(error) => {
                fault.note(error);
                (Resolution::Unresolved, None)
            }
        };
        returned.extend(came_back.map(|message| what_came_back(&message)));
        self.state = State::Resolved(resolution);
    }
}

fn what_came_back(message: &lapin::message::BasicReturnMessage) -> Returned {
    let id = message.properties.message_id().as_ref();
    Returned {
        id: id.and_then(|id| id.as_str().parse().ok()),
        detail: format!(
            "{} {}: no queue is bound to exchange '{}' for routing key '{}'",
            message.reply_code, message.reply_text, message.exchange, message.routing_key
        ),
    }
}

impl Fault {
    fn note(&mut self, error: lapin::Error) {
        if self
            .0
            .as_ref()
            .is_none_or(|known| telling(&error) > telling(known))
        {
            self.0 = Some(error);
        }
    }

    fn end(&self) -> End {
        let Some(error) = &self.0 else {
            return End::Complete;
        };
        match error.kind() {
            lapin::ErrorKind::ProtocolError(said) if error.is_amqp_soft_error() => {
                End::ChannelClosed(ChannelError {
                    code: said.get_id(),
                    text: said.get_message().as_str().to_owned(),
                })
            }
            _ => End::ConnectionLost(error.to_string()),
        }
    }
}

fn telling(error: &lapin::Error) -> u8 {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(_) if error.is_amqp_soft_error() => 3,
        lapin::ErrorKind::ProtocolError(_) => 2,
        lapin::ErrorKind::InvalidChannelState(..) | lapin::ErrorKind::InvalidChannel(_) => 0,
        _ => 1,
    }
}

async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
