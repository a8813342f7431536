//! How a relay stands with one of its peers, and what of it is news for the log.
//!
//! A peer that comes and goes several times a second, as a database with too few connections does, or one that
//! gives two reasons by turns, must not flood the log: each reason is said once for each time the peer is away, and
//! less and less often until it has been well for a while; that it is back is said only when it was said that it was away.

use std::time::{Duration, Instant};

/// After how long without a complaint everything is news again.
const CALM: Duration = Duration::from_secs(10);
/// After how long a complaint that was said may be said again, if the peer was well in between; then twice as long.
const FIRST_GAP: Duration = Duration::from_secs(1);
/// How many different complaints are remembered.
const MOST_REMEMBERED: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Contact {
    pub(crate) up: bool,
    /// It is there, and says no.
    pub(crate) refuses: bool,
    ever_up: bool,
    said: Vec<Said>,
    /// The last success that followed a complaint, or the first of all.
    calm_since: Option<Instant>,
    /// The log says that it is away.
    away_in_log: bool,
}

/// A complaint that was said.
#[derive(Debug)]
struct Said {
    complaint: String,
    at: Instant,
    gap: Duration,
    /// The peer has been well since.
    well_since: bool,
}

/// What a success at `now` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// It was away.
    pub(crate) again: bool,
    /// It had been there before that.
    pub(crate) reconnected: bool,
    /// It is to be said.
    pub(crate) news: bool,
}

impl Contact {
    pub(crate) fn found(&mut self, now: Instant) -> Found {
        self.refuses = false;
        self.calm_since.get_or_insert(now);
        for said in &mut self.said {
            said.well_since = true;
        }
        let found = Found {
            again: !self.up,
            reconnected: !self.up && self.ever_up,
            news: !self.up && (self.away_in_log || !self.ever_up),
        };
        self.up = true;
        self.ever_up = true;
        if found.news {
            self.away_in_log = false;
        }
        found
    }

    /// It is away. True when that is to be said.
    pub(crate) fn lost(&mut self, complaint: &str, now: Instant) -> bool {
        self.up = false;
        let news = self.is_news(complaint, now);
        self.away_in_log |= news;
        news
    }

    /// It refuses something. True when that is to be said.
    pub(crate) fn refused(&mut self, complaint: &str, now: Instant) -> bool {
        self.refuses = true;
        self.is_news(complaint, now)
    }

    fn is_news(&mut self, complaint: &str, now: Instant) -> bool {
        let calm = self.calm_since.take();
        if calm.is_some_and(|since| now.saturating_duration_since(since) >= CALM) {
            self.said.clear();
        }
        if let Some(said) = self
            .said
            .iter_mut()
            .find(|said| said.complaint == complaint)
        {
            let news = said.well_since && now.saturating_duration_since(said.at) >= said.gap;
            if news {
                said.at = now;
                said.gap = said.gap.saturating_mul(2);
                said.well_since = false;
            }
            return news;
        }
        if self.said.len() >= MOST_REMEMBERED {
            self.said.remove(0);
        }
        self.said.push(Said {
            complaint: complaint.to_owned(),
            at: now,
            gap: FIRST_GAP,
            well_since: false,
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_comes_and_goes_is_told_of_ever_less_often_until_it_has_been_well_for_a_while() {
        let mut now = Instant::now();
        let mut contact = Contact::default();
        assert!(contact.found(now).news);
        assert!(contact.lost("no room", now));
        assert!(contact.found(now).news);
        let mut lines = 0;
        for _ in 0..300 {
            now += Duration::from_millis(100);
            let said = contact.lost("no room", now);
            lines += usize::from(said);
            let found = contact.found(now);
            assert!(found.again && found.reconnected);
            assert_eq!(found.news, said);
        }
        // After 1, 2, 4 and 8 more seconds.
        assert_eq!(lines, 4);
        now += CALM;
        assert!(contact.lost("no room", now));
        assert!(contact.found(now).news);
    }

    #[test]
    fn two_complaints_by_turns_are_said_once_each_and_the_return_once() {
        let now = Instant::now();
        let mut contact = Contact::default();
        contact.found(now);
        let said: Vec<bool> = (0..6)
            .map(|n| contact.lost(["in recovery", "starting up"][n % 2], now))
            .collect();
        assert_eq!(said, [true, true, false, false, false, false]);
        assert!(contact.found(now).news);
        assert!(!contact.found(now).again);
    }

    #[test]
    fn a_refusal_leaves_the_peer_up_and_is_said_once() {
        let now = Instant::now();
        let mut contact = Contact::default();
        contact.found(now);
        assert!(contact.refused("permission denied", now));
        assert!(!contact.refused("permission denied", now));
        assert!(contact.up && contact.refuses);
        assert!(!contact.found(now).again);
        assert!(!contact.refuses);
    }
}
