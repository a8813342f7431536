//! Confirms that come after their batch was settled.

use std::collections::HashSet;
use std::fmt;

use futures_util::FutureExt;
use lapin::PublisherConfirm;
use uuid::Uuid;

use crate::judge::{Resolution, Returned, Verdict, judge};
use crate::window::confirmed;

/// The messages of a batch that may still be confirmed, on the channels that they were sent on.
///
/// The channels stay open as long as this lives, and are closed when it is dropped.
#[must_use = "dropping it gives up on the confirms that may still come"]
pub struct Late {
    positions: Vec<usize>,
    windows: Vec<Unfinished>,
}

/// A window that was given up on, with everything on the socket.
pub(crate) struct Unfinished {
    sent: Vec<Sent>,
    returned: Vec<Returned>,
    // After the confirms: what is dropped of them is kept by the library until the channel closes.
    _channel: OldChannel,
}

/// A message on the socket.
pub(crate) struct Sent {
    pub(crate) position: usize,
    pub(crate) id: Uuid,
    pub(crate) confirm: Confirm,
}

pub(crate) enum Confirm {
    Heard(Resolution),
    Awaited(PublisherConfirm),
}

/// A channel with an unfinished window behind it.
struct OldChannel(lapin::Channel);

impl Unfinished {
    pub(crate) fn new(sent: Vec<Sent>, returned: Vec<Returned>, channel: lapin::Channel) -> Self {
        Self {
            sent,
            returned,
            _channel: OldChannel(channel),
        }
    }

    fn holds(&self, position: usize) -> bool {
        self.sent.iter().any(|sent| sent.position == position)
    }

    /// The positions of what is confirmed, when nothing more can come.
    async fn confirmed(mut self) -> Vec<usize> {
        let mut resolutions = Vec::with_capacity(self.sent.len());
        for sent in &mut self.sent {
            let resolution = match &mut sent.confirm {
                Confirm::Heard(resolution) => *resolution,
                Confirm::Awaited(confirm) => {
                    let (resolution, came_back) = confirmed(confirm.await);
                    self.returned.extend(came_back);
                    sent.confirm = Confirm::Heard(resolution);
                    resolution
                }
            };
            resolutions.push((sent.id, resolution));
        }
        let verdicts = judge(&resolutions, &self.returned).verdicts;
        let judged = self.sent.iter().zip(verdicts);
        judged
            .filter(|(_, verdict)| *verdict == Verdict::Confirmed)
            .map(|(sent, _)| sent.position)
            .collect()
    }
}

impl Late {
    /// Of the messages at `positions`, in order, those that are in one of the windows; `None` when
    /// there are none.
    pub(crate) fn new(
        positions: impl Iterator<Item = usize>,
        windows: Vec<Unfinished>,
    ) -> Option<Self> {
        let positions: Vec<_> = positions
            .filter(|position| windows.iter().any(|window| window.holds(*position)))
            .collect();
        (!positions.is_empty()).then_some(Self { positions, windows })
    }

    /// The positions in the batch of the messages that may still be confirmed, in order.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Waits until the broker has spoken of everything on the channels, or they or the connection
    /// have ended, and returns the positions, in order, of those that are confirmed as certainly as
    /// [`Outcome::Confirmed`](postrider_core::Outcome) has it. May take for ever: a queue need not
    /// come back.
    pub async fn confirmed(self) -> Vec<usize> {
        let mut confirmed = HashSet::new();
        for window in self.windows {
            confirmed.extend(window.confirmed().await);
        }
        let mut positions = self.positions;
        positions.retain(|position| confirmed.contains(position));
        positions
    }
}

impl Drop for OldChannel {
    fn drop(&mut self) {
        // The library would close it as well, but ends the connection when the broker has closed the
        // channel in the meantime. The first poll queues the frame; nobody has to hear the answer.
        let closing = self.0.close(200, "OK".into()).now_or_never();
        tracing::debug!(?closing, "channel with late confirms given up");
    }
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Late")
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}
