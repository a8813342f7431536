//! Publishes batches on a channel of its own and says of each message what became of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use postrider_core::{Message, Outcome, Reason};
use tokio::time::{Instant, timeout_at};

use crate::judge::judge;
use crate::run::Run;
use crate::window::{self, End};

/// How often one batch may have its channel closed. Every time costs the broker an error in its log
/// and the neighbours of the culprit a repeat; what is left after this many stays for a later batch,
/// without the culprits found so far.
const CHANNELS_PER_BATCH: usize = 32;

/// What became of a batch.
#[derive(Debug)]
#[must_use = "a message that is not settled by its outcome is published again"]
pub struct Published {
    /// One for each message, in the order of the batch.
    pub outcomes: Vec<Outcome>,
    /// What to do with publisher and connection.
    pub channel: ChannelFate,
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
    /// Missing while a batch is being published, and for good when that was given up midway or ended
    /// in doubt: nobody knows what is still on its way on that channel.
    channel: Option<lapin::Channel>,
    frame_max: u32,
}

/// Why the rest of a batch has no outcome of its own.
struct Unknown(Reason, String);

/// How far the windows of a batch got on one channel.
enum Progress {
    /// Every message has its outcome.
    Over,
    /// The broker closed the channel. Some culprit has its outcome, or there are suspects.
    ChannelClosed,
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
    pub(crate) fn new(connection: Arc<lapin::Connection>, channel: lapin::Channel) -> Self {
        let frame_max = connection.configuration().frame_max();
        Self {
            connection,
            channel: Some(channel),
            frame_max,
        }
    }

    /// Publishes the batch, in its order, each message persistent, mandatory and with its id as
    /// `message-id`, and waits for the broker's confirms, for at most `confirm_timeout` in all.
    ///
    /// - [`Outcome::Confirmed`]: acknowledged, and not returned. Nothing else is ever confirmed.
    /// - Failed with another scope than [`Scope::Broker`](postrider_core::Scope): it did not get through, and
    ///   the others of the batch are not affected, except that some of them may be sent twice.
    /// - [`Reason::ConfirmTimeout`], [`Reason::ConnectionLost`]: unknown; it may have got through.
    ///
    /// Messages with one id are never in flight together, so that a return is charged to the right
    /// one. When the broker closes the channel over a message, the culprit fails (every message of a
    /// missing exchange does; when the broker's text names nothing, the messages in question are sent
    /// one by one until the culprit shows), and the others are sent again on a new channel.
    ///
    /// Cancelling: a call that is dropped midway makes the publisher unusable; each later call
    /// answers [`ChannelFate::ConnectionSuspect`] and sends nothing.
    pub async fn publish(&mut self, batch: &[Message], confirm_timeout: Duration) -> Published {
        let mut run = Run::new(batch);
        match self.publish_all(&mut run, batch, confirm_timeout).await {
            Ok(()) => Published {
                outcomes: run.outcomes(
                    Reason::ConnectionLost,
                    "not confirmed: too many other messages of the batch had the channel closed",
                ),
                channel: ChannelFate::Usable,
            },
            Err(Unknown(reason, detail)) => Published {
                outcomes: run.outcomes(reason, &detail),
                channel: ChannelFate::ConnectionSuspect,
            },
        }
    }

    async fn publish_all(
        &mut self,
        run: &mut Run<'_>,
        batch: &[Message],
        confirm_timeout: Duration,
    ) -> Result<(), Unknown> {
        let deadline = Instant::now() + confirm_timeout;
        let Some(mut channel) = self.channel.take() else {
            return Err(Unknown(
                Reason::ConnectionLost,
                "not sent: an earlier batch on this channel ended in doubt".to_owned(),
            ));
        };
        for _ in 0..CHANNELS_PER_BATCH {
            let progress = self
                .windows(&channel, run, batch, deadline)
                .await
                .map_err(|end| self.unknown(end, confirm_timeout))?;
            match progress {
                Progress::Over => break,
                Progress::ChannelClosed => {
                    channel = match timeout_at(deadline, open_channel(&self.connection)).await {
                        Ok(Ok(channel)) => channel,
                        Ok(Err(error)) => {
                            return Err(Unknown(Reason::ConnectionLost, error.to_string()));
                        }
                        Err(_) => return Err(self.unknown(Doubt::Timeout, confirm_timeout)),
                    };
                }
            }
        }
        self.channel = Some(channel);
        Ok(())
    }

    /// Window after window, until the batch is over or the channel is closed.
    async fn windows(
        &self,
        channel: &lapin::Channel,
        run: &mut Run<'_>,
        batch: &[Message],
        deadline: Instant,
    ) -> Result<Progress, Doubt> {
        while let Some(positions) = run.next_window() {
            let report =
                window::publish(channel, batch, &positions, self.frame_max, deadline).await;
            for (position, failure) in report.refused {
                run.settle(position, failure.into());
            }
            let judgement = judge(&report.resolutions, report.returned);
            let unsure = run.apply(&report.sent, judgement.verdicts);
            match report.end {
                End::Complete if judgement.stray_return => return Err(Doubt::StrayReturn),
                End::Complete => {}
                End::ChannelClosed(error) => {
                    tracing::debug!(code = error.code, text = %error.text, "channel closed");
                    run.blame(&error, &unsure, report.sent.len());
                    return Ok(Progress::ChannelClosed);
                }
                End::Timeout => return Err(Doubt::Timeout),
                End::ConnectionLost(reason) => return Err(Doubt::ConnectionLost(reason)),
            }
        }
        Ok(Progress::Over)
    }

    fn unknown(&self, doubt: Doubt, timeout: Duration) -> Unknown {
        match doubt {
            Doubt::Timeout if self.connection.status().blocked() => Unknown(
                Reason::ConfirmTimeout,
                format!("no confirm within {timeout:?}: the broker blocks publishers"),
            ),
            Doubt::Timeout => Unknown(
                Reason::ConfirmTimeout,
                format!("no confirm within {timeout:?}"),
            ),
            Doubt::ConnectionLost(reason) => Unknown(Reason::ConnectionLost, reason),
            Doubt::StrayReturn => {
                tracing::error!(
                    "the broker returned a message that was not in flight: the acknowledgements around it are not trusted"
                );
                Unknown(
                    Reason::ConnectionLost,
                    "a message came back that was not in flight, so no acknowledgement is certain"
                        .to_owned(),
                )
            }
        }
    }
}

/// Why a channel is not trusted any more.
enum Doubt {
    Timeout,
    ConnectionLost(String),
    StrayReturn,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("usable", &self.channel.is_some())
            .finish_non_exhaustive()
    }
}
