//! Where the broker is and how to speak to it.

use std::fmt;
use std::time::Duration;

use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use postrider_tls::Tls;

use crate::OrderingSettings;
use crate::token::{Token, TokenFile};

/// The brokers, in the order to try them, and the limits of a connection.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one, of one cluster.
    pub brokers: Vec<Broker>,
    /// How to encrypt, and what to verify, for all of them; `None` for plain text.
    pub tls: Option<Tls>,
    /// The name the broker shows for the connection.
    pub connection_name: String,
    /// The interval of heartbeats in whole seconds, 1 to 65535; a silent peer is given up after twice
    /// this. The broker may ask for a shorter one.
    pub heartbeat: Duration,
    /// Bounds one attempt to connect, over all brokers together, and the opening of a channel.
    pub connect_timeout: Duration,
    /// How messages with an ordering key are sent.
    pub ordering: OrderingSettings,
}

/// One broker, and who connects to it.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// The AMQP port.
    pub port: u16,
    /// Who logs in.
    pub login: Login,
    /// The virtual host, at most 255 bytes.
    pub vhost: String,
}

/// Who logs in, and by which mechanism of SASL. Password and token are left out of the `Debug` output.
#[derive(Clone)]
pub enum Login {
    /// A user with a password: PLAIN.
    Password {
        /// The user.
        username: String,
        /// With what. Secret.
        password: String,
    },
    /// Whoever the client certificate says: EXTERNAL. The broker makes a user's name of it, by its
    /// `ssl_cert_login_from`; it needs the plugin `rabbitmq_auth_mechanism_ssl`.
    Certificate,
    /// Whoever the token in a file says: PLAIN, with the token for a password. The broker needs its plugin
    /// `rabbitmq_auth_backend_oauth2`. A new token is handed to the open connection.
    Token {
        /// The user, which that plugin does not look at.
        username: String,
        /// Where the token is.
        file: TokenFile,
    },
}

/// The largest frame to agree on with the broker, which may ask for less: RabbitMQ's own default.
const FRAME_MAX: u32 = 131_072;

impl Settings {
    /// These brokers, with the defaults for everything else: plain text, heartbeats every 10 s, 10 s to connect,
    /// and those of [`OrderingSettings`].
    #[must_use]
    pub fn new(brokers: Vec<Broker>) -> Self {
        Self {
            brokers,
            tls: None,
            connection_name: "postrider".to_owned(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            ordering: OrderingSettings::default(),
        }
    }
}

impl Broker {
    /// `host:port`, safe to show.
    pub(crate) fn peer(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// What the AMQP library wants to know. Built and not parsed: its parser takes an IPv6 address
    /// for localhost, and quotes the URL, with the password, in its errors. `token` is that of the login's file.
    pub(crate) fn uri(&self, heartbeat: Duration, token: Option<&Token>) -> AMQPUri {
        let (username, password, mechanism) = match &self.login {
            Login::Password { username, password } => {
                (username.clone(), password.clone(), SASLMechanism::Plain)
            }
            Login::Certificate => (String::new(), String::new(), SASLMechanism::External),
            Login::Token { username, .. } => {
                let password = token.map_or("", Token::secret).to_owned();
                (username.clone(), password, SASLMechanism::Plain)
            }
        };
        AMQPUri {
            // Of the stream it is given the library is told nothing by this.
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(FRAME_MAX),
                auth_mechanism: Some(mechanism),
                // The library's own default is none: a dead peer would never be noticed.
                heartbeat: Some(
                    u16::try_from(heartbeat.as_secs())
                        .unwrap_or(u16::MAX)
                        .max(1),
                ),
                ..AMQPQueryString::default()
            },
        }
    }
}

impl Login {
    /// The token to log in with now, where it is by one.
    pub(crate) async fn token(&self) -> Option<Token> {
        match self {
            Self::Token { file, .. } => Some(file.current().await),
            Self::Password { .. } | Self::Certificate => None,
        }
    }

    /// The user as far as it is known here, safe to show.
    pub(crate) fn user(&self) -> &str {
        match self {
            Self::Password { username, .. } => username,
            Self::Certificate => "of the client certificate",
            Self::Token { .. } => "of the token",
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => f
                .debug_struct("Password")
                .field("username", username)
                .finish_non_exhaustive(),
            Self::Certificate => f.write_str("Certificate"),
            Self::Token { username, file } => f
                .debug_struct("Token")
                .field("username", username)
                .field("file", file)
                .finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(host: &str) -> Broker {
        Broker {
            host: host.to_owned(),
            port: 5673,
            login: Login::Password {
                username: "us@er".to_owned(),
                password: "s3cret".to_owned(),
            },
            vhost: "orders/eu".to_owned(),
        }
    }

    #[test]
    fn what_is_set_reaches_the_library_as_it_is() {
        let uri = broker("rabbit.example").uri(Duration::from_secs(7), None);
        assert_eq!(uri.authority.userinfo.username, "us@er");
        assert_eq!(uri.authority.userinfo.password, "s3cret");
        assert_eq!(uri.vhost, "orders/eu");
        assert_eq!(uri.query.heartbeat, Some(7));
        assert_eq!(uri.query.frame_max, Some(FRAME_MAX));
    }

    #[test]
    fn a_login_by_certificate_names_nobody() {
        let broker = Broker {
            login: Login::Certificate,
            ..broker("h")
        };
        let uri = broker.uri(Duration::from_secs(7), None);
        assert_eq!(uri.query.auth_mechanism, Some(SASLMechanism::External));
        assert_eq!(uri.authority.userinfo.username, "");
    }

    #[test]
    fn heartbeats_are_never_off() {
        let uri = broker("h").uri(Duration::from_millis(900), None);
        assert_eq!(uri.query.heartbeat, Some(1));
    }

    #[test]
    fn a_peer_is_shown_without_secrets() {
        assert_eq!(broker("2001:db8::1").peer(), "[2001:db8::1]:5673");
        let shown = format!("{:?}", Settings::new(vec![broker("rabbit.example")]));
        assert!(shown.contains("rabbit.example"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
