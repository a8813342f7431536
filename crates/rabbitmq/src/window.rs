//! One window of messages on one channel: all sent, then all awaited.
//!
//! When nothing has happened for a while, the wait goes on only as long as it makes sense: see
//! `straggle.rs`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, PublisherConfirm};
use postrider_core::{Failure, Message};
use uuid::Uuid;

use crate::OrderingSettings;
use crate::asking::{Asking, CHANNEL_TIMEOUT};
use crate::classify::ChannelError;
use crate::clock::Clock;
use crate::encode::encode;
use crate::judge::{Resolution, Returned};
use crate::late::{Confirm, Sent};
use crate::straggle::Standstill;

/// How many payload bytes may wait in the library for the socket, at most one message more.
///
/// The library copies what it queues: without a bound a batch would be in memory twice. And what
/// still waits when the broker closes the channel is sent after the close all the same, for which
/// the broker ends the connection (504): the less waits, the less likely that is.
const UNSENT_BYTES: usize = 1024 * 1024;

/// The slowest line to the broker, in bytes a second, on which the writing of a large message is not
/// taken for standing still.
const SLOWEST_LINE: usize = 1024 * 1024;

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

/// How it stood when a window was given up on.
pub(crate) struct GivenUp {
    pub(crate) standstill: Standstill,
    /// A channel that was opened meanwhile.
    pub(crate) replacement: Option<Channel>,
    /// What was sent, by position, in the order of sending, and whether the broker has spoken of it.
    pub(crate) standings: Vec<(usize, bool)>,
    /// The same with the confirms that may still come, when everything is on the socket.
    pub(crate) unfinished: Option<Vec<Sent>>,
}

/// How a window ended.
pub(crate) enum End {
    /// Everything was sent, and every confirm is in.
    Complete,
    /// It was given up on.
    GivenUp(Box<GivenUp>),
    /// The broker closed the channel.
    ChannelClosed(ChannelError),
    /// The connection ended.
    ConnectionLost(String),
    /// The broker ended the connection over something it was sent.
    ConnectionEnded(String),
}

type Sending<'a> = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send + 'a>>;

enum State<'a> {
    /// Queued in the library, maybe on the socket.
    Sending(Sending<'a>),
    /// On the socket.
    Sent(PublisherConfirm),
    Resolved(Resolution),
    /// The broker has spoken, too late for this to count without a further look at the others.
    Uncounted(Resolution),
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
    /// How many of the positions have been dealt with.
    taken: usize,
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
/// says, for as long as `clock` lets it. `heard`: the broker has spoken of others of the batch before.
pub(crate) async fn publish(
    connection: &lapin::Connection,
    channel: &Channel,
    batch: &[Message],
    positions: &[usize],
    ordering: &OrderingSettings,
    heard: bool,
    clock: &mut Clock,
) -> Report {
    let frame_max = connection.configuration().frame_max();
    let mut window = Window::default();
    let mut progress = Progress::default();
    let mut asking: Option<Asking<'_>> = None;
    clock.note_news();
    let standstill = loop {
        tokio::select! {
            biased;
            () = window.run(channel, batch, positions, ordering, frame_max) => break None,
            () = answers(&mut asking) => {}
            () = clock.tick() => {}
        }
        // Confirms are awaited one after the other: those behind the one awaited have to be looked for.
        window.look_again(true).await;
        let now = window.progress();
        if now != progress {
            clock.note_news();
            progress = now;
        }
        let heard = heard || progress.resolved > 0;
        if clock.is_over() {
            break Some(if heard {
                Standstill::OutOfTime
            } else {
                Standstill::NothingHeard
            });
        }
        if !clock.stands_still(Duration::ZERO) {
            asking = None;
            continue;
        }
        if let Some(bytes) = window.unsent() {
            let slow = Duration::from_secs((bytes / SLOWEST_LINE) as u64) + CHANNEL_TIMEOUT;
            if heard && clock.stands_still(slow) {
                break Some(Standstill::Unanswered);
            }
            continue;
        }
        let found = asking
            .get_or_insert_with(|| Asking::start(channel, connection))
            .finding(heard);
        if found.is_some() {
            break found;
        }
    };
    if standstill.is_some() {
        // One confirm that never comes must not hide those that did. And an acknowledgement counts
        // only if all that came before it have been looked at for returns, so there is a second
        // look, after the last one that is counted.
        window.look_again(true).await;
        window.look_again(false).await;
    }
    let replacement = asking.and_then(Asking::opened);
    window.report(standstill.map(|standstill| (standstill, replacement)))
}

async fn answers(asking: &mut Option<Asking<'_>>) {
    match asking {
        Some(asking) => asking.listen().await,
        None => std::future::pending().await,
    }
}

/// How far a window has got: it stands still when this does.
#[derive(Default, PartialEq, Eq)]
struct Progress {
    taken: usize,
    sent: usize,
    resolved: usize,
}

impl<'a> Window<'a> {
    /// Sends and awaits everything. Goes on where it was when it is dropped and called again.
    async fn run(
        &mut self,
        channel: &'a Channel,
        batch: &'a [Message],
        positions: &[usize],
        ordering: &OrderingSettings,
        frame_max: u32,
    ) {
        self.in_flight.reserve(positions.len());
        while let Some(&position) = positions.get(self.taken) {
            if self.fault.0.is_some() {
                // The channel is closed: nothing more can be sent on it.
                break;
            }
            self.wait_for_room().await;
            self.taken += 1;
            let Some(message) = batch.get(position) else {
                continue;
            };
            let encoded = match encode(message, ordering, frame_max) {
                Ok(encoded) => encoded,
                Err(failure) => {
                    self.refused.push((position, failure));
                    continue;
                }
            };
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
            if resolved
                && !counts
                && let State::Resolved(resolution) = flight.state
            {
                flight.state = State::Uncounted(resolution);
            }
        }
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress {
            taken: self.taken,
            ..Progress::default()
        };
        for flight in &self.in_flight {
            match flight.state {
                State::Sending(_) => {}
                State::Sent(_) => progress.sent += 1,
                State::Resolved(_) | State::Uncounted(_) => progress.resolved += 1,
            }
        }
        progress
    }

    /// The size of the message that is being written, if any is.
    fn unsent(&self) -> Option<usize> {
        let mut unsent = self.in_flight.iter();
        unsent
            .find(|flight| matches!(flight.state, State::Sending(_)))
            .map(|flight| flight.bytes)
    }

    fn report(self, given_up: Option<(Standstill, Option<Channel>)>) -> Report {
        let sent = self.in_flight.iter().map(|flight| flight.position);
        let resolutions = self.in_flight.iter().map(|flight| {
            let resolution = match flight.state {
                State::Resolved(resolution) => resolution,
                State::Sending(_) | State::Sent(_) | State::Uncounted(_) => Resolution::Unresolved,
            };
            (flight.id, resolution)
        });
        Report {
            sent: sent.collect(),
            resolutions: resolutions.collect(),
            end: match (self.fault.end(), given_up) {
                (End::Complete, Some((standstill, replacement))) => {
                    End::GivenUp(Box::new(GivenUp {
                        standstill,
                        replacement,
                        standings: self.standings().collect(),
                        unfinished: self
                            .in_flight
                            .into_iter()
                            .map(InFlight::unfinished)
                            .collect(),
                    }))
                }
                (end, _) => end,
            },
            returned: self.returned,
            refused: self.refused,
        }
    }

    fn standings(&self) -> impl Iterator<Item = (usize, bool)> {
        self.in_flight.iter().map(|flight| {
            let heard = matches!(flight.state, State::Resolved(_) | State::Uncounted(_));
            (flight.position, heard)
        })
    }
}

impl InFlight<'_> {
    /// `None` for what is not on the socket.
    fn unfinished(self) -> Option<Sent> {
        Some(Sent {
            position: self.position,
            id: self.id,
            confirm: match self.state {
                State::Sending(_) => return None,
                State::Sent(confirm) => Confirm::Awaited(confirm),
                State::Resolved(resolution) | State::Uncounted(resolution) => {
                    Confirm::Heard(resolution)
                }
            },
        })
    }

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
        let confirmation = confirm.await;
        if let Err(error) = &confirmation {
            fault.note(error.clone());
        }
        let (resolution, came_back) = confirmed(confirmation);
        returned.extend(came_back);
        self.state = State::Resolved(resolution);
    }
}

/// What a confirm says of its own message, and the return that came with it, whosever it is.
pub(crate) fn confirmed(
    confirmation: lapin::Result<Confirmation>,
) -> (Resolution, Option<Returned>) {
    let (resolution, came_back) = match confirmation {
        Ok(Confirmation::Ack(came_back)) => (Resolution::Acked, came_back),
        Ok(Confirmation::Nack(came_back)) => (Resolution::Nacked, came_back),
        // Nothing was asked for only on a channel that is not in confirm mode.
        Ok(Confirmation::NotRequested) | Err(_) => (Resolution::Unresolved, None),
    };
    let came_back = came_back.map(|message| what_came_back(&message));
    (resolution, came_back)
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
        match ChannelError::of(error) {
            Some(said) => End::ChannelClosed(said),
            None if is_over_a_message(error) => End::ConnectionEnded(error.to_string()),
            None => End::ConnectionLost(error.to_string()),
        }
    }
}

/// FRAME_ERROR, SYNTAX_ERROR, COMMAND_INVALID, UNEXPECTED_FRAME and INTERNAL_ERROR, by which the broker answers what it
/// cannot read or what crashed one of its processes. Not CHANNEL_ERROR (504): that is a frame which crossed
/// the closing of its channel. The others are about logins, resources and operators.
const OVER_A_MESSAGE: [u16; 5] = [501, 502, 503, 505, 541];

fn is_over_a_message(error: &lapin::Error) -> bool {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(said) => OVER_A_MESSAGE.contains(&said.get_id()),
        _ => false,
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
