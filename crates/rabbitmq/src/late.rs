//! Confirms that come after their batch was settled.
//!
//! They are told as they become certain: what one queue never confirms keeps nobody from hearing of the others. The window that
//! they are of is incomplete until then, and judged as such ([`judge`]).

use std::collections::HashSet;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use lapin::PublisherConfirm;
use postrider_core::LateNews;
use uuid::Uuid;

use crate::judge::{Resolution, Returned, Verdict, judge};
use crate::window::confirmed;

/// The messages of a batch that may still be confirmed, on the channels that they were sent on.
///
/// A channel stays open until the broker has spoken of everything on it, and is closed then, or when this is dropped.
#[must_use = "dropping it gives up on the confirms that may still come"]
pub struct Late {
    positions: Vec<usize>,
    windows: Vec<Unfinished>,
}

/// A window that was given up on, with everything on the socket.
pub(crate) struct Unfinished {
    sent: Vec<Sent>,
    returned: Vec<Returned>,
    /// What is known already was not judged yet.
    is_new: bool,
    /// The positions of those that are certain, and were told.
    told: HashSet<usize>,
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
    /// Heard after others that may have come before: see `judge.rs`.
    Uncounted(Resolution),
    Awaited(PublisherConfirm),
}

/// A channel with an unfinished window behind it.
struct OldChannel(lapin::Channel);

impl Unfinished {
    pub(crate) fn new(sent: Vec<Sent>, returned: Vec<Returned>, channel: lapin::Channel) -> Self {
        Self {
            sent,
            returned,
            is_new: true,
            told: HashSet::new(),
            _channel: OldChannel(channel),
        }
    }

    fn holds(&self, position: usize) -> bool {
        self.sent.iter().any(|sent| sent.position == position)
    }

    /// Whether anything is known that was not before. What is found counts.
    fn look(&mut self, context: &mut Context<'_>) -> bool {
        let mut heard = std::mem::take(&mut self.is_new);
        for sent in &mut self.sent {
            let resolution = match &mut sent.confirm {
                Confirm::Heard(_) => continue,
                Confirm::Uncounted(resolution) => *resolution,
                Confirm::Awaited(confirm) => match poll(confirm, context, &mut self.returned) {
                    Poll::Ready(resolution) => resolution,
                    Poll::Pending => continue,
                },
            };
            sent.confirm = Confirm::Heard(resolution);
            heard = true;
        }
        heard
    }

    /// The second look, for returns that came before the last acknowledgement that counts: on one that was looked for just before it came.
    fn look_behind(&mut self, context: &mut Context<'_>) {
        for sent in &mut self.sent {
            if let Confirm::Awaited(confirm) = &mut sent.confirm
                && let Poll::Ready(resolution) = poll(confirm, context, &mut self.returned)
            {
                sent.confirm = Confirm::Uncounted(resolution);
            }
        }
    }

    /// What has become certain: the positions, and whether each is confirmed. All that is left when nothing more can come.
    fn take_certain(&mut self) -> Vec<(usize, bool)> {
        let resolution = |sent: &Sent| match sent.confirm {
            Confirm::Heard(resolution) => (sent.id, resolution),
            Confirm::Uncounted(_) | Confirm::Awaited(_) => (sent.id, Resolution::Unresolved),
        };
        let resolutions: Vec<_> = self.sent.iter().map(resolution).collect();
        let is_over = self
            .sent
            .iter()
            .all(|sent| matches!(sent.confirm, Confirm::Heard(_)));
        let verdicts = judge(&resolutions, &self.returned).verdicts;
        let mut certain = Vec::new();
        for (sent, verdict) in self.sent.iter().zip(verdicts) {
            let is_confirmed = match verdict {
                Verdict::Confirmed => true,
                Verdict::Nacked | Verdict::Unroutable(_) => false,
                Verdict::Unsure if is_over => false,
                Verdict::Unsure => continue,
            };
            if self.told.insert(sent.position) {
                certain.push((sent.position, is_confirmed));
            }
        }
        certain
    }

    fn awaits(&self, position: usize) -> bool {
        self.holds(position) && !self.told.contains(&position)
    }

    fn is_over(&self) -> bool {
        self.told.len() >= self.sent.len()
    }
}

fn poll(
    confirm: &mut PublisherConfirm,
    context: &mut Context<'_>,
    returned: &mut Vec<Returned>,
) -> Poll<Resolution> {
    Pin::new(confirm).poll(context).map(|confirmation| {
        let (resolution, came_back) = confirmed(confirmation);
        returned.extend(came_back);
        resolution
    })
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

    /// Waits until it is certain of some of them whether they are confirmed, because the broker has spoken of them, or the channels or the connection
    /// have ended. Each is told once. Gives back what is still waited for, if anything. May take for ever: a queue need not come back.
    pub async fn next(mut self) -> (LateNews, Option<Self>) {
        let news = poll_fn(|context| self.poll_news(context)).await;
        let left = (!self.positions.is_empty()).then_some(self);
        (news, left)
    }

    fn poll_news(&mut self, context: &mut Context<'_>) -> Poll<LateNews> {
        while !self.windows.is_empty() {
            let mut heard = false;
            for window in &mut self.windows {
                heard |= window.look(context);
            }
            if !heard {
                return Poll::Pending;
            }
            let mut certain = Vec::new();
            for window in &mut self.windows {
                window.look_behind(context);
                certain.extend(window.take_certain());
            }
            self.windows.retain(|window| !window.is_over());
            let news = self.take_news(certain);
            if news != LateNews::default() {
                return Poll::Ready(news);
            }
        }
        // The windows hold every position until they are over.
        Poll::Ready(LateNews {
            confirmed: Vec::new(),
            lost: std::mem::take(&mut self.positions),
        })
    }

    /// What was not told before. One that was sent in two windows is confirmed when it is in one, and lost when it is lost in both.
    fn take_news(&mut self, mut certain: Vec<(usize, bool)>) -> LateNews {
        let mut news = LateNews::default();
        certain.sort_by_key(|(_, is_confirmed)| !is_confirmed);
        for (position, is_confirmed) in certain {
            let Ok(at) = self.positions.binary_search(&position) else {
                continue;
            };
            if is_confirmed {
                news.confirmed.push(position);
            } else if self.windows.iter().any(|window| window.awaits(position)) {
                continue;
            } else {
                news.lost.push(position);
            }
            self.positions.remove(at);
        }
        news
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_twice_is_confirmed_when_one_of_both_is_and_told_once() {
        let mut late = Late {
            positions: vec![2, 5, 9],
            windows: Vec::new(),
        };
        let news = late.take_news(vec![(5, false), (7, true), (5, true), (9, false)]);
        let expected = LateNews {
            confirmed: vec![5],
            lost: vec![9],
        };
        assert_eq!((news, late.positions()), (expected, [2].as_slice()));
        assert_eq!(
            late.take_news(vec![(5, true), (9, true)]),
            LateNews::default()
        );
    }
}
