//! The database's URL: what it may say, and what of it may be shown.

use std::str::FromStr;

use secrecy::SecretString;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, TargetSessionAttrs};

use super::TlsMode;
use super::authority::{check, is_loopback, percent_decode, percent_encode};
use super::keys::{
    DATABASE_APPLICATION_NAME, DATABASE_CONNECT_TIMEOUT, DATABASE_TCP_USER_TIMEOUT,
    DATABASE_TLS_CA_FILE, DATABASE_TLS_CERT_FILE, DATABASE_TLS_KEY_FILE, DATABASE_TLS_MODE,
    KeyName,
};
use super::kind::{Given, Kind as _};

/// What is known of the database from its URL alone.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseUrl {
    /// The URL without `sslmode`, of which the client library knows half the words only.
    pub(crate) url: SecretString,
    /// What `sslmode` says, if it is there.
    pub(crate) sslmode: Option<TlsMode>,
    /// Whether the login has to be bound to the server's certificate.
    pub(crate) channel_binding: bool,
    /// Whether every host is this machine.
    pub(crate) local: bool,
    /// Whether one of them is a Unix socket, which knows no TLS.
    pub(crate) unix_socket: bool,
    /// The URL with `***` for the password and without its parameters.
    pub(crate) shown: String,
    /// The database's name, by PostgreSQL's rule the user's when the URL has none.
    pub(crate) database: Option<String>,
}

/// Checks the URL. The message never quotes it.
pub(crate) fn parse(url: &str) -> Result<DatabaseUrl, String> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or("is not a PostgreSQL URL: write postgres://USER:PASSWORD@HOST:PORT/DATABASE")?;
    check(rest)?;
    let mut sslmode = None;
    let mut url = url.to_owned();
    if let Some((_, parameters)) = rest.split_once('?') {
        let mut kept = Vec::new();
        for parameter in parameters.split('&') {
            match sslmode_of(parameter)? {
                None => {
                    check_parameter(parameter)?;
                    kept.push(parameter);
                }
                Some(mode) if sslmode.replace(mode).is_none() => {}
                Some(_) => return Err("has the parameter `sslmode` twice".to_owned()),
            }
        }
        let base = url.split_once('?').map_or("", |(base, _)| base);
        url = match kept.is_empty() {
            true => base.to_owned(),
            false => format!("{base}?{}", kept.join("&")),
        };
    }
    let config = Config::from_str(&url).map_err(|error| {
        // Only errors whose text is known to hold nothing of the URL are passed on.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        match cause {
            Some(cause) if cause.starts_with("invalid value for option") => {
                format!("is not usable: {cause}")
            }
            _ => "is not usable: write postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned(),
        }
    })?;
    if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
        return Err(
            "`target_session_attrs=read-only` cannot work: sent rows are deleted".to_owned(),
        );
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(
            "names no host: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, or \
             postgres:///DATABASE?host=/var/run/postgresql for a local socket"
                .to_owned(),
        );
    }
    Ok(DatabaseUrl {
        sslmode,
        channel_binding: config.get_channel_binding() == ChannelBinding::Require,
        local: is_local(&config),
        unix_socket: config
            .get_hosts()
            .iter()
            .any(|host| matches!(host, Host::Unix(_))),
        shown: shown(&config),
        database: config.get_dbname().or(config.get_user()).map(str::to_owned),
        url: SecretString::from(url),
    })
}

/// An address, where one is given, decides where a connection goes, and not the name beside it.
fn is_local(config: &Config) -> bool {
    if config.get_hostaddrs().is_empty() {
        config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => is_loopback(name),
            Host::Unix(_) => true,
        })
    } else {
        config
            .get_hostaddrs()
            .iter()
            .all(|address| is_loopback(&address.to_string()))
    }
}

/// The mode, if this parameter is `sslmode`.
fn sslmode_of(parameter: &str) -> Result<Option<TlsMode>, String> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    if percent_decode(name).as_deref() != Some("sslmode") {
        return Ok(None);
    }
    match percent_decode(value).as_deref() {
        Some("allow" | "prefer") => Err(
            "has an `sslmode` that goes on in plain text where the server has no TLS: write disable, require, verify-ca or verify-full"
                .to_owned(),
        ),
        value => DATABASE_TLS_MODE
            .kind
            .parse(&Given::Variable(value.unwrap_or_default().to_owned()))
            .map(Some)
            // Its value is not quoted: in a URL anything may be a piece of the password.
            .map_err(|_| {
                "has an `sslmode` that is not one of disable, require, verify-ca, verify-full"
                    .to_owned()
            }),
    }
}

fn check_parameter(parameter: &str) -> Result<(), String> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let name = percent_decode(name).unwrap_or_default();
    let key_instead = |key: KeyName| {
        Err(format!(
            "has the parameter `{name}`: set {key} (or {}) instead",
            key.variable()
        ))
    };
    match name.as_str() {
        "sslrootcert" => key_instead(DATABASE_TLS_CA_FILE.name),
        "sslcert" => key_instead(DATABASE_TLS_CERT_FILE.name),
        "sslkey" => key_instead(DATABASE_TLS_KEY_FILE.name),
        "connect_timeout" => key_instead(DATABASE_CONNECT_TIMEOUT.name),
        "tcp_user_timeout" => key_instead(DATABASE_TCP_USER_TIMEOUT.name),
        "application_name" => key_instead(DATABASE_APPLICATION_NAME.name),
        "target_session_attrs" if value == "read-write" => Ok(()),
        "user" | "password" | "dbname" | "host" | "hostaddr" | "port" | "options"
        | "channel_binding" | "load_balance_hosts" => Ok(()),
        _ => Err(
            "has a parameter behind `?` that is not known here; known are user, password, dbname, host, \
             hostaddr, port, options, channel_binding, load_balance_hosts, target_session_attrs=read-write, \
             sslmode"
                .to_owned(),
        ),
    }
}

/// Built from the parts that may be seen, instead of hiding what must not be: nothing can slip through.
fn shown(config: &Config) -> String {
    let mut text = "postgres://".to_owned();
    if let Some(user) = config.get_user() {
        text.push_str(&percent_encode(user));
        if config.get_password().is_some() {
            text.push_str(":***");
        }
        text.push('@');
    }
    let hosts: Vec<_> = if config.get_hosts().is_empty() {
        config
            .get_hostaddrs()
            .iter()
            .map(ToString::to_string)
            .collect()
    } else {
        config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string().replace('/', "%2F"),
            })
            .collect()
    };
    let ports = config.get_ports();
    let hosts: Vec<_> = hosts
        .iter()
        .enumerate()
        .map(|(i, host)| match ports.get(i).or(ports.first()) {
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        })
        .collect();
    text.push_str(&hosts.join(","));
    if let Some(database) = config.get_dbname() {
        text.push('/');
        text.push_str(&percent_encode(database));
    }
    text
}
