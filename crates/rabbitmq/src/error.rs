//! What can go wrong before a message is sent, and what the operator can do about it.

use std::time::Duration;

/// Why there is no connection, or no channel on it. No variant carries a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The only broker there is could not be reached.
    #[error(transparent)]
    Connect(ConnectError),
    /// None of several brokers could be reached; in the order of the settings.
    #[error("no broker can be reached: {}", .0.iter().map(with_causes).collect::<Vec<_>>().join("; "))]
    NoBroker(Vec<ConnectError>),
    /// The broker did not open a channel, or the connection ended meanwhile.
    #[error(
        "cannot open a channel to {peer}: check the broker's log and its channel_max against [relay] workers"
    )]
    Channel {
        /// The broker, `host:port`.
        peer: String,
        /// What the broker or the connection said.
        source: lapin::Error,
    },
    /// The broker did not answer the opening of a channel in time.
    #[error("{peer} opened no channel within {after:?}: check that the broker is healthy")]
    ChannelTimeout {
        /// The broker, `host:port`.
        peer: String,
        /// How long the channel was waited for.
        after: Duration,
    },
}

/// Why one broker could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve, nobody listens, or the network is away.
    #[error("cannot reach {peer}: check [broker] url and that RabbitMQ listens there")]
    Unreachable {
        /// The broker, `host:port`.
        peer: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Nothing, or too little, was heard in time.
    #[error(
        "{peer} did not {stage} within {after:?}: check that it is RabbitMQ's AMQP port, that the broker is healthy, and [broker] connect_timeout"
    )]
    Timeout {
        /// The broker, `host:port`.
        peer: String,
        /// What was waited for.
        stage: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// User name or password are wrong, or the user may not log in from here.
    #[error(
        "{peer} refused the login of user '{username}': check [broker] username and password (the user 'guest' may only log in from the broker's own machine)"
    )]
    LoginRefused {
        /// The broker, `host:port`.
        peer: String,
        /// Who tried to log in.
        username: String,
        /// What the broker said.
        source: lapin::Error,
    },
    /// The broker has no such virtual host.
    #[error(
        "{peer} has no virtual host '{vhost}': check the end of [broker] url (amqp://host/%2f means the default one), or create it with `rabbitmqctl add_vhost`"
    )]
    VhostMissing {
        /// The broker, `host:port`.
        peer: String,
        /// The virtual host asked for.
        vhost: String,
        /// What the broker said.
        source: lapin::Error,
    },
    /// The user may not use the virtual host, or a limit is reached.
    #[error(
        "{peer} refuses user '{username}' the virtual host '{vhost}': grant it with `rabbitmqctl set_permissions`, or raise the limit that its answer names"
    )]
    VhostRefused {
        /// The broker, `host:port`.
        peer: String,
        /// Who asked.
        username: String,
        /// The virtual host asked for.
        vhost: String,
        /// What the broker said.
        source: lapin::Error,
    },
    /// The other side does not speak AMQP 0-9-1 as expected, or hung up.
    #[error(
        "the AMQP handshake with {peer} failed: check that it is RabbitMQ's AMQP port without TLS, and the broker's log"
    )]
    Handshake {
        /// The broker, `host:port`.
        peer: String,
        /// What went wrong.
        source: lapin::Error,
    },
}

impl ConnectError {
    /// Names what a failed handshake means. `username` and `vhost` are the ones it was tried with.
    pub(crate) fn from_handshake(
        peer: &str,
        username: &str,
        vhost: &str,
        source: lapin::Error,
    ) -> Self {
        let peer = peer.to_owned();
        let lapin::ErrorKind::ProtocolError(said) = source.kind() else {
            return Self::Handshake { peer, source };
        };
        let text = said.get_message().as_str();
        match said.get_id() {
            403 => Self::LoginRefused {
                peer,
                username: username.to_owned(),
                source,
            },
            530 if text.contains("not found") => Self::VhostMissing {
                peer,
                vhost: vhost.to_owned(),
                source,
            },
            530 => Self::VhostRefused {
                peer,
                username: username.to_owned(),
                vhost: vhost.to_owned(),
                source,
            },
            _ => Self::Handshake { peer, source },
        }
    }
}

fn with_causes(error: &ConnectError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}
