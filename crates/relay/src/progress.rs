//! How the relay is doing, as readiness, liveness and the watchdog see it. All of them follow the
//! loop itself: a relay whose peers are up but whose workers stand still is not ready.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postrider_postgres::ErrorKind;
use tracing::{error, info, warn};

use crate::contact::Contact;
use crate::metrics::{Metrics, Peer, unix_now};

/// Why the relay does not move messages now. The names are part of the surface (`/readyz`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// It has not completed its first cycle yet.
    Starting,
    /// The database cannot be reached or takes no writes.
    DatabaseAway,
    /// The database is there and refuses a statement of the relay: a right is missing, say.
    DatabaseRefuses,
    /// The broker cannot be reached.
    BrokerAway,
    /// The broker blocks publishers because of a memory or disk alarm.
    BrokerBlocked,
    /// Its peers are there, but a worker has not completed a cycle for longer than any timeout
    /// explains.
    Stalled,
    /// It is shutting down.
    Stopping,
}

impl NotReady {
    /// The name in `/readyz`, `status` and the logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::DatabaseAway => "database_away",
            Self::DatabaseRefuses => "database_refuses",
            Self::BrokerAway => "broker_away",
            Self::BrokerBlocked => "broker_blocked",
            Self::Stalled => "stalled",
            Self::Stopping => "stopping",
        }
    }
}

/// A worker that has not turned its loop for longer than any timeout explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    /// The worker's number, from 0.
    pub worker: usize,
    /// For how long.
    pub standing_for: Duration,
}

/// The state the tasks of one relay report to, and `/readyz`, `/livez` and the watchdog ask.
#[derive(Debug)]
pub struct Progress {
    stuck_after: Duration,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    database: Contact,
    broker: Contact,
    blocked_since: Option<Instant>,
    stopping: bool,
    workers: Vec<WorkerTurns>,
    lag: Duration,
    backlog: u64,
}

#[derive(Debug, Clone, Copy)]
struct WorkerTurns {
    turned: Instant,
    cycled: Option<Cycled>,
}

#[derive(Debug, Clone, Copy)]
struct Cycled {
    at: Instant,
    unix: f64,
}

impl Progress {
    /// Nothing is connected and no worker has turned yet, as of `now`.
    #[must_use]
    pub fn new(workers: usize, stuck_after: Duration, metrics: Arc<Metrics>, now: Instant) -> Self {
        Self {
            stuck_after,
            metrics,
            state: Mutex::new(State {
                database: Contact::default(),
                broker: Contact::default(),
                blocked_since: None,
                stopping: false,
                workers: vec![
                    WorkerTurns {
                        turned: now,
                        cycled: None
                    };
                    workers
                ],
                lag: Duration::ZERO,
                backlog: 0,
            }),
        }
    }

    /// Everything that keeps the relay from moving messages at `now`; empty when it is ready.
    #[must_use]
    pub fn not_ready(&self, now: Instant) -> Vec<NotReady> {
        let state = self.state();
        let mut reasons = Vec::new();
        if state.stopping {
            reasons.push(NotReady::Stopping);
        }
        if !state.database.up {
            reasons.push(NotReady::DatabaseAway);
        } else if state.database.refuses {
            reasons.push(NotReady::DatabaseRefuses);
        }
        if !state.broker.up {
            reasons.push(NotReady::BrokerAway);
        } else if state.blocked_since.is_some() {
            reasons.push(NotReady::BrokerBlocked);
        }
        if reasons.is_empty() {
            if state.workers.iter().all(|worker| worker.cycled.is_none()) {
                reasons.push(NotReady::Starting);
            } else if state.workers.iter().any(|worker| {
                worker.cycled.is_some_and(|cycled| {
                    now.saturating_duration_since(cycled.at) > self.stuck_after
                })
            }) {
                reasons.push(NotReady::Stalled);
            }
        }
        if stuck(&state, self.stuck_after, now).is_some() && !reasons.contains(&NotReady::Stalled) {
            reasons.push(NotReady::Stalled);
        }
        reasons
    }

    /// The worker that is stuck at `now`, if one is. Waiting for a peer that is away or blocked is
    /// progress: a restart would mend nothing.
    #[must_use]
    pub fn stuck(&self, now: Instant) -> Option<Stuck> {
        stuck(&self.state(), self.stuck_after, now)
    }

    /// One line about the state at `now`, for `systemctl status`.
    #[must_use]
    pub fn summary(&self, now: Instant) -> String {
        let reasons = self.not_ready(now);
        let state = self.state();
        let mut line = if reasons.is_empty() {
            "relaying".to_owned()
        } else {
            let names: Vec<_> = reasons
                .iter()
                .map(|r| r.as_str().replace('_', " "))
                .collect();
            format!("waiting: {}", names.join(", "))
        };
        if let Some(since) = state.blocked_since {
            line.push_str(&format!(
                " {}s",
                now.saturating_duration_since(since).as_secs()
            ));
        }
        line.push_str(&format!(
            "; lag {}s, backlog {}",
            state.lag.as_secs(),
            state.backlog
        ));
        line
    }

    /// The database answered a question of the loop.
    pub fn database_answered(&self) {
        let mut state = self.state();
        if self.found(&mut state.database, Peer::Database) {
            info!(
                event = "database_connected",
                peer = "database",
                "database connected"
            );
        }
    }

    /// The sampler's view of the database: it asks also while the workers wait for the broker. A
    /// failure counts always. An answer counts only while no worker asks, since it may come over a
    /// connection that is older than what the workers fail at.
    pub(crate) fn database_sampled(&self, sampled: Result<(), &postrider_postgres::Error>) {
        match sampled {
            Ok(()) => {
                let workers_wait = {
                    let state = self.state();
                    !state.broker.up || state.blocked_since.is_some()
                };
                if workers_wait {
                    self.database_answered();
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::Unavailable | ErrorKind::ReadOnly => self.database_failed(error),
                ErrorKind::Schema
                | ErrorKind::Privilege
                | ErrorKind::Configuration
                | ErrorKind::Query => self.database_refused(error),
            },
        }
    }

    /// The database did not, or refused; said in the log as [`Contact`] has it.
    pub fn database_failed(&self, error: &postrider_postgres::Error) {
        let text = error.to_string();
        let mut state = self.state();
        if self.lost(&mut state.database, Peer::Database, &text) {
            warn!(
                event = "database_lost",
                peer = "database",
                error = %text,
                "the database is away or refuses; nothing is claimed until it is back"
            );
        }
    }

    /// Something other than the connection went wrong in the database: it is there, and says no.
    pub(crate) fn database_refused(&self, error: &postrider_postgres::Error) {
        let text = error.to_string();
        let mut state = self.state();
        if state.database.refused(&text, Instant::now()) {
            error!(
                event = "database_refused",
                peer = "database",
                error = %text,
                "the database refused a statement of the relay; trying again"
            );
        }
    }

    /// The broker at `address` is connected, and does not block publishers.
    pub fn broker_connected(&self, address: &str) {
        let mut state = self.state();
        state.blocked_since = None;
        self.metrics.broker_blocked.set(0);
        if self.found(&mut state.broker, Peer::Broker) {
            info!(
                event = "broker_connected",
                peer = "broker",
                address,
                "broker connected"
            );
        }
    }

    /// The broker cannot be reached; said in the log as [`Contact`] has it. It is tried again after
    /// `retry_in`.
    pub fn broker_lost(&self, error: &str, retry_in: Duration) {
        let mut state = self.state();
        state.blocked_since = None;
        self.metrics.broker_blocked.set(0);
        if self.lost(&mut state.broker, Peer::Broker, error) {
            warn!(
                event = "broker_lost",
                peer = "broker",
                error,
                retry_in_s = retry_in.as_secs_f64(),
                "the broker is away; nothing is claimed until it is back"
            );
        }
    }

    /// The connected broker blocks publishers since `now`, for `reason`.
    pub fn broker_blocked(&self, reason: &str, now: Instant) {
        let mut state = self.state();
        if state.blocked_since.is_none() {
            state.blocked_since = Some(now);
            self.metrics.broker_blocked.set(1);
            warn!(
                event = "broker_blocked",
                peer = "broker",
                alarm = reason,
                "the broker blocks publishers; nothing is claimed until its alarm ends"
            );
        }
    }

    /// The connected broker takes messages, from `now` on if it did not before.
    pub fn broker_unblocked(&self, now: Instant) {
        let mut state = self.state();
        if let Some(since) = state.blocked_since.take() {
            self.metrics.broker_blocked.set(0);
            info!(
                event = "broker_unblocked",
                peer = "broker",
                blocked_s = now.saturating_duration_since(since).as_secs_f64(),
                "the broker takes messages again"
            );
        }
    }

    pub(crate) fn stopping(&self) {
        self.state().stopping = true;
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.state().blocked_since.is_some()
    }

    /// Whether the broker is there and takes messages.
    pub(crate) fn broker_takes_messages(&self) -> bool {
        let state = self.state();
        state.broker.up && state.blocked_since.is_none()
    }

    /// The relay has not started its workers yet, because it waits for the database.
    pub fn waiting(&self, now: Instant) {
        for turns in &mut self.state().workers {
            turns.turned = now;
        }
    }

    /// The worker went through its loop, be it only to find that it still has to wait.
    pub(crate) fn turned(&self, worker: usize, now: Instant) {
        if let Some(turns) = self.state().workers.get_mut(worker) {
            turns.turned = now;
        }
    }

    /// The worker completed a cycle: a claim, and its settle if there was anything.
    pub(crate) fn cycled(&self, worker: usize, now: Instant) {
        let mut state = self.state();
        if let Some(turns) = state.workers.get_mut(worker) {
            *turns = WorkerTurns {
                turned: now,
                cycled: Some(Cycled {
                    at: now,
                    unix: unix_now(),
                }),
            };
        }
        let slowest = state
            .workers
            .iter()
            .map(|turns| turns.cycled.map_or(0.0, |cycled| cycled.unix))
            .fold(f64::INFINITY, f64::min);
        if slowest.is_finite() {
            self.metrics.last_cycle_timestamp_seconds.set(slowest);
        }
    }

    pub(crate) fn measured(&self, lag: Duration, backlog: u64) {
        let mut state = self.state();
        state.lag = lag;
        state.backlog = backlog;
    }

    /// True when this is news.
    fn found(&self, contact: &mut Contact, peer: Peer) -> bool {
        let found = contact.found(Instant::now());
        if found.again {
            self.metrics.connected(peer).set(1);
        }
        if found.reconnected {
            self.metrics.reconnects(peer).inc();
        }
        found.news
    }

    /// True when this is news.
    fn lost(&self, contact: &mut Contact, peer: Peer, error: &str) -> bool {
        self.metrics.connected(peer).set(0);
        contact.lost(error, Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn stuck(state: &State, stuck_after: Duration, now: Instant) -> Option<Stuck> {
    state
        .workers
        .iter()
        .enumerate()
        .map(|(worker, turns)| Stuck {
            worker,
            standing_for: now.saturating_duration_since(turns.turned),
        })
        .find(|candidate| candidate.standing_for > stuck_after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;

    const STUCK_AFTER: Duration = Duration::from_secs(90);

    fn progress(start: Instant) -> Progress {
        let metrics = Metrics::register(&Registry::new(), "shop", 10).unwrap();
        Progress::new(2, STUCK_AFTER, Arc::new(metrics), start)
    }

    fn connected(start: Instant) -> Progress {
        let progress = progress(start);
        progress.database_answered();
        progress.broker_connected("localhost:5672");
        progress
    }

    #[test]
    fn readiness_names_every_peer_that_is_away_and_then_follows_the_loop() {
        let start = Instant::now();
        let progress = progress(start);
        assert_eq!(
            progress.not_ready(start),
            [NotReady::DatabaseAway, NotReady::BrokerAway]
        );
        progress.database_answered();
        assert_eq!(progress.not_ready(start), [NotReady::BrokerAway]);
        progress.broker_connected("localhost:5672");
        assert_eq!(progress.not_ready(start), [NotReady::Starting]);
        progress.cycled(0, start);
        assert!(progress.not_ready(start).is_empty());
        progress.broker_blocked("low on memory", start);
        assert_eq!(progress.not_ready(start), [NotReady::BrokerBlocked]);
        progress.broker_unblocked(start);
        progress.stopping();
        assert_eq!(progress.not_ready(start), [NotReady::Stopping]);
    }

    #[test]
    fn a_worker_that_turns_without_completing_a_cycle_makes_the_relay_unready_but_not_stuck() {
        let start = Instant::now();
        let progress = connected(start);
        progress.cycled(0, start);
        progress.cycled(1, start);
        let later = start + STUCK_AFTER + Duration::from_secs(1);
        progress.turned(0, later);
        progress.turned(1, later);
        assert_eq!(progress.not_ready(later), [NotReady::Stalled]);
        assert_eq!(progress.stuck(later), None);
    }

    #[test]
    fn waiting_for_a_blocked_broker_is_progress_and_standing_still_is_not() {
        let start = Instant::now();
        let progress = connected(start);
        progress.broker_blocked("low on disk", start);
        let later = start + STUCK_AFTER + Duration::from_secs(1);
        progress.turned(0, later);
        assert_eq!(
            progress.stuck(later),
            Some(Stuck {
                worker: 1,
                standing_for: later - start
            })
        );
        progress.turned(1, later);
        assert_eq!(progress.stuck(later), None);
        assert_eq!(progress.not_ready(later), [NotReady::BrokerBlocked]);
        assert_eq!(
            progress.summary(later),
            "waiting: broker blocked 91s; lag 0s, backlog 0"
        );
    }
}
