//! The wake-up, and the relay's presence: one session beside the pool.
//!
//! The session listens on the channel the insert trigger notifies, and holds a shared advisory lock
//! that nobody waits for: who holds it is a relay connected now. A wake-up is only a hint; the table
//! is the truth, and is polled under it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};

use crate::database::Database;
use crate::encrypt::{Encrypted, Encryption};
use crate::error::Error;
use crate::presence;

/// How often the session is asked for a sign of life. With the answer's own timeout it bounds how
/// long a dead session goes unnoticed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long the answer to a heartbeat may take.
const HEARTBEAT_ANSWER: Duration = Duration::from_secs(10);

/// How many notifications one wake-up swallows at most, so that a flood of them cannot keep it from
/// returning.
const COALESCED: usize = 1000;

type Answer = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A session that is told of inserts and shows that this relay is connected.
///
/// Nothing happens in it unless [`Listener::next`] is awaited: keep a task in it. Dropped, it closes
/// the session.
pub struct Listener {
    client: Arc<Client>,
    connection: Connection<Socket, Encrypted>,
    heartbeat: Interval,
    /// The heartbeat under way. Kept here, so that a cancelled `next` loses nothing.
    answer: Option<Answer>,
}

impl Listener {
    /// Opens the session, shows the relay's presence and, with `notify`, listens.
    ///
    /// The relay's name is shown in `pg_stat_activity.application_name`, after the application's name;
    /// together they are cut at 63 bytes.
    ///
    /// # Errors
    /// What connecting and querying can fail with.
    pub async fn connect(database: &Database, relay: &str, notify: bool) -> Result<Self, Error> {
        const DOING: &str = "open the listening session";
        let timeout = database.connect_timeout();
        let opening = async {
            let mut config = database.config().clone();
            config.application_name(presence::application_name(
                database.application_name(),
                relay,
            ));
            let encryption = Encryption::of(database.tls()).await;
            let (client, connection) = config
                .connect(encryption)
                .await
                .map_err(|error| Error::connect(error, database.tls()))?;
            let mut heartbeat = tokio::time::interval(HEARTBEAT);
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heartbeat.reset();
            let mut listener = Self {
                client: Arc::new(client),
                connection,
                heartbeat,
                answer: None,
            };
            let (class, object) = presence::lock_key(database.schema());
            // Nobody ever takes it exclusively: this cannot wait.
            let mut setup = format!(
                "{}; SELECT pg_advisory_lock_shared({class}, {object})",
                database.session()
            );
            if notify {
                setup.push_str("; LISTEN ");
                setup.push_str(&database.schema().wakeup_channel());
            }
            let client = Arc::clone(&listener.client);
            let executed: Answer = Box::pin(async move {
                client
                    .batch_execute(&setup)
                    .await
                    .map_err(|error| Error::query(DOING, error))
            });
            listener.drive(executed).await?;
            Ok(listener)
        };
        // Several hosts are tried one after the other.
        let hosts = database.config().get_hosts().len().max(1);
        let waited = timeout * u32::try_from(hosts).unwrap_or(1) + Duration::from_secs(5);
        tokio::time::timeout(waited, opening)
            .await
            .unwrap_or(Err(Error::NoAnswer {
                doing: DOING,
                waited,
            }))
    }

    /// Waits for the next wake-up; several that came together are one. It is also what keeps the
    /// session alive and notices when it is not. Cancel-safe: a wake-up is not lost with the future.
    ///
    /// # Errors
    /// The session is over, or gave no sign of life within about 20 seconds: connect a new one, and
    /// poll at once, as wake-ups may have been missed.
    pub async fn next(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_heartbeat(cx)?;
        let mut woken = false;
        for _ in 0..COALESCED {
            match self.poll_connection(cx)? {
                Poll::Ready(is_notification) => woken |= is_notification,
                Poll::Pending if woken => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        if !woken {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the next message of the server is a wake-up.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Result<Poll<bool>, Error> {
        const DOING: &str = "listen for wake-ups";
        match self.connection.poll_message(cx) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Some(Ok(AsyncMessage::Notification(_)))) => Ok(Poll::Ready(true)),
            Poll::Ready(Some(Ok(_))) => Ok(Poll::Ready(false)),
            Poll::Ready(Some(Err(error))) => Err(Error::query(DOING, error)),
            Poll::Ready(None) => Err(Error::SessionEnded),
        }
    }

    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        loop {
            if let Some(answer) = &mut self.answer {
                match answer.as_mut().poll(cx) {
                    Poll::Ready(result) => {
                        self.answer = None;
                        result?;
                    }
                    Poll::Pending => return Ok(()),
                }
            }
            if self.heartbeat.poll_tick(cx).is_pending() {
                return Ok(());
            }
            let client = Arc::clone(&self.client);
            self.answer = Some(Box::pin(async move {
                const DOING: &str = "get a sign of life from the listening session";
                tokio::time::timeout(HEARTBEAT_ANSWER, client.batch_execute("SELECT 1"))
                    .await
                    .map_err(|_| Error::NoAnswer {
                        doing: DOING,
                        waited: HEARTBEAT_ANSWER,
                    })?
                    .map_err(|error| Error::query(DOING, error))
            }));
        }
    }

    /// Awaits an answer of this session while driving it.
    async fn drive(&mut self, mut answer: Answer) -> Result<(), Error> {
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = answer.as_mut().poll(cx) {
                    return Poll::Ready(result);
                }
                if self.poll_connection(cx)?.is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}
