//! Publishes batches on a channel of its own and says of each message what became of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use postrider_core::{Failure, Message, Outcome, Patience, Reason, Scope};
use tokio::sync::watch;

use crate::asking::CHANNEL_TIMEOUT;
use crate::classify::ChannelError;
use crate::clock::Clock;
use crate::exchanges::Exchanges;
use crate::judge::{Returned, judge};
use crate::late::{Late, Unfinished};
use crate::renew::Validity;
use crate::run::{Run, route};
use crate::straggle::{Standing, Standstill, blame};
use crate::window::{self, End, GivenUp};
use crate::{LinkState, OrderingSettings};

/// How often one batch may have its channel closed. Every time costs the broker an error in its log
/// and the neighbours of the culprit a repeat; what is left after this many stays for a later batch,
/// without the culprits found so far.
const CHANNELS_PER_BATCH: usize = 32;

/// How many messages are sent at first on a new channel. A queue that holds a channel up does so with
/// the first message to it, and when a channel is held up with about 400 messages waiting in it, the
/// broker does not read its connection any more: nobody could be asked whose fault it is.
const FIRST_WINDOW: usize = 200;

/// The longest that a batch waits to hear which exchanges there are.
const EXCHANGES_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of a batch.
#[derive(Debug)]
#[must_use = "a message that is not settled by its outcome is published again"]
pub struct Published {
    /// One for each message, in the order of the batch.
    pub outcomes: Vec<Outcome>,
    /// What to do with publisher and connection.
    pub channel: ChannelFate,
    /// The messages among those failed with [`Reason::ConfirmTimeout`] that may still be confirmed.
    pub late: Option<Late>,
}

/// Whether a publisher can be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelFate {
    /// The publisher takes the next batch.
    Usable,
    /// The connection ended, or too little was heard on it in time: what was sent may still arrive
    /// or be confirmed. Drop the publisher and its connection, which ends what is still in flight.
    ConnectionSuspect,
}

/// One channel in confirm mode, with one batch at a time: two would mix up each other's confirms.
pub struct Publisher {
    connection: Arc<lapin::Connection>,
    link: watch::Receiver<LinkState>,
    exchanges: Arc<Exchanges>,
    validity: Validity,
    ordering: OrderingSettings,
    /// Missing while a batch is being published, and for good when that was given up midway or ended
    /// in doubt: nobody knows what is still on its way on that channel.
    channel: Option<Open>,
}

struct Open {
    channel: lapin::Channel,
    /// A window on it was completed.
    proven: bool,
}

/// Why the rest of a batch has no outcome of its own.
struct Unknown(Reason, String);

/// How far the windows of a batch got on one channel.
enum Progress {
    /// Every message has its outcome.
    Over,
    /// The broker closed the channel. Some culprit has its outcome, or there are suspects.
    ChannelClosed,
    /// Some messages are not confirmed in time.
    GivenUp(Box<GivenUp>, Vec<Returned>),
}

/// Opens a channel in confirm mode. The caller bounds the time.
pub(crate) async fn open_channel(
    connection: &lapin::Connection,
) -> Result<lapin::Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok(channel)
}

impl Publisher {
    pub(crate) fn new(
        connection: Arc<lapin::Connection>,
        link: watch::Receiver<LinkState>,
        exchanges: Arc<Exchanges>,
        validity: Validity,
        ordering: OrderingSettings,
        channel: lapin::Channel,
    ) -> Self {
        Self {
            connection,
            link,
            exchanges,
            validity,
            ordering,
            channel: Some(Open::new(channel)),
        }
    }

    /// Publishes the batch, in its order, each message persistent, mandatory and with its id as
    /// `message-id`, and waits for the broker's confirms, for as long as `patience` says.
    ///
    /// - [`Outcome::Confirmed`]: acknowledged, and not returned. Nothing else is ever confirmed.
    /// - Failed with another scope than [`Scope::Broker`]: it did not get through, and
    ///   the others of the batch are not affected, except that some of them may be sent twice.
    /// - [`Reason::ConfirmTimeout`], [`Reason::ConnectionLost`]: unknown; it may have got through. The latter with
    ///   [`Scope::Message`]: the broker ended the connection over one of the messages so marked, or over something that
    ///   another publisher sent on it.
    ///
    /// Messages with one id are never in flight together, so that a return is charged to the right
    /// one. Nothing is sent to an exchange that the broker does not have: each is asked for before
    /// its first use. When the broker closes the channel over a message, the culprit fails (every
    /// message of a missing exchange does; when the broker's text names nothing, the messages in
    /// question are sent one by one until the culprit shows), and the others are sent again on a new
    /// channel.
    ///
    /// Of the messages of one ordering key, which the batch holds in their order, [`OrderingSettings::in_flight_per_key`] are in flight
    /// at a time: with one, each is sent when those before it are confirmed. When one is not, those behind it are
    /// [`Outcome::HeldBack`]; they were not sent. So are those that could not be sent within [`OrderingSettings::budget`].
    ///
    /// When some messages are not confirmed while others are, the wait ends early: the former, and all
    /// others of their routes, fail with [`Reason::ConfirmTimeout`] and [`Scope::Route`]. So do those of
    /// a route whose queue holds up the channel; it is found by sending one message of each route that
    /// may be meant alone, and the rest is sent again, on a new channel. [`Published::late`] tells which
    /// are confirmed after all: they are on channels that are not published on any more. When the
    /// connection does not answer either, it is suspect, and the unconfirmed fail with
    /// [`Scope::Broker`], unless it shows which route is to blame.
    ///
    /// Cancelling: a call that is dropped midway makes the publisher unusable; each later call
    /// answers [`ChannelFate::ConnectionSuspect`] and sends nothing.
    pub async fn publish(&mut self, batch: &[Message], patience: Patience) -> Published {
        let mut run = Run::new(batch, self.ordering.in_flight_per_key.get());
        let mut unfinished = Vec::new();
        let rest = self
            .publish_all(&mut run, batch, patience, &mut unfinished)
            .await;
        let Unknown(reason, detail) = rest.err().unwrap_or_else(|| {
            let detail =
                "not confirmed: too many channels were lost over other messages of the batch";
            Unknown(Reason::ConnectionLost, detail.to_owned())
        });
        let outcomes = run.outcomes(reason, &detail);
        let channel = match self.channel {
            Some(_) => ChannelFate::Usable,
            None => {
                // They end with the connection.
                unfinished.clear();
                ChannelFate::ConnectionSuspect
            }
        };
        let unconfirmed = outcomes.iter().enumerate().filter(|(_, outcome)| {
            matches!(outcome, Outcome::Failed(failure) if failure.reason == Reason::ConfirmTimeout)
        });
        let late = Late::new(unconfirmed.map(|(position, _)| position), unfinished);
        Published {
            outcomes,
            channel,
            late,
        }
    }

    async fn publish_all(
        &mut self,
        run: &mut Run<'_>,
        batch: &[Message],
        patience: Patience,
        unfinished: &mut Vec<Unfinished>,
    ) -> Result<(), Unknown> {
        let Some(mut open) = self.channel.take() else {
            return Err(Unknown::lost(
                "not sent: an earlier batch on this channel ended in doubt",
            ));
        };
        let mut clock = self.clock(patience);
        self.look_for_exchanges(run, batch, &mut clock).await;
        for _ in 0..CHANNELS_PER_BATCH {
            match self.windows(&mut open, run, batch, &mut clock).await? {
                Progress::Over => break,
                Progress::ChannelClosed => {
                    open = match clock.in_time(open_channel(&self.connection)).await {
                        Some(Ok(channel)) => Open::new(channel),
                        Some(Err(error)) => return Err(Unknown::lost(&error.to_string())),
                        None => return Err(Unknown::late(patience.confirm_timeout)),
                    };
                }
                Progress::GivenUp(mut given_up, returned) => {
                    let out_of_time = given_up.standstill.is_out_of_time();
                    let waited = if out_of_time {
                        patience.confirm_timeout
                    } else {
                        clock.patience().straggler_timeout
                    };
                    let replacement = self.give_up(run, batch, &mut given_up, waited).await;
                    let (Some(replacement), Some(sent)) = (replacement, given_up.unfinished) else {
                        return Err(Unknown::late(waited));
                    };
                    let old = std::mem::replace(&mut open, Open::new(replacement));
                    unfinished.push(Unfinished::new(sent, returned, old.channel));
                    if out_of_time {
                        self.channel = Some(open);
                        return Err(Unknown::late(waited));
                    }
                }
            }
        }
        self.channel = Some(open);
        Ok(())
    }

    fn clock(&self, patience: Patience) -> Clock {
        Clock::start(patience, Arc::clone(&self.connection), self.link.clone())
    }

    /// Fails what goes to exchanges that do not exist. When the broker does not say in time, or takes
    /// nothing for now, publishing will tell.
    async fn look_for_exchanges(&self, run: &mut Run<'_>, batch: &[Message], clock: &mut Clock) {
        let unknown = self.exchanges.unknown(batch);
        if unknown.is_empty() || clock.is_blocked() {
            return;
        }
        let asking = async {
            for exchange in unknown {
                if let Some(said) = self.exchanges.missing(exchange).await {
                    run.exchange_missing(exchange, &said);
                }
            }
        };
        let bound = EXCHANGES_TIMEOUT.min(clock.left() / 2);
        if tokio::time::timeout(bound, asking).await.is_err() {
            tracing::debug!("publishing without having heard of all exchanges");
        }
    }

    /// Window after window, until the batch is over or the channel cannot be used any more.
    async fn windows(
        &self,
        open: &mut Open,
        run: &mut Run<'_>,
        batch: &[Message],
        clock: &mut Clock,
    ) -> Result<Progress, Unknown> {
        loop {
            if clock.age() >= self.ordering.budget {
                run.hold_back_unsent();
            }
            let Some(positions) = run.next_window(open.most()) else {
                return Ok(Progress::Over);
            };
            let mut report = window::publish(
                &self.connection,
                &open.channel,
                batch,
                &positions,
                &self.ordering,
                run.heard(),
                clock,
            )
            .await;
            for (position, failure) in std::mem::take(&mut report.refused) {
                run.settle(position, failure.into());
            }
            let judgement = judge(&report.resolutions, &report.returned);
            let unsure = run.apply(&report.sent, judgement.verdicts);
            match report.end {
                End::Complete | End::GivenUp(_) if judgement.stray_return => {
                    return Err(Unknown::stray_return());
                }
                End::Complete => open.proven = true,
                End::ChannelClosed(error) => {
                    tracing::debug!(code = error.code, text = %error.text, "channel closed");
                    if error.is_of_the_login(self.validity.is_over()) {
                        return Err(Unknown::login(&error));
                    }
                    run.blame(&error, &unsure, report.sent.len());
                    if error.code == 404 {
                        for exchange in run.exchanges_missing() {
                            self.exchanges.forget(exchange);
                        }
                    }
                    return Ok(Progress::ChannelClosed);
                }
                End::GivenUp(given_up) => return Ok(Progress::GivenUp(given_up, report.returned)),
                End::ConnectionEnded(reason) => {
                    let failure = Failure::new(Reason::ConnectionLost, reason.as_str());
                    let failure = failure.with_scope(Scope::Message);
                    for position in unsure {
                        run.settle(position, failure.clone().into());
                    }
                    return Err(Unknown::lost(&reason));
                }
                End::ConnectionLost(reason) => return Err(Unknown::lost(&reason)),
            }
        }
    }

    /// Charges whoever keeps the rest of a window from being confirmed, and provides a channel in
    /// place of the one it is on: `None` when the connection cannot be used any more either.
    async fn give_up(
        &self,
        run: &mut Run<'_>,
        batch: &[Message],
        given_up: &mut GivenUp,
        waited: Duration,
    ) -> Option<lapin::Channel> {
        let (standstill, opened) = (given_up.standstill, given_up.replacement.take());
        let replacement = match standstill {
            // What waits in the library for the socket cannot be taken back but with the connection.
            _ if given_up.unfinished.is_none() => None,
            Standstill::Unanswered => None,
            Standstill::Straggling | Standstill::Held => opened,
            Standstill::NothingHeard | Standstill::OutOfTime => match opened {
                None => self.replacement().await,
                opened => opened,
            },
        };
        if standstill == Standstill::NothingHeard && replacement.is_none() {
            return None;
        }
        let window: Vec<_> = given_up
            .standings
            .iter()
            .filter_map(|&(position, resolved)| {
                Some(Standing {
                    position,
                    route: route(batch.get(position)?),
                    resolved,
                })
            })
            .collect();
        let blame = blame(standstill, &window);
        tracing::debug!(?standstill, ?blame, "not all of a window was confirmed");
        run.accuse(&blame, &straggler(waited));
        replacement
    }

    /// Opens a channel, if the connection still answers.
    async fn replacement(&self) -> Option<lapin::Channel> {
        let mut clock = self.clock(Patience {
            confirm_timeout: CHANNEL_TIMEOUT,
            straggler_timeout: CHANNEL_TIMEOUT,
        });
        let opened = clock.in_time(open_channel(&self.connection)).await?;
        opened
            .inspect_err(|error| tracing::debug!(%error, "no channel opened"))
            .ok()
    }
}

impl Open {
    fn new(channel: lapin::Channel) -> Self {
        Self {
            channel,
            proven: false,
        }
    }

    /// How many messages a window on it may have.
    fn most(&self) -> usize {
        if self.proven {
            usize::MAX
        } else {
            FIRST_WINDOW
        }
    }
}

fn straggler(waited: Duration) -> Failure {
    Failure::new(
        Reason::ConfirmTimeout,
        format!(
            "no confirm within {waited:?} from a broker that answers: a queue that this is routed to takes no messages, as a quorum queue does without a leader or a majority"
        ),
    )
    .with_scope(Scope::Route)
}

impl Unknown {
    fn lost(detail: &str) -> Self {
        Self(Reason::ConnectionLost, detail.to_owned())
    }

    /// Another connection logs in anew, and hears whether it may.
    fn login(said: &ChannelError) -> Self {
        Self::lost(&format!(
            "the broker refuses everything that the login is for, because its token has expired or its authorization fails: {} {}",
            said.code,
            said.line()
        ))
    }

    fn late(waited: Duration) -> Self {
        Self(
            Reason::ConfirmTimeout,
            format!("no confirm within {waited:?}"),
        )
    }

    fn stray_return() -> Self {
        tracing::error!(
            "the broker returned a message that was not in flight: the acknowledgements around it are not trusted"
        );
        Self::lost("a message came back that was not in flight, so no acknowledgement is certain")
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("usable", &self.channel.is_some())
            .finish_non_exhaustive()
    }
}
