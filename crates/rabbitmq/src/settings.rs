//! Where the broker is and how to speak to it.

use std::fmt;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};

/// The brokers, in the order to try them, and the limits of a connection.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one, of one cluster.
    pub brokers: Vec<Broker>,
    /// The name the broker shows for the connection.
    pub connection_name: String,
    /// The interval of heartbeats in whole seconds, 1 to 65535; a silent peer is given up after twice
    /// this. The broker may ask for a shorter one.
    pub heartbeat: Duration,
    /// Bounds one attempt to connect, over all brokers together, and the opening of a channel.
    pub connect_timeout: Duration,
}

/// One broker, and who connects to it. The password is left out of the `Debug` output.
#[derive(Clone)]
pub struct Broker {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// The AMQP port.
    pub port: u16,
    /// Who logs in.
    pub username: String,
    /// With what. Secret.
    pub password: String,
    /// The virtual host, at most 255 bytes.
    pub vhost: String,
}

/// The largest frame to agree on with the broker, which may ask for less: RabbitMQ's own default.
const FRAME_MAX: u32 = 131_072;

impl Settings {
    /// These brokers, with the defaults for everything else: heartbeats every 10 s, 10 s to connect.
    #[must_use]
    pub fn new(brokers: Vec<Broker>) -> Self {
        Self {
            brokers,
            connection_name: "postrider".to_owned(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
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
    /// for localhost, and quotes the URL, with the password, in its errors.
    pub(crate) fn uri(&self, heartbeat: Duration) -> AMQPUri {
        AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.username.clone(),
                    password: self.password.clone(),
                },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(FRAME_MAX),
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

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("peer", &self.peer())
            .field("username", &self.username)
            .field("vhost", &self.vhost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(host: &str) -> Broker {
        Broker {
            host: host.to_owned(),
            port: 5673,
            username: "us@er".to_owned(),
            password: "s3cret".to_owned(),
            vhost: "orders/eu".to_owned(),
        }
    }

    #[test]
    fn what_is_set_reaches_the_library_as_it_is() {
        let uri = broker("rabbit.example").uri(Duration::from_secs(7));
        assert_eq!(uri.authority.userinfo.username, "us@er");
        assert_eq!(uri.authority.userinfo.password, "s3cret");
        assert_eq!(uri.vhost, "orders/eu");
        assert_eq!(uri.query.heartbeat, Some(7));
        assert_eq!(uri.query.frame_max, Some(FRAME_MAX));
    }

    #[test]
    fn heartbeats_are_never_off() {
        let uri = broker("h").uri(Duration::from_millis(900));
        assert_eq!(uri.query.heartbeat, Some(1));
    }

    #[test]
    fn a_peer_is_shown_without_secrets() {
        assert_eq!(broker("2001:db8::1").peer(), "[2001:db8::1]:5673");
        let shown = format!("{:?}", Settings::new(vec![broker("rabbit.example")]));
        assert!(shown.contains("rabbit.example:5673"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
