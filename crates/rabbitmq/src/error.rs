//! What can go wrong before a message is sent, and what the operator can do about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::with_causes;
use postrider_tls::{Fault, Tls};

use crate::settings::{Broker, Login};

/// Why there is no connection, or no channel on it. No variant carries a password or a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The only broker there is could not be reached.
    #[error(transparent)]
    Connect(ConnectError),
    /// None of several brokers could be reached; in the order of the settings.
    #[error("no broker can be reached: {}", .0.iter().map(|error| with_causes(error)).collect::<Vec<_>>().join("; "))]
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
    /// There is no connection by TLS.
    #[error("cannot connect to {peer}: {fault}")]
    Tls {
        /// The broker, `host:port`.
        peer: String,
        /// Which kind of trouble, and what to do about it.
        fault: Fault,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The broker knows no user by the name that it makes of the client certificate, or no login by certificate.
    #[error(
        "{peer} refused the login by client certificate: enable its plugin rabbitmq_auth_mechanism_ssl, name EXTERNAL among its auth_mechanisms, and add the user that its ssl_cert_login_from makes of the certificate; or set [broker] auth = \"plain\" with username and password"
    )]
    CertificateLoginRefused {
        /// The broker, `host:port`.
        peer: String,
        /// What the broker said, or that it hung up without a word.
        source: Box<dyn std::error::Error + Send + Sync>,
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
    /// The broker does not accept the token.
    #[error(
        "{peer} refused the token in {} ([broker] token_file){}: put one there that RabbitMQ's plugin rabbitmq_auth_backend_oauth2 accepts: valid, signed by a key that it has, with its resource_server_id in `aud`", .file.display(), has_expired(*.expired)
    )]
    TokenRefused {
        /// The broker, `host:port`.
        peer: String,
        /// The file with the token.
        file: PathBuf,
        /// It has expired, by the clock of this machine.
        expired: bool,
        /// What the broker said.
        source: lapin::Error,
    },
    /// The token gives no right to the virtual host, or a limit is reached.
    #[error(
        "{peer} refuses the token in {} ([broker] token_file) the virtual host '{vhost}': its scopes must name it (rabbitmq.write:VHOST/EXCHANGE/ROUTING_KEY), or the limit that the answer names is reached", .file.display()
    )]
    TokenVhostRefused {
        /// The broker, `host:port`.
        peer: String,
        /// The file with the token.
        file: PathBuf,
        /// The virtual host asked for.
        vhost: String,
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
        "the AMQP handshake with {peer} failed: check that it is RabbitMQ's AMQP port {port}, and the broker's log"
    )]
    Handshake {
        /// The broker, `host:port`.
        peer: String,
        /// Which of RabbitMQ's ports was expected there.
        port: &'static str,
        /// What went wrong.
        source: lapin::Error,
    },
}

impl ConnectError {
    /// Names what a failed TLS handshake means.
    pub(crate) fn from_tls(peer: &str, tls: &Tls, source: std::io::Error) -> Self {
        let peer = peer.to_owned();
        match tls.fault(&source) {
            Some(fault) => Self::Tls {
                peer,
                fault,
                source,
            },
            None => Self::Unreachable { peer, source },
        }
    }

    /// Names what a failed AMQP handshake with this broker means.
    pub(crate) fn from_handshake(
        peer: &str,
        broker: &Broker,
        tls: Option<&Tls>,
        source: lapin::Error,
    ) -> Self {
        let peer = peer.to_owned();
        let vhost = broker.vhost.as_str();
        let username = broker.login.user();
        let port = match tls {
            Some(_) => "with TLS",
            None => "without TLS (amqps:// in [broker] url is with it)",
        };
        let said = match source.kind() {
            lapin::ErrorKind::ProtocolError(said) => said,
            // By TLS 1.3 the refusal of the client's certificate comes after the client's handshake.
            lapin::ErrorKind::IOError(error) => {
                let fault = tls.and_then(|tls| tls.fault(error.as_ref()));
                return match fault {
                    Some(fault) => Self::Tls {
                        peer,
                        fault,
                        source: std::io::Error::other(Arc::clone(error)),
                    },
                    None => Self::Handshake { peer, port, source },
                };
            }
            _ => return Self::Handshake { peer, port, source },
        };
        let text = said.get_message().as_str();
        match (said.get_id(), &broker.login) {
            (403 | 504 | 541, Login::Certificate) => Self::CertificateLoginRefused {
                peer,
                source: Box::new(source),
            },
            (403, Login::Token { file, .. }) => Self::TokenRefused {
                peer,
                file: file.path().to_owned(),
                expired: file.has_expired(),
                source,
            },
            (403, Login::Password { .. }) => Self::LoginRefused {
                peer,
                username: username.to_owned(),
                source,
            },
            (530, _) if text.contains("not found") => Self::VhostMissing {
                peer,
                vhost: vhost.to_owned(),
                source,
            },
            (530, Login::Token { file, .. }) => Self::TokenVhostRefused {
                peer,
                file: file.path().to_owned(),
                vhost: vhost.to_owned(),
                source,
            },
            (530, Login::Password { .. } | Login::Certificate) => Self::VhostRefused {
                peer,
                username: username.to_owned(),
                vhost: vhost.to_owned(),
                source,
            },
            _ => Self::Handshake { peer, port, source },
        }
    }
}

fn has_expired(expired: bool) -> &'static str {
    match expired {
        true => ", which has expired",
        false => "",
    }
}
