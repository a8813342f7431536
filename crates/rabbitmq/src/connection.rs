//! A connection to one of the brokers. It is never mended: when it is lost, a new one is opened.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_compat::Compat;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, ConnectionProperties};
use postrider_tls::FaultKind;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::exchanges::Exchanges;
use crate::publisher::open_channel;
use crate::renew::{Validity, keep_renewed};
use crate::secure::{Stream, last_word, secure};
use crate::settings::{Broker, Login};
use crate::socket::{self, Socket};
use crate::{ConnectError, Error, LinkState, OrderingSettings, Publisher, Settings, link};

/// How long a broker that hung up is listened to, to hear why.
const LAST_WORD: Duration = Duration::from_secs(2);

/// An open connection. Dropping it ends it at once, with everything in flight on it.
pub struct Connection {
    pub(crate) lapin: Arc<lapin::Connection>,
    socket: Socket,
    link: watch::Receiver<LinkState>,
    _follower: AbortOnDropHandle<()>,
    exchanges: Arc<Exchanges>,
    _asker: AbortOnDropHandle<()>,
    validity: Validity,
    _renewer: Option<AbortOnDropHandle<()>>,
    peer: String,
    channel_timeout: Duration,
    ordering: OrderingSettings,
}

impl Connection {
    /// Connects to the first broker that answers, trying them in turn from the one that `attempt`
    /// falls on: count the attempts, and each begins with the next broker.
    ///
    /// Takes no longer than `connect_timeout`; every broker still to be tried gets an equal share
    /// of what is left of it. A broker that was given up on keeps neither socket nor thread here,
    /// also when this future is dropped.
    ///
    /// # Errors
    /// What is wrong with each of the brokers.
    pub async fn open(settings: &Settings, attempt: usize) -> Result<Self, Error> {
        let brokers = &settings.brokers;
        let deadline = Instant::now() + settings.connect_timeout;
        let first = attempt.checked_rem(brokers.len()).unwrap_or(0);
        let mut left = u32::try_from(brokers.len()).unwrap_or(u32::MAX);
        let mut failures = Vec::new();
        let in_turn = brokers.iter().enumerate().cycle().skip(first);
        for (position, broker) in in_turn.take(brokers.len()) {
            let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left = left.saturating_sub(1);
            match Self::open_one(settings, broker, share).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failures.push((position, error)),
            }
        }
        // In the order of the settings: the same trouble has the same text at every attempt.
        failures.sort_by_key(|(position, _)| *position);
        let mut failures: Vec<_> = failures.into_iter().map(|(_, error)| error).collect();
        Err(match (failures.pop(), failures.is_empty()) {
            (Some(only), true) => Error::Connect(only),
            (last, _) => {
                failures.extend(last);
                Error::NoBroker(failures)
            }
        })
    }

    async fn open_one(
        settings: &Settings,
        broker: &Broker,
        after: Duration,
    ) -> Result<Self, ConnectError> {
        let peer = broker.peer();
        let deadline = Instant::now() + after;
        let late = |stage| ConnectError::Timeout {
            peer: peer.clone(),
            stage,
            after: settings.connect_timeout,
        };
        let (stream, socket) = timeout_at(deadline, socket::connect(&broker.host, broker.port))
            .await
            .map_err(|_| late("accept a connection"))?
            .map_err(|source| ConnectError::Unreachable {
                peer: peer.clone(),
                source,
            })?;
        let stream = match &settings.tls {
            None => AsyncTcpStream::Plain(Compat::new(stream)),
            Some(tls) => timeout_at(deadline, secure(tls, &broker.host, stream))
                .await
                .map_err(|_| late("finish the TLS handshake"))?
                .map_err(|source| ConnectError::from_tls(&peer, tls, source))?,
        };
        // From here on `socket` ends the library's thread on every way out of this function.
        let token = broker.login.token().await;
        let uri = broker.uri(settings.heartbeat, token.as_ref());
        let connected = timeout_at(deadline, handshake(uri, stream, &settings.connection_name))
            .await
            .map_err(|_| late("finish the AMQP handshake"))?;
        let lapin = match connected {
            Ok(lapin) => lapin,
            Err(source) => {
                let error =
                    ConnectError::from_handshake(&peer, broker, settings.tls.as_ref(), source);
                return Err(why_it_hung_up(settings, broker, deadline, error).await);
            }
        };
        let (link, follower) = link::follow(&lapin);
        let lapin = Arc::new(lapin);
        let (exchanges, asker) = Exchanges::new(Arc::clone(&lapin));
        let validity = Validity::of(token.as_ref());
        let renewer = match (&broker.login, token) {
            (Login::Token { file, .. }, Some(token)) => Some(keep_renewed(
                Arc::clone(&lapin),
                file.clone(),
                token,
                validity.clone(),
            )),
            (Login::Token { .. } | Login::Password { .. } | Login::Certificate, _) => None,
        };
        Ok(Self {
            lapin,
            socket,
            link,
            _follower: follower,
            exchanges,
            _asker: asker,
            validity,
            _renewer: renewer,
            peer,
            channel_timeout: settings.connect_timeout,
            ordering: settings.ordering.clone(),
        })
    }

    /// The broker, `host:port`, without secrets.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The largest frame, in bytes, that both sides agreed on.
    #[must_use]
    pub fn frame_max(&self) -> u32 {
        self.lapin.configuration().frame_max()
    }

    /// Whether the connection still stands, as far as is known here: a peer that fell silent shows
    /// after twice the heartbeat.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.lapin.status().connected()
    }

    /// Whether the broker accepts no messages on this connection for now.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.lapin.status().blocked()
    }

    /// How the connection stands, and a signal at each change. After [`LinkState::Lost`] nothing
    /// follows.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.link.clone()
    }

    /// A publisher with a channel of its own on this connection, in confirm mode.
    ///
    /// # Errors
    /// When the broker refuses the channel, the connection has ended, or `connect_timeout` passes.
    pub async fn publisher(&self) -> Result<Publisher, Error> {
        let deadline = Instant::now() + self.channel_timeout;
        let channel = timeout_at(deadline, open_channel(&self.lapin))
            .await
            .map_err(|_| Error::ChannelTimeout {
                peer: self.peer.clone(),
                after: self.channel_timeout,
            })?
            .map_err(|source| Error::Channel {
                peer: self.peer.clone(),
                source,
            })?;
        Ok(Publisher::new(
            Arc::clone(&self.lapin),
            self.link.clone(),
            Arc::clone(&self.exchanges),
            self.validity.clone(),
            self.ordering.clone(),
            channel,
        ))
    }

    /// Says goodbye to the broker, for up to `timeout`, and ends the connection in any case.
    pub async fn close(&self, timeout: Duration) {
        let goodbye = self.lapin.close(200, "OK".into());
        match tokio::time::timeout(timeout, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection had ended before it was closed"),
            Err(_) => tracing::debug!("the broker did not answer the closing of the connection"),
        }
        self.socket.shut_down();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .field("state", &*self.link.borrow())
            .finish_non_exhaustive()
    }
}

/// The reason where the broker ended a connection by TLS without one that arrived; else the error as it is.
async fn why_it_hung_up(
    settings: &Settings,
    broker: &Broker,
    deadline: Instant,
    error: ConnectError,
) -> ConnectError {
    let Some(tls) = &settings.tls else {
        return error;
    };
    match error {
        ConnectError::Tls {
            peer,
            fault,
            source,
        } if fault.kind == FaultKind::HungUp => {
            let asking = async {
                let (stream, _socket) = socket::connect(&broker.host, broker.port).await?;
                last_word(tls, &broker.host, stream).await
            };
            let until = deadline.min(Instant::now() + LAST_WORD);
            match (timeout_at(until, asking).await, &broker.login) {
                (Ok(Err(said)), _) => ConnectError::from_tls(&peer, tls, said),
                // It has nothing against the certificate, only against what came then.
                (Ok(Ok(())) | Err(_), Login::Certificate) => {
                    ConnectError::CertificateLoginRefused {
                        peer,
                        source: Box::new(source),
                    }
                }
                (Ok(Ok(())) | Err(_), Login::Password { .. } | Login::Token { .. }) => {
                    ConnectError::Tls {
                        peer,
                        fault,
                        source,
                    }
                }
            }
        }
        other => other,
    }
}

/// The AMQP handshake over a stream that is connected already, and encrypted if it is to be.
async fn handshake(
    uri: AMQPUri,
    stream: Stream,
    name: &str,
) -> Result<lapin::Connection, lapin::Error> {
    // Auto-recovery stays off: it would publish again, behind our back, what we gave up on.
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "Postrider".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let stream = Mutex::new(Some(stream));
    lapin::Connection::connector(
        uri,
        lapin::runtime::default_runtime()?,
        async move |_uri, _runtime| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected).into())
        },
        properties,
    )
    .await
}
