//! The database's URL: what it may say, and what of it may be shown.

use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::authority::{check, percent_decode, percent_encode};
use super::keys::{
    DATABASE_APPLICATION_NAME, DATABASE_CONNECT_TIMEOUT, DATABASE_TCP_USER_TIMEOUT, KeyName,
};

/// What is known of the database from its URL alone, without the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatabaseUrl {
    /// The URL with `***` for the password and without its parameters.
    pub(crate) shown: String,
    /// The database's name, by PostgreSQL's rule the user's when the URL has none.
    pub(crate) database: Option<String>,
}

const NO_TLS: &str = "TLS to PostgreSQL is not supported by this version: leave `sslmode` out or say `sslmode=disable`, \
                      and reach the server over a network you trust";

/// Checks the URL. The message never quotes it.
pub(crate) fn parse(url: &str) -> Result<DatabaseUrl, String> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or("is not a PostgreSQL URL: write postgres://USER:PASSWORD@HOST:PORT/DATABASE")?;
    check(rest)?;
    if let Some((_, parameters)) = rest.split_once('?') {
        for parameter in parameters.split('&') {
            check_parameter(parameter)?;
        }
    }
    let config = Config::from_str(url).map_err(|error| {
        // Only errors whose text is known to hold nothing of the URL are passed on.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        match cause {
            Some(cause) if cause.starts_with("invalid value for option") => {
                format!("is not usable: {cause}")
            }
            _ => "is not usable: write postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned(),
        }
    })?;
    if config.get_ssl_mode() == SslMode::Require {
        return Err(NO_TLS.to_owned());
    }
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
        shown: shown(&config),
        database: config.get_dbname().or(config.get_user()).map(str::to_owned),
    })
}

fn check_parameter(parameter: &str) -> Result<(), String> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let name = percent_decode(name).unwrap_or_default();
    let key_instead = |key: KeyName| {
        Err(format!(
            "has the parameter `{}`: set {key} (or {}) instead",
            key.key,
            key.variable()
        ))
    };
    match name.as_str() {
        "sslmode" if value == "disable" => Ok(()),
        // The client would quietly go on in plain text where the server has no TLS, and without
        // TLS support compiled in it always would.
        name if name.starts_with("ssl") => Err(NO_TLS.to_owned()),
        "channel_binding" if value == "require" => Err(NO_TLS.to_owned()),
        "connect_timeout" => key_instead(DATABASE_CONNECT_TIMEOUT.name),
        "tcp_user_timeout" => key_instead(DATABASE_TCP_USER_TIMEOUT.name),
        "application_name" => key_instead(DATABASE_APPLICATION_NAME.name),
        "target_session_attrs" if value == "read-write" => Ok(()),
        "user" | "password" | "dbname" | "host" | "hostaddr" | "port" | "options"
        | "channel_binding" | "load_balance_hosts" => Ok(()),
        _ => Err(
            "has a parameter behind `?` that is not known here; known are user, password, dbname, host, \
             hostaddr, port, options, channel_binding, load_balance_hosts, target_session_attrs=read-write, \
             sslmode=disable"
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
