//! Where the broker is and how to speak to it, checked before anything is connected.

use std::fmt;
use std::time::Duration;

use lapin::uri::{AMQPQueryString, AMQPScheme, AMQPUri};

/// Where the broker is, who asks, and the limits of the connection.
///
/// The URLs and the password are left out of the `Debug` output.
#[derive(Clone)]
pub struct Settings {
    /// The brokers, `amqp://user:password@host:port/vhost`, in the order to try them. Secret.
    pub urls: Vec<String>,
    /// Takes the place of the user name in every URL.
    pub username: Option<String>,
    /// Takes the place of the password in every URL. Secret.
    pub password: Option<String>,
    /// Takes the place of the virtual host in every URL.
    pub vhost: Option<String>,
    /// The name the broker shows for the connection.
    pub connection_name: String,
    /// The interval of heartbeats in whole seconds; a silent peer is given up after twice this. The
    /// broker may ask for a shorter one.
    pub heartbeat: Duration,
    /// Bounds one attempt to connect, over all brokers together, and the opening of a channel.
    pub connect_timeout: Duration,
    /// The largest frame in bytes to agree on with the broker, which may ask for less.
    pub frame_max: u32,
}

/// A setting that can never lead to a connection. Never carries the URL: it holds the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// There is no URL at all.
    #[error("no broker is given: set [broker] url")]
    NoUrl,
    /// `amqps://`.
    #[error("broker URL {position}: TLS to the broker is not supported yet: use amqp://")]
    Tls {
        /// Which of the URLs, from 1.
        position: usize,
    },
    /// Another scheme than `amqp`.
    #[error("broker URL {position}: it has to start with amqp://")]
    Scheme {
        /// Which of the URLs, from 1.
        position: usize,
    },
    /// The URL cannot be taken apart.
    #[error(
        "broker URL {position}: {problem}: write amqp://user:password@host:port/vhost, with special characters in user, password and virtual host percent-encoded"
    )]
    Url {
        /// Which of the URLs, from 1.
        position: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A value that AMQP cannot carry.
    #[error("broker {name}: {problem}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// One broker, parsed. Holds the password: no `Debug`.
pub(crate) struct Broker {
    /// Host name or address, IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) uri: AMQPUri,
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
}

impl Settings {
    /// The smallest frame a broker has to accept; RabbitMQ 4 refuses to agree on less.
    pub const SMALLEST_FRAME: u32 = 8192;

    /// These brokers, with the defaults for everything else: heartbeats every 10 s, 10 s to connect,
    /// frames of 128 KiB (RabbitMQ's own default).
    #[must_use]
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            username: None,
            password: None,
            vhost: None,
            connection_name: "postrider".to_owned(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            frame_max: 131_072,
        }
    }

    /// Checks everything that can be checked without a network.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn check(&self) -> Result<(), Vec<SettingsError>> {
        self.brokers().map(|_| ())
    }

    /// What is allowed but probably not meant, one sentence each, without secrets.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (position, text) in (1..).zip(&self.urls) {
            let Ok(url) = url::Url::parse(text) else {
                continue;
            };
            if url.path() == "/" && self.vhost.is_none() {
                warnings.push(format!(
                    "broker URL {position} ends in '/': that names the virtual host with the empty name; leave the '/' out, or write '/%2f', for the default virtual host"
                ));
            }
            let ignored: Vec<_> = url.query_pairs().map(|(key, _)| key.into_owned()).collect();
            if !ignored.is_empty() {
                warnings.push(format!(
                    "broker URL {position}: its parameters are ignored ({}): use the settings of [broker]",
                    ignored.join(", ")
                ));
            }
        }
        warnings
    }

    /// The brokers, each `host:port`, without secrets; URLs that do not parse are left out.
    #[must_use]
    pub fn peers(&self) -> Vec<String> {
        (1..)
            .zip(&self.urls)
            .filter_map(|(position, url)| self.broker(position, url).ok())
            .map(|broker| broker.peer())
            .collect()
    }

    pub(crate) fn brokers(&self) -> Result<Vec<Broker>, Vec<SettingsError>> {
        let mut errors = self.impossible_values();
        let mut brokers = Vec::with_capacity(self.urls.len());
        for (position, url) in (1..).zip(&self.urls) {
            match self.broker(position, url) {
                Ok(broker) => brokers.push(broker),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(brokers)
        } else {
            Err(errors)
        }
    }

    fn impossible_values(&self) -> Vec<SettingsError> {
        let mut errors = Vec::new();
        if self.urls.is_empty() {
            errors.push(SettingsError::NoUrl);
        }
        let mut refuse = |wrong: bool, name, problem| {
            if wrong {
                errors.push(SettingsError::Value { name, problem });
            }
        };
        refuse(
            !(1..=u64::from(u16::MAX)).contains(&self.heartbeat.as_secs()),
            "heartbeat",
            "it has to lie between 1 and 65535 seconds: without heartbeats a dead peer is not noticed",
        );
        refuse(
            self.connect_timeout.is_zero(),
            "connect_timeout",
            "it has to be longer than nothing",
        );
        refuse(
            self.frame_max < Self::SMALLEST_FRAME,
            "frame_max",
            "it has to be at least 8192 bytes",
        );
        errors
    }

    fn broker(&self, position: usize, text: &str) -> Result<Broker, SettingsError> {
        let wrong = |problem: &str| SettingsError::Url {
            position,
            problem: problem.to_owned(),
        };
        let url = url::Url::parse(text).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => SettingsError::Scheme { position },
            other => wrong(&other.to_string()),
        })?;
        match url.scheme() {
            "amqp" => {}
            "amqps" => return Err(SettingsError::Tls { position }),
            _ => return Err(SettingsError::Scheme { position }),
        }
        let host = match url.host() {
            Some(url::Host::Domain("")) | None => return Err(wrong("it names no host")),
            Some(url::Host::Domain(name)) => name.to_owned(),
            Some(url::Host::Ipv4(address)) => address.to_string(),
            // The library's own parser takes an IPv6 address for no host at all, and "localhost".
            Some(url::Host::Ipv6(address)) => address.to_string(),
        };
        // The parameters are ours to set, and a bad one makes the library's parser fail.
        let mut plain = url.clone();
        plain.set_query(None);
        let mut uri: AMQPUri = plain
            .as_str()
            .parse()
            .map_err(|_| wrong("user, password or virtual host are no percent-encoded UTF-8"))?;
        uri.scheme = AMQPScheme::AMQP;
        if let Some(username) = &self.username {
            uri.authority.userinfo.username.clone_from(username);
        }
        if let Some(password) = &self.password {
            uri.authority.userinfo.password.clone_from(password);
        }
        if let Some(vhost) = &self.vhost {
            uri.vhost.clone_from(vhost);
        }
        if uri.vhost.len() > 255 {
            return Err(wrong("the virtual host's name is longer than 255 bytes"));
        }
        uri.query = AMQPQueryString {
            frame_max: Some(self.frame_max),
            heartbeat: u16::try_from(self.heartbeat.as_secs()).ok(),
            ..AMQPQueryString::default()
        };
        Ok(Broker {
            host,
            port: uri.authority.port,
            uri,
        })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("peers", &self.peers())
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "redacted"))
            .field("vhost", &self.vhost)
            .field("connection_name", &self.connection_name)
            .field("heartbeat", &self.heartbeat)
            .field("connect_timeout", &self.connect_timeout)
            .field("frame_max", &self.frame_max)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(url: &str) -> Settings {
        Settings::new(vec![url.to_owned()])
    }

    fn parsed(url: &str) -> Broker {
        one(url).brokers().unwrap().remove(0)
    }

    #[test]
    fn a_url_says_user_password_host_port_and_virtual_host() {
        let broker = parsed("amqp://us%40er:p%2Fw@rabbit.example:5673/orders%2Feu");
        assert_eq!(broker.peer(), "rabbit.example:5673");
        assert_eq!(broker.uri.authority.userinfo.username, "us@er");
        assert_eq!(broker.uri.authority.userinfo.password, "p/w");
        assert_eq!(broker.uri.vhost, "orders/eu");
        assert_eq!(broker.uri.query.heartbeat, Some(10));
        assert_eq!(broker.uri.query.frame_max, Some(131_072));
    }

    #[test]
    fn an_ipv6_address_is_not_mistaken_for_localhost() {
        let broker = parsed("amqp://[2001:db8::1]:5673");
        assert_eq!(broker.host, "2001:db8::1");
        assert_eq!(broker.peer(), "[2001:db8::1]:5673");
    }

    #[test]
    fn the_end_of_the_url_names_the_virtual_host_and_a_bare_slash_is_warned_of() {
        assert_eq!(parsed("amqp://h").uri.vhost, "/");
        assert_eq!(parsed("amqp://h/%2f").uri.vhost, "/");
        assert_eq!(parsed("amqp://h/").uri.vhost, "");
        assert!(one("amqp://h").warnings().is_empty());
        assert!(one("amqp://h/").warnings().concat().contains("empty name"));
        let mut settings = one("amqp://h/");
        settings.vhost = Some("orders".to_owned());
        assert!(settings.warnings().is_empty());
        assert_eq!(settings.brokers().unwrap().remove(0).uri.vhost, "orders");
    }

    #[test]
    fn user_and_password_of_their_own_win_over_those_in_the_url() {
        let mut settings = one("amqp://a:b@h");
        settings.username = Some("c".to_owned());
        settings.password = Some("d".to_owned());
        let broker = settings.brokers().unwrap().remove(0);
        assert_eq!(broker.uri.authority.userinfo.username, "c");
        assert_eq!(broker.uri.authority.userinfo.password, "d");
    }

    #[test]
    fn parameters_in_the_url_are_ignored_and_said_to_be() {
        let settings = one("amqp://h?heartbeat=many&frame_max=1");
        assert!(settings.check().is_ok());
        assert!(
            settings
                .warnings()
                .concat()
                .contains("heartbeat, frame_max")
        );
    }

    #[test]
    fn every_wrong_setting_is_reported_at_once_and_none_shows_the_password() {
        let mut settings = Settings::new(
            [
                "amqps://u:s3cret@h",
                "http://u:s3cret@h",
                "amqp://u:s3cret#x@h",
                "u:s3cret@h",
                "amqp://u:s3cret@",
                "amqp://u:%ffs3cret@h",
                "amqp:u:s3cret",
            ]
            .map(str::to_owned)
            .to_vec(),
        );
        settings.password = Some("s3cret".to_owned());
        settings.heartbeat = Duration::from_millis(900);
        settings.frame_max = 100;
        settings.connect_timeout = Duration::ZERO;
        let errors = settings.check().unwrap_err();
        assert_eq!(errors.len(), 10, "{errors:?}");
        let everything = format!(
            "{errors:?} {} {settings:?} {:?}",
            crate::Error::Settings(errors.clone()),
            settings.warnings()
        );
        assert!(!everything.contains("s3cret"), "{everything}");
        assert!(everything.contains("TLS to the broker is not supported yet"));
        assert_eq!(
            Settings::new(vec![]).check().unwrap_err(),
            [SettingsError::NoUrl]
        );
    }
}
