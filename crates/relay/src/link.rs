//! The connection to RabbitMQ: one task keeps it, the workers publish through it.
//!
//! States, as the workers see them: `Away` (nothing is claimed), `Up`, `Blocked` (the broker has
//! raised an alarm: nothing is claimed, the connection is kept). The keeper alone changes them. A
//! worker whose publish ended in doubt reports its connection as suspect, by generation, so that a
//! late report cannot bring down the connection that has replaced it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postrider_core::{Backoff, LateNews, Message, Outcome, Patience, Reason, Scope, with_causes};
use postrider_rabbitmq::{ChannelFate, Connection, LinkState, Publisher, Settings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::broker::{Broker, Late, Publish, Published};
use crate::progress::Progress;

/// How long a connection gets to close in good order before its socket is shut down.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that lasted this long counts as a success: the next wait is short again. One that
/// is accepted and lost at once must not make a hot loop.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

/// The generation of connections that the link does not keep: no suspicion of one concerns it.
const NOT_THE_LINKS: u64 = 0;
/// How long the reason of a connection that has ended is waited for: it is known within a second.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait between two attempts to connect.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The link to the broker: handed to every worker, fed by [`Broker::keep`].
#[derive(Debug, Clone)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    state: watch::Sender<State>,
    /// The newest generation a worker has reported as suspect.
    suspect: watch::Sender<Suspicion>,
}

#[derive(Debug, Clone, Default)]
struct Suspicion {
    generation: u64,
    why: String,
}

#[derive(Debug, Clone)]
enum State {
    Away,
    Up(Generation),
    Blocked,
}

#[derive(Debug, Clone)]
struct Generation {
    number: u64,
    connection: Arc<Connection>,
    /// Whether the broker has answered a publish.
    proven: Arc<AtomicBool>,
}

impl Link {
    /// A link that is away until [`Broker::keep`] runs.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Shared {
            settings,
            state: watch::Sender::new(State::Away),
            suspect: watch::Sender::new(Suspicion::default()),
        }))
    }
}

impl Shared {
    /// Connects, and connects again whenever the connection is lost, until `stop`; then closes it.
    ///
    /// The broker URLs are tried in turn; between attempts lies a wait that grows to [`LONGEST_WAIT`].
    async fn keep(&self, progress: &Progress, stop: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), LONGEST_WAIT);
        let mut attempt = 0;
        let mut number = 0;
        while !stop.is_cancelled() {
            let opened = tokio::select! {
                () = stop.cancelled() => break,
                opened = Connection::open(&self.settings, attempt) => opened,
            };
            let lost = match opened {
                Ok(connection) => {
                    number += 1;
                    let since = Instant::now();
                    let generation = Generation {
                        number,
                        connection: Arc::new(connection),
                        proven: Arc::default(),
                    };
                    progress.broker_connected(generation.connection.peer());
                    let lost = self.watch(&generation, progress, stop).await;
                    self.state.send_replace(State::Away);
                    generation.connection.close(CLOSE_TIMEOUT).await;
                    if since.elapsed() >= PROVEN_AFTER {
                        backoff.reset();
                    }
                    lost
                }
                Err(error) => with_causes(&error),
            };
            if stop.is_cancelled() {
                break;
            }
            attempt += 1;
            let wait = backoff.next(rand::random());
            progress.broker_lost(&lost, wait);
            debug!(error = %lost, retry_in_s = wait.as_secs_f64(), "broker connection attempt");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Follows one connection until it is lost, suspect or no longer wanted; says why.
    async fn watch(
        &self,
        generation: &Generation,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> String {
        let mut link = generation.connection.watch();
        let mut suspect = self.suspect.subscribe();
        loop {
            let state = link.borrow_and_update().clone();
            match state {
                LinkState::Up => {
                    progress.broker_unblocked(Instant::now());
                    self.state.send_replace(State::Up(generation.clone()));
                }
                LinkState::Blocked { reason } => {
                    progress.broker_blocked(&reason, Instant::now());
                    self.state.send_replace(State::Blocked);
                }
                LinkState::Lost { reason } => return reason,
            }
            tokio::select! {
                () = stop.cancelled() => return "shutting down".to_owned(),
                changed = link.changed() => {
                    if changed.is_err() {
                        return "the connection ended".to_owned();
                    }
                }
                why = suspicion(&mut suspect, generation.number) => {
                    let said = why_it_ended(generation).await;
                    return said.unwrap_or(why);
                }
            }
        }
    }

    /// Waits until the broker takes messages.
    async fn up(&self) -> Generation {
        let mut state = self.state.subscribe();
        loop {
            if let State::Up(generation) = &*state.borrow_and_update()
                && generation.number > self.suspect.borrow().generation
            {
                return generation.clone();
            }
            if state.changed().await.is_err() {
                // Unreachable while `self` holds the sender; pending is what "away" means.
                std::future::pending::<()>().await;
            }
        }
    }

    fn report_suspect(&self, generation: u64, why: &str) {
        self.suspect.send_if_modified(|newest| {
            let news = newest.generation < generation;
            if news {
                *newest = Suspicion {
                    generation,
                    why: why.to_owned(),
                };
            }
            news
        });
    }

    fn is_blocked(&self) -> bool {
        matches!(&*self.state.borrow(), State::Blocked)
    }
}

/// Waits until a worker suspects this generation or a later one; says why.
async fn suspicion(suspect: &mut watch::Receiver<Suspicion>, generation: u64) -> String {
    let suspected = suspect.wait_for(|newest| newest.generation >= generation);
    suspected
        .await
        .map_or_else(|_| String::new(), |newest| newest.why.clone())
}

/// What the broker said when it ended this connection, if it has ended. A worker that found it closing under its hands
/// may be the first to tell, and knows less.
async fn why_it_ended(generation: &Generation) -> Option<String> {
    // The library closes the channels before it calls the connection closed.
    let patience = match generation.connection.is_alive() {
        true => Duration::from_millis(100),
        false => REASON_TIMEOUT,
    };
    let mut link = generation.connection.watch();
    let lost = link.wait_for(|state| matches!(state, LinkState::Lost { .. }));
    match tokio::time::timeout(patience, lost).await {
        Ok(Ok(state)) => match &*state {
            LinkState::Lost { reason } => Some(reason.clone()),
            LinkState::Up | LinkState::Blocked { .. } => None,
        },
        Ok(Err(_)) | Err(_) => None,
    }
}

/// A worker's channel on the connection of one generation.
#[derive(Debug)]
pub struct LinkPublisher {
    link: Link,
    generation: Generation,
    publisher: Publisher,
    usable: bool,
}

impl Broker for Link {
    type Publisher = LinkPublisher;

    async fn keep(&self, progress: &Progress, stop: &CancellationToken) {
        self.0.keep(progress, stop).await;
    }

    async fn ready(&self, held: Option<LinkPublisher>) -> LinkPublisher {
        let mut held = held;
        loop {
            let generation = self.0.up().await;
            if let Some(publisher) = held.take()
                && publisher.usable
                && publisher.generation.number == generation.number
            {
                return publisher;
            }
            match generation.connection.publisher().await {
                Ok(publisher) => {
                    return LinkPublisher {
                        link: self.clone(),
                        generation,
                        publisher,
                        usable: true,
                    };
                }
                // Under an alarm the connection is not at fault, and a new one would be blocked too.
                Err(_) if self.0.is_blocked() => {}
                Err(error) => self
                    .0
                    .report_suspect(generation.number, &with_causes(&error)),
            }
        }
    }

    async fn isolated(&self) -> Option<LinkPublisher> {
        let opened = Connection::open(&self.0.settings, 0).await;
        let connection = match opened {
            Ok(connection) => Arc::new(connection),
            Err(error) => {
                debug!(error = %with_causes(&error), "no connection for messages under suspicion");
                return None;
            }
        };
        let publisher = connection.publisher().await.ok()?;
        Some(LinkPublisher {
            link: self.clone(),
            generation: Generation {
                number: NOT_THE_LINKS,
                connection,
                proven: Arc::default(),
            },
            publisher,
            usable: true,
        })
    }

    async fn blocked(&self) {
        let mut state = self.0.state.subscribe();
        let blocked = state.wait_for(|state| matches!(state, State::Blocked));
        if blocked.await.is_err() {
            // Unreachable while `self` holds the sender.
            std::future::pending::<()>().await;
        }
    }
}

impl Publish for LinkPublisher {
    type Late = postrider_rabbitmq::Late;

    async fn publish(&mut self, batch: &[Message], patience: Patience) -> Published<Self::Late> {
        // A publish that is given up half-way leaves the channel with confirms nobody awaits.
        self.usable = false;
        let published = self.publisher.publish(batch, patience).await;
        let answered = published.outcomes.iter().any(|outcome| match outcome {
            Outcome::Confirmed => true,
            Outcome::HeldBack => false,
            Outcome::Failed(failure) => failure.scope != Scope::Broker,
        });
        if answered {
            self.generation.proven.store(true, Ordering::Relaxed);
        }
        match published.channel {
            ChannelFate::Usable => self.usable = true,
            // While an alarm blocks the connection it is not at fault: a new one would be blocked as
            // well, after taking another batch into its buffers. Only the channel is given up.
            ChannelFate::ConnectionSuspect if self.link.0.is_blocked() => {}
            ChannelFate::ConnectionSuspect => {
                let why = published.outcomes.iter().find_map(|outcome| match outcome {
                    Outcome::Failed(failure)
                        if failure.scope == Scope::Broker
                            || failure.reason == Reason::ConnectionLost =>
                    {
                        Some(failure.detail.as_str())
                    }
                    Outcome::Failed(_) | Outcome::Confirmed | Outcome::HeldBack => None,
                });
                let why = why.unwrap_or("the channel ended while publishing");
                self.link.0.report_suspect(self.generation.number, why);
            }
        }
        Published {
            outcomes: published.outcomes,
            late: published.late,
        }
    }

    fn is_proven(&self) -> bool {
        self.generation.proven.load(Ordering::Relaxed)
    }
}

impl Late for postrider_rabbitmq::Late {
    fn positions(&self) -> &[usize] {
        self.positions()
    }

    async fn next(self) -> (LateNews, Option<Self>) {
        self.next().await
    }
}
