//! How a session of the relay is opened: where to, and what it is set to.

use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use crate::error::Error;
use crate::settings::Settings;

/// Takes the URL apart. No error quotes any part of it: a mistyped URL shows its password anywhere.
pub(crate) fn parse(settings: &Settings) -> Result<Config, Error> {
    if settings.url.trim().is_empty() {
        return Err(Error::Settings(
            "the database url is empty: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE",
        ));
    }
    let mut config: Config = settings.url.parse().map_err(|_| {
        if settings.url.contains("sslmode=verify") || settings.url.contains("sslrootcert") {
            Error::Settings(
                "the database url asks for TLS in a way that is not known here: leave out sslmode and sslrootcert, and set [database.tls]",
            )
        } else {
            Error::Settings(
                "the database url cannot be read: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in user and password percent-encoded, and no unknown parameters",
            )
        }
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(Error::Settings(
            "the database url names no host: expected postgres://USER:PASSWORD@HOST:PORT/DATABASE",
        ));
    }
    let mode = match &settings.tls {
        None if config.get_ssl_mode() == SslMode::Require => {
            return Err(Error::Settings(
                "the database url has sslmode=require, but plain text was asked for",
            ));
        }
        None => SslMode::Disable,
        Some(_) => {
            name_addresses(&mut config);
            SslMode::Require
        }
    };
    config
        .ssl_mode(mode)
        .application_name(&settings.application_name)
        .connect_timeout(settings.connect_timeout)
        .tcp_user_timeout(settings.tcp_user_timeout)
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(15))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3)
        // Of several hosts the one that accepts writes, after a failover too.
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    Ok(config)
}

/// Where only addresses were given, each is its own name: by TLS the client insists on one.
fn name_addresses(config: &mut Config) {
    if config.get_hosts().is_empty() {
        for address in config.get_hostaddrs().to_vec() {
            config.host(address.to_string());
        }
    }
}

/// The statements every session starts with.
///
/// * Plans: a statement prepared while the table was empty may become a sequential scan over a
///   backlog, and a sequential scan walks all that vacuum has not removed. Neither is ever right for
///   a queue. Without sequential scans costs look huge, which would start the JIT compiler: off. And where the
///   statistics know nothing of the rows above the frontier, since they came after the last ANALYZE, a bitmap of all
///   of them, sorted for each claim, looks cheap: 58 to 72 ms for each claim of a backlog of 60,000.
/// * `row_security = off` turns a policy that would hide rows into an error.
/// * `tcp_user_timeout` on the server's side ends a session whose client stopped reading; no other
///   timeout of the server does while it waits to send.
pub(crate) fn session_setup(settings: &Settings) -> String {
    format!(
        "SET search_path = pg_catalog, pg_temp; \
         SET plan_cache_mode = force_custom_plan; \
         SET enable_seqscan = off; \
         SET enable_bitmapscan = off; \
         SET jit = off; \
         SET row_security = off; \
         SET statement_timeout = {}; \
         SET idle_in_transaction_session_timeout = {}; \
         SET tcp_user_timeout = {}",
        milliseconds(settings.statement_timeout),
        milliseconds(settings.idle_in_transaction_timeout),
        milliseconds(settings.tcp_user_timeout),
    )
}

/// At least one: zero would switch a timeout off.
pub(crate) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis())
        .unwrap_or(i32::MAX)
        .max(1)
}
