//! Watches the outbox from a session of its own: moves floor and frontier, looks back, sweeps, and keeps producers
//! from notifying while the relay is awake.
//!
//! # States and races
//! - A tick takes each step in order: the quiet lock, the look, the question to which it leads, then it wakes a worker.
//!   Why in this order is told in [`Quiet`] and [`Floor`](postrider_core::Floor).
//! - The session is lost: floor and frontiers begin at the beginning, and the relay counts as one that has just given the
//!   quiet lock up, since the server freed it.
//! - The relay stops, or the broker takes nothing: the lock is given up at once, since silenced producers would wait for
//!   this relay. The others are woken, and watch whom it silenced.
//! - A relay that is stopped by a signal or paused with its host holds the lock until the server ends its silent session
//!   ([`LONGEST_SILENCE`]); others find by polling what nobody was told of.

use std::time::{Duration, Instant};

use postrider_core::{Backoff, Pace, Quiet, Seq, Step, Sweep};
use postrider_postgres::{Database, Error, LONGEST_SILENCE, LookBack, OutboxWatch};
use tracing::{debug, info, warn};

use crate::shared::Shared;

/// Between looks while something is going on: about a hundredth of the time is spent on them.
const LOOKS: Pace = Pace::new(Duration::from_millis(50), Duration::from_secs(1));
/// While those are waited for that were silenced before the relay went to sleep. They are found by nothing else, and
/// are few and soon over; one that is not waits a tenth longer.
const LOOKS_AT_SILENCED: Duration = Duration::from_millis(5);
const LONGER: u32 = 10;
/// The longest between looks back.
const LONGEST_BETWEEN_LOOKS_BACK: Duration = Duration::from_secs(60);
/// The sweep begins so long after the session: the floor itself begins by looking at everything.
const FIRST_SWEEP: Duration = Duration::from_secs(60);
/// The first `seq` that a sequence gives.
const FIRST_SEQ: i64 = 1;
/// How many `seq` the first piece of a sweep spans.
const PIECE: i64 = 10_000;
/// How long a relay that stops waits for the lock to be given up in good order.
const LONGEST_LEAVE: Duration = Duration::from_secs(2);
/// The longest wait between two attempts to open the session.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

struct Watcher<'a> {
    shared: &'a Shared,
    watch: OutboxWatch,
    quiet: Quiet,
    /// Since when those are waited for that were silenced.
    silenced_since: Instant,
    /// When a look will count as the next.
    counts_at: Instant,
    look_back_at: Instant,
    sweep: Sweep,
    sweep_at: Instant,
    sweeps: bool,
}

/// Why a session of the watch is over.
enum Ended {
    Lost(Error),
    /// Left to a worker that gets none.
    GivenAway,
}

/// Watches until the relay stops. The session is made anew whenever it is lost.
pub(crate) async fn keep_watching_outbox(database: &Database, shared: &Shared) {
    let mut backoff = Backoff::new(Duration::from_millis(100), LONGEST_WAIT);
    let mut lost = false;
    loop {
        let ended = tokio::select! {
            () = shared.stop.cancelled() => return,
            watch = database.watch_outbox() => match watch {
                Err(error) => Ended::Lost(error),
                Ok(watch) => {
                    let mut watcher = Watcher::new(shared, watch);
                    let told = || {
                        backoff.reset();
                        if std::mem::take(&mut lost) {
                            info!(event = "watch_back", peer = "database", "the outbox is watched again");
                        }
                    };
                    let ended = tokio::select! {
                        () = shared.stop.cancelled() => {
                            watcher.leave().await;
                            return;
                        }
                        () = shared.connections_scarce.notified() => Ended::GivenAway,
                        error = watcher.run(told) => Ended::Lost(error),
                    };
                    shared.awake.poll(false);
                    shared.frontiers.reset();
                    ended
                }
            },
        };
        let wait = match ended {
            Ended::GivenAway => LONGEST_WAIT,
            Ended::Lost(error) => {
                let wait = backoff.next(rand::random());
                if !lost {
                    lost = true;
                    warn!(
                        event = "watch_lost",
                        peer = "database",
                        %error,
                        retry_in_s = wait.as_secs_f64(),
                        "the outbox cannot be watched; until it can, claims read it from the beginning, and producers notify"
                    );
                }
                wait
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What the next tick waits for.
enum Next {
    /// Nothing but this time.
    At(Instant),
    /// Something that happens to the outbox, but no earlier than this, and no later than that.
    Touched { earliest: Instant, latest: Instant },
}

impl<'a> Watcher<'a> {
    fn new(shared: &'a Shared, watch: OutboxWatch) -> Self {
        let now = Instant::now();
        Self {
            shared,
            watch,
            quiet: Quiet::new(),
            silenced_since: now,
            counts_at: now,
            look_back_at: now,
            sweep: Sweep::new(FIRST_SEQ, PIECE),
            sweep_at: now + FIRST_SWEEP,
            sweeps: false,
        }
    }

    /// Runs until an error; says after the first tick that the watch is on.
    async fn run(&mut self, on: impl FnOnce()) -> Error {
        let mut on = Some(on);
        loop {
            let next = match self.tick().await {
                Ok(next) => next,
                Err(error) => return error,
            };
            if let Some(on) = on.take() {
                on();
            }
            match next {
                Next::At(at) => tokio::time::sleep_until(at.into()).await,
                Next::Touched { earliest, latest } => {
                    let touched = async {
                        self.shared.frontiers.touched().await;
                        tokio::time::sleep_until(earliest.into()).await;
                    };
                    tokio::select! {
                        () = touched => {}
                        () = tokio::time::sleep_until(latest.into()) => {}
                    }
                }
            }
        }
    }

    async fn tick(&mut self) -> Result<Next, Error> {
        let Shared {
            frontiers, awake, ..
        } = self.shared;
        self.take_or_give_up_the_lock().await?;
        let began = Instant::now();
        let look = self.watch.look().await?;
        awake.looked(look.notify_contended);
        let ask = frontiers.looked(&look, self.counts_at <= began);
        self.quiet.looked(look.writers);
        if let Some(ask) = ask {
            let oldest = self.watch.oldest(ask.from(), ask.below()).await?;
            frontiers.raise(ask, oldest);
        }
        let rest = LOOKS.rest(began.elapsed());
        if self.counts_at <= began {
            self.counts_at = began + rest;
        }
        if frontiers.wants_claim() {
            self.shared.wakeup.notify_one();
        }
        self.look_back().await?;
        self.sweep().await?;
        Ok(self.next_tick(began, rest))
    }

    fn next_tick(&self, began: Instant, rest: Duration) -> Next {
        let step = self.quiet.step();
        if step == Step::Look {
            let soon = (self.silenced_since.elapsed() / LONGER).max(LOOKS_AT_SILENCED);
            return Next::At(began + rest.min(soon));
        }
        let earliest = began + rest;
        if step == Step::Sleep && self.shared.frontiers.is_at_rest() {
            let longest = self
                .shared
                .live
                .get()
                .poll_interval
                .min(LONGEST_SILENCE / 3);
            Next::Touched {
                earliest,
                latest: earliest.max(began + longest),
            }
        } else {
            Next::At(earliest)
        }
    }

    async fn take_or_give_up_the_lock(&mut self) -> Result<(), Error> {
        let Shared {
            awake, progress, ..
        } = self.shared;
        let takes = progress.broker_takes_messages();
        self.quiet.want(takes && awake.wants_quiet());
        match self.quiet.step() {
            Step::TryLock => {
                let got = self.watch.try_quiet().await?;
                self.quiet.tried(got);
            }
            Step::Unlock if takes => {
                self.watch.end_quiet().await?;
                self.quiet.unlocked();
                self.silenced_since = Instant::now();
            }
            Step::Unlock => {
                self.watch.hand_over().await?;
                self.sweeps = false;
                self.quiet.unlocked();
                self.silenced_since = Instant::now();
            }
            Step::Poll | Step::Look | Step::Sleep => {}
        }
        awake.poll(matches!(self.quiet.step(), Step::Poll | Step::TryLock));
        Ok(())
    }

    /// Looks for rows that another relay or an operator had locked when the frontier passed, and let go; and, of those with a key, for what was not written
    /// as rows are, between the floor and where their frontier is.
    async fn look_back(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if now < self.look_back_at {
            return Ok(());
        }
        let Shared { frontiers, .. } = self.shared;
        let over = match frontiers.below() {
            None => true,
            Some((from, frontier)) => {
                let found = self.watch.oldest_free(from, frontier).await?;
                let found = beside_left_out(found, &self.shared.excluded(now));
                let over = frontiers.looked_back(found);
                if let LookBack::Free(_) = found {
                    self.shared.wakeup.notify_one();
                }
                over
            }
        };
        if over && let Some((from, frontier)) = frontiers.below_ordered() {
            let found = self.watch.oldest_with_a_key(from, frontier).await?;
            if frontiers.found_below_ordered(found) {
                self.shared.ordered.raise_waits();
                self.shared.wakeup.notify_one();
            }
        }
        let pace = if over {
            let interval = self.shared.live.get().poll_interval;
            Pace::new(interval, LONGEST_BETWEEN_LOOKS_BACK)
        } else {
            // The next piece.
            LOOKS
        };
        self.look_back_at = Instant::now() + pace.rest(now.elapsed());
        Ok(())
    }

    /// Looks through a piece of what is below the floor, unless another relay does.
    async fn sweep(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let Some(Seq(floor)) = self.shared.frontiers.floor() else {
            return Ok(());
        };
        if now < self.sweep_at {
            return Ok(());
        }
        self.sweeps = self.sweeps || self.watch.try_sweeping().await?;
        if !self.sweeps {
            self.sweep_at = now + FIRST_SWEEP;
            return Ok(());
        }
        let piece = self.sweep.piece(floor);
        if let Some(row) = self
            .watch
            .oldest(piece.from.map(Seq), Seq(piece.to))
            .await?
        {
            debug!(
                seq = row.0,
                "a row below the floor: it was not written as rows are"
            );
            self.shared.frontiers.found_below(row);
            self.shared.wakeup.notify_one();
        }
        self.sweep_at = Instant::now() + self.sweep.swept(piece, now.elapsed());
        Ok(())
    }

    /// The relay stops. It does not wait for long for a database that does not answer: its session is closed then, which
    /// frees the lock as well.
    async fn leave(mut self) {
        self.shared.awake.poll(false);
        match tokio::time::timeout(LONGEST_LEAVE, self.watch.hand_over()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(%error, "the other relays were not woken; they find by polling what is left");
            }
            Err(_) => {
                debug!("the database did not answer; the other relays find by polling what is left")
            }
        }
    }
}

/// Rows that claims leave out, because they rest or are held for a confirm that may still come, are free for all others. The look goes on behind
/// them: given back again and again, each would have the next claim begin there, find nothing, and walk over all that was deleted since. When their
/// time has come, they are given back by themselves.
fn beside_left_out(found: LookBack, left_out: &[Seq]) -> LookBack {
    match found {
        LookBack::Free(free) if left_out.contains(&free) => {
            LookBack::NoneBelow(Seq(free.0.saturating_add(1)))
        }
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_back_goes_on_behind_a_row_that_claims_leave_out() {
        let left_out = [Seq(7), Seq(3)];
        assert_eq!(
            beside_left_out(LookBack::Free(Seq(3)), &left_out),
            LookBack::NoneBelow(Seq(4))
        );
        for found in [
            LookBack::Free(Seq(4)),
            LookBack::NoneBelow(Seq(3)),
            LookBack::None,
        ] {
            assert_eq!(beside_left_out(found, &left_out), found);
        }
    }
}
