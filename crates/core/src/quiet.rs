//! The quiet wake-up: when a relay is awake and polls anyway, producers need not notify it, and
//! their commits need not queue for the lock that `NOTIFY` takes for the whole database.
//!
//! The relay holds an advisory lock (*quiet*) while it polls. The trigger on the table tries it
//! shared: if it gets it, nobody is awake, and it notifies; otherwise the transaction stays silent.
//!
//! # The race
//!
//! A transaction whose trigger ran while the lock was held is silent, and may commit long after the
//! relay went to sleep. So a relay that gives the lock up *then* looks which transactions hold a
//! write lock on the table: a silent transaction took its own before its trigger ran, so it is
//! among them, or over and visible. It goes on looking, and claiming after each look, until all of
//! those are gone; only then it relies on being notified.
//!
//! - The look must come after the lock was given up, in a statement of its own: between an earlier
//!   look and the unlocking another transaction may have been silenced.
//! - The claim must come after the look: of a transaction that is gone at the look, only a later
//!   snapshot is sure to show the rows. It must start where a [`Frontier`](crate::Frontier) that
//!   was told of this look says, since the rows may lie below where it was.
//! - A woken relay claims at once, and then takes a look and claims again if the look asks for it
//!   ([`Frontier::wants_claim`](crate::Frontier::wants_claim)): what woke it may have been open for
//!   long.
//! - A new session begins as one that has just given the lock up: who was silenced by the session
//!   that was lost is not known.
//!
//! What is not covered: relays beside the one that held the lock are not woken for the silent
//! transactions it leaves behind when it dies. It itself or its successor finds them when it is
//! back; until then only the others' safety poll. A relay that stops, or that cannot publish,
//! should therefore give the lock up, and notify the others in its place when the transactions it
//! silenced are over.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::Writer;

/// Where one relay's session stands between quiet and asleep. For one task, which also takes the
/// looks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quiet {
    wanted: bool,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Everybody notifies.
    Asleep,
    /// The lock is held.
    Holding,
    /// The lock was given up; of the writers of that moment these are left, unless they were not looked
    /// at yet.
    Leaving(Option<BTreeSet<Writer>>),
}

/// What the task does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Wait to be notified, under the safety poll.
    Sleep,
    /// Wake a worker, pause for the short poll.
    Poll,
    /// Try the lock, without waiting for it; tell [`Quiet::tried`]. When it was not got, go on as with
    /// [`Step::Poll`]: whoever holds it silences producers for everybody.
    TryLock,
    /// Give the lock up, tell [`Quiet::unlocked`].
    Unlock,
    /// Look at the writers, tell [`Quiet::looked`], *then* wake a worker. If this was not the first
    /// look, pause before it. Notifications are heeded meanwhile.
    Look,
}

impl Default for Quiet {
    fn default() -> Self {
        Self::new()
    }
}

impl Quiet {
    /// A new session: it holds no lock, and an earlier one may have left silent transactions behind.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            wanted: false,
            state: State::Leaving(None),
        }
    }

    /// Whether to be quiet: what [`Demand`] says, and never while nothing can be published.
    pub fn want(&mut self, quiet: bool) {
        self.wanted = quiet;
    }

    /// What to do next.
    #[must_use]
    pub fn step(&self) -> Step {
        match (&self.state, self.wanted) {
            (State::Holding, true) => Step::Poll,
            (State::Holding, false) => Step::Unlock,
            (_, true) => Step::TryLock,
            (State::Leaving(_), false) => Step::Look,
            (State::Asleep, false) => Step::Sleep,
        }
    }

    /// Whether nobody need look after silent transactions any more: notifications can be relied on.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.state == State::Asleep
    }

    /// The lock was tried.
    pub fn tried(&mut self, got: bool) {
        if got {
            self.state = State::Holding;
        }
    }

    /// The lock was given up.
    pub fn unlocked(&mut self) {
        self.state = State::Leaving(None);
    }

    /// A look that began after the last step was told: every writer there is now.
    pub fn looked(&mut self, writers: impl IntoIterator<Item = Writer>) {
        let State::Leaving(noted) = &mut self.state else {
            return;
        };
        let writers: BTreeSet<_> = writers.into_iter().collect();
        let left = match noted {
            None => writers,
            Some(noted) => noted.intersection(&writers).copied().collect(),
        };
        self.state = if left.is_empty() {
            State::Asleep
        } else {
            State::Leaving(Some(left))
        };
    }

    /// The session was lost, and with it the lock.
    pub fn lost(&mut self) {
        self.state = State::Leaving(None);
    }
}

/// When being quiet is worth it: where notifying costs producers.
///
/// At low rates a notification harms nobody and wakes sooner than any poll. It costs where rows
/// come fast. A rate alone would never show it where commits are slow, since notifying is what
/// makes them rare (32 clients with commits of 5 ms: 182 transactions a second with it, 4,460
/// without): there it shows in producers that wait for the notify lock.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    settings: DemandSettings,
    /// Rows a second, as of `updated`.
    rate: f64,
    updated: Option<Instant>,
    /// How many looks in a row saw somebody wait for the notify lock.
    contended: u32,
    hold_until: Option<Instant>,
    quiet: bool,
}

/// The bounds of [`Demand`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DemandSettings {
    /// Quiet from this many claimed rows a second on.
    pub enter: f64,
    /// And until they are fewer than this.
    pub leave: f64,
    /// For at least so long after producers were seen to wait for the notify lock, again and again.
    pub hold: Duration,
}

impl Demand {
    /// The memory of the rate: after this time without rows it is down to a little more than a third.
    const MEMORY: Duration = Duration::from_millis(250);

    /// So many looks in a row tell that producers hold each other up.
    const CONTENDED_LOOKS: u32 = 3;

    /// No rows so far.
    #[must_use]
    pub const fn new(settings: DemandSettings) -> Self {
        Self {
            settings,
            rate: 0.0,
            updated: None,
            contended: 0,
            hold_until: None,
            quiet: false,
        }
    }

    /// Other bounds from now on; what was seen so far counts on.
    pub const fn bound(&mut self, settings: DemandSettings) {
        self.settings = settings;
    }

    /// Rows were claimed.
    pub fn claimed(&mut self, rows: u32, now: Instant) {
        self.rate = self.rate_at(now) + f64::from(rows) / Self::MEMORY.as_secs_f64();
        self.updated = Some(now);
    }

    /// A look showed whether somebody waits for the notify lock. One that does by chance is no harm: with a thousand commits a second
    /// a look in thirty sees one. Where commits are slow enough to hold each other up, every look does.
    pub fn looked(&mut self, contended: bool, now: Instant) {
        self.contended = if contended {
            self.contended.saturating_add(1)
        } else {
            0
        };
        if self.contended >= Self::CONTENDED_LOOKS {
            self.hold_until = Some(now + self.settings.hold);
        }
    }

    /// Whether to be quiet.
    #[must_use]
    pub fn wants_quiet(&mut self, now: Instant) -> bool {
        let bound = if self.quiet {
            self.settings.leave
        } else {
            self.settings.enter
        };
        self.quiet = self.rate_at(now) >= bound || self.hold_until.is_some_and(|until| now < until);
        self.quiet
    }

    /// Claimed rows a second, of late.
    #[must_use]
    pub fn rate_at(&self, now: Instant) -> f64 {
        let since = self.updated.map_or(Duration::ZERO, |updated| {
            now.saturating_duration_since(updated)
        });
        self.rate * (-since.as_secs_f64() / Self::MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Writer = Writer::new(1, 1);
    const B: Writer = Writer::new(2, 1);

    #[test]
    fn a_relay_sleeps_only_when_the_writers_of_the_moment_it_gave_the_lock_up_are_gone() {
        let mut quiet = Quiet::new();
        assert_eq!(quiet.step(), Step::Look);
        quiet.looked([]);
        assert_eq!(quiet.step(), Step::Sleep);
        quiet.want(true);
        assert_eq!(quiet.step(), Step::TryLock);
        quiet.tried(false);
        assert_eq!(quiet.step(), Step::TryLock);
        quiet.tried(true);
        assert_eq!(quiet.step(), Step::Poll);
        quiet.want(false);
        assert_eq!(quiet.step(), Step::Unlock);
        quiet.unlocked();
        quiet.looked([A]);
        quiet.looked([A, B]);
        assert_eq!(quiet.step(), Step::Look);
        quiet.looked([B]);
        assert!(quiet.is_asleep());
    }

    #[test]
    fn a_relay_that_could_not_take_the_lock_again_still_waits_for_whom_it_silenced() {
        let mut quiet = Quiet::new();
        quiet.looked([A]);
        quiet.want(true);
        quiet.tried(false);
        quiet.want(false);
        assert_eq!(quiet.step(), Step::Look);
        quiet.lost();
        quiet.looked([A]);
        assert_eq!(quiet.step(), Step::Look);
    }

    #[test]
    fn fast_rows_make_a_relay_quiet_and_slow_ones_end_it_only_well_below() {
        let start = Instant::now();
        let settings = DemandSettings {
            enter: 1000.0,
            leave: 500.0,
            hold: Duration::from_secs(5),
        };
        let mut demand = Demand::new(settings);
        // For two seconds so many rows, one at a time.
        let mut from = start;
        let mut at_rate = |a_second: u32| {
            let end = from + Duration::from_secs(2);
            let mut quiet = false;
            while from < end {
                from += Duration::from_secs(1) / a_second;
                demand.claimed(1, from);
                quiet = demand.wants_quiet(from);
            }
            quiet
        };
        assert!(!at_rate(100));
        assert!(!at_rate(750));
        assert!(at_rate(2000));
        assert!(at_rate(750));
        assert!(!at_rate(100));
    }

    #[test]
    fn producers_that_wait_to_notify_make_a_relay_quiet_at_any_rate_for_a_while() {
        let start = Instant::now();
        let mut demand = Demand::new(DemandSettings {
            enter: 1000.0,
            leave: 500.0,
            hold: Duration::from_secs(5),
        });
        for contended in [true, true, false, true, true] {
            demand.looked(contended, start);
            assert!(!demand.wants_quiet(start), "seen by chance");
        }
        demand.looked(true, start);
        assert!(demand.wants_quiet(start + Duration::from_secs(4)));
        assert!(!demand.wants_quiet(start + Duration::from_secs(5)));
    }
}
