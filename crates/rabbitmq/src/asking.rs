//! Asks who still answers when a window stands still: its channel, and the connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::time::Instant;

use crate::publisher::open_channel;
use crate::straggle::Standstill;

/// Within this a connection that still answers opens a channel.
pub(crate) const CHANNEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a channel that answers may take longer to do so than the opening of another.
const LAG: Duration = Duration::from_millis(250);

type Asked<'a, T> = Pin<Box<dyn Future<Output = lapin::Result<T>> + Send + 'a>>;

/// Two questions on their way.
pub(crate) struct Asking<'a> {
    /// Confirm mode once more: changes nothing, and is answered when everything sent before it on the
    /// channel has been worked through.
    echo: Option<Asked<'a, ()>>,
    echoed: bool,
    opening: Option<Asked<'a, Channel>>,
    opened: Option<(Channel, Instant)>,
    since: Instant,
}

impl<'a> Asking<'a> {
    /// Only with everything on the socket: what waits for it is overtaken.
    pub(crate) fn start(channel: &'a Channel, connection: &'a lapin::Connection) -> Self {
        Self {
            echo: Some(Box::pin(
                channel.confirm_select(ConfirmSelectOptions::default()),
            )),
            echoed: false,
            opening: Some(Box::pin(open_channel(connection))),
            opened: None,
            since: Instant::now(),
        }
    }

    /// Returns at each answer. Safe to drop.
    pub(crate) async fn listen(&mut self) {
        poll_fn(|context| {
            let mut news = false;
            if let Some(echo) = &mut self.echo
                && let Poll::Ready(answer) = echo.as_mut().poll(context)
            {
                self.echo = None;
                self.echoed = answer.is_ok();
                news = true;
            }
            if let Some(opening) = &mut self.opening
                && let Poll::Ready(answer) = opening.as_mut().poll(context)
            {
                self.opening = None;
                self.opened = answer
                    .inspect_err(|error| tracing::debug!(%error, "no channel opened"))
                    .ok()
                    .map(|channel| (channel, Instant::now()));
                news = true;
            }
            if news { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// What can be said by now. `heard`: the broker has spoken of others of the batch.
    pub(crate) fn finding(&self, heard: bool) -> Option<Standstill> {
        let in_vain = self.since.elapsed() >= CHANNEL_TIMEOUT;
        match (self.echoed, &self.opened) {
            (true, _) if !heard => None,
            (true, Some(_)) => Some(Standstill::Straggling),
            (true, None) => in_vain.then_some(Standstill::Straggling),
            (false, Some((_, at))) => (at.elapsed() >= LAG).then_some(Standstill::Held),
            (false, None) => (in_vain && heard).then_some(Standstill::Unanswered),
        }
    }

    /// The channel that was opened.
    pub(crate) fn opened(self) -> Option<Channel> {
        self.opened.map(|(channel, _)| channel)
    }
}
