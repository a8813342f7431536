//! A broker's URL, taken apart.
//!
//! Not left to the AMQP library's parser: it takes `amqp://[::1]/` for localhost and `amqp://host/`
//! for the virtual host with the empty name, and its errors quote the URL with the password.

use std::fmt;

use postrider_rabbitmq::TokenFile;
use secrecy::SecretString;
use url::{Host, Url};

use super::authority::{check, percent_decode, percent_encode};
use super::keys::{BROKER_CONNECT_TIMEOUT, BROKER_HEARTBEAT};

/// One RabbitMQ node, and who connects to it.
#[derive(Debug, Clone)]
pub(crate) struct BrokerEndpoint {
    /// Whether by TLS: `amqps://`.
    pub(crate) tls: bool,
    /// Host name or IP address, an IPv6 address without brackets.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
    /// Who connects.
    pub(crate) login: BrokerLogin,
    /// The virtual host, decoded; `/` when the URL has none.
    pub(crate) vhost: String,
}

/// Who connects to a broker.
#[derive(Debug, Clone)]
pub(crate) enum BrokerLogin {
    /// A user with a password.
    Password {
        /// The user; RabbitMQ's `guest` when nobody says another.
        username: String,
        /// The password; `guest` when nobody says another. Never printed.
        password: SecretString,
    },
    /// Whoever the client certificate says.
    Certificate,
    /// Whoever the token in a file says.
    Token {
        /// The user, if somebody named one: RabbitMQ goes by the token.
        username: Option<String>,
        /// Where the token is.
        file: TokenFile,
    },
}

/// What one URL says.
#[derive(Debug, Clone)]
pub(crate) struct BrokerUrl {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) vhost: String,
}

impl BrokerUrl {
    /// The node, with this login.
    pub(crate) fn with_login(self, login: BrokerLogin) -> BrokerEndpoint {
        BrokerEndpoint {
            tls: self.tls,
            host: self.host,
            port: self.port,
            login,
            vhost: self.vhost,
        }
    }

    /// The user and password of the URL, each `guest` where it has none, as RabbitMQ's clients have it.
    pub(crate) fn password_login(&self) -> BrokerLogin {
        BrokerLogin::Password {
            username: self.username.clone().unwrap_or_else(|| "guest".to_owned()),
            password: self
                .password
                .clone()
                .unwrap_or_else(|| SecretString::from("guest")),
        }
    }
}

/// The URL without its password.
impl fmt::Display for BrokerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "amqps://" } else { "amqp://" })?;
        match &self.login {
            BrokerLogin::Password { username, .. }
            | BrokerLogin::Token {
                username: Some(username),
                ..
            } => write!(f, "{}:***@", percent_encode(username))?,
            BrokerLogin::Certificate | BrokerLogin::Token { username: None, .. } => {}
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        write!(f, ":{}/{}", self.port, percent_encode(&self.vhost))
    }
}

const FORM: &str = "write amqps://USER:PASSWORD@HOST:PORT/VHOST, or amqp:// without TLS";

/// Takes the URL apart. The message never quotes it.
pub(crate) fn parse(text: &str) -> Result<BrokerUrl, String> {
    let (tls, rest) = match (text.strip_prefix("amqps://"), text.strip_prefix("amqp://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(format!("is not a RabbitMQ URL: {FORM}")),
    };
    check(rest)?;
    let unusable = || format!("is not usable: {FORM}");
    // The parse error is one of a fixed set of texts, none of which quotes its input.
    let url = Url::parse(text).map_err(|error| format!("is not usable ({error}): {FORM}"))?;
    let decode = |text: &str| percent_decode(text).ok_or_else(unusable);
    if url.fragment().is_some() {
        return Err(format!("has a `#`, which must be written as %23: {FORM}"));
    }
    if let Some((name, _)) = url.query_pairs().next() {
        let instead = |key: super::keys::KeyName| format!("set {key} (or {})", key.variable());
        return Err(match name.as_ref() {
            "heartbeat" => format!(
                "has the parameter `heartbeat`: {} instead",
                instead(BROKER_HEARTBEAT.name)
            ),
            "connection_timeout" => format!(
                "has the parameter `connection_timeout`: {} instead",
                instead(BROKER_CONNECT_TIMEOUT.name)
            ),
            _ => "has parameters behind `?`: none is supported".to_owned(),
        });
    }
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Domain(name)) if !name.is_empty() && !name.contains('%') => name.to_owned(),
        Some(Host::Domain(_)) | None => return Err(format!("names no host: {FORM}")),
    };
    let vhost = match url.path() {
        "" | "/" => "/".to_owned(),
        path => decode(path.strip_prefix('/').unwrap_or(path))?,
    };
    let username = match url.username() {
        "" => None,
        name => Some(decode(name)?),
    };
    let password = url.password().map(decode).transpose()?;
    Ok(BrokerUrl {
        tls,
        host,
        port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
        username,
        password: password.map(SecretString::from),
        vhost,
    })
}
