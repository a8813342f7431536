//! A broker's URL, taken apart.
//!
//! Not left to the AMQP library's parser: it takes `amqp://[::1]/` for localhost and `amqp://host/`
//! for the virtual host with the empty name, and its errors quote the URL with the password.

use std::fmt;

use secrecy::SecretString;
use url::{Host, Url};

use super::authority::{check, percent_decode, percent_encode};
use super::keys::{BROKER_CONNECT_TIMEOUT, BROKER_HEARTBEAT};

/// One RabbitMQ node, and who connects to it.
#[derive(Debug, Clone)]
pub(crate) struct BrokerEndpoint {
    /// Host name or IP address, an IPv6 address without brackets.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
    /// The user; RabbitMQ's `guest` when nobody says another.
    pub(crate) username: String,
    /// The password; `guest` when nobody says another. Never printed.
    pub(crate) password: SecretString,
    /// The virtual host, decoded; `/` when the URL has none.
    pub(crate) vhost: String,
}

/// The URL without its password.
impl fmt::Display for BrokerEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        write!(
            f,
            "amqp://{}:***@{host}:{}/{}",
            percent_encode(&self.username),
            self.port,
            percent_encode(&self.vhost)
        )
    }
}

const FORM: &str = "write amqp://USER:PASSWORD@HOST:PORT/VHOST";

/// Takes the URL apart. The message never quotes it.
pub(crate) fn parse(text: &str) -> Result<BrokerEndpoint, String> {
    if text.starts_with("amqps://") {
        return Err(
            "TLS to RabbitMQ (amqps://) is not supported by this version: use amqp:// over a network you trust"
                .to_owned(),
        );
    }
    let rest = text
        .strip_prefix("amqp://")
        .ok_or_else(|| format!("is not a RabbitMQ URL: {FORM}"))?;
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
        "" => "guest".to_owned(),
        name => decode(name)?,
    };
    let password = match url.password() {
        Some(password) => decode(password)?,
        None => "guest".to_owned(),
    };
    Ok(BrokerEndpoint {
        host,
        port: url.port().unwrap_or(5672),
        username,
        password: SecretString::from(password),
        vhost,
    })
}
